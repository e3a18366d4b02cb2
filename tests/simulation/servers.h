/* Parameter servers in simulated worlds: what the workers do, what befalls one rank, and a model of the tables that says what may be seen.
 *
 * Every push is known everywhere by its worker and number, and all ranks share one process, so each pull is compared with what the others
 * have started by then. With staleness 0 the values are any, and the model adds them up in the order of ranks, to the bit; else a worker adds
 * 1 in columns of its own, so that a row tells how many pushes of each worker it has: none twice, none lost, none too late. Of a worker that
 * dies a server has carried out its first pushes up to some number, the same in all rows: one that is whole or is not. */
#ifndef WEFT_TESTS_SIMULATION_SERVERS_H
#define WEFT_TESTS_SIMULATION_SERVERS_H

#include "parallel/server/inside.h"
#include "weft/entries.h"
#include "world.h"

enum {
    STORY_RANKS = 9,
    STORY_WORKERS = 6,
    STORY_SERVERS = 9,
    STORY_TABLES = 2,
    STORY_CLOCKS = 5,
    STORY_PUSHES = 2, /* of a clock, at most */
    STORY_ROWS = 120,
    STORY_PATTERNS = 4, /* choices of rows */
    STORY_ALL = STORY_CLOCKS * STORY_PUSHES
};

/* What a worker has done to a table. */
typedef struct story_tally {
    int32_t started, ended; /* pushes */
    int64_t clock;
} story_tally;

typedef struct story_table {
    weft_table_options options;
    char               name[16];
    uint64_t           salt;
    int32_t            pushes;     /* of a clock */
    bool               entries; /* pushed and pulled, not rows */
    bool               both, lists, overlap; /* push_pull; rows sent along, not key sets; pushes at once */
    int64_t            rows, width;
    uint64_t           keys[STORY_ROWS];       /* ascending */
    int32_t            server_of[STORY_ROWS];  /* 0 .. */
    uint64_t           list[STORY_PATTERNS][STORY_ROWS]; /* keys of a pattern, */
    int64_t            place[STORY_PATTERNS][STORY_ROWS], count[STORY_PATTERNS]; /* their rows, how many */
    int8_t             pattern[STORY_WORKERS][STORY_ALL]; /* of each push */
    void              *model[STORY_CLOCKS + 1][STORY_ALL + 1]; /* staleness 0: by clock, and by pushes of the victim */
    story_tally        tally[STORY_WORKERS];
    uint32_t           possible[STORY_SERVERS]; /* bits: pushes of the victim that a server may have carried out */
} story_table;

/* What a rank holds. */
typedef struct story_rank {
    weft_world        world;
    wefti_world_links links;
    weft_server      *server;
    server_event      again; /* a request that is sent once more */
    uint8_t           frame[WEFTI_FRAME_BYTES];
    uint8_t          *send[STORY_PUSHES], *receive;
    uint8_t           *ahead[STORY_TABLES]; /* of a pull that ends after its worker's clock has */
    uint8_t          *packed[STORY_PUSHES]; /* what is sent as entries: values, columns, counts */
    weft_entries      pulled;
    uint64_t          random, longest_ns; /* the longest of its requests */
    bool              settled, quit, left; /* has pushed all; has given up; has released the server */
} story_rank;

typedef struct story {
    uint64_t            random, seed;
    int32_t             size, workers, servers, first_server;
    weft_server_options roles;
    wefti_sim_options   options;
    int32_t             tables;
    story_table         table[STORY_TABLES];
    int32_t             clocks;
    uint64_t            pause_ns; /* at most, between two requests */
    bool                strikes, spared, repeats;
    wefti_sim_fault     fault;
    /* while it runs */
    story_rank          rank[STORY_RANKS];
    wefti_sim          *sim;
    int32_t             ready;
    uint64_t            sent[STORY_RANKS]; /* messages, of the server's making not counted */
    uint64_t            repeated, hash;    /* of requests that servers knew; of the history */
} story;

uint64_t story_draw(story *of, uint64_t below);
/* All that a seed decides; and of servers apart with replicas, one of which may die. */
void story_make(story *of, uint64_t seed);
void story_make_replicated(story *of, uint64_t seed);
/* Either, by turns, with tables that are hybrid, or pushed and pulled by entries, or both. */
void story_make_entries(story *of, uint64_t seed);
/* A table, from its options (name apart). */
void story_add_table(story *of, weft_table_options options, int64_t rows, int64_t width);
/* Runs it; what is wrong, in words, or NULL. It may be run again. */
const char *story_run(story *of, void (*trace)(void *context, const char *line), char *words_out, size_t words_bytes);
void        story_free_models(story *of);

/* --- the model (servers_model.c) --- */
void story_fill(const story_table *table, int32_t workers, int32_t worker, int32_t push, void *values_out);
/* Whether what a pull in `clock` saw may be so; `final`: nothing more can come. */
WEFT_MUST_CHECK weft_status story_check(story *of, story_table *table, int32_t me, int64_t clock, int pattern, const void *values, bool final);
bool story_is_lost(const story *of, int32_t rank);

#endif

/* The parameter server's inside: one object a rank, in which a client and a server share links.
 *
 * Everything is moved by wefti_server_progress, under one lock, by the rank's thread or by whoever waits. What is posted to the wire
 * carries a function to call when it is done, so nothing is searched; what the wire cannot take now waits in one queue, in order. */
#ifndef WEFTI_SERVER_INSIDE_H
#define WEFTI_SERVER_INSIDE_H

#include <pthread.h>
#include <stdatomic.h>

#include "core/base/stream.h"
#include "core/iface/world.h"
#include "parallel/server/frame.h"
#include "parallel/server/route.h"
#include "parallel/server/states.h"
#include "parallel/server/store_entries.h"

/* --- moving bytes (move.c) --- */

/* An operation and what is to be done after it. */
typedef struct server_event {
    wefti_wire_op op;
    void (*done)(weft_server *server, struct server_event *event); /* op.status says how */
    void                *owner;
    struct server_event *next; /* in the queue of those that the wire has not taken */
} server_event;

/* Posts it now or later; `done` is called in either case, also where the peer is gone. */
void wefti_server_post(weft_server *server, server_event *event);
/* Takes a receive back: its `done` is called by a later progress, with WEFT_E_ABORTED unless a message had come for it. */
void wefti_server_unpost(weft_server *server, server_event *event);
/* Tries again what the wire could not take. */
void wefti_server_post_again(weft_server *server);

/* Many bytes as messages that no wire finds too long, a few at once. */
enum { SERVER_PIECES = 4, SERVER_PIECE_BYTES = 1 << 22 };
typedef struct server_mover {
    server_event events[SERVER_PIECES];
    uint8_t     *base;
    size_t       bytes, posted, moved;
    uint64_t     tag;
    int32_t      peer, flying;
    bool         discards; /* all pieces go to the beginning of base, which holds the longest */
    wefti_wire_op_kind kind;
    weft_status  status; /* of the first piece that failed */
    void (*done)(weft_server *server, struct server_mover *mover); /* once, after the last */
    void        *owner;
    int32_t      value_part; /* the owner's: which of several bodies */
} server_mover;
/* `mover` must not be in use. With no bytes `done` is called at once. */
void wefti_server_move(weft_server *server, server_mover *mover);
/* Gives up one that is in use; `done` is called later. */
void wefti_server_unmove(weft_server *server, server_mover *mover);
/* One that sends goes on from `base`, where what it has not sent is copied first. Only where the wire can (send_from). */
void wefti_server_move_from(weft_server *server, server_mover *mover, uint8_t *base);

/* --- memory that comes again and again (move.c) --- */

typedef struct server_buffer {
    struct server_buffer *next;
    size_t                room;
    uint8_t              *data;
    wefti_wire_region    *region; /* whose memory it is; NULL: this program's */
} server_buffer;
/* `exported`: servers on this host read and write it in place; only where wefti_server_maps. */
WEFT_MUST_CHECK weft_status wefti_server_take(weft_server *server, size_t bytes, bool exported, server_buffer **buffer_out);
/* One of exactly so many bytes, which is not for wefti_server_give. */
WEFT_MUST_CHECK weft_status wefti_server_make_buffer(weft_server *server, size_t bytes, bool exported, server_buffer **buffer_out);
void wefti_server_give(weft_server *server, server_buffer *buffer); /* NULL is fine */
void wefti_server_free_buffer(weft_server *server, server_buffer *buffer);

/* Values from so many bytes on are read and written where they are, if that is memory that peers map; from so many bytes on, others are copied there
 * first: the other ways to a large piece of another process's memory are slower than two copies. */
enum { SERVER_IN_PLACE_BYTES = 512, SERVER_STAGE_BYTES = 2048 };
static inline bool wefti_server_maps(const weft_server *server);

/* --- the worker's side --- */

/* A request's part of one server. It ends when its frame, its reply and its bodies have, well or badly. */
typedef struct request_part {
    weft_request *request;
    int32_t       server;   /* 0 .. servers-1 */
    int32_t       pending;  /* of frame, reply, out, in */
    uint32_t      slot;
    bool          lost, twin_lost; /* its server is gone, and another one may do; so is that of its twin */
    bool          answered, large, receives; /* its body has messages of its own; `in` is under way: it may end before the reply comes */
    bool          in_place; /* the server puts the rows where they are to be */
    struct wefti_line *line; /* by which the server follows, or is followed (follow.h); NULL: none */
    size_t        taken;    /* of the rows that it puts: bytes that are where the program wants them */
    server_event  frame, again, reply; /* `again`: the frame once more, where its server has given up to follow */
    server_mover  out, in;  /* bodies */
    const void   *values;   /* what `out` sends after a list of keys; NULL: nothing more */
    size_t        value_bytes;
    int64_t       first, count; /* rows of the request, in the order of the key set's servers */
    const uint8_t *coded;       /* where the request's values are: they, and … */
    size_t        coded_bytes;
    server_buffer *pulled;      /* entries that came (entries.h) */
    size_t        pulled_bytes;
    bool          from_twin;    /* the answer to a question is in twin_reply */
    _Alignas(8) uint8_t frame_bytes[WEFTI_FRAME_BYTES]; /* read and written as what they hold */
    _Alignas(8) uint8_t reply_bytes[WEFTI_REPLY_BYTES], twin_reply[WEFTI_REPLY_BYTES];
} request_part;

typedef enum request_state { REQUEST_FREE, REQUEST_FLYING, REQUEST_ENDED } request_state;

struct weft_request {
    weft_server   *server;
    weft_request  *next; /* of those that are free */
    weft_request  *all;  /* of those that are detached, whatever they do */
    weft_table    *table;
    weft_table_call call;
    request_state  state;
    wefti_frame_kind kind;
    bool           detached;    /* nobody waits for it */
    weft_request  *of;          /* of a twin: the request that it is for … */
    bool           for_lost;    /* … which lost some of its parts: these alone */
    int32_t        twins;       /* requests to the twin that have not ended */
    bool           over, again; /* its own parts have ended; what was lost was asked of the twin */
    weft_request  *behind;      /* staleness 0 with replicas: the next of its table's line (twin.c), of which it … */
    bool           lined, reads, held, asks; /* … is one; has rows to come; is yet to be given, is yet to ask the twin */
    int32_t        pending;     /* parts that have not ended */
    uint64_t       deadline_ns, clock;
    uint64_t       evaluation, unit;    /* GIVE */
    const void    *ask;                 /* VECTORS, WORK: what is sent; answers stay in their parts. Else NULL */
    size_t         ask_bytes, answer_bytes;
    weft_status    status;
    char           message[WEFTI_SERVER_TEXT_BYTES];
    weft_keys     *own_keys;    /* of a list that came with the call */
    server_buffer *staging_out, *staging_in; /* values in the order of servers, where that is not the callers' */
    bool           copies_out, copies_in;    /* … or in memory that servers do not map, and are copied while servers follow, or are followed */
    wefti_server_spec spec;     /* CREATE, OPEN */
    server_buffer *file_body, *shares; /* SAVE and the like: what is sent; [servers] that came */
    size_t         file_bytes;
    uint64_t       number;      /* of the snapshot; LOAD: the phase */
    uint64_t       changes;     /* SAVE: the server's when it was asked for */
    int32_t        part;        /* of rows: as in the frame */
    uint64_t       slice_ns;    /* how long servers hold it up, where that is less than its time; 0: not */
    int64_t       *updates;     /* where `part`: as in the frame */
    request_part  *parts;       /* [servers] */
};

/* What a worker keeps for a table's codecs (coded.h). */
typedef struct wefti_coder wefti_coder;

struct weft_keys {
    weft_table *table;
    weft_keys  *twin;
    weft_keys  *next;
    uint64_t    id;
    int64_t     count;
    int64_t     room;     /* elements of keys */
    uint64_t   *keys;     /* [count] ascending */
    uint64_t   *routed;  /* [count] server by server, ascending in each; == keys where servers have ranges */
    int64_t    *places;  /* [count] routed[i] == keys[places[i]]; NULL where routed == keys */
    int64_t    *begin;   /* [servers + 1] of each server's in routed */
    uint8_t    *known;   /* [servers] the list has been sent */
    uint8_t    *packed;  /* each server's list in fewer bytes (coding.h), where that is smaller; NULL: nowhere */
    size_t     *packed_begin; /* [servers + 1] in packed; two that are the same: as it is */
};

struct weft_table {
    weft_server       *server;
    weft_table        *twin;
    weft_table        *next;
    weft_table_options options;
    wefti_server_spec  spec;
    uint64_t           id;
    size_t             row_bytes;
    uint64_t           clock;
    weft_keys         *keys;
    uint64_t           next_keys;
    wefti_coder       *coder;   /* NULL: nothing is coded (coded.h) */
    weft_request      *line;    /* staleness 0 with replicas: requests under way, in their order (twin.c) */
    bool               walks, changed; /* the line is being gone through; something in it has changed meanwhile */
    weft_status        trouble; /* of a request that nobody waited for; the next call tells */
    char               trouble_text[WEFTI_SERVER_TEXT_BYTES];
};

/* --- the server's side --- */

typedef struct served_table served_table;
typedef struct served_keys  served_keys;
typedef struct server_job   server_job;
typedef struct server_save  server_save;
typedef struct server_shown server_shown;

/* A worker, as a server knows it. */
typedef struct server_session {
    bool        left, dead;
    uint64_t    down_ns;     /* when its link was first seen broken; 0: it is not */
    uint64_t    heard_ns;    /* of its latest request */
    bool        halted;      /* until all have asked for a snapshot */
    uint64_t    last;        /* number of the latest request that was carried out */
    uint64_t    moving;      /* the latest change of the split that it is ready for */
    uint64_t     resulted;   /* number of the latest VECTORS, of which are … */
    double      *results;    /* … [VECTORS_MOST]; NULL before the first */
    wefti_pace   pace;       /* of rows that are put into its memory */
    server_job *first, *end; /* in the order in which they came */
} server_session;

typedef enum job_state { JOB_READING, JOB_READY } job_state;

/* A request that a server has in hand. */
struct server_job {
    server_job        *next;     /* of the session's, of those that wait for a clock, of those that are free */
    server_job        *all;      /* of all there are */
    int32_t            worker;
    wefti_server_frame frame;
    job_state          state;
    weft_status        status;   /* of reading its body */
    char               message[WEFTI_SERVER_TEXT_BYTES];
    uint64_t           deadline_ns;
    size_t             list_bytes;
    server_buffer     *body, *answer; /* a list of keys, then values; rows */
    size_t             answer_bytes;
    const uint8_t     *values;   /* that are pushed: in the body, or in the worker's memory */
    wefti_entries      entries;  /* … as entries */
    bool               in_place; /* the rows are at the worker already */
    served_table      *lender;   /* whose rows are sent from where they lie (lend.c), which are … */
    const uint8_t     *lent;     /* … these, and `answer` has room for them */
    server_job        *next_lent;
    server_buffer     *decoded;  /* what came coded: which of the rows came, and their values */
    uint64_t          *chosen;
    int64_t            chosen_count;
    uint64_t           updates;  /* of the first row, where its state is pulled */
    uint64_t           clock;    /* its worker's when it pulled: which may have ended it since */
    served_keys       *keys;     /* it uses them */
    int32_t            pending;  /* of the answer's messages */
    server_mover       in, out;
    server_event       reply;
    uint8_t            reply_bytes[WEFTI_REPLY_BYTES];
};

/* A clock's push that waits for its turn (staleness 0). */
typedef struct server_push {
    struct server_push *next;
    served_keys        *keys;   /* it uses them */
    server_buffer      *body;
    size_t              offset; /* of the values in it */
    wefti_entries       entries; /* … where it brings entries */
    uint64_t            first, clock;
    int64_t             count;
    double              rate;
} server_push;

/* Rows that a worker named, and where they are. */
struct served_keys {
    served_keys *next;
    uint64_t     id;     /* 0: of one request */
    int32_t      worker, users;
    bool         forgotten, missing; /* a key had no row when it was looked up */
    int64_t      count;
    uint64_t    *keys, *places; /* [count] */
};

struct served_table {
    served_table      *next;
    uint64_t           id;
    wefti_server_spec  spec;
    weft_table_options options;
    wefti_store       *store;
    wefti_sum         *sum;     /* staleness 0 */
    uint64_t           begin, rows; /* dense, or ranges of keys: this server's */
    size_t             row_bytes;
    uint64_t          *clocks;  /* [workers] */
    uint64_t           closed;  /* staleness 0: clocks that are */
    uint64_t          *folded;  /* [workers] the clock, plus one, of which something is in the sum */
    double             rate;    /* staleness 0: of the clock in hand */
    int32_t            turn;    /* staleness 0: the first worker that has not ended the clock in hand */
    server_push      **pushes;  /* [workers] that wait, oldest first */
    server_job        *waiting; /* pulls */
    server_job        *lent;    /* pulls whose answers are being sent from its rows */
    served_keys       *keys;
    weft_status        trouble; /* of a rule, at the end of the clock before `trouble_clock` … */
    uint64_t           trouble_clock;
    uint64_t          *told;    /* … which workers were told, [workers] */
    char               trouble_text[WEFTI_SERVER_TEXT_BYTES];
    struct server_gather *gather; /* a sum over units of work (gather.c) */
    struct server_shown  *shown;  /* the memory of its rows, where workers read them (shown.c); NULL: the store's own */
    bool                  pulled, shows; /* since they changed: somebody has pulled them, read them there */
};

/* --- both --- */

typedef struct server_slot {
    server_event event;
    uint8_t      bytes[WEFTI_FRAME_BYTES];
} server_slot;

/* A table's clock on a worker that comes into a split. */
typedef struct wefti_began { uint64_t table, clock; } wefti_began;

struct weft_server {
    /* The handle's own, which stay when another split is taken over (resize.c). */
    pthread_mutex_t   lock;
    pthread_t         thread;
    bool              threaded, renews;
    atomic_bool       stop;
    atomic_int        callers; /* that wait and so see to the progress */
    atomic_uint       calls;   /* that have spun */
    atomic_uint       parked;  /* how often the thread has stood back for them */
    server_buffer    *lent;    /* to the program */
    weft_table       *tables;
    weft_server_counts before; /* of earlier splits */
    uint64_t          loads, loads_heard; /* snapshots that were taken over here; at most, by servers that have answered */
    uint64_t          job, generation, resizes; /* which server this is, of all; how often its split has changed, and was to be changed */
    struct wefti_resize *pending; /* a split that this rank is ready for, and does not know whether the others have taken it */
    struct wefti_retired *retired; /* wires of earlier splits, whose memory is lent */
    wefti_began      *began;   /* [began_count] clocks of workers at the latest change, by table */
    int32_t           began_count;

    /* The split's, from here to the end. */
    weft_server      *twin;  /* the same with each share on another rank, where there are replicas (twin.c); moved along with this one, under its lock */
    weft_server      *of;    /* whose twin this is; NULL: it is none */
    int32_t           shift; /* 1: a twin */
    weft_world       *world;
    const wefti_host *host;
    wefti_wire       *wire;
    int32_t           rank, size, servers, workers, first_server, in_flight;
    bool              works, serves, dedicated;
    uint64_t          timeout_ns;
    const weft_table_function *functions;
    int32_t           function_count;

    weft_status       failed;  /* of the wire itself */
    char              failure[WEFTI_SERVER_TEXT_BYTES];
    uint64_t          looked_ns; /* when links were last looked at */
    uint64_t          now_ns;    /* of a progress a moment ago */
    uint64_t          sent_in_place, received_in_place; /* bytes of values that took no message */
    uint64_t          key_bytes, sent_key_bytes, value_bytes, moved_value_bytes; /* of this worker's requests: as they are, and as they were sent */
    bool             *gone;    /* [size] */
    uint64_t          alone_ns; /* since when the world notices nobody's silence any more; 0: it does */
    bool              leaves;  /* it waits for the workers to leave, and for nothing else */
    bool              world_failed; /* the world has a verdict */

    server_event     *unposted, *unposted_last;
    bool             *stuck;   /* [size] while the queue is tried */
    server_buffer    *buffers;
    size_t            buffer_bytes; /* that lie idle in them */

    /* worker */
    weft_request     *requests; /* [in_flight] */
    weft_request     *free_requests;
    weft_request     *details, *all_details; /* for clocks and the like, that nobody waits for: free ones, and all */
    request_part     *parts;
    uint64_t         *numbers;  /* [servers] of the latest request to each */
    uint32_t          next_slot;
    uint64_t          snapshots; /* that were begun */
    uint64_t          changes;   /* requests that change something, that were begun */
    bool              saving;    /* one has not ended */
    bool              loading;   /* weft_server_load is under way */
    uint64_t          runs;    /* of weft_lbfgs_minimise that were begun */
    int32_t           flying;   /* requests of any kind that have not ended */
    server_buffer    *lines;    /* [in_flight, servers] wefti_line (follow.h); NULL before the first */
    int32_t           copying;  /* requests with copies_in */
    int32_t           alone;    /* so many requests are not followed, as one was given up */
    wefti_pace        pace;     /* of copies that are followed */

    /* server */
    server_slot      *slots;
    int32_t           slot_count;
    server_session   *sessions; /* [workers] */
    served_table     *served;
    server_job       *free_jobs, *all_jobs;
    server_save          *saves;
    struct server_load   *load;
    struct server_keeper *keeper;
    struct server_ledger *ledgers; /* of work that is given out (ledger.c) */
    uint8_t          *trash;    /* for what comes and cannot be kept */
    char             *spill;    /* the folder for rows that are not in memory; NULL: none */
    uint64_t          served_count, repeated_count, request_count, late_count;
};

static inline bool wefti_server_maps(const weft_server *server) {
    return server->wire->can.flags & WEFTI_WIRE_MAPS_PEERS && server->wire->ops->region_of;
}
/* Who has a share, and which share this rank has, if it serves. In a twin each share is one rank further. */
static inline int32_t wefti_server_rank(const weft_server *server, int32_t index) {
    return server->first_server + (index + server->shift) % server->servers;
}
static inline int32_t wefti_server_index(const weft_server *server) {
    return (server->rank - server->first_server + server->servers - server->shift) % server->servers;
}

/* service.c: the wire is of no more use; everything ends with this. Under the lock. */
void wefti_server_fail(weft_server *server, weft_status status, const char *text);
/* service.c: moves everything once; *moved_out: something happened. Under the lock. */
WEFT_MUST_CHECK weft_status wefti_server_progress(weft_server *server, bool *moved_out);
/* Moves everything for about as long as an answer of few bytes takes, or until the request has ended. Under the lock. */
void wefti_server_spin(weft_server *server, const weft_request *request);
/* Where a look is a load and nobody needs this core, one looks again and again. */
bool wefti_server_is_hot(const weft_server *server);
/* Waits until `over(context)`, which is asked under the lock; false after `until_ns`. Not under the lock. */
WEFT_MUST_CHECK weft_status wefti_server_wait(weft_server *server, bool (*over)(const void *context), const void *context, uint64_t until_ns);
/* Frees what a rank had that is dead, from outside of it: says nothing to anybody. For simulated worlds. NULL is fine. */
void wefti_server_bury(weft_server *server);
bool wefti_server_is_gone(const weft_server *server, int32_t rank);
WEFT_MUST_CHECK weft_status wefti_server_check_options(const weft_server_options *options, int32_t size);
/* A server without a thread, with links and roles. Collective. On failure too *server_out may be one that is to be buried. */
WEFT_MUST_CHECK weft_status wefti_server_open(weft_world *world, const weft_server_options *options, weft_server **server_out);
/* The rank's thread does nothing until the other is called. */
void wefti_server_park(weft_server *server);
void wefti_server_unpark(weft_server *server);
/* What it has moved, without earlier splits. Under the lock. */
void wefti_server_add_counts(weft_server *server, weft_server_counts *counts);

/* twin.c */
/* Whether what a request of this kind changes is changed in the twin too; or that it can be asked of the twin. */
bool wefti_twin_has(wefti_frame_kind kind);
void wefti_twin_start(weft_server *server, weft_request *request); /* what goes to the twin beside a request that is being started */
void wefti_twin_ended(weft_request *request); /* of the twin */
void wefti_twin_leave(weft_server *server, weft_request *request); /* it has ended */
void wefti_twin_let_go(weft_server *server, weft_table *table); /* the table goes, and what is under way goes on without it */
/* A request's own parts have ended, or the last one of its twin's. True: more is to come; else its status says what became of all. */
bool wefti_twin_goes_on(weft_server *server, weft_request *request);

/* client.c */
void wefti_client_fail(weft_request *request, weft_status status, const char *text); /* keeps the first failure */
void wefti_client_end(weft_server *server, weft_request *request);
WEFT_MUST_CHECK weft_status wefti_client_open(weft_server *server);
void wefti_client_close(weft_server *server);
/* Begins a request of any kind to `servers` of them, -1: all. Under the lock. */
WEFT_MUST_CHECK weft_status wefti_client_start(weft_server *server, weft_request *request, int32_t only);
/* A pull of all of a dense table, of at most WEFTI_BRIEF_VALUES bytes as they are: it is sent before it is noted, so that what is noted costs no time. WEFT_E_AGAIN: it is to
 * be begun in the ordinary way. Under the lock. */
WEFT_MUST_CHECK weft_status wefti_client_start_brief(weft_server *server, weft_table *table, void *receive, weft_request **request_out);
WEFT_MUST_CHECK weft_status wefti_client_take(weft_server *server, bool detached, weft_request **request_out);
void wefti_client_free(weft_server *server, weft_request *request);
/* saves_client.c: begins what follows a request that has ended, of a snapshot; false: nothing does. */
bool wefti_client_follow(weft_server *server, weft_request *request);
void wefti_client_look(weft_server *server, uint64_t now_ns); /* deadlines, and servers that are gone */

/* serve.c */
WEFT_MUST_CHECK weft_status wefti_serve_open(weft_server *server);
void wefti_serve_close(weft_server *server);
void wefti_serve_look(weft_server *server, uint64_t now_ns); /* deadlines, and workers that are gone */
bool wefti_serve_is_over(const weft_server *server); /* every worker has left or died */
/* Every worker has left, died, or is ready for the `number`th change of the split. */
bool wefti_serve_is_ready(const weft_server *server, uint64_t number);
bool wefti_serve_is_busy(const weft_server *server); /* an answer is being sent */
/* Sends a job's answer: the rows in job->answer, or with another status than WEFT_OK the thread's message. The job is gone then. */
void wefti_serve_answer(weft_server *server, server_job *job, weft_status status);
/* The job is gone without an answer: its worker is, or sends it again. */
void wefti_serve_forget(weft_server *server, server_job *job);

/* tables.c */
/* Answers pulls whose clock has come. */
void wefti_tables_wake(weft_server *server, served_table *table);
/* Does what a request asks for and answers it, now or once its clock has come. */
void wefti_tables_carry_out(weft_server *server, server_job *job);
/* Answers a request whose body could not be kept. */
void wefti_tables_refuse(weft_server *server, server_job *job);
served_table *wefti_tables_find(const weft_server *server, uint64_t id); /* NULL: there is none */
/* All of a dense table's rows here as a short answer has them, for a pull of so many rows that would be answered at once; false: it is not one. */
bool wefti_tables_read_brief(weft_server *server, served_table *table, int32_t worker, uint32_t count, uint8_t values_out[WEFTI_BRIEF_VALUES]);
/* Makes a table that is not there, for `id`. */
WEFT_MUST_CHECK weft_status wefti_tables_add(weft_server *server, const wefti_server_spec *spec, uint64_t id, served_table **table_out);
void wefti_tables_worker_gone(weft_server *server); /* clocks do not wait for it */
void wefti_tables_look(weft_server *server, uint64_t now_ns);
void wefti_tables_close(weft_server *server);
/* A store like the table's, with nothing in it, and its sum; and to take it instead, once no rows are lent. */
WEFT_MUST_CHECK weft_status wefti_tables_make_store(weft_server *server, const served_table *table, wefti_store **store_out, wefti_sum **sum_out);
void wefti_tables_change_store(served_table *table, wefti_store **store, wefti_sum **sum);
/* WEFT_E_STATE while pushes of a clock are kept. */
WEFT_MUST_CHECK weft_status wefti_tables_check_idle(const weft_server *server, const served_table *table);

/* lend.c */
/* Rows of a dense table as the job's answer, without a copy where that can be; job->answer has room for them. */
bool wefti_lend_rows(const weft_server *server, served_table *table, server_job *job);
/* Puts rows of a dense table into the worker's memory, past the caches where that is quicker; false: few, or no such rows, and nothing is done. */
bool wefti_lend_put(weft_server *server, served_table *table, const server_job *job, uint8_t *out);
/* Before rows of the table change or go: answers that are being sent from them go on from copies. */
void wefti_lend_end_all(weft_server *server, served_table *table);
void wefti_lend_end(server_job *job); /* its answer has been sent, or never will */

/* tables_keys.c: the rows of a request; job->keys is NULL for a range of a dense table. */
WEFT_MUST_CHECK weft_status wefti_tables_find_rows(weft_server *server, served_table *table, server_job *job, bool create);
void wefti_tables_let_go(served_table *table, served_keys *keys); /* NULL is fine */
void wefti_tables_forget(served_table *table, int32_t worker, uint64_t id);

/* tables_clock.c: staleness 0 and more. */
/* Takes a push; the job's body may be kept. */
WEFT_MUST_CHECK weft_status wefti_clock_push(weft_server *server, served_table *table, server_job *job);
void wefti_clock_tick(weft_server *server, served_table *table, int32_t worker);
void wefti_clock_advance(weft_server *server, served_table *table); /* after a worker has gone */
/* For a change of the split: no clock is under way. What workers that are gone had pushed in one is given to the rule by itself. */
WEFT_MUST_CHECK weft_status wefti_clock_settle(weft_server *server, served_table *table);
bool wefti_clock_allows(const weft_server *server, const served_table *table, uint64_t clock); /* a pull of it */
void wefti_clock_explain(const weft_server *server, const served_table *table, uint64_t clock, char *text, size_t bytes); /* who is behind */

#endif

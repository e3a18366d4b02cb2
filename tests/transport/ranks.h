/* Ranks as forked processes under Weft's own environment variables, and what became of them. */
#ifndef WEFT_TESTS_RANKS_H
#define WEFT_TESTS_RANKS_H

#include <stdatomic.h>
#include <stdint.h>
#include <sys/types.h>

#include "transport/transport.h"

enum { RANKS_MOST = 8 };

typedef struct rank_result {
    _Atomic int finished;
    weft_status status;
    int32_t     fault_rank; /* of the verdict; -1: none */
    uint64_t    at_ns;      /* when the function returned */
    char        message[WEFTI_MESSAGE_BYTES];
} rank_result;

/* Shared by the parent and all ranks. */
typedef struct ranks {
    int32_t         size;
    char            store[64];
    uint64_t        wrecked_ns;    /* when somebody was killed */
    _Atomic int32_t ready;         /* ranks that have come to the point of the test */
    _Atomic int32_t step;          /* from the parent */
    pid_t           children[RANKS_MOST];
    rank_result     results[RANKS_MOST];
} ranks;

/* Its message is kept where the status is not WEFT_OK. */
typedef weft_status (*rank_function)(ranks *all, int32_t rank);

/* A free port on loopback, as "127.0.0.1:port". */
void ranks_pick_store(char store_out[64]);
/* Forks them, each with WEFT_RANK, WEFT_WORLD_SIZE, WEFT_STORE and WEFT_JOB set. */
ranks *ranks_start(int32_t size, rank_function function);
/* Waits for all (a minute at most, then kills); the results are then final. */
void ranks_join(ranks *all);
void ranks_free(ranks *all);
/* Waits until `count` ranks are at the point. */
void ranks_wait_ready(ranks *all, int32_t count);
uint64_t ranks_now(void);
/* Every TCP port that a rank listens on; gives how many. */
int ranks_find_ports(const ranks *all, uint16_t *ports_out, int most);

#endif

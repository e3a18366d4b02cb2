/* Simulated worlds for tests: every rank opens the very transport that programs open, and runs a function on it. */
#ifndef WEFT_TESTS_SIMULATION_WORLD_H
#define WEFT_TESTS_SIMULATION_WORLD_H

#include "transport/sim.h"
#include "transport/transport.h"

typedef struct sim_world sim_world;

enum { SIM_MOST_LOST = 16, SIM_MOST_STARTS = 16 };

/* One rank. */
typedef struct sim_rank {
    sim_world       *world;
    int32_t          rank;
    wefti_transport *transport;
    wefti_group     *group;      /* of all, that its function opened; and … */
    wefti_transport *lost[SIM_MOST_LOST]; /* that it went on from, with … */
    wefti_group     *lost_groups[SIM_MOST_LOST]; /* … the groups that it had there; and … */
    int32_t          lost_count;
    uint8_t         *memory;     /* … what it took: closed and freed for it, also when it died */
    size_t           memory_bytes;
    int32_t          start;      /* 0, or how manieth process in place of the first … */
    uint64_t         started_ns; /* … and since when */
    bool             ended;      /* its function has returned … */
    weft_status      status;     /* … with this, or the verdict that came after */
    int32_t          fault_rank; /* of the verdict; -1: none */
    uint64_t         ended_ns;
    char             message[WEFTI_MESSAGE_BYTES];
} sim_rank;

struct sim_world {
    wefti_sim *sim;
    int32_t    size;
    sim_rank  *ranks; /* [size] */
    weft_status (*function)(sim_rank *self);
    void (*bury)(sim_rank *self); /* frees what else the function made, also for those who died; NULL: nothing */
    const void *context;      /* the test's */
    uint64_t    timeout_ns;   /* of operations */
    uint64_t    replacement_ns; /* how long ranks that go on wait for others in place of those who died */
    sim_rank    graves[SIM_MOST_STARTS]; /* those who died, and whose place another one took */
    int32_t     starts, buried;
    uint64_t    listen_ns;    /* how long ranks stay to hear of faults after they are done */
    int32_t     opened;       /* ranks */
    uint64_t    began_ns;     /* when all had opened */
    uint64_t    hash, events; /* of the history */
    weft_status outcome;      /* of the simulation: WEFT_E_TIMEOUT where it hung … */
    char        words[WEFTI_MESSAGE_BYTES];
};

/* Runs a world to its end. `plan`, may be NULL, is called once all ranks have opened. `world` comes with function, context
 * and times; its ranks are the caller's to free by sim_world_free. */
void sim_world_run(sim_world *world, const wefti_sim_options *options, void (*plan)(sim_world *world));
void sim_world_free(sim_world *world);
/* Starts a rank that has died by then again at a time: it comes in by wefti_transport_open, and runs the same function. From `plan`. */
void sim_world_start_again(sim_world *world, int32_t rank, uint64_t at_ns);
/* Opens the rank's group. */
weft_status sim_rank_open(sim_rank *self, const char *algorithm, const int32_t *nodes, int32_t in_flight);
/* Goes on with those who are left, in a world of their own. */
weft_status sim_rank_shrink(sim_rank *self, int32_t least, uint64_t patience_ns);
weft_status sim_rank_take(sim_rank *self, size_t bytes);
/* What is wrong with the outcome, in words; NULL: nothing. All living ranks that can be reached ended well with no verdict, or all
 * with the same one, which names `victim` (-1: none may be given); `must_fail`: it must be one. */
const char *sim_world_judge(const sim_world *world, int32_t victim, bool must_fail, char *text_out, size_t text_bytes);

/* --- calls --- */

/* A call with i32 elements that are known everywhere. */
typedef struct sim_call {
    wefti_collective_kind kind;
    int32_t root, number; /* number: tells inputs of calls apart */
    size_t count;
} sim_call;
/* Memory of a call: give `sim_call_bytes` bytes. */
size_t sim_call_bytes(const sim_call *call, int32_t size);
void sim_call_prepare(const sim_call *call, int32_t size, int32_t me, void *memory, wefti_collective_call *out);
/* WEFT_E_INTERNAL names the first element that is wrong. */
weft_status sim_call_check(const sim_call *call, int32_t size, int32_t me, const void *memory);
/* All of it, in memory that is given. */
weft_status sim_call_run(wefti_group *group, const sim_call *call, void *memory);

#endif

/* One list of cases for every wire. A wire's test file says how its ranks are made and runs the list.
 *
 * Ranks are threads, forked processes or fibers, which cannot use Criterion's assertions: CHECK records the first failure in
 * memory that all share, everyone stops, and the test asserts at the end. */
#ifndef WEFT_TESTS_CONFORMANCE_H
#define WEFT_TESTS_CONFORMANCE_H

#include <stdatomic.h>
#include <stdio.h>
#include <sys/types.h>

#include "transport/sim.h"
#include "transport/wire_common.h"

enum { MOST_RANKS = 8 };

typedef enum rank_mode { AS_THREADS, AS_PROCESSES, AS_FIBERS } rank_mode; /* fibers: of the simulator, in its time */

/* What the ranks of one case share. */
typedef struct shared_state {
    _Atomic int failed;
    char        message[2000];
    _Atomic int arrived, generation; /* of the barrier */
    _Atomic int finished;
    bool        launched; /* the ranks are somebody else's processes: each says itself what failed */
    struct {
        size_t  bytes;
        uint8_t address[WEFTI_WIRE_ADDRESS_BYTES];
    } addresses[MOST_RANKS];
    _Atomic int64_t note[MOST_RANKS]; /* for cases */
} shared_state;

/* One rank of one case. */
typedef struct rank_world {
    wefti_wire   *wire;
    int32_t       rank, size;
    rank_mode     mode;
    shared_state *shared;
    void         *hub;  /* inproc; fibers: the simulator */
    uint16_t      groups; /* of all ranks, that the case has opened: one that uses an id again needs another epoch, as the library gives it */
    bool          gone; /* the case has closed the wire, or left it as a dead rank would */
} rank_world;

/* How a wire is opened for a test. */
typedef struct wire_setup {
    const char *name;
    rank_mode   mode;
    weft_status (*open)(const wefti_wire_options *options, wefti_wire **wire_out);
    size_t ring_bytes; /* of the options; 0: the default */
    bool   encrypt;
    const wefti_sim_options *simulated; /* AS_FIBERS; its size is the ranks' */
} wire_setup;

/* Runs every case of the list with that many ranks; asserts. */
void conformance_run(const wire_setup *setup, int32_t ranks);
/* Runs one function on connected ranks; asserts. A rank whose function returns closes its wire unless `gone`. */
void conformance_run_one(const wire_setup *setup, int32_t ranks, const char *name, void (*function)(rank_world *world));

/* For ranks that a launcher has started: runs one function as `rank`; does not return where it fails. `shared` is memory of
 * all of them, zeroed before the first one came. */
void conformance_join(const wire_setup *setup, int32_t rank, int32_t size, shared_state *shared, void (*function)(rank_world *world));

/* --- for cases --- */

_Noreturn void rank_failed(rank_world *world, const char *file, int line, const char *what, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
#define CHECK(condition, ...)                                                                   \
    do {                                                                                        \
        if (!(condition)) rank_failed(world, __FILE__, __LINE__, #condition, __VA_ARGS__);      \
    } while (0)
#define CHECK_OK(call)                                                                                        \
    do {                                                                                                      \
        weft_status check_status = (call);                                                                    \
        if (check_status != WEFT_OK)                                                                          \
            rank_failed(world, __FILE__, __LINE__, #call, "%s: %s", weft_status_name(check_status),           \
                        weft_error_message());                                                                \
    } while (0)

/* Polls once, and stops where another rank has failed or 30 s have passed since `since_ns`. */
void world_poll(rank_world *world, uint64_t since_ns);
/* Until the operation is done. */
void world_finish(rank_world *world, wefti_wire_op *op);
/* Posts, polling while it is to be tried again. */
void world_post(rank_world *world, wefti_wire_op *op);
/* Blocking forms; the outcome must be WEFT_OK. */
void world_send(rank_world *world, int32_t peer, uint64_t tag, const void *buffer, size_t bytes);
void world_recv(rank_world *world, int32_t peer, uint64_t tag, void *buffer, size_t bytes);
/* All ranks; polls meanwhile. */
void world_barrier(rank_world *world);
uint64_t world_now(void);
/* Bytes that depend on seed and place. */
void fill(void *buffer, size_t bytes, uint32_t seed);
bool filled(const void *buffer, size_t bytes, uint32_t seed);

typedef struct wire_case {
    const char *name;
    void (*run)(rank_world *world);
} wire_case;
typedef struct wire_case_list {
    const wire_case *cases;
    size_t           count;
} wire_case_list;
/* By subject, each in its file conformance_*.c. */
extern const wire_case_list message_cases, operation_cases, region_cases, end_cases;

#endif

/* The collective contract: operations of a group of ranks.
 *
 * An engine (our algorithms over a wire; NCCL; MPI) fills one table. A group is an ordered set of world ranks with an
 * engine behind it. Members issue the same calls in the same order: a call is matched with the others' by its sequence
 * number, which every group counts for itself, never by its arguments. Calls are asynchronous: start gives a handle,
 * progress moves everything that is in flight, test and wait end a handle.
 *
 * A group is used by one thread at a time. Nothing blocks but wait, and that has a deadline. In steady state an engine
 * allocates nothing: handles and staging come from pools that are sized at open. (A wire that carries messages keeps those
 * that come before their receive in a pool of its own, which grows to the most that ever waited at once; see wire.h.)
 *
 * Faults: whoever sees a peer fail reports a suspicion; the fault object decides (once, for the whole process) which
 * rank was the first cause, and from then on every pending and every later operation ends with that one status. */
#ifndef WEFTI_COLLECTIVE_H
#define WEFTI_COLLECTIVE_H

#include "core/iface/host.h"
#include "core/iface/reduce.h"
#include "core/iface/wire.h"
#include "weft/dtype.h"

/* --- faults --- */

/* The first fault of a world, seen the same by everything in this process. Any thread may use it. */
typedef struct wefti_fault wefti_fault;

/* Opens one that decides at once what it is told. (The transport makes its own, that asks the control channel first.)
 * Release with NULL is allowed. */
WEFT_MUST_CHECK weft_status wefti_fault_create(const wefti_host *host, wefti_fault **fault_out);
void wefti_fault_release(wefti_fault *fault);
/* Says that `rank` seems to be gone: a link to it broke, or it answered nonsense. Not yet a verdict: a rank that left
 * because of an earlier fault elsewhere must not be blamed, so the verdict may take a moment. `cause` is copied.
 * Keep the operation that saw it pending, and look at wefti_fault_status in every progress. */
void wefti_fault_suspect(wefti_fault *fault, int32_t rank, const char *cause);
/* Makes `status`, the `rank` at fault (-1: none in particular) and its cause the verdict, and returns once there is one: this, or an
 * earlier one of another rank. That takes a moment where another rank decides for all. Later calls change nothing. */
void wefti_fault_raise(wefti_fault *fault, weft_status status, int32_t rank, const char *cause);
/* WEFT_OK while there is none (or only a fresh suspicion); else the verdict, with the message set: the rank by number
 * and the cause. An atomic load when there is none. NULL gives WEFT_OK. */
weft_status wefti_fault_status(wefti_fault *fault);
/* The rank of the verdict; -1 while there is none. */
int32_t wefti_fault_rank(const wefti_fault *fault);

/* --- groups --- */

typedef struct wefti_watch wefti_watch; /* what a rank's operations were, for people to read; the transport's */

typedef struct wefti_group      wefti_group;      /* the engine's */
typedef struct wefti_collective wefti_collective; /* one operation in flight; the engine's */

typedef enum wefti_collective_kind {
    WEFTI_ALLREDUCE,        /* receive[count] = reduction of all send[count]; in place where send == receive */
    WEFTI_REDUCE_SCATTER,   /* receive[count] = this index's part of the reduction of send[count * size] */
    WEFTI_ALLGATHER,        /* receive[count * size] = everyone's send[count], by index; in place where send is its part */
    WEFTI_BROADCAST,        /* receive[count] = root's send[count]; send is ignored elsewhere; in place where equal */
    WEFTI_BARRIER,          /* returns once all have started it */
    WEFTI_REDUCE_TO,           /* root: receive[count] = reduction of all send[count]; receive is ignored elsewhere */
    WEFTI_GATHER,           /* root: receive[count * size] = everyone's send[count], by index; receive is ignored elsewhere */
    WEFTI_SCATTER,          /* receive[count] = this index's part of root's send[count * size]; send is ignored elsewhere */
    WEFTI_ALLTOALL,         /* receive[count * size]: part i = this index's part of i's send[count * size]; not in place */
    WEFTI_REDUCE_SCATTER_V, /* as REDUCE_SCATTER, with parts of counts[i] elements, which lie one behind the other */
    WEFTI_ALLGATHER_V,      /* as ALLGATHER, with parts of counts[i] elements */
    WEFTI_ALLTOALL_V,       /* as ALLTOALL: counts[i] elements go to i, receive_counts[i] come from i */
    WEFTI_SEND,             /* send[count] to the member `root`, which calls RECEIVE; the others take no part */
    WEFTI_RECEIVE,          /* receive[count] = what the member `root` sends */
    WEFTI_COLLECTIVE_KIND_COUNT
} wefti_collective_kind;

/* Calls of SEND and RECEIVE are matched by their order between the two members, and with each other alone: they take no
 * number of the group, and may stand at different places among the other calls of the two. */
static inline bool wefti_collective_is_point(wefti_collective_kind kind) {
    return kind == WEFTI_SEND || kind == WEFTI_RECEIVE;
}

typedef struct wefti_collective_call {
    wefti_collective_kind kind;
    weft_dtype            dtype;
    wefti_reduce_op       op;
    int32_t               root;     /* index in the group; BROADCAST, REDUCE_TO, GATHER, SCATTER; the other one of SEND, RECEIVE */
    const void           *send;     /* may be NULL where nothing is read */
    void                 *receive;  /* may be NULL where nothing is written */
    size_t                count;    /* elements, per the table above; 0 is allowed; not looked at by the _V kinds */
    void                 *stream;   /* for engines of a device: the stream to order after; else NULL */
    uint64_t              timeout_ns; /* of this operation from its start, or since the member that it waits for was seen to come nearer; 0: the group's */
    const size_t         *counts;   /* [size] _V kinds; belongs to the operation until it ends. REDUCE_SCATTER_V, ALLGATHER_V:
                                       the same on all members */
    const size_t         *receive_counts; /* [size] ALLTOALL_V */
    int32_t               priority; /* of what is in flight, higher ones get on first. May differ between members */
    const wefti_reduce_function *function; /* where op is WEFTI_REDUCE_USER; lives until the operation ends */
    bool                  foreign;  /* SEND, RECEIVE over a wire: `send` or `receive` is memory of the device that is attached to it (wire.h), of
                                       WEFTI_FOREIGN_LEAST_BYTES at least; the other member need not know */
} wefti_collective_call;

/* Less goes through the host: small messages are copied there anyway. */
#define WEFTI_FOREIGN_LEAST_BYTES ((size_t)64 << 10)

/* How a group is opened. Zero means the default. Everything but index is the same on all members. */
typedef struct wefti_group_options {
    const wefti_host    *host;       /* NULL: the wire's */
    wefti_wire          *wire;       /* connected to all members; outlives the group; NULL for engines with a network of their own */
    const int32_t       *ranks;      /* [size] world ranks by index; copied; NULL: 0 … size-1 */
    int32_t              size;
    int32_t              index;      /* of this rank */
    uint16_t             id;         /* among the groups of the world; free again once all members have closed the group in
                                        order, with nothing in flight */
    uint16_t             epoch;      /* messages of an older one are dropped */
    uint64_t             timeout_ns; /* each operation's deadline from its start; 0: 30 s */
    int32_t              in_flight;  /* operations in flight at once; 0: 64 */
    const wefti_reducer *reducer;    /* NULL: wefti_reducer_host() */
    wefti_fault         *fault;      /* NULL: the group keeps its own */
    const char          *algorithm;  /* forces some: "ring" wherever it can, or "allreduce:ring,broadcast:chain"; NULL:
                                        WEFT_ALGORITHM of the environment, else by cost. WEFT_E_NOT_FOUND lists those there are */
    const int32_t       *nodes;      /* [size] which host each member runs on, as any number; copied; NULL: all on one */
    wefti_watch         *watch;      /* notes the group's operations; outlives it; NULL: none are noted */
    struct wefti_device *device;     /* engines of a device: in whose memory the calls' buffers lie; outlives the group; else NULL */
    wefti_group         *over;       /* engines with a network of their own: a group of the same members in the same order, over which they
                                        meet while they open; else NULL */
} wefti_group_options;

/* One engine. A NULL slot is WEFT_E_UNSUPPORTED, unless it says otherwise. */
typedef struct wefti_collective_engine {
    const char *name; /* "weft", "nccl", "mpi" */

    /* Opens a group; collective over its members for some engines. Pools and staging are allocated here. */
    weft_status (*open)(const wefti_group_options *options, wefti_group **group_out);
    /* Closes it; operations in flight end with WEFT_E_ABORTED first. Waits for no other member: one that has yet to finish
     * an operation which is over here is not disturbed, however late it is; one that waits for an operation which this
     * member never started is told (at once where the wire maps peers, else when this rank leaves the wire). The wire, and
     * exported memory that operations used, go on until the caller ends them. NULL is allowed. */
    void (*close)(wefti_group *group);

    /* WEFT_OK where the engine can do the call (kind, dtype, op); else WEFT_E_UNSUPPORTED or WEFT_E_DTYPE, named. */
    weft_status (*supports)(const wefti_group *group, const wefti_collective_call *call);

    /* Starts an operation. The call is copied; its buffers belong to the operation until it ends. Takes the group's next
     * sequence number. WEFT_E_AGAIN: too many in flight (nothing was started, no number taken); a verdict of the fault
     * object; WEFT_E_INVALID, WEFT_E_OVERFLOW, WEFT_E_DTYPE for a bad call (none of these takes a number). */
    weft_status (*start)(wefti_group *group, const wefti_collective_call *call, wefti_collective **operation_out);

    /* Moves everything in flight. Never blocks. WEFT_OK, or the verdict (all operations have then ended with it). */
    weft_status (*progress)(wefti_group *group, uint64_t now_ns);

    /* WEFT_E_AGAIN while in flight (it also makes progress); else the outcome, and the handle is spent. WEFT_E_TIMEOUT
     * once its deadline has passed: that raises a fault naming the operation, its sequence number and who is missing. */
    weft_status (*test)(wefti_collective *operation);
    /* As test, until it ends or `timeout_ns` from now has passed (0: only its own deadline). On a timeout of this call
     * shorter than the operation's own it gives WEFT_E_AGAIN, and the handle lives on. */
    weft_status (*wait)(wefti_collective *operation, uint64_t timeout_ns);
    /* Engines of a device only; NULL elsewhere. What the device is given from now on begins after the operation has ended. Nobody waits
     * for that, and the handle is spent: what becomes of the operation is told by the group's next call, or by whoever next waits for the
     * device. WEFT_OK, or the outcome of an operation that has failed already. */
    weft_status (*join)(wefti_collective *operation);
    /* The sequence number, for messages and traces. */
    uint64_t (*sequence)(const wefti_collective *operation);

    /* Text about what is in flight, one line each: kind, sequence, bytes, age, algorithm, who is waited for. */
    void (*describe)(const wefti_group *group, wefti_text *text);
} wefti_collective_engine;

/* What every group of every engine begins with. */
struct wefti_group {
    const wefti_collective_engine *engine;
    wefti_wire                    *wire;     /* NULL for engines with a network of their own */
    wefti_fault                   *fault;
    int32_t                        size, index;
    const int32_t                 *ranks;    /* [size] */
    uint64_t                       sequence; /* of the next call */
    void                          *owner;    /* of whoever opened it; the engine does not look at it */
};
/* What every operation of every engine begins with. */
struct wefti_collective {
    wefti_group *group;
};

struct weft_group; /* weft/collective.h */
/* The engine's group behind one of a user's; it goes with that. src/transport/groups.c. */
wefti_group *wefti_group_inside(const struct weft_group *group);

/* Our own algorithms over a wire. Static storage. */
const wefti_collective_engine *wefti_collective_engine_weft(void);

/* --- short forms --- */

static inline weft_status wefti_collective_start(wefti_group *group, const wefti_collective_call *call,
                                                 wefti_collective **operation_out) {
    return group->engine->start(group, call, operation_out);
}
static inline weft_status wefti_collective_test(wefti_collective *operation) {
    return operation->group->engine->test(operation);
}
static inline weft_status wefti_collective_wait(wefti_collective *operation, uint64_t timeout_ns) {
    return operation->group->engine->wait(operation, timeout_ns);
}
/* Start and wait. */
static inline weft_status wefti_collective_run(wefti_group *group, const wefti_collective_call *call) {
    wefti_collective *operation = NULL;
    WEFTI_TRY(group->engine->start(group, call, &operation));
    return group->engine->wait(operation, 0);
}

#endif

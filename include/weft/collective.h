/* Collectives: what the ranks of a group do together on plain memory, for programs that move data themselves. (A trainer needs
 * none of this: a strategy puts its own communication in.)
 *
 *     weft_group *all = NULL;
 *     if ((s = weft_group_create(world, NULL, &all)) != WEFT_OK) goto done;
 *     s = weft_group_allreduce(all, mine, sum, count, WEFT_F32, WEFT_COMBINE_SUM);
 *     weft_group_release(all);
 *
 * Order. The members of a group make the same calls in the same order; a call is matched with the others' by its number, never
 * by its arguments. Where they differ (another call, count, dtype, reduction, root, counts or function on some rank) every
 * member ends with WEFT_E_MISMATCH, and the message names both calls. Sends and receives are matched with each other, by their
 * order between the two members, and stand outside of that order.
 *
 * Results. The same bits on every rank and in every run, as long as the ranks, the wire, the count and the algorithm are the
 * same: reductions have a fixed order. F16 and BF16 are added up in F32, and rounded whenever a partial sum is sent on.
 * Integers wrap. BOOL: sum and maximum are or, product and minimum are and; it has no average.
 *
 * Choice. Where nothing forces an algorithm, the one that costs least is taken: by guesses about the wire, or, with WEFT_TUNING in
 * the environment of every rank, by what the world measures when it is created ("measure"; "measure:PATH" also saves it) or by a
 * file that rank 0 reads (of `weft-bench tune`, which names the quickest algorithm by size, or saved so). All ranks choose alike.
 * A measurement may choose otherwise in the next run, and sums of floats then differ in their last bits; a file does not. A file that
 * is damaged (WEFT_E_CORRUPT), or of another wire or number of hosts (WEFT_E_MISMATCH), ends the creation of the world, on every rank.
 *
 * MPI's own collectives are one of the algorithms, "mpi", of groups over the wire mpi. They are taken where they are forced by that name,
 * or where a tuning measured that they are clearly the faster; never by themselves, because their order of sums is MPI's: MPI requires the same
 * bits on all ranks, and recommends, but does not promise, the same in every run. They do every kind but sends and receives, every dtype and
 * every reduction but functions of the user's own (which, like calls of more elements than an int counts, Weft's algorithms do); minima hand on
 * NaN, and halves are added in f32 and rounded, as above. A mistaken call is found before MPI sees it. What MPI has cannot be taken back:
 * where a fault, a deadline or a release finds it unfinished and MPI does not end it within 0.2 s, this process uses MPI no more.
 *
 * Faults. Nothing hangs: every call has a deadline (the world's, or its own). A rank that dies, a call that differs, a deadline
 * that passes is a fault of the world: every pending and every later call of every group of it ends with that one status, whose
 * message names the rank and the cause. Other errors (WEFT_E_INVALID, WEFT_E_DTYPE, WEFT_E_OVERFLOW, WEFT_E_UNSUPPORTED) are
 * decided before anything is sent, and change nothing.
 *
 * Memory. Buffers are the caller's and belong to a call until it has ended. On wires that map memory (shm) they are read and
 * written where they lie if the wire made them, and copied once else. A group allocates when it is made, and no more. */
#ifndef WEFT_COLLECTIVE_H
#define WEFT_COLLECTIVE_H

#include <stddef.h>
#include <stdint.h>

#include "weft/dtype.h"
#include "weft/status.h"
#include "weft/world.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weft_group     weft_group;     /* an ordered set of ranks; a member is named by its index, 0 .. size-1 */
typedef struct weft_operation weft_operation; /* a call that was started and has not been waited for; the group's */

typedef enum weft_combine {
    WEFT_COMBINE_SUM,
    WEFT_COMBINE_PRODUCT,
    WEFT_COMBINE_MIN, /* hands on NaN, as does the maximum */
    WEFT_COMBINE_MAX,
    WEFT_COMBINE_AVERAGE, /* the sum, divided by the group's size at the end; integers round toward zero */
    WEFT_COMBINE_USER     /* .function of the call */
} weft_combine;

/* A reduction of one's own: into[i] = into[i] o more[i], for i < count. It must be associative and commutative, but for
 * rounding. `name` is compared between the ranks, for they cannot compare functions. It is called inside of the calls of this
 * header, by the thread that makes them, and must not make any itself. */
typedef struct weft_combine_function {
    const char *name;
    void (*combine)(void *context, void *into, const void *more, size_t count, weft_dtype dtype);
    void *context;
} weft_combine_function;

/* n is the group's size; "part i" is the i-th of n parts of `count` elements that lie one behind the other, or, where there are
 * `counts`, of counts[i] elements. */
typedef enum weft_call_kind {
    WEFT_CALL_ALLREDUCE,       /* receive[count] = reduction of everyone's send[count]; in place where they are equal */
    WEFT_CALL_REDUCE_SCATTER,  /* receive[count] = own part of the reduction of everyone's send[n * count]; in place where it is
                                  the own part of send */
    WEFT_CALL_ALLGATHER,       /* receive[n * count] = everyone's send[count]; in place where send is its own part */
    WEFT_CALL_BROADCAST,       /* receive[count] = root's send[count]; send is not looked at elsewhere; in place where equal */
    WEFT_CALL_BARRIER,         /* ends when all members have started it */
    WEFT_CALL_REDUCE,          /* as allreduce, with the result at the root alone; receive is not looked at elsewhere */
    WEFT_CALL_GATHER,          /* as allgather, at the root alone; receive is not looked at elsewhere */
    WEFT_CALL_SCATTER,         /* receive[count] = own part of root's send[n * count]; send is not looked at elsewhere */
    WEFT_CALL_ALLTOALL,        /* part i of receive[n * count] = own part of member i's send[n * count]; never in place */
    WEFT_CALL_REDUCE_SCATTERV, /* as reduce-scatter, with parts of counts[i]; the same counts on all members */
    WEFT_CALL_ALLGATHERV,      /* as allgather, with parts of counts[i]; the same counts on all members */
    WEFT_CALL_ALLTOALLV,       /* counts[i] elements go to member i, receive_counts[i] come from it */
    WEFT_CALL_SEND,            /* send[count] to member `root`, which receives */
    WEFT_CALL_RECEIVE          /* receive[count] = what member `root` sends, of the same count and dtype */
} weft_call_kind;

/* A call. What its kind does not name is not looked at; zero means the default. */
typedef struct weft_call {
    weft_call_kind kind;
    weft_dtype     dtype;
    weft_combine   combine; /* allreduce, reduce, reduce-scatter(v) */
    int32_t        root;    /* index in the group: broadcast, reduce, gather, scatter; the other end of send and receive */
    const void    *send;    /* may be NULL where nothing is read */
    void          *receive; /* may be NULL where nothing is written */
    size_t         count;   /* elements; 0 is allowed */
    const size_t  *counts, *receive_counts; /* [n]; like the buffers, they belong to the call until it has ended */
    int32_t        priority;   /* of what is in flight, higher ones get on first; may differ between ranks */
    int64_t        timeout_ns; /* from its start; 0: the group's. Ranks on one host wait longer for a member that is behind and comes nearer */
    const weft_combine_function *function; /* with WEFT_COMBINE_USER; lives until the call has ended */
} weft_call;

/* --- groups --- */

/* How a group is made; the same on all members. Zero means the default. */
typedef struct weft_group_options {
    const char *algorithm;  /* forces some by name: "ring" wherever it can, or "allreduce:ring,broadcast:chain". NULL: WEFT_ALGORITHM
                               of the environment, else the one that costs least. An unknown name is WEFT_E_NOT_FOUND, and the
                               message lists those that there are */
    int32_t     in_flight;  /* calls in flight at once, 1 .. 4096; 0: 64 */
    int64_t     timeout_ns; /* of each call; 0: the world's */
} weft_group_options;

/* Makes a group of all ranks of the world, in their order. Collective over the world: every rank calls it, in the same order
 * among its other groups. Blocks until all have. `options` may be NULL. The caller owns the group and releases it before the
 * world. Errors: WEFT_E_INVALID, WEFT_E_NO_MEMORY, WEFT_E_NOT_FOUND (an algorithm), WEFT_E_OVERFLOW (1,000 groups are there
 * already), a fault. One thread at a time for all of a world. From src/transport/groups.c. */
WEFT_MUST_CHECK weft_status weft_group_create(weft_world *world, const weft_group_options *options, weft_group **group_out);

/* Cuts a group into groups: members that give the same `colour` (>= 0) come into one, ordered by `key`, then by their index in
 * `parent`. A member with a negative colour gets none (NULL, WEFT_OK). Collective over the parent; blocks. The new group has the
 * parent's options, and lives on without it. Errors and threads as weft_group_create. From src/transport/groups.c. */
WEFT_MUST_CHECK weft_status weft_group_split(weft_group *parent, int32_t colour, int32_t key, weft_group **group_out);

/* Takes the members of `parent` for a mesh of extents[0] x … x extents[axes-1], the last axis running fastest, and makes the
 * group of those that differ from this one in their place along `axis` alone, in order of that place. WEFT_E_SHAPE where the
 * extents do not multiply to the parent's size. Otherwise as weft_group_split. From src/transport/groups.c. */
WEFT_MUST_CHECK weft_status weft_group_along(weft_group *parent, const int32_t *extents, int32_t axes, int32_t axis,
                                             weft_group **group_out);

/* Frees a group; waits for no other member. Calls in flight end with WEFT_E_ABORTED; a member that waits for a call that this
 * one never started is told so. NULL is fine. */
void weft_group_release(weft_group *group);

int32_t weft_group_size(const weft_group *group);
int32_t weft_group_index(const weft_group *group);                 /* of this rank */
int32_t weft_group_rank(const weft_group *group, int32_t index);   /* in the world, of a member; -1 where there is none */

/* --- calls in flight --- */

/* Starts a call; never blocks. The struct is copied. Calls get on inside of every function of this header that takes the group or
 * one of its operations, so a program that computes between looks in with weft_operation_test now and then. *operation_out is to be
 * tested or waited for until it has ended; NULL on error. WEFT_E_AGAIN: too many are in flight (nothing was started). */
WEFT_MUST_CHECK weft_status weft_group_start(weft_group *group, const weft_call *call, weft_operation **operation_out);

/* WEFT_E_AGAIN while it is in flight; else its outcome, and the operation is gone. Never blocks. */
WEFT_MUST_CHECK weft_status weft_operation_test(weft_operation *operation);

/* As test, but blocks until it ends, and lets all groups of the world get on meanwhile: operations may be waited for in any
 * order. After `timeout_ns` (0: none but its own deadline) it gives WEFT_E_AGAIN, and the operation lives on. */
WEFT_MUST_CHECK weft_status weft_operation_wait(weft_operation *operation, int64_t timeout_ns);

/* Starts a call and waits for it. The functions below are short forms of this one; all of them block. */
WEFT_MUST_CHECK weft_status weft_group_call(weft_group *group, const weft_call *call);

/* --- short forms: the kinds of weft_call, each collective over the group --- */

WEFT_MUST_CHECK weft_status weft_group_barrier(weft_group *group);
/* send, receive: [count]. */
WEFT_MUST_CHECK weft_status weft_group_allreduce(weft_group *group, const void *send, void *receive, size_t count, weft_dtype dtype,
                                                 weft_combine combine);
WEFT_MUST_CHECK weft_status weft_group_reduce(weft_group *group, const void *send, void *receive, size_t count, weft_dtype dtype,
                                              weft_combine combine, int32_t root);
/* send: [size * count], receive: [count]. */
WEFT_MUST_CHECK weft_status weft_group_reduce_scatter(weft_group *group, const void *send, void *receive, size_t count,
                                                      weft_dtype dtype, weft_combine combine);
/* send: [sum of counts], receive: [counts[index]]. */
WEFT_MUST_CHECK weft_status weft_group_reduce_scatterv(weft_group *group, const void *send, void *receive, const size_t *counts,
                                                       weft_dtype dtype, weft_combine combine);
/* send: [count], receive: [size * count]. */
WEFT_MUST_CHECK weft_status weft_group_allgather(weft_group *group, const void *send, void *receive, size_t count, weft_dtype dtype);
/* send: [counts[index]], receive: [sum of counts]. */
WEFT_MUST_CHECK weft_status weft_group_allgatherv(weft_group *group, const void *send, void *receive, const size_t *counts,
                                                  weft_dtype dtype);
/* data: [count], read at the root and written elsewhere. The root may be done before the others have begun, and run ahead of them by some dozens
 * of broadcasts; any broadcast may wait for all members, though, so none of them may wait for something that the root does after it. A member that is
 * behind and comes nearer is waited for beyond the time-out, one that stands still is not. */
WEFT_MUST_CHECK weft_status weft_group_broadcast(weft_group *group, void *data, size_t count, weft_dtype dtype, int32_t root);
/* send: [count], receive at the root: [size * count]. */
WEFT_MUST_CHECK weft_status weft_group_gather(weft_group *group, const void *send, void *receive, size_t count, weft_dtype dtype,
                                              int32_t root);
/* send at the root: [size * count], receive: [count]. */
WEFT_MUST_CHECK weft_status weft_group_scatter(weft_group *group, const void *send, void *receive, size_t count, weft_dtype dtype,
                                               int32_t root);
/* send, receive: [size * count]. */
WEFT_MUST_CHECK weft_status weft_group_alltoall(weft_group *group, const void *send, void *receive, size_t count, weft_dtype dtype);
/* send: [sum of send_counts], receive: [sum of receive_counts]. */
WEFT_MUST_CHECK weft_status weft_group_alltoallv(weft_group *group, const void *send, const size_t *send_counts, void *receive,
                                                 const size_t *receive_counts, weft_dtype dtype);

/* Between two members: `to` receives what this one sends. Blocks until the buffer may be used again. */
WEFT_MUST_CHECK weft_status weft_group_send(weft_group *group, const void *send, size_t count, weft_dtype dtype, int32_t to);
WEFT_MUST_CHECK weft_status weft_group_receive(weft_group *group, void *receive, size_t count, weft_dtype dtype, int32_t from);

#ifdef __cplusplus
}
#endif
#endif

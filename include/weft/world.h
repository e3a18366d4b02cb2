/* The world: this process's rank, its device, and its link to the other ranks. */
#ifndef WEFT_WORLD_H
#define WEFT_WORLD_H

#include <stdbool.h>
#include <stdint.h>

#include "weft/status.h"
#include "weft/threads.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weft_world weft_world;

/* How to come into the world. Zero means: read the launcher's environment, one rank where there is none. */
typedef struct weft_world_options {
    int32_t     rank, size;      /* size 0: from the environment (weftrun, torchrun, Open MPI, Slurm), else 1 rank */
    const char *store;           /* "host:port" of the rendezvous; NULL: from the environment */
    const char *wire;            /* "shm", "tcp", "verbs"; NULL: from the environment, else the best that reaches every rank */
    const char *device;          /* "cpu"; NULL: from the environment (WEFT_DEVICE), else cpu */
    weft_threads threads;        /* of the CPU device; sharers is found at the rendezvous */
    int64_t     timeout_ns;      /* for joining and for every wait; 0: 30 s */
    bool        no_control_thread; /* true: faults are noticed only inside calls */
} weft_world_options;

/* Joins the group: opens device and wire and meets the other ranks. Blocks until all are there or the deadline passes;
 * collective over all ranks. `options` may be NULL. Errors: a rank count that disagrees with the launcher's, a port that
 * is taken, a peer that does not come (named), a secret that is wrong, an unknown wire or device (those that exist are
 * listed). *world_out is NULL on error. */
WEFT_MUST_CHECK weft_status weft_world_create(const weft_world_options *options, weft_world **world_out);

/* Leaves the group and frees everything. NULL is fine. Objects made in this world must be released before. */
void weft_world_release(weft_world *world);

int32_t weft_world_rank(const weft_world *world); /* 0 .. size-1 */
int32_t weft_world_size(const weft_world *world);

/* One line of plain text: version, rank, device and its instruction set, threads, wire. Owned by the world. */
const char *weft_world_describe(const weft_world *world);

#ifdef __cplusplus
}
#endif
#endif

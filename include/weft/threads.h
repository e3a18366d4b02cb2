/* Threads of the CPU device: how many, where, and whose.
 *
 * The device has a pool of its own. A program that already has one can lend it instead through weft_thread_pool_hooks,
 * so that the two never compete for cores. Results are the same bits with any number of threads and with either pool.
 * While a step computes, its threads take subnormal numbers (in f32 below 1.2e-38) for zero, where the machine can: each
 * costs a hundred times as much as any other. Threads of the program are set back before they return to it.
 */
#ifndef WEFT_THREADS_H
#define WEFT_THREADS_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A pool of the program's own. Both functions may be called from any thread that runs a step; the hooks must stay valid
 * until everything that was created with them is released. */
typedef struct weft_thread_pool_hooks {
    /* Tasks that the pool can run at the same time, the caller's thread included; >= 1, and the same at every call. */
    int32_t (*threads)(void *context);
    /* Calls task(argument, i) once for each i in [0, count), on any threads, at the same time or one after another, and
     * returns when all have returned. `count` is at most threads(context). Tasks never block on each other and never
     * call back into the pool. */
    void (*run)(void *context, int32_t count, void (*task)(void *argument, int32_t index), void *argument);
    void *context;
} weft_thread_pool_hooks;

/* How a device uses threads. Zero means the sensible default. */
typedef struct weft_threads {
    /* Threads that compute, the calling one included. 0: the environment variable WEFT_THREADS where it is set, else
     * the cores this process may use divided by `sharers`, at least 1. At most 1024. Ignored with a pool of the
     * program's. */
    int32_t count;
    /* Processes (ranks) that share this machine's cores; 0 means 1. Where threads x sharers exceed the cores, waiting
     * threads sleep at once instead of spinning. */
    int32_t sharers;
    /* Pins thread i of the pool to allowed core (first_core + i) modulo the allowed cores. The calling thread (i = 0)
     * is the program's own and is left as it is. */
    bool    pin;
    int32_t first_core;
    /* The program's own pool instead of Weft's where `pool.run` is set. */
    weft_thread_pool_hooks pool;
} weft_threads;

#ifdef __cplusplus
}
#endif
#endif

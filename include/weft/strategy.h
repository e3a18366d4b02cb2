/* Strategies: how a program is split over ranks. A plain value; zero is data parallelism over all ranks of the world.
 *
 * A strategy never changes the program: losses, counts, batch statistics, dropout, clipping and regularisers mean the global
 * batch under every strategy, so one rank and N ranks agree to rounding. */
#ifndef WEFT_STRATEGY_H
#define WEFT_STRATEGY_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum weft_sync {
    WEFT_ALLREDUCE /* gradients are summed over all ranks at every step */
} weft_sync;

typedef struct weft_strategy {
    int32_t   data;       /* ranks that share the batch; 0: all of the world; any other number must be the world's size */
    weft_sync sync;
    int32_t   accumulate; /* micro-batches that a rank computes one after another before an update; 0: 1. Exact: the result is that
                             of the whole batch. Batch statistics need all micro-batches up to them at once */
    int64_t   bucket_bytes; /* gradients travel in messages of about this size; 0: 4 MiB */
} weft_strategy;

#ifdef __cplusplus
}
#endif
#endif

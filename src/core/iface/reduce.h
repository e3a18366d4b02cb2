/* Reduction: what collectives do to elements, and the slot through which a device does it. */
#ifndef WEFTI_REDUCE_H
#define WEFTI_REDUCE_H

#include "core/base/base.h"
#include "weft/collective.h"
#include "weft/dtype.h"

typedef enum wefti_reduce_op {
    WEFTI_REDUCE_SUM,
    WEFTI_REDUCE_PROD,
    WEFTI_REDUCE_MIN,
    WEFTI_REDUCE_MAX,
    WEFTI_REDUCE_AVG, /* the sum, divided by the group's size at the last step */
    WEFTI_REDUCE_OP_COUNT,
    WEFTI_REDUCE_USER = 100 /* a function of the caller's; reducers do not know it */
} wefti_reduce_op;

/* A user's own; see weft/collective.h. Never called twice at the same time by one group. */
typedef weft_combine_function wefti_reduce_function;

/* Reduction is a slot that the device gives: dst[i] = (sources[0][i] ∘ sources[1][i] ∘ …) / divisor, for i < count.
 *
 * sources: `source_count` >= 1 arrays of `count` elements of `dtype`; dst may be one of them, and does not overlap them
 * otherwise. The order is that of the sources, from the left, so equal calls give equal bits. F16 and BF16 are
 * accumulated in F32 and rounded once. divisor is 1 but for the last step of AVG (which is then the group's size;
 * integers round toward zero). BOOL: SUM and MAX are or, PROD and MIN are and, AVG is WEFT_E_DTYPE.
 * Minima and maxima hand on NaN. Blocks until dst is written. Any thread. */
typedef struct wefti_reducer {
    weft_status (*reduce)(void *context, void *dst, const void *const *sources, int32_t source_count, size_t count,
                          weft_dtype dtype, wefti_reduce_op op, int32_t divisor);
    void *context;
    /* Hears of bytes that were copied beside the reductions, where time is not what passes by itself; NULL: nobody. */
    void (*copied)(void *context, size_t bytes);
} wefti_reducer;

/* The portable reducer for host memory. Static storage. */
const wefti_reducer *wefti_reducer_host(void);
/* "sum", …; "?" for a value that is none. */
const char *wefti_reduce_op_name(wefti_reduce_op op);

#endif

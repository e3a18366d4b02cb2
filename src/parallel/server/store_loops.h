/* The store's loops over elements: bytes in, bytes out, compiled for more than one instruction set. Every copy gives the same bits. */
#ifndef WEFTI_SERVER_STORE_LOOPS_H
#define WEFTI_SERVER_STORE_LOOPS_H

#include <stdint.h>

#include "weft/dtype.h"

/* `from` and `to` do not overlap. Entries of dtypes that a loop is not for are NULL. */
typedef struct wefti_loops {
    /* to = from in the dtype that holds it (F32 of F16 and BF16, else the same), divided by `divisor` where that is not 1, else times `scale`
     * (floats). */
    void (*take[WEFT_DTYPE_COUNT])(void *to, const void *from, int64_t count, double scale, int64_t divisor);
    /* The same for sums, which hold I32 in I64: back to I32. */
    void (*take_i32_of_i64)(void *to, const void *from, int64_t count, double scale, int64_t divisor);
    /* to += scale*from, of one held dtype; integers wrap and are not scaled. */
    void (*add[WEFT_DTYPE_COUNT])(void *to, const void *from, int64_t count, double scale);
    /* Of F32 and F64: to = from + more; and to += other, where other is then what `to` was. */
    void (*both[WEFT_DTYPE_COUNT])(void *to, const void *from, const void *more, int64_t count);
    void (*trade[WEFT_DTYPE_COUNT])(void *to, void *other, int64_t count);
    /* Sums: to = from, and to += from, from the table's dtype to the sum's. */
    void (*begin[WEFT_DTYPE_COUNT])(void *to, const void *from, int64_t count);
    void (*more[WEFT_DTYPE_COUNT])(void *to, const void *from, int64_t count);
    /* to = from rounded to the table's dtype. */
    void (*round[WEFT_DTYPE_COUNT])(void *to, const void *from, int64_t count);
} wefti_loops;

const wefti_loops *wefti_loops_choose(void);

#endif

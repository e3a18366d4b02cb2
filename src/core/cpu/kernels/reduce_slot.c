/* The device's reduce slot: two sources of f32, f64, f16 or bf16 at a time in SIMD, everything else by the plain form.
 *
 * The sources are taken from the left, tile by tile, so that partial results stay in the first-level cache. Partial results of 16-bit
 * floats are f32 and rounded once, as the plain form does. Cost: each source is read once, dst written once. */
#include "core/cpu/kernels/convert.h"
#include "core/cpu/kernels/fast.h"

enum { TILE = 1024 };

#define COMBINE(TYPE)                                                                                                \
    static void combine_##TYPE(TYPE *into, const TYPE *b, int64_t count, wefti_reduce_op op) {                       \
        switch (op) {                                                                                                \
        case WEFTI_REDUCE_PROD:                                                                                      \
            for (int64_t i = 0; i < count; i++) into[i] *= b[i];                                                     \
            return;                                                                                                  \
        case WEFTI_REDUCE_MIN:                                                                                       \
            for (int64_t i = 0; i < count; i++) into[i] = into[i] < b[i] || into[i] != into[i] ? into[i] : b[i];     \
            return;                                                                                                  \
        case WEFTI_REDUCE_MAX:                                                                                       \
            for (int64_t i = 0; i < count; i++) into[i] = into[i] > b[i] || into[i] != into[i] ? into[i] : b[i];     \
            return;                                                                                                  \
        default:                                                                                                     \
            for (int64_t i = 0; i < count; i++) into[i] += b[i];                                                     \
        }                                                                                                            \
    }
COMBINE(float)
COMBINE(double)

/* What nearly all calls are: one pass, with no copy in the cache. dst may be either source. */
static void add_two(float *dst, const float *a, const float *b, int64_t count) {
    _Pragma("GCC ivdep") for (int64_t i = 0; i < count; i++) dst[i] = a[i] + b[i];
}

/* dst may be one of the sources: a tile is read whole before it is written. */
static void reduce_f32(void *dst, const void *const *sources, int32_t source_count, int64_t count, weft_dtype dtype,
                       wefti_reduce_op op, int32_t divisor) {
    float   total[TILE], next[TILE];
    int64_t bytes = (int64_t)weft_dtype_bytes(dtype);
    for (int64_t at = 0; at < count; at += TILE) {
        int64_t n = wefti_min_i64(TILE, count - at);
        convert_to_f32((const char *)sources[0] + at * bytes, dtype, n, total);
        for (int32_t k = 1; k < source_count; k++) {
            const void *from = (const char *)sources[k] + at * bytes;
            if (dtype == WEFT_F32) {
                combine_float(total, from, n, op);
            } else {
                convert_to_f32(from, dtype, n, next);
                combine_float(total, next, n, op);
            }
        }
        if (divisor != 1)
            for (int64_t i = 0; i < n; i++) total[i] /= (float)divisor;
        convert_from_f32(total, dtype, n, (char *)dst + at * bytes);
    }
}

static void reduce_f64(double *dst, const void *const *sources, int32_t source_count, int64_t count, wefti_reduce_op op,
                       int32_t divisor) {
    double total[TILE];
    for (int64_t at = 0; at < count; at += TILE) {
        int64_t n = wefti_min_i64(TILE, count - at);
        memcpy(total, (const double *)sources[0] + at, (size_t)n * sizeof *total);
        for (int32_t k = 1; k < source_count; k++) combine_double(total, (const double *)sources[k] + at, n, op);
        if (divisor != 1)
            for (int64_t i = 0; i < n; i++) total[i] /= divisor;
        memcpy(dst + at, total, (size_t)n * sizeof *total);
    }
}

weft_status wefti_fast_reduce(void *context, void *dst, const void *const *sources, int32_t source_count, size_t count,
                              weft_dtype dtype, wefti_reduce_op op, int32_t divisor) {
    if (!weft_dtype_is_float(dtype)) return wefti_cpu_reduce(context, dst, sources, source_count, count, dtype, op, divisor);
    WEFTI_TRY(wefti_cpu_check_reduce(source_count, dtype, op, divisor));
    if (dtype == WEFT_F32 && source_count == 2 && divisor == 1 && (op == WEFTI_REDUCE_SUM || op == WEFTI_REDUCE_AVG))
        add_two(dst, sources[0], sources[1], (int64_t)count);
    else if (dtype == WEFT_F64)
        reduce_f64(dst, sources, source_count, (int64_t)count, op, divisor);
    else
        reduce_f32(dst, sources, source_count, (int64_t)count, dtype, op, divisor);
    return WEFT_OK;
}

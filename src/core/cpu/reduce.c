/* The reduction slot of collectives, plain: element after element, the sources from the left, rounded once. */
#include "core/cpu/cpu.h"

static double combine_f64(double a, double b, wefti_reduce_op op) {
    switch (op) {
    case WEFTI_REDUCE_PROD: return a * b;
    case WEFTI_REDUCE_MIN: return a < b || isnan(a) ? a : b; /* a NaN of either side stays */
    case WEFTI_REDUCE_MAX: return a > b || isnan(a) ? a : b;
    default: return a + b;
    }
}

static int64_t combine_i64(int64_t a, int64_t b, wefti_reduce_op op) {
    switch (op) {
    case WEFTI_REDUCE_PROD: return (int64_t)((uint64_t)a * (uint64_t)b);
    case WEFTI_REDUCE_MIN: return a < b ? a : b;
    case WEFTI_REDUCE_MAX: return a > b ? a : b;
    default: return (int64_t)((uint64_t)a + (uint64_t)b);
    }
}

weft_status wefti_cpu_check_reduce(int32_t source_count, weft_dtype dtype, wefti_reduce_op op, int32_t divisor) {
    if (source_count < 1 || divisor < 1 || (unsigned)op >= WEFTI_REDUCE_OP_COUNT)
        return wefti_fail(WEFT_E_INVALID, "reduce: %d sources, divisor %d, operation %d", (int)source_count,
                          (int)divisor, (int)op);
    if (!weft_dtype_bytes(dtype)) return wefti_fail(WEFT_E_DTYPE, "reduce: no dtype %d", (int)dtype);
    if (dtype == WEFT_BOOL && op == WEFTI_REDUCE_AVG) return wefti_fail(WEFT_E_DTYPE, "reduce: bool has no average");
    return WEFT_OK;
}

/* Every partial result of f32, f16 and bf16 is rounded to f32, as arithmetic in f32 would be. */
static double reduce_float(const void *const *sources, int32_t source_count, size_t i, weft_dtype dtype,
                           wefti_reduce_op op, int32_t divisor) {
    bool   wide = dtype == WEFT_F64;
    double total = wefti_load_f64(sources[0], (int64_t)i, dtype);
    for (int32_t k = 1; k < source_count; k++) {
        total = combine_f64(total, wefti_load_f64(sources[k], (int64_t)i, dtype), op);
        if (!wide) total = (float)total;
    }
    return divisor == 1 ? total : total / divisor;
}

weft_status wefti_cpu_reduce(void *context, void *dst, const void *const *sources, int32_t source_count, size_t count,
                             weft_dtype dtype, wefti_reduce_op op, int32_t divisor) {
    (void)context;
    WEFTI_TRY(wefti_cpu_check_reduce(source_count, dtype, op, divisor));
    for (size_t i = 0; i < count; i++) {
        if (weft_dtype_is_float(dtype)) {
            wefti_store_f64(dst, (int64_t)i, dtype, reduce_float(sources, source_count, i, dtype, op, divisor));
        } else {
            int64_t total = wefti_load_i64(sources[0], (int64_t)i, dtype);
            for (int32_t k = 1; k < source_count; k++)
                total = wefti_wrap_i64(combine_i64(total, wefti_load_i64(sources[k], (int64_t)i, dtype), op), dtype);
            wefti_store_i64(dst, (int64_t)i, dtype, total / divisor);
        }
    }
    return WEFT_OK;
}

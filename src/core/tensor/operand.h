/* Strided operands: questions about them, walking them in row-major order, and reading single elements of any dtype. */
#ifndef WEFTI_OPERAND_H
#define WEFTI_OPERAND_H

#include <math.h>

#include "core/iface/op.h"
#include "core/tensor/half.h"

static inline int64_t wefti_operand_elements(const wefti_operand *operand) {
    return weft_shape_elements(operand->shape);
}

/* Fills row-major strides. */
static inline void wefti_contiguous_strides(weft_shape shape, int64_t stride_out[WEFT_MAX_RANK]) {
    int64_t stride = 1;
    for (int32_t axis = shape.rank - 1; axis >= 0; axis--) {
        stride_out[axis] = stride;
        stride *= shape.dim[axis] > 0 ? shape.dim[axis] : 1;
    }
}

/* Whether the elements lie in row-major order without gaps (axes of size 1 may have any stride). */
static inline bool wefti_operand_is_contiguous(const wefti_operand *operand) {
    int64_t stride = 1;
    for (int32_t axis = operand->shape.rank - 1; axis >= 0; axis--) {
        if (operand->shape.dim[axis] == 0) return true;
        if (operand->shape.dim[axis] == 1) continue;
        if (operand->stride[axis] != stride) return false;
        stride *= operand->shape.dim[axis];
    }
    return true;
}

/* Whether an image [N, C, H, W] lies as [N, H, W, C] without gaps. */
static inline bool wefti_operand_has_channels_last(const wefti_operand *operand) {
    const int order[4] = {1, 3, 2, 0}; /* from the fastest on */
    int64_t   stride = 1;
    if (operand->shape.rank != 4) return false;
    for (int i = 0; i < 4; i++) {
        int64_t dim = operand->shape.dim[order[i]];
        if (dim == 0) return true;
        if (dim > 1 && operand->stride[order[i]] != stride) return false;
        stride *= dim;
    }
    return true;
}

/* Strides of the operand over `space`, to which it broadcasts (aligned from the right); 0 along axes that it repeats.
 */
static inline void wefti_operand_expand(const wefti_operand *operand, weft_shape space,
                                        int64_t stride_out[WEFT_MAX_RANK]) {
    int32_t missing = space.rank - operand->shape.rank;
    for (int32_t axis = 0; axis < space.rank; axis++) {
        int32_t own = axis - missing;
        stride_out[axis] = own < 0 || operand->shape.dim[own] == 1 ? 0 : operand->stride[own];
    }
}

/* A walk over a space in row-major order: at any time `run` elements lie ahead on the last axis, `offset` (in elements)
 * is where the current one is, and its neighbour on that axis is `step` further. */
typedef struct wefti_walk {
    int32_t rank;
    int64_t dim[WEFT_MAX_RANK], stride[WEFT_MAX_RANK], index[WEFT_MAX_RANK];
    int64_t offset;
} wefti_walk;

/* Begins at flat element `begin` of a space without empty axes. */
static inline void wefti_walk_start(wefti_walk *walk, weft_shape space, const int64_t *stride, int64_t begin) {
    walk->rank = space.rank > 0 ? space.rank : 1;
    walk->dim[0] = 1;
    walk->stride[0] = 0;
    for (int32_t axis = 0; axis < space.rank; axis++) {
        walk->dim[axis] = space.dim[axis];
        walk->stride[axis] = stride[axis];
    }
    walk->offset = 0;
    for (int32_t axis = walk->rank - 1; axis >= 0; axis--) {
        walk->index[axis] = begin % walk->dim[axis];
        begin /= walk->dim[axis];
        walk->offset += walk->index[axis] * walk->stride[axis];
    }
}
static inline int64_t wefti_walk_run(const wefti_walk *walk) {
    return walk->dim[walk->rank - 1] - walk->index[walk->rank - 1];
}
static inline int64_t wefti_walk_step(const wefti_walk *walk) { return walk->stride[walk->rank - 1]; }
/* Goes on by `count` elements, at most the run. */
static inline void wefti_walk_advance(wefti_walk *walk, int64_t count) {
    int32_t axis = walk->rank - 1;
    walk->index[axis] += count;
    walk->offset += count * walk->stride[axis];
    while (axis > 0 && walk->index[axis] == walk->dim[axis]) {
        walk->offset -= walk->index[axis] * walk->stride[axis];
        walk->index[axis--] = 0;
        walk->index[axis]++;
        walk->offset += walk->stride[axis];
    }
}

/* Float to integer: truncates, saturates, NaN gives 0. */
static inline int64_t wefti_f64_to_i64(double value, weft_dtype dtype) {
    if (isnan(value)) return 0;
    switch (dtype) {
    case WEFT_I32: return value <= -0x1p31 ? INT32_MIN : value >= 0x1p31 - 1 ? INT32_MAX : (int64_t)value;
    case WEFT_U8: return value <= 0 ? 0 : value >= 255 ? 255 : (int64_t)value;
    case WEFT_BOOL: return value != 0;
    default: return value <= -0x1p63 ? INT64_MIN : value >= 0x1p63 ? INT64_MAX : (int64_t)value;
    }
}
/* Integer to integer: wraps. */
static inline int64_t wefti_wrap_i64(int64_t value, weft_dtype dtype) {
    switch (dtype) {
    case WEFT_I32: return (int32_t)(uint32_t)(uint64_t)value;
    case WEFT_U8: return (uint8_t)(uint64_t)value;
    case WEFT_BOOL: return value != 0;
    default: return value;
    }
}
/* What is left of a double when it is stored as the float type: computed in f32 for the 16-bit types, rounded once. */
static inline double wefti_round_f64(double value, weft_dtype dtype) {
    switch (dtype) {
    case WEFT_F64: return value;
    case WEFT_F16: return wefti_f16_to_f32(wefti_f32_to_f16((float)value));
    case WEFT_BF16: return wefti_bf16_to_f32(wefti_f32_to_bf16((float)value));
    default: return (float)value;
    }
}

/* Element `index` (in elements) as a double; exact but for i64 beyond 2^53. */
static inline double wefti_load_f64(const void *data, int64_t index, weft_dtype dtype) {
    switch (dtype) {
    case WEFT_F32: return ((const float *)data)[index];
    case WEFT_F64: return ((const double *)data)[index];
    case WEFT_BF16: return wefti_bf16_to_f32(((const uint16_t *)data)[index]);
    case WEFT_F16: return wefti_f16_to_f32(((const uint16_t *)data)[index]);
    case WEFT_I64: return (double)((const int64_t *)data)[index];
    case WEFT_I32: return ((const int32_t *)data)[index];
    default: return ((const uint8_t *)data)[index];
    }
}
static inline void wefti_store_f64(void *data, int64_t index, weft_dtype dtype, double value) {
    switch (dtype) {
    case WEFT_F32: ((float *)data)[index] = (float)value; return;
    case WEFT_F64: ((double *)data)[index] = value; return;
    case WEFT_BF16: ((uint16_t *)data)[index] = wefti_f32_to_bf16((float)value); return;
    case WEFT_F16: ((uint16_t *)data)[index] = wefti_f32_to_f16((float)value); return;
    case WEFT_I64: ((int64_t *)data)[index] = wefti_f64_to_i64(value, dtype); return;
    case WEFT_I32: ((int32_t *)data)[index] = (int32_t)wefti_f64_to_i64(value, dtype); return;
    default: ((uint8_t *)data)[index] = (uint8_t)wefti_f64_to_i64(value, dtype); return;
    }
}
/* The same of an integer or bool. */
static inline int64_t wefti_load_i64(const void *data, int64_t index, weft_dtype dtype) {
    switch (dtype) {
    case WEFT_I64: return ((const int64_t *)data)[index];
    case WEFT_I32: return ((const int32_t *)data)[index];
    case WEFT_U8:
    case WEFT_BOOL: return ((const uint8_t *)data)[index];
    default: return wefti_f64_to_i64(wefti_load_f64(data, index, dtype), WEFT_I64);
    }
}
static inline void wefti_store_i64(void *data, int64_t index, weft_dtype dtype, int64_t value) {
    switch (dtype) {
    case WEFT_I64: ((int64_t *)data)[index] = value; return;
    case WEFT_I32: ((int32_t *)data)[index] = (int32_t)wefti_wrap_i64(value, dtype); return;
    case WEFT_U8:
    case WEFT_BOOL: ((uint8_t *)data)[index] = (uint8_t)wefti_wrap_i64(value, dtype); return;
    default: wefti_store_f64(data, index, dtype, (double)value); return;
    }
}

#endif

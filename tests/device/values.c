/* Tensors by value: drawing, indexing, rounding. */
#include <math.h>
#include <stdlib.h>

#include "core/tensor/half.h"
#include "device/conformance.h"

static double *doubles(int64_t n) { return calloc((size_t)(n > 0 ? n : 1), sizeof(double)); }

tensor tensor_create(weft_dtype dtype, weft_shape shape) {
    int64_t n = weft_shape_elements(shape);
    return (tensor){.dtype = dtype,
                    .shape = shape,
                    .n = n,
                    .f = doubles(n),
                    .i = calloc((size_t)(n > 0 ? n : 1), sizeof(int64_t)),
                    .scale = doubles(n)};
}

void tensor_release(tensor *self) {
    free(self->f);
    free(self->i);
    free(self->scale);
    *self = (tensor){0};
}

void unravel(weft_shape shape, int64_t i, int64_t *index_out) {
    for (int32_t axis = shape.rank - 1; axis >= 0; axis--) {
        index_out[axis] = i % shape.dim[axis];
        i /= shape.dim[axis];
    }
}

int64_t ravel(weft_shape shape, const int64_t *index) {
    int64_t i = 0;
    for (int32_t axis = 0; axis < shape.rank; axis++) i = i * shape.dim[axis] + index[axis];
    return i;
}

double tensor_get(const tensor *self, const int64_t *index) { return self->f[ravel(self->shape, index)]; }

double round_to(double value, weft_dtype dtype) {
    switch (dtype) {
    case WEFT_F64: return value;
    case WEFT_F16: return wefti_f16_to_f32(wefti_f32_to_f16((float)value));
    case WEFT_BF16: return wefti_bf16_to_f32(wefti_f32_to_bf16((float)value));
    default: return (float)value;
    }
}

static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static double special_value(uint64_t bits) {
    static const double values[] = {NAN, INFINITY, -INFINITY, 0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -1.5};
    return values[bits % (sizeof values / sizeof *values)];
}

tensor tensor_draw(const argument *self, uint64_t seed) {
    tensor  t = tensor_create(self->dtype, self->shape);
    int32_t repeated = -1;
    for (int32_t axis = 0; self->layout == REPEATED && axis < self->shape.rank && repeated < 0; axis++)
        if (self->shape.dim[axis] > 1) repeated = axis;
    for (int64_t i = 0; i < t.n; i++) {
        int64_t index[WEFT_MAX_RANK];
        unravel(self->shape, i, index);
        if (repeated >= 0) index[repeated] = 0;
        uint64_t bits = mix(seed * UINT64_C(0x9e3779b97f4a7c15) + (uint64_t)ravel(self->shape, index) + 1);
        double   unit = (double)(bits >> 11) * 0x1p-53;
        double   value = self->low + unit * (self->high - self->low);
        if (self->special && mix(bits) % 4 == 0) value = special_value(mix(bits) >> 8);
        if (weft_dtype_is_float(self->dtype)) {
            t.f[i] = round_to(value, self->dtype);
        } else {
            t.i[i] = self->dtype == WEFT_BOOL ? (int64_t)(bits >> 20 & 1)
                                              : (int64_t)floor(self->low + unit * (self->high - self->low));
            if (self->dtype == WEFT_U8) t.i[i] &= 255;
            t.f[i] = (double)t.i[i];
        }
    }
    return t;
}

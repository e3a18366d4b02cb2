/* Shapes: plain values, row-major, of up to WEFT_MAX_RANK dimensions. A scalar has rank 0 and one element. */
#ifndef WEFT_SHAPE_H
#define WEFT_SHAPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WEFT_MAX_RANK 8

typedef struct weft_shape {
    int32_t rank;
    int64_t dim[WEFT_MAX_RANK]; /* dim[rank..] are 0 */
} weft_shape;

/* The shape of `rank` dims read from `dim`. A rank over WEFT_MAX_RANK gives rank -1, which every function that takes a
 * shape refuses by name. */
static inline weft_shape weft_shape_of(int32_t rank, const int64_t *dim) {
    weft_shape shape = {0, {0, 0, 0, 0, 0, 0, 0, 0}};
    shape.rank = rank < 0 || rank > WEFT_MAX_RANK ? -1 : rank;
    for (int32_t axis = 0; axis < shape.rank; axis++) shape.dim[axis] = dim[axis];
    return shape;
}

/* Elements; -1 where a dimension is negative, the rank is bad or the product overflows. */
static inline int64_t weft_shape_elements(weft_shape shape) {
    if (shape.rank < 0 || shape.rank > WEFT_MAX_RANK) return -1;
    int64_t count = 1;
    bool    zero = false;
    for (int32_t axis = 0; axis < shape.rank; axis++) {
        int64_t dim = shape.dim[axis];
        if (dim < 0) return -1;
        if (dim == 0) {
            zero = true;
            continue;
        }
        if (count > INT64_MAX / dim) return -1;
        count *= dim;
    }
    return zero ? 0 : count;
}

static inline bool weft_shape_equal(weft_shape a, weft_shape b) {
    if (a.rank != b.rank) return false;
    for (int32_t axis = 0; axis < a.rank; axis++)
        if (a.dim[axis] != b.dim[axis]) return false;
    return true;
}

/* Text of a shape, by value, for messages: weft_shape_text(s).text is "[64, 1, 28, 28]". */
typedef struct weft_shape_string { char text[WEFT_MAX_RANK * 22 + 4]; } weft_shape_string;
static inline weft_shape_string weft_shape_text(weft_shape shape) {
    weft_shape_string out;
    int               used = snprintf(out.text, sizeof out.text, "[");
    for (int32_t axis = 0; axis < shape.rank; axis++)
        used += snprintf(out.text + used, sizeof out.text - (size_t)used, axis ? ", %lld" : "%lld",
                         (long long)shape.dim[axis]);
    snprintf(out.text + used, sizeof out.text - (size_t)used, "]");
    return out;
}

#ifdef __cplusplus
}

/* weft_shape(2, 3) in C++: an overload set, since C++ has no array literals. */
template <typename... Dims> static inline weft_shape wefti_shape_from(Dims... dims) {
    const int64_t dim[sizeof...(Dims) + 1] = {static_cast<int64_t>(dims)..., 0};
    return weft_shape_of(static_cast<int32_t>(sizeof...(Dims)), dim);
}
#define weft_shape(...) wefti_shape_from(__VA_ARGS__)
#else
/* weft_shape(2, 3) is the shape of 2 rows and 3 columns; weft_shape_scalar() has rank 0. */
#define weft_shape(...) \
    weft_shape_of((int32_t)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]){__VA_ARGS__})
#endif
static inline weft_shape weft_shape_scalar(void) { return weft_shape_of(0, NULL); }

#endif

/* The elementwise ops on one element: floats in f64, integers in i64, each to be rounded by the caller to its dtype.
 * For + - * / and sqrt, rounding an f64 result to f32 is the correctly rounded f32 result (53 >= 2*24 + 2 bits). */
#ifndef WEFTI_REFERENCE_SCALAR_H
#define WEFTI_REFERENCE_SCALAR_H

#include "core/tensor/operand.h"

static inline double scalar_gelu(double x) { return 0.5 * x * erfc(-x * 0.70710678118654752440); }
static inline double scalar_gelu_slope(double x) {
    return 0.5 * erfc(-x * 0.70710678118654752440) + x * 0.39894228040143267794 * exp(-0.5 * x * x);
}
static inline double scalar_gelu_tanh_inner(double x) { return 0.79788456080286535588 * (x + 0.044715 * x * x * x); }
static inline double scalar_gelu_tanh(double x) { return 0.5 * x * (1 + tanh(scalar_gelu_tanh_inner(x))); }
static inline double scalar_gelu_tanh_slope(double x) {
    double t = tanh(scalar_gelu_tanh_inner(x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.79788456080286535588 * (1 + 3 * 0.044715 * x * x);
}
static inline double scalar_sigmoid(double x) { return 1 / (1 + exp(-x)); }
static inline double scalar_silu_slope(double x) {
    double s = scalar_sigmoid(x);
    return s * (1 + x * (1 - s));
}

/* One float in, one float out. */
static inline double scalar_unary(weft_op op, const wefti_attrs *attrs, double x) {
    switch (op) {
    case WEFT_OP_NEG: return -x;
    case WEFT_OP_ABS: return fabs(x);
    case WEFT_OP_SIGN: return x > 0 ? 1 : x < 0 ? -1 : x;
    case WEFT_OP_SQUARE: return x * x;
    case WEFT_OP_EXP: return exp(x);
    case WEFT_OP_EXPM1: return expm1(x);
    case WEFT_OP_LOG: return log(x);
    case WEFT_OP_LOG1P: return log1p(x);
    case WEFT_OP_SQRT: return sqrt(x);
    case WEFT_OP_RSQRT: return 1 / sqrt(x);
    case WEFT_OP_RECIPROCAL: return 1 / x;
    case WEFT_OP_SIN: return sin(x);
    case WEFT_OP_COS: return cos(x);
    case WEFT_OP_TANH: return tanh(x);
    case WEFT_OP_SIGMOID: return scalar_sigmoid(x);
    case WEFT_OP_ERF: return erf(x);
    case WEFT_OP_SOFTPLUS: return fmax(x, 0) + log1p(exp(-fabs(x)));
    case WEFT_OP_RELU: return x <= 0 ? 0 : x; /* NaN stays */
    case WEFT_OP_GELU: return scalar_gelu(x);
    case WEFT_OP_GELU_TANH: return scalar_gelu_tanh(x);
    case WEFT_OP_SILU: return x * scalar_sigmoid(x);
    case WEFT_OP_FLOOR: return floor(x);
    case WEFT_OP_CEIL: return ceil(x);
    case WEFT_OP_ROUND: return rint(x);
    case WEFT_OP_CLAMP:
        return x < attrs->clamp.lo ? fmin(attrs->clamp.lo, attrs->clamp.hi) : x > attrs->clamp.hi ? attrs->clamp.hi : x;
    default: return x; /* COPY, DETACH */
    }
}

static inline double scalar_binary(weft_op op, double a, double b) {
    switch (op) {
    case WEFT_OP_ADD: return a + b;
    case WEFT_OP_SUB: return a - b;
    case WEFT_OP_MUL: return a * b;
    case WEFT_OP_DIV: return a / b;
    case WEFT_OP_POW: return pow(a, b);
    case WEFT_OP_MAXIMUM: return a > b || isnan(a) ? a : b;
    case WEFT_OP_MINIMUM: return a < b || isnan(a) ? a : b;
    case WEFT_OP_RELU_BACKWARD: return a * (b > 0);
    case WEFT_OP_GELU_BACKWARD: return a * scalar_gelu_slope(b);
    case WEFT_OP_GELU_TANH_BACKWARD: return a * scalar_gelu_tanh_slope(b);
    default: return a * scalar_silu_slope(b); /* SILU_BACKWARD */
    }
}

static inline int64_t scalar_unary_i64(weft_op op, const wefti_attrs *attrs, weft_dtype dtype, int64_t x) {
    switch (op) {
    case WEFT_OP_NEG: return (int64_t)(0 - (uint64_t)x);
    case WEFT_OP_ABS: return x < 0 ? (int64_t)(0 - (uint64_t)x) : x;
    case WEFT_OP_SIGN: return (x > 0) - (x < 0);
    case WEFT_OP_SQUARE: return (int64_t)((uint64_t)x * (uint64_t)x);
    case WEFT_OP_RELU: return x > 0 ? x : 0;
    case WEFT_OP_CLAMP: {
        int64_t lo = wefti_f64_to_i64(attrs->clamp.lo, dtype), hi = wefti_f64_to_i64(attrs->clamp.hi, dtype);
        return wefti_min_i64(wefti_max_i64(x, lo), hi);
    }
    default: return x; /* COPY, DETACH */
    }
}

static inline int64_t scalar_binary_i64(weft_op op, int64_t a, int64_t b) {
    switch (op) {
    case WEFT_OP_ADD: return (int64_t)((uint64_t)a + (uint64_t)b);
    case WEFT_OP_SUB: return (int64_t)((uint64_t)a - (uint64_t)b);
    case WEFT_OP_MUL: return (int64_t)((uint64_t)a * (uint64_t)b);
    case WEFT_OP_DIV: return b == 0 ? 0 : b == -1 ? (int64_t)(0 - (uint64_t)a) : a / b;
    case WEFT_OP_MAXIMUM: return a > b ? a : b;
    default: return a < b ? a : b; /* MINIMUM */
    }
}

/* EQ .. GE of two numbers of either kind. */
#define SCALAR_COMPARE(op, a, b)                                                                          \
    ((op) == WEFT_OP_EQ   ? (a) == (b)                                                                    \
     : (op) == WEFT_OP_NE ? (a) != (b)                                                                    \
     : (op) == WEFT_OP_LT ? (a) < (b)                                                                     \
     : (op) == WEFT_OP_LE ? (a) <= (b)                                                                    \
     : (op) == WEFT_OP_GT ? (a) > (b)                                                                     \
                          : (a) >= (b))

#endif

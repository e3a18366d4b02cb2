/* The instructions of the virtual machine: one loop each, over a tile, which the compiler makes SIMD.
 *
 * An instruction may write where it reads. f32 transcendentals are those of math.h; in f64, and for pow, the C library's. */
#include "core/cpu/kernels/math.h"
#include "core/cpu/kernels/vm.h"

#define PARAMETERS const vm_step *step, int64_t count, void *to, const void *a, const void *b, const void *c
#define UNUSED (void)step, (void)a, (void)b, (void)c
#define EACH(statement)                                    \
    do {                                                   \
        _Pragma("GCC ivdep") for (int64_t i = 0; i < count; i++) { statement; } \
    } while (0)

/* y[i] = expression of x (and b's element as z), all of one type. */
#define UNARY(name, TYPE, expression)                      \
    static void name##_##TYPE(PARAMETERS) {                \
        UNUSED;                                            \
        const TYPE *in = a;                                \
        TYPE       *out = to;                              \
        EACH(TYPE x = in[i]; out[i] = (TYPE)(expression)); \
    }
#define BINARY(name, TYPE, expression)                                    \
    static void name##_##TYPE(PARAMETERS) {                               \
        UNUSED;                                                           \
        const TYPE *in = a, *other = b;                                   \
        TYPE       *out = to;                                             \
        EACH(TYPE x = in[i]; TYPE z = other[i]; out[i] = (TYPE)(expression)); \
    }
#define FLOATS(kind, name, expression) kind(name, float, expression) kind(name, double, expression)

UNARY(copy, uint8_t, x)
UNARY(copy, int32_t, x)
UNARY(copy, int64_t, x)

FLOATS(UNARY, neg, -x)
UNARY(abs, float, fabsf(x))
UNARY(abs, double, fabs(x))
FLOATS(UNARY, sign, x > 0 ? 1 : x < 0 ? -1 : x)
FLOATS(UNARY, square, x *x)
UNARY(exp, float, f32_exp(x))
UNARY(exp, double, exp(x))
UNARY(expm1, float, f32_expm1(x))
UNARY(expm1, double, expm1(x))
UNARY(log, float, f32_log(x))
UNARY(log, double, log(x))
UNARY(log1p, float, f32_log1p(x))
UNARY(log1p, double, log1p(x))
UNARY(sqrt, float, sqrtf(x))
UNARY(sqrt, double, sqrt(x))
UNARY(rsqrt, float, 1 / sqrtf(x))
UNARY(rsqrt, double, 1 / sqrt(x))
FLOATS(UNARY, reciprocal, 1 / x)
UNARY(sin, double, sin(x))
UNARY(cos, double, cos(x))
UNARY(tanh, float, f32_tanh(x))
UNARY(tanh, double, tanh(x))
UNARY(sigmoid, float, f32_sigmoid(x))
UNARY(sigmoid, double, 1 / (1 + exp(-x)))
UNARY(erf, float, f32_erf(x))
UNARY(erf, double, erf(x))
UNARY(softplus, float, f32_softplus(x))
UNARY(softplus, double, (x > 0 || x != x ? x : 0) + log1p(exp(-fabs(x))))
FLOATS(UNARY, relu, x <= 0 ? 0 : x)
UNARY(gelu, float, f32_gelu(x))
UNARY(gelu, double, 0.5 * x * erfc(-x * 0.70710678118654752440))
UNARY(gelu_tanh, float, f32_gelu_tanh(x))
UNARY(gelu_tanh, double, 0.5 * x * (1 + tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x))))
UNARY(silu, float, f32_silu(x))
UNARY(silu, double, x / (1 + exp(-x)))
UNARY(floor, double, floor(x))
UNARY(ceil, double, ceil(x))
UNARY(round, double, rint(x))

/* Whole numbers in f32 by the rounder, which every set has; from 2^23 on all floats are whole. Signs of zeros are kept. */
WEFTI_INLINE float whole(float x) {
    float a = fabsf(x), r = (a + 8388608.0f) - 8388608.0f;
    return a < 8388608.0f ? copysignf(r, x) : x;
}
UNARY(round, float, whole(x))
UNARY(floor, float, whole(x) > x ? whole(x) - 1 : whole(x))
UNARY(ceil, float, whole(x) < x ? copysignf(whole(x) + 1, x) : whole(x))

static void trig(int64_t count, void *to, const void *a, uint64_t shift) {
    float  *out = to;
    int32_t far = 0; /* a wide argument, or none at all; before out is written, which may be where a is */
    EACH(far |= !(fabsf(((const float *)a)[i]) <= F32_TRIG_END));
    if (far) {
        for (int64_t i = 0; i < count; i++) {
            float x = ((const float *)a)[i];
            out[i]  = fabsf(x) <= F32_TRIG_END ? f32_sin_shifted(x, shift) : (float)(shift ? cos((double)x) : sin((double)x));
        }
    } else {
        EACH(out[i] = f32_sin_shifted(((const float *)a)[i], shift));
    }
}
static void sin_float(PARAMETERS) {
    UNUSED;
    trig(count, to, a, 0);
}
static void cos_float(PARAMETERS) {
    UNUSED;
    trig(count, to, a, 1);
}

#define CLAMP(TYPE)                                                                           \
    static void clamp_##TYPE(PARAMETERS) {                                                    \
        UNUSED;                                                                               \
        const TYPE *in = a;                                                                   \
        TYPE       *out = to, low = (TYPE)fmin(step->attrs->clamp.lo, step->attrs->clamp.hi), \
             least = (TYPE)step->attrs->clamp.lo, most = (TYPE)step->attrs->clamp.hi;         \
        EACH(TYPE x = in[i]; x = x > most ? most : x; out[i] = x < least ? low : x);          \
    }
CLAMP(float)
CLAMP(double)
#define CLAMP_INTEGER(TYPE, DTYPE)                                                                                              \
    static void clamp_##TYPE(PARAMETERS) {                                                                                      \
        UNUSED;                                                                                                                 \
        const TYPE *in = a;                                                                                                     \
        TYPE       *out = to, low = (TYPE)wefti_f64_to_i64(step->attrs->clamp.lo, DTYPE),                                       \
             high = (TYPE)wefti_f64_to_i64(step->attrs->clamp.hi, DTYPE);                                                       \
        EACH(TYPE x = in[i] > low ? in[i] : low; out[i] = x < high ? x : high);                                                 \
    }
CLAMP_INTEGER(int64_t, WEFT_I64)
CLAMP_INTEGER(int32_t, WEFT_I32)
CLAMP_INTEGER(uint8_t, WEFT_U8)

FLOATS(BINARY, add, x + z)
FLOATS(BINARY, sub, x - z)
FLOATS(BINARY, mul, x *z)
FLOATS(BINARY, div, x / z)
FLOATS(BINARY, maximum, x > z || x != x ? x : z)
FLOATS(BINARY, minimum, x < z || x != x ? x : z)
BINARY(pow, float, pow((double)x, (double)z))
BINARY(pow, double, pow(x, z))
FLOATS(BINARY, relu_backward, x *(z > 0))
BINARY(gelu_backward, float, x *f32_gelu_slope(z))
BINARY(gelu_tanh_backward, float, x *f32_gelu_tanh_slope(z))
BINARY(silu_backward, float, x *f32_silu_slope(z))

static double gelu_slope(double x) {
    return 0.5 * erfc(-x * 0.70710678118654752440) + x * 0.39894228040143267794 * exp(-0.5 * x * x);
}
static double gelu_tanh_slope(double x) {
    double t = tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.79788456080286535588 * (1 + 3 * 0.044715 * x * x);
}
static double silu_slope(double x) {
    double s = 1 / (1 + exp(-x));
    return s * (1 + x * (1 - s));
}
BINARY(gelu_backward, double, x *gelu_slope(z))
BINARY(gelu_tanh_backward, double, x *gelu_tanh_slope(z))
BINARY(silu_backward, double, x *silu_slope(z))

/* Integers wrap, so they are computed unsigned; U is the unsigned type. */
#define INTEGERS(TYPE, U)                                    \
    UNARY(neg, TYPE, (U)0 - (U)x)                            \
    UNARY(abs, TYPE, x < 0 ? (U)0 - (U)x : (U)x)             \
    UNARY(sign, TYPE, (x > 0) - (x < 0))                     \
    UNARY(square, TYPE, (U)x *(U)x)                          \
    UNARY(relu, TYPE, x > 0 ? x : 0)                         \
    BINARY(add, TYPE, (U)x + (U)z)                           \
    BINARY(sub, TYPE, (U)x - (U)z)                           \
    BINARY(mul, TYPE, (U)x *(U)z)                            \
    BINARY(maximum, TYPE, x > z ? x : z)                     \
    BINARY(minimum, TYPE, x < z ? x : z)
INTEGERS(int64_t, uint64_t)
INTEGERS(int32_t, uint32_t)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wtype-limits" /* x < 0 of an unsigned x */
INTEGERS(uint8_t, uint32_t)
#pragma GCC diagnostic pop
BINARY(div, int64_t, z == 0 ? 0 : z == -1 ? (int64_t)(0 - (uint64_t)x) : x / z)
BINARY(div, int32_t, z == 0 ? 0 : z == -1 ? (int32_t)(0 - (uint32_t)x) : x / z)
BINARY(div, uint8_t, z == 0 ? 0 : x / z)

/* Questions, whose answers are bytes. */
#define ASK1(name, TYPE, expression)                 \
    static void name##_##TYPE(PARAMETERS) {          \
        UNUSED;                                      \
        const TYPE *in = a;                          \
        uint8_t    *out = to;                        \
        EACH(TYPE x = in[i]; out[i] = (expression)); \
    }
#define ASK2(name, TYPE, expression)                                   \
    static void name##_##TYPE(PARAMETERS) {                            \
        UNUSED;                                                        \
        const TYPE *in = a, *other = b;                                \
        uint8_t    *out = to;                                          \
        EACH(TYPE x = in[i]; TYPE z = other[i]; out[i] = (expression)); \
    }
#define QUESTIONS(TYPE)                     \
    ASK1(not, TYPE, x == 0)                 \
    ASK2(eq, TYPE, x == z)                  \
    ASK2(ne, TYPE, x != z)                  \
    ASK2(lt, TYPE, x < z)                   \
    ASK2(le, TYPE, x <= z)                  \
    ASK2(gt, TYPE, x > z)                   \
    ASK2(ge, TYPE, x >= z)                  \
    ASK2(and, TYPE, (x != 0) & (z != 0))    \
    ASK2(or, TYPE, (x != 0) | (z != 0))
QUESTIONS(float)
QUESTIONS(double)
QUESTIONS(int64_t)
QUESTIONS(int32_t)
QUESTIONS(uint8_t)
ASK1(isfinite, float, fabsf(x) <= 3.402823466e+38f)
ASK1(isfinite, double, fabs(x) <= 1.7976931348623157e308)
ASK1(isfinite, int64_t, x == x)
ASK1(isfinite, int32_t, x == x)
ASK1(isfinite, uint8_t, x == x)

/* By size: what is chosen is only moved. */
#define CHOOSE(TYPE)                                                 \
    static void where_##TYPE(PARAMETERS) {                           \
        UNUSED;                                                      \
        const uint8_t *condition = a;                                \
        const TYPE    *yes = b, *no = c;                             \
        TYPE          *out = to;                                     \
        EACH(TYPE y = yes[i]; TYPE n = no[i]; out[i] = condition[i] ? y : n); \
    }
CHOOSE(uint8_t)
CHOOSE(int32_t)
CHOOSE(int64_t)

/* Casts. Slots differ in size, so a cast never writes where it reads. */
#define CAST(FROM, TO, expression)                    \
    static void cast_##FROM##_##TO(PARAMETERS) {      \
        UNUSED;                                       \
        const FROM *in = a;                           \
        TO         *out = to;                         \
        EACH(FROM x = in[i]; out[i] = (TO)(expression)); \
    }
#define CASTS_OF_INTEGER(FROM)        \
    CAST(FROM, float, x)              \
    CAST(FROM, double, x)             \
    CAST(FROM, int64_t, x)            \
    CAST(FROM, int32_t, x)            \
    CAST(FROM, uint8_t, x)
#define CASTS_OF_FLOAT(FROM)                                  \
    CAST(FROM, float, x)                                      \
    CAST(FROM, double, x)                                     \
    CAST(FROM, int64_t, wefti_f64_to_i64((double)x, WEFT_I64)) \
    CAST(FROM, int32_t, wefti_f64_to_i64((double)x, WEFT_I32)) \
    CAST(FROM, uint8_t, wefti_f64_to_i64((double)x, WEFT_U8))
CASTS_OF_INTEGER(int64_t)
CASTS_OF_INTEGER(int32_t)
CASTS_OF_INTEGER(uint8_t)
CASTS_OF_FLOAT(float)
CASTS_OF_FLOAT(double)
ASK1(truth, float, x != 0)
ASK1(truth, double, x != 0)
ASK1(truth, int64_t, x != 0)
ASK1(truth, int32_t, x != 0)
ASK1(truth, uint8_t, x != 0)

#define OF_FLOATS(name) {[VM_F32] = name##_float, [VM_F64] = name##_double}
#define OF_ALL(name)                                                                                             \
    {[VM_F32] = name##_float, [VM_F64] = name##_double, [VM_I64] = name##_int64_t, [VM_I32] = name##_int32_t,    \
     [VM_U8] = name##_uint8_t}
#define BY_SIZE(name)                                                                                            \
    {[VM_F32] = name##_int32_t, [VM_F64] = name##_int64_t, [VM_I64] = name##_int64_t, [VM_I32] = name##_int32_t, \
     [VM_U8] = name##_uint8_t}

/* By the type of the operands (of WHERE, of what is chosen). */
static vm_function *const functions[WEFT_OP_COUNT][VM_TYPES] = {
    [WEFT_OP_COPY] = BY_SIZE(copy),
    [WEFT_OP_DETACH] = BY_SIZE(copy),
    [WEFT_OP_NEG] = OF_ALL(neg),
    [WEFT_OP_ABS] = OF_ALL(abs),
    [WEFT_OP_SIGN] = OF_ALL(sign),
    [WEFT_OP_SQUARE] = OF_ALL(square),
    [WEFT_OP_EXP] = OF_FLOATS(exp),
    [WEFT_OP_EXPM1] = OF_FLOATS(expm1),
    [WEFT_OP_LOG] = OF_FLOATS(log),
    [WEFT_OP_LOG1P] = OF_FLOATS(log1p),
    [WEFT_OP_SQRT] = OF_FLOATS(sqrt),
    [WEFT_OP_RSQRT] = OF_FLOATS(rsqrt),
    [WEFT_OP_RECIPROCAL] = OF_FLOATS(reciprocal),
    [WEFT_OP_SIN] = OF_FLOATS(sin),
    [WEFT_OP_COS] = OF_FLOATS(cos),
    [WEFT_OP_TANH] = OF_FLOATS(tanh),
    [WEFT_OP_SIGMOID] = OF_FLOATS(sigmoid),
    [WEFT_OP_ERF] = OF_FLOATS(erf),
    [WEFT_OP_SOFTPLUS] = OF_FLOATS(softplus),
    [WEFT_OP_RELU] = OF_ALL(relu),
    [WEFT_OP_GELU] = OF_FLOATS(gelu),
    [WEFT_OP_GELU_TANH] = OF_FLOATS(gelu_tanh),
    [WEFT_OP_SILU] = OF_FLOATS(silu),
    [WEFT_OP_FLOOR] = OF_FLOATS(floor),
    [WEFT_OP_CEIL] = OF_FLOATS(ceil),
    [WEFT_OP_ROUND] = OF_FLOATS(round),
    [WEFT_OP_CLAMP] = OF_ALL(clamp),
    [WEFT_OP_NOT] = OF_ALL(not),
    [WEFT_OP_ISFINITE] = OF_ALL(isfinite),
    [WEFT_OP_ADD] = OF_ALL(add),
    [WEFT_OP_SUB] = OF_ALL(sub),
    [WEFT_OP_MUL] = OF_ALL(mul),
    [WEFT_OP_DIV] = OF_ALL(div),
    [WEFT_OP_POW] = OF_FLOATS(pow),
    [WEFT_OP_MAXIMUM] = OF_ALL(maximum),
    [WEFT_OP_MINIMUM] = OF_ALL(minimum),
    [WEFT_OP_EQ] = OF_ALL(eq),
    [WEFT_OP_NE] = OF_ALL(ne),
    [WEFT_OP_LT] = OF_ALL(lt),
    [WEFT_OP_LE] = OF_ALL(le),
    [WEFT_OP_GT] = OF_ALL(gt),
    [WEFT_OP_GE] = OF_ALL(ge),
    [WEFT_OP_AND] = OF_ALL(and),
    [WEFT_OP_OR] = OF_ALL(or),
    [WEFT_OP_RELU_BACKWARD] = OF_FLOATS(relu_backward),
    [WEFT_OP_GELU_BACKWARD] = OF_FLOATS(gelu_backward),
    [WEFT_OP_GELU_TANH_BACKWARD] = OF_FLOATS(gelu_tanh_backward),
    [WEFT_OP_SILU_BACKWARD] = OF_FLOATS(silu_backward),
    [WEFT_OP_WHERE] = BY_SIZE(where),
};
#define CAST_ROW(FROM)                                                                                        \
    {[VM_F32] = cast_##FROM##_float, [VM_F64] = cast_##FROM##_double, [VM_I64] = cast_##FROM##_int64_t,       \
     [VM_I32] = cast_##FROM##_int32_t, [VM_U8] = cast_##FROM##_uint8_t}
static vm_function *const casts[VM_TYPES][VM_TYPES] = {
    [VM_F32] = CAST_ROW(float),   [VM_F64] = CAST_ROW(double), [VM_I64] = CAST_ROW(int64_t),
    [VM_I32] = CAST_ROW(int32_t), [VM_U8] = CAST_ROW(uint8_t),
};
static vm_function *const truths[VM_TYPES] = OF_ALL(truth);

vm_function *vm_function_of(weft_op op, weft_dtype from, weft_dtype dtype) {
    vm_type type = vm_type_of(from);
    if (op == WEFT_OP_CLAMP && dtype == WEFT_BOOL) return NULL; /* its bounds are truths, not bytes */
    if (op != WEFT_OP_CAST) return functions[op][type];
    if (dtype == WEFT_BOOL) return truths[type];
    return vm_type_of(dtype) == type ? functions[WEFT_OP_COPY][type] : casts[type][vm_type_of(dtype)];
}

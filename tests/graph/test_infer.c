/* The shape rule of every op, called directly: what it gives, and every error it can say. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "core/graph/graph.h"
#include "core/rules/rules.h"
#include "weft/compression.h"

static weft_graph *graph;
static int         leaves;

static void open_graph(void) {
    cr_assert_eq(weft_graph_create(NULL, &graph), WEFT_OK);
    leaves = 0;
}
static void close_graph(void) { weft_graph_release(graph); }
TestSuite(graph_infer, .init = open_graph, .fini = close_graph);

static weft_tensor *of(weft_dtype dtype, weft_shape shape) {
    char name[8];
    snprintf(name, sizeof name, "%c", 'a' + leaves++);
    return wefti_emit_leaf(graph, WEFT_OP_INPUT, NULL, dtype, shape, NULL, name);
}
#define F(...) of(WEFT_F32, weft_shape(__VA_ARGS__))
#define D(...) of(WEFT_F64, weft_shape(__VA_ARGS__))
#define U8(...) of(WEFT_U8, weft_shape(__VA_ARGS__))
#define H(...) of(WEFT_BF16, weft_shape(__VA_ARGS__))
#define I(...) of(WEFT_I32, weft_shape(__VA_ARGS__))
#define L(...) of(WEFT_I64, weft_shape(__VA_ARGS__))
#define B(...) of(WEFT_BOOL, weft_shape(__VA_ARGS__))
#define SCALAR(dtype) of(dtype, weft_shape_scalar())

static wefti_type types[WEFTI_FUSED_MAX];
static int32_t    n_types;

static weft_status infer(weft_op op, const wefti_attrs *attrs, weft_tensor *const *inputs, int32_t n) {
    wefti_attrs none = wefti_no_attrs();
    return wefti_infer(op, attrs ? attrs : &none, inputs, n, "node", types, &n_types);
}
#define INFER(op, attrs, ...)                                                                                          \
    infer(WEFT_OP_##op, attrs, (weft_tensor *[]){__VA_ARGS__},                                                         \
          (int32_t)(sizeof((weft_tensor *[]){__VA_ARGS__}) / sizeof(weft_tensor *)))

/* What a call gives, and that it gives nothing else. */
#define GIVES(expected_dtype, expected_shape, op, attrs, ...)                                                          \
    do {                                                                                                               \
        cr_assert_eq(INFER(op, attrs, __VA_ARGS__), WEFT_OK, "%s", weft_error_message());                              \
        cr_assert_eq(types[0].dtype, expected_dtype, #op " gives %s", weft_dtype_name(types[0].dtype));                \
        cr_assert(weft_shape_equal(types[0].shape, expected_shape), #op " gives %s",                                   \
                  weft_shape_text(types[0].shape).text);                                                               \
        weft_graph_release(graph);                                                                                     \
        open_graph();                                                                                                  \
    } while (0)
#define FAILS(expected_status, part, op, attrs, ...)                                                                   \
    do {                                                                                                               \
        weft_status got_status = INFER(op, attrs, __VA_ARGS__);                                                        \
        cr_assert_eq(got_status, expected_status, #op ": %s: %s", weft_status_name(got_status), weft_error_message()); \
        cr_assert_eq(n_types, 0);                                                                                      \
        cr_assert(strstr(weft_error_message(), part), "'%s' lacks '%s'", weft_error_message(), part);                  \
        cr_assert(strstr(weft_error_message(), " 'node'"), "'%s' does not name the node", weft_error_message());       \
        weft_graph_release(graph);                                                                                     \
        open_graph();                                                                                                  \
    } while (0)

Test(graph_infer, every_op_has_a_name_and_flops_that_can_be_asked) {
    for (int op = 0; op < WEFT_OP_COUNT; op++) cr_assert_not_null(wefti_ops[op].name, "op %d", op);
}

Test(graph_infer, leaves_are_not_inferred) {
    weft_status status = infer(WEFT_OP_INPUT, NULL, NULL, 0);
    cr_assert_eq(status, WEFT_E_INTERNAL);
    cr_assert_eq(wefti_infer((weft_op)9999, NULL, NULL, 0, NULL, types, &n_types), WEFT_E_INTERNAL);
}

Test(graph_infer, elementwise_of_one) {
    static const weft_op arithmetic[] = {WEFT_OP_NEG,    WEFT_OP_ABS,  WEFT_OP_SIGN,
                                         WEFT_OP_SQUARE, WEFT_OP_RELU, WEFT_OP_CLAMP};
    static const weft_op floating[] = {WEFT_OP_EXP,      WEFT_OP_EXPM1, WEFT_OP_LOG,        WEFT_OP_LOG1P,
                                       WEFT_OP_SQRT,     WEFT_OP_RSQRT, WEFT_OP_RECIPROCAL, WEFT_OP_SIN,
                                       WEFT_OP_COS,      WEFT_OP_TANH,  WEFT_OP_SIGMOID,    WEFT_OP_ERF,
                                       WEFT_OP_SOFTPLUS, WEFT_OP_GELU,  WEFT_OP_GELU_TANH,  WEFT_OP_SILU,
                                       WEFT_OP_FLOOR,    WEFT_OP_CEIL,  WEFT_OP_ROUND};
    for (size_t i = 0; i < WEFTI_COUNT(arithmetic); i++) {
        weft_tensor *x = I(2, 0, 3), *flag = B(2);
        cr_assert_eq(infer(arithmetic[i], NULL, &x, 1), WEFT_OK);
        cr_assert_eq(types[0].dtype, WEFT_I32);
        cr_assert(weft_shape_equal(types[0].shape, weft_shape(2, 0, 3)));
        cr_assert_eq(infer(arithmetic[i], NULL, &flag, 1), WEFT_E_DTYPE);
        cr_assert(strstr(weft_error_message(), "arithmetic is not defined for bool"));
        leaves = leaves > 20 ? 0 : leaves;
        weft_graph_release(graph);
        open_graph();
    }
    for (size_t i = 0; i < WEFTI_COUNT(floating); i++) {
        weft_tensor *x = H(5), *n = I(5);
        cr_assert_eq(infer(floating[i], NULL, &x, 1), WEFT_OK);
        cr_assert_eq(types[0].dtype, WEFT_BF16);
        cr_assert_eq(infer(floating[i], NULL, &n, 1), WEFT_E_DTYPE);
        cr_assert(strstr(weft_error_message(), "must be floating (f32, f64, bf16 or f16), not i32"));
        weft_graph_release(graph);
        open_graph();
    }
    GIVES(WEFT_BOOL, weft_shape(4), NOT, NULL, B(4));
    FAILS(WEFT_E_DTYPE, "input 0 must be bool, not f32", NOT, NULL, F(4));
    GIVES(WEFT_BOOL, weft_shape(4), ISFINITE, NULL, F(4));
    FAILS(WEFT_E_DTYPE, "must be floating", ISFINITE, NULL, I(4));
    GIVES(WEFT_I64, weft_shape(4), COPY, NULL, L(4));
    GIVES(WEFT_BOOL, weft_shape(4), DETACH, NULL, B(4));
    wefti_attrs attrs = wefti_no_attrs();
    attrs.cast.dtype = WEFT_U8;
    GIVES(WEFT_U8, weft_shape(4), CAST, &attrs, F(4));
    attrs.cast.dtype = -1;
    FAILS(WEFT_E_DTYPE, "-1 is no dtype", CAST, &attrs, F(4));
    FAILS(WEFT_E_INVALID, "takes 1 input, got 2", NEG, NULL, F(4), F(4));
}

Test(graph_infer, elementwise_of_two_and_three) {
    GIVES(WEFT_F32, weft_shape(2, 3, 4), ADD, NULL, F(2, 1, 4), F(3, 1));
    GIVES(WEFT_I64, weft_shape(3), MUL, NULL, L(3), SCALAR(WEFT_I64));
    GIVES(WEFT_F32, weft_shape(0, 3), SUB, NULL, F(1, 3), F(0, 1));
    FAILS(WEFT_E_SHAPE, "add 'node' of a f32 [2, 3], b f32 [4]: [2, 3] and [4] do not broadcast", ADD, NULL, F(2, 3),
          F(4));
    FAILS(WEFT_E_SHAPE, "do not broadcast", DIV, NULL, F(0), F(2));
    FAILS(WEFT_E_DTYPE, "f32 and f64 differ: give both one dtype with weft_cast", MAXIMUM, NULL, F(2), D(2));
    FAILS(WEFT_E_DTYPE, "arithmetic is not defined for bool", ADD, NULL, B(2), B(2));
    FAILS(WEFT_E_DTYPE, "must be floating", POW, NULL, I(2), I(2));
    GIVES(WEFT_BOOL, weft_shape(2, 2), EQ, NULL, B(2, 1), B(2));
    FAILS(WEFT_E_DTYPE, "differ", LT, NULL, I(2), L(2));
    GIVES(WEFT_BOOL, weft_shape(2), AND, NULL, B(2), B(2));
    FAILS(WEFT_E_DTYPE, "input 1 must be bool, not i32: compare", OR, NULL, B(2), I(2));
    GIVES(WEFT_I32, weft_shape(2, 3), WHERE, NULL, B(3), I(2, 1), SCALAR(WEFT_I32));
    FAILS(WEFT_E_DTYPE, "the condition must be bool, not u8", WHERE, NULL, of(WEFT_U8, weft_shape(3)), F(3), F(3));
    FAILS(WEFT_E_DTYPE, "f32 and f64 differ", WHERE, NULL, B(3), F(3), D(3));
    FAILS(WEFT_E_SHAPE, "do not broadcast", WHERE, NULL, B(2), F(3), F(3));
    GIVES(WEFT_F32, weft_shape(2), RELU_BACKWARD, NULL, F(2), F(2));
    wefti_attrs attrs = wefti_no_attrs();
    attrs.dropout.p = 0.5;
    GIVES(WEFT_BF16, weft_shape(2), DROPOUT, &attrs, H(2), SCALAR(WEFT_I64));
    FAILS(WEFT_E_SHAPE, "input 1 must be the step", DROPOUT, &attrs, F(2), L(1));
    FAILS(WEFT_E_DTYPE, "must be floating", DROPOUT, &attrs, I(2), SCALAR(WEFT_I64));
    attrs.dropout.p = NAN;
    FAILS(WEFT_E_INVALID, "p must be at least 0 and less than 1, not", DROPOUT, &attrs, F(2), SCALAR(WEFT_I64));
}

Test(graph_infer, reductions) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.reduce.axes = 1u << 0 | 1u << 2;
    GIVES(WEFT_F32, weft_shape(3), SUM, &attrs, F(2, 3, 4));
    GIVES(WEFT_I32, weft_shape(3), MAX, &attrs, I(2, 3, 4));
    GIVES(WEFT_F32, weft_shape(3), SUM, &attrs, F(0, 3, 4));
    GIVES(WEFT_F32, weft_shape(3), MEAN, &attrs, F(0, 3, 4));
    GIVES(WEFT_F32, weft_shape(0), MAX, &attrs, F(0, 0, 4));
    GIVES(WEFT_F32, weft_shape_scalar(), EXTENT, &attrs, I(2, 3, 4));
    GIVES(WEFT_F64, weft_shape_scalar(), EXTENT, &attrs, D(2, 3, 4));
    FAILS(WEFT_E_SHAPE, "axis 0 is empty: there is no maximum of nothing", MAX, &attrs, F(0, 3, 4));
    FAILS(WEFT_E_SHAPE, "axis 2 is empty: there is no minimum of nothing", MIN, &attrs, F(2, 3, 0));
    FAILS(WEFT_E_INVALID, "out of range for rank 2", SUM, &attrs, F(2, 3));
    FAILS(WEFT_E_INVALID, "out of range for rank 2", EXTENT, &attrs, F(2, 3));
    FAILS(WEFT_E_DTYPE, "bool", SUM, &attrs, B(2, 3, 4));
    FAILS(WEFT_E_DTYPE, "must be floating", MEAN, &attrs, I(2, 3, 4));
    FAILS(WEFT_E_INVALID, "takes exactly one axis, got 2", ARGMAX, &attrs, F(2, 3, 4));
    attrs.reduce.keep = true;
    GIVES(WEFT_F32, weft_shape(1, 3, 1), MIN, &attrs, F(2, 3, 4));
    attrs.reduce.shape = weft_shape(2, 3, 4);
    GIVES(WEFT_F32, weft_shape(2, 3, 4), MEAN_BACKWARD, &attrs, F(1, 3, 1));
    FAILS(WEFT_E_SHAPE, "the gradient must be [1, 3, 1], not [3]", MEAN_BACKWARD, &attrs, F(3));
    attrs.reduce.shape.dim[1] = -3;
    FAILS(WEFT_E_SHAPE, "[2, -3, 4] is no shape", MEAN_BACKWARD, &attrs, F(1, 3, 1));
    attrs.reduce.count = -1;
    FAILS(WEFT_E_INVALID, "must not be negative", MEAN, &attrs, F(2, 3, 4));
    attrs = wefti_no_attrs();
    attrs.reduce.axes = 2;
    GIVES(WEFT_I64, weft_shape(2), ARGMAX, &attrs, F(2, 3));
    FAILS(WEFT_E_SHAPE, "axis 1 is empty", ARGMAX, &attrs, F(2, 0));
}

Test(graph_infer, views) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.view.shape = weft_shape(6, 1);
    GIVES(WEFT_U8, weft_shape(6, 1), RESHAPE, &attrs, of(WEFT_U8, weft_shape(2, 3)));
    FAILS(WEFT_E_SHAPE, "[2, 2] has 4 elements, [6, 1] has 6", RESHAPE, &attrs, F(2, 2));
    FAILS(WEFT_E_SHAPE, "[2, 2] does not broadcast to [6, 1]", EXPAND, &attrs, F(2, 2));
    GIVES(WEFT_F32, weft_shape(6, 1), EXPAND, &attrs, F(1));
    attrs.view.shape = weft_shape(3, -2);
    FAILS(WEFT_E_SHAPE, "[3, -2] is no shape", RESHAPE, &attrs, F(2, 3));
    FAILS(WEFT_E_SHAPE, "[3, -2] is no shape", EXPAND, &attrs, F(1));
    attrs.view.shape = weft_shape_scalar();
    FAILS(WEFT_E_SHAPE, "does not broadcast to []", EXPAND, &attrs, F(1));
    attrs = wefti_no_attrs();
    memcpy(attrs.view.axes, (int32_t[]){1, 2, 0}, 12);
    GIVES(WEFT_F32, weft_shape(3, 4, 2), PERMUTE, &attrs, F(2, 3, 4));
    FAILS(WEFT_E_INVALID, "axis 2 is out of range", PERMUTE, &attrs, F(2, 3));
    attrs.view.axes[1] = 1;
    FAILS(WEFT_E_INVALID, "axis 1 is named twice", PERMUTE, &attrs, F(2, 3, 4));
    attrs = wefti_no_attrs();
    attrs.slice.start[0] = 1, attrs.slice.step[0] = 3, attrs.slice.size[0] = 2;
    GIVES(WEFT_F32, weft_shape(2), SLICE, &attrs, F(5));
    FAILS(WEFT_E_SHAPE, "axis 0: 2 elements from 1 with step 3 leave its size 4", SLICE, &attrs, F(4));
    attrs.slice.step[0] = 0;
    FAILS(WEFT_E_INVALID, "the step must be at least 1, not 0", SLICE, &attrs, F(5));
    attrs.slice.step[0] = INT64_MAX;
    FAILS(WEFT_E_SHAPE, "leave its size 5", SLICE, &attrs, F(5));
}

Test(graph_infer, moves) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.axis.axis = 1;
    GIVES(WEFT_F32, weft_shape(2, 7), CONCAT, &attrs, F(2, 3), F(2, 0), F(2, 4));
    FAILS(WEFT_E_SHAPE, "[2, 3] and [3, 3] ('b') must agree in all axes but axis 1", CONCAT, &attrs, F(2, 3), F(3, 3));
    FAILS(WEFT_E_SHAPE, "must agree", CONCAT, &attrs, F(2, 3), F(2, 3, 1));
    FAILS(WEFT_E_DTYPE, "differ", CONCAT, &attrs, F(2, 3), D(2, 3));
    FAILS(WEFT_E_INVALID, "axis 1 is out of range for rank 1", CONCAT, &attrs, F(2), F(2));
    GIVES(WEFT_F32, weft_shape(2, 5, 6, 4), GATHER, &attrs, F(2, 3, 4), I(5, 6));
    FAILS(WEFT_E_DTYPE, "input 1 must be i32 or i64, not f32", GATHER, &attrs, F(2, 3, 4), F(5));
    FAILS(WEFT_E_INVALID, "axis 1 is out of range for rank 1", GATHER, &attrs, F(2), I(5));
    FAILS(WEFT_E_SHAPE, "would have 9 dimensions, at most 8 are possible", GATHER, &attrs, F(1, 1, 1, 1, 1),
          I(1, 1, 1, 1, 1));
    GIVES(WEFT_F32, weft_shape(2, 3), SCATTER_ADD, &attrs, F(2, 3), L(5), F(2, 5));
    FAILS(WEFT_E_SHAPE, "the updates must be [2, 5], not [5, 2]", SCATTER_ADD, &attrs, F(2, 3), L(5), F(5, 2));
    FAILS(WEFT_E_DTYPE, "f32 and f64 differ", SCATTER_ADD, &attrs, F(2, 3), L(5), D(2, 5));
    FAILS(WEFT_E_DTYPE, "bool", SCATTER_ADD, &attrs, B(2, 3), L(5), B(2, 5));
    attrs = wefti_no_attrs();
    FAILS(WEFT_E_INVALID, "there must be at least one value to count, not 0", OCCURRENCE, &attrs, I(4, 2));
    attrs.expert.experts = 3;
    GIVES(WEFT_I32, weft_shape(4, 2), OCCURRENCE, &attrs, L(4, 2));
    FAILS(WEFT_E_SHAPE, "the index must be [rows, columns]", OCCURRENCE, &attrs, I(4));
    FAILS(WEFT_E_DTYPE, "must be i32 or i64, not f32", OCCURRENCE, &attrs, F(4, 2));
    attrs = wefti_no_attrs();
    attrs.pad.low[0] = 1, attrs.pad.high[0] = 2, attrs.pad.interior[0] = 3;
    GIVES(WEFT_F32, weft_shape(12), PAD, &attrs, F(3));
    GIVES(WEFT_F32, weft_shape(3), PAD, &attrs, F(0));
    attrs.pad.low[0] = -1;
    FAILS(WEFT_E_INVALID, "padding must not be negative: slice instead", PAD, &attrs, F(3));
    attrs.pad.low[0] = INT64_MAX;
    FAILS(WEFT_E_OVERFLOW, "the padded size does not fit 63 bits", PAD, &attrs, F(3));
}

Test(graph_infer, products) {
    wefti_attrs attrs = wefti_no_attrs();
    GIVES(WEFT_F32, weft_shape(7, 2, 3, 5), MATMUL, &attrs, F(2, 3, 4), F(7, 1, 4, 5));
    GIVES(WEFT_F32, weft_shape(3, 5), MATMUL, &attrs, F(3, 0), F(0, 5));
    FAILS(WEFT_E_SHAPE, "matmul 'node' of a f32 [64, 128], b f32 [100, 10]: inner sizes 128 and 100 differ (of a x b)",
          MATMUL, &attrs, F(64, 128), F(100, 10));
    FAILS(WEFT_E_SHAPE, "at least 2 dimensions", MATMUL, &attrs, F(3), F(3, 4));
    FAILS(WEFT_E_SHAPE, "leading axes do not broadcast", MATMUL, &attrs, F(2, 3, 4), F(3, 4, 5));
    FAILS(WEFT_E_DTYPE, "differ", MATMUL, &attrs, F(3, 4), D(4, 5));
    FAILS(WEFT_E_DTYPE, "must be floating", MATMUL, &attrs, I(3, 4), I(4, 5));
    attrs.matmul.trans_a = attrs.matmul.trans_b = 1;
    GIVES(WEFT_F32, weft_shape(3, 5), MATMUL, &attrs, F(4, 3), F(5, 4));
    FAILS(WEFT_E_SHAPE, "inner sizes 3 and 4 differ (of a transposed x b transposed)", MATMUL, &attrs, F(3, 4),
          F(5, 4));
}

static wefti_attrs conv(void) {
    wefti_attrs attrs = wefti_no_attrs();
    for (int axis = 0; axis < 2; axis++) attrs.conv.stride[axis] = attrs.conv.dilation[axis] = 1;
    attrs.conv.groups = 1;
    return attrs;
}

Test(graph_infer, convolutions) {
    wefti_attrs attrs = conv();
    GIVES(WEFT_F32, weft_shape(2, 8, 4, 3), CONV2D, &attrs, F(2, 3, 6, 5), F(8, 3, 3, 3));
    GIVES(WEFT_F32, weft_shape(0, 8, 4, 3), CONV2D, &attrs, F(0, 3, 6, 5), F(8, 3, 3, 3));
    FAILS(WEFT_E_SHAPE, "the image must be [N, C, H, W]", CONV2D, &attrs, F(2, 3, 6), F(8, 3, 3, 3));
    FAILS(WEFT_E_SHAPE, "3 channels in 1 groups need a weight with 3 channels, not 4", CONV2D, &attrs, F(2, 3, 6, 5),
          F(8, 4, 3, 3));
    FAILS(WEFT_E_SHAPE, "larger than the padded image, 2 x 5", CONV2D, &attrs, F(2, 3, 2, 5), F(8, 3, 3, 3));
    FAILS(WEFT_E_SHAPE, "the kernel must not be empty", CONV2D, &attrs, F(2, 3, 2, 5), F(8, 3, 0, 3));
    FAILS(WEFT_E_DTYPE, "differ", CONV2D, &attrs, F(2, 3, 6, 5), D(8, 3, 3, 3));
    attrs.conv.groups = 3;
    FAILS(WEFT_E_SHAPE, "8 filters do not divide into 3 groups", CONV2D, &attrs, F(2, 3, 6, 5), F(8, 1, 3, 3));
    attrs.conv.groups = 0;
    FAILS(WEFT_E_INVALID, "groups must be at least 1, not 0", CONV2D, &attrs, F(2, 3, 6, 5), F(8, 1, 3, 3));
    attrs = conv();
    attrs.conv.pad[3] = -1;
    FAILS(WEFT_E_INVALID, "padding must not be negative, got -1", CONV2D, &attrs, F(2, 3, 6, 5), F(8, 3, 3, 3));
    attrs = conv();
    attrs.conv.dilation[1] = 0;
    FAILS(WEFT_E_INVALID, "dilation must be at least 1, not 1 x 0", CONV2D, &attrs, F(2, 3, 6, 5), F(8, 3, 3, 3));
    attrs = conv();
    attrs.conv.stride[0] = 0;
    FAILS(WEFT_E_INVALID, "stride must be at least 1, not 0 x 1", CONV2D, &attrs, F(2, 3, 6, 5), F(8, 3, 3, 3));
    attrs = conv();
    attrs.conv.input = weft_shape(2, 3, 6, 5);
    attrs.conv.weight = weft_shape(8, 3, 3, 3);
    GIVES(WEFT_F32, weft_shape(2, 3, 6, 5), CONV2D_BACKWARD_INPUT, &attrs, F(2, 8, 4, 3), F(8, 3, 3, 3));
    GIVES(WEFT_F32, weft_shape(8, 3, 3, 3), CONV2D_BACKWARD_WEIGHT, &attrs, F(2, 8, 4, 3), F(2, 3, 6, 5));
    FAILS(WEFT_E_SHAPE, "the gradient must be [2, 8, 4, 3], not [2, 8, 4, 4]", CONV2D_BACKWARD_INPUT, &attrs,
          F(2, 8, 4, 4), F(8, 3, 3, 3));
    FAILS(WEFT_E_SHAPE, "the gradient must be [2, 8, 4, 3], not [2, 8, 3, 3]", CONV2D_BACKWARD_WEIGHT, &attrs,
          F(2, 8, 3, 3), F(2, 3, 6, 5));
}

Test(graph_infer, pooling) {
    wefti_attrs attrs = wefti_no_attrs();
    for (int axis = 0; axis < 2; axis++) attrs.pool.window[axis] = attrs.pool.stride[axis] = 2;
    GIVES(WEFT_F32, weft_shape(2, 3, 3, 2), AVG_POOL2D, &attrs, F(2, 3, 6, 5));
    GIVES(WEFT_F32, weft_shape(2, 3, 3, 2), MAX_POOL2D, &attrs, F(2, 3, 6, 5));
    cr_assert_eq(INFER(MAX_POOL2D, &attrs, F(2, 3, 6, 5)), WEFT_OK);
    cr_assert_eq(n_types, 2);
    cr_assert_eq(types[1].dtype, WEFT_I32);
    FAILS(WEFT_E_SHAPE, "the image must be [N, C, H, W], not [2, 3]", MAX_POOL2D, &attrs, F(2, 3));
    FAILS(WEFT_E_SHAPE, "a window of 2 x 2 is larger than the padded image, 1 x 5", AVG_POOL2D, &attrs, F(2, 3, 1, 5));
    FAILS(WEFT_E_OVERFLOW, "more elements than an i32 can index", MAX_POOL2D, &attrs, F(1, 1, 65536, 65536));
    FAILS(WEFT_E_DTYPE, "must be floating", MAX_POOL2D, &attrs, I(2, 3, 6, 5));
    attrs.pool.input = weft_shape(2, 3, 6, 5);
    GIVES(WEFT_F32, weft_shape(2, 3, 6, 5), MAX_POOL2D_BACKWARD, &attrs, F(2, 3, 3, 2), I(2, 3, 3, 2));
    GIVES(WEFT_F32, weft_shape(2, 3, 6, 5), AVG_POOL2D_BACKWARD, &attrs, F(2, 3, 3, 2));
    GIVES(WEFT_F32, weft_shape(2, 3, 3, 2), MAX_POOL2D_TAKE, &attrs, F(2, 3, 6, 5), I(2, 3, 3, 2));
    FAILS(WEFT_E_SHAPE, "the gradient must be", AVG_POOL2D_BACKWARD, &attrs, F(2, 3, 3, 3));
    FAILS(WEFT_E_SHAPE, "the gradient must be", MAX_POOL2D_BACKWARD, &attrs, F(2, 3, 3, 3), I(2, 3, 3, 2));
    FAILS(WEFT_E_DTYPE, "the index must be i32, not i64", MAX_POOL2D_TAKE, &attrs, F(2, 3, 6, 5), L(2, 3, 3, 2));
    FAILS(WEFT_E_SHAPE, "must agree in N and C", MAX_POOL2D_TAKE, &attrs, F(2, 4, 6, 5), I(2, 3, 3, 2));
    attrs.pool.pad[1] = 2;
    FAILS(WEFT_E_INVALID, "less than the window of 2, not 2", AVG_POOL2D, &attrs, F(2, 3, 6, 5));
    attrs.pool.pad[1] = 0;
    attrs.pool.stride[1] = 0;
    FAILS(WEFT_E_INVALID, "the stride must be at least 1, not 2 x 0", AVG_POOL2D, &attrs, F(2, 3, 6, 5));
    attrs.pool.window[0] = 0;
    FAILS(WEFT_E_INVALID, "the window must be at least 1, not 0 x 2", AVG_POOL2D, &attrs, F(2, 3, 6, 5));
}

Test(graph_infer, rows) {
    wefti_attrs attrs = wefti_no_attrs();
    GIVES(WEFT_F32, weft_shape(2, 3), SOFTMAX, &attrs, F(2, 3));
    GIVES(WEFT_F32, weft_shape(2, 3), LOG_SOFTMAX_BACKWARD, &attrs, F(2, 3), F(2, 3));
    FAILS(WEFT_E_SHAPE, "a scalar has no last axis", LOG_SOFTMAX, &attrs, SCALAR(WEFT_F32));
    FAILS(WEFT_E_SHAPE, "the result of the forward pass must be [2, 3], not [3]", SOFTMAX_BACKWARD, &attrs, F(2, 3),
          F(3));
    FAILS(WEFT_E_DTYPE, "differ", SOFTMAX_BACKWARD, &attrs, F(2, 3), D(2, 3));
    attrs.rows.axes = 2;
    GIVES(WEFT_BF16, weft_shape(2, 3, 4), NORMALIZE, &attrs, H(2, 3, 4));
    cr_assert_eq(INFER(NORMALIZE, &attrs, H(2, 3, 4)), WEFT_OK);
    cr_assert_eq(types[1].dtype, WEFT_F32);
    cr_assert(weft_shape_equal(types[1].shape, weft_shape(2)));
    GIVES(WEFT_BF16, weft_shape(2, 3, 4), NORMALIZE_BACKWARD, &attrs, H(2, 3, 4), H(2, 3, 4), F(2));
    FAILS(WEFT_E_DTYPE, "rstd must be f32, not bf16", NORMALIZE_BACKWARD, &attrs, H(2, 3, 4), H(2, 3, 4), H(2));
    FAILS(WEFT_E_SHAPE, "rstd must be [2], not [3]", NORMALIZE_BACKWARD, &attrs, F(2, 3, 4), F(2, 3, 4), F(3));
    FAILS(WEFT_E_INVALID, "the last 2 axes of 1 cannot be normalised", NORMALIZE, &attrs, F(2));
    FAILS(WEFT_E_INVALID, "the last 2 axes of 1 cannot be normalised", NORMALIZE_BACKWARD, &attrs, F(2), F(2),
          SCALAR(WEFT_F32));
    FAILS(WEFT_E_SHAPE, "axis 2 is empty", NORMALIZE, &attrs, F(2, 3, 0));
    attrs.rows.eps = -1;
    FAILS(WEFT_E_INVALID, "eps must not be negative, got -1", NORMALIZE, &attrs, F(2, 3));
    attrs = wefti_no_attrs();
    attrs.rotary.base = 10;
    GIVES(WEFT_F32, weft_shape(3, 4), ROTARY, &attrs, F(3, 4));
    FAILS(WEFT_E_SHAPE, "even D", ROTARY, &attrs, F(4));
    attrs.rotary.base = 0;
    FAILS(WEFT_E_INVALID, "the base must be positive, not 0", ROTARY, &attrs, F(3, 4));
}

Test(graph_infer, losses) {
    wefti_attrs attrs = wefti_no_attrs();
    GIVES(WEFT_F32, weft_shape(2, 3), CROSS_ENTROPY, &attrs, H(2, 3, 5), L(2, 3));
    GIVES(WEFT_F64, weft_shape_scalar(), CROSS_ENTROPY, &attrs, D(5), SCALAR(WEFT_I32));
    GIVES(WEFT_F64, weft_shape(2, 5), CROSS_ENTROPY_BACKWARD, &attrs, D(2), D(2, 5), I(2), D(2));
    FAILS(WEFT_E_SHAPE, "the label must be [2], not [2, 5]", CROSS_ENTROPY, &attrs, F(2, 5), I(2, 5));
    FAILS(WEFT_E_SHAPE, "at least one class", CROSS_ENTROPY, &attrs, F(2, 0), I(2));
    FAILS(WEFT_E_SHAPE, "at least one class", CROSS_ENTROPY, &attrs, SCALAR(WEFT_F32), I(2));
    FAILS(WEFT_E_DTYPE, "input 1 must be i32 or i64, not u8", CROSS_ENTROPY, &attrs, F(2, 5),
          of(WEFT_U8, weft_shape(2)));
    FAILS(WEFT_E_DTYPE, "the gradient must be f32, not bf16", CROSS_ENTROPY_BACKWARD, &attrs, H(2), H(2, 5), I(2),
          F(2));
    FAILS(WEFT_E_SHAPE, "the log-sum-exp must be [2], not [3]", CROSS_ENTROPY_BACKWARD, &attrs, F(2), F(2, 5), I(2),
          F(3));
    FAILS(WEFT_E_SHAPE, "the gradient must be [2], not [5]", CROSS_ENTROPY_BACKWARD, &attrs, F(5), F(2, 5), I(2), F(2));
    attrs.loss.smoothing = -0.1;
    FAILS(WEFT_E_INVALID, "smoothing must be in [0, 1], not -0.1", CROSS_ENTROPY, &attrs, F(2, 5), I(2));
}

Test(graph_infer, attention) {
    wefti_attrs attrs = wefti_no_attrs();
    GIVES(WEFT_F32, weft_shape(2, 4, 3, 6), ATTENTION, &attrs, F(2, 4, 3, 8), F(2, 2, 5, 8), F(2, 2, 5, 6));
    FAILS(WEFT_E_SHAPE, "must be [B, heads, length, size]", ATTENTION, &attrs, F(2, 3, 8), F(2, 2, 5, 8),
          F(2, 2, 5, 6));
    FAILS(WEFT_E_SHAPE, "batch sizes 2, 3 and 2 differ", ATTENTION, &attrs, F(2, 4, 3, 8), F(3, 2, 5, 8),
          F(2, 2, 5, 6));
    FAILS(WEFT_E_SHAPE, "4 query heads need key and value heads that divide them, not 3 and 3", ATTENTION, &attrs,
          F(2, 4, 3, 8), F(2, 3, 5, 8), F(2, 3, 5, 6));
    FAILS(WEFT_E_SHAPE, "5 keys and 4 values differ", ATTENTION, &attrs, F(2, 4, 3, 8), F(2, 2, 5, 8), F(2, 2, 4, 6));
    FAILS(WEFT_E_SHAPE, "query size 8 and key size 7 differ", ATTENTION, &attrs, F(2, 4, 3, 8), F(2, 2, 5, 7),
          F(2, 2, 5, 6));
    FAILS(WEFT_E_SHAPE, "no keys to attend to", ATTENTION, &attrs, F(2, 4, 3, 8), F(2, 2, 0, 8), F(2, 2, 0, 6));
    FAILS(WEFT_E_DTYPE, "differ", ATTENTION, &attrs, F(2, 4, 3, 8), D(2, 2, 5, 8), F(2, 2, 5, 6));
    cr_assert_eq(INFER(ATTENTION_BACKWARD, &attrs, F(1, 2, 3, 6), F(1, 2, 3, 8), F(1, 1, 5, 8), F(1, 1, 5, 6),
                       F(1, 2, 3, 6), F(1, 2, 3)),
                 WEFT_OK);
    cr_assert_eq(n_types, 3);
    cr_assert(weft_shape_equal(types[2].shape, weft_shape(1, 1, 5, 6)));
    FAILS(WEFT_E_SHAPE, "the log-sum-exp must be [1, 2, 3], not [1, 2, 4]", ATTENTION_BACKWARD, &attrs, F(1, 2, 3, 6),
          F(1, 2, 3, 8), F(1, 1, 5, 8), F(1, 1, 5, 6), F(1, 2, 3, 6), F(1, 2, 4));
    attrs.attention.causal = 1;
    FAILS(WEFT_E_SHAPE, "causal: the first of 6 queries would see none of 5 keys", ATTENTION, &attrs, F(2, 4, 6, 8),
          F(2, 2, 5, 8), F(2, 2, 5, 6));
}

Test(graph_infer, plan_and_effects) {
    GIVES(WEFT_F32, weft_shape(2), MODE, NULL, F(2), F(2));
    FAILS(WEFT_E_SHAPE, "what stands in when not training must be [2], not [3]", MODE, NULL, F(2), F(3));
    FAILS(WEFT_E_DTYPE, "differ", MODE, NULL, F(2), D(2));
    FAILS(WEFT_E_INVALID, "input 0 must be a state or a parameter, 'a' is input", ASSIGN, NULL, F(2), F(2));
#define STATE(dtype, name, ...) wefti_emit_leaf(graph, WEFT_OP_STATE, NULL, dtype, weft_shape(__VA_ARGS__), NULL, name)
    GIVES(WEFT_I64, weft_shape(2), ASSIGN, NULL, STATE(WEFT_I64, "s", 2), L(2));
    FAILS(WEFT_E_SHAPE, "what is assigned must be [2], not [1]", ASSIGN, NULL, STATE(WEFT_F32, "s", 2), F(1));
    FAILS(WEFT_E_DTYPE, "differ", ASSIGN, NULL, STATE(WEFT_F32, "s", 2), D(2));
    GIVES(WEFT_F32, weft_shape(2), UPDATE, NULL, STATE(WEFT_F32, "p", 2), F(2), D(8), STATE(WEFT_F32, "m", 2));
    GIVES(WEFT_BF16, weft_shape(2), UPDATE, NULL, STATE(WEFT_BF16, "p", 2), F(2), D(8), STATE(WEFT_F32, "m", 2));
    FAILS(WEFT_E_DTYPE, "parameters are f32, f64 or bf16, not f16", UPDATE, NULL, STATE(WEFT_F16, "p", 2), F(2), D(8));
    FAILS(WEFT_E_DTYPE, "the gradient must be f32, not f64", UPDATE, NULL, STATE(WEFT_BF16, "p", 2), D(2), D(8));
    FAILS(WEFT_E_SHAPE, "the gradient must be [2], not [3]", UPDATE, NULL, STATE(WEFT_F32, "p", 2), F(3), D(8));
    FAILS(WEFT_E_DTYPE, "the rule's numbers", UPDATE, NULL, STATE(WEFT_F32, "p", 2), F(2), F(8));
    FAILS(WEFT_E_DTYPE, "the rule's state must be f32, not f64", UPDATE, NULL, STATE(WEFT_F32, "p", 2), F(2), D(8),
          STATE(WEFT_F64, "m", 2));
    FAILS(WEFT_E_SHAPE, "the rule's state must be [2], not [3]", UPDATE, NULL, STATE(WEFT_F32, "p", 2), F(2), D(8),
          STATE(WEFT_F32, "m", 3));
    FAILS(WEFT_E_INTERNAL, "the fused program does not fit its call", FUSED, NULL, F(2));
}

Test(graph_infer, communication) {
    wefti_attrs attrs = wefti_no_attrs();
    cr_assert_eq(INFER(ALL_REDUCE, &attrs, F(2), F(3, 4)), WEFT_OK);
    cr_assert_eq(n_types, 2);
    cr_assert(weft_shape_equal(types[1].shape, weft_shape(3, 4)));
    FAILS(WEFT_E_DTYPE, "differ", ALL_REDUCE, &attrs, F(2), D(2));
    attrs.comm.axis = 1;
    attrs.comm.global = weft_shape(2, 12);
    GIVES(WEFT_F32, weft_shape(2, 12), ALL_GATHER, &attrs, F(2, 3));
    FAILS(WEFT_E_SHAPE, "must agree in all axes but axis 1", ALL_GATHER, &attrs, F(3, 3));
    FAILS(WEFT_E_INVALID, "axis 1 is out of range", REDUCE_SCATTER, &attrs, F(3));
    attrs.comm.global = weft_shape(2, 3);
    GIVES(WEFT_F32, weft_shape(2, 3), REDUCE_SCATTER, &attrs, F(2, 12));
    GIVES(WEFT_F32, weft_shape(2, 12), BROADCAST, &attrs, F(2, 12));
    GIVES(WEFT_F32, weft_shape(2, 12), ALL_TO_ALL, &attrs, F(2, 12));
}

Test(graph_infer, codecs) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.codec.codec = WEFT_COMPRESS_FP8;
    attrs.codec.part = 64;
    attrs.codec.count = 3;
    GIVES(WEFT_U8, weft_shape(3, 66), ENCODE, &attrs, F(10, 15));
    GIVES(WEFT_U8, weft_shape(3, 66), ENCODE, &attrs, F(192));
    FAILS(WEFT_E_INVALID, "193 elements do not go into 3 parts of 64", ENCODE, &attrs, F(193));
    FAILS(WEFT_E_DTYPE, "codecs take f32", ENCODE, &attrs, D(10));
    attrs.codec.kept = 2;
    FAILS(WEFT_E_INVALID, "codec 2 does not keep 2 of 64", ENCODE, &attrs, F(10));
    attrs.codec.kept = 0;
    attrs.codec.part = 0;
    FAILS(WEFT_E_INVALID, "does not keep 0 of 0", ENCODE, &attrs, F(10));
    attrs.codec.part = 64;
    attrs.codec.codec = WEFT_COMPRESS_NONE;
    FAILS(WEFT_E_INVALID, "codec 0", ENCODE, &attrs, F(10));
    attrs.codec.codec = WEFT_COMPRESS_POWER_SGD; /* is made of graph operations */
    FAILS(WEFT_E_INVALID, "codec 5", ENCODE, &attrs, F(10));
    attrs.codec.codec = WEFT_COMPRESS_TOP_K;
    attrs.codec.count = 1;
    attrs.codec.kept = 65;
    FAILS(WEFT_E_INVALID, "keep 65 of 64", ENCODE, &attrs, F(10));
    attrs.codec.kept = 5;
    GIVES(WEFT_U8, weft_shape(1, 40), ENCODE, &attrs, F(64));
    attrs.codec.count = 2;
    FAILS(WEFT_E_INVALID, "do not go into 2 parts", ENCODE, &attrs, F(64));
    attrs.codec.count = 60;
    GIVES(WEFT_F32, weft_shape(60), DECODE, &attrs, U8(3, 40));
    attrs.codec.sum = true;
    GIVES(WEFT_F32, weft_shape(60), DECODE, &attrs, U8(3, 40));
    attrs.codec.count = 65;
    FAILS(WEFT_E_SHAPE, "there are not 65 elements in 1 parts of 64", DECODE, &attrs, U8(3, 40));
    attrs.codec.sum = false;
    GIVES(WEFT_F32, weft_shape(65), DECODE, &attrs, U8(3, 40));
    FAILS(WEFT_E_SHAPE, "parts of 64 elements are rows of 40 bytes", DECODE, &attrs, U8(3, 41));
    FAILS(WEFT_E_SHAPE, "rows of 40 bytes", DECODE, &attrs, U8(40));
    FAILS(WEFT_E_DTYPE, "what was encoded is u8", DECODE, &attrs, F(3, 40));
}

Test(graph_infer, many_inputs_are_cut_in_messages) {
    wefti_attrs attrs = wefti_no_attrs();
    FAILS(WEFT_E_SHAPE, "and 2 more: [2] and [2, 2] ('f')", CONCAT, &attrs, F(2), F(2), F(2), F(2), F(2), F(2, 2));
}

/* Operations of a node with these attributes and inputs. */
static double flops(weft_op op, const wefti_attrs *attrs, weft_tensor *const *inputs, int32_t n) {
    weft_tensor *made = wefti_emit(graph, op, attrs, inputs, n, NULL);
    cr_assert(weft_tensor_ok(made), "%s", weft_graph_message(graph));
    double count = wefti_node_flops(made->node);
    weft_graph_release(graph);
    open_graph();
    return count;
}
#define FLOPS(op, attrs, ...)                                                                                          \
    flops(WEFT_OP_##op, attrs, (weft_tensor *[]){__VA_ARGS__},                                                         \
          (int32_t)(sizeof((weft_tensor *[]){__VA_ARGS__}) / sizeof(weft_tensor *)))

Test(graph_infer, counts_operations_of_products) {
    cr_assert_eq(FLOPS(MATMUL, NULL, F(2, 3, 4), F(4, 5)), 2 * 6 * 4 * 5);
    wefti_attrs attrs = wefti_no_attrs();
    attrs.matmul.trans_a = 1;
    cr_assert_eq(FLOPS(MATMUL, &attrs, F(4, 3), F(4, 5)), 2 * 3 * 4 * 5);
    /* All three of a convolution: 8 x 4 x 3 results of 2 images, each of 27 taps; with groups, of as many fewer. */
    attrs = conv();
    attrs.conv.input = weft_shape(2, 3, 6, 5);
    attrs.conv.weight = weft_shape(8, 3, 3, 3);
    cr_assert_eq(FLOPS(CONV2D, &attrs, F(2, 3, 6, 5), F(8, 3, 3, 3)), 2.0 * (2 * 8 * 4 * 3) * 27);
    cr_assert_eq(FLOPS(CONV2D_BACKWARD_INPUT, &attrs, F(2, 8, 4, 3), F(8, 3, 3, 3)), 2.0 * (2 * 8 * 4 * 3) * 27);
    cr_assert_eq(FLOPS(CONV2D_BACKWARD_WEIGHT, &attrs, F(2, 8, 4, 3), F(2, 3, 6, 5)), 2.0 * (2 * 8 * 4 * 3) * 27);
    attrs.conv.groups = 2;
    cr_assert_eq(FLOPS(CONV2D, &attrs, F(2, 6, 6, 5), F(8, 3, 3, 3)), 2.0 * (2 * 8 * 4 * 3) * 27);
    /* Of two heads of 3 queries and 5 keys, where causal ones see 3, 4 and 5 of them: scores, weights and results; backwards
     * the scores again, and the gradients of weights, values, queries and keys. */
    attrs = wefti_no_attrs();
    cr_assert_eq(FLOPS(ATTENTION, &attrs, F(1, 2, 3, 8), F(1, 2, 5, 8), F(1, 2, 5, 4)), 2 * 15 * (2 * (8 + 4) + 5));
    attrs.attention.causal = 1;
    cr_assert_eq(FLOPS(ATTENTION, &attrs, F(1, 2, 3, 8), F(1, 2, 5, 8), F(1, 2, 5, 4)), 2 * 12 * (2 * (8 + 4) + 5));
    attrs.attention.shift = -3; /* 0, 1 and 2; then none; then all */
    cr_assert_eq(FLOPS(ATTENTION, &attrs, F(1, 2, 3, 8), F(1, 2, 5, 8), F(1, 2, 5, 4)), 2 * 3 * (2 * (8 + 4) + 5));
    attrs.attention.shift = -5;
    cr_assert_eq(FLOPS(ATTENTION, &attrs, F(1, 2, 3, 8), F(1, 2, 5, 8), F(1, 2, 5, 4)), 0);
    attrs.attention.shift = 2;
    cr_assert_eq(FLOPS(ATTENTION, &attrs, F(1, 2, 3, 8), F(1, 2, 5, 8), F(1, 2, 5, 4)), 2 * 15 * (2 * (8 + 4) + 5));
    attrs.attention.shift = 0;
    cr_assert_eq(FLOPS(ATTENTION_BACKWARD, &attrs, F(1, 2, 3, 4), F(1, 2, 3, 8), F(1, 2, 5, 8), F(1, 2, 5, 4), F(1, 2, 3, 4), F(1, 2, 3)),
                 2 * 12 * (2 * (3 * 8 + 2 * 4) + 5));
}

Test(graph_infer, products_with_chosen_matrices) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.expert.repeat = 2;
    attrs.expert.experts = 4;
    GIVES(WEFT_F32, weft_shape(6, 7), EXPERT_MATMUL, &attrs, F(3, 5), F(4, 5, 7), I(6));
    GIVES(WEFT_F32, weft_shape(4, 5, 7), EXPERT_MATMUL_BACKWARD_WEIGHT, &attrs, F(3, 5), F(6, 7), I(6));
    FAILS(WEFT_E_SHAPE, "x must be [rows, in] and the index [rows * 2], not [3, 5] and [3]", EXPERT_MATMUL, &attrs, F(3, 5), F(4, 5, 7), I(3));
    FAILS(WEFT_E_SHAPE, "the weights must be [E, in, out] with as many inputs as the rows have, 5", EXPERT_MATMUL, &attrs, F(3, 5), F(4, 7, 5), I(6));
    FAILS(WEFT_E_DTYPE, "must be i32 or i64, not f32", EXPERT_MATMUL, &attrs, F(3, 5), F(4, 5, 7), F(6));
    FAILS(WEFT_E_DTYPE, "differ", EXPERT_MATMUL, &attrs, F(3, 5), D(4, 5, 7), I(6));
    FAILS(WEFT_E_SHAPE, "a row for each of the index's 6", EXPERT_MATMUL_BACKWARD_WEIGHT, &attrs, F(3, 5), F(5, 7), I(6));
    cr_assert_eq(FLOPS(EXPERT_MATMUL, &attrs, F(3, 5), F(4, 5, 7), I(6)), 2 * 6 * 5 * 7);
    cr_assert_eq(FLOPS(EXPERT_MATMUL_BACKWARD_WEIGHT, &attrs, F(3, 5), F(6, 7), I(6)), 2 * 6 * 5 * 7);
    attrs.expert.trans = 1;
    GIVES(WEFT_F32, weft_shape(6, 7), EXPERT_MATMUL, &attrs, F(3, 5), F(4, 7, 5), I(6));
    GIVES(WEFT_F32, weft_shape(4, 7, 5), EXPERT_MATMUL_BACKWARD_WEIGHT, &attrs, F(3, 5), F(6, 7), I(6));
    attrs.expert.experts = 0;
    FAILS(WEFT_E_INVALID, "at least one expert, not 0", EXPERT_MATMUL_BACKWARD_WEIGHT, &attrs, F(3, 5), F(6, 7), I(6));
}

Test(graph_infer, counts_operations_of_the_others) {
    wefti_attrs attrs = wefti_no_attrs();
    cr_assert_eq(FLOPS(EXP, NULL, F(3)), 3);
    cr_assert_eq(FLOPS(ADD, NULL, F(4, 1), F(3)), 12);
    cr_assert_eq(FLOPS(LT, NULL, F(4), F(4)), 0);
    cr_assert_eq(FLOPS(WHERE, NULL, B(4), F(4), F(4)), 0);
    attrs.reduce.axes = 1;
    cr_assert_eq(FLOPS(SUM, &attrs, F(2, 3, 4)), 24);
    attrs = wefti_no_attrs();
    attrs.view.axes[0] = 1;
    cr_assert_eq(FLOPS(PERMUTE, &attrs, F(2, 3)), 0);
    attrs = wefti_no_attrs();
    cr_assert_eq(FLOPS(GATHER, &attrs, F(9, 4), I(3)), 0);
    cr_assert_eq(FLOPS(SCATTER_ADD, &attrs, F(9, 4), I(3), F(3, 4)), 12);
    for (int axis = 0; axis < 2; axis++) attrs.pool.window[axis] = attrs.pool.stride[axis] = 2 + axis;
    attrs.pool.input = weft_shape(2, 3, 4, 6);
    cr_assert_eq(FLOPS(MAX_POOL2D, &attrs, F(2, 3, 4, 6)), 2 * 3 * 4 * 6);
    cr_assert_eq(FLOPS(AVG_POOL2D, &attrs, F(2, 3, 4, 6)), 2 * 3 * 4 * 6);
    cr_assert_eq(FLOPS(MAX_POOL2D_BACKWARD, &attrs, F(2, 3, 2, 2), I(2, 3, 2, 2)), 24);
    cr_assert_eq(FLOPS(MAX_POOL2D_TAKE, &attrs, F(2, 3, 4, 6), I(2, 3, 2, 2)), 0);
    cr_assert_eq(FLOPS(AVG_POOL2D_BACKWARD, &attrs, F(2, 3, 2, 2)), 2 * 3 * 4 * 6);
    attrs = wefti_no_attrs();
    attrs.rows.axes = 1;
    cr_assert_eq(FLOPS(NORMALIZE, &attrs, F(2, 5)), 80);
    cr_assert_eq(FLOPS(NORMALIZE_BACKWARD, &attrs, F(2, 5), F(2, 5), F(2)), 80);
    cr_assert_eq(FLOPS(SOFTMAX, NULL, F(2, 5)), 50);
    cr_assert_eq(FLOPS(LOG_SOFTMAX_BACKWARD, NULL, F(2, 5), F(2, 5)), 50);
    cr_assert_eq(FLOPS(CROSS_ENTROPY, NULL, F(2, 5), I(2)), 50);
    cr_assert_eq(FLOPS(CROSS_ENTROPY_BACKWARD, NULL, F(2), F(2, 5), I(2), F(2)), 50);
    attrs = wefti_no_attrs();
    attrs.rotary.base = 10000;
    cr_assert_eq(FLOPS(ROTARY, &attrs, F(3, 4)), 36);
    weft_solver sgd = weft_sgd(0.1), adam = weft_adam(0.1);
    attrs = wefti_no_attrs();
    attrs.update.rule = wefti_rule_for(&sgd);
#define KEPT(name) weft_state(graph, name, weft_shape(5))
    cr_assert_eq(FLOPS(UPDATE, &attrs, KEPT("w"), F(5), D(WEFTI_HYPER_COUNT)), 20);
    attrs.update.rule = wefti_rule_for(&adam);
    cr_assert_eq(FLOPS(UPDATE, &attrs, KEPT("w"), F(5), D(WEFTI_HYPER_COUNT), KEPT("m"), KEPT("v")), 60);
#undef KEPT
}

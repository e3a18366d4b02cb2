/* Gradients of matrix products, convolutions and pooling. Products are written with transpose flags: nothing moves. */
#include "core/autodiff/autodiff.h"
#include "core/tensor/fp8.h"

#define G call->gy[0]

/* A factor: the tensor, whether transposed, and the 8-bit form that it may be rounded to. */
typedef struct factor {
    weft_tensor *tensor;
    bool         trans;
    int32_t      form;
} factor;

static weft_tensor *product(factor a, factor b) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.matmul.trans_a = a.trans;
    attrs.matmul.trans_b = b.trans;
    attrs.matmul.fp8[0] = a.form;
    attrs.matmul.fp8[1] = b.form;
    return wefti_node2(WEFT_OP_MATMUL, &attrs, a.tensor, b.tensor);
}

/* y = A*B, A = a or its transpose, B likewise: gA = gy*B^T, gB = A^T*gy. Gradients have the form of more range (Micikevicius et al. 2022). */
void wefti_gradient_matmul(wefti_gradient_call *call) {
    bool           ta = call->node->attrs.matmul.trans_a, tb = call->node->attrs.matmul.trans_b;
    const int32_t *form = call->node->attrs.matmul.fp8;
    int32_t        fine = form[0] ? WEFTI_FP8_E5M2 : 0;
    if (call->needed[0]) {
        factor b = {wefti_primal(call, 1), ta ? tb : !tb, form[1]};
        wefti_give(call, 0, ta ? product(b, (factor){G, true, fine}) : product((factor){G, false, fine}, b));
    }
    if (call->needed[1]) {
        factor a = {wefti_primal(call, 0), tb ? ta : !ta, form[0]};
        wefti_give(call, 1, tb ? product((factor){G, true, fine}, a) : product(a, (factor){G, false, fine}));
    }
}

/* ---- rows by the matrix that each chose: two ops, linear in rows, matrices and gradient ---- */

/* g by the matrices, transposed: what it is on the rows of x, which count several times. */
static weft_tensor *expert_rows(wefti_gradient_call *call, weft_tensor *g, weft_tensor *w) {
    int64_t     repeat = call->node->attrs.expert.repeat;
    wefti_attrs attrs = wefti_no_attrs();
    attrs.expert.repeat = 1;
    attrs.expert.trans = !call->node->attrs.expert.trans;
    weft_tensor *rows = wefti_node3(WEFT_OP_EXPERT_MATMUL, &attrs, g, w, wefti_primal(call, 2));
    if (repeat == 1 || wefti_poisoned(rows)) return rows;
    weft_shape x = call->node->inputs[0]->shape;
    return weft_reshape(wefti_summed(weft_reshape(rows, weft_shape(x.dim[0], repeat, x.dim[1])), 2), x);
}

void wefti_gradient_expert_matmul(wefti_gradient_call *call) { /* (x, w, index) */
    if (call->needed[0]) call->gx[0] = expert_rows(call, G, wefti_primal(call, 1));
    if (!call->needed[1]) return;
    wefti_attrs attrs = call->node->attrs;
    attrs.expert.experts = call->node->inputs[1]->shape.dim[0];
    call->gx[1] = wefti_node3(WEFT_OP_EXPERT_MATMUL_BACKWARD_WEIGHT, &attrs, wefti_primal(call, 0), G, wefti_primal(call, 2));
}

void wefti_gradient_expert_matmul_backward_weight(wefti_gradient_call *call) { /* (x, g, index) */
    if (call->needed[0]) call->gx[0] = expert_rows(call, wefti_primal(call, 1), G);
    if (!call->needed[1]) return;
    wefti_attrs attrs = call->node->attrs;
    attrs.expert.experts = 0;
    call->gx[1] = wefti_node3(WEFT_OP_EXPERT_MATMUL, &attrs, wefti_primal(call, 0), G, wefti_primal(call, 2));
}

/* ---- convolution: three ops, each linear in two of image, weight and gradient; each one's gradients are the other two
 * ---- */

/* The same attributes with the shapes that the backward ops need. */
static wefti_attrs conv_attrs(wefti_gradient_call *call, weft_shape input, weft_shape weight) {
    wefti_attrs attrs = call->node->attrs;
    attrs.conv.input = input;
    attrs.conv.weight = weight;
    return attrs;
}

static weft_tensor *conv(wefti_gradient_call *call, weft_tensor *x, weft_tensor *w) {
    weft_shape  none = weft_shape_scalar();
    wefti_attrs attrs = conv_attrs(call, none, none);
    return wefti_node2(WEFT_OP_CONV2D, &attrs, x, w);
}

static weft_tensor *conv_input(wefti_gradient_call *call, weft_tensor *g, weft_tensor *w, weft_shape input) {
    wefti_attrs attrs = conv_attrs(call, input, weft_shape_scalar());
    return wefti_node2(WEFT_OP_CONV2D_BACKWARD_INPUT, &attrs, g, w);
}

static weft_tensor *conv_weight(wefti_gradient_call *call, weft_tensor *g, weft_tensor *x, weft_shape weight) {
    wefti_attrs attrs = conv_attrs(call, weft_shape_scalar(), weight);
    return wefti_node2(WEFT_OP_CONV2D_BACKWARD_WEIGHT, &attrs, g, x);
}

void wefti_gradient_conv2d(wefti_gradient_call *call) {
    weft_shape input = call->node->inputs[0]->shape, weight = call->node->inputs[1]->shape;
    if (call->needed[1]) call->gx[1] = conv_weight(call, G, wefti_primal(call, 0), weight);
    if (call->needed[0]) call->gx[0] = conv_input(call, G, wefti_primal(call, 1), input);
}

void wefti_gradient_conv2d_backward_input(wefti_gradient_call *call) { /* (g, w) */
    if (call->needed[0]) call->gx[0] = conv(call, G, wefti_primal(call, 1));
    if (call->needed[1]) call->gx[1] = conv_weight(call, wefti_primal(call, 0), G, call->node->inputs[1]->shape);
}

void wefti_gradient_conv2d_backward_weight(wefti_gradient_call *call) { /* (g, x) */
    if (call->needed[0]) call->gx[0] = conv(call, wefti_primal(call, 1), G);
    if (call->needed[1]) call->gx[1] = conv_input(call, wefti_primal(call, 0), G, call->node->inputs[1]->shape);
}

/* ---- pooling ---- */

static wefti_attrs pool_attrs(wefti_gradient_call *call, weft_shape input) {
    wefti_attrs attrs = call->node->attrs;
    attrs.pool.input = input;
    return attrs;
}

void wefti_gradient_max_pool2d(wefti_gradient_call *call) {
    wefti_attrs attrs = pool_attrs(call, call->node->inputs[0]->shape);
    if (G) call->gx[0] = wefti_node2(WEFT_OP_MAX_POOL2D_BACKWARD, &attrs, G, wefti_result(call, 1));
}

void wefti_gradient_max_pool2d_backward(wefti_gradient_call *call) {
    wefti_attrs attrs = pool_attrs(call, weft_shape_scalar());
    if (call->needed[0]) call->gx[0] = wefti_node2(WEFT_OP_MAX_POOL2D_TAKE, &attrs, G, wefti_primal(call, 1));
}

void wefti_gradient_max_pool2d_take(wefti_gradient_call *call) {
    wefti_attrs attrs = pool_attrs(call, call->node->inputs[0]->shape);
    if (call->needed[0]) call->gx[0] = wefti_node2(WEFT_OP_MAX_POOL2D_BACKWARD, &attrs, G, wefti_primal(call, 1));
}

void wefti_gradient_avg_pool2d(wefti_gradient_call *call) {
    wefti_attrs attrs = pool_attrs(call, call->node->inputs[0]->shape);
    call->gx[0] = wefti_node1(WEFT_OP_AVG_POOL2D_BACKWARD, &attrs, G);
}

void wefti_gradient_avg_pool2d_backward(wefti_gradient_call *call) {
    wefti_attrs attrs = pool_attrs(call, weft_shape_scalar());
    call->gx[0] = wefti_node1(WEFT_OP_AVG_POOL2D, &attrs, G);
}

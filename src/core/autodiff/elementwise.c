/* Gradients of elementwise ops. With y = f(x): gx = gy * f'(x), written with y where that spares work or lets x go. */
#include <math.h>

#include "core/autodiff/autodiff.h"

#define G call->gy[0]
#define X wefti_primal(call, 0)
#define Y wefti_result(call, 0)

void wefti_gradient_copy(wefti_gradient_call *call) { call->gx[0] = G; }
void wefti_gradient_cast(wefti_gradient_call *call) { call->gx[0] = weft_cast(G, call->node->inputs[0]->dtype); }
void wefti_gradient_neg(wefti_gradient_call *call) { call->gx[0] = wefti_negated(G); }
void wefti_gradient_abs(wefti_gradient_call *call) { call->gx[0] = wefti_times(G, weft_sign(X)); }
void wefti_gradient_square(wefti_gradient_call *call) { call->gx[0] = wefti_times(wefti_scaled(G, 2), X); }
void wefti_gradient_exp(wefti_gradient_call *call) { call->gx[0] = wefti_times(G, Y); }
void wefti_gradient_expm1(wefti_gradient_call *call) { call->gx[0] = wefti_times(G, weft_add_scalar(Y, 1)); }
void wefti_gradient_log(wefti_gradient_call *call) { call->gx[0] = wefti_over(G, X); }
void wefti_gradient_log1p(wefti_gradient_call *call) { call->gx[0] = wefti_over(G, weft_add_scalar(X, 1)); }
void wefti_gradient_sqrt(wefti_gradient_call *call) { call->gx[0] = wefti_over(wefti_scaled(G, 0.5), Y); }
void wefti_gradient_sin(wefti_gradient_call *call) { call->gx[0] = wefti_times(G, weft_cos(X)); }
void wefti_gradient_cos(wefti_gradient_call *call) { call->gx[0] = wefti_times(wefti_negated(G), weft_sin(X)); }
void wefti_gradient_softplus(wefti_gradient_call *call) { call->gx[0] = wefti_times(G, weft_sigmoid(X)); }

void wefti_gradient_rsqrt(wefti_gradient_call *call) {
    weft_tensor *y = Y;
    call->gx[0] = wefti_times(wefti_scaled(G, -0.5), weft_mul(y, weft_square(y)));
}

void wefti_gradient_reciprocal(wefti_gradient_call *call) {
    call->gx[0] = wefti_times(wefti_negated(G), weft_square(Y));
}

/* 1 - x */
static weft_tensor *one_minus(weft_tensor *x) { return weft_sub(weft_scalar(x->graph, x->dtype, 1), x); }

void wefti_gradient_tanh(wefti_gradient_call *call) { call->gx[0] = wefti_times(G, one_minus(weft_square(Y))); }

void wefti_gradient_sigmoid(wefti_gradient_call *call) {
    weft_tensor *y = Y;
    call->gx[0] = wefti_times(G, weft_mul(y, one_minus(y)));
}

void wefti_gradient_erf(wefti_gradient_call *call) {
    weft_tensor *bell = weft_exp(weft_neg(weft_square(X)));
    call->gx[0] = wefti_times(wefti_scaled(G, 2 / sqrt(M_PI)), bell);
}

/* y > 0 exactly where x > 0: reading y, which the next op mostly keeps anyway, lets x be overwritten. */
void wefti_gradient_relu(wefti_gradient_call *call) { call->gx[0] = wefti_node2(WEFT_OP_RELU_BACKWARD, NULL, G, Y); }
void wefti_gradient_gelu(wefti_gradient_call *call) { call->gx[0] = wefti_node2(WEFT_OP_GELU_BACKWARD, NULL, G, X); }
void wefti_gradient_gelu_tanh(wefti_gradient_call *call) {
    call->gx[0] = wefti_node2(WEFT_OP_GELU_TANH_BACKWARD, NULL, G, X);
}
void wefti_gradient_silu(wefti_gradient_call *call) { call->gx[0] = wefti_node2(WEFT_OP_SILU_BACKWARD, NULL, G, X); }

/* g where the mask is true, 0 elsewhere. */
static weft_tensor *masked(weft_tensor *mask, weft_tensor *g) {
    return weft_where(mask, g, weft_scalar(g->graph, g->dtype, 0));
}

void wefti_gradient_clamp(wefti_gradient_call *call) {
    double       lo = call->node->attrs.clamp.lo, hi = call->node->attrs.clamp.hi;
    weft_tensor *x = X, *above = lo == -INFINITY ? NULL : weft_ge_scalar(x, lo),
                *below = hi == INFINITY ? NULL : weft_le_scalar(x, hi);
    weft_tensor *inside = above && below ? weft_and(above, below) : above ? above : below;
    call->gx[0] = inside ? masked(inside, G) : G;
}

void wefti_gradient_dropout(wefti_gradient_call *call) {
    if (call->needed[0]) call->gx[0] = wefti_node2(WEFT_OP_DROPOUT, &call->node->attrs, G, call->node->inputs[1]);
}

void wefti_gradient_mode(wefti_gradient_call *call) {
    wefti_node  *node = call->node;
    weft_tensor *a = node->inputs[0], *b = node->inputs[1], *g = G;
    /* Dropout or nothing of one x: one gradient that is both, in place of a sum with zeros in either mode. */
    if (a->node->op == WEFT_OP_DROPOUT && a->node->inputs[0] == b) {
        weft_tensor *dropped = wefti_node2(WEFT_OP_DROPOUT, &a->node->attrs, g, a->node->inputs[1]);
        call->gx[1] = wefti_node2(WEFT_OP_MODE, NULL, dropped, g);
        return;
    }
    weft_tensor *none = wefti_constant_like(g, 0);
    if (call->needed[0]) call->gx[0] = wefti_node2(WEFT_OP_MODE, NULL, g, none);
    if (call->needed[1]) call->gx[1] = wefti_node2(WEFT_OP_MODE, NULL, none, g);
}

/* ---- two and three inputs ---- */

void wefti_gradient_add(wefti_gradient_call *call) {
    if (call->needed[0]) wefti_give(call, 0, G);
    if (call->needed[1]) wefti_give(call, 1, G);
}

void wefti_gradient_sub(wefti_gradient_call *call) {
    if (call->needed[0]) wefti_give(call, 0, G);
    if (call->needed[1]) wefti_give(call, 1, wefti_negated(G));
}

void wefti_gradient_mul(wefti_gradient_call *call) {
    if (call->needed[0]) wefti_give(call, 0, wefti_times(G, wefti_primal(call, 1)));
    if (call->needed[1]) wefti_give(call, 1, wefti_times(G, wefti_primal(call, 0)));
}

void wefti_gradient_div(wefti_gradient_call *call) {
    weft_tensor *y = wefti_primal(call, 1), *scaled = wefti_over(G, y);
    if (call->needed[0]) wefti_give(call, 0, scaled);
    if (call->needed[1]) wefti_give(call, 1, wefti_negated(wefti_times(scaled, wefti_result(call, 0))));
}

void wefti_gradient_pow(wefti_gradient_call *call) {
    weft_tensor *x = X, *y = wefti_primal(call, 1);
    double       exponent;
    if (call->needed[0] && wefti_is_constant(y, &exponent)) {
        if (exponent != 0)
            wefti_give(call, 0, wefti_times(wefti_scaled(G, exponent), weft_pow_scalar(x, exponent - 1)));
    } else if (call->needed[0]) {
        /* x^0 is 1 everywhere, also at 0, where y*x^(y-1) would be 0 times infinity. */
        weft_tensor *slope = weft_mul(y, weft_pow(x, weft_add_scalar(y, -1)));
        slope = weft_where(weft_eq_scalar(y, 0), weft_scalar(y->graph, y->dtype, 0), slope);
        wefti_give(call, 0, wefti_times(G, slope));
    }
    if (call->needed[1]) {
        /* The logarithm is kept away from 0, where x^y*log(x) goes to 0 for y > 0. */
        weft_tensor *safe = weft_where(weft_eq_scalar(x, 0), weft_scalar(x->graph, x->dtype, 1), x);
        wefti_give(call, 1, wefti_times(G, weft_mul(wefti_result(call, 0), weft_log(safe))));
    }
}

/* Input i wins where it is `better` than the other; ties share. */
static void extreme(wefti_gradient_call *call, weft_op better) {
    weft_tensor *x = X, *y = wefti_primal(call, 1), *tie = weft_eq(x, y), *half = wefti_scaled(G, 0.5);
    for (int32_t i = 0; i < 2; i++) {
        if (!call->needed[i]) continue;
        weft_tensor *wins = i == 0 ? wefti_node2(better, NULL, x, y) : wefti_node2(better, NULL, y, x);
        wefti_give(call, i, weft_where(wins, G, masked(tie, half)));
    }
}

void wefti_gradient_maximum(wefti_gradient_call *call) { extreme(call, WEFT_OP_GT); }
void wefti_gradient_minimum(wefti_gradient_call *call) { extreme(call, WEFT_OP_LT); }

void wefti_gradient_where(wefti_gradient_call *call) {
    weft_tensor *condition = X, *g = G, *none = weft_scalar(g->graph, g->dtype, 0);
    if (call->needed[1]) wefti_give(call, 1, weft_where(condition, g, none));
    if (call->needed[2]) wefti_give(call, 2, weft_where(condition, none, g));
}

/* ---- of gradients: y = g*f'(x), so gg = gy*f'(x) and gx = gy*g*f''(x) ---- */

void wefti_gradient_relu_backward(wefti_gradient_call *call) {
    if (call->needed[0]) wefti_give(call, 0, wefti_node2(WEFT_OP_RELU_BACKWARD, NULL, G, wefti_primal(call, 1)));
}

static void second(wefti_gradient_call *call, weft_tensor *(*second_derivative)(weft_tensor *x)) {
    weft_tensor *x = wefti_primal(call, 1);
    if (call->needed[0]) wefti_give(call, 0, wefti_node2(call->node->op, NULL, G, x));
    if (call->needed[1]) wefti_give(call, 1, wefti_times(wefti_times(G, X), second_derivative(x)));
}

/* phi(x)*(2 - x^2), phi the normal density */
static weft_tensor *gelu_second(weft_tensor *x) {
    weft_tensor *squared = weft_square(x),
                *density = weft_mul_scalar(weft_exp(weft_mul_scalar(squared, -0.5)), 1 / sqrt(2 * M_PI));
    return weft_mul(density, weft_add_scalar(weft_neg(squared), 2));
}

/* With t = tanh(u), u = c*(x + a*x^3): (1 - t^2)*(u' + 3*a*c*x^2 - x*t*u'^2) */
static weft_tensor *gelu_tanh_second(weft_tensor *x) {
    const double c = sqrt(2 / M_PI), a = 0.044715;
    weft_tensor *squared = weft_square(x), *slope = weft_add_scalar(weft_mul_scalar(squared, 3 * a * c), c);
    weft_tensor *t = weft_tanh(weft_mul(x, weft_add_scalar(weft_mul_scalar(squared, a * c), c)));
    weft_tensor *sum =
        weft_sub(weft_add(slope, weft_mul_scalar(squared, 3 * a * c)), weft_mul(weft_mul(x, t), weft_square(slope)));
    return weft_mul(one_minus(weft_square(t)), sum);
}

/* With s = sigmoid(x): s*(1 - s)*(2 + x*(1 - 2*s)) */
static weft_tensor *silu_second(weft_tensor *x) {
    weft_tensor *s = weft_sigmoid(x), *slope = weft_mul(s, one_minus(s));
    return weft_mul(slope, weft_add_scalar(weft_mul(x, weft_add_scalar(weft_mul_scalar(s, -2), 1)), 2));
}

void wefti_gradient_gelu_backward(wefti_gradient_call *call) { second(call, gelu_second); }
void wefti_gradient_gelu_tanh_backward(wefti_gradient_call *call) { second(call, gelu_tanh_second); }
void wefti_gradient_silu_backward(wefti_gradient_call *call) { second(call, silu_second); }

/* Floating-point operations of nodes, counted from shapes: what reports and cost models use. A multiply-add is two, a
 * transcendental function one; moves are none. */
#include "core/graph/internal.h"
#include "core/iface/rule.h"

typedef double flops_rule(const wefti_node *node);

static double elements(const weft_tensor *tensor) { return (double)weft_shape_elements(tensor->shape); }

static double flops_none(const wefti_node *node) { return (void)node, 0; }
static double flops_one(const wefti_node *node) { return elements(&node->outputs[0]); }
static double flops_reduce(const wefti_node *node) { return elements(node->inputs[0]); }
static double flops_scatter_add(const wefti_node *node) { return elements(node->inputs[2]); }
static double flops_normalize(const wefti_node *node) { return 8 * elements(&node->outputs[0]); }
static double flops_softmax(const wefti_node *node) { return 5 * elements(&node->outputs[0]); }
static double flops_softmax_in(const wefti_node *node) { return 5 * elements(node->inputs[0]); }
static double flops_rotary(const wefti_node *node) { return 3 * elements(&node->outputs[0]); }
static double flops_custom(const wefti_node *node) { return (void)node, 0; } /* not known */

static double flops_matmul(const wefti_node *node) {
    weft_shape a = node->inputs[0]->shape;
    return 2 * elements(&node->outputs[0]) * (double)a.dim[a.rank - (node->attrs.matmul.trans_a ? 2 : 1)];
}

/* As if all rows had an expert: how many do is only known when they are there. */
static double flops_expert_matmul(const wefti_node *node) {
    bool backward = node->op == WEFT_OP_EXPERT_MATMUL_BACKWARD_WEIGHT;
    return 2 * elements(backward ? node->inputs[1] : &node->outputs[0]) * (double)node->inputs[0]->shape.dim[1];
}

/* The forward pass and both backward passes multiply the same pairs: every result element with its filter. */
static double flops_conv2d(const wefti_node *node) {
    const weft_tensor *result = node->op == WEFT_OP_CONV2D ? &node->outputs[0] : node->inputs[0];
    weft_shape w = node->op == WEFT_OP_CONV2D_BACKWARD_WEIGHT ? node->attrs.conv.weight : node->inputs[1]->shape;
    return 2 * elements(result) * (double)(w.dim[1] * w.dim[2] * w.dim[3]);
}

static double flops_pool(const wefti_node *node) {
    if (node->op == WEFT_OP_MAX_POOL2D_BACKWARD) return elements(node->inputs[0]);
    const weft_tensor *result = node->op == WEFT_OP_AVG_POOL2D_BACKWARD ? node->inputs[0] : &node->outputs[0];
    return elements(result) * node->attrs.pool.window[0] * node->attrs.pool.window[1];
}

/* Pairs of queries and keys that are looked at. */
static double pairs(const weft_tensor *q, const weft_tensor *k, const wefti_attrs *attrs) {
    double t = (double)q->shape.dim[2], s = (double)k->shape.dim[2], first = s - t + (double)attrs->attention.shift + 1; /* that the first query sees */
    double seen = t * first + t * (t - 1) / 2;
    if (!attrs->attention.causal || first >= s) seen = t * s;
    else if (first + t - 1 <= 0) seen = 0;
    else if (first < 1) seen = (first + t - 1) * (first + t) / 2; /* those before see none */
    return (double)(q->shape.dim[0] * q->shape.dim[1]) * seen;
}

static double flops_attention(const wefti_node *node) {
    double sizes = (double)(node->inputs[0]->shape.dim[3] + node->inputs[2]->shape.dim[3]);
    return pairs(node->inputs[0], node->inputs[1], &node->attrs) * (2 * sizes + 5);
}

static double flops_attention_backward(const wefti_node *node) {
    double d = (double)node->inputs[1]->shape.dim[3], dv = (double)node->inputs[3]->shape.dim[3];
    return pairs(node->inputs[1], node->inputs[2], &node->attrs) * (2 * (3 * d + 2 * dv) + 5);
}

static double flops_update(const wefti_node *node) {
    return elements(node->inputs[0]) * (4 + 4 * (node->n_inputs - 3));
}

static double flops_fused(const wefti_node *node) {
    const wefti_fused *fused = node->attrs.fused.fused;
    return (double)weft_shape_elements(fused->space) * fused->n_instructions;
}

double wefti_node_flops(const wefti_node *node) {
    static flops_rule *const rules[WEFT_OP_COUNT] = {
#define WEFTI_OP(NAME, name, family, in_min, in_max, outs, shape, gradient, shard, flops) \
    [WEFT_OP_##NAME] = flops_##flops,
#define ANY WEFTI_ANY
#include "weft/ops.def"
#undef ANY
#undef WEFTI_OP
    };
    return rules[node->op](node);
}

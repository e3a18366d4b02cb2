/* Mixed precision: the forward graph written once more with its heavy ops in bf16 or f16, appended to the graph that the user built.
 *
 * Every op is of one of three manners. *Lowered* ops (products, convolutions, attention) get all their f32 inputs cast down. *Following*
 * ops compute in the low type where one of their inputs has come to have it, so activations stay low from one product to the next; all
 * of them are computed in f32 inside and rounded once. *Wide* ops (long sums, exponentials, logarithms, powers, comparisons, the
 * application's own) get their inputs cast back to the type that the user gave them. What the user feeds in (targets, weights of samples)
 * and what was computed wide and then spreads over an activation (batch statistics) is never rounded to meet it: there the activation is
 * widened, until it is pooled or meets another one in a sum, for what comes of that is kept for long.
 *
 * With `fp8`, layers (products with a parameter) between the first and the last are marked: their operands may be rounded to 8-bit floats, and the
 * gradient's products then carry such marks too. What becomes of it is the planner's to say, device by device (core/plan/fp8.c).
 *
 * Parameters stay what they were, the f32 master copy, and are cast where they are used; the gradient of that cast widens, so solvers,
 * norms and reductions over ranks and micro-batches work in f32. Evaluators go on with the graph as the user wrote it. Nodes that nothing
 * low reaches are not copied. Linear in the size of the graph. (Micikevicius et al. 2018, "Mixed precision training".) */
#include "core/tensor/fp8.h"
#include "train/trainer.h"

typedef enum manner { LOWERED, FOLLOWING, WIDE } manner;

static manner manner_of(weft_op op) {
    switch (op) {
    case WEFT_OP_MATMUL:
    case WEFT_OP_EXPERT_MATMUL:
    case WEFT_OP_CONV2D:
    case WEFT_OP_ATTENTION: return LOWERED;
    case WEFT_OP_EXP:
    case WEFT_OP_EXPM1:
    case WEFT_OP_LOG:
    case WEFT_OP_LOG1P:
    case WEFT_OP_SQRT:
    case WEFT_OP_RSQRT:
    case WEFT_OP_RECIPROCAL:
    case WEFT_OP_SQUARE:
    case WEFT_OP_SOFTPLUS:
    case WEFT_OP_POW:
    case WEFT_OP_ISFINITE:
    case WEFT_OP_EQ:
    case WEFT_OP_NE:
    case WEFT_OP_LT:
    case WEFT_OP_LE:
    case WEFT_OP_GT:
    case WEFT_OP_GE:
    case WEFT_OP_SUM:
    case WEFT_OP_MEAN:
    case WEFT_OP_EXTENT:
    case WEFT_OP_ARGMAX:
    case WEFT_OP_LOG_SOFTMAX: return WIDE;
    default: break;
    }
    wefti_family family = wefti_ops[op].family;
    return family == WEFTI_CUSTOM || family == WEFTI_EFFECT || family == WEFTI_COMM ? WIDE : FOLLOWING;
}

/* Where a value comes from, through views: an input of the graph, or what is the program's own (parameters, states, constants). */
typedef enum origin { COMPUTED, FED, OWN } origin;

typedef struct lowering {
    weft_graph    *graph;
    weft_dtype     low;
    int32_t        n;      /* nodes that the user built */
    bool          *needed; /* [n] by the loss or an effect */
    origin        *from;   /* [n] */
    bool          *narrow; /* [n] MATMUL: its operands may be 8-bit floats */
    weft_tensor ***at;     /* [n] -> [n_outputs] what stands for the output now */
    weft_tensor ***cast;   /* [n] -> [n_outputs] the same, cast down; NULL: not made yet */
    weft_tensor ***wide;   /* likewise, cast back to the type that the user gave it */
    bool          *soft;   /* [n] of the user's type only because of what must not be rounded: an activation that statistics have scaled */
} lowering;

static weft_tensor *now(const lowering *l, const weft_tensor *tensor) { return l->at[tensor->node->id][tensor->index]; }
static bool         is_low(const lowering *l, const weft_tensor *tensor) { return now(l, tensor)->dtype != tensor->dtype; }

static weft_tensor *lowered(lowering *l, const weft_tensor *tensor) {
    weft_tensor **kept = &l->cast[tensor->node->id][tensor->index];
    const wefti_node *maker = now(l, tensor)->node;
    if (now(l, tensor)->dtype != WEFT_F32) return now(l, tensor);
    if (maker->op == WEFT_OP_CAST && maker->inputs[0]->dtype == l->low) return maker->inputs[0]; /* a layer's parameter in bf16 */
    if (!*kept) *kept = weft_cast(now(l, tensor), l->low);
    return *kept;
}

/* One cast for all who read it so: their gradients then come together before they are rounded. What is recomputed has its own. */
static weft_tensor *widened(lowering *l, const weft_tensor *tensor) {
    weft_tensor **kept = &l->wide[tensor->node->id][tensor->index];
    if (*kept && (*kept)->node->segment == l->graph->segment) return *kept;
    return *kept = weft_cast(now(l, tensor), tensor->dtype);
}

/* Whether input i of a following op is an f32 value that must not be rounded. */
static bool is_precious(const lowering *l, const wefti_node *node, int32_t i) {
    const weft_tensor *x = node->inputs[i];
    if (x->dtype != WEFT_F32 || is_low(l, x) || node->n_inputs < 2) return false;
    if (l->from[x->node->id] != COMPUTED) return l->from[x->node->id] == FED;
    return wefti_op_is_elementwise(node->op) && weft_shape_elements(x->shape) < weft_shape_elements(node->outputs[0].shape);
}

static bool is_activation(const lowering *l, const weft_tensor *x, weft_shape shape) {
    return (is_low(l, x) || l->soft[x->node->id]) && weft_shape_equal(x->shape, shape);
}

/* Where two activations meet (a residual), their sum is an activation again, which is kept for long; what is pooled is kept, too. */
static bool is_kept(const lowering *l, const wefti_node *node) {
    weft_shape shape = node->outputs[0].shape;
    if (wefti_ops[node->op].family == WEFTI_POOL) return is_activation(l, node->inputs[0], node->inputs[0]->shape);
    return node->op == WEFT_OP_ADD && is_activation(l, node->inputs[0], shape) && is_activation(l, node->inputs[1], shape);
}

/* Of a following op: whether it is to compute in the low type. */
static bool goes_low(const lowering *l, const wefti_node *node) {
    bool low = is_kept(l, node);
    for (int32_t i = 0; i < node->n_inputs; i++) {
        const weft_tensor *x = node->inputs[i];
        if ((weft_dtype_is_float(x->dtype) && x->dtype != WEFT_F32) || is_precious(l, node, i)) return false;
        low |= is_low(l, x);
    }
    return low;
}

static origin origin_of(const lowering *l, const wefti_node *node) {
    if (node->op == WEFT_OP_INPUT) return FED;
    if (wefti_ops[node->op].family == WEFTI_LEAF && node->op != WEFT_OP_RANDOM) return OWN;
    return wefti_ops[node->op].family == WEFTI_VIEW || (node->op == WEFT_OP_CAST && l->from[node->inputs[0]->node->id] == OWN) ? l->from[node->inputs[0]->node->id] : COMPUTED;
}

/* The node again with its inputs as its manner wants them; the node itself where they are what they were. */
static weft_status lower_node(lowering *l, wefti_node *node) {
    manner        how = manner_of(node->op);
    weft_tensor **inputs = wefti_graph_memory(l->graph, sizeof *inputs * (size_t)(node->n_inputs + 1));
    bool          low = how == LOWERED || (how == FOLLOWING && goes_low(l, node)), changed = false;
    if (!inputs) return wefti_graph_status(l->graph);
    l->graph->segment = node->segment; /* recomputed with its neighbours, casts too */
    l->graph->wish = node->wish;
    for (int32_t i = 0; i < node->n_inputs; i++) {
        weft_tensor *x = node->inputs[i];
        bool         shrinks = low && x->dtype == WEFT_F32;
        inputs[i] = shrinks ? lowered(l, x) : is_low(l, x) ? widened(l, x) : now(l, x);
        changed |= inputs[i] != x;
    }
    for (int32_t i = 0; i < node->n_inputs && how == FOLLOWING && !low; i++)
        l->soft[node->id] |= node->outputs[0].dtype == WEFT_F32 && is_activation(l, node->inputs[i], node->outputs[0].shape);
    wefti_attrs attrs = node->attrs;
    if (l->narrow[node->id]) attrs.matmul.fp8[0] = attrs.matmul.fp8[1] = WEFTI_FP8_E4M3;
    weft_tensor *first = changed ? wefti_emit(l->graph, node->op, &attrs, inputs, node->n_inputs, node->name) : node->outputs;
    l->graph->segment = 0;
    l->graph->wish = NULL;
    if (wefti_poisoned(first)) return wefti_graph_status(l->graph);
    for (int32_t k = 0; k < node->n_outputs; k++) l->at[node->id][k] = &first->node->outputs[k];
    return WEFT_OK;
}

static weft_status start(lowering *l, const weft_tensor *loss) {
    size_t n = (size_t)l->n;
    l->needed = wefti_graph_memory(l->graph, n);
    l->from = wefti_graph_memory(l->graph, n * sizeof *l->from);
    l->narrow = wefti_graph_memory(l->graph, n * sizeof *l->narrow);
    l->at = wefti_graph_memory(l->graph, n * sizeof *l->at);
    l->cast = wefti_graph_memory(l->graph, n * sizeof *l->cast);
    l->wide = wefti_graph_memory(l->graph, n * sizeof *l->wide);
    l->soft = wefti_graph_memory(l->graph, n * sizeof *l->soft);
    if (!l->needed || !l->from || !l->narrow || !l->at || !l->cast || !l->wide || !l->soft) return wefti_graph_status(l->graph);
    l->needed[loss->node->id] = true;
    for (int32_t i = 0; i < l->graph->n_effects; i++) l->needed[l->graph->effects[i]->id] = true;
    for (int32_t id = l->n - 1; id >= 0; id--) {
        const wefti_node *node = l->graph->nodes[id];
        if (!l->needed[id]) continue;
        for (int32_t i = 0; i < node->n_inputs; i++) l->needed[node->inputs[i]->node->id] = true;
        size_t bytes = sizeof **l->at * (size_t)node->n_outputs;
        l->at[id] = wefti_graph_memory(l->graph, bytes);
        l->cast[id] = wefti_graph_memory(l->graph, bytes);
        l->wide[id] = wefti_graph_memory(l->graph, bytes);
        if (!l->at[id] || !l->cast[id] || !l->wide[id]) return wefti_graph_status(l->graph);
        for (int32_t k = 0; k < node->n_outputs; k++) l->at[id][k] = &node->outputs[k];
    }
    return WEFT_OK;
}

/* Products of a computed value with what is the program's own. */
static bool is_layer(const lowering *l, const wefti_node *node) {
    if (node->op != WEFT_OP_MATMUL) return false;
    return (l->from[node->inputs[0]->node->id] == OWN) != (l->from[node->inputs[1]->node->id] == OWN);
}

/* Finds the layers that may compute in 8-bit floats: parameters have gone into what they read, and another layer follows on the way to the loss. */
static weft_status find_narrow(lowering *l) {
    bool *learned = wefti_graph_memory(l->graph, (size_t)l->n), *followed = wefti_graph_memory(l->graph, (size_t)l->n);
    if (!learned || !followed) return wefti_graph_status(l->graph);
    for (int32_t id = 0; id < l->n; id++) {
        const wefti_node *node = l->graph->nodes[id];
        learned[id] = node->op == WEFT_OP_PARAMETER;
        for (int32_t i = 0; i < node->n_inputs; i++) learned[id] |= learned[node->inputs[i]->node->id];
    }
    for (int32_t id = l->n - 1; id >= 0; id--) {
        const wefti_node *node = l->graph->nodes[id];
        if (!l->needed[id]) continue;
        bool layer = is_layer(l, node);
        if (layer) l->narrow[id] = followed[id] && learned[node->inputs[l->from[node->inputs[0]->node->id] == OWN]->node->id];
        for (int32_t i = 0; i < node->n_inputs; i++) followed[node->inputs[i]->node->id] |= layer || followed[id];
    }
    return WEFT_OK;
}

weft_status wefti_precision_lower(weft_program *program) {
    weft_dtype low = program->strategy.precision;
    if (program->strategy.fp8 && low != WEFT_BF16)
        return wefti_fail(WEFT_E_INVALID, "strategy: fp8 with precision %s; it is with bf16, in which all else is computed", weft_dtype_name(low));
    if (low == WEFT_F32) return WEFT_OK;
    if (low != WEFT_BF16 && low != WEFT_F16)
        return wefti_fail(WEFT_E_INVALID, "strategy: precision %s; it is f32 (as the program is written), bf16 or f16", weft_dtype_name(low));
    if (program->solver.kind == WEFT_LBFGS)
        return wefti_fail(WEFT_E_UNSUPPORTED, "strategy: precision %s and L-BFGS: its line search needs the loss in full; leave precision 0",
                          weft_dtype_name(low));
    weft_graph *graph = program->loss->graph;
    lowering    l = {.graph = graph, .low = low, .n = graph->n_nodes};
    WEFTI_TRY(start(&l, program->loss));
    for (int32_t id = 0; id < l.n; id++)
        if (l.needed[id]) l.from[id] = origin_of(&l, graph->nodes[id]);
    if (program->strategy.fp8) WEFTI_TRY(find_narrow(&l));
    for (int32_t id = 0; id < l.n; id++) {
        wefti_node *node = graph->nodes[id];
        if (!l.needed[id]) continue;
        if (wefti_ops[node->op].family != WEFTI_LEAF) WEFTI_TRY(lower_node(&l, node));
    }
    for (int32_t i = 0; i < graph->n_effects; i++) graph->effects[i] = l.at[graph->effects[i]->id][0]->node;
    program->loss = is_low(&l, program->loss) ? widened(&l, program->loss) : now(&l, program->loss);
    return wefti_graph_status(graph);
}

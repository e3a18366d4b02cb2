/* The walk: marks what depends on the wanted tensors, then goes back from the loss and asks each node's rule for the
 * gradients of its inputs, adding up where a tensor has several users. Only nodes on a way from a wanted tensor to the
 * loss are asked.
 *
 * Recomputation: where the backward pass of a node in a segment reads a value made in that segment, it reads a copy
 * that is computed again from what enters the segment. Copies are made once each, in forward order, and only where they
 * are read.
 *
 * Cost: linear in nodes and edges, plus a scan of the segment for each value that is copied. */
#include <stdio.h>
#include <string.h>

#include "core/autodiff/autodiff.h"

static wefti_gradient_rule *const rules[WEFT_OP_COUNT] = {
#define WEFTI_OP(NAME, name, family, in_min, in_max, outs, shape, gradient, shard, flops) \
    [WEFT_OP_##NAME] = wefti_gradient_##gradient,
#define ANY WEFTI_ANY
#include "weft/ops.def"
#undef ANY
#undef WEFTI_OP
};

typedef struct wefti_gradient_walk {
    weft_graph   *graph;
    int32_t       n_nodes;   /* of the graph before it is extended, up to the loss */
    int32_t       n_tensors, widest; /* outputs of these; most inputs of one */
    int32_t      *first;     /* [n_nodes] number of a node's output 0 */
    bool         *needed;    /* [n_tensors] depends on a wanted tensor */
    weft_tensor **gradient;  /* [n_tensors] so far */
    wefti_piece **pieces;    /* [n_tensors] gradients of slices that are not in it yet */
    wefti_node  **copy;      /* [n_nodes] of a recomputed node */
    bool         *wanted;    /* [n_nodes] scratch: to be copied */
    weft_tensor **gy, **gx;  /* [widest outputs], [widest inputs] */
    bool         *input_needed;
    void         *memory;
    size_t        memory_bytes;
} walk;

void wefti_gradient_zero(wefti_gradient_call *call) { (void)call; }

void wefti_gradient_refused(wefti_gradient_call *call) {
    wefti_graph_fail(
        call->graph, WEFT_E_UNSUPPORTED,
        "gradients: %s '%s' cannot be differentiated%s: put weft_detach around it if its gradient is not wanted",
        wefti_ops[call->node->op].name, call->node->name,
        call->node->flags & WEFTI_NODE_BACKWARD ? " again (it is itself part of a gradient)" : "");
}

static int32_t number(const walk *w, const weft_tensor *tensor) { return w->first[tensor->node->id] + tensor->index; }

/* ---- recomputation ---- */

/* Whether the value is cheap enough to be kept, or must not be made twice. */
static bool kept(weft_op op) {
    wefti_family family = wefti_ops[op].family;
    return (family == WEFTI_LEAF && op != WEFT_OP_RANDOM) || family == WEFTI_EFFECT || family == WEFTI_COMM;
}

static bool within(const weft_tensor *tensor, int32_t segment) {
    return segment != 0 && tensor->node->segment == segment && !kept(tensor->node->op);
}

static void copy_node(walk *w, wefti_node *node) {
    weft_graph   *graph = w->graph;
    weft_tensor **inputs = wefti_graph_memory(graph, sizeof *inputs * (size_t)(node->n_inputs + 1));
    if (!inputs) return;
    for (int32_t i = 0; i < node->n_inputs; i++) {
        weft_tensor *x = node->inputs[i];
        inputs[i] = within(x, node->segment) ? &w->copy[x->node->id]->outputs[x->index] : x;
    }
    weft_tensor *made;
    char         scope[WEFTI_SCOPE_BYTES];
    memcpy(scope, graph->scope, sizeof scope);
    graph->scope[0] = '\0'; /* the name has its own already */
    graph->flags |= WEFTI_NODE_RECOMPUTED;
    graph->segment = node->segment;
    const wefti_wish *wish = graph->wish;
    int32_t           beside = graph->beside;
    graph->wish = node->wish;
    graph->beside = node->id + 1;
    if (node->op == WEFT_OP_RANDOM)
        made = wefti_emit_leaf(graph, node->op, &node->attrs, node->outputs[0].dtype, node->outputs[0].shape,
                               node->leaf, node->name);
    else
        made = wefti_emit(graph, node->op, &node->attrs, inputs, node->n_inputs, node->name);
    graph->segment = 0;
    graph->wish = wish;
    graph->beside = beside;
    graph->flags &= ~(uint32_t)WEFTI_NODE_RECOMPUTED;
    memcpy(graph->scope, scope, sizeof scope);
    w->copy[node->id] = made->node;
}

static weft_tensor *recomputed(walk *w, weft_tensor *tensor) {
    wefti_node *node = tensor->node;
    if (!w->copy[node->id]) {
        int32_t lowest = node->id;
        w->wanted[node->id] = true;
        for (int32_t id = node->id; id >= lowest; id--) {
            if (!w->wanted[id]) continue;
            for (int32_t i = 0; i < w->graph->nodes[id]->n_inputs; i++) {
                weft_tensor *x = w->graph->nodes[id]->inputs[i];
                if (!within(x, node->segment) || w->copy[x->node->id]) continue;
                w->wanted[x->node->id] = true;
                if (x->node->id < lowest) lowest = x->node->id;
            }
        }
        for (int32_t id = lowest; id <= node->id; id++) {
            if (w->wanted[id] && w->graph->status == WEFT_OK) copy_node(w, w->graph->nodes[id]);
            w->wanted[id] = false;
        }
    }
    wefti_node *copy = w->copy[node->id];
    return copy ? &copy->outputs[tensor->index] : &w->graph->poison;
}

weft_tensor *wefti_primal(wefti_gradient_call *call, int32_t i) {
    weft_tensor *x = call->node->inputs[i];
    return within(x, call->node->segment) ? recomputed(call->walk, x) : x;
}

weft_tensor *wefti_result(wefti_gradient_call *call, int32_t k) {
    weft_tensor *y = &call->node->outputs[k];
    return within(y, call->node->segment) ? recomputed(call->walk, y) : y;
}

/* ---- what rules give ---- */

void wefti_give(wefti_gradient_call *call, int32_t i, weft_tensor *gradient) {
    call->gx[i] = wefti_summed_to(gradient, call->node->inputs[i]->shape);
}

weft_tensor *wefti_incoming(wefti_gradient_call *call, int32_t k) {
    return call->gy[k] ? call->gy[k] : wefti_constant_like(&call->node->outputs[k], 0);
}

/* ---- the walk ---- */

static weft_status open_walk(walk *w, weft_graph *graph, int32_t n_nodes) {
    *w = (walk){.graph = graph, .n_nodes = n_nodes};
    size_t outputs = 1;
    for (int32_t id = 0; id < n_nodes; id++) {
        const wefti_node *node = graph->nodes[id];
        w->n_tensors += node->n_outputs;
        if (node->n_inputs > w->widest) w->widest = node->n_inputs;
        if ((size_t)node->n_outputs > outputs) outputs = (size_t)node->n_outputs;
    }
    size_t nodes = (size_t)n_nodes, tensors = (size_t)w->n_tensors, inputs = (size_t)w->widest + 1;
    w->memory_bytes =
        (nodes + 2 * tensors + outputs + inputs) * sizeof(void *) + nodes * sizeof(int32_t) + tensors + nodes + inputs;
    WEFTI_TRY(wefti_alloc(w->memory_bytes, "gradients", &w->memory));
    char *at = w->memory; /* pointers first, bytes last: everything stays aligned */
    w->gradient = (weft_tensor **)at, at += tensors * sizeof(void *);
    w->pieces = (wefti_piece **)at, at += tensors * sizeof(void *);
    w->copy = (wefti_node **)at, at += nodes * sizeof(void *);
    w->gy = (weft_tensor **)at, at += outputs * sizeof(void *);
    w->gx = (weft_tensor **)at, at += inputs * sizeof(void *);
    w->first = (int32_t *)at, at += nodes * sizeof(int32_t);
    w->needed = (bool *)at, at += tensors;
    w->wanted = (bool *)at, at += nodes;
    w->input_needed = (bool *)at;
    for (int32_t id = 0, count = 0; id < n_nodes; count += graph->nodes[id++]->n_outputs) w->first[id] = count;
    return WEFT_OK;
}

/* Marks what depends on a wanted tensor through ops that have gradients. */
static void mark(walk *w, weft_tensor *const *wrt, int32_t count) {
    for (int32_t i = 0; i < count; i++)
        if (wrt[i]->node->id < w->n_nodes) w->needed[number(w, wrt[i])] = true;
    for (int32_t id = 0; id < w->n_nodes; id++) {
        const wefti_node *node = w->graph->nodes[id];
        if (rules[node->op] == wefti_gradient_zero) continue;
        bool any = false;
        for (int32_t i = 0; i < node->n_inputs && !any; i++) any = w->needed[number(w, node->inputs[i])];
        for (int32_t k = 0; any && k < node->n_outputs; k++)
            if (weft_dtype_is_float(node->outputs[k].dtype)) w->needed[w->first[id] + k] = true;
    }
}

/* The gradient of a tensor all of whose users have been asked; NULL where there is none. */
static weft_tensor *whole_gradient(walk *w, weft_tensor *x) {
    int32_t at = number(w, x);
    if (w->pieces[at]) {
        weft_tensor *joined = wefti_joined(x, w->pieces[at]);
        w->pieces[at] = NULL;
        w->gradient[at] = w->gradient[at] ? wefti_plus(w->gradient[at], joined) : joined;
    }
    return w->gradient[at];
}

/* Keeps the gradient of a slice for whole_gradient; false where the slice is not of that kind. */
static bool keep_piece(walk *w, wefti_node *node, weft_tensor *gradient) {
    int32_t axis;
    if (node->op != WEFT_OP_SLICE || !wefti_slice_is_piece(node, &axis)) return false;
    wefti_piece *piece = wefti_graph_memory(w->graph, sizeof *piece);
    if (!piece) return true; /* latched */
    wefti_piece **list = &w->pieces[number(w, node->inputs[0])];
    *piece = (wefti_piece){*list, axis, node->attrs.slice.start[axis], gradient};
    *list = piece;
    return true;
}

static void accumulate(walk *w, wefti_node *node, int32_t i, weft_tensor *gradient) {
    weft_tensor *x = node->inputs[i];
    if (wefti_poisoned(gradient)) return;
    if (gradient->dtype != x->dtype || !weft_shape_equal(gradient->shape, x->shape)) {
        wefti_graph_fail(
            w->graph, WEFT_E_INTERNAL, "gradients: the rule of %s '%s' gave %s %s for input %d, which is %s %s",
            wefti_ops[node->op].name, node->name, weft_dtype_name(gradient->dtype),
            weft_shape_text(gradient->shape).text, i, weft_dtype_name(x->dtype), weft_shape_text(x->shape).text);
        return;
    }
    weft_tensor **sum = &w->gradient[number(w, x)];
    *sum = *sum ? wefti_plus(*sum, gradient) : gradient;
}

static void differentiate(walk *w, wefti_node *node) {
    bool reached = false, any = false;
    weft_graph *graph = w->graph;
    if (rules[node->op] == wefti_gradient_zero) return;
    for (int32_t i = 0; i < node->n_inputs; i++) {
        w->gx[i] = NULL;
        w->input_needed[i] = w->needed[number(w, node->inputs[i])];
        any |= w->input_needed[i];
    }
    if (!any) return;
    /* What is added is called after the node: "conv1/conv2d_backward_weight_57". */
    snprintf(graph->scope, sizeof graph->scope, "%.200s/", node->name);
    graph->beside = node->id + 1;
    for (int32_t k = 0; k < node->n_outputs; k++) {
        w->gy[k] = whole_gradient(w, &node->outputs[k]);
        reached |= w->gy[k] != NULL;
    }
    if (!reached || graph->status != WEFT_OK || keep_piece(w, node, w->gy[0])) return;
    wefti_gradient_call call = {graph, node, w->gy, w->gx, w->input_needed, w};
    rules[node->op](&call);
    for (int32_t i = 0; i < node->n_inputs && graph->status == WEFT_OK; i++)
        if (w->gx[i] && w->input_needed[i]) accumulate(w, node, i, w->gx[i]);
}

static weft_status check(weft_tensor *loss, weft_tensor *const *wrt, int32_t count) {
    weft_graph *graph = loss->graph;
    for (int32_t i = 0; i < count; i++) {
        if (!wrt[i] || wrt[i]->graph != graph) {
            wefti_graph_fail(graph, WEFT_E_INVALID,
                             "gradients: tensor %d ('%s') is NULL or does not belong to the graph of '%s'", i,
                             weft_tensor_name(wrt[i]), loss->node->name);
        } else if (!weft_dtype_is_float(wrt[i]->dtype)) {
            wefti_graph_fail(graph, WEFT_E_DTYPE, "gradients: '%s' is %s: only floating tensors have gradients",
                             wrt[i]->node->name, weft_dtype_name(wrt[i]->dtype));
        }
    }
    if (weft_shape_elements(loss->shape) != 1)
        wefti_graph_fail(graph, WEFT_E_SHAPE,
                         "gradients: the loss '%s' must have one element, not %s: take weft_mean or weft_sum of it",
                         loss->node->name, weft_shape_text(loss->shape).text);
    else if (!weft_dtype_is_float(loss->dtype))
        wefti_graph_fail(graph, WEFT_E_DTYPE, "gradients: the loss '%s' must be floating, not %s", loss->node->name,
                         weft_dtype_name(loss->dtype));
    return wefti_graph_status(graph);
}

static weft_status run(weft_tensor *loss, weft_tensor *const *wrt, int32_t count, weft_tensor **gradients_out) {
    weft_graph *graph = loss->graph;
    walk        w;
    WEFTI_TRY(check(loss, wrt, count));
    weft_status status = open_walk(&w, graph, loss->node->id + 1);
    if (status != WEFT_OK) {
        wefti_graph_fail(graph, status, "gradients of '%s': %s", loss->node->name, weft_error_message());
        return status;
    }
    mark(&w, wrt, count);
    w.gradient[number(&w, loss)] = wefti_constant_like(loss, 1);
    for (int32_t id = loss->node->id; id >= 0 && graph->status == WEFT_OK; id--) differentiate(&w, graph->nodes[id]);
    graph->scope[0] = '\0';
    for (int32_t i = 0; i < count; i++) {
        graph->beside = wrt[i]->node->id + 1;
        weft_tensor *gradient = wrt[i]->node->id < w.n_nodes ? whole_gradient(&w, wrt[i]) : NULL;
        gradients_out[i] = gradient ? gradient : wefti_constant_like(wrt[i], 0);
    }
    graph->beside = 0;
    wefti_free(w.memory, w.memory_bytes);
    return wefti_graph_status(graph);
}

weft_status weft_gradients(weft_tensor *loss, weft_tensor *const *wrt, int32_t count, weft_tensor **gradients_out) {
    weft_graph *graph = loss ? loss->graph : NULL;
    weft_status status;
    if (!graph) {
        status = wefti_fail(WEFT_E_INVALID, "gradients: the loss is NULL or belongs to no graph");
    } else if ((status = wefti_graph_status(graph)) == WEFT_OK) {
        uint32_t flags = graph->flags;
        int32_t  segment = graph->segment;
        char     scope[WEFTI_SCOPE_BYTES];
        memcpy(scope, graph->scope, sizeof scope);
        graph->flags |= WEFTI_NODE_BACKWARD;
        graph->segment = 0;
        graph->scope[0] = '\0';
        status = run(loss, wrt, count, gradients_out);
        graph->flags = flags;
        graph->segment = segment;
        memcpy(graph->scope, scope, sizeof scope);
    }
    for (int32_t i = 0; status != WEFT_OK && i < count; i++) gradients_out[i] = graph ? &graph->poison : &wefti_orphan;
    return status;
}

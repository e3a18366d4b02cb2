/* The evaluator of layouts over the tensor axis: writes one rank's graph, node by node.
 *
 * A tensor of the source has up to three kinds of value: its own (in its layout), the whole, and parts of other layouts that somebody asks
 * for. Each is made once, when first asked for, in the order of the source's ids, which is an order of execution here too. What is whole is cut
 * without a message: by computing less, where it is elementwise or a generator, else by a window. Parts become whole by ALL_GATHER,
 * sums by ALL_REDUCE, sums of which each rank wants its part by REDUCE_SCATTER.
 *
 * Every rank emits the same nodes in the same order; only windows and shifts depend on the rank. Linear in nodes, inputs and layouts asked. */
#include "parallel/tensor.h"

#include <string.h>

typedef struct cut {
    wefti_layout layout;
    weft_tensor *value;
    struct cut  *next;
} cut;

typedef struct piece {
    weft_tensor *own, *whole;
    cut         *cuts;
} piece;

typedef struct evaluator {
    const wefti_tensor_split   *split;
    wefti_tensor_layouts        layouts;
    struct wefti_tensor_emitter emitter;
    weft_graph                 *to;
    piece                     **pieces; /* [n_nodes] -> [n_outputs] */
} evaluator;

static weft_tensor *whole(evaluator *e, weft_tensor *tensor);
static weft_tensor *as_cut(evaluator *e, weft_tensor *tensor, const wefti_layout *layout);

static piece *piece_of(evaluator *e, const weft_tensor *tensor) { return &e->pieces[tensor->node->id][tensor->index]; }
static const wefti_layout *layout_of(evaluator *e, const weft_tensor *tensor) { return &wefti_tensor_value_of(&e->layouts, tensor)->layout; }

static weft_tensor *emit(evaluator *e, weft_op op, const wefti_attrs *attrs, weft_tensor *a) { return wefti_emit(e->to, op, attrs, &a, 1, NULL); }

static bool is_generator(const wefti_node *node) { return node->op == WEFT_OP_FULL || node->op == WEFT_OP_RANDOM || node->op == WEFT_OP_ARANGE; }

static weft_tensor *generate(evaluator *e, const wefti_node *node, const wefti_attrs *attrs, weft_shape shape) {
    return wefti_emit_leaf(e->to, node->op, attrs, node->outputs[0].dtype, shape, node->leaf, node->name);
}

/* --- nodes --- */

/* What is emitted for a node is of its pass, its micro-batch and its stage; what only brings values to where they are wanted goes with these. */
static void begin_node(evaluator *e, const wefti_node *node) {
    e->to->flags = node->flags;
    e->to->segment = node->segment;
    e->to->place = node->place;
    e->to->micro = node->micro;
}

static void end_node(evaluator *e) {
    e->to->flags = 0;
    e->to->segment = e->to->place = e->to->micro = 0;
}

static weft_tensor *leaf(evaluator *e, const wefti_node *node) {
    weft_shape shape = node->outputs[0].shape;
    if (is_generator(node)) return generate(e, node, &node->attrs, shape);
    const wefti_layout *layout = layout_of(e, &node->outputs[0]);
    if (node->op == WEFT_OP_INPUT && layout->kind == WEFTI_SPLIT) { /* fed as a whole, and cut here */
        weft_tensor *fed = wefti_emit_leaf(e->to, node->op, &node->attrs, node->outputs[0].dtype, shape, node->leaf, node->name);
        e->pieces[node->id][0].whole = fed;
        return wefti_tensor_part(&e->emitter, fed, layout);
    }
    wefti_window_of window = wefti_tensor_window(e->split, layout, shape);
    begin_node(e, node);
    weft_tensor *made = wefti_emit_leaf(e->to, node->op, &node->attrs, node->outputs[0].dtype, wefti_window_shape(&window, shape), node->leaf, node->name);
    end_node(e);
    if (node->op == WEFT_OP_STEP) e->to->step = made;
    return made;
}

/* A whole tensor as a contribution to a sum: one rank brings it. All ranks emit the same nodes, so that their plans send the same messages: that
 * this is the first one is read from a constant that planning does not look into. */
static weft_tensor *as_sum(evaluator *e, weft_tensor *all) {
    wefti_attrs attrs = wefti_no_attrs(), zeros = wefti_no_attrs();
    if (wefti_poisoned(all)) return all;
    attrs.arange.start = e->split->rank;
    weft_tensor *place = wefti_emit_leaf(e->to, WEFT_OP_ARANGE, &attrs, WEFT_I64, weft_shape(1), NULL, NULL);
    weft_tensor *zero = wefti_emit_leaf(e->to, WEFT_OP_FULL, &zeros, all->dtype, weft_shape_scalar(), NULL, NULL);
    weft_tensor *none = wefti_emit_leaf(e->to, WEFT_OP_FULL, &zeros, WEFT_I64, weft_shape_scalar(), NULL, NULL);
    return weft_where(weft_eq(weft_reshape(place, weft_shape_scalar()), none), all, zero);
}

static weft_tensor *own(evaluator *e, weft_tensor *tensor);

/* This rank's part of a sum. */
static weft_tensor *scatter(evaluator *e, weft_tensor *mine, wefti_reduce_op reduce, const wefti_layout *layout) {
    wefti_attrs attrs = wefti_no_attrs();
    if (wefti_poisoned(mine) || e->split->ranks == 1) return mine;
    attrs.comm.reduce = reduce;
    attrs.comm.axis = layout->axis;
    attrs.comm.group = e->split->group;
    attrs.comm.global = mine->shape;
    attrs.comm.global.dim[layout->axis] /= e->split->ranks;
    return emit(e, WEFT_OP_REDUCE_SCATTER, &attrs, mine);
}

static weft_tensor *deliver(evaluator *e, const wefti_node *node, int32_t i) {
    weft_tensor        *tensor = node->inputs[i];
    const wefti_layout *want = &e->layouts.wanted[node->id][i], *has = layout_of(e, tensor);
    if (want->kind == WEFTI_WHOLE) return whole(e, tensor);
    if (want->kind == WEFTI_SPLIT) return as_cut(e, tensor, want);
    return has->kind == WEFTI_PARTIAL ? own(e, tensor) : as_sum(e, whole(e, tensor));
}

static weft_tensor *copy_node(evaluator *e, const wefti_node *node, const wefti_attrs *attrs, weft_tensor *const *inputs) {
    begin_node(e, node);
    weft_tensor *made = wefti_emit(e->to, node->op, attrs, inputs, node->n_inputs, node->name);
    end_node(e);
    if (node->op == WEFT_OP_ASSIGN) wefti_graph_effect(made);
    return made;
}

/* Partial sums that start from something start from it once. */
static bool brings_base(const wefti_node *node, const wefti_layout *out, int32_t i) {
    return node->op == WEFT_OP_SCATTER_ADD && i == 0 && out->kind == WEFTI_PARTIAL && !wefti_is_zero(node->inputs[0]);
}

static void make(evaluator *e, const wefti_node *node) {
    wefti_layout  *layouts = wefti_graph_memory(e->to, sizeof *layouts * (size_t)(node->n_outputs + 1));
    weft_tensor  **inputs = wefti_graph_memory(e->to, sizeof *inputs * (size_t)(node->n_inputs + node->n_outputs + 1));
    if (!layouts || !inputs) return;
    weft_tensor **made = inputs + node->n_inputs;
    for (int32_t o = 0; o < node->n_outputs; o++) {
        const wefti_tensor_value *value = &e->layouts.values[node->id][o];
        layouts[o] = value->completed || value->landed ? wefti_layout_partial(value->completed_by) : value->layout;
    }
    for (int32_t i = 0; i < node->n_inputs; i++) {
        inputs[i] = deliver(e, node, i);
        if (brings_base(node, &layouts[0], i)) inputs[i] = as_sum(e, inputs[i]);
    }
    wefti_tensor_way way = wefti_tensor_way_of(node, e->layouts.wanted[node->id], layouts);
    if (way == WEFTI_AS_IT_IS) {
        wefti_attrs attrs = node->attrs;
        wefti_tensor_attrs(e->split, node, e->layouts.wanted[node->id], layouts, &attrs);
        made[0] = copy_node(e, node, &attrs, inputs);
        for (int32_t o = 1; o < node->n_outputs; o++) made[o] = wefti_output(made[0], o);
    } else {
        begin_node(e, node);
        wefti_tensor_emit_way(&e->emitter, way, node, e->layouts.wanted[node->id], layouts, inputs, made);
        end_node(e);
    }
    for (int32_t o = 0; o < node->n_outputs; o++) {
        if (e->layouts.values[node->id][o].completed) made[o] = wefti_tensor_all_reduce(&e->emitter, made[o], layouts[o].reduce);
        if (e->layouts.values[node->id][o].landed) made[o] = scatter(e, made[o], layouts[o].reduce, &e->layouts.values[node->id][o].layout);
        e->pieces[node->id][o].own = made[o];
    }
}

/* A tensor in its own layout. */
static weft_tensor *own(evaluator *e, weft_tensor *tensor) {
    piece *p = piece_of(e, tensor);
    if (!p->own && wefti_ops[tensor->node->op].family == WEFTI_LEAF) p->own = leaf(e, tensor->node);
    if (!p->own) make(e, tensor->node);
    return p->own ? p->own : &e->to->poison;
}

static weft_tensor *whole(evaluator *e, weft_tensor *tensor) {
    piece              *p = piece_of(e, tensor);
    const wefti_layout *layout = layout_of(e, tensor);
    if (layout->kind == WEFTI_WHOLE) return own(e, tensor);
    if (p->whole) return p->whole;
    weft_tensor *mine = own(e, tensor);
    p->whole = layout->kind == WEFTI_SPLIT ? wefti_tensor_whole(&e->emitter, mine, layout) : wefti_tensor_all_reduce(&e->emitter, mine, layout->reduce);
    return p->whole;
}

/* --- parts of what is whole --- */

static weft_tensor *cut_generator(evaluator *e, const wefti_node *node, const wefti_layout *layout) {
    weft_shape         shape = node->outputs[0].shape;
    const wefti_window *w = &node->attrs.random.window;
    bool                other = node->op == WEFT_OP_RANDOM && w->split && w->axis != layout->axis && w->global != shape.dim[w->axis];
    if (node->op == WEFT_OP_ARANGE || other || (node->op == WEFT_OP_RANDOM && !wefti_layout_is_plain(layout)))
        return wefti_tensor_part(&e->emitter, whole(e, &node->outputs[0]), layout);
    wefti_attrs attrs = node->attrs;
    wefti_tensor_attrs(e->split, node, NULL, layout, &attrs);
    shape.dim[layout->axis] /= e->split->ranks;
    return generate(e, node, &attrs, shape);
}

/* What works element by element or repeats its input, on parts of its inputs. */
static weft_tensor *cut_through(evaluator *e, const wefti_node *node, const wefti_layout *layout) {
    wefti_attrs  attrs = node->attrs;
    wefti_layout wanted[3] = {wefti_layout_whole(), wefti_layout_whole(), wefti_layout_whole()};
    weft_tensor *inputs[3];
    wefti_tensor_attrs(e->split, node, wanted, layout, &attrs);
    for (int32_t i = 0; i < node->n_inputs; i++) {
        weft_tensor *in = node->inputs[i];
        wefti_layout part = *layout;
        part.axis -= node->outputs[0].shape.rank - in->shape.rank;
        bool has = node->op != WEFT_OP_MEAN_BACKWARD && part.axis >= 0 && in->shape.dim[part.axis] == node->outputs[0].shape.dim[layout->axis];
        inputs[i] = has ? as_cut(e, in, &part) : whole(e, in);
    }
    return copy_node(e, node, &attrs, inputs);
}

static bool goes_through(const wefti_node *node, const wefti_layout *layout) {
    if (node->op == WEFT_OP_DROPOUT) return false; /* its window: wefti_tensor_way_of */
    if (node->op == WEFT_OP_MEAN_BACKWARD) return node->attrs.reduce.axes >> layout->axis & 1u;
    return node->op == WEFT_OP_EXPAND || wefti_op_is_elementwise(node->op);
}

static weft_tensor *cut_whole(evaluator *e, weft_tensor *tensor, const wefti_layout *layout) {
    const wefti_node *node = tensor->node;
    if (is_generator(node)) return cut_generator(e, node, layout);
    if (goes_through(node, layout) && !wefti_tensor_value_of(&e->layouts, tensor)->completed) return cut_through(e, node, layout);
    return wefti_tensor_part(&e->emitter, whole(e, tensor), layout);
}

static weft_tensor *as_cut(evaluator *e, weft_tensor *tensor, const wefti_layout *layout) {
    piece                    *p = piece_of(e, tensor);
    const wefti_tensor_value *value = wefti_tensor_value_of(&e->layouts, tensor);
    if (wefti_layout_same(&value->layout, layout)) return own(e, tensor);
    for (cut *known = p->cuts; known; known = known->next)
        if (wefti_layout_same(&known->layout, layout)) return known->value;
    cut *fresh = wefti_graph_memory(e->to, sizeof *fresh);
    if (!fresh) return &e->to->poison;
    bool scatters = value->layout.kind == WEFTI_PARTIAL && wefti_layout_is_plain(layout) && !value->gathered;
    fresh->layout = *layout;
    fresh->value = scatters                                ? scatter(e, own(e, tensor), layout_of(e, tensor)->reduce, layout)
                   : value->layout.kind == WEFTI_WHOLE     ? cut_whole(e, tensor, layout)
                                                           : wefti_tensor_part(&e->emitter, whole(e, tensor), layout);
    fresh->next = p->cuts; /* linked last: cutting may itself have added cuts */
    p->cuts = fresh;
    return fresh->value;
}

/* --- the whole graph --- */

static bool is_effect(const weft_graph *graph, const wefti_node *node) {
    if (node->op == WEFT_OP_UPDATE) return true;
    for (int32_t i = 0; i < graph->n_effects; i++)
        if (graph->effects[i] == node) return true;
    return false;
}

/* What is whole and only ever cut need not be made whole first. Everything else is made in its turn. */
static void emit_all(evaluator *e, weft_graph *from, weft_tensor *const *outputs, int32_t n_outputs, bool training, weft_tensor **outputs_out) {
    for (int32_t id = 0; id < from->n_nodes && e->to->status == WEFT_OK; id++) {
        const wefti_node *node = from->nodes[id];
        if (!e->layouts.needed[id] || is_generator(node)) continue;
        bool turn = wefti_ops[node->op].family == WEFTI_LEAF || wefti_op_is_message(node->op) || (training && is_effect(from, node));
        for (int32_t o = 0; o < node->n_outputs; o++) turn = turn || e->layouts.values[id][o].layout.kind != WEFTI_WHOLE || e->layouts.values[id][o].made;
        if (turn) (void)own(e, (weft_tensor *)&node->outputs[0]);
    }
    for (int32_t i = 0; i < n_outputs; i++) outputs_out[i] = whole(e, outputs[i]);
}

static weft_status open_evaluator(evaluator *e, weft_graph *source) {
    size_t        n = (size_t)source->n_nodes;
    wefti_layout *leaves = wefti_graph_memory(e->to, sizeof *leaves * (n + 1));
    e->pieces = wefti_graph_memory(e->to, sizeof *e->pieces * (n + 1));
    if (!leaves || !e->pieces) return wefti_graph_status(e->to);
    for (int32_t id = 0; id < source->n_nodes; id++) {
        const wefti_node *node = source->nodes[id];
        e->pieces[id] = wefti_graph_memory(e->to, sizeof **e->pieces * (size_t)(node->n_outputs + 1));
        if (!e->pieces[id]) return wefti_graph_status(e->to);
        if (wefti_tensor_has_window(e->split, node)) leaves[id] = wefti_tensor_layout_of(e->split, node);
    }
    wefti_tensor_analyse(&e->layouts, leaves);
    return WEFT_OK;
}

weft_status wefti_tensor_graph(const wefti_tensor_split *split, weft_graph *source, weft_tensor *const *outputs, int32_t n_outputs, bool training,
                               weft_graph **graph_out, weft_tensor **outputs_out) {
    *graph_out = NULL;
    evaluator e = {.split = split};
    WEFTI_TRY(wefti_graph_status(source));
    WEFTI_TRY(wefti_tensor_layouts_open(split, source, outputs, n_outputs, training, &e.layouts));
    weft_status status = weft_graph_create(&(weft_graph_options){.seed = source->seed, .name = source->name}, &e.to);
    e.emitter = (struct wefti_tensor_emitter){split, e.to};
    if (status == WEFT_OK) status = open_evaluator(&e, source);
    if (status == WEFT_OK) {
        emit_all(&e, source, outputs, n_outputs, training, outputs_out);
        status = wefti_graph_status(e.to);
    }
    wefti_tensor_layouts_close(&e.layouts);
    if (status == WEFT_OK) {
        *graph_out = e.to;
        return WEFT_OK;
    }
    weft_graph_release(e.to);
    return wefti_while(status, "splitting parameters over %d ranks", split->ranks);
}

/* Attention around a ring, and the choice of what is split along time.
 *
 * Forward: in step s a rank has the keys and values of the rank s places before it, sends them on, and attends to them. What blocks give is put together by their
 * log-sum-exps, which gives what one pass over all keys would, to rounding; how far a query sees in a block is the blocks' distance (attrs.attention.shift), so
 * blocks that lie ahead cost next to nothing. Backward the whole's log-sum-exp makes each block's part exact; gradients of keys and values travel one hop
 * behind their block, gathering what each rank adds, and come home with the last hop.
 *
 * Memory: two blocks of keys and values beside a rank's own, and backwards as many of their gradients. Messages: of n ranks 2(n-1) forward; 2(n-1) and 2n backward, each of a
 * block; they are sent before the block that they carry is computed with, and so travel meanwhile. All ranks emit the same nodes. */
#include "parallel/sequence.h"

#include <string.h>

typedef struct wefti_tensor_emitter emitter;

/* --- the ring --- */

static weft_tensor *emit(const emitter *e, weft_op op, const wefti_attrs *attrs, weft_tensor *const *inputs, int32_t n) { return wefti_emit(e->to, op, attrs, inputs, n, NULL); }

/* Sends to the next rank, and gives what the one before sends of the same shape. What was sent may be forgotten when the next block's goes on its way,
 * `each` messages later. */
static weft_tensor *pass_on(const emitter *e, weft_tensor *x, int32_t each) {
    wefti_attrs attrs = wefti_no_attrs();
    int32_t     ranks = e->split->ranks;
    if (wefti_poisoned(x)) return x;
    attrs.comm.group = e->split->group;
    attrs.comm.peer = (e->split->rank + 1) % ranks;
    attrs.comm.axis = each;
    (void)emit(e, WEFT_OP_SEND, &attrs, &x, 1);
    attrs.comm.axis = 0;
    attrs.comm.peer = (e->split->rank + ranks - 1) % ranks;
    attrs.comm.dtype = (int32_t)x->dtype;
    attrs.comm.global = x->shape;
    return emit(e, WEFT_OP_RECEIVE, &attrs, NULL, 0);
}

/* How much further queries see in the block that a rank has in step `step` than in their own. */
static wefti_attrs attrs_of(const emitter *e, const wefti_node *node, int32_t step, int64_t block) {
    wefti_attrs attrs = node->attrs;
    int32_t     ranks = e->split->ranks, from = (e->split->rank + ranks - step) % ranks;
    if (attrs.attention.causal) attrs.attention.shift += (e->split->rank - from) * block;
    return attrs;
}

static weft_tensor *wide(weft_tensor *x) { return weft_cast(x, wefti_poisoned(x) || x->dtype != WEFT_F64 ? WEFT_F32 : WEFT_F64); }
static weft_tensor *beside(weft_tensor *row) { return wefti_poisoned(row) ? row : weft_unsqueeze(row, -1); }

/* Results of two sets of keys, each with its log-sum-exp, as of both; of the first every query has seen a key. */
static void join(weft_tensor **o, weft_tensor **lse, weft_tensor *more, weft_tensor *more_lse) {
    weft_tensor *most = weft_maximum(*lse, more_lse);
    weft_tensor *both = weft_add(weft_log(weft_add(weft_exp(weft_sub(*lse, most)), weft_exp(weft_sub(more_lse, most)))), most);
    *o = weft_add(weft_mul(*o, beside(weft_exp(weft_sub(*lse, both)))), weft_mul(wide(more), beside(weft_exp(weft_sub(more_lse, both)))));
    *lse = both;
}

static void forward(const emitter *e, const wefti_node *node, weft_tensor *const *inputs, weft_tensor **outputs_out) {
    weft_tensor *k = inputs[1], *v = inputs[2], *o = NULL, *lse = NULL;
    int64_t      block = k->shape.dim[2];
    for (int32_t step = 0; step < e->split->ranks; step++) {
        bool         last = step + 1 == e->split->ranks;
        wefti_attrs  attrs = attrs_of(e, node, step, block);
        weft_tensor *next_k = last ? NULL : pass_on(e, k, 2), *next_v = last ? NULL : pass_on(e, v, 2);
        weft_tensor *part = emit(e, WEFT_OP_ATTENTION, &attrs, (weft_tensor *[]){inputs[0], k, v}, 3);
        if (wefti_poisoned(part)) {
            outputs_out[0] = outputs_out[1] = part;
            return;
        }
        if (step == 0) o = wide(part), lse = wefti_output(part, 1);
        else join(&o, &lse, part, wefti_output(part, 1));
        k = next_k;
        v = next_v;
    }
    outputs_out[0] = weft_cast(o, node->outputs[0].dtype);
    outputs_out[1] = lse;
}

/* Inputs: g, q, k, v, o, lse. Sums are wide until they are home. */
static void backward(const emitter *e, const wefti_node *node, weft_tensor *const *inputs, weft_tensor **outputs_out) {
    weft_tensor *k = inputs[2], *v = inputs[3], *dq = NULL, *dk = NULL, *dv = NULL;
    int64_t      block = k->shape.dim[2];
    for (int32_t step = 0; step < e->split->ranks; step++) {
        bool         last = step + 1 == e->split->ranks;
        wefti_attrs  attrs = attrs_of(e, node, step, block);
        weft_tensor *next_k = last ? NULL : pass_on(e, k, 4), *next_v = last ? NULL : pass_on(e, v, 4);
        weft_tensor *part = emit(e, WEFT_OP_ATTENTION_BACKWARD, &attrs, (weft_tensor *[]){inputs[0], inputs[1], k, v, inputs[4], inputs[5]}, 6);
        if (wefti_poisoned(part)) {
            outputs_out[0] = outputs_out[1] = outputs_out[2] = part;
            return;
        }
        weft_tensor *more[3] = {wide(part), wide(wefti_output(part, 1)), wide(wefti_output(part, 2))};
        dq = step == 0 ? more[0] : weft_add(dq, more[0]);
        dk = pass_on(e, step == 0 ? more[1] : weft_add(dk, more[1]), 4);
        dv = pass_on(e, step == 0 ? more[2] : weft_add(dv, more[2]), 4);
        k = next_k;
        v = next_v;
    }
    outputs_out[0] = weft_cast(dq, node->outputs[0].dtype);
    outputs_out[1] = weft_cast(dk, node->outputs[1].dtype);
    outputs_out[2] = weft_cast(dv, node->outputs[2].dtype);
}

void wefti_sequence_attention(const emitter *e, const wefti_node *node, weft_tensor *const *inputs, weft_tensor **outputs_out) {
    for (int32_t i = 0; i < node->n_inputs; i++)
        if (wefti_poisoned(inputs[i])) {
            for (int32_t o = 0; o < node->n_outputs; o++) outputs_out[o] = inputs[i];
            return;
        }
    if (node->op == WEFT_OP_ATTENTION) forward(e, node, inputs, outputs_out);
    else backward(e, node, inputs, outputs_out);
}

/* --- the choice --- */

typedef struct chooser {
    wefti_tensor_split  *split;
    weft_graph          *graph;
    wefti_tensor_layouts layouts;
    wefti_layout        *leaf;   /* [n_nodes] */
    const wefti_node    *attention; /* the first one */
    int64_t              time, rows;
} chooser;

static weft_status find_time(chooser *c) {
    for (int32_t id = 0; id < c->graph->n_nodes && !c->attention; id++)
        if (c->layouts.needed[id] && c->graph->nodes[id]->op == WEFT_OP_ATTENTION) c->attention = c->graph->nodes[id];
    if (!c->attention)
        return wefti_fail(WEFT_E_INVALID, "strategy: sequence = %d, and the program has no attention, whose queries' axis is time: leave sequence 0", c->split->ranks);
    c->time = c->attention->inputs[0]->shape.dim[2];
    if (c->time % c->split->ranks == 0 && c->time > 0) return WEFT_OK;
    return wefti_fail(WEFT_E_INVALID, "strategy: sequence = %d: the queries of '%s' %s have %lld places along axis 2, which %d ranks do not divide evenly: take a divisor, or pad",
                      c->split->ranks, c->attention->name, weft_shape_text(c->attention->inputs[0]->shape).text, (long long)c->time, c->split->ranks);
}

/* What counts samples and is as long as time along another axis. */
static int32_t time_axis(const chooser *c, const wefti_node *node) {
    weft_shape shape = node->outputs[0].shape;
    for (int32_t axis = 0; node->op == WEFT_OP_INPUT && node->leaf->batch_axis >= 0 && axis < shape.rank; axis++)
        if (axis != node->leaf->batch_axis && shape.dim[axis] == c->time) return axis;
    return -1;
}

static weft_status cut_inputs(chooser *c) {
    WEFTI_TRY(wefti_alloc((size_t)c->graph->n_leaves * sizeof *c->split->windows, "windows on what is fed", &c->split->windows));
    WEFTI_TRY(wefti_alloc((size_t)c->graph->n_leaves * sizeof *c->split->units, "windows on what is fed", &c->split->units));
    c->split->windows_room = c->graph->n_leaves;
    (void)wefti_tensor_pattern(c->split, (int64_t[]){1}, 1);
    for (int32_t id = 0; id < c->graph->n_nodes; id++) {
        const wefti_node *node = c->graph->nodes[id];
        int32_t           axis = time_axis(c, node);
        char             *name = NULL;
        if (!c->layouts.needed[id] || axis < 0) continue;
        WEFTI_TRY(wefti_copy_string(node->name, &name));
        c->leaf[id] = wefti_tensor_split_of(c->split, axis, c->time, 0);
        c->split->windows[c->split->n_windows++] = (wefti_named_window){name, wefti_tensor_window(c->split, &c->leaf[id], node->outputs[0].shape)};
    }
    if (c->split->n_windows > 0) return WEFT_OK;
    return wefti_fail(WEFT_E_INVALID, "strategy: sequence = %d: no input has an axis of %lld, the queries' of '%s', beside that of samples", c->split->ranks,
                      (long long)c->time, c->attention->name);
}

/* Whether an op needs all of a tensor of which a rank has a stretch. What is as small as a parameter's gradient may be put together, and
 * what are a few whole numbers for each place, as choices of experts, which are counted in the order of all of them. */
static bool needs_all(const chooser *c, const wefti_node *node, int32_t i) {
    const weft_tensor  *x = node->inputs[i];
    const wefti_layout *has = &wefti_tensor_value_of(&c->layouts, x)->layout, *want = &c->layouts.wanted[node->id][i];
    if (has->kind != WEFTI_SPLIT || wefti_layout_same(has, want) || node->op == WEFT_OP_UPDATE || node->op == WEFT_OP_ASSIGN) return false;
    if (!weft_dtype_is_float(x->dtype)) return false;
    return weft_shape_elements(x->shape) >= c->rows * c->time;
}

static weft_status check(chooser *c) {
    for (int32_t id = 0; id < c->graph->n_nodes; id++) {
        const wefti_node *node = c->graph->nodes[id];
        for (int32_t i = 0; c->layouts.needed[id] && i < node->n_inputs; i++) {
            const wefti_layout *has = &wefti_tensor_value_of(&c->layouts, node->inputs[i])->layout;
            if (needs_all(c, node, i))
                return wefti_fail(WEFT_E_INVALID, "strategy: sequence = %d: %s '%s' needs all %lld along axis %d of '%s' %s, of which a rank has 1/%d", c->split->ranks,
                                  wefti_ops[node->op].name, node->name, (long long)node->inputs[i]->shape.dim[has->axis], has->axis, node->inputs[i]->node->name,
                                  weft_shape_text(node->inputs[i]->shape).text, c->split->ranks);
        }
        const wefti_layout *out = c->layouts.needed[id] && node->op == WEFT_OP_ATTENTION ? &c->layouts.values[id][0].layout : NULL;
        if (out && (out->kind != WEFTI_SPLIT || out->axis != 2))
            return wefti_fail(WEFT_E_INVALID, "strategy: sequence = %d: attention '%s' %s is not over time as what is fed is, or its keys %s are not those of its queries",
                              c->split->ranks, node->name, weft_shape_text(node->inputs[0]->shape).text, weft_shape_text(node->inputs[1]->shape).text);
    }
    return WEFT_OK;
}

static weft_status write_notes(chooser *c) {
    wefti_text *text = &c->split->notes;
    wefti_text_add(text, "sequence: over %d ranks, each has %lld of %lld places\n", c->split->ranks, (long long)(c->time / c->split->ranks), (long long)c->time);
    for (int32_t i = 0; i < c->split->n_windows; i++)
        wefti_text_add(text, "  '%s' is split along axis %d\n", c->split->windows[i].name, c->split->windows[i].window.axis);
    return text->failed ? wefti_fail(WEFT_E_NO_MEMORY, "no memory for the text about the sequence split") : WEFT_OK;
}

weft_status wefti_sequence_choose(int32_t rank, int32_t ranks, int64_t group, weft_graph *graph, weft_tensor *const *outputs, int32_t n_outputs,
                                  wefti_tensor_split *split) {
    chooser     c = {.split = split, .graph = graph};
    size_t      bytes = (size_t)graph->n_nodes * sizeof *c.leaf;
    weft_status status;
    *split = (wefti_tensor_split){.along = WEFTI_MESH_SEQUENCE, .rank = rank, .ranks = ranks, .group = group};
    WEFTI_TRY_GOTO(wefti_tensor_layouts_open(split, graph, outputs, n_outputs, true, &c.layouts), done);
    WEFTI_TRY_GOTO(wefti_alloc(bytes, "a sequence split", &c.leaf), done);
    WEFTI_TRY_GOTO(find_time(&c), done);
    WEFTI_TRY_GOTO(cut_inputs(&c), done);
    c.rows = c.attention->inputs[0]->shape.dim[0];
    wefti_tensor_analyse(&c.layouts, c.leaf);
    WEFTI_TRY_GOTO(check(&c), done);
    status = write_notes(&c);
done:
    wefti_free(c.leaf, bytes);
    wefti_tensor_layouts_close(&c.layouts);
    if (status != WEFT_OK) wefti_tensor_release(split);
    return status;
}

/* Attention around a ring, and the choice of what is split along time.
 *
 * Forward: in step s a rank has the keys and values of the rank s places before it, sends them on, and attends to them. What blocks give is put together by their
 * log-sum-exps, which gives what one pass over all keys would, to rounding. Backward the whole's log-sum-exp makes each block's part exact; gradients of keys and values
 * travel one hop behind their block, gathering what each rank adds, and come home with the last hop.
 *
 * Under a causal mask time is folded (zig-zag; Grattafiori et al. 2024): of 2n blocks rank r has r and 2n-1-r, so that all have as many pairs of queries and keys, in every step. Of another
 * rank's two blocks exactly two of the four pairs with one's own are seen, and these wholly: one's second block sees its first one; and either one's first block sees that too
 * (it comes from a lower rank), or one's second block sees its second one. Which, is a matter of where slices begin, and of a constant that planning does not look
 * into: so all ranks have the same graph. Where 2n does not divide time, a rank has one stretch, and an attribute (attrs.attention.shift) says how far queries see in a block.
 *
 * Memory: two blocks of keys and values beside a rank's own, and backwards as many of their gradients. Messages: of n ranks 2(n-1) forward; 2(n-1) and 2n backward, each of a
 * block; they are sent before the block that they carry is computed with, and so travel meanwhile. */
#include "parallel/sequence.h"

#include <math.h>
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

static weft_tensor *wide(weft_tensor *x) { return weft_cast(x, wefti_poisoned(x) || x->dtype != WEFT_F64 ? WEFT_F32 : WEFT_F64); }
static weft_tensor *beside(weft_tensor *row) { return wefti_poisoned(row) ? row : weft_unsqueeze(row, -1); }

/* One attention on one rank: in how many blocks time is here, and in a step, whose keys and values these are. */
typedef struct ring {
    const emitter    *e;
    const wefti_node *node;
    int32_t           blocks;  /* 2: of which a query block sees another's key block wholly or not at all */
    int32_t           step;
    weft_tensor      *lower;   /* bool: they are of a lower rank; NULL: nobody asks */
} ring;

bool wefti_sequence_folds(const wefti_node *attention) { return !attention->attrs.attention.causal || attention->attrs.attention.shift == 0; }

static bool is_lower(const ring *r) { return r->e->split->rank >= r->step; }

static void begin_step(ring *r, int32_t step) {
    r->step = step;
    if (r->blocks == 1 || step == 0) return;
    wefti_attrs attrs = wefti_no_attrs(), none = wefti_no_attrs();
    attrs.arange.start = r->e->split->rank - step;
    weft_tensor *place = wefti_emit_leaf(r->e->to, WEFT_OP_ARANGE, &attrs, WEFT_I64, weft_shape(1), NULL, NULL);
    r->lower = weft_ge(weft_reshape(place, weft_shape_scalar()), wefti_emit_leaf(r->e->to, WEFT_OP_FULL, &none, WEFT_I64, weft_shape_scalar(), NULL, NULL));
}

/* One of the blocks of something that has time along axis 2. */
static weft_tensor *block(const ring *r, weft_tensor *x, int32_t which) {
    if (r->blocks == 1 || wefti_poisoned(x)) return x;
    return wefti_tensor_slice(r->e, x, 2, x->shape.dim[2] / 2 * which, x->shape.dim[2] / 2);
}
static weft_tensor *joined(const ring *r, weft_tensor *const *blocks) { return wefti_poisoned(blocks[0]) ? blocks[0] : wefti_tensor_concat(r->e, blocks, r->blocks, 2); }

/* Products of a step are as many as blocks; of queries and keys these ones: the first, of two, is with a lower and a higher rank the same. */
static weft_tensor *queries(const ring *r, weft_tensor *x, int32_t product) { return block(r, x, product == 0 || !is_lower(r) ? r->blocks - 1 : 0); }
static weft_tensor *keys(const ring *r, weft_tensor *x, int32_t product) { return block(r, x, product == 0 || is_lower(r) ? 0 : 1); }

/* x where it is of that block, else the number. */
static weft_tensor *where_of(const ring *r, weft_tensor *x, int32_t which, double number) {
    wefti_attrs attrs = wefti_no_attrs();
    if (wefti_poisoned(x)) return x;
    attrs.full.value = number;
    weft_tensor *other = wefti_emit_leaf(r->e->to, WEFT_OP_FULL, &attrs, x->dtype, weft_shape_scalar(), NULL, NULL);
    return which == 0 ? weft_where(r->lower, x, other) : weft_where(r->lower, other, x);
}

/* How much further queries see in the block that a rank has in this step than in their own. */
static wefti_attrs attrs_of(const ring *r, int64_t extent) {
    wefti_attrs attrs = r->node->attrs;
    int32_t     ranks = r->e->split->ranks, from = (r->e->split->rank + ranks - r->step) % ranks;
    if (r->blocks == 2) attrs.attention.causal = r->step == 0;
    else if (attrs.attention.causal) attrs.attention.shift += (r->e->split->rank - from) * extent;
    return attrs;
}

/* --- forward --- */

/* Results of two sets of keys, each with its log-sum-exp, as of both; of the first every query has seen a key. */
static void join(weft_tensor **o, weft_tensor **lse, weft_tensor *more, weft_tensor *more_lse) {
    weft_tensor *most = weft_maximum(*lse, more_lse);
    weft_tensor *both = weft_add(weft_log(weft_add(weft_exp(weft_sub(*lse, most)), weft_exp(weft_sub(more_lse, most)))), most);
    *o = weft_add(weft_mul(*o, beside(weft_exp(weft_sub(*lse, both)))), weft_mul(wide(more), beside(weft_exp(weft_sub(more_lse, both)))));
    *lse = both;
}

static bool attend(const ring *r, weft_tensor *q, weft_tensor *k, weft_tensor *v, weft_tensor **o, weft_tensor **lse) {
    for (int32_t product = 0; product < (r->step == 0 ? 1 : r->blocks); product++) {
        wefti_attrs  attrs = attrs_of(r, k->shape.dim[2]);
        weft_tensor *some[3] = {queries(r, q, product), keys(r, k, product), keys(r, v, product)}, *all[3] = {q, k, v};
        weft_tensor *part = emit(r->e, WEFT_OP_ATTENTION, &attrs, r->step == 0 ? all : some, 3);
        if (wefti_poisoned(part)) return false;
        weft_tensor *part_lse = wefti_output(part, 1);
        for (int32_t b = 0; b < r->blocks; b++)
            if (r->step == 0) o[b] = block(r, wide(part), b), lse[b] = block(r, part_lse, b);
            else if (product == 1) join(&o[b], &lse[b], part, where_of(r, part_lse, b, -(double)INFINITY));
            else if (b == r->blocks - 1) join(&o[b], &lse[b], part, part_lse);
    }
    return true;
}

static void forward(ring *r, weft_tensor *const *inputs, weft_tensor **outputs_out) {
    const emitter *e = r->e;
    weft_tensor   *k = inputs[1], *v = inputs[2], *o[2], *lse[2];
    for (int32_t step = 0; step < e->split->ranks; step++) {
        bool         last = step + 1 == e->split->ranks;
        weft_tensor *next_k = last ? NULL : pass_on(e, k, 2), *next_v = last ? NULL : pass_on(e, v, 2);
        begin_step(r, step);
        if (!attend(r, inputs[0], k, v, o, lse)) {
            outputs_out[0] = outputs_out[1] = &e->to->poison;
            return;
        }
        k = next_k;
        v = next_v;
    }
    outputs_out[0] = weft_cast(joined(r, o), r->node->outputs[0].dtype);
    outputs_out[1] = joined(r, lse);
}

/* --- backward --- */

/* Of keys that are two blocks, what both products give for them. */
static weft_tensor *of_keys(const ring *r, weft_tensor *first, weft_tensor *second) {
    weft_tensor *blocks[2] = {weft_add(first, where_of(r, second, 0, 0)), where_of(r, second, 1, 0)};
    return joined(r, blocks);
}

/* What a step's block adds to the gradients of queries, by block, of keys, and of values. Inputs: g, q, k, v, o, lse, with the block's k and v. */
static bool attend_back(const ring *r, weft_tensor *const *inputs, weft_tensor **dq, weft_tensor **dk_out, weft_tensor **dv_out) {
    weft_tensor *more[2][3];
    int32_t      products = r->step == 0 ? 1 : r->blocks;
    for (int32_t product = 0; product < products; product++) {
        wefti_attrs  attrs = attrs_of(r, inputs[2]->shape.dim[2]);
        weft_tensor *some[6];
        for (int32_t i = 0; i < 6; i++) some[i] = r->step == 0 ? inputs[i] : i == 2 || i == 3 ? keys(r, inputs[i], product) : queries(r, inputs[i], product);
        weft_tensor *part = emit(r->e, WEFT_OP_ATTENTION_BACKWARD, &attrs, some, 6);
        if (wefti_poisoned(part)) return false;
        for (int32_t i = 0; i < 3; i++) more[product][i] = wide(i ? wefti_output(part, i) : part);
    }
    for (int32_t b = 0; b < r->blocks; b++) {
        if (r->step == 0) dq[b] = block(r, more[0][0], b);
        else if (b == r->blocks - 1) dq[b] = weft_add(dq[b], more[0][0]);
        if (products == 2) dq[b] = weft_add(dq[b], where_of(r, more[1][0], b, 0));
    }
    *dk_out = products == 2 ? of_keys(r, more[0][1], more[1][1]) : more[0][1];
    *dv_out = products == 2 ? of_keys(r, more[0][2], more[1][2]) : more[0][2];
    return true;
}

/* Sums are wide until they are home. */
static void backward(ring *r, weft_tensor *const *inputs, weft_tensor **outputs_out) {
    const emitter *e = r->e;
    weft_tensor   *of[6], *dq[2], *dk = NULL, *dv = NULL, *more_k, *more_v;
    for (int32_t i = 0; i < 6; i++) of[i] = inputs[i];
    for (int32_t step = 0; step < e->split->ranks; step++) {
        bool         last = step + 1 == e->split->ranks;
        weft_tensor *next_k = last ? NULL : pass_on(e, of[2], 4), *next_v = last ? NULL : pass_on(e, of[3], 4);
        begin_step(r, step);
        if (!attend_back(r, of, dq, &more_k, &more_v)) {
            outputs_out[0] = outputs_out[1] = outputs_out[2] = &e->to->poison;
            return;
        }
        dk = pass_on(e, step == 0 ? more_k : weft_add(dk, more_k), 4);
        dv = pass_on(e, step == 0 ? more_v : weft_add(dv, more_v), 4);
        of[2] = next_k;
        of[3] = next_v;
    }
    outputs_out[0] = weft_cast(joined(r, dq), r->node->outputs[0].dtype);
    outputs_out[1] = weft_cast(dk, r->node->outputs[1].dtype);
    outputs_out[2] = weft_cast(dv, r->node->outputs[2].dtype);
}

void wefti_sequence_attention(const emitter *e, const wefti_node *node, weft_tensor *const *inputs, weft_tensor **outputs_out) {
    for (int32_t i = 0; i < node->n_inputs; i++)
        if (wefti_poisoned(inputs[i])) {
            for (int32_t o = 0; o < node->n_outputs; o++) outputs_out[o] = inputs[i];
            return;
        }
    ring r = {.e = e, .node = node, .blocks = e->split->folded && node->attrs.attention.causal ? 2 : 1};
    if (node->op == WEFT_OP_ATTENTION) forward(&r, inputs, outputs_out);
    else backward(&r, inputs, outputs_out);
}

/* --- the choice --- */

typedef struct chooser {
    wefti_tensor_split  *split;
    weft_graph          *graph;
    wefti_tensor_layouts layouts;
    wefti_layout        *leaf;   /* [n_nodes] */
    const wefti_node    *attention; /* the first one */
    int64_t              time, rows;
    bool                 causal; /* some attention is */
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

/* Queries that see no later keys have the more to do the later they are: then each rank has some from either end. */
static void choose_folds(chooser *c) {
    bool all = c->time % (2 * c->split->ranks) == 0;
    for (int32_t id = 0; id < c->graph->n_nodes; id++) {
        const wefti_node *node = c->graph->nodes[id];
        if (!c->layouts.needed[id] || node->op != WEFT_OP_ATTENTION) continue;
        c->causal = c->causal || node->attrs.attention.causal;
        all = all && wefti_sequence_folds(node);
    }
    c->split->folded = c->causal && all;
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
    const char *how = c->split->folded ? ", half of them from either end, so that all see as many keys"
                      : c->causal      ? ", one behind the other: the last ranks' see most keys (twice the ranks do not divide time, or queries see further than to themselves)"
                                       : "";
    wefti_text_add(text, "sequence: over %d ranks, each has %lld of %lld places%s\n", c->split->ranks, (long long)(c->time / c->split->ranks), (long long)c->time, how);
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
    choose_folds(&c);
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

/* The evaluator of expert parallelism: writes one rank's graph, node by node, in the order of the source's ids.
 *
 * A tensor of the source has one of three forms. *Local*: as it is. *Away*: a row for each choice, on the rank that has the choice's expert, in a buffer of the
 * trip that brought it there. *Window*: the part of an [E, ...] tensor that belongs to this rank's experts; of a sum that ranks have yet to add up it
 * is complete over the expert group. A tensor is brought into another form when that is first asked for: there and back by a trip's exchanges; from
 * window to whole by ALL_GATHER, or zeros around it where it is part of a sum; from whole to window by slicing, or REDUCE_SCATTER. Whatever
 * has no rule here wants local inputs, which is always right.
 *
 * A trip belongs to one tensor of choices: rows are sorted by the rank that they go to, counts go first, then rows as many as there are. Its buffer has
 * room for the most that can come: all choices of all ranks, or what experts' capacity lets through. Rows beyond those that came belong to no
 * expert, so products skip them; they hold old numbers that nobody reads.
 *
 * Every rank emits the same nodes in the same order; only windows and shifts depend on the rank. Linear in nodes and inputs. */
#include "parallel/expert.h"

#include <math.h>
#include <string.h>

#include "core/iface/rule.h"

typedef enum form { LOCAL, AWAY, WINDOW, FORMS } form;

typedef struct trip {
    const weft_tensor *index;     /* of the source: i32 [n], the expert of each choice; none where out of range */
    weft_tensor       *inverse;   /* [n] which choice stands at a place of what is sent */
    weft_tensor       *place;     /* [n] where a choice stands there; -1: it is not sent */
    weft_tensor       *there, *back; /* [2, N] how many rows go to, and come from, each rank */
    weft_tensor       *choice;    /* [room] the expert, among this rank's, of what has come */
    int64_t            room;
    struct trip       *next;
} trip;

typedef struct piece {
    form         own;
    trip        *trip;           /* where away */
    bool         settled;        /* the same on all ranks of the batch: it is of variables, or of sums over all ranks */
    bool         needed;
    weft_tensor *as[FORMS];
} piece;

typedef struct evaluator {
    const wefti_tensor_split *split;
    const wefti_partition    *batch;
    weft_graph               *to;
    piece                   **pieces; /* [n_nodes] -> [n_outputs] */
    trip                     *trips;
} evaluator;

static piece *piece_of(const evaluator *e, const weft_tensor *tensor) { return &e->pieces[tensor->node->id][tensor->index]; }
static bool   is_window(const evaluator *e, const weft_tensor *tensor) { return piece_of(e, tensor)->own == WINDOW; }
static int32_t ranks_of(const evaluator *e) { return e->split->ranks; }

static weft_tensor *number(const evaluator *e, weft_dtype dtype, double value) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.full.value = value;
    return wefti_emit_leaf(e->to, WEFT_OP_FULL, &attrs, dtype, weft_shape_scalar(), NULL, NULL);
}
static weft_tensor *full(const evaluator *e, weft_dtype dtype, weft_shape shape, double value) { return weft_expand(number(e, dtype, value), shape); }

static weft_tensor *communicate(const evaluator *e, weft_op op, weft_tensor *x, int64_t group, int64_t rows) {
    wefti_attrs attrs = wefti_no_attrs();
    if (wefti_poisoned(x)) return x;
    attrs.comm.reduce = WEFTI_REDUCE_SUM;
    attrs.comm.group = group;
    attrs.comm.global = x->shape;
    if (rows > 0) attrs.comm.global.dim[0] = rows;
    return wefti_emit(e->to, op, &attrs, &x, 1, NULL);
}

/* --- trips --- */

/* Counts are [2, N]: rows to each rank, rows from each. */
static weft_tensor *exchange(const evaluator *e, weft_tensor *rows, weft_tensor *counts, int64_t room) {
    wefti_attrs  attrs = wefti_no_attrs();
    weft_tensor *inputs[2] = {rows, counts};
    if (wefti_poisoned(rows)) return rows;
    attrs.comm.group = e->split->group;
    attrs.comm.global = rows->shape;
    attrs.comm.global.dim[0] = room;
    return wefti_emit(e->to, WEFT_OP_EXCHANGE_ROWS, &attrs, inputs, 2, NULL);
}

static int64_t ceil_of(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/* The most rows that may come here. `unit`: choices of one row of the batch. */
static int64_t room_for(const evaluator *e, int64_t unit, int64_t experts, double share) {
    int64_t most = ceil_of(ceil_of(e->batch->rows, e->batch->ranks), e->batch->micro) * unit * ranks_of(e);
    double  all = (double)(e->batch->rows * unit) * (e->split->stretches > 1 ? e->split->stretches : 1);
    double  limit = ((double)experts / ranks_of(e)) * (floor(share * all) + 1);
    return share > 0 && limit < (double)most ? (int64_t)limit : most;
}

static void make_counts(const evaluator *e, trip *t, weft_tensor *owner, int64_t n) {
    int32_t      ranks = ranks_of(e);
    weft_tensor *going = weft_scatter_add(full(e, WEFT_I32, weft_shape(ranks), 0), owner, full(e, WEFT_I32, weft_shape(n), 1), 0);
    weft_tensor *coming = weft_reshape(communicate(e, WEFT_OP_ALL_TO_ALL, weft_reshape(going, weft_shape(ranks, 1)), e->split->group, 0), weft_shape(1, ranks));
    going = weft_reshape(going, weft_shape(1, ranks));
    t->there = weft_concat((weft_tensor *[]){going, coming}, 2, 0);
    t->back = weft_concat((weft_tensor *[]){coming, going}, 2, 0);
}

/* Where each choice stands among what is sent: behind all that go to ranks before its own, in the order of choices. */
static void sort(const evaluator *e, trip *t, weft_tensor *owner, int64_t n) {
    int32_t      ranks = ranks_of(e);
    wefti_attrs  attrs = wefti_no_attrs();
    weft_tensor *column = weft_reshape(owner, weft_shape(n, 1)), *names = weft_arange(e->to, WEFT_I32, ranks, 0, 1);
    attrs.expert.experts = ranks;
    weft_tensor *before_me = weft_reshape(wefti_emit(e->to, WEFT_OP_OCCURRENCE, &attrs, &column, 1, NULL), weft_shape(n));
    weft_tensor *is_before = weft_lt(names, weft_reshape(names, weft_shape(ranks, 1))); /* [to, from] */
    weft_tensor *first = weft_sum(weft_where(is_before, weft_slice(t->there, 0, 0, 1), number(e, WEFT_I32, 0)), .axes = weft_axes(1));
    weft_tensor *goes = weft_lt(owner, number(e, WEFT_I32, ranks));
    t->place = weft_where(goes, weft_add(weft_gather(first, owner, 0), before_me), number(e, WEFT_I32, -1));
    t->inverse = weft_scatter_add(full(e, WEFT_I32, weft_shape(n), 0), t->place, weft_arange(e->to, WEFT_I32, n, 0, 1), 0);
}

static weft_tensor *local(evaluator *e, weft_tensor *tensor);

static trip *find_trip(const evaluator *e, const weft_tensor *index) {
    trip *t = e->trips;
    while (t && t->index != index) t = t->next;
    return t;
}

static trip *make_trip(evaluator *e, weft_tensor *index, int64_t unit, int64_t experts, double share) {
    trip   *t = wefti_graph_memory(e->to, sizeof *t);
    int64_t each = experts / ranks_of(e), n = index->shape.dim[0];
    if (!t) return NULL;
    weft_tensor *choice = weft_cast(local(e, index), WEFT_I32), *count = number(e, WEFT_I32, (double)experts);
    weft_tensor *valid = weft_and(weft_ge(choice, number(e, WEFT_I32, 0)), weft_lt(choice, count));
    weft_tensor *owner = weft_where(valid, weft_div(choice, number(e, WEFT_I32, (double)each)), number(e, WEFT_I32, ranks_of(e)));
    *t = (trip){.index = index, .room = room_for(e, unit, experts, share), .next = e->trips};
    make_counts(e, t, owner, n);
    sort(e, t, owner, n);
    weft_tensor *came = weft_sub(exchange(e, weft_gather(choice, t->inverse, 0), t->there, t->room),
                                 number(e, WEFT_I32, (double)each * e->split->rank)); /* of the first rank too: all emit the same nodes */
    weft_tensor *is_there = weft_lt(weft_arange(e->to, WEFT_I32, t->room, 0, 1), weft_sum(weft_slice(t->there, 0, 1, 2)));
    t->choice = weft_where(is_there, came, number(e, WEFT_I32, -1));
    e->trips = t;
    return t;
}

/* --- forms --- */

static weft_tensor *own_of(evaluator *e, weft_tensor *tensor) {
    piece *p = piece_of(e, tensor);
    return p->as[p->own] ? p->as[p->own] : &e->to->poison;
}

/* A window on rows [rank*each, …) of what all ranks have, and what surrounds it. */
static weft_tensor *around(const evaluator *e, weft_tensor *window) {
    wefti_attrs attrs = wefti_no_attrs();
    if (wefti_poisoned(window)) return window;
    int64_t each = window->shape.dim[0];
    attrs.pad.low[0] = each * e->split->rank;
    attrs.pad.high[0] = each * (ranks_of(e) - 1 - e->split->rank);
    return wefti_emit(e->to, WEFT_OP_PAD, &attrs, &window, 1, NULL);
}

static weft_tensor *local(evaluator *e, weft_tensor *tensor) {
    piece *p = piece_of(e, tensor);
    if (p->as[LOCAL]) return p->as[LOCAL];
    weft_tensor *own = own_of(e, tensor);
    if (p->own == AWAY) p->as[LOCAL] = weft_gather(exchange(e, own, p->trip->back, tensor->shape.dim[0]), p->trip->place, 0);
    else if (p->settled) p->as[LOCAL] = communicate(e, WEFT_OP_ALL_GATHER, own, e->split->group, tensor->shape.dim[0]);
    else p->as[LOCAL] = around(e, own);
    return p->as[LOCAL];
}

/* `repeat` choices for each row of the tensor. */
static weft_tensor *away(evaluator *e, weft_tensor *tensor, trip *t, int64_t repeat) {
    piece *p = piece_of(e, tensor);
    if (p->as[AWAY] && p->trip == t) return p->as[AWAY];
    weft_tensor *rows = local(e, tensor), *from = repeat == 1 ? t->inverse : weft_div(t->inverse, number(e, WEFT_I32, (double)repeat));
    weft_tensor *sent = exchange(e, weft_gather(rows, from, 0), t->there, t->room);
    if (p->own == LOCAL) { /* the last trip is remembered: mostly there is one */
        p->as[AWAY] = sent;
        p->trip = t;
    }
    return sent;
}

static bool divides(const evaluator *e, const weft_tensor *tensor) { return tensor->shape.rank > 0 && tensor->shape.dim[0] % ranks_of(e) == 0; }

static weft_tensor *window(evaluator *e, weft_tensor *tensor) {
    piece *p = piece_of(e, tensor);
    if (p->as[WINDOW]) return p->as[WINDOW];
    weft_tensor *all = local(e, tensor);
    int64_t      each = tensor->shape.dim[0] / ranks_of(e), begin = each * e->split->rank;
    p->as[WINDOW] = p->settled ? weft_slice(all, 0, begin, begin + each) : communicate(e, WEFT_OP_REDUCE_SCATTER, all, e->split->group, each);
    return p->as[WINDOW];
}

/* --- rules --- */

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

static weft_tensor *copy_node(evaluator *e, const wefti_node *node, const wefti_attrs *attrs, weft_tensor *const *inputs) {
    begin_node(e, node);
    weft_tensor *made = wefti_emit(e->to, node->op, attrs, inputs, node->n_inputs, node->name);
    end_node(e);
    return made;
}

static void give(evaluator *e, const wefti_node *node, form own, trip *t, bool settled, weft_tensor *made) {
    for (int32_t o = 0; o < node->n_outputs; o++) {
        piece *p = &e->pieces[node->id][o];
        p->own = own;
        p->trip = t;
        p->settled = settled;
        p->as[own] = wefti_poisoned(made) ? made : wefti_output(made, o);
    }
}

static bool inputs_settled(const evaluator *e, const wefti_node *node) {
    bool settled = true;
    for (int32_t i = 0; i < node->n_inputs; i++) settled = settled && piece_of(e, node->inputs[i])->settled;
    return settled;
}

/* A sum of what all ranks of the group have. */
static bool is_over_experts(const wefti_node *node) {
    return node->op == WEFT_OP_ALL_REDUCE && (node->attrs.comm.group == 0 || (node->attrs.comm.group & wefti_mesh_group(WEFTI_MESH_EXPERT)));
}

static void by_local(evaluator *e, const wefti_node *node) {
    weft_tensor **inputs = wefti_graph_memory(e->to, sizeof *inputs * (size_t)(node->n_inputs + 1));
    if (!inputs) return;
    for (int32_t i = 0; i < node->n_inputs; i++) inputs[i] = local(e, node->inputs[i]);
    weft_tensor *made = copy_node(e, node, &node->attrs, inputs);
    if (node->op == WEFT_OP_ASSIGN) wefti_graph_effect(made);
    give(e, node, LOCAL, NULL, (inputs_settled(e, node) && !wefti_op_is_message(node->op)) || is_over_experts(node), made);
}

static int64_t unit_of(const evaluator *e, const char *name) {
    for (int32_t i = 0; i < e->split->n_windows; i++)
        if (strcmp(e->split->windows[i].name, name) == 0) return e->split->units[i];
    return 0;
}

static bool by_product(evaluator *e, const wefti_node *node) {
    const weft_tensor *w = node->inputs[1];
    trip              *t = find_trip(e, node->inputs[2]);
    wefti_attrs        attrs = node->attrs;
    if (!is_window(e, w)) return false;
    if (!t) {
        int64_t unit = unit_of(e, wefti_expert_root(w)->name);
        t = unit > 0 ? make_trip(e, node->inputs[2], unit, w->shape.dim[0], attrs.expert.share) : NULL;
        if (!t) return false;
    }
    weft_tensor *inputs[3] = {away(e, node->inputs[0], t, attrs.expert.repeat), own_of(e, node->inputs[1]), t->choice};
    attrs.expert.repeat = 1;
    attrs.expert.share = 0;
    give(e, node, AWAY, t, false, copy_node(e, node, &attrs, inputs));
    return true;
}

static bool by_weight(evaluator *e, const wefti_node *node) {
    trip       *t = find_trip(e, node->inputs[2]);
    wefti_attrs attrs = node->attrs;
    if (!t || attrs.expert.experts % ranks_of(e)) return false;
    weft_tensor *inputs[3] = {away(e, node->inputs[0], t, attrs.expert.repeat), away(e, node->inputs[1], t, 1), t->choice};
    attrs.expert.repeat = 1;
    attrs.expert.share = 0;
    attrs.expert.experts /= ranks_of(e);
    give(e, node, WINDOW, NULL, false, copy_node(e, node, &attrs, inputs));
    return true;
}

static bool by_gather(evaluator *e, const wefti_node *node) {
    trip *t = find_trip(e, node->inputs[1]);
    if (!t || node->attrs.axis.axis != 0 || !is_window(e, node->inputs[0])) return false;
    weft_tensor *inputs[2] = {own_of(e, node->inputs[0]), t->choice};
    give(e, node, AWAY, t, false, copy_node(e, node, &node->attrs, inputs));
    return true;
}

static bool by_scatter_add(evaluator *e, const wefti_node *node) {
    trip              *t = find_trip(e, node->inputs[1]);
    const weft_tensor *base = node->inputs[0];
    if (!t || node->attrs.axis.axis != 0 || !wefti_is_zero(base) || !divides(e, base)) return false;
    weft_shape shape = base->shape;
    shape.dim[0] /= ranks_of(e);
    weft_tensor *inputs[3] = {full(e, base->dtype, shape, 0), t->choice, away(e, node->inputs[2], t, 1)};
    give(e, node, WINDOW, NULL, false, copy_node(e, node, &node->attrs, inputs));
    return true;
}

/* Whether input i has the output's first axis. */
static bool has_first_axis(const wefti_node *node, int32_t i) {
    weft_shape in = node->inputs[i]->shape, out = node->outputs[0].shape;
    return in.rank == out.rank && in.dim[0] == out.dim[0] && (in.dim[0] != 1 || out.dim[0] == 1);
}

static bool by_element(evaluator *e, const wefti_node *node) {
    form         own = LOCAL;
    trip        *t = NULL;
    weft_tensor *inputs[3];
    bool         settled = inputs_settled(e, node);
    if (node->op == WEFT_OP_DROPOUT || node->outputs[0].shape.rank == 0) return false; /* dropped by a row's own place */
    for (int32_t i = 0; i < node->n_inputs; i++)
        if (has_first_axis(node, i) && piece_of(e, node->inputs[i])->own != LOCAL) {
            own = piece_of(e, node->inputs[i])->own;
            t = piece_of(e, node->inputs[i])->trip;
        }
    if (own == LOCAL || (own == WINDOW && !divides(e, &node->outputs[0]))) return false;
    for (int32_t i = 0; i < node->n_inputs; i++) {
        const piece *p = piece_of(e, node->inputs[i]);
        bool         alike = own == WINDOW ? p->own != AWAY : p->own == AWAY && p->trip == t;
        if (has_first_axis(node, i) && !alike) return false;
    }
    for (int32_t i = 0; i < node->n_inputs; i++)
        inputs[i] = !has_first_axis(node, i) ? local(e, node->inputs[i]) : own == WINDOW ? window(e, node->inputs[i]) : own_of(e, node->inputs[i]);
    give(e, node, own, t, settled, copy_node(e, node, &node->attrs, inputs));
    return true;
}

/* The sum of a whole gradient's squares, and the like. */
static bool by_sum(evaluator *e, const wefti_node *node) {
    const piece *p = piece_of(e, node->inputs[0]);
    if (p->own != WINDOW || !p->settled || !(node->attrs.reduce.axes & 1u)) return false;
    weft_tensor *input = own_of(e, node->inputs[0]);
    give(e, node, LOCAL, NULL, true, communicate(e, WEFT_OP_ALL_REDUCE, copy_node(e, node, &node->attrs, &input), e->split->group, 0));
    return true;
}

static bool by_all_reduce(evaluator *e, const wefti_node *node) {
    const piece *p = piece_of(e, node->inputs[0]);
    if (node->n_inputs != 1 || p->own != WINDOW || node->attrs.comm.reduce != WEFTI_REDUCE_SUM) return false;
    weft_tensor *input = own_of(e, node->inputs[0]);
    wefti_attrs  attrs = node->attrs;
    attrs.comm.group &= ~wefti_mesh_group(WEFTI_MESH_EXPERT); /* the group's ranks have put together what is theirs */
    bool settled = is_over_experts(node);
    give(e, node, WINDOW, NULL, settled || p->settled, attrs.comm.group ? copy_node(e, node, &attrs, &input) : input);
    return true;
}

static bool by_update(evaluator *e, const wefti_node *node) {
    weft_tensor *inputs[16];
    if (!is_window(e, node->inputs[0]) || node->n_inputs > 16) return false;
    for (int32_t i = 0; i < node->n_inputs; i++) inputs[i] = i == 2 ? local(e, node->inputs[i]) : window(e, node->inputs[i]);
    give(e, node, WINDOW, NULL, true, copy_node(e, node, &node->attrs, inputs));
    return true;
}

static void leaf(evaluator *e, const wefti_node *node) {
    weft_shape shape = node->outputs[0].shape;
    form       own = LOCAL;
    for (int32_t i = 0; i < e->split->n_windows; i++)
        if (strcmp(e->split->windows[i].name, node->name) == 0 && (node->op == WEFT_OP_PARAMETER || node->op == WEFT_OP_STATE)) {
            shape = wefti_window_shape(&e->split->windows[i].window, shape);
            own = WINDOW;
        }
    begin_node(e, node);
    weft_tensor *made = wefti_emit_leaf(e->to, node->op, &node->attrs, node->outputs[0].dtype, shape, node->leaf, node->name);
    end_node(e);
    if (node->op == WEFT_OP_STEP) e->to->step = made;
    give(e, node, own, NULL, node->op != WEFT_OP_INPUT || node->leaf->batch_axis < 0, made);
}

static void visit(evaluator *e, const wefti_node *node) {
    bool done = false;
    if (wefti_ops[node->op].family == WEFTI_LEAF) {
        leaf(e, node);
        return;
    }
    switch (node->op) {
    case WEFT_OP_EXPERT_MATMUL: done = by_product(e, node); break;
    case WEFT_OP_EXPERT_MATMUL_BACKWARD_WEIGHT: done = by_weight(e, node); break;
    case WEFT_OP_GATHER: done = by_gather(e, node); break;
    case WEFT_OP_SCATTER_ADD: done = by_scatter_add(e, node); break;
    case WEFT_OP_SUM: done = by_sum(e, node); break;
    case WEFT_OP_ALL_REDUCE: done = by_all_reduce(e, node); break;
    case WEFT_OP_UPDATE: done = by_update(e, node); break;
    default: done = wefti_op_is_elementwise(node->op) && by_element(e, node);
    }
    if (!done) by_local(e, node);
}

/* --- the whole graph --- */

static void mark_needed(evaluator *e, const weft_graph *from, weft_tensor *const *outputs, int32_t n_outputs, bool training) {
    for (int32_t i = 0; i < n_outputs; i++) e->pieces[outputs[i]->node->id][0].needed = true;
    for (int32_t i = 0; training && i < from->n_effects; i++) e->pieces[from->effects[i]->id][0].needed = true;
    for (int32_t id = from->n_nodes - 1; id >= 0; id--) {
        const wefti_node *node = from->nodes[id];
        bool              needed = e->pieces[id][0].needed || (training && node->op == WEFT_OP_UPDATE) || wefti_op_is_message(node->op);
        e->pieces[id][0].needed = needed;
        for (int32_t i = 0; needed && i < node->n_inputs; i++) e->pieces[node->inputs[i]->node->id][0].needed = true;
    }
}

static weft_status evaluate(evaluator *e, weft_graph *from, weft_tensor *const *outputs, int32_t n_outputs, bool training, weft_tensor **outputs_out) {
    e->pieces = wefti_graph_memory(e->to, sizeof *e->pieces * (size_t)(from->n_nodes + 1));
    if (!e->pieces) return wefti_graph_status(e->to);
    for (int32_t id = 0; id < from->n_nodes; id++) {
        e->pieces[id] = wefti_graph_memory(e->to, sizeof **e->pieces * (size_t)(from->nodes[id]->n_outputs + 1));
        if (!e->pieces[id]) return wefti_graph_status(e->to);
    }
    mark_needed(e, from, outputs, n_outputs, training);
    for (int32_t id = 0; id < from->n_nodes && e->to->status == WEFT_OK; id++)
        if (e->pieces[id][0].needed) visit(e, from->nodes[id]);
    for (int32_t i = 0; i < n_outputs && e->to->status == WEFT_OK; i++) outputs_out[i] = local(e, outputs[i]);
    return wefti_graph_status(e->to);
}

weft_status wefti_expert_graph(const wefti_tensor_split *split, const wefti_partition *batch, weft_graph *source,
                               weft_tensor *const *outputs, int32_t n_outputs, bool training, weft_graph **graph_out, weft_tensor **outputs_out) {
    evaluator e = {.split = split, .batch = batch};
    *graph_out = NULL;
    WEFTI_TRY(wefti_graph_status(source));
    WEFTI_TRY(weft_graph_create(&(weft_graph_options){.seed = source->seed, .name = source->name}, &e.to));
    weft_status status = evaluate(&e, source, outputs, n_outputs, training, outputs_out);
    if (status == WEFT_OK) {
        *graph_out = e.to;
        return WEFT_OK;
    }
    weft_graph_release(e.to);
    return wefti_while(status, "dealing experts over %d ranks", split->ranks);
}

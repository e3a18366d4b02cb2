/* Writes one rank's graph of sharded data parallelism, node by node (zero.h).
 *
 * A gradient that the rank sums with all others along data, by ALL_REDUCE, becomes a REDUCE_SCATTER of what lies flat in memory, where only its
 * update and the norm of all gradients read it; the norm's term is then a sum of this rank's part, reduced. Gradients that somebody wants whole stay
 * so, and the update reads its part. The UPDATE says which part of the parameter it is for, and that ranks gather it afterwards (divide.c) or,
 * in stage 3, keep it. There every reader is given a whole that is gathered for it: once for readers between which few other parameters are read, so
 * once on the way forth and once on the way back, and only once where the loss is near. A parameter that is cast where it is read is cast
 * before it is gathered, as that is fewer bytes.
 *
 * From stage 2 on micro-batches' gradients are scattered one by one, and parts are added up.
 *
 * Every rank emits the same nodes in the same order; only parts' lengths differ. Linear in nodes and inputs, but that parameters are looked for by name
 * and those that were read last in a list. */
#include "parallel/zero.h"

#include <string.h>

enum { NEAR = 2 }; /* other parameters that are read between two readers of one gather, at most */

/* What is gathered for its readers: a parameter, or the cast of one. */
typedef struct fetched {
    weft_tensor    *whole; /* in the new graph: what was gathered last … */
    int32_t         micro; /* … and for which micro-batch */
    struct fetched *next;         /* in the order of the last reading, the latest first */
} fetched;

typedef enum role { AS_IT_IS, SCATTERED, SQUARED, SUMMED } role; /* of nodes: a gradient, its square, the sum of that */

typedef struct evaluator {
    const wefti_zero *zero;
    weft_graph       *from, *to;
    weft_tensor     **made;    /* [n_nodes] output 0 */
    uint8_t          *roles;   /* [n_nodes] of role */
    const wefti_zero_part **part_of; /* [n_nodes] of parameters, gradients, and what is made of these */
    fetched         **fetches; /* [n_nodes] */
    fetched          *latest;
} evaluator;

static const wefti_zero_part *part_named(const wefti_zero *zero, const char *name) {
    for (int32_t i = 0; i < zero->n_parts; i++)
        if (strcmp(zero->parts[i].name, name) == 0) return &zero->parts[i];
    return NULL;
}

static const wefti_window_of *window_named(const wefti_zero *zero, const char *name) {
    for (int32_t i = 0; i < zero->n_windows; i++)
        if (strcmp(zero->windows[i].name, name) == 0) return &zero->windows[i].window;
    return NULL;
}

/* This rank's elements. */
static int64_t first_of(const wefti_zero_part *part) { return part->each * part->among.rank; }
static int64_t count_of(const wefti_zero_part *part) {
    int64_t left = part->elements - first_of(part);
    return left < 0 ? 0 : left < part->each ? left : part->each;
}

/* --- analysis --- */

static bool is_scalar_sum(const wefti_node *node) { return node->op == WEFT_OP_SUM && weft_shape_elements(node->outputs[0].shape) == 1; }

/* A sum over the ranks that have the parameter alike. */
static bool is_sum_over(const wefti_zero_part *part, const wefti_node *node) {
    return node->op == WEFT_OP_ALL_REDUCE && node->n_inputs == 1 && node->attrs.comm.group == part->among.group && node->attrs.comm.reduce == WEFTI_REDUCE_SUM;
}

/* Gradients that may be scattered, by their updates. */
static void find_gradients(evaluator *e) {
    for (int32_t id = 0; id < e->from->n_nodes; id++) {
        const wefti_node *node = e->from->nodes[id];
        if (node->op == WEFT_OP_PARAMETER) e->part_of[id] = part_named(e->zero, node->name);
        if (node->op == WEFT_OP_CAST && node->inputs[0]->node->op == WEFT_OP_PARAMETER) e->part_of[id] = e->part_of[node->inputs[0]->node->id];
        if (node->op != WEFT_OP_UPDATE || !(e->part_of[id] = e->part_of[node->inputs[0]->node->id])) continue;
        const wefti_node *gradient = node->inputs[1]->node;
        if (!is_sum_over(e->part_of[id], gradient)) continue;
        e->roles[gradient->id] = SCATTERED;
        e->part_of[gradient->id] = e->part_of[id];
    }
}

/* Squares of them, and sums of these, for the norm. */
static void find_norms(evaluator *e) {
    for (int32_t id = 0; id < e->from->n_nodes; id++) {
        const wefti_node *node = e->from->nodes[id], *input = node->n_inputs == 1 ? node->inputs[0]->node : NULL;
        if (!input) continue;
        role below = e->roles[input->id] == SCATTERED && node->op == WEFT_OP_SQUARE ? SQUARED
                     : e->roles[input->id] == SQUARED && is_scalar_sum(node)        ? SUMMED
                                                                                    : AS_IT_IS;
        if (below == AS_IT_IS) continue;
        e->roles[id] = below;
        e->part_of[id] = e->part_of[input->id];
    }
}

/* Whether the node can do with this rank's part of what input i is. */
static bool reads_part(const evaluator *e, const wefti_node *node, int32_t i) {
    const wefti_node *input = node->inputs[i]->node;
    if (node->op == WEFT_OP_UPDATE) return i == 1 && e->part_of[node->id] == e->part_of[input->id];
    return e->roles[input->id] == SCATTERED ? e->roles[node->id] == SQUARED : e->roles[node->id] == SUMMED;
}

/* Whether the node changed a role, its own or that of what it reads. */
static bool settle_role(evaluator *e, const wefti_node *node) {
    bool    changed = false;
    uint8_t wants = e->roles[node->id] == SQUARED ? SCATTERED : e->roles[node->id] == SUMMED ? SQUARED : AS_IT_IS;
    for (int32_t i = 0; i < node->n_inputs; i++) {
        uint8_t *input = &e->roles[node->inputs[i]->node->id];
        if ((*input != SCATTERED && *input != SQUARED) || reads_part(e, node, i)) continue;
        *input = AS_IT_IS;
        changed = true;
    }
    if (wants == AS_IT_IS || e->roles[node->inputs[0]->node->id] == wants) return changed;
    e->roles[node->id] = AS_IT_IS;
    return true;
}

/* What somebody wants whole stays so, and what is made of it, too. */
static void settle_roles(evaluator *e, weft_tensor *const *outputs, int32_t n_outputs) {
    for (int32_t i = 0; i < n_outputs; i++)
        if (e->roles[outputs[i]->node->id] != SUMMED) e->roles[outputs[i]->node->id] = AS_IT_IS;
    bool changed = true;
    while (changed) {
        changed = false;
        for (int32_t id = 0; id < e->from->n_nodes; id++) changed = settle_role(e, e->from->nodes[id]) || changed;
    }
}

/* --- emission --- */

static weft_tensor *emit(evaluator *e, weft_op op, const wefti_attrs *attrs, weft_tensor *a, const char *name) {
    return wefti_emit(e->to, op, attrs, &a, 1, name);
}

/* Elements [first, first + count) as they lie in memory. */
static weft_tensor *run_of(evaluator *e, weft_tensor *tensor, int64_t first, int64_t count) {
    wefti_attrs attrs = wefti_no_attrs();
    if (wefti_poisoned(tensor)) return tensor;
    int64_t elements = weft_shape_elements(tensor->shape);
    attrs.slice.start[0] = wefti_min_i64(first, elements);
    attrs.slice.step[0] = 1;
    attrs.slice.size[0] = count;
    return emit(e, WEFT_OP_SLICE, &attrs, weft_reshape(tensor, weft_shape(elements)), NULL);
}

/* Gathers a part for readers from here on. */
static weft_tensor *gather(evaluator *e, const wefti_node *node, weft_tensor *part) {
    const wefti_zero_part *how = e->part_of[node->id];
    wefti_attrs            attrs = wefti_no_attrs();
    if (wefti_poisoned(part)) return part;
    attrs.comm.group = how->among.group;
    attrs.comm.paced = 1;
    attrs.comm.global = weft_shape(how->each * how->among.ranks);
    weft_tensor *flat = emit(e, WEFT_OP_ALL_GATHER, &attrs, weft_reshape(part, weft_shape(how->each)), node->name);
    return weft_reshape(run_of(e, flat, 0, how->elements), node->outputs[0].shape);
}

/* Whether few others were read since this was read last; it is now the latest. */
static bool was_near(evaluator *e, fetched *f) {
    int32_t   others = 0;
    fetched **at = &e->latest;
    for (; *at && *at != f; at = &(*at)->next) others++;
    bool known = *at == f;
    if (known) *at = f->next;
    f->next = e->latest;
    e->latest = f;
    return known && others <= NEAR;
}

/* This rank's part, as it is to be gathered. A cast is made for each gather, which takes it over: one that waited for the next gather would be in memory
 * beside all others from the way forth to the way back. */
static weft_tensor *part_for(evaluator *e, const wefti_node *node, bool again) {
    weft_tensor *part = e->made[(node->op == WEFT_OP_CAST ? node->inputs[0]->node : node)->id];
    uint32_t     flags = e->to->flags;
    if (node->op != WEFT_OP_CAST) return part;
    if (again) e->to->flags |= WEFTI_NODE_RECOMPUTED;
    part = emit(e, WEFT_OP_CAST, &node->attrs, part, node->name);
    e->to->flags = flags;
    return part;
}

/* A parameter, or the cast of one, for a reader. */
static weft_tensor *fetch(evaluator *e, const wefti_node *node) {
    fetched *f = e->fetches[node->id];
    if (!f) f = e->fetches[node->id] = wefti_graph_memory(e->to, sizeof *f);
    if (!f) return &e->to->poison;
    bool near = was_near(e, f);
    if (!near || (e->zero->staged && f->micro != e->to->micro)) f->whole = gather(e, node, part_for(e, node, f->whole != NULL));
    f->micro = e->to->micro;
    return f->whole ? f->whole : &e->to->poison;
}

/* What is kept in parts, and whole for its readers alone. */
static bool is_fetched(const evaluator *e, const wefti_node *node) {
    return e->zero->stage == 3 && e->part_of[node->id] && (node->op == WEFT_OP_PARAMETER || node->op == WEFT_OP_CAST);
}

static weft_tensor *value(evaluator *e, weft_tensor *tensor) {
    if (is_fetched(e, tensor->node)) return fetch(e, tensor->node);
    return e->made[tensor->node->id] ? wefti_output(e->made[tensor->node->id], tensor->index) : &e->to->poison;
}

/* The sum of a running one and the latest micro-batch's. */
static bool adds_micro(const evaluator *e, const wefti_node *node) {
    return e->zero->stage >= 2 && node->op == WEFT_OP_ADD && node->micro == 0 && node->inputs[1]->node->micro > 0 &&
           weft_shape_equal(node->inputs[0]->shape, node->inputs[1]->shape);
}

static weft_tensor *scatter(evaluator *e, const wefti_node *like, weft_tensor *sum) {
    if (adds_micro(e, sum->node)) {
        weft_tensor *parts[2] = {scatter(e, like, sum->node->inputs[0]), scatter(e, like, sum->node->inputs[1])};
        e->to->flags = like->flags | WEFTI_NODE_APART;
        weft_tensor *added = wefti_emit(e->to, WEFT_OP_ADD, &sum->node->attrs, parts, 2, NULL);
        e->to->flags = like->flags;
        return added;
    }
    wefti_attrs attrs = wefti_no_attrs();
    attrs.comm.reduce = WEFTI_REDUCE_SUM;
    attrs.comm.group = e->part_of[like->id]->among.group;
    attrs.comm.each = e->part_of[like->id]->each;
    attrs.comm.paced = e->zero->stage >= 2;
    return emit(e, WEFT_OP_REDUCE_SCATTER, &attrs, value(e, sum), like->name);
}

/* This rank's term of a sum over a gradient's elements, and the sum of all ranks'. */
static weft_tensor *sum_parts(evaluator *e, const wefti_node *node) {
    wefti_attrs attrs = wefti_no_attrs(), comm = wefti_no_attrs();
    attrs.reduce.axes = 1;
    comm.comm.reduce = WEFTI_REDUCE_SUM;
    comm.comm.group = e->part_of[node->id]->among.group;
    weft_tensor *own = emit(e, WEFT_OP_SUM, &attrs, value(e, node->inputs[0]), node->name);
    weft_tensor *all = emit(e, WEFT_OP_ALL_REDUCE, &comm, own, NULL);
    return weft_reshape(all, node->outputs[0].shape);
}

static weft_tensor *leaf(evaluator *e, const wefti_node *node) {
    const wefti_window_of *window = node->op == WEFT_OP_PARAMETER || node->op == WEFT_OP_STATE ? window_named(e->zero, node->name) : NULL;
    weft_shape             shape = node->outputs[0].shape;
    if (window && window->parts > 1) shape = wefti_window_shape(window, shape);
    weft_tensor *made = wefti_emit_leaf(e->to, node->op, &node->attrs, node->outputs[0].dtype, shape, node->leaf, node->name);
    if (node->op == WEFT_OP_STEP) e->to->step = made;
    return made;
}

/* The gradient of an update as this rank's part, from its element 0 on. */
static weft_tensor *own_gradient(evaluator *e, const wefti_node *update) {
    weft_tensor           *gradient = update->inputs[1];
    const wefti_zero_part *part = e->part_of[update->id];
    if (e->roles[gradient->node->id] == SCATTERED) return value(e, gradient);
    return run_of(e, value(e, gradient), first_of(part), count_of(part));
}

static weft_tensor *update(evaluator *e, const wefti_node *node) {
    const wefti_zero_part *part = e->part_of[node->id];
    wefti_attrs            attrs = node->attrs;
    weft_tensor           *inputs[3 + 8];
    if (node->n_inputs > (int32_t)(sizeof inputs / sizeof *inputs))
        return wefti_graph_fail(e->to, WEFT_E_INTERNAL, "update '%s' has more states than rules have", node->name);
    attrs.update.part = (wefti_update_part){.count = count_of(part), .parts = part->among.ranks};
    if (e->zero->stage < 3) {
        attrs.update.part.first = first_of(part);
        attrs.update.part.each = part->each;
        attrs.update.part.group = part->among.group;
    }
    for (int32_t i = 0; i < node->n_inputs; i++) inputs[i] = i == 1 ? own_gradient(e, node) : i == 2 ? value(e, node->inputs[i]) : e->made[node->inputs[i]->node->id];
    return wefti_emit(e->to, WEFT_OP_UPDATE, &attrs, inputs, node->n_inputs, node->name);
}

static weft_tensor *copy(evaluator *e, const wefti_node *node) {
    weft_tensor **inputs = wefti_graph_memory(e->to, sizeof *inputs * (size_t)(node->n_inputs + 1));
    if (!inputs) return &e->to->poison;
    for (int32_t i = 0; i < node->n_inputs; i++) inputs[i] = value(e, node->inputs[i]);
    weft_tensor *made = wefti_emit(e->to, node->op, &node->attrs, inputs, node->n_inputs, node->name);
    if (node->op == WEFT_OP_ASSIGN) wefti_graph_effect(made);
    return made;
}

static weft_tensor *make(evaluator *e, const wefti_node *node) {
    const wefti_zero_part *part = e->part_of[node->id];
    if (wefti_ops[node->op].family == WEFTI_LEAF) return leaf(e, node);
    if (node->op == WEFT_OP_UPDATE && part) return update(e, node);
    if (node->op == WEFT_OP_CAST && is_fetched(e, node)) return NULL; /* for its readers alone */
    switch ((role)e->roles[node->id]) {
    case SCATTERED: return scatter(e, node, node->inputs[0]);
    case SQUARED: return emit(e, WEFT_OP_SQUARE, &node->attrs, run_of(e, value(e, node->inputs[0]), 0, count_of(part)), node->name);
    case SUMMED: return sum_parts(e, node);
    default: return copy(e, node);
    }
}

static void emit_all(evaluator *e, weft_tensor *const *outputs, int32_t n_outputs, weft_tensor **outputs_out) {
    for (int32_t id = 0; id < e->from->n_nodes && e->to->status == WEFT_OK; id++) {
        const wefti_node *node = e->from->nodes[id];
        e->to->flags = node->flags;
        e->to->segment = node->segment;
        e->to->place = node->place;
        e->to->micro = node->micro;
        e->made[id] = make(e, node);
    }
    e->to->flags = 0;
    e->to->segment = e->to->place = e->to->micro = 0;
    for (int32_t i = 0; i < n_outputs; i++) outputs_out[i] = value(e, outputs[i]);
}

static weft_status open_evaluator(evaluator *e, weft_tensor *const *outputs, int32_t n_outputs) {
    size_t n = (size_t)e->from->n_nodes + 1;
    e->made = wefti_graph_memory(e->to, sizeof *e->made * n);
    e->roles = wefti_graph_memory(e->to, n);
    e->part_of = wefti_graph_memory(e->to, sizeof *e->part_of * n);
    e->fetches = wefti_graph_memory(e->to, sizeof *e->fetches * n);
    if (!e->made || !e->roles || !e->part_of || !e->fetches) return wefti_graph_status(e->to);
    find_gradients(e);
    find_norms(e);
    settle_roles(e, outputs, n_outputs);
    return WEFT_OK;
}

weft_status wefti_zero_graph(const wefti_zero *zero, weft_graph *source, weft_tensor *const *outputs, int32_t n_outputs, bool training,
                             weft_graph **graph_out, weft_tensor **outputs_out) {
    evaluator e = {.zero = zero, .from = source};
    *graph_out = NULL;
    (void)training;
    WEFTI_TRY(wefti_graph_status(source));
    WEFTI_TRY(weft_graph_create(&(weft_graph_options){.seed = source->seed, .name = source->name}, &e.to));
    weft_status status = open_evaluator(&e, outputs, n_outputs);
    if (status == WEFT_OK) {
        e.to->n_segments = source->n_segments;
        emit_all(&e, outputs, n_outputs, outputs_out);
        status = wefti_graph_status(e.to);
    }
    if (status == WEFT_OK) {
        *graph_out = e.to;
        return WEFT_OK;
    }
    weft_graph_release(e.to);
    return wefti_while(status, "keeping parameters in parts over %d ranks", zero->among.ranks);
}

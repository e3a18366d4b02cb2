/* The evaluator of layouts: writes one rank's graph by asking for values.
 *
 * Three kinds of value of a global tensor can be asked for: `whole` (the same everywhere), `chunk` m (in the tensor's own
 * layout, for micro-batch m), and `cut` (split along a wanted axis, whatever its layout). Each is made once, from values of
 * the node's inputs, so the new graph has no duplicates and its ids are an execution order: chunks are asked for
 * micro-batch by micro-batch, in the order in which the user's graph was built, and what depends on whole gradients last.
 *
 * A partial tensor that someone needs whole is summed over micro-batches as they come (so one accumulator lives, not one
 * per micro-batch) and then reduced over the ranks. A split tensor that someone needs whole is padded to its global extent
 * and summed over the ranks, which is right for uneven splits too; no rule of a common op comes to that.
 *
 * A gradient that the strategy compresses is summed by compress.c instead. Its first message is begun when the gradient is there, and
 * what follows on that is emitted LAG gradients later, so that something is on the way while the first message is waited for.
 *
 * Cost: O(nodes * micro-batches) time and memory; messages: one ALL_REDUCE per partial tensor that is needed whole, which the
 * planner buckets. Invariant: every rank emits the same ALL_REDUCE nodes in the same order, since only extents and
 * windows depend on the rank; never the choice of a rule. */
#include <string.h>

#include "core/iface/rule.h"
#include "parallel/compress.h"
#include "parallel/partition.h"
#include "parallel/shard.h"

typedef struct piece {
    wefti_layout  layout;
    bool          needed;    /* by an output, an effect or a needed node */
    bool          completed; /* partial, and someone wants it whole: accumulate as chunks come */
    bool          given;     /* partial, and a contribution: accumulate, and leave it at that */
    weft_tensor  *whole;
    weft_tensor  *sum;       /* partial: accumulated over chunks 0 .. summed-1 */
    int32_t       summed;
    weft_tensor **chunk;     /* [micro] */
    struct cut   *cuts;      /* other layouts that were asked for */
    const wefti_node *update; /* whose gradient it is, to be compressed; NULL: none */
    wefti_compressed *compressed; /* begun */
} piece;

typedef struct cut {
    wefti_layout layout;
    int32_t      m;
    weft_tensor *value;
    struct cut  *next;
} cut;

typedef struct evaluator {
    wefti_partition  partition;
    weft_graph      *from, *to;
    int64_t          built_rows;  /* the graph's */
    piece          **nodes;       /* [n_nodes] -> [n_outputs] */
    wefti_layout   **wanted;      /* [n_nodes] -> [n_inputs] */
    int64_t          local_first, local_rows;
    wefti_compress   compress;
    wefti_compressed *first_compressed, *last_compressed, *unended; /* in the order of their beginnings; the first that has not ended */
    int32_t          n_unended;
    const wefti_node *guard; /* an update, whose hyperparameters say whether the step is skipped */
} evaluator;

enum { LAG = 2 };

static weft_tensor *whole(evaluator *e, weft_tensor *tensor);
static weft_tensor *chunk(evaluator *e, weft_tensor *tensor, int32_t m);
static weft_tensor *as_cut(evaluator *e, weft_tensor *tensor, wefti_layout layout, int32_t m);

static piece *piece_of(evaluator *e, const weft_tensor *tensor) { return &e->nodes[tensor->node->id][tensor->index]; }

static wefti_chunk chunk_of(const evaluator *e, int32_t m) {
    int64_t first = e->local_rows * m / e->partition.micro, end = e->local_rows * (m + 1) / e->partition.micro;
    return (wefti_chunk){.rows = end - first,
                         .first_row = e->local_first + first,
                         .global_rows = e->partition.rows};
}

weft_status wefti_graph_rows(const weft_graph *graph, int64_t *rows_out) {
    const wefti_node *first = NULL;
    *rows_out = 0;
    for (int32_t i = 0; i < graph->n_nodes; i++) {
        const wefti_node *node = graph->nodes[i];
        if (node->op != WEFT_OP_INPUT || node->leaf->batch_axis < 0) continue;
        int64_t rows = node->outputs[0].shape.dim[node->leaf->batch_axis];
        if (!first) {
            first = node;
            *rows_out = rows;
        } else if (rows != *rows_out) {
            return wefti_fail(WEFT_E_SHAPE,
                              "inputs '%s' and '%s' count %lld and %lld samples: axis %d of every input counts samples "
                              "unless it is created with .replicated",
                              first->name, node->name, (long long)*rows_out, (long long)rows, node->leaf->batch_axis);
        }
    }
    return WEFT_OK;
}

/* --- analysis --- */

static weft_status analyse(evaluator *e) {
    for (int32_t id = 0; id < e->from->n_nodes; id++) {
        const wefti_node *node = e->from->nodes[id];
        wefti_layout     *inputs = wefti_graph_memory(e->to, sizeof *inputs * (size_t)(node->n_inputs + 1));
        wefti_layout     *outputs = wefti_graph_memory(e->to, sizeof *outputs * (size_t)(node->n_outputs + 1));
        e->wanted[id] = wefti_graph_memory(e->to, sizeof **e->wanted * (size_t)(node->n_inputs + 1));
        e->nodes[id] = wefti_graph_memory(e->to, sizeof **e->nodes * (size_t)(node->n_outputs + 1));
        if (!inputs || !outputs || !e->wanted[id] || !e->nodes[id]) return wefti_graph_status(e->to);
        for (int32_t i = 0; i < node->n_inputs; i++) inputs[i] = piece_of(e, node->inputs[i])->layout;
        wefti_shard shard = {.op = node->op, .node = node, .inputs = inputs, .rows = e->built_rows,
                             .wanted = e->wanted[id], .outputs = outputs};
        wefti_shard_node(&shard);
        for (int32_t i = 0; i < node->n_outputs; i++) e->nodes[id][i].layout = outputs[i];
    }
    return WEFT_OK;
}

static bool same_layout(const wefti_layout *a, const wefti_layout *b) {
    return a->kind == b->kind && (a->kind != WEFTI_SPLIT || (a->axis == b->axis && a->unit == b->unit));
}

/* A gradient that is a sum over the ranks, and large enough to be compressed. */
static void mark_gradient(evaluator *e, const wefti_node *update) {
    const weft_tensor *parameter = update->inputs[0], *gradient = update->inputs[1];
    piece             *p = piece_of(e, gradient);
    if (!e->partition.compress || e->partition.ranks == 1 || p->update) return;
    if (p->layout.kind != WEFTI_PARTIAL || p->layout.reduce != WEFTI_REDUCE_SUM || !weft_shape_equal(parameter->shape, gradient->shape)) return;
    if (!wefti_compress_takes(e->partition.compress, gradient->dtype, gradient->shape)) return;
    p->update = update;
    if (!e->guard) e->guard = update;
}

/* Whether that input of a node goes on as what this rank contributes to a sum. */
static bool gives(const wefti_node *node, int32_t input, const piece *p) {
    return node->op == WEFT_OP_ASSIGN && input == 1 && wefti_contribution_to(node->inputs[0]->node->name) && (p->layout.kind != WEFTI_PARTIAL || p->layout.reduce == WEFTI_REDUCE_SUM);
}

/* Marks what outputs and effects need, and which partial tensors somebody wants otherwise than partial. */
static void mark(evaluator *e, weft_tensor *const *outputs, int32_t n_outputs, bool training) {
    for (int32_t i = 0; i < n_outputs; i++) {
        piece *p = piece_of(e, outputs[i]);
        p->needed = true;
        p->completed = p->layout.kind == WEFTI_PARTIAL;
    }
    if (training)
        for (int32_t i = 0; i < e->from->n_effects; i++) piece_of(e, &e->from->effects[i]->outputs[0])->needed = true;
    for (int32_t id = e->from->n_nodes - 1; id >= 0; id--) {
        const wefti_node *node = e->from->nodes[id];
        bool              needed = training && node->op == WEFT_OP_UPDATE;
        if (needed) mark_gradient(e, node);
        for (int32_t i = 0; i < node->n_outputs; i++) needed |= e->nodes[id][i].needed;
        for (int32_t i = 0; needed && i < node->n_outputs; i++) e->nodes[id][i].needed |= node->op == WEFT_OP_UPDATE;
        for (int32_t i = 0; needed && i < node->n_inputs; i++) {
            piece *p = piece_of(e, node->inputs[i]);
            p->needed = true;
            if (p->layout.kind != WEFTI_PARTIAL || same_layout(&p->layout, &e->wanted[id][i])) continue;
            if (gives(node, i, p)) p->given = true;
            else p->completed = true;
        }
    }
}

/* --- emission --- */

/* Whether the inputs of an elementwise op are as large beside each other as in the graph: one of another batch size must not be
 * broadcast silently. */
static bool fits(const evaluator *e, const wefti_node *node, weft_tensor *const *inputs) {
    if (e->partition.rows == e->built_rows) return true;
    for (int32_t axis = 0; axis < node->outputs[0].shape.rank; axis++) {
        int64_t size = -1;
        for (int32_t i = 0; i < node->n_inputs; i++) {
            const weft_tensor *input = node->inputs[i];
            int32_t            own = axis - (node->outputs[0].shape.rank - input->shape.rank);
            if (own < 0 || wefti_poisoned(inputs[i]) || inputs[i]->shape.rank != input->shape.rank) continue;
            if (input->shape.dim[own] == 1 && node->outputs[0].shape.dim[axis] != 1) continue; /* broadcast in the graph too */
            if (size >= 0 && inputs[i]->shape.dim[own] != size) return false;
            size = inputs[i]->shape.dim[own];
        }
    }
    return true;
}

/* Copies a node with the given inputs and attributes; gives output 0. */
static weft_tensor *copy_node(evaluator *e, const wefti_node *node, const wefti_attrs *attrs, weft_tensor *const *inputs) {
    wefti_family family = wefti_ops[node->op].family;
    if ((family == WEFTI_BINARY || family == WEFTI_TERNARY) && !fits(e, node, inputs))
        return wefti_graph_fail(e->to, WEFT_E_SHAPE, "'%s' combines tensors of this batch size and of the one that the graph was built for",
                                node->name);
    e->to->flags = node->flags;
    e->to->segment = node->segment;
    e->to->place = node->place;
    weft_tensor *made = wefti_emit(e->to, node->op, attrs, inputs, node->n_inputs, node->name);
    e->to->flags = 0;
    e->to->segment = e->to->place = 0;
    if (node->op == WEFT_OP_ASSIGN) wefti_graph_effect(made);
    return made;
}

/* Generators have no input that gives them a shape (RANDOM's step number comes by itself). */
static bool is_generator(const wefti_node *node) { return node->op == WEFT_OP_FULL || node->op == WEFT_OP_RANDOM; }
static weft_tensor *generate(evaluator *e, const wefti_node *node, const wefti_attrs *attrs, weft_shape shape) {
    return wefti_emit_leaf(e->to, node->op, attrs, node->outputs[0].dtype, shape, node->leaf, node->name);
}

static weft_tensor *emit(evaluator *e, weft_op op, const wefti_attrs *attrs, weft_tensor *a, weft_tensor *b) {
    weft_tensor *inputs[2] = {a, b};
    return wefti_emit(e->to, op, attrs, inputs, b ? 2 : 1, NULL);
}

/* Rows [begin, begin + size) along an axis; the tensor itself where that is all of it. */
static weft_tensor *slice(evaluator *e, weft_tensor *tensor, int32_t axis, int64_t begin, int64_t size) {
    if (wefti_poisoned(tensor) || (begin == 0 && size == tensor->shape.dim[axis])) return tensor;
    wefti_attrs attrs = wefti_no_attrs();
    for (int32_t i = 0; i < tensor->shape.rank; i++) {
        attrs.slice.step[i] = 1;
        attrs.slice.size[i] = i == axis ? size : tensor->shape.dim[i];
    }
    attrs.slice.start[axis] = begin;
    return emit(e, WEFT_OP_SLICE, &attrs, tensor, NULL);
}

static weft_tensor *full(evaluator *e, weft_dtype dtype, weft_shape shape, double value) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.full.value = value;
    return wefti_emit_leaf(e->to, WEFT_OP_FULL, &attrs, dtype, shape, NULL, NULL);
}

static weft_tensor *all_reduce(evaluator *e, weft_tensor *tensor, wefti_reduce_op reduce) {
    if (e->partition.ranks == 1) return tensor;
    wefti_attrs attrs = wefti_no_attrs();
    attrs.comm.reduce = reduce;
    attrs.comm.group = e->partition.group;
    return emit(e, WEFT_OP_ALL_REDUCE, &attrs, tensor, NULL);
}

static weft_op joining_op(wefti_reduce_op reduce) {
    return reduce == WEFTI_REDUCE_MAX ? WEFT_OP_MAXIMUM : reduce == WEFTI_REDUCE_MIN ? WEFT_OP_MINIMUM : WEFT_OP_ADD;
}

/* Takes chunk m into the running sum of a partial tensor. */
static void accumulate(evaluator *e, weft_tensor *tensor, int32_t m) {
    piece *p = piece_of(e, tensor);
    while (p->summed <= m) {
        weft_tensor *next = chunk(e, tensor, p->summed);
        p->sum = p->summed == 0 ? next : emit(e, joining_op(p->layout.reduce), NULL, p->sum, next);
        p->summed++;
    }
}

/* --- compressed gradients --- */

/* Elements of the hyperparameters as scalars. */
static weft_tensor *hyper_at(weft_tensor *hyper, int64_t index) {
    return weft_reshape(weft_slice(hyper, 0, index, index + 1), weft_shape_scalar());
}

static void begin_compressed(evaluator *e, weft_tensor *tensor) {
    piece *p = piece_of(e, tensor);
    if (p->compressed) return;
    accumulate(e, tensor, e->partition.micro - 1);
    p->compressed = wefti_compress_begin(&e->compress, p->sum, p->update->inputs[0]->node->name);
    if (!p->compressed) return;
    if (e->last_compressed) e->last_compressed->next = p->compressed;
    else e->first_compressed = p->compressed;
    e->last_compressed = p->compressed;
    if (!e->unended) e->unended = p->compressed;
    e->n_unended++;
}

/* Ends the oldest, until so many are left. */
static void end_compressed(evaluator *e, int32_t left) {
    for (; e->n_unended > left; e->n_unended--, e->unended = e->unended->next) (void)wefti_compress_end(e->unended);
}

static weft_tensor *whole_compressed(evaluator *e, weft_tensor *tensor) {
    piece *p = piece_of(e, tensor);
    begin_compressed(e, tensor);
    return p->compressed ? wefti_compress_end(p->compressed) : &e->to->poison;
}

/* A leaf is made once; an input that counts samples with this rank's rows. */
static weft_tensor *leaf(evaluator *e, const wefti_node *node) {
    piece *p = &e->nodes[node->id][0];
    if (p->whole) return p->whole;
    weft_shape shape = node->outputs[0].shape;
    if (p->layout.kind == WEFTI_SPLIT) shape.dim[p->layout.axis] = e->local_rows * p->layout.unit;
    int32_t micro = e->to->micro;
    e->to->micro = 0;
    e->to->place = node->place;
    p->whole = wefti_emit_leaf(e->to, node->op, &node->attrs, node->outputs[0].dtype, shape, node->leaf, node->name);
    e->to->place = 0;
    e->to->micro = micro;
    if (node->op == WEFT_OP_STEP) e->to->step = p->whole;
    return p->whole;
}

static bool is_leaf(const wefti_node *node) {
    return wefti_ops[node->op].family == WEFTI_LEAF;
}

/* A maximum over no rows at all is the identity; the op itself refuses an empty axis. */
static weft_tensor *empty_extreme(evaluator *e, const wefti_node *node) {
    double infinity = node->op == WEFT_OP_MAX ? -__builtin_inf() : __builtin_inf();
    if (!weft_dtype_is_float(node->outputs[0].dtype))
        infinity = node->op == WEFT_OP_MAX ? -9007199254740992.0 : 9007199254740992.0;
    return full(e, node->outputs[0].dtype, node->outputs[0].shape, infinity);
}

/* What all ranks have alike on the first, zeros on the others. Which rank this is stands in a constant that planning does not look into: where a sum is not read it is
 * dropped, and its message with it, which must not be on some ranks only. */
static weft_tensor *of_first(evaluator *e, weft_tensor *all) {
    wefti_attrs attrs = wefti_no_attrs();
    if (e->partition.ranks == 1 || wefti_poisoned(all)) return all;
    attrs.arange.start = e->partition.rank;
    weft_tensor *rank = weft_reshape(wefti_emit_leaf(e->to, WEFT_OP_ARANGE, &attrs, WEFT_I64, weft_shape(1), NULL, NULL), weft_shape_scalar());
    weft_tensor *first = weft_eq(rank, full(e, WEFT_I64, weft_shape_scalar(), 0));
    return weft_where(first, all, full(e, all->dtype, weft_shape_scalar(), 0));
}

/* What this rank brings to the sum over all; what is the same on all ranks the first one brings. */
static weft_tensor *contribution(evaluator *e, weft_tensor *tensor) {
    piece *p = piece_of(e, tensor);
    if (p->layout.kind != WEFTI_PARTIAL) return of_first(e, whole(e, tensor));
    accumulate(e, tensor, e->partition.micro - 1);
    return p->sum;
}

/* Delivers input i of a node as its rule wants it. */
static weft_tensor *deliver(evaluator *e, const wefti_node *node, int32_t i, int32_t m) {
    weft_tensor        *tensor = node->inputs[i];
    const wefti_layout *want = &e->wanted[node->id][i];
    if (gives(node, i, piece_of(e, tensor))) return contribution(e, tensor);
    if (want->kind == WEFTI_WHOLE) return whole(e, tensor);
    if (want->kind == WEFTI_PARTIAL) return chunk(e, tensor, m);
    return as_cut(e, tensor, *want, m);
}

static weft_tensor *make(evaluator *e, const wefti_node *node, int32_t m) {
    if (is_leaf(node)) return leaf(e, node);
    piece      *outputs = e->nodes[node->id];
    wefti_attrs attrs = node->attrs;
    wefti_chunk part = chunk_of(e, m);
    wefti_layout layouts[8];
    for (int32_t i = 0; i < node->n_outputs && i < 8; i++) layouts[i] = outputs[i].layout;
    weft_tensor **inputs = wefti_graph_memory(e->to, sizeof *inputs * (size_t)(node->n_inputs + 1));
    if (!inputs) return &e->to->poison;
    for (int32_t i = 0; i < node->n_inputs; i++) {
        bool base = node->op == WEFT_OP_SCATTER_ADD && i == 0 && outputs[0].layout.kind == WEFTI_PARTIAL && !wefti_is_zero(node->inputs[0]);
        inputs[i] = deliver(e, node, i, m);
        if (base) inputs[i] = m == 0 ? of_first(e, inputs[i]) : full(e, node->inputs[0]->dtype, node->inputs[0]->shape, 0); /* it counts once */
    }
    if (node->n_inputs > 0 && !wefti_poisoned(inputs[0])) part.input = inputs[0]->shape;
    wefti_shard_attrs(node, e->wanted[node->id], layouts, &part, &attrs);
    if ((node->op == WEFT_OP_MAX || node->op == WEFT_OP_MIN) && outputs[0].layout.kind == WEFTI_PARTIAL &&
        part.rows == 0)
        return empty_extreme(e, node);
    return copy_node(e, node, &attrs, inputs);
}

/* The number that EXTENT stands for: whole, whatever its input's layout. Beside the split axis, others may have grown with the batch
 * (samples against samples): its input tells, and is pruned where nobody else computes it. */
static weft_tensor *extent(evaluator *e, const wefti_node *node) {
    weft_tensor        *x = node->inputs[0];
    const wefti_layout *layout = &piece_of(e, x)->layout;
    double              count = 1;
    if (e->partition.rows != e->built_rows) x = layout->kind == WEFTI_WHOLE ? whole(e, x) : chunk(e, x, 0);
    if (wefti_poisoned(x)) return x;
    for (int32_t axis = 0; axis < x->shape.rank; axis++)
        if (node->attrs.reduce.axes >> axis & 1u)
            count *= layout->kind == WEFTI_SPLIT && layout->axis == axis ? (double)(e->partition.rows * layout->unit)
                                                                         : (double)x->shape.dim[axis];
    return full(e, node->outputs[0].dtype, node->outputs[0].shape, count);
}

/* Chunk m of a split or partial tensor in its own layout. All outputs of a node are made together. */
static weft_tensor *make_chunk(evaluator *e, weft_tensor *tensor, int32_t m) {
    piece *p = piece_of(e, tensor);
    if (p->layout.kind == WEFTI_WHOLE) return whole(e, tensor);
    if (!p->chunk) {
        p->chunk = wefti_graph_memory(e->to, sizeof *p->chunk * (size_t)e->partition.micro);
        if (!p->chunk) return &e->to->poison;
    }
    if (p->chunk[m]) return p->chunk[m];
    const wefti_node *node = tensor->node;
    if (is_leaf(node)) {
        wefti_chunk part = chunk_of(e, m);
        int64_t     unit = p->layout.unit;
        p->chunk[m] = slice(e, leaf(e, node), p->layout.axis, (part.first_row - e->local_first) * unit, part.rows * unit);
        return p->chunk[m];
    }
    weft_tensor *made = make(e, node, m);
    for (int32_t i = 0; i < node->n_outputs; i++) {
        piece *other = &e->nodes[node->id][i];
        if (!other->chunk) other->chunk = wefti_graph_memory(e->to, sizeof *other->chunk * (size_t)e->partition.micro);
        if (!other->chunk) return &e->to->poison;
        other->chunk[m] = wefti_output(made, i);
    }
    return p->chunk[m];
}

/* What is made for micro-batch m, or for all (-1), says so: pipelines go by it. */
static int32_t enter_micro(evaluator *e, int32_t m) {
    int32_t outer = e->to->micro;
    e->to->micro = m + 1;
    return outer;
}

static weft_tensor *chunk(evaluator *e, weft_tensor *tensor, int32_t m) {
    int32_t      outer = enter_micro(e, m);
    weft_tensor *made = make_chunk(e, tensor, m);
    e->to->micro = outer;
    return made;
}

/* This rank's rows of a split tensor: its chunks side by side. */
static weft_tensor *local_rows(evaluator *e, weft_tensor *tensor) {
    piece *p = piece_of(e, tensor);
    if (e->partition.micro == 1) return chunk(e, tensor, 0);
    weft_tensor **parts = wefti_graph_memory(e->to, sizeof *parts * (size_t)e->partition.micro);
    if (!parts) return &e->to->poison;
    for (int32_t m = 0; m < e->partition.micro; m++) parts[m] = chunk(e, tensor, m);
    wefti_attrs attrs = wefti_no_attrs();
    attrs.axis.axis = p->layout.axis;
    return wefti_emit(e->to, WEFT_OP_CONCAT, &attrs, parts, e->partition.micro, NULL);
}

/* Every rank's rows: each pads its own to the global extent, and the sum over ranks is the whole. */
static weft_tensor *gather_rows(evaluator *e, weft_tensor *tensor) {
    wefti_layout layout = piece_of(e, tensor)->layout;
    weft_tensor *own = local_rows(e, tensor);
    if (e->partition.ranks == 1 || wefti_poisoned(own)) return own;
    wefti_attrs attrs = wefti_no_attrs();
    attrs.pad.low[layout.axis] = e->local_first * layout.unit;
    attrs.pad.high[layout.axis] = (e->partition.rows - e->local_first - e->local_rows) * layout.unit;
    return all_reduce(e, emit(e, WEFT_OP_PAD, &attrs, own, NULL), WEFTI_REDUCE_SUM);
}

static weft_tensor *make_whole(evaluator *e, weft_tensor *tensor) {
    piece *p = piece_of(e, tensor);
    if (p->layout.kind == WEFTI_WHOLE && p->whole) return p->whole;
    if (p->layout.kind == WEFTI_PARTIAL) {
        if (p->whole) return p->whole;
        accumulate(e, tensor, e->partition.micro - 1);
        p->whole = p->update ? whole_compressed(e, tensor) : all_reduce(e, p->sum, p->layout.reduce);
        return p->whole;
    }
    if (p->layout.kind == WEFTI_SPLIT) {
        for (cut *known = p->cuts; known; known = known->next)
            if (known->layout.kind == WEFTI_WHOLE) return known->value;
        cut *fresh = wefti_graph_memory(e->to, sizeof *fresh);
        if (!fresh) return &e->to->poison;
        *fresh = (cut){.layout = wefti_layout_whole(), .value = gather_rows(e, tensor), .next = p->cuts};
        p->cuts = fresh;
        return fresh->value;
    }
    if (tensor->node->op == WEFT_OP_EXTENT) {
        p->whole = extent(e, tensor->node);
        return p->whole;
    }
    weft_tensor *made = make(e, tensor->node, 0);
    for (int32_t i = 0; i < tensor->node->n_outputs; i++) e->nodes[tensor->node->id][i].whole = wefti_output(made, i);
    return p->whole;
}

static weft_tensor *whole(evaluator *e, weft_tensor *tensor) {
    int32_t      outer = enter_micro(e, -1);
    weft_tensor *made = make_whole(e, tensor);
    e->to->micro = outer;
    return made;
}

/* --- cutting what is whole --- */

/* Copies a node that repeats its input along the split axis (EXPAND, MEAN_BACKWARD), or works element by element, with the
 * split pushed to its inputs; NULL where the op is neither. */
static weft_tensor *cut_through(evaluator *e, const wefti_node *node, wefti_layout layout, int32_t m) {
    wefti_family family = wefti_ops[node->op].family;
    bool         elementwise = family == WEFTI_UNARY || family == WEFTI_BINARY || family == WEFTI_TERNARY;
    bool         repeats = node->op == WEFT_OP_EXPAND || node->op == WEFT_OP_MEAN_BACKWARD;
    if (!elementwise && !repeats) return NULL;
    wefti_chunk  part = chunk_of(e, m);
    wefti_attrs  attrs = node->attrs;
    wefti_layout wanted[3] = {wefti_layout_whole(), wefti_layout_whole(), wefti_layout_whole()};
    weft_tensor *inputs[3];
    wefti_shard_attrs(node, wanted, &layout, &part, &attrs);
    for (int32_t i = 0; i < node->n_inputs; i++) {
        weft_tensor *input = node->inputs[i];
        int32_t      own = layout.axis - (node->outputs[0].shape.rank - input->shape.rank);
        bool         has = node->op != WEFT_OP_MEAN_BACKWARD && own >= 0 &&
                   input->shape.dim[own] == node->outputs[0].shape.dim[layout.axis];
        inputs[i] = has ? as_cut(e, input, wefti_layout_split(own, layout.unit), m) : whole(e, input);
    }
    return copy_node(e, node, &attrs, inputs);
}

static weft_tensor *cut_whole(evaluator *e, weft_tensor *tensor, wefti_layout layout, int32_t m) {
    const wefti_node *node = tensor->node;
    wefti_chunk       part = chunk_of(e, m);
    weft_shape        shape = tensor->shape;
    shape.dim[layout.axis] = part.rows * layout.unit;
    if (is_generator(node)) {
        wefti_attrs attrs = node->attrs;
        wefti_shard_attrs(node, NULL, &layout, &part, &attrs);
        return generate(e, node, &attrs, shape);
    }
    bool mean_keeps_axis = node->op == WEFT_OP_MEAN_BACKWARD && !(node->attrs.reduce.axes >> layout.axis & 1u);
    weft_tensor *through = mean_keeps_axis ? NULL : cut_through(e, node, layout, m);
    if (through) return through;
    weft_tensor *all = whole(e, tensor);
    if (!wefti_poisoned(all) && all->shape.dim[layout.axis] != e->partition.rows * layout.unit)
        return wefti_graph_fail(e->to, WEFT_E_SHAPE,
                                "'%s' %s has the batch size %lld built in, and is combined with a batch of %lld samples: "
                                "make it of an input, or drop batches that are not full",
                                node->name, weft_shape_text(tensor->shape).text, (long long)e->built_rows,
                                (long long)e->partition.rows);
    return slice(e, all, layout.axis, part.first_row * layout.unit, part.rows * layout.unit);
}

static weft_tensor *as_cut(evaluator *e, weft_tensor *tensor, wefti_layout layout, int32_t m) {
    piece *p = piece_of(e, tensor);
    if (same_layout(&p->layout, &layout)) return chunk(e, tensor, m);
    for (cut *known = p->cuts; known; known = known->next)
        if (known->m == m && same_layout(&known->layout, &layout)) return known->value;
    cut *fresh = wefti_graph_memory(e->to, sizeof *fresh);
    if (!fresh) return &e->to->poison;
    *fresh = (cut){.layout = layout, .m = m, .value = NULL};
    int32_t outer = enter_micro(e, m);
    fresh->value = cut_whole(e, tensor, layout, m);
    e->to->micro = outer;
    fresh->next = p->cuts; /* linked last: cutting may itself have added cuts */
    p->cuts = fresh;
    return fresh->value;
}

/* --- the whole graph --- */

static weft_tensor *leaf_named(evaluator *e, const char *name) {
    for (int32_t i = 0; i < e->from->n_leaves; i++)
        if (strcmp(e->from->leaves[i]->name, name) == 0) return leaf(e, e->from->leaves[i]);
    return wefti_graph_fail(e->to, WEFT_E_INTERNAL, "there is no input '%s'", name);
}

static void prepare_compression(evaluator *e) {
    e->compress = (wefti_compress){.how = e->partition.compress, .graph = e->to, .ranks = e->partition.ranks, .rank = e->partition.rank,
                                   .group = e->partition.group};
    if (e->guard && e->partition.scaled)
        e->compress.loss_scale = weft_cast(hyper_at(leaf_named(e, "weft.hyper"), WEFTI_HYPER_LOSS_SCALE), WEFT_F32);
}

/* What compression leaves out is kept, unless the step is skipped. */
static void keep_compressed(evaluator *e) {
    if (!e->first_compressed || e->to->status != WEFT_OK) return;
    weft_tensor *skip = weft_ne_scalar(hyper_at(whole(e, e->guard->inputs[2]), WEFTI_HYPER_SKIP), 0);
    for (wefti_compressed *one = e->first_compressed; one; one = one->next) wefti_compress_keep(one, skip);
}

/* Chunks micro-batch by micro-batch, sums as they come, then what is whole. */
static void emit_all(evaluator *e, weft_tensor *const *outputs, int32_t n_outputs, weft_tensor **outputs_out) {
    for (int32_t m = 0; m < e->partition.micro; m++)
        for (int32_t id = 0; id < e->from->n_nodes && e->to->status == WEFT_OK; id++)
            for (int32_t i = 0; i < e->from->nodes[id]->n_outputs; i++) {
                piece *p = &e->nodes[id][i];
                if (!p->needed || p->layout.kind == WEFTI_WHOLE) continue;
                (void)chunk(e, &e->from->nodes[id]->outputs[i], m);
                if (p->completed || p->given) accumulate(e, &e->from->nodes[id]->outputs[i], m);
                if (!p->completed || m < e->partition.micro - 1) continue;
                if (p->update) begin_compressed(e, &e->from->nodes[id]->outputs[i]);
                else (void)whole(e, &e->from->nodes[id]->outputs[i]);
                end_compressed(e, LAG);
            }
    end_compressed(e, 0);
    for (int32_t id = 0; id < e->from->n_nodes && e->to->status == WEFT_OK; id++)
        for (int32_t i = 0; i < e->from->nodes[id]->n_outputs; i++)
            if (e->nodes[id][i].needed && e->nodes[id][i].layout.kind == WEFTI_WHOLE &&
                !is_generator(e->from->nodes[id]))
                (void)whole(e, &e->from->nodes[id]->outputs[i]);
    keep_compressed(e);
    for (int32_t i = 0; i < n_outputs; i++)
        outputs_out[i] = piece_of(e, outputs[i])->layout.kind == WEFTI_SPLIT ? local_rows(e, outputs[i])
                                                                             : whole(e, outputs[i]);
}

weft_status wefti_partition_graph(const wefti_partition *partition, weft_graph *source, weft_tensor *const *outputs,
                                  int32_t n_outputs, bool training, weft_graph **graph_out, weft_tensor **outputs_out) {
    *graph_out = NULL;
    WEFTI_TRY(wefti_graph_status(source));
    evaluator e = {.partition = *partition, .from = source};
    WEFTI_TRY(wefti_graph_rows(source, &e.built_rows));
    if (e.partition.rows == 0) e.partition.rows = e.built_rows;
    if (e.partition.ranks < 1 || e.partition.micro < 1 || e.partition.rank < 0 || e.partition.rank >= e.partition.ranks)
        return wefti_fail(WEFT_E_INVALID, "cannot split a batch over rank %d of %d in %d micro-batches",
                          e.partition.rank, e.partition.ranks, e.partition.micro);
    weft_batch_share(e.partition.rows, e.partition.rank, e.partition.ranks, &e.local_first, &e.local_rows);
    WEFTI_TRY(weft_graph_create(&(weft_graph_options){.seed = source->seed, .name = source->name}, &e.to));
    size_t count = (size_t)source->n_nodes + 1;
    e.nodes = wefti_graph_memory(e.to, sizeof *e.nodes * count);
    e.wanted = wefti_graph_memory(e.to, sizeof *e.wanted * count);
    weft_status status = e.nodes && e.wanted ? analyse(&e) : wefti_graph_status(e.to);
    if (status == WEFT_OK) {
        mark(&e, outputs, n_outputs, training);
        prepare_compression(&e);
        emit_all(&e, outputs, n_outputs, outputs_out);
        status = wefti_graph_status(e.to);
    }
    if (status != WEFT_OK) {
        weft_graph_release(e.to);
        if (e.partition.rows != e.built_rows)
            status = wefti_while(status, "a batch of %lld samples in a graph that was built for %lld (if it has that number built in, drop "
                                 "batches that are not full)", (long long)e.partition.rows, (long long)e.built_rows);
        return wefti_while(status, "splitting the program over %d ranks", partition->ranks);
    }
    *graph_out = e.to;
    return WEFT_OK;
}

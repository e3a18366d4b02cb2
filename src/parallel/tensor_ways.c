/* What one rank emits for a node that is split: attributes of its part, and the few ops that need more than themselves.
 *
 * A table whose rows are dealt out is read by indices that are shifted to this rank's rows: others are out of range, read as zeros and dropped
 * where gradients are added, so sums over ranks have each row once. A loss over classes that are dealt out takes two messages of a number
 * or two for each row: the largest logit, then the sum of exponentials beside the label's own logit, which one rank has. Nobody has all
 * logits. Dropout by a mask on two axes makes the mask of both and keeps its part. */
#include <math.h>

#include "parallel/tensor.h"

typedef struct wefti_tensor_emitter emitter;

static weft_tensor *emit(const emitter *e, weft_op op, const wefti_attrs *attrs, weft_tensor *a, weft_tensor *b) {
    weft_tensor *inputs[2] = {a, b};
    return wefti_emit(e->to, op, attrs, inputs, b ? 2 : 1, NULL);
}

static weft_tensor *full(const emitter *e, weft_dtype dtype, weft_shape shape, double value) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.full.value = value;
    return wefti_emit_leaf(e->to, WEFT_OP_FULL, &attrs, dtype, shape, NULL, NULL);
}

static weft_tensor *number(const emitter *e, weft_dtype dtype, double value) { return full(e, dtype, weft_shape_scalar(), value); }

weft_tensor *wefti_tensor_all_reduce(const emitter *e, weft_tensor *tensor, wefti_reduce_op reduce) {
    wefti_attrs attrs = wefti_no_attrs();
    if (e->split->ranks == 1) return tensor;
    attrs.comm.reduce = reduce;
    attrs.comm.group = e->split->group;
    return emit(e, WEFT_OP_ALL_REDUCE, &attrs, tensor, NULL);
}

/* --- parts --- */

weft_tensor *wefti_tensor_slice(const emitter *e, weft_tensor *tensor, int32_t axis, int64_t begin, int64_t size) {
    wefti_attrs attrs = wefti_no_attrs();
    if (wefti_poisoned(tensor) || (begin == 0 && size == tensor->shape.dim[axis])) return tensor;
    for (int32_t i = 0; i < tensor->shape.rank; i++) {
        attrs.slice.step[i] = 1;
        attrs.slice.size[i] = i == axis ? size : tensor->shape.dim[i];
    }
    attrs.slice.start[axis] = begin;
    return emit(e, WEFT_OP_SLICE, &attrs, tensor, NULL);
}

weft_tensor *wefti_tensor_concat(const emitter *e, weft_tensor *const *parts, int32_t n, int32_t axis) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.axis.axis = axis;
    return n == 1 ? parts[0] : wefti_emit(e->to, WEFT_OP_CONCAT, &attrs, parts, n, NULL);
}

/* The stretches of an axis as an axis of their own, each cut into `ranks`. */
static weft_shape stretches(weft_shape shape, int32_t axis, int64_t repeats, int64_t ranks) {
    weft_shape out = {.rank = 0};
    for (int32_t i = 0; i < shape.rank; i++) {
        if (i == axis) out.dim[out.rank++] = repeats;
        if (i == axis && ranks > 1) out.dim[out.rank++] = ranks;
        out.dim[out.rank++] = i == axis ? shape.dim[i] / repeats / ranks : shape.dim[i];
    }
    return out;
}

static int64_t repeats_of(const wefti_layout *layout) { return layout->repeats ? layout->repeats : 1; }

static weft_tensor *part_of_stretches(const emitter *e, weft_tensor *tensor, const wefti_layout *layout) {
    weft_shape   shape = tensor->shape;
    int32_t      n = layout->folded ? 2 : 1;
    int64_t      each = shape.dim[layout->axis] / repeats_of(layout) / e->split->ranks / n;
    weft_tensor *parts[2];
    if (shape.rank == WEFT_MAX_RANK) return wefti_graph_fail(e->to, WEFT_E_SHAPE, "'%s' %s has too many axes to be cut", tensor->node->name, weft_shape_text(shape).text);
    weft_tensor *all = weft_reshape(tensor, stretches(shape, layout->axis, repeats_of(layout), 1));
    for (int32_t i = 0; i < n; i++)
        parts[i] = wefti_tensor_slice(e, all, layout->axis + 1, each * (layout->folded ? wefti_tensor_block(e->split, i) : e->split->rank), each);
    shape.dim[layout->axis] /= e->split->ranks;
    return weft_reshape(wefti_tensor_concat(e, parts, n, layout->axis + 1), shape);
}

/* Blocks of [ranks, stretches, part] in the order of what they are of: first the ranks' first ones, then, backwards, their second ones. */
static weft_tensor *unfold(const emitter *e, weft_tensor *by_rank, int32_t axis) {
    int32_t       ranks = e->split->ranks, n = 2 * ranks;
    weft_tensor **parts = wefti_graph_memory(e->to, sizeof *parts * (size_t)n);
    if (!parts || wefti_poisoned(by_rank)) return &e->to->poison;
    int64_t each = by_rank->shape.dim[axis + 2] / 2;
    for (int32_t i = 0; i < n; i++)
        parts[i] = wefti_tensor_slice(e, wefti_tensor_slice(e, by_rank, axis, i < ranks ? i : n - 1 - i, 1), axis + 2, i < ranks ? 0 : each, each);
    return wefti_tensor_concat(e, parts, n, axis + 2);
}

/* What came is [ranks, stretches, part]; it is to be [stretches, ranks, part]. */
static weft_tensor *whole_of_stretches(const emitter *e, weft_tensor *all, const wefti_layout *layout) {
    weft_shape  shape = all->shape, by_rank = stretches(shape, layout->axis, repeats_of(layout), e->split->ranks);
    wefti_attrs attrs = wefti_no_attrs();
    if (shape.rank + 2 > WEFT_MAX_RANK)
        return wefti_graph_fail(e->to, WEFT_E_SHAPE, "'%s' %s has too many axes to be put together", all->node->name, weft_shape_text(shape).text);
    by_rank.dim[layout->axis] = e->split->ranks;
    by_rank.dim[layout->axis + 1] = repeats_of(layout);
    all = weft_reshape(all, by_rank);
    if (layout->folded) return weft_reshape(unfold(e, all, layout->axis), shape);
    for (int32_t i = 0; i < by_rank.rank; i++) attrs.view.axes[i] = i == layout->axis ? i + 1 : i == layout->axis + 1 ? i - 1 : i;
    return weft_reshape(emit(e, WEFT_OP_PERMUTE, &attrs, all, NULL), shape);
}

weft_tensor *wefti_tensor_part(const emitter *e, weft_tensor *tensor, const wefti_layout *layout) {
    weft_tensor *parts[WEFTI_SECTIONS_MAX];
    if (wefti_poisoned(tensor)) return tensor;
    if (layout->repeats || layout->folded) return part_of_stretches(e, tensor, layout);
    wefti_window_of w = wefti_tensor_window(e->split, layout, tensor->shape);
    int64_t         begin = 0;
    for (int32_t i = 0; i < w.n_sections; begin += w.section[i++]) {
        int64_t count = w.section[i] / w.ranks;
        parts[i] = wefti_tensor_slice(e, tensor, w.axis, begin + count * w.rank, count);
    }
    return wefti_tensor_concat(e, parts, w.n_sections, w.axis);
}

weft_tensor *wefti_tensor_whole(const emitter *e, weft_tensor *part, const wefti_layout *layout) {
    wefti_attrs attrs = wefti_no_attrs();
    if (wefti_poisoned(part) || e->split->ranks == 1) return part;
    attrs.comm.axis = layout->axis;
    attrs.comm.group = e->split->group;
    attrs.comm.global = part->shape;
    attrs.comm.global.dim[layout->axis] *= e->split->ranks;
    weft_tensor *all = emit(e, WEFT_OP_ALL_GATHER, &attrs, part, NULL);
    if (!wefti_poisoned(all) && (layout->repeats || layout->folded)) return whole_of_stretches(e, all, layout);
    if (wefti_poisoned(all) || layout->sections == 0) return all;
    wefti_window_of w = wefti_tensor_window(e->split, layout, all->shape);
    int32_t         n = w.n_sections * w.ranks;
    weft_tensor   **parts = wefti_graph_memory(e->to, sizeof *parts * (size_t)n);
    if (!parts) return &e->to->poison;
    int64_t own = all->shape.dim[w.axis] / w.ranks, before = 0;
    for (int32_t i = 0; i < w.n_sections; before += w.section[i++] / w.ranks)
        for (int32_t r = 0; r < w.ranks; r++) parts[i * w.ranks + r] = wefti_tensor_slice(e, all, w.axis, own * r + before, w.section[i] / w.ranks);
    return wefti_tensor_concat(e, parts, n, w.axis);
}

/* --- rows of a table --- */

/* Where this rank has the rows of which an index tells where all ranks' have them: `each` rows of which it has one stretch, or one in either of two blocks.
 * Below zero or too far where it has none: then they are read as zeros and nothing is added to them. */
static weft_tensor *own_places(const emitter *e, weft_tensor *index, int64_t rows) {
    if (wefti_poisoned(index)) return index;
    weft_dtype dtype = index->dtype;
    if (!e->split->folded) return weft_sub(index, number(e, dtype, (double)rows * e->split->rank)); /* of the first rank too: all emit the same nodes */
    int64_t      each = rows / 2;
    weft_tensor *place = number(e, dtype, -1), *none = number(e, dtype, 0), *end = number(e, dtype, (double)each);
    for (int32_t i = 0; i < 2; i++) {
        weft_tensor *in_block = weft_sub(index, number(e, dtype, (double)each * wefti_tensor_block(e->split, i)));
        weft_tensor *here = weft_and(weft_ge(in_block, none), weft_lt(in_block, end));
        place = weft_where(here, weft_add(in_block, number(e, dtype, (double)each * i)), place);
    }
    return place;
}

static weft_tensor *by_rows_of_table(const emitter *e, const wefti_node *node, weft_tensor *const *inputs) {
    weft_tensor *own[3] = {inputs[0], inputs[1], node->n_inputs == 3 ? inputs[2] : NULL};
    if (wefti_poisoned(inputs[0])) return inputs[0];
    own[1] = own_places(e, inputs[1], inputs[0]->shape.dim[node->attrs.axis.axis]);
    return wefti_emit(e->to, node->op, &node->attrs, own, node->n_inputs, node->name);
}

/* A slice of a few places of a split axis: ranks that have them give what is there, and the others zeros. */
static weft_tensor *by_places(const emitter *e, const wefti_node *node, int32_t axis, weft_tensor *x) {
    wefti_attrs  steps = wefti_no_attrs(), along = wefti_no_attrs();
    weft_tensor *own[2] = {x, NULL};
    if (wefti_poisoned(x)) return x;
    steps.arange.start = (double)node->attrs.slice.start[axis];
    steps.arange.step = (double)node->attrs.slice.step[axis];
    along.axis.axis = axis;
    own[1] = own_places(e, wefti_emit_leaf(e->to, WEFT_OP_ARANGE, &steps, WEFT_I64, weft_shape(node->attrs.slice.size[axis]), NULL, NULL), x->shape.dim[axis]);
    return wefti_emit(e->to, WEFT_OP_GATHER, &along, own, 2, node->name);
}

/* --- classes --- */

/* What both directions need to know of a rank's classes. */
typedef struct classes {
    weft_tensor *x;      /* logits [..., C] in f32 or f64 */
    weft_tensor *place;  /* i64 [...]: of the label's logit among all of x; -1 where another rank has it, or nobody */
    weft_tensor *valid;  /* bool [...]: there is such a class */
    weft_tensor *ignored; /* bool [...]; NULL: no label is */
    double       smoothing, count; /* of all classes */
} classes;

static bool open_classes(const emitter *e, const wefti_node *node, weft_tensor *logits, weft_tensor *label, classes *c) {
    if (wefti_poisoned(logits) || wefti_poisoned(label)) return false;
    int64_t      own = logits->shape.dim[logits->shape.rank - 1];
    wefti_attrs  attrs = wefti_no_attrs();
    weft_tensor *wide = weft_cast(label, WEFT_I64);
    attrs.arange.step = (double)own;
    *c = (classes){.x = weft_cast(logits, logits->dtype == WEFT_F64 ? WEFT_F64 : WEFT_F32), .smoothing = node->attrs.loss.smoothing,
                   .count = (double)own * e->split->ranks};
    weft_tensor *first = wefti_emit_leaf(e->to, WEFT_OP_ARANGE, &attrs, WEFT_I64, weft_shape(weft_shape_elements(label->shape)), NULL, NULL);
    weft_tensor *shifted = weft_sub(wide, number(e, WEFT_I64, (double)own * e->split->rank));
    weft_tensor *here = weft_and(weft_ge(shifted, number(e, WEFT_I64, 0)), weft_lt(shifted, number(e, WEFT_I64, (double)own)));
    c->valid = weft_and(weft_ge(wide, number(e, WEFT_I64, 0)), weft_lt(wide, number(e, WEFT_I64, c->count)));
    if (node->attrs.loss.has_ignored) {
        c->ignored = weft_eq(wide, number(e, WEFT_I64, (double)node->attrs.loss.ignored));
        here = weft_and(here, weft_not(c->ignored));
    }
    c->place = weft_where(here, weft_add(weft_reshape(first, label->shape), shifted), number(e, WEFT_I64, -1));
    return true;
}

static weft_tensor *flat(weft_tensor *x) { return weft_reshape(x, weft_shape(-1)); }

/* A number of each row by another of the row's form, with a last axis of one. */
static weft_tensor *beside(weft_tensor *row) { return wefti_poisoned(row) ? row : weft_unsqueeze(row, -1); }

/* Sums over the ranks of up to three numbers for each row, by one message. */
static void sum_rows(const emitter *e, weft_tensor **rows, int32_t n) {
    weft_tensor *parts[3];
    if (wefti_poisoned(rows[0])) return;
    weft_shape shape = rows[0]->shape;
    for (int32_t i = 0; i < n; i++) parts[i] = weft_reshape(rows[i], weft_shape(1, weft_shape_elements(shape)));
    weft_tensor *all = wefti_tensor_all_reduce(e, wefti_tensor_concat(e, parts, n, 0), WEFTI_REDUCE_SUM);
    for (int32_t i = 0; i < n; i++) rows[i] = wefti_poisoned(all) ? all : weft_reshape(wefti_tensor_slice(e, all, 0, i, 1), shape);
}

static void cross_entropy(const emitter *e, const wefti_node *node, weft_tensor *const *inputs, weft_tensor **outputs_out) {
    classes c;
    outputs_out[0] = outputs_out[1] = &e->to->poison;
    if (!open_classes(e, node, inputs[0], inputs[1], &c)) return;
    int32_t      last = c.x->shape.rank - 1, n = c.smoothing > 0 ? 3 : 2;
    weft_tensor *most = wefti_tensor_all_reduce(e, weft_max(c.x, .axes = weft_axes(last)), WEFTI_REDUCE_MAX);
    weft_tensor *rows[3] = {weft_sum(weft_exp(weft_sub(c.x, beside(most))), .axes = weft_axes(last)),
                            weft_gather(flat(c.x), c.place, 0),
                            n == 3 ? weft_sum(c.x, .axes = weft_axes(last)) : NULL};
    sum_rows(e, rows, n);
    weft_tensor *lse = weft_add(weft_log(rows[0]), most), *loss = weft_sub(lse, rows[1]);
    weft_dtype   dtype = c.x->dtype;
    if (n == 3) {
        weft_tensor *even = weft_sub(lse, weft_mul(rows[2], number(e, dtype, 1 / c.count)));
        loss = weft_add(weft_mul(loss, number(e, dtype, 1 - c.smoothing)), weft_mul(even, number(e, dtype, c.smoothing)));
    }
    loss = weft_where(c.valid, loss, number(e, dtype, (double)NAN));
    if (c.ignored) loss = weft_where(c.ignored, number(e, dtype, 0), loss);
    outputs_out[0] = loss;
    outputs_out[1] = lse;
}

static weft_tensor *cross_entropy_backward(const emitter *e, const wefti_node *node, weft_tensor *const *inputs) {
    classes c;
    if (!open_classes(e, node, inputs[1], inputs[2], &c)) return &e->to->poison;
    weft_dtype   dtype = c.x->dtype;
    weft_tensor *g = weft_where(c.valid, weft_cast(inputs[0], dtype), number(e, dtype, (double)NAN));
    if (c.ignored) g = weft_where(c.ignored, number(e, dtype, 0), g);
    weft_tensor *p = weft_exp(weft_sub(c.x, beside(inputs[3])));
    if (c.smoothing > 0) p = weft_sub(p, number(e, dtype, c.smoothing / c.count));
    weft_tensor *dense = weft_mul(p, beside(g)), *back = weft_mul(g, number(e, dtype, c.smoothing - 1));
    weft_tensor *sum = weft_scatter_add(flat(dense), c.place, back, 0);
    return weft_cast(weft_reshape(sum, c.x->shape), inputs[1]->dtype);
}

/* --- dropout --- */

/* What begins at `begin` of an axis of `extent`, which may itself be a part, along the same axis, of the whole that numbers are drawn for. */
static wefti_window within(const wefti_window *window, int32_t axis, int64_t begin, int64_t extent) {
    bool part = window->split && window->axis == axis;
    return (wefti_window){1, axis, begin + (part ? window->begin : 0), part ? window->global : extent};
}

static weft_tensor *by_mask(const emitter *e, const wefti_node *node, const wefti_layout *out, weft_tensor *const *inputs) {
    weft_tensor *mask[2] = {full(e, node->outputs[0].dtype, node->outputs[0].shape, 1), inputs[1]};
    return weft_mul(inputs[0], wefti_tensor_part(e, wefti_emit(e->to, WEFT_OP_DROPOUT, &node->attrs, mask, 2, node->name), out));
}

/* --- blocks --- */

static void block_attrs(const wefti_node *node, int32_t axis, int64_t begin, int64_t extent, wefti_attrs *attrs) {
    if (node->op == WEFT_OP_ROTARY) attrs->rotary.offset += begin;
    else attrs->dropout.window = within(&node->attrs.dropout.window, axis, begin, extent);
}

/* What depends on where in time an element is, on each of the two blocks of a rank. */
static weft_tensor *by_blocks(const emitter *e, const wefti_node *node, const wefti_layout *out, weft_tensor *const *inputs) {
    weft_tensor *parts[2], *own[2] = {inputs[0], node->n_inputs == 2 ? inputs[1] : NULL};
    if (wefti_poisoned(inputs[0])) return inputs[0];
    int64_t each = out->unit / 2;
    for (int32_t i = 0; i < 2; i++) {
        wefti_attrs attrs = node->attrs;
        block_attrs(node, out->axis, each * wefti_tensor_block(e->split, i), out->unit * e->split->ranks, &attrs);
        own[0] = wefti_tensor_slice(e, inputs[0], out->axis, each * i, each);
        parts[i] = wefti_emit(e->to, node->op, &attrs, own, node->n_inputs, node->name);
    }
    return wefti_tensor_concat(e, parts, 2, out->axis);
}

void wefti_tensor_emit_way(const emitter *e, wefti_tensor_way way, const wefti_node *node, const wefti_layout *wanted, const wefti_layout *outputs,
                           weft_tensor *const *inputs, weft_tensor **outputs_out) {
    e->to->flags = node->flags;
    e->to->segment = node->segment;
    e->to->place = node->place;
    e->to->micro = node->micro;
    if (way == WEFTI_BY_ROWS_OF_TABLE) outputs_out[0] = by_rows_of_table(e, node, inputs);
    else if (way == WEFTI_BY_PLACES) outputs_out[0] = by_places(e, node, wanted[0].axis, inputs[0]);
    else if (way == WEFTI_BY_RING) wefti_sequence_attention(e, node, inputs, outputs_out);
    else if (way == WEFTI_BY_BLOCKS) outputs_out[0] = by_blocks(e, node, outputs, inputs);
    else if (way == WEFTI_BY_MASK) outputs_out[0] = by_mask(e, node, outputs, inputs);
    else if (node->op == WEFT_OP_CROSS_ENTROPY) cross_entropy(e, node, inputs, outputs_out);
    else outputs_out[0] = cross_entropy_backward(e, node, inputs);
    e->to->flags = 0;
    e->to->segment = e->to->place = e->to->micro = 0;
}

/* --- attributes --- */

static double count_of(weft_shape shape, uint32_t axes) {
    double count = 1;
    for (int32_t axis = 0; axis < shape.rank; axis++)
        if (axes >> axis & 1u) count *= (double)shape.dim[axis];
    return count;
}

static bool is_split(const wefti_layout *layout) { return layout->kind == WEFTI_SPLIT; }

static void conv_attrs(const wefti_tensor_split *split, const wefti_node *node, const wefti_layout *wanted, const wefti_layout *out, wefti_attrs *attrs) {
    bool input = node->op == WEFT_OP_CONV2D_BACKWARD_INPUT; /* its result is the input, the filters its second operand; else the other way */
    weft_shape *result = input ? &attrs->conv.input : &attrs->conv.weight, *operand = input ? &attrs->conv.weight : &attrs->conv.input;
    if (is_split(out) && result->rank == 4) result->dim[out->axis] /= split->ranks;
    if (is_split(&wanted[1]) && operand->rank == 4) operand->dim[wanted[1].axis] /= split->ranks;
}

void wefti_tensor_attrs(const wefti_tensor_split *split, const wefti_node *node, const wefti_layout *wanted, const wefti_layout *outputs,
                        wefti_attrs *attrs) {
    const wefti_layout *out = &outputs[0];
    switch (node->op) {
    case WEFT_OP_MEAN:
    case WEFT_OP_EXTENT:
        if (is_split(&wanted[0]) && attrs->reduce.count == 0) attrs->reduce.count = count_of(node->inputs[0]->shape, attrs->reduce.axes);
        break;
    case WEFT_OP_MEAN_BACKWARD:
        if (!is_split(out)) break;
        if (attrs->reduce.count == 0) attrs->reduce.count = count_of(attrs->reduce.shape, attrs->reduce.axes);
        attrs->reduce.shape.dim[out->axis] /= split->ranks;
        break;
    case WEFT_OP_SLICE:
        if (!is_split(out)) break;
        attrs->slice.size[out->axis] /= split->ranks;
        attrs->slice.start[out->axis] /= split->ranks; /* sections before it are dealt out as well */
        break;
    case WEFT_OP_ROTARY:
        if (is_split(out) && out->axis == node->outputs[0].shape.rank - 2) attrs->rotary.offset += out->unit * split->rank;
        break;
    case WEFT_OP_ALL_REDUCE:
        if (split->along == WEFTI_MESH_SEQUENCE && wanted[0].kind == WEFTI_PARTIAL && out->kind == WEFTI_WHOLE) attrs->comm.group |= split->group;
        break;
    case WEFT_OP_RECEIVE:
    case WEFT_OP_EXCHANGE_ROWS:
        if (is_split(out)) attrs->comm.global.dim[out->axis] /= split->ranks;
        break;
    case WEFT_OP_CONV2D_BACKWARD_INPUT:
    case WEFT_OP_CONV2D_BACKWARD_WEIGHT: conv_attrs(split, node, wanted, out, attrs); break;
    case WEFT_OP_DROPOUT:
        if (is_split(out)) attrs->dropout.window = within(&node->attrs.dropout.window, out->axis, out->unit * split->rank, out->unit * split->ranks);
        break;
    case WEFT_OP_RANDOM:
        if (is_split(out)) attrs->random.window = within(&node->attrs.random.window, out->axis, out->unit * split->rank, out->unit * split->ranks);
        break;
    default: {
        wefti_chunk chunk = {.rows = 1, .first_row = split->rank, .global_rows = split->ranks, .input = node->outputs[0].shape};
        wefti_shard_attrs(node, wanted, outputs, &chunk, attrs);
    }
    }
}

/* The rules of how ops turn layouts into layouts: one function per name in the `shard` column of ops.def.
 *
 * A rule reads the inputs' layouts, and says how it wants each input delivered and what its outputs then are. Anything a
 * rule does not say is whole, which is always right and never fast; so a rule that is missing a case costs messages, not
 * results. A tensor wanted SPLIT that is whole is sliced (or generated locally) by whoever delivers it. */
#include "parallel/shard.h"

static bool is_split(const wefti_layout *layout) { return layout->kind == WEFTI_SPLIT; }
static bool is_sum(const wefti_layout *layout) {
    return layout->kind == WEFTI_PARTIAL && layout->reduce == WEFTI_REDUCE_SUM;
}
static const weft_tensor *input(const wefti_shard *s, int32_t i) { return s->node->inputs[i]; }
static int32_t            rank_of(const wefti_shard *s, int32_t i) { return input(s, i)->shape.rank; }

/* All outputs get `layout`. */
static void outputs_are(wefti_shard *s, wefti_layout layout) {
    for (int32_t i = 0; i < s->node->n_outputs; i++) s->outputs[i] = layout;
}

static void shard_leaf(wefti_shard *s) {
    if (s->op != WEFT_OP_INPUT || s->node->leaf->batch_axis < 0 || s->rows <= 0) return;
    int32_t axis = s->node->leaf->batch_axis;
    s->outputs[0] = wefti_layout_split(axis, s->node->outputs[0].shape.dim[axis] / s->rows);
}

/* Generators make what their user wants: whole here, cut where a split is wanted of them. */
static void shard_generate(wefti_shard *s) { (void)s; }

/* Sums pass through what is linear: then fewer, later and joined messages. */
static bool elementwise_keeps_sum(wefti_shard *s) {
    const wefti_layout *in = s->inputs;
    bool                keeps = false;
    switch (s->op) {
    case WEFT_OP_NEG:
    case WEFT_OP_COPY:
    case WEFT_OP_DETACH: keeps = is_sum(&in[0]); break;
    case WEFT_OP_CAST: /* to a wider type: sums of many ranks are made in that */
        keeps = is_sum(&in[0]) && weft_dtype_is_float(input(s, 0)->dtype) &&
                weft_dtype_bytes(input(s, 0)->dtype) <= weft_dtype_bytes(s->node->outputs[0].dtype);
        break;
    case WEFT_OP_ADD:
    case WEFT_OP_SUB: keeps = is_sum(&in[0]) && is_sum(&in[1]); break;
    case WEFT_OP_MUL:
        keeps = (is_sum(&in[0]) && in[1].kind == WEFTI_WHOLE) || (is_sum(&in[1]) && in[0].kind == WEFTI_WHOLE);
        break;
    case WEFT_OP_DIV: keeps = is_sum(&in[0]) && in[1].kind == WEFTI_WHOLE; break;
    default: break;
    }
    /* An integer quotient of a sum is not the sum of quotients. */
    if (!keeps || !weft_dtype_is_float(s->node->outputs[0].dtype)) return false;
    for (int32_t i = 0; i < s->node->n_inputs; i++) s->wanted[i] = in[i];
    outputs_are(s, wefti_layout_partial(WEFTI_REDUCE_SUM));
    return true;
}

/* Wants every input cut where output axis `axis` is, as far as it has that axis. */
static void want_aligned(wefti_shard *s, int32_t axis, int64_t unit) {
    int32_t rank = s->node->outputs[0].shape.rank;
    for (int32_t i = 0; i < s->node->n_inputs; i++) {
        int32_t own = axis - (rank - rank_of(s, i));
        if (own >= 0 && input(s, i)->shape.dim[own] == s->node->outputs[0].shape.dim[axis])
            s->wanted[i] = wefti_layout_split(own, unit);
    }
    outputs_are(s, wefti_layout_split(axis, unit));
}

static void shard_elementwise(wefti_shard *s) {
    int32_t rank = s->node->outputs[0].shape.rank;
    for (int32_t i = 0; i < s->node->n_inputs; i++)
        if (is_split(&s->inputs[i])) {
            want_aligned(s, s->inputs[i].axis + rank - rank_of(s, i), s->inputs[i].unit);
            return;
        }
    (void)elementwise_keeps_sum(s);
}

static void shard_dropout(wefti_shard *s) {
    if (!is_split(&s->inputs[0])) return;
    s->wanted[0] = s->inputs[0];
    s->outputs[0] = s->inputs[0];
}

/* Where axis `axis` of a reduction's input is in its output; -1 where it is reduced away. */
static int32_t after_reduce(uint32_t axes, bool keep, int32_t axis) {
    if (axes >> axis & 1u) return -1;
    if (keep) return axis;
    int32_t before = 0;
    for (int32_t i = 0; i < axis; i++) before += (int32_t)(axes >> i & 1u);
    return axis - before;
}

static void shard_reduction(wefti_shard *s, wefti_reduce_op reduce, bool linear) {
    const wefti_layout *in = &s->inputs[0];
    if (linear && is_sum(in)) {
        s->wanted[0] = *in;
        s->outputs[0] = *in;
    } else if (is_split(in)) {
        s->wanted[0] = *in;
        int32_t axis = after_reduce(s->node->attrs.reduce.axes, s->node->attrs.reduce.keep, in->axis);
        s->outputs[0] = axis < 0 ? wefti_layout_partial(reduce) : wefti_layout_split(axis, in->unit);
    }
}
static void shard_reduce_sum(wefti_shard *s) { shard_reduction(s, WEFTI_REDUCE_SUM, true); }
static void shard_reduce_mean(wefti_shard *s) { shard_reduction(s, WEFTI_REDUCE_SUM, true); }
static void shard_reduce_max(wefti_shard *s) { shard_reduction(s, WEFTI_REDUCE_MAX, false); }
static void shard_reduce_min(wefti_shard *s) { shard_reduction(s, WEFTI_REDUCE_MIN, false); }
static void shard_reduce_argmax(wefti_shard *s) {
    if (is_split(&s->inputs[0]) && !(s->node->attrs.reduce.axes >> s->inputs[0].axis & 1u))
        shard_reduction(s, WEFTI_REDUCE_MAX, false);
}
/* Only the shape of the input matters, and that is known: the evaluator makes a number of it. */
static void shard_extent(wefti_shard *s) { s->wanted[0] = s->inputs[0]; }

static void shard_mean_backward(wefti_shard *s) {
    const wefti_layout *in = &s->inputs[0];
    if (!is_split(in)) return; /* whole: cut where a split is wanted of it */
    uint32_t axes = s->node->attrs.reduce.axes;
    for (int32_t axis = 0; axis < s->node->outputs[0].shape.rank; axis++)
        if (after_reduce(axes, s->node->attrs.reduce.keep, axis) == in->axis && !(axes >> axis & 1u)) {
            s->wanted[0] = *in;
            s->outputs[0] = wefti_layout_split(axis, in->unit);
            return;
        }
}

static void pass_sum(wefti_shard *s) {
    if (!is_sum(&s->inputs[0])) return;
    s->wanted[0] = s->inputs[0];
    s->outputs[0] = s->inputs[0];
}

bool wefti_shard_reshape(weft_shape in, weft_shape out, wefti_layout from, int64_t rows, wefti_layout *to_out) {
    int64_t before = 1;
    for (int32_t i = 0; i < from.axis; i++) before *= in.dim[i];
    int64_t extent = in.dim[from.axis], merged = extent; /* extents of the axis merged with 0, 1, … that follow */
    int64_t prefix = 1;
    for (int32_t axis = 0; axis < out.rank; prefix *= out.dim[axis], axis++) {
        if (prefix != before) continue;
        if (out.dim[axis] == 1 && extent != 1) continue;
        if (out.dim[axis] == 0 || rows == 0) return false;
        /* torn into several axes: [rows*unit] -> [rows*u, …] */
        if (extent % out.dim[axis] == 0 && out.dim[axis] % rows == 0) {
            *to_out = wefti_layout_split(axis, out.dim[axis] / rows);
            return true;
        }
        for (int32_t next = from.axis; next < in.rank; merged *= ++next < in.rank ? in.dim[next] : 1)
            if (merged == out.dim[axis]) {
                *to_out = wefti_layout_split(axis, merged / rows);
                return true;
            }
        return false;
    }
    return false;
}

static void shard_reshape(wefti_shard *s) {
    pass_sum(s);
    wefti_layout to;
    if (is_split(&s->inputs[0]) &&
        wefti_shard_reshape(input(s, 0)->shape, s->node->outputs[0].shape, s->inputs[0], s->rows, &to)) {
        s->wanted[0] = s->inputs[0];
        s->outputs[0] = to;
    }
}

static void shard_permute(wefti_shard *s) {
    pass_sum(s);
    if (!is_split(&s->inputs[0])) return;
    for (int32_t axis = 0; axis < rank_of(s, 0); axis++)
        if (s->node->attrs.view.axes[axis] == s->inputs[0].axis) {
            s->wanted[0] = s->inputs[0];
            s->outputs[0] = wefti_layout_split(axis, s->inputs[0].unit);
        }
}

static void shard_slice(wefti_shard *s) {
    pass_sum(s);
    const wefti_layout *in = &s->inputs[0];
    if (!is_split(in)) return;
    if (s->node->attrs.slice.start[in->axis] != 0 || s->node->attrs.slice.step[in->axis] != 1 ||
        s->node->attrs.slice.size[in->axis] != input(s, 0)->shape.dim[in->axis])
        return;
    s->wanted[0] = *in;
    s->outputs[0] = *in;
}

static void shard_expand(wefti_shard *s) {
    pass_sum(s);
    if (!is_split(&s->inputs[0])) return;
    int32_t shift = s->node->outputs[0].shape.rank - rank_of(s, 0);
    s->wanted[0] = s->inputs[0];
    s->outputs[0] = wefti_layout_split(s->inputs[0].axis + shift, s->inputs[0].unit);
}

static void shard_concat(wefti_shard *s) {
    for (int32_t i = 0; i < s->node->n_inputs; i++)
        if (is_split(&s->inputs[i]) && s->inputs[i].axis != s->node->attrs.axis.axis) {
            want_aligned(s, s->inputs[i].axis, s->inputs[i].unit);
            return;
        }
}

static void shard_pad(wefti_shard *s) {
    if (s->node->attrs.pad.value == 0) pass_sum(s);
    const wefti_layout *in = &s->inputs[0];
    if (!is_split(in) || s->node->attrs.pad.low[in->axis] || s->node->attrs.pad.high[in->axis] ||
        s->node->attrs.pad.interior[in->axis])
        return;
    s->wanted[0] = *in;
    s->outputs[0] = *in;
}

static void shard_gather(wefti_shard *s) {
    int32_t             along = s->node->attrs.axis.axis;
    const wefti_layout *x = &s->inputs[0], *index = &s->inputs[1];
    if (is_split(index)) {
        s->wanted[1] = *index;
        s->outputs[0] = wefti_layout_split(along + index->axis, index->unit);
    } else if (is_split(x) && x->axis != along) {
        s->wanted[0] = *x;
        int32_t axis = x->axis < along ? x->axis : x->axis - 1 + rank_of(s, 1);
        s->outputs[0] = wefti_layout_split(axis, x->unit);
    }
}

/* x + what u adds: where the slices are split the result is a sum of contributions, to which one chunk brings x. */
static void shard_scatter_add(wefti_shard *s) {
    int32_t             along = s->node->attrs.axis.axis;
    const wefti_layout *x = &s->inputs[0], *index = &s->inputs[1], *u = &s->inputs[2];
    const wefti_layout *cut = is_split(index) ? index : NULL;
    wefti_layout        of_u;
    if (!cut && is_split(u) && u->axis >= along && u->axis < along + rank_of(s, 1)) {
        of_u = wefti_layout_split(u->axis - along, u->unit);
        cut = &of_u;
    }
    if (cut) {
        s->wanted[1] = *cut;
        s->wanted[2] = wefti_layout_split(along + cut->axis, cut->unit);
        s->outputs[0] = wefti_layout_partial(WEFTI_REDUCE_SUM);
        return;
    }
    int32_t axis = is_split(x) ? x->axis : -1;
    if (axis < 0 && is_split(u)) axis = u->axis < along ? u->axis : u->axis + 1 - rank_of(s, 1);
    if (axis < 0 || axis == along) return;
    int64_t unit = is_split(x) ? x->unit : u->unit;
    s->wanted[0] = wefti_layout_split(axis, unit);
    s->wanted[2] = wefti_layout_split(axis < along ? axis : axis - 1 + rank_of(s, 1), unit);
    s->outputs[0] = s->wanted[0];
}

/* The three kinds of axis of a matmul operand: leading (batch), free (a row of a, a column of b), inner. */
static void shard_matmul(wefti_shard *s) {
    int32_t rank = s->node->outputs[0].shape.rank;
    for (int32_t i = 0; i < 2; i++) {
        const wefti_layout *in = &s->inputs[i];
        if (!is_split(in)) continue;
        int32_t other = 1 - i, own_rank = rank_of(s, i), other_rank = rank_of(s, other);
        bool    trans = i == 0 ? s->node->attrs.matmul.trans_a : s->node->attrs.matmul.trans_b;
        bool    other_trans = i == 0 ? s->node->attrs.matmul.trans_b : s->node->attrs.matmul.trans_a;
        s->wanted[i] = *in;
        if (in->axis < own_rank - 2) {
            int32_t axis = in->axis + rank - own_rank, theirs = axis - (rank - other_rank);
            if (theirs >= 0 && input(s, other)->shape.dim[theirs] == input(s, i)->shape.dim[in->axis])
                s->wanted[other] = wefti_layout_split(theirs, in->unit);
            s->outputs[0] = wefti_layout_split(axis, in->unit);
            return;
        }
        /* the last axis but one is a's row (free) unless transposed, and b's row (inner) unless transposed */
        bool is_row = in->axis == own_rank - 2;
        bool inner = i == 0 ? is_row == trans : is_row != trans;
        if (!inner) {
            s->outputs[0] = wefti_layout_split(i == 0 ? rank - 2 : rank - 1, in->unit);
            return;
        }
        bool other_row = i == 0 ? !other_trans : other_trans;
        s->wanted[other] = wefti_layout_split(other_row ? other_rank - 2 : other_rank - 1, in->unit);
        s->outputs[0] = wefti_layout_partial(WEFTI_REDUCE_SUM);
        return;
    }
}

/* Which place in the whole batch an element has, only the whole batch tells. */
static void shard_occurrence(wefti_shard *s) { (void)s; }

/* The layout of `count` values for each row of x; false where x's rows and theirs are not cut alike. */
static bool repeated_rows(const wefti_shard *s, const wefti_layout *rows, bool of_x, wefti_layout *x_out, wefti_layout *index_out) {
    int64_t repeat = s->node->attrs.expert.repeat;
    if (!is_split(rows) || rows->axis != 0 || (!of_x && rows->unit % repeat)) return false;
    *x_out = wefti_layout_split(0, of_x ? rows->unit : rows->unit / repeat);
    *index_out = wefti_layout_split(0, x_out->unit * repeat);
    return true;
}

/* Rows first, for they count samples; then what the matrices are split along: what they give, or what they take. */
static void shard_expert_matmul(wefti_shard *s) {
    wefti_layout x, rows;
    int32_t      in = s->node->attrs.expert.trans ? 2 : 1, out = 3 - in;
    if (repeated_rows(s, &s->inputs[0], true, &x, &rows) || repeated_rows(s, &s->inputs[2], false, &x, &rows)) {
        s->wanted[0] = x;
        s->wanted[2] = s->outputs[0] = rows;
    } else if (is_split(&s->inputs[1]) && s->inputs[1].axis == out) {
        s->wanted[1] = s->inputs[1];
        s->outputs[0] = wefti_layout_split(1, s->inputs[1].unit);
    } else if ((is_split(&s->inputs[1]) && s->inputs[1].axis == in) || (is_split(&s->inputs[0]) && s->inputs[0].axis == 1)) {
        int64_t unit = is_split(&s->inputs[1]) && s->inputs[1].axis == in ? s->inputs[1].unit : s->inputs[0].unit;
        s->wanted[0] = wefti_layout_split(1, unit);
        s->wanted[1] = wefti_layout_split(in, unit);
        s->outputs[0] = wefti_layout_partial(WEFTI_REDUCE_SUM);
    }
}

static void shard_expert_matmul_backward_weight(wefti_shard *s) {
    wefti_layout x, rows;
    int32_t      in = s->node->attrs.expert.trans ? 2 : 1, out = 3 - in;
    if (repeated_rows(s, &s->inputs[0], true, &x, &rows) || repeated_rows(s, &s->inputs[1], false, &x, &rows) ||
        repeated_rows(s, &s->inputs[2], false, &x, &rows)) {
        s->wanted[0] = x;
        s->wanted[1] = s->wanted[2] = rows;
        s->outputs[0] = wefti_layout_partial(WEFTI_REDUCE_SUM);
    } else if (is_split(&s->inputs[1])) {
        s->wanted[1] = s->inputs[1];
        s->outputs[0] = wefti_layout_split(out, s->inputs[1].unit);
    } else if (is_split(&s->inputs[0])) {
        s->wanted[0] = s->inputs[0];
        s->outputs[0] = wefti_layout_split(in, s->inputs[0].unit);
    }
}

static void split_first(wefti_shard *s, int32_t n_inputs, const wefti_layout *like) {
    for (int32_t i = 0; i < n_inputs; i++) s->wanted[i] = *like;
    outputs_are(s, *like);
}
static void shard_conv2d(wefti_shard *s) {
    if (is_split(&s->inputs[0]) && s->inputs[0].axis == 0) split_first(s, 1, &s->inputs[0]);
}
static void shard_conv2d_backward_input(wefti_shard *s) { shard_conv2d(s); }
static void shard_conv2d_backward_weight(wefti_shard *s) {
    for (int32_t i = 0; i < 2; i++)
        if (is_split(&s->inputs[i]) && s->inputs[i].axis == 0) {
            s->wanted[0] = s->wanted[1] = s->inputs[i];
            s->outputs[0] = wefti_layout_partial(WEFTI_REDUCE_SUM);
            return;
        }
}
/* Pooling treats samples and channels alike, one plane at a time. */
static void shard_batch(wefti_shard *s) {
    for (int32_t i = 0; i < s->node->n_inputs; i++)
        if (is_split(&s->inputs[i]) && s->inputs[i].axis < 2) {
            split_first(s, s->node->n_inputs, &s->inputs[i]);
            return;
        }
}

/* Leading axes that count rows: all but those that a row consists of. */
static int32_t leading_axes(const wefti_node *node) {
    switch (node->op) {
    case WEFT_OP_NORMALIZE: return node->inputs[0]->shape.rank - node->attrs.rows.axes;
    case WEFT_OP_NORMALIZE_BACKWARD: return node->inputs[2]->shape.rank;
    case WEFT_OP_CROSS_ENTROPY: return node->inputs[1]->shape.rank;
    case WEFT_OP_CROSS_ENTROPY_BACKWARD: return node->inputs[0]->shape.rank;
    default: return node->inputs[0]->shape.rank - 1;
    }
}
static void shard_rows(wefti_shard *s) {
    for (int32_t i = 0; i < s->node->n_inputs; i++)
        if (is_split(&s->inputs[i]) && s->inputs[i].axis < leading_axes(s->node)) {
            split_first(s, s->node->n_inputs, &s->inputs[i]);
            return;
        }
}
static void shard_rotary(wefti_shard *s) {
    if (is_split(&s->inputs[0]) && s->inputs[0].axis < rank_of(s, 0) - 2) split_first(s, 1, &s->inputs[0]);
}
/* Samples, and heads where queries and keys have as many. */
static void shard_attention(wefti_shard *s) {
    for (int32_t i = 0; i < s->node->n_inputs; i++) {
        const wefti_layout *in = &s->inputs[i];
        if (!is_split(in) || in->axis > 1) continue;
        const weft_tensor *first = input(s, 0), *second = input(s, s->node->n_inputs == 3 ? 1 : 2);
        if (in->axis == 1 && first->shape.dim[1] != second->shape.dim[1]) continue;
        split_first(s, s->node->n_inputs, in);
        return;
    }
}

static void shard_assign(wefti_shard *s) { (void)s; }
static void shard_refused(wefti_shard *s) { (void)s; }

static void shard_custom(wefti_shard *s) {
    const weft_custom_op *op = (const weft_custom_op *)s->node->attrs.custom.custom; /* its first member */
    if (!op->row_local) return;
    for (int32_t i = 0; i < s->node->n_inputs; i++)
        if (is_split(&s->inputs[i]) && s->inputs[i].axis == 0) {
            split_first(s, s->node->n_inputs, &s->inputs[i]);
            return;
        }
}

static void shard_update(wefti_shard *s) { (void)s; }

void wefti_shard_node(wefti_shard *shard) {
    static void (*const rules[WEFT_OP_COUNT])(wefti_shard *) = {
#define WEFTI_OP(NAME, name, family, in_min, in_max, outs, shape, gradient, shard_rule, flops) \
    [WEFT_OP_##NAME] = shard_##shard_rule,
#include "weft/ops.def"
#undef WEFTI_OP
    };
    for (int32_t i = 0; i < shard->node->n_inputs; i++) shard->wanted[i] = wefti_layout_whole();
    for (int32_t i = 0; i < shard->node->n_outputs; i++) shard->outputs[i] = wefti_layout_whole();
    rules[shard->op](shard);
}

/* --- attributes of a chunk --- */

/* Elements of the global batch that a mean over `axes` takes in, of tensors that are split. */
static double global_count(weft_shape shape, uint32_t axes, const wefti_layout *split, const wefti_chunk *chunk) {
    double count = 1;
    for (int32_t axis = 0; axis < shape.rank; axis++)
        if (axes >> axis & 1u) count *= (double)(axis == split->axis ? chunk->global_rows * split->unit : shape.dim[axis]);
    return count;
}

static void window_of(const wefti_layout *out, const wefti_chunk *chunk, wefti_window *window) {
    window->split = 1;
    window->axis = out->axis;
    window->begin = chunk->first_row * out->unit;
    window->global = chunk->global_rows * out->unit;
}

void wefti_shard_attrs(const wefti_node *node, const wefti_layout *wanted, const wefti_layout *outputs,
                       const wefti_chunk *chunk, wefti_attrs *attrs) {
    const wefti_layout *out = &outputs[0];
    bool                split = out->kind == WEFTI_SPLIT;
    int64_t             extent = chunk->rows * out->unit;
    switch (node->op) {
    case WEFT_OP_RESHAPE:
    case WEFT_OP_EXPAND:
        if (split) attrs->view.shape.dim[out->axis] = extent;
        break;
    case WEFT_OP_SLICE:
        if (split) attrs->slice.size[out->axis] = extent;
        break;
    case WEFT_OP_MEAN:
        if (wanted[0].kind == WEFTI_SPLIT && out->kind == WEFTI_PARTIAL)
            attrs->reduce.count = global_count(chunk->input, attrs->reduce.axes, &wanted[0], chunk);
        break;
    case WEFT_OP_MEAN_BACKWARD:
        if (!split) break;
        if (attrs->reduce.axes >> out->axis & 1u)
            attrs->reduce.count = global_count(attrs->reduce.shape, attrs->reduce.axes, out, chunk);
        attrs->reduce.shape.dim[out->axis] = extent;
        break;
    case WEFT_OP_CONV2D_BACKWARD_INPUT:
        if (split) attrs->conv.input.dim[0] = extent;
        break;
    case WEFT_OP_CONV2D_BACKWARD_WEIGHT:
        if (wanted[1].kind == WEFTI_SPLIT && attrs->conv.input.rank == 4)
            attrs->conv.input.dim[0] = chunk->rows * wanted[1].unit;
        break;
    case WEFT_OP_MAX_POOL2D_BACKWARD:
    case WEFT_OP_AVG_POOL2D_BACKWARD:
        if (split) attrs->pool.input.dim[out->axis] = extent;
        break;
    case WEFT_OP_DROPOUT:
        if (split) window_of(out, chunk, &attrs->dropout.window);
        break;
    case WEFT_OP_RANDOM:
        if (split) window_of(out, chunk, &attrs->random.window);
        break;
    default: break;
    }
}

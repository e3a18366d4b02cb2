/* Layouts of a whole graph over the tensor axis: the rules of shard.c, and those that only splits of parameters need.
 *
 * An axis that is split over T ranks is a batch of T rows, of which each rank has one, so the batch's rules hold word for word; an op that
 * is not named here goes by them. What they say is checked at the end: where an axis (or one of its sections) does not divide, the node is
 * whole. That is always right.
 *
 * A sum that several nodes read is *completed* where it is made, for each of them would else send it in its own form. What an update
 * keeps only a part of is *desired* as that part, which goes backwards through what is elementwise. Linear in nodes and their inputs. */
#include <string.h>

#include "parallel/tensor.h"

enum { SMALL = 1024 }; /* elements up to which a whole tensor joins a sum by being there on one rank alone */

static bool is_split(const wefti_layout *layout) { return layout->kind == WEFTI_SPLIT; }
static bool is_sum(const wefti_layout *layout) { return layout->kind == WEFTI_PARTIAL && layout->reduce == WEFTI_REDUCE_SUM; }

/* --- patterns --- */

static int64_t divisor(int64_t a, int64_t b) {
    while (b) {
        int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

int32_t wefti_tensor_pattern(wefti_tensor_split *split, const int64_t *extents, int32_t n) {
    wefti_sections fresh = {.n = n};
    int64_t        common = 0;
    if (n < 1 || n > WEFTI_SECTIONS_MAX) return -1;
    for (int32_t i = 0; i < n; i++) common = divisor(extents[i], common);
    if (common == 0) return -1;
    for (int32_t i = 0; i < n; i++) fresh.weight[i] = extents[i] / common;
    for (int32_t p = 0; p < split->n_patterns; p++)
        if (memcmp(&split->pattern[p], &fresh, sizeof fresh) == 0) return p;
    if (split->n_patterns == WEFTI_PATTERNS_MAX) return -1;
    split->pattern[split->n_patterns] = fresh;
    return split->n_patterns++;
}

/* As above, but never adds. */
static int32_t find_pattern(const wefti_tensor_split *split, const int64_t *extents, int32_t n) {
    wefti_tensor_split copy = *split;
    int32_t            found = wefti_tensor_pattern(&copy, extents, n);
    return found < split->n_patterns ? found : -1;
}

/* The extents of an axis' sections; false where the axis or one of them does not divide. */
static bool sections_of(const wefti_tensor_split *split, int64_t extent, int32_t pattern, int64_t *section_out) {
    const wefti_sections *p = &split->pattern[pattern];
    int64_t               total = 0;
    for (int32_t i = 0; i < p->n; i++) total += p->weight[i];
    if (extent < split->ranks || extent % total) return false;
    for (int32_t i = 0; i < p->n; i++) {
        section_out[i] = extent / total * p->weight[i];
        if (section_out[i] % split->ranks) return false;
    }
    return true;
}

wefti_layout wefti_tensor_split_of(const wefti_tensor_split *split, int32_t axis, int64_t extent, int32_t pattern) {
    int64_t section[WEFTI_SECTIONS_MAX];
    if (!sections_of(split, extent, pattern, section) || (split->folded && extent % (2 * split->ranks))) return wefti_layout_whole();
    wefti_layout layout = wefti_layout_split(axis, extent / split->ranks);
    layout.sections = pattern;
    layout.folded = split->folded;
    return layout;
}

wefti_layout wefti_tensor_share(const wefti_tensor_split *split, const weft_tensor *tensor) {
    wefti_layout share = wefti_layout_whole();
    for (int32_t axis = 0; share.kind == WEFTI_WHOLE && axis + 1 < tensor->shape.rank; axis++) share = wefti_tensor_split_of(split, axis, tensor->shape.dim[axis], 0);
    share.shared = share.kind == WEFTI_SPLIT;
    return share;
}

wefti_window_of wefti_tensor_window(const wefti_tensor_split *split, const wefti_layout *layout, weft_shape shape) {
    wefti_window_of window = {.ranks = 1};
    if (!is_split(layout)) return window;
    window = (wefti_window_of){.ranks = split->ranks, .rank = split->rank, .axis = layout->axis, .n_sections = split->pattern[layout->sections].n};
    (void)sections_of(split, shape.dim[layout->axis], layout->sections, window.section);
    return window;
}

wefti_layout wefti_tensor_layout_of(const wefti_tensor_split *split, const wefti_node *leaf) {
    for (int32_t i = 0; i < split->n_windows; i++) {
        const wefti_window_of *w = &split->windows[i].window;
        if (strcmp(split->windows[i].name, leaf->name) != 0) continue;
        int32_t pattern = find_pattern(split, w->section, w->n_sections);
        if (pattern >= 0) return wefti_tensor_split_of(split, w->axis, leaf->outputs[0].shape.dim[w->axis], pattern);
    }
    return wefti_layout_whole();
}

/* --- rules --- */

typedef struct ruler {
    const wefti_tensor_layouts *l;
    const wefti_tensor_split   *split;
    wefti_shard                *s;
    bool                        as_batch; /* the batch's rules decided; sections go along */
} ruler;

static void by_batch(ruler *r) {
    wefti_shard_node(r->s);
    r->as_batch = true;
}

static const weft_tensor *input(const ruler *r, int32_t i) { return r->s->node->inputs[i]; }
static wefti_layout plain(const ruler *r, int32_t axis, const weft_tensor *tensor) {
    return wefti_tensor_split_of(r->split, axis, tensor->shape.dim[axis], 0);
}
static const wefti_layout *desired(const ruler *r) { return &wefti_tensor_value_of(r->l, &r->s->node->outputs[0])->desired; }

/* A rank has one stretch of the axis, or, folded, two: it can tell from a place whether it has it. */
static bool is_addressed(const wefti_layout *x) { return is_split(x) && x->sections == 0 && x->repeats == 0; }

static void rule_gather(ruler *r) {
    const wefti_layout *x = &r->s->inputs[0];
    if (!is_addressed(x) || x->axis != r->s->node->attrs.axis.axis) {
        by_batch(r);
        return;
    }
    r->s->wanted[0] = *x; /* rows of other ranks are out of range, and read as zeros */
    r->s->outputs[0] = wefti_layout_partial(WEFTI_REDUCE_SUM);
}

static void rule_scatter_add(ruler *r) {
    const wefti_layout *x = &r->s->inputs[0], *wish = desired(r);
    int32_t             along = r->s->node->attrs.axis.axis;
    const wefti_layout *cut = is_split(x) ? x : wish;
    if (is_addressed(cut) && cut->axis == along && !is_split(&r->s->inputs[1]) && !is_split(&r->s->inputs[2]))
        r->s->wanted[0] = r->s->outputs[0] = *cut;
    else by_batch(r);
}

static void rule_cross_entropy(ruler *r) {
    int32_t             logits = r->s->op == WEFT_OP_CROSS_ENTROPY ? 0 : 1;
    const wefti_layout *x = &r->s->inputs[logits];
    if (!is_split(x) || x->axis != input(r, logits)->shape.rank - 1 || !wefti_layout_is_plain(x)) {
        by_batch(r);
        return;
    }
    r->s->wanted[logits] = *x;
    if (logits == 1) r->s->outputs[0] = *x;
}

/* Heads; each rank's queries have their keys beside them where both divide. */
static void rule_attention(ruler *r) {
    wefti_shard *s = r->s;
    bool         any = false, all = true;
    for (int32_t i = 0; i < s->node->n_inputs; i++) {
        wefti_layout heads = plain(r, 1, input(r, i));
        any = any || (is_split(&s->inputs[i]) && s->inputs[i].axis == 1);
        all = all && is_split(&heads);
    }
    if (!any || !all) return;
    for (int32_t i = 0; i < s->node->n_inputs; i++) s->wanted[i] = plain(r, 1, input(r, i));
    for (int32_t o = 0; o < s->node->n_outputs; o++) s->outputs[o] = plain(r, 1, &s->node->outputs[o]);
}

/* Channels: filters are split by what they give (axis 0) or by what they take (axis 1). */
static void rule_conv2d(ruler *r) {
    wefti_shard        *s = r->s;
    const wefti_layout *x = &s->inputs[0], *w = &s->inputs[1];
    if (s->node->attrs.conv.groups > 1) return;
    if (is_split(w) && w->axis == 0) {
        s->wanted[1] = *w;
        s->outputs[0] = plain(r, 1, &s->node->outputs[0]);
        s->outputs[0].sections = w->sections;
    } else if ((is_split(w) && w->axis == 1) || (is_split(x) && x->axis == 1)) {
        const wefti_layout *cut = is_split(w) && w->axis == 1 ? w : x;
        s->wanted[0] = s->wanted[1] = *cut;
        s->outputs[0] = wefti_layout_partial(WEFTI_REDUCE_SUM);
    }
}
static void rule_conv2d_backward_input(ruler *r) {
    wefti_shard        *s = r->s;
    const wefti_layout *g = &s->inputs[0], *w = &s->inputs[1];
    if (s->node->attrs.conv.groups > 1) return;
    if (is_split(w) && w->axis == 1) {
        s->wanted[1] = s->outputs[0] = *w;
    } else if ((is_split(w) && w->axis == 0) || (is_split(g) && g->axis == 1)) {
        const wefti_layout *cut = is_split(g) && g->axis == 1 ? g : w;
        s->wanted[0] = s->wanted[1] = *cut;
        s->wanted[0].axis = 1;
        s->wanted[1].axis = 0;
        s->outputs[0] = wefti_layout_partial(WEFTI_REDUCE_SUM);
    }
}
static void rule_conv2d_backward_weight(ruler *r) {
    wefti_shard        *s = r->s;
    const wefti_layout *g = &s->inputs[0], *x = &s->inputs[1], *wish = desired(r);
    if (s->node->attrs.conv.groups > 1) return;
    wefti_layout cut = *wish;
    if (!is_split(&cut) && is_split(g) && g->axis == 1) {
        cut = *g;
        cut.axis = 0;
    }
    if (!is_split(&cut) && is_split(x) && x->axis == 1) cut = *x;
    if (!is_split(&cut) || cut.axis > 1) return;
    s->outputs[0] = cut;
    s->wanted[cut.axis] = cut;
    s->wanted[cut.axis].axis = 1;
}

/* A product of whole operands of which only some columns (or rows) are wanted. */
static void rule_matmul(ruler *r) {
    wefti_shard        *s = r->s;
    const wefti_layout *wish = desired(r);
    int32_t             rank = s->node->outputs[0].shape.rank;
    by_batch(r);
    if (!is_split(wish) || s->outputs[0].kind != WEFTI_WHOLE || wish->axis < rank - 2 || is_split(&s->wanted[0]) || is_split(&s->wanted[1])) return;
    int32_t i = wish->axis == rank - 2 ? 0 : 1, own = input(r, i)->shape.rank;
    bool    trans = i == 0 ? s->node->attrs.matmul.trans_a : s->node->attrs.matmul.trans_b;
    s->wanted[i] = *wish;
    s->wanted[i].axis = (i == 0) != trans ? own - 2 : own - 1;
    s->outputs[0] = *wish;
}

/* Of time a few places, no more than a rank has, are asked of those that have them. */
static bool is_few(const ruler *r, const wefti_layout *cut, int64_t places, const weft_tensor *of) {
    return r->split->along == WEFTI_MESH_SEQUENCE && is_addressed(cut) && weft_dtype_is_float(of->dtype) && places <= of->shape.dim[cut->axis] / r->split->ranks;
}

/* One whole section of what is dealt out by sections is dealt out itself. */
static void rule_slice(ruler *r) {
    wefti_shard        *s = r->s;
    const wefti_layout *x = &s->inputs[0];
    int64_t             section[WEFTI_SECTIONS_MAX], begin = 0;
    int32_t             cuts = 0;
    for (int32_t axis = 0; axis < input(r, 0)->shape.rank; axis++) cuts += s->node->attrs.slice.size[axis] != input(r, 0)->shape.dim[axis];
    if (is_split(x) && cuts == 1 && s->node->attrs.slice.size[x->axis] < input(r, 0)->shape.dim[x->axis] && is_few(r, x, s->node->attrs.slice.size[x->axis], input(r, 0))) {
        s->wanted[0] = *x;
        s->outputs[0] = wefti_layout_partial(WEFTI_REDUCE_SUM);
        return;
    }
    if (!is_split(x) || x->sections == 0 || s->node->attrs.slice.size[x->axis] == input(r, 0)->shape.dim[x->axis]) {
        by_batch(r);
        return;
    }
    if (!sections_of(r->split, input(r, 0)->shape.dim[x->axis], x->sections, section)) return;
    for (int32_t i = 0; i < r->split->pattern[x->sections].n; begin += section[i++]) {
        if (s->node->attrs.slice.start[x->axis] != begin || s->node->attrs.slice.size[x->axis] != section[i] ||
            s->node->attrs.slice.step[x->axis] != 1)
            continue;
        s->wanted[0] = *x;
        s->outputs[0] = plain(r, x->axis, &s->node->outputs[0]);
        return;
    }
}

static void rule_concat(ruler *r) {
    wefti_shard *s = r->s;
    int32_t      along = s->node->attrs.axis.axis;
    int64_t      extents[WEFTI_SECTIONS_MAX];
    bool         joins = false;
    for (int32_t i = 0; i < s->node->n_inputs; i++) joins = joins || (is_split(&s->inputs[i]) && s->inputs[i].axis == along && s->inputs[i].sections == 0);
    if (!joins || s->node->n_inputs > WEFTI_SECTIONS_MAX) {
        by_batch(r);
        return;
    }
    for (int32_t i = 0; i < s->node->n_inputs; i++) extents[i] = input(r, i)->shape.dim[along];
    int32_t      pattern = find_pattern(r->split, extents, s->node->n_inputs);
    wefti_layout out = pattern < 0 ? wefti_layout_whole() : wefti_tensor_split_of(r->split, along, s->node->outputs[0].shape.dim[along], pattern);
    for (int32_t i = 0; is_split(&out) && i < s->node->n_inputs; i++) s->wanted[i] = plain(r, along, input(r, i));
    s->outputs[0] = out;
}

static void rule_update(ruler *r) {
    wefti_shard *s = r->s;
    if (!is_split(&s->inputs[0])) return;
    for (int32_t i = 0; i < s->node->n_inputs; i++)
        if (i != 2) s->wanted[i] = s->inputs[0];
    s->outputs[0] = s->inputs[0];
}
static void rule_assign(ruler *r) {
    if (is_split(&r->s->inputs[0])) r->s->wanted[0] = r->s->wanted[1] = r->s->outputs[0] = r->s->inputs[0];
}

/* What ranks along another axis reduce keeps its part, and sums of sums are sums. */
static void rule_all_reduce(ruler *r) {
    wefti_shard *s = r->s;
    for (int32_t i = 0; i < s->node->n_inputs; i++) {
        const wefti_layout *in = &s->inputs[i];
        bool                keeps = is_split(in) || (in->kind == WEFTI_PARTIAL && (int32_t)in->reduce == s->node->attrs.comm.reduce);
        if (keeps) s->wanted[i] = s->outputs[i] = *in;
    }
}

/* What goes round a ring is split on all of its ranks alike. */
static void rule_send(ruler *r) {
    if (is_split(&r->s->inputs[0])) r->s->wanted[0] = r->s->outputs[0] = r->s->inputs[0];
}
static void rule_receive(ruler *r) {
    const wefti_node *sent = wefti_tensor_sent_before(r->l->graph, r->s->node);
    if (sent) r->s->outputs[0] = r->l->wanted[sent->id][0];
}

/* What comes from experts' ranks is cut as it was there; its rows are not. */
static void rule_exchange(ruler *r) {
    const wefti_layout *x = &r->s->inputs[0];
    if ((is_split(x) && x->axis > 0) || is_sum(x)) r->s->wanted[0] = r->s->outputs[0] = *x;
}

/* Few numbers that are whole join a sum: one rank brings them. */
static void rule_elementwise(ruler *r) {
    wefti_shard        *s = r->s;
    const wefti_layout *in = s->inputs;
    by_batch(r);
    if ((s->op != WEFT_OP_ADD && s->op != WEFT_OP_SUB) || weft_shape_elements(s->node->outputs[0].shape) > SMALL) return;
    if (!weft_dtype_is_float(s->node->outputs[0].dtype) || !weft_shape_equal(input(r, 0)->shape, input(r, 1)->shape)) return;
    if (!(is_sum(&in[0]) && in[1].kind == WEFTI_WHOLE) && !(is_sum(&in[1]) && in[0].kind == WEFTI_WHOLE)) return;
    s->wanted[0] = s->wanted[1] = s->outputs[0] = wefti_layout_partial(WEFTI_REDUCE_SUM);
}

static void rule_whole(ruler *r) { (void)r; }

/* --- along the time axis --- */

/* Where the stretches of a split axis are in another shape: there are as many before them, counting those within the axis. */
static wefti_layout reshaped(const ruler *r, const wefti_layout *from, weft_shape in, weft_shape out) {
    int64_t before = from->repeats ? from->repeats : 1, prefix = 1, parts = r->split->ranks * (from->folded ? 2 : 1);
    for (int32_t i = 0; i < from->axis; i++) before *= in.dim[i];
    for (int32_t axis = 0; axis < out.rank && prefix <= before; prefix *= out.dim[axis++]) {
        int64_t repeats = prefix > 0 && before % prefix == 0 ? before / prefix : 0;
        if (repeats < 1 || out.dim[axis] % (repeats * parts) || out.dim[axis] == 0) continue;
        wefti_layout to = wefti_layout_split(axis, out.dim[axis] / r->split->ranks);
        to.repeats = repeats > 1 ? repeats : 0;
        return to;
    }
    return wefti_layout_whole();
}

static void rule_reshape_of_stretches(ruler *r) {
    wefti_shard *s = r->s;
    if (!is_split(&s->inputs[0])) {
        by_batch(r);
        return;
    }
    s->outputs[0] = reshaped(r, &s->inputs[0], input(r, 0)->shape, s->node->outputs[0].shape);
    if (is_split(&s->outputs[0])) s->wanted[0] = s->inputs[0];
}

/* Queries and keys of the same places: keys and values go round. */
static void rule_ring(ruler *r) {
    wefti_shard *s = r->s;
    int32_t      q = s->op == WEFT_OP_ATTENTION ? 0 : 1;
    bool         along = false;
    for (int32_t i = 0; i < s->node->n_inputs; i++) along = along || (is_split(&s->inputs[i]) && s->inputs[i].axis == 2);
    if (!along || input(r, q)->shape.dim[2] != input(r, q + 1)->shape.dim[2] || (r->split->folded && !wefti_sequence_folds(s->node))) {
        by_batch(r);
        return;
    }
    for (int32_t i = 0; i < s->node->n_inputs; i++) s->wanted[i] = plain(r, 2, input(r, i));
    for (int32_t o = 0; o < s->node->n_outputs; o++) s->outputs[o] = plain(r, 2, &s->node->outputs[o]);
}

static void rule_turn(ruler *r) {
    const wefti_layout *x = &r->s->inputs[0];
    if (is_split(x) && x->axis == input(r, 0)->shape.rank - 2 && x->repeats == 0) r->s->wanted[0] = r->s->outputs[0] = *x;
    else by_batch(r);
}

/* Sums over both axes at once. */
static void rule_all_reduce_of_stretches(ruler *r) {
    wefti_shard        *s = r->s;
    const wefti_layout *in = &s->inputs[0];
    if (s->node->n_inputs == 1 && in->kind == WEFTI_PARTIAL && (int32_t)in->reduce == s->node->attrs.comm.reduce) s->wanted[0] = *in;
    else rule_all_reduce(r);
}

typedef void rule(ruler *r);

static rule *rule_of(weft_op op) {
    switch (op) {
    case WEFT_OP_GATHER: return rule_gather;
    case WEFT_OP_SCATTER_ADD: return rule_scatter_add;
    case WEFT_OP_CROSS_ENTROPY:
    case WEFT_OP_CROSS_ENTROPY_BACKWARD: return rule_cross_entropy;
    case WEFT_OP_ATTENTION:
    case WEFT_OP_ATTENTION_BACKWARD: return rule_attention;
    case WEFT_OP_CONV2D: return rule_conv2d;
    case WEFT_OP_CONV2D_BACKWARD_INPUT: return rule_conv2d_backward_input;
    case WEFT_OP_CONV2D_BACKWARD_WEIGHT: return rule_conv2d_backward_weight;
    case WEFT_OP_MATMUL: return rule_matmul;
    case WEFT_OP_SLICE: return rule_slice;
    case WEFT_OP_CONCAT: return rule_concat;
    case WEFT_OP_UPDATE: return rule_update;
    case WEFT_OP_ASSIGN: return rule_assign;
    case WEFT_OP_ALL_REDUCE: return rule_all_reduce;
    case WEFT_OP_SEND: return rule_send;
    case WEFT_OP_RECEIVE: return rule_receive;
    case WEFT_OP_EXCHANGE_ROWS: return rule_exchange;
    case WEFT_OP_CUSTOM:
    case WEFT_OP_CUSTOM_BACKWARD: return rule_whole;
    default: return wefti_op_is_elementwise(op) && op != WEFT_OP_DROPOUT ? rule_elementwise : by_batch;
    }
}

static rule *rule_along_time(weft_op op) {
    switch (op) {
    case WEFT_OP_RESHAPE: return rule_reshape_of_stretches;
    case WEFT_OP_ATTENTION:
    case WEFT_OP_ATTENTION_BACKWARD: return rule_ring;
    case WEFT_OP_ROTARY: return rule_turn;
    case WEFT_OP_ALL_REDUCE: return rule_all_reduce_of_stretches;
    default: return rule_of(op);
    }
}

static bool divides(const wefti_tensor_split *split, const wefti_layout *layout, const weft_tensor *tensor) {
    if (!is_split(layout)) return true;
    if (layout->axis >= tensor->shape.rank) return false;
    wefti_layout even = wefti_tensor_split_of(split, layout->axis, tensor->shape.dim[layout->axis], layout->sections);
    if (layout->repeats && tensor->shape.dim[layout->axis] % (layout->repeats * split->ranks * (split->folded ? 2 : 1))) return false;
    even.repeats = layout->repeats;
    return wefti_layout_same(&even, layout);
}

/* The batch's rules know nothing of sections: those of the first split input go along. Whatever does not divide makes the node whole. */
static void settle(ruler *r) {
    wefti_shard *s = r->s;
    int32_t      sections = 0;
    int64_t      repeats = 0;
    bool         right = true;
    if (r->as_batch) {
        for (int32_t i = s->node->n_inputs - 1; i >= 0; i--)
            if (is_split(&s->inputs[i])) sections = s->inputs[i].sections, repeats = s->inputs[i].repeats;
        if (rule_of(s->op) == rule_matmul && is_split(&s->outputs[0]) && is_split(desired(r)) && !is_split(&s->inputs[0]) && !is_split(&s->inputs[1]))
            sections = desired(r)->sections;
        for (int32_t i = 0; i < s->node->n_inputs; i++)
            if (is_split(&s->wanted[i])) s->wanted[i].sections = sections, s->wanted[i].repeats = repeats;
        for (int32_t o = 0; o < s->node->n_outputs; o++)
            if (is_split(&s->outputs[o])) s->outputs[o].sections = sections, s->outputs[o].repeats = repeats;
    }
    for (int32_t i = 0; i < s->node->n_inputs; i++) s->wanted[i].folded = is_split(&s->wanted[i]) && r->split->folded;
    for (int32_t o = 0; o < s->node->n_outputs; o++) s->outputs[o].folded = is_split(&s->outputs[o]) && r->split->folded;
    for (int32_t i = 0; i < s->node->n_inputs; i++) right = right && divides(r->split, &s->wanted[i], s->node->inputs[i]);
    for (int32_t o = 0; o < s->node->n_outputs; o++) right = right && divides(r->split, &s->outputs[o], &s->node->outputs[o]);
    if (right) return;
    for (int32_t i = 0; i < s->node->n_inputs; i++) s->wanted[i] = wefti_layout_whole();
    for (int32_t o = 0; o < s->node->n_outputs; o++) s->outputs[o] = wefti_layout_whole();
}

wefti_tensor_way wefti_tensor_way_of(const wefti_node *node, const wefti_layout *wanted, const wefti_layout *outputs) {
    switch (node->op) {
    case WEFT_OP_GATHER: return is_split(&wanted[0]) && wanted[0].axis == node->attrs.axis.axis ? WEFTI_BY_ROWS_OF_TABLE : WEFTI_AS_IT_IS;
    case WEFT_OP_SCATTER_ADD: return is_split(&outputs[0]) && outputs[0].axis == node->attrs.axis.axis ? WEFTI_BY_ROWS_OF_TABLE : WEFTI_AS_IT_IS;
    case WEFT_OP_SLICE: return is_split(&wanted[0]) && outputs[0].kind == WEFTI_PARTIAL ? WEFTI_BY_PLACES : WEFTI_AS_IT_IS;
    case WEFT_OP_CROSS_ENTROPY:
    case WEFT_OP_CROSS_ENTROPY_BACKWARD: {
        int32_t logits = node->op == WEFT_OP_CROSS_ENTROPY ? 0 : 1;
        return is_split(&wanted[logits]) && wanted[logits].axis == node->inputs[logits]->shape.rank - 1 ? WEFTI_BY_CLASSES : WEFTI_AS_IT_IS;
    }
    case WEFT_OP_DROPOUT: { /* a window on two axes is none: then the mask is made whole */
        const wefti_window *w = &node->attrs.dropout.window;
        bool other = w->split && w->axis != outputs[0].axis && w->global != node->outputs[0].shape.dim[w->axis];
        if (!is_split(&outputs[0]) || (!other && wefti_layout_is_plain(&outputs[0]))) return WEFTI_AS_IT_IS;
        return other || outputs[0].repeats || outputs[0].sections ? WEFTI_BY_MASK : WEFTI_BY_BLOCKS;
    }
    case WEFT_OP_ROTARY: return is_split(&outputs[0]) && outputs[0].folded && outputs[0].axis == node->outputs[0].shape.rank - 2 ? WEFTI_BY_BLOCKS : WEFTI_AS_IT_IS;
    case WEFT_OP_ATTENTION:
    case WEFT_OP_ATTENTION_BACKWARD: return is_split(&outputs[0]) && outputs[0].axis == 2 ? WEFTI_BY_RING : WEFTI_AS_IT_IS;
    default: return WEFTI_AS_IT_IS;
    }
}

const wefti_node *wefti_tensor_sent_before(const weft_graph *graph, const wefti_node *node) {
    const wefti_node *before = node->op == WEFT_OP_RECEIVE && node->id > 0 ? graph->nodes[node->id - 1] : NULL;
    return before && before->op == WEFT_OP_SEND && before->attrs.comm.group == node->attrs.comm.group ? before : NULL;
}

/* --- a whole graph --- */

static void find_needed(wefti_tensor_layouts *l, weft_tensor *const *outputs, int32_t n_outputs, bool training) {
    const weft_graph *graph = l->graph;
    for (int32_t i = 0; i < n_outputs; i++) {
        l->needed[outputs[i]->node->id] = true;
        wefti_tensor_value_of(l, outputs[i])->users += 2; /* it is wanted whole */
    }
    for (int32_t i = 0; training && i < graph->n_effects; i++) l->needed[graph->effects[i]->id] = true;
    for (int32_t id = graph->n_nodes - 1; id >= 0; id--) {
        const wefti_node *node = graph->nodes[id];
        l->needed[id] = l->needed[id] || (training && node->op == WEFT_OP_UPDATE) || wefti_op_is_message(node->op);
        for (int32_t i = 0; l->needed[id] && i < node->n_inputs; i++) {
            l->needed[node->inputs[i]->node->id] = true;
            wefti_tensor_value_of(l, node->inputs[i])->users++;
        }
    }
}

weft_status wefti_tensor_layouts_open(const wefti_tensor_split *split, weft_graph *graph, weft_tensor *const *outputs, int32_t n_outputs, bool training,
                                      wefti_tensor_layouts *l) {
    size_t n = (size_t)graph->n_nodes, n_outs = 0, n_ins = 0;
    *l = (wefti_tensor_layouts){.split = split, .graph = graph};
    for (int32_t id = 0; id < graph->n_nodes; id++) {
        n_outs += (size_t)graph->nodes[id]->n_outputs;
        n_ins += (size_t)graph->nodes[id]->n_inputs;
    }
    l->memory_bytes = n * (sizeof *l->values + sizeof *l->wanted + sizeof(int64_t)) + n_outs * sizeof **l->values + n_ins * sizeof **l->wanted;
    WEFTI_TRY(wefti_alloc(l->memory_bytes, "the layouts of a graph", &l->memory));
    l->values = l->memory;
    l->wanted = (wefti_layout **)(l->values + n);
    wefti_tensor_value *values = (wefti_tensor_value *)(l->wanted + n);
    wefti_layout       *wanted = (wefti_layout *)(values + n_outs);
    l->needed = (bool *)(wanted + n_ins);
    for (int32_t id = 0; id < graph->n_nodes; id++) {
        l->values[id] = values;
        l->wanted[id] = wanted;
        values += graph->nodes[id]->n_outputs;
        wanted += graph->nodes[id]->n_inputs;
    }
    find_needed(l, outputs, n_outputs, training);
    return WEFT_OK;
}

void wefti_tensor_layouts_close(wefti_tensor_layouts *l) {
    wefti_free(l->memory, l->memory_bytes);
    *l = (wefti_tensor_layouts){0};
}

static void want_part(wefti_tensor_layouts *l, const weft_tensor *tensor, const wefti_layout *part) {
    wefti_tensor_value *value = wefti_tensor_value_of(l, tensor);
    if (is_split(part) && divides(l->split, part, tensor)) value->desired = *part;
}

/* Backwards from gradients: through what is linear and has as many elements. */
static void find_gradient(wefti_tensor_layouts *l, const wefti_node *node) {
    bool update = node->op == WEFT_OP_UPDATE || node->op == WEFT_OP_ASSIGN;
    if (update) wefti_tensor_value_of(l, node->inputs[1])->gradient = true;
    if (update || node->n_outputs != 1 || !l->values[node->id][0].gradient) return;
    if (!wefti_op_is_elementwise(node->op) && node->op != WEFT_OP_ALL_REDUCE && wefti_ops[node->op].family != WEFTI_VIEW) return;
    for (int32_t i = 0; i < node->n_inputs; i++) {
        wefti_tensor_value *value = wefti_tensor_value_of(l, node->inputs[i]);
        if (weft_shape_elements(node->inputs[i]->shape) != weft_shape_elements(node->outputs[0].shape)) continue;
        value->gradient = true;
        value->last = value->last || node->op == WEFT_OP_ALL_REDUCE;
    }
}

/* Backwards from updates and assignments of what is split. */
static void find_desires(wefti_tensor_layouts *l, const wefti_layout *leaf) {
    for (int32_t id = l->graph->n_nodes - 1; id >= 0; id--) {
        const wefti_node *node = l->graph->nodes[id];
        if (!l->needed[id]) continue;
        find_gradient(l, node);
        if (node->op == WEFT_OP_UPDATE || node->op == WEFT_OP_ASSIGN) {
            want_part(l, node->inputs[1], &leaf[node->inputs[0]->node->id]);
            continue;
        }
        const wefti_layout *wish = node->n_outputs == 1 ? &l->values[id][0].desired : NULL;
        if (!wish || !is_split(wish) || !(wefti_op_is_elementwise(node->op) || node->op == WEFT_OP_ALL_REDUCE)) continue;
        for (int32_t i = 0; i < node->n_inputs; i++)
            if (weft_shape_equal(node->inputs[i]->shape, node->outputs[0].shape)) want_part(l, node->inputs[i], wish);
    }
}

/* How an input comes: what it takes to make it so. */
static void note_delivery(wefti_tensor_layouts *l, const weft_tensor *tensor, const wefti_layout *want) {
    wefti_tensor_value *value = wefti_tensor_value_of(l, tensor);
    if (want->kind != WEFTI_SPLIT) value->made = true;
    if (wefti_layout_same(&value->layout, want) || value->layout.kind == WEFTI_WHOLE) return;
    if (value->layout.kind == WEFTI_PARTIAL && want->kind == WEFTI_SPLIT && wefti_layout_is_plain(want)) value->scattered = true;
    else value->gathered = true;
}

static void rule_node(const wefti_tensor_layouts *l, const wefti_node *node, const wefti_layout *inputs, wefti_layout *outputs) {
    for (int32_t i = 0; i < node->n_inputs; i++) l->wanted[node->id][i] = wefti_layout_whole();
    for (int32_t o = 0; o < node->n_outputs; o++) outputs[o] = wefti_layout_whole();
    wefti_shard shard = {.op = node->op, .node = node, .inputs = inputs, .rows = l->split->ranks, .wanted = l->wanted[node->id], .outputs = outputs};
    ruler       r = {.l = l, .split = l->split, .s = &shard};
    (l->split->along == WEFTI_MESH_SEQUENCE ? rule_along_time : rule_of)(node->op)(&r);
    settle(&r);
}

/* --- shares of rows --- */

/* Where a parameter's split meets a share of rows, that is put together. */
static bool meet(wefti_tensor_layouts *l, const wefti_node *node, wefti_layout *inputs) {
    bool meets = node->n_outputs > 0 && is_split(&l->values[node->id][0].desired);
    for (int32_t i = 0; i < node->n_inputs; i++) meets = meets || (is_split(&inputs[i]) && !inputs[i].shared);
    for (int32_t i = 0; meets && i < node->n_inputs; i++)
        if (inputs[i].shared) inputs[i] = wefti_layout_whole();
    return meets;
}

/* The share of its rows that a sum may come as; WHOLE: it is one of parameters' gradients or of few numbers, or no axis divides. */
static wefti_layout share_of(const wefti_tensor_layouts *l, const weft_tensor *tensor) {
    bool none = wefti_tensor_value_of(l, tensor)->gradient || wefti_op_is_reduction(tensor->node->op);
    return none ? wefti_layout_whole() : wefti_tensor_share(l->split, tensor);
}

/* A sum that would be wanted whole may do as a share of its rows. */
static bool share_sums(wefti_tensor_layouts *l, const wefti_node *node, wefti_layout *inputs) {
    bool any = false;
    for (int32_t i = 0; i < node->n_inputs; i++) {
        wefti_layout share = share_of(l, node->inputs[i]);
        if (!is_sum(&inputs[i]) || l->wanted[node->id][i].kind != WEFTI_WHOLE || !is_split(&share)) continue;
        inputs[i] = share;
        any = true;
    }
    return any;
}

static void rule_by_rows(wefti_tensor_layouts *l, const wefti_node *node, wefti_layout *inputs, wefti_layout *outputs) {
    wefti_layout as_shares[64];
    bool         meets = meet(l, node, inputs);
    rule_node(l, node, inputs, outputs);
    memcpy(as_shares, inputs, sizeof *inputs * (size_t)node->n_inputs);
    if (!meets && share_sums(l, node, as_shares)) {
        rule_node(l, node, as_shares, outputs);
        if (!is_split(&outputs[0])) rule_node(l, node, inputs, outputs);
    }
    for (int32_t o = 0; o < node->n_outputs && node->n_inputs > 0; o++) outputs[o].shared = !meets && is_split(&outputs[o]);
}

/* A sum that several read: scattered by rows where these are shared and it is none of parameters' gradients, else the whole. */
static void complete(wefti_tensor_layouts *l, const weft_tensor *tensor, wefti_tensor_value *value) {
    wefti_layout share = l->split->shares_rows && is_sum(&value->layout) ? share_of(l, tensor) : wefti_layout_whole();
    value->completed_by = value->layout.reduce;
    value->landed = is_split(&share);
    value->completed = !value->landed;
    value->made = value->made || value->completed;
    value->layout = share;
}

static void analyse_node(wefti_tensor_layouts *l, const wefti_node *node, wefti_layout *inputs, wefti_layout *outputs) {
    for (int32_t i = 0; i < node->n_inputs; i++) inputs[i] = wefti_tensor_value_of(l, node->inputs[i])->layout;
    if (l->split->shares_rows) rule_by_rows(l, node, inputs, outputs);
    else rule_node(l, node, inputs, outputs);
    for (int32_t i = 0; i < node->n_inputs; i++) note_delivery(l, node->inputs[i], &l->wanted[node->id][i]);
    for (int32_t o = 0; o < node->n_outputs; o++) {
        wefti_tensor_value *value = &l->values[node->id][o];
        value->layout = outputs[o];
        if (outputs[o].kind == WEFTI_PARTIAL && (value->users > 1 || (l->split->shares_rows && value->last))) complete(l, &node->outputs[o], value);
    }
}

void wefti_tensor_analyse(wefti_tensor_layouts *l, const wefti_layout *leaf) {
    wefti_layout inputs[64], outputs[64];
    for (int32_t id = 0; id < l->graph->n_nodes; id++)
        for (int32_t o = 0; o < l->graph->nodes[id]->n_outputs; o++) {
            wefti_tensor_value *value = &l->values[id][o];
            *value = (wefti_tensor_value){.users = value->users};
        }
    find_desires(l, leaf);
    for (int32_t id = 0; id < l->graph->n_nodes; id++) {
        const wefti_node *node = l->graph->nodes[id];
        if (!l->needed[id]) continue;
        if (wefti_ops[node->op].family == WEFTI_LEAF) {
            if (wefti_tensor_has_window(l->split, node)) l->values[id][0].layout = leaf[id];
        } else if (node->n_inputs <= 64 && node->n_outputs <= 64) {
            analyse_node(l, node, inputs, outputs);
        } else { /* a long list: whole */
            for (int32_t i = 0; i < node->n_inputs; i++) {
                l->wanted[id][i] = wefti_layout_whole();
                note_delivery(l, node->inputs[i], &l->wanted[id][i]);
            }
        }
    }
}

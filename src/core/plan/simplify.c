/* Simplification: what can be known while planning, and what is computed twice.
 *
 * One walk in order. Numbers that are the same everywhere (FULL, EXTENT, views and exact arithmetic of them) become scalars of the
 * constants' block, read with stride 0; MEAN_BACKWARD becomes a division of the small side and a view; multiplication by one and casts to
 * the same dtype vanish; equal computations are merged, those of recomputed segments apart. Nothing here changes a bit of any result:
 * only operations that every machine rounds alike are folded. Linear, by hashing. */
#include <math.h>
#include <string.h>

#include "core/plan/ir.h"
#include "core/tensor/operand.h"

enum { ARANGE_BYTES = 1 << 20 }; /* longer sequences are computed at every run rather than kept */

typedef struct simplifier {
    wefti_ir *ir;
    int32_t  *replace; /* by value: what stands for it; -1: itself */
    size_t    replace_bytes;
    int32_t  *table;   /* items by hash; -1: free */
    uint32_t  mask;
} simplifier;

/* Values that are made on the way have no entry yet: they stand for themselves. */
static int32_t replacement(const simplifier *s, int32_t value) {
    while ((size_t)value * sizeof *s->replace < s->replace_bytes && s->replace[value] >= 0) value = s->replace[value];
    return value;
}

/* --- uniform values --- */

/* Makes `value`, which nobody computes any more, a stretched view of a scalar. */
static weft_status make_uniform(wefti_ir *ir, int32_t value, double constant) {
    int32_t scalar;
    WEFTI_TRY(wefti_ir_scalar(ir, ir->values[value].dtype, constant, &scalar));
    wefti_value *v = &ir->values[value];
    if (v->item >= 0) ir->items[v->item].dead = true;
    v->item = -1;
    v->root = scalar;
    v->offset = 0;
    v->uniform = true;
    v->constant = constant;
    memset(v->stride, 0, sizeof v->stride);
    return WEFT_OK;
}

/* Integers are folded through doubles only where those hold them. */
static bool holds(weft_dtype dtype, double value) {
    if (weft_dtype_is_float(dtype)) return true;
    return value == trunc(value) && fabs(value) <= 0x1p53 && (double)wefti_wrap_i64((int64_t)value, dtype) == value;
}

/* Results that IEEE 754 defines exactly; false for all others. */
static bool fold(weft_op op, weft_dtype dtype, double a, double b, double *result_out) {
    bool floating = weft_dtype_is_float(dtype);
    switch (op) {
    case WEFT_OP_NEG: *result_out = -a; break;
    case WEFT_OP_ABS: *result_out = fabs(a); break;
    case WEFT_OP_SQUARE: *result_out = a * a; break;
    case WEFT_OP_ADD: *result_out = a + b; break;
    case WEFT_OP_SUB: *result_out = a - b; break;
    case WEFT_OP_MUL: *result_out = a * b; break;
    case WEFT_OP_DIV:
        if (!floating) return false;
        *result_out = a / b;
        break;
    case WEFT_OP_RECIPROCAL: *result_out = 1 / a; break;
    case WEFT_OP_SQRT: *result_out = sqrt(a); break;
    case WEFT_OP_MAXIMUM:
    case WEFT_OP_MINIMUM:
        if (!(a < b || b < a)) return false; /* zeros have signs, and NaNs spread */
        *result_out = (a < b) == (op == WEFT_OP_MAXIMUM) ? b : a;
        break;
    default: return false;
    }
    if (floating) *result_out = wefti_round_f64(*result_out, dtype);
    return holds(dtype, *result_out) && (!floating || *result_out == *result_out);
}

static weft_status fold_uniform(wefti_ir *ir, const wefti_item *item, bool *done_out) {
    const wefti_value *a = &ir->values[item->inputs[0]], *b = &ir->values[item->inputs[item->n_inputs - 1]];
    wefti_value       *out = &ir->values[item->outputs[0]];
    double             result;
    *done_out = false;
    if (!a->uniform || !b->uniform || item->n_inputs > 2) return WEFT_OK;
    if (item->op == WEFT_OP_CAST) {
        if (!holds(a->dtype, a->constant) || !isfinite(a->constant)) return WEFT_OK;
        result = out->dtype == WEFT_BOOL            ? a->constant != 0
                 : weft_dtype_is_float(out->dtype) ? wefti_round_f64(a->constant, out->dtype)
                                                   : (double)wefti_f64_to_i64(a->constant, out->dtype);
        if (!holds(out->dtype, result)) return WEFT_OK;
    } else if (!holds(a->dtype, a->constant) || !holds(b->dtype, b->constant) ||
               !fold(item->op, out->dtype, a->constant, b->constant, &result)) {
        return WEFT_OK;
    }
    *done_out = true;
    return make_uniform(ir, item->outputs[0], result);
}

/* What FULL stores, as it then reads. */
static double stored(weft_dtype dtype, double value) {
    if (weft_dtype_is_float(dtype)) return wefti_round_f64(value, dtype);
    return (double)wefti_f64_to_i64(value, dtype);
}

/* --- leaves and counts --- */

static weft_status keep_arange(wefti_ir *ir, const wefti_item *item) {
    wefti_value        *out = &ir->values[item->outputs[0]];
    wefti_plan_constant constant = {.kind = WEFTI_CONSTANT_ARANGE, .dtype = out->dtype, .elements = wefti_value_elements(out),
                                    .start = item->attrs->arange.start, .step = item->attrs->arange.step};
    if (wefti_value_bytes(out) > ARANGE_BYTES) return WEFT_OK;
    ir->items[out->item].dead = true;
    out->item = -1;
    out->place = WEFTI_HOME_CONSTANT;
    return wefti_ir_constant(ir, &constant, &out->index);
}

static double reduced_count(weft_shape shape, const wefti_attrs *attrs) {
    double count = 1;
    if (attrs->reduce.count != 0) return attrs->reduce.count;
    for (int32_t axis = 0; axis < shape.rank; axis++)
        if (attrs->reduce.axes >> axis & 1) count *= (double)shape.dim[axis];
    return count;
}

static weft_status add_view(wefti_ir *ir, weft_op op, int32_t input, weft_shape shape, const wefti_item *like, int64_t key,
                            int32_t *value_out) {
    wefti_attrs *attrs;
    int32_t      item;
    uint32_t     flags = like->flags;
    const char  *name = like->name;
    WEFTI_TRY(wefti_ir_attrs(ir, &attrs));
    attrs->view.shape = shape;
    WEFTI_TRY(wefti_ir_item(ir, op, attrs, 1, 1, name, key, &item));
    ir->items[item].inputs[0] = input;
    ir->items[item].flags = flags;
    ir->items[item].graph_ops = 0;
    return wefti_ir_value(ir, ir->values[input].dtype, shape, item, 0, value_out);
}

/* g/count on the small side, then stretched; only where the dtype holds the count, so that the division rounds alike. */
static weft_status lower_mean_backward(simplifier *s, int32_t index) {
    wefti_ir     *ir = s->ir;
    wefti_item    item = ir->items[index];
    int32_t       g = item.inputs[0], divided, out = item.outputs[0], count_value, divide, expanded;
    weft_dtype    dtype = ir->values[g].dtype;
    weft_shape    whole = item.attrs->reduce.shape, kept = whole;
    double        count = reduced_count(whole, item.attrs);
    double        each;
    if (wefti_round_f64(count, dtype) != count) return WEFT_OK;
    if (ir->values[g].uniform && fold(WEFT_OP_DIV, dtype, ir->values[g].constant, count, &each))
        return make_uniform(ir, out, each);
    for (int32_t axis = 0; axis < whole.rank; axis++)
        if (item.attrs->reduce.axes >> axis & 1) kept.dim[axis] = 1;
    WEFTI_TRY(wefti_ir_scalar(ir, dtype, count, &count_value));
    wefti_attrs *attrs;
    WEFTI_TRY(wefti_ir_attrs(ir, &attrs));
    WEFTI_TRY(wefti_ir_item(ir, WEFT_OP_DIV, attrs, 2, 1, item.name, item.key, &divide));
    ir->items[divide].inputs[0] = g;
    ir->items[divide].inputs[1] = count_value;
    ir->items[divide].flags = item.flags;
    ir->items[divide].flops = (double)wefti_value_elements(&ir->values[g]);
    WEFTI_TRY(wefti_ir_value(ir, dtype, ir->values[g].shape, divide, 0, &divided));
    if (!weft_shape_equal(ir->values[g].shape, kept))
        WEFTI_TRY(add_view(ir, WEFT_OP_RESHAPE, divided, kept, &item, item.key + 1, &divided));
    WEFTI_TRY(add_view(ir, WEFT_OP_EXPAND, divided, whole, &item, item.key + 2, &expanded));
    ir->items[index].dead = true;
    s->replace[out] = expanded;
    return WEFT_OK;
}

/* --- computed twice --- */

static uint64_t hash_words(uint64_t hash, const void *bytes, size_t size_bytes) {
    const char *at = bytes;
    for (; size_bytes >= 8; at += 8, size_bytes -= 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        hash = (hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
        hash ^= hash >> 29;
    }
    for (; size_bytes; at++, size_bytes--) hash = (hash ^ (unsigned char)*at) * UINT64_C(0x100000001b3);
    return hash;
}

static bool may_merge(const wefti_item *item) {
    return !(item->flags & WEFTI_NODE_RECOMPUTED) && !wefti_item_has_effect(item) && !wefti_item_is_comm(item) &&
           wefti_ops[item->op].family != WEFTI_CUSTOM;
}

static bool same_computation(const wefti_ir *ir, const wefti_item *a, const wefti_item *b) {
    return a->op == b->op && a->n_inputs == b->n_inputs && a->n_outputs == b->n_outputs &&
           memcmp(a->inputs, b->inputs, (size_t)a->n_inputs * sizeof *a->inputs) == 0 &&
           memcmp(a->attrs, b->attrs, sizeof *a->attrs) == 0 &&
           ir->values[a->outputs[0]].dtype == ir->values[b->outputs[0]].dtype &&
           weft_shape_equal(ir->values[a->outputs[0]].shape, ir->values[b->outputs[0]].shape);
}

/* Replaces the item's outputs by those of an equal item before it, where there is one. */
static void merge_equal(simplifier *s, int32_t index) {
    wefti_item *item = &s->ir->items[index];
    uint64_t    hash = hash_words((uint64_t)item->op + 1, item->attrs, sizeof *item->attrs);
    hash = hash_words(hash, item->inputs, (size_t)item->n_inputs * sizeof *item->inputs);
    for (uint32_t at = (uint32_t)hash & s->mask;; at = (at + 1) & s->mask) {
        if (s->table[at] < 0) {
            s->table[at] = index;
            return;
        }
        const wefti_item *other = &s->ir->items[s->table[at]];
        if (!same_computation(s->ir, other, item)) continue;
        for (int32_t o = 0; o < item->n_outputs; o++) s->replace[item->outputs[o]] = other->outputs[o];
        item->dead = true;
        return;
    }
}

/* --- the walk --- */

/* Whether the item reduces axes of size 1 alone, and divides by nothing. */
static bool reduces_nothing(const wefti_ir *ir, const wefti_item *item) {
    return wefti_op_is_reduction(item->op) && reduced_count(ir->values[item->inputs[0]].shape, item->attrs) == 1 &&
           (item->op == WEFT_OP_MEAN || item->attrs->reduce.count == 0);
}

/* An input that the item hands on unchanged; -1: none. */
static int32_t unchanged_input(const wefti_ir *ir, const wefti_item *item) {
    const wefti_value *out = &ir->values[item->outputs[0]];
    int32_t            kept = -1;
    if (item->op == WEFT_OP_CAST || reduces_nothing(ir, item)) kept = item->inputs[0];
    if (item->op == WEFT_OP_MUL || item->op == WEFT_OP_DIV) {
        const wefti_value *a = &ir->values[item->inputs[0]], *b = &ir->values[item->inputs[1]];
        if (b->uniform && b->constant == 1) kept = item->inputs[0];
        else if (item->op == WEFT_OP_MUL && a->uniform && a->constant == 1) kept = item->inputs[1];
    }
    if (kept < 0 || ir->values[kept].dtype != out->dtype || !weft_shape_equal(ir->values[kept].shape, out->shape)) return -1;
    return kept;
}

static weft_status simplify_item(simplifier *s, int32_t index) {
    wefti_ir   *ir = s->ir;
    wefti_item *item = &ir->items[index];
    for (int32_t i = 0; i < item->n_inputs; i++) item->inputs[i] = replacement(s, item->inputs[i]);
    wefti_value *out = &ir->values[item->outputs[0]];
    wefti_family family = wefti_ops[item->op].family;
    bool         done;
    if (item->op == WEFT_OP_FULL) return make_uniform(ir, item->outputs[0], stored(out->dtype, item->attrs->full.value));
    if (item->op == WEFT_OP_ARANGE) return keep_arange(ir, item);
    if (item->op == WEFT_OP_EXTENT)
        return make_uniform(ir, item->outputs[0], stored(out->dtype, reduced_count(ir->values[item->inputs[0]].shape, item->attrs)));
    if (family == WEFTI_VIEW && ir->values[item->inputs[0]].uniform)
        return make_uniform(ir, item->outputs[0], ir->values[item->inputs[0]].constant);
    if (family == WEFTI_UNARY || family == WEFTI_BINARY) {
        WEFTI_TRY(fold_uniform(ir, item, &done));
        if (done) return WEFT_OK;
        item = &ir->items[index];
    }
    int32_t kept = unchanged_input(ir, item);
    if (kept >= 0) {
        s->replace[item->outputs[0]] = kept;
        item->dead = true;
        return WEFT_OK;
    }
    if (may_merge(item)) merge_equal(s, index);
    if (item->op == WEFT_OP_MEAN_BACKWARD && !item->dead) return lower_mean_backward(s, index);
    return WEFT_OK;
}

weft_status wefti_pass_simplify(wefti_ir *ir) {
    weft_status status;
    simplifier  s = {.ir = ir, .replace_bytes = (size_t)ir->n_values * sizeof *s.replace, .mask = 63};
    if (ir->options.base.no_simplify) return WEFT_OK;
    while (s.mask < (uint32_t)ir->n_order * 2) s.mask = s.mask * 2 + 1;
    size_t table_bytes = ((size_t)s.mask + 1) * sizeof *s.table;
    WEFTI_TRY_GOTO(wefti_alloc(s.replace_bytes, "a plan", &s.replace), done);
    WEFTI_TRY_GOTO(wefti_alloc(table_bytes, "a plan", &s.table), done);
    memset(s.replace, 0xff, s.replace_bytes);
    memset(s.table, 0xff, table_bytes);
    for (int32_t k = 0; k < ir->n_order; k++) WEFTI_TRY_GOTO(simplify_item(&s, ir->order[k]), done);
    for (int32_t i = 0; i < ir->n_outputs; i++) ir->outputs[i] = replacement(&s, ir->outputs[i]);
    status = wefti_ir_settle(ir);
done:
    wefti_free(s.replace, s.replace_bytes);
    wefti_free(s.table, table_bytes);
    return status;
}

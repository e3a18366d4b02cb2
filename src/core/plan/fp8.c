/* Products in 8-bit floats: a MATMUL whose operands may be rounded so (attrs.matmul.fp8, from the strategy's precision) becomes an FP8_MATMUL of
 * codes, behind an FP8_CAST for each operand.
 *
 * The product wants both operands with the inner index side by side, so a matrix is cast by rows, by columns, or once for both: what is cast, in
 * one form, is cast once for all who read it (activations for the product and for the weight's gradient, gradients for both). Where the operand
 * is no matrix in one piece, or the device refuses, the MATMUL stays what it was, and the first reason is kept for descriptions. Ranks may differ
 * in that: it changes no message. Scales follow from what is cast, now: there is no state. Cost: the codes, a byte an element and layout, alive
 * instead of what they stand for. */
#include <string.h>

#include "core/plan/ir.h"
#include "core/tensor/fp8.h"

/* A matrix that is cast, and for whom. */
typedef struct cast {
    int32_t value, form, layouts, item;
    int64_t rows, columns, key;
    bool    again; /* read in a recomputed segment */
} cast;

/* A product that is to be of 8-bit floats. */
typedef struct product {
    int32_t item, cast[2], layout[2];
} product;

typedef struct rewriter {
    wefti_ir *ir;
    cast     *casts;
    product  *products;
    int32_t   n_casts, casts_capacity, n_products, products_capacity;
} rewriter;

static weft_status leave(wefti_ir *ir, const char *why) {
    ir->n_fp8_left++;
    if (ir->fp8_why) return WEFT_OK;
    return wefti_bump_string(&ir->keep, why, &ir->fp8_why);
}

static bool is_marked(const wefti_item *item) { return item->op == WEFT_OP_MATMUL && item->attrs->matmul.fp8[0] && item->attrs->matmul.fp8[1]; }

/* Whether the operands are matrices, one of which may have its rows along several axes. */
static bool are_matrices(const wefti_ir *ir, const wefti_item *item) {
    const wefti_value *a = &ir->values[item->inputs[0]], *b = &ir->values[item->inputs[1]];
    return b->shape.rank == 2 && (a->shape.rank == 2 || !item->attrs->matmul.trans_a) && wefti_value_is_dense(a) && wefti_value_is_dense(b) &&
           !a->uniform && !b->uniform && wefti_value_elements(a) > 0 && wefti_value_elements(b) > 0;
}

/* The call, as the device is asked about it. */
static weft_status ask(const wefti_ir *ir, const wefti_item *item) {
    const wefti_value *y = &ir->values[item->outputs[0]];
    const int32_t     *trans[2] = {&item->attrs->matmul.trans_a, &item->attrs->matmul.trans_b};
    int64_t            inner = 0, scratch_bytes;
    wefti_operand      operands[4], output = {.dtype = y->dtype, .shape = y->shape};
    wefti_attrs        attrs;
    memset(&attrs, 0, sizeof attrs);
    memcpy(attrs.fp8.form, item->attrs->matmul.fp8, sizeof attrs.fp8.form);
    for (int32_t i = 0; i < 2; i++) {
        const wefti_value *x = &ir->values[item->inputs[i]];
        int64_t            columns = x->shape.dim[x->shape.rank - 1], rows = wefti_value_elements(x) / columns;
        bool               turned = i == 0 ? *trans[0] : !*trans[1];
        inner = turned ? rows : columns;
        operands[i] = (wefti_operand){.dtype = WEFT_U8, .shape = weft_shape(turned ? columns : rows, inner), .stride = {inner, 1}};
        operands[2 + i] = (wefti_operand){.dtype = WEFT_F32, .shape = weft_shape_scalar()};
    }
    wefti_dense_strides(y->shape, output.stride);
    wefti_call call = {.op = WEFT_OP_FP8_MATMUL, .attrs = &attrs, .n_inputs = 4, .n_outputs = 1, .inputs = operands, .outputs = &output,
                       .name = item->name};
    return ir->device->vtable->query(ir->device, &call, &scratch_bytes);
}

/* The cast of an operand, with the layout that this reader wants. What was kept for the backward pass is cast again there, where it is read by
 * recomputed products: its codes would be kept beside it. */
static weft_status cast_of(rewriter *r, const wefti_item *item, int32_t i, int32_t layout, int32_t *cast_out) {
    wefti_ir          *ir = r->ir;
    const wefti_value *x = &ir->values[item->inputs[i]];
    int32_t            form = item->attrs->matmul.fp8[i];
    bool               again = item->flags & WEFTI_NODE_RECOMPUTED;
    int64_t            columns = x->shape.dim[x->shape.rank - 1], rows = wefti_value_elements(x) / columns;
    for (int32_t c = r->n_casts - 1; c >= 0; c--) {
        cast              *other = &r->casts[c];
        const wefti_value *same = &ir->values[other->value];
        if (same->root != x->root || same->offset != x->offset || other->form != form || other->columns != columns || other->rows != rows ||
            (again && !other->again))
            continue;
        other->layouts |= layout;
        *cast_out = c;
        return WEFT_OK;
    }
    WEFTI_TRY(wefti_ir_room(&r->casts, r->n_casts, &r->casts_capacity, sizeof *r->casts));
    r->casts[r->n_casts] = (cast){.value = item->inputs[i], .form = form, .layouts = layout, .item = -1, .rows = rows, .columns = columns,
                                  .key = item->key - 1, .again = again};
    *cast_out = r->n_casts++;
    return WEFT_OK;
}

static weft_status consider(rewriter *r, int32_t index) {
    wefti_ir         *ir = r->ir;
    const wefti_item *item = &ir->items[index];
    product           p = {.item = index};
    if (!is_marked(item)) return WEFT_OK;
    if (!are_matrices(ir, item)) return leave(ir, "its operands are no two matrices that lie in one piece each");
    if (ask(ir, item) != WEFT_OK) return leave(ir, weft_error_message());
    p.layout[0] = item->attrs->matmul.trans_a ? WEFTI_FP8_COLUMNS : WEFTI_FP8_ROWS;
    p.layout[1] = item->attrs->matmul.trans_b ? WEFTI_FP8_ROWS : WEFTI_FP8_COLUMNS;
    for (int32_t i = 0; i < 2; i++) WEFTI_TRY(cast_of(r, item, i, p.layout[i], &p.cast[i]));
    WEFTI_TRY(wefti_ir_room(&r->products, r->n_products, &r->products_capacity, sizeof *r->products));
    r->products[r->n_products++] = p;
    ir->n_fp8++;
    return WEFT_OK;
}

static weft_status emit_cast(wefti_ir *ir, cast *c, const wefti_item *reader) {
    wefti_attrs *attrs;
    int32_t      value;
    int64_t      rows = c->layouts & WEFTI_FP8_ROWS ? c->rows : 0, columns = c->layouts & WEFTI_FP8_COLUMNS ? c->columns : 0;
    const char  *name = reader->name;
    uint32_t     flags = reader->flags;
    int32_t      micro = reader->micro;
    WEFTI_TRY(wefti_ir_attrs(ir, &attrs));
    attrs->fp8.form[0] = c->form;
    attrs->fp8.layouts = c->layouts;
    WEFTI_TRY(wefti_ir_item(ir, WEFT_OP_FP8_CAST, attrs, 1, 3, name, c->key, &c->item));
    wefti_item *item = &ir->items[c->item];
    item->inputs[0] = c->value;
    item->flags = flags;
    item->micro = micro;
    item->graph_ops = 0;
    WEFTI_TRY(wefti_ir_value(ir, WEFT_U8, weft_shape(rows, c->columns), c->item, 0, &value));
    WEFTI_TRY(wefti_ir_value(ir, WEFT_U8, weft_shape(columns, c->rows), c->item, 1, &value));
    return wefti_ir_value(ir, WEFT_F32, weft_shape_scalar(), c->item, 2, &value);
}

static weft_status emit_product(rewriter *r, const product *p) {
    wefti_ir    *ir = r->ir;
    wefti_attrs *attrs;
    int32_t     *inputs;
    WEFTI_TRY(wefti_ir_attrs(ir, &attrs));
    WEFTI_TRY(wefti_bump_take(&ir->keep, 4 * sizeof *inputs, &inputs));
    memcpy(attrs->fp8.form, ir->items[p->item].attrs->matmul.fp8, sizeof attrs->fp8.form);
    for (int32_t i = 0; i < 2; i++) {
        cast *c = &r->casts[p->cast[i]];
        if (c->item < 0) WEFTI_TRY(emit_cast(ir, c, &ir->items[p->item]));
        inputs[i] = ir->items[c->item].outputs[p->layout[i] == WEFTI_FP8_ROWS ? 0 : 1];
        inputs[2 + i] = ir->items[c->item].outputs[2];
    }
    wefti_item *item = &ir->items[p->item];
    item->op = WEFT_OP_FP8_MATMUL;
    item->attrs = attrs;
    item->inputs = inputs;
    item->n_inputs = 4;
    return WEFT_OK;
}

weft_status wefti_pass_fp8(wefti_ir *ir) {
    rewriter    r = {.ir = ir};
    weft_status status = WEFT_OK;
    for (int32_t k = 0; k < ir->n_order; k++) WEFTI_TRY_GOTO(consider(&r, ir->order[k]), done);
    for (int32_t p = 0; p < r.n_products; p++) WEFTI_TRY_GOTO(emit_product(&r, &r.products[p]), done);
    if (r.n_products) status = wefti_ir_settle(ir);
done:
    wefti_free(r.casts, (size_t)r.casts_capacity * sizeof *r.casts);
    wefti_free(r.products, (size_t)r.products_capacity * sizeof *r.products);
    return status;
}

/* Writes what chunk.c has found: the same items for each chunk of rows, and what joins the chunks' results.
 *
 * All of it takes the place of the loss in the order; what its gradient reads goes before, as soon as it can be computed. Old results
 * become windows on the joined ones, so that their readers stay as they are. */
#include <string.h>

#include "core/plan/chunk.h"

enum { CHUNKS_MOST = 1024 }; /* more would be more operations than the plan of a network has */

/* Results of all chunks, of one old value: rows one behind the other, or a sum. */
typedef struct joined {
    int32_t  old;
    bool     adds;
    int32_t *parts; /* [n_chunks]; adds: the first is the sum so far */
} joined;

typedef struct emitter {
    wefti_chunks *c;
    wefti_ir     *ir;
    int64_t       first, count; /* rows of the chunk */
    int32_t       chunk, n_chunks;
    joined       *joins;
    int32_t       n_joins;
    int64_t       key;
} emitter;

static weft_status add_item(emitter *e, weft_op op, const wefti_attrs *attrs, int32_t n_inputs, int32_t n_outputs, const wefti_item *like,
                            int32_t *item_out) {
    wefti_item from = *like; /* the array of items may move */
    if (!attrs) {
        wefti_attrs *zero;
        WEFTI_TRY(wefti_ir_attrs(e->ir, &zero));
        attrs = zero;
    }
    WEFTI_TRY(wefti_ir_item(e->ir, op, attrs, n_inputs, n_outputs, from.name, ++e->key, item_out));
    e->ir->items[*item_out].flags = from.flags & ~(uint32_t)WEFTI_NODE_RECOMPUTED;
    e->ir->items[*item_out].graph_ops = 0;
    return WEFT_OK;
}

/* --- one chunk --- */

static weft_status chunk_input(emitter *e, int32_t member, int32_t input, int32_t *value_out) {
    wefti_ir        *ir = e->ir;
    int32_t          value = ir->items[member].inputs[input];
    wefti_chunk_read read;
    if (!wefti_chunk_reads(e->c, member, input, &read))
        return wefti_fail(WEFT_E_INTERNAL, "plan: '%s' cannot be computed by rows", ir->items[member].name);
    *value_out = value;
    if (read.inside) *value_out = e->c->now[ir->values[value].root];
    if (read.inside || read.whole) return WEFT_OK;
    int32_t window;
    read.shape.dim[read.axis] = e->count;
    WEFTI_TRY(wefti_ir_value(ir, ir->values[value].dtype, read.shape, -1, 0, &window));
    wefti_value *w = &ir->values[window];
    const wefti_value *of = &ir->values[value];
    w->root = of->root;
    w->offset = of->offset + e->first * read.stride[read.axis];
    w->uniform = of->uniform;
    w->constant = of->constant;
    memcpy(w->stride, read.stride, sizeof w->stride);
    *value_out = window;
    return WEFT_OK;
}

static weft_shape chunk_shape(const emitter *e, int32_t member, int32_t output) {
    weft_shape shape = e->ir->values[e->ir->items[member].outputs[output]].shape;
    switch ((wefti_chunk_role)e->c->role[member]) {
    case WEFTI_CHUNK_MAKE:
    case WEFTI_CHUNK_MAP:
    case WEFTI_CHUNK_SLOPE: return weft_shape(e->count, e->c->classes);
    case WEFTI_CHUNK_LOSS:
    case WEFTI_CHUNK_PICK: return weft_shape(e->count);
    case WEFTI_CHUNK_ROWS: return weft_shape(e->count, shape.dim[1]);
    case WEFTI_CHUNK_SUM: return weft_shape(e->c->classes);
    default: return shape;
    }
}

/* Reductions of [rows, classes] instead of the shape that the program had. */
static weft_status chunk_attrs(emitter *e, int32_t member, const wefti_attrs **attrs_out) {
    wefti_chunk_role role = (wefti_chunk_role)e->c->role[member];
    wefti_attrs     *attrs;
    *attrs_out = e->ir->items[member].attrs;
    if (role != WEFTI_CHUNK_PICK && role != WEFTI_CHUNK_SUM) return WEFT_OK;
    WEFTI_TRY(wefti_ir_attrs(e->ir, &attrs));
    attrs->reduce.axes = role == WEFTI_CHUNK_SUM ? 1 : 2;
    *attrs_out = attrs;
    return WEFT_OK;
}

static weft_status unary(emitter *e, weft_op op, weft_dtype dtype, int32_t a, int32_t b, const wefti_item *like, int32_t *value_out) {
    wefti_attrs *attrs;
    int32_t      item, n = b >= 0 ? 2 : 1;
    weft_shape   shape = e->ir->values[a].shape;
    double       flops = (double)wefti_value_elements(&e->ir->values[a]);
    WEFTI_TRY(wefti_ir_attrs(e->ir, &attrs));
    if (op == WEFT_OP_CAST) attrs->cast.dtype = dtype;
    WEFTI_TRY(add_item(e, op, attrs, n, 1, like, &item));
    e->ir->items[item].inputs[0] = a;
    if (n > 1) e->ir->items[item].inputs[1] = b, e->ir->items[item].flops = flops;
    return wefti_ir_value(e->ir, dtype, shape, item, 0, value_out);
}

/* Adds a part of a sum to those before, in f32 where its own dtype is narrower. */
static weft_status add_part(emitter *e, joined *j, int32_t part, int32_t member) {
    weft_dtype dtype = e->ir->values[part].dtype, wide = weft_dtype_bytes(dtype) < 4 ? WEFT_F32 : dtype;
    if (e->n_chunks > 1 && wide != dtype) WEFTI_TRY(unary(e, WEFT_OP_CAST, wide, part, -1, &e->ir->items[member], &part));
    if (e->chunk > 0) WEFTI_TRY(unary(e, WEFT_OP_ADD, wide, j->parts[0], part, &e->ir->items[member], &part));
    j->parts[0] = part;
    return WEFT_OK;
}

/* Whether anybody but the chunk itself reads the value. */
static bool is_read_outside(const emitter *e, int32_t value) {
    const wefti_chunks *c = e->c;
    for (int32_t o = 0; o < e->ir->n_outputs; o++)
        if (e->ir->values[e->ir->outputs[o]].root == value) return true;
    for (int32_t u = c->uses.start[value]; u < c->uses.start[value + 1]; u++)
        if (c->role[c->uses.users[u]] == WEFTI_CHUNK_NONE) return true;
    return false;
}

static weft_status chunk_outputs(emitter *e, int32_t member, int32_t item, int32_t *join) {
    wefti_chunk_role role = (wefti_chunk_role)e->c->role[member];
    for (int32_t o = 0; o < e->ir->items[item].n_outputs; o++) {
        int32_t    old = e->ir->items[member].outputs[o], made;
        weft_dtype dtype = e->ir->values[old].dtype;
        WEFTI_TRY(wefti_ir_value(e->ir, dtype, chunk_shape(e, member, o), item, o, &made));
        e->c->now[old] = made;
        if (e->c->large[old] || !is_read_outside(e, old)) continue;
        joined *j = &e->joins[(*join)++];
        j->old = old;
        j->adds = role == WEFTI_CHUNK_INNER || role == WEFTI_CHUNK_SUM;
        if (j->adds) WEFTI_TRY(add_part(e, j, made, member));
        else j->parts[e->chunk] = made;
    }
    return WEFT_OK;
}

static weft_status emit_chunk(emitter *e) {
    wefti_chunks *c = e->c;
    int32_t       join = 0;
    for (int32_t m = 0; m < c->n_members; m++) {
        int32_t            member = c->members[m], item, n = e->ir->items[member].n_inputs;
        const wefti_attrs *attrs;
        WEFTI_TRY(chunk_attrs(e, member, &attrs));
        WEFTI_TRY(add_item(e, e->ir->items[member].op, attrs, n, e->ir->items[member].n_outputs, &e->ir->items[member], &item));
        e->ir->items[item].flops = c->rows ? e->ir->items[member].flops * (double)e->count / (double)c->rows : 0;
        if (e->chunk == 0) e->ir->items[item].graph_ops = e->ir->items[member].graph_ops;
        for (int32_t i = 0; i < n; i++) {
            int32_t value = -1;
            WEFTI_TRY(chunk_input(e, member, i, &value));
            e->ir->items[item].inputs[i] = value;
        }
        WEFTI_TRY(chunk_outputs(e, member, item, &join));
    }
    e->n_joins = join;
    return WEFT_OK;
}

/* --- all chunks --- */

/* What was `old` is now a window on `fresh`, and `fresh` itself where the shape is the same. */
static void replace(wefti_ir *ir, int32_t old, int32_t fresh) {
    bool same = weft_shape_equal(ir->values[old].shape, ir->values[fresh].shape);
    ir->values[old].item = -1;
    for (int32_t v = 0; v < ir->n_values; v++)
        if (ir->values[v].root == old) ir->values[v].root = fresh;
    for (int32_t i = 0; i < ir->n_items && same; i++)
        for (int32_t k = 0; k < ir->items[i].n_inputs; k++)
            if (ir->items[i].inputs[k] == old) ir->items[i].inputs[k] = fresh;
    for (int32_t o = 0; o < ir->n_outputs && same; o++)
        if (ir->outputs[o] == old) ir->outputs[o] = fresh;
}

static weft_status finish_join(emitter *e, const joined *j, int32_t member) {
    wefti_ir  *ir = e->ir;
    weft_dtype dtype = ir->values[j->old].dtype;
    int32_t    fresh = j->parts[0], item;
    if (j->adds && ir->values[fresh].dtype != dtype) WEFTI_TRY(unary(e, WEFT_OP_CAST, dtype, fresh, -1, &ir->items[member], &fresh));
    if (!j->adds && e->n_chunks > 1) {
        weft_shape shape = ir->values[fresh].shape;
        shape.dim[0] = e->c->rows;
        WEFTI_TRY(add_item(e, WEFT_OP_CONCAT, NULL, e->n_chunks, 1, &ir->items[member], &item));
        memcpy(ir->items[item].inputs, j->parts, (size_t)e->n_chunks * sizeof *j->parts);
        WEFTI_TRY(wefti_ir_value(ir, dtype, shape, item, 0, &fresh));
    }
    replace(ir, j->old, fresh);
    return WEFT_OK;
}

/* What the gradient reads and stands behind the loss goes as early as what it reads itself; what reads the chunks' results and stands before
 * goes behind. All else keeps its order. */
static void set_keys(const wefti_chunks *c, int64_t apart) {
    wefti_ir *ir = c->ir;
    for (int32_t k = 0; k < ir->n_order; k++) {
        wefti_item *item = &ir->items[ir->order[k]];
        item->key = (k + 1) * apart;
        if (c->after[ir->order[k]]) item->key = (c->position[c->loss] + 2) * apart - ir->n_order + k;
        if (!c->before[ir->order[k]]) continue;
        item->key = 0;
        for (int32_t i = 0; i < item->n_inputs; i++) {
            int32_t maker = ir->values[ir->values[item->inputs[i]].root].item;
            if (maker >= 0) item->key = wefti_max_i64(item->key, ir->items[maker].key + 1);
        }
    }
}

static weft_status emit_all(emitter *e, int64_t each) {
    wefti_chunks *c = e->c;
    for (e->chunk = 0; e->chunk < e->n_chunks; e->chunk++) {
        e->first = wefti_min_i64(each * e->chunk, c->rows);
        e->count = wefti_min_i64(each, c->rows - e->first);
        WEFTI_TRY(emit_chunk(e));
    }
    for (int32_t j = 0; j < e->n_joins; j++) WEFTI_TRY(finish_join(e, &e->joins[j], e->ir->values[e->joins[j].old].item));
    for (int32_t m = 0; m < c->n_members; m++) e->ir->items[c->members[m]].dead = true;
    return wefti_ir_settle(e->ir);
}

weft_status wefti_chunks_emit(wefti_chunks *c) {
    wefti_ir *ir = c->ir;
    int64_t   chunks = (c->rows + c->rows_each - 1) / c->rows_each;
    int32_t   most = 2 * c->n_members, position = c->position[c->loss];
    if (chunks < 1) chunks = 1;
    if (chunks > CHUNKS_MOST) chunks = CHUNKS_MOST;
    /* Chunks of eights, so that each begins where vectors may, may be fewer. */
    int64_t each = ((c->rows + chunks - 1) / chunks + 7) / 8 * 8;
    if (each > 0) chunks = wefti_max_i64(1, (c->rows + each - 1) / each);
    emitter e = {.c = c, .ir = ir, .n_chunks = (int32_t)chunks};
    int64_t apart = ((int64_t)c->n_members * 4 + 4) * chunks + most + ir->n_order + 2;
    WEFTI_TRY(wefti_bump_take(&ir->keep, (size_t)most * sizeof *e.joins, &e.joins));
    for (int32_t j = 0; j < most; j++) WEFTI_TRY(wefti_bump_take(&ir->keep, (size_t)chunks * sizeof *e.joins->parts, &e.joins[j].parts));
    set_keys(c, apart);
    e.key = (position + 1) * apart;
    WEFTI_TRY(emit_all(&e, each));
    for (int32_t k = 0; k < ir->n_order; k++) ir->items[ir->order[k]].key = (int64_t)(k + 1) * WEFTI_KEY_STEP;
    ir->n_chunked_losses++;
    ir->chunks = (int32_t)chunks;
    ir->chunk_rows = wefti_min_i64(each, c->rows);
    ir->chunk_classes = c->classes;
    return WEFT_OK;
}

/* The plan's own form of a program: growing arrays, the order, who uses what. Costs: everything here is linear in items and
 * values, sorting apart. */
#include "core/plan/ir.h"

#include <stdlib.h>
#include <string.h>

/* --- bump memory --- */

typedef struct wefti_bump_block {
    struct wefti_bump_block *next;
    size_t                   size_bytes, used_bytes;
} wefti_bump_block;

enum { BUMP_BYTES = 256 * 1024, BUMP_ALIGNMENT = 16 };

weft_status wefti_bump_take(wefti_bump *bump, size_t size_bytes, void *memory_out) {
    size_t            asked = wefti_align_up(size_bytes ? size_bytes : 1, BUMP_ALIGNMENT);
    wefti_bump_block *block = bump->blocks;
    if (!block || block->size_bytes - block->used_bytes < asked) {
        size_t header = wefti_align_up(sizeof *block, BUMP_ALIGNMENT);
        size_t whole = header + (asked > BUMP_BYTES ? asked : BUMP_BYTES);
        WEFTI_TRY(wefti_alloc(whole, "a plan", &block));
        block->size_bytes = whole;
        block->used_bytes = header;
        block->next = bump->blocks;
        bump->blocks = block;
    }
    void *memory = (char *)block + block->used_bytes;
    block->used_bytes += asked;
    bump->used_bytes += asked;
    memcpy(memory_out, &memory, sizeof memory);
    return WEFT_OK;
}

weft_status wefti_bump_string(wefti_bump *bump, const char *text, const char **copy_out) {
    size_t size_bytes = strlen(text) + 1;
    char  *copy = NULL;
    WEFTI_TRY(wefti_bump_take(bump, size_bytes, &copy));
    memcpy(copy, text, size_bytes);
    *copy_out = copy;
    return WEFT_OK;
}

void wefti_bump_release(wefti_bump *bump) {
    while (bump->blocks) {
        wefti_bump_block *next = bump->blocks->next;
        wefti_free(bump->blocks, bump->blocks->size_bytes);
        bump->blocks = next;
    }
    bump->used_bytes = 0;
}

/* --- arrays --- */

weft_status wefti_ir_room(void *array, int32_t count, int32_t *capacity, size_t element_bytes) {
    if (count < *capacity) return WEFT_OK;
    if (*capacity > INT32_MAX / 2) return wefti_fail(WEFT_E_OVERFLOW, "the plan has too many parts");
    int32_t more = *capacity ? *capacity * 2 : 64;
    WEFTI_TRY(wefti_grow(array, (size_t)*capacity * element_bytes, (size_t)more * element_bytes, "a plan"));
    *capacity = more;
    return WEFT_OK;
}

void wefti_ir_release(wefti_ir *ir) {
    wefti_free(ir->items, (size_t)ir->items_capacity * sizeof *ir->items);
    wefti_free(ir->values, (size_t)ir->values_capacity * sizeof *ir->values);
    wefti_free(ir->order, (size_t)ir->order_capacity * sizeof *ir->order);
    wefti_free(ir->outputs, (size_t)ir->n_outputs * sizeof *ir->outputs);
    wefti_free(ir->inputs, (size_t)ir->inputs_capacity * sizeof *ir->inputs);
    wefti_free(ir->variables, (size_t)ir->variables_capacity * sizeof *ir->variables);
    wefti_free(ir->constants, (size_t)ir->constants_capacity * sizeof *ir->constants);
    wefti_free(ir->blocks, (size_t)ir->blocks_capacity * sizeof *ir->blocks);
    wefti_free(ir->segments, (size_t)ir->segments_capacity * sizeof *ir->segments);
    wefti_free(ir->collectives, (size_t)ir->collectives_capacity * sizeof *ir->collectives);
    wefti_free(ir->steps, (size_t)ir->steps_capacity * sizeof *ir->steps);
    wefti_bump_release(&ir->keep);
    memset(ir, 0, sizeof *ir);
}

weft_status wefti_ir_item(wefti_ir *ir, weft_op op, const wefti_attrs *attrs, int32_t n_inputs, int32_t n_outputs,
                          const char *name, int64_t key, int32_t *item_out) {
    WEFTI_TRY(wefti_ir_room(&ir->items, ir->n_items, &ir->items_capacity, sizeof *ir->items));
    int32_t *operands = NULL;
    WEFTI_TRY(wefti_bump_take(&ir->keep, (size_t)(n_inputs + n_outputs) * sizeof *operands, &operands));
    for (int32_t i = 0; i < n_inputs + n_outputs; i++) operands[i] = -1;
    ir->items[ir->n_items] = (wefti_item){.op = op, .attrs = attrs, .name = name, .n_inputs = n_inputs,
                                          .n_outputs = n_outputs, .inputs = operands, .outputs = operands + n_inputs,
                                          .key = key, .graph_ops = 1, .scratch_block = -1, .segment = -1, .landed = -1};
    *item_out = ir->n_items++;
    return WEFT_OK;
}

weft_status wefti_ir_value(wefti_ir *ir, weft_dtype dtype, weft_shape shape, int32_t item, int32_t output,
                           int32_t *value_out) {
    WEFTI_TRY(wefti_ir_room(&ir->values, ir->n_values, &ir->values_capacity, sizeof *ir->values));
    wefti_value *value = &ir->values[ir->n_values];
    *value = (wefti_value){.dtype = dtype, .shape = shape, .item = item, .output = output, .root = ir->n_values,
                           .index = -1, .block = -1};
    wefti_dense_strides(shape, value->stride);
    if (item >= 0) ir->items[item].outputs[output] = ir->n_values;
    *value_out = ir->n_values++;
    return WEFT_OK;
}

weft_status wefti_ir_attrs(wefti_ir *ir, wefti_attrs **attrs_out) {
    return wefti_bump_take(&ir->keep, sizeof **attrs_out, attrs_out);
}

weft_status wefti_ir_copy(wefti_ir *ir, int32_t value, int64_t key, const char *name, int32_t *copy_out) {
    wefti_attrs *attrs = NULL;
    int32_t      item;
    WEFTI_TRY(wefti_ir_attrs(ir, &attrs));
    WEFTI_TRY(wefti_ir_item(ir, WEFT_OP_COPY, attrs, 1, 1, name, key - 1, &item));
    ir->items[item].inputs[0] = value;
    ir->items[item].graph_ops = 0;
    return wefti_ir_value(ir, ir->values[value].dtype, ir->values[value].shape, item, 0, copy_out);
}

weft_status wefti_ir_constant(wefti_ir *ir, const wefti_plan_constant *constant, int32_t *index_out) {
    WEFTI_TRY(wefti_ir_room(&ir->constants, ir->n_constants, &ir->constants_capacity, sizeof *ir->constants));
    int64_t bytes = constant->elements * (int64_t)weft_dtype_bytes(constant->dtype);
    /* Scalars are packed by eights so that a plan's many small numbers share cache lines. */
    size_t alignment = constant->elements == 1 ? 8 : WEFTI_ALIGNMENT;
    ir->constants[ir->n_constants] = *constant;
    ir->constants[ir->n_constants].offset_bytes = (int64_t)wefti_align_up((size_t)ir->constant_bytes, alignment);
    ir->constant_bytes = ir->constants[ir->n_constants].offset_bytes + bytes;
    *index_out = ir->n_constants++;
    return WEFT_OK;
}

weft_status wefti_ir_scalar(wefti_ir *ir, weft_dtype dtype, double constant, int32_t *value_out) {
    /* Programs hold few different numbers, so looking through them is short; the cap keeps it so. */
    int32_t looked = 0;
    for (int32_t i = ir->n_constants - 1; i >= 0 && looked < 256; i--, looked++) {
        const wefti_plan_constant *other = &ir->constants[i];
        if (other->kind != WEFTI_CONSTANT_FULL || other->dtype != dtype ||
            memcmp(&other->start, &constant, sizeof constant) != 0)
            continue;
        *value_out = (int32_t)other->step; /* a FULL has no step: its value's index is kept there */
        return WEFT_OK;
    }
    wefti_plan_constant fresh = {.kind = WEFTI_CONSTANT_FULL, .dtype = dtype, .elements = 1, .start = constant};
    int32_t             index;
    WEFTI_TRY(wefti_ir_constant(ir, &fresh, &index));
    WEFTI_TRY(wefti_ir_value(ir, dtype, weft_shape_scalar(), -1, 0, value_out));
    ir->constants[index].step = *value_out;
    wefti_value *value = &ir->values[*value_out];
    value->place = WEFTI_HOME_CONSTANT;
    value->index = index;
    value->uniform = true;
    value->constant = constant;
    return WEFT_OK;
}

/* --- order --- */

/* Marks what outputs and effects need: an item is needed when it has an effect or one of its values' memory is read. */
static weft_status mark_needed(const wefti_ir *ir, const int32_t *by_key, int32_t n, uint8_t *value_needed, uint8_t *item_needed) {
    for (int32_t i = 0; i < ir->n_outputs; i++) value_needed[ir->values[ir->outputs[i]].root] = 1;
    for (int32_t k = n - 1; k >= 0; k--) {
        const wefti_item *item = &ir->items[by_key[k]];
        bool              needed = wefti_item_acts(item);
        for (int32_t o = 0; o < item->n_outputs && !needed; o++) needed = value_needed[item->outputs[o]];
        item_needed[by_key[k]] = needed;
        for (int32_t i = 0; i < item->n_inputs && needed; i++) value_needed[ir->values[item->inputs[i]].root] = 1;
    }
    return WEFT_OK;
}

typedef struct keyed {
    int64_t key;
    int32_t item;
} keyed;

static int compare_keyed(const void *left, const void *right) {
    const keyed *a = left, *b = right;
    if (a->key != b->key) return a->key < b->key ? -1 : 1;
    return a->item < b->item ? -1 : a->item > b->item;
}

weft_status wefti_ir_settle(wefti_ir *ir) {
    weft_status status = WEFT_OK;
    keyed      *list = NULL;
    uint8_t    *marks = NULL;
    size_t      list_bytes = (size_t)ir->n_items * sizeof *list, marks_bytes = (size_t)ir->n_values + (size_t)ir->n_items;
    while (ir->order_capacity < ir->n_items)
        WEFTI_TRY(wefti_ir_room(&ir->order, ir->order_capacity, &ir->order_capacity, sizeof *ir->order));
    WEFTI_TRY_GOTO(wefti_alloc(list_bytes, "a plan", &list), done);
    WEFTI_TRY_GOTO(wefti_alloc(marks_bytes, "a plan", &marks), done);
    int32_t n = 0;
    bool    sorted = true;
    for (int32_t i = 0; i < ir->n_items; i++) {
        if (ir->items[i].dead) continue;
        list[n++] = (keyed){ir->items[i].key, i};
        sorted = sorted && (n < 2 || list[n - 2].key <= list[n - 1].key);
    }
    if (!sorted) qsort(list, (size_t)n, sizeof *list, compare_keyed);
    for (int32_t k = 0; k < n; k++) ir->order[k] = list[k].item;
    WEFTI_TRY_GOTO(mark_needed(ir, ir->order, n, marks, marks + ir->n_values), done);
    ir->n_order = 0;
    for (int32_t k = 0; k < n; k++) {
        wefti_item *item = &ir->items[list[k].item];
        item->dead = !marks[ir->n_values + list[k].item];
        if (!item->dead) ir->order[ir->n_order++] = list[k].item;
    }
done:
    wefti_free(list, list_bytes);
    wefti_free(marks, marks_bytes);
    return status;
}

weft_status wefti_ir_uses(const wefti_ir *ir, bool by_root, wefti_uses *uses_out) {
    size_t reads = 0;
    *uses_out = (wefti_uses){.start_bytes = ((size_t)ir->n_values + 1) * sizeof(int32_t)};
    for (int32_t k = 0; k < ir->n_order; k++) reads += (size_t)ir->items[ir->order[k]].n_inputs;
    if (reads > INT32_MAX) return wefti_fail(WEFT_E_OVERFLOW, "the plan has too many operands");
    WEFTI_TRY(wefti_alloc(uses_out->start_bytes, "a plan", &uses_out->start));
    uses_out->users_bytes = reads * sizeof(int32_t);
    weft_status status = wefti_alloc(uses_out->users_bytes, "a plan", &uses_out->users);
    if (status != WEFT_OK) {
        wefti_uses_release(uses_out);
        return status;
    }
    int32_t *start = uses_out->start;
    /* Counting sort: counts, sums, then each list filled from its end. */
    for (int32_t k = 0; k < ir->n_order; k++) {
        const wefti_item *item = &ir->items[ir->order[k]];
        for (int32_t i = 0; i < item->n_inputs; i++)
            start[by_root ? ir->values[item->inputs[i]].root : item->inputs[i]]++;
    }
    for (int32_t v = 0, sum = 0; v <= ir->n_values; v++) {
        if (v < ir->n_values) sum += start[v];
        start[v] = sum;
    }
    for (int32_t k = ir->n_order - 1; k >= 0; k--) {
        const wefti_item *item = &ir->items[ir->order[k]];
        for (int32_t i = item->n_inputs - 1; i >= 0; i--)
            uses_out->users[--start[by_root ? ir->values[item->inputs[i]].root : item->inputs[i]]] = ir->order[k];
    }
    return WEFT_OK;
}

void wefti_uses_release(wefti_uses *uses) {
    wefti_free(uses->start, uses->start_bytes);
    wefti_free(uses->users, uses->users_bytes);
    *uses = (wefti_uses){0};
}

/* --- strides, groups, calls --- */

void wefti_dense_strides(weft_shape shape, int64_t *stride_out) {
    int64_t stride = 1;
    for (int32_t axis = WEFT_MAX_RANK - 1; axis >= 0; axis--) {
        stride_out[axis] = axis < shape.rank ? stride : 0;
        if (axis < shape.rank && shape.dim[axis] > 0) stride *= shape.dim[axis];
    }
}

bool wefti_value_is_dense(const wefti_value *value) {
    int64_t stride = 1;
    for (int32_t axis = value->shape.rank - 1; axis >= 0; axis--) {
        if (value->shape.dim[axis] == 0) return true;
        if (value->shape.dim[axis] > 1 && value->stride[axis] != stride) return false;
        stride *= value->shape.dim[axis];
    }
    return true;
}

int32_t wefti_ir_sent_by(const wefti_ir *ir, int32_t k) {
    const wefti_item *item = &ir->items[ir->order[k]];
    int32_t           left = item->op == WEFT_OP_SEND ? item->attrs->comm.axis : 0;
    for (int32_t j = k + 1; left > 0 && j < ir->n_order; j++) {
        const wefti_item *other = &ir->items[ir->order[j]];
        bool alike = other->op == WEFT_OP_SEND && other->attrs->comm.peer == item->attrs->comm.peer && other->attrs->comm.group == item->attrs->comm.group;
        if (alike && --left == 0) return j;
    }
    return ir->n_order;
}

struct wefti_group *wefti_ir_group(const wefti_ir *ir, const wefti_item *item) {
    int64_t group = item->attrs->comm.group;
    if (ir->options.groups) return group < ir->options.n_groups ? ir->options.groups[group] : NULL;
    return ir->world->group;
}

wefti_collective_call wefti_ir_comm_call(const wefti_ir *ir, const wefti_item *item) {
    const wefti_value    *out = &ir->values[item->outputs[0]], *in = item->n_inputs ? &ir->values[item->inputs[0]] : out;
    wefti_collective_call call = {.dtype = in->dtype, .op = (wefti_reduce_op)item->attrs->comm.reduce, .count = (size_t)wefti_value_elements(in)};
    switch (item->op) {
    case WEFT_OP_ALL_REDUCE: call.kind = WEFTI_ALLREDUCE; break;
    case WEFT_OP_ALL_GATHER:
        call.kind = item->divided && !item->by_message ? WEFTI_BARRIER : WEFTI_ALLGATHER; /* divided: then every rank takes what it needs */
        if (item->divided) call.count = item->by_message ? (size_t)item->attrs->comm.each : 0;
        break;
    case WEFT_OP_REDUCE_SCATTER:
        call.kind = WEFTI_REDUCE_SCATTER;
        call.count = (size_t)wefti_value_elements(out);
        break;
    case WEFT_OP_ALL_TO_ALL:
        call.kind = WEFTI_ALLTOALL;
        call.count = (size_t)(wefti_value_elements(in) / wefti_ir_group(ir, item)->size);
        break;
    case WEFT_OP_EXCHANGE_ROWS: /* how many is known when it starts */
        call.kind = WEFTI_ALLTOALL_V;
        call.count = 0;
        break;
    case WEFT_OP_SEND:
    case WEFT_OP_RECEIVE:
        call.kind = item->op == WEFT_OP_SEND ? WEFTI_SEND : WEFTI_RECEIVE;
        call.root = item->attrs->comm.peer;
        break;
    default: call.kind = WEFTI_BROADCAST; break;
    }
    return call;
}

static void operand_of(const wefti_value *value, wefti_operand *operand_out) {
    memset(operand_out, 0, sizeof *operand_out);
    operand_out->dtype = value->dtype;
    operand_out->shape = value->shape;
    memcpy(operand_out->stride, value->stride, sizeof operand_out->stride);
}

/* The operand of a FUSED input, stretched over the iteration space; one with an element a row has its leading axes. */
static void expand_operand(wefti_operand *operand, weft_shape space, bool of_rows) {
    wefti_operand own = *operand;
    int32_t       missing = of_rows ? 0 : space.rank - own.shape.rank;
    operand->shape = space;
    for (int32_t axis = 0; axis < space.rank; axis++) {
        int32_t from = axis - missing;
        operand->stride[axis] = from < 0 || from >= own.shape.rank || own.shape.dim[from] == 1 ? 0 : own.stride[from];
    }
}

/* The operand of a reduced FUSED output keeps the reduced axes with size 1. */
static void keep_axes(wefti_operand *operand, const wefti_fused *fused, int32_t output) {
    operand->shape = fused->space;
    for (int32_t axis = 0; axis < fused->space.rank; axis++)
        if (fused->output[output].axes >> axis & 1) operand->shape.dim[axis] = 1;
    wefti_dense_strides(operand->shape, operand->stride);
}

/* [N, H, W, C] as the image that devices see. */
static void turn_operand(wefti_operand *operand) {
    const wefti_operand own = *operand;
    static const int    from[4] = {0, 3, 1, 2};
    for (int axis = 0; axis < 4; axis++) {
        operand->shape.dim[axis] = own.shape.dim[from[axis]];
        operand->stride[axis] = own.stride[from[axis]];
    }
}

void wefti_item_call(const wefti_ir *ir, const wefti_item *item, wefti_operand *inputs, wefti_operand *outputs,
                     wefti_call *call_out) {
    int32_t            first;
    const wefti_fused *fused = wefti_program_of(item->op, item->attrs, &first);
    for (int32_t i = 0; i < item->n_inputs; i++) {
        operand_of(&ir->values[item->inputs[i]], &inputs[i]);
        if (fused && i >= first) expand_operand(&inputs[i], fused->space, item->op == WEFT_OP_FUSED && wefti_fused_is_of_rows(fused, i));
    }
    for (int32_t o = 0; o < item->n_outputs; o++) {
        operand_of(&ir->values[item->outputs[o]], &outputs[o]);
        if (fused && o < fused->n_outputs && fused->output[o].reduce >= 0) keep_axes(&outputs[o], fused, o);
        if (item->last) turn_operand(&outputs[o]);
    }
    *call_out = (wefti_call){.op = item->op, .attrs = item->attrs, .n_inputs = item->n_inputs,
                             .n_outputs = item->n_outputs, .inputs = inputs, .outputs = outputs,
                             .scratch_bytes = item->scratch_bytes, .name = item->name};
}

weft_status wefti_item_query(const wefti_ir *ir, const wefti_item *item, int64_t *scratch_bytes_out) {
    wefti_operand  few[24];
    wefti_operand *operands = few;
    size_t         n = (size_t)item->n_inputs + (size_t)item->n_outputs;
    wefti_call     call;
    if (n > WEFTI_COUNT(few)) WEFTI_TRY(wefti_alloc(n * sizeof *operands, "a plan", &operands));
    wefti_item_call(ir, item, operands, operands + item->n_inputs, &call);
    *scratch_bytes_out = 0;
    weft_status status = ir->device->vtable->query(ir->device, &call, scratch_bytes_out);
    if (operands != few) wefti_free(operands, n * sizeof *operands);
    if (status != WEFT_OK) return wefti_while(status, "planning %s (%s)", item->name, wefti_ops[item->op].name);
    return WEFT_OK;
}

/* Commit: memory, constants and programs of a plan that is laid out. After it a run has nothing left to allocate but copies of
 * unaligned feeds, once. */
#include <string.h>

#include "core/plan/object.h"
#include "core/plan/variables.h"
#include "core/tensor/operand.h"
#include "weft/array.h"

/* --- variables --- */

weft_status wefti_plan_bind_variables(weft_plan *plan, weft_variables *variables) {
    wefti_ir *ir = &plan->ir;
    int32_t  *index = NULL;
    if (variables->device != ir->device && !(variables->device->vtable->host_memory && ir->device->vtable->host_memory))
        return wefti_fail(WEFT_E_INVALID, "planning '%s': its variables are on a device '%s' of another world, and its operations compute on '%s': make variables "
                          "in the plan's world, and copy them over with weft_variables_get and _set", plan->source->name, variables->device->vtable->kind,
                          ir->device->vtable->kind);
    WEFTI_TRY(wefti_alloc((size_t)ir->n_variables * sizeof *index, "a plan", &index));
    for (int32_t i = 0; i < ir->n_variables; i++) {
        index[i] = weft_variables_find(variables, ir->variables[i].name);
        weft_status status = index[i] < 0 ? wefti_variables_missing(variables, ir->variables[i].name)
                                          : wefti_variables_match(variables, index[i], ir->variables[i].leaf);
        if (status != WEFT_OK) {
            wefti_free(index, (size_t)ir->n_variables * sizeof *index);
            return wefti_while(status, "planning '%s'", plan->source->name);
        }
    }
    for (int32_t i = 0; i < ir->n_variables; i++)
        if (ir->variables[i].divided) wefti_variables_divide(variables, index[i]);
    plan->variable_index = index;
    plan->variables = weft_variables_retain(variables);
    return WEFT_OK;
}

static weft_status own_variables(weft_plan *plan) {
    weft_variables *variables = NULL;
    if (plan->variables) return WEFT_OK;
    WEFTI_TRY(weft_variables_create(plan->ir.world, plan->ir.graph, &variables));
    weft_status status = wefti_plan_bind_variables(plan, variables);
    weft_variables_release(variables);
    return status;
}

/* --- constants --- */

static void fill_constant(const wefti_plan_constant *constant, char *block) {
    char *at = block + constant->offset_bytes;
    switch (constant->kind) {
    case WEFTI_CONSTANT_FULL: wefti_store_f64(at, 0, constant->dtype, constant->start); break;
    case WEFTI_CONSTANT_ARANGE:
        for (int64_t i = 0; i < constant->elements; i++)
            wefti_store_f64(at, i, constant->dtype, constant->start + (double)i * constant->step);
        break;
    case WEFTI_CONSTANT_ARRAY:
        if (constant->elements) memcpy(at, weft_array_data(constant->array), weft_array_bytes(constant->array));
        break;
    default: break; /* the step number is written by runs */
    }
}

static weft_status make_constants(weft_plan *plan) {
    wefti_ir     *ir = &plan->ir;
    wefti_device *device = ir->device;
    size_t        bytes = (size_t)ir->constant_bytes;
    char         *block = NULL;
    if (bytes == 0 || plan->constants) return WEFT_OK;
    WEFTI_TRY(wefti_alloc(bytes, "constants", &block));
    for (int32_t i = 0; i < ir->n_constants; i++) fill_constant(&ir->constants[i], block);
    weft_status status = device->vtable->allocate(device, bytes, "constants", &plan->constants);
    if (status == WEFT_OK) status = device->vtable->write(device, plan->constants, block, bytes);
    wefti_free(block, bytes);
    return status;
}

/* --- programs --- */

void wefti_plan_locate(const weft_plan *plan, const wefti_value *value, int32_t *buffer_out, int64_t *offset_bytes_out) {
    const wefti_ir    *ir = &plan->ir;
    const wefti_value *root = &ir->values[value->root];
    int64_t            offset = value->offset * (int64_t)weft_dtype_bytes(value->dtype);
    switch (root->place) {
    case WEFTI_HOME_CONSTANT:
        *buffer_out = WEFTI_BUFFER_CONSTANT;
        offset += ir->constants[root->index].offset_bytes;
        break;
    case WEFTI_HOME_VARIABLE: *buffer_out = WEFTI_BUFFER_FIRST + root->index; break;
    case WEFTI_HOME_INPUT: *buffer_out = WEFTI_BUFFER_FIRST + ir->n_variables + root->index; break;
    default:
        *buffer_out = ir->blocks[root->block].place == WEFTI_HOME_EXPORTED ? WEFTI_BUFFER_EXPORTED : WEFTI_BUFFER_ARENA;
        offset += ir->blocks[root->block].offset_bytes + root->inside_bytes;
        break;
    }
    *offset_bytes_out = offset;
}

static void locate_operands(const weft_plan *plan, const int32_t *values, wefti_operand *operands, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        wefti_plan_locate(plan, &plan->ir.values[values[i]], &operands[i].buffer, &operands[i].offset_bytes);
}

/* From how much on outputs that peers load are worth marking: the rest the caches move as well. */
enum { PEERS_LOAD_BYTES = 32 << 10 };

/* Of a gradient whose sum is scattered, each rank loads its own part alone: this one keeps its. */
static void keep_own_part(const wefti_ir *ir, const wefti_value *output, wefti_operand *operand) {
    for (int32_t c = 0; c < ir->n_collectives; c++) {
        const wefti_item *item = &ir->items[ir->collectives[c].item];
        if (item->op != WEFT_OP_REDUCE_SCATTER || !item->divided || ir->values[item->inputs[0]].root != output->root) continue;
        int64_t each = wefti_value_bytes(&ir->values[item->outputs[0]]), all = wefti_value_bytes(output);
        if (each % WEFTI_CACHE_LINE != 0) continue;
        operand->kept_begin = wefti_min_i64(each * wefti_ir_group(ir, item)->index, all);
        operand->kept_end = wefti_min_i64(operand->kept_begin + each, all);
    }
}

/* Where the wire maps peers' memory, they load what lies in the exported region. */
static void mark_loaded(const weft_plan *plan, const wefti_item *item, wefti_operand *outputs) {
    const wefti_ir *ir = &plan->ir;
    if (!wefti_mapping_wire(ir->world) || ir->world->size < 2) return;
    for (int32_t i = 0; i < item->n_outputs; i++)
        outputs[i].peers_load = outputs[i].buffer == WEFTI_BUFFER_EXPORTED && !ir->values[item->outputs[i]].sent && wefti_value_bytes(&ir->values[item->outputs[i]]) >= PEERS_LOAD_BYTES;
    if (item->n_outputs == 1 && outputs->peers_load) keep_own_part(ir, &ir->values[item->outputs[0]], outputs);
}

static void fill_calls(const weft_plan *plan, const wefti_plan_segment *segment, wefti_call *calls, wefti_operand *operands) {
    const wefti_ir *ir = &plan->ir;
    for (int32_t k = segment->begin; k < segment->end; k++, calls++) {
        const wefti_item *item = &ir->items[ir->order[k]];
        wefti_item_call(ir, item, operands, operands + item->n_inputs, calls);
        locate_operands(plan, item->inputs, operands, item->n_inputs);
        locate_operands(plan, item->outputs, operands + item->n_inputs, item->n_outputs);
        mark_loaded(plan, item, operands + item->n_inputs);
        if (item->scratch_block >= 0) {
            calls->scratch_buffer = WEFTI_BUFFER_ARENA;
            calls->scratch_offset = ir->blocks[item->scratch_block].offset_bytes;
        }
        operands += item->n_inputs + item->n_outputs;
    }
}

static weft_status compile(weft_plan *plan, int32_t index) {
    const wefti_ir           *ir = &plan->ir;
    const wefti_plan_segment *segment = &ir->segments[index];
    size_t                    n_operands = 0, n_calls = (size_t)(segment->end - segment->begin);
    wefti_operand            *operands = NULL;
    wefti_call               *calls = NULL;
    weft_status               status;
    for (int32_t k = segment->begin; k < segment->end; k++)
        n_operands += (size_t)(ir->items[ir->order[k]].n_inputs + ir->items[ir->order[k]].n_outputs);
    WEFTI_TRY_GOTO(wefti_alloc(n_operands * sizeof *operands, "a plan", &operands), done);
    WEFTI_TRY_GOTO(wefti_alloc(n_calls * sizeof *calls, "a plan", &calls), done);
    fill_calls(plan, segment, calls, operands);
    wefti_segment given = {calls, (int32_t)n_calls, plan->n_buffers};
    status = ir->device->vtable->compile(ir->device, &given, &plan->programs[index]);
done:
    wefti_free(operands, n_operands * sizeof *operands);
    wefti_free(calls, n_calls * sizeof *calls);
    return status;
}

/* --- the whole --- */

static size_t counts_of(const weft_plan *plan, int32_t c) {
    const wefti_item *item = &plan->ir.items[plan->ir.collectives[c].item];
    return item->op == WEFT_OP_EXCHANGE_ROWS ? 2 * (size_t)wefti_ir_group(&plan->ir, item)->size : 0;
}

static weft_status allocate_flights(weft_plan *plan) {
    WEFTI_TRY(wefti_alloc((size_t)plan->ir.n_collectives * sizeof *plan->flights, "a plan", &plan->flights));
    for (int32_t c = 0; c < plan->ir.n_collectives; c++)
        if (counts_of(plan, c) > 0) WEFTI_TRY(wefti_alloc(counts_of(plan, c) * sizeof *plan->flights[c].counts, "a plan", &plan->flights[c].counts));
    return WEFT_OK;
}

static weft_status allocate_tables(weft_plan *plan) {
    const wefti_ir *ir = &plan->ir;
    plan->n_buffers = WEFTI_BUFFER_FIRST + ir->n_variables + ir->n_inputs;
    WEFTI_TRY(wefti_alloc((size_t)plan->n_buffers * sizeof *plan->buffers, "a plan", &plan->buffers));
    WEFTI_TRY(wefti_alloc((size_t)ir->n_inputs * sizeof *plan->staging, "a plan", &plan->staging));
    WEFTI_TRY(wefti_alloc((size_t)ir->n_inputs * sizeof *plan->fed, "a plan", &plan->fed));
    WEFTI_TRY(wefti_alloc((size_t)ir->n_segments * sizeof *plan->programs, "a plan", &plan->programs));
    WEFTI_TRY(allocate_flights(plan));
    if (ir->options.base.profile) WEFTI_TRY(wefti_alloc((size_t)ir->n_order * sizeof *plan->profile_ns, "a profile", &plan->profile_ns));
    if (ir->options.base.trace)
        WEFTI_TRY(wefti_alloc(WEFTI_TRACE_EVENTS * sizeof *plan->trace.events, "a trace", &plan->trace.events));
    return WEFT_OK;
}

static weft_status commit_all(weft_plan *plan) {
    wefti_ir *ir = &plan->ir;
    WEFTI_TRY(own_variables(plan));
    bool shared = ir->device->vtable->host_memory; /* what is exported is the device's own memory, or its mirror for those that need one */
    for (int32_t c = 0; c < ir->n_collectives && !shared; c++) shared = !ir->collectives[c].direct;
    WEFTI_TRY(wefti_arena_reserve(plan->arena, ir->arena_bytes, ir->exported_bytes, shared));
    WEFTI_TRY(make_constants(plan));
    WEFTI_TRY(allocate_tables(plan));
    for (int32_t i = 0; i < ir->n_inputs && !ir->device->vtable->host_memory; i++)
        WEFTI_TRY(ir->device->vtable->allocate(ir->device, (size_t)wefti_value_bytes(&ir->values[ir->inputs[i].value]),
                                               "a fed array", &plan->staging[i]));
    for (int32_t s = 0; s < ir->n_segments; s++) WEFTI_TRY(compile(plan, s));
    return WEFT_OK;
}

weft_status weft_plan_commit(weft_plan *plan) {
    if (!plan) return wefti_fail(WEFT_E_INVALID, "weft_plan_commit: the plan is NULL");
    if (plan->committed) return WEFT_OK;
    weft_status status = commit_all(plan);
    if (status != WEFT_OK) {
        weft_plan_totals totals;
        weft_plan_totals_read(plan, &totals);
        wefti_plan_free_memory(plan); /* it may be tried again */
        if (status == WEFT_E_NO_MEMORY)
            return wefti_while(status, "preparing the plan of '%s', which takes %lld bytes in all, %lld of them variables and %lld intermediate values",
                               plan->source->name, (long long)totals.total_bytes, (long long)totals.variable_bytes, (long long)totals.arena_bytes);
        return wefti_while(status, "preparing the plan of '%s'", plan->source->name);
    }
    plan->committed = true;
    return WEFT_OK;
}

void wefti_plan_free_memory(weft_plan *plan) {
    const wefti_ir *ir = &plan->ir;
    wefti_device   *device = ir->device;
    for (int32_t s = 0; plan->programs && s < ir->n_segments; s++)
        if (plan->programs[s]) device->vtable->release_program(plan->programs[s]);
    for (int32_t i = 0; plan->staging && i < ir->n_inputs; i++)
        if (plan->staging[i])
            device->vtable->deallocate(device, plan->staging[i], (size_t)wefti_value_bytes(&ir->values[ir->inputs[i].value]));
    if (plan->constants) device->vtable->deallocate(device, plan->constants, (size_t)ir->constant_bytes);
    wefti_free(plan->buffers, (size_t)plan->n_buffers * sizeof *plan->buffers);
    wefti_free(plan->staging, (size_t)ir->n_inputs * sizeof *plan->staging);
    wefti_free(plan->fed, (size_t)ir->n_inputs * sizeof *plan->fed);
    wefti_free(plan->programs, (size_t)ir->n_segments * sizeof *plan->programs);
    for (int32_t c = 0; plan->flights && c < ir->n_collectives; c++)
        if (plan->flights[c].counts) wefti_free(plan->flights[c].counts, counts_of(plan, c) * sizeof *plan->flights[c].counts);
    wefti_free(plan->flights, (size_t)ir->n_collectives * sizeof *plan->flights);
    wefti_free(plan->profile_ns, (size_t)ir->n_order * sizeof *plan->profile_ns);
    wefti_free(plan->trace.events, WEFTI_TRACE_EVENTS * sizeof *plan->trace.events);
    plan->buffers = NULL;
    plan->staging = NULL;
    plan->fed = NULL;
    plan->programs = NULL;
    plan->flights = NULL;
    plan->profile_ns = NULL;
    plan->constants = NULL;
    plan->trace = (wefti_trace){0};
}

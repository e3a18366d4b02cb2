/* The runner: binds what is fed, then launches segments, starts collectives and waits for them, in the order of the plan.
 *
 * While a segment computes, the device calls `between`, which lets the oldest collective of each group make progress (flights.c). On a device
 * with its own memory the run returns when everything was launched; fetching an output waits for it. Nothing is allocated
 * here, but a copy's memory for a feed that is not aligned, the first time. A fault that a collective reports ends the run; a fault
 * of this rank's device is raised in the groups first, so that no peer waits for us. Either way every collective in flight is ended
 * before the run returns, for they work on the plan's memory. */
#include <stdio.h>
#include <string.h>

#include "core/plan/object.h"

/* --- feeds --- */

/* An input of the graph that this plan does not read. */
static bool is_unused_input(const weft_plan *plan, const char *name) {
    for (int32_t i = 0; i < plan->source->n_leaves; i++) {
        const wefti_node *leaf = plan->source->leaves[i];
        if (leaf->op == WEFT_OP_INPUT && strcmp(leaf->name, name) == 0) return true;
    }
    return false;
}

static weft_status unknown_feed(const weft_plan *plan, const char *name) {
    char text[512] = "";
    int  used = 0;
    for (int32_t i = 0; i < plan->source->n_leaves && used < (int)sizeof text - 1; i++)
        if (plan->source->leaves[i]->op == WEFT_OP_INPUT)
            used += snprintf(text + used, sizeof text - (size_t)used, "%s'%s'", used ? ", " : "", plan->source->leaves[i]->name);
    return wefti_fail(WEFT_E_NOT_FOUND, "feed '%s' is no input of graph '%s'; there %s: %s", name, plan->source->name,
                      used ? "are" : "is none", text);
}

static weft_status check_feed(const wefti_value *input, const weft_feed *feed) {
    if (feed->dtype != input->dtype)
        return wefti_fail(WEFT_E_DTYPE, "input '%s' is %s %s, was fed %s", feed->name, weft_dtype_name(input->dtype),
                          weft_shape_text(input->shape).text, weft_dtype_name(feed->dtype));
    if (!weft_shape_equal(feed->shape, input->shape))
        return wefti_fail(WEFT_E_SHAPE, "input '%s' has shape %s in this plan, was fed %s", feed->name,
                          weft_shape_text(input->shape).text, weft_shape_text(feed->shape).text);
    if (!feed->data && wefti_value_bytes(input) > 0) return wefti_fail(WEFT_E_INVALID, "input '%s' was fed NULL", feed->name);
    return WEFT_OK;
}

static weft_status take_feed(weft_plan *plan, const weft_feed *feed) {
    wefti_ir *ir = &plan->ir;
    int32_t   i = 0;
    if (!feed->name) return wefti_fail(WEFT_E_INVALID, "weft_plan_run: a feed has no name");
    while (i < ir->n_inputs && strcmp(ir->inputs[i].name, feed->name) != 0) i++;
    if (i == ir->n_inputs) return is_unused_input(plan, feed->name) ? WEFT_OK : unknown_feed(plan, feed->name);
    if (plan->fed[i]) return wefti_fail(WEFT_E_INVALID, "input '%s' was fed twice", feed->name);
    WEFTI_TRY(check_feed(&ir->values[ir->inputs[i].value], feed));
    plan->fed[i] = feed->data ? feed->data : (const void *)plan; /* anything that is not NULL: it is not looked at */
    return WEFT_OK;
}

/* Device memory with the fed elements: the feed's own where that will do. */
static weft_status bind_feed(weft_plan *plan, int32_t i) {
    wefti_device *device = plan->ir.device;
    size_t        bytes = (size_t)wefti_value_bytes(&plan->ir.values[plan->ir.inputs[i].value]);
    void        **buffer = &plan->buffers[WEFTI_BUFFER_FIRST + plan->ir.n_variables + i];
    if (bytes == 0 || (device->vtable->host_memory && (uintptr_t)plan->fed[i] % WEFTI_ALIGNMENT == 0)) {
        *buffer = bytes ? (void *)(uintptr_t)plan->fed[i] : wefti_arena_memory(plan->arena);
        return WEFT_OK;
    }
    if (!plan->staging[i]) WEFTI_TRY(device->vtable->allocate(device, bytes, "a fed array", &plan->staging[i]));
    *buffer = plan->staging[i];
    return device->vtable->write(device, plan->staging[i], plan->fed[i], bytes);
}

static weft_status bind(weft_plan *plan, const weft_feed *feeds, int32_t n_feeds) {
    wefti_ir *ir = &plan->ir;
    if (n_feeds < 0 || (n_feeds > 0 && !feeds)) return wefti_fail(WEFT_E_INVALID, "weft_plan_run: %d feeds, and no list of them", n_feeds);
    for (int32_t i = 0; i < ir->n_inputs; i++) plan->fed[i] = NULL;
    for (int32_t f = 0; f < n_feeds; f++) WEFTI_TRY(take_feed(plan, &feeds[f]));
    for (int32_t i = 0; i < ir->n_inputs; i++)
        if (!plan->fed[i])
            return wefti_fail(WEFT_E_NOT_FOUND, "input '%s' (%s %s) was not fed", ir->inputs[i].name,
                              weft_dtype_name(ir->values[ir->inputs[i].value].dtype),
                              weft_shape_text(ir->values[ir->inputs[i].value].shape).text);
    plan->buffers[WEFTI_BUFFER_ARENA] = wefti_arena_memory(plan->arena);
    plan->buffers[WEFTI_BUFFER_EXPORTED] = wefti_arena_exported(plan->arena);
    plan->buffers[WEFTI_BUFFER_CONSTANT] = plan->constants;
    for (int32_t i = 0; i < ir->n_variables; i++)
        if (!ir->variables[i].divided) WEFTI_TRY(wefti_variables_whole(plan->variables, plan->variable_index[i]));
    if (ir->n_divided) wefti_variables_ran(plan->variables);
    for (int32_t i = 0; i < ir->n_variables; i++)
        plan->buffers[WEFTI_BUFFER_FIRST + i] = wefti_variables_memory(plan->variables, plan->variable_index[i]);
    for (int32_t i = 0; i < ir->n_inputs; i++) WEFTI_TRY(bind_feed(plan, i));
    if (ir->step_constant < 0 || plan->written_step == plan->step) return WEFT_OK;
    plan->written_step = plan->step;
    return ir->device->vtable->write(ir->device, (char *)plan->constants + ir->constants[ir->step_constant].offset_bytes, &plan->step,
                                     sizeof plan->step);
}

/* Divided parameters: before the ranks meet each stores what it updated to its peers, or after it loads what they did. */
static void gather_parts(weft_plan *plan, int32_t collective, bool pushes) {
    const wefti_item *item = &plan->ir.items[plan->ir.collectives[collective].item];
    if (item->op != WEFT_OP_ALL_GATHER || !item->divided || item->by_message || plan->ir.pushes != pushes) return;
    for (int32_t i = 0; i < item->n_inputs; i++) {
        int32_t variable = plan->variable_index[plan->ir.values[item->inputs[i]].index];
        if (pushes) wefti_variables_push(plan->variables, variable);
        else wefti_variables_fetch(plan->variables, variable);
    }
}

/* --- the steps --- */

static void between(void *plan) { wefti_flights_progress(plan); }

static weft_status launch(weft_plan *plan, int32_t s) {
    const wefti_plan_segment *segment = &plan->ir.segments[s];
    wefti_launch              given = {.buffers = plan->buffers, .between = plan->first_flight >= 0 ? between : NULL, .context = plan,
                                       .profile_ns = plan->profile_ns ? &plan->profile_ns[segment->begin] : NULL};
    uint64_t                  begin = plan->trace.events ? wefti_plan_now() : 0;
    WEFTI_TRY(plan->ir.device->vtable->launch(plan->programs[s], &given));
    if (plan->trace.events)
        wefti_trace_add(&plan->trace, (weft_trace_event){WEFT_TRACE_SEGMENT, plan->runs, s, "", 0, begin, wefti_plan_now()});
    return WEFT_OK;
}

static weft_status step(weft_plan *plan, const wefti_plan_step *it) {
    switch (it->kind) {
    case WEFTI_STEP_LAUNCH: WEFTI_TRY(launch(plan, it->index)); break;
    case WEFTI_STEP_START:
        gather_parts(plan, it->index, true);
        WEFTI_TRY(wefti_flight_start(plan, it->index));
        break;
    default:
        WEFTI_TRY(wefti_flight_wait(plan, it->index));
        gather_parts(plan, it->index, false);
        break;
    }
    if (it->kind != WEFTI_STEP_WAIT && plan->first_flight >= 0) wefti_flights_progress(plan);
    return plan->fault;
}

/* After an error: tells the groups, and ends what is in flight. Keeps the message of the error. */
static void abandon(weft_plan *plan, weft_status status) {
    char message[WEFTI_MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", weft_error_message());
    for (int32_t c = 0; c < plan->ir.n_collectives; c++) {
        struct wefti_group *group = wefti_ir_group(&plan->ir, &plan->ir.items[plan->ir.collectives[c].item]);
        if (group && group->fault && wefti_fault_status(group->fault) == WEFT_OK)
            wefti_fault_raise(group->fault, WEFT_E_PEER, plan->ir.world->rank, message);
    }
    wefti_flights_end(plan);
    (void)!wefti_fail(status, "%s", message);
}

static weft_status run_steps(weft_plan *plan) {
    plan->fault = WEFT_OK;
    plan->wait_ns = 0;
    for (int32_t i = 0; i < plan->ir.n_steps; i++) {
        weft_status status = step(plan, &plan->ir.steps[i]);
        if (status == WEFT_OK) continue;
        abandon(plan, status);
        return status;
    }
    return WEFT_OK;
}

weft_status weft_plan_run(weft_plan *plan, const weft_feed *feeds, int32_t n_feeds) {
    if (!plan) return wefti_fail(WEFT_E_INVALID, "weft_plan_run: the plan is NULL");
    WEFTI_TRY(weft_plan_commit(plan));
    WEFTI_TRY(bind(plan, feeds, n_feeds));
    uint64_t    begin = plan->trace.events ? wefti_plan_now() : 0;
    weft_status status = run_steps(plan);
    if (plan->trace.events)
        wefti_trace_add(&plan->trace, (weft_trace_event){WEFT_TRACE_RUN, plan->runs, 0, "", 0, begin, wefti_plan_now()});
    plan->runs++;
    plan->has_run = status == WEFT_OK;
    return status;
}

void weft_plan_set_step(weft_plan *plan, int64_t number) {
    if (plan) plan->step = number;
}

uint64_t wefti_plan_wait_ns(const weft_plan *plan) { return plan->wait_ns; }

/* --- outputs --- */

weft_status weft_plan_output(const weft_plan *plan, int32_t index, weft_plan_value *value_out) {
    if (!plan) return wefti_fail(WEFT_E_INVALID, "weft_plan_output: the plan is NULL");
    if (index < 0 || index >= plan->ir.n_outputs)
        return wefti_fail(WEFT_E_INVALID, "weft_plan_output: there is no output %d: there are %d", index, plan->ir.n_outputs);
    const wefti_value *value = &plan->ir.values[plan->ir.outputs[index]];
    *value_out = (weft_plan_value){value->dtype, value->shape, wefti_value_bytes(value), NULL};
    if (plan->has_run && plan->ir.device->vtable->host_memory) value_out->data = wefti_plan_address(plan, plan->ir.outputs[index]);
    return WEFT_OK;
}

weft_status weft_plan_fetch(const weft_plan *plan, int32_t index, void *values_out, size_t bytes) {
    weft_plan_value value;
    WEFTI_TRY(weft_plan_output(plan, index, &value));
    if (!plan->has_run) return wefti_fail(WEFT_E_STATE, "weft_plan_fetch: the plan of '%s' has not run", plan->source->name);
    if (bytes != (size_t)value.bytes)
        return wefti_fail(WEFT_E_MISMATCH, "output %d is %s %s, %lld bytes; there is room for %zu", index, weft_dtype_name(value.dtype),
                          weft_shape_text(value.shape).text, (long long)value.bytes, bytes);
    if (bytes == 0) return WEFT_OK;
    if (!values_out) return wefti_fail(WEFT_E_INVALID, "weft_plan_fetch: the memory for output %d is NULL", index);
    return plan->ir.device->vtable->read(plan->ir.device, values_out, wefti_plan_address(plan, plan->ir.outputs[index]), bytes);
}

weft_status wefti_plan_scalars(const weft_plan *plan, const int32_t *indices, int32_t n, double *values_out) {
    wefti_device *device = plan->ir.device;
    wefti_read    reads[WEFTI_SCALARS_MAX] = {{0}};
    union {
        float  single;
        double wide;
    } raw[WEFTI_SCALARS_MAX];
    if (!plan->has_run) return wefti_fail(WEFT_E_STATE, "the plan of '%s' has not run", plan->source->name);
    for (int32_t i = 0; i < n; i++) {
        const wefti_value *value = &plan->ir.values[plan->ir.outputs[indices[i]]];
        if (value->dtype != WEFT_F32 && value->dtype != WEFT_F64)
            return wefti_fail(WEFT_E_DTYPE, "a loss of %s cannot be read: cast it to f32 with weft_cast", weft_dtype_name(value->dtype));
        reads[i] = (wefti_read){&raw[i], wefti_plan_address(plan, plan->ir.outputs[indices[i]]), weft_dtype_bytes(value->dtype)};
    }
    for (int32_t i = 0; i < n && !device->vtable->read_all; i++)
        WEFTI_TRY(device->vtable->read(device, reads[i].host_memory, reads[i].device_memory, reads[i].size_bytes));
    if (device->vtable->read_all) WEFTI_TRY(device->vtable->read_all(device, reads, n));
    for (int32_t i = 0; i < n; i++) values_out[i] = reads[i].size_bytes == sizeof(double) ? raw[i].wide : (double)raw[i].single;
    return WEFT_OK;
}

int32_t weft_plan_trace(const weft_plan *plan, weft_trace_event *events_out, int32_t capacity) {
    if (!plan) return 0;
    uint64_t held = plan->trace.n < WEFTI_TRACE_EVENTS ? plan->trace.n : WEFTI_TRACE_EVENTS;
    uint64_t n = capacity < 0 ? 0 : held < (uint64_t)capacity ? held : (uint64_t)capacity;
    for (uint64_t i = 0; i < n; i++) events_out[i] = plan->trace.events[(plan->trace.n - n + i) % WEFTI_TRACE_EVENTS];
    return (int32_t)n;
}

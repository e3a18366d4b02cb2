/* Calls with an effect: ASSIGN and UPDATE write variables in place, CUSTOM and CUSTOM_BACKWARD call the application. */
#include <string.h>

#include "core/cpu/reference/reference.h"
#include "core/iface/custom.h"
#include "core/iface/rule.h"
#include "core/tensor/rounding.h"

static weft_status run_assign(const wefti_cpu_run *run) {
    const wefti_operand *x = &run->call->inputs[1];
    if (run->inputs[1] == run->outputs[0] && wefti_operand_is_contiguous(x)) return WEFT_OK;
    wefti_operand wide = *x; /* a broadcast value fills the variable */
    wide.shape = run->call->outputs[0].shape;
    wefti_operand_expand(x, wide.shape, wide.stride);
    wefti_reference_pack(run, &wide, run->inputs[1], run->outputs[0]);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_assign = {.name = "reference assign", .run = run_assign};

/* UPDATE: the rule over fixed runs of elements, whole rows where rows shrink. A gradient that is not contiguous is packed into scratch
 * first. */
enum { UPDATE_GRAIN = 16384, UPDATE_ROUNDED = 1024 };

typedef struct update {
    const wefti_cpu_run *run;
    const char          *gradient;
    int64_t              elements, grain, row;
    size_t               element_bytes;
} update;

static int64_t update_scratch(const wefti_call *call, int32_t threads) {
    (void)threads;
    if (wefti_operand_is_contiguous(&call->inputs[1])) return 0;
    return wefti_operand_elements(&call->outputs[0]) * (int64_t)weft_dtype_bytes(call->inputs[1].dtype);
}

/* A parameter in bf16: some of it in f32 at a time, and rounded stochastically. */
static void update_rounded(const wefti_call *call, uint16_t *parameter, int64_t first, const wefti_rule_args *all) {
    float           wide[UPDATE_ROUNDED];
    void           *states[WEFTI_RULE_STATES];
    wefti_rule_args args = *all;
    args.parameter = wide;
    args.states = states;
    for (int64_t i = 0; i < all->count; i += UPDATE_ROUNDED) {
        args.count = wefti_min_i64(UPDATE_ROUNDED, all->count - i);
        args.gradient = (const float *)all->gradient + i;
        for (int32_t s = 0; s < call->attrs->update.rule->n_states; s++) states[s] = (float *)all->states[s] + i;
        for (int64_t k = 0; k < args.count; k++) wide[k] = wefti_bf16_to_f32(parameter[i + k]);
        call->attrs->update.rule->apply_f32(&args);
        wefti_round_randomly(wide, parameter + i, first + i, args.count, call->attrs->update.key, (uint64_t)all->hyper[WEFTI_HYPER_STEP]);
    }
}

static void update_chunk(void *context, int64_t chunk, int32_t worker) {
    const update      *self = context;
    const wefti_call  *call = self->run->call;
    const wefti_rule  *rule = call->attrs->update.rule;
    int64_t            begin = chunk * self->grain;
    size_t             offset = (size_t)begin * self->element_bytes;
    void              *states[WEFTI_RULE_STATES];
    (void)worker;
    for (int32_t i = 0; i < rule->n_states; i++) states[i] = (char *)(uintptr_t)self->run->inputs[3 + i] + offset;
    wefti_rule_args args = {.count = wefti_min_i64(self->grain, self->elements - begin),
                            .parameter = (char *)self->run->outputs[0] + offset, /* of bf16: below */
                            .gradient = self->gradient + offset,
                            .states = states,
                            .hyper = self->run->inputs[2],
                            .l2 = call->attrs->update.l2,
                            .decay = call->attrs->update.decay,
                            .l1 = call->attrs->update.l1,
                            .group = call->attrs->update.group,
                            .row = self->row};
    if (call->outputs[0].dtype == WEFT_BF16) {
        update_rounded(call, (uint16_t *)self->run->outputs[0] + begin, begin, &args);
        return;
    }
    bool double_precision = call->outputs[0].dtype == WEFT_F64;
    (double_precision ? rule->apply_f64 : rule->apply_f32)(&args);
    if (args.group > 0) (double_precision ? rule->shrink_f64 : rule->shrink_f32)(&args);
}

static weft_status run_update(const wefti_cpu_run *run) {
    const wefti_operand *gradient = &run->call->inputs[1];
    update self = {.run = run, .gradient = run->inputs[1], .elements = wefti_operand_elements(&run->call->outputs[0]),
                   .element_bytes = weft_dtype_bytes(gradient->dtype)};
    if (self.elements == 0) return WEFT_OK;
    self.row = run->call->attrs->update.group > 0 ? wefti_rule_row(run->call->outputs[0].shape) : 1;
    self.grain = wefti_max_i64(1, UPDATE_GRAIN / self.row) * self.row;
    if (!wefti_operand_is_contiguous(gradient)) {
        wefti_operand wide = *gradient;
        wide.shape = run->call->outputs[0].shape;
        wefti_operand_expand(gradient, wide.shape, wide.stride);
        wefti_reference_pack(run, &wide, run->inputs[1], run->scratch);
        self.gradient = run->scratch;
    }
    wefti_cpu_for(run, wefti_cpu_chunks(self.elements, self.grain), update_chunk, &self);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_update = {
    .name = "reference update", .scratch = update_scratch, .run = run_update};

/* CUSTOM: the application sees contiguous memory; what is not is packed into scratch. */

static int64_t packed_bytes(const wefti_operand *operand) {
    if (wefti_operand_is_contiguous(operand)) return 0;
    return (int64_t)wefti_align_up((size_t)wefti_operand_elements(operand) * weft_dtype_bytes(operand->dtype),
                                   WEFTI_CACHE_LINE);
}

static int64_t custom_scratch(const wefti_call *call, int32_t threads) {
    int64_t total = 0;
    (void)threads;
    for (int32_t i = 0; i < call->n_inputs; i++) total += packed_bytes(&call->inputs[i]);
    return total;
}

static size_t custom_prepared(const wefti_call *call) {
    return (size_t)(call->n_inputs + call->n_outputs) * sizeof(weft_custom_data);
}

/* Fills the descriptions of all inputs and outputs, which are kept in `prepared`, packing what needs it. */
static weft_custom_data *describe(const wefti_cpu_run *run) {
    const wefti_call *call = run->call;
    weft_custom_data *data = run->prepared;
    char             *scratch = run->scratch;
    for (int32_t i = 0; i < call->n_inputs; i++) {
        const wefti_operand *operand = &call->inputs[i];
        data[i] = (weft_custom_data){operand->dtype, operand->shape, (void *)(uintptr_t)run->inputs[i]};
        if (wefti_operand_is_contiguous(operand)) continue;
        wefti_reference_pack(run, operand, run->inputs[i], scratch);
        data[i].data = scratch;
        scratch += packed_bytes(operand);
    }
    for (int32_t i = 0; i < call->n_outputs; i++)
        data[call->n_inputs + i] = (weft_custom_data){call->outputs[i].dtype, call->outputs[i].shape, run->outputs[i]};
    return data;
}

static weft_status report(const weft_custom_op *op, const char *which, weft_status status) {
    if (status == WEFT_OK) return WEFT_OK;
    return wefti_fail(status, "custom op '%s': its %s function failed: %s", op->name, which, weft_status_text(status));
}

static weft_status run_custom(const wefti_cpu_run *run) {
    const weft_custom_op *op = &run->call->attrs->custom.custom->op;
    weft_custom_data     *data = describe(run);
    return report(op, "forward", op->forward(data, run->call->attrs->custom.options, data + run->call->n_inputs));
}
const wefti_cpu_kernel wefti_reference_custom = {
    .name = "custom", .scratch = custom_scratch, .prepared_bytes = custom_prepared, .run = run_custom};

/* Inputs are x..., y..., gy...; outputs the gradients of x. Integers have none: theirs are zero. */
static weft_status run_custom_backward(const wefti_cpu_run *run) {
    const weft_custom_op *op = &run->call->attrs->custom.custom->op;
    weft_custom_data     *data = describe(run), *gradients = data + run->call->n_inputs;
    for (int32_t i = 0; i < run->call->n_outputs; i++) {
        if (weft_dtype_is_float(gradients[i].dtype)) continue;
        memset(gradients[i].data, 0,
               (size_t)weft_shape_elements(gradients[i].shape) * weft_dtype_bytes(gradients[i].dtype));
        gradients[i].data = NULL;
    }
    return report(op, "backward", op->backward(data, data + op->n_inputs, data + op->n_inputs + op->n_outputs,
                                               run->call->attrs->custom.options, gradients));
}
const wefti_cpu_kernel wefti_reference_custom_backward = {.name = "custom backward",
                                                          .scratch = custom_scratch,
                                                          .prepared_bytes = custom_prepared,
                                                          .run = run_custom_backward};

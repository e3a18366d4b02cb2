/* UPDATE: a solver's rule in one pass over parameter, gradient and states.
 *
 * Every element goes through the order of core/iface/rule.h, each operation rounded by itself, so that results are those of the
 * rules' own loops to the bit; only the vectors are wider. Rows shrink by the rule's own function. Rules of the application are left to
 * the plain kernel.
 * Cost: memory traffic, 28 bytes an element for Adam in f32. */
#include <math.h>

#include "core/cpu/kernels/convert.h"
#include "core/cpu/kernels/fast.h"
#include "core/cpu/kernels/simd.h"
#include "core/iface/rule.h"
#include "core/tensor/rounding.h"

enum { CHUNK = 16384, ROUNDED = 1024 };

#define T float
#define SQRT sqrtf
#define ABS fabsf
#define UPDATE(name) name##_f32
#include "core/cpu/kernels/update_template.h"
#undef T
#undef SQRT
#undef ABS
#undef UPDATE

#define T double
#define SQRT sqrt
#define ABS fabs
#define UPDATE(name) name##_f64
#include "core/cpu/kernels/update_template.h"

/* Elements of a chunk: whole rows where rows shrink. */
static int64_t chunk_elements(const wefti_call *call) {
    int64_t row = call->attrs->update.group > 0 ? wefti_rule_row(call->outputs[0].shape) : 1;
    return wefti_max_i64(1, CHUNK / wefti_max_i64(row, 1)) * row;
}

/* Of a parameter in bf16, some of it in f32 at a time, rounded stochastically. */
static void update_rounded(const wefti_call *call, const double *hyper, int64_t first, int64_t count, uint16_t *parameter, const float *gradient,
                           void *const *states) {
    float wide[ROUNDED];
    for (int64_t i = 0; i < count; i += ROUNDED) {
        int64_t n     = wefti_min_i64(ROUNDED, count - i);
        void   *at[2] = {states[0] ? (float *)states[0] + i : NULL, states[1] ? (float *)states[1] + i : NULL};
        convert_bf16_to_f32(parameter + i, n, wide);
        run_f32(call->attrs, hyper, n, wide, gradient + i, at);
        wefti_round_randomly(wide, parameter + i, first + i, n, call->attrs->update.key, (uint64_t)hyper[WEFTI_HYPER_STEP]);
    }
}

static void update_chunk(void *context, int64_t chunk, int32_t worker) {
    (void)worker;
    const wefti_cpu_run *run  = context;
    const wefti_call    *call = run->call;
    const wefti_rule    *rule = call->attrs->update.rule;
    weft_dtype           dtype = call->outputs[0].dtype;
    int64_t begin = chunk * chunk_elements(call), offset = begin * (int64_t)weft_dtype_bytes(call->inputs[1].dtype);
    int64_t count = wefti_min_i64(chunk_elements(call), wefti_operand_elements(&call->outputs[0]) - begin);
    void   *states[2] = {NULL, NULL};
    for (int32_t i = 0; i < rule->n_states; i++) states[i] = (char *)(uintptr_t)run->inputs[3 + i] + offset;
    if (dtype == WEFT_BF16) {
        update_rounded(call, run->inputs[2], begin, count, (uint16_t *)run->outputs[0] + begin, (const float *)run->inputs[1] + begin, states);
        return;
    }
    (dtype == WEFT_F64 ? run_f64 : run_f32)(call->attrs, run->inputs[2], count, (char *)run->outputs[0] + offset,
                                            (const char *)run->inputs[1] + offset, states);
    if (call->attrs->update.group <= 0) return;
    wefti_rule_args rows = {.count = count, .parameter = (char *)run->outputs[0] + offset, .states = states, .hyper = run->inputs[2],
                            .group = call->attrs->update.group, .row = wefti_rule_row(call->outputs[0].shape)};
    (dtype == WEFT_F64 ? rule->shrink_f64 : rule->shrink_f32)(&rows);
}

static bool accepts(const wefti_call *call) {
    const wefti_rule *rule = call->attrs->update.rule;
    weft_dtype        dtype = call->outputs[0].dtype;
    return rule->id < WEFTI_RULE_USER && (dtype == WEFT_F32 || dtype == WEFT_F64 || dtype == WEFT_BF16) &&
           wefti_operand_is_contiguous(&call->inputs[1]);
}

static weft_status run_update(const wefti_cpu_run *run) {
    const double *hyper = run->inputs[2];
    if (hyper[WEFTI_HYPER_SKIP] != 0) return WEFT_OK;
    int64_t elements = wefti_operand_elements(&run->call->outputs[0]);
    if (elements == 0) return WEFT_OK;
    wefti_cpu_for(run, wefti_cpu_chunks(elements, chunk_elements(run->call)), update_chunk, (void *)(uintptr_t)run);
    return WEFT_OK;
}

const wefti_cpu_kernel wefti_kernel_update = {.name = "one pass", .accepts = accepts, .run = run_update};

/* UPDATE: a solver's rule in one pass over parameter, gradient and states.
 *
 * Every element goes through the order of core/iface/rule.h, each operation rounded by itself, so that results are those of the
 * rules' own loops to the bit; only the vectors are wider. Rules of the application are left to the plain kernel.
 * Cost: memory traffic, 28 bytes an element for Adam in f32. */
#include <math.h>

#include "core/cpu/kernels/fast.h"
#include "core/cpu/kernels/simd.h"
#include "core/iface/rule.h"

enum { CHUNK = 16384 };

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

static void update_chunk(void *context, int64_t chunk, int32_t worker) {
    (void)worker;
    const wefti_cpu_run *run  = context;
    const wefti_call    *call = run->call;
    weft_dtype           dtype = call->outputs[0].dtype;
    int64_t begin = chunk * CHUNK, offset = begin * (int64_t)weft_dtype_bytes(dtype);
    int64_t count = wefti_min_i64(CHUNK, wefti_operand_elements(&call->outputs[0]) - begin);
    void   *states[2] = {NULL, NULL};
    for (int32_t i = 0; i < call->attrs->update.rule->n_states; i++)
        states[i] = (char *)(uintptr_t)run->inputs[3 + i] + offset;
    (dtype == WEFT_F64 ? run_f64 : run_f32)(call->attrs, run->inputs[2], count, (char *)run->outputs[0] + offset,
                                            (const char *)run->inputs[1] + offset, states);
}

static bool accepts(const wefti_call *call) {
    const wefti_rule *rule = call->attrs->update.rule;
    weft_dtype        dtype = call->outputs[0].dtype;
    return rule->id < WEFTI_RULE_USER && (dtype == WEFT_F32 || dtype == WEFT_F64) &&
           wefti_operand_is_contiguous(&call->inputs[1]);
}

static weft_status run_update(const wefti_cpu_run *run) {
    const double *hyper = run->inputs[2];
    if (hyper[WEFTI_HYPER_SKIP] != 0) return WEFT_OK;
    wefti_cpu_for(run, wefti_cpu_chunks(wefti_operand_elements(&run->call->outputs[0]), CHUNK), update_chunk,
                  (void *)(uintptr_t)run);
    return WEFT_OK;
}

const wefti_cpu_kernel wefti_kernel_update = {.name = "one pass", .accepts = accepts, .run = run_update};

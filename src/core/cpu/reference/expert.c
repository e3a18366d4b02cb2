/* EXPERT_MATMUL and its gradient: sums in f64 in order, rounded once; OCCURRENCE: one pass with a counter for each value. */
#include <string.h>

#include "core/cpu/reference/reference.h"

enum { BLOCK = 256 };

/* Which expert row r has; -1: none. */
static int64_t expert_of(const wefti_cpu_run *run, int64_t r, int64_t experts) {
    const wefti_operand *index = &run->call->inputs[2];
    int64_t              e = wefti_load_i64(run->inputs[2], r * index->stride[0], index->dtype);
    return e >= 0 && e < experts ? e : -1;
}

static void multiply_row(void *context, int64_t row, int32_t worker) {
    const wefti_cpu_run *run = context;
    const wefti_operand *x = &run->call->inputs[0], *w = &run->call->inputs[1];
    bool                 trans = run->call->attrs->expert.trans;
    int64_t              in = x->shape.dim[1], out = run->call->outputs[0].shape.dim[1], e = expert_of(run, row, w->shape.dim[0]);
    int64_t              along = w->stride[trans ? 2 : 1], across = w->stride[trans ? 1 : 2], from = row / run->call->attrs->expert.repeat * x->stride[0];
    (void)worker;
    for (int64_t begin = 0; begin < out; begin += BLOCK) {
        int64_t count = wefti_min_i64(BLOCK, out - begin);
        double  sums[BLOCK] = {0};
        for (int64_t k = 0; e >= 0 && k < in; k++) {
            double  factor = wefti_in(run, 0, from + k * x->stride[1]);
            int64_t origin = e * w->stride[0] + k * along + begin * across;
            for (int64_t j = 0; j < count; j++) sums[j] += factor * wefti_in(run, 1, origin + j * across);
        }
        for (int64_t j = 0; j < count; j++) wefti_out(run, 0, row * out + begin + j, sums[j]);
    }
}

static weft_status run_expert_matmul(const wefti_cpu_run *run) {
    wefti_cpu_for(run, run->call->outputs[0].shape.dim[0], multiply_row, (void *)(uintptr_t)run);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_expert_matmul = {.name = "reference expert-matmul", .run = run_expert_matmul};

/* One row of one expert's matrix: a column of x by g. */
static void weight_row(void *context, int64_t chunk, int32_t worker) {
    const wefti_cpu_run *run = context;
    const wefti_operand *x = &run->call->inputs[0], *g = &run->call->inputs[1];
    bool                 trans = run->call->attrs->expert.trans;
    int64_t              repeat = run->call->attrs->expert.repeat, experts = run->call->attrs->expert.experts, rows = g->shape.dim[0];
    int64_t              in = x->shape.dim[1], out = g->shape.dim[1], height = trans ? out : in, width = trans ? in : out;
    int64_t              e = chunk / height, i = chunk % height;
    (void)worker;
    for (int64_t begin = 0; begin < width; begin += BLOCK) {
        int64_t count = wefti_min_i64(BLOCK, width - begin);
        double  sums[BLOCK] = {0};
        for (int64_t r = 0; r < rows; r++) {
            if (expert_of(run, r, experts) != e) continue;
            int64_t x_row = r / repeat * x->stride[0], g_row = r * g->stride[0];
            double  factor = trans ? wefti_in(run, 1, g_row + i * g->stride[1]) : wefti_in(run, 0, x_row + i * x->stride[1]);
            for (int64_t j = 0; j < count; j++)
                sums[j] += factor * (trans ? wefti_in(run, 0, x_row + (begin + j) * x->stride[1]) : wefti_in(run, 1, g_row + (begin + j) * g->stride[1]));
        }
        for (int64_t j = 0; j < count; j++) wefti_out(run, 0, chunk * width + begin + j, sums[j]);
    }
}

static weft_status run_weight(const wefti_cpu_run *run) {
    weft_shape w = run->call->outputs[0].shape;
    wefti_cpu_for(run, w.dim[0] * w.dim[1], weight_row, (void *)(uintptr_t)run);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_expert_matmul_backward_weight = {.name = "reference expert-matmul-backward-weight", .run = run_weight};

static int64_t occurrence_scratch(const wefti_call *call, int32_t threads) {
    (void)threads;
    return call->attrs->expert.experts * (int64_t)sizeof(int32_t);
}

static weft_status run_occurrence(const wefti_cpu_run *run) {
    const wefti_operand *index = &run->call->inputs[0];
    int64_t              rows = index->shape.dim[0], columns = index->shape.dim[1], experts = run->call->attrs->expert.experts;
    int32_t             *count = run->scratch, *out = run->outputs[0];
    memset(count, 0, (size_t)experts * sizeof *count);
    for (int64_t column = 0; column < columns; column++)
        for (int64_t row = 0; row < rows; row++) {
            int64_t e = wefti_load_i64(run->inputs[0], row * index->stride[0] + column * index->stride[1], index->dtype);
            out[row * columns + column] = e >= 0 && e < experts ? count[e]++ : -1;
        }
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_occurrence = {.name = "occurrence", .scratch = occurrence_scratch, .run = run_occurrence};

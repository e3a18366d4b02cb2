/* Cross-entropy by rows: loss = (1-s)*(lse - x[label]) + s*(lse - mean(x)), lse the log-sum-exp of the row. A row with
 * the ignored label gives 0 whatever its logits; a label out of range gives NaN. */
#include "core/cpu/reference/reference.h"

static double logit(const wefti_cpu_run *run, int32_t input, int64_t row, int64_t i) {
    const wefti_operand *x = &run->call->inputs[input];
    return wefti_in(run, input, wefti_place(x, row * x->shape.dim[x->shape.rank - 1] + i));
}

static int64_t label_of(const wefti_cpu_run *run, int32_t input, int64_t row) {
    const wefti_operand *label = &run->call->inputs[input];
    return wefti_load_i64(run->inputs[input], wefti_place(label, row), label->dtype);
}

static bool is_ignored(const wefti_cpu_run *run, int64_t label) {
    return run->call->attrs->loss.has_ignored && label == run->call->attrs->loss.ignored;
}

static void loss_row(void *context, int64_t row, int32_t worker) {
    const wefti_cpu_run *run = context;
    weft_shape           shape = run->call->inputs[0].shape;
    int64_t              classes = shape.dim[shape.rank - 1], label = label_of(run, 1, row);
    double               most = -INFINITY, sum = 0, total = 0, smoothing = run->call->attrs->loss.smoothing;
    (void)worker;
    for (int64_t i = 0; i < classes; i++) {
        most = fmax(most, logit(run, 0, row, i));
        total += logit(run, 0, row, i);
    }
    for (int64_t i = 0; i < classes; i++) sum += exp(logit(run, 0, row, i) - most);
    double lse = most + log(sum), loss = NAN;
    if (is_ignored(run, label)) loss = 0;
    else if (label >= 0 && label < classes) {
        loss = (1 - smoothing) * (lse - logit(run, 0, row, label));
        if (smoothing != 0) loss += smoothing * (lse - total / (double)classes);
    }
    wefti_out(run, 0, row, loss);
    wefti_out(run, 1, row, lse);
}

static weft_status run_loss(const wefti_cpu_run *run) {
    wefti_cpu_for(run, wefti_operand_elements(&run->call->inputs[1]), loss_row, (void *)(uintptr_t)run);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_cross_entropy = {.name = "reference cross-entropy", .run = run_loss};

/* g * (softmax - (1-s)*onehot - s/C) */
static void loss_backward_row(void *context, int64_t row, int32_t worker) {
    const wefti_cpu_run *run = context;
    weft_shape           shape = run->call->inputs[1].shape;
    int64_t              classes = shape.dim[shape.rank - 1], label = label_of(run, 2, row);
    double               g = wefti_in(run, 0, wefti_place(&run->call->inputs[0], row));
    double               lse = wefti_in(run, 3, wefti_place(&run->call->inputs[3], row));
    double               smoothing = run->call->attrs->loss.smoothing;
    bool                 ignored = is_ignored(run, label), known = label >= 0 && label < classes;
    (void)worker;
    for (int64_t i = 0; i < classes; i++) {
        double target = (i == label ? 1 - smoothing : 0) + smoothing / (double)classes;
        wefti_out(run, 0, row * classes + i,
                  ignored ? 0 : known ? g * (exp(logit(run, 1, row, i) - lse) - target) : NAN);
    }
}

static weft_status run_loss_backward(const wefti_cpu_run *run) {
    wefti_cpu_for(run, wefti_operand_elements(&run->call->inputs[2]), loss_backward_row, (void *)(uintptr_t)run);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_cross_entropy_backward = {.name = "reference cross-entropy gradient",
                                                                 .run = run_loss_backward};

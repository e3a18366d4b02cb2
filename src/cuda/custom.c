/* CUSTOM and CUSTOM_BACKWARD on the CUDA device: the application's functions, on the host.
 *
 * The inputs come to host memory, the function runs, the outputs go back; so it waits, and is never captured. Strided inputs come as the
 * span of memory that they lie in and are packed on the host. All host memory is taken once, when the program is compiled. */
#include <string.h>

#include "core/iface/custom.h"
#include "cuda/inside.h"

typedef struct prepared {
    char  *host;       /* operands one after another, then room for the widest span */
    size_t host_bytes, span_at;
    weft_custom_data data[]; /* inputs, then outputs */
} prepared;

static size_t packed_bytes(const wefti_operand *operand) {
    return wefti_align_up((size_t)wefti_operand_elements(operand) * weft_dtype_bytes(operand->dtype), WEFTI_CACHE_LINE);
}

/* Bytes from the first element of an input to the end of its last. */
static size_t span_bytes(const wefti_operand *operand) {
    int64_t last = 0;
    for (int32_t axis = 0; axis < operand->shape.rank; axis++) {
        if (operand->shape.dim[axis] == 0) return 0;
        last += (operand->shape.dim[axis] - 1) * operand->stride[axis];
    }
    return (size_t)(last + 1) * weft_dtype_bytes(operand->dtype);
}

static size_t prepared_bytes(const wefti_call *call) {
    return sizeof(prepared) + (size_t)(call->n_inputs + call->n_outputs) * sizeof(weft_custom_data);
}

static weft_status prepare(wefti_cuda *cuda, const wefti_call *call, void *memory) {
    prepared *self = memory;
    size_t    widest = 0;
    (void)cuda;
    for (int32_t i = 0; i < call->n_inputs; i++) {
        self->span_at += packed_bytes(&call->inputs[i]);
        if (!wefti_operand_is_contiguous(&call->inputs[i]) && span_bytes(&call->inputs[i]) > widest) widest = span_bytes(&call->inputs[i]);
    }
    for (int32_t i = 0; i < call->n_outputs; i++) self->span_at += packed_bytes(&call->outputs[i]);
    self->host_bytes = self->span_at + widest;
    WEFTI_TRY(wefti_alloc(self->host_bytes, "a custom op's operands on the host", &self->host));
    char *at = self->host;
    for (int32_t i = 0; i < call->n_inputs + call->n_outputs; i++) {
        const wefti_operand *operand = i < call->n_inputs ? &call->inputs[i] : &call->outputs[i - call->n_inputs];
        self->data[i] = (weft_custom_data){operand->dtype, operand->shape, at};
        at += packed_bytes(operand);
    }
    return WEFT_OK;
}

static void unprepare(wefti_cuda *cuda, void *memory) {
    prepared *self = memory;
    (void)cuda;
    wefti_free(self->host, self->host_bytes);
}

static weft_status fetch(const wefti_cuda_run *run, int32_t i) {
    const prepared      *self = run->prepared;
    const wefti_operand *operand = &run->call->inputs[i];
    int64_t              n = wefti_operand_elements(operand);
    size_t               size = weft_dtype_bytes(operand->dtype);
    if (n == 0) return WEFT_OK;
    if (wefti_operand_is_contiguous(operand)) return wefti_cuda_read(&run->cuda->base, self->data[i].data, run->inputs[i], (size_t)n * size);
    char *span = self->host + self->span_at;
    WEFTI_TRY(wefti_cuda_read(&run->cuda->base, span, run->inputs[i], span_bytes(operand)));
    wefti_walk walk;
    wefti_walk_start(&walk, operand->shape, operand->stride, 0);
    for (int64_t e = 0; e < n; e++) {
        memcpy((char *)self->data[i].data + (size_t)e * size, span + walk.offset * (int64_t)size, size);
        wefti_walk_advance(&walk, 1);
    }
    return WEFT_OK;
}

static weft_status call_backward(const weft_custom_op *op, const wefti_call *call, weft_custom_data *data) {
    weft_custom_data *gradients = data + call->n_inputs, lent[WEFT_CUSTOM_MAX_INPUTS];
    memcpy(lent, gradients, (size_t)call->n_outputs * sizeof *lent);
    for (int32_t i = 0; i < call->n_outputs; i++) {
        if (weft_dtype_is_float(lent[i].dtype)) continue; /* integers have no gradient: theirs is zero */
        memset(lent[i].data, 0, (size_t)weft_shape_elements(lent[i].shape) * weft_dtype_bytes(lent[i].dtype));
        lent[i].data = NULL;
    }
    return op->backward(data, data + op->n_inputs, data + op->n_inputs + op->n_outputs, call->attrs->custom.options, lent);
}

static weft_status run_custom(const wefti_cuda_run *run) {
    const wefti_call     *call = run->call;
    const weft_custom_op *op = &call->attrs->custom.custom->op;
    prepared             *self = run->prepared;
    bool                  forward = call->op == WEFT_OP_CUSTOM;
    for (int32_t i = 0; i < call->n_inputs; i++) WEFTI_TRY(fetch(run, i));
    weft_status status = forward ? op->forward(self->data, call->attrs->custom.options, self->data + call->n_inputs)
                                 : call_backward(op, call, self->data);
    if (status != WEFT_OK)
        return wefti_fail(status, "custom op '%s': its %s function failed: %s", op->name, forward ? "forward" : "backward", weft_status_text(status));
    for (int32_t i = 0; i < call->n_outputs; i++) {
        const weft_custom_data *out = &self->data[call->n_inputs + i];
        WEFTI_TRY(wefti_cuda_write(&run->cuda->base, run->outputs[i], out->data, (size_t)weft_shape_elements(out->shape) * weft_dtype_bytes(out->dtype)));
    }
    return WEFT_OK;
}

const wefti_cuda_kernel wefti_cuda_custom = {
    .name = "custom", .prepared_bytes = prepared_bytes, .prepare = prepare, .unprepare = unprepare, .run = run_custom, .eager = true};

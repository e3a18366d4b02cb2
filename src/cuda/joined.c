/* Whether calls may be done at the same time: by the bytes that their operands span. Quadratic in calls and operands, when a program is made. */
#include "core/tensor/operand.h"
#include "cuda/joined.h"

typedef struct span {
    int32_t buffer;
    int64_t begin, end; /* bytes */
} span;

static span span_of(const wefti_operand *operand) {
    int64_t last = 0;
    if (weft_shape_elements(operand->shape) == 0) return (span){operand->buffer, 0, 0};
    for (int32_t axis = 0; axis < operand->shape.rank; axis++) last += (operand->shape.dim[axis] - 1) * operand->stride[axis];
    return (span){operand->buffer, operand->offset_bytes, operand->offset_bytes + (last + 1) * (int64_t)weft_dtype_bytes(operand->dtype)};
}

static bool meet(span a, span b) { return a.buffer == b.buffer && a.begin < b.end && b.begin < a.end; }

static span scratch_of(const wefti_call *call) {
    if (call->scratch_bytes == 0) return (span){call->scratch_buffer, 0, 0};
    return (span){call->scratch_buffer, call->scratch_offset, call->scratch_offset + call->scratch_bytes + WEFTI_CUDA_SCRATCH_SLACK};
}

static bool meets_call(span written, const wefti_call *other) {
    for (int32_t i = 0; i < other->n_inputs; i++)
        if (meet(written, span_of(&other->inputs[i]))) return true;
    for (int32_t o = 0; o < other->n_outputs; o++)
        if (meet(written, span_of(&other->outputs[o]))) return true;
    return meet(written, scratch_of(other));
}

/* Whether what the writer writes lies in what the other one reads or writes. */
static bool disturbs(const wefti_call *writer, const wefti_call *other) {
    for (int32_t w = 0; w < writer->n_outputs; w++)
        if (meets_call(span_of(&writer->outputs[w]), other)) return true;
    return meets_call(scratch_of(writer), other);
}

bool wefti_cuda_undisturbed(const wefti_call *const *calls, int32_t n, const wefti_call *next) {
    for (int32_t i = 0; i < n; i++)
        if (disturbs(calls[i], next) || disturbs(next, calls[i])) return false;
    return true;
}

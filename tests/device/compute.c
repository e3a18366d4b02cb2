/* Runs one call on a device: lays inputs out as the case says, guards all memory that it gives, and reads results back.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor/operand.h"
#include "device/conformance.h"

enum { GUARD = 128, FILL = 0xa5 };

/* Strides and origin of an input; gives the bytes that it needs. */
static size_t lay(const argument *self, wefti_operand *operand) {
    int32_t rank = self->shape.rank;
    int64_t stride = 1;
    *operand = (wefti_operand){.dtype = self->dtype, .shape = self->shape};
    switch (self->layout) {
    case GAPPED:
        stride = 2;
        for (int32_t axis = rank - 1; axis >= 0; axis--) {
            operand->stride[axis] = stride;
            stride *= self->shape.dim[axis] + 1;
        }
        operand->offset_bytes = 3 * (int64_t)weft_dtype_bytes(self->dtype);
        break;
    case LAST: {
        static const int inner_first[4] = {1, 3, 2, 0};
        for (int i = 0; i < 4; i++) {
            operand->stride[inner_first[i]] = stride;
            stride *= self->shape.dim[inner_first[i]] > 0 ? self->shape.dim[inner_first[i]] : 1;
        }
        break;
    }
    case TURNED:
        for (int32_t axis = 0; axis < rank; axis++) {
            operand->stride[axis] = stride;
            stride *= self->shape.dim[axis] > 0 ? self->shape.dim[axis] : 1;
        }
        break;
    default: {
        bool repeated = self->layout != REPEATED;
        for (int32_t axis = 0; axis < rank; axis++) {
            int64_t below = 1;
            for (int32_t b = axis + 1; b < rank; b++) below *= self->shape.dim[b] > 0 ? self->shape.dim[b] : 1;
            operand->stride[axis] = below;
            if (!repeated && self->shape.dim[axis] > 1) {
                operand->stride[axis] = 0;
                repeated = true;
            }
        }
    }
    }
    int64_t last = 0;
    for (int32_t axis = 0; axis < rank; axis++)
        if (self->shape.dim[axis] > 0) last += (self->shape.dim[axis] - 1) * operand->stride[axis];
    return (size_t)operand->offset_bytes + (size_t)(last + 1) * weft_dtype_bytes(self->dtype);
}

static void fill(const wefti_operand *operand, const tensor *values, char *memory) {
    for (int64_t i = 0; i < values->n; i++) {
        int64_t index[WEFT_MAX_RANK], offset = 0;
        unravel(operand->shape, i, index);
        for (int32_t axis = 0; axis < operand->shape.rank; axis++) offset += index[axis] * operand->stride[axis];
        if (weft_dtype_is_float(operand->dtype))
            wefti_store_f64(memory + operand->offset_bytes, offset, operand->dtype, values->f[i]);
        else wefti_store_i64(memory + operand->offset_bytes, offset, operand->dtype, values->i[i]);
    }
}

static bool give(placed *p, int32_t at, size_t bytes, const char *host, char why[256]) {
    p->bytes[at] = bytes + GUARD;
    p->n_buffers = at + 1;
    weft_status status = p->device->vtable->allocate(p->device, p->bytes[at], "a test", &p->buffers[at]);
    if (status == WEFT_OK) status = p->device->vtable->write(p->device, p->buffers[at], host, p->bytes[at]);
    if (status != WEFT_OK) snprintf(why, 256, "memory: %s", weft_error_message());
    return status == WEFT_OK;
}

/* Buffers of every operand that is not in place, filled. */
static bool give_operands(placed *p, const test_case *self, const tensor *inputs, char why[256]) {
    for (int32_t i = 0; i < self->n_inputs + self->n_outputs; i++) {
        bool            input = i < self->n_inputs;
        argument        one = input ? self->inputs[i] : self->outputs[i - self->n_inputs];
        if (!input && one.layout != LAST) one.layout = PLAIN;
        size_t bytes = lay(&one, &p->operands[i]);
        char  *host = malloc(bytes + GUARD);
        memset(host, FILL, bytes + GUARD);
        if (input) fill(&p->operands[i], &inputs[i], host);
        bool given = give(p, i, bytes, host, why);
        free(host);
        if (!given) return false;
        p->operands[i].buffer = self->in_place && i == self->n_inputs ? 0 : i;
    }
    return true;
}

static bool run_call(placed *p, const test_case *self, char why[256]) {
    const wefti_device_vtable *v = p->device->vtable;
    wefti_call call = {.op = self->op,
                       .attrs = &self->attrs,
                       .n_inputs = self->n_inputs,
                       .n_outputs = self->n_outputs,
                       .inputs = p->operands,
                       .outputs = p->operands + self->n_inputs,
                       .scratch_buffer = -1,
                       .name = "test"};
    weft_status status = v->query(p->device, &call, &call.scratch_bytes);
    if (status == WEFT_OK) {
        char *host = malloc((size_t)call.scratch_bytes + GUARD);
        memset(host, FILL, (size_t)call.scratch_bytes + GUARD);
        call.scratch_buffer = p->n_buffers;
        bool given = give(p, p->n_buffers, (size_t)call.scratch_bytes, host, why);
        free(host);
        if (!given) return false;
    }
    wefti_program *program = NULL;
    wefti_segment  segment = {.calls = &call, .n_calls = 1, .n_buffers = p->n_buffers};
    wefti_launch   launch = {.buffers = p->buffers};
    if (status == WEFT_OK) status = v->compile(p->device, &segment, &program);
    if (status == WEFT_OK) status = v->launch(program, &launch);
    v->release_program(program);
    if (status != WEFT_OK) snprintf(why, 256, "%s: %s", weft_status_name(status), weft_error_message());
    return status == WEFT_OK;
}

/* The elements of `host` as they lie, in row-major order. Frees it. */
static char *in_order(const wefti_operand *operand, char *host) {
    size_t  bytes = weft_dtype_bytes(operand->dtype);
    int64_t n = weft_shape_elements(operand->shape);
    char   *ordered = malloc((size_t)n * bytes + 1);
    for (int64_t i = 0; i < n; i++) {
        int64_t index[WEFT_MAX_RANK], offset = 0;
        unravel(operand->shape, i, index);
        for (int32_t axis = 0; axis < operand->shape.rank; axis++) offset += index[axis] * operand->stride[axis];
        memcpy(ordered + (size_t)i * bytes, host + (size_t)offset * bytes, bytes);
    }
    free(host);
    return ordered;
}

/* Reads outputs, and looks whether what lies behind each buffer is as it was. */
static bool read_back(placed *p, const test_case *self, void **outputs_out, char why[256]) {
    for (int32_t i = 0; i < p->n_buffers; i++) {
        char *host = malloc(p->bytes[i]);
        if (p->device->vtable->read(p->device, host, p->buffers[i], p->bytes[i]) != WEFT_OK)
            snprintf(why, 256, "cannot read");
        for (size_t b = p->bytes[i] - GUARD; b < p->bytes[i]; b++)
            if ((unsigned char)host[b] != FILL) snprintf(why, 256, "wrote behind buffer %d", i);
        int32_t output = i - self->n_inputs < self->n_outputs ? i - self->n_inputs : -1; /* else it is scratch */
        if (self->in_place && output == 0) output = -1;
        if (self->in_place && i == 0) output = 0;
        if (i >= 3 && i < 3 + self->n_written) output = self->n_outputs + i - 3;
        if (output >= 0 && output < self->n_outputs && self->outputs[output].layout == LAST) host = in_order(&p->operands[i], host);
        if (output >= 0) outputs_out[output] = host;
        else free(host);
    }
    return !why[0];
}

bool compute(wefti_device *device, const test_case *self, const tensor *inputs, void **outputs_out, char why[256]) {
    placed p = {.device = device};
    why[0] = 0;
    for (int32_t i = 0; i < results_of(self); i++) outputs_out[i] = NULL;
    bool good =
        give_operands(&p, self, inputs, why) && run_call(&p, self, why) && read_back(&p, self, outputs_out, why);
    for (int32_t i = 0; i < p.n_buffers; i++) device->vtable->deallocate(device, p.buffers[i], p.bytes[i]);
    return good;
}

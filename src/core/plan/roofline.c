/* Limits by measuring (roofline.h): a copy and square products that grow until they take long enough to be timed, each the best of some turns.
 * Both go through the device contract, so that the limit is what this device's own kernels reach, with the threads that it has now. */
#include "core/plan/roofline.h"

#include <string.h>

#include "core/tensor/operand.h"

enum { TURNS = 4, LEAST_SIDE = 128, MOST_SIDE = 4096, LEAST_BYTES = 1 << 18, MOST_BYTES = 128 << 20 };
#define LONG_NS 2e6 /* long enough for clocks, launches and threads that wake up not to count */

static wefti_operand operand_of(weft_dtype dtype, weft_shape shape, int32_t buffer) {
    wefti_operand operand = {.dtype = dtype, .shape = shape, .buffer = buffer};
    wefti_contiguous_strides(shape, operand.stride);
    return operand;
}

/* The best time of a call whose operands each have `bytes` of memory, and the scratch that it wants; 0 where it cannot be had. */
static double time_call(wefti_device *device, wefti_call *call, size_t bytes) {
    const wefti_device_vtable *v = device->vtable;
    wefti_program             *program = NULL;
    void                      *buffers[4] = {NULL};
    size_t                     sizes[4] = {bytes, bytes, bytes, 0};
    double                     best = 0;
    bool                       ready = v->query(device, call, &call->scratch_bytes) == WEFT_OK;
    sizes[3] = (size_t)call->scratch_bytes;
    call->scratch_buffer = 3;
    for (int i = 0; i < 4 && ready; i++) {
        if (sizes[i] == 0 || (i == 1 && call->n_inputs < 2)) continue;
        ready = v->allocate(device, sizes[i], "a measurement", &buffers[i]) == WEFT_OK;
        if (ready && i < 2 && v->host_memory) memset(buffers[i], 0, sizes[i]); /* pages that nobody wrote are all one */
    }
    ready = ready && v->compile(device, &(wefti_segment){.calls = call, .n_calls = 1, .n_buffers = 4}, &program) == WEFT_OK;
    for (int turn = 0; turn < TURNS && ready; turn++) {
        uint64_t ns = 0;
        ready = v->launch(program, &(wefti_launch){.buffers = buffers, .profile_ns = &ns}) == WEFT_OK;
        if (ready && turn > 0 && ns > 0 && (best == 0 || (double)ns < best)) best = (double)ns;
    }
    if (program) v->release_program(program);
    for (int i = 0; i < 4; i++)
        if (buffers[i]) v->deallocate(device, buffers[i], sizes[i]);
    return ready ? best : 0;
}

static double measure_bytes(wefti_device *device) {
    static const wefti_attrs none;
    double                   rate = 0;
    for (int64_t bytes = LEAST_BYTES; bytes <= MOST_BYTES; bytes *= 8) {
        wefti_operand x = operand_of(WEFT_F32, weft_shape(bytes / 4), 0), y = operand_of(WEFT_F32, weft_shape(bytes / 4), 2);
        wefti_call    call = {.op = WEFT_OP_COPY, .attrs = &none, .n_inputs = 1, .n_outputs = 1, .inputs = &x, .outputs = &y, .name = "copy"};
        double        ns = time_call(device, &call, (size_t)bytes);
        if (ns == 0) return rate;
        rate = 2 * (double)bytes / ns; /* of the largest: smaller ones may lie in a cache */
        if (ns > 10 * LONG_NS) break;
    }
    return rate;
}

static double measure_flops(wefti_device *device, weft_dtype dtype) {
    static const wefti_attrs none;
    double                   rate = 0;
    for (int64_t side = LEAST_SIDE; side <= MOST_SIDE; side *= 2) {
        weft_shape    square = weft_shape(side, side);
        wefti_operand in[2] = {operand_of(dtype, square, 0), operand_of(dtype, square, 1)}, out = operand_of(dtype, square, 2);
        wefti_call    call = {.op = WEFT_OP_MATMUL, .attrs = &none, .n_inputs = 2, .n_outputs = 1, .inputs = in, .outputs = &out, .name = "product"};
        double        ns = time_call(device, &call, (size_t)(side * side) * weft_dtype_bytes(dtype));
        if (ns == 0) break;
        double now = 2 * (double)side * (double)side * (double)side / ns;
        if (now > rate) rate = now;
        if (ns > LONG_NS) break;
    }
    return rate;
}

void wefti_roofline_measure(wefti_device *device, weft_dtype dtype, wefti_roofline *roofline) {
    if (roofline->bytes_per_ns == 0) roofline->bytes_per_ns = measure_bytes(device);
    if (weft_dtype_is_float(dtype) && roofline->flops_per_ns[dtype] == 0) roofline->flops_per_ns[dtype] = measure_flops(device, dtype);
}

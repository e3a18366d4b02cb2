/* One call on a device (cuda_call.h). The call stands many times in a segment, which becomes one graph: so the GPU is measured, and not its
 * launches. */
#include "cuda_call.h"

#include <stdlib.h>
#include <string.h>

#include "core/iface/world.h"
#include "core/tensor/operand.h"

enum { WINDOWS = 5, SLICE = 1 << 20 };

void cuda_call_must(weft_status status) {
    if (status == WEFT_OK) return;
    fprintf(stderr, "error: %s\n", weft_error_message());
    exit(1);
}

bool cuda_call_open_gpu(const char *name, weft_world **world_out) {
    if (weft_world_create(&(weft_world_options){.size = 1, .device = name}, world_out) != WEFT_OK) {
        printf("skipped: %s\n", weft_error_message());
        return false;
    }
    printf("%s\n", weft_world_describe(*world_out));
    return true;
}

void cuda_call_begin(cuda_call *self, weft_op op, const char *name, int32_t n_inputs, int32_t n_outputs) {
    wefti_device *device = self->device;
    memset(self, 0, sizeof *self);
    self->device = device, self->op = op, self->name = name, self->n_inputs = n_inputs, self->n_outputs = n_outputs;
}

void cuda_call_operand(cuda_call *self, int32_t which, weft_dtype dtype, weft_shape shape) {
    self->operand[which] = (wefti_operand){.dtype = dtype, .shape = shape, .buffer = which};
    wefti_contiguous_strides(shape, self->operand[which].stride);
}

static uint32_t mix(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

/* A million numbers, again and again. */
static void fill(cuda_call *self, int32_t which) {
    weft_dtype dtype = self->operand[which].dtype;
    size_t     each = weft_dtype_bytes(dtype), slice = SLICE * each;
    char      *host = malloc(slice);
    if (!host) exit(1);
    for (int64_t i = 0; i < SLICE; i++) {
        uint32_t bits = mix((uint32_t)i + 0x9e3779b9u * (uint32_t)(which + 1));
        if (weft_dtype_is_float(dtype)) wefti_store_f64(host, i, dtype, (double)bits * 0x1p-31 - 1);
        else wefti_store_i64(host, i, dtype, bits % self->label_end);
    }
    for (size_t at = 0; at < self->bytes[which]; at += slice)
        cuda_call_must(self->device->vtable->write(self->device, (char *)self->buffers[which] + at, host,
                                                   self->bytes[which] - at < slice ? self->bytes[which] - at : slice));
    free(host);
}

/* One operand's memory, filled where it is an input. */
static void hold(cuda_call *self, int32_t which) {
    self->bytes[which] = (size_t)wefti_operand_elements(&self->operand[which]) * weft_dtype_bytes(self->operand[which].dtype);
    cuda_call_must(self->device->vtable->allocate(self->device, self->bytes[which], self->name, &self->buffers[which]));
    if (which < self->n_inputs) fill(self, which);
}

void cuda_call_hold(cuda_call *self) {
    for (int32_t i = 0; i < self->n_inputs + self->n_outputs; i++) hold(self, i);
}

void cuda_call_open(cuda_call *self, int32_t times) {
    int32_t     n = self->n_inputs + self->n_outputs;
    wefti_call *calls = calloc((size_t)times, sizeof *calls);
    if (!calls) exit(1);
    calls[0] = (wefti_call){.op = self->op, .attrs = &self->attrs, .n_inputs = self->n_inputs, .n_outputs = self->n_outputs,
                            .inputs = self->operand, .outputs = self->operand + self->n_inputs, .scratch_buffer = n, .name = self->name};
    cuda_call_must(self->device->vtable->query(self->device, &calls[0], &calls[0].scratch_bytes));
    for (int32_t i = 1; i < times; i++) calls[i] = calls[0];
    cuda_call_hold(self);
    self->bytes[n] = (size_t)calls[0].scratch_bytes;
    cuda_call_must(self->device->vtable->allocate(self->device, self->bytes[n], self->name, &self->buffers[n]));
    cuda_call_must(self->device->vtable->compile(self->device, &(wefti_segment){.calls = calls, .n_calls = times, .n_buffers = n + 1},
                                                 &self->program));
    free(calls);
}

void cuda_call_close(cuda_call *self) {
    self->device->vtable->release_program(self->program);
    for (int32_t i = 0; i <= self->n_inputs + self->n_outputs; i++)
        self->device->vtable->deallocate(self->device, self->buffers[i], self->bytes[i]);
}

void cuda_call_launch(cuda_call *self) { cuda_call_must(self->device->vtable->launch(self->program, &(wefti_launch){.buffers = self->buffers})); }

/* Everything before a read is done when it comes back. */
void cuda_call_wait(cuda_call *self) {
    char some[4];
    cuda_call_must(self->device->vtable->read(self->device, some, self->buffers[self->n_inputs], 2));
}

bench_spread cuda_call_time(cuda_call *self, int32_t times, double window_s) {
    double seconds[WINDOWS];
    for (int i = 0; i < 3; i++) cuda_call_launch(self); /* kernels are loaded, the graph is captured */
    cuda_call_wait(self);
    double begin = bench_now_s();
    cuda_call_launch(self);
    cuda_call_wait(self);
    double one = bench_now_s() - begin;
    int    launches = one < window_s ? (int)(window_s / one) + 1 : 1;
    for (int w = 0; w < WINDOWS; w++) {
        begin = bench_now_s();
        for (int i = 0; i < launches; i++) cuda_call_launch(self);
        cuda_call_wait(self);
        seconds[w] = (bench_now_s() - begin) / launches / times;
    }
    return bench_spread_of(seconds, WINDOWS);
}

double cuda_call_copy_rate(wefti_device *device, int64_t elements, double window_s) {
    enum { TIMES = 8 };
    cuda_call call = {.device = device};
    cuda_call_begin(&call, WEFT_OP_COPY, "copy", 1, 1);
    for (int i = 0; i < 2; i++) cuda_call_operand(&call, i, WEFT_F32, weft_shape(elements));
    cuda_call_open(&call, TIMES);
    double rate = (double)(call.bytes[0] + call.bytes[1]) / cuda_call_time(&call, TIMES, window_s).median * 1e-9;
    cuda_call_close(&call);
    printf("limit: %.0f GB/s, a copy of %lld KiB, read and written\n", rate, (long long)elements / 256);
    return rate;
}

static void record(FILE *json, const char *bench, const char *what, bench_spread rate, double limit) {
    bench_write(json, &(bench_record){.bench = bench, .what = what, .metric = "bandwidth", .unit = "GB/s", .spread = rate, .limit = limit});
}
void cuda_call_show(FILE *json, const char *bench, const char *what, bench_spread rate, double limit, bool right) {
    printf("  %-64s %8.0f GB/s (%.0f to %.0f)  %5.1f %%%s\n", what, rate.median, rate.low, rate.high, 100 * rate.median / limit, right ? "" : "  WRONG");
    fflush(stdout);
    if (right) record(json, bench, what, rate, limit);
}
void cuda_call_unmeasured(FILE *json, const char *bench, const char *what, double limit) {
    printf("  %-64s unmeasured: %s\n", what, weft_error_message());
    record(json, bench, what, (bench_spread){BENCH_UNMEASURED, BENCH_UNMEASURED, BENCH_UNMEASURED, 0}, limit);
}

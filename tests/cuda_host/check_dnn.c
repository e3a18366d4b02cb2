/* What the real cuDNN makes of our graphs, for an H200 that is not there: it plans for a device that is described to it. Proves that
 * descriptors fit, and that there are engines within the wishes and the workspace; nothing is computed. Skips where cuDNN is not
 * installed, or is older than 9.8, which plans for devices at hand only. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/dnn.h"
#include "cuda_host/control.h"
#include "device/conformance.h"

static const char h200[] =
    "{\"deviceName\":\"NVIDIA H200\",\"cudaDeviceId\":0,\"deviceVer\":900,\"driverVer\":13000,\"isTccDriver\":0,\"l2CacheSize\":62914560,"
    "\"maxCtasPerSM\":32,\"maxRegistersPerSM\":65536,\"maxSharedMemoryPerBlock\":49152,\"maxSharedMemoryPerBlockOptin\":232448,"
    "\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":2048,\"memClockRateKHz\":3201000,\"multiProcessorCount\":132,\"pciDeviceId\":9011,"
    "\"regsPerBlock\":65536,\"reservedSharedMemoryPerBlock\":1024,\"smClockRateKHz\":1980000,\"supportCoopLaunch\":1,"
    "\"totalGlobalMem\":150000000000,\"warpSize\":32,\"maxGridSize\":[2147483647,65535,65535],\"maxBlockSize\":[1024,1024,64]}";

enum { PLANNED_VERSION = 90800, LISTED = 10 };

/* A device whose cuDNN plans for the H200; false where there is none. */
static bool open_planner(wefti_device **device_out, wefti_cuda_dnn_graph *graph) {
    const char                     *why;
    const wefti_cuda_dnn_functions *f = wefti_cuda_dnn_load(&why);
    if (!f || f->cudnnGetVersion() < PLANNED_VERSION) {
        fprintf(stderr, "  skipped: %s\n", f ? "cuDNN is older than 9.8" : why);
        return false;
    }
    wefti_cuda_host_reset(&(wefti_cuda_host_options){.seed = 1});
    cr_assert_eq(wefti_cuda_create(NULL, device_out), WEFT_OK, "%s", weft_error_message());
    wefti_cuda *cuda = wefti_cuda_of(*device_out);
    cuda->major = 9, cuda->multiprocessors = 132;
    cr_assert_eq(wefti_alloc(sizeof *cuda->dnn, "cuDNN's state", &cuda->dnn), WEFT_OK);
    cuda->dnn->f       = f;
    cuda->dnn->version = f->cudnnGetVersion();
    wefti_cuda_dnn_begin(graph, cuda->dnn);
    cudnnBackendDescriptor_t properties = wefti_cuda_dnn_make(graph, CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
    wefti_cuda_dnn_set(graph, properties, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, sizeof h200, h200);
    wefti_cuda_dnn_finish(graph, properties, "describing a device");
    cr_assert_eq(graph->status, CUDNN_STATUS_SUCCESS, "%s: %s", graph->failed, f->cudnnGetErrorString(graph->status));
    cuda->dnn->properties = properties;
    return true;
}

/* --- counting what falls back --- */

typedef struct tally {
    wefti_device *device;
    int           planned, refused;
} tally;
static int refusals;
static void note(void *context, weft_log_level level, const char *line) {
    (void)context, (void)level;
    if (strstr(line, "own kernel") && refusals++ < LISTED) fprintf(stderr, "  %s\n", line);
}

static void plan(tally *self, const wefti_cuda_kernel *kernel, wefti_call *call) {
    wefti_cuda *cuda = wefti_cuda_of(self->device);
    if (!kernel->accepts(cuda, call)) return;
    void *prepared;
    int   before        = refusals;
    call->scratch_bytes = kernel->scratch(cuda, call);
    cr_assert_eq(wefti_alloc(kernel->prepared_bytes(call), "prepared", &prepared), WEFT_OK);
    cr_assert_eq(kernel->prepare(cuda, call, prepared), WEFT_OK, "%s", weft_error_message());
    if (kernel->unprepare) kernel->unprepare(cuda, prepared);
    wefti_free(prepared, kernel->prepared_bytes(call));
    *(refusals > before ? &self->refused : &self->planned) += 1;
}

static const wefti_cuda_kernel *kernel_of(weft_op op) {
    switch (op) {
    case WEFT_OP_CONV2D: return &wefti_cuda_conv2d_dnn;
    case WEFT_OP_CONV2D_BACKWARD_INPUT: return &wefti_cuda_conv2d_backward_input_dnn;
    case WEFT_OP_CONV2D_BACKWARD_WEIGHT: return &wefti_cuda_conv2d_backward_weight_dnn;
    default: return NULL;
    }
}

/* Cases as contiguous calls. */
static void plan_case(void *context, const test_case *one) {
    wefti_operand            operands[MOST_OPERANDS];
    const wefti_cuda_kernel *kernel = kernel_of(one->op);
    if (!kernel) return;
    for (int32_t i = 0; i < one->n_inputs + one->n_outputs; i++) {
        const argument *of = i < one->n_inputs ? &one->inputs[i] : &one->outputs[i - one->n_inputs];
        if (of->layout != PLAIN && i < one->n_inputs) return;
        operands[i] = (wefti_operand){.dtype = of->dtype, .shape = of->shape};
        wefti_contiguous_strides(of->shape, operands[i].stride);
    }
    wefti_call call = {.op = one->op, .attrs = &one->attrs, .n_inputs = one->n_inputs, .n_outputs = one->n_outputs, .inputs = operands,
                       .outputs = operands + one->n_inputs, .name = case_name(one)};
    plan(context, kernel, &call);
}

/* A layer as large networks have them: input [N, C, H, H], O filters of K by K. */
static void plan_layer(tally *self, int64_t n, int64_t c, int64_t h, int64_t o, int64_t k, int32_t stride, int32_t pad, bool channels_last) {
    static const weft_dtype dtypes[] = {WEFT_BF16, WEFT_F16, WEFT_F32};
    static const weft_op    ops[] = {WEFT_OP_CONV2D, WEFT_OP_CONV2D_BACKWARD_INPUT, WEFT_OP_CONV2D_BACKWARD_WEIGHT};
    int64_t                 out = (h + 2 * pad - k) / stride + 1;
    for (size_t d = 0; d < WEFTI_COUNT(dtypes); d++)
        for (int which = 0; which < 3; which++) {
            wefti_operand x = {.dtype = dtypes[d], .shape = weft_shape(n, c, h, h)}, w = {.dtype = dtypes[d], .shape = weft_shape(o, c, k, k)};
            wefti_operand y = {.dtype = dtypes[d], .shape = weft_shape(n, o, out, out)}, *all[3] = {&x, &w, &y};
            wefti_attrs   attrs;
            memset(&attrs, 0, sizeof attrs);
            for (int i = 0; i < 2; i++) attrs.conv.stride[i] = stride;
            for (int i = 0; i < 4; i++) attrs.conv.pad[i] = pad;
            for (int i = 0; i < 3; i++) {
                const int64_t *dim = all[i]->shape.dim;
                wefti_contiguous_strides(all[i]->shape, all[i]->stride);
                if (!channels_last) continue;
                all[i]->stride[1] = 1, all[i]->stride[3] = dim[1], all[i]->stride[2] = dim[1] * dim[3];
            }
            wefti_operand inputs[2] = {which == 0 ? x : y, which == 2 ? x : w}, output = which == 0 ? y : which == 1 ? x : w;
            wefti_call    call = {.op = ops[which], .attrs = &attrs, .n_inputs = 2, .n_outputs = 1, .inputs = inputs, .outputs = &output,
                                  .name = "a layer"};
            int before = self->planned;
            plan(self, kernel_of(ops[which]), &call);
            cr_assert_eq(self->planned, before + 1, "cuDNN has no engine for %s in %s, %lld channels of %lld, %lld filters of %lld",
                         wefti_ops[ops[which]].name, weft_dtype_name(dtypes[d]), (long long)c, (long long)h, (long long)o, (long long)k);
        }
}

Test(cuda_dnn, plans_convolutions_for_a_gpu_that_is_not_there) {
    wefti_device        *device = NULL;
    wefti_cuda_dnn_graph graph;
    if (!open_planner(&device, &graph)) return;
    tally self = {.device = device};
    weft_set_log(note, NULL, WEFT_LOG_INFO);
    conformance_visit(plan_case, &self);
    fprintf(stderr, "  %d of the suite's convolutions are planned by cuDNN, %d fall back\n", self.planned, self.refused);
    cr_assert(self.planned > 3 * self.refused, "cuDNN takes too few of the suite's convolutions");
    for (int last = 0; last < 2; last++) {
        plan_layer(&self, 32, 64, 56, 64, 3, 1, 1, last);
        plan_layer(&self, 32, 128, 56, 128, 3, 2, 1, last);
        plan_layer(&self, 32, 256, 56, 64, 1, 1, 0, last);
        plan_layer(&self, 32, 3, 224, 64, 7, 2, 3, last);
    }
    wefti_cuda_dnn_end(&graph);
    wefti_cuda_dnn_close(wefti_cuda_of(device));
    device->vtable->release(device);
    weft_set_log(NULL, NULL, WEFT_LOG_ERROR);
}

/* --- which engine --- */

/* Candidate k's result: that of others, off by `off` of its size. */
static void result(wefti_cuda_dnn_sample *to, double off) {
    to->n = 100;
    for (int64_t i = 0; i < to->n; i++) to->value[i] = sin((double)i) * (1 + (i % 2 ? off : -off));
}

Test(cuda_dnn_choice, is_the_fastest_with_which_most_agree) {
    static wefti_cuda_dnn_sample samples[4];
    result(&samples[0], 1e-4);
    result(&samples[1], 0.5);
    result(&samples[2], 0);
    result(&samples[3], 2e-4);
    cr_assert_eq(wefti_cuda_dnn_choose(samples, (float[]){3, 1, 2, 4}, 4), 2, "the wrong one is the fastest");
    cr_assert_eq(wefti_cuda_dnn_choose(samples, (float[]){3, 1, -1, 4}, 4), 0, "the right one that is the fastest does not run");
    cr_assert_eq(wefti_cuda_dnn_choose(samples, (float[]){3, 1, 2, 4}, 1), 0, "there is but one");
    cr_assert_eq(wefti_cuda_dnn_choose(samples, (float[]){3, 1}, 2), WEFTI_CUDA_DNN_NONE, "two differ");
    cr_assert_eq(wefti_cuda_dnn_choose(samples, (float[]){-1, -1}, 2), WEFTI_CUDA_DNN_NONE, "nothing runs");
    samples[0].value[7] = NAN;
    cr_assert_eq(wefti_cuda_dnn_choose(samples, (float[]){1, 2, 3, 4}, 4), 2, "NaN agrees with nothing");
}

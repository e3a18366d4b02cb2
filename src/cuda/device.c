/* The CUDA device: opening it, its errors, and the contract's table.
 *
 * One device is one GPU and one stream, in whose order everything happens: writes, kernels, graphs, reads; only what collectives move has a
 * stream beside it (copies.c). Nothing waits but reads, large writes and what a kernel that calls the host needs. An error that spoils the driver's context for good is kept, and every later call gives it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/inside.h"
#include "cuda/nvrtc.h"

/* Errors after which nothing works in this process any more. */
static bool stays(cudaError_t error) {
    switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorIllegalInstruction:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContextIsDestroyed:
    case cudaErrorCudartUnloading:
    case cudaErrorMpsRpcFailure:
    case cudaErrorMpsClientTerminated:
    case cudaErrorUnknown: return true;
    default: return false;
    }
}

weft_status wefti_cuda_check(wefti_cuda *cuda, cudaError_t error, const char *what) {
    if (error == cudaSuccess) return WEFT_OK;
    (void)cudaGetLastError(); /* or the next launch would report it once more */
    if (stays(error)) {
        if (cuda->broken == WEFT_OK)
            snprintf(cuda->inside->fault, sizeof cuda->inside->fault, "%s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
        cuda->broken = WEFT_E_DEVICE;
        return wefti_fail(WEFT_E_DEVICE, "cuda:%d, %s: %s (%s). Kernels run later than they are launched%s%s: WEFT_CUDA_CAPTURE=0 CUDA_LAUNCH_BLOCKING=1 tell "
                          "which it was. This process cannot use the GPU any more", (int)cuda->ordinal, what, cudaGetErrorString(error), cudaGetErrorName(error),
                          cuda->inside->launched[0] ? ", these last: " : "", cuda->inside->launched);
    }
    return wefti_fail(error == cudaErrorMemoryAllocation ? WEFT_E_NO_MEMORY : WEFT_E_DEVICE, "cuda:%d, %s: %s (%s)", (int)cuda->ordinal, what,
                      cudaGetErrorString(error), cudaGetErrorName(error));
}

weft_status wefti_cuda_enter(wefti_cuda *cuda) {
    if (cuda->broken != WEFT_OK)
        return wefti_fail(cuda->broken, "cuda:%d failed before (%s); start the process again to use it", (int)cuda->ordinal, cuda->inside->fault);
    return wefti_cuda_check(cuda, cudaSetDevice(cuda->ordinal), "choosing the device");
}

/* Collectives over host wires reduce in host memory; nobody asks this device. */
static weft_status reduce(void *device, void *dst, const void *const *sources, int32_t source_count, size_t count, weft_dtype dtype,
                          wefti_reduce_op op, int32_t divisor) {
    (void)dst, (void)sources, (void)source_count, (void)count, (void)dtype, (void)op, (void)divisor;
    return wefti_fail(WEFT_E_UNSUPPORTED, "cuda:%d reduces nothing for collectives: they work in host memory", (int)((wefti_cuda *)device)->ordinal);
}

/* WEFT_CUDA_CHANNELS_LAST=1 wants it without cuDNN, too: our own kernels compute either way, and are made for the other. */
static bool has_dnn(void) {
#ifdef WEFT_HAVE_CUDNN
    if (wefti_cuda_dnn_is_there()) return true;
#endif
    return getenv("WEFT_CUDA_CHANNELS_LAST") != NULL;
}

/* 16-bit convolutions: what tensor cores multiply lies channel by channel, and cuDNN turns images around that do not. What comes from
 * such a convolution is pooled as it lies. */
static bool channels_last(wefti_device *device, const wefti_call *call) {
    weft_dtype dtype = call->outputs[0].dtype;
    if (!wefti_cuda_of(device)->channels_last || weft_shape_elements(call->outputs[0].shape) == 0) return false;
    if (wefti_ops[call->op].family != WEFTI_CONV) return true;
    return (dtype == WEFT_BF16 || dtype == WEFT_F16) && call->attrs->conv.groups <= 1 && has_dnn();
}

static int32_t threads(wefti_device *device) { return wefti_cuda_of(device)->multiprocessors; }

static void release(wefti_device *device) {
    if (!device) return;
    wefti_cuda *cuda = wefti_cuda_of(device);
    (void)cudaSetDevice(cuda->ordinal);
    if (cuda->stream) (void)cudaStreamSynchronize(cuda->stream);
    wefti_cuda_copies_close(cuda);
    wefti_cuda_foreign_close(cuda);
    wefti_cuda_blas_close(cuda);
    wefti_cuda_nvrtc_close(cuda);
#ifdef WEFT_HAVE_CUDNN
    wefti_cuda_dnn_close(cuda);
#endif
    wefti_cuda_memory_close(cuda);
    if (cuda->stream) (void)cudaStreamDestroy(cuda->stream);
    (void)cudaGetLastError();
    pthread_mutex_destroy(&cuda->inside->lock);
    wefti_free(cuda->inside, sizeof *cuda->inside);
    wefti_free(cuda, sizeof *cuda);
}

#define VTABLE(FUSES_REDUCTIONS) {                                                      \
    .kind = "cuda",                                                                     \
    .host_memory = false,                                                               \
    .fuses_reductions = FUSES_REDUCTIONS,                                               \
    .fuses_products = true,                                                             \
    .fuses_rows = FUSES_REDUCTIONS,                                                     \
    .joins_calls = true,                                                                \
    .narrow_pools = true,                                                               \
    .attention_by_rows = true,                                                          \
    .release = release,                                                                 \
    .allocate = wefti_cuda_allocate,                                                    \
    .deallocate = wefti_cuda_deallocate,                                                \
    .write = wefti_cuda_write,                                                          \
    .read = wefti_cuda_read,                                                            \
    .read_all = wefti_cuda_read_all,                                                    \
    .query = wefti_cuda_query,                                                          \
    .channels_last = channels_last,                                                     \
    .compile = wefti_cuda_compile,                                                      \
    .release_program = wefti_cuda_release_program,                                      \
    .launch = wefti_cuda_launch_program,                                                \
    .reduce = reduce,                                                                   \
    .threads = threads,                                                                 \
    .pin = wefti_cuda_pin,                                                              \
    .unpin = wefti_cuda_unpin,                                                          \
    .copy_out = wefti_cuda_copy_out,                                                    \
    .copy_test = wefti_cuda_copy_test,                                                  \
    .copy_in = wefti_cuda_copy_in,                                                      \
    .copy_join = wefti_cuda_copy_join,                                                  \
    .foreign = wefti_cuda_foreign,                                                      \
}
/* Sums are fused by those who compile fused programs. */
static const wefti_device_vtable vtable = VTABLE(false), fusing_vtable = VTABLE(true);

/* "13.0" of 13000. */
static const char *version_text(int version, char text[16]) {
    snprintf(text, 16, "%d.%d", version / 1000, version % 1000 / 10);
    return text;
}

/* How many GPUs there are; why there is none. */
static weft_status count_devices(int *count_out) {
    char        driver[16], runtime[16];
    int         driver_version = 0, runtime_version = 0;
    cudaError_t error = cudaGetDeviceCount(count_out);
    if (error == cudaSuccess && *count_out > 0) return WEFT_OK;
    *count_out = 0;
    (void)cudaGetLastError();
    (void)cudaDriverGetVersion(&driver_version);
    (void)cudaRuntimeGetVersion(&runtime_version);
    version_text(driver_version, driver);
    version_text(runtime_version, runtime);
    if (driver_version == 0)
        return wefti_fail(WEFT_E_UNSUPPORTED, "device 'cuda': this machine has no NVIDIA driver (libcuda.so.1); this build wants one for CUDA %s",
                          runtime);
    if (error == cudaErrorInsufficientDriver)
        return wefti_fail(WEFT_E_UNSUPPORTED, "device 'cuda': the driver is for CUDA %s and this build needs %s: install a newer driver, or build "
                          "with an older toolkit", driver, runtime);
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (error == cudaSuccess || error == cudaErrorNoDevice)
        return wefti_fail(WEFT_E_UNSUPPORTED, "device 'cuda': the driver (CUDA %s) shows no GPU%s%s", driver,
                          visible ? "; CUDA_VISIBLE_DEVICES is " : "", visible ? visible : "");
    return wefti_fail(WEFT_E_DEVICE, "device 'cuda': the driver (CUDA %s) does not start: %s (%s)", driver, cudaGetErrorString(error),
                      cudaGetErrorName(error));
}

bool wefti_cuda_is_there(void) {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

/* The device that is meant by `ordinal`. */
static weft_status choose_ordinal(const wefti_cuda_options *options, int32_t *ordinal_out) {
    int     count = 0;
    int32_t ordinal = options->ordinal;
    WEFTI_TRY(count_devices(&count));
    if (ordinal >= count)
        return wefti_fail(WEFT_E_NOT_FOUND, "device 'cuda:%d' does not exist: the driver shows %d GPU%s, the last is cuda:%d", (int)ordinal, count,
                          count == 1 ? "" : "s", count - 1);
    *ordinal_out = ordinal >= 0 ? ordinal : options->local_rank > 0 ? options->local_rank % count : 0;
    return WEFT_OK;
}

/* What the environment says: "0" is no, anything else yes; not set: `otherwise`. */
static bool wish(const char *name, bool otherwise) {
    const char *text = getenv(name);
    return text && *text ? strcmp(text, "0") != 0 : otherwise;
}

static weft_status open_device(wefti_cuda *cuda, const wefti_cuda_options *options) {
    struct cudaDeviceProp properties;
    WEFTI_TRY(choose_ordinal(options, &cuda->ordinal));
    WEFTI_TRY(wefti_cuda_enter(cuda));
    WEFTI_TRY(wefti_cuda_check(cuda, cudaGetDeviceProperties(&properties, cuda->ordinal), "its properties"));
    memcpy(cuda->inside->uuid, &properties.uuid, sizeof cuda->inside->uuid);
    cuda->major = properties.major;
    cuda->minor = properties.minor;
    cuda->multiprocessors = properties.multiProcessorCount;
    cuda->shared_most = (int32_t)properties.sharedMemPerBlockOptin;
    cuda->tf32 = options->tf32 || wish("WEFT_CUDA_TF32", false);
    cuda->any_order = options->any_order || !wish("WEFT_CUDA_DETERMINISTIC", true);
    cuda->capture = !options->no_capture && wish("WEFT_CUDA_CAPTURE", true);
    cuda->nvrtc = !options->no_fusion_compiler && wish("WEFT_CUDA_NVRTC", true);
    cuda->channels_last = wish("WEFT_CUDA_CHANNELS_LAST", true);
    snprintf(cuda->inside->description, sizeof cuda->inside->description, "%.100s (sm_%d%d, %d multiprocessors, %.1f GiB)", properties.name,
             properties.major, properties.minor, properties.multiProcessorCount, (double)properties.totalGlobalMem / 0x1p30);
    if (cuda->major < 8)
        return wefti_fail(WEFT_E_UNSUPPORTED, "device 'cuda:%d': %s is older than sm_80, the oldest that this build has kernels for",
                          (int)cuda->ordinal, cuda->inside->description);
    WEFTI_TRY(wefti_cuda_check(cuda, cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking), "its stream"));
    WEFTI_TRY(wefti_cuda_copies_open(cuda));
    WEFTI_TRY(wefti_cuda_foreign_open(cuda));
    if (wefti_cuda_nvrtc_is_there(cuda, NULL)) cuda->base.vtable = &fusing_vtable;
    return wefti_cuda_memory_open(cuda);
}

weft_status wefti_cuda_create(const wefti_cuda_options *options, wefti_device **device_out) {
    static const wefti_cuda_options defaults = {.ordinal = -1};
    if (!options) options = &defaults;
    *device_out = NULL;
    wefti_cuda *cuda = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *cuda, "the CUDA device", &cuda));
    weft_status status = wefti_alloc(sizeof *cuda->inside, "the CUDA device", &cuda->inside);
    if (status != WEFT_OK) {
        wefti_free(cuda, sizeof *cuda);
        return status;
    }
    cuda->base.vtable = &vtable;
    pthread_mutex_init(&cuda->inside->lock, NULL);
    status = open_device(cuda, options);
    if (status != WEFT_OK) {
        release(&cuda->base);
        return status;
    }
    *device_out = &cuda->base;
    return WEFT_OK;
}

void wefti_cuda_uuid(const wefti_device *device, uint8_t uuid_out[16]) {
    memcpy(uuid_out, wefti_cuda_of(device)->inside->uuid, sizeof wefti_cuda_of(device)->inside->uuid);
}

const char *wefti_cuda_describe(const wefti_device *device) { return wefti_cuda_of(device)->inside->description; }

/* The calls about devices and kernels. The device that is made up: of compute capability 9.0, few multiprocessors (so that grids that fill the
 * device stay small), and the limits of that generation. */
#include "cuda_host/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <map>

#include "cuda_host/shim.h"

namespace weft_host {
namespace {

enum { SHARED_USUAL = 48 << 10, SHARED_MOST = 227 << 10, SHARED_PER_MULTIPROCESSOR = 228 << 10, MOST_THREADS = 1024, PER_MULTIPROCESSOR = 2048 };

struct known_kernel {
    wefti_shim_kernel about;
    int               shared_most;
    int64_t           launched;
};
std::map<const void *, known_kernel> &kernels() {
    static auto *only = new std::map<const void *, known_kernel>;
    return *only;
}

int multiprocessors() { return options.multiprocessors > 0 ? options.multiprocessors : 3; }

bool has_limits(dim3 grid, dim3 block) {
    return grid.x > 0 && grid.y > 0 && grid.z > 0 && block.x > 0 && block.y > 0 && block.z > 0 && grid.x <= 0x7fffffffu && grid.y <= 65535 &&
           grid.z <= 65535 && block.x <= 1024 && block.y <= 1024 && block.z <= 64 && (uint64_t)block.x * block.y * block.z <= MOST_THREADS;
}

/* Copies of the arguments, as a launch takes them. */
struct bound {
    std::vector<std::vector<uint64_t>> values;
    std::vector<void *>                pointers;
};

} // namespace

void forget_launches() {
    for (auto &one : kernels()) one.second.launched = 0;
}

} // namespace weft_host

using namespace weft_host;

extern "C" {

void wefti_shim_know(const wefti_shim_kernel *kernel) {
    std::lock_guard<std::recursive_mutex> locked(lock);
    auto found = kernels().find(kernel->function);
    if (found == kernels().end()) kernels()[kernel->function] = {*kernel, SHARED_USUAL, 0};
    else found->second.about = *kernel;
}

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared_bytes, cudaStream_t on) {
    WEFT_HOST_ENTER();
    if (wefti_shim_in_kernel()) return refuse(cudaErrorLaunchFailure, "a kernel launches a kernel");
    auto found = kernels().find(function);
    if (found == kernels().end()) return refuse(cudaErrorInvalidDeviceFunction, "a kernel that was never launched by wefti_cuda_launch");
    const wefti_shim_kernel &about = found->second.about;
    if (!has_limits(grid, block))
        return refuse(cudaErrorInvalidConfiguration, "kernel %s: a grid of %u,%u,%u blocks of %u,%u,%u threads", about.name, grid.x, grid.y, grid.z,
                      block.x, block.y, block.z);
    if (shared_bytes > (size_t)found->second.shared_most)
        return refuse(cudaErrorInvalidValue, "kernel %s: %zu bytes of shared memory, of at most %d", about.name, shared_bytes,
                      found->second.shared_most);
    auto given = std::make_shared<bound>();
    for (int i = 0; i < about.n_parameters; i++) {
        given->values.emplace_back((about.bytes[i] + 7) / 8 + 1);
        memcpy(given->values.back().data(), arguments[i], about.bytes[i]);
        const void *pointer = nullptr;
        if (about.pointers[i]) memcpy(&pointer, arguments[i], sizeof pointer);
        if (pointer && !device_may_use(pointer, 0))
            return refuse(cudaErrorIllegalAddress, "kernel %s: argument %d, %p, is host memory or was freed", about.name, i, pointer);
    }
    for (auto &value : given->values) {
        uintptr_t at = reinterpret_cast<uintptr_t>(value.data());
        given->pointers.push_back(reinterpret_cast<void *>(at));
    }
    /* Looking at every access is dear: each kernel's first launches, and some of the later ones. */
    bool   looks = found->second.launched++ < 16 || chance.below(8) == 0;
    launch what = {about.name, grid, block, shared_bytes, nullptr, looks};
    auto   call = about.call;
    what.kernel = [=] { call(function, given->pointers.data()); };
    return issue(on, about.name, [what] {
        std::string why;
        launches++;
        if (options.fault > 0 && --options.fault == 0) return refuse(cudaErrorIllegalAddress, "kernel %s: a fault that was asked for", what.name.c_str());
        if (run_launch(what, chance, why)) return cudaSuccess;
        if (!options.quiet) fprintf(stderr, "cuda_host: %s\n", why.c_str());
        return refuse(cudaErrorLaunchFailure, "%s", why.c_str());
    });
}

cudaError_t cudaFuncSetAttribute(const void *function, cudaFuncAttribute attribute, int value) {
    WEFT_HOST_ENTER();
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || value > SHARED_MOST)
        return refuse(cudaErrorInvalidValue, "cudaFuncSetAttribute: %d bytes of shared memory, of at most %d", value, (int)SHARED_MOST);
    auto found = kernels().find(function);
    if (found == kernels().end()) { /* not launched yet: the rest comes with its first launch */
        wefti_shim_kernel unknown = {"?", function, nullptr, 0, nullptr, nullptr};
        kernels()[function] = {unknown, value, 0};
    } else found->second.shared_most = value;
    return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes_out, const void *function) {
    WEFT_HOST_ENTER();
    memset(attributes_out, 0, sizeof *attributes_out);
    auto found = kernels().find(function);
    attributes_out->maxThreadsPerBlock = MOST_THREADS;
    attributes_out->maxDynamicSharedSizeBytes = found == kernels().end() ? (int)SHARED_USUAL : found->second.shared_most;
    attributes_out->numRegs = 32;
    attributes_out->ptxVersion = attributes_out->binaryVersion = 90;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks_out, const void *, int threads, size_t shared_bytes) {
    if (threads <= 0 || threads > MOST_THREADS) return refuse(cudaErrorInvalidValue, "occupancy of %d threads", threads);
    int blocks = PER_MULTIPROCESSOR / threads, fit = (int)(SHARED_PER_MULTIPROCESSOR / (shared_bytes + 1024));
    *blocks_out = blocks < fit ? blocks : fit;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks_out, const void *function, int threads, size_t shared_bytes, unsigned) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks_out, function, threads, shared_bytes);
}

/* --- devices --- */

cudaError_t cudaGetDeviceCount(int *count_out) {
    *count_out = 0;
    if (options.driver) return refuse(cudaErrorInsufficientDriver, "the driver is version %d", (int)options.driver); /* also where there is none */
    if (options.no_gpu) return refuse(cudaErrorNoDevice, "there is no GPU");
    return *count_out = 1, cudaSuccess;
}
cudaError_t cudaGetDevice(int *device_out) { return *device_out = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
    WEFT_HOST_ENTER();
    return device == 0 ? cudaSuccess : refuse(cudaErrorInvalidDevice, "there is device 0 only, not %d", device);
}
cudaError_t cudaInitDevice(int device, unsigned, unsigned) { return cudaSetDevice(device); }
cudaError_t cudaDriverGetVersion(int *version_out) {
    return *version_out = options.driver < 0 ? 0 : options.driver > 0 ? options.driver : CUDART_VERSION, cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version_out) { return *version_out = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaDeviceReset(void) { return cudaSuccess; }
cudaError_t cudaSetDeviceFlags(unsigned) { return cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int *can_out, int, int) { return *can_out = 0, cudaSuccess; }
cudaError_t cudaDeviceSetLimit(cudaLimit, size_t) { return cudaSuccess; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties_out, int device) {
    cudaError_t error = cudaSetDevice(device);
    if (error != cudaSuccess) return error;
    memset(properties_out, 0, sizeof *properties_out);
    snprintf(properties_out->name, sizeof properties_out->name, "stand-in on the host");
    properties_out->totalGlobalMem = options.memory_bytes ? options.memory_bytes : (size_t)4 << 30;
    properties_out->major = (options.capability ? options.capability : 90) / 10;
    properties_out->minor = options.capability % 10;
    properties_out->multiProcessorCount = multiprocessors();
    properties_out->sharedMemPerBlock = SHARED_USUAL;
    properties_out->sharedMemPerBlockOptin = SHARED_MOST;
    properties_out->sharedMemPerMultiprocessor = SHARED_PER_MULTIPROCESSOR;
    properties_out->reservedSharedMemPerBlock = 1024;
    properties_out->maxThreadsPerBlock = MOST_THREADS;
    properties_out->maxThreadsPerMultiProcessor = PER_MULTIPROCESSOR;
    properties_out->maxBlocksPerMultiProcessor = 32;
    properties_out->regsPerBlock = properties_out->regsPerMultiprocessor = 65536;
    properties_out->warpSize = 32;
    const int threads[] = {1024, 1024, 64}, grid[] = {0x7fffffff, 65535, 65535};
    memcpy(properties_out->maxThreadsDim, threads, sizeof threads);
    memcpy(properties_out->maxGridSize, grid, sizeof grid);
    properties_out->unifiedAddressing = properties_out->canMapHostMemory = properties_out->memoryPoolsSupported = 1;
    properties_out->concurrentKernels = properties_out->asyncEngineCount = 1;
    properties_out->l2CacheSize = 50 << 20;
    properties_out->memoryBusWidth = 5120;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value_out, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp about;
    cudaError_t    error = cudaGetDeviceProperties(&about, device);
    if (error != cudaSuccess) return error;
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value_out = about.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value_out = about.minor; break;
    case cudaDevAttrMultiProcessorCount: *value_out = about.multiProcessorCount; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value_out = SHARED_USUAL; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value_out = SHARED_MOST; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value_out = SHARED_PER_MULTIPROCESSOR; break;
    case cudaDevAttrMaxThreadsPerBlock: *value_out = MOST_THREADS; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value_out = PER_MULTIPROCESSOR; break;
    case cudaDevAttrWarpSize: *value_out = 32; break;
    case cudaDevAttrL2CacheSize: *value_out = about.l2CacheSize; break;
    case cudaDevAttrMemoryPoolsSupported: case cudaDevAttrUnifiedAddressing: case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrManagedMemory: *value_out = 1; break;
    case cudaDevAttrGPUDirectRDMAWritesOrdering:
        *value_out = options.flushes ? cudaGPUDirectRDMAWritesOrderingNone : cudaGPUDirectRDMAWritesOrderingAllDevices;
        break;
    case cudaDevAttrGPUDirectRDMAFlushWritesOptions: *value_out = cudaFlushGPUDirectRDMAWritesOptionHost; break;
    case cudaDevAttrClockRate: *value_out = 1000000; break;
    case cudaDevAttrCooperativeLaunch: case cudaDevAttrIntegrated: case cudaDevAttrConcurrentManagedAccess: *value_out = 0; break;
    default: return refuse(cudaErrorInvalidValue, "cudaDeviceGetAttribute: the stand-in has no attribute %d", (int)attribute);
    }
    return cudaSuccess;
}

/* Programs on stand-ins load the stand-ins of libraries, and neither read nor write what was measured on a GPU. */
static void __attribute__((constructor)) set_environment(void) {
    setenv("WEFT_CUDA_LIBRARIES", WEFT_CUDA_HOST_LIBRARIES, 0);
    setenv("WEFT_CUDA_CACHE", "0", 0);
    setenv("WEFT_CUDA_NVRTC", "0", 0); /* a second each; check_fused.c asks for it */
    options.lazy = getenv("WEFT_CUDA_HOST_LAZY") != nullptr; /* until wefti_cuda_host_reset says otherwise */
}

/* --- errors --- */

#define WEFT_HOST_ERRORS(ROW)                                                                                                        \
    ROW(cudaSuccess) ROW(cudaErrorInvalidValue) ROW(cudaErrorMemoryAllocation) ROW(cudaErrorInvalidConfiguration)                    \
    ROW(cudaErrorInvalidPitchValue) ROW(cudaErrorInvalidMemcpyDirection) ROW(cudaErrorInvalidDeviceFunction) ROW(cudaErrorNoDevice)  \
    ROW(cudaErrorInvalidDevice) ROW(cudaErrorInsufficientDriver) ROW(cudaErrorInvalidResourceHandle) ROW(cudaErrorIllegalState)      \
    ROW(cudaErrorNotReady) ROW(cudaErrorIllegalAddress) ROW(cudaErrorLaunchOutOfResources) ROW(cudaErrorAssert)                      \
    ROW(cudaErrorHostMemoryAlreadyRegistered) ROW(cudaErrorHostMemoryNotRegistered) ROW(cudaErrorLaunchFailure)                      \
    ROW(cudaErrorNotSupported) ROW(cudaErrorStreamCaptureUnsupported) ROW(cudaErrorStreamCaptureInvalidated)                         \
    ROW(cudaErrorStreamCaptureMerge) ROW(cudaErrorStreamCaptureUnmatched) ROW(cudaErrorStreamCaptureUnjoined)                        \
    ROW(cudaErrorStreamCaptureIsolation) ROW(cudaErrorStreamCaptureImplicit) ROW(cudaErrorCapturedEvent)                             \
    ROW(cudaErrorGraphExecUpdateFailure) ROW(cudaErrorUnknown)
const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
#define ROW(NAME) case NAME: return #NAME;
        WEFT_HOST_ERRORS(ROW)
#undef ROW
    default: return "unrecognized error code";
    }
}
/* With the stand-in's own reason. */
const char *cudaGetErrorString(cudaError_t error) {
    static thread_local char text[1400];
    const char *why = wefti_cuda_host_report();
    snprintf(text, sizeof text, "%s%s%s", cudaGetErrorName(error), why[0] && error != cudaSuccess ? ": " : "", error != cudaSuccess ? why : "");
    return text;
}

} /* extern "C" */

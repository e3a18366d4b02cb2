/* Memory of the stand-in device: the host's, with a list of what was given out.
 *
 * Fresh memory holds all ones (NaNs, and indices that lead nowhere). Under AddressSanitizer each allocation has red zones and freed memory is
 * kept aside; otherwise a fence behind it is looked at when it is freed and by wefti_cuda_host_reset. */
#include "cuda_host/engine.h"

#include <stdlib.h>
#include <string.h>

#include <map>

namespace weft_host {
namespace {

enum { FENCE = 256, FENCE_BYTE = 0xfb, ALIGNMENT = 256 };

struct block_of_memory {
    size_t      bytes;
    memory_kind kind;
    bool        own; /* allocated here */
};
std::map<uintptr_t, block_of_memory> &held() {
    static auto *map = new std::map<uintptr_t, block_of_memory>; /* never destroyed: used by other destructors */
    return *map;
}
size_t held_bytes;

size_t fence_bytes() {
#ifdef __SANITIZE_ADDRESS__
    return 0;
#else
    return FENCE;
#endif
}

const std::pair<const uintptr_t, block_of_memory> *find(const void *at, size_t bytes) {
    uintptr_t begin = reinterpret_cast<uintptr_t>(at);
    auto      after = held().upper_bound(begin);
    if (after == held().begin()) return nullptr;
    const auto &found = *std::prev(after);
    return begin + bytes <= found.first + found.second.bytes && begin + bytes >= begin ? &found : nullptr;
}

cudaError_t give(void **memory_out, size_t bytes, memory_kind kind) {
    *memory_out = nullptr;
    if (bytes == 0) return cudaSuccess;
    size_t most = options.memory_bytes ? options.memory_bytes : (size_t)4 << 30;
    if (kind != PINNED && (bytes > most || held_bytes + bytes > most))
        return refuse(cudaErrorMemoryAllocation, "%zu bytes are too many beside %zu of %zu", bytes, held_bytes, most);
    void *memory = nullptr;
    if (posix_memalign(&memory, ALIGNMENT, bytes + fence_bytes()) != 0) return refuse(cudaErrorMemoryAllocation, "the host has no %zu bytes", bytes);
    memset(memory, 0xff, bytes);
    memset(static_cast<char *>(memory) + bytes, FENCE_BYTE, fence_bytes());
    held()[reinterpret_cast<uintptr_t>(memory)] = {bytes, kind, true};
    if (kind != PINNED) held_bytes += bytes;
    *memory_out = memory;
    return cudaSuccess;
}

bool fence_stands(uintptr_t at, const block_of_memory &block) {
    const unsigned char *fence = reinterpret_cast<const unsigned char *>(at + block.bytes);
    for (size_t i = 0; block.own && i < fence_bytes(); i++)
        if (fence[i] != FENCE_BYTE) return false;
    return true;
}

cudaError_t take_back(void *memory, bool pinned) {
    auto found = held().find(reinterpret_cast<uintptr_t>(memory));
    if (found == held().end() || (found->second.kind == PINNED) != pinned || !found->second.own)
        return refuse(cudaErrorInvalidValue, "%p was not allocated so, or is free already", memory);
    block_of_memory block = found->second;
    bool            stands = fence_stands(found->first, block);
    held().erase(found);
    if (!pinned) held_bytes -= block.bytes;
    memset(memory, 0xff, block.bytes);
    free(memory);
    if (stands) return cudaSuccess;
    broken = cudaErrorIllegalAddress;
    return refuse(broken, "something was written behind the %zu bytes at %p", block.bytes, memory);
}

cudaError_t check_range(const void *at, size_t bytes, bool device, const char *what) {
    memory_kind kind = kind_of(at);
    if (device && (kind == PAGEABLE || kind == PINNED))
        return refuse(cudaErrorInvalidValue, "%s: %p is host memory, or was freed, where device memory is due", what, at);
    if (!device && kind == DEVICE) return refuse(cudaErrorInvalidValue, "%s: %p is device memory where host memory is due", what, at);
    if (kind != PAGEABLE && !find(at, bytes))
        return refuse(cudaErrorInvalidValue, "%s: %zu bytes at %p reach out of their allocation", what, bytes, at);
    return cudaSuccess;
}

cudaError_t copy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t on, const char *what) {
    if (bytes == 0) return cudaSuccess;
    if (!to || !from) return refuse(cudaErrorInvalidValue, "%s: a null pointer", what);
    if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return refuse(cudaErrorInvalidMemcpyDirection, "%s: direction %d", what, (int)kind);
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind == cudaMemcpyDefault) to_device = kind_of(to) == DEVICE, from_device = kind_of(from) == DEVICE;
    cudaError_t error = check_range(to, bytes, to_device, what);
    if (error == cudaSuccess) error = check_range(from, bytes, from_device, what);
    if (error != cudaSuccess) return error;
    std::shared_ptr<stream> of = stream_of(on);
    bool captured = of && of->captured;
    if (kind_of(from) == PAGEABLE && !captured) { /* such memory is read before the call returns */
        auto held_back = std::make_shared<std::vector<char>>(static_cast<const char *>(from), static_cast<const char *>(from) + bytes);
        error = issue(on, "copy", [=] { return memcpy(to, held_back->data(), bytes), cudaSuccess; });
    } else error = issue(on, "copy", [=] { return memmove(to, from, bytes), cudaSuccess; });
    if (error == cudaSuccess && kind_of(to) == PAGEABLE && !captured) return finish({of, of->issued}); /* and such is written before */
    return error;
}

cudaError_t fill(void *at, int byte, size_t bytes, cudaStream_t on, const char *what) {
    if (bytes == 0) return cudaSuccess;
    cudaError_t error = check_range(at, bytes, kind_of(at) != PINNED, what);
    return error != cudaSuccess ? error : issue(on, "fill", [=] { return memset(at, byte, bytes), cudaSuccess; });
}

} // namespace

memory_kind kind_of(const void *at) {
    auto found = find(at, 0);
    return found ? found->second.kind : PAGEABLE;
}
bool    device_may_use(const void *at, size_t bytes) { return find(at, bytes) != nullptr; }
bool    in_device_memory(const void *at, size_t bytes) { return kind_of(at) == DEVICE && find(at, bytes); }
int64_t allocations() {
    int64_t n = 0;
    for (const auto &one : held()) n += one.second.kind != PINNED;
    return n;
}
cudaError_t release_device(void *memory) { return take_back(memory, false); }

} // namespace weft_host

using namespace weft_host;

extern "C" {

cudaError_t cudaMalloc(void **memory_out, size_t bytes) {
    WEFT_HOST_ENTER();
    cudaError_t error = refuse_in_capture("cudaMalloc");
    return error != cudaSuccess ? error : give(memory_out, bytes, DEVICE);
}
cudaError_t cudaMallocManaged(void **memory_out, size_t bytes, unsigned) {
    WEFT_HOST_ENTER();
    cudaError_t error = refuse_in_capture("cudaMallocManaged");
    return error != cudaSuccess ? error : give(memory_out, bytes, MANAGED);
}
cudaError_t cudaFree(void *memory) {
    WEFT_HOST_ENTER();
    if (!memory) return cudaSuccess;
    cudaError_t error = refuse_in_capture("cudaFree");
    if (error == cudaSuccess) error = finish_all();
    return error != cudaSuccess ? error : take_back(memory, false);
}
cudaError_t cudaMallocAsync(void **memory_out, size_t bytes, cudaStream_t on) {
    WEFT_HOST_ENTER();
    std::shared_ptr<stream> of = stream_of(on);
    if (!of) return refuse(cudaErrorInvalidResourceHandle, "cudaMallocAsync: no such stream");
    if (of->captured) return refuse(cudaErrorNotSupported, "cudaMallocAsync while its stream is captured: a program allocates nothing");
    return give(memory_out, bytes, DEVICE);
}
cudaError_t cudaFreeAsync(void *memory, cudaStream_t on) {
    WEFT_HOST_ENTER();
    std::shared_ptr<stream> of = stream_of(on);
    if (!of) return refuse(cudaErrorInvalidResourceHandle, "cudaFreeAsync: no such stream");
    if (of->captured) return refuse(cudaErrorNotSupported, "cudaFreeAsync while its stream is captured: a program frees nothing");
    if (!memory) return cudaSuccess;
    if (kind_of(memory) != DEVICE) return refuse(cudaErrorInvalidValue, "cudaFreeAsync: %p is no device memory", memory);
    return issue(on, "free", [=] { return take_back(memory, false); });
}
cudaError_t cudaHostAlloc(void **memory_out, size_t bytes, unsigned) {
    WEFT_HOST_ENTER();
    return give(memory_out, bytes, PINNED);
}
cudaError_t cudaMallocHost(void **memory_out, size_t bytes) { return cudaHostAlloc(memory_out, bytes, 0); }
cudaError_t cudaFreeHost(void *memory) {
    WEFT_HOST_ENTER();
    if (!memory) return cudaSuccess;
    cudaError_t error = finish_all();
    return error != cudaSuccess ? error : take_back(memory, true);
}
cudaError_t cudaHostRegister(void *memory, size_t bytes, unsigned) {
    WEFT_HOST_ENTER();
    if (!memory || bytes == 0) return refuse(cudaErrorInvalidValue, "cudaHostRegister: no memory");
    if (kind_of(memory) != PAGEABLE) return refuse(cudaErrorHostMemoryAlreadyRegistered, "cudaHostRegister: %p is known", memory);
    held()[reinterpret_cast<uintptr_t>(memory)] = {bytes, PINNED, false};
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *memory) {
    WEFT_HOST_ENTER();
    auto found = held().find(reinterpret_cast<uintptr_t>(memory));
    if (found == held().end() || found->second.own) return refuse(cudaErrorHostMemoryNotRegistered, "cudaHostUnregister: %p is not registered", memory);
    cudaError_t error = finish_all();
    held().erase(found);
    return error;
}
cudaError_t cudaHostGetDevicePointer(void **device_out, void *host, unsigned) {
    WEFT_HOST_ENTER();
    if (kind_of(host) != PINNED) return refuse(cudaErrorInvalidValue, "cudaHostGetDevicePointer: %p is not pinned", host);
    *device_out = host;
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *free_out, size_t *total_out) {
    WEFT_HOST_ENTER();
    *total_out = options.memory_bytes ? options.memory_bytes : (size_t)4 << 30;
    *free_out = *total_out - held_bytes;
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes_out, const void *at) {
    WEFT_HOST_ENTER();
    static const cudaMemoryType types[] = {cudaMemoryTypeUnregistered, cudaMemoryTypeDevice, cudaMemoryTypeHost, cudaMemoryTypeManaged};
    memset(attributes_out, 0, sizeof *attributes_out);
    attributes_out->type = types[kind_of(at)];
    if (attributes_out->type != cudaMemoryTypeUnregistered) attributes_out->devicePointer = const_cast<void *>(at);
    if (attributes_out->type != cudaMemoryTypeDevice) attributes_out->hostPointer = const_cast<void *>(at);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t on) {
    WEFT_HOST_ENTER();
    return copy(to, from, bytes, kind, on, "cudaMemcpyAsync");
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    WEFT_HOST_ENTER();
    cudaError_t error = refuse_in_capture("cudaMemcpy");
    if (error == cudaSuccess) error = copy(to, from, bytes, kind, nullptr, "cudaMemcpy");
    std::shared_ptr<stream> legacy = stream_of(nullptr);
    return error != cudaSuccess ? error : finish({legacy, legacy->issued});
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t on) {
    WEFT_HOST_ENTER();
    if (width > to_pitch || width > from_pitch) return refuse(cudaErrorInvalidPitchValue, "cudaMemcpy2DAsync: rows of %zu bytes overlap", width);
    for (size_t row = 0; row < height; row++) {
        cudaError_t error = copy(static_cast<char *>(to) + row * to_pitch, static_cast<const char *>(from) + row * from_pitch, width, kind, on,
                                 "cudaMemcpy2DAsync");
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *at, int byte, size_t bytes, cudaStream_t on) {
    WEFT_HOST_ENTER();
    return fill(at, byte, bytes, on, "cudaMemsetAsync");
}
cudaError_t cudaMemset(void *at, int byte, size_t bytes) {
    WEFT_HOST_ENTER();
    cudaError_t error = refuse_in_capture("cudaMemset");
    return error != cudaSuccess ? error : fill(at, byte, bytes, nullptr, "cudaMemset");
}

/* Memory pools: one, with attributes that are kept and mean nothing. */
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool_out, int) {
    static char pool;
    *pool_out = reinterpret_cast<cudaMemPool_t>(&pool);
    return cudaSuccess;
}
cudaError_t cudaDeviceGetMemPool(cudaMemPool_t *pool_out, int device) { return cudaDeviceGetDefaultMemPool(pool_out, device); }
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *) { return cudaSuccess; }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }

} /* extern "C" */

/* What is asked of the driver itself, by name: dma-bufs of device memory, which here are files of its length that hold none of it. And what belongs to
 * networks that write to device memory. */
#include "cuda_host/engine.h"

#include <cuda.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

namespace weft_host {
namespace {

int64_t exported, flushed;

CUresult export_range(void *handle_out, CUdeviceptr at, size_t bytes, CUmemRangeHandleType type, unsigned long long flags) {
    std::lock_guard<std::recursive_mutex> locked(lock);
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    if (type != CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD || flags != 0 || at % page != 0 || bytes % page != 0 || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    /* Allocations begin on pages there and not here: the last byte of the first page, and the first of the last, tell whose memory it is. */
    if (!in_device_memory(reinterpret_cast<const void *>(at + page - 1), 1) && !in_device_memory(reinterpret_cast<const void *>(at + bytes - page), 1))
        return CUDA_ERROR_INVALID_VALUE;
    if (options.refuses_dmabuf) return CUDA_ERROR_NOT_SUPPORTED;
    int descriptor = memfd_create("dma-buf", MFD_CLOEXEC);
    if (descriptor < 0 || ftruncate(descriptor, static_cast<off_t>(bytes)) != 0) return CUDA_ERROR_UNKNOWN;
    memcpy(handle_out, &descriptor, sizeof descriptor);
    exported++;
    return CUDA_SUCCESS;
}

} // namespace

void forget_exports() { exported = flushed = 0; }

} // namespace weft_host

using namespace weft_host;

extern "C" {

int64_t wefti_cuda_host_dmabufs(void) { return exported; }
int64_t wefti_cuda_host_flushes(void) { return flushed; }

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function_out, unsigned, unsigned long long, cudaDriverEntryPointQueryResult *result_out) {
    WEFT_HOST_ENTER();
    bool known = strcmp(symbol, "cuMemGetHandleForAddressRange") == 0 && !options.no_dmabuf;
    auto function = &export_range;
    *function_out = nullptr;
    if (known) memcpy(function_out, &function, sizeof function);
    *result_out = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

cudaError_t cudaDeviceFlushGPUDirectRDMAWrites(cudaFlushGPUDirectRDMAWritesTarget, cudaFlushGPUDirectRDMAWritesScope) {
    WEFT_HOST_ENTER();
    if (!options.flushes) return refuse(cudaErrorNotSupported, "a flush of a device that needs none");
    return flushed++, cudaSuccess;
}

} /* extern "C" */

/* The CUDA device's memory for wires (core/iface/foreign.h): which piece an address is of, a dma-buf of it, and copies beside everything else.
 *
 * The driver's function for dma-bufs is asked for at run time: older drivers have none, and some kernels and GPUs refuse. Copies have a stream of their own
 * that nothing else is put on, so that waiting for one never waits for what computes, which may in turn be waiting for the wire. */
#include <cuda.h>
#include <string.h>
#include <unistd.h>

#include "cuda/inside.h"

static const char *const what = "a copy for a wire";

static bool find(void *context, const void *memory, size_t bytes, void **base_out, size_t *bytes_out) {
    struct wefti_cuda_inside *inside = ((wefti_cuda *)context)->inside;
    uintptr_t                 at = (uintptr_t)memory;
    bool                      found = false;
    pthread_mutex_lock(&inside->lock);
    for (int32_t i = 0; i < inside->n_blocks && !found; i++) {
        const wefti_cuda_block *block = &inside->blocks[i];
        uintptr_t               begin = (uintptr_t)block->memory;
        found = block->lent_bytes && at >= begin && at - begin <= block->size_bytes && bytes <= block->size_bytes - (at - begin);
        *base_out = block->memory;
        *bytes_out = block->size_bytes;
    }
    pthread_mutex_unlock(&inside->lock);
    return found;
}

typedef __typeof__(&cuMemGetHandleForAddressRange) export_function;

static weft_status find_export(wefti_cuda *cuda, export_function *function_out) {
    void                               *function = NULL;
    enum cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    cudaError_t error = cudaGetDriverEntryPointByVersion("cuMemGetHandleForAddressRange", &function, 11070, cudaEnableDefault, &result);
#else
    cudaError_t error = cudaGetDriverEntryPoint("cuMemGetHandleForAddressRange", &function, cudaEnableDefault, &result);
#endif
    if (error != cudaSuccess || result != cudaDriverEntryPointSuccess || !function) {
        (void)cudaGetLastError();
        return wefti_fail(WEFT_E_UNSUPPORTED, "cuda:%d: the driver has no cuMemGetHandleForAddressRange; one for CUDA 11.7 or newer has", (int)cuda->ordinal);
    }
    memcpy(function_out, &function, sizeof function);
    return WEFT_OK;
}

/* Whole pages of the host, as the driver wants them; it gives memory out in larger ones. */
static weft_status open_dmabuf(void *context, const void *memory, size_t bytes, int *descriptor_out, uint64_t *offset_out) {
    wefti_cuda     *cuda = context;
    export_function export_range = NULL;
    uintptr_t       page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)memory & ~(page - 1);
    size_t          length = wefti_align_up((uintptr_t)memory + bytes, page) - first;
    int             descriptor = -1;
    WEFTI_TRY(wefti_cuda_enter(cuda));
    WEFTI_TRY(find_export(cuda, &export_range));
    CUresult result = export_range(&descriptor, (CUdeviceptr)first, length, CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD, 0);
    if (result != CUDA_SUCCESS || descriptor < 0) /* the driver's errors are the runtime's by number */
        return wefti_fail(WEFT_E_UNSUPPORTED, "cuda:%d exports no dma-buf: %s (it wants the open kernel modules and a kernel with CONFIG_PCI_P2PDMA)",
                          (int)cuda->ordinal, cudaGetErrorName((cudaError_t)result));
    *descriptor_out = descriptor;
    *offset_out = (uintptr_t)memory - first;
    return WEFT_OK;
}

static weft_status copy(void *context, void *to, const void *from, size_t bytes) {
    wefti_cuda *cuda = context;
    WEFTI_TRY(wefti_cuda_enter(cuda));
    if (bytes == 0) return WEFT_OK;
    WEFTI_TRY(wefti_cuda_check(cuda, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, cuda->inside->wires), what));
    return wefti_cuda_check(cuda, cudaStreamSynchronize(cuda->inside->wires), what);
}

/* Most GPUs see what was written in the order of its completion; where one says that it does not, the driver can make it. */
static weft_status arrived(void *context) {
    wefti_cuda *cuda = context;
    if (!cuda->inside->flushes) return WEFT_OK;
    WEFTI_TRY(wefti_cuda_enter(cuda));
    return wefti_cuda_check(cuda, cudaDeviceFlushGPUDirectRDMAWrites(cudaFlushGPUDirectRDMAWritesTargetCurrentDevice, cudaFlushGPUDirectRDMAWritesToOwner),
                            "what a network wrote");
}

static void listen_to(void *context, void (*lost)(void *listener, const void *memory, size_t bytes), void *listener) {
    struct wefti_cuda_inside *inside = ((wefti_cuda *)context)->inside;
    pthread_mutex_lock(&inside->lock);
    inside->lost = lost;
    inside->listener = listener;
    pthread_mutex_unlock(&inside->lock);
}

void wefti_cuda_free_block(wefti_cuda *cuda, const wefti_cuda_block *block) {
    if (cuda->inside->lost) cuda->inside->lost(cuda->inside->listener, block->memory, block->size_bytes);
    (void)cudaFree(block->memory);
}

weft_status wefti_cuda_foreign_open(wefti_cuda *cuda) {
    int ordering = cudaGPUDirectRDMAWritesOrderingOwner, options = 0;
    WEFTI_TRY(wefti_cuda_check(cuda, cudaStreamCreateWithFlags(&cuda->inside->wires, cudaStreamNonBlocking), "a stream for wires"));
    if (cudaDeviceGetAttribute(&ordering, cudaDevAttrGPUDirectRDMAWritesOrdering, cuda->ordinal) != cudaSuccess ||
        cudaDeviceGetAttribute(&options, cudaDevAttrGPUDirectRDMAFlushWritesOptions, cuda->ordinal) != cudaSuccess) (void)cudaGetLastError();
    cuda->inside->flushes = ordering < cudaGPUDirectRDMAWritesOrderingOwner && (options & cudaFlushGPUDirectRDMAWritesOptionHost);
    return WEFT_OK;
}

void wefti_cuda_foreign_close(wefti_cuda *cuda) {
    if (cuda->inside->wires) (void)cudaStreamDestroy(cuda->inside->wires);
}

bool wefti_cuda_foreign(wefti_device *device, wefti_foreign *foreign_out) {
    *foreign_out = (wefti_foreign){.context = device, .find = find, .open_dmabuf = open_dmabuf, .copy = copy, .arrived = arrived, .listen = listen_to};
    return true;
}

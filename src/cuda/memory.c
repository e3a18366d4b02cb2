/* The CUDA device's memory, and the way into and out of it.
 *
 * Pieces that are given back are kept and lent again to whoever asks for about as much: the device has one stream, in whose order everything
 * happens, so memory may change hands without waiting. When the driver has no more, what is kept goes back to it first. A plan asks for a few
 * large pieces once; searching a list is cheap enough.
 *
 * Small writes are copied into a ring of pinned memory and go on from there in stream order: the writer does not wait for the kernels before
 * it. The ring has sections; an event recorded when one is left says when it may be filled anew. Large writes and all reads wait. */
#include <string.h>

#include "cuda/inside.h"

enum {
    GRAIN = 256,             /* of lengths: what cudaMalloc aligns to, and what cuda.h promises kernels for scratch */
    SECTION_BYTES = 1 << 20, /* eight of them: several steps' feeds of a small network */
    LANDING_BYTES = 64 << 10,
    MOST_THROUGH_RING = 4 * SECTION_BYTES /* beyond, copying twice costs more than waiting */
};

weft_status wefti_cuda_memory_open(wefti_cuda *cuda) {
    struct wefti_cuda_inside *inside = cuda->inside;
    void                     *pinned = NULL;
    WEFTI_TRY(wefti_cuda_check(cuda, cudaHostAlloc(&pinned, (size_t)WEFTI_CUDA_RING_SECTIONS * SECTION_BYTES + LANDING_BYTES, cudaHostAllocDefault),
                               "pinned memory"));
    inside->ring = pinned;
    inside->landing = inside->ring + (size_t)WEFTI_CUDA_RING_SECTIONS * SECTION_BYTES;
    for (int i = 0; i < WEFTI_CUDA_RING_SECTIONS; i++)
        WEFTI_TRY(wefti_cuda_check(cuda, cudaEventCreateWithFlags(&inside->section_free[i], cudaEventDisableTiming), "an event"));
    return WEFT_OK;
}

/* Gives back to the driver what nobody holds. */
static void trim(wefti_cuda *cuda) {
    struct wefti_cuda_inside *inside = cuda->inside;
    int32_t                   left = 0;
    for (int32_t i = 0; i < inside->n_blocks; i++) {
        if (inside->blocks[i].lent_bytes == 0) wefti_cuda_free_block(cuda, &inside->blocks[i]);
        else inside->blocks[left++] = inside->blocks[i];
    }
    inside->n_blocks = left;
    inside->kept_bytes = 0;
}

void wefti_cuda_memory_close(wefti_cuda *cuda) {
    struct wefti_cuda_inside *inside = cuda->inside;
    if (inside->held_bytes > 0) wefti_log(WEFT_LOG_WARNING, "cuda: %lld bytes are still held when the device is released", (long long)inside->held_bytes);
    for (int32_t i = 0; i < inside->n_blocks; i++) wefti_cuda_free_block(cuda, &inside->blocks[i]);
    wefti_free(inside->blocks, (size_t)inside->room * sizeof *inside->blocks);
    for (int i = 0; i < WEFTI_CUDA_RING_SECTIONS; i++)
        if (inside->section_free[i]) (void)cudaEventDestroy(inside->section_free[i]);
    if (inside->ring) (void)cudaFreeHost(inside->ring);
}

/* The smallest kept piece that will do without wasting more than an eighth. */
static wefti_cuda_block *find_kept(struct wefti_cuda_inside *inside, size_t size_bytes) {
    wefti_cuda_block *best = NULL;
    for (int32_t i = 0; i < inside->n_blocks; i++) {
        wefti_cuda_block *block = &inside->blocks[i];
        if (block->lent_bytes || block->size_bytes < size_bytes || block->size_bytes - size_bytes > size_bytes / 8) continue;
        if (!best || block->size_bytes < best->size_bytes) best = block;
    }
    return best;
}

static weft_status out_of_memory(wefti_cuda *cuda, size_t size_bytes, const char *what) {
    size_t free_bytes = 0, total_bytes = 0;
    (void)cudaMemGetInfo(&free_bytes, &total_bytes);
    return wefti_fail(WEFT_E_NO_MEMORY,
                      "cuda:%d has no %zu bytes for %s: this process holds %lld there, %zu of %zu are free; use a smaller batch, more "
                      "micro-batches, recomputation or sharding (strategy.accumulate, .recompute, .zero), or end what else runs on that GPU",
                      (int)cuda->ordinal, size_bytes, what, (long long)cuda->inside->held_bytes, free_bytes, total_bytes);
}

static weft_status add_block(wefti_cuda *cuda, size_t size_bytes, const char *what, wefti_cuda_block **block_out) {
    struct wefti_cuda_inside *inside = cuda->inside;
    if (inside->n_blocks == inside->room) {
        int32_t room = inside->room ? 2 * inside->room : 64;
        WEFTI_TRY(wefti_grow(&inside->blocks, (size_t)inside->room * sizeof *inside->blocks, (size_t)room * sizeof *inside->blocks,
                             "the list of device memory"));
        inside->room = room;
    }
    void       *memory = NULL;
    cudaError_t error = cudaMalloc(&memory, size_bytes);
    if (error == cudaErrorMemoryAllocation && inside->kept_bytes > 0) {
        (void)cudaGetLastError();
        trim(cuda);
        error = cudaMalloc(&memory, size_bytes);
    }
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return out_of_memory(cuda, size_bytes, what);
    }
    WEFTI_TRY(wefti_cuda_check(cuda, error, what));
    *block_out = &inside->blocks[inside->n_blocks++];
    **block_out = (wefti_cuda_block){.memory = memory, .size_bytes = size_bytes};
    return WEFT_OK;
}

weft_status wefti_cuda_allocate(wefti_device *device, size_t size_bytes, const char *what, void **memory_out) {
    wefti_cuda               *cuda = wefti_cuda_of(device);
    struct wefti_cuda_inside *inside = cuda->inside;
    weft_status               status = WEFT_OK;
    *memory_out = NULL;
    WEFTI_TRY(wefti_cuda_enter(cuda));
    if (size_bytes > SIZE_MAX / 2) return out_of_memory(cuda, size_bytes, what);
    size_bytes = wefti_align_up(size_bytes ? size_bytes : 1, GRAIN);
    pthread_mutex_lock(&inside->lock);
    wefti_cuda_block *block = find_kept(inside, size_bytes);
    if (block) inside->kept_bytes -= (int64_t)block->size_bytes;
    else status = add_block(cuda, size_bytes, what, &block);
    if (status == WEFT_OK) {
        block->lent_bytes = size_bytes;
        inside->held_bytes += (int64_t)size_bytes;
        inside->peak_bytes = wefti_max_i64(inside->peak_bytes, inside->held_bytes);
        *memory_out = block->memory;
    }
    pthread_mutex_unlock(&inside->lock);
    return status;
}

void wefti_cuda_deallocate(wefti_device *device, void *memory, size_t size_bytes) {
    struct wefti_cuda_inside *inside = wefti_cuda_of(device)->inside;
    (void)size_bytes;
    if (!memory) return;
    pthread_mutex_lock(&inside->lock);
    for (int32_t i = 0; i < inside->n_blocks; i++) {
        wefti_cuda_block *block = &inside->blocks[i];
        if (block->memory != memory || !block->lent_bytes) continue;
        inside->held_bytes -= (int64_t)block->lent_bytes;
        inside->kept_bytes += (int64_t)block->size_bytes;
        block->lent_bytes = 0;
        break;
    }
    pthread_mutex_unlock(&inside->lock);
}

void wefti_cuda_memory(const wefti_device *device, int64_t *held_out, int64_t *peak_out) {
    struct wefti_cuda_inside *inside = wefti_cuda_of(device)->inside;
    pthread_mutex_lock(&inside->lock);
    *held_out = inside->held_bytes;
    *peak_out = inside->peak_bytes;
    pthread_mutex_unlock(&inside->lock);
}

/* `size_bytes` bytes of the ring that nothing reads any more, within one section. */
static weft_status take_ring(wefti_cuda *cuda, size_t size_bytes, char **piece_out) {
    struct wefti_cuda_inside *inside = cuda->inside;
    if (inside->ring_used + size_bytes > SECTION_BYTES) {
        WEFTI_TRY(wefti_cuda_check(cuda, cudaEventRecord(inside->section_free[inside->ring_section], cuda->stream), "a write to device memory"));
        inside->ring_section = (inside->ring_section + 1) % WEFTI_CUDA_RING_SECTIONS;
        inside->ring_used = 0;
        WEFTI_TRY(wefti_cuda_finish_event(cuda, inside->section_free[inside->ring_section], "a write to device memory"));
    }
    *piece_out = inside->ring + (size_t)inside->ring_section * SECTION_BYTES + inside->ring_used;
    inside->ring_used = wefti_align_up(inside->ring_used + size_bytes, WEFTI_CACHE_LINE);
    return WEFT_OK;
}

weft_status wefti_cuda_write(wefti_device *device, void *device_memory, const void *host_memory, size_t size_bytes) {
    wefti_cuda *cuda = wefti_cuda_of(device);
    WEFTI_TRY(wefti_cuda_enter(cuda));
    if (size_bytes > MOST_THROUGH_RING) {
        /* The driver itself waits for the stream before it touches memory that is not pinned, and so might hang there. */
        WEFTI_TRY(wefti_cuda_finish(cuda, cuda->stream, "a write to device memory"));
        WEFTI_TRY(wefti_cuda_check(cuda, cudaMemcpyAsync(device_memory, host_memory, size_bytes, cudaMemcpyHostToDevice, cuda->stream),
                                   "a write to device memory"));
        return wefti_cuda_finish(cuda, cuda->stream, "a write to device memory");
    }
    for (size_t done = 0, now; done < size_bytes; done += now) {
        char *piece = NULL;
        now = size_bytes - done < SECTION_BYTES ? size_bytes - done : SECTION_BYTES;
        WEFTI_TRY(take_ring(cuda, now, &piece));
        memcpy(piece, (const char *)host_memory + done, now);
        WEFTI_TRY(wefti_cuda_check(cuda, cudaMemcpyAsync((char *)device_memory + done, piece, now, cudaMemcpyHostToDevice, cuda->stream),
                                   "a write to device memory"));
    }
    return WEFT_OK;
}

weft_status wefti_cuda_read(wefti_device *device, void *host_memory, const void *device_memory, size_t size_bytes) {
    wefti_cuda *cuda = wefti_cuda_of(device);
    WEFTI_TRY(wefti_cuda_enter(cuda));
    if (size_bytes == 0) return WEFT_OK;
    void *target = size_bytes <= LANDING_BYTES ? cuda->inside->landing : host_memory;
    if (target == host_memory) WEFTI_TRY(wefti_cuda_finish(cuda, cuda->stream, "a read of device memory")); /* as in large writes */
    WEFTI_TRY(wefti_cuda_check(cuda, cudaMemcpyAsync(target, device_memory, size_bytes, cudaMemcpyDeviceToHost, cuda->stream),
                               "a read of device memory"));
    WEFTI_TRY(wefti_cuda_finish(cuda, cuda->stream, "a read of device memory"));
    if (target != host_memory) memcpy(host_memory, target, size_bytes);
    return WEFT_OK;
}

weft_status wefti_cuda_read_all(wefti_device *device, const wefti_read *reads, int32_t n_reads) {
    wefti_cuda *cuda = wefti_cuda_of(device);
    char       *landing = cuda->inside->landing;
    size_t      used = 0;
    WEFTI_TRY(wefti_cuda_enter(cuda));
    for (int32_t i = 0; i < n_reads; i++) used += wefti_align_up(reads[i].size_bytes, sizeof(double));
    if (used > LANDING_BYTES) {
        for (int32_t i = 0; i < n_reads; i++) WEFTI_TRY(wefti_cuda_read(device, reads[i].host_memory, reads[i].device_memory, reads[i].size_bytes));
        return WEFT_OK;
    }
    used = 0;
    for (int32_t i = 0; i < n_reads; used += wefti_align_up(reads[i++].size_bytes, sizeof(double)))
        WEFTI_TRY(wefti_cuda_check(cuda, cudaMemcpyAsync(landing + used, reads[i].device_memory, reads[i].size_bytes, cudaMemcpyDeviceToHost,
                                                         cuda->stream), "a read of device memory"));
    WEFTI_TRY(wefti_cuda_finish(cuda, cuda->stream, "a read of device memory"));
    used = 0;
    for (int32_t i = 0; i < n_reads; used += wefti_align_up(reads[i++].size_bytes, sizeof(double)))
        memcpy(reads[i].host_memory, landing + used, reads[i].size_bytes);
    return WEFT_OK;
}

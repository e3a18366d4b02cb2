/* The CUDA device's own inside: what device.c, memory.c, copies.c and program.c share and no kernel looks at. */
#ifndef WEFTI_CUDA_INSIDE_H
#define WEFTI_CUDA_INSIDE_H

#include <pthread.h>

#include "cuda/cuda.h"

/* One piece of device memory from the driver, lent or kept for the next who asks. */
typedef struct wefti_cuda_block {
    void  *memory;
    size_t size_bytes; /* of the piece */
    size_t lent_bytes; /* 0: nobody's */
} wefti_cuda_block;

enum { WEFTI_CUDA_RING_SECTIONS = 8, WEFTI_CUDA_TICKETS = 64 };

/* Something that streams of the device may wait for in vain, because it comes from elsewhere: it is looked at while the host waits for a
 * stream. WEFT_OK: nothing is under way; WEFT_E_AGAIN: something is; else what it failed with, after which the streams get on. */
typedef struct wefti_cuda_watcher {
    struct wefti_cuda_watcher *next;
    weft_status (*look)(void *context);
    void *context;
} wefti_cuda_watcher;

struct wefti_cuda_inside {
    char description[160];
    uint8_t uuid[16];
    char fault[256]; /* what broke the device */
    char launched[256]; /* what was launched last, for whoever meets a fault; "": nothing */
    const void *noted;  /* the program that it is of; never followed, as it may be gone */
    /* memory.c */
    pthread_mutex_t   lock; /* of the blocks: collectives may free from another thread */
    wefti_cuda_block *blocks;
    int32_t           n_blocks, room;
    int64_t           held_bytes, peak_bytes, kept_bytes; /* kept: of blocks that are nobody's */
    char             *ring; /* pinned: small writes go through it; a piece at the end takes small reads */
    char             *landing;
    int32_t           ring_section; /* being filled, so far up to ring_used */
    size_t            ring_used;
    cudaEvent_t       section_free[WEFTI_CUDA_RING_SECTIONS]; /* recorded after the last copy out of the section */
    /* copies.c */
    cudaStream_t copies;
    cudaEvent_t  computed, copied, ticket[WEFTI_CUDA_TICKETS];
    uint64_t     tickets; /* handed out */
    wefti_cuda_watcher *watchers; /* of the thread that launches */
    /* foreign.c */
    cudaStream_t wires;
    bool         flushes; /* what a network writes is seen only after a call of the driver's */
    void (*lost)(void *listener, const void *memory, size_t bytes); /* NULL: nobody listens. Under `lock` */
    void *listener;
};

/* Every entry of the device: makes it this thread's device, or says that it is broken. */
WEFT_MUST_CHECK weft_status wefti_cuda_enter(wefti_cuda *cuda);

/* Waits until all that the stream was given, or what was recorded, is done; looks at the watchers meanwhile, so that nothing hangs. */
WEFT_MUST_CHECK weft_status wefti_cuda_finish(wefti_cuda *cuda, cudaStream_t stream, const char *what);
WEFT_MUST_CHECK weft_status wefti_cuda_finish_event(wefti_cuda *cuda, cudaEvent_t event, const char *what);
void wefti_cuda_watch(wefti_cuda *cuda, wefti_cuda_watcher *watcher);
void wefti_cuda_unwatch(wefti_cuda *cuda, wefti_cuda_watcher *watcher);

/* foreign.c */
WEFT_MUST_CHECK weft_status wefti_cuda_foreign_open(wefti_cuda *cuda);
void wefti_cuda_foreign_close(wefti_cuda *cuda);
bool wefti_cuda_foreign(wefti_device *device, wefti_foreign *foreign_out);
/* Gives a block back to the driver, once whoever listens has heard of it; under the lock of the blocks. */
void wefti_cuda_free_block(wefti_cuda *cuda, const wefti_cuda_block *block);

/* memory.c */
WEFT_MUST_CHECK weft_status wefti_cuda_memory_open(wefti_cuda *cuda);
void wefti_cuda_memory_close(wefti_cuda *cuda);
weft_status wefti_cuda_allocate(wefti_device *device, size_t size_bytes, const char *what, void **memory_out);
void        wefti_cuda_deallocate(wefti_device *device, void *memory, size_t size_bytes);
weft_status wefti_cuda_write(wefti_device *device, void *device_memory, const void *host_memory, size_t size_bytes);
weft_status wefti_cuda_read(wefti_device *device, void *host_memory, const void *device_memory, size_t size_bytes);
weft_status wefti_cuda_read_all(wefti_device *device, const wefti_read *reads, int32_t n_reads);

/* copies.c */
WEFT_MUST_CHECK weft_status wefti_cuda_copies_open(wefti_cuda *cuda);
void        wefti_cuda_copies_close(wefti_cuda *cuda);
void        wefti_cuda_pin(wefti_device *device, void *host_memory, size_t size_bytes);
void        wefti_cuda_unpin(wefti_device *device, void *host_memory, size_t size_bytes);
weft_status wefti_cuda_copy_out(wefti_device *device, void *host_memory, const void *device_memory, size_t size_bytes, uint64_t *ticket_out);
weft_status wefti_cuda_copy_test(wefti_device *device, uint64_t ticket);
weft_status wefti_cuda_copy_in(wefti_device *device, void *device_memory, const void *host_memory, size_t size_bytes);
weft_status wefti_cuda_copy_join(wefti_device *device);

/* program.c */
weft_status wefti_cuda_query(wefti_device *device, const wefti_call *call, int64_t *scratch_bytes_out);
weft_status wefti_cuda_compile(wefti_device *device, const wefti_segment *segment, wefti_program **program_out);
void        wefti_cuda_release_program(wefti_program *program);
weft_status wefti_cuda_launch_program(wefti_program *program, const wefti_launch *launch);

#endif

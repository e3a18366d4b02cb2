/* Memory hooks: where host memory of the library comes from, and how much of it is held. */
#ifndef WEFT_MEMORY_H
#define WEFT_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "weft/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A host allocator. `allocate` returns memory aligned to `alignment_bytes` (a power of two), or NULL where there is none;
 * `release` gets the size that was asked for. Both may be called from any thread. */
typedef struct weft_allocator {
    void *(*allocate)(void *context, size_t size_bytes, size_t alignment_bytes);
    void (*release)(void *context, void *memory, size_t size_bytes);
    void *context;
} weft_allocator;

/* Replaces the process's allocator; NULL restores the default (aligned_alloc and free). Call it before anything is
 * created: WEFT_E_STATE while library memory is held. Not thread-safe against other calls into the library. */
WEFT_MUST_CHECK weft_status weft_set_allocator(const weft_allocator *allocator);

/* What the library holds and did, over the life of the process. */
typedef struct weft_memory_counts {
    uint64_t held_bytes;   /* now */
    uint64_t peak_bytes;   /* most ever held */
    uint64_t allocations;  /* calls of allocate that succeeded, ever */
} weft_memory_counts;

/* Reads the counters. Thread-safe, does not block. */
void weft_memory_read(weft_memory_counts *counts_out);

#ifdef __cplusplus
}
#endif
#endif

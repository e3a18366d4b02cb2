/* Host memory through one hook, with counters. The counters are relaxed atomics: they are figures, not locks. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/base.h"

static void *default_allocate(void *context, size_t size_bytes, size_t alignment_bytes) {
    (void)context;
    return aligned_alloc(alignment_bytes, wefti_align_up(size_bytes, alignment_bytes));
}
static void default_release(void *context, void *memory, size_t size_bytes) {
    (void)context;
    (void)size_bytes;
    free(memory);
}

static weft_allocator        hook = {default_allocate, default_release, NULL};
static _Atomic uint64_t      held_bytes, peak_bytes, allocations;

weft_status weft_set_allocator(const weft_allocator *allocator) {
    if (atomic_load(&held_bytes) != 0)
        return wefti_fail(WEFT_E_STATE, "weft_set_allocator: %llu bytes are still held; release every object first",
                          (unsigned long long)atomic_load(&held_bytes));
    if (allocator && (!allocator->allocate || !allocator->release))
        return wefti_fail(WEFT_E_INVALID, "weft_set_allocator: allocate and release must both be given");
    hook = allocator ? *allocator : (weft_allocator){default_allocate, default_release, NULL};
    return WEFT_OK;
}

void weft_memory_read(weft_memory_counts *counts_out) {
    counts_out->held_bytes = atomic_load_explicit(&held_bytes, memory_order_relaxed);
    counts_out->peak_bytes = atomic_load_explicit(&peak_bytes, memory_order_relaxed);
    counts_out->allocations = atomic_load_explicit(&allocations, memory_order_relaxed);
}

weft_status wefti_alloc_raw(size_t size_bytes, size_t alignment_bytes, const char *what, void *memory_out) {
    if (alignment_bytes < WEFTI_CACHE_LINE) alignment_bytes = WEFTI_CACHE_LINE;
    size_t asked = size_bytes ? size_bytes : 1;
    void  *memory = asked > PTRDIFF_MAX - alignment_bytes ? NULL : hook.allocate(hook.context, asked, alignment_bytes);
    if (!memory) return wefti_fail(WEFT_E_NO_MEMORY, "out of memory: %zu bytes for %s", size_bytes, what);
    uint64_t now = atomic_fetch_add_explicit(&held_bytes, size_bytes, memory_order_relaxed) + size_bytes;
    uint64_t peak = atomic_load_explicit(&peak_bytes, memory_order_relaxed);
    while (now > peak && !atomic_compare_exchange_weak_explicit(&peak_bytes, &peak, now, memory_order_relaxed,
                                                                memory_order_relaxed)) {}
    atomic_fetch_add_explicit(&allocations, 1, memory_order_relaxed);
    memcpy(memory_out, &memory, sizeof memory);
    return WEFT_OK;
}

weft_status wefti_alloc(size_t size_bytes, const char *what, void *memory_out) {
    void *memory = NULL;
    WEFTI_TRY(wefti_alloc_raw(size_bytes, WEFTI_CACHE_LINE, what, &memory));
    memset(memory, 0, size_bytes);
    memcpy(memory_out, &memory, sizeof memory);
    return WEFT_OK;
}

weft_status wefti_grow(void *memory, size_t old_bytes, size_t new_bytes, const char *what) {
    void *old = NULL, *fresh = NULL;
    memcpy(&old, memory, sizeof old);
    WEFTI_TRY(wefti_alloc(new_bytes, what, &fresh));
    if (old) memcpy(fresh, old, old_bytes < new_bytes ? old_bytes : new_bytes);
    wefti_free(old, old_bytes);
    memcpy(memory, &fresh, sizeof fresh);
    return WEFT_OK;
}

void wefti_free(void *memory, size_t size_bytes) {
    if (!memory) return;
    atomic_fetch_sub_explicit(&held_bytes, size_bytes, memory_order_relaxed);
    hook.release(hook.context, memory, size_bytes ? size_bytes : 1);
}

weft_status wefti_copy_string(const char *text, char **copy_out) {
    *copy_out = NULL;
    if (!text) return WEFT_OK;
    size_t size_bytes = strlen(text) + 1;
    WEFTI_TRY(wefti_alloc(size_bytes, "a string", copy_out));
    memcpy(*copy_out, text, size_bytes);
    return WEFT_OK;
}

void wefti_free_string(char *text) {
    if (text) wefti_free(text, strlen(text) + 1);
}

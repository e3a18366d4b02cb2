/* The thread pool of the CPU device. */
#ifndef WEFTI_CPU_POOL_H
#define WEFTI_CPU_POOL_H

#include "core/base/base.h"
#include "weft/threads.h"

typedef struct wefti_pool wefti_pool;

/* Arithmetic on this thread takes subnormal numbers for zero, and makes none, until it is set back: a machine needs some 150
 * cycles for each, and moments that fade or gradients of units that died are full of them. How it was is returned. Machines that
 * have no such switch keep subnormals. */
static inline uint64_t wefti_flush_subnormals(void) {
    uint64_t before = 0;
#if defined(__SSE__)
    before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr((unsigned)before | 0x8040); /* flush to zero, and denormals are zero */
#elif defined(__aarch64__)
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before | UINT64_C(1) << 24));
#endif
    return before;
}
static inline void wefti_restore_subnormals(uint64_t before) {
#if defined(__SSE__)
    __builtin_ia32_ldmxcsr((unsigned)before);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(before));
#else
    (void)before;
#endif
}

/* One chunk of a parallel region. `worker` is in [0, wefti_pool_threads) and no two chunks that run at the same time in
 * one region have the same, so it may pick a piece of scratch, and nothing else: results must not depend on it. */
typedef void (*wefti_pool_body)(void *context, int64_t chunk, int32_t worker);

/* Something for the calling thread to do now and then while it is in a region: between two of its chunks, and while it
 * waits for the other threads. */
typedef struct wefti_pool_idle {
    void (*call)(void *context);
    void *context;
} wefti_pool_idle;

/* Starts the threads. WEFT_E_INVALID for bad options, WEFT_E_DEVICE where the system gives no thread. */
WEFT_MUST_CHECK weft_status wefti_pool_create(const weft_threads *options, wefti_pool **pool_out);
/* Ends the threads and frees the pool; NULL is nothing. No region may be running. */
void wefti_pool_release(wefti_pool *pool);
int32_t wefti_pool_threads(const wefti_pool *pool);

/* Calls body(context, chunk, worker) once for every chunk in [0, chunks) and returns when all have returned; what they
 * wrote is then visible to the caller. Subnormals are flushed in bodies (and in `idle`). The number of chunks must follow from the work alone. Any thread may call it; a
 * call from inside a body, in a forked child, or while another thread's region holds the pool runs on the calling
 * thread alone. Allocates nothing. `idle` may be NULL. */
void wefti_pool_run(wefti_pool *pool, int64_t chunks, wefti_pool_body body, void *context, const wefti_pool_idle *idle);

#endif

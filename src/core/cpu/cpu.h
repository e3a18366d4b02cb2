/* The CPU device from inside: what a kernel is, and how the device chooses one.
 *
 * For each op the device asks its kernels in turn: those of the best instruction set that the machine has (or that the
 * options or WEFT_CPU_ISA force), in the order of their table in core/cpu/kernels/table.c, then the plain reference
 * kernel, which takes whatever op.h allows. The choice is made in query and again in compile, from the same facts.
 *
 * Bits. A kernel's results may depend on the call (op, dtypes, shapes), never on the number of threads. For elementwise
 * ops and FUSED, `accepts` must look at ops and dtypes alone, not at shapes or strides: a graph may be cut and fused
 * anywhere, and every place must round alike. */
#ifndef WEFTI_CPU_H
#define WEFTI_CPU_H

#include "core/cpu/pool.h"
#include "core/iface/device.h"
#include "core/tensor/operand.h"

/* Which kernels are used. AUTO: WEFT_CPU_ISA (reference, baseline, avx2 or avx512) where it is set, else the best set.
 */
typedef enum wefti_cpu_isa {
    WEFTI_CPU_AUTO,
    WEFTI_CPU_REFERENCE, /* the plain kernels only */
    WEFTI_CPU_BASELINE,  /* any x86-64; on other machines portable C */
    WEFTI_CPU_AVX2,      /* AVX2, FMA and F16C */
    WEFTI_CPU_AVX512,    /* with F, BW, DQ and VL */
    WEFTI_CPU_ISA_COUNT
} wefti_cpu_isa;

typedef struct wefti_cpu_options {
    weft_threads  threads;
    wefti_cpu_isa isa;
} wefti_cpu_options;

/* A CPU device with its thread pool; release it through its vtable. WEFT_E_UNSUPPORTED where this machine lacks the
 * forced instruction set, WEFT_E_INVALID for bad options. A program is launched by one thread at a time; several
 * programs may be launched from several threads. */
WEFT_MUST_CHECK weft_status wefti_cpu_create(const wefti_cpu_options *options, wefti_device **device_out);
/* Whether this machine and build have the instruction set. */
bool        wefti_cpu_has(wefti_cpu_isa isa);
const char *wefti_cpu_isa_name(wefti_cpu_isa isa);
/* The set that a CPU device settled on; never AUTO. */
wefti_cpu_isa wefti_cpu_isa_of(const wefti_device *device);

/* One execution of a call. */
typedef struct wefti_cpu_run {
    const wefti_call     *call;
    const void *const    *inputs;  /* [n_inputs] element 0 of each operand */
    void *const          *outputs; /* [n_outputs] */
    void                 *scratch; /* aligned to 64 bytes where the planner gave such an offset, which it does */
    void                 *prepared;
    int32_t               threads; /* of the pool: workers are 0 .. threads-1 */
    wefti_pool           *pool;
    const wefti_pool_idle *idle;   /* call it in long serial stretches, too; NULL: nothing to do */
} wefti_cpu_run;

typedef struct wefti_cpu_kernel {
    const char *name; /* for profiles and tests */
    /* Whether this kernel takes the call; NULL: every call of its op. Looks at what query may look at (device.h). */
    bool (*accepts)(const wefti_call *call);
    /* Bytes of scratch; NULL: none. */
    int64_t (*scratch)(const wefti_call *call, int32_t threads);
    /* Bytes that a compiled call keeps, and how they are filled: once, at compile. They start zeroed, aligned to 64
     * bytes, and are freed as bytes. NULL: none. */
    size_t (*prepared_bytes)(const wefti_call *call);
    weft_status (*prepare)(const wefti_call *call, int32_t threads, void *prepared);
    /* Computes. Outputs are never empty (such calls are dropped at compile, CUSTOM's aside); inputs may be. No
     * allocation. */
    weft_status (*run)(const wefti_cpu_run *run);
} wefti_cpu_kernel;

/* Parallel loop over chunks in a kernel. */
static inline void wefti_cpu_for(const wefti_cpu_run *run, int64_t chunks, wefti_pool_body body, void *context) {
    wefti_pool_run(run->pool, chunks, body, context, run->idle);
}
static inline int64_t wefti_cpu_chunks(int64_t items, int64_t items_per_chunk) {
    return items / items_per_chunk + (items % items_per_chunk != 0);
}

/* The fast kernels of one instruction set, from src/core/cpu/kernels, which is compiled once per set: every symbol
 * there ends in the set's name, WEFTI_CPU_NAME(wefti_cpu_fast) is wefti_cpu_fast_avx2. */
#define WEFTI_CPU_CHOICES 4
#define WEFTI_CPU_PASTE_(name, isa) name##_##isa
#define WEFTI_CPU_PASTE(name, isa) WEFTI_CPU_PASTE_(name, isa)
#define WEFTI_CPU_NAME(name) WEFTI_CPU_PASTE(name, WEFTI_ISA)

/* The device's reduction slot: wefti_reducer's contract; the context is not looked at. */
typedef weft_status (*wefti_cpu_reduce_function)(void *context, void *dst, const void *const *sources,
                                                 int32_t source_count, size_t count, weft_dtype dtype,
                                                 wefti_reduce_op op, int32_t divisor);
typedef struct wefti_cpu_fast {
    const wefti_cpu_kernel   *kernels[WEFT_OP_COUNT][WEFTI_CPU_CHOICES]; /* in order of preference, NULL where none */
    wefti_cpu_reduce_function reduce;
} wefti_cpu_fast;
extern const wefti_cpu_fast wefti_cpu_fast_baseline;
#ifdef WEFTI_ISA_DISPATCH
extern const wefti_cpu_fast wefti_cpu_fast_avx2, wefti_cpu_fast_avx512;
#endif

/* The plain kernels; NULL for ops that no device computes (leaves with memory, MODE, communication). */
extern const wefti_cpu_kernel *const wefti_cpu_reference[WEFT_OP_COUNT];
/* The plain form of the reduction slot, and the check of its arguments. */
weft_status wefti_cpu_reduce(void *context, void *dst, const void *const *sources, int32_t source_count, size_t count,
                             weft_dtype dtype, wefti_reduce_op op, int32_t divisor);
weft_status wefti_cpu_check_reduce(int32_t source_count, weft_dtype dtype, wefti_reduce_op op, int32_t divisor);

#endif

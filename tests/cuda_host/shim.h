/* CUDA C++ for a host compiler: what kernel sources (src/cuda, all .cu files) need besides the toolkit's own headers when g++ compiles them
 * (-x c++ -std=c++17 -include cuda_host/shim.h).
 *
 * A launch runs block after block, in random order; the threads of a block are fibers (block.cpp), which give way at barriers, warp
 * collectives and atomics only. Which warp runs is decided by priorities drawn from a seed, so that a warp may be starved while another
 * runs far ahead: a missing barrier then shows in the result. There is one worker: everything device code sees is plain global memory.
 *
 * What differs from a GPU is said where it is defined. Not here: wgmma, TMA, clusters, textures, dynamic parallelism. */
#ifndef TESTS_CUDA_HOST_SHIM_H
#define TESTS_CUDA_HOST_SHIM_H

#include <cuda_runtime.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <assert.h>
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <tuple>
#include <type_traits>
#include <utility>

/* The toolkit's words, as a host compiler takes them. */
#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __grid_constant__
#undef __forceinline__
#undef __noinline__
#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
/* After `static`, where nvcc allows the standard's word and C++ does not. */
#define alignas(n) __attribute__((aligned(n)))

/* Static shared memory is never cleared: a block finds there what an earlier one left, in an order that no seed repeats. AddressSanitizer
 * puts red zones around it. */
/* Dynamic shared memory: the launch's bytes to the byte. */
#define WEFTI_SHARED(type, name) type *name = reinterpret_cast<type *>(wefti_shim_shared())

/* The thread that runs; set at each switch of fibers. */
extern struct wefti_shim_place {
    uint3 thread, block;
    dim3  block_dim, grid_dim;
} wefti_shim_place_now;
#define threadIdx wefti_shim_place_now.thread
#define blockIdx wefti_shim_place_now.block
#define blockDim wefti_shim_place_now.block_dim
#define gridDim wefti_shim_place_now.grid_dim
static constexpr int warpSize = 32;

extern "C" {
unsigned char *wefti_shim_shared(void);
/* What the calling thread reads where hardware gives anything at all. */
enum : uint64_t { WEFTI_SHIM_POISON = UINT64_C(0xffffffffffffffff) };

typedef enum wefti_shim_kind {
    WEFTI_SHIM_SYNCWARP, WEFTI_SHIM_SHFL, WEFTI_SHIM_SHFL_UP, WEFTI_SHIM_SHFL_DOWN, WEFTI_SHIM_SHFL_XOR, WEFTI_SHIM_BALLOT, WEFTI_SHIM_MATCH_ANY,
    WEFTI_SHIM_MATCH_ALL, WEFTI_SHIM_ADD, WEFTI_SHIM_MIN, WEFTI_SHIM_MAX, WEFTI_SHIM_UMIN, WEFTI_SHIM_UMAX, WEFTI_SHIM_AND, WEFTI_SHIM_OR,
    WEFTI_SHIM_XOR, WEFTI_SHIM_COLLECTIVES
} wefti_shim_kind;
/* Gives the caller's result when all lanes of `mask` that have not left have come. */
uint64_t wefti_shim_collective(wefti_shim_kind kind, unsigned mask, uint64_t value, int argument, int width, const char *file, int line);
/* Barrier 0 of the whole block (count 0), or a named one of `count` threads; gives how many of those that came said true. */
int  wefti_shim_barrier(int id, int count, bool vote, const char *file, int line);
/* Lets others run now and then: threads that spin on memory would otherwise spin for ever. */
void wefti_shim_give_way(const char *file, int line);
/* Ends the launch as failed. */
[[noreturn]] void wefti_shim_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
bool wefti_shim_in_kernel(void);

/* What the stand-in of cudaLaunchKernel knows of a kernel. */
typedef struct wefti_shim_kernel {
    const char   *name;
    const void   *function;
    void        (*call)(const void *function, void *const *arguments);
    int           n_parameters;
    const size_t *bytes;    /* of each parameter */
    const bool   *pointers; /* whether it is a pointer */
} wefti_shim_kernel;
void wefti_shim_know(const wefti_shim_kernel *kernel); /* copied; may be told again */
}

#define WEFTI_SHIM_WHERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define WEFTI_SHIM_INLINE static inline __attribute__((unused))

template <typename... Parameters> struct wefti_shim_call {
    template <size_t... I> static void apply(void (*kernel)(Parameters...), void *const *arguments, std::index_sequence<I...>) {
        (void)arguments;
        kernel(*static_cast<Parameters *>(arguments[I])...);
    }
    static void run(const void *function, void *const *arguments) {
        apply(reinterpret_cast<void (*)(Parameters...)>(reinterpret_cast<uintptr_t>(function)), arguments,
              std::index_sequence_for<Parameters...>());
    }
};

template <typename... Parameters> static inline const void *wefti_shim_know_kernel(const char *name, void (*kernel)(Parameters...)) {
    static const size_t bytes[] = {sizeof(Parameters)..., 0};
    static const bool   pointers[] = {std::is_pointer<Parameters>::value..., false};
    const void *function = reinterpret_cast<const void *>(kernel);
    wefti_shim_kernel known = {name, function, wefti_shim_call<Parameters...>::run, (int)sizeof...(Parameters), bytes, pointers};
    wefti_shim_know(&known);
    return function;
}

#include "cuda_host/intrinsics.h"
#include "cuda_host/warp.h"
#include "cuda_host/atomics.h"
#include "cuda_host/half.h"

#include "cuda/cuda.h"

/* The launch helper, as kernel.cuh has it for nvcc. */
template <typename... Parameters, typename... Arguments>
static inline weft_status wefti_cuda_launch(const wefti_cuda_run *run, const char *name, void (*kernel)(Parameters...), dim3 grid,
                                            dim3 block, size_t shared_bytes, Arguments... arguments) {
    const void *function = wefti_shim_know_kernel(name, kernel);
    auto enqueue = [&](Parameters... converted) {
        void *pointers[sizeof...(Parameters) + 1] = {const_cast<void *>(static_cast<const void *>(&converted))...};
        return cudaLaunchKernel(function, grid, block, pointers, shared_bytes, run->stream);
    };
    return wefti_cuda_check(run->cuda, enqueue(static_cast<Parameters>(arguments)...), name);
}

#endif

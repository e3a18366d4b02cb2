/* Barriers, and what the lanes of a warp do together. Each remembers its place in the source, so that threads which wait for one another in
 * vain are reported with it. A value that comes from a lane which takes no part is all ones: a NaN as a float. */
#ifndef TESTS_CUDA_HOST_WARP_H
#define TESTS_CUDA_HOST_WARP_H

WEFTI_SHIM_INLINE void __syncthreads(WEFTI_SHIM_WHERE) { wefti_shim_barrier(0, 0, false, file, line); }
WEFTI_SHIM_INLINE int  __syncthreads_count(int x, WEFTI_SHIM_WHERE) { return wefti_shim_barrier(0, 0, x != 0, file, line); }
WEFTI_SHIM_INLINE int  __syncthreads_or(int x, WEFTI_SHIM_WHERE) { return wefti_shim_barrier(0, 0, x != 0, file, line) != 0; }
WEFTI_SHIM_INLINE int  __syncthreads_and(int x, WEFTI_SHIM_WHERE) { return wefti_shim_barrier(0, 0, x == 0, file, line) == 0; }
WEFTI_SHIM_INLINE void __barrier_sync(unsigned id, WEFTI_SHIM_WHERE) { wefti_shim_barrier((int)id, 0, false, file, line); }
WEFTI_SHIM_INLINE void __barrier_sync_count(unsigned id, unsigned count, WEFTI_SHIM_WHERE) {
    wefti_shim_barrier((int)id, (int)count, false, file, line);
}

WEFTI_SHIM_INLINE void __syncwarp(unsigned mask = 0xffffffffu, WEFTI_SHIM_WHERE) {
    wefti_shim_collective(WEFTI_SHIM_SYNCWARP, mask, 0, 0, 32, file, line);
}

template <typename T> static inline T wefti_shim_shuffle(wefti_shim_kind kind, unsigned mask, T x, int lane, int width, const char *file, int line) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "a shuffle takes up to 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof x);
    bits = wefti_shim_collective(kind, mask, bits, lane, width, file, line);
    memcpy(static_cast<void *>(&x), &bits, sizeof x);
    return x;
}
template <typename T> static inline T __shfl_sync(unsigned mask, T x, int lane, int width = 32, WEFTI_SHIM_WHERE) {
    return wefti_shim_shuffle(WEFTI_SHIM_SHFL, mask, x, lane, width, file, line);
}
template <typename T> static inline T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = 32, WEFTI_SHIM_WHERE) {
    return wefti_shim_shuffle(WEFTI_SHIM_SHFL_UP, mask, x, (int)by, width, file, line);
}
template <typename T> static inline T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = 32, WEFTI_SHIM_WHERE) {
    return wefti_shim_shuffle(WEFTI_SHIM_SHFL_DOWN, mask, x, (int)by, width, file, line);
}
template <typename T> static inline T __shfl_xor_sync(unsigned mask, T x, int lanes, int width = 32, WEFTI_SHIM_WHERE) {
    return wefti_shim_shuffle(WEFTI_SHIM_SHFL_XOR, mask, x, lanes, width, file, line);
}

WEFTI_SHIM_INLINE unsigned __ballot_sync(unsigned mask, int x, WEFTI_SHIM_WHERE) {
    return (unsigned)wefti_shim_collective(WEFTI_SHIM_BALLOT, mask, x != 0, 0, 32, file, line);
}
WEFTI_SHIM_INLINE int __any_sync(unsigned mask, int x, WEFTI_SHIM_WHERE) {
    return wefti_shim_collective(WEFTI_SHIM_BALLOT, mask, x != 0, 0, 32, file, line) != 0;
}
WEFTI_SHIM_INLINE int __all_sync(unsigned mask, int x, WEFTI_SHIM_WHERE) {
    return wefti_shim_collective(WEFTI_SHIM_BALLOT, mask, x == 0, 0, 32, file, line) == 0;
}
/* The lanes that run beside this one: on the host, none. */
WEFTI_SHIM_INLINE unsigned __activemask(void) {
    unsigned flat = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    return 1u << (flat % 32);
}
template <typename T> static inline unsigned __match_any_sync(unsigned mask, T x, WEFTI_SHIM_WHERE) {
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof x);
    return (unsigned)wefti_shim_collective(WEFTI_SHIM_MATCH_ANY, mask, bits, 0, 32, file, line);
}
template <typename T> static inline unsigned __match_all_sync(unsigned mask, T x, int *all_out, WEFTI_SHIM_WHERE) {
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof x);
    unsigned lanes = (unsigned)wefti_shim_collective(WEFTI_SHIM_MATCH_ALL, mask, bits, 0, 32, file, line);
    *all_out = lanes != 0;
    return lanes;
}

#define WEFTI_SHIM_REDUCE(NAME, TYPE, KIND)                                                                                          \
    WEFTI_SHIM_INLINE TYPE NAME(unsigned mask, TYPE x, WEFTI_SHIM_WHERE) {                                                           \
        return (TYPE)wefti_shim_collective(KIND, mask, (uint64_t)(int64_t)x, 0, 32, file, line);                                     \
    }
WEFTI_SHIM_REDUCE(__reduce_add_sync, int, WEFTI_SHIM_ADD)
WEFTI_SHIM_REDUCE(__reduce_add_sync, unsigned, WEFTI_SHIM_ADD)
WEFTI_SHIM_REDUCE(__reduce_min_sync, int, WEFTI_SHIM_MIN)
WEFTI_SHIM_REDUCE(__reduce_min_sync, unsigned, WEFTI_SHIM_UMIN)
WEFTI_SHIM_REDUCE(__reduce_max_sync, int, WEFTI_SHIM_MAX)
WEFTI_SHIM_REDUCE(__reduce_max_sync, unsigned, WEFTI_SHIM_UMAX)
WEFTI_SHIM_REDUCE(__reduce_and_sync, unsigned, WEFTI_SHIM_AND)
WEFTI_SHIM_REDUCE(__reduce_or_sync, unsigned, WEFTI_SHIM_OR)
WEFTI_SHIM_REDUCE(__reduce_xor_sync, unsigned, WEFTI_SHIM_XOR)
#undef WEFTI_SHIM_REDUCE

/* There is one worker and it is in order: fences have nothing to do. */
WEFTI_SHIM_INLINE void __threadfence(void) {}
WEFTI_SHIM_INLINE void __threadfence_block(void) {}
WEFTI_SHIM_INLINE void __threadfence_system(void) {}
WEFTI_SHIM_INLINE void __nanosleep(unsigned, WEFTI_SHIM_WHERE) { wefti_shim_give_way(file, line); }
#define __trap() wefti_shim_fail("__trap() at %s:%d", __FILE__, __LINE__)

#endif

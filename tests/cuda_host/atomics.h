/* Atomics. Fibers give way only where they say so, so a plain read, change and write is one piece; after it others may run. */
#ifndef TESTS_CUDA_HOST_ATOMICS_H
#define TESTS_CUDA_HOST_ATOMICS_H

/* The race detector (races.cpp) is told of atomics, and must not see them as accesses. */
#ifdef __SANITIZE_THREAD__
#define WEFTI_SHIM_UNSEEN __attribute__((no_sanitize_thread, noinline))
#else
#define WEFTI_SHIM_UNSEEN
#endif

#define WEFTI_SHIM_ATOMIC(NAME, CHANGED)                                                                                             \
    template <typename T> WEFTI_SHIM_UNSEEN static inline T NAME(T *at, typename std::common_type<T>::type x, WEFTI_SHIM_WHERE) {                      \
        wefti_shim_give_way(file, line);                                                                                             \
        T old = *at;                                                                                                                 \
        *at = (T)(CHANGED);                                                                                                          \
        return old;                                                                                                                  \
    }                                                                                                                                \
    template <typename T> static inline T NAME##_block(T *at, typename std::common_type<T>::type x, WEFTI_SHIM_WHERE) {              \
        return NAME(at, x, file, line);                                                                                              \
    }                                                                                                                                \
    template <typename T> static inline T NAME##_system(T *at, typename std::common_type<T>::type x, WEFTI_SHIM_WHERE) {             \
        return NAME(at, x, file, line);                                                                                              \
    }
/* Integers wrap. */
template <typename T> static inline T wefti_shim_add(T a, T b) {
    if constexpr (std::is_integral<T>::value) return (T)((typename std::make_unsigned<T>::type)a + (typename std::make_unsigned<T>::type)b);
    else return a + b;
}
template <typename T> static inline T wefti_shim_sub(T a, T b) {
    if constexpr (std::is_integral<T>::value) return (T)((typename std::make_unsigned<T>::type)a - (typename std::make_unsigned<T>::type)b);
    else return a - b;
}
WEFTI_SHIM_ATOMIC(atomicAdd, wefti_shim_add(old, (T)x))
WEFTI_SHIM_ATOMIC(atomicSub, wefti_shim_sub(old, (T)x))
WEFTI_SHIM_ATOMIC(atomicExch, x)
WEFTI_SHIM_ATOMIC(atomicMin, x < old ? x : old)
WEFTI_SHIM_ATOMIC(atomicMax, x > old ? x : old)
WEFTI_SHIM_ATOMIC(atomicAnd, old & x)
WEFTI_SHIM_ATOMIC(atomicOr, old | x)
WEFTI_SHIM_ATOMIC(atomicXor, old ^ x)
WEFTI_SHIM_ATOMIC(atomicInc, old >= x ? 0 : old + 1)
WEFTI_SHIM_ATOMIC(atomicDec, old == 0 || old > x ? x : old - 1)
#undef WEFTI_SHIM_ATOMIC

template <typename T>
WEFTI_SHIM_UNSEEN static inline T atomicCAS(T *at, typename std::common_type<T>::type expected, typename std::common_type<T>::type x, WEFTI_SHIM_WHERE) {
    wefti_shim_give_way(file, line);
    T old = *at;
    if (memcmp(&old, &expected, sizeof old) == 0) *at = x;
    return old;
}
template <typename T>
static inline T atomicCAS_block(T *at, typename std::common_type<T>::type expected, typename std::common_type<T>::type x, WEFTI_SHIM_WHERE) {
    return atomicCAS(at, expected, x, file, line);
}

#endif

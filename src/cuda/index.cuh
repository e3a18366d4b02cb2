/* From flat elements to places: coordinates of a row-major space, with 32-bit divisions by multiplication where the space is small
 * enough (a 64-bit division is a hundred instructions), and vectors of 16 bytes. */
#ifndef WEFTI_CUDA_INDEX_CUH
#define WEFTI_CUDA_INDEX_CUH

#include "cuda/kernel.cuh"

/* n / by for n < 2^31 and 1 <= by < 2^31: (n*multiplier/2^32 + n) / 2^shift (Granlund & Montgomery 1994). */
typedef struct wefti_divider {
    uint32_t by, multiplier, shift;
} wefti_divider;

static inline wefti_divider wefti_divider_of(int64_t by) {
    uint32_t shift = 0;
    while (shift < 31 && ((int64_t)1 << shift) < by) shift++;
    uint64_t multiplier = by > 0x7fffffff || by < 1 ? 1 : ((((uint64_t)1 << shift) - (uint64_t)by) << 32) / (uint64_t)by + 1;
    wefti_divider divider = {(uint32_t)by, (uint32_t)multiplier, shift};
    return divider;
}
static __host__ __device__ __forceinline__ uint32_t wefti_divide(uint32_t n, const wefti_divider &divider) {
    return ((uint32_t)(((uint64_t)n * divider.multiplier) >> 32) + n) >> divider.shift;
}

/* A row-major space of at least one axis, outermost first. */
typedef struct wefti_space {
    int32_t       rank;
    int64_t       dim[WEFT_MAX_RANK];
    wefti_divider divider[WEFT_MAX_RANK];
} wefti_space;

static inline wefti_space wefti_space_of(const wefti_cuda_view_of *view) {
    wefti_space space;
    space.rank = view->rank;
    for (int32_t axis = 0; axis < WEFT_MAX_RANK; axis++) {
        space.dim[axis] = axis < view->rank ? view->dim[axis] : 1;
        space.divider[axis] = wefti_divider_of(space.dim[axis]);
    }
    return space;
}
static inline int64_t wefti_space_elements(const wefti_space *space) {
    int64_t elements = 1;
    for (int32_t axis = 0; axis < space->rank; axis++) elements *= space->dim[axis];
    return elements;
}
/* Whether 32-bit indices (Index = uint32_t) reach every element; else int64_t. */
static inline bool wefti_is_small(int64_t elements) { return elements < (int64_t)1 << 31; }

/* Coordinate of flat element *i along an axis; *i goes on as the flat element of the axes above. Begin with the last axis. */
static __host__ __device__ __forceinline__ uint32_t wefti_coordinate(const wefti_space &space, int32_t axis, uint32_t *i) {
    uint32_t above = wefti_divide(*i, space.divider[axis]), at = *i - above * space.divider[axis].by;
    *i = above;
    return at;
}
static __host__ __device__ __forceinline__ int64_t wefti_coordinate(const wefti_space &space, int32_t axis, int64_t *i) {
    int64_t above = *i / space.dim[axis], at = *i - above * space.dim[axis];
    *i = above;
    return at;
}
/* Where flat element i of the space lies in memory of these strides. */
template <typename Index>
static __host__ __device__ __forceinline__ int64_t wefti_place(const wefti_space &space, const int64_t *stride, Index i) {
    int64_t offset = 0;
    for (int32_t axis = space.rank - 1; axis > 0; axis--) offset += (int64_t)wefti_coordinate(space, axis, &i) * stride[axis];
    return offset + (int64_t)i * stride[0];
}

/* 16 bytes of elements, moved in one access. */
template <typename T> struct __align__(16) wefti_pack {
    static const int COUNT = 16 / sizeof(T);
    T element[COUNT];
};

/* COUNT neighbours in one access, and that access with the word that the cache need not keep the line (evict first). */
template <typename T, int COUNT> struct __align__(sizeof(T) * COUNT) wefti_many { T element[COUNT]; };
template <int BYTES> struct wefti_access; /* CUDA's type of an access of so many bytes */
template <> struct wefti_access<4> { typedef unsigned int type; };
template <> struct wefti_access<8> { typedef uint2 type; };
template <> struct wefti_access<16> { typedef uint4 type; };
template <int COUNT, typename T> static __device__ __forceinline__ wefti_many<T, COUNT> wefti_load_once(const T *from) {
    typedef typename wefti_access<sizeof(T) * COUNT>::type access;
    union { access bits; wefti_many<T, COUNT> many; } x;
    x.bits = __ldcs(reinterpret_cast<const access *>(from));
    return x.many;
}
template <int COUNT, typename T> static __device__ __forceinline__ void wefti_store_once(T *to, const wefti_many<T, COUNT> &many) {
    typedef typename wefti_access<sizeof(T) * COUNT>::type access;
    union { access bits; wefti_many<T, COUNT> many; } x;
    x.many = many;
    __stcs(reinterpret_cast<access *>(to), x.bits);
}
static __host__ __device__ __forceinline__ bool wefti_is_aligned(const void *memory) { return ((uintptr_t)memory & 15) == 0; }

#endif

/* Arithmetic that CUDA C++ has beyond <math.h>. Fast variants give what the exact ones give: they are allowed to be better. */
#ifndef TESTS_CUDA_HOST_INTRINSICS_H
#define TESTS_CUDA_HOST_INTRINSICS_H

#include <fenv.h>

#include <limits>

#define WEFTI_SHIM_FN WEFTI_SHIM_INLINE

/* --- min and max, over the same pairs of types as the toolkit's --- */
#define WEFTI_SHIM_MIN_MAX(R, A, B)                                                                                                  \
    WEFTI_SHIM_FN constexpr R min(A a, B b) { return (R)a < (R)b ? (R)a : (R)b; }                                                    \
    WEFTI_SHIM_FN constexpr R max(A a, B b) { return (R)a > (R)b ? (R)a : (R)b; }
WEFTI_SHIM_MIN_MAX(int, int, int)
WEFTI_SHIM_MIN_MAX(unsigned, unsigned, unsigned)
WEFTI_SHIM_MIN_MAX(unsigned, int, unsigned)
WEFTI_SHIM_MIN_MAX(unsigned, unsigned, int)
WEFTI_SHIM_MIN_MAX(long, long, long)
WEFTI_SHIM_MIN_MAX(unsigned long, unsigned long, unsigned long)
WEFTI_SHIM_MIN_MAX(unsigned long, long, unsigned long)
WEFTI_SHIM_MIN_MAX(unsigned long, unsigned long, long)
WEFTI_SHIM_MIN_MAX(long long, long long, long long)
WEFTI_SHIM_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
WEFTI_SHIM_MIN_MAX(unsigned long long, long long, unsigned long long)
WEFTI_SHIM_MIN_MAX(unsigned long long, unsigned long long, long long)
#undef WEFTI_SHIM_MIN_MAX
WEFTI_SHIM_FN float  min(float a, float b) { return fminf(a, b); }
WEFTI_SHIM_FN float  max(float a, float b) { return fmaxf(a, b); }
WEFTI_SHIM_FN double min(double a, double b) { return fmin(a, b); }
WEFTI_SHIM_FN double max(double a, double b) { return fmax(a, b); }
WEFTI_SHIM_FN double min(float a, double b) { return fmin(a, b); }
WEFTI_SHIM_FN double max(float a, double b) { return fmax(a, b); }
WEFTI_SHIM_FN double min(double a, float b) { return fmin(a, b); }
WEFTI_SHIM_FN double max(double a, float b) { return fmax(a, b); }

/* --- bits as other types --- */
template <typename To, typename From> static inline To wefti_shim_bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
WEFTI_SHIM_FN int       __float_as_int(float x) { return wefti_shim_bits<int>(x); }
WEFTI_SHIM_FN unsigned  __float_as_uint(float x) { return wefti_shim_bits<unsigned>(x); }
WEFTI_SHIM_FN float     __int_as_float(int x) { return wefti_shim_bits<float>(x); }
WEFTI_SHIM_FN float     __uint_as_float(unsigned x) { return wefti_shim_bits<float>(x); }
WEFTI_SHIM_FN long long __double_as_longlong(double x) { return wefti_shim_bits<long long>(x); }
WEFTI_SHIM_FN double    __longlong_as_double(long long x) { return wefti_shim_bits<double>(x); }
WEFTI_SHIM_FN int       __double2hiint(double x) { return (int)(wefti_shim_bits<uint64_t>(x) >> 32); }
WEFTI_SHIM_FN int       __double2loint(double x) { return (int)wefti_shim_bits<uint64_t>(x); }
WEFTI_SHIM_FN double    __hiloint2double(int high, int low) {
    return wefti_shim_bits<double>((uint64_t)(unsigned)high << 32 | (unsigned)low);
}

/* --- integers --- */
__extension__ typedef __int128          wefti_shim_i128;
__extension__ typedef unsigned __int128 wefti_shim_u128;
WEFTI_SHIM_FN int      __popc(unsigned x) { return __builtin_popcount(x); }
WEFTI_SHIM_FN int      __popcll(unsigned long long x) { return __builtin_popcountll(x); }
WEFTI_SHIM_FN int      __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
WEFTI_SHIM_FN int      __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
WEFTI_SHIM_FN int      __ffs(int x) { return __builtin_ffs(x); }
WEFTI_SHIM_FN int      __ffsll(long long x) { return __builtin_ffsll(x); }
WEFTI_SHIM_FN unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; i++) y |= (x >> i & 1u) << (31 - i);
    return y;
}
WEFTI_SHIM_FN unsigned long long __brevll(unsigned long long x) {
    return (unsigned long long)__brev((unsigned)x) << 32 | __brev((unsigned)(x >> 32));
}
WEFTI_SHIM_FN int      __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
WEFTI_SHIM_FN unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
WEFTI_SHIM_FN long long __mul64hi(long long a, long long b) { return (long long)((wefti_shim_i128)a * b >> 64); }
WEFTI_SHIM_FN unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((wefti_shim_u128)a * b >> 64);
}
WEFTI_SHIM_FN int      __mul24(int a, int b) { return (int)((long long)((int)((unsigned)a << 8) >> 8) * ((int)((unsigned)b << 8) >> 8)); }
WEFTI_SHIM_FN unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffffu) * (b & 0xffffffu); }
WEFTI_SHIM_FN unsigned __usad(unsigned a, unsigned b, unsigned c) { return (a > b ? a - b : b - a) + c; }
WEFTI_SHIM_FN unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    uint64_t both = (uint64_t)b << 32 | a;
    unsigned y = 0;
    for (int i = 0; i < 4; i++) {
        unsigned s = selector >> 4 * i & 15u, byte = (unsigned)(both >> 8 * (s & 7u)) & 255u;
        y |= (s & 8u ? (byte & 128u ? 255u : 0u) : byte) << 8 * i;
    }
    return y;
}
WEFTI_SHIM_FN unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return (unsigned)((((uint64_t)high << 32 | low) << (by & 31u)) >> 32);
}
WEFTI_SHIM_FN unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return (unsigned)(((uint64_t)high << 32 | low) >> (by & 31u));
}
WEFTI_SHIM_FN unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned by) {
    return by >= 32 ? low : __funnelshift_l(low, high, by);
}
WEFTI_SHIM_FN unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned by) {
    return by >= 32 ? high : __funnelshift_r(low, high, by);
}
WEFTI_SHIM_FN int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += (int)(int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
    return c;
}

/* --- floats rounded as their names say --- */
/* Computes with another rounding; `volatile` keeps the compiler from doing it earlier. */
#define WEFTI_SHIM_ROUNDED(R, MODE, EXPRESSION)                                                                                      \
    int before = fegetround();                                                                                                       \
    fesetround(MODE);                                                                                                                \
    volatile R result = (EXPRESSION);                                                                                                \
    fesetround(before);                                                                                                              \
    return result;
#define WEFTI_SHIM_FLOAT_OPS(SUFFIX, MODE)                                                                                           \
    WEFTI_SHIM_FN float  __fadd_##SUFFIX(float a, float b) { volatile float x = a, y = b; WEFTI_SHIM_ROUNDED(float, MODE, x + y) }   \
    WEFTI_SHIM_FN float  __fsub_##SUFFIX(float a, float b) { volatile float x = a, y = b; WEFTI_SHIM_ROUNDED(float, MODE, x - y) }   \
    WEFTI_SHIM_FN float  __fmul_##SUFFIX(float a, float b) { volatile float x = a, y = b; WEFTI_SHIM_ROUNDED(float, MODE, x * y) }   \
    WEFTI_SHIM_FN float  __fdiv_##SUFFIX(float a, float b) { volatile float x = a, y = b; WEFTI_SHIM_ROUNDED(float, MODE, x / y) }   \
    WEFTI_SHIM_FN float  __frcp_##SUFFIX(float a) { volatile float x = a; WEFTI_SHIM_ROUNDED(float, MODE, 1.0f / x) }                \
    WEFTI_SHIM_FN float  __fsqrt_##SUFFIX(float a) { volatile float x = a; WEFTI_SHIM_ROUNDED(float, MODE, sqrtf(x)) }               \
    WEFTI_SHIM_FN float  __fmaf_##SUFFIX(float a, float b, float c) { WEFTI_SHIM_ROUNDED(float, MODE, fmaf(a, b, c)) }               \
    WEFTI_SHIM_FN double __dadd_##SUFFIX(double a, double b) { volatile double x = a, y = b; WEFTI_SHIM_ROUNDED(double, MODE, x + y) } \
    WEFTI_SHIM_FN double __dsub_##SUFFIX(double a, double b) { volatile double x = a, y = b; WEFTI_SHIM_ROUNDED(double, MODE, x - y) } \
    WEFTI_SHIM_FN double __dmul_##SUFFIX(double a, double b) { volatile double x = a, y = b; WEFTI_SHIM_ROUNDED(double, MODE, x * y) } \
    WEFTI_SHIM_FN double __ddiv_##SUFFIX(double a, double b) { volatile double x = a, y = b; WEFTI_SHIM_ROUNDED(double, MODE, x / y) } \
    WEFTI_SHIM_FN double __drcp_##SUFFIX(double a) { volatile double x = a; WEFTI_SHIM_ROUNDED(double, MODE, 1.0 / x) }              \
    WEFTI_SHIM_FN double __dsqrt_##SUFFIX(double a) { volatile double x = a; WEFTI_SHIM_ROUNDED(double, MODE, sqrt(x)) }             \
    WEFTI_SHIM_FN double __fma_##SUFFIX(double a, double b, double c) { WEFTI_SHIM_ROUNDED(double, MODE, fma(a, b, c)) }             \
    WEFTI_SHIM_FN float  __double2float_##SUFFIX(double a) { volatile double x = a; WEFTI_SHIM_ROUNDED(float, MODE, (float)x) }      \
    WEFTI_SHIM_FN float  __int2float_##SUFFIX(int a) { volatile int x = a; WEFTI_SHIM_ROUNDED(float, MODE, (float)x) }               \
    WEFTI_SHIM_FN float  __uint2float_##SUFFIX(unsigned a) { volatile unsigned x = a; WEFTI_SHIM_ROUNDED(float, MODE, (float)x) }    \
    WEFTI_SHIM_FN float  __ll2float_##SUFFIX(long long a) { volatile long long x = a; WEFTI_SHIM_ROUNDED(float, MODE, (float)x) }    \
    WEFTI_SHIM_FN float  __ull2float_##SUFFIX(unsigned long long a) { volatile unsigned long long x = a; WEFTI_SHIM_ROUNDED(float, MODE, (float)x) } \
    WEFTI_SHIM_FN double __ll2double_##SUFFIX(long long a) { volatile long long x = a; WEFTI_SHIM_ROUNDED(double, MODE, (double)x) } \
    WEFTI_SHIM_FN double __ull2double_##SUFFIX(unsigned long long a) { volatile unsigned long long x = a; WEFTI_SHIM_ROUNDED(double, MODE, (double)x) }
WEFTI_SHIM_FLOAT_OPS(rz, FE_TOWARDZERO)
WEFTI_SHIM_FLOAT_OPS(ru, FE_UPWARD)
WEFTI_SHIM_FLOAT_OPS(rd, FE_DOWNWARD)
/* To nearest even is how the host computes anyway. */
#undef WEFTI_SHIM_ROUNDED
#define WEFTI_SHIM_ROUNDED(R, MODE, EXPRESSION) return (R)(EXPRESSION);
#define volatile
WEFTI_SHIM_FLOAT_OPS(rn, FE_TONEAREST)
#undef volatile
#undef WEFTI_SHIM_FLOAT_OPS
#undef WEFTI_SHIM_ROUNDED
WEFTI_SHIM_FN double __int2double_rn(int x) { return x; }
WEFTI_SHIM_FN double __uint2double_rn(unsigned x) { return x; }

/* To integers: saturating, NaN gives 0 (0x8000... for 64 bits from double on hardware too is 0 only for 32 bits: both are given 0 here for
 * 32-bit results, and the least value for 64-bit ones, as the hardware's cvt does). */
template <typename To> static inline To wefti_shim_to_integer(double x) {
    double low = (double)std::numeric_limits<To>::min(), high = (double)std::numeric_limits<To>::max();
    if (isnan(x)) return sizeof(To) == 8 ? (To)(UINT64_C(1) << 63) : (To)0;
    return x <= low ? std::numeric_limits<To>::min() : x >= high ? std::numeric_limits<To>::max() : (To)x;
}
#define WEFTI_SHIM_TO_INTEGER(TO, NAME)                                                                                              \
    WEFTI_SHIM_FN TO __float2##NAME##_rz(float x) { return wefti_shim_to_integer<TO>(trunc((double)x)); }                            \
    WEFTI_SHIM_FN TO __float2##NAME##_rn(float x) { return wefti_shim_to_integer<TO>(rint((double)x)); }                             \
    WEFTI_SHIM_FN TO __float2##NAME##_ru(float x) { return wefti_shim_to_integer<TO>(ceil((double)x)); }                             \
    WEFTI_SHIM_FN TO __float2##NAME##_rd(float x) { return wefti_shim_to_integer<TO>(floor((double)x)); }                            \
    WEFTI_SHIM_FN TO __double2##NAME##_rz(double x) { return wefti_shim_to_integer<TO>(trunc(x)); }                                  \
    WEFTI_SHIM_FN TO __double2##NAME##_rn(double x) { return wefti_shim_to_integer<TO>(rint(x)); }                                   \
    WEFTI_SHIM_FN TO __double2##NAME##_ru(double x) { return wefti_shim_to_integer<TO>(ceil(x)); }                                   \
    WEFTI_SHIM_FN TO __double2##NAME##_rd(double x) { return wefti_shim_to_integer<TO>(floor(x)); }
WEFTI_SHIM_TO_INTEGER(int, int)
WEFTI_SHIM_TO_INTEGER(unsigned, uint)
WEFTI_SHIM_TO_INTEGER(long long, ll)
WEFTI_SHIM_TO_INTEGER(unsigned long long, ull)
#undef WEFTI_SHIM_TO_INTEGER

/* --- functions --- */
WEFTI_SHIM_FN float  rsqrtf(float x) { return (float)(1.0 / sqrt((double)x)); }
WEFTI_SHIM_FN float  rsqrt(float x) { return rsqrtf(x); }
WEFTI_SHIM_FN double rsqrt(double x) { return 1.0 / sqrt(x); }
WEFTI_SHIM_FN float  __frsqrt_rn(float x) { return rsqrtf(x); }
WEFTI_SHIM_FN float  rcbrtf(float x) { return 1.0f / cbrtf(x); }
/* glibc declares most of these names: hence macros. */
#define __expf(x) expf(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __tanhf(x) tanhf(x)
#define __powf(x, y) powf(x, y)
#define __sincosf(x, sin_out, cos_out) sincosf(x, sin_out, cos_out)
WEFTI_SHIM_FN float  __fdividef(float x, float y) { return x / y; }
WEFTI_SHIM_FN float  fdividef(float x, float y) { return x / y; }
WEFTI_SHIM_FN float  __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }
WEFTI_SHIM_FN double wefti_shim_pi_times(double x) { return 3.14159265358979323846 * (x - 2 * rint(x / 2)); }
WEFTI_SHIM_FN double sinpi(double x) { return sin(wefti_shim_pi_times(x)); }
WEFTI_SHIM_FN double cospi(double x) { return cos(wefti_shim_pi_times(x)); }
WEFTI_SHIM_FN float  sinpif(float x) { return (float)sinpi(x); }
WEFTI_SHIM_FN float  cospif(float x) { return (float)cospi(x); }
WEFTI_SHIM_FN void   sincospif(float x, float *sin_out, float *cos_out) { *sin_out = sinpif(x), *cos_out = cospif(x); }
WEFTI_SHIM_FN void   sincospi(double x, double *sin_out, double *cos_out) { *sin_out = sinpi(x), *cos_out = cospi(x); }
WEFTI_SHIM_FN double normcdf(double x) { return 0.5 * erfc(-x * 0.70710678118654752440); }
WEFTI_SHIM_FN float  normcdff(float x) { return (float)normcdf(x); }

/* --- loads and stores with a hint; the hint is about caches --- */
#define WEFTI_SHIM_LOAD(NAME) template <typename T> static inline T NAME(const T *at) { return *at; }
WEFTI_SHIM_LOAD(__ldg)
WEFTI_SHIM_LOAD(__ldcg)
WEFTI_SHIM_LOAD(__ldca)
WEFTI_SHIM_LOAD(__ldcs)
WEFTI_SHIM_LOAD(__ldlu)
WEFTI_SHIM_LOAD(__ldcv)
#undef WEFTI_SHIM_LOAD
#define WEFTI_SHIM_STORE(NAME) template <typename T> static inline void NAME(T *at, typename std::common_type<T>::type x) { *at = x; }
WEFTI_SHIM_STORE(__stwb)
WEFTI_SHIM_STORE(__stcg)
WEFTI_SHIM_STORE(__stcs)
WEFTI_SHIM_STORE(__stwt)
#undef WEFTI_SHIM_STORE
/* Shared memory by number: here its address, of which PTX twins make a pointer again. */
WEFTI_SHIM_FN size_t __cvta_generic_to_shared(const void *at) { return (size_t)(uintptr_t)at; }
WEFTI_SHIM_FN size_t __cvta_generic_to_global(const void *at) { return (size_t)(uintptr_t)at; }
WEFTI_SHIM_FN void  *__cvta_shared_to_generic(size_t at) { return (void *)(uintptr_t)at; }

#endif

/* What the toolkit's half and bfloat16 headers give to device code only. Each is computed in float (fma in double, which holds the product
 * and the sum of two such numbers nearly exactly) and rounded once. */
#ifndef TESTS_CUDA_HOST_HALF_H
#define TESTS_CUDA_HOST_HALF_H

#define WEFTI_SHIM_HALF(T, T2, WIDEN, NARROW, PAIR)                                                                                  \
    WEFTI_SHIM_FN T  __hfma(T a, T b, T c) { return NARROW((float)fma((double)WIDEN(a), (double)WIDEN(b), (double)WIDEN(c))); }      \
    WEFTI_SHIM_FN T2 __hfma2(T2 a, T2 b, T2 c) { return PAIR(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)); }                        \
    WEFTI_SHIM_FN T  __hfma_relu(T a, T b, T c) { T y = __hfma(a, b, c); return WIDEN(y) > 0 ? y : NARROW(0.0f); }
WEFTI_SHIM_HALF(__half, __half2, __half2float, __float2half_rn, __halves2half2)
WEFTI_SHIM_HALF(__nv_bfloat16, __nv_bfloat162, __bfloat162float, __float2bfloat16_rn, __halves2bfloat162)
#undef WEFTI_SHIM_HALF
#define WEFTI_SHIM_HALF_FN(NAME, F)                                                                                                  \
    WEFTI_SHIM_FN __half         h##NAME(__half x) { return __float2half_rn(F(__half2float(x))); }                                   \
    WEFTI_SHIM_FN __nv_bfloat16  h##NAME(__nv_bfloat16 x) { return __float2bfloat16_rn(F(__bfloat162float(x))); }                    \
    WEFTI_SHIM_FN __half2        h2##NAME(__half2 x) { return __halves2half2(h##NAME(x.x), h##NAME(x.y)); }                          \
    WEFTI_SHIM_FN __nv_bfloat162 h2##NAME(__nv_bfloat162 x) { return __halves2bfloat162(h##NAME(x.x), h##NAME(x.y)); }
WEFTI_SHIM_FN float wefti_shim_reciprocal(float x) { return 1.0f / x; }
WEFTI_SHIM_HALF_FN(exp, expf)
WEFTI_SHIM_HALF_FN(exp2, exp2f)
WEFTI_SHIM_HALF_FN(log, logf)
WEFTI_SHIM_HALF_FN(log2, log2f)
WEFTI_SHIM_HALF_FN(sqrt, sqrtf)
WEFTI_SHIM_HALF_FN(rsqrt, rsqrtf)
WEFTI_SHIM_HALF_FN(rcp, wefti_shim_reciprocal)
WEFTI_SHIM_HALF_FN(sin, sinf)
WEFTI_SHIM_HALF_FN(cos, cosf)
WEFTI_SHIM_HALF_FN(tanh, tanhf)
WEFTI_SHIM_HALF_FN(floor, floorf)
WEFTI_SHIM_HALF_FN(ceil, ceilf)
WEFTI_SHIM_HALF_FN(rint, rintf)
WEFTI_SHIM_HALF_FN(trunc, truncf)
#undef WEFTI_SHIM_HALF_FN

#endif

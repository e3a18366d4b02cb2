/* Elementary functions in f32, one element at a time and without branches, so that loops over them become SIMD and every
 * element gets the same bits wherever it lies in a tile.
 *
 * Polynomials are minimax fits (Remez) over the reduced ranges. Largest errors over sweeps of the finite inputs, in units in the
 * last place, with fused multiply-add: exp 1.0, log 0.8, expm1 1.5, log1p 1.5, softplus 1.9, sigmoid 2.7, tanh 2.6, erf 2.5, sin
 * and cos 0.6, silu 3, gelu 8 (also where it is tiny), the slopes 17 near 1; gelu_tanh amplifies the rounding of its argument and
 * has 130 at -9, where it is 1e-27. tests/cpu/test_math.c holds these. NaN gives NaN. */
#ifndef WEFTI_KERNELS_MATH_H
#define WEFTI_KERNELS_MATH_H

#include <math.h>

#include "core/cpu/kernels/simd.h"

WEFTI_INLINE uint32_t f32_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
WEFTI_INLINE float f32_of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
#define FMA WEFTI_FMA_F32

/* Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits. */
#define F32_ROUNDER 12582912.0f

/* exp(x) - 1 - r = r^2 q(r) on |r| <= log(2)/2. */
WEFTI_INLINE float f32_exp_rest(float r) {
    float q = 0.0013814496342092752f;
    q       = FMA(q, r, 0.0083687799051404f);
    q       = FMA(q, r, 0.04166839271783829f);
    q       = FMA(q, r, 0.1666651964187622f);
    q       = FMA(q, r, 0.4999999403953552f);
    return q * (r * r);
}
/* x = n log 2 + r; n is given as the bits of the rounder with n added. */
WEFTI_INLINE float f32_exp_reduce(float x, uint32_t *n_bits) {
    float t = FMA(x, 1.44269504f, F32_ROUNDER), n = t - F32_ROUNDER;
    *n_bits = f32_bits(t);
    return FMA(n, -1.42860677e-06f, FMA(n, -0.693145752f, x)); /* 0.693145752 has 16 bits, so n times it is exact */
}
WEFTI_INLINE float f32_exp(float x) {
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    uint32_t bits;
    float    r = f32_exp_reduce(x, &bits), p = 1.0f + (r + f32_exp_rest(r));
    /* 2^n in two factors: n reaches from -150 to 128. */
    int32_t n = (int32_t)(bits - f32_bits(F32_ROUNDER)), half = n >> 1;
    return p * f32_of_bits((uint32_t)(half + 127) << 23) * f32_of_bits((uint32_t)(n - half + 127) << 23);
}
WEFTI_INLINE float f32_expm1(float x) {
    float y = x > 89.0f ? 89.0f : x;
    y       = y < -30.0f ? -30.0f : y;
    uint32_t bits;
    float    r = f32_exp_reduce(y, &bits), p = r + f32_exp_rest(r);
    int32_t  n    = (int32_t)(bits - f32_bits(F32_ROUNDER));
    float    half = f32_of_bits((uint32_t)(n + 126) << 23); /* 2^(n-1), which n = 128 does not overflow */
    return (FMA(half, p, half - 0.5f)) * 2.0f;
}

/* log(1 + f) - f + f^2/2 = f^3 q(f) where 1 + f is in [sqrt(1/2), sqrt(2)]. */
WEFTI_INLINE float f32_log_rest(float f) {
    float q = 0.06746625900268555f;
    q       = FMA(q, f, -0.11675631254911423f);
    q       = FMA(q, f, 0.11888153105974197f);
    q       = FMA(q, f, -0.1240558996796608f);
    q       = FMA(q, f, 0.14219553768634796f);
    q       = FMA(q, f, -0.1666799634695053f);
    q       = FMA(q, f, 0.2000211924314499f);
    q       = FMA(q, f, -0.25000008940696716f);
    q       = FMA(q, f, 0.3333331346511841f);
    return q * f * (f * f);
}
WEFTI_INLINE float f32_log(float x) {
    float    scaled = x < 0x1p-126f ? x * 0x1p24f : x;
    float    less   = x < 0x1p-126f ? 24.0f : 0.0f;
    uint32_t bits   = f32_bits(scaled) - 0x3f3504f3u; /* of sqrt(1/2), so that the exponent steps there */
    float    n = (float)((int32_t)bits >> 23) - less, m = f32_of_bits((bits & 0x7fffffu) + 0x3f3504f3u), f = m - 1.0f;
    float    y = f32_log_rest(f);
    y          = FMA(n, 1.42860677e-06f, y);
    y          = FMA(-0.5f * f, f, y);
    y          = FMA(n, 0.693145752f, f + y);
    y          = x == 0.0f ? -INFINITY : y;
    y          = x < 0.0f ? NAN : y;
    return x == INFINITY || x != x ? x : y;
}
WEFTI_INLINE float f32_log1p(float x) {
    float u = 1.0f + x, y = f32_log(u);
    /* What rounding u lost, to first order. */
    float lost = (u - 1.0f) - x, fixed = y - lost / u;
    return x == INFINITY || x <= -1.0f ? y : fixed;
}

WEFTI_INLINE float f32_sigmoid(float x) {
    float e = f32_exp(-fabsf(x)), s = 1.0f / (1.0f + e);
    return x < 0.0f ? e * s : s;
}
WEFTI_INLINE float f32_tanh(float x) {
    float a = fabsf(x);
    a       = a > 10.0f ? 10.0f : a;
    float t = f32_expm1(2.0f * a), y = t / (t + 2.0f);
    return copysignf(y, x);
}
WEFTI_INLINE float f32_softplus(float x) { return (x > 0.0f ? x : x != x ? x : 0.0f) + f32_log1p(f32_exp(-fabsf(x))); }

/* exp(-x^2/2) for x >= 0, with the rounding error of the square put back. */
WEFTI_INLINE float f32_bell(float x) {
    float h = 0.5f * x, s = h * x, lost = FMA(h, x, -s), e = f32_exp(-s);
    return FMA(-e, lost, e);
}
/* erfc(x / sqrt(2)) / 2 / bell for x >= 0: a polynomial in (x - 3)/(x + 3). */
WEFTI_INLINE float f32_tail_over_bell(float x) {
    float t = (x - 3.0f) / (x + 3.0f);
    float q = 5.3161791583988816e-05f;
    q       = FMA(q, t, 0.00011501348490128294f);
    q       = FMA(q, t, -0.0003390127094462514f);
    q       = FMA(q, t, -0.0009832880459725857f);
    q       = FMA(q, t, 0.002904387190937996f);
    q       = FMA(q, t, 0.006131942383944988f);
    q       = FMA(q, t, -0.046213261783123016f);
    q       = FMA(q, t, 0.12322504073381424f);
    q       = FMA(q, t, -0.20640261471271515f);
    return FMA(q, t, 0.12151394784450531f);
}
#define F32_TAIL_END 15.0f /* the bell is 0 beyond */

WEFTI_INLINE float f32_gelu(float x) {
    float a = fabsf(x);
    a       = a > F32_TAIL_END ? F32_TAIL_END : a;
    float tail = f32_tail_over_bell(a) * f32_bell(a);
    return x * (x < 0.0f ? tail : 1.0f - tail);
}
WEFTI_INLINE float f32_gelu_slope(float x) {
    float a = fabsf(x);
    a       = a > F32_TAIL_END ? F32_TAIL_END : a;
    float bell = f32_bell(a), tail = f32_tail_over_bell(a) * bell;
    float spread = a * 0.3989422804f * bell;
    return x < 0.0f ? tail - spread : x != x ? x : (1.0f - tail) + spread;
}
WEFTI_INLINE float f32_erf(float x) {
    float a = fabsf(x), s = a * a;
    float q = 7.853843999328092e-05f;
    q       = FMA(q, s, -0.0008010189048945904f);
    q       = FMA(q, s, 0.00518832728266716f);
    q       = FMA(q, s, -0.026853810995817184f);
    q       = FMA(q, s, 0.1128358542919159f);
    q       = FMA(q, s, -0.3761262595653534f);
    q       = FMA(q, s, 1.1283791065216064f);
    float z = a * 1.4142135624f;
    z       = z > F32_TAIL_END ? F32_TAIL_END : z;
    float outer = 1.0f - 2.0f * f32_tail_over_bell(z) * f32_bell(z);
    float y     = a < 1.0f ? a * q : outer;
    return x != x ? x : copysignf(y, x);
}

WEFTI_INLINE float f32_gelu_tanh_inner(float x) { return 0.7978845608f * FMA(0.044715f * x * x, x, x); }
/* x times sigmoid(2 inner), which is x (1 + tanh(inner))/2 without its cancellation. */
WEFTI_INLINE float f32_gelu_tanh(float x) {
    return x * f32_sigmoid(2.0f * f32_gelu_tanh_inner(x));
}
WEFTI_INLINE float f32_gelu_tanh_slope(float x) {
    float y = x > 20.0f ? 20.0f : x;
    y       = y < -20.0f ? -20.0f : y;
    float s = f32_sigmoid(2.0f * f32_gelu_tanh_inner(y)), inner = 1.5957691216f * FMA(0.134145f * y, y, 1.0f);
    return s + y * s * (1.0f - s) * inner;
}
WEFTI_INLINE float f32_silu(float x) { return x * f32_sigmoid(x); }
WEFTI_INLINE float f32_silu_slope(float x) {
    float y = x < -120.0f ? -120.0f : x;
    y       = y > 120.0f ? 120.0f : y;
    float s = f32_sigmoid(y);
    return FMA(y * s, 1.0f - s, s);
}

/* Quadrant and rest of x by pi/2, in f64; good to 2^-28 of a radian up to F32_TRIG_END. */
#define F32_TRIG_END 1e6f
WEFTI_INLINE double f64_trig_reduce(double x, uint64_t *quadrant) {
    const double rounder = 6755399441055744.0;
    double       t = x * 0.63661977236758134308 + rounder, n = t - rounder;
    memcpy(quadrant, &t, sizeof t);
    return (x - n * 1.57079632673412561417) - n * 6.07710050650619224932e-11;
}
WEFTI_INLINE float f32_sin_shifted(float x, uint64_t shift) {
    uint64_t quadrant;
    double   r = f64_trig_reduce(x, &quadrant), s = r * r;
    double   sine = ((2.717940459572419e-06 * s - 0.0001983929619663645) * s + 0.008333329266952598) * s - 0.16666666640615108;
    double   cosine = ((-2.7206791910891414e-07 * s + 2.4799478687671625e-05) * s - 0.0013888883598583404) * s;
    sine            = r + r * s * sine;
    cosine          = 1.0 - 0.5 * s + s * s * (cosine + 0.041666666621056794);
    quadrant += shift;
    double y = quadrant & 1 ? cosine : sine;
    return (float)(quadrant & 2 ? -y : y);
}

#undef FMA
#endif

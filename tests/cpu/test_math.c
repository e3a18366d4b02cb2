/* The f32 functions of the fast kernels against the C library in f64: a sweep over the bit patterns of all floats. Compiled once
 * without fused multiply-add, as the baseline is, and once with it (extra.cmake), where the bounds are the narrower second ones. */
#include <criterion/criterion.h>

#include "core/cpu/kernels/math.h"

#ifdef __FMA__
#define BOUND(plain, fused) (fused)
#define HERE() if (!__builtin_cpu_supports("fma") || !__builtin_cpu_supports("avx2")) return
#else
#define BOUND(plain, fused) (plain)
#define HERE() (void)0
#endif

/* A prime, so that low and high bits are mixed; about a million floats a function. */
enum { STRIDE = 4099 };

static double unit_in_last_place(float y) {
    float size = fabsf(y) < 0x1p-126f ? 0x1p-126f : fabsf(y);
    int   exponent;
    frexpf(size, &exponent);
    return ldexp(1, exponent - 24);
}

/* Errors in units of the last place of the result, or of `least` where that is more: beside a zero that lies at no float, no unit of
 * the result is left. */
static void sweep_from(const char *name, float (*f)(float), double (*exact)(double), float low, float high, float least, double bound) {
    double worst = 0;
    float  where = 0;
    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += STRIDE) {
        float x = f32_of_bits((uint32_t)bits);
        if (!(x >= low && x <= high)) continue;
        double right = exact((double)x);
        float  y     = f(x);
        if ((float)right == y) continue;
        double error = fabs(right - (double)y) / unit_in_last_place(fmaxf(fabsf((float)right), least));
        if (!(error <= worst)) worst = error, where = x;
    }
    cr_expect(worst <= bound, "%s is off by %.1f units in the last place at %a (%g)", name, worst, (double)where, (double)where);
    cr_expect(isnan(f(NAN)), "%s of NaN is %g", name, (double)f(NAN));
}

static void sweep(const char *name, float (*f)(float), double (*exact)(double), float low, float high, double bound) {
    sweep_from(name, f, exact, low, high, 0, bound);
}

static float  f_exp(float x) { return f32_exp(x); }
static float  f_expm1(float x) { return f32_expm1(x); }
static float  f_log(float x) { return f32_log(x); }
static float  f_log1p(float x) { return f32_log1p(x); }
static float  f_tanh(float x) { return f32_tanh(x); }
static float  f_sigmoid(float x) { return f32_sigmoid(x); }
static float  f_softplus(float x) { return f32_softplus(x); }
static float  f_erf(float x) { return f32_erf(x); }
static float  f_gelu(float x) { return f32_gelu(x); }
static float  f_gelu_slope(float x) { return f32_gelu_slope(x); }
static float  f_gelu_tanh(float x) { return f32_gelu_tanh(x); }
static float  f_gelu_tanh_slope(float x) { return f32_gelu_tanh_slope(x); }
static float  f_silu_slope(float x) { return f32_silu_slope(x); }
static float  f_silu(float x) { return f32_silu(x); }
static float  f_sin(float x) { return f32_sin_shifted(x, 0); }
static float  f_cos(float x) { return f32_sin_shifted(x, 1); }
static double d_sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double d_softplus(double x) { return fmax(x, 0) + log1p(exp(-fabs(x))); }
static double d_gelu(double x) { return 0.5 * x * erfc(-x * 0.70710678118654752440); }
static double d_silu(double x) { return x / (1 + exp(-x)); }
static double d_gelu_slope(double x) {
    return 0.5 * erfc(-x * 0.70710678118654752440) + (isinf(x) ? 0 : x * 0.39894228040143267794 * exp(-x * x / 2));
}
static double d_gelu_tanh(double x) { return x * d_sigmoid(2 * 0.79788456080286535588 * (x + 0.044715 * x * x * x)); }
static double d_gelu_tanh_slope(double x) {
    double s = d_sigmoid(2 * 0.79788456080286535588 * (x + 0.044715 * x * x * x));
    return s == 0 || s == 1 ? s : s + x * s * (1 - s) * 2 * 0.79788456080286535588 * (1 + 3 * 0.044715 * x * x);
}
static double d_silu_slope(double x) {
    double s = d_sigmoid(x);
    return s == 0 || s == 1 ? s : s + x * s * (1 - s);
}

Test(math, exponentials_and_logarithms) {
    HERE();
    sweep("exp", f_exp, exp, -INFINITY, INFINITY, BOUND(1.2, 1.0));
    sweep("expm1", f_expm1, expm1, -INFINITY, INFINITY, BOUND(1.7, 1.5));
    sweep("log", f_log, log, 0, INFINITY, BOUND(1, 0.8));
    sweep("log1p", f_log1p, log1p, -1, INFINITY, BOUND(1.7, 1.5));
}

Test(math, sigmoids) {
    HERE();
    sweep("tanh", f_tanh, tanh, -INFINITY, INFINITY, BOUND(3, 2.6));
    sweep("sigmoid", f_sigmoid, d_sigmoid, -INFINITY, INFINITY, BOUND(3, 2.7));
    sweep("softplus", f_softplus, d_softplus, -INFINITY, INFINITY, BOUND(2.2, 1.9));
    sweep("silu", f_silu, d_silu, -80, 1e30f, BOUND(5, 3.1));
}

Test(math, the_normal_distribution) {
    HERE();
    sweep("erf", f_erf, erf, -INFINITY, INFINITY, BOUND(3, 2.5));
    sweep("gelu", f_gelu, d_gelu, -3, INFINITY, BOUND(16, 8));
    sweep("gelu far below zero", f_gelu, d_gelu, -12, -3, BOUND(80, 8));
}

Test(math, slopes_and_the_other_gelu) {
    HERE();
    sweep_from("gelu's slope", f_gelu_slope, d_gelu_slope, -INFINITY, INFINITY, 0.5f, BOUND(17, 17));
    sweep_from("gelu_tanh's slope", f_gelu_tanh_slope, d_gelu_tanh_slope, -INFINITY, INFINITY, 0.5f, BOUND(17, 17));
    sweep_from("silu's slope", f_silu_slope, d_silu_slope, -INFINITY, INFINITY, 0.5f, BOUND(17, 17));
    sweep("gelu_tanh", f_gelu_tanh, d_gelu_tanh, -9, 1e12f, BOUND(130, 130));
}

Test(math, sine_and_cosine_within_their_range) {
    HERE();
    sweep("sin", f_sin, sin, -F32_TRIG_END, F32_TRIG_END, 0.6);
    sweep("cos", f_cos, cos, -F32_TRIG_END, F32_TRIG_END, 0.6);
}

Test(math, ends_are_exact) {
    HERE();
    cr_expect(f32_exp(-INFINITY) == 0 && f32_exp(INFINITY) == INFINITY && f32_exp(0) == 1 && f32_exp(-200) == 0);
    cr_expect(f32_log(0) == -INFINITY && f32_log(INFINITY) == INFINITY && isnan(f32_log(-1)) && f32_log(1) == 0);
    cr_expect(f32_log1p(-1) == -INFINITY && f32_log1p(INFINITY) == INFINITY && isnan(f32_log1p(-2)));
    cr_expect(f32_tanh(INFINITY) == 1 && f32_tanh(-INFINITY) == -1 && f32_erf(INFINITY) == 1 && f32_erf(-INFINITY) == -1);
    cr_expect(f32_sigmoid(-INFINITY) == 0 && f32_sigmoid(INFINITY) == 1 && f32_sigmoid(0) == 0.5f);
    cr_expect(f32_expm1(-INFINITY) == -1 && f32_expm1(INFINITY) == INFINITY);
    cr_expect(f32_gelu(INFINITY) == INFINITY && f32_gelu(0) == 0 && f32_softplus(INFINITY) == INFINITY && f32_softplus(-INFINITY) == 0);
}

/* The f32 functions of the fast kernels against the C library in f64: a sweep over the bit patterns of all floats. They are compiled
 * here without fused multiply-add, so the bounds are those of the baseline. */
#include <criterion/criterion.h>

#include "core/cpu/kernels/math.h"

/* A prime, so that low and high bits are mixed; about a million floats a function. */
enum { STRIDE = 4099 };

static double unit_in_last_place(float y) {
    float size = fabsf(y) < 0x1p-126f ? 0x1p-126f : fabsf(y);
    int   exponent;
    frexpf(size, &exponent);
    return ldexp(1, exponent - 24);
}

static void sweep(const char *name, float (*f)(float), double (*exact)(double), float low, float high, double bound) {
    double worst = 0;
    float  where = 0;
    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += STRIDE) {
        float x = f32_of_bits((uint32_t)bits);
        if (!(x >= low && x <= high)) continue;
        double right = exact((double)x);
        float  y     = f(x);
        if ((float)right == y) continue;
        double error = fabs(right - (double)y) / unit_in_last_place((float)right);
        if (!(error <= worst)) worst = error, where = x;
    }
    cr_expect(worst <= bound, "%s is off by %.1f units in the last place at %a (%g)", name, worst, (double)where, (double)where);
    cr_expect(isnan(f(NAN)), "%s of NaN is %g", name, (double)f(NAN));
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
static float  f_silu(float x) { return f32_silu(x); }
static float  f_sin(float x) { return f32_sin_shifted(x, 0); }
static float  f_cos(float x) { return f32_sin_shifted(x, 1); }
static double d_sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double d_softplus(double x) { return fmax(x, 0) + log1p(exp(-fabs(x))); }
static double d_gelu(double x) { return 0.5 * x * erfc(-x * 0.70710678118654752440); }
static double d_silu(double x) { return x / (1 + exp(-x)); }

Test(math, exponentials_and_logarithms) {
    sweep("exp", f_exp, exp, -INFINITY, INFINITY, 1.2);
    sweep("expm1", f_expm1, expm1, -INFINITY, INFINITY, 1.7);
    sweep("log", f_log, log, 0, INFINITY, 1);
    sweep("log1p", f_log1p, log1p, -1, INFINITY, 1.7);
}

Test(math, sigmoids) {
    sweep("tanh", f_tanh, tanh, -INFINITY, INFINITY, 3);
    sweep("sigmoid", f_sigmoid, d_sigmoid, -INFINITY, INFINITY, 3);
    sweep("softplus", f_softplus, d_softplus, -INFINITY, INFINITY, 2.2);
    sweep("silu", f_silu, d_silu, -80, 1e30f, 5);
}

Test(math, the_normal_distribution) {
    sweep("erf", f_erf, erf, -INFINITY, INFINITY, 3);
    sweep("gelu", f_gelu, d_gelu, -3, INFINITY, 16);
    sweep("gelu far below zero", f_gelu, d_gelu, -12, -3, 80);
}

Test(math, sine_and_cosine_within_their_range) {
    sweep("sin", f_sin, sin, -F32_TRIG_END, F32_TRIG_END, 0.6);
    sweep("cos", f_cos, cos, -F32_TRIG_END, F32_TRIG_END, 0.6);
}

Test(math, ends_are_exact) {
    cr_expect(f32_exp(-INFINITY) == 0 && f32_exp(INFINITY) == INFINITY && f32_exp(0) == 1 && f32_exp(-200) == 0);
    cr_expect(f32_log(0) == -INFINITY && f32_log(INFINITY) == INFINITY && isnan(f32_log(-1)) && f32_log(1) == 0);
    cr_expect(f32_log1p(-1) == -INFINITY && f32_log1p(INFINITY) == INFINITY && isnan(f32_log1p(-2)));
    cr_expect(f32_tanh(INFINITY) == 1 && f32_tanh(-INFINITY) == -1 && f32_erf(INFINITY) == 1 && f32_erf(-INFINITY) == -1);
    cr_expect(f32_sigmoid(-INFINITY) == 0 && f32_sigmoid(INFINITY) == 1 && f32_sigmoid(0) == 0.5f);
    cr_expect(f32_expm1(-INFINITY) == -1 && f32_expm1(INFINITY) == INFINITY);
    cr_expect(f32_gelu(INFINITY) == INFINITY && f32_gelu(0) == 0 && f32_softplus(INFINITY) == INFINITY && f32_softplus(-INFINITY) == 0);
}

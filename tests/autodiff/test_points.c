/* Gradients where functions have kinks, ties or infinite slopes: what the headers promise there, exactly. */
#include <criterion/criterion.h>
#include <math.h>

#include "common/interp.h"
#include "weft/layers.h"

static weft_graph *graph;

static void open_graph(void) { cr_assert_eq(weft_graph_create(NULL, &graph), WEFT_OK); }
static void close_graph(void) { weft_graph_release(graph); }
TestSuite(autodiff_points, .init = open_graph, .fini = close_graph);

static weft_tensor *x_of(int64_t count) { return weft_input(graph, "x", WEFT_F64, weft_shape(count)); }

/* The gradient of sum(y*(1, 2, 3, ...)) with respect to x, where x has these values. */
static void check(const char *name, weft_tensor *y, weft_tensor *x, const double *values, const double *expected) {
    weft_tensor *weight = weft_reshape(weft_arange(graph, WEFT_F64, weft_shape_elements(y->shape), 1, 1), y->shape), *g;
    cr_assert_eq(weft_gradients(weft_sum(weft_mul(y, weight)), &x, 1, &g), WEFT_OK, "%s: %s", name, weft_error_message());
    interp *in = interp_open(graph, &g, 1, true);
    interp_set(in, x, values);
    interp_run(in, 0);
    for (int64_t i = 0; i < weft_shape_elements(x->shape); i++)
        cr_assert(fabs(interp_get(in, g, i) - expected[i]) <= 1e-15, "%s: gradient %lld is %.17g, not %.17g", name, (long long)i,
                  interp_get(in, g, i), expected[i]);
    interp_close(in);
    close_graph();
    open_graph();
}
#define AT(...) ((const double[]){__VA_ARGS__})

Test(autodiff_points, kinks_of_functions) {
    weft_tensor *x = x_of(3);
    check("abs", weft_abs(x), x, AT(-2, 0, 3), AT(-1, 0, 3));
    x = x_of(3);
    check("relu", weft_relu(x), x, AT(-2, 0, 3), AT(0, 0, 3));
    x = x_of(5);
    check("clamp", weft_clamp(x, -1, 2), x, AT(-1.5, -1, 0, 2, 2.5), AT(0, 2, 3, 4, 0));
    x = x_of(3);
    check("sign", weft_sign(x), x, AT(-2, 0, 3), AT(0, 0, 0));
    x = x_of(2);
    check("x^3 at 0", weft_pow_scalar(x, 3), x, AT(0, -1), AT(0, 6));
    x = x_of(2);
    check("x^1 at 0", weft_pow_scalar(x, 1), x, AT(0, -1), AT(1, 2));
    x = x_of(2);
    check("x^0 at 0", weft_pow_scalar(x, 0), x, AT(0, -1), AT(0, 0));
}

/* Whoever is as large as the largest takes an equal part of the gradient. */
Test(autodiff_points, ties) {
    weft_tensor *x = x_of(4);
    check("maximum", weft_maximum(x, weft_scalar(graph, WEFT_F64, 1)), x, AT(0, 1, 2, 1), AT(0, 1, 3, 2));
    x = x_of(4);
    check("minimum", weft_minimum(x, weft_scalar(graph, WEFT_F64, 1)), x, AT(0, 1, 2, 1), AT(1, 1, 0, 2));
    x = x_of(2);
    check("maximum of itself", weft_maximum(x, x), x, AT(4, 5), AT(1, 2));
    x = x_of(6);
    check("max", weft_max(weft_reshape(x, weft_shape(2, 3)), .axes = weft_axes(1)), x, AT(5, 1, 5, 2, 3, 2), AT(0.5, 0, 0.5, 0, 2, 0));
    x = x_of(6);
    check("min", weft_min(weft_reshape(x, weft_shape(2, 3)), .axes = weft_axes(1)), x, AT(5, 1, 5, 2, 3, 2), AT(0, 1, 0, 1, 0, 1));
    x = x_of(4);
    check("max of equals", weft_max(x), x, AT(7, 7, 7, 7), AT(0.25, 0.25, 0.25, 0.25));
}

Test(autodiff_points, norms_at_zero) {
    static const double p[] = {0.5, 1, 1.5, 2, 3, INFINITY};
    for (size_t i = 0; i < sizeof p / sizeof *p; i++) {
        char name[32];
        snprintf(name, sizeof name, "norm of zeros, p %g", p[i]);
        weft_tensor *x = x_of(3);
        check(name, weft_norm(x, .p = p[i]), x, AT(0, 0, 0), AT(0, 0, 0));
    }
    /* (sqrt(4) + 0 + sqrt(9))^2: the slope is 5/sqrt(|x|), and none comes to the zero. */
    weft_tensor *x = x_of(3);
    check("norm, p 0.5", weft_norm(x, .p = 0.5), x, AT(-4, 0, 9), AT(-2.5, 0, 5.0 / 3));
    x = x_of(3);
    check("norm, p 2", weft_norm(x), x, AT(-3, 0, 4), AT(-0.6, 0, 0.8));
}

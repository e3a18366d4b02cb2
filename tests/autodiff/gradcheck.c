#include "autodiff/gradcheck.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "core/tensor/operand.h"

enum { MOST_LEAVES = 16, MOST_ELEMENTS = 400 };

/* What is done with gradients, and those of f64 that narrower ones are held against, one after the other. */
static enum { DIFFERENCES, KEEP, COMPARE } mode;
static weft_dtype narrow = WEFT_F64;
static double    *kept;
static size_t     n_kept, n_compared, capacity;

void gradcheck_keep(weft_dtype dtype) {
    mode = KEEP;
    narrow = dtype;
    n_kept = n_compared = 0;
}
void gradcheck_compare(void) { mode = COMPARE; }
void gradcheck_end(void) {
    cr_assert_eq(n_kept, n_compared, "%zu gradients were kept and %zu compared", n_kept, n_compared);
    mode = DIFFERENCES;
    narrow = WEFT_F64;
    free(kept);
    kept = NULL;
    capacity = 0;
}

static void keep(double value) {
    if (n_kept == capacity) {
        capacity = capacity ? 2 * capacity : 4096;
        kept = realloc(kept, capacity * sizeof *kept);
        cr_assert_not_null(kept);
    }
    kept[n_kept++] = value;
}

/* To the nearest number of `narrow`. */
static double rounded(double value) {
    double memory = 0;
    wefti_store_f64(&memory, 0, narrow, value);
    return wefti_load_f64(&memory, 0, narrow);
}

/* Numbers without pattern, the same in every run. */
static double noise(uint64_t seed) {
    seed = (seed + 1) * UINT64_C(0x9e3779b97f4a7c15);
    seed = (seed ^ (seed >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    seed = (seed ^ (seed >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (double)((seed ^ (seed >> 31)) >> 11) * 0x1p-53;
}

static void fill(interp *in, weft_graph *graph, gradcheck o) {
    if (o.low == 0 && o.high == 0) o.low = -1, o.high = 1;
    for (int32_t id = 0, n = 0; id < graph->n_nodes; id++) {
        const weft_tensor *leaf = &graph->nodes[id]->outputs[0];
        weft_op            op = graph->nodes[id]->op;
        if (op != WEFT_OP_INPUT && op != WEFT_OP_PARAMETER && op != WEFT_OP_STATE) continue;
        for (int64_t i = 0; i < weft_shape_elements(leaf->shape); i++) {
            double r = noise((uint64_t)(1000 * n + i));
            double value = leaf->dtype == WEFT_BOOL ? r < 0.5
                           : !weft_dtype_is_float(leaf->dtype) ? floor(r * (o.integers ? o.integers : 2))
                           : op == WEFT_OP_STATE ? 0.5 + r : o.low + r * (o.high - o.low);
            interp_set_one(in, leaf, i, rounded(value));
        }
        n++;
    }
}

/* sum(y*w), w fixed. */
static weft_tensor *weighted(weft_tensor *y, double phase) {
    weft_tensor *place = weft_arange(y->graph, WEFT_F64, weft_shape_elements(y->shape), phase, 1.3);
    weft_tensor *w = weft_reshape(weft_add_scalar(weft_cos(place), 0.4), y->shape);
    return weft_sum(weft_mul(weft_cast(y, WEFT_F64), w));
}

static int32_t differentiable_leaves(weft_graph *graph, weft_tensor **leaves) {
    int32_t count = 0;
    for (int32_t i = 0; i < graph->n_leaves; i++) {
        weft_op op = graph->leaves[i]->op;
        if ((op == WEFT_OP_INPUT || op == WEFT_OP_PARAMETER) &&
            weft_dtype_is_float(graph->leaves[i]->outputs[0].dtype)) {
            cr_assert_lt(count, MOST_LEAVES);
            leaves[count++] = &graph->leaves[i]->outputs[0];
        }
    }
    return count;
}

/* Holds the gradients of one leaf against those of f64: relative to the largest of them. */
static void compare_kept(const interp *in, const weft_tensor *leaf, const weft_tensor *gradient, gradcheck o, const char *order) {
    int64_t elements = weft_shape_elements(leaf->shape), off = 0, worst = 0;
    double  scale = 1e-3, most = 0;
    cr_assert_leq(n_compared + (size_t)elements, n_kept);
    const double *expected = kept + n_compared;
    n_compared += (size_t)elements;
    for (int64_t i = 0; i < elements; i++) scale = fmax(scale, fabs(expected[i]));
    double allowed = scale * (narrow == WEFT_F32 ? 1e-5 : narrow == WEFT_F16 ? 5e-3 : 5e-2);
    for (int64_t i = 0; i < elements; i++) {
        double distance = fabs(interp_get(in, gradient, i) - expected[i]);
        off += !(distance <= allowed);
        if (!(distance <= most)) most = distance, worst = i;
    }
    cr_assert(off == 0, "%s in %s: %lld of %lld %s gradients of %s are off, [%lld] is %.6g instead of %.6g", o.name,
              weft_dtype_name(narrow), (long long)off, (long long)elements, order, leaf->node->name, (long long)worst,
              interp_get(in, gradient, worst), expected[worst]);
}

/* Keeps the gradients in f64, or compares narrower ones with them. */
static void keep_or_compare(weft_graph *graph, weft_tensor **leaves, weft_tensor **gradients, int32_t count, gradcheck o,
                            const char *order) {
    interp *in = interp_open(graph, gradients, count, !o.evaluation);
    fill(in, graph, o);
    interp_run(in, 3);
    for (int32_t l = 0; l < count; l++) {
        cr_assert_eq(gradients[l]->dtype, leaves[l]->dtype);
        cr_assert(weft_shape_equal(gradients[l]->shape, leaves[l]->shape));
        if (mode == COMPARE) compare_kept(in, leaves[l], gradients[l], o, order);
        for (int64_t i = 0; mode == KEEP && i < weft_shape_elements(leaves[l]->shape); i++) keep(interp_get(in, gradients[l], i));
    }
    interp_close(in);
}

/* Compares gradients of `loss` with differences of it, element by element. */
static void compare(weft_graph *graph, weft_tensor *loss, weft_tensor **leaves, weft_tensor **gradients, int32_t count,
                    gradcheck o, const char *order) {
    weft_tensor *targets[MOST_LEAVES + 1] = {loss};
    for (int32_t i = 0; i < count; i++) targets[i + 1] = gradients[i];
    interp *in = interp_open(graph, targets, count + 1, !o.evaluation),
           *plain = interp_open(graph, &loss, 1, !o.evaluation);
    fill(in, graph, o);
    fill(plain, graph, o);
    interp_run(in, 3);
    const double h = 2e-5, tolerance = o.tolerance ? o.tolerance : 1e-6;
    for (int32_t l = 0; l < count; l++) {
        int64_t elements = weft_shape_elements(leaves[l]->shape);
        cr_assert(weft_shape_equal(gradients[l]->shape, leaves[l]->shape), "%s: shape of the gradient of %s", o.name,
                  leaves[l]->node->name);
        cr_assert_leq(elements, MOST_ELEMENTS, "%s: too many elements for differences", o.name);
        double scale = 1e-3;
        for (int64_t i = 0; i < elements; i++) scale = fmax(scale, fabs(interp_get(in, gradients[l], i)));
        for (int64_t i = 0; i < elements; i++) {
            double at = interp_get(in, leaves[l], i), side[4];
            const double steps[4] = {-2 * h, -h, h, 2 * h};
            for (int k = 0; k < 4; k++) {
                interp_set_one(plain, leaves[l], i, at + steps[k]);
                interp_run(plain, 3);
                side[k] = interp_get(plain, loss, 0);
            }
            interp_set_one(plain, leaves[l], i, at);
            double expected = (8 * (side[2] - side[1]) - (side[3] - side[0])) / (12 * h); /* fourth order */
            double got = interp_get(in, gradients[l], i);
            cr_assert(fabs(got - expected) <= tolerance * fmax(scale, fabs(expected)),
                      "%s: %s gradient of %s[%lld] is %.12g, differences give %.12g", o.name, order,
                      leaves[l]->node->name, (long long)i, got, expected);
        }
    }
    interp_close(plain);
    interp_close(in);
}

void check_gradients(weft_tensor *y, gradcheck options) {
    weft_graph  *graph = weft_tensor_graph(y);
    weft_tensor *leaves[MOST_LEAVES], *gradients[MOST_LEAVES], *second[MOST_LEAVES];
    cr_assert(weft_tensor_ok(y), "%s: %s", options.name, graph ? weft_graph_message(graph) : weft_error_message());
    int32_t      count = differentiable_leaves(graph, leaves);
    weft_tensor *loss = weighted(y, 0);
    cr_assert_eq(weft_gradients(loss, leaves, count, gradients), WEFT_OK, "%s: %s", options.name,
                 weft_graph_message(graph));
    for (int32_t i = 0; i < count && mode != COMPARE; i++) cr_assert_eq(leaves[i]->dtype, WEFT_F64);
    if (mode == DIFFERENCES) compare(graph, loss, leaves, gradients, count, options, "first");
    else keep_or_compare(graph, leaves, gradients, count, options, "first");
    if (options.first_only) return;
    weft_tensor *product = weft_scalar(graph, WEFT_F64, 0);
    for (int32_t i = 0; i < count; i++) product = weft_add(product, weighted(gradients[i], i + 0.7));
    cr_assert_eq(weft_gradients(product, leaves, count, second), WEFT_OK, "%s, twice: %s", options.name,
                 weft_graph_message(graph));
    if (mode == DIFFERENCES) compare(graph, product, leaves, second, count, options, "second");
    else keep_or_compare(graph, leaves, second, count, options, "second");
}

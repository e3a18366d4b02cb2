/* Mixtures of experts against a plain computation in f64, token by token: values, who is dropped, balance; gradients against differences. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "autodiff/gradcheck.h"
#include "weft/layers.h"

enum { T = 13, K = 5, H = 7, MOST_EXPERTS = 6 };

static weft_graph *graph;
static void open_graph(void) { cr_assert_eq(weft_graph_create(&(weft_graph_options){.seed = 5}, &graph), WEFT_OK); }
static void close_graph(void) {
    weft_graph_release(graph);
    weft_memory_counts counts;
    weft_memory_read(&counts);
    cr_assert_eq(counts.held_bytes, 0, "%llu bytes leaked", (unsigned long long)counts.held_bytes);
}
TestSuite(autodiff_experts, .init = open_graph, .fini = close_graph);

/* --- the plain computation --- */

typedef struct numbers {
    double x[T][K], gate[MOST_EXPERTS][K], in[MOST_EXPERTS][K][H], in_bias[MOST_EXPERTS][H], out[MOST_EXPERTS][H][K], out_bias[MOST_EXPERTS][K];
} numbers;

typedef struct results {
    double y[T][K], balance, z, dropped;
} results;

static double noise(unsigned *state) {
    *state = *state * 1664525u + 1013904223u;
    return (double)(*state >> 8) / 8388608.0 - 1;
}

static void draw(numbers *n) {
    unsigned state = 99;
    double  *all = (double *)n;
    for (size_t i = 0; i < sizeof *n / sizeof *all; i++) all[i] = noise(&state);
    for (int t = 0; t < T; t++) n->x[t][0] += 0.7; /* so that some experts are liked better than others */
}

static void gate_of(const numbers *n, int t, int experts, double *p, double *lse) {
    double sum = 0;
    for (int e = 0; e < experts; e++) {
        double logit = 0;
        for (int k = 0; k < K; k++) logit += n->x[t][k] * n->gate[e][k];
        sum += p[e] = exp(logit);
    }
    for (int e = 0; e < experts; e++) p[e] /= sum;
    *lse = log(sum);
}

static void add_expert(const numbers *n, int t, int e, double weight, bool relu, double *y) {
    double h[H];
    for (int j = 0; j < H; j++) {
        h[j] = n->in_bias[e][j];
        for (int k = 0; k < K; k++) h[j] += n->x[t][k] * n->in[e][k][j];
        h[j] = relu ? fmax(h[j], 0) : h[j] * 0.5 * (1 + erf(h[j] / sqrt(2)));
    }
    for (int k = 0; k < K; k++) {
        double sum = n->out_bias[e][k];
        for (int j = 0; j < H; j++) sum += h[j] * n->out[e][j][k];
        y[k] += weight * sum;
    }
}

static results compute(const numbers *n, int experts, int choices, double limit, bool relu) {
    results r = {.balance = 0};
    double  p[T][MOST_EXPERTS], lse, mean[MOST_EXPERTS] = {0}, counts[MOST_EXPERTS] = {0};
    int     chosen[T][MOST_EXPERTS], taken[MOST_EXPERTS] = {0};
    for (int t = 0; t < T; t++) {
        bool used[MOST_EXPERTS] = {false};
        gate_of(n, t, experts, p[t], &lse);
        r.z += lse * lse / T;
        for (int e = 0; e < experts; e++) mean[e] += p[t][e] / T;
        for (int c = 0; c < choices; c++) {
            int best = -1;
            for (int e = 0; e < experts; e++)
                if (!used[e] && (best < 0 || p[t][e] > p[t][best])) best = e;
            used[best] = true;
            chosen[t][c] = best;
            counts[best] += 1.0 / (T * choices);
        }
    }
    for (int e = 0; e < experts; e++) r.balance += experts * counts[e] * mean[e];
    for (int c = 0; c < choices; c++)
        for (int t = 0; t < T; t++) {
            double sum = 0;
            int    e = chosen[t][c];
            for (int i = 0; i < choices; i++) sum += p[t][chosen[t][i]];
            if (taken[e]++ < limit) add_expert(n, t, e, choices == 1 ? p[t][e] : p[t][e] / sum, relu, r.y[t]);
            else r.dropped += 1.0 / (T * choices);
        }
    return r;
}

/* --- the layer --- */

static void set(interp *in, const char *name, const void *values) {
    for (int32_t i = 0; i < graph->n_leaves; i++) {
        if (strcmp(graph->leaves[i]->name, name) != 0) continue;
        const weft_tensor *leaf = &graph->leaves[i]->outputs[0];
        for (int64_t k = 0; k < weft_shape_elements(leaf->shape); k++) interp_set_one(in, leaf, k, ((const double *)values)[k]);
        return;
    }
    cr_assert_fail("there is no '%s'", name);
}

static void agrees(int experts, int choices, double capacity, double limit, bool relu) {
    numbers      n;
    weft_tensor *targets[4], *x = weft_input(graph, "x", WEFT_F64, weft_shape(T, K));
    char         what[96];
    snprintf(what, sizeof what, "%d of %d experts, capacity %g", choices, experts, capacity);
    draw(&n);
    targets[0] = weft_mixture_of_experts(x, "m", .experts = experts, .choices = choices, .hidden = H, .capacity = capacity, .relu = relu,
                                         .balance_out = &targets[1], .z_out = &targets[2], .dropped_out = &targets[3]);
    cr_assert_eq(wefti_graph_status(graph), WEFT_OK, "%s: %s", what, weft_error_message());
    results r = compute(&n, experts, choices, limit, relu);
    interp *in = interp_open(graph, targets, 4, true);
    set(in, "x", n.x);
    set(in, "m.gate.weight", n.gate);
    set(in, "m.in.weight", n.in);
    set(in, "m.in.bias", n.in_bias);
    set(in, "m.out.weight", n.out);
    set(in, "m.out.bias", n.out_bias);
    interp_run(in, 0);
    for (int i = 0; i < T * K; i++) cr_assert_float_eq(interp_get(in, targets[0], i), (&r.y[0][0])[i], 1e-12, "%s: element %d", what, i);
    cr_assert_float_eq(interp_get(in, targets[1], 0), r.balance, 1e-12, "%s: balance", what);
    cr_assert_float_eq(interp_get(in, targets[2], 0), r.z, 1e-12, "%s: z", what);
    cr_assert_float_eq(interp_get(in, targets[3], 0), r.dropped, 1e-12, "%s: %g were dropped, not %g", what, interp_get(in, targets[3], 0), r.dropped);
    interp_close(in);
    weft_graph_release(graph);
    open_graph();
}

Test(autodiff_experts, values_who_is_dropped_and_balance) {
    agrees(4, 1, 0, ceil(1.25 * T / 4), false);
    agrees(4, 2, 0, ceil(1.25 * 2 * T / 4), true);
    agrees(4, 1, INFINITY, T, false);
    agrees(4, 2, 0.5, ceil(0.5 * 2 * T / 4), false);
    agrees(6, 3, 1, ceil(1.0 * 3 * T / 6), false);
    agrees(3, 3, 0.01, 1, true); /* one token each */
    agrees(1, 1, 1, T, false);
}

/* 1.1*30/3 in f64 is more than 11. */
Test(autodiff_experts, a_capacity_is_not_rounded_up_by_rounding) {
    enum { TOKENS = 30 };
    weft_tensor *dropped, *x = weft_input(graph, "x", WEFT_F64, weft_shape(TOKENS, 2));
    (void)weft_mixture_of_experts(x, "m", .experts = 3, .hidden = 1, .capacity = 1.1, .gate_init = weft_init_zeros(), .dropped_out = &dropped);
    interp *in = interp_open(graph, &dropped, 1, true);
    interp_run(in, 0);
    cr_assert_float_eq(interp_get(in, dropped, 0), (TOKENS - 11.0) / TOKENS, 1e-15); /* all choose the first */
    interp_close(in);
}

/* --- gradients --- */

static weft_tensor *mixture(int choices, double capacity, bool relu) {
    weft_tensor *balance, *z, *x = weft_input(graph, "x", WEFT_F64, weft_shape(2, 3, K));
    weft_tensor *y = weft_mixture_of_experts(x, "m", .experts = 4, .choices = choices, .hidden = 3, .capacity = capacity, .relu = relu, .balance_out = &balance,
                                             .z_out = &z);
    return weft_add(y, weft_add(balance, z));
}

static void differences(int choices, double capacity, bool relu) {
    check_gradients(mixture(choices, capacity, relu), (gradcheck){.name = "mixture of experts", .low = -1, .high = 1});
    weft_graph_release(graph);
    open_graph();
}

Test(autodiff_experts, gradients_are_those_of_differences) {
    differences(1, INFINITY, false);
    differences(1, 0.7, false);
    differences(2, 0, false);
    differences(2, 0.5, true);
    differences(3, 1, false);
}

/* --- what is refused --- */

static void refused(weft_tensor *y, const char *part) {
    cr_expect_not(weft_tensor_ok(y));
    weft_status status = wefti_graph_status(graph);
    cr_expect_neq(status, WEFT_OK, "not refused: '%s'", part);
    cr_expect_not_null(strstr(weft_error_message(), part), "'%s' lacks '%s'", weft_error_message(), part);
    weft_graph_release(graph);
    open_graph();
}
#define X weft_input(graph, "x", WEFT_F32, weft_shape(4, 3))

Test(autodiff_experts, refuses) {
    refused(weft_mixture_of_experts(X, "m", .hidden = 3), "mixture_of_experts 'm': .experts must be at least 1, not 0");
    refused(weft_mixture_of_experts(X, "m", .experts = 4), ".hidden must be at least 1, not 0");
    weft_tensor *outs[3] = {NULL};
    refused(weft_mixture_of_experts(X, "m", .hidden = 3, .balance_out = &outs[0], .z_out = &outs[1], .dropped_out = &outs[2]), "not 0");
    for (int i = 0; i < 3; i++) cr_expect_not_null(outs[i]);
    refused(weft_mixture_of_experts(X, "m", .experts = 4, .hidden = 3, .choices = 5), ".choices must be from 1 to .experts = 4, not 5");
    refused(weft_mixture_of_experts(X, "m", .experts = 4, .hidden = 3, .choices = -1), "not -1");
    refused(weft_mixture_of_experts(X, "m", .experts = 4, .hidden = 3, .capacity = -1), ".capacity must be positive (0 means 1.25, INFINITY no limit), not -1");
    refused(weft_mixture_of_experts(X, "m", .experts = 4, .hidden = 3, .capacity = NAN), "not nan");
    refused(weft_mixture_of_experts(weft_sum(X), "m", .experts = 4, .hidden = 3), "a scalar has no features");
    refused(weft_mixture_of_experts(weft_input(graph, "i", WEFT_I32, weft_shape(4, 3)), "m", .experts = 4, .hidden = 3), "i32");
}

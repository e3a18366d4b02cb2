/* Losses over many classes by chunks of rows: the result of all rows at once to rounding, in less memory, and a word where it can't be. */
#include "plan/support.h"

enum { B = 3, T = 67, WIDTH = 16, CLASSES = 4099, ROWS = B * T };

typedef struct head {
    weft_world  *world;
    weft_graph  *g;
    weft_tensor *loss, *outputs[8]; /* the loss, gradients of what is trained and of x; NULL ends */
    int32_t      n;
    float        x[ROWS * WIDTH];
    int32_t      label[ROWS];
    float        scale[ROWS];
} head;

typedef enum head_kind { PLAIN, TIED, SMOOTHED, IGNORING, SCALED, BF16, WEIGHTED } head_kind;

static weft_tensor *logits_of(head *h, weft_tensor *x, head_kind kind) {
    weft_tensor *embedding = weft_parameter(h->g, "embedding", weft_shape(CLASSES, WIDTH));
    if (kind == TIED) return weft_linear(x, "head", .weight = embedding);
    weft_tensor *logits = weft_linear(x, "head", .out = CLASSES, .no_bias = kind == BF16);
    return kind == SCALED ? weft_mul_scalar(weft_tanh(weft_mul_scalar(logits, 0.5)), 2) : logits;
}

static head *open_head(head_kind kind) {
    head *h = calloc(1, sizeof *h);
    h->world = world_open(WEFTI_CPU_AUTO);
    h->g = graph_new(3);
    weft_tensor *x = weft_parameter(h->g, "x", weft_shape(B, T, WIDTH)), *label = weft_input(h->g, "label", WEFT_I32, weft_shape(B, T));
    weft_tensor *in = weft_mul_scalar(x, 3);
    if (kind == BF16) in = weft_cast(in, WEFT_BF16);
    weft_tensor *logits = logits_of(h, in, kind);
    switch (kind) {
    case SMOOTHED: h->loss = weft_cross_entropy(logits, label, .smoothing = 0.1); break;
    case IGNORING: h->loss = weft_cross_entropy(logits, label, .ignore = true, .ignored = 7); break;
    case WEIGHTED:
        h->loss = weft_mean(weft_mul(weft_cross_entropy(logits, label, .reduction = WEFT_NONE), weft_input(h->g, "scale", WEFT_F32, weft_shape(B, T))));
        break;
    default: h->loss = weft_cross_entropy(logits, label); break;
    }
    weft_tensor *wrt[6], *grad[6];
    int32_t      n = 0;
    for (int32_t i = 0; i < weft_graph_parameter_count(h->g); i++) wrt[n++] = weft_graph_parameter(h->g, i);
    OK(weft_graph_check(h->g));
    OK(weft_gradients(h->loss, wrt, n, grad));
    h->outputs[0] = h->loss;
    for (int32_t i = 0; i < n; i++) h->outputs[i + 1] = grad[i];
    h->n = n + 1;
    fill(h->scale, ROWS, 9);
    for (int i = 0; i < ROWS; i++) h->label[i] = i % 5 == 1 ? 7 : (i * 131) % CLASSES;
    return h;
}

static void close_head(head *h) {
    weft_graph_release(h->g);
    world_close(h->world);
    free(h);
}

static weft_plan *run_head(head *h, int64_t rows) {
    weft_plan *plan = plan_of(h->world, h->g, true, (weft_plan_options){.loss_chunk_rows = rows}, h->outputs);
    weft_feed  feeds[] = {{"label", WEFT_I32, weft_shape(B, T), h->label}, {"scale", WEFT_F32, weft_shape(B, T), h->scale}};
    bool       scaled = weft_graph_find(h->g, "scale") != NULL;
    OK(weft_plan_run(plan, feeds, scaled ? 2 : 1));
    OK(weft_plan_run(plan, feeds, scaled ? 2 : 1));
    return plan;
}

/* The largest difference of two outputs, over the largest value. */
static double differ(const weft_plan *a, const weft_plan *b, int32_t output) {
    weft_plan_value va, vb;
    OK(weft_plan_output(a, output, &va));
    OK(weft_plan_output(b, output, &vb));
    cr_assert_eq(va.bytes, vb.bytes);
    cr_assert_eq(va.dtype, WEFT_F32);
    double most = 0, large = 1e-30;
    for (int64_t i = 0; i < va.bytes / 4; i++) {
        double x = ((const float *)va.data)[i], y = ((const float *)vb.data)[i];
        cr_assert(isfinite(x) && isfinite(y));
        most = fmax(most, fabs(x - y));
        large = fmax(large, fabs(y));
    }
    return most / large;
}

static int64_t largest_value(const weft_plan *plan) {
    int64_t most = 0;
    for (int32_t k = 0; k < plan->ir.n_order; k++) {
        const wefti_item *item = &plan->ir.items[plan->ir.order[k]];
        for (int32_t o = 0; o < item->n_outputs; o++) most = wefti_max_i64(most, wefti_value_elements(&plan->ir.values[item->outputs[o]]));
    }
    return most;
}

static void compare(head_kind kind, double tolerance) {
    head      *h = open_head(kind);
    weft_plan *whole = run_head(h, -1), *chunks = run_head(h, 64);
    cr_assert_eq(count_ops(whole, WEFT_OP_CROSS_ENTROPY), 1);
    cr_assert_eq(count_ops(chunks, WEFT_OP_CROSS_ENTROPY), 4, "%d chunks", count_ops(chunks, WEFT_OP_CROSS_ENTROPY));
    cr_assert_eq(count_ops(chunks, WEFT_OP_CROSS_ENTROPY_BACKWARD), 4);
    for (int32_t i = 0; i < h->n; i++) cr_assert_lt(differ(chunks, whole, i), tolerance, "kind %d, output %d: %g", kind, i, differ(chunks, whole, i));
    /* 56 rows of logits and their gradient, where there were 201, and two sums of gradients. */
    weft_plan_totals c, w;
    weft_plan_totals_read(chunks, &c);
    weft_plan_totals_read(whole, &w);
    cr_assert_leq(largest_value(chunks), 56 * CLASSES);
    cr_assert_geq(largest_value(whole), ROWS * CLASSES);
    cr_assert_lt(c.arena_bytes, w.arena_bytes * 2 / 3, "%lld bytes, %lld whole", (long long)c.arena_bytes, (long long)w.arena_bytes);
    cr_assert_float_eq(c.flops, w.flops, 0.01 * w.flops, "%g FLOP, %g whole", c.flops, w.flops);
    cr_assert_eq(c.graph_ops, w.graph_ops);
    const char *text;
    OK(weft_plan_describe(chunks, &text));
    cr_assert(strstr(text, "1 losses over 4099 classes, with the products around them, are computed by 4 chunks of 56 rows"), "%s", text);
    weft_plan_release(whole);
    weft_plan_release(chunks);
    close_head(h);
}

Test(plan_chunk, gives_what_all_rows_at_once_give) {
    compare(PLAIN, 2e-6);
    compare(TIED, 2e-6);
    compare(SMOOTHED, 2e-6);
    compare(IGNORING, 2e-6);
    compare(SCALED, 2e-6);
    compare(WEIGHTED, 2e-6);
    compare(BF16, 1.2e-2);
}

Test(plan_chunk, losses_and_gradients_of_rows_keep_their_bits) {
    head        *h = open_head(PLAIN);
    weft_tensor *wrt = weft_graph_find(h->g, "x"), *grad, *label = weft_graph_find(h->g, "label");
    weft_tensor *rows = weft_cross_entropy(weft_linear(wrt, "other", .out = 8192), label, .reduction = WEFT_NONE);
    OK(weft_gradients(weft_sum(rows), &wrt, 1, &grad));
    weft_tensor *outputs[] = {rows, grad, NULL};
    weft_feed    feed = {"label", WEFT_I32, weft_shape(B, T), h->label};
    weft_plan   *whole = plan_of(h->world, h->g, true, (weft_plan_options){.loss_chunk_rows = -1}, outputs);
    weft_plan   *chunks = plan_of(h->world, h->g, true, (weft_plan_options){.loss_chunk_rows = 64}, outputs);
    OK(weft_plan_run(whole, &feed, 1));
    OK(weft_plan_run(chunks, &feed, 1));
    cr_assert_eq(count_ops(chunks, WEFT_OP_CROSS_ENTROPY), 4);
    weft_plan_value a, b;
    OK(weft_plan_output(whole, 0, &a));
    OK(weft_plan_output(chunks, 0, &b));
    cr_assert_eq(memcmp(a.data, b.data, (size_t)a.bytes), 0, "losses of rows");
    OK(weft_plan_output(whole, 1, &a));
    OK(weft_plan_output(chunks, 1, &b));
    cr_assert_eq(memcmp(a.data, b.data, (size_t)a.bytes), 0, "gradients of rows");
    weft_plan_release(whole);
    weft_plan_release(chunks);
    close_head(h);
}

/* Evaluation: the loss alone, and how many rows are right. */
Test(plan_chunk, counts_hits_by_chunks_when_evaluating) {
    weft_world  *world = world_open(WEFTI_CPU_AUTO);
    weft_graph  *g = graph_new(4);
    weft_tensor *x = weft_parameter(g, "x", weft_shape(B, T, WIDTH)), *label = weft_input(g, "label", WEFT_I32, weft_shape(B, T));
    weft_tensor *logits = weft_linear(x, "head", .out = CLASSES);
    weft_tensor *right = weft_sum(weft_cast(weft_eq(weft_cast(weft_argmax(logits, -1), WEFT_I32), label), WEFT_F32));
    weft_tensor *outputs[] = {weft_cross_entropy(logits, label), right, NULL};
    int32_t      labels[ROWS];
    for (int i = 0; i < ROWS; i++) labels[i] = i % CLASSES;
    weft_feed  feed = {"label", WEFT_I32, weft_shape(B, T), labels};
    weft_plan *whole = plan_of(world, g, false, (weft_plan_options){.loss_chunk_rows = -1}, outputs);
    weft_plan *chunks = plan_of(world, g, false, (weft_plan_options){.loss_chunk_rows = 100}, outputs);
    OK(weft_plan_run(whole, &feed, 1));
    OK(weft_plan_run(chunks, &feed, 1));
    cr_assert_eq(count_ops(chunks, WEFT_OP_ARGMAX), 3);
    for (int32_t i = 0; i < 2; i++) {
        float a, b;
        OK(weft_plan_fetch(whole, i, &a, sizeof a));
        OK(weft_plan_fetch(chunks, i, &b, sizeof b));
        cr_assert_eq(a, b);
    }
    weft_plan_release(whole);
    weft_plan_release(chunks);
    weft_graph_release(g);
    world_close(world);
}

static void stays_whole(weft_graph *g, weft_world *world, weft_tensor *const *outputs, const char *why) {
    weft_plan  *plan = plan_of(world, g, true, (weft_plan_options){.loss_chunk_rows = 64}, outputs);
    const char *text;
    cr_assert_eq(count_ops(plan, WEFT_OP_CROSS_ENTROPY), 1);
    OK(weft_plan_describe(plan, &text));
    cr_assert(strstr(text, why), "'%s' is not in\n%s", why, text);
    weft_plan_release(plan);
}

Test(plan_chunk, says_why_where_it_cannot_be) {
    weft_world  *world = world_open(WEFTI_CPU_AUTO);
    weft_graph  *g = graph_new(4);
    weft_tensor *x = weft_parameter(g, "x", weft_shape(B, T, WIDTH)), *label = weft_input(g, "label", WEFT_I32, weft_shape(B, T));
    weft_tensor *logits = weft_linear(x, "head", .out = CLASSES), *loss = weft_cross_entropy(logits, label), *grad;
    stays_whole(g, world, LIST(loss, logits), "an output of the plan needs them whole");
    stays_whole(g, world, LIST(loss, weft_sum(weft_softmax(logits, -1))), "softmax '");
    stays_whole(g, world, LIST(weft_cross_entropy(weft_parameter(g, "free", weft_shape(B, T, CLASSES)), label)),
                "no product of two matrices makes its logits");
    OK(weft_gradients(weft_square(loss), &x, 1, &grad));
    stays_whole(g, world, LIST(loss, grad), "its gradient depends on its value");
    weft_plan *plan;
    FAILS(WEFT_E_INVALID, weft_plan_create(world, g, &(weft_plan_options){.loss_chunk_rows = -2}, &plan), "loss_chunk_rows is -2");
    weft_graph_release(g);
    world_close(world);
}

Test(plan_chunk, runs_without_rows) {
    weft_world  *world = world_open(WEFTI_CPU_AUTO);
    weft_graph  *g = graph_new(4);
    weft_tensor *x = weft_input(g, "x", WEFT_F32, weft_shape(0, WIDTH)), *label = weft_input(g, "label", WEFT_I64, weft_shape(0));
    weft_tensor *w = weft_parameter(g, "w", weft_shape(CLASSES, WIDTH)), *grad;
    weft_tensor *loss = weft_cross_entropy(weft_linear(x, "head", .weight = w), label, .reduction = WEFT_SUM);
    OK(weft_gradients(loss, &w, 1, &grad));
    weft_plan *plan = plan_of(world, g, true, (weft_plan_options){.loss_chunk_rows = 64}, LIST(loss, grad));
    weft_feed  feeds[] = {{"x", WEFT_F32, weft_shape(0, WIDTH), NULL}, {"label", WEFT_I64, weft_shape(0), NULL}};
    float      value = 1, *gradient = calloc(CLASSES * WIDTH, sizeof *gradient);
    OK(weft_plan_run(plan, feeds, 2));
    OK(weft_plan_fetch(plan, 0, &value, sizeof value));
    OK(weft_plan_fetch(plan, 1, gradient, CLASSES * WIDTH * sizeof *gradient));
    cr_assert_eq(value, 0);
    for (int i = 0; i < CLASSES * WIDTH; i++) cr_assert_eq(gradient[i], 0);
    free(gradient);
    weft_plan_release(plan);
    weft_graph_release(g);
    world_close(world);
}

/* Products with what follows them, as plans find them: in an MLP and in a block of a GPT, forward and backward, with the CPU's results; and not where
 * somebody else wants what stands in between. On stand-ins. */
#include <stdlib.h>

#include "cuda_host/control.h"
#include "plan/support.h"
#include "weft/world.h"

enum { ROWS = 12, IN = 16, HIDDEN = 24, TOKENS = 8, WIDTH = 16 };

/* A world of one rank on either device. */
static weft_world *open_world(const char *device) {
    weft_world *world = NULL;
    wefti_cuda_host_reset(&(wefti_cuda_host_options){.seed = 3});
    OK(weft_world_create(&(weft_world_options){.size = 1, .device = device, .threads = {.count = 1}}, &world));
    return world;
}

/* How many products have this instruction behind them; COUNT: sums of what they multiply; FUSED: sums of what they give. */
static int32_t products_with(const weft_plan *plan, weft_op op) {
    int32_t n = 0;
    for (int32_t k = 0; k < plan->ir.n_order; k++) {
        const wefti_item  *item = &plan->ir.items[plan->ir.order[k]];
        const wefti_fused *fused = item->op == WEFT_OP_FUSED_MATMUL ? item->attrs->matmul.fused : NULL;
        if (item->op == WEFT_OP_FUSED_MATMUL && op == WEFT_OP_COUNT) n += item->attrs->matmul.sums != 0;
        for (int32_t j = 0; fused && j < fused->n_instructions; j++) n += fused->instruction[j].op == op;
        for (int32_t o = 0; fused && o < fused->n_outputs; o++) n += op == WEFT_OP_FUSED && fused->output[o].reduce >= 0;
    }
    return n;
}

/* Builds a loss over input x and gives what is to be fetched besides; at most 8, NULL behind the last. */
typedef weft_tensor *(*builder)(weft_graph *g, weft_tensor *x, weft_tensor **more_out);

typedef struct outcome {
    float   values[9 * 1024];
    int64_t n;
    int32_t plain, fused, adds, relus, gelus, slopes, operand_sums, result_sums;
    char    words[1 << 16];
} outcome;

static void look(weft_plan *plan, outcome *out) {
    const char *words;
    out->plain = count_ops(plan, WEFT_OP_MATMUL);
    out->fused = count_ops(plan, WEFT_OP_FUSED_MATMUL);
    out->adds = products_with(plan, WEFT_OP_ADD);
    out->relus = products_with(plan, WEFT_OP_RELU);
    out->gelus = products_with(plan, WEFT_OP_GELU_TANH);
    out->slopes = products_with(plan, WEFT_OP_GELU_TANH_BACKWARD);
    out->operand_sums = products_with(plan, WEFT_OP_COUNT);
    out->result_sums = products_with(plan, WEFT_OP_FUSED);
    OK(weft_plan_describe(plan, &words));
    snprintf(out->words, sizeof out->words, "%s", words);
}

/* Runs twice: variables stay as they are, so the values must, too. */
static void plan_and_run(const char *device, builder build, weft_shape shape, weft_plan_options options, outcome *out) {
    weft_world  *world = open_world(device);
    weft_graph  *g = graph_new(11);
    float        x[4096];
    weft_tensor *outputs[10] = {build(g, weft_input(g, "x", WEFT_F32, shape), outputs + 1)};
    weft_plan   *plan = plan_of(world, g, true, options, outputs);
    int64_t      bytes = 0;
    fill(x, weft_shape_elements(shape), 5);
    memset(out, 0, sizeof *out);
    look(plan, out);
    for (int run = 0; run < 2; run++) {
        OK(weft_plan_run(plan, &(weft_feed){"x", WEFT_F32, shape, x}, 1));
        float again[1024];
        for (int32_t i = 0; outputs[i]; i++) {
            int64_t n = weft_shape_elements(outputs[i]->shape);
            cr_assert(n <= 1024 && outputs[i]->dtype == WEFT_F32);
            OK(weft_plan_fetch(plan, i, run ? again : out->values + out->n, (size_t)n * sizeof(float)));
            if (run) cr_assert_arr_eq(again, out->values + bytes, (size_t)n * sizeof(float), "output %d differs from run to run", i);
            if (run) bytes += n;
            else out->n += n;
        }
    }
    weft_plan_release(plan);
    weft_graph_release(g);
    weft_world_release(world);
}

/* The same on both devices: `tolerance` of the largest value. */
static void agree(builder build, weft_shape shape, double tolerance, outcome *out) {
    static outcome cpu;
    plan_and_run("cpu", build, shape, (weft_plan_options){0}, &cpu);
    plan_and_run("cuda", build, shape, (weft_plan_options){0}, out);
    cr_assert_eq(cpu.fused, 0);
    cr_assert_eq(cpu.n, out->n);
    double largest = 0;
    for (int64_t i = 0; i < cpu.n; i++) largest = fmax(largest, fabs((double)cpu.values[i]));
    for (int64_t i = 0; i < cpu.n; i++)
        cr_assert(fabs((double)(cpu.values[i] - out->values[i])) <= tolerance * largest, "value %lld is %g, not %g", (long long)i, (double)out->values[i],
                  (double)cpu.values[i]);
}

/* Gradients of all parameters, as f32. */
static void all_gradients(weft_graph *g, weft_tensor *loss, weft_tensor **more_out) {
    weft_tensor *parameters[8], *gradients[8];
    int32_t      n = 0;
    for (int32_t i = 0; i < g->n_leaves && n < 8; i++)
        if (g->leaves[i]->op == WEFT_OP_PARAMETER) parameters[n++] = &g->leaves[i]->outputs[0];
    OK(weft_gradients(loss, parameters, n, gradients));
    for (int32_t i = 0; i < n; i++) more_out[i] = gradients[i];
    more_out[n] = NULL;
}

/* In f32, whatever they are computed in. */
static void wide_gradients(weft_graph *g, weft_tensor *loss, weft_tensor **more_out) {
    all_gradients(g, loss, more_out);
    for (int32_t i = 0; more_out[i]; i++) more_out[i] = weft_cast(more_out[i], WEFT_F32);
}

/* --- where they are --- */

static weft_tensor *mlp(weft_graph *g, weft_tensor *x, weft_tensor **more_out) {
    weft_tensor *h = weft_relu(weft_linear(x, "first", .out = HIDDEN));
    weft_tensor *y = weft_add(x, weft_linear(h, "second", .out = IN));
    weft_tensor *loss = weft_mean(weft_square(y));
    all_gradients(g, loss, more_out);
    return loss;
}
Test(cuda_epilogues, are_found_in_an_mlp) {
    static outcome o;
    agree(mlp, weft_shape(ROWS, IN), 1e-5, &o);
    cr_assert(o.adds == 3 && o.relus == 1, "%s", o.words); /* two biases, one residual */
    cr_assert_eq(o.operand_sums, 1, "%s", o.words); /* of the first bias; the second's is summed before it is multiplied */
    cr_assert_eq(o.fused, 3, "%s", o.words);
    cr_assert(strstr(o.words, "3 products are computed with what follows them"), "%s", o.words);
}

static weft_tensor *block_in(weft_graph *g, weft_tensor *x, weft_dtype dtype, weft_tensor **more_out) {
    x = weft_cast(x, dtype);
    weft_tensor *h = weft_gelu_tanh(weft_linear(weft_layer_norm(x, "norm"), "up", .out = 4 * WIDTH));
    x = weft_add(x, weft_linear(h, "down", .out = WIDTH));
    weft_tensor *loss = weft_mean(weft_square(weft_cast(x, WEFT_F32)));
    wide_gradients(g, loss, more_out);
    return loss;
}
static weft_tensor *block_bf16(weft_graph *g, weft_tensor *x, weft_tensor **more_out) { return block_in(g, x, WEFT_BF16, more_out); }
static weft_tensor *block_f32(weft_graph *g, weft_tensor *x, weft_tensor **more_out) { return block_in(g, x, WEFT_F32, more_out); }
Test(cuda_epilogues, are_found_in_a_block_of_a_gpt) {
    static outcome o;
    agree(block_bf16, weft_shape(2, TOKENS, WIDTH), 0.02, &o);
    cr_assert(o.adds == 3 && o.gelus == 1 && o.slopes == 1, "%s", o.words);
    cr_assert_eq(o.operand_sums, 2, "%s", o.words);
}

/* Its tanh would be less accurate than f32's; the biases and the residual are taken all the same. */
Test(cuda_epilogues, leave_gelu_alone_in_f32) {
    static outcome o;
    agree(block_f32, weft_shape(2, TOKENS, WIDTH), 1e-5, &o);
    cr_assert(o.adds == 3 && o.gelus == 0 && o.slopes == 0, "%s", o.words);
}

/* Where programs are compiled, sums over rows are made with what they sum. */
Test(cuda_epilogues, sum_the_gradient_of_gelu) {
    static outcome o;
    setenv("WEFT_CUDA_NVRTC", "1", 1);
    agree(block_bf16, weft_shape(2, TOKENS, WIDTH), 0.02, &o);
    cr_assert(o.slopes == 1 && o.result_sums == 1, "%s", o.words);
}

static weft_tensor *block_of_seven(weft_graph *g, weft_tensor *x, weft_tensor **more_out) {
    x = weft_cast(x, WEFT_BF16);
    weft_tensor *loss = weft_mean(weft_square(weft_cast(weft_gelu_tanh(weft_linear(x, "odd", .out = 7)), WEFT_F32)));
    wide_gradients(g, loss, more_out);
    return loss;
}
Test(cuda_epilogues, keep_to_what_the_library_takes) {
    static outcome o;
    agree(block_of_seven, weft_shape(ROWS, IN), 0.02, &o);
    cr_assert(o.adds == 1 && o.gelus == 0, "%s", o.words);
}

/* --- and where they are not --- */

static weft_tensor *product_is_fetched(weft_graph *g, weft_tensor *x, weft_tensor **more_out) {
    weft_tensor *product = weft_matmul(x, weft_parameter(g, "w", weft_shape(IN, HIDDEN)));
    more_out[0] = product;
    more_out[1] = NULL;
    return weft_add(product, weft_parameter(g, "b", weft_shape(HIDDEN)));
}
static weft_tensor *product_is_read_twice(weft_graph *g, weft_tensor *x, weft_tensor **more_out) {
    weft_tensor *product = weft_matmul(x, weft_parameter(g, "w", weft_shape(IN, HIDDEN)));
    more_out[0] = weft_add(product, weft_parameter(g, "b", weft_shape(HIDDEN)));
    more_out[1] = NULL;
    return weft_softmax(product, 1);
}
static weft_tensor *sum_is_fetched(weft_graph *g, weft_tensor *x, weft_tensor **more_out) {
    weft_tensor *biased = weft_add(weft_matmul(x, weft_parameter(g, "w", weft_shape(IN, HIDDEN))), weft_parameter(g, "b", weft_shape(HIDDEN)));
    more_out[0] = biased;
    more_out[1] = NULL;
    return weft_relu(biased);
}
static weft_tensor *is_turned(weft_graph *g, weft_tensor *x, weft_tensor **more_out) {
    weft_tensor *product = weft_matmul(x, weft_parameter(g, "w", weft_shape(IN, HIDDEN)));
    more_out[0] = NULL;
    return weft_add(weft_permute(product, weft_axes(1, 0)), weft_parameter(g, "b", weft_shape(ROWS)));
}
static weft_tensor *is_scaled(weft_graph *g, weft_tensor *x, weft_tensor **more_out) {
    more_out[0] = NULL;
    return weft_mul_scalar(weft_matmul(x, weft_parameter(g, "w", weft_shape(IN, HIDDEN))), 0.3);
}
Test(cuda_epilogues, leave_what_others_want) {
    static outcome o;
    agree(product_is_fetched, weft_shape(ROWS, IN), 1e-5, &o);
    cr_assert_eq(o.fused, 0, "%s", o.words);
    agree(product_is_read_twice, weft_shape(ROWS, IN), 1e-5, &o);
    cr_assert_eq(o.fused, 0, "%s", o.words);
    agree(sum_is_fetched, weft_shape(ROWS, IN), 1e-5, &o);
    cr_assert(o.adds == 1 && o.relus == 0, "%s", o.words);
    agree(is_turned, weft_shape(ROWS, IN), 1e-5, &o);
    cr_assert_eq(o.fused, 0, "%s", o.words);
    agree(is_scaled, weft_shape(ROWS, IN), 1e-5, &o);
    cr_assert(o.fused == 0 && strstr(o.words, "is computed by itself") && strstr(o.words, "no bias, residual, relu or gelu_tanh"), "%s", o.words);
}

Test(cuda_epilogues, are_left_where_nothing_is_fused) {
    static outcome o;
    plan_and_run("cuda", mlp, weft_shape(ROWS, IN), (weft_plan_options){.no_fusion = true}, &o);
    cr_assert_eq(o.fused, 0);
}

Test(cuda_epilogues, are_left_where_the_environment_says_so) {
    static outcome o;
    setenv("WEFT_CUDA_EPILOGUE", "0", 1);
    agree(mlp, weft_shape(ROWS, IN), 1e-5, &o);
    cr_assert(o.fused == 0 && strstr(o.words, "WEFT_CUDA_EPILOGUE=0"), "%s", o.words);
}

Test(cuda_epilogues, are_left_without_the_library) {
    static outcome o;
    setenv("WEFT_CUDA_BLAS", "0", 1);
    agree(mlp, weft_shape(ROWS, IN), 1e-5, &o);
    cr_assert(o.fused == 0 && strstr(o.words, "is computed by itself"), "%s", o.words);
}

/* The variable that a product reads is overwritten before what follows it: it stays where it is. */
static weft_tensor *weight_is_overwritten(weft_graph *g, weft_tensor *x, weft_tensor **more_out) {
    weft_tensor *w = weft_state(g, "w", weft_shape(IN, HIDDEN)), *product = weft_matmul(x, w);
    weft_tensor *next = weft_assign(w, weft_mul_scalar(w, 0.5));
    more_out[0] = NULL;
    return weft_add(product, weft_sum(next, .axes = weft_axes(0)));
}
Test(cuda_epilogues, come_before_a_weight_is_overwritten) {
    static outcome o;
    agree(weight_is_overwritten, weft_shape(ROWS, IN), 1e-5, &o);
    cr_assert_eq(o.fused, 0, "%s", o.words);
}

/* Each half in a segment of its own: what is computed again is not mixed with what was. */
static weft_tensor *recomputed(weft_graph *g, weft_tensor *x, weft_tensor **more_out) {
    x = weft_cast(x, WEFT_BF16);
    weft_recompute_begin(g);
    weft_tensor *h = weft_linear(weft_gelu_tanh(weft_linear(x, "up", .out = 4 * WIDTH)), "down", .out = WIDTH);
    weft_recompute_end(g);
    weft_tensor *loss = weft_mean(weft_square(weft_cast(weft_add(x, h), WEFT_F32)));
    wide_gradients(g, loss, more_out);
    return loss;
}
Test(cuda_epilogues, are_found_in_what_is_computed_again) {
    static outcome o;
    agree(recomputed, weft_shape(ROWS, WIDTH), 0.02, &o);
    cr_assert(o.gelus == 2 && o.slopes == 1, "%s", o.words); /* forward, and again */
}

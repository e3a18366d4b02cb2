/* Mixed precision as a strategy: the same program in bf16 and f16 learns as it does in f32, with f32 parameters; what must stay wide does;
 * f16 finds the scale of its loss. One rank, in process. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/files.h"
#include "train/session.h"

enum { ROWS = 32, CLASSES = 4, PIXELS = 2 * 8 * 8, CONTEXT = 12, LETTERS = 11, MOST = 60 };

static float   image[ROWS * PIXELS], goal[ROWS];
static int32_t label[ROWS], letters[ROWS * CONTEXT], following[ROWS * CONTEXT];

static void make_data(void) {
    unsigned state = 99;
    for (int i = 0; i < ROWS; i++) {
        label[i] = i % CLASSES;
        goal[i] = 1000 + (float)(i % 5) / 8; /* differences that bf16 cannot hold */
        for (int k = 0; k < PIXELS; k++) {
            state = state * 1664525u + 1013904223u;
            image[i * PIXELS + k] = (float)(state >> 8) / 8388608.0f - 1 + 0.5f * (float)(k % CLASSES == label[i]);
        }
        for (int t = 0; t < CONTEXT; t++) {
            letters[i * CONTEXT + t] = (i + t * t) % LETTERS;
            following[i * CONTEXT + t] = (i + (t + 1) * (t + 1)) % LETTERS;
        }
    }
}

static void open_session(session *s) {
    make_data();
    begin_session(s, ROWS, (weft_graph_options){.seed = 5});
}

/* The networks. */
static weft_tensor *dense(session *s) {
    weft_tensor *x = weft_flatten(fed(s, "image", WEFT_F32, weft_shape(ROWS, 2, 8, 8), image));
    x = weft_gelu(weft_linear(x, "hidden", .out = 32));
    return weft_cross_entropy(weft_linear(x, "head", .out = CLASSES), fed(s, "label", WEFT_I32, weft_shape(ROWS), label));
}
static weft_tensor *convolutional(session *s) {
    weft_tensor *x = fed(s, "image", WEFT_F32, weft_shape(ROWS, 2, 8, 8), image);
    x = weft_relu(weft_batch_norm(weft_conv2d(x, "conv", .filters = 8, .kernel = 3, .pad = 1), "norm"));
    x = weft_dropout(weft_flatten(weft_max_pool2d(x, .window = 2)), 0.1);
    return weft_cross_entropy(weft_linear(x, "head", .out = CLASSES), fed(s, "label", WEFT_I32, weft_shape(ROWS), label), .smoothing = 0.05);
}
static weft_tensor *transformer(session *s) {
    weft_tensor *tokens = fed(s, "tokens", WEFT_I32, weft_shape(ROWS, CONTEXT), letters);
    weft_tensor *x = weft_embedding(tokens, "in", .count = LETTERS, .size = 16);
    weft_recompute_begin(s->graph);
    x = weft_add(x, weft_self_attention(weft_layer_norm(x, "norm1"), "attention", .heads = 2, .causal = true));
    x = weft_add(x, weft_linear(weft_gelu_tanh(weft_linear(weft_layer_norm(x, "norm2"), "up", .out = 64)), "down", .out = 16));
    weft_recompute_end(s->graph);
    weft_tensor *logits = weft_linear(weft_layer_norm(x, "norm"), "head", .out = LETTERS);
    return weft_cross_entropy(logits, fed(s, "following", WEFT_I32, weft_shape(ROWS, CONTEXT), following));
}

/* Four layers, of which the two in the middle may be of 8-bit floats. */
static weft_tensor *deep(session *s) {
    weft_tensor *x = weft_flatten(fed(s, "image", WEFT_F32, weft_shape(ROWS, 2, 8, 8), image));
    x = weft_gelu(weft_linear(x, "in", .out = 64));
    x = weft_gelu(weft_linear(x, "hidden1", .out = 48));
    x = weft_gelu(weft_linear(x, "hidden2", .out = 32));
    return weft_cross_entropy(weft_linear(x, "head", .out = CLASSES), fed(s, "label", WEFT_I32, weft_shape(ROWS), label));
}

static void create(session *s, weft_tensor *loss, weft_strategy strategy, double clip) {
    weft_program program = {.loss = loss, .solver = weft_adamw(0.01, .clip_norm = clip), .strategy = strategy, .profile = true};
    begin_training(s, &program);
}

static void learns_alike(weft_tensor *(*network)(session *), weft_strategy strategy, double tolerance) {
    double  loss[2][MOST];
    session s;
    for (int low = 0; low < 2; low++) {
        open_session(&s);
        create(&s, network(&s), low ? strategy : (weft_strategy){0}, 1);
        train(&s, MOST, loss[low]);
        for (int32_t i = 0; i < weft_variables_count(weft_trainer_variables(s.trainer)); i++) {
            weft_variable_info info;
            cr_assert_eq(weft_variables_info(weft_trainer_variables(s.trainer), i, &info), WEFT_OK);
            cr_assert_eq(info.dtype, WEFT_F32, "'%s' is %s", info.name, weft_dtype_name(info.dtype));
        }
        close_session(&s);
    }
    cr_assert_lt(loss[0][MOST - 1], 0.6 * loss[0][0], "f32 itself does not learn: %g to %g", loss[0][0], loss[0][MOST - 1]);
    bool same = true;
    for (int i = 0; i < MOST; i++) {
        double off = fabs(loss[0][i] - loss[1][i]) / loss[0][0];
        cr_assert_leq(off, tolerance, "step %d: loss %g in f32 and %g in %s", i, loss[0][i], loss[1][i], weft_dtype_name(strategy.precision));
        same &= loss[0][i] == loss[1][i];
    }
    cr_assert_not(same, "nothing was computed in %s", weft_dtype_name(strategy.precision));
}

Test(precision, a_dense_network_learns_in_bf16) { learns_alike(dense, (weft_strategy){.precision = WEFT_BF16}, 0.02); }
Test(precision, a_dense_network_learns_in_f16) { learns_alike(dense, (weft_strategy){.precision = WEFT_F16}, 0.005); }
Test(precision, a_convolutional_network_learns_in_bf16) { learns_alike(convolutional, (weft_strategy){.precision = WEFT_BF16}, 0.03); }
Test(precision, a_convolutional_network_learns_in_f16) { learns_alike(convolutional, (weft_strategy){.precision = WEFT_F16}, 0.01); }
Test(precision, a_transformer_learns_in_bf16) { learns_alike(transformer, (weft_strategy){.precision = WEFT_BF16}, 0.03); }
Test(precision, a_transformer_learns_in_f16) { learns_alike(transformer, (weft_strategy){.precision = WEFT_F16}, 0.01); }
Test(precision, micro_batches_are_added_up_in_f32) {
    learns_alike(dense, (weft_strategy){.precision = WEFT_BF16, .accumulate = 4}, 0.02);
}

/* Bytes that the plan's operation `op` called `name` reads and writes, from the plan's description. */
static void bytes_of(const char *text, const char *op, const char *name, long long *reads_out, long long *writes_out) {
    for (const char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        char      found_op[64], found_name[128];
        double    flops;
        long long segment, count, scratch_bytes, sent_bytes;
        if (sscanf(line, "%lld %63s %lld %lf %lld %lld %lld %lld %127s", &segment, found_op, &count, &flops, reads_out, writes_out, &scratch_bytes,
                   &sent_bytes, found_name) == 9 && strcmp(found_op, op) == 0 && strcmp(found_name, name) == 0)
            return;
    }
    cr_assert_fail("there is no %s '%s' in %s", op, name, text);
}

static void describes(session *s, const char *word) {
    const char *text = NULL;
    cr_assert_eq(weft_plan_describe(weft_trainer_plan(s->trainer), &text), WEFT_OK, "%s", weft_error_message());
    cr_assert_not_null(strstr(text, word), "'%s' is not in %s", word, text);
}

/* --- 8-bit floats --- */

static const weft_strategy fp8 = {.precision = WEFT_BF16, .fp8 = true};

Test(precision_fp8, a_deep_network_learns) { learns_alike(deep, fp8, 0.04); }
Test(precision_fp8, a_transformer_learns) { learns_alike(transformer, fp8, 0.06); }
Test(precision_fp8, learns_with_micro_batches) {
    weft_strategy accumulated = fp8;
    accumulated.accumulate = 4;
    learns_alike(deep, accumulated, 0.04);
}

/* Of a layer: the product, and those of two gradients. Each matrix is cast once: x, w and the gradient of two layers. */
Test(precision_fp8, leaves_the_first_layer_and_the_last) {
    session     s;
    const char *text = NULL;
    int         casts = 0;
    open_session(&s);
    create(&s, deep(&s), fp8, 0);
    describes(&s, "\n6 products in 8-bit floats\n");
    cr_assert_eq(weft_plan_describe(weft_trainer_plan(s.trainer), &text), WEFT_OK);
    for (const char *at = text; (at = strstr(at, "  fp8_cast")) != NULL; at++) casts++;
    cr_assert_eq(casts, 6, "%d casts in %s", casts, text);
    cr_assert_null(strstr(text, "products not in"));
    long long reads, writes;
    bytes_of(text, "matmul", "in", &reads, &writes);
    bytes_of(text, "matmul", "head", &reads, &writes);
    bytes_of(text, "fp8_matmul", "hidden1", &reads, &writes);
    cr_assert_eq(reads, ROWS * 64 + 48 * 64 + 8, "codes and scales, not %lld", reads);
    cr_assert_eq(writes, ROWS * 48 * 2);
    close_session(&s);
    open_session(&s);
    create(&s, dense(&s), fp8, 0); /* has no others */
    cr_assert_eq(weft_plan_describe(weft_trainer_plan(s.trainer), &text), WEFT_OK);
    cr_assert_null(strstr(text, "8-bit"));
    close_session(&s);
}

/* Runs are the same to the bit, and go on so from a checkpoint: there is no state in the scales. */
Test(precision_fp8, goes_on_to_the_same_bits) {
    const char *path = scratch("fp8.safetensors");
    double      straight[10], resumed[10];
    session     s;
    open_session(&s);
    create(&s, transformer(&s), fp8, 1);
    train(&s, 5, straight);
    cr_assert_eq(weft_trainer_save(s.trainer, path, NULL), WEFT_OK, "%s", weft_error_message());
    train(&s, 10, straight);
    close_session(&s);
    open_session(&s);
    create(&s, transformer(&s), fp8, 1);
    cr_assert_eq(weft_trainer_load(s.trainer, path, NULL), WEFT_OK, "%s", weft_error_message());
    train(&s, 10, resumed);
    close_session(&s);
    for (int i = 0; i < 10; i++) cr_assert_eq(straight[i], resumed[i], "step %d", i);
}

/* What is not finite comes out of a product as it went in. */
Test(precision_fp8, hides_no_overflow) {
    session     s;
    weft_report report = {0};
    open_session(&s);
    image[5] = INFINITY;
    create(&s, deep(&s), fp8, 0);
    weft_status status = weft_trainer_step(s.trainer, &s.batch, &report);
    if (status == WEFT_OK) status = weft_trainer_step(s.trainer, &s.batch, &report);
    cr_assert_eq(status, WEFT_E_NAN, "status %d, loss %g: %s", status, report.loss, weft_error_message());
    close_session(&s);
}

/* Products write bf16, and so does what lies between them; the loss is wide, and updates read and write f32. */
Test(precision, only_what_may_be_rounded_is) {
    session     s;
    const char *text = NULL;
    long long   reads, writes;
    open_session(&s);
    create(&s, convolutional(&s), (weft_strategy){.precision = WEFT_BF16}, 0);
    cr_assert_eq(weft_plan_describe(weft_trainer_plan(s.trainer), &text), WEFT_OK, "%s", weft_error_message());
    bytes_of(text, "conv2d", "conv", &reads, &writes);
    cr_assert_eq(writes, 2 * ROWS * 8 * 64);
    bytes_of(text, "matmul", "head", &reads, &writes);
    cr_assert_eq(writes, 2 * ROWS * CLASSES);
    bytes_of(text, "cross_entropy", "cross_entropy_66", &reads, &writes);
    cr_assert_eq(writes, 2 * 4 * ROWS, "loss and log-sum-exp");
    cr_assert_not_null(strstr(text, " update "));
    close_session(&s);
}

/* Targets near 1000 that differ by an eighth: rounded to bf16 they would all be the same, and the loss 0.03 at best. */
Test(precision, what_is_fed_in_is_not_rounded) {
    session s;
    double  loss[1500];
    open_session(&s);
    weft_tensor *x = weft_flatten(fed(&s, "image", WEFT_F32, weft_shape(ROWS, 2, 8, 8), image));
    weft_tensor *y = weft_linear(weft_tanh(weft_linear(x, "hidden", .out = 32)), "head", .out = 1, .no_bias = true);
    weft_tensor *target = fed(&s, "goal", WEFT_F32, weft_shape(ROWS, 1), goal);
    weft_tensor *off = weft_sub(y, weft_sub(target, weft_scalar(s.graph, WEFT_F32, 1000)));
    create(&s, weft_mean(weft_square(off)), (weft_strategy){.precision = WEFT_BF16}, 0);
    train(&s, 1500, loss);
    cr_assert_lt(loss[1499], 0.003, "the loss is %g", loss[1499]);
    close_session(&s);
}

static void read_weight(const session *s, float *values_out) {
    cr_assert_eq(weft_variables_get(weft_trainer_variables(s->trainer), "hidden.weight", values_out, 32 * PIXELS * sizeof(float)), WEFT_OK, "%s",
                 weft_error_message());
}

/* A loss of millions: at the first scales the gradients overflow f16. */
Test(precision, f16_skips_steps_until_its_scale_fits) {
    static float before[32 * PIXELS], after[32 * PIXELS];
    session      s;
    weft_report  report;
    int          skipped = 0, done = 0;
    open_session(&s);
    create(&s, weft_mul_scalar(dense(&s), 1e4), (weft_strategy){.precision = WEFT_F16}, 0);
    for (int i = 0; i < 40; i++) {
        read_weight(&s, before);
        cr_assert_eq(weft_trainer_step(s.trainer, &s.batch, &report), WEFT_OK, "%s", weft_error_message());
        read_weight(&s, after);
        cr_assert(isfinite(report.loss));
        cr_assert_eq(report.skipped, memcmp(before, after, sizeof before) == 0, "step %d", i);
        skipped += report.skipped;
        done += !report.skipped;
        if (report.skipped) cr_assert_eq(done, 0, "step %d was skipped after %d that were not", i, done);
    }
    cr_assert_gt(skipped, 3);
    cr_assert_gt(done, 10);
    close_session(&s);
}

/* A saved run knows its scale: it goes on without skipping, to the same bits. */
Test(precision, f16_goes_on_with_its_scale) {
    static float  straight[32 * PIXELS], resumed[32 * PIXELS];
    const char   *path = scratch("half.safetensors");
    double        loss[60];
    session       s;
    weft_strategy strategy = {.precision = WEFT_F16};
    open_session(&s);
    create(&s, weft_mul_scalar(dense(&s), 1e4), strategy, 0);
    train(&s, 30, loss);
    cr_assert_eq(weft_trainer_save(s.trainer, path, NULL), WEFT_OK, "%s", weft_error_message());
    train(&s, 10, loss);
    read_weight(&s, straight);
    close_session(&s);
    open_session(&s);
    create(&s, weft_mul_scalar(dense(&s), 1e4), strategy, 0);
    cr_assert_eq(weft_trainer_load(s.trainer, path, NULL), WEFT_OK, "%s", weft_error_message());
    train(&s, 10, loss);
    read_weight(&s, resumed);
    close_session(&s);
    cr_assert_eq(memcmp(straight, resumed, sizeof straight), 0);
}

static void refused(weft_program *program, weft_status status, const char *word) {
    session s;
    open_session(&s);
    program->loss = dense(&s);
    cr_assert_eq(weft_trainer_create(s.world, program, &s.trainer), status);
    cr_assert_not_null(strstr(weft_error_message(), word), "'%s' lacks '%s'", weft_error_message(), word);
    close_session(&s);
}
Test(precision, refuses_what_is_no_precision) {
    refused(&(weft_program){.solver = weft_sgd(0.1), .strategy = {.precision = WEFT_I32}}, WEFT_E_INVALID, "i32");
}
Test(precision, refuses_8_bits_without_bf16) {
    refused(&(weft_program){.solver = weft_sgd(0.1), .strategy = {.fp8 = true}}, WEFT_E_INVALID, "fp8 with precision f32; it is with bf16");
    refused(&(weft_program){.solver = weft_sgd(0.1), .strategy = {.precision = WEFT_F16, .fp8 = true}}, WEFT_E_INVALID, "fp8 with precision f16");
}
Test(precision, refuses_line_searches) {
    refused(&(weft_program){.solver = weft_lbfgs(1), .strategy = {.precision = WEFT_BF16}}, WEFT_E_UNSUPPORTED, "L-BFGS");
}

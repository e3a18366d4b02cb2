/* Parameters in bf16 under stochastic rounding: they learn where rounding to nearest stands still, as well as f32 does, to the same bits in every run. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "common/files.h"
#include "core/tensor/half.h"
#include "train/session.h"

enum { ROWS = 16, CONTEXT = 12, LETTERS = 11, MOST = 60, SLOW = 4000 };

static int32_t letters[ROWS * CONTEXT], following[ROWS * CONTEXT];

static void open_session(session *s, bool bf16, uint64_t seed) {
    for (int i = 0; i < ROWS * CONTEXT; i++) {
        letters[i] = (i / CONTEXT + i % CONTEXT * (i % CONTEXT)) % LETTERS;
        following[i] = (i / CONTEXT + (i % CONTEXT + 1) * (i % CONTEXT + 1)) % LETTERS;
    }
    begin_session(s, ROWS, (weft_graph_options){.seed = seed, .bf16_parameters = bf16});
}

static weft_tensor *transformer(session *s) {
    weft_tensor *x = weft_embedding(fed(s, "tokens", WEFT_I32, weft_shape(ROWS, CONTEXT), letters), "in", .count = LETTERS, .size = 16);
    x = weft_add(x, weft_self_attention(weft_layer_norm(x, "norm1"), "attention", .heads = 2, .causal = true));
    x = weft_add(x, weft_linear(weft_gelu_tanh(weft_linear(weft_layer_norm(x, "norm2"), "up", .out = 64)), "down", .out = 16));
    weft_tensor *logits = weft_linear(weft_layer_norm(x, "norm"), "head", .out = LETTERS);
    return weft_cross_entropy(logits, fed(s, "following", WEFT_I32, weft_shape(ROWS, CONTEXT), following));
}

static void create(session *s, weft_tensor *loss, weft_solver solver, weft_strategy strategy) {
    begin_training(s, &(weft_program){.loss = loss, .solver = solver, .strategy = strategy});
}

/* One weight goes from 0 or 1 to 1.5 by steps of at most 1/1000: at 1, half of a unit of bf16 is 1/256. */
Test(rounding, learns_where_rounding_to_nearest_stands_still) {
    static const float one[ROWS] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    static float       goal[ROWS];
    session            s;
    uint16_t           weight, nearest = wefti_f32_to_bf16(1);
    for (int i = 0; i < ROWS; i++) goal[i] = 1.5f;
    open_session(&s, true, 3);
    weft_tensor *w = weft_parameter(s.graph, "w", weft_shape(1, 1), .dtype = WEFT_BF16, .init = weft_init_ones());
    weft_tensor *y = weft_mul(fed(&s, "one", WEFT_F32, weft_shape(ROWS, 1), one), weft_cast(w, WEFT_F32));
    create(&s, weft_mse(y, fed(&s, "goal", WEFT_F32, weft_shape(ROWS, 1), goal)), weft_sgd(1e-3, .stochastic_rounding = true), (weft_strategy){0});
    train(&s, SLOW, NULL);
    cr_assert_eq(weft_variables_get(weft_trainer_variables(s.trainer), "w", &weight, sizeof weight), WEFT_OK, "%s", weft_error_message());
    for (int i = 0; i < SLOW; i++) nearest = wefti_f32_to_bf16(wefti_bf16_to_f32(nearest) - 1e-3f * 2 * (wefti_bf16_to_f32(nearest) - 1.5f));
    cr_assert_eq(wefti_bf16_to_f32(nearest), 1.0f, "rounding to nearest comes to %g", (double)wefti_bf16_to_f32(nearest));
    cr_assert_float_eq(wefti_bf16_to_f32(weight), 1.5f, 0.06, "it comes to %g", (double)wefti_bf16_to_f32(weight));
    close_session(&s);
}

static void learns_as_f32_does(weft_strategy strategy) {
    double loss[2][MOST], last[2] = {0};
    for (int bf16 = 0; bf16 < 2; bf16++) {
        session s;
        open_session(&s, bf16, 5);
        create(&s, transformer(&s), weft_adamw(0.01, .clip_norm = 1, .stochastic_rounding = bf16), strategy);
        train(&s, MOST, loss[bf16]);
        for (int i = MOST - 10; i < MOST; i++) last[bf16] += loss[bf16][i] / 10;
        for (int32_t i = 0; i < weft_variables_count(weft_trainer_variables(s.trainer)); i++) {
            weft_variable_info info;
            cr_assert_eq(weft_variables_info(weft_trainer_variables(s.trainer), i, &info), WEFT_OK);
            weft_dtype due = bf16 && strncmp(info.name, "weft.", 5) != 0 ? WEFT_BF16 : WEFT_F32;
            cr_assert_eq(info.dtype, due, "'%s' is %s", info.name, weft_dtype_name(info.dtype));
        }
        close_session(&s);
    }
    cr_assert_lt(last[0], 0.6 * loss[0][0]);
    cr_assert_leq(fabs(last[1] - last[0]), 0.05 * loss[0][0], "%g in bf16, %g in f32, from %g", last[1], last[0], loss[0][0]);
}
Test(rounding, adamw_learns_as_it_does_in_f32) { learns_as_f32_does((weft_strategy){0}); }
Test(rounding, adamw_learns_with_products_in_bf16) { learns_as_f32_does((weft_strategy){.precision = WEFT_BF16}); }
Test(rounding, adamw_learns_with_products_in_8_bits) { learns_as_f32_does((weft_strategy){.precision = WEFT_BF16, .fp8 = true}); }

/* Products read parameters as they are: nothing is cast to f32 and back. */
Test(rounding, parameters_are_read_as_they_are) {
    session     s;
    const char *text;
    int         widened = 0;
    open_session(&s, true, 5);
    create(&s, transformer(&s), weft_adamw(0.01, .stochastic_rounding = true), (weft_strategy){.precision = WEFT_BF16});
    cr_assert_eq(weft_plan_describe(weft_trainer_plan(s.trainer), &text), WEFT_OK);
    for (const char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        char      op[64] = "";
        double    flops;
        long long segment, count, reads = 0, writes = 0;
        if (sscanf(line, "%lld %63s %lld %lf %lld %lld", &segment, op, &count, &flops, &reads, &writes) == 6 && strcmp(op, "cast") == 0)
            widened += writes == 16 * 64 * 4;
    }
    cr_assert_eq(widened, 2, "%d tensors of the size of 'up' and 'down' are widened: their gradients alone are", widened);
    close_session(&s);
}

/* Runs agree bit for bit, and go on so from a checkpoint; another seed rounds otherwise. */
Test(rounding, goes_on_to_the_same_bits) {
    const char *path = scratch("rounding.safetensors");
    double      straight[15], again[15];
    session     s;
    weft_solver solver = weft_adamw(0.01, .stochastic_rounding = true);
    open_session(&s, true, 5);
    create(&s, transformer(&s), solver, (weft_strategy){0});
    train(&s, 5, straight);
    cr_assert_eq(weft_trainer_save(s.trainer, path, NULL), WEFT_OK, "%s", weft_error_message());
    train(&s, 10, straight + 5);
    close_session(&s);
    open_session(&s, true, 5);
    create(&s, transformer(&s), solver, (weft_strategy){0});
    train(&s, 15, again);
    cr_assert_eq(memcmp(straight, again, sizeof straight), 0, "two runs differ");
    cr_assert_eq(weft_trainer_load(s.trainer, path, NULL), WEFT_OK, "%s", weft_error_message());
    train(&s, 10, again + 5);
    cr_assert_eq(memcmp(straight, again, sizeof straight), 0, "a resumed run differs");
    close_session(&s);
}

static void refused(weft_program program, weft_status status, const char *word) {
    session s;
    open_session(&s, true, 5);
    program.loss = transformer(&s);
    cr_assert_eq(weft_trainer_create(s.world, &program, &s.trainer), status, "%s", weft_error_message());
    cr_assert_not_null(strstr(weft_error_message(), word), "'%s' lacks '%s'", weft_error_message(), word);
    close_session(&s);
}
Test(rounding, refuses_to_lose_small_steps) { refused((weft_program){.solver = weft_adamw(0.1)}, WEFT_E_DTYPE, "set solver.stochastic_rounding"); }
Test(rounding, refuses_what_it_does_not_go_with) {
    refused((weft_program){.solver = weft_sgd(0.1, .stochastic_rounding = true), .regulariser = weft_group_lasso(1)}, WEFT_E_UNSUPPORTED, "a group regulariser");
    refused((weft_program){.solver = weft_lbfgs(1, .stochastic_rounding = true)}, WEFT_E_UNSUPPORTED, "L-BFGS");
    refused((weft_program){.solver = weft_sgd(0.1, .stochastic_rounding = true), .strategy = {.sync = WEFT_SERVER}}, WEFT_E_UNSUPPORTED, "WEFT_SERVER");
    refused((weft_program){.solver = weft_sgd(0.1, .stochastic_rounding = true), .strategy = {.zero = 1}}, WEFT_E_UNSUPPORTED, "zero");
}

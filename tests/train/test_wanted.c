/* Gradients of inputs that a program wants: those of one process on each rank's rows, under data, tensor and pipeline meshes, compared with differences of the loss;
 * and what is refused. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "core/iface/world.h"
#include "weft.h"
#include "transport/ranks.h"

enum { BATCH = 6, TIME = 4, WIDE = 16, HIDDEN = 8 };

static weft_strategy strategy;
static bool          in_time; /* rows are [TIME, WIDE / TIME], with attention and a mixture of experts */

typedef struct model {
    weft_graph   *graph;
    weft_tensor  *inputs[2], *loss; /* rows of the batch [BATCH, WIDE], and a vector [WIDE] that is the same for all */
    weft_trainer *trainer;
} model;

static weft_shape shape_of(int64_t rows) { return in_time ? weft_shape(rows, TIME, WIDE / TIME) : weft_shape(rows, WIDE); }

static weft_tensor *attentive(weft_tensor *rows) {
    weft_tensor *balance, *h = weft_add(rows, weft_self_attention(rows, "attention", .heads = 2, .causal = true));
    return weft_mixture_of_experts(h, "experts", .experts = 4, .choices = 2, .hidden = HIDDEN, .balance_out = &balance);
}

static weft_status begin(weft_world *world, weft_strategy how, model *m) {
    WEFTI_TRY(weft_graph_create(&(weft_graph_options){.seed = 3}, &m->graph));
    m->inputs[0] = weft_input(m->graph, "rows", WEFT_F32, shape_of(BATCH));
    m->inputs[1] = weft_input(m->graph, "shift", WEFT_F32, weft_shape(WIDE), .replicated = true);
    weft_tensor *h = weft_add(m->inputs[0], in_time ? weft_reshape(m->inputs[1], weft_shape(TIME, WIDE / TIME)) : m->inputs[1]);
    h = weft_tanh(weft_linear(in_time ? attentive(h) : h, "hidden", .out = HIDDEN));
    m->loss = weft_mean(weft_square(weft_linear(h, "head", .out = 1)));
    return weft_trainer_create(world, &(weft_program){.loss = m->loss, .solver = weft_sgd(0.05), .strategy = how, .wanted = m->inputs, .n_wanted = 2}, &m->trainer);
}

static void end(model *m) {
    weft_trainer_release(m->trainer);
    weft_graph_release(m->graph);
}

static const float shift[WIDE] = {0.1f, -0.2f, 0.3f};

static weft_status step(model *m, float *rows, float *row_gradients, float *shift_gradient, double *loss_out) {
    int32_t     share, shares;
    int64_t     first, count;
    weft_report report;
    weft_trainer_share(m->trainer, &share, &shares);
    weft_batch_share(BATCH, share, shares, &first, &count);
    weft_batch batch = {.field_count = 2, .global_rows = BATCH, .first_row = first, .local_rows = count};
    batch.field[0] = (weft_batch_field){"rows", WEFT_F32, shape_of(count), rows + first * WIDE};
    batch.field[1] = (weft_batch_field){"shift", WEFT_F32, weft_shape(WIDE), shift};
    WEFTI_TRY(weft_trainer_step(m->trainer, &batch, &report));
    *loss_out = report.loss;
    WEFTI_TRY(weft_trainer_gradient_fetch(m->trainer, 0, row_gradients + first * WIDE, sizeof(float) * (size_t)(count * WIDE)));
    return weft_trainer_gradient_fetch(m->trainer, 1, shift_gradient, sizeof(float) * WIDE);
}

static void fill(float *rows) {
    uint32_t state = 9;
    for (int i = 0; i < BATCH * WIDE; i++) rows[i] = (float)((state = state * 1664525u + 1013904223u) >> 8 & 1023) / 512 - 1;
}

static weft_status same(const float *got, const float *want, int64_t from, int64_t to, const char *what) {
    for (int64_t i = from; i < to; i++)
        if (!(fabsf(got[i] - want[i]) <= 1e-6f + 1e-4f * fabsf(want[i])))
            return wefti_fail(WEFT_E_INTERNAL, "%s, element %lld: %.9g, not %.9g", what, (long long)i, (double)got[i], (double)want[i]);
    return WEFT_OK;
}

static weft_status compare(ranks *all, int32_t rank) {
    weft_world *world = NULL, lone;
    model       many = {0}, alone = {0};
    float       rows[BATCH * WIDE], got[BATCH * WIDE] = {0}, want[BATCH * WIDE] = {0}, got_shift[WIDE], want_shift[WIDE];
    double      loss, expected;
    int32_t     share, shares;
    int64_t     first, count;
    (void)all, (void)rank;
    fill(rows);
    WEFTI_TRY(weft_world_create(&(weft_world_options){.threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS}, &world));
    lone = *world;
    lone.rank = 0;
    lone.size = 1;
    lone.group = NULL;
    lone.groups = NULL;
    weft_status status = begin(&lone, (weft_strategy){0}, &alone);
    if (status == WEFT_OK) status = begin(world, strategy, &many);
    for (int s = 0; s < 3 && status == WEFT_OK; s++) {
        if ((status = step(&alone, rows, want, want_shift, &expected)) != WEFT_OK) break;
        if ((status = step(&many, rows, got, got_shift, &loss)) != WEFT_OK) break;
        weft_trainer_share(many.trainer, &share, &shares);
        weft_batch_share(BATCH, share, shares, &first, &count);
        status = same(got, want, first * WIDE, (first + count) * WIDE, "a row's gradient");
        if (status == WEFT_OK) status = same(got_shift, want_shift, 0, WIDE, "the gradient of what is the same for all");
    }
    end(&many);
    end(&alone);
    weft_world_release(world);
    return status;
}

static void agrees(int32_t count, weft_strategy how) {
    strategy = how;
    ranks *all = ranks_start(count, compare);
    ranks_join(all);
    for (int32_t r = 0; r < count; r++)
        cr_expect(atomic_load(&all->results[r].finished) && all->results[r].status == WEFT_OK, "rank %d: %s", (int)r, all->results[r].message);
    ranks_free(all);
}

Test(wanted, are_those_of_one_process_under_data) { agrees(2, (weft_strategy){.accumulate = 2}); }
Test(wanted, are_those_of_one_process_beside_tensors) { agrees(4, (weft_strategy){.data = 2, .tensor = 2}); }
Test(wanted, are_those_of_one_process_beside_stages) {
    agrees(2, (weft_strategy){.pipeline = 2, .accumulate = 2});
    agrees(4, (weft_strategy){.pipeline = 2, .data = 2, .accumulate = 3, .schedule = WEFT_ZERO_BUBBLE});
    agrees(4, (weft_strategy){.pipeline = 2, .tensor = 2, .accumulate = 2, .schedule = WEFT_GPIPE});
}
Test(wanted, are_those_of_one_process_beside_zero) {
    for (int32_t zero = 1; zero <= 3; zero++) agrees(2, (weft_strategy){.data = 2, .zero = zero, .divide_bytes = 1});
    agrees(4, (weft_strategy){.data = 2, .tensor = 2, .zero = 3, .divide_bytes = 1});
    agrees(4, (weft_strategy){.data = 2, .pipeline = 2, .accumulate = 2, .zero = 2, .divide_bytes = 1});
}
Test(wanted, are_those_of_one_process_beside_time_and_experts) {
    in_time = true;
    agrees(2, (weft_strategy){.sequence = 2});
    agrees(2, (weft_strategy){.expert = 2});
    agrees(4, (weft_strategy){.expert = 2, .tensor = 2});
}
Test(wanted, are_those_of_one_process_by_a_server) {
    agrees(2, (weft_strategy){.sync = WEFT_SERVER});
    agrees(4, (weft_strategy){.data = 2, .tensor = 2, .sync = WEFT_SERVER});
    agrees(4, (weft_strategy){.data = 2, .pipeline = 2, .accumulate = 2, .sync = WEFT_SERVER});
}

/* Alone: as the loss changes where an input does. A step changes parameters, so each loss is that of a fresh trainer. */
Test(wanted, is_how_the_loss_changes) {
    weft_world *world = NULL;
    float       rows[BATCH * WIDE], gradients[BATCH * WIDE], ignored[BATCH * WIDE], vector[WIDE];
    double      loss, above, below;
    cr_assert_eq(weft_world_create(&(weft_world_options){.threads = {.count = 1}}, &world), WEFT_OK, "%s", weft_error_message());
    for (int precision = 0; precision < 2; precision++) {
        weft_strategy how = {.precision = precision ? WEFT_F16 : WEFT_F32};
        model         m = {0};
        fill(rows);
        cr_assert_eq(begin(world, how, &m), WEFT_OK, "%s", weft_error_message());
        cr_assert_eq(step(&m, rows, gradients, vector, &loss), WEFT_OK, "%s", weft_error_message());
        end(&m);
        for (int i = 0; i < BATCH * WIDE; i += 5) {
            double *side[2] = {&above, &below};
            for (int sign = 0; sign < 2; sign++) {
                fill(rows);
                rows[i] += sign ? -0.01f : 0.01f;
                m = (model){0};
                cr_assert_eq(begin(world, (weft_strategy){0}, &m), WEFT_OK, "%s", weft_error_message());
                cr_assert_eq(step(&m, rows, ignored, vector, side[sign]), WEFT_OK, "%s", weft_error_message());
                end(&m);
            }
            double slope = (above - below) / 0.02;
            cr_expect(fabs(slope - (double)gradients[i]) < (precision ? 2e-3 : 2e-4) + 0.01 * fabs(slope), "element %d: %g, and the loss changes by %g", i,
                      (double)gradients[i], slope);
        }
    }
    weft_world_release(world);
}

static void refuses(weft_world *world, int which, weft_status wanted, const char *word) {
    weft_graph   *g = NULL, *other = NULL;
    weft_trainer *trainer = NULL;
    cr_assert_eq(weft_graph_create(NULL, &g), WEFT_OK);
    cr_assert_eq(weft_graph_create(NULL, &other), WEFT_OK);
    weft_tensor *x = weft_input(g, "x", WEFT_F32, weft_shape(BATCH, WIDE)), *label = weft_input(g, "label", WEFT_I32, weft_shape(BATCH));
    weft_tensor *idle = weft_input(g, "idle", WEFT_F32, weft_shape(BATCH)), *foreign = weft_input(other, "foreign", WEFT_F32, weft_shape(BATCH));
    weft_tensor *h = weft_linear(x, "hidden", .out = 3), *loss = weft_cross_entropy(h, label);
    weft_tensor *const lists[7][1] = {{label}, {idle}, {foreign}, {h}, {NULL}, {NULL}, {x}};
    weft_program program = {.loss = loss, .solver = weft_sgd(0.1), .wanted = which == 5 ? NULL : lists[which], .n_wanted = which == 6 ? 100 : 1};
    cr_expect_eq(weft_trainer_create(world, &program, &trainer), wanted);
    cr_expect(strstr(weft_error_message(), word), "'%s' does not say '%s'", weft_error_message(), word);
    weft_trainer_release(trainer);
    weft_graph_release(other);
    weft_graph_release(g);
}

Test(wanted, refuses_what_has_no_gradient) {
    weft_world *world = NULL;
    model       m = {0};
    float       value[WIDE];
    cr_assert_eq(weft_world_create(&(weft_world_options){.threads = {.count = 1}}, &world), WEFT_OK, "%s", weft_error_message());
    refuses(world, 0, WEFT_E_DTYPE, "'label', which is i32");
    refuses(world, 1, WEFT_E_INVALID, "'idle', on which the loss does not depend");
    refuses(world, 2, WEFT_E_INVALID, "'foreign' (number 0), which is no input");
    refuses(world, 3, WEFT_E_INVALID, "which is no input");
    refuses(world, 4, WEFT_E_INVALID, "'NULL' (number 0)");
    refuses(world, 5, WEFT_E_INVALID, "an array of them");
    refuses(world, 6, WEFT_E_INVALID, "gradients of 100 inputs");
    cr_assert_eq(begin(world, (weft_strategy){0}, &m), WEFT_OK, "%s", weft_error_message());
    cr_expect_eq(weft_trainer_gradient_fetch(m.trainer, 1, value, sizeof value), WEFT_E_STATE);
    weft_plan_value form;
    cr_expect_eq(weft_trainer_gradient(m.trainer, 0, &form), WEFT_OK);
    cr_expect(form.dtype == WEFT_F32 && form.shape.dim[0] == BATCH && form.shape.dim[1] == WIDE);
    cr_expect_eq(weft_trainer_gradient(m.trainer, 2, &form), WEFT_E_INVALID);
    cr_expect_eq(weft_trainer_gradient(m.trainer, -1, &form), WEFT_E_INVALID);
    cr_expect_eq(weft_trainer_gradient(NULL, 0, &form), WEFT_E_INVALID);
    end(&m);
    weft_world_release(world);
}

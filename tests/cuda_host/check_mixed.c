/* One graph on a CPU and a GPU: rank 0 computes on the CPU, rank 1 on a CUDA device. Parts that are placed by device, and stages of a pipeline, give the
 * losses of one process on a CPU, to rounding. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

#include "weft.h"
#include "core/graph/graph.h"
#include "transport/ranks.h"

enum { ROWS = 16, IN = 8, HIDDEN = 12, STEPS = 30 };

typedef weft_status (*training)(weft_world *world, float *losses);

static void fill(float *x, float *y) {
    for (int i = 0; i < ROWS * IN; i++) x[i] = (float)(i * 37 % 101 - 50) / 60;
    for (int i = 0; i < ROWS; i++) {
        y[i] = 0;
        for (int k = 0; k < IN; k++) y[i] += x[i * IN + k];
        y[i] = sinf(y[i]);
    }
}

static weft_tensor *stretch(weft_tensor *h, const char *name, const char *norm) { return weft_tanh(weft_layer_norm(weft_linear(h, name, .out = HIDDEN), norm)); }

/* --- places --- */

static void begin(weft_graph *g, bool placed, const char *place) {
    if (placed) weft_place_begin(g, place);
}
static void end(weft_graph *g, bool placed) {
    if (placed) weft_place_end(g);
}

/* From the CPU to the GPU and back; gradients go the other way. */
static weft_tensor *placed_loss(weft_graph *g, bool placed, weft_tensor **parameters_out) {
    weft_tensor *x = weft_input(g, "x", WEFT_F32, weft_shape(ROWS, IN)), *y = weft_input(g, "y", WEFT_F32, weft_shape(ROWS, 1));
    begin(g, placed, "cpu");
    parameters_out[0] = weft_parameter(g, "first", weft_shape(IN, HIDDEN));
    weft_tensor *h = weft_tanh(weft_matmul(x, parameters_out[0]));
    end(g, placed);
    begin(g, placed, "cuda");
    parameters_out[1] = weft_parameter(g, "second", weft_shape(HIDDEN, HIDDEN));
    h = weft_gelu(weft_matmul(weft_sub(h, weft_mean(h, .axes = weft_axes(1), .keep = true)), parameters_out[1]));
    end(g, placed);
    begin(g, placed, "cpu");
    parameters_out[2] = weft_parameter(g, "third", weft_shape(HIDDEN, 1));
    weft_tensor *loss = weft_mse(weft_matmul(h, parameters_out[2]), y);
    end(g, placed);
    return loss;
}

static weft_status train_placed(weft_world *world, float *losses) {
    weft_graph  *g = NULL;
    weft_plan   *plan = NULL;
    weft_tensor *parameters[3], *gradients[3];
    float        x[ROWS * IN], y[ROWS];
    fill(x, y);
    WEFTI_TRY(weft_graph_create(&(weft_graph_options){.seed = 5}, &g));
    weft_tensor *loss = placed_loss(g, weft_world_size(world) > 1, parameters);
    weft_status  status = weft_gradients(loss, parameters, 3, gradients);
    for (int i = 0; i < 3 && status == WEFT_OK; i++) {
        weft_tensor *inputs[2] = {parameters[i], weft_sub(parameters[i], weft_mul_scalar(gradients[i], 0.2))};
        wefti_graph_effect(wefti_apply(WEFT_OP_ASSIGN, NULL, inputs, 2, NULL));
    }
    if (status == WEFT_OK) status = weft_plan_create(world, g, &(weft_plan_options){.outputs = &loss, .n_outputs = 1, .training = true}, &plan);
    weft_feed feeds[2] = {{"x", WEFT_F32, weft_shape(ROWS, IN), x}, {"y", WEFT_F32, weft_shape(ROWS, 1), y}};
    for (int step = 0; step < STEPS && status == WEFT_OK; step++) {
        status = weft_plan_run(plan, feeds, 2);
        if (status == WEFT_OK) status = weft_plan_fetch(plan, 0, &losses[step], sizeof(float));
    }
    weft_plan_release(plan);
    weft_graph_release(g);
    return status;
}

/* --- a pipeline --- */

static weft_status train_stages(weft_world *world, float *losses) {
    weft_graph   *g = NULL;
    weft_trainer *trainer = NULL;
    weft_report   report;
    float         x[ROWS * IN], y[ROWS];
    int32_t       size = weft_world_size(world);
    fill(x, y);
    WEFTI_TRY(weft_graph_create(&(weft_graph_options){.seed = 7}, &g));
    weft_tensor   *h = weft_input(g, "x", WEFT_F32, weft_shape(ROWS, IN));
    h = stretch(stretch(h, "a", "norm a"), "b", "norm b");
    h = stretch(stretch(h, "c", "norm c"), "d", "norm d");
    weft_tensor   *loss = weft_mse(weft_linear(h, "head", .out = 1), weft_input(g, "y", WEFT_F32, weft_shape(ROWS, 1)));
    weft_program   program = {.loss = loss, .solver = weft_adam(0.01), .strategy = {.pipeline = size, .accumulate = 4}};
    weft_status    status = weft_trainer_create(world, &program, &trainer);
    weft_batch     batch = {.field_count = 2, .global_rows = ROWS, .local_rows = ROWS};
    batch.field[0] = (weft_batch_field){"x", WEFT_F32, weft_shape(ROWS, IN), x};
    batch.field[1] = (weft_batch_field){"y", WEFT_F32, weft_shape(ROWS, 1), y};
    for (int step = 0; step < STEPS && status == WEFT_OK; step++) {
        status = weft_trainer_step(trainer, &batch, &report);
        losses[step] = (float)report.loss;
    }
    weft_trainer_release(trainer);
    weft_graph_release(g);
    return status;
}

/* --- both --- */

static training what;

static weft_status compare(ranks *all, int32_t rank) {
    weft_world *world = NULL, *alone = NULL;
    float       got[STEPS] = {0}, want[STEPS] = {0};
    (void)all;
    weft_status status = weft_world_create(&(weft_world_options){.wire = "shm", .device = rank == 1 ? "cuda" : "cpu", .threads = {.count = 1}}, &world);
    if (status == WEFT_OK) status = what(world, got);
    weft_world_release(world);
    static const char *const variables[] = {"WEFT_RANK", "WEFT_WORLD_SIZE", "WEFT_STORE", "WEFT_JOB"};
    for (size_t i = 0; i < WEFTI_COUNT(variables); i++) unsetenv(variables[i]);
    if (status == WEFT_OK) status = weft_world_create(&(weft_world_options){.size = 1, .device = "cpu", .threads = {.count = 1}}, &alone);
    if (status == WEFT_OK) status = what(alone, want);
    weft_world_release(alone);
    WEFTI_TRY(status);
    for (int step = 0; step < STEPS; step++)
        if (!(fabsf(got[step] - want[step]) <= 1e-4f * want[0]))
            return wefti_fail(WEFT_E_INTERNAL, "step %d has the loss %.9g, not %.9g", step, (double)got[step], (double)want[step]);
    if (!(got[STEPS - 1] < 0.6f * got[0])) return wefti_fail(WEFT_E_INTERNAL, "the loss went from %g to %g", (double)got[0], (double)got[STEPS - 1]);
    return WEFT_OK;
}

static void on_both(training how) {
    what = how;
    ranks *all = ranks_start(2, compare);
    ranks_join(all);
    for (int32_t rank = 0; rank < 2; rank++)
        cr_expect(atomic_load(&all->results[rank].finished) && all->results[rank].status == WEFT_OK, "rank %d: %s", (int)rank, all->results[rank].message);
    ranks_free(all);
}

Test(cuda_mixed, parts_placed_by_device) { on_both(train_placed); }
Test(cuda_mixed, stages_of_a_pipeline) { on_both(train_stages); }

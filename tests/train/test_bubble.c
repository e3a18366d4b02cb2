/* What a pipeline's ranks are idle, against the formula of its order (weft/strategy.h), within a tenth: by all four orders.
 *
 * Passes take a given time wherever they run, for each layer sleeps: `forward` in the forward pass, `backward` on the way to its input's gradient,
 * and `weights` on the way to its weights'. So two cores do for four ranks, and what is measured is the order and not the machine. Idle is what of a
 * step a rank did not sleep, the mean over the ranks; how long it slept it says itself, for sleeps last longer than they were asked to. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/iface/world.h"
#include "weft.h"
#include "transport/ranks.h"

enum { RANKS = 4, LAYERS = 8, MICRO = 4, ROWS = 8, WIDTH = 4, STEPS = 3, SLEEP_NS = 4000000, TRIES = 5 };

static double slept; /* seconds, of this process */

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static weft_status rest(void) {
    double begun = seconds();
    nanosleep(&(struct timespec){.tv_nsec = SLEEP_NS}, NULL);
    slept += seconds() - begun;
    return WEFT_OK;
}

/* --- ops that hand on what they get --- */

static weft_status shape(const weft_custom_type *inputs, const void *options, weft_custom_type *outputs_out) {
    (void)options;
    outputs_out[0] = inputs[0];
    return WEFT_OK;
}

static weft_status hand_on(const weft_custom_data *from, weft_custom_data *to) {
    memcpy(to->data, from->data, (size_t)weft_shape_elements(from->shape) * sizeof(float));
    return WEFT_OK;
}

static weft_status forward(const weft_custom_data *inputs, const void *options, weft_custom_data *outputs_out) {
    (void)options;
    return hand_on(inputs, outputs_out);
}

static weft_status slow_forward(const weft_custom_data *inputs, const void *options, weft_custom_data *outputs_out) {
    (void)options;
    (void)rest();
    return hand_on(inputs, outputs_out);
}

static weft_status slow_backward(const weft_custom_data *inputs, const weft_custom_data *outputs, const weft_custom_data *output_gradients, const void *options,
                                 weft_custom_data *input_gradients_out) {
    (void)inputs, (void)outputs, (void)options;
    (void)rest();
    return hand_on(output_gradients, input_gradients_out);
}

/* Both ways; and on the way to the weights alone. */
static const weft_custom_op layer_op = {.name = "layer", .n_inputs = 1, .n_outputs = 1, .shape = shape, .forward = slow_forward, .backward = slow_backward, .row_local = true};
static const weft_custom_op weights_op = {.name = "weights", .n_inputs = 1, .n_outputs = 1, .shape = shape, .forward = forward, .backward = slow_backward, .row_local = true};

static weft_tensor *layer(weft_graph *g, weft_tensor *x, int i, int stages) {
    char name[16], place[16];
    snprintf(name, sizeof name, "w%d", i);
    weft_tensor *w = weft_parameter(g, name, weft_shape(WIDTH), .init = weft_init_value(0.01f));
    weft_tensor *rows = weft_add(weft_mul_scalar(weft_detach(x), 0), w); /* a row of weights for each of x */
    snprintf(place, sizeof place, "stage %d", i * stages / LAYERS);
    weft_place_begin(g, place);
    x = weft_custom(g, &layer_op, &x, 1, NULL, NULL, 0);
    x = weft_add(x, weft_custom(g, &weights_op, &rows, 1, NULL, NULL, 0));
    weft_place_end(g);
    return x;
}

static weft_tensor *program(weft_graph *g, int stages) {
    weft_tensor *x = weft_add(weft_input(g, "x", WEFT_F32, weft_shape(ROWS, WIDTH)), weft_parameter(g, "p", weft_shape(WIDTH)));
    for (int i = 0; i < LAYERS; i++) x = layer(g, x, i, stages);
    return weft_mean(weft_square(x));
}

/* --- measuring --- */

static weft_pipeline_order schedule;

static weft_status over_ranks(weft_world *world, double *value, wefti_reduce_op op) {
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_F64, .op = op, .send = value, .receive = value, .count = 1};
    return wefti_collective_run(world->group, &call);
}

/* The idle share of the best of some steps; the same on all ranks. */
static weft_status measure(weft_world *world, weft_trainer *trainer, double *idle_out) {
    static const float x[ROWS * WIDTH] = {1};
    weft_batch         batch = {.field_count = 1, .global_rows = ROWS, .local_rows = ROWS};
    batch.field[0] = (weft_batch_field){"x", WEFT_F32, weft_shape(ROWS, WIDTH), x};
    *idle_out = 1;
    for (int s = 0; s < STEPS; s++) {
        double ready = 0;
        WEFTI_TRY(over_ranks(world, &ready, WEFTI_REDUCE_MAX)); /* together */
        slept = 0;
        double begun = seconds();
        WEFTI_TRY(weft_trainer_step(trainer, &batch, NULL));
        double took = seconds() - begun, all = slept;
        WEFTI_TRY(over_ranks(world, &took, WEFTI_REDUCE_MAX));
        WEFTI_TRY(over_ranks(world, &all, WEFTI_REDUCE_SUM));
        if (s > 0) *idle_out = fmin(*idle_out, 1 - all / (took * RANKS));
    }
    return WEFT_OK;
}

/* Passes of a layer take 1, 1 and 1. */
static double formula(void) {
    double p = RANKS - 1, m = MICRO;
    if (schedule == WEFT_INTERLEAVED) return p / (2 * m + p);
    return schedule == WEFT_ZERO_BUBBLE ? p / (3 * m + p) : p / (m + p);
}

static weft_status idles(ranks *all, int32_t rank) {
    weft_world   *world = NULL;
    weft_graph   *graph = NULL;
    weft_trainer *trainer = NULL;
    weft_strategy strategy = {.pipeline = RANKS, .accumulate = MICRO, .schedule = schedule};
    double        idle = 1;
    (void)all, (void)rank;
    WEFTI_TRY(weft_world_create(&(weft_world_options){.wire = "shm", .threads = {.count = 1}}, &world));
    weft_status status = weft_graph_create(NULL, &graph);
    if (status == WEFT_OK)
        status = weft_trainer_create(world, &(weft_program){.loss = program(graph, schedule == WEFT_INTERLEAVED ? 2 * RANKS : RANKS), .solver = weft_sgd(0.1), .strategy = strategy},
                                     &trainer);
    for (int i = 0; i < TRIES && status == WEFT_OK && fabs(idle / formula() - 1) > 0.1; i++) status = measure(world, trainer, &idle);
    if (status == WEFT_OK && fabs(idle / formula() - 1) > 0.1)
        status = wefti_fail(WEFT_E_INTERNAL, "ranks are idle for %.3f of a step, and by the formula for %.3f", idle, formula());
    if (status == WEFT_OK && rank == 0 && getenv("WEFT_TEST_SAY")) fprintf(stderr, "idle %.3f, by the formula %.3f\n", idle, formula());
    weft_trainer_release(trainer);
    weft_graph_release(graph);
    weft_world_release(world);
    return status;
}

static void is_as_idle_as_the_formula(weft_pipeline_order order) {
    schedule = order;
    ranks *all = ranks_start(RANKS, idles);
    ranks_join(all);
    for (int32_t r = 0; r < RANKS; r++)
        cr_expect(atomic_load(&all->results[r].finished) && all->results[r].status == WEFT_OK, "rank %d: %s", (int)r, all->results[r].message);
    ranks_free(all);
}

Test(bubble, one_forward_one_backward) { is_as_idle_as_the_formula(WEFT_1F1B); }
Test(bubble, gpipe) { is_as_idle_as_the_formula(WEFT_GPIPE); }
Test(bubble, interleaved) { is_as_idle_as_the_formula(WEFT_INTERLEAVED); }
Test(bubble, zero_bubble) { is_as_idle_as_the_formula(WEFT_ZERO_BUBBLE); }

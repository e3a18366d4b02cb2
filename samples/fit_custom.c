/* Two ways to go beyond the library without touching it: a new layer made of ops, and a custom op with forward, backward and shape
 * rule of its own. Fits a noisy function of two variables with a mixture of both. */
#include <math.h>
#include <signal.h>
#include <stdio.h>

#include "cli.h"
#include "weft.h"

enum { ROWS = 4096, BATCH = 128 };
static int64_t     epochs = 20, seed = 1, max_steps;
static double      rate = 5e-3;
static const char *log_path, *plot_path, *checkpoint_path;
static bool        resume, quiet, stop_on_nan = true;

/* --- a layer made of ops: gated linear unit (Dauphin et al. 2017), with a learnt temperature --- */

static weft_tensor *gated(weft_tensor *x, const char *name, int64_t out) {
    weft_graph *g = weft_tensor_graph(x);
    weft_scope_push(g, name);
    weft_tensor *heat = weft_parameter(g, "heat", weft_shape(out), .init = weft_init_ones(), .unregularised = true);
    weft_tensor *gate = weft_sigmoid(weft_mul(weft_linear(x, "gate", .out = out), heat));
    weft_tensor *y = weft_mul(weft_linear(x, "value", .out = out), gate);
    weft_scope_pop(g);
    return y;
}

/* --- a custom op: snake(x) = x + sin^2(a x)/a (Ziyin et al. 2020), for f32; `a` comes as the op's options --- */

static weft_status snake_shape(const weft_custom_type *inputs, const void *options, weft_custom_type *outputs_out) {
    (void)options;
    if (inputs[0].dtype != WEFT_F32) return WEFT_E_DTYPE;
    outputs_out[0] = inputs[0];
    return WEFT_OK;
}

static weft_status snake_forward(const weft_custom_data *inputs, const void *options, weft_custom_data *outputs_out) {
    const float *x = inputs[0].data, a = *(const float *)options;
    float       *y = outputs_out[0].data;
    for (int64_t i = 0; i < weft_shape_elements(inputs[0].shape); i++) y[i] = x[i] + sinf(a * x[i]) * sinf(a * x[i]) / a;
    return WEFT_OK;
}

static weft_status snake_backward(const weft_custom_data *inputs, const weft_custom_data *outputs, const weft_custom_data *output_gradients,
                                  const void *options, weft_custom_data *input_gradients_out) {
    (void)outputs;
    const float *x = inputs[0].data, *g = output_gradients[0].data, a = *(const float *)options;
    float       *dx = input_gradients_out[0].data;
    for (int64_t i = 0; dx && i < weft_shape_elements(inputs[0].shape); i++) dx[i] = g[i] * (1 + sinf(2 * a * x[i]));
    return WEFT_OK;
}

static weft_tensor *snake(weft_tensor *x, float a) {
    static const weft_custom_op op = {.name = "snake", .n_inputs = 1, .n_outputs = 1, .shape = snake_shape, .forward = snake_forward,
                                      .backward = snake_backward, .row_local = true};
    return weft_custom(weft_tensor_graph(x), &op, &x, 1, "snake", &a, sizeof a);
}

/* --- the data: z = sin(3x)·cos(2y) + noise --- */

static float uniform(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / 8388608.0f - 1.0f;
}

static void make_data(float (*x)[2], float (*z)[1]) {
    uint32_t state = (uint32_t)seed;
    for (int i = 0; i < ROWS; i++) {
        x[i][0] = uniform(&state);
        x[i][1] = uniform(&state);
        z[i][0] = sinf(3 * x[i][0]) * cosf(2 * x[i][1]) + 0.01f * uniform(&state);
    }
}

int main(int argc, char **argv) {
    const cli_option options[] = {
        {"epochs", CLI_INTEGER, &epochs, "passes over the data"},
        {"rate", CLI_REAL, &rate, "learning rate of Adam"},
        {"seed", CLI_INTEGER, &seed, "of data, parameters and shuffling"},
        {"log", CLI_TEXT, &log_path, "metrics as JSON lines"},
        {"plot", CLI_TEXT, &plot_path, "SVG of the loss"},
        {"checkpoint", CLI_TEXT, &checkpoint_path, "safetensors file, written after each epoch"},
        {"resume", CLI_FLAG, &resume, "go on from the checkpoint where there is one"},
        {"max-steps", CLI_INTEGER, &max_steps, "end after so many steps; 0: after the epochs"},
        {"stop-on-nan", CLI_FLAG, &stop_on_nan, "end where the loss is not finite, instead of skipping that step"},
        {"quiet", CLI_FLAG, &quiet, "no progress"},
    };
    int end = cli_parse(argc, argv, "Fits a function with a layer and an op of the program's own.", options, sizeof options / sizeof *options);
    if (end >= 0) return end;
    static float    x[ROWS][2], z[ROWS][1];
    weft_world     *world = NULL;
    weft_graph     *graph = NULL;
    weft_loader    *loader = NULL;
    weft_trainer   *trainer = NULL;
    weft_fit_result result;
    weft_status     status;
    make_data(x, z);
    if ((status = weft_world_create(NULL, &world)) != WEFT_OK) goto done;
    if ((status = weft_world_dump_on(world, SIGUSR1)) != WEFT_OK) goto done; /* kill -USR1 says what the ranks wait for */
    if ((status = weft_graph_create(&(weft_graph_options){.seed = (uint64_t)seed}, &graph)) != WEFT_OK) goto done;
    weft_batch_field    fields[2] = {{"x", WEFT_F32, weft_shape(ROWS, 2), x}, {"z", WEFT_F32, weft_shape(ROWS, 1), z}};
    weft_loader_options how = {.batch = BATCH, .seed = (uint64_t)seed, .epochs = epochs};
    if ((status = weft_loader_open_arrays(fields, 2, &how, &loader)) != WEFT_OK) goto done;

    weft_tensor *h = snake(gated(weft_input(graph, "x", WEFT_F32, weft_shape(BATCH, 2)), "gated1", 32), 3);
    weft_tensor *guess = weft_linear(snake(gated(h, "gated2", 32), 1), "head", .out = 1);
    weft_program program = {.loss = weft_mse(guess, weft_input(graph, "z", WEFT_F32, weft_shape(BATCH, 1))),
                            .regulariser = weft_elastic_net(1e-6, 1e-6), .solver = weft_adam(rate), .ignore_nan = !stop_on_nan};
    if ((status = weft_trainer_create(world, &program, &trainer)) != WEFT_OK) goto done;
    status = weft_fit(trainer, loader,
                      &(weft_fit_options){.log_path = log_path, .plot_path = plot_path, .checkpoint_path = checkpoint_path, .resume = resume,
                                          .epochs = epochs, .max_steps = max_steps, .progress = quiet ? NULL : stdout}, &result);
    if (status == WEFT_OK && weft_world_rank(world) == 0) printf("mean squared error %.6f\n", result.train_loss);
done:
    if (status != WEFT_OK) fprintf(stderr, "fit_custom: %s\n", weft_error_message());
    weft_trainer_release(trainer);
    weft_loader_release(loader);
    weft_graph_release(graph);
    weft_world_release(world);
    return status == WEFT_OK ? 0 : 1;
}

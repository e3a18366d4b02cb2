/* Trains a network that has everything that is defined over the global batch (batch norm, dropout, ignored labels, a last batch
 * that no number of ranks divides, clipping by global norm, accumulation), and writes its parameters, for comparing numbers
 * of ranks. usage: parity SOLVER f32|f64|bf16|f16 (f32 with that precision) MICRO STEPS OUT [recompute]
 * RUN_CLASSES=N lets the head have so many classes, and RUN_CHUNK=ROWS computes their loss by so many rows at a time.
 * RUN_PENALTY adds a parameter that is trained without the batch. RUN_SERVER=STALENESS trains by a parameter server, of RUN_SERVERS ranks. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/programs/far_world.h"
#include "weft.h"

enum { ROWS = 100, BATCH = 24, CLASSES = 5, PIXELS = 2 * 8 * 8 };

static void make_data(double *wide, float *slim, int32_t *label) {
    unsigned state = 12345;
    for (int i = 0; i < ROWS; i++) {
        label[i] = i % 7 == 3 ? -100 : i % CLASSES;
        for (int k = 0; k < PIXELS; k++) {
            state = state * 1664525u + 1013904223u;
            wide[i * PIXELS + k] = slim[i * PIXELS + k] = (float)(state >> 8) / 8388608.0f - 1.0f + 0.3f * (float)(i % CLASSES) * (float)(k % 3);
        }
    }
}

static weft_tensor *network(weft_tensor *x, bool recompute) {
    if (recompute) weft_recompute_begin(weft_tensor_graph(x));
    x = weft_relu(weft_batch_norm(weft_conv2d(x, "conv", .filters = 6, .kernel = 3, .pad = 1), "norm"));
    x = weft_dropout(weft_flatten(weft_max_pool2d(x, .window = 2)), 0.25);
    if (recompute) weft_recompute_end(weft_tensor_graph(x));
    if (recompute) weft_recompute_begin(weft_tensor_graph(x));
    x = weft_gelu(weft_layer_norm(weft_linear(x, "hidden", .out = 16), "layer_norm"));
    if (recompute) weft_recompute_end(weft_tensor_graph(x));
    return weft_linear(x, "head", .out = getenv("RUN_CLASSES") ? atoi(getenv("RUN_CLASSES")) : CLASSES);
}

static weft_solver solver_of(const char *name) {
    if (strcmp(name, "sgd") == 0) return weft_sgd(0.05, .clip_norm = 0.7);
    if (strcmp(name, "momentum") == 0) return weft_sgd(0.02, .momentum = 0.9, .clip_norm = 0.7);
    if (strcmp(name, "nesterov") == 0) return weft_sgd(0.02, .momentum = 0.9, .nesterov = true, .clip_value = 0.05);
    if (strcmp(name, "adagrad") == 0) return weft_adagrad(0.02, .clip_value = 0.05);
    if (strcmp(name, "rmsprop") == 0) return weft_rmsprop(0.002, .schedule = {.kind = WEFT_STEP_DECAY, .every = 7, .gamma = 0.5});
    if (strcmp(name, "lbfgs") == 0) return weft_lbfgs(0.1);
    if (strcmp(name, "adam-unclipped") == 0) return weft_adamw(0.003, .schedule = {.kind = WEFT_COSINE, .warmup = 5, .steps = 60});
    return weft_adamw(0.003, .clip_norm = 0.7, .schedule = {.kind = WEFT_COSINE, .warmup = 5, .steps = 60});
}

static weft_regulariser regulariser_of(const char *solver) {
    if (strcmp(solver, "lbfgs") == 0) return weft_l2(1e-3);
    return strcmp(solver, "adagrad") == 0 || strcmp(solver, "nesterov") == 0 ? weft_group_lasso(2e-3) : weft_elastic_net(1e-4, 1e-3);
}

static weft_status write_variables(weft_trainer *trainer, const char *path) {
    weft_variables *variables = weft_trainer_variables(trainer);
    FILE           *file = fopen(path, "wb");
    weft_status     status = file ? WEFT_OK : WEFT_E_IO;
    for (int32_t i = 0; i < weft_variables_count(variables) && status == WEFT_OK; i++) {
        weft_variable_info info;
        if ((status = weft_variables_info(variables, i, &info)) != WEFT_OK) break;
        size_t n = (size_t)info.bytes / weft_dtype_bytes(info.dtype);
        void  *values = malloc((size_t)info.bytes + 1);
        status = weft_variables_get(variables, info.name, values, (size_t)info.bytes);
        for (size_t k = 0; k < n && status == WEFT_OK; k++) {
            double value = info.dtype == WEFT_F64 ? ((double *)values)[k] : ((float *)values)[k];
            if (fwrite(&value, sizeof value, 1, file) != 1) status = WEFT_E_IO;
        }
        free(values);
    }
    if (file && fclose(file) != 0) status = WEFT_E_IO;
    return status;
}

int main(int argc, char **argv) {
    static double  wide[ROWS * PIXELS];
    static float   slim[ROWS * PIXELS];
    static int32_t label[ROWS];
    if (argc != 6 && argc != 7) return 2;
    weft_dtype    dtype = strcmp(argv[2], "f64") == 0 ? WEFT_F64 : WEFT_F32;
    long          steps = atol(argv[4]);
    weft_world   *world = NULL;
    weft_graph   *graph = NULL;
    weft_loader  *loader = NULL;
    weft_trainer *trainer = NULL;
    weft_batch    batch;
    weft_report   report;
    weft_status   status;
    make_data(wide, slim, label);
    if ((status = weft_world_create(NULL, &world)) != WEFT_OK) goto done;
    far_world(world);
    if ((status = weft_graph_create(&(weft_graph_options){.seed = 7}, &graph)) != WEFT_OK) goto done;
    weft_batch_field fields[2] = {{"image", dtype, weft_shape(ROWS, 2, 8, 8), dtype == WEFT_F64 ? (void *)wide : slim},
                                  {"label", WEFT_I32, weft_shape(ROWS), label}};
    weft_loader_options how = {.batch = BATCH, .rank = weft_world_rank(world), .ranks = weft_world_size(world), .seed = 3, .epochs = -1};
    if ((status = weft_loader_open_arrays(fields, 2, &how, &loader)) != WEFT_OK) goto done;
    weft_tensor *image = weft_input(graph, "image", dtype, weft_shape(BATCH, 2, 8, 8));
    weft_tensor *target = weft_input(graph, "label", WEFT_I32, weft_shape(BATCH));
    weft_tensor *loss = weft_cross_entropy(network(image, argc == 7), target, .ignore = true, .ignored = -100, .smoothing = 0.1);
    if (getenv("RUN_PENALTY")) { /* a gradient that does not depend on the batch */
        weft_tensor *free_one = weft_parameter(graph, "free", weft_shape(10), .dtype = dtype, .init = weft_init_of(WEFT_INIT_VALUE, 0.5, 0));
        loss = weft_add(loss, weft_cast(weft_mean(weft_square(weft_add_scalar(free_one, -2))), weft_tensor_dtype(loss)));
    }
    weft_program program = {.loss = loss, .regulariser = regulariser_of(argv[1]), .solver = solver_of(argv[1]),
                            .strategy = {.accumulate = atoi(argv[3]),
                                         .precision = strcmp(argv[2], "f64") == 0 ? WEFT_F32 : weft_dtype_of(argv[2])}};
    const char *staleness = getenv("RUN_SERVER"), *servers = getenv("RUN_SERVERS");
    if (staleness) program.strategy.sync = WEFT_SERVER;
    if (staleness) program.strategy.staleness = atoi(staleness);
    if (getenv("RUN_CHUNK")) program.strategy.loss_chunk_rows = atoi(getenv("RUN_CHUNK"));
    if (servers) program.strategy.servers = atoi(servers);
    if ((status = weft_trainer_create(world, &program, &trainer)) != WEFT_OK) goto done;
    for (long i = 0; i < steps; i++) {
        if ((status = weft_loader_next(loader, &batch)) != WEFT_OK) goto done;
        if ((status = weft_trainer_step(trainer, &batch, &report)) != WEFT_OK) goto done;
    }
    if (weft_world_rank(world) == 0) {
        printf("loss %.17g\n", report.loss);
        status = write_variables(trainer, argv[5]);
        const char *text = "";
        if (status == WEFT_OK && getenv("RUN_DESCRIBE")) status = weft_plan_describe(weft_trainer_plan(trainer), &text);
        fputs(text, stdout);
    }
done:
    if (status != WEFT_OK) fprintf(stderr, "parity: %s: %s\n", weft_status_name(status), weft_error_message());
    weft_trainer_release(trainer);
    weft_loader_release(loader);
    weft_graph_release(graph);
    weft_world_release(world);
    return status == WEFT_OK ? 0 : 1;
}

/* Trains a small network whose updates the ranks do in parts, or each alone, for comparing them.
 * usage: divide SOLVER f32|f64 DIVIDE_BYTES STEPS OUT [SAVE_AT]
 * Every rank writes all its variables to OUT-RANK, solver states included, and rank 0 prints how many updates are divided. With SAVE_AT the
 * run is saved to OUT.safetensors after that step, and goes on from that file where it exists. SOLVER "deep": as adam, with a small layer
 * in front, and a weight that is the first operand of its product: its gradient travels while it is still read for that of the front layer. SOLVER "spoil": as adam, and after the last
 * step rank 1 sets a solver state before rank 0 looks at it: rank 0 must be told. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "weft.h"

enum { ROWS = 90, BATCH = 20, WIDTH = 37, CLASSES = 7 };

static weft_solver solver_of(const char *name) {
    if (strcmp(name, "sgd") == 0) return weft_sgd(0.05);
    if (strcmp(name, "momentum") == 0) return weft_sgd(0.02, .momentum = 0.9);
    if (strcmp(name, "nesterov") == 0) return weft_sgd(0.02, .momentum = 0.9, .nesterov = true, .clip_value = 0.05);
    if (strcmp(name, "adagrad") == 0) return weft_adagrad(0.02);
    if (strcmp(name, "rmsprop") == 0) return weft_rmsprop(0.002);
    if (strcmp(name, "clipped") == 0) return weft_adamw(0.003, .clip_norm = 0.7);
    return weft_adamw(0.003);
}

static weft_status write_all(weft_trainer *trainer, const char *path) {
    weft_variables *variables = weft_trainer_variables(trainer);
    FILE           *file = fopen(path, "wb");
    weft_status     status = file ? WEFT_OK : WEFT_E_IO;
    for (int32_t i = 0; i < weft_variables_count(variables) && status == WEFT_OK; i++) {
        weft_variable_info info;
        char               values[1 << 16];
        if ((status = weft_variables_info(variables, i, &info)) == WEFT_OK &&
            (status = weft_variables_get(variables, info.name, values, (size_t)info.bytes)) == WEFT_OK &&
            fwrite(values, 1, (size_t)info.bytes, file) != (size_t)info.bytes)
            status = WEFT_E_IO;
    }
    if (file && fclose(file) != 0) status = WEFT_E_IO;
    return status;
}

static void say_divided(weft_trainer *trainer) {
    weft_plan_op op;
    int          scattered = 0, gathered = 0;
    for (int32_t i = 0; weft_plan_op_at(weft_trainer_plan(trainer), i, &op) == WEFT_OK; i++) {
        scattered += strcmp(op.kind, "reduce_scatter") == 0;
        gathered += strcmp(op.kind, "all_gather") == 0;
    }
    printf("divided %d gathered %d\n", scattered, gathered);
    const char *text = NULL;
    if (weft_plan_describe(weft_trainer_plan(trainer), &text) == WEFT_OK && strstr(text, "in parts, which ranks "))
        printf("parts: %.5s\n", strstr(text, "in parts, which ranks ") + strlen("in parts, which ranks "));
}

/* Rank 1 is ahead: it has set the state by the time that rank 0 asks (half a second: there is nothing to wait for between them). */
static weft_status spoil(weft_trainer *trainer, int32_t rank) {
    weft_variables *variables = weft_trainer_variables(trainer);
    for (int32_t i = 0; i < weft_variables_count(variables); i++) {
        static char        zeros[1 << 16];
        weft_variable_info info;
        weft_status        status = weft_variables_info(variables, i, &info);
        if (status != WEFT_OK) return status;
        if (strcmp(info.name, "weft.solver.adam0/hidden.weight") != 0) continue;
        if (rank == 1) return weft_variables_set(variables, info.name, info.dtype, info.shape, zeros);
        usleep(500000);
        status = weft_variables_get(variables, info.name, zeros, (size_t)info.bytes);
        printf("spoiled %s %s\n", weft_status_name(status), weft_error_message());
        return WEFT_OK;
    }
    return WEFT_E_NOT_FOUND;
}

int main(int argc, char **argv) {
    static double  wide[ROWS * WIDTH];
    static float   slim[ROWS * WIDTH];
    static int32_t label[ROWS];
    char           path[4096];
    unsigned       state = 11;
    if (argc != 6 && argc != 7) return 2;
    weft_dtype    dtype = strcmp(argv[2], "f64") == 0 ? WEFT_F64 : WEFT_F32;
    long          steps = atol(argv[4]), save_at = argc == 7 ? atol(argv[6]) : 0;
    weft_world   *world = NULL;
    weft_graph   *graph = NULL;
    weft_loader  *loader = NULL;
    weft_trainer *trainer = NULL;
    weft_batch    batch;
    weft_status   status;
    for (int i = 0; i < ROWS * WIDTH; i++) wide[i] = slim[i] = (float)((state = state * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1;
    for (int i = 0; i < ROWS; i++) label[i] = i * 5 % CLASSES;
    if ((status = weft_world_create(NULL, &world)) != WEFT_OK) goto done;
    if ((status = weft_graph_create(&(weft_graph_options){.seed = 7}, &graph)) != WEFT_OK) goto done;
    weft_batch_field    fields[2] = {{"x", dtype, weft_shape(ROWS, WIDTH), dtype == WEFT_F64 ? (void *)wide : slim},
                                     {"label", WEFT_I32, weft_shape(ROWS), label}};
    weft_loader_options how = {.batch = BATCH, .rank = weft_world_rank(world), .ranks = weft_world_size(world), .seed = 3, .epochs = -1};
    if ((status = weft_loader_open_arrays(fields, 2, &how, &loader)) != WEFT_OK) goto done;
    weft_tensor *h = weft_input(graph, "x", dtype, weft_shape(BATCH, WIDTH));
    if (strcmp(argv[1], "deep") == 0) {
        h = weft_tanh(weft_linear(h, "front", .out = 6));
        h = weft_matmul(weft_parameter(graph, "hidden.weight", weft_shape(53, 6), .dtype = dtype), h, .transpose_b = true);
        h = weft_transpose(h, 0, 1);
    } else {
        h = weft_linear(h, "hidden", .out = 53);
    }
    h = weft_linear(weft_relu(h), "head", .out = CLASSES);
    weft_program program = {.loss = weft_cross_entropy(h, weft_input(graph, "label", WEFT_I32, weft_shape(BATCH))),
                            .regulariser = strcmp(argv[1], "rows") == 0 ? weft_group_lasso(1e-3) : weft_elastic_net(1e-4, 1e-3),
                            .solver = solver_of(argv[1]), .strategy = {.divide_bytes = atoll(argv[3])}};
    if ((status = weft_trainer_create(world, &program, &trainer)) != WEFT_OK) goto done;
    snprintf(path, sizeof path, "%s.safetensors", argv[5]);
    if (save_at > 0 && access(path, R_OK) == 0 && (status = weft_trainer_load(trainer, path, loader)) != WEFT_OK) goto done;
    while (weft_trainer_steps(trainer) < steps) {
        if ((status = weft_loader_next(loader, &batch)) != WEFT_OK) goto done;
        if ((status = weft_trainer_step(trainer, &batch, NULL)) != WEFT_OK) goto done;
        if (weft_trainer_steps(trainer) == save_at && (status = weft_trainer_save(trainer, path, loader)) != WEFT_OK) goto done;
    }
    if (weft_world_rank(world) == 0) say_divided(trainer);
    snprintf(path, sizeof path, "%s-%d", argv[5], (int)weft_world_rank(world));
    status = strcmp(argv[1], "spoil") == 0 ? spoil(trainer, weft_world_rank(world)) : write_all(trainer, path);
done:
    if (status != WEFT_OK) fprintf(stderr, "divide: %s: %s\n", weft_status_name(status), weft_error_message());
    weft_trainer_release(trainer);
    weft_loader_release(loader);
    weft_graph_release(graph);
    weft_world_release(world);
    return status == WEFT_OK ? 0 : 1;
}

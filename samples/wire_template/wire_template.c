/* Trains over a wire of the program's own: weftrun -n 2 wire_template. The wire is local_wire.c; this is all that it takes to use it. */
#include <stdio.h>

#include "local_wire.h"
#include "weft.h"

enum { ROWS = 512, BATCH = 64, WIDTH = 16, STEPS = 200 };

/* Points about three places, by the place that they belong to. */
static void make_data(float x[ROWS][WIDTH], int32_t y[ROWS]) {
    unsigned state = 1;
    for (int row = 0; row < ROWS; row++) {
        y[row] = row % 3;
        for (int k = 0; k < WIDTH; k++)
            x[row][k] = (float)((state = state * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1 + (k % 3 == y[row] ? 0.5f : 0);
    }
}

int main(void) {
    static float   x[ROWS][WIDTH];
    static int32_t y[ROWS];
    weft_world    *world = NULL;
    weft_graph    *graph = NULL;
    weft_loader   *loader = NULL;
    weft_trainer  *trainer = NULL;
    weft_report    report = {0};
    weft_status    status;
    make_data(x, y);
    if ((status = weft_world_create(&(weft_world_options){.own_wire = &local_wire}, &world)) != WEFT_OK) goto done;
    if ((status = weft_graph_create(&(weft_graph_options){.seed = 1}, &graph)) != WEFT_OK) goto done;
    weft_batch_field    fields[2] = {{"x", WEFT_F32, weft_shape(ROWS, WIDTH), x}, {"y", WEFT_I32, weft_shape(ROWS), y}};
    weft_loader_options how = {.batch = BATCH, .rank = weft_world_rank(world), .ranks = weft_world_size(world), .seed = 1, .epochs = -1};
    if ((status = weft_loader_open_arrays(fields, 2, &how, &loader)) != WEFT_OK) goto done;

    weft_tensor *h = weft_relu(weft_linear(weft_input(graph, "x", WEFT_F32, weft_shape(BATCH, WIDTH)), "hidden", .out = 32));
    weft_tensor *logits = weft_linear(h, "head", .out = 3);
    weft_program program = {.loss = weft_cross_entropy(logits, weft_input(graph, "y", WEFT_I32, weft_shape(BATCH))),
                            .solver = weft_adamw(5e-3)};
    if ((status = weft_trainer_create(world, &program, &trainer)) != WEFT_OK) goto done;
    for (int step = 0; step < STEPS; step++) {
        weft_batch batch;
        if ((status = weft_loader_next(loader, &batch)) != WEFT_OK) goto done;
        if ((status = weft_trainer_step(trainer, &batch, &report)) != WEFT_OK) goto done;
    }
    if (weft_world_rank(world) == 0) printf("%s: loss %.4f\n", weft_world_describe(world), report.loss);
done:
    if (status != WEFT_OK) fprintf(stderr, "%s\n", weft_error_message());
    weft_trainer_release(trainer);
    weft_loader_release(loader);
    weft_graph_release(graph);
    weft_world_release(world);
    return status == WEFT_OK ? 0 : 1;
}

/* An application in C, outside of the source tree: trains a small network to tell whether two numbers have the same sign, on as many
 * ranks as it is started with, and meets an error. Prints "outside: RANKS ranks, loss LOSS". */
#include <stdio.h>
#include <string.h>

#include <weft.h>

enum { ROWS = 256, BATCH = 64, EPOCHS = 60 };

static void make_data(float (*x)[2], int32_t *same) {
    unsigned state = 1;
    for (int i = 0; i < ROWS; i++) {
        for (int k = 0; k < 2; k++) x[i][k] = (float)((state = state * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1;
        same[i] = x[i][0] * x[i][1] > 0;
    }
}

/* The mean loss of the last epoch. */
static weft_status train(weft_world *world, weft_graph *graph, weft_loader **loader, weft_trainer **trainer, double *loss_out) {
    static float   x[ROWS][2];
    static int32_t same[ROWS];
    make_data(x, same);
    weft_batch_field    fields[2] = {{"x", WEFT_F32, weft_shape(ROWS, 2), x}, {"same", WEFT_I32, weft_shape(ROWS), same}};
    weft_loader_options how = {.batch = BATCH, .rank = weft_world_rank(world), .ranks = weft_world_size(world), .seed = 1, .epochs = EPOCHS};
    weft_status         s = weft_loader_open_arrays(fields, 2, &how, loader);
    if (s != WEFT_OK) return s;
    weft_tensor *h = weft_tanh(weft_linear(weft_input(graph, "x", WEFT_F32, weft_shape(BATCH, 2)), "hidden", .out = 16));
    weft_tensor *target = weft_input(graph, "same", WEFT_I32, weft_shape(BATCH));
    weft_program program = {.loss = weft_cross_entropy(weft_linear(h, "head", .out = 2), target), .solver = weft_adam(0.02)};
    if ((s = weft_trainer_create(world, &program, trainer)) != WEFT_OK) return s;
    weft_batch  batch;
    weft_report report;
    int         left = EPOCHS * (ROWS / BATCH);
    while ((s = weft_loader_next(*loader, &batch)) == WEFT_OK) {
        if ((s = weft_trainer_step(*trainer, &batch, &report)) != WEFT_OK) return s;
        if (left-- <= ROWS / BATCH) *loss_out += report.loss * BATCH / ROWS;
    }
    return s == WEFT_END ? WEFT_OK : s;
}

static int meets_an_error(weft_graph *graph) {
    weft_tensor *x = weft_input(graph, "odd", WEFT_F32, weft_shape(8, 3));
    weft_matmul(x, x); /* [8, 3] by [8, 3] */
    return weft_graph_check(graph) == WEFT_E_SHAPE && strstr(weft_graph_message(graph), "odd") != NULL;
}

int main(void) {
    weft_world   *world = NULL;
    weft_graph   *graph = NULL, *other = NULL;
    weft_loader  *loader = NULL;
    weft_trainer *trainer = NULL;
    double        loss = 0;
    weft_status   s;
    if ((s = weft_world_create(NULL, &world)) != WEFT_OK) goto done;
    if ((s = weft_graph_create(&(weft_graph_options){.seed = 1}, &graph)) != WEFT_OK) goto done;
    if ((s = weft_graph_create(NULL, &other)) != WEFT_OK) goto done;
    if ((s = train(world, graph, &loader, &trainer, &loss)) != WEFT_OK) goto done;
    if (!meets_an_error(other)) puts("outside: a wrong shape was let pass");
    else if (weft_world_rank(world) == 0) printf("outside: %d ranks, loss %.5f\n", (int)weft_world_size(world), loss);
done:
    if (s != WEFT_OK) fprintf(stderr, "outside: %s\n", weft_error_message());
    weft_trainer_release(trainer);
    weft_loader_release(loader);
    weft_graph_release(other);
    weft_graph_release(graph);
    weft_world_release(world);
    return s == WEFT_OK ? 0 : 1;
}

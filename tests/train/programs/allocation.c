/* Trains for a while and counts what later steps allocate, on every thread: batches from a loader with its own thread, an uneven last
 * batch, clipping, a schedule, states. usage: allocation adamw|lbfgs THREADS [CODEC]; prints "allocations N" and fails where N is not 0.
 * With several ranks, the best of a few rounds counts: a wire's pool of messages that came before their receive may still grow. */
#include <stdio.h>
#include <string.h>

#include "common/allocations.h"
#include "weft.h"

enum { ROWS = 50, BATCH = 16, CLASSES = 3, PIXELS = 64, WARM = 2 * 4, COUNTED = 2 * 4, ROUNDS = 12 }; /* epochs of 4 batches */

static weft_tensor *network(weft_tensor *x) {
    x = weft_relu(weft_batch_norm(weft_conv2d(x, "conv", .filters = 4, .kernel = 3, .pad = 1), "norm"));
    return weft_linear(weft_dropout(weft_flatten(weft_max_pool2d(x, .window = 2)), 0.25), "head", .out = CLASSES);
}

static weft_status step(weft_trainer *trainer, weft_loader *loader) {
    weft_batch  batch;
    weft_report report;
    weft_status status = weft_loader_next(loader, &batch);
    return status == WEFT_OK ? weft_trainer_step(trainer, &batch, &report) : status;
}

/* Trains, and counts what a round of steps allocates: the least of `rounds`. */
static weft_status count(weft_trainer *trainer, weft_loader *loader, int rounds, long *count_out) {
    weft_status        status = WEFT_OK;
    weft_memory_counts before, after;
    for (int i = 0; i < WARM && status == WEFT_OK; i++) status = step(trainer, loader);
    for (int round = 0; round < rounds && status == WEFT_OK; round++) {
        long calls = allocation_calls;
        weft_memory_read(&before);
        for (int i = 0; i < COUNTED && status == WEFT_OK; i++) status = step(trainer, loader);
        weft_memory_read(&after);
        long taken = allocation_calls - calls + (long)(after.allocations - before.allocations);
        if (round == 0 || taken < *count_out) *count_out = taken;
    }
    return status;
}

int main(int argc, char **argv) {
    static float   pixels[ROWS * PIXELS];
    static int32_t label[ROWS];
    if (argc != 3 && argc != 4) return 2;
    bool          lbfgs = strcmp(argv[1], "lbfgs") == 0;
    long          counted = -1;
    weft_world   *world = NULL;
    weft_graph   *graph = NULL;
    weft_loader  *loader = NULL;
    weft_trainer *trainer = NULL;
    weft_status   status;
    for (int i = 0; i < ROWS * PIXELS; i++) pixels[i] = (float)(i * 37 % 101) / 50 - 1;
    for (int i = 0; i < ROWS; i++) label[i] = i % CLASSES;
    weft_batch_field    fields[2] = {{"image", WEFT_F32, weft_shape(ROWS, 1, 8, 8), pixels}, {"label", WEFT_I32, weft_shape(ROWS), label}};
    weft_world_options  here = {.threads = {.count = atoi(argv[2])}};
    if ((status = weft_world_create(&here, &world)) != WEFT_OK) goto done;
    if ((status = weft_graph_create(NULL, &graph)) != WEFT_OK) goto done;
    weft_loader_options how = {.batch = BATCH, .rank = weft_world_rank(world), .ranks = weft_world_size(world), .seed = 3, .epochs = -1};
    if ((status = weft_loader_open_arrays(fields, 2, &how, &loader)) != WEFT_OK) goto done;
    weft_tensor *image = weft_input(graph, "image", WEFT_F32, weft_shape(BATCH, 1, 8, 8));
    weft_tensor *target = weft_input(graph, "label", WEFT_I32, weft_shape(BATCH));
    weft_program program = {.loss = weft_cross_entropy(network(image), target), .regulariser = weft_l2(1e-3), .trace = true, .profile = true,
                            .solver = lbfgs ? weft_lbfgs(1)
                                            : weft_adamw(1e-3, .clip_norm = 1, .schedule = {.kind = WEFT_COSINE, .warmup = 3, .steps = 90})};
    if (argc == 4 && (status = weft_compression_parse(argv[3], &program.strategy.compress)) != WEFT_OK) goto done;
    program.strategy.compress.least = 1;
    program.strategy.compress.warmup = WARM / 2; /* the plan with compression is made before */
    if ((status = weft_trainer_create(world, &program, &trainer)) != WEFT_OK) goto done;
    status = count(trainer, loader, weft_world_size(world) > 1 ? ROUNDS : 1, &counted);
done:
    if (status != WEFT_OK) fprintf(stderr, "allocation: %s: %s\n", weft_status_name(status), weft_error_message());
    else printf("allocations %ld\n", counted);
    weft_trainer_release(trainer);
    weft_loader_release(loader);
    weft_graph_release(graph);
    weft_world_release(world);
    return status == WEFT_OK && counted == 0 ? 0 : 1;
}

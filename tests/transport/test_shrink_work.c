/* What works in a world that follows a fault: all of it. Groups and collectives give exact results, and training gives the bits that it gives in
 * a world that was that small from the start. */
#include "weft.h" /* before ranks.h, whose type is called what some of its parameters are */

#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/files.h"
#include "ranks.h"

enum { ROWS = 120, BATCH = 24, WIDTH = 10, STEPS = 30, BEFORE = 7 };

static const char *wire;
static char        path[64]; /* of the checkpoint */

static weft_status wrong(const char *what) { return wefti_fail(WEFT_E_INTERNAL, "%s is wrong in the world that follows the fault", what); }

/* --- training --- */

typedef struct run {
    weft_graph   *graph;
    weft_loader  *loader;
    weft_trainer *trainer;
} run;

static float   x[ROWS][WIDTH];
static int32_t y[ROWS];

static void make_data(void) {
    unsigned state = 11;
    for (int i = 0; i < ROWS; i++) {
        y[i] = i % 3;
        for (int k = 0; k < WIDTH; k++)
            x[i][k] = (float)((state = state * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1 + 0.3f * (float)(k % 3 == y[i]);
    }
}

static weft_status begin_run(weft_world *world, run *out) {
    *out = (run){0};
    WEFTI_TRY(weft_graph_create(&(weft_graph_options){.seed = 3}, &out->graph));
    weft_batch_field    fields[2] = {{"x", WEFT_F32, weft_shape(ROWS, WIDTH), x}, {"y", WEFT_I32, weft_shape(ROWS), y}};
    weft_loader_options how = {.batch = BATCH, .rank = weft_world_rank(world), .ranks = weft_world_size(world), .seed = 9, .epochs = -1};
    WEFTI_TRY(weft_loader_open_arrays(fields, 2, &how, &out->loader));
    weft_graph  *g = out->graph;
    weft_tensor *h = weft_dropout(weft_relu(weft_linear(weft_input(g, "x", WEFT_F32, weft_shape(BATCH, WIDTH)), "hidden", .out = 20)), 0.2);
    weft_tensor *loss = weft_cross_entropy(weft_linear(h, "head", .out = 3), weft_input(g, "y", WEFT_I32, weft_shape(BATCH)));
    return weft_trainer_create(world, &(weft_program){.loss = loss, .solver = weft_adamw(2e-3)}, &out->trainer);
}

static weft_status take_steps(run *of, int steps) {
    weft_report report;
    weft_batch  batch;
    for (int step = 0; step < steps; step++) {
        WEFTI_TRY(weft_loader_next(of->loader, &batch));
        WEFTI_TRY(weft_trainer_step(of->trainer, &batch, &report));
    }
    return WEFT_OK;
}

static void end_run(run *of) {
    weft_trainer_release(of->trainer);
    weft_loader_release(of->loader);
    weft_graph_release(of->graph);
}

/* --- collectives --- */

static weft_status try_collectives(weft_world *world) {
    int32_t     rank = weft_world_rank(world), size = weft_world_size(world), root = rank == 0 ? 41 : 0, sum = 0, halves = 0, all[4] = {0};
    weft_group *group = NULL, *half = NULL;
    static float numbers[5000], sums[5000];
    WEFTI_TRY(weft_group_create(world, NULL, &group));
    WEFTI_TRY(weft_group_allgather(group, &rank, all, 1, WEFT_I32));
    for (int32_t i = 0; i < size; i++)
        if (all[i] != i) return wrong("allgather");
    WEFTI_TRY(weft_group_broadcast(group, &root, 1, WEFT_I32, 0));
    if (root != 41) return wrong("broadcast");
    for (int i = 0; i < 5000; i++) numbers[i] = (float)(i * (rank + 1));
    WEFTI_TRY(weft_group_allreduce(group, numbers, sums, 5000, WEFT_F32, WEFT_COMBINE_SUM));
    for (int i = 0; i < 5000; i++)
        if (sums[i] != (float)(i * size * (size + 1) / 2)) return wrong("allreduce");
    WEFTI_TRY(weft_group_allreduce(group, &rank, &sum, 1, WEFT_I32, WEFT_COMBINE_SUM));
    WEFTI_TRY(weft_group_split(group, rank % 2, -rank, &half)); /* in the other order */
    WEFTI_TRY(weft_group_allreduce(half, &rank, &halves, 1, WEFT_I32, WEFT_COMBINE_SUM));
    if (sum != size * (size - 1) / 2 || halves != (size == 3 && rank % 2 == 0 ? 2 : rank)) return wrong("a group's part");
    weft_group_release(half);
    weft_group_release(group);
    return WEFT_OK;
}

/* --- the ranks --- */

static weft_status open_world(weft_world **world_out) {
    return weft_world_create(&(weft_world_options){.wire = wire, .threads = {.count = 1}}, world_out);
}

static weft_status train_in(weft_world *world) {
    run of;
    WEFTI_TRY(begin_run(world, &of));
    WEFTI_TRY(take_steps(&of, STEPS));
    WEFTI_TRY(weft_trainer_save(of.trainer, path, of.loader));
    end_run(&of);
    return WEFT_OK;
}

static weft_status train_from_the_start(ranks *all, int32_t rank) {
    weft_world *world = NULL;
    (void)all, (void)rank;
    WEFTI_TRY(open_world(&world));
    WEFTI_TRY(train_in(world));
    weft_world_release(world);
    return WEFT_OK;
}

/* Rank 1 dies in the middle of training. */
static weft_status train_after_a_fault(ranks *all, int32_t rank) {
    weft_world *world = NULL, *next = NULL;
    run         lost;
    (void)all;
    WEFTI_TRY(open_world(&world));
    WEFTI_TRY(begin_run(world, &lost));
    weft_status status = take_steps(&lost, rank == 1 ? BEFORE : STEPS);
    if (rank == 1) raise(SIGKILL);
    if (status != WEFT_E_PEER) return wefti_fail(WEFT_E_INTERNAL, "no verdict in training: %s", weft_error_message());
    WEFTI_TRY(weft_world_shrink(world, NULL, &next));
    WEFTI_TRY(try_collectives(next));
    WEFTI_TRY(train_in(next));
    if (take_steps(&lost, 1) != WEFT_E_PEER) return wefti_fail(WEFT_E_INTERNAL, "the lost trainer trains: %s", weft_error_message());
    end_run(&lost); /* its world still stands, and goes last */
    weft_world_release(world);
    weft_world_release(next);
    return WEFT_OK;
}

static uint8_t *run_all(int32_t size, rank_function function, int32_t dies, size_t *bytes_out) {
    struct stat info;
    snprintf(path, sizeof path, "%s/weft-shrink-%d-%d", temporary_root(), (int)getpid(), (int)size);
    ranks *all = ranks_start(size, function);
    ranks_join(all);
    for (int32_t rank = 0; rank < size; rank++)
        if (rank != dies)
            cr_assert(atomic_load(&all->results[rank].finished) && all->results[rank].status == WEFT_OK, "%s, rank %d of %d: %s", wire, (int)rank, (int)size,
                      all->results[rank].message);
    ranks_free(all);
    cr_assert_eq(stat(path, &info), 0, "there is no checkpoint");
    uint8_t *bytes = malloc((size_t)info.st_size);
    FILE    *file = fopen(path, "rb");
    *bytes_out = (size_t)info.st_size;
    cr_assert(bytes && file && fread(bytes, 1, *bytes_out, file) == *bytes_out);
    fclose(file);
    unlink(path);
    return bytes;
}

Test(shrink_work, trains_to_the_bits_of_a_world_of_that_size) {
    static const char *const names[] = {"shm", "tcp"};
    make_data();
    for (int n = 0; n < 2; n++) {
        size_t sizes[2];
        wire = names[n];
        uint8_t *alone = run_all(3, train_from_the_start, -1, &sizes[0]), *after = run_all(4, train_after_a_fault, 1, &sizes[1]);
        cr_expect(sizes[0] == sizes[1] && memcmp(alone, after, sizes[0]) == 0, "%s: the checkpoints differ", wire);
        free(alone);
        free(after);
    }
}

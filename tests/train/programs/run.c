/* A small training run that can be killed and resumed. usage: run CHECKPOINT STEPS EVERY [DIE_RANK DIE_STEP]
 * Resumes from CHECKPOINT where it exists, saves every EVERY steps and at the end. At DIE_STEP the rank DIE_RANK prints "died NANOSECONDS"
 * and kills itself; a rank that sees an error prints "error NANOSECONDS STATUS MESSAGE" and exits with 1. Environment: RUN_PAUSE_MS, that
 * rank 0 idles in each step while the others wait for it; RUN_TIMEOUT_MS, of the world; RUN_SYNC_MS, that the disk takes for the first
 * file; RUN_SOLVER: adamw, adam, sgd, momentum or lbfgs; RUN_SERVER: 1, by a parameter server; RUN_NAN=field or share: in step 3 the rows of rank 1 (in the loss alone) are not finite;
 * RUN_OTHER: what rank 1 is told otherwise (dropout, schedule, epsilon, nesterov, bias, rows). */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "train/programs/far_world.h"
#include "weft.h"

enum { ROWS = 500, BATCH = 48, WIDTH = 64 };

static long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static long number_of(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

/* In the place of libc's: a slow disk. */
int fsync(int descriptor) {
    static int calls;
    if (calls++ == 0) usleep((useconds_t)number_of("RUN_SYNC_MS") * 1000);
    return (int)syscall(SYS_fsync, descriptor);
}

static void die(void) {
    printf("died %lld\n", now_ns());
    fflush(stdout);
    kill(getpid(), SIGKILL);
}

static weft_solver solver_of(const char *name) {
    if (name && strcmp(name, "sgd") == 0) return weft_sgd(0.02);
    if (name && strcmp(name, "momentum") == 0) return weft_sgd(0.02, .momentum = 0.9, .nesterov = true);
    if (name && strcmp(name, "lbfgs") == 0) return weft_lbfgs(0.5, .history = 4);
    if (name && strcmp(name, "adam") == 0) return weft_adamw(2e-3, .schedule = {.kind = WEFT_COSINE, .warmup = 5, .steps = 100});
    return weft_adamw(2e-3, .clip_norm = 1, .schedule = {.kind = WEFT_COSINE, .warmup = 5, .steps = 100});
}

static bool is_other(const weft_world *world, const char *what) {
    const char *other = getenv("RUN_OTHER");
    return other && strcmp(other, what) == 0 && weft_world_rank(world) == 1;
}

/* Rank 1's rows in step 3: pixels that are not finite, or labels that no class has, which only its own share of the loss sees. */
static void spoil(weft_batch *batch, long step, int32_t rank) {
    static float   bad_x[BATCH * WIDTH];
    static int32_t bad_y[BATCH];
    const char    *what = getenv("RUN_NAN");
    if (!what || step != 3 || rank != 1) return;
    for (int i = 0; i < BATCH * WIDTH; i++) bad_x[i] = NAN;
    for (int i = 0; i < BATCH; i++) bad_y[i] = 1000;
    if (strcmp(what, "field") == 0) batch->field[0].data = bad_x;
    else batch->field[1].data = bad_y;
}

int main(int argc, char **argv) {
    static float   x[ROWS][WIDTH];
    static int32_t y[ROWS];
    if (argc < 4) return 2;
    long          steps = atol(argv[2]), every = atol(argv[3]), die_rank = argc > 5 ? atol(argv[4]) : -1, die_step = argc > 5 ? atol(argv[5]) : -1;
    unsigned      state = 5;
    weft_world   *world = NULL;
    weft_graph   *graph = NULL;
    weft_loader  *loader = NULL;
    weft_trainer *trainer = NULL;
    weft_report   report = {0};
    weft_status   status;
    for (int i = 0; i < ROWS; i++) {
        y[i] = i % 4;
        for (int k = 0; k < WIDTH; k++) x[i][k] = (float)((state = state * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1 + 0.2f * (float)(k % 4 == y[i]);
    }
    if ((status = weft_world_create(&(weft_world_options){.timeout_ns = number_of("RUN_TIMEOUT_MS") * 1000000}, &world)) != WEFT_OK) goto done;
    far_world(world);
    if ((status = weft_graph_create(&(weft_graph_options){.seed = 3}, &graph)) != WEFT_OK) goto done;
    weft_batch_field    fields[2] = {{"x", WEFT_F32, weft_shape(ROWS, WIDTH), x}, {"y", WEFT_I32, weft_shape(ROWS), y}};
    weft_loader_options how = {.batch = BATCH, .rank = weft_world_rank(world), .ranks = weft_world_size(world), .seed = 9, .epochs = -1};
    if ((status = weft_loader_open_arrays(fields, 2, &how, &loader)) != WEFT_OK) goto done;
    weft_tensor *h = weft_input(graph, "x", WEFT_F32, weft_shape(BATCH, WIDTH));
    h = weft_dropout(weft_relu(weft_batch_norm(weft_linear(h, "hidden", .out = 96), "norm")), is_other(world, "dropout") ? 0.3 : 0.2);
    weft_tensor *loss = weft_cross_entropy(weft_linear(h, "head", .out = 4, .bias_init = is_other(world, "bias") ? weft_init_ones() : weft_init_zeros()), weft_input(graph, "y", WEFT_I32, weft_shape(BATCH)));
    weft_program program = {.loss = loss, .solver = solver_of(getenv("RUN_SOLVER")),
                            .strategy = {.sync = number_of("RUN_SERVER") ? WEFT_SERVER : WEFT_ALLREDUCE}};
    if (is_other(world, "schedule")) program.solver.schedule.steps++;
    if (is_other(world, "rows")) program.strategy.tensor_rows = -1;
    if (is_other(world, "epsilon")) program.solver.epsilon = 1e-7;
    if (is_other(world, "nesterov")) program.solver.nesterov = !program.solver.nesterov;
    if ((status = weft_trainer_create(world, &program, &trainer)) != WEFT_OK) goto done;
    status = weft_trainer_load(trainer, argv[1], loader);
    if (status != WEFT_OK && status != WEFT_E_NOT_FOUND) goto done;
    status = WEFT_OK;
    for (long i = weft_trainer_steps(trainer) + 1; i <= steps; i++) {
        weft_batch batch;
        if (i == die_step && weft_world_rank(world) == die_rank) die();
        if (weft_world_rank(world) == 0) usleep((useconds_t)number_of("RUN_PAUSE_MS") * 1000);
        if ((status = weft_loader_next(loader, &batch)) != WEFT_OK) goto done;
        spoil(&batch, i, weft_world_rank(world));
        if ((status = weft_trainer_step(trainer, &batch, &report)) != WEFT_OK) goto done;
        if ((i % every == 0 || i == steps) && (status = weft_trainer_save(trainer, argv[1], loader)) != WEFT_OK) goto done;
    }
    if (weft_world_rank(world) == 0) printf("done %lld loss %.9g\n", (long long)weft_trainer_steps(trainer), report.loss);
done:
    if (status != WEFT_OK) printf("error %lld %s %s\n", now_ns(), weft_status_name(status), weft_error_message());
    fflush(stdout);
    weft_trainer_release(trainer);
    weft_loader_release(loader);
    weft_graph_release(graph);
    weft_world_release(world);
    return status == WEFT_OK ? 0 : 1;
}

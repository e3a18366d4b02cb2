/* Training a perceptron of equal layers by a strategy that splits its layers or its batch's work, against the same training by one process.
 *
 * Windows of both take turns on the same ranks: so many steps by the strategy, all ranks together, and so many by each rank alone, side by side. With
 * the speed of these independent copies, which train as many networks as there are ranks, taken as the number of ranks, a strategy's speed is their time / its time, and so neither cores that share
 * a cache nor other users of the machine are put down to it. The limit of a pipeline is its order's formula (weft/strategy.h), with backward
 * passes that take twice as long as forward ones. Losses must agree before a time counts. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"
#include "ranks.h"
#include "weft.h"

enum { MOST_RUNS = 64 };

/* Measured where none is named. */
static const char *const usual[] = {"pipeline=2,accumulate=8,schedule=1f1b", "pipeline=2,accumulate=8,schedule=gpipe", "pipeline=2,accumulate=8,schedule=interleaved",
                                    "pipeline=2,accumulate=8,schedule=zero-bubble", "tensor=2"};

typedef struct mesh_shared {
    char   store[64];
    double many[MOST_RUNS], copies[MOST_RUNS], waits, off; /* seconds of a step, of the slowest rank; waits, at rank 0, as a part of the step */
} mesh_shared;

typedef struct mesh_options {
    const char   *json_path, *wire, *name;
    double        ranks, windows, steps, width, layers, rows;
    weft_strategy strategy;
    mesh_shared  *shared;
} mesh_options;

/* --- one rank --- */

typedef struct runner {
    weft_world   *world;
    weft_graph   *graph;
    weft_trainer *trainer;
    weft_batch    batch;
    double        loss, waits;
} runner;

/* Inputs are shifted by parameters, so that the first layer hands gradients on as all others do: stages are then of the same work. */
static weft_tensor *perceptron(weft_graph *g, const mesh_options *o) {
    int64_t      rows = (int64_t)o->rows, width = (int64_t)o->width;
    weft_tensor *x = weft_add(weft_input(g, "x", WEFT_F32, weft_shape(rows, width)), weft_parameter(g, "shift", weft_shape(width))), *y = weft_input(g, "y", WEFT_F32, weft_shape(rows, width));
    char         name[32];
    for (int i = 0; i < (int)o->layers; i++) {
        snprintf(name, sizeof name, "layer%d", i);
        x = weft_relu(weft_linear(x, name, .out = width));
    }
    return weft_mse(x, y);
}

static void open_runner(bench_rank *rank, const weft_world_options *how, const weft_strategy *strategy, runner *r) {
    const mesh_options *o = rank->argument;
    BENCH_TRY(rank, weft_world_create(how, &r->world));
    BENCH_TRY(rank, weft_graph_create(NULL, &r->graph));
    weft_program program = {.loss = perceptron(r->graph, o), .solver = weft_sgd(0.01), .strategy = *strategy};
    BENCH_TRY(rank, weft_trainer_create(r->world, &program, &r->trainer));
}

static void close_runner(runner *r) {
    weft_trainer_release(r->trainer);
    weft_graph_release(r->graph);
    weft_world_release(r->world);
}

/* This rank's rows of a batch whose numbers are the same in all runs. */
static void give_rows(bench_rank *rank, runner *r, float *values) {
    const mesh_options *o = rank->argument;
    int64_t             rows, first, width = (int64_t)o->width;
    int32_t             part, parts;
    weft_trainer_share(r->trainer, &part, &parts);
    weft_batch_share((int64_t)o->rows, part, parts, &first, &rows);
    r->batch = (weft_batch){.field_count = 2, .global_rows = (int64_t)o->rows, .local_rows = rows, .first_row = first};
    r->batch.field[0] = (weft_batch_field){"x", WEFT_F32, weft_shape(rows, width), values + first * width};
    r->batch.field[1] = (weft_batch_field){"y", WEFT_F32, weft_shape(rows, width), values + ((int64_t)o->rows + first) * width};
}

/* Seconds of a step, of the slowest rank. */
static double run_steps(bench_rank *rank, runner *r, int steps) {
    weft_report report;
    uint64_t    waited = 0;
    bench_meet(rank);
    double begin = bench_now_s();
    for (int i = 0; i < steps; i++) {
        BENCH_TRY(rank, weft_trainer_step(r->trainer, &r->batch, &report));
        waited += report.wait_ns;
    }
    double took = bench_slowest(rank, bench_now_s() - begin);
    r->loss = report.loss;
    r->waits = 1e-9 * (double)waited / took;
    return took / steps;
}

static int measure_rank(bench_rank *rank) {
    const mesh_options *o = rank->argument;
    size_t              numbers = 2 * (size_t)o->rows * (size_t)o->width;
    float              *values = malloc(numbers * sizeof *values);
    runner              many = {0}, alone = {0};
    uint32_t            state = 1;
    if (!values) bench_fail(rank, "malloc");
    for (size_t i = 0; i < numbers; i++) values[i] = (float)((state = state * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1.0f;
    open_runner(rank, &(weft_world_options){.rank = rank->rank, .size = rank->size, .store = o->shared->store, .wire = rank->wire_name, .threads = {.count = 1}},
                &o->strategy, &many);
    open_runner(rank, &(weft_world_options){.size = 1, .threads = {.count = 1}}, &(weft_strategy){.accumulate = o->strategy.accumulate}, &alone);
    give_rows(rank, &many, values);
    give_rows(rank, &alone, values);
    for (int i = -1; i < (int)o->windows; i++) { /* the first is not counted: pages, caches, clocks */
        double together = run_steps(rank, &many, i < 0 ? 2 : (int)o->steps), apart = run_steps(rank, &alone, i < 0 ? 2 : (int)o->steps);
        if (rank->rank != 0) continue;
        o->shared->off = fmax(o->shared->off, fabs(many.loss / alone.loss - 1));
        o->shared->waits = many.waits;
        if (i < 0) continue;
        o->shared->many[i] = together;
        o->shared->copies[i] = apart;
    }
    close_runner(&many);
    close_runner(&alone);
    free(values);
    return 0;
}

/* --- all --- */

/* What a pipeline's ranks are busy, of a step, with passes of 1 forward, 1 backward and 1 for weights. */
static double busy(const weft_strategy *s) {
    double p = s->pipeline > 1 ? s->pipeline - 1 : 0, m = s->accumulate > 0 ? s->accumulate : 1, v = s->chunks > 0 ? s->chunks : 2;
    if (s->schedule == WEFT_INTERLEAVED) return v * m / (v * m + p);
    return s->schedule == WEFT_ZERO_BUBBLE ? 3 * m / (3 * m + p) : m / (m + p);
}

static void measure(mesh_options *o, FILE *json) {
    double speeds[MOST_RUNS], shares[MOST_RUNS];
    int    runs = (int)o->windows, holder = bench_pick_store(o->shared->store);
    char   extra[256];
    if (weft_strategy_parse(o->name, &o->strategy) != WEFT_OK) {
        fprintf(stderr, "error: %s\n", weft_error_message());
        exit(2);
    }
    o->shared->off = 0;
    if (bench_run_ranks(o->wire, (int32_t)o->ranks, measure_rank, o) != 0) exit(1);
    close(holder);
    if (!(o->shared->off < 1e-4)) {
        fprintf(stderr, "error: %s: the loss is off by %g\n", o->name, o->shared->off);
        exit(1);
    }
    double limit = o->ranks * busy(&o->strategy);
    for (int i = 0; i < runs; i++) speeds[i] = o->shared->copies[i] / o->shared->many[i];
    for (int i = 0; i < runs; i++) shares[i] = speeds[i] / limit;
    bench_spread step = bench_spread_of(o->shared->many, runs), copies = bench_spread_of(o->shared->copies, runs), speed = bench_spread_of(speeds, runs);
    double       share = bench_spread_of(shares, runs).median;
    snprintf(extra, sizeof extra, "\"ranks\": %.0f, \"width\": %.0f, \"layers\": %.0f, \"rows\": %.0f, \"copy_s\": %.5f, \"of_limit\": %.3f, \"waiting\": %.3f, \"off\": %.2g",
             o->ranks, o->width, o->layers, o->rows, copies.median, share, o->shared->waits, o->shared->off);
    bench_write(json, &(bench_record){"mesh", o->name, "time", "s", step, BENCH_UNMEASURED, extra});
    bench_write(json, &(bench_record){"mesh", o->name, "speed", "copies", speed, limit, extra});
    printf("%-46s %9.4f %9.4f %7.3f [%.3f, %.3f] %7.3f %7.3f %8.1f%%\n", o->name, copies.median, step.median, speed.median, speed.low, speed.high, limit, share,
           100 * o->shared->waits);
    fflush(stdout);
}

int bench_mesh(int argc, char **argv) {
    mesh_options       o = {.wire = "shm", .ranks = 2, .windows = 7, .steps = 4, .width = 2048, .layers = 4, .rows = 512};
    const bench_option options[] = {{"strategy", "as weft_strategy_parse reads it; a list of usual ones where none is named", BENCH_TEXT, &o.name},
                                    {"wire", "shm or tcp", BENCH_TEXT, &o.wire},
                                    {"ranks", "of the strategy, and independent copies", BENCH_NUMBER, &o.ranks},
                                    {"windows", "times that each is measured", BENCH_NUMBER, &o.windows},
                                    {"steps", "in each", BENCH_NUMBER, &o.steps},
                                    {"width", "of a layer", BENCH_NUMBER, &o.width},
                                    {"layers", "of the perceptron", BENCH_NUMBER, &o.layers},
                                    {"rows", "of a batch", BENCH_NUMBER, &o.rows},
                                    {"json", "file for the records", BENCH_TEXT, &o.json_path},
                                    {0}};
    bench_read_options(argc, argv, "A perceptron's training by a strategy, and by as many independent copies side by side.", options);
    if (!(o.ranks >= 1 && o.ranks <= BENCH_MOST_RANKS && o.windows >= 1 && o.windows <= MOST_RUNS && o.steps >= 1 && o.width >= 1 && o.layers >= 1 && o.rows >= 1)) {
        fprintf(stderr, "error: 1 to %d ranks, 1 to %d windows, and steps, width, layers and rows of at least 1\n", BENCH_MOST_RANKS, MOST_RUNS);
        return 2;
    }
    o.shared = mmap(NULL, sizeof *o.shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (o.shared == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    FILE *json = bench_open_json(o.json_path);
    printf("%-46s %9s %9s %7s %14s %7s %7s %9s\n", "strategy", "copy s", "step s", "speed", "", "limit", "share", "waiting");
    for (size_t i = 0; i < (o.name ? 1 : sizeof usual / sizeof *usual); i++) {
        mesh_options one = o;
        one.name = o.name ? o.name : usual[i];
        measure(&one, json);
    }
    if (json) fclose(json);
    return 0;
}

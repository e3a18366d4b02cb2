/* Classic model parallelism: how much sooner so many ranks are at the minimum than one. L1 regression by scheduled coordinates (weft/coordinate.h) and matrix
 * factorisation by rotating blocks (weft/factor.h), on data made on the spot.
 *
 * One rank and more take turns, so that a machine that is now quick and now slow is so for both; the objectives must agree to 1e-6 before a time counts.
 * Beside each speed-up stands its limit: what two independent copies of the work, side by side, gain on this machine's cores. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"
#include "core/tensor/philox.h"
#include "ranks.h"
#include "weft.h"

enum { MOST_RUNS = 64 };

typedef struct blocks_shared {
    char   store[64];
    double seconds[BENCH_MOST_RANKS], objective, waits; /* waits: of rank 0, as a part of the whole */
} blocks_shared;

typedef struct blocks_options {
    const char *json_path, *wire;
    double ranks, windows, rows, columns, ratings, factors;
    bool   factor;  /* which problem */
    bool   copies;  /* every rank the whole problem, in a world of its own */
    blocks_shared *shared;
    weft_columns   data;
    const float   *label;
    const int32_t *row, *column;
    const float   *value;
} blocks_options;

static void *take(size_t bytes) {
    void *memory = malloc(bytes);
    if (!memory) {
        perror("malloc");
        exit(1);
    }
    return memory;
}

/* --- problems --- */

/* A quarter of the entries. Columns come in groups of 8, which have their rows in common and half of their variance: descent has to go over them many times. One
 * weight in twenty is not 0. */
static void make_columns(blocks_options *o) {
    enum { GROUP = 8, TRUE_ONE_IN = 20 };
    int64_t  n = (int64_t)o->rows, d = (int64_t)o->columns, each = n / 4 > 0 ? n / 4 : 1;
    int64_t *start = take((size_t)(d + 1) * sizeof *start);
    int32_t *row = take((size_t)(d * each) * sizeof *row);
    float   *value = take((size_t)(d * each) * sizeof *value), *label = take((size_t)n * sizeof *label);
    for (int64_t i = 0; i < n; i++) label[i] = 0.1f * (float)wefti_random_normal(3, 1, i, WEFT_F32);
    for (int64_t j = 0; j < d; j++) {
        float weight = j % TRUE_ONE_IN == 0 ? (float)wefti_random_normal(3, 2, j, WEFT_F32) : 0;
        start[j] = j * each;
        for (int64_t e = 0; e < each; e++) { /* one row in each run of n / each */
            int64_t at = j * each + e, common = j / GROUP * each + e, begin = e * n / each, end = (e + 1) * n / each;
            row[at] = (int32_t)(begin + (int64_t)((double)wefti_uniform(3, 3, common) * (double)(end - begin)));
            value[at] = (float)(sqrt(0.5) * (wefti_random_normal(3, 4, at, WEFT_F32) + wefti_random_normal(3, 5, common, WEFT_F32)));
            label[row[at]] += weight * value[at];
        }
    }
    start[d] = d * each;
    o->data = (weft_columns){n, d, start, row, value};
    o->label = label;
}

static void make_ratings(blocks_options *o) {
    int64_t  n = (int64_t)o->ratings, rows = (int64_t)o->rows, columns = (int64_t)o->columns;
    int32_t *row = take((size_t)n * sizeof *row), *column = take((size_t)n * sizeof *column);
    float   *value = take((size_t)n * sizeof *value);
    for (int64_t e = 0; e < n; e++) {
        row[e] = (int32_t)(e * rows / n);
        column[e] = (int32_t)((double)wefti_uniform(5, 1, e) * (double)columns);
        value[e] = 0.3f * (float)wefti_random_normal(5, 2, e, WEFT_F32);
        for (int64_t k = 0; k < 8; k++)
            value[e] += (float)(wefti_random_normal(5, 3, row[e] * 8 + k, WEFT_F32) * wefti_random_normal(5, 4, column[e] * 8 + k, WEFT_F32));
    }
    o->row = row;
    o->column = column;
    o->value = value;
}

static void minimise(bench_rank *rank, weft_world *world) {
    const blocks_options   *o = rank->argument;
    weft_coordinate_problem problem = {.data = &o->data, .label = o->label, .l1 = 0.001};
    weft_coordinate_report  report;
    double                 *weights = calloc((size_t)o->data.columns, sizeof *weights), intercept = 0;
    if (!weights) exit(1);
    BENCH_TRY(rank, weft_coordinate_minimise(world, &problem, NULL, weights, &intercept, &report));
    if (rank->rank == 0) {
        o->shared->objective = report.objective;
        o->shared->waits = (double)report.wait_ns / (double)(report.wait_ns + report.compute_ns);
    }
    free(weights);
}

static void factorise(bench_rank *rank, weft_world *world) {
    const blocks_options *o = rank->argument;
    int64_t               n = (int64_t)o->ratings, rows = (int64_t)o->rows, first, count, begin = 0, end;
    weft_batch_share(rows, weft_world_rank(world), weft_world_size(world), &first, &count);
    while (begin < n && o->row[begin] < first) begin++;
    for (end = begin; end < n && o->row[end] < first + count; end++) continue;
    weft_ratings        ratings = {rows, (int64_t)o->columns, end - begin, o->row + begin, o->column + begin, o->value + begin};
    weft_factor_options how = {.factors = (int32_t)o->factors, .blocks = 2 * (int32_t)o->ranks, .l2 = 1, .epochs = 10, .sweeps = 4, .decrease = -1};
    weft_factor_report  report;
    weft_factors       *factors = NULL;
    BENCH_TRY(rank, weft_factor_train(world, &ratings, &how, &factors, &report));
    weft_factors_release(factors);
    if (rank->rank == 0) {
        o->shared->objective = report.loss;
        o->shared->waits = (double)report.wait_ns / (double)(report.wait_ns + report.compute_ns);
    }
}

/* --- running --- */

static int run_one(bench_rank *rank) {
    const blocks_options *o = rank->argument;
    weft_world           *world = NULL;
    weft_world_options    together = {.rank = rank->rank, .size = rank->size, .store = o->shared->store, .wire = rank->wire_name, .threads = {.count = 1}};
    BENCH_TRY(rank, weft_world_create(o->copies ? &(weft_world_options){.size = 1, .threads = {.count = 1}} : &together, &world));
    bench_meet(rank);
    double begin = bench_now_s();
    (o->factor ? factorise : minimise)(rank, world);
    o->shared->seconds[rank->rank] = bench_now_s() - begin;
    bench_meet(rank);
    weft_world_release(world);
    return 0;
}

/* Seconds of the slowest. Exits where a rank fails. */
static double run(blocks_options *o, int32_t ranks, bool copies) {
    int    holder = bench_pick_store(o->shared->store);
    double most = 0;
    o->copies = copies;
    if (bench_run_ranks(o->wire, ranks, run_one, o) != 0) exit(1);
    close(holder);
    for (int32_t r = 0; r < ranks; r++) most = fmax(most, o->shared->seconds[r]);
    return most;
}

static void measure(blocks_options *o, FILE *json) {
    double        alone[MOST_RUNS], many[MOST_RUNS], gain[MOST_RUNS], limit[MOST_RUNS], objective = 0, waits = 0, off = 0;
    int           runs = (int)o->windows;
    int32_t       ranks = (int32_t)o->ranks;
    char          extra[200], what[100];
    const char   *name = o->factor ? "factor" : "coordinate";
    for (int i = 0; i < runs; i++) {
        alone[i] = run(o, 1, false);
        objective = o->shared->objective;
        many[i] = run(o, ranks, false);
        off = fmax(off, fabs(o->shared->objective / objective - 1));
        waits = o->shared->waits;
        gain[i] = alone[i] / many[i];
        limit[i] = (double)ranks * alone[i] / run(o, ranks, true);
    }
    if (off > 1e-6) {
        fprintf(stderr, "error: %s: the objective with %d ranks is off by %g\n", name, ranks, off);
        exit(1);
    }
    bench_spread one = bench_spread_of(alone, runs), all = bench_spread_of(many, runs), gains = bench_spread_of(gain, runs);
    double       most = bench_spread_of(limit, runs).median;
    snprintf(what, sizeof what, "%s %.0fx%.0f", name, o->rows, o->columns);
    snprintf(extra, sizeof extra, "\"ranks\": %d, \"objective\": %.9g, \"off\": %.2g, \"waiting\": %.3f, \"alone_s\": %.4f", ranks, objective, off, waits, one.median);
    bench_write(json, &(bench_record){"blocks", what, "time", "s", all, BENCH_UNMEASURED, extra});
    bench_write(json, &(bench_record){"blocks", what, "speedup", "x", gains, most, extra});
    printf("%-24s %6d %10.3f %10.3f %8.2f [%.2f, %.2f] %8.2f %8.0f%% %10.2g\n", what, ranks, one.median, all.median, gains.median, gains.low, gains.high, most, 100 * waits, off);
}

int bench_blocks(int argc, char **argv) {
    blocks_options     o = {.wire = "shm", .ranks = 2, .windows = 5, .rows = 4000, .columns = 4000, .ratings = 1e6, .factors = 16};
    const bench_option options[] = {{"wire", "shm or tcp", BENCH_TEXT, &o.wire},
                                    {"ranks", "beside one", BENCH_NUMBER, &o.ranks},
                                    {"windows", "times that each is run", BENCH_NUMBER, &o.windows},
                                    {"rows", "of either matrix", BENCH_NUMBER, &o.rows},
                                    {"columns", "of either matrix", BENCH_NUMBER, &o.columns},
                                    {"ratings", "to be factorised", BENCH_NUMBER, &o.ratings},
                                    {"factors", "of the factorisation", BENCH_NUMBER, &o.factors},
                                    {"json", "file for the records", BENCH_TEXT, &o.json_path},
                                    {0}};
    bench_read_options(argc, argv, "Classic model parallelism: the time to the minimum on one rank and on more.", options);
    if (!(o.ranks >= 2 && o.ranks <= BENCH_MOST_RANKS && o.windows >= 1 && o.windows <= MOST_RUNS && o.rows >= 2 * o.ranks && o.columns >= 2 * o.ranks && o.ratings >= 1)) {
        fprintf(stderr, "error: 2 to %d ranks, 1 to %d windows, and rows and columns at least twice the ranks\n", BENCH_MOST_RANKS, MOST_RUNS);
        return 2;
    }
    o.shared = mmap(NULL, sizeof *o.shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (o.shared == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    FILE *json = bench_open_json(o.json_path);
    printf("%-24s %6s %10s %10s %8s %14s %8s %9s %10s\n", "problem", "ranks", "alone s", "ranks s", "speed-up", "", "limit", "waiting", "off");
    make_columns(&o);
    measure(&o, json);
    o.factor = true;
    make_ratings(&o);
    measure(&o, json);
    if (json) fclose(json);
    return 0;
}

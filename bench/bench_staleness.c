/* How training converges by staleness: bulk-synchronous, bounded by 1, 4 and 16, and asynchronous; on a convex problem and a deep one, with workers of one
 * pace and with one that is slow. Not a race: what is recorded is the loss at clocks, and when these were.
 *
 * Convex: logistic regression by stochastic gradients on a table of the parameter server, with the step of the theorem of Ho et al. 2013 ("More effective
 * distributed ML via a stale synchronous parallel parameter server"): eta_t = sigma / sqrt(t), sigma = F / (L sqrt(2 (s+1) P)), for which the
 * mean regret after T updates is at most 4 F L sqrt(2 (s+1) P / T). L is the longest sample; F bounds the distance between iterates (half of its
 * square by F^2): here F = sqrt(2) |x*|, and it is looked whether every iterate kept to it. The regret is against the minimiser x* of the whole.
 *
 * Deep: an MLP by the trainer with strategy.sync = WEFT_SERVER, on what another, random MLP says of random points. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"
#include "core/tensor/philox.h"
#include "ranks.h"
#include "weft.h"

enum { SAMPLES = 3000, FEATURES = 40, BATCH = 8, MOST_CLOCKS = 4096, MOST_WORKERS = 8, POINTS = 8192, INPUTS = 24, CLASSES = 8, ROWS = 32 };

typedef struct trace {
    double value[MOST_CLOCKS]; /* of the worker's clock: regret, or loss */
    double seconds[MOST_CLOCKS]; /* since the workers began */
} trace;

typedef struct staleness_shared {
    char   store[64];
    double begin, farthest[MOST_WORKERS]; /* of x*: the largest half square of a distance */
    trace  traces[MOST_WORKERS];
} staleness_shared;

typedef struct staleness_options {
    const char *json_path;
    double workers, clocks, slow_ms;
    int32_t staleness;
    bool slow, deep;
    staleness_shared *shared;
    const float *samples, *labels, *best; /* convex */
    double longest, norm;
} staleness_options;

static void slow_down(const staleness_options *o, int32_t rank) {
    struct timespec pause = {0, (long)(o->slow_ms * 1e6)};
    if (o->slow && rank == 0) nanosleep(&pause, NULL);
}

/* --- convex --- */

static double dot(const float *a, const float *b) {
    double sum = 0;
    for (int i = 0; i < FEATURES; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

static double loss_at(const staleness_options *o, int64_t row, const float *x) {
    double margin = (double)o->labels[row] * dot(o->samples + row * FEATURES, x);
    return log1p(exp(-fabs(margin))) + (margin < 0 ? -margin : 0);
}

/* gradient += of one sample's loss. */
static void add_gradient(const staleness_options *o, int64_t row, const float *x, double *gradient) {
    const float *sample = o->samples + row * FEATURES;
    double       label = (double)o->labels[row], weight = -label / (1 + exp(label * dot(sample, x)));
    for (int i = 0; i < FEATURES; i++) gradient[i] += weight * (double)sample[i];
}

static void make_convex(staleness_options *o) {
    float *samples = malloc(SAMPLES * FEATURES * sizeof *samples), *labels = malloc(SAMPLES * sizeof *labels), *best = calloc(FEATURES, sizeof *best);
    if (!samples || !labels || !best) exit(1);
    o->samples = samples;
    o->labels = labels;
    o->best = best;
    for (int64_t row = 0; row < SAMPLES; row++) {
        double score = 0, length = 0;
        for (int64_t i = 0; i < FEATURES; i++) {
            float value = 2 * wefti_uniform(7, 1, row * FEATURES + i) - 1;
            samples[row * FEATURES + i] = value;
            score += (double)value * (2 * (double)wefti_uniform(7, 2, i) - 1);
            length += (double)value * (double)value;
        }
        labels[row] = score + 2 * (double)wefti_uniform(7, 3, row) - 1 > 0 ? 1 : -1;
        o->longest = fmax(o->longest, sqrt(length));
    }
    for (int step = 0; step < 3000; step++) { /* to the minimum, in steps that the curvature allows: at most longest^2 / 4 */
        double gradient[FEATURES] = {0};
        for (int64_t row = 0; row < SAMPLES; row++) add_gradient(o, row, best, gradient);
        for (int i = 0; i < FEATURES; i++) best[i] -= (float)(4 / (o->longest * o->longest) * 4 * gradient[i] / SAMPLES);
    }
    o->norm = sqrt(dot(best, best));
}

static double sigma_of(const staleness_options *o) {
    int32_t s = o->staleness < 0 ? 16 : o->staleness; /* no theorem for asynchronous steps: those of the longest bound */
    return sqrt(2) * o->norm / (o->longest * sqrt(2 * (s + 1) * o->workers));
}
static double bound_of(const staleness_options *o, double updates) {
    return o->staleness < 0 ? NAN : 4 * sqrt(2) * o->norm * o->longest * sqrt(2 * (o->staleness + 1) * o->workers / updates);
}

static void learn_convex(bench_rank *rank, weft_server *server) {
    const staleness_options *o = rank->argument;
    trace      *mine = &o->shared->traces[rank->rank];
    weft_table *table = NULL;
    float       x[FEATURES], update[FEATURES];
    BENCH_TRY(rank, weft_table_create(server, &(weft_table_options){.name = "x", .rows = FEATURES, .dtype = WEFT_F32, .staleness = o->staleness}, &table));
    bench_meet(rank);
    double begin = bench_now_s(), farthest = 0;
    for (int clock = 0; clock < (int)o->clocks; clock++) {
        double gradient[FEATURES] = {0}, regret = 0, distance = 0, t = clock * o->workers + rank->rank + 1;
        BENCH_TRY(rank, weft_table_pull(table, NULL, x));
        for (int i = 0; i < BATCH; i++) {
            int64_t row = (int64_t)((double)wefti_uniform(11, (uint64_t)rank->rank, (int64_t)clock * BATCH + i) * SAMPLES);
            regret += (loss_at(o, row, x) - loss_at(o, row, o->best)) / BATCH;
            add_gradient(o, row, x, gradient);
        }
        for (int i = 0; i < FEATURES; i++) {
            update[i] = (float)(-sigma_of(o) / sqrt(t) * gradient[i] / BATCH);
            distance += ((double)x[i] - (double)o->best[i]) * ((double)x[i] - (double)o->best[i]) / 2;
        }
        farthest = fmax(farthest, distance);
        slow_down(o, rank->rank);
        BENCH_TRY(rank, weft_table_push(table, NULL, update));
        BENCH_TRY(rank, weft_table_clock(table));
        mine->value[clock] = regret;
        mine->seconds[clock] = bench_now_s() - begin;
    }
    o->shared->farthest[rank->rank] = farthest;
    weft_table_release(table);
}

/* --- deep --- */

static void make_points(float *points, int32_t *labels) {
    enum { HIDDEN = 16 };
    for (int64_t row = 0; row < POINTS; row++) {
        float hidden[HIDDEN] = {0}, best = -1e9f;
        for (int64_t i = 0; i < INPUTS; i++) points[row * INPUTS + i] = 2 * wefti_uniform(21, 1, row * INPUTS + i) - 1;
        for (int64_t h = 0; h < HIDDEN; h++) {
            for (int64_t i = 0; i < INPUTS; i++) hidden[h] += points[row * INPUTS + i] * (2 * wefti_uniform(21, 2, h * INPUTS + i) - 1);
            if (hidden[h] < 0) hidden[h] = 0;
        }
        for (int64_t c = 0; c < CLASSES; c++) {
            float score = 0;
            for (int64_t h = 0; h < HIDDEN; h++) score += hidden[h] * (2 * wefti_uniform(21, 3, c * HIDDEN + h) - 1);
            if (score > best) {
                best = score;
                labels[row] = (int32_t)c;
            }
        }
    }
}

static void learn_deep(bench_rank *rank, weft_world *world) {
    static _Alignas(64) float   points[POINTS * INPUTS], x[ROWS * INPUTS];
    static _Alignas(64) int32_t labels[POINTS], y[ROWS];
    const staleness_options *o = rank->argument;
    trace        *mine = &o->shared->traces[rank->rank];
    weft_graph   *graph = NULL;
    weft_trainer *trainer = NULL;
    make_points(points, labels);
    BENCH_TRY(rank, weft_graph_create(&(weft_graph_options){.seed = 1}, &graph));
    weft_tensor *in = weft_input(graph, "x", WEFT_F32, weft_shape((int64_t)ROWS * rank->size, INPUTS));
    weft_tensor *hidden = weft_relu(weft_linear(in, "first", .out = 64));
    hidden = weft_relu(weft_linear(hidden, "second", .out = 64));
    weft_tensor *loss = weft_cross_entropy(weft_linear(hidden, "head", .out = CLASSES), weft_input(graph, "y", WEFT_I32, weft_shape((int64_t)ROWS * rank->size)));
    weft_program program = {.loss = loss, .strategy = {.sync = WEFT_SERVER, .servers = 1, .staleness = o->staleness},
                            /* without staleness a step takes the mean over all workers' rows, with it each worker's own */
                            .solver = weft_sgd(o->staleness == 0 ? 0.2 : 0.2 / o->workers)};
    BENCH_TRY(rank, weft_trainer_create(world, &program, &trainer));
    bench_meet(rank);
    double begin = bench_now_s();
    for (int clock = 0; clock < (int)o->clocks; clock++) {
        weft_report report = {0};
        for (int i = 0; i < ROWS; i++) {
            int64_t row = (int64_t)((double)wefti_uniform(31, (uint64_t)rank->rank, (int64_t)clock * ROWS + i) * POINTS);
            memcpy(x + i * INPUTS, points + row * INPUTS, INPUTS * sizeof *x);
            y[i] = labels[row];
        }
        weft_batch batch = {.field_count = 2, .global_rows = (int64_t)ROWS * rank->size, .first_row = (int64_t)ROWS * rank->rank, .local_rows = ROWS,
                            .count = (int64_t)o->clocks, .index = clock,
                            .field = {{"x", WEFT_F32, weft_shape(ROWS, INPUTS), x}, {"y", WEFT_I32, weft_shape(ROWS), y}}};
        slow_down(o, rank->rank);
        BENCH_TRY(rank, weft_trainer_step(trainer, &batch, &report));
        mine->value[clock] = report.loss;
        mine->seconds[clock] = bench_now_s() - begin;
    }
    weft_trainer_release(trainer);
    weft_graph_release(graph);
}

/* --- running --- */

static int run_one(bench_rank *rank) {
    const staleness_options *o = rank->argument;
    weft_world  *world = NULL;
    weft_server *server = NULL;
    BENCH_TRY(rank, weft_world_create(&(weft_world_options){.rank = rank->rank, .size = rank->size, .store = o->shared->store, .wire = rank->wire_name,
                                                            .threads = {.count = 1}}, &world));
    if (o->deep) {
        learn_deep(rank, world);
    } else {
        BENCH_TRY(rank, weft_server_create(world, &(weft_server_options){.servers = 1}, &server)); /* beside the last worker */
        learn_convex(rank, server);
        weft_server_release(server);
    }
    weft_world_release(world);
    return 0;
}

/* At clocks that are a quarter apart: the mean of all workers' regret up to there, or of their losses since the mark before; and when the last worker
 * that is not slow was there. */
static void report(const staleness_options *o, FILE *json) {
    const staleness_shared *shared = o->shared;
    double sum = 0, since = 0, last = 0, farthest = 0;
    int    marked = 0;
    for (int w = 0; w < (int)o->workers; w++) farthest = fmax(farthest, shared->farthest[w]);
    for (int clock = 0, next = 1; clock < (int)o->clocks; clock++) {
        double seconds = 0;
        for (int w = 0; w < (int)o->workers; w++) {
            sum += shared->traces[w].value[clock];
            since += shared->traces[w].value[clock];
            if (w > 0) seconds = fmax(seconds, shared->traces[w].seconds[clock]);
        }
        if (clock + 1 < next && clock + 1 < (int)o->clocks) continue;
        double updates = (clock + 1) * o->workers;
        last = o->deep ? since / ((clock + 1 - marked) * o->workers) : sum / updates;
        if (json) {
            fprintf(json, "{\"bench\": \"staleness\", \"problem\": \"%s\", \"workers\": %d, \"staleness\": %d, \"slow_ms\": %g, \"clock\": %d, \"seconds\": %.6f, \"%s\": %.6g",
                    o->deep ? "deep" : "convex", (int)o->workers, (int)o->staleness, o->slow ? o->slow_ms : 0, clock + 1, seconds, o->deep ? "loss" : "regret", last);
            if (!o->deep && o->staleness >= 0) fprintf(json, ", \"bound\": %.6g", bound_of(o, updates));
            if (!o->deep) fprintf(json, ", \"farthest\": %.4f", farthest / (2 * o->norm * o->norm));
            fprintf(json, "}\n");
        }
        marked = clock + 1;
        since = 0;
        next = clock + 1 + (clock + 1) / 4 + 1;
    }
    double end = 0;
    for (int w = 1; w < (int)o->workers; w++) end = fmax(end, shared->traces[w].seconds[(int)o->clocks - 1]);
    printf("%-8s %10d %8g %12.5f %12.5g %10.3f", o->deep ? "deep" : "convex", (int)o->staleness, o->slow ? o->slow_ms : 0, last,
           o->deep ? NAN : bound_of(o, o->clocks * o->workers), end);
    printf(o->deep ? "\n" : " %10.3f\n", farthest / (2 * o->norm * o->norm));
}

int bench_staleness(int argc, char **argv) {
    static const int32_t stalenesses[] = {0, 1, 4, 16, WEFT_TABLE_ASYNCHRONOUS};
    staleness_options    o = {.workers = 3, .clocks = 2000, .slow_ms = 2};
    const bench_option   options[] = {{"workers", "2 to 8; the last one serves, too", BENCH_NUMBER, &o.workers},
                                      {"clocks", "of each worker, at most 4096", BENCH_NUMBER, &o.clocks},
                                      {"slow-ms", "what the slow worker sleeps in each clock", BENCH_NUMBER, &o.slow_ms},
                                      {"json", "file for the records", BENCH_TEXT, &o.json_path},
                                      {0}};
    bench_read_options(argc, argv, "Convergence by staleness, on a convex and a deep problem, with workers of one pace and with a slow one.", options);
    if (!(o.workers >= 2 && o.workers <= MOST_WORKERS && o.clocks >= 1 && o.clocks <= MOST_CLOCKS)) {
        fprintf(stderr, "error: 2 to %d workers and 1 to %d clocks\n", MOST_WORKERS, MOST_CLOCKS);
        return 2;
    }
    o.shared = mmap(NULL, sizeof *o.shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (o.shared == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    FILE *json = bench_open_json(o.json_path);
    make_convex(&o);
    printf("%-8s %10s %8s %12s %12s %10s %10s\n", "problem", "staleness", "slow ms", "regret, loss", "bound", "seconds", "farthest");
    int status = 0;
    for (int which = 0; which < 4 && status == 0; which++)
        for (size_t i = 0; i < sizeof stalenesses / sizeof *stalenesses && status == 0; i++) {
            o.deep = which / 2;
            o.slow = which % 2;
            o.staleness = stalenesses[i];
            memset(o.shared, 0, sizeof *o.shared);
            int holder = bench_pick_store(o.shared->store);
            status = bench_run_ranks("tcp", (int32_t)o.workers, run_one, &o);
            close(holder);
            if (status == 0) report(&o, json);
        }
    if (json) fclose(json);
    return status;
}

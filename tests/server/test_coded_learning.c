/* What is coded learns: logistic regression by each codec comes as far as by values as they are, in fewer bytes; by tables and by the trainer. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/effort.h"
#include "serving.h"

static const weft_server_options one_apart = {.servers = 1, .dedicated = true};

/* Sparse samples of ones: [samples][ones of them], labels 0 and 1. */
typedef struct samples {
    int64_t  count, features;
    int32_t *begin, *index;
    float   *label;
} samples;

static void *take(size_t bytes) {
    void *memory = calloc(1, bytes);
    if (!memory) abort();
    return memory;
}

static void give(samples *s) {
    free(s->begin);
    free(s->index);
    free(s->label);
}

static uint32_t draw(uint64_t *state, uint32_t below) {
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)((*state >> 33) % below);
}

/* Of a hidden line, some labels wrong; a few features are frequent and most are rare. */
static samples made_up(void) {
    enum { COUNT = 1500, ONES = 12 };
    uint64_t state = 5;
    samples  s = {.count = COUNT, .features = 120, .begin = take((COUNT + 1) * sizeof *s.begin), .index = take(COUNT * ONES * sizeof *s.index),
                  .label = take(COUNT * sizeof *s.label)};
    for (int32_t i = 0; i < COUNT; i++) {
        double score = 0;
        for (int32_t j = 0; j < ONES; j++) {
            int32_t most = 10 * (j + 1), feature = (int32_t)draw(&state, (uint32_t)most);
            s.index[i * ONES + j] = feature;
            score += feature % 2 ? 0.8 : -0.8;
        }
        s.begin[i + 1] = (i + 1) * ONES;
        s.label[i] = (float)((score > 0) != (draw(&state, 20) == 0));
    }
    return s;
}

/* Lines of "+1 index:1 index:1 …"; false where the file is not there. */
static bool read_file(const char *path, int64_t most, samples *out) {
    FILE *file = fopen(path, "r");
    char  line[4096];
    if (!file) return false;
    samples s = {.begin = take((size_t)(most + 1) * sizeof *s.begin), .index = take((size_t)most * 64 * sizeof *s.index), .label = take((size_t)most * sizeof *s.label)};
    int32_t ones = 0;
    while (s.count < most && fgets(line, sizeof line, file)) {
        char *at = line;
        s.label[s.count] = strtof(at, &at) > 0;
        for (char *end; ones < 64 * most; at = end + 2) {
            long index = strtol(at, &end, 10);
            if (end == at || *end != ':') break;
            if (index > s.features) s.features = index;
            s.index[ones++] = (int32_t)index - 1;
        }
        s.begin[++s.count] = ones;
    }
    fclose(file);
    *out = s;
    return s.count > 0;
}

static double loss_of(const samples *s, const float *weights) {
    double loss = 0;
    for (int64_t i = 0; i < s->count; i++) {
        double score = 0;
        for (int32_t j = s->begin[i]; j < s->begin[i + 1]; j++) score += (double)weights[s->index[j]];
        loss += log1p(exp(-fabs(score))) + (score > 0 ? score * (1 - (double)s->label[i]) : -score * (double)s->label[i]);
    }
    return loss / (double)s->count;
}

/* The mean gradient of the rows from `first` on in steps of `every`. */
static void gradient_of(const samples *s, int64_t first, int64_t every, const float *weights, float *gradient) {
    int64_t rows = 0;
    memset(gradient, 0, (size_t)s->features * sizeof *gradient);
    for (int64_t i = first; i < s->count; i += every, rows++) {
        double score = 0;
        for (int32_t j = s->begin[i]; j < s->begin[i + 1]; j++) score += (double)weights[s->index[j]];
        float off = (float)(1 / (1 + exp(-score)) - (double)s->label[i]);
        for (int32_t j = s->begin[i]; j < s->begin[i + 1]; j++) gradient[s->index[j]] += off;
    }
    for (int64_t i = 0; i < s->features; i++) gradient[i] /= (float)rows;
}

typedef struct way { const char *name; weft_compression push, pull; double bytes, loss; } way; /* at most so much of the plain bytes; so much above the plain loss */
static const way ways[] = {
    {"plain", .bytes = 1},
    {"bf16", {.codec = WEFT_COMPRESS_BF16}, {.codec = WEFT_COMPRESS_BF16}, .bytes = 0.5, .loss = 0.01},
    {"fp8", {.codec = WEFT_COMPRESS_FP8}, .bytes = 0.64, .loss = 0.01},
    {"fixed8", {.codec = WEFT_COMPRESS_FIXED8, .seed = 1}, {.codec = WEFT_COMPRESS_FIXED16, .seed = 2}, .bytes = 0.4, .loss = 0.01},
    {"topk", {.codec = WEFT_COMPRESS_TOP_K, .ratio = 0.1}, {.codec = WEFT_COMPRESS_BF16}, .bytes = 0.37, .loss = 0.02},
    {"significant", {.codec = WEFT_COMPRESS_SIGNIFICANT, .threshold = 1}, .bytes = 0.93, .loss = 0.04},
    {"nonzero", {.codec = WEFT_COMPRESS_NONZERO}, .bytes = 1.01, .loss = 1e-6},
};

static samples all;
enum { STEPS = 60 };

static weft_status learn(serving *self, const way *how, double *loss_out, uint64_t *bytes_out) {
    weft_table        *table = NULL;
    weft_server_counts before, after;
    float             *weights = take((size_t)all.features * sizeof *weights), *gradient = take((size_t)all.features * sizeof *gradient);
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = how->name, .rows = all.features, .dtype = WEFT_F32, .push = how->push, .pull = how->pull,
                                                                    .rule = {.kind = WEFT_TABLE_SOLVER, .solver = weft_sgd(2), .mean = true}}, &table));
    weft_server_count(self->server, &before);
    for (int step = 0; step < STEPS; step++) {
        gradient_of(&all, self->rank, self->workers, weights, gradient);
        WEFTI_TRY(weft_table_push_pull(table, NULL, gradient, weights));
    }
    weft_server_count(self->server, &after);
    *loss_out = loss_of(&all, weights);
    *bytes_out = after.moved_value_bytes - before.moved_value_bytes;
    EXPECT(after.value_bytes - before.value_bytes == STEPS * 2 * (uint64_t)all.features * sizeof *weights, "%llu bytes", (unsigned long long)after.value_bytes);
    weft_table_release(table);
    free(weights);
    free(gradient);
    return WEFT_OK;
}

static weft_status learns(serving *self) {
    double   plain_loss = 0, loss = 0;
    uint64_t plain_bytes = 0, bytes = 0;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        WEFTI_TRY(learn(self, &ways[i], &loss, &bytes));
        if (i == 0) plain_loss = loss, plain_bytes = bytes;
        if (self->rank == 0) fprintf(stderr, "%s: loss %.6f, %.3f of the bytes\n", ways[i].name, loss, (double)bytes / (double)plain_bytes);
        EXPECT(loss <= plain_loss * (1 + ways[i].loss), "%s: a loss of %g, and %g of values as they are", ways[i].name, loss, plain_loss);
        EXPECT((double)bytes <= (double)plain_bytes * ways[i].bytes, "%s: %llu bytes of %llu", ways[i].name, (unsigned long long)bytes, (unsigned long long)plain_bytes);
    }
    EXPECT(plain_loss < 0.6, "%g is no learning", plain_loss);
    return WEFT_OK;
}

Test(coded_learning, logistic_regression) {
    all = made_up();
    serve_case("tcp", 3, &one_apart, learns);
    give(&all);
}

/* a9a of LIBSVM's collection, where its folder is named. */
Test(coded_learning, adult) {
    const char *folder = getenv("WEFT_TEST_DATA");
    char        path[1024];
    snprintf(path, sizeof path, "%s/a9a/a9a", folder ? folder : "");
    if (!folder || !read_file(path, 8000, &all)) cr_skip_test("WEFT_TEST_DATA names no folder with a9a/a9a");
    serve_case("tcp", 3, &one_apart, learns);
    give(&all);
}

/* --- by the trainer --- */

static weft_compression pushed_by;
static int32_t          staleness;
static double          *losses; /* shared: what each rank ended with */

static weft_status build(weft_graph *graph, weft_tensor **loss_out) {
    weft_tensor *x = weft_input(graph, "x", WEFT_F32, weft_shape(64, 120)), *label = weft_input(graph, "label", WEFT_I32, weft_shape(64));
    weft_tensor *hidden = weft_relu(weft_linear(x, "hidden", .out = 32));
    *loss_out = weft_cross_entropy(weft_linear(hidden, "head", .out = 2), label);
    return weft_graph_check(graph);
}

static weft_status train(ranks *world_of, int32_t rank) {
    static _Alignas(64) float   x[64 * 120];
    static _Alignas(64) int32_t label[64];
    weft_world   *world = NULL;
    weft_trainer *trainer = NULL;
    weft_report   report = {0};
    double        sum = 0;
    (void)world_of;
    WEFTI_TRY(weft_world_create(&(weft_world_options){.wire = "tcp", .threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS}, &world));
    weft_graph  *graph = NULL;
    weft_tensor *loss = NULL;
    weft_status  status = weft_graph_create(&(weft_graph_options){.seed = 1}, &graph);
    if (status == WEFT_OK) status = build(graph, &loss);
    weft_program program = {.loss = loss, .solver = weft_sgd(staleness ? 0.2 : 0.5), .strategy = {.sync = WEFT_SERVER, .staleness = staleness, .compress = pushed_by}};
    if (status == WEFT_OK) status = weft_trainer_create(world, &program, &trainer);
    for (int step = 0; step < STEPS && status == WEFT_OK; step++) {
        memset(x, 0, sizeof x);
        for (int i = 0; i < 64; i++) {
            int64_t row = (step * 64 + i) % all.count;
            for (int32_t j = all.begin[row]; j < all.begin[row + 1]; j++) x[i * 120 + all.index[j]] = 1;
            label[i] = (int32_t)all.label[row];
        }
        weft_batch batch = {.field_count = 2, .global_rows = 64, .first_row = rank * 32, .local_rows = 32, .count = STEPS, .index = step,
                            .field = {{"x", WEFT_F32, weft_shape(32, 120), x + rank * 32 * 120}, {"label", WEFT_I32, weft_shape(32), label + rank * 32}}};
        status = weft_trainer_step(trainer, &batch, &report);
        if (step >= STEPS - 10) sum += report.loss / 10;
    }
    if (status == WEFT_OK) losses[rank] = sum;
    weft_trainer_release(trainer);
    weft_graph_release(graph);
    weft_world_release(world);
    return status;
}

static double train_by(weft_compression how, int32_t stale) {
    pushed_by = how;
    staleness = stale;
    losses[0] = losses[1] = 1e9;
    ranks *two = ranks_start(2, train);
    ranks_join(two);
    for (int32_t rank = 0; rank < 2; rank++)
        cr_assert(atomic_load(&two->results[rank].finished) && two->results[rank].status == WEFT_OK, "rank %d: %s", (int)rank, two->results[rank].message);
    ranks_free(two);
    return (losses[0] + losses[1]) / 2;
}

/* strategy.compress with sync = WEFT_SERVER, with and without staleness. */
Test(coded_learning, by_the_trainer) {
    static const weft_compression hows[] = {{.codec = WEFT_COMPRESS_BF16},
                                            {.codec = WEFT_COMPRESS_FIXED8, .seed = 9, .least = 1},
                                            {.codec = WEFT_COMPRESS_TOP_K, .ratio = 0.05, .warmup = 5, .least = 1},
                                            {.codec = WEFT_COMPRESS_SIGNIFICANT, .threshold = 0.5}};
    losses = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(losses, MAP_FAILED);
    all = made_up();
    double plain = train_by((weft_compression){.codec = WEFT_COMPRESS_NONE}, 0);
    cr_assert_lt(plain, 0.5);
    size_t ways_tried = UNDER_THREAD_SANITIZER ? 1 : sizeof hows / sizeof *hows;
    for (size_t i = 0; i < ways_tried; i++) {
        double coded = train_by(hows[i], 0);
        cr_expect(coded < plain + 0.08, "codec %d: %g, and %g of gradients as they are", (int)hows[i].codec, coded, plain);
        cr_expect(coded != plain, "codec %d changes nothing", (int)hows[i].codec);
    }
    double stale = train_by(hows[2], 1); /* who comes first is another in each run; a guess has 0.69 */
    cr_expect(stale < 0.64, "%g with staleness", stale);
    give(&all);
    munmap(losses, 4096);
}

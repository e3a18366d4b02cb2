/* Partitioned models (Dean et al. 2012): a network of 8 blocks a layer, dealt out to ranks by places, whose blocks see the edges of their neighbours, or all of each other.
 * What is timed is a forward pass; more ranks than are asked for are modelled: the time of one rank, shared, and what each has to send, by what sums over
 * ranks were measured to take (src/parallel/automatic.h). On the number of ranks that is timed the model stands beside the time.
 *
 * With --pace products are waited for and not computed, as long as a core of so many GFLOP/s would take: what is sent is sent over the wire, which WEFT_WIRE_PORT_GBPS and
 * WEFT_WIRE_DELAY_US may slow down, and two cores do for eight ranks. Then 1, 2, 4, … ranks are all timed. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"
#include "ranks.h"
#include "train/trainer.h"
#include "weft.h"

enum { BLOCKS = 8, LAYERS = 4, ROWS = 64, MOST_RUNS = 64 };

typedef struct partition_options {
    const char *json_path, *wire;
    char        store[64];
    double      ranks, windows, width, edge, pace;
    bool        local;
    double     *alone; /* shared: [2] seconds of one rank, by local */
} partition_options;

static const char *place_of(int block, int32_t ranks, char place[16]) {
    snprintf(place, 16, "rank %d", (int)(block * ranks / BLOCKS));
    return place;
}

/* --- products that are waited for --- */

typedef struct product {
    int64_t out;
    double  seconds;
} product;

static weft_status product_shape(const weft_custom_type *inputs, const void *options, weft_custom_type *outputs_out) {
    outputs_out[0] = inputs[0];
    outputs_out[0].shape.dim[1] = ((const product *)options)->out;
    return WEFT_OK;
}

static weft_status product_forward(const weft_custom_data *inputs, const void *options, weft_custom_data *outputs_out) {
    const product  *it = options;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    int64_t ns = until.tv_nsec + (int64_t)(1e9 * it->seconds);
    until.tv_sec += ns / 1000000000;
    until.tv_nsec = ns % 1000000000;
    for (int64_t i = 0; i < ROWS * it->out; i++) ((float *)outputs_out[0].data)[i] = ((const float *)inputs[0].data)[i % (ROWS * inputs[0].shape.dim[1])];
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) != 0) continue;
    return WEFT_OK;
}

static const weft_custom_op product_op = {.name = "product", .n_inputs = 1, .n_outputs = 1, .shape = product_shape, .forward = product_forward};

static weft_tensor *block(weft_graph *g, const partition_options *o, weft_tensor *x, const char *name) {
    int64_t width = (int64_t)o->width;
    if (o->pace <= 0) return weft_relu(weft_linear(x, name, .out = width));
    product it = {width, 2.0 * ROWS * (double)x->shape.dim[1] * o->width / (1e9 * o->pace)};
    return weft_custom(g, &product_op, &x, 1, NULL, &it, sizeof it);
}

/* --- the network --- */

/* A block, and what its neighbours see of it. */
typedef struct piece {
    weft_tensor *all, *left, *right;
} piece;

static piece piece_of(weft_graph *g, const partition_options *o, int32_t ranks, int layer, int b, const piece *before) {
    weft_tensor *inputs[BLOCKS];
    char         place[16], name[32];
    int64_t      width = (int64_t)o->width, edge = (int64_t)o->edge;
    int          n = 0;
    for (int from = 0; from < BLOCKS && layer > 0; from++)
        if (!o->local || abs(from - b) <= 1) inputs[n++] = !o->local || from == b ? before[from].all : from < b ? before[from].right : before[from].left;
    weft_place_begin(g, place_of(b, ranks, place));
    snprintf(name, sizeof name, "layer%d.block%d", layer, b);
    piece it = {.all = block(g, o, n > 1 ? weft_concat(inputs, n, 1) : before[b].all, name)};
    if (o->local && layer + 1 < LAYERS) it.left = weft_slice(it.all, 1, 0, edge), it.right = weft_slice(it.all, 1, width - edge, width);
    weft_place_end(g);
    return it;
}

static bool is_at_an_edge(int b, int32_t ranks) {
    int mine = b * ranks / BLOCKS;
    return (b > 0 && (b - 1) * ranks / BLOCKS != mine) || (b + 1 < BLOCKS && (b + 1) * ranks / BLOCKS != mine);
}

/* Of a layer first what other ranks read, so that it travels while the rest is computed. */
static weft_tensor *network(weft_graph *g, const partition_options *o, int32_t ranks) {
    piece        blocks[BLOCKS], next[BLOCKS];
    weft_tensor *sums[BLOCKS], *x = weft_input(g, "x", WEFT_F32, weft_shape(ROWS, (int64_t)o->width));
    char         place[16];
    for (int b = 0; b < BLOCKS; b++) blocks[b] = (piece){.all = x};
    for (int layer = 0; layer < LAYERS; layer++) {
        for (int rest = 0; rest < 2; rest++)
            for (int b = 0; b < BLOCKS; b++)
                if (is_at_an_edge(b, ranks) == !rest) next[b] = piece_of(g, o, ranks, layer, b, blocks);
        memcpy(blocks, next, sizeof blocks);
    }
    for (int b = 0; b < BLOCKS; b++) {
        weft_place_begin(g, place_of(b, ranks, place));
        sums[b] = weft_reshape(weft_sum(blocks[b].all), weft_shape(1));
        weft_place_end(g);
    }
    weft_place_begin(g, "rank 0");
    weft_tensor *all = weft_sum(weft_concat(sums, BLOCKS, 0));
    weft_place_end(g);
    return all;
}

/* What the rank in the middle sends in a pass, and in how many messages. */
static void sent(const partition_options *o, int32_t ranks, double *messages, double *bytes) {
    double each = BLOCKS / ranks, strips = 2, passes = LAYERS - 1;
    *messages = ranks == 1 ? 0 : passes * (o->local ? strips : each * (ranks - 1));
    *bytes = ranks == 1 ? 0 : passes * ROWS * 4 * (o->local ? strips * o->edge : each * (ranks - 1) * o->width);
}

static double modelled(const partition_options *o, const wefti_auto_machine *m, int32_t ranks, double alone) {
    double messages, bytes;
    sent(o, ranks, &messages, &bytes);
    return alone / ranks + messages * m->near.alpha + bytes * m->near.beta;
}

static void report(const partition_options *o, const wefti_auto_machine *m, int32_t ranks, double *seconds) {
    FILE        *json = o->json_path ? fopen(o->json_path, "a") : NULL; /* one process a case: each adds its record */
    int          runs = (int)o->windows;
    char         what[64], extra[300];
    bench_spread spread = bench_spread_of(seconds, runs);
    if (ranks == 1) o->alone[o->local] = spread.median;
    double alone = o->alone[o->local], model = modelled(o, m, ranks, alone);
    snprintf(what, sizeof what, "%s %d ranks", o->local ? "local" : "full", (int)ranks);
    const char *gbps = getenv("WEFT_WIRE_PORT_GBPS"), *delay = getenv("WEFT_WIRE_DELAY_US");
    snprintf(extra, sizeof extra, "\"speedup\": %.3f, \"modelled\": %.3f, \"width\": %.0f, \"edge\": %.0f, \"pace_gflops\": %g, \"port_gbps\": %s, \"wire_delay_us\": %s",
             alone / spread.median, alone / model, o->width, o->edge, o->pace, gbps ? gbps : "0", delay ? delay : "0");
    printf("%-16s %9.3f ms [%.3f, %.3f]   speed-up %.2f, modelled %.2f\n", what, 1e3 * spread.median, 1e3 * spread.low, 1e3 * spread.high, alone / spread.median, alone / model);
    bench_write(json, &(bench_record){"partition", what, "time", "us", bench_spread_times(spread, 1e6), BENCH_UNMEASURED, extra});
    for (int32_t more = 2 * ranks; ranks == (int32_t)o->ranks && more <= BLOCKS; more *= 2)
        printf("%-6s %d ranks   modelled   speed-up %.2f\n", o->local ? "local" : "full", (int)more, alone / modelled(o, m, more, alone));
    if (json) fclose(json);
}

static int run_rank(bench_rank *rank) {
    const partition_options *o = rank->argument;
    weft_world              *world = NULL;
    weft_graph              *graph = NULL;
    weft_plan               *plan = NULL;
    wefti_auto_machine       machine;
    double                   seconds[MOST_RUNS];
    weft_shape               shape = weft_shape(ROWS, (int64_t)o->width);
    float                   *x = calloc((size_t)weft_shape_elements(shape), sizeof *x);
    weft_world_options       options = {.rank = rank->rank, .size = rank->size, .store = o->store, .wire = rank->wire_name, .threads = {.count = 1}};
    if (!x) exit(1);
    BENCH_TRY(rank, weft_world_create(&options, &world));
    BENCH_TRY(rank, wefti_automatic_measure(world, 0, &machine));
    BENCH_TRY(rank, weft_graph_create(NULL, &graph));
    weft_tensor *output = network(graph, o, rank->size);
    BENCH_TRY(rank, weft_plan_create(world, graph, &(weft_plan_options){.outputs = &output, .n_outputs = 1}, &plan));
    weft_feed feed = {"x", WEFT_F32, shape, x};
    int passes = o->pace > 0 ? 1 : 5; /* of a turn */
    for (int w = o->pace > 0 ? 0 : -2; w < (int)o->windows; w++) {
        bench_meet(rank);
        double begun = bench_now_s();
        for (int s = 0; s < passes; s++) BENCH_TRY(rank, weft_plan_run(plan, &feed, 1));
        double took = bench_slowest(rank, bench_now_s() - begun) / passes;
        if (w >= 0) seconds[w] = took;
    }
    if (rank->rank == 0) report(o, &machine, rank->size, seconds);
    weft_plan_release(plan);
    weft_graph_release(graph);
    weft_world_release(world);
    free(x);
    return 0;
}

int bench_partition(int argc, char **argv) {
    partition_options  o = {.wire = "shm", .ranks = 2, .windows = 15, .width = 256, .edge = 16};
    const bench_option options[] = {{"wire", "shm or tcp", BENCH_TEXT, &o.wire},
                                    {"ranks", "that are timed beside one: 2, 4 or 8", BENCH_NUMBER, &o.ranks},
                                    {"windows", "turns of five passes, or of one with pace", BENCH_NUMBER, &o.windows},
                                    {"width", "units of a block", BENCH_NUMBER, &o.width},
                                    {"edge", "that neighbours see of it", BENCH_NUMBER, &o.edge},
                                    {"pace", "GFLOP/s that products are waited for by; 0: they are computed", BENCH_NUMBER, &o.pace},
                                    {"json", "file for the records", BENCH_TEXT, &o.json_path},
                                    {0}};
    bench_read_options(argc, argv, "Partitioned networks, locally and fully connected: what more ranks gain.", options);
    if (!(o.ranks == 2 || o.ranks == 4 || o.ranks == BLOCKS) || !(o.windows >= 1 && o.windows <= MOST_RUNS) || !(o.width >= 8 && o.edge >= 1 && o.edge < o.width)) {
        fprintf(stderr, "error: 2, 4 or %d ranks, 1 to %d windows, an edge below the width\n", BLOCKS, MOST_RUNS);
        return 2;
    }
    o.alone = mmap(NULL, 2 * sizeof *o.alone, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (o.alone == MAP_FAILED) return perror("mmap"), 1;
    FILE *json = bench_open_json(o.json_path);
    if (json) fclose(json);
    for (int local = 1; local >= 0; local--)
        for (int32_t ranks = 1; ranks <= (int32_t)o.ranks; ranks = o.pace > 0 || ranks > 1 ? 2 * ranks : (int32_t)o.ranks) {
            int holder = bench_pick_store(o.store);
            o.local = local;
            int status = bench_run_ranks(o.wire, ranks, run_rank, &o);
            close(holder);
            if (status != 0) return status;
        }
    return 0;
}

/* Point to point on a bare wire: one-way bandwidth with several messages on the way, and half a round trip. */
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "ranks.h"

enum { DEPTH = 8 }; /* messages on the way, as other tools have it */
/* Waiting as collectives do: a soft device needs the cores that a rank would spin on. */
#define SPIN_NS (75 * UINT64_C(1000))
#define YIELD_NS (500 * UINT64_C(1000))

typedef struct point_options {
    const char *name, *wire, *json_path;
    double windows, seconds;
    bench_sizes sizes;
    bool foreign, ping, no_limit;
    FILE *json;
} point_options;

static void post(bench_rank *rank, wefti_wire_op *op) {
    weft_status status;
    while ((status = wefti_wire_post(rank->wire, op)) == WEFT_E_AGAIN)
        BENCH_TRY(rank, wefti_wire_progress(rank->wire, wefti_host_now(rank->wire->host)));
    BENCH_TRY(rank, status);
}

static void finish(bench_rank *rank, const wefti_wire_op *op) {
    const wefti_host *host = rank->wire->host;
    uint64_t          begin_ns = 0;
    while (!op->done) {
        uint64_t now_ns = wefti_host_now(host);
        BENCH_TRY(rank, wefti_wire_progress(rank->wire, now_ns));
        if (begin_ns == 0) begin_ns = now_ns;
        if (op->done || now_ns - begin_ns < SPIN_NS) continue;
        if (now_ns - begin_ns < YIELD_NS)
            host->yield(host->context);
        else
            wefti_wire_rest(rank->wire, WEFTI_MILLISECOND_NS);
    }
    BENCH_TRY(rank, op->status);
}

static void run_one(bench_rank *rank, wefti_wire_op op) {
    op.flags |= WEFTI_WIRE_SILENT;
    post(rank, &op);
    finish(rank, &op);
}

/* Rank 0 sends, rank 1 receives, with DEPTH on the way; an empty answer ends it. */
static void stream(bench_rank *rank, uint8_t *memory, size_t bytes, int64_t messages) {
    wefti_wire_op ops[DEPTH];
    for (int64_t i = 0; i < messages + DEPTH; i++) {
        wefti_wire_op *op = &ops[i % DEPTH];
        if (i >= DEPTH && i - DEPTH < messages) finish(rank, op);
        if (i >= messages) continue;
        *op = rank->rank == 0 ? wefti_wire_send(1, WEFTI_TAG_TEST, memory, bytes)
                              : wefti_wire_recv(0, WEFTI_TAG_TEST, memory, bytes);
        op->flags = WEFTI_WIRE_SILENT;
        post(rank, op);
    }
    run_one(rank, rank->rank == 0 ? wefti_wire_recv(1, WEFTI_TAG_TEST + 1, NULL, 0)
                                  : wefti_wire_send(0, WEFTI_TAG_TEST + 1, NULL, 0));
}

/* What is sent is not what came, as in the peers' benches: to send on what the other has just written is another thing than to send again. */
static void ping_pong(bench_rank *rank, uint8_t *memory, uint8_t *other, size_t bytes, int64_t turns) {
    int32_t peer = 1 - rank->rank;
    for (int64_t i = 0; i < turns; i++)
        for (int32_t from = 0; from < 2; from++)
            run_one(rank, from == rank->rank ? wefti_wire_send(peer, WEFTI_TAG_TEST + 2, memory, bytes)
                                             : wefti_wire_recv(peer, WEFTI_TAG_TEST + 2, other, bytes));
}

/* Seconds a message, or half a round trip. */
static double window(bench_rank *rank, uint8_t *memory, size_t most, size_t bytes, int64_t count) {
    const point_options *options = rank->argument;
    bench_meet(rank);
    double begin = bench_now_s();
    if (rank->rank < 2 && options->ping) ping_pong(rank, memory, memory + most, bytes, count);
    if (rank->rank < 2 && !options->ping) stream(rank, memory, bytes, count);
    return bench_slowest(rank, (bench_now_s() - begin) / (double)count / (options->ping ? 2 : 1));
}

static double limit_of(bench_rank *rank, uint8_t *memory, size_t bytes, size_t most, int64_t count) {
    const point_options *options = rank->argument;
    if (options->no_limit) return BENCH_UNMEASURED;
    if (strcmp(rank->wire_name, "tcp") == 0) return bench_socket_window(rank, memory + most, memory + most, memory, bytes, 1, count);
    if (strcmp(rank->wire_name, "verbs") == 0) return options->ping ? BENCH_UNMEASURED : bench_write_bw_seconds(rank, bytes);
    if (options->ping && bytes <= 64) return bench_line_seconds(rank);
    return bench_copy_window(rank, memory + most, memory, bytes, count);
}

static void report(const point_options *options, const bench_rank *rank, size_t bytes, bench_spread seconds,
                   double limit) {
    char size[16], what[48], extra[48], limit_text[32] = "unmeasured";
    double gigabytes = (double)bytes / 1e9;
    if (!isnan(limit)) snprintf(limit_text, sizeof limit_text, "%.2f", options->ping ? limit * 1e6 : gigabytes / limit);
    bench_size_text(bytes, size, sizeof size);
    printf("%8s %12.2f %12.2f %12s\n", size, seconds.median * 1e6, gigabytes / seconds.median, limit_text);
    fflush(stdout);
    snprintf(what, sizeof what, "%zu bytes%s", bytes, options->foreign ? ", foreign" : "");
    snprintf(extra, sizeof extra, "\"wire\": \"%s\"", rank->wire_name);
    bench_record record = {options->name, what, "time", "us", bench_spread_times(seconds, 1e6), limit * 1e6, extra};
    bench_write(options->json, &record);
    record = (bench_record){options->name,     what, "busbw", "GB/s", bench_spread_over(seconds, gigabytes),
                            gigabytes / limit, extra};
    bench_write(options->json, &record);
}

static int body(bench_rank *rank) {
    const point_options *options = rank->argument;
    wefti_wire_region *region = NULL;
    size_t most = wefti_align_up(options->sizes.last ? options->sizes.last : 1, 4096);
    bool can_export = !options->foreign && rank->wire->ops->region_create &&
                      rank->wire->ops->region_create(rank->wire, 2 * most, &region) == WEFT_OK;
    uint8_t *memory = can_export ? region->base : malloc(2 * most);
    if (!memory) bench_fail(rank, "out of memory");
    memset(memory, 1, 2 * most);
    if (rank->rank == 0)
        printf("# %s, wire %s, buffers %s\n%8s %12s %12s %12s\n", options->name, rank->wire_name,
               can_export ? "in the exported region" : "foreign", "size (B)", "time (us)", "GB/s",
               options->ping ? "limit (us)" : "limit (GB/s)");
    for (size_t bytes = options->sizes.first; bytes <= options->sizes.last; bytes *= 2) {
        double limits[BENCH_MOST_WINDOWS], samples[BENCH_MOST_WINDOWS];
        double one = window(rank, memory, most, bytes, 4), again = window(rank, memory, most, bytes, 4);
        double wanted = options->seconds / (again < one ? again : one);
        int64_t count = bench_agree(rank, wanted < 4 ? 4 : wanted > 100000 ? 100000 : (int64_t)wanted);
        bool once = strcmp(rank->wire_name, "verbs") == 0 || (options->ping && bytes <= 64);
        for (int w = 0; w < (int)options->windows; w++) {
            limits[w] = w > 0 && once ? limits[0] : limit_of(rank, memory, bytes, most, count);
            samples[w] = window(rank, memory, most, bytes, count);
        }
        double limit = bench_spread_of(limits, (int)options->windows).median;
        bench_spread seconds = bench_spread_of(samples, (int)options->windows);
        if (rank->rank == 0) report(options, rank, bytes, seconds, limit);
        if (bytes == 0) break;
    }
    bench_meet(rank);
    if (!can_export) free(memory);
    return 0;
}

static int run(int argc, char **argv, bool ping, const char *help) {
    point_options options = {.name = argv[0],
                             .wire = "shm",
                             .windows = 9,
                             .seconds = 0.1,
                             .ping = ping,
                             .sizes = {8, ping ? (size_t)64 << 10 : (size_t)64 << 20}};
    const bench_option list[] = {{"wire", "inproc, shm (default), tcp or verbs", BENCH_TEXT, &options.wire},
                                 {"sizes", "bytes, doubling from the first to the last", BENCH_SIZES, &options.sizes},
                                 {"foreign", "buffers outside of the exported region", BENCH_FLAG, &options.foreign},
                                 {"no-limit", "do not measure the limit", BENCH_FLAG, &options.no_limit},
                                 {"windows", "timed windows a size (9)", BENCH_NUMBER, &options.windows},
                                 {"seconds", "length of a window (0.1)", BENCH_NUMBER, &options.seconds},
                                 {"json", "file for one JSON object a line", BENCH_TEXT, &options.json_path},
                                 {0}};
    bench_read_options(argc, argv, help, list);
    if (!(options.windows >= 1 && options.windows <= BENCH_MOST_WINDOWS)) options.windows = 9;
    options.json = bench_open_json(options.json_path);
    int status = bench_run_ranks(options.wire, 2, body, &options);
    if (options.json) fclose(options.json);
    return status;
}

int bench_sendrecv(int argc, char **argv) {
    return run(argc, argv, false, "Rank 0 sends to rank 1, 8 messages on the way.");
}
int bench_latency(int argc, char **argv) {
    return run(argc, argv, true, "Ranks 0 and 1 answer each other; half a round trip.");
}

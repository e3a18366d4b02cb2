/* Collectives in the manner of nccl-tests: verify, then time windows of equally many operations, back to back; a
 * window's time is that of the slowest rank. algbw is bytes over time; busbw scales it by what each rank must move at
 * least, so that it can be held against the limit, which the same ranks measure with plain copies or plain sockets. */
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "device_collective.h"
#include "ranks.h"
#include "transport/coll.h"

typedef struct collective_options {
    wefti_collective_kind kind;
    const char *name, *wire, *dtype_name, *op_name, *algorithm, *json_path, *device, *by;
    double ranks, windows, seconds;
    bench_sizes sizes;
    bool foreign, in_place, check, no_limit, share_gpu;
    weft_dtype dtype;
    wefti_reduce_op op;
    FILE *json;
} collective_options;

typedef struct buffers {
    uint8_t *send, *receive;
    size_t bytes; /* of each */
} buffers;

/* --- one size --- */

typedef struct measured {
    bench_spread seconds;
    double limit_seconds;
    int64_t wrong;
    const char *algorithm;
} measured;

/* What busbw makes of algbw: nccl-tests' factors. */
static double bus_factor(wefti_collective_kind kind, int32_t ranks) {
    if (ranks == 1) return 1;
    switch (kind) {
    case WEFTI_ALLREDUCE: return 2.0 * (ranks - 1) / ranks;
    case WEFTI_BROADCAST:
    case WEFTI_REDUCE_TO: return 1;
    default: return (double)(ranks - 1) / ranks;
    }
}

static void put(weft_dtype dtype, void *array, size_t i, double value) {
    float single = (float)value;
    uint32_t bits;
    switch (dtype) {
    case WEFT_F32: ((float *)array)[i] = single; break;
    case WEFT_F64: ((double *)array)[i] = value; break;
    case WEFT_F16: /* whole numbers from 0 to 2047 only */
        memcpy(&bits, &single, sizeof bits);
        ((uint16_t *)array)[i] = value == 0 ? 0 : (uint16_t)(((bits >> 23) - 112) << 10 | (bits >> 13 & 0x3ff));
        break;
    case WEFT_BF16:
        memcpy(&bits, &single, sizeof bits);
        ((uint16_t *)array)[i] = (uint16_t)(bits >> 16);
        break;
    case WEFT_I64: ((int64_t *)array)[i] = (int64_t)value; break;
    case WEFT_I32: ((int32_t *)array)[i] = (int32_t)value; break;
    default: ((uint8_t *)array)[i] = (uint8_t)value; break;
    }
}

static double input(const collective_options *options, int32_t rank, size_t i) {
    return (double)((i + (size_t)rank) % (options->dtype == WEFT_BOOL ? 2 : 3));
}

static double expected(const collective_options *options, const bench_rank *rank, size_t count, size_t i) {
    size_t own = (size_t)rank->rank * count;
    switch (options->kind) {
    case WEFTI_BROADCAST: return input(options, 0, i);
    case WEFTI_ALLGATHER:
    case WEFTI_GATHER: return input(options, (int32_t)(i / count), i % count);
    case WEFTI_SCATTER: return input(options, 0, own + i);
    case WEFTI_ALLTOALL: return input(options, (int32_t)(i / count), own + i % count);
    case WEFTI_REDUCE_SCATTER: i += own; break;
    default: break;
    }
    double result = input(options, 0, i);
    for (int32_t r = 1; r < rank->size; r++) {
        double value = input(options, r, i);
        switch (options->op) {
        case WEFTI_REDUCE_PROD: result *= value; break;
        case WEFTI_REDUCE_MIN: result = value < result ? value : result; break;
        case WEFTI_REDUCE_MAX: result = value > result ? value : result; break;
        default: result += value; break;
        }
    }
    return options->dtype == WEFT_BOOL && options->op == WEFTI_REDUCE_SUM ? result != 0 : result;
}

/* Elements that are not what they must be. */
static int64_t verify(const collective_options *options, bench_rank *rank, wefti_group *group,
                      const wefti_collective_call *call, size_t sent, size_t received) {
    size_t element = weft_dtype_bytes(options->dtype);
    for (size_t i = 0; i < sent; i++) put(options->dtype, (void *)call->send, i, input(options, rank->rank, i));
    if (call->receive != call->send && !options->in_place) memset(call->receive, 0xff, received * element);
    BENCH_TRY(rank, wefti_collective_run(group, call));
    int64_t wrong = 0;
    for (size_t i = 0; i < received; i++) {
        uint8_t right[8];
        put(options->dtype, right, 0, expected(options, rank, call->count, i));
        wrong += memcmp(right, (const uint8_t *)call->receive + i * element, element) != 0;
    }
    return wrong;
}

static double window(bench_rank *rank, wefti_group *group, const wefti_collective_call *call, int64_t operations) {
    bench_meet(rank);
    double begin = bench_now_s();
    for (int64_t i = 0; i < operations; i++) BENCH_TRY(rank, wefti_collective_run(group, call));
    return bench_slowest(rank, (bench_now_s() - begin) / (double)operations);
}

/* One window of what the same ranks do with the same bytes without a library: seconds. Over TCP, an allreduce's bytes take the way that a
 * ring gives them: what a rank has of the others' parts into its own, and its own into the others' places. */
static double limit_window(const collective_options *options, bench_rank *rank, const buffers *memory, size_t bytes, int64_t times) {
    bool sockets = strcmp(rank->wire_name, "tcp") == 0;
    int turns = options->kind == WEFTI_ALLREDUCE ? 2 : 1;
    size_t moved = (size_t)(bus_factor(options->kind, rank->size) * (double)bytes) / (size_t)turns;
    if (options->no_limit || rank->size < 2 || strcmp(rank->wire_name, "verbs") == 0 || (!sockets && bytes <= 64)) return BENCH_UNMEASURED;
    if (sockets)
        return bench_socket_window(rank, memory->receive, memory->receive + (bytes - moved), memory->send + (bytes - moved), moved, turns,
                                   times);
    /* Each rank reads and writes every byte of its buffers once. */
    return bench_copy_window(rank, memory->receive, memory->send, bytes, times);
}

/* Those that are not had in turns. */
static double other_limit(const collective_options *options, bench_rank *rank, size_t bytes) {
    if (options->no_limit || rank->size < 2 || strcmp(rank->wire_name, "tcp") == 0) return BENCH_UNMEASURED;
    if (strcmp(rank->wire_name, "verbs") == 0)
        return bench_write_bw_seconds(rank, bytes) * bus_factor(options->kind, rank->size);
    return bytes <= 64 ? bench_line_seconds(rank) : BENCH_UNMEASURED;
}

/* Windows in turns, each about as long as was asked for. */
static void time_windows(const collective_options *options, bench_rank *rank, wefti_group *group, const wefti_collective_call *call,
                         const buffers *memory, size_t bytes, measured *result) {
    double samples[BENCH_MOST_WINDOWS], limits[BENCH_MOST_WINDOWS];
    double one = window(rank, group, call, 3), again = window(rank, group, call, 3);
    one = again < one ? again : one;
    double wanted = options->seconds / one;
    int64_t operations = bench_agree(rank, wanted < 2 ? 2 : wanted > 100000 ? 100000 : (int64_t)wanted);
    int windows = (int)options->windows;
    for (int w = 0; w < windows; w++) {
        limits[w] = limit_window(options, rank, memory, bytes, operations);
        samples[w] = window(rank, group, call, operations);
    }
    result->seconds = bench_spread_of(samples, windows);
    result->limit_seconds = isnan(limits[0]) ? other_limit(options, rank, bytes) : bench_spread_of(limits, windows).median;
}

/* Whether the size is that of all parts. */
static bool has_parts(wefti_collective_kind kind) {
    return kind == WEFTI_REDUCE_SCATTER || kind == WEFTI_ALLGATHER || kind == WEFTI_GATHER || kind == WEFTI_SCATTER ||
           kind == WEFTI_ALLTOALL;
}

static measured measure(const collective_options *options, bench_rank *rank, wefti_group *group, const buffers *memory,
                        size_t bytes) {
    size_t element = weft_dtype_bytes(options->dtype), ranks = (size_t)rank->size;
    bool parts = has_parts(options->kind);
    size_t all = bytes / element, count = parts ? all / ranks : all;
    size_t own = (size_t)rank->rank * count * element;
    wefti_collective_call call = {.kind = options->kind,
                                  .dtype = options->dtype,
                                  .op = options->op,
                                  .send = memory->send,
                                  .receive = memory->receive,
                                  .count = count};
    bool root = rank->rank == 0;
    if (options->in_place && (options->kind == WEFTI_ALLGATHER || (options->kind == WEFTI_GATHER && root)))
        call.send = memory->receive + own;
    else if (options->in_place && options->kind != WEFTI_GATHER && options->kind != WEFTI_ALLTOALL &&
             (options->kind != WEFTI_SCATTER || root))
        call.receive = memory->send + (options->kind == WEFTI_REDUCE_SCATTER ? own : 0);
    measured result = {0};
    result.algorithm = rank->size == 1 ? "copy" : wefti_coll_choose((coll_group *)group, &call, count * element)->name;
    if (options->check)
        result.wrong = verify(options, rank, group, &call, wefti_coll_sent_count((coll_group *)group, &call, rank->rank),
                              wefti_coll_received_count((coll_group *)group, &call, rank->rank));
    memset(memory->send, 0, bytes); /* so that repeated sums in place stay what they are */
    memset(memory->receive, 0, bytes);
    time_windows(options, rank, group, &call, memory, bytes, &result);
    return result;
}

/* --- reports --- */

static void report(const collective_options *options, const bench_rank *rank, size_t bytes, const measured *result) {
    double factor = bus_factor(options->kind, rank->size), gigabytes = (double)bytes / 1e9;
    double limit = factor * gigabytes / result->limit_seconds, bus = factor * gigabytes / result->seconds.median;
    char size[16], what[64], extra[160], limit_text[32] = "unmeasured", share[16] = "-";
    if (!isnan(limit)) {
        snprintf(limit_text, sizeof limit_text, "%.2f", limit);
        snprintf(share, sizeof share, "%.0f %%", 100 * bus / limit);
    }
    bench_size_text(bytes, size, sizeof size);
    printf("%8s %10zu %5s %5s  %-13s %10.2f %9.2f %9.2f %10s %6s %6lld\n", size,
           bytes / weft_dtype_bytes(options->dtype), options->dtype_name,
           coll_kind_reduces(options->kind) ? options->op_name : "-", result->algorithm,
           result->seconds.median * 1e6, gigabytes / result->seconds.median, bus, limit_text, share,
           (long long)result->wrong);
    fflush(stdout);
    snprintf(what, sizeof what, "%zu bytes, %d ranks%s", bytes, (int)rank->size, options->foreign ? ", foreign" : "");
    snprintf(extra, sizeof extra,
             "\"wire\": \"%s\", \"dtype\": \"%s\", \"algorithm\": \"%s\", \"in_place\": %s, \"wrong\": %lld",
             rank->wire_name, options->dtype_name, result->algorithm, options->in_place ? "true" : "false",
             (long long)result->wrong);
    bench_record record = {.bench = options->name, .what = what, .metric = "time", .unit = "us", .extra = extra};
    record.spread = bench_spread_times(result->seconds, 1e6);
    record.limit = result->limit_seconds * 1e6;
    bench_write(options->json, &record);
    record.metric = "busbw";
    record.unit = "GB/s";
    record.spread = bench_spread_over(result->seconds, factor * gigabytes);
    record.limit = limit;
    bench_write(options->json, &record);
}

static void print_head(const collective_options *options, const bench_rank *rank) {
    printf("# %s on %d ranks, wire %s, buffers %s%s; limit: %s\n", options->name, (int)rank->size, rank->wire_name,
           options->foreign ? "foreign" : "in the exported region", options->in_place ? ", in place" : "",
           strcmp(rank->wire_name, "tcp") == 0     ? "plain sockets that move the same bytes"
           : strcmp(rank->wire_name, "verbs") == 0 ? "the same bytes one way by ib_write_bw"
                                                   : "copies of the same footprint by the same ranks");
    printf("%8s %10s %5s %5s  %-13s %10s %9s %9s %10s %6s %6s\n", "size", "count", "type", "op", "algorithm", "time",
           "algbw", "busbw", "limit", "share", "wrong");
    printf("%8s %10s %5s %5s  %-13s %10s %9s %9s %10s\n", "(B)", "(elements)", "", "", "", "(us)", "(GB/s)", "(GB/s)",
           "(GB/s)");
}

static int body(bench_rank *rank) {
    const collective_options *options = rank->argument;
    wefti_group *group = NULL;
    wefti_wire_region *region = NULL;
    buffers memory = {.bytes = wefti_align_up(options->sizes.last, 4096)};
    wefti_group_options how = {
        .wire = rank->wire, .size = rank->size, .index = rank->rank, .algorithm = options->algorithm};
    int64_t wrong = 0;
    BENCH_TRY(rank, wefti_collective_engine_weft()->open(&how, &group));
    bool can_export = rank->wire->ops->region_create && !options->foreign &&
                      rank->wire->ops->region_create(rank->wire, 2 * memory.bytes, &region) == WEFT_OK;
    memory.send = can_export ? region->base : malloc(2 * memory.bytes);
    if (!memory.send) bench_fail(rank, "out of memory");
    memory.receive = memory.send + memory.bytes;
    memset(memory.send, 0, 2 * memory.bytes);
    if (rank->rank == 0) print_head(options, rank);
    for (size_t bytes = options->sizes.first; bytes <= options->sizes.last; bytes *= 2) {
        measured result = measure(options, rank, group, &memory, bytes);
        wrong += result.wrong;
        if (rank->rank == 0) report(options, rank, bytes, &result);
        if (bytes == 0) break;
    }
    bench_meet(rank);
    wefti_collective_engine_weft()->close(group);
    if (!can_export) free(memory.send);
    return wrong != 0;
}

static weft_dtype read_dtype(const char *name) {
    for (int dtype = 0; dtype < WEFT_DTYPE_COUNT; dtype++)
        if (strcmp(weft_dtype_name((weft_dtype)dtype), name) == 0) return (weft_dtype)dtype;
    fprintf(stderr, "error: there is no dtype '%s'\n", name);
    exit(2);
}

static wefti_reduce_op read_op(const char *name) {
    for (int op = 0; op < WEFTI_REDUCE_OP_COUNT; op++)
        if (strcmp(wefti_reduce_op_name((wefti_reduce_op)op), name) == 0 && op != WEFTI_REDUCE_AVG)
            return (wefti_reduce_op)op;
    fprintf(stderr, "error: there is no reduction '%s'\n", name);
    exit(2);
}

/* Allreduce alone, of f32. */
static int run_on_device(const collective_options *options) {
    if (options->kind != WEFTI_ALLREDUCE || options->dtype != WEFT_F32 || options->op != WEFTI_REDUCE_SUM || strcmp(options->device, "cuda") != 0) {
        fprintf(stderr, "error: --device is cpu, or for allreduce of f32 sums cuda\n");
        return 2;
    }
    bench_device_options how = {.wire = options->wire, .by = options->by, .ranks = (int)options->ranks, .windows = (int)options->windows,
                                .seconds = options->seconds, .sizes = options->sizes, .share_gpu = options->share_gpu,
                                .check = options->check, .json = options->json};
    return bench_allreduce_on_device(&how);
}

static int run(int argc, char **argv, wefti_collective_kind kind, const char *help) {
    collective_options options = {.kind = kind,
                                  .name = argv[0],
                                  .wire = "shm",
                                  .dtype_name = "f32",
                                  .op_name = "sum",
                                  .device = "cpu",
                                  .by = "both",
                                  .ranks = 2,
                                  .windows = 9,
                                  .seconds = 0.1,
                                  .sizes = {8, (size_t)64 << 20},
                                  .check = true};
    bool no_check = false;
    const bench_option list[] = {
        {"wire", "inproc, shm (default), tcp, verbs, or mpi, under mpirun", BENCH_TEXT, &options.wire},
        {"ranks", "how many (2); they are started here", BENCH_NUMBER, &options.ranks},
        {"sizes", "bytes, doubling from the first to the last (8:64M)", BENCH_SIZES, &options.sizes},
        {"dtype", "f32 (default), f64, bf16, f16, i64, i32, u8, bool", BENCH_TEXT, &options.dtype_name},
        {"op", "sum (default), prod, min, max", BENCH_TEXT, &options.op_name},
        {"device", "cpu (default); cuda: buffers in GPUs' memory, a GPU for each rank (allreduce)", BENCH_TEXT, &options.device},
        {"by", "with --device cuda: nccl, wires (copies through host memory), both (default); nodes: NCCL inside hosts, the wire across; nodes:N: N ranks each",
         BENCH_TEXT, &options.by},
        {"share-gpu", "with --device cuda: ranks may share a GPU under NCCL, which then works over sockets", BENCH_FLAG, &options.share_gpu},
        {"algorithm", "forces one by name", BENCH_TEXT, &options.algorithm},
        {"foreign", "buffers outside of the exported region", BENCH_FLAG, &options.foreign},
        {"in-place", "send and receive are the same memory", BENCH_FLAG, &options.in_place},
        {"check", "verify each size before it is timed (always done; for familiarity)", BENCH_FLAG, &options.check},
        {"no-check", "do not verify", BENCH_FLAG, &no_check},
        {"no-limit", "do not measure the limit", BENCH_FLAG, &options.no_limit},
        {"windows", "timed windows a size (9)", BENCH_NUMBER, &options.windows},
        {"seconds", "length of a window (0.1)", BENCH_NUMBER, &options.seconds},
        {"json", "file for one JSON object a line", BENCH_TEXT, &options.json_path},
        {0}};
    bench_read_options(argc, argv, help, list);
    options.check = !no_check;
    options.dtype = read_dtype(options.dtype_name);
    options.op = read_op(options.op_name);
    if (!(options.windows >= 1 && options.windows <= BENCH_MOST_WINDOWS)) options.windows = 9;
    options.json = bench_open_json(options.json_path);
    int status = strcmp(options.device, "cpu") == 0 ? bench_run_ranks(options.wire, (int32_t)options.ranks, body, &options) : run_on_device(&options);
    if (options.json) fclose(options.json);
    return status;
}

int bench_allreduce(int argc, char **argv) {
    return run(argc, argv, WEFTI_ALLREDUCE, "Every rank gets the sum of all ranks' buffers.");
}
int bench_reduce_scatter(int argc, char **argv) {
    return run(argc, argv, WEFTI_REDUCE_SCATTER, "Each rank gets its part of the sum; sizes are those of the whole.");
}
int bench_allgather(int argc, char **argv) {
    return run(argc, argv, WEFTI_ALLGATHER, "Each rank gets everyone's part; sizes are those of the whole.");
}
int bench_alltoall(int argc, char **argv) {
    return run(argc, argv, WEFTI_ALLTOALL, "Each rank gets its part of everyone's buffer; sizes are those of the whole.");
}
int bench_reduce(int argc, char **argv) {
    return run(argc, argv, WEFTI_REDUCE_TO, "Rank 0 gets the sum of all ranks' buffers.");
}
int bench_gather(int argc, char **argv) {
    return run(argc, argv, WEFTI_GATHER, "Rank 0 gets everyone's part; sizes are those of the whole.");
}
int bench_scatter(int argc, char **argv) {
    return run(argc, argv, WEFTI_SCATTER, "Each rank gets its part of rank 0's buffer; sizes are those of the whole.");
}
int bench_broadcast(int argc, char **argv) {
    return run(argc, argv, WEFTI_BROADCAST, "Everyone gets rank 0's buffer.");
}

/* Allreduce on GPUs' memory, twice: by NCCL, whose operations are joined on the device without the host waiting (among all ranks, or inside nodes with
 * the wire across them), and by the wires, whose operations are copied out, reduced in pinned host memory and copied in, as plans do it. A window is so many operations one behind the other, until the GPU
 * has finished the last. There is no limit beside it: what links GPUs of one host differs from machine to machine. */
#include "device_collective.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/iface/collective.h"
#include "core/iface/world.h"
#include "ranks.h"
#include "weft.h"

typedef struct station {
    const bench_device_options *options;
    bench_rank    *rank;
    weft_world    *world;
    float         *memory; /* the device's */
    void          *mirror; /* pinned, in the wire's exported region */
    wefti_wire_region *region;
} station;

static char store[64]; /* set before the ranks are forked */

/* --- one operation --- */

static void by_group(station *at, const wefti_collective_call *call) {
    wefti_group *group = at->world->device_group;
    wefti_collective *operation = NULL;
    BENCH_TRY(at->rank, wefti_collective_start(group, call, &operation));
    BENCH_TRY(at->rank, group->engine->join(operation));
}

static void by_wires(station *at, const wefti_collective_call *call) {
    wefti_device *device = at->world->device;
    size_t bytes = call->count * sizeof(float);
    uint64_t ticket;
    weft_status status;
    wefti_collective_call there = *call;
    there.send = there.receive = at->mirror;
    BENCH_TRY(at->rank, device->vtable->copy_out(device, at->mirror, call->send, bytes, &ticket));
    while ((status = device->vtable->copy_test(device, ticket)) == WEFT_E_AGAIN) {}
    BENCH_TRY(at->rank, status);
    BENCH_TRY(at->rank, wefti_collective_run(at->world->group, &there));
    BENCH_TRY(at->rank, device->vtable->copy_in(device, call->receive, at->mirror, bytes));
    BENCH_TRY(at->rank, device->vtable->copy_join(device));
}

typedef void (*way)(station *at, const wefti_collective_call *call);

/* --- one size --- */

static void finish(station *at) {
    float one;
    BENCH_TRY(at->rank, at->world->device->vtable->read(at->world->device, &one, at->memory, sizeof one));
}

static double window(station *at, way run, const wefti_collective_call *call, int64_t operations) {
    bench_meet(at->rank);
    double begin = bench_now_s();
    for (int64_t i = 0; i < operations; i++) run(at, call);
    finish(at);
    return bench_slowest(at->rank, (bench_now_s() - begin) / (double)operations);
}

static int64_t verify(station *at, way run, const wefti_collective_call *call) {
    wefti_device *device = at->world->device;
    size_t bytes = call->count * sizeof(float);
    int64_t wrong = 0;
    float *host = malloc(bytes);
    if (!host) bench_fail(at->rank, "out of memory");
    for (size_t i = 0; i < call->count; i++) host[i] = (float)((i + (size_t)at->rank->rank) % 3);
    BENCH_TRY(at->rank, device->vtable->write(device, at->memory, host, bytes));
    run(at, call);
    BENCH_TRY(at->rank, device->vtable->read(device, host, at->memory, bytes));
    for (size_t i = 0; i < call->count; i++) {
        float due = 0;
        for (int32_t r = 0; r < at->rank->size; r++) due += (float)((i + (size_t)r) % 3);
        wrong += host[i] != due;
    }
    memset(host, 0, bytes); /* so that repeated sums in place stay what they are */
    BENCH_TRY(at->rank, device->vtable->write(device, at->memory, host, bytes));
    free(host);
    return wrong;
}

static void report(station *at, const char *by, size_t bytes, bench_spread seconds, int64_t wrong) {
    double factor = 2.0 * (at->rank->size - 1) / at->rank->size, gigabytes = (double)bytes / 1e9;
    char size[16], what[64], extra[200];
    bench_size_text(bytes, size, sizeof size);
    printf("%8s %10zu   f32   sum  %-13s %10.2f %9.2f %9.2f %6lld\n", size, bytes / sizeof(float), by, seconds.median * 1e6,
           gigabytes / seconds.median, factor * gigabytes / seconds.median, (long long)wrong);
    fflush(stdout);
    snprintf(what, sizeof what, "%zu bytes, %d ranks, on the device", bytes, (int)at->rank->size);
    snprintf(extra, sizeof extra, "\"by\": \"%s\", \"device\": \"%s\", \"dtype\": \"f32\", \"wrong\": %lld", by, at->world->device->vtable->kind,
             (long long)wrong);
    bench_record record = {.bench = "allreduce", .what = what, .metric = "time", .unit = "us", .extra = extra, .limit = BENCH_UNMEASURED};
    record.spread = bench_spread_times(seconds, 1e6);
    bench_write(at->options->json, &record);
    record.metric = "busbw";
    record.unit = "GB/s";
    record.spread = bench_spread_over(seconds, factor * gigabytes);
    bench_write(at->options->json, &record);
}

static int64_t measure(station *at, const char *by, way run, size_t bytes) {
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_F32, .send = at->memory, .receive = at->memory, .count = bytes / sizeof(float)};
    int64_t wrong = at->options->check ? verify(at, run, &call) : 0;
    double one = window(at, run, &call, 3), again = window(at, run, &call, 3), samples[BENCH_MOST_WINDOWS];
    one = again < one ? again : one;
    double wanted = at->options->seconds / one;
    int64_t operations = bench_agree(at->rank, wanted < 2 ? 2 : wanted > 100000 ? 100000 : (int64_t)wanted);
    for (int w = 0; w < at->options->windows; w++) samples[w] = window(at, run, &call, operations);
    if (at->rank->rank == 0) report(at, by, bytes, bench_spread_of(samples, at->options->windows), wrong);
    return wrong;
}

/* --- a rank --- */

/* "nodes" or "nodes:N": NCCL inside nodes, which are hosts or N ranks each. */
static bool inside_nodes(const char *by) {
    int  ranks;
    char more;
    return strcmp(by, "nodes") == 0 || (sscanf(by, "nodes:%d%c", &ranks, &more) == 1 && ranks > 0);
}

static bool wants(const station *at, const char *by) { return strcmp(at->options->by, by) == 0 || strcmp(at->options->by, "both") == 0; }

static void open_station(station *at) {
    if (at->options->share_gpu) {
        char host[32];
        snprintf(host, sizeof host, "weft-rank-%d", (int)at->rank->rank);
        setenv("NCCL_HOSTID", host, 1);
        setenv("NCCL_NET", "Socket", 1);
        setenv("NCCL_SOCKET_IFNAME", "lo", 1);
        setenv("NCCL_P2P_DISABLE", "1", 1);
        setenv("NCCL_SHM_DISABLE", "1", 1);
    }
    weft_world_options how = {.rank = at->rank->rank, .size = at->rank->size, .store = store, .wire = at->options->wire, .device = "cuda",
                              .nccl = inside_nodes(at->options->by) ? at->options->by : strcmp(at->options->by, "nccl") == 0 ? "force"
                                      : strcmp(at->options->by, "wires") == 0 ? "off" : "auto"};
    BENCH_TRY(at->rank, weft_world_create(&how, &at->world));
    wefti_device *device = at->world->device;
    void *memory = NULL;
    BENCH_TRY(at->rank, device->vtable->allocate(device, at->options->sizes.last, "the buffer", &memory));
    at->memory = memory;
    if (!wants(at, "wires")) return;
    wefti_wire *wire = at->world->group->wire;
    BENCH_TRY(at->rank, wire->ops->region_create(wire, at->options->sizes.last, &at->region));
    at->mirror = at->region->base;
    device->vtable->pin(device, at->mirror, at->options->sizes.last);
}

static void close_station(station *at) {
    wefti_device *device = at->world->device;
    bench_meet(at->rank); /* nobody looks into the region any more */
    if (at->mirror) device->vtable->unpin(device, at->mirror, at->options->sizes.last);
    if (at->region) at->region->wire->ops->region_release(at->region);
    device->vtable->deallocate(device, at->memory, at->options->sizes.last);
    weft_world_release(at->world);
}

static int body(bench_rank *rank) {
    station at = {.options = rank->argument, .rank = rank};
    int64_t wrong = 0;
    open_station(&at);
    /* A world of one node has NCCL among all. */
    bool one_node = inside_nodes(at.options->by) && strcmp(at.world->device_group->engine->name, "nccl-nodes") != 0;
    if (rank->rank == 0) {
        printf("# allreduce on %d ranks, buffers in the device's memory, in place; %s\n", (int)rank->size, weft_world_describe(at.world));
        printf("%8s %10s %5s %5s  %-13s %10s %9s %9s %6s\n%8s %10s %5s %5s  %-13s %10s %9s %9s\n", "size", "count", "type", "op", "by", "time",
               "algbw", "busbw", "wrong", "(B)", "(elements)", "", "", "", "(us)", "(GB/s)", "(GB/s)");
        if (!at.world->device_group) printf("# by nccl: unmeasured: %s\n", at.world->device_group_text);
        else if (one_node) printf("# by nodes: unmeasured: all ranks are on one node (--by nodes:N takes N ranks each for one)\n");
    }
    for (size_t bytes = at.options->sizes.first < sizeof(float) ? sizeof(float) : at.options->sizes.first; bytes <= at.options->sizes.last; bytes *= 2) {
        if (at.world->device_group && !one_node) wrong += measure(&at, inside_nodes(at.options->by) ? "nodes" : "nccl", by_group, bytes);
        if (wants(&at, "wires")) wrong += measure(&at, "wires", by_wires, bytes);
    }
    close_station(&at);
    return wrong != 0;
}

int bench_allreduce_on_device(const bench_device_options *options) {
    if (strcmp(options->by, "nccl") != 0 && strcmp(options->by, "wires") != 0 && strcmp(options->by, "both") != 0 && !inside_nodes(options->by)) {
        fprintf(stderr, "error: --by is nccl, wires, both, nodes or nodes:N, not '%s'\n", options->by);
        return 2;
    }
    if (options->ranks < 2) {
        fprintf(stderr, "error: on a device, allreduce is of two ranks or more\n");
        return 2;
    }
    int holder = bench_pick_store(store), status = bench_run_ranks(options->wire, options->ranks, body, (void *)(uintptr_t)options);
    close(holder);
    return status;
}

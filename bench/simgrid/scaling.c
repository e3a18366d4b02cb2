/* Collectives of the library at scale, in simulated time: built with SimGrid's smpicc, run with smpirun (run.sh).
 * usage: scaling NEAR_NS NEAR_GB/S FAR_NS FAR_GB/S PER_NODE MOST_BYTES
 * The links' latency and bandwidth are those of the platform, for the cost model; PER_NODE ranks share a host. Rank 0 prints one JSON line for
 * each kind, algorithm and size up to MOST_BYTES of payload a rank: the slowest rank's time, and the cost model's. Every result is checked. Algorithms that the model holds for four times slower than its choice are left
 * out.
 *
 * Reductions take simulated time, too: the model's time for a byte that is read or written. */
#include <math.h>
#include <mpi.h>
#include <smpi/smpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transport/coll.h"
#include "wire_smpi.h"

#define MEMORY_NS_PER_BYTE 0.08
enum { MOST_RANKS = 4096, HOPELESS = 4 };

typedef struct cluster {
    int32_t    rank, size, per_node;
    int32_t    nodes[MOST_RANKS];
    coll_model model;
    wefti_wire *wire;
} cluster;

static weft_status reduce_in_time(void *context, void *dst, const void *const *sources, int32_t source_count, size_t count, weft_dtype dtype,
                                  wefti_reduce_op op, int32_t divisor) {
    (void)context;
    const wefti_reducer *host = wefti_reducer_host();
    double bytes = (double)count * (double)weft_dtype_bytes(dtype);
    smpi_execute((source_count + 1) * bytes * MEMORY_NS_PER_BYTE * 1e-9);
    return host->reduce(host->context, dst, sources, source_count, count, dtype, op, divisor);
}
static const wefti_reducer reducer = {.reduce = reduce_in_time};

static weft_status open_group(const cluster *c, const char *algorithm, uint16_t id, wefti_group **group_out) {
    const wefti_group_options options = {.wire = c->wire, .size = c->size, .index = c->rank, .id = id, .in_flight = 2, .reducer = &reducer,
                                         .timeout_ns = 3600 * WEFTI_SECOND_NS, .algorithm = algorithm, .nodes = c->nodes};
    WEFTI_TRY(wefti_collective_engine_weft()->open(&options, group_out));
    ((coll_group *)*group_out)->model = c->model;
    return WEFT_OK;
}

/* --- the calls --- */

typedef struct measured {
    wefti_collective_kind kind;
    const char *name;
    bool parts; /* a part for each rank: the payload is divided by the ranks */
} measured;
static const measured kinds[] = {{WEFTI_ALLREDUCE, "allreduce", false}, {WEFTI_REDUCE_SCATTER, "reduce-scatter", true},
                                 {WEFTI_ALLGATHER, "allgather", true}, {WEFTI_BROADCAST, "broadcast", false}, {WEFTI_REDUCE_TO, "reduce", false},
                                 {WEFTI_ALLTOALL, "alltoall", true}};

static float given(int32_t rank, size_t i) { return (float)((rank * 5 + (int32_t)(i % 11)) % 17); }

static void fill(const cluster *c, float *send, float *receive, size_t sent, size_t received) {
    for (size_t i = 0; i < sent; i++) send[i] = given(c->rank, i);
    for (size_t i = 0; i < received; i++) receive[i] = -1;
}

/* What element i of the result must be; small whole numbers, so that sums are exact in any order. */
static float expected(const cluster *c, const measured *what, size_t count, size_t i) {
    float sum = 0;
    size_t at = what->kind == WEFTI_REDUCE_SCATTER ? (size_t)c->rank * count + i : i;
    switch (what->kind) {
    case WEFTI_BROADCAST: return given(0, i);
    case WEFTI_ALLGATHER: return given((int32_t)(i / count), i % count);
    case WEFTI_ALLTOALL: return given((int32_t)(i / count), (size_t)c->rank * count + i % count);
    default:
        for (int32_t r = 0; r < c->size; r++) sum += given(r, at);
        return sum;
    }
}

/* Looks at up to a few thousand elements, spread over all. */
static bool is_right(const cluster *c, const measured *what, const float *receive, size_t received, size_t count) {
    size_t step = received / 997 + 1;
    if (what->kind == WEFTI_REDUCE_TO && c->rank != 0) return true;
    for (size_t i = 0; i < received; i += i + step < received || i == received - 1 ? step : received - 1 - i)
        if (receive[i] != expected(c, what, count, i)) return false;
    return true;
}

/* The slowest rank's time in seconds; negative where a result is wrong. */
static double time_of(const cluster *c, wefti_group *group, const measured *what, size_t count, float *send, float *receive) {
    size_t all = count * (size_t)c->size;
    size_t sent = what->kind == WEFTI_REDUCE_SCATTER || what->kind == WEFTI_ALLTOALL ? all : count;
    size_t received = what->kind == WEFTI_ALLGATHER || what->kind == WEFTI_ALLTOALL ? all : count;
    wefti_collective_call call = {.kind = what->kind, .send = send, .receive = receive, .count = count};
    double mine[2], slowest[2];
    fill(c, send, receive, sent, received);
    MPI_Barrier(MPI_COMM_WORLD);
    double begin = MPI_Wtime();
    weft_status status = wefti_collective_run(group, &call);
    mine[0] = MPI_Wtime() - begin;
    mine[1] = status == WEFT_OK && is_right(c, what, receive, received, count) ? 0 : 1;
    MPI_Allreduce(mine, slowest, 2, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return slowest[1] > 0 ? -1 : slowest[0];
}

static int fail(const cluster *c) {
    fprintf(stderr, "scaling: rank %d of %d: %s\n", (int)c->rank, (int)c->size, weft_error_message());
    return 1;
}

/* Whether the model leaves an algorithm any hope: what it holds for far slower than its choice would cost hours of simulation. */
static bool is_hopeless(const coll_group *inside, const coll_algorithm *algorithm, const wefti_collective_call *call, const coll_algorithm *chosen) {
    size_t bytes = call->count * sizeof(float);
    return algorithm->cost_ns(inside, call->kind, bytes) > HOPELESS * chosen->cost_ns(inside, call->kind, bytes);
}

/* One algorithm on one size, where it fits; `unforced` is a group that chooses for itself. */
static void measure(const cluster *c, const coll_algorithm *algorithm, const coll_group *unforced, const measured *what, size_t bytes, uint16_t id,
                    int *wrong) {
    size_t count = bytes / sizeof(float) / (what->parts ? (size_t)c->size : 1), all = bytes / sizeof(float) + (size_t)c->size;
    wefti_collective_call call = {.kind = what->kind, .count = count};
    wefti_group          *group = NULL;
    if (count == 0) return;
    const coll_algorithm *chosen = wefti_coll_choose(unforced, &call, count * sizeof(float));
    if (!algorithm->fits(unforced, &call, count * sizeof(float)) || is_hopeless(unforced, algorithm, &call, chosen)) return;
    if (open_group(c, algorithm->name, id, &group) != WEFT_OK) {
        *wrong += fail(c);
        return;
    }
    if (wefti_coll_choose((coll_group *)group, &call, count * sizeof(float)) == algorithm) {
        float *send = malloc(all * sizeof *send), *receive = malloc(all * sizeof *receive);
        double seconds = time_of(c, group, what, count, send, receive);
        if (seconds < 0) (*wrong)++;
        if (c->rank == 0)
            printf("{\"kind\": \"%s\", \"ranks\": %d, \"per_node\": %d, \"bytes\": %zu, \"algorithm\": \"%s\", \"chosen\": %s, \"us\": %.3f, "
                   "\"model_us\": %.3f, \"right\": %s}\n",
                   what->name, (int)c->size, (int)c->per_node, bytes, algorithm->name, chosen == algorithm ? "true" : "false", seconds * 1e6,
                   algorithm->cost_ns(unforced, what->kind, count * sizeof(float)) / 1e3, seconds < 0 ? "false" : "true");
        fflush(stdout);
        free(send);
        free(receive);
    }
    wefti_collective_engine_weft()->close(group);
}

int main(int argc, char **argv) {
    static cluster c;
    int wrong = 0;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &c.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &c.size);
    if (argc != 7 || c.size > MOST_RANKS) return 2;
    c.per_node = atoi(argv[5]);
    size_t most = (size_t)atoll(argv[6]);
    for (int32_t i = 0; i < c.size; i++) c.nodes[i] = i / c.per_node;
    smpi_link near_link = {(uint64_t)atof(argv[1]), atof(argv[2])}, far_link = {(uint64_t)atof(argv[3]), atof(argv[4])};
    if (c.per_node == 1) near_link = far_link; /* then all links are far */
    c.model = (coll_model){(double)near_link.latency_ns, 1 / near_link.bytes_per_ns, (double)far_link.latency_ns, 1 / far_link.bytes_per_ns,
                           MEMORY_NS_PER_BYTE};
    if (smpi_wire_open(c.rank, c.size, far_link, &c.wire) != WEFT_OK) return fail(&c);
    static const size_t sizes[] = {8, 1024, 65536, 1 << 20, 16 << 20};
    uint16_t     id = 1;
    wefti_group *unforced = NULL;
    if (open_group(&c, NULL, 0, &unforced) != WEFT_OK) return fail(&c);
    for (size_t k = 0; k < WEFTI_COUNT(kinds); k++)
        for (size_t s = 0; s < WEFTI_COUNT(sizes) && sizes[s] <= most; s++)
            for (int a = 0; a < wefti_coll_algorithm_count; a++)
                if ((wefti_coll_algorithms[a].kinds >> kinds[k].kind & 1) && !wefti_coll_algorithms[a].mapped)
                    measure(&c, &wefti_coll_algorithms[a], (coll_group *)unforced, &kinds[k], sizes[s], id = (uint16_t)(id % 1000 + 1), &wrong);
    wefti_collective_engine_weft()->close(unforced);
    c.wire->ops->close(c.wire, 0);
    MPI_Finalize();
    return wrong ? 1 : 0;
}

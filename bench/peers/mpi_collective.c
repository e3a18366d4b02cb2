/* Collectives and messages in MPI: the yardstick for Weft's own. Prints one JSON object a line and size, from rank 0.
 *
 * usage: mpirun -n N mpi_collective KIND [--min BYTES] [--max BYTES] [--seconds S] [--windows N]
 *
 * KIND is what weft-bench calls it, and sizes mean the same: the whole buffer, all parts together. Each size is checked
 * once, warmed up, and then timed in windows of equally many operations, back to back, as nccl-tests does; a window's
 * time is that of the slowest rank. Bus bandwidth is bytes over time, by nccl-tests' factor of the kind. */
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_WINDOWS = 64, ON_THE_WAY = 8 };

typedef struct place {
    int    rank, ranks, count; /* floats of the whole */
    float *send, *receive;
} place;

/* --- the kinds --- */

static void allreduce(const place *p) {
    MPI_Allreduce(p->send, p->receive, p->count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}
static void reduce(const place *p) {
    MPI_Reduce(p->send, p->receive, p->count, MPI_FLOAT, MPI_SUM, 0, MPI_COMM_WORLD);
}
static void reduce_scatter(const place *p) {
    MPI_Reduce_scatter_block(p->send, p->receive, p->count / p->ranks, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}
static void allgather(const place *p) {
    int part = p->count / p->ranks;
    MPI_Allgather(p->send, part, MPI_FLOAT, p->receive, part, MPI_FLOAT, MPI_COMM_WORLD);
}
static void broadcast(const place *p) { MPI_Bcast(p->rank ? p->receive : p->send, p->count, MPI_FLOAT, 0, MPI_COMM_WORLD); }
static void gather(const place *p) {
    int part = p->count / p->ranks;
    MPI_Gather(p->send, part, MPI_FLOAT, p->receive, part, MPI_FLOAT, 0, MPI_COMM_WORLD);
}
static void scatter(const place *p) {
    int part = p->count / p->ranks;
    MPI_Scatter(p->send, part, MPI_FLOAT, p->receive, part, MPI_FLOAT, 0, MPI_COMM_WORLD);
}
static void alltoall(const place *p) {
    int part = p->count / p->ranks;
    MPI_Alltoall(p->send, part, MPI_FLOAT, p->receive, part, MPI_FLOAT, MPI_COMM_WORLD);
}
static void latency(const place *p) {
    for (int from = 0; from < 2 && p->rank < 2; ++from)
        if (from == p->rank)
            MPI_Send(p->send, p->count, MPI_FLOAT, 1 - p->rank, 1, MPI_COMM_WORLD);
        else
            MPI_Recv(p->receive, p->count, MPI_FLOAT, 1 - p->rank, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}

/* What element i of rank's buffers is to be. */
static float input(int rank, int i) { return (float)((i + rank) % 7); }
static float sum(const place *p, int i) {
    float result = 0;
    for (int r = 0; r < p->ranks; ++r) result += input(r, i);
    return result;
}
static float part_of_sum(const place *p, int i) { return sum(p, p->rank * (p->count / p->ranks) + i); }
static float everyones(const place *p, int i) { return input(i / (p->count / p->ranks), i % (p->count / p->ranks)); }
static float the_first_ones(const place *p, int i) { return (void)p, input(0, i); }
static float part_of_the_first(const place *p, int i) { return input(0, p->rank * (p->count / p->ranks) + i); }
static float parts_for_this(const place *p, int i) {
    int part = p->count / p->ranks;
    return input(i / part, p->rank * part + i % part);
}
static float the_others(const place *p, int i) { return input(1 - p->rank, i); }

typedef struct kind {
    const char *name;
    void (*run)(const place *p);
    float (*expected)(const place *p, int i);
    int parts;  /* results are of one part (1), or parts of all (2) */
    int where;  /* results are at all ranks (0), the first (1), all but the first (2), the first two (3) */
    int factor; /* busbw: 2(n-1)/n, (n-1)/n or 1 by 2, 1, 0 */
} kind;

static const kind kinds[] = {
    {"allreduce", allreduce, sum, 0, 0, 2},
    {"reduce", reduce, sum, 0, 1, 0},
    {"reduce-scatter", reduce_scatter, part_of_sum, 1, 0, 1},
    {"allgather", allgather, everyones, 2, 0, 1},
    {"broadcast", broadcast, the_first_ones, 0, 2, 0},
    {"gather", gather, everyones, 2, 1, 1},
    {"scatter", scatter, part_of_the_first, 1, 0, 1},
    {"alltoall", alltoall, parts_for_this, 2, 0, 1},
    {"latency", latency, the_others, 0, 3, 0},
    {"sendrecv", NULL, the_first_ones, 0, 2, 0},
};

/* Rank 0 sends to rank 1 with some on the way; an empty answer ends it. */
static void stream(const place *p, int messages) {
    MPI_Request requests[ON_THE_WAY];
    for (int i = 0; i < messages + ON_THE_WAY; ++i) {
        MPI_Request *request = &requests[i % ON_THE_WAY];
        if (i >= ON_THE_WAY && i - ON_THE_WAY < messages) MPI_Wait(request, MPI_STATUS_IGNORE);
        if (i >= messages) continue;
        if (p->rank == 0)
            MPI_Isend(p->send, p->count, MPI_FLOAT, 1, 2, MPI_COMM_WORLD, request);
        else
            MPI_Irecv(p->receive, p->count, MPI_FLOAT, 0, 2, MPI_COMM_WORLD, request);
    }
    if (p->rank == 0)
        MPI_Recv(NULL, 0, MPI_FLOAT, 1, 3, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    else
        MPI_Send(NULL, 0, MPI_FLOAT, 0, 3, MPI_COMM_WORLD);
}

static void repeat(const kind *what, const place *p, int operations) {
    if (!what->run) {
        if (p->rank < 2) stream(p, operations);
        return;
    }
    for (int i = 0; i < operations; ++i) what->run(p);
}

/* --- checking and timing --- */

static int is_right(const kind *what, const place *p) {
    int has = what->where == 0 || (what->where == 1 && p->rank == 0) || (what->where == 3 && p->rank < 2) ||
              (what->where == 2 && (what->run ? p->rank > 0 : p->rank == 1));
    int results = what->parts == 1 ? p->count / p->ranks : what->parts == 2 ? p->count / p->ranks * p->ranks : p->count;
    for (int i = 0; i < p->count; ++i) p->send[i] = input(p->rank, i);
    memset(p->receive, 0xff, (size_t)p->count * sizeof(float));
    repeat(what, p, 1);
    for (int i = 0; has && i < results; ++i)
        if (p->receive[i] != what->expected(p, i)) return 0;
    return 1;
}

/* Seconds an operation, by the slowest rank. */
static double time_window(const kind *what, const place *p, int operations) {
    double seconds, slowest;
    MPI_Barrier(MPI_COMM_WORLD);
    seconds = MPI_Wtime();
    repeat(what, p, operations);
    seconds = MPI_Wtime() - seconds;
    MPI_Allreduce(&seconds, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return slowest / operations / (strcmp(what->name, "latency") == 0 ? 2 : 1);
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(const kind *what, size_t bytes, int ranks, double *times, int windows) {
    qsort(times, (size_t)windows, sizeof *times, compare);
    double share = (double)(ranks - 1) / ranks, factor = what->factor == 2 ? 2 * share : what->factor == 1 ? share : 1;
    double median = times[windows / 2], gigabytes = factor * (double)bytes / 1e9;
    printf("{\"bench\": \"mpi-%s\", \"case\": \"%zu bytes, %d ranks\", \"bytes\": %zu, \"metric\": \"time\", "
           "\"unit\": \"us\", \"median\": %.3f, \"low\": %.3f, \"high\": %.3f, \"runs\": %d}\n",
           what->name, bytes, ranks, bytes, median * 1e6, times[0] * 1e6, times[windows - 1] * 1e6, windows);
    printf("{\"bench\": \"mpi-%s\", \"case\": \"%zu bytes, %d ranks\", \"bytes\": %zu, \"metric\": \"busbw\", "
           "\"unit\": \"GB/s\", \"median\": %.4f, \"low\": %.4f, \"high\": %.4f, \"runs\": %d}\n",
           what->name, bytes, ranks, bytes, gigabytes / median, gigabytes / times[windows - 1], gigabytes / times[0], windows);
    fflush(stdout);
}

static double option(char **argv, const char *name, double value) {
    for (int i = 1; argv[i] && argv[i + 1]; ++i)
        if (strcmp(argv[i], name) == 0) value = atof(argv[i + 1]);
    return value;
}

static const kind *find(const char *name) {
    for (size_t i = 0; name && i < sizeof kinds / sizeof *kinds; ++i)
        if (strcmp(kinds[i].name, name) == 0) return &kinds[i];
    fprintf(stderr, "error: the first argument is a kind: ");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; ++i) fprintf(stderr, "%s%s", i ? ", " : "", kinds[i].name);
    fprintf(stderr, "\n");
    exit(2);
}

int main(int argc, char **argv) {
    int wrong = 0;
    place p;
    MPI_Init(&argc, &argv);
    const kind *what = find(argv[1]);
    MPI_Comm_rank(MPI_COMM_WORLD, &p.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &p.ranks);
    size_t smallest = (size_t)option(argv, "--min", 8), largest = (size_t)option(argv, "--max", 64 << 20);
    double seconds = option(argv, "--seconds", 0.1), times[MAX_WINDOWS];
    int    windows = (int)fmin(option(argv, "--windows", 9), MAX_WINDOWS);
    p.send = malloc(largest);
    p.receive = malloc(largest);
    if (!p.send || !p.receive) MPI_Abort(MPI_COMM_WORLD, 1);
    for (size_t bytes = smallest; bytes <= largest; bytes *= 2) {
        p.count = (int)(bytes / sizeof(float));
        if (!is_right(what, &p)) wrong = 1;
        double one = fmin(time_window(what, &p, 3), time_window(what, &p, 3));
        int    operations = (int)fmax(2, fmin(100000, seconds / one));
        MPI_Bcast(&operations, 1, MPI_INT, 0, MPI_COMM_WORLD);
        for (int w = 0; w < windows; ++w) times[w] = time_window(what, &p, operations);
        if (p.rank == 0) report(what, bytes, p.ranks, times, windows);
    }
    if (wrong) fprintf(stderr, "rank %d: a result was wrong\n", p.rank);
    free(p.send);
    free(p.receive);
    MPI_Finalize();
    return wrong;
}

/* Allreduce in MPI: the yardstick for Weft's own. Prints one JSON object a line and size, from rank 0.
 *
 * usage: mpirun -n N mpi_allreduce [--min BYTES] [--max BYTES] [--seconds S] [--windows N]
 *
 * Each size is checked once, warmed up, and then timed in windows of equally many operations, back to back, as
 * nccl-tests does; a window's time is that of the slowest rank. Bus bandwidth is 2(n-1)/n times bytes over time. */
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_WINDOWS = 64 };

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double option(char **argv, const char *name, double value) {
    for (int i = 1; argv[i] && argv[i + 1]; ++i)
        if (strcmp(argv[i], name) == 0) value = atof(argv[i + 1]);
    return value;
}

static int is_right(float *send, float *receive, int count, int rank, int ranks) {
    for (int i = 0; i < count; ++i) send[i] = (float)((i + rank) % 7);
    MPI_Allreduce(send, receive, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    for (int i = 0; i < count; ++i) {
        float expected = 0;
        for (int r = 0; r < ranks; ++r) expected += (float)((i + r) % 7);
        if (receive[i] != expected) return 0;
    }
    return 1;
}

/* Seconds an operation, by the slowest rank. */
static double time_window(float *send, float *receive, int count, int operations) {
    double seconds, slowest;
    MPI_Barrier(MPI_COMM_WORLD);
    seconds = MPI_Wtime();
    for (int i = 0; i < operations; ++i)
        MPI_Allreduce(send, receive, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    seconds = MPI_Wtime() - seconds;
    MPI_Allreduce(&seconds, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return slowest / operations;
}

static void report(size_t bytes, int ranks, const double *times, int windows) {
    double median = times[windows / 2], factor = 2.0 * (ranks - 1) / ranks * (double)bytes / 1e9;
    printf("{\"bench\": \"mpi-allreduce\", \"case\": \"%zu bytes, %d ranks\", \"bytes\": %zu, \"metric\": \"time\", "
           "\"unit\": \"us\", \"median\": %.3f, \"low\": %.3f, \"high\": %.3f, \"runs\": %d}\n",
           bytes, ranks, bytes, median * 1e6, times[0] * 1e6, times[windows - 1] * 1e6, windows);
    printf("{\"bench\": \"mpi-allreduce\", \"case\": \"%zu bytes, %d ranks\", \"bytes\": %zu, \"metric\": \"busbw\", "
           "\"unit\": \"GB/s\", \"median\": %.4f, \"low\": %.4f, \"high\": %.4f, \"runs\": %d}\n",
           bytes, ranks, bytes, factor / median, factor / times[windows - 1], factor / times[0], windows);
    fflush(stdout);
}

int main(int argc, char **argv) {
    int rank, ranks, wrong = 0;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    size_t smallest = (size_t)option(argv, "--min", 8), largest = (size_t)option(argv, "--max", 64 << 20);
    double seconds = option(argv, "--seconds", 0.1), times[MAX_WINDOWS];
    int    windows = (int)fmin(option(argv, "--windows", 9), MAX_WINDOWS);
    float *send = malloc(largest), *receive = malloc(largest);
    if (!send || !receive) MPI_Abort(MPI_COMM_WORLD, 1);
    memset(receive, 0, largest);
    for (size_t bytes = smallest; bytes <= largest; bytes *= 2) {
        int count = (int)(bytes / sizeof(float));
        if (!is_right(send, receive, count, rank, ranks)) wrong = 1;
        double one = fmin(time_window(send, receive, count, 3), time_window(send, receive, count, 3));
        int    operations = (int)fmax(2, fmin(100000, seconds / one));
        MPI_Bcast(&operations, 1, MPI_INT, 0, MPI_COMM_WORLD);
        for (int w = 0; w < windows; ++w) times[w] = time_window(send, receive, count, operations);
        qsort(times, (size_t)windows, sizeof *times, compare);
        if (rank == 0) report(bytes, ranks, times, windows);
    }
    if (wrong) fprintf(stderr, "rank %d: a sum was wrong\n", rank);
    free(send);
    free(receive);
    MPI_Finalize();
    return wrong;
}

/* A program that uses MPI itself, and Weft beside it: linked with one MPI, which it initialises before and finalises after. */
#include <mpi.h>
#include <stdio.h>
#include <string.h>

#include "weft.h"

int main(int argc, char **argv) {
    int         level = 0, rank = 0, size = 0, sum = 0;
    weft_world *world = NULL;
    if (MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &level) != MPI_SUCCESS) return 1;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    weft_world_options options = {.rank = rank, .size = size, .wire = "mpi"};
    if (weft_world_create(&options, &world) != WEFT_OK) {
        printf("rank %d: %s\n", rank, weft_error_message());
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    const char *wire = strstr(weft_world_describe(world), "wire mpi") ? "mpi" : weft_world_describe(world);
    /* Both at once: its own messages do not meet Weft's. */
    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    char described[64];
    snprintf(described, sizeof described, "%s", wire);
    weft_world_release(world);
    int finalised = 1;
    MPI_Finalized(&finalised);
    MPI_Barrier(MPI_COMM_WORLD);
    printf("rank %d of %d: wire %s, sum %d, and MPI %s\n", rank, size, described, sum, finalised ? "is over" : "goes on");
    return MPI_Finalize() == MPI_SUCCESS && !finalised && sum == size * (size - 1) / 2 ? 0 : 1;
}

/* Ranks that mpirun has started, for the wire "mpi": what they share is memory that rank 0 makes and MPI tells the others of. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ranks.h"
#include "transport/wire_mpi_api.h"

/* Where the memory can be opened. */
typedef struct invitation {
    char path[64];
} invitation;

static weft_status invite(const wefti_mpi *mpi, invitation *all) {
    wefti_mpi_call call = {.kind = WEFTI_BROADCAST, .element_bytes = 1, .receive = all, .count = sizeof *all};
    wefti_mpi_request request;
    wefti_mpi_status status = {0};
    bool done = false;
    int code = mpi->api->collective(NULL, &call, &request);
    while (code == 0 && !done) code = mpi->api->test(&request, &done, &status);
    return code == 0 && status.error == 0 ? WEFT_OK : wefti_fail(WEFT_E_LINK, "MPI does not bring the ranks together");
}

int bench_run_launched(int32_t size, int (*run)(bench_rank *rank, int (*body)(bench_rank *rank)), int (*body)(bench_rank *rank),
                       void *argument) {
    const wefti_mpi *mpi = NULL;
    invitation all = {{0}};
    if (wefti_mpi_start(&mpi) != WEFT_OK) {
        fprintf(stderr, "error: %s\n", weft_error_message());
        return 1;
    }
    if (mpi->facts.size != size) {
        fprintf(stderr, "error: mpirun started %d ranks, and --ranks says %d\n", mpi->facts.size, (int)size);
        return 2;
    }
    int file = mpi->facts.rank == 0 ? memfd_create("weft-bench", MFD_CLOEXEC) : -1;
    if (file >= 0) snprintf(all.path, sizeof all.path, "/proc/%ld/fd/%d", (long)getpid(), file);
    weft_status status = invite(mpi, &all);
    if (mpi->facts.rank != 0) file = open(all.path, O_RDWR | O_CLOEXEC);
    if (status != WEFT_OK || file < 0 || ftruncate(file, sizeof(bench_shared)) != 0) {
        fprintf(stderr, "error: rank %d shares no memory with rank 0 (the ranks of a bench are on one host): %s\n", mpi->facts.rank,
                status != WEFT_OK ? weft_error_message() : all.path);
        return 1;
    }
    bench_shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (shared == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    bench_rank rank = {mpi->facts.rank, size, "mpi", NULL, shared, argument};
    bench_meet(&rank); /* everyone has opened it */
    close(file);
    int outcome = run(&rank, body);
    munmap(shared, sizeof *shared);
    wefti_mpi_leave(true);
    return outcome;
}

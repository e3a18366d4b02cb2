/* The ranks of the MPI wire's tests: started by mpirun, which run.sh does.
 *
 *   mpi_ranks WHAT
 *
 * conform      the wires' conformance suite, but for the death of a rank
 * dead         that one alone: MPI is not what it was afterwards
 * collectives  every kind, dtype and operation, by our algorithms
 * own          the same by MPI's own collectives; own_… (own.c) what else is to be said of them
 * large        one message of more bytes than an int counts
 * errors       MPI that refuses sends: each becomes a status with rank and cause
 * over         an MPI that was finalised before its time
 * shrink       a world with a fault, which cannot go on without those who are lost
 *
 * WEFT_TEST_SHARED names a file of zero bytes that all ranks map; what they share is there. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "collective/cases.h"
#include "mpi/ranks/own.h"
#include "transport/transport.h"
#include "transport/wire_mpi.h"

static const wire_setup mpi = {.name = "mpi", .mode = AS_PROCESSES, .open = wefti_wire_mpi_open};

#define TAG(n) (WEFTI_TAG_TEST | (uint64_t)(n))

/* --- collectives --- */

static void collectives(rank_world *world) {
    static const wefti_collective_kind kinds[] = {WEFTI_ALLREDUCE, WEFTI_REDUCE_SCATTER, WEFTI_ALLGATHER, WEFTI_BROADCAST, WEFTI_BARRIER};
    static const size_t                counts[] = {0, 1, 7, 1000, 20011, 300007};
    arenas                             memory;
    uint32_t                           seed = 1;
    arenas_open(world, &memory, (size_t)24 << 20);
    wefti_group *group = group_of_all(world, &(wefti_group_options){.id = 1});
    for (size_t k = 0; k < WEFTI_COUNT(kinds); k++)
        for (size_t c = 0; c < WEFTI_COUNT(counts); c++)
            for (weft_dtype dtype = 0; dtype < WEFT_DTYPE_COUNT; dtype++)
                for (wefti_reduce_op op = 0; op < WEFTI_REDUCE_OP_COUNT; op++) {
                    bool reduces = kinds[k] == WEFTI_ALLREDUCE || kinds[k] == WEFTI_REDUCE_SCATTER;
                    if ((!reduces && op != 0) || (dtype == WEFT_BOOL && op == WEFTI_REDUCE_AVG)) continue;
                    if (counts[c] > 1000 && (dtype % 3 || op % 2)) continue; /* the long ones less often */
                    call_case what = {.kind = kinds[k], .dtype = dtype, .op = op, .count = counts[c], .seed = seed++,
                                      .root = (int32_t)(seed % (uint32_t)world->size), .in_place = seed % 2,
                                      .where = (placement)(seed % PLACEMENTS)};
                    call_run(world, group, &memory, what);
                }
    CLOSE(group);
    world_barrier(world);
    arenas_close(world, &memory);
}

/* --- more bytes than an int counts --- */

static void large(rank_world *world) {
    const size_t bytes = ((size_t)2 << 30) + (5 << 20) + 3;
    if (world->rank > 1) return;
    uint8_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED, "no memory for the test");
    if (world->rank == 0) {
        for (size_t at = 0; at < bytes; at += 4096) memory[at] = (uint8_t)(at >> 12 ^ at >> 20);
        memory[bytes - 1] = 77;
        world_send(world, 1, TAG(1), memory, bytes);
    } else {
        world_recv(world, 0, TAG(1), memory, bytes);
        for (size_t at = 0; at < bytes; at += 4096) CHECK(memory[at] == (uint8_t)(at >> 12 ^ at >> 20), "byte %zu", at);
        CHECK(memory[bytes - 1] == 77, "the last byte");
    }
    munmap(memory, bytes);
}

/* --- an MPI that fails --- */

static wefti_mpi     failing;
static wefti_mpi_api failing_api;
static const wefti_mpi_api *real_api;
static int sends_left = -1; /* until MPI refuses one; -1: it does not */

static int isend_or_fail(const void *buffer, size_t bytes, int target, int tag, wefti_mpi_request *request_out) {
    if (sends_left > 0) sends_left--;
    return sends_left == 0 ? 16 /* an error of every MPI's */ : real_api->isend(buffer, bytes, target, tag, request_out);
}

static weft_status open_failing(const wefti_wire_options *options, wefti_wire **wire_out) {
    const wefti_mpi *real = NULL;
    WEFTI_TRY(wefti_mpi_start(&real));
    failing = *real; /* the wire leaves it when it closes */
    real_api = real->api;
    failing_api = *real_api;
    failing_api.isend = isend_or_fail;
    failing.api = &failing_api;
    return wefti_mpiw_open_with(&failing, options, wire_out);
}

/* Rank 1's send number `left` from here on is refused, in the middle of small and large messages both ways. */
static void refuse_a_send(rank_world *world, int left) {
    enum { COUNT = 12, BYTES = 100000 };
    static uint8_t       buffers[2 * COUNT][BYTES];
    static wefti_wire_op ops[2 * COUNT];
    int32_t              peer = 1 - world->rank;
    int                  posted = 0;
    if (world->rank > 1) return;
    world_barrier(world);
    if (world->rank == 1) sends_left = left;
    for (int i = 0; i < 2 * COUNT; i++) {
        size_t bytes = i % 3 == 0 ? BYTES : 100;
        ops[i] = i % 2 == 0 ? wefti_wire_send(peer, TAG(i / 2), buffers[i], bytes) : wefti_wire_recv(peer, TAG(i / 2), buffers[i], BYTES);
        ops[i].flags = WEFTI_WIRE_SILENT;
        weft_status status = wefti_wire_post(world->wire, &ops[i]);
        CHECK(status == WEFT_OK || (world->rank == 1 && status == WEFT_E_PEER), "post: %s", weft_error_message());
        if (status != WEFT_OK) break;
        posted++;
    }
    uint64_t since = world_now();
    if (world->rank == 1) {
        while (world->wire->ops->link(world->wire, 0) == WEFTI_LINK_UP) world_poll(world, since);
        const char *cause = world->wire->ops->cause(world->wire, 0);
        CHECK(cause && strstr(cause, "MPI failed in a send: "), "the cause is %s", cause ? cause : "none");
        for (int i = 0; i < posted; i++)
            CHECK(ops[i].done && (ops[i].status == WEFT_OK || (ops[i].status == WEFT_E_PEER && ops[i].done_peer == 0)),
                  "operation %d: done %d, %s", i, ops[i].done, weft_status_name(ops[i].status));
        wefti_wire_op late = wefti_wire_send(0, TAG(99), buffers[0], 8);
        CHECK(wefti_wire_post(world->wire, &late) == WEFT_E_PEER && strstr(weft_error_message(), "MPI failed"), "%s", weft_error_message());
    }
    atomic_fetch_add(&world->shared->finished, 1);
    while (atomic_load(&world->shared->finished) < 2) world_poll(world, since);
}
static void refuses_the_first(rank_world *world) { refuse_a_send(world, 1); }
static void refuses_a_later_one(rank_world *world) { refuse_a_send(world, 7); }

/* --- MPI that is over --- */

/* As a program that finalises MPI before it releases its world: every call says so. */
static void use_after_end(rank_world *world) {
    const wefti_mpi *mpi_here = NULL;
    wefti_wire      *wire = NULL;
    CHECK_OK(wefti_mpi_start(&mpi_here));
    CHECK(mpi_here->facts.size == world->size && mpi_here->facts.started_here, "%d processes", mpi_here->facts.size);
    world->wire->ops->close(world->wire, WEFTI_SECOND_NS);
    world->gone = true;
    world->wire = NULL;
    world_barrier(world);
    wefti_mpi_leave(true);
    CHECK(mpi_here->api->stop() == 0, "it does not stop");
    weft_status status = wefti_wire_mpi_open(&(wefti_wire_options){.rank = world->rank, .size = world->size}, &wire);
    CHECK(status == WEFT_E_STATE && strstr(weft_error_message(), "has finalised MPI"), "%s: %s", weft_status_name(status),
          weft_error_message());
}

/* --- a fault --- */

static void refuse_to_shrink(rank_world *world) {
    wefti_transport_options options = {.wire = "mpi", .reducer = wefti_reducer_host()};
    wefti_transport        *lost = NULL, *next = NULL;
    CHECK_OK(wefti_transport_open(&options, &lost));
    if (world->rank == 1) wefti_transport_fail(lost, WEFT_E_IO, "it cannot read its data");
    uint64_t since = world_now();
    while (wefti_fault_status(lost->fault) == WEFT_OK) world_poll(world, since);
    weft_status status = wefti_transport_shrink(lost, &options, &(wefti_shrink_terms){.least = 1, .patience_ns = WEFTI_SECOND_NS}, &next);
    CHECK(status == WEFT_E_UNSUPPORTED && !next && strstr(weft_error_message(), "MPI does not survive"), "%s: %s", weft_status_name(status),
          weft_error_message());
    CHECK(wefti_fault_status(lost->fault) == WEFT_E_IO, "the verdict is %s", weft_error_message()); /* and stays */
    wefti_transport_close(lost);
}

/* --- the program --- */

static shared_state *map_shared(void) {
    const char *path = getenv("WEFT_TEST_SHARED");
    int         file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0 || ftruncate(file, sizeof(shared_state)) != 0) return NULL;
    shared_state *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (shared == MAP_FAILED) return NULL;
    shared->launched = true;
    return shared;
}

static const wire_case_list *const lists[] = {&message_cases, &operation_cases, &region_cases, &end_cases};

static bool is_of_death(const wire_case *one) { return strcmp(one->name, "tells_of_a_dead_rank") == 0; }

/* Runs the cases that are of a rank's death, or the others. */
static void run_cases(int32_t rank, int32_t size, shared_state *shared, bool of_death) {
    const char *only = getenv("WEFT_TEST_CASE");
    for (size_t l = 0; l < WEFTI_COUNT(lists); l++)
        for (size_t i = 0; i < lists[l]->count; i++) {
            const wire_case *one = &lists[l]->cases[i];
            if (is_of_death(one) != of_death || (only && strcmp(only, one->name) != 0)) continue;
            if (rank == 0 && getenv("WEFT_TEST_LOUD")) fprintf(stderr, "%s\n", one->name);
            conformance_join(&mpi, rank, size, shared, one->run);
        }
}

int main(int argc, char **argv) {
    wefti_place   place;
    const char   *what = argc == 2 ? argv[1] : "";
    shared_state *shared = map_shared();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(120); /* a last resort */
    if (!shared || wefti_place_read(&place) != WEFT_OK) {
        fprintf(stderr, "FAILED: %s\n", shared ? weft_error_message() : "WEFT_TEST_SHARED names no file");
        return 2;
    }
    static const wire_setup fails = {.name = "mpi that fails", .mode = AS_PROCESSES, .open = open_failing};
    if (strcmp(what, "conform") == 0) {
        run_cases(place.rank, place.size, shared, false);
    } else if (strcmp(what, "dead") == 0) {
        run_cases(place.rank, place.size, shared, true);
    } else if (strcmp(what, "collectives") == 0) {
        conformance_join(&mpi, place.rank, place.size, shared, collectives);
    } else if (strcmp(what, "shrink") == 0) {
        conformance_join(&mpi, place.rank, place.size, shared, refuse_to_shrink);
    } else if (own_find(what)) {
        conformance_join(&mpi, place.rank, place.size, shared, own_find(what));
    } else if (strcmp(what, "large") == 0) {
        conformance_join(&mpi, place.rank, place.size, shared, large);
    } else if (strcmp(what, "errors") == 0) {
        conformance_join(&fails, place.rank, place.size, shared, refuses_the_first);
        sends_left = -1;
        conformance_join(&fails, place.rank, place.size, shared, refuses_a_later_one);
    } else if (strcmp(what, "over") == 0) {
        conformance_join(&mpi, place.rank, place.size, shared, use_after_end);
    } else {
        return 2;
    }
    /* In a file: a launcher that has lost a rank may hand no words on. */
    char path[4096];
    snprintf(path, sizeof path, "%s.%d", getenv("WEFT_TEST_SHARED"), (int)place.rank);
    int through = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (through < 0) return 1;
    close(through);
    /* After a case with a fault nobody finalises MPI, and the first to end may take the others along. */
    atomic_fetch_add(&shared->finished, 1 << 8);
    for (int i = 0; i < 500 && atomic_load(&shared->finished) >> 8 < place.size && !strstr(what, "dead"); i++) usleep(10000);
    return 0;
}

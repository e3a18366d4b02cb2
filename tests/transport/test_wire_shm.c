/* The shared-memory wire through the conformance suite, as processes and as threads, and what is its own. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "conformance.h"
#include "refuse.h"

static const wire_setup processes = {.name = "shm", .mode = AS_PROCESSES, .open = wefti_wire_shm_open};
static const wire_setup threads = {.name = "shm as threads", .mode = AS_THREADS, .open = wefti_wire_shm_open};
static const wire_setup small_rings = {
    .name = "shm with small rings", .mode = AS_PROCESSES, .open = wefti_wire_shm_open, .ring_bytes = 1};

/* Large messages of the program's own memory are then streamed. */
static weft_status open_refused(const wefti_wire_options *options, wefti_wire **wire_out) {
    if (!refuse_reading()) return wefti_fail(WEFT_E_STATE, "the system cannot be made to refuse");
    return wefti_wire_shm_open(options, wire_out);
}
static const wire_setup refused = {.name = "shm, not reading others' memory", .mode = AS_PROCESSES, .open = open_refused};

Test(wire_shm, conforms_with_2_processes_that_cannot_read_each_other) { conformance_run(&refused, 2); }
Test(wire_shm, conforms_with_2_processes) { conformance_run(&processes, 2); }
Test(wire_shm, conforms_with_3_processes) { conformance_run(&processes, 3); }
Test(wire_shm, conforms_with_4_processes) { conformance_run(&processes, 4); }
Test(wire_shm, conforms_with_3_threads) { conformance_run(&threads, 3); }
Test(wire_shm, conforms_with_small_rings) { conformance_run(&small_rings, 2); }

/* --- reading others' memory --- */

static void reads_until_it_is_refused(rank_world *world) {
    int32_t  peer = 1 - world->rank;
    uint32_t mine[3] = {1, (uint32_t)world->rank + 7, 3}, got = 0;
    uint64_t theirs = 0, own = (uint64_t)(uintptr_t)&mine[1];
    world_send(world, peer, WEFTI_TAG_TEST, &own, sizeof own);
    world_recv(world, peer, WEFTI_TAG_TEST, &theirs, sizeof theirs);
    weft_status (*peer_read)(wefti_wire *, int32_t, void *, uint64_t, size_t) = world->wire->ops->peer_read;
    if (peer_read(world->wire, peer, NULL, 0, 0) == WEFT_OK) { /* what the system lets ranks do is its own */
        CHECK_OK(peer_read(world->wire, peer, &got, theirs, sizeof got));
        CHECK(got == (uint32_t)peer + 7, "%u was read", (unsigned)got);
        CHECK(peer_read(world->wire, peer, &got, 4096 + 8, sizeof got) == WEFT_E_UNSUPPORTED, "nothing is there to be read");
    }
    CHECK(peer_read(world->wire, peer, &got, theirs, sizeof got) == WEFT_E_UNSUPPORTED, "who was refused once does not try again");
    CHECK(wefti_wire_reads_peers(world->wire, NULL, 2) == WEFT_E_UNSUPPORTED, "this is no secret");
    world_barrier(world);
}
Test(wire_shm, reads_the_memory_of_peers) { conformance_run_one(&processes, 2, "reads", reads_until_it_is_refused); }

/* --- memory that the system refuses --- */

static void expect_words(const char *const *words) {
    for (; *words; words++) cr_expect(strstr(weft_error_message(), *words), "'%s' is not in: %s", *words, weft_error_message());
}
static weft_status open_under(int resource, rlim_t most) {
    struct rlimit before, limit;
    wefti_wire   *wire = NULL;
    cr_assert_eq(getrlimit(resource, &before), 0);
    limit = (struct rlimit){most, before.rlim_max};
    cr_assert_eq(setrlimit(resource, &limit), 0);
    weft_status status = wefti_wire_shm_open(&(wefti_wire_options){.size = 2}, &wire);
    cr_assert_eq(setrlimit(resource, &before), 0);
    if (status == WEFT_OK) wire->ops->close(wire, 0);
    return status;
}

/* A program under such a limit would be ended by a signal. */
Test(wire_shm, names_the_limit_on_the_size_of_files) {
    cr_expect_eq(open_under(RLIMIT_FSIZE, 4096), WEFT_E_IO);
    expect_words((const char *const[]){"bytes of shared memory for rings", "/dev/shm", "RLIMIT_FSIZE", "is 4096 bytes", "ulimit -f", NULL});
}

Test(wire_shm, names_the_limit_on_open_files) {
    int next = dup(STDIN_FILENO);
    cr_assert_geq(next, 0);
    close(next);
    cr_expect_eq(open_under(RLIMIT_NOFILE, (rlim_t)next), WEFT_E_IO);
    expect_words((const char *const[]){"ulimit -n", "shm", NULL});
}

Test(wire_shm, names_size_and_place_of_memory_that_is_refused) {
    wefti_wire        *wire = NULL;
    wefti_wire_region *region = NULL;
    cr_assert_eq(wefti_wire_shm_open(&(wefti_wire_options){.size = 2}, &wire), WEFT_OK, "%s", weft_error_message());
    cr_expect_eq(wire->ops->region_create(wire, (size_t)1 << 48, &region), WEFT_E_NO_MEMORY, "%s", weft_error_message());
    expect_words((const char *const[]){"281474976710656 bytes", "an exported region", "memfd", "not against /dev/shm", "fewer ranks", NULL});
    cr_expect_null(region);
    wire->ops->close(wire, 0);
    weft_memory_counts counts;
    weft_memory_read(&counts);
    cr_expect_eq(counts.held_bytes, 0);
}

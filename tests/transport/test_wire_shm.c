/* The shared-memory wire through the conformance suite, as processes and as threads, and what is its own. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "conformance.h"

static const wire_setup processes = {.name = "shm", .mode = AS_PROCESSES, .open = wefti_wire_shm_open};
static const wire_setup threads = {.name = "shm as threads", .mode = AS_THREADS, .open = wefti_wire_shm_open};
static const wire_setup small_rings = {
    .name = "shm with small rings", .mode = AS_PROCESSES, .open = wefti_wire_shm_open, .ring_bytes = 1};

Test(wire_shm, conforms_with_2_processes) { conformance_run(&processes, 2); }
Test(wire_shm, conforms_with_3_processes) { conformance_run(&processes, 3); }
Test(wire_shm, conforms_with_4_processes) { conformance_run(&processes, 4); }
Test(wire_shm, conforms_with_3_threads) { conformance_run(&threads, 3); }
Test(wire_shm, conforms_with_small_rings) { conformance_run(&small_rings, 2); }

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

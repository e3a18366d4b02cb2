/* The shared-memory wire through the conformance suite, as processes and as threads, and what is its own. */
#include <criterion/criterion.h>
#include <string.h>

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

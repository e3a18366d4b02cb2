/* The TCP wire through the conformance suite, as processes and as threads, and what is its own. */
#include <criterion/criterion.h>
#include <string.h>

#include "conformance.h"

static const wire_setup processes = {.name = "tcp", .mode = AS_PROCESSES, .open = wefti_wire_tcp_open};
static const wire_setup threads = {.name = "tcp as threads", .mode = AS_THREADS, .open = wefti_wire_tcp_open};

Test(wire_tcp, conforms_with_2_processes) { conformance_run(&processes, 2); }
Test(wire_tcp, conforms_with_3_processes) { conformance_run(&processes, 3); }
Test(wire_tcp, conforms_with_4_processes) { conformance_run(&processes, 4); }
Test(wire_tcp, conforms_with_3_threads) { conformance_run(&threads, 3); }

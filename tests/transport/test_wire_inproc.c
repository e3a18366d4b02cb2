/* The in-process wire through the conformance suite, and what is its own. */
#include <criterion/criterion.h>

#include "conformance.h"

static const wire_setup inproc = {.name = "inproc", .mode = AS_THREADS, .open = wefti_wire_inproc_open};

Test(wire_inproc, conforms_with_2_ranks) { conformance_run(&inproc, 2); }
Test(wire_inproc, conforms_with_3_ranks) { conformance_run(&inproc, 3); }
Test(wire_inproc, conforms_with_4_ranks) { conformance_run(&inproc, 4); }

Test(wire_inproc, refuses_bad_options) {
    wefti_wire       *wire = NULL;
    wefti_inproc_hub *hub = NULL;
    cr_assert_eq(wefti_inproc_hub_create(0, &hub), WEFT_E_INVALID);
    cr_assert_eq(wefti_inproc_hub_create(2, &hub), WEFT_OK);
    wefti_wire_options options = {.size = 2};
    cr_assert_eq(wefti_wire_inproc_open(&options, &wire), WEFT_E_INVALID);
    options.shared = hub;
    options.rank = 2;
    cr_assert_eq(wefti_wire_inproc_open(&options, &wire), WEFT_E_INVALID);
    options.rank = -1;
    cr_assert_eq(wefti_wire_inproc_open(&options, &wire), WEFT_E_INVALID);
    options.rank = 1;
    cr_assert_eq(wefti_wire_inproc_open(&options, &wire), WEFT_OK);
    wefti_wire *second = NULL;
    cr_assert_eq(wefti_wire_inproc_open(&options, &second), WEFT_E_EXISTS);
    wefti_wire_op op = wefti_wire_send(0, 1, NULL, 0);
    cr_assert_eq(wefti_wire_post(wire, &op), WEFT_E_STATE);
    wire->ops->close(wire, 0);
    wefti_inproc_hub_release(hub);
    wefti_inproc_hub_release(NULL);
    weft_memory_counts counts;
    weft_memory_read(&counts);
    cr_assert_eq(counts.held_bytes, 0);
}

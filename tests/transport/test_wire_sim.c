/* The simulated wire through the conformance suite: in order and at ease, and with messages that are held up, overtake each other and
 * get lost. The same seed gives the same history; and what is planned befalls ranks. */
#include <criterion/criterion.h>

#include "conformance.h"

static const wefti_sim_options calm = {.seed = 1}, stormy = {.seed = 2, .jitter_ns = 50000, .lost = 20000, .again_ns = 3 * WEFTI_MILLISECOND_NS};
static const wire_setup at_ease = {.name = "sim", .mode = AS_FIBERS, .open = wefti_wire_sim_open, .simulated = &calm},
                        in_a_storm = {.name = "sim in a storm", .mode = AS_FIBERS, .open = wefti_wire_sim_open, .simulated = &stormy};

Test(wire_sim, conforms_with_2_ranks) { conformance_run(&at_ease, 2); }
Test(wire_sim, conforms_with_3_ranks) { conformance_run(&at_ease, 3); }
Test(wire_sim, conforms_with_5_ranks) { conformance_run(&at_ease, 5); }
Test(wire_sim, conforms_in_a_storm_with_2_ranks) { conformance_run(&in_a_storm, 2); }
Test(wire_sim, conforms_in_a_storm_with_4_ranks) { conformance_run(&in_a_storm, 4); }

Test(wire_sim, refuses_bad_options) {
    wefti_sim  *sim = NULL;
    wefti_wire *wire = NULL;
    cr_assert_eq(wefti_sim_create(&(wefti_sim_options){.size = 0}, &sim), WEFT_E_INVALID);
    cr_assert_eq(wefti_sim_create(&(wefti_sim_options){.size = 2}, &sim), WEFT_OK);
    wefti_wire_options options = {.size = 2};
    cr_assert_eq(wefti_wire_sim_open(&options, &wire), WEFT_E_INVALID);
    options.shared = sim;
    cr_assert_eq(wefti_wire_sim_open(&options, &wire), WEFT_E_INVALID, "a host that is not of the simulator");
    options.host = wefti_sim_host(sim, 1);
    options.rank = 2;
    cr_assert_eq(wefti_wire_sim_open(&options, &wire), WEFT_E_INVALID);
    cr_assert_eq(wefti_sim_plan(sim, &(wefti_sim_fault){.rank = 2}), WEFT_E_INVALID);
    wefti_sim_release(sim);
    wefti_sim_release(NULL);
    weft_memory_counts counts;
    weft_memory_read(&counts);
    cr_assert_eq(counts.held_bytes, 0);
}

/* --- time --- */

typedef struct clock_program {
    wefti_sim *sim;
    int32_t    rank;
    uint64_t   woke_ns;
} clock_program;

static void sleep_for_a_while(void *context) {
    clock_program    *self = context;
    const wefti_host *host = wefti_sim_host(self->sim, self->rank);
    host->sleep(host->context, (uint64_t)(self->rank + 1) * WEFTI_SECOND_NS);
    self->woke_ns = wefti_host_now(host);
}

Test(sim, time_is_virtual_and_stops_hold_it_up) {
    wefti_sim    *sim = NULL;
    clock_program programs[3];
    cr_assert_eq(wefti_sim_create(&(wefti_sim_options){.size = 3}, &sim), WEFT_OK);
    cr_assert_eq(wefti_sim_plan(sim, &(wefti_sim_fault){WEFTI_SIM_STOP, .rank = 1, .at_ns = WEFTI_SECOND_NS, .for_ns = 9 * WEFTI_SECOND_NS}), WEFT_OK);
    cr_assert_eq(wefti_sim_plan(sim, &(wefti_sim_fault){WEFTI_SIM_KILL, .rank = 2, .at_ns = WEFTI_SECOND_NS}), WEFT_OK);
    for (int32_t rank = 0; rank < 3; rank++) {
        programs[rank] = (clock_program){sim, rank, 0};
        cr_assert_eq(wefti_sim_start(sim, rank, sleep_for_a_while, &programs[rank]), WEFT_OK);
    }
    cr_assert_eq(wefti_sim_run(sim), WEFT_OK);
    cr_expect(programs[0].woke_ns >= WEFTI_SECOND_NS && programs[0].woke_ns < WEFTI_SECOND_NS + 1000, "%llu", (unsigned long long)programs[0].woke_ns);
    cr_expect(programs[1].woke_ns >= 10 * WEFTI_SECOND_NS && programs[1].woke_ns < 10 * WEFTI_SECOND_NS + 1000, "%llu",
              (unsigned long long)programs[1].woke_ns);
    cr_expect_eq(programs[2].woke_ns, 0, "the dead do not wake");
    cr_expect(wefti_sim_is_gone(sim, 2) && !wefti_sim_is_gone(sim, 1));
    wefti_sim_release(sim);
}

static void wait_for_ever(void *context) {
    const wefti_host *host = wefti_sim_host(((clock_program *)context)->sim, 0);
    for (;;) host->sleep(host->context, WEFTI_SECOND_NS);
}

Test(sim, names_who_hangs) {
    wefti_sim    *sim = NULL;
    clock_program program;
    cr_assert_eq(wefti_sim_create(&(wefti_sim_options){.seed = 77, .size = 2, .limit_ns = 5 * WEFTI_SECOND_NS}, &sim), WEFT_OK);
    program = (clock_program){sim, 0, 0};
    cr_assert_eq(wefti_sim_start(sim, 0, wait_for_ever, &program), WEFT_OK);
    cr_assert_eq(wefti_sim_run(sim), WEFT_E_TIMEOUT);
    cr_expect(strstr(weft_error_message(), "seed 77") && strstr(weft_error_message(), "1 still run: 0"), "%s", weft_error_message());
    wefti_sim_release(sim);
}

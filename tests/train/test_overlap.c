/* Communication hides behind the backward pass: over a link that is slowed down so far that sending the gradients takes a good part of a
 * step, a step takes at most 1.1 times the longer of computing and sending, and the first gradients leave while most of the backward pass
 * has yet to be computed. What can be hidden at all is in ARCHITECTURE.md, "Planning and running": with computing 1 and sending c in b
 * messages no step takes less than max(1/3 + c, 1 + c/b), so the bound is tried for c of 0.4, 0.6 and 6, and that formula for 1.3.
 *
 * Times on shared machines jump, so the quickest step of several tries counts, ranks go first where the system lets them, and on a machine
 * that others keep busy there are more tries. Sent in one message at the end, the gradients make it 1.25 and 1.4 times the bound for c of 0.4
 * and 0.6, however often one tries: the link does not hurry. */
#include <criterion/criterion.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "train/run.h"

typedef struct figures { double step_ns, between, bytes; } figures;

static double figure(const char *text, const char *name) {
    const char *at = strstr(text, name);
    cr_assert_not_null(at, "'%s' is missing in: %s", name, text);
    return atof(at + strlen(name));
}

static figures measure(const char *strategy, const char *gigabits) {
    char        arguments[64];
    const char *output = temporary_path("output");
    if (gigabits) setenv("WEFT_WIRE_GBPS", gigabits, 1);
    else unsetenv("WEFT_WIRE_GBPS");
    setenv("WEFT_WIRE_DELAY_US", "5", 1); /* the same path through the wire with and without a bound on the rate */
    snprintf(arguments, sizeof arguments, "60 %s", strategy);
    int   status = run_ranks(2, "shm", "train_program_overlap", arguments, output);
    char *text = read_text(output);
    cr_assert_eq(status, 0, "%s", text);
    figures f = {figure(text, "least "), figure(text, "between "), figure(text, "bytes ")};
    free(text);
    return f;
}

enum { PATIENCE_S = 100 };

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static figures quicker(figures a, figures b) { return a.step_ns < b.step_ns ? a : b; }

/* Ranks go before all others on their cores, where the system lets them (root): nothing is learnt of a link from a rank that does not run. */
static void go_first(void) {
    const struct sched_param parameters = {.sched_priority = 1};
    (void)!sched_setscheduler(0, SCHED_RR, &parameters);
}

/* Sending takes `share` times as long as computing; a step may then take 1.1 times `bound` times as long. */
static void hides(const char *strategy, double share, double bound) {
    if (sysconf(_SC_NPROCESSORS_ONLN) < 2) cr_skip_test("two ranks need two cores to compute at the same time");
    go_first();
    double  best = 1e9, end = seconds() + PATIENCE_S;
    figures quick = measure(strategy, NULL);
    for (int i = 0; i < 2; i++) quick = quicker(quick, measure(strategy, NULL));
    for (int i = 0; best > 1.1 && (i < 15 || seconds() < end); i++) {
        char gigabits[32];
        snprintf(gigabits, sizeof gigabits, "%.4f", quick.bytes * 8 / (share * quick.step_ns)); /* two ranks send each byte once */
        figures slow = measure(strategy, gigabits);
        cr_assert(slow.between >= 4, "only %g segments of the backward pass were left when the first gradients went", slow.between);
        quick = quicker(quick, measure(strategy, NULL)); /* one that was slowed down itself must not excuse the other */
        double ratio = slow.step_ns / quick.step_ns / bound;
        if (ratio < best) best = ratio;
    }
    cr_assert(best <= 1.1, "a step took %.2f times as long as it should where sending takes %.1f times as long as computing", best, share);
}

/* 1.1 times the longer of the two, where that can be: all that is sent leaves before the backward pass ends, but for the last message … */
Test(overlap, hides_communication_behind_the_backward_pass) { hides("zero=0", 0.4, 1); }
Test(overlap, hides_most_of_what_the_backward_pass_could_hide) { hides("zero=0", 0.6, 1); }
/* … or sending is what takes the time, and the forward pass, before which there is nothing to send, is little beside it. */
Test(overlap, adds_little_to_a_very_slow_link) { hides("zero=0", 6, 6); }
/* In between, no gradient is there before the forward pass, a third of the computing, has ended; from then on the link is never idle. */
Test(overlap, keeps_a_slow_link_busy) { hides("zero=0", 1.3, 1.0 / 3 + 1.3); }
/* Gradients that are scattered leave as early, and parameters are gathered behind the layers before theirs, forth and back. Twice as many
 * collectives as by sums want the cores for themselves, where all computes on them: a tenth is allowed for it. Gathered only where they are
 * wanted, parameters make it 1.5 times as long. */
Test(overlap, hides_scattered_gradients_and_gathered_parameters) {
    hides("zero=2", 0.4, 1.1);
    hides("zero=3", 0.4, 1.1);
}

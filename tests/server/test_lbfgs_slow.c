/* A worker that is four times slower than the others: units go to whoever is idle, and its last ones are computed by others too. What computing takes is slept, so
 * a machine with less cores than ranks does as well. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "serving.h"

enum { UNITS = 42, PARAMETERS = 30, ITERATIONS = 7, COMPUTING = 3 };
static const double unit_ms = 10, slowness = 4;

typedef struct outcome {
    uint64_t          begun_ns;
    double            seconds[ITERATIONS]; /* of an evaluation, in iterations that had one */
    int               count;
    int64_t           evaluations;
    int               computed[RANKS_MOST];
    weft_lbfgs_report report;
} outcome;
static outcome *out;
static int32_t  my_rank;

static weft_status unit_of(void *context, int64_t unit, const double *point, double *loss_out, double *gradient) {
    double          ms = my_rank == COMPUTING ? unit_ms * slowness : unit_ms;
    struct timespec pause = {0, (long)(ms * 1e6)};
    (void)context;
    nanosleep(&pause, NULL);
    for (int i = 0; i < PARAMETERS; i++) {
        double error = point[i] - (double)i / (double)(unit + 1);
        *loss_out += 0.5 * (1 + i % 7) * error * error;
        gradient[i] += (1 + i % 7) * error;
    }
    out->computed[my_rank]++;
    return WEFT_OK;
}

static weft_status see(void *context, const weft_lbfgs_report *report) {
    (void)context;
    uint64_t now_ns = ranks_now();
    if (report->iteration > 0) out->seconds[out->count++] = (double)(now_ns - out->begun_ns) * 1e-9 / (double)(report->evaluations - out->evaluations);
    out->evaluations = report->evaluations;
    out->begun_ns = now_ns;
    return WEFT_OK;
}

static weft_status minimise(serving *self) {
    weft_lbfgs_problem problem = {.parameters = PARAMETERS, .units = UNITS, .evaluate = unit_of};
    weft_lbfgs_options options = {.iterations = ITERATIONS, .gradient = -1, .dedicated = true, .progress = see};
    my_rank = self->rank;
    return weft_lbfgs_minimise(self->server, &problem, &options, NULL, self->rank == 0 ? &out->report : NULL);
}

static int by_length(const void *a, const void *b) { return *(const double *)a < *(const double *)b ? -1 : 1; }

Test(lbfgs_slow, four_times_slower_worker_makes_an_iteration_at_most_a_quarter_longer) {
    out = mmap(NULL, sizeof *out, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    double ideal = 1e-3 * unit_ms * UNITS / (COMPUTING - 1 + 1 / slowness), ratio = 0;
    for (int tries = 0; tries < 4; tries++) { /* on a busy machine sleeps are longer than they should be */
        memset(out, 0, sizeof *out);
        serve_case("shm", COMPUTING + 1, &(weft_server_options){.servers = 1}, minimise);
        qsort(out->seconds, (size_t)out->count, sizeof *out->seconds, by_length);
        ratio = out->seconds[out->count / 2] / ideal;
        if (ratio <= 1.25) break;
    }
    cr_expect_leq(ratio, 1.25, "an evaluation takes %.3g s; ideally %.3g s", ratio * ideal, ideal);
    cr_expect_geq(out->count, 3);
    cr_expect_geq(out->report.repeated, 1, "units of the slow worker should have been given twice");
    cr_expect_geq(out->computed[COMPUTING], 3, "the slow worker should have computed some: %d", out->computed[COMPUTING]);
    cr_log_info("%.3f of ideal (%d evaluations, %d units given, %d of them again)", ratio, (int)out->report.evaluations, (int)out->report.given,
                (int)out->report.repeated);
    munmap(out, sizeof *out);
}

/* L-BFGS on a parameter server against a serial one that is written here on plain arrays: iterates, bits, what the coordinator moves, a slow worker, dead ones,
 * and what goes wrong. The problem is a logistic regression whose columns differ in scale by three orders of magnitude. */
#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "serving.h"

enum { COLUMNS = 40, ROWS = 240, MOST_UNITS = 64, ITERATES = 20, MOST_PARAMETERS = 400 };
static const double weight = 1e-3;

/* What a run does; set before the ranks are forked. */
typedef struct setting {
    int64_t     parameters, units;
    bool        dedicated;
    int64_t     iterations;
    double      pause_ms[RANKS_MOST];
    int         kill_rank, kill_unit; /* at its so-manieth unit, from 1 */
    int         fail_rank;
    int         victim;               /* a rank that rank 1 kills at its fifth unit; 0: none */
    int64_t     timeout_ms;
    bool        nan, stops, twice, once;
    weft_status wanted;
    const char *message;
} setting;
static setting how;

/* What came of it, shared with the test. */
typedef struct outcome {
    double   iterates[ITERATES + 1][COLUMNS], point[MOST_PARAMETERS];
    int      count, computed[RANKS_MOST];
    uint64_t sent, received, bytes; /* of rank 0 */
    double   seconds[64];           /* from iterate to iterate */
    uint64_t last_ns;
    int64_t  evaluations[64];
    weft_lbfgs_report report[RANKS_MOST];
} outcome;
static outcome *out;

static void setup(void) {
    out = mmap(NULL, sizeof *out, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    how = (setting){.parameters = COLUMNS, .units = 24, .iterations = ITERATES, .kill_rank = -1, .fail_rank = -1};
}
static void teardown(void) { munmap(out, sizeof *out); }
TestSuite(lbfgs, .init = setup, .fini = teardown);

/* --- the problem --- */

static double noise(uint64_t number) {
    number = (number ^ number >> 31) * UINT64_C(0x7fb5d329728ea185);
    number = (number ^ number >> 27) * UINT64_C(0x81dadef4bc2dd44d);
    return (double)(int32_t)(number >> 32) * 0x1p-31;
}
static double x_at(int row, int column) { return noise((uint64_t)row * 1000003u + (uint64_t)column + 17) * pow(10, -3.0 * column / COLUMNS); }
static double y_at(int row) {
    double margin = 0.4 * noise((uint64_t)row + 70000001);
    for (int i = 0; i < COLUMNS; i++) margin += x_at(row, i) * 3 * noise((uint64_t)i + 999);
    return margin > 0 ? 1 : -1;
}

/* Rows from `first` to before `end`. */
static double add_rows(int first, int end, const double *point, double *gradient) {
    double loss = 0;
    for (int row = first; row < end; row++) {
        double margin = 0, y = y_at(row);
        for (int i = 0; i < COLUMNS; i++) margin += point[i] * x_at(row, i);
        loss += log1p(exp(-y * margin));
        for (int i = 0; i < COLUMNS; i++) gradient[i] -= y / (1 + exp(y * margin)) * x_at(row, i);
    }
    return loss;
}

/* --- L-BFGS on plain arrays --- */

typedef struct serial { double x[COLUMNS], g[COLUMNS], d[COLUMNS], xt[COLUMNS], gt[COLUMNS], f0, f, slope0, slope; } serial;

static double product(const double *a, const double *b) {
    double sum = 0;
    for (int i = 0; i < COLUMNS; i++) sum += a[i] * b[i];
    return sum;
}
static double value_at(const double *x, double *g) {
    memset(g, 0, COLUMNS * sizeof *g);
    double f = add_rows(0, ROWS, x, g);
    for (int i = 0; i < COLUMNS; i++) g[i] += weight * x[i];
    return f + 0.5 * weight * product(x, x);
}
static void try_at(serial *s, double t) {
    for (int i = 0; i < COLUMNS; i++) s->xt[i] = s->x[i] + t * s->d[i];
    s->f = value_at(s->xt, s->gt);
    s->slope = product(s->gt, s->d);
}
static double cubic(double at, double fa, double da, double bt, double fb, double db) {
    double one = da + db - 3 * (fa - fb) / (at - bt), square = one * one - da * db, low = fmin(at, bt), wide = fabs(at - bt);
    if (!(square >= 0)) return 0.5 * (at + bt);
    double two = bt > at ? sqrt(square) : -sqrt(square), t = bt - (bt - at) * ((db + two - one) / (db - da + 2 * two));
    return isfinite(t) ? fmin(fmax(t, low + 0.1 * wide), low + 0.9 * wide) : 0.5 * (at + bt);
}
/* Strong Wolfe conditions by a bracket: low has the lower value, and the minimum is towards high. */
static void search_line(serial *s, double t) {
    double low = 0, flow = s->f0, dlow = s->slope0, high = -1, fhigh = 0, dhigh = 0;
    for (int tries = 0; tries < 20; tries++) {
        try_at(s, t);
        bool above = s->f > s->f0 + 1e-4 * t * s->slope0 || (low > 0 && s->f >= flow) || (high >= 0 && s->f >= flow);
        if (!above && fabs(s->slope) <= -0.9 * s->slope0) return;
        if (above) {
            high = t, fhigh = s->f, dhigh = s->slope;
        } else {
            if (high < 0 ? s->slope >= 0 : s->slope * (high - low) >= 0) high = low, fhigh = flow, dhigh = dlow;
            low = t, flow = s->f, dlow = s->slope;
        }
        t = high < 0 ? 2 * t : cubic(low, flow, dlow, high, fhigh, dhigh);
    }
}
static void solve_serially(double iterates[ITERATES + 1][COLUMNS], int history) {
    static double S[ITERATES][COLUMNS], Y[ITERATES][COLUMNS];
    double        alpha[ITERATES];
    serial        s = {.f0 = 0};
    s.f0 = value_at(s.x, s.g);
    memcpy(iterates[0], s.x, sizeof s.x);
    for (int k = 0; k < ITERATES; k++) {
        int oldest = k > history ? k - history : 0;
        for (int i = 0; i < COLUMNS; i++) s.d[i] = -s.g[i];
        for (int j = k - 1; j >= oldest; j--) {
            alpha[j] = product(S[j], s.d) / product(S[j], Y[j]);
            for (int i = 0; i < COLUMNS; i++) s.d[i] -= alpha[j] * Y[j][i];
        }
        if (k) for (int i = 0; i < COLUMNS; i++) s.d[i] *= product(S[k - 1], Y[k - 1]) / product(Y[k - 1], Y[k - 1]);
        for (int j = oldest; j < k; j++) {
            double beta = product(Y[j], s.d) / product(S[j], Y[j]);
            for (int i = 0; i < COLUMNS; i++) s.d[i] += (alpha[j] - beta) * S[j][i];
        }
        s.slope0 = product(s.g, s.d);
        search_line(&s, k ? 1 : fmin(1, 1 / sqrt(product(s.g, s.g))));
        for (int i = 0; i < COLUMNS; i++) S[k][i] = s.xt[i] - s.x[i], Y[k][i] = s.gt[i] - s.g[i];
        memcpy(s.x, s.xt, sizeof s.x);
        memcpy(s.g, s.gt, sizeof s.g);
        s.f0 = s.f;
        memcpy(iterates[k + 1], s.x, sizeof s.x);
    }
}

/* --- a rank --- */

static int32_t my_rank;
static serving *me;

static void sleep_ms(double ms) {
    struct timespec pause = {(time_t)(ms / 1000), (long)(fmod(ms, 1000) * 1e6)};
    nanosleep(&pause, NULL);
}

static weft_status unit_of(void *context, int64_t unit, const double *point, double *loss_out, double *gradient) {
    if (context != &how) return WEFT_E_INTERNAL;
    if (my_rank == how.kill_rank && out->computed[my_rank] + 1 == how.kill_unit) raise(SIGKILL);
    if (how.victim && my_rank == 1 && out->computed[1] == 5) kill(me->all->children[how.victim], SIGKILL);
    sleep_ms(how.pause_ms[my_rank]);
    if (my_rank == how.fail_rank && out->computed[my_rank] == 3) return WEFT_E_IO;
    *loss_out = how.nan ? NAN : add_rows((int)(unit * ROWS / how.units), (int)((unit + 1) * ROWS / how.units), point, gradient);
    out->computed[my_rank]++;
    return WEFT_OK;
}

static weft_status see(void *context, const weft_lbfgs_report *report) {
    static double point[MOST_PARAMETERS];
    (void)context;
    uint64_t now_ns = ranks_now();
    if (report->iteration > 0 && report->iteration <= 64) out->seconds[report->iteration - 1] = (double)(now_ns - out->last_ns) * 1e-9;
    if (report->iteration > 0 && report->iteration <= 64) out->evaluations[report->iteration - 1] = report->evaluations;
    out->last_ns = now_ns;
    if (how.stops && report->iteration == 3) return WEFT_END;
    if (how.dedicated || report->iteration > ITERATES) return WEFT_OK;
    WEFTI_TRY(weft_table_pull(report->point, NULL, point));
    memcpy(out->iterates[report->iteration], point, sizeof out->iterates[0]);
    out->count = (int)report->iteration;
    out->last_ns = ranks_now();
    return WEFT_OK;
}

static weft_status minimise(serving *self) {
    static double      point[MOST_PARAMETERS];
    weft_server_counts before, after;
    weft_lbfgs_problem problem = {.parameters = how.parameters, .units = how.units, .evaluate = unit_of, .context = &how, .l2 = weight};
    weft_lbfgs_options options = {.iterations = how.iterations, .gradient = -1, .dedicated = how.dedicated, .progress = see, .once = how.once,
                                  .timeout_ns = how.timeout_ms * (int64_t)WEFTI_MILLISECOND_NS};
    me = self;
    my_rank = self->rank;
    weft_server_count(self->server, &before);
    weft_status status = weft_lbfgs_minimise(self->server, &problem, &options, point, &out->report[self->rank]);
    weft_server_count(self->server, &after);
    if (self->rank == 0) out->sent = after.sent_bytes - before.sent_bytes, out->received = after.received_bytes - before.received_bytes;
    if (status == WEFT_OK && how.twice) { /* goes on from where it is, on the same tables */
        double loss = out->report[self->rank].loss;
        status = weft_lbfgs_minimise(self->server, &problem, &options, point, &out->report[self->rank]);
        EXPECT(status != WEFT_OK || out->report[self->rank].loss < loss, "%.17g after %.17g", out->report[self->rank].loss, loss);
    }
    EXPECT(status == how.wanted, "%s: %.250s", weft_status_name(status), weft_error_message());
    if (how.message) EXPECT(strstr(weft_error_message(), how.message), "%.280s", weft_error_message());
    if (self->rank == self->workers - 1) memcpy(out->point, point, sizeof point);
    return WEFT_OK;
}

static void expect_serial(const char *wire, int32_t size, int32_t servers) {
    static double wanted[ITERATES + 1][COLUMNS];
    double        worst = 0;
    solve_serially(wanted, 10);
    cr_assert_eq(out->count, ITERATES, "%s, %d ranks, %d servers: %d iterates", wire, (int)size, (int)servers, out->count);
    for (int k = 0; k <= ITERATES; k++)
        for (int i = 0; i < COLUMNS; i++) worst = fmax(worst, fabs(out->iterates[k][i] - wanted[k][i]) / fmax(1, fabs(wanted[k][i])));
    cr_expect_leq(worst, 1e-6, "%s, %d ranks, %d servers: %g", wire, (int)size, (int)servers, worst);
    cr_expect(memcmp(out->point, out->iterates[ITERATES], sizeof out->iterates[0]) == 0, "what is returned is the last iterate");
    double way = 0;
    for (int i = 0; i < COLUMNS; i++) way = fmax(way, fabs(wanted[ITERATES][i] - wanted[ITERATES - 1][i]));
    cr_log_info("%s, %d ranks, %d servers: iterates are off by %.3g at most", wire, (int)size, (int)servers, worst);
    cr_expect_gt(way, 1e-5, "it is still on its way (%g), so iterates tell", way);
}

/* --- iterates --- */

static void against_serial(const char *wire) {
    for (int32_t servers = 1; servers <= 3; servers++) {
        out->count = -1;
        serve_case(wire, 4, &(weft_server_options){.servers = servers}, minimise);
        expect_serial(wire, 4, servers);
    }
}
Test(lbfgs, iterates_are_those_of_a_serial_one_shm) { against_serial("shm"); }
Test(lbfgs, iterates_are_those_of_a_serial_one_tcp) { against_serial("tcp"); }
Test(lbfgs, one_rank_alone_does_all) {
    serve_case("shm", 1, NULL, minimise);
    expect_serial("shm", 1, 1);
}
Test(lbfgs, servers_may_be_dedicated) {
    serve_case("shm", 3, &(weft_server_options){.servers = 2, .dedicated = true}, minimise);
    expect_serial("shm", 3, 2);
}

Test(lbfgs, bits_depend_on_neither_workers_nor_the_order_in_which_they_come) {
    static double first[ITERATES + 1][COLUMNS];
    for (int run = 0; run < 4; run++) {
        how.units = 23; /* a tree with single branches */
        how.pause_ms[run] = run ? 1 : 0;
        serve_case(run % 2 ? "tcp" : "shm", 2 + run, &(weft_server_options){.servers = 2}, minimise);
        if (run == 0) memcpy(first, out->iterates, sizeof first);
        else cr_expect(memcmp(out->iterates, first, sizeof first) == 0, "run %d", run);
        how.pause_ms[run] = 0;
    }
}

Test(lbfgs, goes_on_from_where_it_was_and_tells_all_ranks_the_same) {
    how.twice = true;
    how.iterations = 5;
    serve_case("shm", 3, NULL, minimise);
    cr_expect_eq(out->report[0].end, WEFT_LBFGS_ITERATIONS);
    for (int rank = 1; rank < 3; rank++) {
        cr_expect_eq(out->report[rank].loss, out->report[0].loss);
        cr_expect_eq(out->report[rank].evaluations, out->report[0].evaluations);
        cr_expect_eq(out->report[rank].end, WEFT_LBFGS_ITERATIONS);
    }
}

Test(lbfgs, progress_may_stop_it) {
    how.stops = true;
    serve_case("shm", 2, NULL, minimise);
    cr_expect_eq(out->report[1].end, WEFT_LBFGS_STOPPED);
    cr_expect_eq(out->report[1].iteration, 3);
}

/* --- what the coordinator moves --- */

static void coordinator_bytes(const char *wire) {
    uint64_t sent[2], received[2];
    how.dedicated = true;
    how.iterations = 6;
    for (int i = 0; i < 2; i++) {
        how.parameters = i ? 10 * COLUMNS : COLUMNS;
        serve_case(wire, 4, &(weft_server_options){.servers = 2}, minimise);
        cr_expect_eq(out->report[0].iteration, 6);
        sent[i] = out->sent;
        received[i] = out->received;
    }
    cr_expect_eq(sent[0], sent[1], "%s: %llu and %llu bytes", wire, (unsigned long long)sent[0], (unsigned long long)sent[1]);
    cr_expect_eq(received[0], received[1], "%s: %llu and %llu bytes", wire, (unsigned long long)received[0], (unsigned long long)received[1]);
    cr_expect_gt(sent[0], 1000);
}
Test(lbfgs, coordinator_moves_as_much_for_ten_times_the_parameters_shm) { coordinator_bytes("shm"); }
Test(lbfgs, coordinator_moves_as_much_for_ten_times_the_parameters_tcp) { coordinator_bytes("tcp"); }

/* --- faults --- */

static void lose_worker(const char *wire, int unit) {
    how.kill_rank = 1;
    how.kill_unit = unit;
    ranks *all = serve_case_with(wire, 4, &(weft_server_options){.servers = 2}, minimise, 1u << 1);
    cr_expect_not(atomic_load(&all->results[1].finished), "rank 1 should have been killed");
    expect_serial(wire, 4, 2);
    cr_expect_geq(out->report[0].repeated, 1);
    ranks_free(all);
}
Test(lbfgs, units_of_a_killed_worker_are_given_out_again) { lose_worker("shm", 1); }
Test(lbfgs, units_of_a_killed_worker_are_given_out_again_though_none_is_given_twice) {
    how.once = true;
    lose_worker("shm", 30);
}
Test(lbfgs, units_of_a_killed_worker_are_given_out_again_later_tcp) { lose_worker("tcp", 40); }

Test(lbfgs, without_the_coordinator_all_end) {
    how.kill_rank = 0;
    how.kill_unit = 20;
    how.wanted = WEFT_E_PEER;
    how.message = "rank 0, which coordinates, is gone";
    ranks_free(serve_case_with("shm", 3, &(weft_server_options){.servers = 1}, minimise, 1u));
}

Test(lbfgs, without_workers_the_coordinator_ends) {
    how.dedicated = true;
    how.kill_rank = 1;
    how.kill_unit = 5;
    how.wanted = WEFT_E_PEER;
    how.message = "no worker is left";
    ranks_free(serve_case_with("shm", 3, &(weft_server_options){.servers = 1, .dedicated = true}, minimise, 2u));
}

/* Of two servers the one that has the list of units, or the other. */
static void lose_server(const char *wire, int victim) {
    how.victim = victim;
    how.wanted = WEFT_E_PEER;
    how.message = victim == 2 ? "rank 2" : "rank 3";
    for (int rank = 0; rank < 2; rank++) how.pause_ms[rank] = 1;
    ranks_free(serve_case_with(wire, 4, &(weft_server_options){.servers = 2, .dedicated = true}, minimise, 1u << victim));
}
Test(lbfgs, lost_server_ends_it_for_all_shm) { lose_server("shm", 3); }
Test(lbfgs, lost_server_ends_it_for_all_tcp) { lose_server("tcp", 3); }
Test(lbfgs, lost_list_of_units_ends_it_for_all) { lose_server("shm", 2); }

/* With replicas it goes on instead, with the bits of a run in which nobody dies. */
static void survive_server(const char *wire, const weft_server_options *options, int victim) {
    static double whole[ITERATES + 1][COLUMNS];
    serve_case(wire, 4, options, minimise);
    expect_serial(wire, 4, options->servers);
    memcpy(whole, out->iterates, sizeof whole);
    out->computed[1] = 0;
    how.victim = victim;
    for (int rank = 0; rank < 4; rank++) how.pause_ms[rank] = 1;
    ranks *all = serve_case_with(wire, 4, options, minimise, 1u << victim);
    cr_expect_not(atomic_load(&all->results[victim].finished), "rank %d should have been killed", victim);
    expect_serial(wire, 4, options->servers);
    cr_expect(memcmp(out->iterates, whole, sizeof whole) == 0, "%s: the bits of a run that loses rank %d differ", wire, victim);
    ranks_free(all);
}
static const weft_server_options two_twice = {.servers = 2, .dedicated = true, .replicas = 1}, three_twice = {.servers = 3, .replicas = 1};
Test(lbfgs, a_server_with_a_replica_may_die_shm) { survive_server("shm", &two_twice, 3); }
Test(lbfgs, a_server_with_a_replica_may_die_tcp) { survive_server("tcp", &three_twice, 3); }
Test(lbfgs, the_list_of_units_may_be_lost_where_there_are_replicas_shm) { survive_server("shm", &two_twice, 2); }
Test(lbfgs, the_list_of_units_may_be_lost_where_there_are_replicas_tcp) { survive_server("tcp", &two_twice, 2); }

Test(lbfgs, failure_of_a_unit_is_told_to_all) {
    how.fail_rank = 2;
    for (int rank = 0; rank < 3; rank++) how.pause_ms[rank] = 2;
    how.wanted = WEFT_E_IO;
    how.message = "at rank 2: ";
    serve_case("shm", 3, NULL, minimise);
}

Test(lbfgs, unit_that_does_not_end_is_named) {
    how.units = 1;
    how.dedicated = true;
    how.pause_ms[1] = 1500;
    how.timeout_ms = 300;
    how.wanted = WEFT_E_TIMEOUT;
    how.message = "0 at rank 1";
    serve_case("shm", 2, NULL, minimise);
}

Test(lbfgs, nan_at_the_start_is_told_to_all) {
    how.nan = true;
    how.wanted = WEFT_E_NAN;
    how.message = "nan";
    serve_case("shm", 2, NULL, minimise);
}

static weft_status refusals(serving *self) {
    weft_lbfgs_problem problem = {.parameters = 3, .units = 2, .evaluate = unit_of, .l2 = -1};
    REFUSED(weft_lbfgs_minimise(self->server, &problem, NULL, NULL, NULL), WEFT_E_INVALID, "l2 is -1");
    problem.l2 = 0;
    problem.units = 0;
    REFUSED(weft_lbfgs_minimise(self->server, &problem, NULL, NULL, NULL), WEFT_E_INVALID, "0 units");
    problem.units = 1;
    REFUSED(weft_lbfgs_minimise(self->server, &problem, &(weft_lbfgs_options){.dedicated = true}, NULL, NULL), WEFT_E_INVALID, "no other worker");
    REFUSED(weft_lbfgs_minimise(self->server, &problem, &(weft_lbfgs_options){.name = ""}, NULL, NULL), WEFT_E_INVALID, "name");
    REFUSED(weft_lbfgs_minimise(self->server, NULL, NULL, NULL, NULL), WEFT_E_INVALID, "problem");
    return WEFT_OK;
}
Test(lbfgs, refuses_what_is_no_problem) { serve_case("shm", 1, NULL, refusals); }

/* N ranks on batch B/N are one rank on batch B: real processes over real wires train a network that has all that is defined over
 * the global batch, and the variables after 50 steps are compared. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/run.h"

typedef struct run {
    const char *solver, *dtype;
    int         micro, steps;
    bool        recompute;
} run;

/* The variables after it, and how many numbers that is. */
static double *train(int ranks, const char *wire, run how, size_t *count_out) {
    static int  runs;
    char        name[64], arguments[1024];
    snprintf(name, sizeof name, "variables-%d", runs++);
    const char *path = temporary_path(name), *output = temporary_path("output");
    snprintf(arguments, sizeof arguments, "%s %s %d %d %s%s", how.solver, how.dtype, how.micro, how.steps, path,
             how.recompute ? " recompute" : "");
    int   status = run_ranks(ranks, wire, "train_program_parity", arguments, output);
    char *text = read_text(output);
    cr_assert_eq(status, 0, "%d ranks over %s, %s, %s, %d micro-batches: exit status %d: %s", ranks, wire ? wire : "-", how.solver,
                 how.dtype, how.micro, status, text);
    free(text);
    return read_doubles(path, count_out);
}

static double distance(const double *a, const double *b, size_t n) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        difference += (a[i] - b[i]) * (a[i] - b[i]);
        size += a[i] * a[i];
    }
    return sqrt(difference / size);
}

static void agree(run how, int ranks, const char *wire, double tolerance) {
    run     alone = {how.solver, how.dtype, 1, how.steps, false};
    size_t  n, m;
    double *one = train(0, NULL, alone, &n), *many = train(ranks, wire, how, &m);
    cr_assert_eq(n, m);
    double off = distance(one, many, n);
    cr_assert(off <= tolerance, "%s %s, %d ranks over %s, %d micro-batches: off by %.3g, allowed %.3g", how.solver, how.dtype, ranks,
              wire ? wire : "-", how.micro, off, tolerance);
    free(one);
    free(many);
}
static void agrees(const char *solver, const char *dtype, int micro, int ranks, const char *wire, double tolerance) {
    agree((run){solver, dtype, micro, 50, false}, ranks, wire, tolerance);
}

Test(parity, sgd_in_f32_on_two_ranks) { agrees("sgd", "f32", 1, 2, "shm", 1e-5); }
Test(parity, sgd_in_f32_on_three_ranks_over_tcp) { agrees("sgd", "f32", 1, 3, "tcp", 1e-5); }
Test(parity, momentum_in_f64_on_three_ranks) { agrees("momentum", "f64", 1, 3, "shm", 1e-9); }
Test(parity, adam_in_f64_on_two_ranks) { agrees("adam", "f64", 1, 2, "shm", 1e-9); }
Test(parity, adam_in_f64_on_four_ranks_over_tcp) { agrees("adam", "f64", 1, 4, "tcp", 1e-9); }
Test(parity, accumulation_on_one_rank) { agrees("adam", "f64", 3, 0, NULL, 1e-9); }
Test(parity, accumulation_on_two_ranks) { agrees("adam", "f64", 2, 2, "shm", 1e-9); }
Test(parity, accumulation_in_f32_on_two_ranks) { agrees("sgd", "f32", 4, 2, "shm", 1e-5); }

/* Rows are rounded one by one; what is left is that a rank's share of a weight's gradient is rounded before shares are added. */
Test(parity, sgd_in_bf16_on_two_ranks) { agrees("sgd", "bf16", 1, 2, "shm", 2e-3); }

/* The other solvers, the rows' proximal step and clipping by value with them. Line searches magnify rounding: fewer steps. */
Test(parity, nesterov_on_three_ranks) { agree((run){"nesterov", "f64", 2, 30, false}, 3, "shm", 1e-9); }
/* The gradient of a bias before batch norm is nothing but rounding, which this solver's first steps make large. */
Test(parity, adagrad_on_two_ranks) { agree((run){"adagrad", "f64", 1, 30, false}, 2, "shm", 1e-6); }
Test(parity, rmsprop_on_three_ranks) { agree((run){"rmsprop", "f64", 1, 30, false}, 3, "shm", 1e-9); }
Test(parity, lbfgs_on_two_ranks) { agree((run){"lbfgs", "f64", 1, 8, false}, 2, "shm", 1e-7); }

/* What is computed again sees the same dropout and the same batch statistics, of all ranks and micro-batches. */
Test(parity, recomputation_on_two_ranks) { agree((run){"adam", "f64", 2, 30, true}, 2, "shm", 1e-9); }

/* A head of many classes, whose loss is computed by chunks of rows: the count of labels that it divides by comes from all ranks, and some
 * batches leave a rank without rows. */
Test(parity, losses_by_chunks_of_rows) {
    setenv("RUN_CLASSES", "4099", 1);
    setenv("RUN_CHUNK", "-1", 1);
    size_t  n, m;
    run     how = {"momentum", "f64", 1, 7, false};
    double *whole = train(0, NULL, how, &n);
    setenv("RUN_CHUNK", "8", 1);
    for (int ranks = 0; ranks <= 5; ranks += 5) {
        double *chunks = train(ranks, ranks ? "shm" : NULL, how, &m);
        cr_assert_eq(n, m);
        cr_assert_leq(distance(whole, chunks, n), 1e-12, "%d ranks are off by %.3g", ranks, distance(whole, chunks, n));
        free(chunks);
        how.micro = 2;
    }
    free(whole);
}

static void gives_the_same_bits(const char *wire) {
    run     how = {"adam", "f32", 2, 50, false};
    size_t  n, m;
    double *first = train(3, wire, how, &n), *second = train(3, wire, how, &m);
    cr_assert_eq(n, m);
    cr_assert_eq(memcmp(first, second, n * sizeof *first), 0, "two runs over %s differ", wire);
    free(first);
    free(second);
}
Test(parity, runs_give_the_same_bits_over_shared_memory) { gives_the_same_bits("shm"); }
Test(parity, runs_give_the_same_bits_over_tcp) { gives_the_same_bits("tcp"); }

/* Where the device's memory is not the host's, what ranks exchange is copied out and in: the same numbers to the bit. */
static void is_the_same_far_away(run how, int ranks, const char *wire) {
    size_t  n, m;
    double *near = train(ranks, wire, how, &n);
    setenv("RUN_FAR", "3", 1);
    double *far = train(ranks, wire, how, &m);
    cr_assert_eq(n, m);
    cr_assert_eq(memcmp(near, far, n * sizeof *near), 0, "%s: %d ranks compute other numbers in memory of their device's own", how.solver, ranks);
    free(near);
    free(far);
}
Test(parity, memory_of_the_devices_own_on_one_rank) { is_the_same_far_away((run){"adam", "f32", 2, 30, false}, 0, NULL); }
Test(parity, memory_of_the_devices_own_on_two_ranks) { is_the_same_far_away((run){"adam", "f32", 2, 30, false}, 2, "shm"); }
Test(parity, memory_of_the_devices_own_over_tcp) { is_the_same_far_away((run){"momentum", "f32", 1, 30, true}, 3, "tcp"); }
Test(parity, memory_of_the_devices_own_with_lbfgs) { is_the_same_far_away((run){"lbfgs", "f64", 1, 6, false}, 2, "shm"); }

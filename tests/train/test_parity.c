/* N ranks on batch B/N are one rank on batch B: real processes over real wires train a network that has all that is defined over
 * the global batch, and the variables after 50 steps are compared. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/run.h"

static double *train(int ranks, const char *wire, const char *solver, const char *dtype, int micro, size_t *count_out) {
    static int  runs;
    char        name[64], arguments[1024];
    snprintf(name, sizeof name, "variables-%d", runs++);
    const char *path = temporary_path(name), *output = temporary_path("output");
    snprintf(arguments, sizeof arguments, "%s %s %d 50 %s", solver, dtype, micro, path);
    int   status = run_ranks(ranks, wire, "train_program_parity", arguments, output);
    char *text = read_text(output);
    cr_assert_eq(status, 0, "%d ranks over %s, %s, %s, %d micro-batches: exit status %d: %s", ranks, wire ? wire : "-", solver, dtype, micro,
                 status, text);
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

static void agrees(const char *solver, const char *dtype, int micro, int ranks, const char *wire, double tolerance) {
    size_t  n, m;
    double *one = train(0, NULL, solver, dtype, 1, &n), *many = train(ranks, wire, solver, dtype, micro, &m);
    cr_assert_eq(n, m);
    double off = distance(one, many, n);
    cr_assert(off <= tolerance, "%s %s, %d ranks over %s, %d micro-batches: off by %.3g, allowed %.3g", solver, dtype, ranks, wire ? wire : "-",
              micro, off, tolerance);
    free(one);
    free(many);
}

Test(parity, sgd_in_f32_on_two_ranks) { agrees("sgd", "f32", 1, 2, "shm", 1e-5); }
Test(parity, sgd_in_f32_on_three_ranks_over_tcp) { agrees("sgd", "f32", 1, 3, "tcp", 1e-5); }
Test(parity, momentum_in_f64_on_three_ranks) { agrees("momentum", "f64", 1, 3, "shm", 1e-9); }
Test(parity, adam_in_f64_on_two_ranks) { agrees("adam", "f64", 1, 2, "shm", 1e-9); }
Test(parity, adam_in_f64_on_four_ranks_over_tcp) { agrees("adam", "f64", 1, 4, "tcp", 1e-9); }
Test(parity, accumulation_on_one_rank) { agrees("adam", "f64", 3, 0, NULL, 1e-9); }
Test(parity, accumulation_on_two_ranks) { agrees("adam", "f64", 2, 2, "shm", 1e-9); }
Test(parity, accumulation_in_f32_on_two_ranks) { agrees("sgd", "f32", 4, 2, "shm", 1e-5); }

static void gives_the_same_bits(const char *wire) {
    size_t  n, m;
    double *first = train(3, wire, "adam", "f32", 2, &n), *second = train(3, wire, "adam", "f32", 2, &m);
    cr_assert_eq(n, m);
    cr_assert_eq(memcmp(first, second, n * sizeof *first), 0, "two runs over %s differ", wire);
    free(first);
    free(second);
}
Test(parity, runs_give_the_same_bits_over_shared_memory) { gives_the_same_bits("shm"); }
Test(parity, runs_give_the_same_bits_over_tcp) { gives_the_same_bits("tcp"); }

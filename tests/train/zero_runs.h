/* Runs of train_program_tensor with strategy.zero, for the tests that compare them. */
#ifndef TESTS_TRAIN_ZERO_RUNS_H
#define TESTS_TRAIN_ZERO_RUNS_H

#include "train/tensor_runs.h"

/* More of the strategy, and how many times as many ranks that takes. */
static const char *more = "";
static int         more_ranks = 1;

/* Runs with strategy.zero, and all parameters dealt out; the path of the file that is saved after the last step. */
static inline const char *dealt(int zero, const char *model, const char *dtype, mesh m, const char *wire, int steps, const char *curve_path) {
    char        name[64], arguments[1024], stage[8];
    int         ranks = m.data * m.tensor * more_ranks;
    const char *output = temporary_path("output");
    snprintf(name, sizeof name, "zero-%s-%s-%d-%d-%d", model, dtype, zero, m.data, m.tensor);
    const char *path = temporary_path(name);
    snprintf(stage, sizeof stage, "%d", zero);
    setenv("RUN_ZERO", stage, 1);
    setenv("RUN_LEAST", zero > 0 ? "1" : "0", 1);
    setenv("RUN_SAVE", path, 1);
    snprintf(arguments, sizeof arguments, "%s %s data=%d,tensor=%d%s %d %s", model, dtype, m.data, m.tensor, more, steps, curve_path);
    int   status = run_ranks(ranks == 1 ? 0 : ranks, wire, "train_program_tensor", arguments, output);
    char *text = read_text(output);
    cr_assert_eq(status, 0, "%s: exit status %d: %s", name, status, text);
    free(text);
    unsetenv("RUN_ZERO");
    unsetenv("RUN_LEAST");
    unsetenv("RUN_SAVE");
    return path;
}

static inline const char *curve_of(int zero) {
    char name[32];
    snprintf(name, sizeof name, "curve-%d", zero);
    return temporary_path(name);
}

static inline void same_files(const char *a, const char *b, const char *what) {
    char command[1024];
    snprintf(command, sizeof command, "cmp %s %s", a, b);
    cr_assert_eq(system(command), 0, "%s: %s and %s differ", what, a, b);
}

/* All stages come to the losses and norms of plain data parallelism. */
static inline void agrees(const char *model, const char *dtype, mesh m, const char *wire, double tolerance, const char *what) {
    size_t n, n_many;
    (void)dealt(0, model, dtype, m, wire, 6, curve_of(0));
    double *plain = read_doubles(curve_of(0), &n);
    for (int zero = 1; zero <= 3; zero++) {
        (void)dealt(zero, model, dtype, m, wire, 6, curve_of(zero));
        double *many = read_doubles(curve_of(zero), &n_many);
        agree(plain, n, many, n_many, what, tolerance);
        free(many);
    }
    free(plain);
}

/* Stages have parts of their own parameters; no order of micro-batches lets one read what was gathered for another that comes later. */
static inline void agrees_in_stages(const char *schedule, mesh m) {
    char words[64];
    setenv("RUN_CLIP", "1", 1);
    snprintf(words, sizeof words, ",pipeline=2,accumulate=4,schedule=%s", schedule);
    more = words;
    more_ranks = 2;
    agrees("gpt", "f64", m, "tcp", 1e-12, schedule);
    more = "";
    more_ranks = 1;
}
#endif

/* Runs of train_program_tensor under strategies that are given as text, for the tests that compare them with one process. */
#ifndef TESTS_TRAIN_SPLIT_RUNS_H
#define TESTS_TRAIN_SPLIT_RUNS_H

#include "train/tensor_runs.h"

typedef struct split {
    int         ranks;
    const char *strategy; /* NULL: one process */
} split;

static inline const char *name_of(split s) { return s.strategy ? s.strategy : "one process"; }

static inline int run_split(const char *model, const char *dtype, split s, int steps, const char *path, char **text_out) {
    return run_mesh(model, dtype, s.strategy ? s.strategy : "data=1", s.ranks, steps, path, text_out);
}

/* The text that a run gives, to be freed; it must go well. */
static inline char *train_split(const char *model, const char *dtype, split s, int steps, const char *path) {
    char *text;
    int   status = run_split(model, dtype, s, steps, path, &text);
    cr_assert_eq(status, 0, "%s in %s, %s: exit status %d: %s", model, dtype, name_of(s), status, text);
    return text;
}

static inline double *curve_of(const char *model, const char *dtype, split s, int steps, size_t *count_out) {
    const char *path = temporary_path("curve");
    free(train_split(model, dtype, s, steps, path));
    return read_doubles(path, count_out);
}

/* Losses and norms of every split are those of one process, which learns. */
static inline void splits_agree(const char *model, const char *dtype, int steps, double tolerance, const split *splits, int n_splits) {
    size_t  n, n_many;
    double *one = curve_of(model, dtype, (split){1, NULL}, steps, &n);
    cr_assert_eq(n, 2 * (size_t)steps + 2);
    cr_assert_lt(one[n - 4], one[0], "%s learns nothing", model);
    for (int i = 0; i < n_splits; i++) {
        char what[128];
        snprintf(what, sizeof what, "%s in %s, %s", model, dtype, name_of(splits[i]));
        double *many = curve_of(model, dtype, splits[i], steps, &n_many);
        agree(one, n, many, n_many, what, tolerance);
        free(many);
    }
    free(one);
}

static inline const char *saved_by(const char *model, split s, int steps, const char *curve_path) {
    char name[128];
    snprintf(name, sizeof name, "saved-%s-%d-%d", model, s.ranks, steps);
    const char *path = temporary_path(name);
    setenv("RUN_SAVE", path, 1);
    free(train_split(model, "f64", s, steps, curve_path));
    unsetenv("RUN_SAVE");
    return path;
}

static inline void same_files(const char *model, split s) {
    char        command[1024];
    const char *one = saved_by(model, (split){1, NULL}, 0, temporary_path("none")), *other = saved_by(model, s, 0, temporary_path("none"));
    snprintf(command, sizeof command, "cmp %s %s", one, other);
    cr_assert_eq(system(command), 0, "%s, %s: another file", model, name_of(s));
}

/* Steps on one mesh and as many on another are twice as many on none. */
static inline void split_goes_on(const char *model, int steps, split before, split after) {
    size_t      n, n_both;
    char        what[128];
    double     *expected = curve_of(model, "f64", (split){1, NULL}, 2 * steps, &n);
    const char *path = temporary_path("both"), *file = saved_by(model, before, steps, path);
    snprintf(what, sizeof what, "%s from %s to %s", model, name_of(before), name_of(after));
    setenv("RUN_LOAD", file, 1);
    setenv("RUN_APPEND", "1", 1);
    free(train_split(model, "f64", after, steps, path));
    unsetenv("RUN_LOAD");
    unsetenv("RUN_APPEND");
    double *both = read_doubles(path, &n_both);
    agree(expected, n, both, n_both, what, 1e-10);
    free(both);
    free(expected);
}

static inline void split_fails(const char *model, split s, const char *variable, const char *value, const char *word, const char *hint) {
    char *text;
    setenv(variable, value, 1);
    int status = run_split(model, "f32", s, 10, temporary_path("failed"), &text);
    unsetenv(variable);
    cr_expect_neq(status, 0, "%s %s=%s: %s", name_of(s), variable, value, text);
    cr_expect_not_null(strstr(text, word), "%s %s=%s: '%s' lacks '%s'", name_of(s), variable, value, text, word);
    cr_expect_not_null(strstr(text, hint), "%s %s=%s: '%s' lacks '%s'", name_of(s), variable, value, text, hint);
    free(text);
}

#endif

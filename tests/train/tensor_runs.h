/* Runs of train_program_tensor on meshes, for the tests that compare them. */
#ifndef TESTS_TRAIN_TENSOR_RUNS_H
#define TESTS_TRAIN_TENSOR_RUNS_H

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/run.h"

typedef struct mesh {
    int data, tensor;
} mesh;

/* Runs the program on a mesh as it reads it; its exit status. Its output, to be freed, in *text_out. */
static inline int run_mesh(const char *model, const char *dtype, const char *words, int ranks, int steps, const char *path, char **text_out) {
    char        arguments[1024];
    const char *output = temporary_path("output");
    snprintf(arguments, sizeof arguments, "%s %s %s %d %s", model, dtype, words, steps, path);
    int status = run_ranks(ranks == 1 ? 0 : ranks, NULL, "train_program_tensor", arguments, output);
    *text_out = read_text(output);
    return status;
}

static inline int run(const char *model, const char *dtype, mesh m, int steps, const char *path, char **text_out) {
    char words[64];
    snprintf(words, sizeof words, "data=%d,tensor=%d", m.data, m.tensor);
    return run_mesh(model, dtype, words, m.data * m.tensor, steps, path, text_out);
}

/* The text that a run gives, to be freed; it must go well. */
static inline char *train(const char *model, const char *dtype, mesh m, int steps, const char *path) {
    char *text;
    int   status = run(model, dtype, m, steps, path, &text);
    cr_assert_eq(status, 0, "%s in %s, data %d, tensor %d: exit status %d: %s", model, dtype, m.data, m.tensor, status, text);
    return text;
}

/* Losses and norms by step, the last pair being an evaluation. */
static inline double *curve(const char *model, const char *dtype, mesh m, int steps, size_t *count_out) {
    char name[64];
    snprintf(name, sizeof name, "%s-%s-%d-%d", model, dtype, m.data, m.tensor);
    const char *path = temporary_path(name);
    free(train(model, dtype, m, steps, path));
    return read_doubles(path, count_out);
}

/* Norms of gradients show rounding sooner than losses do. */
static inline void agree(const double *one, size_t n, const double *many, size_t m, const char *what, double tolerance) {
    cr_assert_eq(n, m, "%s: %zu numbers, not %zu", what, m, n);
    for (size_t i = 0; i < n; i++)
        cr_assert(fabs(one[i] - many[i]) <= (i % 2 ? 10 : 1) * tolerance * fabs(one[i]), "%s: number %zu (of step %zu) is %.17g, not %.17g", what, i, i / 2 + 1, many[i],
                  one[i]);
}

static inline void agrees_on(const char *model, const char *dtype, int steps, double tolerance, const mesh *meshes, int n_meshes) {
    size_t  n, n_many;
    double *one = curve(model, dtype, (mesh){1, 1}, steps, &n);
    cr_assert_eq(n, 2 * (size_t)steps + 2);
    cr_assert_lt(one[n - 4], one[0], "%s learns nothing", model);
    for (int i = 0; i < n_meshes; i++) {
        char what[64];
        snprintf(what, sizeof what, "%s in %s, data %d, tensor %d", model, dtype, meshes[i].data, meshes[i].tensor);
        double *many = curve(model, dtype, meshes[i], steps, &n_many);
        agree(one, n, many, n_many, what, tolerance);
        free(many);
    }
    free(one);
}

static const mesh all_meshes[] = {{1, 2}, {1, 4}, {2, 2}};

static inline const char *saved(const char *model, mesh m, int steps, const char *curve_path) {
    char name[64];
    snprintf(name, sizeof name, "saved-%s-%d-%d-%d", model, m.data, m.tensor, steps);
    const char *path = temporary_path(name);
    setenv("RUN_SAVE", path, 1);
    free(train(model, "f64", m, steps, curve_path));
    unsetenv("RUN_SAVE");
    return path;
}

/* Steps on one mesh and as many on another are twice as many on none. */
static inline void goes_on(const char *model, int steps, mesh before, mesh after, const double *expected, size_t n) {
    size_t      count_of_both;
    char        what[96];
    const char *path = temporary_path("both"), *file = saved(model, before, steps, path);
    snprintf(what, sizeof what, "%s from data %d, tensor %d to data %d, tensor %d", model, before.data, before.tensor, after.data, after.tensor);
    setenv("RUN_LOAD", file, 1);
    setenv("RUN_APPEND", "1", 1);
    free(train(model, "f64", after, steps, path));
    unsetenv("RUN_LOAD");
    unsetenv("RUN_APPEND");
    double *both = read_doubles(path, &count_of_both);
    agree(expected, n, both, count_of_both, what, 1e-11);
    free(both);
}

#endif

/* The table of combinations: meshes of two ranks an axis, alone, in pairs and all together, and what the tests of it do with each row.
 *
 * A new axis or a new word of the strategy is a row here: weft_strategy_parse reads it. */
#ifndef TESTS_TRAIN_MESH_TABLE_H
#define TESTS_TRAIN_MESH_TABLE_H

#include "train/tensor_runs.h"

typedef struct combination {
    const char *mesh;
    int         ranks;
    bool        nightly; /* else every time */
    const char *model;   /* that it is for; NULL: for those without experts */
} combination;

static const combination combinations[] = {
    {"data=2,tensor=2", 4, true, NULL},
    {"data=2,pipeline=2,accumulate=2", 4, true, NULL},
    {"data=2,pipeline=2,accumulate=2,zero=2,divide-bytes=1", 4, false, NULL},
    {"data=2,pipeline=2,accumulate=4,schedule=gpipe", 4, true, NULL},
    {"tensor=2,pipeline=2,accumulate=4", 4, true, NULL},
    {"tensor=2,pipeline=2,accumulate=2,schedule=gpipe", 4, false, NULL},
    {"data=2,pipeline=2,accumulate=4,schedule=interleaved", 4, true, NULL},
    {"data=2,pipeline=2,accumulate=4,schedule=zero-bubble", 4, true, NULL},
    {"tensor=2,pipeline=2,accumulate=4,schedule=interleaved", 4, true, NULL},
    {"tensor=2,pipeline=2,accumulate=4,schedule=zero-bubble", 4, true, NULL},
    {"data=2,tensor=2,zero=2,divide-bytes=1", 4, false, NULL},
    {"data=2,pipeline=2,accumulate=2,zero=3,divide-bytes=1,schedule=zero-bubble", 4, true, NULL},
    {"tensor=2,pipeline=2,accumulate=2,recompute=1", 4, true, NULL},
    {"data=2,tensor=2,pipeline=2,accumulate=2,zero=3,divide-bytes=1", 8, true, NULL},
    {"data=2,tensor=2,pipeline=2,accumulate=2", 8, true, NULL},
    {"data=2,tensor=2,pipeline=2,accumulate=2,schedule=gpipe", 8, true, NULL},
    {"sequence=2,tensor=2", 4, false, "gpt"},
    {"tensor=2,pipeline=2,accumulate=2,tensor-rows=1", 4, true, NULL},
    {"data=2,tensor=2,zero=3,divide-bytes=1,tensor-rows=1", 4, true, NULL},
    {"sequence=2,tensor=2,tensor-rows=1", 4, true, "gpt"},
    {"expert=2,tensor=2,tensor-rows=1", 4, true, "moe"},
    {"sequence=2,pipeline=2,accumulate=2", 4, false, "gpt"},
    {"sequence=2,zero=3,divide-bytes=1", 2, true, "gpt"},
    {"sequence=2,data=2,zero=3,divide-bytes=1", 4, false, "gpt"},
    {"sequence=2,data=2,zero=2,divide-bytes=1", 4, true, "gpt"},
    {"sequence=2,pipeline=2,accumulate=4,schedule=gpipe", 4, true, "gpt"},
    {"sequence=2,pipeline=2,accumulate=4,schedule=interleaved", 4, true, "gpt"},
    {"sequence=2,pipeline=2,accumulate=4,schedule=zero-bubble", 4, true, "gpt"},
    {"sequence=2,pipeline=2,accumulate=2,zero=3,divide-bytes=1", 4, true, "gpt"},
    {"sequence=4,tensor=2", 8, true, "gpt"},
    {"sequence=2,tensor=2,data=2", 8, true, "gpt"},
    {"sequence=2,tensor=2,pipeline=2,accumulate=2", 8, true, "gpt"},
    {"sequence=2,tensor=2,pipeline=2,accumulate=2,schedule=zero-bubble,recompute=1", 8, true, "gpt"},
    {"sequence=2,tensor=2,data=2,zero=1,divide-bytes=1", 8, true, "gpt"},
    {"data=2,tensor=2,zero=1,sync=server", 4, false, NULL},
    {"data=2,pipeline=2,accumulate=2,sync=server,servers=1", 4, false, NULL},
    {"data=2,pipeline=2,accumulate=4,schedule=interleaved,sync=server", 4, true, NULL},
    {"tensor=2,pipeline=2,accumulate=2,recompute=1,sync=server", 4, true, NULL},
    {"data=2,tensor=2,tensor-rows=1,sync=server,servers=3", 4, true, NULL},
    {"data=2,tensor=2,pipeline=2,accumulate=2,schedule=gpipe,sync=server", 8, true, NULL},
    {"data=2,tensor=2,pipeline=2,accumulate=4,schedule=zero-bubble,sync=server", 8, true, NULL},
    {"data=2,tensor=2,pipeline=2,schedule=1f1b,zero=1,sync=server", 8, true, NULL},
    {"sequence=2,data=2,sync=server", 4, false, "gpt"},
    {"sequence=2,tensor=2,pipeline=2,accumulate=2,sync=server", 8, true, "gpt"},
    {"expert=2,tensor=2", 4, false, "moe"},
    {"expert=2,pipeline=2", 4, false, "moe"},
    {"expert=2,sequence=2", 4, false, "moe"},
    {"expert=2,zero=3,divide-bytes=1", 2, true, "moe"},
    {"expert=2,data=2,zero=1,divide-bytes=1", 4, true, "moe"},
    {"expert=2,data=2,zero=3,divide-bytes=1", 4, false, "moe"},
    {"expert=2,pipeline=2,accumulate=2,schedule=gpipe", 4, true, "moe"},
    {"expert=2,pipeline=2,zero=2,divide-bytes=1", 4, true, "moe"},
    {"expert=4,tensor=2", 8, true, "moe"},
    {"expert=2,data=2,tensor=2", 8, true, "moe"},
    {"expert=2,tensor=2,pipeline=2", 8, true, "moe"},
    {"expert=2,sequence=2,tensor=2", 8, true, "moe"},
    {"expert=2,sequence=2,pipeline=2", 8, true, "moe"},
    {"expert=2,sequence=2,data=2,zero=2,divide-bytes=1", 8, true, "moe"},
};
enum { COMBINATIONS = sizeof combinations / sizeof *combinations };

static inline bool is_tried(const combination *c, const char *model, bool nightly) {
    bool right = c->model ? strcmp(c->model, model) == 0 : strcmp(model, "moe") != 0;
    return right && (nightly || !c->nightly);
}

/* Whether some row that is tried every time has both words. A server's zero = 1 is no ZeRO. */
static inline bool stand_together(const char *one, const char *other) {
    for (int i = 0; i < COMBINATIONS; i++) {
        const char *row = combinations[i].mesh;
        bool        zero = strcmp(one, "zero=") == 0 || strcmp(other, "zero=") == 0;
        if (!combinations[i].nightly && strstr(row, one) && strstr(row, other) && !(zero && strstr(row, "sync=server"))) return true;
    }
    return false;
}

static const combination alone = {"data=1", 1, false, NULL};

/* Losses and norms of a run, which must go well; to be freed. */
static inline double *curve_of(const char *model, const char *dtype, const combination *c, int steps, size_t *count_out) {
    char       *text;
    const char *path = temporary_path("curve");
    int         status = run_mesh(model, dtype, c->mesh, c->ranks, steps, path, &text);
    cr_assert_eq(status, 0, "%s in %s, %s: exit status %d: %s", model, dtype, c->mesh, status, text);
    free(text);
    return read_doubles(path, count_out);
}

/* As many steps on every mesh as on one process, and the same losses: to 1e-4 in f32, by the gradient's norm too. */
static inline void all_agree(const char *model, int steps, double tolerance, bool nightly) {
    size_t  n, n_many;
    double *one = curve_of(model, "f32", &alone, steps, &n);
    cr_assert_lt(one[n - 4], one[0], "%s learns nothing", model);
    for (int i = 0; i < COMBINATIONS; i++) {
        if (!is_tried(&combinations[i], model, nightly)) continue;
        double *many = curve_of(model, "f32", &combinations[i], steps, &n_many);
        agree(one, n, many, n_many, combinations[i].mesh, tolerance);
        free(many);
    }
    free(one);
}

/* Of a run of some steps, what it saves at a path. */
static inline const char *saved_at(const char *path, const char *model, const combination *c, int steps, const char *load) {
    char *text;
    setenv("RUN_SAVE", path, 1);
    if (load) setenv("RUN_LOAD", load, 1);
    int status = run_mesh(model, "f64", c->mesh, c->ranks, steps, temporary_path("none"), &text);
    unsetenv("RUN_SAVE");
    unsetenv("RUN_LOAD");
    cr_assert_eq(status, 0, "%s: exit status %d: %s", c->mesh, status, text);
    free(text);
    return path;
}

static inline const char *file_of(const char *model, const combination *c, int steps, const char *load) {
    static int files;
    char       name[32];
    snprintf(name, sizeof name, "file-%d", files++);
    return saved_at(temporary_path(name), model, c, steps, load);
}

static inline bool same_bytes(const char *one, const char *other) {
    char command[1024];
    snprintf(command, sizeof command, "cmp %s %s", one, other);
    return system(command) == 0;
}

/* Without a server what is saved before a step is taken is what one process saves, and so is what was loaded: to the byte, in all ways from mesh to mesh. */
static inline void files_are_those_of_one_process(const char *model, bool nightly) {
    const char *one = file_of(model, &alone, 0, NULL), *later = file_of(model, &alone, 3, NULL);
    for (int i = 0; i < COMBINATIONS; i++) {
        if (!is_tried(&combinations[i], model, nightly) || strstr(combinations[i].mesh, "sync=server")) continue; /* which says, too, how often rows were updated */
        cr_expect(same_bytes(one, file_of(model, &combinations[i], 0, NULL)), "%s, %s: another file", model, combinations[i].mesh);
        cr_expect(same_bytes(later, file_of(model, &combinations[i], 0, later)), "%s, %s: another file of what was loaded", model, combinations[i].mesh);
    }
}

static inline void fails(const char *model, const char *words, int ranks, const char *variable, const char *value, const char *word, const char *hint) {
    char *text;
    setenv(variable, value, 1);
    int status = run_mesh(model, "f32", words, ranks, 10, temporary_path("failed"), &text);
    unsetenv(variable);
    cr_expect_neq(status, 0, "%s, %s=%s: %s", words, variable, value, text);
    cr_expect_not_null(strstr(text, word), "%s, %s=%s: '%s' lacks '%s'", words, variable, value, text, word);
    cr_expect_not_null(strstr(text, hint), "%s, %s=%s: '%s' lacks '%s'", words, variable, value, text, hint);
    free(text);
}

/* The last rank dies in the middle of a run, and all others end and name it: rows that are tried every time, or the others. */
static inline void deaths_end_all(bool nightly) {
    for (int i = 0; i < COMBINATIONS; i++) {
        char who[8], named[32];
        if (combinations[i].nightly != nightly) continue;
        snprintf(who, sizeof who, "%d", combinations[i].ranks - 1);
        snprintf(named, sizeof named, "rank %s failed", who);
        fails(combinations[i].model ? combinations[i].model : "gpt", combinations[i].mesh, combinations[i].ranks, "RUN_DIE", who, "WEFT_E_PEER", named);
    }
}

#endif

/* The rules of the parameter server's store against formulas written down a second time, in double precision, one row at a time, each with its own
 * count of updates: in all dtypes, dense and sparse, with places and without. And rules of one's own: what they see, and that a failing one leaves
 * the row as it was. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor/half.h"
#include "parallel/server/store.h"

#define OK(call) cr_assert_eq((call), WEFT_OK, "%s: %s", #call, weft_error_message())

enum { ROWS = 23, WIDTH = 5, STEPS = 7 };

static double noise(int64_t i, int64_t salt) { return sin(12.9898 * (double)i + 78.233 * (double)salt) * 1.7; }

static void put(weft_dtype dtype, void *array, int64_t i, double value) {
    switch (dtype) {
    case WEFT_F64: ((double *)array)[i] = value; break;
    case WEFT_BF16: ((uint16_t *)array)[i] = wefti_f32_to_bf16((float)value); break;
    case WEFT_F16: ((uint16_t *)array)[i] = wefti_f32_to_f16((float)value); break;
    case WEFT_I32: ((int32_t *)array)[i] = (int32_t)value; break;
    case WEFT_I64: ((int64_t *)array)[i] = (int64_t)value; break;
    default: ((float *)array)[i] = (float)value;
    }
}
static double get(weft_dtype dtype, const void *array, int64_t i) {
    switch (dtype) {
    case WEFT_F64: return ((const double *)array)[i];
    case WEFT_BF16: return (double)wefti_bf16_to_f32(((const uint16_t *)array)[i]);
    case WEFT_F16: return (double)wefti_f16_to_f32(((const uint16_t *)array)[i]);
    case WEFT_I32: return ((const int32_t *)array)[i];
    case WEFT_I64: return (double)((const int64_t *)array)[i];
    default: return (double)((const float *)array)[i];
    }
}

static wefti_store *store_of(wefti_store_options options) {
    wefti_store       *store = NULL;
    weft_table_options table = {.name = "t", .dtype = options.dtype, .rule = options.rule, .start = options.start, .low = options.low};
    OK(wefti_store_check(&table));
    options.name = "t";
    OK(wefti_store_create(&options, &store));
    return store;
}

/* --- the formulas --- */

typedef struct setting {
    const char     *name;
    weft_table_rule rule;
    double          scale;
} setting;

/* A row as the papers have it. */
typedef struct model {
    double theta[WIDTH], a[WIDTH], b[WIDTH];
    int    updates;
} model;

/* The step of a solver's rule for one element; *length is that for a gradient that stayed 1. */
static double solver_step(const weft_solver *s, double g, int t, double *a, double *b, double *length) {
    double rho = 0.99, beta1 = 0.9, beta2 = 0.999, mu = s->momentum, built = 0;
    *length = s->rate;
    switch (s->kind) {
    case WEFT_SGD:
        if (mu == 0) return s->rate * g;
        for (int i = 0; i < t; i++) built = mu * built + 1;
        *length *= s->nesterov ? 1 + mu * built : built;
        *a = mu * *a + g;
        return s->rate * (s->nesterov ? g + mu * *a : *a);
    case WEFT_ADAGRAD:
        *a += g * g;
        *length /= sqrt(*a) + 1e-10;
        return *length * g;
    case WEFT_RMSPROP:
        *a = rho * *a + (1 - rho) * g * g;
        *length /= sqrt(*a) + 1e-8;
        return *length * g;
    default:
        *a = beta1 * *a + (1 - beta1) * g;
        *b = beta2 * *b + (1 - beta2) * g * g;
        *length /= sqrt(*b / (1 - pow(beta2, t))) + 1e-8;
        return *length * *a / (1 - pow(beta1, t));
    }
}

/* One update of one row: McMahan et al.'s algorithm 1, or the solvers' with their proximal steps. The group's is the closed form that there is
 * where all elements have one step, so it is tried with SGD. */
static void update_model(const setting *s, model *row, const double *update) {
    const weft_table_rule *rule = &s->rule;
    double                 norm = 0, length = 0;
    row->updates++;
    for (int i = 0; i < WIDTH; i++) {
        double g = s->scale * update[i], *w = &row->theta[i];
        if (rule->kind == WEFT_TABLE_ADD) *w += g;
        else if (rule->kind == WEFT_TABLE_AVERAGE) *w = g;
        else if (rule->kind == WEFT_TABLE_FTRL) {
            double alpha = rule->alpha > 0 ? rule->alpha : 0.1, beta = rule->beta > 0 ? rule->beta : 1, *z = &row->a[i], *n = &row->b[i];
            double sigma = (sqrt(*n + g * g) - sqrt(*n)) / alpha;
            *z += g - sigma * *w;
            *n += g * g;
            *w = fabs(*z) <= rule->l1 ? 0 : -(*z - copysign(rule->l1, *z)) / ((beta + sqrt(*n)) / alpha + rule->l2);
        } else {
            const weft_solver *solver = &rule->solver;
            if (solver->clip_value > 0) g = fmax(-solver->clip_value, fmin(solver->clip_value, g));
            g += rule->regulariser.l2 * *w;
            double step = solver_step(solver, g, row->updates, &row->a[i], &row->b[i], &length);
            *w -= solver->rate * solver->weight_decay * *w + step;
            if (rule->regulariser.l1 > 0) *w = copysign(fmax(fabs(*w) - length * rule->regulariser.l1, 0), *w);
        }
        norm += *w * *w;
    }
    if (rule->kind == WEFT_TABLE_SOLVER && rule->regulariser.group > 0)
        for (int i = 0; i < WIDTH; i++) row->theta[i] *= fmax(1 - length * rule->regulariser.group / sqrt(norm), 0);
}

#define SOLVER(...) {.kind = WEFT_TABLE_SOLVER, __VA_ARGS__}
static const setting settings[] = {
    {"add", {.kind = WEFT_TABLE_ADD}, 1},
    {"add a quarter", {.kind = WEFT_TABLE_ADD}, 0.25},
    {"add a third", {.kind = WEFT_TABLE_ADD}, 1 / 3.0},
    {"average", {.kind = WEFT_TABLE_AVERAGE}, 1},
    {"average, halved", {.kind = WEFT_TABLE_AVERAGE}, 0.5},
    {"sgd", SOLVER(.solver = {.rate = 0.1}), 1},
    {"sgd, l2, l1", SOLVER(.solver = {.rate = 0.1}, .regulariser = {.l2 = 0.3, .l1 = 0.4}), 0.5},
    {"sgd, rows", SOLVER(.solver = {.rate = 0.1}, .regulariser = {.group = 0.9}), 1},
    {"momentum", SOLVER(.solver = {.rate = 0.1, .momentum = 0.9}), 1},
    {"momentum, l1", SOLVER(.solver = {.rate = 0.1, .momentum = 0.9}, .regulariser = {.l1 = 0.2}), 1},
    {"nesterov, l1", SOLVER(.solver = {.rate = 0.1, .momentum = 0.8, .nesterov = true}, .regulariser = {.l1 = 0.1}), 1},
    {"adagrad", SOLVER(.solver = {.rate = 0.1, .kind = WEFT_ADAGRAD}), 1},
    {"adagrad, clipped", SOLVER(.solver = {.rate = 0.1, .kind = WEFT_ADAGRAD, .clip_value = 0.4}, .regulariser = {.l1 = 0.3}), 1},
    {"rmsprop", SOLVER(.solver = {.rate = 0.01, .kind = WEFT_RMSPROP}), 1},
    {"adam", SOLVER(.solver = {.rate = 0.01, .kind = WEFT_ADAM}), 1},
    {"adam, a half", SOLVER(.solver = {.rate = 0.01, .kind = WEFT_ADAM}), 0.5},
    {"adamw, l1, clipped", SOLVER(.solver = {.rate = 0.01, .kind = WEFT_ADAM, .weight_decay = 0.1, .clip_value = 0.7}, .regulariser = {.l1 = 0.05}), 1},
    {"ftrl", {.kind = WEFT_TABLE_FTRL}, 1},
    {"ftrl, l1, l2", {.kind = WEFT_TABLE_FTRL, .alpha = 0.5, .beta = 2, .l1 = 0.3, .l2 = 0.3}, 1},
};

/* How a store is asked. */
typedef enum way { DENSE, DENSE_PLACES, SPARSE, WAYS } way;

static uint64_t key_of(way how, int row) { return how == SPARSE ? (uint64_t)row * UINT64_C(0x9e3779b97f4a7c15) : 40 + (uint64_t)row; }

static double error_of(weft_dtype dtype) {
    return dtype == WEFT_F64 ? 1e-12 : dtype == WEFT_BF16 ? 0x1p-8 : dtype == WEFT_F16 ? 0x1p-10 : 4e-6;
}

/* In step t the rows that t divides, so that each is updated another number of times; all at once without places. */
static void try_setting(const setting *s, weft_dtype dtype, way how) {
    bool         zero = s->rule.kind == WEFT_TABLE_FTRL;
    wefti_store *store = store_of((wefti_store_options){.sparse = how == SPARSE, .first = 40, .rows = ROWS, .width = WIDTH, .dtype = dtype, .rule = s->rule,
                                                       .start = zero ? WEFT_START_ZERO : WEFT_START_CONSTANT, .low = 0.75});
    model        rows[ROWS] = {0};
    uint64_t     keys[ROWS], places[ROWS];
    double       updates[ROWS * WIDTH], values[ROWS * WIDTH];
    for (int row = 0; row < ROWS; row++)
        for (int i = 0; i < WIDTH; i++) rows[row].theta[i] = zero ? 0 : 0.75;
    for (int step = 1; step <= STEPS; step++) {
        int count = 0;
        for (int row = 0; row < ROWS; row++) {
            if (how != DENSE && row % step) continue;
            double update[WIDTH];
            for (int i = 0; i < WIDTH; i++) {
                put(dtype, updates, count * WIDTH + i, noise(row * WIDTH + i, step));
                update[i] = get(dtype, updates, count * WIDTH + i);
            }
            update_model(s, &rows[row], update);
            keys[count++] = key_of(how, row);
        }
        OK(wefti_store_find(store, keys, count, true, places));
        OK(wefti_store_apply(store, how == DENSE ? NULL : places, 0, count, updates, s->scale));
    }
    for (int row = 0; row < ROWS; row++) keys[row] = key_of(how, row);
    OK(wefti_store_find(store, keys, ROWS, false, places));
    cr_assert_eq(wefti_store_read(store, keys, how == DENSE ? NULL : places, 0, ROWS, values), WEFT_OK);
    for (int row = 0; row < ROWS; row++)
        for (int i = 0; i < WIDTH; i++) {
            double got = get(dtype, values, row * WIDTH + i), wanted = rows[row].theta[i];
            cr_assert_float_eq(got, wanted, error_of(dtype) * (1 + fabs(wanted)), "%s, %s, way %d: row %d element %d is %.17g, not %.17g", s->name,
                               weft_dtype_name(dtype), (int)how, row, i, got, wanted);
        }
    wefti_store_release(store);
}

Test(server_store_rules, follow_their_formulas) {
    const weft_dtype dtypes[] = {WEFT_F32, WEFT_F64, WEFT_BF16, WEFT_F16};
    for (size_t k = 0; k < WEFTI_COUNT(settings); k++)
        for (size_t d = 0; d < WEFTI_COUNT(dtypes); d++)
            for (way how = 0; how < WAYS; how++) try_setting(&settings[k], dtypes[d], how);
}

/* Runs of rows that go to a rule in one call give the bits of rows that go one by one, in any order: what a split over servers must not change. */
Test(server_store_rules, give_the_same_bits_in_runs_and_row_by_row) {
    enum { MANY = 700, WIDE = 9 };
    static float updates[MANY * WIDE], whole[MANY * WIDE], single[MANY * WIDE];
    uint64_t     keys[MANY], places[MANY], place;
    for (int i = 0; i < MANY * WIDE; i++) updates[i] = (float)noise(i, 3);
    for (uint64_t i = 0; i < MANY; i++) keys[i] = i * i + 5;
    for (size_t k = 0; k < WEFTI_COUNT(settings); k++) {
        wefti_store_options options = {.sparse = true, .width = WIDE, .rule = settings[k].rule};
        wefti_store        *runs = store_of(options), *rows = store_of(options);
        OK(wefti_store_find(runs, keys, MANY, true, places));
        for (int step = 0; step < 3; step++) {
            OK(wefti_store_apply(runs, places, 0, MANY, updates, settings[k].scale));
            OK(wefti_store_apply(runs, places + 100, 0, 50 * step, updates, 1));
            for (int i = MANY - 1; i >= 0; i--) {
                OK(wefti_store_find(rows, &keys[i], 1, true, &place));
                OK(wefti_store_apply(rows, &place, 0, 1, updates + i * WIDE, settings[k].scale));
                if (i >= 100 && i < 100 + 50 * step) OK(wefti_store_apply(rows, &place, 0, 1, updates + (i - 100) * WIDE, 1));
            }
        }
        cr_assert_eq(wefti_store_read(runs, keys, places, 0, MANY, whole), WEFT_OK);
        OK(wefti_store_find(rows, keys, MANY, false, places));
        cr_assert_eq(wefti_store_read(rows, keys, places, 0, MANY, single), WEFT_OK);
        cr_assert_eq(memcmp(whole, single, sizeof whole), 0, "%s", settings[k].name);
        wefti_store_release(runs);
        wefti_store_release(rows);
    }
}

Test(server_store_rules, integers_wrap_and_divide_toward_zero) {
    int32_t      small[4] = {INT32_MAX, -7, 7, INT32_MIN}, more[4] = {1, -7, 7, -1}, got[4];
    int64_t      large[4] = {INT64_MAX, -7, 7, INT64_MIN}, extra[4] = {1, -7, 7, -1}, out[4];
    wefti_store *a = store_of((wefti_store_options){.rows = 2, .width = 2, .dtype = WEFT_I32});
    wefti_store *b = store_of((wefti_store_options){.rows = 2, .width = 2, .dtype = WEFT_I64});
    OK(wefti_store_apply(a, NULL, 0, 2, small, 1));
    OK(wefti_store_apply(a, NULL, 0, 2, more, 1));
    cr_assert_eq(wefti_store_read(a, NULL, NULL, 0, 2, got), WEFT_OK);
    cr_assert_arr_eq(got, ((int32_t[]){INT32_MIN, -14, 14, INT32_MAX}), sizeof got);
    OK(wefti_store_apply(b, NULL, 0, 2, large, 1));
    OK(wefti_store_apply(b, NULL, 0, 2, extra, 1));
    cr_assert_eq(wefti_store_read(b, NULL, NULL, 0, 2, out), WEFT_OK);
    cr_assert_arr_eq(out, ((int64_t[]){INT64_MIN, -14, 14, INT64_MAX}), sizeof out);
    /* A third: -7 becomes -2, 7 becomes 2, the ends go in too. */
    OK(wefti_store_apply(a, NULL, 0, 2, small, 1 / 3.0));
    cr_assert_eq(wefti_store_read(a, NULL, NULL, 0, 2, got), WEFT_OK);
    cr_assert_arr_eq(got, ((int32_t[]){INT32_MIN + 715827882, -16, 16, INT32_MAX - 715827882}), sizeof got);
    OK(wefti_store_apply(b, NULL, 1, 1, extra, 1 / 7.0));
    cr_assert_eq(wefti_store_read(b, NULL, NULL, 1, 1, out), WEFT_OK);
    cr_assert_arr_eq(out, ((int64_t[]){14, INT64_MAX - 1}), 2 * sizeof *out);
    /* 1/(1/93.0) is a little less than 93; by 92 these would be 5. */
    OK(wefti_store_apply(b, NULL, 0, 1, (int64_t[]){464, -464}, 1 / 93.0));
    cr_assert_eq(wefti_store_read(b, NULL, NULL, 0, 1, out), WEFT_OK);
    cr_assert_arr_eq(out, ((int64_t[]){INT64_MIN + 4, -18}), 2 * sizeof *out);
    wefti_store_release(a);
    wefti_store_release(b);
}

/* --- rules of one's own --- */

typedef struct witness {
    uint64_t    keys[64], refuse, too; /* seen; those that are refused, after they were written over */
    weft_status with;
    int64_t     updates[64];
    int         calls;
    weft_dtype  dtype;
} witness;

/* states: a sum, and a count of calls that were accepted; values = update*2 + sum */
static weft_status observe(void *context, const weft_row *row) {
    witness *w = context;
    cr_assert_eq(row->dtype, w->dtype);
    cr_assert_eq(row->width, WIDTH);
    for (int64_t i = 0; i < row->width; i++) {
        double sum = get(row->dtype, row->states[0], i) + get(row->dtype, row->update, i);
        put(row->dtype, row->states[0], i, sum);
        put(row->dtype, row->states[1], i, get(row->dtype, row->states[1], i) + 1);
        put(row->dtype, row->values, i, 2 * get(row->dtype, row->update, i) + sum);
    }
    if (w->calls < 64) {
        w->keys[w->calls] = row->key;
        w->updates[w->calls] = row->updates;
    }
    w->calls++;
    return row->key == w->refuse ? w->with : row->key == w->too ? WEFT_E_OVERFLOW : WEFT_OK;
}

static wefti_store *observed(witness *w, weft_table_function *function, weft_dtype dtype, bool sparse) {
    *function = (weft_table_function){"observe", 2, observe, w};
    w->dtype = dtype == WEFT_BF16 || dtype == WEFT_F16 ? WEFT_F32 : dtype;
    return store_of((wefti_store_options){.sparse = sparse, .first = 100, .rows = 6, .width = WIDTH, .dtype = dtype, .function = function,
                                          .rule = {.kind = WEFT_TABLE_USER, .function = "observe"}});
}

Test(server_store_rules, of_ones_own_see_the_row_and_keep_states) {
    const weft_dtype dtypes[] = {WEFT_F32, WEFT_F64, WEFT_BF16, WEFT_F16, WEFT_I32, WEFT_I64};
    for (size_t d = 0; d < WEFTI_COUNT(dtypes); d++)
        for (int sparse = 0; sparse < 2; sparse++) {
            witness             w = {.refuse = UINT64_MAX};
            weft_table_function function;
            wefti_store        *store = observed(&w, &function, dtypes[d], sparse);
            uint64_t            keys[3] = {101, 103, 104}, places[3];
            double              updates[3 * WIDTH], values[3 * WIDTH];
            for (int i = 0; i < 3 * WIDTH; i++) put(dtypes[d], updates, i, 4 * i);
            OK(wefti_store_find(store, keys, 3, true, places));
            for (int step = 0; step < 3; step++) OK(wefti_store_apply(store, places, 0, 3, updates, 0.5));
            cr_assert_eq(w.calls, 9);
            for (int call = 0; call < 9; call++) {
                cr_assert_eq(w.keys[call], keys[call % 3]);
                cr_assert_eq(w.updates[call], call / 3);
            }
            cr_assert_eq(wefti_store_read(store, keys, places, 0, 3, values), WEFT_OK);
            for (int i = 0; i < 3 * WIDTH; i++) cr_assert_eq(get(dtypes[d], values, i), 2 * 2 * i + 3 * 2 * i, "%s", weft_dtype_name(dtypes[d]));
            wefti_store_release(store);
        }
}

Test(server_store_rules, of_ones_own_that_fail_leave_the_row_as_it_was) {
    witness             w = {.refuse = 103, .with = WEFT_E_NAN};
    weft_table_function function;
    wefti_store        *store = observed(&w, &function, WEFT_F32, true);
    uint64_t            keys[3] = {101, 103, 104}, places[3];
    float               updates[3 * WIDTH], before[3 * WIDTH], after[3 * WIDTH];
    for (int i = 0; i < 3 * WIDTH; i++) updates[i] = (float)i + 1;
    OK(wefti_store_find(store, keys, 3, true, places));
    cr_assert_eq(wefti_store_apply(store, places, 0, 3, updates, 1), WEFT_E_NAN);
    cr_assert(strstr(weft_error_message(), "103") && strstr(weft_error_message(), "observe") && strstr(weft_error_message(), "'t'"), "%s", weft_error_message());
    cr_assert_eq(w.calls, 2);
    cr_assert_eq(wefti_store_read(store, keys, places, 0, 3, after), WEFT_OK);
    for (int i = 0; i < 3 * WIDTH; i++) cr_assert_eq(after[i], i < WIDTH ? 3 * updates[i] : 0, "%d", i);
    /* Its states and its count are as they were, too. */
    w.refuse = UINT64_MAX;
    OK(wefti_store_apply(store, places + 1, 0, 1, updates + WIDTH, 1));
    cr_assert_eq(w.updates[2], 0);
    cr_assert_eq(wefti_store_read(store, keys + 1, places + 1, 0, 1, after), WEFT_OK);
    for (int i = 0; i < WIDTH; i++) cr_assert_eq(after[i], 3 * updates[WIDTH + i]);

    /* A sum goes on, and tells the first failure. */
    wefti_sum *sum;
    OK(wefti_sum_create(store, &sum));
    cr_assert_eq(wefti_store_read(store, keys, places, 0, 3, before), WEFT_OK);
    OK(wefti_sum_add(sum, places, 0, 3, updates));
    w = (witness){.refuse = 101, .with = WEFT_E_SHAPE, .too = 104, .dtype = WEFT_F32};
    cr_assert_eq(wefti_sum_apply(sum, 1), WEFT_E_SHAPE);
    cr_assert_not_null(strstr(weft_error_message(), "101"));
    cr_assert_eq(w.calls, 3);
    cr_assert_eq(wefti_store_read(store, keys, places, 0, 3, after), WEFT_OK);
    for (int i = 0; i < 3 * WIDTH; i++) cr_assert_eq(before[i] != after[i], i / WIDTH == 1, "%d", i);
    /* And is empty then. */
    cr_assert_eq(wefti_sum_rows(sum), 0);
    OK(wefti_sum_apply(sum, 1));
    cr_assert_eq(w.calls, 3);
    wefti_sum_release(sum);
    wefti_store_release(store);
}

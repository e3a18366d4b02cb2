/* What the parameter server's store does where it may or can not: memory is counted to the byte and bounded, what fails changes nothing, nothing is
 * taken in steady state; and what a table may be. */
#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/server/store.h"

#define OK(call) cr_assert_eq((call), WEFT_OK, "%s: %s", #call, weft_error_message())
#define FAILS(status, call, part)                                                                                    \
    do {                                                                                                             \
        weft_status fails_got = (call);                                                                              \
        cr_assert_eq(fails_got, status, "%s gave %s: %s", #call, weft_status_name(fails_got), weft_error_message()); \
        cr_assert(strstr(weft_error_message(), part), "'%s' does not say '%s'", weft_error_message(), part);         \
    } while (0)

static wefti_store *store_of(wefti_store_options options) {
    wefti_store *store = NULL;
    options.name = "t";
    OK(wefti_store_create(&options, &store));
    return store;
}

static weft_memory_counts memory(void) {
    weft_memory_counts counts;
    weft_memory_read(&counts);
    return counts;
}

static const weft_table_rule adam = {.kind = WEFT_TABLE_SOLVER, .solver = {.rate = 0.1, .kind = WEFT_ADAM}};

static uint64_t key_of(uint64_t i) { return i * UINT64_C(0x9e3779b97f4a7c15); }

Test(server_store_limits, bytes_are_counted_exactly) {
    enum { MANY = 30000 };
    static uint64_t keys[MANY], places[MANY];
    for (uint64_t i = 0; i < MANY; i++) keys[i] = key_of(i);
    wefti_store *store = store_of((wefti_store_options){.sparse = true, .width = 11, .rule = adam});
    uint64_t     fixed = memory().held_bytes;
    cr_assert_eq(wefti_store_bytes(store), 0);
    for (int count = 1; count < MANY; count = count * 3 + 1) {
        OK(wefti_store_find(store, keys, count, true, places));
        cr_assert_eq(memory().held_bytes - fixed, wefti_store_bytes(store));
    }
    /* Three arrays of 11 floats, a count, a key, an index entry at two thirds to a third of its load; at most twice that, and half a block more. */
    cr_assert_leq(wefti_store_bytes(store), (size_t)wefti_store_rows(store) * (3 * 44 + 16 + 48) + (2 << 20));
    wefti_store_release(store);
    store = store_of((wefti_store_options){.rows = 1000, .width = 3});
    cr_assert_eq(wefti_store_bytes(store), 1000 * 3 * 4);
    wefti_store_release(store);
    store = store_of((wefti_store_options){.rows = 1024, .width = 4, .dtype = WEFT_BF16, .rule = adam}); /* held as f32, with two states and counts */
    cr_assert_eq(wefti_store_bytes(store), 1024 * (3 * 16 + 8));
    wefti_store_release(store);
}

Test(server_store_limits, dense_tables_are_bounded_before_anything_is_taken) {
    wefti_store_options o = {.rows = 1000, .width = 3, .most_bytes = 11999, .name = "weights"};
    wefti_store        *store;
    weft_memory_counts before = memory(), after;
    FAILS(WEFT_E_NO_MEMORY, wefti_store_create(&o, &store), "12000 bytes");
    cr_assert_null(store);
    cr_assert(strstr(weft_error_message(), "'weights'") && strstr(weft_error_message(), "11999"), "%s", weft_error_message());
    after = memory();
    cr_assert_eq(after.held_bytes, before.held_bytes);
    cr_assert_lt(after.peak_bytes, before.held_bytes + 12000);
    o.most_bytes++;
    OK(wefti_store_create(&o, &store));
    wefti_store_release(store);
    const struct { uint64_t rows; int64_t width; } large[] = {{UINT64_MAX, 1}, {UINT64_C(1) << 62, 4}, {4, INT64_MAX}, {UINT64_C(1) << 61, 1},
                                                              {3, INT64_MAX / 4}, {UINT64_C(1) << 40, INT64_C(1) << 40}};
    for (size_t i = 0; i < WEFTI_COUNT(large); i++)
        for (int sparse = 0; sparse < 2; sparse++) {
            wefti_store_options huge = {.sparse = sparse, .rows = large[i].rows, .width = large[i].width, .rule = adam, .name = "t"};
            if (sparse && large[i].width < INT64_MAX / 4) continue; /* no row is over all bounds */
            cr_assert_eq(wefti_store_create(&huge, &store), WEFT_E_NO_MEMORY, "%zu", i);
        }
    cr_assert_eq(memory().held_bytes, before.held_bytes);
}

/* What a store says of itself, to be compared. */
typedef struct state {
    int64_t  rows;
    size_t   bytes;
    uint64_t held;
} state;
static state state_of(const wefti_store *store) { return (state){wefti_store_rows(store), wefti_store_bytes(store), memory().held_bytes}; }
static bool same(state a, state b) { return a.rows == b.rows && a.bytes == b.bytes && a.held == b.held; }

Test(server_store_limits, rows_that_are_over_the_bound_change_nothing) {
    enum { MANY = 5000, WIDTH = 8 };
    static uint64_t keys[MANY], places[MANY], again[MANY];
    static float    ones[MANY * WIDTH], got[MANY * WIDTH];
    for (uint64_t i = 0; i < MANY; i++) keys[i] = key_of(i);
    for (int i = 0; i < MANY * WIDTH; i++) ones[i] = (float)i;
    wefti_store *store = store_of((wefti_store_options){.sparse = true, .width = WIDTH, .most_bytes = 100000});
    OK(wefti_store_find(store, keys, 500, true, places));
    OK(wefti_store_apply(store, places, 0, 500, ones, 1));
    state before = state_of(store);
    FAILS(WEFT_E_NO_MEMORY, wefti_store_find(store, keys, MANY, true, again), "4500 rows more");
    char text[32];
    snprintf(text, sizeof text, "%zu are held", before.bytes);
    cr_assert(strstr(weft_error_message(), "100000") && strstr(weft_error_message(), text) && strstr(weft_error_message(), "'t'"), "%s", weft_error_message());
    cr_assert(same(before, state_of(store)));
    OK(wefti_store_find(store, keys, MANY, false, again));
    for (int i = 0; i < MANY; i++) cr_assert_eq(again[i], i < 500 ? places[i] : WEFTI_PLACE_NONE);
    cr_assert_eq(wefti_store_read(store, keys, again, 0, MANY, got), WEFT_OK);
    for (int i = 0; i < MANY * WIDTH; i++) cr_assert_eq(got[i], i < 500 * WIDTH ? ones[i] : 0);
    /* Rows one by one go on until the bound, and never over it. */
    int count = 500;
    while (count < MANY && wefti_store_find(store, &keys[count], 1, true, &places[count]) == WEFT_OK) count++;
    cr_assert(count > 800 && count < MANY, "%d", count);
    cr_assert_leq(wefti_store_bytes(store), 100000);
    wefti_store_release(store);
}

/* --- allocations that fail --- */

static int64_t countdown = -1;
static void   *scarce(void *context, size_t bytes, size_t alignment) {
    (void)context;
    if (countdown >= 0 && countdown-- == 0) return NULL;
    return aligned_alloc(alignment, wefti_align_up(bytes, alignment));
}
static void give_back(void *context, void *memory_given, size_t bytes) {
    (void)context;
    (void)bytes;
    free(memory_given);
}

/* One call with its n-th allocation failing, for all n until it does without: what failed said so and changed nothing, and then it works. */
Test(server_store_limits, a_find_that_finds_no_memory_changes_nothing) {
    enum { MANY = 20000, FEW = 100 };
    static uint64_t keys[MANY], places[MANY];
    for (uint64_t i = 0; i < MANY; i++) keys[i] = key_of(i);
    OK(weft_set_allocator(&(weft_allocator){scarce, give_back, NULL}));
    int64_t failed = 0;
    for (bool done = false; !done; failed++) {
        wefti_store *store = store_of((wefti_store_options){.sparse = true, .width = 20, .rule = adam});
        OK(wefti_store_find(store, keys, FEW, true, places));
        state before = state_of(store);
        countdown = failed;
        weft_status status = wefti_store_find(store, keys, MANY, true, places);
        done = countdown >= 0;
        countdown = -1;
        if (status != WEFT_OK) {
            cr_assert_eq(status, WEFT_E_NO_MEMORY);
            cr_assert(strstr(weft_error_message(), "'t', 19900 rows more"), "%s", weft_error_message());
            cr_assert(same(before, state_of(store)));
            OK(wefti_store_find(store, keys, MANY, false, places));
            for (int i = 0; i < MANY; i++) cr_assert_eq(places[i], i < FEW ? (uint64_t)i : WEFTI_PLACE_NONE);
            OK(wefti_store_find(store, keys, MANY, true, places));
        }
        for (int i = 0; i < MANY; i++) cr_assert_eq(places[i], (uint64_t)i);
        wefti_store_release(store);
        cr_assert_eq(memory().held_bytes, 0);
    }
    cr_assert_gt(failed, 5);
    OK(weft_set_allocator(NULL));
}

Test(server_store_limits, stores_and_sums_that_find_no_memory_leave_nothing) {
    enum { ROWS = 5000 };
    static float ones[ROWS], got[ROWS];
    for (int i = 0; i < ROWS; i++) ones[i] = 1;
    OK(weft_set_allocator(&(weft_allocator){scarce, give_back, NULL}));
    weft_table_function function = {"none", 2, NULL, NULL};
    for (bool done = false; !done;) {
        static int64_t      failed = 0;
        wefti_store        *store;
        wefti_store_options o = {.rows = 100, .width = 3, .rule = {.kind = WEFT_TABLE_USER}, .function = &function, .name = "t"};
        countdown = failed++;
        weft_status status = wefti_store_create(&o, &store);
        done = countdown >= 0;
        countdown = -1;
        cr_assert_eq(status, done ? WEFT_OK : WEFT_E_NO_MEMORY);
        cr_assert(done || !store);
        wefti_store_release(store);
        cr_assert_eq(memory().held_bytes, 0);
    }
    int64_t failed = 0;
    for (bool done = false; !done; failed++) {
        wefti_store *store = store_of((wefti_store_options){.rows = ROWS, .width = 1});
        wefti_sum   *sum;
        OK(wefti_sum_create(store, &sum));
        OK(wefti_sum_add(sum, NULL, 0, 1, ones));
        countdown = failed;
        weft_status status = wefti_sum_add(sum, NULL, 0, ROWS, ones);
        done = countdown >= 0;
        countdown = -1;
        cr_assert_eq(status, done ? WEFT_OK : WEFT_E_NO_MEMORY);
        cr_assert_eq(wefti_sum_rows(sum), done ? ROWS : 1);
        OK(wefti_sum_apply(sum, 1));
        cr_assert_eq(wefti_store_read(store, NULL, NULL, 0, ROWS, got), WEFT_OK);
        for (int i = 0; i < ROWS; i++) cr_assert_eq(got[i], done ? (i ? 1 : 2) : !i, "%d", i);
        wefti_sum_release(sum);
        wefti_store_release(store);
        cr_assert_eq(memory().held_bytes, 0);
    }
    cr_assert_gt(failed, 2);
    OK(weft_set_allocator(NULL));
}

static weft_status doubled(void *context, const weft_row *row) {
    (void)context;
    for (int64_t i = 0; i < row->width; i++) ((float *)row->values)[i] += 2 * ((const float *)row->update)[i];
    return WEFT_OK;
}

Test(server_store_limits, steady_state_allocates_nothing) {
    enum { ROWS = 2000, WIDTH = 12 };
    static uint64_t     keys[ROWS], places[ROWS];
    static double       updates[ROWS * WIDTH], values[ROWS * WIDTH]; /* bytes for any dtype, zero */
    weft_table_function function = {"doubled", 1, doubled, NULL};
    const struct { weft_table_rule rule; weft_dtype dtype; } tables[] = {
        {{.kind = WEFT_TABLE_ADD}, WEFT_F32}, {{.kind = WEFT_TABLE_ADD}, WEFT_F16},     {{.kind = WEFT_TABLE_ADD}, WEFT_I32},
        {adam, WEFT_F64},                     {adam, WEFT_BF16},                        {{.kind = WEFT_TABLE_FTRL}, WEFT_F32},
        {{.kind = WEFT_TABLE_AVERAGE}, WEFT_I64}, {{.kind = WEFT_TABLE_USER}, WEFT_BF16},
    };
    for (uint64_t i = 0; i < ROWS; i++) keys[i] = key_of(i);
    for (size_t k = 0; k < WEFTI_COUNT(tables); k++) {
        wefti_store *store = store_of((wefti_store_options){.sparse = true, .width = WIDTH, .dtype = tables[k].dtype, .rule = tables[k].rule, .function = &function});
        wefti_sum   *sum;
        OK(wefti_sum_create(store, &sum));
        OK(wefti_store_find(store, keys, ROWS - 1, true, places)); /* the last key is never there */
        uint64_t before = 0;
        for (int round = 0; round < 4; round++) {
            if (round == 1) before = memory().allocations;
            OK(wefti_store_find(store, keys, ROWS - 1, true, places));
            OK(wefti_store_find(store, keys, ROWS, false, places));
            OK(wefti_store_apply(store, places, 0, ROWS - 1, updates, 0.25));
            cr_assert_eq(wefti_store_read(store, keys, places, 0, ROWS, values), WEFT_OK);
            for (int push = 0; push < 3; push++) OK(wefti_sum_add(sum, places, 0, ROWS - 1, updates));
            OK(wefti_sum_apply(sum, 0.5));
        }
        cr_assert_eq(memory().allocations, before, "table %zu", k);
        wefti_sum_release(sum);
        wefti_store_release(store);
    }
}

/* --- what a table may be --- */

Test(server_store_limits, tables_that_make_no_sense_are_refused_by_name) {
#define SOLVER(...) .rule = {.kind = WEFT_TABLE_SOLVER, __VA_ARGS__}
#define FTRL(...) .rule = {.kind = WEFT_TABLE_FTRL, __VA_ARGS__}
    const struct { weft_table_options table; weft_status status; const char *word; } bad[] = {
        {{.dtype = WEFT_U8}, WEFT_E_DTYPE, "u8"},
        {{.dtype = WEFT_BOOL}, WEFT_E_DTYPE, "bool"},
        {{.dtype = WEFT_DTYPE_COUNT}, WEFT_E_DTYPE, "dtype"},
        {{.rule = {.kind = (weft_table_rule_kind)9}}, WEFT_E_INVALID, "rule.kind"},
        {{.dtype = WEFT_I32, SOLVER(.solver = weft_sgd(0.1))}, WEFT_E_DTYPE, "i32"},
        {{.dtype = WEFT_I64, FTRL(.alpha = 0)}, WEFT_E_DTYPE, "FTRL"},
        {{.staleness = 1, .rule = {.kind = WEFT_TABLE_AVERAGE}}, WEFT_E_INVALID, "staleness"},
        {{.staleness = WEFT_TABLE_ASYNCHRONOUS, .rule = {.kind = WEFT_TABLE_AVERAGE}}, WEFT_E_INVALID, "staleness"},
        {{.rule = {.kind = WEFT_TABLE_AVERAGE, .mean = true}}, WEFT_E_INVALID, "rule.mean"},
        {{.staleness = 2, .rule = {.mean = true}}, WEFT_E_INVALID, "rule.mean"},
        {{SOLVER(.solver = weft_sgd(0))}, WEFT_E_INVALID, "learning rate"},
        {{SOLVER(.solver = weft_adam(0.1, .beta1 = 2))}, WEFT_E_INVALID, "beta1"},
        {{SOLVER(.solver = weft_lbfgs(1))}, WEFT_E_INVALID, "L-BFGS"},
        {{SOLVER(.solver = weft_sgd(0.1, .clip_norm = 1))}, WEFT_E_INVALID, "clip_norm"},
        {{SOLVER(.solver = weft_sgd(0.1, .schedule = {.warmup = 5}))}, WEFT_E_INVALID, "schedule"},
        {{SOLVER(.solver = weft_sgd(0.1, .schedule = {.kind = WEFT_COSINE, .steps = 5}))}, WEFT_E_INVALID, "schedule"},
        {{SOLVER(.solver = weft_sgd(0.1), .regulariser = {.l1 = -1})}, WEFT_E_INVALID, "regulariser.l1"},
        {{SOLVER(.solver = weft_sgd(0.1), .regulariser = {.l2 = NAN})}, WEFT_E_INVALID, "regulariser.l2"},
        {{SOLVER(.solver = weft_sgd(0.1), .regulariser = {.group = INFINITY})}, WEFT_E_INVALID, "regulariser.group"},
        {{FTRL(.alpha = -1)}, WEFT_E_INVALID, "rule.alpha"},
        {{FTRL(.beta = NAN)}, WEFT_E_INVALID, "rule.beta"},
        {{FTRL(.l1 = -1)}, WEFT_E_INVALID, "rule.l1"},
        {{FTRL(.l2 = INFINITY)}, WEFT_E_INVALID, "rule.l2"},
        {{FTRL(.l1 = 1), .start = WEFT_START_UNIFORM, .high = 1}, WEFT_E_INVALID, "start"},
        {{FTRL(.l1 = 1), .start = WEFT_START_CONSTANT, .low = 1}, WEFT_E_INVALID, "start"},
        {{.rule = {.kind = WEFT_TABLE_USER}}, WEFT_E_INVALID, "rule.function"},
        {{.rule = {.kind = WEFT_TABLE_USER, .function = ""}}, WEFT_E_INVALID, "rule.function"},
        {{.start = (weft_table_start)7}, WEFT_E_INVALID, "start 7"},
        {{.dtype = WEFT_I32, .start = WEFT_START_UNIFORM, .high = 1}, WEFT_E_DTYPE, "start"},
        {{.dtype = WEFT_I64, .start = WEFT_START_NORMAL, .high = 1}, WEFT_E_DTYPE, "start"},
        {{.dtype = WEFT_I32, .start = WEFT_START_CONSTANT, .low = 0.5}, WEFT_E_INVALID, "low"},
        {{.dtype = WEFT_I32, .start = WEFT_START_CONSTANT, .low = 0x1p31}, WEFT_E_INVALID, "i32"},
        {{.dtype = WEFT_I64, .start = WEFT_START_CONSTANT, .low = 0x1p63}, WEFT_E_INVALID, "i64"},
        {{.start = WEFT_START_CONSTANT, .low = 1e39}, WEFT_E_INVALID, "low"},
        {{.dtype = WEFT_F16, .start = WEFT_START_CONSTANT, .low = 70000}, WEFT_E_INVALID, "f16"},
        {{.dtype = WEFT_BF16, .start = WEFT_START_CONSTANT, .low = FLT_MAX}, WEFT_E_INVALID, "bf16"},
        {{.start = WEFT_START_CONSTANT, .low = NAN}, WEFT_E_INVALID, "low"},
        {{.start = WEFT_START_UNIFORM, .low = 1, .high = 0}, WEFT_E_INVALID, "above high"},
        {{.start = WEFT_START_UNIFORM, .high = INFINITY}, WEFT_E_INVALID, "high"},
        {{.dtype = WEFT_F64, .start = WEFT_START_UNIFORM, .low = -DBL_MAX, .high = DBL_MAX}, WEFT_E_INVALID, "too far"},
        {{.start = WEFT_START_NORMAL, .high = -1}, WEFT_E_INVALID, "deviation"},
    };
    for (size_t i = 0; i < WEFTI_COUNT(bad); i++) {
        weft_table_options table = bad[i].table;
        table.name = "weights";
        FAILS(bad[i].status, wefti_store_check(&table), bad[i].word);
        cr_assert_not_null(strstr(weft_error_message(), "'weights'"));
    }
    const weft_table_options good[] = {
        {.dtype = WEFT_F16, .start = WEFT_START_CONSTANT, .low = 65504},
        {.dtype = WEFT_I32, .start = WEFT_START_CONSTANT, .low = -0x1p31},
        {.dtype = WEFT_I64, .staleness = 3, .rule = {.kind = WEFT_TABLE_USER, .function = "f"}},
        {.start = WEFT_START_UNIFORM, .low = -1, .high = 1, SOLVER(.solver = weft_adamw(0.1, .clip_value = 1), .regulariser = {1, 1, 1}, .mean = true)},
        {.dtype = WEFT_BF16, FTRL(.l1 = 1)},
        {.dtype = WEFT_I32, .rule = {.kind = WEFT_TABLE_AVERAGE}, .start = WEFT_START_CONSTANT, .low = 3},
    };
    for (size_t i = 0; i < WEFTI_COUNT(good); i++) OK(wefti_store_check(&good[i]));
}

Test(server_store_limits, functions_with_too_many_states_are_refused) {
    weft_table_function function = {"many", 9, doubled, NULL};
    wefti_store        *store;
    wefti_store_options o = {.rows = 1, .width = 1, .rule = {.kind = WEFT_TABLE_USER}, .function = &function, .name = "t"};
    FAILS(WEFT_E_INVALID, wefti_store_create(&o, &store), "'many' has 9 states");
    function.states = -1;
    FAILS(WEFT_E_INVALID, wefti_store_create(&o, &store), "-1 states");
    o.function = NULL;
    FAILS(WEFT_E_INVALID, wefti_store_create(&o, &store), "no function");
    o = (wefti_store_options){.rows = 1, .width = 0, .name = "t"};
    FAILS(WEFT_E_INVALID, wefti_store_create(&o, &store), "0 elements");
    wefti_store_release(NULL);
    wefti_sum_release(NULL);
}

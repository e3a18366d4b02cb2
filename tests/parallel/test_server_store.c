/* The parameter server's store beside its rules (test_server_store_rules.c): places stay, first values depend on seed, key and column alone, halves are
 * rounded as core/tensor/half.h says, sums have the bits of their order, memory is counted to the byte, and what fails changes nothing. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor/half.h"
#include "core/tensor/philox.h"
#include "parallel/server/store.h"

#define OK(call) cr_assert_eq((call), WEFT_OK, "%s: %s", #call, weft_error_message())
static wefti_store *store_of(wefti_store_options options) {
    wefti_store *store = NULL;
    options.name = "t";
    OK(wefti_store_create(&options, &store));
    return store;
}

static uint64_t allocations(void) {
    weft_memory_counts counts;
    weft_memory_read(&counts);
    return counts.allocations;
}

/* Keys that differ, in no order, with the ends of the range. */
static uint64_t key_of(uint64_t i) { return i == 3 ? 0 : i == 5 ? UINT64_MAX : (i + 1) * UINT64_C(0x9e3779b97f4a7c15); }

/* --- places --- */

Test(server_store, places_are_given_once_and_stay) {
    enum { MANY = 60000, PART = 777 };
    static uint64_t keys[MANY], places[MANY], again[MANY];
    wefti_store    *store = store_of((wefti_store_options){.sparse = true, .width = 3, .dtype = WEFT_I64});
    for (uint64_t i = 0; i < MANY; i++) keys[i] = key_of(i);
    OK(wefti_store_find(store, keys, MANY, false, again));
    for (int i = 0; i < MANY; i++) cr_assert_eq(again[i], WEFTI_PLACE_NONE);
    cr_assert_eq(wefti_store_rows(store), 0);
    cr_assert_eq(wefti_store_bytes(store), 0);
    for (int begin = 0; begin < MANY; begin += PART) { /* half of each part is known already */
        int from = begin ? begin - PART / 2 : 0, count = begin + PART < MANY ? begin + PART - from : MANY - from;
        OK(wefti_store_find(store, keys + from, count, true, places + from));
        for (int i = from; i < from + count; i++) { /* values that tell rows apart, given once */
            int64_t row[3] = {i, -i, (int64_t)keys[i]};
            cr_assert_eq(places[i], (uint64_t)i);
            if (i >= begin) OK(wefti_store_apply(store, &places[i], 0, 1, row, 1));
        }
    }
    cr_assert_eq(wefti_store_rows(store), MANY);
    OK(wefti_store_find(store, keys, MANY, false, again));
    cr_assert_arr_eq(places, again, sizeof places);
    static int64_t rows[MANY][3];
    cr_assert_eq(wefti_store_read(store, keys, places, 0, MANY, rows), WEFT_OK);
    for (int i = 0; i < MANY; i++) {
        cr_assert_eq(wefti_store_key(store, places[i]), keys[i]);
        cr_assert(rows[i][0] == i && rows[i][1] == -i && rows[i][2] == (int64_t)keys[i], "row %d", i);
    }
    uint64_t strange = 12345, place;
    OK(wefti_store_find(store, &strange, 1, false, &place));
    cr_assert_eq(place, WEFTI_PLACE_NONE);
    wefti_store_release(store);
}

Test(server_store, dense_places_are_rows_less_the_first) {
    wefti_store *store = store_of((wefti_store_options){.first = 1000, .rows = 10, .width = 2});
    uint64_t     keys[3] = {1000, 1004, 1009}, places[3], outside[2] = {999, 1010};
    float        updates[6] = {1, 2, 3, 4, 5, 6}, values[20];
    OK(wefti_store_find(store, keys, 3, true, places));
    cr_assert(places[0] == 0 && places[1] == 4 && places[2] == 9);
    cr_assert_eq(wefti_store_key(store, 4), 1004);
    cr_assert_eq(wefti_store_rows(store), 10);
    OK(wefti_store_apply(store, places, 0, 3, updates, 1));
    OK(wefti_store_apply(store, NULL, 8, 2, updates, 1));
    cr_assert_eq(wefti_store_read(store, NULL, NULL, 0, 10, values), WEFT_OK);
    cr_assert_arr_eq(values, ((float[20]){1, 2, [8] = 3, [9] = 4, [16] = 1, [17] = 2, [18] = 8, [19] = 10}), sizeof values);
    OK(wefti_store_find(store, outside, 2, true, places));
    cr_assert(places[0] == WEFTI_PLACE_NONE && places[1] == WEFTI_PLACE_NONE);
    wefti_store_release(store);
    store = store_of((wefti_store_options){.first = 7, .rows = 0, .width = 2}); /* a server whose range is empty */
    cr_assert_eq(wefti_store_bytes(store), 0);
    wefti_store_release(store);
}

/* --- first values --- */

static double first_value(const wefti_store_options *o, uint64_t key, int64_t column) {
    weft_dtype held = o->dtype == WEFT_F64 ? WEFT_F64 : WEFT_F32;
    switch (o->start) {
    case WEFT_START_UNIFORM: return o->low + (o->high - o->low) * wefti_random_uniform(o->seed, key, column, held);
    case WEFT_START_NORMAL: return o->low + o->high * wefti_random_normal(o->seed, key, column, held);
    case WEFT_START_CONSTANT: return o->low;
    default: return 0;
    }
}

static void check_first(const wefti_store_options *o, uint64_t key, const void *row) {
    for (int64_t i = 0; i < o->width; i++) {
        double value = first_value(o, key, i);
        bool   same = false;
        switch (o->dtype) {
        case WEFT_F64: same = ((const double *)row)[i] == value; break;
        case WEFT_BF16: same = ((const uint16_t *)row)[i] == wefti_f32_to_bf16((float)value); break;
        case WEFT_F16: same = ((const uint16_t *)row)[i] == wefti_f32_to_f16((float)value); break;
        case WEFT_I32: same = ((const int32_t *)row)[i] == (int32_t)value; break;
        case WEFT_I64: same = ((const int64_t *)row)[i] == (int64_t)value; break;
        default: same = ((const float *)row)[i] == (float)value;
        }
        cr_assert(same, "start %d, %s, key %llu, column %lld", (int)o->start, weft_dtype_name(o->dtype), (unsigned long long)key, (long long)i);
    }
}

/* Whole, in two ranges, and sparse in another order, there and not there yet: all are the same function of seed, key and column. */
Test(server_store, first_values_depend_on_seed_key_and_column_alone) {
    enum { ROWS = 40, WIDTH = 7 };
    const weft_dtype dtypes[] = {WEFT_F32, WEFT_F64, WEFT_BF16, WEFT_F16, WEFT_I32, WEFT_I64};
    for (size_t d = 0; d < WEFTI_COUNT(dtypes); d++)
        for (weft_table_start start = WEFT_START_ZERO; start <= (d < 4 ? WEFT_START_NORMAL : WEFT_START_CONSTANT); start++) {
            wefti_store_options o = {.rows = ROWS, .width = WIDTH, .dtype = dtypes[d], .start = start, .low = -3, .high = 0.5, .seed = 99};
            size_t              row_bytes = WIDTH * weft_dtype_bytes(dtypes[d]);
            uint8_t             whole[ROWS * WIDTH * 8], part[ROWS * WIDTH * 8];
            wefti_store        *store = store_of(o);
            cr_assert_eq(wefti_store_read(store, NULL, NULL, 0, ROWS, whole), WEFT_OK);
            wefti_store_release(store);
            for (uint64_t key = 0; key < ROWS; key++) check_first(&o, key, whole + key * row_bytes);
            for (int half = 0; half < 2; half++) {
                wefti_store_options range = o;
                range.first = half ? 15 : 0;
                range.rows = half ? ROWS - 15 : 15;
                store = store_of(range);
                cr_assert_eq(wefti_store_read(store, NULL, NULL, 0, (int64_t)range.rows, part + range.first * row_bytes), WEFT_OK);
                wefti_store_release(store);
            }
            cr_assert_arr_eq(whole, part, ROWS * row_bytes);
            uint64_t keys[ROWS], places[ROWS];
            o.sparse = true;
            store = store_of(o);
            for (uint64_t i = 0; i < ROWS; i++) keys[i] = (i * 7) % ROWS;
            OK(wefti_store_find(store, keys, 20, true, places));
            OK(wefti_store_find(store, keys, ROWS, false, places));
            cr_assert_eq(wefti_store_read(store, keys, places, 0, ROWS, part), WEFT_OK);
            for (int i = 0; i < ROWS; i++) cr_assert_arr_eq(part + (size_t)i * row_bytes, whole + keys[i] * row_bytes, row_bytes);
            wefti_store_release(store);
        }
    /* Another seed is another table. */
    float        a[WIDTH], b[WIDTH];
    wefti_store *one = store_of((wefti_store_options){.rows = 1, .width = WIDTH, .start = WEFT_START_UNIFORM, .high = 1, .seed = 1});
    wefti_store *two = store_of((wefti_store_options){.rows = 1, .width = WIDTH, .start = WEFT_START_UNIFORM, .high = 1, .seed = 2});
    cr_assert_eq(wefti_store_read(one, NULL, NULL, 0, 1, a), WEFT_OK);
    cr_assert_eq(wefti_store_read(two, NULL, NULL, 0, 1, b), WEFT_OK);
    cr_assert_neq(memcmp(a, b, sizeof a), 0);
    wefti_store_release(one);
    wefti_store_release(two);
}

/* --- halves --- */

static uint16_t widened_and_rounded(weft_dtype dtype, uint16_t a, uint16_t b, bool both) {
    float x = dtype == WEFT_F16 ? wefti_f16_to_f32(a) : wefti_bf16_to_f32(a), y = dtype == WEFT_F16 ? wefti_f16_to_f32(b) : wefti_bf16_to_f32(b);
    float held = both ? x + y : x;
    return dtype == WEFT_F16 ? wefti_f32_to_f16(held) : wefti_f32_to_bf16(held);
}
static bool is_nan(weft_dtype dtype, uint16_t half) { return (half & 0x7fff) > (dtype == WEFT_F16 ? 0x7c00 : 0x7f80); }

/* All halves go in and come out; sums of two, of which one is far smaller, need every kind of rounding. */
Test(server_store, halves_are_held_wide_and_rounded_to_nearest_even) {
    enum { ALL = 65536 };
    static uint16_t first[ALL], second[ALL], got[ALL];
    for (int kind = 0; kind < 2; kind++) {
        weft_dtype   dtype = kind ? WEFT_BF16 : WEFT_F16;
        wefti_store *store = store_of((wefti_store_options){.rows = ALL / 16, .width = 16, .dtype = dtype, .rule = {.kind = WEFT_TABLE_AVERAGE}});
        wefti_store *adds = store_of((wefti_store_options){.rows = ALL / 16, .width = 16, .dtype = dtype});
        for (uint32_t i = 0; i < ALL; i++) {
            first[i] = (uint16_t)i;
            second[i] = (uint16_t)((i * 2654435761u >> 8 & 0x83ff) | ((i & 0x7c00) > 0x2c00 ? (i & 0x7c00) - 0x2c00 : i & 0x7c00));
        }
        OK(wefti_store_apply(store, NULL, 0, ALL / 16, first, 1));
        cr_assert_eq(wefti_store_read(store, NULL, NULL, 0, ALL / 16, got), WEFT_OK);
        for (int i = 0; i < ALL; i++) {
            if (is_nan(dtype, first[i])) cr_assert(is_nan(dtype, got[i]));
            else cr_assert_eq(got[i], first[i], "%s %04x comes back as %04x", weft_dtype_name(dtype), first[i], got[i]);
        }
        OK(wefti_store_apply(adds, NULL, 0, ALL / 16, first, 1));
        OK(wefti_store_apply(adds, NULL, 0, ALL / 16, second, 1));
        cr_assert_eq(wefti_store_read(adds, NULL, NULL, 0, ALL / 16, got), WEFT_OK);
        int inexact = 0;
        for (int i = 0; i < ALL; i++) {
            uint16_t wanted = widened_and_rounded(dtype, first[i], second[i], true);
            inexact += wanted == widened_and_rounded(dtype, first[i], 0, false);
            if (first[i] == 0x8000 && second[i] == 0x8000) continue; /* rows begin with +0 */
            if (is_nan(dtype, wanted)) cr_assert(is_nan(dtype, got[i]));
            else cr_assert_eq(got[i], wanted, "%s %04x + %04x is %04x, not %04x", weft_dtype_name(dtype), first[i], second[i], got[i], wanted);
        }
        cr_assert_gt(inexact, 1000);
        wefti_store_release(store);
        wefti_store_release(adds);
    }
}

/* --- sums of a clock --- */

/* Of element i in f32; the second push is of every third row only. */
static float sum_in_order(int32_t first, int32_t second, int32_t third, const float *const *push, int i, int width) {
    const int32_t order[3] = {first, second, third};
    float         sum = 0;
    bool          begun = false;
    for (int p = 0; p < 3; p++) {
        if (order[p] == 1 && i / width % 3) continue;
        sum = begun ? sum + push[order[p]][i] : push[order[p]][i];
        begun = true;
    }
    return sum;
}

Test(server_store_sum, has_the_bits_of_the_order_of_its_calls) {
    enum { ROWS = 300, WIDTH = 5, ALL = ROWS * WIDTH };
    static const int32_t orders[3][3] = {{0, 1, 2}, {2, 1, 0}, {1, 2, 0}};
    static float push[3][ALL], got[ALL];
    for (int p = 0; p < 3; p++)
        for (int i = 0; i < ALL; i++) push[p][i] = (float)(sin(i * 1.3 + p) * pow(10, (i * 7 + p * 3) % 9));
    int differ = 0;
    for (int sparse = 0; sparse < 2; sparse++) {
        wefti_store *store = store_of((wefti_store_options){.sparse = sparse, .rows = ROWS, .width = WIDTH});
        wefti_sum   *sum;
        uint64_t     keys[ROWS], places[ROWS];
        for (uint64_t i = 0; i < ROWS; i++) keys[i] = sparse ? i * i * 31 : i;
        OK(wefti_store_find(store, keys, ROWS, true, places));
        OK(wefti_sum_create(store, &sum));
        for (int clock = 0; clock < 3; clock++) {
            static float   before[ALL];
            const int32_t *order = orders[clock];
            cr_assert_eq(wefti_store_read(store, keys, places, 0, ROWS, before), WEFT_OK);
            for (int p = 0; p < 3; p++) {
                if (order[p] != 1) OK(wefti_sum_add(sum, sparse ? places : NULL, 0, ROWS, push[order[p]]));
                for (int row = 0; order[p] == 1 && row < ROWS; row += 3) OK(wefti_sum_add(sum, &places[row], 0, 1, push[1] + row * WIDTH));
            }
            cr_assert_eq(wefti_sum_rows(sum), ROWS);
            OK(wefti_sum_apply(sum, 0.5));
            cr_assert_eq(wefti_store_read(store, keys, places, 0, ROWS, got), WEFT_OK);
            for (int i = 0; i < ALL; i++) {
                const float *pushes[3] = {push[0], push[1], push[2]};
                float        forward = sum_in_order(order[0], order[1], order[2], pushes, i, WIDTH);
                cr_assert_eq(got[i], before[i] + 0.5f * forward, "element %d of clock %d", i, clock);
                differ += forward != sum_in_order(order[2], order[1], order[0], pushes, i, WIDTH);
            }
        }
        wefti_sum_release(sum);
        wefti_store_release(store);
    }
    cr_assert_gt(differ, 100); /* else the order were not seen */
}

Test(server_store_sum, of_one_push_is_that_push) {
    float        update[2] = {-0.0f, 3}, got[2];
    wefti_store *store = store_of((wefti_store_options){.rows = 4, .width = 2, .rule = {.kind = WEFT_TABLE_AVERAGE}});
    wefti_sum   *sum;
    OK(wefti_sum_create(store, &sum));
    OK(wefti_sum_add(sum, NULL, 2, 1, update));
    OK(wefti_sum_apply(sum, 1));
    cr_assert_eq(wefti_store_read(store, NULL, NULL, 2, 1, got), WEFT_OK);
    cr_assert(got[0] == 0 && signbit(got[0]) && got[1] == 3);
    wefti_sum_release(sum);
    wefti_store_release(store);
}

/* Over those that pushed the row, whatever the scale; rows that nobody pushed stay. Integers go toward zero, and do not wrap on the way. */
Test(server_store_sum, averages_over_those_that_pushed) {
    const weft_dtype dtypes[] = {WEFT_F32, WEFT_F64, WEFT_BF16, WEFT_F16, WEFT_I64};
    uint64_t         some[3] = {1, 2, 5}, one[1] = {2};
    for (size_t d = 0; d < WEFTI_COUNT(dtypes); d++) {
        wefti_store *store = store_of((wefti_store_options){.rows = 6, .width = 1, .dtype = dtypes[d], .rule = {.kind = WEFT_TABLE_AVERAGE},
                                                            .start = WEFT_START_CONSTANT, .low = 7});
        wefti_sum   *sum;
        double       in[4], out[6]; /* bytes for any dtype */
        float        given[3] = {-3, 4, 9}, more[3] = {-2, 1, 0}, last = 6;
        const double wanted[6] = {7, -2.5, 11 / 3.0, 7, 7, 4.5};
        OK(wefti_sum_create(store, &sum));
        for (int push = 0; push < 3; push++) {
            for (int i = 0; i < 3; i++) {
                float value = push == 0 ? given[i] : push == 1 ? more[i] : last;
                if (dtypes[d] == WEFT_F64) ((double *)in)[i] = value;
                else if (dtypes[d] == WEFT_BF16) ((uint16_t *)(void *)in)[i] = wefti_f32_to_bf16(value);
                else if (dtypes[d] == WEFT_F16) ((uint16_t *)(void *)in)[i] = wefti_f32_to_f16(value);
                else if (dtypes[d] == WEFT_I64) ((int64_t *)(void *)in)[i] = (int64_t)value;
                else ((float *)(void *)in)[i] = value;
            }
            OK(wefti_sum_add(sum, push < 2 ? some : one, 0, push < 2 ? 3 : 1, in));
        }
        cr_assert_eq(wefti_sum_rows(sum), 3);
        OK(wefti_sum_apply(sum, 0.125));
        cr_assert_eq(wefti_store_read(store, NULL, NULL, 0, 6, out), WEFT_OK);
        for (int i = 0; i < 6; i++) {
            double got = dtypes[d] == WEFT_F64    ? out[i]
                         : dtypes[d] == WEFT_BF16 ? (double)wefti_bf16_to_f32(((uint16_t *)(void *)out)[i])
                         : dtypes[d] == WEFT_F16  ? (double)wefti_f16_to_f32(((uint16_t *)(void *)out)[i])
                         : dtypes[d] == WEFT_I64  ? (double)((int64_t *)(void *)out)[i]
                                                  : (double)((float *)(void *)out)[i];
            double want = dtypes[d] == WEFT_I64 ? trunc(wanted[i]) : wanted[i];
            cr_assert_float_eq(got, want, dtypes[d] == WEFT_BF16 || dtypes[d] == WEFT_F16 ? 0.01 : 1e-6, "%s row %d is %g", weft_dtype_name(dtypes[d]), i, got);
        }
        wefti_sum_release(sum);
        wefti_store_release(store);
    }
    int32_t      high[2] = {INT32_MAX, INT32_MIN}, got[2];
    wefti_store *store = store_of((wefti_store_options){.rows = 1, .width = 2, .dtype = WEFT_I32, .rule = {.kind = WEFT_TABLE_AVERAGE}});
    wefti_store *adds = store_of((wefti_store_options){.rows = 1, .width = 2, .dtype = WEFT_I32});
    wefti_sum   *sums[2];
    OK(wefti_sum_create(store, &sums[0]));
    OK(wefti_sum_create(adds, &sums[1]));
    for (int i = 0; i < 6; i++) OK(wefti_sum_add(sums[i % 2], NULL, 0, 1, high));
    OK(wefti_sum_apply(sums[0], 1));
    OK(wefti_sum_apply(sums[1], 1 / 3.0));
    cr_assert_eq(wefti_store_read(store, NULL, NULL, 0, 1, got), WEFT_OK);
    cr_assert(got[0] == INT32_MAX && got[1] == INT32_MIN);
    cr_assert_eq(wefti_store_read(adds, NULL, NULL, 0, 1, got), WEFT_OK);
    cr_assert(got[0] == INT32_MAX && got[1] == INT32_MIN);
    for (int i = 0; i < 2; i++) wefti_sum_release(sums[i]);
    wefti_store_release(store);
    wefti_store_release(adds);
}

typedef struct order { uint64_t last; int calls; } order;
static weft_status ascending(void *context, const weft_row *row) {
    order *o = context;
    cr_assert(o->calls == 0 || row->key > o->last);
    cr_assert_eq(((const float *)row->update)[0], (float)row->key);
    o->last = row->key;
    o->calls++;
    return WEFT_OK;
}

/* A sum of some rows far apart holds some pages, gives rows in ascending order, and takes no more memory in the next clock. */
Test(server_store_sum, gives_rows_in_order_and_keeps_its_memory) {
    enum { ROWS = 500000, PUSHED = 1000 };
    order               seen = {0, 0};
    weft_table_function function = {"ascending", 0, ascending, &seen};
    wefti_store        *store = store_of((wefti_store_options){.rows = ROWS, .width = 1, .rule = {.kind = WEFT_TABLE_USER, .function = "ascending"},
                                                               .function = &function});
    wefti_sum          *sum;
    OK(wefti_sum_create(store, &sum));
    size_t   held = 0;
    uint64_t taken = 0;
    for (int clock = 0; clock < 3; clock++) {
        for (uint64_t i = 0; i < PUSHED; i++) {
            uint64_t place = i * 7919 % PUSHED * 13 + (uint64_t)clock;
            float    update = (float)place;
            OK(wefti_sum_add(sum, &place, 0, 1, &update));
        }
        cr_assert_eq(wefti_sum_rows(sum), PUSHED);
        if (clock) cr_assert_eq(held, wefti_sum_bytes(sum));
        held = wefti_sum_bytes(sum);
        cr_assert_lt(held, ROWS); /* bytes: far less than the 4 a row of all rows */
        seen = (order){0, 0};
        OK(wefti_sum_apply(sum, 1));
        cr_assert_eq(seen.calls, PUSHED);
        if (clock) cr_assert_eq(taken, allocations());
        taken = allocations();
    }
    wefti_sum_release(sum);
    wefti_store_release(store);
}

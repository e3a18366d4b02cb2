/* Local aggregation: sums that do not depend on threads or order, of integers and floats; each touched row is pushed once; refused pushes stay. */
#include <criterion/criterion.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor/half.h"
#include "parallel/server/exact.h"
#include "serving.h"
#include "weft/updates.h"

static uint64_t next(uint64_t *state) { /* xorshift */
    *state ^= *state << 13, *state ^= *state >> 7;
    return *state ^= *state << 17;
}
static float any_f32(uint64_t *random) {
    uint32_t bits = (uint32_t)(next(random) >> 16);
    float    value;
    if ((bits >> 23 & 0xff) == 0xff) bits ^= 1u << 29;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* --- exact sums --- */

/* Sums of two are those of IEEE arithmetic, over all exponents. */
Test(updates, sums_of_two_are_rounded_as_ieee_rounds) {
    uint64_t random = 7;
    for (int i = 0; i < 300000; i++) {
        uint64_t f32[WEFTI_EXACT_F32] = {0}, f64[WEFTI_EXACT_F64] = {0}, bits;
        uint32_t special = 0;
        float    a = any_f32(&random), b = any_f32(&random);
        if (i % 2) b = ldexpf(a, (int)(next(&random) % 60) - 30) * (i % 4 == 1 ? -1.0f : 1.0f); /* near it */
        if (isinf(b)) b = 1;
        wefti_exact_add_f32(f32, &special, a), wefti_exact_add_f32(f32, &special, b);
        cr_assert_eq(wefti_exact_f32(f32, special), a + b, "%a + %a: %a", (double)a, (double)b, (double)wefti_exact_f32(f32, special));
        bits = next(&random);
        if ((bits >> 52 & 0x7ff) == 0x7ff) bits ^= UINT64_C(1) << 60;
        double x, y;
        memcpy(&x, &bits, sizeof x);
        y = ldexp(x, (int)(next(&random) % 120) - 60) * -0.75;
        if (isinf(y)) y = 1;
        wefti_exact_add_f64(f64, &special, x), wefti_exact_add_f64(f64, &special, y);
        cr_assert_eq(wefti_exact_f64(f64, special), x + y, "%a + %a", x, y);
    }
}

Test(updates, sums_have_no_order) {
    enum { N = 2000 };
    uint64_t random = 99, there[WEFTI_EXACT_F32] = {0}, back[WEFTI_EXACT_F32] = {0};
    uint32_t special = 0;
    float    list[N];
    for (int i = 0; i < N; i++) list[i] = any_f32(&random);
    for (int i = 0; i < N; i++) wefti_exact_add_f32(there, &special, list[i]), wefti_exact_add_f32(back, &special, list[N - 1 - i]);
    cr_assert_eq(memcmp(there, back, sizeof there), 0);
    for (int i = 0; i < N; i++) wefti_exact_add_f32(there, &special, -list[i]);
    float nothing = wefti_exact_f32(there, special);
    cr_assert(nothing == 0 && !signbit(nothing));
    wefti_exact_add_f32(there, &special, INFINITY);
    cr_assert(isinf(wefti_exact_f32(there, special)));
    wefti_exact_add_f32(there, &special, -INFINITY);
    cr_assert(isnan(wefti_exact_f32(there, special)));
}

/* Halves: the nearest to the sum of all, which doubles hold exactly, and of two that are as near the even one. */
static bool is_nearest(double sum, uint16_t got, bool brain) {
    double distance = fabs((double)(brain ? wefti_bf16_to_f32(got) : wefti_f16_to_f32(got)) - sum);
    for (int step = -1; step <= 1; step += 2) {
        uint16_t other = (uint16_t)(got + step);
        if ((got == 0 && step < 0) || (other & 0x7fff) >= (brain ? 0x7f80 : 0x7c00)) continue;
        double far = fabs((double)(brain ? wefti_bf16_to_f32(other) : wefti_f16_to_f32(other)) - sum);
        if (far < distance || (far == distance && got & 1)) return false;
    }
    return true;
}

Test(updates, sums_of_halves_are_rounded_once) {
    uint64_t random = 11;
    int      apart = 0;
    for (int i = 0; i < 200000; i++) {
        uint64_t sum[WEFTI_EXACT_F32] = {0};
        uint32_t special = 0;
        bool     brain = i % 2;
        double   exact = 0;
        for (int k = 0; k < 3; k++) { /* numbers near each other in size, or far below */
            uint16_t half = (uint16_t)(brain ? 0x3800 + (next(&random) & 0xfff) : (k == 2 ? 0x0400 : 0x5000) + (next(&random) & 0x7ff));
            float    value = brain ? wefti_bf16_to_f32(half) : wefti_f16_to_f32(half);
            if (next(&random) & 1) value = -value;
            exact += (double)value;
            wefti_exact_add_f32(sum, &special, value);
        }
        float    odd = wefti_exact_odd_f32(sum, special), even = wefti_exact_f32(sum, special);
        uint16_t got = brain ? wefti_f32_to_bf16(odd) : wefti_f32_to_f16(odd);
        cr_assert(is_nearest(exact, got, brain), "%a: %04x", exact, (unsigned)got);
        apart += odd != even;
    }
    cr_assert_gt(apart, 1000, "only %d sums had more than 24 digits", apart);
}

/* --- tables --- */

enum { ROWS = 200, WIDTH = 50, EACH = 20000 };

typedef struct adder {
    weft_updates *updates;
    weft_dtype    dtype;
    int           thread, threads;
    weft_status   status;
} adder;

/* The i-th update, whoever adds it: numbers of very different sizes, so that orders would tell. */
static weft_status add_number(weft_updates *updates, weft_dtype dtype, uint64_t i) {
    uint64_t random = (i + 1) * UINT64_C(0x9e3779b97f4a7c15), row, column, r;
    next(&random);
    row = next(&random) % (i % 2 ? ROWS : 8), column = next(&random) % WIDTH, r = next(&random);
    float   f32 = ldexpf((float)(int32_t)r, (int)(r >> 32 & 63) - 48);
    double  f64 = ldexp((double)(int64_t)r, (int)(r >> 1 & 127) - 90);
    int32_t i32 = (int32_t)r;
    int64_t i64 = (int64_t)r;
    uint16_t half = (uint16_t)(r & 0xbfff); /* finite */
    const void *value = dtype == WEFT_F32 ? (void *)&f32 : dtype == WEFT_F64 ? (void *)&f64 : dtype == WEFT_I32 ? (void *)&i32 : (void *)&i64;
    if (dtype == WEFT_F16 || dtype == WEFT_BF16) value = &half;
    if (i % 100) return weft_updates_add_entry(updates, row, (int64_t)column, value);
    uint8_t values[WIDTH * sizeof(double)] = {0};
    for (size_t k = 0; k < WIDTH; k += 3) memcpy(values + k * weft_dtype_bytes(dtype), value, weft_dtype_bytes(dtype));
    return weft_updates_add(updates, row, values);
}

static void *run_adder(void *context) {
    adder *a = context;
    for (uint64_t i = (uint64_t)a->thread; i < EACH && a->status == WEFT_OK; i += (uint64_t)a->threads) a->status = add_number(a->updates, a->dtype, i);
    return NULL;
}

static weft_status by_threads(serving *self, weft_dtype dtype, int threads, bool hybrid, uint8_t *got) {
    weft_table   *table = NULL;
    weft_updates *updates = NULL;
    adder         adders[8];
    pthread_t     handles[8];
    char          name[32];
    snprintf(name, sizeof name, "%d by %d, %d", (int)dtype, threads, hybrid);
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = name, .rows = ROWS, .width = WIDTH, .dtype = dtype, .hybrid = hybrid}, &table));
    WEFTI_TRY(weft_updates_create(table, &updates));
    for (int i = 0; i < threads; i++) {
        adders[i] = (adder){updates, dtype, i, threads, WEFT_OK};
        EXPECT(pthread_create(&handles[i], NULL, run_adder, &adders[i]) == 0, "thread %d", i);
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(handles[i], NULL);
        EXPECT(adders[i].status == WEFT_OK, "thread %d: %s", i, weft_status_name(adders[i].status));
    }
    WEFTI_TRY(weft_updates_flush(updates));
    EXPECT(weft_updates_pushed(updates) == ROWS, "%lld rows", (long long)weft_updates_pushed(updates));
    WEFTI_TRY(weft_updates_flush(updates));
    EXPECT(weft_updates_pushed(updates) == ROWS, "%lld rows after a flush of nothing", (long long)weft_updates_pushed(updates));
    WEFTI_TRY(weft_table_clock(table));
    WEFTI_TRY(weft_table_pull(table, NULL, got));
    weft_updates_release(updates);
    weft_table_release(table);
    return serving_meet(self);
}

static weft_status same_by_any_threads(serving *self) {
    static const weft_dtype dtypes[] = {WEFT_F32, WEFT_F64, WEFT_I32, WEFT_I64, WEFT_F16, WEFT_BF16};
    const size_t            room = (size_t)ROWS * WIDTH * sizeof(double);
    uint8_t                *one = malloc(room), *many = malloc(room);
    for (int d = 0; d < 6; d++) {
        size_t bytes = (size_t)ROWS * WIDTH * weft_dtype_bytes(dtypes[d]), set = 0;
        WEFTI_TRY(by_threads(self, dtypes[d], 1, false, one));
        for (size_t i = 0; i < bytes; i++) set += one[i] != 0;
        EXPECT(set > bytes / 4, "%zu bytes of %zu", set, bytes);
        for (int threads = 2; threads <= 8; threads += 3) {
            WEFTI_TRY(by_threads(self, dtypes[d], threads, threads == 5 && d < 4, many));
            EXPECT(memcmp(one, many, bytes) == 0, "%s by %d threads", weft_dtype_name(dtypes[d]), threads);
        }
    }
    free(one), free(many);
    return WEFT_OK;
}
static const weft_server_options beside = {0};
Test(updates, the_same_bits_by_any_number_of_threads_alone) { serve_case("shm", 1, NULL, same_by_any_threads); }
Test(updates, the_same_bits_by_any_number_of_threads_tcp) { serve_case("tcp", 2, &beside, same_by_any_threads); }

/* --- what is refused, and what stays --- */

static weft_status refusals(serving *self) {
    weft_table   *table = NULL;
    weft_updates *updates = NULL;
    int32_t       row[10] = {0}, got[40], one = 1;
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "t", .rows = 4, .width = 10, .dtype = WEFT_I32, .hybrid = true,
                                                                    .staleness = 1, .most_bytes = 4 * 16 + 24}, &table));
    WEFTI_TRY(weft_updates_create(table, &updates));
    REFUSED(weft_updates_add(updates, 4, row), WEFT_E_INVALID, "no row 4");
    REFUSED(weft_updates_add_entry(updates, 3, 10, &one), WEFT_E_INVALID, "no column 10");
    WEFTI_TRY(weft_updates_add(updates, 2, row)); /* touched, although nothing */
    WEFTI_TRY(weft_updates_flush(updates));
    EXPECT(weft_updates_pushed(updates) == 1, "%lld rows", (long long)weft_updates_pushed(updates));
    for (int64_t i = 0; i < 4; i++) WEFTI_TRY(weft_updates_add_entry(updates, 1, i, &one)); /* more than the table may hold */
    REFUSED(weft_updates_flush(updates), WEFT_E_NO_MEMORY, "most_bytes");
    WEFTI_TRY(weft_table_pull(table, NULL, got));
    for (int i = 0; i < 40; i++) EXPECT(got[i] == 0, "%d", i);
    REFUSED(weft_updates_flush(updates), WEFT_E_NO_MEMORY, "most_bytes"); /* they are still here */
    weft_updates_release(updates);
    weft_table_release(table);
    return WEFT_OK;
}
Test(updates, refuses_and_keeps) { serve_case("shm", 1, NULL, refusals); }

/* --- bytes --- */

/* One element in each of some rows, then some full rows of the same table: what is sent is entries the first time, and rows the second. */
static weft_status fewest_bytes(serving *self) {
    enum { N = 1000, K = 2000, FULL = 20 };
    weft_table        *table = NULL;
    weft_updates      *updates = NULL;
    weft_server_counts before, after;
    int32_t            one = 1, ones[K], *got = malloc((size_t)N * K * sizeof *got);
    for (int i = 0; i < K; i++) ones[i] = 1;
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "t", .rows = N, .width = K, .dtype = WEFT_I32}, &table));
    WEFTI_TRY(weft_updates_create(table, &updates));
    for (uint64_t row = 0; row < N; row++) WEFTI_TRY(weft_updates_add_entry(updates, row, (int64_t)(7 * row % K), &one));
    weft_server_count(self->server, &before);
    WEFTI_TRY(weft_updates_flush(updates));
    weft_server_count(self->server, &after);
    uint64_t moved = after.moved_value_bytes - before.moved_value_bytes;
    EXPECT(moved >= N * (4 + 4 + 2) && moved <= N * (4 + 4 + 2) + 24, "%llu bytes of %d entries", (unsigned long long)moved, N);
    for (uint64_t row = 0; row < FULL; row++) WEFTI_TRY(weft_updates_add(updates, row, ones));
    weft_server_count(self->server, &before);
    WEFTI_TRY(weft_updates_flush(updates));
    weft_server_count(self->server, &after);
    moved = after.moved_value_bytes - before.moved_value_bytes;
    EXPECT(moved == FULL * K * sizeof one, "%llu bytes of %d rows", (unsigned long long)moved, FULL);
    EXPECT(weft_updates_pushed(updates) == N + FULL, "%lld", (long long)weft_updates_pushed(updates));
    WEFTI_TRY(weft_table_clock(table));
    WEFTI_TRY(weft_table_pull(table, NULL, got));
    for (int i = 0; i < N * K; i++) EXPECT(got[i] == (i / K < FULL) + (i % K == 7 * (i / K) % K), "row %d, column %d: %d", i / K, i % K, got[i]);
    weft_updates_release(updates);
    weft_table_release(table);
    free(got);
    return WEFT_OK;
}
Test(updates, travel_in_the_fewest_bytes) { serve_case("tcp", 1, NULL, fewest_bytes); }

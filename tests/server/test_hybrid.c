/* Hybrid tables: after the same pushes, sets, clocks and a snapshot they have the bits of dense ones, they take the memory of the formula, and
 * they refuse what they are not for, and rows beyond their bound without a change. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/files.h"
#include "serving.h"
#include "words.h"

static const weft_server_options beside = {0}, one_apart = {.servers = 1, .dedicated = true};

/* --- the same as dense --- */

enum { ROWS = 24, WIDTH = 301, TURNS = 12 };

/* One of the four dtypes in two tables, one dense and one hybrid, which get the same calls. */
typedef struct pair {
    serving    *self;
    weft_dtype  dtype;
    weft_table *dense, *hybrid;
    uint8_t    *send, *receive[2]; /* [ROWS, WIDTH] */
    uint64_t    random;
} pair;

static void put_number(weft_dtype dtype, void *at, int64_t number) {
    float   f32 = (float)number / 3;
    double  f64 = (double)number / 3;
    int32_t i32 = (int32_t)number;
    memcpy(at, dtype == WEFT_F32 ? (void *)&f32 : dtype == WEFT_F64 ? (void *)&f64 : dtype == WEFT_I32 ? (void *)&i32 : (void *)&number,
           weft_dtype_bytes(dtype));
}

/* Few of them beside zero in most rows, all in every fifth; small, so that sums come back to zero. */
static void draw(pair *p) {
    for (int64_t row = 0; row < ROWS; row++)
        for (int64_t i = 0; i < WIDTH; i++) {
            uint64_t random = words_next(&p->random);
            int64_t  number = row % 5 == 4 || random % 16 == 0 ? (int64_t)(random >> 8 & 3) - 1 : 0;
            if (random >> 56 == 0) number = (int64_t)(random >> 8 & 0x3fffffff);
            put_number(p->dtype, p->send + (size_t)(row * WIDTH + i) * weft_dtype_bytes(p->dtype), number);
        }
}

static weft_status same(pair *p, int turn, int64_t rows) {
    const size_t element = weft_dtype_bytes(p->dtype);
    for (int64_t i = 0; i < rows * WIDTH; i++)
        EXPECT(memcmp(p->receive[0] + (size_t)i * element, p->receive[1] + (size_t)i * element, element) == 0, "%s, turn %d, row %lld, column %lld",
               weft_dtype_name(p->dtype), turn, (long long)(i / WIDTH), (long long)(i % WIDTH));
    return WEFT_OK;
}

static weft_status take_turn(pair *p, const weft_table_options *o, int turn) {
    uint64_t rows[ROWS / 3];
    draw(p);
    for (int i = 0; i < ROWS / 3; i++) rows[i] = (uint64_t)(3 * i + turn % 3);
    for (int k = 0; k < 2; k++) {
        weft_table *table = k ? p->hybrid : p->dense;
        weft_keys  *keys = NULL;
        WEFTI_TRY(weft_keys_create(table, rows, ROWS / 3, &keys));
        switch (turn % 4) {
        case 0: if (!o->sparse) WEFTI_TRY(weft_table_push(table, NULL, p->send)); break;
        case 1: WEFTI_TRY(weft_table_push(table, keys, p->send)); break;
        case 2: WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, rows, ROWS / 3, p->send, NULL)); break;
        default: WEFTI_TRY(weft_table_push_pull(table, keys, p->send, p->receive[k]));
        }
        if (turn % 4 != 3 || o->staleness != 0) WEFTI_TRY(weft_table_clock(table));
        weft_keys_release(keys);
    }
    if (turn % 4 == 3 && o->staleness == 0) WEFTI_TRY(same(p, turn, ROWS / 3));
    WEFTI_TRY(serving_meet(p->self)); /* all pushes are there */
    if (turn == 6 && p->self->rank == 0)
        for (int k = 0; k < 2; k++) WEFTI_TRY(weft_table_call_rows(k ? p->hybrid : p->dense, WEFT_SET, rows, ROWS / 3, p->send, NULL));
    WEFTI_TRY(serving_meet(p->self));
    uint64_t all[ROWS];
    for (uint64_t i = 0; i < ROWS; i++) all[i] = i;
    for (int k = 0; k < 2; k++) WEFTI_TRY(weft_table_call_rows(k ? p->hybrid : p->dense, WEFT_PULL, all, ROWS, NULL, p->receive[k]));
    WEFTI_TRY(same(p, turn, ROWS));
    return serving_meet(p->self);
}

static weft_status compare_one(serving *self, weft_dtype dtype, weft_table_options o) {
    const size_t bytes = (size_t)ROWS * WIDTH * weft_dtype_bytes(dtype);
    pair p = {.self = self, .dtype = dtype, .send = malloc(bytes), .receive = {malloc(bytes), malloc(bytes)},
              .random = UINT64_C(0x9e3779b97f4a7c15) * (uint64_t)(self->rank + 1)};
    char names[2][40];
    for (int k = 0; k < 2; k++)
        snprintf(names[k], sizeof names[k], "%d.%d.%d.%d.%d", k, (int)dtype, o.sparse, (int)o.staleness, o.rule.mean);
    o.dtype = dtype, o.rows = o.sparse ? 0 : ROWS, o.width = WIDTH, o.name = names[0];
    WEFTI_TRY(weft_table_create(self->server, &o, &p.dense));
    o.hybrid = true, o.name = names[1];
    WEFTI_TRY(weft_table_create(self->server, &o, &p.hybrid));
    EXPECT(weft_table_describe(p.hybrid)->hybrid && !weft_table_describe(p.dense)->hybrid, "%s", o.name);
    WEFTI_TRY(serving_meet(self)); /* clocks of both begin for all */
    for (int turn = 0; turn < TURNS; turn++) WEFTI_TRY(take_turn(&p, &o, turn));
    weft_table_release(p.dense);
    weft_table_release(p.hybrid);
    free(p.send), free(p.receive[0]), free(p.receive[1]);
    return WEFT_OK;
}

static weft_status compare_all(serving *self) {
    static const weft_dtype dtypes[] = {WEFT_I32, WEFT_I64, WEFT_F32, WEFT_F64};
    for (int i = 0; i < 4; i++) {
        bool exact = !weft_dtype_is_float(dtypes[i]) || self->workers == 1; /* floats that come one by one come in no order */
        WEFTI_TRY(compare_one(self, dtypes[i], (weft_table_options){.staleness = 0}));
        WEFTI_TRY(compare_one(self, dtypes[i], (weft_table_options){.sparse = true, .rule.mean = true}));
        if (exact) WEFTI_TRY(compare_one(self, dtypes[i], (weft_table_options){.staleness = 3}));
        if (exact) WEFTI_TRY(compare_one(self, dtypes[i], (weft_table_options){.sparse = true, .staleness = WEFT_TABLE_ASYNCHRONOUS}));
    }
    return WEFT_OK;
}
Test(hybrid, the_bits_of_dense_tables_alone) { serve_case("shm", 1, NULL, compare_all); }
Test(hybrid, the_bits_of_dense_tables_shm) { serve_case("shm", 3, &beside, compare_all); }
Test(hybrid, the_bits_of_dense_tables_tcp) { serve_case("tcp", 3, &one_apart, compare_all); }

/* --- what is refused --- */

static weft_status refusals(serving *self) {
    weft_table        *table = NULL;
    weft_table_options o = {.name = "t", .rows = 8, .width = 100, .dtype = WEFT_I32, .hybrid = true, .rule.kind = WEFT_TABLE_AVERAGE};
    REFUSED(weft_table_create(self->server, &o, &table), WEFT_E_UNSUPPORTED, "'average'");
    o.rule = (weft_table_rule){.kind = WEFT_TABLE_FTRL}, o.dtype = WEFT_F32;
    REFUSED(weft_table_create(self->server, &o, &table), WEFT_E_UNSUPPORTED, "'FTRL'");
    o.rule = (weft_table_rule){0}, o.dtype = WEFT_BF16;
    REFUSED(weft_table_create(self->server, &o, &table), WEFT_E_DTYPE, "hybrid");
    o.dtype = WEFT_I32, o.start = WEFT_START_CONSTANT, o.low = 3;
    REFUSED(weft_table_create(self->server, &o, &table), WEFT_E_INVALID, "WEFT_START_ZERO");
    o = (weft_table_options){.name = "t", .rows = 8, .width = 100, .dtype = WEFT_I32, .hybrid = true};
    WEFTI_TRY(weft_table_create(self->server, &o, &table));
    weft_table_release(table);
    o.hybrid = false;
    REFUSED(weft_table_create(self->server, &o, &table), WEFT_E_MISMATCH, "hybrid");
    return WEFT_OK;
}
Test(hybrid, refuses_what_it_is_not_for) { serve_case("shm", 1, NULL, refusals); }

/* Rows that would pass the bound: nothing of the push is there, and what fits goes on. */
static weft_status bounded(serving *self, int32_t staleness) {
    enum { N = 8, K = 1000, BOUND = 3000 };
    weft_table *table = NULL;
    int32_t    *send = calloc(N * K, sizeof *send), *got = calloc(N * K, sizeof *got), few[K] = {1};
    uint64_t    row = 5;
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "b", .rows = N, .width = K, .dtype = WEFT_I32, .hybrid = true,
                                                                    .most_bytes = BOUND, .staleness = staleness}, &table));
    for (int i = 0; i < N * K; i++) send[i] = i % 10 == 0; /* 100 entries a row: more than 600 bytes each */
    for (int turn = 0; turn < 3; turn++) {
        weft_server_counts counts;
        weft_status        status = weft_table_push(table, NULL, send);
        if (staleness == 0) {
            WEFTI_TRY(status);
            WEFTI_TRY(weft_table_clock(table));
            status = weft_table_pull(table, NULL, got);
        }
        REFUSED(status, WEFT_E_NO_MEMORY, "most_bytes is 3000");
        weft_server_count(self->server, &counts);
        EXPECT(counts.held_bytes <= BOUND, "%llu bytes", (unsigned long long)counts.held_bytes);
        WEFTI_TRY(weft_table_pull(table, NULL, got));
        for (int i = 0; i < N * K; i++) EXPECT(got[i] == (i == 5 * K ? turn : 0), "turn %d: element %d is %d", turn, i, (int)got[i]);
        WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, &row, 1, few, NULL));
        WEFTI_TRY(weft_table_clock(table));
    }
    weft_table_release(table);
    free(send), free(got);
    return WEFT_OK;
}
static weft_status bounded_sums(serving *self) { return bounded(self, 0); }
static weft_status bounded_pushes(serving *self) { return bounded(self, 1); }
Test(hybrid, a_clock_beyond_the_bound_changes_nothing) { serve_case("shm", 1, NULL, bounded_sums); }
Test(hybrid, a_push_beyond_the_bound_changes_nothing) { serve_case("shm", 1, NULL, bounded_pushes); }

/* --- snapshots --- */

static char saved[64];
static weft_status saves_and_loads(serving *self) {
    enum { K = 500, KEYS = 40 };
    weft_table *table = NULL;
    uint64_t    keys[KEYS];
    int64_t    *send = calloc(KEYS * K, sizeof *send), *got = calloc(KEYS * K, sizeof *got);
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "s", .sparse = true, .width = K, .dtype = WEFT_I64, .hybrid = true}, &table));
    for (uint64_t i = 0; i < KEYS; i++) keys[i] = i * i;
    for (int64_t i = 0; i < KEYS * K; i++) send[i] = i % (i / K + 1) == 0 ? i : 0;
    WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, keys, KEYS, send, NULL));
    WEFTI_TRY(weft_table_clock(table));
    WEFTI_TRY(weft_server_save(self->server, saved));
    WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, keys, KEYS, send, NULL));
    WEFTI_TRY(weft_table_clock(table));
    WEFTI_TRY(weft_table_call_rows(table, WEFT_PULL, keys, KEYS, NULL, got));
    for (int64_t i = 0; i < KEYS * K; i++) EXPECT(got[i] == 2 * self->workers * send[i], "%lld", (long long)i);
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 0) WEFTI_TRY(weft_server_load(self->server, saved));
    WEFTI_TRY(serving_meet(self));
    WEFTI_TRY(weft_table_call_rows(table, WEFT_PULL, keys, KEYS, NULL, got));
    for (int64_t i = 0; i < KEYS * K; i++) EXPECT(got[i] == self->workers * send[i], "loaded, %lld", (long long)i);
    weft_table_release(table);
    free(send), free(got);
    return WEFT_OK;
}
Test(hybrid, come_back_from_snapshots) {
    char folder[64], command[128];
    snprintf(folder, sizeof folder, "%s/weft-hybrid-XXXXXX", temporary_root());
    cr_assert_not_null(mkdtemp(folder));
    snprintf(saved, sizeof saved, "%s/snapshot", folder);
    serve_case("shm", 2, &beside, saves_and_loads);
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    cr_assert_eq(system(command), 0);
}

/* --- memory --- */

static weft_status few_words(serving *self) { return count_words(self, 5000, 1000, 500000); }
Test(hybrid, counts_of_words_take_a_sixth_of_dense_memory) { serve_case("shm", 1, NULL, few_words); }

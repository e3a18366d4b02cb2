/* Tables as programs use them, between real processes: roles, sums, clocks, key sets. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "serving.h"

static const weft_server_options beside = {0}, one_apart = {.servers = 1, .dedicated = true}, two_apart = {.servers = 2, .dedicated = true},
                                 no_thread = {.no_thread = true};

/* --- dense, staleness 0 --- */

enum { CLOCKS = 5 };

static float given(int32_t rank, int clock, int64_t i) { return (float)((rank + 1) * (clock + 1)) + (float)(i % 97) * 0.125f; }

static weft_status sums_of_clocks(serving *self, int64_t rows, int64_t width) {
    weft_table *table = NULL;
    int64_t     count = rows * width;
    float      *mine = malloc((size_t)count * sizeof *mine), *got = malloc((size_t)count * sizeof *got);
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "sums", .rows = rows, .width = width, .dtype = WEFT_F32}, &table));
    for (int clock = 0; clock < CLOCKS; clock++) {
        WEFTI_TRY(weft_table_pull(table, NULL, got));
        for (int64_t i = 0; i < count; i++) {
            float wanted = 0;
            for (int before = 0; before < clock; before++)
                for (int32_t rank = 0; rank < self->workers; rank++) wanted += given(rank, before, i);
            EXPECT(got[i] == wanted, "clock %d, element %lld: %g, not %g", clock, (long long)i, got[i], wanted);
        }
        for (int64_t i = 0; i < count; i++) mine[i] = given(self->rank, clock, i);
        WEFTI_TRY(weft_table_push(table, NULL, mine));
        WEFTI_TRY(weft_table_clock(table));
    }
    EXPECT(weft_table_time(table) == CLOCKS, "%lld", (long long)weft_table_time(table));
    weft_table_release(table);
    free(mine);
    free(got);
    return WEFT_OK;
}
static weft_status few_sums(serving *self) { return sums_of_clocks(self, 7, 3); }
static weft_status one_sum(serving *self) { return sums_of_clocks(self, 1, 1); }
static weft_status many_sums(serving *self) { return sums_of_clocks(self, 100000, 33); } /* 13 MB: several pieces */

Test(tables, sums_alone) { serve_case("shm", 1, NULL, few_sums); }
Test(tables, sums_shm) { serve_case("shm", 2, &beside, few_sums); }
Test(tables, sums_tcp) { serve_case("tcp", 3, &beside, few_sums); }
Test(tables, sums_apart) { serve_case("shm", 4, &two_apart, few_sums); }
Test(tables, sums_no_thread) { serve_case("tcp", 3, &no_thread, few_sums); }
Test(tables, one_row_of_several_servers) { serve_case("shm", 3, &beside, one_sum); }
Test(tables, large_shm) { serve_case("shm", 3, &one_apart, many_sums); }
Test(tables, large_tcp) { serve_case("tcp", 2, &beside, many_sums); }

static weft_status exchanged(serving *self) {
    enum { ROWS = 1000 };
    weft_table *table = NULL;
    int64_t     mine[ROWS], got[ROWS];
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "i64", .rows = ROWS, .dtype = WEFT_I64}, &table));
    for (int64_t clock = 0; clock < 20; clock++) {
        for (int64_t i = 0; i < ROWS; i++) mine[i] = (self->rank + 1) * (i + clock);
        WEFTI_TRY(weft_table_push_pull(table, NULL, mine, got));
        for (int64_t i = 0; i < ROWS; i++) {
            int64_t sum = 0;
            for (int64_t before = 0; before <= clock; before++) sum += self->workers * (self->workers + 1) / 2 * (i + before);
            EXPECT(got[i] == sum, "clock %lld, row %lld: %lld, not %lld", (long long)clock, (long long)i, (long long)got[i], (long long)sum);
        }
    }
    weft_table_release(table);
    return WEFT_OK;
}
Test(tables, push_pull_shm) { serve_case("shm", 2, &beside, exchanged); }
Test(tables, push_pull_tcp) { serve_case("tcp", 4, &two_apart, exchanged); }

/* The same bits whoever comes first: ranks push in every order, with numbers whose sum depends on it. */
static weft_status orders(serving *self) {
    weft_table *table = NULL;
    const float parts[4] = {1e8f, 1.0f, -1e8f, 0.25f};
    float       mine, got, wanted = 0;
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "order", .rows = 1, .dtype = WEFT_F32}, &table));
    for (int32_t rank = 0; rank < self->workers; rank++) wanted += parts[rank];
    for (int clock = 0; clock < 24; clock++) {
        for (int turn = 0; turn < self->workers; turn++) {
            if ((self->rank + clock) % self->workers == turn) {
                mine = parts[self->rank];
                WEFTI_TRY(weft_table_push(table, NULL, &mine));
                WEFTI_TRY(weft_table_clock(table));
            }
            WEFTI_TRY(serving_meet(self));
        }
        WEFTI_TRY(weft_table_pull(table, NULL, &got));
        float sum = wanted;
        for (int more = 0; more < clock; more++) sum += wanted;
        EXPECT(got == sum, "clock %d: %.9g, not %.9g", clock, got, sum);
    }
    weft_table_release(table);
    return WEFT_OK;
}
Test(tables, sums_have_an_order) { serve_case("shm", 4, &beside, orders); }

/* A pull sees the clocks before the one in which it was asked, however many its worker has ended by the time it is answered. The other worker ends
 * some of them, and leaves: then the rest are closed at once. */
static weft_status asks_ahead(serving *self) {
    enum { AHEAD = 6, OTHERS = 3 };
    weft_table    *table = NULL;
    weft_request  *pulls[AHEAD];
    float          mine = 1, got[AHEAD] = {0};
    weft_table_call call = {.kind = WEFT_PULL};
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "ahead", .rows = 1, .dtype = WEFT_F32}, &table));
    for (int clock = 0; clock < AHEAD && self->rank == 0; clock++) {
        call.receive = &got[clock];
        WEFTI_TRY(weft_table_push(table, NULL, &mine));
        WEFTI_TRY(weft_table_start_call(table, &call, &pulls[clock]));
        WEFTI_TRY(weft_table_clock(table));
    }
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 1) {
        mine = 10;
        for (int clock = 0; clock < OTHERS; clock++) {
            WEFTI_TRY(weft_table_push(table, NULL, &mine));
            WEFTI_TRY(weft_table_clock(table));
        }
        return WEFT_OK;
    }
    for (int clock = 0; clock < AHEAD; clock++) {
        WEFTI_TRY(weft_request_wait(pulls[clock], 0));
        float wanted = (float)(clock + 10 * (clock < OTHERS ? clock : OTHERS));
        EXPECT(got[clock] == wanted, "asked in clock %d: %g, not %g", clock, got[clock], wanted);
    }
    return WEFT_OK;
}
Test(tables, pulls_keep_their_clock) { serve_case("tcp", 3, &one_apart, asks_ahead); }

/* --- sparse --- */

static uint64_t key_of(int64_t i) { return (uint64_t)i * UINT64_C(0x9E3779B97F4A7C15); }

static weft_status counted(serving *self, weft_table_split split, int32_t staleness) {
    enum { KEYS = 3000, WIDTH = 4 };
    bool        ranges = split == WEFT_SPLIT_RANGE;
    weft_table *table = NULL;
    weft_keys  *keys = NULL;
    uint64_t   *list = malloc(2 * KEYS * sizeof *list);
    int32_t    *mine = malloc(KEYS * WIDTH * sizeof *mine), *got = malloc(KEYS * WIDTH * sizeof *got);
    int64_t     count = 0;
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "counts", .sparse = true, .width = WIDTH, .dtype = WEFT_I32, .split = split,
                                                                    .rows = ranges ? 100000 : 0, .staleness = staleness}, &table));
    for (int64_t i = 0; i < KEYS; i++) list[i] = list[2 * KEYS - 1 - i] = ranges ? (uint64_t)i * 33 : key_of(i); /* each twice, in no order */
    WEFTI_TRY(weft_keys_create(table, list, 2 * KEYS, &keys));
    const uint64_t *sorted = weft_keys_list(keys, &count);
    EXPECT(count == KEYS, "%lld keys", (long long)count);
    for (int64_t i = 1; i < count; i++) EXPECT(sorted[i] > sorted[i - 1], "%lld", (long long)i);
    for (int round = 0; round < 10; round++) {
        for (int64_t i = 0; i < KEYS * WIDTH; i++) mine[i] = (int32_t)(sorted[i / WIDTH] % 1000) + (int32_t)(i % WIDTH);
        WEFTI_TRY(weft_table_push(table, keys, mine));
        WEFTI_TRY(weft_table_pull(table, keys, got)); /* its own, at least */
        for (int64_t i = 0; i < KEYS * WIDTH && staleness != 0; i++)
            EXPECT(got[i] >= (round + 1) * mine[i], "round %d: %d, of %d", round, (int)got[i], (int)mine[i]);
        WEFTI_TRY(weft_table_clock(table));
    }
    WEFTI_TRY(serving_meet(self));
    WEFTI_TRY(weft_table_pull(table, keys, got));
    for (int64_t i = 0; i < KEYS * WIDTH; i++) EXPECT(got[i] == 10 * self->workers * mine[i], "element %lld: %d", (long long)i, (int)got[i]);
    weft_keys_release(keys);
    /* A few of them, by a list that is sent along, and one that nobody has pushed. */
    uint64_t few[3] = {ranges ? 33 : 0, ranges ? 34 : 5, ranges ? 66 : UINT64_MAX};
    WEFTI_TRY(weft_table_call_rows(table, WEFT_PULL, few, 3, NULL, got));
    EXPECT(got[WIDTH] == 0 && got[2 * WIDTH - 1] == 0, "a row that is not there: %d", (int)got[WIDTH]);
    weft_table_release(table);
    free(list);
    free(mine);
    free(got);
    return WEFT_OK;
}
static weft_status counted_hash(serving *self) { return counted(self, WEFT_SPLIT_DEFAULT, WEFT_TABLE_ASYNCHRONOUS); }
static weft_status counted_ranges(serving *self) { return counted(self, WEFT_SPLIT_RANGE, 2); }
static weft_status counted_sums(serving *self) { return counted(self, WEFT_SPLIT_HASH, 0); }

Test(tables, sparse_hash_shm) { serve_case("shm", 3, &beside, counted_hash); }
Test(tables, sparse_hash_tcp) { serve_case("tcp", 4, &two_apart, counted_hash); }
Test(tables, sparse_ranges) { serve_case("shm", 3, &one_apart, counted_ranges); }
Test(tables, sparse_sums) { serve_case("tcp", 3, &beside, counted_sums); }

/* A key set's list goes out once: the second round of requests is smaller by it. */
static weft_status lists_once(serving *self) {
    enum { KEYS = 5000 };
    weft_table *table = NULL;
    weft_keys  *keys = NULL;
    uint64_t    list[KEYS];
    float       values[KEYS] = {0};
    weft_server_counts counts[3];
    for (int64_t i = 0; i < KEYS; i++) list[i] = key_of(i + self->rank);
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "once", .sparse = true, .dtype = WEFT_F32,
                                                                    .staleness = WEFT_TABLE_ASYNCHRONOUS}, &table));
    WEFTI_TRY(weft_keys_create(table, list, KEYS, &keys));
    for (int i = 0; i < 3; i++) {
        weft_server_count(self->server, &counts[i]);
        if (i < 2) WEFTI_TRY(weft_table_push(table, keys, values));
    }
    uint64_t first = counts[1].sent_bytes - counts[0].sent_bytes, second = counts[2].sent_bytes - counts[1].sent_bytes;
    EXPECT(first - second == KEYS * sizeof(uint64_t), "%llu, then %llu bytes", (unsigned long long)first, (unsigned long long)second);
    EXPECT(second <= KEYS * sizeof(float) + 200, "%llu bytes for %d values", (unsigned long long)second, KEYS);
    weft_table_release(table); /* and its key sets */
    return WEFT_OK;
}
Test(tables, a_list_is_sent_once) { serve_case("shm", 2, &one_apart, lists_once); }

/* --- staleness --- */

/* Who is ahead waits: in clock c it sees everything before c - s of everybody, and the others are never further behind. */
static weft_status bounded(serving *self) {
    enum { STALENESS = 2, ROUNDS = 30 };
    weft_table *table = NULL;
    float       one = 1, got[8] = {0};
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "bounded", .rows = self->workers, .dtype = WEFT_F32,
                                                                    .staleness = STALENESS}, &table));
    uint64_t row = (uint64_t)self->rank;
    for (int clock = 0; clock < ROUNDS; clock++) {
        WEFTI_TRY(weft_table_pull(table, NULL, got));
        for (int32_t rank = 0; rank < self->workers; rank++) {
            EXPECT(got[rank] >= (float)(clock - STALENESS), "in clock %d, %g of rank %d", clock, got[rank], (int)rank);
            EXPECT(got[rank] <= (float)(clock + STALENESS + 1), "in clock %d, %g of rank %d", clock, got[rank], (int)rank);
        }
        EXPECT(got[self->rank] == (float)clock, "its own: %g", got[self->rank]);
        if (self->rank == 0) WEFTI_TRY(weft_table_call_rows(table, WEFT_PULL, &row, 1, NULL, got)); /* the slowest */
        WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, &row, 1, &one, NULL));
        WEFTI_TRY(weft_table_clock(table));
    }
    weft_table_release(table);
    return WEFT_OK;
}
Test(tables, bounded_staleness_shm) { serve_case("shm", 3, &beside, bounded); }
Test(tables, bounded_staleness_tcp) { serve_case("tcp", 4, &one_apart, bounded); }

/* --- rules --- */

/* AdamW on the mean of the workers' gradients is what one process computes from the mean. */
static weft_status adam(serving *self) {
    enum { ROWS = 50, WIDTH = 7, STEPS = 12 };
    weft_table *table = NULL;
    float       gradient[ROWS * WIDTH], got[ROWS * WIDTH];
    double      w[ROWS * WIDTH], m[ROWS * WIDTH] = {0}, v[ROWS * WIDTH] = {0};
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "adam", .rows = ROWS, .width = WIDTH, .dtype = WEFT_F32, .low = 0.5,
                                                                    .start = WEFT_START_CONSTANT,
                                                                    .rule = {.kind = WEFT_TABLE_SOLVER, .solver = weft_adamw(0.01), .mean = true}}, &table));
    for (int i = 0; i < ROWS * WIDTH; i++) w[i] = 0.5;
    for (int step = 1; step <= STEPS; step++) {
        for (int i = 0; i < ROWS * WIDTH; i++) gradient[i] = (float)sin(i + step) * (float)(self->rank + 1);
        WEFTI_TRY(weft_table_push_pull(table, NULL, gradient, got));
        for (int i = 0; i < ROWS * WIDTH; i++) {
            double g = (float)sin(i + step) * (self->workers + 1) / 2.0;
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.999 * v[i] + 0.001 * g * g;
            w[i] -= 0.01 * 0.01 * w[i];
            w[i] -= 0.01 * (m[i] / (1 - pow(0.9, step))) / (sqrt(v[i] / (1 - pow(0.999, step))) + 1e-8);
            EXPECT(fabs(got[i] - w[i]) < 1e-5, "step %d, element %d: %g, not %g", step, i, got[i], w[i]);
        }
    }
    weft_table_release(table);
    return WEFT_OK;
}
Test(tables, adam_on_the_mean) { serve_case("shm", 3, &beside, adam); }

static weft_status largest(void *context, const weft_row *row) {
    (void)context;
    const float *update = row->update;
    float       *values = row->values;
    if (row->key == 13) return WEFT_E_NAN;
    if (row->key == 14) return WEFT_E_AGAIN;
    for (int64_t i = 0; i < row->width; i++) values[i] = update[i] > values[i] ? update[i] : values[i];
    return WEFT_OK;
}
static const weft_table_function own[] = {{.name = "largest", .apply = largest}};
static const weft_server_options with_own = {.servers = 1, .functions = own, .function_count = 1};

static weft_status own_rule(serving *self) {
    weft_table *table = NULL;
    float       mine[20], got[20];
    weft_table_options options = {.name = "own", .rows = 10, .width = 2, .dtype = WEFT_F32, .staleness = WEFT_TABLE_ASYNCHRONOUS,
                                  .rule = {.kind = WEFT_TABLE_USER, .function = "largest"}};
    WEFTI_TRY(weft_table_create(self->server, &options, &table));
    for (int i = 0; i < 20; i++) mine[i] = (float)((i * 7 + self->rank * 5) % 11);
    WEFTI_TRY(weft_table_push(table, NULL, mine));
    WEFTI_TRY(serving_meet(self));
    WEFTI_TRY(weft_table_pull(table, NULL, got));
    for (int i = 0; i < 20; i++)
        for (int rank = 0; rank < self->workers; rank++) EXPECT(got[i] >= (float)((i * 7 + rank * 5) % 11), "%g", got[i]);
    weft_table_release(table);
    options.name = "unknown";
    options.rule.function = "smallest";
    REFUSED(weft_table_create(self->server, &options, &table), WEFT_E_NOT_FOUND, "has no function 'smallest'; it has: largest");
    return WEFT_OK;
}
Test(tables, a_rule_of_ones_own) { serve_case("tcp", 2, &with_own, own_rule); }

static weft_status failing_rule(serving *self) {
    weft_table *table = NULL;
    uint64_t    rows[2] = {12, 13};
    float       mine[2] = {3, 3}, got[20];
    weft_table_options options = {.name = "fails", .rows = 20, .dtype = WEFT_F32, .staleness = WEFT_TABLE_ASYNCHRONOUS,
                                  .rule = {.kind = WEFT_TABLE_USER, .function = "largest"}};
    WEFTI_TRY(weft_table_create(self->server, &options, &table));
    uint64_t again = 14;
    if (self->rank == 0) REFUSED(weft_table_call_rows(table, WEFT_PUSH, rows, 2, mine, NULL), WEFT_E_NAN, "13");
    if (self->rank == 0) REFUSED(weft_table_call_rows(table, WEFT_PUSH, &again, 1, mine, NULL), WEFT_E_INVALID, "14");
    WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, rows, 1, mine, NULL)); /* nobody else minds */
    WEFTI_TRY(serving_meet(self));
    WEFTI_TRY(weft_table_pull(table, NULL, got));
    EXPECT(got[12] == 3 && got[13] == 0, "%g, %g", got[12], got[13]);
    weft_table_release(table);
    return WEFT_OK;
}
Test(tables, a_rule_that_fails) { serve_case("shm", 2, &with_own, failing_rule); }

/* Rows are set whatever the rule, and a push says by which multiple of the rate it counts. */
static weft_status set_and_scheduled(serving *self, int32_t staleness) {
    enum { ROWS = 300 };
    weft_table *table = NULL;
    float       values[ROWS], got[ROWS];
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "scheduled", .rows = ROWS, .dtype = WEFT_F32, .staleness = staleness,
                                                                    .rule = {.kind = WEFT_TABLE_SOLVER, .solver = weft_sgd(0.5)}}, &table));
    for (int i = 0; i < ROWS; i++) values[i] = (float)i;
    if (self->rank == 1) {
        weft_request *request = NULL;
        WEFTI_TRY(weft_table_start_call(table, &(weft_table_call){.kind = WEFT_SET, .send = values}, &request));
        WEFTI_TRY(weft_request_wait(request, 0));
    }
    WEFTI_TRY(serving_meet(self));
    WEFTI_TRY(weft_table_pull(table, NULL, got));
    for (int i = 0; i < ROWS; i++) EXPECT(got[i] == (float)i, "row %d is %g", i, got[i]);
    WEFTI_TRY(serving_meet(self));
    for (int i = 0; i < ROWS; i++) values[i] = 1;
    double rates[3] = {0, 0.5, 0.25};
    for (int step = 0; step < 3; step++) {
        weft_request *request = NULL;
        WEFTI_TRY(weft_table_start_call(table, &(weft_table_call){.kind = WEFT_PUSH, .send = values, .rate = rates[step]}, &request));
        WEFTI_TRY(weft_request_wait(request, 0));
        WEFTI_TRY(weft_table_clock(table));
    }
    WEFTI_TRY(serving_meet(self));
    WEFTI_TRY(weft_table_pull(table, NULL, got));
    for (int i = 0; i < ROWS; i++) EXPECT(got[i] == (float)i - 0.5f * 1.75f * (float)self->workers, "row %d is %g", i, got[i]);
    weft_table_release(table);
    return WEFT_OK;
}
static weft_status set_in_sums(serving *self) { return set_and_scheduled(self, 0); }
static weft_status set_at_once(serving *self) { return set_and_scheduled(self, WEFT_TABLE_ASYNCHRONOUS); }
Test(tables, rows_that_are_set) { serve_case("shm", 3, &beside, set_in_sums); }
Test(tables, rows_that_are_set_at_once) { serve_case("tcp", 3, &one_apart, set_at_once); }

/* --- small pulls --- */

/* They go a way of their own, and yet behind what their worker pushed before, and wait for clocks. */
static weft_status small_pulls(serving *self, int32_t staleness) {
    enum { ROUNDS = 300, ROWS = 4, FLYING = 3 };
    weft_table *table = NULL;
    float       ones[ROWS] = {1, 1, 1, 1}, got[ROWS];
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "small", .rows = ROWS, .dtype = WEFT_F32, .staleness = staleness}, &table));
    for (int round = 0; round < ROUNDS; round++) {
        weft_request *flying[FLYING];
        for (int i = 0; i < FLYING; i++) WEFTI_TRY(weft_table_start_call(table, &(weft_table_call){.kind = WEFT_PUSH, .send = ones}, &flying[i]));
        if (staleness == 0) WEFTI_TRY(weft_table_clock(table));
        memset(got, 0xff, sizeof got);
        WEFTI_TRY(weft_table_pull(table, NULL, got));
        float mine = (float)(FLYING * (round + 1)), all = (float)(FLYING * ROUNDS * self->workers);
        for (int i = 0; i < ROWS; i++)
            EXPECT(staleness == 0 ? got[i] == mine * (float)self->workers : got[i] >= mine && got[i] <= all, "round %d: row %d is %g", round, i, got[i]);
        for (int i = 0; i < FLYING; i++) WEFTI_TRY(weft_request_wait(flying[i], 0));
    }
    WEFTI_TRY(serving_meet(self));
    weft_server_counts before, after;
    weft_server_count(self->server, &before);
    for (int i = 0; i < 10; i++) WEFTI_TRY(weft_table_pull(table, NULL, got));
    weft_server_count(self->server, &after);
    for (int i = 0; i < ROWS; i++) EXPECT(got[i] == (float)(FLYING * ROUNDS * self->workers), "row %d is %g", i, got[i]);
    EXPECT(after.requests - before.requests == 10, "%llu requests", (unsigned long long)(after.requests - before.requests));
    REFUSED(weft_table_pull(table, NULL, NULL), WEFT_E_INVALID, "NULL");
    weft_table_release(table);
    return WEFT_OK;
}
static weft_status small_sums(serving *self) { return small_pulls(self, 0); }
static weft_status small_at_once(serving *self) { return small_pulls(self, WEFT_TABLE_ASYNCHRONOUS); }
Test(tables, small_pulls_wait_for_clocks) { serve_case("shm", 3, &one_apart, small_sums); }
/* A timeout that the short form of a request has no room for. */
static weft_status late_clock(serving *self) {
    weft_table *table = NULL;
    float       got = 0;
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "late", .rows = 1, .dtype = WEFT_F32}, &table));
    if (self->rank == 1) nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    WEFTI_TRY(weft_table_clock(table));
    WEFTI_TRY(weft_table_pull(table, NULL, &got));
    weft_table_release(table);
    return WEFT_OK;
}
Test(tables, small_pulls_may_wait_for_ever) {
    const weft_server_options for_ever = {.servers = 1, .dedicated = true, .timeout_ns = INT64_MAX};
    serve_case("shm", 3, &for_ever, late_clock);
}
Test(tables, small_pulls_of_two_servers) { serve_case("shm", 4, &two_apart, small_at_once); }
Test(tables, small_pulls_tcp) { serve_case("tcp", 2, &beside, small_at_once); }

/* --- backup workers --- */

/* Of three one is late in every clock, by a long while: the others do not wait, what it pushes is dropped, and it goes on with them. */
static weft_status backed_up(serving *self) {
    enum { CLOCKS_OF_IT = 10, LATE = 2 };
    weft_table *table = NULL;
    float       mine[50], got[50];
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "backed up", .rows = 50, .dtype = WEFT_F32, .spares = 1}, &table));
    for (int i = 0; i < 50; i++) mine[i] = self->rank == LATE ? 1000.0f : 1.0f;
    uint64_t begin_ns = ranks_now();
    for (int clock = 0; clock < CLOCKS_OF_IT && self->rank != LATE; clock++) {
        WEFTI_TRY(weft_table_push_pull(table, NULL, mine, got));
        for (int i = 0; i < 50; i++) EXPECT(got[i] == 2.0f * (float)(clock + 1), "clock %d: row %d is %g", clock, i, got[i]);
    }
    EXPECT(self->rank == LATE || ranks_now() - begin_ns < 5 * WEFTI_SECOND_NS, "they waited %g s", (double)(ranks_now() - begin_ns) / 1e9);
    WEFTI_TRY(serving_meet(self));
    if (self->rank == LATE) { /* it comes to the first clock now */
        WEFTI_TRY(weft_table_push_pull(table, NULL, mine, got));
        for (int i = 0; i < 50; i++) EXPECT(got[i] == 2.0f * CLOCKS_OF_IT, "row %d is %g", i, got[i]);
    }
    WEFTI_TRY(serving_meet(self));
    weft_server_counts counts;
    weft_server_count(self->server, &counts);
    EXPECT(!weft_server_is_serving(self->server) || counts.late == 1, "%llu pushes were late", (unsigned long long)counts.late);
    /* Now all are in one clock, and the first two of it count: this time the one that was late is the first. */
    if (self->rank == LATE) WEFTI_TRY(weft_table_push(table, NULL, mine));
    if (self->rank == LATE) WEFTI_TRY(weft_table_clock(table));
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 0) WEFTI_TRY(weft_table_push_pull(table, NULL, mine, got));
    for (int i = 0; i < 50 && self->rank == 0; i++) EXPECT(got[i] == 2.0f * CLOCKS_OF_IT + 1001.0f, "row %d is %g", i, got[i]);
    WEFTI_TRY(serving_meet(self)); /* for who leaves is not waited for */
    weft_table_release(table);
    return WEFT_OK;
}
Test(tables, backup_workers_shm) { serve_case("shm", 3, &beside, backed_up); }
Test(tables, backup_workers_tcp) { serve_case("tcp", 4, &one_apart, backed_up); }

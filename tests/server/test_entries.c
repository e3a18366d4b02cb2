/* Entries: a table that is pushed and pulled by them has the bits of one of whole rows, in any kind of table and on any wire; what is wrong is refused
 * and changes nothing; replicas hold what was acknowledged; and as many bytes travel as were promised. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "serving.h"
#include "words.h"

static const weft_server_options beside = {0}, apart = {.servers = 2, .dedicated = true}, replicated = {.servers = 2, .dedicated = true, .replicas = 1};

enum { ROWS = 24, WIDTH = 301, TURNS = 9, MOST = ROWS * WIDTH };

static void put_number(weft_dtype dtype, void *at, int64_t number) {
    const uint16_t halves[] = {0, 0x3c00, 0x4000, 0xbc00}, brains[] = {0, 0x3f80, 0x4000, 0xbf80};
    float   f32 = (float)number / 3;
    double  f64 = (double)number / 3;
    int32_t i32 = (int32_t)number;
    const void *from = dtype == WEFT_F32 ? (void *)&f32 : dtype == WEFT_F64 ? (void *)&f64 : dtype == WEFT_I32 ? (void *)&i32 : (void *)&number;
    if (dtype == WEFT_F16) from = &halves[number & 3];
    if (dtype == WEFT_BF16) from = &brains[number & 3];
    memcpy(at, from, weft_dtype_bytes(dtype));
}

/* --- the same as rows --- */

/* Two tables, of which one gets rows, and the other the same as entries. */
typedef struct pair {
    serving      *self;
    weft_table_options o;
    weft_table   *rows, *entries;
    uint8_t      *send, *got, *again; /* [ROWS, WIDTH] */
    uint32_t     *counts, *columns;
    uint8_t      *values;
    weft_entries  pulled;
    uint64_t      random;
} pair;

/* `count` rows, as rows and as entries. Every fifth is full, the third of all has nothing; a value may come back to zero. */
static weft_entries draw(pair *p, int64_t count) {
    const size_t element = weft_dtype_bytes(p->o.dtype);
    int64_t      at = 0;
    for (int64_t row = 0; row < count; row++) {
        p->counts[row] = 0;
        for (int64_t i = 0; i < WIDTH; i++) {
            uint64_t random = words_next(&p->random);
            int64_t  number = row != 2 && (row % 5 == 4 || random % 16 == 0) ? (int64_t)(random >> 8 & 3) - 1 : 0;
            put_number(p->o.dtype, p->send + (size_t)(row * WIDTH + i) * element, number);
            if (number == 0 && random >> 60) continue; /* some zeros are entries, too */
            p->columns[at] = (uint32_t)i;
            put_number(p->o.dtype, p->values + (size_t)at++ * element, number);
            p->counts[row]++;
        }
    }
    return (weft_entries){.counts = p->counts, .columns = p->columns, .values = p->values};
}

static weft_status expand(pair *p, int64_t count, uint8_t *out) {
    const size_t element = weft_dtype_bytes(p->o.dtype);
    int64_t      at = 0;
    memset(out, 0, (size_t)(count * WIDTH) * element);
    for (int64_t row = 0; row < count; row++) {
        for (uint32_t i = 0; i < p->pulled.counts[row]; i++, at++) {
            const uint8_t *value = (const uint8_t *)p->pulled.values + (size_t)at * element;
            static const uint64_t zero;
            EXPECT(i == 0 || p->pulled.columns[at] > p->pulled.columns[at - 1], "row %lld: entry %u is of column %u after %u", (long long)row, i, p->pulled.columns[at],
                   p->pulled.columns[at - 1]);
            EXPECT(p->pulled.columns[at] < WIDTH && memcmp(value, &zero, element) != 0, "row %lld, column %u", (long long)row, p->pulled.columns[at]);
            memcpy(out + ((size_t)row * WIDTH + p->pulled.columns[at]) * element, value, element);
        }
    }
    EXPECT(at == p->pulled.count, "%lld entries of %lld", (long long)at, (long long)p->pulled.count);
    return WEFT_OK;
}

static weft_status same(pair *p, const char *which, int turn, int64_t count) {
    const size_t element = weft_dtype_bytes(p->o.dtype);
    for (int64_t i = 0; i < count * WIDTH; i++)
        EXPECT(memcmp(p->got + (size_t)i * element, p->again + (size_t)i * element, element) == 0, "%s of %s, staleness %d, %s%s, turn %d, row %lld, column %lld", which,
               weft_dtype_name(p->o.dtype), (int)p->o.staleness, p->o.sparse ? "sparse" : "dense", p->o.hybrid ? ", hybrid" : "", turn, (long long)(i / WIDTH),
               (long long)(i % WIDTH));
    return WEFT_OK;
}

static weft_status call(weft_table *table, const weft_table_call *how) {
    weft_request *request = NULL;
    WEFTI_TRY(weft_table_start_call(table, how, &request));
    return weft_request_wait(request, 0);
}

static weft_status take_turn(pair *p, int turn) {
    uint64_t     some[ROWS / 3], all[ROWS];
    weft_keys   *keys[2] = {NULL};
    weft_entries e = draw(p, turn % 3 == 0 && !p->o.sparse ? ROWS : ROWS / 3);
    bool         ticks = turn % 3 == 2 && p->o.staleness == 0;
    for (int i = 0; i < ROWS / 3; i++) some[i] = (uint64_t)(3 * i + turn % 2);
    for (uint64_t i = 0; i < ROWS; i++) all[i] = i;
    WEFTI_TRY(weft_keys_create(p->rows, some, ROWS / 3, &keys[0]));
    WEFTI_TRY(weft_keys_create(p->entries, some, ROWS / 3, &keys[1]));
    if (turn % 3 == 0 && !p->o.sparse) {
        WEFTI_TRY(weft_table_push(p->rows, NULL, p->send));
        WEFTI_TRY(call(p->entries, &(weft_table_call){.kind = WEFT_PUSH, .entries = &e}));
    } else if (turn % 3 == 2) {
        WEFTI_TRY(weft_table_push_pull(p->rows, keys[0], p->send, p->got));
        WEFTI_TRY(call(p->entries, &(weft_table_call){.kind = WEFT_PUSH_PULL, .keys = keys[1], .entries = &e, .pulled = &p->pulled}));
        WEFTI_TRY(expand(p, ROWS / 3, p->again));
        if (ticks) WEFTI_TRY(same(p, "what came back", turn, ROWS / 3));
    } else {
        WEFTI_TRY(weft_table_call_rows(p->rows, WEFT_PUSH, some, ROWS / 3, p->send, NULL));
        WEFTI_TRY(weft_table_push_entries(p->entries, some, ROWS / 3, &e));
    }
    if (!ticks) WEFTI_TRY(weft_table_clock(p->rows));
    if (!ticks) WEFTI_TRY(weft_table_clock(p->entries));
    weft_keys_release(keys[0]);
    weft_keys_release(keys[1]);
    WEFTI_TRY(serving_meet(p->self)); /* all pushes are there */
    WEFTI_TRY(weft_table_call_rows(p->rows, WEFT_PULL, all, ROWS, NULL, p->got));
    WEFTI_TRY(weft_table_call_rows(p->entries, WEFT_PULL, all, ROWS, NULL, p->again));
    WEFTI_TRY(same(p, "rows", turn, ROWS));
    WEFTI_TRY(weft_table_pull_entries(p->rows, all, ROWS, &p->pulled));
    WEFTI_TRY(expand(p, ROWS, p->again));
    WEFTI_TRY(same(p, "entries of pushed rows", turn, ROWS));
    WEFTI_TRY(weft_table_pull_entries(p->entries, all, ROWS, &p->pulled));
    WEFTI_TRY(expand(p, ROWS, p->again));
    WEFTI_TRY(same(p, "entries of pushed entries", turn, ROWS));
    return serving_meet(p->self);
}

static weft_status compare_one(serving *self, weft_table_options o) {
    const size_t bytes = (size_t)MOST * weft_dtype_bytes(o.dtype);
    pair p = {.self = self, .send = malloc(bytes), .got = malloc(bytes), .again = malloc(bytes), .values = malloc(bytes), .counts = malloc(ROWS * sizeof *p.counts),
              .columns = malloc(MOST * sizeof *p.columns), .random = UINT64_C(0x9e3779b97f4a7c15) * (uint64_t)(self->rank + 1)};
    char names[2][48];
    for (int k = 0; k < 2; k++) snprintf(names[k], sizeof names[k], "%d.%d.%d.%d.%d.%d", k, (int)o.dtype, o.sparse, o.hybrid, (int)o.staleness, o.rule.mean);
    o.rows = o.sparse ? 0 : ROWS, o.width = WIDTH;
    p.o = o, o.name = names[0];
    WEFTI_TRY(weft_table_create(self->server, &o, &p.rows));
    o.name = names[1];
    WEFTI_TRY(weft_table_create(self->server, &o, &p.entries));
    WEFTI_TRY(serving_meet(self)); /* clocks of both begin for all */
    for (int turn = 0; turn < TURNS; turn++) WEFTI_TRY(take_turn(&p, turn));
    weft_table_release(p.rows);
    weft_table_release(p.entries);
    weft_entries_release(&p.pulled);
    free(p.send), free(p.got), free(p.again), free(p.values), free(p.counts), free(p.columns);
    return WEFT_OK;
}

static weft_status compare_all(serving *self) {
    static const weft_dtype dtypes[] = {WEFT_I32, WEFT_F32, WEFT_I64, WEFT_F64, WEFT_F16, WEFT_BF16};
    for (int i = 0; i < 6; i++) {
        const bool hybrid = i < 4, alone = self->workers == 1 || !weft_dtype_is_float(dtypes[i]); /* floats that come one by one come in no order */
        WEFTI_TRY(compare_one(self, (weft_table_options){.dtype = dtypes[i], .hybrid = hybrid}));
        WEFTI_TRY(compare_one(self, (weft_table_options){.dtype = dtypes[i], .sparse = true, .rule.mean = true}));
        if (alone) WEFTI_TRY(compare_one(self, (weft_table_options){.dtype = dtypes[i], .sparse = true, .hybrid = hybrid, .staleness = 2}));
        if (alone) WEFTI_TRY(compare_one(self, (weft_table_options){.dtype = dtypes[i], .staleness = WEFT_TABLE_ASYNCHRONOUS}));
    }
    return WEFT_OK;
}
Test(entries, the_bits_of_rows_alone) { serve_case("shm", 1, NULL, compare_all); }
Test(entries, the_bits_of_rows_shm) { serve_case("shm", 3, &beside, compare_all); }
Test(entries, the_bits_of_rows_tcp) { serve_case("tcp", 4, &apart, compare_all); }
Test(entries, the_bits_of_rows_with_replicas) { serve_case("shm", 4, &replicated, compare_all); }

/* What is not there is what it begins with, and what another rule made of rows is pulled all the same. */
static weft_status pulls(serving *self) {
    weft_table  *table = NULL;
    weft_entries got = {0};
    uint64_t     keys[3] = {2, 5, 7};
    float        rows[3][10] = {{0}}, there[3][10];
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "adam", .sparse = true, .width = 10, .start = WEFT_START_CONSTANT, .low = 0.5,
                                                                    .rule = {.kind = WEFT_TABLE_SOLVER, .solver = weft_adam(0.5)}}, &table));
    rows[1][3] = rows[1][9] = 1; /* a step of 0.5 to zero */
    WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, keys + 1, 1, rows[1], NULL));
    WEFTI_TRY(weft_table_clock(table));
    WEFTI_TRY(weft_table_call_rows(table, WEFT_PULL, keys, 3, NULL, there));
    WEFTI_TRY(weft_table_pull_entries(table, keys, 3, &got));
    for (int row = 0, at = 0; row < 3; row++)
        for (uint32_t i = 0, column = 0; column < 10; column++) {
            bool is = there[row][column] != 0;
            EXPECT(!is || (i < got.counts[row] && got.columns[at] == column && ((const float *)got.values)[at] == there[row][column]), "row %d, column %u", row, column);
            if (is) i++, at++;
        }
    WEFTI_TRY(weft_table_pull_entries(table, keys, 0, &got));
    EXPECT(got.count == 0, "%lld", (long long)got.count);
    weft_entries_release(&got);
    weft_entries_release(NULL);
    weft_table_release(table);
    return WEFT_OK;
}
Test(entries, of_any_table_are_pulled) { serve_case("shm", 1, NULL, pulls); }

/* --- what is refused --- */

static weft_status refusals(serving *self) {
    weft_table  *table = NULL, *mean = NULL;
    uint64_t     rows[2] = {1, 3}, beyond = 8;
    int32_t      values[3] = {1, 2, 3}, all[80];
    uint32_t     counts[2] = {2, 1}, columns[3] = {4, 5, 9};
    weft_entries e = {.counts = counts, .columns = columns, .values = values}, got = {0};
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "t", .rows = 8, .width = 10, .dtype = WEFT_I32, .staleness = 1}, &table));
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "mean", .rows = 8, .width = 10, .rule.kind = WEFT_TABLE_AVERAGE}, &mean));
    columns[1] = 4;
    REFUSED(weft_table_push_entries(table, rows, 2, &e), WEFT_E_INVALID, "entry 1 of 2 of row 1 is of column 4, and columns of a row ascend");
    columns[1] = 5, columns[2] = 10;
    REFUSED(weft_table_push_entries(table, rows, 2, &e), WEFT_E_INVALID, "entry 0 of 1 of row 3 is of column 10, which its rows do not have");
    columns[2] = 9;
    REFUSED(weft_table_push_entries(table, &beyond, 1, &e), WEFT_E_INVALID, "key 0 of 1 is 8");
    REFUSED(weft_table_push_entries(mean, rows, 2, &e), WEFT_E_UNSUPPORTED, "push rows");
    REFUSED(call(table, &(weft_table_call){.kind = WEFT_SET, .rows = rows, .row_count = 2, .entries = &e}), WEFT_E_INVALID, "rows are not set by entries");
    REFUSED(call(table, &(weft_table_call){.kind = WEFT_PUSH_PULL, .rows = rows, .row_count = 2, .entries = &e, .receive = all}), WEFT_E_INVALID, "without .pulled");
    e.values = NULL;
    REFUSED(weft_table_push_entries(table, rows, 2, &e), WEFT_E_INVALID, "without .columns or .values");
    WEFTI_TRY(weft_table_pull(table, NULL, all));
    for (int i = 0; i < 80; i++) EXPECT(all[i] == 0, "%d", i);
    WEFTI_TRY(weft_table_pull_entries(table, rows, 2, &got));
    EXPECT(got.count == 0 && got.counts[0] == 0 && got.counts[1] == 0, "%lld entries of nothing", (long long)got.count);
    weft_entries_release(&got);
    weft_table_release(table);
    weft_table_release(mean);
    return WEFT_OK;
}
Test(entries, refuses) { serve_case("shm", 1, NULL, refusals); }

/* Rows that would pass the bound: nothing of the push is there, of no row, and what fits goes on. */
static weft_status bounded(serving *self, int32_t staleness) {
    enum { N = 8, EACH = 100, BOUND = 3000 };
    weft_table  *table = NULL;
    uint64_t     rows[N], row = 5;
    uint32_t     counts[N], columns[N * EACH];
    int32_t      values[N * EACH];
    weft_entries many = {.counts = counts, .columns = columns, .values = values}, one = {.counts = (uint32_t[]){1}, .columns = (uint32_t[]){7}, .values = (int32_t[]){1}};
    weft_entries got = {0};
    for (int i = 0; i < N * EACH; i++) rows[i / EACH] = (uint64_t)(i / EACH), counts[i / EACH] = EACH, columns[i] = (uint32_t)(i % EACH * 10), values[i] = 1;
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "b", .rows = N, .width = 1000, .dtype = WEFT_I32, .hybrid = true, .most_bytes = BOUND,
                                                                    .staleness = staleness}, &table));
    for (int turn = 0; turn < 3; turn++) {
        weft_server_counts held;
        weft_status        status = weft_table_push_entries(table, rows, N, &many);
        if (staleness == 0) {
            WEFTI_TRY(status);
            WEFTI_TRY(weft_table_clock(table));
            status = weft_table_pull_entries(table, rows, N, &got);
        }
        REFUSED(status, WEFT_E_NO_MEMORY, "most_bytes is 3000");
        weft_server_count(self->server, &held);
        EXPECT(held.held_bytes <= BOUND, "%llu bytes", (unsigned long long)held.held_bytes);
        WEFTI_TRY(weft_table_pull_entries(table, rows, N, &got));
        EXPECT(got.count == (turn > 0) && (turn == 0 || (got.counts[5] == 1 && got.columns[0] == 7 && ((const int32_t *)got.values)[0] == turn)), "turn %d: %lld", turn,
               (long long)got.count);
        WEFTI_TRY(weft_table_push_entries(table, &row, 1, &one));
        WEFTI_TRY(weft_table_clock(table));
    }
    weft_entries_release(&got);
    weft_table_release(table);
    return WEFT_OK;
}
static weft_status bounded_sums(serving *self) { return bounded(self, 0); }
static weft_status bounded_pushes(serving *self) { return bounded(self, 1); }
Test(entries, a_clock_beyond_the_bound_changes_nothing) { serve_case("shm", 1, NULL, bounded_sums); }
Test(entries, a_push_beyond_the_bound_changes_nothing) { serve_case("shm", 1, NULL, bounded_pushes); }

/* --- large, and how many bytes --- */

/* Every element of some MiB, in one request, and then every hundredth: bytes are 4 a row and 6 an entry, each way, filled up to 8 three times a server. */
static weft_status large(serving *self) {
    enum { N = 500, K = 4000 };
    weft_table        *table = NULL;
    weft_server_counts before, after;
    uint64_t           rows[N];
    uint32_t           counts[N], *columns = malloc(N * K * sizeof *columns);
    int32_t           *values = malloc(N * K * sizeof *values);
    weft_entries       e = {.counts = counts, .columns = columns, .values = values}, got = {0};
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "large", .rows = N, .width = K, .dtype = WEFT_I32, .hybrid = true,
                                                                    .staleness = WEFT_TABLE_ASYNCHRONOUS}, &table));
    for (int turn = 0, step = 1; turn < 2 && self->rank == 0; turn++, step = 100) {
        int64_t count = 0;
        for (int64_t i = 0; i < N * K; i++) {
            if (i % K == 0) rows[i / K] = (uint64_t)(i / K), counts[i / K] = 0;
            if (i % step) continue;
            counts[i / K]++;
            columns[count] = (uint32_t)(i % K);
            values[count++] = (int32_t)(i + 1);
        }
        weft_server_count(self->server, &before);
        WEFTI_TRY(weft_table_push_entries(table, rows, N, &e));
        weft_server_count(self->server, &after);
        uint64_t moved = after.moved_value_bytes - before.moved_value_bytes, wanted = (uint64_t)(4 * N + 6 * count);
        EXPECT(moved >= wanted && moved <= wanted + 24 * 2, "%llu bytes moved, %llu are right", (unsigned long long)moved, (unsigned long long)wanted);
        EXPECT(after.value_bytes - before.value_bytes == N * K * 4, "%llu", (unsigned long long)(after.value_bytes - before.value_bytes));
        if (step > 1) EXPECT(after.sent_bytes - before.sent_bytes < moved + 8 * N + 1000, "%llu sent", (unsigned long long)(after.sent_bytes - before.sent_bytes));
        weft_server_count(self->server, &before);
        WEFTI_TRY(weft_table_pull_entries(table, rows, N, &got));
        weft_server_count(self->server, &after);
        moved = after.moved_value_bytes - before.moved_value_bytes;
        wanted = 4 * N + UINT64_C(6) * N * K;
        EXPECT(moved >= wanted && moved <= wanted + 24 * 2, "%llu bytes moved back, %llu are right", (unsigned long long)moved, (unsigned long long)wanted);
        EXPECT(got.count == N * K, "%lld", (long long)got.count);
        for (int64_t i = 0; i < N * K; i++)
            EXPECT(got.columns[i] == i % K && ((const int32_t *)got.values)[i] == (i + 1) * (turn && i % step == 0 ? 2 : 1), "turn %d, element %lld is %d", turn,
                   (long long)i, (int)((const int32_t *)got.values)[i]);
    }
    weft_entries_release(&got);
    weft_table_release(table);
    free(columns), free(values);
    return serving_meet(self);
}
Test(entries, of_many_mebibytes_shm) { serve_case("shm", 4, &apart, large); }
Test(entries, of_many_mebibytes_tcp) { serve_case("tcp", 3, &apart, large); }

/* --- a server dies --- */

enum { WORDS = 300, TOPICS = 1000, CLOCKS = 20, DEATH = 8 };

static int32_t victim, staleness;

/* Counts of words by topic: each worker adds some and takes some away. Every rank ends with the hash of all that it has seen. */
static weft_status count_topics(serving *self) {
    weft_table  *table = NULL;
    weft_entries got = {0};
    uint64_t     rows[WORDS], hash = WEFTI_HASH_BEGIN, random = (uint64_t)self->rank * 7919 + 1;
    uint32_t     counts[WORDS], columns[WORDS * 8];
    float        values[WORDS * 8];
    double       sum = 0;
    weft_entries e = {.counts = counts, .columns = columns, .values = values};
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "topics", .rows = WORDS, .width = TOPICS, .hybrid = true, .staleness = staleness}, &table));
    WEFTI_TRY(serving_meet(self));
    for (int clock = 0; clock < CLOCKS; clock++) {
        int64_t count = 0, entries = 0;
        if (clock == DEATH && victim >= 0 && self->rank == 0) kill(self->all->children[victim], SIGKILL);
        for (uint64_t row = 0; row < WORDS; row++) {
            if (words_next(&random) % 3 == 0) continue;
            rows[count] = row;
            counts[count] = (uint32_t)(words_next(&random) % 8);
            for (uint32_t i = 0; i < counts[count]; i++, entries++) {
                columns[entries] = (uint32_t)(words_next(&random) % 100) + i * 100;
                values[entries] = staleness == 0 ? (float)(words_next(&random) % 1000) / 7 - 50 : 1;
                sum += (double)values[entries];
            }
            count++;
        }
        if (clock % 2) {
            WEFTI_TRY(call(table, &(weft_table_call){.kind = WEFT_PUSH_PULL, .rows = rows, .row_count = count, .entries = &e, .pulled = &got}));
        } else {
            WEFTI_TRY(weft_table_push_entries(table, rows, count, &e));
            if (staleness == 0) WEFTI_TRY(weft_table_clock(table));
            WEFTI_TRY(weft_table_pull_entries(table, rows, count, &got));
        }
        hash = wefti_hash(hash, got.columns, (size_t)got.count * sizeof *got.columns);
        hash = wefti_hash(hash, got.values, (size_t)got.count * sizeof(float));
    }
    WEFTI_TRY(serving_meet(self));
    for (uint64_t row = 0; row < WORDS; row++) rows[row] = row;
    WEFTI_TRY(weft_table_pull_entries(table, rows, WORDS, &got));
    for (int64_t i = 0; i < got.count; i++) sum -= self->workers == 1 ? (double)((const float *)got.values)[i] : 0;
    if (staleness != 0 && self->workers == 1) EXPECT(sum == 0, "%g are missing", sum);
    self->all->results[self->rank].at_ns = hash;
    snprintf(self->all->results[self->rank].message, sizeof self->all->results[0].message, "%016llx", (unsigned long long)hash);
    weft_entries_release(&got);
    weft_table_release(table);
    return WEFT_OK;
}

static void same_after_a_death(const char *wire, int32_t size, int32_t dies) {
    char whole[2][17];
    staleness = 0;
    victim = -1;
    ranks *all = serve_case_with(wire, size, &replicated, count_topics, 0);
    for (int rank = 0; rank < 2; rank++) snprintf(whole[rank], sizeof whole[rank], "%.16s", all->results[rank].message);
    ranks_free(all);
    cr_expect_neq(strcmp(whole[0], whole[1]), 0, "%s", whole[0]); /* they ask for other rows */
    victim = dies;
    all = serve_case_with(wire, size, &replicated, count_topics, 1u << dies);
    for (int rank = 0; rank < 2; rank++) cr_expect_str_eq(whole[rank], all->results[rank].message, "%s, rank %d", wire, rank);
    ranks_free(all);
}
Test(entries, the_same_bits_after_a_death_shm) { same_after_a_death("shm", 4, 2); }
Test(entries, the_same_bits_after_a_death_tcp) { same_after_a_death("tcp", 4, 3); }
Test(entries, none_that_was_acknowledged_is_lost) {
    staleness = WEFT_TABLE_ASYNCHRONOUS;
    victim = 2;
    ranks_free(serve_case_with("tcp", 3, &replicated, count_topics, 1u << 2));
}

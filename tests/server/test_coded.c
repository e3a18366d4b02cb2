/* Coded pushes and pulls: what comes is what the codecs say, in as many bytes, and nothing is lost that is to be kept. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/files.h"
#include "parallel/server/coding.h"
#include "serving.h"

static const weft_server_options beside = {0}, one_apart = {.servers = 1, .dedicated = true}, two_apart = {.servers = 2, .dedicated = true};

typedef struct counted { uint64_t key_bytes, sent_key_bytes, value_bytes, moved_value_bytes, sent_bytes; } counted;
static counted count(serving *self) {
    weft_server_counts now;
    weft_server_count(self->server, &now);
    return (counted){now.key_bytes, now.sent_key_bytes, now.value_bytes, now.moved_value_bytes, now.sent_bytes};
}

static float noise(uint64_t i) { /* of -1 to 1, of many magnitudes */
    uint64_t bits = (i + 1) * UINT64_C(0x9e3779b97f4a7c15);
    bits = (bits ^ bits >> 29) * UINT64_C(0xbf58476d1ce4e5b9);
    return ldexpf((float)(int64_t)(bits >> 40) / 8388608 - 1, -(int)(bits % 7));
}

/* --- bytes and values of each codec --- */

enum { ROWS = 1000, WIDTH = 8, ELEMENTS = ROWS * WIDTH };
typedef struct expected { const char *name; weft_compression how; size_t bytes; double off; } expected;
/* Of one server: the formulas of compression.h. Off by at most so much of the largest element, which is 1. */
static const expected whole[] = {{"bf16", {.codec = WEFT_COMPRESS_BF16}, 2 * ELEMENTS, 0x1p-8},
                                 {"fp8", {.codec = WEFT_COMPRESS_FP8}, ELEMENTS + ELEMENTS / 32, 0x1p-4},
                                 {"fp8-e5m2", {.codec = WEFT_COMPRESS_FP8_E5M2}, ELEMENTS + ELEMENTS / 32, 0x1p-3},
                                 {"fixed8", {.codec = WEFT_COMPRESS_FIXED8, .seed = 3}, ELEMENTS + ELEMENTS / 32, 0x1p-6},
                                 {"fixed16", {.codec = WEFT_COMPRESS_FIXED16, .seed = 3}, 2 * ELEMENTS + ELEMENTS / 32, 0x1p-14}};

static weft_status makes(serving *self, const char *name, weft_compression push, weft_compression pull, int32_t staleness, weft_table **table_out) {
    return weft_table_create(self->server, &(weft_table_options){.name = name, .rows = ROWS, .width = WIDTH, .dtype = WEFT_F32, .staleness = staleness,
                                                                 .push = push, .pull = pull}, table_out);
}

static weft_status check_codec(serving *self, const expected *one) {
    static float mine[ELEMENTS], got[ELEMENTS], coded[ELEMENTS];
    char         name[48];
    weft_table  *table = NULL;
    snprintf(name, sizeof name, "both %s", one->name);
    WEFTI_TRY(makes(self, name, one->how, one->how, WEFT_TABLE_ASYNCHRONOUS, &table));
    for (int i = 0; i < ELEMENTS; i++) mine[i] = noise((uint64_t)i);
    counted before = count(self);
    WEFTI_TRY(weft_table_push(table, NULL, mine));
    counted after = count(self);
    EXPECT(after.value_bytes - before.value_bytes == sizeof mine && after.moved_value_bytes - before.moved_value_bytes == one->bytes,
           "%s: %llu of %llu bytes, not %zu", one->name, (unsigned long long)(after.moved_value_bytes - before.moved_value_bytes),
           (unsigned long long)(after.value_bytes - before.value_bytes), one->bytes);
    EXPECT(after.sent_bytes - before.sent_bytes >= one->bytes && after.sent_bytes - before.sent_bytes <= one->bytes + 512, "%s: %llu bytes went by the wire",
           one->name, (unsigned long long)(after.sent_bytes - before.sent_bytes));
    weft_table_call plain = {.kind = WEFT_PULL, .receive = got, .plain = true};
    weft_request   *request = NULL;
    WEFTI_TRY(weft_table_start_call(table, &plain, &request));
    WEFTI_TRY(weft_request_wait(request, 0));
    bool any = false;
    for (int i = 0; i < ELEMENTS; i++) {
        EXPECT(fabs((double)got[i] - (double)mine[i]) <= one->off, "%s, element %d: %g, not %g", one->name, i, (double)got[i], (double)mine[i]);
        any |= got[i] != mine[i];
    }
    EXPECT(any, "%s rounds nothing", one->name);
    before = count(self);
    WEFTI_TRY(weft_table_pull(table, NULL, coded));
    after = count(self);
    EXPECT(after.moved_value_bytes - before.moved_value_bytes == one->bytes, "%s: a pull of %llu bytes", one->name,
           (unsigned long long)(after.moved_value_bytes - before.moved_value_bytes));
    for (int i = 0; i < ELEMENTS; i++) /* what fits the code already is not changed by it */
        EXPECT(coded[i] == got[i], "%s, element %d is pulled as %g, not %g", one->name, i, (double)coded[i], (double)got[i]);
    weft_table_release(table);
    return WEFT_OK;
}

static weft_status whole_rows(serving *self) {
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) WEFTI_TRY(check_codec(self, &whole[i]));
    return WEFT_OK;
}
Test(coded, whole_rows_tcp) { serve_case("tcp", 2, &one_apart, whole_rows); }
Test(coded, whole_rows_shm) { serve_case("shm", 2, &one_apart, whole_rows); }

/* The same seed, worker and number round the same way; another seed another. The mean of many roundings is the number. */
static weft_status rounding(serving *self) {
    static float mine[ELEMENTS], got[3][ELEMENTS];
    weft_table  *table = NULL;
    for (int i = 0; i < ELEMENTS; i++) mine[i] = i % 32 ? 0.3f : 127; /* 32 numbers have one scale, 1 */
    for (int which = 0; which < 3; which++) {
        weft_compression how = {.codec = WEFT_COMPRESS_FIXED8, .seed = which == 2 ? 8 : 7};
        WEFTI_TRY(makes(self, which == 0 ? "one" : which == 1 ? "again" : "other", how, (weft_compression){0}, WEFT_TABLE_ASYNCHRONOUS, &table));
        WEFTI_TRY(weft_table_push(table, NULL, mine));
        if (which == 1) WEFTI_TRY(weft_table_push(table, NULL, mine));
        WEFTI_TRY(weft_table_pull(table, NULL, got[which]));
        weft_table_release(table);
    }
    int differ = 0, second = 0;
    double sum = 0;
    for (int i = 0; i < ELEMENTS; i++) {
        float again = got[1][i] - got[0][i]; /* the second push */
        EXPECT(got[0][i] == (i % 32 ? floorf(got[0][i]) : 127) && (i % 32 == 0 || got[0][i] == 0 || got[0][i] == 1), "%g", (double)got[0][i]);
        EXPECT(again == 0 || again == 1 || again == 127, "the first push of the same seed differs: %g", (double)again);
        differ += got[0][i] != got[2][i];
        second += again != got[0][i];
        if (i % 32) sum += (double)got[0][i];
    }
    double mean = sum / (ELEMENTS - ELEMENTS / 32);
    EXPECT(differ > ELEMENTS / 4 && second > ELEMENTS / 4, "%d and %d of %d differ", differ, second, ELEMENTS);
    EXPECT(fabs(mean - 0.3) < 4 * sqrt(0.21 / ELEMENTS), "the mean is %g", mean);
    return WEFT_OK;
}
Test(coded, rounds_at_random_by_seed) { serve_case("tcp", 2, &one_apart, rounding); }

/* Workers round differently. */
static weft_status by_worker(serving *self) {
    static float mine[ELEMENTS], got[ELEMENTS];
    weft_table  *table = NULL;
    for (int i = 0; i < ELEMENTS; i++) mine[i] = i % 32 ? 0.5f : 127;
    WEFTI_TRY(makes(self, "t", (weft_compression){.codec = WEFT_COMPRESS_FIXED8}, (weft_compression){0}, 0, &table));
    WEFTI_TRY(weft_table_push_pull(table, NULL, mine, got));
    int ones = 0;
    for (int i = 0; i < ELEMENTS; i++) ones += got[i] == 1;
    EXPECT(ones > ELEMENTS / 3 && ones < ELEMENTS * 2 / 3, "both rounded alike in all but %d of %d", ones, ELEMENTS);
    weft_table_release(table);
    return WEFT_OK;
}
Test(coded, rounds_by_worker) { serve_case("tcp", 3, &one_apart, by_worker); }

/* --- what is left out is kept --- */

/* Whole numbers: what came and what is kept is what was pushed, whichever way rows are named; at the end all has come. */
static weft_status keeps(serving *self, bool sparse, weft_compression how) {
    enum { KEYS = 300, W = 3 };
    static float mine[KEYS * W], got[KEYS * W], due[KEYS * W];
    uint64_t     list[KEYS];
    weft_table  *table = NULL;
    weft_keys   *all = NULL, *some = NULL;
    char         name[48];
    snprintf(name, sizeof name, "%d %d %d", sparse, (int)how.codec, (int)self->rank);
    for (int i = 0; i < KEYS; i++) list[i] = (uint64_t)i * (sparse ? 7919 : 1);
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = name, .sparse = sparse, .rows = sparse ? 0 : KEYS, .width = W, .dtype = WEFT_F32,
                                                                    .staleness = WEFT_TABLE_ASYNCHRONOUS, .push = how}, &table));
    WEFTI_TRY(weft_keys_create(table, list, KEYS, &all));
    WEFTI_TRY(weft_keys_create(table, list + 50, KEYS - 50, &some));
    memset(due, 0, sizeof due);
    for (int round = 0; round < 9; round++) {
        int first = round % 3 == 0 ? 0 : round % 3 == 1 ? 50 : 100;
        for (int i = 0; i < KEYS * W; i++) {
            mine[i] = floorf(100 * noise((uint64_t)(round * KEYS * W + i)));
            if (i >= first * W) due[i] += mine[i];
        }
        if (first == 100) WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, list + first, KEYS - first, mine + first * W, NULL));
        else WEFTI_TRY(weft_table_push(table, first ? some : all, mine + first * W));
    }
    memset(mine, 0, sizeof mine);
    weft_table_call plain = {.kind = WEFT_PULL, .keys = all, .receive = got};
    weft_request   *request = NULL;
    WEFTI_TRY(weft_table_start_call(table, &plain, &request));
    WEFTI_TRY(weft_request_wait(request, 0));
    if (how.codec != WEFT_COMPRESS_NONZERO) EXPECT(memcmp(got, due, sizeof due) != 0, "nothing was left out by codec %d", (int)how.codec);
    for (int rest = 0; rest < 40 && how.codec != WEFT_COMPRESS_SIGNIFICANT; rest++) WEFTI_TRY(weft_table_push(table, all, mine)); /* of topk, a tenth each */
    if (how.codec == WEFT_COMPRESS_SIGNIFICANT) { /* more than all that was kept, so that every row goes */
        for (int i = 0; i < KEYS * W; i++) mine[i] = 10000, due[i] += 10000;
        WEFTI_TRY(weft_table_push(table, all, mine));
    }
    WEFTI_TRY(weft_table_pull(table, all, got));
    for (int i = 0; i < KEYS * W; i++) EXPECT(got[i] == due[i], "codec %d, element %d: %g, not %g", (int)how.codec, i, (double)got[i], (double)due[i]);
    weft_table_release(table);
    return WEFT_OK;
}
static weft_status keeps_all(serving *self) {
    for (int sparse = 0; sparse < 2; sparse++) {
        WEFTI_TRY(keeps(self, sparse, (weft_compression){.codec = WEFT_COMPRESS_TOP_K, .ratio = 0.1}));
        WEFTI_TRY(keeps(self, sparse, (weft_compression){.codec = WEFT_COMPRESS_SIGNIFICANT, .threshold = 1}));
        WEFTI_TRY(keeps(self, sparse, (weft_compression){.codec = WEFT_COMPRESS_NONZERO}));
    }
    return WEFT_OK;
}
Test(coded, keeps_what_it_leaves_out) { serve_case("tcp", 4, &two_apart, keeps_all); }
Test(coded, keeps_what_it_leaves_out_beside) { serve_case("shm", 2, &beside, keeps_all); }

/* By slices of a block, which push lists of rows: what is left out of one comes with the next that names the row. */
static weft_status push_ones(void *context, const weft_block_slice *slice) {
    (void)context;
    for (int64_t i = 0; i < slice->row_count * WIDTH; i++) ((float *)slice->updates[0])[i] = (float)(slice->rows[i / WIDTH] % 7 + 1);
    return WEFT_OK;
}
static weft_status push_nothing(void *context, const weft_block_slice *slice) {
    (void)context, (void)slice;
    return WEFT_OK;
}
static weft_status in_slices(serving *self) {
    enum { BLOCKS = 3 };
    static float    got[ELEMENTS];
    static uint64_t rows[ROWS];
    weft_block      blocks[BLOCKS];
    weft_sliced_table   tables[1] = {{.read_only = false}};
    weft_slices_options how = {.tables = tables, .table_count = 1, .budget_bytes = 24000, .pipeline = true};
    weft_slices_report  report;
    for (int codec = 0; codec < 2; codec++) {
        weft_compression push = codec ? (weft_compression){.codec = WEFT_COMPRESS_SIGNIFICANT, .threshold = 1.5} : (weft_compression){.codec = WEFT_COMPRESS_TOP_K, .ratio = 0.2};
        WEFTI_TRY(makes(self, codec ? "significant" : "topk", push, (weft_compression){0}, WEFT_TABLE_ASYNCHRONOUS, &tables[0].table));
        for (uint64_t i = 0; i < ROWS; i++) rows[i] = i;
        for (int b = 0; b < BLOCKS; b++) blocks[b] = (weft_block){.rows = rows + 100 * b, .row_count = ROWS - 100 * b};
        WEFTI_TRY(weft_slices_run(&how, blocks, BLOCKS, push_ones, NULL, &report));
        EXPECT(report.slices > 2 * BLOCKS, "%lld slices", (long long)report.slices);
        WEFTI_TRY(serving_meet(self));
        WEFTI_TRY(weft_table_pull(tables[0].table, NULL, got));
        int less = 0;
        for (int i = 0; i < ELEMENTS; i++) less += got[i] < (float)(self->workers * (i / WIDTH % 7 + 1) * (i / WIDTH < 100 ? 1 : i / WIDTH < 200 ? 2 : 3));
        EXPECT(less > 100, "only %d elements lack something", less);
        WEFTI_TRY(serving_meet(self));
        for (int rest = 0; rest < 8 && !codec; rest++) WEFTI_TRY(weft_slices_run(&how, blocks, 1, push_nothing, NULL, NULL));
        for (int rest = 0; rest < 6 && codec; rest++) WEFTI_TRY(weft_slices_run(&how, blocks, 1, push_ones, NULL, NULL));
        WEFTI_TRY(serving_meet(self));
        WEFTI_TRY(weft_table_pull(tables[0].table, NULL, got));
        for (int i = 0; i < ELEMENTS; i++) {
            int   pushed = i / WIDTH < 100 ? 1 : i / WIDTH < 200 ? 2 : 3;
            float due = (float)(self->workers * (i / WIDTH % 7 + 1) * (pushed + (codec ? 6 : 0))), least = codec ? due / 3 : due;
            EXPECT(got[i] >= least && got[i] <= due, "codec %d, element %d: %g, of %g", codec, i, (double)got[i], (double)due);
        }
        weft_table_release(tables[0].table);
    }
    return WEFT_OK;
}
Test(coded, in_slices) { serve_case("tcp", 3, &one_apart, in_slices); }

/* A snapshot that is loaded drops what was kept of the rows that were there before: at who loads, and at the others with the next word of a server. */
static char *loaded_path;
static weft_status forgets(serving *self) {
    static float mine[ELEMENTS], none[ELEMENTS], saved[ELEMENTS], got[ELEMENTS];
    weft_table  *table = NULL;
    WEFTI_TRY(makes(self, "t", (weft_compression){.codec = WEFT_COMPRESS_TOP_K, .ratio = 0.1}, (weft_compression){0}, WEFT_TABLE_ASYNCHRONOUS, &table));
    for (int i = 0; i < ELEMENTS; i++) mine[i] = floorf(100 * noise((uint64_t)i)) + 1000;
    WEFTI_TRY(weft_table_push(table, NULL, mine));
    WEFTI_TRY(serving_meet(self));
    WEFTI_TRY(weft_table_pull(table, NULL, saved));
    WEFTI_TRY(weft_server_save(self->server, loaded_path));
    WEFTI_TRY(weft_table_push(table, NULL, none)); /* of what was kept some comes */
    WEFTI_TRY(serving_meet(self));
    WEFTI_TRY(weft_table_pull(table, NULL, got));
    EXPECT(memcmp(got, saved, sizeof got) != 0, "%s", "nothing was kept");
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 0) WEFTI_TRY(weft_server_load(self->server, loaded_path));
    WEFTI_TRY(serving_meet(self));
    if (self->rank != 0) WEFTI_TRY(weft_table_pull(table, NULL, got));
    for (int rest = 0; rest < 3; rest++) WEFTI_TRY(weft_table_push(table, NULL, none));
    WEFTI_TRY(serving_meet(self));
    WEFTI_TRY(weft_table_pull(table, NULL, got));
    for (int i = 0; i < ELEMENTS; i++) EXPECT(got[i] == saved[i], "element %d: %g, and %g in the snapshot", i, (double)got[i], (double)saved[i]);
    weft_table_release(table);
    return WEFT_OK;
}
Test(coded, forgets_what_it_kept_of_rows_before_a_snapshot) {
    char folder[64], command[64], path[64];
    snprintf(folder, sizeof folder, "%s/weft-coded-XXXXXX", temporary_root());
    cr_assert_not_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/state", folder);
    loaded_path = path;
    serve_case("tcp", 4, &two_apart, forgets);
    serve_case("shm", 3, &(weft_server_options){.replicas = 1}, forgets);
    snprintf(command, sizeof command, "rm -r %s", folder);
    cr_expect_eq(system(command), 0);
}

/* With feedback, a thousandth of a unit that is pushed a thousand times has come to within a unit; without, rounding to nearest loses all of it. */
static weft_status small_steps(serving *self) {
    enum { STEPS = 200 };
    static float mine[ELEMENTS], got[ELEMENTS];
    for (int feedback = 0; feedback < 2; feedback++) {
        weft_table *table = NULL;
        WEFTI_TRY(makes(self, feedback ? "fed" : "lost", (weft_compression){.codec = WEFT_COMPRESS_FP8, .error_feedback = feedback}, (weft_compression){0},
                        WEFT_TABLE_ASYNCHRONOUS, &table));
        for (int i = 0; i < ELEMENTS; i++) mine[i] = 1.06f; /* fp8 has 1 and 1.125 */
        for (int step = 0; step < STEPS; step++) WEFTI_TRY(weft_table_push(table, NULL, mine));
        WEFTI_TRY(weft_table_pull(table, NULL, got));
        double off = fabs((double)got[77] - 1.06 * STEPS);
        EXPECT(feedback ? off < 0.2 : off > 10, "%g is off by %g %s feedback", (double)got[77], off, feedback ? "with" : "without");
        weft_table_release(table);
    }
    return WEFT_OK;
}
Test(coded, feeds_back_what_rounding_loses) { serve_case("tcp", 2, &one_apart, small_steps); }

/* A row that grows by 1 each time, with a threshold of 2 times what was last sent: 1, then 3 (> 2), then 7 (> 6), then 15 (> 14). NaN does not stay. */
static weft_status significant(serving *self) {
    float       mine[ROWS * WIDTH], got[ROWS * WIDTH];
    weft_table *table = NULL;
    int         next = 0;
    static const int sent_at[] = {1, 4, 11, 26};
    WEFTI_TRY(makes(self, "t", (weft_compression){.codec = WEFT_COMPRESS_SIGNIFICANT, .threshold = 2}, (weft_compression){0}, WEFT_TABLE_ASYNCHRONOUS, &table));
    for (int i = 0; i < ROWS * WIDTH; i++) mine[i] = (float)(i / WIDTH == 5); /* of row 5 alone */
    for (int step = 1; step <= 26; step++) {
        counted before = count(self);
        WEFTI_TRY(weft_table_push(table, NULL, mine));
        counted after = count(self);
        bool     sent = next < 4 && step == sent_at[next];
        uint64_t due = sent ? 1 + 1 + 1 + WIDTH * sizeof(float) : 1 + 1; /* how, how many, the gap and the row */
        next += sent;
        EXPECT(after.moved_value_bytes - before.moved_value_bytes == due, "step %d: %llu bytes, not %llu", step,
               (unsigned long long)(after.moved_value_bytes - before.moved_value_bytes), (unsigned long long)due);
        WEFTI_TRY(weft_table_pull(table, NULL, got));
        EXPECT(got[5 * WIDTH] == (float)sent_at[next - 1] && got[4 * WIDTH] == 0, "step %d: %g", step, (double)got[5 * WIDTH]);
    }
    weft_table_release(table);
    WEFTI_TRY(makes(self, "nan", (weft_compression){.codec = WEFT_COMPRESS_TOP_K, .ratio = 0.01}, (weft_compression){0}, WEFT_TABLE_ASYNCHRONOUS, &table));
    for (int i = 0; i < ROWS * WIDTH; i++) mine[i] = NAN;
    WEFTI_TRY(weft_table_push(table, NULL, mine));
    memset(mine, 0, sizeof mine);
    for (int step = 0; step < 3; step++) WEFTI_TRY(weft_table_push(table, NULL, mine));
    WEFTI_TRY(weft_table_pull(table, NULL, got));
    int poisoned = 0;
    for (int i = 0; i < ROWS * WIDTH; i++) poisoned += got[i] != got[i];
    EXPECT(poisoned == ROWS * WIDTH / 100, "%d elements are NaN, of which %d were sent", poisoned, ROWS * WIDTH / 100);
    weft_table_release(table);
    return WEFT_OK;
}
Test(coded, sends_what_has_changed) { serve_case("tcp", 2, &one_apart, significant); }

/* --- rows that are left out --- */

/* They do not come into being, and a rule does not see them; of any dtype. */
static weft_status zeros(serving *self) {
    enum { KEYS = 20000 };
    static int64_t  mine[KEYS], got[KEYS];
    static uint64_t list[KEYS];
    weft_table     *table = NULL;
    weft_keys      *keys = NULL;
    for (int i = 0; i < KEYS; i++) {
        list[i] = (uint64_t)i * 3;
        mine[i] = i % 1000 == 7 ? i : 0;
    }
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "counts", .sparse = true, .dtype = WEFT_I64, .push = {.codec = WEFT_COMPRESS_NONZERO}},
                                &table));
    WEFTI_TRY(weft_keys_create(table, list, KEYS, &keys));
    weft_server_counts held[2];
    weft_server_count(self->server, &held[0]);
    counted before = count(self);
    WEFTI_TRY(weft_table_push_pull(table, keys, mine, got));
    counted after = count(self);
    uint64_t pulled = KEYS * sizeof *got, due = 1 + 1 + 1 + 19 * 2 + 20 * 8; /* how, 20 rows, a gap of 7 and 19 of 999, and the rows */
    uint64_t two = self->workers == 1 ? 0 : 8; /* servers share them by a hash */
    EXPECT(after.moved_value_bytes - before.moved_value_bytes >= pulled + due && after.moved_value_bytes - before.moved_value_bytes <= pulled + due + two,
           "%llu bytes, not %llu",
           (unsigned long long)(after.moved_value_bytes - before.moved_value_bytes - pulled), (unsigned long long)due);
    for (int i = 0; i < KEYS; i++) EXPECT(got[i] == mine[i] * self->workers, "row %d: %lld", i, (long long)got[i]);
    weft_server_count(self->server, &held[1]);
    EXPECT(held[1].held_bytes < held[0].held_bytes + KEYS, "rows of zeros are held: %llu bytes more", (unsigned long long)(held[1].held_bytes - held[0].held_bytes));
    weft_table_release(table);
    float minus = -0.0f;
    EXPECT(wefti_coding_is_zero(&(wefti_coding){.dtype = WEFT_F32, .width = 1}, &minus), "a zero is one of either sign%s", "");
    return WEFT_OK;
}
Test(coded, drops_zeros) { serve_case("shm", 1, NULL, zeros); }
Test(coded, drops_zeros_of_two) { serve_case("tcp", 2, &beside, zeros); }

/* Momentum goes on where a gradient of zeros is pushed, and does not where nothing is. */
static weft_status rules(serving *self) {
    float value[2], mine[2] = {1, 1};
    for (int drops = 0; drops < 2; drops++) {
        weft_table *table = NULL;
        weft_table_options options = {.name = drops ? "drops" : "all", .rows = 2, .dtype = WEFT_F32,
                                      .rule = {.kind = WEFT_TABLE_SOLVER, .solver = weft_sgd(1, .momentum = 0.5)}};
        if (drops) options.push.codec = WEFT_COMPRESS_NONZERO;
        WEFTI_TRY(weft_table_create(self->server, &options, &table));
        mine[1] = 1;
        WEFTI_TRY(weft_table_push_pull(table, NULL, mine, value));
        mine[1] = 0;
        WEFTI_TRY(weft_table_push_pull(table, NULL, mine, value));
        EXPECT(value[0] == -2.5f && value[1] == (drops ? -1 : -1.5f), "%g %g", (double)value[0], (double)value[1]);
        weft_table_release(table);
    }
    return WEFT_OK;
}
Test(coded, leaves_rows_that_are_not_sent_to_themselves) { serve_case("tcp", 2, &one_apart, rules); }

/* Staleness 0 and hashed keys: every worker pulls the sum of what the codecs made of the pushes, the same everywhere and in any run. */
static weft_status sums(serving *self) {
    enum { KEYS = 5000, W = 2 };
    static float    mine[KEYS * W], got[2][KEYS * W];
    static uint64_t list[KEYS];
    for (int i = 0; i < KEYS; i++) list[i] = (uint64_t)i * 977;
    for (int run = 0; run < 2; run++) {
        weft_table *table = NULL;
        weft_keys  *keys = NULL;
        WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = run ? "second" : "first", .sparse = true, .width = W, .dtype = WEFT_F32,
                                                                        .push = {.codec = WEFT_COMPRESS_TOP_K, .ratio = 0.3},
                                                                        .pull = {.codec = WEFT_COMPRESS_BF16}}, &table));
        WEFTI_TRY(weft_keys_create(table, list, KEYS, &keys));
        for (int clock = 0; clock < 4; clock++) {
            for (int i = 0; i < KEYS * W; i++) mine[i] = noise((uint64_t)(i + 100000 * clock + self->rank * 7000000));
            WEFTI_TRY(weft_table_push_pull(table, keys, mine, got[run]));
        }
        weft_table_release(table);
    }
    EXPECT(memcmp(got[0], got[1], sizeof got[0]) == 0, "two runs differ%s", "");
    int some = 0;
    for (int i = 0; i < KEYS * W; i++) some += got[0][i] != 0;
    EXPECT(some > KEYS * W / 2, "%d of %d", some, KEYS * W);
    return WEFT_OK;
}
Test(coded, sums_tcp) { serve_case("tcp", 4, &two_apart, sums); }
Test(coded, sums_shm) { serve_case("shm", 3, &beside, sums); }

/* --- keys --- */

/* Single numbers under hashed keys: the list is 8 bytes a key, the number 4; the server knows the list from the second time on. */
static weft_status key_caching(serving *self) {
    enum { KEYS = 30000, ROUNDS = 8 };
    static float    mine[KEYS];
    static uint64_t list[KEYS], near[KEYS];
    uint64_t        bytes[2];
    weft_table     *table = NULL;
    weft_keys      *keys = NULL;
    for (int i = 0; i < KEYS; i++) {
        list[i] = (uint64_t)i * (UINT64_MAX / KEYS) + (uint64_t)i * 7;
        near[i] = (uint64_t)i * 100;
    }
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "t", .sparse = true, .dtype = WEFT_F32, .staleness = WEFT_TABLE_ASYNCHRONOUS}, &table));
    WEFTI_TRY(weft_keys_create(table, list, KEYS, &keys));
    for (int cached = 0; cached < 2; cached++) {
        counted before = count(self);
        for (int round = 0; round < ROUNDS; round++) {
            if (cached) WEFTI_TRY(weft_table_push(table, keys, mine));
            else WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, list, KEYS, mine, NULL));
        }
        bytes[cached] = count(self).sent_bytes - before.sent_bytes;
    }
    EXPECT(bytes[0] >= ROUNDS * KEYS * 12 && bytes[1] <= KEYS * 8 + ROUNDS * (KEYS * 4 + 1024), "%llu and %llu bytes", (unsigned long long)bytes[0],
           (unsigned long long)bytes[1]);
    EXPECT(2 * bytes[1] <= bytes[0], "key caching takes %llu of %llu bytes", (unsigned long long)bytes[1], (unsigned long long)bytes[0]);
    /* Keys that lie near each other: a byte each, cached or not; 8 are rounded up. */
    counted before = count(self);
    WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, near, KEYS, mine, NULL));
    counted after = count(self);
    EXPECT(after.key_bytes - before.key_bytes == KEYS * 8 && after.sent_key_bytes - before.sent_key_bytes == KEYS, "%llu bytes of keys went as %llu",
           (unsigned long long)(after.key_bytes - before.key_bytes), (unsigned long long)(after.sent_key_bytes - before.sent_key_bytes));
    EXPECT(after.sent_bytes - before.sent_bytes <= KEYS * 5 + 1024, "%llu bytes went by the wire", (unsigned long long)(after.sent_bytes - before.sent_bytes));
    weft_table_release(table);
    return WEFT_OK;
}
Test(coded, key_caching_halves_single_numbers) { serve_case("tcp", 2, &one_apart, key_caching); }

/* --- refusals --- */

static weft_status refuse(serving *self, weft_table_options options, weft_status wanted, const char *part) {
    weft_table *table = NULL;
    options.name = "t";
    options.rows = 10;
    REFUSED(weft_table_create(self->server, &options, &table), wanted, part);
    return WEFT_OK;
}
static weft_status refusals(serving *self) {
    const weft_compression topk = {.codec = WEFT_COMPRESS_TOP_K}, bf16 = {.codec = WEFT_COMPRESS_BF16}, zeros_dropped = {.codec = WEFT_COMPRESS_NONZERO};
    const weft_table_rule  average = {.kind = WEFT_TABLE_AVERAGE}, user = {.kind = WEFT_TABLE_USER, .function = "f"};
    weft_table *table = NULL;
    WEFTI_TRY(refuse(self, (weft_table_options){.dtype = WEFT_F32, .push = {.codec = WEFT_COMPRESS_POWER_SGD}}, WEFT_E_UNSUPPORTED, "rows go with bf16"));
    WEFTI_TRY(refuse(self, (weft_table_options){.dtype = WEFT_I64, .push = topk}, WEFT_E_DTYPE, "nonzero goes with every dtype"));
    WEFTI_TRY(refuse(self, (weft_table_options){.dtype = WEFT_F64, .pull = bf16}, WEFT_E_DTYPE, "pull.codec bf16 is for rows of f32"));
    WEFTI_TRY(refuse(self, (weft_table_options){.dtype = WEFT_F32, .rule = average, .push = topk}, WEFT_E_UNSUPPORTED, "go with AVERAGE"));
    WEFTI_TRY(refuse(self, (weft_table_options){.dtype = WEFT_F32, .rule = user, .push = zeros_dropped}, WEFT_E_UNSUPPORTED, "a rule of one's own"));
    WEFTI_TRY(refuse(self, (weft_table_options){.dtype = WEFT_F32, .rule = user, .push = {.codec = WEFT_COMPRESS_BF16, .error_feedback = true}}, WEFT_E_UNSUPPORTED,
                     "bf16 with error_feedback"));
    WEFTI_TRY(refuse(self, (weft_table_options){.dtype = WEFT_F32, .pull = topk}, WEFT_E_UNSUPPORTED, "go with pulls"));
    WEFTI_TRY(refuse(self, (weft_table_options){.dtype = WEFT_F32, .pull = zeros_dropped}, WEFT_E_UNSUPPORTED, "pull.codec nonzero"));
    WEFTI_TRY(refuse(self, (weft_table_options){.dtype = WEFT_F32, .push = {.codec = WEFT_COMPRESS_TOP_K, .ratio = 2}}, WEFT_E_INVALID, "ratio is 2"));
    WEFTI_TRY(refuse(self, (weft_table_options){.dtype = WEFT_F32, .push = {.codec = WEFT_COMPRESS_BF16, .warmup = 2}}, WEFT_E_INVALID, ".warmup 2"));
    WEFTI_TRY(refuse(self, (weft_table_options){.dtype = WEFT_F32, .push = {.codec = (weft_codec)99}}, WEFT_E_INVALID, "push.codec 99"));
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "t", .rows = 10, .dtype = WEFT_F32, .push = bf16}, &table));
    weft_table_release(table);
    REFUSED(weft_table_create(self->server, &(weft_table_options){.name = "t", .rows = 10, .dtype = WEFT_F32}, &table), WEFT_E_MISMATCH, "differs in push");
    WEFTI_TRY(weft_table_open(self->server, "t", &table));
    EXPECT(weft_table_describe(table)->push.codec == WEFT_COMPRESS_BF16, "%d", (int)weft_table_describe(table)->push.codec);
    weft_table_release(table);
    return WEFT_OK;
}
Test(coded, refusals) { serve_case("shm", 1, NULL, refusals); }

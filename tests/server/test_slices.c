/* Slices of a block's rows: the bits of one slice, each row once, memory within the budget, and what is refused or lost on the way. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>

#include "serving.h"

enum { ROWS = 1500, WIDE = 9, BLOCKS = 3 };

static uint64_t mixed(uint64_t number) {
    number = (number ^ number >> 31) * UINT64_C(0x7fb5d329728ea185);
    number = (number ^ number >> 27) * UINT64_C(0x81dadef4bc2dd44d);
    return number ^ number >> 33;
}

/* --- work that depends on the rows alone --- */

typedef struct work {
    int32_t rank;
    int64_t calls, seen[BLOCKS][ROWS];
    bool    by_values; /* updates depend on what was pulled; else on the row's key, so any order adds up to the same */
} work;

static weft_status compute(void *context, const weft_block_slice *slice) {
    work          *self = context;
    const float   *floats = slice->values[0];
    const int32_t *integers = slice->values[1];
    float         *more = slice->updates[0];
    int32_t       *add = slice->updates[1];
    EXPECT(slice->updates[2] == NULL, "a read-only table has updates");
    EXPECT(slice->rows && slice->row_count > 0, "%lld rows", (long long)slice->row_count);
    self->calls++;
    for (int64_t i = 0; i < slice->row_count; i++) {
        uint64_t key = slice->rows[i], number = mixed(key * 64 + (uint64_t)self->rank * 8 + (uint64_t)slice->block);
        self->seen[slice->block][key]++;
        EXPECT(((const double *)slice->values[2])[i] == 2.5, "%g", ((const double *)slice->values[2])[i]);
        for (int column = 0; column < WIDE; column++) {
            float before = floats[i * WIDE + column];
            EXPECT(more[i * WIDE + column] == 0, "an update begins with %g", (double)more[i * WIDE + column]);
            more[i * WIDE + column] = self->by_values ? 0.37f * (float)(int32_t)(number >> 40) * 1e-3f - 0.11f * before : 0;
        }
        for (int column = 0; column < 2; column++)
            add[i * 2 + column] = (int32_t)(number >> column * 8 & 0xff) + (self->by_values ? integers[i * 2 + column] / 3 : 0);
    }
    return WEFT_OK;
}

static int64_t needed_rows(int32_t rank, int64_t block, uint64_t *rows) {
    int64_t count = 0;
    for (uint64_t row = 0; row < ROWS; row++)
        if (mixed(row * 131 + (uint64_t)rank * 17 + (uint64_t)block) % 3) rows[count++] = row;
    return count;
}

/* --- tables --- */

typedef struct trio { weft_sliced_table all[3]; } trio;

static weft_status open_tables(serving *self, const char *mark, int32_t staleness, trio *out) {
    char               name[3][WEFT_TABLE_NAME_BYTES];
    weft_table_options options[3] = {{.rows = ROWS, .width = WIDE, .dtype = WEFT_F32, .staleness = staleness},
                                  {.sparse = true, .width = 2, .dtype = WEFT_I32, .staleness = staleness},
                                  {.sparse = true, .dtype = WEFT_F64, .start = WEFT_START_CONSTANT, .low = 2.5}};
    *out = (trio){.all[2].read_only = true};
    for (int i = 0; i < 3; i++) {
        snprintf(name[i], sizeof name[i], "%s %d", mark, i);
        options[i].name = name[i];
        WEFTI_TRY(weft_table_create(self->server, &options[i], &out->all[i].table));
    }
    return WEFT_OK;
}

static void close_tables(trio *tables) {
    for (int i = 0; i < 3; i++) weft_table_release(tables->all[i].table);
}

/* --- the same bits --- */

typedef struct values { float floats[ROWS * WIDE]; int32_t integers[ROWS * 2]; } values;

static weft_status look(serving *self, work *done, const weft_slices_report *report, const weft_server_counts *before, size_t budget, int64_t rows) {
    weft_server_counts after;
    weft_server_count(self->server, &after);
    for (int64_t block = 0; block < BLOCKS; block++)
        for (uint64_t row = 0; row < ROWS; row++) {
            int64_t wanted = mixed(row * 131 + (uint64_t)self->rank * 17 + (uint64_t)block) % 3 != 0;
            EXPECT(done->seen[block][row] == wanted, "row %d of block %d came %d times", (int)row, (int)block, (int)done->seen[block][row]);
        }
    EXPECT(report->slices == done->calls && report->blocks == BLOCKS, "%d slices, %d blocks", (int)report->slices, (int)report->blocks);
    EXPECT(report->pulls == 3 * (uint64_t)report->slices && report->pushes == 2 * (uint64_t)report->slices, "%d pulls", (int)report->pulls);
    EXPECT(report->pulled_rows == 3 * (uint64_t)rows, "%d rows were pulled", (int)report->pulled_rows);
    EXPECT(report->pulled_bytes == (uint64_t)rows * (WIDE * 4 + 8 + 8) && report->pushed_bytes == (uint64_t)rows * (WIDE * 4 + 8), "bytes");
    EXPECT(after.requests - before->requests == report->pulls + report->pushes, "%d requests", (int)(after.requests - before->requests));
    EXPECT(report->compute_ns + report->wait_ns <= report->total_ns, "times");
    EXPECT(budget ? report->slices >= 2 * BLOCKS && report->peak_bytes <= budget : report->slices == BLOCKS, "%d slices, %d bytes", (int)report->slices,
           (int)report->peak_bytes);
    return WEFT_OK;
}

/* Works through the blocks, in one run or in one for each, and says what the tables hold in the end. */
static weft_status learn(serving *self, const char *mark, weft_slices_options how, bool together, int32_t staleness, values *out) {
    static uint64_t    rows[BLOCKS][ROWS], all[ROWS];
    trio               tables;
    weft_block         blocks[BLOCKS];
    int64_t            sum = 0;
    work               done = {.rank = self->rank, .by_values = staleness == 0};
    weft_slices_report report = {0};
    weft_server_counts before;
    for (int64_t i = 0; i < BLOCKS; i++) {
        blocks[i] = (weft_block){.rows = rows[i], .row_count = needed_rows(self->rank, i, rows[i])};
        sum += blocks[i].row_count;
    }
    WEFTI_TRY(open_tables(self, mark, staleness, &tables));
    WEFTI_TRY(serving_meet(self));
    weft_server_count(self->server, &before);
    how.tables = tables.all;
    how.table_count = 3;
    if (together) {
        WEFTI_TRY(weft_slices_run(&how, blocks, BLOCKS, compute, &done, &report));
        WEFTI_TRY(look(self, &done, &report, &before, how.budget_bytes, sum));
        EXPECT(report.staleness_added == how.pipeline, "%d", (int)report.staleness_added);
    }
    for (int i = 0; i < BLOCKS && !together; i++) {
        weft_block block[BLOCKS + 1] = {{.rows = NULL}}; /* it is the i-th of the run */
        block[i] = blocks[i];
        how.no_clock = true;
        WEFTI_TRY(weft_slices_run(&how, block, BLOCKS, compute, &done, &report));
        EXPECT(report.staleness_added == 0, "one block's slices are different rows");
        for (int table = 0; table < 3; table++) WEFTI_TRY(weft_table_clock(tables.all[table].table));
    }
    for (uint64_t i = 0; i < ROWS; i++) all[i] = i;
    WEFTI_TRY(serving_meet(self));
    WEFTI_TRY(weft_table_pull(tables.all[0].table, NULL, out->floats));
    WEFTI_TRY(weft_table_call_rows(tables.all[1].table, WEFT_PULL, all, ROWS, NULL, out->integers));
    WEFTI_TRY(serving_meet(self));
    close_tables(&tables);
    return WEFT_OK;
}

static weft_status same_bits(serving *self) {
    static values       whole, sliced, other;
    weft_slices_options small = {.budget_bytes = 96 << 10}, piped = {.budget_bytes = 160 << 10, .pipeline = true};
    WEFTI_TRY(learn(self, "whole", (weft_slices_options){0}, true, 0, &whole));
    EXPECT(whole.floats[5] != 0 && whole.integers[5] != 0, "nothing was learnt");
    WEFTI_TRY(learn(self, "sliced", small, true, 0, &sliced));
    EXPECT(memcmp(&whole, &sliced, sizeof whole) == 0, "slices change the result");
    WEFTI_TRY(learn(self, "piped block by block", piped, false, 0, &sliced));
    EXPECT(memcmp(&whole, &sliced, sizeof whole) == 0, "pipelined slices of one block change the result");
    WEFTI_TRY(learn(self, "piped", piped, true, 0, &sliced));
    EXPECT(memcmp(&whole, &sliced, sizeof whole) != 0, "the pulls that come a clock early see what they cannot see");
    WEFTI_TRY(learn(self, "piped again", piped, true, 0, &other));
    EXPECT(memcmp(&other, &sliced, sizeof whole) == 0, "the same slices give other bits");

    WEFTI_TRY(learn(self, "whole integers", (weft_slices_options){0}, true, WEFT_TABLE_ASYNCHRONOUS, &whole));
    WEFTI_TRY(learn(self, "piped integers", piped, true, WEFT_TABLE_ASYNCHRONOUS, &sliced));
    EXPECT(whole.integers[5] && memcmp(&whole, &sliced, sizeof whole) == 0, "integers do not add up to the same");
    return serving_meet(self);
}

Test(slices, have_the_bits_of_one_slice) {
    serve_case("shm", 1, NULL, same_bits);
    serve_case("shm", 3, NULL, same_bits);
    serve_case("tcp", 2, &(weft_server_options){.replicas = 1}, same_bits);
    serve_case("tcp", 4, &(weft_server_options){.servers = 2, .dedicated = true}, same_bits);
}

/* --- memory --- */

enum { BIG_ROWS = 10240, BIG_WIDTH = 64, CAP = 256 << 10, /* the table is ten times that */
       REQUESTS = 40 << 10, /* what requests take themselves: ends of clocks that nobody waits for have some of their own */
       BUDGET = CAP - REQUESTS };

static uint64_t held_now(void) {
    weft_memory_counts memory;
    weft_memory_read(&memory);
    return memory.held_bytes;
}

typedef struct big { uint64_t most_held; int64_t rows; } big;

static weft_status add_one(void *context, const weft_block_slice *slice) {
    big    *self = context;
    float  *more = slice->updates[0];
    uint64_t held = held_now();
    for (int64_t i = 0; i < slice->row_count * BIG_WIDTH; i++) more[i] = 1;
    if (held > self->most_held) self->most_held = held;
    self->rows += slice->row_count;
    return WEFT_OK;
}

static weft_status stays_below(serving *self, weft_table *table, size_t budget, bool pipeline, const uint64_t *rows, bool wanted) {
    weft_memory_counts  before, after;
    weft_slices_report  report;
    weft_block          blocks[2] = {{.rows = rows, .row_count = BIG_ROWS}, {.rows = rows, .row_count = BIG_ROWS}};
    weft_sliced_table   sliced = {.table = table};
    weft_slices_options how = {.tables = &sliced, .table_count = 1, .budget_bytes = budget, .pipeline = pipeline};
    big                 seen = {0, 0};
    weft_memory_read(&before);
    WEFTI_TRY(weft_slices_run(&how, blocks, 2, add_one, &seen, &report));
    weft_memory_read(&after);
    EXPECT(seen.rows == 2 * BIG_ROWS, "%d rows", (int)seen.rows);
    EXPECT(!wanted || after.held_bytes <= before.held_bytes + CAP, "%llu bytes are kept for the next run", (unsigned long long)(after.held_bytes - before.held_bytes));
    uint64_t held = seen.most_held - before.held_bytes, peak = after.peak_bytes > before.peak_bytes ? after.peak_bytes - before.held_bytes : 0;
    EXPECT((held <= CAP && peak <= CAP) == wanted, "rank %d held %llu, at most %llu, of %d bytes", (int)self->rank, (unsigned long long)held,
           (unsigned long long)peak, (int)CAP);
    EXPECT(!budget || report.peak_bytes <= budget, "%zu", report.peak_bytes);
    EXPECT(!budget || report.peak_bytes >= budget / 2, "a budget of %zu, of which %zu are used", budget, report.peak_bytes);
    return WEFT_OK;
}

static weft_status large_table(serving *self) {
    static uint64_t rows[BIG_ROWS];
    static float    last[BIG_WIDTH];
    for (uint64_t i = 0; i < BIG_ROWS; i++) rows[i] = i;
    for (int split = WEFT_SPLIT_RANGE; split <= WEFT_SPLIT_HASH; split++) {
        weft_table        *table = NULL;
        weft_table_options options = {.name = split == WEFT_SPLIT_HASH ? "hash" : "range", .rows = BIG_ROWS, .width = BIG_WIDTH, .sparse = split == WEFT_SPLIT_HASH,
                                         .split = (weft_table_split)split};
        WEFTI_TRY(weft_table_create(self->server, &options, &table));
        WEFTI_TRY(stays_below(self, table, BUDGET, false, rows, true));
        WEFTI_TRY(stays_below(self, table, BUDGET, true, rows, true));
        WEFTI_TRY(weft_table_call_rows(table, WEFT_PULL, &rows[BIG_ROWS - 1], 1, NULL, last));
        EXPECT(last[0] == 4 && last[BIG_WIDTH - 1] == 4, "%g", (double)last[0]);
        if (split == WEFT_SPLIT_HASH) WEFTI_TRY(stays_below(self, table, 0, false, rows, false)); /* the measure sees what is not sliced */
        weft_table_release(table);
    }
    return WEFT_OK;
}

Test(slices, keep_a_table_of_ten_times_the_budget_within_it) {
    serve_case("tcp", 3, &(weft_server_options){.servers = 2, .dedicated = true}, large_table);
}

/* --- what goes wrong --- */

static weft_status nothing(void *context, const weft_block_slice *slice) {
    (void)slice;
    return --*(int *)context ? WEFT_OK : wefti_fail(WEFT_E_IO, "the data of slice %d are gone", (int)slice->slice);
}

static weft_status refusals(serving *self) {
    static uint64_t     rows[ROWS], mixed_up[3] = {4, 9, 9}, beyond[ROWS];
    int                 calls = 1 << 30, fails = 3;
    trio                tables;
    weft_slices_report  report;
    weft_block          block = {.rows = rows, .row_count = ROWS}, bad = {.rows = mixed_up, .row_count = 3}, far = {.rows = beyond, .row_count = ROWS};
    WEFTI_TRY(open_tables(self, "refusals", 0, &tables));
    for (uint64_t i = 0; i < ROWS; i++) rows[i] = beyond[i] = i;
    beyond[ROWS - 1] = ROWS;
    weft_sliced_table   twice[2] = {tables.all[0], tables.all[0]}, none[1] = {{NULL, false}};
    weft_slices_options how = {.tables = tables.all, .table_count = 3, .budget_bytes = 50 << 10}, wrong = how;
    REFUSED(weft_slices_run(NULL, &block, 1, nothing, &calls, NULL), WEFT_E_INVALID, "options are NULL");
    REFUSED(weft_slices_run(&how, &block, 1, NULL, &calls, NULL), WEFT_E_INVALID, "function is NULL");
    wrong.table_count = 9;
    REFUSED(weft_slices_run(&wrong, &block, 1, nothing, &calls, NULL), WEFT_E_INVALID, "9 tables");
    wrong = (weft_slices_options){.tables = twice, .table_count = 2};
    REFUSED(weft_slices_run(&wrong, &block, 1, nothing, &calls, NULL), WEFT_E_INVALID, "'refusals 0' is there twice");
    wrong = (weft_slices_options){.tables = none, .table_count = 1};
    REFUSED(weft_slices_run(&wrong, &block, 1, nothing, &calls, NULL), WEFT_E_INVALID, "table 0 of 1 is NULL");
    REFUSED(weft_slices_run(&how, &bad, 1, nothing, &calls, NULL), WEFT_E_INVALID, "row 2 of 3 of block 0 is 9 and follows 9");
    wrong = how;
    wrong.budget_bytes = 5000;
    REFUSED(weft_slices_run(&wrong, &block, 1, nothing, &calls, NULL), WEFT_E_INVALID, "the budget is 5000 bytes; slices of one row of table 'refusals 0'");
    for (int pipeline = 0; pipeline < 2; pipeline++, fails = 3) {
        how.pipeline = pipeline;
        REFUSED(weft_slices_run(&how, &far, 1, nothing, &calls, &report), WEFT_E_INVALID, "is 1500; the table has keys below 1500");
        EXPECT(report.slices > 0 && report.blocks == 0, "%d slices before the one that is wrong", (int)report.slices);
        REFUSED(weft_slices_run(&how, &block, 1, nothing, &fails, &report), WEFT_E_IO, "the data of slice 2 are gone");
        EXPECT(report.slices == 3, "%d", (int)report.slices);
        WEFTI_TRY(weft_slices_run(&how, &block, 1, nothing, &calls, &report));
        EXPECT(report.slices > 3 && report.blocks == 1, "%d", (int)report.slices);
    }
    close_tables(&tables);
    return WEFT_OK;
}

Test(slices, say_what_is_wrong_and_can_go_on) { serve_case("shm", 1, NULL, refusals); }

static weft_status die(void *context, const weft_row *row) {
    (void)context;
    if (row->key == ROWS - 1) raise(SIGKILL);
    return WEFT_OK;
}

static weft_status lose_a_server(serving *self) {
    static uint64_t     rows[ROWS];
    int                 calls = 1 << 30;
    weft_table         *table = NULL;
    weft_slices_report  report;
    weft_block          blocks[2] = {{.rows = rows, .row_count = ROWS}, {.rows = rows, .row_count = ROWS}};
    weft_table_options  options = {.name = "deadly", .rows = ROWS, .width = 16, .rule = {.kind = WEFT_TABLE_USER, .function = "die"}, .staleness = WEFT_TABLE_ASYNCHRONOUS};
    WEFTI_TRY(weft_table_create(self->server, &options, &table));
    weft_sliced_table   sliced = {.table = table};
    weft_slices_options how = {.tables = &sliced, .table_count = 1, .budget_bytes = 64 << 10, .pipeline = true};
    for (uint64_t i = 0; i < ROWS; i++) rows[i] = i;
    REFUSED(weft_slices_run(&how, blocks, 2, nothing, &calls, &report), WEFT_E_PEER, "rank 2, which serves rows of table 'deadly', is gone");
    EXPECT(report.slices > 2, "%d", (int)report.slices);
    weft_table_release(table);
    return WEFT_OK;
}

Test(slices, end_with_the_server_that_is_lost) {
    static const weft_table_function function = {.name = "die", .apply = die};
    static const char *const         wires[] = {"shm", "tcp"};
    for (int i = 0; i < 2; i++)
        ranks_free(serve_case_with(wires[i], 3, &(weft_server_options){.servers = 2, .dedicated = true, .functions = &function, .function_count = 1},
                                   lose_a_server, 1 << 2));
}

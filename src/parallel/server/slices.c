/* A block's rows in slices: cut, pulled, computed with, pushed.
 *
 * A slice has one set of requests at a time: its pulls, later its pushes. Without pipelining one slice is there; with it
 * three are: one whose pushes travel, one that is computed, one that is pulled. Values and updates have two places then, since the first and
 * the last of these take turns: what is pulled goes where the values of the one that is pushed were, and its updates are wanted only when those
 * pushes have ended.
 *
 * Memory: what `bytes_of` adds up, which is what the budget bounds. Messages: those of a pull and a push for each slice and table; lists of rows
 * go with both, 8 bytes a row, so that servers keep none; here a list lives as long as its request. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "parallel/server/inside.h"
#include "weft/slices.h"

enum { PLACES = 2, ITEMS = 3, PAGE_BYTES = 4096 };

/* A slice on its way. */
typedef struct slice_item {
    weft_block_slice    slice;
    double        rate;
    int64_t       ends; /* clocks after it: of its block where it is the last one, and of empty blocks that follow */
    weft_request *requests[WEFT_SLICES_TABLES];
    void        **values, **updates; /* of the place that it has */
} slice_item;

typedef struct slices_run {
    const weft_slices_options *options;
    const weft_block          *blocks;
    int64_t                    count;
    weft_slice_function        function;
    void                      *context;
    weft_server               *server;
    weft_slices_report         report;
    int64_t                    rows_most;          /* of a slice */
    int64_t                    block, first, slice; /* where the next slice begins */
    int64_t                    taken;
    bool                       silent;             /* a server may still write to what it was asked to */
    void                      *values[PLACES][WEFT_SLICES_TABLES], *updates[PLACES][WEFT_SLICES_TABLES];
    slice_item                 items[ITEMS];
} slices_run;

static uint64_t now(const slices_run *run) { return wefti_host_now(run->server->host); }
static const weft_sliced_table *table_at(const slices_run *run, int32_t i) { return &run->options->tables[i]; }
static int32_t places_of(const slices_run *run) { return run->options->pipeline ? PLACES : 1; }

/* --- what it takes --- */

static size_t list_bytes(const weft_table *table, int64_t rows) {
    size_t servers = (size_t)table->server->servers, list = wefti_align_up((size_t)rows * sizeof(uint64_t), WEFTI_CACHE_LINE);
    bool   hashed = table->options.split == WEFT_SPLIT_HASH && servers > 1;
    return sizeof(weft_keys) + (servers + 1) * sizeof(int64_t) + servers + 3 * WEFTI_CACHE_LINE + (hashed ? 3 : 1) * list;
}

/* Copies in the order of servers, which are kept for the next request: those of a size, and smaller ones that are less than that together. */
static size_t staging_bytes(const weft_table *table, size_t bytes) {
    size_t room = PAGE_BYTES;
    if (table->options.split != WEFT_SPLIT_HASH || table->server->servers == 1) return 0;
    while (room < bytes) room *= 2;
    return 2 * (room + sizeof(server_buffer));
}

/* With slices of so many rows. */
static size_t bytes_of(const slices_run *run, int64_t rows) {
    size_t sum = 0, places = (size_t)places_of(run);
    for (int32_t i = 0; i < run->options->table_count; i++) {
        const weft_sliced_table *one = table_at(run, i);
        size_t                   bytes = (size_t)rows * one->table->row_bytes, ways = one->read_only ? 1 : 2;
        sum += places * ways * (wefti_align_up(bytes, PAGE_BYTES) + sizeof(server_buffer));
        sum += places * list_bytes(one->table, rows) + ways * staging_bytes(one->table, bytes);
    }
    return sum;
}

/* The most rows, up to `rows`, that the budget holds. */
static int64_t rows_in_budget(const slices_run *run, int64_t rows) {
    int64_t low = 0, high = rows;
    if (run->options->budget_bytes == 0) return rows;
    while (low < high) {
        int64_t middle = low + (high - low + 1) / 2;
        if (bytes_of(run, middle) <= run->options->budget_bytes) low = middle;
        else high = middle - 1;
    }
    return low;
}

/* --- checks --- */

static weft_status check_tables(const weft_slices_options *options) {
    for (int32_t i = 0; i < options->table_count; i++) {
        const weft_table *table = options->tables[i].table;
        if (!table) return wefti_fail(WEFT_E_INVALID, "weft_slices_run: table %d of %d is NULL", (int)i, (int)options->table_count);
        if (table->server != options->tables[0].table->server)
            return wefti_fail(WEFT_E_INVALID, "weft_slices_run: table '%s' is of another server than table '%s'", table->options.name,
                              options->tables[0].table->options.name);
        for (int32_t j = 0; j < i; j++)
            if (options->tables[j].table == table)
                return wefti_fail(WEFT_E_INVALID, "weft_slices_run: table '%s' is there twice, as %d and %d", table->options.name, (int)j, (int)i);
    }
    return WEFT_OK;
}

static weft_status check_block(const weft_block *block, int64_t index) {
    if (block->row_count < 0 || (block->row_count && !block->rows))
        return wefti_fail(WEFT_E_INVALID, "weft_slices_run: block %lld has %lld rows at %s", (long long)index, (long long)block->row_count,
                          block->rows ? "an address" : "NULL");
    for (int64_t i = 1; i < block->row_count; i++)
        if (block->rows[i] <= block->rows[i - 1])
            return wefti_fail(WEFT_E_INVALID, "weft_slices_run: row %lld of %lld of block %lld is %llu and follows %llu; a block's rows ascend",
                              (long long)i, (long long)block->row_count, (long long)index, (unsigned long long)block->rows[i],
                              (unsigned long long)block->rows[i - 1]);
    return WEFT_OK;
}

static weft_status check(const weft_slices_options *options, const weft_block *blocks, int64_t count, weft_slice_function function) {
    if (!options || !function || count < 0 || (count && !blocks))
        return wefti_fail(WEFT_E_INVALID, "weft_slices_run: the %s", !options ? "options are NULL" : !function ? "function is NULL" : "blocks are none");
    if (options->table_count < 1 || options->table_count > WEFT_SLICES_TABLES || !options->tables)
        return wefti_fail(WEFT_E_INVALID, "weft_slices_run: %d tables at %s; 1 to %d are sliced together", (int)options->table_count,
                          options->tables ? "an address" : "NULL", (int)WEFT_SLICES_TABLES);
    WEFTI_TRY(check_tables(options));
    for (int64_t i = 0; i < count; i++) WEFTI_TRY(check_block(&blocks[i], i));
    return WEFT_OK;
}

static weft_status find_rows_most(slices_run *run) {
    int64_t longest = 0;
    size_t  row_bytes = 0, most_bytes = 0;
    for (int64_t i = 0; i < run->count; i++)
        if (run->blocks[i].row_count > longest) longest = run->blocks[i].row_count;
    for (int32_t i = 0; i < run->options->table_count; i++) row_bytes += table_at(run, i)->table->row_bytes;
    /* every sum in bytes_of is below so many times this */
    if (longest && (!wefti_mul_size((size_t)longest, row_bytes + sizeof(uint64_t), &most_bytes) || most_bytes > PTRDIFF_MAX / 32))
        return wefti_fail(WEFT_E_INVALID, "weft_slices_run: a block of %lld rows of %zu bytes", (long long)longest, row_bytes);
    run->rows_most = rows_in_budget(run, longest);
    if (run->rows_most == 0 && longest > 0)
        return wefti_fail(WEFT_E_INVALID, "weft_slices_run: the budget is %zu bytes; slices of one row of table '%s'%s, of %zu bytes, take %zu%s",
                          run->options->budget_bytes, table_at(run, 0)->table->options.name, run->options->table_count > 1 ? " and the others" : "",
                          row_bytes, bytes_of(run, 1), run->options->pipeline ? ", with pipelining" : "");
    return WEFT_OK;
}

/* --- memory --- */

static weft_status take_memory(slices_run *run) {
    for (int32_t place = 0; place < places_of(run); place++)
        for (int32_t i = 0; i < run->options->table_count; i++) {
            size_t bytes = (size_t)run->rows_most * table_at(run, i)->table->row_bytes;
            WEFTI_TRY(weft_server_alloc(run->server, bytes, &run->values[place][i]));
            if (!table_at(run, i)->read_only) WEFTI_TRY(weft_server_alloc(run->server, bytes, &run->updates[place][i]));
        }
    run->report.peak_bytes = bytes_of(run, run->rows_most);
    return WEFT_OK;
}

/* Memory that a silent server may write to stays until the server is released. */
static void give_memory(slices_run *run) {
    for (int32_t place = 0; place < PLACES && !run->silent; place++)
        for (int32_t i = 0; i < WEFT_SLICES_TABLES; i++) {
            weft_server_free(run->server, run->values[place][i]);
            weft_server_free(run->server, run->updates[place][i]);
        }
}

/* --- requests --- */

static weft_status start(slices_run *run, slice_item *item, weft_request_kind kind) {
    for (int32_t i = 0; i < run->options->table_count; i++) {
        const weft_sliced_table *one = table_at(run, i);
        if (kind == WEFT_PUSH && one->read_only) continue;
        weft_table_call call = {.kind = kind, .rows = item->slice.rows, .row_count = item->slice.row_count, .send = item->updates[i],
                                .receive = item->values[i], .rate = item->rate};
        WEFTI_TRY(weft_table_start_call(one->table, &call, &item->requests[i]));
        uint64_t bytes = (uint64_t)item->slice.row_count * one->table->row_bytes;
        if (kind == WEFT_PUSH) {
            run->report.pushes++;
            run->report.pushed_bytes += bytes;
        } else {
            run->report.pulls++;
            run->report.pulled_bytes += bytes;
            run->report.pulled_rows += (uint64_t)item->slice.row_count;
        }
    }
    return WEFT_OK;
}

/* Waits for all of a slice's, whatever becomes of one, and says the first failure. */
static weft_status finish(slices_run *run, slice_item *item, weft_status status) {
    char     message[WEFTI_MESSAGE_BYTES];
    uint64_t begin_ns = now(run);
    bool     before = status != WEFT_OK;
    if (before) snprintf(message, sizeof message, "%s", weft_error_message());
    for (int32_t i = 0; i < run->options->table_count; i++) {
        if (!item->requests[i]) continue;
        weft_status ended = weft_request_wait(item->requests[i], 0);
        item->requests[i] = NULL;
        if (ended == WEFT_E_TIMEOUT) run->silent = true;
        if (ended == WEFT_OK || status != WEFT_OK) continue;
        status = ended;
        snprintf(message, sizeof message, "%s", weft_error_message());
    }
    run->report.wait_ns += now(run) - begin_ns;
    return status == WEFT_OK ? WEFT_OK : wefti_fail(status, "%s", message);
}

static weft_status end_clocks(slices_run *run, int64_t clocks) {
    if (run->options->no_clock) return WEFT_OK;
    for (int64_t clock = 0; clock < clocks; clock++)
        for (int32_t i = 0; i < run->options->table_count; i++) WEFTI_TRY(weft_table_clock(table_at(run, i)->table));
    return WEFT_OK;
}

/* --- slices --- */

/* Over blocks without rows. */
static int64_t skip_empty(slices_run *run) {
    int64_t before = run->block;
    while (run->block < run->count && run->blocks[run->block].row_count == 0) run->block++;
    return run->block - before;
}

/* Slices of a block are about as long as each other: the last one is no remainder that waits as long for little. */
static int64_t length_of(const slices_run *run) {
    int64_t left = run->blocks[run->block].row_count - run->first, slices = (left + run->rows_most - 1) / run->rows_most;
    return (left + slices - 1) / slices;
}

/* Cuts the next slice and begins to pull it; *item_out is NULL after the last one. */
static weft_status take(slices_run *run, slice_item **item_out) {
    *item_out = NULL;
    if (run->block == run->count) return WEFT_OK;
    const weft_block *block = &run->blocks[run->block];
    slice_item       *item = &run->items[run->taken % ITEMS];
    int32_t           place = (int32_t)(run->taken++ % places_of(run));
    item->values = run->values[place];
    item->updates = run->updates[place];
    item->rate = block->rate;
    item->ends = 0;
    item->slice = (weft_block_slice){.block = run->block, .slice = run->slice++, .first = run->first, .rows = block->rows + run->first, .row_count = length_of(run),
                               .values = item->values, .updates = item->updates};
    run->first += item->slice.row_count;
    if (item->slice.row_count > run->report.slice_rows) run->report.slice_rows = item->slice.row_count;
    if (run->first == block->row_count) {
        run->block++;
        run->first = run->slice = 0;
        item->ends = 1 + skip_empty(run);
    }
    *item_out = item;
    return start(run, item, WEFT_PULL);
}

static weft_status compute(slices_run *run, slice_item *item) {
    for (int32_t i = 0; i < run->options->table_count; i++)
        if (item->updates[i]) memset(item->updates[i], 0, (size_t)item->slice.row_count * table_at(run, i)->table->row_bytes);
    uint64_t    begin_ns = now(run);
    weft_status status = run->function(run->context, &item->slice);
    run->report.compute_ns += now(run) - begin_ns;
    run->report.slices++;
    return status;
}

static weft_status push(slices_run *run, slice_item *item) {
    WEFTI_TRY(start(run, item, WEFT_PUSH));
    run->report.blocks += item->ends;
    return end_clocks(run, item->ends);
}

static weft_status end_pushes(slices_run *run, slice_item *item) {
    return item ? finish(run, item, WEFT_OK) : WEFT_OK;
}

/* --- the order of things --- */

static weft_status run_one_by_one(slices_run *run) {
    slice_item *item = NULL;
    WEFTI_TRY(take(run, &item));
    while (item) {
        WEFTI_TRY(finish(run, item, WEFT_OK));
        WEFTI_TRY(compute(run, item));
        WEFTI_TRY(push(run, item));
        WEFTI_TRY(end_pushes(run, item));
        WEFTI_TRY(take(run, &item));
    }
    return WEFT_OK;
}

/* Updates are computed into one place while those in the other travel, which have arrived before it is the other one's turn. */
static weft_status run_pipelined(slices_run *run) {
    slice_item *before = NULL, *item = NULL, *next = NULL;
    WEFTI_TRY(take(run, &item));
    while (item) {
        WEFTI_TRY(finish(run, item, WEFT_OK));
        WEFTI_TRY(take(run, &next));
        if (next && item->ends) run->report.staleness_added = 1;
        WEFTI_TRY(compute(run, item));
        WEFTI_TRY(end_pushes(run, before));
        WEFTI_TRY(push(run, item));
        before = item;
        item = next;
    }
    return end_pushes(run, before);
}

weft_status weft_slices_run(const weft_slices_options *options, const weft_block *blocks, int64_t count, weft_slice_function function, void *context,
                            weft_slices_report *report_out) {
    slices_run run = {.options = options, .blocks = blocks, .count = count, .function = function, .context = context};
    if (report_out) *report_out = run.report;
    WEFTI_TRY(check(options, blocks, count, function));
    run.server = options->tables[0].table->server;
    WEFTI_TRY(find_rows_most(&run));
    uint64_t    begin_ns = now(&run);
    weft_status status = take_memory(&run);
    if (status == WEFT_OK) {
        run.report.blocks = skip_empty(&run);
        status = end_clocks(&run, run.report.blocks);
    }
    if (status == WEFT_OK) status = options->pipeline ? run_pipelined(&run) : run_one_by_one(&run);
    for (int32_t i = 0; i < ITEMS; i++) status = finish(&run, &run.items[i], status);
    give_memory(&run);
    run.report.total_ns = now(&run) - begin_ns;
    if (report_out) *report_out = run.report;
    return status;
}

/* The sum of a clock's pushes. Places are cut into pages of some rows (about 4 KiB of values); a page is there while one of its rows was pushed
 * in this clock, found by a list over all pages, so that rows come in ascending order of place without sorting. Pages lie in blocks, are dealt
 * out in the order in which they are needed, and are all free again when the sum was applied: the memory is that of the clock that touched most.
 *
 * A page: [rows, width] of the sum's dtype, then [rows] of u32, how many pushed each. The first push of a row is copied, others are added, so
 * nothing but the counts needs to be zeroed. Of a hybrid store pages have rows of hybrid.h, whose memory is freed when the sum was applied. */
#include <string.h>

#include "parallel/server/store_entries.h"
#include "parallel/server/store_internal.h"

enum { PAGE_BYTES = 4096, BLOCK_LEAST_BYTES = 4096, BLOCK_MOST_BYTES = 1 << 20, PAGE_ROWS_MOST = 1024, LIST_LEAST = 64 };

struct wefti_sum {
    wefti_store *store;
    weft_dtype   dtype; /* of what is added up */
    size_t       row_bytes, counts_at, page_bytes;
    void        *row; /* hybrid: [width] of dtype, on its way */
    size_t       whole_row_bytes;
    uint32_t     page_shift; /* rows of a page, as a power of two */
    int64_t      rows;       /* pushed in this clock */

    uint32_t    *pages; /* [page_room]: number of the page's memory + 1; 0: none */
    uint64_t     page_room;
    wefti_blocks blocks;
    uint8_t    **memory; /* [block_room] */
    uint64_t     block_count, block_room, in_use, in_all; /* blocks; pages that are dealt out, and that there are */
    size_t       bytes;
};

weft_status wefti_sum_create(wefti_store *store, wefti_sum **sum_out) {
    *sum_out = NULL;
    wefti_sum *sum;
    WEFTI_TRY(wefti_alloc(sizeof *sum, "the sum of a clock", &sum));
    sum->store = store;
    sum->dtype = store->held == WEFT_I32 ? WEFT_I64 : store->held;
    sum->row_bytes = (size_t)store->options.width * weft_dtype_bytes(sum->dtype); /* a store keeps its rows below half of all addresses */
    if (store->options.hybrid) {
        sum->whole_row_bytes = sum->row_bytes;
        sum->row_bytes = sizeof(wefti_hybrid_row);
        weft_status status = wefti_alloc_raw(sum->whole_row_bytes, WEFTI_CACHE_LINE, "a row of a clock's sum", &sum->row);
        if (status != WEFT_OK) {
            wefti_sum_release(sum);
            return status;
        }
    }
    while (sum->row_bytes <= (size_t)PAGE_BYTES >> (sum->page_shift + 1) && 1 << sum->page_shift < PAGE_ROWS_MOST) sum->page_shift++;
    sum->counts_at = sum->row_bytes << sum->page_shift;
    sum->page_bytes = wefti_align_up(sum->counts_at + (sizeof(uint32_t) << sum->page_shift), WEFTI_CACHE_LINE);
    sum->blocks = wefti_blocks_of(sum->page_bytes, BLOCK_LEAST_BYTES, BLOCK_MOST_BYTES);
    *sum_out = sum;
    return WEFT_OK;
}

static uint8_t *page_memory(const wefti_sum *sum, uint32_t number) {
    wefti_spot spot = wefti_blocks_find(sum->blocks, number - 1);
    return sum->memory[spot.block] + spot.at * sum->page_bytes;
}

static wefti_hybrid_shape shape_of(const wefti_sum *sum) {
    return (wefti_hybrid_shape){(uint32_t)sum->store->options.width, sum->dtype};
}

/* Rows of hybrid.h, also those that were not pushed after all. */
static void empty_page(wefti_sum *sum, uint64_t page) {
    const wefti_hybrid_shape shape = shape_of(sum);
    wefti_hybrid_row        *rows = (wefti_hybrid_row *)(void *)page_memory(sum, sum->pages[page]);
    for (uint64_t at = 0; at < UINT64_C(1) << sum->page_shift; at++) {
        sum->bytes -= wefti_hybrid_bytes(&shape, &rows[at]);
        wefti_hybrid_release(&shape, &rows[at]);
    }
}

void wefti_sum_release(wefti_sum *sum) {
    if (!sum) return;
    for (uint64_t page = 0; sum->store->options.hybrid && page < sum->page_room; page++)
        if (sum->pages[page]) empty_page(sum, page);
    wefti_free(sum->row, sum->whole_row_bytes);
    for (uint64_t i = 0; i < sum->block_count; i++) wefti_free(sum->memory[i], sum->page_bytes * wefti_blocks_size(sum->blocks, i));
    wefti_free(sum->memory, sum->block_room * sizeof *sum->memory);
    wefti_free(sum->pages, sum->page_room * sizeof *sum->pages);
    wefti_free(sum, sizeof *sum);
}

int64_t wefti_sum_rows(const wefti_sum *sum) { return sum->rows; }
size_t  wefti_sum_bytes(const wefti_sum *sum) { return sum->bytes; }

/* --- pages --- */

static weft_status add_block(wefti_sum *sum) {
    uint64_t size = wefti_blocks_size(sum->blocks, sum->block_count);
    size_t   bytes;
    if (sum->in_all + size >= UINT32_MAX || !wefti_mul_size(size, sum->page_bytes, &bytes))
        return wefti_fail(WEFT_E_NO_MEMORY, "%llu pages of a clock's sum are too many", (unsigned long long)(sum->in_all + size));
    if (sum->block_count == sum->block_room) {
        uint64_t room = sum->block_room ? 2 * sum->block_room : LIST_LEAST;
        WEFTI_TRY(wefti_grow(&sum->memory, sum->block_room * sizeof *sum->memory, room * sizeof *sum->memory, "the list of a sum's blocks"));
        sum->bytes += (room - sum->block_room) * sizeof *sum->memory;
        sum->block_room = room;
    }
    WEFTI_TRY(wefti_alloc_raw(bytes, WEFTI_CACHE_LINE, "a clock's sum", &sum->memory[sum->block_count]));
    sum->block_count++;
    sum->in_all += size;
    sum->bytes += bytes;
    return WEFT_OK;
}

static weft_status need_page(wefti_sum *sum, uint64_t page) {
    if (sum->pages[page]) return WEFT_OK;
    if (sum->in_use == sum->in_all) WEFTI_TRY(add_block(sum));
    sum->pages[page] = (uint32_t)++sum->in_use;
    size_t from = sum->store->options.hybrid ? 0 : sum->counts_at;
    memset(page_memory(sum, sum->pages[page]) + from, 0, sum->counts_at - from + (sizeof(uint32_t) << sum->page_shift));
    return WEFT_OK;
}

/* The pages of all places. Those that came before one failed have counts of zero, and so are no part of the sum. */
static weft_status need_pages(wefti_sum *sum, const uint64_t *places, uint64_t begin, int64_t count) {
    uint64_t needed = ((sum->store->rows - 1) >> sum->page_shift) + 1;
    if (needed > sum->page_room) {
        uint64_t room = wefti_max_i64(LIST_LEAST, (int64_t)sum->page_room);
        while (room < needed) room *= 2;
        if (!sum->store->options.sparse) room = needed;
        WEFTI_TRY(wefti_grow(&sum->pages, sum->page_room * sizeof *sum->pages, room * sizeof *sum->pages, "the list of a sum's pages"));
        sum->bytes += (room - sum->page_room) * sizeof *sum->pages;
        sum->page_room = room;
    }
    if (!places) {
        for (uint64_t page = begin >> sum->page_shift; page <= (begin + (uint64_t)count - 1) >> sum->page_shift; page++)
            WEFTI_TRY(need_page(sum, page));
        return WEFT_OK;
    }
    for (int64_t i = 0; i < count; i++) WEFTI_TRY(need_page(sum, places[i] >> sum->page_shift));
    return WEFT_OK;
}

/* --- adding --- */

/* Rows from i on that lie one after the other in one page and are all new, or all not. */
static int64_t run_length(const uint32_t *counts, uint64_t at, uint64_t page_rows, const uint64_t *places, int64_t most) {
    int64_t rows = 1;
    if (most > (int64_t)(page_rows - at)) most = (int64_t)(page_rows - at);
    while (rows < most && (!places || places[rows] == places[0] + (uint64_t)rows) && !counts[at + (uint64_t)rows] == !counts[at]) rows++;
    return rows;
}

/* One row, of the table's dtype; `fills`: makes room only, which is what may fail. */
static weft_status add_hybrid(wefti_sum *sum, uint64_t place, const uint8_t *from, bool fills) {
    const wefti_store       *store = sum->store;
    const wefti_hybrid_shape shape = shape_of(sum);
    const uint64_t           at = place & ((UINT64_C(1) << sum->page_shift) - 1);
    uint8_t                 *memory = page_memory(sum, sum->pages[place >> sum->page_shift]);
    uint32_t                *counts = (uint32_t *)(void *)(memory + sum->counts_at);
    wefti_hybrid_row        *row = (wefti_hybrid_row *)(void *)memory + at;
    if (fills && row->room == WEFTI_HYBRID_DENSE) return WEFT_OK;
    store->loops->begin[store->options.dtype](sum->row, from, store->options.width);
    if (fills) {
        size_t had = wefti_hybrid_bytes(&shape, row);
        WEFTI_TRY(wefti_hybrid_reserve(&shape, row, (uint64_t)row->used + wefti_hybrid_missing(&shape, row, sum->row)));
        sum->bytes += wefti_hybrid_bytes(&shape, row) - had;
        return WEFT_OK;
    }
    if (row->room == WEFTI_HYBRID_DENSE) store->loops->add[sum->dtype](row->memory, sum->row, store->options.width, 1);
    else wefti_hybrid_add_row(&shape, row, sum->row);
    sum->rows += counts[at]++ == 0;
    return WEFT_OK;
}

static weft_status add_hybrids(wefti_sum *sum, const uint64_t *places, uint64_t begin, int64_t count, const uint8_t *from) {
    for (int32_t turn = 0; turn < 2; turn++)
        for (int64_t i = 0; i < count; i++)
            WEFTI_TRY(add_hybrid(sum, places ? places[i] : begin + (uint64_t)i, from + (size_t)i * sum->store->in_row_bytes, turn == 0));
    return WEFT_OK;
}

static weft_status while_adding(const wefti_sum *sum, weft_status status, int64_t count) {
    return wefti_while(status, "table '%s', adding %lld rows to a clock's sum, which holds %zu bytes", sum->store->options.name, (long long)count, sum->bytes);
}

weft_status wefti_sum_add(wefti_sum *sum, const uint64_t *places, uint64_t begin, int64_t count, const void *updates) {
    if (count <= 0) return WEFT_OK;
    const wefti_store *store = sum->store;
    const weft_dtype   given = store->options.dtype;
    const uint64_t     page_rows = UINT64_C(1) << sum->page_shift;
    const bool         hybrid = store->options.hybrid;
    weft_status        status = need_pages(sum, places, begin, count);
    if (status == WEFT_OK && hybrid) status = add_hybrids(sum, places, begin, count, updates);
    if (status != WEFT_OK) return while_adding(sum, status, count);
    for (int64_t i = 0; i < count && !hybrid;) {
        uint64_t  place = places ? places[i] : begin + (uint64_t)i, at = place & (page_rows - 1);
        uint8_t  *memory = page_memory(sum, sum->pages[place >> sum->page_shift]);
        uint32_t *counts = (uint32_t *)(void *)(memory + sum->counts_at);
        int64_t   rows = run_length(counts, at, page_rows, places ? places + i : NULL, count - i);
        const uint8_t *from = (const uint8_t *)updates + (size_t)i * store->in_row_bytes;
        (counts[at] ? store->loops->more : store->loops->begin)[given](memory + at * sum->row_bytes, from, rows * store->options.width);
        for (int64_t row = 0; row < rows; row++) sum->rows += counts[at + (uint64_t)row]++ == 0;
        i += rows;
    }
    return WEFT_OK;
}

/* --- adding entries --- */

/* A row of a page and how many have pushed it. */
static void *find_row(const wefti_sum *sum, uint64_t place, uint32_t **pushed_out) {
    const uint64_t at = place & ((UINT64_C(1) << sum->page_shift) - 1);
    uint8_t       *memory = page_memory(sum, sum->pages[place >> sum->page_shift]);
    *pushed_out = (uint32_t *)(void *)(memory + sum->counts_at) + at;
    return memory + at * sum->row_bytes;
}

/* Of one row; `fills` as in add_hybrid. A row that is pushed first is zero but for these. */
static weft_status add_row_entries(wefti_sum *sum, uint64_t place, const uint8_t *columns, uint32_t column_bytes, const uint8_t *values, uint32_t count, bool fills) {
    const wefti_store *store = sum->store;
    const weft_dtype   given = store->options.dtype;
    const void        *from = values;
    uint32_t          *pushed;
    void              *row = find_row(sum, place, &pushed);
    if (given != sum->dtype && count) { /* at most a row of them */
        from = store->options.hybrid ? sum->row : store->scratch;
        store->loops->begin[given](store->options.hybrid ? sum->row : store->scratch, values, count);
    }
    if (store->options.hybrid) {
        const wefti_hybrid_shape shape = shape_of(sum);
        wefti_hybrid_row        *hybrid = row;
        if (fills) {
            size_t had = wefti_hybrid_bytes(&shape, hybrid);
            WEFTI_TRY(wefti_hybrid_reserve(&shape, hybrid, (uint64_t)hybrid->used + wefti_hybrid_missing_entries(&shape, hybrid, columns, column_bytes, from, count)));
            sum->bytes += wefti_hybrid_bytes(&shape, hybrid) - had;
            return WEFT_OK;
        }
        wefti_hybrid_add_entries(&shape, hybrid, columns, column_bytes, from, count);
    } else {
        if (!*pushed) memset(row, 0, sum->row_bytes);
        wefti_entries_add(sum->dtype, row, columns, column_bytes, from, count, !*pushed);
    }
    sum->rows += (*pushed)++ == 0;
    return WEFT_OK;
}

weft_status wefti_sum_add_entries(wefti_sum *sum, const uint64_t *places, uint64_t begin, int64_t count, const wefti_entries *entries) {
    if (count <= 0) return WEFT_OK;
    weft_status status = need_pages(sum, places, begin, count);
    for (int32_t turn = !sum->store->options.hybrid; turn < 2 && status == WEFT_OK; turn++)
        for (uint64_t i = 0, at = 0; i < (uint64_t)count && status == WEFT_OK; at += entries->counts[i++])
            status = add_row_entries(sum, places ? places[i] : begin + i, entries->columns + at * entries->column_bytes, entries->column_bytes,
                                     entries->values + at * entries->element_bytes, entries->counts[i], turn == 0);
    return status == WEFT_OK ? WEFT_OK : while_adding(sum, status, count);
}

/* --- giving it to the rule --- */

static weft_status give_page(wefti_sum *sum, uint64_t page, wefti_scaling scaling, weft_status *failures) {
    const bool      average = sum->store->options.rule.kind == WEFT_TABLE_AVERAGE;
    const uint8_t  *memory = page_memory(sum, sum->pages[page]);
    const uint32_t *counts = (const uint32_t *)(const void *)(memory + sum->counts_at);
    const uint64_t  page_rows = UINT64_C(1) << sum->page_shift;
    for (uint64_t at = 0, end; at < page_rows; at = end) {
        end = at + 1;
        if (!counts[at]) continue;
        while (end < page_rows && counts[end] && (!average || counts[end] == counts[at])) end++;
        if (average) scaling = (wefti_scaling){1, counts[at]};
        WEFTI_TRY(wefti_store_give(sum->store, NULL, (page << sum->page_shift) + at, (int64_t)(end - at), memory + at * sum->row_bytes, sum->dtype,
                                   scaling, failures));
    }
    return WEFT_OK;
}

/* Each row whole, one after the other. `fills`: makes room in the store only. */
static weft_status give_hybrids(wefti_sum *sum, uint64_t page, wefti_scaling scaling, bool fills) {
    const wefti_hybrid_shape shape = shape_of(sum);
    const uint8_t           *memory = page_memory(sum, sum->pages[page]);
    const uint32_t          *counts = (const uint32_t *)(const void *)(memory + sum->counts_at);
    const wefti_hybrid_row  *rows = (const wefti_hybrid_row *)(const void *)memory;
    for (uint64_t at = 0; at < UINT64_C(1) << sum->page_shift; at++) {
        if (!counts[at] || rows[at].room == 0) continue; /* zeros change nothing */
        wefti_hybrid_read(&shape, &rows[at], sum->row);
        WEFTI_TRY((fills ? wefti_hybrid_store_reserve : wefti_hybrid_store_give)(sum->store, NULL, (page << sum->page_shift) + at, 1, sum->row,
                                                                                sum->dtype, scaling));
    }
    return WEFT_OK;
}

/* All that comes to pass for the whole sum, or nothing. */
static weft_status reserve_all(wefti_sum *sum, wefti_scaling scaling) {
    for (uint64_t page = 0, left = sum->in_use; left && page < sum->page_room; page++) {
        if (!sum->pages[page]) continue;
        left--;
        WEFTI_TRY(give_hybrids(sum, page, scaling, true));
    }
    return WEFT_OK;
}

weft_status wefti_sum_apply(wefti_sum *sum, double scale) {
    weft_status         failures = WEFT_OK, status = WEFT_OK;
    const wefti_scaling scaling = wefti_scaling_of(sum->store, scale);
    const bool          hybrid = sum->store->options.hybrid;
    if (hybrid) status = reserve_all(sum, scaling);
    for (uint64_t page = 0, left = sum->in_use; left && page < sum->page_room; page++) {
        if (!sum->pages[page]) continue;
        left--;
        if (status == WEFT_OK) status = hybrid ? give_hybrids(sum, page, scaling, false) : give_page(sum, page, scaling, &failures);
        if (hybrid) empty_page(sum, page);
        sum->pages[page] = 0;
    }
    sum->in_use = 0;
    sum->rows = 0;
    return status != WEFT_OK ? status : failures;
}

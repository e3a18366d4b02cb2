/* Local aggregation. Parts by a hash of the row, each with its lock: entries in the order in which they came, their sums beside them, and an open hash
 * over both. A flush takes what the parts have away from them, so that threads go on at once, sorts it by row and column, and pushes
 * rows, or their entries where that is less, in pieces. What is not pushed stays sorted as it is, and goes first next time. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/base.h"
#include "core/tensor/half.h"
#include "parallel/server/exact.h"
#include "parallel/server/store_entries.h"
#include "weft/entries.h"
#include "weft/updates.h"

enum { PARTS = 64, ROOM_LEAST = 64, PIECE_BYTES = 4 << 20 };

typedef struct sums_entry { uint64_t row; uint32_t column, special; } sums_entry;

typedef struct sums_heap {
    sums_entry    *entries; /* [room], `count` in use */
    uint64_t *sums;    /* [room, words] */
    uint32_t *index;   /* [2 room]: number of the entry and 1; 0: free. Linear probing */
    uint64_t  count, room;
} sums_heap;

typedef struct sums_part {
    pthread_mutex_t lock;
    sums_heap            heap;
} sums_part;

/* An entry to be pushed. */
typedef struct sums_item { uint64_t row; uint32_t column, part; uint64_t at; } sums_item;

struct weft_updates {
    weft_table      *table;
    uint64_t         rows; /* 0: any */
    int64_t          width;
    weft_dtype       dtype;
    size_t           element, words;
    bool             by_entries; /* where that is fewer bytes */
    sums_part             parts[PARTS];
    pthread_mutex_t  flushing; /* guards what follows */
    sums_heap             taken[PARTS];
    sums_item            *items;
    uint64_t         count, at; /* of all that is taken; the first that is not pushed */
    int64_t          pushed;
};

static uint64_t scatter(uint64_t key) { /* Stafford's finaliser of 64 bits (mix 13) */
    key = (key ^ key >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    key = (key ^ key >> 27) * UINT64_C(0x94d049bb133111eb);
    return key ^ key >> 31;
}

/* --- entries --- */

static void empty(const weft_updates *updates, sums_heap *heap) {
    wefti_free(heap->entries, heap->room * sizeof *heap->entries);
    wefti_free(heap->sums, heap->room * updates->words * sizeof *heap->sums);
    wefti_free(heap->index, 2 * heap->room * sizeof *heap->index);
    memset(heap, 0, sizeof *heap);
}

static uint32_t *place_of(const sums_heap *heap, uint64_t row, uint32_t column) {
    uint64_t mask = 2 * heap->room - 1, at = scatter(row * UINT64_C(0x9e3779b97f4a7c15) + column) & mask;
    while (heap->index[at]) {
        const sums_entry *there = &heap->entries[heap->index[at] - 1];
        if (there->row == row && there->column == column) break;
        at = (at + 1) & mask;
    }
    return &heap->index[at];
}

/* Room for so many more, or nothing changes. */
static weft_status make_room(const weft_updates *updates, sums_heap *had, uint64_t more) {
    const char *what = "updates that are added up before they are pushed";
    sums_heap        now = {.count = had->count, .room = had->room ? had->room : ROOM_LEAST};
    while (now.room < had->count + more) now.room *= 2;
    if (now.room == had->room) return WEFT_OK;
    if (now.room > UINT32_MAX / 4) return wefti_fail(WEFT_E_NO_MEMORY, "table '%s': %llu updates of elements are too many for one flush",
                                                     weft_table_describe(updates->table)->name, (unsigned long long)now.room * PARTS);
    weft_status status = wefti_alloc(now.room * sizeof *now.entries, what, &now.entries);
    if (status == WEFT_OK) status = wefti_alloc(now.room * updates->words * sizeof *now.sums, what, &now.sums);
    if (status == WEFT_OK) status = wefti_alloc(2 * now.room * sizeof *now.index, what, &now.index);
    if (status != WEFT_OK) {
        empty(updates, &now);
        return status;
    }
    if (had->count) {
        memcpy(now.entries, had->entries, had->count * sizeof *now.entries);
        memcpy(now.sums, had->sums, had->count * updates->words * sizeof *now.sums);
    }
    for (uint64_t i = 0; i < now.count; i++) *place_of(&now, now.entries[i].row, now.entries[i].column) = (uint32_t)i + 1;
    empty(updates, had);
    *had = now;
    return WEFT_OK;
}

static bool is_zero(const weft_updates *updates, const void *value) {
    static const uint64_t zero;
    return memcmp(value, &zero, updates->element) == 0; /* a zero with a sign adds nothing either, but does no harm */
}

/* There is room. */
static void add_one(const weft_updates *updates, sums_heap *heap, uint64_t row, uint32_t column, const void *value) {
    union { int32_t i32; int64_t i64; float f32; double f64; uint16_t half; } x = {.i64 = 0};
    uint32_t *place = place_of(heap, row, column);
    if (!*place) {
        heap->entries[heap->count] = (sums_entry){row, column, 0};
        *place = (uint32_t)++heap->count;
    }
    sums_entry    *one = &heap->entries[*place - 1];
    uint64_t *sum = heap->sums + (size_t)(*place - 1) * updates->words;
    memcpy(&x, value, updates->element);
    switch (updates->dtype) {
    case WEFT_F32: wefti_exact_add_f32(sum, &one->special, x.f32); break;
    case WEFT_F64: wefti_exact_add_f64(sum, &one->special, x.f64); break;
    case WEFT_F16: wefti_exact_add_f32(sum, &one->special, wefti_f16_to_f32(x.half)); break;
    case WEFT_BF16: wefti_exact_add_f32(sum, &one->special, wefti_bf16_to_f32(x.half)); break;
    case WEFT_I32: *sum += (uint64_t)(int64_t)x.i32; break;
    default: *sum += (uint64_t)x.i64;
    }
}

static weft_status check_row(const weft_updates *updates, uint64_t row) {
    if (!updates->rows || row < updates->rows) return WEFT_OK;
    return wefti_fail(WEFT_E_INVALID, "table '%s' has %llu rows, and no row %llu to add to", weft_table_describe(updates->table)->name,
                      (unsigned long long)updates->rows, (unsigned long long)row);
}

weft_status weft_updates_add(weft_updates *updates, uint64_t row, const void *values) {
    const uint8_t *from = values;
    int64_t        more = 0;
    WEFTI_TRY(check_row(updates, row));
    for (int64_t i = 0; i < updates->width; i++) more += !is_zero(updates, from + (size_t)i * updates->element);
    sums_part *part = &updates->parts[scatter(row) % PARTS];
    pthread_mutex_lock(&part->lock);
    weft_status status = make_room(updates, &part->heap, (uint64_t)more + 1);
    if (status == WEFT_OK && more == 0) add_one(updates, &part->heap, row, 0, from);
    for (int64_t i = 0; i < updates->width && status == WEFT_OK && more; i++) {
        const uint8_t *value = from + (size_t)i * updates->element;
        if (!is_zero(updates, value)) add_one(updates, &part->heap, row, (uint32_t)i, value);
    }
    pthread_mutex_unlock(&part->lock);
    return status;
}

weft_status weft_updates_add_entry(weft_updates *updates, uint64_t row, int64_t column, const void *value) {
    WEFTI_TRY(check_row(updates, row));
    if (column < 0 || column >= updates->width)
        return wefti_fail(WEFT_E_INVALID, "table '%s' has rows of %lld elements, and no column %lld to add to", weft_table_describe(updates->table)->name,
                          (long long)updates->width, (long long)column);
    sums_part *part = &updates->parts[scatter(row) % PARTS];
    pthread_mutex_lock(&part->lock);
    weft_status status = make_room(updates, &part->heap, 1);
    if (status == WEFT_OK) add_one(updates, &part->heap, row, (uint32_t)column, value);
    pthread_mutex_unlock(&part->lock);
    return status;
}

/* --- flushing --- */

static int by_place(const void *a, const void *b) {
    const sums_item *x = a, *y = b;
    if (x->row != y->row) return x->row < y->row ? -1 : 1;
    return x->column < y->column ? -1 : x->column > y->column;
}

static void forget_items(weft_updates *updates) {
    for (int i = 0; i < PARTS; i++) empty(updates, &updates->taken[i]);
    wefti_free(updates->items, updates->count * sizeof *updates->items);
    updates->items = NULL;
    updates->count = updates->at = 0;
}

/* One part after the other: a call is of one row, and so of one part, wholly. */
static void take(weft_updates *updates) {
    for (int i = 0; i < PARTS; i++) {
        pthread_mutex_lock(&updates->parts[i].lock);
        updates->taken[i] = updates->parts[i].heap;
        memset(&updates->parts[i].heap, 0, sizeof updates->parts[i].heap);
        pthread_mutex_unlock(&updates->parts[i].lock);
        updates->count += updates->taken[i].count;
    }
}

static weft_status order(weft_updates *updates) {
    uint64_t next = 0;
    WEFTI_TRY(wefti_alloc_raw(updates->count * sizeof *updates->items, WEFTI_CACHE_LINE, "the order of updates that are pushed", &updates->items));
    for (uint32_t i = 0; i < PARTS; i++)
        for (uint64_t k = 0; k < updates->taken[i].count; k++)
            updates->items[next++] = (sums_item){updates->taken[i].entries[k].row, updates->taken[i].entries[k].column, i, k};
    qsort(updates->items, updates->count, sizeof *updates->items, by_place);
    return WEFT_OK;
}

static void round_sum(const weft_updates *updates, const sums_item *item, uint8_t *out) {
    const sums_heap     *heap = &updates->taken[item->part];
    const uint64_t *sum = heap->sums + item->at * updates->words;
    const uint32_t  special = heap->entries[item->at].special;
    if (updates->dtype == WEFT_F32) memcpy(out, &(float){wefti_exact_f32(sum, special)}, sizeof(float));
    else if (updates->dtype == WEFT_F64) memcpy(out, &(double){wefti_exact_f64(sum, special)}, sizeof(double));
    else if (updates->dtype == WEFT_F16) memcpy(out, &(uint16_t){wefti_f32_to_f16(wefti_exact_odd_f32(sum, special))}, sizeof(uint16_t));
    else if (updates->dtype == WEFT_BF16) memcpy(out, &(uint16_t){wefti_f32_to_bf16(wefti_exact_odd_f32(sum, special))}, sizeof(uint16_t));
    else memcpy(out, sum, updates->element); /* little endian: I32 takes the lower half, which wraps as it does */
}

/* What goes with one request: rows, or their entries where that is fewer bytes. */
typedef struct sums_piece {
    uint64_t end, entries; /* items up to there; how many */
    int64_t  rows;
    bool     by_entries;
} sums_piece;

static uint64_t end_of_row(const weft_updates *updates, uint64_t at) {
    uint64_t end = at + 1;
    while (end < updates->count && updates->items[end].row == updates->items[at].row) end++;
    return end;
}

/* As many rows as some MiB hold, one at least. */
static sums_piece next_piece(const weft_updates *updates) {
    const size_t row_bytes = (size_t)updates->width * updates->element, entry_bytes = updates->element + wefti_entries_column_bytes(updates->width);
    sums_piece   piece = {.end = updates->at};
    while (piece.end < updates->count) {
        uint64_t end = end_of_row(updates, piece.end), entries = piece.entries + (end - piece.end), rows = (uint64_t)piece.rows + 1;
        uint64_t as_rows = rows * row_bytes, as_entries = rows * sizeof(uint32_t) + entries * entry_bytes;
        bool     fewer = updates->by_entries && as_entries < as_rows;
        if (piece.rows > 0 && (fewer ? as_entries : as_rows) > PIECE_BYTES) break;
        piece = (sums_piece){end, entries, (int64_t)rows, fewer};
    }
    return piece;
}

static weft_status push_rows(weft_updates *updates, const sums_piece *piece, uint64_t *rows, uint8_t *values) {
    const size_t row_bytes = (size_t)updates->width * updates->element;
    int64_t      count = 0;
    memset(values, 0, (size_t)piece->rows * row_bytes);
    for (uint64_t i = updates->at; i < piece->end; i++) {
        const sums_item *item = &updates->items[i];
        if (count == 0 || item->row != rows[count - 1]) rows[count++] = item->row;
        round_sum(updates, item, values + (size_t)(count - 1) * row_bytes + item->column * updates->element);
    }
    return weft_table_call_rows(updates->table, WEFT_PUSH, rows, count, values, NULL);
}

/* Sums that have come to zero are not sent, but their rows are. */
static weft_status push_entries(weft_updates *updates, const sums_piece *piece, uint64_t *rows, uint8_t *values, uint32_t *columns, uint32_t *counts) {
    int64_t  count = 0;
    uint64_t entries = 0;
    for (uint64_t i = updates->at; i < piece->end; i++) {
        const sums_item *item = &updates->items[i];
        uint8_t         *value = values + entries * updates->element;
        if (count == 0 || item->row != rows[count - 1]) rows[count] = item->row, counts[count++] = 0;
        round_sum(updates, item, value);
        if (is_zero(updates, value)) continue;
        columns[entries++] = item->column;
        counts[count - 1]++;
    }
    return weft_table_push_entries(updates->table, rows, count, &(weft_entries){.counts = counts, .columns = columns, .values = values});
}

static weft_status push_piece(weft_updates *updates, const sums_piece *piece) {
    const size_t list = (size_t)piece->rows * sizeof(uint64_t);
    const size_t values = wefti_align_up((piece->by_entries ? piece->entries : (size_t)(piece->rows * updates->width)) * updates->element, 8);
    const size_t bytes = list + values + (piece->by_entries ? (piece->entries + (size_t)piece->rows) * sizeof(uint32_t) : 0);
    uint8_t     *work = NULL;
    WEFTI_TRY(wefti_alloc_raw(bytes, WEFTI_CACHE_LINE, "rows that are pushed", &work));
    uint64_t   *rows = (uint64_t *)(void *)work;
    uint32_t   *columns = (uint32_t *)(void *)(work + list + values);
    weft_status status = piece->by_entries ? push_entries(updates, piece, rows, work + list, columns, columns + piece->entries) : push_rows(updates, piece, rows, work + list);
    wefti_free(work, bytes);
    return status;
}

static weft_status push_items(weft_updates *updates) {
    while (updates->at < updates->count) {
        sums_piece piece = next_piece(updates);
        WEFTI_TRY(push_piece(updates, &piece));
        updates->at = piece.end;
        updates->pushed += piece.rows;
    }
    forget_items(updates);
    return WEFT_OK;
}

weft_status weft_updates_flush(weft_updates *updates) {
    weft_status status = WEFT_OK;
    pthread_mutex_lock(&updates->flushing);
    for (int turn = 0; turn < 2 && status == WEFT_OK; turn++) { /* first what the last one could not */
        if (turn == 1) take(updates);
        if (updates->count && !updates->items) status = order(updates);
        if (updates->count && status == WEFT_OK) status = push_items(updates);
    }
    pthread_mutex_unlock(&updates->flushing);
    return status;
}

int64_t weft_updates_pushed(weft_updates *updates) {
    pthread_mutex_lock(&updates->flushing);
    int64_t pushed = updates->pushed;
    pthread_mutex_unlock(&updates->flushing);
    return pushed;
}

/* --- making one --- */

weft_status weft_updates_create(weft_table *table, weft_updates **updates_out) {
    const weft_table_options *o = weft_table_describe(table);
    weft_updates             *updates;
    *updates_out = NULL;
    if (o->width >= UINT32_MAX)
        return wefti_fail(WEFT_E_SHAPE, "table '%s' has rows of %lld elements; updates are added up for less than 2^32", o->name, (long long)o->width);
    WEFTI_TRY(wefti_alloc(sizeof *updates, "updates of a table", &updates));
    updates->table = table;
    updates->rows = (uint64_t)o->rows;
    updates->width = o->width;
    updates->dtype = o->dtype;
    updates->element = weft_dtype_bytes(o->dtype);
    updates->words = o->dtype == WEFT_F64 ? WEFTI_EXACT_F64 : weft_dtype_is_float(o->dtype) ? WEFTI_EXACT_F32 : 1;
    updates->by_entries = o->rule.kind == WEFT_TABLE_ADD && (o->push.codec == WEFT_COMPRESS_NONE || o->push.codec == WEFT_COMPRESS_NONZERO);
    for (int i = 0; i < PARTS; i++) pthread_mutex_init(&updates->parts[i].lock, NULL);
    pthread_mutex_init(&updates->flushing, NULL);
    *updates_out = updates;
    return WEFT_OK;
}

void weft_updates_release(weft_updates *updates) {
    if (!updates) return;
    forget_items(updates);
    for (int i = 0; i < PARTS; i++) {
        empty(updates, &updates->parts[i].heap);
        pthread_mutex_destroy(&updates->parts[i].lock);
    }
    pthread_mutex_destroy(&updates->flushing);
    wefti_free(updates, sizeof *updates);
}

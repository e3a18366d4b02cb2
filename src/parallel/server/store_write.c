/* What changes a store from outside of its rule. */
#include <string.h>

#include "core/base/stream.h"
#include "parallel/server/store_internal.h"

void wefti_store_set_rate(wefti_store *store, double multiple) {
    const weft_table_rule *rule = &store->options.rule;
    if (rule->kind == WEFT_TABLE_SOLVER) store->hyper[WEFTI_HYPER_RATE] = multiple * rule->solver.rate;
}

weft_status wefti_store_write(wefti_store *store, const uint64_t *places, uint64_t begin, int64_t count, const void *values) {
    const weft_dtype dtype = store->options.dtype;
    if (store->options.hybrid) return wefti_hybrid_store_write(store, places, begin, count, values);
    for (int64_t i = 0; i < count; i++) {
        wefti_spot spot = wefti_blocks_find(store->blocks, places ? places[i] : begin + (uint64_t)i);
        WEFTI_TRY(wefti_store_need(store, spot.block, true));
        store->loops->take[dtype](wefti_store_row(store, spot), (const uint8_t *)values + (size_t)i * store->in_row_bytes, store->options.width, 1, 1);
    }
    return WEFT_OK;
}

void *wefti_store_vector(wefti_store *store, int64_t *elements_out) {
    bool vector = !store->options.sparse && !store->options.hybrid && store->slabs == &store->whole && (store->options.dtype == WEFT_F32 || store->options.dtype == WEFT_F64);
    *elements_out = vector ? (int64_t)store->rows * store->options.width : 0;
    return vector ? store->whole.memory : NULL;
}

/* --- in memory that others read --- */

enum { TRADE_BYTES = 4096 };

static void trade_past_caches(wefti_store *store, uint8_t *rows, uint8_t *updates, size_t bytes) {
    _Alignas(WEFTI_CACHE_LINE) uint8_t sums[TRADE_BYTES];
    for (size_t at = 0, piece; at < bytes; at += piece) {
        piece = bytes - at < sizeof sums ? bytes - at : sizeof sums;
        store->loops->both[store->held](sums, rows + at, updates + at, (int64_t)(piece / store->element_bytes));
        memcpy(updates + at, rows + at, piece);
        wefti_stream_copy(rows + at, sums, piece);
    }
    wefti_stream_fence();
}

void wefti_store_trade(wefti_store *store, uint64_t begin, int64_t count, void *updates, bool streams) {
    uint8_t *rows = store->whole.memory + (size_t)begin * store->row_bytes;
    if (streams) trade_past_caches(store, rows, updates, (size_t)count * store->row_bytes);
    else store->loops->trade[store->held](rows, updates, count * store->options.width);
}

size_t wefti_store_vector_bytes(const wefti_store *store) { return store->whole.bytes; }

void wefti_store_move(wefti_store *store, void *memory) {
    wefti_slab *slab = &store->whole;
    const size_t updates_at = slab->updates ? (size_t)((uint8_t *)slab->updates - slab->memory) : 0;
    memcpy(memory, slab->memory, slab->bytes);
    if (!store->outside) wefti_free(slab->memory, slab->bytes);
    slab->memory = memory;
    if (slab->updates) slab->updates = (int64_t *)(void *)(slab->memory + updates_at);
    store->outside = true;
}

/* What changes a store from outside of its rule. */
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

/* Stores of rows that are hashes (hybrid.h). Updates come as rows of [width], as to other stores. Growing is what may fail, so all rows that are given
 * something make room for it first; what was reserved before a failure stays, and is used by the next. Each update is looked at twice. */
#include <string.h>

#include "parallel/server/store_internal.h"

/* Row i of the updates in the held dtype, scaled. */
static const void *update_of(const wefti_store *store, const void *updates, int64_t i, weft_dtype dtype, wefti_scaling scaling) {
    const int64_t  width = store->options.width;
    const uint8_t *from = (const uint8_t *)updates + (size_t)(i * width) * weft_dtype_bytes(dtype);
    if (dtype == store->held && scaling.divisor == 1 && scaling.scale == 1) return from;
    const bool narrows = dtype == WEFT_I64 && store->held == WEFT_I32;
    (narrows ? store->loops->take_i32_of_i64 : store->loops->take[dtype])(store->scratch, from, width, scaling.scale, scaling.divisor);
    return store->scratch;
}

weft_status wefti_hybrid_store_room(wefti_store *store, uint64_t place, uint64_t entries) {
    const wefti_store_options *o = &store->options;
    const wefti_hybrid_shape   shape = wefti_store_shape(store);
    wefti_hybrid_row          *row = wefti_store_hybrid_row(store, place);
    size_t                     had = wefti_hybrid_bytes(&shape, row), more = wefti_hybrid_bytes_with(&shape, row, entries) - had;
    if (more == 0) return WEFT_OK;
    if (o->most_bytes && (store->bytes > o->most_bytes || more > o->most_bytes - store->bytes))
        return wefti_fail(WEFT_E_NO_MEMORY, "table '%s': the row of key %llu needs %zu bytes more for %llu entries; %zu are held, and its most_bytes is "
                          "%zu: " WEFTI_STORE_ADVICE, o->name, (unsigned long long)wefti_store_key(store, place), more, (unsigned long long)entries, store->bytes,
                          o->most_bytes);
    weft_status status = store->spill ? wefti_spill_resize(store->spill, (uint32_t)place, had + more) : WEFT_OK; /* the row is in memory */
    if (status == WEFT_OK) {
        status = wefti_hybrid_reserve(&shape, row, entries);
        if (status != WEFT_OK && store->spill) status = wefti_spill_resize(store->spill, (uint32_t)place, had) == WEFT_OK ? status : WEFT_E_INTERNAL;
        else if (store->spill && had == 0) wefti_spill_enter(store->spill, (uint32_t)place, true);
    }
    if (status != WEFT_OK)
        return wefti_while(status, "table '%s', the row of key %llu, which grows to %llu entries (%zu bytes beside the %zu that are held)", o->name,
                           (unsigned long long)wefti_store_key(store, place), (unsigned long long)entries, more, store->bytes);
    store->bytes += more;
    return WEFT_OK;
}

weft_status wefti_hybrid_store_reserve(wefti_store *store, const uint64_t *places, uint64_t begin, int64_t count, const void *updates, weft_dtype dtype,
                                       wefti_scaling scaling) {
    const wefti_hybrid_shape shape = wefti_store_shape(store);
    for (int64_t i = 0; i < count; i++) {
        uint64_t          place = places ? places[i] : begin + (uint64_t)i;
        wefti_hybrid_row *row = wefti_store_hybrid_row(store, place);
        if (row->room == WEFTI_HYBRID_DENSE) continue;
        WEFTI_TRY(wefti_store_need_row(store, place, false));
        uint32_t missing = wefti_hybrid_missing(&shape, row, update_of(store, updates, i, dtype, scaling));
        WEFTI_TRY(wefti_hybrid_store_room(store, place, (uint64_t)row->used + missing));
    }
    return WEFT_OK;
}

weft_status wefti_hybrid_store_give(wefti_store *store, const uint64_t *places, uint64_t begin, int64_t count, const void *updates, weft_dtype dtype,
                                    wefti_scaling scaling) {
    const wefti_hybrid_shape shape = wefti_store_shape(store);
    WEFTI_TRY(wefti_hybrid_store_reserve(store, places, begin, count, updates, dtype, scaling));
    for (int64_t i = 0; i < count; i++) {
        const uint64_t    place = places ? places[i] : begin + (uint64_t)i;
        wefti_hybrid_row *row = wefti_store_hybrid_row(store, place);
        WEFTI_TRY(wefti_store_need_row(store, place, true));
        const void       *update = update_of(store, updates, i, dtype, scaling);
        if (row->room == WEFTI_HYBRID_DENSE) store->loops->add[store->held](row->memory, update, store->options.width, 1);
        else wefti_hybrid_add_row(&shape, row, update);
    }
    return WEFT_OK;
}

weft_status wefti_hybrid_store_write(wefti_store *store, const uint64_t *places, uint64_t begin, int64_t count, const void *values) {
    const wefti_hybrid_shape shape = wefti_store_shape(store);
    const wefti_hybrid_row   nothing = {0};
    for (int64_t i = 0; i < count; i++) {
        const uint64_t place = places ? places[i] : begin + (uint64_t)i;
        WEFTI_TRY(wefti_store_need_row(store, place, false));
        WEFTI_TRY(wefti_hybrid_store_room(store, place, wefti_hybrid_missing(&shape, &nothing, (const uint8_t *)values + (size_t)i * store->in_row_bytes)));
    }
    for (int64_t i = 0; i < count; i++) {
        const uint64_t    place = places ? places[i] : begin + (uint64_t)i;
        wefti_hybrid_row *row = wefti_store_hybrid_row(store, place);
        WEFTI_TRY(wefti_store_need_row(store, place, true));
        wefti_hybrid_clear(&shape, row);
        wefti_hybrid_add_row(&shape, row, (const uint8_t *)values + (size_t)i * store->in_row_bytes);
    }
    return WEFT_OK;
}

void wefti_hybrid_store_empty(wefti_store *store) {
    const wefti_hybrid_shape shape = wefti_store_shape(store);
    for (uint64_t place = 0; place < store->rows; place++) wefti_hybrid_release(&shape, wefti_store_hybrid_row(store, place));
}

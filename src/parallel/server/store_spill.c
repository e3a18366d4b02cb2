/* Stores whose rows lie in part on disk (spill.h). A piece is a slab of about 4 KiB, or of one row where that is more; of hybrid stores the memory of a row.
 * What finds rows stays in memory: the index, 48 bytes and a piece's 24 a slab, or 40 a hybrid row.
 *
 * Whoever is about to use a row has it brought (wefti_store_need, wefti_store_need_row), which may send the one away that was used longest ago: never
 * the one before, so each loop goes on as if all were in memory. Rows that change are brought at any price, so that no push is there in half. */
#include <string.h>

#include "parallel/server/store_internal.h"

/* --- the owner's side --- */

static void *memory_of(void *owner, uint32_t piece, size_t *bytes_out) {
    const wefti_store *store = owner;
    if (store->options.hybrid) {
        const wefti_hybrid_shape shape = wefti_store_shape(store);
        const wefti_hybrid_row  *row = wefti_store_hybrid_row(store, piece);
        *bytes_out = wefti_hybrid_bytes(&shape, row);
        return row->memory;
    }
    *bytes_out = store->slabs[piece].bytes;
    return store->slabs[piece].memory;
}

static void drop(void *owner, uint32_t piece) {
    wefti_store *store = owner;
    size_t       bytes;
    void        *memory = memory_of(owner, piece, &bytes);
    wefti_free(memory, bytes);
    if (store->options.hybrid) wefti_store_hybrid_row(store, piece)->memory = NULL;
    else store->slabs[piece].memory = NULL;
}

weft_status wefti_store_begin_spill(wefti_store *store) {
    const wefti_store_options *o = &store->options;
    wefti_spill_options        how = {.folder = o->spill_folder, .name = o->name, .most_bytes = o->memory_bytes, .owner = store, .memory_of = memory_of, .drop = drop};
    return o->memory_bytes ? wefti_spill_create(&how, &store->spill) : WEFT_OK;
}

/* --- bringing --- */

/* What nobody has changed yet: as it begins, states of zeros. */
static void begin_slab(const wefti_store *store, uint64_t block, wefti_slab *slab) {
    uint64_t first = block << store->blocks.least;
    for (uint64_t at = 0; at < slab->rows && store->options.start != WEFT_START_ZERO && !store->options.sparse; at++)
        if (first + at < store->rows) wefti_store_first(store, store->options.first + first + at, slab->memory + at * store->row_bytes);
}

weft_status wefti_store_bring(wefti_store *store, uint64_t block, bool changes) {
    wefti_slab full = store->slabs[block];
    if (full.memory) {
        wefti_spill_touch(store->spill, (uint32_t)block, changes);
        return WEFT_OK;
    }
    bool saved = wefti_spill_is_saved(store->spill, (uint32_t)block);
    WEFTI_TRY(wefti_spill_make_room(store->spill, full.bytes, changes));
    WEFTI_TRY(wefti_slab_fill(store, !saved, &full));
    weft_status status = saved ? wefti_spill_load(store->spill, (uint32_t)block, 0, full.memory, full.bytes) : WEFT_OK;
    if (status != WEFT_OK) {
        wefti_free(full.memory, full.bytes);
        return status;
    }
    if (!saved) begin_slab(store, block, &full);
    store->slabs[block] = full;
    wefti_spill_enter(store->spill, (uint32_t)block, changes);
    return WEFT_OK;
}

weft_status wefti_store_bring_row(wefti_store *store, uint64_t place, bool changes) {
    const wefti_hybrid_shape shape = wefti_store_shape(store);
    wefti_hybrid_row        *row = wefti_store_hybrid_row(store, place);
    const size_t             bytes = wefti_hybrid_bytes(&shape, row);
    uint8_t                 *memory = NULL;
    if (row->room == 0) return WEFT_OK; /* zeros have no memory */
    if (row->memory) {
        wefti_spill_touch(store->spill, (uint32_t)place, changes);
        return WEFT_OK;
    }
    WEFTI_TRY(wefti_spill_make_room(store->spill, bytes, changes));
    WEFTI_TRY(wefti_alloc_raw(bytes, WEFTI_CACHE_LINE, "a row of a hybrid table", &memory));
    weft_status status = wefti_spill_load(store->spill, (uint32_t)place, 0, memory, bytes);
    if (status != WEFT_OK) {
        wefti_free(memory, bytes);
        return status;
    }
    row->memory = memory;
    wefti_spill_enter(store->spill, (uint32_t)place, changes);
    return WEFT_OK;
}

/* --- reading past the order of use --- */

weft_status wefti_store_peek(wefti_store *store, uint64_t block, size_t from, size_t bytes, void *out) {
    if (!store->slabs[block].memory && wefti_spill_is_saved(store->spill, (uint32_t)block)) return wefti_spill_load(store->spill, (uint32_t)block, from, out, bytes);
    if (!store->slabs[block].memory) WEFTI_TRY(wefti_store_bring(store, block, false)); /* costs no disk */
    memcpy(out, store->slabs[block].memory + from, bytes);
    return WEFT_OK;
}

weft_status wefti_store_peek_row(wefti_store *store, uint64_t place, void *values_out) {
    const wefti_hybrid_shape shape = wefti_store_shape(store);
    wefti_hybrid_row         row = *wefti_store_hybrid_row(store, place);
    const size_t             bytes = wefti_hybrid_bytes(&shape, &row);
    const bool               away = row.room != 0 && !row.memory;
    if (away) {
        WEFTI_TRY(wefti_alloc_raw(bytes, WEFTI_CACHE_LINE, "a row of a hybrid table", &row.memory));
        weft_status status = wefti_spill_load(store->spill, (uint32_t)place, 0, row.memory, bytes);
        if (status != WEFT_OK) {
            wefti_free(row.memory, bytes);
            return status;
        }
    }
    wefti_hybrid_read(&shape, &row, values_out);
    if (away) wefti_free(row.memory, bytes);
    return WEFT_OK;
}

/* --- looking --- */

weft_status wefti_store_settle(wefti_store *store) { return store->spill ? wefti_spill_settle(store->spill) : WEFT_OK; }
const char *wefti_store_folder(const wefti_store *store) { return store->spill ? store->options.spill_folder : NULL; }

void wefti_store_count_spill(const wefti_store *store, wefti_spill_counts *counts_out) {
    *counts_out = (wefti_spill_counts){0};
    if (store->spill) wefti_spill_count(store->spill, counts_out);
}

size_t wefti_store_bytes(const wefti_store *store) {
    wefti_spill_counts counts;
    wefti_store_count_spill(store, &counts);
    return store->bytes - (size_t)(counts.total - counts.resident) + (size_t)counts.held;
}

/* Rows as they are kept, states and all, for snapshots and checkpoints: nothing is rounded, so that what is put back has the same bits. */
#include <string.h>

#include "parallel/server/store_internal.h"

int32_t    wefti_store_states(const wefti_store *store) { return store->states; }
bool       wefti_store_counts(const wefti_store *store) { return store->counts; }
weft_dtype wefti_store_held(const wefti_store *store) { return store->held; }

size_t wefti_store_part_bytes(const wefti_store *store, int32_t part) {
    return part == WEFTI_PART_UPDATES || part == WEFTI_PART_KEYS ? sizeof(int64_t) : (size_t)store->options.width * store->element_bytes;
}

static uint8_t *part_of(const wefti_store *store, wefti_spot spot, int32_t part) {
    const wefti_slab *slab = &store->slabs[spot.block];
    if (part == WEFTI_PART_UPDATES) return (uint8_t *)(slab->updates + spot.at);
    if (part == WEFTI_PART_KEYS) return (uint8_t *)(slab->keys + spot.at);
    return slab->memory + (size_t)part * slab->array_bytes + spot.at * store->row_bytes;
}

/* Where a part of a row begins in its slab. */
static size_t part_at(const wefti_store *store, wefti_spot spot, int32_t part) {
    const size_t numbers = (size_t)(1 + store->states) * store->slabs[spot.block].array_bytes + spot.at * sizeof(int64_t);
    if (part == WEFTI_PART_UPDATES) return numbers;
    if (part == WEFTI_PART_KEYS) return numbers + (store->counts ? store->slabs[spot.block].rows * sizeof(int64_t) : 0);
    return (size_t)part * store->slabs[spot.block].array_bytes + spot.at * store->row_bytes;
}

weft_status wefti_store_copy_out(wefti_store *store, int32_t part, uint64_t begin, uint64_t count, void *out) {
    const size_t bytes = wefti_store_part_bytes(store, part);
    uint8_t     *to = out;
    while (count > 0) {
        wefti_spot spot = wefti_blocks_find(store->blocks, begin);
        uint64_t   run = store->slabs[spot.block].rows - spot.at;
        if (run > count) run = count;
        if (store->options.hybrid && part == WEFTI_PART_VALUES) WEFTI_TRY(wefti_store_peek_row(store, begin + (run = 1) - 1, to));
        else if (store->spill && !store->options.hybrid) WEFTI_TRY(wefti_store_peek(store, spot.block, part_at(store, spot, part), run * bytes, to));
        else memcpy(to, part_of(store, spot, part), run * bytes);
        to += run * bytes;
        begin += run;
        count -= run;
    }
    return WEFT_OK;
}

weft_status wefti_store_copy_in(wefti_store *store, int32_t part, const uint64_t *places, uint64_t begin, uint64_t count, const void *in) {
    const size_t   bytes = wefti_store_part_bytes(store, part);
    const uint8_t *from = in;
    if (store->options.hybrid && part == WEFTI_PART_VALUES) return wefti_hybrid_store_write(store, places, begin, (int64_t)count, in);
    for (uint64_t i = 0; i < count; i++, from += bytes) {
        wefti_spot spot = wefti_blocks_find(store->blocks, places ? places[i] : begin + i);
        WEFTI_TRY(wefti_store_need(store, spot.block, true));
        memcpy(part_of(store, spot, part), from, bytes);
    }
    return WEFT_OK;
}

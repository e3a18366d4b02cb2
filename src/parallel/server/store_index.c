/* Keys to places of a sparse store: an open hash with linear probing, at most two thirds full, of 16 bytes an entry that hold the key, so that a
 * look-up is one line of memory in most cases; lines are asked for some keys ahead. The entry is taken by the hash's upper bits: growing
 * goes through the old index and the new one in order.
 *
 * New rows: all keys are looked up first, which counts those that are missing; room for them is made, or nothing is changed; then they are
 * put in. Costs two look-ups a new key and one an old one. */
#include <string.h>

#include "parallel/server/store_internal.h"

enum { AHEAD = 16, INDEX_LEAST = 64, LIST_LEAST = 16 };

/* Of the table's own: keys come here because of another hash, whose upper bits they may have in common. Stafford's finaliser of 64 bits (mix 13). */
static inline uint64_t scatter(uint64_t key) {
    key ^= UINT64_C(0x5bd1e9955bd1e995);
    key = (key ^ key >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    key = (key ^ key >> 27) * UINT64_C(0x94d049bb133111eb);
    return key ^ key >> 31;
}

typedef struct table {
    wefti_entry *entries;
    uint64_t     mask;
    uint32_t     shift; /* of the hash, to the first entry to look at */
} table;

static table table_of(wefti_entry *entries, uint64_t size) {
    return (table){entries, size - 1, 64 - (uint32_t)__builtin_ctzll(size)};
}

/* The entry with the key, or the free one where it would stand. */
static inline wefti_entry *entry_of(const table *t, uint64_t key) {
    for (uint64_t at = scatter(key) >> t->shift;; at = (at + 1) & t->mask) {
        wefti_entry *entry = &t->entries[at];
        if (entry->key == key || entry->place_and_1 == 0) return entry; /* a free one has key 0, and is what is asked for then */
    }
}

/* --- room --- */

typedef struct plan {
    uint64_t slab_count, slab_room, slab_rows, index_size;
    size_t   bytes; /* that are held then */
} plan;

/* What there must be for `rows` rows; false where the bytes overflow. */
static bool plan_room(const wefti_store *store, uint64_t rows, plan *plan_out) {
    plan   p = {store->slab_count, store->slab_room, store->slab_rows, store->index_size, store->bytes};
    size_t more;
    for (; p.slab_rows < rows; p.slab_count++) {
        wefti_slab slab;
        uint64_t   size = wefti_blocks_size(store->blocks, p.slab_count);
        if (!wefti_slab_measure(store, size, &slab) || !wefti_add_size(p.bytes, slab.bytes, &p.bytes)) return false;
        p.slab_rows += size;
    }
    while (p.slab_room < p.slab_count) p.slab_room = p.slab_room ? 2 * p.slab_room : LIST_LEAST;
    if (!wefti_add_size(p.bytes, (p.slab_room - store->slab_room) * sizeof(wefti_slab), &p.bytes)) return false;
    if (rows > SIZE_MAX / 64) return false;
    while (rows * 3 > p.index_size * 2) p.index_size = p.index_size ? 2 * p.index_size : INDEX_LEAST;
    if (!wefti_mul_size(p.index_size - store->index_size, sizeof(wefti_entry), &more) || !wefti_add_size(p.bytes, more, &p.bytes)) return false;
    *plan_out = p;
    return true;
}

static void move_entries(wefti_store *store, wefti_entry *entries, uint64_t size) {
    table t = table_of(entries, size);
    for (uint64_t i = 0; i < store->index_size; i++)
        if (store->index[i].place_and_1) *entry_of(&t, store->index[i].key) = store->index[i];
    wefti_free(store->index, store->index_size * sizeof *store->index);
    store->index = entries;
    store->index_size = size;
}

/* All that the plan says, or nothing. */
static weft_status make_room(wefti_store *store, const plan *p) {
    wefti_entry *entries = NULL;
    wefti_slab  *list = store->slabs;
    uint64_t     made = store->slab_count;
    weft_status  status = WEFT_OK;
    if (p->index_size != store->index_size)
        WEFTI_TRY(wefti_alloc(p->index_size * sizeof *entries, "the index of a table's rows", &entries));
    if (p->slab_room != store->slab_room)
        WEFTI_TRY_GOTO(wefti_alloc(p->slab_room * sizeof *list, "the list of a table's slabs", &list), failed);
    if (list != store->slabs && store->slab_count) memcpy(list, store->slabs, store->slab_count * sizeof *list);
    for (; made < p->slab_count; made++) {
        bool fits = wefti_slab_measure(store, wefti_blocks_size(store->blocks, made), &list[made]);
        if (fits && store->spill && !store->options.hybrid) continue; /* it comes into memory when it is used */
        status = fits ? wefti_slab_fill(store, false, &list[made]) : wefti_fail(WEFT_E_INTERNAL, "a slab that was measured does not fit");
        if (status != WEFT_OK) goto failed;
    }
    if (store->spill && store->options.hybrid) status = wefti_spill_add(store->spill, p->slab_rows - store->slab_rows, 0);
    else if (store->spill && p->slab_count > store->slab_count) status = wefti_spill_add(store->spill, p->slab_count - store->slab_count, list[p->slab_count - 1].bytes);
    if (status != WEFT_OK) goto failed;
    if (entries) move_entries(store, entries, p->index_size);
    if (list != store->slabs) wefti_free(store->slabs, store->slab_room * sizeof *list);
    store->slabs = list;
    store->slab_count = p->slab_count;
    store->slab_room = p->slab_room;
    store->slab_rows = p->slab_rows;
    store->bytes = p->bytes;
    return WEFT_OK;
failed:
    while (list && made > store->slab_count) {
        made--;
        wefti_free(list[made].memory, list[made].bytes);
    }
    if (list != store->slabs) wefti_free(list, p->slab_room * sizeof *list);
    wefti_free(entries, p->index_size * sizeof *entries);
    return status;
}

static weft_status reserve(wefti_store *store, uint64_t more) {
    const wefti_store_options *o = &store->options;
    plan                       p;
    uint64_t                   rows = store->rows + more;
    if (rows < more || !plan_room(store, rows, &p))
        return wefti_fail(WEFT_E_NO_MEMORY, "table '%s': %llu rows more are more bytes than there are addresses", o->name, (unsigned long long)more);
    if (p.bytes == store->bytes) return WEFT_OK;
    if (o->most_bytes && p.bytes > o->most_bytes)
        return wefti_fail(WEFT_E_NO_MEMORY, "table '%s': %llu rows more need %zu bytes more for rows, states and index; %zu are held, and its "
                          "most_bytes is %zu: " WEFTI_STORE_ADVICE, o->name, (unsigned long long)more, p.bytes - store->bytes, store->bytes, o->most_bytes);
    weft_status status = make_room(store, &p);
    if (status == WEFT_OK) return WEFT_OK;
    return wefti_while(status, "table '%s', %llu rows more (%zu bytes beside the %zu that are held; " WEFTI_STORE_ADVICE ")", o->name, (unsigned long long)more,
                       p.bytes - store->bytes, store->bytes);
}

/* --- finding --- */

/* How many are missing. */
static uint64_t look_up(const wefti_store *store, const uint64_t *keys, int64_t count, uint64_t *places_out) {
    uint64_t missing = 0;
    if (!store->index_size) {
        for (int64_t i = 0; i < count; i++) places_out[i] = WEFTI_PLACE_NONE;
        return (uint64_t)count;
    }
    table t = table_of(store->index, store->index_size);
    for (int64_t i = 0; i < count; i++) {
        if (i + AHEAD < count) __builtin_prefetch(&t.entries[scatter(keys[i + AHEAD]) >> t.shift]);
        uint64_t place = entry_of(&t, keys[i])->place_and_1 - 1; /* none: 0 - 1 is WEFTI_PLACE_NONE */
        places_out[i] = place;
        missing += place == WEFTI_PLACE_NONE;
    }
    return missing;
}

static weft_status begin_row(wefti_store *store, uint64_t place, uint64_t key) {
    wefti_spot  spot = wefti_blocks_find(store->blocks, place);
    WEFTI_TRY(wefti_store_need(store, spot.block, true));
    wefti_slab *slab = &store->slabs[spot.block];
    uint8_t    *row = wefti_store_row(store, spot);
    wefti_store_first(store, key, row);
    for (int32_t state = 0; state < store->states; state++) memset(row += slab->array_bytes, 0, store->row_bytes);
    if (slab->updates) slab->updates[spot.at] = 0;
    slab->keys[spot.at] = key;
    return WEFT_OK;
}

static weft_status put_in(wefti_store *store, const uint64_t *keys, int64_t count, uint64_t *places_out) {
    table t = table_of(store->index, store->index_size);
    for (int64_t i = 0; i < count; i++) {
        if (i + AHEAD < count && places_out[i + AHEAD] == WEFTI_PLACE_NONE)
            __builtin_prefetch(&t.entries[scatter(keys[i + AHEAD]) >> t.shift], 1);
        if (places_out[i] != WEFTI_PLACE_NONE) continue;
        wefti_entry *entry = entry_of(&t, keys[i]);
        if (entry->place_and_1 == 0) {
            WEFTI_TRY(begin_row(store, store->rows, keys[i]));
            *entry = (wefti_entry){keys[i], ++store->rows};
        }
        places_out[i] = entry->place_and_1 - 1;
    }
    return WEFT_OK;
}

weft_status wefti_store_find_sparse(wefti_store *store, const uint64_t *keys, int64_t count, bool create, uint64_t *places_out) {
    uint64_t missing = look_up(store, keys, count, places_out);
    if (!create || missing == 0) return WEFT_OK;
    WEFTI_TRY(reserve(store, missing));
    return put_in(store, keys, count, places_out);
}

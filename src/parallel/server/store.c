/* The store: how it is made, what it holds, and reading.
 *
 * Dense: one slab with all rows. Sparse: slabs that come as rows do (small ones first, so that small tables are small), an index from keys to
 * places, and each row's key. Arrays of one slab: values, states one after the other, numbers of updates, keys; so a run of
 * places is a run of memory, and goes to a rule in one call. Memory is width x (1 + states) elements a row, 8 bytes more where the rule wants
 * numbers of updates, and for sparse rows 8 of the key and 24 to 48 of the index. Rows of hybrid stores have pieces of
 * memory of their own (hybrid.h), and 16 bytes each in the slabs. Where rows lie on disk, slabs are small, and in memory while they are used. */
#include "parallel/server/store.h"

#include <string.h>

#include "parallel/server/store_internal.h"

enum { SLAB_LEAST_BYTES = 4096, SLAB_MOST_BYTES = 1 << 20, CHUNK_ELEMENTS = 4096 };

/* --- slabs --- */

bool wefti_slab_measure(const wefti_store *store, uint64_t rows, wefti_slab *slab_out) {
    size_t values, before, total, numbers, extra = store->counts + store->options.sparse;
    if (!wefti_mul_size(rows, store->row_bytes, &values) || values > SIZE_MAX - WEFTI_CACHE_LINE) return false;
    size_t array = wefti_align_up(values, WEFTI_CACHE_LINE);
    if (!wefti_mul_size(array, (size_t)store->states, &before) || !wefti_add_size(before, extra ? array : values, &total)) return false;
    if (!wefti_mul_size(rows, extra * sizeof(uint64_t), &numbers) || !wefti_add_size(total, numbers, &total)) return false;
    *slab_out = (wefti_slab){.bytes = total, .array_bytes = array, .rows = rows};
    return true;
}

weft_status wefti_slab_fill(const wefti_store *store, bool zero, wefti_slab *slab) {
    const char *what = "rows of a table on its server";
    if (zero) WEFTI_TRY(wefti_alloc(slab->bytes, what, &slab->memory));
    else WEFTI_TRY(wefti_alloc_raw(slab->bytes, WEFTI_CACHE_LINE, what, &slab->memory));
    uint8_t *next = slab->memory + slab->array_bytes * (size_t)(1 + store->states);
    if (store->counts) {
        slab->updates = (int64_t *)(void *)next;
        next += slab->rows * sizeof(int64_t);
    }
    if (store->options.sparse) slab->keys = (uint64_t *)(void *)next;
    return WEFT_OK;
}

/* --- making one --- */

/* Slabs of some rows, none of them in memory yet. */
static weft_status create_dense_slabs(wefti_store *store) {
    const wefti_store_options *o = &store->options;
    wefti_slab                 slab = {0};
    uint64_t                   count = (((o->rows ? o->rows : 1) - 1) >> store->blocks.least) + 1;
    size_t                     all = 0, list = 0;
    if (!wefti_slab_measure(store, UINT64_C(1) << store->blocks.least, &slab) || !wefti_mul_size(count, slab.bytes, &all) || !wefti_mul_size(count, sizeof slab, &list) ||
        (o->most_bytes && all > o->most_bytes))
        return wefti_fail(WEFT_E_NO_MEMORY, "table '%s': its %llu rows here, %zu bytes each %llu of them with states, are more than its most_bytes, %zu, or than there "
                          "are addresses: " WEFTI_STORE_ADVICE, o->name, (unsigned long long)o->rows, slab.bytes, 1ULL << store->blocks.least, o->most_bytes);
    WEFTI_TRY(wefti_alloc(list, "the list of a table's slabs", &store->slabs));
    store->slab_count = store->slab_room = count;
    store->slab_rows = count << store->blocks.least;
    for (uint64_t i = 0; i < count; i++) store->slabs[i] = slab;
    store->rows = o->rows;
    store->bytes = list + all;
    return wefti_spill_add(store->spill, count, slab.bytes);
}

static weft_status create_dense(wefti_store *store) {
    const wefti_store_options *o = &store->options;
    unsigned long long         rows = o->rows;
    if (store->spill && !o->hybrid) return create_dense_slabs(store);
    if (!wefti_slab_measure(store, o->rows, &store->whole))
        return wefti_fail(WEFT_E_NO_MEMORY, "table '%s': %llu rows of %lld elements with %d states are more bytes than there are addresses",
                          o->name, rows, (long long)o->width, store->states);
    if (o->most_bytes && store->whole.bytes > o->most_bytes)
        return wefti_fail(WEFT_E_NO_MEMORY, "table '%s': its %llu rows here need %zu bytes with their states, more than its most_bytes, %zu: " WEFTI_STORE_ADVICE,
                          o->name, rows, store->whole.bytes, o->most_bytes);
    weft_status status = wefti_slab_fill(store, true, &store->whole);
    if (status != WEFT_OK)
        return wefti_while(status, "table '%s', whose %llu rows here need %zu bytes with %d states (" WEFTI_STORE_ADVICE ")", o->name, rows, store->whole.bytes,
                           (int)store->states);
    store->blocks = (wefti_blocks){63, 63};
    store->slabs = &store->whole;
    store->slab_count = 1;
    store->slab_rows = store->rows = o->rows;
    store->bytes = store->whole.bytes;
    if (store->spill) return wefti_spill_add(store->spill, o->rows, 0);
    if (o->start != WEFT_START_ZERO)
        for (uint64_t row = 0; row < o->rows; row++) wefti_store_first(store, o->first + row, store->whole.memory + row * store->row_bytes);
    return WEFT_OK;
}

static weft_status prepare(wefti_store *store) {
    const wefti_store_options *o = &store->options;
    size_t                     row, copies, thing;
    if (o->width < 1) return wefti_fail(WEFT_E_INVALID, "table '%s': a row of %lld elements", o->name, (long long)o->width);
    WEFTI_TRY(wefti_store_choose_rule(store));
    if (!wefti_mul_size((size_t)o->width, store->element_bytes, &row) || row > SIZE_MAX / 2 ||
        !wefti_mul_size(wefti_align_up(row, WEFTI_CACHE_LINE), (size_t)(1 + store->states), &copies) || !wefti_add_size(copies, 16, &thing))
        return wefti_fail(WEFT_E_NO_MEMORY, "table '%s': a row of %lld elements with %d states is more bytes than there are addresses", o->name,
                          (long long)o->width, store->states);
    store->row_bytes = o->hybrid ? sizeof(wefti_hybrid_row) : row;
    if (o->hybrid) thing = sizeof(wefti_hybrid_row) + 16;
    store->in_row_bytes = (size_t)o->width * store->in_bytes;
    store->blocks = wefti_blocks_of(thing, SLAB_LEAST_BYTES, o->memory_bytes && !o->hybrid ? SLAB_LEAST_BYTES : SLAB_MOST_BYTES);
    store->chunk_rows = wefti_max_i64(1, CHUNK_ELEMENTS / o->width);
    store->scratch_bytes = (size_t)store->chunk_rows * row; /* no more than a row, or 4096 elements */
    store->copy_bytes = o->rule.kind == WEFT_TABLE_USER ? copies : 0;
    return WEFT_OK;
}

weft_status wefti_store_create(const wefti_store_options *options, wefti_store **store_out) {
    *store_out = NULL;
    wefti_store *store;
    WEFTI_TRY(wefti_alloc(sizeof *store, "a table's rows", &store));
    store->options = *options;
    store->held = options->dtype == WEFT_F16 || options->dtype == WEFT_BF16 ? WEFT_F32 : options->dtype;
    store->element_bytes = weft_dtype_bytes(store->held);
    store->in_bytes = weft_dtype_bytes(options->dtype);
    store->loops = wefti_loops_choose();
    weft_status status = prepare(store);
    if (status == WEFT_OK) status = wefti_store_begin_spill(store);
    if (status == WEFT_OK && !options->sparse) status = create_dense(store);
    if (status == WEFT_OK) status = wefti_alloc_raw(store->scratch_bytes, WEFTI_CACHE_LINE, "updates on their way to a table's rows", &store->scratch);
    if (status == WEFT_OK && store->copy_bytes) status = wefti_alloc_raw(store->copy_bytes, WEFTI_CACHE_LINE, "a row that a rule works on", &store->copy);
    if (status != WEFT_OK) {
        wefti_store_release(store);
        return status;
    }
    *store_out = store;
    return WEFT_OK;
}

void wefti_store_release(wefti_store *store) {
    if (!store) return;
    if (store->options.hybrid) wefti_hybrid_store_empty(store);
    if (store->outside) store->whole.memory = NULL;
    for (uint64_t i = 0; i < store->slab_count; i++) wefti_free(store->slabs[i].memory, store->slabs[i].bytes);
    wefti_spill_release(store->spill);
    if (store->slabs != &store->whole) {
        wefti_free(store->slabs, store->slab_room * sizeof *store->slabs);
        wefti_free(store->index, store->index_size * sizeof *store->index);
    }
    wefti_free(store->scratch, store->scratch_bytes);
    wefti_free(store->copy, store->copy_bytes);
    wefti_free(store, sizeof *store);
}

/* --- finding and reading --- */

weft_status wefti_store_find(wefti_store *store, const uint64_t *keys, int64_t count, bool create, uint64_t *places_out) {
    if (store->options.sparse) return wefti_store_find_sparse(store, keys, count, create, places_out);
    for (int64_t i = 0; i < count; i++) {
        uint64_t place = keys[i] - store->options.first;
        places_out[i] = place < store->rows ? place : WEFTI_PLACE_NONE;
    }
    return WEFT_OK;
}

static weft_status read_run(wefti_store *store, wefti_spot spot, uint64_t place, int64_t rows, uint8_t *out) {
    WEFTI_TRY(wefti_store_need(store, spot.block, false));
    const void *from = wefti_store_row(store, spot);
    if (store->options.hybrid) {
        const wefti_hybrid_shape shape = wefti_store_shape(store);
        for (int64_t i = 0; i < rows; i++) {
            WEFTI_TRY(wefti_store_need_row(store, place + (uint64_t)i, false));
            wefti_hybrid_read(&shape, (const wefti_hybrid_row *)from + i, out + (size_t)i * store->in_row_bytes);
        }
    } else if (store->held == store->options.dtype) memcpy(out, from, (size_t)rows * store->row_bytes);
    else store->loops->round[store->options.dtype](out, from, rows * store->options.width);
    return WEFT_OK;
}

static void read_missing(const wefti_store *store, uint64_t key, uint8_t *out) {
    if (store->options.hybrid) {
        memset(out, 0, store->in_row_bytes);
        return;
    }
    if (store->held == store->options.dtype) {
        wefti_store_first(store, key, out);
        return;
    }
    wefti_store_first(store, key, store->scratch);
    store->loops->round[store->options.dtype](out, store->scratch, store->options.width);
}

weft_status wefti_store_read(wefti_store *store, const uint64_t *keys, const uint64_t *places, uint64_t begin, int64_t count, void *values_out) {
    uint8_t *out = values_out;
    for (int64_t i = 0, asked = 0; i < count;) {
        for (asked = wefti_max_i64(asked, i + 1); places && asked < count && asked <= i + WEFTI_STORE_AHEAD; asked++)
            if (places[asked] != WEFTI_PLACE_NONE) wefti_store_prefetch(store, places[asked], 1, false);
        if (places && places[i] == WEFTI_PLACE_NONE) {
            read_missing(store, keys[i], out + (size_t)i * store->in_row_bytes);
            i++;
            continue;
        }
        uint64_t   place = places ? places[i] : begin + (uint64_t)i;
        wefti_spot spot = wefti_blocks_find(store->blocks, place);
        int64_t    run = 1, most = (int64_t)(store->slabs[spot.block].rows - spot.at);
        if (most > count - i) most = count - i;
        if (!places) run = most;
        while (run < most && places[i + run] == places[i] + (uint64_t)run) run++;
        WEFTI_TRY(read_run(store, spot, place, run, out + (size_t)i * store->in_row_bytes));
        i += run;
    }
    return WEFT_OK;
}

/* --- looking --- */

int64_t wefti_store_rows(const wefti_store *store) { return (int64_t)store->rows; }

uint64_t wefti_store_key(const wefti_store *store, uint64_t place) {
    if (!store->options.sparse) return store->options.first + place;
    wefti_spot spot = wefti_blocks_find(store->blocks, place);
    return store->slabs[spot.block].keys[spot.at];
}

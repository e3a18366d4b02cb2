/* What the files of the store share: how it is laid out, and where a place lies. */
#ifndef WEFTI_SERVER_STORE_INTERNAL_H
#define WEFTI_SERVER_STORE_INTERNAL_H

#include <math.h>

#include "parallel/server/hybrid.h"
#include "parallel/server/store.h"
#include "parallel/server/store_loops.h"

/* Blocks of numbered things that never move: block 0 has 2^least of them, block k as many as all before it, until blocks have 2^most and stay
 * so. A small table is small, and what is not used yet is at most half, or a block. */
typedef struct wefti_blocks { uint32_t least, most; } wefti_blocks;
typedef struct wefti_spot { uint64_t block, at; } wefti_spot;

static inline wefti_spot wefti_blocks_find(wefti_blocks blocks, uint64_t number) {
    uint64_t share = number >> blocks.least;
    if (share == 0) return (wefti_spot){0, number};
    if (number >> blocks.most) return (wefti_spot){blocks.most - blocks.least + (number >> blocks.most), number & ((UINT64_C(1) << blocks.most) - 1)};
    uint64_t power = 63 - (uint64_t)__builtin_clzll(share);
    return (wefti_spot){power + 1, number - (UINT64_C(1) << (power + blocks.least))};
}
static inline uint64_t wefti_blocks_size(wefti_blocks blocks, uint64_t block) {
    uint64_t power = block == 0 ? blocks.least : blocks.least + block - 1;
    return UINT64_C(1) << (power < blocks.most ? power : blocks.most);
}
/* Blocks of 2^least .. 2^most things of so many bytes, near the least and the most bytes that are asked for. */
static inline wefti_blocks wefti_blocks_of(size_t thing_bytes, size_t least_bytes, size_t most_bytes) {
    wefti_blocks blocks = {0, 0};
    while (thing_bytes <= least_bytes >> (blocks.least + 1)) blocks.least++;
    blocks.most = blocks.least;
    while (thing_bytes <= most_bytes >> (blocks.most + 1)) blocks.most++;
    return blocks;
}

/* A slab: values [rows, width] (hybrid: [rows] of wefti_hybrid_row), each state [rows, width], then by row the number of updates and (sparse) the key, where they are kept. Arrays begin
 * at cache lines. */
typedef struct wefti_slab {
    uint8_t  *memory;
    size_t    bytes, array_bytes; /* of all; from one array to the next */
    uint64_t  rows;
    int64_t  *updates; /* [rows] or NULL */
    uint64_t *keys;    /* [rows] or NULL */
} wefti_slab;

/* The index: open addressing, linear probing; at most two thirds full. Of a power of two. */
typedef struct wefti_entry { uint64_t key, place_and_1; } wefti_entry; /* 0: free */

struct wefti_store {
    wefti_store_options options;
    weft_dtype          held;
    size_t              element_bytes, in_bytes; /* of held, of the table's dtype */
    size_t              row_bytes, in_row_bytes; /* of a slab's row: [width] of held, or a wefti_hybrid_row; of one of the table's dtype */
    uint64_t            rows;  /* that there are */
    size_t              bytes; /* of slabs, their list and the index */

    wefti_blocks blocks; /* places to slabs; dense: one slab that holds all */
    wefti_slab  *slabs, whole;
    bool         outside; /* whole.memory is another's */
    uint64_t     slab_count, slab_room, slab_rows; /* that there are; of the list; that they have room for */
    wefti_entry *index;
    uint64_t     index_size;

    wefti_spill *spill; /* rows lie on disk, too; NULL: they do not */
    const wefti_loops *loops;
    const wefti_rule  *rule; /* of SOLVER and FTRL */
    double             hyper[WEFTI_HYPER_COUNT], l2, decay, l1, group;
    int64_t            powers_of; /* the step that the powers below are of */
    double             a_power, b_power;
    int32_t            states;
    bool               counts;     /* keeps the number of each row's updates */
    int64_t            chunk_rows; /* that scratch has room for */
    void              *scratch;    /* [chunk_rows, width] of held: updates on their way; what is read */
    void              *copy;       /* [1 + states, width] of held: a row that a USER rule works on */
    size_t             scratch_bytes, copy_bytes;
};

/* What is done to an update on its way: floats are multiplied by scale, or divided where divisor is not 1; integers are divided. */
typedef struct wefti_scaling {
    double  scale;
    int64_t divisor;
} wefti_scaling;

/* Integers: the divisor nearest to 1/scale, at least 1. */
static inline wefti_scaling wefti_scaling_of(const wefti_store *store, double scale) {
    if (weft_dtype_is_float(store->held)) return (wefti_scaling){scale, 1};
    double divisor = scale > 0x1p-62 ? round(1 / scale) : 0x1p62;
    return (wefti_scaling){1, divisor > 1 ? (int64_t)divisor : 1};
}

static inline void *wefti_store_row(const wefti_store *store, wefti_spot spot) {
    return store->slabs[spot.block].memory + spot.at * store->row_bytes;
}

/* What to do about too many bytes. */
#define WEFTI_STORE_ADVICE "more servers, a narrower dtype or a rule of fewer states make it fewer; with .memory_bytes rows lie on disk, too"

/* Rows that a loop asks for before it comes to them: measured with 2 to 16, where one array wants more and three want less. */
enum { WEFTI_STORE_AHEAD = 6 };
/* Lines of a row that are asked for; what follows the machine finds by itself. */
enum { WEFTI_STORE_LINES = 8 };
static inline void wefti_store_prefetch(const wefti_store *store, uint64_t place, int32_t arrays, bool write) {
    wefti_spot        spot = wefti_blocks_find(store->blocks, place);
    const wefti_slab *slab = &store->slabs[spot.block];
    if (!slab->memory) return; /* on disk */
    const uint8_t    *row = slab->memory + spot.at * store->row_bytes;
    size_t            bytes = store->row_bytes < WEFTI_STORE_LINES * WEFTI_CACHE_LINE ? store->row_bytes : WEFTI_STORE_LINES * WEFTI_CACHE_LINE;
    for (int32_t array = 0; array < arrays; array++, row += slab->array_bytes)
        for (size_t at = 0; at < bytes; at += WEFTI_CACHE_LINE) {
            if (write) __builtin_prefetch(row + at, 1);
            else __builtin_prefetch(row + at, 0);
        }
    if (write && slab->updates) __builtin_prefetch(&slab->updates[spot.at], 1);
}

/* Writes what a key's row begins with, in the held dtype. */
void wefti_store_first(const wefti_store *store, uint64_t key, void *row_out);

/* Sets up the rule of a store that is being made: rule, hyperparameters, states, counts. From store_rule.c. */
WEFT_MUST_CHECK weft_status wefti_store_choose_rule(wefti_store *store);

/* Gives updates of `dtype` (the table's, the held one, or I64 for I32) to the rows from place `begin` on, or to `places`. `failures`, where it
 * is not NULL, takes the first failure of a USER rule, and the rows after it go on. */
WEFT_MUST_CHECK weft_status wefti_store_give(wefti_store *store, const uint64_t *places, uint64_t begin, int64_t count, const void *updates,
                                             weft_dtype dtype, wefti_scaling scaling, weft_status *failures);

/* Hybrid stores (store_hybrid.c): rows by place, and what others do with rows of [width]. Room for what is to be given, within most_bytes, so that
 * giving it cannot fail: rows have grown at most where it says WEFT_E_NO_MEMORY. */
static inline wefti_hybrid_shape wefti_store_shape(const wefti_store *store) {
    return (wefti_hybrid_shape){(uint32_t)store->options.width, store->held};
}
static inline wefti_hybrid_row *wefti_store_hybrid_row(const wefti_store *store, uint64_t place) {
    return wefti_store_row(store, wefti_blocks_find(store->blocks, place));
}
WEFT_MUST_CHECK weft_status wefti_hybrid_store_room(wefti_store *store, uint64_t place, uint64_t entries); /* of one row */
WEFT_MUST_CHECK weft_status wefti_hybrid_store_reserve(wefti_store *store, const uint64_t *places, uint64_t begin, int64_t count, const void *updates,
                                                       weft_dtype dtype, wefti_scaling scaling);
WEFT_MUST_CHECK weft_status wefti_hybrid_store_give(wefti_store *store, const uint64_t *places, uint64_t begin, int64_t count, const void *updates,
                                                    weft_dtype dtype, wefti_scaling scaling);
WEFT_MUST_CHECK weft_status wefti_hybrid_store_write(wefti_store *store, const uint64_t *places, uint64_t begin, int64_t count, const void *values);
void wefti_hybrid_store_empty(wefti_store *store); /* frees what its rows hold */

/* Rows on disk (store_spill.c). A slab, or a row of a hybrid store, is in memory until another one is brought; `changes`: it is going to. */
WEFT_MUST_CHECK weft_status wefti_store_begin_spill(wefti_store *store);
WEFT_MUST_CHECK weft_status wefti_store_bring(wefti_store *store, uint64_t block, bool changes);
WEFT_MUST_CHECK weft_status wefti_store_bring_row(wefti_store *store, uint64_t place, bool changes);
static inline weft_status wefti_store_need(wefti_store *store, uint64_t block, bool changes) {
    return store->spill && !store->options.hybrid ? wefti_store_bring(store, block, changes) : WEFT_OK;
}
static inline weft_status wefti_store_need_row(wefti_store *store, uint64_t place, bool changes) {
    return store->spill ? wefti_store_bring_row(store, place, changes) : WEFT_OK;
}
/* Bytes of a slab, or a hybrid row as [width], without bringing it. */
WEFT_MUST_CHECK weft_status wefti_store_peek(wefti_store *store, uint64_t block, size_t from, size_t bytes, void *out);
WEFT_MUST_CHECK weft_status wefti_store_peek_row(wefti_store *store, uint64_t place, void *values_out);

/* Bytes of a slab with so many rows; false where they are too many for a size_t. */
bool wefti_slab_measure(const wefti_store *store, uint64_t rows, wefti_slab *slab_out);
/* Memory for what was measured; zeroed on request. */
WEFT_MUST_CHECK weft_status wefti_slab_fill(const wefti_store *store, bool zero, wefti_slab *slab);
/* Keys to places of a sparse store, as wefti_store_find. From store_index.c. */
WEFT_MUST_CHECK weft_status wefti_store_find_sparse(wefti_store *store, const uint64_t *keys, int64_t count, bool create, uint64_t *places_out);

#endif

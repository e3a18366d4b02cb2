/* Entries of rows in messages and in stores. A push goes over its entries once to check them, and over those of a hybrid store once more to make
 * room, so that nothing fails in between. */
#include "parallel/server/store_entries.h"

#include <string.h>

#include "parallel/server/store_internal.h"

/* --- messages --- */

bool wefti_entries_lay_out(uint64_t rows, uint64_t count, int64_t width, size_t element_bytes, wefti_entries_layout *layout) {
    if (rows > SIZE_MAX / 64 || count > SIZE_MAX / 64) return false;
    layout->values = wefti_align_up(rows * sizeof(uint32_t), 8);
    layout->columns = layout->values + wefti_align_up(count * element_bytes, 8);
    layout->bytes = layout->columns + wefti_align_up(count * wefti_entries_column_bytes(width), 8);
    return true;
}

static weft_status check_row(const wefti_entries *entries, uint64_t row, uint64_t at, int64_t width, bool ascend) {
    int64_t last = -1;
    for (uint32_t i = 0; i < entries->counts[row]; i++) {
        int64_t column = wefti_entries_column(entries->columns, entries->column_bytes, at + i);
        if (column >= width || (ascend && column <= last))
            return wefti_fail(WEFT_E_CORRUPT, "entry %u of %u of row %llu is of column %lld, %s", (unsigned)i, (unsigned)entries->counts[row],
                              (unsigned long long)row, (long long)column, column >= width ? "which rows do not have" : "and columns ascend");
        last = column;
    }
    return WEFT_OK;
}

weft_status wefti_entries_read(const uint8_t *bytes, size_t size_bytes, uint64_t rows, int64_t width, size_t element_bytes, bool ascend,
                               wefti_entries *entries_out) {
    wefti_entries        entries = {.counts = (const uint32_t *)(const void *)bytes, .column_bytes = wefti_entries_column_bytes(width),
                                    .element_bytes = (uint32_t)element_bytes};
    wefti_entries_layout layout = {0};
    if (rows > size_bytes / sizeof(uint32_t)) return wefti_fail(WEFT_E_CORRUPT, "entries of %llu rows in %zu bytes", (unsigned long long)rows, size_bytes);
    for (uint64_t row = 0; row < rows; row++) {
        if (entries.counts[row] > (uint64_t)width)
            return wefti_fail(WEFT_E_CORRUPT, "%u entries in row %llu of %lld elements", (unsigned)entries.counts[row], (unsigned long long)row, (long long)width);
        entries.count += entries.counts[row];
    }
    if (!wefti_entries_lay_out(rows, entries.count, width, element_bytes, &layout) || layout.bytes != size_bytes)
        return wefti_fail(WEFT_E_CORRUPT, "%llu entries of %llu rows in %zu bytes", (unsigned long long)entries.count, (unsigned long long)rows, size_bytes);
    entries.values = bytes + layout.values;
    entries.columns = bytes + layout.columns;
    for (uint64_t row = 0, at = 0; row < rows; at += entries.counts[row++]) WEFTI_TRY(check_row(&entries, row, at, width, ascend));
    *entries_out = entries;
    return WEFT_OK;
}

/* --- rows --- */

/* Integers wrap. */
#define ADD(TYPE)                                                                                                                        \
    for (uint32_t i = 0; i < count; i++) {                                                                                               \
        TYPE *to = (TYPE *)row + wefti_entries_column(columns, column_bytes, i), value = ((const TYPE *)values)[i];                       \
        *to = set ? value : *to + value;                                                                                                 \
    }
void wefti_entries_add(weft_dtype dtype, void *row, const uint8_t *columns, uint32_t column_bytes, const void *values, uint32_t count, bool set) {
    switch (dtype) {
    case WEFT_I32: ADD(uint32_t) break;
    case WEFT_I64: ADD(uint64_t) break;
    case WEFT_F64: ADD(double) break;
    default: ADD(float)
    }
}
#undef ADD

/* Room for what is new in the rows, or no row has changed. */
static weft_status reserve(wefti_store *store, const uint64_t *places, uint64_t begin, int64_t count, const wefti_entries *entries) {
    const wefti_hybrid_shape shape = wefti_store_shape(store);
    for (uint64_t i = 0, at = 0; i < (uint64_t)count; at += entries->counts[i++]) {
        const uint64_t          place = places ? places[i] : begin + i;
        const wefti_hybrid_row *row = wefti_store_hybrid_row(store, place);
        if (row->room == WEFTI_HYBRID_DENSE) continue;
        WEFTI_TRY(wefti_store_need_row(store, place, false));
        uint32_t missing = wefti_hybrid_missing_entries(&shape, row, entries->columns + at * entries->column_bytes, entries->column_bytes,
                                                        entries->values + at * entries->element_bytes, entries->counts[i]);
        WEFTI_TRY(wefti_hybrid_store_room(store, place, (uint64_t)row->used + missing));
    }
    return WEFT_OK;
}

weft_status wefti_store_apply_entries(wefti_store *store, const uint64_t *places, uint64_t begin, int64_t count, const wefti_entries *entries) {
    const weft_dtype given = store->options.dtype;
    if (store->options.hybrid) WEFTI_TRY(reserve(store, places, begin, count, entries));
    for (uint64_t i = 0, at = 0; i < (uint64_t)count; at += entries->counts[i++]) {
        const uint64_t place = places ? places[i] : begin + i;
        const uint32_t here = entries->counts[i], wide = entries->column_bytes;
        const uint8_t *columns = entries->columns + at * wide;
        const void    *values = entries->values + at * entries->element_bytes;
        if (here && given != store->held) { /* at most as many as scratch has room for: a row */
            store->loops->take[given](store->scratch, values, here, 1, 1);
            values = store->scratch;
        }
        if (store->options.hybrid) {
            const wefti_hybrid_shape shape = wefti_store_shape(store);
            WEFTI_TRY(wefti_store_need_row(store, place, true));
            wefti_hybrid_add_entries(&shape, wefti_store_hybrid_row(store, place), columns, wide, values, here);
            continue;
        }
        const wefti_spot spot = wefti_blocks_find(store->blocks, place);
        WEFTI_TRY(wefti_store_need(store, spot.block, true));
        wefti_entries_add(store->held, wefti_store_row(store, spot), columns, wide, values, here, false);
    }
    return WEFT_OK;
}

/* Of either sign. */
static bool is_zero(weft_dtype dtype, const uint8_t *value) {
    union { uint64_t bits; float f32; double f64; uint16_t f16; } x = {.bits = 0};
    memcpy(&x, value, weft_dtype_bytes(dtype));
    switch (dtype) {
    case WEFT_F32: return x.f32 == 0;
    case WEFT_F64: return x.f64 == 0;
    case WEFT_F16: case WEFT_BF16: return (x.f16 & 0x7fff) == 0;
    default: return x.bits == 0;
    }
}

weft_status wefti_store_read_entries(wefti_store *store, uint64_t key, uint64_t place, void *row, uint8_t *columns_out, uint8_t *values_out, uint32_t *count_out) {
    const int64_t  width = store->options.width;
    const uint32_t wide = wefti_entries_column_bytes(width);
    uint32_t       count = 0;
    *count_out = 0;
    if (store->options.hybrid) {
        const wefti_hybrid_shape shape = wefti_store_shape(store);
        if (place == WEFTI_PLACE_NONE) return WEFT_OK;
        const wefti_hybrid_row *hybrid = wefti_store_hybrid_row(store, place);
        if (columns_out || hybrid->room == WEFTI_HYBRID_DENSE) WEFTI_TRY(wefti_store_need_row(store, place, false));
        *count_out = wefti_hybrid_read_entries(&shape, hybrid, columns_out, wide, values_out);
        return WEFT_OK;
    }
    WEFTI_TRY(wefti_store_read(store, &key, &place, 0, 1, row));
    for (int64_t i = 0; i < width; i++) {
        const uint8_t *value = (const uint8_t *)row + (size_t)i * store->in_bytes;
        if (is_zero(store->options.dtype, value)) continue;
        if (columns_out) {
            wefti_entries_put_column(columns_out, wide, count, (uint32_t)i);
            memcpy(values_out + count * store->in_bytes, value, store->in_bytes);
        }
        count++;
    }
    *count_out = count;
    return WEFT_OK;
}

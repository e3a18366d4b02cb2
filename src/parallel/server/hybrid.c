/* Rows that are hashes while that is smaller. Linear probing; a column's home is its product with an odd number, scaled to the room, which needs
 * no power of two; what leaves is closed up by moving back what follows, so nothing marks where something was. */
#include "parallel/server/hybrid.h"

#include <string.h>

#include "parallel/server/store_entries.h"

enum { ROOM_LEAST = 4, NARROW_MOST = UINT16_MAX };

static size_t element_of(const wefti_hybrid_shape *shape) { return weft_dtype_bytes(shape->dtype); }
static size_t column_of(const wefti_hybrid_shape *shape) { return shape->width <= NARROW_MOST ? sizeof(uint16_t) : sizeof(uint32_t); }
static size_t dense_bytes(const wefti_hybrid_shape *shape) { return shape->width * element_of(shape); }
static size_t hash_bytes(const wefti_hybrid_shape *shape, uint64_t room) { return (size_t)room * (element_of(shape) + column_of(shape)); }
static uint64_t next_room(uint64_t room) { return room ? room + (room + 3) / 4 : ROOM_LEAST; }
static uint64_t entries_of(uint64_t room) { return room * 4 / 5; }

size_t wefti_hybrid_formula(const wefti_hybrid_shape *shape, uint32_t entries) {
    if (entries == 0) return 0;
    uint64_t room = ROOM_LEAST;
    while (entries_of(room) < entries) room = next_room(room);
    return wefti_min_i64((int64_t)hash_bytes(shape, room), (int64_t)dense_bytes(shape));
}

size_t wefti_hybrid_bytes(const wefti_hybrid_shape *shape, const wefti_hybrid_row *row) {
    return row->room == WEFTI_HYBRID_DENSE ? dense_bytes(shape) : hash_bytes(shape, row->room);
}

/* --- the hash --- */

typedef struct hash {
    uint8_t *values, *columns;
    size_t   element, column_bytes;
    uint32_t room, none; /* none: the column of what is free */
} hash;

static hash hash_of(const wefti_hybrid_shape *shape, uint8_t *memory, uint32_t room) {
    const size_t element = element_of(shape), column = column_of(shape);
    return (hash){memory, memory ? memory + room * element : NULL, element, column, room, column == sizeof(uint16_t) ? UINT16_MAX : UINT32_MAX};
}
static uint32_t column_at(const hash *h, uint32_t at) {
    if (h->column_bytes == sizeof(uint32_t)) return ((const uint32_t *)(const void *)h->columns)[at];
    return ((const uint16_t *)(const void *)h->columns)[at];
}
static void set_column(const hash *h, uint32_t at, uint32_t column) {
    if (h->column_bytes == sizeof(uint32_t)) ((uint32_t *)(void *)h->columns)[at] = column;
    else ((uint16_t *)(void *)h->columns)[at] = (uint16_t)column;
}
static uint32_t home_of(const hash *h, uint32_t column) {
    return (uint32_t)(((column * UINT64_C(0x9e3779b97f4a7c15) >> 32) * h->room) >> 32);
}
static uint32_t after(const hash *h, uint32_t at) { return at + 1 == h->room ? 0 : at + 1; }

/* Where a column is, or would be. A hash is never full. */
static uint32_t find(const hash *h, uint32_t column) {
    uint32_t at = home_of(h, column);
    while (column_at(h, at) != column && column_at(h, at) != h->none) at = after(h, at);
    return at;
}

static void take_out(const hash *h, uint32_t hole) {
    for (uint32_t at = after(h, hole); column_at(h, at) != h->none; at = after(h, at)) {
        uint32_t home = home_of(h, column_at(h, at));
        /* it stays where its home lies behind the hole, going round, up to itself */
        if (hole < at ? home > hole && home <= at : home > hole || home <= at) continue;
        memcpy(h->values + hole * h->element, h->values + at * h->element, h->element);
        set_column(h, hole, column_at(h, at));
        hole = at;
    }
    set_column(h, hole, h->none);
}

/* --- growing --- */

/* The room for so many entries, which is at least what there is. Rows that are dense stay so. */
static uint64_t room_for(const wefti_hybrid_row *row, uint64_t entries) {
    uint64_t room = row->room;
    while (room != WEFTI_HYBRID_DENSE && entries_of(room) < entries) room = next_room(room);
    return room;
}

static weft_status grow(const wefti_hybrid_shape *shape, wefti_hybrid_row *row, uint64_t room) {
    const bool dense = hash_bytes(shape, room) >= dense_bytes(shape);
    uint8_t   *memory;
    size_t     bytes = dense ? dense_bytes(shape) : hash_bytes(shape, room);
    WEFTI_TRY(wefti_alloc(bytes, dense ? "a row of a hybrid table that turns dense" : "a row of a hybrid table", &memory));
    wefti_hybrid_row grown = {memory, row->used, dense ? WEFTI_HYBRID_DENSE : (uint32_t)room};
    if (dense) wefti_hybrid_read(shape, row, memory);
    else {
        hash to = hash_of(shape, memory, grown.room), from = hash_of(shape, row->memory, row->room);
        memset(to.columns, 0xff, to.room * to.column_bytes);
        for (uint32_t i = 0; i < row->room; i++) {
            if (column_at(&from, i) == from.none) continue;
            uint32_t at = find(&to, column_at(&from, i));
            set_column(&to, at, column_at(&from, i));
            memcpy(to.values + at * to.element, from.values + i * from.element, to.element);
        }
    }
    if (row->memory) wefti_free(row->memory, wefti_hybrid_bytes(shape, row));
    *row = grown;
    return WEFT_OK;
}

size_t wefti_hybrid_bytes_with(const wefti_hybrid_shape *shape, const wefti_hybrid_row *row, uint64_t entries) {
    if (row->room == WEFTI_HYBRID_DENSE) return dense_bytes(shape);
    return (size_t)wefti_min_i64((int64_t)hash_bytes(shape, room_for(row, entries)), (int64_t)dense_bytes(shape));
}

weft_status wefti_hybrid_reserve(const wefti_hybrid_shape *shape, wefti_hybrid_row *row, uint64_t entries) {
    uint64_t room = room_for(row, entries);
    return room == row->room ? WEFT_OK : grow(shape, row, room);
}

/* --- values --- */

typedef union number { int32_t i32; int64_t i64; float f32; double f64; uint64_t bits; } number;

static number sum_of(weft_dtype dtype, const void *a, const void *b) {
    number x = {.bits = 0}, y = {.bits = 0};
    memcpy(&x, a, weft_dtype_bytes(dtype));
    memcpy(&y, b, weft_dtype_bytes(dtype));
    switch (dtype) {
    case WEFT_I32: x.i32 = (int32_t)((uint32_t)x.i32 + (uint32_t)y.i32); break;
    case WEFT_I64: x.i64 = (int64_t)((uint64_t)x.i64 + (uint64_t)y.i64); break;
    case WEFT_F64: x.f64 += y.f64; break;
    default: x.f32 += y.f32;
    }
    return x;
}

weft_status wefti_hybrid_add(const wefti_hybrid_shape *shape, wefti_hybrid_row *row, uint32_t column, const void *update) {
    const size_t element = element_of(shape);
    const number zero = {.bits = 0};
    if (row->room != 0 && row->room != WEFTI_HYBRID_DENSE) {
        hash     h = hash_of(shape, row->memory, row->room);
        uint32_t at = find(&h, column);
        if (column_at(&h, at) == column) {
            number sum = sum_of(shape->dtype, h.values + at * element, update);
            memcpy(h.values + at * element, &sum, element);
            if (memcmp(&sum, &zero, element) != 0) return WEFT_OK;
            take_out(&h, at);
            row->used--;
            return WEFT_OK;
        }
    }
    if (row->room != WEFTI_HYBRID_DENSE) {
        number sum = sum_of(shape->dtype, &zero, update); /* -0.0 added to 0 is 0 */
        if (memcmp(&sum, &zero, element) == 0) return WEFT_OK;
        WEFTI_TRY(wefti_hybrid_reserve(shape, row, row->used + UINT64_C(1)));
        if (row->room != WEFTI_HYBRID_DENSE) {
            hash     h = hash_of(shape, row->memory, row->room);
            uint32_t at = find(&h, column);
            set_column(&h, at, column);
            memcpy(h.values + at * element, &sum, element);
            row->used++;
            return WEFT_OK;
        }
    }
    number sum = sum_of(shape->dtype, row->memory + column * element, update);
    memcpy(row->memory + column * element, &sum, element);
    return WEFT_OK;
}

/* Of either sign. */
static bool is_zero(const wefti_hybrid_shape *shape, const void *value) {
    number x = {.bits = 0};
    memcpy(&x, value, element_of(shape));
    switch (shape->dtype) {
    case WEFT_F64: return x.f64 == 0;
    case WEFT_F32: return x.f32 == 0;
    default: return x.bits == 0;
    }
}

uint32_t wefti_hybrid_missing(const wefti_hybrid_shape *shape, const wefti_hybrid_row *row, const void *values) {
    const size_t element = element_of(shape);
    uint32_t     missing = 0;
    if (row->room == WEFTI_HYBRID_DENSE) return 0;
    hash h = hash_of(shape, row->memory, row->room);
    for (uint32_t i = 0; i < shape->width; i++) {
        if (is_zero(shape, (const uint8_t *)values + i * element)) continue;
        missing += row->room == 0 || column_at(&h, find(&h, i)) != i;
    }
    return missing;
}

void wefti_hybrid_add_row(const wefti_hybrid_shape *shape, wefti_hybrid_row *row, const void *values) {
    const size_t element = element_of(shape);
    for (uint32_t i = 0; i < shape->width; i++) {
        const uint8_t *value = (const uint8_t *)values + i * element;
        if (is_zero(shape, value)) continue; /* a row has no zero with a sign */
        weft_status status = wefti_hybrid_add(shape, row, i, value);
        (void)status; /* there is room */
    }
}

/* --- entries --- */

uint32_t wefti_hybrid_missing_entries(const wefti_hybrid_shape *shape, const wefti_hybrid_row *row, const uint8_t *columns, uint32_t column_bytes,
                                      const uint8_t *values, uint32_t count) {
    const size_t element = element_of(shape);
    uint32_t     missing = 0;
    if (row->room == WEFTI_HYBRID_DENSE) return 0;
    hash h = hash_of(shape, row->memory, row->room);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t column = wefti_entries_column(columns, column_bytes, i);
        if (!is_zero(shape, values + i * element)) missing += row->room == 0 || column_at(&h, find(&h, column)) != column;
    }
    return missing;
}

void wefti_hybrid_add_entries(const wefti_hybrid_shape *shape, wefti_hybrid_row *row, const uint8_t *columns, uint32_t column_bytes, const void *values,
                              uint32_t count) {
    const size_t element = element_of(shape);
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *value = (const uint8_t *)values + i * element;
        if (is_zero(shape, value)) continue;
        weft_status status = wefti_hybrid_add(shape, row, wefti_entries_column(columns, column_bytes, i), value);
        (void)status; /* there is room */
    }
}

uint32_t wefti_hybrid_read_entries(const wefti_hybrid_shape *shape, const wefti_hybrid_row *row, uint8_t *columns_out, uint32_t column_bytes,
                                   uint8_t *values_out) {
    const bool   dense = row->room == WEFTI_HYBRID_DENSE;
    const size_t element = element_of(shape);
    uint32_t     count = 0;
    if (!dense && !columns_out) return row->used;
    hash h = hash_of(shape, row->memory, dense ? 0 : row->room);
    for (uint32_t i = 0; i < (dense ? shape->width : row->room); i++) {
        const uint8_t *value = row->memory + i * element;
        if (dense ? is_zero(shape, value) : column_at(&h, i) == h.none) continue;
        if (columns_out) {
            wefti_entries_put_column(columns_out, column_bytes, count, dense ? i : column_at(&h, i));
            memcpy(values_out + count * element, value, element);
        }
        count++;
    }
    return count;
}

void wefti_hybrid_clear(const wefti_hybrid_shape *shape, wefti_hybrid_row *row) {
    if (row->room == WEFTI_HYBRID_DENSE) memset(row->memory, 0, dense_bytes(shape));
    else if (row->room) memset(row->memory + row->room * element_of(shape), 0xff, row->room * column_of(shape));
    row->used = 0;
}

void wefti_hybrid_read(const wefti_hybrid_shape *shape, const wefti_hybrid_row *row, void *values_out) {
    if (row->room == WEFTI_HYBRID_DENSE) {
        memcpy(values_out, row->memory, dense_bytes(shape));
        return;
    }
    memset(values_out, 0, dense_bytes(shape));
    hash h = hash_of(shape, row->memory, row->room);
    for (uint32_t i = 0; i < row->room; i++) {
        uint32_t column = column_at(&h, i);
        if (column != h.none) memcpy((uint8_t *)values_out + column * h.element, h.values + i * h.element, h.element);
    }
}

void wefti_hybrid_release(const wefti_hybrid_shape *shape, wefti_hybrid_row *row) {
    if (row->memory) wefti_free(row->memory, wefti_hybrid_bytes(shape, row));
    *row = (wefti_hybrid_row){0};
}

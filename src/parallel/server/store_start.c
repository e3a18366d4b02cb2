/* What rows begin with: a function of the seed, the key and the column alone (Philox, stream (seed, key), element = column), so that any split of
 * a table over servers, and any order in which rows come, begins alike. Random numbers are those of the held dtype. */
#include <string.h>

#include "core/tensor/philox.h"
#include "parallel/server/store_internal.h"

static void uniform_f32(const wefti_store_options *o, uint64_t key, float *row) {
    const double span = o->high - o->low;
    for (int64_t begin = 0; begin < o->width; begin += 4) {
        wefti_philox block = wefti_philox_block(o->seed, key, (uint64_t)begin / 4);
        int64_t      count = wefti_min_i64(4, o->width - begin);
        for (int64_t i = 0; i < count; i++) row[begin + i] = (float)(o->low + span * (double)wefti_uniform_of_word(block.word[i]));
    }
}
static void uniform_f64(const wefti_store_options *o, uint64_t key, double *row) {
    const double span = o->high - o->low;
    for (int64_t i = 0; i < o->width; i++) row[i] = o->low + span * wefti_random_uniform(o->seed, key, i, WEFT_F64);
}

static void normal_f32(const wefti_store_options *o, uint64_t key, float *row) {
    for (int64_t i = 0; i < o->width; i++) row[i] = (float)(o->low + o->high * wefti_random_normal(o->seed, key, i, WEFT_F32));
}
static void normal_f64(const wefti_store_options *o, uint64_t key, double *row) {
    for (int64_t i = 0; i < o->width; i++) row[i] = o->low + o->high * wefti_random_normal(o->seed, key, i, WEFT_F64);
}

static void constant(const wefti_store *store, uint8_t *row) {
    union { float f32; double f64; int32_t i32; int64_t i64; } one = {.f64 = 0};
    switch (store->held) {
    case WEFT_F64: one.f64 = store->options.low; break;
    case WEFT_I32: one.i32 = (int32_t)store->options.low; break;
    case WEFT_I64: one.i64 = (int64_t)store->options.low; break;
    default: one.f32 = (float)store->options.low;
    }
    for (size_t at = 0; at < store->row_bytes; at += store->element_bytes) memcpy(row + at, &one, store->element_bytes);
}

void wefti_store_first(const wefti_store *store, uint64_t key, void *row_out) {
    const wefti_store_options *o = &store->options;
    const bool                 wide = store->held == WEFT_F64;
    switch (o->start) {
    case WEFT_START_ZERO: memset(row_out, 0, store->row_bytes); return;
    case WEFT_START_CONSTANT: constant(store, row_out); return;
    case WEFT_START_UNIFORM: wide ? uniform_f64(o, key, row_out) : uniform_f32(o, key, row_out); return;
    case WEFT_START_NORMAL: wide ? normal_f64(o, key, row_out) : normal_f32(o, key, row_out); return;
    }
}

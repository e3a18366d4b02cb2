/* What attention and its gradient share: shapes, blocks of queries and keys, and packed keys and values. */
#ifndef WEFTI_KERNELS_ATTENTION_H
#define WEFTI_KERNELS_ATTENTION_H

#include "core/cpu/kernels/gemm.h"

/* Rows of scores are SCORE_STRIDE apart: a power of two would crowd them into few sets of the cache. */
enum { QUERY_BLOCK = 64, KEY_BLOCK = 256, SCORE_STRIDE = KEY_BLOCK + 16 };

typedef struct attention {
    int64_t batch, heads, key_heads, queries, keys, depth, value_depth;
    int64_t query_blocks, key_blocks;
    float   scale;
    bool    causal;
    int64_t shift;
} attention;

WEFTI_INLINE attention attention_of(const wefti_call *call, int32_t first) {
    const wefti_operand *q = &call->inputs[first], *k = q + 1, *v = q + 2;
    attention a = {.batch = q->shape.dim[0], .heads = q->shape.dim[1], .key_heads = k->shape.dim[1], .queries = q->shape.dim[2],
                   .keys = k->shape.dim[2], .depth = q->shape.dim[3], .value_depth = v->shape.dim[3],
                   .scale = (float)call->attrs->attention.scale, .causal = call->attrs->attention.causal,
                   .shift = call->attrs->attention.shift};
    a.query_blocks = wefti_cpu_chunks(a.queries, QUERY_BLOCK);
    a.key_blocks   = wefti_cpu_chunks(a.keys, KEY_BLOCK);
    return a;
}

/* Where a worker's memory is measured from before there is any; nothing is read there. */
WEFTI_INLINE float *attention_nowhere(void) { return (float *)(uintptr_t)4096; }

/* Keys that query t sees. Causal aligns the last query with the last key, but for the shift. */
WEFTI_INLINE int64_t attention_visible(const attention *a, int64_t t) {
    return a->causal ? wefti_max_i64(0, wefti_min_i64(a->keys, t + 1 + a->keys - a->queries + a->shift)) : a->keys;
}
WEFTI_INLINE int64_t attention_query(const attention *a, int64_t block) { return a->queries * block / a->query_blocks; }
WEFTI_INLINE int64_t round16(int64_t elements) { return (elements + 15) & ~INT64_C(15); }
WEFTI_INLINE int64_t padded_width(int64_t columns) { return gemm_b_panels(columns, 2 * VF) * 2 * VF; }

/* Matrix (b, h) of a four-dimensional operand. */
WEFTI_INLINE const float *attention_matrix(const wefti_cpu_run *run, int32_t input, int64_t b, int64_t h) {
    const int64_t *stride = run->call->inputs[input].stride;
    return (const float *)run->inputs[input] + b * stride[0] + h * stride[1];
}

/* All rows of a [keys x depth] matrix as the columns of a product over its depth. */
WEFTI_INLINE void pack_across_keys(const float *x, const int64_t *stride, int64_t keys, int64_t depth, float *to) {
    wefti_gemm_f32_functions.pack_b(x, stride[2], stride[3], keys, depth, 0, gemm_b_panels(keys, 2 * VF), to);
}
/* The same matrix for products over keys, in blocks of KEY_BLOCK of them, padded_width(depth) * KEY_BLOCK elements each. */
WEFTI_INLINE void pack_along_keys(const float *x, const int64_t *stride, int64_t keys, int64_t depth, float *to) {
    for (int64_t key = 0; key < keys; key += KEY_BLOCK)
        wefti_gemm_f32_functions.pack_b(x + key * stride[2], stride[3], stride[2], depth, wefti_min_i64(KEY_BLOCK, keys - key), 0,
                                        gemm_b_panels(depth, 2 * VF), to + key * padded_width(depth));
}
/* Keys of the block at `key` to compute scores of, where `seen` are seen in all: whole panels, since a packed panel is as wide as
 * its keys allow. What is not seen is masked. */
WEFTI_INLINE int64_t attention_columns(const attention *a, int64_t key, int64_t seen) {
    return wefti_min_i64(wefti_min_i64(KEY_BLOCK, a->keys - key), padded_width(seen - key));
}

/* A product over the first `k` keys of a block that was packed over `packed` of them: panel by panel, since each is that long. The
 * keys of `a`, rows of scores, lie side by side. */
WEFTI_INLINE void multiply_along_keys(int64_t rows, int64_t columns, int64_t k, int64_t packed, const float *a, const float *b,
                                      float *c, bool add) {
    for (int64_t column = 0; column < columns; column += 2 * VF)
        wefti_gemm_f32_functions.multiply_rows(rows, wefti_min_i64(2 * VF, columns - column), k, a, SCORE_STRIDE, b + column * packed,
                                               c + column, columns, gemm_store(add));
}
/* Scores: `rows` rows of a [.. x depth] matrix, where they lie or packed at `room`, times keys packed across. */
WEFTI_INLINE void multiply_across_keys(const float *x, int64_t row_stride, int64_t k_stride, int64_t rows, int64_t columns, int64_t k,
                                       const float *keys, float *room, float *scores) {
    if (gemm_reads_rows(row_stride, k_stride, sizeof *x)) {
        wefti_gemm_f32_functions.multiply_rows(rows, columns, k, x, row_stride, keys, scores, SCORE_STRIDE, GEMM_STORE);
        return;
    }
    wefti_gemm_f32_functions.pack_a(x, row_stride, k_stride, rows, k, 0, gemm_a_panels(rows), room);
    wefti_gemm_f32_functions.multiply(rows, columns, k, room, keys, scores, SCORE_STRIDE, GEMM_STORE);
}

#endif

/* ATTENTION in f32: blocks of queries against blocks of keys, as Dao et al. (2022) have it.
 *
 * Idea: a chunk is one (batch, head), or a part of its queries. Keys and values are packed once a chunk; for each block of queries the
 * scores of a block of keys are one product, the softmax runs over them with a running maximum and sum, and the result is
 * another product, rescaled where the maximum grew. Blocks of keys that no query of the block sees are skipped.
 * Bits follow from the shape: blocks and parts do.
 * Cost: a thread keeps packed keys and values of one head and two blocks: memory linear in the number of keys. */
#include "core/cpu/kernels/attention.h"
#include "core/cpu/kernels/fast.h"
#include "core/cpu/kernels/rows.h"

typedef struct forward {
    const wefti_cpu_run *run;
    attention            a;
    int64_t              parts, worker_elements;
} forward;

/* Of one worker: what its pieces are, in this order. */
typedef struct pieces {
    float *keys, *values, *queries, *scores, *out, *most, *total;
} pieces;

static int64_t carve(const attention *a, float *at, pieces *p) {
    float  *from = at;
    p->keys = at, at += padded_width(a->keys) * a->depth;
    p->values = at, at += round16(a->keys * padded_width(a->value_depth));
    p->queries = at, at += round16(QUERY_BLOCK * a->depth);
    p->scores = at, at += QUERY_BLOCK * SCORE_STRIDE;
    p->out = at, at += round16(QUERY_BLOCK * a->value_depth);
    p->most = at, at += QUERY_BLOCK;
    p->total = at, at += QUERY_BLOCK;
    return round16(at - from);
}

/* Turns the scores of one query into weights; `count` of `columns` are seen, and columns are whole vectors. Rescales what was summed
 * before. What is not seen is computed along, for loops without ends, and then 0. */
static void soften(const attention *a, float *score, int64_t count, int64_t columns, float *most, float *total, float *out) {
    float   old = *most, scale = a->scale;
    int64_t whole = (count + ROW_LANES - 1) / ROW_LANES * ROW_LANES;
    if (count > 0) {
        for (int64_t i = count; i < whole; i++) score[i] = 0;
        for (int64_t i = 0; i < whole; i++) score[i] *= scale;
        for (int64_t i = count; i < whole; i++) score[i] = -INFINITY;
        float peak = row_most(score, whole);
        if (peak > old) *most = peak;
        float shift = *most == -INFINITY ? 0 : *most; /* nothing but minus infinity, or NaN */
        row_exp(score, shift, whole, score);
        for (int64_t i = count; i < whole; i++) score[i] = 0;
        float shrink = old == *most ? 1 : f32_exp(old - shift);
        *total       = *total * shrink + (float)row_sum(score, whole);
        if (shrink != 1)
            for (int64_t d = 0; d < a->value_depth; d++) out[d] *= shrink;
    }
    for (int64_t i = wefti_max_i64(whole, 0); i < columns; i++) score[i] = 0;
}

static void forward_block(const forward *f, const pieces *p, int64_t b, int64_t h, int64_t block) {
    const attention  *a = &f->a;
    const int64_t    *stride = f->run->call->inputs[0].stride;
    int64_t first = attention_query(a, block), rows = attention_query(a, block + 1) - first;
    int64_t seen = attention_visible(a, first + rows - 1), head = b * a->heads + h;
    const float *q = attention_matrix(f->run, 0, b, h) + first * stride[2];
    for (int64_t r = 0; r < rows; r++) {
        p->most[r]  = -INFINITY;
        p->total[r] = 0;
    }
    memset(p->out, 0, (size_t)(rows * a->value_depth) * sizeof *p->out);
    for (int64_t key = 0; key < seen; key += KEY_BLOCK) {
        int64_t columns = attention_columns(a, key, seen);
        multiply_across_keys(q, stride[2], stride[3], rows, columns, a->depth, p->keys + key * a->depth, p->queries, p->scores);
        for (int64_t r = 0; r < rows; r++) {
            int64_t count = wefti_max_i64(0, wefti_min_i64(columns, attention_visible(a, first + r) - key));
            soften(a, p->scores + r * SCORE_STRIDE, count, columns, &p->most[r], &p->total[r], p->out + r * a->value_depth);
        }
        multiply_along_keys(rows, a->value_depth, columns, wefti_min_i64(KEY_BLOCK, a->keys - key), p->scores,
                            p->values + key * padded_width(a->value_depth), p->out, true);
    }
    float *out = (float *)f->run->outputs[0] + (head * a->queries + first) * a->value_depth;
    float *lse = (float *)f->run->outputs[1] + head * a->queries + first;
    for (int64_t r = 0; r < rows; r++) {
        float share = p->total[r] == 0 ? 0 : 1 / p->total[r];
        for (int64_t d = 0; d < a->value_depth; d++) out[r * a->value_depth + d] = p->out[r * a->value_depth + d] * share;
        lse[r] = p->most[r] + (float)log((double)p->total[r]);
    }
}

static void forward_chunk(void *context, int64_t chunk, int32_t worker) {
    const forward   *f = context;
    const attention *a = &f->a;
    pieces           p;
    int64_t          part = chunk % f->parts, h = chunk / f->parts % a->heads, b = chunk / f->parts / a->heads;
    int64_t          key_head = h / (a->heads / a->key_heads);
    carve(a, (float *)f->run->scratch + worker * f->worker_elements, &p);
    pack_across_keys(attention_matrix(f->run, 1, b, key_head), f->run->call->inputs[1].stride, a->keys, a->depth, p.keys);
    pack_along_keys(attention_matrix(f->run, 2, b, key_head), f->run->call->inputs[2].stride, a->keys, a->value_depth, p.values);
    for (int64_t block = a->query_blocks * part / f->parts; block < a->query_blocks * (part + 1) / f->parts; block++)
        forward_block(f, &p, b, h, block);
}

static bool accepts(const wefti_call *call) { return call->inputs[0].dtype == WEFT_F32; }

static int64_t forward_scratch(const wefti_call *call, int32_t threads) {
    attention a = attention_of(call, 0);
    pieces    p;
    return threads * carve(&a, attention_nowhere(), &p) * (int64_t)sizeof(float);
}

static weft_status run_forward(const wefti_cpu_run *run) {
    forward f = {.run = run, .a = attention_of(run->call, 0)};
    pieces  p;
    f.worker_elements = carve(&f.a, run->scratch, &p);
    f.parts           = f.a.batch * f.a.heads >= 8 ? 1 : wefti_max_i64(1, wefti_min_i64(8, f.a.query_blocks));
    wefti_cpu_for(run, f.a.batch * f.a.heads * f.parts, forward_chunk, &f);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_kernel_attention = {.name = "blocks", .accepts = accepts, .scratch = forward_scratch, .run = run_forward};

/* ATTENTION_BACKWARD in f32, block by block.
 *
 * With p = exp(scale*q.k - lse), dp = g v^T and delta = g.o: ds = p (dp - delta) scale, and dq = ds k, dk = ds^T q, dv = p^T g, five
 * products a block. A chunk is one (batch, key head) with all the heads that share it, so that the sums over queries are one
 * thread's, in one order. Cost: packed keys and values of one head twice, and four blocks, a thread. */
#include "core/cpu/kernels/attention.h"
#include "core/cpu/kernels/fast.h"
#include "core/cpu/kernels/rows.h"

enum { G, Q, K, V, O, LSE };

typedef struct backward {
    const wefti_cpu_run *run;
    attention            a;
    int64_t              worker_elements;
} backward;

typedef struct pieces {
    float *keys_across, *keys_along, *values_across; /* packed, all keys */
    float *rows;                                     /* a block of q or g, packed as rows */
    float *q, *g;                                    /* the same, packed for products over queries */
    float *p, *ds;                                   /* [QUERY_BLOCK][SCORE_STRIDE] */
    float *delta;
} pieces;

static int64_t carve(const attention *a, float *at, pieces *p) {
    float  *from = at;
    int64_t deepest = wefti_max_i64(a->depth, a->value_depth);
    p->keys_across = at, at += padded_width(a->keys) * a->depth;
    p->keys_along = at, at += round16(a->keys * padded_width(a->depth));
    p->values_across = at, at += padded_width(a->keys) * a->value_depth;
    p->rows = at, at += round16(QUERY_BLOCK * deepest);
    p->q = at, at += QUERY_BLOCK * padded_width(a->depth);
    p->g = at, at += QUERY_BLOCK * padded_width(a->value_depth);
    p->p = at, at += QUERY_BLOCK * SCORE_STRIDE;
    p->ds = at, at += QUERY_BLOCK * SCORE_STRIDE;
    p->delta = at, at += QUERY_BLOCK;
    return round16(at - from);
}

/* delta[r] = g[r] . o[r] */
static void fill_delta(const backward *w, int64_t b, int64_t h, int64_t first, int64_t rows, float *delta) {
    const int64_t *gs = w->run->call->inputs[G].stride, *os = w->run->call->inputs[O].stride;
    const float   *g = attention_matrix(w->run, G, b, h) + first * gs[2], *o = attention_matrix(w->run, O, b, h) + first * os[2];
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0;
        if (gs[3] == 1 && os[3] == 1)
            sum = row_product_sum(g + r * gs[2], o + r * os[2], w->a.value_depth);
        else
            for (int64_t d = 0; d < w->a.value_depth; d++) sum += (double)(g[r * gs[2] + d * gs[3]] * o[r * os[2] + d * os[3]]);
        delta[r] = (float)sum;
    }
}

/* p holds scores and ds holds dp; afterwards they are what their names say. What is not seen is computed along, for loops of whole
 * vectors, and then 0. */
static void differentiate(const attention *a, float *p, float *ds, int64_t count, int64_t columns, float lse, float delta) {
    float   scale = a->scale;
    int64_t seen = wefti_max_i64(count, 0), whole = (seen + ROW_LANES - 1) / ROW_LANES * ROW_LANES;
    _Pragma("GCC ivdep") for (int64_t i = 0; i < whole; i++) {
        float weight = f32_exp(p[i] * scale - lse);
        ds[i] = weight * (ds[i] - delta) * scale;
        p[i]  = weight;
    }
    for (int64_t i = seen; i < columns; i++) p[i] = ds[i] = 0;
}

/* A block of queries against all keys that it sees. */
static void backward_block(const backward *w, const pieces *x, int64_t b, int64_t h, int64_t key_head, int64_t block) {
    const attention  *a = &w->a;
    const wefti_gemm *m = &wefti_gemm_f32_functions;
    const int64_t    *qs = w->run->call->inputs[Q].stride, *gs = w->run->call->inputs[G].stride;
    const int64_t    *ls = w->run->call->inputs[LSE].stride;
    int64_t first = attention_query(a, block), rows = attention_query(a, block + 1) - first;
    int64_t seen = attention_visible(a, first + rows - 1), pair = b * a->key_heads + key_head;
    const float *q = attention_matrix(w->run, Q, b, h) + first * qs[2], *g = attention_matrix(w->run, G, b, h) + first * gs[2];
    const float *lse = (const float *)w->run->inputs[LSE] + b * ls[0] + h * ls[1] + first * ls[2];
    float *dq = (float *)w->run->outputs[0] + ((b * a->heads + h) * a->queries + first) * a->depth;
    float *dk = (float *)w->run->outputs[1] + pair * a->keys * a->depth;
    float *dv = (float *)w->run->outputs[2] + pair * a->keys * a->value_depth;
    m->pack_b(q, qs[3], qs[2], a->depth, rows, 0, gemm_b_panels(a->depth, m->width), x->q);
    m->pack_b(g, gs[3], gs[2], a->value_depth, rows, 0, gemm_b_panels(a->value_depth, m->width), x->g);
    fill_delta(w, b, h, first, rows, x->delta);
    if (seen == 0) memset(dq, 0, (size_t)(rows * a->depth) * sizeof *dq);
    for (int64_t key = 0; key < seen; key += KEY_BLOCK) {
        int64_t columns = attention_columns(a, key, seen), all = wefti_min_i64(KEY_BLOCK, a->keys - key);
        multiply_across_keys(q, qs[2], qs[3], rows, columns, a->depth, x->keys_across + key * a->depth, x->rows, x->p);
        multiply_across_keys(g, gs[2], gs[3], rows, columns, a->value_depth, x->values_across + key * a->value_depth, x->rows, x->ds);
        for (int64_t r = 0; r < rows; r++)
            differentiate(a, x->p + r * SCORE_STRIDE, x->ds + r * SCORE_STRIDE,
                          wefti_min_i64(columns, attention_visible(a, first + r) - key), columns, lse[r * ls[2]], x->delta[r]);
        multiply_along_keys(rows, a->depth, columns, all, x->ds, x->keys_along + key * padded_width(a->depth), dq, key > 0);
        m->multiply_columns(columns, a->depth, rows, x->ds, SCORE_STRIDE, x->q, dk + key * a->depth, a->depth, GEMM_ADD);
        m->multiply_columns(columns, a->value_depth, rows, x->p, SCORE_STRIDE, x->g, dv + key * a->value_depth, a->value_depth, GEMM_ADD);
    }
}

static void backward_chunk(void *context, int64_t chunk, int32_t worker) {
    const backward  *w = context;
    const attention *a = &w->a;
    int64_t          b = chunk / a->key_heads, key_head = chunk % a->key_heads, group = a->heads / a->key_heads;
    const float     *k = attention_matrix(w->run, K, b, key_head), *v = attention_matrix(w->run, V, b, key_head);
    pieces           x;
    carve(a, (float *)w->run->scratch + worker * w->worker_elements, &x);
    memset((float *)w->run->outputs[1] + chunk * a->keys * a->depth, 0, (size_t)(a->keys * a->depth) * sizeof(float));
    memset((float *)w->run->outputs[2] + chunk * a->keys * a->value_depth, 0, (size_t)(a->keys * a->value_depth) * sizeof(float));
    pack_across_keys(k, w->run->call->inputs[K].stride, a->keys, a->depth, x.keys_across);
    pack_along_keys(k, w->run->call->inputs[K].stride, a->keys, a->depth, x.keys_along);
    pack_across_keys(v, w->run->call->inputs[V].stride, a->keys, a->value_depth, x.values_across);
    for (int64_t h = key_head * group; h < (key_head + 1) * group; h++)
        for (int64_t block = 0; block < a->query_blocks; block++) backward_block(w, &x, b, h, key_head, block);
}

static bool accepts(const wefti_call *call) { return call->inputs[Q].dtype == WEFT_F32; }

static int64_t backward_scratch(const wefti_call *call, int32_t threads) {
    attention a = attention_of(call, Q);
    pieces    x;
    return threads * carve(&a, attention_nowhere(), &x) * (int64_t)sizeof(float);
}

static weft_status run_backward(const wefti_cpu_run *run) {
    backward w = {.run = run, .a = attention_of(run->call, Q)};
    pieces   x;
    w.worker_elements = carve(&w.a, run->scratch, &x);
    wefti_cpu_for(run, w.a.batch * w.a.key_heads, backward_chunk, &w);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_kernel_attention_backward = {.name = "blocks", .accepts = accepts, .scratch = backward_scratch,
                                                          .run = run_backward};

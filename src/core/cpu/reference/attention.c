/* Attention and its gradient, one query after the other: nothing of size T x S is ever kept. Scores are computed anew
 * where they are needed; p = exp(score - lse). Threads share (batch, key head) pairs, so that the gradients of k and v,
 * to which all queries of a group of heads add, are added in one order; they are added up in f64 in scratch.
 *
 * Causal aligns the last query with the last key: query t sees keys 0 .. t + S - T + shift. A query that sees no key gives
 * zeros and an lse of minus infinity. */
#include "core/cpu/reference/reference.h"

typedef struct attention {
    const wefti_cpu_run *run;
    int32_t              q, k, v; /* which inputs they are */
    int64_t              batch, heads, key_heads, queries, keys, depth, value_depth;
    double               scale;
    bool                 causal;
    int64_t              shift;
} attention;

static attention attention_of(const wefti_cpu_run *run, int32_t first) {
    const wefti_operand *q = &run->call->inputs[first], *k = q + 1, *v = q + 2;
    return (attention){.run = run,
                       .q = first,
                       .k = first + 1,
                       .v = first + 2,
                       .batch = q->shape.dim[0],
                       .heads = q->shape.dim[1],
                       .key_heads = k->shape.dim[1],
                       .queries = q->shape.dim[2],
                       .keys = k->shape.dim[2],
                       .depth = q->shape.dim[3],
                       .value_depth = v->shape.dim[3],
                       .scale = run->call->attrs->attention.scale,
                       .causal = run->call->attrs->attention.causal,
                       .shift = run->call->attrs->attention.shift};
}

/* Element (b, h, t, d) of a four-dimensional input. */
static double at(const attention *a, int32_t input, int64_t b, int64_t h, int64_t t, int64_t d) {
    const int64_t *stride = a->run->call->inputs[input].stride;
    return wefti_in(a->run, input, b * stride[0] + h * stride[1] + t * stride[2] + d * stride[3]);
}

static int64_t key_head(const attention *a, int64_t h) { return h / (a->heads / a->key_heads); }
static int64_t visible(const attention *a, int64_t t) {
    return a->causal ? wefti_max_i64(0, wefti_min_i64(a->keys, t + 1 + a->keys - a->queries + a->shift)) : a->keys;
}

static double score(const attention *a, int64_t b, int64_t h, int64_t t, int64_t s) {
    double sum = 0;
    for (int64_t d = 0; d < a->depth; d++) sum += at(a, a->q, b, h, t, d) * at(a, a->k, b, key_head(a, h), s, d);
    return sum * a->scale;
}

/* One query. Values are summed with a running maximum, rescaled where it grows. */
static void forward_query(void *context, int64_t chunk, int32_t worker) {
    const attention *a = context;
    int64_t          t = chunk % a->queries, h = chunk / a->queries % a->heads, b = chunk / a->queries / a->heads;
    double          *sums = (double *)a->run->scratch + worker * a->value_depth;
    double           most = -INFINITY, total = 0;
    for (int64_t d = 0; d < a->value_depth; d++) sums[d] = 0;
    for (int64_t s = 0; s < visible(a, t); s++) {
        double x = score(a, b, h, t, s), old = most;
        if (!(x <= most)) most = x;
        double shrink = old == most ? 1 : exp(old - most), p = x == most ? 1 : exp(x - most);
        total = total * shrink + p;
        for (int64_t d = 0; d < a->value_depth; d++)
            sums[d] = sums[d] * shrink + p * at(a, a->v, b, key_head(a, h), s, d);
    }
    for (int64_t d = 0; d < a->value_depth; d++)
        wefti_out(a->run, 0, chunk * a->value_depth + d, total == 0 ? 0 : sums[d] / total);
    wefti_out(a->run, 1, chunk, most + log(total));
}

static int64_t forward_scratch(const wefti_call *call, int32_t threads) {
    return threads * call->inputs[2].shape.dim[3] * (int64_t)sizeof(double);
}

static weft_status run_forward(const wefti_cpu_run *run) {
    attention a = attention_of(run, 0);
    wefti_cpu_for(run, a.batch * a.heads * a.queries, forward_query, &a);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_attention = {.name = "reference attention", .scratch = forward_scratch,
                                                    .run = run_forward};

/* Backward: with dp = g . v[s] and delta = g . o, ds = p (dp - delta) scale; dq += ds k[s], dk[s] += ds q, dv[s] += p
 * g. Inputs: g, q, k, v, o, lse. */
enum { G, Q, K, V, O, LSE };

typedef struct sums {
    double *dq, *dk, *dv; /* of one (b, key head): one query's, all keys', all values' */
} sums;

static void backward_query(const attention *a, const sums *to, int64_t b, int64_t h, int64_t t) {
    const int64_t *stride = a->run->call->inputs[LSE].stride;
    double         lse = wefti_in(a->run, LSE, b * stride[0] + h * stride[1] + t * stride[2]), delta = 0;
    for (int64_t d = 0; d < a->value_depth; d++) delta += at(a, G, b, h, t, d) * at(a, O, b, h, t, d);
    for (int64_t d = 0; d < a->depth; d++) to->dq[d] = 0;
    for (int64_t s = 0; s < visible(a, t); s++) {
        double p = exp(score(a, b, h, t, s) - lse), dp = 0;
        for (int64_t d = 0; d < a->value_depth; d++) {
            dp += at(a, G, b, h, t, d) * at(a, V, b, key_head(a, h), s, d);
            to->dv[s * a->value_depth + d] += p * at(a, G, b, h, t, d);
        }
        double ds = p * (dp - delta) * a->scale;
        for (int64_t d = 0; d < a->depth; d++) {
            to->dq[d] += ds * at(a, K, b, key_head(a, h), s, d);
            to->dk[s * a->depth + d] += ds * at(a, Q, b, h, t, d);
        }
    }
    for (int64_t d = 0; d < a->depth; d++)
        wefti_out(a->run, 0, ((b * a->heads + h) * a->queries + t) * a->depth + d, to->dq[d]);
}

/* Doubles that one (batch, key head) pair needs. */
static int64_t sums_of(const wefti_call *call) {
    int64_t keys = call->inputs[K].shape.dim[2], depth = call->inputs[K].shape.dim[3];
    return depth + keys * (depth + call->inputs[V].shape.dim[3]);
}

static int64_t backward_scratch(const wefti_call *call, int32_t threads) {
    return threads * sums_of(call) * (int64_t)sizeof(double);
}

static void backward_pair(void *context, int64_t chunk, int32_t worker) {
    const attention *a = context;
    int64_t          b = chunk / a->key_heads, kh = chunk % a->key_heads, group = a->heads / a->key_heads;
    int64_t          size = sums_of(a->run->call);
    double          *mine = (double *)a->run->scratch + worker * size;
    sums             to = {mine, mine + a->depth, mine + a->depth + a->keys * a->depth};
    for (int64_t i = 0; i < size; i++) mine[i] = 0;
    for (int64_t h = kh * group; h < (kh + 1) * group; h++)
        for (int64_t t = 0; t < a->queries; t++) backward_query(a, &to, b, h, t);
    for (int64_t i = 0; i < a->keys * a->depth; i++) wefti_out(a->run, 1, chunk * a->keys * a->depth + i, to.dk[i]);
    for (int64_t i = 0; i < a->keys * a->value_depth; i++)
        wefti_out(a->run, 2, chunk * a->keys * a->value_depth + i, to.dv[i]);
}

static weft_status run_backward(const wefti_cpu_run *run) {
    attention a = attention_of(run, Q);
    wefti_cpu_for(run, a.batch * a.key_heads, backward_pair, &a);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_attention_backward = {.name = "reference attention gradient",
                                                             .scratch = backward_scratch, .run = run_backward};

/* Row-local ops, the cross-entropy and attention, with their gradients. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "device/conformance.h"

/* ---- definitions ---- */

static void define_normalize(const test_case *self, const tensor *x, tensor *y, tensor *rstd) {
    int64_t length = rstd->n ? x->n / rstd->n : 0;
    for (int64_t r = 0; r < rstd->n; r++) {
        const double *row = x->f + r * length;
        double        mean = 0, second = 0, size = 0;
        for (int64_t i = 0; i < length; i++) mean += self->attrs.rows.rms ? 0 : row[i] / (double)length;
        for (int64_t i = 0; i < length; i++) second += (row[i] - mean) * (row[i] - mean) / (double)length;
        for (int64_t i = 0; i < length; i++) size = fmax(size, fabs(row[i]));
        rstd->f[r] = pow(second + self->attrs.rows.eps, -0.5);
        /* With rows of one element the variance is nothing but cancelled rounding. */
        for (int64_t i = 0; i < length; i++) {
            y->f[r * length + i] = (row[i] - mean) * rstd->f[r];
            y->scale[r * length + i] = size * rstd->f[r];
        }
        rstd->scale[r] = rstd->f[r];
    }
}

static void define_normalize_backward(const test_case *self, const tensor *g, const tensor *y, const tensor *rstd,
                                      tensor *out) {
    int64_t length = rstd->n ? g->n / rstd->n : 0;
    for (int64_t r = 0; r < rstd->n; r++) {
        double mean = 0, along = 0, size = 0;
        for (int64_t i = r * length; i < (r + 1) * length; i++) {
            mean += g->f[i] / (double)length;
            along += g->f[i] * y->f[i] / (double)length;
            size += fabs(g->f[i] * y->f[i]) / (double)length;
        }
        if (self->attrs.rows.rms) mean = 0;
        for (int64_t i = r * length; i < (r + 1) * length; i++) {
            out->f[i] = rstd->f[r] * (g->f[i] - mean - y->f[i] * along);
            out->scale[i] = fabs(rstd->f[r]) * (fabs(g->f[i]) + 2 + fabs(y->f[i]) * size);
        }
    }
}

static double log_sum_exp(const double *row, int64_t n) {
    double most = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) most = row[i] > most ? row[i] : most;
    for (int64_t i = 0; i < n; i++) sum += exp(row[i] - most);
    return most + log(sum);
}

static void define_softmax(const test_case *self, const tensor *inputs, tensor *y) {
    int64_t length = y->shape.dim[y->shape.rank - 1];
    for (int64_t begin = 0; begin < y->n; begin += length) {
        const double *a = inputs[0].f + begin, *b = self->n_inputs > 1 ? inputs[1].f + begin : NULL;
        double        lse = log_sum_exp(a, length), sum = 0, size = 0;
        for (int64_t i = 0; b && i < length; i++) {
            double term = self->op == WEFT_OP_SOFTMAX_BACKWARD ? a[i] * b[i] : a[i];
            sum += term;
            size += fabs(term);
        }
        for (int64_t i = 0; i < length; i++) {
            double *to = &y->f[begin + i], *scale = &y->scale[begin + i];
            switch (self->op) {
            case WEFT_OP_SOFTMAX: *to = exp(a[i] - lse), *scale = *to * (1 + fabs(a[i])); break;
            case WEFT_OP_LOG_SOFTMAX: *to = a[i] - lse, *scale = fabs(a[i]) + fabs(lse) + 1; break;
            case WEFT_OP_SOFTMAX_BACKWARD: *to = b[i] * (a[i] - sum), *scale = fabs(b[i]) * (fabs(a[i]) + size); break;
            default: *to = a[i] - exp(b[i]) * sum, *scale = fabs(a[i]) + exp(b[i]) * size * (1 + fabs(b[i])); break;
            }
            if (!isfinite(*scale)) *scale = 1;
        }
    }
}

static void define_rotary(const test_case *self, const tensor *x, tensor *y) {
    int64_t d = x->shape.dim[x->shape.rank - 1], positions = x->shape.dim[x->shape.rank - 2];
    for (int64_t i = 0; i < x->n; i++) {
        int64_t column = i % d, pair = column % (d / 2), first = i - column + pair;
        double angle = (double)(i / d % positions + self->attrs.rotary.offset) /
                       pow(self->attrs.rotary.base, 2.0 * (double)pair / (double)d);
        double  a = x->f[first], b = x->f[first + d / 2];
        if (self->attrs.rotary.inverse) angle = -angle;
        y->f[i] = column < d / 2 ? a * cos(angle) - b * sin(angle) : a * sin(angle) + b * cos(angle);
        y->scale[i] = (fabs(a) + fabs(b)) * (1 + fabs(angle)); /* the angle itself is rounded */
    }
}

static void define_loss(const test_case *self, const tensor *inputs, tensor *outputs) {
    bool          backward = self->op == WEFT_OP_CROSS_ENTROPY_BACKWARD;
    const tensor *x = &inputs[backward], *label = &inputs[backward + 1];
    int64_t       classes = x->shape.dim[x->shape.rank - 1];
    double        s = self->attrs.loss.smoothing;
    for (int64_t r = 0; r < label->n; r++) {
        const double *row = x->f + r * classes;
        double        lse = log_sum_exp(row, classes), mean = 0;
        bool          ignored = self->attrs.loss.has_ignored && label->i[r] == self->attrs.loss.ignored;
        bool          known = label->i[r] >= 0 && label->i[r] < classes;
        for (int64_t i = 0; i < classes; i++) mean += (lse - row[i]) / (double)classes;
        if (!backward) {
            outputs[0].f[r] = ignored ? 0 : known ? (1 - s) * (lse - row[label->i[r]]) + (s > 0 ? s * mean : 0) : NAN;
            outputs[0].scale[r] = ignored || !known ? 0 : fabs(lse) + fabs(row[label->i[r]]) + 1;
            outputs[1].f[r] = lse;
            outputs[1].scale[r] = fabs(lse) + 1;
            if (!isfinite(outputs[0].scale[r])) outputs[0].scale[r] = 1;
        }
        for (int64_t i = 0; backward && i < classes; i++) {
            double p = exp(row[i] - lse), target = (1 - s) * (i == label->i[r]) + s / (double)classes;
            outputs[0].f[r * classes + i] = ignored ? 0 : known ? inputs[0].f[r] * (p - target) : NAN;
            outputs[0].scale[r * classes + i] =
                ignored || !known ? 0 : fabs(inputs[0].f[r]) * (p * (2 + fabs(row[i]) + fabs(lse)) + target);
        }
    }
}

/* Attention in the plainest way: the whole matrix of one head at a time. */
typedef struct head {
    int64_t       t, s, d, dv;
    const double *q, *k, *v;
    double       *p, *lse; /* [t][s], [t] */
} head;

static void weigh(const test_case *self, head *h) {
    for (int64_t i = 0; i < h->t; i++) {
        double *row = h->p + i * h->s;
        bool    any = false;
        for (int64_t j = 0; j < h->s; j++) {
            double dot = 0;
            for (int64_t e = 0; e < h->d; e++) dot += h->q[i * h->d + e] * h->k[j * h->d + e];
            bool seen = !self->attrs.attention.causal || j - (h->s - h->t) - self->attrs.attention.shift <= i;
            any = any || seen;
            row[j] = seen ? dot * self->attrs.attention.scale : -INFINITY;
        }
        h->lse[i] = any ? log_sum_exp(row, h->s) : -INFINITY;
        for (int64_t j = 0; j < h->s; j++) row[j] = any ? exp(row[j] - h->lse[i]) : 0;
    }
}

static void attend(const test_case *self, const tensor *q, const tensor *k, const tensor *v, tensor *o, tensor *lse) {
    int64_t heads = q->shape.dim[1], group = heads / k->shape.dim[1];
    for (int64_t bh = 0; bh < q->shape.dim[0] * heads; bh++) {
        int64_t kv = bh / heads * k->shape.dim[1] + bh % heads / group;
        head    h = {.t = q->shape.dim[2], .s = k->shape.dim[2], .d = q->shape.dim[3], .dv = v->shape.dim[3]};
        h.q = q->f + bh * h.t * h.d, h.k = k->f + kv * h.s * h.d, h.v = v->f + kv * h.s * h.dv;
        h.p = malloc((size_t)(h.t * h.s + 1) * sizeof(double));
        h.lse = lse->f + bh * h.t;
        weigh(self, &h);
        for (int64_t i = 0; i < h.t; i++) {
            lse->scale[bh * h.t + i] = isinf(h.lse[i]) ? 0 : fabs(h.lse[i]) + 2;
            for (int64_t e = 0; e < h.dv; e++)
                for (int64_t j = 0; j < h.s; j++) {
                    o->f[(bh * h.t + i) * h.dv + e] += h.p[i * h.s + j] * h.v[j * h.dv + e];
                    o->scale[(bh * h.t + i) * h.dv + e] += 4 * h.p[i * h.s + j] * fabs(h.v[j * h.dv + e]);
                }
        }
        free(h.p);
    }
}

static void attend_backward_head(const test_case *self, const head *h, const double *g, double *dq, double *dk,
                                 double *dv, double *sq, double *sk, double *sv) {
    for (int64_t i = 0; i < h->t; i++) {
        double delta = 0, size = 0;
        for (int64_t j = 0; j < h->s; j++)
            for (int64_t e = 0; e < h->dv; e++) {
                double term = h->p[i * h->s + j] * g[i * h->dv + e] * h->v[j * h->dv + e];
                delta += term;
                size += fabs(term);
            }
        for (int64_t j = 0; j < h->s; j++) {
            double p = h->p[i * h->s + j], dp = 0, room = size;
            for (int64_t e = 0; e < h->dv; e++) {
                double term = g[i * h->dv + e] * h->v[j * h->dv + e];
                dp += term;
                room += fabs(term);
                dv[j * h->dv + e] += p * g[i * h->dv + e];
                sv[j * h->dv + e] += 4 * p * fabs(g[i * h->dv + e]);
            }
            double ds = p * (dp - delta) * self->attrs.attention.scale, ss = 4 * p * room * self->attrs.attention.scale;
            for (int64_t e = 0; e < h->d; e++) {
                dq[i * h->d + e] += ds * h->k[j * h->d + e];
                sq[i * h->d + e] += ss * fabs(h->k[j * h->d + e]);
                dk[j * h->d + e] += ds * h->q[i * h->d + e];
                sk[j * h->d + e] += ss * fabs(h->q[i * h->d + e]);
            }
        }
    }
}

static void attend_backward(const test_case *self, const tensor *in, tensor *out) {
    const tensor *g = &in[0], *q = &in[1], *k = &in[2], *v = &in[3];
    int64_t       heads = q->shape.dim[1], group = heads / k->shape.dim[1];
    for (int64_t bh = 0; bh < q->shape.dim[0] * heads; bh++) {
        int64_t kv = bh / heads * k->shape.dim[1] + bh % heads / group;
        head    h = {.t = q->shape.dim[2], .s = k->shape.dim[2], .d = q->shape.dim[3], .dv = v->shape.dim[3]};
        int64_t at_q = bh * h.t * h.d, at_k = kv * h.s * h.d, at_v = kv * h.s * h.dv;
        h.q = q->f + at_q, h.k = k->f + at_k, h.v = v->f + at_v;
        h.p = malloc((size_t)(h.t * h.s + 1) * sizeof(double));
        h.lse = malloc((size_t)(h.t + 1) * sizeof(double));
        weigh(self, &h);
        attend_backward_head(self, &h, g->f + bh * h.t * h.dv, out[0].f + at_q, out[1].f + at_k, out[2].f + at_v,
                             out[0].scale + at_q, out[1].scale + at_k, out[2].scale + at_v);
        free(h.p);
        free(h.lse);
    }
    /* The given output of the forward pass is rounded to the dtype: its error enters through g . o. */
    double coarse = q->dtype == WEFT_F16 ? 300 : q->dtype == WEFT_BF16 ? 2500 : 1;
    for (int k2 = 0; k2 < 2; k2++)
        for (int64_t i = 0; i < out[k2].n; i++) out[k2].scale[i] *= coarse;
}

void define_rows(const test_case *self, const tensor *inputs, tensor *outputs) {
    switch (self->op) {
    case WEFT_OP_NORMALIZE: define_normalize(self, &inputs[0], &outputs[0], &outputs[1]); return;
    case WEFT_OP_NORMALIZE_BACKWARD:
        define_normalize_backward(self, &inputs[0], &inputs[1], &inputs[2], &outputs[0]);
        return;
    case WEFT_OP_ROTARY: define_rotary(self, &inputs[0], &outputs[0]); return;
    case WEFT_OP_CROSS_ENTROPY:
    case WEFT_OP_CROSS_ENTROPY_BACKWARD: define_loss(self, inputs, outputs); return;
    case WEFT_OP_ATTENTION: attend(self, &inputs[0], &inputs[1], &inputs[2], &outputs[0], &outputs[1]); return;
    case WEFT_OP_ATTENTION_BACKWARD: attend_backward(self, inputs, outputs); return;
    default: define_softmax(self, inputs, &outputs[0]); return;
    }
}

/* ---- cases ---- */

static const weft_dtype floats[] = {WEFT_F32, WEFT_F64, WEFT_BF16, WEFT_F16};
static weft_dtype wide(weft_dtype dtype) { return dtype == WEFT_F64 ? WEFT_F64 : WEFT_F32; }

static test_case rows_case(weft_op op, weft_dtype dtype, weft_shape shape, layout how, int32_t n_inputs) {
    test_case one;
    memset(&one, 0, sizeof one);
    one.op = op;
    one.n_inputs = n_inputs;
    one.n_outputs = 1;
    for (int32_t i = 0; i < n_inputs; i++) one.inputs[i] = (argument){dtype, shape, i == 0 ? how : PLAIN, -3, 3, false};
    one.outputs[0] = (argument){.dtype = dtype, .shape = shape};
    one.seed = (uint64_t)op * 17;
    return one;
}

static void visit_normalize(case_visitor visit, void *context, weft_dtype dtype, weft_shape shape, layout how) {
    for (int32_t axes = 1; axes <= shape.rank; axes++)
        for (int32_t rms = 0; rms < 2; rms++) {
            weft_shape leading = shape;
            if (shape.dim[0] == 0 && axes == shape.rank) continue; /* there is no mean of nothing */
            leading.rank -= axes;
            memset(leading.dim + leading.rank, 0, (size_t)axes * sizeof *leading.dim);
            test_case one = rows_case(WEFT_OP_NORMALIZE, dtype, shape, how, 1);
            one.attrs.rows.axes = axes;
            one.attrs.rows.rms = rms;
            one.attrs.rows.eps = 1e-3;
            one.inputs[0].low = -1, one.inputs[0].high = 4;
            one.n_outputs = 2;
            one.outputs[1] = (argument){.dtype = wide(dtype), .shape = leading};
            visit(context, &one);
            test_case back = rows_case(WEFT_OP_NORMALIZE_BACKWARD, dtype, shape, how, 3);
            back.attrs = one.attrs;
            back.inputs[1].layout = how;
            back.inputs[2] = (argument){wide(dtype), leading, how, 0.2, 2, false};
            visit(context, &back);
        }
}

static void derive_exp(const test_case *self, tensor *inputs) {
    if (self->op != WEFT_OP_LOG_SOFTMAX_BACKWARD) return;
    for (int64_t i = 0; i < inputs[1].n; i++) inputs[1].f[i] = -fabs(inputs[1].f[i]);
}

static void visit_softmax(case_visitor visit, void *context, weft_dtype dtype, weft_shape shape, layout how) {
    static const weft_op ops[] = {WEFT_OP_SOFTMAX, WEFT_OP_LOG_SOFTMAX, WEFT_OP_SOFTMAX_BACKWARD,
                                  WEFT_OP_LOG_SOFTMAX_BACKWARD};
    for (int k = 0; k < 4; k++) {
        test_case one = rows_case(ops[k], dtype, shape, how, k < 2 ? 1 : 2);
        if (k == 0) one.inputs[0].low = -20, one.inputs[0].high = 20;
        if (k == 2) one.inputs[1].low = 0, one.inputs[1].high = 1;
        one.derive = derive_exp;
        visit(context, &one);
    }
}

static void derive_lse(const test_case *self, tensor *inputs) {
    int64_t classes = self->inputs[1].shape.dim[self->inputs[1].shape.rank - 1];
    for (int64_t r = 0; r < inputs[3].n; r++)
        inputs[3].f[r] = round_to(log_sum_exp(inputs[1].f + r * classes, classes), inputs[3].dtype);
}

static void visit_loss(case_visitor visit, void *context, weft_dtype dtype, weft_shape shape, layout how) {
    weft_shape leading = shape;
    int64_t    classes = shape.dim[shape.rank - 1];
    leading.dim[--leading.rank] = 0;
    if (classes == 0) return;
    for (int kind = 0; kind < 7; kind++) {
        test_case one = rows_case(WEFT_OP_CROSS_ENTROPY, dtype, shape, how, 2);
        one.inputs[1] =
            (argument){kind % 2 ? WEFT_I64 : WEFT_I32, leading, how == REPEATED ? PLAIN : how, kind == 5 ? -1 : 0,
                       (double)classes + (kind == 5),  false};
        one.attrs.loss.smoothing = kind % 3 == 1 || kind == 6 ? 0.1 : 0;
        one.attrs.loss.has_ignored = kind >= 2;
        one.attrs.loss.ignored = kind == 4 ? -100 : 1;
        one.n_outputs = 2;
        one.outputs[0] = one.outputs[1] = (argument){.dtype = wide(dtype), .shape = leading};
        visit(context, &one);
        test_case back = rows_case(WEFT_OP_CROSS_ENTROPY_BACKWARD, dtype, shape, how, 4);
        back.attrs = one.attrs;
        back.inputs[0] = (argument){wide(dtype), leading, how, -1, 1, false};
        back.inputs[1] = one.inputs[0];
        back.inputs[2] = one.inputs[1];
        back.inputs[3] = (argument){wide(dtype), leading, PLAIN, 0, 1, false};
        back.derive = derive_lse;
        visit(context, &back);
    }
}

static void visit_rotary(case_visitor visit, void *context, weft_dtype dtype, layout how) {
    static const weft_shape shapes[] = {{2, {1, 2}},    {2, {5, 8}},        {4, {2, 3, 7, 10}},
                                        {3, {0, 4, 2}}, {4, {2, 2, 9, 64}}, {3, {2, 3, 0}}};
    for (size_t s = 0; s < WEFTI_COUNT(shapes); s++)
        for (int32_t inverse = 0; inverse < 2; inverse++) {
            test_case one = rows_case(WEFT_OP_ROTARY, dtype, shapes[s], how, 1);
            one.attrs.rotary.base = 10000;
            one.attrs.rotary.offset = inverse ? 0 : 3;
            one.attrs.rotary.inverse = inverse;
            visit(context, &one);
        }
}

static void derive_forward(const test_case *self, tensor *inputs) {
    memset(inputs[4].f, 0, (size_t)inputs[4].n * sizeof(double));
    attend(self, &inputs[1], &inputs[2], &inputs[3], &inputs[4], &inputs[5]);
    for (int k = 4; k < 6; k++)
        for (int64_t i = 0; i < inputs[k].n; i++) inputs[k].f[i] = round_to(inputs[k].f[i], inputs[k].dtype);
}

typedef struct attention_row {
    int64_t b, h, hk, t, s, d, dv;
    int32_t causal, shift;
} attention_row;
static const attention_row attentions[] = {
    {1, 1, 1, 1, 1, 1, 1, 0, 0}, {2, 3, 3, 5, 7, 4, 6, 0, 0},     {2, 4, 2, 6, 6, 8, 8, 1, 0}, {1, 2, 1, 3, 9, 5, 3, 1, 0},
    {0, 2, 2, 3, 3, 4, 4, 1, 0}, {1, 6, 1, 17, 17, 16, 16, 1, 0}, {1, 1, 1, 0, 3, 2, 2, 0, 0},
    {1, 2, 1, 6, 6, 8, 8, 1, -3}, {1, 2, 2, 6, 6, 8, 4, 1, 2}, {2, 1, 1, 5, 5, 4, 4, 1, -5}, {1, 2, 1, 7, 7, 4, 4, 1, 7},
};
static const attention_row large_attentions[] = {
    {1, 2, 2, 130, 130, 64, 64, 1, 0}, {1, 2, 1, 70, 200, 32, 32, 1, 0}, {1, 1, 1, 257, 65, 48, 40, 0, 0},
    {1, 2, 2, 130, 130, 16, 16, 1, -70}, {1, 2, 1, 130, 130, 16, 16, 1, -130}, {1, 2, 1, 130, 130, 16, 16, 1, 130}};
/* Keys in several blocks, some of which the first queries do not see. */
static const attention_row long_attentions[] = {{1, 2, 1, 300, 600, 16, 12, 1, 0}, {1, 1, 1, 70, 513, 16, 16, 0, 0}, {1, 1, 1, 300, 600, 16, 16, 1, -350}};

static void visit_attention(case_visitor visit, void *context, weft_dtype dtype, const attention_row *row, layout how) {
    weft_shape q = weft_shape(row->b, row->h, row->t, row->d), k = weft_shape(row->b, row->hk, row->s, row->d);
    weft_shape v = weft_shape(row->b, row->hk, row->s, row->dv), o = weft_shape(row->b, row->h, row->t, row->dv);
    weft_shape lse = weft_shape(row->b, row->h, row->t);
    layout     other = how == PLAIN ? PLAIN : (layout)((how + 1) % LAYOUT_COUNT);
    test_case  one = rows_case(WEFT_OP_ATTENTION, dtype, q, how, 3);
    one.attrs.attention.scale = 1 / sqrt((double)row->d);
    one.attrs.attention.causal = row->causal;
    one.attrs.attention.shift = row->shift;
    one.inputs[1] = (argument){dtype, k, other, -2, 2, false};
    one.inputs[2] = (argument){dtype, v, how, -2, 2, false};
    one.n_outputs = 2;
    one.outputs[0] = (argument){.dtype = dtype, .shape = o};
    one.outputs[1] = (argument){.dtype = wide(dtype), .shape = lse};
    visit(context, &one);
    test_case back = rows_case(WEFT_OP_ATTENTION_BACKWARD, dtype, o, how, 6);
    back.attrs = one.attrs;
    for (int i = 0; i < 3; i++)
        back.inputs[1 + i] = one.inputs[i], back.outputs[i] = (argument){.dtype = dtype, .shape = one.inputs[i].shape};
    back.inputs[4] = (argument){dtype, o, PLAIN, 0, 1, false};
    back.inputs[5] = (argument){wide(dtype), lse, PLAIN, 0, 1, false};
    back.n_outputs = 3;
    back.derive = derive_forward;
    visit(context, &back);
}

void visit_rows(case_visitor visit, void *context) {
    static const weft_shape shapes[] = {{1, {1}},        {1, {7}},      {2, {3, 5}},    {2, {0, 4}},
                                        {3, {2, 3, 10}}, {2, {33, 65}}, {2, {5, 1000}}, {3, {2, 4, 128}}};
    for (size_t d = 0; d < WEFTI_COUNT(floats); d++)
        for (int how = 0; how < LAYOUT_COUNT; how++) {
            for (size_t s = 0; s < WEFTI_COUNT(shapes); s++) {
                visit_normalize(visit, context, floats[d], shapes[s], (layout)how);
                visit_softmax(visit, context, floats[d], shapes[s], (layout)how);
                visit_loss(visit, context, floats[d], shapes[s], (layout)how);
            }
            /* Longer than what kernels keep of a row, in whole vectors and not. Not in f64: plain sums are too coarse to define it. */
            static const weft_shape longs[] = {{2, {2, 4104}}, {2, {3, 9001}}, {2, {1, 33000}}, {2, {3, 1501}}, {2, {3, 1536}}, {2, {130, 10}}, {2, {300, 16}}};
            bool due = how == PLAIN ? d == 0 || d == 2 : how == GAPPED && d == 0;
            for (size_t s = 0; s < WEFTI_COUNT(longs) && due; s++) {
                visit_normalize(visit, context, floats[d], longs[s], (layout)how);
                visit_softmax(visit, context, floats[d], longs[s], (layout)how);
                visit_loss(visit, context, floats[d], longs[s], (layout)how);
            }
            if (how == PLAIN && d == 0) visit_softmax(visit, context, floats[d], weft_shape(2, 60000), PLAIN); /* nor in shared memory */
            visit_rotary(visit, context, floats[d], (layout)how);
            for (size_t s = 0; s < WEFTI_COUNT(attentions); s++)
                visit_attention(visit, context, floats[d], &attentions[s], (layout)how);
            for (size_t s = 0; s < WEFTI_COUNT(large_attentions) && how == PLAIN && d < 2; s++)
                visit_attention(visit, context, floats[d], &large_attentions[s], PLAIN);
            for (size_t s = 0; s < WEFTI_COUNT(long_attentions) && how == PLAIN && d == 0; s++)
                visit_attention(visit, context, floats[d], &long_attentions[s], PLAIN);
        }
}

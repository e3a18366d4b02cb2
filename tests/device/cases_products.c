/* Matrix products, convolutions and pooling. */
#include <math.h>
#include <string.h>

#include "device/conformance.h"

/* ---- definitions ---- */

static double element4(const tensor *t, int64_t a, int64_t b, int64_t c, int64_t d) {
    const int64_t index[4] = {a, b, c, d};
    return tensor_get(t, index);
}

static void define_matmul(const test_case *self, const tensor *a, const tensor *b, tensor *y) {
    int32_t ra = a->shape.rank, rb = b->shape.rank, ry = y->shape.rank;
    bool    ta = self->attrs.matmul.trans_a, tb = self->attrs.matmul.trans_b;
    int64_t inner = a->shape.dim[ta ? ra - 2 : ra - 1];
    for (int64_t i = 0; i < y->n; i++) {
        int64_t index[WEFT_MAX_RANK], at[WEFT_MAX_RANK], bt[WEFT_MAX_RANK];
        unravel(y->shape, i, index);
        for (int32_t d = 0; d < ra - 2; d++) at[d] = a->shape.dim[d] == 1 ? 0 : index[ry - ra + d];
        for (int32_t d = 0; d < rb - 2; d++) bt[d] = b->shape.dim[d] == 1 ? 0 : index[ry - rb + d];
        for (int64_t k = 0; k < inner; k++) {
            at[ta ? ra - 1 : ra - 2] = index[ry - 2];
            at[ta ? ra - 2 : ra - 1] = k;
            bt[tb ? rb - 1 : rb - 2] = k;
            bt[tb ? rb - 2 : rb - 1] = index[ry - 1];
            double term = tensor_get(a, at) * tensor_get(b, bt);
            y->f[i] += term;
            y->scale[i] += fabs(term);
        }
    }
}

/* A program of a FUSED_MATMUL, as far as devices have epilogues, in f64; `x` is an element of the product, e its place. Also what stands before the
 * last instruction, and how large all that stands in between is. */
static double follow(const wefti_fused *fused, const tensor *inputs, int64_t e, double x, double *before, double *between) {
    for (int32_t j = 0; j < fused->n_instructions; j++) {
        const wefti_fused_instruction *it = &fused->instruction[j];
        int32_t                        other = it->source[0] > 0 ? it->source[0] : it->source[1];
        const tensor                  *t = &inputs[other > 0 ? other + 1 : 0];
        double                         y = other > 0 ? t->f[e % t->n] : 0, u = 0.7978845608028654;
        *before = x;
        *between += fabs(x) + fabs(y); /* what is added may be added in another order */
        switch (it->op) {
        case WEFT_OP_ADD: x += y; break;
        case WEFT_OP_RELU: x = x > 0 ? x : 0; break;
        case WEFT_OP_GELU_TANH: x = 0.5 * x * (1 + tanh(u * (x + 0.044715 * x * x * x))); break;
        default: { /* GELU_TANH_BACKWARD */
            double h = tanh(u * (y + 0.044715 * y * y * y));
            x *= 0.5 * (1 + h) + 0.5 * y * (1 - h * h) * u * (1 + 3 * 0.044715 * y * y);
        }
        }
    }
    return x;
}

/* Sums of a's rows or b's columns over the inner index. */
static void define_sums(const test_case *self, const tensor *of, tensor *y) {
    int32_t kept = self->attrs.matmul.sums == WEFTI_SUMS_A ? self->attrs.matmul.trans_a != 0 : self->attrs.matmul.trans_b == 0;
    for (int64_t i = 0; i < of->n; i++) {
        int64_t at[WEFT_MAX_RANK];
        unravel(of->shape, i, at);
        y->f[at[kept]] += of->f[i];
        y->scale[at[kept]] += fabs(of->f[i]);
    }
}

static void define_fused_matmul(const test_case *self, const tensor *inputs, tensor *outputs) {
    const wefti_fused *fused = self->attrs.matmul.fused;
    tensor             flat = outputs[0];
    int32_t            last = self->n_outputs - 1;
    double             ulp = outputs[0].dtype == WEFT_BF16 ? 0x1p-8 : outputs[0].dtype == WEFT_F16 ? 0x1p-11 : 0;
    flat.shape = weft_shape(flat.n / flat.shape.dim[flat.shape.rank - 1], flat.shape.dim[flat.shape.rank - 1]);
    define_matmul(self, &inputs[0], &inputs[1], &flat);
    if (self->attrs.matmul.sums) define_sums(self, &inputs[self->attrs.matmul.sums == WEFTI_SUMS_B], &outputs[last]);
    for (int64_t e = 0; fused && e < flat.n; e++) {
        double product = outputs[0].f[e], scale = outputs[0].scale[e], before = 0, between = 0;
        double y = follow(fused, inputs, e, product, &before, &between), rounded = 4 * (scale * 2e-6 + ulp * between); /* of what stands in between, once or more often; slopes are below 2 */
        for (int32_t k = self->n_outputs; k-- > 0;) {
            bool   summed = fused->output[k].reduce >= 0, is_before = fused->output[k].instruction != fused->n_instructions - 1;
            int64_t at = summed ? e % flat.shape.dim[1] : e;
            outputs[k].f[at] = is_before ? before : summed ? outputs[k].f[at] + y : y;
            /* what the tolerance takes of the scale must cover that, and of sums the rounding of each term */
            double off = (rounded + (summed ? ulp * fabs(y) : 0)) / 2e-6 + fabs(y);
            outputs[k].scale[at] = summed ? outputs[k].scale[at] + off : off;
        }
    }
}

/* Every product x * w * y of a row and the matrix that it chose, handed to the row's result or to the matrix. */
static void define_expert(const test_case *self, const tensor *inputs, tensor *result) {
    bool          to_w = self->op == WEFT_OP_EXPERT_MATMUL_BACKWARD_WEIGHT;
    const tensor *x = &inputs[0], *y = to_w ? &inputs[1] : result, *w = to_w ? result : &inputs[1], *index = &inputs[2];
    int64_t       in = x->shape.dim[1], out = y->shape.dim[1];
    for (int64_t r = 0; r < index->n; r++) {
        int64_t e = index->i[r];
        if (e < 0 || e >= w->shape.dim[0]) continue;
        for (int64_t i = 0; i < in; i++)
            for (int64_t o = 0; o < out; o++) {
                int64_t wi = e * in * out + (self->attrs.expert.trans ? o * in + i : i * out + o), xi = r / self->attrs.expert.repeat * in + i;
                double  term = x->f[xi] * (to_w ? y->f[r * out + o] : w->f[wi]);
                result->f[to_w ? wi : r * out + o] += term;
                result->scale[to_w ? wi : r * out + o] += fabs(term);
            }
    }
}

/* Every product x * w * y of a convolution, handed to whichever of the three is wanted. */
static void define_conv(const test_case *self, const tensor *first, const tensor *second, tensor *result) {
    bool           to_x = self->op == WEFT_OP_CONV2D_BACKWARD_INPUT, to_w = self->op == WEFT_OP_CONV2D_BACKWARD_WEIGHT;
    const tensor *x = to_x   ? result
                      : to_w ? second
                             : first,
                 *w = to_w ? result : second, *y = to_x || to_w ? first : result;
    const int32_t *stride = self->attrs.conv.stride, *pad = self->attrs.conv.pad, *dilation = self->attrs.conv.dilation;
    int64_t        out_per_group = w->shape.dim[0] / self->attrs.conv.groups;
    for (int64_t i = 0; i < y->n; i++) {
        int64_t at[4];
        unravel(y->shape, i, at);
        for (int64_t c = 0; c < w->shape.dim[1]; c++)
            for (int64_t kh = 0; kh < w->shape.dim[2]; kh++)
                for (int64_t kw = 0; kw < w->shape.dim[3]; kw++) {
                    int64_t h = at[2] * stride[0] + kh * dilation[0] - pad[0],
                            v = at[3] * stride[1] + kw * dilation[1] - pad[2];
                    if (h < 0 || v < 0 || h >= x->shape.dim[2] || v >= x->shape.dim[3]) continue;
                    const int64_t xt[4] = {at[0], at[1] / out_per_group * w->shape.dim[1] + c, h, v},
                                  wt[4] = {at[1], c, kh, kw};
                    int64_t       xi = ravel(x->shape, xt), wi = ravel(w->shape, wt), ti = to_x ? xi : to_w ? wi : i;
                    double        term = to_x ? y->f[i] * w->f[wi] : to_w ? y->f[i] * x->f[xi] : x->f[xi] * w->f[wi];
                    result->f[ti] += term;
                    result->scale[ti] += fabs(term);
                }
    }
}

/* Calls for window element (h, v) of output (p, q), also where it lies in the padding. */
static bool window_element(const test_case *self, weft_shape x, int64_t p, int64_t q, int32_t i, int64_t *h_out,
                           int64_t *v_out) {
    *h_out = p * self->attrs.pool.stride[0] - self->attrs.pool.pad[0] + i / self->attrs.pool.window[1];
    *v_out = q * self->attrs.pool.stride[1] - self->attrs.pool.pad[2] + i % self->attrs.pool.window[1];
    return *h_out >= 0 && *v_out >= 0 && *h_out < x.dim[2] && *v_out < x.dim[3];
}

static void define_max_pool(const test_case *self, const tensor *x, tensor *y, tensor *index) {
    for (int64_t i = 0; i < y->n; i++) {
        int64_t at[4], h, v, chosen = -1;
        double  best = -INFINITY;
        unravel(y->shape, i, at);
        for (int32_t e = 0; e < self->attrs.pool.window[0] * self->attrs.pool.window[1]; e++) {
            if (!window_element(self, x->shape, at[2], at[3], e, &h, &v)) continue;
            double value = element4(x, at[0], at[1], h, v);
            if (chosen < 0 || (!isnan(best) && (isnan(value) || value > best)))
                best = value, chosen = self->outputs[1].dtype == WEFT_U8 ? e : h * x->shape.dim[3] + v;
        }
        y->f[i] = best;
        index->i[i] = chosen < 0 && self->outputs[1].dtype == WEFT_U8 ? 255 : chosen;
    }
}

static void define_indexed(const test_case *self, const tensor *first, const tensor *index, tensor *y) {
    bool    take = self->op == WEFT_OP_MAX_POOL2D_TAKE;
    int64_t plane_y = y->shape.dim[2] * y->shape.dim[3], plane_i = index->shape.dim[2] * index->shape.dim[3];
    int64_t plane_x = first->shape.dim[2] * first->shape.dim[3];
    for (int64_t i = 0; i < index->n; i++) {
        int64_t plane = i / plane_i, chosen = index->i[i], at[4], h, v;
        if (self->inputs[1].dtype == WEFT_U8) { /* the place in its window */
            unravel(index->shape, i, at);
            bool there = chosen < self->attrs.pool.window[0] * self->attrs.pool.window[1] &&
                         window_element(self, take ? first->shape : y->shape, at[2], at[3], (int32_t)chosen, &h, &v);
            chosen = there ? h * (take ? first : y)->shape.dim[3] + v : -1;
        }
        if (chosen < 0 || chosen >= (take ? plane_x : plane_y)) continue;
        if (take) {
            y->f[i] = first->f[plane * plane_x + chosen];
        } else {
            y->f[plane * plane_y + chosen] += first->f[i];
            y->scale[plane * plane_y + chosen] += fabs(first->f[i]);
        }
    }
}

/* y += x/divisor, or x += y/divisor, for every pair of a window and an element of it. */
static void define_average(const test_case *self, const tensor *from, tensor *to) {
    bool       backward = self->op == WEFT_OP_AVG_POOL2D_BACKWARD;
    weft_shape x = backward ? to->shape : from->shape, y = backward ? from->shape : to->shape;
    int32_t    window = self->attrs.pool.window[0] * self->attrs.pool.window[1];
    for (int64_t i = 0; i < weft_shape_elements(y); i++) {
        int64_t at[4], h, v, inside = 0;
        unravel(y, i, at);
        for (int32_t e = 0; e < window; e++) inside += window_element(self, x, at[2], at[3], e, &h, &v);
        for (int32_t e = 0; e < window; e++) {
            if (!window_element(self, x, at[2], at[3], e, &h, &v)) continue;
            const int64_t xt[4] = {at[0], at[1], h, v};
            int64_t       xi = ravel(x, xt), source = backward ? i : xi, target = backward ? xi : i;
            double        term = from->f[source] / (double)(self->attrs.pool.exclude_pad ? inside : window);
            to->f[target] += term;
            to->scale[target] += fabs(term);
        }
    }
}

void define_product(const test_case *self, const tensor *inputs, tensor *outputs) {
    switch (self->op) {
    case WEFT_OP_MATMUL: define_matmul(self, &inputs[0], &inputs[1], &outputs[0]); return;
    case WEFT_OP_FUSED_MATMUL: define_fused_matmul(self, inputs, outputs); return;
    case WEFT_OP_EXPERT_MATMUL:
    case WEFT_OP_EXPERT_MATMUL_BACKWARD_WEIGHT: define_expert(self, inputs, &outputs[0]); return;
    case WEFT_OP_MAX_POOL2D: define_max_pool(self, &inputs[0], &outputs[0], &outputs[1]); return;
    case WEFT_OP_MAX_POOL2D_BACKWARD:
    case WEFT_OP_MAX_POOL2D_TAKE: define_indexed(self, &inputs[0], &inputs[1], &outputs[0]); return;
    case WEFT_OP_AVG_POOL2D:
    case WEFT_OP_AVG_POOL2D_BACKWARD: define_average(self, &inputs[0], &outputs[0]); return;
    default: define_conv(self, &inputs[0], &inputs[1], &outputs[0]); return;
    }
}

/* ---- cases ---- */

static const weft_dtype floats[] = {WEFT_F32, WEFT_F64, WEFT_BF16, WEFT_F16};

static test_case product_case(weft_op op, weft_dtype dtype, weft_shape a, weft_shape b, weft_shape y, layout how_a,
                              layout how_b) {
    test_case one;
    memset(&one, 0, sizeof one);
    one.op = op;
    one.n_inputs = 2;
    one.n_outputs = 1;
    one.inputs[0] = (argument){dtype, a, how_a, -2, 2, false};
    one.inputs[1] = (argument){dtype, b, how_b, -2, 2, false};
    one.outputs[0] = (argument){.dtype = dtype, .shape = y};
    one.seed = (uint64_t)op;
    return one;
}

static void visit_matmul(case_visitor visit, void *context, weft_dtype dtype, int64_t m, int64_t n, int64_t k,
                         weft_shape batch_a, weft_shape batch_b, weft_shape batch_y, int hows) {
    for (int trans = 0; trans < 4; trans++)
        for (int how = 0; how < hows; how++) {
            static const layout ways[6][2] = {{PLAIN, PLAIN},     {TURNED, PLAIN},    {PLAIN, GAPPED},
                                              {REPEATED, TURNED}, {GAPPED, REPEATED}, {TURNED, TURNED}};
            weft_shape a = batch_a, b = batch_b, y = batch_y;
            a.dim[a.rank++] = trans & 1 ? k : m, a.dim[a.rank++] = trans & 1 ? m : k;
            b.dim[b.rank++] = trans & 2 ? n : k, b.dim[b.rank++] = trans & 2 ? k : n;
            y.dim[y.rank++] = m, y.dim[y.rank++] = n;
            test_case one = product_case(WEFT_OP_MATMUL, dtype, a, b, y, ways[how][0], ways[how][1]);
            one.attrs.matmul.trans_a = trans & 1;
            one.attrs.matmul.trans_b = trans >> 1;
            visit(context, &one);
        }
}

static void visit_matmuls(case_visitor visit, void *context) {
    static const int64_t small[][3] = {{1, 1, 1}, {1, 7, 3},  {5, 1, 4},   {3, 5, 0}, {0, 3, 2},
                                       {2, 0, 3}, {7, 9, 11}, {17, 33, 8}, {6, 16, 1}};
    static const int64_t large[][3] = {{64, 64, 64},  {65, 127, 129}, {1, 513, 300}, {300, 1, 257},
                                       {97, 10, 784}, {130, 70, 5},   {33, 260, 70}};
    /* Halves are widened in runs; their k is cut into blocks too. */
    static const int64_t large_halves[][3] = {{41, 60, 450}, {140, 130, 5}};
    weft_shape none = weft_shape_scalar();
    for (size_t d = 0; d < WEFTI_COUNT(floats); d++) {
        for (size_t s = 0; s < WEFTI_COUNT(small); s++)
            visit_matmul(visit, context, floats[d], small[s][0], small[s][1], small[s][2], none, none, none, 6);
        for (size_t s = 0; s < WEFTI_COUNT(large) && d < 2; s++)
            visit_matmul(visit, context, floats[d], large[s][0], large[s][1], large[s][2], none, none, none,
                         d == 0 ? 2 : 1);
        for (size_t s = 0; s < WEFTI_COUNT(large_halves) && d >= 2; s++)
            visit_matmul(visit, context, floats[d], large_halves[s][0], large_halves[s][1], large_halves[s][2], none, none, none, 2);
        visit_matmul(visit, context, floats[d], 3, 5, 4, weft_shape(6), weft_shape(6), weft_shape(6), 6);
        visit_matmul(visit, context, floats[d], 3, 5, 4, weft_shape(9), weft_shape(9), weft_shape(9), 3);
        if (d == 0) visit_matmul(visit, context, floats[d], 50, 45, 40, weft_shape(2, 4), weft_shape(4), weft_shape(2, 4), 2);
        visit_matmul(visit, context, floats[d], 3, 5, 4, weft_shape(2, 3), none, weft_shape(2, 3), 6);
        visit_matmul(visit, context, floats[d], 3, 5, 4, none, weft_shape(4), weft_shape(4), 6);
        visit_matmul(visit, context, floats[d], 2, 3, 4, weft_shape(2, 1), weft_shape(1, 3), weft_shape(2, 3), 6);
        visit_matmul(visit, context, floats[d], 2, 3, 4, weft_shape(0), weft_shape(1), weft_shape(0), 1);
    }
}

/* Which epilogue: instructions by letters (b a row, r a matrix added, R relu, g gelu_tanh, G its gradient), then outputs (k what stood before, s sums). */
static void visit_epilogue(case_visitor visit, void *context, weft_dtype dtype, const int64_t *mnk, const char *what, int trans, layout how) {
    wefti_fused fused;
    int64_t     m = mnk[0], n = mnk[1], k = mnk[2];
    weft_shape  split = m % 2 == 0 ? weft_shape(2, m / 2, n) : weft_shape(m, n); /* the rows may be more than one axis */
    test_case   one = product_case(WEFT_OP_FUSED_MATMUL, dtype, trans & 1 ? weft_shape(k, m) : weft_shape(m, k),
                                   trans & 2 ? weft_shape(n, k) : weft_shape(k, n), split, how, how == TURNED ? PLAIN : how);
    memset(&fused, 0, sizeof fused);
    fused.space = split;
    for (; *what && *what != 'k' && *what != 's'; what++) {
        int32_t                  j = fused.n_instructions++;
        wefti_fused_instruction *it = &fused.instruction[j];
        it->op = *what == 'R' ? WEFT_OP_RELU : *what == 'g' ? WEFT_OP_GELU_TANH : *what == 'G' ? WEFT_OP_GELU_TANH_BACKWARD : WEFT_OP_ADD;
        it->dtype = dtype;
        it->source[0] = -j;
        if (*what == 'R' || *what == 'g') continue;
        it->source[1] = one.n_inputs - 1;
        one.inputs[one.n_inputs++] = (argument){dtype, *what == 'b' ? weft_shape(n) : split, PLAIN, -2, 2, false};
    }
    fused.n_inputs = one.n_inputs - 1;
    fused.output[fused.n_outputs++] = (wefti_fused_output){.instruction = fused.n_instructions - 1, .reduce = -1};
    if (*what == 'k') fused.output[fused.n_outputs++] = (wefti_fused_output){.instruction = fused.n_instructions - 2, .reduce = -1};
    if (*what == 's')
        fused.output[fused.n_outputs++] = (wefti_fused_output){fused.n_instructions - 1, WEFT_OP_SUM, (1u << (split.rank - 1)) - 1, 0};
    one.outputs[1] = (argument){.dtype = dtype, .shape = split};
    for (int32_t axis = 0; *what == 's' && axis < split.rank - 1; axis++) one.outputs[1].shape.dim[axis] = 1;
    one.n_outputs = fused.n_outputs;
    one.attrs.matmul.trans_a = trans & 1, one.attrs.matmul.trans_b = trans >> 1;
    one.attrs.matmul.fused = &fused;
    visit(context, &one);
}

static void visit_sums(case_visitor visit, void *context, weft_dtype dtype, const int64_t *mnk, int trans, wefti_sums sums) {
    int64_t   m = mnk[0], n = mnk[1], k = mnk[2];
    test_case one = product_case(WEFT_OP_FUSED_MATMUL, dtype, trans & 1 ? weft_shape(k, m) : weft_shape(m, k),
                                 trans & 2 ? weft_shape(n, k) : weft_shape(k, n), weft_shape(m, n), PLAIN, PLAIN);
    one.n_outputs = 2;
    one.outputs[1] = (argument){.dtype = dtype, .shape = weft_shape(sums == WEFTI_SUMS_A ? m : n)};
    one.attrs.matmul.trans_a = trans & 1, one.attrs.matmul.trans_b = trans >> 1;
    one.attrs.matmul.sums = sums;
    visit(context, &one);
}

static void visit_epilogues(case_visitor visit, void *context) {
    static const int64_t     sizes[][3] = {{1, 8, 3}, {6, 16, 1}, {17, 40, 33}, {64, 72, 64}, {130, 24, 5}}, odd[][3] = {{5, 7, 9}, {4, 1, 30}, {33, 257, 2}};
    static const char *const any[] = {"b", "br", "r", "rb", "bR", "R", "brR"}, *const gelus[] = {"bg", "g", "bgk", "rgk", "brgk", "G"};
    static const weft_dtype  dtypes[] = {WEFT_F32, WEFT_BF16, WEFT_F16};
    for (size_t d = 0; d < WEFTI_COUNT(dtypes); d++)
        for (size_t s = 0; s < WEFTI_COUNT(sizes) + WEFTI_COUNT(odd); s++) {
            bool           is_odd = s >= WEFTI_COUNT(sizes);
            const int64_t *mnk = is_odd ? odd[s - WEFTI_COUNT(sizes)] : sizes[s];
            for (int trans = 0; trans < 4; trans++) {
                for (size_t w = 0; w < WEFTI_COUNT(any); w++)
                    visit_epilogue(visit, context, dtypes[d], mnk, any[w], trans, w % 2 ? TURNED : PLAIN);
                for (size_t w = 0; w < WEFTI_COUNT(gelus) && d > 0; w++)
                    if (!is_odd || w < 2) visit_epilogue(visit, context, dtypes[d], mnk, gelus[w], trans, w % 2 ? TURNED : PLAIN);
                visit_sums(visit, context, dtypes[d], mnk, trans, WEFTI_SUMS_A);
                visit_sums(visit, context, dtypes[d], mnk, trans, WEFTI_SUMS_B);
            }
            if (d > 0 && !is_odd && conformance_column_sums) visit_epilogue(visit, context, dtypes[d], mnk, "Gs", 2, PLAIN);
        }
}

typedef struct expert_row {
    int64_t rows, in, out, experts, repeat;
} expert_row;
static const expert_row expert_rows[] = {{1, 1, 1, 1, 1}, {5, 3, 4, 3, 1}, {4, 7, 2, 2, 3}, {0, 3, 2, 2, 1}, {3, 0, 2, 2, 2}, {3, 5, 0, 2, 1},
                                         {30, 9, 17, 4, 2}, {2, 3, 3, 40, 1}};
/* Several blocks of rows, of k and of columns; one expert has most rows. */
static const expert_row large_expert_rows[] = {{190, 70, 33, 3, 1}, {60, 420, 5, 2, 2}, {100, 6, 250, 1, 2}, {300, 245, 20, 1, 1}};

static void visit_experts(case_visitor visit, void *context, weft_dtype dtype, const expert_row *row, layout how) {
    weft_shape x = weft_shape(row->rows, row->in), y = weft_shape(row->rows * row->repeat, row->out);
    layout     other = how == PLAIN ? PLAIN : (layout)((how + 1) % LAYOUT_COUNT);
    for (int trans = 0; trans < 2; trans++)
        for (int wide = 0; wide < 2; wide++)
            for (int backward = 0; backward < 2; backward++) {
                weft_shape w = weft_shape(row->experts, trans ? row->out : row->in, trans ? row->in : row->out);
                test_case  one = product_case(backward ? WEFT_OP_EXPERT_MATMUL_BACKWARD_WEIGHT : WEFT_OP_EXPERT_MATMUL, dtype, x, backward ? y : w,
                                              backward ? w : y, how, other);
                one.n_inputs = 3;
                one.inputs[2] = (argument){wide ? WEFT_I64 : WEFT_I32, weft_shape(y.dim[0]), wide ? how : PLAIN, -1, (double)row->experts + 1, false};
                one.attrs.expert.repeat = row->repeat;
                one.attrs.expert.trans = trans;
                one.attrs.expert.experts = backward ? row->experts : 0;
                visit(context, &one);
            }
}

typedef struct conv_row {
    int64_t n, c, h, w, o, kh, kw;
    int32_t stride[2], pad[4], dilation[2], groups;
} conv_row;

static const conv_row convs[] = {
    {1, 1, 1, 1, 1, 1, 1, {1, 1}, {0, 0, 0, 0}, {1, 1}, 1},   {2, 3, 5, 7, 4, 3, 3, {1, 1}, {1, 1, 1, 1}, {1, 1}, 1},
    {2, 4, 9, 8, 6, 3, 2, {2, 3}, {0, 2, 1, 0}, {1, 1}, 2},   {3, 4, 9, 10, 4, 3, 3, {1, 1}, {2, 2, 2, 2}, {2, 2}, 4},
    {1, 2, 8, 8, 3, 5, 5, {1, 2}, {2, 2, 2, 2}, {1, 1}, 1},   {2, 3, 4, 4, 5, 4, 4, {1, 1}, {0, 0, 0, 0}, {1, 1}, 1},
    {0, 3, 4, 4, 5, 3, 3, {1, 1}, {1, 1, 1, 1}, {1, 1}, 1},   {2, 8, 7, 7, 16, 1, 1, {1, 1}, {0, 0, 0, 0}, {1, 1}, 1},
    {2, 8, 7, 7, 16, 1, 1, {2, 2}, {0, 0, 0, 0}, {1, 1}, 1},  {2, 3, 6, 6, 2, 2, 2, {3, 3}, {0, 0, 0, 0}, {1, 1}, 1},
    {1, 2, 10, 3, 2, 3, 1, {1, 1}, {3, 0, 0, 0}, {3, 1}, 1},  {11, 2, 4, 3, 3, 3, 3, {1, 1}, {1, 1, 1, 1}, {1, 1}, 1},
    {19, 2, 3, 3, 2, 2, 2, {1, 1}, {0, 0, 0, 0}, {1, 1}, 2},  {2, 3, 4, 5, 2, 1, 1, {1, 1}, {1, 1, 1, 1}, {1, 1}, 1},
    {1, 2, 5, 4, 3, 2, 2, {2, 1}, {2, 0, 3, 1}, {1, 1}, 1},
};
static const conv_row large_convs[] = {
    {5, 1, 28, 28, 32, 3, 3, {1, 1}, {0, 0, 0, 0}, {1, 1}, 1},
    {3, 16, 14, 14, 33, 3, 3, {1, 1}, {1, 1, 1, 1}, {1, 1}, 1},
    {2, 16, 15, 15, 32, 3, 3, {2, 2}, {1, 1, 1, 1}, {1, 1}, 1},
    {2, 32, 9, 9, 32, 3, 3, {1, 1}, {1, 1, 1, 1}, {1, 1}, 32},
    {1, 64, 6, 5, 64, 3, 3, {1, 1}, {1, 1, 1, 1}, {1, 1}, 1},
    {2, 128, 5, 4, 96, 3, 3, {1, 1}, {0, 1, 1, 0}, {1, 1}, 2},
};

static void visit_conv(case_visitor visit, void *context, weft_dtype dtype, const conv_row *row, layout how) {
    int64_t    oh = (row->h + row->pad[0] + row->pad[1] - row->dilation[0] * (row->kh - 1) - 1) / row->stride[0] + 1;
    int64_t    ow = (row->w + row->pad[2] + row->pad[3] - row->dilation[1] * (row->kw - 1) - 1) / row->stride[1] + 1;
    weft_shape x = weft_shape(row->n, row->c, row->h, row->w),
               w = weft_shape(row->o, row->c / row->groups, row->kh, row->kw);
    weft_shape y = weft_shape(row->n, row->o, oh, ow);
    layout     other = how == PLAIN || how == LAST ? how : (layout)((how + 1) % LAYOUT_COUNT);
    test_case  cases[3] = {product_case(WEFT_OP_CONV2D, dtype, x, w, y, how, other),
                           product_case(WEFT_OP_CONV2D_BACKWARD_INPUT, dtype, y, w, x, how, other),
                           product_case(WEFT_OP_CONV2D_BACKWARD_WEIGHT, dtype, y, x, w, how, other)};
    for (int k = 0; k < 3; k++) {
        memcpy(cases[k].attrs.conv.stride, row->stride, sizeof row->stride);
        memcpy(cases[k].attrs.conv.pad, row->pad, sizeof row->pad);
        memcpy(cases[k].attrs.conv.dilation, row->dilation, sizeof row->dilation);
        cases[k].attrs.conv.groups = row->groups;
        if (k == 1) cases[k].attrs.conv.input = x;
        if (k == 2) cases[k].attrs.conv.weight = w;
        if (how == LAST) cases[k].outputs[0].layout = LAST;
        visit(context, &cases[k]);
    }
}

typedef struct pool_row {
    int64_t n, c, h, w;
    int32_t window[2], stride[2], pad[4];
} pool_row;
static const pool_row pools[] = {
    {1, 1, 1, 1, {1, 1}, {1, 1}, {0, 0, 0, 0}}, {2, 3, 6, 8, {2, 2}, {2, 2}, {0, 0, 0, 0}},
    {2, 3, 7, 9, {3, 2}, {2, 1}, {1, 1, 0, 1}}, {3, 2, 5, 5, {5, 5}, {1, 1}, {0, 0, 0, 0}},
    {1, 2, 7, 7, {3, 3}, {3, 3}, {2, 2, 1, 1}}, {0, 2, 4, 4, {2, 2}, {2, 2}, {0, 0, 0, 0}},
    {2, 2, 4, 3, {2, 2}, {2, 2}, {1, 1, 1, 1}}, {4, 33, 26, 26, {2, 2}, {2, 2}, {0, 0, 0, 0}},
    {2, 16, 7, 6, {3, 3}, {2, 2}, {1, 1, 1, 1}},
};

static void draw_ties(const test_case *self, tensor *inputs) {
    if (self->op != WEFT_OP_MAX_POOL2D) return;
    for (int64_t i = 0; i < inputs[0].n; i++) inputs[0].f[i] = rint(inputs[0].f[i]);
    if (self->inputs[0].layout == PLAIN && inputs[0].n > 20) inputs[0].f[7] = inputs[0].f[8] = NAN;
}

static void visit_pool(case_visitor visit, void *context, weft_dtype dtype, const pool_row *row, layout how) {
    int64_t    oh = (row->h + row->pad[0] + row->pad[1] - row->window[0]) / row->stride[0] + 1;
    int64_t    ow = (row->w + row->pad[2] + row->pad[3] - row->window[1]) / row->stride[1] + 1;
    weft_shape x = weft_shape(row->n, row->c, row->h, row->w), y = weft_shape(row->n, row->c, oh, ow);
    static const weft_op ops[] = {WEFT_OP_MAX_POOL2D, WEFT_OP_MAX_POOL2D_BACKWARD, WEFT_OP_MAX_POOL2D_TAKE,
                                  WEFT_OP_AVG_POOL2D, WEFT_OP_AVG_POOL2D_BACKWARD};
    for (int k = 0; k < 5; k++) {
        bool      backward = k == 1 || k == 4;
        test_case one = product_case(ops[k], dtype, backward ? y : x, y, backward ? x : y, how, k == 2 ? how : PLAIN);
        memcpy(one.attrs.pool.window, row->window, sizeof row->window);
        memcpy(one.attrs.pool.stride, row->stride, sizeof row->stride);
        memcpy(one.attrs.pool.pad, row->pad, sizeof row->pad);
        if (backward) one.attrs.pool.input = x;
        one.n_inputs = k == 1 || k == 2 ? 2 : 1;
        one.inputs[1] = (argument){WEFT_I32, y, k == 2 || how == LAST ? how : PLAIN, -1, (double)(row->h * row->w), false};
        if (k == 0)
            one.n_outputs = 2, one.outputs[1] = (argument){.dtype = WEFT_I32, .shape = y}, one.derive = draw_ties;
        if (how == LAST) one.outputs[0].layout = one.outputs[1].layout = LAST;
        visit(context, &one);
        if (k < 3) { /* places in windows, of which some are none */
            one.outputs[1].dtype = k == 0 ? WEFT_U8 : one.outputs[1].dtype;
            if (k > 0) one.inputs[1] = (argument){WEFT_U8, y, one.inputs[1].layout, 0, (double)(row->window[0] * row->window[1] + 2), false};
            visit(context, &one);
        }
        if (k < 3) continue;
        one.attrs.pool.exclude_pad = 1;
        visit(context, &one);
    }
}

void visit_products(case_visitor visit, void *context) {
    visit_matmuls(visit, context);
    visit_epilogues(visit, context);
    for (size_t d = 0; d < WEFTI_COUNT(floats); d++) {
        for (size_t s = 0; s < WEFTI_COUNT(large_expert_rows); s++) visit_experts(visit, context, floats[d], &large_expert_rows[s], PLAIN);
        for (int how = 0; how < LAYOUT_COUNT; how++) {
            for (size_t s = 0; s < WEFTI_COUNT(expert_rows); s++) visit_experts(visit, context, floats[d], &expert_rows[s], (layout)how);
            for (size_t s = 0; s < WEFTI_COUNT(convs); s++)
                visit_conv(visit, context, floats[d], &convs[s], (layout)how);
            for (size_t s = 0; s < WEFTI_COUNT(pools); s++)
                visit_pool(visit, context, floats[d], &pools[s], (layout)how);
        }
        for (size_t s = 0; s < WEFTI_COUNT(large_convs) && d < 2; s++)
            visit_conv(visit, context, floats[d], &large_convs[s], PLAIN);
        for (size_t s = 0; s < WEFTI_COUNT(convs) && d % 2 == 0; s++) visit_conv(visit, context, floats[d], &convs[s], LAST);
        for (size_t s = 0; s < WEFTI_COUNT(pools) && d % 2 == 0; s++) visit_pool(visit, context, floats[d], &pools[s], LAST);
    }
}

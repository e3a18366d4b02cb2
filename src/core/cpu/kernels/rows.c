/* NORMALIZE, the softmax family, cross-entropy and rotary embedding, row by row, in f32 (16-bit floats are widened).
 *
 * Idea: a row is computed by one thread in two or three sweeps that stay in the first-level cache; long sums are f64. Rows that do not
 * lie contiguously are copied first. Cost: a few rows of scratch a thread; rotary keeps a table of cosines and sines.
 * f64 is left to the plain kernels. */
#include "core/cpu/kernels/fast.h"
#include "core/cpu/kernels/rows.h"

enum { INPUTS = 3 };

/* A pass over rows of `length` elements. */
typedef struct pass {
    const wefti_cpu_run *run;
    int64_t              rows, length, stride; /* stride: elements of a worker's row buffer */
    bool                 contiguous[INPUTS];
    void (*row)(const struct pass *pass, int64_t row, const float *const *x, float *y);
    int32_t              row_inputs; /* leading inputs that are rows */
} pass;

static int64_t buffer_elements(int64_t length) { return (length + 15) & ~INT64_C(15); }

static void chunk_rows(void *context, int64_t chunk, int32_t worker) {
    const pass       *p    = context;
    const wefti_call *call = p->run->call;
    int64_t           many = rows_per_chunk(p->length), end = wefti_min_i64((chunk + 1) * many, p->rows);
    float            *buffer = (float *)p->run->scratch + worker * (INPUTS + 1) * p->stride;
    weft_dtype        dtype = call->outputs[0].dtype;
    int64_t           bytes = (int64_t)weft_dtype_bytes(dtype);
    for (int64_t row = chunk * many; row < end; row++) {
        const float *x[INPUTS] = {NULL, NULL, NULL};
        for (int32_t i = 0; i < p->row_inputs; i++)
            x[i] = row_load(&call->inputs[i], p->run->inputs[i], p->contiguous[i], row, p->length, buffer + i * p->stride);
        char *to = (char *)p->run->outputs[0] + row * p->length * bytes;
        if (dtype == WEFT_F32) {
            p->row(p, row, x, (float *)(void *)to);
        } else {
            float *y = buffer + INPUTS * p->stride;
            p->row(p, row, x, y);
            convert_from_f32(y, dtype, p->length, to);
        }
    }
}

static int64_t row_length(const wefti_call *call, int32_t axes) {
    weft_shape shape  = call->inputs[0].shape;
    int64_t    length = 1;
    for (int32_t i = shape.rank - axes; i < shape.rank; i++) length *= shape.dim[i];
    return length;
}

static weft_status run_rows(const wefti_cpu_run *run, int32_t axes, int32_t row_inputs,
                            void (*row)(const pass *pass, int64_t row, const float *const *x, float *y)) {
    pass p   = {.run = run, .length = row_length(run->call, axes), .row = row, .row_inputs = row_inputs};
    p.rows   = p.length > 0 ? wefti_operand_elements(&run->call->inputs[0]) / p.length : 0;
    p.stride = buffer_elements(p.length);
    for (int32_t i = 0; i < row_inputs; i++) p.contiguous[i] = wefti_operand_is_contiguous(&run->call->inputs[i]);
    wefti_cpu_for(run, wefti_cpu_chunks(p.rows, rows_per_chunk(p.length)), chunk_rows, &p);
    return WEFT_OK;
}

static bool accepts(const wefti_call *call) { return call->inputs[0].dtype != WEFT_F64; }

static int64_t scratch_of(int64_t length, int32_t threads) { return threads * (INPUTS + 1) * buffer_elements(length) * 4; }
static int64_t scratch_last(const wefti_call *call, int32_t threads) { return scratch_of(row_length(call, 1), threads); }
static int64_t scratch_axes(const wefti_call *call, int32_t threads) {
    return scratch_of(row_length(call, call->attrs->rows.axes), threads);
}

/* NORMALIZE */

static void normalize_row(const pass *p, int64_t row, const float *const *x, float *y) {
    const wefti_attrs *attrs = p->run->call->attrs;
    int64_t            n = p->length;
    double             count = (double)n, mean = attrs->rows.rms ? 0 : row_sum(x[0], n) / count;
    float              centre = (float)mean;
    double             squares = attrs->rows.rms ? row_square_sum(x[0], n) : row_spread_sum(x[0], centre, n);
    float              rstd = (float)(1 / sqrt(squares / count + attrs->rows.eps));
    const float       *in = x[0];
    _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) y[i] = (in[i] - centre) * rstd;
    ((float *)p->run->outputs[1])[row] = rstd;
}

/* rstd*(g - mean(g) - y*mean(g*y)) */
static void normalize_backward_row(const pass *p, int64_t row, const float *const *x, float *to) {
    int64_t      n = p->length;
    const float *g = x[0], *y = x[1], *all = p->run->inputs[2];
    float        rstd = all[row_place(&p->run->call->inputs[2], row)];
    float        mean = p->run->call->attrs->rows.rms ? 0 : (float)(row_sum(g, n) / (double)n);
    float        product = (float)(row_product_sum(g, y, n) / (double)n);
    _Pragma("GCC ivdep") for (int64_t i = 0; i < n; i++) to[i] = rstd * ((g[i] - mean) - y[i] * product);
}

static weft_status run_normalize(const wefti_cpu_run *run) { return run_rows(run, run->call->attrs->rows.axes, 1, normalize_row); }
static weft_status run_normalize_backward(const wefti_cpu_run *run) {
    return run_rows(run, run->call->attrs->rows.axes, 2, normalize_backward_row);
}
const wefti_cpu_kernel wefti_kernel_normalize          = {.name = "rows", .accepts = accepts, .scratch = scratch_axes, .run = run_normalize};
const wefti_cpu_kernel wefti_kernel_normalize_backward = {.name = "rows", .accepts = accepts, .scratch = scratch_axes,
                                                          .run = run_normalize_backward};

/* SOFTMAX and LOG_SOFTMAX, and their gradients. y may be where x is. */

static void softmax_row(const pass *p, int64_t row, const float *const *x, float *y) {
    (void)row;
    float most = row_most(x[0], p->length);
    row_exp(x[0], most, p->length, y);
    float scale = (float)(1 / row_sum(y, p->length));
    for (int64_t i = 0; i < p->length; i++) y[i] *= scale;
}

static void log_softmax_row(const pass *p, int64_t row, const float *const *x, float *y) {
    (void)row;
    const float *in = x[0];
    float        most = row_most(in, p->length);
    row_exp(in, most, p->length, y);
    float rest = (float)log(row_sum(y, p->length));
    _Pragma("GCC ivdep") for (int64_t i = 0; i < p->length; i++) y[i] = (in[i] - most) - rest;
}

static void softmax_backward_row(const pass *p, int64_t row, const float *const *x, float *to) {
    (void)row;
    const float *g = x[0], *y = x[1];
    float        sum = (float)row_product_sum(g, y, p->length);
    _Pragma("GCC ivdep") for (int64_t i = 0; i < p->length; i++) to[i] = y[i] * (g[i] - sum);
}

static void log_softmax_backward_row(const pass *p, int64_t row, const float *const *x, float *to) {
    (void)row;
    const float *g = x[0], *y = x[1];
    float        sum = (float)row_sum(g, p->length);
    _Pragma("GCC ivdep") for (int64_t i = 0; i < p->length; i++) to[i] = g[i] - f32_exp(y[i]) * sum;
}

static weft_status run_softmax(const wefti_cpu_run *run) {
    return run_rows(run, 1, 1, run->call->op == WEFT_OP_SOFTMAX ? softmax_row : log_softmax_row);
}
static weft_status run_softmax_backward(const wefti_cpu_run *run) {
    return run_rows(run, 1, 2, run->call->op == WEFT_OP_SOFTMAX_BACKWARD ? softmax_backward_row : log_softmax_backward_row);
}
const wefti_cpu_kernel wefti_kernel_softmax          = {.name = "rows", .accepts = accepts, .scratch = scratch_last, .run = run_softmax};
const wefti_cpu_kernel wefti_kernel_softmax_backward = {.name = "rows", .accepts = accepts, .scratch = scratch_last,
                                                        .run = run_softmax_backward};

/* CROSS_ENTROPY: its output is one element a row, so it walks rows itself. */

static int64_t label_of(const wefti_cpu_run *run, int32_t input, int64_t row) {
    const wefti_operand *label = &run->call->inputs[input];
    return wefti_load_i64(run->inputs[input], row_place(label, row), label->dtype);
}
static bool is_ignored(const wefti_attrs *attrs, int64_t label) { return attrs->loss.has_ignored && label == attrs->loss.ignored; }

static void loss_chunk(void *context, int64_t chunk, int32_t worker) {
    const pass          *p      = context;
    const wefti_cpu_run *run    = p->run;
    const wefti_operand *logits = &run->call->inputs[0];
    int64_t many = rows_per_chunk(p->length), end = wefti_min_i64((chunk + 1) * many, p->rows);
    float  *buffer = (float *)run->scratch + worker * (INPUTS + 1) * p->stride, *powers = buffer + p->stride;
    double  smoothing = run->call->attrs->loss.smoothing;
    for (int64_t row = chunk * many; row < end; row++) {
        const float *x     = row_load(logits, run->inputs[0], p->contiguous[0], row, p->length, buffer);
        int64_t      label = label_of(run, 1, row);
        float        most  = row_most(x, p->length);
        row_exp(x, most, p->length, powers);
        double lse = most + log(row_sum(powers, p->length)), loss = NAN;
        if (is_ignored(run->call->attrs, label)) {
            loss = 0;
        } else if (label >= 0 && label < p->length) {
            loss = (1 - smoothing) * (lse - (double)x[label]);
            if (smoothing != 0) loss += smoothing * (lse - row_sum(x, p->length) / (double)p->length);
        }
        wefti_store_f64(run->outputs[0], row, run->call->outputs[0].dtype, loss);
        wefti_store_f64(run->outputs[1], row, run->call->outputs[1].dtype, lse);
    }
}

static weft_status run_loss(const wefti_cpu_run *run) {
    pass p          = {.run = run, .length = row_length(run->call, 1), .rows = wefti_operand_elements(&run->call->inputs[1])};
    p.stride        = buffer_elements(p.length);
    p.contiguous[0] = wefti_operand_is_contiguous(&run->call->inputs[0]);
    wefti_cpu_for(run, wefti_cpu_chunks(p.rows, rows_per_chunk(p.length)), loss_chunk, &p);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_kernel_cross_entropy = {.name = "rows", .accepts = accepts, .scratch = scratch_last, .run = run_loss};

/* g * (softmax - (1-s)*onehot - s/C) */
static void loss_backward_row(const float *x, int64_t length, int64_t label, bool ignored, double g, double lse, double smoothing,
                              float *to) {
    if (ignored || label < 0 || label >= length) {
        float same = ignored ? 0 : NAN;
        for (int64_t i = 0; i < length; i++) to[i] = same;
        return;
    }
    float scale = (float)g, shift = (float)lse, even = (float)(smoothing / (double)length);
    float own = (float)(g * (exp((double)x[label] - lse) - (1 - smoothing) - smoothing / (double)length));
    _Pragma("GCC ivdep") for (int64_t i = 0; i < length; i++) to[i] = scale * (f32_exp(x[i] - shift) - even);
    to[label] = own;
}

static void loss_backward_chunk(void *context, int64_t chunk, int32_t worker) {
    const pass          *p    = context;
    const wefti_cpu_run *run  = p->run;
    const wefti_call    *call = run->call;
    int64_t many = rows_per_chunk(p->length), end = wefti_min_i64((chunk + 1) * many, p->rows);
    float  *buffer = (float *)run->scratch + worker * (INPUTS + 1) * p->stride, *aside = buffer + p->stride;
    int64_t bytes = (int64_t)weft_dtype_bytes(call->outputs[0].dtype);
    for (int64_t row = chunk * many; row < end; row++) {
        const float *x     = row_load(&call->inputs[1], run->inputs[1], p->contiguous[1], row, p->length, buffer);
        int64_t      label = label_of(run, 2, row);
        double g   = wefti_load_f64(run->inputs[0], row_place(&call->inputs[0], row), call->inputs[0].dtype);
        double lse = wefti_load_f64(run->inputs[3], row_place(&call->inputs[3], row), call->inputs[3].dtype);
        loss_backward_row(x, p->length, label, is_ignored(call->attrs, label), g, lse, call->attrs->loss.smoothing, aside);
        convert_from_f32(aside, call->outputs[0].dtype, p->length, (char *)run->outputs[0] + row * p->length * bytes);
    }
}

static weft_status run_loss_backward(const wefti_cpu_run *run) {
    weft_shape shape = run->call->inputs[1].shape;
    pass       p     = {.run = run, .length = shape.dim[shape.rank - 1], .rows = wefti_operand_elements(&run->call->inputs[2])};
    p.stride         = buffer_elements(p.length);
    p.contiguous[1]  = wefti_operand_is_contiguous(&run->call->inputs[1]);
    wefti_cpu_for(run, wefti_cpu_chunks(p.rows, rows_per_chunk(p.length)), loss_backward_chunk, &p);
    return WEFT_OK;
}
static bool accepts_loss_backward(const wefti_call *call) { return call->inputs[1].dtype != WEFT_F64; }
static int64_t scratch_loss_backward(const wefti_call *call, int32_t threads) {
    weft_shape shape = call->inputs[1].shape;
    return scratch_of(shape.dim[shape.rank - 1], threads);
}
const wefti_cpu_kernel wefti_kernel_cross_entropy_backward = {.name = "rows", .accepts = accepts_loss_backward,
                                                              .scratch = scratch_loss_backward, .run = run_loss_backward};

/* ROTARY, with a table [position][cosines, sines], made once. */

static void rotary_row(const pass *p, int64_t row, const float *const *x, float *y) {
    weft_shape   shape = p->run->call->inputs[0].shape;
    int64_t      half = p->length / 2;
    const float *table = (const float *)p->run->prepared + row % shape.dim[shape.rank - 2] * p->length, *in = x[0];
    _Pragma("GCC ivdep") for (int64_t i = 0; i < half; i++) {
        float a = in[i], b = in[i + half], cosine = table[i], sine = table[i + half];
        y[i]        = a * cosine - b * sine;
        y[i + half] = a * sine + b * cosine;
    }
}

static size_t rotary_bytes(const wefti_call *call) {
    weft_shape shape = call->inputs[0].shape;
    return (size_t)(shape.dim[shape.rank - 2] * shape.dim[shape.rank - 1]) * sizeof(float);
}
static weft_status prepare_rotary(const wefti_call *call, int32_t threads, void *prepared) {
    (void)threads;
    weft_shape         shape = call->inputs[0].shape;
    const wefti_attrs *attrs = call->attrs;
    int64_t            length = shape.dim[shape.rank - 1], half = length / 2;
    float             *table = prepared;
    for (int64_t t = 0; t < shape.dim[shape.rank - 2]; t++, table += length)
        for (int64_t i = 0; i < half; i++) {
            double angle = (double)(t + attrs->rotary.offset) * pow(attrs->rotary.base, -2.0 * (double)i / (double)length);
            table[i]        = (float)cos(angle);
            table[i + half] = (float)(attrs->rotary.inverse ? -sin(angle) : sin(angle));
        }
    return WEFT_OK;
}
static weft_status run_rotary(const wefti_cpu_run *run) { return run_rows(run, 1, 1, rotary_row); }
const wefti_cpu_kernel wefti_kernel_rotary = {.name = "rows", .accepts = accepts, .scratch = scratch_last,
                                              .prepared_bytes = rotary_bytes, .prepare = prepare_rotary, .run = run_rotary};

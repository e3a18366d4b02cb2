/* Row-local ops: each row (the last axes) is computed by one thread, in f64, from its start to its end. */
#include "core/cpu/reference/reference.h"

/* A run over rows: row r of operand i begins at origin(i, r), and its elements are walked in row-major order. */
typedef struct rows {
    const wefti_cpu_run *run;
    int32_t              axes; /* last axes that make a row */
    int64_t              rows, length;
} rows;

static rows rows_of(const wefti_cpu_run *run, weft_shape shape, int32_t axes) {
    rows r = {.run = run, .axes = axes, .rows = 1, .length = 1};
    for (int32_t i = 0; i < shape.rank; i++) *(i < shape.rank - axes ? &r.rows : &r.length) *= shape.dim[i];
    return r;
}

/* Element i of row `row` of input `input`. */
static double at(const rows *r, int32_t input, int64_t row, int64_t i) {
    return wefti_in(r->run, input, wefti_place(&r->run->call->inputs[input], row * r->length + i));
}

static void normalize_row(void *context, int64_t row, int32_t worker) {
    const rows        *r = context;
    const wefti_attrs *attrs = r->run->call->attrs;
    double             mean = 0, squares = 0;
    (void)worker;
    for (int64_t i = 0; !attrs->rows.rms && i < r->length; i++) mean += at(r, 0, row, i);
    if (!attrs->rows.rms) mean /= (double)r->length;
    for (int64_t i = 0; i < r->length; i++) {
        double centred = at(r, 0, row, i) - mean;
        squares += centred * centred;
    }
    double rstd = 1 / sqrt(squares / (double)r->length + attrs->rows.eps);
    for (int64_t i = 0; i < r->length; i++) wefti_out(r->run, 0, row * r->length + i, (at(r, 0, row, i) - mean) * rstd);
    wefti_out(r->run, 1, row, rstd);
}

static weft_status run_normalize(const wefti_cpu_run *run) {
    rows r = rows_of(run, run->call->inputs[0].shape, run->call->attrs->rows.axes);
    wefti_cpu_for(run, r.rows, normalize_row, &r);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_normalize = {.name = "reference normalize", .run = run_normalize};

/* rstd*(g - mean(g) - y*mean(g*y)) */
static void normalize_backward_row(void *context, int64_t row, int32_t worker) {
    const rows *r = context;
    double      mean = 0, product = 0, rstd = wefti_in(r->run, 2, wefti_place(&r->run->call->inputs[2], row));
    (void)worker;
    for (int64_t i = 0; i < r->length; i++) {
        mean += at(r, 0, row, i);
        product += at(r, 0, row, i) * at(r, 1, row, i);
    }
    mean = r->run->call->attrs->rows.rms ? 0 : mean / (double)r->length;
    product /= (double)r->length;
    for (int64_t i = 0; i < r->length; i++)
        wefti_out(r->run, 0, row * r->length + i, rstd * (at(r, 0, row, i) - mean - at(r, 1, row, i) * product));
}

static weft_status run_normalize_backward(const wefti_cpu_run *run) {
    rows r = rows_of(run, run->call->inputs[0].shape, run->call->attrs->rows.axes);
    wefti_cpu_for(run, r.rows, normalize_backward_row, &r);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_normalize_backward = {.name = "reference normalize gradient",
                                                             .run = run_normalize_backward};

/* SOFTMAX and LOG_SOFTMAX: the maximum is taken out, so that nothing overflows. */
static void softmax_row(void *context, int64_t row, int32_t worker) {
    const rows *r = context;
    double      most = -INFINITY, sum = 0;
    (void)worker;
    for (int64_t i = 0; i < r->length; i++) most = fmax(most, at(r, 0, row, i));
    for (int64_t i = 0; i < r->length; i++) sum += exp(at(r, 0, row, i) - most);
    for (int64_t i = 0; i < r->length; i++) {
        double shifted = at(r, 0, row, i) - most;
        wefti_out(r->run, 0, row * r->length + i,
                  r->run->call->op == WEFT_OP_SOFTMAX ? exp(shifted) / sum : shifted - log(sum));
    }
}

static weft_status run_softmax(const wefti_cpu_run *run) {
    rows r = rows_of(run, run->call->inputs[0].shape, 1);
    wefti_cpu_for(run, r.rows, softmax_row, &r);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_softmax = {.name = "reference softmax", .run = run_softmax};

/* y*(g - sum(g*y)), or g - exp(y)*sum(g) of the logarithm */
static void softmax_backward_row(void *context, int64_t row, int32_t worker) {
    const rows *r = context;
    bool        logarithm = r->run->call->op == WEFT_OP_LOG_SOFTMAX_BACKWARD;
    double      sum = 0;
    (void)worker;
    for (int64_t i = 0; i < r->length; i++) sum += at(r, 0, row, i) * (logarithm ? 1 : at(r, 1, row, i));
    for (int64_t i = 0; i < r->length; i++) {
        double g = at(r, 0, row, i), y = at(r, 1, row, i);
        wefti_out(r->run, 0, row * r->length + i, logarithm ? g - exp(y) * sum : y * (g - sum));
    }
}

static weft_status run_softmax_backward(const wefti_cpu_run *run) {
    rows r = rows_of(run, run->call->inputs[0].shape, 1);
    wefti_cpu_for(run, r.rows, softmax_backward_row, &r);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_softmax_backward = {.name = "reference softmax gradient",
                                                           .run = run_softmax_backward};

/* ROTARY: pair (i, i + D/2) at position t turns by (t + offset)*base^(-2i/D). A row is one position. */
static void rotary_row(void *context, int64_t row, int32_t worker) {
    const rows        *r = context;
    const wefti_attrs *attrs = r->run->call->attrs;
    weft_shape         shape = r->run->call->inputs[0].shape;
    int64_t            half = r->length / 2, position = row % shape.dim[shape.rank - 2] + attrs->rotary.offset;
    (void)worker;
    for (int64_t i = 0; i < half; i++) {
        double angle = (double)position * pow(attrs->rotary.base, -2.0 * (double)i / (double)r->length);
        double cosine = cos(angle), sine = attrs->rotary.inverse ? -sin(angle) : sin(angle);
        double a = at(r, 0, row, i), b = at(r, 0, row, i + half);
        wefti_out(r->run, 0, row * r->length + i, a * cosine - b * sine);
        wefti_out(r->run, 0, row * r->length + i + half, a * sine + b * cosine);
    }
}

static weft_status run_rotary(const wefti_cpu_run *run) {
    rows r = rows_of(run, run->call->inputs[0].shape, 1);
    wefti_cpu_for(run, r.rows, rotary_row, &r);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_rotary = {.name = "reference rotary", .run = run_rotary};

/* Pooling in two dimensions. Threads share planes (n, c), so gradients that overlap within a plane are added by one
 * thread in the order of the output elements, in f64 kept in scratch. */
#include "core/cpu/reference/reference.h"

typedef struct pooling {
    const wefti_cpu_run *run;
    weft_shape           x, y; /* of the forward pooling */
    int64_t              window[2], stride[2], pad[4];
    bool                 exclude_pad;
} pooling;

static pooling pooling_of(const wefti_cpu_run *run, weft_shape x, weft_shape y) {
    const wefti_attrs *attrs = run->call->attrs;
    pooling            p = {.run = run, .x = x, .y = y, .exclude_pad = attrs->pool.exclude_pad};
    for (int i = 0; i < 2; i++) {
        p.window[i] = attrs->pool.window[i];
        p.stride[i] = attrs->pool.stride[i] > 0 ? attrs->pool.stride[i] : p.window[i];
    }
    for (int i = 0; i < 4; i++) p.pad[i] = attrs->pool.pad[i];
    return p;
}

static int64_t plane_at(const wefti_operand *operand, int64_t chunk) {
    return chunk / operand->shape.dim[1] * operand->stride[0] + chunk % operand->shape.dim[1] * operand->stride[1];
}

/* The part of window `at` along `axis` that lies in the plane. */
static void window_of(const pooling *p, int axis, int64_t at, int64_t *begin_out, int64_t *end_out) {
    int64_t begin = at * p->stride[axis] - p->pad[2 * axis];
    *begin_out = wefti_max_i64(begin, 0);
    *end_out = wefti_min_i64(begin + p->window[axis], p->x.dim[2 + axis]);
}

/* The first maximum in the window, -1 where the window holds padding only. A NaN wins over all. */
static int64_t choose(const pooling *p, int64_t origin, int64_t row, int64_t column, double *value_out) {
    const wefti_operand *x = &p->run->call->inputs[0];
    int64_t              top, bottom, left, right, chosen = -1;
    window_of(p, 0, row, &top, &bottom);
    window_of(p, 1, column, &left, &right);
    *value_out = -INFINITY;
    for (int64_t h = top; h < bottom; h++)
        for (int64_t w = left; w < right; w++) {
            double value = wefti_in(p->run, 0, origin + h * x->stride[2] + w * x->stride[3]);
            if (chosen >= 0 && (isnan(*value_out) || !(isnan(value) || value > *value_out))) continue;
            *value_out = value;
            chosen = h * p->x.dim[3] + w;
        }
    return chosen;
}

/* The place in window (row, column) of element `chosen` of the plane; 255 where there is none. And back: -1 for what is no place. */
static int64_t place_of(const pooling *p, int64_t row, int64_t column, int64_t chosen) {
    if (chosen < 0) return 255;
    int64_t h = chosen / p->x.dim[3] - (row * p->stride[0] - p->pad[0]), w = chosen % p->x.dim[3] - (column * p->stride[1] - p->pad[2]);
    return h * p->window[1] + w;
}
static int64_t element_of(const pooling *p, int64_t row, int64_t column, int64_t place) {
    if (place >= p->window[0] * p->window[1]) return -1;
    int64_t h = row * p->stride[0] - p->pad[0] + place / p->window[1], w = column * p->stride[1] - p->pad[2] + place % p->window[1];
    return h < 0 || h >= p->x.dim[2] || w < 0 || w >= p->x.dim[3] ? -1 : h * p->x.dim[3] + w;
}

static void max_plane(void *context, int64_t chunk, int32_t worker) {
    const pooling *p = context;
    int64_t        rows = p->y.dim[2], columns = p->y.dim[3], origin = plane_at(&p->run->call->inputs[0], chunk);
    (void)worker;
    for (int64_t i = 0; i < rows * columns; i++) {
        double  value;
        int64_t chosen = choose(p, origin, i / columns, i % columns, &value);
        wefti_out(p->run, 0, chunk * rows * columns + i, value);
        if (p->run->call->outputs[1].dtype == WEFT_U8) chosen = place_of(p, i / columns, i % columns, chosen);
        wefti_store_i64(p->run->outputs[1], chunk * rows * columns + i, p->run->call->outputs[1].dtype, chosen);
    }
}

static weft_status run_max(const wefti_cpu_run *run) {
    pooling p = pooling_of(run, run->call->inputs[0].shape, run->call->outputs[0].shape);
    wefti_cpu_for(run, p.y.dim[0] * p.y.dim[1], max_plane, &p);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_max_pool2d = {.name = "reference max-pool", .run = run_max};

/* The index that MAX_POOL2D gave for element i of plane `chunk`; -1 or any value outside the plane means none. */
static int64_t index_at(const pooling *p, int64_t chunk, int64_t i) {
    const wefti_operand *index = &p->run->call->inputs[1];
    int64_t at = plane_at(index, chunk) + i / index->shape.dim[3] * index->stride[2] +
                 i % index->shape.dim[3] * index->stride[3];
    int64_t chosen = wefti_load_i64(p->run->inputs[1], at, index->dtype);
    if (index->dtype == WEFT_U8) chosen = element_of(p, i / index->shape.dim[3], i % index->shape.dim[3], chosen);
    return chosen >= 0 && chosen < p->x.dim[2] * p->x.dim[3] ? chosen : -1;
}

static int64_t gradient_scratch(const wefti_call *call, int32_t threads) {
    (void)threads;
    return wefti_operand_elements(&call->outputs[0]) * (int64_t)sizeof(double);
}

static void max_backward_plane(void *context, int64_t chunk, int32_t worker) {
    const pooling       *p = context;
    const wefti_operand *g = &p->run->call->inputs[0];
    int64_t              size = p->x.dim[2] * p->x.dim[3], columns = p->y.dim[3];
    double              *sums = (double *)p->run->scratch + chunk * size;
    (void)worker;
    for (int64_t i = 0; i < size; i++) sums[i] = 0;
    for (int64_t i = 0; i < p->y.dim[2] * columns; i++) {
        int64_t chosen = index_at(p, chunk, i);
        if (chosen >= 0)
            sums[chosen] +=
                wefti_in(p->run, 0, plane_at(g, chunk) + i / columns * g->stride[2] + i % columns * g->stride[3]);
    }
    for (int64_t i = 0; i < size; i++) wefti_out(p->run, 0, chunk * size + i, sums[i]);
}

static weft_status run_max_backward(const wefti_cpu_run *run) {
    pooling p = pooling_of(run, run->call->outputs[0].shape, run->call->inputs[0].shape);
    wefti_cpu_for(run, p.x.dim[0] * p.x.dim[1], max_backward_plane, &p);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_max_pool2d_backward = {
    .name = "reference max-pool gradient", .scratch = gradient_scratch, .run = run_max_backward};

/* MAX_POOL2D_TAKE: what other planes hold at the chosen places. */
static void take_plane(void *context, int64_t chunk, int32_t worker) {
    const pooling       *p = context;
    const wefti_operand *x = &p->run->call->inputs[0];
    int64_t              size = p->y.dim[2] * p->y.dim[3];
    (void)worker;
    for (int64_t i = 0; i < size; i++) {
        int64_t chosen = index_at(p, chunk, i), width = p->x.dim[3];
        int64_t at =
            plane_at(x, chunk) + (chosen < 0 ? 0 : chosen / width * x->stride[2] + chosen % width * x->stride[3]);
        wefti_out(p->run, 0, chunk * size + i, chosen < 0 ? 0 : wefti_in(p->run, 0, at));
    }
}

static weft_status run_take(const wefti_cpu_run *run) {
    pooling p = pooling_of(run, run->call->inputs[0].shape, run->call->outputs[0].shape);
    wefti_cpu_for(run, p.y.dim[0] * p.y.dim[1], take_plane, &p);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_max_pool2d_take = {.name = "reference max-pool take", .run = run_take};

/* What the sum over a window is divided by. */
static double divisor(const pooling *p, int64_t row, int64_t column) {
    int64_t top, bottom, left, right;
    window_of(p, 0, row, &top, &bottom);
    window_of(p, 1, column, &left, &right);
    if (p->exclude_pad) return (double)((bottom - top) * (right - left));
    return (double)(p->window[0] * p->window[1]);
}

static void average_plane(void *context, int64_t chunk, int32_t worker) {
    const pooling       *p = context;
    const wefti_operand *x = &p->run->call->inputs[0];
    int64_t              columns = p->y.dim[3], size = p->y.dim[2] * columns, origin = plane_at(x, chunk);
    (void)worker;
    for (int64_t i = 0; i < size; i++) {
        int64_t top, bottom, left, right;
        double  sum = 0;
        window_of(p, 0, i / columns, &top, &bottom);
        window_of(p, 1, i % columns, &left, &right);
        for (int64_t h = top; h < bottom; h++)
            for (int64_t w = left; w < right; w++)
                sum += wefti_in(p->run, 0, origin + h * x->stride[2] + w * x->stride[3]);
        wefti_out(p->run, 0, chunk * size + i, sum / divisor(p, i / columns, i % columns));
    }
}

static weft_status run_average(const wefti_cpu_run *run) {
    pooling p = pooling_of(run, run->call->inputs[0].shape, run->call->outputs[0].shape);
    wefti_cpu_for(run, p.y.dim[0] * p.y.dim[1], average_plane, &p);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_avg_pool2d = {.name = "reference average pool", .run = run_average};

static void average_backward_plane(void *context, int64_t chunk, int32_t worker) {
    const pooling       *p = context;
    const wefti_operand *g = &p->run->call->inputs[0];
    int64_t              columns = p->y.dim[3], size = p->x.dim[2] * p->x.dim[3];
    double              *sums = (double *)p->run->scratch + chunk * size;
    (void)worker;
    for (int64_t i = 0; i < size; i++) sums[i] = 0;
    for (int64_t i = 0; i < p->y.dim[2] * columns; i++) {
        int64_t top, bottom, left, right;
        window_of(p, 0, i / columns, &top, &bottom);
        window_of(p, 1, i % columns, &left, &right);
        double share =
            wefti_in(p->run, 0, plane_at(g, chunk) + i / columns * g->stride[2] + i % columns * g->stride[3]) /
            divisor(p, i / columns, i % columns);
        for (int64_t h = top; h < bottom; h++)
            for (int64_t w = left; w < right; w++) sums[h * p->x.dim[3] + w] += share;
    }
    for (int64_t i = 0; i < size; i++) wefti_out(p->run, 0, chunk * size + i, sums[i]);
}

static weft_status run_average_backward(const wefti_cpu_run *run) {
    pooling p = pooling_of(run, run->call->outputs[0].shape, run->call->inputs[0].shape);
    wefti_cpu_for(run, p.x.dim[0] * p.x.dim[1], average_backward_plane, &p);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_avg_pool2d_backward = {.name = "reference average pool gradient",
                                                              .scratch = gradient_scratch, .run = run_average_backward};

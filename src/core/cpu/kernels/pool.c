/* Pooling in f32, plane by plane.
 *
 * Idea: forward passes go tap by tap over whole output rows, which the compiler makes SIMD; gradients are written by the one thread
 * that owns the plane, in the order of the outputs. Only contiguous operands; the rest is left to the plain kernels.
 * Cost: one pass over memory, and a row of scratch on the stack. */
#include <math.h>

#include "core/cpu/kernels/fast.h"
#include "core/cpu/kernels/simd.h"

enum { PLANES = 8, ROW = 512 };

typedef struct pooling {
    const wefti_cpu_run *run;
    int64_t              planes, height, width, rows, columns; /* of x, of y */
    int64_t              window[2], stride[2], pad[2];
    bool                 exclude_pad;
} pooling;

static pooling pooling_of(const wefti_cpu_run *run, weft_shape x, weft_shape y) {
    const wefti_attrs *attrs = run->call->attrs;
    pooling p = {.run = run, .planes = x.dim[0] * x.dim[1], .height = x.dim[2], .width = x.dim[3], .rows = y.dim[2], .columns = y.dim[3]};
    for (int i = 0; i < 2; i++) {
        p.window[i] = attrs->pool.window[i];
        p.stride[i] = attrs->pool.stride[i] > 0 ? attrs->pool.stride[i] : p.window[i];
        p.pad[i]    = attrs->pool.pad[2 * i];
    }
    p.exclude_pad = attrs->pool.exclude_pad;
    return p;
}

/* Outputs [*begin, *end) whose tap `i` along `axis` lies in the plane. */
static void outputs_of_tap(const pooling *p, int axis, int64_t i, int64_t *begin, int64_t *end) {
    int64_t size = axis ? p->width : p->height, count = axis ? p->columns : p->rows, stride = p->stride[axis];
    int64_t low = p->pad[axis] - i, high = size + p->pad[axis] - i; /* low <= q*stride < high */
    *begin = low <= 0 ? 0 : (low + stride - 1) / stride;
    *end   = high <= 0 ? 0 : wefti_min_i64(count, (high + stride - 1) / stride);
}

/* The first maximum wins, NaN over all; an index of -1 says that none was seen yet. */
WEFTI_INLINE void take_most(const float *x, int64_t stride, int64_t count, int32_t first, float *most, int32_t *index) {
    _Pragma("GCC ivdep") for (int64_t q = 0; q < count; q++) {
        float   value = x[q * stride], best = most[q];
        int32_t at = index[q], here = first + (int32_t)(q * stride);
        int32_t better = ((value > best) | (value != value)) & (best == best);
        int32_t wins = better | (at < 0);
        most[q]  = wins ? value : best;
        index[q] = wins ? here : at;
    }
}

static void max_plane(const pooling *p, const float *x, float *y, int32_t *index) {
    for (int64_t row = 0; row < p->rows; row++, y += p->columns, index += p->columns) {
        for (int64_t q = 0; q < p->columns; q++) {
            y[q]     = -INFINITY;
            index[q] = -1;
        }
        for (int64_t i = 0; i < p->window[0]; i++) {
            int64_t h = row * p->stride[0] - p->pad[0] + i;
            if (h < 0 || h >= p->height) continue;
            for (int64_t j = 0; j < p->window[1]; j++) {
                int64_t begin, end;
                outputs_of_tap(p, 1, j, &begin, &end);
                if (begin >= end) continue;
                int64_t at = h * p->width + begin * p->stride[1] - p->pad[1] + j;
                if (p->stride[1] == 2)
                    take_most(x + at, 2, end - begin, (int32_t)at, y + begin, index + begin);
                else if (p->stride[1] == 1)
                    take_most(x + at, 1, end - begin, (int32_t)at, y + begin, index + begin);
                else
                    take_most(x + at, p->stride[1], end - begin, (int32_t)at, y + begin, index + begin);
            }
        }
    }
}

/* Windows of 2x2 side by side that cover a plane, the commonest. Rows of such planes are short, so vectors reach beyond them: first
 * the larger of each two elements that stand over each other, each row's last vector overwritten by the next row; then the larger of
 * each two neighbours, the whole plane as one run. `corner` holds the index of each window's first element. */
enum { RUN = 1024, ROOM = 2 * VF };
typedef int32_t vi __attribute__((vector_size(VECTOR_BYTES)));

WEFTI_INLINE vi vi_load(const int32_t *from) {
    vi value;
    memcpy(&value, from, sizeof value);
    return value;
}
WEFTI_INLINE vi pick(vi mask, vi yes, vi no) { return (yes & mask) | (no & ~mask); }

static void corners_of(const pooling *p, int32_t *corner) {
    for (int64_t row = 0, q = 0; row < p->rows; row++)
        for (int64_t column = 0; column < p->columns; column++, q++) corner[q] = (int32_t)(2 * row * p->width + 2 * column);
}

/* The larger of above and below, and where it is the lower one; `width` elements, and what is there behind them up to whole vectors. */
WEFTI_INLINE void larger_of_rows(const float *above, const float *below, int32_t width, float *larger, int32_t *lower) {
    for (int32_t i = 0; i < width; i += VF) {
        vf a = vf_load(above + i), b = vf_load(below + i);
        vi wins = ((b > a) | (b != b)) & (a == a), most = pick(wins, (vi)b, (vi)a);
        memcpy(larger + i, &most, sizeof most);
        memcpy(lower + i, &wins, sizeof wins);
    }
}

static void max_plane_2x2(const pooling *p, const int32_t *restrict corner, const float *restrict x, float *restrict y, int32_t *restrict index) {
    float   larger[2 * RUN + ROOM], ends[2][ROW + ROOM];
    int32_t lower[2 * RUN + ROOM]; /* -1 where the larger one is the lower, else 0 */
    int32_t width = (int32_t)p->width, count = (int32_t)(p->rows * p->columns);
    for (int64_t row = 0; row < p->rows; row++) {
        const float *above = x + 2 * row * width, *below = above + width;
        if ((2 * row + 2) * width + VF > p->height * width) { /* whole vectors would leave the plane */
            memcpy(ends[0], above, (size_t)width * sizeof *above);
            memcpy(ends[1], below, (size_t)width * sizeof *below);
            memset(ends[0] + width, 0, VF * sizeof *above);
            memset(ends[1] + width, 0, VF * sizeof *below);
            above = ends[0], below = ends[1];
        }
        larger_of_rows(above, below, width, larger + row * width, lower + row * width);
    }
    memset(larger + 2 * count, 0, ROOM * sizeof *larger);
    memset(lower + 2 * count, 0, ROOM * sizeof *lower);
    vi even, odd;
    for (int i = 0; i < VF; i++) even[i] = 2 * i, odd[i] = 2 * i + 1;
    for (int32_t q = 0; q < count; q += VF) {
        vf low = vf_load(larger + 2 * q), high = vf_load(larger + 2 * q + VF);
        vi low_is = vi_load(lower + 2 * q), high_is = vi_load(lower + 2 * q + VF);
        vf a = __builtin_shuffle(low, high, even), b = __builtin_shuffle(low, high, odd);
        vi la = __builtin_shuffle(low_is, high_is, even), lb = __builtin_shuffle(low_is, high_is, odd);
        /* of equals, and of two NaN, the one that comes first in memory: the right one only where it is above and the left below */
        vi above = ~lb & la, wins = ((b > a) & (a == a)) | ((b == a) & above) | ((b != b) & ((a == a) | above));
        vi most = pick(wins, (vi)b, (vi)a), at = vi_load(corner + q) - wins + (pick(wins, lb, la) & width);
        size_t bytes = (size_t)wefti_min_i64(VF, count - q) * sizeof *y;
        if (bytes == sizeof most) {
            memcpy(y + q, &most, sizeof most);
            memcpy(index + q, &at, sizeof at);
        } else {
            memcpy(y + q, &most, bytes);
            memcpy(index + q, &at, bytes);
        }
    }
}

static void max_chunk(void *context, int64_t chunk, int32_t worker) {
    (void)worker;
    const pooling *p = context;
    int64_t        size = p->height * p->width, out = p->rows * p->columns, end = wefti_min_i64((chunk + 1) * PLANES, p->planes);
    bool    plain = p->window[0] == 2 && p->window[1] == 2 && p->stride[0] == 2 && p->stride[1] == 2 && !p->pad[0] && !p->pad[1] &&
                 2 * p->rows <= p->height && 2 * p->columns == p->width && out <= RUN;
    int32_t corner[RUN + ROOM] = {0};
    if (plain) corners_of(p, corner);
    for (int64_t plane = chunk * PLANES; plane < end; plane++) {
        const float *x = (const float *)p->run->inputs[0] + plane * size;
        float       *y = (float *)p->run->outputs[0] + plane * out;
        int32_t     *index = (int32_t *)p->run->outputs[1] + plane * out;
        if (plain) max_plane_2x2(p, corner, x, y, index);
        else max_plane(p, x, y, index);
    }
}

static void max_backward_chunk(void *context, int64_t chunk, int32_t worker) {
    (void)worker;
    const pooling *p = context;
    int64_t        size = p->height * p->width, out = p->rows * p->columns, end = wefti_min_i64((chunk + 1) * PLANES, p->planes);
    for (int64_t plane = chunk * PLANES; plane < end; plane++) {
        const float   *g = (const float *)p->run->inputs[0] + plane * out;
        const int32_t *index = (const int32_t *)p->run->inputs[1] + plane * out;
        float         *to = (float *)p->run->outputs[0] + plane * size;
        memset(to, 0, (size_t)size * sizeof *to);
        for (int64_t i = 0; i < out; i++)
            if ((uint64_t)(int64_t)index[i] < (uint64_t)size) to[index[i]] += g[i];
    }
}

static void take_chunk(void *context, int64_t chunk, int32_t worker) {
    (void)worker;
    const pooling *p = context;
    int64_t        size = p->height * p->width, out = p->rows * p->columns, end = wefti_min_i64((chunk + 1) * PLANES, p->planes);
    for (int64_t plane = chunk * PLANES; plane < end; plane++) {
        const float   *x = (const float *)p->run->inputs[0] + plane * size;
        const int32_t *index = (const int32_t *)p->run->inputs[1] + plane * out;
        float         *to = (float *)p->run->outputs[0] + plane * out;
        for (int64_t i = 0; i < out; i++) to[i] = (uint64_t)(int64_t)index[i] < (uint64_t)size ? x[index[i]] : 0;
    }
}

/* 1 over what the sum of output (row, column) is divided by. */
static float share_of(const pooling *p, int64_t row, int64_t column) {
    if (!p->exclude_pad) return (float)(1.0 / (double)(p->window[0] * p->window[1]));
    int64_t top = row * p->stride[0] - p->pad[0], left = column * p->stride[1] - p->pad[1];
    int64_t tall = wefti_min_i64(top + p->window[0], p->height) - wefti_max_i64(top, 0);
    int64_t wide = wefti_min_i64(left + p->window[1], p->width) - wefti_max_i64(left, 0);
    return (float)(1.0 / (double)(tall * wide));
}

/* Calls for each tap of an output row: x's row position at the first output, and the outputs it has. */
static void average_row(const pooling *p, int64_t row, const float *x, float *y, float *gradient) {
    for (int64_t i = 0; i < p->window[0]; i++) {
        int64_t h = row * p->stride[0] - p->pad[0] + i;
        if (h < 0 || h >= p->height) continue;
        for (int64_t j = 0; j < p->window[1]; j++) {
            int64_t begin, end, stride = p->stride[1];
            outputs_of_tap(p, 1, j, &begin, &end);
            int64_t at = h * p->width + begin * stride - p->pad[1] + j;
            if (x)
                for (int64_t q = begin; q < end; q++) y[q] += x[at + (q - begin) * stride];
            else
                for (int64_t q = begin; q < end; q++) gradient[at + (q - begin) * stride] += y[q];
        }
    }
}

static void average_chunk(void *context, int64_t chunk, int32_t worker) {
    (void)worker;
    const pooling *p = context;
    int64_t        size = p->height * p->width, out = p->rows * p->columns, end = wefti_min_i64((chunk + 1) * PLANES, p->planes);
    for (int64_t plane = chunk * PLANES; plane < end; plane++)
        for (int64_t row = 0; row < p->rows; row++) {
            float *y = (float *)p->run->outputs[0] + plane * out + row * p->columns;
            memset(y, 0, (size_t)p->columns * sizeof *y);
            average_row(p, row, (const float *)p->run->inputs[0] + plane * size, y, NULL);
            for (int64_t q = 0; q < p->columns; q++) y[q] *= share_of(p, row, q);
        }
}

static void average_backward_chunk(void *context, int64_t chunk, int32_t worker) {
    (void)worker;
    const pooling *p = context;
    int64_t        size = p->height * p->width, out = p->rows * p->columns, end = wefti_min_i64((chunk + 1) * PLANES, p->planes);
    float          shares[ROW];
    for (int64_t plane = chunk * PLANES; plane < end; plane++) {
        float *to = (float *)p->run->outputs[0] + plane * size;
        memset(to, 0, (size_t)size * sizeof *to);
        for (int64_t row = 0; row < p->rows; row++) {
            const float *g = (const float *)p->run->inputs[0] + plane * out + row * p->columns;
            for (int64_t q = 0; q < p->columns; q++) shares[q] = g[q] * share_of(p, row, q);
            average_row(p, row, NULL, shares, to);
        }
    }
}

static weft_status run_planes(const wefti_cpu_run *run, bool backward, wefti_pool_body body) {
    const wefti_operand *in = &run->call->inputs[0], *out = &run->call->outputs[0];
    pooling              p = backward ? pooling_of(run, out->shape, in->shape) : pooling_of(run, in->shape, out->shape);
    wefti_cpu_for(run, wefti_cpu_chunks(p.planes, PLANES), body, &p);
    return WEFT_OK;
}
static weft_status run_max(const wefti_cpu_run *run) { return run_planes(run, false, max_chunk); }
static weft_status run_max_backward(const wefti_cpu_run *run) { return run_planes(run, true, max_backward_chunk); }
static weft_status run_take(const wefti_cpu_run *run) { return run_planes(run, false, take_chunk); }
static weft_status run_average(const wefti_cpu_run *run) { return run_planes(run, false, average_chunk); }
static weft_status run_average_backward(const wefti_cpu_run *run) { return run_planes(run, true, average_backward_chunk); }

static bool accepts(const wefti_call *call) {
    const wefti_operand *in = &call->inputs[0], *out = &call->outputs[0];
    int64_t              most = wefti_max_i64(in->shape.dim[2] * in->shape.dim[3], out->shape.dim[2] * out->shape.dim[3]);
    if (in->dtype != WEFT_F32 || !wefti_operand_is_contiguous(in) || most > INT32_MAX || in->shape.dim[3] > ROW) return false;
    if (call->n_inputs > 1) return call->inputs[1].dtype == WEFT_I32 && wefti_operand_is_contiguous(&call->inputs[1]);
    return call->n_outputs < 2 || call->outputs[1].dtype == WEFT_I32;
}

#define POOL_KERNEL(function) {.name = "planes", .accepts = accepts, .run = function}
const wefti_cpu_kernel wefti_kernel_max_pool2d          = POOL_KERNEL(run_max);
const wefti_cpu_kernel wefti_kernel_max_pool2d_backward = POOL_KERNEL(run_max_backward);
const wefti_cpu_kernel wefti_kernel_max_pool2d_take     = POOL_KERNEL(run_take);
const wefti_cpu_kernel wefti_kernel_avg_pool2d          = POOL_KERNEL(run_average);
const wefti_cpu_kernel wefti_kernel_avg_pool2d_backward = POOL_KERNEL(run_average_backward);

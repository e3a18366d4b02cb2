/* CONV2D and its two gradients in f32, as products of packed matrices (gemm.h).
 *
 * Forward: y[image] = W columns(x[image]), W the kernel as a matrix of output channels by taps. The gradient of the input is the
 * same with g, spread by the stride, for x and the kernel turned around and transposed. The gradient of the kernel is the
 * sum over images of g[image] columns(x[image])^T. Columns are made panel by panel, straight in the packed layout, so they never
 * leave the second-level cache.
 * Bits: taps are added in blocks of at most CONV_K_BLOCK in order; the kernel's gradient is summed over WEIGHT_CHUNKS runs of images,
 * which are added in order. None of it depends on threads.
 * Cost: an image of padded planes and a block of columns a thread; WEIGHT_CHUNKS times the kernel for its gradient.
 * Winograd's algorithm is not used: it would halve the multiplications of 3x3 kernels and lose about 10 units in the last place. */
#include "core/cpu/kernels/conv.h"
#include "core/cpu/kernels/fast.h"

enum { PANELS = 8, WEIGHT_CHUNKS = 8, WEIGHT_PIXELS = 392 };

static int64_t round16(int64_t elements) { return (elements + 15) & ~INT64_C(15); }
static int64_t block_begin(const conv_plan *plan, int64_t block) { return plan->k * block / plan->k_blocks; }
static int64_t block_most(const conv_plan *plan) { return (plan->k + plan->k_blocks - 1) / plan->k_blocks; }

/* Forward and the gradient of the input. */

typedef struct product {
    const conv_plan *plan;
    const float     *source, *weights; /* weights: [groups][k blocks], packed */
    float           *y, *scratch;
    int64_t          worker_elements, padded_elements;
} product;

static int64_t columns_elements(const conv_plan *plan) { return round16(PANELS * 2 * VF * block_most(plan) + CONV_SLACK); }
static int64_t weights_elements(const conv_plan *plan) { return round16(plan->groups * plan->rows * plan->k); }

/* The columns of `count` pixels in panels, as gemm packs B. */
static void pack_columns(const conv_plan *plan, const float *padded, int64_t pixel, int64_t count, int64_t begin, int64_t end,
                         float *to) {
    enum { WIDTH = 2 * VF };
    for (int64_t at = 0; at < count; at += WIDTH) {
        int64_t n = wefti_min_i64(WIDTH, count - at), width = n > VF ? WIDTH : VF;
        float  *panel = to + at * (end - begin);
        conv_columns(plan, padded, pixel + at, n, begin, end, panel, width);
        if (n < width)
            for (int64_t k = 0; k < end - begin; k++) memset(panel + k * width + n, 0, (size_t)(width - n) * sizeof *panel);
    }
}

static void product_chunk(void *context, int64_t chunk, int32_t worker) {
    const product   *x    = context;
    const conv_plan *plan = x->plan;
    const wefti_gemm *g   = &wefti_gemm_f32_functions;
    float  *padded = x->scratch + worker * x->worker_elements, *columns = padded + x->padded_elements;
    int64_t image = chunk / plan->parts, part = chunk % plan->parts, panels = gemm_b_panels(plan->pixels, g->width);
    int64_t first = panels * part / plan->parts * g->width;
    int64_t last  = wefti_min_i64(plan->pixels, panels * (part + 1) / plan->parts * g->width);
    memset(padded, 0, (size_t)x->padded_elements * sizeof *padded);
    for (int64_t group = 0; group < plan->groups; group++) {
        conv_pad(plan, x->source, image, group, padded);
        float       *y = x->y + (image * plan->groups + group) * plan->rows * plan->pixels;
        const float *w = x->weights + group * plan->rows * plan->k;
        for (int64_t pixel = first; pixel < last; pixel += PANELS * g->width) {
            int64_t count = wefti_min_i64(PANELS * g->width, last - pixel);
            for (int64_t block = 0; block < plan->k_blocks; block++) {
                int64_t begin = block_begin(plan, block), end = block_begin(plan, block + 1);
                pack_columns(plan, padded, pixel, count, begin, end, columns);
                g->multiply(plan->rows, count, end - begin, w + begin * plan->rows, columns, y + pixel, plan->pixels, gemm_store(block > 0));
            }
        }
    }
}

/* The kernel turned around, with input channels for rows: to[group][c][(o, i, j)] = w[group, o][c][kh-1-i][kw-1-j]. */
static void turn_around(const conv_plan *plan, const float *w, float *to) {
    int64_t area = plan->kernel[0] * plan->kernel[1];
    for (int64_t group = 0; group < plan->groups; group++)
        for (int64_t o = 0; o < plan->channels; o++)
            for (int64_t c = 0; c < plan->rows; c++) {
                const float *from = w + ((group * plan->channels + o) * plan->rows + c) * area;
                float       *into = to + (group * plan->rows + c) * plan->k + o * area;
                for (int64_t i = 0; i < area; i++) into[i] = from[area - 1 - i];
            }
}

static void pack_weights(const conv_plan *plan, const float *w, float *packed) {
    for (int64_t group = 0; group < plan->groups; group++)
        for (int64_t block = 0; block < plan->k_blocks; block++) {
            int64_t      begin = block_begin(plan, block), end = block_begin(plan, block + 1);
            const float *from = w + group * plan->rows * plan->k + begin;
            wefti_gemm_f32_functions.pack_a(from, plan->k, 1, plan->rows, end - begin, 0, gemm_a_panels(plan->rows),
                                            packed + group * plan->rows * plan->k + begin * plan->rows);
        }
}

static int64_t product_scratch(const wefti_call *call, int32_t threads) {
    conv_plan plan;
    conv_plan_of(call, &plan, false);
    int64_t turned = call->op == WEFT_OP_CONV2D_BACKWARD_INPUT ? weights_elements(&plan) : 0;
    return 4 * (weights_elements(&plan) + turned + threads * (round16(plan.padded_elements) + columns_elements(&plan)));
}

static weft_status run_product(const wefti_cpu_run *run) {
    const conv_plan *plan = run->prepared;
    product x = {.plan = plan, .source = run->inputs[0], .y = run->outputs[0], .padded_elements = round16(plan->padded_elements)};
    float       *packed = run->scratch, *rest = packed + weights_elements(plan);
    const float *w = run->inputs[1];
    if (run->call->op == WEFT_OP_CONV2D_BACKWARD_INPUT) {
        turn_around(plan, w, rest);
        w = rest;
        rest += weights_elements(plan);
    }
    pack_weights(plan, w, packed);
    x.weights         = packed;
    x.scratch         = rest;
    x.worker_elements = x.padded_elements + columns_elements(plan);
    if (plan->k == 0) memset(x.y, 0, (size_t)(plan->images * plan->groups * plan->rows * plan->pixels) * sizeof *x.y);
    else wefti_cpu_for(run, plan->images * plan->parts, product_chunk, &x);
    return WEFT_OK;
}

/* The gradient of the kernel. */

typedef struct weight_product {
    const conv_plan *plan;
    const float     *x, *g;
    const int64_t   *g_stride;
    float           *scratch, *sums, *out;
    int64_t          chunks, elements; /* of the kernel */
} weight_product;

static int64_t weight_pixels(const conv_plan *plan) { return wefti_min_i64(plan->pixels, WEIGHT_PIXELS); }
static int64_t unrolled_elements(const conv_plan *plan) { return round16(plan->k * weight_pixels(plan) + CONV_SLACK); }
static int64_t packed_g_elements(const conv_plan *plan) { return round16(plan->rows * weight_pixels(plan)); }
static int64_t weight_worker_elements(const conv_plan *plan) {
    return round16(plan->padded_elements) + unrolled_elements(plan) + packed_g_elements(plan) +
           round16(gemm_b_elements(plan->k, weight_pixels(plan), 2 * VF));
}

static void weight_chunk(void *context, int64_t chunk, int32_t worker) {
    const weight_product *x    = context;
    const conv_plan      *plan = x->plan;
    const wefti_gemm     *g    = &wefti_gemm_f32_functions;
    float *padded   = x->scratch + worker * weight_worker_elements(plan);
    float *unrolled = padded + round16(plan->padded_elements), *packed_g = unrolled + unrolled_elements(plan);
    float *packed_x = packed_g + packed_g_elements(plan), *sum = x->sums + chunk * x->elements;
    memset(padded, 0, (size_t)plan->padded_elements * sizeof *padded);
    bool add = false;
    for (int64_t image = plan->images * chunk / x->chunks; image < plan->images * (chunk + 1) / x->chunks; image++, add = true)
        for (int64_t group = 0; group < plan->groups; group++) {
            conv_pad(plan, x->x, image, group, padded);
            const float *gradient = x->g + (image * plan->groups + group) * plan->rows * plan->pixels;
            for (int64_t pixel = 0; pixel < plan->pixels; pixel += WEIGHT_PIXELS) {
                int64_t count = wefti_min_i64(WEIGHT_PIXELS, plan->pixels - pixel);
                conv_columns(plan, padded, pixel, count, 0, plan->k, unrolled, count);
                g->pack_b(unrolled, count, 1, plan->k, count, 0, gemm_b_panels(plan->k, g->width), packed_x);
                float *to = sum + group * plan->rows * plan->k;
                if (gemm_reads_rows(plan->pixels, 1, sizeof *to)) {
                    g->multiply_rows(plan->rows, plan->k, count, gradient + pixel, plan->pixels, packed_x, to, plan->k, gemm_store(add || pixel > 0));
                    continue;
                }
                g->pack_a(gradient + pixel, plan->pixels, 1, plan->rows, count, 0, gemm_a_panels(plan->rows), packed_g);
                g->multiply(plan->rows, plan->k, count, packed_g, packed_x, to, plan->k, gemm_store(add || pixel > 0));
            }
        }
}

enum { SUM_ELEMENTS = 8192 };
static void sum_chunk(void *context, int64_t chunk, int32_t worker) {
    (void)worker;
    const weight_product *x   = context;
    int64_t               end = wefti_min_i64((chunk + 1) * SUM_ELEMENTS, x->elements);
    for (int64_t i = chunk * SUM_ELEMENTS; i < end; i++) {
        float sum = x->sums[i];
        for (int64_t part = 1; part < x->chunks; part++) sum += x->sums[part * x->elements + i];
        x->out[i] = sum;
    }
}

static int64_t weight_chunks(const conv_plan *plan) { return wefti_max_i64(1, wefti_min_i64(WEIGHT_CHUNKS, plan->images)); }

static int64_t weight_scratch(const wefti_call *call, int32_t threads) {
    conv_plan plan;
    conv_plan_of(call, &plan, false);
    return 4 * (weight_chunks(&plan) * round16(plan.groups * plan.rows * plan.k) + threads * weight_worker_elements(&plan));
}

static weft_status run_weight(const wefti_cpu_run *run) {
    const conv_plan *plan = run->prepared;
    weight_product   x = {.plan = plan, .g = run->inputs[0], .x = run->inputs[1], .sums = run->scratch, .out = run->outputs[0]};
    x.chunks   = weight_chunks(plan);
    x.elements = plan->groups * plan->rows * plan->k;
    x.scratch  = x.sums + x.chunks * round16(x.elements);
    if (plan->images == 0 || plan->pixels == 0) {
        memset(x.out, 0, (size_t)x.elements * sizeof *x.out);
        return WEFT_OK;
    }
    wefti_cpu_for(run, x.chunks, weight_chunk, &x);
    wefti_cpu_for(run, wefti_cpu_chunks(x.elements, SUM_ELEMENTS), sum_chunk, &x);
    return WEFT_OK;
}

/* f32, with what is read as a matrix in row-major order; taps within reach of 32 bits. */
static bool accepts(const wefti_call *call) {
    if (call->inputs[0].dtype != WEFT_F32) return false;
    conv_plan plan;
    conv_plan_of(call, &plan, false);
    bool to_weight = call->op == WEFT_OP_CONV2D_BACKWARD_WEIGHT;
    return plan.padded_elements < INT32_MAX && wefti_operand_is_contiguous(&call->inputs[to_weight ? 0 : 1]);
}

static size_t prepared_bytes(const wefti_call *call) {
    conv_plan plan;
    conv_plan_of(call, &plan, false);
    return sizeof(conv_plan) + (size_t)plan.k * sizeof(int32_t);
}
static weft_status prepare(const wefti_call *call, int32_t threads, void *prepared) {
    (void)threads;
    conv_plan_of(call, prepared, true);
    return WEFT_OK;
}

const wefti_cpu_kernel wefti_kernel_conv = {.name = "columns", .accepts = accepts, .scratch = product_scratch,
                                            .prepared_bytes = prepared_bytes, .prepare = prepare, .run = run_product};
const wefti_cpu_kernel wefti_kernel_conv_weight = {.name = "columns", .accepts = accepts, .scratch = weight_scratch,
                                                   .prepared_bytes = prepared_bytes, .prepare = prepare, .run = run_weight};

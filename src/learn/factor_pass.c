/* Going round, and one epoch of DSGD: as many steps as there are blocks; in each, every row block meets one column block, then column blocks move on by one row block.
 *
 * In step s row block b has column block (b + s) mod blocks. Only what a rank's first row block had crosses to another rank, the one before; so a rank computes
 * with its first row block first, and that one's columns travel while it computes with the others, as do those that its last row block needs next.
 * Invariant: at the beginning and end of a pass, slot b has column block first_block + b. */
#include <string.h>

#include "core/iface/host.h"
#include "core/tensor/philox.h"
#include "learn/factor.h"
#include "weft/batch.h"

typedef float lanes __attribute__((vector_size(32)));
enum { LANES = 8, CHUNK = 4096 /* ratings between looks at what travels: some 100 us */ };

static uint64_t now_ns(void) { return wefti_host_now(wefti_host_system()); }

static float sum_of(const lanes *v) {
    const float *x = (const float *)v;
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

/* A step for each rating, along the gradient of its part of the objective; gives the sum of squared errors before them. */
static double descend(wefti_factor_run *run, int64_t begin, int64_t end, float *columns, int64_t first) {
    int32_t      stride = run->f->stride;
    float        rate = run->rate;
    const float *column_decay = run->column_decay + first;
    double       sum = 0;
    for (int64_t e = begin; e < end; e++) {
        const wefti_rating *rating = run->ratings + e;
        lanes *w = (lanes *)(run->f->row_values + (int64_t)rating->row * stride), *h = (lanes *)(columns + (int64_t)rating->column * stride);
        lanes  products = {0};
        for (int32_t i = 0; i < stride / LANES; i++) products += w[i] * h[i];
        float error = rating->value - sum_of(&products), step = rate * error;
        float w_keep = 1 - rate * run->row_decay[rating->row], h_keep = 1 - rate * column_decay[rating->column];
        for (int32_t i = 0; i < stride / LANES; i++) {
            lanes old = w[i];
            w[i] = old * w_keep + h[i] * step;
            h[i] = h[i] * h_keep + old * step;
        }
        if (run->residual) run->residual[e] = error;
        sum += (double)error * error;
    }
    return sum;
}

/* --- what travels --- */

typedef struct travel {
    weft_operation *sending, *receiving;
} travel;

static weft_status look_in(weft_operation **operation) {
    weft_status status = *operation ? weft_operation_test(*operation) : WEFT_OK;
    if (status == WEFT_E_AGAIN) return WEFT_OK;
    *operation = NULL;
    return status;
}

static weft_status await(weft_operation **operation) {
    weft_status status = *operation ? weft_operation_wait(*operation, 0) : WEFT_OK;
    *operation = NULL;
    return status;
}

static int64_t columns_of(const weft_factors *f, int32_t block, int64_t *first_out) {
    int64_t count;
    weft_batch_share(f->columns, block, f->blocks, first_out, &count);
    return count;
}

static weft_status move(wefti_factor_run *run, weft_call_kind kind, float *values, int32_t width, int32_t block, weft_operation **operation_out) {
    weft_factors *f = run->f;
    int64_t       first;
    size_t        count = (size_t)(columns_of(f, block, &first) * width);
    bool          sends = kind == WEFT_CALL_SEND;
    weft_call     call = {.kind = kind, .dtype = WEFT_F32, .root = (f->rank + (sends ? f->ranks - 1 : 1)) % f->ranks, .send = values, .receive = values,
                          .count = count};
    if (sends) run->report.sent_bytes += count * sizeof *values;
    return weft_group_start(f->group, &call, operation_out);
}

/* --- steps --- */

static weft_status compute(wefti_factor_run *run, int32_t b, int32_t block, float *columns, wefti_visit visit, travel *on_the_way) {
    const weft_factors *f = run->f;
    const int64_t      *pair = run->start + (int64_t)b * f->blocks + block;
    int64_t             first;
    uint64_t            begin = now_ns();
    (void)columns_of(f, block, &first);
    for (int64_t e = pair[0]; e < pair[1]; e += CHUNK) {
        run->errors[2 * b] += visit(run, e, wefti_min_i64(e + CHUNK, pair[1]), columns, first);
        WEFTI_TRY(look_in(&on_the_way->sending));
        WEFTI_TRY(look_in(&on_the_way->receiving));
    }
    run->report.compute_ns += now_ns() - begin;
    return WEFT_OK;
}

/* Column blocks move on: what the first row block had goes away, the last one has what came. */
static void rotate(float **slot, int32_t slots) {
    float *first = slot[0];
    memmove(slot, slot + 1, (size_t)(slots - 1) * sizeof *slot);
    slot[slots - 1] = first;
}

static weft_status step(wefti_factor_run *run, int32_t s, wefti_ring *ring, wefti_visit visit, travel *on_the_way) {
    weft_factors *f = run->f;
    if (f->ranks > 1)
        WEFTI_TRY(move(run, WEFT_CALL_RECEIVE, ring->slot[f->own], ring->width, (f->first_block + f->own + s) % f->blocks, &on_the_way->receiving));
    for (int32_t b = 0; b < f->own; b++) {
        int32_t block = (f->first_block + b + s) % f->blocks;
        WEFTI_TRY(compute(run, b, block, ring->slot[b], visit, on_the_way));
        if (b == 0 && f->ranks > 1) WEFTI_TRY(move(run, WEFT_CALL_SEND, ring->slot[0], ring->width, block, &on_the_way->sending));
    }
    uint64_t begin = now_ns();
    WEFTI_TRY(await(&on_the_way->receiving));
    WEFTI_TRY(await(&on_the_way->sending));
    run->report.wait_ns += now_ns() - begin;
    rotate(ring->slot, f->slots);
    return WEFT_OK;
}

weft_status wefti_factor_round(wefti_factor_run *run, wefti_ring *ring, wefti_visit visit) {
    travel on_the_way = {0}; /* where a step fails, the group's release ends them */
    memset(run->errors, 0, (size_t)run->f->own * 2 * sizeof *run->errors);
    for (int32_t s = 0; s < run->f->blocks; s++) WEFTI_TRY(step(run, s, ring, visit, &on_the_way));
    return WEFT_OK;
}

static double norm_of(const float *values, int64_t count, int32_t stride, const double *weight) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
        double square = 0;
        for (int32_t k = 0; k < stride; k++) square += (double)values[i * stride + k] * values[i * stride + k];
        sum += weight[i] * square;
    }
    return sum;
}

double wefti_factor_norms(const wefti_factor_run *run, int32_t b) {
    const weft_factors *f = run->f;
    int64_t             first, count, columns;
    weft_batch_share(f->rows, f->first_block + b, f->blocks, &first, &count);
    first -= f->first_row;
    double rows = norm_of(f->row_values + first * f->stride, count, f->stride, run->row_weight + first);
    columns = columns_of(f, f->first_block + b, &first);
    return rows + norm_of(f->slot[b], columns, f->stride, run->row_weight + f->row_count + first);
}

weft_status wefti_factor_total(wefti_factor_run *run, double total_out[2]) {
    const weft_factors *f = run->f;
    WEFTI_TRY(weft_group_allgather(f->group, run->errors, run->sums, (size_t)f->own * 2, WEFT_F64));
    total_out[0] = total_out[1] = 0;
    for (int32_t b = 0; b < 2 * f->blocks; b++) total_out[b % 2] += run->sums[b];
    return WEFT_OK;
}

weft_status wefti_factor_pass(wefti_factor_run *run, float rate, double *squares_out, double *norms_out) {
    const weft_factors *f = run->f;
    wefti_ring          ring = {f->slot, f->stride};
    double              total[2];
    run->rate = rate;
    WEFTI_TRY(wefti_factor_round(run, &ring, descend));
    for (int32_t b = 0; b < f->own; b++) run->errors[2 * b + 1] = wefti_factor_norms(run, b);
    WEFTI_TRY(wefti_factor_total(run, total));
    *squares_out = total[0];
    *norms_out = total[1];
    return WEFT_OK;
}

/* --- the start --- */

static void draw(float *values, int64_t first, int64_t count, const weft_factors *f, uint64_t seed, uint64_t stream, double scale) {
    for (int64_t i = 0; i < count; i++)
        for (int32_t k = 0; k < f->stride; k++)
            values[i * f->stride + k] =
                k < f->factors ? (float)(scale * wefti_random_normal(seed, stream, (first + i) * f->factors + k, WEFT_F32)) : 0;
}

void wefti_factor_draw(weft_factors *f, uint64_t seed, double scale) {
    draw(f->row_values, f->first_row, f->row_count, f, seed, 1, scale);
    for (int32_t b = 0; b < f->own; b++) {
        int64_t first, count = columns_of(f, f->first_block + b, &first);
        draw(f->slot[b], first, count, f, seed, 2, scale);
    }
}

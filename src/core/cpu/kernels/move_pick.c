/* GATHER and SCATTER_ADD along an axis whose slices are contiguous, embeddings first of all.
 *
 * GATHER copies a slice for every pick. SCATTER_ADD first sorts the picks by the row that they land on (a counting
 * sort, stable, so that each row adds in the order of the picks), then writes every row of the result once, its sum
 * kept in f64: threads share rows and never meet, and rows that nothing lands on are copied. Cost of SCATTER_ADD: 4
 * bytes of scratch a pick and a row, and each element read and written once. */
#include "core/cpu/kernels/fast.h"
#include "core/cpu/kernels/simd.h"

enum { GRAIN = 16384, COLUMNS = 256 };

typedef struct pick {
    const wefti_cpu_run *run;
    int64_t              outer, extent, picks, inner; /* x is outer x extent x inner */
    int64_t              per_chunk;
    int32_t             *first, *order; /* scatter: row r's picks are order[first[r] .. first[r + 1]) */
} pick;

static pick pick_of(const wefti_call *call) {
    const wefti_operand *x = &call->inputs[0];
    int32_t              axis = call->attrs->axis.axis;
    pick p = {.outer = 1, .extent = x->shape.dim[axis], .picks = wefti_operand_elements(&call->inputs[1]), .inner = 1};
    for (int32_t i = 0; i < x->shape.rank; i++)
        if (i != axis) *(i < axis ? &p.outer : &p.inner) *= x->shape.dim[i];
    return p;
}

static bool accepts_gather(const wefti_call *call) {
    return wefti_operand_is_contiguous(&call->inputs[0]) && wefti_operand_is_contiguous(&call->inputs[1]);
}

static inline int64_t pick_at(const wefti_cpu_run *run, int64_t i) {
    return run->call->inputs[1].dtype == WEFT_I32 ? ((const int32_t *)run->inputs[1])[i]
                                                  : ((const int64_t *)run->inputs[1])[i];
}

static void gather_chunk(void *context, int64_t chunk, int32_t worker) {
    const pick *p = context;
    size_t      bytes = (size_t)p->inner * weft_dtype_bytes(p->run->call->inputs[0].dtype);
    int64_t     end = wefti_min_i64((chunk + 1) * p->per_chunk, p->outer * p->picks);
    (void)worker;
    for (int64_t i = chunk * p->per_chunk; i < end; i++) {
        int64_t at = pick_at(p->run, i % p->picks);
        char   *to = (char *)p->run->outputs[0] + i * (int64_t)bytes;
        if (at < 0 || at >= p->extent) memset(to, 0, bytes);
        else memcpy(to, (const char *)p->run->inputs[0] + (i / p->picks * p->extent + at) * (int64_t)bytes, bytes);
    }
}

static weft_status run_gather(const wefti_cpu_run *run) {
    pick p = pick_of(run->call);
    p.run = run;
    p.per_chunk = wefti_max_i64(1, GRAIN / p.inner);
    wefti_cpu_for(run, wefti_cpu_chunks(p.outer * p.picks, p.per_chunk), gather_chunk, &p);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_kernel_gather = {.name = "gather", .accepts = accepts_gather, .run = run_gather};

/* x may be strided or one repeated number (a gradient starts from zeros that take no memory). */
static bool accepts_scatter(const wefti_call *call) {
    pick p = pick_of(call);
    return weft_dtype_is_float(call->inputs[0].dtype) && wefti_operand_is_contiguous(&call->inputs[1]) &&
           wefti_operand_is_contiguous(&call->inputs[2]) && p.picks < INT32_MAX && p.extent < INT32_MAX;
}

static int64_t scatter_scratch(const wefti_call *call, int32_t threads) {
    pick p = pick_of(call);
    (void)threads;
    return (p.extent + 1 + p.picks) * (int64_t)sizeof(int32_t);
}

static void sort_picks(const pick *p) {
    int32_t *first = p->first;
    memset(first, 0, (size_t)(p->extent + 1) * sizeof *first);
    for (int64_t i = 0; i < p->picks; i++) {
        int64_t at = pick_at(p->run, i);
        if (at >= 0 && at < p->extent) first[at]++;
    }
    int32_t begin = 0;
    for (int64_t r = 0; r <= p->extent; r++) {
        int32_t here = first[r];
        first[r] = begin;
        begin += here;
    }
    for (int64_t i = 0; i < p->picks; i++) {
        int64_t at = pick_at(p->run, i);
        if (at >= 0 && at < p->extent) p->order[first[at]++] = (int32_t)i;
    }
    /* Each start has moved on to the next row's: move them back. */
    for (int64_t r = p->extent; r > 0; r--) first[r] = first[r - 1];
    first[0] = 0;
}

WEFTI_INLINE void add_slice(double *sums, const void *from, int64_t at, int64_t count, weft_dtype dtype) {
    for (int64_t j = 0; j < count; j++) sums[j] += wefti_load_f64(from, at + j, dtype);
}

static void scatter_row(const pick *p, int64_t row, weft_dtype dtype) {
    const wefti_cpu_run *run = p->run;
    const wefti_operand *x = &run->call->inputs[0];
    int64_t              outer = row / p->extent, at = row % p->extent;
    wefti_walk           walk;
    wefti_walk_start(&walk, x->shape, x->stride, row * p->inner);
    for (int64_t begin = 0; begin < p->inner; begin += COLUMNS) {
        int64_t count = wefti_min_i64(COLUMNS, p->inner - begin);
        double  sums[COLUMNS];
        for (int64_t j = 0; j < count; j++) {
            sums[j] = wefti_load_f64(run->inputs[0], walk.offset, dtype);
            wefti_walk_advance(&walk, 1);
        }
        for (int32_t i = p->first[at]; i < p->first[at + 1]; i++) {
            int64_t from = (outer * p->picks + p->order[i]) * p->inner + begin;
            if (dtype == WEFT_F32) add_slice(sums, run->inputs[2], from, count, WEFT_F32);
            else if (dtype == WEFT_F64) add_slice(sums, run->inputs[2], from, count, WEFT_F64);
            else add_slice(sums, run->inputs[2], from, count, dtype);
        }
        for (int64_t j = 0; j < count; j++)
            wefti_store_f64(run->outputs[0], row * p->inner + begin + j, dtype, sums[j]);
    }
}

static void scatter_chunk(void *context, int64_t chunk, int32_t worker) {
    const pick *p = context;
    int64_t     end = wefti_min_i64((chunk + 1) * p->per_chunk, p->outer * p->extent);
    (void)worker;
    for (int64_t row = chunk * p->per_chunk; row < end; row++) scatter_row(p, row, p->run->call->inputs[0].dtype);
}

static weft_status run_scatter_add(const wefti_cpu_run *run) {
    pick p = pick_of(run->call);
    p.run = run;
    p.first = run->scratch;
    p.order = p.first + p.extent + 1;
    /* Rows may get very unequal numbers of picks: few rows a chunk. */
    p.per_chunk = wefti_max_i64(1, GRAIN / 8 / p.inner);
    sort_picks(&p);
    wefti_cpu_for(run, wefti_cpu_chunks(p.outer * p.extent, p.per_chunk), scatter_chunk, &p);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_kernel_scatter_add = {
    .name = "scatter-add", .accepts = accepts_scatter, .scratch = scatter_scratch, .run = run_scatter_add};

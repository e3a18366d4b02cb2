/* MATMUL by packed tiles (gemm.h).
 *
 * Idea: the smaller operand is packed whole, by all threads; the other is cut into blocks that one chunk packs for itself, in
 * a piece of its second-level cache, and multiplies at once. A whose rows (or columns) lie well in memory is not packed at
 * all: the tile kernels read it where it is. k is cut into blocks of at most K_BLOCK, the same for every shape with that k,
 * and C is added up over them: the bits follow from k alone.
 * Batches: a second operand shared by the whole batch makes the batch more rows; many batches are a chunk each; few are done
 * one after the other, each by all threads. f16 and bf16 are widened to f32 first and the result is rounded once.
 * Cost: scratch for one packed operand, one block a thread, and f32 copies of 16-bit operands.
 *
 * Why not a BLAS: at most shapes of the yardstick networks OpenBLAS 0.3.21 and BLIS 0.9 are the slower, on one thread;
 * `bench/peers/run.sh gemm` shows all three in one run (products with very few columns are the exception). */
#include "core/base/stream.h"
#include "core/cpu/kernels/convert.h"
#include "core/cpu/kernels/fast.h"
#include "core/cpu/kernels/gemm.h"

enum { K_BLOCK = 400, ROW_BLOCK = 84, COLUMN_PANELS = 4, BLOCKS_EVEN = 4 };
/* Below this many multiplications another thread is not worth its waking. */
enum { PARALLEL_FROM = 1 << 19 };

typedef struct view {
    const char *data;
    int64_t     outer, inner; /* strides in elements: along rows (columns) and along k */
} view;

/* One product of two matrices, or a batch of them. */
typedef struct product {
    const wefti_gemm *gemm;
    weft_dtype        dtype;
    int64_t           m, n, k, batches, k_blocks;
    bool              pack_b_whole; /* else A is */
    bool              a_as_is;      /* not packed at all */
    bool              b_as_is;      /* packed by the tiles that read it first, where it is not packed whole */
    bool              stream;       /* peers load C, which is whole cache lines and written once */
    int64_t           blocks;       /* of the other operand */
    int64_t           whole_elements, block_elements;
    int64_t           a_outer, a_inner, b_outer, b_inner;
    int32_t           batch_rank;
    weft_shape        batch;
    int64_t           a_batch[WEFT_MAX_RANK], b_batch[WEFT_MAX_RANK];
} product;

static int64_t k_begin(const product *p, int64_t block) { return p->k * block / p->k_blocks; }

/* The batch becomes rows where b is the same for all of it and a's rows follow each other evenly through it. */
static void merge_batch(product *p) {
    int64_t stride = p->a_outer * p->m;
    for (int32_t axis = p->batch_rank - 1; axis >= 0; axis--) {
        if (p->batch.dim[axis] == 1) continue;
        if (p->b_batch[axis] != 0 || p->a_batch[axis] != stride) return;
        stride *= p->batch.dim[axis];
    }
    p->m *= p->batches;
    p->batches    = 1;
    p->batch_rank = 0;
}

static void plan_blocks(product *p) {
    int64_t width   = p->gemm->width;
    p->k_blocks     = p->k > 0 ? (p->k + K_BLOCK - 1) / K_BLOCK : 1;
    int64_t k_most  = (p->k + p->k_blocks - 1) / p->k_blocks;
    int64_t a_panels = gemm_a_panels(p->m), b_panels = gemm_b_panels(p->n, width);
    p->pack_b_whole = 2 * p->m >= p->n; /* cut by rows if need be: that is how solvers read gradients, thread by thread */
    int64_t panels  = p->pack_b_whole ? a_panels : b_panels;
    int64_t most    = p->pack_b_whole ? ROW_BLOCK / WEFTI_GEMM_ROWS : COLUMN_PANELS;
    p->blocks       = (panels + most - 1) / most;
    if (p->m * p->n * p->k >= PARALLEL_FROM) /* an even number of blocks, so that two or four threads end together */
        p->blocks = wefti_min_i64(panels, (p->blocks + BLOCKS_EVEN - 1) / BLOCKS_EVEN * BLOCKS_EVEN);
    if (p->pack_b_whole) {
        p->whole_elements = gemm_b_elements(p->n, p->k, width);
        p->block_elements = p->a_as_is ? 0 : (p->m + p->blocks - 1) / p->blocks * k_most;
    } else {
        p->whole_elements = p->a_as_is ? 0 : p->m * p->k;
        p->block_elements = (panels + p->blocks - 1) / p->blocks * width * k_most;
    }
    p->whole_elements = (p->whole_elements + 15) & ~INT64_C(15);
    p->block_elements = (p->block_elements + 15) & ~INT64_C(15);
}

static product plan(const wefti_call *call) {
    const wefti_operand *a = &call->inputs[0], *b = &call->inputs[1], *c = &call->outputs[0];
    product  p = {.dtype = a->dtype};
    int32_t  ra = a->shape.rank, rb = b->shape.rank, rc = c->shape.rank;
    int32_t  ta = call->attrs->matmul.trans_a, tb = call->attrs->matmul.trans_b;
    p.gemm    = a->dtype == WEFT_F64 ? &wefti_gemm_f64_functions : &wefti_gemm_f32_functions;
    p.m       = c->shape.dim[rc - 2];
    p.n       = c->shape.dim[rc - 1];
    p.k       = a->shape.dim[ta ? ra - 2 : ra - 1];
    p.a_outer = a->stride[ta ? ra - 1 : ra - 2];
    p.a_inner = a->stride[ta ? ra - 2 : ra - 1];
    p.b_outer = b->stride[tb ? rb - 2 : rb - 1];
    p.b_inner = b->stride[tb ? rb - 1 : rb - 2];
    p.a_as_is = gemm_reads_rows(p.a_outer, p.a_inner, p.gemm->element_bytes);
    p.b_as_is = p.b_outer == 1 && p.b_inner > 0;
    p.batches = 1;
    p.batch   = weft_shape_of(rc - 2, c->shape.dim);
    p.batch_rank = rc - 2;
    wefti_operand batch_a = *a, batch_b = *b;
    batch_a.shape.rank = ra - 2;
    batch_b.shape.rank = rb - 2;
    wefti_operand_expand(&batch_a, p.batch, p.a_batch);
    wefti_operand_expand(&batch_b, p.batch, p.b_batch);
    p.batches = weft_shape_elements(p.batch);
    merge_batch(&p);
    plan_blocks(&p);
    p.stream = c->peers_load && c->dtype == p.dtype && p.k_blocks == 1 && p.n * p.gemm->element_bytes % WEFTI_CACHE_LINE == 0 &&
               p.gemm->width * p.gemm->element_bytes % WEFTI_CACHE_LINE == 0;
    return p;
}

typedef struct multiplication {
    const product *p;
    const char    *a, *b;
    char          *c;
    char          *whole, *block; /* packed operands */
    int64_t        a_offset, b_offset, c_offset;
    int64_t        batches_per_chunk;
    int64_t        kept_begin, kept_end; /* bytes of C */
} multiplication;

static view part(const char *data, int64_t offset, int64_t outer, int64_t inner) { return (view){data + offset, outer, inner}; }

/* Packs k block `chunk % k_blocks` of one of PACK_PARTS parts of the panels of the operand that is packed whole. */
enum { PACK_PARTS = 4 };
static void pack_whole(void *context, int64_t chunk, int32_t worker) {
    (void)worker;
    const multiplication *x = context;
    const product        *p = x->p;
    int64_t bytes = p->gemm->element_bytes, block = chunk / PACK_PARTS, index = chunk % PACK_PARTS;
    int64_t k0 = k_begin(p, block), k = k_begin(p, block + 1) - k0;
    if (p->pack_b_whole) {
        int64_t panels = gemm_b_panels(p->n, p->gemm->width);
        p->gemm->pack_b(x->b + (x->b_offset + k0 * p->b_inner) * bytes, p->b_outer, p->b_inner, p->n, k,
                        panels * index / PACK_PARTS, panels * (index + 1) / PACK_PARTS,
                        x->whole + k0 * panels * p->gemm->width * bytes);
    } else if (!p->a_as_is) {
        int64_t panels = gemm_a_panels(p->m);
        p->gemm->pack_a(x->a + (x->a_offset + k0 * p->a_inner) * bytes, p->a_outer, p->a_inner, p->m, k,
                        panels * index / PACK_PARTS, panels * (index + 1) / PACK_PARTS, x->whole + k0 * p->m * bytes);
    }
}

static bool is_kept(const multiplication *x, const char *c, int64_t bytes) {
    return c - x->c >= x->kept_begin && c - x->c + bytes <= x->kept_end;
}

/* A block of rows times all of B, or all of A times a block of columns. */
static void multiply_block(void *context, int64_t chunk, int32_t worker) {
    const multiplication *x = context;
    const product        *p = x->p;
    const wefti_gemm     *g = p->gemm;
    int64_t bytes = g->element_bytes, width = g->width, all_panels = gemm_b_panels(p->n, width);
    char   *packed = x->block + worker * p->block_elements * bytes;
    int64_t row = 0, rows = p->m, column = 0, columns = p->n;
    if (p->pack_b_whole) {
        row  = p->m * chunk / p->blocks;
        rows = p->m * (chunk + 1) / p->blocks - row;
    } else {
        column  = all_panels * chunk / p->blocks * width;
        columns = wefti_min_i64(all_panels * (chunk + 1) / p->blocks * width, p->n) - column;
    }
    view a = part(x->a, (x->a_offset + row * p->a_outer) * bytes, p->a_outer, p->a_inner);
    view b = part(x->b, (x->b_offset + column * p->b_outer) * bytes, p->b_outer, p->b_inner);
    char *c = x->c + (x->c_offset + row * p->n + column) * bytes;
    bool  stream = p->stream && (uintptr_t)c % WEFTI_CACHE_LINE == 0 && !is_kept(x, c, ((rows - 1) * p->n + columns) * bytes);
    for (int64_t block = 0; block < p->k_blocks; block++) {
        wefti_gemm_store how = stream ? GEMM_STREAM : gemm_store(block > 0);
        int64_t k0 = k_begin(p, block), k = k_begin(p, block + 1) - k0;
        const char *pa = a.data + k0 * a.inner * bytes, *pb = b.data + k0 * b.inner * bytes;
        if (p->pack_b_whole && !p->a_as_is) {
            g->pack_a(pa, a.outer, a.inner, rows, k, 0, gemm_a_panels(rows), packed);
            pa = packed;
        } else if (!p->a_as_is) {
            pa = x->whole + k0 * p->m * bytes;
        }
        if (!p->pack_b_whole && p->b_as_is) {
            g->multiply_packing(rows, columns, k, pa, p->a_as_is ? p->a_outer : 0, pb, p->b_inner, packed, c, p->n, how);
            continue;
        }
        if (!p->pack_b_whole) g->pack_b(pb, b.outer, b.inner, columns, k, 0, gemm_b_panels(columns, width), packed);
        pb = p->pack_b_whole ? x->whole + k0 * all_panels * width * bytes : packed;
        if (p->a_as_is) g->multiply_rows(rows, columns, k, pa, p->a_outer, pb, c, p->n, how);
        else g->multiply(rows, columns, k, pa, pb, c, p->n, how);
    }
    if (stream) wefti_stream_fence();
}

static void seek_batch(multiplication *x, int64_t batch) {
    wefti_walk a, b;
    wefti_walk_start(&a, x->p->batch, x->p->a_batch, batch);
    wefti_walk_start(&b, x->p->batch, x->p->b_batch, batch);
    x->a_offset = x->p->batch_rank > 0 ? a.offset : 0;
    x->b_offset = x->p->batch_rank > 0 ? b.offset : 0;
    x->c_offset = batch * x->p->m * x->p->n;
}

/* Whole products of the batch, on one thread. */
static void multiply_batches(void *context, int64_t chunk, int32_t worker) {
    const multiplication *all = context;
    const product        *p   = all->p;
    multiplication        x   = *all;
    x.whole += worker * p->whole_elements * p->gemm->element_bytes;
    int64_t end = wefti_min_i64((chunk + 1) * x.batches_per_chunk, p->batches);
    for (int64_t batch = chunk * x.batches_per_chunk; batch < end; batch++) {
        seek_batch(&x, batch);
        for (int64_t index = 0; index < p->k_blocks * PACK_PARTS; index++) pack_whole(&x, index, 0);
        for (int64_t block = 0; block < p->blocks; block++) multiply_block(&x, block, worker);
    }
}

static bool by_batches(const product *p) { return p->batches >= 8; }

static void multiply_all(const wefti_cpu_run *run, const product *p, const void *a, const void *b, void *c, char *scratch) {
    int64_t bytes  = p->gemm->element_bytes;
    int64_t wholes = by_batches(p) ? run->threads : 1;
    multiplication x = {.p = p, .a = a, .b = b, .c = c, .whole = scratch, .kept_begin = run->call->outputs[0].kept_begin,
                        .kept_end = run->call->outputs[0].kept_end};
    x.block = scratch + wholes * p->whole_elements * bytes;
    int64_t work = p->m * p->n * p->k;
    if (p->k == 0) {
        memset(c, 0, (size_t)(p->batches * p->m * p->n * bytes));
    } else if (by_batches(p)) {
        x.batches_per_chunk = work >= PARALLEL_FROM ? 1 : PARALLEL_FROM / wefti_max_i64(work, 1);
        wefti_cpu_for(run, wefti_cpu_chunks(p->batches, x.batches_per_chunk), multiply_batches, &x);
    } else {
        for (int64_t batch = 0; batch < p->batches; batch++) {
            seek_batch(&x, batch);
            if (work < PARALLEL_FROM) {
                for (int64_t index = 0; index < p->k_blocks * PACK_PARTS; index++) pack_whole(&x, index, 0);
                for (int64_t block = 0; block < p->blocks; block++) multiply_block(&x, block, 0);
            } else {
                wefti_cpu_for(run, p->k_blocks * PACK_PARTS, pack_whole, &x);
                wefti_cpu_for(run, p->blocks, multiply_block, &x);
            }
        }
    }
}

/* 16-bit operands: an f32 copy of each, in row-major order, and of the result. */
typedef struct widening {
    const wefti_operand *operand;
    const uint16_t      *from;
    float               *to;
    int64_t              stride[WEFT_MAX_RANK], rows, length; /* of the last axis */
} widening;
enum { WIDEN_ELEMENTS = 1 << 14 };

static int64_t rows_per_chunk(int64_t length) { return wefti_max_i64(1, WIDEN_ELEMENTS / wefti_max_i64(length, 1)); }

static void widen_rows(void *context, int64_t chunk, int32_t worker) {
    (void)worker;
    const widening *w    = context;
    int64_t         step = w->stride[w->operand->shape.rank - 1], rows = rows_per_chunk(w->length);
    int64_t         end  = wefti_min_i64((chunk + 1) * rows, w->rows);
    for (int64_t row = chunk * rows; row < end; row++) {
        wefti_walk walk;
        wefti_walk_start(&walk, w->operand->shape, w->stride, row * w->length);
        const uint16_t *from = w->from + walk.offset;
        float          *to   = w->to + row * w->length;
        if (step == 1)
            convert_to_f32(from, w->operand->dtype, w->length, to);
        else
            for (int64_t i = 0; i < w->length; i++) convert_to_f32(from + i * step, w->operand->dtype, 1, to + i);
    }
}

static void narrow_rows(void *context, int64_t chunk, int32_t worker) {
    (void)worker;
    const widening *w   = context;
    int64_t         end = wefti_min_i64((chunk + 1) * WIDEN_ELEMENTS, w->rows * w->length);
    int64_t         at  = chunk * WIDEN_ELEMENTS;
    convert_from_f32(w->to + at, w->operand->dtype, end - at, (uint16_t *)(uintptr_t)w->from + at);
}

static widening widen(const wefti_operand *operand, const void *data, float *to) {
    widening w = {.operand = operand, .from = data, .to = to, .length = operand->shape.dim[operand->shape.rank - 1]};
    w.rows     = w.length > 0 ? wefti_operand_elements(operand) / w.length : 0;
    memcpy(w.stride, operand->stride, sizeof w.stride);
    return w;
}

static bool is_half(const wefti_call *call) { return call->inputs[0].dtype == WEFT_F16 || call->inputs[0].dtype == WEFT_BF16; }
static int64_t widened_bytes(const wefti_operand *operand) { return (wefti_operand_elements(operand) * 4 + 63) & ~INT64_C(63); }

/* The call as it is once its operands are widened. */
static void widened_call(const wefti_call *call, wefti_call *wide, wefti_operand inputs[2]) {
    *wide        = *call;
    wide->inputs = inputs;
    for (int i = 0; i < 2; i++) {
        inputs[i]       = call->inputs[i];
        inputs[i].dtype = WEFT_F32;
        wefti_contiguous_strides(inputs[i].shape, inputs[i].stride);
    }
}

static weft_status run_half(const wefti_cpu_run *run) {
    wefti_call    wide;
    wefti_operand inputs[2];
    widened_call(run->call, &wide, inputs);
    product p       = plan(&wide);
    char   *scratch = run->scratch;
    float  *copies[3];
    for (int i = 0; i < 3; i++) {
        copies[i] = (float *)(void *)scratch;
        scratch += widened_bytes(i < 2 ? &run->call->inputs[i] : &run->call->outputs[0]);
    }
    for (int i = 0; i < 2; i++) {
        widening w = widen(&run->call->inputs[i], run->inputs[i], copies[i]);
        wefti_cpu_for(run, wefti_cpu_chunks(w.rows, rows_per_chunk(w.length)), widen_rows, &w);
    }
    multiply_all(run, &p, copies[0], copies[1], copies[2], scratch);
    widening w = widen(&run->call->outputs[0], run->outputs[0], copies[2]);
    wefti_cpu_for(run, wefti_cpu_chunks(w.rows * w.length, WIDEN_ELEMENTS), narrow_rows, &w);
    return WEFT_OK;
}

static bool accepts(const wefti_call *call) { return weft_dtype_is_float(call->inputs[0].dtype); }

static int64_t scratch_of(const product *p, int32_t threads) {
    int64_t wholes = by_batches(p) ? threads : 1;
    return (wholes * p->whole_elements + threads * p->block_elements) * p->gemm->element_bytes;
}

static int64_t scratch(const wefti_call *call, int32_t threads) {
    if (wefti_operand_elements(&call->outputs[0]) == 0) return 0;
    if (!is_half(call)) {
        product p = plan(call);
        return scratch_of(&p, threads);
    }
    wefti_call    wide;
    wefti_operand inputs[2];
    widened_call(call, &wide, inputs);
    product p = plan(&wide);
    return scratch_of(&p, threads) + widened_bytes(&call->inputs[0]) + widened_bytes(&call->inputs[1]) +
           widened_bytes(&call->outputs[0]);
}

static weft_status run_matmul(const wefti_cpu_run *run) {
    if (is_half(run->call)) return run_half(run);
    product p = plan(run->call);
    multiply_all(run, &p, run->inputs[0], run->inputs[1], run->outputs[0], run->scratch);
    return WEFT_OK;
}

const wefti_cpu_kernel wefti_kernel_matmul = {.name = "packed", .accepts = accepts, .scratch = scratch, .run = run_matmul};

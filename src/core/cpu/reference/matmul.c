/* MATMUL: sums in f64 in order of the inner index, rounded once. Threads share rows of the result; a block of a row's
 * sums is kept on the stack while a row of b after the other passes by. */
#include "core/cpu/reference/reference.h"

enum { BLOCK = 256 };

typedef struct product {
    const wefti_cpu_run *run;
    int64_t              m, n, k;
    weft_shape           batch;
    int64_t              batch_a[WEFT_MAX_RANK], batch_b[WEFT_MAX_RANK]; /* strides over the batch */
    int64_t              a_row, a_inner, b_inner, b_column;              /* strides of the matrices, transposed */
} product;

/* The leading axes of an operand as one of its own. */
static void batch_strides(const wefti_operand *operand, weft_shape batch, int64_t stride_out[WEFT_MAX_RANK]) {
    wefti_operand leading = *operand;
    leading.shape.rank -= 2;
    wefti_operand_expand(&leading, batch, stride_out);
}

/* Adds factor * b[0, count) to the sums. The dtype is a constant at each call, so the loop is a plain one. */
static inline __attribute__((always_inline)) void add_row(double *sums, double factor, const void *b, int64_t origin,
                                                          int64_t step, int64_t count, weft_dtype dtype) {
    for (int64_t j = 0; j < count; j++) sums[j] += factor * wefti_load_f64(b, origin + j * step, dtype);
}

static void product_row(void *context, int64_t chunk, int32_t worker) {
    const product       *p = context;
    const wefti_cpu_run *run = p->run;
    weft_dtype           dtype = run->call->inputs[1].dtype;
    int64_t              matrix = chunk / p->m, row = chunk % p->m;
    wefti_walk           a, b;
    (void)worker;
    wefti_walk_start(&a, p->batch, p->batch_a, matrix);
    wefti_walk_start(&b, p->batch, p->batch_b, matrix);
    for (int64_t begin = 0; begin < p->n; begin += BLOCK) {
        int64_t count = wefti_min_i64(BLOCK, p->n - begin);
        double  sums[BLOCK] = {0};
        for (int64_t k = 0; k < p->k; k++) {
            double  factor = wefti_in(run, 0, a.offset + row * p->a_row + k * p->a_inner);
            int64_t origin = b.offset + k * p->b_inner + begin * p->b_column;
            if (dtype == WEFT_F32) add_row(sums, factor, run->inputs[1], origin, p->b_column, count, WEFT_F32);
            else add_row(sums, factor, run->inputs[1], origin, p->b_column, count, dtype);
        }
        for (int64_t j = 0; j < count; j++) wefti_out(run, 0, chunk * p->n + begin + j, sums[j]);
    }
}

static weft_status run_matmul(const wefti_cpu_run *run) {
    const wefti_operand *a = &run->call->inputs[0], *b = &run->call->inputs[1], *c = &run->call->outputs[0];
    int32_t              last_a = a->shape.rank - 1, last_b = b->shape.rank - 1;
    bool                 trans_a = run->call->attrs->matmul.trans_a, trans_b = run->call->attrs->matmul.trans_b;
    product              p = {.run = run, .batch = c->shape};
    p.batch.rank -= 2;
    p.m = c->shape.dim[c->shape.rank - 2];
    p.n = c->shape.dim[c->shape.rank - 1];
    p.k = a->shape.dim[trans_a ? last_a - 1 : last_a];
    p.a_row = a->stride[trans_a ? last_a : last_a - 1];
    p.a_inner = a->stride[trans_a ? last_a - 1 : last_a];
    p.b_inner = b->stride[trans_b ? last_b : last_b - 1];
    p.b_column = b->stride[trans_b ? last_b - 1 : last_b];
    batch_strides(a, p.batch, p.batch_a);
    batch_strides(b, p.batch, p.batch_b);
    wefti_cpu_for(run, weft_shape_elements(p.batch) * p.m, product_row, &p);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_matmul = {.name = "reference matmul", .run = run_matmul};

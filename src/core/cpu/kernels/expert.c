/* EXPERT_MATMUL and its gradient by packed tiles (gemm.h).
 *
 * Rows are listed by the expert that they chose (a counting sort, stable). A chunk is some columns of one expert's result: it packs that part
 * of the expert's matrix once, then takes the expert's rows a block at a time, brings them side by side, multiplies, and puts the results where
 * the rows are. So no row is padded or moved in memory, and the work is that of the rows that there are. Rows without an expert are zeros.
 * Bits: as MATMUL's, sums over k in blocks that follow from k alone; the gradient's sums are over an expert's rows in their order, in blocks
 * of ROWS_DEEP. f16 and bf16 are widened where they are brought together, and rounded once.
 * Cost: scratch of 4 bytes a row and an expert, and for each thread a packed part of a matrix and a block of rows. */
#include "core/cpu/kernels/convert.h"
#include "core/cpu/kernels/fast.h"
#include "core/cpu/kernels/gemm.h"

enum { K_BLOCK = 400, ROW_BLOCK = 84, MOST_PANELS = 4, PART_BYTES = 512 << 10, ROWS_DEEP = 128, HEIGHT_BLOCK = 240 };

typedef struct experts {
    const wefti_cpu_run *run;
    const wefti_gemm    *gemm;
    weft_dtype           dtype;
    bool                 halves, trans;
    int64_t              n, rows, repeat, in, out;
    int64_t              columns, chunks; /* of a chunk, and for each expert */
    int64_t              height, width;   /* of a gradient's matrix */
    int32_t             *first, *order;   /* expert e's rows are order[first[e] .. first[e + 1]); n's are those that have none */
    char                *work;            /* [threads][work_bytes] */
    int64_t              packed_bytes, wide_bytes, left_bytes, result_bytes, work_bytes;
} experts;

static int64_t round_up(int64_t bytes) { return (bytes + 63) & ~INT64_C(63); }

static int64_t list_bytes(const experts *x) { return round_up((x->n + 2 + x->rows) * (int64_t)sizeof(int32_t)); }

/* Elements from row to row of what is brought side by side: not a multiple of a page (gemm_reads_rows). */
static int64_t row_room(const experts *x, int64_t k) { return gemm_reads_rows(k, 1, x->gemm->element_bytes) ? k : k + 16; }

static experts experts_of(const wefti_call *call) {
    bool    backward = call->op == WEFT_OP_EXPERT_MATMUL_BACKWARD_WEIGHT;
    experts x = {.dtype = call->inputs[0].dtype, .trans = call->attrs->expert.trans, .repeat = call->attrs->expert.repeat};
    x.halves  = x.dtype == WEFT_F16 || x.dtype == WEFT_BF16;
    x.gemm    = x.dtype == WEFT_F64 ? &wefti_gemm_f64_functions : &wefti_gemm_f32_functions;
    x.n       = (backward ? &call->outputs[0] : &call->inputs[1])->shape.dim[0];
    x.rows    = wefti_operand_elements(&call->inputs[2]);
    x.in      = call->inputs[0].shape.dim[1];
    x.out     = (backward ? &call->inputs[1] : &call->outputs[0])->shape.dim[1];
    x.height  = x.trans ? x.out : x.in;
    x.width   = x.trans ? x.in : x.out;
    int64_t bytes = x.gemm->element_bytes, wide = backward ? x.width : x.out, deep = backward ? ROWS_DEEP : x.in;
    int64_t panels = wefti_max_i64(1, wefti_min_i64(MOST_PANELS, PART_BYTES / wefti_max_i64(1, deep * x.gemm->width * bytes)));
    x.columns      = panels * x.gemm->width;
    x.chunks       = (wide + x.columns - 1) / x.columns;
    x.packed_bytes = round_up(x.columns * deep * bytes);
    x.wide_bytes   = x.halves || backward ? x.packed_bytes : 0;
    x.left_bytes   = round_up((backward ? (int64_t)ROWS_DEEP * HEIGHT_BLOCK : ROW_BLOCK * row_room(&x, wefti_min_i64(x.in, K_BLOCK))) * bytes);
    x.result_bytes = round_up((backward ? (x.halves ? x.height : 0) : ROW_BLOCK) * x.columns * bytes);
    x.work_bytes   = x.packed_bytes + x.wide_bytes + x.left_bytes + x.result_bytes;
    return x;
}

static bool even_rows(const wefti_operand *operand) { return operand->stride[1] == 1 || operand->shape.dim[1] <= 1; }

static bool accepts(const wefti_call *call) {
    bool backward = call->op == WEFT_OP_EXPERT_MATMUL_BACKWARD_WEIGHT;
    bool lies     = even_rows(&call->inputs[0]) && (backward ? even_rows(&call->inputs[1]) : wefti_operand_is_contiguous(&call->inputs[1]));
    return lies && wefti_operand_is_contiguous(&call->inputs[2]) && wefti_operand_elements(&call->inputs[2]) < INT32_MAX &&
           (backward ? &call->outputs[0] : &call->inputs[1])->shape.dim[0] < INT32_MAX - 2;
}

static int64_t scratch(const wefti_call *call, int32_t threads) {
    experts x = experts_of(call);
    return list_bytes(&x) + threads * x.work_bytes;
}

static int64_t expert_at(const experts *x, int64_t row) {
    const void *index = x->run->inputs[2];
    int64_t     e     = x->run->call->inputs[2].dtype == WEFT_I32 ? ((const int32_t *)index)[row] : ((const int64_t *)index)[row];
    return e >= 0 && e < x->n ? e : x->n;
}

static void list_rows(experts *x) {
    x->first = x->run->scratch;
    x->order = x->first + x->n + 2;
    x->work  = (char *)x->run->scratch + list_bytes(x);
    memset(x->first, 0, (size_t)(x->n + 2) * sizeof *x->first);
    for (int64_t row = 0; row < x->rows; row++) x->first[expert_at(x, row) + 1]++;
    for (int64_t e = 0; e <= x->n; e++) x->first[e + 1] += x->first[e];
    for (int64_t row = 0; row < x->rows; row++) x->order[x->first[expert_at(x, row)]++] = (int32_t)row;
    for (int64_t e = x->n + 1; e > 0; e--) x->first[e] = x->first[e - 1];
    x->first[0] = 0;
}

/* Elements [begin, begin + count) of row `row` of an operand, wide. */
static void bring(const experts *x, const wefti_operand *operand, const void *data, int64_t row, int64_t begin, int64_t count, void *to) {
    int64_t at = row * operand->stride[0] + begin;
    if (x->halves) convert_to_f32((const uint16_t *)data + at, x->dtype, count, to);
    else memcpy(to, (const char *)data + at * x->gemm->element_bytes, (size_t)(count * x->gemm->element_bytes));
}

static void put(const experts *x, const void *from, int64_t count, void *data, int64_t at) {
    if (x->halves) convert_from_f32(from, x->dtype, count, (uint16_t *)data + at);
    else memcpy((char *)data + at * x->gemm->element_bytes, from, (size_t)(count * x->gemm->element_bytes));
}

/* Columns [column, column + columns) of an expert's matrix, all of k, in blocks of it. */
static void pack_matrix(const experts *x, int64_t e, int64_t column, int64_t columns, int64_t k_blocks, char *packed, char *wide) {
    int64_t     bytes = x->gemm->element_bytes, column_stride = x->trans ? x->in : 1, k_stride = x->trans ? 1 : x->out;
    int64_t     panels = gemm_b_panels(columns, x->gemm->width), at = e * x->in * x->out + column * column_stride;
    const char *from = (const char *)x->run->inputs[1] + at * bytes;
    if (x->halves) {
        const uint16_t *halves = (const uint16_t *)x->run->inputs[1] + at;
        int64_t         lines = x->trans ? columns : x->in, length = x->trans ? x->in : columns;
        for (int64_t i = 0; i < lines; i++) convert_to_f32(halves + i * (x->trans ? x->in : x->out), x->dtype, length, (float *)(void *)wide + i * length);
        from          = wide;
        column_stride = x->trans ? x->in : 1;
        k_stride      = x->trans ? 1 : columns;
    }
    for (int64_t block = 0; block < k_blocks; block++) {
        int64_t k0 = x->in * block / k_blocks, k = x->in * (block + 1) / k_blocks - k0;
        x->gemm->pack_b(from + k0 * k_stride * bytes, column_stride, k_stride, columns, k, 0, panels, packed + k0 * panels * x->gemm->width * bytes);
    }
}

static void multiply_chunk(void *context, int64_t chunk, int32_t worker) {
    const experts *x = context;
    int64_t bytes = x->gemm->element_bytes, e = chunk / x->chunks, column = chunk % x->chunks * x->columns;
    int64_t columns = wefti_min_i64(x->columns, x->out - column), k_blocks = (x->in + K_BLOCK - 1) / K_BLOCK, begin = x->first[e], end = x->first[e + 1];
    char   *packed = x->work + worker * x->work_bytes, *wide = packed + x->packed_bytes, *left = wide + x->wide_bytes, *result = left + x->left_bytes;
    int64_t padded = gemm_b_panels(columns, x->gemm->width) * x->gemm->width;
    if (begin == end) return;
    if (e == x->n || x->in == 0) { /* all zeros look alike in every dtype */
        size_t element = weft_dtype_bytes(x->dtype);
        for (int64_t i = begin; i < end; i++) memset((char *)x->run->outputs[0] + (x->order[i] * x->out + column) * (int64_t)element, 0, (size_t)columns * element);
        return;
    }
    pack_matrix(x, e, column, columns, k_blocks, packed, wide);
    for (int64_t at = begin; at < end; at += ROW_BLOCK) {
        int64_t rows = wefti_min_i64(ROW_BLOCK, end - at);
        for (int64_t block = 0; block < k_blocks; block++) {
            int64_t k0 = x->in * block / k_blocks, k = x->in * (block + 1) / k_blocks - k0, room = row_room(x, k);
            for (int64_t i = 0; i < rows; i++)
                bring(x, &x->run->call->inputs[0], x->run->inputs[0], x->order[at + i] / x->repeat, k0, k, left + i * room * bytes);
            x->gemm->multiply_rows(rows, columns, k, left, room, packed + k0 * padded * bytes, result, columns, gemm_store(block > 0));
        }
        for (int64_t i = 0; i < rows; i++) put(x, result + i * columns * bytes, columns, x->run->outputs[0], x->order[at + i] * x->out + column);
    }
}

static weft_status run_expert_matmul(const wefti_cpu_run *run) {
    experts x = experts_of(run->call);
    x.run     = run;
    list_rows(&x);
    wefti_cpu_for(run, (x.n + 1) * x.chunks, multiply_chunk, &x);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_kernel_expert_matmul = {.name = "expert-matmul", .accepts = accepts, .scratch = scratch, .run = run_expert_matmul};

/* --- the gradient of the matrices --- */

/* The operand whose columns are the matrix's rows (or columns), and its row of row `row`. */
static void bring_side(const experts *x, bool rows_of_matrix, int64_t row, int64_t begin, int64_t count, void *to) {
    int input = rows_of_matrix == x->trans ? 1 : 0;
    bring(x, &x->run->call->inputs[input], x->run->inputs[input], input == 0 ? row / x->repeat : row, begin, count, to);
}

static void weight_chunk(void *context, int64_t chunk, int32_t worker) {
    const experts *x = context;
    int64_t bytes = x->gemm->element_bytes, e = chunk / x->chunks, column = chunk % x->chunks * x->columns;
    int64_t columns = wefti_min_i64(x->columns, x->width - column), panels = gemm_b_panels(columns, x->gemm->width), begin = x->first[e], end = x->first[e + 1];
    char   *packed = x->work + worker * x->work_bytes, *right = packed + x->packed_bytes, *left = right + x->wide_bytes, *result = left + x->left_bytes;
    int64_t origin = e * x->height * x->width + column, line = x->halves ? columns : x->width;
    char   *c = x->halves ? result : (char *)x->run->outputs[0] + origin * bytes;
    for (int64_t i = 0; begin == end && i < x->height; i++) memset(c + i * line * bytes, 0, (size_t)(columns * bytes));
    for (int64_t at = begin; at < end; at += ROWS_DEEP) {
        int64_t deep = wefti_min_i64(ROWS_DEEP, end - at);
        for (int64_t i = 0; i < deep; i++) bring_side(x, false, x->order[at + i], column, columns, right + i * columns * bytes);
        x->gemm->pack_b(right, 1, columns, columns, deep, 0, panels, packed);
        for (int64_t row = 0; row < x->height; row += HEIGHT_BLOCK) {
            int64_t rows = wefti_min_i64(HEIGHT_BLOCK, x->height - row);
            for (int64_t i = 0; i < deep; i++) bring_side(x, true, x->order[at + i], row, rows, left + i * rows * bytes);
            x->gemm->multiply_columns(rows, columns, deep, left, rows, packed, c + row * line * bytes, line, gemm_store(at > begin));
        }
    }
    for (int64_t i = 0; x->halves && i < x->height; i++) put(x, c + i * line * bytes, columns, x->run->outputs[0], origin + i * x->width);
}

static weft_status run_weight(const wefti_cpu_run *run) {
    experts x = experts_of(run->call);
    x.run     = run;
    list_rows(&x);
    wefti_cpu_for(run, x.n * x.chunks, weight_chunk, &x);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_kernel_expert_matmul_backward_weight = {
    .name = "expert-matmul-backward-weight", .accepts = accepts, .scratch = scratch, .run = run_weight};

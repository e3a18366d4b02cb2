/* PowerSGD (Vogels, Karimireddy and Jaggi 2019): a gradient as a matrix M [a, b] is sent as two thin factors.
 *
 * With last step's basis Q [r, b]: P = Q M' [r, a] is summed over the ranks and made orthonormal, Q = P M is summed, and P'Q is the
 * sum's approximation: one step of power iteration, which follows the largest singular vectors from step to step. A rank keeps M less its
 * own projection P'PM, so nothing that is left out is lost.
 *
 * Rows of P are scaled to a largest element of 1 first, so that no square vanishes, and made orthonormal one after the other. One that
 * is next to nothing beside what it was depends on those before it: it is zero, and the basis gets a random row (by counter, the same on
 * every rank) in its place, or it would be zero for ever. NaN goes through the products to every rank. */
#include "parallel/compress.h"

static const double DEPENDENT = 1e-10; /* of the squared length of a row, what must be left of it */

static weft_shape matrix_of(weft_shape shape) {
    int64_t rows = shape.rank > 0 ? shape.dim[0] : 1;
    return weft_shape(rows, rows ? weft_shape_elements(shape) / rows : 0);
}

/* 0: factors would be no smaller. */
int64_t wefti_compress_rank_of(const weft_compression *how, weft_shape shape) {
    weft_shape matrix = matrix_of(shape);
    int64_t    rank = how->rank > 0 ? how->rank : 4, most = wefti_min_i64(matrix.dim[0], matrix.dim[1]);
    if (rank > most) rank = most;
    return rank * (matrix.dim[0] + matrix.dim[1]) < matrix.dim[0] * matrix.dim[1] ? rank : 0;
}

static weft_tensor *matrix(const wefti_compressed *one) { return weft_reshape(one->sum, matrix_of(one->sum->shape)); }

static weft_tensor *squared_length(weft_tensor *rows) { return weft_sum(weft_square(rows), .axes = weft_axes(1), .keep = true); }

void wefti_factor_begin(wefti_compressed *one) {
    weft_shape shape = matrix_of(one->sum->shape);
    int64_t    rank = wefti_compress_rank_of(one->compress->how, one->sum->shape);
    one->basis = wefti_compress_state(one->compress, WEFTI_COMPRESS_BASIS, one->parameter, weft_shape(rank, shape.dim[1]), WEFTI_INIT_NORMAL);
    weft_tensor *p = weft_matmul(one->basis, matrix(one), .transpose_b = true);
    one->sent = wefti_compress_communicate(one->compress, WEFT_OP_ALL_REDUCE, p, weft_shape_scalar());
}

/* Modified Gram-Schmidt over the rows of p [rank, a]; alive_out [rank, 1] is not 0 where a row is. */
static weft_tensor *orthonormal(weft_tensor *p, int64_t rank, weft_tensor **alive_out) {
    weft_graph  *graph = p->graph;
    weft_tensor *zero = weft_scalar(graph, WEFT_F32, 0);
    weft_tensor *largest = weft_max(weft_abs(p), .axes = weft_axes(1), .keep = true);
    weft_tensor *rest = weft_mul(p, weft_where(weft_gt_scalar(largest, 0), weft_reciprocal(largest), zero));
    weft_tensor *least = weft_mul_scalar(squared_length(rest), DEPENDENT);
    weft_tensor **rows = wefti_graph_memory(graph, 2 * sizeof *rows * (size_t)rank), **lengths = rows + rank;
    if (!rows) return &graph->poison;
    for (int64_t i = 0; i < rank; i++) {
        weft_tensor *row = weft_slice(rest, 0, 0, 1), *length = squared_length(row);
        lengths[i] = weft_where(weft_gt(length, weft_slice(least, 0, i, i + 1)), weft_rsqrt(length), zero);
        rows[i] = weft_mul(row, lengths[i]);
        if (i + 1 == rank) break;
        rest = weft_slice(rest, 0, 1, rank - i);
        rest = weft_sub(rest, weft_mul(weft_matmul(rest, rows[i], .transpose_b = true), rows[i]));
    }
    *alive_out = weft_concat(lengths, (int32_t)rank, 0);
    return weft_concat(rows, (int32_t)rank, 0);
}

static weft_tensor *random_rows(const wefti_compressed *one) {
    wefti_attrs attrs = wefti_no_attrs();
    const char *name = wefti_compress_name(one->compress, "weft.compress.fresh/", one->parameter);
    attrs.random.key = wefti_graph_key(one->compress->graph, name, true);
    attrs.random.kind = WEFTI_RANDOM_NORMAL;
    return wefti_emit_leaf(one->compress->graph, WEFT_OP_RANDOM, &attrs, WEFT_F32, one->basis->shape, NULL, name);
}

void wefti_factor_end(wefti_compressed *one) {
    weft_tensor *alive = NULL;
    int64_t      rank = wefti_compress_rank_of(one->compress->how, one->sum->shape);
    weft_tensor *p = orthonormal(one->sent, rank, &alive);
    weft_tensor *own = weft_matmul(p, matrix(one));
    weft_tensor *q = wefti_compress_communicate(one->compress, WEFT_OP_ALL_REDUCE, own, weft_shape_scalar());
    one->own = weft_matmul(p, own, .transpose_a = true);
    one->result = weft_matmul(p, q, .transpose_a = true);
    if (!wefti_poisoned(one->result)) one->next_basis = weft_where(weft_ne_scalar(alive, 0), q, random_rows(one));
}

/* Attention and its gradient as graphs of cuDNN's primitive operations. Its runtime-compiled engines recognise these very shapes of graph
 * as flash attention and compute them without storing what is between; other orders of the same operations find no engine.
 *
 * Forward: s = scale*q*k^T, masked; p = exp(s - max)/sum; o = p*v; lse = max + log(sum).
 * Backward: p = exp(s - lse); dv = p^T*g; ds = scale*p*(g*v^T - sum(g*o)); dk = ds^T*q; dq = ds*k.
 * Keys and values enter transposed, as the second factors of scores. With fewer key heads than heads, gradients of keys and values are made
 * for every head and then added up. */
#include "cuda/dnn_attention.h"

typedef struct maker {
    wefti_cuda_dnn_graph           *graph;
    const wefti_cuda_dnn_attention *what;
    cudnnBackendDescriptor_t       *operations;
    int32_t                         n;
    int64_t                         next; /* id of the next inner tensor */
    cudnnDataType_t                 io;
} maker;

typedef cudnnBackendDescriptor_t tensor;

static maker maker_of(wefti_cuda_dnn_graph *graph, const wefti_cuda_dnn_attention *what, cudnnBackendDescriptor_t *operations) {
    return (maker){.graph = graph, .what = what, .operations = operations, .next = WEFTI_DNN_INNER, .io = wefti_cuda_dnn_dtype(what->dtype)};
}

/* --- tensors --- */

static tensor outer(const maker *m, int64_t id, cudnnDataType_t dtype, int64_t b, int64_t h, int64_t rows, int64_t columns,
                    const int64_t *stride) {
    int64_t dim[4] = {b, h, rows, columns};
    return wefti_cuda_dnn_tensor(m->graph, &(wefti_cuda_dnn_operand){.id = id, .dtype = dtype, .rank = 4, .dim = dim, .stride = stride});
}
/* The same operand seen with its last axes swapped. */
static tensor turned(const maker *m, int64_t id, int64_t b, int64_t h, int64_t rows, int64_t columns, const int64_t *stride) {
    int64_t swapped[4] = {stride[0], stride[1], stride[3], stride[2]};
    return outer(m, id, m->io, b, h, columns, rows, swapped);
}
static void packed(int64_t h, int64_t rows, int64_t columns, int64_t stride_out[4]) {
    stride_out[0] = h * rows * columns, stride_out[1] = rows * columns, stride_out[2] = columns, stride_out[3] = 1;
}
static tensor whole(const maker *m, int64_t id, cudnnDataType_t dtype, int64_t h, int64_t rows, int64_t columns) {
    int64_t stride[4];
    packed(h, rows, columns, stride);
    return outer(m, id, dtype, m->what->is.batch, h, rows, columns, stride);
}
static tensor inner_strided(maker *m, cudnnDataType_t dtype, int64_t h, int64_t rows, int64_t columns, const int64_t *stride) {
    int64_t dim[4] = {m->what->is.batch, h, rows, columns};
    return wefti_cuda_dnn_tensor(m->graph, &(wefti_cuda_dnn_operand){.id = m->next++, .dtype = dtype, .rank = 4, .dim = dim, .stride = stride,
                                                                     .is_virtual = true});
}
static tensor inner(maker *m, cudnnDataType_t dtype, int64_t rows, int64_t columns) {
    int64_t stride[4], h = m->what->is.heads;
    packed(h, rows, columns, stride);
    return inner_strided(m, dtype, h, rows, columns, stride);
}
static tensor scores(maker *m, cudnnDataType_t dtype) { return inner(m, dtype, m->what->is.queries, m->what->is.keys); }
static tensor number(const maker *m, int64_t id, cudnnDataType_t dtype) {
    static const int64_t one[4] = {1, 1, 1, 1};
    return wefti_cuda_dnn_tensor(m->graph, &(wefti_cuda_dnn_operand){.id = id, .dtype = dtype, .rank = 4, .dim = one, .stride = one,
                                                                     .by_value = true});
}

/* --- operations --- */

static void put(maker *m, cudnnBackendDescriptor_t operation, const char *what) {
    wefti_cuda_dnn_finish(m->graph, operation, what);
    if (m->n < WEFTI_DNN_ATTENTION_OPERATIONS) m->operations[m->n++] = operation;
}
static void give(maker *m, cudnnBackendDescriptor_t operation, cudnnBackendAttributeName_t name, cudnnBackendDescriptor_t value) {
    if (value) wefti_cuda_dnn_set(m->graph, operation, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

/* y = mode(x, b, t); those that the mode does not have are NULL. */
static tensor pointwise(maker *m, cudnnPointwiseMode_t mode, cudnnDataType_t computed, tensor x, tensor b, tensor t, tensor y) {
    cudnnBackendDescriptor_t how = wefti_cuda_dnn_make(m->graph, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    wefti_cuda_dnn_set(m->graph, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    wefti_cuda_dnn_set(m->graph, how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &computed);
    wefti_cuda_dnn_finish(m->graph, how, "describing an elementwise operation, descriptor");
    cudnnBackendDescriptor_t operation = wefti_cuda_dnn_make(m->graph, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    give(m, operation, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    give(m, operation, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    give(m, operation, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    give(m, operation, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t);
    give(m, operation, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    put(m, operation, "an elementwise operation, descriptor");
    return y;
}
static tensor of_float(maker *m, cudnnPointwiseMode_t mode, tensor x, tensor b, tensor y) {
    return pointwise(m, mode, CUDNN_DATA_FLOAT, x, b, NULL, y);
}
/* The index along an axis of x. */
static tensor index_of(maker *m, int64_t axis, tensor x) {
    cudnnPointwiseMode_t     mode = CUDNN_POINTWISE_GEN_INDEX;
    cudnnDataType_t          computed = CUDNN_DATA_FLOAT;
    tensor                   y = scores(m, CUDNN_DATA_INT32);
    cudnnBackendDescriptor_t how = wefti_cuda_dnn_make(m->graph, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    wefti_cuda_dnn_set(m->graph, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    wefti_cuda_dnn_set(m->graph, how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &computed);
    wefti_cuda_dnn_set(m->graph, how, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis);
    wefti_cuda_dnn_finish(m->graph, how, "describing an index, descriptor");
    cudnnBackendDescriptor_t operation = wefti_cuda_dnn_make(m->graph, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    give(m, operation, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    give(m, operation, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    give(m, operation, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    put(m, operation, "an index, descriptor");
    return y;
}

static tensor product(maker *m, tensor a, tensor b, tensor c) {
    cudnnDataType_t          computed = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t how = wefti_cuda_dnn_make(m->graph, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    wefti_cuda_dnn_set(m->graph, how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &computed);
    wefti_cuda_dnn_finish(m->graph, how, "describing a product, descriptor");
    cudnnBackendDescriptor_t operation = wefti_cuda_dnn_make(m->graph, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    give(m, operation, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    give(m, operation, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    give(m, operation, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    give(m, operation, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    put(m, operation, "a product, descriptor");
    return c;
}

static tensor reduced(maker *m, cudnnReduceTensorOp_t how_reduced, tensor x, tensor y) {
    cudnnDataType_t          computed = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t how = wefti_cuda_dnn_make(m->graph, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    wefti_cuda_dnn_set(m->graph, how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &how_reduced);
    wefti_cuda_dnn_set(m->graph, how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &computed);
    wefti_cuda_dnn_finish(m->graph, how, "describing a reduction, descriptor");
    cudnnBackendDescriptor_t operation = wefti_cuda_dnn_make(m->graph, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    give(m, operation, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    give(m, operation, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    give(m, operation, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
    put(m, operation, "a reduction, descriptor");
    return y;
}

static tensor reshaped(maker *m, tensor x, tensor y) {
    cudnnBackendDescriptor_t operation = wefti_cuda_dnn_make(m->graph, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    give(m, operation, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    give(m, operation, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y);
    put(m, operation, "a transposition, descriptor");
    return y;
}

/* --- attention --- */

/* Scores that causality hides become minus infinity: key j is seen by query i where j <= i + keys - queries. */
static tensor masked(maker *m, tensor x) {
    const wefti_cuda_heads *is = &m->what->is;
    if (!is->causal) return x;
    tensor row = index_of(m, 2, x), column = index_of(m, 3, x);
    if (is->keys != is->queries) {
        row = pointwise(m, CUDNN_POINTWISE_ADD, CUDNN_DATA_INT32, row, number(m, WEFTI_DNN_KEY_COUNT, CUDNN_DATA_INT32), NULL,
                        scores(m, CUDNN_DATA_INT32));
        row = pointwise(m, CUDNN_POINTWISE_SUB, CUDNN_DATA_INT32, row, number(m, WEFTI_DNN_QUERY_COUNT, CUDNN_DATA_INT32), NULL,
                        scores(m, CUDNN_DATA_INT32));
    }
    tensor seen = pointwise(m, CUDNN_POINTWISE_CMP_GE, CUDNN_DATA_BOOLEAN, row, column, NULL, scores(m, CUDNN_DATA_BOOLEAN));
    return pointwise(m, CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, x, number(m, WEFTI_DNN_NOTHING, CUDNN_DATA_FLOAT), seen,
                     scores(m, CUDNN_DATA_FLOAT));
}

int32_t wefti_cuda_dnn_attention_forward(wefti_cuda_dnn_graph *graph, const wefti_cuda_dnn_attention *what,
                                         cudnnBackendDescriptor_t *operations_out) {
    maker                   m = maker_of(graph, what, operations_out);
    const wefti_cuda_heads *is = &what->is;
    const cudnnDataType_t   f = CUDNN_DATA_FLOAT;
    tensor q = outer(&m, WEFTI_DNN_Q, m.io, is->batch, is->heads, is->queries, is->depth, what->q);
    tensor k = turned(&m, WEFTI_DNN_K, is->batch, is->key_heads, is->keys, is->depth, what->k);
    tensor v = outer(&m, WEFTI_DNN_V, m.io, is->batch, is->key_heads, is->keys, is->value_depth, what->v);
    tensor s = product(&m, q, k, scores(&m, f));
    s = of_float(&m, CUDNN_POINTWISE_MUL, s, number(&m, WEFTI_DNN_SCALE, f), scores(&m, f));
    s = masked(&m, s);
    tensor most = reduced(&m, CUDNN_REDUCE_TENSOR_MAX, s, inner(&m, f, is->queries, 1));
    tensor less = of_float(&m, CUDNN_POINTWISE_SUB, s, most, scores(&m, f));
    tensor power = of_float(&m, CUDNN_POINTWISE_EXP, less, NULL, scores(&m, f));
    tensor sum = reduced(&m, CUDNN_REDUCE_TENSOR_ADD, power, inner(&m, f, is->queries, 1));
    tensor rest = of_float(&m, CUDNN_POINTWISE_LOG, sum, NULL, inner(&m, f, is->queries, 1));
    of_float(&m, CUDNN_POINTWISE_ADD, most, rest, whole(&m, WEFTI_DNN_LSE, f, is->heads, is->queries, 1));
    tensor p = of_float(&m, CUDNN_POINTWISE_DIV, power, sum, scores(&m, m.io));
    product(&m, p, v, outer(&m, WEFTI_DNN_O, m.io, is->batch, is->heads, is->queries, is->value_depth, what->result[0]));
    return m.n;
}

/* The transpose of scores, in the dtype of factors. */
static tensor across(maker *m, tensor x) {
    const wefti_cuda_heads *is = &m->what->is;
    int64_t stride[4] = {is->heads * is->queries * is->keys, is->queries * is->keys, 1, is->keys};
    return reshaped(m, x, inner_strided(m, m->io, is->heads, is->keys, is->queries, stride));
}
/* A gradient of keys or values: weights across times rows of queries, added up over the heads that share a key head. */
static void gathered(maker *m, int64_t id, tensor weights, tensor rows, int64_t depth) {
    const wefti_cuda_heads *is = &m->what->is;
    tensor                  result = outer(m, id, m->io, is->batch, is->key_heads, is->keys, depth, m->what->result[id - WEFTI_DNN_DQ]);
    if (is->heads == is->key_heads) product(m, weights, rows, result);
    else reduced(m, CUDNN_REDUCE_TENSOR_ADD, product(m, weights, rows, inner(m, m->io, is->keys, depth)), result);
}

int32_t wefti_cuda_dnn_attention_backward(wefti_cuda_dnn_graph *graph, const wefti_cuda_dnn_attention *what,
                                          cudnnBackendDescriptor_t *operations_out) {
    maker                   m = maker_of(graph, what, operations_out);
    const wefti_cuda_heads *is = &what->is;
    const cudnnDataType_t   f = CUDNN_DATA_FLOAT;
    tensor q = outer(&m, WEFTI_DNN_Q, m.io, is->batch, is->heads, is->queries, is->depth, what->q);
    tensor k = turned(&m, WEFTI_DNN_K, is->batch, is->key_heads, is->keys, is->depth, what->k);
    tensor v = turned(&m, WEFTI_DNN_V, is->batch, is->key_heads, is->keys, is->value_depth, what->v);
    tensor o = outer(&m, WEFTI_DNN_O, m.io, is->batch, is->heads, is->queries, is->value_depth, what->o);
    tensor g = outer(&m, WEFTI_DNN_G, m.io, is->batch, is->heads, is->queries, is->value_depth, what->g);
    tensor lse = whole(&m, WEFTI_DNN_LSE, f, is->heads, is->queries, 1), scale = number(&m, WEFTI_DNN_SCALE, f);
    /* sum(g*o), which the engine wants to keep */
    int64_t stride[4] = {is->heads * is->queries * is->value_depth, is->queries * is->value_depth, is->heads * is->value_depth, 1};
    tensor  sum = of_float(&m, CUDNN_POINTWISE_MUL, g, o, inner_strided(&m, f, is->heads, is->queries, is->value_depth, stride));
    sum = reduced(&m, CUDNN_REDUCE_TENSOR_ADD, sum, inner(&m, f, is->queries, 1));
    sum = of_float(&m, CUDNN_POINTWISE_MUL, sum, number(&m, WEFTI_DNN_ONE, f), whole(&m, WEFTI_DNN_SUM, f, is->heads, is->queries, 1));
    /* p, and dv */
    tensor s = product(&m, q, k, scores(&m, f));
    s = of_float(&m, CUDNN_POINTWISE_MUL, s, scale, scores(&m, f));
    s = masked(&m, of_float(&m, CUDNN_POINTWISE_SUB, s, lse, scores(&m, f)));
    tensor p = of_float(&m, CUDNN_POINTWISE_EXP, s, NULL, scores(&m, f));
    gathered(&m, WEFTI_DNN_DV, across(&m, p), g, is->value_depth);
    /* ds, dk and dq */
    tensor ds = product(&m, g, v, scores(&m, f));
    ds = of_float(&m, CUDNN_POINTWISE_SUB, ds, sum, scores(&m, f));
    ds = of_float(&m, CUDNN_POINTWISE_MUL, ds, p, scores(&m, f));
    ds = of_float(&m, CUDNN_POINTWISE_MUL, ds, scale, scores(&m, f));
    gathered(&m, WEFTI_DNN_DK, across(&m, ds), q, is->depth);
    tensor keys = reshaped(&m, k, inner_strided(&m, m.io, is->key_heads, is->keys, is->depth, what->k));
    tensor dq = outer(&m, WEFTI_DNN_DQ, m.io, is->batch, is->heads, is->queries, is->depth, what->result[0]);
    if (what->ordered) product(&m, ds, keys, dq);
    else of_float(&m, CUDNN_POINTWISE_IDENTITY, product(&m, ds, keys, whole(&m, WEFTI_DNN_QUERIES, f, is->heads, is->queries, is->depth)), NULL, dq);
    return m.n;
}

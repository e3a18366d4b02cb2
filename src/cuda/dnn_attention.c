/* ATTENTION and its gradient of 16-bit floats by cuDNN's flash attention.
 *
 * Idea: the graph of dnn_attention_graph.c is made into a plan once a shape, and kept with the device: a model has many layers of one shape,
 * and a plan takes a second to make. Where cuDNN refuses a graph or its plan wants too much, the kernels of attention.cu run, and a line in
 * the log says why.
 * The engines that add dq up in any order (any_order of the device's options) add in f32, into memory of their own that begins as zeros.
 * The engines that add dq up in one order keep scores (16-bit) of all heads that they are given: so the gradient goes by parts, of some
 * batches or some heads of one, such that scores take PART_BYTES at most.
 * Results: cuDNN rounds the weights of values, and ds, to the dtype before they are factors. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/dnn_attention.h"

/* Parts of half a gigabyte have some hundred heads of 1,024 queries: enough to fill any device. One head may take more. */
#define PART_BYTES (INT64_C(512) << 20)
#define HEAD_BYTES_MOST (INT64_C(2) << 30)
enum { ALIGNED_ELEMENTS = 8, ALIGNED_BYTES = 16, DEPTH_LEAST = 32, DEPTH_MOST = 256, ROWS_LEAST = 64, EXTRA_BYTES = 1 << 20 };

/* --- what is taken --- */

static bool is_laid_out(const wefti_operand *x) {
    for (int axis = 0; axis < 3; axis++)
        if (x->shape.dim[axis] > 1 && (x->stride[axis] <= 0 || x->stride[axis] % ALIGNED_ELEMENTS != 0)) return false;
    return x->stride[3] == 1 && x->offset_bytes % ALIGNED_BYTES == 0;
}

/* Small ones are not worth a plan. WEFT_CUDA_DNN_ATTENTION=0 leaves all to our own kernels. */
static bool is_worth_it(const wefti_cuda *cuda, const wefti_call *call, int32_t first) {
    const char *wish = getenv("WEFT_CUDA_DNN_ATTENTION");
    if (wish && strcmp(wish, "0") == 0) return false;
    wefti_cuda_heads is    = wefti_cuda_heads_of(call, first);
    weft_dtype       dtype = call->inputs[first].dtype;
    if (cuda->major < 8 || (dtype != WEFT_BF16 && dtype != WEFT_F16) || is.batch * is.heads < 1) return false;
    if (is.depth % ALIGNED_ELEMENTS || is.value_depth % ALIGNED_ELEMENTS || is.depth < DEPTH_LEAST || is.value_depth < DEPTH_LEAST ||
        is.depth > DEPTH_MOST || is.value_depth > DEPTH_MOST)
        return false;
    if (is.queries < ROWS_LEAST || is.keys < ROWS_LEAST || (is.causal && (is.queries > is.keys || is.shift != 0))) return false;
    for (int32_t i = 0; i < 3; i++)
        if (!is_laid_out(&call->inputs[first + i])) return false;
    return true;
}
static bool accepts_forward(const wefti_cuda *cuda, const wefti_call *call) { return is_worth_it(cuda, call, 0) && wefti_cuda_dnn_load(NULL); }

static int64_t rounded(int64_t n) { return (n + 127) / 128 * 128; }
static int64_t head_bytes(const wefti_cuda_heads *is) { return rounded(is->queries) * rounded(is->keys) * 2; }

static bool accepts_backward(const wefti_cuda *cuda, const wefti_call *call) {
    if (!is_worth_it(cuda, call, 1) || !wefti_cuda_dnn_load(NULL)) return false;
    wefti_cuda_heads is = wefti_cuda_heads_of(call, 1);
    if (!is_laid_out(&call->inputs[0]) || !is_laid_out(&call->inputs[4]) || !wefti_operand_is_contiguous(&call->inputs[5])) return false;
    return cuda->any_order || is.heads / is.key_heads * head_bytes(&is) <= HEAD_BYTES_MOST;
}

/* --- parts --- */

/* The largest divisor of `whole` that is at most `most`, and at least 1. */
static int64_t divisor(int64_t whole, int64_t most) {
    int64_t d = most < whole ? most : whole;
    while (d > 1 && whole % d != 0) d--;
    return d < 1 ? 1 : d;
}

/* What one run of a plan computes: some batches with all their heads, or some key heads of one batch with their heads. */
typedef struct part {
    int64_t batches, key_heads;
} part;

static part part_of(const wefti_cuda *cuda, const wefti_cuda_heads *is) {
    if (cuda->any_order) return (part){is->batch, is->key_heads};
    int64_t group = is->heads / is->key_heads, heads = PART_BYTES / head_bytes(is);
    if (heads >= is->heads) return (part){divisor(is->batch, heads / is->heads), is->key_heads};
    return (part){1, divisor(is->key_heads, heads / group)};
}

/* --- plans --- */

typedef struct wefti_cuda_dnn_attention_plan {
    struct wefti_cuda_dnn_attention_plan             *next;
    wefti_cuda_dnn_attention what;
    int32_t                  backward;
    wefti_cuda_dnn_plan      plan; /* plan.plan is NULL where cuDNN refused, once and for all */
} made;

/* Bytes of the library's workspace: scores where they are kept, gradients of every head's keys and values where heads share them, and
 * sums of dq; what no engine was seen to pass. */
static int64_t workspace_bytes(const wefti_cuda_heads *is, bool backward, bool ordered) {
    if (!backward) return EXTRA_BYTES;
    int64_t pairs = is->batch * is->heads;
    return (ordered ? pairs * head_bytes(is) : 0) + pairs * rounded(is->keys) * (is->depth + is->value_depth) * 2 +
           pairs * rounded(is->queries) * (rounded(is->depth) + 2) * 4 + EXTRA_BYTES;
}

static wefti_cuda_dnn_attention describe(const wefti_cuda *cuda, const wefti_call *call, bool backward) {
    wefti_cuda_dnn_attention what;
    const wefti_operand     *q = &call->inputs[backward];
    memset(&what, 0, sizeof what);
    what.is      = wefti_cuda_heads_of(call, backward);
    what.dtype   = q->dtype;
    what.ordered = backward && !cuda->any_order;
    memcpy(what.q, q[0].stride, sizeof what.q);
    memcpy(what.k, q[1].stride, sizeof what.k);
    memcpy(what.v, q[2].stride, sizeof what.v);
    for (int32_t i = 0; i < (backward ? 3 : 1); i++) {
        wefti_cuda_heads_out out = wefti_cuda_heads_result(call, i);
        memcpy(what.result[i], (int64_t[4]){out.batch, out.head, out.row, 1}, sizeof what.result[i]);
    }
    if (!backward) return what;
    memcpy(what.g, call->inputs[0].stride, sizeof what.g);
    memcpy(what.o, call->inputs[4].stride, sizeof what.o);
    part    p     = part_of(cuda, &what.is);
    int64_t group = what.is.heads / what.is.key_heads;
    what.is.batch = p.batches, what.is.key_heads = p.key_heads, what.is.heads = p.key_heads * group;
    return what;
}

/* An axis of one element may have any stride; the library wants it to be in order with the others. */
static void tidy(int64_t stride[4], int64_t batch, int64_t heads, int64_t rows, int64_t columns) {
    if (rows == 1) stride[2] = columns;
    if (heads == 1) stride[1] = rows * stride[2];
    if (batch == 1) stride[0] = heads * stride[1];
}

static weft_status make_plan(wefti_cuda *cuda, made *self) {
    wefti_cuda_dnn_graph     graph;
    cudnnBackendDescriptor_t operations[WEFTI_DNN_ATTENTION_OPERATIONS];
    wefti_cuda_dnn_attention what = self->what;
    const wefti_cuda_heads  *is   = &what.is;
    wefti_cuda_dnn_wishes    wishes = {.dtype = what.dtype, .workspace_bytes = workspace_bytes(is, self->backward, what.ordered)};
    tidy(what.q, is->batch, is->heads, is->queries, is->depth);
    tidy(what.k, is->batch, is->key_heads, is->keys, is->depth);
    tidy(what.v, is->batch, is->key_heads, is->keys, is->value_depth);
    tidy(what.o, is->batch, is->heads, is->queries, is->value_depth);
    tidy(what.g, is->batch, is->heads, is->queries, is->value_depth);
    if (self->backward) {
        tidy(what.result[0], is->batch, is->heads, is->queries, is->depth);
        tidy(what.result[1], is->batch, is->key_heads, is->keys, is->depth);
        tidy(what.result[2], is->batch, is->key_heads, is->keys, is->value_depth);
    } else tidy(what.result[0], is->batch, is->heads, is->queries, is->value_depth);
    wefti_cuda_dnn_begin(&graph, cuda->dnn);
    int32_t n = self->backward ? wefti_cuda_dnn_attention_backward(&graph, &what, operations)
                               : wefti_cuda_dnn_attention_forward(&graph, &what, operations);
    weft_status status = wefti_cuda_dnn_plan_make(cuda, &graph, operations, n, &wishes, &self->plan);
    wefti_cuda_dnn_end(&graph);
    return status;
}

/* The plan for a call, made at its first; NULL after a refusal. */
static weft_status find(wefti_cuda *cuda, const wefti_call *call, bool backward, made **made_out) {
    wefti_cuda_dnn_attention what = describe(cuda, call, backward);
    *made_out                     = NULL;
    WEFTI_TRY(wefti_cuda_dnn_open(cuda));
    made *self = cuda->dnn->attention;
    while (self && (self->backward != backward || memcmp(&self->what, &what, sizeof what) != 0)) self = self->next;
    if (!self) {
        WEFTI_TRY(wefti_alloc(sizeof *self, "a plan of cuDNN's attention", &self));
        memset(self, 0, sizeof *self);
        self->what     = what;
        self->backward = backward;
        self->next     = cuda->dnn->attention;
        cuda->dnn->attention = self;
        WEFTI_TRY(make_plan(cuda, self));
    }
    if (self->plan.plan) *made_out = self;
    return WEFT_OK;
}

void wefti_cuda_dnn_attention_close(wefti_cuda *cuda) {
    for (made *self = cuda->dnn->attention, *next; self; self = next) {
        next = self->next;
        wefti_cuda_dnn_plan_release(cuda, &self->plan);
        wefti_free(self, sizeof *self);
    }
    cuda->dnn->attention = NULL;
}

/* --- calls --- */

/* What a compiled call keeps: its plan (NULL: the other kernels compute it) and the numbers that go by value. */
typedef struct prepared {
    const made *by;
    float       scale, nothing, one;
    int32_t     keys, queries;
} prepared;

static size_t prepared_bytes(const wefti_call *call) {
    (void)call;
    return sizeof(prepared);
}

static weft_status prepare(wefti_cuda *cuda, const wefti_call *call, bool backward, void *memory) {
    prepared   *self   = memory;
    made       *by     = NULL;
    weft_status status = find(cuda, call, backward, &by);
    if (status != WEFT_OK && (cuda->broken != WEFT_OK || status == WEFT_E_NO_MEMORY)) return status;
    if (status != WEFT_OK)
        wefti_log(WEFT_LOG_WARNING, "cuda: %s '%s' runs on Weft's own kernels, which are slower: %s", wefti_ops[call->op].name,
                  call->name ? call->name : "", weft_error_message());
    wefti_cuda_heads is = wefti_cuda_heads_of(call, backward);
    *self = (prepared){.by = by, .scale = (float)is.scale, .nothing = -INFINITY, .one = 1, .keys = (int32_t)is.keys, .queries = (int32_t)is.queries};
    if (by && cuda->dnn->version < 91000) self->nothing = -FLT_MAX; /* those before 9.10 make NaN of infinities */
    return WEFT_OK;
}
static weft_status prepare_forward(wefti_cuda *cuda, const wefti_call *call, void *memory) { return prepare(cuda, call, false, memory); }
static weft_status prepare_backward(wefti_cuda *cuda, const wefti_call *call, void *memory) { return prepare(cuda, call, true, memory); }

/* The operands of one execution. */
typedef struct binding {
    int64_t ids[24];
    void   *pointers[24];
    int32_t n;
} binding;

static void bind(binding *b, int64_t id, const void *pointer) {
    b->ids[b->n]        = id;
    b->pointers[b->n++] = (void *)(uintptr_t)pointer;
}
static void bind_numbers(binding *b, const prepared *self) {
    bind(b, WEFTI_DNN_SCALE, &self->scale);
    if (!self->by->what.is.causal) return;
    bind(b, WEFTI_DNN_NOTHING, &self->nothing);
    if (self->keys == self->queries) return;
    bind(b, WEFTI_DNN_KEY_COUNT, &self->keys);
    bind(b, WEFTI_DNN_QUERY_COUNT, &self->queries);
}

static weft_status run_forward(const wefti_cuda_run *run) {
    const prepared *self = run->prepared;
    binding         b    = {.n = 0};
    if (!self->by) return wefti_cuda_attention.run(run);
    bind(&b, WEFTI_DNN_Q, run->inputs[0]);
    bind(&b, WEFTI_DNN_K, run->inputs[1]);
    bind(&b, WEFTI_DNN_V, run->inputs[2]);
    bind(&b, WEFTI_DNN_O, run->outputs[0]);
    bind(&b, WEFTI_DNN_LSE, run->outputs[1]);
    bind_numbers(&b, self);
    return wefti_cuda_dnn_execute(run->cuda, &self->by->plan, b.n, b.ids, b.pointers, run->scratch, run->stream);
}

static const char *past(const void *from, const int64_t *stride, int64_t batch, int64_t head) {
    return (const char *)from + (batch * stride[0] + head * stride[1]) * 2;
}

static int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }
/* Bytes of scratch before the library's workspace: sum(g*o) of every query and, where they come in any order, sums of dq. */
static int64_t sum_bytes(const wefti_cuda_dnn_attention *what) { return aligned(what->is.batch * what->is.heads * what->is.queries * 4); }
static int64_t query_bytes(const wefti_cuda_dnn_attention *what) {
    return what->ordered ? 0 : aligned(what->is.batch * what->is.heads * what->is.queries * what->is.depth * 4);
}
static int64_t own_bytes(const wefti_cuda_dnn_attention *what) { return sum_bytes(what) + query_bytes(what); }

/* One part, from a batch and a key head on. */
static weft_status run_part(const wefti_cuda_run *run, const wefti_cuda_heads *is, int64_t batch, int64_t key_head) {
    const prepared                 *self = run->prepared;
    const wefti_cuda_dnn_attention *what = &self->by->what;
    binding                         b    = {.n = 0};
    int64_t head = key_head * (is->heads / is->key_heads), row = (batch * is->heads + head) * is->queries;
    char   *queries = (char *)run->scratch + sum_bytes(what);
    bind(&b, WEFTI_DNN_G, past(run->inputs[0], what->g, batch, head));
    bind(&b, WEFTI_DNN_Q, past(run->inputs[1], what->q, batch, head));
    bind(&b, WEFTI_DNN_K, past(run->inputs[2], what->k, batch, key_head));
    bind(&b, WEFTI_DNN_V, past(run->inputs[3], what->v, batch, key_head));
    bind(&b, WEFTI_DNN_O, past(run->inputs[4], what->o, batch, head));
    bind(&b, WEFTI_DNN_LSE, (const float *)run->inputs[5] + row);
    for (int32_t i = 0; i < 3; i++) {
        const char *first = (const char *)run->outputs[run->call->n_outputs == 1 ? 0 : i] + wefti_cuda_heads_result(run->call, i).first * 2;
        bind(&b, WEFTI_DNN_DQ + i, past(first, what->result[i], batch, i == 0 ? head : key_head));
    }
    bind(&b, WEFTI_DNN_SUM, run->scratch);
    bind(&b, WEFTI_DNN_ONE, &self->one);
    if (!what->ordered) {
        bind(&b, WEFTI_DNN_QUERIES, queries);
        WEFTI_TRY(wefti_cuda_check(run->cuda, cudaMemsetAsync(queries, 0, (size_t)query_bytes(what), run->stream), "attention's gradient"));
    }
    bind_numbers(&b, self);
    return wefti_cuda_dnn_execute(run->cuda, &self->by->plan, b.n, b.ids, b.pointers, (char *)run->scratch + own_bytes(what), run->stream);
}

static weft_status run_backward(const wefti_cuda_run *run) {
    const prepared *self = run->prepared;
    if (!self->by) return wefti_cuda_attention_backward.run(run);
    wefti_cuda_heads is = wefti_cuda_heads_of(run->call, 1);
    part             p  = {self->by->what.is.batch, self->by->what.is.key_heads};
    for (int64_t batch = 0; batch < is.batch; batch += p.batches)
        for (int64_t head = 0; head < is.key_heads; head += p.key_heads) WEFTI_TRY(run_part(run, &is, batch, head));
    return WEFT_OK;
}

static int64_t scratch_forward(const wefti_cuda *cuda, const wefti_call *call) {
    (void)cuda, (void)call;
    return EXTRA_BYTES;
}
static int64_t scratch_backward(const wefti_cuda *cuda, const wefti_call *call) {
    wefti_cuda_dnn_attention what = describe(cuda, call, true);
    return wefti_max_i64(own_bytes(&what) + workspace_bytes(&what.is, true, what.ordered), wefti_cuda_attention_backward.scratch(cuda, call));
}

const wefti_cuda_kernel wefti_cuda_attention_dnn = {.name = "cuDNN attention", .accepts = accepts_forward, .scratch = scratch_forward,
                                                    .prepared_bytes = prepared_bytes, .prepare = prepare_forward, .run = run_forward};
const wefti_cuda_kernel wefti_cuda_attention_backward_dnn = {.name = "cuDNN attention gradient", .accepts = accepts_backward,
                                                             .scratch = scratch_backward, .prepared_bytes = prepared_bytes,
                                                             .prepare = prepare_backward, .run = run_backward};

/* Convolutions and their gradients by cuDNN, in f32, bf16 and f16, summed in f32.
 *
 * Taken are operands that lie densely, as N, C, H, W or with the channels last. A graph is one operation; its plan is made in prepare, once
 * for all calls of one shape, and kept with the device. Where cuDNN refuses, the call runs on conv.cu.
 * Cost: workspace for copies of the operands that cuDNN may make in another layout, at most 1 GiB. */
#include <string.h>

#include "cuda/dnn.h"

#define WORKSPACE_LEAST (INT64_C(16) << 20)
#define WORKSPACE_MOST (INT64_C(1) << 30)

/* The three operands of the forward convolution, wherever a call has them. */
typedef struct operands { const wefti_operand *x, *w, *y; } operands;

static operands operands_of(const wefti_call *call) {
    const wefti_operand *in = call->inputs, *out = call->outputs;
    switch (call->op) {
    case WEFT_OP_CONV2D_BACKWARD_INPUT: return (operands){.x = out, .w = &in[1], .y = in};
    case WEFT_OP_CONV2D_BACKWARD_WEIGHT: return (operands){.x = &in[1], .w = out, .y = in};
    default: return (operands){.x = in, .w = &in[1], .y = out};
    }
}

static const wefti_cuda_kernel *own_kernel(weft_op op) {
    switch (op) {
    case WEFT_OP_CONV2D_BACKWARD_INPUT: return &wefti_cuda_conv2d_backward_input;
    case WEFT_OP_CONV2D_BACKWARD_WEIGHT: return &wefti_cuda_conv2d_backward_weight;
    default: return &wefti_cuda_conv2d;
    }
}

/* Whether the operand lies densely in the order N, C, H, W, or with the channels last, and with which strides; those of axes of size 1 are
 * made to fit. */
static bool lies_so(const wefti_operand *operand, bool last, int64_t stride_out[4]) {
    static const int order[2][4] = {{3, 2, 1, 0}, {1, 3, 2, 0}}; /* axes from the fastest on */
    const int64_t   *dim = operand->shape.dim;
    int64_t          dense = 1;
    bool             fits  = true;
    for (int i = 0; i < 4; i++) {
        int axis         = order[last][i];
        stride_out[axis] = dense;
        fits             = fits && dim[axis] > 0 && (dim[axis] == 1 || operand->stride[axis] == dense);
        dense *= dim[axis];
    }
    return fits;
}

/* The layouts of all three operands; false where one is not dense. What lies either way (a kernel of one element) is taken to lie as the
 * others: cuDNN goes by strides. */
static bool layouts_of(const operands *o, int64_t stride_out[3][4]) {
    const wefti_operand *all[3] = {o->x, o->w, o->y};
    bool                 last = false;
    for (int i = 0; i < 3; i++) last = last || !lies_so(all[i], false, stride_out[i]);
    for (int i = 0; i < 3; i++)
        if (!lies_so(all[i], last, stride_out[i]) && !lies_so(all[i], !last, stride_out[i])) return false;
    return true;
}

static bool accepts(const wefti_cuda *cuda, const wefti_call *call) {
    operands o = operands_of(call);
    int64_t  stride[3][4];
    (void)cuda;
    return o.x->dtype != WEFT_F64 && layouts_of(&o, stride) && wefti_cuda_dnn_is_there();
}

static int64_t bytes_of(const wefti_operand *operand) {
    return wefti_operand_elements(operand) * (int64_t)weft_dtype_bytes(operand->dtype);
}

static int64_t scratch(const wefti_cuda *cuda, const wefti_call *call) {
    operands                 o   = operands_of(call);
    const wefti_cuda_kernel *own = own_kernel(call->op);
    int64_t                  copies = 2 * (bytes_of(o.x) + bytes_of(o.w) + bytes_of(o.y)) + WORKSPACE_LEAST;
    return wefti_max_i64(wefti_min_i64(copies, WORKSPACE_MOST), own->scratch(cuda, call));
}

/* --- prepare --- */

static const int64_t ids[3] = {'x', 'w', 'y'};

struct wefti_cuda_dnn_convolution_plan;
typedef struct prepared {
    const struct wefti_cuda_dnn_convolution_plan *by; /* NULL: conv.cu computes it, as cuDNN refused */
} prepared;

static size_t prepared_bytes(const wefti_call *call) {
    (void)call;
    return sizeof(prepared);
}

/* What cuDNN's choice of an engine depends on; compared as bytes, so zeroed before it is filled. */
typedef struct key {
    int32_t op, format, dtype, stride[2], pad[4], dilation[2], spare;
    int64_t dim[3][4], strides[3][4], alignment[3], workspace_bytes;
} key;

typedef struct wefti_cuda_dnn_convolution_plan {
    struct wefti_cuda_dnn_convolution_plan *next;
    key                                     of;
    wefti_cuda_dnn_plan                     plan; /* plan.plan is NULL where cuDNN refused, once and for all */
} made;

static void fill_key(const wefti_call *call, key *out) {
    operands             o      = operands_of(call);
    const wefti_operand *all[3] = {o.x, o.w, o.y};
    memset(out, 0, sizeof *out);
    out->op              = (int32_t)call->op;
    out->format          = 2;
    out->dtype           = (int32_t)call->outputs[0].dtype;
    out->workspace_bytes = call->scratch_bytes;
    for (int i = 0; i < 2; i++) {
        out->stride[i]   = call->attrs->conv.stride[i] > 0 ? call->attrs->conv.stride[i] : 1;
        out->dilation[i] = call->attrs->conv.dilation[i] > 0 ? call->attrs->conv.dilation[i] : 1;
    }
    memcpy(out->pad, call->attrs->conv.pad, sizeof out->pad);
    (void)layouts_of(&o, out->strides);
    for (int i = 0; i < 3; i++) {
        uint64_t bits = 16 | (uint64_t)all[i]->offset_bytes; /* buffers are aligned to 64 bytes */
        memcpy(out->dim[i], all[i]->shape.dim, sizeof out->dim[i]);
        out->alignment[i] = (int64_t)(bits & (~bits + 1));
    }
}

static cudnnBackendDescriptor_t make_convolution(wefti_cuda_dnn_graph *graph, const key *k) {
    cudnnBackendDescriptor_t convolution = wefti_cuda_dnn_make(graph, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    cudnnDataType_t          sums        = CUDNN_DATA_FLOAT;
    cudnnConvolutionMode_t   mode        = CUDNN_CROSS_CORRELATION;
    int64_t                  axes = 2, stride[2] = {k->stride[0], k->stride[1]}, dilation[2] = {k->dilation[0], k->dilation[1]};
    int64_t                  before[2] = {k->pad[0], k->pad[2]}, after[2] = {k->pad[1], k->pad[3]};
    wefti_cuda_dnn_set(graph, convolution, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &sums);
    wefti_cuda_dnn_set(graph, convolution, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    wefti_cuda_dnn_set(graph, convolution, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &axes);
    wefti_cuda_dnn_set(graph, convolution, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, stride);
    wefti_cuda_dnn_set(graph, convolution, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, dilation);
    wefti_cuda_dnn_set(graph, convolution, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, before);
    wefti_cuda_dnn_set(graph, convolution, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, after);
    wefti_cuda_dnn_finish(graph, convolution, "finishing a convolution, descriptor");
    return convolution;
}

/* The names of one operation and its attributes; of the tensors in the order x, w, y. */
typedef struct names {
    cudnnBackendDescriptorType_t type;
    cudnnBackendAttributeName_t  convolution, alpha, beta, tensor[3];
} names;

static names names_of(weft_op op) {
    switch (op) {
    case WEFT_OP_CONV2D_BACKWARD_INPUT:
        return (names){CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
                       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
                       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
                       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
                       {CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
                        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY}};
    case WEFT_OP_CONV2D_BACKWARD_WEIGHT:
        return (names){CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
                       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
                       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
                       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA,
                       {CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
                        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY}};
    default:
        return (names){CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
                       CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                       CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                       CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
                       {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                        CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y}};
    }
}

static cudnnBackendDescriptor_t make_operation(wefti_cuda_dnn_graph *graph, const wefti_call *call, const key *k) {
    names                    n           = names_of(call->op);
    cudnnBackendDescriptor_t convolution = make_convolution(graph, k), tensor;
    cudnnBackendDescriptor_t operation   = wefti_cuda_dnn_make(graph, n.type);
    float                    one = 1, zero = 0;
    for (int i = 0; i < 3; i++) {
        tensor = wefti_cuda_dnn_tensor(graph, &(wefti_cuda_dnn_operand){.id        = ids[i],
                                                                        .dtype     = wefti_cuda_dnn_dtype(call->outputs[0].dtype),
                                                                        .rank      = 4,
                                                                        .dim       = k->dim[i],
                                                                        .stride    = k->strides[i],
                                                                        .alignment = k->alignment[i]});
        wefti_cuda_dnn_set(graph, operation, n.tensor[i], CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &tensor);
    }
    wefti_cuda_dnn_set(graph, operation, n.convolution, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &convolution);
    wefti_cuda_dnn_set(graph, operation, n.alpha, CUDNN_TYPE_FLOAT, 1, &one);
    wefti_cuda_dnn_set(graph, operation, n.beta, CUDNN_TYPE_FLOAT, 1, &zero);
    wefti_cuda_dnn_finish(graph, operation, "finishing the operation, descriptor");
    return operation;
}

static weft_status make_plan(wefti_cuda *cuda, const wefti_call *call, made *self) {
    operands              o = operands_of(call);
    int64_t               bytes[3] = {bytes_of(o.x), bytes_of(o.w), bytes_of(o.y)};
    wefti_cuda_dnn_graph  graph;
    int32_t               result = call->op == WEFT_OP_CONV2D ? 2 : call->op == WEFT_OP_CONV2D_BACKWARD_WEIGHT;
    wefti_cuda_dnn_wishes wishes = {.dtype = call->outputs[0].dtype, .workspace_bytes = call->scratch_bytes, .n_operands = 3, .result = result,
                                    .ids = ids, .bytes = bytes, .key = &self->of, .key_bytes = sizeof self->of};
    wefti_cuda_dnn_begin(&graph, cuda->dnn);
    cudnnBackendDescriptor_t operation = make_operation(&graph, call, &self->of);
    weft_status              status    = wefti_cuda_dnn_plan_make(cuda, &graph, &operation, 1, &wishes, &self->plan);
    wefti_cuda_dnn_end(&graph);
    return status;
}

/* The plan for a call, made at its first; NULL after a refusal. */
static weft_status find(wefti_cuda *cuda, const wefti_call *call, made **made_out) {
    key k;
    *made_out = NULL;
    WEFTI_TRY(wefti_cuda_dnn_open(cuda));
    fill_key(call, &k);
    made *self = cuda->dnn->convolutions;
    while (self && memcmp(&self->of, &k, sizeof k) != 0) self = self->next;
    if (!self) {
        WEFTI_TRY(wefti_alloc(sizeof *self, "a plan of cuDNN's convolution", &self));
        self->of                 = k;
        self->next               = cuda->dnn->convolutions;
        cuda->dnn->convolutions = self;
        WEFTI_TRY(make_plan(cuda, call, self));
    }
    if (self->plan.plan) *made_out = self;
    return WEFT_OK;
}

void wefti_cuda_dnn_convolutions_close(wefti_cuda *cuda) {
    for (made *self = cuda->dnn->convolutions, *next; self; self = next) {
        next = self->next;
        wefti_cuda_dnn_plan_release(cuda, &self->plan);
        wefti_free(self, sizeof *self);
    }
    cuda->dnn->convolutions = NULL;
}

static weft_status prepare(wefti_cuda *cuda, const wefti_call *call, void *memory) {
    made       *by     = NULL;
    weft_status status = find(cuda, call, &by);
    if (status != WEFT_OK && (cuda->broken != WEFT_OK || status == WEFT_E_NO_MEMORY)) return status;
    if (status != WEFT_OK)
        wefti_log(WEFT_LOG_INFO, "cuda: %s '%s' runs on Weft's own kernel: %s", wefti_ops[call->op].name, call->name ? call->name : "",
                  weft_error_message());
    ((prepared *)memory)->by = by;
    return WEFT_OK;
}

static weft_status run_dnn(const wefti_cuda_run *run) {
    const prepared *self = run->prepared;
    void           *in[2] = {(void *)(uintptr_t)run->inputs[0], (void *)(uintptr_t)run->inputs[1]}, *out = run->outputs[0];
    void           *pointers[3] = {in[0], in[1], out}; /* x, w, y */
    if (!self->by) return own_kernel(run->call->op)->run(run);
    if (run->call->op == WEFT_OP_CONV2D_BACKWARD_INPUT) pointers[0] = out, pointers[2] = in[0];
    if (run->call->op == WEFT_OP_CONV2D_BACKWARD_WEIGHT) pointers[0] = in[1], pointers[1] = out, pointers[2] = in[0];
    return wefti_cuda_dnn_execute(run->cuda, &self->by->plan, 3, ids, pointers, run->scratch, run->stream);
}

#define KERNEL(NAME)                                                                                                            \
    {.name = NAME, .accepts = accepts, .scratch = scratch, .prepared_bytes = prepared_bytes, .prepare = prepare, \
     .run = run_dnn}
const wefti_cuda_kernel wefti_cuda_conv2d_dnn                 = KERNEL("cuDNN conv2d");
const wefti_cuda_kernel wefti_cuda_conv2d_backward_input_dnn  = KERNEL("cuDNN conv2d input gradient");
const wefti_cuda_kernel wefti_cuda_conv2d_backward_weight_dnn = KERNEL("cuDNN conv2d weight gradient");

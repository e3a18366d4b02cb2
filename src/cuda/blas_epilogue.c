/* FUSED_MATMUL: products that cuBLASLt finishes on their way to memory, by what it calls epilogues.
 *
 * A program is recognised where it is one of those: a row added (the bias), a matrix of the result's size added, RELU or GELU_TANH behind
 * them, the value before GELU_TANH stored, too; the gradient of GELU_TANH, maybe with the sums over its rows; or, without a program, the sums of an
 * operand. Of GELU_TANH only in 16-bit types, whose rounding hides the library's quicker tanh. All else is refused by query, with a reason.
 *
 * Not every epilogue pays: some have slow algorithms only. So where products are measured, the whole is timed against the plain product followed
 * by the fused kernel that would do the rest, once, and the verdict is kept with the algorithm. The two calls apart are also what is
 * left where the library refuses after all. Both ways give what op.h allows; which one it is does not change from run to run.
 * Cost: the workspace of the product. Measuring takes memory for one more set of operands, for the time of it. */
#include <stdlib.h>
#include <string.h>

#include "core/tensor/operand.h"
#include "cuda/blas.h"
#include "cuda/nvrtc.h"

enum { OPERANDS_MOST = 8, SIDE_COLUMNS = 8 /* cuBLASLt wants rows of what it stores beside the result to be a multiple of this */ };
#define MEASURED_BYTES_MOST (INT64_C(6) << 30)

/* --- recognising --- */

/* Which epilogue it is, and which inputs and outputs of the call it takes as what; -1: none. */
typedef struct recognised {
    cublasLtEpilogue_t kind;
    int32_t            added, bias, before; /* inputs; `before`: what stood before the activation */
    int32_t            result, stored, sums; /* outputs; `stored`: the same, of the forward pass */
} recognised;

/* Whether the operand is a matrix that lies as a contiguous result. */
static bool is_matrix(const wefti_operand *operand, weft_shape space) {
    return wefti_operand_elements(operand) == weft_shape_elements(space) && wefti_operand_is_contiguous(operand);
}

/* Whether every row of the space sees the same contiguous row. */
static bool is_row(const wefti_operand *operand, weft_shape space) {
    int32_t last = operand->shape.rank - 1;
    if (last < 0 || operand->shape.dim[last] != space.dim[space.rank - 1]) return false;
    for (int32_t axis = 0; axis < last; axis++)
        if (operand->stride[axis] != 0 && operand->shape.dim[axis] != 1) return false;
    return operand->stride[last] == 1 || operand->shape.dim[last] == 1;
}

/* Takes one ADD of the chain in: NULL, or why not. */
static const char *take_add(const wefti_call *call, const wefti_fused_instruction *it, int32_t previous, recognised *out) {
    int32_t other = it->source[it->source[0] == previous];
    if ((it->source[0] != previous && it->source[1] != previous) || other < 1) return "a sum that is no row's or matrix's with the product";
    const wefti_operand *operand = &call->inputs[other + 1];
    weft_shape           space = call->attrs->matmul.fused->space;
    if (is_row(operand, space) && out->bias < 0) out->bias = other + 1;
    else if (is_matrix(operand, space) && out->added < 0) out->added = other + 1;
    else return "more is added than one row and one matrix that lies as the result";
    return NULL;
}

static const char *take_chain(const wefti_call *call, weft_op *activation_out, recognised *out) {
    const wefti_fused *fused = call->attrs->matmul.fused;
    weft_dtype         dtype = call->inputs[0].dtype;
    *activation_out = WEFT_OP_COPY;
    for (int32_t j = 0; j < fused->n_instructions; j++) {
        const wefti_fused_instruction *it       = &fused->instruction[j];
        int32_t                        previous = -j;
        const char                    *why      = NULL;
        bool                           gelu     = it->op == WEFT_OP_GELU_TANH || it->op == WEFT_OP_GELU_TANH_BACKWARD;
        if (*activation_out != WEFT_OP_COPY) return "more follows the activation";
        if (it->dtype != dtype) return "the result has another dtype";
        if (gelu && dtype == WEFT_F32) return "its tanh is not accurate enough for f32";
        if (it->op == WEFT_OP_ADD) why = take_add(call, it, previous, out);
        else if (it->op == WEFT_OP_RELU || it->op == WEFT_OP_GELU_TANH) *activation_out = it->op;
        else if (it->op == WEFT_OP_GELU_TANH_BACKWARD && j == 0) {
            *activation_out = it->op;
            out->before     = it->source[1] + 1;
            if (it->source[0] != 0 || it->source[1] < 1 || !is_matrix(&call->inputs[out->before], fused->space)) why = "the gradient is of something else";
        } else return "what follows is no bias, residual, relu or gelu_tanh";
        if (why) return why;
    }
    return NULL;
}

static const char *take_outputs(const wefti_cuda *cuda, const wefti_call *call, weft_op activation, recognised *out) {
    const wefti_fused *fused = call->attrs->matmul.fused;
    int32_t            last  = fused->n_instructions - 1;
    uint32_t           rows  = (1u << (fused->space.rank - 1)) - 1;
    for (int32_t k = 0; k < fused->n_outputs; k++) {
        const wefti_fused_output *output = &fused->output[k];
        if (output->reduce < 0 && output->instruction == last && out->result < 0) out->result = k;
        else if (output->reduce < 0 && output->instruction == last - 1 && activation == WEFT_OP_GELU_TANH && out->stored < 0) out->stored = k;
        else if (output->reduce == WEFT_OP_SUM && output->instruction == last && output->axes == rows &&
                 activation == WEFT_OP_GELU_TANH_BACKWARD && out->sums < 0) {
            if (!wefti_cuda_nvrtc_is_there(cuda, NULL)) return "without NVRTC there would be no kernel for its sums";
            out->sums = k;
        } else return "what stands in between is wanted, too";
    }
    return out->result < 0 ? "the result is not stored" : NULL;
}

/* NULL, or why the call is no epilogue of cuBLASLt. */
static const char *recognise(const wefti_cuda *cuda, const wefti_call *call, recognised *out) {
    const wefti_fused *fused = call->attrs->matmul.fused;
    weft_op            activation;
    *out = (recognised){CUBLASLT_EPILOGUE_DEFAULT, -1, -1, -1, -1, -1, -1};
    if (call->inputs[0].dtype == WEFT_F64) return "cuBLASLt has no epilogues in f64";
    if (call->n_inputs + call->n_outputs > OPERANDS_MOST) return "there are too many operands";
    if (!fused) {
        if (!call->attrs->matmul.sums) return "it is a plain product";
        out->result = 0;
        out->sums   = 1;
        out->kind   = call->attrs->matmul.sums == WEFTI_SUMS_A ? CUBLASLT_EPILOGUE_BGRADB : CUBLASLT_EPILOGUE_BGRADA;
        return NULL;
    }
    if (call->attrs->matmul.sums) return "cuBLASLt has no epilogue with an operand's sums beside something else";
    const char *why = take_chain(call, &activation, out);
    if (!why) why = take_outputs(cuda, call, activation, out);
    if (why) return why;
    bool side = out->stored >= 0, bias = out->bias >= 0;
    if ((side || out->before >= 0) && fused->space.dim[fused->space.rank - 1] % SIDE_COLUMNS != 0)
        return "cuBLASLt wants a multiple of 8 columns for gelu and its gradient";
    if (activation == WEFT_OP_RELU) out->kind = bias ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_RELU;
    else if (activation == WEFT_OP_GELU_TANH_BACKWARD) out->kind = out->sums >= 0 ? CUBLASLT_EPILOGUE_DGELU_BGRAD : CUBLASLT_EPILOGUE_DGELU;
    else if (activation == WEFT_OP_GELU_TANH && side) out->kind = bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    else if (activation == WEFT_OP_GELU_TANH) out->kind = bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
    else if (bias) out->kind = CUBLASLT_EPILOGUE_BIAS;
    return NULL;
}

/* --- the same as calls of their own --- */

/* The plain product, into the result's memory; the program from there, in place; the sums of an operand. Points into itself. */
typedef struct apart {
    wefti_call    product, program, sum; /* program.n_outputs, sum.n_outputs 0: there is none */
    wefti_operand matrix, program_inputs[OPERANDS_MOST], summed;
    wefti_attrs   program_attrs, sum_attrs;
    int32_t       result;
} apart;

static int32_t result_of(const wefti_call *call) {
    const wefti_fused *fused = call->attrs->matmul.fused;
    for (int32_t k = 0; fused && k < fused->n_outputs; k++)
        if (fused->output[k].reduce < 0 && fused->output[k].instruction == fused->n_instructions - 1) return k;
    return 0;
}

static void split(const wefti_call *call, apart *out) {
    const wefti_fused *fused = call->attrs->matmul.fused;
    int32_t            sums = call->attrs->matmul.sums, first = sums == WEFTI_SUMS_B;
    memset(out, 0, sizeof *out);
    out->result = result_of(call);
    out->matrix = call->outputs[out->result];
    out->matrix.shape = (weft_shape){.rank = 2, .dim = {call->inputs[0].shape.dim[call->attrs->matmul.trans_a != 0],
                                                        call->inputs[1].shape.dim[call->attrs->matmul.trans_b == 0]}};
    wefti_contiguous_strides(out->matrix.shape, out->matrix.stride);
    out->product = *call;
    out->product.op = WEFT_OP_MATMUL;
    out->product.n_inputs = 2;
    out->product.n_outputs = 1;
    out->product.outputs = &out->matrix;
    if (fused) {
        out->program_inputs[0] = call->outputs[out->result];
        for (int32_t i = 2; i < call->n_inputs && i <= OPERANDS_MOST; i++) out->program_inputs[i - 1] = call->inputs[i];
        out->program_attrs.fused.fused = call->attrs->matmul.fused;
        out->program = *call;
        out->program.op = WEFT_OP_FUSED;
        out->program.attrs = &out->program_attrs;
        out->program.n_inputs = call->n_inputs - 1;
        out->program.n_outputs = fused->n_outputs;
        out->program.inputs = out->program_inputs;
    }
    if (sums) {
        bool turned = first == 0 ? call->attrs->matmul.trans_a : !call->attrs->matmul.trans_b; /* the inner index is the first */
        out->summed = call->inputs[first];
        out->sum_attrs.reduce.axes = turned ? 1 : 2;
        out->sum = *call;
        out->sum.op = WEFT_OP_SUM;
        out->sum.attrs = &out->sum_attrs;
        out->sum.n_inputs = out->sum.n_outputs = 1;
        out->sum.inputs = &out->summed;
        out->sum.outputs = &call->outputs[call->n_outputs - 1];
    }
}

static bool cut_whole(const apart *parts, wefti_cuda_cut *out) {
    return wefti_cuda_blas_cut(&parts->product, out) && out->axis < 0 && out->loop == 1;
}

static const char *refusal(const wefti_cuda *cuda, const wefti_call *call) {
    recognised     how;
    apart          parts;
    wefti_cuda_cut c;
    const char    *why = NULL;
    const char    *wish = getenv("WEFT_CUDA_EPILOGUE");
    if (wish && strcmp(wish, "0") == 0) return "WEFT_CUDA_EPILOGUE=0";
    if (!wefti_cuda_blas_load(&why)) return why;
    why = recognise(cuda, call, &how);
    if (why) return why;
    split(call, &parts);
    return cut_whole(&parts, &c) ? NULL : "the matrices do not lie as cuBLASLt wants them";
}

const char *wefti_cuda_why_no_epilogue(const wefti_cuda *cuda, const wefti_call *call) { return refusal(cuda, call); }
static bool accepts(const wefti_cuda *cuda, const wefti_call *call) { return refusal(cuda, call) == NULL; }

static int64_t scratch_of(const wefti_cuda *cuda, const wefti_cuda_kernel *kernel, const wefti_call *call) {
    return kernel && kernel->scratch ? kernel->scratch(cuda, call) : 0;
}

static int64_t scratch(const wefti_cuda *cuda, const wefti_call *call) {
    apart parts;
    split(call, &parts);
    int64_t bytes = scratch_of(cuda, &wefti_cuda_matmul_blas, &parts.product);
    if (parts.program.n_outputs) bytes = wefti_max_i64(bytes, scratch_of(cuda, wefti_cuda_choose(cuda, &parts.program), &parts.program));
    if (parts.sum.n_outputs) bytes = wefti_max_i64(bytes, scratch_of(cuda, &wefti_cuda_reduce, &parts.sum));
    return bytes;
}

/* --- prepare --- */

typedef struct prepared {
    recognised               how;
    bool                     is_apart, has_apart;
    wefti_cuda_blas_call     together;
    apart                    parts;
    const wefti_cuda_kernel *program;
    void                    *product_memory, *program_memory; /* what the kernels of the parts prepared */
} prepared;

static size_t product_bytes(const wefti_call *call) { return wefti_align_up(wefti_cuda_matmul_blas.prepared_bytes(call), WEFTI_CACHE_LINE); }

static size_t prepared_bytes(const wefti_call *call) {
    apart  parts;
    size_t most = 0;
    split(call, &parts);
    for (int i = 0; parts.program.n_outputs && i < WEFTI_CUDA_CHOICES; i++) {
        const wefti_cuda_kernel *kernel = wefti_cuda_kernels[WEFT_OP_FUSED][i];
        if (kernel && kernel->prepared_bytes && kernel->prepared_bytes(&parts.program) > most) most = kernel->prepared_bytes(&parts.program);
    }
    return wefti_align_up(sizeof(prepared), WEFTI_CACHE_LINE) + product_bytes(&parts.product) + most;
}

static weft_status prepare_apart(wefti_cuda *cuda, prepared *self) {
    if (self->has_apart) return WEFT_OK;
    WEFTI_TRY(wefti_cuda_matmul_blas.prepare(cuda, &self->parts.product, self->product_memory));
    self->has_apart = true;
    if (!self->parts.program.n_outputs) return WEFT_OK;
    self->program = wefti_cuda_choose(cuda, &self->parts.program);
    if (!self->program) return wefti_fail(WEFT_E_INTERNAL, "there is no kernel for what follows a product");
    return self->program->prepare ? self->program->prepare(cuda, &self->parts.program, self->program_memory) : WEFT_OK;
}

static weft_status prepare_together(wefti_cuda *cuda, const wefti_call *call, prepared *self) {
    const recognised   *how = &self->how;
    wefti_cuda_epilogue epilogue = {.kind = how->kind};
    if (how->added >= 0) epilogue.added = &call->inputs[how->added];
    if (how->bias >= 0) epilogue.vector = &call->inputs[how->bias];
    if (how->sums >= 0) epilogue.vector = &call->outputs[how->sums];
    if (how->before >= 0) epilogue.side = &call->inputs[how->before];
    if (how->stored >= 0) epilogue.side = &call->outputs[how->stored];
    if (!cut_whole(&self->parts, &self->together.c)) return wefti_fail(WEFT_E_INTERNAL, "not a product for cuBLASLt");
    return wefti_cuda_blas_prepare(cuda, &self->parts.product, &epilogue, &self->together);
}

/* --- run --- */

static weft_status run_together(const wefti_cuda_run *run) {
    const prepared        *self = run->prepared;
    const recognised      *how = &self->how;
    wefti_cuda_blas_places at = {.first = run->inputs[1], .second = run->inputs[0], .result = run->outputs[how->result], .workspace = run->scratch};
    if (how->added >= 0) at.added = run->inputs[how->added];
    if (how->bias >= 0) at.vector = (void *)(uintptr_t)run->inputs[how->bias];
    if (how->sums >= 0) at.vector = run->outputs[how->sums];
    if (how->before >= 0) at.side = (void *)(uintptr_t)run->inputs[how->before];
    if (how->stored >= 0) at.side = run->outputs[how->stored];
    cublasStatus_t status = wefti_cuda_blas_multiply(run->cuda->blas, &self->together.product, &at, run->stream);
    if (status == CUBLAS_STATUS_SUCCESS) return WEFT_OK;
    const wefti_cuda_product *p = &self->together.c.p;
    return wefti_fail(WEFT_E_DEVICE, "[%lld, %lld] x [%lld, %lld] %s with epilogue %d: cublasLtMatmul: %s", (long long)p->m, (long long)p->k,
                      (long long)p->k, (long long)p->n, weft_dtype_name(run->call->inputs[0].dtype), (int)how->kind,
                      run->cuda->blas->f->cublasLtGetStatusString(status));
}

static weft_status run_apart(const wefti_cuda_run *given) {
    const prepared *self = given->prepared;
    const apart    *parts = &self->parts;
    const void     *inputs[OPERANDS_MOST];
    void           *result = given->outputs[parts->result];
    wefti_cuda_run  run = *given;
    run.call     = &parts->product;
    run.outputs  = &result;
    run.prepared = self->product_memory;
    WEFTI_TRY(wefti_cuda_matmul_blas.run(&run));
    if (parts->program.n_outputs) {
        inputs[0] = result;
        for (int32_t i = 2; i < given->call->n_inputs; i++) inputs[i - 1] = given->inputs[i];
        run.call     = &parts->program;
        run.inputs   = inputs;
        run.outputs  = given->outputs;
        run.prepared = self->program_memory;
        WEFTI_TRY(self->program->run(&run));
    }
    if (!parts->sum.n_outputs) return WEFT_OK;
    run.call     = &parts->sum;
    run.inputs   = &given->inputs[given->call->attrs->matmul.sums == WEFTI_SUMS_B];
    run.outputs  = &given->outputs[given->call->n_outputs - 1];
    run.prepared = NULL;
    return wefti_cuda_reduce.run(&run);
}

static weft_status run(const wefti_cuda_run *given) {
    return ((const prepared *)given->prepared)->is_apart ? run_apart(given) : run_together(given);
}

/* --- which is quicker --- */

/* Bytes from an operand's first element to behind its last. */
static int64_t extent(const wefti_operand *operand) {
    int64_t last = 0;
    for (int32_t axis = 0; axis < operand->shape.rank; axis++) last += (operand->shape.dim[axis] - 1) * operand->stride[axis];
    return (last + 1) * (int64_t)weft_dtype_bytes(operand->dtype);
}

static bool launch_together(void *context) { return run_together(context) == WEFT_OK; }
static bool launch_apart(void *context) { return run_apart(context) == WEFT_OK; }

/* Milliseconds of both ways on operands of its own: small numbers. False where there is no memory for it. */
static bool time_both(wefti_cuda *cuda, const wefti_call *call, prepared *self, float ms_out[2]) {
    void   *memory[OPERANDS_MOST + 1] = {NULL};
    int32_t n = call->n_inputs + call->n_outputs;
    int64_t total = call->scratch_bytes;
    bool    good = true;
    for (int32_t i = 0; i <= n && good; i++) {
        int64_t bytes = i == n ? call->scratch_bytes + 1 : extent(i < call->n_inputs ? &call->inputs[i] : &call->outputs[i - call->n_inputs]);
        total += bytes;
        good = total <= MEASURED_BYTES_MOST && cudaMalloc(&memory[i], (size_t)bytes) == cudaSuccess &&
               cudaMemsetAsync(memory[i], 0x3c, (size_t)bytes, cuda->stream) == cudaSuccess;
    }
    if (good) {
        wefti_cuda_run with = {.cuda = cuda, .call = call, .inputs = (const void *const *)memory, .outputs = memory + call->n_inputs,
                               .scratch = memory[n], .prepared = self, .stream = cuda->stream};
        ms_out[0] = wefti_cuda_blas_time(cuda, launch_together, &with);
        ms_out[1] = wefti_cuda_blas_time(cuda, launch_apart, &with);
        good = ms_out[0] >= 0 && ms_out[1] >= 0;
    }
    cudaStreamSynchronize(cuda->stream);
    for (int32_t i = 0; i <= n; i++) cudaFree(memory[i]);
    cudaGetLastError(); /* a refused allocation is no fault */
    return good;
}

static weft_status settle(wefti_cuda *cuda, const wefti_call *call, prepared *self) {
    wefti_cuda_blas_product *product = &self->together.product;
    float                    ms[2];
    if (product->verdict == WEFTI_CUDA_BLAS_UNKNOWN && wefti_cuda_blas_is_measured(&product->key)) {
        WEFTI_TRY(prepare_apart(cuda, self));
        if (time_both(cuda, call, self, ms)) {
            wefti_log(WEFT_LOG_INFO, "cuda: '%s': %.3f ms with epilogue %d, %.3f ms apart", call->name ? call->name : "", (double)ms[0],
                      (int)self->how.kind, (double)ms[1]);
            wefti_cuda_blas_settle(cuda, product, ms[0] <= ms[1] ? WEFTI_CUDA_BLAS_TOGETHER : WEFTI_CUDA_BLAS_APART);
        }
    }
    self->is_apart = product->verdict == WEFTI_CUDA_BLAS_APART;
    return WEFT_OK;
}

static weft_status prepare(wefti_cuda *cuda, const wefti_call *call, void *memory) {
    prepared   *self = memory;
    const char *why = recognise(cuda, call, &self->how);
    if (why) return wefti_fail(WEFT_E_INTERNAL, "no epilogue: %s", why);
    split(call, &self->parts);
    self->product_memory = (char *)memory + wefti_align_up(sizeof *self, WEFTI_CACHE_LINE);
    self->program_memory = (char *)self->product_memory + product_bytes(&self->parts.product);
    weft_status status = prepare_together(cuda, call, self);
    if (status == WEFT_OK) WEFTI_TRY(settle(cuda, call, self));
    else if (cuda->broken != WEFT_OK || status == WEFT_E_NO_MEMORY) return status;
    else {
        wefti_log(WEFT_LOG_INFO, "cuda: matmul '%s' and what follows it run apart: %s", call->name ? call->name : "", weft_error_message());
        self->is_apart = true;
    }
    return self->is_apart ? prepare_apart(cuda, self) : WEFT_OK;
}

static void unprepare(wefti_cuda *cuda, void *memory) {
    prepared *self = memory;
    wefti_cuda_blas_unprepare(cuda, &self->together);
    if (!self->has_apart) return;
    wefti_cuda_matmul_blas.unprepare(cuda, self->product_memory);
    if (self->program && self->program->unprepare) self->program->unprepare(cuda, self->program_memory);
}

const wefti_cuda_kernel wefti_cuda_fused_matmul = {.name           = "cuBLASLt with an epilogue",
                                                   .accepts        = accepts,
                                                   .scratch        = scratch,
                                                   .prepared_bytes = prepared_bytes,
                                                   .prepare        = prepare,
                                                   .unprepare      = unprepare,
                                                   .run            = run};

/* FP8_MATMUL by the packed product of f32: codes become the numbers that they stand for, scale and all, which f32 holds exactly, through a table
 * of 256. Cost: scratch for f32 copies of operands and result. */
#include "core/cpu/kernels/convert.h"
#include "core/cpu/kernels/fast.h"
#include "core/tensor/fp8.h"

#define FP8(x) fp8_##x
#define FP8_FUNCTION WEFTI_INLINE
#include "core/tensor/fp8_code.h"

enum { CHUNK = 1 << 14 };

static const wefti_attrs turned = {.matmul = {.trans_b = 1}};

/* The call of f32 that it is done by. */
typedef struct wide {
    wefti_call    call;
    wefti_operand inputs[2], output;
} wide;

static void widen_call(const wefti_call *call, wide *w) {
    *w = (wide){.call = *call, .inputs = {call->inputs[0], call->inputs[1]}, .output = call->outputs[0]};
    for (int i = 0; i < 2; i++) {
        w->inputs[i].dtype = WEFT_F32;
        wefti_contiguous_strides(w->inputs[i].shape, w->inputs[i].stride);
    }
    w->output.dtype      = WEFT_F32;
    w->output.shape      = weft_shape(w->inputs[0].shape.dim[0], w->inputs[1].shape.dim[0]); /* its rows may lie along several axes */
    wefti_contiguous_strides(w->output.shape, w->output.stride);
    w->output.peers_load = false;
    w->call.op       = WEFT_OP_MATMUL;
    w->call.attrs    = &turned;
    w->call.n_inputs = 2;
    w->call.inputs   = w->inputs;
    w->call.outputs  = &w->output;
}

static int64_t f32_bytes(const wefti_operand *operand) { return (wefti_operand_elements(operand) * 4 + 63) & ~INT64_C(63); }

static bool accepts(const wefti_call *call) {
    return wefti_operand_is_contiguous(&call->inputs[0]) && wefti_operand_is_contiguous(&call->inputs[1]);
}

static int64_t scratch(const wefti_call *call, int32_t threads) {
    wide w;
    widen_call(call, &w);
    return f32_bytes(&w.inputs[0]) + f32_bytes(&w.inputs[1]) + f32_bytes(&w.output) + wefti_kernel_matmul.scratch(&w.call, threads);
}

typedef struct conversion {
    const uint8_t *codes;
    const float   *table, *from;
    void          *to;
    int64_t        elements;
    weft_dtype     dtype;
} conversion;

static void decode_chunk(void *context, int64_t chunk, int32_t worker) {
    const conversion *c   = context;
    int64_t           end = wefti_min_i64((chunk + 1) * CHUNK, c->elements);
    float            *to  = c->to;
    (void)worker;
    for (int64_t i = chunk * CHUNK; i < end; i++) to[i] = c->table[c->codes[i]];
}

static void narrow_chunk(void *context, int64_t chunk, int32_t worker) {
    const conversion *c  = context;
    int64_t           at = chunk * CHUNK, count = wefti_min_i64(CHUNK, c->elements - at);
    (void)worker;
    convert_from_f32(c->from + at, c->dtype, count, (char *)c->to + at * (int64_t)weft_dtype_bytes(c->dtype));
}

static void decode(const wefti_cpu_run *run, int32_t i, float *to) {
    float      table[256], scale = *(const float *)run->inputs[2 + i];
    conversion c = {.codes = run->inputs[i], .table = table, .to = to, .elements = wefti_operand_elements(&run->call->inputs[i])};
    for (uint32_t code = 0; code < 256; code++) table[code] = fp8_decode(code, run->call->attrs->fp8.form[i]) * scale;
    wefti_cpu_for(run, wefti_cpu_chunks(c.elements, CHUNK), decode_chunk, &c);
}

static weft_status run_product(const wefti_cpu_run *run) {
    wide        w;
    char       *at = run->scratch;
    const void *inputs[2];
    void       *output;
    widen_call(run->call, &w);
    for (int32_t i = 0; i < 2; i++) {
        inputs[i] = at;
        decode(run, i, (float *)(void *)at);
        at += f32_bytes(&w.inputs[i]);
    }
    output = at;
    at += f32_bytes(&w.output);
    wefti_cpu_run inner = *run;
    inner.call = &w.call, inner.inputs = inputs, inner.outputs = &output, inner.scratch = at;
    WEFTI_TRY(wefti_kernel_matmul.run(&inner));
    conversion c = {.from = output, .to = run->outputs[0], .elements = wefti_operand_elements(&w.output), .dtype = run->call->outputs[0].dtype};
    wefti_cpu_for(run, wefti_cpu_chunks(c.elements, CHUNK), narrow_chunk, &c);
    return WEFT_OK;
}

const wefti_cpu_kernel wefti_kernel_fp8_matmul = {.name = "packed fp8", .accepts = accepts, .scratch = scratch, .run = run_product};

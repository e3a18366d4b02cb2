/* ENCODE and DECODE: the codecs' own functions, on the device's threads. What is not contiguous is packed into scratch first. */
#include "core/cpu/reference/reference.h"
#include "core/tensor/codec.h"

static void run_chunks(void *run, int64_t chunks, void (*body)(void *context, int64_t chunk, int32_t worker), void *context) {
    wefti_cpu_for(run, chunks, body, context);
}

static wefti_codec_loop loop_of(const wefti_cpu_run *run) { return (wefti_codec_loop){run_chunks, (void *)(uintptr_t)run}; }

static int64_t packed_bytes(const wefti_operand *operand) {
    if (wefti_operand_is_contiguous(operand)) return 0;
    return (int64_t)wefti_align_up((size_t)wefti_operand_elements(operand) * weft_dtype_bytes(operand->dtype), WEFTI_CACHE_LINE);
}

static const void *packed(const wefti_cpu_run *run) {
    const wefti_operand *x = &run->call->inputs[0];
    if (wefti_operand_is_contiguous(x)) return run->inputs[0];
    wefti_reference_pack(run, x, run->inputs[0], run->scratch);
    return run->scratch;
}

static const wefti_codec_functions *codec_of(const wefti_call *call) { return wefti_codec_of(call->attrs->codec.codec)->functions; }

static int64_t encode_scratch(const wefti_call *call, int32_t threads) {
    (void)threads;
    const wefti_codec_functions *codec = codec_of(call);
    return packed_bytes(&call->inputs[0]) + (codec->scratch_bytes ? codec->scratch_bytes(call->attrs->codec.part) : 0);
}

/* The elements of part i of n. */
static int64_t given_of(const wefti_call *call, int64_t elements, int64_t i) {
    int64_t part = call->attrs->codec.part;
    return wefti_max_i64(0, wefti_min_i64(part, elements - i * part));
}

static weft_status run_encode(const wefti_cpu_run *run) {
    const wefti_call            *call = run->call;
    const wefti_codec_functions *codec = codec_of(call);
    const float                 *x = packed(run);
    int64_t                      elements = wefti_operand_elements(&call->inputs[0]), bytes = call->outputs[0].shape.dim[1];
    wefti_codec_loop             loop = loop_of(run);
    void                        *scratch = run->scratch ? (char *)run->scratch + packed_bytes(&call->inputs[0]) : NULL;
    for (int64_t i = 0; i < call->outputs[0].shape.dim[0]; i++) {
        wefti_codec_part part = {.elements = call->attrs->codec.part, .kept = call->attrs->codec.kept,
                                 .given = given_of(call, elements, i), .loop = &loop};
        const float     *from = part.given ? x + i * part.elements : x; /* none are read */
        codec->encode(&part, from, (uint8_t *)run->outputs[0] + i * bytes, scratch);
    }
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_encode = {.name = "encode", .scratch = encode_scratch, .run = run_encode};

static int64_t decode_scratch(const wefti_call *call, int32_t threads) {
    (void)threads;
    return packed_bytes(&call->inputs[0]);
}

static weft_status run_decode(const wefti_cpu_run *run) {
    const wefti_call            *call = run->call;
    const wefti_codec_functions *codec = codec_of(call);
    const uint8_t               *bytes = packed(run);
    int64_t                      elements = wefti_operand_elements(&call->outputs[0]), row = call->inputs[0].shape.dim[1];
    wefti_codec_loop             loop = loop_of(run);
    bool                         sum = call->attrs->codec.sum;
    for (int64_t i = 0; i < call->inputs[0].shape.dim[0]; i++) {
        wefti_codec_part part = {.elements = call->attrs->codec.part, .kept = call->attrs->codec.kept,
                                 .given = given_of(call, elements, sum ? 0 : i), .loop = &loop};
        if (part.given == 0) break;
        float *to = (float *)run->outputs[0] + (sum ? 0 : i * part.elements);
        weft_status status = codec->decode(&part, bytes + i * row, (size_t)row, sum && i > 0, to);
        if (status != WEFT_OK) return wefti_while(status, "part %lld", (long long)i);
    }
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_decode = {.name = "decode", .scratch = decode_scratch, .run = run_decode};

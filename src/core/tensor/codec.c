/* The table of codecs, from the one list, and what they share. */
#include "core/tensor/codec.h"

#include <math.h>

#include "core/tensor/half.h"

/* --- bf16 --- */

static int64_t bf16_bytes(int64_t elements, int64_t kept) {
    (void)kept;
    return 2 * elements;
}

typedef struct bf16_work {
    const wefti_codec_part *part;
    const float            *x;
    uint8_t                *bytes_out;
    const uint8_t          *bytes;
    float                  *x_out;
    bool                    add;
} bf16_work;

static void bf16_encode_chunk(void *context, int64_t chunk, int32_t worker) {
    const bf16_work *w = context;
    int64_t          begin = chunk * WEFTI_CODEC_CHUNK, end = wefti_min_i64(begin + WEFTI_CODEC_CHUNK, w->part->elements);
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        uint16_t code = i < w->part->given ? wefti_f32_to_bf16(w->x[i]) : 0;
        w->bytes_out[2 * i] = (uint8_t)code;
        w->bytes_out[2 * i + 1] = (uint8_t)(code >> 8);
    }
}

static void bf16_encode(const wefti_codec_part *part, const float *x, uint8_t *bytes_out, void *scratch) {
    bf16_work work = {.part = part, .x = x, .bytes_out = bytes_out};
    (void)scratch;
    wefti_codec_run(part, bf16_encode_chunk, &work);
}

static void bf16_decode_chunk(void *context, int64_t chunk, int32_t worker) {
    const bf16_work *w = context;
    int64_t          begin = chunk * WEFTI_CODEC_CHUNK, end = wefti_min_i64(begin + WEFTI_CODEC_CHUNK, w->part->given);
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        float value = wefti_bf16_to_f32((uint16_t)(w->bytes[2 * i] | w->bytes[2 * i + 1] << 8));
        w->x_out[i] = w->add ? w->x_out[i] + value : value;
    }
}

static weft_status bf16_decode(const wefti_codec_part *part, const uint8_t *bytes, size_t size_bytes, bool add, float *x_out) {
    bf16_work work = {.part = part, .bytes = bytes, .x_out = x_out, .add = add};
    WEFTI_TRY(wefti_codec_check("bf16", part, bf16_bytes(part->elements, 0), size_bytes));
    wefti_codec_run(part, bf16_decode_chunk, &work);
    return WEFT_OK;
}

const wefti_codec_functions wefti_codec_bf16 = {.grain = 1, .bytes = bf16_bytes, .encode = bf16_encode, .decode = bf16_decode};

/* --- the table --- */

#define FUNCTIONS_bf16 &wefti_codec_bf16
#define FUNCTIONS_fp8 &wefti_codec_fp8
#define FUNCTIONS_fp8_e5m2 &wefti_codec_fp8_e5m2
#define FUNCTIONS_top_k &wefti_codec_top_k
#define FUNCTIONS_fixed8 &wefti_codec_fixed8
#define FUNCTIONS_fixed16 &wefti_codec_fixed16
#define FUNCTIONS_rows NULL /* src/parallel/server/coded.c */
#define FUNCTIONS_graph NULL /* src/parallel/compress_factor.c */

static const wefti_codec table[WEFT_CODEC_COUNT] = {
    [WEFT_COMPRESS_NONE] = {.name = "none"},
#define WEFTI_CODEC(NAME, text, exchanged, feeds_back, function_table) \
    [WEFT_COMPRESS_##NAME] = {.name = #text, .exchange = WEFTI_CODEC_##exchanged, .feedback = feeds_back, .functions = FUNCTIONS_##function_table},
#include "weft/codecs.def"
#undef WEFTI_CODEC
};

const wefti_codec *wefti_codec_of(int32_t codec) {
    return &table[codec >= 0 && codec < WEFT_CODEC_COUNT ? codec : WEFT_COMPRESS_NONE];
}

int64_t wefti_codec_kept(const weft_compression *compression, int64_t elements) {
    double  ratio = compression->ratio > 0 ? compression->ratio : 0.01;
    int64_t kept = (int64_t)ceil(ratio * (double)elements);
    return kept < 1 ? 1 : kept > elements ? elements : kept;
}

void wefti_codec_run(const wefti_codec_part *part, void (*body)(void *context, int64_t chunk, int32_t worker), void *context) {
    int64_t chunks = (part->elements + WEFTI_CODEC_CHUNK - 1) / WEFTI_CODEC_CHUNK;
    if (part->loop) {
        part->loop->run(part->loop->pool, chunks, body, context);
        return;
    }
    for (int64_t chunk = 0; chunk < chunks; chunk++) body(context, chunk, 0);
}

weft_status wefti_codec_check(const char *name, const wefti_codec_part *part, int64_t needed_bytes, size_t size_bytes) {
    if (size_bytes == (size_t)needed_bytes) return WEFT_OK;
    return wefti_fail(WEFT_E_CORRUPT, "%s: %zu bytes came for %lld elements, it takes %lld", name, size_bytes, (long long)part->elements,
                      (long long)needed_bytes);
}

/* fixed8 and fixed16: whole numbers of 8 or 16 bits in blocks of 32, with a power of two as scale, rounded at random.
 *
 * The scale is the least power of two with which the largest magnitude of the block is no more than 127, or 32767. What lies between two whole
 * numbers becomes one of them by chance, so that the mean over many is the element itself (Gupta et al. 2015, "Deep learning with limited
 * numerical precision"): sums of many rounded vectors go wrong by less than those of vectors that are rounded to nearest, whose errors may all point
 * one way. Chance is Philox by key, stream and the element's number, so the same bytes come of any number of threads. A whole number times the
 * scale is not changed by it. A block with a value that is not finite becomes NaN.
 *
 * A byte of scale of 0 is read as zeros, and one above what is ever made as NaN; the least whole number, which is never made, as the one above it. */
#include <math.h>

#include "core/tensor/codec.h"
#include "core/tensor/half.h"
#include "core/tensor/philox.h"

enum { BLOCK = 32, BLOCKS_OF_CHUNK = WEFTI_CODEC_CHUNK / BLOCK, SCALE_BIAS = 127 };

static int64_t blocks_of(int64_t elements) { return (elements + BLOCK - 1) / BLOCK; }
static int64_t fixed_bytes(int64_t elements, int32_t code_bytes) { return code_bytes * elements + blocks_of(elements); }
static int64_t fixed8_bytes(int64_t elements, int64_t kept) { return (void)kept, fixed_bytes(elements, 1); }
static int64_t fixed16_bytes(int64_t elements, int64_t kept) { return (void)kept, fixed_bytes(elements, 2); }

typedef struct fixed_work {
    const wefti_codec_part *part;
    int32_t                 code_bytes;
    const float            *x;
    uint8_t                *scales_out, *codes_out;
    const uint8_t          *scales, *codes;
    float                  *x_out;
    bool                    add;
} fixed_work;

static int32_t largest_code(const fixed_work *w) { return w->code_bytes == 1 ? 127 : 32767; }
static int32_t largest_scale(const fixed_work *w) { return SCALE_BIAS + (w->code_bytes == 1 ? 121 : 113); } /* 127 of it, or 32767, is finite */

/* The byte of the least scale that holds the magnitude; 0 for zero. */
static uint8_t scale_of(const fixed_work *w, float largest) {
    int exponent;
    if (largest == 0) return 0;
    float fraction = frexpf(largest, &exponent); /* in [1/2, 1) */
    int   bits = w->code_bytes == 1 ? 7 : 15;
    exponent -= bits;
    if (ldexpf(fraction, bits) > (float)largest_code(w)) exponent++;
    return (uint8_t)(exponent < 1 - SCALE_BIAS ? 1 : exponent + SCALE_BIAS);
}

static void put_code(const fixed_work *w, int64_t i, int32_t code) {
    uint32_t bits = (uint32_t)code;
    w->codes_out[i * w->code_bytes] = (uint8_t)bits;
    if (w->code_bytes == 2) w->codes_out[2 * i + 1] = (uint8_t)(bits >> 8);
}

static int32_t get_code(const fixed_work *w, int64_t i) {
    int32_t code = w->code_bytes == 1 ? (int8_t)w->codes[i] : (int16_t)(uint16_t)(w->codes[2 * i] | w->codes[2 * i + 1] << 8);
    return code < -largest_code(w) ? -largest_code(w) : code;
}

static void encode_block(const fixed_work *w, int64_t block) {
    int64_t begin = block * BLOCK, end = wefti_min_i64(begin + BLOCK, w->part->elements), given = wefti_min_i64(end, w->part->given);
    float   largest = 0;
    bool    finite = true;
    for (int64_t i = begin; i < given; i++) {
        float magnitude = fabsf(w->x[i]);
        finite = finite && isfinite(magnitude);
        if (magnitude > largest) largest = magnitude;
    }
    uint8_t scale = w->scales_out[block] = finite ? scale_of(w, largest) : 255;
    double  units = finite && scale ? ldexp(1, SCALE_BIAS - scale) : 0;
    for (int64_t i = begin; i < end; i += 4) {
        wefti_philox chance = wefti_philox_block(w->part->key, w->part->stream, (uint64_t)i / 4);
        for (int64_t j = i; j < i + 4 && j < end; j++) {
            double unit = units != 0 && j < given ? (double)w->x[j] * units : 0, below = floor(unit);
            put_code(w, j, (int32_t)below + (wefti_uniform_of_word(chance.word[j - i]) < unit - below));
        }
    }
}

static void decode_block(const fixed_work *w, int64_t block) {
    int64_t begin = block * BLOCK, end = wefti_min_i64(begin + BLOCK, w->part->given);
    int32_t byte = w->scales[block];
    float   scale = byte == 0 ? 0 : byte > largest_scale(w) ? NAN : ldexpf(1, byte - SCALE_BIAS);
    for (int64_t i = begin; i < end; i++) {
        float value = (float)get_code(w, i) * scale;
        w->x_out[i] = w->add ? w->x_out[i] + value : value;
    }
}

static void run_chunk(void *context, int64_t chunk, int32_t worker) {
    const fixed_work *w = context;
    int64_t           first = chunk * BLOCKS_OF_CHUNK, blocks = blocks_of(w->codes_out ? w->part->elements : w->part->given);
    (void)worker;
    for (int64_t block = first; block < wefti_min_i64(first + BLOCKS_OF_CHUNK, blocks); block++) {
        if (w->codes_out) encode_block(w, block);
        else decode_block(w, block);
    }
}

static void encode(const wefti_codec_part *part, const float *x, uint8_t *bytes_out, int32_t code_bytes) {
    fixed_work work = {.part = part, .code_bytes = code_bytes, .x = x, .scales_out = bytes_out, .codes_out = bytes_out + blocks_of(part->elements)};
    wefti_codec_run(part, run_chunk, &work);
}
static weft_status decode(const char *name, const wefti_codec_part *part, const uint8_t *bytes, size_t size_bytes, bool add, float *x_out,
                          int32_t code_bytes) {
    fixed_work work = {.part = part, .code_bytes = code_bytes, .scales = bytes, .x_out = x_out, .add = add};
    WEFTI_TRY(wefti_codec_check(name, part, fixed_bytes(part->elements, code_bytes), size_bytes));
    work.codes = bytes + blocks_of(part->elements);
    wefti_codec_run(part, run_chunk, &work);
    return WEFT_OK;
}

static void fixed8_encode(const wefti_codec_part *part, const float *x, uint8_t *bytes_out, void *scratch) {
    (void)scratch;
    encode(part, x, bytes_out, 1);
}
static void fixed16_encode(const wefti_codec_part *part, const float *x, uint8_t *bytes_out, void *scratch) {
    (void)scratch;
    encode(part, x, bytes_out, 2);
}
static weft_status fixed8_decode(const wefti_codec_part *part, const uint8_t *bytes, size_t size_bytes, bool add, float *x_out) {
    return decode("fixed8", part, bytes, size_bytes, add, x_out, 1);
}
static weft_status fixed16_decode(const wefti_codec_part *part, const uint8_t *bytes, size_t size_bytes, bool add, float *x_out) {
    return decode("fixed16", part, bytes, size_bytes, add, x_out, 2);
}

const wefti_codec_functions wefti_codec_fixed8 = {.grain = BLOCK, .bytes = fixed8_bytes, .encode = fixed8_encode, .decode = fixed8_decode};
const wefti_codec_functions wefti_codec_fixed16 = {.grain = BLOCK, .bytes = fixed16_bytes, .encode = fixed16_encode, .decode = fixed16_decode};

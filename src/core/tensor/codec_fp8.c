/* fp8: E4M3 and E5M2 (Micikevicius et al. 2022) in blocks of 32 with a power of two as scale, which is exact to apply and to undo.
 *
 * The scale of a block is such that the largest finite magnitude comes to lie in (1.75 * 2^(t-1), 1.75 * 2^t], where 1.75 * 2^t is
 * the format's largest number: nothing saturates, whatever the elements. Rounding is to nearest even. All arithmetic is on bits and
 * powers of two, so every machine gives the same bytes; blocks are done apart, in loops that compilers turn into vectors.
 * A byte of scale below 1 or above 254 is never made, and read as zero or NaN. */
#include <string.h>

#include "core/tensor/codec.h"
#include "core/tensor/half.h"

enum { BLOCK = 32, BLOCKS_OF_CHUNK = WEFTI_CODEC_CHUNK / BLOCK };

/* A format by its bits of fraction, exponent bias, exponent of the largest number, and codes. */
typedef struct format {
    int32_t  fraction, bias, largest;
    uint32_t infinity, nan; /* codes without sign; E4M3 has no infinity: NaN */
} format;

static const format e4m3 = {3, 7, 8, 0x7f, 0x7f}, e5m2 = {2, 15, 15, 0x7c, 0x7f};

static int64_t blocks_of(int64_t elements) { return (elements + BLOCK - 1) / BLOCK; }
static int64_t fp8_bytes(int64_t elements, int64_t kept) {
    (void)kept;
    return elements + blocks_of(elements);
}

/* The scale's byte for the largest finite magnitude of a block, given as bits. */
static uint32_t scale_of(uint32_t largest_bits, int32_t top) {
    int32_t exponent = (int32_t)(largest_bits >> 23) - top + ((largest_bits & 0x7fffffu) > 0x600000u);
    return (uint32_t)(exponent < 1 ? 1 : exponent); /* biased by 127, as is f32's: at most 254 - 8 + 1 */
}

static inline __attribute__((always_inline)) void encode_block(const float *x, uint8_t *codes, uint8_t *scale_out, format f) {
    uint32_t bits[BLOCK], largest = 0;
    memcpy(bits, x, sizeof bits);
    for (int i = 0; i < BLOCK; i++) {
        uint32_t magnitude = bits[i] & 0x7fffffffu, finite = magnitude < 0x7f800000u ? magnitude : 0;
        largest = finite > largest ? finite : largest;
    }
    uint32_t scale = scale_of(largest, f.largest);
    float    inverse = wefti_f32_from_bits((254 - scale) << 23);
    /* Adding this puts the unit of the smallest numbers at the end of the fraction, rounded to nearest even. */
    float    magic = wefti_f32_from_bits((uint32_t)(127 + 1 - f.bias - f.fraction + 23) << 23);
    uint32_t shift = 23 - (uint32_t)f.fraction, least = (uint32_t)(128 - f.bias) << 23;
    for (int i = 0; i < BLOCK; i++) {
        uint32_t magnitude = bits[i] & 0x7fffffffu, sign = bits[i] >> 24 & 0x80;
        uint32_t scaled = wefti_f32_bits(wefti_f32_from_bits(magnitude) * inverse);
        uint32_t normal = (scaled - ((uint32_t)(127 - f.bias) << 23) + (1u << (shift - 1)) - 1 + (scaled >> shift & 1)) >> shift;
        uint32_t small = wefti_f32_bits(wefti_f32_from_bits(scaled) + magic) - wefti_f32_bits(magic);
        uint32_t code = scaled < least ? small : normal;
        code = magnitude == 0x7f800000u ? f.infinity : magnitude > 0x7f800000u ? f.nan : code;
        codes[i] = (uint8_t)(sign | code);
    }
    *scale_out = (uint8_t)scale;
}

static inline __attribute__((always_inline)) void decode_block(const uint8_t *codes, uint32_t scale, float *x_out, format f) {
    float    unit = wefti_f32_from_bits((uint32_t)(127 + 1 - f.bias - f.fraction) << 23), factor = wefti_f32_from_bits(scale << 23);
    uint32_t shift = 23 - (uint32_t)f.fraction, least = 1u << f.fraction;
    factor = scale == 255 ? wefti_f32_from_bits(0x7fc00000u) : factor;
    for (int i = 0; i < BLOCK; i++) {
        uint32_t code = codes[i] & 0x7fu, sign = (uint32_t)(codes[i] & 0x80u) << 24;
        uint32_t normal = (code << shift) + ((uint32_t)(127 - f.bias) << 23);
        uint32_t small = wefti_f32_bits((float)(int32_t)code * unit);
        uint32_t bits = code < least ? small : normal;
        bits = code == f.infinity ? 0x7f800000u : bits;
        bits = code > f.infinity || code == f.nan ? 0x7fc00000u : bits;
        x_out[i] = wefti_f32_from_bits(bits | sign) * factor;
    }
}

typedef struct fp8_work {
    const wefti_codec_part *part;
    const float            *x;
    uint8_t                *scales_out, *codes_out;
    const uint8_t          *scales, *codes;
    float                  *x_out;
    bool                    add;
} fp8_work;

/* A block of the vector that may end within it, or lie behind what is given. */
static inline __attribute__((always_inline)) void encode_chunk(const fp8_work *w, int64_t chunk, format f) {
    int64_t first = chunk * BLOCKS_OF_CHUNK, end = wefti_min_i64(first + BLOCKS_OF_CHUNK, blocks_of(w->part->elements));
    for (int64_t block = first; block < end; block++) {
        int64_t begin = block * BLOCK, wanted = wefti_min_i64(BLOCK, w->part->elements - begin);
        int64_t given = wefti_min_i64(BLOCK, w->part->given - begin);
        if (given == BLOCK) {
            encode_block(w->x + begin, w->codes_out + begin, &w->scales_out[block], f);
            continue;
        }
        float   padded[BLOCK] = {0};
        uint8_t codes[BLOCK];
        if (given > 0) memcpy(padded, w->x + begin, (size_t)given * sizeof *padded);
        encode_block(padded, codes, &w->scales_out[block], f);
        memcpy(w->codes_out + begin, codes, (size_t)wanted);
    }
}

static inline __attribute__((always_inline)) void decode_chunk(const fp8_work *w, int64_t chunk, format f) {
    int64_t first = chunk * BLOCKS_OF_CHUNK, end = wefti_min_i64(first + BLOCKS_OF_CHUNK, blocks_of(w->part->given));
    for (int64_t block = first; block < end; block++) {
        int64_t begin = block * BLOCK, wanted = wefti_min_i64(BLOCK, w->part->given - begin);
        float   values[BLOCK];
        uint8_t codes[BLOCK] = {0};
        memcpy(codes, w->codes + begin, (size_t)wanted);
        decode_block(codes, w->scales[block], values, f);
        if (!w->add) memcpy(w->x_out + begin, values, (size_t)wanted * sizeof *values);
        for (int64_t i = 0; w->add && i < wanted; i++) w->x_out[begin + i] += values[i];
    }
}

static void encode_e4m3(void *work, int64_t chunk, int32_t worker) {
    (void)worker;
    encode_chunk(work, chunk, e4m3);
}
static void encode_e5m2(void *work, int64_t chunk, int32_t worker) {
    (void)worker;
    encode_chunk(work, chunk, e5m2);
}
static void decode_e4m3(void *work, int64_t chunk, int32_t worker) {
    (void)worker;
    decode_chunk(work, chunk, e4m3);
}
static void decode_e5m2(void *work, int64_t chunk, int32_t worker) {
    (void)worker;
    decode_chunk(work, chunk, e5m2);
}

typedef void body(void *work, int64_t chunk, int32_t worker);

static void encode(const wefti_codec_part *part, const float *x, uint8_t *bytes_out, body *chunk) {
    fp8_work work = {.part = part, .x = x, .scales_out = bytes_out, .codes_out = bytes_out + blocks_of(part->elements)};
    wefti_codec_run(part, chunk, &work);
}
static weft_status decode(const wefti_codec_part *part, const uint8_t *bytes, size_t size_bytes, bool add, float *x_out, body *chunk) {
    fp8_work work = {.part = part, .x_out = x_out, .add = add, .scales = bytes};
    WEFTI_TRY(wefti_codec_check("fp8", part, fp8_bytes(part->elements, 0), size_bytes));
    work.codes = bytes + blocks_of(part->elements);
    wefti_codec_run(part, chunk, &work);
    return WEFT_OK;
}

static void fp8_encode(const wefti_codec_part *part, const float *x, uint8_t *bytes_out, void *scratch) {
    (void)scratch;
    encode(part, x, bytes_out, encode_e4m3);
}
static void fp8_e5m2_encode(const wefti_codec_part *part, const float *x, uint8_t *bytes_out, void *scratch) {
    (void)scratch;
    encode(part, x, bytes_out, encode_e5m2);
}
static weft_status fp8_decode(const wefti_codec_part *part, const uint8_t *bytes, size_t size_bytes, bool add, float *x_out) {
    return decode(part, bytes, size_bytes, add, x_out, decode_e4m3);
}
static weft_status fp8_e5m2_decode(const wefti_codec_part *part, const uint8_t *bytes, size_t size_bytes, bool add, float *x_out) {
    return decode(part, bytes, size_bytes, add, x_out, decode_e5m2);
}

const wefti_codec_functions wefti_codec_fp8 = {.grain = BLOCK, .bytes = fp8_bytes, .encode = fp8_encode, .decode = fp8_decode};
const wefti_codec_functions wefti_codec_fp8_e5m2 = {.grain = BLOCK, .bytes = fp8_bytes, .encode = fp8_e5m2_encode, .decode = fp8_e5m2_decode};

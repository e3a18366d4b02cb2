/* Decoders of codecs: a codec, how many elements it says there are, how many are kept and wanted, then bytes that a rank may have sent. Whatever
 * comes, nothing but the vector is written, and what comes out as a vector can be encoded and comes back. */
#include <string.h>

#include "core/tensor/codec.h"
#include "fuzz.h"

enum { MOST = 2048, HEAD = 8 };

static uint32_t number(const uint8_t *data) { return (uint32_t)(data[0] | data[1] << 8) % (MOST + 1); }

static void encode_again(const wefti_codec_functions *codec, const wefti_codec_part *part, const float *x) {
    static uint8_t  bytes[MOST * 8 + MOST];
    static uint64_t scratch[1 << 16];
    static float    first[MOST], second[MOST];
    size_t          size = (size_t)codec->bytes(part->elements, part->kept);
    if (size > sizeof bytes || (codec->scratch_bytes && codec->scratch_bytes(part->elements) > (int64_t)sizeof scratch)) abort();
    codec->encode(part, x, bytes, scratch);
    if (codec->decode(part, bytes, size, false, first) != WEFT_OK) abort();
    codec->encode(part, first, bytes, scratch);
    if (codec->decode(part, bytes, size, false, second) != WEFT_OK) abort();
    for (int64_t i = 0; i < part->given; i++)
        if (first[i] == first[i] && first[i] != second[i]) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    float *x;
    if (size < HEAD) return 0;
    const wefti_codec_functions *codec = wefti_codec_of(1 + data[0] % (WEFT_CODEC_COUNT - 1))->functions;
    wefti_codec_part             part = {.elements = number(data + 2), .kept = number(data + 4), .given = number(data + 6)};
    if (!codec) return 0;
    if (part.given > part.elements) part.given = part.elements;
    if (codec->grain) part.kept = 0;
    x = malloc((size_t)part.given * sizeof *x + 1); /* so that a sanitizer sees what is written beyond */
    if (!x) abort();
    memset(x, 0, (size_t)part.given * sizeof *x);
    weft_status status = codec->decode(&part, data + HEAD, size - HEAD, data[1] & 1, x);
    if (status != WEFT_OK && status != WEFT_E_CORRUPT) abort();
    bool whole = part.given == part.elements && (codec->grain || (part.kept > 0 && part.kept <= part.elements));
    if (status == WEFT_OK && whole) encode_again(codec, &part, x);
    free(x);
    return 0;
}

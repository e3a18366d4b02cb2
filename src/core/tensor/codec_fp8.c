/* fp8: E4M3 and E5M2 (Micikevicius et al. 2022) in blocks of 32 with a power of two as scale, which is exact to apply and to undo.
 *
 * The scale of a block is such that the largest finite magnitude comes to lie in (1.75 * 2^(t-1), 1.75 * 2^t], where 1.75 * 2^t is
 * the format's largest number: nothing saturates, whatever the elements. Rounding is to nearest even. All arithmetic is on bits and
 * powers of two, so every machine gives the same bytes; blocks are done apart, in loops that compilers turn into vectors, which exist
 * for the baseline and for AVX2, chosen at run time. Memory is read and written once.
 * A byte of scale below 1 or above 254 is never made, and read as zero or NaN. */
#include "core/tensor/codec.h"
#include "core/tensor/fp8.h"

enum { BLOCK = 32, BLOCKS_OF_CHUNK = WEFTI_CODEC_CHUNK / BLOCK };

static int64_t blocks_of(int64_t elements) { return (elements + BLOCK - 1) / BLOCK; }
static int64_t fp8_bytes(int64_t elements, int64_t kept) {
    (void)kept;
    return elements + blocks_of(elements);
}

typedef struct fp8_work {
    const wefti_codec_part *part;
    const float            *x;
    uint8_t                *scales_out, *codes_out;
    const uint8_t          *scales, *codes;
    float                  *x_out;
    bool                    add;
    void (*loop)(const struct fp8_work *w, int64_t first, int64_t end);
} fp8_work;

typedef struct loops {
    void (*encode[2])(const fp8_work *w, int64_t first, int64_t end); /* E4M3, E5M2 */
    void (*decode[2])(const fp8_work *w, int64_t first, int64_t end);
} loops;

#define WIDE_FILE "core/tensor/codec_fp8_loops.h"
#define WIDE_OPTIMIZE "O3", "no-trapping-math"
#include "core/base/wide.h"

static void run_chunk(void *context, int64_t chunk, int32_t worker) {
    const fp8_work *w = context;
    int64_t         first = chunk * BLOCKS_OF_CHUNK, elements = w->codes_out ? w->part->elements : w->part->given;
    (void)worker;
    w->loop(w, first, wefti_min_i64(first + BLOCKS_OF_CHUNK, blocks_of(elements)));
}

static void encode(const wefti_codec_part *part, const float *x, uint8_t *bytes_out, int which) {
    fp8_work work = {.part = part, .x = x, .scales_out = bytes_out, .codes_out = bytes_out + blocks_of(part->elements),
                     .loop = WIDE_PICK(loops)->encode[which]};
    wefti_codec_run(part, run_chunk, &work);
}
static weft_status decode(const wefti_codec_part *part, const uint8_t *bytes, size_t size_bytes, bool add, float *x_out, int which) {
    fp8_work work = {.part = part, .x_out = x_out, .add = add, .scales = bytes, .loop = WIDE_PICK(loops)->decode[which]};
    WEFTI_TRY(wefti_codec_check("fp8", part, fp8_bytes(part->elements, 0), size_bytes));
    work.codes = bytes + blocks_of(part->elements);
    wefti_codec_run(part, run_chunk, &work);
    return WEFT_OK;
}

static void fp8_encode(const wefti_codec_part *part, const float *x, uint8_t *bytes_out, void *scratch) {
    (void)scratch;
    encode(part, x, bytes_out, 0);
}
static void fp8_e5m2_encode(const wefti_codec_part *part, const float *x, uint8_t *bytes_out, void *scratch) {
    (void)scratch;
    encode(part, x, bytes_out, 1);
}
static weft_status fp8_decode(const wefti_codec_part *part, const uint8_t *bytes, size_t size_bytes, bool add, float *x_out) {
    return decode(part, bytes, size_bytes, add, x_out, 0);
}
static weft_status fp8_e5m2_decode(const wefti_codec_part *part, const uint8_t *bytes, size_t size_bytes, bool add, float *x_out) {
    return decode(part, bytes, size_bytes, add, x_out, 1);
}

const wefti_codec_functions wefti_codec_fp8 = {.grain = BLOCK, .bytes = fp8_bytes, .encode = fp8_encode, .decode = fp8_decode};
const wefti_codec_functions wefti_codec_fp8_e5m2 = {.grain = BLOCK, .bytes = fp8_bytes, .encode = fp8_e5m2_encode, .decode = fp8_e5m2_decode};

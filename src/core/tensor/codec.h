/* Codecs: f32 vectors as fewer bytes, for whoever sends them (the graph's ENCODE and DECODE, servers). The list is
 * include/weft/codecs.def, its meaning stands in include/weft/compression.h; the bytes are these, little endian:
 *
 *   bf16      n of 2 bytes
 *   fp8, fp8-e5m2   ceil(n/32) scales, a byte b for 2^(b-127) each (255: NaN, 0: zero), then n codes
 *   topk      k places (u32), ascending, then k values (f32)
 *   fixed8, fixed16   ceil(n/32) scales as fp8's, then n whole numbers of 8 or 16 bits, times the scale
 *
 * Encoding is a function of the elements alone: the same bytes for any number of threads. Decoding believes nothing: bytes that are
 * too few or places that are none are WEFT_E_CORRUPT, and nothing is written outside of the vector. Nothing is allocated. */
#ifndef WEFTI_CODEC_H
#define WEFTI_CODEC_H

#include "core/base/base.h"
#include "weft/compression.h"

/* How a sum over ranks is made; codecs.def. NONE is WEFT_COMPRESS_NONE's alone. */
typedef enum wefti_codec_exchange {
    WEFTI_CODEC_NONE, WEFTI_CODEC_CAST, WEFTI_CODEC_SCATTER, WEFTI_CODEC_GATHER, WEFTI_CODEC_FACTOR, WEFTI_CODEC_SERVED
} wefti_codec_exchange;

/* Runs body(context, chunk) for all chunks, in any order and on any threads. */
typedef struct wefti_codec_loop {
    void (*run)(void *pool, int64_t chunks, void (*body)(void *context, int64_t chunk, int32_t worker), void *context);
    void *pool;
} wefti_codec_loop;

/* A vector to be encoded or decoded. */
typedef struct wefti_codec_part {
    int64_t elements;
    int64_t kept;  /* topk: 1 .. elements; 0 for the others */
    int64_t given; /* encoding: elements that there are, <= elements; the rest is zero. Decoding: that are wanted */
    const wefti_codec_loop *loop; /* NULL: one chunk after the other */
    uint64_t key, stream; /* encoding fixed8, fixed16: of the random numbers (philox.h); one for each element, by its number in the vector */
} wefti_codec_part;

typedef struct wefti_codec_functions {
    int64_t grain; /* vectors may be cut into parts of a multiple of this; 0: not at all */
    int64_t (*bytes)(int64_t elements, int64_t kept);
    int64_t (*scratch_bytes)(int64_t elements); /* of encode, aligned as u64; NULL: none */
    void (*encode)(const wefti_codec_part *part, const float *x, uint8_t *bytes_out, void *scratch);
    /* x[i] = the value, or += where `add`. */
    weft_status (*decode)(const wefti_codec_part *part, const uint8_t *bytes, size_t size_bytes, bool add, float *x_out);
} wefti_codec_functions;
extern const wefti_codec_functions wefti_codec_bf16, wefti_codec_fp8, wefti_codec_fp8_e5m2, wefti_codec_top_k, wefti_codec_fixed8, wefti_codec_fixed16;

typedef struct wefti_codec {
    const char                  *name;
    wefti_codec_exchange         exchange;
    bool                         feedback;
    const wefti_codec_functions *functions; /* NULL: made of graph operations, or of whole rows */
} wefti_codec;

/* By weft_codec; never NULL (a number that is none gives that of WEFT_COMPRESS_NONE). */
const wefti_codec *wefti_codec_of(int32_t codec);

/* How many elements top-k keeps of so many. */
int64_t wefti_codec_kept(const weft_compression *compression, int64_t elements);

/* --- for the codecs' own files --- */

/* Elements of a chunk of the loops: a multiple of every grain. */
enum { WEFTI_CODEC_CHUNK = 1 << 16 };
void        wefti_codec_run(const wefti_codec_part *part, void (*body)(void *context, int64_t chunk, int32_t worker), void *context);
weft_status wefti_codec_check(const char *name, const wefti_codec_part *part, int64_t needed_bytes, size_t size_bytes);

#endif

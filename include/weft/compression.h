/* Compression: gradients in fewer bytes between ranks, as a choice of the strategy. For links that are slower than the computing;
 * where ranks share memory it only costs.
 *
 *     .strategy = {.compress = {.codec = WEFT_COMPRESS_TOP_K, .ratio = 0.01, .warmup = 500}}
 *
 * What it is applied to: the sum over all rows of a rank, micro-batches included, of the gradient of each f32 parameter that is
 * large enough. All else travels as it is: small parameters, f64, counts, batch statistics, losses. Sums over ranks are made in f32,
 * in the order of the ranks, and what comes out has the same bits on every rank; clipping and the report's gradient norm are
 * those of what comes out. A parameter whose gradient is compressed is updated whole on every rank (strategy.divide_bytes does
 * nothing for it). One rank alone sends nothing: there a compressed program is the program, bit by bit.
 *
 * Bytes that a rank of N sends for n elements, beside 8n(N-1)/N for an uncompressed sum (weft_plan_describe has them for a plan):
 *
 *   BF16       4n(N-1)/N. Each contribution is rounded to bf16, and the sum once more: at most 2^-8 of each.
 *   FP8        2n(N-1)/N * 33/32. E4M3, three bits of fraction (Micikevicius et al. 2022), with a power of two for each 32 elements as
 *              scale: rounding loses at most 2^-4 of an element, or 2^-17 of the largest of its 32 where that is more. A value that
 *              is not finite becomes NaN.
 *   FP8_E5M2   the same with two bits of fraction and more range: at most 2^-3 of an element, or 2^-31 of the largest. Infinities stay.
 *   TOP_K      8k(N-1) for the k = ratio*n elements of largest magnitude, with their places (Aji and Heafield 2017); NaN counts as
 *              larger than all. The rest is fed back (Stich et al. 2018).
 *   POWER_SGD  8r(a+b)(N-1)/N for a parameter as a matrix of a rows (its first axis) and b columns, of which an approximation of rank r
 *              is sent, begun from that of the step before (Vogels et al. 2019). The rest is fed back. Only where r(a+b) < ab.
 *
 * Pushes to a parameter server (strategy.sync = WEFT_SERVER, or weft_table_options.push of weft/server.h) are compressed by BF16, FP8, FP8_E5M2, TOP_K,
 * and by those below, which no sum over ranks knows; each worker's push is rounded once. Bytes of n elements in r rows:
 *
 *   FIXED8       n + n/32: whole numbers to 127 with a power of two for each 32 elements as scale, rounded up or down at random, so that the mean of many
 *                roundings is the element (Gupta et al. 2015); at most one unit, 2^-6 of the largest of its 32. By .seed, the worker and the how
 *                manieth push it is, the same in every run. What is not finite makes its 32 NaN.
 *   FIXED16      2n + n/32: to 32767; at most 2^-14 of the largest of its 32.
 *   SIGNIFICANT  rows that have changed by more than .threshold of what was last sent of them, as they are: the largest magnitude of what was
 *                kept and what comes, beside that of the last time. The rest is kept and added to the next (Li et al. 2014).
 *   NONZERO      rows that are not all zeros, as they are. Nothing is lost.
 *   The last two take 1 byte and the rows where all are sent, else the least of r/8 and the bytes of the gaps between those that are, and these.
 *
 * Error feedback: what a rank leaves out of a step it keeps, and adds to its next gradient: the state "weft.compress.error/" and
 * the parameter's name, a copy of the parameter on each rank (POWER_SGD: also "weft.compress.basis/", the same everywhere). A
 * skipped step leaves it alone. Checkpoints hold what every rank has, so as many ranks go on to the same bits; another number of
 * ranks gets it dealt out anew, so that its sum is kept, and a program that does not compress drops it. With WEFT_SERVER it is kept by row beside the
 * table's handle, and a trainer's checkpoints hold it as well ("weft.compress.pushes": how many pushes each rank has made, by which it rounds at random). Of a
 * program's own tables it is in no snapshot: a run that goes on from one begins without it. */
#ifndef WEFT_COMPRESSION_H
#define WEFT_COMPRESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "weft/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum weft_codec {
    WEFT_COMPRESS_NONE,
#define WEFTI_CODEC(NAME, name, exchange, feedback, functions) WEFT_COMPRESS_##NAME,
#include "weft/codecs.def"
#undef WEFTI_CODEC
    WEFT_CODEC_COUNT
} weft_codec;

/* Zero is no compression, and in every field the default. */
typedef struct weft_compression {
    weft_codec codec;
    double     ratio;  /* TOP_K: of the elements of a parameter, in (0, 1], at least one element; 0: 0.01 */
    int32_t    rank;   /* POWER_SGD: 1 .. 64; 0: 4 */
    int64_t    warmup; /* steps at the beginning of a run that are not compressed */
    int64_t    least;  /* parameters of fewer elements travel as they are; 0: 1024 */
    bool       error_feedback; /* BF16, FP8, FP8_E5M2, FIXED8, FIXED16: keep what a rank's own rounding loses, too */
    double     threshold; /* SIGNIFICANT: 0: 0.5 */
    uint64_t   seed;   /* FIXED8, FIXED16: of what is rounded at random */
} weft_compression;

/* Reads "none", or a name of codecs.def: "bf16", "fp8", "fp8-e5m2", "topk", "topk:RATIO", "powersgd", "powersgd:RANK", "fixed8", "fixed16",
 * "significant", "significant:THRESHOLD", "nonzero". The other
 * fields are zero. WEFT_E_INVALID says what there is. From src/parallel/compress_options.c. Any thread. */
WEFT_MUST_CHECK weft_status weft_compression_parse(const char *text, weft_compression *compression_out);

#ifdef __cplusplus
}
#endif
#endif

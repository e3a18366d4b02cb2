/* Top-k: the k elements of largest magnitude, with their places.
 *
 * The magnitude's bits order as numbers do, with NaN above all, so the k-th largest is found by its bits, from the top in three
 * digits of 11, 11 and 9: each pass over the vector counts the digit of what agrees with the digits found so far. A last pass gives what
 * is larger, and of what is equal the first. So the choice depends on the elements alone, and takes four readings of the vector. Chunks
 * count apart: scratch is a table of counts for each, or two numbers. */
#include <string.h>

#include "core/tensor/codec.h"
#include "core/tensor/half.h"

enum { DIGIT = 11, BINS = 1 << DIGIT, MOST_TABLES = 64 };

static int64_t top_k_bytes(int64_t elements, int64_t kept) {
    (void)elements;
    return 8 * kept;
}

/* The vector is cut into at most MOST_TABLES pieces. */
static int64_t piece_of(int64_t elements) {
    int64_t least = WEFTI_CODEC_CHUNK, each = (elements + MOST_TABLES - 1) / MOST_TABLES;
    return each > least ? each : least;
}
static int64_t pieces_of(int64_t elements) { return elements ? (elements + piece_of(elements) - 1) / piece_of(elements) : 0; }
static int64_t top_k_scratch(int64_t elements) { return pieces_of(elements) * BINS * (int64_t)sizeof(uint32_t); }

typedef struct selection {
    const float *x;
    int64_t      given, piece;
    uint32_t     prefix, mask; /* the digits found so far, and which bits these are */
    uint32_t     shift;        /* of the digit that is counted */
    uint32_t    *counts;       /* [pieces, BINS] */
    uint32_t     threshold;    /* the k-th largest magnitude */
    int64_t      kept;
    uint8_t     *bytes_out;
} selection;

static uint32_t magnitude_at(const selection *s, int64_t i) { return wefti_f32_bits(s->x[i]) & 0x7fffffffu; }

static void count_digit(void *context, int64_t piece, int32_t worker) {
    const selection *s = context;
    uint32_t        *counts = s->counts + piece * BINS;
    int64_t          begin = piece * s->piece, end = wefti_min_i64(begin + s->piece, s->given);
    (void)worker;
    memset(counts, 0, BINS * sizeof *counts);
    for (int64_t i = begin; i < end; i++) {
        uint32_t magnitude = magnitude_at(s, i);
        if ((magnitude & s->mask) == s->prefix) counts[magnitude >> s->shift & (BINS - 1)]++;
    }
}

/* counts[0]: larger ones, counts[1]: equal ones. */
static void count_chosen(void *context, int64_t piece, int32_t worker) {
    const selection *s = context;
    uint32_t        *counts = s->counts + piece * BINS;
    int64_t          begin = piece * s->piece, end = wefti_min_i64(begin + s->piece, s->given);
    (void)worker;
    counts[0] = counts[1] = 0;
    for (int64_t i = begin; i < end; i++) {
        uint32_t magnitude = magnitude_at(s, i);
        counts[0] += magnitude > s->threshold;
        counts[1] += magnitude == s->threshold;
    }
}

static void put_u32(uint8_t *to, uint32_t value) {
    for (int i = 0; i < 4; i++) to[i] = (uint8_t)(value >> 8 * i);
}
static uint32_t get_u32(const uint8_t *from) {
    return (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

/* counts[0]: where this piece writes; counts[1]: how many of the equal ones it takes. */
static void write_chosen(void *context, int64_t piece, int32_t worker) {
    const selection *s = context;
    uint32_t        *counts = s->counts + piece * BINS;
    int64_t          begin = piece * s->piece, end = wefti_min_i64(begin + s->piece, s->given), at = counts[0];
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        uint32_t magnitude = magnitude_at(s, i);
        if (magnitude < s->threshold || (magnitude == s->threshold && counts[1] == 0)) continue;
        if (magnitude == s->threshold) counts[1]--;
        put_u32(s->bytes_out + 4 * at, (uint32_t)i);
        put_u32(s->bytes_out + 4 * (s->kept + at), wefti_f32_bits(s->x[i]));
        at++;
    }
}

static void over_pieces(const wefti_codec_part *part, selection *s, void (*body)(void *, int64_t, int32_t)) {
    int64_t pieces = pieces_of(part->given);
    if (part->loop) {
        part->loop->run(part->loop->pool, pieces, body, s);
        return;
    }
    for (int64_t piece = 0; piece < pieces; piece++) body(s, piece, 0);
}

/* The digit of the element that has `*rank_inout` larger ones among those counted; its rank among those of that digit comes back. */
static uint32_t digit_at(const selection *s, int64_t pieces, int64_t *rank_inout) {
    for (uint32_t bin = BINS; bin-- > 0;) {
        int64_t count = 0;
        for (int64_t piece = 0; piece < pieces; piece++) count += s->counts[piece * BINS + bin];
        if (*rank_inout < count) return bin;
        *rank_inout -= count;
    }
    return 0;
}

static void top_k_encode(const wefti_codec_part *part, const float *x, uint8_t *bytes_out, void *scratch) {
    static const uint32_t shifts[] = {20, 9, 0};
    selection             s = {.x = x, .given = part->given, .piece = piece_of(part->given), .counts = scratch, .kept = part->kept, .bytes_out = bytes_out};
    int64_t               pieces = pieces_of(part->given), chosen = wefti_min_i64(part->kept, part->given), rank = chosen - 1;
    memset(bytes_out, 0, (size_t)top_k_bytes(part->elements, part->kept)); /* fewer given than kept: zeros at place 0 */
    if (chosen < 1) return;
    for (size_t i = 0; i < WEFTI_COUNT(shifts); i++) {
        s.shift = shifts[i];
        over_pieces(part, &s, count_digit);
        s.prefix |= digit_at(&s, pieces, &rank) << s.shift;
        s.mask |= (uint32_t)(BINS - 1) << s.shift;
    }
    s.threshold = s.prefix;
    over_pieces(part, &s, count_chosen);
    int64_t larger = 0, at = 0;
    for (int64_t piece = 0; piece < pieces; piece++) larger += s.counts[piece * BINS];
    int64_t equal = chosen - larger;
    for (int64_t piece = 0; piece < pieces; piece++) {
        uint32_t *counts = s.counts + piece * BINS;
        int64_t   takes = wefti_min_i64(equal, counts[1]), writes = counts[0] + takes;
        counts[0] = (uint32_t)at;
        counts[1] = (uint32_t)takes;
        at += writes;
        equal -= takes;
    }
    over_pieces(part, &s, write_chosen);
}

static weft_status top_k_decode(const wefti_codec_part *part, const uint8_t *bytes, size_t size_bytes, bool add, float *x_out) {
    if (part->kept < 0 || part->kept > part->elements)
        return wefti_fail(WEFT_E_CORRUPT, "topk: %lld elements of %lld", (long long)part->kept, (long long)part->elements);
    WEFTI_TRY(wefti_codec_check("topk", part, top_k_bytes(part->elements, part->kept), size_bytes));
    for (int64_t i = 0; i < part->kept; i++)
        if (get_u32(bytes + 4 * i) >= (uint64_t)part->given)
            return wefti_fail(WEFT_E_CORRUPT, "topk: element %lld of the %lld that came is said to be number %u of %lld", (long long)i,
                              (long long)part->kept, (unsigned)get_u32(bytes + 4 * i), (long long)part->given);
    if (!add && part->given > 0) memset(x_out, 0, (size_t)part->given * sizeof *x_out);
    for (int64_t i = 0; i < part->kept; i++) x_out[get_u32(bytes + 4 * i)] += wefti_f32_from_bits(get_u32(bytes + 4 * (part->kept + i)));
    return WEFT_OK;
}

const wefti_codec_functions wefti_codec_top_k = {.bytes = top_k_bytes, .scratch_bytes = top_k_scratch, .encode = top_k_encode, .decode = top_k_decode};

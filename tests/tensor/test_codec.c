/* Codecs against their definition in double precision: every code of fp8, rounding at every boundary between two of them, what is not finite,
 * every size around a block and a chunk; top-k against a sort; nothing is lost where the rest is kept; the same bytes whoever runs the
 * chunks, and in whatever order. Bytes that are no encoding are refused, and nothing is written outside of the vector. */
#include <criterion/criterion.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor/codec.h"
#include "core/tensor/half.h"

#define OK(call) cr_assert_eq((call), WEFT_OK, "%s: %s", #call, weft_error_message())

static const int64_t sizes[] = {1, 2, 31, 32, 33, 63, 64, 65, 1000, 65535, 65536, 65537, 200003};

/* --- values --- */

static uint32_t draw(uint64_t *state) {
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*state >> 32);
}

/* Normal-like numbers; of widely different sizes from block to block where `wide`; with `odd`, what is not finite, zeros, and subnormal ones. */
static float *values_of(int64_t n, uint64_t seed, bool wide, bool odd) {
    static const uint32_t strange[] = {0x7fc00000u, 0xffc12345u, 0x7f800001u, 0x7f800000u, 0xff800000u, 0, 0x80000000u, 1, 0x80000001u, 0x7fffffu,
                                       0x800000u, 0x7f7fffffu, 0xff7fffffu};
    float *x = malloc((size_t)(n + 1) * sizeof *x);
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        for (int k = 0; k < 4; k++) sum += (double)draw(&seed) * 0x1p-32 - 0.5;
        x[i] = (float)(wide ? ldexp(sum, (int)(i / 32 * 37 % 250) - 126) : sum);
        if (odd && draw(&seed) % 9 == 0) x[i] = wefti_f32_from_bits(strange[draw(&seed) % WEFTI_COUNT(strange)]);
    }
    return x;
}

/* --- who runs the chunks --- */

typedef struct crew {
    int     threads; /* 0: this one, from the last chunk to the first */
    int64_t chunks;
    void (*body)(void *context, int64_t chunk, int32_t worker);
    void           *context;
    _Atomic int64_t next;
} crew;

static void *work(void *context) {
    crew *c = context;
    for (int64_t chunk; (chunk = atomic_fetch_add(&c->next, 1)) < c->chunks;) c->body(c->context, chunk, 0);
    return NULL;
}

static void run_crew(void *pool, int64_t chunks, void (*body)(void *context, int64_t chunk, int32_t worker), void *context) {
    crew     *c = pool;
    pthread_t thread[8];
    if (c->threads == 0) {
        while (chunks > 0) body(context, --chunks, 0);
        return;
    }
    c->chunks = chunks;
    c->body = body;
    c->context = context;
    atomic_store(&c->next, 0);
    for (int i = 0; i < c->threads; i++) cr_assert_eq(pthread_create(&thread[i], NULL, work, c), 0);
    for (int i = 0; i < c->threads; i++) pthread_join(thread[i], NULL);
}

/* --- encoding, in memory of exactly the size --- */

static uint8_t *encode(const wefti_codec_functions *codec, const wefti_codec_part *part, const float *x) {
    size_t   bytes = (size_t)codec->bytes(part->elements, part->kept);
    uint8_t *out = malloc(bytes + !bytes);
    void    *scratch = codec->scratch_bytes ? malloc((size_t)codec->scratch_bytes(part->elements) + 8) : NULL;
    memset(out, 0xa5, bytes);
    codec->encode(part, x, out, scratch);
    free(scratch);
    return out;
}

static void decode(const wefti_codec_functions *codec, const wefti_codec_part *part, const uint8_t *bytes, bool add, float *x_out) {
    OK(codec->decode(part, bytes, (size_t)codec->bytes(part->elements, part->kept), add, x_out));
}

static bool same_float(float a, float b) { return isnan(a) ? isnan(b) : wefti_f32_bits(a) == wefti_f32_bits(b); }

/* --- fp8's meaning --- */

typedef struct form {
    const char                  *name;
    const wefti_codec_functions *codec;
    int                          fraction_bits, bias, top; /* the largest number is 1.75 * 2^top */
    uint8_t                      infinity, nan;
} form;
static const form forms[] = {{"fp8", &wefti_codec_fp8, 3, 7, 8, 0x7f, 0x7f}, {"fp8-e5m2", &wefti_codec_fp8_e5m2, 2, 15, 15, 0x7c, 0x7f}};

/* Of a code without sign, from the definition. */
static double meaning(const form *f, uint8_t code) {
    int exponent = code >> f->fraction_bits, fraction = code & ((1 << f->fraction_bits) - 1);
    if (f->infinity != f->nan && code == f->infinity) return INFINITY;
    if (code == f->nan || (f->infinity != f->nan && code > f->infinity)) return NAN;
    double part = ldexp(fraction, -f->fraction_bits);
    return exponent ? ldexp(1 + part, exponent - f->bias) : ldexp(part, 1 - f->bias);
}

static uint8_t finite_codes(const form *f) { return f->infinity; }

/* The power of two that a block is divided by: the least with which nothing is too large. */
static int exponent_of(const form *f, const float *x, int64_t n) {
    double largest = 0;
    int    exponent = -126;
    for (int64_t i = 0; i < n; i++)
        if (isfinite(x[i])) largest = fmax(largest, fabs((double)x[i]));
    while (largest > ldexp(1.75, f->top + exponent)) exponent++;
    return exponent;
}

/* The nearest number's code, and of two that are as near the even one. */
static uint8_t nearest(const form *f, double magnitude) {
    uint8_t low = 0;
    if (isnan(magnitude)) return f->nan;
    if (isinf(magnitude)) return f->infinity;
    for (uint8_t step = 64; step; step /= 2) /* the last that is not above */
        if (low + step < finite_codes(f) && meaning(f, (uint8_t)(low + step)) <= magnitude) low = (uint8_t)(low + step);
    if (low + 1 == finite_codes(f)) {
        cr_assert_eq(meaning(f, low), magnitude, "the scale lets %g be cut", magnitude);
        return low;
    }
    double below = magnitude - meaning(f, low), above = meaning(f, (uint8_t)(low + 1)) - magnitude;
    return (uint8_t)(low + (above < below || (above == below && (low & 1))));
}

static void check_fp8(const form *f, const float *x, int64_t n, const uint8_t *bytes) {
    int64_t blocks = (n + 31) / 32;
    for (int64_t block = 0; block < blocks; block++) {
        int64_t begin = block * 32, end = begin + 32 < n ? begin + 32 : n;
        int     exponent = exponent_of(f, x + begin, end - begin);
        cr_assert_eq(bytes[block], exponent + 127, "%s: the scale of block %lld of %lld elements is %d, not %d", f->name, (long long)block,
                     (long long)n, bytes[block], exponent + 127);
        for (int64_t i = begin; i < end; i++) {
            uint8_t due = (uint8_t)(nearest(f, ldexp(fabs((double)x[i]), -exponent)) | (signbit(x[i]) ? 0x80 : 0));
            cr_assert_eq(bytes[blocks + i], due, "%s: %a (scale 2^%d) became %02x, not %02x", f->name, (double)x[i], exponent, bytes[blocks + i], due);
        }
    }
}

/* What comes back, from the bytes' definition. */
static float decoded_fp8(const form *f, const uint8_t *bytes, int64_t n, int64_t i) {
    uint8_t scale = bytes[i / 32], code = bytes[(n + 31) / 32 + i];
    double  value = scale == 255 ? NAN : (scale ? ldexp(1, scale - 127) : 0) * meaning(f, code & 0x7f);
    return (float)(code & 0x80 ? -value : value);
}

Test(codec_fp8, is_the_nearest_number_under_the_blocks_scale) {
    for (size_t k = 0; k < WEFTI_COUNT(forms); k++)
        for (size_t s = 0; s < WEFTI_COUNT(sizes); s++)
            for (int how = 0; how < 4; how++) {
                const form      *f = &forms[k];
                int64_t          n = sizes[s];
                wefti_codec_part part = {.elements = n, .given = n};
                float           *x = values_of(n, 7 + s, how & 1, how & 2), *back = malloc((size_t)n * sizeof *back);
                uint8_t         *bytes = encode(f->codec, &part, x);
                cr_assert_eq(f->codec->bytes(n, 0), n + (n + 31) / 32);
                check_fp8(f, x, n, bytes);
                decode(f->codec, &part, bytes, false, back);
                for (int64_t i = 0; i < n; i++)
                    cr_assert(same_float(back[i], decoded_fp8(f, bytes, n, i)), "%s: element %lld came back as %a", f->name, (long long)i, (double)back[i]);
                free(x);
                free(back);
                free(bytes);
            }
}

/* Each number, the middle between each two, and the floats beside both; under scales from the smallest to the largest. */
Test(codec_fp8, rounds_to_nearest_even_at_every_boundary) {
    static const int exponents[] = {-126, -125, -100, -1, 0, 1, 60, 112};
    for (size_t k = 0; k < WEFTI_COUNT(forms); k++)
        for (size_t e = 0; e < WEFTI_COUNT(exponents); e++)
            for (uint8_t code = 0; code + 1 < finite_codes(&forms[k]); code++) {
                const form      *f = &forms[k];
                wefti_codec_part part = {.elements = 32, .given = 32};
                double           low = meaning(f, code), high = meaning(f, (uint8_t)(code + 1));
                float            middle = (float)ldexp((low + high) / 2, exponents[e]), x[32] = {0};
                x[0] = (float)ldexp(1.75, f->top + exponents[e]); /* makes the scale */
                const float near[] = {(float)ldexp(low, exponents[e]), middle, nextafterf(middle, 0), nextafterf(middle, INFINITY)};
                for (int i = 0; i < 8; i++) x[i + 1] = i < 4 ? near[i] : -near[i - 4];
                uint8_t *bytes = encode(f->codec, &part, x);
                check_fp8(f, x, 32, bytes);
                cr_assert_eq(bytes[1 + 1], code);
                if (ldexp((low + high) / 2, exponents[e]) == (double)middle) cr_assert_eq(bytes[1 + 2], code + (code & 1));
                free(bytes);
            }
}

Test(codec_fp8, comes_back_from_every_code_and_every_scale) {
    for (size_t k = 0; k < WEFTI_COUNT(forms); k++)
        for (int scale = 0; scale < 256; scale++) {
            uint8_t          bytes[8 + 256];
            float            x[256], sum[256];
            wefti_codec_part part = {.elements = 256, .given = 256};
            memset(bytes, scale, 8);
            for (int i = 0; i < 256; i++) bytes[8 + i] = (uint8_t)i;
            decode(forms[k].codec, &part, bytes, false, x);
            for (int i = 0; i < 256; i++) {
                float due = decoded_fp8(&forms[k], bytes, 256, i);
                cr_assert(same_float(x[i], due), "%s: %02x under scale %d is %a, not %a", forms[k].name, i, scale, (double)x[i], (double)due);
                sum[i] = (float)(i - 100);
            }
            decode(forms[k].codec, &part, bytes, true, sum);
            for (int i = 0; i < 256; i++) cr_assert(same_float(sum[i], (float)(i - 100) + x[i]), "%s: %02x added", forms[k].name, i);
        }
}

/* The bounds that compression.h gives. */
Test(codec_fp8, loses_no_more_than_is_said) {
    static const double relative[] = {0x1p-4, 0x1p-3}, of_largest[] = {0x1p-17, 0x1p-31};
    for (size_t k = 0; k < WEFTI_COUNT(forms); k++) {
        enum { N = 3200 };
        wefti_codec_part part = {.elements = N, .given = N};
        float           *x = values_of(N, 3, false, false), back[N];
        for (int i = 0; i < N; i++) x[i] = ldexpf(x[i], -(i % 32));
        uint8_t *bytes = encode(forms[k].codec, &part, x);
        decode(forms[k].codec, &part, bytes, false, back);
        for (int block = 0; block < N / 32; block++) {
            double largest = 0;
            for (int i = 0; i < 32; i++) largest = fmax(largest, fabs((double)x[32 * block + i]));
            for (int i = 32 * block; i < 32 * block + 32; i++) {
                double off = fabs((double)x[i] - (double)back[i]), allowed = fmax(relative[k] * fabs((double)x[i]), of_largest[k] * largest);
                cr_assert_leq(off, allowed, "%s: %a came back as %a", forms[k].name, (double)x[i], (double)back[i]);
            }
        }
        free(x);
        free(bytes);
    }
}

/* --- bf16 --- */

Test(codec_bf16, is_the_nearest_number_little_endian) {
    for (size_t s = 0; s < WEFTI_COUNT(sizes); s++) {
        int64_t          n = sizes[s];
        wefti_codec_part part = {.elements = n, .given = n};
        float           *x = values_of(n, 11 + s, true, true), *back = malloc((size_t)n * sizeof *back);
        uint8_t         *bytes = encode(&wefti_codec_bf16, &part, x);
        cr_assert_eq(wefti_codec_bf16.bytes(n, 0), 2 * n);
        decode(&wefti_codec_bf16, &part, bytes, false, back);
        for (int64_t i = 0; i < n; i++) {
            cr_assert(same_float(back[i], wefti_bf16_to_f32((uint16_t)(bytes[2 * i] + 256 * bytes[2 * i + 1]))));
            if (isnan(x[i])) {
                cr_assert(isnan(back[i]));
                continue;
            }
            /* 8 significant bits, or multiples of 2^-133 below the normal numbers; what rounds up to 2^128 is infinite. */
            int    exponent = isfinite(x[i]) && fabsf(x[i]) >= 0x1p-126f ? ilogb((double)x[i]) : -126;
            double due = isfinite(x[i]) ? ldexp(nearbyint(ldexp((double)x[i], 7 - exponent)), exponent - 7) : (double)x[i];
            cr_assert(same_float(back[i], (float)due), "%a came back as %a, not %a", (double)x[i], (double)back[i], due);
        }
        free(x);
        free(back);
        free(bytes);
    }
}

/* --- top-k --- */

typedef struct entry { uint32_t magnitude, place; } entry;

static int larger_first(const void *a, const void *b) {
    const entry *x = a, *y = b;
    if (x->magnitude != y->magnitude) return x->magnitude < y->magnitude ? 1 : -1;
    return x->place < y->place ? -1 : 1;
}

static void check_top_k(const float *x, int64_t n, int64_t given, int64_t kept, const uint8_t *bytes) {
    entry   *all = malloc((size_t)(given + 1) * sizeof *all);
    bool    *chosen = calloc((size_t)given + 1, 1);
    int64_t  takes = kept < given ? kept : given, at = 0;
    for (int64_t i = 0; i < given; i++) all[i] = (entry){wefti_f32_bits(x[i]) & 0x7fffffffu, (uint32_t)i};
    qsort(all, (size_t)given, sizeof *all, larger_first);
    for (int64_t i = 0; i < takes; i++) chosen[all[i].place] = true;
    for (int64_t i = 0; i < given; i++) {
        uint32_t place, value;
        if (!chosen[i]) continue;
        memcpy(&place, bytes + 4 * at, 4);
        memcpy(&value, bytes + 4 * (kept + at), 4);
        cr_assert_eq(place, i, "topk %lld of %lld: number %lld has place %u, not %lld", (long long)kept, (long long)n, (long long)at, place, (long long)i);
        cr_assert_eq(value, wefti_f32_bits(x[i]), "topk: the value at %lld", (long long)i);
        at++;
    }
    for (; at < kept; at++)
        for (int b = 0; b < 4; b++) cr_assert(bytes[4 * at + b] == 0 && bytes[4 * (kept + at) + b] == 0, "what is not there is no zero");
    free(all);
    free(chosen);
}

Test(codec_top_k, chooses_the_largest_and_of_equal_ones_the_first) {
    for (size_t s = 0; s < WEFTI_COUNT(sizes); s++)
        for (int how = 0; how < 3; how++) {
            int64_t n = sizes[s];
            float  *x = values_of(n, 23 + s, true, how == 1), *back = malloc((size_t)n * sizeof *back);
            for (int64_t i = 0; how == 2 && i < n; i++) x[i] = (float)(i * 7919 % 5) - 2; /* nothing but ties */
            const int64_t kept[] = {1, 2, n / 100 + 1, n / 2 + 1, n};
            for (size_t k = 0; k < WEFTI_COUNT(kept); k++) {
                wefti_codec_part part = {.elements = n, .given = n, .kept = kept[k] < n ? kept[k] : n};
                uint8_t         *bytes = encode(&wefti_codec_top_k, &part, x);
                cr_assert_eq(wefti_codec_top_k.bytes(n, part.kept), 8 * part.kept);
                check_top_k(x, n, n, part.kept, bytes);
                decode(&wefti_codec_top_k, &part, bytes, false, back);
                /* What was sent and the rest are the vector, exactly. */
                for (int64_t i = 0; i < n; i++) {
                    float rest = x[i] - back[i];
                    cr_assert(!isfinite(x[i]) || (back[i] == x[i] && rest == 0) || (back[i] == 0 && rest == x[i]), "element %lld", (long long)i);
                }
                free(bytes);
            }
            free(x);
            free(back);
        }
}

Test(codec_top_k, keeps_a_share_of_the_elements) {
    weft_compression how = {.codec = WEFT_COMPRESS_TOP_K};
    cr_assert_eq(wefti_codec_kept(&how, 1000), 10);
    cr_assert_eq(wefti_codec_kept(&how, 1001), 11);
    cr_assert_eq(wefti_codec_kept(&how, 1), 1);
    how.ratio = 1e-9;
    cr_assert_eq(wefti_codec_kept(&how, 1000), 1);
    how.ratio = 1;
    cr_assert_eq(wefti_codec_kept(&how, 1000), 1000);
}

/* --- all of them --- */

static const wefti_codec_functions *const codecs[] = {&wefti_codec_bf16, &wefti_codec_fp8, &wefti_codec_fp8_e5m2, &wefti_codec_top_k};

static int64_t kept_of(const wefti_codec_functions *codec, int64_t n) { return codec->grain ? 0 : n / 7 + 1; }

/* The last part of a vector that is cut: the rest is zero, and is not read. */
Test(codecs, fill_up_with_zeros) {
    for (size_t c = 0; c < WEFTI_COUNT(codecs); c++)
        for (size_t s = 0; s < WEFTI_COUNT(sizes); s++)
            for (int how = 0; how < 4; how++) {
                int64_t          n = sizes[s], given = how == 0 ? 0 : how == 1 ? 1 : how == 2 ? n / 2 : n - 1;
                wefti_codec_part part = {.elements = n, .given = given, .kept = kept_of(codecs[c], n)}, whole = part;
                float           *padded = calloc((size_t)n, sizeof *padded), *x = malloc((size_t)(given + !given) * sizeof *x);
                float           *all = values_of(n, s, false, true), *a = calloc((size_t)n + 1, sizeof *a), *b = calloc((size_t)n + 1, sizeof *b);
                if (given > n) given = part.given = n;
                memcpy(x, all, (size_t)given * sizeof *x);
                memcpy(padded, all, (size_t)given * sizeof *x);
                whole.given = n;
                uint8_t *short_bytes = encode(codecs[c], &part, x), *whole_bytes = encode(codecs[c], &whole, padded);
                if (codecs[c]->grain)
                    cr_assert_eq(memcmp(short_bytes, whole_bytes, (size_t)codecs[c]->bytes(n, part.kept)), 0, "codec %zu, %lld of %lld", c,
                                 (long long)given, (long long)n);
                else check_top_k(x, n, given, part.kept, short_bytes);
                a[given] = b[n] = 12345;
                if (codecs[c]->grain || given == n) decode(codecs[c], &part, short_bytes, false, a);
                else decode(codecs[c], &(wefti_codec_part){.elements = n, .given = n, .kept = part.kept}, short_bytes, false, a);
                decode(codecs[c], &whole, short_bytes, false, b);
                for (int64_t i = 0; i < given; i++) cr_assert(same_float(a[i], b[i]));
                if (codecs[c]->grain) cr_assert_eq(a[given], 12345, "more than is wanted was written");
                cr_assert_eq(b[n], 12345);
                free(padded), free(x), free(all), free(a), free(b), free(short_bytes), free(whole_bytes);
            }
}

/* A vector in parts of a multiple of the grain is the vector. */
Test(codecs, may_be_cut_at_the_grain) {
    for (size_t c = 0; c < WEFTI_COUNT(codecs); c++) {
        enum { N = 1000, PART = 96 };
        if (codecs[c]->grain == 0) continue;
        cr_assert_eq(PART % codecs[c]->grain, 0);
        float   *x = values_of(N, 4, true, false), whole[N], parts[N];
        uint8_t *bytes = encode(codecs[c], &(wefti_codec_part){.elements = N, .given = N}, x);
        decode(codecs[c], &(wefti_codec_part){.elements = N, .given = N}, bytes, false, whole);
        free(bytes);
        for (int64_t at = 0; at < N; at += PART) {
            wefti_codec_part part = {.elements = PART, .given = N - at < PART ? N - at : PART};
            bytes = encode(codecs[c], &part, x + at);
            decode(codecs[c], &part, bytes, false, parts + at);
            free(bytes);
        }
        cr_assert_eq(memcmp(whole, parts, sizeof whole), 0, "codec %zu", c);
        free(x);
    }
}

/* What a rank keeps is exactly what it did not send: x less what comes back is an f32 number, and the two add up to x. */
Test(codecs, lose_nothing_where_the_rest_is_kept) {
    for (size_t c = 0; c < WEFTI_COUNT(codecs); c++)
        for (int wide = 0; wide < 2; wide++) {
            enum { N = 64 * 1000 };
            wefti_codec_part part = {.elements = N, .given = N, .kept = kept_of(codecs[c], N)};
            float           *x = values_of(N, 5, wide, false), *back = malloc(N * sizeof *back);
            uint8_t         *bytes = encode(codecs[c], &part, x);
            decode(codecs[c], &part, bytes, false, back);
            for (int i = 0; i < N; i++) {
                float rest = x[i] - back[i];
                cr_assert_eq((double)rest, (double)x[i] - (double)back[i], "codec %zu: %a less %a", c, (double)x[i], (double)back[i]);
                cr_assert_eq(rest + back[i], x[i]);
            }
            free(x), free(back), free(bytes);
        }
}

Test(codecs, give_the_same_bytes_whoever_runs_the_chunks) {
    enum { N = 300007 };
    float *x = values_of(N, 6, true, true), *back[4];
    for (size_t c = 0; c < WEFTI_COUNT(codecs); c++) {
        uint8_t *first = NULL;
        for (int how = 0; how < 4; how++) {
            crew             workers = {.threads = how == 1 ? 0 : how};
            wefti_codec_loop loop = {run_crew, &workers};
            wefti_codec_part part = {.elements = N, .given = N, .kept = kept_of(codecs[c], N), .loop = how ? &loop : NULL};
            uint8_t         *bytes = encode(codecs[c], &part, x);
            back[how] = malloc(N * sizeof *x);
            decode(codecs[c], &part, bytes, false, back[how]);
            decode(codecs[c], &part, bytes, true, back[how]);
            if (first) {
                cr_assert_eq(memcmp(first, bytes, (size_t)codecs[c]->bytes(N, part.kept)), 0, "codec %zu, crew %d", c, how);
                cr_assert_eq(memcmp(back[0], back[how], N * sizeof *x), 0, "codec %zu, crew %d: another vector came back", c, how);
                free(bytes);
            } else first = bytes;
        }
        free(first);
        for (int how = 0; how < 4; how++) free(back[how]);
    }
    free(x);
}

Test(codecs, of_nothing_are_nothing) {
    float x = 3;
    for (size_t c = 0; c < WEFTI_COUNT(codecs); c++) {
        wefti_codec_part part = {0};
        uint8_t          bytes = 77;
        cr_assert_eq(codecs[c]->bytes(0, 0), 0);
        codecs[c]->encode(&part, &x, &bytes, NULL);
        OK(codecs[c]->decode(&part, &bytes, 0, false, &x));
        cr_assert(bytes == 77 && x == 3);
    }
}

/* --- what is no encoding --- */

static void is_corrupt(const wefti_codec_functions *codec, const wefti_codec_part *part, const uint8_t *bytes, size_t size, const char *word) {
    float x[64];
    for (int i = 0; i < 64; i++) x[i] = 5;
    cr_assert_eq(codec->decode(part, bytes, size, true, x), WEFT_E_CORRUPT);
    cr_assert(strstr(weft_error_message(), word), "'%s' does not say '%s'", weft_error_message(), word);
    for (int i = 0; i < 64; i++) cr_assert_eq(x[i], 5, "something was written");
}

Test(codecs, refuse_bytes_that_are_none) {
    static const char *const names[] = {"bf16", "fp8", "fp8", "topk"};
    uint8_t                  bytes[1024] = {0};
    for (size_t c = 0; c < WEFTI_COUNT(codecs); c++) {
        wefti_codec_part part = {.elements = 60, .given = 60, .kept = kept_of(codecs[c], 60)};
        size_t           due = (size_t)codecs[c]->bytes(60, part.kept);
        is_corrupt(codecs[c], &part, bytes, due - 1, names[c]);
        is_corrupt(codecs[c], &part, bytes, due + 1, names[c]);
        is_corrupt(codecs[c], &part, bytes, 0, names[c]);
    }
    uint32_t place = 60;
    memcpy(bytes + 8, &place, sizeof place);
    is_corrupt(&wefti_codec_top_k, &(wefti_codec_part){.elements = 60, .given = 60, .kept = 3}, bytes, 24, "number 60 of 60");
    place = UINT32_MAX;
    memcpy(bytes + 8, &place, sizeof place);
    is_corrupt(&wefti_codec_top_k, &(wefti_codec_part){.elements = 60, .given = 60, .kept = 3}, bytes, 24, "number 4294967295 of 60");
    place = 59;
    memcpy(bytes + 8, &place, sizeof place);
    is_corrupt(&wefti_codec_top_k, &(wefti_codec_part){.elements = 60, .given = 59, .kept = 3}, bytes, 24, "number 59 of 59");
    is_corrupt(&wefti_codec_top_k, &(wefti_codec_part){.elements = 3, .given = 3, .kept = 4}, bytes, 32, "4 elements of 3");
}

Test(codecs, are_in_one_list) {
    for (int32_t codec = -1; codec <= WEFT_CODEC_COUNT; codec++) {
        const wefti_codec *of = wefti_codec_of(codec);
        bool               is_one = codec > WEFT_COMPRESS_NONE && codec < WEFT_CODEC_COUNT;
        cr_assert_eq(of->exchange != WEFTI_CODEC_NONE, is_one, "codec %d", codec);
        cr_assert_eq(of->functions != NULL, is_one && of->exchange != WEFTI_CODEC_FACTOR && codec != WEFT_COMPRESS_SIGNIFICANT && codec != WEFT_COMPRESS_NONZERO, "codec %d", codec);
        if (!is_one) cr_assert_str_eq(of->name, "none");
        for (int32_t other = 0; is_one && other < codec; other++) cr_assert_str_neq(of->name, wefti_codec_of(other)->name);
    }
}

/* Codecs on one thread: elements encoded, decoded and added up, as bytes of f32 per second; beside a copy of the same f32. Each is first
 * held against what it may lose. */
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "core/tensor/codec.h"

enum { WINDOWS = 9 };

typedef struct work {
    wefti_codec_part             part;
    const wefti_codec_functions *codec;
    float                       *x, *back;
    uint8_t                     *bytes;
    size_t                       size_bytes;
    void                        *scratch;
} work;

static void *take(size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 64) / 64 * 64);
    if (memory) return memset(memory, 0, bytes);
    fprintf(stderr, "error: no memory for %zu bytes\n", bytes);
    exit(1);
}

static void encode(work *w) { w->codec->encode(&w->part, w->x, w->bytes, w->scratch); }
static void decode_by(work *w, bool add) {
    if (w->codec->decode(&w->part, w->bytes, w->size_bytes, add, w->back) == WEFT_OK) return;
    fprintf(stderr, "error: %s\n", weft_error_message());
    exit(1);
}
static void decode(work *w) { decode_by(w, false); }
static void decode_add(work *w) { decode_by(w, true); }
static void copy(work *w) {
    memcpy(w->back, w->x, (size_t)w->part.elements * sizeof *w->x);
    __asm__ __volatile__("" ::: "memory");
}

/* What comes back is off by no more than an eighth of the largest; top-k gives what it keeps exactly. */
static void verify(work *w, const char *name) {
    double largest = 0;
    encode(w);
    decode(w);
    for (int64_t i = 0; i < w->part.elements; i++) largest = fmax(largest, fabs((double)w->x[i]));
    for (int64_t i = 0; i < w->part.elements; i++) {
        double off = fabs((double)w->x[i] - (double)w->back[i]);
        if (w->part.kept ? w->back[i] == w->x[i] || w->back[i] == 0 : off <= largest / 8) continue;
        fprintf(stderr, "error: %s: element %lld, %g, came back as %g\n", name, (long long)i, (double)w->x[i], (double)w->back[i]);
        exit(1);
    }
}

/* GB/s of f32. */
static bench_spread rate_of(work *w, void (*once)(work *w), double seconds) {
    double rates[WINDOWS];
    for (int window = 0; window < WINDOWS; window++) {
        int    count = 0;
        double begin = bench_now_s(), end = begin;
        for (; end - begin < seconds; end = bench_now_s(), count++) once(w);
        rates[window] = 1e-9 * (double)w->part.elements * sizeof(float) * count / (end - begin);
    }
    return bench_spread_of(rates, WINDOWS);
}

static void measure(work *w, const char *name, double seconds, double limit, FILE *json) {
    static const struct {
        const char *name;
        void (*once)(work *w);
    } ways[] = {{"encode", encode}, {"decode", decode}, {"decode and add", decode_add}};
    char size[32], what[96];
    bench_size_text((size_t)w->part.elements * sizeof(float), size, sizeof size);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        bench_spread spread = rate_of(w, ways[i].once, seconds);
        snprintf(what, sizeof what, "%s %s, %s", size, name, ways[i].name);
        printf("%-32s %10.2f %10.2f %10.2f %10.2f\n", what, spread.median, spread.low, spread.high, limit);
        bench_write(json, &(bench_record){.bench = "codec", .what = what, .metric = "rate", .unit = "GB/s", .spread = spread, .limit = limit});
    }
}

int bench_codec(int argc, char **argv) {
    double             seconds = 0.02;
    bench_sizes        sizes = {1 << 20, 1 << 20};
    const char        *json_path = NULL;
    const bench_option options[] = {{"sizes", "bytes of f32", BENCH_SIZES, &sizes},
                                    {"seconds", "of a window; there are nine", BENCH_NUMBER, &seconds},
                                    {"json", "file for the records", BENCH_TEXT, &json_path},
                                    {0}};
    bench_read_options(argc, argv, "Codecs of gradients on one thread, in GB/s of f32.", options);
    FILE *json = bench_open_json(json_path);
    printf("%-32s %10s %10s %10s %10s\n", "bytes, codec", "GB/s", "low", "high", "copy");
    for (size_t bytes = sizes.first; bytes <= sizes.last; bytes *= 2) {
        work w = {.part = {.elements = (int64_t)(bytes / sizeof(float)), .given = (int64_t)(bytes / sizeof(float))}, .x = take(bytes), .back = take(bytes)};
        for (int64_t i = 0; i < w.part.elements; i++) w.x[i] = (float)sin((double)i * 0.37) * (float)(1 + i % 7);
        double limit = rate_of(&w, copy, seconds).median;
        for (int codec = 1; codec < WEFT_CODEC_COUNT; codec++) {
            const wefti_codec *of = wefti_codec_of(codec);
            if (!of->functions || w.part.elements == 0) continue;
            w.codec = of->functions;
            w.part.kept = w.codec->grain ? 0 : wefti_codec_kept(&(weft_compression){.codec = (weft_codec)codec}, w.part.elements);
            w.size_bytes = (size_t)w.codec->bytes(w.part.elements, w.part.kept);
            w.bytes = take(w.size_bytes);
            w.scratch = w.codec->scratch_bytes ? take((size_t)w.codec->scratch_bytes(w.part.elements)) : NULL;
            verify(&w, of->name);
            measure(&w, of->name, seconds, limit, json);
            free(w.bytes);
            free(w.scratch);
        }
        free(w.x);
        free(w.back);
    }
    if (json) fclose(json);
    return 0;
}

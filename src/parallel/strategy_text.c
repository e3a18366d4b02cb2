/* Strategies as text. One list of settings: its rows read, write, and are what a refusal lists. */
#include <ctype.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/base.h"
#include "parallel/compress.h"
#include "weft/server.h"
#include "weft/strategy.h"

typedef enum kind { WHOLE, WIDE, FLAG, ORDER, SYNC, PRECISION, COMPRESS } kind;

typedef struct setting {
    const char *name;
    kind        kind;
    size_t      offset; /* of an int32_t (WHOLE), int64_t (WIDE), bool (FLAG) or enumeration */
    int64_t     least, most;
    const char *values; /* that there are, for refusals */
} setting;

#define MOST_RANKS (1 << 20)
#define MOST_BYTES (INT64_C(1) << 46)
#define AT(field) offsetof(weft_strategy, field)

static const setting settings[] = {
    {"data", WHOLE, AT(data), 0, MOST_RANKS, "a number of ranks; 0: those that the other axes leave"},
    {"tensor", WHOLE, AT(tensor), 0, MOST_RANKS, "a number of ranks"},
    {"pipeline", WHOLE, AT(pipeline), 0, MOST_RANKS, "a number of ranks"},
    {"sequence", WHOLE, AT(sequence), 0, MOST_RANKS, "a number of ranks"},
    {"expert", WHOLE, AT(expert), 0, MOST_RANKS, "a number of ranks"},
    {"tensor-rows", WHOLE, AT(tensor_rows), -1, 1, "0 (shared where that is quicker), 1 (wherever they divide) or -1 (never)"},
    {"schedule", ORDER, AT(schedule), 0, 0, "1f1b, gpipe, interleaved or zero-bubble"},
    {"chunks", WHOLE, AT(chunks), 0, MOST_RANKS, "a number of runs of layers that a rank has; 0: 2 where the schedule is interleaved"},
    {"zero", WHOLE, AT(zero), 0, 3, "0, 1 (solver states in parts), 2 (gradients too) or 3 (parameters too)"},
    {"sync", SYNC, AT(sync), 0, 0, "allreduce, server, server:STALENESS or server:async"},
    {"servers", WHOLE, AT(servers), 0, MOST_RANKS, "a number of ranks; 0: all"},
    {"replicas", WHOLE, AT(replicas), 0, 1, "0 or 1"},
    {"push", WHOLE, AT(push), 0, INT32_MAX, "a number of steps"},
    {"fetch", WHOLE, AT(fetch), 0, INT32_MAX, "a number of steps"},
    {"warm-start", WIDE, AT(warm_start), 0, INT64_MAX, "a number of steps"},
    {"overlap", FLAG, AT(overlap), 0, 1, "0 or 1"},
    {"accumulate", WHOLE, AT(accumulate), 0, MOST_RANKS, "a number of micro-batches"},
    {"precision", PRECISION, AT(precision), 0, 0, "f32, bf16, f16 or fp8"},
    {"compress", COMPRESS, AT(compress), 0, 0, "of weft/codecs.def"},
    {"compress-warmup", WIDE, AT(compress.warmup), 0, INT64_MAX, "a number of steps"},
    {"bucket-bytes", WIDE, AT(bucket_bytes), 0, MOST_BYTES, "a number of bytes; 0: 4 MiB"},
    {"recompute", FLAG, AT(recompute), 0, 1, "0 or 1"},
    {"automatic", FLAG, AT(automatic), 0, 1, "0 or 1"},
    {"memory-bytes", WIDE, AT(memory_bytes), 0, INT64_MAX, "a number of bytes; 0: what there is"},
    {"divide-bytes", WIDE, AT(divide_bytes), -1, MOST_BYTES, "a number of bytes; 0: where that is quicker; -1: never"},
    {"loss-chunk-rows", WIDE, AT(loss_chunk_rows), -1, MOST_BYTES, "a number of rows; 0: as suits the device; -1: all at once"},
};
enum { SETTINGS = sizeof settings / sizeof *settings, MOST_TEXT = 512, MOST_VALUE = 64 };

static const char *const orders[] = {[WEFT_1F1B] = "1f1b", [WEFT_GPIPE] = "gpipe",
                                     [WEFT_INTERLEAVED] = "interleaved", [WEFT_ZERO_BUBBLE] = "zero-bubble"};
/* Precisions by name: a dtype, and whether products are of 8-bit floats. */
static const struct {
    const char *name;
    weft_dtype  dtype;
    bool        fp8;
} precisions[] = {{"f32", WEFT_F32, false}, {"bf16", WEFT_BF16, false}, {"f16", WEFT_F16, false}, {"fp8", WEFT_BF16, true}};

#define FIELD(type, strategy, setting) (*(type *)(void *)((char *)(strategy) + (setting)->offset))
#define FIELD_OF(type, strategy, setting) (*(const type *)(const void *)((const char *)(strategy) + (setting)->offset))

/* --- reading --- */

static weft_status refuse(const setting *s, const char *value) {
    return wefti_fail(WEFT_E_INVALID, "strategy: %s = '%s' is none: it is %s", s->name, value, s->values);
}

static bool read_number(const char *text, int64_t least, int64_t most, int64_t *number_out) {
    char *end = NULL;
    errno = 0;
    if (!isdigit((unsigned char)*text) && *text != '-') return false;
    *number_out = strtoll(text, &end, 10);
    return errno == 0 && end != text && *end == '\0' && *number_out >= least && *number_out <= most;
}

static weft_status read_order(const setting *s, const char *value, weft_strategy *strategy) {
    for (size_t i = 0; i < sizeof orders / sizeof *orders; i++) {
        if (strcmp(orders[i], value) != 0) continue;
        strategy->schedule = (weft_pipeline_order)i;
        return WEFT_OK;
    }
    return refuse(s, value);
}

static weft_status read_sync(const setting *s, const char *value, weft_strategy *strategy) {
    int64_t staleness = 0;
    strategy->sync = WEFT_ALLREDUCE;
    strategy->staleness = 0;
    if (strcmp(value, "allreduce") == 0) return WEFT_OK;
    strategy->sync = WEFT_SERVER;
    if (strcmp(value, "server") == 0) return WEFT_OK;
    if (strncmp(value, "server:", 7) != 0) return refuse(s, value);
    if (strcmp(value + 7, "async") == 0) staleness = WEFT_TABLE_ASYNCHRONOUS;
    else if (!read_number(value + 7, 0, INT32_MAX, &staleness)) return refuse(s, value);
    strategy->staleness = (int32_t)staleness;
    return WEFT_OK;
}

static weft_status read_precision(const setting *s, const char *value, weft_strategy *strategy) {
    for (size_t i = 0; i < sizeof precisions / sizeof *precisions; i++) {
        if (strcmp(precisions[i].name, value) != 0) continue;
        strategy->precision = precisions[i].dtype;
        strategy->fp8 = precisions[i].fp8;
        return WEFT_OK;
    }
    return refuse(s, value);
}

static weft_status read_value(const setting *s, const char *value, weft_strategy *strategy) {
    int64_t number = 0, warmup = strategy->compress.warmup;
    switch (s->kind) {
    case ORDER: return read_order(s, value, strategy);
    case SYNC: return read_sync(s, value, strategy);
    case PRECISION: return read_precision(s, value, strategy);
    case COMPRESS:
        WEFTI_TRY(weft_compression_parse(value, &strategy->compress));
        strategy->compress.warmup = warmup;
        return WEFT_OK;
    default: break;
    }
    if (!read_number(value, s->least, s->most, &number)) return refuse(s, value);
    if (s->kind == WHOLE) FIELD(int32_t, strategy, s) = (int32_t)number;
    else if (s->kind == WIDE) FIELD(int64_t, strategy, s) = number;
    else FIELD(bool, strategy, s) = number != 0;
    return WEFT_OK;
}

static weft_status no_such(const char *word) {
    char   all[512];
    size_t used = 0;
    for (int32_t i = 0; i < SETTINGS; i++) used += (size_t)snprintf(all + used, sizeof all - used, "%s%s", i ? ", " : "", settings[i].name);
    return wefti_fail(WEFT_E_INVALID, "strategy: there is no setting '%s'; there are %s", word, all);
}

/* One word, "name=value"; `seen` has a bit for each setting that came before. */
static weft_status read_word(char *word, uint64_t *seen, weft_strategy *strategy) {
    char automatic[] = "automatic=1";
    if (strcmp(word, "auto") == 0) word = automatic;
    char *equals = strchr(word, '=');
    if (!equals || equals == word || !equals[1])
        return wefti_fail(WEFT_E_INVALID, "strategy: '%s' is no NAME=VALUE; an example: data=2,tensor=2,pipeline=2", word);
    *equals = '\0';
    int32_t found = 0;
    while (found < SETTINGS && strcmp(settings[found].name, word) != 0) found++;
    if (found == SETTINGS) return no_such(word);
    if (*seen >> found & 1) return wefti_fail(WEFT_E_INVALID, "strategy: %s is set twice", word);
    *seen |= UINT64_C(1) << found;
    if (strlen(equals + 1) > MOST_VALUE)
        return wefti_fail(WEFT_E_INVALID, "strategy: the value of %s has %zu bytes, at most %d", word, strlen(equals + 1), MOST_VALUE);
    return read_value(&settings[found], equals + 1, strategy);
}

weft_status weft_strategy_parse(const char *text, weft_strategy *strategy) {
    char     copy[MOST_TEXT + 1], *rest = NULL;
    uint64_t seen = 0;
    if (!text || !strategy) return wefti_fail(WEFT_E_INVALID, "weft_strategy_parse: the %s is NULL", text ? "strategy" : "text");
    weft_strategy found = *strategy;
    if (strlen(text) > MOST_TEXT) return wefti_fail(WEFT_E_INVALID, "strategy: the text has %zu bytes, at most %d", strlen(text), (int)MOST_TEXT);
    memcpy(copy, text, strlen(text) + 1);
    for (char *word = strtok_r(copy, ", \t\n", &rest); word; word = strtok_r(NULL, ", \t\n", &rest)) WEFTI_TRY(read_word(word, &seen, &found));
    *strategy = found;
    return WEFT_OK;
}

/* --- writing --- */

static int write_compression(const weft_compression *c, char *text, size_t size) {
    const char *name = wefti_codec_of(c->codec)->name;
    if (c->codec == WEFT_COMPRESS_TOP_K && c->ratio > 0) return snprintf(text, size, "%s:%.17g", name, c->ratio);
    if (c->codec == WEFT_COMPRESS_SIGNIFICANT && c->threshold > 0) return snprintf(text, size, "%s:%.17g", name, c->threshold);
    if (c->codec == WEFT_COMPRESS_POWER_SGD && c->rank > 0) return snprintf(text, size, "%s:%d", name, c->rank);
    return snprintf(text, size, "%s", name);
}

static void write_sync(const weft_strategy *strategy, char *text, size_t size) {
    if (strategy->sync == WEFT_ALLREDUCE) snprintf(text, size, "allreduce");
    else if (strategy->staleness == 0) snprintf(text, size, "server");
    else if (strategy->staleness < 0) snprintf(text, size, "server:async");
    else snprintf(text, size, "server:%d", strategy->staleness);
}

/* false: it is the default. */
static bool write_value(const setting *s, const weft_strategy *strategy, char *text, size_t size) {
    int64_t number = 0;
    switch (s->kind) {
    case WHOLE: number = FIELD_OF(int32_t, strategy, s); break;
    case WIDE: number = FIELD_OF(int64_t, strategy, s); break;
    case FLAG: number = FIELD_OF(bool, strategy, s); break;
    case ORDER: snprintf(text, size, "%s", (unsigned)strategy->schedule <= WEFT_ZERO_BUBBLE ? orders[strategy->schedule] : "?"); return strategy->schedule != WEFT_1F1B;
    case SYNC: write_sync(strategy, text, size); return strategy->sync != WEFT_ALLREDUCE;
    case PRECISION: snprintf(text, size, "%s", strategy->fp8 ? "fp8" : weft_dtype_name(strategy->precision)); return strategy->precision != WEFT_F32;
    case COMPRESS:
        if ((int)strategy->compress.codec <= WEFT_COMPRESS_NONE || strategy->compress.codec >= WEFT_CODEC_COUNT) return false;
        write_compression(&strategy->compress, text, size);
        return true;
    }
    snprintf(text, size, "%lld", (long long)number);
    return number != 0;
}

weft_strategy_string weft_strategy_text(const weft_strategy *strategy) {
    weft_strategy_string out = {.text = ""};
    size_t               used = 0;
    for (int32_t i = 0; i < SETTINGS && strategy; i++) {
        char value[MOST_VALUE + 1];
        if (!write_value(&settings[i], strategy, value, sizeof value)) continue;
        int more = snprintf(out.text + used, sizeof out.text - used, "%s%s=%s", used ? "," : "", settings[i].name, value);
        if (more > 0 && (size_t)more < sizeof out.text - used) used += (size_t)more;
        else out.text[used] = '\0';
    }
    if (used == 0) snprintf(out.text, sizeof out.text, "data=0");
    return out;
}

/* What people write of compression: the text form, and which settings make sense. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/compress.h"

/* "none, bf16, fp8, …" */
static const char *names(char *buffer, size_t size) {
    size_t used = 0;
    buffer[0] = '\0';
    for (int32_t codec = 0; codec < WEFT_CODEC_COUNT && used < size; codec++)
        used += (size_t)snprintf(buffer + used, size - used, "%s%s", codec ? ", " : "", wefti_codec_of(codec)->name);
    return buffer;
}

static weft_status set_number(weft_compression *compression, const char *text, double number) {
    if (compression->codec == WEFT_COMPRESS_TOP_K) compression->ratio = number;
    else if (compression->codec == WEFT_COMPRESS_SIGNIFICANT) compression->threshold = number;
    else if (compression->codec == WEFT_COMPRESS_POWER_SGD && number == (double)(int32_t)number) compression->rank = (int32_t)number;
    else return wefti_fail(WEFT_E_INVALID, "compression '%s': the number after the colon is topk's ratio, significant's threshold or powersgd's rank, a whole one", text);
    if (number > 0) return wefti_compress_check(compression);
    return wefti_fail(WEFT_E_INVALID, "compression '%s': the number after the colon must be more than 0", text);
}

weft_status weft_compression_parse(const char *text, weft_compression *compression_out) {
    char        all[256];
    const char *colon = text ? strchr(text, ':') : NULL;
    *compression_out = (weft_compression){.codec = WEFT_COMPRESS_NONE};
    if (!text) return wefti_fail(WEFT_E_INVALID, "weft_compression_parse: the text is NULL");
    weft_compression found = {.codec = WEFT_CODEC_COUNT};
    size_t           length = colon ? (size_t)(colon - text) : strlen(text);
    for (int32_t codec = 0; codec < WEFT_CODEC_COUNT; codec++)
        if (strlen(wefti_codec_of(codec)->name) == length && memcmp(wefti_codec_of(codec)->name, text, length) == 0) found.codec = (weft_codec)codec;
    if (found.codec == WEFT_CODEC_COUNT) return wefti_fail(WEFT_E_INVALID, "there is no compression '%s': there are %s", text, names(all, sizeof all));
    if (colon) {
        char  *end = NULL;
        double number = strtod(colon + 1, &end);
        if (end == colon + 1 || *end) return wefti_fail(WEFT_E_INVALID, "compression '%s': '%s' is no number", text, colon + 1);
        if (!(number > -2147483648.0 && number < 2147483648.0)) return wefti_fail(WEFT_E_INVALID, "compression '%s': %g is out of range", text, number);
        WEFTI_TRY(set_number(&found, text, number));
    }
    *compression_out = found;
    return WEFT_OK;
}

weft_status wefti_compress_check(const weft_compression *how) {
    char all[256];
    if ((int)how->codec < 0 || how->codec >= WEFT_CODEC_COUNT)
        return wefti_fail(WEFT_E_INVALID, "strategy: compress.codec is %d; there are %s", (int)how->codec, names(all, sizeof all));
    if (!(how->ratio >= 0 && how->ratio <= 1))
        return wefti_fail(WEFT_E_INVALID, "strategy: compress.ratio is %g; it is the share of elements that are sent, above 0 and at most 1", how->ratio);
    if (!(how->threshold >= 0 && how->threshold < HUGE_VAL))
        return wefti_fail(WEFT_E_INVALID, "strategy: compress.threshold is %g; it is how much a row must have changed, beside what was last sent of it",
                          how->threshold);
    if (how->rank < 0 || how->rank > 64) return wefti_fail(WEFT_E_INVALID, "strategy: compress.rank is %d; it is 1 to 64, or 0 for 4", how->rank);
    if (how->warmup < 0 || how->least < 0)
        return wefti_fail(WEFT_E_INVALID, "strategy: compress.warmup is %lld and compress.least %lld; neither may be negative",
                          (long long)how->warmup, (long long)how->least);
    return WEFT_OK;
}

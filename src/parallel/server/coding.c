/* Rows and key lists in fewer bytes. */
#include "parallel/server/coding.h"

#include <math.h>
#include <string.h>

enum { ALL_ROWS, BITS, GAPS };

static const wefti_codec_functions *functions_of(const wefti_coding *coding) { return wefti_codec_of((int32_t)coding->how->codec)->functions; }
static size_t row_bytes_of(const wefti_coding *coding) { return (size_t)coding->width * weft_dtype_bytes(coding->dtype); }

bool wefti_coding_feeds_back(const weft_compression *how) {
    return how->codec != WEFT_COMPRESS_NONE && (how->error_feedback || wefti_codec_of((int32_t)how->codec)->feedback);
}
bool wefti_coding_chooses(const weft_compression *how) {
    return how->codec == WEFT_COMPRESS_TOP_K || how->codec == WEFT_COMPRESS_SIGNIFICANT || how->codec == WEFT_COMPRESS_NONZERO;
}

/* --- what goes with what --- */

static weft_status check_numbers(const char *table, const char *what, const weft_compression *how) {
    if ((unsigned)how->codec >= WEFT_CODEC_COUNT)
        return wefti_fail(WEFT_E_INVALID, "table '%s': %s.codec %d is none; there are those of weft/codecs.def", table, what, (int)how->codec);
    if (!(how->ratio >= 0 && how->ratio <= 1) || !(how->threshold >= 0 && how->threshold < HUGE_VAL))
        return wefti_fail(WEFT_E_INVALID, "table '%s': %s.ratio is %g and .threshold %g; the one is of 0 to 1, the other not negative", table, what, how->ratio,
                          how->threshold);
    if (how->rank != 0 || how->warmup != 0 || how->least < 0)
        return wefti_fail(WEFT_E_INVALID, "table '%s': %s.rank is %d, .warmup %lld, .least %lld; tables have no use for the first two (a call that is .plain is "
                          "not compressed), and the last is not negative", table, what, (int)how->rank, (long long)how->warmup, (long long)how->least);
    return WEFT_OK;
}

static weft_status check_dtype(const weft_table_options *o, const char *what, const weft_compression *how) {
    if (how->codec == WEFT_COMPRESS_NONE || how->codec == WEFT_COMPRESS_NONZERO || o->dtype == WEFT_F32) return WEFT_OK;
    return wefti_fail(WEFT_E_DTYPE, "table '%s': %s.codec %s is for rows of f32, and these are of %s; nonzero goes with every dtype", o->name, what,
                      wefti_codec_of((int32_t)how->codec)->name, weft_dtype_name(o->dtype));
}

static weft_status check_push(const weft_table_options *o) {
    const weft_compression *how = &o->push;
    const char             *name = wefti_codec_of((int32_t)how->codec)->name;
    WEFTI_TRY(check_numbers(o->name, "push", how));
    if (how->codec == WEFT_COMPRESS_POWER_SGD)
        return wefti_fail(WEFT_E_UNSUPPORTED, "table '%s': push.codec powersgd is for gradients that all ranks have a share of; rows go with bf16, fp8, fp8-e5m2, "
                          "fixed8, fixed16, topk, significant, nonzero", o->name);
    WEFTI_TRY(check_dtype(o, "push", how));
    if (how->codec == WEFT_COMPRESS_NONZERO && how->error_feedback)
        return wefti_fail(WEFT_E_INVALID, "table '%s': push.codec nonzero loses nothing that error_feedback could keep", o->name);
    if (o->rule.kind == WEFT_TABLE_AVERAGE && wefti_coding_chooses(how))
        return wefti_fail(WEFT_E_UNSUPPORTED, "table '%s': push.codec %s leaves rows out, which then were no part of a mean; bf16, fp8, fp8-e5m2, fixed8 and "
                          "fixed16 go with AVERAGE", o->name, name);
    if (o->rule.kind == WEFT_TABLE_USER && (wefti_coding_chooses(how) || wefti_coding_feeds_back(how)))
        return wefti_fail(WEFT_E_UNSUPPORTED, "table '%s': push.codec %s%s brings updates in parts, and what '%s' makes of a part is its secret; bf16, fp8, "
                          "fp8-e5m2, fixed8 and fixed16 without error_feedback go with a rule of one's own", o->name, name,
                          how->error_feedback ? " with error_feedback" : "", o->rule.function ? o->rule.function : "");
    return WEFT_OK;
}

static weft_status check_pull(const weft_table_options *o) {
    const weft_compression *how = &o->pull;
    WEFTI_TRY(check_numbers(o->name, "pull", how));
    bool whole = how->codec == WEFT_COMPRESS_NONE || (functions_of(&(wefti_coding){.how = how}) && !wefti_coding_chooses(how));
    if (!whole || how->error_feedback)
        return wefti_fail(WEFT_E_UNSUPPORTED, "table '%s': pull.codec %s%s: servers send rows whole and keep nothing for a worker; bf16, fp8, fp8-e5m2, fixed8 and "
                          "fixed16 go with pulls, without error_feedback", o->name, wefti_codec_of((int32_t)how->codec)->name,
                          how->error_feedback ? " with error_feedback" : "");
    return check_dtype(o, "pull", how);
}

weft_status wefti_coding_check(const weft_table_options *options) {
    WEFTI_TRY(check_push(options));
    return check_pull(options);
}

/* --- numbers of 7 bits a byte --- */

static size_t number_bytes(uint64_t number) {
    size_t bytes = 1;
    while (number >>= 7) bytes++;
    return bytes;
}

static uint8_t *put_number(uint8_t *at, uint64_t number) {
    for (; number >= 0x80; number >>= 7) *at++ = (uint8_t)(number | 0x80);
    *at++ = (uint8_t)number;
    return at;
}

/* NULL: it does not end, or is longer than 64 bits. */
static const uint8_t *get_number(const uint8_t *at, const uint8_t *end, uint64_t *number_out) {
    uint64_t number = 0;
    for (int shift = 0; at < end && shift < 64; shift += 7) {
        uint64_t bits = *at & 0x7f;
        if (shift == 63 && bits > 1) return NULL;
        number |= bits << shift;
        if (!(*at++ & 0x80)) {
            *number_out = number;
            return at;
        }
    }
    return NULL;
}

/* Ascending numbers as the first, and one less than what they differ by. */
static size_t gaps_bytes(const uint64_t *numbers, int64_t count) {
    size_t bytes = 0;
    for (int64_t i = 0; i < count; i++) bytes += number_bytes(i ? numbers[i] - numbers[i - 1] - 1 : numbers[0]);
    return bytes;
}

static uint8_t *put_gaps(uint8_t *at, const uint64_t *numbers, int64_t count) {
    for (int64_t i = 0; i < count; i++) at = put_number(at, i ? numbers[i] - numbers[i - 1] - 1 : numbers[0]);
    return at;
}

static const uint8_t *get_gaps(const uint8_t *at, const uint8_t *end, int64_t count, uint64_t *numbers_out) {
    for (int64_t i = 0; i < count && at; i++) {
        uint64_t gap;
        if (!(at = get_number(at, end, &gap))) break;
        if (i && gap >= UINT64_MAX - numbers_out[i - 1]) return NULL;
        numbers_out[i] = i ? numbers_out[i - 1] + gap + 1 : gap;
    }
    return at;
}

size_t wefti_list_bytes(const uint64_t *keys, int64_t count) { return wefti_align_up(gaps_bytes(keys, count), 8); }

void wefti_list_write(const uint64_t *keys, int64_t count, uint8_t *bytes_out) {
    uint8_t *end = put_gaps(bytes_out, keys, count);
    while ((size_t)(end - bytes_out) % 8) *end++ = 0;
}

weft_status wefti_list_read(const uint8_t *bytes, size_t size_bytes, int64_t count, uint64_t *keys_out) {
    const uint8_t *end = bytes + size_bytes, *at = count < 0 || (uint64_t)count > size_bytes ? NULL : get_gaps(bytes, end, count, keys_out);
    if (at && end - at < 8) return WEFT_OK;
    return wefti_fail(WEFT_E_CORRUPT, "a list of %lld keys does not lie in the %zu bytes that it came with", (long long)count, size_bytes);
}

/* --- which rows --- */

bool wefti_coding_is_zero(const wefti_coding *coding, const void *row) {
    const size_t size = weft_dtype_bytes(coding->dtype);
    uint64_t     sign = weft_dtype_is_float(coding->dtype) ? UINT64_C(1) << (8 * size - 1) : 0, any = 0;
    for (int64_t i = 0; i < coding->width; i++) {
        uint64_t bits = 0;
        memcpy(&bits, (const uint8_t *)row + (size_t)i * size, size);
        any |= bits & ~sign;
    }
    return any == 0;
}

typedef struct choice { int64_t count; size_t gaps; } choice;
static choice count_rows(const uint8_t *sent, int64_t rows) {
    choice  chosen = {0, 0};
    int64_t last = -1;
    for (int64_t row = 0; row < rows; row++)
        if (sent[row]) {
            chosen.count++;
            chosen.gaps += number_bytes((uint64_t)(row - last - 1));
            last = row;
        }
    chosen.gaps += number_bytes((uint64_t)chosen.count);
    return chosen;
}

static uint8_t *put_choice(uint8_t *at, const uint8_t *sent, int64_t rows) {
    choice  chosen = count_rows(sent, rows);
    size_t  bits = (size_t)(rows + 7) / 8;
    int64_t last = -1;
    if (chosen.count == rows) {
        *at++ = ALL_ROWS;
    } else if (bits <= chosen.gaps) {
        *at++ = BITS;
        memset(at, 0, bits);
        for (int64_t row = 0; row < rows; row++) at[row / 8] |= (uint8_t)(!!sent[row] << row % 8);
        at += bits;
    } else {
        *at++ = GAPS;
        at = put_number(at, (uint64_t)chosen.count);
        for (int64_t row = 0; row < rows; row++)
            if (sent[row]) {
                at = put_number(at, (uint64_t)(row - last - 1));
                last = row;
            }
    }
    return at;
}

/* NULL: nonsense. */
static const uint8_t *get_choice(const uint8_t *at, const uint8_t *end, int64_t rows, uint64_t *rows_out, int64_t *count_out) {
    uint64_t count = 0;
    if (at == end) return NULL;
    uint8_t how = *at++;
    if (how == ALL_ROWS) {
        for (; count < (uint64_t)rows; count++) rows_out[count] = count;
    } else if (how == BITS) {
        if ((int64_t)(end - at) < (rows + 7) / 8) return NULL;
        for (int64_t row = 0; row < rows; row++)
            if (at[row / 8] >> row % 8 & 1) rows_out[count++] = (uint64_t)row;
        at += (rows + 7) / 8;
    } else {
        if (how != GAPS || !(at = get_number(at, end, &count)) || count > (uint64_t)rows) return NULL;
        at = get_gaps(at, end, (int64_t)count, rows_out);
        if (!at || (count && rows_out[count - 1] >= (uint64_t)rows)) return NULL;
    }
    *count_out = (int64_t)count;
    return at;
}

/* --- values --- */

static int64_t kept_of(const wefti_coding *coding, int64_t elements) {
    return coding->how->codec == WEFT_COMPRESS_TOP_K ? wefti_codec_kept(coding->how, elements) : 0;
}

bool wefti_coding_fits(const wefti_coding *coding, int64_t rows) {
    int64_t elements = 0, bytes = 0;
    if (!wefti_mul_i64(rows, coding->width, &elements) || !wefti_mul_i64(elements, 16, &bytes)) return false;
    return coding->how->codec != WEFT_COMPRESS_TOP_K || elements <= UINT32_MAX;
}

size_t wefti_coding_bytes(const wefti_coding *coding, int64_t rows) {
    const wefti_codec_functions *f = functions_of(coding);
    int64_t                      elements = rows * coding->width;
    if (rows == 0) return 0;
    return f ? (size_t)f->bytes(elements, kept_of(coding, elements)) : 1 + (size_t)(rows + 7) / 8 + (size_t)rows * row_bytes_of(coding);
}

size_t wefti_coding_scratch(const wefti_coding *coding, int64_t rows) {
    const wefti_codec_functions *f = functions_of(coding);
    return f && f->scratch_bytes ? (size_t)f->scratch_bytes(rows * coding->width) : 0;
}

size_t wefti_coding_write(const wefti_coding *coding, const void *values, int64_t rows, const uint8_t *sent, uint8_t *bytes_out, void *scratch) {
    const wefti_codec_functions *f = functions_of(coding);
    const size_t                 row_bytes = row_bytes_of(coding);
    int64_t                      elements = rows * coding->width;
    if (rows == 0) return 0;
    if (f) {
        wefti_codec_part part = {.elements = elements, .given = elements, .kept = kept_of(coding, elements), .key = coding->key, .stream = coding->stream};
        f->encode(&part, values, bytes_out, scratch);
        return (size_t)f->bytes(elements, part.kept);
    }
    uint8_t *at = put_choice(bytes_out, sent, rows);
    for (int64_t row = 0; row < rows; row++)
        if (sent[row]) {
            memcpy(at, (const uint8_t *)values + (size_t)row * row_bytes, row_bytes);
            at += row_bytes;
        }
    return (size_t)(at - bytes_out);
}

static weft_status fail_size(const wefti_coding *coding, size_t size_bytes, int64_t rows) {
    return wefti_fail(WEFT_E_CORRUPT, "%s: %zu bytes came for %lld rows of %lld elements, which they are not", wefti_codec_of((int32_t)coding->how->codec)->name,
                      size_bytes, (long long)rows, (long long)coding->width);
}

/* Rows that have an element. The places are within the vector: decode looks. */
static int64_t keep_rows(const wefti_coding *coding, const uint8_t *bytes, int64_t kept, int64_t rows, uint64_t *rows_out, float *values_out) {
    const size_t row_bytes = row_bytes_of(coding);
    int64_t      count = 0;
    memset(rows_out, 0, (size_t)rows * sizeof *rows_out);
    for (int64_t i = 0; i < kept; i++) {
        uint32_t place;
        memcpy(&place, bytes + 4 * i, sizeof place);
        rows_out[place / coding->width] = 1;
    }
    for (int64_t row = 0; row < rows; row++) {
        if (!rows_out[row]) continue;
        if (count < row) memcpy(values_out + count * coding->width, values_out + row * coding->width, row_bytes);
        rows_out[count++] = (uint64_t)row;
    }
    return count;
}

weft_status wefti_coding_read(const wefti_coding *coding, const uint8_t *bytes, size_t size_bytes, int64_t rows, uint64_t *rows_out, int64_t *count_out,
                              void *values_out) {
    const wefti_codec_functions *f = functions_of(coding);
    int64_t                      elements = rows * coding->width;
    *count_out = rows;
    if (!wefti_coding_fits(coding, rows)) return fail_size(coding, size_bytes, rows);
    if (rows == 0) return size_bytes == 0 ? WEFT_OK : fail_size(coding, size_bytes, rows);
    if (!f) {
        const uint8_t *end = bytes + size_bytes, *at = get_choice(bytes, end, rows, rows_out, count_out);
        if (!at || (size_t)(end - at) != (size_t)*count_out * row_bytes_of(coding)) return fail_size(coding, size_bytes, rows);
        if (at < end) memcpy(values_out, at, (size_t)(end - at));
        return WEFT_OK;
    }
    wefti_codec_part part = {.elements = elements, .given = elements};
    if (coding->how->codec == WEFT_COMPRESS_TOP_K) {
        if (size_bytes % 8) return fail_size(coding, size_bytes, rows);
        part.kept = (int64_t)(size_bytes / 8);
    }
    WEFTI_TRY(f->decode(&part, bytes, size_bytes, false, values_out));
    if (coding->how->codec == WEFT_COMPRESS_TOP_K) *count_out = keep_rows(coding, bytes, part.kept, rows, rows_out, values_out);
    else
        for (int64_t row = 0; row < rows; row++) rows_out[row] = (uint64_t)row;
    return WEFT_OK;
}

/* JSON, as far as it is needed: no recursion, no numbers but whole ones, no null, true or false. Source: RFC 8259. */
#include <stdio.h>
#include <string.h>

#include "io/json.h"

weft_status wefti_json_fail(const wefti_json *json, const char *expected) {
    char found[24] = "the end";
    if (json->at < json->length) {
        unsigned char byte = (unsigned char)json->text[json->at];
        snprintf(found, sizeof found, byte >= 0x20 && byte < 0x7f ? "'%c'" : "byte 0x%02x", byte);
    }
    return wefti_fail(WEFT_E_CORRUPT, "%s: at offset %llu expected %s, found %s", json->what,
                      (unsigned long long)(json->base + json->at), expected, found);
}

static void skip_blanks(wefti_json *json) {
    while (json->at < json->length && memchr(" \t\n\r", json->text[json->at], 4)) json->at++;
}

bool wefti_json_try(wefti_json *json, char wanted) {
    skip_blanks(json);
    if (json->at >= json->length || json->text[json->at] != wanted) return false;
    json->at++;
    return true;
}

weft_status wefti_json_take(wefti_json *json, char wanted) {
    char expected[] = {'\'', wanted, '\'', 0};
    return wefti_json_try(json, wanted) ? WEFT_OK : wefti_json_fail(json, expected);
}

static size_t encode_utf8(uint32_t code, char *out) {
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (char)(0xc0 | code >> 6);
        out[1] = (char)(0x80 | (code & 63));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (char)(0xe0 | code >> 12);
        out[1] = (char)(0x80 | (code >> 6 & 63));
        out[2] = (char)(0x80 | (code & 63));
        return 3;
    }
    out[0] = (char)(0xf0 | code >> 18);
    out[1] = (char)(0x80 | (code >> 12 & 63));
    out[2] = (char)(0x80 | (code >> 6 & 63));
    out[3] = (char)(0x80 | (code & 63));
    return 4;
}

/* Four hexadecimal digits. */
static weft_status take_hex(wefti_json *json, uint32_t *code_out) {
    *code_out = 0;
    for (int i = 0; i < 4; i++) {
        char        byte = json->at < json->length ? json->text[json->at] : '?';
        const char *digits = "0123456789abcdef", *found = memchr(digits, byte | (byte >= 'A' ? 0x20 : 0), 16);
        if (!found) return wefti_json_fail(json, "four hexadecimal digits");
        *code_out = *code_out << 4 | (uint32_t)(found - digits);
        json->at++;
    }
    return WEFT_OK;
}

/* What follows a backslash. */
static weft_status take_escape(wefti_json *json, char *out, size_t *length_out) {
    static const char plain[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    char              byte = json->at < json->length ? json->text[json->at] : 0;
    const char       *found = byte ? strchr(plain, byte) : NULL;
    if (found) {
        json->at++;
        *out = meant[found - plain];
        *length_out = 1;
        return WEFT_OK;
    }
    if (byte != 'u') return wefti_json_fail(json, "an escape");
    uint32_t code = 0, low = 0;
    json->at++;
    WEFTI_TRY(take_hex(json, &code));
    if (code >= 0xd800 && code < 0xdc00) {
        if (json->length - json->at < 2 || json->text[json->at] != '\\' || json->text[json->at + 1] != 'u')
            return wefti_json_fail(json, "the second half of a surrogate pair");
        json->at += 2;
        WEFTI_TRY(take_hex(json, &low));
        if (low < 0xdc00 || low >= 0xe000) return wefti_json_fail(json, "the second half of a surrogate pair before this");
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code >= 0xdc00 && code < 0xe000) {
        return wefti_json_fail(json, "no second half of a surrogate pair alone before this");
    }
    if (code == 0) return wefti_json_fail(json, "no NUL in a string before this");
    *length_out = encode_utf8(code, out);
    return WEFT_OK;
}

weft_status wefti_json_string(wefti_json *json, char **string_out) {
    WEFTI_TRY(wefti_json_take(json, '"'));
    char *out = json->text + json->at;
    *string_out = out;
    for (;;) {
        if (json->at >= json->length) return wefti_json_fail(json, "the end of a string");
        char byte = json->text[json->at];
        if ((unsigned char)byte < 0x20) return wefti_json_fail(json, "no control character in a string");
        if (byte == '"') break;
        size_t length = 1;
        char   decoded[4] = {byte};
        json->at++;
        if (byte == '\\') WEFTI_TRY(take_escape(json, decoded, &length));
        memcpy(out, decoded, length);
        out += length;
    }
    *out = '\0';
    json->at++;
    return WEFT_OK;
}

weft_status wefti_json_number(wefti_json *json, int64_t *number_out) {
    skip_blanks(json);
    size_t  begin = json->at;
    int64_t value = 0;
    while (json->at < json->length && json->text[json->at] >= '0' && json->text[json->at] <= '9') {
        if (!wefti_mul_i64(value, 10, &value) || !wefti_add_i64(value, json->text[json->at] - '0', &value))
            return wefti_json_fail(json, "a number below 2^63");
        json->at++;
    }
    if (json->at == begin) return wefti_json_fail(json, "a whole number");
    if (json->text[begin] == '0' && json->at > begin + 1) return wefti_json_fail(json, "a number without leading zeros before this");
    *number_out = value;
    return WEFT_OK;
}

weft_status wefti_json_end(wefti_json *json) {
    skip_blanks(json);
    return json->at == json->length ? WEFT_OK : wefti_json_fail(json, "nothing more");
}

/* Bytes of the UTF-8 character that begins at `at`, 0 where it is not one. Overlong forms and surrogates are not. */
static size_t utf8_character(const unsigned char *at, size_t left) {
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    if (at[0] < 0x80) return 1;
    size_t length = at[0] >= 0xf0 ? 4 : at[0] >= 0xe0 ? 3 : 2;
    if (at[0] < 0xc2 || at[0] > 0xf4 || length > left) return 0;
    uint32_t code = at[0] & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((at[i] & 0xc0) != 0x80) return 0;
        code = code << 6 | (at[i] & 63u);
    }
    return code < least[length] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000) ? 0 : length;
}

size_t wefti_utf8_valid(const char *text, size_t length) {
    size_t at = 0;
    while (at < length) {
        size_t step = utf8_character((const unsigned char *)text + at, length - at);
        if (step == 0) break;
        at += step;
    }
    return at;
}

void wefti_text_add_json(wefti_text *text, const char *string) {
    const unsigned char *at = (const unsigned char *)(string ? string : "");
    size_t               left = strlen((const char *)at);
    wefti_text_add(text, "\"");
    while (left > 0) {
        size_t plain = 0, step;
        while (plain < left && at[plain] >= 0x20 && at[plain] != '"' && at[plain] != '\\' &&
               (step = utf8_character(at + plain, left - plain)) > 0)
            plain += step;
        if (plain > 0) {
            wefti_text_add(text, "%.*s", (int)plain, (const char *)at);
        } else {
            plain = 1;
            if (*at == '"' || *at == '\\') wefti_text_add(text, "\\%c", *at);
            else if (*at < 0x20) wefti_text_add(text, "\\u%04x", *at);
            else wefti_text_add(text, "\xef\xbf\xbd");
        }
        at += plain;
        left -= plain;
    }
    wefti_text_add(text, "\"");
}

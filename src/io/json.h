/* The part of JSON that a safetensors header needs: objects, arrays, strings, whole numbers. And writing strings. */
#ifndef WEFTI_JSON_H
#define WEFTI_JSON_H

#include "core/base/base.h"

/* A place in a text that is parsed in order. Strings are decoded in place, so the text must be writable; they are never
 * longer than what they stand for. Errors say `what` and the offset, to which `base` is added. */
typedef struct wefti_json {
    char       *text;
    size_t      length, at;
    const char *what;
    uint64_t    base;
} wefti_json;

WEFT_MUST_CHECK weft_status wefti_json_fail(const wefti_json *json, const char *expected);
/* Skips blanks and takes `wanted`, or fails. */
WEFT_MUST_CHECK weft_status wefti_json_take(wefti_json *json, char wanted);
/* Skips blanks; takes `wanted` where it is next. */
bool wefti_json_try(wefti_json *json, char wanted);
/* A string, decoded and NUL-terminated in place; one with an escaped NUL in it is refused. */
WEFT_MUST_CHECK weft_status wefti_json_string(wefti_json *json, char **string_out);
/* A whole number from 0 to INT64_MAX, written plainly. */
WEFT_MUST_CHECK weft_status wefti_json_number(wefti_json *json, int64_t *number_out);
/* Only blanks may be left. */
WEFT_MUST_CHECK weft_status wefti_json_end(wefti_json *json);

/* The offset of the first byte that is not valid UTF-8, or `length`. */
size_t wefti_utf8_valid(const char *text, size_t length);
/* Adds `string` with quotes and escapes. Bytes that are not UTF-8 become U+FFFD. NULL is "". */
void wefti_text_add_json(wefti_text *text, const char *string);

#endif

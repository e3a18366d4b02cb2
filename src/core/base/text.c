/* Growing text and log lines. */
#include <stdio.h>
#include <string.h>

#include "core/base/base.h"

static weft_log_function log_function;
static void             *log_context;
static weft_log_level    log_level;

void weft_set_log(weft_log_function function, void *context, weft_log_level level) {
    log_function = function;
    log_context = context;
    log_level = level;
}

void wefti_log(weft_log_level level, const char *format, ...) {
    if (!log_function || level > log_level) return;
    char    line[WEFTI_MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    log_function(log_context, level, line);
}

void wefti_text_add(wefti_text *text, const char *format, ...) {
    if (text->failed) return;
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0) {
        text->failed = true;
        return;
    }
    size_t needed = text->length + (size_t)length + 1;
    if (needed > text->capacity) {
        size_t capacity = needed * 2 > 256 ? needed * 2 : 256;
        if (wefti_grow(&text->bytes, text->capacity, capacity, "text") != WEFT_OK) {
            text->failed = true;
            return;
        }
        text->capacity = capacity;
    }
    va_start(arguments, format);
    vsnprintf(text->bytes + text->length, text->capacity - text->length, format, arguments);
    va_end(arguments);
    text->length += (size_t)length;
}

void wefti_text_release(wefti_text *text) {
    wefti_free(text->bytes, text->capacity);
    *text = (wefti_text){0};
}

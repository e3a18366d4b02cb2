/* Lines of a stream. The buffer holds the line in hand and what was read ahead; it grows to the longest line seen, up to
 * the limit that the caller set, so memory is bounded by that limit and not by the file. */
#include <string.h>

#include "io/source.h"

enum { first_capacity = 1 << 16 };

weft_status wefti_lines_open(const char *path, size_t longest_bytes, wefti_lines *lines_out) {
    *lines_out = (wefti_lines){.longest_bytes = longest_bytes};
    WEFTI_TRY(wefti_source_open(path, &lines_out->source));
    weft_status status = wefti_alloc_raw(first_capacity, WEFTI_CACHE_LINE, "a line buffer", &lines_out->buffer);
    if (status != WEFT_OK) {
        wefti_source_release(lines_out->source);
        lines_out->source = NULL;
        return status;
    }
    lines_out->capacity = first_capacity;
    return WEFT_OK;
}

/* Reads more behind what is there. One byte of room is always left for a NUL. */
static weft_status read_ahead(wefti_lines *lines) {
    if (lines->begin > 0) {
        memmove(lines->buffer, lines->buffer + lines->begin, lines->end - lines->begin);
        lines->end -= lines->begin;
        lines->begin = 0;
    }
    if (lines->end > lines->longest_bytes)
        return wefti_fail(WEFT_E_CORRUPT, "'%s' line %lld is longer than %zu bytes; is this a text file?",
                          wefti_source_path(lines->source), (long long)lines->number + 1, lines->longest_bytes);
    if (lines->end + 1 >= lines->capacity) {
        WEFTI_TRY(wefti_grow(&lines->buffer, lines->capacity, lines->capacity * 2, "a line buffer"));
        lines->capacity *= 2;
    }
    size_t got = 0;
    WEFTI_TRY(wefti_source_read(lines->source, lines->buffer + lines->end, lines->capacity - 1 - lines->end, &got));
    lines->end += got;
    lines->finished = got == 0;
    return WEFT_OK;
}

weft_status wefti_lines_next(wefti_lines *lines, char **line_out, size_t *length_out) {
    size_t searched = 0;
    char  *newline = NULL;
    while (!(newline = memchr(lines->buffer + lines->begin + searched, '\n', lines->end - lines->begin - searched))) {
        searched = lines->end - lines->begin;
        if (lines->finished) break;
        WEFTI_TRY(read_ahead(lines));
    }
    if (!newline && lines->begin == lines->end) return WEFT_END;
    char  *line = lines->buffer + lines->begin;
    size_t length = newline ? (size_t)(newline - line) : lines->end - lines->begin;
    lines->begin += length + (newline ? 1 : 0);
    lines->number++;
    if (length > 0 && line[length - 1] == '\r') length--;
    line[length] = '\0';
    if (memchr(line, '\0', length))
        return wefti_fail(WEFT_E_CORRUPT, "'%s' line %lld has a NUL byte in it; is this a text file?",
                          wefti_source_path(lines->source), (long long)lines->number);
    *line_out = line;
    *length_out = length;
    return WEFT_OK;
}

void wefti_lines_close(wefti_lines *lines) {
    wefti_source_release(lines->source);
    if (lines->buffer) wefti_free(lines->buffer, lines->capacity);
    *lines = (wefti_lines){0};
}

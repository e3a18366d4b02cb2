/* Reading metrics back: one pass over the lines, each parsed in place. Values that are objects or arrays are passed over by
 * counting brackets outside of texts. Cost: the longest line. */
#include <math.h>
#include <string.h>

#include "io/json.h"
#include "io/number.h"
#include "io/source.h"
#include "weft/metrics.h"

enum { longest_line_bytes = 1 << 20 };

typedef struct wanted {
    const char *event, *x_key, *y_key;
    bool        event_fits;
    double      x, y; /* NaN until found */
} wanted;

/* Passes over a value that is not a text; [begin, at) is what it was. */
static bool skip_value(wefti_json *json, size_t *begin_out) {
    int depth = 0;
    while (json->at < json->length && strchr(" \t", json->text[json->at])) json->at++;
    *begin_out = json->at;
    for (; json->at < json->length; json->at++) {
        char byte = json->text[json->at];
        if (byte == '"') {
            char *text;
            if (wefti_json_string(json, &text) != WEFT_OK) return false;
            json->at--; /* the loop steps over the quote */
        } else if (byte == '{' || byte == '[') depth++;
        else if ((byte == '}' || byte == ']') && depth-- == 0) break;
        else if (byte == ',' && depth == 0) break;
    }
    return json->at > *begin_out;
}

static bool take_member(wefti_json *json, wanted *of) {
    char  *key, *text;
    size_t begin;
    double number = NAN;
    if (wefti_json_string(json, &key) != WEFT_OK || !wefti_json_try(json, ':')) return false;
    if (wefti_json_try(json, '"')) {
        json->at--;
        if (wefti_json_string(json, &text) != WEFT_OK) return false;
        if (of->event && strcmp(key, "event") == 0) of->event_fits = strcmp(text, of->event) == 0;
        return true;
    }
    if (!skip_value(json, &begin)) return false;
    size_t length = json->at - begin;
    while (length > 0 && json->text[begin + length - 1] == ' ') length--;
    if (!wefti_number_from_text(json->text + begin, length, &number)) return true;
    if (strcmp(key, of->x_key) == 0) of->x = number;
    if (strcmp(key, of->y_key) == 0) of->y = number;
    return true;
}

/* True where the line is an object of the event with both numbers. */
static bool take_line(char *line, size_t length, wanted *of) {
    wefti_json json = {line, length, 0, "a line of metrics", 0};
    of->event_fits = !of->event;
    of->x = of->y = NAN;
    if (!wefti_json_try(&json, '{')) return false;
    do
        if (!take_member(&json, of)) return false;
    while (wefti_json_try(&json, ','));
    return wefti_json_try(&json, '}') && wefti_json_end(&json) == WEFT_OK && of->event_fits && isfinite(of->x) && isfinite(of->y);
}

weft_status weft_metrics_read(const char *path, const char *event, const char *x_key, const char *y_key,
                              weft_metrics_visit visit, void *context) {
    if (!x_key || !y_key || !visit)
        return wefti_fail(WEFT_E_INVALID, "weft_metrics_read: needs two keys and a function to call");
    wefti_lines lines;
    wanted      of = {.event = event, .x_key = x_key, .y_key = y_key};
    WEFTI_TRY(wefti_lines_open(path, longest_line_bytes, &lines));
    weft_status status;
    for (;;) {
        char  *line = NULL;
        size_t length = 0;
        status = wefti_lines_next(&lines, &line, &length);
        if (status != WEFT_OK) break;
        if (take_line(line, length, &of) && (status = visit(context, of.x, of.y)) != WEFT_OK) break;
    }
    wefti_lines_close(&lines);
    return status == WEFT_END ? WEFT_OK : status;
}

/* Numbers and words of SVG files, as they have to be written there. */
#include "io/svg.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/json.h"

void wefti_svg_number(wefti_text *text, double value) {
    long tenths = lround(value * 10);
    wefti_text_add(text, "%s%ld.%ld", tenths < 0 ? "-" : "", labs(tenths) / 10, labs(tenths) % 10);
}

void wefti_svg_pair(wefti_text *text, const char *before, double a, const char *between, double b) {
    wefti_text_add(text, "%s", before);
    wefti_svg_number(text, a);
    wefti_text_add(text, "%s", between);
    wefti_svg_number(text, b);
}

void wefti_svg_words(wefti_text *text, const char *string) {
    size_t left_over = string ? strlen(string) : 0;
    while (left_over > 0) {
        size_t valid = wefti_utf8_valid(string, left_over), plain = strcspn(string, "<>&\"'\x01\x02\x03\x04\x05\x06\x07\b\t\n\v\f\r");
        size_t now = valid < plain ? valid : plain;
        if (now > left_over) now = left_over;
        wefti_text_add(text, "%.*s", (int)now, string);
        string += now;
        left_over -= now;
        if (left_over == 0) break;
        if (valid <= plain && now == valid) wefti_text_add(text, "\xef\xbf\xbd");
        else if (*string == '<') wefti_text_add(text, "&lt;");
        else if (*string == '>') wefti_text_add(text, "&gt;");
        else if (*string == '&') wefti_text_add(text, "&amp;");
        else if (*string == '"') wefti_text_add(text, "&quot;");
        else if (*string == '\'') wefti_text_add(text, "&#39;");
        else wefti_text_add(text, " ");
        string++;
        left_over--;
    }
}

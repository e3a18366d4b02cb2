/* Numbers and text, apart from the locale.
 *
 * Idea: nearly every number in a data file has at most 15 digits and a small power of ten, where one multiplication or
 * division of two exact doubles gives the correctly rounded result (W. Clinger, "How to read floating point numbers
 * accurately", PLDI 1990). The rest goes to the C library, under a locale of our own that has the point for decimals. */
#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/number.h"

static locale_t       plain_locale;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Held for the life of the process, as the C library's own locale is. */
static void make_locale(void) { plain_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0); }

static bool is_digit(char byte) { return byte >= '0' && byte <= '9'; }

/* False where the quick way does not apply; the text may still be a number. */
static bool quick(const char *at, const char *end, double *number_out) {
    static const double tens[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                  1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    bool     negative = at < end && *at == '-';
    uint64_t digits = 0;
    int      count = 0, scale = 0, exponent = 0;
    if (at < end && (*at == '-' || *at == '+')) at++;
    for (; at < end && is_digit(*at) && count < 16; at++, count++) digits = digits * 10 + (uint64_t)(*at - '0');
    if (at < end && *at == '.')
        for (at++; at < end && is_digit(*at) && count < 16; at++, count++, scale--)
            digits = digits * 10 + (uint64_t)(*at - '0');
    if (count == 0 || count > 15) return false;
    if (at < end && (*at == 'e' || *at == 'E')) {
        at++;
        bool down = at < end && *at == '-';
        if (at < end && (*at == '-' || *at == '+')) at++;
        if (at == end) return false;
        for (; at < end && is_digit(*at) && exponent < 1000; at++) exponent = exponent * 10 + (*at - '0');
        scale += down ? -exponent : exponent;
    }
    if (at != end || scale < -22 || scale > 22) return false;
    double value = scale < 0 ? (double)digits / tens[-scale] : (double)digits * tens[scale];
    *number_out = negative ? -value : value;
    return true;
}

bool wefti_number_from_text(const char *text, size_t length, double *number_out) {
    char  copy[512];
    char *end = NULL;
    if (quick(text, text + length, number_out)) return true;
    if (length == 0 || length >= sizeof copy || strchr(" \t\n\v\f\r", text[0])) return false;
    memcpy(copy, text, length);
    copy[length] = '\0';
    pthread_once(&once, make_locale);
    if (!plain_locale) return false;
    *number_out = strtod_l(copy, &end, plain_locale);
    return end == copy + length;
}

/* printf takes the thread's locale, so that is changed for the moment. */
static void print(char text[wefti_number_text_bytes], int digits, double number) {
    pthread_once(&once, make_locale);
    locale_t before = plain_locale ? uselocale(plain_locale) : (locale_t)0;
    if (digits > 0) snprintf(text, wefti_number_text_bytes, "%.*g", digits, number);
    else snprintf(text, wefti_number_text_bytes, "%a", number);
    if (plain_locale) uselocale(before);
}

void wefti_number_to_hex(double number, char text[wefti_number_text_bytes]) { print(text, 0, number); }

void wefti_number_to_text(double number, char text[wefti_number_text_bytes]) {
    double back = 0;
    if (isnan(number)) {
        memcpy(text, "nan", 4);
        return;
    }
    for (int digits = 6; digits <= 17; digits += digits == 6 ? 3 : digits == 9 ? 6 : 1) {
        print(text, digits, number);
        if (wefti_number_from_text(text, strlen(text), &back) && back == number) return;
    }
}

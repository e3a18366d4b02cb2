/* What files of SVG are made of. */
#ifndef WEFTI_SVG_H
#define WEFTI_SVG_H

#include "core/base/base.h"

/* Tenths of a pixel, written without the locale. */
void wefti_svg_number(wefti_text *text, double value);
void wefti_svg_pair(wefti_text *text, const char *before, double a, const char *between, double b);
/* Text of an element: markup escaped, control characters left out, bytes that are not UTF-8 replaced. */
void wefti_svg_words(wefti_text *text, const char *string);

#endif

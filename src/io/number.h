/* Numbers as text, whatever the program's locale says about decimal points. */
#ifndef WEFTI_NUMBER_H
#define WEFTI_NUMBER_H

#include <stdbool.h>
#include <stddef.h>

enum { wefti_number_text_bytes = 40 };

/* The whole of text[0..length) as a number: decimal or hexadecimal ("0x1.8p+1"), inf, nan. Correctly rounded. False where it is not
 * one. text[length] must be readable. */
bool wefti_number_from_text(const char *text, size_t length, double *number_out);
/* "0x1.8p+1": exact. */
void wefti_number_to_hex(double number, char text[wefti_number_text_bytes]);
/* The shortest decimal of 17 digits at most that reads back the same, as in "0.1"; "nan", "inf" and "-inf". */
void wefti_number_to_text(double number, char text[wefti_number_text_bytes]);

#endif

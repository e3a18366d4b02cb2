/* The two forms of 8-bit floats (Micikevicius et al. 2022, "FP8 formats for deep learning"): E4M3 with three bits of fraction, no infinity and
 * 448 as its largest number, E5M2 with two bits, infinities and 57344. The conversions stand in fp8_code.h, once for all who convert: codecs, the
 * CPU device's products and CUDA's kernels. */
#ifndef WEFTI_FP8_H
#define WEFTI_FP8_H

#include <stdint.h>
#include <string.h>

typedef enum wefti_fp8_form { WEFTI_FP8_NONE, WEFTI_FP8_E4M3, WEFTI_FP8_E5M2 } wefti_fp8_form;

/* A form by its bits of fraction, exponent bias, exponent of the largest number, and codes without sign. */
typedef struct wefti_fp8_format {
    int32_t  fraction, bias, largest;
    uint32_t infinity, nan; /* E4M3's infinity is NaN */
} wefti_fp8_format;

static inline const char *wefti_fp8_name(int32_t form) { return form == WEFTI_FP8_E4M3 ? "e4m3" : form == WEFTI_FP8_E5M2 ? "e5m2" : "?"; }

#endif

/* What the reader and the writer of safetensors files share. */
#ifndef WEFTI_SAFETENSORS_H
#define WEFTI_SAFETENSORS_H

#include "core/base/base.h"
#include "io/hash.h"
#include "weft/safetensors.h"

#define WEFTI_SAFETENSORS_CHECKSUM "weft.checksum"
enum {
    wefti_safetensors_most_header_bytes = 100000000, /* as in the format's own implementation */
    wefti_safetensors_digits = 16,                   /* of one sum, in hexadecimal */
};
/* The value of the checksum's key: this word, the sum of the header with all digits of this value set to '0', and the
 * sum of each array in the order of their data, separated by commas. */
#define WEFTI_SAFETENSORS_SCHEME "xxh64:"

typedef struct wefti_safetensors_type {
    const char *text;
    uint8_t     bytes;
    weft_dtype  dtype; /* WEFT_DTYPE_COUNT where there is none */
} wefti_safetensors_type;

/* By the file's word; NULL where it is unknown. By dtype; never NULL for a valid one. */
const wefti_safetensors_type *wefti_safetensors_type_named(const char *text);
const wefti_safetensors_type *wefti_safetensors_type_of(weft_dtype dtype);

/* Of all arrays' names, places and checksums, in all files of an index; 0 where an array has no checksum. */
uint64_t wefti_safetensors_fingerprint(const weft_safetensors *file);

#endif

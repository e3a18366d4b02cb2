/* Token files for language models: raw text, one byte a token, or a flat file of little-endian 16-bit ids.
 *
 * The file is mapped into memory, so opening costs nothing and pages come as they are used. Shortening a file while it
 * is open is not survivable through `weft_tokens_data`; weft_tokens_read tells it as an error instead. */
#ifndef WEFT_TOKENS_H
#define WEFT_TOKENS_H

#include <stdint.h>

#include "weft/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weft_tokens weft_tokens;

/* Opens `path` with ids of `id_bytes` (1 or 2) bytes each. *tokens_out gets one reference, NULL on error.
 * WEFT_E_NOT_FOUND, WEFT_E_IO; WEFT_E_INVALID for another id size or a path that is no regular file; WEFT_E_CORRUPT for
 * a length that is no multiple of id_bytes. */
WEFT_MUST_CHECK weft_status weft_tokens_open(const char *path, int32_t id_bytes, weft_tokens **tokens_out);

/* Tokens in the file. */
int64_t weft_tokens_count(const weft_tokens *tokens);
/* Bytes of one id, 1 or 2. */
int32_t weft_tokens_id_bytes(const weft_tokens *tokens);
/* The mapped ids, read-only, valid until release; NULL for an empty file. */
const void *weft_tokens_data(const weft_tokens *tokens);

/* Copies ids [first, first + count) to ids_out. Thread-safe. Blocks on the file system only. WEFT_E_INVALID outside of
 * the file; WEFT_E_CORRUPT where the file has become shorter. */
WEFT_MUST_CHECK weft_status weft_tokens_read(const weft_tokens *tokens, int64_t first, int64_t count, int32_t *ids_out);

/* The bytes that a text uses, numbered in ascending order: for models over characters. */
typedef struct weft_alphabet {
    int32_t count;        /* bytes in use */
    int16_t id_of[256];   /* -1 for a byte that is not in use */
    uint8_t byte_of[256]; /* of ids 0..count-1 */
} weft_alphabet;

/* Reads the whole file once. WEFT_E_UNSUPPORTED for 16-bit ids. */
WEFT_MUST_CHECK weft_status weft_tokens_alphabet(const weft_tokens *tokens, weft_alphabet *alphabet_out);

/* NULL is allowed. */
void weft_tokens_release(weft_tokens *tokens);

#ifdef __cplusplus
}
#endif
#endif

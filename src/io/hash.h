/* Checksums of files. */
#ifndef WEFTI_HASH_H
#define WEFTI_HASH_H

#include <stddef.h>
#include <stdint.h>

/* XXH64 with seed 0, in pieces of any size. */
typedef struct wefti_xxh64 {
    uint64_t lane[4], total;
    uint8_t  rest[32]; /* of an unfinished block */
    size_t   rest_bytes;
} wefti_xxh64;

void     wefti_xxh64_begin(wefti_xxh64 *hash);
void     wefti_xxh64_add(wefti_xxh64 *hash, const void *bytes, size_t count);
uint64_t wefti_xxh64_end(const wefti_xxh64 *hash);

/* CRC-32C (Castagnoli). */
uint32_t wefti_crc32c(const void *bytes, size_t count);

#endif

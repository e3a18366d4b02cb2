/* What measuring found, kept on disk between processes: small values by key, one file each.
 *
 * The folder is WEFT_CUDA_CACHE, else $XDG_CACHE_HOME/weft/cuda, else ~/.cache/weft/cuda; WEFT_CUDA_CACHE=0 (or no home) switches it off.
 * Files appear whole or not at all, so processes may share the folder; one that is broken or of another key counts as missing. */
#ifndef WEFTI_CUDA_CACHE_H
#define WEFTI_CUDA_CACHE_H

#include "core/base/base.h"

/* Whether there is a value for the key; `kind` ("matmul") goes into the file's name. */
bool wefti_cuda_cache_read(const char *kind, const void *key, size_t key_bytes, void *value_out, size_t value_bytes);
/* As wefti_cuda_cache_read for a value of any size, which is to be freed by wefti_free with its bytes. */
bool wefti_cuda_cache_read_large(const char *kind, const void *key, size_t key_bytes, void **value_out, size_t *value_bytes_out);
/* Keeps a value. Where that fails it is measured again next time: a log line says so. */
void wefti_cuda_cache_write(const char *kind, const void *key, size_t key_bytes, const void *value, size_t value_bytes);
/* A hash of bytes, to name them by. */
uint64_t wefti_cuda_cache_hash(const void *bytes, size_t n);

#endif

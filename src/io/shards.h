/* Arrays in several safetensors files, and the index that says which file has which: as is usual for large models, PREFIX.safetensors.index.json beside
 * PREFIX-…-00001-of-00004.safetensors. */
#ifndef WEFTI_SHARDS_H
#define WEFTI_SHARDS_H

#include "core/base/base.h"

/* What an index says of its files. Names are paths. */
typedef struct wefti_shards {
    char  **path; /* [n] each once, in the order in which the index first names them */
    int32_t n, capacity;
    int64_t generation; /* of Weft's own: how often the index was written; else 0 */
} wefti_shards;

/* By its name: *.safetensors.index.json. */
bool wefti_shards_is_index(const char *path);
/* WEFT_E_NOT_FOUND; WEFT_E_CORRUPT where it is no such JSON, or names a file in another folder. Closed whatever it gave. */
WEFT_MUST_CHECK weft_status wefti_shards_open(const char *index, wefti_shards *shards_out);
void wefti_shards_close(wefti_shards *shards);
/* The path of file `k` of `n` beside the index. Generations have different files, so an index and its files stay whole until the next ones are. */
WEFT_MUST_CHECK weft_status wefti_shards_path(const char *index, int64_t generation, int32_t k, int32_t n, wefti_text *path_out);
/* Removes what is beside the index of generations before `generation`: their files, and what their writers left half written. What cannot be removed harms nobody. */
void wefti_shards_remove_before(const char *index, int64_t generation);

#endif

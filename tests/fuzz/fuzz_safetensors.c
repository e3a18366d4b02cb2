/* safetensors and checkpoints: whatever opens has arrays inside the file that do not overlap, and texts that end. */
#include <string.h>

#include "fuzz.h"
#include "weft/checkpoint.h"
#include "weft/safetensors.h"

static void read_arrays(const weft_safetensors *file, size_t size) {
    uint64_t end = 0;
    for (int64_t i = 0; i < weft_safetensors_count(file); i++) {
        const weft_safetensors_entry *entry = weft_safetensors_at(file, i);
        if (entry->offset < end || entry->bytes > size || entry->offset > size - entry->bytes) abort();
        end = entry->offset + entry->bytes;
        if (weft_safetensors_find(file, entry->name) != entry) abort();
        void *out = malloc(entry->bytes + !entry->bytes);
        if (!out) abort();
        weft_status status = weft_safetensors_read(file, entry, out);
        if (status == WEFT_OK && entry->bytes && memcmp(out, entry->data, entry->bytes) != 0) abort();
        free(out);
    }
}

static void read_values(const char *path) {
    weft_checkpoint *checkpoint = NULL;
    int64_t          i64;
    double           f64;
    const char      *text;
    if (weft_checkpoint_open(path, &checkpoint) != WEFT_OK) return;
    if (weft_checkpoint_read_i64(checkpoint, "step", &i64) == WEFT_OK && i64 == INT64_MIN) i64 = 0;
    if (weft_checkpoint_read_f64(checkpoint, "loss", &f64) == WEFT_OK && f64 > 1e300) f64 = 0;
    if (weft_checkpoint_read_text(checkpoint, "model", &text) == WEFT_OK && strlen(text) > 1u << 30) abort();
    if (weft_checkpoint_expect_all_read(checkpoint, NULL) == WEFT_OK && weft_checkpoint_find(checkpoint, "", NULL, NULL) && i64) i64 = 0;
    weft_checkpoint_release(checkpoint);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    weft_safetensors *file = NULL;
    const char       *path = fuzz_path(data, size);
    if (weft_safetensors_open(path, &file) != WEFT_OK) return 0;
    read_arrays(file, size);
    for (int64_t i = 0; i < weft_safetensors_metadata_count(file); i++) {
        const char *key, *value;
        weft_safetensors_metadata_at(file, i, &key, &value);
        if (weft_safetensors_metadata(file, key) != value) abort();
    }
    if (weft_safetensors_verify(file) == WEFT_E_INTERNAL) abort();
    weft_safetensors_release(file);
    read_values(path);
    return 0;
}

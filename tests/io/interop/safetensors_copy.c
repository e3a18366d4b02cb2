/* safetensors_copy IN OUT: reads a file with Weft and writes it again with Weft; for the interop test. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weft/safetensors.h"

static weft_status declare(const weft_safetensors *from, weft_safetensors_writer *to) {
    weft_status status = WEFT_OK;
    for (int64_t i = 0; status == WEFT_OK && i < weft_safetensors_metadata_count(from); i++) {
        const char *key, *value;
        weft_safetensors_metadata_at(from, i, &key, &value);
        if (strcmp(key, "weft.checksum") != 0) status = weft_safetensors_writer_metadata(to, key, value);
    }
    for (int64_t i = 0; status == WEFT_OK && i < weft_safetensors_count(from); i++) {
        const weft_safetensors_entry *entry = weft_safetensors_at(from, i);
        status = weft_safetensors_writer_add(to, entry->name, entry->dtype, entry->shape);
    }
    return status;
}

static weft_status copy(const weft_safetensors *from, weft_safetensors_writer *to) {
    weft_status status = declare(from, to);
    for (int64_t i = 0; status == WEFT_OK && i < weft_safetensors_count(from); i++) {
        const weft_safetensors_entry *entry = weft_safetensors_at(from, i);
        void                         *data = malloc(entry->bytes + 1);
        if (!data) abort();
        status = weft_safetensors_read(from, entry, data);
        if (status == WEFT_OK) status = weft_safetensors_writer_write(to, entry->name, data, entry->bytes);
        free(data);
    }
    return status == WEFT_OK ? weft_safetensors_writer_commit(to) : status;
}

int main(int argc, char **argv) {
    weft_safetensors        *from = NULL;
    weft_safetensors_writer *to = NULL;
    if (argc != 3) return 2;
    weft_status status = weft_safetensors_open(argv[1], &from);
    if (status == WEFT_OK) status = weft_safetensors_writer_create(argv[2], &to);
    if (status == WEFT_OK) status = copy(from, to);
    if (status != WEFT_OK) fprintf(stderr, "%s: %s\n", weft_status_name(status), weft_error_message());
    weft_safetensors_writer_release(to);
    weft_safetensors_release(from);
    return status != WEFT_OK;
}

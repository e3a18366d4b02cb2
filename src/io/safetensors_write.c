/* Writing safetensors: declare, lay out, stream, and put the header in last.
 *
 * Idea: names, dtypes and shapes fix the header's length, and so every offset, before any data comes. The header itself
 * holds the checksums and is written by commit. Arrays are laid out with wide elements first and the header is padded
 * with blanks to 64 bytes, so every array is aligned to its elements.
 * Invariants: `laid_out` forbids declarations; `written` of an array never passes its bytes.
 * Cost: the header's text, about 200 bytes an array; the data goes straight through. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/json.h"
#include "io/safetensors.h"
#include "io/shards.h"
#include "io/sink.h"

typedef struct array {
    char       *name;
    weft_dtype  dtype;
    weft_shape  shape;
    uint64_t    bytes, offset, written; /* offset from the beginning of the data */
    size_t      declared;               /* its place among the declarations */
    wefti_xxh64 hash;
} array;

struct weft_safetensors_writer {
    char       *path;
    wefti_sink *sink;
    array      *arrays; /* as declared, and by layout once laid out */
    array     **named;  /* by name, once laid out */
    size_t      count, capacity;
    char      **meta; /* key, value, key, value, … */
    size_t      meta_count, meta_capacity;
    wefti_text  header;
    size_t      sums_at; /* of the first digit, in the header */
    uint64_t    data_at;
    bool        laid_out, failed, committed;
};

weft_status weft_safetensors_writer_create(const char *path, weft_safetensors_writer **writer_out) {
    if (!writer_out) return wefti_fail(WEFT_E_INVALID, "weft_safetensors_writer_create: writer_out is NULL");
    *writer_out = NULL;
    weft_safetensors_writer *writer = NULL;
    weft_status              status;
    if (wefti_shards_is_index(path)) /* who opens it would take it for one */
        return wefti_fail(WEFT_E_INVALID, "'%s' is the name of an index of several files, which weft_trainer_save writes: name a file *.safetensors", path);
    WEFTI_TRY(wefti_alloc(sizeof *writer, "a safetensors writer", &writer));
    WEFTI_TRY_GOTO(wefti_sink_create(path, &writer->sink), fail);
    WEFTI_TRY_GOTO(wefti_copy_string(path, &writer->path), fail);
    *writer_out = writer;
    return WEFT_OK;
fail:
    weft_safetensors_writer_release(writer);
    return status;
}

static weft_status check_text(const weft_safetensors_writer *writer, const char *what, const char *text) {
    if (text && wefti_utf8_valid(text, strlen(text)) == strlen(text)) return WEFT_OK;
    return wefti_fail(WEFT_E_INVALID, "'%s': %s is %s", writer->path, what, text ? "not valid UTF-8" : "NULL");
}

static weft_status check_open(const weft_safetensors_writer *writer, const char *doing) {
    if (!writer) return wefti_fail(WEFT_E_INVALID, "%s: the safetensors writer is NULL", doing);
    if (writer->failed || writer->committed)
        return wefti_fail(WEFT_E_STATE, "%s: '%s' has %s", doing, writer->path, writer->committed ? "been committed" : "failed");
    return WEFT_OK;
}

weft_status weft_safetensors_writer_add(weft_safetensors_writer *writer, const char *name, weft_dtype dtype,
                                        weft_shape shape) {
    WEFTI_TRY(check_open(writer, "adding an array"));
    WEFTI_TRY(check_text(writer, "an array's name", name));
    if (writer->laid_out)
        return wefti_fail(WEFT_E_STATE, "'%s': array '%s' comes after the first write", writer->path, name);
    if (!*name || strcmp(name, "__metadata__") == 0)
        return wefti_fail(WEFT_E_INVALID, "'%s': an array cannot be called '%s'", writer->path, name);
    for (size_t i = 0; i < writer->count; i++)
        if (strcmp(writer->arrays[i].name, name) == 0)
            return wefti_fail(WEFT_E_EXISTS, "'%s' has an array '%s' already", writer->path, name);
    if (!wefti_safetensors_type_of(dtype))
        return wefti_fail(WEFT_E_DTYPE, "'%s': array '%s' has no known dtype", writer->path, name);
    int64_t elements = weft_shape_elements(shape), bytes = 0;
    if (elements < 0 || !wefti_mul_i64(elements, (int64_t)weft_dtype_bytes(dtype), &bytes))
        return wefti_fail(WEFT_E_OVERFLOW, "'%s': the size of array '%s' %s overflows", writer->path, name,
                          weft_shape_text(shape).text);
    if (writer->count == writer->capacity) {
        size_t capacity = writer->capacity ? writer->capacity * 2 : 16;
        WEFTI_TRY(wefti_grow(&writer->arrays, writer->capacity * sizeof *writer->arrays,
                             capacity * sizeof *writer->arrays, "the arrays of a safetensors file"));
        writer->capacity = capacity;
    }
    array *at = &writer->arrays[writer->count];
    *at = (array){.dtype = dtype, .shape = shape, .bytes = (uint64_t)bytes, .declared = writer->count};
    WEFTI_TRY(wefti_copy_string(name, &at->name));
    writer->count++;
    wefti_xxh64_begin(&at->hash);
    return WEFT_OK;
}

weft_status weft_safetensors_writer_metadata(weft_safetensors_writer *writer, const char *key, const char *value) {
    WEFTI_TRY(check_open(writer, "adding metadata"));
    WEFTI_TRY(check_text(writer, "a metadata key", key));
    WEFTI_TRY(check_text(writer, "a metadata value", value));
    if (writer->laid_out)
        return wefti_fail(WEFT_E_STATE, "'%s': metadata '%s' comes after the first write", writer->path, key);
    if (strcmp(key, WEFTI_SAFETENSORS_CHECKSUM) == 0)
        return wefti_fail(WEFT_E_INVALID, "'%s': the metadata key '%s' is reserved", writer->path, key);
    for (size_t i = 0; i < writer->meta_count; i += 2)
        if (strcmp(writer->meta[i], key) == 0)
            return wefti_fail(WEFT_E_EXISTS, "'%s' has metadata '%s' already", writer->path, key);
    if (writer->meta_count == writer->meta_capacity) {
        size_t capacity = writer->meta_capacity ? writer->meta_capacity * 2 : 16;
        WEFTI_TRY(wefti_grow(&writer->meta, writer->meta_capacity * sizeof *writer->meta, capacity * sizeof *writer->meta,
                             "safetensors metadata"));
        writer->meta_capacity = capacity;
    }
    char *key_copy = NULL, *value_copy = NULL;
    WEFTI_TRY(wefti_copy_string(key, &key_copy));
    weft_status status = wefti_copy_string(value, &value_copy);
    if (status != WEFT_OK) {
        wefti_free_string(key_copy);
        return status;
    }
    writer->meta[writer->meta_count++] = key_copy;
    writer->meta[writer->meta_count++] = value_copy;
    return WEFT_OK;
}

/* Wide elements first; empty arrays before what begins at the same place, by name, as the reader sorts them. */
static int by_layout(const void *a, const void *b) {
    const array *x = a, *y = b;
    bool         x_empty = x->bytes == 0, y_empty = y->bytes == 0;
    if (x_empty != y_empty) return x_empty ? -1 : 1;
    if (x_empty) return strcmp(x->name, y->name);
    size_t x_bytes = weft_dtype_bytes(x->dtype), y_bytes = weft_dtype_bytes(y->dtype);
    if (x_bytes != y_bytes) return x_bytes > y_bytes ? -1 : 1;
    return x->declared < y->declared ? -1 : x->declared > y->declared;
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(array *const *)a)->name, (*(array *const *)b)->name);
}

static void write_header_text(weft_safetensors_writer *writer) {
    wefti_text *text = &writer->header;
    wefti_text_add(text, "{\"__metadata__\":{\"%s\":\"%s", WEFTI_SAFETENSORS_CHECKSUM,
                   WEFTI_SAFETENSORS_SCHEME);
    writer->sums_at = text->length;
    for (size_t i = 0; i <= writer->count; i++) wefti_text_add(text, "%s%016d", i ? "," : "", 0);
    wefti_text_add(text, "\"");
    for (size_t i = 0; i < writer->meta_count; i += 2) {
        wefti_text_add(text, ",");
        wefti_text_add_json(text, writer->meta[i]);
        wefti_text_add(text, ":");
        wefti_text_add_json(text, writer->meta[i + 1]);
    }
    wefti_text_add(text, "}");
    for (size_t i = 0; i < writer->count; i++) {
        const array *at = &writer->arrays[i];
        wefti_text_add(text, ",");
        wefti_text_add_json(text, at->name);
        wefti_text_add(text, ":{\"dtype\":\"%s\",\"shape\":[", wefti_safetensors_type_of(at->dtype)->text);
        for (int32_t axis = 0; axis < at->shape.rank; axis++)
            wefti_text_add(text, "%s%" PRId64, axis ? "," : "", at->shape.dim[axis]);
        wefti_text_add(text, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at->offset, at->offset + at->bytes);
    }
    wefti_text_add(text, "}");
    while (!text->failed && (text->length + 8) % WEFTI_CACHE_LINE != 0) wefti_text_add(text, " ");
}

static weft_status lay_out(weft_safetensors_writer *writer) {
    uint64_t at = 0;
    WEFTI_TRY(wefti_alloc(writer->capacity * sizeof *writer->named, "a safetensors index", &writer->named));
    if (writer->count > 0) qsort(writer->arrays, writer->count, sizeof *writer->arrays, by_layout);
    for (size_t i = 0; i < writer->count; i++) {
        writer->arrays[i].offset = at;
        if (__builtin_add_overflow(at, writer->arrays[i].bytes, &at) || at > INT64_MAX)
            return wefti_fail(WEFT_E_OVERFLOW, "'%s': the size of all arrays overflows", writer->path);
        writer->named[i] = &writer->arrays[i];
    }
    if (writer->count > 0) qsort(writer->named, writer->count, sizeof *writer->named, by_name);
    write_header_text(writer);
    if (writer->header.failed)
        return wefti_fail(WEFT_E_NO_MEMORY, "'%s': no memory for a header of %zu arrays", writer->path, writer->count);
    if (writer->header.length > wefti_safetensors_most_header_bytes)
        return wefti_fail(WEFT_E_OVERFLOW, "'%s': the header takes %zu bytes; the format allows %d", writer->path,
                          writer->header.length, wefti_safetensors_most_header_bytes);
    writer->data_at = 8 + writer->header.length;
    writer->laid_out = true;
    return WEFT_OK;
}

static weft_status write_piece(weft_safetensors_writer *writer, array *to, const void *data, uint64_t bytes) {
    if (bytes > to->bytes - to->written)
        return wefti_fail(WEFT_E_SHAPE, "'%s': array '%s' %s %s takes %llu bytes; %llu were written and %llu more came",
                          writer->path, to->name, weft_dtype_name(to->dtype), weft_shape_text(to->shape).text,
                          (unsigned long long)to->bytes, (unsigned long long)to->written, (unsigned long long)bytes);
    /* In pieces, so that hashing leaves them in the cache for the copy into the page cache. */
    const uint8_t *at = data;
    while (bytes > 0) {
        size_t now = bytes < 1 << 18 ? (size_t)bytes : 1 << 18;
        wefti_xxh64_add(&to->hash, at, now);
        WEFTI_TRY(wefti_sink_write_at(writer->sink, writer->data_at + to->offset + to->written, at, now));
        to->written += now;
        at += now;
        bytes -= now;
    }
    return WEFT_OK;
}

weft_status weft_safetensors_writer_write(weft_safetensors_writer *writer, const char *name, const void *data,
                                          uint64_t bytes) {
    WEFTI_TRY(check_open(writer, "writing an array"));
    if (!name || (bytes > 0 && !data))
        return wefti_fail(WEFT_E_INVALID, "'%s': writing an array needs its name and data", writer->path);
    if (!writer->laid_out) {
        weft_status status = lay_out(writer);
        writer->failed = status != WEFT_OK;
        WEFTI_TRY(status);
    }
    array   wanted = {.name = (char *)(uintptr_t)name}, *key = &wanted;
    array **found = writer->count ? bsearch(&key, writer->named, writer->count, sizeof key, by_name) : NULL;
    if (!found) return wefti_fail(WEFT_E_NOT_FOUND, "'%s': no array '%s' was declared", writer->path, name);
    weft_status status = write_piece(writer, *found, data, bytes);
    if (status != WEFT_OK && status != WEFT_E_SHAPE) writer->failed = true;
    return status;
}

/* Puts the sums over the zeros, the header's own last. */
static void fill_sums(weft_safetensors_writer *writer) {
    wefti_xxh64 hash;
    char        digits[wefti_safetensors_digits + 1];
    char       *at = writer->header.bytes + writer->sums_at;
    wefti_xxh64_begin(&hash);
    wefti_xxh64_add(&hash, writer->header.bytes, writer->header.length);
    for (size_t i = 0; i <= writer->count; i++) {
        uint64_t sum = wefti_xxh64_end(i == 0 ? &hash : &writer->arrays[i - 1].hash);
        snprintf(digits, sizeof digits, "%016" PRIx64, sum);
        memcpy(at + i * (wefti_safetensors_digits + 1), digits, wefti_safetensors_digits);
    }
}

static weft_status commit(weft_safetensors_writer *writer) {
    if (!writer->laid_out) WEFTI_TRY(lay_out(writer));
    uint64_t length = writer->header.length;
    fill_sums(writer);
    WEFTI_TRY(wefti_sink_write_at(writer->sink, 0, &length, sizeof length));
    WEFTI_TRY(wefti_sink_write_at(writer->sink, sizeof length, writer->header.bytes, writer->header.length));
    return wefti_sink_commit(writer->sink);
}

weft_status weft_safetensors_writer_commit(weft_safetensors_writer *writer) {
    WEFTI_TRY(check_open(writer, "committing"));
    for (size_t i = 0; i < writer->count; i++)
        if (writer->arrays[i].written < writer->arrays[i].bytes)
            return wefti_fail(WEFT_E_STATE, "'%s': array '%s' has %llu of its %llu bytes", writer->path,
                              writer->arrays[i].name, (unsigned long long)writer->arrays[i].written,
                              (unsigned long long)writer->arrays[i].bytes);
    weft_status status = commit(writer);
    writer->committed = status == WEFT_OK;
    writer->failed = status != WEFT_OK;
    return status;
}

void weft_safetensors_writer_release(weft_safetensors_writer *writer) {
    if (!writer) return;
    for (size_t i = 0; i < writer->count; i++) wefti_free_string(writer->arrays[i].name);
    for (size_t i = 0; i < writer->meta_count; i++) wefti_free_string(writer->meta[i]);
    if (writer->arrays) wefti_free(writer->arrays, writer->capacity * sizeof *writer->arrays);
    if (writer->named) wefti_free(writer->named, writer->capacity * sizeof *writer->named);
    if (writer->meta) wefti_free(writer->meta, writer->meta_capacity * sizeof *writer->meta);
    wefti_text_release(&writer->header);
    wefti_sink_release(writer->sink);
    wefti_free_string(writer->path);
    wefti_free(writer, sizeof *writer);
}

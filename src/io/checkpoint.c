/* Checkpoints on safetensors. Values are metadata under "weft.value.<key>", a word for the type before each: "i64 12",
 * "u64 7", "f64 0x1.8p+1" (hexadecimal, hence exact), "text …".
 * Cost: the writer keeps a list of the arrays (borrowed), and commit one piece of 1 MiB for those that are fetched. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/checkpoint.h"
#include "io/number.h"
#include "io/safetensors.h"
#include "weft/safetensors.h"

#define VALUE_PREFIX "weft.value."
enum { piece_bytes = 1 << 20 };

typedef struct piece {
    char                 *name;
    uint64_t              bytes;
    const void           *data; /* or fetch */
    weft_checkpoint_fetch fetch;
    void                 *context;
} piece;

struct weft_checkpoint_writer {
    weft_safetensors_writer *file;
    piece                   *pieces;
    size_t                   count, capacity;
};

struct weft_checkpoint {
    char             *path;
    weft_safetensors *file;
    bool             *read; /* by index of the file's arrays */
    size_t            count;
};

/* ---- writing ---- */

weft_status weft_checkpoint_create(const char *path, weft_checkpoint_writer **writer_out) {
    if (!writer_out) return wefti_fail(WEFT_E_INVALID, "weft_checkpoint_create: writer_out is NULL");
    *writer_out = NULL;
    weft_checkpoint_writer *writer = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *writer, "a checkpoint", &writer));
    weft_status status = weft_safetensors_writer_create(path, &writer->file);
    if (status != WEFT_OK) {
        weft_checkpoint_writer_release(writer);
        return wefti_while(status, "beginning a checkpoint");
    }
    *writer_out = writer;
    return WEFT_OK;
}

static weft_status add(weft_checkpoint_writer *writer, const char *name, weft_dtype dtype, weft_shape shape,
                       const piece *from) {
    if (writer->count == writer->capacity) {
        size_t capacity = writer->capacity ? writer->capacity * 2 : 32;
        WEFTI_TRY(wefti_grow(&writer->pieces, writer->capacity * sizeof *writer->pieces,
                             capacity * sizeof *writer->pieces, "a checkpoint"));
        writer->capacity = capacity;
    }
    piece *to = &writer->pieces[writer->count];
    *to = *from;
    WEFTI_TRY(weft_safetensors_writer_add(writer->file, name, dtype, shape));
    WEFTI_TRY(wefti_copy_string(name, &to->name));
    to->bytes = (uint64_t)weft_shape_elements(shape) * weft_dtype_bytes(dtype); /* checked by the line before */
    writer->count++;
    return WEFT_OK;
}

weft_status weft_checkpoint_add(weft_checkpoint_writer *writer, const char *name, weft_dtype dtype, weft_shape shape,
                                const void *data) {
    if (!writer || (!data && weft_shape_elements(shape) != 0))
        return wefti_fail(WEFT_E_INVALID, "weft_checkpoint_add: array '%s' needs a writer and data", name ? name : "(none)");
    return add(writer, name, dtype, shape, &(piece){.data = data});
}

weft_status weft_checkpoint_add_fetched(weft_checkpoint_writer *writer, const char *name, weft_dtype dtype,
                                        weft_shape shape, weft_checkpoint_fetch fetch, void *context) {
    if (!writer || !fetch)
        return wefti_fail(WEFT_E_INVALID, "weft_checkpoint_add_fetched: array '%s' needs a writer and a function",
                          name ? name : "(none)");
    return add(writer, name, dtype, shape, &(piece){.fetch = fetch, .context = context});
}

static weft_status add_value(weft_checkpoint_writer *writer, const char *key, const char *type, const char *value) {
    if (!writer || !key || !*key || !value)
        return wefti_fail(WEFT_E_INVALID, "adding a value to a checkpoint needs a writer, a key and a value");
    wefti_text full_key = {0}, full_value = {0};
    wefti_text_add(&full_key, VALUE_PREFIX "%s", key);
    wefti_text_add(&full_value, "%s %s", type, value);
    weft_status status = full_key.failed || full_value.failed
                             ? wefti_fail(WEFT_E_NO_MEMORY, "out of memory for checkpoint value '%s'", key)
                             : weft_safetensors_writer_metadata(writer->file, full_key.bytes, full_value.bytes);
    wefti_text_release(&full_key);
    wefti_text_release(&full_value);
    return status;
}

weft_status weft_checkpoint_add_i64(weft_checkpoint_writer *writer, const char *key, int64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%" PRId64, value);
    return add_value(writer, key, "i64", text);
}

weft_status weft_checkpoint_add_u64(weft_checkpoint_writer *writer, const char *key, uint64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%" PRIu64, value);
    return add_value(writer, key, "u64", text);
}

weft_status weft_checkpoint_add_f64(weft_checkpoint_writer *writer, const char *key, double value) {
    char text[wefti_number_text_bytes];
    wefti_number_to_hex(value, text);
    return add_value(writer, key, "f64", text);
}

weft_status weft_checkpoint_add_text(weft_checkpoint_writer *writer, const char *key, const char *value) {
    return add_value(writer, key, "text", value);
}

static weft_status write_fetched(weft_checkpoint_writer *writer, const piece *from, void *buffer) {
    for (uint64_t done = 0; done < from->bytes;) {
        uint64_t now = from->bytes - done < piece_bytes ? from->bytes - done : piece_bytes;
        weft_status status = from->fetch(from->context, done, now, buffer);
        if (status != WEFT_OK) return wefti_while(status, "fetching array '%s' for a checkpoint", from->name);
        WEFTI_TRY(weft_safetensors_writer_write(writer->file, from->name, buffer, now));
        done += now;
    }
    return WEFT_OK;
}

weft_status weft_checkpoint_commit(weft_checkpoint_writer *writer) {
    if (!writer) return wefti_fail(WEFT_E_INVALID, "weft_checkpoint_commit: the writer is NULL");
    void       *buffer = NULL;
    weft_status status = WEFT_OK;
    for (size_t i = 0; i < writer->count && status == WEFT_OK; i++) {
        const piece *from = &writer->pieces[i];
        if (!from->fetch) {
            status = weft_safetensors_writer_write(writer->file, from->name, from->data, from->bytes);
            continue;
        }
        if (!buffer) status = wefti_alloc_raw(piece_bytes, WEFTI_CACHE_LINE, "fetching arrays", &buffer);
        if (status == WEFT_OK) status = write_fetched(writer, from, buffer);
    }
    if (buffer) wefti_free(buffer, piece_bytes);
    if (status == WEFT_OK) status = weft_safetensors_writer_commit(writer->file);
    return status == WEFT_OK ? status : wefti_while(status, "saving a checkpoint");
}

void weft_checkpoint_writer_release(weft_checkpoint_writer *writer) {
    if (!writer) return;
    for (size_t i = 0; i < writer->count; i++) wefti_free_string(writer->pieces[i].name);
    if (writer->pieces) wefti_free(writer->pieces, writer->capacity * sizeof *writer->pieces);
    weft_safetensors_writer_release(writer->file);
    wefti_free(writer, sizeof *writer);
}

/* ---- reading ---- */

weft_status weft_checkpoint_open(const char *path, weft_checkpoint **checkpoint_out) {
    if (!checkpoint_out) return wefti_fail(WEFT_E_INVALID, "weft_checkpoint_open: checkpoint_out is NULL");
    *checkpoint_out = NULL;
    weft_checkpoint *checkpoint = NULL;
    weft_status      status;
    WEFTI_TRY(wefti_alloc(sizeof *checkpoint, "a checkpoint", &checkpoint));
    WEFTI_TRY_GOTO(weft_safetensors_open(path, &checkpoint->file), fail);
    WEFTI_TRY_GOTO(wefti_copy_string(path, &checkpoint->path), fail);
    checkpoint->count = (size_t)weft_safetensors_count(checkpoint->file);
    WEFTI_TRY_GOTO(wefti_alloc(checkpoint->count * sizeof *checkpoint->read, "a checkpoint", &checkpoint->read), fail);
    *checkpoint_out = checkpoint;
    return WEFT_OK;
fail:
    weft_checkpoint_release(checkpoint);
    return status;
}

bool weft_checkpoint_find(const weft_checkpoint *checkpoint, const char *name, weft_dtype *dtype_out,
                          weft_shape *shape_out) {
    const weft_safetensors_entry *entry = weft_safetensors_find(checkpoint->file, name);
    if (entry && dtype_out) *dtype_out = entry->dtype;
    if (entry && shape_out) *shape_out = entry->shape;
    return entry != NULL;
}

static weft_status find_array(const weft_checkpoint *checkpoint, const char *name, weft_dtype dtype, weft_shape shape, const weft_safetensors_entry **entry_out) {
    if (!checkpoint || !name) return wefti_fail(WEFT_E_INVALID, "weft_checkpoint_read: needs a checkpoint and a name");
    const weft_safetensors_entry *entry = *entry_out = weft_safetensors_find(checkpoint->file, name);
    if (!entry)
        return wefti_fail(WEFT_E_NOT_FOUND, "checkpoint '%s' has no array '%s' (%s %s was asked for)", checkpoint->path, name,
                          weft_dtype_name(dtype), weft_shape_text(shape).text);
    if (entry->dtype != dtype)
        return wefti_fail(WEFT_E_DTYPE, "checkpoint '%s' has array '%s' as %s %s; %s %s was asked for", checkpoint->path, name,
                          entry->stored, weft_shape_text(entry->shape).text, weft_dtype_name(dtype),
                          weft_shape_text(shape).text);
    if (!weft_shape_equal(entry->shape, shape))
        return wefti_fail(WEFT_E_SHAPE, "checkpoint '%s' has array '%s' with shape %s; %s was asked for", checkpoint->path,
                          name, weft_shape_text(entry->shape).text, weft_shape_text(shape).text);
    return WEFT_OK;
}

static void note_read(weft_checkpoint *checkpoint, const weft_safetensors_entry *entry) {
    checkpoint->read[entry - weft_safetensors_at(checkpoint->file, 0)] = true;
}

weft_status weft_checkpoint_read(weft_checkpoint *checkpoint, const char *name, weft_dtype dtype, weft_shape shape,
                                 void *data_out) {
    const weft_safetensors_entry *entry;
    WEFTI_TRY(find_array(checkpoint, name, dtype, shape, &entry));
    WEFTI_TRY(weft_safetensors_read(checkpoint->file, entry, data_out));
    note_read(checkpoint, entry);
    return WEFT_OK;
}

weft_status wefti_checkpoint_expect(weft_checkpoint *checkpoint, const char *name, weft_dtype dtype, weft_shape shape) {
    const weft_safetensors_entry *entry;
    WEFTI_TRY(find_array(checkpoint, name, dtype, shape, &entry));
    note_read(checkpoint, entry);
    return WEFT_OK;
}

uint64_t wefti_checkpoint_fingerprint(const weft_checkpoint *checkpoint) { return wefti_safetensors_fingerprint(checkpoint->file); }

/* The text of a value behind its type. */
static weft_status find_value(const weft_checkpoint *checkpoint, const char *key, const char *type, const char **text_out) {
    wefti_text full_key = {0};
    if (!checkpoint || !key) return wefti_fail(WEFT_E_INVALID, "reading a checkpoint's value needs a checkpoint and a key");
    wefti_text_add(&full_key, VALUE_PREFIX "%s", key);
    const char *found = full_key.failed ? NULL : weft_safetensors_metadata(checkpoint->file, full_key.bytes);
    bool        failed = full_key.failed;
    wefti_text_release(&full_key);
    if (failed) return wefti_fail(WEFT_E_NO_MEMORY, "out of memory for checkpoint value '%s'", key);
    if (!found) return wefti_fail(WEFT_E_NOT_FOUND, "checkpoint '%s' has no value '%s'", checkpoint->path, key);
    size_t length = strlen(type);
    if (strncmp(found, type, length) != 0 || found[length] != ' ')
        return wefti_fail(WEFT_E_DTYPE, "checkpoint '%s' has value '%s' as \"%.40s\"; %s was asked for", checkpoint->path,
                          key, found, type);
    *text_out = found + length + 1;
    return WEFT_OK;
}

static weft_status malformed(const weft_checkpoint *checkpoint, const char *key, const char *type, const char *text) {
    return wefti_fail(WEFT_E_CORRUPT, "checkpoint '%s': value '%s' is \"%.40s\", which is no %s", checkpoint->path, key, text,
                      type);
}

weft_status weft_checkpoint_read_i64(const weft_checkpoint *checkpoint, const char *key, int64_t *value_out) {
    const char *text = NULL;
    char       *end = NULL;
    WEFTI_TRY(find_value(checkpoint, key, "i64", &text));
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno || end == text || *end || text[strspn(text, "-0123456789")])
        return malformed(checkpoint, key, "i64", text);
    *value_out = value;
    return WEFT_OK;
}

weft_status weft_checkpoint_read_u64(const weft_checkpoint *checkpoint, const char *key, uint64_t *value_out) {
    const char *text = NULL;
    char       *end = NULL;
    WEFTI_TRY(find_value(checkpoint, key, "u64", &text));
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || end == text || *end || text[strspn(text, "0123456789")])
        return malformed(checkpoint, key, "u64", text);
    *value_out = value;
    return WEFT_OK;
}

weft_status weft_checkpoint_read_f64(const weft_checkpoint *checkpoint, const char *key, double *value_out) {
    const char *text = NULL;
    WEFTI_TRY(find_value(checkpoint, key, "f64", &text));
    return wefti_number_from_text(text, strlen(text), value_out) ? WEFT_OK : malformed(checkpoint, key, "f64", text);
}

weft_status weft_checkpoint_read_text(const weft_checkpoint *checkpoint, const char *key, const char **value_out) {
    return find_value(checkpoint, key, "text", value_out);
}

weft_status weft_checkpoint_expect_all_read(const weft_checkpoint *checkpoint, const char *prefix) {
    wefti_text names = {0};
    int64_t    unread = 0;
    for (size_t i = 0; i < checkpoint->count; i++) {
        const char *name = weft_safetensors_at(checkpoint->file, (int64_t)i)->name;
        if (checkpoint->read[i] || (prefix && strncmp(name, prefix, strlen(prefix)) != 0)) continue;
        if (++unread <= 8) wefti_text_add(&names, "%s'%s'", unread > 1 ? ", " : "", name);
    }
    weft_status status = WEFT_OK;
    if (unread > 0)
        status = wefti_fail(WEFT_E_MISMATCH, "checkpoint '%s' has %lld arrays that this program does not know: %s%s",
                            checkpoint->path, (long long)unread, names.bytes ? names.bytes : "", unread > 8 ? ", …" : "");
    wefti_text_release(&names);
    return status;
}

void weft_checkpoint_release(weft_checkpoint *checkpoint) {
    if (!checkpoint) return;
    weft_safetensors_release(checkpoint->file);
    if (checkpoint->read) wefti_free(checkpoint->read, checkpoint->count * sizeof *checkpoint->read);
    wefti_free_string(checkpoint->path);
    wefti_free(checkpoint, sizeof *checkpoint);
}

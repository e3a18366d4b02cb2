/* Reading safetensors: 8 bytes of header length, a JSON object, the data.
 *
 * Idea: the header is copied once and parsed in place; entries point into the copy. They are sorted by offset to see
 * holes and overlaps, and an index sorted by name finds duplicates and answers look-ups.
 * Invariants after opening: the arrays cover the data exactly, in order; every entry's bytes are its shape's.
 * Cost: the header twice (the second copy, for the checksum, only where there is one), about 150 bytes an array, and
 * address space for the mapping. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "io/json.h"
#include "io/safetensors.h"
#include "io/shards.h"
#include "io/source.h"

enum { chunk_bytes = 1 << 20 };

typedef struct pair {
    const char *key, *value;
    uint64_t    value_at; /* of the value's first character, in the header */
} pair;

struct weft_safetensors {
    char                    *path;
    int                      descriptor;
    uint64_t                 file_bytes, header_bytes, data_at;
    void                    *mapping;
    char                    *header;
    weft_safetensors_entry  *entry; /* by offset */
    weft_safetensors_entry **named; /* by name */
    pair                    *meta;  /* by key */
    uint64_t                *sum;   /* of each entry; NULL without a checksum */
    size_t                   count, capacity, meta_count, meta_capacity;
    weft_safetensors       **shard; /* [n_shards] of an index: what is above is theirs, one file behind the other */
    size_t                  *first; /* [n_shards] of `entry` */
    size_t                   n_shards;
};

static const wefti_safetensors_type types[] = {
    {"F32", 4, WEFT_F32},          {"F64", 8, WEFT_F64},          {"BF16", 2, WEFT_BF16},
    {"F16", 2, WEFT_F16},          {"I64", 8, WEFT_I64},          {"I32", 4, WEFT_I32},
    {"U8", 1, WEFT_U8},            {"BOOL", 1, WEFT_BOOL},        {"I8", 1, WEFT_DTYPE_COUNT},
    {"I16", 2, WEFT_DTYPE_COUNT},  {"U16", 2, WEFT_DTYPE_COUNT},  {"U32", 4, WEFT_DTYPE_COUNT},
    {"U64", 8, WEFT_DTYPE_COUNT},  {"C64", 8, WEFT_DTYPE_COUNT},  {"F8_E4M3", 1, WEFT_DTYPE_COUNT},
    {"F8_E5M2", 1, WEFT_DTYPE_COUNT}, {"F8_E8M0", 1, WEFT_DTYPE_COUNT},
};

const wefti_safetensors_type *wefti_safetensors_type_named(const char *text) {
    for (size_t i = 0; i < WEFTI_COUNT(types); i++)
        if (strcmp(types[i].text, text) == 0) return &types[i];
    return NULL;
}

const wefti_safetensors_type *wefti_safetensors_type_of(weft_dtype dtype) {
    for (size_t i = 0; i < WEFTI_COUNT(types); i++)
        if (types[i].dtype == dtype && dtype != WEFT_DTYPE_COUNT) return &types[i];
    return NULL;
}

/* ---- parsing ---- */

static weft_status parse_shape(weft_safetensors *file, wefti_json *json, weft_safetensors_entry *entry) {
    entry->shape = (weft_shape){0};
    WEFTI_TRY(wefti_json_take(json, '['));
    if (wefti_json_try(json, ']')) return WEFT_OK;
    do {
        if (entry->shape.rank == WEFT_MAX_RANK)
            return wefti_fail(WEFT_E_UNSUPPORTED, "'%s': array '%s' has more than %d dimensions", file->path, entry->name,
                              WEFT_MAX_RANK);
        WEFTI_TRY(wefti_json_number(json, &entry->shape.dim[entry->shape.rank++]));
    } while (wefti_json_try(json, ','));
    return wefti_json_take(json, ']');
}

static weft_status parse_offsets(wefti_json *json, int64_t *begin, int64_t *end) {
    WEFTI_TRY(wefti_json_take(json, '['));
    WEFTI_TRY(wefti_json_number(json, begin));
    WEFTI_TRY(wefti_json_take(json, ','));
    WEFTI_TRY(wefti_json_number(json, end));
    return wefti_json_take(json, ']');
}

/* The shape's bytes must be the range's, and the range must lie in the data. */
static weft_status check_entry(const weft_safetensors *file, weft_safetensors_entry *entry, int64_t begin, int64_t end) {
    const wefti_safetensors_type *type = wefti_safetensors_type_named(entry->stored);
    if (!type)
        return wefti_fail(WEFT_E_CORRUPT, "'%s': array '%s' has the unknown dtype '%s'", file->path, entry->name,
                          entry->stored);
    int64_t elements = weft_shape_elements(entry->shape), bytes = 0;
    if (elements < 0 || !wefti_mul_i64(elements, type->bytes, &bytes))
        return wefti_fail(WEFT_E_CORRUPT, "'%s': the size of array '%s' %s %s overflows", file->path, entry->name,
                          entry->stored, weft_shape_text(entry->shape).text);
    if (begin > end || (uint64_t)end > file->file_bytes - file->data_at)
        return wefti_fail(WEFT_E_CORRUPT, "'%s': array '%s' lies at [%lld, %lld) of %llu bytes of data", file->path,
                          entry->name, (long long)begin, (long long)end,
                          (unsigned long long)(file->file_bytes - file->data_at));
    if (end - begin != bytes)
        return wefti_fail(WEFT_E_CORRUPT, "'%s': array '%s' %s %s takes %lld bytes, but lies at [%lld, %lld)", file->path,
                          entry->name, entry->stored, weft_shape_text(entry->shape).text, (long long)bytes,
                          (long long)begin, (long long)end);
    entry->dtype = type->dtype;
    entry->stored = type->text;
    entry->offset = file->data_at + (uint64_t)begin;
    entry->bytes = (uint64_t)bytes;
    return WEFT_OK;
}

static weft_status parse_entry(weft_safetensors *file, wefti_json *json, const char *name) {
    int64_t begin = 0, end = 0;
    bool    has_dtype = false, has_shape = false, has_offsets = false;
    if (file->count == file->capacity) {
        size_t capacity = file->capacity ? file->capacity * 2 : 16;
        WEFTI_TRY(wefti_grow(&file->entry, file->capacity * sizeof *file->entry, capacity * sizeof *file->entry,
                             "a safetensors header"));
        file->capacity = capacity;
    }
    weft_safetensors_entry *entry = &file->entry[file->count++];
    *entry = (weft_safetensors_entry){.name = name};
    WEFTI_TRY(wefti_json_take(json, '{'));
    do {
        char *key = NULL, *text = NULL;
        bool *has = NULL;
        WEFTI_TRY(wefti_json_string(json, &key));
        WEFTI_TRY(wefti_json_take(json, ':'));
        if (strcmp(key, "dtype") == 0) {
            has = &has_dtype;
            WEFTI_TRY(wefti_json_string(json, &text));
            entry->stored = text;
        } else if (strcmp(key, "shape") == 0) {
            has = &has_shape;
            WEFTI_TRY(parse_shape(file, json, entry));
        } else if (strcmp(key, "data_offsets") == 0) {
            has = &has_offsets;
            WEFTI_TRY(parse_offsets(json, &begin, &end));
        }
        if (!has || *has)
            return wefti_fail(WEFT_E_CORRUPT, "'%s': array '%s' has the key '%s' %s", file->path, name, key,
                              has ? "twice" : "that the format has not");
        *has = true;
    } while (wefti_json_try(json, ','));
    WEFTI_TRY(wefti_json_take(json, '}'));
    if (!has_dtype || !has_shape || !has_offsets)
        return wefti_fail(WEFT_E_CORRUPT, "'%s': array '%s' has no %s", file->path, name,
                          !has_dtype ? "dtype" : !has_shape ? "shape" : "data_offsets");
    return check_entry(file, entry, begin, end);
}

static weft_status parse_metadata(weft_safetensors *file, wefti_json *json) {
    WEFTI_TRY(wefti_json_take(json, '{'));
    if (wefti_json_try(json, '}')) return WEFT_OK;
    do {
        char *key = NULL, *value = NULL;
        if (file->meta_count == file->meta_capacity) {
            size_t capacity = file->meta_capacity ? file->meta_capacity * 2 : 16;
            WEFTI_TRY(wefti_grow(&file->meta, file->meta_capacity * sizeof *file->meta, capacity * sizeof *file->meta,
                                 "safetensors metadata"));
            file->meta_capacity = capacity;
        }
        WEFTI_TRY(wefti_json_string(json, &key));
        WEFTI_TRY(wefti_json_take(json, ':'));
        WEFTI_TRY(wefti_json_string(json, &value));
        file->meta[file->meta_count++] = (pair){key, value, (uint64_t)(value - file->header)};
    } while (wefti_json_try(json, ','));
    return wefti_json_take(json, '}');
}

static weft_status parse_header(weft_safetensors *file) {
    wefti_json json = {file->header, file->header_bytes, 0, file->path, 8};
    bool       has_metadata = false;
    size_t     valid = wefti_utf8_valid(json.text, json.length);
    if (valid < json.length) {
        json.at = valid;
        return wefti_json_fail(&json, "valid UTF-8");
    }
    if (json.text[0] != '{') return wefti_json_fail(&json, "'{'");
    WEFTI_TRY(wefti_json_take(&json, '{'));
    if (wefti_json_try(&json, '}')) return wefti_json_end(&json);
    do {
        char *name = NULL;
        WEFTI_TRY(wefti_json_string(&json, &name));
        WEFTI_TRY(wefti_json_take(&json, ':'));
        if (strcmp(name, "__metadata__") != 0) {
            WEFTI_TRY(parse_entry(file, &json, name));
            continue;
        }
        if (has_metadata) return wefti_fail(WEFT_E_CORRUPT, "'%s' has two __metadata__", file->path);
        has_metadata = true;
        WEFTI_TRY(parse_metadata(file, &json));
    } while (wefti_json_try(&json, ','));
    WEFTI_TRY(wefti_json_take(&json, '}'));
    return wefti_json_end(&json);
}

/* ---- order ---- */

/* Empty arrays come before the one that begins where they lie; the name settles the rest. */
static int by_offset(const void *a, const void *b) {
    const weft_safetensors_entry *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(weft_safetensors_entry *const *)a)->name, (*(weft_safetensors_entry *const *)b)->name);
}

static int by_key(const void *a, const void *b) { return strcmp(((const pair *)a)->key, ((const pair *)b)->key); }

static weft_status check_cover(weft_safetensors *file) {
    uint64_t at = file->data_at;
    for (size_t i = 0; i < file->count; i++) {
        const weft_safetensors_entry *entry = &file->entry[i];
        if (entry->offset != at)
            return wefti_fail(WEFT_E_CORRUPT, "'%s': array '%s' begins at offset %llu, %s where the one before ends (%llu)",
                              file->path, entry->name, (unsigned long long)entry->offset,
                              entry->offset < at ? "before" : "with a hole after", (unsigned long long)at);
        at += entry->bytes;
    }
    if (at != file->file_bytes)
        return wefti_fail(WEFT_E_CORRUPT, "'%s' has %llu bytes; its arrays end at offset %llu", file->path,
                          (unsigned long long)file->file_bytes, (unsigned long long)at);
    return WEFT_OK;
}

static weft_status put_in_order(weft_safetensors *file) {
    WEFTI_TRY(wefti_alloc(file->capacity * sizeof *file->named, "a safetensors index", &file->named));
    if (file->count > 0) qsort(file->entry, file->count, sizeof *file->entry, by_offset);
    for (size_t i = 0; i < file->count; i++) {
        file->named[i] = &file->entry[i];
        file->entry[i].data = file->mapping ? (const uint8_t *)file->mapping + file->entry[i].offset : NULL;
    }
    if (file->count > 0) qsort(file->named, file->count, sizeof *file->named, by_name);
    for (size_t i = 1; i < file->count; i++)
        if (by_name(&file->named[i - 1], &file->named[i]) == 0)
            return wefti_fail(WEFT_E_CORRUPT, "'%s' has two arrays called '%s'", file->path, file->named[i]->name);
    if (file->meta_count > 0) qsort(file->meta, file->meta_count, sizeof *file->meta, by_key);
    for (size_t i = 1; i < file->meta_count; i++)
        if (by_key(&file->meta[i - 1], &file->meta[i]) == 0)
            return wefti_fail(WEFT_E_CORRUPT, "'%s' has the metadata key '%s' twice", file->path, file->meta[i].key);
    return check_cover(file);
}

/* ---- checksums ---- */

static bool take_sum(const char *digits, uint64_t *sum_out) {
    *sum_out = 0;
    for (int i = 0; i < wefti_safetensors_digits; i++) {
        const char *found = digits[i] ? strchr("0123456789abcdef", digits[i]) : NULL;
        if (!found) return false;
        *sum_out = *sum_out << 4 | (uint64_t)(found - "0123456789abcdef");
    }
    return true;
}

static weft_status parse_sums(weft_safetensors *file, const char *value, uint64_t *header_sum) {
    size_t scheme = strlen(WEFTI_SAFETENSORS_SCHEME), group = wefti_safetensors_digits + 1;
    if (strncmp(value, WEFTI_SAFETENSORS_SCHEME, scheme) != 0 || strlen(value) != scheme + group * (file->count + 1) - 1)
        return wefti_fail(WEFT_E_CORRUPT, "'%s': the checksum in its metadata (%s) is not of %zu arrays", file->path,
                          WEFTI_SAFETENSORS_CHECKSUM, file->count);
    WEFTI_TRY(wefti_alloc(file->capacity * sizeof *file->sum, "checksums", &file->sum));
    for (size_t i = 0; i <= file->count; i++) {
        uint64_t *sum = i == 0 ? header_sum : &file->sum[i - 1];
        if (!take_sum(value + scheme + group * i, sum) || (i > 0 && value[scheme + group * i - 1] != ','))
            return wefti_fail(WEFT_E_CORRUPT, "'%s': the checksum in its metadata (%s) is malformed", file->path,
                              WEFTI_SAFETENSORS_CHECKSUM);
    }
    return WEFT_OK;
}

/* The header's sum is over its bytes as they lie in the file, with the digits of all sums set to '0'. */
static weft_status verify_header(weft_safetensors *file) {
    pair        wanted = {.key = WEFTI_SAFETENSORS_CHECKSUM};
    const pair *found = file->meta_count ? bsearch(&wanted, file->meta, file->meta_count, sizeof wanted, by_key) : NULL;
    if (!found) return WEFT_OK;
    uint64_t    expected = 0;
    char       *raw = NULL;
    wefti_xxh64 hash;
    WEFTI_TRY(parse_sums(file, found->value, &expected));
    WEFTI_TRY(wefti_alloc_raw(file->header_bytes, WEFTI_CACHE_LINE, "a safetensors header", &raw));
    weft_status status = wefti_read_at(file->descriptor, file->path, 8, raw, file->header_bytes);
    if (status == WEFT_OK) {
        size_t from = found->value_at + strlen(WEFTI_SAFETENSORS_SCHEME), to = found->value_at + strlen(found->value);
        for (size_t i = from; i < to; i++)
            if (raw[i] != ',') raw[i] = '0';
        wefti_xxh64_begin(&hash);
        wefti_xxh64_add(&hash, raw, file->header_bytes);
        if (wefti_xxh64_end(&hash) != expected)
            status = wefti_fail(WEFT_E_CORRUPT, "'%s': the header's checksum does not match; it is damaged (or another "
                                "program rewrote the file and kept '%s' in its metadata: remove that)", file->path,
                                WEFTI_SAFETENSORS_CHECKSUM);
    }
    wefti_free(raw, file->header_bytes);
    return status;
}

static weft_status check_sum(const weft_safetensors *file, const weft_safetensors_entry *entry, const wefti_xxh64 *hash) {
    if (!file->sum || wefti_xxh64_end(hash) == file->sum[entry - file->entry]) return WEFT_OK;
    return wefti_fail(WEFT_E_CORRUPT, "'%s': the checksum of array '%s' (offset %llu, %llu bytes) does not match; it is "
                      "damaged", file->path, entry->name, (unsigned long long)entry->offset,
                      (unsigned long long)entry->bytes);
}

uint64_t wefti_safetensors_fingerprint(const weft_safetensors *file) {
    wefti_xxh64 hash;
    wefti_xxh64_begin(&hash);
    for (size_t k = 0; k < file->n_shards; k++) {
        uint64_t shard = wefti_safetensors_fingerprint(file->shard[k]);
        if (shard == 0) return 0;
        wefti_xxh64_add(&hash, &shard, sizeof shard);
    }
    if (file->n_shards > 0) return wefti_xxh64_end(&hash);
    if (!file->sum) return 0;
    for (size_t i = 0; i < file->count; i++) wefti_xxh64_add(&hash, file->entry[i].name, strlen(file->entry[i].name) + 1);
    wefti_xxh64_add(&hash, &file->data_at, sizeof file->data_at);
    wefti_xxh64_add(&hash, file->sum, file->count * sizeof *file->sum);
    return wefti_xxh64_end(&hash);
}

/* ---- opening and reading ---- */

static weft_status read_header(weft_safetensors *file) {
    uint8_t length[8];
    if (file->file_bytes < 8)
        return wefti_fail(WEFT_E_CORRUPT, "'%s' has %llu bytes; a safetensors file begins with 8 bytes of header length",
                          file->path, (unsigned long long)file->file_bytes);
    WEFTI_TRY(wefti_read_at(file->descriptor, file->path, 0, length, 8));
    memcpy(&file->header_bytes, length, 8);
    if (file->header_bytes < 2 || file->header_bytes > wefti_safetensors_most_header_bytes ||
        file->header_bytes > file->file_bytes - 8)
        return wefti_fail(WEFT_E_CORRUPT, "'%s' has a header of %llu bytes according to offset 0; expected 2 to %llu",
                          file->path, (unsigned long long)file->header_bytes,
                          (unsigned long long)(file->file_bytes - 8 < wefti_safetensors_most_header_bytes
                                                   ? file->file_bytes - 8
                                                   : wefti_safetensors_most_header_bytes));
    file->data_at = 8 + file->header_bytes;
    WEFTI_TRY(wefti_alloc_raw(file->header_bytes, WEFTI_CACHE_LINE, "a safetensors header", &file->header));
    return wefti_read_at(file->descriptor, file->path, 8, file->header, file->header_bytes);
}

static weft_status map_data(weft_safetensors *file) {
    if (file->file_bytes == file->data_at) return WEFT_OK;
    void *mapping = mmap(NULL, file->file_bytes, PROT_READ, MAP_SHARED, file->descriptor, 0);
    if (mapping == MAP_FAILED)
        return wefti_fail_errno("cannot map the %llu bytes of '%s'", (unsigned long long)file->file_bytes, file->path);
    file->mapping = mapping;
    return WEFT_OK;
}

/* --- several files by an index --- */

static weft_status open_shards(weft_safetensors *file, const wefti_shards *shards) {
    size_t n = (size_t)shards->n;
    WEFTI_TRY(wefti_alloc(n * sizeof *file->shard, "an index of files", &file->shard));
    file->n_shards = n;
    WEFTI_TRY(wefti_alloc(n * sizeof *file->first, "an index of files", &file->first));
    for (size_t k = 0; k < n; k++) {
        WEFTI_TRY(weft_safetensors_open(shards->path[k], &file->shard[k]));
        file->first[k] = file->capacity;
        file->capacity += file->shard[k]->count;
        file->meta_capacity += file->shard[k]->meta_count;
    }
    WEFTI_TRY(wefti_alloc(file->capacity * sizeof *file->entry, "arrays of several files", &file->entry));
    WEFTI_TRY(wefti_alloc(file->capacity * sizeof *file->named, "arrays of several files", &file->named));
    return wefti_alloc(file->meta_capacity * sizeof *file->meta, "metadata of several files", &file->meta);
}

/* `value_at` is here the order of files. */
static int by_key_and_file(const void *a, const void *b) {
    const pair *x = a, *y = b;
    int         order = by_key(a, b);
    return order ? order : x->value_at < y->value_at ? -1 : x->value_at > y->value_at;
}

/* What is said of the whole ("format") stands in every file: the first one's word is kept. */
static void join_metadata(weft_safetensors *file) {
    size_t kept = 0;
    if (file->meta_count) qsort(file->meta, file->meta_count, sizeof *file->meta, by_key_and_file);
    for (size_t i = 0; i < file->meta_count; i++)
        if (kept == 0 || by_key(&file->meta[kept - 1], &file->meta[i]) != 0) file->meta[kept++] = file->meta[i];
    file->meta_count = kept;
}

static weft_status join_shards(weft_safetensors *file) {
    for (size_t k = 0; k < file->n_shards; k++) {
        const weft_safetensors *shard = file->shard[k];
        for (size_t i = 0; i < shard->count; i++, file->count++) {
            file->entry[file->count] = shard->entry[i];
            file->named[file->count] = &file->entry[file->count];
        }
        for (size_t i = 0; i < shard->meta_count; i++)
            if (strcmp(shard->meta[i].key, WEFTI_SAFETENSORS_CHECKSUM) != 0)
                file->meta[file->meta_count++] = (pair){shard->meta[i].key, shard->meta[i].value, k};
    }
    if (file->count) qsort(file->named, file->count, sizeof(weft_safetensors_entry *), by_name);
    join_metadata(file);
    for (size_t i = 1; i < file->count; i++)
        if (strcmp(file->named[i - 1]->name, file->named[i]->name) == 0)
            return wefti_fail(WEFT_E_CORRUPT, "'%s': two of its files have an array '%s'", file->path, file->named[i]->name);
    return WEFT_OK;
}

static weft_status open_index(const char *path, weft_safetensors **file_out) {
    weft_safetensors *file = NULL;
    wefti_shards      shards = {.n = 0};
    weft_status       status;
    WEFTI_TRY(wefti_alloc(sizeof *file, "an index of safetensors files", &file));
    file->descriptor = -1;
    WEFTI_TRY_GOTO(wefti_copy_string(path, &file->path), done);
    WEFTI_TRY_GOTO(wefti_shards_open(path, &shards), done);
    WEFTI_TRY_GOTO(open_shards(file, &shards), done);
    status = join_shards(file);
done:
    wefti_shards_close(&shards);
    if (status != WEFT_OK) weft_safetensors_release(file);
    else *file_out = file;
    return status;
}

weft_status weft_safetensors_open(const char *path, weft_safetensors **file_out) {
    if (!file_out) return wefti_fail(WEFT_E_INVALID, "weft_safetensors_open: file_out is NULL");
    *file_out = NULL;
    if (wefti_shards_is_index(path)) return open_index(path, file_out);
    weft_safetensors *file = NULL;
    weft_status       status;
    WEFTI_TRY(wefti_alloc(sizeof *file, "a safetensors file", &file));
    file->descriptor = -1;
    WEFTI_TRY_GOTO(wefti_open_regular(path, &file->descriptor, &file->file_bytes), fail);
    WEFTI_TRY_GOTO(wefti_copy_string(path, &file->path), fail);
    WEFTI_TRY_GOTO(read_header(file), fail);
    WEFTI_TRY_GOTO(parse_header(file), fail);
    WEFTI_TRY_GOTO(map_data(file), fail);
    WEFTI_TRY_GOTO(put_in_order(file), fail);
    WEFTI_TRY_GOTO(verify_header(file), fail);
    *file_out = file;
    return WEFT_OK;
fail:
    weft_safetensors_release(file);
    return status;
}

int64_t weft_safetensors_count(const weft_safetensors *file) { return (int64_t)file->count; }

const weft_safetensors_entry *weft_safetensors_at(const weft_safetensors *file, int64_t index) {
    return index < 0 || (size_t)index >= file->count ? NULL : &file->entry[index];
}

const weft_safetensors_entry *weft_safetensors_find(const weft_safetensors *file, const char *name) {
    weft_safetensors_entry  wanted = {.name = name}, *key = &wanted;
    weft_safetensors_entry **found =
        file->count && name ? bsearch(&key, file->named, file->count, sizeof key, by_name) : NULL;
    return found ? *found : NULL;
}

const char *weft_safetensors_metadata(const weft_safetensors *file, const char *key) {
    pair        wanted = {.key = key};
    const pair *found = file->meta_count && key ? bsearch(&wanted, file->meta, file->meta_count, sizeof wanted, by_key) : NULL;
    return found ? found->value : NULL;
}

int64_t weft_safetensors_metadata_count(const weft_safetensors *file) { return (int64_t)file->meta_count; }

void weft_safetensors_metadata_at(const weft_safetensors *file, int64_t index, const char **key_out,
                                  const char **value_out) {
    bool there = index >= 0 && (size_t)index < file->meta_count;
    *key_out = there ? file->meta[index].key : NULL;
    *value_out = there ? file->meta[index].value : NULL;
}

static weft_status check_bools(const weft_safetensors *file, const weft_safetensors_entry *entry, const uint8_t *data) {
    for (uint64_t i = 0; entry->dtype == WEFT_BOOL && i < entry->bytes; i++)
        if (data[i] > 1)
            return wefti_fail(WEFT_E_CORRUPT, "'%s': array '%s' has a bool of value %u at offset %llu", file->path,
                              entry->name, data[i], (unsigned long long)(entry->offset + i));
    return WEFT_OK;
}

weft_status weft_safetensors_read(const weft_safetensors *file, const weft_safetensors_entry *entry, void *data_out) {
    if (!file || !entry || (!data_out && entry->bytes > 0) || entry < file->entry || entry >= file->entry + file->count)
        return wefti_fail(WEFT_E_INVALID, "weft_safetensors_read: needs an entry of this file and where to write");
    for (size_t k = file->n_shards; k-- > 0;)
        if ((size_t)(entry - file->entry) >= file->first[k])
            return weft_safetensors_read(file->shard[k], &file->shard[k]->entry[(size_t)(entry - file->entry) - file->first[k]], data_out);
    uint8_t    *out = data_out;
    wefti_xxh64 hash;
    wefti_xxh64_begin(&hash);
    for (uint64_t done = 0; done < entry->bytes;) {
        size_t now = entry->bytes - done < chunk_bytes ? (size_t)(entry->bytes - done) : chunk_bytes;
        WEFTI_TRY(wefti_read_at(file->descriptor, file->path, entry->offset + done, out + done, now));
        if (file->sum) wefti_xxh64_add(&hash, out + done, now); /* while it is in the cache */
        done += now;
    }
    WEFTI_TRY(check_sum(file, entry, &hash));
    return check_bools(file, entry, out);
}

weft_status weft_safetensors_verify(const weft_safetensors *file) {
    uint8_t *chunk = NULL;
    for (size_t k = 0; k < file->n_shards; k++) WEFTI_TRY(weft_safetensors_verify(file->shard[k]));
    if (file->n_shards > 0) return WEFT_OK;
    if (!file->sum) return wefti_fail(WEFT_E_NOT_FOUND, "'%s' has no checksum", file->path);
    WEFTI_TRY(wefti_alloc_raw(chunk_bytes, WEFTI_CACHE_LINE, "verifying checksums", &chunk));
    weft_status status = WEFT_OK;
    for (size_t i = 0; i < file->count && status == WEFT_OK; i++) {
        const weft_safetensors_entry *entry = &file->entry[i];
        wefti_xxh64                   hash;
        wefti_xxh64_begin(&hash);
        for (uint64_t done = 0; done < entry->bytes && status == WEFT_OK;) {
            size_t now = entry->bytes - done < chunk_bytes ? (size_t)(entry->bytes - done) : chunk_bytes;
            status = wefti_read_at(file->descriptor, file->path, entry->offset + done, chunk, now);
            wefti_xxh64_add(&hash, chunk, now);
            done += now;
        }
        if (status == WEFT_OK) status = check_sum(file, entry, &hash);
    }
    wefti_free(chunk, chunk_bytes);
    return status;
}

void weft_safetensors_release(weft_safetensors *file) {
    if (!file) return;
    for (size_t k = 0; k < file->n_shards; k++) weft_safetensors_release(file->shard[k]);
    if (file->first) wefti_free(file->first, file->n_shards * sizeof *file->first);
    if (file->shard) wefti_free(file->shard, file->n_shards * sizeof(weft_safetensors *));
    if (file->mapping) munmap(file->mapping, file->file_bytes);
    if (file->descriptor >= 0) close(file->descriptor);
    if (file->header) wefti_free(file->header, file->header_bytes);
    if (file->entry) wefti_free(file->entry, file->capacity * sizeof *file->entry);
    if (file->named) wefti_free(file->named, file->capacity * sizeof *file->named);
    if (file->meta) wefti_free(file->meta, file->meta_capacity * sizeof *file->meta);
    if (file->sum) wefti_free(file->sum, file->capacity * sizeof *file->sum);
    wefti_free_string(file->path);
    wefti_free(file, sizeof *file);
}

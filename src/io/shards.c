/* Indices of several safetensors files: one JSON object of "metadata" (numbers and texts) and "weight_map" (array to file). */
#include "io/shards.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "io/json.h"
#include "io/source.h"

static const char suffix[] = ".safetensors.index.json";
enum { MOST_BYTES = 100000000 };

bool wefti_shards_is_index(const char *path) {
    size_t length = path ? strlen(path) : 0;
    return length >= sizeof suffix - 1 && strcmp(path + length - (sizeof suffix - 1), suffix) == 0;
}

weft_status wefti_shards_path(const char *index, int64_t generation, int32_t k, int32_t n, wefti_text *path) {
    wefti_text_add(path, "%.*s-g%lld-%05d-of-%05d.safetensors", (int)(strlen(index) - (sizeof suffix - 1)), index, (long long)generation, (int)k + 1, (int)n);
    return path->failed ? wefti_fail(WEFT_E_NO_MEMORY, "no memory for the path of a checkpoint's file") : WEFT_OK;
}

/* Whether `name` is that of a file of an earlier generation, and `ending` behind it. `prefix` is the index' own. */
static bool is_earlier(const char *name, const char *ending, const char *prefix, size_t length, int64_t generation) {
    long long g = 0;
    int       k = 0, n = 0, end = 0;
    if (strncmp(name, prefix, length) != 0 || sscanf(name + length, "-g%18lld-%9d-of-%9d.safetensors%n", &g, &k, &n, &end) != 3 || end == 0) return false;
    return g > 0 && g < generation && strcmp(name + length + end, ending) == 0;
}

/* Of a name in the index' folder: such a file, or what a sink hides of one (io/sink.c). */
static bool is_before(const char *name, const char *prefix, size_t length, int64_t generation) {
    return is_earlier(name, "", prefix, length, generation) || (*name == '.' && is_earlier(name + 1, ".weft-partial", prefix, length, generation));
}

void wefti_shards_remove_before(const char *index, int64_t generation) {
    const char *slash = strrchr(index, '/'), *prefix = slash ? slash + 1 : index;
    size_t      length = strlen(prefix) - (sizeof suffix - 1);
    wefti_text  folder = {0};
    wefti_text_add(&folder, "%.*s", slash ? (int)(slash - index) + 1 : 2, slash ? index : "./");
    DIR *listing = folder.failed ? NULL : opendir(folder.bytes);
    for (const struct dirent *entry; listing && (entry = readdir(listing));) {
        if (!is_before(entry->d_name, prefix, length, generation)) continue;
        (void)unlinkat(dirfd(listing), entry->d_name, 0);
    }
    if (listing) closedir(listing);
    wefti_text_release(&folder);
}

/* A file of the index' own folder. */
static weft_status add_file(wefti_shards *s, const char *index, const char *name) {
    const char *slash = strrchr(index, '/');
    wefti_text  path = {0};
    if (!*name || strchr(name, '/')) return wefti_fail(WEFT_E_CORRUPT, "'%s' names the file '%s': names are those of files in its own folder", index, name);
    if (wefti_shards_is_index(name)) return wefti_fail(WEFT_E_CORRUPT, "'%s' names the file '%s', which is an index too: arrays are in files of their own", index, name);
    wefti_text_add(&path, "%.*s%s", slash ? (int)(slash - index) + 1 : 0, index, name);
    weft_status status = path.failed ? wefti_fail(WEFT_E_NO_MEMORY, "no memory for an index of files") : WEFT_OK;
    for (int32_t i = s->n - 1; i >= 0 && status == WEFT_OK; i--)
        if (strcmp(s->path[i], path.bytes) == 0) goto known;
    if (status == WEFT_OK && s->n == s->capacity) {
        int32_t capacity = s->capacity ? 2 * s->capacity : 8;
        status = wefti_grow(&s->path, (size_t)s->capacity * sizeof *s->path, (size_t)capacity * sizeof *s->path, "an index of files");
        if (status == WEFT_OK) s->capacity = capacity;
    }
    if (status == WEFT_OK) status = wefti_copy_string(path.bytes, &s->path[s->n]);
    if (status == WEFT_OK) s->n++;
known:
    wefti_text_release(&path);
    return status;
}

/* {"key": value, …}, of which `map` has texts that are files. */
static weft_status read_object(wefti_json *json, const char *index, bool map, wefti_shards *s) {
    WEFTI_TRY(wefti_json_take(json, '{'));
    if (wefti_json_try(json, '}')) return WEFT_OK;
    do {
        char   *key, *text = NULL;
        int64_t number = 0;
        WEFTI_TRY(wefti_json_string(json, &key));
        WEFTI_TRY(wefti_json_take(json, ':'));
        if (wefti_json_try(json, '"')) {
            json->at--;
            WEFTI_TRY(wefti_json_string(json, &text));
        } else if (map) return wefti_json_fail(json, "the name of a file");
        else WEFTI_TRY(wefti_json_number(json, &number));
        if (map) WEFTI_TRY(add_file(s, index, text));
        else if (strcmp(key, "weft.generation") == 0) {
            if (number == INT64_MAX) return wefti_json_fail(json, "a generation that one may follow before this");
            s->generation = number;
        }
    } while (wefti_json_try(json, ','));
    return wefti_json_take(json, '}');
}

static weft_status parse(wefti_json *json, const char *index, wefti_shards *s) {
    bool has_map = false;
    WEFTI_TRY(wefti_json_take(json, '{'));
    do {
        char *key;
        WEFTI_TRY(wefti_json_string(json, &key));
        WEFTI_TRY(wefti_json_take(json, ':'));
        bool map = strcmp(key, "weight_map") == 0;
        if (!map && strcmp(key, "metadata") != 0) return wefti_fail(WEFT_E_CORRUPT, "'%s' has '%s', where an index has metadata and weight_map", index, key);
        has_map = has_map || map;
        WEFTI_TRY(read_object(json, index, map, s));
    } while (wefti_json_try(json, ','));
    WEFTI_TRY(wefti_json_take(json, '}'));
    WEFTI_TRY(wefti_json_end(json));
    return has_map ? WEFT_OK : wefti_fail(WEFT_E_CORRUPT, "'%s' has no weight_map, which says which file has which array", index);
}

weft_status wefti_shards_open(const char *index, wefti_shards *s) {
    int         descriptor = -1;
    uint64_t    bytes = 0;
    char       *text = NULL;
    *s = (wefti_shards){.n = 0};
    weft_status status = wefti_open_regular(index, &descriptor, &bytes);
    if (status == WEFT_OK && bytes > MOST_BYTES) status = wefti_fail(WEFT_E_CORRUPT, "'%s' has %llu bytes; an index has at most %d", index, (unsigned long long)bytes, MOST_BYTES);
    if (status == WEFT_OK) status = wefti_alloc((size_t)bytes + 1, "an index of files", &text);
    if (status == WEFT_OK) status = wefti_read_at(descriptor, index, 0, text, (size_t)bytes);
    if (status == WEFT_OK) status = parse(&(wefti_json){.text = text, .length = (size_t)bytes, .what = index}, index, s);
    if (text) wefti_free(text, (size_t)bytes + 1);
    if (descriptor >= 0) close(descriptor);
    return status;
}

void wefti_shards_close(wefti_shards *s) {
    for (int32_t i = 0; i < s->n; i++) wefti_free_string(s->path[i]);
    if (s->path) wefti_free(s->path, (size_t)s->capacity * sizeof *s->path);
    *s = (wefti_shards){.n = 0};
}

/* Names, metadata and shapes of a snapshot's files; what is read is checked before it is believed. */
#include "parallel/server/saves_format.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "weft/snapshot.h"

#define SHARE_KEY "weft.server.share" /* "1 INDEX SERVERS"; the manifest's, WEFT_SNAPSHOT_KEY: "1 SERVERS" */

/* --- parts of a table --- */

int32_t wefti_share_parts(const wefti_share_table *share, int32_t parts[WEFTI_SHARE_PARTS]) {
    int32_t count = 0;
    while (count <= share->states) {
        parts[count] = count;
        count++;
    }
    if (share->counts) parts[count++] = WEFTI_PART_UPDATES;
    if (share->sparse) parts[count++] = WEFTI_PART_KEYS;
    return count;
}

const char *wefti_share_part_name(const char *table, int32_t part, char text[WEFTI_SNAPSHOT_NAME_BYTES]) {
    if (part > 0) snprintf(text, WEFTI_SNAPSHOT_NAME_BYTES, "%s.state.%d", table, (int)part - 1);
    else snprintf(text, WEFTI_SNAPSHOT_NAME_BYTES, "%s.%s", table, part == 0 ? "values" : part == WEFTI_PART_UPDATES ? "updates" : "keys");
    return text;
}

weft_dtype wefti_share_part_dtype(const wefti_share_table *share, int32_t part) { return part < 0 ? WEFT_I64 : share->held; }

weft_shape wefti_share_part_shape(const wefti_share_table *share, int32_t part) {
    return part < 0 ? weft_shape((int64_t)share->rows) : weft_shape((int64_t)share->rows, share->width);
}

size_t wefti_share_row_bytes(const wefti_share_table *share, int32_t part) {
    return part < 0 ? sizeof(int64_t) : (size_t)share->width * weft_dtype_bytes(share->held);
}

/* --- a table's metadata and arrays --- */

weft_status wefti_share_declare(weft_safetensors_writer *writer, const wefti_share_table *share) {
    char    text[256], name[WEFTI_SNAPSHOT_NAME_BYTES];
    int32_t parts[WEFTI_SHARE_PARTS], count = wefti_share_parts(share, parts);
    snprintf(text, sizeof text, "sparse %d dtype %s width %lld total %lld first %" PRIu64 " rows %" PRIu64 " clock %" PRIu64 " rule %d solver %d states %d split %d",
             share->sparse, weft_dtype_name(share->dtype), (long long)share->width, (long long)share->total, share->first, share->rows, share->clock,
             (int)share->rule, (int)share->solver, (int)share->states, (int)share->split);
    WEFTI_TRY(weft_safetensors_writer_metadata(writer, share->name, text));
    for (int32_t i = 0; i < count; i++)
        WEFTI_TRY(weft_safetensors_writer_add(writer, wefti_share_part_name(share->name, parts[i], name), wefti_share_part_dtype(share, parts[i]),
                                              wefti_share_part_shape(share, parts[i])));
    return WEFT_OK;
}

/* "split" is not there in files of a Weft before it was noted. */
static bool read_text(const char *text, wefti_share_table *share) {
    char      dtype[16];
    int       sparse, rule, solver, states, split = WEFT_SPLIT_DEFAULT;
    long long width, total;
    int       found = sscanf(text, "sparse %d dtype %15s width %lld total %lld first %" SCNu64 " rows %" SCNu64 " clock %" SCNu64 " rule %d solver %d states %d split %d",
                             &sparse, dtype, &width, &total, &share->first, &share->rows, &share->clock, &rule, &solver, &states, &split);
    if (found < 10 || width < 1 || width > INT64_MAX / 64 || total < 0 || states < 0 || states > WEFTI_RULE_STATES || share->rows > INT64_MAX / 64 || split < 0 ||
        split > WEFT_SPLIT_HASH)
        return false;
    share->sparse = sparse != 0;
    share->dtype = weft_dtype_of(dtype);
    share->width = width;
    share->total = total;
    share->rule = rule;
    share->solver = solver;
    share->states = states;
    share->split = (weft_table_split)split;
    return share->dtype != WEFT_DTYPE_COUNT && (share->sparse || (share->first <= (uint64_t)total && share->rows <= (uint64_t)total - share->first));
}

weft_status wefti_share_find(const weft_safetensors *file, const char *path, const char *name, wefti_share_table *share,
                             const weft_safetensors_entry *entries[WEFTI_SHARE_PARTS]) {
    const char *text = weft_safetensors_metadata(file, name);
    char        array[WEFTI_SNAPSHOT_NAME_BYTES];
    int32_t     parts[WEFTI_SHARE_PARTS];
    *share = (wefti_share_table){0};
    if (!text || strlen(name) > WEFT_TABLE_NAME_BYTES) return wefti_fail(WEFT_E_NOT_FOUND, "'%s': there is no table '%s'", path, name);
    snprintf(share->name, sizeof share->name, "%s", name);
    if (!read_text(text, share)) return wefti_fail(WEFT_E_CORRUPT, "'%s': what it says of table '%s' cannot be read: '%.100s'", path, name, text);
    const weft_safetensors_entry *values = weft_safetensors_find(file, wefti_share_part_name(name, WEFTI_PART_VALUES, array));
    share->held = values ? values->dtype : WEFT_DTYPE_COUNT;
    share->counts = weft_safetensors_find(file, wefti_share_part_name(name, WEFTI_PART_UPDATES, array)) != NULL;
    if (share->held == WEFT_DTYPE_COUNT) return wefti_fail(WEFT_E_CORRUPT, "'%s': table '%s' has no values", path, name);
    int32_t count = wefti_share_parts(share, parts);
    for (int32_t i = 0; i < count; i++) {
        weft_shape wanted = wefti_share_part_shape(share, parts[i]);
        entries[i] = weft_safetensors_find(file, wefti_share_part_name(name, parts[i], array));
        if (!entries[i] || entries[i]->dtype != wefti_share_part_dtype(share, parts[i]) || !weft_shape_equal(entries[i]->shape, wanted))
            return wefti_fail(WEFT_E_CORRUPT, "'%s': array '%s' of %s is %s", path, array, weft_shape_text(wanted).text, entries[i] ? "another" : "missing");
        share->bytes += entries[i]->bytes;
    }
    return WEFT_OK;
}

/* --- shares --- */

void wefti_share_suffix(uint64_t nonce, int32_t index, int32_t servers, char suffix[WEFTI_SUFFIX_BYTES]) {
    snprintf(suffix, WEFTI_SUFFIX_BYTES, ".%016llx.%d-of-%d", (unsigned long long)nonce, (int)index, (int)servers);
}

weft_status wefti_share_begin(const char *path, int32_t index, int32_t servers, weft_safetensors_writer **writer) {
    char text[64];
    snprintf(text, sizeof text, "1 %d %d", (int)index, (int)servers);
    WEFTI_TRY(weft_safetensors_writer_create(path, writer));
    return weft_safetensors_writer_metadata(*writer, SHARE_KEY, text);
}

weft_status wefti_share_check(const weft_safetensors *file, const char *path, int32_t share, int32_t saved) {
    const char *text = weft_safetensors_metadata(file, SHARE_KEY);
    int         version = 0, index = 0, servers = 0;
    if (!text || sscanf(text, "%d %d %d", &version, &index, &servers) != 3) return wefti_fail(WEFT_E_CORRUPT, "'%s' is no share of a snapshot", path);
    if (version != 1) return wefti_fail(WEFT_E_UNSUPPORTED, "'%s' is a share of version %d; this Weft reads version 1", path, version);
    if (index == share && servers == saved) return WEFT_OK;
    return wefti_fail(WEFT_E_CORRUPT, "'%s' is share %d of %d, and the manifest names it as share %d of %d", path, index, servers, (int)share, (int)saved);
}

/* --- the manifest --- */

weft_status wefti_manifest_read(const weft_safetensors *manifest, int32_t *servers) {
    const char *text = weft_safetensors_metadata(manifest, WEFT_SNAPSHOT_KEY);
    int         version = 0, saved = 0;
    if (!text || sscanf(text, "%d %d", &version, &saved) != 2 || saved < 1 || saved > WEFTI_ALL_WORKERS)
        return wefti_fail(WEFT_E_CORRUPT, "this is no snapshot of a parameter server");
    if (version != 1) return wefti_fail(WEFT_E_UNSUPPORTED, "the snapshot is of version %d; this Weft reads version 1", version);
    *servers = saved;
    return WEFT_OK;
}

weft_status wefti_manifest_share(const weft_safetensors *manifest, const char *path, int32_t index, int32_t servers, char whole[WEFTI_SNAPSHOT_PATH_BYTES]) {
    const char *slash = strrchr(path, '/');
    char        key[32];
    snprintf(key, sizeof key, "share.%d", (int)index);
    const char *name = weft_safetensors_metadata(manifest, key);
    if (!name || strchr(name, '/')) return wefti_fail(WEFT_E_CORRUPT, "the manifest does not name its share %d of %d", (int)index, (int)servers);
    snprintf(whole, WEFTI_SNAPSHOT_PATH_BYTES, "%.*s%s", slash ? (int)(slash + 1 - path) : 0, path, name);
    return WEFT_OK;
}

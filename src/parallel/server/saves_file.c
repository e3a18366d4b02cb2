/* The files of a snapshot as servers write and read them (saves_format.h). Checksums are verified before a row is taken. */
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "parallel/server/saves_format.h"
#include "weft/snapshot.h"

/* --- copying --- */

/* Bytes of a copy that is in a file are gone through so many at a time, so that few of them are in memory at once. */
enum { REST_BYTES = 4 << 20, PAGE_BYTES = 4096 };

static void rest(const wefti_share_table *share, const uint8_t *from, size_t bytes) {
    size_t before = (size_t)(from - share->memory) % PAGE_BYTES;
    if (share->mapped) wefti_spill_rest((uint8_t *)(uintptr_t)from - before, bytes + before);
}

/* One part of all rows to `to`. */
static weft_status copy_part(const served_table *table, const wefti_share_table *share, int32_t part, uint8_t *to) {
    const size_t   row = wefti_store_part_bytes(table->store, part);
    const uint64_t most = share->mapped ? (uint64_t)wefti_max_i64(1, (int64_t)(REST_BYTES / row)) : share->rows;
    for (uint64_t begin = 0; begin < share->rows; begin += most) {
        uint64_t count = share->rows - begin < most ? share->rows - begin : most;
        WEFTI_TRY(wefti_store_copy_out(table->store, part, begin, count, to + begin * row));
        rest(share, to + begin * row, count * row);
    }
    return WEFT_OK;
}

weft_status wefti_share_copy(const served_table *table, wefti_share_table *share) {
    const wefti_store *store = table->store;
    int32_t            parts[WEFTI_SHARE_PARTS];
    *share = (wefti_share_table){.dtype = table->options.dtype, .held = wefti_store_held(store), .width = table->options.width,
                                 .total = table->options.rows, .sparse = table->options.sparse, .split = table->options.split, .counts = wefti_store_counts(store), .copied = true,
                                 .states = wefti_store_states(store), .rule = (int32_t)table->options.rule.kind,
                                 .solver = (int32_t)table->options.rule.solver.kind, .first = table->begin, .rows = (uint64_t)wefti_store_rows(store)};
    memcpy(share->name, table->spec.name, sizeof share->name);
    const int32_t count = wefti_share_parts(share, parts);
    for (int32_t i = 0; i < count; i++) share->bytes += share->rows * wefti_store_part_bytes(store, parts[i]);
    const char *folder = wefti_store_folder(store);
    share->mapped = folder;
    weft_status status = folder ? wefti_spill_map(folder, table->spec.name, share->bytes, &share->memory)
                                : wefti_alloc_raw(share->bytes, WEFTI_CACHE_LINE, "a snapshot's copy of a table", &share->memory);
    if (status != WEFT_OK) {
        *share = (wefti_share_table){.copied = true};
        return wefti_while(status, "table '%s', %lld rows: a snapshot copies the rows and states of a server in memory before they are written",
                           table->spec.name, (long long)wefti_store_rows(store));
    }
    uint8_t *to = share->memory;
    for (int32_t i = 0; i < count && status == WEFT_OK; i++) {
        status = copy_part(table, share, parts[i], to);
        to += share->rows * wefti_store_part_bytes(store, parts[i]);
    }
    if (status == WEFT_OK) return WEFT_OK;
    wefti_share_release(share);
    *share = (wefti_share_table){.copied = true};
    return wefti_while(status, "table '%s', a snapshot's copy of %lld rows", table->spec.name, (long long)wefti_store_rows(store));
}

void wefti_share_release(wefti_share_table *share) {
    if (share->mapped && share->memory) wefti_spill_unmap(share->memory, share->bytes);
    else if (share->memory) wefti_free(share->memory, share->bytes);
    share->memory = NULL;
}

/* --- writing --- */

static weft_status write_table(weft_safetensors_writer *writer, const wefti_share_table *share) {
    const uint8_t *from = share->memory;
    char           name[WEFTI_SNAPSHOT_NAME_BYTES];
    int32_t        parts[WEFTI_SHARE_PARTS], count = wefti_share_parts(share, parts);
    for (int32_t i = 0; i < count; i++) {
        const size_t all = share->rows * wefti_share_row_bytes(share, parts[i]), most = share->mapped ? REST_BYTES : all;
        for (size_t at = 0, some; at < all || (all == 0 && at == 0); at += some ? some : 1) {
            some = all - at < most ? all - at : most;
            WEFTI_TRY(weft_safetensors_writer_write(writer, wefti_share_part_name(share->name, parts[i], name), from + at, some));
            rest(share, from + at, some);
        }
        from += all;
    }
    return WEFT_OK;
}

weft_status wefti_share_write(const char *path, const wefti_share_table *tables, int32_t count, int32_t index, int32_t servers) {
    weft_safetensors_writer *writer = NULL;
    weft_status              status;
    WEFTI_TRY_GOTO(wefti_share_begin(path, index, servers, &writer), done);
    for (int32_t i = 0; i < count; i++) WEFTI_TRY_GOTO(wefti_share_declare(writer, &tables[i]), done);
    for (int32_t i = 0; i < count; i++) WEFTI_TRY_GOTO(write_table(writer, &tables[i]), done);
    status = weft_safetensors_writer_commit(writer);
done:
    weft_safetensors_writer_release(writer);
    return status;
}

/* --- the manifest --- */

static const char *base_of(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Whether a file's name is that of a share of `base`: base.<16 digits>.<index>-of-<servers>. */
static bool is_share(const char *name, const char *base) {
    size_t length = strlen(base);
    int    used = 0, index, servers;
    if (strncmp(name, base, length) != 0 || name[length] != '.') return false;
    name += length + 1;
    if (strspn(name, "0123456789abcdef") != 16 || name[16] != '.') return false;
    return sscanf(name + 17, "%d-of-%d%n", &index, &servers, &used) == 2 && name[17 + used] == 0;
}

static bool is_named(const char *name, const char *base, const wefti_server_share *shares, int32_t servers) {
    for (int32_t i = 0; i < servers; i++)
        if (strcmp(name + strlen(base), shares[i].suffix) == 0) return true;
    return false;
}

static bool is_later(struct timespec a, struct timespec b) { return a.tv_sec != b.tv_sec ? a.tv_sec > b.tv_sec : a.tv_nsec > b.tv_nsec; }

/* Whether all shares are there, and when the oldest was written: what names them takes the place of what is whole. */
static weft_status look_at_shares(const char *path, const wefti_server_share *shares, int32_t servers, struct timespec *oldest_out) {
    for (int32_t i = 0; i < servers; i++) {
        char        whole[WEFTI_SNAPSHOT_PATH_BYTES];
        struct stat facts;
        snprintf(whole, sizeof whole, "%s%s", path, shares[i].suffix);
        if (stat(whole, &facts) != 0)
            return wefti_fail(WEFT_E_NOT_FOUND, "'%s', share %d of %d, is not there: all servers see the folder by one name, and one run at a time saves to a path; '%s' is as it was",
                              whole, (int)i, (int)servers, path);
        if (i == 0 || is_later(*oldest_out, facts.st_mtim)) *oldest_out = facts.st_mtim;
    }
    return WEFT_OK;
}

/* Of snapshots before this one, and of those that came to nothing. What cannot be removed is left, and so is what was written later than the oldest share of this
 * one: it may be of a snapshot that is being written. */
static void remove_old(const char *path, const wefti_server_share *shares, int32_t servers, struct timespec oldest) {
    const char *base = base_of(path);
    char        folder[WEFTI_FRAME_BYTES], whole[WEFTI_SNAPSHOT_PATH_BYTES];
    struct stat facts;
    snprintf(folder, sizeof folder, "%.*s", (int)(base - path), path);
    DIR *list = opendir(folder[0] ? folder : ".");
    for (struct dirent *entry; list && (entry = readdir(list));)
        if (is_share(entry->d_name, base) && !is_named(entry->d_name, base, shares, servers)) {
            snprintf(whole, sizeof whole, "%s%s", folder, entry->d_name);
            if (stat(whole, &facts) == 0 && !is_later(facts.st_mtim, oldest)) (void)!unlink(whole);
        }
    if (list) closedir(list);
}

weft_status wefti_manifest_write(const char *path, const wefti_server_share *shares, int32_t servers) {
    weft_safetensors_writer *writer = NULL;
    char                     key[32], text[WEFTI_FRAME_BYTES];
    struct timespec          oldest = {0};
    weft_status              status;
    WEFTI_TRY_GOTO(weft_safetensors_writer_create(path, &writer), done);
    snprintf(text, sizeof text, "1 %d", (int)servers);
    WEFTI_TRY_GOTO(weft_safetensors_writer_metadata(writer, WEFT_SNAPSHOT_KEY, text), done);
    for (int32_t i = 0; i < servers; i++) {
        snprintf(key, sizeof key, "share.%d", (int)i);
        snprintf(text, sizeof text, "%s%s", base_of(path), shares[i].suffix);
        WEFTI_TRY_GOTO(weft_safetensors_writer_metadata(writer, key, text), done);
    }
    WEFTI_TRY_GOTO(look_at_shares(path, shares, servers, &oldest), done);
    status = weft_safetensors_writer_commit(writer);
    if (status == WEFT_OK) remove_old(path, shares, servers, oldest);
done:
    weft_safetensors_writer_release(writer);
    return status;
}

/* --- loading --- */

/* One table of a share, and where its parts are. */
typedef struct source {
    const char                   *path;
    wefti_share_table             is;
    const weft_safetensors_entry *parts[WEFTI_SHARE_PARTS];
    int32_t                       part[WEFTI_SHARE_PARTS], count;
} source;

static weft_status read_source(const weft_safetensors *file, const char *path, const char *name, source *s) {
    *s = (source){.path = path};
    WEFTI_TRY(wefti_share_find(file, path, name, &s->is, s->parts));
    s->count = wefti_share_parts(&s->is, s->part);
    return WEFT_OK;
}

static weft_status differ(const wefti_load_table *t, const char *what, long long saved, long long here) {
    return wefti_fail(WEFT_E_MISMATCH, "table '%s' has %s %lld in the snapshot and %lld here", t->table->spec.name, what, saved, here);
}

static weft_status check_source(const wefti_load_table *t, const source *s) {
    const weft_table_options *o = &t->table->options;
    const wefti_share_table  *is = &s->is;
    if (is->dtype != o->dtype)
        return wefti_fail(WEFT_E_MISMATCH, "table '%s' is of %s in the snapshot and of %s here", o->name, weft_dtype_name(is->dtype), weft_dtype_name(o->dtype));
    if (is->sparse != o->sparse) return differ(t, "sparse", is->sparse, o->sparse);
    if (is->width != o->width) return differ(t, "a width of", is->width, o->width);
    if (!o->sparse && is->total != o->rows) return differ(t, "as many rows as", is->total, o->rows);
    if (is->rule != (int)o->rule.kind) return differ(t, "a rule of kind", is->rule, o->rule.kind);
    if (o->rule.kind == WEFT_TABLE_SOLVER && is->solver != (int)o->rule.solver.kind) return differ(t, "a solver of kind", is->solver, o->rule.solver.kind);
    if (is->states != wefti_store_states(t->store)) return differ(t, "as many states as", is->states, wefti_store_states(t->store));
    if (is->held == wefti_store_held(t->store) && is->counts == wefti_store_counts(t->store)) return WEFT_OK;
    return wefti_fail(WEFT_E_CORRUPT, "'%s': table '%s' has values of %s, %s numbers of updates", s->path, o->name, weft_dtype_name(is->held),
                      is->counts ? "and" : "and no");
}

static weft_status put(const wefti_load_table *t, const source *s, const uint64_t *places, uint64_t begin, uint64_t from, uint64_t count) {
    for (int32_t i = 0; i < s->count; i++) {
        const uint8_t *data = s->parts[i]->data;
        if (s->part[i] != WEFTI_PART_KEYS)
            WEFTI_TRY(wefti_store_copy_in(t->store, s->part[i], places, begin, count, data + from * wefti_store_part_bytes(t->store, s->part[i])));
    }
    return WEFT_OK;
}

static weft_status take_dense(wefti_load_table *t, const source *s) {
    uint64_t begin = t->table->begin, end = begin + t->table->rows, first = s->is.first, last = first + s->is.rows;
    uint64_t from = first > begin ? first : begin, to = last < end ? last : end;
    if (from >= to) return WEFT_OK;
    t->filled += to - from;
    return put(t, s, NULL, from - begin, from - first, to - from);
}

static bool is_mine(const wefti_load_table *t, uint64_t key, int32_t index, int32_t servers) {
    if (t->table->options.split == WEFT_SPLIT_HASH) return wefti_route_hash(key, servers) == index;
    return key - t->table->begin < t->table->rows;
}

/* Rows of other servers are passed over, but in this server's `own` share; what is taken goes in one by one, as its place may be anywhere.
 * Keys lie where the arrays before them end, at any byte. */
static weft_status take_sparse(wefti_load_table *t, const source *s, int32_t index, int32_t servers, bool own) {
    const weft_table_options *o = &t->table->options;
    const uint8_t            *keys = s->parts[s->count - 1]->data;
    for (uint64_t i = 0; i < s->is.rows; i++) {
        uint64_t key, place;
        memcpy(&key, keys + i * sizeof key, sizeof key);
        bool fits = o->rows == 0 || key < (uint64_t)o->rows;
        if (!fits) return wefti_fail(WEFT_E_CORRUPT, "'%s': table '%s' has a key %" PRIu64 ", and %lld rows", s->path, o->name, key, (long long)o->rows);
        bool mine = is_mine(t, key, index, servers);
        if (!mine && own)
            return wefti_fail(WEFT_E_MISMATCH, "'%s': table '%s' has key %" PRIu64 ", which is another server's here: create the table with the .split that "
                              "it was saved with", s->path, o->name, key);
        if (!mine) continue;
        WEFTI_TRY(wefti_store_find(t->store, &key, 1, true, &place));
        WEFTI_TRY(put(t, s, &place, 0, i, 1));
    }
    return WEFT_OK;
}

/* Share `share` of the `saved` that there are. */
static weft_status take_share(const char *path, int32_t share, int32_t saved, wefti_load_table *tables, int32_t count, int32_t index, int32_t servers) {
    weft_safetensors *file = NULL;
    source            s;
    WEFTI_TRY(weft_safetensors_open(path, &file));
    weft_status status = wefti_share_check(file, path, share, saved);
    if (status == WEFT_OK) status = weft_safetensors_verify(file);
    for (int32_t i = 0; i < count && status == WEFT_OK; i++) {
        wefti_load_table *t = &tables[i];
        WEFTI_TRY_GOTO(read_source(file, path, t->table->spec.name, &s), done);
        WEFTI_TRY_GOTO(check_source(t, &s), done);
        status = s.is.sparse ? take_sparse(t, &s, index, servers, saved == servers) : take_dense(t, &s);
    }
done:
    weft_safetensors_release(file);
    return status;
}

/* With as many servers as saved it, each has its rows in its own share. */
static weft_status take_shares(const char *path, const weft_safetensors *manifest, int32_t saved, wefti_load_table *tables, int32_t count,
                               int32_t index, int32_t servers) {
    char whole[WEFTI_SNAPSHOT_PATH_BYTES];
    for (int32_t i = 0; i < saved; i++) {
        if (saved == servers && i != index) continue;
        WEFTI_TRY(wefti_manifest_share(manifest, path, i, saved, whole));
        WEFTI_TRY(take_share(whole, i, saved, tables, count, index, servers));
    }
    for (int32_t i = 0; i < count; i++)
        if (!tables[i].table->options.sparse && tables[i].filled != tables[i].table->rows)
            return wefti_fail(WEFT_E_CORRUPT, "table '%s': its shares have %" PRIu64 " of the %" PRIu64 " rows from %" PRIu64 " on", tables[i].table->spec.name,
                              tables[i].filled, tables[i].table->rows, tables[i].table->begin);
    return WEFT_OK;
}

weft_status wefti_snapshot_fill(const char *path, wefti_load_table *tables, int32_t count, int32_t index, int32_t servers) {
    weft_safetensors *manifest = NULL;
    int32_t           saved = 0;
    weft_status       status = weft_safetensors_open(path, &manifest);
    if (status == WEFT_OK) status = wefti_manifest_read(manifest, &saved);
    if (status == WEFT_OK) status = take_shares(path, manifest, saved, tables, count, index, servers);
    weft_safetensors_release(manifest);
    return status == WEFT_OK ? WEFT_OK : wefti_while(status, "loading the snapshot '%s'", path);
}

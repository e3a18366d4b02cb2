/* Snapshots as files, without a server.
 *
 * Shares are mapped, and what is written of them goes from there to writers, so memory is what a sparse table's index takes: a place for each key, sorted by
 * the server that is to have it and the key. New shares are written beside one another, table by table, so of one table at a time. Nothing is
 * written before everything has been verified; new files have new names, and the manifest comes last, so a fault leaves what was there. */
#include "weft/snapshot.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "parallel/server/route.h"
#include "parallel/server/saves_format.h"

enum { PIECE_BYTES = 1 << 20 };

/* A table in one share. */
typedef struct saved_part {
    wefti_share_table             is;
    const weft_safetensors_entry *entries[WEFTI_SHARE_PARTS];
} saved_part;

typedef struct saved_table {
    wefti_share_table all;    /* the first share's, but rows and bytes of all */
    saved_part       *shares; /* [servers] */
} saved_table;

struct weft_snapshot {
    char               path[WEFTI_FRAME_BYTES];
    int32_t            servers, count;
    weft_safetensors **files;  /* [servers] */
    saved_table       *tables; /* [count] */
};

/* --- opening --- */

void weft_snapshot_release(weft_snapshot *snapshot) {
    if (!snapshot) return;
    const size_t servers = (size_t)snapshot->servers;
    for (size_t i = 0; snapshot->files && i < servers; i++) weft_safetensors_release(snapshot->files[i]);
    for (int32_t i = 0; snapshot->tables && i < snapshot->count; i++)
        if (snapshot->tables[i].shares) wefti_free(snapshot->tables[i].shares, servers * sizeof *snapshot->tables[i].shares);
    if (snapshot->tables) wefti_free(snapshot->tables, (size_t)snapshot->count * sizeof *snapshot->tables);
    if (snapshot->files) wefti_free(snapshot->files, servers * sizeof *snapshot->files);
    wefti_free(snapshot, sizeof *snapshot);
}

/* Of a share's texts those are tables that say whether they are sparse. */
static const char *table_at(const weft_safetensors *file, int64_t i) {
    const char *key, *value;
    weft_safetensors_metadata_at(file, i, &key, &value);
    return strncmp(value, "sparse ", 7) == 0 ? key : NULL;
}

static int32_t count_tables(const weft_safetensors *file) {
    int32_t count = 0;
    for (int64_t i = 0; i < weft_safetensors_metadata_count(file); i++) count += table_at(file, i) != NULL;
    return count;
}

static bool is_alike(const wefti_share_table *a, const wefti_share_table *b) {
    return a->sparse == b->sparse && a->dtype == b->dtype && a->held == b->held && a->width == b->width && a->total == b->total && a->rule == b->rule &&
           a->solver == b->solver && a->states == b->states && a->counts == b->counts && a->split == b->split;
}

static weft_status open_table(weft_snapshot *s, saved_table *table, const char *name) {
    WEFTI_TRY(wefti_alloc((size_t)s->servers * sizeof *table->shares, "a snapshot's tables", &table->shares));
    for (int32_t i = 0; i < s->servers; i++) {
        char        path[WEFTI_SNAPSHOT_PATH_BYTES + 32];
        saved_part *part = &table->shares[i];
        snprintf(path, sizeof path, "%s, share %d of %d", s->path, (int)i, (int)s->servers);
        WEFTI_TRY(wefti_share_find(s->files[i], path, name, &part->is, part->entries));
        if (i == 0) table->all = part->is;
        else if (is_alike(&part->is, &table->all)) {
            table->all.rows += part->is.rows;
            table->all.bytes += part->is.bytes;
        } else return wefti_fail(WEFT_E_CORRUPT, "table '%s' is another in share %d than in share 0", name, (int)i);
        uint64_t begin = wefti_route_begin((uint64_t)part->is.total, s->servers, i), end = wefti_route_begin((uint64_t)part->is.total, s->servers, i + 1);
        if (!part->is.sparse && (part->is.first != begin || part->is.rows != end - begin))
            return wefti_fail(WEFT_E_CORRUPT, "table '%s' of %lld rows has rows %llu to %llu in share %d of %d, which should be %llu to %llu", name,
                              (long long)part->is.total, (unsigned long long)part->is.first, (unsigned long long)(part->is.first + part->is.rows), (int)i,
                              (int)s->servers, (unsigned long long)begin, (unsigned long long)end);
    }
    return WEFT_OK;
}

static weft_status open_tables(weft_snapshot *s) {
    const weft_safetensors *first = s->files[0];
    int32_t                 count = count_tables(first), next = 0;
    if (count) WEFTI_TRY(wefti_alloc((size_t)count * sizeof *s->tables, "a snapshot's tables", &s->tables));
    s->count = count;
    for (int64_t i = 0; i < weft_safetensors_metadata_count(first); i++)
        if (table_at(first, i)) WEFTI_TRY(open_table(s, &s->tables[next++], table_at(first, i)));
    for (int32_t i = 1; i < s->servers; i++)
        if (count_tables(s->files[i]) != count)
            return wefti_fail(WEFT_E_CORRUPT, "share %d has %d tables, and share 0 %d", (int)i, (int)count_tables(s->files[i]), (int)count);
    return WEFT_OK;
}

static weft_status open_files(weft_snapshot *s, const weft_safetensors *manifest) {
    char whole[WEFTI_SNAPSHOT_PATH_BYTES];
    WEFTI_TRY(wefti_manifest_read(manifest, &s->servers));
    WEFTI_TRY(wefti_alloc((size_t)s->servers * sizeof *s->files, "a snapshot's shares", &s->files));
    for (int32_t i = 0; i < s->servers; i++) {
        WEFTI_TRY(wefti_manifest_share(manifest, s->path, i, s->servers, whole));
        WEFTI_TRY(weft_safetensors_open(whole, &s->files[i]));
        WEFTI_TRY(wefti_share_check(s->files[i], whole, i, s->servers));
    }
    return open_tables(s);
}

static weft_status check_path(const char *what, const char *path) {
    size_t length = path ? strlen(path) : 0;
    if (length > 0 && length < WEFTI_FRAME_BYTES && path[length - 1] != '/') return WEFT_OK;
    return wefti_fail(WEFT_E_INVALID, "%s: '%.60s' is no path of a file (1 to %d bytes, none that ends in '/')", what, path ? path : "", WEFTI_FRAME_BYTES - 1);
}

weft_status weft_snapshot_open(const char *path, weft_snapshot **snapshot_out) {
    weft_snapshot    *s = NULL;
    weft_safetensors *manifest = NULL;
    *snapshot_out = NULL;
    WEFTI_TRY(check_path("weft_snapshot_open", path));
    WEFTI_TRY(wefti_alloc(sizeof *s, "a snapshot", &s));
    snprintf(s->path, sizeof s->path, "%s", path);
    weft_status status = weft_safetensors_open(path, &manifest);
    if (status == WEFT_OK) status = open_files(s, manifest);
    weft_safetensors_release(manifest);
    if (status == WEFT_OK) {
        *snapshot_out = s;
        return WEFT_OK;
    }
    weft_snapshot_release(s);
    return wefti_while(status, "opening the snapshot '%s'", path);
}

/* --- what is in it --- */

int32_t weft_snapshot_servers(const weft_snapshot *s) { return s->servers; }
int32_t weft_snapshot_count(const weft_snapshot *s) { return s->count; }

void weft_snapshot_at(const weft_snapshot *s, int32_t index, weft_snapshot_table *out) {
    const wefti_share_table *all = &s->tables[index].all;
    *out = (weft_snapshot_table){.name = all->name, .sparse = all->sparse, .dtype = all->dtype, .held = all->held, .rows = (int64_t)all->rows,
                                 .width = all->width, .split = all->sparse ? all->split : WEFT_SPLIT_RANGE, .rule = (weft_table_rule_kind)all->rule,
                                 .solver = (weft_solver_kind)all->solver, .states = all->states, .counts = all->counts, .clock = all->clock, .bytes = all->bytes};
}

/* --- keys of sparse tables --- */

/* Where a row is, and who is to have it. */
typedef struct located {
    uint64_t key, row;
    int32_t  share, server;
} located;

/* A sparse table's rows, by server and key. */
typedef struct index {
    located         *list; /* [count] */
    uint64_t         count;
    weft_table_split split;
} row_index;

/* Keys lie where the arrays before them end, at any byte. */
static uint64_t key_at(const saved_part *part, uint64_t row) {
    int32_t  parts[WEFTI_SHARE_PARTS], count = wefti_share_parts(&part->is, parts);
    uint64_t key;
    memcpy(&key, (const uint8_t *)part->entries[count - 1]->data + row * sizeof key, sizeof key);
    return key;
}

static int32_t route(const saved_table *table, weft_table_split split, uint64_t key, int32_t servers) {
    return split == WEFT_SPLIT_RANGE ? wefti_route_range(key, (uint64_t)table->all.total, servers) : wefti_route_hash(key, servers);
}

/* The first key that is not where the split has it; false: there is none. */
static bool find_stray(const weft_snapshot *s, const saved_table *table, weft_table_split split, int32_t *share_out, uint64_t *key_out) {
    for (int32_t i = 0; i < s->servers; i++)
        for (uint64_t row = 0; row < table->shares[i].is.rows; row++) {
            uint64_t key = key_at(&table->shares[i], row);
            bool     inside = table->all.total == 0 || key < (uint64_t)table->all.total;
            *share_out = i;
            *key_out = key;
            if (!inside || route(table, split, key, s->servers) != i) return true;
        }
    return false;
}

static weft_status find_split(const weft_snapshot *s, const saved_table *table, weft_table_split *split_out) {
    int32_t  share = 0;
    uint64_t key = 0;
    *split_out = table->all.split == WEFT_SPLIT_DEFAULT ? WEFT_SPLIT_HASH : table->all.split;
    if (*split_out == WEFT_SPLIT_RANGE && table->all.total == 0) return wefti_fail(WEFT_E_CORRUPT, "table '%s' is split by ranges of no keys", table->all.name);
    if (!find_stray(s, table, *split_out, &share, &key)) return WEFT_OK;
    if (table->all.split == WEFT_SPLIT_DEFAULT && table->all.total > 0) { /* it was not noted */
        *split_out = WEFT_SPLIT_RANGE;
        if (!find_stray(s, table, *split_out, &share, &key)) return WEFT_OK;
    }
    return wefti_fail(WEFT_E_CORRUPT, "table '%s' has key %llu in share %d of %d, where it does not belong", table->all.name, (unsigned long long)key, (int)share,
                      (int)s->servers);
}

static int by_server_and_key(const void *a, const void *b) {
    const located *left = a, *right = b;
    if (left->server != right->server) return left->server < right->server ? -1 : 1;
    return left->key < right->key ? -1 : left->key > right->key;
}

static void close_index(row_index *index) {
    if (index->list) wefti_free(index->list, (size_t)index->count * sizeof *index->list);
    *index = (row_index){0};
}

/* Each key once, or WEFT_E_CORRUPT. */
static weft_status open_index(const weft_snapshot *s, const saved_table *table, int32_t servers, row_index *index) {
    uint64_t at = 0;
    *index = (row_index){.count = table->all.rows};
    WEFTI_TRY(find_split(s, table, &index->split));
    if (index->count == 0) return WEFT_OK;
    WEFTI_TRY(wefti_alloc_raw((size_t)index->count * sizeof *index->list, WEFTI_CACHE_LINE, "an index of a sparse table's keys", &index->list));
    for (int32_t i = 0; i < s->servers; i++)
        for (uint64_t row = 0; row < table->shares[i].is.rows; row++) {
            uint64_t key = key_at(&table->shares[i], row);
            index->list[at++] = (located){key, row, i, route(table, index->split, key, servers)};
        }
    qsort(index->list, (size_t)index->count, sizeof *index->list, by_server_and_key);
    for (at = 1; at < index->count; at++)
        if (index->list[at].key == index->list[at - 1].key) {
            uint64_t key = index->list[at].key;
            close_index(index);
            return wefti_fail(WEFT_E_CORRUPT, "table '%s' has key %llu twice", table->all.name, (unsigned long long)key);
        }
    return WEFT_OK;
}

weft_status weft_snapshot_verify(const weft_snapshot *s) {
    weft_status status = WEFT_OK;
    for (int32_t i = 0; i < s->servers && status == WEFT_OK; i++) {
        status = weft_safetensors_verify(s->files[i]);
        if (status != WEFT_OK) status = wefti_while(status, "share %d of %d", (int)i, (int)s->servers);
    }
    for (int32_t i = 0; i < s->count && status == WEFT_OK; i++) {
        row_index index = {0};
        if (s->tables[i].all.sparse) status = open_index(s, &s->tables[i], 1, &index);
        close_index(&index);
    }
    return status == WEFT_OK ? WEFT_OK : wefti_while(status, "verifying the snapshot '%s'", s->path);
}

/* --- writing --- */

/* Rows begin .. end - 1 of a dense table, one part of them. */
static weft_status write_range(const weft_snapshot *s, const saved_table *table, int32_t part, int32_t i, uint64_t begin, uint64_t end, const char *name,
                               weft_safetensors_writer *writer) {
    const size_t row_bytes = wefti_share_row_bytes(&table->all, part);
    for (int32_t share = 0; share < s->servers; share++) {
        const saved_part *from = &table->shares[share];
        uint64_t          first = from->is.first, last = first + from->is.rows, low = begin > first ? begin : first, high = end < last ? end : last;
        if (low < high)
            WEFTI_TRY(weft_safetensors_writer_write(writer, name, (const uint8_t *)from->entries[i]->data + (low - first) * row_bytes, (high - low) * row_bytes));
    }
    return WEFT_OK;
}

/* These rows of a sparse one, through a buffer. */
static weft_status write_list(const saved_table *table, int32_t part, int32_t i, const located *list, uint64_t count, const char *name, void *piece,
                              weft_safetensors_writer *writer) {
    const size_t   row_bytes = wefti_share_row_bytes(&table->all, part);
    const uint64_t most = row_bytes < PIECE_BYTES ? PIECE_BYTES / row_bytes : 1;
    for (uint64_t at = 0, some; at < count; at += some) {
        some = count - at < most ? count - at : most;
        const void *from = piece;
        if (some == 1) from = (const uint8_t *)table->shares[list[at].share].entries[i]->data + list[at].row * row_bytes;
        for (uint64_t k = 0; k < some && some > 1; k++)
            memcpy((uint8_t *)piece + k * row_bytes, (const uint8_t *)table->shares[list[at + k].share].entries[i]->data + list[at + k].row * row_bytes, row_bytes);
        WEFTI_TRY(weft_safetensors_writer_write(writer, name, from, some * row_bytes));
    }
    return WEFT_OK;
}

/* What `server` of `servers` is to have of a table. */
static wefti_share_table share_of(const saved_table *table, const row_index *index, int32_t server, int32_t servers) {
    wefti_share_table is = table->all;
    uint64_t          total = (uint64_t)is.total;
    bool              ranges = !is.sparse || index->split == WEFT_SPLIT_RANGE;
    if (is.sparse) is.split = index->split;
    is.first = ranges ? wefti_route_begin(total, servers, server) : 0;
    if (!is.sparse) is.rows = wefti_route_begin(total, servers, server + 1) - is.first;
    else {
        is.rows = 0;
        for (uint64_t i = 0; i < index->count; i++) is.rows += index->list[i].server == server;
    }
    return is;
}

/* Files that are being written: one for each new server, or one for all. */
typedef struct target {
    weft_safetensors_writer **writers; /* [servers] */
    int32_t                   servers;
    bool                      every;   /* part */
    void                     *piece;
} target;

static bool is_wanted(const target *to, int32_t part) { return to->every || part == WEFTI_PART_VALUES || part == WEFTI_PART_KEYS; }

static weft_status declare(const target *to, weft_safetensors_writer *writer, const wefti_share_table *is) {
    char    name[WEFTI_SNAPSHOT_NAME_BYTES];
    int32_t parts[WEFTI_SHARE_PARTS], count = wefti_share_parts(is, parts);
    if (to->every) return wefti_share_declare(writer, is);
    for (int32_t i = 0; i < count; i++)
        if (is_wanted(to, parts[i]))
            WEFTI_TRY(weft_safetensors_writer_add(writer, wefti_share_part_name(is->name, parts[i], name), wefti_share_part_dtype(is, parts[i]),
                                                  wefti_share_part_shape(is, parts[i])));
    return WEFT_OK;
}

static weft_status declare_all(const weft_snapshot *s, const target *to) {
    for (int32_t i = 0; i < s->count; i++) {
        row_index   index = {0};
        weft_status status = s->tables[i].all.sparse ? open_index(s, &s->tables[i], to->servers, &index) : WEFT_OK;
        for (int32_t server = 0; server < to->servers && status == WEFT_OK; server++) {
            wefti_share_table is = share_of(&s->tables[i], &index, server, to->servers);
            status = declare(to, to->writers[server], &is);
        }
        close_index(&index);
        WEFTI_TRY(status);
    }
    return WEFT_OK;
}

static weft_status write_table(const weft_snapshot *s, const saved_table *table, const row_index *index, const target *to) {
    char     name[WEFTI_SNAPSHOT_NAME_BYTES];
    int32_t  parts[WEFTI_SHARE_PARTS], count = wefti_share_parts(&table->all, parts);
    uint64_t at = 0;
    for (int32_t server = 0; server < to->servers; server++) {
        wefti_share_table is = share_of(table, index, server, to->servers);
        for (int32_t i = 0; i < count; i++) {
            if (!is_wanted(to, parts[i])) continue;
            wefti_share_part_name(is.name, parts[i], name);
            WEFTI_TRY(is.sparse ? write_list(table, parts[i], i, index->list + at, is.rows, name, to->piece, to->writers[server])
                                : write_range(s, table, parts[i], i, is.first, is.first + is.rows, name, to->writers[server]));
        }
        at += is.rows;
    }
    return WEFT_OK;
}

static weft_status write_all(const weft_snapshot *s, target *to) {
    WEFTI_TRY(declare_all(s, to));
    WEFTI_TRY(wefti_alloc_raw(PIECE_BYTES, WEFTI_CACHE_LINE, "rows to be written", &to->piece));
    weft_status status = WEFT_OK;
    for (int32_t i = 0; i < s->count && status == WEFT_OK; i++) {
        row_index index = {0};
        if (s->tables[i].all.sparse) status = open_index(s, &s->tables[i], to->servers, &index);
        if (status == WEFT_OK) status = write_table(s, &s->tables[i], &index, to);
        close_index(&index);
    }
    wefti_free(to->piece, PIECE_BYTES);
    return status;
}

weft_status weft_snapshot_export(const weft_snapshot *s, const char *path, bool all) {
    weft_safetensors_writer *writer = NULL;
    target                   to = {.writers = &writer, .servers = 1, .every = all};
    WEFTI_TRY(check_path("weft_snapshot_export", path));
    WEFTI_TRY(weft_snapshot_verify(s));
    weft_status status = weft_safetensors_writer_create(path, &writer);
    if (status == WEFT_OK) status = write_all(s, &to);
    if (status == WEFT_OK) status = weft_safetensors_writer_commit(writer);
    weft_safetensors_writer_release(writer);
    return status == WEFT_OK ? WEFT_OK : wefti_while(status, "writing the tables of '%s' to '%s'", s->path, path);
}

/* --- for another number of servers --- */

static uint64_t make_nonce(const char *path) {
    struct timespec now = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t parts[] = {(uint64_t)now.tv_sec, (uint64_t)now.tv_nsec, (uint64_t)getpid(), wefti_hash(WEFTI_HASH_BEGIN, path, strlen(path))};
    return wefti_mix(wefti_hash(WEFTI_HASH_BEGIN, parts, sizeof parts));
}

static weft_status write_shares(const weft_snapshot *s, target *to, const char *path, const wefti_server_share *shares) {
    char whole[WEFTI_SNAPSHOT_PATH_BYTES];
    for (int32_t i = 0; i < to->servers; i++) {
        snprintf(whole, sizeof whole, "%s%s", path, shares[i].suffix);
        WEFTI_TRY(wefti_share_begin(whole, i, to->servers, &to->writers[i]));
    }
    WEFTI_TRY(write_all(s, to));
    for (int32_t i = 0; i < to->servers; i++) WEFTI_TRY(weft_safetensors_writer_commit(to->writers[i]));
    return WEFT_OK;
}

weft_status weft_snapshot_reshard(const weft_snapshot *s, const char *path, int32_t servers) {
    target              to = {.servers = servers, .every = true};
    wefti_server_share *shares = NULL;
    char                whole[WEFTI_SNAPSHOT_PATH_BYTES];
    weft_status         status;
    WEFTI_TRY(check_path("weft_snapshot_reshard", path));
    if (servers < 1 || servers > WEFTI_ALL_WORKERS) return wefti_fail(WEFT_E_INVALID, "weft_snapshot_reshard: %d servers; 1 to %d", (int)servers, WEFTI_ALL_WORKERS);
    WEFTI_TRY(weft_snapshot_verify(s));
    const size_t n = (size_t)servers;
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *shares, "shares of a snapshot", &shares), done);
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *to.writers, "shares of a snapshot", &to.writers), done);
    const uint64_t nonce = make_nonce(path);
    for (int32_t i = 0; i < servers; i++) wefti_share_suffix(nonce, i, servers, shares[i].suffix);
    status = write_shares(s, &to, path, shares);
    for (int32_t i = 0; i < servers; i++) {
        weft_safetensors_writer_release(to.writers[i]);
        snprintf(whole, sizeof whole, "%s%s", path, shares[i].suffix);
        if (status != WEFT_OK) (void)!unlink(whole);
    }
    if (status == WEFT_OK) status = wefti_manifest_write(path, shares, servers);
done:
    if (to.writers) wefti_free(to.writers, n * sizeof *to.writers);
    if (shares) wefti_free(shares, n * sizeof *shares);
    return status == WEFT_OK ? WEFT_OK : wefti_while(status, "dealing the snapshot '%s' out to %d servers", s->path, (int)servers);
}

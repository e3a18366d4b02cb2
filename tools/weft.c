/* weft: what is done to files of Weft's from outside.
 *
 *   weft reshard IN OUT.safetensors [--all]   parameters and states of a checkpoint, verified, as a safetensors file of nothing else, for other programs; with
 *                                             --all also what a run goes on from: solver states, step, loader. Of a server's snapshot the rows of all tables
 *                                             (T.values, and T.keys of sparse ones), with --all also the states of rules
 *   weft reshard SNAPSHOT OUT --servers N     a server's snapshot, verified, as N servers would have saved it
 *   weft verify FILE                          every checksum; of a snapshot also that each row is there once
 *   weft list FILE                            arrays with dtype, shape and bytes, and the values of a run; of a snapshot its tables
 *
 * IN and FILE may be an index of several files (*.safetensors.index.json), as ranks write in parallel (weft_trainer_save): `reshard` makes one file of them. A
 * checkpoint that is one file has whole arrays already, whatever the mesh; what `reshard` adds is the check, and leaving out what is the run's. Snapshots of a
 * parameter server (weft_server_save, weft/snapshot.h) are known by their metadata. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weft.h"

enum { PIECE = 16 << 20 };

static const char usage[] = "usage: weft reshard IN OUT.safetensors [--all]\n       weft reshard SNAPSHOT OUT --servers N\n       weft verify FILE\n       weft list FILE\n";

static bool is_the_runs(const char *name) { return strncmp(name, "weft.", 5) == 0; }

static weft_status open_checked(const char *path, weft_safetensors **file_out, bool *checked_out) {
    weft_status status = weft_safetensors_open(path, file_out);
    if (status != WEFT_OK) return status;
    status = weft_safetensors_verify(*file_out);
    *checked_out = status == WEFT_OK;
    return status == WEFT_E_NOT_FOUND ? WEFT_OK : status; /* other programs' files have none */
}

static weft_status declare(const weft_safetensors *in, weft_safetensors_writer *out, bool all) {
    weft_status status = WEFT_OK;
    for (int64_t i = 0; i < weft_safetensors_count(in) && status == WEFT_OK; i++) {
        const weft_safetensors_entry *entry = weft_safetensors_at(in, i);
        if (!all && is_the_runs(entry->name)) continue;
        if (entry->dtype == WEFT_DTYPE_COUNT) {
            fprintf(stderr, "weft: '%s' is %s, which Weft does not have\n", entry->name, entry->stored);
            return WEFT_E_UNSUPPORTED;
        }
        status = weft_safetensors_writer_add(out, entry->name, entry->dtype, entry->shape);
    }
    for (int64_t i = 0; i < weft_safetensors_metadata_count(in) && status == WEFT_OK && all; i++) {
        const char *key, *value;
        weft_safetensors_metadata_at(in, i, &key, &value);
        if (strcmp(key, "weft.checksum") != 0) status = weft_safetensors_writer_metadata(out, key, value); /* it gets one of its own */
    }
    return status;
}

static weft_status copy_array(const weft_safetensors_entry *entry, weft_safetensors_writer *out) {
    weft_status status = WEFT_OK;
    for (uint64_t at = 0; at < entry->bytes && status == WEFT_OK; at += PIECE) {
        uint64_t left = entry->bytes - at;
        status = weft_safetensors_writer_write(out, entry->name, (const char *)entry->data + at, left < PIECE ? left : PIECE);
    }
    return status;
}

static weft_status reshard(const char *from, const char *to, bool all) {
    weft_safetensors        *in = NULL;
    weft_safetensors_writer *out = NULL;
    bool                     checked = false;
    int64_t                  taken = 0, left = 0;
    uint64_t                 bytes = 0;
    weft_status              status = open_checked(from, &in, &checked);
    if (status == WEFT_OK) status = weft_safetensors_writer_create(to, &out);
    if (status == WEFT_OK) status = declare(in, out, all);
    for (int64_t i = 0; status == WEFT_OK && i < weft_safetensors_count(in); i++) {
        const weft_safetensors_entry *entry = weft_safetensors_at(in, i);
        if (!all && is_the_runs(entry->name)) {
            left++;
            continue;
        }
        status = copy_array(entry, out);
        bytes += entry->bytes;
        taken++;
    }
    if (status == WEFT_OK) status = weft_safetensors_writer_commit(out);
    if (status == WEFT_OK)
        printf("%s: %lld arrays of %llu bytes%s%s; %lld of the run's left out\n", to, (long long)taken, (unsigned long long)bytes,
               checked ? ", checksums verified" : ", without checksums to verify", all ? ", and the values of the run" : "", (long long)left);
    weft_safetensors_writer_release(out);
    weft_safetensors_release(in);
    return status;
}

/* --- snapshots of a parameter server --- */

/* WEFT_OK with NULL: it is another file. */
static weft_status open_snapshot(const char *path, weft_snapshot **snapshot_out) {
    weft_safetensors *file = NULL;
    *snapshot_out = NULL;
    weft_status status = weft_safetensors_open(path, &file);
    bool        is = status == WEFT_OK && weft_safetensors_metadata(file, WEFT_SNAPSHOT_KEY);
    weft_safetensors_release(file);
    return is ? weft_snapshot_open(path, snapshot_out) : status;
}

static const char *rule_of(const weft_snapshot_table *table) {
    static const char *const rules[] = {"add", "average", "solver", "ftrl", "user"};
    return table->rule >= WEFT_TABLE_ADD && table->rule <= WEFT_TABLE_USER ? rules[table->rule] : "unknown";
}

static void list_tables(const weft_snapshot *snapshot) {
    weft_snapshot_table t;
    printf("snapshot of %d servers\n", (int)weft_snapshot_servers(snapshot));
    for (int32_t i = 0; i < weft_snapshot_count(snapshot); i++) {
        weft_snapshot_at(snapshot, i, &t);
        printf("%-6s %-6s [%lld, %lld]  %llu bytes  rule %s, %d states%s, clock %llu  %s\n", t.sparse ? "sparse" : "dense", weft_dtype_name(t.dtype), (long long)t.rows,
               (long long)t.width, (unsigned long long)t.bytes, rule_of(&t), (int)t.states, t.counts ? ", updates" : "", (unsigned long long)t.clock, t.name);
    }
}

/* `servers` 0: to one file. */
static weft_status reshard_snapshot(const weft_snapshot *snapshot, const char *to, bool all, int32_t servers) {
    weft_status status = servers ? weft_snapshot_reshard(snapshot, to, servers) : weft_snapshot_export(snapshot, to, all);
    if (status != WEFT_OK) return status;
    printf("%s: %d tables of %d servers%s", to, (int)weft_snapshot_count(snapshot), (int)weft_snapshot_servers(snapshot), servers ? "" : " in one file");
    if (servers) printf(" for %d", (int)servers);
    else if (all) printf(", with states");
    printf(", checksums verified\n");
    return WEFT_OK;
}

/* --- any file --- */

static weft_status verify(const char *path) {
    weft_safetensors *in = NULL;
    bool              checked = false;
    weft_status       status = open_checked(path, &in, &checked);
    if (status == WEFT_OK) printf("%s: %lld arrays, %s\n", path, (long long)weft_safetensors_count(in), checked ? "all checksums verified" : "no checksums");
    weft_safetensors_release(in);
    return status;
}

static weft_status list(const char *path) {
    weft_safetensors *in = NULL;
    weft_status       status = weft_safetensors_open(path, &in);
    for (int64_t i = 0; status == WEFT_OK && i < weft_safetensors_count(in); i++) {
        const weft_safetensors_entry *entry = weft_safetensors_at(in, i);
        printf("%-6s %-24s %14llu  %s\n", entry->stored, weft_shape_text(entry->shape).text, (unsigned long long)entry->bytes, entry->name);
    }
    for (int64_t i = 0; status == WEFT_OK && i < weft_safetensors_metadata_count(in); i++) {
        const char *key, *value;
        weft_safetensors_metadata_at(in, i, &key, &value);
        printf("%s = %.60s%s\n", key, value, strlen(value) > 60 ? "..." : "");
    }
    weft_safetensors_release(in);
    return status;
}

typedef enum job { RESHARD, VERIFY, LIST } job;

static weft_status work_on_snapshot(job what, const weft_snapshot *snapshot, const char *path, const char *to, bool all, int32_t servers) {
    if (what == RESHARD) return reshard_snapshot(snapshot, to, all, servers);
    if (what == LIST) {
        list_tables(snapshot);
        return WEFT_OK;
    }
    weft_status status = weft_snapshot_verify(snapshot);
    if (status == WEFT_OK) printf("%s: %d tables of %d servers, all checksums verified\n", path, (int)weft_snapshot_count(snapshot), (int)weft_snapshot_servers(snapshot));
    return status;
}

static weft_status work(job what, const char *path, const char *to, bool all, int32_t servers) {
    weft_snapshot *snapshot = NULL;
    weft_status    status = open_snapshot(path, &snapshot);
    if (status == WEFT_OK && snapshot) status = work_on_snapshot(what, snapshot, path, to, all, servers);
    else if (status == WEFT_OK && servers) {
        fprintf(stderr, "weft: '%s' is no snapshot of a parameter server: there is nothing to deal out to %d servers\n", path, (int)servers);
        return WEFT_E_INVALID;
    } else if (status == WEFT_OK) status = what == LIST ? list(path) : what == VERIFY ? verify(path) : reshard(path, to, all);
    weft_snapshot_release(snapshot);
    if (status != WEFT_OK) fprintf(stderr, "weft: %s\n", weft_error_message());
    return status;
}

/* 0: it is no number of servers. */
static int32_t servers_of(const char *text) {
    char *end;
    long  servers = strtol(text, &end, 10);
    return *text && !*end && servers > 0 && servers <= INT32_MAX ? (int32_t)servers : 0;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    bool        all = argc == 5 && strcmp(argv[4], "--all") == 0;
    int32_t     servers = argc == 6 && strcmp(argv[4], "--servers") == 0 ? servers_of(argv[5]) : 0;
    weft_status status;
    if (strcmp(what, "--help") == 0 || strcmp(what, "-h") == 0) return fputs(usage, stdout), 0;
    if (strcmp(what, "reshard") == 0 && (argc == 4 || all || servers)) status = work(RESHARD, argv[2], argv[3], all, servers);
    else if (strcmp(what, "verify") == 0 && argc == 3) status = work(VERIFY, argv[2], NULL, false, 0);
    else if (strcmp(what, "list") == 0 && argc == 3) status = work(LIST, argv[2], NULL, false, 0);
    else return fputs(usage, stderr), 2;
    return status == WEFT_OK ? 0 : 1;
}

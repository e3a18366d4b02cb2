/* weft: what is done to files of Weft's from outside.
 *
 *   weft reshard IN OUT.safetensors [--all]   parameters and states of a checkpoint, verified, as a safetensors file of nothing else, for other programs; with
 *                                             --all also what a run goes on from: solver states, step, loader
 *   weft verify FILE                          every checksum
 *   weft list FILE                            arrays with dtype, shape and bytes, and the values of a run
 *
 * IN and FILE may be an index of several files (*.safetensors.index.json), as ranks write in parallel (weft_trainer_save): `reshard` makes one file of them. A
 * checkpoint that is one file has whole arrays already, whatever the mesh; what `reshard` adds is the check, and leaving out what is the run's. Snapshots of a parameter server (weft_server_save) are files of another
 * kind: they are loaded and saved by a program. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weft.h"

enum { PIECE = 16 << 20 };

static const char usage[] = "usage: weft reshard IN OUT.safetensors [--all]\n       weft verify FILE\n       weft list FILE\n";

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

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    bool        all = argc == 5 && strcmp(argv[4], "--all") == 0;
    weft_status status;
    if (strcmp(what, "--help") == 0 || strcmp(what, "-h") == 0) return fputs(usage, stdout), 0;
    if (strcmp(what, "reshard") == 0 && (argc == 4 || all)) status = reshard(argv[2], argv[3], all);
    else if (strcmp(what, "verify") == 0 && argc == 3) status = verify(argv[2]);
    else if (strcmp(what, "list") == 0 && argc == 3) status = list(argv[2]);
    else return fputs(usage, stderr), 2;
    if (status != WEFT_OK) fprintf(stderr, "weft: %s\n", weft_error_message());
    return status == WEFT_OK ? 0 : 1;
}

/* Snapshots of a parameter server (weft_server_save) as files: looked at, verified, dealt out to another number of servers, and made one file for other
 * programs, without any server. `weft list|verify|reshard` are these functions.
 *
 * A snapshot is a manifest, a safetensors file without arrays that names a share for each server, and these shares beside it, safetensors files as well.
 * A table T is in each share as T.values [rows, width] (F32 where the table is of F16 or BF16), T.state.K alike, a state of its rule, T.updates
 * [rows] (I64) where the rule counts them, and T.keys [rows] (I64: the bits of the keys) of a sparse table. Rows of a dense one are ranges.
 *
 * An open snapshot is not changed and may be used by several threads. Calls block on the file system alone. From src/parallel/server/snapshot.c. */
#ifndef WEFT_SNAPSHOT_H
#define WEFT_SNAPSHOT_H

#include <stdbool.h>
#include <stdint.h>

#include "weft/dtype.h"
#include "weft/server.h"
#include "weft/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define WEFT_SNAPSHOT_KEY "weft.server.snapshot" /* metadata of a manifest, by which it is known among safetensors files */

typedef struct weft_snapshot weft_snapshot;

/* One table, over all shares. */
typedef struct weft_snapshot_table {
    const char          *name; /* valid until release */
    bool                 sparse;
    weft_dtype           dtype, held; /* the table's; of its arrays */
    int64_t              rows, width; /* rows that are there */
    weft_table_split     split;       /* DEFAULT: one share of a sparse table by a Weft that did not note it: then it is dealt out by the hash */
    weft_table_rule_kind rule;
    weft_solver_kind     solver;      /* SOLVER */
    int32_t              states;
    bool                 counts;      /* there are numbers of updates */
    uint64_t             clock;       /* staleness 0: the clock that had ended */
    uint64_t             bytes;       /* of all arrays */
} weft_snapshot_table;

/* Opens the manifest at `path` and all shares, and checks that they are shares of it, of the same tables, whose arrays are as said; not yet their bytes.
 * *snapshot_out is NULL on error. WEFT_E_NOT_FOUND, WEFT_E_IO, WEFT_E_CORRUPT (which share, table or array), WEFT_E_UNSUPPORTED (another version),
 * WEFT_E_NO_MEMORY. */
WEFT_MUST_CHECK weft_status weft_snapshot_open(const char *path, weft_snapshot **snapshot_out);
int32_t weft_snapshot_servers(const weft_snapshot *snapshot); /* that have saved it: shares */
int32_t weft_snapshot_count(const weft_snapshot *snapshot);   /* tables */
void    weft_snapshot_at(const weft_snapshot *snapshot, int32_t index, weft_snapshot_table *table_out);
/* NULL is fine. */
void weft_snapshot_release(weft_snapshot *snapshot);

/* Every checksum, and that each row of a dense table is in one share, and each key of a sparse one in the share where it belongs, once. WEFT_E_CORRUPT,
 * WEFT_E_NOT_FOUND (a share without checksums), WEFT_E_NO_MEMORY: of one sparse table at a time 24 bytes a row are held. */
WEFT_MUST_CHECK weft_status weft_snapshot_verify(const weft_snapshot *snapshot);

/* Verifies it, and writes it to `path` as `servers` servers would have saved it: bit for bit, keys ascending. `path` may be its own. The new manifest appears last,
 * as weft_server_save has it. WEFT_E_INVALID (servers < 1, a path that is none), errors of verify, what the file system says. */
WEFT_MUST_CHECK weft_status weft_snapshot_reshard(const weft_snapshot *snapshot, const char *path, int32_t servers);

/* Verifies it, and writes its tables to one safetensors file: whole arrays T.values and, of sparse tables, T.keys, keys ascending. `all`: also states and numbers of
 * updates, and of each table what a share says of it. Errors as reshard. */
WEFT_MUST_CHECK weft_status weft_snapshot_export(const weft_snapshot *snapshot, const char *path, bool all);

#ifdef __cplusplus
}
#endif
#endif

/* Snapshots: shares of tables in files, a manifest that names them, and what servers do to take and to load one.
 *
 * A snapshot at PATH is a manifest, a safetensors file without arrays whose metadata names a share of each server; shares lie beside it as
 * PATH.<nonce>.<index>-of-<servers>. The manifest appears last and by a rename, so PATH is always a whole snapshot, the one before or this. */
#ifndef WEFTI_SERVER_SAVES_H
#define WEFTI_SERVER_SAVES_H

#include "parallel/server/inside.h"

/* --- files (saves_file.c); nothing of the server is touched --- */

/* One table's rows of one server, as they were at a moment. */
typedef struct wefti_share_table {
    char       name[WEFT_TABLE_NAME_BYTES + 8];
    weft_dtype dtype, held;
    int64_t    width, total; /* .rows of the table's options */
    bool       sparse, counts, copied;
    weft_table_split split; /* DEFAULT: not known */
    int32_t    states, rule, solver;
    uint64_t   first, rows, clock;
    size_t     bytes;
    bool       mapped;  /* memory is that of a file (spill.h) */
    uint8_t   *memory; /* values, states, numbers of updates, keys, one after the other */
} wefti_share_table;

/* Copies the rows. WEFT_E_NO_MEMORY with the bytes. */
WEFT_MUST_CHECK weft_status wefti_share_copy(const served_table *table, wefti_share_table *share_out);
void wefti_share_release(wefti_share_table *share);
/* Writes the share of server `index` of `servers`. */
WEFT_MUST_CHECK weft_status wefti_share_write(const char *path, const wefti_share_table *tables, int32_t count, int32_t index, int32_t servers);
/* Writes the manifest over `path` once the shares that it names are there (else WEFT_E_NOT_FOUND), and then removes older shares of that path that it does not name. */
WEFT_MUST_CHECK weft_status wefti_manifest_write(const char *path, const wefti_server_share *shares, int32_t servers);

/* A table that is to be filled, in a store of its own. */
typedef struct wefti_load_table {
    served_table *table;
    wefti_store  *store;
    wefti_sum    *sum;    /* staleness 0 */
    uint64_t      filled; /* rows of a dense one */
} wefti_load_table;
/* Fills the tables' stores with the rows of server `index` of `servers`, whoever saved them. */
WEFT_MUST_CHECK weft_status wefti_snapshot_fill(const char *path, wefti_load_table *tables, int32_t count, int32_t index, int32_t servers);

/* --- work with files beside the rank's thread (saves_keeper.c) --- */

typedef struct keeper_job {
    struct keeper_job *next;
    weft_status (*run)(void *context); /* not under the server's lock */
    void       *context;
    atomic_bool done;
    weft_status status;
    char        message[WEFTI_SERVER_TEXT_BYTES];
} keeper_job;

/* Has it run by the keeper's thread, or at once where the server has no thread of its own. Under the lock. */
void wefti_keeper_run(weft_server *server, keeper_job *job);
void wefti_keeper_close(weft_server *server); /* what is running ends first; what waits is dropped */

/* --- on a server (saves.c), under the lock --- */

void wefti_saves_carry_out(weft_server *server, server_job *job); /* SAVE, COMMIT, LOAD; answers */
void wefti_saves_advance(weft_server *server); /* a clock was closed, a worker is gone */
void wefti_saves_look(weft_server *server, uint64_t now_ns);
void wefti_saves_close(weft_server *server);

#endif

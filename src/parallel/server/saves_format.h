/* How a snapshot lies in its files: the manifest, shares, and of each table in a share its arrays and what it says. */
#ifndef WEFTI_SERVER_SAVES_FORMAT_H
#define WEFTI_SERVER_SAVES_FORMAT_H

#include "parallel/server/saves.h"
#include "weft/safetensors.h"

enum { WEFTI_SNAPSHOT_NAME_BYTES = WEFT_TABLE_NAME_BYTES + 32, WEFTI_SNAPSHOT_PATH_BYTES = 2 * WEFTI_FRAME_BYTES, WEFTI_SHARE_PARTS = 1 + WEFTI_RULE_STATES + 2 };

/* --- a table of a share: metadata under its name, arrays name.values [rows, width] in the held dtype, name.state.K alike, name.updates [rows] (I64) where
 * the rule counts them, name.keys [rows] (I64) of a sparse table --- */

/* Its parts in the order of memory: values, states, then the others where they are kept. */
int32_t     wefti_share_parts(const wefti_share_table *share, int32_t parts_out[WEFTI_SHARE_PARTS]);
size_t      wefti_share_row_bytes(const wefti_share_table *share, int32_t part);
const char *wefti_share_part_name(const char *table, int32_t part, char text[WEFTI_SNAPSHOT_NAME_BYTES]);
weft_shape  wefti_share_part_shape(const wefti_share_table *share, int32_t part);
weft_dtype  wefti_share_part_dtype(const wefti_share_table *share, int32_t part);
/* Metadata and arrays of a share that is being written. */
WEFT_MUST_CHECK weft_status wefti_share_declare(weft_safetensors_writer *writer, const wefti_share_table *share);
/* What a share says of a table, and its arrays by part; no row is looked at. WEFT_E_NOT_FOUND, WEFT_E_CORRUPT. */
WEFT_MUST_CHECK weft_status wefti_share_find(const weft_safetensors *file, const char *path, const char *name, wefti_share_table *share_out,
                                             const weft_safetensors_entry *entries_out[WEFTI_SHARE_PARTS]);

/* --- shares and the manifest --- */

/* What is behind the snapshot's path in the name of a share: .<16 digits>.INDEX-of-SERVERS. */
void                        wefti_share_suffix(uint64_t nonce, int32_t index, int32_t servers, char suffix_out[WEFTI_SUFFIX_BYTES]);
WEFT_MUST_CHECK weft_status wefti_share_begin(const char *path, int32_t index, int32_t servers, weft_safetensors_writer **writer_out);
/* That it is the share which the manifest means: rows of one that is read twice would hide that another's are missing. */
WEFT_MUST_CHECK weft_status wefti_share_check(const weft_safetensors *file, const char *path, int32_t index, int32_t servers);
/* How many shares there are, and where one is. */
WEFT_MUST_CHECK weft_status wefti_manifest_read(const weft_safetensors *manifest, int32_t *servers_out);
WEFT_MUST_CHECK weft_status wefti_manifest_share(const weft_safetensors *manifest, const char *path, int32_t index, int32_t servers,
                                                 char whole_out[WEFTI_SNAPSHOT_PATH_BYTES]);

#endif

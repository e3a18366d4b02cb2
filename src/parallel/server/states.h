/* What trainers ask a server for: its world, and the states of a table's rule, which they keep in checkpoints. */
#ifndef WEFTI_SERVER_STATES_H
#define WEFTI_SERVER_STATES_H

#include "weft/server.h"

weft_world *wefti_server_world(const weft_server *server); /* that it was created in */
int64_t     wefti_server_timeout(const weft_server *server); /* of requests that do not say theirs */

/* As weft_table_start_call, of what a server holds up for no longer than that (0: its own time) where it waits for clocks, and then answers WEFT_E_TIMEOUT; how
 * long the server may be silent is not less by that. */
WEFT_MUST_CHECK weft_status wefti_table_start_slice(weft_table *table, const weft_table_call *call, uint64_t slice_ns, weft_request **request_out);

/* WEFT_PULL or WEFT_SET of a dense table's state `state`, [rows, width] as the table keeps it, and of how many updates its rows have had (of a server's
 * first row; SET: of all). The table's dtype is what it keeps: F32, F64. Both belong to the request until it has ended. As weft_table_start_call;
 * what a server refuses comes with the request: WEFT_E_UNSUPPORTED (a sparse table, another dtype), WEFT_E_INVALID (the rule has no such state). */
WEFT_MUST_CHECK weft_status wefti_table_start_state(weft_table *table, weft_request_kind kind, int32_t state, void *values, int64_t *updates,
                                                    weft_request **request_out);

/* What this worker has left out of its pushes of a dense table, [rows, width]: to `values`, or from there. Not beside a push. */
bool wefti_table_keeps(const weft_table *table); /* there may be something */
WEFT_MUST_CHECK weft_status wefti_table_kept(weft_table *table, float *values, bool out);

/* How many coded pushes of this table this worker has made: random rounding draws by it. Not beside a push. */
uint64_t wefti_table_pushes(weft_table *table);
void     wefti_table_set_pushes(weft_table *table, uint64_t pushes);

#endif

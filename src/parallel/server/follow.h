/* Copies that the other side follows: values in memory that is not the server's go through memory that both map, and whoever reads them there begins when
 * the first are there, and not when all are. */
#ifndef WEFTI_SERVER_FOLLOW_H
#define WEFTI_SERVER_FOLLOW_H

#include "parallel/server/inside.h"

/* Of a part of a request: how many bytes are there. A server that waits no longer adds WEFTI_GIVEN_UP; the worker, who sees that no later than with its last
 * bytes, asks once more. */
typedef struct wefti_line {
    _Alignas(WEFTI_CACHE_LINE) _Atomic uint64_t sent; /* of what is pushed, by the worker */
    _Atomic uint64_t put;                             /* of the rows, by the server … */
    _Atomic uint32_t shown;                           /* … in its memory of this number (shown.c), which stands here before any are put; else in the worker's */
    _Atomic uint32_t apart;                           /* the worker's stores go past the caches: the other core has others (stream.h) */
} wefti_line;
#define WEFTI_GIVEN_UP (UINT64_C(1) << 63)
/* `shown` of a worker that would read them there. */
#define WEFTI_WANTS_SHOWN UINT32_MAX

/* --- the worker's side; under the lock but for the last --- */

/* Decides which of a request's copies, of so many bytes and staging that it has, are followed: copies_out, copies_in. */
void wefti_follow_choose(weft_server *server, weft_request *request, size_t bytes);
/* A part that is being started: its line, if it has one, in the frame, and in memory. What its server is not to follow is copied. True: wefti_follow_send is
 * to be called once the frame is on its way. */
bool wefti_follow_start(weft_server *server, request_part *part, wefti_server_frame *head);
/* Copies what is pushed. True: the server has given up, and is to be sent the frame again, with the values: it may have written to what was copied. */
bool wefti_follow_send(weft_server *server, request_part *part);
/* Copies what servers have put. */
void wefti_follow_take(weft_server *server, bool *moved_out);
/* Copies the rest of rows that have all come. WEFT_E_PEER and the like: they are in memory of a server that is gone. */
WEFT_MUST_CHECK weft_status wefti_follow_finish(weft_request *request);

/* --- the server's side --- */

/* The line that a request names; NULL: none. WEFT_E_CORRUPT: where no line can be. */
WEFT_MUST_CHECK weft_status wefti_follow_find(weft_server *server, const server_job *job, wefti_line **line_out);
/* Waits until all that is pushed is there. WEFT_E_AGAIN: it does not come, and the request is to be forgotten, as if it had not come. */
WEFT_MUST_CHECK weft_status wefti_follow_wait(weft_server *server, const served_table *table, const server_job *job);
/* Whether a push is added while it comes, and not waited for … */
bool wefti_follow_adds(const served_table *table, const server_job *job);
/* … which this does. WEFT_E_AGAIN: as above; the rows are as they were. */
WEFT_MUST_CHECK weft_status wefti_follow_add(weft_server *server, served_table *table, server_job *job);

/* --- rows that servers show (shown.c) --- */

/* Memory of a server in which a table's rows are, and from which workers on its host copy them: first a line for each worker, where that counts how often it
 * has done so. */
typedef struct wefti_shown_line { _Alignas(WEFTI_CACHE_LINE) _Atomic uint64_t taken; } wefti_shown_line;
static inline size_t wefti_shown_head(int32_t workers) { return wefti_align_up((size_t)workers * sizeof(wefti_shown_line), 4096); }

/* The server: shows all rows of a dense table to a worker that pulls them, by its line. False: they are to go the ordinary way. */
bool wefti_shown_begin(weft_server *server, served_table *table, const server_job *job, wefti_line *line);
/* The rows are to change: where somebody may be reading them, they go on in other memory. */
void wefti_shown_keep(const weft_server *server, served_table *table);
void wefti_shown_free(weft_server *server, served_table *table); /* after its store */
/* The table has another store: its rows are where nobody sees them, as at first. */
void wefti_shown_forget(weft_server *server, served_table *table);

/* The worker: where a part's rows are to be copied from. WEFT_E_AGAIN: word of that memory is still on its way. Under the lock. */
WEFT_MUST_CHECK weft_status wefti_shown_find(const request_part *part, const uint8_t **rows_out);
/* It does not read them any more. Under the lock. */
void wefti_shown_let_go(const request_part *part);

#endif

/* Copies that the other side follows: values in memory that is not the server's go through memory that both map, and whoever reads them there begins when
 * the first are there, and not when all are. */
#ifndef WEFTI_SERVER_FOLLOW_H
#define WEFTI_SERVER_FOLLOW_H

#include "parallel/server/inside.h"

/* Of a part of a request: how many bytes are there. A server that waits no longer adds WEFTI_GIVEN_UP; the worker, who sees that no later than with its last
 * bytes, asks once more. */
typedef struct wefti_line {
    _Alignas(WEFTI_CACHE_LINE) _Atomic uint64_t sent; /* of what is pushed, by the worker */
    _Atomic uint64_t put;                             /* of the rows, by the server */
} wefti_line;
#define WEFTI_GIVEN_UP (UINT64_C(1) << 63)

/* --- the worker's side; under the lock but for the last --- */

/* Decides which of a request's copies, of so many bytes and staging that it has, are followed: copies_out, copies_in. */
void wefti_follow_choose(weft_server *server, weft_request *request, size_t bytes);
/* A part that is being started: its line, if it has one, in the frame, and in memory. What its server is not to follow is copied. True: wefti_follow_send is
 * to be called once the frame is on its way. */
bool wefti_follow_start(weft_server *server, request_part *part, wefti_server_frame *head);
/* Copies what is pushed. True: the server has given up, and is to be sent the frame again, without the line. */
bool wefti_follow_send(weft_server *server, request_part *part);
/* Copies what servers have put. */
void wefti_follow_take(weft_server *server, bool *moved_out);
/* Copies the rest of rows that have all come. */
void wefti_follow_finish(weft_request *request);

/* --- the server's side --- */

/* The line that a request names; NULL: none. WEFT_E_CORRUPT: where no line can be. */
WEFT_MUST_CHECK weft_status wefti_follow_find(weft_server *server, const server_job *job, wefti_line **line_out);
/* Waits until all that is pushed is there. WEFT_E_AGAIN: it does not come, and the request is to be forgotten, as if it had not come. */
WEFT_MUST_CHECK weft_status wefti_follow_wait(weft_server *server, const served_table *table, const server_job *job);
/* Whether a push is added while it comes, and not waited for … */
bool wefti_follow_adds(const served_table *table, const server_job *job);
/* … which this does. WEFT_E_AGAIN: as above; the rows are as they were. */
WEFT_MUST_CHECK weft_status wefti_follow_add(weft_server *server, served_table *table, server_job *job);

#endif

/* Requests of entries (weft/entries.h): the worker's side and the server's. */
#ifndef WEFTI_SERVER_ENTRIES_H
#define WEFTI_SERVER_ENTRIES_H

#include "parallel/server/inside.h"
#include "weft/entries.h"

/* --- the worker's --- */

static inline bool wefti_entries_are_in(const weft_request *request) { return request->call.entries || request->call.pulled; }
/* What is wrong with a call of entries. */
WEFT_MUST_CHECK weft_status wefti_entries_check(const weft_table *table, const weft_table_call *call);
/* Packs what is pushed, part by part, as coded parts are. Its keys have been made. Not under the lock. */
WEFT_MUST_CHECK weft_status wefti_entries_prepare(weft_server *server, weft_request *request);
/* What a server answers to a pull: takes it, or begins to receive it. Under the lock. */
WEFT_MUST_CHECK weft_status wefti_entries_reply(weft_server *server, request_part *part, size_t room, void (*done)(weft_server *server, server_mover *mover));
/* Puts what came together for the caller. Not under the lock. */
WEFT_MUST_CHECK weft_status wefti_entries_pulled(weft_request *request);
void wefti_entries_give(weft_server *server, weft_request *request); /* back what came; under the lock */

/* table.c: starts a call, once one of the requests in flight has ended, and waits for it. */
WEFT_MUST_CHECK weft_status wefti_table_run(weft_table *table, const weft_table_call *call);

/* --- the server's --- */

/* Looks at what a push brings: job->entries. */
WEFT_MUST_CHECK weft_status wefti_entries_find(const served_table *table, server_job *job);
/* The answer to a pull. */
WEFT_MUST_CHECK weft_status wefti_entries_answer(weft_server *server, const served_table *table, server_job *job);

#endif

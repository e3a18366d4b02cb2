/* Requests whose values are coded (weft_table_options.push, .pull): the worker's side and the server's. */
#ifndef WEFTI_SERVER_CODED_H
#define WEFTI_SERVER_CODED_H

#include "parallel/server/coding.h"
#include "parallel/server/inside.h"

/* --- the worker's --- */

/* What a worker keeps for a table's codecs; NULL where it has none. */
WEFT_MUST_CHECK weft_status wefti_coder_create(const weft_table_options *options, wefti_coder **coder_out);
void wefti_coder_release(wefti_coder *coder); /* NULL is fine */

/* What is kept goes before the next push: servers have other rows. Under the server's lock. */
void wefti_coder_forget(weft_table *table);

/* Whether the request's values are coded, there and back. */
bool wefti_coded_pushes(const weft_request *request);
bool wefti_coded_pulls(const weft_request *request);
/* Codes what is pushed, part by part, with what was kept of earlier pushes, and keeps what this one leaves out. Not under the lock. */
WEFT_MUST_CHECK weft_status wefti_coded_push(weft_server *server, weft_request *request);
/* Bytes of so many rows as they are pulled. */
size_t wefti_coded_pull_bytes(const weft_table_options *options, int64_t rows);
/* From staging_in to where the caller wants the rows. Not under the lock. */
WEFT_MUST_CHECK weft_status wefti_coded_pulled(weft_server *server, weft_request *request);

/* --- the server's --- */

/* What the request brings, as rows: job->values, and in job->chosen which of the request's these are. Its rows have been found: their count is true. */
WEFT_MUST_CHECK weft_status wefti_coded_read(weft_server *server, const served_table *table, server_job *job);
/* Gives the rows that came to the clock, and only these. */
WEFT_MUST_CHECK weft_status wefti_coded_give(weft_server *server, served_table *table, server_job *job);
/* Codes the rows in job->answer. */
WEFT_MUST_CHECK weft_status wefti_coded_answer(weft_server *server, const served_table *table, server_job *job);

#endif

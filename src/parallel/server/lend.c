/* Answers from the rows themselves: sent from where they lie, or put where the worker wants them.
 *
 * A pull of all rows of a dense table is sent from where they lie, so that memory is read once, by the system. What is to change rows that are
 * being sent has what is not sent yet copied first, into room that was taken with the answer: a pull sees one moment, whatever comes after it,
 * and a change never waits for who pulls, nor fails for want of memory. Costs nothing where nothing changes meanwhile, else the copy. */
#include <string.h>

#include "parallel/server/follow.h"

/* Bytes in a nanosecond that ordinary copies reach where nobody has read the memory since the last one (50; where somebody has, 7 to 15). */
enum { QUICK_PUTS = 20, PUT_BYTES = 64 << 10 };
/* Fewer are in the caches of both, and put and taken at once in less time than by who follows (256 KiB: 31 GB/s where that had 18). */
enum { FOLLOWED_BYTES = 2 << 20 };

/* Tells the worker after each piece, where it follows. What is timed is all, or the second piece. */
static void put(const weft_server *server, uint8_t *out, const uint8_t *rows, size_t bytes, wefti_pace *pace, wefti_line *line) {
    bool timed = wefti_pace_times(pace, bytes);
    for (size_t at = 0, piece; at < bytes; at += piece) {
        bool     times = timed && at == (line ? PUT_BYTES : 0), streams = pace->streams && !times;
        uint64_t begin_ns = times ? wefti_host_now(server->host) : 0;
        piece = bytes - at < PUT_BYTES || !line ? bytes - at : PUT_BYTES;
        if (streams) wefti_stream_copy(out + at, rows + at, piece);
        else memcpy(out + at, rows + at, piece);
        if (streams) wefti_stream_fence();
        if (times) wefti_pace_note(pace, piece, wefti_host_now(server->host) - begin_ns, QUICK_PUTS);
        if (line) atomic_store_explicit(&line->put, at + piece, memory_order_release);
    }
}

bool wefti_lend_put(weft_server *server, served_table *table, const server_job *job, uint8_t *out) {
    int64_t        elements = 0;
    size_t         bytes = (size_t)job->frame.count * table->row_bytes;
    const uint8_t *rows = wefti_store_vector(table->store, &elements);
    wefti_pace    *pace = &server->sessions[job->worker].pace;
    wefti_line    *line = NULL;
    if (!rows || job->keys || bytes < PUT_BYTES || wefti_follow_find(server, job, &line) != WEFT_OK) return false;
    rows += (size_t)(job->frame.first - table->begin) * table->row_bytes;
    if (line && wefti_shown_begin(server, table, job, line)) return true;
    table->pulled = true;
    put(server, out, rows, bytes, pace, bytes < FOLLOWED_BYTES ? NULL : line);
    return true;
}

bool wefti_lend_rows(const weft_server *server, served_table *table, server_job *job) {
    int64_t        elements = 0;
    size_t         bytes = (size_t)job->frame.count * table->row_bytes;
    const uint8_t *rows = wefti_store_vector(table->store, &elements);
    if (!server->wire->ops->send_from || !rows || job->keys || bytes <= WEFTI_REPLY_BYTES) return false;
    job->lent = rows + (size_t)(job->frame.first - table->begin) * table->row_bytes;
    job->lender = table;
    job->next_lent = table->lent;
    table->lent = job;
    return true;
}

void wefti_lend_end_all(weft_server *server, served_table *table) {
    wefti_shown_keep(server, table);
    table->pulled = false;
    while (table->lent) {
        server_job *job = table->lent;
        wefti_server_move_from(server, &job->out, job->answer->data);
        wefti_lend_end(job);
    }
}

void wefti_lend_end(server_job *job) {
    if (!job->lender) return;
    server_job **at = &job->lender->lent;
    while (*at != job) at = &(*at)->next_lent;
    *at = job->next_lent;
    job->lender = NULL;
    job->lent = NULL;
}

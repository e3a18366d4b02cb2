/* Copies that the other side follows.
 *
 * Idea: what is pushed from the program's memory is copied once, to memory that the server maps, and read there; what is pulled to it likewise, in
 * the other direction. One after the other these take twice the time of either, on one core while the other is idle. So a line that both
 * map says how much is there; the frame goes before the copy, and the reader follows it piece by piece.
 *
 * A worker may die, or lose its core, in the middle of its copy. What a server adds before it has all changes places with what was added to: the rows as
 * they were stand where the update stood, from where they are put back. A push counts whole or not at all, and nothing goes through memory once more for that. Who waits
 * gives up soon, by one atomic step on the line, so that both sides know; the worker then sends the values themselves, from where the program has them, before
 * anything else. Nothing else is carried out meanwhile, so nobody sees rows between two pieces.
 * Cost: of a server's time at most PATIENCE_NS for each piece, MOST_NS in all. */
#include "parallel/server/follow.h"

#include <string.h>

#include "core/base/pause.h"

/* Fewer bytes are copied in less time than the other side takes to see it; of more, the worker's lock would be held too long. */
enum { LEAST_BYTES = 128 << 10, MOST_BYTES = 16 << 20, PIECE_BYTES = 64 << 10, TAKE_BYTES = 256 << 10 };
/* Without a piece, which takes some 3 us. */
#define PATIENCE_NS (100 * UINT64_C(1000))
/* For all pieces: of a worker that says something else each time. The longest copy takes a fifth of it. */
#define MOST_NS (25 * WEFTI_MILLISECOND_NS)
enum { SPINS_A_CLOCK = 64 };
/* Requests after one that was given up: cores are wanted by others. */
enum { ALONE = 32 };
/* Bytes in a nanosecond that ordinary copies reach where the cores share a cache: 33, and 9 to 18 where those before went past the caches; else 2.4. */
enum { QUICK_COPIES = 8 };

/* --- the worker's side --- */

void wefti_follow_choose(weft_server *server, weft_request *request, size_t bytes) {
    const weft_table *table = request->table;
    bool   alone = !server->twin && !server->of; /* a twin reads the same memory, and is told later */
    size_t lines = (size_t)server->in_flight * (size_t)server->servers;
    if (!alone || !wefti_server_is_hot(server) || bytes < LEAST_BYTES || request->call.keys || request->own_keys || table->options.sparse) return;
    if (!server->lines && wefti_server_take(server, lines * sizeof(wefti_line), true, &server->lines) != WEFT_OK) return;
    request->copies_out = request->staging_out && bytes <= MOST_BYTES && server->alone == 0;
    if (server->alone > 0) server->alone--;
    request->copies_in = request->staging_in;
    for (int32_t i = 0; i < server->servers; i++) request->parts[i].line = NULL;
    server->copying += request->copies_in;
}

static size_t bytes_of(const request_part *part) { return (size_t)part->count * part->request->table->row_bytes; }
static size_t offset_of(const request_part *part) { return (size_t)part->first * part->request->table->row_bytes; }

static void stage(const request_part *part, size_t at, size_t bytes, bool streams) {
    const weft_request *request = part->request;
    at += offset_of(part);
    if (streams) wefti_stream_copy(request->staging_out->data + at, (const uint8_t *)request->call.send + at, bytes);
    else memcpy(request->staging_out->data + at, (const uint8_t *)request->call.send + at, bytes);
    if (streams) wefti_stream_fence();
}

bool wefti_follow_start(weft_server *server, request_part *part, wefti_server_frame *head) {
    const weft_request *request = part->request;
    bool long_way = wefti_server_rank(server, part->server) != server->rank && (request->copies_out || request->copies_in) && bytes_of(part) >= LEAST_BYTES;
    bool sends = long_way && request->copies_out && head->flags & WEFTI_SERVER_SENT_IN_PLACE;
    if (request->copies_out && !sends) stage(part, 0, bytes_of(part), true);
    /* Where a line comes with values the server may leave others in their place: not in memory that the program lends. */
    if (request->call.send && !request->staging_out && head->flags & WEFTI_SERVER_SENT_IN_PLACE) return false;
    if (!long_way || !(sends || (request->copies_in && head->flags & WEFTI_SERVER_RECEIVED_IN_PLACE))) return false;
    size_t at = (size_t)(request - server->requests) * (size_t)server->servers + (size_t)part->server;
    part->line = (wefti_line *)(void *)server->lines->data + at;
    atomic_store_explicit(&part->line->sent, sends ? 0 : bytes_of(part), memory_order_relaxed); /* the frame makes it known */
    atomic_store_explicit(&part->line->put, 0, memory_order_relaxed);
    atomic_store_explicit(&part->line->apart, server->pace.streams, memory_order_relaxed);
    atomic_store_explicit(&part->line->shown, request->copies_in ? WEFTI_WANTS_SHOWN : 0, memory_order_relaxed);
    head->line_region = server->lines->region->id;
    head->line = (uint32_t)at;
    return sends;
}

bool wefti_follow_send(weft_server *server, request_part *part) {
    const size_t all = bytes_of(part);
    wefti_pace  *pace = &server->pace;
    bool         timed = wefti_pace_times(pace, all); /* one of its pieces */
    uint64_t     before = 0;
    for (size_t at = 0, bytes; at < all; at += bytes) {
        bool     times = timed && at == PIECE_BYTES;
        uint64_t begin_ns = times ? wefti_host_now(server->host) : 0;
        bytes = all - at < PIECE_BYTES ? all - at : PIECE_BYTES;
        stage(part, at, bytes, pace->streams && !times);
        if (times) wefti_pace_note(pace, bytes, wefti_host_now(server->host) - begin_ns, QUICK_COPIES);
        before = atomic_fetch_add_explicit(&part->line->sent, bytes, memory_order_acq_rel);
    }
    if (before & WEFTI_GIVEN_UP) server->alone = ALONE;
    return before & WEFTI_GIVEN_UP;
}

static void take(request_part *part, const uint8_t *rows, size_t bytes) {
    memcpy((uint8_t *)part->request->call.receive + offset_of(part) + part->taken, rows + part->taken, bytes);
    part->taken += bytes;
}

static bool take_part(request_part *part) {
    const uint8_t *rows = NULL;
    size_t         there = part->line ? atomic_load_explicit(&part->line->put, memory_order_acquire) : 0, all = bytes_of(part);
    if (there > all) there = all;
    if (there <= part->taken || wefti_shown_find(part, &rows) != WEFT_OK) return false;
    take(part, rows, there - part->taken < TAKE_BYTES ? there - part->taken : TAKE_BYTES);
    return true;
}

void wefti_follow_take(weft_server *server, bool *moved_out) {
    for (int32_t i = 0; i < server->in_flight; i++) {
        const weft_request *request = &server->requests[i];
        if (request->state != REQUEST_FLYING || !request->copies_in) continue;
        for (int32_t k = 0; k < server->servers; k++)
            if (take_part(&request->parts[k])) *moved_out = true;
    }
}

static bool is_found(const void *context) {
    const uint8_t *rows;
    return wefti_shown_find(context, &rows) != WEFT_E_AGAIN;
}

weft_status wefti_follow_finish(weft_request *request) {
    weft_server *server = request->server;
    for (int32_t i = 0; i < server->servers; i++) {
        request_part  *part = &request->parts[i];
        const uint8_t *rows = NULL;
        if (bytes_of(part) == part->taken) continue;
        pthread_mutex_lock(&server->lock);
        weft_status status = wefti_shown_find(part, &rows);
        pthread_mutex_unlock(&server->lock);
        if (status == WEFT_E_AGAIN) {
            status = wefti_server_wait(server, is_found, part, wefti_deadline_after(wefti_host_now(server->host), server->timeout_ns));
            if (status != WEFT_OK) return wefti_fail(WEFT_E_TIMEOUT, "rank %d, which serves, shows rows in memory that it does not announce", (int)wefti_server_rank(server, i));
            pthread_mutex_lock(&server->lock);
            status = wefti_shown_find(part, &rows);
            pthread_mutex_unlock(&server->lock);
        }
        if (status != WEFT_OK) return status;
        take(part, rows, bytes_of(part) - part->taken);
    }
    return WEFT_OK;
}

/* --- the server's side --- */

weft_status wefti_follow_find(weft_server *server, const server_job *job, wefti_line **line_out) {
    wefti_wire_peer_region there = {0};
    const size_t           at = (size_t)job->frame.line * sizeof(wefti_line);
    *line_out = NULL;
    if (!job->frame.line_region) return WEFT_OK;
    if (!wefti_server_maps(server)) return wefti_fail(WEFT_E_CORRUPT, "rank %d names memory that this wire does not map", (int)job->worker);
    WEFTI_TRY(server->wire->ops->peer_region(server->wire, job->worker, job->frame.line_region, &there));
    if (!there.base || at + sizeof(wefti_line) > there.size_bytes)
        return wefti_fail(WEFT_E_CORRUPT, "rank %d names line %u of its region %u, which has %zu bytes", (int)job->worker, (unsigned)job->frame.line,
                          (unsigned)job->frame.line_region, there.size_bytes);
    *line_out = (wefti_line *)((uint8_t *)there.base + at);
    return WEFT_OK;
}

/* begun_ns: of the first look at the clock in this request; 0 before. */
static bool wait_for(const weft_server *server, wefti_line *line, uint64_t bytes, uint64_t *begun_ns) {
    uint64_t last = 0, since_ns = 0, there;
    for (uint32_t spins = 1; (there = atomic_load_explicit(&line->sent, memory_order_acquire)) < bytes; spins++) {
        wefti_pause_core();
        if (spins % SPINS_A_CLOCK) continue;
        uint64_t now_ns = wefti_host_now(server->host);
        if (!*begun_ns) *begun_ns = now_ns;
        if (there != last || !since_ns) since_ns = now_ns;
        if (now_ns - since_ns > PATIENCE_NS || now_ns - *begun_ns > MOST_NS) return false;
        last = there;
    }
    return true;
}

/* False: the rest has come in this moment. */
static bool give_up(wefti_line *line, uint64_t all) { return atomic_fetch_or_explicit(&line->sent, WEFTI_GIVEN_UP, memory_order_acq_rel) < all; }

weft_status wefti_follow_wait(weft_server *server, const served_table *table, const server_job *job) {
    const uint64_t all = job->frame.count * table->row_bytes;
    uint64_t       begun_ns = 0;
    wefti_line    *line = NULL;
    if (!(job->frame.flags & WEFTI_SERVER_SENT_IN_PLACE)) return WEFT_OK; /* the line is of rows that are pulled */
    WEFTI_TRY(wefti_follow_find(server, job, &line));
    return !line || wait_for(server, line, all, &begun_ns) || !give_up(line, all) ? WEFT_OK : WEFT_E_AGAIN;
}

bool wefti_follow_adds(const served_table *table, const server_job *job) {
    int64_t elements = 0;
    return job->frame.line_region && job->frame.flags & WEFTI_SERVER_SENT_IN_PLACE && job->frame.kind != WEFTI_SERVER_SET && !job->keys && !job->frame.part &&
           table->options.staleness != 0 && table->options.rule.kind == WEFT_TABLE_ADD && wefti_store_vector(table->store, &elements);
}

weft_status wefti_follow_add(weft_server *server, served_table *table, server_job *job) {
    const size_t   row_bytes = table->row_bytes, all = (size_t)job->frame.count * row_bytes;
    const uint64_t begin = job->frame.first - table->begin, most = PIECE_BYTES / row_bytes > 0 ? PIECE_BYTES / row_bytes : 1;
    int64_t        elements = 0;
    uint64_t       begun_ns = 0;
    uint8_t       *values = (uint8_t *)(uintptr_t)job->values; /* of the worker's staging, which it does not read again */
    wefti_line    *line = NULL;
    WEFTI_TRY(wefti_follow_find(server, job, &line));
    bool       whole = false; /* then what the line says later counts no more */
    const bool streams = table->shows && atomic_load_explicit(&line->apart, memory_order_relaxed);
    for (uint64_t done = 0, count; done < job->frame.count; done += count) {
        size_t at = (size_t)done * row_bytes;
        count = job->frame.count - done < most ? job->frame.count - done : most;
        whole = whole || atomic_load_explicit(&line->sent, memory_order_acquire) >= all;
        if (!whole && !wait_for(server, line, at + count * row_bytes, &begun_ns) && give_up(line, all)) {
            memcpy((uint8_t *)wefti_store_vector(table->store, &elements) + begin * row_bytes, values, at);
            return WEFT_E_AGAIN;
        }
        wefti_store_trade(table->store, begin + done, (int64_t)count, values + at, streams);
    }
    table->shows = false;
    return WEFT_OK;
}

/* Rows that a server shows: workers on its host copy them from where they lie to where their programs want them.
 *
 * Idea: rows for a program's own memory were put into memory that both map, and copied once more there, for each worker and each pull. So the rows of a table that
 * is pulled that way come to lie in memory that workers map: one copy, by the worker's core, which reads what it has read before from its own caches.
 *
 * A pull sees one moment, and no server waits for a worker: each worker counts in a line of that memory how often it has read it, and rows that are to change while
 * somebody may be reading them go on in a second memory of the kind, by one copy. Rows are shown only while nobody reads that one, so it is free when it is
 * needed; else they go the ordinary way. So do they at the first pull after a change: what a server has just written it puts elsewhere sooner than another core reads
 * it, and what others have read it writes more slowly. A worker that dies while it reads, or counts wrongly, costs this way. The price is memory for the rows once more. */
#include <string.h>

#include "parallel/server/follow.h"

/* Of more, two copies take no longer than one, and memory is dear. */
static const size_t MOST_BYTES = (size_t)256 << 20;

typedef struct shown_memory {
    server_buffer *buffer;
    uint64_t      *given; /* [workers] how often it was shown */
} shown_memory;

struct server_shown {
    shown_memory memory[2];
    int          now; /* where the rows are */
};

/* --- the server's side --- */

static uint8_t *rows_of(const weft_server *server, const shown_memory *memory) { return memory->buffer->data + wefti_shown_head(server->workers); }

/* Whether a worker may be reading it. */
static bool is_read(const weft_server *server, const shown_memory *memory) {
    const wefti_shown_line *lines = (const wefti_shown_line *)(const void *)memory->buffer->data;
    for (int32_t worker = 0; worker < server->workers; worker++)
        if (atomic_load_explicit(&lines[worker].taken, memory_order_acquire) != memory->given[worker]) return true;
    return false;
}

static void free_memory(weft_server *server, shown_memory *memory) {
    if (memory->buffer && server->wire && is_read(server, memory)) wefti_free(memory->buffer, sizeof *memory->buffer); /* it stays until the wire closes */
    else if (memory->buffer) wefti_server_free_buffer(server, memory->buffer);
    if (memory->given) wefti_free(memory->given, (size_t)server->workers * sizeof *memory->given);
}

static void free_shown(weft_server *server, server_shown *shown) {
    for (int i = 0; i < 2; i++) free_memory(server, &shown->memory[i]);
    wefti_free(shown, sizeof *shown);
}

static weft_status make(weft_server *server, size_t bytes, server_shown **shown_out) {
    const size_t  head = wefti_shown_head(server->workers), list_bytes = (size_t)server->workers * sizeof(uint64_t);
    server_shown *shown = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *shown, "who reads a table's rows", &shown));
    for (int i = 0; i < 2; i++) {
        shown_memory *memory = &shown->memory[i];
        weft_status   status = wefti_alloc(list_bytes, "who reads a table's rows", &memory->given);
        if (status == WEFT_OK) status = wefti_server_make_buffer(server, head + bytes, true, &memory->buffer); /* zeros */
        if (status != WEFT_OK) {
            free_shown(server, shown);
            return status;
        }
    }
    *shown_out = shown;
    return WEFT_OK;
}

bool wefti_shown_begin(weft_server *server, served_table *table, const server_job *job, wefti_line *line) {
    const size_t bytes = wefti_store_vector_bytes(table->store);
    if (atomic_load_explicit(&line->shown, memory_order_relaxed) != WEFTI_WANTS_SHOWN) return false; /* the frame made it known */
    if (!table->pulled || job->frame.first != table->begin || job->frame.count != table->rows || bytes > MOST_BYTES || table->lent) return false;
    if (!table->shown) {
        if (make(server, bytes, &table->shown) != WEFT_OK) return false;
        wefti_store_move(table->store, rows_of(server, &table->shown->memory[0]));
    }
    server_shown *shown = table->shown;
    if (is_read(server, &shown->memory[!shown->now])) return false;
    shown->memory[shown->now].given[job->worker]++;
    table->shows = true;
    atomic_store_explicit(&line->shown, shown->memory[shown->now].buffer->region->id, memory_order_relaxed);
    atomic_store_explicit(&line->put, (uint64_t)job->frame.count * table->row_bytes, memory_order_release);
    return true;
}

void wefti_shown_keep(const weft_server *server, served_table *table) {
    server_shown *shown = table->shown;
    if (!shown || !is_read(server, &shown->memory[shown->now])) return;
    shown->now = !shown->now;
    wefti_store_move(table->store, rows_of(server, &shown->memory[shown->now]));
}

void wefti_shown_free(weft_server *server, served_table *table) {
    if (table->shown) free_shown(server, table->shown);
    table->shown = NULL;
}

void wefti_shown_forget(weft_server *server, served_table *table) {
    wefti_shown_free(server, table);
    table->pulled = table->shows = false;
}

/* --- the worker's side --- */

/* Of a part's rows that are shown; 0: they are not. */
static uint32_t region_of(const request_part *part) {
    const uint32_t region = part->line ? atomic_load_explicit(&part->line->shown, memory_order_acquire) : 0;
    return region == WEFTI_WANTS_SHOWN ? 0 : region;
}

/* The memory that a part's line names, from its beginning. */
static weft_status find_memory(const request_part *part, size_t bytes, uint8_t **memory_out) {
    weft_server           *server = part->request->server;
    const uint32_t         region = region_of(part);
    const int32_t          rank = wefti_server_rank(server, part->server);
    wefti_wire_peer_region there = {0};
    WEFTI_TRY(server->wire->ops->peer_region(server->wire, rank, region, &there));
    if (!there.base || there.size_bytes < bytes)
        return wefti_fail(WEFT_E_CORRUPT, "rank %d, which serves, shows %zu bytes in its region %u, which has %zu", (int)rank, bytes, (unsigned)region, there.size_bytes);
    *memory_out = there.base;
    return WEFT_OK;
}

weft_status wefti_shown_find(const request_part *part, const uint8_t **rows_out) {
    const weft_request *request = part->request;
    const size_t        row_bytes = request->table->row_bytes, head = wefti_shown_head(request->server->workers);
    uint8_t            *memory = NULL;
    if (!region_of(part)) {
        *rows_out = request->staging_in->data + (size_t)part->first * row_bytes;
        return WEFT_OK;
    }
    WEFTI_TRY(find_memory(part, head + (size_t)part->count * row_bytes, &memory));
    *rows_out = memory + head;
    return WEFT_OK;
}

void wefti_shown_let_go(const request_part *part) {
    const weft_server *server = part->request->server;
    uint8_t           *memory = NULL;
    if (!region_of(part)) return;
    if (find_memory(part, wefti_shown_head(server->workers), &memory) != WEFT_OK) return;
    atomic_fetch_add_explicit(&((wefti_shown_line *)(void *)memory)[server->rank].taken, 1, memory_order_release);
}

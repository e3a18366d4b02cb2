/* Moving bytes for servers and workers: posting with patience, long bodies in pieces, buffers that are used again.
 *
 * What the wire cannot take now (its queues are full, the link is still coming up) waits in one queue in the order in which it was posted.
 * That is tried again at every progress; behind a message that its peer's link does not take, none for that peer overtakes it. Receives do:
 * two ends whose queues are full of sends would else wait for each other's receives. */
#include <string.h>

#include "parallel/server/inside.h"

/* Idle buffers that are kept, in bytes; what is beyond goes back to the system. */
#define IDLE_BYTES (UINT64_C(1) << 30)

static void append(weft_server *server, server_event *event) {
    event->next = NULL;
    if (server->unposted) server->unposted_last->next = event;
    else server->unposted = event;
    server->unposted_last = event;
}

/* Whether the wire has it, or will never: then it is over, with the status that is in it. */
static weft_status try_post(weft_server *server, server_event *event) {
    event->op.user = event;
    event->op.done = false;
    weft_status status = wefti_wire_post(server->wire, &event->op);
    if (status == WEFT_OK || status == WEFT_E_AGAIN) return status;
    event->op.status = status;
    event->op.done_peer = event->op.peer;
    event->op.done_bytes = 0;
    return status;
}

/* What fails at once is told by the next progress, not inside of the caller. */
void wefti_server_post(weft_server *server, server_event *event) {
    event->op.status = WEFT_OK;
    if (!server->unposted && try_post(server, event) == WEFT_OK) return;
    append(server, event);
}

void wefti_server_unpost(weft_server *server, server_event *event) {
    for (server_event *at = server->unposted; at; at = at->next)
        if (at == event) {
            at->op.status = WEFT_E_ABORTED; /* wefti_server_post_again sees that */
            return;
        }
    (void)server->wire->ops->cancel(server->wire, &event->op); /* one that is being filled completes by itself */
}

void wefti_server_post_again(weft_server *server) {
    server_event *event = server->unposted;
    if (!event) return;
    server->unposted = server->unposted_last = NULL;
    memset(server->stuck, 0, (size_t)server->size * sizeof *server->stuck);
    while (event) {
        server_event *next = event->next;
        bool         *stuck = event->op.peer >= 0 && event->op.kind == WEFTI_WIRE_SEND ? &server->stuck[event->op.peer] : NULL;
        weft_status   status = event->op.status;
        if (status == WEFT_OK) status = stuck && *stuck ? WEFT_E_AGAIN : try_post(server, event);
        if (status == WEFT_E_AGAIN) {
            append(server, event);
            if (stuck) *stuck = true;
        } else if (status != WEFT_OK) {
            event->done(server, event);
        }
        event = next;
    }
}

/* --- bodies --- */

static void post_pieces(weft_server *server, server_mover *mover);

static void piece_done(weft_server *server, server_event *event) {
    server_mover *mover = event->owner;
    size_t        wanted = event->op.bytes;
    mover->flying--;
    if (mover->status == WEFT_OK && event->op.status != WEFT_OK) mover->status = event->op.status;
    if (mover->status == WEFT_OK && event->op.done_bytes != wanted) mover->status = WEFT_E_MISMATCH;
    mover->moved += wanted;
    event->op.buffer = NULL; /* free again */
    if (mover->status == WEFT_OK) post_pieces(server, mover);
    if (mover->flying == 0 && (mover->status != WEFT_OK || mover->moved == mover->bytes)) mover->done(server, mover);
}

/* A few pieces at once keep the link busy; each is as long as it may be, up to a size that a cache holds. */
static void post_pieces(weft_server *server, server_mover *mover) {
    size_t longest = server->wire->can.max_message_bytes < SERVER_PIECE_BYTES ? server->wire->can.max_message_bytes : SERVER_PIECE_BYTES;
    for (int i = 0; i < SERVER_PIECES && mover->posted < mover->bytes; i++) {
        server_event *event = &mover->events[i];
        if (event->op.buffer) continue;
        size_t bytes = mover->bytes - mover->posted < longest ? mover->bytes - mover->posted : longest;
        event->op = (wefti_wire_op){.kind = mover->kind, .peer = mover->peer, .tag = mover->tag, .bytes = bytes,
                                    .buffer = mover->base + (mover->discards ? 0 : mover->posted)};
        event->done = piece_done;
        event->owner = mover;
        mover->posted += bytes;
        mover->flying++;
        wefti_server_post(server, event);
    }
}

void wefti_server_move(weft_server *server, server_mover *mover) {
    mover->posted = mover->moved = 0;
    mover->flying = 0;
    mover->status = WEFT_OK;
    for (int i = 0; i < SERVER_PIECES; i++) mover->events[i].op.buffer = NULL;
    if (mover->bytes == 0) mover->done(server, mover);
    else post_pieces(server, mover);
}

void wefti_server_unmove(weft_server *server, server_mover *mover) {
    if (mover->status == WEFT_OK) mover->status = WEFT_E_ABORTED;
    for (int i = 0; i < SERVER_PIECES; i++)
        if (mover->events[i].op.buffer) wefti_server_unpost(server, &mover->events[i]);
}

static bool is_unposted(const weft_server *server, const server_event *event) {
    const server_event *at = server->unposted;
    while (at && at != event) at = at->next;
    return at;
}

/* Pieces end in any order, but for those under way all are before `posted`. */
void wefti_server_move_from(weft_server *server, server_mover *mover, uint8_t *base) {
    for (int i = 0; i < SERVER_PIECES; i++) {
        server_event *event = &mover->events[i];
        if (!event->op.buffer) continue;
        uint8_t *to = base + ((uint8_t *)event->op.buffer - mover->base);
        memcpy(to, event->op.buffer, event->op.bytes);
        if (event->op.done || is_unposted(server, event)) event->op.buffer = to;
        else server->wire->ops->send_from(server->wire, &event->op, to);
    }
    memcpy(base + mover->posted, mover->base + mover->posted, mover->bytes - mover->posted);
    mover->base = base;
}

/* --- buffers --- */

weft_status wefti_server_make_buffer(weft_server *server, size_t room, bool exported, server_buffer **buffer_out) {
    server_buffer *buffer = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *buffer, "a buffer of the parameter server", &buffer));
    weft_status status = exported ? server->wire->ops->region_create(server->wire, room, &buffer->region)
                                  : wefti_alloc_raw(room, WEFTI_CACHE_LINE, "a buffer of the parameter server", &buffer->data);
    if (status != WEFT_OK) {
        wefti_free(buffer, sizeof *buffer);
        return status;
    }
    if (exported) buffer->data = buffer->region->base;
    buffer->room = room;
    *buffer_out = buffer;
    return WEFT_OK;
}

weft_status wefti_server_take(weft_server *server, size_t bytes, bool exported, server_buffer **buffer_out) {
    size_t room = 4096;
    while (room < bytes && room < ((size_t)1 << 40)) room *= 2;
    if (room < bytes) return wefti_fail(WEFT_E_NO_MEMORY, "the parameter server: %zu bytes in one request", bytes);
    for (server_buffer **at = &server->buffers; *at; at = &(*at)->next)
        if ((*at)->room == room && exported == ((*at)->region != NULL)) {
            *buffer_out = *at;
            *at = (*at)->next;
            server->buffer_bytes -= room;
            return WEFT_OK;
        }
    return wefti_server_make_buffer(server, room, exported, buffer_out);
}

/* A wire that is closed has freed its regions. */
void wefti_server_free_buffer(weft_server *server, server_buffer *buffer) {
    if (!buffer->region) wefti_free(buffer->data, buffer->room);
    else if (server->wire) server->wire->ops->region_release(buffer->region);
    wefti_free(buffer, sizeof *buffer);
}

void wefti_server_give(weft_server *server, server_buffer *buffer) {
    if (!buffer) return;
    if (server->buffer_bytes + buffer->room > IDLE_BYTES) {
        wefti_server_free_buffer(server, buffer);
        return;
    }
    server->buffer_bytes += buffer->room;
    buffer->next = server->buffers;
    server->buffers = buffer;
}

/* --- memory for the program --- */

weft_status weft_server_alloc(weft_server *server, size_t bytes, void **memory_out) {
    server_buffer *buffer = NULL;
    *memory_out = NULL;
    if (!server || bytes > PTRDIFF_MAX - 4096) return wefti_fail(WEFT_E_INVALID, "weft_server_alloc: %zu bytes of %s", bytes, server ? "a server" : "NULL");
    pthread_mutex_lock(&server->lock);
    size_t      room = wefti_align_up(bytes ? bytes : 1, 4096);
    weft_status status = wefti_server_make_buffer(server, room, wefti_server_maps(server), &buffer);
    if (status == WEFT_OK) {
        buffer->next = server->lent;
        server->lent = buffer;
        *memory_out = buffer->data;
    }
    pthread_mutex_unlock(&server->lock);
    return status;
}

void weft_server_free(weft_server *server, void *memory) {
    if (!memory) return;
    pthread_mutex_lock(&server->lock);
    for (server_buffer **at = &server->lent; *at; at = &(*at)->next)
        if ((*at)->data == memory) {
            server_buffer *buffer = *at;
            *at = buffer->next;
            wefti_server_free_buffer(server, buffer);
            break;
        }
    pthread_mutex_unlock(&server->lock);
}

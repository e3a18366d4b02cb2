/* Matching by peer and tag, and the pool of messages that came before their receive.
 *
 * Invariant: a (peer, tag) never has both a posted receive and an early message. Posts and arrivals carry a common
 * clock, so that a receive for any peer and one for a given peer are served in the order they were posted. Memory: a
 * pool of buffers by size class, kept for the life of the wire; bounded by most_bytes. */
#include <string.h>

#include "transport/wire_common.h"

static size_t class_bytes(int size_class) { return size_class == 0 ? 0 : (size_t)64 << 2 * (size_class - 1); }
_Static_assert(WEFTI_MESSAGE_MOST_BYTES == (size_t)64 << 2 * (WEFTI_MESSAGE_CLASSES - 2), "the last class");

static int class_of(size_t data_bytes) {
    int size_class = 0;
    while (size_class < WEFTI_MESSAGE_CLASSES && class_bytes(size_class) < data_bytes) size_class++;
    return size_class;
}

static weft_status new_message(wefti_match *match, int size_class, wefti_message **message_out) {
    size_t size_bytes = sizeof(wefti_message) + class_bytes(size_class);
    if (match->held_bytes + size_bytes > match->most_bytes)
        return wefti_fail(WEFT_E_NO_MEMORY, "messages without a receive hold %zu bytes already", match->held_bytes);
    wefti_message *message = NULL;
    WEFTI_TRY(wefti_alloc_raw(size_bytes, WEFTI_CACHE_LINE, "an early message", &message));
    match->held_bytes += size_bytes;
    memset(message, 0, sizeof *message);
    message->size_class = (uint16_t)size_class;
    *message_out = message;
    return WEFT_OK;
}

weft_status wefti_match_open(wefti_match *match, int32_t size, size_t most_bytes) {
    *match = (wefti_match){.size = size, .most_bytes = most_bytes};
    weft_status status = wefti_alloc(((size_t)size + 1) * sizeof *match->posted, "lists of receives", &match->posted);
    if (status == WEFT_OK) status = wefti_alloc((size_t)size * sizeof *match->early, "lists of messages", &match->early);
    /* A first stock, so that ordinary surprises allocate nothing. */
    for (int size_class = 0; size_class < 4 && status == WEFT_OK; size_class++)
        for (int i = 0; i < 8 && status == WEFT_OK; i++) {
            wefti_message *message = NULL;
            status = new_message(match, size_class, &message);
            if (status == WEFT_OK) wefti_match_free(match, message);
        }
    if (status != WEFT_OK) wefti_match_close(match);
    return status;
}

static void free_chain(wefti_message *message) {
    while (message) {
        wefti_message *next = message->next;
        wefti_free(message, sizeof *message + class_bytes(message->size_class));
        message = next;
    }
}

void wefti_match_close(wefti_match *match) {
    for (int size_class = 0; size_class < WEFTI_MESSAGE_CLASSES; size_class++) free_chain(match->free[size_class]);
    for (int32_t peer = 0; match->early && peer < match->size; peer++) free_chain(match->early[peer].first);
    wefti_free(match->posted, ((size_t)match->size + 1) * sizeof *match->posted);
    wefti_free(match->early, (size_t)match->size * sizeof *match->early);
    *match = (wefti_match){0};
}

static wefti_wire_op *find_posted(const wefti_op_list *list, uint64_t tag) {
    wefti_wire_op *op = list->first;
    while (op && op->tag != tag) op = op->next;
    return op;
}

wefti_wire_op *wefti_match_arrived(wefti_match *match, int32_t peer, uint64_t tag) {
    wefti_wire_op *named = find_posted(&match->posted[peer], tag);
    wefti_wire_op *any = match->posted[match->size].first ? find_posted(&match->posted[match->size], tag) : NULL;
    if (any && (!named || any->scratch[0] < named->scratch[0])) {
        wefti_op_remove(&match->posted[match->size], any);
        return any;
    }
    if (named) wefti_op_remove(&match->posted[peer], named);
    return named;
}

wefti_message *wefti_match_keep(wefti_match *match, int32_t peer, uint64_t tag, uint64_t bytes, size_t data_bytes) {
    int size_class = class_of(data_bytes);
    if (size_class == WEFTI_MESSAGE_CLASSES) return NULL;
    wefti_message *message = match->free[size_class];
    if (message)
        match->free[size_class] = message->next;
    else if (new_message(match, size_class, &message) != WEFT_OK)
        return NULL;
    message->op = NULL;
    message->tag = tag;
    message->bytes = bytes;
    message->arrival = match->clock++;
    message->peer = peer;
    message->kind = 0;
    message->filled = 0;
    message->data = data_bytes ? (uint8_t *)(message + 1) : NULL;
    wefti_message_list *list = &match->early[peer];
    message->next = NULL;
    message->previous = list->last;
    if (list->last)
        list->last->next = message;
    else
        list->first = message;
    list->last = message;
    return message;
}

void wefti_match_unlink(wefti_match *match, wefti_message *message) {
    wefti_message_list *list = &match->early[message->peer];
    if (message->previous)
        message->previous->next = message->next;
    else
        list->first = message->next;
    if (message->next)
        message->next->previous = message->previous;
    else
        list->last = message->previous;
    message->next = message->previous = NULL;
}

static wefti_message *find_early(const wefti_message_list *list, uint64_t tag) {
    wefti_message *message = list->first;
    while (message && message->tag != tag) message = message->next;
    return message;
}

wefti_message *wefti_match_posted(wefti_match *match, wefti_wire_op *op) {
    wefti_message *found = NULL;
    if (op->peer != WEFTI_WIRE_ANY_PEER) {
        found = find_early(&match->early[op->peer], op->tag);
    } else {
        for (int32_t peer = 0; peer < match->size; peer++) {
            wefti_message *message = find_early(&match->early[peer], op->tag);
            if (message && (!found || message->arrival < found->arrival)) found = message;
        }
    }
    if (found) {
        wefti_match_unlink(match, found);
        return found;
    }
    op->scratch[0] = match->clock++;
    wefti_op_append(&match->posted[op->peer == WEFTI_WIRE_ANY_PEER ? match->size : op->peer], op);
    return NULL;
}

void wefti_match_free(wefti_match *match, wefti_message *message) {
    message->next = match->free[message->size_class];
    match->free[message->size_class] = message;
}

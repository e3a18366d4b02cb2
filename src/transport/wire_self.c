/* A rank's messages to itself, for wires whose links are sockets or queue pairs: copied once, from buffer to buffer where the
 * receive is posted or the message is large, else through an early message. Nothing leaves the process. */
#include <string.h>

#include "transport/wire_common.h"

enum { SELF_DATA, SELF_LARGE, SELF_NOTICE };

static void count(wefti_wire_base *base, size_t bytes) {
    base->counts.received_messages++;
    base->counts.received_bytes += bytes;
}

weft_status wefti_self_send(wefti_wire_base *base, wefti_op_list *waiting, wefti_wire_op *op) {
    wefti_match   *match = &base->match;
    int32_t        self = base->wire.rank;
    wefti_wire_op *recv = wefti_match_arrived(match, self, op->tag);
    if (recv) {
        wefti_wire_fill(recv, op->buffer, op->bytes);
        wefti_wire_finish_recv(base, recv, self, op->bytes);
    } else {
        bool           eager = op->bytes <= base->wire.can.eager_bytes;
        wefti_message *message = wefti_match_keep(match, self, op->tag, op->bytes, eager ? op->bytes : 0);
        if (!message) return WEFT_E_AGAIN;
        message->kind = eager ? SELF_DATA : SELF_LARGE;
        message->filled = op->bytes;
        message->token[0] = (uint64_t)(uintptr_t)op;
        if (!eager) {
            count(base, op->bytes);
            wefti_op_append(waiting, op);
            return WEFT_OK;
        }
        if (op->bytes) memcpy(message->data, op->buffer, op->bytes);
    }
    count(base, op->bytes);
    wefti_wire_finish(base, op, WEFT_OK, self, op->bytes);
    return WEFT_OK;
}

weft_status wefti_self_one_sided(wefti_wire_base *base, uint8_t *memory, wefti_wire_op *op) {
    int32_t self = base->wire.rank;
    if (op->kind == WEFTI_WIRE_READ) {
        if (op->bytes) memcpy(op->buffer, memory, op->bytes);
    } else {
        if (op->bytes) memcpy(memory, op->buffer, op->bytes);
        wefti_wire_op *recv = op->flags & WEFTI_WIRE_NOTIFY ? wefti_match_arrived(&base->match, self, op->tag) : NULL;
        if (recv) {
            wefti_wire_finish(base, recv, WEFT_OK, self, op->bytes);
        } else if (op->flags & WEFTI_WIRE_NOTIFY) {
            wefti_message *message = wefti_match_keep(&base->match, self, op->tag, op->bytes, 0);
            if (!message) return WEFT_E_AGAIN;
            message->kind = SELF_NOTICE;
        }
    }
    wefti_wire_finish(base, op, WEFT_OK, self, op->bytes);
    return WEFT_OK;
}

void wefti_self_take(wefti_wire_base *base, wefti_op_list *waiting, wefti_wire_op *op, wefti_message *message) {
    int32_t self = base->wire.rank;
    if (message->kind == SELF_NOTICE) {
        wefti_wire_finish(base, op, WEFT_OK, self, message->bytes);
    } else if (message->kind == SELF_LARGE) {
        wefti_wire_op *send = (wefti_wire_op *)(uintptr_t)message->token[0];
        wefti_op_remove(waiting, send);
        wefti_wire_fill(op, send->buffer, message->bytes);
        wefti_wire_finish(base, send, WEFT_OK, self, send->bytes);
        wefti_wire_finish_recv(base, op, self, message->bytes);
    } else {
        wefti_wire_fill(op, message->data, message->bytes);
        wefti_wire_finish_recv(base, op, self, message->bytes);
    }
    wefti_match_free(&base->match, message);
}

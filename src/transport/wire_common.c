/* What all wires do alike: the checks of a post, completing and flushing operations, resting, opening by name. */
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "transport/wire_common.h"

weft_status wefti_wire_base_open(wefti_wire_base *base, const wefti_wire_options *options, const wefti_wire_ops *ops,
                                 size_t early_bytes) {
    if (options->size < 1 || options->rank < 0 || options->rank >= options->size)
        return wefti_fail(WEFT_E_INVALID, "rank %d of %d: the rank must be from 0 to the size less one",
                          (int)options->rank, (int)options->size);
    base->wire.ops = ops;
    base->wire.host = options->host ? options->host : wefti_host_system();
    base->wire.rank = options->rank;
    base->wire.size = options->size;
    base->abort_rank = -1;
    return wefti_match_open(&base->match, options->size, early_bytes);
}

void wefti_wire_base_close(wefti_wire_base *base) { wefti_match_close(&base->match); }

weft_status wefti_wire_fail_link(const wefti_wire *wire, int32_t peer, wefti_wire_link link) {
    switch (link) {
    case WEFTI_LINK_LEFT: return wefti_fail(WEFT_E_PEER, "%s: rank %d has left", wire->can.name, (int)peer);
    case WEFTI_LINK_DOWN: {
        const char *cause = wire->ops->cause ? wire->ops->cause(wire, peer) : NULL;
        return wefti_fail(WEFT_E_PEER, "%s: the link to rank %d is down%s%s", wire->can.name, (int)peer, cause ? ": " : "",
                          cause ? cause : "");
    }
    default:
        return wefti_fail(WEFT_E_STATE, "%s: rank %d is not connected; connect to it before posting", wire->can.name,
                          (int)peer);
    }
}

weft_status wefti_wire_check_post(wefti_wire_base *base, wefti_wire_op *op) {
    const wefti_wire *wire = &base->wire;
    if (base->aborted) return wefti_fail(WEFT_E_STATE, "%s: the wire was aborted", wire->can.name);
    bool any = op->peer == WEFTI_WIRE_ANY_PEER && op->kind == WEFTI_WIRE_RECV;
    if (!any && (op->peer < 0 || op->peer >= wire->size))
        return wefti_fail(WEFT_E_INVALID, "%s: there is no rank %d among %d", wire->can.name, (int)op->peer,
                          (int)wire->size);
    if ((unsigned)op->kind > WEFTI_WIRE_READ || (!op->buffer && op->bytes))
        return wefti_fail(WEFT_E_INVALID, "%s: operation %d on a buffer of %zu bytes at NULL", wire->can.name,
                          (int)op->kind, op->bytes);
    if ((op->flags & WEFTI_WIRE_FOREIGN) && (!(wire->can.flags & WEFTI_WIRE_MEMORY_FOREIGN) || op->peer == wire->rank || any))
        return wefti_fail(WEFT_E_UNSUPPORTED, "%s: operation %d on a device's memory: %s", wire->can.name, (int)op->kind,
                          !(wire->can.flags & WEFTI_WIRE_MEMORY_FOREIGN) ? "none is attached" : "only with one other rank");
    if (op->bytes > wire->can.max_message_bytes)
        return wefti_fail(WEFT_E_OVERFLOW, "%s: %zu bytes in one message; at most %zu", wire->can.name, op->bytes,
                          wire->can.max_message_bytes);
    op->done = false;
    op->next = op->previous = NULL;
    return WEFT_OK;
}

void wefti_wire_flush(wefti_wire_base *base, wefti_op_list *list, weft_status status, int32_t peer) {
    wefti_wire_op *op;
    while ((op = wefti_op_take_first(list))) wefti_wire_finish(base, op, status, peer, 0);
}

void wefti_wire_flush_peer(wefti_wire_base *base, int32_t peer) {
    wefti_wire_flush(base, &base->match.posted[peer], WEFT_E_PEER, peer);
}

int32_t wefti_wire_hand_out(wefti_wire_base *base, wefti_wire_op **ops_out, int32_t capacity) {
    int32_t count = 0;
    while (count < capacity && base->done.first) ops_out[count++] = wefti_op_take_first(&base->done);
    return count;
}

weft_status wefti_wire_cancel(wefti_wire *wire, wefti_wire_op *op) {
    wefti_wire_base *base = wefti_base_of(wire);
    int32_t          peer = op->peer == WEFTI_WIRE_ANY_PEER ? wire->size : op->peer;
    if (op->kind == WEFTI_WIRE_RECV && peer >= 0 && peer <= wire->size)
        for (wefti_wire_op *at = base->match.posted[peer].first; at; at = at->next)
            if (at == op) {
                wefti_op_remove(&base->match.posted[peer], op);
                wefti_wire_finish(base, op, WEFT_E_ABORTED, op->peer, 0);
                return WEFT_OK;
            }
    return wefti_fail(WEFT_E_STATE, "%s: only a receive that no message has matched can be taken back", wire->can.name);
}

void wefti_wire_read_counts(const wefti_wire *wire, wefti_wire_counts *counts_out) {
    *counts_out = ((const wefti_wire_base *)wire)->counts;
}

void wefti_wire_rest(wefti_wire *wire, uint64_t limit_ns) {
    const uint64_t step_ns = 50000; /* where there is no descriptor: a compromise between latency and load */
    if (!(wire->can.flags & WEFTI_WIRE_WAIT_DESCRIPTOR)) {
        if (wire->ops->arm && wire->ops->arm(wire) == WEFT_E_AGAIN) return;
        wire->host->sleep(wire->host->context, limit_ns < step_ns || wire->host->wakes ? limit_ns : step_ns);
        return;
    }
    if (wire->ops->arm(wire) != WEFT_OK) return;
    struct pollfd   wait = {.fd = wire->ops->descriptor(wire), .events = POLLIN};
    struct timespec limit = {.tv_sec = (time_t)(limit_ns / WEFTI_SECOND_NS), .tv_nsec = (long)(limit_ns % WEFTI_SECOND_NS)};
    if (limit_ns == WEFTI_NEVER_NS) limit.tv_sec = 3600;
    ppoll(&wait, 1, &limit, NULL);
}

void wefti_wire_take_early(wefti_wire_base *base, wefti_wire_op *op, wefti_message *message) {
    wefti_wire_fill(op, message->data, message->bytes);
    wefti_wire_finish_recv(base, op, message->peer, message->bytes);
    wefti_match_free(&base->match, message);
}

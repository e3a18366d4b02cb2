/* The MPI wire: getting memory back from MPI, and the ends of links.
 *
 * MPI takes receives back as long as nothing has come for them, and sends hardly ever. So an end first gives what is under
 * way a moment, then cancels receives, and where MPI still holds a buffer of the caller's (its peer died or was stopped in
 * the middle of it), MPI as a whole is given up: nobody in this process calls it again, so it touches nothing any more,
 * and buffers are the callers' again. What is left of the wire's own memory is simply kept. */
#include <stdio.h>
#include <string.h>

#include "transport/wire_mpi.h"

#define PATIENCE_NS (200 * WEFTI_MILLISECOND_NS)
#define CANCEL_NS (20 * WEFTI_MILLISECOND_NS)

/* --- transfers --- */

static bool concerns(int32_t peer, int32_t of) { return peer < 0 || peer == of; }

static void end_in(mpiw_wire *wire, mpiw_in *in, weft_status status, int32_t rank) {
    wefti_message *message = in->message;
    wefti_wire_op *op = in->op;
    if (message) {
        op = message->op;
        if (!op) wefti_match_unlink(&wire->base.match, message); /* it will never be whole */
        wefti_match_free(&wire->base.match, message);
    }
    if (op) wefti_wire_finish(&wire->base, op, status, rank, 0);
    in->next = wire->free_ins;
    wire->free_ins = in;
}

/* Ends the transfers of `peer` (-1: all), which MPI has nothing of any more. */
static void end_transfers(mpiw_wire *wire, int32_t peer, weft_status status, int32_t rank) {
    mpiw_in  *ins = wire->ins;
    mpiw_out *outs = wire->outs;
    for (int32_t i = 0; i < wire->finishing_count; i++)
        if (wire->finishing[i].use != MPIW_USE_STAGE && concerns(peer, wire->finishing[i].peer)) wire->finishing[i].of = NULL;
    wire->ins = wire->last_in = NULL;
    wire->outs = NULL;
    mpiw_in  **in_end = &wire->ins;
    mpiw_out **out_end = &wire->outs;
    for (mpiw_in *in = ins, *next; in; in = next) {
        next = in->next;
        in->next = NULL;
        if (concerns(peer, in->peer)) {
            end_in(wire, in, status, rank);
            continue;
        }
        *in_end = wire->last_in = in;
        in_end = &in->next;
    }
    for (mpiw_out *out = outs, *next; out; out = next) {
        next = out->next;
        out->next = NULL;
        if (concerns(peer, out->peer)) {
            if (out->op) wefti_wire_finish(&wire->base, out->op, status, rank, 0);
            out->next = wire->free_outs;
            wire->free_outs = out;
            continue;
        }
        *out_end = out;
        out_end = &out->next;
    }
}

/* --- requests --- */

static void drop(mpiw_wire *wire, int32_t index) {
    mpiw_info info = wire->infos[index];
    if (info.use == MPIW_USE_STAGE) {
        mpiw_stage *stage = info.of;
        stage->next = wire->free_stage;
        wire->free_stage = stage;
    }
    wire->chunks_out -= info.use == MPIW_USE_OUT;
    wire->chunks_in -= info.use == MPIW_USE_IN;
    int32_t last = --wire->request_count;
    wire->requests[index] = wire->requests[last];
    wire->infos[index] = wire->infos[last];
}

/* Drops those of the peer's chunks that MPI is through with; how many are left. */
static int32_t reap(mpiw_wire *wire, int32_t peer) {
    int32_t left = 0;
    for (int32_t i = wire->request_count - 1; i >= 0; i--) {
        bool             done = false;
        wefti_mpi_status status;
        if (wire->infos[i].use == MPIW_USE_STAGE || !concerns(peer, wire->infos[i].peer)) continue;
        if (wire->api->test(&wire->requests[i], &done, &status) == 0 && done)
            drop(wire, i);
        else
            left++;
    }
    return left;
}

/* Cancels what can be, and waits for it; what MPI then still has poisons it. */
static void force_back(mpiw_wire *wire, int32_t peer) {
    const wefti_host *host = wire->base.wire.host;
    int32_t           left = reap(wire, peer);
    if (left == 0) return;
    for (int32_t i = 0; i < wire->request_count; i++)
        if (wire->infos[i].use == MPIW_USE_IN && concerns(peer, wire->infos[i].peer)) (void)wire->api->cancel(&wire->requests[i]);
    uint64_t deadline_ns = wefti_deadline_after(wefti_host_now(host), CANCEL_NS);
    while ((left = reap(wire, peer)) > 0 && wefti_host_now(host) < deadline_ns) host->yield(host->context);
    if (left == 0) return;
    char cause[MPIW_CAUSE_BYTES];
    int32_t of = peer;
    for (int32_t i = wire->request_count - 1; i >= 0; i--)
        if (wire->infos[i].use != MPIW_USE_STAGE && concerns(peer, wire->infos[i].peer)) {
            of = wire->infos[i].peer;
            drop(wire, i);
        }
    snprintf(cause, sizeof cause, "rank %d ended or stopped in the middle of a transfer, whose memory MPI does not give back", (int)of);
    wefti_mpi_poison(cause);
}

void wefti_mpiw_take_back(mpiw_wire *wire, weft_status status, int32_t rank) {
    const wefti_host *host = wire->base.wire.host;
    uint64_t          deadline_ns = wefti_deadline_after(wefti_host_now(host), PATIENCE_NS);
    while (!wefti_mpi_poisoned() && wire->chunks_out + wire->chunks_in > 0 && wefti_mpiw_complete(wire) &&
           wefti_host_now(host) < deadline_ns)
        host->yield(host->context);
    if (!wefti_mpi_poisoned()) force_back(wire, -1);
    end_transfers(wire, -1, status, rank);
}

/* --- links --- */

void wefti_mpiw_drop_notes(mpiw_wire *wire, mpiw_link *link) {
    while (link->notes) {
        mpiw_note *note = link->notes;
        link->notes = note->next;
        note->next = wire->free_notes;
        wire->free_notes = note;
    }
}

void wefti_mpiw_link_end(mpiw_wire *wire, int32_t peer, wefti_wire_link state, const char *cause) {
    mpiw_link *link = &wire->links[peer];
    if (link->state > WEFTI_LINK_UP) return;
    link->state = state;
    snprintf(link->cause, sizeof link->cause, "%s", cause);
    if (!wefti_mpi_poisoned()) force_back(wire, peer);
    end_transfers(wire, peer, WEFT_E_PEER, peer);
    wefti_wire_flush(&wire->base, &link->out_ops, WEFT_E_PEER, peer);
    wefti_wire_flush(&wire->base, &link->waiting, WEFT_E_PEER, peer);
    wefti_wire_flush_peer(&wire->base, peer);
    wefti_mpiw_drop_notes(wire, link);
}

void wefti_mpiw_failed(mpiw_wire *wire, int32_t peer, int code, const char *what) {
    char text[WEFTI_MPI_TEXT_BYTES], cause[WEFTI_MPI_TEXT_BYTES + 64];
    wire->api->error_text(code, text, sizeof text);
    snprintf(cause, sizeof cause, "MPI failed in %s: %s", what, text);
    if (peer < 0)
        wefti_mpi_poison(cause); /* all links end at the next poll */
    else
        wefti_mpiw_link_end(wire, peer, WEFTI_LINK_DOWN, cause);
}

void wefti_mpiw_give_up(mpiw_wire *wire) {
    const wefti_host *host = wire->base.wire.host;
    uint64_t          deadline_ns = wefti_deadline_after(wefti_host_now(host), CANCEL_NS);
    wefti_mpi_status  status;
    for (int32_t i = 0; i < MPIW_SLOTS; i++)
        if (wire->slot_posted[i]) (void)wire->api->cancel(&wire->slot_requests[i]);
    for (int32_t i = 0; i < MPIW_SLOTS; i++)
        while (wire->slot_posted[i]) {
            bool done = false;
            if (wire->api->test(&wire->slot_requests[i], &done, &status) == 0 && done) {
                wire->slot_posted[i] = false;
            } else if (wefti_host_now(host) >= deadline_ns) {
                wefti_mpi_poison("MPI does not give back the memory into which a peer was sending when the wire closed");
                return;
            }
        }
    for (int32_t i = 0; i < wire->request_count; i++) {
        (void)wire->api->forget(&wire->requests[i]);
        wire->keeps_stages = true;
    }
    wire->request_count = 0;
}

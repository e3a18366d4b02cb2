/* The way to a peer: a queue pair on each rail, and who they are told over the proved socket of the mesh.
 *
 * Both ends send a greeting (addresses, queue and packet numbers), connect their queue pairs by the other's, and say that
 * they are ready; only then is the link up, for what is sent to a queue pair that does not listen yet is lost for a
 * timeout. The socket stays: its end tells of a peer that died. Memory of a link: one arena of receive slots and stages, about
 * 650 KiB, registered on the first rail. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "transport/wire_verbs.h"

enum {
    GREETING_VERSION = 1,
    RETRIES = 6,          /* times that an unanswered packet is sent again (WEFT_VERBS_TIMEOUT): a peer that is gone is known in one
                             second to four, as devices count; soft RoCE takes 7 for ever */
    RECEIVER_RETRIES = 6, /* credits see to it that there is always a receive; this many are an error */
    RECEIVER_TIMER = 12   /* 0.64 ms */
};
#define GREETING_MAGIC UINT64_C(0x0053425245565457)

static size_t arena_bytes(const verbs_wire *wire) {
    return (size_t)(wire->slots + wire->tokens + wire->stages) * VERBS_SLOT_BYTES;
}

/* --- queue pairs --- */

static struct ibv_qp *create_queue(verbs_wire *wire, int32_t r, uint32_t *inline_out) {
    static const uint32_t inline_sizes[] = {VERBS_INLINE_BYTES, 64, 0}; /* devices refuse what they lack */
    for (size_t i = 0; i < WEFTI_COUNT(inline_sizes); i++) {
        struct ibv_qp_init_attr wish = {.send_cq = wire->rails[r].cq,
                                        .recv_cq = wire->rails[r].cq,
                                        .cap = {.max_send_wr = VERBS_QUEUE,
                                                .max_recv_wr = wire->tokens + (r == 0 ? wire->slots : 0),
                                                .max_send_sge = 1,
                                                .max_recv_sge = 1,
                                                .max_inline_data = inline_sizes[i]},
                                        .qp_type = IBV_QPT_RC};
        errno = 0;
        struct ibv_qp *queue = wire->api->create_qp(wire->rails[r].pd, &wish);
        if (queue) {
            *inline_out = inline_sizes[i];
            return queue;
        }
        if (errno == ENOMEM) return NULL;
    }
    return NULL;
}

static weft_status start_queue(verbs_wire *wire, verbs_link *link, int32_t peer, int32_t r) {
    verbs_queue *queue = &link->queues[r];
    uint32_t     inlined = 0, random = 0;
    if (!(queue->qp = create_queue(wire, r, &inlined)))
        return wefti_fail(errno == ENOMEM ? WEFT_E_NO_MEMORY : WEFT_E_DEVICE, "verbs: %s gives no queue pair for rank %d: %s",
                          wire->rails[r].name, (int)peer, errno ? strerror(errno) : "no reason given");
    if (r == 0 && inlined < wire->inline_bytes) wire->inline_bytes = inlined;
    WEFTI_TRY(wire->base.wire.host->random(wire->base.wire.host->context, &random, sizeof random));
    queue->psn = random & 0xffffff;
    struct ibv_qp_attr first = {.qp_state = IBV_QPS_INIT,
                                .port_num = wire->rails[r].port,
                                .qp_access_flags = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ};
    int error = wire->api->modify_qp(queue->qp, &first, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
    if (error)
        return wefti_fail(error == ENOMEM ? WEFT_E_NO_MEMORY : WEFT_E_DEVICE, "verbs: %s cannot start a queue pair for rank %d: %s",
                          wire->rails[r].name, (int)peer, strerror(error));
    uint32_t receives = wire->tokens + (r == 0 ? wire->slots : 0);
    for (uint32_t slot = 0; slot < receives; slot++)
        if (!wefti_verbs_slot_post(wire, link, peer, r, slot))
            return wefti_fail(WEFT_E_DEVICE, "verbs: %s takes no receive for rank %d", wire->rails[r].name, (int)peer);
    return WEFT_OK;
}

bool wefti_verbs_slot_post(verbs_wire *wire, verbs_link *link, int32_t peer, int32_t rail, uint32_t slot) {
    struct ibv_sge     where = {.addr = (uintptr_t)(link->arena + (size_t)slot * VERBS_SLOT_BYTES),
                                .length = VERBS_SLOT_BYTES,
                                .lkey = link->arena_memory->lkey};
    struct ibv_recv_wr request = {.wr_id = UINT64_C(1) << 63 | (uint64_t)peer << 32 | slot,
                                  .sg_list = rail == 0 ? &where : NULL,
                                  .num_sge = rail == 0}, *bad = NULL;
    return wire->api->post_recv(link->queues[rail].qp, &request, &bad) == 0;
}

/* --- links --- */

static weft_status fill_link(verbs_wire *wire, verbs_link *link, int32_t peer) {
    struct ibv_mr *registered[VERBS_RAILS];
    int32_t        rails = wire->rail_count;
    WEFTI_TRY(wefti_alloc_raw(arena_bytes(wire), 4096, "a verbs link's slots", &link->arena));
    WEFTI_TRY(wefti_verbs_register(wire, 1, link->arena, arena_bytes(wire), VERBS_FOR_SLOTS, "slots for messages", registered));
    link->arena_memory = registered[0];
    for (int32_t r = 0; r < rails; r++) WEFTI_TRY(start_queue(wire, link, peer, r));
    verbs_greeting *mine = &link->mine;
    *mine = (verbs_greeting){.magic = GREETING_MAGIC, .version = GREETING_VERSION, .rails = (uint32_t)rails, .slots = wire->slots,
                             .slot_bytes = VERBS_SLOT_BYTES};
    for (int32_t r = 0; r < rails; r++) {
        const verbs_rail *rail = &wire->rails[r];
        memcpy(mine->rail[r].gid, rail->gid.raw, sizeof mine->rail[r].gid);
        mine->rail[r].queue = link->queues[r].qp->qp_num;
        mine->rail[r].psn = link->queues[r].psn;
        mine->rail[r].lid = rail->lid;
        mine->rail[r].mtu = rail->mtu;
        mine->rail[r].link_layer = rail->link_layer;
        mine->rail[r].gid_type = rail->gid_type;
        mine->rail[r].reads_in = rail->reads_in;
    }
    return WEFT_OK;
}

weft_status wefti_verbs_link_create(verbs_wire *wire, int32_t peer) {
    verbs_link *link = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *link, "a verbs link", &link));
    wire->links[peer] = link;
    link->socket = -1;
    link->state = peer == wire->base.wire.rank ? WEFTI_LINK_UP : WEFTI_LINK_CONNECTING;
    if (peer == wire->base.wire.rank) return WEFT_OK;
    weft_status status = fill_link(wire, link, peer);
    if (status != WEFT_OK) wefti_verbs_link_free(wire, peer);
    return status;
}

void wefti_verbs_link_stop(verbs_wire *wire, verbs_link *link) {
    for (int32_t r = 0; r < VERBS_RAILS; r++) {
        if (link->queues[r].qp) wire->api->destroy_qp(link->queues[r].qp);
        link->queues[r].qp = NULL;
    }
}

void wefti_verbs_link_free(verbs_wire *wire, int32_t peer) {
    verbs_link *link = wire->links[peer];
    if (!link) return;
    wefti_verbs_link_stop(wire, link);
    if (link->socket >= 0) close(link->socket);
    if (link->arena_memory) wire->api->dereg_mr(link->arena_memory);
    wefti_free(link->arena, arena_bytes(wire));
    wefti_free(link, sizeof *link);
    wire->links[peer] = NULL;
}

/* --- connecting queue pairs --- */

static int to_listening(verbs_wire *wire, verbs_link *link, int32_t r) {
    const verbs_rail  *rail = &wire->rails[r];
    uint8_t            mtu = link->theirs.rail[r].mtu < rail->mtu ? link->theirs.rail[r].mtu : rail->mtu;
    bool               global = rail->link_layer == IBV_LINK_LAYER_ETHERNET || link->theirs.rail[r].lid == 0;
    struct ibv_qp_attr attributes = {.qp_state = IBV_QPS_RTR,
                                     .path_mtu = (enum ibv_mtu)mtu,
                                     .dest_qp_num = link->theirs.rail[r].queue,
                                     .rq_psn = link->theirs.rail[r].psn,
                                     .max_dest_rd_atomic = rail->reads_in,
                                     .min_rnr_timer = RECEIVER_TIMER,
                                     .ah_attr = {.dlid = link->theirs.rail[r].lid, .port_num = rail->port, .is_global = global}};
    if (global) {
        memcpy(attributes.ah_attr.grh.dgid.raw, link->theirs.rail[r].gid, sizeof attributes.ah_attr.grh.dgid.raw);
        attributes.ah_attr.grh.sgid_index = (uint8_t)rail->gid_index;
        attributes.ah_attr.grh.hop_limit = 64;
        attributes.ah_attr.grh.traffic_class = wire->traffic_class;
    }
    return wire->api->modify_qp(link->queues[r].qp, &attributes,
                                IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                                    IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
}

static int to_sending(verbs_wire *wire, verbs_link *link, int32_t r) {
    uint8_t            reads = wire->rails[r].reads_out;
    struct ibv_qp_attr attributes = {.qp_state = IBV_QPS_RTS, .sq_psn = link->queues[r].psn, .timeout = wire->ack_timeout,
                                     .retry_cnt = RETRIES, .rnr_retry = RECEIVER_RETRIES};
    attributes.max_rd_atomic = link->theirs.rail[r].reads_in < reads ? link->theirs.rail[r].reads_in : reads;
    return wire->api->modify_qp(link->queues[r].qp, &attributes,
                                IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
                                    IBV_QP_MAX_QP_RD_ATOMIC);
}

/* Takes the peer's greeting; false: the link has ended. */
static bool take_greeting(verbs_wire *wire, int32_t peer) {
    verbs_link           *link = wire->links[peer];
    const verbs_greeting *theirs = &link->theirs;
    if (theirs->magic != GREETING_MAGIC || theirs->version != GREETING_VERSION || theirs->slot_bytes != VERBS_SLOT_BYTES ||
        theirs->rails < 1 || theirs->rails > VERBS_RAILS || theirs->slots < 2 || theirs->slots > VERBS_SLOTS) {
        wefti_verbs_link_end(wire, peer, WEFTI_LINK_DOWN, "its greeting is none of ours; is it built from the same Weft, with the same "
                             "byte order?");
        return false;
    }
    link->rails = (int32_t)theirs->rails < wire->rail_count ? (int32_t)theirs->rails : wire->rail_count;
    link->credits = theirs->slots;
    for (int32_t r = 0; r < link->rails; r++) {
        const verbs_rail *rail = &wire->rails[r];
        if (theirs->rail[r].link_layer != rail->link_layer || theirs->rail[r].gid_type != rail->gid_type) {
            wefti_verbs_link_end(wire, peer, WEFTI_LINK_DOWN, "%s here and its device speak different protocols (link layer %d and %d, "
                                 "kind of GID %d and %d): set WEFT_VERBS_DEVICE and WEFT_VERBS_GID", rail->name, rail->link_layer,
                                 theirs->rail[r].link_layer, rail->gid_type, theirs->rail[r].gid_type);
            return false;
        }
        int error = to_listening(wire, link, r);
        if (!error) error = to_sending(wire, link, r);
        if (error) {
            wefti_verbs_link_end(wire, peer, WEFTI_LINK_DOWN, "%s cannot connect its queue pair: %s", rail->name, strerror(error));
            return false;
        }
    }
    return true;
}

/* --- the socket --- */

void wefti_verbs_link_greet(verbs_wire *wire, int32_t peer, int socket) {
    verbs_link        *link = wire->links[peer];
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)peer};
    link->socket = socket;
    link->setup = VERBS_SETUP_GREET;
    if (epoll_ctl(wire->poller, EPOLL_CTL_ADD, socket, &event) != 0) {
        wefti_verbs_link_end(wire, peer, WEFTI_LINK_DOWN, "its socket cannot be watched: %s", strerror(errno));
        return;
    }
    wefti_verbs_link_set_up(wire, peer);
}

/* Behind the greeting comes one byte, which says that the queue pairs listen. */
static const uint8_t ready_byte = 'R';
enum { WHOLE_BYTES = sizeof(verbs_greeting) + 1 };

/* false: the socket has ended. */
static bool send_greeting(verbs_link *link) {
    size_t allowed = link->setup == VERBS_SETUP_READY ? WHOLE_BYTES : sizeof link->mine;
    while (link->greeted < allowed) {
        bool           tail = link->greeted >= sizeof link->mine;
        const uint8_t *from = tail ? &ready_byte : (const uint8_t *)&link->mine + link->greeted;
        ssize_t        sent = send(link->socket, from, tail ? 1 : sizeof link->mine - link->greeted, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno == EAGAIN) return true;
        if (sent <= 0) return false;
        link->greeted += (size_t)sent;
    }
    return true;
}

static bool hear_greeting(verbs_link *link) {
    while (link->heard < WHOLE_BYTES) {
        uint8_t ready;
        bool    tail = link->heard >= sizeof link->theirs;
        void   *to = tail ? (void *)&ready : (uint8_t *)&link->theirs + link->heard;
        ssize_t got = recv(link->socket, to, tail ? 1 : sizeof link->theirs - link->heard, MSG_DONTWAIT);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EAGAIN) return true;
        if (got <= 0 || (tail && ready != ready_byte)) return false;
        link->heard += (size_t)got;
    }
    return true;
}

void wefti_verbs_link_set_up(verbs_wire *wire, int32_t peer) {
    verbs_link *link = wire->links[peer];
    if (link->state != WEFTI_LINK_CONNECTING || link->setup == VERBS_SETUP_MEET) return;
    if (!send_greeting(link) || !hear_greeting(link)) {
        wefti_verbs_link_end(wire, peer, WEFTI_LINK_DOWN, "it hung up while the link was set up");
        return;
    }
    if (link->setup == VERBS_SETUP_GREET && link->heard >= sizeof link->theirs) {
        if (!take_greeting(wire, peer)) return;
        link->setup = VERBS_SETUP_READY;
        if (!send_greeting(link)) {
            wefti_verbs_link_end(wire, peer, WEFTI_LINK_DOWN, "it hung up while the link was set up");
            return;
        }
    }
    if (link->greeted < WHOLE_BYTES || link->heard < WHOLE_BYTES) return;
    link->state = WEFTI_LINK_UP;
    wefti_verbs_advance(wire, peer);
}

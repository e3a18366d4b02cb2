/* The fabric of the fake verbs: one thread that carries out requests, one at a time, of a queue pair that a seed picks. */
#include <arpa/inet.h>
#include <string.h>
#include <unistd.h>

#include "fake_inside.h"

void fake_misuse(const char *what) {
    if (fake.counts.misuse++ == 0) strncpy(fake.counts.what, what, sizeof fake.counts.what - 1);
}

void fake_complete(fake_cq *cq, struct ibv_wc done) {
    if (cq->count == cq->capacity) {
        fake_misuse("a completion queue ran over");
        return;
    }
    cq->ring[(cq->first + cq->count++) % cq->capacity] = done;
    if (!cq->armed) return;
    cq->armed = false;
    fake_channel *channel = (fake_channel *)cq->base.channel;
    cq->events++;
    if (cq->events == 1) {
        cq->next_signalled = channel->signalled;
        channel->signalled = cq;
    }
    ssize_t ignored = write(channel->base.fd, &(uint64_t){1}, 8);
    (void)ignored;
}

void fake_flush(fake_qp *queue) {
    queue->state = IBV_QPS_ERR;
    for (; queue->send_count; queue->send_count--) {
        const fake_send *send = &queue->sends[queue->send_first++ % queue->cap.max_send_wr];
        fake_complete((fake_cq *)queue->base.send_cq, (struct ibv_wc){.wr_id = send->request.wr_id, .status = IBV_WC_WR_FLUSH_ERR});
    }
    for (; queue->receive_count; queue->receive_count--)
        fake_complete((fake_cq *)queue->base.recv_cq,
                      (struct ibv_wc){.wr_id = queue->receives[queue->receive_first++ % queue->cap.max_recv_wr].wr_id,
                                      .status = IBV_WC_WR_FLUSH_ERR});
}

/* Memory that a key gives access to; NULL: it does not. */
static uint8_t *memory_of(uint32_t key, uint64_t address, uint64_t bytes, int access) {
    for (fake_mr *memory = fake.memories; memory; memory = memory->next) {
        uint64_t base = (uintptr_t)memory->base.addr;
        if (memory->base.lkey != key) continue;
        if (address < base || address - base > memory->base.length || bytes > memory->base.length - (address - base)) return NULL;
        return (memory->access & access) == access ? memory->there + (address - base) : NULL;
    }
    return NULL;
}

static enum ibv_wc_status deliver(fake_qp *queue, fake_qp *peer, const fake_send *send, const uint8_t *from) {
    bool                      immediate = send->request.opcode == IBV_WR_RDMA_WRITE_WITH_IMM;
    uint32_t                  bytes = send->request.num_sge ? send->where.length : 0;
    const struct ibv_recv_wr *receive = &peer->receives[peer->receive_first % peer->cap.max_recv_wr];
    (void)queue;
    if (peer->receive_count == 0) {
        fake_misuse("a message found no receive");
        return IBV_WC_RNR_RETRY_EXC_ERR;
    }
    struct ibv_wc done = {.wr_id = receive->wr_id, .status = IBV_WC_SUCCESS, .byte_len = bytes, .qp_num = peer->base.qp_num};
    if (immediate) {
        done.opcode = IBV_WC_RECV_RDMA_WITH_IMM;
        done.wc_flags = IBV_WC_WITH_IMM;
        done.imm_data = send->request.imm_data;
    } else {
        const struct ibv_sge *place = &peer->places[peer->receive_first % peer->cap.max_recv_wr];
        uint8_t              *to = receive->num_sge ? memory_of(place->lkey, place->addr, bytes, IBV_ACCESS_LOCAL_WRITE) : NULL;
        if (bytes && (!to || bytes > place->length)) return IBV_WC_REM_INV_REQ_ERR;
        if (bytes) memcpy(to, from, bytes);
        done.opcode = IBV_WC_RECV;
    }
    peer->receive_first++;
    peer->receive_count--;
    fake_complete((fake_cq *)peer->base.recv_cq, done);
    return IBV_WC_SUCCESS;
}

static enum ibv_wc_status carry_out(fake_qp *queue, fake_send *send) {
    const struct ibv_send_wr *request = &send->request;
    fake_qp                  *peer = queue->peer < FAKE_QUEUES ? fake.queues[queue->peer] : NULL;
    uint32_t                  bytes = request->num_sge ? send->where.length : 0;
    bool                      inlined = request->send_flags & IBV_SEND_INLINE, reads = request->opcode == IBV_WR_RDMA_READ;
    if (fake.set.cut || !peer || (peer->state != IBV_QPS_RTR && peer->state != IBV_QPS_RTS)) return IBV_WC_RETRY_EXC_ERR;
    if (bytes > fake.set.most_message_bytes) return IBV_WC_LOC_LEN_ERR;
    uint8_t *from = inlined ? send->inlined : memory_of(send->where.lkey, send->where.addr, bytes, reads ? IBV_ACCESS_LOCAL_WRITE : 0);
    if (bytes && !from) return IBV_WC_LOC_PROT_ERR;
    if (request->opcode == IBV_WR_SEND) return deliver(queue, peer, send, from);
    uint8_t *there = bytes ? memory_of(request->wr.rdma.rkey, request->wr.rdma.remote_addr, bytes,
                                       reads ? IBV_ACCESS_REMOTE_READ : IBV_ACCESS_REMOTE_WRITE)
                           : NULL;
    if (bytes && !there) return IBV_WC_REM_ACCESS_ERR;
    if (bytes) memcpy(reads ? from : there, reads ? there : from, bytes);
    return request->opcode == IBV_WR_RDMA_WRITE_WITH_IMM ? deliver(queue, peer, send, from) : IBV_WC_SUCCESS;
}

/* The next request of a queue pair. */
static void step(fake_qp *queue) {
    fake_send         *send = &queue->sends[queue->send_first % queue->cap.max_send_wr];
    enum ibv_wc_status status = carry_out(queue, send);
    if (fake.set.fail_request > 0 && --fake.set.fail_request == 0) status = fake.set.fail_status;
    struct ibv_wc done = {.wr_id = send->request.wr_id, .status = status, .qp_num = queue->base.qp_num, .vendor_err = status ? 0x51 : 0};
    bool          aloud = send->request.send_flags & IBV_SEND_SIGNALED;
    fake.counts.requests++;
    queue->send_first++;
    queue->send_count--;
    if (status != IBV_WC_SUCCESS && fake.set.flush_first) fake_flush(queue);
    if (aloud || status != IBV_WC_SUCCESS) fake_complete((fake_cq *)queue->base.send_cq, done);
    if (status != IBV_WC_SUCCESS) fake_flush(queue);
}

void *fake_fabric_run(void *context) {
    (void)context;
    pthread_mutex_lock(&fake.lock);
    for (;;) {
        fake_qp *ready[FAKE_QUEUES];
        uint32_t count = 0;
        for (uint32_t i = 0; i < FAKE_QUEUES; i++)
            if (fake.queues[i] && fake.queues[i]->state == IBV_QPS_RTS && fake.queues[i]->send_count) ready[count++] = fake.queues[i];
        if (count == 0) {
            pthread_cond_wait(&fake.work, &fake.lock);
            continue;
        }
        fake.random = fake.random * 1664525u + 1013904223u;
        step(ready[(fake.random >> 8) % count]);
        if ((fake.random >> 24) % 4 == 0) { /* others may post and poll in between */
            pthread_mutex_unlock(&fake.lock);
            pthread_mutex_lock(&fake.lock);
        }
    }
}

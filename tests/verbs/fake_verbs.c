/* The calls of the fake verbs. Each is under one lock; those that a real system may refuse can be made to fail by number. */
#include "fake_verbs.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fake_inside.h"

fake_fabric fake = {.lock = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER};

static struct ibv_device devices[FAKE_DEVICES] = {{.name = "fake0"}, {.name = "fake1"}, {.name = "fake2"}};
static const char *const gids[FAKE_GIDS] = {"fe80::5054:ff:fe00:1", "fe80::5054:ff:fe00:1", "::ffff:10.0.0.1"};

/* --- for tests --- */

void fake_verbs_reset(void) {
    pthread_mutex_lock(&fake.lock);
    fake.set = (fake_verbs_settings){.devices = 1, .seed = 1, .most_inline = 512, .most_message_bytes = 8 << 20,
                                     .most_requests = 1024, .most_completions = 32767, .ethernet = true};
    fake.counts = (fake_verbs_counts){.objects = fake.counts.objects};
    fake.random = fake.set.seed;
    pthread_mutex_unlock(&fake.lock);
}

fake_verbs_settings *fake_verbs_set(void) { return &fake.set; }

fake_verbs_counts fake_verbs_read(void) {
    pthread_mutex_lock(&fake.lock);
    fake_verbs_counts counts = fake.counts;
    pthread_mutex_unlock(&fake.lock);
    return counts;
}

void fake_verbs_fail_request(int after, enum ibv_wc_status status, bool flush_first) {
    pthread_mutex_lock(&fake.lock);
    fake.set.fail_request = after;
    fake.set.fail_status = status;
    fake.set.flush_first = flush_first;
    pthread_mutex_unlock(&fake.lock);
}

void fake_verbs_cut(bool cut) {
    pthread_mutex_lock(&fake.lock);
    fake.set.cut = cut;
    pthread_mutex_unlock(&fake.lock);
}

/* Whether this call is the one that is to fail. Under the lock. */
static bool fails(const char *name) {
    if (++fake.counts.calls != fake.set.fail_call) return false;
    strncpy(fake.counts.failed_call, name, sizeof fake.counts.failed_call - 1);
    errno = ENOMEM;
    return true;
}

/* An object of so many bytes, or NULL where the call fails. */
static void *create(const char *name, size_t bytes) {
    if (fails(name)) return NULL;
    fake.counts.objects++;
    return calloc(1, bytes);
}

static int release(void *object) {
    fake.counts.objects--;
    free(object);
    return 0;
}

/* --- devices --- */

static struct ibv_device **get_device_list(int *count_out) {
    pthread_mutex_lock(&fake.lock);
    struct ibv_device **list = fails("get_device_list") ? NULL : calloc(FAKE_DEVICES + 1, sizeof *list);
    for (int i = 0; list && i < fake.set.devices; i++) list[i] = &devices[i];
    if (list) *count_out = fake.set.devices;
    pthread_mutex_unlock(&fake.lock);
    return list;
}
static void        free_device_list(struct ibv_device **list) { free(list); }
static const char *get_device_name(struct ibv_device *device) { return device->name; }

static struct ibv_context *open_device(struct ibv_device *device) {
    pthread_mutex_lock(&fake.lock);
    struct ibv_context *context = create("open_device", sizeof *context);
    if (context) {
        context->device = device;
        pthread_t thread; /* for the rest of the process */
        if (!fake.runs) fake.runs = pthread_create(&thread, NULL, fake_fabric_run, NULL) == 0 && pthread_detach(thread) == 0;
    }
    pthread_mutex_unlock(&fake.lock);
    return context;
}

static int close_device(struct ibv_context *context) {
    pthread_mutex_lock(&fake.lock);
    release(context);
    pthread_mutex_unlock(&fake.lock);
    return 0;
}

static int query_device(struct ibv_context *context, struct ibv_device_attr *out) {
    (void)context;
    pthread_mutex_lock(&fake.lock);
    int error = fails("query_device") ? ENOMEM : 0;
    *out = (struct ibv_device_attr){.phys_port_cnt = 2, .max_qp_wr = (int)fake.set.most_requests,
                                    .max_cqe = (int)fake.set.most_completions, .max_qp_rd_atom = 4, .max_qp_init_rd_atom = 4};
    pthread_mutex_unlock(&fake.lock);
    return error;
}

static int query_port(struct ibv_context *context, uint8_t port, struct ibv_port_attr *out) {
    (void)context;
    if (port < 1 || port > 2) return EINVAL;
    pthread_mutex_lock(&fake.lock);
    int error = fails("query_port") ? ENOMEM : 0;
    *out = (struct ibv_port_attr){.state = port == 1 && !fake.set.ports_down ? IBV_PORT_ACTIVE : IBV_PORT_DOWN,
                                  .active_mtu = IBV_MTU_1024, .max_msg_sz = fake.set.most_message_bytes, .gid_tbl_len = FAKE_GIDS + 5,
                                  .lid = 7, .active_width = 2, .active_speed = 32,
                                  .link_layer = fake.set.ethernet ? IBV_LINK_LAYER_ETHERNET : IBV_LINK_LAYER_INFINIBAND};
    pthread_mutex_unlock(&fake.lock);
    return error;
}

static int query_gid(struct ibv_context *context, uint32_t port, uint32_t index, struct ibv_gid_entry *out, uint32_t flags, size_t bytes) {
    (void)context, (void)flags;
    if (index >= FAKE_GIDS || fake.set.no_gid) return ENODATA;
    memset(out, 0, bytes);
    inet_pton(AF_INET6, gids[index], out->gid.raw);
    out->gid_index = index;
    out->port_num = port;
    out->gid_type = !fake.set.ethernet ? IBV_GID_TYPE_IB : index == 0 ? IBV_GID_TYPE_ROCE_V1 : IBV_GID_TYPE_ROCE_V2;
    return 0;
}

/* --- memory --- */

static struct ibv_pd *alloc_pd(struct ibv_context *context) {
    pthread_mutex_lock(&fake.lock);
    struct ibv_pd *pd = create("alloc_pd", sizeof *pd);
    if (pd) pd->context = context;
    pthread_mutex_unlock(&fake.lock);
    return pd;
}

static int dealloc_pd(struct ibv_pd *pd) {
    pthread_mutex_lock(&fake.lock);
    for (const fake_mr *memory = fake.memories; memory; memory = memory->next)
        if (memory->base.pd == pd) fake_misuse("a domain was given back before its registrations");
    release(pd);
    pthread_mutex_unlock(&fake.lock);
    return 0;
}

/* Under the lock. */
static fake_mr *add_memory(const char *name, struct ibv_pd *pd, void *address, uint8_t *there, size_t bytes, int access) {
    fake_mr *memory = create(name, sizeof *memory);
    if (!memory) return NULL;
    uint32_t key = ++fake.last_key * 256 + 17;
    memory->base = (struct ibv_mr){.context = pd->context, .pd = pd, .addr = address, .length = bytes, .lkey = key, .rkey = key};
    memory->access = access;
    memory->there = there;
    memory->next = fake.memories;
    fake.memories = memory;
    fake.registered_bytes += bytes;
    return memory;
}

/* Where the bytes of a device's memory are; NULL: it is none. */
static uint8_t *alias_of(const void *address) {
    uintptr_t at = (uintptr_t)address, begin = (uintptr_t)fake.set.foreign;
    return begin && at >= begin && at < begin + fake.set.foreign_bytes ? fake.set.foreign_alias + (at - begin) : NULL;
}

static struct ibv_mr *reg_mr(struct ibv_pd *pd, void *address, size_t bytes, int access) {
    pthread_mutex_lock(&fake.lock);
    fake_mr *memory = NULL;
    uint8_t *alias = alias_of(address);
    bool     locked = fake.set.most_registered_bytes && fake.registered_bytes + bytes > fake.set.most_registered_bytes;
    bool     buffer = access == 0 || ((access & IBV_ACCESS_REMOTE_WRITE) && !(access & IBV_ACCESS_REMOTE_READ));
    if (locked || (buffer && fake.set.refuse_buffers) || (alias && !fake.set.peer_memory))
        errno = locked ? ENOMEM : EFAULT;
    else
        memory = add_memory("reg_mr", pd, address, alias ? alias : address, bytes, access);
    fake.counts.peers += memory && alias;
    pthread_mutex_unlock(&fake.lock);
    return memory ? &memory->base : NULL;
}

static struct ibv_mr *reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t bytes, uint64_t address, int descriptor, int access) {
    pthread_mutex_lock(&fake.lock);
    fake_mr *memory = NULL;
    uint8_t *alias = fake.set.any_dmabuf ? (uint8_t *)(uintptr_t)address : alias_of((const void *)(uintptr_t)address);
    struct stat about;
    if (!alias || fstat(descriptor, &about) != 0 || offset % 4096 != address % 4096 || offset + bytes > (uint64_t)about.st_size) {
        fake_misuse("a dma-buf that is none, or does not hold the memory");
        errno = EINVAL;
    } else if (fake.set.dmabuf_error) {
        errno = fake.set.dmabuf_error;
    } else if (fake.set.most_registered_bytes && fake.registered_bytes + bytes > fake.set.most_registered_bytes) {
        errno = ENOMEM;
    } else {
        memory = add_memory("reg_dmabuf_mr", pd, (void *)(uintptr_t)address, alias, bytes, access);
    }
    fake.counts.dmabufs += memory != NULL;
    pthread_mutex_unlock(&fake.lock);
    return memory ? &memory->base : NULL;
}

static int dereg_mr(struct ibv_mr *mr) {
    pthread_mutex_lock(&fake.lock);
    for (uint32_t i = 0; i < FAKE_QUEUES; i++)
        for (uint32_t k = 0; fake.queues[i] && k < fake.queues[i]->send_count; k++) {
            const fake_send *send = &fake.queues[i]->sends[(fake.queues[i]->send_first + k) % fake.queues[i]->cap.max_send_wr];
            if (send->request.num_sge && !(send->request.send_flags & IBV_SEND_INLINE) && send->where.lkey == mr->lkey)
                fake_misuse("a registration was given back while a request used it");
        }
    fake_mr **place = &fake.memories;
    while (*place && &(*place)->base != mr) place = &(*place)->next;
    if (*place)
        *place = (*place)->next;
    else
        fake_misuse("a registration was given back twice");
    fake.registered_bytes -= mr->length;
    release(mr);
    pthread_mutex_unlock(&fake.lock);
    return 0;
}

/* --- completion --- */

static struct ibv_comp_channel *create_comp_channel(struct ibv_context *context) {
    pthread_mutex_lock(&fake.lock);
    fake_channel *channel = create("create_comp_channel", sizeof *channel);
    if (channel) {
        channel->base.context = context;
        channel->base.fd = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
    }
    pthread_mutex_unlock(&fake.lock);
    return channel ? &channel->base : NULL;
}

static int destroy_comp_channel(struct ibv_comp_channel *channel) {
    pthread_mutex_lock(&fake.lock);
    close(channel->fd);
    release(channel);
    pthread_mutex_unlock(&fake.lock);
    return 0;
}

static struct ibv_cq *create_cq(struct ibv_context *context, int entries, void *user, struct ibv_comp_channel *channel, int vector) {
    (void)vector;
    pthread_mutex_lock(&fake.lock);
    fake_cq *cq = create("create_cq", sizeof *cq);
    if (cq) {
        cq->base = (struct ibv_cq){.context = context, .channel = channel, .cq_context = user, .cqe = entries};
        cq->capacity = (uint32_t)entries;
        cq->ring = calloc((size_t)entries, sizeof *cq->ring);
    }
    pthread_mutex_unlock(&fake.lock);
    return cq ? &cq->base : NULL;
}

static int destroy_cq(struct ibv_cq *base) {
    fake_cq *cq = (fake_cq *)base;
    pthread_mutex_lock(&fake.lock);
    if (cq->users) fake_misuse("a completion queue was destroyed before its queue pairs");
    fake_cq **place = &((fake_channel *)base->channel)->signalled;
    while (*place && *place != cq) place = &(*place)->next_signalled;
    if (*place) *place = cq->next_signalled;
    free(cq->ring);
    release(cq);
    pthread_mutex_unlock(&fake.lock);
    return 0;
}

static int get_cq_event(struct ibv_comp_channel *base, struct ibv_cq **cq_out, void **user_out) {
    fake_channel *channel = (fake_channel *)base;
    uint64_t      one;
    if (read(base->fd, &one, 8) != 8) return -1;
    pthread_mutex_lock(&fake.lock);
    fake_cq *cq = channel->signalled;
    if (cq && --cq->events == 0) channel->signalled = cq->next_signalled;
    pthread_mutex_unlock(&fake.lock);
    if (!cq) return -1;
    *cq_out = &cq->base;
    *user_out = cq->base.cq_context;
    return 0;
}
static void ack_cq_events(struct ibv_cq *cq, unsigned int count) { (void)cq, (void)count; }

static int poll_cq(struct ibv_cq *base, int capacity, struct ibv_wc *out) {
    fake_cq *cq = (fake_cq *)base;
    int      count = 0;
    pthread_mutex_lock(&fake.lock);
    for (; count < capacity && cq->count; cq->count--) out[count++] = cq->ring[cq->first++ % cq->capacity];
    if (fake.set.poll_fails) count = -1;
    pthread_mutex_unlock(&fake.lock);
    return count;
}

static int req_notify_cq(struct ibv_cq *base, int solicited_only) {
    (void)solicited_only;
    pthread_mutex_lock(&fake.lock);
    ((fake_cq *)base)->armed = true;
    pthread_mutex_unlock(&fake.lock);
    return 0;
}

/* --- queue pairs --- */

static struct ibv_qp *create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attributes) {
    fake_qp *queue = NULL;
    uint32_t number = 1;
    pthread_mutex_lock(&fake.lock);
    while (number < FAKE_QUEUES && fake.queues[number]) number++;
    if (attributes->cap.max_inline_data > fake.set.most_inline)
        errno = EINVAL;
    else
        queue = create("create_qp", sizeof *queue);
    if (queue) {
        queue->base = (struct ibv_qp){.context = pd->context, .pd = pd, .send_cq = attributes->send_cq, .recv_cq = attributes->recv_cq,
                                      .qp_num = number, .qp_type = IBV_QPT_RC};
        queue->cap = attributes->cap;
        queue->sends = calloc(queue->cap.max_send_wr, sizeof *queue->sends);
        queue->receives = calloc(queue->cap.max_recv_wr, sizeof *queue->receives);
        queue->places = calloc(queue->cap.max_recv_wr, sizeof *queue->places);
        ((fake_cq *)queue->base.send_cq)->users++;
        fake.queues[number] = queue;
    }
    pthread_mutex_unlock(&fake.lock);
    return queue ? &queue->base : NULL;
}

static int modify_qp(struct ibv_qp *base, struct ibv_qp_attr *attributes, int mask) {
    fake_qp *queue = (fake_qp *)base;
    pthread_mutex_lock(&fake.lock);
    int error = fails("modify_qp") ? ENOMEM : 0;
    if (!error) {
        enum ibv_qp_state to = attributes->qp_state;
        bool fits = to == IBV_QPS_ERR || (to == IBV_QPS_INIT && queue->state == IBV_QPS_RESET) ||
                    (to == IBV_QPS_RTR && queue->state == IBV_QPS_INIT) || (to == IBV_QPS_RTS && queue->state == IBV_QPS_RTR);
        if (!fits) error = EINVAL;
        if ((mask & IBV_QP_RETRY_CNT) && attributes->retry_cnt >= 7) fake_misuse("some devices would try for ever");
        if (mask & IBV_QP_TIMEOUT) fake.counts.ack_timeout = attributes->timeout;
        if (mask & IBV_QP_DEST_QPN) queue->peer = attributes->dest_qp_num;
        if (fits && to == IBV_QPS_ERR) fake_flush(queue);
        if (fits) queue->state = to;
        if (to == IBV_QPS_RTR && attributes->ah_attr.is_global && attributes->ah_attr.grh.sgid_index >= FAKE_GIDS) error = EINVAL;
    }
    pthread_mutex_unlock(&fake.lock);
    return error;
}

static int destroy_qp(struct ibv_qp *base) {
    fake_qp *queue = (fake_qp *)base;
    pthread_mutex_lock(&fake.lock);
    fake.queues[base->qp_num] = NULL;
    ((fake_cq *)base->send_cq)->users--;
    free(queue->sends);
    free(queue->receives);
    free(queue->places);
    release(queue);
    pthread_mutex_unlock(&fake.lock);
    return 0;
}

/* Under the lock. */
static int enqueue_send(fake_qp *queue, const struct ibv_send_wr *request) {
    static int posts;
    if (queue->state != IBV_QPS_RTS && queue->state != IBV_QPS_ERR) return EINVAL;
    if (fails("post_send")) return EAGAIN;
    if (fake.set.refuse_every && ++posts % fake.set.refuse_every == 0) return ENOMEM;
    if (queue->send_count == queue->cap.max_send_wr) {
        fake_misuse("more send requests than the queue pair holds");
        return ENOMEM;
    }
    fake_send *send = &queue->sends[(queue->send_first + queue->send_count++) % queue->cap.max_send_wr];
    send->request = *request;
    if (request->num_sge) send->where = request->sg_list[0];
    if (request->send_flags & IBV_SEND_INLINE) {
        if (send->where.length > queue->cap.max_inline_data) return EINVAL;
        memcpy(send->inlined, (const void *)(uintptr_t)send->where.addr, send->where.length);
    }
    if (queue->state == IBV_QPS_ERR) fake_flush(queue);
    return 0;
}

static int post_send(struct ibv_qp *base, struct ibv_send_wr *request, struct ibv_send_wr **bad_out) {
    pthread_mutex_lock(&fake.lock);
    int error = enqueue_send((fake_qp *)base, request);
    if (error) *bad_out = request;
    pthread_cond_signal(&fake.work);
    pthread_mutex_unlock(&fake.lock);
    return error;
}

static int post_recv(struct ibv_qp *base, struct ibv_recv_wr *request, struct ibv_recv_wr **bad_out) {
    fake_qp *queue = (fake_qp *)base;
    int      error = 0;
    pthread_mutex_lock(&fake.lock);
    if (fails("post_recv")) {
        error = ENOMEM;
    } else if (queue->receive_count == queue->cap.max_recv_wr) {
        fake_misuse("more receives than the queue pair holds");
        error = ENOMEM;
    } else {
        uint32_t place = (queue->receive_first + queue->receive_count++) % queue->cap.max_recv_wr;
        queue->receives[place] = *request;
        if (request->num_sge) queue->places[place] = request->sg_list[0];
        if (queue->state == IBV_QPS_ERR) fake_flush(queue);
    }
    if (error) *bad_out = request;
    pthread_mutex_unlock(&fake.lock);
    return error;
}

bool fake_verbs_forge(const void *bytes, size_t size_bytes) {
    bool sent = false;
    pthread_mutex_lock(&fake.lock);
    for (uint32_t i = 0; i < FAKE_QUEUES && !sent; i++) {
        fake_qp *queue = fake.queues[i];
        if (!queue || queue->state != IBV_QPS_RTS || size_bytes > FAKE_MOST_INLINE || size_bytes > queue->cap.max_inline_data) continue;
        struct ibv_sge     where = {.addr = (uintptr_t)bytes, .length = (uint32_t)size_bytes};
        struct ibv_send_wr request = {.wr_id = UINT64_C(0x7ffffff) << 32, .sg_list = &where, .num_sge = 1, .opcode = IBV_WR_SEND,
                                      .send_flags = IBV_SEND_INLINE};
        sent = enqueue_send(queue, &request) == 0;
    }
    pthread_cond_signal(&fake.work);
    pthread_mutex_unlock(&fake.lock);
    return sent;
}

const wefti_verbs_api fake_verbs = {
    .get_device_list = get_device_list,
    .free_device_list = free_device_list,
    .get_device_name = get_device_name,
    .open_device = open_device,
    .close_device = close_device,
    .query_device = query_device,
    .query_port = query_port,
    .query_gid = query_gid,
    .alloc_pd = alloc_pd,
    .dealloc_pd = dealloc_pd,
    .reg_mr = reg_mr,
    .reg_dmabuf_mr = reg_dmabuf_mr,
    .dereg_mr = dereg_mr,
    .create_comp_channel = create_comp_channel,
    .destroy_comp_channel = destroy_comp_channel,
    .create_cq = create_cq,
    .destroy_cq = destroy_cq,
    .get_cq_event = get_cq_event,
    .ack_cq_events = ack_cq_events,
    .create_qp = create_qp,
    .modify_qp = modify_qp,
    .destroy_qp = destroy_qp,
    .poll_cq = poll_cq,
    .req_notify_cq = req_notify_cq,
    .post_send = post_send,
    .post_recv = post_recv,
};

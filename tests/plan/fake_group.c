#include "plan/fake_group.h"

#include <string.h>

static void add_up(const fake_group *g, const wefti_collective_call *call, void *to, const void *from, size_t count) {
    const void *sources[64];
    for (int32_t i = 0; i < g->base.size; i++) sources[i] = from;
    (void)!wefti_reducer_host()->reduce(NULL, to, sources, g->base.size, count, call->dtype, call->op,
                                        call->op == WEFTI_REDUCE_AVG ? g->base.size : 1);
}

/* What the operation does, all at once, when it ends: until then receive holds what was there. */
static void perform(fake_group *g, const wefti_collective_call *call) {
    size_t size = weft_dtype_bytes(call->dtype), bytes = call->count * size;
    char   own[1 << 16];
    switch (call->kind) {
    case WEFTI_ALLREDUCE: add_up(g, call, call->receive, call->send, call->count); break;
    case WEFTI_REDUCE_SCATTER:
        add_up(g, call, call->receive, (const char *)call->send + (size_t)g->base.index * bytes, call->count);
        break;
    case WEFTI_ALLGATHER:
        memcpy(own, call->send, bytes);
        for (int32_t r = 0; r < g->base.size; r++) memcpy((char *)call->receive + (size_t)r * bytes, own, bytes);
        break;
    case WEFTI_ALLTOALL: /* every other one's row for this rank is what this rank has for itself */
        memcpy(own, (const char *)call->send + (size_t)g->base.index * bytes, bytes);
        for (int32_t r = 0; r < g->base.size; r++) memcpy((char *)call->receive + (size_t)r * bytes, own, bytes);
        break;
    case WEFTI_ALLTOALL_V: /* what comes from each other is as many elements of what this rank has for itself */
        bytes = 0;
        for (int32_t r = 0; r < g->base.index; r++) bytes += call->counts[r] * size;
        for (int32_t r = 0, at = 0; r < g->base.size; at += (int32_t)call->receive_counts[r++])
            memcpy((char *)call->receive + (size_t)at * size, (const char *)call->send + bytes, call->receive_counts[r] * size);
        break;
    case WEFTI_SEND:
        for (size_t i = 0; i < call->count && call->dtype == WEFT_F32; i++) g->sent += ((const float *)call->send)[i];
        break;
    case WEFTI_RECEIVE: /* the n-th message from member p, of f32, holds 100*p + n */
        for (size_t i = 0; i < call->count; i++) ((float *)call->receive)[i] = (float)(100 * call->root + g->received[call->root]);
        g->received[call->root]++;
        break;
    default: break;
    }
}

static weft_status start(wefti_group *group, const wefti_collective_call *call, wefti_collective **operation_out) {
    fake_group *g = (fake_group *)group;
    if (g->n_in_flight == g->most) return WEFT_E_AGAIN;
    for (int32_t i = 0; i < FAKE_MOST; i++) {
        fake_operation *o = &g->operation[i];
        if (o->in_flight) continue;
        *o = (fake_operation){{group}, *call, g->delay, true, g};
        g->started[g->n_started++ % 256] = *call;
        if (++g->n_in_flight > g->most_in_flight) g->most_in_flight = g->n_in_flight;
        group->sequence++;
        *operation_out = &o->base;
        return WEFT_OK;
    }
    return WEFT_E_AGAIN;
}

static weft_status end(fake_operation *o) {
    fake_group *g = o->owner;
    o->in_flight = false;
    g->n_in_flight--;
    if (g->fail_at >= 0 && g->n_started > g->fail_at) return wefti_fail(WEFT_E_PEER, "rank 1 is gone");
    perform(g, &o->call);
    return WEFT_OK;
}

static weft_status test(wefti_collective *operation) {
    fake_operation *o = (fake_operation *)operation;
    return o->looks-- > 0 ? WEFT_E_AGAIN : end(o);
}
static weft_status wait(wefti_collective *operation, uint64_t timeout_ns) {
    (void)timeout_ns;
    return end((fake_operation *)operation);
}

static const wefti_collective_engine engine = {.name = "fake", .start = start, .test = test, .wait = wait};

void fake_group_open(fake_group *group, int32_t size, int32_t index) {
    memset(group, 0, sizeof *group);
    group->base = (wefti_group){.engine = &engine, .size = size, .index = index};
    group->most = FAKE_MOST;
    group->fail_at = -1;
    (void)!wefti_fault_create(wefti_host_system(), &group->base.fault);
}
void fake_group_close(fake_group *group) { wefti_fault_release(group->base.fault); }

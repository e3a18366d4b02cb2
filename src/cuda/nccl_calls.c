/* Calls of the collective contract in terms of NCCL's (nccl_engine.h says what is refused).
 *
 * What NCCL has no call for is a group of its sends and receives, or of one call for each member's part; a member's part of its own is copied.
 * BOOL is a byte whose or and and are its maximum and minimum. Calls of no elements do nothing, on every member alike. */
#include <stdio.h>

#include "cuda/nccl_engine.h"
#include "cuda/nccl_inside.h"

static const char *kind_name(wefti_collective_kind kind) {
    static const char *const names[WEFTI_COLLECTIVE_KIND_COUNT] = {
        [WEFTI_ALLREDUCE] = "allreduce", [WEFTI_REDUCE_SCATTER] = "reduce-scatter", [WEFTI_ALLGATHER] = "allgather",
        [WEFTI_BROADCAST] = "broadcast", [WEFTI_BARRIER] = "barrier", [WEFTI_REDUCE_TO] = "reduce", [WEFTI_GATHER] = "gather",
        [WEFTI_SCATTER] = "scatter", [WEFTI_ALLTOALL] = "all-to-all", [WEFTI_REDUCE_SCATTER_V] = "reduce-scatterv",
        [WEFTI_ALLGATHER_V] = "allgatherv", [WEFTI_ALLTOALL_V] = "all-to-allv", [WEFTI_SEND] = "send", [WEFTI_RECEIVE] = "receive"};
    return (unsigned)kind < WEFTI_COLLECTIVE_KIND_COUNT ? names[kind] : "an unknown kind";
}

const char *wefti_nccl_words(const nccl_operation *operation, char text[160]) {
    const wefti_collective_call *call = &operation->call;
    if (call->kind == WEFTI_BARRIER) snprintf(text, 160, "barrier");
    else snprintf(text, 160, "%s of %zu %s", kind_name(call->kind), call->count, weft_dtype_name(call->dtype));
    return text;
}

static bool reduces(wefti_collective_kind kind) {
    return kind == WEFTI_ALLREDUCE || kind == WEFTI_REDUCE_SCATTER || kind == WEFTI_REDUCE_TO || kind == WEFTI_REDUCE_SCATTER_V;
}

static ncclDataType_t type_of(weft_dtype dtype) {
    switch (dtype) {
    case WEFT_F32: return ncclFloat32;
    case WEFT_F64: return ncclFloat64;
    case WEFT_BF16: return ncclBfloat16;
    case WEFT_F16: return ncclFloat16;
    case WEFT_I64: return ncclInt64;
    case WEFT_I32: return ncclInt32;
    default: return ncclUint8;
    }
}

static ncclRedOp_t op_of(const wefti_collective_call *call) {
    bool logical = call->dtype == WEFT_BOOL;
    switch (call->op) {
    case WEFTI_REDUCE_PROD: return logical ? ncclMin : ncclProd;
    case WEFTI_REDUCE_MIN: return ncclMin;
    case WEFTI_REDUCE_MAX: return ncclMax;
    default: return logical ? ncclMax : ncclSum;
    }
}

/* --- what is done --- */

static weft_status refuse(const wefti_collective_call *call, const char *why) {
    return wefti_fail(WEFT_E_UNSUPPORTED, "NCCL: %s of %s, %s: %s", kind_name(call->kind), weft_dtype_name(call->dtype),
                      call->op == WEFTI_REDUCE_USER ? "user" : wefti_reduce_op_name(call->op), why);
}

weft_status wefti_nccl_supports(const wefti_group *group, const wefti_collective_call *call) {
    bool half = call->dtype == WEFT_F16 || call->dtype == WEFT_BF16, adds = call->op == WEFTI_REDUCE_SUM || call->op == WEFTI_REDUCE_PROD;
    if ((unsigned)call->kind >= WEFTI_COLLECTIVE_KIND_COUNT)
        return wefti_fail(WEFT_E_UNSUPPORTED, "NCCL: collective kind %d is none that there is", (int)call->kind);
    if (call->kind == WEFTI_BARRIER) return WEFT_OK;
    if ((unsigned)call->dtype >= WEFT_DTYPE_COUNT)
        return wefti_fail(WEFT_E_DTYPE, "NCCL: %s: %d is no dtype", kind_name(call->kind), (int)call->dtype);
    if (!reduces(call->kind)) return WEFT_OK;
    if (call->op == WEFTI_REDUCE_USER) return refuse(call, "functions of the application run on the host");
    if ((unsigned)call->op >= WEFTI_REDUCE_OP_COUNT) return wefti_fail(WEFT_E_INVALID, "NCCL: %d is no reduction", (int)call->op);
    if (call->op == WEFTI_REDUCE_AVG) return refuse(call, "its average is not the sum divided once");
    if (half && adds && group->size > 2) return refuse(call, "it rounds after every addition, where one rounding is due");
    if (!adds && weft_dtype_is_float(call->dtype)) return refuse(call, "it may lose NaNs");
    return WEFT_OK;
}

/* --- giving it to NCCL --- */

/* Copies a member's own part where it does not lie there already. */
static ncclResult_t keep(const nccl_group *group, void *to, const void *from, size_t bytes) {
    if (to == from || bytes == 0) return ncclSuccess;
    cudaError_t error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, group->stream);
    return error == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

/* Inside a group calls may report that an earlier one is still under way. */
static bool goes_on(ncclResult_t result) { return result == ncclSuccess || result == ncclInProgress; }

/* A message to each member, or to one, and one from each, or from one. What goes to everyone lies part by part. */
enum { EVERYONE = -1, NOBODY = -2 };
typedef struct exchange {
    const char   *send;
    char         *receive;
    const size_t *send_counts, *receive_counts; /* [size]; NULL: `count` each */
    size_t        count;
    int32_t       to, from;
} exchange;

static size_t part(const size_t *counts, size_t count, int32_t i) { return counts ? counts[i] : count; }

static ncclResult_t post_exchange(nccl_group *group, const wefti_collective_call *call, const exchange *x) {
    const wefti_cuda_nccl_functions *nccl = group->nccl;
    size_t         element = weft_dtype_bytes(call->dtype);
    ncclDataType_t type = type_of(call->dtype);
    const char    *send = x->send;
    char          *receive = x->receive;
    ncclResult_t   result = nccl->ncclGroupStart();
    for (int32_t i = 0; i < group->base.size && goes_on(result); i++) {
        size_t out = part(x->send_counts, x->count, i), in = part(x->receive_counts, x->count, i);
        bool   sends = x->to == EVERYONE || x->to == i, receives = x->from == EVERYONE || x->from == i;
        if (i == group->base.index) {
            if (sends && receives) result = keep(group, receive, send, in * element);
        } else {
            if (sends && out) result = nccl->ncclSend(send, out, type, i, group->comm, group->stream);
            if (receives && in && goes_on(result)) result = nccl->ncclRecv(receive, in, type, i, group->comm, group->stream);
        }
        if (x->to == EVERYONE) send += out * element;
        if (x->from == EVERYONE) receive += in * element;
    }
    ncclResult_t ended = nccl->ncclGroupEnd();
    return goes_on(result) ? ended : result;
}

/* GATHER, SCATTER and all-to-all, as messages. */
static ncclResult_t enqueue_exchange(nccl_group *group, const wefti_collective_call *call) {
    bool     root = group->base.index == call->root;
    exchange x = {.send = call->send, .receive = call->receive, .count = call->count, .to = EVERYONE, .from = EVERYONE};
    switch (call->kind) {
    case WEFTI_GATHER:
        x.to = call->root;
        if (!root) x.from = NOBODY;
        break;
    case WEFTI_SCATTER:
        x.from = call->root;
        if (!root) x.to = NOBODY;
        break;
    case WEFTI_ALLTOALL_V:
        x.send_counts = call->counts;
        x.receive_counts = call->receive_counts;
        break;
    case WEFTI_SEND:
        x.to = call->root;
        x.from = NOBODY;
        break;
    case WEFTI_RECEIVE:
        x.from = call->root;
        x.to = NOBODY;
        break;
    default: break;
    }
    return post_exchange(group, call, &x);
}

/* The kinds whose parts differ: one reduction, or broadcast, for each member's. */
static ncclResult_t enqueue_parts(nccl_group *group, const wefti_collective_call *call) {
    const wefti_cuda_nccl_functions *nccl = group->nccl;
    size_t         element = weft_dtype_bytes(call->dtype), at = 0;
    ncclDataType_t type = type_of(call->dtype);
    ncclResult_t   result = nccl->ncclGroupStart();
    for (int32_t i = 0; i < group->base.size && goes_on(result); at += call->counts[i++]) {
        const char *send = call->send;
        char       *receive = call->receive;
        if (call->counts[i] == 0) continue;
        if (call->kind == WEFTI_REDUCE_SCATTER_V)
            result = nccl->ncclReduce(send + at * element, receive, call->counts[i], type, op_of(call), i, group->comm, group->stream);
        else
            result = nccl->ncclBroadcast(i == group->base.index ? send : receive + at * element, receive + at * element, call->counts[i], type, i,
                                         group->comm, group->stream);
    }
    ncclResult_t ended = nccl->ncclGroupEnd();
    return goes_on(result) ? ended : result;
}

ncclResult_t wefti_nccl_enqueue(nccl_group *group, const wefti_collective_call *call) {
    const wefti_cuda_nccl_functions *nccl = group->nccl;
    ncclDataType_t type = type_of(call->dtype);
    ncclComm_t     comm = group->comm;
    cudaStream_t   stream = group->stream;
    switch (call->kind) {
    case WEFTI_BARRIER: return nccl->ncclAllReduce(group->token, group->token, 1, ncclUint8, ncclMax, comm, stream);
    case WEFTI_REDUCE_SCATTER_V:
    case WEFTI_ALLGATHER_V: return enqueue_parts(group, call);
    case WEFTI_ALLTOALL_V: return enqueue_exchange(group, call);
    default: break;
    }
    if (call->count == 0) return ncclSuccess;
    switch (call->kind) {
    case WEFTI_ALLREDUCE: return nccl->ncclAllReduce(call->send, call->receive, call->count, type, op_of(call), comm, stream);
    case WEFTI_REDUCE_SCATTER: return nccl->ncclReduceScatter(call->send, call->receive, call->count, type, op_of(call), comm, stream);
    case WEFTI_ALLGATHER: return nccl->ncclAllGather(call->send, call->receive, call->count, type, comm, stream);
    case WEFTI_BROADCAST:
        return nccl->ncclBroadcast(group->base.index == call->root ? call->send : call->receive, call->receive, call->count, type, call->root, comm,
                                   stream);
    case WEFTI_REDUCE_TO: return nccl->ncclReduce(call->send, call->receive, call->count, type, op_of(call), call->root, comm, stream);
    default: return enqueue_exchange(group, call);
    }
}

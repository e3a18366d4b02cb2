/* NCCL as an engine of collectives: operations in flight (nccl_engine.h).
 *
 * An operation passes from waiting to running to ended, in the order of the starts. Its start records an event on the stream that it comes after;
 * NCCL is given it on the group's stream, behind that event, and an event after it tells its end. A non-blocking communicator may take a call and
 * still be making connections for it: until that is over it takes no other, and what follows waits in the list.
 *
 * Deadlines count from when an operation could begin, that is when what it was to come after is done: the host may be many steps ahead of the GPU.
 * A verdict of the world's fault object ends the communicator, and all operations end with the verdict. What NCCL reports of its own is
 * raised as a fault after a moment, in which the rank that is the cause may still become known by the control channel, by name.
 *
 * One thread uses a group, the one that launches on its device. Nothing is allocated after open. */
#include <stdio.h>
#include <string.h>

#include "cuda/nccl_engine.h"
#include "cuda/nccl_inside.h"

#define GRACE_NS (1500 * WEFTI_MILLISECOND_NS) /* a reset connection is blamed on its rank within a second (weft/world.h) */
#define SPINS 200                              /* looks before a wait lets others run */

static const char *const what = "a collective of NCCL";

static nccl_operation *operation_of(const wefti_collective *base) { return (nccl_operation *)(uintptr_t)base; }

/* --- failing --- */

static void give_back(nccl_group *group, nccl_operation *operation) {
    nccl_operation **at = &group->first, *before = NULL;
    while (*at && *at != operation) {
        before = *at;
        at = &(*at)->next;
    }
    if (*at) *at = operation->next;
    if (group->last == operation) group->last = before;
    operation->state = NCCL_FREE;
    operation->next = group->unused;
    group->unused = operation;
}

/* All that is in flight ends with the verdict; the communicator is gone. */
static weft_status fail_all(nccl_group *group, weft_status verdict) {
    char message[WEFTI_MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", weft_error_message());
    wefti_nccl_end(group, false);
    for (nccl_operation *operation = group->first, *next; operation; operation = next) {
        next = operation->next;
        operation->state = NCCL_ENDED;
        operation->status = verdict;
        if (operation->joined) give_back(group, operation);
    }
    return wefti_fail(verdict, "%s", message);
}

/* This rank finds a fault: everybody is told; gives the verdict, which may be an earlier one. */
static weft_status raise(nccl_group *group, weft_status status, int32_t rank, const char *cause) {
    wefti_fault_raise(group->base.fault, status, rank, cause);
    weft_status verdict = wefti_fault_status(group->base.fault);
    return fail_all(group, verdict == WEFT_OK ? status : verdict);
}

static weft_status time_out(nccl_group *group, const nccl_operation *operation) {
    char words[160], cause[256];
    snprintf(cause, sizeof cause, "NCCL's operation %llu of group %u, %s, has not ended within %.3g s: some rank has not started it, or its network is cut",
             (unsigned long long)operation->sequence, (unsigned)group->id, wefti_nccl_words(operation, words),
             (double)(operation->call.timeout_ns ? operation->call.timeout_ns : group->timeout_ns) / 1e9);
    return raise(group, WEFT_E_TIMEOUT, -1, cause);
}

/* What the communicator says: WEFT_OK, WEFT_E_AGAIN where it is still busy with a call, or the verdict. */
static weft_status look_at_communicator(nccl_group *group, uint64_t now_ns) {
    char         cause[256];
    ncclResult_t state = group->error;
    if (state == ncclSuccess) {
        ncclResult_t asked = group->nccl->ncclCommGetAsyncError(group->comm, &state);
        if (asked != ncclSuccess) state = asked;
    }
    if (state == ncclSuccess) return WEFT_OK;
    if (state == ncclInProgress) return WEFT_E_AGAIN;
    if (group->error_since_ns == 0) group->error_since_ns = now_ns ? now_ns : 1;
    if (now_ns - group->error_since_ns < GRACE_NS && (state == ncclRemoteError || state == ncclSystemError)) return WEFT_E_AGAIN;
    snprintf(cause, sizeof cause, "NCCL: %s (%.150s)", group->nccl->ncclGetErrorString(state), group->nccl->ncclGetLastError(group->comm));
    return raise(group, state == ncclRemoteError || state == ncclSystemError ? WEFT_E_LINK : WEFT_E_DEVICE, group->base.ranks[group->base.index], cause);
}

/* --- getting on --- */

static weft_status mark_end(nccl_group *group, nccl_operation *operation) {
    WEFTI_TRY(wefti_cuda_check(group->cuda, cudaEventRecord(operation->after, group->stream), what));
    operation->state = NCCL_RUNNING;
    return WEFT_OK;
}

/* Gives the operation to NCCL, behind what it comes after. */
static weft_status take(nccl_group *group, nccl_operation *operation, uint64_t now_ns) {
    WEFTI_TRY(wefti_cuda_check(group->cuda, cudaStreamWaitEvent(group->stream, operation->before, 0), what));
    ncclResult_t result = wefti_nccl_enqueue(group, &operation->call);
    operation->state = NCCL_TAKEN;
    if (result == ncclSuccess) return mark_end(group, operation);
    if (result == ncclInProgress) return WEFT_OK;
    group->error = result;
    weft_status status = look_at_communicator(group, now_ns);
    return status == WEFT_E_AGAIN ? WEFT_OK : status;
}

/* WEFT_E_AGAIN while it is not. */
static weft_status is_reached(nccl_group *group, cudaEvent_t event) {
    cudaError_t error = cudaEventQuery(event);
    if (error != cudaErrorNotReady) return wefti_cuda_check(group->cuda, error, what);
    (void)cudaGetLastError();
    return WEFT_E_AGAIN;
}

static weft_status check_deadline(nccl_group *group, nccl_operation *operation, uint64_t now_ns) {
    uint64_t timeout_ns = operation->call.timeout_ns ? operation->call.timeout_ns : group->timeout_ns;
    if (!operation->begun) {
        weft_status status = is_reached(group, operation->before);
        if (status != WEFT_OK) return status == WEFT_E_AGAIN ? WEFT_OK : status;
        operation->begun = true;
        operation->begun_ns = now_ns;
    }
    return now_ns >= wefti_deadline_after(operation->begun_ns, timeout_ns) ? time_out(group, operation) : WEFT_OK;
}

/* Whether the operation got as far as it can now. WEFT_E_AGAIN: what follows must wait for it. */
static weft_status advance(nccl_group *group, nccl_operation *operation, uint64_t now_ns) {
    if (operation->state == NCCL_WAITING || operation->state == NCCL_TAKEN) {
        weft_status status = look_at_communicator(group, now_ns);
        if (status == WEFT_E_AGAIN) {
            WEFTI_TRY(check_deadline(group, operation, now_ns));
            return WEFT_E_AGAIN;
        }
        WEFTI_TRY(status);
        if (operation->state == NCCL_TAKEN) WEFTI_TRY(mark_end(group, operation));
        else WEFTI_TRY(take(group, operation, now_ns));
        if (operation->state != NCCL_RUNNING) return WEFT_E_AGAIN;
    }
    if (operation->state != NCCL_RUNNING) return WEFT_OK;
    weft_status reached = is_reached(group, operation->after);
    if (reached == WEFT_E_AGAIN) return check_deadline(group, operation, now_ns);
    WEFTI_TRY(reached);
    operation->state = NCCL_ENDED;
    operation->status = WEFT_OK;
    if (operation->joined) give_back(group, operation);
    return WEFT_OK;
}

static weft_status progress(wefti_group *base, uint64_t now_ns) {
    nccl_group *group = nccl_group_of(base);
    weft_status verdict = wefti_fault_status(base->fault);
    if (verdict != WEFT_OK) return group->comm || group->first ? fail_all(group, verdict) : verdict;
    if (!group->comm) return wefti_fail(WEFT_E_ABORTED, "the communicator of NCCL was aborted");
    for (nccl_operation *operation = group->first, *next; operation; operation = next) {
        next = operation->next;
        weft_status status = advance(group, operation, now_ns);
        if (status == WEFT_E_AGAIN) break;
        WEFTI_TRY(status);
    }
    /* An error shows here also while nothing is waiting to be taken. */
    weft_status status = group->comm && group->first ? look_at_communicator(group, now_ns) : WEFT_OK;
    return status == WEFT_E_AGAIN ? WEFT_OK : status;
}

static weft_status look(void *context) {
    nccl_group *group = context;
    if (!group->first) return WEFT_OK;
    WEFTI_TRY(progress(&group->base, wefti_host_now(group->host)));
    return group->first ? WEFT_E_AGAIN : WEFT_OK;
}

/* --- the calls of the contract --- */

static weft_status open(const wefti_group_options *options, wefti_group **group_out) {
    WEFTI_TRY(wefti_nccl_open(options, group_out));
    nccl_group *group = nccl_group_of(*group_out);
    group->watcher = (wefti_cuda_watcher){.look = look, .context = group};
    wefti_cuda_watch(group->cuda, &group->watcher);
    return WEFT_OK;
}

static weft_status check_call(const wefti_group *group, const wefti_collective_call *call) {
    WEFTI_TRY(wefti_nccl_supports(group, call));
    bool rooted = call->kind == WEFTI_BROADCAST || call->kind == WEFTI_REDUCE_TO || call->kind == WEFTI_GATHER || call->kind == WEFTI_SCATTER;
    bool point = wefti_collective_is_point(call->kind);
    if ((rooted || point) && (call->root < 0 || call->root >= group->size || (point && call->root == group->index)))
        return wefti_fail(WEFT_E_INVALID, "NCCL: there is no other member %d in a group of %d", (int)call->root, (int)group->size);
    size_t bytes;
    if (call->kind == WEFTI_BARRIER) return WEFT_OK;
    if (call->kind == WEFTI_REDUCE_SCATTER_V || call->kind == WEFTI_ALLGATHER_V || call->kind == WEFTI_ALLTOALL_V)
        return call->counts && (call->kind != WEFTI_ALLTOALL_V || call->receive_counts)
                   ? WEFT_OK
                   : wefti_fail(WEFT_E_INVALID, "NCCL: counts is NULL; it wants %d numbers of elements, one for each member", (int)group->size);
    if (!wefti_mul_size(call->count, weft_dtype_bytes(call->dtype) * (size_t)group->size, &bytes) || bytes > PTRDIFF_MAX)
        return wefti_fail(WEFT_E_OVERFLOW, "NCCL: %zu %s on %d ranks do not fit into memory", call->count, weft_dtype_name(call->dtype),
                          (int)group->size);
    return WEFT_OK;
}

/* The oldest that nobody holds ends by itself, within its deadline: the host is that many operations ahead of the GPU. */
static weft_status make_room(nccl_group *group) {
    while (!group->unused) {
        WEFTI_TRY(progress(&group->base, wefti_host_now(group->host)));
        bool any = false;
        for (const nccl_operation *operation = group->first; operation && !any; operation = operation->next) any = operation->joined;
        if (group->unused) break;
        if (!any) return wefti_fail(WEFT_E_AGAIN, "%d operations of NCCL are in flight, as many as the group was opened for", (int)group->n_operations);
        group->host->yield(group->host->context);
    }
    return WEFT_OK;
}

static weft_status start(wefti_group *base, const wefti_collective_call *call, wefti_collective **operation_out) {
    nccl_group *group = nccl_group_of(base);
    *operation_out = NULL;
    WEFTI_TRY(wefti_fault_status(base->fault));
    WEFTI_TRY(check_call(base, call));
    WEFTI_TRY(wefti_cuda_enter(group->cuda));
    WEFTI_TRY(make_room(group));
    nccl_operation *operation = group->unused;
    cudaStream_t    after = call->stream ? (cudaStream_t)call->stream : group->cuda->stream;
    WEFTI_TRY(wefti_cuda_check(group->cuda, cudaEventRecord(operation->before, after), what));
    group->unused = operation->next;
    operation->next = NULL;
    if (group->last) group->last->next = operation;
    else group->first = operation;
    group->last = operation;
    operation->call = *call;
    operation->state = NCCL_WAITING;
    operation->joined = operation->begun = false;
    operation->status = WEFT_OK;
    operation->sequence = wefti_collective_is_point(call->kind) ? base->sequence : base->sequence++;
    *operation_out = &operation->base;
    (void)!progress(base, wefti_host_now(group->host)); /* what fails is the operation's outcome */
    return WEFT_OK;
}

static weft_status test(wefti_collective *base) {
    nccl_operation *operation = operation_of(base);
    nccl_group     *group = nccl_group_of(base->group);
    weft_status     status = WEFT_OK;
    if (operation->state != NCCL_ENDED) status = progress(base->group, wefti_host_now(group->host));
    if (operation->state == NCCL_ENDED) {
        status = operation->status == WEFT_OK ? WEFT_OK : wefti_fault_status(base->group->fault);
        if (operation->status != WEFT_OK && status == WEFT_OK) status = operation->status;
        give_back(group, operation);
        return status;
    }
    if (status == WEFT_OK) return WEFT_E_AGAIN;
    /* The device failed, and its streams are of no use any more. */
    return raise(group, status, base->group->ranks[base->group->index], weft_error_message());
}

static weft_status wait(wefti_collective *base, uint64_t timeout_ns) {
    const wefti_host *host = nccl_group_of(base->group)->host;
    uint64_t          deadline_ns = timeout_ns ? wefti_deadline_after(wefti_host_now(host), timeout_ns) : WEFTI_NEVER_NS;
    for (int spins = 0;; spins++) {
        weft_status status = test(base);
        if (status != WEFT_E_AGAIN || wefti_host_now(host) >= deadline_ns) return status;
        if (spins > SPINS) host->yield(host->context);
    }
}

static weft_status join(wefti_collective *base) {
    nccl_operation *operation = operation_of(base);
    nccl_group     *group = nccl_group_of(base->group);
    /* Only what is on the stream can be waited for there; connections are made at the first operations. */
    while (operation->state == NCCL_WAITING || operation->state == NCCL_TAKEN) {
        weft_status status = progress(base->group, wefti_host_now(group->host));
        if (status != WEFT_OK) break;
        if (operation->state == NCCL_WAITING || operation->state == NCCL_TAKEN) group->host->yield(group->host->context);
    }
    if (operation->state != NCCL_RUNNING) return test(base);
    operation->joined = true;
    return wefti_cuda_check(group->cuda, cudaStreamWaitEvent(group->cuda->stream, operation->after, 0), what);
}

static uint64_t sequence(const wefti_collective *operation) { return operation_of(operation)->sequence; }

static void describe(const wefti_group *base, wefti_text *text) {
    const nccl_group *group = nccl_group_of(base);
    static const char *const states[] = {"unused", "waits for NCCL", "connecting", "on the stream", "ended"};
    uint64_t now_ns = wefti_host_now(group->host);
    char     words[160];
    for (const nccl_operation *operation = group->first; operation; operation = operation->next)
        wefti_text_add(text, "operation %llu of group %u, %s (NCCL): %s%s, %.3f s\n", (unsigned long long)operation->sequence, (unsigned)group->id,
                       wefti_nccl_words(operation, words), states[operation->state], operation->begun ? "" : ", not begun",
                       operation->begun ? (double)(now_ns - operation->begun_ns) / 1e9 : 0.0);
}

const wefti_collective_engine *wefti_collective_engine_nccl(void) {
    static const wefti_collective_engine engine = {.name = "nccl", .open = open, .close = wefti_nccl_close, .supports = wefti_nccl_supports, .start = start,
                                                   .progress = progress, .test = test, .wait = wait, .join = join, .sequence = sequence,
                                                   .describe = describe};
    return &engine;
}

/* Opening and ending communicators of NCCL.
 *
 * Members first tell each other over the group that they were given whether they have the library; member 0's unique id goes the same way. The
 * communicator is non-blocking: it is polled until it stands, its deadline has passed, or the world has a fault. Its end is left to a thread of
 * its own, for NCCL may wait there for kernels and peers: whoever closes the group waits a few seconds for that thread, then goes on without. */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "cuda/nccl_engine.h"
#include "cuda/nccl_inside.h"

#define DEFAULT_TIMEOUT_NS (30 * WEFTI_SECOND_NS)
#define END_NS (5 * WEFTI_SECOND_NS) /* aborting takes some milliseconds; more is NCCL hanging */
enum { DEFAULT_IN_FLIGHT = 64 };

/* --- the end --- */

typedef struct ending {
    atomic_int owners;
    atomic_int over;
    ncclComm_t comm;
    bool       orderly;
    int32_t    ordinal;
    const wefti_cuda_nccl_functions *nccl;
} ending;

static void let_go(ending *self) {
    if (atomic_fetch_sub(&self->owners, 1) == 1) wefti_free(self, sizeof *self);
}

static void *run_end(void *context) {
    ending           *self = context;
    const wefti_host *host = wefti_host_system();
    ncclResult_t      result = ncclSuccess, state = ncclInProgress;
    (void)cudaSetDevice(self->ordinal);
    if (self->orderly) {
        result = self->nccl->ncclCommFinalize(self->comm);
        uint64_t deadline_ns = wefti_deadline_after(wefti_host_now(host), END_NS / 2);
        while (result == ncclInProgress && self->nccl->ncclCommGetAsyncError(self->comm, &state) == ncclSuccess && state == ncclInProgress &&
               wefti_host_now(host) < deadline_ns)
            host->sleep(host->context, WEFTI_MILLISECOND_NS / 4);
        if (result == ncclInProgress) result = state;
    }
    if (self->orderly && result == ncclSuccess) (void)self->nccl->ncclCommDestroy(self->comm);
    else (void)self->nccl->ncclCommAbort(self->comm);
    atomic_store(&self->over, 1);
    let_go(self);
    return NULL;
}

void wefti_nccl_end(nccl_group *group, bool orderly) {
    ending   *self = NULL;
    pthread_t thread;
    if (!group->comm) return;
    if (wefti_alloc(sizeof *self, "the end of a communicator", &self) != WEFT_OK) return; /* nothing can be done: it stays */
    *self = (ending){.comm = group->comm, .orderly = orderly, .ordinal = group->cuda->ordinal, .nccl = group->nccl};
    atomic_init(&self->owners, 2);
    atomic_init(&self->over, 0);
    group->comm = NULL;
    if (pthread_create(&thread, NULL, run_end, self) != 0) {
        wefti_log(WEFT_LOG_WARNING, "cuda:%d: no thread to end a communicator of NCCL; it stays until the process ends", (int)group->cuda->ordinal);
        wefti_free(self, sizeof *self);
        return;
    }
    (void)pthread_detach(thread);
    uint64_t deadline_ns = wefti_deadline_after(wefti_host_now(group->host), END_NS);
    while (!atomic_load(&self->over) && wefti_host_now(group->host) < deadline_ns) group->host->sleep(group->host->context, WEFTI_MILLISECOND_NS / 4);
    if (!atomic_load(&self->over))
        wefti_log(WEFT_LOG_WARNING, "cuda:%d: NCCL does not end a communicator within %d s; it is left to itself", (int)group->cuda->ordinal,
                  (int)(END_NS / WEFTI_SECOND_NS));
    let_go(self);
}

/* --- meeting --- */

/* What members tell each other: whether they can, and of member 0, the name of what they open. */
typedef struct introduction {
    int32_t      status, version;
    char         why[240];
    ncclUniqueId id;
} introduction;

static weft_status compare(const wefti_group *over, const introduction *all) {
    char first[24], other[24];
    for (int32_t i = 0; i < over->size; i++)
        if (all[i].status != WEFT_OK)
            return wefti_fail((weft_status)all[i].status, "rank %d cannot use NCCL: %.239s", (int)over->ranks[i], all[i].why);
    for (int32_t i = 1; i < over->size; i++)
        if (all[i].version != all[0].version)
            return wefti_fail(WEFT_E_MISMATCH, "rank %d has NCCL %s, rank %d NCCL %s: install the same on all hosts", (int)over->ranks[0],
                              wefti_cuda_nccl_version_text(all[0].version, first), (int)over->ranks[i],
                              wefti_cuda_nccl_version_text(all[i].version, other));
    return WEFT_OK;
}

/* Loads the library, and agrees with the others on the communicator's id. Every member meets the others, whatever it found. */
static weft_status meet(nccl_group *group, wefti_group *over, ncclUniqueId *id_out) {
    introduction  mine = {0}, *all = NULL;
    size_t        bytes = (size_t)over->size * sizeof *all;
    int32_t       version = 0;
    weft_status   status = wefti_cuda_nccl_load(&group->nccl, &version);
    if (status == WEFT_OK && over->index == 0) {
        ncclResult_t result = group->nccl->ncclGetUniqueId(&mine.id);
        if (result != ncclSuccess)
            status = wefti_fail(WEFT_E_LINK, "NCCL finds no network (%s, %s); NCCL_DEBUG=WARN says more", group->nccl->ncclGetErrorString(result),
                                group->nccl->ncclGetLastError(NULL));
    }
    mine.status = (int32_t)status;
    mine.version = version;
    if (status != WEFT_OK) strncpy(mine.why, weft_error_message(), sizeof mine.why - 1);
    WEFTI_TRY(wefti_alloc(bytes, "what ranks say about NCCL", &all));
    wefti_collective_call call = {.kind = WEFTI_ALLGATHER, .dtype = WEFT_U8, .send = &mine, .receive = all, .count = sizeof mine};
    status = wefti_collective_run(over, &call);
    if (status == WEFT_OK) status = compare(over, all);
    if (status == WEFT_OK) *id_out = all[0].id;
    wefti_free(all, bytes);
    return status;
}

static weft_status poll_communicator(nccl_group *group, ncclResult_t result) {
    uint64_t deadline_ns = wefti_deadline_after(wefti_host_now(group->host), group->timeout_ns);
    for (;;) {
        ncclResult_t state = result;
        if (result == ncclSuccess || result == ncclInProgress) {
            ncclResult_t asked = group->nccl->ncclCommGetAsyncError(group->comm, &state);
            if (asked != ncclSuccess) state = asked;
        }
        if (state == ncclSuccess) return WEFT_OK;
        if (state != ncclInProgress)
            return wefti_fail(state == ncclInvalidUsage ? WEFT_E_UNSUPPORTED : WEFT_E_LINK,
                              "NCCL makes no communicator of %d ranks: %s (%s)%s; NCCL_DEBUG=WARN says more, WEFT_NCCL=off does without",
                              (int)group->base.size, group->nccl->ncclGetErrorString(state), group->nccl->ncclGetLastError(group->comm),
                              state == ncclInvalidUsage ? ". Ranks that share a GPU need an NCCL_HOSTID of their own each" : "");
        WEFTI_TRY(wefti_fault_status(group->base.fault));
        if (wefti_host_now(group->host) >= deadline_ns)
            return wefti_fail(WEFT_E_TIMEOUT, "NCCL made no communicator of %d ranks within %.1f s: does every rank come, and does NCCL_SOCKET_IFNAME "
                              "(NCCL_IB_HCA) name a network that reaches all hosts? NCCL_DEBUG=INFO says more, WEFT_NCCL=off does without",
                              (int)group->base.size, (double)group->timeout_ns / 1e9);
        group->host->sleep(group->host->context, WEFTI_MILLISECOND_NS / 4);
    }
}

static weft_status make_communicator(nccl_group *group, const ncclUniqueId *id) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    WEFTI_TRY(wefti_cuda_enter(group->cuda));
    return poll_communicator(group, group->nccl->ncclCommInitRankConfig(&group->comm, group->base.size, *id, group->base.index, &config));
}

/* --- the group --- */

static weft_status make_streams(nccl_group *group) {
    int least = 0, greatest = 0;
    WEFTI_TRY(wefti_cuda_enter(group->cuda));
    WEFTI_TRY(wefti_cuda_check(group->cuda, cudaDeviceGetStreamPriorityRange(&least, &greatest), "priorities"));
    /* Messages first: what computes fills the GPU anyway. */
    WEFTI_TRY(wefti_cuda_check(group->cuda, cudaStreamCreateWithPriority(&group->stream, cudaStreamNonBlocking, greatest), "a stream for NCCL"));
    for (int32_t i = 0; i < group->n_operations; i++) {
        nccl_operation *operation = &group->operations[i];
        operation->base.group = &group->base;
        operation->next = group->unused;
        group->unused = operation;
        WEFTI_TRY(wefti_cuda_check(group->cuda, cudaEventCreateWithFlags(&operation->before, cudaEventDisableTiming), "an event"));
        WEFTI_TRY(wefti_cuda_check(group->cuda, cudaEventCreateWithFlags(&operation->after, cudaEventDisableTiming), "an event"));
    }
    return group->cuda->base.vtable->allocate(&group->cuda->base, NCCL_TOKEN_BYTES, "what NCCL's barriers send", &group->token);
}

static weft_status check_options(const wefti_group_options *options) {
    if (!options->device || strcmp(options->device->vtable->kind, "cuda") != 0)
        return wefti_fail(WEFT_E_UNSUPPORTED, "NCCL moves memory of CUDA devices, and this rank computes on '%s'",
                          options->device ? options->device->vtable->kind : "none");
    if (!options->over) return wefti_fail(WEFT_E_INVALID, "a group of NCCL needs a group over which its members meet");
    if (options->size != options->over->size || options->index != options->over->index)
        return wefti_fail(WEFT_E_INVALID, "a group of NCCL of %d members, this one %d, over a group of %d, this one %d", (int)options->size,
                          (int)options->index, (int)options->over->size, (int)options->over->index);
    return WEFT_OK;
}

static weft_status fill(nccl_group *group, const wefti_group_options *options) {
    ncclUniqueId id;
    group->base = (wefti_group){.engine = wefti_collective_engine_nccl(), .fault = options->fault, .size = options->size, .index = options->index,
                                .ranks = options->over->ranks};
    group->cuda = wefti_cuda_of(options->device);
    group->host = options->host ? options->host : wefti_host_system();
    group->timeout_ns = options->timeout_ns ? options->timeout_ns : DEFAULT_TIMEOUT_NS;
    group->id = options->id;
    if (!group->base.fault) {
        WEFTI_TRY(wefti_fault_create(group->host, &group->base.fault));
        group->own_fault = true;
    }
    /* What can fail on this rank alone comes first: the others then learn of it as they meet. */
    WEFTI_TRY(wefti_alloc((size_t)group->n_operations * sizeof *group->operations, "operations of NCCL", &group->operations));
    WEFTI_TRY(make_streams(group));
    WEFTI_TRY(meet(group, options->over, &id));
    return make_communicator(group, &id);
}

static void release(nccl_group *group) {
    wefti_cuda *cuda = group->cuda;
    (void)cudaSetDevice(cuda->ordinal);
    for (int32_t i = 0; group->operations && i < group->n_operations; i++) {
        if (group->operations[i].before) (void)cudaEventDestroy(group->operations[i].before);
        if (group->operations[i].after) (void)cudaEventDestroy(group->operations[i].after);
    }
    if (group->stream) (void)cudaStreamDestroy(group->stream);
    cuda->base.vtable->deallocate(&cuda->base, group->token, NCCL_TOKEN_BYTES);
    (void)cudaGetLastError();
    if (group->own_fault) wefti_fault_release(group->base.fault);
    wefti_free(group->operations, (size_t)group->n_operations * sizeof *group->operations);
    wefti_free(group, sizeof *group);
}

weft_status wefti_nccl_open(const wefti_group_options *options, wefti_group **group_out) {
    nccl_group *group = NULL;
    *group_out = NULL;
    WEFTI_TRY(check_options(options));
    WEFTI_TRY(wefti_alloc(sizeof *group, "a group of NCCL", &group));
    group->n_operations = options->in_flight > 0 ? options->in_flight : DEFAULT_IN_FLIGHT;
    weft_status status = fill(group, options);
    if (status == WEFT_OK) {
        *group_out = &group->base;
        return WEFT_OK;
    }
    char message[WEFTI_MESSAGE_BYTES]; /* cleaning up is not to hide why */
    strncpy(message, weft_error_message(), sizeof message - 1);
    message[sizeof message - 1] = 0;
    wefti_nccl_end(group, false);
    release(group);
    return wefti_fail(status, "%s", message);
}

void wefti_nccl_close(wefti_group *base) {
    if (!base) return;
    nccl_group *group = nccl_group_of(base);
    bool        idle = !group->first;
    wefti_cuda_unwatch(group->cuda, &group->watcher);
    wefti_nccl_end(group, idle && wefti_fault_status(base->fault) == WEFT_OK);
    release(group);
}

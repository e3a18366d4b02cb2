/* NCCL inside nodes and wires across them: operations in flight (nccl_engine.h, nccl_nodes.h).
 *
 * What waits here is what NCCL's group and the wire's have under way, and each of those has deadlines: so has an operation, which begins with the one
 * and goes on with the other. Whatever fails is raised as the fault that all three share, and ends everything that is in flight. Nothing is allocated
 * after open. One thread uses a group, the one that launches on its device. */
#include <stdio.h>
#include <string.h>

#include "cuda/nccl_engine.h"
#include "cuda/nccl_inside.h"
#include "cuda/nccl_nodes.h"

#define SPINS 200 /* looks before a wait lets others run */

static const char *const what = "a collective inside and across nodes";

static nodes_operation *operation_of(const wefti_collective *base) { return (nodes_operation *)(uintptr_t)base; }

static void give_back(nodes_group *group, nodes_operation *operation) {
    nodes_operation **at = &group->list, *before = NULL;
    while (*at && *at != operation) {
        before = *at;
        at = &(*at)->next;
    }
    if (*at) *at = operation->next;
    if (group->last == operation) group->last = before;
    operation->next = group->unused;
    group->unused = operation;
}

/* All that is in flight ends so; what NCCL and the wire had of it has ended with the same verdict, and goes with them. */
static weft_status fail_all(nodes_group *group, weft_status status) {
    char message[WEFTI_MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", weft_error_message());
    wefti_fault_raise(group->base.fault, status, group->base.ranks[group->base.index], message);
    weft_status verdict = wefti_fault_status(group->base.fault);
    if (verdict == WEFT_OK) verdict = wefti_fail(status, "%s", message);
    snprintf(message, sizeof message, "%s", weft_error_message());
    (void)!group->inside->engine->progress(group->inside, wefti_host_now(group->host)); /* ends the communicator */
    for (int i = 0; i < NODES_DEPTH; i++) {
        group->slots[i].state = SLOT_FREE;
        group->slots[i].flight = NULL;
        group->slots[i].operation = NULL;
    }
    for (nodes_operation *operation = group->list; operation; operation = operation->next) {
        if (operation->ended) continue;
        operation->ended = true;
        operation->status = verdict;
    }
    return wefti_fail(verdict, "%s", message);
}

/* --- getting on --- */

/* Steps of the schedule: of each piece a first call and a last one, which comes NODES_DEPTH - 1 pieces later. */
static int32_t turns(const nodes_operation *operation) { return operation->pieces ? 2 * (operation->pieces + NODES_DEPTH - 1) : 0; }

static nodes_slot *slot_of(nodes_group *group, const nodes_operation *operation, int32_t index) {
    return &group->slots[(operation->first_piece + (uint64_t)index) % NODES_DEPTH];
}

/* All calls of an operation come after what the device was given before its start. */
static weft_status order(nodes_group *group, const nodes_operation *operation) {
    cudaStream_t streams[] = {group->in, group->out, group->into};
    for (size_t i = 0; i < WEFTI_COUNT(streams); i++)
        WEFTI_TRY(wefti_cuda_check(group->cuda, cudaStreamWaitEvent(streams[i], operation->before, 0), what));
    return WEFT_OK;
}

/* One turn; WEFT_E_AGAIN where it has not come. */
static weft_status take_turn(nodes_group *group, nodes_operation *operation) {
    int32_t index = operation->turn / 2;
    if (operation->turn % 2 == 0) {
        nodes_slot *slot = slot_of(group, operation, index);
        if (index < operation->pieces) {
            if (slot->state != SLOT_FREE) return WEFT_E_AGAIN;
            if (index == 0) WEFTI_TRY(order(group, operation));
            WEFTI_TRY(wefti_nodes_begin(group, slot, operation, index));
        }
    } else if ((index -= NODES_DEPTH - 1) >= 0) {
        nodes_slot *slot = slot_of(group, operation, index);
        if (slot->state != SLOT_ARRIVED) return WEFT_E_AGAIN;
        WEFTI_TRY(wefti_nodes_go_on(group, slot));
    }
    operation->turn++;
    return WEFT_OK;
}

static weft_status take_turns(nodes_group *group) {
    for (nodes_operation *operation = group->list; operation; operation = operation->next) {
        if (operation->ended) continue;
        while (operation->turn < turns(operation)) {
            weft_status status = take_turn(group, operation);
            if (status == WEFT_E_AGAIN) return WEFT_OK;
            WEFTI_TRY(status);
        }
    }
    return WEFT_OK;
}

static weft_status move_all(nodes_group *group, uint64_t now_ns) {
    WEFTI_TRY(wefti_fault_status(group->base.fault));
    WEFTI_TRY(wefti_cuda_enter(group->cuda));
    WEFTI_TRY(group->inside->engine->progress(group->inside, now_ns));
    if (group->across) WEFTI_TRY(group->across->engine->progress(group->across, now_ns));
    for (uint64_t i = 0; i < NODES_DEPTH; i++) WEFTI_TRY(wefti_nodes_advance(group, &group->slots[(group->crossed + i) % NODES_DEPTH]));
    return take_turns(group);
}

static weft_status progress(wefti_group *base, uint64_t now_ns) {
    nodes_group *group = nodes_group_of(base);
    weft_status  status = move_all(group, now_ns);
    return status == WEFT_OK ? WEFT_OK : fail_all(group, status);
}

static bool is_busy(const nodes_group *group) {
    bool busy = group->list != NULL;
    for (int i = 0; i < NODES_DEPTH; i++) busy |= group->slots[i].state != SLOT_FREE;
    return busy;
}

static weft_status look(void *context) {
    nodes_group *group = context;
    if (!is_busy(group)) return WEFT_OK;
    WEFTI_TRY(progress(&group->base, wefti_host_now(group->host)));
    return is_busy(group) ? WEFT_E_AGAIN : WEFT_OK;
}

/* --- the calls of the contract --- */

static weft_status open(const wefti_group_options *options, wefti_group **group_out) {
    WEFTI_TRY(wefti_nodes_open(options, group_out));
    nodes_group *group = nodes_group_of(*group_out);
    group->watcher = (wefti_cuda_watcher){.look = look, .context = group};
    wefti_cuda_watch(group->cuda, &group->watcher);
    return WEFT_OK;
}

static void close(wefti_group *base) {
    if (!base) return;
    nodes_group *group = nodes_group_of(base);
    wefti_cuda_unwatch(group->cuda, &group->watcher);
    wefti_nodes_close(base);
}

static weft_status check_call(const wefti_group *group, const wefti_collective_call *call) {
    bool   counts = call->kind == WEFTI_ALLGATHER_V || call->kind == WEFTI_REDUCE_SCATTER_V;
    size_t bytes, most = counts ? 0 : call->count;
    WEFTI_TRY(wefti_nodes_supports(group, call));
    if (call->kind == WEFTI_BARRIER) return WEFT_OK;
    if (counts && !call->counts) return wefti_fail(WEFT_E_INVALID, "NCCL inside nodes: counts is NULL; it wants %d numbers of elements, one for each member", (int)group->size);
    for (int32_t i = 0; i < group->size && counts; i++) most = call->counts[i] > most ? call->counts[i] : most;
    if ((call->kind == WEFTI_BROADCAST || call->kind == WEFTI_REDUCE_TO) && (call->root < 0 || call->root >= group->size))
        return wefti_fail(WEFT_E_INVALID, "NCCL inside nodes: there is no member %d in a group of %d", (int)call->root, (int)group->size);
    if (!wefti_mul_size(most, weft_dtype_bytes(call->dtype) * (size_t)group->size, &bytes) || bytes > PTRDIFF_MAX)
        return wefti_fail(WEFT_E_OVERFLOW, "NCCL inside nodes: %zu %s on %d ranks do not fit into memory", most, weft_dtype_name(call->dtype),
                          (int)group->size);
    return WEFT_OK;
}

static weft_status start(wefti_group *base, const wefti_collective_call *call, wefti_collective **operation_out) {
    nodes_group *group = nodes_group_of(base);
    *operation_out = NULL;
    WEFTI_TRY(wefti_fault_status(base->fault));
    WEFTI_TRY(check_call(base, call));
    WEFTI_TRY(wefti_cuda_enter(group->cuda));
    if (!group->unused)
        return wefti_fail(WEFT_E_AGAIN, "%d operations inside and across nodes are in flight, as many as the group was opened for", (int)group->n_operations);
    nodes_operation *operation = group->unused;
    WEFTI_TRY(wefti_cuda_check(group->cuda, cudaEventRecord(operation->before, call->stream ? (cudaStream_t)call->stream : group->cuda->stream), what));
    group->unused = operation->next;
    operation->next = NULL;
    if (group->last) group->last->next = operation;
    else group->list = operation;
    group->last = operation;
    operation->call = *call;
    operation->status = WEFT_OK;
    operation->sequence = base->sequence++;
    operation->begun_ns = wefti_host_now(group->host);
    wefti_nodes_cut(group, operation);
    operation->ended = operation->pieces == 0;
    *operation_out = &operation->base;
    (void)!progress(base, operation->begun_ns); /* what fails is the operation's outcome */
    return WEFT_OK;
}

static weft_status outcome(nodes_group *group, nodes_operation *operation) {
    weft_status status = operation->status;
    if (status != WEFT_OK) {
        weft_status verdict = wefti_fault_status(group->base.fault); /* with its message */
        if (verdict != WEFT_OK) status = verdict;
    }
    give_back(group, operation);
    return status;
}

static weft_status test(wefti_collective *base) {
    nodes_operation *operation = operation_of(base);
    nodes_group     *group = nodes_group_of(base->group);
    if (!operation->ended) (void)!progress(base->group, wefti_host_now(group->host));
    return operation->ended ? outcome(group, operation) : WEFT_E_AGAIN;
}

static weft_status wait(wefti_collective *base, uint64_t timeout_ns) {
    const wefti_host *host = nodes_group_of(base->group)->host;
    uint64_t          deadline_ns = timeout_ns ? wefti_deadline_after(wefti_host_now(host), timeout_ns) : WEFTI_NEVER_NS;
    for (int spins = 0;; spins++) {
        weft_status status = test(base);
        if (status != WEFT_E_AGAIN || wefti_host_now(host) >= deadline_ns) return status;
        if (spins > SPINS) host->yield(host->context);
    }
}

/* Whether all that is left of the operation is on the device's streams. */
static bool is_on_streams(nodes_group *group, const nodes_operation *operation) {
    if (operation->turn < turns(operation)) return false;
    for (int i = 0; i < NODES_DEPTH; i++) {
        const nodes_slot *slot = &group->slots[i];
        if (slot->operation == operation && slot->state != SLOT_LANDING && (slot->state != SLOT_AGAIN || wefti_nodes_lands_later(slot))) return false;
    }
    return true;
}

/* The device goes on after the slot's last copies, or NCCL's last call; the slot is used again after them. */
static weft_status join_slot(nodes_group *group, nodes_slot *slot) {
    if (slot->state == SLOT_AGAIN) {
        nccl_operation *last = (nccl_operation *)(uintptr_t)slot->flight;
        WEFTI_TRY(group->inside->engine->join(slot->flight));
        slot->flight = NULL;
        WEFTI_TRY(wefti_cuda_check(group->cuda, cudaStreamWaitEvent(group->into, last->after, 0), what));
        WEFTI_TRY(wefti_cuda_check(group->cuda, cudaEventRecord(slot->loaded, group->into), what));
    } else WEFTI_TRY(wefti_cuda_check(group->cuda, cudaStreamWaitEvent(group->cuda->stream, slot->loaded, 0), what));
    slot->state = SLOT_JOINED;
    slot->operation = NULL;
    return WEFT_OK;
}

/* The wires' part is the host's to move, so it is waited for; what comes after it is not. */
static weft_status join(wefti_collective *base) {
    nodes_operation *operation = operation_of(base);
    nodes_group     *group = nodes_group_of(base->group);
    for (int spins = 0; !operation->ended && !is_on_streams(group, operation); spins++) {
        (void)!progress(base->group, wefti_host_now(group->host));
        if (spins > SPINS) group->host->yield(group->host->context);
    }
    for (int i = 0; i < NODES_DEPTH && !operation->ended; i++) {
        if (group->slots[i].operation != operation) continue;
        weft_status status = join_slot(group, &group->slots[i]);
        if (status != WEFT_OK) (void)!fail_all(group, status);
    }
    return outcome(group, operation);
}

static uint64_t sequence(const wefti_collective *operation) { return operation_of(operation)->sequence; }

static void describe(const wefti_group *base, wefti_text *text) {
    const nodes_group *group = nodes_group_of(base);
    uint64_t           now_ns = wefti_host_now(group->host);
    for (const nodes_operation *operation = group->list; operation; operation = operation->next)
        wefti_text_add(text, "operation %llu inside and across nodes, of %zu %s: %d of %d pieces are over, %.3f s\n", (unsigned long long)operation->sequence,
                       operation->call.count, weft_dtype_name(operation->call.dtype), (int)operation->landed, (int)operation->pieces,
                       (double)(now_ns - operation->begun_ns) / 1e9);
    group->inside->engine->describe(group->inside, text);
    if (group->across && group->across->engine->describe) group->across->engine->describe(group->across, text);
}

const wefti_collective_engine *wefti_collective_engine_nccl_nodes(void) {
    static const wefti_collective_engine engine = {.name = "nccl-nodes", .open = open, .close = close, .supports = wefti_nodes_supports, .start = start,
                                                   .progress = progress, .test = test, .wait = wait, .join = join, .sequence = sequence,
                                                   .describe = describe};
    return &engine;
}

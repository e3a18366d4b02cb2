/* MPI's own collectives as one more algorithm, for groups over the MPI wire.
 *
 * MPI matches collectives by their order on a communicator and does not look at what is asked for: members that differ would break
 * each other's memory. So headers go around first, as in a barrier: MPI is given the call once every member is known to have started
 * the same. Counts of an all-to-allv are in no header; the members tell each other theirs, by MPI, before it moves anything.
 *
 * With several in flight headers may be through in another order on each member, so calls take numbers at their start and go to MPI in
 * the order of those.
 *
 * A call that MPI has cannot be taken back. Where it does not end in a moment after a fault, MPI is poisoned (wire_mpi_api.h): nobody
 * of this process calls it again, so it touches nothing any more, and buffers are the callers' again.
 *
 * Which members' links break is looked at while MPI has a call: what MPI itself does about a member that has died is to wait.
 *
 * Memory: 2 KiB a member for the counts of 64 calls in flight; and a part for each reduce-scatter that is in place, which MPI's cannot
 * be where the part lies within what is sent. It is kept for the next. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transport/coll.h"
#include "transport/coll_mpi.h"

#define SETTLE_NS (200 * WEFTI_MILLISECOND_NS)
#define TELL_NS (500 * WEFTI_MILLISECOND_NS) /* the end of a rank says more than what MPI makes of it */
enum { LOOKS = 64 };

/* Of the members' counts of an all-to-allv; what the worst of them says is everyone's. */
enum { COUNTS_AGREE, COUNTS_TOO_LARGE, COUNTS_DIFFER };

static coll_mpi_call *call_of(const coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    return &group->mpi->calls[operation - group->operations];
}

/* --- faults --- */

/* Tells of a member whose end was seen: of the one whose process is gone before those whose links only went with it. */
static bool suspect_the_dead(coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    int32_t down = -1;
    for (int32_t i = 0; i < coll_size(group); i++) {
        const mpiw_link *link = &group->mpi->wire->links[group->ranks[i]];
        if (i == coll_index(group) || link->state != WEFTI_LINK_DOWN) continue;
        if (down < 0 || link->died) down = i;
        if (link->died) break;
    }
    if (down < 0) return false;
    operation->waits_for = down;
    wefti_coll_suspect(operation, down);
    return true;
}

/* It cannot be done: the end of a rank, or what another one has to say of it, is the better reason, and may come a moment later. */
static weft_status trouble(coll_operation *operation, weft_status status, const char *what) {
    const coll_group *group = coll_group_of(operation);
    uint64_t now_ns = wefti_host_now(group->host);
    char words[224];
    if (suspect_the_dead(operation)) return WEFT_E_AGAIN;
    if (operation->wrong_ns == 0) operation->wrong_ns = now_ns;
    if (now_ns - operation->wrong_ns < TELL_NS) return WEFT_E_AGAIN;
    wefti_coll_words(operation, words, sizeof words);
    return wefti_fail(status, "%s: %s", words, what);
}

/* Whether MPI still has calls; looks at each. */
static bool holds_calls(coll_group *group) {
    bool holds = false;
    for (int32_t i = 0; i < group->in_flight; i++) {
        coll_mpi_call *call = &group->mpi->calls[i];
        wefti_mpi_status status;
        bool done = false;
        if (!call->with_mpi) continue;
        if (!wefti_mpi_poisoned() && wefti_mpi_lock(true)) {
            (void)group->mpi->mpi->api->test(&call->request, &done, &status);
            wefti_mpi_unlock();
        }
        call->with_mpi = !done;
        group->mpi->wire->collectives -= done;
        holds |= !done;
    }
    return holds;
}

void wefti_coll_mpi_end(coll_group *group) {
    if (!group->mpi) return;
    uint64_t until_ns = wefti_deadline_after(wefti_host_now(group->host), SETTLE_NS);
    while (!wefti_mpi_poisoned() && holds_calls(group)) {
        if (wefti_host_now(group->host) >= until_ns)
            wefti_mpi_poison("one of MPI's collectives did not end after a fault, and what it was given cannot be taken back");
        group->host->yield(group->host->context);
    }
}

/* --- what fits --- */

bool wefti_coll_mpi_fits(const coll_group *group, const wefti_collective_call *call, size_t bytes) {
    bool parts = call->kind == WEFTI_REDUCE_SCATTER || call->kind == WEFTI_ALLGATHER || call->kind == WEFTI_GATHER ||
                 call->kind == WEFTI_SCATTER || call->kind == WEFTI_ALLTOALL;
    size_t most = INT_MAX, count = call->count;
    if (!group->mpi) return false;
    if (call->kind == WEFTI_BARRIER || call->kind == WEFTI_ALLTOALL_V) return true;
    if (coll_kind_has_counts(call->kind)) /* the longest part */
        count = bytes / weft_dtype_bytes(call->dtype);
    if (count > (parts || coll_kind_has_counts(call->kind) ? most / (size_t)coll_size(group) : most)) return false;
    if (!coll_kind_reduces(call->kind)) return true;
    return call->op != WEFTI_REDUCE_USER && group->mpi->mpi->api->can_reduce(call->dtype, call->op);
}

/* --- giving a call to MPI --- */

/* Counts and offsets as MPI wants them; their sum. */
static size_t fill_counts(const size_t *counts, int32_t size, int *counts_out, int *offsets_out) {
    size_t sum = 0;
    for (int32_t i = 0; i < size; i++) {
        counts_out[i] = (int)counts[i];
        offsets_out[i] = (int)sum;
        sum += counts[i];
    }
    return sum;
}

/* Where this member's part lies in `buffer`, which has one of each. */
static const uint8_t *own_part(const coll_operation *operation, const void *buffer) {
    return coll_at(operation, buffer, wefti_coll_part_of(operation, coll_index(coll_group_of(operation))).first);
}

/* Whether this member's result lies where MPI_IN_PLACE puts it. */
static bool is_in_place(const coll_operation *operation) {
    const wefti_collective_call *call = &operation->call;
    bool root = call->root == coll_index(coll_group_of(operation));
    switch (call->kind) {
    case WEFTI_ALLREDUCE: return call->send == call->receive;
    case WEFTI_REDUCE_TO: return root && call->send == call->receive;
    case WEFTI_ALLGATHER:
    case WEFTI_ALLGATHER_V: return call->send == own_part(operation, call->receive);
    case WEFTI_GATHER: return root && call->send == own_part(operation, call->receive);
    case WEFTI_SCATTER: return root && call->receive == own_part(operation, call->send);
    default: return false;
    }
}

static bool scatters_in_place(const coll_operation *operation) {
    const wefti_collective_call *call = &operation->call;
    return (call->kind == WEFTI_REDUCE_SCATTER || call->kind == WEFTI_REDUCE_SCATTER_V) && call->receive == own_part(operation, call->send);
}

static weft_status make_aside(coll_mpi_call *aside, size_t bytes) {
    if (aside->aside_bytes >= bytes) return WEFT_OK;
    wefti_free(aside->aside, aside->aside_bytes);
    aside->aside_bytes = 0;
    WEFTI_TRY(wefti_alloc_raw(bytes, WEFTI_CACHE_LINE, "a part of a reduce-scatter that is in place", &aside->aside));
    aside->aside_bytes = bytes;
    return WEFT_OK;
}

/* Elements of this member's result of a kind that reduces. */
static size_t result_count(const coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    return wefti_coll_received_count(group, &operation->call, coll_index(group));
}

static bool moves_nothing(const coll_operation *operation) {
    wefti_collective_kind kind = operation->call.kind; /* of the kinds with counts, `count` is the longest */
    return operation->call.count == 0 && kind != WEFTI_BARRIER && kind != WEFTI_ALLTOALL_V;
}

/* Under the lock. */
static int give(coll_operation *operation, const wefti_mpi_call *what) {
    coll_group *group = coll_group_of(operation);
    coll_mpi_call *call = call_of(operation);
    int code = group->mpi->mpi->api->collective(&group->mpi->comm, what, &call->request);
    call->with_mpi = code == 0;
    if (code == 0) group->mpi->wire->collectives++;
    group->mpi->wire->moved_ns = wefti_host_now(group->host);
    group->moves++;
    return code;
}

/* Under the lock. */
static int give_call(coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    const wefti_collective_call *call = &operation->call;
    coll_mpi_call *mine = call_of(operation);
    int32_t size = coll_size(group);
    wefti_mpi_call what = {.kind = (int)call->kind, .dtype = (int)call->dtype, .op = (int)call->op, .root = call->root,
                           .element_bytes = (int)operation->element_bytes, .in_place = is_in_place(operation), .send = call->send,
                           .receive = scatters_in_place(operation) ? mine->aside : call->receive, .count = call->count,
                           .counts = mine->counts, .offsets = mine->counts + size, .receive_counts = mine->counts + 2 * size,
                           .receive_offsets = mine->counts + 3 * size};
    if (coll_kind_has_counts(call->kind)) (void)fill_counts(call->counts, size, mine->counts, mine->counts + size);
    if (call->kind == WEFTI_ALLTOALL_V) (void)fill_counts(call->receive_counts, size, mine->counts + 2 * size, mine->counts + 3 * size);
    if (call->kind == WEFTI_BROADCAST && call->root == coll_index(group))
        what.receive = (void *)(uintptr_t)call->send; /* which is only read at the root */
    return give(operation, &what);
}

/* Under the lock: tells the others how much each of them is sent. */
static int give_counts(coll_operation *operation) {
    coll_mpi_call *mine = call_of(operation);
    int32_t size = coll_size(coll_group_of(operation));
    for (int32_t i = 0; i < size; i++) mine->told[i] = operation->call.counts[i];
    return give(operation, &(wefti_mpi_call){.kind = WEFTI_ALLTOALL, .element_bytes = sizeof *mine->told, .send = mine->told,
                                             .receive = mine->told + size, .count = 1});
}

/* Under the lock: tells them what this member thinks of it. */
static int give_verdict(coll_operation *operation) {
    coll_mpi_call *mine = call_of(operation);
    const wefti_collective_call *call = &operation->call;
    int32_t size = coll_size(coll_group_of(operation));
    size_t sent = 0, received = 0;
    mine->verdict = COUNTS_AGREE;
    mine->stranger = -1;
    for (int32_t i = 0; i < size; i++) {
        sent += call->counts[i];
        received += call->receive_counts[i];
        if (mine->told[size + i] != call->receive_counts[i] && mine->stranger < 0) mine->stranger = i;
    }
    if (sent > INT_MAX || received > INT_MAX) mine->verdict = COUNTS_TOO_LARGE;
    if (mine->stranger >= 0) mine->verdict = COUNTS_DIFFER;
    return give(operation, &(wefti_mpi_call){.kind = WEFTI_ALLREDUCE, .dtype = WEFT_I32, .op = WEFTI_REDUCE_MAX, .in_place = true,
                                             .receive = &mine->verdict, .count = 1});
}

/* --- the algorithm --- */

void wefti_coll_mpi_begin(coll_operation *operation) {
    coll_mpi_call *call = call_of(operation);
    call->state = COLL_MPI_GREETS;
    call->with_mpi = false;
    call->code = 0;
    call->number = coll_group_of(operation)->mpi->begun++;
    wefti_coll_dissemination_begin(operation);
}

/* Under the lock: gives MPI the next of what belongs to the call. */
static int go_on(coll_operation *operation) {
    coll_mpi *mpi = coll_group_of(operation)->mpi;
    coll_mpi_call *call = call_of(operation);
    switch (call->state) {
    case COLL_MPI_READY:
        if (mpi->posted != call->number) return 0;
        if (operation->call.kind == WEFTI_ALLTOALL_V) {
            call->state = COLL_MPI_COUNTS;
            return give_counts(operation);
        }
        break;
    case COLL_MPI_COUNTS: call->state = COLL_MPI_VERDICT; return give_verdict(operation);
    case COLL_MPI_VERDICT:
        if (call->verdict != COUNTS_AGREE) return 0;
        break;
    default: call->state = COLL_MPI_DONE; return 0;
    }
    mpi->posted++; /* what comes next has its turn only now: MPI has all of this call */
    call->state = moves_nothing(operation) ? COLL_MPI_DONE : COLL_MPI_GIVEN;
    return call->state == COLL_MPI_GIVEN ? give_call(operation) : 0;
}

/* Under the lock: as far as it goes without waiting. */
static int drive(coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    coll_mpi_call *call = call_of(operation);
    for (;;) {
        wefti_mpi_status status = {0};
        coll_mpi_state before = call->state;
        bool done = false;
        if (call->with_mpi) {
            int code = group->mpi->mpi->api->test(&call->request, &done, &status);
            if (code || !done) return code;
            call->with_mpi = false;
            group->mpi->wire->collectives--;
            if (status.error) return status.error;
        }
        int code = go_on(operation);
        if (code || call->state == before || call->state == COLL_MPI_DONE) return code;
    }
}

static weft_status tell_verdict(coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    const coll_mpi_call *call = call_of(operation);
    char words[224];
    wefti_coll_words(operation, words, sizeof words);
    if (call->verdict == COUNTS_TOO_LARGE)
        return wefti_fail(WEFT_E_OVERFLOW, "%s: a rank sends or receives more than the %d elements that MPI counts: take pairwise for it", words,
                          INT_MAX);
    if (call->stranger >= 0)
        return wefti_fail(WEFT_E_MISMATCH, "%s: rank %d sends %llu elements where rank %d takes %zu; do all ranks make the same call?", words,
                          (int)group->ranks[call->stranger], (unsigned long long)call->told[coll_size(group) + call->stranger],
                          (int)group->ranks[coll_index(group)], operation->call.receive_counts[call->stranger]);
    return trouble(operation, WEFT_E_MISMATCH, "what one rank sends to another is not what that one takes; do all ranks make the same call?");
}

static weft_status finish(coll_operation *operation) {
    coll_group *group = coll_group_of(operation);
    const wefti_collective_call *call = &operation->call;
    bool root = call->root == coll_index(group);
    if (call->kind == WEFTI_BROADCAST && root) wefti_coll_copy(operation, call->receive, call->send, call->count);
    if (!coll_kind_reduces(call->kind) || (call->kind == WEFTI_REDUCE_TO && !root)) return WEFT_OK;
    const void *result = scatters_in_place(operation) ? call_of(operation)->aside : call->receive;
    if (call->op != WEFTI_REDUCE_AVG) {
        wefti_coll_copy(operation, call->receive, result, result_count(operation));
        return WEFT_OK;
    }
    group->sources[0] = result; /* the sum: to be divided */
    return wefti_coll_reduce(operation, call->receive, 1, result_count(operation), true);
}

/* Under the lock. */
static void name_error(const coll_group *group, coll_mpi_call *call) {
    char text[WEFTI_MPI_TEXT_BYTES];
    group->mpi->mpi->api->error_text(call->code, text, sizeof text);
    snprintf(call->text, sizeof call->text, "MPI fails: %.200s", text);
}

weft_status wefti_coll_mpi_advance(coll_operation *operation) {
    coll_group *group = coll_group_of(operation);
    coll_mpi_call *call = call_of(operation);
    if (call->state == COLL_MPI_GREETS) {
        WEFTI_TRY(wefti_coll_lanes_advance(operation));
        if (scatters_in_place(operation)) WEFTI_TRY(make_aside(call, result_count(operation) * operation->element_bytes));
        call->state = COLL_MPI_READY;
    }
    operation->waits_for = -1;
    if (wefti_mpi_poisoned()) return trouble(operation, WEFT_E_LINK, wefti_mpi_poisoned());
    if (operation->wrong_ns) return call->code ? trouble(operation, WEFT_E_LINK, call->text) : tell_verdict(operation);
    if (!wefti_mpi_lock(false)) return WEFT_E_AGAIN;
    call->code = drive(operation);
    if (call->code) name_error(group, call);
    wefti_mpi_unlock();
    if (call->code) return trouble(operation, WEFT_E_LINK, call->text);
    if (call->state == COLL_MPI_VERDICT && !call->with_mpi) return tell_verdict(operation);
    if (call->state == COLL_MPI_DONE) return finish(operation);
    if (++operation->looks % LOOKS == 0) (void)suspect_the_dead(operation);
    return WEFT_E_AGAIN;
}

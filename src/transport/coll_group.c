/* The engine's table: groups, their operations, progress and waiting.
 *
 * A group holds `in_flight` operations in a pool; an operation is in flight from start until it has its result or the
 * group fails, and its handle is the caller's until test or wait has given that out. All members start operations in
 * the same order, so the sequence number matches them. At most `in_flight` numbers lie between the oldest unfinished
 * operation and the newest, which is what lets mapped slots be used again without another handshake (coll_map.c).
 *
 * The first fault ends everything: the verdict becomes the status of each operation, and the wire is aborted where it
 * still holds the group's transfers, so that buffers are the caller's again.
 *
 * Memory: sized at open, nothing later. Cost of an idle progress: one look at each operation in flight, one poll. */
#include <stdio.h>
#include <string.h>

#include "core/base/pause.h"
#include "transport/coll_map.h"

enum { SPINS = 32 };                    /* looks without the clock, the wire and the fault object */
#define SPIN_NS (75 * UINT64_C(1000))   /* without letting others run */
#define YIELD_NS (500 * UINT64_C(1000)) /* then rest: the others are busy, not late */
enum { USER_BLOCK_BYTES = 8192 };
#define NAP_NS (50 * UINT64_C(1000))
#define REST_NS (5 * WEFTI_MILLISECOND_NS) /* at most, so that faults are heard of */

coll_range wefti_coll_part(size_t count, size_t element_bytes, int32_t size, int32_t index) {
    size_t line = WEFTI_CACHE_LINE / element_bytes, lines = (count + line - 1) / line;
    size_t each = lines / (size_t)size, more = lines % (size_t)size, i = (size_t)index;
    size_t first = (each * i + (i < more ? i : more)) * line, end = first + (each + (i < more)) * line;
    if (first > count) first = count;
    return (coll_range){first, (end < count ? end : count) - first};
}

coll_range wefti_coll_part_of(const coll_operation *operation, int32_t index) {
    const wefti_collective_call *call = &operation->call;
    coll_range part = {0, call->count};
    switch (call->kind) {
    case WEFTI_ALLREDUCE:
    case WEFTI_BROADCAST:
    case WEFTI_REDUCE_TO:
        return wefti_coll_part(call->count, operation->element_bytes, coll_size(coll_group_of(operation)), index);
    case WEFTI_REDUCE_SCATTER_V:
    case WEFTI_ALLGATHER_V:
    case WEFTI_ALLTOALL_V:
        part.count = call->counts[index];
        for (int32_t i = 0; i < index; i++) part.first += call->counts[i];
        return part;
    default: part.first = (size_t)index * call->count; return part;
    }
}

size_t wefti_coll_longest_part(const coll_operation *operation) {
    wefti_collective_kind kind = operation->call.kind;
    bool shared = kind == WEFTI_ALLREDUCE || kind == WEFTI_BROADCAST || kind == WEFTI_REDUCE_TO;
    return shared ? wefti_coll_part_of(operation, 0).count : operation->call.count;
}

/* As a reducer would: block by block aside, because dst may be one of the later sources. */
static void reduce_by_function(coll_operation *operation, void *dst, int32_t source_count, size_t count) {
    _Alignas(WEFTI_CACHE_LINE) uint8_t block[USER_BLOCK_BYTES];
    const void **sources = coll_group_of(operation)->sources;
    const wefti_reduce_function *function = operation->call.function;
    size_t most = sizeof block / operation->element_bytes;
    for (size_t first = 0, part; first < count; first += part) {
        part = count - first < most ? count - first : most;
        memcpy(block, coll_at(operation, sources[0], first), part * operation->element_bytes);
        for (int32_t i = 1; i < source_count; i++)
            function->combine(function->context, block, coll_at(operation, sources[i], first), part, operation->call.dtype);
        memcpy(coll_at(operation, dst, first), block, part * operation->element_bytes);
    }
}

weft_status wefti_coll_reduce(coll_operation *operation, void *dst, int32_t source_count, size_t count, bool last) {
    coll_group *group = coll_group_of(operation);
    if (count == 0) return WEFT_OK;
    if (operation->call.op == WEFTI_REDUCE_USER) {
        reduce_by_function(operation, dst, source_count, count);
        return WEFT_OK;
    }
    int32_t divisor = last && operation->call.op == WEFTI_REDUCE_AVG ? coll_size(group) : 1;
    return group->reducer->reduce(group->reducer->context, dst, group->sources, source_count, count,
                                  operation->call.dtype, operation->call.op, divisor);
}

/* --- turns --- */

/* Mapped memory has the sets in order of start, the same on all members. Scratch is a member's own: operations take it as
 * they stand in the list, so urgent ones first, but one set is always left to the oldest. That one gets on everywhere,
 * whatever else the others have chosen, so every operation becomes the oldest and ends. */
bool wefti_coll_turn(coll_operation *operation) {
    coll_group *group = coll_group_of(operation);
    if (operation->algorithm->mapped) return operation->large_number < group->large_finished + COLL_SETS;
    if (operation->set >= 0) return true;
    int32_t free = COLL_SETS - __builtin_popcount(group->busy_sets);
    if (free == 0) return false;
    const coll_operation *oldest = NULL, *next = NULL;
    for (const coll_operation *at = group->first; at; at = at->next) {
        if (!at->algorithm->large || at->algorithm->mapped) continue;
        if (!oldest || at->large_number < oldest->large_number) oldest = at;
        if (!next && at->set < 0) next = at;
    }
    if (operation != oldest && (operation != next || (oldest->set < 0 && free < 2))) return false;
    operation->set = __builtin_ctz(~group->busy_sets);
    group->busy_sets |= 1u << operation->set;
    for (size_t i = 0; i < COLL_LANES; i++)
        operation->lanes[i].scratch =
            group->scratch + ((size_t)operation->set * COLL_LANES + i) * 2 * group->segment_bytes;
    return true;
}

/* --- open and close --- */

/* What messages need. Mapped groups send none, but for sends, receives and all-to-allv, unless an algorithm is forced on
 * them: they get it with the first such operation. */
static weft_status allocate_messages(coll_group *group) {
    size_t lanes = (size_t)group->in_flight * (COLL_LANES + 1), fan = (size_t)group->fan;
    size_t each = (size_t)group->lane_transfers;
    if (group->scratch) return WEFT_OK;
    if (!group->transfers)
        WEFTI_TRY(wefti_alloc_raw(lanes * each * sizeof(wefti_wire_op), WEFTI_CACHE_LINE, "collective transfers",
                                  &group->transfers));
    if (!group->messages)
        WEFTI_TRY(wefti_alloc_raw((size_t)group->in_flight * 2 * (fan + 1) * group->message_bytes, WEFTI_CACHE_LINE,
                                  "small collective messages", &group->messages));
    WEFTI_TRY(wefti_alloc_raw((size_t)COLL_SETS * COLL_LANES * 2 * group->segment_bytes, 4096, "collective scratch",
                              &group->scratch));
    for (int32_t i = 0; i < group->in_flight; i++) {
        coll_operation *operation = &group->operations[i];
        operation->outbox = group->messages + (size_t)i * 2 * (fan + 1) * group->message_bytes;
        operation->inbox = operation->outbox + (fan + 1) * group->message_bytes;
        for (size_t k = 0; k <= COLL_LANES; k++)
            operation->lanes[k].transfers = group->transfers + ((size_t)i * (COLL_LANES + 1) + k) * each;
    }
    return WEFT_OK;
}

/* A rank of a tree reduces three. */
static size_t sources_of(int32_t size) { return size < 3 ? 3 : (size_t)size; }

static void free_group(coll_group *group) {
    size_t size = (size_t)group->base.size, fan = (size_t)group->fan, in_flight = (size_t)group->in_flight;
    wefti_free(group->scratch, (size_t)COLL_SETS * COLL_LANES * 2 * group->segment_bytes);
    wefti_free(group->messages, in_flight * 2 * (fan + 1) * group->message_bytes);
    wefti_free(group->transfers, in_flight * (COLL_LANES + 1) * (size_t)group->lane_transfers * sizeof(wefti_wire_op));
    wefti_free((void *)group->sources, sources_of(group->base.size) * sizeof *group->sources);
    wefti_free(group->points, 2 * size * sizeof *group->points);
    wefti_coll_nodes_close(group);
    wefti_free(group->operations, in_flight * sizeof *group->operations);
    wefti_free(group->ranks, size * sizeof *group->ranks);
    wefti_watch_remove(group->watch, group->track);
    if (group->owns_fault) wefti_fault_release(group->base.fault);
    wefti_free(group, sizeof *group);
}

static weft_status check_options(const wefti_group_options *options) {
    if (options->size < 1 || options->index < 0 || options->index >= options->size)
        return wefti_fail(WEFT_E_INVALID, "a group of %d members has no member %d", (int)options->size,
                          (int)options->index);
    if (options->id > 0x3ff) return wefti_fail(WEFT_E_INVALID, "group id %u: at most 1023", (unsigned)options->id);
    if (!options->wire && options->size > 1)
        return wefti_fail(WEFT_E_INVALID, "a group of %d members needs a wire", (int)options->size);
    if (options->in_flight < 0 || options->in_flight > 4096)
        return wefti_fail(WEFT_E_INVALID, "%d operations in flight: from 1 to 4096", (int)options->in_flight);
    for (int32_t i = 0; options->wire && i < options->size; i++) {
        int32_t rank = options->ranks ? options->ranks[i] : i;
        if (rank < 0 || rank >= options->wire->size || (i == options->index) != (rank == options->wire->rank))
            return wefti_fail(WEFT_E_INVALID, "member %d of the group is said to be rank %d of %d, and this rank is %d",
                              (int)i, (int)rank, (int)options->wire->size, (int)options->wire->rank);
    }
    return WEFT_OK;
}

static int32_t fan_of(int32_t size) {
    int32_t fan = size <= COLL_DIRECT_MOST ? size - 1 : COLL_FAN;
    return fan < 1 ? 1 : fan;
}

static weft_status fill_group(coll_group *group, const wefti_group_options *options) {
    for (int32_t i = 0; i < options->size; i++) group->ranks[i] = options->ranks ? options->ranks[i] : i;
    group->base.ranks = group->ranks;
    group->track = wefti_watch_add(group->watch, group->id, group->ranks, options->size);
    for (int32_t i = group->in_flight - 1; i >= 0; i--) {
        coll_operation *operation = &group->operations[i];
        operation->base.group = &group->base;
        operation->next = group->free;
        group->free = operation;
    }
    if (!group->base.fault) {
        WEFTI_TRY(wefti_fault_create(group->host, &group->base.fault));
        group->owns_fault = true;
    }
    if (options->size == 1) return WEFT_OK;
    group->model = wefti_coll_first_model(group->base.wire);
    WEFTI_TRY(wefti_coll_nodes_open(group, options->nodes));
    if (group->base.wire->can.flags & WEFTI_WIRE_MAPS_PEERS) WEFTI_TRY(wefti_coll_map_open(group));
#ifdef WEFTI_HAVE_MPI
    WEFTI_TRY(wefti_coll_mpi_open(group, options->algorithm));
#endif
    WEFTI_TRY(wefti_coll_read_forced(group, options->algorithm));
    return group->map ? WEFT_OK : allocate_messages(group);
}

/* Gets the group's buffers back from the wire, and from MPI. */
static void take_back(coll_group *group) {
#ifdef WEFTI_HAVE_MPI
    wefti_coll_mpi_end(group); /* while the wire is there: MPI moves bytes for both */
#endif
    wefti_coll_lanes_end(group);
}

static void group_close(wefti_group *base) {
    coll_group *group = (coll_group *)base;
    if (!group) return;
    if (group->base.wire && group->base.size > 1) take_back(group);
#ifdef WEFTI_HAVE_MPI
    wefti_coll_mpi_close(group);
#endif
    if (group->map) wefti_coll_map_close(group);
    free_group(group);
}

static weft_status group_open(const wefti_group_options *options, wefti_group **group_out) {
    *group_out = NULL;
    WEFTI_TRY(check_options(options));
    coll_group *group = NULL;
    size_t size = (size_t)options->size;
    WEFTI_TRY(wefti_alloc(sizeof *group, "a group", &group));
    group->base = (wefti_group){
        wefti_collective_engine_weft(), options->wire, options->fault, options->size, options->index, NULL, 0, NULL};
    group->host = options->host ? options->host : options->wire ? options->wire->host : wefti_host_system();
    group->reducer = options->reducer ? options->reducer : wefti_reducer_host();
    group->id = options->id;
    group->epoch = options->epoch;
    group->watch = options->watch;
    group->timeout_ns = options->timeout_ns ? options->timeout_ns : COLL_DEFAULT_TIMEOUT_NS;
    group->in_flight = options->in_flight ? options->in_flight : COLL_DEFAULT_IN_FLIGHT;
    group->fan = fan_of(options->size);
    group->lane_transfers = 2 * group->fan < COLL_TRANSFERS ? COLL_TRANSFERS : 2 * group->fan;
    group->message_bytes = sizeof(coll_opening) + (options->size == 2 ? COLL_SMALL_PAIR_BYTES : COLL_SMALL_BYTES);
    group->segment_bytes = COLL_SEGMENT_BYTES;
    if (options->wire && options->wire->can.segment_bytes > COLL_SEGMENT_BYTES) group->segment_bytes = options->wire->can.segment_bytes;
    group->crowded = options->size > group->host->cores;
    weft_status status = wefti_alloc(size * sizeof *group->ranks, "a group's ranks", &group->ranks);
    if (status == WEFT_OK) status = wefti_alloc(sources_of(options->size) * sizeof *group->sources, "a group's sources", &group->sources);
    if (status == WEFT_OK) status = wefti_alloc(2 * size * sizeof *group->points, "numbers of messages", &group->points);
    if (status == WEFT_OK)
        status = wefti_alloc((size_t)group->in_flight * sizeof *group->operations, "a group's operations",
                             &group->operations);
    if (status == WEFT_OK) status = fill_group(group, options);
    if (status != WEFT_OK) {
        group->failed = true; /* nobody has heard of it: there is nothing to part from */
        group_close(&group->base);
        return status;
    }
    *group_out = &group->base;
    return WEFT_OK;
}

/* --- faults --- */

/* Ends everything in flight with the verdict. */
static weft_status fail_all(coll_group *group, weft_status verdict) {
    if (!group->failed) {
        group->failed = true;
        char message[WEFTI_MESSAGE_BYTES];
        snprintf(message, sizeof message, "%s", weft_error_message());
        if (group->base.size > 1) take_back(group);
        for (coll_operation *operation = group->first; operation; operation = operation->next) {
            operation->finished = true;
            operation->status = verdict;
            wefti_track_end(group->track, operation->noted, verdict, group->looked_ns);
        }
        group->first = group->last = NULL;
        group->active = 0;
        return wefti_fail(verdict, "%s", message);
    }
    return verdict;
}

/* The verdict of the fault object, once there is one. */
static weft_status look_for_fault(coll_group *group) {
    weft_status verdict = wefti_fault_status(group->base.fault);
    return verdict == WEFT_OK ? WEFT_OK : fail_all(group, verdict);
}

/* Makes what `operation` found the verdict, unless there is one. */
static weft_status raise_fault(coll_group *group, weft_status status, int32_t rank) {
    char message[WEFTI_MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", weft_error_message());
    wefti_fault_raise(group->base.fault, status, rank, message);
    return look_for_fault(group);
}

static uint64_t timeout_of(const coll_operation *operation) {
    return operation->call.timeout_ns ? operation->call.timeout_ns : coll_group_of(operation)->timeout_ns;
}

static weft_status time_out(coll_operation *operation) {
    coll_group *group = coll_group_of(operation);
    char words[224];
    int32_t missing = operation->waits_for;
    int32_t rank = missing >= 0 && missing != coll_index(group) ? group->ranks[missing] : -1;
    wefti_coll_words(operation, words, sizeof words);
    if (rank >= 0)
        wefti_fail(WEFT_E_TIMEOUT, "%s: no answer from rank %d within %.3g s", words, (int)rank, (double)timeout_of(operation) / 1e9);
    else
        wefti_fail(WEFT_E_TIMEOUT, "%s: not done within %.3g s", words, (double)timeout_of(operation) / 1e9);
    return raise_fault(group, WEFT_E_TIMEOUT, rank);
}

/* --- operations --- */

static weft_status group_supports(const wefti_group *base, const wefti_collective_call *call) {
    return wefti_coll_check_call((const coll_group *)base, call);
}

static void note_large_finished(coll_group *group, uint64_t number) {
    group->large_done_mask |= UINT64_C(1) << (number - group->large_finished);
    while (group->large_done_mask & 1) {
        group->large_done_mask >>= 1;
        group->large_finished++;
    }
}

/* Takes an operation that has its result out of the list, where `previous` is before it. */
static void finish(coll_group *group, coll_operation *previous, coll_operation *operation) {
    operation->finished = true;
    operation->status = WEFT_OK;
    wefti_track_end(group->track, operation->noted, WEFT_OK, group->looked_ns);
    if (previous)
        previous->next = operation->next;
    else
        group->first = operation->next;
    if (group->last == operation) group->last = previous;
    group->active--;
    if (!group->first) group->mixed = false;
    if (!operation->algorithm->large) return;
    note_large_finished(group, operation->large_number);
    if (!operation->algorithm->mapped) group->busy_sets &= ~(1u << operation->set);
}

/* A group of one: the result is the send buffer. */
static weft_status run_alone(coll_operation *operation) {
    const wefti_collective_call *call = &operation->call;
    size_t count = wefti_coll_received_count(coll_group_of(operation), call, 0);
    if (coll_kind_reduces(call->kind)) {
        coll_group_of(operation)->sources[0] = call->send;
        return wefti_coll_reduce(operation, call->receive, 1, count, true);
    }
    if (count && call->receive != call->send) memmove(call->receive, call->send, count * operation->element_bytes);
    return WEFT_OK;
}

static void prepare(coll_group *group, coll_operation *operation, const wefti_collective_call *call) {
    bool counts = coll_kind_has_counts(call->kind), point = wefti_collective_is_point(call->kind);
    operation->call = *call;
    operation->element_bytes = call->kind == WEFTI_BARRIER ? 1 : weft_dtype_bytes(call->dtype);
    if (call->kind == WEFTI_BARRIER || counts) operation->call.count = 0;
    if (counts && call->kind != WEFTI_ALLTOALL_V) /* the longest part, which all members know */
        for (int32_t i = 0; i < coll_size(group); i++)
            if (call->counts[i] > operation->call.count) operation->call.count = call->counts[i];
    if (!coll_kind_reduces(call->kind)) operation->call.op = WEFTI_REDUCE_SUM;
    operation->extra = wefti_coll_extra(group, call);
    operation->sequence = point ? group->points[2 * call->root + (call->kind == WEFTI_RECEIVE)]++ : group->base.sequence++;
    operation->opening = (coll_opening){0};
    operation->asked = false;
    operation->started_ns = operation->deadline_ns = operation->wrong_ns = 0;
    operation->finished = operation->suspected = false;
    operation->gone[0] = operation->gone[1] = 0;
    operation->halfway = 0;
    operation->looks = 0;
    operation->set = -1;
    operation->waits_for = point ? call->root : -1;
    operation->lane_count = 0;
    operation->seen = 0;
    operation->next = NULL;
}

static void take_large_number(coll_group *group, coll_operation *operation) {
    operation->large_number = group->large_started++;
    if (operation->algorithm->mapped) operation->set = (int32_t)(operation->large_number % COLL_SETS);
}

/* Puts a new operation behind all of its priority or above. Gives the one before it. */
static coll_operation *insert(coll_group *group, coll_operation *operation) {
    coll_operation *previous = group->last;
    if (previous && previous->call.priority < operation->call.priority) {
        previous = NULL;
        for (coll_operation *at = group->first; at->call.priority >= operation->call.priority; at = at->next) previous = at;
        group->mixed = true;
    }
    operation->next = previous ? previous->next : group->first;
    if (previous)
        previous->next = operation;
    else
        group->first = operation;
    if (!operation->next) group->last = operation;
    group->active++;
    return previous;
}

/* The number of the oldest operation in flight, which are those of the whole group; that of the next one where there is none. */
uint64_t wefti_coll_oldest(const coll_group *group) {
    uint64_t oldest = group->base.sequence;
    for (const coll_operation *at = group->first; at; at = at->next) {
        if (wefti_collective_is_point(at->call.kind)) continue;
        if (at->sequence < oldest) oldest = at->sequence;
        if (!group->mixed) break;
    }
    return oldest;
}

/* Puts the first messages of a new operation, which is the last of the list, on their way at once. */
static void send_first(coll_group *group, coll_operation *previous, coll_operation *operation) {
    if (operation->algorithm->large && !wefti_coll_turn(operation)) return;
    weft_status status = operation->algorithm->advance(operation);
    if (status == WEFT_OK)
        finish(group, previous, operation);
    else if (status != WEFT_E_AGAIN)
        (void)!raise_fault(group, status, -1); /* which ends it, and all others */
}

/* As the last time, where that was of the same kind and length. What MPI can do depends on more; what is forced is found at once. */
static const coll_algorithm *choose(coll_group *group, const wefti_collective_call *call, size_t bytes) {
    coll_rule *last = &group->chosen[call->kind];
    if (group->mpi || group->forced[call->kind]) return wefti_coll_choose(group, call, bytes);
    if (!last->algorithm || last->bytes != bytes) *last = (coll_rule){bytes, wefti_coll_choose(group, call, bytes)};
    return last->algorithm;
}

static weft_status begin(coll_group *group, coll_operation *operation, const wefti_collective_call *call) {
    size_t longest = call->count;
    if (coll_kind_has_counts(call->kind)) {
        longest = 0;
        for (int32_t i = 0; i < coll_size(group) && call->kind != WEFTI_ALLTOALL_V; i++)
            longest = call->counts[i] > longest ? call->counts[i] : longest;
    }
    size_t bytes = call->kind == WEFTI_BARRIER ? 0 : longest * weft_dtype_bytes(call->dtype);
    const coll_algorithm *algorithm = choose(group, call, bytes);
    if (!algorithm->mapped) WEFTI_TRY(allocate_messages(group));
    group->free = operation->next;
    prepare(group, operation, call);
    operation->algorithm = algorithm;
    if (algorithm->mapped) operation->place = group->places++;
    if (!wefti_collective_is_point(call->kind)) wefti_coll_note_call(operation);
    if (algorithm->large) take_large_number(group, operation);
    if (group->track) {
        coll_header header = wefti_coll_header(operation);
        operation->noted = wefti_track_begin(group->track, &header, 0);
    }
    coll_operation *previous = insert(group, operation);
    algorithm->begin(operation);
    if (!algorithm->mapped) send_first(group, previous, operation);
    return WEFT_OK;
}

static weft_status group_start(wefti_group *base, const wefti_collective_call *call, wefti_collective **operation_out) {
    coll_group *group = (coll_group *)base;
    *operation_out = NULL;
    WEFTI_TRY(look_for_fault(group));
    WEFTI_TRY(wefti_coll_check_call(group, call));
    coll_operation *operation = group->free;
    bool far = base->sequence - wefti_coll_oldest(group) >= (uint64_t)group->in_flight;
    bool many = group->large_started - group->large_finished >= 64;
    if (!operation || far || many)
        return wefti_fail(WEFT_E_AGAIN, "%d operations are in flight in group %u already", (int)group->in_flight,
                          (unsigned)group->id);
    if (group->base.size == 1) {
        group->free = operation->next;
        prepare(group, operation, call);
        operation->algorithm = NULL;
        operation->finished = true;
        operation->status = run_alone(operation);
    } else {
        WEFTI_TRY(begin(group, operation, call));
    }
    *operation_out = &operation->base;
    return WEFT_OK;
}

/* One look at everything in flight, the most urgent first. */
static weft_status advance_all(coll_group *group) {
    coll_operation *previous = NULL;
    for (coll_operation *operation = group->first, *next; operation; operation = next) {
        next = operation->next;
        bool turn = !operation->algorithm->large || operation->algorithm->mapped || wefti_coll_turn(operation);
        weft_status status = turn ? operation->algorithm->advance(operation) : WEFT_E_AGAIN;
        if (status == WEFT_OK)
            finish(group, previous, operation);
        else if (status == WEFT_E_AGAIN)
            previous = operation;
        else
            return raise_fault(group, status, -1);
    }
    return WEFT_OK;
}

/* Whether the member that is waited for comes nearer, if slowly: a root ran ahead of it by some dozens of broadcasts, each of which may have
 * the time that this one waits. The operation then waits as long again. */
static bool catches_up(coll_operation *operation, uint64_t now_ns) {
    coll_group *group = coll_group_of(operation);
    uint64_t    time_ns = timeout_of(operation);
    int32_t     whom = operation->waits_for;
    if (!operation->algorithm->mapped || !group->map || whom < 0 || whom == coll_index(group) || !group->map->peers[whom].base) return false;
    if (operation->halfway == 0 && now_ns < operation->deadline_ns && operation->deadline_ns - now_ns <= time_ns / 2)
        operation->halfway = 1 + wefti_coll_moved(group, whom);
    if (now_ns < operation->deadline_ns || operation->halfway == 0 || wefti_coll_moved(group, whom) == operation->halfway - 1) return false;
    operation->halfway = 0;
    operation->deadline_ns = wefti_deadline_after(now_ns, time_ns);
    return true;
}

/* A look stands for a second of a deadline at most: a process that was stopped (SIGTSTP, a debugger) does not take its own
 * absence for that of the others. */
static weft_status look_at_deadlines(coll_group *group, uint64_t now_ns) {
    uint64_t away_ns = now_ns > group->looked_ns + WEFTI_SECOND_NS ? now_ns - group->looked_ns - WEFTI_SECOND_NS : 0;
    group->looked_ns = now_ns;
    for (coll_operation *operation = group->first; operation; operation = operation->next) {
        if (operation->deadline_ns == 0) {
            operation->started_ns = now_ns;
            wefti_track_time(group->track, operation->noted, now_ns);
            operation->deadline_ns = wefti_deadline_after(now_ns, timeout_of(operation));
            continue;
        }
        operation->deadline_ns = wefti_deadline_after(operation->deadline_ns, away_ns);
        if (catches_up(operation, now_ns)) continue;
        if (now_ns >= operation->deadline_ns) return time_out(operation);
        if (operation->call.kind == WEFTI_BROADCAST && !operation->asked) wefti_coll_ask(operation, now_ns);
    }
    return WEFT_OK;
}

static weft_status group_progress(wefti_group *base, uint64_t now_ns) {
    coll_group *group = (coll_group *)base;
    WEFTI_TRY(look_for_fault(group));
    if (!group->first) return WEFT_OK;
    weft_status status = wefti_wire_progress(base->wire, now_ns);
    if (status != WEFT_OK) return raise_fault(group, status, -1);
    WEFTI_TRY(advance_all(group));
    if (group->asks && group->question.done && (status = wefti_coll_answer(group)) != WEFT_OK) return raise_fault(group, status, -1);
    return look_at_deadlines(group, now_ns);
}

/* The verdict's message, and which operation of this rank ended with it, where it does not say so itself. */
static weft_status name_operation(const coll_operation *operation, weft_status verdict) {
    char message[WEFTI_MESSAGE_BYTES], words[224], number[48];
    snprintf(message, sizeof message, "%s", weft_error_message());
    snprintf(number, sizeof number, "operation %llu of group %u,", (unsigned long long)operation->sequence,
             (unsigned)coll_group_of(operation)->id);
    if (strstr(message, number)) return verdict;
    wefti_coll_words(operation, words, sizeof words);
    return wefti_fail(verdict, "%.700s; it ended %s", message, words);
}

/* Gives the outcome out and the handle back. */
static weft_status spend(coll_operation *operation) {
    coll_group *group = coll_group_of(operation);
    weft_status status = operation->status;
    operation->next = group->free;
    group->free = operation;
    if (status == WEFT_OK) return WEFT_OK;
    weft_status verdict = wefti_fault_status(group->base.fault); /* sets the message */
    if (verdict == WEFT_OK) return status;
    return operation->algorithm ? name_operation(operation, verdict) : verdict;
}

static weft_status group_test(wefti_collective *handle) {
    coll_operation *operation = (coll_operation *)handle;
    coll_group *group = coll_group_of(operation);
    if (!operation->finished) (void)!group_progress(&group->base, wefti_host_now(group->host));
    return operation->finished ? spend(operation) : WEFT_E_AGAIN;
}

/* --- waiting --- */

/* Looks at the operations alone a few times, while there is hope that they end at once. */
static void spin(coll_group *group, const coll_operation *operation) {
    for (int32_t i = 0; i < SPINS && !operation->finished; i++) {
        if (advance_all(group) != WEFT_OK) return;
        wefti_pause_core();
    }
}

/* After `idle_ns` in which nothing moved: spin, then let others run, then sleep. */
static void idle(coll_group *group, const coll_operation *operation, uint64_t idle_ns, uint64_t left_ns) {
    bool mapped = operation->algorithm->mapped;
    if (idle_ns > YIELD_NS) {
        wefti_track_wait(group->track, operation->noted, operation->waits_for);
        uint64_t limit_ns = left_ns < REST_NS ? left_ns : REST_NS;
        if (mapped) /* flags ring no bell */
            group->host->sleep(group->host->context, limit_ns < NAP_NS ? limit_ns : NAP_NS);
        else
            wefti_wire_rest(group->base.wire, limit_ns);
    } else if (group->crowded || idle_ns > SPIN_NS) {
        group->host->yield(group->host->context);
    } else if (mapped) {
        spin(group, operation);
    }
}

/* What the ranks compare to find whom they wait for. */
static void note_wait(coll_group *group, uint64_t waited_ns) {
    if (!group->watch) return;
    atomic_fetch_add_explicit(&group->watch->waited_ns, waited_ns, memory_order_relaxed);
    atomic_fetch_add_explicit(&group->watch->operations, 1, memory_order_relaxed);
}

static weft_status group_wait(wefti_collective *handle, uint64_t timeout_ns) {
    coll_operation *operation = (coll_operation *)handle;
    coll_group *group = coll_group_of(operation);
    uint64_t until_ns = 0, moved_ns = 0, moves = 0, first_ns = 0, last_ns = 0;
    if (!operation->finished && operation->algorithm->mapped && !group->crowded) spin(group, operation);
    while (!operation->finished) {
        uint64_t now_ns = wefti_host_now(group->host);
        if (first_ns == 0) first_ns = now_ns;
        last_ns = now_ns;
        if (until_ns == 0) until_ns = timeout_ns ? wefti_deadline_after(now_ns, timeout_ns) : WEFTI_NEVER_NS;
        (void)!group_progress(&group->base, now_ns);
        if (operation->finished) break;
        if (now_ns >= until_ns) break;
        if (group->moves != moves || moved_ns == 0) {
            moves = group->moves;
            moved_ns = now_ns;
        }
        idle(group, operation, now_ns - moved_ns, until_ns - now_ns);
    }
    note_wait(group, last_ns - first_ns);
    return operation->finished ? spend(operation) : WEFT_E_AGAIN;
}

static uint64_t operation_sequence(const wefti_collective *handle) {
    return ((const coll_operation *)handle)->sequence;
}

static void group_describe(const wefti_group *base, wefti_text *text) {
    const coll_group *group = (const coll_group *)base;
    uint64_t now_ns = wefti_host_now(group->host);
    for (const coll_operation *operation = group->first; operation; operation = operation->next) {
        char words[224];
        wefti_coll_words(operation, words, sizeof words);
        double age_ms = operation->started_ns ? (double)(now_ns - operation->started_ns) / 1e6 : 0;
        wefti_text_add(text, "%s: %zu bytes, %.3f ms old", words, coll_bytes(operation), age_ms);
        if (operation->waits_for >= 0)
            wefti_text_add(text, ", waits for rank %d", (int)group->ranks[operation->waits_for]);
        wefti_text_add(text, "\n");
    }
}

const wefti_collective_engine *wefti_collective_engine_weft(void) {
    static const wefti_collective_engine engine = {.name = "weft",
                                                   .open = group_open,
                                                   .close = group_close,
                                                   .supports = group_supports,
                                                   .start = group_start,
                                                   .progress = group_progress,
                                                   .test = group_test,
                                                   .wait = group_wait,
                                                   .sequence = operation_sequence,
                                                   .describe = group_describe};
    return &engine;
}

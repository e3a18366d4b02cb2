/* two-shot: large collectives straight between the members' buffers.
 *
 * Each member has a share of the result. It reduces its share block by block, reading every member's send buffer where
 * it lies, and stores it into every member's receive buffer; then all are done when all say so. So an allreduce of B
 * bytes costs each member B bytes of reads and B of writes, in one pass, whatever the number of members, and nothing is
 * copied in or out. The other kinds are the same with fewer sources or targets: an allgather has one source a share
 * (its owner), a reduce-scatter one target, a broadcast one source for all shares (the root), a reduce one target for
 * all of them. In an all-to-all everyone takes its parts from where they lie.
 *
 * Buffers that are not in an exported region go through staging, in segments: a member with a foreign send buffer
 * copies each segment into its staging for the others to read, one with a foreign receive buffer copies it out of the
 * staging that the others stored to. Two halves each, so that copying overlaps with work. Counters in the slot say how
 * far each is; half h is used again for segment g+2 once all are through with g.
 *
 * A broadcast's root that has its result elsewhere may copy that by itself, after the others have what they need of it: they do not wait for it then,
 * and it comes from the root's own cache. Large ones in exported regions are shared out instead, root's result and all: two cores copy at twice the rate.
 *
 * Sources are taken in the order of the members, each element by one member alone: equal bits on all ranks, the same as
 * those of one-shot and direct. */
#include <string.h>

#include "transport/coll_map.h"

/* What one call of progress does at most, so that several in flight are served in turn. */
#define BUDGET_BYTES ((size_t)1 << 20)
/* Results of this size and more leave by stores that pass the caches by, where they do not overwrite their own sources:
 * an ordinary store would first read the line it is about to overwrite. Below, they would only be driven out of caches
 * that hold them. Measured: the same at 1 MiB, half as long at 64 MiB. In between it is the machine's: with 32 MiB of cache for both cores ordinary
 * stores are the quicker at 4 MiB, where cores share none those past the caches. So each member times both now and then. */
#define STREAM_BYTES ((size_t)2 << 20)
#define ALWAYS_STREAM_BYTES ((size_t)16 << 20)
/* Up to this size a broadcast's root copies its own result, also where nobody needs staging. Measured between 2 ranks of one cache: at best 0.3 for
 * 0.8 us at 8 KiB with medians alike, the same at 128 KiB, 3.8 for 2.8 us at 256 KiB; where staging is needed 1.3 to 1.8 times as fast from 8 KiB to 8 MiB. */
#define ROOT_COPIES_BYTES ((size_t)64 << 10)
/* Bytes in a nanosecond that ordinary copies to staging reach where cores share a cache (15; else 2.4). */
enum { QUICK_STAGING = 5 };

/* --- who reads and writes what --- */

static bool is_source(const coll_operation *operation, int32_t member, int32_t worker) {
    switch (operation->call.kind) {
    case WEFTI_ALLGATHER:
    case WEFTI_ALLGATHER_V:
    case WEFTI_GATHER: return member == worker;
    case WEFTI_BROADCAST:
    case WEFTI_SCATTER: return member == operation->call.root;
    default: return true;
    }
}

static bool is_target(const coll_operation *operation, int32_t member, int32_t worker) {
    switch (operation->call.kind) {
    case WEFTI_REDUCE_SCATTER:
    case WEFTI_REDUCE_SCATTER_V:
    case WEFTI_SCATTER:
    case WEFTI_ALLTOALL: return member == worker;
    case WEFTI_REDUCE_TO:
    case WEFTI_GATHER: return member == operation->call.root;
    case WEFTI_BROADCAST: {
        const coll_group *group = coll_group_of(operation);
        if (member != operation->call.root) return true;
        return !operation->share->root_copies && !map_slot_of(group->map, member, operation->place)->in_place;
    }
    default: return true;
    }
}

/* Where the share of `worker` begins, in elements, and how long it is. In an all-to-all it has a target for each source. */
typedef struct share_place {
    size_t source, target, count;
} share_place;

static share_place place_of(const coll_operation *operation, int32_t worker) {
    coll_range part = wefti_coll_part_of(operation, worker);
    switch (operation->call.kind) {
    case WEFTI_REDUCE_SCATTER:
    case WEFTI_REDUCE_SCATTER_V:
    case WEFTI_SCATTER:
    case WEFTI_ALLTOALL: return (share_place){part.first, 0, part.count};
    case WEFTI_ALLGATHER:
    case WEFTI_ALLGATHER_V:
    case WEFTI_GATHER: return (share_place){0, part.first, part.count};
    default: return (share_place){part.first, part.first, part.count};
    }
}

/* --- staging --- */

/* To staging, which the others read. */
void wefti_coll_copy_to_stage(coll_group *group, void *to, const void *from, size_t bytes) {
    wefti_pace *pace = &group->map->pace;
    const wefti_host *host = group->base.wire->host;
    bool timed = wefti_pace_times(pace, bytes);
    if (!timed && pace->streams) {
        wefti_stream_copy(to, from, bytes);
        return;
    }
    uint64_t begin_ns = timed ? wefti_host_now(host) : 0;
    memcpy(to, from, bytes);
    if (timed) wefti_pace_note(pace, bytes, wefti_host_now(host) - begin_ns, QUICK_STAGING);
}

static uint8_t *stage_of(const coll_operation *operation, int32_t member, bool out, uint64_t segment, int32_t worker) {
    const coll_group *group = coll_group_of(operation);
    return group->map->peers[member].base + group->map->stage_offset + (size_t)operation->set * STAGE_BYTES +
           (out ? 2 : 0) * STAGE_HALF_BYTES + (size_t)(segment & 1) * STAGE_HALF_BYTES +
           (size_t)worker * operation->share->piece * operation->element_bytes;
}

static map_slot *own_slot(const coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    return map_slot_of(group->map, group->base.index, operation->place);
}

static uint64_t read_counter(const _Atomic uint64_t *counter) {
    return atomic_load_explicit(counter, memory_order_acquire);
}

/* Segments that all other members have worked on; stops looking below `enough`. */
static bool all_worked(coll_operation *operation, uint64_t enough) {
    const coll_group *group = coll_group_of(operation);
    for (int32_t i = 0; i < group->base.size; i++) {
        if (i == group->base.index) continue;
        if (read_counter(&map_slot_of(group->map, i, operation->place)->worked) >= enough) continue;
        wefti_coll_look_at_peer(operation, i);
        return false;
    }
    return true;
}

/* The elements of `worker`'s share in `segment`: first within the share, and count. */
static coll_range segment_range(const coll_share *share, size_t count, uint64_t segment) {
    if (segment >= count / share->piece + 1) return (coll_range){count, 0};
    size_t first = (size_t)segment * share->piece, rest = count - first;
    return (coll_range){first, rest < share->piece ? rest : share->piece};
}

/* Copies a segment between this rank's own buffer and its staging, for all other workers. */
static void copy_segment(coll_operation *operation, bool out, uint64_t segment) {
    coll_share *share = operation->share;
    const coll_group *group = coll_group_of(operation);
    int32_t me = group->base.index;
    for (int32_t worker = 0; worker < group->base.size; worker++) {
        if (worker == me || !(out ? is_target : is_source)(operation, me, worker)) continue;
        share_place place = place_of(operation, worker);
        coll_range range = segment_range(share, place.count, segment);
        size_t bytes = range.count * operation->element_bytes;
        uint8_t *stage = stage_of(operation, me, out, segment, worker);
        if (!bytes) continue;
        if (out)
            memcpy((uint8_t *)operation->call.receive + (place.target + range.first) * operation->element_bytes, stage,
                   bytes);
        else
            wefti_coll_copy_to_stage(coll_group_of(operation), stage,
                          (const uint8_t *)operation->call.send + (place.source + range.first) * operation->element_bytes, bytes);
    }
    if (!out) wefti_stream_fence();
}

static bool stage_in(coll_operation *operation) {
    coll_share *share = operation->share;
    if (share->staged >= share->segments) return false;
    if (share->staged >= 2 && !all_worked(operation, share->staged - 1)) return false;
    copy_segment(operation, false, share->staged);
    atomic_store_explicit(&own_slot(operation)->staged, ++share->staged, memory_order_release);
    return true;
}

static bool copy_out(coll_operation *operation) {
    coll_share *share = operation->share;
    if (share->copied >= share->segments || !all_worked(operation, share->copied + 1)) return false;
    copy_segment(operation, true, share->copied);
    atomic_store_explicit(&own_slot(operation)->copied, ++share->copied, memory_order_release);
    return true;
}

/* --- work on the own share --- */

/* Whether sources are there and targets are free for `segment` of this rank's share. */
static bool clear_to_work(coll_operation *operation, uint64_t segment) {
    coll_share *share = operation->share;
    const coll_group *group = coll_group_of(operation);
    int32_t me = group->base.index;
    if (segment < share->cleared) return true;
    for (int32_t i = 0; i < group->base.size; i++) {
        if (i == me) continue;
        const map_slot *slot = map_slot_of(group->map, i, operation->place);
        bool late = !share->send[i] && is_source(operation, i, me) && read_counter(&slot->staged) <= segment;
        bool full = !share->receive[i] && is_target(operation, i, me) && read_counter(&slot->copied) + 2 <= segment;
        if (!late && !full) continue;
        wefti_coll_look_at_peer(operation, i);
        return false;
    }
    share->cleared = segment + 1;
    return true;
}

static void copy(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }

/* Copies `count` elements of what all members have for this one from `first` on. */
static void exchange_block(coll_operation *operation, share_place place, uint64_t segment, size_t first, size_t count) {
    coll_share *share = operation->share;
    coll_group *group = coll_group_of(operation);
    int32_t me = group->base.index;
    size_t element = operation->element_bytes, in_piece = (first - (size_t)segment * share->piece) * element;
    for (int32_t i = 0; i < group->base.size; i++) {
        const uint8_t *from = share->send[i] ? share->send[i] + (place.source + first) * element
                                             : stage_of(operation, i, false, segment, me) + in_piece;
        void *to = coll_at(operation, share->receive[me], wefti_coll_part_of(operation, i).first + first);
        (share->stream ? wefti_stream_copy : copy)(to, from, count * element);
    }
}

/* Reduces and stores `count` elements of the share from `first` on, which lie in `segment`. */
static weft_status work_block(coll_operation *operation, share_place place, uint64_t segment, size_t first,
                              size_t count) {
    coll_share *share = operation->share;
    coll_group *group = coll_group_of(operation);
    int32_t me = group->base.index, sources = 0;
    size_t element = operation->element_bytes, in_piece = (first - (size_t)segment * share->piece) * element;
    for (int32_t i = 0; i < group->base.size; i++) {
        if (!is_source(operation, i, me)) continue;
        group->sources[sources++] = share->send[i] ? share->send[i] + (place.source + first) * element
                                                   : stage_of(operation, i, false, segment, me) + in_piece;
    }
    const void *result = group->sources[0];
    if (coll_kind_reduces(operation->call.kind)) {
        bool aside = share->stream || !is_target(operation, me, me);
        void *own = aside ? group->map->block : share->receive[me] + (place.target + first) * element;
        WEFTI_TRY(wefti_coll_reduce(operation, own, sources, count, true));
        result = own;
    }
    for (int32_t i = 0; i < group->base.size; i++) {
        if (!is_target(operation, i, me)) continue;
        void *to = share->receive[i] ? share->receive[i] + (place.target + first) * element
                                     : stage_of(operation, i, true, segment, me) + in_piece;
        if (to == result) continue;
        if (share->receive[i])
            (share->stream ? wefti_stream_copy : copy)(to, result, count * element);
        else
            wefti_coll_copy_to_stage(group, to, result, count * element);
    }
    return WEFT_OK;
}

/* Works on the share until it is done, somebody is waited for, or `budget` bytes are spent. *moved_out: something was
 * done. */
static weft_status work(coll_operation *operation, size_t *budget, bool *moved_out) {
    coll_share *share = operation->share;
    share_place place = place_of(operation, operation->base.group->index);
    size_t block = BLOCK_BYTES / operation->element_bytes;
    *moved_out = false;
    while (share->worked < share->segments && *budget > 0) {
        if (share->cursor < place.count) {
            uint64_t segment = share->cursor / share->piece;
            if (!clear_to_work(operation, segment)) return WEFT_OK;
            coll_range range = segment_range(share, place.count, segment);
            size_t rest = range.first + range.count - share->cursor, count = rest < block ? rest : block;
            if (operation->call.kind == WEFTI_ALLTOALL)
                exchange_block(operation, place, segment, share->cursor, count);
            else
                WEFTI_TRY(work_block(operation, place, segment, share->cursor, count));
            share->cursor += count;
            size_t bytes = count * operation->element_bytes;
            *budget -= bytes < *budget ? bytes : *budget;
        }
        *moved_out = true;
        uint64_t worked = share->cursor == place.count ? share->segments : share->cursor / share->piece;
        if (worked != share->worked && (share->stream || share->foreign)) wefti_stream_fence();
        if (worked != share->worked) atomic_store_explicit(&own_slot(operation)->worked, worked, memory_order_release);
        share->worked = worked;
    }
    return WEFT_OK;
}

/* --- the operation --- */

static void locate(const coll_group *group, const void *buffer, size_t bytes, uint32_t *region_out,
                   uint64_t *offset_out) {
    wefti_wire_region *region = NULL;
    if (group->base.wire->ops->region_of && bytes)
        region = group->base.wire->ops->region_of(group->base.wire, buffer, bytes);
    *region_out = region ? region->id : 0;
    *offset_out = region ? (uint64_t)((const uint8_t *)buffer - (const uint8_t *)region->base) : 0;
}

void wefti_coll_twoshot_begin(coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    const wefti_collective_call *call = &operation->call;
    int32_t me = group->base.index;
    map_slot *slot = wefti_coll_slot_fill(operation);
    locate(group, call->send, wefti_coll_sent_count(group, call, me) * operation->element_bytes, &slot->send_region,
           &slot->send_offset);
    locate(group, call->receive, wefti_coll_received_count(group, call, me) * operation->element_bytes,
           &slot->receive_region, &slot->receive_offset);
    /* Exactly for all-reduce and broadcast; the others are if the smaller buffer is a part of the larger. */
    slot->in_place = call->send == call->receive;
    atomic_store_explicit(&slot->staged, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->worked, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->copied, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->done, 0, memory_order_relaxed);
    coll_share *share = operation->share;
    *share = (coll_share){.send = share->send, .receive = share->receive};
    wefti_coll_feed_offer(operation, slot);
    wefti_coll_pull_offer(operation, slot);
    map_slot_publish(slot, operation->place);
}

/* This rank's address of a buffer of member `index`. */
static weft_status address_of(coll_operation *operation, int32_t index, uint32_t region_id, uint64_t offset,
                              uint8_t **address_out) {
    coll_group *group = coll_group_of(operation);
    wefti_wire_peer_region region;
    *address_out = NULL;
    if (region_id == 0) return WEFT_OK;
    weft_status status = group->base.wire->ops->peer_region(group->base.wire, group->ranks[index], region_id, &region);
    if (status == WEFT_E_PEER) {
        wefti_coll_suspect(operation, index);
        return WEFT_E_AGAIN;
    }
    if (status != WEFT_OK) return status;
    if (!region.base || offset >= region.size_bytes)
        return wefti_fail(WEFT_E_CORRUPT, "rank %d says its buffer is at %llu in a region of %zu bytes",
                          (int)group->ranks[index], (unsigned long long)offset, region.size_bytes);
    *address_out = (uint8_t *)region.base + offset;
    return WEFT_OK;
}

/* Whether anybody else reads (out: writes) the buffer of `member`. */
static bool others_use(const coll_operation *operation, int32_t member, bool out) {
    int32_t size = operation->base.group->size, other = member == 0 ? size - 1 : 0;
    return (out ? is_target : is_source)(operation, member, other);
}

/* Once all slots have been seen; all members see the same. */
static bool root_copies(const coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    const wefti_collective_call *call = &operation->call;
    if (call->kind != WEFTI_BROADCAST || map_slot_of(group->map, call->root, operation->place)->in_place) return false;
    bool copies = coll_bytes(operation) <= ROOT_COPIES_BYTES;
    for (int32_t i = 0; i < group->base.size && !copies; i++) {
        const map_slot *slot = map_slot_of(group->map, i, operation->place);
        copies = (i == call->root ? slot->send_region : slot->receive_region) == 0;
    }
    return copies;
}

/* The root's own result, a part at a time; whether it is there. */
static bool copy_own(coll_operation *operation) {
    coll_share *share = operation->share;
    size_t bytes = coll_bytes(operation), rest = bytes - share->own, part = rest < BUDGET_BYTES ? rest : BUDGET_BYTES;
    if (!share->root_copies || operation->base.group->index != operation->call.root || rest == 0) return true;
    (bytes >= STREAM_BYTES ? wefti_stream_copy : copy)((uint8_t *)operation->call.receive + share->own, (const uint8_t *)operation->call.send + share->own, part);
    if (bytes >= STREAM_BYTES) wefti_stream_fence();
    share->own += part;
    coll_group_of(operation)->moves++;
    return share->own == bytes;
}

static map_race *store_race(const coll_operation *operation, size_t result_bytes) {
    return &coll_group_of(operation)->map->stores[operation->call.kind][map_length(result_bytes)];
}

/* Whether a result of so many bytes leaves past the caches. */
static bool streams(coll_operation *operation, size_t result_bytes) {
    coll_share *share = operation->share;
    const map_slot *own = own_slot(operation);
    if (result_bytes < STREAM_BYTES || own->in_place || (share->foreign && !share->pull)) return false;
    if (result_bytes >= ALWAYS_STREAM_BYTES || share->foreign) return true;
    return !map_race_enter(store_race(operation, result_bytes), &share->store_trial);
}

static size_t result_bytes(const coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    return wefti_coll_received_count(group, &operation->call, group->base.index) * operation->element_bytes;
}

/* What this member's own work took, which waits for nobody where all is mapped. Where ordinary stores take twice as long, once is enough. */
static void note_stores(coll_operation *operation) {
    coll_share *share = operation->share;
    int         trial = share->store_trial;
    if (!trial) return;
    map_race *race = store_race(operation, result_bytes(operation));
    uint64_t  took_ns = wefti_host_now(coll_group_of(operation)->host) - share->resolved_ns;
    if (!share->stream && map_race_is_lost(race, took_ns)) {
        race->operations += (uint32_t)(2 * MAP_TRIES - trial);
        trial = 2 * MAP_TRIES;
    }
    map_race_note(race, trial, !share->stream, took_ns);
}

/* Finds out where all buffers are, once all slots have been seen. */
static weft_status resolve(coll_operation *operation) {
    coll_group *group = coll_group_of(operation);
    coll_share *share = operation->share;
    int32_t size = group->base.size, me = group->base.index;
    share->root_copies = root_copies(operation);
    for (; share->resolved < size; share->resolved++) {
        int32_t i = share->resolved;
        const map_slot *slot = map_slot_of(group->map, i, operation->place);
        bool read = others_use(operation, i, false), written = others_use(operation, i, true);
        if ((read && slot->send_region == 0) || (written && slot->receive_region == 0)) share->foreign = true;
        if (i == me) continue;
        WEFTI_TRY(address_of(operation, i, slot->send_region, slot->send_offset, &share->send[i]));
        WEFTI_TRY(address_of(operation, i, slot->receive_region, slot->receive_offset, &share->receive[i]));
    }
    const map_slot *own = own_slot(operation);
    share->send[me] = (uint8_t *)operation->call.send;
    share->receive[me] = operation->call.receive;
    size_t longest = wefti_coll_longest_part(operation);
    size_t line = WEFTI_CACHE_LINE / operation->element_bytes;
    share->piece = share->foreign ? STAGE_HALF_BYTES / operation->element_bytes / (size_t)size / line * line : longest;
    if (share->piece == 0) share->piece = 1;
    share->segments = (longest + share->piece - 1) / share->piece;
    if (!others_use(operation, me, false) || own->send_region) share->staged = share->segments;
    if (!others_use(operation, me, true) || own->receive_region) share->copied = share->segments;
    share->pull = wefti_coll_pull_chosen(operation);
    share->stream = streams(operation, result_bytes(operation));
    if (share->trial || share->store_trial) share->resolved_ns = wefti_host_now(group->host);
    return WEFT_OK;
}

static weft_status wait_for_all(coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    coll_share *share = operation->share;
    for (; share->done < group->base.size; share->done++) {
        int32_t i = share->done;
        if (i == group->base.index || read_counter(&map_slot_of(group->map, i, operation->place)->done) > share->refused) continue;
        wefti_coll_look_at_peer(operation, i);
        return WEFT_E_AGAIN;
    }
    return WEFT_OK;
}

/* As large operations go whose data is pulled (coll_pull.c). A member that says that it is done may yet begin again: only when all have, it is. */
static weft_status pull(coll_operation *operation) {
    coll_share *share = operation->share;
    if (wefti_coll_pull_refused(operation)) return WEFT_E_AGAIN;
    if (!share->over) {
        int32_t size = operation->base.group->size;
        WEFTI_TRY(wefti_coll_pull_advance(operation, size - 1, BUDGET_BYTES));
        atomic_store_explicit(&own_slot(operation)->done, 1, memory_order_release);
        WEFTI_TRY(wefti_coll_pull_advance(operation, size, BUDGET_BYTES));
        share->over = true;
    }
    WEFTI_TRY(wait_for_all(operation));
    return wefti_coll_pull_refused(operation) ? WEFT_E_AGAIN : WEFT_OK;
}

static weft_status share_out(coll_operation *operation) {
    coll_group *group = coll_group_of(operation);
    coll_share *share = operation->share;
    if (share->over) return wait_for_all(operation);
    size_t budget = BUDGET_BYTES;
    bool moved;
    do {
        WEFTI_TRY(work(operation, &budget, &moved));
        moved |= stage_in(operation);
        moved |= copy_out(operation);
        group->moves += moved;
    } while (moved && budget > 0);
    if (share->worked < share->segments || share->copied < share->segments || share->staged < share->segments)
        return WEFT_E_AGAIN;
    if (share->own == 0) atomic_store_explicit(&own_slot(operation)->done, 1 + share->refused, memory_order_release);
    share->over = copy_own(operation);
    if (!share->over) return WEFT_E_AGAIN;
    note_stores(operation);
    return wait_for_all(operation);
}

weft_status wefti_coll_twoshot_advance(coll_operation *operation) {
    coll_group *group = coll_group_of(operation);
    coll_share *share = operation->share;
    if (operation->call.kind == WEFTI_BROADCAST && share->resolved == 0 && !share->fed) { /* most of these wait for nobody else */
        WEFTI_TRY(wefti_coll_root_seen(operation));
        share->fed = wefti_coll_feed_chosen(operation);
    }
    if (share->fed) return wefti_coll_feed_advance(operation);
    if (share->resolved < group->base.size) {
        WEFTI_TRY(wefti_coll_slots_seen(operation));
        if (!wefti_coll_turn(operation)) return WEFT_E_AGAIN;
        WEFTI_TRY(resolve(operation));
    }
    WEFTI_TRY(share->pull ? pull(operation) : share_out(operation));
    wefti_coll_pull_note(operation);
    return WEFT_OK;
}

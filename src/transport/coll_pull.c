/* Large collectives that only move data, of buffers that nobody has mapped: each member pulls what it gets out of the others' own memory.
 *
 * Staging costs two copies by the members; a pull one by the kernel (the wire's peer_read), which also looks each page up. Which is quicker is the
 * machine's: where two cores share a cache, staging is, at three times the rate of the kernel; where they don't, lines that the other core has read
 * are written again at a tenth of that rate, and the kernel wins. So one member tries both now and then (map_race), for each kind and length, and says in its slot which way the next ones go; its clock runs from where all members are there to the end. That is member 0, and of a broadcast its root, where that feeds the others by no ring (coll_feed.c). Bits are the same either way.
 *
 * A pull is used where all members can read all others, as their slots say. A system may refuse it later, for a part of memory (a device's), or
 * because a process changed hands: who finds that out says so in its slot, and all begin the operation again, through staging. Nobody has ended it
 * by then: each waits for all. The second time around `done` is 2. */
#include <string.h>

#include "core/base/stream.h"
#include "transport/coll_map.h"

/* Below, the kernel's way in alone takes longer than staging. */
#define LEAST_BYTES ((size_t)16 << 10)
#define PIECE_BYTES ((size_t)256 << 10)

/* Whether this member can read all others' memory; once it can't, it isn't asked again. */
static bool reads_all(coll_group *group) {
    coll_map *map = group->map;
    if (map->reads == MAP_READS_UNKNOWN) {
        weft_status status = wefti_wire_reads_peers(group->base.wire, group->ranks, group->base.size);
        if (status != WEFT_E_AGAIN) map->reads = status == WEFT_OK ? MAP_READS_ALL : MAP_READS_NOT_ALL;
    }
    return map->reads == MAP_READS_ALL;
}

static map_way *way_of(const coll_operation *operation) {
    return &coll_group_of(operation)->map->ways[operation->call.kind][map_length(coll_bytes(operation))];
}

/* Who tries. */
static int32_t decider(const coll_operation *operation) { return operation->call.kind == WEFTI_BROADCAST ? operation->call.root : 0; }

static bool may_pull(const coll_operation *operation) {
    return !coll_kind_reduces(operation->call.kind) && coll_bytes(operation) >= LEAST_BYTES;
}

void wefti_coll_pull_offer(coll_operation *operation, map_slot *slot) {
    coll_group *group = coll_group_of(operation);
    slot->reads = slot->pulls = 0;
    slot->send_address = (uint64_t)(uintptr_t)operation->call.send;
    atomic_store_explicit(&slot->refused, 0, memory_order_relaxed);
    if (slot->fed || !may_pull(operation)) return;
    slot->reads = reads_all(group);
    map_way *way = way_of(operation);
    if (group->base.index != decider(operation) || !(way->foreign || !slot->send_region || !slot->receive_region)) return;
    slot->pulls = map_race_enter(&way->race, &operation->share->trial);
}

/* What is mapped needs no kernel. */
bool wefti_coll_pull_chosen(const coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    const wefti_collective_call *call = &operation->call;
    bool from_root = call->kind == WEFTI_BROADCAST || call->kind == WEFTI_SCATTER, all_read = true, all_mapped = true;
    if (!operation->share->foreign || !may_pull(operation) || !map_slot_of(group->map, decider(operation), operation->place)->pulls) return false;
    for (int32_t i = 0; i < group->base.size; i++) {
        const map_slot *slot = map_slot_of(group->map, i, operation->place);
        all_read &= slot->reads;
        if (!from_root || i == call->root) all_mapped &= slot->send_region != 0;
    }
    return all_read || all_mapped;
}

void wefti_coll_pull_note(coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    coll_share *share = operation->share;
    if (group->base.index != decider(operation) || !may_pull(operation)) return;
    map_way *way = way_of(operation);
    way->foreign = share->foreign;
    if (!share->trial || !share->foreign) return;
    map_race_note(&way->race, share->trial, share->pull, wefti_host_now(group->host) - share->resolved_ns);
}

/* --- pulling --- */

/* Of what `member` sends, in elements. */
typedef struct pull_part {
    size_t from, to, count;
} pull_part;

static pull_part part_from(const coll_operation *operation, int32_t member) {
    const wefti_collective_call *call = &operation->call;
    int32_t    me = coll_index(coll_group_of(operation));
    coll_range theirs = wefti_coll_part_of(operation, member), mine = wefti_coll_part_of(operation, me);
    switch (call->kind) {
    case WEFTI_BROADCAST: return (pull_part){0, 0, member == call->root ? call->count : 0};
    case WEFTI_SCATTER: return (pull_part){mine.first, 0, member == call->root ? mine.count : 0};
    case WEFTI_GATHER: return (pull_part){0, theirs.first, me == call->root ? theirs.count : 0};
    case WEFTI_ALLTOALL: return (pull_part){mine.first, theirs.first, theirs.count};
    default: return (pull_part){0, theirs.first, theirs.count}; /* an allgather */
    }
}

static weft_status pull_piece(coll_operation *operation, int32_t member, void *to, size_t offset, size_t bytes) {
    coll_group *group = coll_group_of(operation);
    coll_share *share = operation->share;
    if (share->send[member]) {
        const uint8_t *from = share->send[member] + offset;
        if (from == to) return WEFT_OK;
        if (share->stream)
            wefti_stream_copy(to, from, bytes);
        else
            memcpy(to, from, bytes);
        return WEFT_OK;
    }
    uint64_t address = map_slot_of(group->map, member, operation->place)->send_address + offset;
    return group->base.wire->ops->peer_read(group->base.wire, group->ranks[member], to, address, bytes);
}

/* Begins again through staging. */
static void give_up(coll_operation *operation) {
    coll_group *group = coll_group_of(operation);
    coll_share *share = operation->share;
    map_slot   *slot = map_slot_of(group->map, group->base.index, operation->place);
    group->map->reads = MAP_READS_NOT_ALL;
    share->pull = share->stream = share->over = false;
    share->trial = 0;
    share->refused = true;
    share->cursor = 0;
    share->done = 0;
    atomic_store_explicit(&slot->refused, 1, memory_order_release);
}

bool wefti_coll_pull_refused(coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    for (int32_t i = 0; i < group->base.size; i++) {
        if (!atomic_load_explicit(&map_slot_of(group->map, i, operation->place)->refused, memory_order_acquire)) continue;
        give_up(operation);
        return true;
    }
    return false;
}

weft_status wefti_coll_pull_advance(coll_operation *operation, int32_t members, size_t budget) {
    coll_group *group = coll_group_of(operation);
    coll_share *share = operation->share;
    for (; share->pulled < members; share->pulled++, share->cursor = 0) {
        int32_t   member = coll_around(group, group->base.index, share->pulled + 1); /* not all from one at a time */
        pull_part part = part_from(operation, member);
        size_t    element = operation->element_bytes, bytes = part.count * element;
        while (share->cursor < bytes) {
            size_t rest = bytes - share->cursor, piece = rest < PIECE_BYTES ? rest : PIECE_BYTES;
            if (budget == 0) return WEFT_E_AGAIN;
            weft_status status = pull_piece(operation, member, (uint8_t *)operation->call.receive + part.to * element + share->cursor,
                                            part.from * element + share->cursor, piece);
            if (status != WEFT_OK) {
                give_up(operation);
                return WEFT_E_AGAIN;
            }
            share->cursor += piece;
            budget -= piece < budget ? piece : budget;
            group->moves++;
        }
    }
    if (share->stream) wefti_stream_fence();
    return WEFT_OK;
}

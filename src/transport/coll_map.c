/* Collectives in mapped memory: the shared slots, and the one-shot algorithm.
 *
 * Every member exports one region, to which only it writes: slots for the operations in flight, a small payload for
 * each, and staging. The mapped operations of a group are numbered by themselves, for messages may come in between; the one with place s
 * uses slot s mod depth in every region. A member announces itself by storing s + 1 as the stamp, after everything else of the slot; the others poll that. No lock, no message.
 *
 * Why a slot may be used again without asking: an operation ends here only after every member's stamp was seen, so ours
 * for s-F being over means that each other member had started s-F, and then, having at most F in flight, was through
 * with s-2F. Starting s means that s-F is over here. So depth = 2F would suffice, where F is `in_flight`. Broadcasts wait for their root alone,
 * which waits for nobody: where ranks share cores, each wait is a change of processes. But every E-th operation waits for all members
 * (coll_ask.c), so what was said of s-F goes for one at most E-1 before it, and depth = 2F + E. Who calls what is compared by that of the member whose
 * data is used, and by a hash of all calls before.
 *
 * one-shot: everybody puts its data next to its slot and works out its own result from what it sees. One line from core
 * to core for up to 32 bytes. Reduction in the order of the members: all ranks get equal bits.
 *
 * Regions are told to the others by one message each, in the first operation.
 *
 * Closing waits for nobody. A member that is through with its last operation may be seconds ahead of one that has yet to
 * read its slots, and must not keep that one from them; nor may it wait for it, because that one may be waiting for an
 * operation in which this member takes no part, and should be told so. So the two are taken apart. A member that leaves
 * stores in each other's region from which operation on it does not take part: who waits for it in such a one knows at
 * once. And its own region is retired: the wire keeps it whole until all others have left their mark in it, or until the
 * wire itself is closed, which leaves the others' mappings as they are. A mark is a word in the memory of whom it is for,
 * so nobody has to look at memory that may be gone, no message is left to a later group of the same id, and the last to
 * leave finds all marks there and gives its region back at once. A group that failed leaves no marks: the verdict says
 * more. */
#include <string.h>

#include "transport/coll_map.h"

enum { STEP_OPEN = 0xfffff, LOOKS = 63 /* odd: also where two are looked at in turn, each has its turn */, AHEAD_BYTES = 256 };

/* --- open --- */

static size_t slots_bytes(const coll_map *map) { return wefti_align_up(map->depth * sizeof(map_slot), 4096); }

weft_status wefti_coll_map_open(coll_group *group) {
    size_t size = (size_t)group->base.size, in_flight = (size_t)group->in_flight;
    coll_map *map = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *map, "a mapped group", &map));
    group->map = map;
    map->depth = 2 * in_flight + COLL_STRICT_EVERY;
    map->payload_offset = slots_bytes(map);
    map->stage_offset = map->payload_offset + wefti_align_up(map->depth * COLL_SMALL_BYTES, 4096);
    map->feed_offset = map->stage_offset + COLL_SETS * STAGE_BYTES;
    map->ring_offset = map->feed_offset + wefti_align_up(sizeof(map_feed) + size * sizeof(map_line), 4096);
    map->feed_until = FEED_BYTES;
    map->farewell_offset = map->ring_offset + FEED_BYTES;
    map->size_bytes = map->farewell_offset + wefti_align_up(sizeof(map_farewell) + size * sizeof(uint64_t), 4096);
    WEFTI_TRY(wefti_alloc(size * sizeof *map->peers, "a mapped group's peers", &map->peers));
    WEFTI_TRY(wefti_alloc(in_flight * sizeof *map->shares, "large collectives", &map->shares));
    WEFTI_TRY(wefti_alloc(in_flight * 2 * size * sizeof *map->pointers, "large collectives' buffers", &map->pointers));
    WEFTI_TRY(wefti_alloc_raw(BLOCK_BYTES, 4096, "a block of results", &map->block));
    for (size_t i = 0; i < in_flight; i++) {
        map->shares[i].send = (uint8_t **)map->pointers + i * 2 * size;
        map->shares[i].receive = map->shares[i].send + size;
        group->operations[i].share = &map->shares[i];
    }
    WEFTI_TRY(group->base.wire->ops->region_create(group->base.wire, map->size_bytes, &map->region));
    map->peers[group->base.index].base = map->region->base;
    map->info[0] = map->region->id;
    map->info[1] = map->size_bytes;
    map_farewell *farewell = map_farewell_of(map, group->base.index);
    farewell->members = size;
    farewell->index = (uint64_t)group->base.index;
    return WEFT_OK;
}

/* Exchanges region ids with one member; WEFT_OK once its region is mapped. */
static weft_status meet(coll_group *group, int32_t index) {
    coll_map *map = group->map;
    map_peer *peer = &map->peers[index];
    wefti_wire *wire = group->base.wire;
    int32_t rank = group->ranks[index];
    uint64_t tag = wefti_coll_tag(group, 0, STEP_OPEN);
    if (!peer->received) {
        peer->transfers[0] = wefti_wire_recv(rank, tag, peer->info, sizeof peer->info);
        peer->transfers[0].flags = WEFTI_WIRE_SILENT;
        WEFTI_TRY(wire->ops->post(wire, &peer->transfers[0]));
        peer->received = true;
    }
    if (!peer->sent) {
        peer->transfers[1] = wefti_wire_send(rank, tag, map->info, sizeof map->info);
        peer->transfers[1].flags = WEFTI_WIRE_SILENT;
        WEFTI_TRY(wire->ops->post(wire, &peer->transfers[1]));
        peer->sent = true;
    }
    if (!peer->transfers[0].done) return WEFT_E_AGAIN;
    WEFTI_TRY(peer->transfers[0].status);
    if (peer->info[1] != map->size_bytes)
        return wefti_fail(WEFT_E_MISMATCH,
                          "group %u: rank %d opened it with other options (%llu bytes of slots, here %zu)",
                          (unsigned)group->id, (int)rank, (unsigned long long)peer->info[1], map->size_bytes);
    wefti_wire_peer_region region;
    WEFTI_TRY(wire->ops->peer_region(wire, rank, (uint32_t)peer->info[0], &region));
    if (!region.base || region.size_bytes < map->size_bytes)
        return wefti_fail(WEFT_E_CORRUPT, "group %u: the region of rank %d is not as large as it said",
                          (unsigned)group->id, (int)rank);
    peer->base = region.base;
    return WEFT_OK;
}

/* Tries to meet all members, so that nobody waits for a message of this rank; gives the state of member `index`. */
static weft_status meet_all(coll_operation *operation, int32_t index) {
    coll_group *group = coll_group_of(operation);
    weft_status wanted = WEFT_OK;
    for (int32_t i = 0; i < group->base.size; i++) {
        if (group->map->peers[i].base) continue;
        weft_status status = meet(group, i);
        if (status == WEFT_E_PEER) {
            wefti_coll_suspect(operation, i);
            status = WEFT_E_AGAIN;
        }
        if (status == WEFT_E_AGAIN) operation->waits_for = i;
        if (status != WEFT_OK && status != WEFT_E_AGAIN) return status;
        if (i == index) wanted = status;
    }
    return wanted;
}

/* --- close --- */

/* Stores in every other member's region that this one looks at nothing there any more. */
static void say_goodbye(coll_group *group) {
    coll_map *map = group->map;
    int32_t me = group->base.index;
    /* What is still in flight is given up: the others are not to wait for it. */
    uint64_t through = wefti_coll_oldest(group);
    for (int32_t i = 0; i < group->base.size; i++)
        if (i != me && map->peers[i].base)
            atomic_store_explicit(&map_farewell_of(map, i)->left[me], through + 1, memory_order_release);
}

static bool all_have_left(const void *context) {
    const map_farewell *farewell = context;
    for (uint64_t i = 0; i < farewell->members; i++)
        if (i != farewell->index && atomic_load_explicit(&farewell->left[i], memory_order_acquire) == 0) return false;
    return true;
}

/* Messages of the opening that the wire still has; takes back the receives among them. */
static bool holds_transfers(coll_group *group) {
    const wefti_wire_ops *ops = group->base.wire->ops;
    bool holds = false;
    for (int32_t i = 0; i < group->base.size; i++) {
        map_peer *peer = &group->map->peers[i];
        if (peer->received && !peer->transfers[0].done) (void)!ops->cancel(group->base.wire, &peer->transfers[0]);
        holds |= (peer->received && !peer->transfers[0].done) || (peer->sent && !peer->transfers[1].done);
    }
    return holds;
}

static bool is_known_to_others(const coll_group *group) {
    for (int32_t i = 0; i < group->base.size; i++)
        if (group->map->peers[i].sent) return true;
    return false;
}

void wefti_coll_map_close(coll_group *group) {
    coll_map *map = group->map;
    wefti_wire *wire = group->base.wire;
    size_t size = (size_t)group->base.size, in_flight = (size_t)group->in_flight;
    if (map->region && !group->failed) say_goodbye(group);
    if (map->peers && holds_transfers(group) && !wefti_coll_settle(group, holds_transfers))
        wire->ops->abort(wire, WEFT_E_ABORTED, -1);
    if (map->region && !is_known_to_others(group))
        wire->ops->region_release(map->region);
    else if (map->region && !group->failed) /* of a group that failed, it is left to the wire, which frees it at its end */
        wire->ops->region_retire(map->region, all_have_left, map_farewell_of(map, group->base.index));
    wefti_free(map->block, BLOCK_BYTES);
    wefti_free(map->pointers, in_flight * 2 * size * sizeof *map->pointers);
    wefti_free(map->shares, in_flight * sizeof *map->shares);
    wefti_free(map->peers, size * sizeof *map->peers);
    wefti_free(map, sizeof *map);
    group->map = NULL;
}

/* --- slots --- */

map_slot *wefti_coll_slot_fill(coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    map_slot *slot = map_slot_of(group->map, group->base.index, operation->place);
    coll_header header = wefti_coll_header(operation);
    slot->count = header.count;
    slot->kind = header.kind;
    slot->dtype = header.dtype;
    slot->op = header.op;
    slot->algorithm = header.algorithm;
    slot->root = header.root;
    slot->before = operation->opening.before;
    if (header.extra) slot->extra = header.extra;
    return slot;
}

bool wefti_coll_has_left(const coll_operation *operation, int32_t index) {
    const coll_group *group = coll_group_of(operation);
    if (!group->map || !operation->algorithm->mapped) return false;
    const map_farewell *farewell = map_farewell_of(group->map, group->base.index);
    uint64_t left = atomic_load_explicit(&farewell->left[index], memory_order_acquire);
    return left && operation->sequence >= left - 1;
}

void wefti_coll_look_at_peer(coll_operation *operation, int32_t index) {
    const coll_group *group = coll_group_of(operation);
    operation->waits_for = index;
    if (++operation->looks % LOOKS != 0) return;
    if (wefti_coll_has_left(operation, index)) {
        wefti_coll_suspect(operation, index);
        return;
    }
    wefti_wire_link link = group->base.wire->ops->link(group->base.wire, group->ranks[index]);
    if (link != WEFTI_LINK_LEFT && link != WEFTI_LINK_DOWN) return;
    /* What it stored before it went counts: only the second look in vain is one. Two may be looked at in turn. */
    if (operation->gone[0] == index + 1 || operation->gone[1] == index + 1) {
        wefti_coll_suspect(operation, index);
        return;
    }
    operation->gone[1] = operation->gone[0];
    operation->gone[0] = index + 1;
}

uint64_t wefti_coll_moved(const coll_group *group, int32_t member) {
    const coll_map *map = group->map;
    const map_feed *feed = map_feed_of(map, member);
    uint64_t        moved = atomic_load_explicit(&feed->written.position, memory_order_relaxed);
    for (int32_t i = 0; i < group->base.size; i++) moved += atomic_load_explicit(&feed->taken[i].position, memory_order_relaxed);
    for (uint64_t place = 0; place < map->depth; place++) moved += atomic_load_explicit(&map_slot_of(map, member, place)->stamp, memory_order_relaxed);
    return moved;
}

static coll_header header_of(const map_slot *slot, uint64_t sequence) {
    return (coll_header){.count = slot->count,
                         .sequence = (uint32_t)sequence,
                         .kind = slot->kind,
                         .dtype = slot->dtype,
                         .op = slot->op,
                         .algorithm = slot->algorithm,
                         .root = slot->root,
                         .magic = COLL_MAGIC};
}

/* The number of this member's mapped operation before: the latest of its calls but this one that is remembered and mapped. */
static uint64_t mapped_before(const coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    uint64_t at = operation->sequence;
    while (at-- > 0 && operation->sequence - at < COLL_KEEPS) {
        const coll_header *header = &group->called[at % COLL_KEEPS];
        if (header->sequence == (uint32_t)at && wefti_coll_algorithms[header->algorithm].mapped) return at;
    }
    return 0;
}

/* The calls differ, or those before them do: where it is the mapped one before, that one is named. */
static weft_status slot_differs(coll_operation *operation, int32_t index, const map_slot *slot) {
    const coll_group *group = coll_group_of(operation);
    const map_slot *own = map_slot_of(group->map, coll_index(group), operation->place);
    coll_header theirs = header_of(slot, operation->sequence);
    if (operation->extra) theirs.extra = slot->extra;
    WEFTI_TRY(wefti_coll_compare(operation, index, &theirs));
    if (slot->before == own->before) return WEFT_OK;
    const map_slot *last = map_slot_of(group->map, index, operation->place - 1);
    if (operation->place > 0 && atomic_load_explicit(&last->stamp, memory_order_acquire) == operation->place) {
        uint64_t before = mapped_before(operation);
        coll_header mine = header_of(map_slot_of(group->map, coll_index(group), operation->place - 1), before), other = header_of(last, before);
        WEFTI_TRY(wefti_coll_compare_headers(group, before, index, &mine, &other));
    }
    return wefti_coll_other_calls(operation, index);
}

/* WEFT_OK once the slot of one member has been seen and agrees with ours. */
static weft_status slot_seen(coll_operation *operation, int32_t index) {
    const coll_map *map = coll_group_of(operation)->map;
    const map_slot *own = map_slot_of(map, coll_index(coll_group_of(operation)), operation->place);
    const map_slot *slot = map_slot_of(map, index, operation->place);
    if (atomic_load_explicit(&slot->stamp, memory_order_acquire) != operation->place + 1) {
        wefti_coll_look_at_peer(operation, index);
        return WEFT_E_AGAIN;
    }
    if (slot->count != own->count || memcmp(&slot->kind, &own->kind, 8) != 0 || slot->before != own->before ||
        (operation->extra && slot->extra != operation->extra))
        return slot_differs(operation, index, slot);
    return WEFT_OK;
}

weft_status wefti_coll_slots_seen(coll_operation *operation) {
    coll_group *group = coll_group_of(operation);
    const coll_map *map = group->map;
    int32_t size = group->base.size, me = group->base.index;
    for (; operation->seen < size; operation->seen++) {
        int32_t index = operation->seen;
        if (index == me) continue;
        if (!map->peers[index].base) WEFTI_TRY(meet_all(operation, index));
        WEFTI_TRY(slot_seen(operation, index));
    }
    return WEFT_OK;
}

/* A member that nobody has met yet would leave the others without its region. */
static bool has_met_all(const coll_group *group) {
    for (int32_t i = 0; i < group->base.size; i++)
        if (!group->map->peers[i].base) return false;
    return true;
}

weft_status wefti_coll_root_seen(coll_operation *operation) {
    int32_t root = operation->call.root;
    coll_group *group = coll_group_of(operation);
    bool        leads = root == coll_index(group);
    /* Its first time as a root it waits, too: of two that always take themselves for the root neither would look at the other. */
    if (wefti_coll_is_strict(operation) || !has_met_all(group) || (leads && !group->map->led)) {
        WEFTI_TRY(wefti_coll_slots_seen(operation));
        if (leads) group->map->led = true;
        return WEFT_OK;
    }
    return leads ? WEFT_OK : slot_seen(operation, root);
}

/* --- one-shot --- */

/* Bytes that member `index` puts next to its slot. */
static size_t put_bytes(const coll_operation *operation, int32_t index) {
    return wefti_coll_sent_count(coll_group_of(operation), &operation->call, index) * operation->element_bytes;
}

void wefti_coll_oneshot_begin(coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    map_slot *slot = wefti_coll_slot_fill(operation);
    size_t bytes = put_bytes(operation, group->base.index);
    if (bytes > 0 && bytes <= SLOT_INLINE_BYTES)
        memcpy(slot->data, operation->call.send, bytes);
    else if (bytes > 0)
        memcpy(map_payload_of(group->map, group->base.index, operation->place), operation->call.send, bytes);
    map_slot_publish(slot, operation->place);
}

/* What member `index` put, of `bytes`. */
static const uint8_t *put_by(const coll_operation *operation, int32_t index, size_t bytes) {
    const coll_group *group = coll_group_of(operation);
    if (bytes <= SLOT_INLINE_BYTES)
        return map_slot_of(group->map, index, operation->place)->data;
    return map_payload_of(group->map, index, operation->place);
}

/* Asks for what the next member puts together with its stamp, which is stored behind them: they come in the time of one. */
static void ask_ahead(const coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    int32_t index = operation->call.kind == WEFTI_BROADCAST ? operation->call.root : operation->seen;
    if (index == group->base.index || index >= group->base.size || !group->map->peers[index].base) return;
    size_t bytes = put_bytes(operation, index);
    if (bytes <= SLOT_INLINE_BYTES || bytes > AHEAD_BYTES) return; /* of more the cores fetch the rest by themselves meanwhile */
    const uint8_t *from = map_payload_of(group->map, index, operation->place);
    for (size_t at = 0; at < bytes; at += WEFTI_CACHE_LINE) __builtin_prefetch(from + at);
}

/* What each of the members put for this one, one behind the other. */
static void oneshot_collect(coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    const wefti_collective_call *call = &operation->call;
    size_t mine = call->kind == WEFTI_ALLTOALL ? (size_t)group->base.index * call->count : 0;
    for (int32_t i = 0; i < group->base.size; i++) {
        coll_range part = wefti_coll_part_of(operation, i);
        wefti_coll_copy(operation, coll_at(operation, call->receive, part.first),
                        coll_at(operation, put_by(operation, i, put_bytes(operation, i)), mine), part.count);
    }
}

weft_status wefti_coll_oneshot_advance(coll_operation *operation) {
    coll_group *group = coll_group_of(operation);
    const wefti_collective_call *call = &operation->call;
    size_t count = call->count, first = 0;
    int32_t size = group->base.size, me = group->base.index;
    ask_ahead(operation);
    WEFTI_TRY(call->kind == WEFTI_BROADCAST ? wefti_coll_root_seen(operation) : wefti_coll_slots_seen(operation));
    if (count == 0) return WEFT_OK;
    switch (call->kind) {
    case WEFTI_REDUCE_SCATTER:
    case WEFTI_REDUCE_SCATTER_V: {
        coll_range part = wefti_coll_part_of(operation, me);
        first = part.first;
        count = part.count;
        break;
    }
    case WEFTI_REDUCE_TO:
        if (me != call->root) return WEFT_OK;
        break;
    case WEFTI_ALLREDUCE: break;
    case WEFTI_BROADCAST:
    case WEFTI_SCATTER:
        if (call->kind == WEFTI_SCATTER) first = (size_t)me * count;
        if (me == call->root)
            wefti_coll_copy(operation, call->receive, coll_at(operation, call->send, first), count);
        else
            wefti_coll_copy(operation, call->receive,
                            coll_at(operation, put_by(operation, call->root, put_bytes(operation, call->root)), first), count);
        return WEFT_OK;
    case WEFTI_GATHER:
        if (me == call->root) oneshot_collect(operation);
        return WEFT_OK;
    default: oneshot_collect(operation); return WEFT_OK;
    }
    size_t bytes = put_bytes(operation, me);
    for (int32_t i = 0; i < size; i++) group->sources[i] = coll_at(operation, put_by(operation, i, bytes), first);
    return wefti_coll_reduce(operation, call->receive, size, count, true);
}

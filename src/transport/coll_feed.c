/* Large broadcasts of what nobody maps: through a ring of the root's.
 *
 * Two-shot would have the members share the staged data out among them, which pays where each copies into buffers that all map: every byte is
 * stored three times where the results are not, and all wait for all three times. Here the root puts its data into its feed, a ring in its
 * region, piece by piece, and each member takes it from there into its own result: n copies in all, of which those of the others go on beside the root's.
 * The root is through once it has put everything in, so the next operation's data follows while the others take this one's. It waits where
 * the ring is full, and, every so many operations, for all members (coll_map.c). The others wait for it alone. Where ranks share
 * cores that is what counts: a rank that runs has a ring full to do before another has to.
 *
 * A pull (coll_pull.c) costs but one copy, by the kernel, and all wait for all. Where ranks share cores it is no match: 4 ranks on two cores take in a row, us, fed and
 * pulled, 16 KiB 2.5 and 12.4, 64 KiB 7.4 and 19.5, 256 KiB 23 and 51, 1 MiB 113 to 134 and 194 to 227. Nor can a root time one there: it may come to run only when the others
 * are through, and takes that for 0.1 us. Where each rank has a core, two-shot and pulls are the quicker, and nothing is fed: the root's core has nothing to do but to copy, too.
 *
 * Positions count bytes from the group's beginning, the same at all members; each operation begins at a whole line, which the root's slot
 * names. What the root has written and what each member has taken are counters that one member writes, so operations in flight put in and take out in the order
 * of their start. Memory: FEED_BYTES a member, touched by roots only. */
#include <string.h>

#include "transport/coll_map.h"

/* What is put in before it is told: the others begin with it while the root goes on. */
#define PIECE_BYTES ((size_t)32 << 10)
#define BUDGET_BYTES ((size_t)1 << 20)
/* Results of this size leave past the caches, which would not hold them anyway. */
#define STREAM_BYTES ((size_t)16 << 20)

static map_slot *root_slot(const coll_operation *operation) {
    return map_slot_of(coll_group_of(operation)->map, operation->call.root, operation->place);
}

void wefti_coll_feed_offer(coll_operation *operation, map_slot *slot) {
    coll_group *group = coll_group_of(operation);
    const wefti_collective_call *call = &operation->call;
    slot->fed = call->kind == WEFTI_BROADCAST && call->root == group->base.index && slot->send_region == 0 && group->crowded;
    if (!slot->fed) return;
    slot->feed_first = group->map->feed_end;
    group->map->feed_end += wefti_align_up(coll_bytes(operation), WEFTI_CACHE_LINE);
}

bool wefti_coll_feed_chosen(const coll_operation *operation) { return root_slot(operation)->fed; }

static size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* Of the operation's rest, what goes in one piece from `position` on, where the ring has `there`. */
static size_t piece_at(const coll_operation *operation, uint64_t position, uint64_t there) {
    size_t rest = coll_bytes(operation) - operation->share->cursor, straight = FEED_BYTES - (size_t)(position % FEED_BYTES);
    return least(least(rest, PIECE_BYTES), least(straight, there < FEED_BYTES ? (size_t)there : FEED_BYTES));
}

/* After `bytes` of the operation; behind its last one the next line begins. */
static void move_on(coll_operation *operation, map_line *line, uint64_t position, size_t bytes) {
    coll_share *share = operation->share;
    share->cursor += bytes;
    position += bytes;
    if (share->cursor == coll_bytes(operation)) position = wefti_align_up(position, WEFTI_CACHE_LINE);
    atomic_store_explicit(&line->position, position, memory_order_release);
    coll_group_of(operation)->moves++;
}

/* Whether the ring is free from `position` on; looks at the others where that is not known. */
static bool has_room(coll_operation *operation, uint64_t position) {
    coll_group *group = coll_group_of(operation);
    coll_map   *map = group->map;
    int32_t     me = group->base.index, last = -1;
    if (position < map->feed_until) return true;
    uint64_t taken = UINT64_MAX;
    for (int32_t i = 0; i < group->base.size; i++) {
        if (i == me) continue;
        uint64_t theirs = atomic_load_explicit(&map_feed_of(map, i)->taken[me].position, memory_order_acquire);
        if (last >= 0 && theirs >= taken) continue;
        taken = theirs;
        last = i;
    }
    map->feed_until = taken + FEED_BYTES;
    if (position < map->feed_until) return true;
    wefti_coll_look_at_peer(operation, last);
    return false;
}

static weft_status put_in(coll_operation *operation) {
    coll_group *group = coll_group_of(operation);
    coll_share *share = operation->share;
    map_feed   *feed = map_feed_of(group->map, group->base.index);
    size_t      bytes = coll_bytes(operation), budget = BUDGET_BYTES;
    while (share->cursor < bytes) {
        uint64_t position = root_slot(operation)->feed_first + share->cursor;
        if (atomic_load_explicit(&feed->written.position, memory_order_relaxed) != position || budget == 0) return WEFT_E_AGAIN;
        if (!has_room(operation, position)) {
            WEFTI_TRY(wefti_coll_slots_seen(operation)); /* another that takes itself for the root would take nothing */
            return WEFT_E_AGAIN;
        }
        size_t piece = piece_at(operation, position, group->map->feed_until - position);
        wefti_coll_copy_to_stage(group, map_ring_of(group->map, group->base.index) + position % FEED_BYTES,
                                 (const uint8_t *)operation->call.send + share->cursor, piece);
        wefti_stream_fence();
        move_on(operation, &feed->written, position, piece);
        budget -= least(piece, budget);
    }
    return WEFT_OK;
}

/* The root's own result, last: nobody waits for it. */
static void copy_own(coll_operation *operation) {
    const wefti_collective_call *call = &operation->call;
    if (call->receive != call->send && call->count > 0) memcpy(call->receive, call->send, coll_bytes(operation));
}

static weft_status take_out(coll_operation *operation) {
    coll_group *group = coll_group_of(operation);
    coll_share *share = operation->share;
    int32_t     root = operation->call.root;
    map_line   *taken = &map_feed_of(group->map, group->base.index)->taken[root];
    size_t      bytes = coll_bytes(operation), budget = BUDGET_BYTES;
    while (share->cursor < bytes) {
        uint64_t position = root_slot(operation)->feed_first + share->cursor;
        if (atomic_load_explicit(&taken->position, memory_order_relaxed) != position || budget == 0) {
            operation->waits_for = root; /* for an earlier one of its, which goes first */
            return WEFT_E_AGAIN;
        }
        uint64_t written = atomic_load_explicit(&map_feed_of(group->map, root)->written.position, memory_order_acquire);
        if (written <= position) {
            wefti_coll_look_at_peer(operation, root);
            return WEFT_E_AGAIN;
        }
        size_t      piece = piece_at(operation, position, written - position);
        uint8_t    *to = (uint8_t *)operation->call.receive + share->cursor;
        const void *from = map_ring_of(group->map, root) + position % FEED_BYTES;
        if (bytes >= STREAM_BYTES)
            wefti_stream_copy(to, from, piece);
        else
            memcpy(to, from, piece);
        move_on(operation, taken, position, piece);
        budget -= least(piece, budget);
    }
    if (bytes >= STREAM_BYTES) wefti_stream_fence();
    return WEFT_OK;
}

weft_status wefti_coll_feed_advance(coll_operation *operation) {
    if (operation->call.root != coll_index(coll_group_of(operation))) return take_out(operation);
    WEFTI_TRY(put_in(operation));
    copy_own(operation);
    return WEFT_OK;
}

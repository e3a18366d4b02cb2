/* hierarchical, of the kinds with a root: broadcast and reduce.
 *
 * The data is cut into as many shards as the smallest node has members, and each shard has an owner in every node. Places are counted
 * from the root's, so that the root owns shard 0.
 *
 * broadcast: the root deals the shards out to the owners of its node; each goes across the nodes, from owner to owner; and each owner gives
 * its shard to all of its node. So the data enters each node once, by all of its owners together.
 * reduce: the same backwards. In each node everyone gives each owner its shard to add up, the sums go across to the root's node, and
 * the owners there hand them to the root.
 *
 * Across, a shard goes from node to node in a chain where there are segments enough to fill it, else along a binomial tree. Sums of
 * members that are not the root are kept in scratch. */
#include "transport/coll.h"

/* --- who is where, as seen from the root --- */

static const coll_nodes *nodes_of(const coll_operation *operation) { return &coll_group_of(operation)->nodes; }
static int32_t here(const coll_nodes *nodes) { return coll_node_size(nodes, nodes->mine); }

/* Node and place of the root. */
static void find_root(const coll_operation *operation, int32_t *node_out, int32_t *place_out) {
    const coll_nodes *nodes = nodes_of(operation);
    for (*node_out = 0; *node_out < nodes->count; ++*node_out)
        for (*place_out = 0; *place_out < coll_node_size(nodes, *node_out); ++*place_out)
            if (coll_node_member(nodes, *node_out, *place_out) == operation->call.root) return;
}

/* What all rounds are worked out from. */
typedef struct stand {
    const coll_nodes *nodes;
    int32_t root_node, root_place;
    int32_t size;     /* members of this node */
    int32_t shard;    /* counted from the root's place: this member's, an owner's where it is below `least` */
    int32_t distance; /* of this node from the root's */
    bool chain;
} stand;

static size_t most(const coll_operation *operation) { return COLL_SEGMENT_BYTES / operation->element_bytes; }
static size_t segments(const coll_operation *operation) { return coll_segments(operation->call.count, most(operation)); }

static stand stand_of(const coll_operation *operation) {
    stand s = {.nodes = nodes_of(operation), .size = here(nodes_of(operation))};
    find_root(operation, &s.root_node, &s.root_place);
    s.shard = coll_wrap(s.size, s.nodes->place - s.root_place);
    s.distance = coll_wrap(s.nodes->count, s.nodes->mine - s.root_node);
    s.chain = segments(operation) >= (size_t)s.nodes->count;
    return s;
}

static bool owns(const stand *s) { return s->shard < s->nodes->least; }
static bool is_root(const stand *s) { return s->distance == 0 && s->shard == 0; }
/* The member of this node with shard `shard`, and the one at `distance` with this member's shard. */
static int32_t mate(const stand *s, int32_t shard) { return coll_node_member(s->nodes, s->nodes->mine, coll_wrap(s->size, s->root_place + shard)); }
static int32_t partner(const stand *s, int32_t distance) {
    int32_t node = coll_wrap(s->nodes->count, s->root_node + distance);
    return coll_node_member(s->nodes, node, coll_wrap(coll_node_size(s->nodes, node), s->root_place + s->shard));
}

static coll_range shard_of(const coll_operation *operation, const coll_lane *lane, int32_t shard) {
    coll_range segment = wefti_coll_segment(lane, operation->call.count, most(operation));
    coll_range part = wefti_coll_part(segment.count, operation->element_bytes, nodes_of(operation)->least, shard);
    return (coll_range){segment.first + part.first, part.count};
}

static int32_t across_rounds(const stand *s) { return s->chain ? s->nodes->count - 1 : wefti_coll_log2_up(s->nodes->count); }
static int32_t rounds(const coll_operation *operation) {
    stand s = stand_of(operation);
    return 2 * (s.size - 1) + across_rounds(&s);
}

/* --- across: away from the root; a reduction has the rounds in the other order, and the other direction --- */

/* The distance that this node gives to in a round, and the one that it takes from; -1: none. */
static void hop(const stand *s, int32_t round, int32_t *to_out, int32_t *from_out) {
    int32_t d = s->distance;
    if (s->chain) {
        *to_out = d == round ? d + 1 : -1;
        *from_out = d == round + 1 ? d - 1 : -1;
        return;
    }
    int32_t bit = 1 << round;
    *to_out = d < bit && d + bit < s->nodes->count ? d + bit : -1;
    *from_out = d >= bit && d < 2 * bit ? d - bit : -1;
}

/* --- broadcast --- */

static void broadcast_prepare(coll_operation *operation, coll_lane *lane) {
    stand s = stand_of(operation);
    if (!is_root(&s)) return;
    coll_range segment = wefti_coll_segment(lane, operation->call.count, most(operation));
    wefti_coll_copy(operation, coll_at(operation, operation->call.receive, segment.first),
                    coll_at(operation, operation->call.send, segment.first), segment.count);
}

static void give(coll_operation *operation, coll_lane *lane, int32_t to, int32_t shard) {
    coll_range range = shard_of(operation, lane, shard);
    wefti_coll_program_send(operation, lane, to, coll_at(operation, operation->call.receive, range.first), range.count);
}
static void take(coll_operation *operation, coll_lane *lane, int32_t from, int32_t shard) {
    coll_range range = shard_of(operation, lane, shard);
    wefti_coll_program_recv(operation, lane, from, coll_at(operation, operation->call.receive, range.first), range.count);
}

static void broadcast_queue(coll_operation *operation, coll_lane *lane, int32_t round) {
    stand s = stand_of(operation);
    int32_t inside = s.size - 1, across = across_rounds(&s), to, from;
    if (round < inside) { /* the root deals out */
        if (s.distance != 0) return;
        if (is_root(&s) && round + 1 < s.nodes->least) give(operation, lane, mate(&s, round + 1), round + 1);
        if (s.shard == round + 1 && owns(&s)) take(operation, lane, mate(&s, 0), s.shard);
        return;
    }
    if (round < inside + across) {
        hop(&s, round - inside, &to, &from);
        if (owns(&s) && from >= 0) take(operation, lane, partner(&s, from), s.shard);
        if (owns(&s) && to >= 0) give(operation, lane, partner(&s, to), s.shard);
        return;
    }
    int32_t turn = round - inside - across + 1;
    to = coll_wrap(s.size, s.shard + turn), from = coll_wrap(s.size, s.shard - turn);
    if (!is_root(&s) && from < s.nodes->least) take(operation, lane, mate(&s, from), from);
    if (owns(&s) && !(s.distance == 0 && to == 0)) give(operation, lane, mate(&s, to), s.shard);
}

/* --- reduce --- */

static uint8_t *incoming(const coll_lane *lane) { return lane->scratch + COLL_SEGMENT_BYTES; }

/* What this member has of its shard before a round: its own data until something was added. */
static const void *so_far(const coll_operation *operation, const coll_lane *lane, bool added, coll_range own) {
    return added ? lane->scratch : (const void *)coll_at(operation, operation->call.send, own.first);
}

/* Whether the node's owners have added anything before that round across after which `hops_left` are left. */
static bool added_before(const stand *s, int32_t hops_left) {
    int32_t to, from;
    if (s->size > 1) return true;
    for (int32_t round = across_rounds(s) - 1; round > hops_left; round--) {
        hop(s, round, &to, &from);
        if (to >= 0) return true;
    }
    return false;
}

static void reduce_queue(coll_operation *operation, coll_lane *lane, int32_t round) {
    stand s = stand_of(operation);
    int32_t inside = s.size - 1, across = across_rounds(&s), to, from;
    coll_range own = shard_of(operation, lane, owns(&s) ? s.shard : 0);
    if (round < inside) {
        to = coll_wrap(s.size, s.shard + round + 1), from = coll_wrap(s.size, s.shard - round - 1);
        if (owns(&s)) wefti_coll_program_recv(operation, lane, mate(&s, from), incoming(lane), own.count);
        if (to >= s.nodes->least) return;
        coll_range theirs = shard_of(operation, lane, to);
        wefti_coll_program_send(operation, lane, mate(&s, to), coll_at(operation, operation->call.send, theirs.first), theirs.count);
        return;
    }
    if (round < inside + across) {
        int32_t left = across - 1 - (round - inside);
        hop(&s, left, &from, &to); /* the other way */
        if (!owns(&s)) return;
        if (from >= 0) wefti_coll_program_recv(operation, lane, partner(&s, from), incoming(lane), own.count);
        if (to >= 0)
            wefti_coll_program_send(operation, lane, partner(&s, to), so_far(operation, lane, added_before(&s, left), own), own.count);
        return;
    }
    int32_t shard = round - inside - across + 1;
    if (s.distance != 0 || shard >= s.nodes->least) return;
    coll_range range = shard_of(operation, lane, shard);
    if (is_root(&s))
        wefti_coll_program_recv(operation, lane, mate(&s, shard), coll_at(operation, operation->call.receive, range.first), range.count);
    else if (s.shard == shard) wefti_coll_program_send(operation, lane, mate(&s, 0), lane->scratch, range.count);
}

static weft_status reduce_work(coll_operation *operation, coll_lane *lane, int32_t round) {
    stand s = stand_of(operation);
    int32_t inside = s.size - 1, across = across_rounds(&s), to, from;
    if (!owns(&s) || round >= inside + across) return WEFT_OK;
    coll_range own = shard_of(operation, lane, s.shard);
    if (own.count == 0) return WEFT_OK;
    if (round < inside)
        return wefti_coll_reduce_two(operation, lane->scratch, so_far(operation, lane, round > 0, own), incoming(lane), own.count, false);
    int32_t left = across - 1 - (round - inside);
    hop(&s, left, &from, &to);
    if (from < 0) return WEFT_OK;
    bool last = s.distance == 0 && left == 0;
    uint8_t *sum = last && is_root(&s) ? coll_at(operation, operation->call.receive, own.first) : lane->scratch;
    return wefti_coll_reduce_two(operation, sum, so_far(operation, lane, added_before(&s, left), own), incoming(lane), own.count, last);
}

void wefti_coll_nodes_rooted_begin(coll_operation *operation) {
    static const coll_program broadcast = {segments, rounds, broadcast_prepare, broadcast_queue, NULL},
                              reduce = {segments, rounds, NULL, reduce_queue, reduce_work};
    wefti_coll_program_begin(operation, operation->call.kind == WEFTI_BROADCAST ? &broadcast : &reduce);
}

/* hierarchical: an allreduce inside each node, across the nodes, and inside again.
 *
 * As many shards as the smallest node has members: in each node, member i owns shard i. First everyone gives its shard to
 * each owner of its node, who reduces it; then the owners of one shard, one in each node, run a ring of their own; then
 * they hand the result to everyone in their node. So of B bytes only 2(m-1)/m · B leave a node of m, over all of its
 * members together, instead of as much from each: the slow links carry 1/s of what a flat ring would send over them.
 *
 * Sums are kept in `receive`; scratch takes what comes. A shard is reduced by one rank in each node and its parts by one
 * across: all ranks get equal bits. */
#include <string.h>

#include "transport/coll.h"

/* --- who runs where --- */

/* What share of messages goes to another node, by the distance that they go. */
static void find_shares(coll_nodes *map, const int32_t *nodes, int32_t size) {
    for (int32_t k = 0; k < 31 && (int64_t)1 << k < size; k++) {
        int32_t shifted = 0, flipped = 0, pairs = 0, distance = 1 << k;
        for (int32_t i = 0; i < size; i++) {
            shifted += nodes[i] != nodes[(i + distance) % size];
            if ((i ^ distance) >= size) continue;
            flipped += nodes[i] != nodes[i ^ distance];
            pairs++;
        }
        map->far_shift[k] = (float)shifted / (float)size;
        map->far_flip[k] = (float)flipped / (float)(pairs ? pairs : 1);
    }
}

weft_status wefti_coll_nodes_open(coll_group *group, const int32_t *nodes) {
    int32_t size = group->base.size, me = group->base.index;
    coll_nodes *map = &group->nodes;
    *map = (coll_nodes){.count = 1, .least = size, .most = size, .place = me};
    if (!nodes) return WEFT_OK;
    find_shares(map, nodes, size);
    WEFTI_TRY(wefti_alloc((size_t)size * sizeof *map->order, "members by node", &map->order));
    WEFTI_TRY(wefti_alloc(((size_t)size + 1) * sizeof *map->first, "members by node", &map->first));
    int32_t placed = 0;
    map->count = map->most = 0;
    for (int32_t i = 0; i < size; i++) { /* a node begins with the first of its members that has no place yet */
        bool seen = false;
        for (int32_t k = 0; k < i; k++) seen |= nodes[k] == nodes[i];
        if (seen) continue;
        map->first[map->count] = placed;
        for (int32_t k = i; k < size; k++) {
            if (nodes[k] != nodes[i]) continue;
            if (k == me) {
                map->mine = map->count;
                map->place = placed - map->first[map->count];
            }
            map->order[placed++] = k;
        }
        int32_t members = placed - map->first[map->count];
        if (members < map->least) map->least = members;
        if (members > map->most) map->most = members;
        map->first[++map->count] = placed;
    }
    return WEFT_OK;
}

void wefti_coll_nodes_close(coll_group *group) {
    wefti_free(group->nodes.order, (size_t)group->base.size * sizeof *group->nodes.order);
    wefti_free(group->nodes.first, ((size_t)group->base.size + 1) * sizeof *group->nodes.first);
}

static int32_t here(const coll_nodes *nodes) { return coll_node_size(nodes, nodes->mine); }
static bool owns(const coll_nodes *nodes) { return nodes->place < nodes->least; }

/* --- the rounds --- */

static size_t most(const coll_operation *operation) { return COLL_SEGMENT_BYTES / operation->element_bytes; }
static size_t segments(const coll_operation *operation) { return coll_segments(operation->call.count, most(operation)); }
static int32_t rounds(const coll_operation *operation) {
    const coll_nodes *nodes = &coll_group_of(operation)->nodes;
    return 2 * (here(nodes) - 1) + 2 * (nodes->count - 1);
}

/* What a round is: number `turn` of its phase. */
typedef enum phase { PHASE_IN, PHASE_REDUCE, PHASE_GATHER, PHASE_OUT } phase;
static phase phase_of(const coll_nodes *nodes, int32_t round, int32_t *turn_out) {
    int32_t inside = here(nodes) - 1, across = nodes->count - 1;
    const int32_t ends[] = {inside, inside + across, inside + 2 * across};
    int32_t begin = 0;
    for (int i = 0; i < 3; begin = ends[i], i++)
        if (round < ends[i]) {
            *turn_out = round - begin;
            return (phase)i;
        }
    *turn_out = round - begin;
    return PHASE_OUT;
}

static coll_range shard_of(const coll_operation *operation, const coll_lane *lane, int32_t place) {
    coll_range segment = wefti_coll_segment(lane, operation->call.count, most(operation));
    coll_range shard = wefti_coll_part(segment.count, operation->element_bytes, coll_group_of(operation)->nodes.least, place);
    return (coll_range){segment.first + shard.first, shard.count};
}
/* The part of this member's shard that the owners' ring completes at node `node`. */
static coll_range part_of(const coll_operation *operation, const coll_lane *lane, int32_t node) {
    const coll_nodes *nodes = &coll_group_of(operation)->nodes;
    coll_range shard = shard_of(operation, lane, nodes->place);
    coll_range part = wefti_coll_part(shard.count, operation->element_bytes, nodes->count, coll_wrap(nodes->count, node));
    return (coll_range){shard.first + part.first, part.count};
}

/* A node of one has nothing to reduce: what it has goes straight to the owners' ring. */
static void prepare(coll_operation *operation, coll_lane *lane) {
    coll_range segment = wefti_coll_segment(lane, operation->call.count, most(operation));
    if (here(&coll_group_of(operation)->nodes) > 1) return;
    wefti_coll_copy(operation, coll_at(operation, operation->call.receive, segment.first),
                    coll_at(operation, operation->call.send, segment.first), segment.count);
}

static void queue_inside(coll_operation *operation, coll_lane *lane, int32_t turn, bool out) {
    const coll_nodes *nodes = &coll_group_of(operation)->nodes;
    int32_t size = here(nodes), to = coll_wrap(size, nodes->place + turn + 1), from = coll_wrap(size, nodes->place - turn - 1);
    uint8_t *receive = operation->call.receive;
    coll_range own = shard_of(operation, lane, owns(nodes) ? nodes->place : 0);
    if (!out && owns(nodes)) wefti_coll_program_recv(operation, lane, coll_node_member(nodes, nodes->mine, from), lane->scratch, own.count);
    if (out && from < nodes->least) {
        coll_range theirs = shard_of(operation, lane, from);
        wefti_coll_program_recv(operation, lane, coll_node_member(nodes, nodes->mine, from), coll_at(operation, receive, theirs.first),
                                theirs.count);
    }
    if (!out && to < nodes->least) {
        coll_range theirs = shard_of(operation, lane, to);
        wefti_coll_program_send(operation, lane, coll_node_member(nodes, nodes->mine, to),
                                coll_at(operation, operation->call.send, theirs.first), theirs.count);
    }
    if (out && owns(nodes))
        wefti_coll_program_send(operation, lane, coll_node_member(nodes, nodes->mine, to), coll_at(operation, receive, own.first), own.count);
}

static void queue(coll_operation *operation, coll_lane *lane, int32_t round) {
    const coll_nodes *nodes = &coll_group_of(operation)->nodes;
    int32_t turn, node = nodes->mine;
    phase now = phase_of(nodes, round, &turn);
    if (now == PHASE_IN || now == PHASE_OUT) {
        queue_inside(operation, lane, turn, now == PHASE_OUT);
        return;
    }
    if (!owns(nodes)) return;
    uint8_t *receive = operation->call.receive;
    int32_t ahead = now == PHASE_REDUCE ? 1 : 0;
    coll_range out = part_of(operation, lane, node - turn - ahead), in = part_of(operation, lane, node - turn - ahead - 1);
    int32_t to = coll_node_member(nodes, coll_wrap(nodes->count, node + 1), nodes->place);
    int32_t from = coll_node_member(nodes, coll_wrap(nodes->count, node - 1), nodes->place);
    wefti_coll_program_recv(operation, lane, from, now == PHASE_REDUCE ? lane->scratch : coll_at(operation, receive, in.first),
                            in.count);
    wefti_coll_program_send(operation, lane, to, coll_at(operation, receive, out.first), out.count);
}

static weft_status work(coll_operation *operation, coll_lane *lane, int32_t round) {
    const coll_nodes *nodes = &coll_group_of(operation)->nodes;
    int32_t turn;
    phase now = phase_of(nodes, round, &turn);
    if (!owns(nodes) || now > PHASE_REDUCE) return WEFT_OK;
    coll_range range = now == PHASE_IN ? shard_of(operation, lane, nodes->place)
                                       : part_of(operation, lane, nodes->mine - turn - 2);
    uint8_t *sum = coll_at(operation, operation->call.receive, range.first);
    const void *mine = now == PHASE_IN && turn == 0 ? coll_at(operation, operation->call.send, range.first) : sum;
    return wefti_coll_reduce_two(operation, sum, mine, lane->scratch, range.count,
                                 now == PHASE_REDUCE && turn == nodes->count - 2);
}

void wefti_coll_nodes_begin(coll_operation *operation) {
    static const coll_program program = {segments, rounds, prepare, queue, work};
    wefti_coll_program_begin(operation, &program);
}

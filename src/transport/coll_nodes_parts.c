/* hierarchical, of the kinds with a part for every member: reduce-scatter and allgather.
 *
 * Parts are dealt out by class: class q holds the parts of the members with place q, one in each node. As many classes as the
 * smallest node has members are done at once, a pass: in each node, member i owns the class `least`·pass + i.
 *
 * reduce-scatter: the owners of a class run a ring across the nodes. Before a part moves on, everyone of the node gives what it has of it
 * to the owner, who adds that to what came: so each part crosses each link between nodes once, and not once for each member. At its node
 * a part whose member is not the owner is handed over.
 *
 * allgather, the other way round: a part goes from its member to the owner, around the ring of owners, and at each stop to all of the node.
 *
 * A part is reduced inside each node by one member and across by one, in an order that follows from the nodes alone: the same bits in
 * every run. Scratch of reduce-scatter: the node's sum, what comes from a member, and what comes from the node before. */
#include "transport/coll.h"

/* Where one round stands: pass, turn around the ring, and step inside the turn; the ring's exchange is one of the steps. */
typedef struct stand {
    int32_t pass, turn, step, node; /* node: whose part is this turn's */
} stand;

static int32_t passes(const coll_nodes *nodes) { return (nodes->most + nodes->least - 1) / nodes->least; }
static bool owns(const coll_nodes *nodes) { return nodes->place < nodes->least; }

/* The lane's segment of the part of place `place` in node `node`; empty where there is no such member. */
static coll_range slice(const coll_operation *operation, const coll_lane *lane, size_t most, int32_t node, int32_t place) {
    const coll_nodes *nodes = &coll_group_of(operation)->nodes;
    if (place >= coll_node_size(nodes, node)) return (coll_range){0, 0};
    coll_range part = wefti_coll_part_of(operation, coll_node_member(nodes, node, place));
    coll_range segment = wefti_coll_segment(lane, part.count, most);
    return (coll_range){part.first + segment.first, segment.count};
}

/* --- reduce-scatter --- */

static size_t sum_most(const coll_operation *operation) { return COLL_SEGMENT_BYTES / 2 / operation->element_bytes; }
static size_t sum_segments(const coll_operation *operation) {
    return coll_segments(wefti_coll_longest_part(operation), sum_most(operation));
}
static uint8_t *sum_of(const coll_lane *lane) { return lane->scratch; }
static uint8_t *from_member(const coll_lane *lane) { return lane->scratch + COLL_SEGMENT_BYTES / 2; }
static uint8_t *from_node(const coll_lane *lane) { return lane->scratch + COLL_SEGMENT_BYTES; }

static int32_t sum_rounds(const coll_operation *operation) {
    const coll_nodes *nodes = &coll_group_of(operation)->nodes;
    return passes(nodes) * nodes->count * coll_node_size(nodes, nodes->mine);
}

static stand sum_stand(const coll_nodes *nodes, int32_t round) {
    int32_t here = coll_node_size(nodes, nodes->mine), turns = round / here;
    int32_t turn = turns % nodes->count;
    return (stand){turns / nodes->count, turn, round % here, coll_wrap(nodes->count, nodes->mine - turn - 1)};
}

/* What this member owns of a turn's part. */
static coll_range own_slice(const coll_operation *operation, const coll_lane *lane, const stand *at, int32_t node) {
    const coll_nodes *nodes = &coll_group_of(operation)->nodes;
    return slice(operation, lane, sum_most(operation), node, at->pass * nodes->least + nodes->place);
}

static void sum_inside(coll_operation *operation, coll_lane *lane, const stand *at) {
    const coll_nodes *nodes = &coll_group_of(operation)->nodes;
    int32_t here = coll_node_size(nodes, nodes->mine);
    int32_t to = coll_wrap(here, nodes->place + at->step + 1), from = coll_wrap(here, nodes->place - at->step - 1);
    if (owns(nodes))
        wefti_coll_program_recv(operation, lane, coll_node_member(nodes, nodes->mine, from), from_member(lane),
                                own_slice(operation, lane, at, at->node).count);
    if (to >= nodes->least) return;
    coll_range theirs = slice(operation, lane, sum_most(operation), at->node, at->pass * nodes->least + to);
    wefti_coll_program_send(operation, lane, coll_node_member(nodes, nodes->mine, to),
                            coll_at(operation, operation->call.send, theirs.first), theirs.count);
}

/* To the next node, where the turn's part goes on; or, at its own node, to the member whose it is. */
static void sum_onward(coll_operation *operation, coll_lane *lane, const stand *at) {
    const coll_nodes *nodes = &coll_group_of(operation)->nodes;
    coll_range own = own_slice(operation, lane, at, at->node);
    if (at->turn < nodes->count - 1) {
        if (!owns(nodes)) return;
        int32_t to = coll_wrap(nodes->count, nodes->mine + 1), from = coll_wrap(nodes->count, nodes->mine - 1);
        bool alone = coll_node_size(nodes, nodes->mine) == 1 && at->turn == 0; /* nothing was added to what it has */
        wefti_coll_program_recv(operation, lane, coll_node_member(nodes, from, nodes->place), from_node(lane),
                                own_slice(operation, lane, at, coll_wrap(nodes->count, at->node - 1)).count);
        wefti_coll_program_send(operation, lane, coll_node_member(nodes, to, nodes->place),
                                alone ? coll_at(operation, operation->call.send, own.first) : sum_of(lane), own.count);
        return;
    }
    if (at->pass == 0) return;
    if (owns(nodes) && own.count)
        wefti_coll_program_send(operation, lane, coll_node_member(nodes, nodes->mine, at->pass * nodes->least + nodes->place),
                                sum_of(lane), own.count);
    if (nodes->place / nodes->least != at->pass) return;
    coll_range mine = slice(operation, lane, sum_most(operation), nodes->mine, nodes->place);
    size_t begin = mine.first - wefti_coll_part_of(operation, coll_index(coll_group_of(operation))).first;
    wefti_coll_program_recv(operation, lane, coll_node_member(nodes, nodes->mine, nodes->place % nodes->least),
                            coll_at(operation, operation->call.receive, begin), mine.count);
}

static void sum_queue(coll_operation *operation, coll_lane *lane, int32_t round) {
    const coll_nodes *nodes = &coll_group_of(operation)->nodes;
    stand at = sum_stand(nodes, round);
    if (at.step < coll_node_size(nodes, nodes->mine) - 1) sum_inside(operation, lane, &at);
    else sum_onward(operation, lane, &at);
}

/* The node's sum and what came from the node before; at the part's own node that is the result. */
static weft_status sum_join(coll_operation *operation, const coll_lane *lane, const stand *at, int32_t turn, const void *sum, coll_range own) {
    const coll_nodes *nodes = &coll_group_of(operation)->nodes;
    bool last = turn == nodes->count - 1;
    uint8_t *to = sum_of(lane);
    if (last && at->pass == 0)
        to = coll_at(operation, operation->call.receive,
                     own.first - wefti_coll_part_of(operation, coll_index(coll_group_of(operation))).first);
    return wefti_coll_reduce_two(operation, to, from_node(lane), sum, own.count, last);
}

static weft_status sum_work(coll_operation *operation, coll_lane *lane, int32_t round) {
    const coll_nodes *nodes = &coll_group_of(operation)->nodes;
    stand at = sum_stand(nodes, round);
    int32_t here = coll_node_size(nodes, nodes->mine);
    if (!owns(nodes)) return WEFT_OK;
    if (at.step < here - 1) {
        coll_range own = own_slice(operation, lane, &at, at.node);
        const void *sum = at.step == 0 ? coll_at(operation, operation->call.send, own.first) : sum_of(lane);
        if (own.count == 0) return WEFT_OK;
        WEFTI_TRY(wefti_coll_reduce_two(operation, sum_of(lane), sum, from_member(lane), own.count, false));
        return at.step == here - 2 && at.turn > 0 ? sum_join(operation, lane, &at, at.turn, sum_of(lane), own) : WEFT_OK;
    }
    if (here > 1 || at.turn == nodes->count - 1) return WEFT_OK;
    /* Alone in its node: what came meets what this member has. */
    coll_range own = own_slice(operation, lane, &at, coll_wrap(nodes->count, at.node - 1));
    if (own.count == 0) return WEFT_OK;
    return sum_join(operation, lane, &at, at.turn + 1, coll_at(operation, operation->call.send, own.first), own);
}

/* --- allgather --- */

static size_t gather_most(const coll_operation *operation) { return COLL_SEGMENT_BYTES / operation->element_bytes; }
static size_t gather_segments(const coll_operation *operation) {
    return coll_segments(wefti_coll_longest_part(operation), gather_most(operation));
}

/* A pass begins with a round in which parts go to their owners. */
static int32_t pass_rounds(const coll_nodes *nodes) { return 1 + nodes->count * coll_node_size(nodes, nodes->mine); }
static int32_t gather_rounds(const coll_operation *operation) {
    const coll_nodes *nodes = &coll_group_of(operation)->nodes;
    return passes(nodes) * pass_rounds(nodes);
}

static void gather_prepare(coll_operation *operation, coll_lane *lane) {
    coll_range part = wefti_coll_part_of(operation, coll_index(coll_group_of(operation)));
    coll_range segment = wefti_coll_segment(lane, part.count, gather_most(operation));
    wefti_coll_copy(operation, coll_at(operation, operation->call.receive, part.first + segment.first),
                    coll_at(operation, operation->call.send, segment.first), segment.count);
}

/* The slice of a part as it lies in `receive`, to or from a member. */
static void gather_send(coll_operation *operation, coll_lane *lane, int32_t to, int32_t node, int32_t place) {
    coll_range own = slice(operation, lane, gather_most(operation), node, place);
    wefti_coll_program_send(operation, lane, to, coll_at(operation, operation->call.receive, own.first), own.count);
}
static void gather_recv(coll_operation *operation, coll_lane *lane, int32_t from, int32_t node, int32_t place) {
    coll_range own = slice(operation, lane, gather_most(operation), node, place);
    wefti_coll_program_recv(operation, lane, from, coll_at(operation, operation->call.receive, own.first), own.count);
}

static void gather_to_owner(coll_operation *operation, coll_lane *lane, int32_t pass) {
    const coll_nodes *nodes = &coll_group_of(operation)->nodes;
    int32_t theirs = pass * nodes->least + nodes->place;
    if (pass == 0) return; /* they are the owners */
    if (nodes->place / nodes->least == pass)
        gather_send(operation, lane, coll_node_member(nodes, nodes->mine, nodes->place % nodes->least), nodes->mine, nodes->place);
    if (owns(nodes) && theirs < coll_node_size(nodes, nodes->mine))
        gather_recv(operation, lane, coll_node_member(nodes, nodes->mine, theirs), nodes->mine, theirs);
}

static void gather_across(coll_operation *operation, coll_lane *lane, const stand *at) {
    const coll_nodes *nodes = &coll_group_of(operation)->nodes;
    int32_t place = at->pass * nodes->least + nodes->place;
    if (!owns(nodes) || at->turn == nodes->count - 1) return;
    gather_recv(operation, lane, coll_node_member(nodes, coll_wrap(nodes->count, nodes->mine - 1), nodes->place),
                coll_wrap(nodes->count, at->node - 1), place);
    gather_send(operation, lane, coll_node_member(nodes, coll_wrap(nodes->count, nodes->mine + 1), nodes->place), at->node, place);
}

static void gather_inside(coll_operation *operation, coll_lane *lane, const stand *at) {
    const coll_nodes *nodes = &coll_group_of(operation)->nodes;
    int32_t here = coll_node_size(nodes, nodes->mine), first = at->pass * nodes->least;
    int32_t to = coll_wrap(here, nodes->place + at->step), from = coll_wrap(here, nodes->place - at->step);
    bool home = at->node == nodes->mine; /* where a member has its own part already */
    if (from < nodes->least && !(home && first + from == nodes->place))
        gather_recv(operation, lane, coll_node_member(nodes, nodes->mine, from), at->node, first + from);
    if (owns(nodes) && !(home && first + nodes->place == to))
        gather_send(operation, lane, coll_node_member(nodes, nodes->mine, to), at->node, first + nodes->place);
}

static void gather_queue(coll_operation *operation, coll_lane *lane, int32_t round) {
    const coll_nodes *nodes = &coll_group_of(operation)->nodes;
    int32_t pass = round / pass_rounds(nodes), rest = round % pass_rounds(nodes) - 1, here = coll_node_size(nodes, nodes->mine);
    if (rest < 0) {
        gather_to_owner(operation, lane, pass);
        return;
    }
    int32_t turn = rest / here;
    stand at = {pass, turn, rest % here, coll_wrap(nodes->count, nodes->mine - turn)};
    if (at.step == 0) gather_across(operation, lane, &at);
    else gather_inside(operation, lane, &at);
}

void wefti_coll_nodes_parts_begin(coll_operation *operation) {
    static const coll_program sum = {sum_segments, sum_rounds, NULL, sum_queue, sum_work},
                              gather = {gather_segments, gather_rounds, gather_prepare, gather_queue, NULL};
    wefti_coll_program_begin(operation, coll_kind_reduces(operation->call.kind) ? &sum : &gather);
}

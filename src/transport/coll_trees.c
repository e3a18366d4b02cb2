/* Trees: the double tree of allreduces, and binomial trees and chains of the kinds that have a root.
 *
 * twotree: Sanders, Speck and Träff's two trees ("Two-tree algorithms for full bandwidth broadcast, reduction and scan",
 * Parallel Computing 35, 2009). In each, a segment is reduced on its way up and handed out on its way down; the first
 * takes the even segments, the second the odd ones, and who is inside of one tree is a leaf of the other, so that nobody
 * sends more than twice the bytes, in about 2 log2 n latencies. The ranks of a tree stand in it in order: even places are
 * leaves; the second tree is the first with everyone one place further on. A rank reduces its left child, itself, its
 * right child: one rank alone computes each segment.
 *
 * tree: up to a root (reduce, gather) or down from it (scatter) in a binomial tree of the ranks in order from the root.
 * A rank sends or receives 2^k parts at a time, which its scratch holds.
 *
 * chain: a reduction from neighbour to neighbour towards the root, segment by segment: all of the links' bandwidth. */
#include "transport/coll.h"

static size_t segment_most(const coll_operation *operation) { return COLL_SEGMENT_BYTES / operation->element_bytes; }
static size_t segments(const coll_operation *operation) {
    return coll_segments(operation->call.count, segment_most(operation));
}
static coll_range segment_of(const coll_operation *operation, const coll_lane *lane) {
    return wefti_coll_segment(lane, operation->call.count, segment_most(operation));
}
static uint8_t *second_half(const coll_lane *lane) { return lane->scratch + COLL_SEGMENT_BYTES; }

/* --- two trees --- */

typedef struct tree_links {
    int32_t parent, left, right; /* places; -1: none */
} tree_links;

/* The root of the places [low, high), where low is even: an odd one near the middle, or the only one. */
static int32_t top_of(int32_t low, int32_t high) {
    if (high - low <= 0) return -1;
    if (high - low == 1) return low;
    int32_t middle = low + ((high - low) / 2 | 1);
    return middle < high ? middle : low + 1;
}

static tree_links links_of(int32_t size, int32_t place) {
    int32_t low = 0, high = size, parent = -1;
    for (;;) {
        int32_t top = top_of(low, high);
        if (top == place) return (tree_links){parent, top_of(low, top), top_of(top + 1, high)};
        parent = top;
        if (place < top)
            high = top;
        else
            low = top + 1;
    }
}

/* The links of this member in the tree of the lane's segment, as members. */
static tree_links member_links(const coll_operation *operation, const coll_lane *lane) {
    const coll_group *group = coll_group_of(operation);
    int32_t shift = (int32_t)(lane->segment % 2);
    tree_links links = links_of(coll_size(group), coll_around(group, coll_index(group), shift));
    if (links.parent >= 0) links.parent = coll_around(group, links.parent, -shift);
    if (links.left >= 0) links.left = coll_around(group, links.left, -shift);
    if (links.right >= 0) links.right = coll_around(group, links.right, -shift);
    return links;
}

/* What goes up has left before the result comes, for it is stored in the same place. */
enum { TWOTREE_UP, TWOTREE_GIVE, TWOTREE_TAKE, TWOTREE_DOWN, TWOTREE_ROUNDS };
static int32_t twotree_rounds(const coll_operation *operation) {
    (void)operation;
    return TWOTREE_ROUNDS;
}

static void twotree_queue(coll_operation *operation, coll_lane *lane, int32_t round) {
    tree_links links = member_links(operation, lane);
    coll_range segment = segment_of(operation, lane);
    uint8_t *result = coll_at(operation, operation->call.receive, segment.first);
    bool leaf = links.left < 0 && links.right < 0;
    switch (round) {
    case TWOTREE_UP:
        if (links.left >= 0) wefti_coll_program_recv(operation, lane, links.left, lane->scratch, segment.count);
        if (links.right >= 0) wefti_coll_program_recv(operation, lane, links.right, second_half(lane), segment.count);
        break;
    case TWOTREE_GIVE:
        if (links.parent >= 0)
            wefti_coll_program_send(operation, lane, links.parent,
                                    leaf ? coll_at(operation, operation->call.send, segment.first) : result, segment.count);
        break;
    case TWOTREE_TAKE:
        if (links.parent >= 0) wefti_coll_program_recv(operation, lane, links.parent, result, segment.count);
        break;
    default:
        if (links.left >= 0) wefti_coll_program_send(operation, lane, links.left, result, segment.count);
        if (links.right >= 0) wefti_coll_program_send(operation, lane, links.right, result, segment.count);
        break;
    }
}

static weft_status twotree_work(coll_operation *operation, coll_lane *lane, int32_t round) {
    if (round != TWOTREE_UP) return WEFT_OK;
    coll_group *group = coll_group_of(operation);
    tree_links links = member_links(operation, lane);
    coll_range segment = segment_of(operation, lane);
    int32_t sources = 0;
    if (links.left < 0 && links.right < 0) return WEFT_OK;
    if (links.left >= 0) group->sources[sources++] = lane->scratch;
    group->sources[sources++] = coll_at(operation, operation->call.send, segment.first);
    if (links.right >= 0) group->sources[sources++] = second_half(lane);
    return wefti_coll_reduce(operation, coll_at(operation, operation->call.receive, segment.first), sources, segment.count,
                             links.parent < 0);
}

void wefti_coll_twotree_begin(coll_operation *operation) {
    static const coll_program program = {segments, twotree_rounds, NULL, twotree_queue, twotree_work};
    wefti_coll_program_begin(operation, &program);
}

/* --- binomial trees --- */

/* How far from the root this member is, going up; and the member at a place. */
static int32_t my_place(const coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    return coll_around(group, coll_index(group), -operation->call.root);
}
static int32_t at_place(const coll_operation *operation, int32_t place) {
    return coll_around(coll_group_of(operation), place, operation->call.root);
}
static int32_t tree_rounds(const coll_operation *operation) {
    return wefti_coll_log2_up(coll_size(coll_group_of(operation)));
}
/* In the step of distance `bit`: whether a place gives to the one `bit` before it, or takes from the one after it. */
static bool gives(int32_t place, int32_t bit) { return (place & (bit - 1)) == 0 && (place & bit); }
static bool takes(int32_t place, int32_t bit, int32_t size) {
    return (place & (bit - 1)) == 0 && !(place & bit) && place + bit < size;
}

/* What a member has reduced so far: the root in its receive buffer, the others in scratch. */
static uint8_t *reduced_at(const coll_operation *operation, const coll_lane *lane) {
    if (my_place(operation) != 0) return second_half(lane);
    return coll_at(operation, operation->call.receive, segment_of(operation, lane).first);
}

static void reduce_queue(coll_operation *operation, coll_lane *lane, int32_t round) {
    int32_t place = my_place(operation), size = coll_size(coll_group_of(operation)), bit = 1 << round;
    coll_range segment = segment_of(operation, lane);
    bool has = round > 0 && place + 1 < size; /* has taken from the one behind it, if from anybody */
    if (takes(place, bit, size))
        wefti_coll_program_recv(operation, lane, at_place(operation, place + bit), lane->scratch, segment.count);
    else if (gives(place, bit))
        wefti_coll_program_send(operation, lane, at_place(operation, place - bit),
                                has ? reduced_at(operation, lane) : coll_at(operation, operation->call.send, segment.first),
                                segment.count);
}

static weft_status reduce_work(coll_operation *operation, coll_lane *lane, int32_t round) {
    int32_t place = my_place(operation), size = coll_size(coll_group_of(operation)), bit = 1 << round;
    coll_range segment = segment_of(operation, lane);
    if (!takes(place, bit, size)) return WEFT_OK;
    uint8_t *reduced = reduced_at(operation, lane);
    const void *mine = round == 0 ? coll_at(operation, operation->call.send, segment.first) : reduced;
    return wefti_coll_reduce_two(operation, reduced, mine, lane->scratch, segment.count, place == 0 && bit * 2 >= size);
}

/* Gather and scatter: scratch holds the parts of this member and of those below it, in order of their places. */
static size_t parts_most(const coll_operation *operation) {
    size_t most = 2 * COLL_SEGMENT_BYTES / operation->element_bytes / (size_t)coll_size(coll_group_of(operation));
    return most ? most : 1;
}
static size_t parts_segments(const coll_operation *operation) {
    return coll_segments(operation->call.count, parts_most(operation));
}
static coll_range parts_segment(const coll_operation *operation, const coll_lane *lane) {
    return wefti_coll_segment(lane, operation->call.count, parts_most(operation));
}
/* Parts that the member `bit` behind `place` holds in the end. */
static size_t parts_below(int32_t place, int32_t bit, int32_t size) {
    int32_t left = size - place - bit;
    return (size_t)(left < bit ? left : bit);
}

static void gather_prepare(coll_operation *operation, coll_lane *lane) {
    coll_range segment = parts_segment(operation, lane);
    wefti_coll_copy(operation, lane->scratch, coll_at(operation, operation->call.send, segment.first), segment.count);
}

static void gather_queue(coll_operation *operation, coll_lane *lane, int32_t round) {
    int32_t place = my_place(operation), size = coll_size(coll_group_of(operation)), bit = 1 << round;
    size_t count = parts_segment(operation, lane).count;
    if (takes(place, bit, size))
        wefti_coll_program_recv(operation, lane, at_place(operation, place + bit),
                                coll_at(operation, lane->scratch, (size_t)bit * count), parts_below(place, bit, size) * count);
    else if (gives(place, bit))
        wefti_coll_program_send(operation, lane, at_place(operation, place - bit), lane->scratch,
                                parts_below(place - bit, bit, size) * count);
}

static weft_status gather_work(coll_operation *operation, coll_lane *lane, int32_t round) {
    const coll_group *group = coll_group_of(operation);
    if (my_place(operation) != 0 || round + 1 < tree_rounds(operation)) return WEFT_OK;
    coll_range segment = parts_segment(operation, lane);
    for (int32_t place = 0; place < coll_size(group); place++)
        wefti_coll_copy(operation,
                        coll_at(operation, operation->call.receive,
                                (size_t)at_place(operation, place) * operation->call.count + segment.first),
                        coll_at(operation, lane->scratch, (size_t)place * segment.count), segment.count);
    return WEFT_OK;
}

static void scatter_prepare(coll_operation *operation, coll_lane *lane) {
    if (my_place(operation) != 0) return;
    coll_range segment = parts_segment(operation, lane);
    for (int32_t place = 0; place < coll_size(coll_group_of(operation)); place++)
        wefti_coll_copy(operation, coll_at(operation, lane->scratch, (size_t)place * segment.count),
                        coll_at(operation, operation->call.send,
                                (size_t)at_place(operation, place) * operation->call.count + segment.first),
                        segment.count);
}

static void scatter_queue(coll_operation *operation, coll_lane *lane, int32_t round) {
    int32_t place = my_place(operation), size = coll_size(coll_group_of(operation));
    int32_t bit = 1 << (tree_rounds(operation) - 1 - round);
    size_t count = parts_segment(operation, lane).count;
    if (gives(place, bit)) /* upwards; here it takes */
        wefti_coll_program_recv(operation, lane, at_place(operation, place - bit), lane->scratch,
                                parts_below(place - bit, bit, size) * count);
    else if (takes(place, bit, size))
        wefti_coll_program_send(operation, lane, at_place(operation, place + bit),
                                coll_at(operation, lane->scratch, (size_t)bit * count), parts_below(place, bit, size) * count);
}

static weft_status scatter_work(coll_operation *operation, coll_lane *lane, int32_t round) {
    if (round + 1 < tree_rounds(operation)) return WEFT_OK;
    coll_range segment = parts_segment(operation, lane);
    wefti_coll_copy(operation, coll_at(operation, operation->call.receive, segment.first), lane->scratch, segment.count);
    return WEFT_OK;
}

void wefti_coll_rooted_tree_begin(coll_operation *operation) {
    static const coll_program reduce = {segments, tree_rounds, NULL, reduce_queue, reduce_work},
                              gather = {parts_segments, tree_rounds, gather_prepare, gather_queue, gather_work},
                              scatter = {parts_segments, tree_rounds, scatter_prepare, scatter_queue, scatter_work};
    wefti_collective_kind kind = operation->call.kind;
    wefti_coll_program_begin(operation, kind == WEFTI_REDUCE_TO ? &reduce : kind == WEFTI_GATHER ? &gather : &scatter);
}

/* --- chain of a reduction --- */

enum { CHAIN_TAKE, CHAIN_GIVE, CHAIN_ROUNDS };
static int32_t chain_rounds(const coll_operation *operation) {
    (void)operation;
    return CHAIN_ROUNDS;
}

static void chain_queue(coll_operation *operation, coll_lane *lane, int32_t round) {
    int32_t place = my_place(operation), end = coll_size(coll_group_of(operation)) - 1;
    coll_range segment = segment_of(operation, lane);
    if (round == CHAIN_TAKE && place < end)
        wefti_coll_program_recv(operation, lane, at_place(operation, place + 1), lane->scratch, segment.count);
    else if (round == CHAIN_GIVE && place > 0)
        wefti_coll_program_send(operation, lane, at_place(operation, place - 1),
                                place < end ? second_half(lane) : coll_at(operation, operation->call.send, segment.first),
                                segment.count);
}

static weft_status chain_work(coll_operation *operation, coll_lane *lane, int32_t round) {
    int32_t place = my_place(operation), end = coll_size(coll_group_of(operation)) - 1;
    if (round != CHAIN_TAKE || place == end) return WEFT_OK;
    coll_range segment = segment_of(operation, lane);
    return wefti_coll_reduce_two(operation, reduced_at(operation, lane), coll_at(operation, operation->call.send, segment.first),
                                 lane->scratch, segment.count, place == 0);
}

void wefti_coll_rooted_chain_begin(coll_operation *operation) {
    static const coll_program reduce = {segments, chain_rounds, NULL, chain_queue, chain_work};
    if (operation->call.kind == WEFTI_BROADCAST)
        wefti_coll_chain_begin(operation);
    else
        wefti_coll_program_begin(operation, &reduce);
}

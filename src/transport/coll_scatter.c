/* A broadcast in parts, for what is too large for a tree and goes through too few hands for a chain: van de Geijn's.
 *
 * The root deals the parts out down a tree in which whoever has some gives the second half away (scatter), so that all have theirs at about the
 * same time, whatever their number; then everyone collects the parts that it lacks from those behind it, twice as many in every round
 * (Bruck's allgather, of any number of members). Parts are numbered by their member's place from the root; who comes to rounds with some of
 * those behind its own skips the rounds, or the pieces of them, that would bring these: everyone gets everything once.
 *
 * Cost: 2 log2 n messages one behind the other, and the bytes twice: at the root's port as they are dealt out, at everyone's as they are
 * collected. No scratch; what is sent lies where the caller has it. */
#include "transport/coll.h"

/* Elements of the parts [from, to). */
static coll_range parts(const coll_operation *operation, int32_t from, int32_t to) {
    size_t size = (size_t)coll_size(coll_group_of(operation)), each = operation->call.count / size, rest = operation->call.count % size;
    size_t first = (size_t)from * each + ((size_t)from < rest ? (size_t)from : rest);
    return (coll_range){first, (size_t)to * each + ((size_t)to < rest ? (size_t)to : rest) - first};
}

static int32_t member_at(const coll_operation *operation, int32_t place) {
    return coll_around(coll_group_of(operation), place, operation->call.root);
}
static int32_t my_place(const coll_operation *operation) {
    const coll_group *group = coll_group_of(operation);
    return coll_around(group, coll_index(group), -operation->call.root);
}

static void send_parts(coll_operation *operation, coll_lane *lane, int32_t to, coll_range range) {
    const void *from = my_place(operation) == 0 ? operation->call.send : operation->call.receive;
    wefti_coll_program_send(operation, lane, member_at(operation, to), coll_at(operation, from, range.first), range.count);
}
static void receive_parts(coll_operation *operation, coll_lane *lane, int32_t from, coll_range range) {
    wefti_coll_program_recv(operation, lane, member_at(operation, from), coll_at(operation, operation->call.receive, range.first), range.count);
}

/* What the member at a place is dealt, the parts [from, to), by the member at `giver`: whoever has some keeps the first half, or one more. */
typedef struct deal {
    int32_t from, to, giver;
} deal;

static int32_t middle(int32_t from, int32_t to) { return from + (to - from + 1) / 2; }

static deal deal_of(const coll_operation *operation, int32_t place) {
    deal d = {0, coll_size(coll_group_of(operation)), 0};
    while (d.from != place) {
        int32_t half = middle(d.from, d.to);
        if (place < half) d.to = half;
        else d.giver = d.from, d.from = half;
    }
    return d;
}

/* What it collects in a round from the member `distance` behind it: the parts up to the last one, and those from 0 on. */
static void collected(const coll_operation *operation, int32_t place, int32_t distance, coll_range out[2]) {
    int32_t size = coll_size(coll_group_of(operation)), first = place + distance, has = deal_of(operation, place).to;
    int32_t end = first + (size - distance < distance ? size - distance : distance);
    out[0] = out[1] = (coll_range){0, 0};
    if (place == 0) return; /* it has all from the beginning */
    if (first < has) first = has;
    if (first < size && first < end) out[0] = parts(operation, first, end < size ? end : size);
    if (end > size) out[1] = parts(operation, first > size ? first - size : 0, end - size);
}

static void queue_collection(coll_operation *operation, coll_lane *lane, int32_t distance) {
    int32_t    size = coll_size(coll_group_of(operation)), place = my_place(operation), to = coll_wrap(size, place - distance);
    coll_range range[2];
    collected(operation, place, distance, range);
    for (int i = 0; i < 2; i++) receive_parts(operation, lane, coll_wrap(size, place + distance), range[i]);
    collected(operation, to, distance, range);
    for (int i = 0; i < 2; i++) send_parts(operation, lane, to, range[i]);
}

static int32_t levels(const coll_operation *operation) { return wefti_coll_log2_up(coll_size(coll_group_of(operation))); }

/* In a round of dealing a member gives the second half of what it still has away. */
static void queue_deal(coll_operation *operation, coll_lane *lane, int32_t round) {
    int32_t place = my_place(operation), to = deal_of(operation, place).to, half = middle(place, to);
    for (; round > 1; round--) to = half, half = middle(place, to);
    if (half < to) send_parts(operation, lane, half, parts(operation, half, to));
}

/* Round 0 takes what is dealt; a round for each level of the tree deals it out; then come those of the collection. */
static weft_status deal_step(coll_operation *operation, coll_lane *lane) {
    int32_t place = my_place(operation), all = levels(operation);
    while (lane->round <= 2 * all && lane->queued == 0) {
        int32_t round = lane->round++;
        deal    mine = deal_of(operation, place);
        if (round == 0 && place != 0) receive_parts(operation, lane, mine.giver, parts(operation, mine.from, mine.to));
        if (round > 0 && round <= all) queue_deal(operation, lane, round);
        if (round > all) queue_collection(operation, lane, 1 << (round - all - 1));
    }
    return lane->queued ? WEFT_E_AGAIN : WEFT_OK;
}

/* The root's own copy, while the last of what it gives is on its way. */
static weft_status copy_step(coll_operation *operation, coll_lane *lane) {
    (void)lane;
    if (operation->lanes[0].round <= 2 * levels(operation)) return WEFT_E_AGAIN;
    wefti_coll_copy(operation, operation->call.receive, operation->call.send, operation->call.count);
    return WEFT_OK;
}

void wefti_coll_scatter_begin(coll_operation *operation) {
    wefti_coll_lane_begin(operation, 0, deal_step);
    if (my_place(operation) == 0 && operation->call.send != operation->call.receive) wefti_coll_lane_begin(operation, 1, copy_step);
    wefti_coll_greet(operation, 0);
}

/* Algorithms for small operations: each message carries header and payload, copied together.
 *
 * direct: everyone sends to everyone; one latency. Reduces in the order of the members, so the bits are those of one
 * reducer call, whatever the timing. A rank sends its payload n-1 times.
 *
 * doubling: log2 n exchanges with partners at distance 1, 2, 4, …; where n is no power of two, the first ranks fold into
 * pairs before and unfold after. The lower one is always the left operand: all ranks get equal bits.
 *
 * tree: a broadcast from parent to children in a binomial tree; log2 n latencies. What no message holds beside its header follows it, uncopied.
 *
 * dissemination: a barrier; in round k a rank tells the one 2^k further on; log2 n rounds.
 *
 * Memory: per operation in flight, outbox and inbox of a few messages of the group's message_bytes. */
#include <string.h>

#include "transport/coll.h"

static uint8_t *message_at(const coll_operation *operation, uint8_t *box, int32_t index) {
    return box + (size_t)index * coll_group_of(operation)->message_bytes;
}
static uint8_t *payload_of(uint8_t *message) { return message + sizeof(coll_opening); }

/* Puts header and payload into place `slot` of the outbox and queues it. */
static void send_small(coll_operation *operation, coll_lane *lane, int32_t slot, int32_t to, const void *data,
                       size_t bytes) {
    uint8_t *message = message_at(operation, operation->outbox, slot);
    coll_opening opening = wefti_coll_opening(operation);
    memcpy(message, &opening, sizeof opening);
    if (bytes > 0) memcpy(payload_of(message), data, bytes);
    wefti_coll_lane_send(operation, lane, to, 0, message, sizeof opening + bytes);
}

static void recv_small(coll_operation *operation, coll_lane *lane, int32_t slot, int32_t from) {
    wefti_coll_lane_recv(operation, lane, from, 0, message_at(operation, operation->inbox, slot),
                         coll_group_of(operation)->message_bytes);
}

/* Checks the message in place `slot` of the inbox, which transfer number `transfer` brought, and gives its payload. */
static weft_status open_small(coll_operation *operation, const coll_lane *lane, int32_t slot, int32_t transfer,
                              size_t bytes, uint8_t **payload_out) {
    const wefti_wire_op *op = &lane->transfers[transfer];
    int32_t from = (int32_t)(intptr_t)op->user;
    uint8_t *message = message_at(operation, operation->inbox, slot);
    if (op->done_bytes < sizeof(coll_opening))
        return wefti_coll_wrong_length(operation, from, op->done_bytes, sizeof(coll_opening) + bytes);
    WEFTI_TRY(wefti_coll_compare_opening(operation, from, (const coll_opening *)message));
    if (op->done_bytes != sizeof(coll_opening) + bytes)
        return wefti_coll_wrong_length(operation, from, op->done_bytes, sizeof(coll_opening) + bytes);
    *payload_out = payload_of(message);
    return WEFT_OK;
}

/* --- direct --- */

/* The other member that place `slot` stands for. */
static int32_t other(const coll_group *group, int32_t slot) { return slot < coll_index(group) ? slot : slot + 1; }

static weft_status direct_finish(coll_operation *operation, coll_lane *lane) {
    coll_group *group = coll_group_of(operation);
    const wefti_collective_call *call = &operation->call;
    size_t bytes = coll_bytes(operation);
    int32_t me = coll_index(group), size = coll_size(group);
    size_t own = call->kind == WEFTI_REDUCE_SCATTER ? (size_t)me * bytes : 0;
    for (int32_t slot = 0; slot < size - 1; slot++) {
        uint8_t *payload = NULL;
        WEFTI_TRY(open_small(operation, lane, slot, slot, bytes, &payload));
        int32_t from = other(group, slot);
        group->sources[from] = payload;
        if (call->kind == WEFTI_ALLGATHER && bytes)
            memcpy((uint8_t *)call->receive + (size_t)from * bytes, payload, bytes);
    }
    if (call->kind == WEFTI_ALLGATHER) {
        uint8_t *part = (uint8_t *)call->receive + (size_t)me * bytes;
        if (bytes && part != call->send) memcpy(part, call->send, bytes);
        return WEFT_OK;
    }
    group->sources[me] = (const uint8_t *)call->send + own;
    return wefti_coll_reduce(operation, call->receive, size, call->count, true);
}

static weft_status direct_step(coll_operation *operation, coll_lane *lane) {
    coll_group *group = coll_group_of(operation);
    if (lane->round++ > 0) return direct_finish(operation, lane);
    int32_t others = coll_size(group) - 1;
    size_t bytes = coll_bytes(operation);
    bool scatter = operation->call.kind == WEFTI_REDUCE_SCATTER;
    for (int32_t slot = 0; slot < others; slot++) recv_small(operation, lane, slot, other(group, slot));
    for (int32_t slot = 0; slot < others; slot++) {
        int32_t to = other(group, slot);
        if (slot == 0 || scatter) {
            const uint8_t *data = (const uint8_t *)operation->call.send + (scatter ? (size_t)to * bytes : 0);
            send_small(operation, lane, slot, to, data, bytes);
        } else {
            wefti_coll_lane_send(operation, lane, to, 0, operation->outbox, sizeof(coll_opening) + bytes);
        }
    }
    return WEFT_E_AGAIN;
}

void wefti_coll_direct_begin(coll_operation *operation) { wefti_coll_lane_begin(operation, 0, direct_step); }

/* --- doubling --- */

/* Where a rank is; in lane->round. lane->segment is the distance of the exchange that is under way. */
enum { DOUBLING_START, DOUBLING_GIVEN, DOUBLING_TAKEN, DOUBLING_EXCHANGED, DOUBLING_UNFOLDED };

/* receive = left ∘ right, of what is here and what the partner sent. */
static weft_status combine(coll_operation *operation, const coll_lane *lane, const void *mine, bool mine_left,
                           bool last) {
    coll_group *group = coll_group_of(operation);
    uint8_t *payload = NULL;
    WEFTI_TRY(open_small(operation, lane, 0, 0, coll_bytes(operation), &payload));
    group->sources[0] = mine_left ? mine : payload;
    group->sources[1] = mine_left ? payload : mine;
    return wefti_coll_reduce(operation, operation->call.receive, 2, operation->call.count, last);
}

/* Queues the exchange of `mine` with the partner at the lane's distance, or the unfolding after the last. */
static weft_status doubling_exchange(coll_operation *operation, coll_lane *lane, const void *mine) {
    const coll_group *group = coll_group_of(operation);
    int32_t me = coll_index(group), power = wefti_coll_power_below(coll_size(group)), rest = coll_size(group) - power;
    bool folded = me < 2 * rest;
    size_t bytes = coll_bytes(operation);
    if ((int32_t)lane->segment < power) {
        int32_t partner = (folded ? me / 2 : me - rest) ^ (int32_t)lane->segment;
        partner = partner < rest ? partner * 2 : partner + rest;
        lane->round = DOUBLING_EXCHANGED;
        recv_small(operation, lane, 0, partner);
        send_small(operation, lane, 0, partner, mine, bytes);
        return WEFT_E_AGAIN;
    }
    if (!folded) return WEFT_OK;
    lane->round = DOUBLING_UNFOLDED;
    send_small(operation, lane, 0, me + 1, mine, bytes);
    return WEFT_E_AGAIN;
}

static weft_status doubling_start(coll_operation *operation, coll_lane *lane) {
    const coll_group *group = coll_group_of(operation);
    int32_t me = coll_index(group), rest = coll_size(group) - wefti_coll_power_below(coll_size(group));
    lane->segment = 1;
    if (me >= 2 * rest) return doubling_exchange(operation, lane, operation->call.send);
    if (me % 2 == 0) {
        lane->round = DOUBLING_TAKEN;
        recv_small(operation, lane, 0, me + 1);
    } else {
        lane->round = DOUBLING_GIVEN;
        recv_small(operation, lane, 0, me - 1); /* the result, in the end */
        send_small(operation, lane, 0, me - 1, operation->call.send, coll_bytes(operation));
    }
    return WEFT_E_AGAIN;
}

static weft_status doubling_step(coll_operation *operation, coll_lane *lane) {
    const coll_group *group = coll_group_of(operation);
    const wefti_collective_call *call = &operation->call;
    int32_t me = coll_index(group), power = wefti_coll_power_below(coll_size(group));
    int32_t rest = coll_size(group) - power, distance = (int32_t)lane->segment;
    bool folded = me < 2 * rest;
    uint8_t *result = NULL;
    switch (lane->round) {
    case DOUBLING_START: return doubling_start(operation, lane);
    case DOUBLING_GIVEN:
        WEFTI_TRY(open_small(operation, lane, 0, 0, coll_bytes(operation), &result));
        if (call->count) memcpy(call->receive, result, coll_bytes(operation));
        return WEFT_OK;
    case DOUBLING_TAKEN:
        WEFTI_TRY(combine(operation, lane, call->send, true, false));
        return doubling_exchange(operation, lane, call->receive);
    case DOUBLING_EXCHANGED: {
        const void *mine = distance == 1 && !folded ? call->send : call->receive;
        bool mine_left = ((folded ? me / 2 : me - rest) & distance) == 0;
        WEFTI_TRY(combine(operation, lane, mine, mine_left, distance * 2 == power));
        lane->segment *= 2;
        return doubling_exchange(operation, lane, call->receive);
    }
    default: return WEFT_OK;
    }
}

void wefti_coll_doubling_begin(coll_operation *operation) { wefti_coll_lane_begin(operation, 0, doubling_step); }

/* --- tree --- */

/* Whether one message holds header and payload. Where not, they go one behind the other, the payload from where it lies to where it belongs. */
static bool is_small(const coll_operation *operation) {
    return coll_bytes(operation) + sizeof(coll_opening) <= coll_group_of(operation)->message_bytes;
}

/* Queues what a child gets. All get the same header, which is in the outbox once the first one has been given it. */
static void tree_give(coll_operation *operation, coll_lane *lane, int32_t child, const void *data) {
    size_t bytes = coll_bytes(operation);
    bool   small = is_small(operation);
    if (lane->queued == 0)
        send_small(operation, lane, 0, child, data, small ? bytes : 0);
    else
        wefti_coll_lane_send(operation, lane, child, 0, operation->outbox, sizeof(coll_opening) + (small ? bytes : 0));
    if (small) return;
    lane->transfers[lane->queued - 1].flags |= WEFTI_WIRE_MORE;
    wefti_coll_lane_send(operation, lane, child, 1, data, bytes);
}

/* Seen from the root, member v has the parent v without its lowest set bit, and the children v + 2^k for 2^k below that
 * bit; the one whose way on is the longest comes first. */
static void tree_give_all(coll_operation *operation, coll_lane *lane, int32_t place) {
    const wefti_collective_call *call = &operation->call;
    int32_t size = coll_size(coll_group_of(operation)), step = place ? place & -place : 1;
    while (place == 0 && step < size) step *= 2;
    for (step /= 2; step > 0; step /= 2)
        if (place + step < size)
            tree_give(operation, lane, (place + step + call->root) % size, place ? call->receive : call->send);
}

enum { TREE_HEAR, TREE_HEARD, TREE_HAS, TREE_GIVEN };

/* What the parent's message says; what follows it is ours. */
static weft_status tree_open(coll_operation *operation, coll_lane *lane, int32_t parent) {
    uint8_t *payload = NULL;
    bool     small = is_small(operation);
    size_t   bytes = coll_bytes(operation);
    WEFTI_TRY(open_small(operation, lane, 0, 0, small ? bytes : 0, &payload));
    if (!small)
        wefti_coll_lane_recv(operation, lane, parent, 1, operation->call.receive, bytes);
    else if (bytes)
        memcpy(operation->call.receive, payload, bytes);
    return WEFT_OK;
}

static weft_status tree_step(coll_operation *operation, coll_lane *lane) {
    const wefti_collective_call *call = &operation->call;
    int32_t size = coll_size(coll_group_of(operation)), place = coll_wrap(size, coll_index(coll_group_of(operation)) - call->root);
    int32_t parent = (place - (place & -place) + call->root) % size;
    if (place == 0 && lane->round < TREE_HAS) lane->round = TREE_HAS;
    for (;;) {
        int32_t round = lane->round++;
        if (round == TREE_HEAR) recv_small(operation, lane, 0, parent);
        if (round == TREE_HEARD) WEFTI_TRY(tree_open(operation, lane, parent));
        if (round == TREE_HAS) tree_give_all(operation, lane, place);
        if (lane->queued) return WEFT_E_AGAIN;
        if (round < TREE_GIVEN) continue;
        if (place == 0) wefti_coll_copy(operation, call->receive, call->send, call->count); /* nobody waits for it */
        return WEFT_OK;
    }
}

/* A root hears from nobody. */
void wefti_coll_tree_begin(coll_operation *operation) {
    wefti_coll_lane_begin(operation, 0, tree_step);
    if (wefti_coll_is_strict(operation)) wefti_coll_greet(operation, COLL_LANES + 1);
}

/* --- dissemination --- */

static weft_status dissemination_step(coll_operation *operation, coll_lane *lane) {
    coll_group *group = coll_group_of(operation);
    int32_t size = coll_size(group), me = coll_index(group);
    if (lane->round > 0) {
        uint8_t *payload = NULL;
        WEFTI_TRY(open_small(operation, lane, 0, 0, 0, &payload));
    }
    int32_t distance = 1 << lane->round++;
    if (distance >= size) return WEFT_OK;
    recv_small(operation, lane, 0, (me + size - distance) % size);
    send_small(operation, lane, 0, (me + distance) % size, NULL, 0);
    return WEFT_E_AGAIN;
}

void wefti_coll_dissemination_begin(coll_operation *operation) {
    wefti_coll_lane_begin(operation, 0, dissemination_step);
}

/* halving: Rabenseifner's allreduce, and the reduce-scatter that is its first half.
 *
 * Partners at distance p/2, p/4, …, 1 swap halves of what they still share and reduce the half that they keep, until each
 * has one block of the result; then the same partners, in the opposite order, swap what they have (recursive doubling). So
 * a rank sends 2(p-1)/p of the bytes, as in a ring, in 2 log2 p messages instead of 2(p-1). Where n is no power of two,
 * the first ranks fold into pairs before (the upper one gives all of its data to the lower) and unfold after.
 *
 * The lower partner is always the left operand, and one rank alone computes a block: all ranks get equal bits.
 *
 * An allreduce keeps what it computes in `receive`; scratch takes what comes, at most a segment. A reduce-scatter, whose
 * send buffer is not its to write to, keeps it in scratch: p/2 blocks to send, p/2 to keep, p/4 that come. */
#include "transport/coll.h"

/* --- allreduce --- */

/* Where a member stands among the `power` that take part after folding. */
typedef struct halving_place {
    int32_t power, rest, steps;
    int32_t index;  /* among those; -1: it gave its data to the one before it */
    bool folded;    /* it is one of a pair */
} halving_place;

static halving_place place_of(const coll_group *group) {
    halving_place place = {.power = wefti_coll_power_below(coll_size(group))};
    int32_t me = coll_index(group);
    place.rest = coll_size(group) - place.power;
    place.steps = wefti_coll_log2_up(place.power);
    place.folded = me < 2 * place.rest;
    place.index = !place.folded ? me - place.rest : me % 2 == 0 ? me / 2 : -1;
    return place;
}

static int32_t member_at(const halving_place *place, int32_t index) {
    return index < place->rest ? 2 * index : index + place->rest;
}

static size_t allreduce_most(const coll_operation *operation) { return 2 * COLL_SEGMENT_BYTES / operation->element_bytes; }

static size_t allreduce_segments(const coll_operation *operation) {
    return coll_segments(operation->call.count, allreduce_most(operation));
}

/* Round 0 folds, `steps` halve, `steps` double, the last unfolds. */
static int32_t allreduce_rounds(const coll_operation *operation) {
    return 2 * place_of(coll_group_of(operation)).steps + 2;
}

/* The elements of the blocks `first` … first + blocks - 1 of the segment. */
static coll_range blocks_of(const coll_operation *operation, const coll_lane *lane, const halving_place *place, int32_t first,
                            int32_t blocks) {
    coll_range segment = wefti_coll_segment(lane, operation->call.count, allreduce_most(operation));
    coll_range begin = wefti_coll_part(segment.count, operation->element_bytes, place->power, first);
    coll_range end = wefti_coll_part(segment.count, operation->element_bytes, place->power, first + blocks - 1);
    return (coll_range){segment.first + begin.first, end.first + end.count - begin.first};
}

/* What a rank keeps, and what it gives or gets, where partners at `distance` meet. */
static coll_range kept(const coll_operation *operation, const coll_lane *lane, const halving_place *place, int32_t distance) {
    return blocks_of(operation, lane, place, place->index / distance * distance, distance);
}
static coll_range given(const coll_operation *operation, const coll_lane *lane, const halving_place *place, int32_t distance) {
    int32_t partner = place->index ^ distance;
    return blocks_of(operation, lane, place, partner / distance * distance, distance);
}

static void allreduce_queue(coll_operation *operation, coll_lane *lane, int32_t round) {
    const coll_group *group = coll_group_of(operation);
    const wefti_collective_call *call = &operation->call;
    halving_place place = place_of(group);
    coll_range all = wefti_coll_segment(lane, call->count, allreduce_most(operation));
    int32_t me = coll_index(group);
    if (round == 0 || round == 2 * place.steps + 1) {
        if (!place.folded) return;
        bool gives = (round == 0) == (place.index < 0); /* the upper one before, the lower one after */
        int32_t other = place.index < 0 ? me - 1 : me + 1;
        if (gives)
            wefti_coll_program_send(operation, lane, other, coll_at(operation, round == 0 ? call->send : call->receive, all.first),
                                    all.count);
        else
            wefti_coll_program_recv(operation, lane, other,
                                    round == 0 ? lane->scratch : coll_at(operation, call->receive, all.first), all.count);
        return;
    }
    if (place.index < 0) return;
    bool halves = round <= place.steps;
    int32_t distance = halves ? place.power >> round : 1 << (round - place.steps - 1);
    int32_t partner = member_at(&place, place.index ^ distance);
    coll_range keep = kept(operation, lane, &place, distance), give = given(operation, lane, &place, distance);
    if (halves) {
        const void *mine = round == 1 && !place.folded ? call->send : call->receive;
        wefti_coll_program_recv(operation, lane, partner, lane->scratch, keep.count);
        wefti_coll_program_send(operation, lane, partner, coll_at(operation, mine, give.first), give.count);
    } else {
        wefti_coll_program_recv(operation, lane, partner, coll_at(operation, call->receive, give.first), give.count);
        wefti_coll_program_send(operation, lane, partner, coll_at(operation, call->receive, keep.first), keep.count);
    }
}

static weft_status allreduce_work(coll_operation *operation, coll_lane *lane, int32_t round) {
    const wefti_collective_call *call = &operation->call;
    halving_place place = place_of(coll_group_of(operation));
    if (place.index < 0 || round > place.steps) return WEFT_OK;
    if (round == 0) {
        if (!place.folded) return WEFT_OK;
        coll_range all = wefti_coll_segment(lane, call->count, allreduce_most(operation));
        return wefti_coll_reduce_two(operation, coll_at(operation, call->receive, all.first),
                                     coll_at(operation, call->send, all.first), lane->scratch, all.count, false);
    }
    int32_t distance = place.power >> round;
    coll_range keep = kept(operation, lane, &place, distance);
    const void *mine = coll_at(operation, round == 1 && !place.folded ? call->send : call->receive, keep.first);
    bool left = (place.index & distance) == 0;
    return wefti_coll_reduce_two(operation, coll_at(operation, call->receive, keep.first), left ? mine : lane->scratch,
                                 left ? lane->scratch : mine, keep.count, round == place.steps);
}

/* --- reduce-scatter, by a power of two --- */

static size_t scatter_most(const coll_operation *operation) {
    size_t most = 8 * COLL_SEGMENT_BYTES / (5 * (size_t)coll_size(coll_group_of(operation)) * operation->element_bytes);
    return most ? most : 1;
}
static size_t scatter_segments(const coll_operation *operation) {
    return coll_segments(operation->call.count, scatter_most(operation));
}
static int32_t scatter_rounds(const coll_operation *operation) {
    return wefti_coll_log2_up(coll_size(coll_group_of(operation)));
}

/* Where block `block` of the half that this rank keeps in the first round lies, of all that is kept; and behind it, what
 * is sent in the first round, and what comes in the later ones. */
static uint8_t *kept_at(const coll_operation *operation, const coll_lane *lane, size_t elements, int32_t block) {
    int32_t half = coll_size(coll_group_of(operation)) / 2;
    return lane->scratch + (size_t)(block % half) * elements * operation->element_bytes;
}
static uint8_t *behind_kept(const coll_operation *operation, const coll_lane *lane, size_t elements, int32_t halves) {
    size_t half = (size_t)coll_size(coll_group_of(operation)) / 2;
    return lane->scratch + (size_t)halves * half * elements * operation->element_bytes;
}

static void scatter_queue(coll_operation *operation, coll_lane *lane, int32_t round) {
    const coll_group *group = coll_group_of(operation);
    const wefti_collective_call *call = &operation->call;
    int32_t me = coll_index(group), distance = coll_size(group) >> (round + 1), partner = me ^ distance;
    coll_range segment = wefti_coll_segment(lane, call->count, scatter_most(operation));
    size_t elements = (size_t)distance * segment.count;
    int32_t give = partner / distance * distance;
    if (round > 0) {
        wefti_coll_program_recv(operation, lane, partner, behind_kept(operation, lane, segment.count, 2), elements);
        wefti_coll_program_send(operation, lane, partner, kept_at(operation, lane, segment.count, give), elements);
        return;
    }
    uint8_t *out = behind_kept(operation, lane, segment.count, 1);
    for (int32_t i = 0; i < distance; i++)
        wefti_coll_copy(operation, coll_at(operation, out, (size_t)i * segment.count),
                        coll_at(operation, call->send, (size_t)(give + i) * call->count + segment.first), segment.count);
    wefti_coll_program_recv(operation, lane, partner, lane->scratch, elements);
    wefti_coll_program_send(operation, lane, partner, out, elements);
}

static weft_status scatter_work(coll_operation *operation, coll_lane *lane, int32_t round) {
    const coll_group *group = coll_group_of(operation);
    const wefti_collective_call *call = &operation->call;
    int32_t me = coll_index(group), distance = coll_size(group) >> (round + 1);
    coll_range segment = wefti_coll_segment(lane, call->count, scatter_most(operation));
    int32_t keep = me / distance * distance;
    bool left = (me & distance) == 0, last = distance == 1;
    for (int32_t i = 0; i < distance; i++) {
        uint8_t *held = kept_at(operation, lane, segment.count, keep + i);
        const void *mine = held, *theirs = coll_at(operation, behind_kept(operation, lane, segment.count, 2), (size_t)i * segment.count);
        if (round == 0) {
            mine = coll_at(operation, call->send, (size_t)(keep + i) * call->count + segment.first);
            theirs = held;
        }
        void *dst = last ? coll_at(operation, call->receive, segment.first) : held;
        WEFTI_TRY(wefti_coll_reduce_two(operation, dst, left ? mine : theirs, left ? theirs : mine, segment.count, last));
    }
    return WEFT_OK;
}

void wefti_coll_halving_begin(coll_operation *operation) {
    static const coll_program allreduce = {allreduce_segments, allreduce_rounds, NULL, allreduce_queue, allreduce_work},
                              scatter = {scatter_segments, scatter_rounds, NULL, scatter_queue, scatter_work};
    wefti_coll_program_begin(operation, operation->call.kind == WEFTI_ALLREDUCE ? &allreduce : &scatter);
}

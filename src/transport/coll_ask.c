/* Calls that a group has made, and questions about them: how broadcasts find ranks that call something else without waiting for a neighbour.
 *
 * A broadcast's root hears from nobody, so it may be through, and calls ahead, before others have begun. What ranks have called is compared all the
 * same: each message that a member waits for opens with the sender's call and with a hash of all calls before, so a difference is found by the first
 * message between two that differ, in the call itself or in a later one. A member that gets no message at all, because the one it waits for has
 * another root in mind, asks it after ASK_NS and some looks, in which what came would have been seen; who is asked compares with what it called, be it in that call, past it, or not yet there.
 *
 * A receive for questions is posted for the life of the group. A question that comes too late for it stays with the wire; ids are used again as late as
 * possible, and tags have the number of the use too. Every COLL_STRICT_EVERYth call is strict: all hear of a neighbour before they are through, so no
 * root is further ahead than that, and the calls that are remembered are enough. */
#include <string.h>

#include "transport/coll.h"

enum { STEP_QUESTION = 0xffffe, ASK_LOOKS = 8 };
_Static_assert(2 * COLL_STRICT_EVERY <= COLL_KEEPS, "a member that is asked remembers the call");
_Static_assert(sizeof(coll_header) % sizeof(uint64_t) == 0, "a header is whole words");
#define ASK_NS (50 * WEFTI_MILLISECOND_NS)

static bool ends_a_turn(uint64_t number) { return number % COLL_STRICT_EVERY == COLL_STRICT_EVERY - 1; }

/* By the number among all calls, for what is remembered of them, and of mapped ones by their place too, for their slots. */
bool wefti_coll_is_strict(const coll_operation *operation) {
    return ends_a_turn(operation->sequence) || (operation->algorithm->mapped && ends_a_turn(operation->place));
}

static void listen(coll_group *group) {
    group->question = wefti_wire_recv(WEFTI_WIRE_ANY_PEER, wefti_coll_tag(group, 0, STEP_QUESTION), &group->asked, sizeof group->asked);
    group->question.flags = WEFTI_WIRE_SILENT;
    group->asks = group->base.wire->ops->post(group->base.wire, &group->question) == WEFT_OK;
}

/* Word by word: byte by byte it would take as long as a small operation in mapped memory. */
static uint64_t hash_call(uint64_t hash, const coll_header *header) {
    uint64_t words[sizeof *header / sizeof(uint64_t)];
    memcpy(words, header, sizeof words);
    for (size_t i = 0; i < WEFTI_COUNT(words); i++) {
        hash = (hash ^ words[i]) * UINT64_C(0x9e3779b97f4a7c15);
        hash ^= hash >> 32;
    }
    return hash | 1; /* never 0 */
}

void wefti_coll_note_call(coll_operation *operation) {
    coll_group *group = coll_group_of(operation);
    coll_header header = wefti_coll_header(operation);
    group->called[operation->sequence % COLL_KEEPS] = header;
    operation->opening = group->next;
    group->next.before = hash_call(group->next.before, &header);
    group->next.last.count = header.count;
    group->next.last.kind = header.kind;
    group->next.last.dtype = header.dtype;
    group->next.last.op = header.op;
    group->next.last.algorithm = header.algorithm;
    group->next.last.root = header.root;
    if (!operation->algorithm->mapped && !group->asks) listen(group);
}

void wefti_coll_ask(coll_operation *operation, uint64_t now_ns) {
    coll_group *group = coll_group_of(operation);
    int32_t whom = operation->waits_for;
    if (operation->algorithm->mapped || whom < 0 || whom == coll_index(group)) return;
    if (++operation->looks < ASK_LOOKS || now_ns - operation->started_ns < ASK_NS) return;
    /* Who has left was through, and what it sent is on its way: to write to it now would lose that. */
    if (group->base.wire->ops->link(group->base.wire, group->ranks[whom]) != WEFTI_LINK_UP) return;
    for (int32_t i = 0; i < operation->lane_count; i++) {
        coll_lane *lane = &operation->lanes[i];
        if (lane->finished || lane->queued == 0 || lane->queued != lane->posted || lane->queued == group->lane_transfers) continue;
        /* In the place of greetings, which say the same first. */
        coll_opening opening = wefti_coll_opening(operation);
        uint8_t     *out = operation->outbox + (size_t)group->fan * group->message_bytes;
        memcpy(out, &opening, sizeof opening);
        wefti_coll_lane_send(operation, lane, whom, STEP_QUESTION, out, sizeof opening.header);
        lane->transfers[lane->queued - 1].tag = wefti_coll_tag(group, 0, STEP_QUESTION);
        operation->asked = true;
        return;
    }
}

weft_status wefti_coll_answer(coll_group *group) {
    const coll_header *theirs = &group->asked;
    int32_t  index = 0, rank = group->question.done_peer;
    uint32_t ahead = (uint32_t)group->base.sequence - theirs->sequence; /* calls of this member since, that one included */
    bool     whole = group->question.status == WEFT_OK && group->question.done_bytes == sizeof *theirs && theirs->magic == COLL_MAGIC;
    if (whole && (int32_t)ahead <= 0) return WEFT_OK; /* not called yet: then */
    while (index < coll_size(group) && group->ranks[index] != rank) index++;
    weft_status status = WEFT_OK;
    if (whole && ahead <= COLL_KEEPS && index < coll_size(group))
        status = wefti_coll_compare_headers(group, group->base.sequence - ahead, index, &group->called[theirs->sequence % COLL_KEEPS], theirs);
    group->asks = false;
    if (group->question.status == WEFT_OK) listen(group);
    return status;
}

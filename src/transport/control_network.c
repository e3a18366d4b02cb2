/* The control channel of a world that follows a fault, in a network without sockets: the others call rank 0 at its door, as over TCP, and say in
 * their first frame who they are and which epoch they join, where over TCP the handshake says so. */
#include "transport/control_inside.h"

weft_status wefti_control_network_open(wefti_control *control) {
    if (control->place->rank != 0) return WEFT_OK;
    WEFTI_TRY(wefti_alloc(CONTROL_MOST_GUESTS * sizeof *control->callers, "callers", &control->callers));
    for (int i = 0; i < CONTROL_MOST_GUESTS; i++) control->callers[i].frames.socket = -1;
    return WEFT_OK;
}

void wefti_control_network_close(wefti_control *control) {
    for (int i = 0; control->callers && i < CONTROL_MOST_GUESTS; i++) wefti_frames_close(&control->callers[i].frames);
    wefti_free(control->callers, CONTROL_MOST_GUESTS * sizeof *control->callers);
}

/* --- rank 0 --- */

static void accept_callers(wefti_control *control, uint64_t now_ns) {
    const wefti_network *network = control->network;
    wefti_stream        *stream = NULL;
    for (int i = 0; i < CONTROL_MOST_GUESTS; i++) {
        control_caller *place = &control->callers[i];
        if (wefti_frames_are_open(&place->frames)) continue;
        if (wefti_calls_accept_network(network, false, &place->seat, &stream) != WEFT_OK) return;
        wefti_frames_open_stream(&place->frames, stream, CONTROL_TELL_BYTES, now_ns);
    }
}

void wefti_control_network_let_in(wefti_control *control, uint64_t now_ns) {
    accept_callers(control, now_ns);
    for (int i = 0; i < CONTROL_MOST_GUESTS; i++) {
        control_caller *caller = &control->callers[i];
        wefti_frame     frame;
        const uint8_t  *payload;
        if (!wefti_frames_are_open(&caller->frames)) continue;
        weft_status status = wefti_frames_next(&caller->frames, now_ns, &frame, &payload);
        if (status == WEFT_E_AGAIN) continue;
        bool joins = status == WEFT_OK && frame.kind == CONTROL_JOIN && frame.value == control->place->epoch && frame.rank > 0 &&
                     frame.rank < control->place->size && control->members_seats[frame.rank] == caller->seat &&
                     control->members[frame.rank].state == MEMBER_ABSENT;
        if (!joins) { /* a gathering's caller, or of another epoch */
            wefti_frames_close(&caller->frames);
            continue;
        }
        control->members[frame.rank].frames = caller->frames;
        control->members[frame.rank].state = MEMBER_HERE;
        control->beat_ns = 0;
        caller->frames = (wefti_frames){.socket = -1};
    }
}

/* --- the others --- */

void wefti_control_network_join(wefti_control *control, uint64_t now_ns) {
    control_member *server = &control->members[0];
    weft_status     status = control->calls->ops->call(control->calls, control->members_seats[0], now_ns, &server->frames);
    if (status == WEFT_E_AGAIN || status == WEFT_E_LINK) return;
    if (status != WEFT_OK) {
        wefti_control_fail(control, wefti_fail(WEFT_E_PEER, "rank 0 was lost before the ranks left by a fault had joined it"));
        return;
    }
    server->frames.most_bytes = wefti_control_client_most_bytes(control);
    (void)!wefti_frames_send(&server->frames, (wefti_frame){CONTROL_JOIN, 0, control->place->rank, control->place->epoch}, NULL);
    wefti_control_client_met(control);
}

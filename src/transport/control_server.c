/* The control channel at rank 0: the store.
 *
 * Callers are guests until their handshake is over; there are at most 64 of them, the oldest giving way, and each has
 * five seconds. The listener closes once everyone is there. An exchange is gathered here and sent to all when the last
 * rank has come. A member whose connection ends without a goodbye is dead. Memory: one buffer of a round for the world, and
 * what frames are under way. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "transport/control_inside.h"

/* --- coming in --- */

static weft_status adopt_listener(wefti_control *control) {
    int adopted = control->place->store_descriptor, listening = 0;
    socklen_t length = sizeof listening;
    if (getsockopt(adopted, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) != 0 || !listening)
        return wefti_fail(WEFT_E_INVALID, "WEFT_STORE_FD=%d is no listening socket", adopted);
    control->listener = dup(adopted); /* the launcher's stays open, so that a second world in this process works */
    if (control->listener < 0) return wefti_fail_errno("cannot duplicate WEFT_STORE_FD=%d", adopted);
    fcntl(adopted, F_SETFD, FD_CLOEXEC); /* but is not for this rank's own children */
    wefti_socket_prepare(control->listener);
    control->address.bytes = sizeof control->address.storage;
    getsockname(control->listener, (struct sockaddr *)&control->address.storage, &control->address.bytes);
    return WEFT_OK;
}

weft_status wefti_control_server_open(wefti_control *control) {
    if (control->place->store_descriptor >= 0) return adopt_listener(control);
    uint16_t    port = wefti_socket_port(&control->address);
    weft_status status = WEFT_OK;
    for (int i = 0; i < control->place->store_ports; i++) {
        wefti_socket_set_port(&control->address, (uint16_t)(port + i));
        status = wefti_socket_listen(&control->address, &control->listener);
        if (status != WEFT_E_EXISTS) break;
    }
    return status == WEFT_OK ? WEFT_OK : wefti_while(status, "rank 0 cannot serve the rendezvous at '%.100s' (WEFT_STORE names rank 0's own host)", control->place->store);
}

static void drop_guest(wefti_control *control, control_guest *guest) {
    close(guest->socket);
    guest->socket = -1;
    control->strangers++;
}

static control_guest *place_for_guest(wefti_control *control) {
    control_guest *oldest = &control->guests[0];
    for (int i = 0; i < CONTROL_MOST_GUESTS; i++) {
        control_guest *guest = &control->guests[i];
        if (guest->socket < 0) return guest;
        if (guest->shake.deadline_ns < oldest->shake.deadline_ns) oldest = guest;
    }
    drop_guest(control, oldest);
    return oldest;
}

static void accept_guests(wefti_control *control, uint64_t now_ns) {
    for (int i = 0; i < CONTROL_MOST_GUESTS; i++) {
        int accepted = wefti_socket_accept(control->listener);
        if (accepted < 0) return;
        control_guest *guest = place_for_guest(control);
        guest->socket = accepted;
        if (wefti_handshake_answer(&guest->shake, &control->terms, accepted, now_ns) != WEFT_OK)
            drop_guest(control, guest);
    }
}

weft_status wefti_control_server_admit(void *context, int32_t rank) {
    wefti_control *control = context;
    return control->members[rank].state == MEMBER_ABSENT ? WEFT_OK : WEFT_E_EXISTS;
}

weft_status wefti_control_server_meet(wefti_control *control) {
    for (int32_t rank = 1; rank < control->place->size; rank++) {
        wefti_stream *stream = NULL;
        WEFTI_TRY(control->network->stream(control->network->context, rank, &stream));
        wefti_frames_open_stream(&control->members[rank].frames, stream, CONTROL_TELL_BYTES,
                                 wefti_host_now(control->host));
        control->members[rank].state = MEMBER_HERE;
    }
    return WEFT_OK;
}

static void welcome(wefti_control *control, control_guest *guest, uint64_t now_ns) {
    int32_t         rank = guest->shake.peer;
    control_member *member = &control->members[rank];
    wefti_seal     *seal = NULL;
    /* Two of one number were admitted at the same time, or there is no memory: it will find the connection closed. */
    if (member->state != MEMBER_ABSENT || wefti_seal_create(&guest->shake, &seal) != WEFT_OK) {
        drop_guest(control, guest);
        return;
    }
    wefti_frames_open(&member->frames, guest->socket, CONTROL_TELL_BYTES, now_ns);
    wefti_frames_encrypt(&member->frames, seal);
    member->state = MEMBER_HERE;
    control->beat_ns = 0; /* at once: from the first heartbeat on, silence means something */
    guest->socket = -1;
    wefti_log(WEFT_LOG_DEBUG, "rank %d has joined", (int)rank);
}

static void pump_guests(wefti_control *control, uint64_t now_ns) {
    for (int i = 0; i < CONTROL_MOST_GUESTS; i++) {
        control_guest *guest = &control->guests[i];
        if (guest->socket < 0) continue;
        weft_status status = wefti_handshake_progress(&guest->shake, now_ns);
        if (status == WEFT_E_AGAIN) continue;
        if (status == WEFT_OK) {
            welcome(control, guest, now_ns);
            continue;
        }
        if (status == WEFT_E_MISMATCH && control->place->epoch == 0) /* proved to be of this job, so the job cannot work; later, it is late */
            wefti_fault_raise(control->fault, WEFT_E_MISMATCH, guest->shake.peer, weft_error_message());
        drop_guest(control, guest);
    }
}

static void close_door(wefti_control *control) {
    for (int32_t rank = 1; rank < control->place->size; rank++)
        if (control->members[rank].state == MEMBER_ABSENT) return;
    close(control->listener);
    control->listener = -1;
    for (int i = 0; i < CONTROL_MOST_GUESTS; i++)
        if (control->guests[i].socket >= 0) drop_guest(control, &control->guests[i]);
}

/* --- rounds --- */

static void finish_round(wefti_control *control) {
    control_round *round = &control->round;
    for (int32_t rank = 0; rank < control->place->size; rank++)
        if (!control->members[rank].came) return;
    wefti_frame frame = {CONTROL_RESULT, (uint32_t)(round->bytes * (size_t)control->place->size), 0, round->number};
    for (int32_t rank = 0; rank < control->place->size; rank++) {
        control->members[rank].came = false;
        if (rank > 0) (void)!wefti_frames_send(&control->members[rank].frames, frame, round->all[round->number % 2]);
    }
    round->open = false;
    round->done = true;
    round->number++;
}

void wefti_control_server_take(wefti_control *control, int32_t rank, uint32_t number, const uint8_t *payload,
                               size_t bytes) {
    control_round *round = &control->round;
    char           cause[CONTROL_CAUSE_BYTES], name[WEFTI_EXCHANGE_NAME_BYTES];
    bool           sound = bytes >= sizeof name && bytes - sizeof name <= WEFTI_EXCHANGE_MOST_BYTES && number == round->number &&
                 !control->members[rank].came;
    if (!sound) {
        snprintf(cause, sizeof cause, "rank %d sent an exchange that is none (round %u for %u, %zu bytes)", (int)rank, number,
                 round->number, bytes);
        wefti_fault_raise(control->fault, WEFT_E_MISMATCH, rank, cause);
        return;
    }
    memcpy(name, payload, sizeof name);
    name[sizeof name - 1] = 0;
    bytes -= sizeof name;
    if (!round->open) {
        if (wefti_control_room(round, number, bytes * (size_t)control->place->size) != WEFT_OK) {
            wefti_fault_raise(control->fault, WEFT_E_NO_MEMORY, 0, weft_error_message());
            return;
        }
        round->open = true;
        round->bytes = bytes;
        round->first = rank;
        memcpy(round->name, name, sizeof name);
    } else if (round->bytes != bytes || strcmp(round->name, name) != 0) {
        snprintf(cause, sizeof cause, "the ranks are at different places: rank %d exchanges '%s' with %zu bytes, rank %d '%s' "
                 "with %zu", (int)rank, name, bytes, (int)round->first, round->name, round->bytes);
        wefti_fault_raise(control->fault, WEFT_E_MISMATCH, rank, cause);
        return;
    }
    if (bytes) memcpy(round->all[number % 2] + (size_t)rank * bytes, payload + sizeof name, bytes);
    control->members[rank].came = true;
    for (int32_t other = 0; other < control->place->size; other++)
        if (control->members[other].state == MEMBER_LEFT && !control->members[other].came)
            wefti_fault_raise(control->fault, WEFT_E_PEER, other, "it has left, and others wait for it");
    finish_round(control);
}

void wefti_control_server_missing(wefti_control *control, const char *name, double seconds, wefti_text *text,
                                  int32_t *first_out) {
    int32_t missing = 0;
    *first_out = -1;
    wefti_text ranks = {0};
    for (int32_t rank = 0; rank < control->place->size; rank++) {
        if (control->members[rank].came) continue;
        if (*first_out < 0) *first_out = rank;
        if (missing < 16) wefti_text_add(&ranks, missing ? ", %d" : "%d", (int)rank);
        if (missing == 16) wefti_text_add(&ranks, ", …");
        missing++;
    }
    wefti_text_add(text, "rank%s %s of %d did not come to '%s' within %.3g s (rendezvous at %s, %llu strangers dropped)",
                   missing == 1 ? "" : "s", ranks.bytes ? ranks.bytes : "?", (int)control->place->size, name, seconds,
                   wefti_socket_text(&control->address).text, (unsigned long long)control->strangers);
    wefti_text_release(&ranks);
}

/* --- members --- */

static void pump_member(wefti_control *control, int32_t rank, uint64_t now_ns) {
    control_member *member = &control->members[rank];
    while (member->state == MEMBER_HERE) {
        wefti_frame    frame;
        const uint8_t *payload;
        weft_status    status = wefti_frames_next(&member->frames, now_ns, &frame, &payload);
        if (status == WEFT_E_AGAIN) {
            if (wefti_frames_flush(&member->frames) != WEFT_OK) wefti_control_lose(control, member, rank, WEFT_E_LINK);
            else if (member->beats && now_ns > member->frames.heard_ns + CONTROL_SILENCE_NS) wefti_control_lose(control, member, rank, WEFT_E_TIMEOUT);
            return;
        }
        if (status != WEFT_OK) {
            wefti_control_lose(control, member, rank, status);
        } else if (frame.kind == CONTROL_EXCHANGE) {
            wefti_control_server_take(control, rank, frame.value, payload, frame.length);
        } else {
            wefti_control_hear(control, member, rank, &frame, payload);
            if (member->state == MEMBER_LEFT && control->round.open && !member->came)
                wefti_fault_raise(control->fault, WEFT_E_PEER, rank, "it left while others wait for it");
        }
    }
}

static bool lacks_members(const wefti_control *control) {
    for (int32_t rank = 1; rank < control->place->size; rank++)
        if (control->members[rank].state == MEMBER_ABSENT) return true;
    return false;
}

/* After a fault all have met a moment ago: who does not come may have ended since. */
static void look_for_absent(wefti_control *control, uint64_t now_ns) {
    for (int32_t rank = 1; rank < control->place->size; rank++)
        if (control->members[rank].state == MEMBER_ABSENT &&
            control->calls->ops->knock(control->calls, control->members_seats[rank], now_ns) == WEFT_E_PEER)
            wefti_fault_raise(control->fault, WEFT_E_PEER, rank, "its process ended before it had joined the others that a fault left");
}

static bool is_member(const wefti_control *control, int32_t seat) {
    for (int32_t rank = 0; rank < control->place->size; rank++)
        if (control->members_seats[rank] == seat) return true;
    return false;
}

/* All go on with a newcomer as they do after a fault, so a fault is made of it, of no rank of this world. Who takes a member's seat comes before
 * that one's end is known: it will call again. */
void wefti_control_server_hear_newcomers(wefti_control *control, uint64_t now_ns) {
    wefti_frames frames;
    int32_t      seat;
    char         cause[CONTROL_CAUSE_BYTES];
    /* Whoever gathers attends to the door from now on: who is half in would wait for nobody. */
    if (!wefti_door_is_open(control->door, now_ns) || lacks_members(control) || wefti_fault_verdict(control->fault) != WEFT_OK) {
        control->newcomers->ops->hang_up(control->newcomers);
        wefti_door_drain(control->door, now_ns);
        return;
    }
    while (control->newcomers->ops->let_in(control->newcomers, now_ns, &seat, &frames) == WEFT_OK) {
        wefti_frames_close(&frames);
        if (is_member(control, seat)) continue;
        snprintf(cause, sizeof cause, "another process was started in place of rank %d of those that there were at first, and waits to come in (weft_world_shrink)",
                 (int)seat);
        wefti_fault_raise(control->fault, WEFT_E_PEER, -1, cause);
    }
}

void wefti_control_server_pump(wefti_control *control, uint64_t now_ns) {
    bool joining = control->calls && lacks_members(control);
    if (joining) look_for_absent(control, now_ns);
    if (joining && control->callers) wefti_control_network_let_in(control, now_ns);
    if (control->listener >= 0) {
        accept_guests(control, now_ns);
        pump_guests(control, now_ns);
        close_door(control);
    }
    for (int32_t rank = 1; rank < control->place->size; rank++) pump_member(control, rank, now_ns);
}

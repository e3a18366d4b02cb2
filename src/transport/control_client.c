/* The control channel at the other ranks: finding the store, and listening to rank 0.
 *
 * Rank 0 may start later, so a refused connection is tried again until the deadline. Where the launcher names no port of
 * ours (torchrun's own store has the one it names), a few ports in a row are tried, and whoever answers without being
 * rank 0 of this job is passed over. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "transport/control_inside.h"

#define REDIAL_NS (20 * WEFTI_MILLISECOND_NS)
#define WORDLESS_NS (WEFTI_SECOND_NS / 2)
#define WORDLESS_EACH_NS (5 * WEFTI_MILLISECOND_NS) /* for each rank that may be calling beside this one */

static void hang_up(wefti_control *control, uint64_t now_ns) {
    close(control->dialled);
    control->dialled = -1;
    control->connected = control->shaking = false;
    control->redial_ns = now_ns + REDIAL_NS;
    control->port_try = (control->port_try + 1) % control->place->store_ports;
    snprintf(control->last_refusal, sizeof control->last_refusal, "%s", weft_error_message());
}

static bool fail_moved_on(wefti_control *control) {
    wefti_control_fail(control, wefti_fail(WEFT_E_PEER, "rank 0 was lost, or gathers again, before the ranks left by a fault had joined it at %s",
                                           control->place->store));
    return true;
}

/* In a world that follows a fault, rank 0 is the one who gathered the others at the same port. Where its host refuses, or it is at that
 * port for something else than this epoch, it has been lost, or has lost others and gathers again: so must this rank. */
static bool has_moved_on(wefti_control *control, weft_status status, int error) {
    if (control->place->epoch == 0 || (error != ECONNREFUSED && status != WEFT_E_NOT_FOUND && status != WEFT_E_MISMATCH)) return false;
    return fail_moved_on(control);
}

/* So it has where whoever is at that port hangs up without a word for long: that is the door of one who was started in its place, and does not lead. A store
 * does so only where very many call at once. */
static bool is_hung_up_on(wefti_control *control, weft_status status, uint64_t now_ns) {
    bool wordless = status == WEFT_E_LINK && control->shake.stage == WEFTI_SHAKE_CHALLENGE && control->shake.have == 0;
    if (!wordless) control->wordless_ns = 0;
    else if (!control->wordless_ns) control->wordless_ns = now_ns;
    if (control->place->epoch == 0 || !wordless || now_ns - control->wordless_ns < WORDLESS_NS + (uint64_t)control->place->size * WORDLESS_EACH_NS) return false;
    return fail_moved_on(control);
}

/* Whether to try again after what the handshake said. */
static bool is_final(const wefti_control *control, weft_status status) {
    switch (status) {
    case WEFT_E_LINK:
    case WEFT_E_TIMEOUT: return false;
    case WEFT_E_NOT_FOUND: return false; /* an older job may be about to give the port back */
    case WEFT_E_CORRUPT: return control->place->store_ports == 1;
    case WEFT_E_MISMATCH: /* what greets us with another version may be of another job */
        return control->place->store_ports == 1 || control->shake.stage != WEFTI_SHAKE_CHALLENGE;
    default: return true;
    }
}

uint32_t wefti_control_client_most_bytes(const wefti_control *control) {
    size_t most = (size_t)control->place->size * WEFTI_EXCHANGE_MOST_BYTES;
    return (uint32_t)(most < CONTROL_TELL_BYTES ? CONTROL_TELL_BYTES : most);
}

void wefti_control_client_met(wefti_control *control) {
    control->members[0].state = MEMBER_HERE;
    control->beat_ns = 0; /* at once: from the first heartbeat on, silence means something */
}

weft_status wefti_control_client_meet(wefti_control *control) {
    wefti_stream *stream = NULL;
    WEFTI_TRY(control->network->stream(control->network->context, 0, &stream));
    wefti_frames_open_stream(&control->members[0].frames, stream, wefti_control_client_most_bytes(control), wefti_host_now(control->host));
    wefti_control_client_met(control);
    return WEFT_OK;
}

static void join(wefti_control *control, uint64_t now_ns) {
    weft_status status = WEFT_OK;
    if (control->network) {
        wefti_control_network_join(control, now_ns);
        return;
    }
    if (control->dialled < 0) {
        if (now_ns < control->redial_ns) return;
        wefti_socket_address address = control->address;
        wefti_socket_set_port(&address, (uint16_t)(wefti_socket_port(&address) + control->port_try));
        if (wefti_socket_dial(&address, &control->dialled) != WEFT_OK) {
            control->dialled = -1;
            if (has_moved_on(control, WEFT_E_LINK, errno)) return;
            control->redial_ns = now_ns + REDIAL_NS;
            snprintf(control->last_refusal, sizeof control->last_refusal, "%s", weft_error_message());
            return;
        }
    }
    if (!control->connected) {
        status = wefti_socket_connected(control->dialled);
        if (status == WEFT_E_AGAIN) return;
        if (status != WEFT_OK) {
            (void)has_moved_on(control, status, errno);
            hang_up(control, now_ns);
            return;
        }
        control->connected = true;
        status = wefti_handshake_call(&control->shake, &control->terms, control->dialled, 0, now_ns);
        if (status != WEFT_OK) {
            wefti_control_fail(control, status);
            return;
        }
    }
    status = wefti_handshake_progress(&control->shake, now_ns);
    if (status == WEFT_E_AGAIN) return;
    if (status != WEFT_OK) {
        if (!has_moved_on(control, status, 0) && !is_hung_up_on(control, status, now_ns) && is_final(control, status)) wefti_control_fail(control, status);
        hang_up(control, now_ns);
        return;
    }
    wefti_seal *seal = NULL;
    if ((status = wefti_seal_create(&control->shake, &seal)) != WEFT_OK) {
        wefti_control_fail(control, status);
        hang_up(control, now_ns);
        return;
    }
    wefti_frames_open(&control->members[0].frames, control->dialled, wefti_control_client_most_bytes(control), now_ns);
    wefti_frames_encrypt(&control->members[0].frames, seal);
    wefti_control_client_met(control);
    control->dialled = -1;
}

static void take_result(wefti_control *control, const wefti_frame *frame, const uint8_t *payload) {
    control_round *round = &control->round;
    if (!round->open || frame->value != round->number || frame->length != round->bytes * (size_t)control->place->size) {
        wefti_control_lose(control, &control->members[0], 0,
                           wefti_fail(WEFT_E_CORRUPT, "it sent a result that belongs to no exchange"));
        return;
    }
    if (frame->length) memcpy(round->all[round->number % 2], payload, frame->length);
    round->open = false;
    round->done = true;
    round->number++;
}

void wefti_control_client_pump(wefti_control *control, uint64_t now_ns) {
    control_member *server = &control->members[0];
    if (server->state == MEMBER_ABSENT && control->failed == WEFT_OK) join(control, now_ns);
    while (server->state == MEMBER_HERE) {
        wefti_frame    frame;
        const uint8_t *payload;
        weft_status    status = wefti_frames_next(&server->frames, now_ns, &frame, &payload);
        if (status == WEFT_E_AGAIN) {
            if (wefti_frames_flush(&server->frames) != WEFT_OK) wefti_control_lose(control, &control->members[0], 0, WEFT_E_LINK);
            else if (server->beats && now_ns > server->frames.heard_ns + CONTROL_SILENCE_NS)
                wefti_control_lose(control, &control->members[0], 0, WEFT_E_TIMEOUT);
            return;
        }
        if (status != WEFT_OK)
            wefti_control_lose(control, &control->members[0], 0, status);
        else if (frame.kind == CONTROL_RESULT)
            take_result(control, &frame, payload);
        else
            wefti_control_hear(control, server, 0, &frame, payload);
    }
}

/* Calls over TCP.
 *
 * Callers have 5 s for their handshake, and at most 64 of them have it at once, the oldest giving way: a flood costs those who belong here
 * another try, and this process nothing. A process is known to have ended only where its host refuses the connection. Memory: 80 KiB for
 * callers, 16 bytes a seat. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "transport/calls.h"
#include "transport/handshake.h"

enum { MOST_GUESTS = 64 };

typedef struct guest {
    int             socket; /* -1: free */
    wefti_handshake shake;
} guest;

typedef struct knock {
    int      socket;  /* -1: none under way */
    uint64_t next_ns; /* when it is tried again */
} knock;

typedef struct tcp_calls {
    wefti_calls         base; /* first */
    wefti_calls_options options;
    wefti_terms         terms;
    guest              *guests;  /* [MOST_GUESTS] */
    knock              *knocks;  /* [seats] */
    int32_t             called;  /* a seat; -1: nobody */
    int                 dialled; /* -1 */
    bool                connected;
    wefti_handshake     shake;
} tcp_calls;

/* What is said from here on is sealed, where the world encrypts. */
static weft_status open_frames(const tcp_calls *self, wefti_handshake *shake, int socket, uint64_t now_ns, wefti_frames *frames) {
    wefti_seal *seal = NULL;
    WEFTI_TRY(wefti_seal_create(shake, &seal));
    wefti_frames_open(frames, socket, self->options.most_bytes, now_ns);
    wefti_frames_encrypt(frames, seal);
    return WEFT_OK;
}

/* What a connection that did not come about says of the process at the other end. Who takes the call and hangs up is not ready. */
static weft_status judge(int error) {
    if (error == ECONNREFUSED) return WEFT_E_PEER;
    bool silent = error == ETIMEDOUT || error == EHOSTUNREACH || error == ENETUNREACH || error == EHOSTDOWN;
    return silent ? WEFT_E_TIMEOUT : WEFT_E_LINK;
}

/* --- letting in --- */

static void drop_guest(guest *it) {
    close(it->socket);
    it->socket = -1;
}

static void accept_guests(tcp_calls *self, uint64_t now_ns) {
    for (int n = 0; n < MOST_GUESTS; n++) {
        int accepted = wefti_door_accept(self->options.door, now_ns);
        if (accepted < 0) return;
        guest *place = &self->guests[0];
        for (int i = 0; i < MOST_GUESTS && place->socket >= 0; i++)
            if (self->guests[i].socket < 0 || self->guests[i].shake.deadline_ns < place->shake.deadline_ns) place = &self->guests[i];
        if (place->socket >= 0) drop_guest(place);
        place->socket = accepted;
        if (wefti_handshake_answer(&place->shake, &self->terms, accepted, now_ns) != WEFT_OK) drop_guest(place);
    }
}

static weft_status let_in(wefti_calls *calls, uint64_t now_ns, int32_t *seat_out, wefti_frames *frames_out) {
    tcp_calls *self = (tcp_calls *)calls;
    accept_guests(self, now_ns);
    for (int i = 0; i < MOST_GUESTS; i++) {
        guest *it = &self->guests[i];
        if (it->socket < 0) continue;
        weft_status status = wefti_handshake_progress(&it->shake, now_ns);
        if (status == WEFT_E_AGAIN) continue;
        if (status != WEFT_OK || open_frames(self, &it->shake, it->socket, now_ns, frames_out) != WEFT_OK) {
            drop_guest(it);
            continue;
        }
        it->socket = -1;
        *seat_out = it->shake.peer;
        return WEFT_OK;
    }
    return WEFT_E_AGAIN;
}

/* --- calling --- */

static void hang_up(wefti_calls *calls) {
    tcp_calls *self = (tcp_calls *)calls;
    if (self->dialled >= 0) close(self->dialled);
    self->called = self->dialled = -1;
    self->connected = false;
}

static void hang_up_all(wefti_calls *calls) {
    tcp_calls *self = (tcp_calls *)calls;
    hang_up(calls);
    for (int i = 0; i < MOST_GUESTS; i++)
        if (self->guests[i].socket >= 0) drop_guest(&self->guests[i]);
}

static weft_status go_on(tcp_calls *self, uint64_t now_ns, wefti_frames *frames_out) {
    weft_status status;
    if (self->dialled < 0 && wefti_socket_dial(&self->options.doors[self->called], &self->dialled) != WEFT_OK) {
        self->dialled = -1;
        return judge(errno);
    }
    if (!self->connected) {
        status = wefti_socket_connected(self->dialled);
        if (status != WEFT_OK) return status == WEFT_E_AGAIN ? status : judge(errno);
        WEFTI_TRY(wefti_handshake_call(&self->shake, &self->terms, self->dialled, self->called, now_ns));
        self->connected = true;
    }
    status = wefti_handshake_progress(&self->shake, now_ns);
    if (status != WEFT_OK) return status == WEFT_E_AGAIN ? status : WEFT_E_LINK;
    WEFTI_TRY(open_frames(self, &self->shake, self->dialled, now_ns, frames_out));
    self->dialled = -1; /* the frames' */
    return WEFT_OK;
}

static weft_status call(wefti_calls *calls, int32_t seat, uint64_t now_ns, wefti_frames *frames_out) {
    tcp_calls *self = (tcp_calls *)calls;
    if (self->called != seat) hang_up(calls);
    self->called = seat;
    weft_status status = go_on(self, now_ns, frames_out);
    if (status != WEFT_E_AGAIN) hang_up(calls);
    return status;
}

static weft_status knock_at(wefti_calls *calls, int32_t seat, uint64_t now_ns) {
    tcp_calls  *self = (tcp_calls *)calls;
    knock      *it = &self->knocks[seat];
    weft_status status = WEFT_OK;
    int         error = 0;
    if (it->socket < 0) {
        if (now_ns < it->next_ns) return WEFT_E_AGAIN;
        status = wefti_socket_dial(&self->options.doors[seat], &it->socket);
        error = errno;
        it->next_ns = now_ns + WEFTI_KNOCK_LIMIT_NS;
        if (status != WEFT_OK) it->socket = -1;
    }
    if (it->socket >= 0) {
        status = wefti_socket_connected(it->socket);
        error = errno;
        if (status == WEFT_E_AGAIN && now_ns < it->next_ns) return status;
        close(it->socket);
        it->socket = -1;
    }
    it->next_ns = now_ns + WEFTI_KNOCK_NS;
    if (status == WEFT_OK || status == WEFT_E_AGAIN) return status;
    status = judge(error);
    return status == WEFT_E_LINK ? WEFT_OK : status; /* it took the call */
}

/* --- life --- */

static void close_calls(wefti_calls *calls) {
    tcp_calls *self = (tcp_calls *)calls;
    if (self->dialled >= 0) close(self->dialled);
    for (int i = 0; self->guests && i < MOST_GUESTS; i++)
        if (self->guests[i].socket >= 0) close(self->guests[i].socket);
    for (int32_t i = 0; self->knocks && i < self->options.seats; i++)
        if (self->knocks[i].socket >= 0) close(self->knocks[i].socket);
    wefti_handshake_forget(&self->shake);
    wefti_free(self->guests, MOST_GUESTS * sizeof *self->guests);
    wefti_free(self->knocks, (size_t)self->options.seats * sizeof *self->knocks);
    wefti_free(self, sizeof *self);
}

static const wefti_calls_ops tcp_ops = {let_in, call, hang_up_all, knock_at, close_calls};

weft_status wefti_calls_open(const wefti_calls_options *options, wefti_calls **calls_out) {
    const wefti_place *place = options->place;
    size_t             seats = (size_t)options->seats;
    tcp_calls         *self = NULL;
    if (options->network) return wefti_calls_open_network(options, calls_out);
    WEFTI_TRY(wefti_alloc(sizeof *self, "calls after a fault", &self));
    *self = (tcp_calls){.base = {&tcp_ops}, .options = *options, .called = -1, .dialled = -1};
    self->terms = (wefti_terms){.host = options->host, .purpose = options->announcing ? WEFTI_FOR_ANNOUNCING : WEFTI_FOR_GATHERING, .rank = options->seat, .size = options->seats, .job = place->job,
                                .secret = place->secret, .secret_bytes = place->secret_bytes, .encrypt = place->encrypt};
    weft_status status = wefti_alloc(MOST_GUESTS * sizeof *self->guests, "callers", &self->guests);
    for (int i = 0; i < MOST_GUESTS && status == WEFT_OK; i++) self->guests[i].socket = -1;
    if (status == WEFT_OK) status = wefti_alloc(seats * sizeof *self->knocks, "ranks that are looked for", &self->knocks);
    for (size_t i = 0; i < seats && status == WEFT_OK; i++) self->knocks[i].socket = -1;
    if (status == WEFT_OK) *calls_out = &self->base;
    else close_calls(&self->base);
    return status;
}

void wefti_calls_close(wefti_calls *calls) {
    if (calls) calls->ops->close(calls);
}

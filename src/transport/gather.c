/* Gathering: a loop over the roster that calls or lets in, and tells everyone what was decided.
 *
 *   who comes  → leader: HELLO    value: the last epoch that he knows of
 *   leader     → each:   MEMBERS  value: the new epoch, rank: his own, payload: the seat of each rank
 *
 * A leader that dies ends its connections, and its callers take the next one; one that dies after it has told some of them is found by
 * these when they join, and they gather again. Epochs only grow: a leader takes one above all that it was told of. Strangers
 * are dropped by the handshake, of which at most 64 go on at once, the oldest giving way. Memory: a connection a seat. */
#include "transport/gather.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "transport/frames.h"
#include "transport/handshake.h"
#include "transport/roster.h"

enum { MOST_GUESTS = 64, GATHER_HELLO = 101, GATHER_MEMBERS = 102, FRAME_BYTES = 1 << 20 };
/* A leader that has not begun to gather is called again soon, and less often the longer it does not. */
#define REDIAL_NS (10 * WEFTI_MILLISECOND_NS)
#define REDIAL_MOST_NS (100 * WEFTI_MILLISECOND_NS)
#define PROBE_NS (250 * WEFTI_MILLISECOND_NS)
#define NAP_NS (2 * WEFTI_MILLISECOND_NS)

typedef struct guest {
    int             socket; /* -1: free */
    wefti_handshake shake;
} guest;

/* One who has been let in, or the leader as its caller sees it. */
typedef struct seat_link {
    wefti_frames frames;
    bool         said_hello;
} seat_link;

typedef struct gather {
    const wefti_gather_options *options;
    const wefti_place *place;
    wefti_roster  roster;
    wefti_terms   terms;
    guest        *guests;   /* [MOST_GUESTS] */
    seat_link    *links;    /* [seats] */
    uint32_t      epoch;    /* highest known */
    uint64_t      probe_ns;
    /* calling */
    int32_t         leader;  /* that is called; -1: nobody */
    int             dialled; /* -1 */
    bool            connected;
    uint64_t        redial_ns;
    wefti_handshake shake;
} gather;

/* --- letting in --- */

static weft_status admit(void *context, int32_t seat) {
    const gather *g = context;
    return wefti_frames_are_open(&g->links[seat].frames) ? WEFT_E_AGAIN : WEFT_OK; /* his former self has just died */
}

/* What is said from here on is sealed, where the world encrypts. */
static weft_status open_frames(wefti_handshake *shake, int socket, uint64_t now_ns, wefti_frames *frames) {
    wefti_seal *seal = NULL;
    WEFTI_TRY(wefti_seal_create(shake, &seal));
    wefti_frames_open(frames, socket, FRAME_BYTES, now_ns);
    wefti_frames_encrypt(frames, seal);
    return WEFT_OK;
}

static void drop_guest(guest *it) {
    close(it->socket);
    it->socket = -1;
}

static void accept_guests(gather *g, uint64_t now_ns) {
    for (int n = 0; n < MOST_GUESTS; n++) {
        int accepted = wefti_socket_accept(wefti_door_socket(g->options->door));
        if (accepted < 0) return;
        guest *place = &g->guests[0];
        for (int i = 0; i < MOST_GUESTS && place->socket >= 0; i++)
            if (g->guests[i].socket < 0 || g->guests[i].shake.deadline_ns < place->shake.deadline_ns) place = &g->guests[i];
        if (place->socket >= 0) drop_guest(place);
        place->socket = accepted;
        if (wefti_handshake_answer(&place->shake, &g->terms, accepted, now_ns) != WEFT_OK) drop_guest(place);
    }
}

static void hear_guests(gather *g, uint64_t now_ns) {
    for (int i = 0; i < MOST_GUESTS; i++) {
        guest *it = &g->guests[i];
        if (it->socket < 0) continue;
        weft_status status = wefti_handshake_progress(&it->shake, now_ns);
        if (status == WEFT_E_AGAIN) continue;
        seat_link *link = status == WEFT_OK ? &g->links[it->shake.peer] : NULL;
        if (!link || wefti_frames_are_open(&link->frames)) {
            drop_guest(it);
            continue;
        }
        if (open_frames(&it->shake, it->socket, now_ns, &link->frames) != WEFT_OK) {
            drop_guest(it);
            continue;
        }
        link->said_hello = false;
        it->socket = -1;
    }
}

static void hear_seats(gather *g, uint64_t now_ns) {
    for (int32_t seat = 0; seat < g->options->seats; seat++) {
        seat_link     *link = &g->links[seat];
        wefti_frame    frame;
        const uint8_t *payload;
        if (!wefti_frames_are_open(&link->frames)) continue;
        weft_status status = wefti_frames_next(&link->frames, now_ns, &frame, &payload);
        if (status == WEFT_E_AGAIN) continue;
        if (status == WEFT_OK && frame.kind == GATHER_HELLO && !link->said_hello) {
            link->said_hello = true;
            if (frame.value > g->epoch) g->epoch = frame.value;
            wefti_roster_here(&g->roster, seat);
            continue;
        }
        wefti_frames_close(&link->frames);
        g->roster.seats[seat] = WEFTI_SEAT_EXPECTED; /* it may call again; its door tells whether it lives */
        g->probe_ns = now_ns;
    }
}

/* What a connection that did not come about says of the process at the other end: it has ended where its host refuses. Where nothing
 * answers, it may be alive and cut off. Who takes the call and hangs up is not ready. `error` is errno's. */
static void judge(gather *g, int32_t seat, int error) {
    if (error == ECONNREFUSED) wefti_roster_lost(&g->roster, seat);
    else if (error == ETIMEDOUT || error == EHOSTUNREACH || error == ENETUNREACH || error == EHOSTDOWN)
        g->roster.seats[seat] = WEFTI_SEAT_SILENT;
}

/* Those who do not come. */
static void probe(gather *g, uint64_t now_ns) {
    if (now_ns < g->probe_ns) return;
    g->probe_ns = now_ns + PROBE_NS;
    for (int32_t seat = 0; seat < g->options->seats; seat++) {
        int     socket = -1;
        uint8_t known = g->roster.seats[seat];
        if ((known != WEFTI_SEAT_EXPECTED && known != WEFTI_SEAT_SILENT) || wefti_frames_are_open(&g->links[seat].frames)) continue;
        weft_status status = wefti_socket_dial(&g->options->doors[seat], &socket);
        int         error = errno;
        if (status == WEFT_OK) { /* on one host the answer is there at once; of others it is looked for at the next probe */
            struct pollfd ready = {.fd = socket, .events = POLLOUT};
            poll(&ready, 1, 20);
            status = wefti_socket_connected(socket);
            error = errno;
            close(socket);
        }
        if (status == WEFT_E_LINK) judge(g, seat, error);
    }
}

static void lead(gather *g, uint64_t now_ns) {
    accept_guests(g, now_ns);
    hear_guests(g, now_ns);
    hear_seats(g, now_ns);
    probe(g, now_ns);
}

/* --- calling --- */

static void hang_up(gather *g, uint64_t now_ns) {
    if (g->dialled >= 0) close(g->dialled);
    g->dialled = -1;
    g->connected = false;
    uint64_t wait_ns = REDIAL_NS + (now_ns - g->roster.called_ns) / 8;
    g->redial_ns = now_ns + (wait_ns < REDIAL_MOST_NS ? wait_ns : REDIAL_MOST_NS);
}

static void call(gather *g, int32_t leader, uint64_t now_ns) {
    if (g->leader != leader) {
        hang_up(g, now_ns);
        g->redial_ns = 0;
    }
    g->leader = leader;
    if (g->dialled < 0) {
        if (now_ns < g->redial_ns) return;
        if (wefti_socket_dial(&g->options->doors[leader], &g->dialled) != WEFT_OK) {
            judge(g, leader, errno);
            hang_up(g, now_ns);
            return;
        }
    }
    if (!g->connected) {
        weft_status status = wefti_socket_connected(g->dialled);
        if (status == WEFT_E_AGAIN) return;
        if (status != WEFT_OK) {
            judge(g, leader, errno);
            hang_up(g, now_ns);
            return;
        }
        if (wefti_handshake_call(&g->shake, &g->terms, g->dialled, leader, now_ns) != WEFT_OK) {
            hang_up(g, now_ns);
            return;
        }
        g->connected = true;
    }
    weft_status status = wefti_handshake_progress(&g->shake, now_ns);
    if (status == WEFT_E_AGAIN) return;
    if (status != WEFT_OK) { /* it is not ready, or dies: the next call will tell */
        hang_up(g, now_ns);
        return;
    }
    seat_link *link = &g->links[0];
    if (open_frames(&g->shake, g->dialled, now_ns, &link->frames) != WEFT_OK) {
        hang_up(g, now_ns);
        return;
    }
    g->dialled = -1;
    g->connected = false;
    (void)!wefti_frames_send(&link->frames, (wefti_frame){GATHER_HELLO, 0, g->options->seat, g->epoch}, NULL);
}

static bool take_members(gather *g, const wefti_frame *frame, const uint8_t *payload, wefti_gathering *out) {
    int32_t size = (int32_t)(frame->length / sizeof(int32_t));
    if (frame->kind != GATHER_MEMBERS || frame->length % sizeof(int32_t) || size < 1 || size > g->options->seats) return false;
    if (frame->rank < 0 || frame->rank >= size || frame->value <= g->options->epoch) return false;
    memcpy(out->members, payload, frame->length);
    for (int32_t i = 0; i < size; i++)
        if (out->members[i] < 0 || out->members[i] >= g->options->seats || (i && out->members[i] <= out->members[i - 1])) return false;
    if (out->members[frame->rank] != g->options->seat) return false;
    out->epoch = frame->value;
    out->rank = frame->rank;
    out->size = size;
    return true;
}

/* Waits for the leader's word. WEFT_E_AGAIN: it has not come yet. */
static weft_status hear_leader(gather *g, uint64_t now_ns, wefti_gathering *out) {
    seat_link     *link = &g->links[0];
    wefti_frame    frame;
    const uint8_t *payload;
    weft_status    status = wefti_frames_next(&link->frames, now_ns, &frame, &payload);
    if (status == WEFT_E_AGAIN) return status;
    if (status == WEFT_OK && take_members(g, &frame, payload, out)) return WEFT_OK;
    wefti_frames_close(&link->frames); /* it died, or talks nonsense; the next call will tell */
    g->redial_ns = now_ns + REDIAL_NS;
    return WEFT_E_AGAIN;
}

static weft_status call_leader(gather *g, int32_t leader, uint64_t now_ns, wefti_gathering *out) {
    if (g->leader != leader && wefti_frames_are_open(&g->links[0].frames)) wefti_frames_close(&g->links[0].frames);
    if (wefti_frames_are_open(&g->links[0].frames)) return hear_leader(g, now_ns, out);
    call(g, leader, now_ns);
    return WEFT_E_AGAIN;
}

/* --- deciding --- */

static weft_status decide(gather *g, wefti_gathering *out) {
    out->epoch = g->epoch + 1;
    out->rank = -1;
    for (int32_t seat = 0; seat < g->options->seats; seat++) {
        if (g->roster.seats[seat] != WEFTI_SEAT_HERE) continue;
        if (seat == g->options->seat) out->rank = out->size;
        out->members[out->size++] = seat;
    }
    for (int32_t rank = 0; rank < out->size; rank++) {
        if (rank == out->rank) continue;
        /* One whose connection ends now is found when the ranks join. */
        (void)!wefti_frames_send(&g->links[out->members[rank]].frames,
                                 (wefti_frame){GATHER_MEMBERS, (uint32_t)((size_t)out->size * sizeof(int32_t)), rank, out->epoch},
                                 out->members);
    }
    return WEFT_OK;
}

static weft_status gather_by_roster(gather *g, wefti_gathering *out) {
    const wefti_host *host = g->options->host;
    for (;;) {
        wefti_roster_do what;
        int32_t         leader;
        uint64_t        now_ns = wefti_host_now(host);
        weft_status     status = wefti_roster_progress(&g->roster, now_ns, &what, &leader);
        switch (what) {
        case WEFTI_ROSTER_FAIL: return status;
        case WEFTI_ROSTER_DECIDE: return decide(g, out);
        case WEFTI_ROSTER_LEAD:
            if (wefti_frames_are_open(&g->links[0].frames) && g->leader >= 0) wefti_frames_close(&g->links[0].frames); /* its former leader */
            if (g->leader >= 0) hang_up(g, now_ns);
            g->leader = -1;
            lead(g, now_ns);
            break;
        case WEFTI_ROSTER_CALL: /* who takes this rank for the leader is to call again, until it is, or not */
            wefti_door_hang_up(g->options->door, now_ns);
            if (call_leader(g, leader, now_ns, out) == WEFT_OK) return WEFT_OK;
            break;
        }
        host->sleep(host->context, NAP_NS);
    }
}

/* --- life --- */

static weft_status set_up(gather *g, const wefti_gather_options *options, wefti_gathering *out) {
    const wefti_place *place = options->place;
    size_t             seats = (size_t)options->seats;
    *g = (gather){.options = options, .place = place, .epoch = options->epoch, .leader = -1, .dialled = -1};
    *out = (wefti_gathering){.seats = options->seats};
    g->terms = (wefti_terms){.host = options->host, .purpose = WEFTI_FOR_GATHERING, .rank = options->seat, .size = options->seats,
                             .job = place->job, .secret = place->secret, .secret_bytes = place->secret_bytes, .encrypt = place->encrypt,
                             .admit = admit, .context = g};
    WEFTI_TRY(wefti_alloc(MOST_GUESTS * sizeof *g->guests, "callers", &g->guests));
    for (int i = 0; i < MOST_GUESTS; i++) g->guests[i].socket = -1;
    WEFTI_TRY(wefti_alloc(seats * sizeof *g->links, "connections to ranks", &g->links));
    for (size_t i = 0; i < seats; i++) g->links[i].frames.socket = -1;
    WEFTI_TRY(wefti_alloc(seats * sizeof *out->members, "members", &out->members));
    wefti_roster_open(&g->roster, &(wefti_roster_options){.me = options->seat, .seats = options->seats, .least = options->least,
                                                          .patience_ns = options->patience_ns}, options->known);
    return WEFT_OK;
}

weft_status wefti_gather(const wefti_gather_options *options, wefti_gathering *gathering_out) {
    gather      g;
    weft_status status = set_up(&g, options, gathering_out);
    if (status == WEFT_OK) status = gather_by_roster(&g, gathering_out);
    if (g.dialled >= 0) close(g.dialled);
    for (int i = 0; g.guests && i < MOST_GUESTS; i++)
        if (g.guests[i].socket >= 0) close(g.guests[i].socket);
    for (int32_t i = 0; g.links && i < options->seats; i++) wefti_frames_close(&g.links[i].frames);
    wefti_free(g.guests, MOST_GUESTS * sizeof *g.guests);
    wefti_free(g.links, (size_t)options->seats * sizeof *g.links);
    if (status != WEFT_OK) wefti_gathering_release(gathering_out);
    return status;
}

void wefti_gathering_release(wefti_gathering *gathering) {
    wefti_free(gathering->members, (size_t)gathering->seats * sizeof *gathering->members);
    *gathering = (wefti_gathering){0};
}

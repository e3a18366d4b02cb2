/* Gathering: a loop over the roster that calls or lets in, and tells everyone what was decided.
 *
 *   who comes  → leader: HELLO    value: the last epoch that he knows of; from a newcomer NEW
 *   leader     → each:   MEMBERS  value: the new epoch, rank: his own, payload: the seat of each rank
 *
 * A leader that dies ends its connections, and its callers take the next one; one that dies after it has told some of them is found by
 * these when they join, and they gather again. Epochs only grow: a leader takes one above all that it was told of. Who calls a
 * rank that does not lead is hung up on, and calls again. Memory: a connection a seat. */
#include "transport/gather.h"

#include <string.h>

#include "transport/roster.h"

enum { GATHER_HELLO = 101, GATHER_MEMBERS = 102, GATHER_NEW = 103 };
/* A leader that has not begun to gather is called again soon, and less often the longer it does not. */
#define REDIAL_NS (10 * WEFTI_MILLISECOND_NS)
#define REDIAL_MOST_NS (100 * WEFTI_MILLISECOND_NS)
#define NAP_NS (2 * WEFTI_MILLISECOND_NS)
/* Of calls that the one that should lead does not take, until another one is called, where it may be a newcomer. */
#define PASS_NS (300 * WEFTI_MILLISECOND_NS)
/* Of refusals by all, until a newcomer takes it that nobody is left; and of one who does not answer, until it calls the next. */
#define NOBODY_NS (2 * WEFTI_SECOND_NS)
#define ANNOUNCE_NS WEFTI_SECOND_NS /* in which who is told that a newcomer waits has listened */

/* One who has been let in. */
typedef struct seat_link {
    wefti_frames frames;
    bool         said_hello, is_new;
} seat_link;

struct wefti_gather {
    wefti_gather_options options;
    wefti_roster roster;
    uint8_t     *known;   /* [seats] the roster's */
    seat_link   *links;   /* [seats] */
    int32_t     *members; /* [seats] what was decided */
    uint32_t     epoch;   /* highest known */
    /* calling */
    int32_t      leader;  /* that is called; -1: nobody */
    wefti_frames word;    /* the connection to it, once there is one */
    uint64_t     redial_ns, since_ns; /* `leader` is called since */
    uint64_t     answered_ns;         /* when somebody last showed that he may be alive */
    bool         hung_up;             /* a newcomer's: the one that was called has */
};

/* --- leading --- */

static void let_in(wefti_gather *g, uint64_t now_ns) {
    wefti_frames frames;
    int32_t      seat;
    while (g->options.calls->ops->let_in(g->options.calls, now_ns, &seat, &frames) == WEFT_OK) {
        if (wefti_frames_are_open(&g->links[seat].frames)) { /* his former self has just died, or given up: he is to call again */
            wefti_frames_close(&frames);
            continue;
        }
        g->links[seat] = (seat_link){.frames = frames};
    }
}

static void hear_seats(wefti_gather *g, uint64_t now_ns) {
    for (int32_t seat = 0; seat < g->options.seats; seat++) {
        seat_link     *link = &g->links[seat];
        wefti_frame    frame;
        const uint8_t *payload;
        if (!wefti_frames_are_open(&link->frames)) continue;
        weft_status status = wefti_frames_next(&link->frames, now_ns, &frame, &payload);
        if (status == WEFT_E_AGAIN) continue;
        bool may_come = status == WEFT_OK && (frame.kind == GATHER_HELLO || (frame.kind == GATHER_NEW && g->options.replacement_ns > 0));
        if (may_come && !link->said_hello) {
            link->said_hello = true;
            link->is_new = frame.kind == GATHER_NEW;
            if (frame.value > g->epoch) g->epoch = frame.value;
            wefti_roster_here(&g->roster, seat);
            continue;
        }
        wefti_frames_close(&link->frames);
        if (link->said_hello) g->known[seat] = WEFTI_SEAT_EXPECTED; /* it may call again; its door tells whether it lives */
    }
}

/* What was found of a process that did not come, or does not answer. */
static void judge(wefti_gather *g, int32_t seat, weft_status status) {
    if (status == WEFT_E_PEER) wefti_roster_lost(&g->roster, seat);
    if (status == WEFT_E_TIMEOUT) g->known[seat] = WEFTI_SEAT_SILENT;
}

static void look_for_absent(wefti_gather *g, uint64_t now_ns) {
    for (int32_t seat = 0; seat < g->options.seats; seat++)
        if ((g->known[seat] == WEFTI_SEAT_EXPECTED || g->known[seat] == WEFTI_SEAT_SILENT) && !wefti_frames_are_open(&g->links[seat].frames))
            judge(g, seat, g->options.calls->ops->knock(g->options.calls, seat, now_ns));
}

static void stop_calling(wefti_gather *g) {
    if (wefti_frames_are_open(&g->word)) wefti_frames_close(&g->word);
    g->options.calls->ops->hang_up(g->options.calls);
    g->leader = -1;
}

/* Nobody waits for who will not be started again. */
static void count_gone(wefti_gather *g) {
    const wefti_gather_options *o = &g->options;
    g->roster.gone = 0;
    for (int32_t rank = 0; o->is_gone && o->replacement_ns && rank < o->size; rank++)
        g->roster.gone += g->known[o->members[rank]] == WEFTI_SEAT_EMPTY && o->is_gone(o->context, o->members[rank]);
}

static void lead(wefti_gather *g, uint64_t now_ns) {
    if (g->leader >= 0) stop_calling(g);
    let_in(g, now_ns);
    hear_seats(g, now_ns);
    look_for_absent(g, now_ns);
    count_gone(g);
}

static void decide(wefti_gather *g, wefti_gathering *out) {
    *out = (wefti_gathering){.epoch = g->epoch + 1, .rank = -1, .members = g->members};
    int32_t first = 0; /* whose door is known to be open, and who knows what the others do */
    while (g->known[first] != WEFTI_SEAT_HERE || g->links[first].is_new) first++; /* this rank at the latest */
    g->members[out->size++] = first;
    for (int32_t seat = 0; seat < g->options.seats; seat++)
        if (g->known[seat] == WEFTI_SEAT_HERE && seat != first) g->members[out->size++] = seat;
    for (int32_t rank = 0; rank < out->size; rank++)
        if (g->members[rank] == g->options.seat) out->rank = rank;
    wefti_frame frame = {GATHER_MEMBERS, (uint32_t)((size_t)out->size * sizeof(int32_t)), 0, out->epoch};
    for (; frame.rank < out->size; frame.rank++) /* one whose connection ends now is found when the ranks join */
        if (frame.rank != out->rank) (void)!wefti_frames_send(&g->links[g->members[frame.rank]].frames, frame, g->members);
}

static void fence(const wefti_gather *g) {
    for (int32_t seat = 0; seat < g->options.seats; seat++)
        if (g->known[seat] == WEFTI_SEAT_EXPECTED || g->known[seat] == WEFTI_SEAT_SILENT) g->options.fence(g->options.context, seat);
}

/* --- calling --- */

static void call_again(wefti_gather *g, uint64_t now_ns) {
    uint64_t wait_ns = REDIAL_NS + (now_ns - g->roster.called_ns) / 8;
    g->redial_ns = now_ns + (wait_ns < REDIAL_MOST_NS ? wait_ns : REDIAL_MOST_NS);
}

/* A newcomer's door is open from here on, as long as this connection lives. */
static void say_hello(wefti_gather *g) {
    bool is_new = g->options.open_door != NULL;
    if (is_new && !(g->options.door = g->options.open_door(g->options.context))) wefti_frames_close(&g->word);
    else (void)!wefti_frames_send(&g->word, (wefti_frame){is_new ? GATHER_NEW : GATHER_HELLO, 0, g->options.seat, g->epoch}, NULL);
}

static void call(wefti_gather *g, uint64_t now_ns) {
    if (now_ns < g->redial_ns) return;
    weft_status status = g->options.calls->ops->call(g->options.calls, g->leader, now_ns, &g->word);
    if (status == WEFT_E_AGAIN) { /* who has ended refuses at once: this one may live, stopped */
        if (now_ns - g->since_ns > NOBODY_NS / 4) g->answered_ns = now_ns;
        return;
    }
    if (status != WEFT_E_PEER) g->answered_ns = now_ns;
    if (status == WEFT_OK) {
        say_hello(g);
        return;
    }
    if (status == WEFT_E_LINK && now_ns - g->since_ns > PASS_NS) wefti_roster_pass(&g->roster);
    g->hung_up = status == WEFT_E_LINK && g->options.announcing;
    if (g->hung_up) g->since_ns = now_ns; /* and from now on it is told */
    judge(g, g->leader, status);
    call_again(g, now_ns);
}

static bool take_members(wefti_gather *g, const wefti_frame *frame, const uint8_t *payload, wefti_gathering *out) {
    int32_t size = (int32_t)(frame->length / sizeof(int32_t)), *members = g->members;
    if (frame->kind != GATHER_MEMBERS || frame->length % sizeof(int32_t) || size < 1 || size > g->options.seats) return false;
    if (frame->rank < 0 || frame->rank >= size || frame->value <= g->options.epoch) return false;
    memcpy(members, payload, frame->length);
    for (int32_t i = 0; i < size; i++)
        if (members[i] < 0 || members[i] >= g->options.seats || (i > 1 && members[i] <= members[i - 1]) || (i && members[i] == members[0]))
            return false;
    if (members[frame->rank] != g->options.seat) return false;
    *out = (wefti_gathering){.epoch = frame->value, .rank = frame->rank, .size = size, .members = members};
    return true;
}

/* Waits for the leader's word. WEFT_E_AGAIN: it has not come yet. */
static weft_status hear_leader(wefti_gather *g, uint64_t now_ns, wefti_gathering *out) {
    wefti_frame    frame;
    const uint8_t *payload;
    weft_status    status = wefti_frames_next(&g->word, now_ns, &frame, &payload);
    if (status == WEFT_E_AGAIN) return wefti_frames_flush(&g->word) == WEFT_E_LINK ? WEFT_E_AGAIN : status;
    if (status == WEFT_OK && take_members(g, &frame, payload, out)) return WEFT_OK;
    wefti_frames_close(&g->word); /* it died, or talks nonsense; the next call will tell */
    g->roster.called_ns = now_ns; /* patience with it begins anew */
    g->hung_up = g->options.announcing != NULL;
    call_again(g, now_ns);
    return WEFT_E_AGAIN;
}

static weft_status call_leader(wefti_gather *g, int32_t leader, uint64_t now_ns, wefti_gathering *out) {
    if (g->options.door) wefti_door_hang_up(g->options.door, now_ns); /* on who takes this rank for the leader: it may become it yet */
    if (g->leader != leader) {
        stop_calling(g);
        g->leader = leader;
        g->redial_ns = 0;
        g->since_ns = now_ns;
    }
    if (wefti_frames_are_open(&g->word)) return hear_leader(g, now_ns, out);
    call(g, now_ns);
    return WEFT_E_AGAIN;
}

/* --- a survivor --- */

weft_status wefti_gather_run(wefti_gather *g, wefti_gathering *out) {
    const wefti_host *host = g->options.host;
    for (;;) {
        wefti_roster_do what;
        int32_t         leader;
        uint64_t        now_ns = wefti_host_now(host);
        g->roster.let_in = wefti_frames_are_open(&g->word);
        weft_status     status = wefti_roster_progress(&g->roster, now_ns, &what, &leader);
        switch (what) {
        case WEFTI_ROSTER_FAIL: return status;
        case WEFTI_ROSTER_DECIDE: decide(g, out); return WEFT_OK;
        case WEFTI_ROSTER_FENCE: fence(g); break;
        case WEFTI_ROSTER_LEAD: lead(g, now_ns); break;
        case WEFTI_ROSTER_CALL:
            if (call_leader(g, leader, now_ns, out) == WEFT_OK) return WEFT_OK;
            break;
        }
        host->sleep(host->context, NAP_NS);
    }
}

/* --- a newcomer --- */

static weft_status nobody(const wefti_gather *g, bool all_ended) {
    int32_t seat = g->options.seat;
    if (all_ended)
        return wefti_fail(WEFT_E_PEER, "rank %d was started in place of a lost one, and the processes of all %d other ranks have ended: nobody has the run's "
                          "state any more; start the job again from its checkpoint", (int)seat, (int)g->options.seats - 1);
    return wefti_fail(WEFT_E_PEER, "rank %d was started in place of a lost one, and no other rank let it in within %.3g s: they have gone on without it, or do "
                      "not go on after a fault (weft_world_shrink, weft_fit_options.elastic)", (int)seat, (double)g->options.patience_ns / 1e9);
}

/* Whoever it was does not lead, or not any more. */
static void shut_door(wefti_gather *g) {
    if (g->options.door) g->options.shut_door(g->options.context);
    g->options.door = NULL;
}

/* Tells the one who has just hung up that this rank waits, should it not gather; true once that is over. Who gathers takes no such call. */
static bool announce(wefti_gather *g, int32_t seat, uint64_t now_ns) {
    wefti_calls *calls = g->options.announcing;
    wefti_frames heard;
    weft_status  status = calls->ops->call(calls, seat, now_ns, &heard);
    if (status == WEFT_OK) wefti_frames_close(&heard);
    if (status == WEFT_E_AGAIN && now_ns - g->since_ns < ANNOUNCE_NS) return false;
    calls->ops->hang_up(calls);
    return true;
}

weft_status wefti_gather_run_newcomer(wefti_gather *g, wefti_gathering *out) {
    const wefti_host *host = g->options.host;
    uint64_t          begin_ns = wefti_host_now(host);
    int32_t           seat = g->options.seat;
    g->answered_ns = begin_ns;
    for (;;) {
        uint64_t now_ns = wefti_host_now(host);
        if (now_ns - g->answered_ns > NOBODY_NS) return nobody(g, true);
        if (now_ns - begin_ns > g->options.patience_ns) return nobody(g, false);
        bool in = wefti_frames_are_open(&g->word);
        if (in) g->answered_ns = now_ns;
        if (!in && g->options.door) shut_door(g);
        if (!in && (g->leader < 0 || g->redial_ns > now_ns || now_ns - g->since_ns > NOBODY_NS)) {
            if (g->hung_up && !announce(g, seat, now_ns)) {
                host->sleep(host->context, NAP_NS);
                continue;
            }
            g->hung_up = false;
            do seat = (seat + 1) % g->options.seats;
            while (seat == g->options.seat);
            stop_calling(g);
        }
        if (call_leader(g, seat, now_ns, out) == WEFT_OK) return WEFT_OK;
        host->sleep(host->context, NAP_NS);
    }
}

/* --- life --- */

weft_status wefti_gather_open(const wefti_gather_options *options, wefti_gather **gather_out) {
    size_t        seats = (size_t)options->seats;
    wefti_gather *g = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *g, "gathering", &g));
    *g = (wefti_gather){.options = *options, .epoch = options->epoch, .leader = -1, .word = {.socket = -1}};
    weft_status status = wefti_alloc(seats * sizeof *g->links, "connections to ranks", &g->links);
    for (size_t i = 0; i < seats && status == WEFT_OK; i++) g->links[i].frames.socket = -1;
    if (status == WEFT_OK) status = wefti_alloc(seats * sizeof *g->members, "members", &g->members);
    if (status == WEFT_OK) status = wefti_alloc(seats, "survivors", &g->known); /* all empty */
    if (status != WEFT_OK) {
        wefti_gather_close(g);
        return status;
    }
    for (int32_t rank = 0; rank < options->size; rank++)
        g->known[options->members[rank]] = rank == options->blamed ? WEFTI_SEAT_SILENT : WEFTI_SEAT_EXPECTED;
    wefti_roster_open(&g->roster, &(wefti_roster_options){.me = options->seat, .seats = options->seats, .least = options->least,
                                                          .patience_ns = options->patience_ns,
                                                          .replacement_ns = options->replacement_ns,
                                                          .newcomers = options->newcomers, .fence = options->fence != NULL}, g->known);
    *gather_out = g;
    return WEFT_OK;
}

bool wefti_gather_left_behind(const wefti_gather *g) { return g->roster.left_behind; }

void wefti_gather_close(wefti_gather *g) {
    if (!g) return;
    if (wefti_frames_are_open(&g->word)) wefti_frames_close(&g->word);
    for (int32_t i = 0; g->links && i < g->options.seats; i++) wefti_frames_close(&g->links[i].frames);
    wefti_free(g->links, (size_t)g->options.seats * sizeof *g->links);
    wefti_free(g->members, (size_t)g->options.seats * sizeof *g->members);
    wefti_free(g->known, (size_t)g->options.seats);
    wefti_free(g, sizeof *g);
}

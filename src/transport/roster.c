/* The decision. The lowest seat that is not known to be lost leads; everybody calls whom he takes for it, and takes the next once that one
 * is lost. The leader goes on with those who are here as soon as nobody is expected any more who has not come.
 *
 * Who is lost: one whose host refuses connections to its door (its process has ended), one whose connection ends. Who is merely silent
 * may be cut off, with others who think the same of us: so a leader goes on only with more than half of all who may be alive. Who is
 * expected is waited for with patience, and counts as silent after it. Where other processes are started in place of lost ones, their seats are
 * waited for too: a newcomer comes in by calling, leads nothing, and opens its door when it has been let in; until then it is not there.
 *
 * Where somebody can end processes, those who live and do not come are ended, by half of all or more, and then are lost as others are: so nobody goes on
 * beside the new world, and one of two can go on. */
#include "transport/roster.h"

#define LOOK_NS WEFTI_SECOND_NS        /* in which it is found whose process lives */
#define FENCE_NS (3 * WEFTI_SECOND_NS) /* in which whoever is ended is found to be */

void wefti_roster_open(wefti_roster *roster, const wefti_roster_options *options, uint8_t *seats) {
    *roster = (wefti_roster){.options = *options, .seats = seats, .called = -1};
    seats[options->me] = WEFTI_SEAT_HERE;
    roster->taken = options->seats - wefti_roster_count(roster, WEFTI_SEAT_EMPTY) + options->newcomers;
}

void wefti_roster_here(wefti_roster *roster, int32_t seat) { roster->seats[seat] = WEFTI_SEAT_HERE; }

void wefti_roster_lost(wefti_roster *roster, int32_t seat) {
    if (seat != roster->options.me) roster->seats[seat] = WEFTI_SEAT_EMPTY;
}

int32_t wefti_roster_count(const wefti_roster *roster, wefti_seat state) {
    int32_t count = 0;
    for (int32_t i = 0; i < roster->options.seats; i++) count += roster->seats[i] == state;
    return count;
}

/* When those who live and do not come are ended, once, counted from when this rank began to lead: when nobody is expected any more, and it is known
 * who lives, or somebody was expected for long enough. 0: they are not. */
static uint64_t fence_after(const wefti_roster *roster, int32_t here, int32_t alive) {
    if (!roster->options.fence || roster->fenced_ns || here == alive || 2 * here < alive) return 0;
    return wefti_roster_count(roster, WEFTI_SEAT_EXPECTED) ? roster->options.patience_ns : LOOK_NS;
}

static weft_status lead(wefti_roster *roster, uint64_t now_ns, wefti_roster_do *do_out) {
    const wefti_roster_options *options = &roster->options;
    if (roster->leads_ns == 0) roster->leads_ns = now_ns ? now_ns : 1;
    int32_t here = wefti_roster_count(roster, WEFTI_SEAT_HERE), expected = wefti_roster_count(roster, WEFTI_SEAT_EXPECTED);
    int32_t alive = here + expected + wefti_roster_count(roster, WEFTI_SEAT_SILENT);
    bool    may = 2 * here > alive;
    *do_out = WEFTI_ROSTER_LEAD;
    uint64_t fence_ns = fence_after(roster, here, alive);
    if (fence_ns) {
        bool due = now_ns - roster->leads_ns >= fence_ns;
        if (due) roster->fenced_ns = now_ns;
        if (due) *do_out = WEFTI_ROSTER_FENCE;
        return WEFT_OK;
    }
    if (roster->fenced_ns && here < alive && now_ns - roster->fenced_ns < FENCE_NS) return WEFT_OK;
    uint64_t since_ns = roster->fenced_ns ? roster->fenced_ns : roster->leads_ns;
    if (here < roster->taken - roster->gone && now_ns - since_ns < options->replacement_ns) return WEFT_OK;
    /* A majority that is missing may turn out to be dead: its doors are tried as long as there is patience. */
    if ((expected || !may) && now_ns - roster->leads_ns < options->patience_ns) return WEFT_OK;
    *do_out = WEFTI_ROSTER_FAIL;
    roster->left_behind = 2 * (alive - here) > alive;
    if (!may)
        return wefti_fail(WEFT_E_PEER, "%d of %d ranks whose processes may be alive came within %.3g s, and the others may be going on without "
                          "them: only more than half may", (int)here, (int)alive, (double)options->patience_ns / 1e9);
    if (here < options->least)
        return wefti_fail(WEFT_E_PEER, "%d rank%s left, fewer than the %d that are to go on", (int)here, here == 1 ? " is" : "s are",
                          (int)options->least);
    *do_out = WEFTI_ROSTER_DECIDE;
    return WEFT_OK;
}

/* Who has let somebody in does not send him away. */
static int32_t find_leader(const wefti_roster *roster) {
    int32_t me = roster->options.me, candidates = 0;
    if (roster->leads_ns) return me;
    for (int32_t seat = 0; seat < me; seat++) candidates += roster->seats[seat] == WEFTI_SEAT_EXPECTED;
    int32_t wanted = candidates ? roster->passed % candidates : 0;
    for (int32_t seat = 0; seat < me; seat++)
        if (roster->seats[seat] == WEFTI_SEAT_EXPECTED && wanted-- == 0) return seat;
    return me;
}

void wefti_roster_pass(wefti_roster *roster) {
    if (!roster->options.replacement_ns || roster->called < 0) return;
    roster->passed++;
    roster->called = find_leader(roster); /* as one: patience is with all of them */
}

weft_status wefti_roster_progress(wefti_roster *roster, uint64_t now_ns, wefti_roster_do *do_out, int32_t *leader_out) {
    const wefti_roster_options *options = &roster->options;
    int32_t                     leader = find_leader(roster);
    *leader_out = leader;
    if (leader == options->me) return lead(roster, now_ns, do_out);
    if (roster->called != leader) {
        roster->called = leader;
        roster->called_ns = now_ns;
    }
    /* A leader who has let this rank in may wait as long itself, and a little longer. The lowest is who should have: all wait for the same one. */
    uint64_t leads_ns = options->replacement_ns + WEFTI_SECOND_NS + (options->fence ? FENCE_NS : 0);
    if (now_ns - roster->called_ns > options->patience_ns + (roster->let_in || !options->replacement_ns ? leads_ns : 0)) {
        int32_t lowest = 0;
        while (roster->seats[lowest] != WEFTI_SEAT_EXPECTED) lowest++;
        roster->seats[roster->let_in ? leader : lowest] = WEFTI_SEAT_SILENT;
        roster->called = -1;
        return wefti_roster_progress(roster, now_ns, do_out, leader_out);
    }
    *do_out = WEFTI_ROSTER_CALL;
    return WEFT_OK;
}

/* Where boxes, bars and arrows stand: lanes are gone through together as ranks would run, so that what is received stands below what was sent, and a
 * collective at one height on all its members.
 *
 * Ranks wait for nothing when they start a collective; where lanes that meet at bars would wait for one another in a circle, a bar is left to stand
 * at different heights. */
#include <math.h>
#include <string.h>

#include "core/graph/graph.h"
#include "train/draw.h"

#define GAP 16.0        /* between two boxes */
#define LEAST_HEIGHT 34.0
#define MORE_HEIGHT 42.0 /* of the box with most to do */
#define BAR_HEIGHT 20.0
#define SLOPE 14.0      /* that an arrow falls at least */

typedef struct cursor {
    int32_t at, slot; /* the next event; boxes and bars so far */
    double  y;        /* where the next box begins */
} cursor;

typedef struct sent {
    int32_t from, to, op, sequence;
    uint64_t members;
    int32_t slot;
    double  y;
} sent;

/* Something that a lane went on without: what another lane sends later in the picture. */
typedef struct missed {
    int32_t lane, slot;
    double  y;
    wefti_draw_event event;
} missed;

typedef struct layout {
    wefti_draw_scene *scene;
    cursor            cursors[WEFTI_DRAW_RANKS];
    sent             *sent;
    missed           *missed;
    int32_t           n_sent, sent_room, n_missed, missed_room;
    double            most_flops;
} layout;

static weft_status room(void *array, int32_t n, int32_t *have, size_t each) {
    if (n < *have) return WEFT_OK;
    int32_t wider = *have ? 2 * *have : 64;
    WEFTI_TRY(wefti_grow(array, (size_t)*have * each, (size_t)wider * each, "a drawing"));
    *have = wider;
    return WEFT_OK;
}

static int32_t lane_of(const wefti_draw_scene *scene, int32_t rank) {
    for (int32_t l = 0; l < scene->n_lanes; l++)
        if (scene->lanes[l].head.rank == rank) return l;
    return -1;
}

/* --- boxes --- */

static weft_status put_box(layout *o, int32_t l, const wefti_draw_event *event) {
    wefti_draw_scene *s = o->scene;
    cursor           *c = &o->cursors[l];
    WEFTI_TRY(room(&s->boxes, s->n_boxes, &s->boxes_room, sizeof *s->boxes));
    double          share = o->most_flops > 0 ? event->flops / o->most_flops : 0;
    wefti_draw_box *box = &s->boxes[s->n_boxes++];
    *box = (wefti_draw_box){.lane = l, .pass = event->pass, .micro = event->micro, .count = event->count, .flops = event->flops, .y = c->y,
                            .height = LEAST_HEIGHT + MORE_HEIGHT * share};
    memcpy(box->name, event->name, sizeof box->name);
    c->y += box->height + GAP;
    c->slot++;
    return WEFT_OK;
}

/* --- messages between two --- */

static weft_status add_arrow(wefti_draw_scene *s, wefti_draw_arrow arrow) {
    for (int32_t i = s->n_arrows - 1; i >= 0 && i >= s->n_arrows - 64; i--) {
        wefti_draw_arrow *other = &s->arrows[i];
        if (other->from != arrow.from || other->to != arrow.to || other->rank != arrow.rank || other->from_slot != arrow.from_slot ||
            other->to_slot != arrow.to_slot) continue;
        other->count += arrow.count;
        other->bytes += arrow.bytes;
        other->to_y = fmax(other->to_y, arrow.to_y);
        return WEFT_OK;
    }
    WEFTI_TRY(room(&s->arrows, s->n_arrows, &s->arrows_room, sizeof *s->arrows));
    s->arrows[s->n_arrows++] = arrow;
    return WEFT_OK;
}

static weft_status send(layout *o, int32_t l, const wefti_draw_event *event) {
    cursor *c = &o->cursors[l];
    int32_t to = lane_of(o->scene, event->peer);
    if (to < 0)
        return add_arrow(o->scene, (wefti_draw_arrow){.from = l, .to = -1, .rank = event->peer, .count = event->count, .from_slot = c->slot, .to_slot = -1,
                                                      .bytes = event->bytes, .from_y = c->y - GAP / 2, .to_y = c->y - GAP / 2});
    WEFTI_TRY(room(&o->sent, o->n_sent, &o->sent_room, sizeof *o->sent));
    o->sent[o->n_sent++] = (sent){l, to, (int32_t)WEFT_OP_SEND, event->sequence, event->members, c->slot, c->y - GAP / 2};
    return WEFT_OK;
}

/* What was sent for this one; NULL: not yet. */
static const sent *sent_for(const layout *o, int32_t l, const wefti_draw_event *event) {
    int32_t from = lane_of(o->scene, event->peer);
    for (int32_t i = 0; i < o->n_sent; i++)
        if (o->sent[i].from == from && o->sent[i].to == l && o->sent[i].sequence == event->sequence && o->sent[i].members == event->members) return &o->sent[i];
    return NULL;
}

static weft_status join(layout *o, int32_t l, int32_t slot, double y, const wefti_draw_event *event, const sent *from) {
    wefti_draw_arrow arrow = {.from = from ? from->from : -1, .to = l, .rank = from ? 0 : event->peer, .count = event->count, .from_slot = from ? from->slot : -1,
                              .to_slot = slot, .bytes = event->bytes, .from_y = from ? from->y : y, .to_y = y};
    return add_arrow(o->scene, arrow);
}

static weft_status receive(layout *o, int32_t l, const wefti_draw_event *event, const sent *from) {
    cursor *c = &o->cursors[l];
    if (from) c->y = fmax(c->y, from->y + SLOPE + GAP / 2);
    if (from || lane_of(o->scene, event->peer) < 0) return join(o, l, c->slot, c->y - GAP / 2, event, from);
    WEFTI_TRY(room(&o->missed, o->n_missed, &o->missed_room, sizeof *o->missed));
    o->missed[o->n_missed++] = (missed){l, c->slot, c->y - GAP / 2, *event};
    return WEFT_OK;
}

static weft_status find_missed(layout *o) {
    for (int32_t i = 0; i < o->n_missed; i++) {
        const missed *m = &o->missed[i];
        WEFTI_TRY(join(o, m->lane, m->slot, m->y, &m->event, sent_for(o, m->lane, &m->event)));
    }
    return WEFT_OK;
}

/* --- collectives --- */

static wefti_draw_bar *find_bar(wefti_draw_scene *s, const wefti_draw_event *event) {
    for (int32_t i = s->n_bars - 1; i >= 0; i--)
        if (s->bars[i].members == event->members && s->bars[i].sequence == event->sequence) return &s->bars[i];
    return NULL;
}

/* Whether all members that are drawn stand before this bar now. */
static bool all_are_there(const layout *o, const wefti_draw_event *event) {
    for (int32_t l = 0; l < o->scene->n_lanes; l++) {
        const wefti_draw_lane *lane = &o->scene->lanes[l];
        if (!(event->members >> lane->head.rank & 1)) continue;
        if (o->cursors[l].at >= lane->head.n_events) return false;
        const wefti_draw_event *other = &lane->events[o->cursors[l].at];
        if (other->kind != WEFTI_DRAW_START || other->peer >= 0 || other->members != event->members || other->sequence != event->sequence) return false;
    }
    return true;
}

static weft_status put_bar(layout *o, int32_t l, const wefti_draw_event *event, double y) {
    wefti_draw_scene *s = o->scene;
    wefti_draw_bar   *bar = find_bar(s, event);
    if (!bar) {
        WEFTI_TRY(room(&s->bars, s->n_bars, &s->bars_room, sizeof *s->bars));
        bar = &s->bars[s->n_bars++];
        *bar = (wefti_draw_bar){.axis = event->axis, .op = event->op, .count = event->count, .sequence = event->sequence, .members = event->members, .bytes = event->bytes};
    }
    bar->begun[l] = true;
    bar->y[l] = bar->until[l] = y;
    o->cursors[l].y = y + BAR_HEIGHT + GAP;
    o->cursors[l].slot++;
    return WEFT_OK;
}

/* Where no bar of other members goes the same way (each try is lower by a pixel at least): between two of them, behind who is no member, lies a link. */
static double free_height(const layout *o, const wefti_draw_event *event, double y) {
    int32_t first = WEFTI_DRAW_RANKS, last = -1;
    for (int32_t l = 0; l < o->scene->n_lanes; l++) {
        if (!(event->members >> o->scene->lanes[l].head.rank & 1)) continue;
        if (first > l) first = l;
        last = l;
    }
    for (int32_t i = o->scene->n_bars - 1; i >= 0 && i >= o->scene->n_bars - 2 * WEFTI_DRAW_RANKS; i--) {
        const wefti_draw_bar *bar = &o->scene->bars[i];
        int32_t               from = WEFTI_DRAW_RANKS, to = -1;
        double                at = 0;
        for (int32_t l = 0; l < o->scene->n_lanes; l++) {
            if (!bar->begun[l]) continue;
            if (from > l) from = l;
            to = l;
            at = bar->y[l];
        }
        if (from < last && to > first && fabs(at - y) < BAR_HEIGHT + 5) return free_height(o, event, at + BAR_HEIGHT + 6);
    }
    return y;
}

static weft_status meet(layout *o, const wefti_draw_event *event) {
    double y = 0;
    for (int32_t l = 0; l < o->scene->n_lanes; l++)
        if (event->members >> o->scene->lanes[l].head.rank & 1) y = fmax(y, o->cursors[l].y);
    y = free_height(o, event, y);
    for (int32_t l = 0; l < o->scene->n_lanes; l++) {
        if (!(event->members >> o->scene->lanes[l].head.rank & 1)) continue;
        WEFTI_TRY(put_bar(o, l, &o->scene->lanes[l].events[o->cursors[l].at], y));
        o->cursors[l].at++;
    }
    return WEFT_OK;
}

/* Where the lane goes on with what message `number` brings. Merged ones bear the number of the first. */
static void end_bar(layout *o, int32_t l, int32_t number) {
    const wefti_draw_lane  *lane = &o->scene->lanes[l];
    const wefti_draw_event *start = NULL;
    for (int32_t i = 0; i < o->cursors[l].at; i++)
        if (lane->events[i].kind == WEFTI_DRAW_START && lane->events[i].message == number) start = &lane->events[i];
    wefti_draw_bar *bar = start ? find_bar(o->scene, start) : NULL;
    if (bar && bar->begun[l]) bar->until[l] = fmax(bar->until[l], o->cursors[l].y - GAP / 2);
}

/* --- all lanes --- */

/* How long lanes wait for one another: where all would for ever, one goes on without what it is to receive, and else without meeting others at a bar. */
typedef enum patience { MEETS_NOBODY, RECEIVES_NOTHING, WAITS } patience;

/* Goes on in a lane; false where it waits for another one. */
static bool advance(layout *o, int32_t l, patience how, weft_status *status) {
    cursor                 *c = &o->cursors[l];
    const wefti_draw_event *event = &o->scene->lanes[l].events[c->at];
    if (event->kind == WEFTI_DRAW_OPS) {
        *status = put_box(o, l, event);
    } else if (event->peer >= 0 && event->kind == WEFTI_DRAW_START) {
        if (event->op == WEFT_OP_SEND) *status = send(o, l, event);
    } else if (event->peer >= 0) {
        const sent *from = event->op == WEFT_OP_RECEIVE ? sent_for(o, l, event) : NULL;
        if (event->op == WEFT_OP_RECEIVE && !from && how == WAITS && lane_of(o->scene, event->peer) >= 0) return false;
        if (event->op == WEFT_OP_RECEIVE) *status = receive(o, l, event, from);
    } else if (event->kind == WEFTI_DRAW_START) {
        if (all_are_there(o, event)) {
            *status = meet(o, event);
            return true;
        }
        if (how != MEETS_NOBODY) return false;
        *status = put_bar(o, l, event, c->y);
    } else {
        end_bar(o, l, event->message);
    }
    c->at++;
    return true;
}

static weft_status run_lanes(layout *o) {
    weft_status status = WEFT_OK;
    patience    how = WAITS;
    for (bool left = true; left && status == WEFT_OK;) {
        bool moved = false;
        left = false;
        for (int32_t l = 0; l < o->scene->n_lanes; l++) {
            while (o->cursors[l].at < o->scene->lanes[l].head.n_events && status == WEFT_OK && (how == WAITS || !moved) && advance(o, l, how, &status)) moved = true;
            left = left || o->cursors[l].at < o->scene->lanes[l].head.n_events;
        }
        how = moved ? WAITS : how == WAITS ? RECEIVES_NOTHING : MEETS_NOBODY;
    }
    return status == WEFT_OK ? find_missed(o) : status;
}

/* Receives are waited for by their number; a wait has the sequence of its start. */
static void number_waits(wefti_draw_lane *lane) {
    for (int32_t i = 0; i < lane->head.n_events; i++) {
        if (lane->events[i].kind != WEFTI_DRAW_WAIT || lane->events[i].peer < 0) continue;
        for (int32_t k = 0; k < i; k++)
            if (lane->events[k].kind == WEFTI_DRAW_START && lane->events[k].message == lane->events[i].message) lane->events[i].sequence = lane->events[k].sequence;
    }
}

weft_status wefti_draw_lay_out(wefti_draw_scene *scene, int32_t most) {
    layout o = {.scene = scene};
    for (int32_t l = 0; l < scene->n_lanes; l++) number_waits(&scene->lanes[l]);
    WEFTI_TRY(wefti_draw_merge(scene, most));
    for (int32_t l = 0; l < scene->n_lanes; l++)
        for (int32_t i = 0; i < scene->lanes[l].head.n_events; i++) o.most_flops = fmax(o.most_flops, scene->lanes[l].events[i].flops);
    weft_status status = run_lanes(&o);
    for (int32_t l = 0; l < scene->n_lanes; l++) scene->bottom = fmax(scene->bottom, o.cursors[l].y);
    wefti_free(o.sent, (size_t)o.sent_room * sizeof *o.sent);
    wefti_free(o.missed, (size_t)o.missed_room * sizeof *o.missed);
    return status;
}

void wefti_draw_scene_release(wefti_draw_scene *scene) {
    wefti_free(scene->boxes, (size_t)scene->boxes_room * sizeof *scene->boxes);
    wefti_free(scene->arrows, (size_t)scene->arrows_room * sizeof *scene->arrows);
    wefti_free(scene->bars, (size_t)scene->bars_room * sizeof *scene->bars);
    *scene = (wefti_draw_scene){.lanes = NULL};
}

/* Going on in another world: what a rank keeps, and how ranks agree on what was kept last.
 *
 * Idea. A step updates variables in place, and solver states in parts that other ranks own, so a step that a fault ended leaves them torn. Each
 * rank therefore copies all of them, whole, to its own memory between steps: the parts of others it loads from their memory, which stays mapped
 * after they died and which they do not change before this rank takes part in the next step. Any one survivor is enough to go on.
 *
 * Invariants. `latest` is always of one step, as all ranks had it after that step: a copy is made in `spare` and takes its place when it is
 * whole. Survivors may have kept different steps; all go on from the highest. A renewed trainer has the variables, solver states, step and
 * loader of that copy to the bit. On an error the trainer is where it was, and may be renewed again.
 *
 * Where ranks have parts of the run (save_split.c), each keeps its own, and so do those who have the same: all is there as long as of those who
 * differ along data alone one is left. A rank may come to another place, and then gets what belongs there from somebody who kept it.
 *
 * Cost: two copies of the variables a rank; a copy's time each time it is kept; renewing broadcasts one. */
#include <string.h>

#include "core/iface/collective.h"
#include "train/trainer.h"

typedef struct wefti_kept {
    wefti_snapshot latest, spare;
    bool           any;    /* latest holds something */
    bool           before; /* spare holds what was the latest before */
} kept;

void wefti_kept_release(kept *k) {
    if (!k) return;
    wefti_snapshot_close(&k->latest);
    wefti_snapshot_close(&k->spare);
    wefti_free(k, sizeof *k);
}

/* --- keeping --- */

static weft_status open_spare(weft_trainer *trainer) {
    if (!trainer->kept) WEFTI_TRY(wefti_alloc(sizeof *trainer->kept, "a run's latest state", &trainer->kept));
    wefti_snapshot *spare = &trainer->kept->spare;
    trainer->kept->before = false;
    if (!spare->bytes || spare->size_bytes != wefti_snapshot_size(trainer, false)) {
        wefti_snapshot_close(spare);
        WEFTI_TRY(wefti_snapshot_open(trainer, false, spare));
    }
    spare->place = wefti_parts_place(trainer, trainer->world->rank);
    return wefti_parts_layout(trainer, &spare->layout);
}

static void take_spare(kept *k) {
    wefti_snapshot fresh = k->spare;
    k->spare = k->latest;
    k->latest = fresh;
    k->before = k->any;
    k->any = true;
}

weft_status wefti_snapshot_take(weft_trainer *trainer, const weft_loader *loader, wefti_snapshot *s) {
    size_t  at = 0;
    int32_t n = weft_variables_count(trainer->variables);
    memset(&s->numbers, 0, sizeof s->numbers);
    for (int32_t i = 0; i < n; i++) {
        weft_variable_info info;
        if (!wefti_snapshot_holds(trainer, s->bases, i, &info)) continue;
        WEFTI_TRY(wefti_variables_take(trainer->variables, i, s->bytes + at));
        at = wefti_snapshot_next(at, info.bytes);
    }
    if (trainer->lbfgs) {
        wefti_lbfgs_state state = wefti_lbfgs_state_of(trainer->lbfgs);
        memcpy(s->bytes + at, state.values, (size_t)state.n_values * sizeof(double));
        s->numbers.lbfgs_used = *state.used;
        s->numbers.lbfgs_next = *state.next;
    }
    s->numbers.step = trainer->steps;
    s->numbers.scale = trainer->scale;
    s->numbers.sums = trainer->sums;
    s->numbers.has_loader = loader != NULL;
    if (loader) weft_loader_save(loader, &s->numbers.loader);
    return WEFT_OK;
}

static weft_status check_kind(const weft_trainer *trainer, const char *call) {
    if (trainer->zero.stage > 0)
        return wefti_fail(WEFT_E_UNSUPPORTED, "%s: with strategy.zero = %d nobody has a lost rank's part of the run: go on from a checkpoint", call,
                          trainer->program.strategy.zero);
    for (int32_t i = 0; i < trainer->splits.n; i++)
        if (trainer->splits.list[i].along != WEFTI_MESH_TENSOR)
            return wefti_fail(WEFT_E_UNSUPPORTED, "%s: with strategy.%s = %d nobody takes a lost rank's place yet: go on from a checkpoint", call,
                              wefti_mesh_name(trainer->splits.list[i].along), trainer->splits.list[i].ranks);
    if (trainer->program.strategy.sync == WEFT_ALLREDUCE) return WEFT_OK;
    return wefti_fail(WEFT_E_UNSUPPORTED, "%s: with a parameter server (strategy.sync) the state lies on its servers, and nothing is kept beside: with .replicas steps and "
                      "weft_trainer_renew go on without a rank, else from a checkpoint", call);
}

weft_status weft_trainer_keep(weft_trainer *trainer, const weft_loader *loader) {
    if (!trainer) return wefti_fail(WEFT_E_INVALID, "weft_trainer_keep: the trainer is NULL");
    WEFTI_TRY(check_kind(trainer, "weft_trainer_keep"));
    WEFTI_TRY(open_spare(trainer));
    WEFTI_TRY(wefti_snapshot_take(trainer, loader, &trainer->kept->spare));
    take_spare(trainer->kept);
    return WEFT_OK;
}

int64_t weft_trainer_kept(const weft_trainer *trainer) {
    return trainer && trainer->kept && trainer->kept->any ? trainer->kept->latest.numbers.step : -1;
}

/* --- renewing --- */

/* What each rank says of its copy. */
typedef struct offer {
    int64_t step; /* -1: none */
    int64_t size_bytes, has_loader, place;
    int64_t layout;
} offer;

/* Ranks' offers, and of the chosen step who gives the parts of each place; all ranks see the same, and decide alike. Each offers its latest copy and the one
 * before: a fault may come when some have ended a step and others have not. */
typedef struct market {
    offer   *all;  /* [size * 2] */
    int32_t *from; /* [places] of all */
    int32_t  size, places;
    int64_t  step;
} market;

/* Fills `from` for that step; false: some place has nobody. */
static bool find_givers(market *m, int64_t step) {
    for (int32_t p = 0; p < m->places; p++) {
        m->from[p] = -1;
        for (int32_t o = 2 * m->size - 1; o >= 0; o--)
            if (m->all[o].step == step && m->all[o].place == p) m->from[p] = o;
        if (m->from[p] < 0) return false;
    }
    return true;
}

/* The highest step of which all parts are there. */
static bool find_step(market *m) {
    for (m->step = INT64_MAX;;) {
        int64_t next = -1;
        for (int32_t o = 0; o < 2 * m->size; o++)
            if (m->all[o].step < m->step && m->all[o].step > next) next = m->all[o].step;
        m->step = next;
        if (next < 0 || find_givers(m, next)) return next >= 0;
    }
}

static weft_status judge_offers(const weft_trainer *trainer, market *m, bool wants_loader) {
    uint64_t layout;
    WEFTI_TRY(wefti_parts_layout(trainer, &layout));
    if (!find_step(m))
        return wefti_fail(WEFT_E_NOT_FOUND, "weft_trainer_renew: none of the %d ranks has kept a state of the run (weft_trainer_keep)%s: begin anew, or "
                          "load a checkpoint", (int)m->size, m->places > 1 ? ", or nobody kept some part of it" : "");
    for (int32_t p = 0; p < m->places; p++) {
        const offer *one = &m->all[m->from[p]];
        if (one->layout != (int64_t)layout)
            return wefti_fail(WEFT_E_MISMATCH, "weft_trainer_renew: rank %d kept parts that were dealt out in another way than the %d ranks here deal them out: load a "
                              "checkpoint, which goes on under any mesh", (int)m->from[p] / 2, (int)m->size);
        if (p == wefti_parts_place(trainer, trainer->world->rank) && one->size_bytes != (int64_t)wefti_snapshot_size(trainer, false))
            return wefti_fail(WEFT_E_MISMATCH, "weft_trainer_renew: rank %d kept %lld bytes at step %lld, and the program takes %lld", (int)m->from[p] / 2,
                              (long long)one->size_bytes, (long long)m->step, (long long)wefti_snapshot_size(trainer, false));
        if (wants_loader && !one->has_loader)
            return wefti_fail(WEFT_E_MISMATCH, "weft_trainer_renew: rank %d kept step %lld without a loader, so where the data stood is not known: give the "
                              "loader to weft_trainer_keep", (int)m->from[p] / 2, (long long)m->step);
    }
    return WEFT_OK;
}

static void close_market(market *m) {
    wefti_free(m->all, (size_t)m->size * 2 * sizeof *m->all);
    wefti_free(m->from, (size_t)m->places * sizeof *m->from);
}

static offer offer_of(const wefti_snapshot *s) {
    return (offer){s->numbers.step, (int64_t)s->size_bytes, s->numbers.has_loader, s->place, (int64_t)s->layout};
}

static weft_status open_market(const weft_trainer *trainer, market *m) {
    weft_world *world = trainer->world;
    const kept *k = trainer->kept;
    offer      *mine;
    *m = (market){.size = world->size, .places = wefti_parts_count(trainer)};
    WEFTI_TRY(wefti_alloc((size_t)m->size * 2 * sizeof *m->all, "the ranks' copies", &m->all));
    WEFTI_TRY(wefti_alloc((size_t)m->places * sizeof *m->from, "the ranks' copies", &m->from));
    mine = &m->all[2 * world->rank];
    mine[0] = k && k->any ? offer_of(&k->latest) : (offer){.step = -1};
    mine[1] = k && k->before ? offer_of(&k->spare) : (offer){.step = -1};
    wefti_collective_call call = {.kind = WEFTI_ALLGATHER, .dtype = WEFT_I64, .send = mine, .receive = m->all, .count = 2 * sizeof *mine / sizeof(int64_t)};
    return world->size > 1 ? wefti_collective_run(world->group, &call) : WEFT_OK;
}

/* Which of its own two copies a rank goes on from, and nobody then writes to; -1: it needs another's. */
static int32_t own_of(const weft_trainer *trainer, const market *m, int32_t rank) {
    if (!wefti_in_parts(trainer)) return rank == m->from[0] / 2 ? m->from[0] % 2 : -1;
    for (int32_t i = 0; i < 2; i++)
        if (m->all[2 * rank + i].step == m->step && m->all[2 * rank + i].place == wefti_parts_place(trainer, rank)) return i;
    return -1;
}

static wefti_snapshot *copy_of(kept *k, int32_t which) { return which == 0 ? &k->latest : &k->spare; }

/* Parts go to those who need them, one rank after another, and the numbers to all. */
static weft_status hand_out(weft_trainer *trainer, const market *m, wefti_snapshot *copy) {
    weft_world *world = trainer->world;
    for (int32_t r = 0; r < m->size; r++) {
        int32_t from = m->from[wefti_parts_place(trainer, r)];
        if (own_of(trainer, m, r) >= 0 || (world->rank != r && world->rank != from / 2)) continue;
        wefti_snapshot       *s = world->rank == r ? copy : copy_of(trainer->kept, from % 2);
        wefti_collective_call call = {.kind = world->rank == r ? WEFTI_RECEIVE : WEFTI_SEND, .dtype = WEFT_U8, .root = world->rank == r ? from / 2 : r,
                                      .send = s->bytes, .receive = s->bytes, .count = s->size_bytes};
        WEFTI_TRY(wefti_collective_run(world->group, &call));
    }
    wefti_snapshot        one = {.numbers = world->rank == m->from[0] / 2 ? copy_of(trainer->kept, m->from[0] % 2)->numbers : copy->numbers};
    wefti_collective_call call = {.kind = WEFTI_BROADCAST, .dtype = WEFT_U8, .root = m->from[0] / 2, .send = &one.numbers, .receive = &one.numbers,
                                  .count = sizeof one.numbers};
    WEFTI_TRY(wefti_collective_run(world->group, &call));
    copy->numbers = one.numbers;
    return WEFT_OK;
}

/* Room for a copy that comes from others, beside both that are here: one of them may be what another needs. */
static weft_status open_fresh(weft_trainer *trainer, wefti_snapshot *fresh) {
    if (!trainer->kept) WEFTI_TRY(wefti_alloc(sizeof *trainer->kept, "a run's latest state", &trainer->kept));
    WEFTI_TRY(wefti_snapshot_open(trainer, false, fresh));
    fresh->place = wefti_parts_place(trainer, trainer->world->rank);
    return wefti_parts_layout(trainer, &fresh->layout);
}

/* Afterwards every rank keeps the copy that it goes on from, so that the next fault finds it. */
static weft_status go_on_from(weft_trainer *trainer, weft_loader *loader, const market *m) {
    weft_world    *world = trainer->world;
    wefti_snapshot fresh = {0};
    int32_t        own = own_of(trainer, m, world->rank);
    weft_status    status = own >= 0 ? WEFT_OK : open_fresh(trainer, &fresh);
    status = wefti_agree(world, status, "making room for the run");
    wefti_snapshot *copy = own >= 0 ? copy_of(trainer->kept, own) : &fresh;
    if (status == WEFT_OK) status = wefti_in_parts(trainer) ? hand_out(trainer, m, copy) : wefti_snapshot_send(world, m->from[0] / 2, copy);
    if (status == WEFT_OK) {
        if (loader) status = weft_loader_share(loader, wefti_trainer_data_rank(trainer), wefti_trainer_data_ranks(trainer));
        if (status == WEFT_OK) status = wefti_snapshot_take_over(trainer, loader, copy);
        status = wefti_agree(world, status, "taking over the run");
    }
    if (status == WEFT_OK && own < 0) {
        wefti_snapshot_close(&trainer->kept->spare);
        trainer->kept->spare = fresh;
        fresh = (wefti_snapshot){0};
    }
    wefti_snapshot_close(&fresh);
    if (status == WEFT_OK && own != 0) take_spare(trainer->kept);
    if (status == WEFT_OK) trainer->kept->before = false; /* of a world that is no more, or of a later step */
    return status;
}

static weft_status receive(weft_trainer *trainer, weft_loader *loader) {
    market      m;
    weft_status status = open_market(trainer, &m);
    if (status == WEFT_OK) status = judge_offers(trainer, &m, loader != NULL);
    if (status == WEFT_OK && wefti_in_parts(trainer)) status = wefti_agree(trainer->world, status, "looking at what ranks kept");
    if (status == WEFT_OK) status = go_on_from(trainer, loader, &m);
    close_market(&m);
    return status;
}

weft_status weft_trainer_renew(weft_trainer *trainer, weft_world *world, weft_loader *loader) {
    if (!trainer || !world)
        return wefti_fail(WEFT_E_INVALID, "weft_trainer_renew: the %s is NULL", trainer ? "world" : "trainer");
    if (trainer->served) return wefti_served_renew(trainer, world, loader);
    WEFTI_TRY(check_kind(trainer, "weft_trainer_renew"));
    wefti_station left = {0};
    int64_t       steps = trainer->steps;
    bool          moves = world != trainer->world;
    if (moves) {
        weft_status status = wefti_trainer_move(trainer, world, &left);
        if (status != WEFT_OK) return wefti_while(status, "rank %d: renewing the trainer", world->rank);
    }
    weft_status status = receive(trainer, loader);
    if (status == WEFT_OK) {
        if (moves) wefti_trainer_leave(trainer, &left);
        return WEFT_OK;
    }
    if (moves) wefti_trainer_return(trainer, &left);
    trainer->steps = steps;
    return wefti_while(status, "rank %d: renewing the trainer", world->rank);
}

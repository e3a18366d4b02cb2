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
 * Cost: two copies of the variables a rank; a copy's time each time it is kept; renewing broadcasts one. */
#include <string.h>

#include "core/iface/collective.h"
#include "train/trainer.h"

typedef struct wefti_kept {
    wefti_snapshot latest, spare;
    bool           any; /* latest holds something */
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
    if (spare->bytes && spare->size_bytes == wefti_snapshot_size(trainer, false)) return WEFT_OK;
    wefti_snapshot_close(spare);
    return wefti_snapshot_open(trainer, false, spare);
}

static void take_spare(kept *k) {
    wefti_snapshot fresh = k->spare;
    k->spare = k->latest;
    k->latest = fresh;
    k->any = true;
}

static weft_status fill(weft_trainer *trainer, const weft_loader *loader, wefti_snapshot *s) {
    size_t  at = 0;
    int32_t n = weft_variables_count(trainer->variables);
    memset(&s->numbers, 0, sizeof s->numbers);
    for (int32_t i = 0; i < n; i++) {
        weft_variable_info info;
        if (!wefti_snapshot_holds(trainer, s->bases, i, &info)) continue;
        WEFTI_TRY(weft_variables_get(trainer->variables, info.name, s->bytes + at, (size_t)info.bytes));
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
    if (trainer->tensor.ranks > 1 || trainer->zero.stage > 0)
        return wefti_fail(WEFT_E_UNSUPPORTED, "%s: with strategy.tensor = %d, zero = %d no rank has all of the run: go on from a checkpoint", call,
                          trainer->program.strategy.tensor, trainer->program.strategy.zero);
    if (trainer->program.strategy.sync == WEFT_ALLREDUCE) return WEFT_OK;
    return wefti_fail(WEFT_E_UNSUPPORTED, "%s: with a parameter server (strategy.sync) the state lies on its servers, and is lost with one of them: "
                      "go on from a checkpoint, or train by WEFT_ALLREDUCE", call);
}

weft_status weft_trainer_keep(weft_trainer *trainer, const weft_loader *loader) {
    if (!trainer) return wefti_fail(WEFT_E_INVALID, "weft_trainer_keep: the trainer is NULL");
    WEFTI_TRY(check_kind(trainer, "weft_trainer_keep"));
    WEFTI_TRY(wefti_pipeline_refuse(trainer, "weft_trainer_keep"));
    WEFTI_TRY(open_spare(trainer));
    WEFTI_TRY(fill(trainer, loader, &trainer->kept->spare));
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
    int64_t size_bytes, has_loader;
} offer;

/* Whose copy is taken; all ranks see the same offers, and decide alike. */
static weft_status judge_offers(const weft_trainer *trainer, const offer *all, bool wants_loader, int32_t *from_out) {
    int32_t from = 0;
    int64_t expected = (int64_t)wefti_snapshot_size(trainer, false);
    for (int32_t i = 1; i < trainer->world->size; i++)
        if (all[i].step > all[from].step) from = i;
    *from_out = from;
    if (all[from].step < 0)
        return wefti_fail(WEFT_E_NOT_FOUND, "weft_trainer_renew: none of the %d ranks has kept a state of the run (weft_trainer_keep): begin anew, or "
                          "load a checkpoint", (int)trainer->world->size);
    if (all[from].size_bytes != expected)
        return wefti_fail(WEFT_E_MISMATCH, "weft_trainer_renew: rank %d kept %lld bytes at step %lld, and the program takes %lld", (int)from,
                          (long long)all[from].size_bytes, (long long)all[from].step, (long long)expected);
    if (wants_loader && !all[from].has_loader)
        return wefti_fail(WEFT_E_MISMATCH, "weft_trainer_renew: rank %d kept step %lld without a loader, so where the data stood is not known: give the "
                          "loader to weft_trainer_keep", (int)from, (long long)all[from].step);
    return WEFT_OK;
}

static weft_status choose_copy(const weft_trainer *trainer, bool wants_loader, int32_t *from_out) {
    weft_world *world = trainer->world;
    const kept *k = trainer->kept;
    offer       mine = {.step = -1}, *all = NULL;
    size_t      all_bytes = (size_t)world->size * sizeof *all;
    if (k && k->any) mine = (offer){k->latest.numbers.step, (int64_t)k->latest.size_bytes, k->latest.numbers.has_loader};
    WEFTI_TRY(wefti_alloc(all_bytes, "the ranks' copies", &all));
    all[world->rank] = mine;
    wefti_collective_call call = {.kind = WEFTI_ALLGATHER, .dtype = WEFT_I64, .send = &all[world->rank], .receive = all,
                                  .count = sizeof mine / sizeof(int64_t)};
    weft_status status = world->size > 1 ? wefti_collective_run(world->group, &call) : WEFT_OK;
    if (status == WEFT_OK) status = judge_offers(trainer, all, wants_loader, from_out);
    wefti_free(all, all_bytes);
    return status;
}

/* Afterwards every rank keeps the copy that it goes on from, so that the next fault finds it. */
static weft_status receive(weft_trainer *trainer, weft_loader *loader) {
    weft_world *world = trainer->world;
    int32_t     from = 0;
    WEFTI_TRY(choose_copy(trainer, loader != NULL, &from));
    bool        own = world->rank == from;
    weft_status status = own ? WEFT_OK : open_spare(trainer);
    WEFTI_TRY(wefti_agree(world, status, "making room for the run"));
    wefti_snapshot *copy = own ? &trainer->kept->latest : &trainer->kept->spare;
    WEFTI_TRY(wefti_snapshot_send(world, from, copy));
    if (loader) status = weft_loader_share(loader, wefti_trainer_data_rank(trainer), wefti_trainer_data_ranks(trainer));
    if (status == WEFT_OK) status = wefti_snapshot_take_over(trainer, loader, copy);
    WEFTI_TRY(wefti_agree(world, status, "taking over the run"));
    if (!own) take_spare(trainer->kept);
    return WEFT_OK;
}

weft_status weft_trainer_renew(weft_trainer *trainer, weft_world *world, weft_loader *loader) {
    if (!trainer || !world)
        return wefti_fail(WEFT_E_INVALID, "weft_trainer_renew: the %s is NULL", trainer ? "world" : "trainer");
    WEFTI_TRY(check_kind(trainer, "weft_trainer_renew"));
    WEFTI_TRY(wefti_pipeline_refuse(trainer, "weft_trainer_renew"));
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

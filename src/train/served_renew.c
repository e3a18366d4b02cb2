/* Going on in another world by a parameter server. What lies on servers comes along with another split of their rows (weft_server_resize), for which a rank that is
 * gone needs a replica; so every row has two holders again afterwards. What no server has, as running statistics and the step, comes from rank 0 of the new
 * world, which is never a newcomer. Nobody keeps copies meanwhile.
 *
 * With a bounded staleness ranks hear in different steps that one is gone, and who has heard it ends no more clocks: a step that waits for these gives its pull up
 * (served.c), and its rank comes here too. All then go on from the latest of their clocks.
 *
 * The server moves in the middle of the trainer's move, in the place where newcomers create theirs. A move that fails later leaves it with the new
 * world; the trainer is back in the old one, and only another call, with that world or a later one, goes on. */
#include <string.h>

#include "train/trainer.h"

static weft_status receive(weft_trainer *trainer, weft_loader *loader, wefti_snapshot *s) {
    weft_status status = WEFT_OK;
    if (loader) status = weft_loader_share(loader, wefti_trainer_data_rank(trainer), wefti_trainer_data_ranks(trainer));
    WEFTI_TRY(wefti_agree_with(trainer, 0, status, "dealing the loader out anew"));
    WEFTI_TRY(wefti_snapshot_share_rest(trainer, loader, s, 0));
    return wefti_agree_with(trainer, 0, wefti_served_pull(trainer), "fetching the parameters from the server");
}

weft_status wefti_served_renews(const weft_trainer *trainer) {
    if (!wefti_served_in_parts(&trainer->program)) return WEFT_OK;
    return wefti_fail(WEFT_E_UNSUPPORTED, "weft_trainer_renew: with a parameter server and tensor = %d, pipeline = %d, sequence = %d nobody takes a lost rank's place in its replica: go on from "
                      "a checkpoint", (int)trainer->program.strategy.tensor, (int)trainer->program.strategy.pipeline, (int)trainer->program.strategy.sequence);
}

weft_status wefti_served_renew(weft_trainer *trainer, weft_world *world, weft_loader *loader) {
    wefti_station  left = {0};
    wefti_snapshot s;
    const int64_t  steps = trainer->steps;
    const bool     moves = world != trainer->world;
    WEFTI_TRY(wefti_served_renews(trainer));
    weft_status    status = wefti_snapshot_open(trainer, true, &s);
    if (status == WEFT_OK) status = wefti_snapshot_take(trainer, loader, &s);
    if (status == WEFT_OK && moves) status = wefti_trainer_move(trainer, world, &left);
    bool moved = status == WEFT_OK && moves;
    if (status == WEFT_OK) status = receive(trainer, loader, &s);
    wefti_snapshot_close(&s);
    if (status == WEFT_OK) {
        if (moves) wefti_trainer_leave(trainer, &left);
        return WEFT_OK;
    }
    if (moved) wefti_trainer_return(trainer, &left);
    trainer->steps = steps;
    if (moves) (void)!wefti_served_find(trainer);
    return wefti_while(status, "rank %d: renewing the trainer", world->rank);
}

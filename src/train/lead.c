/* Who reads and writes files for all, and how the others get what it has read.
 *
 * Rank 0 does, and where training goes by a server, which outlives ranks, the lowest rank that is there. It may die in the middle: what ranks agree on with it
 * therefore says whether it took part, so that all who are left hear of its end, and none takes silence for success.
 *
 * Words go by way of the server as parts of a row whose greatest is taken: the others give the least there is. Cost: a row of so many words for each rank, so
 * large arrays do not come this way (parameters lie on servers anyhow). */
#include <string.h>

#include "core/iface/collective.h"
#include "train/trainer.h"

enum { WORDS = 512 };

static weft_status reduce(weft_world *world, wefti_reduce_op op, int64_t *words, size_t count) {
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_I64, .op = op, .send = words, .receive = words, .count = count,
                                  .timeout_ns = WEFTI_AGREE_LIMIT_NS};
    return world->size == 1 ? WEFT_OK : wefti_collective_run(world->group, &call);
}

static weft_status is_gone(const weft_trainer *trainer, int32_t lead, const char *doing) {
    return wefti_fail(WEFT_E_PEER, "rank %d: rank %d, which reads and writes files for all, died while %s: call it again, another rank takes its place",
                      trainer->world->rank, (int)lead, doing);
}

weft_status wefti_lead(weft_trainer *trainer, int32_t *lead_out) {
    int64_t lowest = trainer->world->rank;
    *lead_out = 0;
    if (!trainer->served) return WEFT_OK;
    WEFTI_TRY(reduce(wefti_trainer_meets(trainer), WEFTI_REDUCE_MIN, &lowest, 1));
    *lead_out = (int32_t)lowest;
    return WEFT_OK;
}

weft_status wefti_any(weft_trainer *trainer, bool *any) {
    int64_t one = *any;
    WEFTI_TRY(reduce(wefti_trainer_meets(trainer), WEFTI_REDUCE_MAX, &one, 1));
    *any = one != 0;
    return WEFT_OK;
}

weft_status wefti_agree_with(weft_trainer *trainer, int32_t lead, weft_status own, const char *doing) {
    int64_t there = trainer->world->rank == lead;
    WEFTI_TRY(wefti_agree(wefti_trainer_meets(trainer), own, doing));
    if (!trainer->served) return WEFT_OK;
    WEFTI_TRY(reduce(wefti_trainer_meets(trainer), WEFTI_REDUCE_MAX, &there, 1));
    return there ? WEFT_OK : is_gone(trainer, lead, doing);
}

weft_status wefti_lead_sends(weft_trainer *trainer, int32_t lead, void *bytes, size_t size_bytes) {
    weft_world *world = trainer->world;
    int64_t     words[WORDS + 1];
    bool        leads = world->rank == lead;
    if (!trainer->served) {
        wefti_collective_call call = {.kind = WEFTI_BROADCAST, .dtype = WEFT_U8, .root = lead, .send = bytes, .receive = bytes, .count = size_bytes};
        return world->size == 1 ? WEFT_OK : wefti_collective_run(world->group, &call);
    }
    for (size_t at = 0, some; at < size_bytes; at += some) {
        some = size_bytes - at < WORDS * sizeof *words ? size_bytes - at : WORDS * sizeof *words;
        for (int i = 0; i < WORDS; i++) words[i] = INT64_MIN;
        words[WORDS] = leads;
        if (leads) memcpy(words, (char *)bytes + at, some);
        WEFTI_TRY(reduce(wefti_trainer_meets(trainer), WEFTI_REDUCE_MAX, words, WORDS + 1));
        if (!words[WORDS]) return is_gone(trainer, lead, "sending what it has read");
        memcpy((char *)bytes + at, words, some);
    }
    return WEFT_OK;
}

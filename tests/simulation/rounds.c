#include "rounds.h"

#include <string.h>

uint64_t sim_draw(uint64_t *random, uint64_t below) {
    *random ^= *random >> 12;
    *random ^= *random << 25;
    *random ^= *random >> 27;
    return (*random * UINT64_C(2685821657736338717) >> 11) % below;
}

enum { SEATS, ROUND, ENDS, COUNT };

/* Everyone's seat, the number of the round, and whether rank 0 says that it is the last. */
static weft_status take_round(sim_rank *self, uint64_t end_ns, sim_view *seen, bool *last_out) {
    int32_t values[2][COUNT], size = self->transport->size;
    values[0][SEATS] = (int32_t)1 << self->rank;
    values[0][ROUND] = seen->rounds;
    values[0][ENDS] = self->transport->rank == 0 && wefti_host_now(self->transport->host) > end_ns;
    memcpy(values[1], values[0], sizeof values[0]);
    if (self->group) {
        wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .send = values[0], .receive = values[1], .count = COUNT, .dtype = WEFT_I32, .op = WEFTI_REDUCE_SUM};
        wefti_collective     *handle = NULL;
        WEFTI_TRY(wefti_collective_start(self->group, &call, &handle));
        WEFTI_TRY(wefti_collective_wait(handle, 0));
    } else {
        WEFTI_TRY(wefti_fault_status(self->transport->fault)); /* as weft_world_verdict */
    }
    uint32_t seats = (uint32_t)values[1][SEATS];
    if ((seen->rounds && seats != seen->seats) || __builtin_popcount(seats) != size || !(seats >> self->rank & 1) || values[1][ROUND] != size * seen->rounds)
        return wefti_fail(WEFT_E_INTERNAL, "round %d of %d ranks gave seats %x and rounds %d", (int)seen->rounds, (int)size, seats, (int)values[1][ROUND]);
    *seen = (sim_view){seats, size, seen->rounds + 1};
    *last_out = values[1][ENDS] > 0;
    return WEFT_OK;
}

weft_status sim_run_rounds(sim_rank *self, const uint64_t *end_ns, uint64_t pause_ns, sim_view *seen) {
    bool last = false;
    if (self->transport->size > 1) WEFTI_TRY(sim_rank_open(self, NULL, NULL, 2));
    while (!last) {
        WEFTI_TRY(take_round(self, *end_ns, seen, &last));
        self->transport->host->sleep(self->transport->host->context, pause_ns);
    }
    return WEFT_OK;
}

/* See thousand.h. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "common/effort.h"
#include "thousand.h"
#include "world.h"

enum { MOST_RANKS = 1024, NODE = 8, KILLED = 2 };

static int32_t  nodes[MOST_RANKS];
static uint64_t heard_ns, gone_on_ns, died_ns; /* by the last */

static const sim_call calls[] = {{WEFTI_BARRIER, 0, 1, 0},   {WEFTI_ALLREDUCE, 0, 2, 5},      {WEFTI_ALLREDUCE, 0, 3, 2000}, {WEFTI_BROADCAST, 7, 4, 300},
                                 {WEFTI_REDUCE_TO, 3, 5, 300}, {WEFTI_REDUCE_SCATTER, 0, 6, 3}, {WEFTI_ALLGATHER, 0, 7, 2}};

static weft_status take_room(sim_rank *self) {
    size_t most = 0;
    for (size_t i = 0; i < WEFTI_COUNT(calls); i++) {
        size_t bytes = sim_call_bytes(&calls[i], self->transport->size);
        if (bytes > most) most = bytes;
    }
    return sim_rank_take(self, most);
}

static weft_status run_calls(sim_rank *self) {
    for (size_t i = 0; i < WEFTI_COUNT(calls); i++) WEFTI_TRY(sim_call_run(self->group, &calls[i], self->memory));
    return WEFT_OK;
}

/* Rounds of one small sum, until somebody dies. */
static weft_status wait_for_death(sim_rank *self) {
    static const sim_call one = {WEFTI_ALLREDUCE, 0, 9, 1};
    const wefti_host     *host = self->transport->host;
    weft_status           status = WEFT_OK;
    for (int round = 0; round < 1000 && status == WEFT_OK; round++) {
        status = sim_call_run(self->group, &one, self->memory);
        host->sleep(host->context, WEFTI_MILLISECOND_NS);
    }
    return status == WEFT_E_PEER ? WEFT_OK : wefti_fail(WEFT_E_INTERNAL, "a round ended with %s", weft_status_name(status));
}

static void note(sim_rank *self, uint64_t *last_ns) {
    uint64_t now_ns = wefti_sim_now(self->world->sim);
    if (now_ns > *last_ns) *last_ns = now_ns;
}

static weft_status run(sim_rank *self) {
    WEFTI_TRY(sim_rank_open(self, NULL, nodes, 2));
    WEFTI_TRY(take_room(self));
    WEFTI_TRY(run_calls(self));
    WEFTI_TRY(wait_for_death(self));
    note(self, &heard_ns);
    WEFTI_TRY(sim_rank_shrink(self, self->world->size - KILLED, WEFTI_SECOND_NS));
    note(self, &gone_on_ns);
    if (self->transport->size != self->world->size - KILLED) return wefti_fail(WEFT_E_INTERNAL, "%d ranks went on", (int)self->transport->size);
    WEFTI_TRY(sim_rank_open(self, NULL, NULL, 2));
    return run_calls(self);
}

static void plan(sim_world *world) {
    died_ns = world->began_ns + 400 * WEFTI_MILLISECOND_NS;
    for (int i = 0; i < KILLED; i++) {
        wefti_sim_fault fault = {.act = WEFTI_SIM_KILL, .rank = i * (world->size / 2 + 3), .at_ns = died_ns};
        if (wefti_sim_plan(world->sim, &fault) != WEFT_OK) abort();
    }
}

void thousand_run(int32_t ranks) {
    for (int32_t rank = 0; rank < ranks; rank++) nodes[rank] = rank / NODE;
    const wefti_sim_options options = {.seed = 1, .size = ranks, .nodes = nodes, .jitter_ns = 3000};
    sim_world               world = {.function = run, .timeout_ns = 60 * WEFTI_SECOND_NS};
    sim_world_run(&world, &options, plan);
    cr_assert_eq(world.outcome, WEFT_OK, "%s", world.words);
    for (int32_t rank = 0; rank < ranks; rank++)
        if (!wefti_sim_is_gone(world.sim, rank))
            cr_assert(world.ranks[rank].ended && world.ranks[rank].status == WEFT_OK, "rank %d: %s", (int)rank, world.ranks[rank].message);
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    fprintf(stderr, "  %d ranks, %llu events: opened after %.0f ms, two deaths known by all after %.1f ms, gone on after %.0f ms; %ld MB\n",
            (int)ranks, (unsigned long long)world.events, (double)world.began_ns / 1e6, (double)(heard_ns - died_ns) / 1e6,
            (double)(gone_on_ns - died_ns) / 1e6, used.ru_maxrss / 1024);
    if (!UNDER_ADDRESS_SANITIZER && !UNDER_THREAD_SANITIZER) cr_expect_lt(used.ru_maxrss, 3072 * ranks, "%ld KiB for %d ranks", used.ru_maxrss, (int)ranks);
    cr_expect_leq(heard_ns - died_ns, WEFTI_SECOND_NS);
    cr_expect_leq(gone_on_ns - died_ns, 3 * WEFTI_SECOND_NS);
    sim_world_free(&world);
}

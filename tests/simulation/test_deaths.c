/* A rank dies at every message of each collective: just before it sends its first, its second, … in every algorithm that does the kind.
 * All others end with the one verdict that names it, whichever message it was. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "common/effort.h"
#include "transport/coll.h"
#include "world.h"

typedef struct death {
    const char *algorithm;
    sim_call call;
    const int32_t *nodes;
    int32_t victim;     /* -1: nobody dies, and messages are counted */
    uint64_t message;
    uint64_t sent[16];
    wefti_sim_act act;
} death;

static weft_status run_call(sim_rank *self) {
    const death *of = self->world->context;
    WEFTI_TRY(sim_rank_open(self, of->algorithm, of->nodes, 2));
    WEFTI_TRY(sim_rank_take(self, sim_call_bytes(&of->call, self->world->size)));
    return sim_call_run(self->group, &of->call, self->memory);
}

static void plan(sim_world *world) {
    const death *of = world->context;
    if (of->victim < 0) return;
    wefti_sim_fault fault = {.act = of->act, .rank = of->victim, .message = of->message};
    if (wefti_sim_plan(world->sim, &fault) != WEFT_OK) abort();
}

/* Gives whether all is as it should be. */
static bool run(death *of, int32_t size, uint64_t seed) {
    char words[700];
    const wefti_sim_options options = {.seed = seed, .size = size, .nodes = of->nodes, .jitter_ns = 3000, .limit_ns = 200 * WEFTI_SECOND_NS};
    sim_world world = {.function = run_call, .context = of, .timeout_ns = 30 * WEFTI_SECOND_NS, .listen_ns = of->victim < 0 ? 0 : 8 * WEFTI_SECOND_NS};
    sim_world_run(&world, &options, plan);
    const char *wrong = sim_world_judge(&world, of->victim, of->victim >= 0, words, sizeof words);
    for (int32_t rank = 0; rank < size && of->victim < 0; rank++) of->sent[rank] = wefti_sim_messages(world.sim, rank);
    uint64_t most_ns = of->act == WEFTI_SIM_KILL ? WEFTI_SECOND_NS : 10 * WEFTI_SECOND_NS; /* plain deaths are known at once */
    for (int32_t rank = 0; rank < size && !wrong && of->victim >= 0; rank++)
        if (world.ranks[rank].ended_ns > world.began_ns + most_ns) {
            snprintf(words, sizeof words, "rank %d took %g s", (int)rank, (double)(world.ranks[rank].ended_ns - world.began_ns) / 1e9);
            wrong = words;
        }
    cr_expect_null(wrong, "%s, kind %d, %zu elements, %d ranks, rank %d at message %llu: %s", of->algorithm, (int)of->call.kind, of->call.count,
                   (int)size, (int)of->victim, (unsigned long long)of->message, wrong);
    if (!wrong || world.outcome == WEFT_OK) sim_world_free(&world);
    return !wrong;
}

/* Gives how many deaths were tried; negative once some are not as they should be. */
static int try_call(death *of, int32_t size, int every) {
    int tried = 0;
    of->victim = -1;
    if (!run(of, size, 1)) return -1;
    for (int32_t victim = 0; victim < size; victim++)
        for (uint64_t message = 1; message <= of->sent[victim]; message++) {
            if ((message + (uint64_t)victim) % (uint64_t)every) continue;
            of->victim = victim;
            of->message = message;
            if (!run(of, size, message + 100 * (uint64_t)victim)) return -1;
            tried++;
        }
    return tried;
}

static void try_all(int32_t size, const int32_t *nodes, wefti_sim_act act, int every) {
    static const wefti_collective_kind kinds[] = {WEFTI_ALLREDUCE, WEFTI_REDUCE_SCATTER,   WEFTI_ALLGATHER,   WEFTI_BROADCAST,
                                                  WEFTI_BARRIER,   WEFTI_REDUCE_TO,        WEFTI_GATHER,      WEFTI_SCATTER,
                                                  WEFTI_ALLTOALL,  WEFTI_REDUCE_SCATTER_V, WEFTI_ALLGATHER_V, WEFTI_ALLTOALL_V};
    int tried = 0, calls = 0;
    for (int a = 0; a < wefti_coll_algorithm_count; a++)
        for (size_t k = 0; k < WEFTI_COUNT(kinds); k++) {
            const coll_algorithm *algorithm = &wefti_coll_algorithms[a];
            if (algorithm->mapped || strcmp(algorithm->name, "mpi") == 0 || !(algorithm->kinds >> kinds[k] & 1)) continue;
            death of = {.algorithm = algorithm->name, .nodes = nodes, .act = act,
                        .call = {.kind = kinds[k], .root = size - 1, .number = 3, .count = kinds[k] == WEFTI_BARRIER ? 0 : 50}};
            int more = try_call(&of, size, every);
            if (more < 0) return;
            tried += more;
            calls++;
        }
    cr_expect(calls >= 20 && tried * every * 2 >= calls * size, "only %d deaths in %d calls", tried, calls);
}

static const int32_t two_hosts[] = {0, 1, 0, 0, 1, 1}, three_hosts[] = {0, 0, 1, 2, 1, 0};
enum { EVERY = UNDER_ADDRESS_SANITIZER ? 5 : 1 };

Test(deaths, at_every_message_of_2_ranks) { try_all(2, NULL, WEFTI_SIM_KILL, 1); }
Test(deaths, at_every_message_of_3_ranks) { try_all(3, NULL, WEFTI_SIM_KILL, EVERY); }
Test(deaths, at_every_message_of_5_ranks_on_2_hosts) { try_all(5, two_hosts, WEFTI_SIM_KILL, EVERY); }
Test(deaths, at_every_message_of_6_ranks_on_3_hosts) { try_all(6, three_hosts, WEFTI_SIM_KILL, EVERY); }
Test(deaths, falling_silent_at_every_message_of_4_ranks) { try_all(4, two_hosts, WEFTI_SIM_CUT, EVERY); }
Test(deaths, stopping_at_every_message_of_3_ranks) { try_all(3, NULL, WEFTI_SIM_STOP, EVERY); }

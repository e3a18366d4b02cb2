/* What a seed makes: a world, its calls, and what befalls it. */
#include "seeds.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "world.h"

enum { MOST_SIZE = 128, CALLS = 12, AT_ONCE = 3 };

/* Everything about a world that its seed decides. */
typedef struct scene {
    uint64_t random;
    int32_t size, nodes[MOST_SIZE];
    wefti_sim_options options;
    sim_call calls[CALLS];
    int32_t at_once; /* calls that are started before the first is waited for */
    const char *algorithm;
    bool strikes;
    wefti_sim_fault fault;
} scene;

static uint64_t draw(scene *of, uint64_t below) { /* xorshift64* */
    of->random ^= of->random >> 12;
    of->random ^= of->random << 25;
    of->random ^= of->random >> 27;
    return (of->random * UINT64_C(2685821657736338717) >> 11) % below;
}

static void draw_calls(scene *of) {
    static const wefti_collective_kind kinds[] = {WEFTI_ALLREDUCE, WEFTI_ALLREDUCE, WEFTI_REDUCE_SCATTER,   WEFTI_ALLGATHER,
                                                  WEFTI_BROADCAST, WEFTI_BARRIER,   WEFTI_REDUCE_TO,        WEFTI_GATHER,
                                                  WEFTI_SCATTER,   WEFTI_ALLTOALL,  WEFTI_REDUCE_SCATTER_V, WEFTI_ALLGATHER_V,
                                                  WEFTI_ALLTOALL_V};
    static const char *const algorithms[] = {NULL, NULL, "ring", "halving", "twotree", "hierarchical", "bruck", "tree", "chain", "doubling", "scatter"};
    static const size_t most[] = {9, 700, 5000, 50000};
    of->algorithm = algorithms[draw(of, WEFTI_COUNT(algorithms))];
    of->at_once = 1 + (int32_t)draw(of, AT_ONCE);
    for (int32_t i = 0; i < CALLS; i++) {
        wefti_collective_kind kind = kinds[draw(of, WEFTI_COUNT(kinds))];
        size_t limit = most[draw(of, WEFTI_COUNT(most))];
        bool parts = kind != WEFTI_ALLREDUCE && kind != WEFTI_BROADCAST && kind != WEFTI_REDUCE_TO;
        of->calls[i] = (sim_call){kind, (int32_t)draw(of, (uint64_t)of->size), i, (size_t)draw(of, limit) / (parts ? (size_t)of->size : 1)};
    }
}

static void draw_fault(scene *of) {
    static const wefti_sim_act acts[] = {WEFTI_SIM_KILL, WEFTI_SIM_KILL, WEFTI_SIM_STOP, WEFTI_SIM_CUT};
    of->strikes = draw(of, 4) != 0;
    of->fault = (wefti_sim_fault){.act = acts[draw(of, WEFTI_COUNT(acts))], .rank = (int32_t)draw(of, (uint64_t)of->size)};
    if (draw(of, 2))
        of->fault.message = 1 + draw(of, 120);
    else
        of->fault.at_ns = draw(of, 3 * WEFTI_MILLISECOND_NS); /* after all have opened */
    if (of->fault.act == WEFTI_SIM_STOP && draw(of, 2)) of->fault.for_ns = 1 + draw(of, 7 * WEFTI_SECOND_NS);
}

static void draw_scene(scene *of, uint64_t seed, int32_t size) {
    *of = (scene){.random = seed * UINT64_C(0x9e3779b97f4a7c15) + 1};
    for (int i = 0; i < 8; i++) (void)draw(of, 2);
    of->size = size ? size : 2 + (int32_t)draw(of, draw(of, 4) ? 7 : 23);
    int32_t hosts = 1 + (int32_t)draw(of, (uint64_t)of->size);
    for (int32_t rank = 0; rank < of->size; rank++) of->nodes[rank] = (int32_t)draw(of, (uint64_t)hosts);
    of->options = (wefti_sim_options){.seed = seed, .size = of->size, .nodes = of->nodes, .limit_ns = 300 * WEFTI_SECOND_NS};
    if (draw(of, 3)) of->options.jitter_ns = draw(of, 200000);
    if (draw(of, 3) == 0) of->options.lost = 1 + (uint32_t)draw(of, 5000);
    if (draw(of, 2) == 0) of->options.lost_control = 1 + (uint32_t)draw(of, 300000);
    /* With a beat's distance, under the second that lies between what is forgiven (FORGIVEN_NS) and what is taken for silence. */
    of->options.again_ns = 1 + draw(of, 400 * WEFTI_MILLISECOND_NS);
    draw_calls(of);
    draw_fault(of);
}

/* Memory of the calls that are under way together. */
static size_t bytes_of(const scene *of, int32_t first, int32_t count) {
    size_t bytes = 0;
    for (int32_t i = first; i < first + count; i++) bytes += wefti_align_up(sim_call_bytes(&of->calls[i], of->size), 64);
    return bytes;
}

static weft_status run_some(sim_rank *self, int32_t first, int32_t count) {
    const scene *of = self->world->context;
    wefti_group *group = self->group;
    wefti_collective *handles[AT_ONCE];
    weft_status status = WEFT_OK;
    int32_t started = 0;
    for (int32_t i = 0; i < count && status == WEFT_OK; i++) {
        wefti_collective_call call;
        sim_call_prepare(&of->calls[first + i], group->size, group->index, self->memory + bytes_of(of, first, i), &call);
        status = wefti_collective_start(group, &call, &handles[i]);
        if (status == WEFT_OK) started++;
    }
    for (int32_t i = 0; i < started; i++) {
        weft_status ended = wefti_collective_wait(handles[i], 0);
        if (ended == WEFT_OK) ended = sim_call_check(&of->calls[first + i], group->size, group->index, self->memory + bytes_of(of, first, i));
        if (status == WEFT_OK) status = ended;
    }
    return status;
}

static weft_status run_calls(sim_rank *self) {
    const scene *of = self->world->context;
    size_t most = 0;
    for (int32_t first = 0; first < CALLS; first += of->at_once) {
        size_t bytes = bytes_of(of, first, CALLS - first < of->at_once ? CALLS - first : of->at_once);
        most = bytes > most ? bytes : most;
    }
    WEFTI_TRY(sim_rank_open(self, of->algorithm, of->nodes, 4));
    WEFTI_TRY(sim_rank_take(self, most));
    for (int32_t first = 0; first < CALLS; first += of->at_once)
        WEFTI_TRY(run_some(self, first, CALLS - first < of->at_once ? CALLS - first : of->at_once));
    return WEFT_OK;
}

static void plan(sim_world *world) {
    const scene *of = world->context;
    wefti_sim_fault fault = of->fault;
    if (!of->strikes) return;
    fault.at_ns += world->began_ns;
    if (wefti_sim_plan(world->sim, &fault) != WEFT_OK) abort();
}

/* Nobody is silent for so long by what the links do, and nobody who is silent for longer is spared. */
#define FORGIVEN_NS (3 * WEFTI_SECOND_NS)

const char *seeds_try(uint64_t seed, int32_t size, void (*trace)(void *context, const char *line), char *words_out, size_t words_bytes,
                      uint64_t *hash_out) {
    static scene of;
    draw_scene(&of, seed, size);
    of.options.trace = trace;
    sim_world world = {.function = run_calls, .context = &of, .timeout_ns = 30 * WEFTI_SECOND_NS, .listen_ns = 20 * WEFTI_SECOND_NS};
    sim_world_run(&world, &of.options, plan);
    bool spared = !of.strikes || (of.fault.act == WEFTI_SIM_STOP && of.fault.for_ns && of.fault.for_ns < FORGIVEN_NS);
    bool struck = of.strikes && (wefti_sim_is_gone(world.sim, of.fault.rank) || wefti_sim_is_cut(world.sim, of.fault.rank));
    char what[600];
    const char *wrong = sim_world_judge(&world, spared ? -1 : of.fault.rank, struck, what, sizeof what);
    if (wrong)
        snprintf(words_out, words_bytes, "%d ranks, %s, %s%s: %.600s", (int)of.size, of.algorithm ? of.algorithm : "chosen by cost",
                 !of.strikes                           ? "no fault"
                 : of.fault.act == WEFTI_SIM_KILL ? "one dies"
                 : of.fault.act == WEFTI_SIM_CUT  ? "one is cut off"
                                                  : "one stops",
                 of.fault.message ? " by message" : "", wrong);
    for (int32_t rank = 0; rank < of.size && !wrong; rank++)
        if (world.ranks[rank].ended_ns > world.began_ns + 60 * WEFTI_SECOND_NS) {
            snprintf(words_out, words_bytes, "rank %d took %g s", (int)rank, (double)(world.ranks[rank].ended_ns - world.began_ns) / 1e9);
            wrong = words_out;
        }
    if (hash_out) *hash_out = world.hash;
    if (trace) printf("%llu events, history %016llx\n", (unsigned long long)world.events, (unsigned long long)world.hash);
    if (!wrong || world.outcome == WEFT_OK) sim_world_free(&world);
    return wrong ? words_out : NULL;
}

static void print_line(void *context, const char *line) {
    (void)context;
    puts(line);
}

/* One that somebody asks for: his variables decide, and it tells its history. */
static bool replay(void) {
    const char *seed = getenv("WEFT_SIM_SEED"), *ranks = getenv("WEFT_SIM_RANKS");
    char words[1000];
    if (!seed || !*seed) return false;
    const char *what = seeds_try(strtoull(seed, NULL, 0), ranks ? (int32_t)strtol(ranks, NULL, 0) : 0, print_line, words, sizeof words, NULL);
    cr_expect_null(what, "seed %s: %s", seed, what);
    return true;
}

void seeds_run(uint64_t first, int count, int32_t size) {
    char words[1000];
    int wrong = 0;
    if (replay()) return;
    for (uint64_t seed = first; seed < first + (uint64_t)count && wrong < 5; seed++) {
        const char *what = seeds_try(seed, size, NULL, words, sizeof words, NULL);
        wrong += what != NULL;
        char ranks[40] = "";
        if (size) snprintf(ranks, sizeof ranks, "WEFT_SIM_RANKS=%d ", (int)size);
        cr_expect_null(what, "seed %llu: %s\nThis history again, event by event: WEFT_SIM_SEED=%llu %s%s/simulation_test_seeds --filter seeds/end_well_or_with_one_verdict",
                       (unsigned long long)seed, what, (unsigned long long)seed, ranks, WEFT_BIN_DIR);
    }
    weft_memory_counts counts;
    weft_memory_read(&counts);
    if (!wrong) cr_expect_eq(counts.held_bytes, 0, "%llu bytes are left behind", (unsigned long long)counts.held_bytes);
}

/* Ranks that come in place of those who died, by seed: ranks add up numbers in rounds; some die at any time, also newcomers, and others are started in
 * their place at once, late, or when the others have long gone on, down to a single one. One may hang, and is ended and started again for the others. By the very code that weft_world_shrink and weft_world_create
 * run, whoever lives in the end is in one world with all others who live, and has the same results.
 *
 *   WEFT_SIM_SEED=17 build/bin/simulation_test_joins --filter joins/make_one_world_of_all_who_live
 *
 * runs that seed alone and prints its history, the same each time. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/effort.h"
#include "rounds.h"

enum { SEEDS = UNDER_ADDRESS_SANITIZER ? 60 : 200, MOST_SIZE = 7, MOST_DEATHS = 6 };
#define PATIENCE_NS WEFTI_SECOND_NS
#define SETTLE_NS (40 * WEFTI_SECOND_NS) /* after the last death or start, until the run ends */

typedef struct death {
    int32_t  rank;
    uint64_t at_ns, again_ns; /* again_ns: when another one is started; 0: never */
} death;

typedef struct scene {
    uint64_t random;
    int32_t  size, nodes[MOST_SIZE], death_count;
    wefti_sim_options options;
    death    deaths[MOST_DEATHS];
    uint64_t last_ns, replacement_ns, end_ns;
    sim_view     views[MOST_SIZE];
    int32_t  hangs, fenced;  /* the rank that does, or -1; ranks that were ended for others */
    uint64_t hangs_ns;
    sim_world *world;
    int32_t  worlds, joined, alone; /* that ranks saw; newcomers that came in; worlds of one */
    uint64_t most_ns;        /* that a newcomer took to come in */
} scene;

static scene of;

static uint64_t draw(uint64_t below) { return sim_draw(&of.random, below); }

/* One rank is never struck: somebody must have the state. */
static void draw_deaths(int32_t spared) {
    static const uint64_t spans_ns[] = {2 * WEFTI_MILLISECOND_NS, 300 * WEFTI_MILLISECOND_NS, 6 * WEFTI_SECOND_NS};
    uint64_t free_ns[MOST_SIZE] = {0}; /* when a rank may die again */
    bool     over[MOST_SIZE] = {false};
    of.death_count = 1 + (int32_t)draw(MOST_DEATHS);
    for (int32_t i = 0; i < of.death_count; i++) {
        int32_t rank = (int32_t)draw((uint64_t)of.size);
        while (rank == spared) rank = (int32_t)draw((uint64_t)of.size);
        death *it = &of.deaths[i];
        *it = (death){.rank = rank, .at_ns = free_ns[rank] + 1 + draw(spans_ns[draw(3)])};
        if (over[rank]) it->rank = -1; /* nobody is there */
        if (draw(6)) it->again_ns = it->at_ns + 1 + draw(spans_ns[draw(3)]);
        free_ns[rank] = it->again_ns;
        over[rank] = !it->again_ns;
        uint64_t last_ns = it->again_ns ? it->again_ns : it->at_ns;
        if (it->rank >= 0 && last_ns > of.last_ns) of.last_ns = last_ns;
    }
}

static void start_fenced(void *context, int32_t rank) {
    (void)context;
    of.fenced++;
    sim_world_start_again(of.world, rank, wefti_sim_now(of.world->sim) + 1 + draw(300 * WEFTI_MILLISECOND_NS));
}

static void draw_scene(uint64_t seed) {
    of = (scene){.random = seed * UINT64_C(0x9e3779b97f4a7c15) + 1};
    for (int i = 0; i < 8; i++) (void)draw(2);
    of.size = 2 + (int32_t)draw(MOST_SIZE - 1);
    int32_t hosts = 1 + (int32_t)draw((uint64_t)of.size);
    for (int32_t rank = 0; rank < of.size; rank++) of.nodes[rank] = (int32_t)draw((uint64_t)hosts);
    of.options = (wefti_sim_options){.seed = seed, .size = of.size, .nodes = of.nodes, .limit_ns = 900 * WEFTI_SECOND_NS};
    if (draw(3)) of.options.jitter_ns = draw(200000);
    if (draw(3) == 0) of.options.lost = 1 + (uint32_t)draw(3000);
    if (draw(3) == 0) of.options.lost_control = 1 + (uint32_t)draw(30000);
    of.options.again_ns = 1 + draw(300 * WEFTI_MILLISECOND_NS);
    of.replacement_ns = 50 * WEFTI_MILLISECOND_NS + draw(3 * WEFTI_SECOND_NS);
    int32_t spared = (int32_t)draw((uint64_t)of.size);
    draw_deaths(spared);
    of.hangs = -1;
    if (draw(3)) return;
    of.hangs = (spared + 1 + (int32_t)draw((uint64_t)of.size - 1)) % of.size;
    of.hangs_ns = 1 + draw(2 * WEFTI_SECOND_NS);
    of.options.fenced = start_fenced;
    if (of.last_ns < of.hangs_ns + 10 * WEFTI_SECOND_NS) of.last_ns = of.hangs_ns + 10 * WEFTI_SECOND_NS;
}

static void plan(sim_world *world) {
    of.end_ns = world->began_ns + of.last_ns + SETTLE_NS;
    for (int32_t i = 0; i < of.death_count; i++) {
        const death *it = &of.deaths[i];
        if (it->rank < 0) continue;
        if (wefti_sim_plan(world->sim, &(wefti_sim_fault){.act = WEFTI_SIM_KILL, .rank = it->rank, .at_ns = world->began_ns + it->at_ns}) != WEFT_OK) abort();
        if (it->again_ns) sim_world_start_again(world, it->rank, world->began_ns + it->again_ns);
    }
    of.world = world;
    wefti_sim_fault stop = {.act = WEFTI_SIM_STOP, .rank = of.hangs, .at_ns = world->began_ns + of.hangs_ns};
    if (of.hangs >= 0 && wefti_sim_plan(world->sim, &stop) != WEFT_OK) abort();
}

/* --- what a rank does --- */

static weft_status run_rounds(sim_rank *self) {
    sim_view *seen = &of.views[self->rank];
    *seen = (sim_view){0};
    of.worlds++;
    of.alone += self->transport->size == 1;
    return sim_run_rounds(self, &of.end_ns, 30 * WEFTI_MILLISECOND_NS, seen);
}

static weft_status go_on(sim_rank *self) {
    if (self->start > 0) {
        uint64_t took_ns = wefti_sim_now(self->world->sim) - self->started_ns;
        of.most_ns = took_ns > of.most_ns ? took_ns : of.most_ns;
        of.joined++;
    }
    weft_status status = run_rounds(self);
    while (status == WEFT_E_PEER || status == WEFT_E_TIMEOUT) {
        WEFTI_TRY(sim_rank_shrink(self, 1, PATIENCE_NS));
        status = run_rounds(self);
    }
    return status;
}

/* --- what is wrong with it --- */

static const char *judge(const sim_world *world, char *words, size_t bytes) {
    uint32_t    alive = 0;
    const sim_view *one = NULL;
    if (world->outcome != WEFT_OK) return world->words;
    for (int32_t rank = 0; rank < of.size; rank++) alive |= (uint32_t)!wefti_sim_is_gone(world->sim, rank) << rank;
    for (int32_t rank = 0; rank < of.size; rank++) {
        const sim_rank *self = &world->ranks[rank];
        const sim_view     *seen = &of.views[rank];
        if (!(alive >> rank & 1)) continue;
        if (!self->ended || self->status != WEFT_OK) {
            snprintf(words, bytes, "rank %d (start %d) %s %s: %.400s", (int)rank, (int)self->start, self->ended ? "ended with" : "has not ended,", weft_status_name(self->status),
                     self->message);
            return words;
        }
        if (!one) one = seen;
        if (seen->seats == alive && seen->rounds == one->rounds) continue;
        snprintf(words, bytes, "rank %d ended in a world of seats %x after %d rounds; %x live, the first of which took %d", (int)rank, seen->seats, (int)seen->rounds, alive,
                 (int)one->rounds);
        return words;
    }
    return NULL;
}

/* Gives what is wrong, or NULL. */
static const char *try_seed(uint64_t seed, void (*trace)(void *context, const char *line), char *words, size_t bytes, uint64_t *hash_out) {
    char what[700];
    draw_scene(seed);
    of.options.trace = trace;
    sim_world world = {.function = go_on, .timeout_ns = 20 * WEFTI_SECOND_NS, .replacement_ns = of.replacement_ns};
    sim_world_run(&world, &of.options, plan);
    const char *wrong = judge(&world, what, sizeof what);
    if (wrong) snprintf(words, bytes, "%d ranks, %d deaths: %.700s", (int)of.size, (int)of.death_count, wrong);
    if (hash_out) *hash_out = world.hash;
    if (trace) printf("%llu events, history %016llx\n", (unsigned long long)world.events, (unsigned long long)world.hash);
    if (!wrong || world.outcome == WEFT_OK) sim_world_free(&world);
    return wrong ? words : NULL;
}

static void print_line(void *context, const char *line) {
    (void)context;
    puts(line);
}

static bool replay(void) {
    const char *seed = getenv("WEFT_SIM_SEED");
    char        words[1000];
    if (!seed || !*seed) return false;
    const char *wrong = try_seed(strtoull(seed, NULL, 0), print_line, words, sizeof words, NULL);
    cr_expect_null(wrong, "seed %s: %s", seed, wrong);
    return true;
}

Test(joins, make_one_world_of_all_who_live) {
    char     words[1000];
    int      wrong = 0, joined = 0, alone = 0, fenced = 0;
    uint64_t most_ns = 0;
    if (replay()) return;
    for (uint64_t seed = 1; seed <= SEEDS && wrong < 5; seed++) {
        const char *what = try_seed(seed, NULL, words, sizeof words, NULL);
        if (of.hangs < 0 && of.most_ns > most_ns) most_ns = of.most_ns; /* who hangs is waited for */
        joined += of.joined;
        alone += of.alone;
        fenced += of.fenced;
        wrong += what != NULL;
        cr_expect_null(what, "seed %llu: %s\nThis history again, event by event: WEFT_SIM_SEED=%llu %s/simulation_test_joins --filter joins/make_one_world_of_all_who_live",
                       (unsigned long long)seed, what, (unsigned long long)seed, WEFT_BIN_DIR);
    }
    weft_memory_counts counts;
    weft_memory_read(&counts);
    if (wrong) return;
    fprintf(stderr, "%d seeds: %d newcomers came in, the slowest after %.3g s of their time where nobody hung; %d worlds were of one rank; %d ranks were ended for others\n", SEEDS, joined, (double)most_ns / 1e9,
            alone, fenced);
    cr_expect_eq(counts.held_bytes, 0, "%llu bytes are left behind", (unsigned long long)counts.held_bytes);
    cr_expect_gt(joined, 2 * SEEDS, "only %d newcomers came in", joined);
    cr_expect_gt(alone, SEEDS / 10, "only %d worlds were of one rank", alone);
    cr_expect_gt(fenced, SEEDS / 12, "only %d ranks were ended for others", fenced);
    cr_expect_lt(most_ns, 8 * WEFTI_SECOND_NS);
}

Test(joins, give_the_same_history_again) {
    uint64_t hashes[2][8];
    char     words[1000];
    if (replay()) return;
    for (int run = 0; run < 2; run++)
        for (uint64_t seed = 1; seed <= 8; seed++)
            cr_assert_null(try_seed(seed, NULL, words, sizeof words, &hashes[run][seed - 1]), "seed %d: %s", (int)seed, words);
    for (int i = 0; i < 8; i++) {
        cr_expect_eq(hashes[0][i], hashes[1][i], "seed %d has two histories", i + 1);
        if (i) cr_expect_neq(hashes[0][i], hashes[0][i - 1], "seeds %d and %d have one history", i, i + 1);
    }
}

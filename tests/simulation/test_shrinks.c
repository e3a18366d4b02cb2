/* Survivors that go on, by seed: ranks add up numbers in rounds; some die at any time, also while the others gather or join, or are cut off,
 * or stop; those who are left make a world of their own by the very code that weft_world_shrink runs, and go on. Whatever happens, all who end
 * well agree on every world's members and results, are all that can be, and nobody goes on beside them.
 *
 *   WEFT_SIM_SEED=17 build/bin/simulation_test_shrinks --filter shrinks/agree_on_who_goes_on
 *
 * runs that seed alone and prints its history, the same each time. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/effort.h"
#include "rounds.h"

enum { SEEDS = UNDER_ADDRESS_SANITIZER ? 200 : 600, MOST_SIZE = 9, MOST_FAULTS = 5, MOST_WORLDS = SIM_MOST_LOST + 1 };
#define PATIENCE_NS WEFTI_SECOND_NS

typedef struct scene {
    uint64_t random;
    int32_t  size, nodes[MOST_SIZE], fault_count, killed, silent; /* silent: who is cut off or stops; -1: nobody */
    wefti_sim_options options;
    wefti_sim_fault   faults[MOST_FAULTS];
    uint64_t pause_ns, rounds_ns; /* between rounds; how long there are some at least, after the last fault */
    uint64_t end_ns;
    sim_view     views[MOST_SIZE][MOST_WORLDS];
    int32_t  worlds[MOST_SIZE]; /* that each rank saw */
    uint64_t began_ns, called_ns; /* when all had opened; when the latest one began to shrink */
    uint64_t most_ns; /* that the ranks took to go on, after whatever happened last */
} scene;

static scene of;

static uint64_t draw(uint64_t below) { return sim_draw(&of.random, below); }

static bool is_struck(int32_t rank) {
    for (int32_t i = 0; i < of.fault_count; i++)
        if (of.faults[i].rank == rank) return true;
    return false;
}

static int32_t draw_victim(void) {
    int32_t rank = (int32_t)draw((uint64_t)of.size);
    while (is_struck(rank)) rank = (rank + 1) % of.size;
    return rank;
}

/* Deaths at once, while others gather or join, or in a later world. */
static void draw_faults(void) {
    static const uint64_t spans_ns[] = {2 * WEFTI_MILLISECOND_NS, 30 * WEFTI_MILLISECOND_NS, 400 * WEFTI_MILLISECOND_NS};
    bool     silent = of.size >= 4 && draw(4) == 0;
    uint64_t at_ns = 0, last_ns = 0;
    int32_t  most = of.size - (silent ? 3 : 1); /* with one who is silent at least two are left of three */
    of.killed = (int32_t)draw((uint64_t)(most < MOST_FAULTS ? most : MOST_FAULTS - 1) + (silent ? 1 : 0)) + (silent ? 0 : 1);
    of.silent = -1;
    for (int32_t i = 0; i < of.killed; i++) {
        at_ns = (draw(3) ? at_ns : 0) + draw(spans_ns[draw(3)]);
        of.faults[of.fault_count] = (wefti_sim_fault){.act = WEFTI_SIM_KILL, .rank = draw_victim(), .at_ns = at_ns};
        of.fault_count++;
        last_ns = at_ns > last_ns ? at_ns : last_ns;
    }
    if (silent) {
        wefti_sim_act act = draw(2) ? WEFTI_SIM_CUT : WEFTI_SIM_STOP;
        of.silent = draw_victim();
        of.faults[of.fault_count++] = (wefti_sim_fault){.act = act, .rank = of.silent, .at_ns = draw(spans_ns[draw(3)]),
                                                        .for_ns = act == WEFTI_SIM_STOP && draw(2) ? 1 + draw(12 * WEFTI_SECOND_NS) : 0};
    }
    of.pause_ns = (silent ? 200 : 5) * WEFTI_MILLISECOND_NS;
    of.rounds_ns = last_ns + (silent ? 60 : 2) * WEFTI_SECOND_NS;
}

static void draw_scene(uint64_t seed) {
    of = (scene){.random = seed * UINT64_C(0x9e3779b97f4a7c15) + 1};
    for (int i = 0; i < 8; i++) (void)draw(2);
    of.size = 2 + (int32_t)draw(MOST_SIZE - 1);
    int32_t hosts = 1 + (int32_t)draw((uint64_t)of.size);
    for (int32_t rank = 0; rank < of.size; rank++) of.nodes[rank] = (int32_t)draw((uint64_t)hosts);
    of.options = (wefti_sim_options){.seed = seed, .size = of.size, .nodes = of.nodes, .limit_ns = 600 * WEFTI_SECOND_NS};
    if (draw(3)) of.options.jitter_ns = draw(200000);
    if (draw(3) == 0) of.options.lost = 1 + (uint32_t)draw(3000);
    if (draw(3) == 0) of.options.lost_control = 1 + (uint32_t)draw(100000);
    of.options.again_ns = 1 + draw(300 * WEFTI_MILLISECOND_NS);
    draw_faults();
}

static void plan(sim_world *world) {
    of.began_ns = world->began_ns;
    of.end_ns = world->began_ns + of.rounds_ns;
    for (int32_t i = 0; i < of.fault_count; i++) {
        wefti_sim_fault fault = of.faults[i];
        fault.at_ns += world->began_ns;
        if (wefti_sim_plan(world->sim, &fault) != WEFT_OK) abort();
    }
}

/* --- what a rank does --- */

static weft_status run_rounds(sim_rank *self) {
    return sim_run_rounds(self, &of.end_ns, of.pause_ns, &of.views[self->rank][of.worlds[self->rank]++]);
}

static weft_status shrink(sim_rank *self) {
    uint64_t since_ns = of.called_ns = wefti_sim_now(self->world->sim);
    WEFTI_TRY(sim_rank_shrink(self, 1, PATIENCE_NS));
    uint64_t now_ns = wefti_sim_now(self->world->sim);
    if (of.called_ns > since_ns) since_ns = of.called_ns;
    for (int32_t i = 0; i < of.fault_count; i++) {
        uint64_t at_ns = of.began_ns + of.faults[i].at_ns;
        if (at_ns > since_ns && at_ns <= now_ns) since_ns = at_ns;
    }
    if (now_ns - since_ns > of.most_ns) of.most_ns = now_ns - since_ns;
    return WEFT_OK;
}

static weft_status go_on(sim_rank *self) {
    weft_status status = run_rounds(self);
    while (status == WEFT_E_PEER || status == WEFT_E_TIMEOUT) {
        WEFTI_TRY(shrink(self));
        status = run_rounds(self);
    }
    return status;
}

/* --- what is wrong with it --- */

/* All who ended well are in the same last world, and each world that two saw, they saw alike. */
static const char *compare(const sim_world *world, char *words, size_t bytes) {
    for (int32_t a = 0; a < of.size; a++)
        for (int32_t b = 0; b < a; b++) {
            if (!world->ranks[a].ended || !world->ranks[b].ended || world->ranks[a].status != WEFT_OK || world->ranks[b].status != WEFT_OK) continue;
            const sim_view *one = &of.views[a][of.worlds[a] - 1], *other = &of.views[b][of.worlds[b] - 1];
            if (one->seats == other->seats && one->rounds == other->rounds) continue;
            snprintf(words, bytes, "rank %d ended in the world of seats %x after %d rounds, rank %d in that of %x after %d", (int)a, one->seats,
                     (int)one->rounds, (int)b, other->seats, (int)other->rounds);
            return words;
        }
    return NULL;
}

static const char *judge(const sim_world *world, char *words, size_t bytes) {
    if (world->outcome != WEFT_OK) return world->words;
    for (int32_t rank = 0; rank < of.size; rank++) {
        const sim_rank *self = &world->ranks[rank];
        bool            gone = wefti_sim_is_gone(world->sim, rank);
        if (gone || (self->ended && (self->status == WEFT_OK || rank == of.silent))) continue;
        snprintf(words, bytes, "rank %d %s %s: %.400s", (int)rank, self->ended ? "ended with" : "has not ended,", weft_status_name(self->status), self->message);
        return words;
    }
    for (int32_t rank = 0; rank < of.size; rank++) {
        const sim_rank *self = &world->ranks[rank];
        if (!self->ended || self->status != WEFT_OK) continue;
        uint32_t seats = of.views[rank][of.worlds[rank] - 1].seats;
        for (int32_t other = 0; other < of.size; other++)
            if ((seats >> other & 1) != (world->ranks[other].ended && world->ranks[other].status == WEFT_OK)) {
                snprintf(words, bytes, "rank %d ended in a world of seats %x, and rank %d %s", (int)rank, seats, (int)other,
                         seats >> other & 1 ? "of it did not end well" : "ended well elsewhere");
                return words;
            }
    }
    if (of.silent < 0 && of.most_ns > 2 * WEFTI_SECOND_NS) { /* who is silent is waited for with patience */
        snprintf(words, bytes, "they took %.3g s to go on", (double)of.most_ns / 1e9);
        return words;
    }
    return compare(world, words, bytes);
}

/* Gives what is wrong, or NULL. */
static const char *try_seed(uint64_t seed, void (*trace)(void *context, const char *line), char *words, size_t bytes, uint64_t *hash_out,
                            int32_t *shrinks_out) {
    char what[700];
    draw_scene(seed);
    of.options.trace = trace;
    sim_world world = {.function = go_on, .timeout_ns = 20 * WEFTI_SECOND_NS};
    sim_world_run(&world, &of.options, plan);
    const char *wrong = judge(&world, what, sizeof what);
    if (wrong)
        snprintf(words, bytes, "%d ranks, %d killed%s: %.700s", (int)of.size, (int)of.killed,
                 of.silent < 0 ? "" : of.faults[of.fault_count - 1].act == WEFTI_SIM_CUT ? ", one cut off" : ", one stopped", wrong);
    for (int32_t rank = 0; shrinks_out && rank < of.size; rank++) *shrinks_out += of.worlds[rank] - 1;
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
    const char *wrong = try_seed(strtoull(seed, NULL, 0), print_line, words, sizeof words, NULL, NULL);
    cr_expect_null(wrong, "seed %s: %s", seed, wrong);
    return true;
}

Test(shrinks, agree_on_who_goes_on) {
    char    words[1000];
    int     wrong = 0;
    int32_t shrinks = 0;
    if (replay()) return;
    uint64_t most_ns = 0;
    for (uint64_t seed = 1; seed <= SEEDS && wrong < 5; seed++) {
        const char *what = try_seed(seed, NULL, words, sizeof words, NULL, &shrinks);
        if (of.silent < 0 && of.most_ns > most_ns) most_ns = of.most_ns;
        wrong += what != NULL;
        cr_expect_null(what, "seed %llu: %s\nThis history again, event by event: WEFT_SIM_SEED=%llu %s/simulation_test_shrinks --filter shrinks/agree_on_who_goes_on",
                       (unsigned long long)seed, what, (unsigned long long)seed, WEFT_BIN_DIR);
    }
    weft_memory_counts counts;
    weft_memory_read(&counts);
    if (wrong) return;
    fprintf(stderr, "%d seeds, ranks went on %d times, the slowest %.3g s of their time after the last death or call\n", SEEDS, (int)shrinks, (double)most_ns / 1e9);
    cr_expect_eq(counts.held_bytes, 0, "%llu bytes are left behind", (unsigned long long)counts.held_bytes);
    cr_expect_gt(shrinks, 2 * SEEDS, "ranks went on only %d times", (int)shrinks);
}

Test(shrinks, give_the_same_history_again) {
    uint64_t hashes[2][12];
    char     words[1000];
    if (replay()) return;
    for (int run = 0; run < 2; run++)
        for (uint64_t seed = 1; seed <= 12; seed++)
            cr_assert_null(try_seed(seed, NULL, words, sizeof words, &hashes[run][seed - 1], NULL), "seed %d: %s", (int)seed, words);
    for (int i = 0; i < 12; i++) {
        cr_expect_eq(hashes[0][i], hashes[1][i], "seed %d has two histories", i + 1);
        if (i) cr_expect_neq(hashes[0][i], hashes[0][i - 1], "seeds %d and %d have one history", i, i + 1);
    }
}

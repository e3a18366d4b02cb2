/* Runs every algorithm that fits a call, one after the other in one world, and takes the time from when all ranks begin to when the last
 * one has ended. Ranks share their buffers: what they compute is looked at elsewhere. Broadcasts are in place, as costs take them to be. */
#include "costs.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "transport/coll.h"
#include "world.h"

enum { MOST_RANKS = 64 };
#define MOST_RATIO 1.3
/* An estimate over the time: of what is chosen, and of all others, whose order is all that counts. */
#define CHOSEN_ESTIMATE 2.0
#define ANY_ESTIMATE 2.6
#define BETWEEN_NS (200 * (WEFTI_MILLISECOND_NS / 1000))

typedef struct race {
    bool     tells;
    int32_t  ranks, here; /* here: on one host */
    size_t   least, most, step;
    int32_t  nodes[MOST_RANKS];
    size_t   counts[MOST_RANKS];
    uint8_t *send, *receive; /* all ranks' */
    int32_t  turn, arrived;  /* of lining up */
    uint64_t begin_ns, end_ns;
    int      calls, choices, wrong; /* calls; those where there was something to choose */
} race;

/* Waits until all ranks are here, and gives them one beginning. */
static uint64_t line_up(sim_rank *self, race *of) {
    const wefti_host *host = self->transport->host;
    int32_t  turn = of->turn;
    uint64_t pause_ns = 1000;
    if (++of->arrived == of->ranks) {
        of->begin_ns = wefti_host_now(host) + BETWEEN_NS;
        of->arrived = 0;
        of->turn++;
    }
    while (of->turn == turn) {
        host->sleep(host->context, pause_ns);
        if (pause_ns < BETWEEN_NS / 2) pause_ns *= 2;
    }
    uint64_t begin_ns = of->begin_ns, now_ns;
    while ((now_ns = wefti_host_now(host)) < begin_ns) host->sleep(host->context, begin_ns - now_ns);
    return begin_ns;
}

/* Gives all ranks the time that the call takes by the algorithm. */
static weft_status time_one(sim_rank *self, race *of, const wefti_collective_call *call, const coll_algorithm *algorithm, double *taken_us_out) {
    ((coll_group *)self->group)->forced[call->kind] = algorithm;
    uint64_t begin_ns = line_up(self, of);
    of->end_ns = 0;
    WEFTI_TRY(wefti_collective_run(self->group, call));
    uint64_t end_ns = wefti_host_now(self->transport->host);
    if (end_ns > of->end_ns) of->end_ns = end_ns;
    (void)line_up(self, of);
    *taken_us_out = (double)(of->end_ns - begin_ns) / 1e3;
    (void)line_up(self, of); /* all have seen it */
    return WEFT_OK;
}

static void judge(race *of, wefti_collective_kind kind, size_t bytes, const char *chosen, double chosen_us, const char *best, double best_us) {
    if (of->tells)
        printf("  => %s of %zu bytes: %s, %.1f us; best %s, %.1f us: %.2f%s\n", wefti_coll_kind_name(kind), bytes, chosen, chosen_us, best, best_us,
               chosen_us / best_us, chosen_us > MOST_RATIO * best_us ? " WRONG" : "");
    of->wrong += chosen_us > MOST_RATIO * best_us;
    cr_expect_leq(chosen_us, MOST_RATIO * best_us, "%s of %zu bytes, %d ranks, %d a host: %s was chosen and takes %.1f us; %s takes %.1f us",
                  wefti_coll_kind_name(kind), bytes, (int)of->ranks, (int)of->here, chosen, chosen_us, best, best_us);
}

static void judge_estimate(race *of, const wefti_collective_call *call, size_t bytes, const char *name, double taken_us, double cost_us, bool chosen) {
    double most = chosen ? CHOSEN_ESTIMATE : ANY_ESTIMATE, ratio = cost_us / taken_us;
    bool   wrong = ratio > most || ratio < 1 / most;
    if (of->tells)
        printf("%-16s %9zu %-13s %12.1f us; by cost %12.1f us: %.2f%s\n", wefti_coll_kind_name(call->kind), bytes, name, taken_us, cost_us, ratio,
               wrong ? " WRONG" : "");
    of->wrong += wrong;
    cr_expect(!wrong, "%s of %zu bytes, %d ranks, %d a host: %s takes %.1f us, and was thought to take %.1f%s", wefti_coll_kind_name(call->kind), bytes,
              (int)of->ranks, (int)of->here, name, taken_us, cost_us, chosen ? " when it was chosen" : "");
}

static weft_status race_all(sim_rank *self, race *of, const wefti_collective_call *call) {
    coll_group *group = (coll_group *)self->group;
    size_t bytes = call->count * sizeof(int32_t);
    group->forced[call->kind] = NULL;
    const coll_algorithm *chosen = wefti_coll_choose(group, call, bytes), *best = NULL;
    double chosen_us = 0, best_us = 0;
    int    raced = 0;
    for (int i = 0; i < wefti_coll_algorithm_count; i++) {
        const coll_algorithm *algorithm = &wefti_coll_algorithms[i];
        double taken_us;
        if (!(algorithm->kinds >> call->kind & 1) || algorithm->mapped || !algorithm->fits(group, call, bytes)) continue;
        WEFTI_TRY(time_one(self, of, call, algorithm, &taken_us));
        raced++;
        if (self->rank == 0)
            judge_estimate(of, call, bytes, algorithm->name, taken_us, algorithm->cost_ns(group, call->kind, bytes) / 1e3, algorithm == chosen);
        if (algorithm == chosen) chosen_us = taken_us;
        if (!best || taken_us < best_us) best = algorithm, best_us = taken_us;
    }
    if (self->rank != 0) return WEFT_OK;
    of->calls++;
    of->choices += raced > 1;
    judge(of, call->kind, bytes, chosen->name, chosen_us, best->name, best_us);
    return WEFT_OK;
}

static bool has_parts(wefti_collective_kind kind) {
    return kind != WEFTI_ALLREDUCE && kind != WEFTI_BROADCAST && kind != WEFTI_REDUCE_TO;
}

/* The costs of links and memory are measured, as they are before programs use them. */
static weft_status measure(sim_rank *self, race *of) {
    wefti_tuning tuning;
    WEFTI_TRY(wefti_tuning_measure(self->group, &tuning, NULL));
    wefti_tuning_apply(self->group, &tuning);
    if (of->tells && self->rank == 0)
        printf("near %.0f ns, %.4f ns a byte; far %.0f ns, %.4f; memory %.4f\n", tuning.alpha_ns, tuning.beta_ns, tuning.far_alpha_ns,
               tuning.far_beta_ns, tuning.gamma_ns);
    if (self->rank == 0 && of->here > 1) { /* the simulator's, with what is charged for sending and taking */
        cr_expect(tuning.alpha_ns > 850 && tuning.alpha_ns < 1000, "%g ns inside of hosts", tuning.alpha_ns);
        cr_expect(tuning.far_alpha_ns > 2300 && tuning.far_alpha_ns < 2600, "%g ns between hosts", tuning.far_alpha_ns);
    }
    return WEFT_OK;
}

static weft_status run_race(sim_rank *self) {
    race *of = (race *)(uintptr_t)self->world->context;
    WEFTI_TRY(sim_rank_open(self, NULL, of->here > 1 ? of->nodes : NULL, 4));
    WEFTI_TRY(measure(self, of));
    for (int kind = 0; kind < WEFTI_SEND; kind++) {
        if (kind == WEFTI_BARRIER || kind == WEFTI_ALLTOALL_V) continue; /* there is one algorithm for them */
        bool parts = has_parts((wefti_collective_kind)kind);
        for (size_t bytes = of->least; bytes <= of->most; bytes *= of->step) {
            size_t count = bytes / sizeof(int32_t) / (parts ? (size_t)of->ranks : 1);
            if (count < 2) continue;
            for (int32_t i = 0; i < of->ranks; i++) of->counts[i] = count;
            const wefti_collective_call call = {.kind = (wefti_collective_kind)kind, .dtype = WEFT_I32, .op = WEFTI_REDUCE_SUM, .root = 3,
                                                .send = kind == WEFTI_BROADCAST ? of->receive : of->send, .receive = of->receive, .count = count,
                                                .counts = of->counts};
            WEFTI_TRY(race_all(self, of, &call));
        }
    }
    return WEFT_OK;
}

void costs_run(int32_t ranks, int32_t here, size_t least, size_t most, size_t step) {
    race of = {.ranks = ranks, .here = here, .tells = getenv("WEFT_SIM_COSTS") != NULL, .least = least, .most = most, .step = step};
    for (int32_t rank = 0; rank < ranks; rank++) of.nodes[rank] = rank / here;
    of.send = calloc(1, most);
    of.receive = calloc(1, most);
    cr_assert(of.send && of.receive);
    const wefti_sim_options options = {.seed = 1, .size = ranks, .nodes = of.nodes, .limit_ns = 600 * WEFTI_SECOND_NS};
    sim_world world = {.function = run_race, .context = &of, .timeout_ns = 60 * WEFTI_SECOND_NS};
    char words[700];
    sim_world_run(&world, &options, NULL);
    const char *wrong = sim_world_judge(&world, -1, false, words, sizeof words);
    cr_expect_null(wrong, "%s", wrong);
    cr_expect_gt(of.choices, 10, "there was something to choose in %d of %d calls", of.choices, of.calls);
    if (!wrong) sim_world_free(&world);
    free(of.send);
    free(of.receive);
}

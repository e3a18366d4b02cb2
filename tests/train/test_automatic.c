/* Automatic strategies through the trainer, on ranks that are processes: what was chosen trains to the losses of one process, keeps to the memory that a rank may
 * take, and says why; what is computed again has the same bits in less memory. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "core/iface/world.h"
#include "train/trainer.h"
#include "weft.h"
#include "transport/ranks.h"

enum { BATCH = 8, CONTEXT = 8, LETTERS = 20, WIDTH = 16, STEPS = 6 };

static bool mixed; /* with mixtures of experts */
static bool deep;  /* with places of as many axes as there may be, which cannot be cut along time */

static weft_tensor *gpt(weft_graph *g) {
    weft_tensor *extra = NULL, *x = weft_input(g, "x", WEFT_I32, weft_shape(BATCH, CONTEXT)), *y = weft_input(g, "y", WEFT_I32, weft_shape(BATCH, CONTEXT));
    weft_tensor *table = weft_parameter(g, "letters", weft_shape(LETTERS, WIDTH), .init = weft_init_normal(0, 0.1));
    x = weft_embedding(x, "embedding", .weight = table);
    if (deep) {
        weft_tensor *places = weft_parameter(g, "places", weft_shape(1, CONTEXT, 1, 1, 1, 1, 1, WIDTH), .init = weft_init_normal(0, 0.1));
        x = weft_reshape(weft_add(weft_reshape(x, weft_shape(BATCH, CONTEXT, 1, 1, 1, 1, 1, WIDTH)), places), weft_shape(BATCH, CONTEXT, WIDTH));
    }
    for (int i = 0; i < 2; i++) {
        weft_scope_push(g, i == 0 ? "block0" : "block1");
        x = weft_add(x, weft_self_attention(weft_layer_norm(x, "norm1"), "attention", .heads = 2, .causal = true));
        weft_tensor *balance, *y2 = weft_layer_norm(x, "norm2");
        if (mixed) y2 = weft_mixture_of_experts(y2, "experts", .experts = 4, .choices = 2, .hidden = 2 * WIDTH, .capacity = 1, .balance_out = &balance);
        else y2 = weft_linear(weft_gelu_tanh(weft_linear(y2, "up", .out = 4 * WIDTH)), "down", .out = WIDTH);
        if (mixed) extra = extra ? weft_add(extra, balance) : balance;
        x = weft_add(x, weft_dropout(y2, 0.1));
        weft_scope_pop(g);
    }
    weft_tensor *loss = weft_cross_entropy(weft_linear(weft_layer_norm(x, "norm"), "head", .weight = table), y);
    return extra ? weft_add(loss, weft_mul_scalar(extra, 0.01)) : loss;
}

static weft_status begin(weft_world *world, weft_strategy how, weft_graph **graph_out, weft_trainer **trainer_out) {
    WEFTI_TRY(weft_graph_create(&(weft_graph_options){.seed = 5}, graph_out));
    return weft_trainer_create(world, &(weft_program){.loss = gpt(*graph_out), .solver = weft_adamw(0.01), .strategy = how}, trainer_out);
}

static weft_status step(weft_trainer *trainer, int s, double *loss_out) {
    static int32_t tokens[BATCH * CONTEXT], targets[BATCH * CONTEXT];
    int32_t        share, shares;
    int64_t        first, rows;
    weft_report    report;
    for (int i = 0; i < BATCH * CONTEXT; i++) tokens[i] = (i * 7 + s % 3 * 5) % LETTERS, targets[i] = (tokens[i] * 3 + 1) % LETTERS;
    weft_trainer_share(trainer, &share, &shares);
    weft_batch_share(BATCH, share, shares, &first, &rows);
    weft_batch batch = {.field_count = 2, .global_rows = BATCH, .local_rows = rows, .first_row = first};
    batch.field[0] = (weft_batch_field){"x", WEFT_I32, weft_shape(rows, CONTEXT), tokens + first * CONTEXT};
    batch.field[1] = (weft_batch_field){"y", WEFT_I32, weft_shape(rows, CONTEXT), targets + first * CONTEXT};
    WEFTI_TRY(weft_trainer_step(trainer, &batch, &report));
    *loss_out = report.loss;
    return WEFT_OK;
}

static weft_strategy asked;

static weft_status compare(ranks *all, int32_t rank) {
    weft_world   *world = NULL, lone;
    weft_graph   *graphs[2] = {NULL, NULL};
    weft_trainer *many = NULL, *alone = NULL;
    const char   *text = "";
    double        got = 0, want = 0;
    (void)all, (void)rank;
    WEFTI_TRY(weft_world_create(&(weft_world_options){.threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS}, &world));
    lone = *world;
    lone.rank = 0;
    lone.size = 1;
    lone.group = NULL;
    lone.groups = NULL;
    weft_status status = begin(&lone, (weft_strategy){0}, &graphs[0], &alone);
    if (status == WEFT_OK) status = begin(world, asked, &graphs[1], &many);
    if (status == WEFT_OK) status = weft_trainer_describe(many, &text);
    if (status == WEFT_OK && (!strstr(text, "chosen of ") || !strstr(text, "because a step should take ")))
        status = wefti_fail(WEFT_E_INTERNAL, "no reasons are given: %s", text);
    const weft_strategy *chosen = status == WEFT_OK ? weft_trainer_strategy(many) : NULL;
    int32_t others = chosen ? (chosen->sequence > 1 ? chosen->sequence : 1) * (chosen->expert > 1 ? chosen->expert : 1) : 0;
    if (chosen && (chosen->automatic || chosen->data * chosen->tensor * chosen->pipeline * others != world->size || (asked.tensor > 0 && chosen->tensor != asked.tensor) ||
                   (asked.sequence > 0 && chosen->sequence != asked.sequence) || (asked.expert > 0 && chosen->expert != asked.expert)))
        status = wefti_fail(WEFT_E_INTERNAL, "%s was chosen", weft_strategy_text(chosen).text);
    for (int s = 0; s < STEPS && status == WEFT_OK; s++) {
        if ((status = step(many, s, &got)) != WEFT_OK || (status = step(alone, s, &want)) != WEFT_OK) break;
        if (!(fabs(got - want) <= 1e-4 * fabs(want)))
            status = wefti_fail(WEFT_E_INTERNAL, "step %d of %s: the loss is %.9g, not %.9g", s, weft_strategy_text(chosen).text, got, want);
    }
    weft_trainer_release(many);
    weft_trainer_release(alone);
    for (int i = 0; i < 2; i++) weft_graph_release(graphs[i]);
    weft_world_release(world);
    return status;
}

static void all_well(int32_t n, weft_status (*what)(ranks *all, int32_t rank)) {
    ranks *all = ranks_start(n, what);
    ranks_join(all);
    for (int32_t r = 0; r < n; r++)
        cr_expect(atomic_load(&all->results[r].finished) && all->results[r].status == WEFT_OK, "rank %d: %s", (int)r, all->results[r].message);
    ranks_free(all);
}

static void agrees(int32_t n, weft_strategy how) {
    asked = how;
    asked.automatic = true;
    all_well(n, compare);
}

Test(automatic, trains_as_one_process_does) { agrees(2, (weft_strategy){0}); }
Test(automatic, trains_on_four_ranks) { agrees(4, (weft_strategy){0}); }
Test(automatic, leaves_alone_what_is_set) { agrees(4, (weft_strategy){.tensor = 2}); }
Test(automatic, knows_time) { agrees(4, (weft_strategy){.sequence = 2}); }
Test(automatic, leaves_out_what_cannot_be_dealt_out) {
    deep = true;
    agrees(2, (weft_strategy){0});
}
Test(automatic, knows_experts) {
    mixed = true;
    agrees(4, (weft_strategy){.expert = 2});
}
static weft_status ask_for_what_is_not_there(ranks *all, int32_t rank) {
    weft_world   *world = NULL;
    weft_graph   *graph = NULL;
    weft_trainer *trainer = NULL;
    (void)all, (void)rank;
    WEFTI_TRY(weft_world_create(&(weft_world_options){.threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS}, &world));
    weft_status got = begin(world, (weft_strategy){.automatic = true, .expert = 2}, &graph, &trainer), status = WEFT_OK;
    if (got != WEFT_E_INVALID || !strstr(weft_error_message(), "no mixture of experts"))
        status = wefti_fail(WEFT_E_INTERNAL, "experts that are not there: %s: %s", weft_status_name(got), weft_error_message());
    weft_trainer_release(trainer);
    weft_graph_release(graph);
    weft_world_release(world);
    return status;
}

Test(automatic, says_what_the_program_has_not) {
    ranks *all = ranks_start(2, ask_for_what_is_not_there);
    ranks_join(all);
    for (int32_t r = 0; r < 2; r++)
        cr_expect(atomic_load(&all->results[r].finished) && all->results[r].status == WEFT_OK, "rank %d: %s", (int)r, all->results[r].message);
    ranks_free(all);
}

Test(automatic, chooses_among_all_axes) {
    mixed = true;
    agrees(4, (weft_strategy){0});
}
Test(automatic, goes_by_a_server_where_it_is_told_to) { agrees(2, (weft_strategy){.sync = WEFT_SERVER}); }

/* A rank that may hold less than what sharing the batch takes has parts of something; one that may hold nothing is told what it would need. */
static weft_status hold_less(ranks *all, int32_t rank) {
    weft_world        *world = NULL;
    weft_graph        *graph = NULL;
    weft_trainer      *trainer = NULL;
    wefti_auto_costs   costs;
    wefti_auto_machine machine;
    (void)all, (void)rank;
    WEFTI_TRY(weft_world_create(&(weft_world_options){.threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS}, &world));
    weft_status status = weft_graph_create(NULL, &graph);
    weft_trainer stand_in = {.world = world, .program = {.loss = gpt(graph), .solver = weft_adamw(0.01), .strategy = {.automatic = true}}};
    if (status == WEFT_OK) status = wefti_automatic_costs(&stand_in, &costs);
    if (status == WEFT_OK) status = wefti_automatic_measure(world, 0, &machine);
    weft_graph_release(graph);
    graph = NULL;
    if (status != WEFT_OK) return status;
    double by_data = wefti_auto_judge(&costs, &machine, &(weft_strategy){.data = 2, .tensor = 1, .pipeline = 1, .accumulate = 4}).memory_bytes;
    status = begin(world, (weft_strategy){.automatic = true, .memory_bytes = (int64_t)(0.9 * by_data / 0.9)}, &graph, &trainer);
    const weft_strategy *chosen = status == WEFT_OK ? weft_trainer_strategy(trainer) : NULL;
    if (chosen && chosen->tensor * chosen->pipeline == 1 && chosen->zero == 0)
        status = wefti_fail(WEFT_E_INTERNAL, "with %.0f bytes %s was chosen", by_data, weft_strategy_text(chosen).text);
    weft_trainer_release(trainer);
    weft_graph_release(graph);
    graph = NULL;
    if (status == WEFT_OK) {
        weft_status tight = begin(world, (weft_strategy){.automatic = true, .memory_bytes = 1000}, &graph, &trainer);
        if (tight != WEFT_E_NO_MEMORY || !strstr(weft_error_message(), "ranks would do"))
            status = wefti_fail(WEFT_E_INTERNAL, "with 1000 bytes %s came: %.200s", weft_status_name(tight), weft_error_message());
        weft_trainer_release(trainer);
        weft_graph_release(graph);
    }
    weft_world_release(world);
    return status;
}

Test(automatic, keeps_to_the_memory_of_a_rank) { all_well(2, hold_less); }

/* Parameters in bf16 are not dealt out: where that alone would make room, there is none. */
static weft_status begin_bf16(weft_world *world, weft_strategy how, weft_graph **graph_out, weft_trainer **trainer_out) {
    WEFTI_TRY(weft_graph_create(&(weft_graph_options){.seed = 5}, graph_out));
    weft_tensor *letters = weft_input(*graph_out, "x", WEFT_I32, weft_shape(BATCH)), *y = weft_input(*graph_out, "y", WEFT_I32, weft_shape(BATCH));
    weft_tensor *table = weft_parameter(*graph_out, "table", weft_shape(LETTERS, 4096), .dtype = WEFT_BF16, .init = weft_init_normal(0, 0.1));
    weft_tensor *x = weft_cast(weft_embedding(letters, "embedding", .weight = table), WEFT_F32);
    return weft_trainer_create(world, &(weft_program){.loss = weft_cross_entropy(weft_linear(x, "head", .out = LETTERS), y),
                               .solver = weft_adamw(0.01, .stochastic_rounding = true), .strategy = how}, trainer_out);
}
static weft_status hold_bf16(ranks *all, int32_t rank) {
    weft_world  *world = NULL;
    weft_status  status = WEFT_OK;
    (void)all, (void)rank;
    WEFTI_TRY(weft_world_create(&(weft_world_options){.threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS}, &world));
    for (int64_t bytes = 1 << 19; bytes <= 1 << 23 && status == WEFT_OK; bytes += bytes / 4) {
        weft_graph   *graph = NULL;
        weft_trainer *trainer = NULL;
        weft_status   got = begin_bf16(world, (weft_strategy){.automatic = true, .tensor = 1, .pipeline = 1, .accumulate = 1, .memory_bytes = bytes}, &graph, &trainer);
        if (got != WEFT_OK && got != WEFT_E_NO_MEMORY)
            status = wefti_fail(WEFT_E_INTERNAL, "with %lld bytes %s came: %.300s", (long long)bytes, weft_status_name(got), weft_error_message());
        weft_trainer_release(trainer);
        weft_graph_release(graph);
    }
    weft_world_release(world);
    return status;
}
Test(automatic, deals_out_no_parameters_in_bf16) { all_well(2, hold_bf16); }

Test(automatic, what_is_computed_again_has_the_same_bits_in_less_memory) {
    weft_world *world = NULL;
    double      loss[2][STEPS];
    int64_t     peak[2];
    cr_assert_eq(weft_world_create(&(weft_world_options){.threads = {.count = 1}}, &world), WEFT_OK, "%s", weft_error_message());
    for (int again = 0; again < 2; again++) {
        weft_graph      *graph = NULL;
        weft_trainer    *trainer = NULL;
        weft_plan_totals totals;
        cr_assert_eq(begin(world, (weft_strategy){.recompute = again}, &graph, &trainer), WEFT_OK, "%s", weft_error_message());
        for (int s = 0; s < STEPS; s++) cr_assert_eq(step(trainer, s, &loss[again][s]), WEFT_OK, "%s", weft_error_message());
        weft_plan_totals_read(weft_trainer_plan(trainer), &totals);
        peak[again] = totals.peak_bytes;
        weft_trainer_release(trainer);
        weft_graph_release(graph);
    }
    cr_expect(memcmp(loss[0], loss[1], sizeof loss[0]) == 0, "%.17g is not %.17g", loss[1][STEPS - 1], loss[0][STEPS - 1]);
    cr_expect(peak[1] < 0.9 * (double)peak[0], "%lld bytes are live at once, %lld where all is kept", (long long)peak[1], (long long)peak[0]);
    weft_world_release(world);
}

Test(automatic, describes_what_was_said) {
    weft_world   *world = NULL;
    weft_graph   *graph = NULL;
    weft_trainer *trainer = NULL;
    const char   *text = NULL;
    cr_assert_eq(weft_world_create(&(weft_world_options){.threads = {.count = 1}}, &world), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(begin(world, (weft_strategy){.accumulate = 2}, &graph, &trainer), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_trainer_describe(trainer, &text), WEFT_OK);
    cr_expect_str_eq(text, "strategy: accumulate=2, as the program says\n");
    cr_expect_eq(weft_trainer_describe(NULL, &text), WEFT_E_INVALID);
    weft_trainer_release(trainer);
    weft_graph_release(graph);
    weft_world_release(world);
}

/* What planning costs, and what a strategy that splits nothing does: nothing. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "core/iface/world.h"
#include "weft.h"
#include "transport/ranks.h"

enum { BATCH = 4, CONTEXT = 8, LETTERS = 32, WIDTH = 32, HEADS = 4 };

static weft_tensor *gpt(weft_graph *g, int layers) {
    weft_tensor *x = weft_input(g, "x", WEFT_I32, weft_shape(BATCH, CONTEXT)), *y = weft_input(g, "y", WEFT_I32, weft_shape(BATCH, CONTEXT));
    weft_tensor *table = weft_parameter(g, "letters", weft_shape(LETTERS, WIDTH), .init = weft_init_normal(0, 0.1));
    x = weft_add(weft_embedding(x, "embedding", .weight = table), weft_parameter(g, "places", weft_shape(CONTEXT, WIDTH)));
    for (int i = 0; i < layers; i++) {
        char name[16];
        snprintf(name, sizeof name, "block%d", i);
        weft_scope_push(g, name);
        x = weft_add(x, weft_self_attention(weft_layer_norm(x, "norm1"), "attention", .heads = HEADS, .causal = true));
        x = weft_add(x, weft_linear(weft_gelu_tanh(weft_linear(weft_layer_norm(x, "norm2"), "up", .out = 4 * WIDTH)), "down", .out = WIDTH));
        weft_scope_pop(g);
    }
    return weft_cross_entropy(weft_linear(weft_layer_norm(x, "norm"), "head", .weight = table), y);
}

/* CPU time: other programs of the machine are not planning's. */
static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static weft_status create(weft_world *world, int layers, weft_strategy strategy, weft_graph **graph_out, weft_trainer **trainer_out, double *seconds_out) {
    double begun = seconds();
    WEFTI_TRY(weft_graph_create(&(weft_graph_options){.seed = 5}, graph_out));
    weft_status status = weft_trainer_create(world, &(weft_program){.loss = gpt(*graph_out, layers), .solver = weft_adamw(0.01, .clip_norm = 1), .strategy = strategy}, trainer_out);
    *seconds_out = seconds() - begun;
    return status;
}

static weft_strategy tried;
static double        bound;

static weft_status plan_deep(ranks *all, int32_t rank) {
    weft_world   *world = NULL;
    weft_graph   *graph = NULL;
    weft_trainer *trainer = NULL;
    double        took = 0;
    (void)all;
    WEFTI_TRY(weft_world_create(&(weft_world_options){.threads = {.count = 1}, .timeout_ns = 60 * (int64_t)WEFTI_SECOND_NS}, &world));
    weft_status status = create(world, 48, tried, &graph, &trainer, &took);
    if (status == WEFT_OK && rank == 0) fprintf(stderr, "  48 layers, %s: %.3f s to build, plan and commit\n", weft_strategy_text(&tried).text, took);
    if (status == WEFT_OK && took > bound) status = wefti_fail(WEFT_E_INTERNAL, "planning takes %.2f s", took);
    weft_trainer_release(trainer);
    weft_graph_release(graph);
    weft_world_release(world);
    return status;
}

/* Measured: docs/strategies.md. The bounds are for slow machines. */
static void plans(int32_t n, weft_strategy strategy, double most) {
    tried = strategy;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    most *= 10;
#endif
    bound = most;
    ranks *all = ranks_start(n, plan_deep);
    ranks_join(all);
    for (int32_t r = 0; r < n; r++)
        cr_expect(atomic_load(&all->results[r].finished) && all->results[r].status == WEFT_OK, "rank %d: %s", (int)r, all->results[r].message);
    ranks_free(all);
}

Test(planning, of_48_layers_takes_less_than_a_second) { plans(1, (weft_strategy){0}, 3); }
Test(planning, of_48_layers_along_data) { plans(2, (weft_strategy){.data = 2}, 3); }
Test(planning, of_48_layers_along_tensors) { plans(2, (weft_strategy){.tensor = 2}, 5); }
Test(planning, of_48_layers_as_a_pipeline) { plans(2, (weft_strategy){.pipeline = 2, .accumulate = 4}, 5); }
Test(planning, of_48_layers_by_a_strategy_that_is_chosen) { plans(2, (weft_strategy){.automatic = true}, 10); }

/* The plan's text: operations, bytes, segments. The order of the trainers' variables and addresses is in none. */
static char *text_of(weft_world *world, weft_strategy strategy) {
    weft_graph   *graph = NULL;
    weft_trainer *trainer = NULL;
    const char   *text = NULL;
    double        took;
    cr_assert_eq(create(world, 2, strategy, &graph, &trainer, &took), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_plan_describe(weft_trainer_plan(trainer), &text), WEFT_OK);
    char *copy = strdup(text);
    weft_trainer_release(trainer);
    weft_graph_release(graph);
    return copy;
}

Test(planning, a_strategy_of_ones_is_the_plain_plan) {
    weft_world *world = NULL;
    cr_assert_eq(weft_world_create(&(weft_world_options){.threads = {.count = 1}}, &world), WEFT_OK, "%s", weft_error_message());
    char *plain = text_of(world, (weft_strategy){0});
    char *ones = text_of(world, (weft_strategy){.data = 1, .tensor = 1, .pipeline = 1, .accumulate = 1});
    char *two = text_of(world, (weft_strategy){.accumulate = 2});
    cr_expect_str_eq(ones, plain);
    cr_expect(strcmp(two, plain) != 0, "the text tells nothing apart");
    weft_world_release(world);
    free(plain);
    free(ones);
    free(two);
}

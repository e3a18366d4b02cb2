/* Pipelines through the trainer, on ranks that are processes: a single process's bits for any order of micro-batches, alone and beside ranks along
 * data; parameters on their stage alone; what is refused; and a rank that dies ends all. */
#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "core/iface/world.h"
#include "weft.h"
#include "transport/ranks.h"

enum { BATCH = 16, STEPS = 8, PIXELS = 12, CLASSES = 5, CONTEXT = 8, LETTERS = 20, WIDTH = 16 };

/* --- programs --- */

typedef enum norm_kind { BY_LAYER, BY_BATCH } norm_kind;

static weft_tensor *perceptron(weft_graph *g, bool all, norm_kind norm) {
    weft_tensor *x = weft_input(g, "x", WEFT_F32, weft_shape(BATCH, PIXELS)), *y = weft_input(g, "y", WEFT_I32, weft_shape(BATCH));
    x = weft_relu(weft_linear(x, "first", .out = 24));
    if (all) x = weft_dropout(x, 0.2);
    x = weft_linear(x, "second", .out = 24);
    x = weft_gelu(norm == BY_BATCH ? weft_batch_norm(x, "norm") : weft_layer_norm(x, "norm"));
    return weft_cross_entropy(weft_linear(weft_relu(weft_linear(x, "third", .out = 24)), "head", .out = CLASSES), y);
}

/* Two blocks, and the table of letters is the head's weight, too: both ends of the pipeline read it. */
static weft_tensor *gpt(weft_graph *g) {
    weft_tensor *x = weft_input(g, "x", WEFT_I32, weft_shape(BATCH, CONTEXT)), *y = weft_input(g, "y", WEFT_I32, weft_shape(BATCH, CONTEXT));
    weft_tensor *table = weft_parameter(g, "letters", weft_shape(LETTERS, WIDTH), .init = weft_init_normal(0, 0.1));
    x = weft_add(weft_embedding(x, "embedding", .weight = table), weft_parameter(g, "places", weft_shape(CONTEXT, WIDTH), .init = weft_init_normal(0, 0.1)));
    for (int i = 0; i < 2; i++) {
        weft_scope_push(g, i == 0 ? "block0" : "block1");
        x = weft_add(x, weft_self_attention(weft_layer_norm(x, "norm1"), "attention", .heads = 2, .causal = true));
        x = weft_add(x, weft_linear(weft_gelu_tanh(weft_linear(weft_layer_norm(x, "norm2"), "up", .out = 4 * WIDTH)), "down", .out = WIDTH));
        weft_scope_pop(g);
    }
    return weft_cross_entropy(weft_linear(weft_layer_norm(x, "norm"), "head", .weight = table), y);
}

typedef struct trial {
    const char         *wire;
    bool                text, everything; /* the GPT; dropout, clipping by norm and a regulariser with it */
    int32_t             ranks, stages, micro;
    weft_pipeline_order schedule;
    int32_t             chunks;
    norm_kind           norm;
    weft_dtype          precision;
    bool                uneven;    /* every fourth batch is smaller, and is no multiple of the micro-batches */
    double              tolerance; /* of losses, relative; 0: bits */
    int32_t             dies_at;   /* step in which the last rank ends; 0: none */
} trial;

static trial        now;
static weft_tensor *losses[2]; /* of the trainers that were begun, in their order */
static int          begun;

static weft_status begin(weft_world *world, weft_strategy strategy, weft_graph **graph_out, weft_trainer **trainer_out) {
    WEFTI_TRY(weft_graph_create(&(weft_graph_options){.seed = 5}, graph_out));
    weft_program program = {.loss = now.text ? gpt(*graph_out) : perceptron(*graph_out, now.everything, now.norm), .solver = weft_adamw(0.01), .strategy = strategy};
    losses[begun++ % 2] = program.loss;
    if (now.everything) program.solver.clip_norm = 0.5;
    if (now.everything) program.regulariser = weft_l2(1e-3);
    return weft_trainer_create(world, &program, trainer_out);
}

static uint32_t draw(uint32_t *state) { return (*state = *state * 1664525u + 1013904223u) >> 8; }

/* The same batch for all, of which a rank along data gives its rows. */
static weft_batch batch_of(int s, int32_t data_rank, int32_t data_ranks) {
    static float   x[BATCH * PIXELS];
    static int32_t tokens[BATCH * CONTEXT], targets[BATCH * CONTEXT];
    uint32_t       state = 77u + (uint32_t)s % 4;
    int64_t        first, rows;
    for (int i = 0; i < BATCH * PIXELS; i++) x[i] = (float)(draw(&state) % 2000) / 1000 - 1;
    for (int i = 0; i < BATCH * CONTEXT; i++) tokens[i] = (int32_t)(draw(&state) % LETTERS);
    for (int i = 0; i < BATCH * CONTEXT; i++) targets[i] = now.text ? (tokens[i] * 7 + 3) % LETTERS : (int32_t)(draw(&state) % CLASSES);
    int64_t all = now.uneven && s % 4 == 3 ? BATCH - 5 : BATCH;
    weft_batch_share(all, data_rank, data_ranks, &first, &rows);
    weft_batch batch = {.field_count = 2, .global_rows = all, .local_rows = rows, .first_row = first};
    if (now.text) {
        batch.field[0] = (weft_batch_field){"x", WEFT_I32, weft_shape(rows, CONTEXT), tokens + first * CONTEXT};
        batch.field[1] = (weft_batch_field){"y", WEFT_I32, weft_shape(rows, CONTEXT), targets + first * CONTEXT};
    } else {
        batch.field[0] = (weft_batch_field){"x", WEFT_F32, weft_shape(rows, PIXELS), x + first * PIXELS};
        batch.field[1] = (weft_batch_field){"y", WEFT_I32, weft_shape(rows), targets + first};
    }
    return batch;
}

static weft_status step(weft_trainer *trainer, int s, int32_t data_rank, int32_t data_ranks, double *loss_out) {
    weft_batch  batch = batch_of(s, data_rank, data_ranks);
    weft_report report;
    WEFTI_TRY(weft_trainer_step(trainer, &batch, &report));
    *loss_out = report.loss;
    return WEFT_OK;
}

/* Without dropout, and of the whole batch at once. */
static weft_status evaluate(weft_trainer *trainer, weft_tensor *loss, int32_t data_rank, int32_t data_ranks, float *loss_out) {
    weft_batch      batch = batch_of(1, data_rank, data_ranks);
    weft_evaluator *evaluator = NULL;
    WEFTI_TRY(weft_evaluator_create(trainer, &loss, 1, &evaluator));
    weft_status status = weft_evaluator_run(evaluator, &batch);
    if (status == WEFT_OK) status = weft_evaluator_fetch(evaluator, 0, loss_out, sizeof *loss_out);
    weft_evaluator_release(evaluator);
    return status;
}

/* --- comparing --- */

/* All variables that are here are as they are in the other trainer; gives how many parameters' bytes these are. */
static weft_status compare_variables(weft_trainer *here, weft_trainer *alone, int64_t *bytes_out) {
    static unsigned char got[1 << 16], want[1 << 16];
    weft_variables      *v = weft_trainer_variables(here);
    for (int32_t i = 0; i < weft_variables_count(v); i++) {
        weft_variable_info info;
        WEFTI_TRY(weft_variables_info(v, i, &info));
        WEFTI_TRY(weft_variables_get(v, info.name, got, (size_t)info.bytes));
        WEFTI_TRY(weft_variables_get(weft_trainer_variables(alone), info.name, want, (size_t)info.bytes));
        if (now.tolerance == 0 && memcmp(got, want, (size_t)info.bytes) != 0) return wefti_fail(WEFT_E_INTERNAL, "'%s' differs", info.name);
        *bytes_out += info.bytes;
    }
    return WEFT_OK;
}

static int64_t bytes_of(weft_trainer *trainer) {
    weft_variables    *v = weft_trainer_variables(trainer);
    weft_variable_info info;
    int64_t            bytes = 0;
    for (int32_t i = 0; i < weft_variables_count(v); i++)
        if (weft_variables_info(v, i, &info) == WEFT_OK) bytes += info.bytes;
    return bytes;
}

/* Each variable is on one stage. */
static weft_status count_bytes(weft_world *world, int64_t here, int64_t all, int32_t data_ranks) {
    int64_t               sum = here;
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_I64, .op = WEFTI_REDUCE_SUM, .send = &sum, .receive = &sum, .count = 1};
    WEFTI_TRY(wefti_collective_run(world->group, &call));
    if (sum == all * data_ranks && here > 0 && here < all) return WEFT_OK;
    return wefti_fail(WEFT_E_INTERNAL, "%lld bytes of variables are here and %lld on all ranks; one process has %lld", (long long)here, (long long)sum, (long long)all);
}

static weft_status compare_steps(weft_world *world, weft_trainer *many, weft_trainer *alone) {
    int32_t part, parts;
    double  got = 0, want = 0, first = 0;
    int64_t here = 0;
    WEFTI_TRY(weft_strategy_share(&(weft_strategy){.pipeline = now.stages}, world, &part, &parts));
    for (int s = 0; s < STEPS; s++) {
        WEFTI_TRY(step(many, s, part, parts, &got));
        WEFTI_TRY(step(alone, s, 0, 1, &want));
        if (s == 0) first = want;
        if (!(fabs(got - want) <= now.tolerance * fabs(want))) return wefti_fail(WEFT_E_INTERNAL, "step %d: the loss is %.17g, not %.17g", s, got, want);
    }
    if (!(want < first)) return wefti_fail(WEFT_E_INTERNAL, "the loss went from %g to %g", first, want);
    float evaluated[2] = {0, 0};
    WEFTI_TRY(evaluate(alone, losses[0], 0, 1, &evaluated[0]));
    WEFTI_TRY(evaluate(many, losses[1], part, parts, &evaluated[1]));
    if (!(fabs((double)(evaluated[1] - evaluated[0])) <= now.tolerance * fabs((double)evaluated[0])))
        return wefti_fail(WEFT_E_INTERNAL, "evaluated, the loss is %.9g, not %.9g", (double)evaluated[1], (double)evaluated[0]);
    WEFTI_TRY(compare_variables(many, alone, &here));
    return count_bytes(world, here, bytes_of(alone), parts);
}

static weft_status open_worlds(weft_world **world_out, weft_world *lone) {
    WEFTI_TRY(weft_world_create(&(weft_world_options){.wire = now.wire, .threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS}, world_out));
    *lone = **world_out;
    lone->rank = 0;
    lone->size = 1;
    lone->group = NULL;
    lone->groups = NULL;
    return WEFT_OK;
}

static weft_status compare(ranks *all, int32_t rank) {
    weft_world   *world = NULL, lone;
    weft_graph   *graphs[2] = {NULL, NULL};
    weft_trainer *many = NULL, *alone = NULL;
    (void)all, (void)rank;
    WEFTI_TRY(open_worlds(&world, &lone));
    weft_status status = begin(&lone, (weft_strategy){.accumulate = now.micro, .precision = now.precision}, &graphs[0], &alone);
    if (status == WEFT_OK) status = begin(world, (weft_strategy){.precision = now.precision, .pipeline = now.stages, .accumulate = now.micro, .schedule = now.schedule, .chunks = now.chunks}, &graphs[1], &many);
    if (status == WEFT_OK) status = compare_steps(world, many, alone);
    weft_trainer_release(many);
    weft_trainer_release(alone);
    for (int i = 0; i < 2; i++) weft_graph_release(graphs[i]);
    weft_world_release(world);
    return status;
}

static void run(trial what, rank_function function, int32_t survivors) {
    now = what;
    ranks *all = ranks_start(what.ranks, function);
    ranks_join(all);
    for (int32_t r = 0; r < survivors; r++)
        cr_expect(atomic_load(&all->results[r].finished) && all->results[r].status == WEFT_OK, "%s, rank %d: %s", what.wire, (int)r, all->results[r].message);
    ranks_free(all);
}
static void agrees(trial what) { run(what, compare, what.ranks); }

Test(pipeline, perceptron_by_1f1b) { agrees((trial){.wire = "shm", .ranks = 2, .stages = 2, .micro = 4}); }
Test(pipeline, perceptron_by_gpipe) { agrees((trial){.wire = "shm", .ranks = 2, .stages = 2, .micro = 4, .schedule = WEFT_GPIPE}); }
Test(pipeline, perceptron_on_three_stages_over_tcp) { agrees((trial){.wire = "tcp", .ranks = 3, .stages = 3, .micro = 5}); }
Test(pipeline, perceptron_in_one_piece) { agrees((trial){.wire = "shm", .ranks = 2, .stages = 2, .micro = 1}); }
Test(pipeline, dropout_clipping_and_a_regulariser) { agrees((trial){.wire = "shm", .everything = true, .ranks = 3, .stages = 3, .micro = 4}); }
Test(pipeline, gpt_by_1f1b) { agrees((trial){.wire = "shm", .text = true, .ranks = 2, .stages = 2, .micro = 4}); }
Test(pipeline, gpt_by_gpipe) { agrees((trial){.wire = "shm", .text = true, .ranks = 2, .stages = 2, .micro = 4, .schedule = WEFT_GPIPE}); }
Test(pipeline, perceptron_by_zero_bubble) { agrees((trial){.wire = "shm", .everything = true, .ranks = 3, .stages = 3, .micro = 5, .schedule = WEFT_ZERO_BUBBLE}); }
Test(pipeline, gpt_by_zero_bubble) { agrees((trial){.wire = "shm", .text = true, .ranks = 2, .stages = 2, .micro = 4, .schedule = WEFT_ZERO_BUBBLE}); }
Test(pipeline, gpt_interleaved) { agrees((trial){.wire = "shm", .text = true, .ranks = 2, .stages = 2, .micro = 4, .schedule = WEFT_INTERLEAVED}); }
Test(pipeline, gpt_interleaved_in_uneven_rounds) { agrees((trial){.wire = "tcp", .text = true, .ranks = 2, .stages = 2, .micro = 5, .schedule = WEFT_INTERLEAVED, .chunks = 3}); }
Test(pipeline, perceptron_interleaved_with_everything) { agrees((trial){.wire = "shm", .everything = true, .ranks = 2, .stages = 2, .micro = 4, .schedule = WEFT_INTERLEAVED}); }
Test(pipeline, uneven_last_batches) { agrees((trial){.wire = "shm", .everything = true, .ranks = 3, .stages = 3, .micro = 4, .uneven = true}); }
Test(pipeline, uneven_last_batches_interleaved) { agrees((trial){.wire = "shm", .text = true, .ranks = 2, .stages = 2, .micro = 4, .uneven = true, .schedule = WEFT_INTERLEAVED}); }
Test(pipeline, bf16) { agrees((trial){.wire = "shm", .text = true, .ranks = 2, .stages = 2, .micro = 4, .precision = WEFT_BF16}); }
Test(pipeline, f16) { agrees((trial){.wire = "shm", .text = true, .ranks = 2, .stages = 2, .micro = 4, .precision = WEFT_F16, .schedule = WEFT_ZERO_BUBBLE}); }
/* Its statistics are of all micro-batches: each waits for all forward passes up to there. */
Test(pipeline, batch_norm_by_gpipe) { agrees((trial){.wire = "shm", .norm = BY_BATCH, .ranks = 3, .stages = 3, .micro = 4, .schedule = WEFT_GPIPE}); }
Test(pipeline, batch_norm_in_one_piece) { agrees((trial){.wire = "shm", .norm = BY_BATCH, .ranks = 3, .stages = 3, .micro = 1}); }
Test(pipeline, gpt_beside_data) { agrees((trial){.wire = "shm", .text = true, .ranks = 4, .stages = 2, .micro = 2, .tolerance = 1e-4}); }
Test(pipeline, perceptron_beside_data) { agrees((trial){.wire = "tcp", .everything = true, .ranks = 4, .stages = 2, .micro = 2, .tolerance = 1e-4}); }

/* --- what the orders are for --- */

/* More rows than weights, so that what is kept of them is what memory is needed for. */
static weft_status begin_wide(weft_world *world, weft_strategy strategy, weft_graph **graph_out, weft_trainer **trainer_out) {
    WEFTI_TRY(weft_graph_create(NULL, graph_out));
    weft_tensor *x = weft_input(*graph_out, "x", WEFT_F32, weft_shape(512, 32));
    const char  *names[] = {"a", "b", "c", "d"};
    for (int i = 0; i < 4; i++) x = weft_tanh(weft_linear(x, names[i], .out = 32));
    return weft_trainer_create(world, &(weft_program){.loss = weft_mean(weft_square(x)), .solver = weft_sgd(0.1), .strategy = strategy}, trainer_out);
}

/* By GPipe a stage keeps what all micro-batches need for their backward pass, by 1F1B what as many as there are stages do. What went through
 * messages is given back by both, where nothing reads it: by 1F1B that is seen. */
static weft_status compare_orders(ranks *all, int32_t rank) {
    weft_world *world = NULL, lone;
    int64_t     peak[2] = {0, 0}, boundary = 512 * 32 * 4; /* what passes there of all micro-batches, each way */
    weft_status status = WEFT_OK;
    (void)all;
    WEFTI_TRY(open_worlds(&world, &lone));
    for (int i = 0; i < 2 && status == WEFT_OK; i++) {
        weft_graph      *graph = NULL;
        weft_trainer    *trainer = NULL;
        weft_plan_totals totals = {0};
        status = begin_wide(world, (weft_strategy){.pipeline = now.stages, .accumulate = now.micro, .schedule = i == 0 ? WEFT_1F1B : WEFT_GPIPE}, &graph, &trainer);
        if (status == WEFT_OK) weft_plan_totals_read(weft_trainer_plan(trainer), &totals);
        peak[i] = totals.peak_bytes;
        if (status == WEFT_OK && i == 0 && totals.exported_bytes > boundary * 3 / 4)
            status = wefti_fail(WEFT_E_INTERNAL, "messages lie in %lld bytes, and all of one direction have %lld", (long long)totals.exported_bytes, (long long)boundary);
        weft_trainer_release(trainer);
        weft_graph_release(graph);
    }
    if (status == WEFT_OK && rank == 0 && !(peak[0] < peak[1]))
        status = wefti_fail(WEFT_E_INTERNAL, "the first stage holds %lld bytes at once by 1F1B, and %lld by GPipe", (long long)peak[0], (long long)peak[1]);
    weft_world_release(world);
    return status;
}
Test(pipeline, one_forward_one_backward_holds_less) { run((trial){.wire = "shm", .ranks = 2, .stages = 2, .micro = 16}, compare_orders, 2); }

/* --- stages that the program asks for --- */

/* One layer at stage 0, and three behind it, of equal cost: nobody would cut there. */
static weft_tensor *placed(weft_graph *g, const char *first, const char *rest) {
    weft_tensor *x = weft_input(g, "x", WEFT_F32, weft_shape(BATCH, PIXELS)), *y = weft_input(g, "y", WEFT_I32, weft_shape(BATCH));
    weft_place_begin(g, first);
    x = weft_relu(weft_linear(x, "first", .out = PIXELS));
    weft_place_end(g);
    weft_place_begin(g, rest);
    x = weft_relu(weft_linear(x, "second", .out = PIXELS));
    weft_place_end(g);
    return weft_cross_entropy(weft_linear(weft_relu(weft_linear(x, "third", .out = PIXELS)), "head", .out = CLASSES), y);
}

static weft_status begin_placed(weft_world *world, weft_strategy strategy, const char *first, const char *rest, weft_graph **graph_out, weft_trainer **trainer_out) {
    WEFTI_TRY(weft_graph_create(&(weft_graph_options){.seed = 5}, graph_out));
    return weft_trainer_create(world, &(weft_program){.loss = placed(*graph_out, first, rest), .solver = weft_sgd(0.1), .strategy = strategy}, trainer_out);
}

static weft_status refuse_placed(weft_world *world, const char *first, const char *rest, weft_status wanted, const char *word) {
    weft_graph   *graph = NULL;
    weft_trainer *trainer = NULL;
    weft_status   status = begin_placed(world, (weft_strategy){.pipeline = 2}, first, rest, &graph, &trainer);
    bool          good = status == wanted && strstr(weft_error_message(), word);
    if (!good) status = wefti_fail(WEFT_E_INTERNAL, "%s came, not '%s': %.200s", weft_status_name(status), word, weft_error_message());
    weft_trainer_release(trainer);
    weft_graph_release(graph);
    return good ? WEFT_OK : status;
}

/* One process takes no notice of stages, and has the same losses. */
static weft_status ask_for_stages(ranks *all, int32_t rank) {
    weft_world   *world = NULL, lone;
    weft_graph   *graphs[2] = {NULL, NULL};
    weft_trainer *many = NULL, *alone = NULL;
    double        got = 0, want = 1;
    (void)all;
    WEFTI_TRY(open_worlds(&world, &lone));
    weft_status status = begin_placed(&lone, (weft_strategy){.accumulate = 4}, "stage 0", "stage 1", &graphs[0], &alone);
    if (status == WEFT_OK) status = begin_placed(world, (weft_strategy){.pipeline = 2, .accumulate = 4}, "stage 0", "stage 1", &graphs[1], &many);
    for (int s = 0; s < 3 && status == WEFT_OK; s++) {
        status = step(many, s, 0, 1, &got);
        if (status == WEFT_OK) status = step(alone, s, 0, 1, &want);
        if (status == WEFT_OK && got != want) status = wefti_fail(WEFT_E_INTERNAL, "the loss is %.17g, not %.17g", got, want);
    }
    const char *here[] = {"first.weight", "second.weight", "third.weight", "head.bias"};
    for (int i = 0; i < 4 && status == WEFT_OK; i++)
        if ((weft_variables_find(weft_trainer_variables(many), here[i]) >= 0) != ((i == 0) == (rank == 0))) status = wefti_fail(WEFT_E_INTERNAL, "'%s'", here[i]);
    if (status == WEFT_OK) status = refuse_placed(world, "stage 1", "stage 0", WEFT_E_INVALID, "contradict each other");
    if (status == WEFT_OK) status = refuse_placed(world, "stage 0", "stage 2", WEFT_E_INVALID, "has 2 stages");
    if (status == WEFT_OK) status = refuse_placed(world, "stage 1", "stage 1", WEFT_E_INVALID, "without work");
    if (status == WEFT_OK) status = refuse_placed(world, "stage 0", "rank 1", WEFT_E_UNSUPPORTED, "is placed at 'rank 1'");
    weft_trainer_release(many);
    weft_trainer_release(alone);
    for (int i = 0; i < 2; i++) weft_graph_release(graphs[i]);
    weft_world_release(world);
    return status;
}
Test(pipeline, stages_that_the_program_asks_for) { run((trial){.wire = "shm", .ranks = 2}, ask_for_stages, 2); }

/* --- a rank that dies --- */

static weft_status lose_a_rank(ranks *all, int32_t rank) {
    weft_world   *world = NULL, lone;
    weft_graph   *graph = NULL;
    weft_trainer *trainer = NULL;
    double        loss;
    (void)all;
    WEFTI_TRY(open_worlds(&world, &lone));
    weft_status status = begin(world, (weft_strategy){.pipeline = now.stages, .accumulate = now.micro}, &graph, &trainer);
    for (int s = 0; s < 100000 && status == WEFT_OK; s++) {
        if (rank == now.ranks - 1 && s == now.dies_at) raise(SIGKILL);
        status = step(trainer, s, 0, 1, &loss);
    }
    bool named = status == WEFT_E_PEER && strstr(weft_error_message(), "rank 2");
    if (!named) status = wefti_fail(WEFT_E_INTERNAL, "rank 2 died, and %s came: %.200s", weft_status_name(status), weft_error_message());
    weft_trainer_release(trainer);
    weft_graph_release(graph);
    weft_world_release(world);
    return named ? WEFT_OK : status;
}
Test(pipeline, ends_everywhere_where_a_rank_dies) { run((trial){.wire = "tcp", .ranks = 3, .stages = 3, .micro = 4, .dies_at = 20}, lose_a_rank, 2); }

/* --- what is refused --- */

static weft_status refused(weft_world *world, weft_program program, weft_status wanted, const char *word) {
    weft_trainer *trainer = NULL;
    weft_status   status = weft_trainer_create(world, &program, &trainer);
    weft_trainer_release(trainer);
    if (status == wanted && strstr(weft_error_message(), word)) return WEFT_OK;
    return wefti_fail(WEFT_E_INTERNAL, "%s came, not '%s': %.200s", weft_status_name(status), word, weft_error_message());
}

/* Each in a graph of its own: a trainer adds to it. */
static weft_status refuse_program(weft_world *world, bool small, weft_solver solver, weft_strategy strategy, weft_status wanted, const char *word) {
    weft_graph *g = NULL;
    WEFTI_TRY(weft_graph_create(NULL, &g));
    weft_tensor *tiny = small ? weft_mean(weft_mul(weft_input(g, "x", WEFT_F32, weft_shape(4, 2)), weft_parameter(g, "w", weft_shape(2)))) : NULL;
    weft_status  status = refused(world, (weft_program){.loss = small ? tiny : perceptron(g, false, BY_LAYER), .solver = solver, .strategy = strategy}, wanted, word);
    weft_graph_release(g);
    return status;
}

/* A batch norm behind the first stage waits for more forward passes than 1F1B begins with. */
static weft_status refuse_batch_norm(weft_world *world) {
    weft_graph *g = NULL;
    WEFTI_TRY(weft_graph_create(NULL, &g));
    weft_program program = {.loss = perceptron(g, false, BY_BATCH), .solver = weft_sgd(0.1), .strategy = {.pipeline = 3, .accumulate = 8}};
    weft_status  status = refused(world, program, WEFT_E_UNSUPPORTED, "batch norm");
    weft_graph_release(g);
    return status;
}

static weft_status refuse(ranks *all, int32_t rank) {
    weft_world   *world = NULL, lone;
    weft_graph   *graph = NULL;
    weft_trainer *trainer = NULL;
    float         value[1];
    (void)all, (void)rank;
    WEFTI_TRY(open_worlds(&world, &lone));
    weft_strategy three = {.pipeline = 3}, compressed = {.pipeline = 3, .compress = {.codec = WEFT_COMPRESS_TOP_K}},
                  fed_back = {.pipeline = 3, .compress = {.codec = WEFT_COMPRESS_BF16, .error_feedback = true}}, served = {.pipeline = 3, .sync = WEFT_SERVER, .replicas = 1};
    weft_status   status = refuse_program(world, true, weft_sgd(0.1), three, WEFT_E_INVALID, "without work");
    if (status == WEFT_OK) status = refuse_program(world, false, weft_lbfgs(1), three, WEFT_E_UNSUPPORTED, "pipeline = 3 does not go with L-BFGS, whose");
    if (status == WEFT_OK) status = refuse_program(world, false, weft_sgd(0.1), compressed, WEFT_E_UNSUPPORTED, "pipeline = 3 does not go with compress that keeps");
    if (status == WEFT_OK) status = refuse_program(world, false, weft_sgd(0.1), fed_back, WEFT_E_UNSUPPORTED, "without error_feedback");
    if (status == WEFT_OK) status = refuse_program(world, false, weft_sgd(0.1), served, WEFT_E_UNSUPPORTED, "pipeline = 3 does not go with sync = WEFT_SERVER and replicas");
    if (status == WEFT_OK) status = refuse_program(world, false, weft_sgd(0.1), (weft_strategy){.pipeline = 2}, WEFT_E_INVALID, "pipeline = 2");
    if (status == WEFT_OK) status = refuse_program(world, false, weft_sgd(0.1), (weft_strategy){.pipeline = 3, .schedule = 7}, WEFT_E_INVALID, "schedule is 7");
    if (status == WEFT_OK) status = refuse_program(world, false, weft_sgd(0.1), (weft_strategy){.pipeline = 3, .chunks = 2}, WEFT_E_INVALID, "chunks is 2");
    if (status == WEFT_OK)
        status = refuse_program(world, false, weft_sgd(0.1), (weft_strategy){.pipeline = 3, .schedule = WEFT_INTERLEAVED, .chunks = 9}, WEFT_E_INVALID, "27 stages");
    if (status == WEFT_OK) status = refuse_batch_norm(world);
    if (status == WEFT_OK) status = begin(world, three, &graph, &trainer);
    if (status == WEFT_OK && weft_variables_get(weft_trainer_variables(trainer), rank == 0 ? "head.weight" : "first.weight", value, 4) != WEFT_E_NOT_FOUND)
        status = wefti_fail(WEFT_E_INTERNAL, "a variable of another stage: %.200s", weft_error_message());
    weft_trainer_release(trainer);
    weft_graph_release(graph);
    weft_world_release(world);
    return status;
}
Test(pipeline, refuses_what_it_cannot) { run((trial){.wire = "shm", .ranks = 3}, refuse, 3); }

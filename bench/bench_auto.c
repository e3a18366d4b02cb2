/* Automatic strategies against all there are: the programs of the samples, on ranks that are processes, by every strategy that the search considers, and the one that it
 * chose (src/parallel/automatic.h). All trainers stand side by side and take turns of some steps, so that a machine that is now quick and now slow is so for
 * all; who is far behind after some turns is given no more, so that those in front have more of them. Beside what each took stands what the model said. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"
#include "parallel/automatic.h"
#include "ranks.h"
#include "train/trainer.h"
#include "weft.h"

enum { MOST_STRATEGIES = 128, MOST_RUNS = 64, MOST_FLOATS = 1 << 20 };

typedef struct auto_options {
    const char *json_path, *wire, *program;
    char        store[64];
    double      ranks, windows, steps;
} auto_options;

/* --- programs: those of train_images and train_gpt, and a GPT of experts --- */

typedef struct task {
    weft_graph   *graph;
    weft_trainer *trainer;
    weft_batch    batch; /* global; of which a rank feeds its rows */
    int           count, runs; /* steps of a turn; turns that it had */
    double        seconds[MOST_RUNS];
} task;

static float   pixels[MOST_FLOATS];
static int32_t labels[1 << 16];

static weft_tensor *mlp(weft_graph *g, task *t) {
    weft_tensor *x = weft_input(g, "x", WEFT_F32, weft_shape(64, 784)), *y = weft_input(g, "y", WEFT_I32, weft_shape(64));
    t->batch.field[0] = (weft_batch_field){"x", WEFT_F32, weft_shape(64, 784), pixels};
    t->batch.field[1] = (weft_batch_field){"y", WEFT_I32, weft_shape(64), labels};
    x = weft_relu(weft_linear(weft_relu(weft_linear(x, "hidden1", .out = 512)), "hidden2", .out = 256));
    return weft_cross_entropy(weft_linear(x, "head", .out = 10), y);
}

static weft_tensor *cnn(weft_graph *g, task *t) {
    weft_tensor *x = weft_input(g, "x", WEFT_F32, weft_shape(64, 1, 28, 28)), *y = weft_input(g, "y", WEFT_I32, weft_shape(64));
    t->batch.field[0] = (weft_batch_field){"x", WEFT_F32, weft_shape(64, 1, 28, 28), pixels};
    t->batch.field[1] = (weft_batch_field){"y", WEFT_I32, weft_shape(64), labels};
    x = weft_max_pool2d(weft_relu(weft_conv2d(x, "conv1", .filters = 32, .kernel = 3, .same = true)), .window = 2);
    x = weft_max_pool2d(weft_relu(weft_conv2d(x, "conv2", .filters = 64, .kernel = 3, .same = true)), .window = 2);
    return weft_cross_entropy(weft_linear(weft_relu(weft_linear(weft_flatten(x), "hidden", .out = 128)), "head", .out = 10), y);
}

/* A GPT whose blocks have a perceptron, or a mixture of them. */
static weft_tensor *transformer(weft_graph *g, task *t, bool mixed) {
    enum { ROWS = 8, CONTEXT = 64, WIDTH = 128, LETTERS = 256, LAYERS = 4 };
    weft_tensor *extra = NULL, *x = weft_input(g, "x", WEFT_I32, weft_shape(ROWS, CONTEXT)), *y = weft_input(g, "y", WEFT_I32, weft_shape(ROWS, CONTEXT));
    t->batch.field[0] = (weft_batch_field){"x", WEFT_I32, weft_shape(ROWS, CONTEXT), labels};
    t->batch.field[1] = (weft_batch_field){"y", WEFT_I32, weft_shape(ROWS, CONTEXT), labels};
    weft_tensor *table = weft_parameter(g, "letters", weft_shape(LETTERS, WIDTH), .init = weft_init_normal(0, 0.02));
    x = weft_add(weft_embedding(x, "embedding", .weight = table), weft_parameter(g, "places", weft_shape(CONTEXT, WIDTH), .init = weft_init_normal(0, 0.02)));
    for (int i = 0; i < LAYERS; i++) {
        char name[16];
        snprintf(name, sizeof name, "block%d", i);
        weft_scope_push(g, name);
        x = weft_add(x, weft_self_attention(weft_layer_norm(x, "norm1"), "attention", .heads = 4, .causal = true));
        weft_tensor *balance, *h = weft_layer_norm(x, "norm2");
        if (mixed) h = weft_mixture_of_experts(h, "experts", .experts = 8, .choices = 2, .hidden = 2 * WIDTH, .capacity = 1.25, .balance_out = &balance);
        else h = weft_linear(weft_gelu_tanh(weft_linear(h, "up", .out = 4 * WIDTH)), "down", .out = WIDTH);
        if (mixed) extra = extra ? weft_add(extra, balance) : balance;
        x = weft_add(x, h);
        weft_scope_pop(g);
    }
    weft_tensor *loss = weft_cross_entropy(weft_linear(weft_layer_norm(x, "norm"), "head", .weight = table), y);
    return mixed ? weft_add(loss, weft_mul_scalar(extra, 0.01)) : loss;
}

static weft_tensor *gpt(weft_graph *g, task *t) { return transformer(g, t, false); }
static weft_tensor *moe(weft_graph *g, task *t) { return transformer(g, t, true); }

static const struct { const char *name; weft_tensor *(*build)(weft_graph *g, task *t); } programs[] = {{"mlp", mlp}, {"cnn", cnn}, {"gpt", gpt}, {"moe", moe}};
enum { PROGRAMS = sizeof programs / sizeof *programs };

static weft_status begin(weft_world *world, int which, weft_strategy strategy, task *t) {
    weft_status status = weft_graph_create(&(weft_graph_options){.seed = 1}, &t->graph);
    if (status != WEFT_OK) return status;
    weft_tensor *loss = programs[which].build(t->graph, t);
    t->batch.field_count = 2;
    t->batch.global_rows = t->batch.field[0].shape.dim[0];
    status = weft_trainer_create(world, &(weft_program){.loss = loss, .solver = weft_adam(1e-4), .strategy = strategy}, &t->trainer);
    if (status != WEFT_OK) return status;
    int32_t rank, ranks;
    weft_trainer_share(t->trainer, &rank, &ranks);
    weft_batch_share(t->batch.global_rows, rank, ranks, &t->batch.first_row, &t->batch.local_rows);
    for (int f = 0; f < 2; f++) t->batch.field[f].shape.dim[0] = t->batch.local_rows;
    return WEFT_OK;
}

static void end(task *t) {
    weft_trainer_release(t->trainer);
    weft_graph_release(t->graph);
    *t = (task){.graph = NULL};
}

/* Seconds of a step, of the slowest rank. */
static double steps(bench_rank *rank, task *t, int count) {
    bench_meet(rank);
    double begun = bench_now_s();
    for (int s = 0; s < count; s++) BENCH_TRY(rank, weft_trainer_step(t->trainer, &t->batch, NULL));
    return bench_slowest(rank, bench_now_s() - begun) / count;
}

/* --- all strategies --- */

static bool allows(void *context, const weft_strategy *strategy) {
    const weft_trainer *trainer = context;
    weft_program        program = trainer->program;
    program.strategy = *strategy;
    return wefti_trainer_check(trainer->world, &program) == WEFT_OK;
}

/* The candidates as the trainer's own search sees them; its program has been trained already, so another one is assessed. */
static void list(bench_rank *rank, weft_world *world, int which, wefti_auto_choice *choice) {
    task               probe = {.graph = NULL};
    wefti_auto_costs   costs;
    wefti_auto_machine machine;
    wefti_text         words = {0};
    BENCH_TRY(rank, weft_graph_create(&(weft_graph_options){.seed = 1}, &probe.graph));
    weft_trainer stand_in = {.world = world, .program = {.loss = programs[which].build(probe.graph, &probe), .solver = weft_adam(1e-4), .strategy = {.automatic = true}}};
    BENCH_TRY(rank, wefti_automatic_costs(&stand_in, &costs));
    BENCH_TRY(rank, wefti_automatic_measure(world, 0, &machine));
    BENCH_TRY(rank, wefti_auto_search(&costs, &machine, &stand_in.program.strategy, allows, &stand_in, choice));
    wefti_auto_explain(choice, &machine, &words);
    if (rank->rank == 0) printf("%s: %s", programs[which].name, words.bytes);
    wefti_text_release(&words);
    weft_graph_release(probe.graph);
}

/* Those whose plans can be made; the others leave the list, as they do in a trainer. */
static int begin_all(weft_world *world, int which, wefti_auto_choice *choice, int n, task *tasks) {
    int kept = 0;
    for (int i = 0; i < n; i++) {
        if (begin(world, which, choice->candidates[i].strategy, &tasks[kept]) == WEFT_OK) choice->candidates[kept++] = choice->candidates[i];
        else if (weft_world_rank(world) == 0) printf("  %s: %.200s\n", weft_strategy_text(&choice->candidates[i].strategy).text, weft_error_message());
        if (!tasks[kept].trainer) end(&tasks[kept]);
    }
    return kept;
}

static void report(const auto_options *o, FILE *json, int which, const wefti_auto_choice *choice, task *tasks, int n, bool print) {
    double best = INFINITY, chosen = 0;
    int    at = 0;
    char   what[64], extra[700];
    bench_spread of_chosen = {0};
    double       quickest = INFINITY;
    for (int i = 0; i < n; i++) {
        bench_spread spread = bench_spread_of(tasks[i].seconds, tasks[i].runs);
        if (i == 0) of_chosen = spread, chosen = spread.median;
        if (spread.low < quickest) quickest = spread.low;
        if (tasks[i].runs == tasks[0].runs && spread.median < best) best = spread.median, at = i;
        if (print) printf("  %-52s model %8.3f ms, measured %8.3f [%.3f, %.3f]\n", weft_strategy_text(&choice->candidates[i].strategy).text,
                          1e3 * choice->candidates[i].seconds, 1e3 * spread.median, 1e3 * spread.low, 1e3 * spread.high);
    }
    if (!print) return;
    printf("  chosen: %.3f ms; best: %.3f ms, %s: %.3f of it; by the quickest turns %.3f\n", 1e3 * chosen, 1e3 * best, weft_strategy_text(&choice->candidates[at].strategy).text,
           best / chosen, quickest / of_chosen.low);
    snprintf(what, sizeof what, "%s %.0f ranks %s", programs[which].name, o->ranks, o->wire);
    snprintf(extra, sizeof extra, "\"chosen\": \"%s\", \"best\": \"%s\", \"strategies\": %d, \"model_ms\": %.4f, \"quickest_ratio\": %.4f, \"ratio\": %.4f",
             weft_strategy_text(&choice->candidates[0].strategy).text, weft_strategy_text(&choice->candidates[at].strategy).text, n, 1e3 * choice->candidates[0].seconds,
             quickest / of_chosen.low, best / chosen);
    bench_write(json, &(bench_record){"auto", what, "time", "us", bench_spread_times(of_chosen, 1e6), 1e6 * best, extra});
}

static double quickest_of(const task *t) {
    double least = INFINITY;
    for (int w = 0; w < t->runs; w++) least = fmin(least, t->seconds[w]);
    return least;
}

/* Turns for all; after TRIAL of them for the one that was chosen, and those whose quickest is not far behind the quickest of all. */
static void take_turns(bench_rank *rank, task *tasks, int n, int windows) {
    enum { TRIAL = 4 };
    double bound = INFINITY;
    for (int i = 0; i < n; i++) tasks[i].runs = 0;
    for (int w = 0; w < windows; w++) {
        for (int i = 0; i < n; i++)
            if (i == 0 || quickest_of(&tasks[i]) <= bound || w < TRIAL) tasks[i].seconds[tasks[i].runs++] = steps(rank, &tasks[i], tasks[i].count);
        bound = INFINITY;
        for (int i = 0; i < n && w + 1 >= TRIAL; i++) bound = fmin(bound, 1.5 * quickest_of(&tasks[i]));
    }
}

static int run_rank(bench_rank *rank) {
    const auto_options *o = rank->argument;
    weft_world         *world = NULL;
    FILE               *json = rank->rank == 0 ? bench_open_json(o->json_path) : NULL;
    BENCH_TRY(rank, weft_world_create(&(weft_world_options){.rank = rank->rank, .size = rank->size, .store = o->store, .wire = rank->wire_name, .threads = {.count = 1}}, &world));
    for (int which = 0; which < PROGRAMS; which++) {
        if (o->program && strcmp(o->program, programs[which].name) != 0) continue;
        wefti_auto_choice choice = {.n = 0};
        task             *tasks = calloc(MOST_STRATEGIES, sizeof *tasks);
        if (!tasks) exit(1);
        list(rank, world, which, &choice);
        int n = choice.n_fitting < MOST_STRATEGIES ? choice.n_fitting : MOST_STRATEGIES;
        n = begin_all(world, which, &choice, n, tasks);
        for (int i = 0; i < n; i++) tasks[i].count = (int)fmax(1, fmin(o->steps, 0.005 / steps(rank, &tasks[i], 3)));
        take_turns(rank, tasks, n, (int)o->windows);
        report(o, json, which, &choice, tasks, n, rank->rank == 0);
        for (int i = 0; i < n; i++) end(&tasks[i]);
        wefti_auto_release(&choice);
        free(tasks);
    }
    weft_world_release(world);
    if (json) fclose(json);
    return 0;
}

int bench_auto(int argc, char **argv) {
    auto_options       o = {.wire = "shm", .ranks = 2, .windows = 9, .steps = 5};
    const bench_option options[] = {{"wire", "shm or tcp", BENCH_TEXT, &o.wire},
                                    {"program", "mlp, cnn, gpt or moe; all where it is not given", BENCH_TEXT, &o.program},
                                    {"ranks", "that are split over", BENCH_NUMBER, &o.ranks},
                                    {"windows", "turns that each strategy gets", BENCH_NUMBER, &o.windows},
                                    {"steps", "of a turn", BENCH_NUMBER, &o.steps},
                                    {"json", "file for the records", BENCH_TEXT, &o.json_path},
                                    {0}};
    bench_read_options(argc, argv, "Automatic strategies: what was chosen beside all that could have been.", options);
    if (!(o.ranks >= 2 && o.ranks <= BENCH_MOST_RANKS && o.windows >= 1 && o.windows <= MOST_RUNS && o.steps >= 1)) {
        fprintf(stderr, "error: 2 to %d ranks, 1 to %d windows of at least one step\n", BENCH_MOST_RANKS, MOST_RUNS);
        return 2;
    }
    for (int i = 0; i < MOST_FLOATS; i++) pixels[i] = (float)(i % 997) / 1000;
    for (int i = 0; i < 1 << 16; i++) labels[i] = (int32_t)(i % 10);
    int holder = bench_pick_store(o.store), status = bench_run_ranks(o.wire, (int32_t)o.ranks, run_rank, &o);
    close(holder);
    return status;
}

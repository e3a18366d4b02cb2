/* Downpour (Dean et al., "Large scale distributed deep networks", 2012): workers that go each at its own pace, what they send, what becomes of them
 * where one is slow or dies, and steps that overlap with their messages. A linear regression, so that everybody knows where it has to end. */
#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "common/files.h"
#include "serving.h"

enum { ROWS = 600, BATCH = 30, MOST_STEPS = 4000, LEARNING_STEPS = 3000 };

/* What a run does; set before the ranks are forked. */
typedef struct setting {
    weft_strategy strategy;
    int           width;    /* of the regression */
    int           steps;    /* 0: until `seconds` are over */
    double        seconds;
    double        pause_ms[RANKS_MOST]; /* what a step computes besides */
    int           kill_rank, kill_step;
    const char   *wire, *load, *save;
    double        rate;
} setting;
static setting how;

/* What came of each rank; shared with the test. */
typedef struct outcome {
    int    steps, staleness;
    double seconds, longest, median, loss; /* of all steps, the longest, the one in the middle; of the rows at the end */
    double sent, received;                 /* bytes that the steps moved */
    double early;                          /* … of them sent in the steps of the warm start */
    double warm;                           /* the loss with the parameters after it */
    double bytes;                          /* of the parameters */
} outcome;
static outcome *outcomes;

static double noise(uint64_t number) {
    number = (number ^ number >> 31) * UINT64_C(0x7fb5d329728ea185);
    number = (number ^ number >> 27) * UINT64_C(0x81dadef4bc2dd44d);
    return (double)(int32_t)(number >> 32) * 0x1p-31;
}
static float x_at(int row, int column) { return (float)(1.7 * noise((uint64_t)row * 1000003u + (uint64_t)column + 17)); }
static float y_at(const float *x) {
    double y = 0.3 * noise((uint64_t)(x[0] * 1e6f) + 5);
    for (int i = 0; i < how.width && i < 40; i++) y += x[i] * noise((uint64_t)i + 999);
    return (float)y;
}

static void sleep_ms(double ms) {
    struct timespec pause = {(time_t)(ms / 1000), (long)(fmod(ms, 1000) * 1e6)};
    nanosleep(&pause, NULL);
}

static double mean_square(const float *w, const float *x, const float *y) {
    double sum = 0;
    for (int row = 0; row < ROWS; row++) {
        double error = -(double)y[row];
        for (int i = 0; i < how.width; i++) error += (double)w[i] * x[(size_t)row * (size_t)how.width + (size_t)i];
        sum += error * error;
    }
    return sum / ROWS;
}

static int by_length(const void *a, const void *b) { return *(const double *)a < *(const double *)b ? -1 : 1; }

static weft_status take_steps(weft_trainer *trainer, weft_loader *loader, int32_t rank, const float *x, const float *y, float *w, outcome *out) {
    static double lengths[MOST_STEPS];
    weft_server_counts before = {0}, after = {0};
    weft_server       *server = weft_trainer_server(trainer);
    weft_batch         batch;
    weft_report        report;
    if (server) weft_server_count(server, &before);
    uint64_t begin_ns = ranks_now();
    while (out->steps < MOST_STEPS && (how.steps ? out->steps < how.steps : (double)(ranks_now() - begin_ns) * 1e-9 < how.seconds)) {
        uint64_t step_ns = ranks_now();
        if (rank == how.kill_rank && out->steps == how.kill_step) raise(SIGKILL);
        WEFTI_TRY(weft_loader_next(loader, &batch));
        if (!how.strategy.overlap) sleep_ms(how.pause_ms[rank]); /* else it has to be in the step: see slow_identity */
        WEFTI_TRY(weft_trainer_step(trainer, &batch, &report));
        double length = (double)(ranks_now() - step_ns) * 1e-9;
        lengths[out->steps++] = length;
        if (length > out->longest) out->longest = length;
        out->staleness = report.staleness;
        if (out->steps != how.strategy.warm_start) continue;
        weft_server_count(server, &after);
        out->early = (double)(after.sent_bytes - before.sent_bytes);
        WEFTI_TRY(weft_variables_get(weft_trainer_variables(trainer), "layer.weight", w, (size_t)how.width * sizeof *w));
        out->warm = mean_square(w, x, y);
    }
    out->seconds = (double)(ranks_now() - begin_ns) * 1e-9;
    qsort(lengths, (size_t)out->steps, sizeof *lengths, by_length);
    out->median = lengths[out->steps / 2];
    if (server) weft_server_count(server, &after);
    out->sent = (double)(after.sent_bytes - before.sent_bytes);
    out->received = (double)(after.received_bytes - before.received_bytes);
    return WEFT_OK;
}

/* An op that takes a while: the computing that messages can hide behind. */
static weft_status same_shape(const weft_custom_type *inputs, const void *options, weft_custom_type *outputs) {
    (void)options;
    outputs[0] = inputs[0];
    return WEFT_OK;
}
static weft_status slow_identity(const weft_custom_data *inputs, const void *options, weft_custom_data *outputs) {
    sleep_ms(*(const double *)options);
    memcpy(outputs[0].data, inputs[0].data, (size_t)weft_shape_elements(inputs[0].shape) * sizeof(float));
    return WEFT_OK;
}
static weft_status slow_backward(const weft_custom_data *inputs, const weft_custom_data *outputs, const weft_custom_data *gradients,
                                 const void *options, weft_custom_data *out) {
    (void)outputs, (void)options;
    if (out[0].data) memcpy(out[0].data, gradients[0].data, (size_t)weft_shape_elements(inputs[0].shape) * sizeof(float));
    return WEFT_OK;
}

/* The loss of what the servers have now: a rank alone can ask for it, whoever has died. */
static weft_status final_loss(weft_trainer *trainer, const float *x, const float *y, float *w, outcome *out) {
    weft_table *table = NULL;
    WEFTI_TRY(weft_table_open(weft_trainer_server(trainer), "weft.parameter.0", &table));
    weft_status status = weft_table_pull(table, NULL, w);
    out->loss = mean_square(w, x, y);
    weft_table_release(table);
    return status;
}

/* What is collective goes on among those who are there: the loss by an evaluator, and a checkpoint with what the servers have. */
static weft_status look_and_save(weft_trainer *trainer, weft_loader *loader, weft_tensor *loss, const float *w) {
    weft_evaluator  *evaluator = NULL;
    weft_checkpoint *file = NULL;
    weft_batch       batch;
    float            value = 0, *saved = calloc((size_t)how.width, sizeof *saved);
    WEFTI_TRY(weft_evaluator_create(trainer, &loss, 1, &evaluator));
    WEFTI_TRY(weft_loader_next(loader, &batch));
    WEFTI_TRY(weft_evaluator_run(evaluator, &batch));
    WEFTI_TRY(weft_evaluator_fetch(evaluator, 0, &value, sizeof value));
    EXPECT(value > 0.002f && value < 0.5f, "the evaluator says %g", (double)value);
    WEFTI_TRY(weft_trainer_save(trainer, how.save, NULL));
    WEFTI_TRY(weft_checkpoint_open(how.save, &file));
    WEFTI_TRY(weft_checkpoint_read(file, "layer.weight", WEFT_F32, weft_shape(1, how.width), saved));
    for (int i = 0; i < how.width; i++) EXPECT(saved[i] == w[i], "weight %d is saved as %g, and is %g", i, (double)saved[i], (double)w[i]);
    weft_checkpoint_release(file);
    weft_evaluator_release(evaluator);
    free(saved);
    return WEFT_OK;
}

static weft_status train(weft_world *world, int32_t rank, const float *x, const float *y, float *w) {
    static const weft_custom_op slow = {.name = "slow", .n_inputs = 1, .n_outputs = 1, .shape = same_shape, .forward = slow_identity,
                                        .backward = slow_backward, .row_local = true};
    weft_graph   *graph = NULL;
    weft_loader  *loader = NULL;
    weft_trainer *trainer = NULL;
    outcome      *out = &outcomes[rank];
    weft_status   status;
    weft_batch_field    fields[2] = {{"x", WEFT_F32, weft_shape(ROWS, how.width), (void *)x}, {"y", WEFT_F32, weft_shape(ROWS, 1), (void *)y}};
    weft_loader_options load = {.batch = BATCH, .rank = rank, .ranks = weft_world_size(world), .seed = 3, .epochs = -1};
    if ((status = weft_graph_create(NULL, &graph)) != WEFT_OK) goto done;
    if ((status = weft_loader_open_arrays(fields, 2, &load, &loader)) != WEFT_OK) goto done;
    weft_tensor *in = weft_input(graph, "x", WEFT_F32, weft_shape(BATCH, how.width));
    if (how.strategy.overlap) in = weft_custom(graph, &slow, &in, 1, "slow", &how.pause_ms[rank], sizeof how.pause_ms[rank]);
    weft_tensor *loss = weft_mse(weft_linear(in, "layer", .out = 1, .no_bias = true),
                                 weft_input(graph, "y", WEFT_F32, weft_shape(BATCH, 1)));
    weft_program program = {.loss = loss, .solver = weft_adagrad(how.rate > 0 ? how.rate : 0.1), .strategy = how.strategy};
    if ((status = weft_trainer_create(world, &program, &trainer)) != WEFT_OK) goto done;
    out->bytes = (double)how.width * sizeof(float);
    if (how.load && (status = weft_trainer_load(trainer, how.load, NULL)) != WEFT_OK) goto done;
    if ((status = take_steps(trainer, loader, rank, x, y, w, out)) != WEFT_OK) goto done;
    if (weft_trainer_server(trainer)) status = final_loss(trainer, x, y, w, out);
    else if (how.load == NULL) status = weft_variables_get(weft_trainer_variables(trainer), "layer.weight", w, (size_t)how.width * sizeof *w);
    if (!weft_trainer_server(trainer)) out->loss = mean_square(w, x, y);
    if (status == WEFT_OK && how.save) status = look_and_save(trainer, loader, loss, w);
done:
    weft_trainer_release(trainer);
    weft_loader_release(loader);
    weft_graph_release(graph);
    return status;
}

static weft_status run(ranks *all, int32_t rank) {
    weft_world *world = NULL;
    size_t      width = (size_t)how.width;
    float      *x = malloc(ROWS * width * sizeof *x), *y = malloc(ROWS * sizeof *y), *w = calloc(width, sizeof *w);
    (void)all;
    for (int row = 0; row < ROWS; row++) {
        for (int i = 0; i < how.width; i++) x[(size_t)row * width + (size_t)i] = x_at(row, i);
        y[row] = y_at(x + (size_t)row * width);
    }
    WEFTI_TRY(weft_world_create(&(weft_world_options){.wire = how.wire, .threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS}, &world));
    weft_status status = train(world, rank, x, y, w);
    weft_world_release(world);
    free(x);
    free(y);
    free(w);
    return status;
}

/* Runs what `how` says on `size` ranks; `lost`: bits of those that may end as they like. */
static void go(int32_t size, uint32_t lost) {
    outcomes = mmap(NULL, RANKS_MOST * sizeof *outcomes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (!how.wire) how.wire = "shm";
    ranks *all = ranks_start(size, run);
    ranks_join(all);
    for (int32_t rank = 0; rank < size; rank++)
        if (!(lost >> rank & 1))
            cr_assert(atomic_load(&all->results[rank].finished) && all->results[rank].status == WEFT_OK, "rank %d: %s", (int)rank,
                      all->results[rank].message);
    ranks_free(all);
}

static void set(weft_strategy strategy, int width, int steps) {
    how = (setting){.strategy = strategy, .width = width, .steps = steps, .kill_rank = -1};
    how.strategy.sync = WEFT_SERVER;
}

/* --- what is sent --- */

static void moves(int push, int fetch, const char *wire) {
    enum { STEPS = 60 };
    set((weft_strategy){.staleness = WEFT_TABLE_ASYNCHRONOUS, .servers = 1, .push = push, .fetch = fetch}, 20000, STEPS);
    how.wire = wire;
    go(3, 0);
    for (int rank = 0; rank < 2; rank++) { /* the third serves itself */
        double bytes = outcomes[rank].bytes, wanted = bytes * STEPS * (1.0 / push + 1.0 / fetch), moved = outcomes[rank].sent + outcomes[rank].received;
        cr_expect(fabs(moved - wanted) < 0.01 * wanted, "push %d, fetch %d: rank %d moved %.0f bytes, of %.0f", push, fetch, rank, moved, wanted);
        cr_expect(fabs(outcomes[rank].sent - bytes * STEPS / push) < 0.01 * wanted, "%.0f bytes were sent", outcomes[rank].sent);
    }
}
Test(downpour, moves_the_bytes_of_the_formula) {
    moves(1, 1, "shm");
    moves(2, 3, "shm");
    moves(10, 4, "tcp");
}

/* --- it learns --- */

static double learns(weft_strategy strategy, double rate, uint32_t lost) {
    double loss = 0;
    int    kill_rank = how.kill_rank, kill_step = how.kill_step;
    set(strategy, 30, LEARNING_STEPS);
    how.rate = rate;
    if (lost) how.kill_rank = kill_rank;
    if (lost) how.kill_step = kill_step;
    go(3, lost);
    for (int rank = 0; rank < 3; rank++)
        if (!(lost >> rank & 1)) loss = outcomes[rank].loss > loss ? outcomes[rank].loss : loss;
    return loss;
}

/* Whatever the staleness, it ends where the sums of all end. */
Test(downpour, ends_where_it_has_to) {
    double together = learns((weft_strategy){.staleness = 0}, 0.05, 0);
    cr_assert(together < 0.05, "%.5f is far from the noise", together);
    const weft_strategy others[] = {{.staleness = 1}, {.staleness = 4}, {.staleness = WEFT_TABLE_ASYNCHRONOUS},
                                    {.staleness = WEFT_TABLE_ASYNCHRONOUS, .push = 3, .fetch = 2}, {.staleness = 2, .push = 2, .fetch = 5, .servers = 1},
                                    {.staleness = WEFT_TABLE_ASYNCHRONOUS, .overlap = true}, {.staleness = 1, .overlap = true}};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        double loss = learns(others[i], 0.05, 0);
        cr_expect(loss < 1.02 * together, "strategy %zu: %.5f, together %.5f", i, loss, together);
        int wanted = others[i].staleness < 0 ? -1 : others[i].staleness + others[i].overlap;
        cr_expect(outcomes[0].staleness == wanted, "strategy %zu reports staleness %d, not %d", i, outcomes[0].staleness, wanted);
    }
}

/* Rank 0 takes the first steps alone: nobody else pushes, all begin from what it came to, and end where they have to; with bounded staleness, too, where it
 * would otherwise wait for the others' clocks. It begins with a loss of about 9. */
Test(downpour, a_warm_start_is_one_ranks) {
    enum { WARM = 300 };
    const weft_strategy strategies[] = {{.staleness = WEFT_TABLE_ASYNCHRONOUS, .servers = 1}, {.staleness = 2, .push = 7, .fetch = 2}, {.staleness = 1, .overlap = true}};
    for (int i = 0; i < 3; i++) {
        weft_strategy strategy = strategies[i];
        strategy.warm_start = WARM;
        double loss = learns(strategy, 0.05, 0);
        cr_expect_lt(loss, 0.05, "strategy %d: %.5f", i, loss);
        cr_expect(outcomes[0].warm < (i == 1 ? 2 : 0.2) && outcomes[0].warm > 0, "strategy %d: %.5f after the warm start", i, outcomes[0].warm);
        for (int rank = 1; rank < 3; rank++) {
            cr_expect_eq(outcomes[rank].warm, outcomes[0].warm, "strategy %d, rank %d begins at %.9g, rank 0 at %.9g", i, rank, outcomes[rank].warm, outcomes[0].warm);
            cr_expect_eq(outcomes[rank].steps, LEARNING_STEPS);
        }
        if (i == 0) cr_expect_lt(outcomes[1].early, outcomes[1].bytes * 10, "rank 1 sent %.0f bytes in it", outcomes[1].early);
    }
    /* Rank 0 dies in it: the others begin without it. */
    how.kill_rank = 0;
    how.kill_step = WARM / 2;
    double loss = learns((weft_strategy){.staleness = 3, .servers = 1, .warm_start = WARM}, 0.05, 1u << 0);
    cr_expect_lt(loss, 0.06, "%.5f without rank 0", loss);
}

/* A worker that is killed holds nobody up for a second, and changes the end by less than two in a hundred. */
Test(downpour, a_killed_worker_is_not_missed) {
    const weft_strategy strategies[] = {{.staleness = WEFT_TABLE_ASYNCHRONOUS, .servers = 1}, {.staleness = 3, .servers = 1}, {.staleness = 3, .replicas = 1}};
    for (int i = 0; i < 3; i++) { /* the third's victim serves, too */
        double whole = learns(strategies[i], 0.05, 0);
        how.kill_rank = 0;
        how.kill_step = 700;
        double without = learns(strategies[i], 0.05, 1u << 0);
        cr_expect(fabs(without - whole) < 0.02 * whole, "strategy %d: %.5f without one, %.5f with all", i, without, whole);
        for (int rank = 1; rank < 3; rank++) {
            cr_expect(outcomes[rank].longest < 1, "strategy %d: a step of rank %d took %.3g s", i, rank, outcomes[rank].longest);
            cr_expect(outcomes[rank].steps == LEARNING_STEPS, "rank %d took %d steps", rank, outcomes[rank].steps);
        }
    }
}

/* Nor is it without staleness, where every step reduces losses over all: its rows count as if they were like the others'. The first victim serves, too, and
 * then rank 0 is left to save what there is. */
Test(downpour, a_killed_worker_of_sums_is_not_missed) {
    const weft_strategy strategies[] = {{.replicas = 1}, {.servers = 1}};
    for (int i = 0; i < 2; i++) {
        int    victim = i == 0 ? 2 : 1;
        double whole = learns(strategies[i], 0.05, 0);
        how.kill_rank = victim;
        how.kill_step = 700;
        double without = learns(strategies[i], 0.05, 1u << victim);
        cr_expect(fabs(without - whole) < 0.02 * whole, "strategy %d: %.5f without one, %.5f with all", i, without, whole);
        for (int rank = 0; rank < 3; rank++) {
            if (rank == victim) continue;
            cr_expect(outcomes[rank].longest < 1, "strategy %d: a step of rank %d took %.3g s", i, rank, outcomes[rank].longest);
            cr_expect(outcomes[rank].steps == LEARNING_STEPS, "rank %d took %d steps", rank, outcomes[rank].steps);
        }
    }
    char path[64];
    snprintf(path, sizeof path, "%s/weft-downpour-XXXXXX", temporary_root());
    int  file = mkstemp(path);
    cr_assert_geq(file, 0);
    close(file);
    how.save = path;
    go(3, 1u << 1);
    unlink(path);
}

/* --- it is quick --- */

/* One worker is four times slower: together they do nine tenths of what they would do alone; bulk-synchronously all are as slow as it. */
Test(downpour, a_slow_worker_slows_nobody) {
    const double pauses[3] = {20, 20, 80};
    set((weft_strategy){.staleness = WEFT_TABLE_ASYNCHRONOUS}, 30, 0);
    how.seconds = 2;
    memcpy(how.pause_ms, pauses, sizeof pauses);
    go(3, 0);
    double done = 0, alone = 0;
    for (int rank = 0; rank < 3; rank++) {
        done += outcomes[rank].steps / outcomes[rank].seconds;
        alone += 1000 / pauses[rank];
    }
    cr_expect(done >= 0.9 * alone, "%.1f steps a second, of %.1f", done, alone);
    set((weft_strategy){.staleness = 0}, 30, 20);
    memcpy(how.pause_ms, pauses, sizeof pauses);
    go(3, 0);
    for (int rank = 0; rank < 3; rank++)
        cr_expect(outcomes[rank].steps / outcomes[rank].seconds <= 1000 / pauses[2], "bulk-synchronously rank %d does %.1f steps a second", rank,
                  outcomes[rank].steps / outcomes[rank].seconds);
}

/* A step takes the longer of computing and messages, where it took both: the link carries 50 MB a second, each way. */
static double median_step(bool overlap, double pause_ms) {
    set((weft_strategy){.staleness = WEFT_TABLE_ASYNCHRONOUS, .servers = 1, .overlap = overlap}, 100000, 40);
    how.pause_ms[0] = how.pause_ms[1] = pause_ms;
    go(2, 0);
    return outcomes[0].median * 1e3;
}
Test(downpour, steps_overlap_with_their_messages) {
    char said[200] = "";
    for (int turn = 0; turn < 3; turn++) { /* others use the machine, too */
        unsetenv("WEFT_WIRE_GBPS");
        double computing = median_step(true, 25); /* messages take next to nothing */
        setenv("WEFT_WIRE_GBPS", "0.4", 1);
        double apart = median_step(false, 25), over = median_step(true, 25), messages = apart - computing;
        snprintf(said, sizeof said, "computing %.1f ms, messages %.1f, one after the other %.1f, overlapping %.1f", computing, messages, apart, over);
        fprintf(stderr, "  %s\n", said);
        if (over <= 1.1 * (computing > messages ? computing : messages) && messages > 10) return;
    }
    cr_assert_fail("%s", said);
}

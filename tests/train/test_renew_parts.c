/* Going on with the survivors where ranks have parts of the run: what becomes of it is, to the bit, what becomes of a run of as many ranks that loads a
 * checkpoint of the step that was gone on from. Ranks are processes; some are killed between steps. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/iface/world.h"
#include "train/run.h"
#include "weft.h"
#include "transport/ranks.h"

enum { ROWS = 60, BATCH = 20, WIDTH = 24, CLASSES = 8, KILL_AT = 5, STEPS = 9 };

static struct job {
    weft_strategy strategy;
    const char   *fate;       /* by rank: k dies after KILL_AT steps, . lives */
    int64_t       steps;
    const char   *load, *save; /* a checkpoint to begin from, and to end with */
    weft_status   wanted;     /* of renewing; its message has the word */
    const char   *word;
} job;

static _Atomic int64_t *renewed_at; /* shared by all ranks */

typedef struct run {
    weft_world   *world, *next;
    weft_graph   *graph;
    weft_loader  *loader;
    weft_trainer *trainer;
} run;

static weft_status open_run(run *r) {
    static float   x[ROWS * WIDTH];
    static int32_t y[ROWS];
    unsigned       state = 11;
    for (int i = 0; i < ROWS * WIDTH; i++) x[i] = (float)((state = state * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1;
    for (int i = 0; i < ROWS; i++) y[i] = i * 5 % CLASSES;
    WEFTI_TRY(weft_world_create(&(weft_world_options){.wire = "tcp", .threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS}, &r->world));
    WEFTI_TRY(weft_graph_create(&(weft_graph_options){.seed = 7}, &r->graph));
    weft_tensor *h = weft_relu(weft_linear(weft_input(r->graph, "x", WEFT_F32, weft_shape(BATCH, WIDTH)), "one", .out = 256));
    h = weft_relu(weft_linear(weft_dropout(weft_linear(h, "two", .out = 128), 0.2), "three", .out = 256));
    weft_tensor *loss = weft_cross_entropy(weft_linear(h, "head", .out = CLASSES), weft_input(r->graph, "y", WEFT_I32, weft_shape(BATCH)));
    WEFTI_TRY(weft_trainer_create(r->world, &(weft_program){.loss = loss, .solver = weft_adamw(0.003), .strategy = job.strategy}, &r->trainer));
    weft_batch_field    fields[2] = {{"x", WEFT_F32, weft_shape(ROWS, WIDTH), x}, {"y", WEFT_I32, weft_shape(ROWS), y}};
    weft_loader_options how = {.batch = BATCH, .seed = 3, .epochs = -1};
    weft_trainer_share(r->trainer, &how.rank, &how.ranks);
    return weft_loader_open_arrays(fields, 2, &how, &r->loader);
}

static void close_run(run *r) {
    weft_trainer_release(r->trainer);
    weft_loader_release(r->loader);
    weft_graph_release(r->graph);
    weft_world_release(r->world);
    weft_world_release(r->next);
}

static weft_status step_and_keep(run *r) {
    weft_batch batch;
    WEFTI_TRY(weft_loader_next(r->loader, &batch));
    WEFTI_TRY(weft_trainer_step(r->trainer, &batch, NULL));
    return weft_trainer_keep(r->trainer, r->loader);
}

static weft_status go_on(run *r) {
    WEFTI_TRY(weft_world_shrink(weft_trainer_world(r->trainer), NULL, &r->next));
    weft_status status = weft_trainer_renew(r->trainer, r->next, r->loader);
    if (job.wanted != WEFT_OK) {
        if (status == job.wanted && strstr(weft_error_message(), job.word)) return WEFT_END;
        return wefti_fail(WEFT_E_INTERNAL, "%s came, not '%s': %.200s", weft_status_name(status), job.word, weft_error_message());
    }
    if (status != WEFT_OK) return status;
    if (weft_trainer_kept(r->trainer) != weft_trainer_steps(r->trainer)) return wefti_fail(WEFT_E_INTERNAL, "the copy is of another step");
    *renewed_at = weft_trainer_steps(r->trainer);
    return WEFT_OK;
}

static weft_status train(ranks *all, int32_t rank) {
    run         r = {0};
    weft_status status = open_run(&r);
    bool        lost = false;
    (void)all;
    if (status == WEFT_OK && job.load) status = weft_trainer_load(r.trainer, job.load, r.loader);
    while (status == WEFT_OK && weft_trainer_steps(r.trainer) < job.steps) {
        bool dies = job.fate && job.fate[rank] == 'k';
        if (dies && weft_trainer_steps(r.trainer) == KILL_AT) raise(SIGKILL);
        status = step_and_keep(&r);
        if (dies && status != WEFT_OK) raise(SIGKILL); /* another was quicker */
        if (status != WEFT_E_PEER || lost) continue;
        lost = true;
        status = go_on(&r);
    }
    if (status == WEFT_OK && job.save) status = weft_trainer_save(r.trainer, job.save, r.loader);
    close_run(&r);
    return status == WEFT_END ? WEFT_OK : status;
}

static void run_ranks_of(int32_t size, struct job what) {
    job = what;
    ranks *all = ranks_start(size, train);
    ranks_join(all);
    for (int32_t r = 0; r < size; r++)
        if (!what.fate || what.fate[r] == '.')
            cr_expect(atomic_load(&all->results[r].finished) && all->results[r].status == WEFT_OK, "rank %d of %d: %s", (int)r, (int)size, all->results[r].message);
    ranks_free(all);
}

/* With the data axis open, so that fewer ranks make a mesh. */
static void goes_on(weft_strategy strategy, const char *fate, int32_t left) {
    const char *renewed = temporary_path("renewed"), *half = temporary_path("half"), *loaded = temporary_path("loaded");
    char        command[1024];
    renewed_at = mmap(NULL, sizeof *renewed_at, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq((void *)renewed_at, MAP_FAILED);
    run_ranks_of(4, (struct job){.strategy = strategy, .fate = fate, .steps = STEPS, .save = renewed});
    cr_assert(*renewed_at == KILL_AT || *renewed_at == KILL_AT - 1, "it goes on from step %lld", (long long)*renewed_at); /* not all may have ended the last */
    run_ranks_of(4, (struct job){.strategy = strategy, .steps = *renewed_at, .save = half});
    run_ranks_of(left, (struct job){.strategy = strategy, .steps = STEPS, .load = half, .save = loaded});
    snprintf(command, sizeof command, "cmp %s %s", renewed, loaded);
    cr_expect_eq(system(command), 0, "%s: other bits than from a checkpoint", fate);
}

/* Ranks 0 and 1 have the first stage, 2 and 3 the second. */
Test(renew_parts, stages_of_different_data_ranks) { goes_on((weft_strategy){.pipeline = 2, .accumulate = 2}, ".kk.", 2); }
Test(renew_parts, interleaved_stages) { goes_on((weft_strategy){.pipeline = 2, .accumulate = 2, .schedule = WEFT_INTERLEAVED}, "k.k.", 2); }
/* Ranks 0 and 2 have the first parts: who is left changes places, and gives the other what it kept. */
Test(renew_parts, parts_change_hands) { goes_on((weft_strategy){.tensor = 2}, "k..k", 2); }
Test(renew_parts, parts_stay) { goes_on((weft_strategy){.tensor = 2}, ".kk.", 2); }

/* Nobody has the second stage; three ranks are no mesh. */
Test(renew_parts, what_is_gone_is_named) {
    run_ranks_of(4, (struct job){.strategy = {.pipeline = 2, .accumulate = 2}, .fate = "..kk", .steps = STEPS, .wanted = WEFT_E_NOT_FOUND, .word = "some part"});
    run_ranks_of(4, (struct job){.strategy = {.pipeline = 2, .accumulate = 2}, .fate = "...k", .steps = STEPS, .wanted = WEFT_E_INVALID, .word = "pipeline = 2"});
}

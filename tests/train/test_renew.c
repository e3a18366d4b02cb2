/* Training that goes on with the survivors of a fault, between real processes: what becomes of it is, to the bit, what becomes of a run of as
 * many ranks that loads a checkpoint of the step that was gone on from. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "train/run.h"
#include "weft.h"

#include "transport/ranks.h" /* whose type is named as arguments of inline functions are */

enum { ROWS = 90, BATCH = 20, WIDTH = 37, CLASSES = 7, STEPS = 40, KILL_AT = 12 };

/* What the ranks of a run do; set before they are forked. */
static struct job {
    const char *wire, *solver, *fate; /* by rank: k dies between steps, m in the middle of one, . lives */
    int         delay_us;             /* m: how long after KILL_AT */
    bool        by_turns;             /* even ranks keep even steps only, odd ones odd steps */
    const char *load, *save;          /* a checkpoint to begin from, or to end with */
    int64_t     steps;
    const char *out;                  /* OUT-RANK gets all variables */
} job;

/* What the ranks tell the test. */
static struct said {
    _Atomic int64_t renewed[RANKS_MOST], kept[RANKS_MOST], divided, shrink_ms, renew_ms;
} *said;

static void open_said(void) {
    static struct said *memory;
    if (!memory) memory = mmap(NULL, sizeof *memory, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq((void *)memory, MAP_FAILED);
    said = memory;
    memset((void *)said, 0, sizeof *said);
}

typedef struct run {
    weft_world   *world, *next;
    weft_graph   *graph;
    weft_loader  *loader;
    weft_trainer *trainer;
    weft_tensor  *loss;
} run;

static float   data[ROWS * WIDTH];
static int32_t labels[ROWS];

static weft_solver solver_of(const char *name) {
    if (strcmp(name, "lbfgs") == 0) return weft_lbfgs(1);
    if (strcmp(name, "momentum") == 0) return weft_sgd(0.02, .momentum = 0.9);
    return weft_adamw(0.003);
}

static weft_status open_loader(const weft_world *world, int64_t batch, weft_loader **loader_out) {
    weft_batch_field    fields[2] = {{"x", WEFT_F32, weft_shape(ROWS, WIDTH), data}, {"label", WEFT_I32, weft_shape(ROWS), labels}};
    weft_loader_options how = {.batch = batch, .rank = weft_world_rank(world), .ranks = weft_world_size(world), .seed = 3, .epochs = -1};
    return weft_loader_open_arrays(fields, 2, &how, loader_out);
}

/* Dropout, so that random counters matter; a last batch of another size; updates in parts where ranks share memory. */
static weft_status open_run(run *r, const char *solver, weft_strategy strategy) {
    unsigned state = 11;
    for (int i = 0; i < ROWS * WIDTH; i++) data[i] = (float)((state = state * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1;
    for (int i = 0; i < ROWS; i++) labels[i] = i * 5 % CLASSES;
    WEFTI_TRY(weft_graph_create(&(weft_graph_options){.seed = 7}, &r->graph));
    WEFTI_TRY(open_loader(r->world, BATCH, &r->loader));
    weft_tensor *h = weft_relu(weft_linear(weft_input(r->graph, "x", WEFT_F32, weft_shape(BATCH, WIDTH)), "hidden", .out = 53));
    if (strcmp(solver, "lbfgs") != 0) h = weft_dropout(h, 0.2);
    h = weft_linear(h, "head", .out = CLASSES);
    r->loss = weft_cross_entropy(h, weft_input(r->graph, "label", WEFT_I32, weft_shape(BATCH)));
    weft_program program = {.loss = r->loss, .regulariser = weft_l2(1e-3), .solver = solver_of(solver), .strategy = strategy};
    return weft_trainer_create(r->world, &program, &r->trainer);
}

static void close_run(run *r) {
    weft_trainer_release(r->trainer);
    weft_loader_release(r->loader);
    weft_graph_release(r->graph);
    weft_world_release(r->world);
    weft_world_release(r->next);
}

static weft_status write_all(weft_trainer *trainer, const char *path) {
    weft_variables *variables = weft_trainer_variables(trainer);
    FILE           *file = fopen(path, "wb");
    weft_status     status = file ? WEFT_OK : wefti_fail(WEFT_E_IO, "cannot write %s", path);
    for (int32_t i = 0; i < weft_variables_count(variables) && status == WEFT_OK; i++) {
        weft_variable_info info;
        char               values[1 << 16];
        status = weft_variables_info(variables, i, &info);
        if (status == WEFT_OK) status = weft_variables_get(variables, info.name, values, (size_t)info.bytes);
        if (status == WEFT_OK && fwrite(values, 1, (size_t)info.bytes, file) != (size_t)info.bytes) status = wefti_fail(WEFT_E_IO, "writing %s", path);
    }
    if (file && fclose(file) != 0) status = wefti_fail(WEFT_E_IO, "writing %s", path);
    return status;
}

static void count_divided(weft_trainer *trainer) {
    weft_plan_op op;
    for (int32_t i = 0; weft_plan_op_at(weft_trainer_plan(trainer), i, &op) == WEFT_OK; i++)
        if (strcmp(op.kind, "reduce_scatter") == 0) said->divided++;
}

static _Atomic bool due;
static void *die_soon(void *unused) {
    while (!atomic_load(&due)) usleep(50);
    usleep((useconds_t)job.delay_us);
    raise(SIGKILL);
    return unused;
}

static weft_status step_and_keep(run *r, int32_t seat) {
    weft_batch batch;
    WEFTI_TRY(weft_loader_next(r->loader, &batch));
    WEFTI_TRY(weft_trainer_step(r->trainer, &batch, NULL));
    int64_t step = weft_trainer_steps(r->trainer);
    if (job.by_turns && step % 2 != seat % 2) return WEFT_OK;
    return weft_trainer_keep(r->trainer, r->loader);
}

static weft_status go_on(run *r, int32_t seat) {
    uint64_t begin_ns = ranks_now();
    said->kept[seat] = weft_trainer_kept(r->trainer);
    WEFTI_TRY(weft_world_shrink(weft_trainer_world(r->trainer), NULL, &r->next));
    uint64_t stands_ns = ranks_now();
    WEFTI_TRY(weft_trainer_renew(r->trainer, r->next, r->loader));
    said->renewed[seat] = weft_trainer_steps(r->trainer);
    said->shrink_ms = (int64_t)((stands_ns - begin_ns) / 1000000);
    said->renew_ms = (int64_t)((ranks_now() - stands_ns) / 1000000);
    if (weft_trainer_kept(r->trainer) != weft_trainer_steps(r->trainer)) return wefti_fail(WEFT_E_INTERNAL, "the copy is of another step");
    weft_world_release(r->world); /* with nothing of the trainer in it any more */
    r->world = r->next;
    r->next = NULL;
    return WEFT_OK;
}

static weft_status train(ranks *all, int32_t rank) {
    run       r = {0};
    char      path[512];
    pthread_t killer;
    char      fate = job.fate ? job.fate[rank] : '.';
    (void)all;
    setenv("WEFT_THREADS", "1", 1);
    weft_world_options options = {.wire = job.wire, .threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS};
    WEFTI_TRY(weft_world_create(&options, &r.world));
    WEFTI_TRY(open_run(&r, job.solver, (weft_strategy){.divide_bytes = strcmp(job.wire, "shm") == 0 ? 1 : 0}));
    if (rank == 0) count_divided(r.trainer);
    if (job.load) WEFTI_TRY(weft_trainer_load(r.trainer, job.load, r.loader));
    if (fate == 'm' && pthread_create(&killer, NULL, die_soon, NULL) != 0) return wefti_fail(WEFT_E_INTERNAL, "no thread");
    while (weft_trainer_steps(r.trainer) < job.steps) {
        if (weft_trainer_steps(r.trainer) >= KILL_AT) {
            /* A thread that a busy machine lets run late is not to find the work done. */
            if (fate == 'k' || (fate == 'm' && weft_trainer_steps(r.trainer) >= STEPS - 10)) raise(SIGKILL);
            due = true;
        }
        weft_status status = step_and_keep(&r, rank);
        if (status == WEFT_E_PEER && job.fate) status = go_on(&r, rank);
        WEFTI_TRY(status);
    }
    if (job.save) WEFTI_TRY(weft_trainer_save(r.trainer, job.save, r.loader));
    snprintf(path, sizeof path, "%s-%d", job.out, (int)weft_world_rank(weft_trainer_world(r.trainer)));
    weft_status status = write_all(r.trainer, path);
    close_run(&r);
    return status;
}

static void run_job(int32_t size, struct job what) {
    job = what;
    ranks *all = ranks_start(size, train);
    ranks_join(all);
    for (int32_t rank = 0; rank < size; rank++)
        if (!job.fate || job.fate[rank] == '.')
            cr_assert(atomic_load(&all->results[rank].finished) && all->results[rank].status == WEFT_OK, "%s, %s, %s: rank %d: %s", job.wire, job.solver,
                      job.fate ? job.fate : "undisturbed", (int)rank, all->results[rank].message);
    ranks_free(all);
}

static void same_files(const char *a, const char *b) {
    char command[1024];
    snprintf(command, sizeof command, "cmp %s %s", a, b);
    cr_assert_eq(system(command), 0, "%s, %s, %s: %s and %s differ", job.wire, job.solver, job.fate, a, b);
}

/* The step that all survivors went on from, which must be the highest that any of them kept. */
static int64_t find_renewed(const char *fate) {
    int64_t step = -1, highest = -1;
    for (int32_t rank = 0; fate[rank]; rank++) {
        if (fate[rank] != '.') continue;
        cr_expect(step < 0 || said->renewed[rank] == step, "rank %d went on from step %d, others from %d", (int)rank, (int)said->renewed[rank], (int)step);
        step = said->renewed[rank];
        if (said->kept[rank] > highest) highest = said->kept[rank];
    }
    cr_expect_eq(step, highest, "they went on from step %d, and one had kept step %d", (int)step, (int)highest);
    cr_assert(step >= KILL_AT - 1 && step < STEPS, "they went on from step %d", (int)step);
    return step;
}

/* Of `fate` some are killed; the others end as ranks of their number end that load what all ranks saved at the step gone on from. */
static void goes_on(const char *wire, const char *solver, const char *fate, int delay_us, bool by_turns) {
    const char *disturbed = temporary_path("disturbed"), *loaded = temporary_path("loaded");
    const char *file = temporary_path("at.safetensors"), *other = temporary_path("other");
    int32_t     size = (int32_t)strlen(fate), left = 0;
    struct job what = {.wire = wire, .solver = solver, .fate = fate, .delay_us = delay_us, .by_turns = by_turns, .steps = STEPS, .out = disturbed};
    for (int32_t i = 0; i < size; i++) left += fate[i] == '.';
    open_said();
    run_job(size, what);
    int64_t step = find_renewed(fate);
    cr_expect(strcmp(wire, "shm") != 0 || strcmp(solver, "lbfgs") == 0 || said->divided > 0, "no update was done in parts");
    cr_expect_lt(said->shrink_ms, 2000);
    fprintf(stderr, "%s, %s, %s: from step %d; shrunk in %d ms, renewed in %d ms\n", wire, solver, fate, (int)step, (int)said->shrink_ms,
            (int)said->renew_ms);
    run_job(size, (struct job){.wire = wire, .solver = solver, .steps = step, .save = file, .out = other});
    run_job(left, (struct job){.wire = wire, .solver = solver, .steps = STEPS, .load = file, .out = loaded});
    for (int32_t rank = 0; rank < left; rank++) {
        char a[600], b[600];
        snprintf(a, sizeof a, "%s-%d", disturbed, (int)rank);
        snprintf(b, sizeof b, "%s-%d", loaded, (int)rank);
        same_files(a, b);
    }
}

Test(renew, one_of_four_dies_over_shm) { goes_on("shm", "adam", "..k.", 0, false); }
Test(renew, one_of_three_dies_over_tcp) { goes_on("tcp", "adam", "..k", 0, false); }
Test(renew, rank_0_dies) { goes_on("shm", "momentum", "k..", 0, false); }
Test(renew, two_of_four_die) { goes_on("shm", "adam", "k.k.", 0, false); }
Test(renew, one_is_left) { goes_on("shm", "adam", "k.", 0, false); }
Test(renew, lbfgs_goes_on) { goes_on("shm", "lbfgs", ".k.", 0, false); }
Test(renew, replicas_of_different_steps_are_reconciled) { goes_on("shm", "adam", "...k", 0, true); }
/* At any moment of a step, the parts that another rank owns being half done. */
Test(renew, one_dies_in_the_middle_of_a_step_over_shm) {
    for (int delay_us = 0; delay_us < 800; delay_us += 190) goes_on("shm", "adam", ".m.", delay_us, false);
}
Test(renew, one_dies_in_the_middle_of_a_step_over_tcp) {
    for (int delay_us = 100; delay_us < 1000; delay_us += 400) goes_on("tcp", "adam", "m..", delay_us, false);
}

/* --- by weft_fit --- */

static int32_t least;
static const char *log_path;

static int lines_of(const char *text) {
    char  line[8192];
    int   found = 0;
    FILE *file = fopen(log_path, "r");
    while (file && fgets(line, sizeof line, file)) found += strstr(line, text) != NULL;
    if (file) fclose(file);
    return found;
}

static void *die_by_log(void *unused) {
    while (lines_of("\"event\":\"step\"") < KILL_AT) usleep(500);
    raise(SIGKILL);
    return unused;
}

static weft_status fit(ranks *all, int32_t rank) {
    run       r = {0};
    char      path[512];
    pthread_t killer;
    (void)all;
    weft_world_options options = {.wire = job.wire, .threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS};
    WEFTI_TRY(weft_world_create(&options, &r.world));
    WEFTI_TRY(open_run(&r, job.solver, (weft_strategy){0}));
    if (job.fate[rank] == 'k' && pthread_create(&killer, NULL, die_by_log, NULL) != 0) return wefti_fail(WEFT_E_INTERNAL, "no thread");
    WEFTI_TRY(weft_fit(r.trainer, r.loader, &(weft_fit_options){.elastic = true, .keep_every = 3, .least = least, .max_steps = job.steps,
                                                                .log_path = log_path, .log_every = 1}, NULL));
    if (weft_trainer_steps(r.trainer) != job.steps) return wefti_fail(WEFT_E_INTERNAL, "%d steps", (int)weft_trainer_steps(r.trainer));
    snprintf(path, sizeof path, "%s-%d", job.out, (int)weft_world_rank(weft_trainer_world(r.trainer)));
    weft_status status = write_all(r.trainer, path);
    close_run(&r);
    return status;
}

static void fits(const char *wire, const char *fate, weft_status expected, const char *words) {
    const char *out = temporary_path("fitted"), *log = temporary_path("log");
    char        first[600], second[600];
    int32_t     size = (int32_t)strlen(fate);
    job = (struct job){.wire = wire, .solver = "adam", .fate = fate, .steps = expected == WEFT_OK ? 2000 : 1 << 20, .out = out};
    log_path = log;
    ranks *all = ranks_start(size, fit);
    ranks_join(all);
    for (int32_t rank = 0; rank < size; rank++)
        if (fate[rank] == '.')
            cr_assert(all->results[rank].finished && all->results[rank].status == expected && strstr(all->results[rank].message, words),
                      "%s, %s: rank %d: %s: %s", wire, fate, (int)rank, weft_status_name(all->results[rank].status), all->results[rank].message);
    ranks_free(all);
    char *text = read_text(log);
    cr_expect_not_null(strstr(text, "\"event\":\"start\""));
    if (expected == WEFT_OK) {
        cr_expect_not_null(strstr(text, "\"event\":\"fault\""), "%s", text);
        cr_expect_not_null(strstr(text, "its process has ended"));
        cr_expect_not_null(strstr(text, "\"event\":\"renewed\""));
        cr_expect_not_null(strstr(text, "\"event\":\"end\""));
        snprintf(first, sizeof first, "%s-0", out);
        snprintf(second, sizeof second, "%s-1", out);
        same_files(first, second);
    }
    free(text);
}

Test(renew, fit_goes_on_over_shm) { fits("shm", "..k", WEFT_OK, ""); }
Test(renew, fit_goes_on_without_rank_0_over_tcp) { fits("tcp", "k..", WEFT_OK, ""); }
Test(renew, fit_ends_where_too_few_are_left) {
    least = 3;
    fits("shm", ".k.", WEFT_E_PEER, "");
}

/* --- in one process --- */

static run begin(weft_strategy strategy) {
    run r = {0};
    cr_assert_eq(weft_world_create(&(weft_world_options){.size = 1}, &r.world), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_world_create(&(weft_world_options){.size = 1}, &r.next), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(open_run(&r, "adam", strategy), WEFT_OK, "%s", weft_error_message());
    return r;
}

static void step(run *r) {
    weft_batch batch;
    cr_assert_eq(weft_loader_next(r->loader, &batch), WEFT_OK);
    cr_assert_eq(weft_trainer_step(r->trainer, &batch, NULL), WEFT_OK, "%s", weft_error_message());
}

static void expect(weft_status status, weft_status expected, const char *text) {
    cr_expect_eq(status, expected, "%s instead of %s", weft_status_name(status), weft_status_name(expected));
    cr_expect_not_null(strstr(weft_error_message(), text), "'%s' lacks '%s'", weft_error_message(), text);
}

Test(renew, moves_a_trainer_and_its_evaluators) {
    run             r = begin((weft_strategy){0});
    weft_evaluator *evaluator = NULL;
    weft_loader    *test = NULL;
    weft_batch      batch;
    float           before, after;
    cr_assert_eq(weft_evaluator_create(r.trainer, &r.loss, 1, &evaluator), WEFT_OK);
    cr_assert_eq(open_loader(r.world, BATCH, &test), WEFT_OK);
    cr_assert_eq(weft_loader_next(test, &batch), WEFT_OK);
    for (int i = 0; i < 7; i++) step(&r);
    cr_expect_eq(weft_trainer_kept(r.trainer), -1);
    cr_assert_eq(weft_trainer_keep(r.trainer, r.loader), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_evaluator_run(evaluator, &batch), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_evaluator_fetch(evaluator, 0, &before, sizeof before), WEFT_OK);
    for (int i = 0; i < 3; i++) step(&r);
    cr_assert_eq(weft_trainer_renew(r.trainer, r.next, r.loader), WEFT_OK, "%s", weft_error_message());
    weft_world_release(r.world);
    r.world = NULL;
    cr_expect_eq(weft_trainer_steps(r.trainer), 7);
    cr_expect_eq(weft_trainer_kept(r.trainer), 7);
    expect(weft_evaluator_fetch(evaluator, 0, &after, sizeof after), WEFT_E_STATE, "nothing has run");
    cr_assert_eq(weft_evaluator_run(evaluator, &batch), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_evaluator_fetch(evaluator, 0, &after, sizeof after), WEFT_OK);
    cr_expect_eq(before, after, "%.9g and %.9g", before, after);
    weft_loader_state at;
    weft_loader_save(r.loader, &at);
    cr_expect(at.epoch == 1 && at.batch == 2, "the loader stands at epoch %d, batch %d", (int)at.epoch, (int)at.batch);
    step(&r);
    weft_trainer_release(r.trainer); /* before its evaluator */
    r.trainer = NULL;
    weft_evaluator_release(evaluator);
    weft_loader_release(test);
    close_run(&r);
}

Test(renew, says_what_is_wrong_and_changes_nothing) {
    run          r = begin((weft_strategy){.data = 1});
    weft_loader *other = NULL;
    expect(weft_trainer_keep(NULL, NULL), WEFT_E_INVALID, "trainer is NULL");
    expect(weft_trainer_renew(NULL, r.next, NULL), WEFT_E_INVALID, "trainer is NULL");
    expect(weft_trainer_renew(r.trainer, NULL, NULL), WEFT_E_INVALID, "world is NULL");
    step(&r);
    expect(weft_trainer_renew(r.trainer, r.next, r.loader), WEFT_E_NOT_FOUND, "none of the 1 ranks has kept");
    cr_expect_eq(weft_trainer_world(r.trainer), r.world);
    cr_assert_eq(weft_trainer_keep(r.trainer, NULL), WEFT_OK);
    step(&r);
    expect(weft_trainer_renew(r.trainer, r.next, r.loader), WEFT_E_MISMATCH, "without a loader");
    cr_assert_eq(weft_trainer_keep(r.trainer, r.loader), WEFT_OK);
    cr_assert_eq(open_loader(r.world, BATCH + 1, &other), WEFT_OK);
    expect(weft_trainer_renew(r.trainer, r.next, other), WEFT_E_MISMATCH, "batch 20");
    cr_expect_eq(weft_trainer_world(r.trainer), r.world);
    cr_expect_eq(weft_trainer_steps(r.trainer), 2);
    step(&r);
    weft_loader_release(other);
    expect(weft_loader_share(r.loader, 3, 3), WEFT_E_INVALID, "rank 3 of 3");
    expect(weft_loader_share(r.loader, 0, 0), WEFT_E_INVALID, "rank 0 of 0");
    expect(weft_loader_share(NULL, 0, 1), WEFT_E_INVALID, "NULL");
    close_run(&r);
}

Test(renew, fit_refuses_what_cannot_be) {
    run r = begin((weft_strategy){0});
    expect(weft_fit(r.trainer, r.loader, &(weft_fit_options){.keep_every = -1}, NULL), WEFT_E_INVALID, "keep_every -1");
    expect(weft_fit(r.trainer, r.loader, &(weft_fit_options){.least = -2}, NULL), WEFT_E_INVALID, "least -2");
    close_run(&r);
}

/* What lies on servers goes over with them, without a copy. */
Test(renew, keeps_nothing_of_a_parameter_server) {
    run r = begin((weft_strategy){.sync = WEFT_SERVER});
    step(&r);
    expect(weft_trainer_keep(r.trainer, r.loader), WEFT_E_UNSUPPORTED, "parameter server");
    cr_assert_eq(weft_trainer_renew(r.trainer, r.next, r.loader), WEFT_OK, "%s", weft_error_message());
    cr_expect_eq(weft_trainer_steps(r.trainer), 1);
    step(&r);
    close_run(&r);
}

/* Training by a parameter server goes on in another world after each of two faults in a row, and where a rank comes in: no row is lost, all have replicas again, and
 * what follows has the bits of a run of as many ranks that loads a checkpoint of that moment. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "train/run.h"
#include "weft.h"

#include "transport/ranks.h" /* whose type is named as arguments of inline functions are */

enum { RANKS = 4, ROWS = 90, BATCH = 18, WIDTH = 37, HIDDEN = 61, CLASSES = 5, FIRST = 5, SECOND = 11, LAST = 16 };
#define HELD_NS (150 * WEFTI_MILLISECOND_NS)

/* What the ranks do; set before they are forked. */
static struct job {
    const char      *wire;
    int32_t          staleness, replicas, servers;
    bool             overlap, dies, replaced; /* who dies second */
    bool             lags;       /* rank 1 goes on until a step is held up */
    char             doors[RANKS * 64];
    char             store[64]; /* of the world of those who are there when another rank comes in */
    weft_compression compress;
    const char      *saved; /* what is saved after the second fault, or loaded at once */
} job;

static struct told {
    uint64_t         hash[RANKS], kept[RANKS]; /* at the end; after the second fault */
    double           loss[RANKS];
    _Atomic int64_t  steps[RANKS], refused[RANKS];
    _Atomic int32_t  world;
} *told;

typedef struct run {
    weft_world     *world, *before;
    weft_graph     *graph;
    weft_loader    *loader;
    weft_trainer   *trainer;
    weft_evaluator *evaluator;
    int32_t         seat, faults;
} run;

static float   data[ROWS * WIDTH];
static int32_t labels[ROWS];

static weft_status open_world(weft_world **world_out) {
    return weft_world_create(&(weft_world_options){.wire = job.wire, .threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS}, world_out);
}

static weft_status open_run(run *r) {
    unsigned state = 11;
    for (int i = 0; i < ROWS * WIDTH; i++) data[i] = (float)((state = state * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1;
    for (int i = 0; i < ROWS; i++) labels[i] = i * 5 % CLASSES;
    WEFTI_TRY(open_world(&r->world));
    WEFTI_TRY(weft_graph_create(&(weft_graph_options){.seed = 7}, &r->graph));
    weft_batch_field    fields[2] = {{"x", WEFT_F32, weft_shape(ROWS, WIDTH), data}, {"label", WEFT_I32, weft_shape(ROWS), labels}};
    weft_loader_options how = {.batch = BATCH, .rank = r->seat, .ranks = weft_world_size(r->world), .seed = 3, .epochs = -1};
    WEFTI_TRY(weft_loader_open_arrays(fields, 2, &how, &r->loader));
    weft_tensor *h = weft_linear(weft_input(r->graph, "x", WEFT_F32, weft_shape(BATCH, WIDTH)), "hidden", .out = HIDDEN);
    h = weft_dropout(weft_relu(weft_batch_norm(h, "norm")), 0.1); /* statistics that no server has; random counters */
    weft_tensor *loss = weft_cross_entropy(weft_linear(h, "head", .out = CLASSES), weft_input(r->graph, "label", WEFT_I32, weft_shape(BATCH)));
    weft_program program = {.loss = loss, .solver = weft_adamw(0.003),
                            .strategy = {.sync = WEFT_SERVER, .staleness = job.staleness, .replicas = job.replicas, .servers = job.servers, .overlap = job.overlap,
                                         .compress = job.compress}};
    WEFTI_TRY(weft_trainer_create(r->world, &program, &r->trainer));
    return weft_evaluator_create(r->trainer, &loss, 1, &r->evaluator);
}

static void close_run(run *r) {
    weft_evaluator_release(r->evaluator);
    weft_trainer_release(r->trainer);
    weft_loader_release(r->loader);
    weft_graph_release(r->graph);
    weft_world_release(r->world);
    weft_world_release(r->before);
}

static uint64_t hash_of(run *r) {
    weft_variables *variables = weft_trainer_variables(r->trainer);
    uint64_t        hash = WEFTI_HASH_BEGIN;
    for (int32_t i = 0; i < weft_variables_count(variables); i++) {
        weft_variable_info info;
        static char        values[WIDTH * HIDDEN * 8];
        if (weft_variables_info(variables, i, &info) != WEFT_OK || weft_variables_get(variables, info.name, values, (size_t)info.bytes) != WEFT_OK) return 0;
        hash = wefti_hash(hash, values, (size_t)info.bytes);
    }
    return hash;
}

/* Into the world that follows, with all that there is. */
static weft_status go_over(run *r) {
    weft_world *next = NULL;
    uint64_t    before = hash_of(r), until_ns = ranks_now() + 10 * WEFTI_SECOND_NS;
    int64_t     steps = weft_trainer_steps(r->trainer);
    while (weft_world_verdict(r->world) == WEFT_OK && ranks_now() < until_ns) usleep(1000);
    weft_shrink_options how = {.replacement_ns = job.replaced && r->faults == 1 ? 20 * (int64_t)WEFTI_SECOND_NS : 0};
    WEFTI_TRY(weft_world_shrink(r->world, &how, &next));
    weft_world_release(r->before);
    r->before = r->world;
    r->world = next;
    r->faults++;
    WEFTI_TRY(weft_trainer_renew(r->trainer, next, r->loader));
    if (weft_trainer_world(r->trainer) != next) return wefti_fail(WEFT_E_INTERNAL, "the trainer is where it was");
    if (job.staleness != 0) return WEFT_OK;
    if (hash_of(r) != before) return wefti_fail(WEFT_E_INTERNAL, "rank %d has other variables after it went over", (int)r->seat);
    return weft_trainer_steps(r->trainer) == steps ? WEFT_OK : wefti_fail(WEFT_E_INTERNAL, "it stands at step %lld", (long long)weft_trainer_steps(r->trainer));
}

static weft_status evaluate(run *r, double *loss_out) {
    weft_batch batch;
    float      value = 0;
    WEFTI_TRY(weft_loader_next(r->loader, &batch));
    WEFTI_TRY(weft_evaluator_run(r->evaluator, &batch));
    WEFTI_TRY(weft_evaluator_fetch(r->evaluator, 0, &value, sizeof value));
    *loss_out = (double)value;
    return WEFT_OK;
}

/* Two ranks die, each in the middle of a step. Who goes at its own pace hears of it some steps later, and takes steps until then. */
static weft_status train(ranks *all, run *r) {
    weft_report report;
    weft_batch  batch;
    while (weft_trainer_steps(r->trainer) < LAST || (job.dies && r->faults < 2)) {
        int64_t step = weft_trainer_steps(r->trainer);
        if (job.dies && r->faults < 2 && r->seat == RANKS - 1 - r->faults && step >= (r->faults ? SECOND : FIRST)) {
            atomic_store(&all->step, r->faults);
            raise(SIGKILL);
        }
        WEFTI_TRY(weft_loader_next(r->loader, &batch));
        WEFTI_TRY(weft_trainer_step(r->trainer, &batch, &report));
        if (!report.lost || (job.lags && r->seat == 1 && r->faults == 0 && report.step_ns < HELD_NS)) continue;
        WEFTI_TRY(go_over(r));
        if (r->faults < 2) continue;
        told->kept[r->seat] = hash_of(r);
        WEFTI_TRY(weft_trainer_save(r->trainer, job.saved, r->loader));
    }
    return WEFT_OK;
}

static weft_status run_rank(ranks *all, int32_t rank) {
    run         r = {.seat = rank};
    weft_status status = open_run(&r);
    if (status == WEFT_OK && !job.dies) status = weft_trainer_load(r.trainer, job.saved, r.loader);
    if (status == WEFT_OK) status = train(all, &r);
    if (status == WEFT_OK) status = evaluate(&r, &told->loss[rank]);
    if (status == WEFT_OK) {
        told->hash[rank] = hash_of(&r);
        atomic_store(&told->steps[rank], weft_trainer_steps(r.trainer));
        atomic_store(&told->world, weft_world_size(r.world));
    }
    char message[WEFTI_MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", weft_error_message());
    close_run(&r);
    return status == WEFT_OK ? WEFT_OK : wefti_fail(status, "%s", message);
}

static void go(int32_t size, rank_function function, uint32_t lost) {
    memset((void *)told, 0, sizeof *told);
    ranks *all = ranks_start(size, function);
    ranks_join(all);
    for (int32_t rank = 0; rank < size; rank++)
        if (!(lost >> rank & 1))
            cr_assert(atomic_load(&all->results[rank].finished) && all->results[rank].status == WEFT_OK, "%s, rank %d of %d: %s", job.wire, (int)rank, (int)size,
                      all->results[rank].message);
    ranks_free(all);
}

static void begin(const char *wire) {
    if (!told) told = mmap(NULL, sizeof *told, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq((void *)told, MAP_FAILED);
    job = (struct job){.wire = wire, .replicas = 1, .dies = true, .saved = temporary_path("saved")};
}

/* The two who are left end with the bits of two who begin with what was saved when they were two. */
static void same_bits(void) {
    uint64_t hash[2];
    double   loss[2];
    go(RANKS, run_rank, 12);
    cr_expect_eq(told->world, 2);
    for (int rank = 0; rank < 2; rank++) {
        cr_expect_eq(told->steps[rank], LAST);
        cr_expect(told->kept[rank] == told->kept[0] && told->hash[rank] == told->hash[0], "rank %d has other variables than rank 0", rank);
        hash[rank] = told->hash[rank];
        loss[rank] = told->loss[rank];
    }
    job.dies = false;
    job.servers = 0; /* there are two */
    go(2, run_rank, 0);
    for (int rank = 0; rank < 2; rank++) {
        cr_expect_eq(told->hash[rank], hash[rank], "%s, rank %d: other bits than those of a run that loads a checkpoint", job.wire, rank);
        cr_expect_eq(told->loss[rank], loss[rank], "the evaluator says %g, and %g", told->loss[rank], loss[rank]);
    }
}
Test(served_renew, two_faults_in_a_row_lose_nothing_shm) {
    begin("shm");
    same_bits();
}
Test(served_renew, two_faults_in_a_row_lose_nothing_tcp) {
    begin("tcp");
    job.servers = 3;
    same_bits();
}
Test(served_renew, with_what_compression_keeps) {
    begin("shm");
    job.compress = (weft_compression){.codec = WEFT_COMPRESS_FIXED8, .error_feedback = true, .least = 1};
    same_bits();
}

/* Of four two die, and in the place of the second another one comes in: they are three then, fewer than the program has servers, and who is new serves as the others do. */
static weft_status run_or_replace(ranks *all, int32_t rank) {
    char number[8];
    run  r = {.seat = rank < RANKS ? rank : RANKS - 2};
    snprintf(number, sizeof number, "%d", RANKS);
    setenv("WEFT_WORLD_SIZE", number, 1);
    setenv("WEFT_DOORS", job.doors, 1);
    if (rank < RANKS) {
        WEFTI_TRY(open_run(&r));
    } else {
        while (atomic_load(&all->step) == 0) usleep(1000);
        snprintf(number, sizeof number, "%d", (int)r.seat);
        setenv("WEFT_RANK", number, 1);
        setenv("WEFT_REJOIN", "1", 1);
        r.faults = 2;
        WEFTI_TRY(open_run(&r));
        if (!weft_world_is_replacement(r.world)) return wefti_fail(WEFT_E_INTERNAL, "it replaces nobody");
        WEFTI_TRY(weft_trainer_renew(r.trainer, r.world, r.loader));
        told->kept[r.seat] = hash_of(&r);
        WEFTI_TRY(weft_trainer_save(r.trainer, job.saved, r.loader));
    }
    WEFTI_TRY(train(all, &r));
    WEFTI_TRY(evaluate(&r, &told->loss[r.seat]));
    told->hash[r.seat] = hash_of(&r);
    atomic_store(&told->world, weft_world_size(r.world));
    close_run(&r);
    return WEFT_OK;
}
Test(served_renew, a_newcomer_among_fewer_ranks_than_servers) {
    begin("shm");
    job.servers = RANKS;
    job.replaced = true;
    for (int rank = 0; rank < RANKS; rank++) {
        char door[64];
        ranks_pick_store(door);
        snprintf(job.doors + strlen(job.doors), sizeof job.doors - strlen(job.doors), "%s%s", rank ? "," : "", door);
    }
    go(RANKS + 1, run_or_replace, 12);
    cr_expect_eq(told->world, RANKS - 1);
    uint64_t hash = told->hash[0];
    double   loss = told->loss[0];
    for (int rank = 0; rank < RANKS - 1; rank++)
        cr_expect(told->hash[rank] == hash && told->kept[rank] == told->kept[0] && told->loss[rank] == loss, "rank %d has other variables than rank 0", rank);
    job.dies = job.replaced = false;
    job.servers = 0;
    go(RANKS - 1, run_rank, 0);
    for (int rank = 0; rank < RANKS - 1; rank++)
        cr_expect(told->hash[rank] == hash && told->loss[rank] == loss, "rank %d: other bits than those of a run that loads a checkpoint", rank);
}

/* Each at its own pace: nobody is waited for, and all go on from where rank 0 stands. */
static void goes_on(int32_t staleness, bool overlap, bool lags) {
    begin("shm");
    job.staleness = staleness;
    job.overlap = overlap;
    job.lags = lags;
    go(RANKS, run_rank, 12);
    for (int rank = 0; rank < 2; rank++) cr_expect(told->steps[rank] >= LAST && told->loss[rank] > 0 && told->loss[rank] < 3, "rank %d: %g", rank, told->loss[rank]);
}
Test(served_renew, asynchronous) { goes_on(WEFT_TABLE_ASYNCHRONOUS, false, false); }
Test(served_renew, asynchronous_and_overlapping) { goes_on(WEFT_TABLE_ASYNCHRONOUS, true, false); }
/* Who hears of a death first ends no more clocks. Rank 1 hears of it late, waits for the others' clocks, and is let go. */
Test(served_renew, bounded) { goes_on(2, false, false); }
Test(served_renew, bounded_and_overlapping) { goes_on(2, true, false); }
Test(served_renew, bounded_and_held_up) { goes_on(2, false, true); }
Test(served_renew, bounded_overlapping_and_held_up) { goes_on(2, true, true); }

/* Two train for a while, and a third comes in: it gets all from servers and rank 0, and serves. */
static weft_status take_steps(run *r, int64_t until) {
    weft_batch batch;
    while (weft_trainer_steps(r->trainer) < until) {
        WEFTI_TRY(weft_loader_next(r->loader, &batch));
        WEFTI_TRY(weft_trainer_step(r->trainer, &batch, NULL));
    }
    return WEFT_OK;
}

static weft_status train_and_grow(ranks *all, run *r) {
    if (r->seat < 2) {
        setenv("WEFT_STORE", job.store, 1);
        setenv("WEFT_WORLD_SIZE", "2", 1);
        WEFTI_TRY(open_run(r));
        WEFTI_TRY(take_steps(r, FIRST));
        setenv("WEFT_STORE", all->store, 1);
        setenv("WEFT_WORLD_SIZE", "3", 1);
        r->before = r->world;
        WEFTI_TRY(open_world(&r->world));
    } else WEFTI_TRY(open_run(r));
    WEFTI_TRY(weft_trainer_renew(r->trainer, r->world, r->loader));
    if (weft_trainer_steps(r->trainer) != FIRST) return wefti_fail(WEFT_E_INTERNAL, "it stands at step %lld", (long long)weft_trainer_steps(r->trainer));
    weft_server_counts counts;
    weft_server_count(weft_trainer_server(r->trainer), &counts);
    if (counts.held_bytes == 0) return wefti_fail(WEFT_E_INTERNAL, "rank %d has no rows", (int)r->seat);
    told->kept[r->seat] = hash_of(r);
    WEFTI_TRY(weft_trainer_save(r->trainer, job.saved, r->loader));
    return take_steps(r, LAST);
}

static weft_status grow(ranks *all, int32_t rank) {
    run         r = {.seat = rank};
    weft_status status = train_and_grow(all, &r);
    if (status == WEFT_OK) status = evaluate(&r, &told->loss[rank]);
    if (status == WEFT_OK) told->hash[rank] = hash_of(&r);
    char message[WEFTI_MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", weft_error_message());
    close_run(&r);
    return status == WEFT_OK ? WEFT_OK : wefti_fail(status, "%s", message);
}

static void a_rank_comes_in(const char *wire) {
    begin(wire);
    ranks_pick_store(job.store);
    go(3, grow, 0);
    uint64_t hash = told->hash[0];
    double   loss = told->loss[0];
    for (int rank = 0; rank < 3; rank++) cr_expect(told->hash[rank] == hash && told->kept[rank] == told->kept[0], "rank %d has other variables than rank 0", rank);
    job.dies = false;
    go(3, run_rank, 0);
    for (int rank = 0; rank < 3; rank++)
        cr_expect(told->hash[rank] == hash && told->loss[rank] == loss, "%s, rank %d: other bits than those of a run that loads a checkpoint", wire, rank);
}
/* With a bound clocks differ when it comes; all go on from the latest. */
Test(served_renew, a_rank_comes_in_bounded) {
    begin("shm");
    job.staleness = 2;
    ranks_pick_store(job.store);
    go(3, grow, 0);
    for (int rank = 0; rank < 3; rank++) cr_expect(told->kept[rank] == told->kept[0] && told->loss[rank] > 0, "rank %d came to other variables than rank 0", rank);
}
Test(served_renew, a_rank_comes_in_shm) { a_rank_comes_in("shm"); }
Test(served_renew, a_rank_comes_in_tcp) { a_rank_comes_in("tcp"); }

/* Without replicas rows are lost, and that is said by all; the trainer stays where it was. */
static weft_status refuse(ranks *all, int32_t rank) {
    run         r = {.seat = rank};
    weft_world *next = NULL;
    weft_batch  batch;
    (void)all;
    WEFTI_TRY(open_run(&r));
    weft_status status = WEFT_OK;
    for (int step = 0; step < 20 && status == WEFT_OK; step++) {
        if (rank == RANKS - 1 && step == FIRST) raise(SIGKILL);
        WEFTI_TRY(weft_loader_next(r.loader, &batch));
        status = weft_trainer_step(r.trainer, &batch, NULL);
    }
    if (status != WEFT_E_PEER) return wefti_fail(WEFT_E_INTERNAL, "a step without its rows: %s", weft_status_name(status));
    uint64_t until_ns = ranks_now() + 10 * WEFTI_SECOND_NS;
    while (weft_world_verdict(r.world) == WEFT_OK && ranks_now() < until_ns) usleep(1000);
    WEFTI_TRY(weft_world_shrink(r.world, NULL, &next));
    status = weft_trainer_renew(r.trainer, next, r.loader);
    bool said = status == WEFT_E_PEER && strstr(weft_error_message(), "load a snapshot");
    atomic_store(&told->refused[rank], said && weft_trainer_world(r.trainer) == r.world);
    if (!said) return wefti_fail(WEFT_E_INTERNAL, "%s: %.300s", weft_status_name(status), weft_error_message());
    r.before = next;
    close_run(&r);
    return WEFT_OK;
}
Test(served_renew, without_replicas_it_is_said_that_rows_are_lost) {
    begin("tcp");
    job.replicas = 0;
    go(RANKS, refuse, 8);
    for (int rank = 0; rank < RANKS - 1; rank++) cr_expect_eq(told->refused[rank], 1, "rank %d", rank);
}

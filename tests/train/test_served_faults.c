/* Ranks that die while a run by a parameter server is loaded or saved: whoever is left has the run as it was saved, or hears what is lost, soon, and by the same
 * status on all; rank 0 is no exception. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/effort.h"
#include "train/run.h"
#include "weft.h"

#include "transport/ranks.h" /* whose type is named as arguments of inline functions are */

enum { RANKS = 4, BATCH = 16, WIDTH = 150, HIDDEN = 300, CLASSES = 5 };

/* What the ranks do; set before they are forked. */
static struct job {
    const char      *wire;
    int32_t          replicas, servers;
    weft_compression compress;
    int32_t          victim;   /* -1: nobody dies */
    long             delay_us; /* of its death, from the moment at which all are ready; -1: before */
    bool             saves;    /* what is tried is saving */
    const char      *path;
} job;

/* What they tell. */
static struct told {
    _Atomic int64_t status[RANKS], again[RANKS]; /* of the call; of the call after it, where it failed */
    uint64_t        longest_ns[RANKS], hash[RANKS];
} *told;

typedef struct run {
    weft_world   *world;
    weft_graph   *graph;
    weft_trainer *trainer;
    int32_t       rank;
} run;

static float   data[BATCH * WIDTH];
static int32_t labels[BATCH];

/* Batch norm has running statistics that no server has; Adam has states that only servers have. */
static weft_status open_run(run *r) {
    WEFTI_TRY(weft_world_create(&(weft_world_options){.wire = job.wire, .threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS}, &r->world));
    WEFTI_TRY(weft_graph_create(&(weft_graph_options){.seed = 7}, &r->graph));
    weft_tensor *h = weft_linear(weft_input(r->graph, "x", WEFT_F32, weft_shape(BATCH, WIDTH)), "hidden", .out = HIDDEN);
    h = weft_linear(weft_relu(weft_batch_norm(h, "norm")), "head", .out = CLASSES);
    weft_tensor *loss = weft_cross_entropy(h, weft_input(r->graph, "label", WEFT_I32, weft_shape(BATCH)));
    weft_program program = {.loss = loss, .solver = weft_adamw(0.01), .strategy = {.sync = WEFT_SERVER, .replicas = job.replicas, .servers = job.servers,
                            .compress = job.compress}};
    return weft_trainer_create(r->world, &program, &r->trainer);
}

static void close_run(run *r) {
    weft_trainer_release(r->trainer);
    weft_graph_release(r->graph);
    weft_world_release(r->world);
}

static weft_status take_steps(run *r, int steps) {
    for (int step = 0; step < steps; step++) {
        int32_t  rows = BATCH / RANKS;
        unsigned state = (unsigned)(weft_trainer_steps(r->trainer) + 3);
        for (int i = 0; i < BATCH * WIDTH; i++) data[i] = (float)((state = state * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1;
        for (int i = 0; i < BATCH; i++) labels[i] = i * 3 % CLASSES;
        weft_batch batch = {.field_count = 2, .global_rows = BATCH, .first_row = r->rank * rows, .local_rows = rows, .count = 100, .index = step,
                            .field = {{"x", WEFT_F32, weft_shape(rows, WIDTH), data + r->rank * rows * WIDTH},
                                      {"label", WEFT_I32, weft_shape(rows), labels + r->rank * rows}}};
        WEFTI_TRY(weft_trainer_step(r->trainer, &batch, NULL));
    }
    return WEFT_OK;
}

/* Of all variables and the step. */
static weft_status hash_of(run *r, uint64_t *hash_out) {
    weft_variables *variables = weft_trainer_variables(r->trainer);
    int64_t         steps = weft_trainer_steps(r->trainer);
    *hash_out = wefti_hash(WEFTI_HASH_BEGIN, &steps, sizeof steps);
    for (int32_t i = 0; i < weft_variables_count(variables); i++) {
        weft_variable_info info;
        static char        values[WIDTH * HIDDEN * 8];
        WEFTI_TRY(weft_variables_info(variables, i, &info));
        WEFTI_TRY(weft_variables_get(variables, info.name, values, (size_t)info.bytes));
        *hash_out = wefti_hash(*hash_out, values, (size_t)info.bytes);
    }
    return WEFT_OK;
}

static void *die_later(void *unused) {
    usleep((useconds_t)job.delay_us);
    raise(SIGKILL);
    return unused;
}

/* All are in this world; the victim's end begins. */
static weft_status meet_and_doom(ranks *all, int32_t rank) {
    pthread_t killer;
    atomic_fetch_add(&all->ready, 1);
    while (atomic_load(&all->ready) < RANKS) usleep(100);
    if (rank == job.victim && job.delay_us < 0) raise(SIGKILL);
    if (rank == job.victim && pthread_create(&killer, NULL, die_later, NULL) != 0) return wefti_fail(WEFT_E_INTERNAL, "no thread");
    if (job.victim >= 0 && job.delay_us < 0) usleep(20000); /* it is known */
    return WEFT_OK;
}

static weft_status call(run *r) {
    uint64_t    begin_ns = ranks_now();
    weft_status status = job.saves ? weft_trainer_save(r->trainer, job.path, NULL) : weft_trainer_load(r->trainer, job.path, NULL);
    uint64_t    took_ns = ranks_now() - begin_ns;
    if (took_ns > told->longest_ns[r->rank]) told->longest_ns[r->rank] = took_ns;
    return status;
}

/* The call under which the victim dies, and another one where it failed. */
static weft_status call_and_die(ranks *all, run *r) {
    WEFTI_TRY(meet_and_doom(all, r->rank));
    weft_status status = call(r);
    if (r->rank == job.victim) pause();
    atomic_store(&told->status[r->rank], status);
    if (status != WEFT_OK && status != WEFT_E_PEER && status != WEFT_E_LINK) return status;
    if (job.victim >= 0) usleep((useconds_t)(job.delay_us < 0 ? 0 : job.delay_us) + 20000); /* it is dead by now */
    weft_status again = status == WEFT_OK ? WEFT_OK : call(r);
    atomic_store(&told->again[r->rank], again);
    if (again != WEFT_OK) return job.replicas ? again : WEFT_OK; /* the parent looks at it */
    WEFTI_TRY(hash_of(r, &told->hash[r->rank]));
    weft_status steps = take_steps(r, 2);
    return steps == WEFT_E_PEER && !job.replicas ? WEFT_OK : steps; /* of a death after the call was through, parameters are lost in a step */
}

static weft_status run_rank(ranks *all, int32_t rank) {
    run         r = {.rank = rank};
    weft_status status = open_run(&r);
    if (status == WEFT_OK) status = take_steps(&r, job.saves ? 3 : 2); /* it is elsewhere */
    if (status == WEFT_OK) status = call_and_die(all, &r);
    close_run(&r);
    return status;
}

static void go(void) {
    memset((void *)told, 0, sizeof *told);
    ranks *all = ranks_start(RANKS, run_rank);
    ranks_join(all);
    for (int32_t rank = 0; rank < RANKS; rank++)
        if (rank != job.victim)
            cr_expect(atomic_load(&all->results[rank].finished) && all->results[rank].status == WEFT_OK, "%s, rank %d, rank %d dies after %ld us: %s", job.wire,
                      (int)rank, (int)job.victim, job.delay_us, all->results[rank].message);
    ranks_free(all);
}

/* All who are left have the same status, and, where that is one of success in the end, the bits that were saved. */
static void expect_alike(uint64_t saved) {
    int32_t first = job.victim == 0 ? 1 : 0;
    for (int32_t rank = 0; rank < RANKS; rank++) {
        if (rank == job.victim) continue;
        cr_expect_eq(told->status[rank], told->status[first], "%s, rank %d dies after %ld us: rank %d has %s, rank %d %s", job.wire, (int)job.victim, job.delay_us,
                     (int)rank, weft_status_name((weft_status)told->status[rank]), (int)first, weft_status_name((weft_status)told->status[first]));
        cr_expect_eq(told->again[rank], WEFT_OK, "rank %d: %s", (int)rank, weft_status_name((weft_status)told->again[rank]));
        cr_expect_eq(told->hash[rank], saved, "%s, rank %d dies after %ld us: rank %d has other variables", job.wire, (int)job.victim, job.delay_us, (int)rank);
        cr_expect(told->longest_ns[rank] < 5 * (uint64_t)WEFTI_SECOND_NS, "it took %.3g s", (double)told->longest_ns[rank] / 1e9);
    }
}

static uint64_t save_one(void) {
    job.saves = true;
    job.victim = -1;
    go();
    job.saves = false;
    return told->hash[0];
}

static void begin(const char *wire) {
    if (!told) told = mmap(NULL, sizeof *told, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq((void *)told, MAP_FAILED);
    job = (struct job){.wire = wire, .replicas = 1, .victim = -1, .path = temporary_path("saved")};
}

enum { DELAYS = UNDER_THREAD_SANITIZER || UNDER_ADDRESS_SANITIZER ? 2 : 4 };
static const long delays[4] = {-1, 2500, 600, 9000};

static void load_and_die(const char *wire, weft_compression compress, int32_t victim) {
    begin(wire);
    job.compress = compress;
    uint64_t saved = save_one();
    for (int i = 0; i < DELAYS; i++) {
        job.victim = victim;
        job.delay_us = delays[i];
        go();
        expect_alike(saved);
    }
}
Test(served_faults, a_rank_dies_in_a_load) { load_and_die("shm", (weft_compression){0}, 2); }
Test(served_faults, rank_0_dies_in_a_load) { load_and_die("tcp", (weft_compression){0}, 0); }
Test(served_faults, a_rank_dies_in_a_load_of_what_compression_keeps) {
    load_and_die("tcp", (weft_compression){.codec = WEFT_COMPRESS_TOP_K, .ratio = 0.1, .least = 1}, 3);
}

/* What was saved by those who are left is the run. */
static void save_and_die(const char *wire, int32_t victim) {
    begin(wire);
    for (int i = 0; i < DELAYS; i++) {
        job.saves = true;
        job.victim = victim;
        job.delay_us = delays[i];
        unlink(job.path);
        go();
        uint64_t saved = told->hash[1];
        expect_alike(saved);
        job.saves = false;
        job.victim = -1;
        go();
        expect_alike(saved);
    }
}
Test(served_faults, rank_0_dies_in_a_save) { save_and_die("shm", 0); }

/* Without replicas parameters are lost with a server: all hear of it, and soon. */
Test(served_faults, without_replicas_all_are_told) {
    begin("shm");
    job.replicas = 0;
    save_one();
    job.victim = 2;
    for (int i = 0; i < 2; i++) {
        job.delay_us = delays[i];
        go();
        for (int32_t rank = 0; rank < RANKS; rank++) {
            if (rank == job.victim) continue;
            cr_expect(told->status[rank] == WEFT_E_PEER || (told->status[rank] == WEFT_OK && job.delay_us >= 0), "rank %d: %s", (int)rank,
                      weft_status_name((weft_status)told->status[rank]));
            cr_expect(told->longest_ns[rank] < 5 * (uint64_t)WEFTI_SECOND_NS, "it took %.3g s", (double)told->longest_ns[rank] / 1e9);
        }
    }
}

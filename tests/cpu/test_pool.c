/* The thread pool: every chunk once, whoever asks, whatever the machine does meanwhile. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/cpu/pool.h"

enum { MOST = 5000 };

typedef struct tally {
    _Atomic int32_t hits[MOST];
    _Atomic int32_t busy[64]; /* chunks running per worker number */
    _Atomic bool    clash;
    wefti_pool     *pool;
    int32_t         threads;
} tally;

static wefti_pool *create(weft_threads options) {
    wefti_pool *pool = NULL;
    cr_assert_eq(wefti_pool_create(&options, &pool), WEFT_OK, "%s", weft_error_message());
    return pool;
}

static void mark(void *context, int64_t chunk, int32_t worker) {
    tally *self = context;
    if (worker < 0 || worker >= self->threads || atomic_fetch_add(&self->busy[worker], 1) != 0) self->clash = true;
    atomic_fetch_add(&self->hits[chunk], 1);
    atomic_fetch_sub(&self->busy[worker], 1);
}

static void expect_each_once(tally *self, int64_t chunks) {
    cr_assert_not(self->clash);
    for (int64_t i = 0; i < MOST; i++)
        cr_assert_eq(self->hits[i], i < chunks, "chunk %lld ran %d times", (long long)i, self->hits[i]);
}

static tally *fresh(wefti_pool *pool) {
    tally *self = calloc(1, sizeof *self);
    self->pool = pool;
    self->threads = wefti_pool_threads(pool);
    return self;
}

Test(pool_run, runs_every_chunk_once_at_any_size) {
    for (int32_t threads = 1; threads <= 4; threads++) {
        wefti_pool *pool = create((weft_threads){.count = threads});
        cr_assert_eq(wefti_pool_threads(pool), threads);
        const int64_t sizes[] = {0, 1, 2, 3, 7, 64, 1001, MOST};
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            tally *self = fresh(pool);
            wefti_pool_run(pool, sizes[i], mark, self, NULL);
            expect_each_once(self, sizes[i]);
            free(self);
        }
        wefti_pool_release(pool);
    }
}

static void add_chunk(void *context, int64_t chunk, int32_t worker) {
    (void)worker;
    ((int64_t *)context)[chunk] += chunk; /* plain memory: visibility is the pool's business */
}

Test(pool_run, hands_memory_over_between_many_regions) {
    wefti_pool *pool = create((weft_threads){.count = 3, .pin = true});
    int64_t     cells[16] = {0};
    for (int round = 0; round < 5000; round++) wefti_pool_run(pool, 16, add_chunk, cells, NULL);
    for (int64_t i = 0; i < 16; i++) cr_assert_eq(cells[i], 5000 * i);
    wefti_pool_release(pool);
}

Test(pool_run, wakes_threads_that_sleep) {
    wefti_pool *pool = create((weft_threads){.count = 3, .sharers = 1000}); /* oversubscribed: no spinning */
    int64_t     cells[16] = {0};
    for (int round = 0; round < 200; round++) {
        wefti_pool_run(pool, 16, add_chunk, cells, NULL);
        if (round % 20 == 0) usleep(1000);
    }
    for (int64_t i = 0; i < 16; i++) cr_assert_eq(cells[i], 200 * i);
    wefti_pool_release(pool);
}

static void nest(void *context, int64_t chunk, int32_t worker) {
    tally *self = context;
    (void)worker;
    (void)chunk;
    int64_t cells[4] = {0};
    wefti_pool_run(self->pool, 4, add_chunk, cells, NULL);
    if (cells[3] != 3) self->clash = true;
    atomic_fetch_add(&self->hits[chunk], 1);
}

Test(pool_run, runs_nested_regions_inline) {
    wefti_pool *pool = create((weft_threads){.count = 3});
    tally      *self = fresh(pool);
    wefti_pool_run(pool, 100, nest, self, NULL);
    expect_each_once(self, 100);
    free(self);
    wefti_pool_release(pool);
}

static void *caller(void *context) {
    wefti_pool *pool = context;
    intptr_t    bad = 0;
    for (int round = 0; round < 500; round++) {
        int64_t cells[9] = {0};
        wefti_pool_run(pool, 9, add_chunk, cells, NULL);
        for (int64_t i = 0; i < 9; i++) bad += cells[i] != i;
    }
    return (void *)bad;
}

Test(pool_run, serves_several_threads_at_once) {
    wefti_pool *pool = create((weft_threads){.count = 2});
    pthread_t   threads[3];
    for (int i = 0; i < 3; i++) cr_assert_eq(pthread_create(&threads[i], NULL, caller, pool), 0);
    for (int i = 0; i < 3; i++) {
        void *bad = NULL;
        pthread_join(threads[i], &bad);
        cr_assert_null(bad);
    }
    wefti_pool_release(pool);
}

static void *stranger(void *context) {
    volatile uint64_t *stop = context;
    while (!__atomic_load_n(stop, __ATOMIC_RELAXED)) {}
    return NULL;
}

Test(pool_run, goes_on_beside_threads_of_the_program) {
    uint64_t  stop = 0;
    pthread_t busy[2];
    for (int i = 0; i < 2; i++) cr_assert_eq(pthread_create(&busy[i], NULL, stranger, &stop), 0);
    wefti_pool *pool = create((weft_threads){.count = 2});
    int64_t     cells[16] = {0};
    for (int round = 0; round < 50; round++) wefti_pool_run(pool, 16, add_chunk, cells, NULL);
    for (int64_t i = 0; i < 16; i++) cr_assert_eq(cells[i], 50 * i);
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < 2; i++) pthread_join(busy[i], NULL);
    wefti_pool_release(pool);
}

static void slow_chunk(void *context, int64_t chunk, int32_t worker) {
    (void)context;
    (void)chunk;
    (void)worker;
    usleep(500);
}

Test(pool_run, works_in_a_forked_child) {
    wefti_pool *pool = create((weft_threads){.count = 3});
    int64_t     cells[16] = {0};
    /* All threads are up, then: sanitizers hold locks of their own while one starts, and a child would wait for them for ever. */
    wefti_pool_run(pool, 60, slow_chunk, NULL, NULL);
    wefti_pool_run(pool, 16, add_chunk, cells, NULL);
    pid_t child = fork();
    cr_assert_geq(child, 0);
    if (child == 0) {
        wefti_pool_run(pool, 16, add_chunk, cells, NULL); /* the parent's pool: inline */
        wefti_pool_release(pool);
#ifdef __SANITIZE_THREAD__
        weft_threads options = {.count = 1}; /* ThreadSanitizer starts no threads after a fork */
#else
        weft_threads options = {.count = 2};
#endif
        wefti_pool  *own = NULL;
        int          bad = wefti_pool_create(&options, &own) != WEFT_OK;
        if (!bad) wefti_pool_run(own, 16, add_chunk, cells, NULL);
        for (int64_t i = 0; i < 16; i++) bad |= cells[i] != 3 * i;
        wefti_pool_release(own);
        _exit(bad);
    }
    int status = -1;
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    wefti_pool_run(pool, 16, add_chunk, cells, NULL);
    for (int64_t i = 0; i < 16; i++) cr_assert_eq(cells[i], 2 * i);
    wefti_pool_release(pool);
}

/* Runs regions until it is told to stop, and counts results that are wrong. */
typedef struct busy_caller {
    wefti_pool     *pool;
    _Atomic bool    stop;
    _Atomic int32_t inside; /* chunks that are being computed */
    int             regions, bad;
} busy_caller;
static void hold_chunk(void *context, int64_t chunk, int32_t worker) {
    busy_caller *self = ((void **)context)[0];
    atomic_fetch_add(&self->inside, 1);
    usleep(200);
    add_chunk(((void **)context)[1], chunk, worker);
    atomic_fetch_sub(&self->inside, 1);
}
static void *run_regions(void *argument) {
    busy_caller *self = argument;
    while (!atomic_load(&self->stop)) {
        int64_t cells[12] = {0};
        void   *context[2] = {self, cells};
        wefti_pool_run(self->pool, 12, hold_chunk, context, NULL);
        for (int64_t i = 0; i < 12; i++) self->bad += cells[i] != i;
        self->regions++;
    }
    return NULL;
}

/* What a child does with the parent's pool, whose threads it does not have, and with one of its own: 0 where all is right. */
static int compute_in_child(wefti_pool *parents) {
#ifdef __SANITIZE_THREAD__
    weft_threads options = {.count = 1}; /* ThreadSanitizer starts no threads after a fork */
#else
    weft_threads options = {.count = 2};
#endif
    int64_t     cells[16] = {0};
    wefti_pool *own = NULL;
    wefti_pool_run(parents, 16, add_chunk, cells, NULL);
    for (int64_t i = 0; i < 16; i++)
        if (cells[i] != i) return 1;
    wefti_pool_release(parents);
    if (wefti_pool_create(&options, &own) != WEFT_OK) return 2;
    for (int round = 0; round < 20; round++) wefti_pool_run(own, 16, add_chunk, cells, NULL);
    for (int64_t i = 0; i < 16; i++)
        if (cells[i] != 21 * i) return 3;
    wefti_pool_release(own);
    return 0;
}

Test(pool_run, forks_while_another_thread_is_in_a_region) {
    enum { FORKS = 20 };
    wefti_pool *pool = create((weft_threads){.count = 3});
    busy_caller other = {.pool = pool};
    pthread_t   thread;
    wefti_pool_run(pool, 60, slow_chunk, NULL, NULL); /* all threads are up */
    cr_assert_eq(pthread_create(&thread, NULL, run_regions, &other), 0);
    for (int i = 0; i < FORKS; i++) {
        while (!atomic_load(&other.inside)) {}
        pid_t child = fork();
        cr_assert_geq(child, 0);
        if (child == 0) {
            alarm(60); /* one that hangs would outlive the test */
            _exit(compute_in_child(pool));
        }
        int     status = -1;
        int64_t cells[9] = {0};
        wefti_pool_run(pool, 9, add_chunk, cells, NULL); /* the parent goes on meanwhile */
        for (int64_t k = 0; k < 9; k++) cr_assert_eq(cells[k], k);
        cr_assert_eq(waitpid(child, &status, 0), child);
        cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child %d ended with %#x", i, status);
    }
    atomic_store(&other.stop, true);
    pthread_join(thread, NULL);
    cr_assert_eq(other.bad, 0, "%d cells of the other thread's regions are wrong", other.bad);
    cr_assert_gt(other.regions, 0);
    wefti_pool_release(pool);
}

typedef struct idle_count {
    pthread_t caller;
    int       calls, strangers;
} idle_count;
static void count_idle(void *context) {
    idle_count *self = context;
    self->calls++;
    self->strangers += !pthread_equal(self->caller, pthread_self());
}
Test(pool_run, lets_the_caller_see_to_other_things) {
    wefti_pool     *pool = create((weft_threads){.count = 2});
    idle_count      count = {.caller = pthread_self()};
    wefti_pool_idle idle = {count_idle, &count};
    wefti_pool_run(pool, 20, slow_chunk, NULL, &idle);
    cr_assert_geq(count.calls, 2);
    cr_assert_eq(count.strangers, 0);
    wefti_pool_release(pool);
}

/* A pool of the program's: starts a thread per task. */
typedef struct lent {
    int32_t threads, runs;
} lent;
typedef struct lent_task {
    void (*task)(void *argument, int32_t index);
    void   *argument;
    int32_t index;
} lent_task;
static void *lent_main(void *argument) {
    lent_task *self = argument;
    self->task(self->argument, self->index);
    return NULL;
}
static int32_t lent_threads(void *context) { return ((lent *)context)->threads; }
static void    lent_run(void *context, int32_t count, void (*task)(void *argument, int32_t index), void *argument) {
    lent_task tasks[8];
    pthread_t threads[8];
    ((lent *)context)->runs++;
    for (int32_t i = 0; i < count; i++) {
        tasks[i] = (lent_task){task, argument, i};
        pthread_create(&threads[i], NULL, lent_main, &tasks[i]);
    }
    for (int32_t i = 0; i < count; i++) pthread_join(threads[i], NULL);
}

Test(pool_run, uses_a_pool_that_is_lent) {
    lent        outside = {.threads = 3};
    wefti_pool *pool = create((weft_threads){.pool = {lent_threads, lent_run, &outside}});
    cr_assert_eq(wefti_pool_threads(pool), 3);
    tally *self = fresh(pool);
    wefti_pool_run(pool, 1001, mark, self, NULL);
    expect_each_once(self, 1001);
    cr_assert_eq(outside.runs, 1);
    free(self);
    wefti_pool_release(pool);
}

/* Where a thread that is pinned runs: chunk i notes its worker's cores. */
typedef struct cores {
    cpu_set_t of[4];
    int       seen[4];
} cores;
static void note_cores(void *context, int64_t chunk, int32_t worker) {
    cores *self = context;
    (void)chunk;
    sched_getaffinity(0, sizeof self->of[worker], &self->of[worker]);
    __atomic_fetch_add(&self->seen[worker], 1, __ATOMIC_RELAXED);
    usleep(1000);
}

Test(pool_create, pins_threads_to_allowed_cores) {
    cpu_set_t   allowed, mine;
    cores       self;
    memset(&self, 0, sizeof self);
    cr_assert_eq(sched_getaffinity(0, sizeof allowed, &allowed), 0);
    wefti_pool *pool = create((weft_threads){.count = 3, .pin = true, .first_core = 1});
    for (int tries = 0; tries < 1000 && !(self.seen[1] && self.seen[2]); tries++) wefti_pool_run(pool, 12, note_cores, &self, NULL);
    wefti_pool_release(pool);
    int n = CPU_COUNT(&allowed);
    for (int worker = 1; worker < 3; worker++) {
        cr_assert_gt(self.seen[worker], 0, "thread %d never came", worker);
        cr_assert_eq(CPU_COUNT(&self.of[worker]), 1, "thread %d may run on %d cores", worker, CPU_COUNT(&self.of[worker]));
        int core = 0, place = (1 + worker) % n;
        while (!CPU_ISSET(core, &allowed) || place-- > 0) core++;
        cr_assert(CPU_ISSET(core, &self.of[worker]), "thread %d is not on allowed core %d, number %d", worker, (1 + worker) % n, core);
    }
    cr_assert_eq(sched_getaffinity(0, sizeof mine, &mine), 0);
    cr_assert(CPU_EQUAL(&mine, &allowed), "the caller's own cores were changed");
}

static void expect_refused(weft_threads options, const char *word) {
    wefti_pool *pool = NULL;
    cr_assert_eq(wefti_pool_create(&options, &pool), WEFT_E_INVALID);
    cr_assert_null(pool);
    cr_assert_not_null(strstr(weft_error_message(), word), "%s", weft_error_message());
}

Test(pool_create, refuses_bad_options) {
    lent outside = {.threads = 0};
    expect_refused((weft_threads){.count = -1}, "count");
    expect_refused((weft_threads){.count = 5000}, "count");
    expect_refused((weft_threads){.sharers = -1}, "sharers");
    expect_refused((weft_threads){.first_core = -1}, "first_core");
    expect_refused((weft_threads){.pool = {NULL, lent_run, &outside}}, "threads");
    expect_refused((weft_threads){.pool = {lent_threads, lent_run, &outside}}, "threads");
}

Test(pool_create, reads_the_number_of_threads_from_the_environment) {
    setenv("WEFT_THREADS", "3", 1);
    wefti_pool *pool = create((weft_threads){0});
    cr_assert_eq(wefti_pool_threads(pool), 3);
    wefti_pool_release(pool);
    const char *bad[] = {"0", "-2", "two", "3x", "99999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        setenv("WEFT_THREADS", bad[i], 1);
        expect_refused((weft_threads){0}, bad[i]);
    }
    unsetenv("WEFT_THREADS");
}

Test(pool_create, divides_cores_among_ranks) {
    unsetenv("WEFT_THREADS");
    wefti_pool *pool = create((weft_threads){.sharers = 100000});
    cr_assert_eq(wefti_pool_threads(pool), 1);
    wefti_pool_release(pool);
}

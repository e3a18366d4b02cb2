/* Fork-join over a fixed number of chunks.
 *
 * Idea: one atomic word, the gate, holds the region's number, whether it is open and how many workers are inside. The
 * caller fills in the region, opens the gate, takes chunks itself, closes the gate and waits only for the workers that
 * are inside: one that is late (asleep, descheduled) finds the gate closed and costs nothing. Each thread begins with
 * its own run of chunks, so that consecutive regions over the same data stay in the same caches, and then takes what
 * others have left.
 *
 * Invariants: region fields are written only while the gate is closed with nobody inside; `next` of a range only grows
 * within a region, so that every chunk is taken once; a worker enters each region at most once.
 * Waiting: workers spin for a while after a region (the next one is usually microseconds away), then sleep on a futex.
 * Where more threads than cores want to run they sleep at once, and the caller yields.
 * After fork the threads exist in the parent only: the generation no longer matches and regions run inline.
 * Cost: opening and closing is two atomic writes, about 1 us with threads that spin; a futex wake where they sleep. */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/base/pause.h"
#include "core/base/spread.h"
#include "core/cpu/pool.h"
#include "core/iface/host.h"

enum { MAX_THREADS = 1024, PAUSES_PER_LOOK = 32 };
#define GATE_OPEN (UINT64_C(1) << 16)
#define GATE_INSIDE (GATE_OPEN - 1)
#define GATE_EPOCH(gate) ((gate) >> 17)
/* Longer than the serial stretches between the regions of a training step, short enough not to be a nuisance. */
#define SPIN_NS UINT64_C(100000)
/* The idle function polls wires: often enough for them, seldom enough for us. */
#define IDLE_EVERY_NS UINT64_C(20000)

typedef struct range {
    _Alignas(WEFTI_CACHE_LINE) _Atomic int64_t next;
    int64_t end;
} range;

typedef struct worker {
    struct wefti_pool *pool;
    pthread_t          thread;
    int32_t            index;
} worker;

struct wefti_pool {
    _Alignas(WEFTI_CACHE_LINE) _Atomic uint64_t gate;
    _Alignas(WEFTI_CACHE_LINE) _Atomic uint32_t wake; /* the futex word */
    _Atomic uint32_t sleepers;
    atomic_bool      stop;
    _Alignas(WEFTI_CACHE_LINE) atomic_flag held; /* a region runs */
    wefti_pool_body        body;
    void                  *context;
    const wefti_pool_idle *idle;
    const void            *caller; /* identity of the region's calling thread */
    int32_t                threads, started;
    uint64_t               spin_ns;
    uint32_t               generation;
    size_t                 size_bytes;
    weft_thread_pool_hooks hooks;
    worker                *workers; /* [threads]; 0 is the caller */
    range                  ranges[];
};

static _Atomic uint32_t fork_generation;
static pthread_once_t   fork_once = PTHREAD_ONCE_INIT;
static void             count_fork(void) { atomic_fetch_add(&fork_generation, 1); }
static void             watch_forks(void) { (void)pthread_atfork(NULL, NULL, count_fork); }

/* This thread's worker number within the region it is in; -1 outside. Its address is the thread's identity. */
static _Thread_local int32_t current_worker = -1;
static _Thread_local uint64_t idle_last_ns;

static uint64_t now_ns(void) { return wefti_host_now(wefti_host_system()); }

static void futex_wait(_Atomic uint32_t *word, uint32_t expected) {
    (void)syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}
static void futex_wake(_Atomic uint32_t *word, int count) {
    (void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static void call_idle(const wefti_pool_idle *idle) {
    if (!idle || !idle->call) return;
    uint64_t now = now_ns();
    if (now - idle_last_ns < IDLE_EVERY_NS) return;
    idle->call(idle->context);
    idle_last_ns = now;
}

/* Takes chunks until none is left: first of this worker's own range, then of the others'. */
static void take_chunks(wefti_pool *pool, int32_t self) {
    const wefti_pool_idle *idle = pool->caller == &current_worker ? pool->idle : NULL;
    int32_t                outer = current_worker;
    uint64_t               arithmetic = wefti_flush_subnormals();
    current_worker = self;
    for (int32_t i = 0; i < pool->threads; i++) {
        range *from = &pool->ranges[(self + i) % pool->threads];
        /* The look before the addition keeps emptied ranges shared in all caches. */
        while (atomic_load_explicit(&from->next, memory_order_relaxed) < from->end) {
            int64_t chunk = atomic_fetch_add_explicit(&from->next, 1, memory_order_relaxed);
            if (chunk >= from->end) break;
            pool->body(pool->context, chunk, self);
            call_idle(idle);
        }
    }
    current_worker = outer;
    wefti_restore_subnormals(arithmetic);
}

static bool enter(wefti_pool *pool, uint64_t *seen) {
    uint64_t gate = atomic_load_explicit(&pool->gate, memory_order_acquire);
    while ((gate & GATE_OPEN) && GATE_EPOCH(gate) != *seen)
        if (atomic_compare_exchange_weak_explicit(&pool->gate, &gate, gate + 1, memory_order_acq_rel,
                                                  memory_order_acquire)) {
            *seen = GATE_EPOCH(gate);
            return true;
        }
    return false;
}

static bool work_waits(wefti_pool *pool, uint64_t seen) {
    uint64_t gate = atomic_load(&pool->gate);
    return ((gate & GATE_OPEN) && GATE_EPOCH(gate) != seen) || atomic_load(&pool->stop);
}

/* Returns when there may be work: after spinning, or woken from sleep. */
static void await_work(wefti_pool *pool, uint64_t seen) {
    if (pool->spin_ns) {
        uint64_t begin = now_ns();
        do {
            for (int i = 0; i < PAUSES_PER_LOOK; i++) {
                if (work_waits(pool, seen)) return;
                wefti_pause_core();
            }
        } while (now_ns() - begin < pool->spin_ns);
    }
    /* Counted as a sleeper before the last look: a caller that opens the gate after that look sees the count, and
     * changes the futex word before it wakes. */
    atomic_fetch_add(&pool->sleepers, 1);
    uint32_t word = atomic_load(&pool->wake);
    if (!work_waits(pool, seen)) futex_wait(&pool->wake, word);
    atomic_fetch_sub(&pool->sleepers, 1);
}

static void *worker_main(void *argument) {
    worker     *self = argument;
    wefti_pool *pool = self->pool;
    uint64_t    seen = 0;
    char        name[16];
    snprintf(name, sizeof name, "weft-cpu-%d", (int)self->index);
    (void)pthread_setname_np(pthread_self(), name);
    while (!atomic_load_explicit(&pool->stop, memory_order_acquire)) {
        if (enter(pool, &seen)) {
            take_chunks(pool, self->index);
            atomic_fetch_sub_explicit(&pool->gate, 1, memory_order_acq_rel);
        } else {
            await_work(pool, seen);
        }
    }
    return NULL;
}

static void divide_chunks(wefti_pool *pool, int64_t chunks) {
    int64_t share = chunks / pool->threads, more = chunks % pool->threads, begin = 0;
    for (int32_t i = 0; i < pool->threads; i++) {
        atomic_store_explicit(&pool->ranges[i].next, begin, memory_order_relaxed);
        begin += share + (i < more);
        pool->ranges[i].end = begin;
    }
}

static void hooked_task(void *argument, int32_t index) { take_chunks(argument, index); }

static void open_gate(wefti_pool *pool, int64_t chunks) {
    uint64_t gate = atomic_load_explicit(&pool->gate, memory_order_relaxed);
    atomic_store(&pool->gate, (GATE_EPOCH(gate) + 1) << 17 | GATE_OPEN);
    if (atomic_load(&pool->sleepers)) {
        atomic_fetch_add(&pool->wake, 1);
        futex_wake(&pool->wake, chunks - 1 < pool->threads ? (int)(chunks - 1) : pool->threads);
    }
}

static void close_gate(wefti_pool *pool) {
    uint64_t gate = atomic_fetch_and_explicit(&pool->gate, ~GATE_OPEN, memory_order_acq_rel);
    for (uint32_t looks = 0; gate & GATE_INSIDE; looks++) {
        /* A worker that shares this core can only finish when it gets it. */
        if (!pool->spin_ns || looks > 4096) sched_yield();
        else wefti_pause_core();
        if (looks % 64 == 63) call_idle(pool->idle);
        gate = atomic_load_explicit(&pool->gate, memory_order_acquire);
    }
}

static void run_inline(int64_t chunks, wefti_pool_body body, void *context, const wefti_pool_idle *idle) {
    int32_t self = current_worker < 0 ? 0 : current_worker;
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        body(context, chunk, self);
        if (chunks > 1 && current_worker < 0) call_idle(idle);
    }
}

void wefti_pool_run(wefti_pool *pool, int64_t chunks, wefti_pool_body body, void *context,
                    const wefti_pool_idle *idle) {
    bool alone = chunks <= 1 || pool->threads == 1 || current_worker >= 0 ||
                 pool->generation != atomic_load_explicit(&fork_generation, memory_order_relaxed);
    if (alone || atomic_flag_test_and_set_explicit(&pool->held, memory_order_acquire)) {
        run_inline(chunks, body, context, idle);
        return;
    }
    pool->body = body;
    pool->context = context;
    pool->idle = idle;
    pool->caller = &current_worker;
    divide_chunks(pool, chunks);
    if (pool->hooks.run) {
        int32_t tasks = chunks < pool->threads ? (int32_t)chunks : pool->threads;
        pool->hooks.run(pool->hooks.context, tasks, hooked_task, pool);
    } else {
        open_gate(pool, chunks);
        take_chunks(pool, 0);
        close_gate(pool);
    }
    atomic_flag_clear_explicit(&pool->held, memory_order_release);
}

int32_t wefti_pool_threads(const wefti_pool *pool) { return pool->threads; }

/* How many threads the options ask for. */
static weft_status count_threads(const weft_threads *options, int32_t cores, int32_t *threads_out) {
    int64_t count = options->count;
    if (options->pool.run) {
        if (!options->pool.threads)
            return wefti_fail(WEFT_E_INVALID, "thread pool hooks: `threads` must be given beside `run`");
        count = options->pool.threads(options->pool.context);
        if (count < 1 || count > MAX_THREADS)
            return wefti_fail(WEFT_E_INVALID, "thread pool hooks: threads() gave %lld, expected 1 to %d",
                              (long long)count, MAX_THREADS);
    }
    const char *text = getenv("WEFT_THREADS");
    if (count == 0 && text && *text) {
        char *end = NULL;
        errno = 0;
        count = strtol(text, &end, 10);
        if (errno || *end || count < 1 || count > MAX_THREADS)
            return wefti_fail(WEFT_E_INVALID, "WEFT_THREADS=%s: expected a number of threads, 1 to %d", text,
                              MAX_THREADS);
    }
    if (count < 0 || count > MAX_THREADS)
        return wefti_fail(WEFT_E_INVALID, "threads.count is %lld, expected 0 to %d", (long long)count, MAX_THREADS);
    int32_t sharers = options->sharers > 0 ? options->sharers : 1;
    if (count == 0) count = cores / sharers > 0 ? cores / sharers : 1;
    *threads_out = (int32_t)(count < MAX_THREADS ? count : MAX_THREADS);
    return WEFT_OK;
}

/* Pins a worker; a system that refuses only costs speed. */
static void pin_worker(const worker *self, int32_t first_core) {
    cpu_set_t allowed, one;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 1) return;
    int32_t place = (int32_t)(((int64_t)first_core + self->index) % CPU_COUNT(&allowed));
    for (int32_t core = 0; core < CPU_SETSIZE; core++) {
        if (!CPU_ISSET(core, &allowed) || place-- > 0) continue;
        CPU_ZERO(&one);
        CPU_SET(core, &one);
        if (pthread_setaffinity_np(self->thread, sizeof one, &one) != 0)
            wefti_log(WEFT_LOG_WARNING, "cpu: thread %d could not be pinned to core %d", (int)self->index, (int)core);
        return;
    }
}

static weft_status start_workers(wefti_pool *pool, const weft_threads *options) {
    /* The program's signal handlers run on the program's threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = 0;
    for (pool->started = 1; pool->started < pool->threads; pool->started++) {
        worker *self = &pool->workers[pool->started];
        *self = (worker){.pool = pool, .index = pool->started};
        if ((error = pthread_create(&self->thread, NULL, worker_main, self)) != 0) break;
        if (options->pin) pin_worker(self, options->first_core);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!error) return WEFT_OK;
    errno = error;
    (void)wefti_fail_errno("cpu: cannot start thread %d of %d", (int)pool->started, (int)pool->threads);
    return wefti_while(WEFT_E_DEVICE, "thread pool");
}

weft_status wefti_pool_create(const weft_threads *options, wefti_pool **pool_out) {
    *pool_out = NULL;
    if (options->sharers < 0 || options->first_core < 0)
        return wefti_fail(WEFT_E_INVALID, "threads.sharers (%d) and threads.first_core (%d) must not be negative",
                          (int)options->sharers, (int)options->first_core);
    int32_t cores = wefti_cores(), threads = 1;
    WEFTI_TRY(count_threads(options, cores, &threads));
    pthread_once(&fork_once, watch_forks);
    size_t      size_bytes = sizeof(wefti_pool) + (size_t)threads * (sizeof(range) + sizeof(worker));
    wefti_pool *pool = NULL;
    WEFTI_TRY(wefti_alloc(size_bytes, "the CPU thread pool", &pool));
    pool->size_bytes = size_bytes;
    pool->threads = threads;
    pool->hooks = options->pool;
    pool->generation = atomic_load(&fork_generation);
    pool->workers = (worker *)&pool->ranges[threads];
    int32_t sharers = options->sharers > 0 ? options->sharers : 1;
    pool->spin_ns = (int64_t)threads * sharers > cores ? 0 : SPIN_NS;
    atomic_flag_clear(&pool->held);
    weft_status status = pool->hooks.run ? WEFT_OK : start_workers(pool, options);
    if (status != WEFT_OK) {
        wefti_pool_release(pool);
        return status;
    }
    *pool_out = pool;
    return WEFT_OK;
}

void wefti_pool_release(wefti_pool *pool) {
    if (!pool) return;
    if (!pool->hooks.run && pool->generation == atomic_load(&fork_generation)) {
        atomic_store(&pool->stop, true);
        atomic_fetch_add(&pool->wake, 1);
        futex_wake(&pool->wake, INT_MAX);
        for (int32_t i = 1; i < pool->started; i++) pthread_join(pool->workers[i].thread, NULL);
    }
    wefti_free(pool, pool->size_bytes);
}

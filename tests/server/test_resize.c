/* Another split while training goes on: servers and workers join and leave, the bits are those of a run in which none does, nothing acknowledged is
 * lost, and exactly the rows move that have another holder. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "common/files.h"
#include "parallel/server/route.h"
#include "serving.h"

/* The thread sanitizer makes each of these many times slower, and looks at threads, which are the same over any wire. */
#ifdef __SANITIZE_THREAD__
enum { TRIES = 1, WIDE_ROWS = 1000 };
#define ONE_WIRE_IS_ENOUGH(wire) if (strcmp(wire, "tcp") == 0) return
#else
enum { TRIES = 3, WIDE_ROWS = 20000 }; /* 10 MB of rows, so that a change takes a moment */
#define ONE_WIRE_IS_ENOUGH(wire) (void)0
#endif

enum { MOST_PHASES = 4, ROWS = 701, WIDTH = 33, COUNT = ROWS * WIDTH, KEYS = 400, UNITS = 12, PHASE_CLOCKS = 6 };

/* A part of a run: how ranks serve, and which of them work; those that do neither have released their server. */
typedef struct phase {
    weft_server_options how;
    uint32_t            working; /* bits */
} phase;

typedef struct plan {
    const char *wire;
    int32_t     size, phases;
    phase       phase[MOST_PHASES];
    int32_t     staleness;
    size_t      memory_bytes; /* of the tables; 0: all rows are in memory */
} plan;

/* What all ranks tell the parent. */
typedef struct seen {
    uint64_t          hash[RANKS_MOST];
    weft_server_moved moved[MOST_PHASES][RANKS_MOST];
} seen;

static plan  now;
static seen *told;

/* --- a rank --- */

typedef struct state {
    ranks       *all;
    int32_t      rank;
    weft_world  *world, *before;
    weft_server *server;
    weft_table  *dense, *sparse;
    weft_keys   *keys, *half;
    uint64_t     list[KEYS];
    float        gradient[COUNT], values[COUNT];
    int64_t      ones[KEYS], counts[KEYS];
    uint64_t     hash;
    int          clock;
} state;

static weft_status open_tables(state *s) {
    for (int i = 0; i < KEYS; i++) s->list[i] = (uint64_t)i * 7919 + 3;
    weft_table_options dense = {.name = "dense", .rows = ROWS, .width = WIDTH, .start = WEFT_START_UNIFORM, .low = -1, .high = 1, .staleness = now.staleness, .memory_bytes = now.memory_bytes,
                                .rule = {.kind = WEFT_TABLE_SOLVER, .solver = weft_adam(0.01)}};
    weft_table_options sparse = {.name = "sparse", .sparse = true, .dtype = WEFT_I64, .staleness = now.staleness, .memory_bytes = now.memory_bytes};
    if (s->clock > 0) {
        WEFTI_TRY(weft_table_open(s->server, "dense", &s->dense));
        WEFTI_TRY(weft_table_open(s->server, "sparse", &s->sparse));
    } else {
        WEFTI_TRY(weft_table_create(s->server, &dense, &s->dense));
        WEFTI_TRY(weft_table_create(s->server, &sparse, &s->sparse));
    }
    WEFTI_TRY(weft_keys_create(s->sparse, s->list, KEYS, &s->keys));
    return weft_keys_create(s->dense, s->list, 0, &s->half); /* an empty one is moved, too */
}

static void close_tables(state *s) {
    weft_keys_release(s->keys);
    weft_keys_release(s->half);
    weft_table_release(s->dense);
    weft_table_release(s->sparse);
    s->keys = s->half = NULL;
    s->dense = s->sparse = NULL;
}

/* Units of work are dealt out to those who work; what each makes is of few bits, so that a sum has the same ones however it is split. */
static void make_gradient(state *s, const phase *p) {
    int32_t place = __builtin_popcount(p->working & ((1u << s->rank) - 1)), workers = __builtin_popcount(p->working);
    memset(s->gradient, 0, sizeof s->gradient);
    memset(s->ones, 0, sizeof s->ones);
    for (int unit = place; unit < UNITS; unit += workers) {
        for (int i = 0; i < COUNT; i++) s->gradient[i] += (float)((i + unit * 5 + s->clock * 3) % 13 - 6) + (float)(int)(s->values[i] * 8) / 8;
        for (int i = 0; i < KEYS; i++) s->ones[i] += unit + i % 3;
    }
}

static int64_t expected_count(int clocks, int i) { return (int64_t)clocks * (UNITS * (UNITS - 1) / 2 + UNITS * (i % 3)); }

static weft_status train_phase(state *s, const phase *p) {
    if (!s->dense) WEFTI_TRY(open_tables(s));
    EXPECT(weft_table_time(s->dense) == s->clock && weft_table_time(s->sparse) == s->clock, "at clock %lld, not %d", (long long)weft_table_time(s->dense), s->clock);
    WEFTI_TRY(weft_table_pull(s->dense, NULL, s->values));
    for (int end = s->clock + PHASE_CLOCKS; s->clock < end; s->clock++) {
        make_gradient(s, p);
        WEFTI_TRY(weft_table_push_pull(s->dense, NULL, s->gradient, s->values));
        WEFTI_TRY(weft_table_push(s->sparse, s->keys, s->ones));
        WEFTI_TRY(weft_table_clock(s->sparse));
        WEFTI_TRY(weft_table_pull(s->sparse, s->keys, s->counts));
        for (int i = 0; i < KEYS; i++)
            EXPECT(s->counts[i] == expected_count(s->clock + 1, i), "clock %d, key %d: %lld", s->clock, i, (long long)s->counts[i]);
    }
    s->hash = wefti_hash(WEFTI_HASH_BEGIN, s->values, sizeof s->values);
    return WEFT_OK;
}

static weft_status run_phase(state *s, int number) {
    const phase *p = &now.phase[number];
    if (s->server) WEFTI_TRY(weft_server_resize(s->server, s->world, &p->how, &told->moved[number][s->rank]));
    else WEFTI_TRY(weft_server_create(s->world, &p->how, &s->server));
    if (p->working >> s->rank & 1) return train_phase(s, p);
    close_tables(s);
    s->clock += PHASE_CLOCKS;
    if (!weft_server_is_worker(s->server)) {
        weft_status status = weft_server_serve(s->server), wanted = number + 1 < now.phases ? WEFT_E_AGAIN : WEFT_OK;
        EXPECT(status == wanted, "%s: %s", weft_status_name(status), weft_error_message());
        return WEFT_OK;
    }
    weft_server_release(s->server);
    s->server = NULL;
    return WEFT_OK;
}

/* All have served, and read from the disk. What is there no more with a split that has gone is not counted. */
static weft_status check_disk(state *s) {
    weft_server_counts counts;
    weft_server_count(s->server, &counts);
    EXPECT(counts.spill_loaded > 0 && counts.spill_written > 0, "nothing was on disk");
    EXPECT(s->rank != 0 || counts.spilled_bytes + counts.held_bytes == 0, "rank 0 serves no more, and has %llu bytes on disk", (unsigned long long)counts.spilled_bytes);
    EXPECT(s->rank != now.size - 1 || counts.spilled_bytes > 0, "rank %d has nothing on disk", (int)s->rank);
    return WEFT_OK;
}

static weft_status run(ranks *all, int32_t rank) {
    state      *s = calloc(1, sizeof *s);
    weft_status status;
    (void)all;
    s->rank = rank;
    status = weft_world_create(&(weft_world_options){.wire = now.wire, .threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS}, &s->world);
    for (int number = 0; number < now.phases && status == WEFT_OK; number++) status = run_phase(s, number);
    told->hash[rank] = s->hash;
    if (now.memory_bytes && status == WEFT_OK) status = check_disk(s);
    close_tables(s);
    weft_server_release(s->server);
    weft_world_release(s->world);
    free(s);
    weft_memory_counts held;
    weft_memory_read(&held);
    if (status == WEFT_OK && held.held_bytes) return wefti_fail(WEFT_E_INTERNAL, "%llu bytes are held at the end", (unsigned long long)held.held_bytes);
    return status;
}

/* --- the parent --- */

static seen *run_plan(const plan *p) {
    now = *p;
    told = mmap(NULL, sizeof *told, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(told, MAP_FAILED);
    ranks *all = ranks_start(p->size, run);
    ranks_join(all);
    for (int32_t rank = 0; rank < p->size; rank++)
        cr_expect(atomic_load(&all->results[rank].finished) && all->results[rank].status == WEFT_OK, "%s, rank %d of %d: %s", p->wire, (int)rank, (int)p->size,
                  all->results[rank].message);
    ranks_free(all);
    return told;
}

/* Who holds a row, by the options: up to two ranks. */
static void holders(const plan *p, int number, bool hashed, uint64_t key, int32_t out[2]) {
    const weft_server_options *o = &p->phase[number].how;
    int32_t servers = o->servers ? o->servers : p->size, first = p->size - servers;
    int32_t share = hashed ? wefti_route_hash(key, servers) : wefti_route_range(key, ROWS, servers);
    out[0] = first + share;
    out[1] = o->replicas ? first + (share + 1) % servers : -1;
}

static uint64_t count_moved(const plan *p, int number, bool hashed) {
    uint64_t moved = 0;
    for (uint64_t i = 0; i < (hashed ? KEYS : ROWS); i++) {
        int32_t before[2], after[2];
        uint64_t key = hashed ? i * 7919 + 3 : i;
        holders(p, number - 1, hashed, key, before);
        holders(p, number, hashed, key, after);
        for (int copy = 0; copy < 2; copy++) moved += after[copy] >= 0 && after[copy] != before[0] && after[copy] != before[1];
    }
    return moved;
}

/* Values, two states and the number of updates; a key and a value. */
enum { DENSE_BYTES = 3 * WIDTH * 4 + 8, SPARSE_BYTES = 8 + 8 };

static void check_moved(const plan *p, const seen *saw) {
    for (int number = 1; number < p->phases; number++) {
        uint64_t rows = 0, bytes = 0, sent = 0, dense = count_moved(p, number, false), sparse = count_moved(p, number, true);
        for (int32_t rank = 0; rank < p->size; rank++) {
            rows += saw->moved[number][rank].rows;
            bytes += saw->moved[number][rank].bytes;
            sent += saw->moved[number][rank].sent_bytes;
        }
        cr_expect(rows > 0 && rows == dense + sparse, "change %d: %llu rows moved; %llu + %llu have another holder", number, (unsigned long long)rows,
                  (unsigned long long)dense, (unsigned long long)sparse);
        cr_expect(bytes == dense * DENSE_BYTES + sparse * SPARSE_BYTES && bytes == sent, "change %d: %llu bytes moved, %llu were sent", number,
                  (unsigned long long)bytes, (unsigned long long)sent);
    }
}

/* Whatever joins and leaves, a run ends with the bits of one rank alone, in which nothing moves. */
static void same_bits(const plan *p, bool counted) {
    ONE_WIRE_IS_ENOUGH(p->wire);
    plan once = {.wire = p->wire, .size = 1, .phases = p->phases, .staleness = p->staleness};
    for (int number = 0; number < p->phases; number++) once.phase[number] = (phase){{0}, 1};
    seen    *saw = run_plan(&once);
    uint64_t hash = saw->hash[0];
    munmap(saw, sizeof *saw);
    saw = run_plan(p);
    for (int32_t rank = 0; rank < p->size; rank++)
        if (p->phase[p->phases - 1].working >> rank & 1)
            cr_expect(saw->hash[rank] == hash, "%s, rank %d: %016llx, and %016llx of one rank alone", p->wire, (int)rank, (unsigned long long)saw->hash[rank],
                      (unsigned long long)hash);
    if (counted) check_moved(p, saw);
    munmap(saw, sizeof *saw);
}

#define BESIDE(n)    {.servers = (n)}
#define REPLICATED(n) {.servers = (n), .replicas = 1}
#define APART(n)     {.servers = (n), .dedicated = true}

static void servers_join_and_leave(const char *wire) {
    same_bits(&(plan){.wire = wire, .size = 3, .phases = 3, .phase = {{BESIDE(2), 7}, {BESIDE(3), 7}, {BESIDE(2), 7}}}, true);
}
Test(resize, servers_join_and_leave_shm) { servers_join_and_leave("shm"); }
Test(resize, servers_join_and_leave_tcp) { servers_join_and_leave("tcp"); }

static void with_replicas(const char *wire) {
    same_bits(&(plan){.wire = wire, .size = 4, .phases = 4, .phase = {{REPLICATED(2), 15}, {REPLICATED(3), 15}, {REPLICATED(4), 15}, {REPLICATED(2), 15}}}, true);
}
Test(resize, with_replicas_shm) { with_replicas("shm"); }
Test(resize, with_replicas_tcp) { with_replicas("tcp"); }
Test(resize, replicas_come_and_go) {
    same_bits(&(plan){.wire = "shm", .size = 3, .phases = 3, .phase = {{BESIDE(2), 7}, {REPLICATED(2), 7}, {BESIDE(3), 7}}}, true);
}

/* Rows on disk are read where they lie, and lie on disk where they come. */
static void rows_on_disk(const char *wire, const phase *one, const phase *three) {
    char folder[64];
    snprintf(folder, sizeof folder, "%s/weft-spill-XXXXXX", temporary_root());
    plan p = {.wire = wire, .size = 3, .phases = 3, .phase = {*one, *three, *one}, .memory_bytes = 1000};
    cr_assert_not_null(mkdtemp(folder));
    p.phase[0].how.spill = folder; /* that it has one stays */
    same_bits(&p, true);
    cr_assert_eq(rmdir(folder), 0, "the folder is not empty");
}
Test(resize, rows_on_disk_shm) { rows_on_disk("shm", &(phase){BESIDE(1), 7}, &(phase){BESIDE(3), 7}); }
Test(resize, rows_on_disk_tcp) { rows_on_disk("tcp", &(phase){BESIDE(1), 7}, &(phase){BESIDE(3), 7}); }
Test(resize, rows_on_disk_with_replicas) { rows_on_disk("shm", &(phase){REPLICATED(2), 7}, &(phase){REPLICATED(3), 7}); }

/* A worker becomes a server, and a worker again, that finds the tables and is at the others' clock. */
static void apart(const char *wire) {
    same_bits(&(plan){.wire = wire, .size = 5, .phases = 3, .phase = {{APART(2), 7}, {APART(3), 3}, {APART(2), 7}}}, true);
}
Test(resize, servers_apart_shm) { apart("shm"); }
Test(resize, servers_apart_tcp) { apart("tcp"); }

/* One leaves after the first phase and comes again in the third; another one is not there in the beginning. */
static void workers_join_and_leave(const char *wire) {
    same_bits(&(plan){.wire = wire, .size = 5, .phases = 3, .phase = {{APART(1), 11}, {APART(1), 5}, {APART(1), 15}}}, false);
}
Test(resize, workers_join_and_leave_shm) { workers_join_and_leave("shm"); }
Test(resize, workers_join_and_leave_tcp) { workers_join_and_leave("tcp"); }

/* --- pushes that nobody waits for --- */

enum { ADDS = 150 };

static void make_ones(state *s) {
    for (int i = 0; i < KEYS; i++) s->ones[i] = 1 + i % 3;
}

/* Each worker changes the split when it comes there itself; all that it pushed before is in the rows afterwards, once. */
static weft_status add(state *s) {
    make_ones(s);
    WEFTI_TRY(open_tables(s));
    for (int step = 0, number = 1; step < ADDS; step++) {
        if (number < now.phases && step == number * (ADDS / now.phases) + s->rank * 3) {
            WEFTI_TRY(weft_server_resize(s->server, s->world, &now.phase[number].how, &told->moved[number][s->rank]));
            number++;
        }
        WEFTI_TRY(weft_table_push(s->sparse, s->keys, s->ones));
        WEFTI_TRY(weft_table_clock(s->sparse));
        if (step % 10) continue;
        WEFTI_TRY(weft_table_pull(s->sparse, s->keys, s->counts));
        for (int i = 0; i < KEYS; i++) EXPECT(s->counts[i] >= (step + 1) * s->ones[i], "step %d, key %d: %lld", step, i, (long long)s->counts[i]);
    }
    EXPECT(weft_table_time(s->sparse) == ADDS, "clock %lld", (long long)weft_table_time(s->sparse));
    /* All have pushed all once they meet here. */
    WEFTI_TRY(weft_server_resize(s->server, s->world, &now.phase[0].how, NULL));
    WEFTI_TRY(weft_table_pull(s->sparse, s->keys, s->counts));
    for (int i = 0; i < KEYS; i++) EXPECT(s->counts[i] == ADDS * now.size * s->ones[i], "key %d: %lld", i, (long long)s->counts[i]);
    return WEFT_OK;
}

static weft_status (*act)(state *s);

static weft_status run_act(ranks *all, int32_t rank) {
    state      *s = calloc(1, sizeof *s);
    weft_status status;
    s->rank = rank;
    s->all = all;
    status = weft_world_create(&(weft_world_options){.wire = now.wire, .threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS}, &s->world);
    if (status == WEFT_OK) status = weft_server_create(s->world, &now.phase[0].how, &s->server);
    if (status == WEFT_OK) status = act(s);
    char message[WEFTI_MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", weft_error_message());
    close_tables(s);
    weft_server_release(s->server);
    weft_world_release(s->world);
    weft_world_release(s->before);
    free(s);
    weft_memory_counts held;
    weft_memory_read(&held);
    if (status == WEFT_OK && held.held_bytes) return wefti_fail(WEFT_E_INTERNAL, "%llu bytes are held at the end", (unsigned long long)held.held_bytes);
    return status == WEFT_OK ? WEFT_OK : wefti_fail(status, "%s", message);
}

/* The ranks of `lost` (bits) may end as they like. */
static ranks *run_ranks(const plan *p, weft_status (*function)(state *s), uint32_t lost) {
    now = *p;
    act = function;
    told = mmap(NULL, sizeof *told, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(told, MAP_FAILED);
    ranks *all = ranks_start(p->size, run_act);
    ranks_join(all);
    for (int32_t rank = 0; rank < p->size; rank++)
        if (!(lost >> rank & 1))
            cr_expect(atomic_load(&all->results[rank].finished) && all->results[rank].status == WEFT_OK, "%s, rank %d of %d: %s", p->wire, (int)rank, (int)p->size,
                      all->results[rank].message);
    return all;
}
static void run_all(const plan *p, weft_status (*function)(state *s)) { ranks_free(run_ranks(p, function, 0)); }

static void nothing_is_lost(const char *wire, int32_t staleness) {
    plan p = {.wire = wire, .size = 3, .phases = 3, .staleness = staleness, .phase = {{BESIDE(2), 7}, {BESIDE(3), 7}, {BESIDE(1), 7}}};
    run_all(&p, add);
    uint64_t bytes = 0;
    for (int32_t rank = 0; rank < p.size; rank++) bytes += told->moved[1][rank].bytes;
    cr_expect_eq(bytes, count_moved(&p, 1, false) * DENSE_BYTES + count_moved(&p, 1, true) * SPARSE_BYTES);
}
Test(resize, no_acknowledged_push_is_lost_shm) { nothing_is_lost("shm", WEFT_TABLE_ASYNCHRONOUS); }
Test(resize, no_acknowledged_push_is_lost_tcp) { nothing_is_lost("tcp", WEFT_TABLE_ASYNCHRONOUS); }
Test(resize, no_acknowledged_push_is_lost_stale) { nothing_is_lost("shm", 40); }

/* --- faults --- */

enum { WIDE = 128 };

static void *kill_later(void *context) {
    struct timespec pause = {0, *(long *)context};
    nanosleep(&pause, NULL);
    kill(getpid(), SIGKILL);
    return NULL;
}

static long    delay_ns;
static int32_t victim;
static bool    loses; /* no replicas: rows are lost */

static weft_status open_wide(state *s, weft_table **table_out) {
    return weft_table_create(s->server, &(weft_table_options){.name = "wide", .rows = WIDE_ROWS, .width = WIDE, .dtype = WEFT_I32, .staleness = WEFT_TABLE_ASYNCHRONOUS}, table_out);
}

/* A rank is killed at some moment of a change. The others go on in the next world, where all is that was acknowledged, or hear that it is lost. */
static weft_status change_and_die(state *s) {
    static int32_t wide[WIDE_ROWS * WIDE], got[WIDE_ROWS * WIDE];
    weft_table    *table = NULL;
    pthread_t      killer;
    make_ones(s);
    WEFTI_TRY(open_tables(s));
    WEFTI_TRY(open_wide(s, &table));
    for (int i = 0; i < WIDE_ROWS * WIDE; i++) wide[i] = i % 1000 + 1;
    WEFTI_TRY(weft_table_push(table, NULL, wide));
    WEFTI_TRY(weft_table_push(s->sparse, s->keys, s->ones));
    WEFTI_TRY(weft_server_resize(s->server, s->world, &now.phase[0].how, NULL)); /* all have pushed */
    if (s->rank == victim) EXPECT(pthread_create(&killer, NULL, kill_later, &delay_ns) == 0, "no thread");
    weft_status status = weft_server_resize(s->server, s->world, &now.phase[1].how, NULL);
    char        text[WEFTI_MESSAGE_BYTES];
    snprintf(text, sizeof text, "%s", weft_error_message());
    if (s->rank == victim) pause();
    EXPECT(status == WEFT_OK || status == WEFT_E_PEER || status == WEFT_E_LINK, "%s: %s", weft_status_name(status), text);
    uint64_t until_ns = ranks_now() + 10 * WEFTI_SECOND_NS;
    while (weft_world_verdict(s->world) == WEFT_OK && ranks_now() < until_ns) nanosleep(&(struct timespec){0, 1000000}, NULL);
    s->before = s->world;
    s->world = NULL;
    WEFTI_TRY(weft_world_shrink(s->before, NULL, &s->world));
    if (loses) {
        REFUSED(weft_server_resize(s->server, s->world, &now.phase[2].how, NULL), WEFT_E_PEER, "load a snapshot");
        weft_table_release(table);
        return WEFT_OK;
    }
    WEFTI_TRY(weft_server_resize(s->server, s->world, &now.phase[2].how, NULL));
    WEFTI_TRY(weft_table_pull(s->sparse, s->keys, s->counts));
    for (int i = 0; i < KEYS; i++) EXPECT(s->counts[i] == now.size * s->ones[i], "key %d: %lld", i, (long long)s->counts[i]);
    WEFTI_TRY(weft_table_pull(table, NULL, got));
    for (int i = 0; i < WIDE_ROWS * WIDE; i++) EXPECT(got[i] == now.size * wide[i], "element %d: %d", i, (int)got[i]);
    weft_group *left = NULL; /* nobody pushes before all have looked */
    WEFTI_TRY(weft_group_create(s->world, NULL, &left));
    WEFTI_TRY(weft_group_barrier(left));
    weft_group_release(left);
    WEFTI_TRY(weft_table_push(s->sparse, s->keys, s->ones)); /* and goes on */
    weft_table_release(table);
    snprintf(s->all->results[s->rank].message, sizeof text, "%s: %.100s", weft_status_name(status), text);
    return WEFT_OK;
}

static void killed(const char *wire, int32_t who, const weft_server_options *first, const weft_server_options *second, bool lost) {
    static const long delays[TRIES] = {3 * 1000 * 1000
#ifndef __SANITIZE_THREAD__
                                         , 200 * 1000, 12 * 1000 * 1000
#endif
    };
    plan p = {.wire = wire, .size = 4, .phases = 3, .staleness = WEFT_TABLE_ASYNCHRONOUS, .phase = {{*first, 15}, {*second, 15}, {*first, 7}}};
    victim = who;
    loses = lost;
    for (int i = 0; i < TRIES; i++) {
        delay_ns = delays[i];
        ranks *all = run_ranks(&p, change_and_die, 1u << who);
        fprintf(stderr, "  %s, rank %d is killed after %ld us: %s\n", wire, (int)who, delay_ns / 1000, all->results[0].message);
        ranks_free(all);
    }
}
static const weft_server_options two_twice = REPLICATED(2), three_twice = REPLICATED(3), two_once = BESIDE(2), three_once = BESIDE(3);
Test(resize, a_server_is_killed_in_a_change_shm) { killed("shm", 3, &two_twice, &three_twice, false); }
Test(resize, a_server_is_killed_in_a_change_tcp) { killed("tcp", 2, &two_twice, &three_twice, false); }
Test(resize, a_newcomer_is_killed_in_a_change) { killed("tcp", 1, &two_twice, &three_twice, false); }
Test(resize, rows_without_replicas_are_lost_and_that_is_said) { killed("shm", 3, &two_once, &three_once, true); }

/* --- refusals --- */

/* What is refused leaves all as it was, on all ranks. */
static weft_status refuse(state *s) {
    weft_request *request = NULL;
    weft_server_options three = BESIDE(3);
    make_ones(s);
    WEFTI_TRY(open_tables(s));
    WEFTI_TRY(weft_table_push(s->sparse, s->keys, s->ones));
    REFUSED(weft_server_resize(s->server, s->world, &three, NULL), WEFT_E_STATE, "has pushed in clock 0, which is not over");
    WEFTI_TRY(weft_table_clock(s->sparse));
    if (s->rank == 1) WEFTI_TRY(weft_table_clock(s->dense));
    REFUSED(weft_server_resize(s->server, s->world, &three, NULL), WEFT_E_MISMATCH, "rank 1 is at clock 1, and clock 0 is not over");
    if (s->rank != 1) WEFTI_TRY(weft_table_clock(s->dense));
    if (s->rank == 2) WEFTI_TRY(weft_table_start_call(s->sparse, &(weft_table_call){.kind = WEFT_PULL, .keys = s->keys, .receive = s->counts}, &request));
    REFUSED(weft_server_resize(s->server, s->world, &three, NULL), WEFT_E_STATE, "1 requests of rank 2 have not been waited for");
    if (request) WEFTI_TRY(weft_request_wait(request, 0));
    three.replicas = s->rank == 0;
    REFUSED(weft_server_resize(s->server, s->world, &three, NULL), WEFT_E_MISMATCH, "rank 0 wants 3 servers and 1 replicas");
    three.replicas = 0;
    three.servers = 9;
    REFUSED(weft_server_resize(s->server, s->world, &three, NULL), WEFT_E_INVALID, "9 servers among 3 ranks");
    REFUSED(weft_server_resize(s->server, NULL, &three, NULL), WEFT_E_INVALID, "the world is NULL");
    three.servers = 3;
    WEFTI_TRY(weft_server_resize(s->server, s->world, &three, NULL));
    WEFTI_TRY(weft_table_pull(s->sparse, s->keys, s->counts));
    for (int i = 0; i < KEYS; i++) EXPECT(s->counts[i] == now.size * s->ones[i], "key %d: %lld", i, (long long)s->counts[i]);
    return WEFT_OK;
}
Test(resize, what_is_refused_changes_nothing) {
    run_all(&(plan){.wire = "shm", .size = 3, .phases = 1, .phase = {{BESIDE(2), 7}}}, refuse);
}

/* One server may hold less than its new share: its rank and the bytes are said, and the split before stands. */
static weft_status find_no_room(state *s) {
    weft_table         *table = NULL;
    weft_server_options one = BESIDE(1);
    static int64_t      got[3000], some[3000];
    for (int i = 0; i < 3000; i++) some[i] = i;
    WEFTI_TRY(weft_table_create(s->server, &(weft_table_options){.name = "tight", .rows = 3000, .dtype = WEFT_I64, .most_bytes = 3000 * 8 / 2 + 64,
                                .staleness = WEFT_TABLE_ASYNCHRONOUS}, &table));
    WEFTI_TRY(weft_table_push(table, NULL, some));
    REFUSED(weft_server_resize(s->server, s->world, &one, NULL), WEFT_E_NO_MEMORY, "rank 2");
    EXPECT(strstr(weft_error_message(), "24000"), "%.250s", weft_error_message());
    WEFTI_TRY(weft_server_resize(s->server, s->world, &(weft_server_options)BESIDE(3), NULL));
    WEFTI_TRY(weft_table_pull(table, NULL, got));
    for (int i = 0; i < 3000; i++) EXPECT(got[i] == 3 * some[i], "row %d: %lld", i, (long long)got[i]);
    weft_table_release(table);
    return WEFT_OK;
}
Test(resize, a_share_that_has_no_room_is_refused) {
    run_all(&(plan){.wire = "tcp", .size = 3, .phases = 1, .phase = {{BESIDE(2), 7}}}, find_no_room);
}

/* As well if the room that is wanting is on its disk. */
static char disk[64];
static weft_status find_no_space(state *s) {
    weft_table    *table = NULL;
    struct rlimit  limit;
    static int64_t got[3000], some[3000];
    for (int i = 0; i < 3000; i++) some[i] = i;
    WEFTI_TRY(weft_table_create(s->server, &(weft_table_options){.name = "spills", .rows = 3000, .dtype = WEFT_I64, .memory_bytes = 5000,
                                .staleness = WEFT_TABLE_ASYNCHRONOUS}, &table));
    WEFTI_TRY(weft_table_push(table, NULL, some));
    EXPECT(getrlimit(RLIMIT_FSIZE, &limit) == 0, "no limit can be read");
    limit.rlim_cur = 14000; /* half of the rows */
    EXPECT(s->rank != 2 || setrlimit(RLIMIT_FSIZE, &limit) == 0, "no limit can be set");
    REFUSED(weft_server_resize(s->server, s->world, &(weft_server_options)BESIDE(1), NULL), WEFT_E_NO_SPACE, "rank 2");
    WEFTI_TRY(weft_server_resize(s->server, s->world, &(weft_server_options)BESIDE(3), NULL));
    WEFTI_TRY(weft_table_pull(table, NULL, got));
    for (int i = 0; i < 3000; i++) EXPECT(got[i] == 3 * some[i], "row %d: %lld", i, (long long)got[i]);
    weft_table_release(table);
    return WEFT_OK;
}
Test(resize, a_share_that_its_disk_has_no_room_for_is_refused) {
    snprintf(disk, sizeof disk, "%s/weft-spill-XXXXXX", temporary_root());
    cr_assert_not_null(mkdtemp(disk));
    run_all(&(plan){.wire = "tcp", .size = 3, .phases = 1, .phase = {{{.servers = 2, .spill = disk}, 7}}}, find_no_space);
    cr_assert_eq(rmdir(disk), 0, "the folder is not empty");
}

/* Memory that is lent stays the program's, and is read from and written to as before. */
static weft_status lend(state *s) {
    void   *memory = NULL;
    int64_t want = 0;
    WEFTI_TRY(open_tables(s));
    WEFTI_TRY(weft_server_alloc(s->server, sizeof s->gradient, &memory));
    for (int round = 0; round < 4; round++) {
        float *values = memory;
        for (int i = 0; i < COUNT; i++) values[i] = 1;
        WEFTI_TRY(weft_table_push(s->dense, NULL, values));
        want++;
        WEFTI_TRY(weft_server_resize(s->server, s->world, &(weft_server_options){.servers = 1 + round % 3}, NULL));
        for (int i = 0; i < COUNT; i++) EXPECT(values[i] == 1, "element %d: %g", i, values[i]);
        WEFTI_TRY(weft_table_pull(s->dense, NULL, values));
        for (int i = 1; i < COUNT; i++) EXPECT(values[i] != 1, "nothing was pulled to element %d", i);
    }
    weft_server_counts counts;
    weft_server_count(s->server, &counts);
    EXPECT(counts.requests >= 8 && counts.sent_bytes > 4 * sizeof s->gradient, "%llu requests, %llu bytes", (unsigned long long)counts.requests,
           (unsigned long long)counts.sent_bytes);
    weft_server_free(s->server, memory);
    return WEFT_OK;
}
Test(resize, lent_memory_stays) {
    run_all(&(plan){.wire = "shm", .size = 3, .phases = 1, .staleness = WEFT_TABLE_ASYNCHRONOUS, .phase = {{BESIDE(3), 7}}}, lend);
}

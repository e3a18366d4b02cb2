/* Three servers are killed one after the other. After each of the first two the replicas that it held are made anew on those that are left, while workers
 * go on, so that the next one takes nothing away either: the bits are those of a run in which nobody dies. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "common/effort.h"
#include "serving.h"

enum { SIZE = 6, WORKERS = 2, ROWS = 300, WIDTH = 17, COUNT = ROWS * WIDTH, KEYS = 200, CLOCKS = 36, FAULTS = 3, EVERY = 10, LATER = 4 };

static const char *wire;
static bool        deadly;

typedef struct state {
    ranks       *all;
    weft_world  *world, *before;
    weft_server *server;
    int32_t      seat, faults; /* the rank at the beginning; how many have died */
    weft_table  *dense, *sparse;
    weft_keys   *keys;
    uint64_t     list[KEYS];
    float        gradient[COUNT], values[COUNT];
    int64_t      ones[KEYS], counts[KEYS];
} state;

/* As many servers as are left, each row on two of them while there are two. */
static weft_server_options servers_of(const state *s) {
    int32_t servers = SIZE - WORKERS - s->faults;
    return (weft_server_options){.servers = servers, .dedicated = true, .replicas = servers > 1, .renews = true};
}

/* Collective over who is left: in the world that follows, whose servers have all rows twice again. */
static weft_status make_anew(state *s) {
    uint64_t until_ns = ranks_now() + 10 * WEFTI_SECOND_NS;
    while (weft_world_verdict(s->world) == WEFT_OK && ranks_now() < until_ns) nanosleep(&(struct timespec){0, 1000000}, NULL);
    s->faults++;
    weft_world *old = s->world;
    WEFTI_TRY(weft_world_shrink(old, NULL, &s->world));
    weft_server_options how = servers_of(s);
    WEFTI_TRY(weft_server_resize(s->server, s->world, &how, NULL));
    weft_world_release(s->before);
    s->before = old;
    return WEFT_OK;
}

static weft_status open_tables(state *s) {
    for (int i = 0; i < KEYS; i++) {
        s->list[i] = (uint64_t)i * 7919 + 3;
        s->ones[i] = s->seat + 1;
    }
    WEFTI_TRY(weft_table_create(s->server, &(weft_table_options){.name = "dense", .rows = ROWS, .width = WIDTH, .start = WEFT_START_NORMAL, .high = 1,
                                .rule = {.kind = WEFT_TABLE_SOLVER, .solver = weft_adam(0.01)}}, &s->dense));
    WEFTI_TRY(weft_table_create(s->server, &(weft_table_options){.name = "sparse", .sparse = true, .dtype = WEFT_I64}, &s->sparse));
    return weft_keys_create(s->sparse, s->list, KEYS, &s->keys);
}

static weft_status train(state *s, uint64_t *hash) {
    uint64_t longest_ns = 0;
    for (int clock = 0; clock < CLOCKS; clock++) {
        uint64_t begin_ns = ranks_now();
        for (int i = 0; i < COUNT; i++) s->gradient[i] = (float)((i + clock * 5 + s->seat * 3) % 13) - 6 + 0.1f * s->values[i];
        if (deadly && s->seat == 0 && clock % EVERY == EVERY - 1 && clock / EVERY < FAULTS) kill(s->all->children[SIZE - 1 - clock / EVERY], SIGKILL);
        WEFTI_TRY(weft_table_push_pull(s->dense, NULL, s->gradient, s->values));
        WEFTI_TRY(weft_table_push_pull(s->sparse, s->keys, s->ones, s->counts));
        for (int i = 0; i < KEYS; i++)
            EXPECT(s->counts[i] == (clock + 1) * WORKERS * (WORKERS + 1) / 2, "clock %d, key %d: %lld", clock, i, (long long)s->counts[i]);
        *hash = wefti_hash(*hash, s->values, sizeof s->values);
        if (ranks_now() - begin_ns > longest_ns) longest_ns = ranks_now() - begin_ns;
        /* Some clocks go on with the replica alone. After the last fault all do. */
        if (deadly && clock >= EVERY && clock % EVERY == LATER && s->faults < FAULTS - 1) WEFTI_TRY(make_anew(s));
    }
    EXPECT(longest_ns < 5 * (uint64_t)WEFTI_SECOND_NS, "a clock took %.3g s", (double)longest_ns / 1e9);
    return WEFT_OK;
}

/* Until all workers have left; a fault of the world is one of the servers' that is made good. */
static weft_status serve(state *s) {
    weft_status status = weft_server_serve(s->server);
    while (status != WEFT_OK && s->faults < FAULTS - 1) {
        WEFTI_TRY(make_anew(s));
        status = weft_server_serve(s->server);
    }
    return s->faults == FAULTS - 1 ? WEFT_OK : status; /* nobody makes the last one good */
}

static weft_status run(ranks *all, int32_t rank) {
    state      *s = calloc(1, sizeof *s);
    uint64_t    hash = WEFTI_HASH_BEGIN;
    weft_status status;
    s->all = all;
    s->seat = rank;
    weft_server_options how = servers_of(s);
    status = weft_world_create(&(weft_world_options){.wire = wire, .threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS}, &s->world);
    if (status == WEFT_OK) status = weft_server_create(s->world, &how, &s->server);
    if (status == WEFT_OK && rank >= WORKERS) status = serve(s);
    else if (status == WEFT_OK) {
        status = open_tables(s);
        if (status == WEFT_OK) status = train(s, &hash);
    }
    char message[WEFTI_MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", weft_error_message());
    weft_keys_release(s->keys);
    weft_table_release(s->dense);
    weft_table_release(s->sparse);
    weft_server_release(s->server);
    weft_world_release(s->world);
    weft_world_release(s->before);
    free(s);
    if (status != WEFT_OK) return wefti_fail(status, "%s", message);
    snprintf(all->results[rank].message, sizeof all->results[0].message, "%016llx", (unsigned long long)hash);
    return WEFT_OK;
}

static void same_bits(const char *name) {
    char whole[WORKERS][32];
    wire = name;
    for (int dies = 0; dies < 2; dies++) {
        uint32_t lost = dies ? 7u << (SIZE - FAULTS) : 0;
        deadly = dies;
        ranks *all = ranks_start(SIZE, run);
        ranks_join(all);
        for (int32_t rank = 0; rank < SIZE; rank++)
            if (!(lost >> rank & 1))
                cr_expect(atomic_load(&all->results[rank].finished) && all->results[rank].status == WEFT_OK, "%s, rank %d: %s", wire, (int)rank, all->results[rank].message);
        for (int32_t rank = 0; rank < WORKERS; rank++) {
            if (!dies) snprintf(whole[rank], sizeof whole[0], "%.16s", all->results[rank].message);
            else cr_expect_str_eq(all->results[rank].message, whole[rank], "%s, rank %d: other bits than where nobody dies", wire, (int)rank);
        }
        ranks_free(all);
    }
}
Test(replicas_anew, three_servers_die_one_after_the_other_shm) { same_bits("shm"); }
Test(replicas_anew, three_servers_die_one_after_the_other_tcp) {
    if (!UNDER_THREAD_SANITIZER) same_bits("tcp");
}

/* Replicas: a server is killed in the middle of training, its rows are there all the same, and what was acknowledged is in them. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "serving.h"

static const weft_server_options two_apart = {.servers = 2, .dedicated = true, .replicas = 1}, three_apart = {.servers = 3, .dedicated = true, .replicas = 1},
                                 beside = {.replicas = 1}, without = {.servers = 2, .dedicated = true},
                                 no_thread = {.servers = 2, .dedicated = true, .replicas = 1, .no_thread = true};

enum { ROWS = 700, WIDTH = 33, COUNT = ROWS * WIDTH, KEYS = 500, CLOCKS = 30, DEATH = 12 };

static int32_t          victim; /* -1: nobody dies */
static bool             in_one; /* push and pull are one request */
static weft_compression push, pull;

typedef struct state {
    weft_table *dense, *sparse;
    weft_keys  *keys;
    uint64_t    list[KEYS];
    float       gradient[COUNT], values[COUNT];
    int64_t     ones[KEYS], counts[KEYS];
} state;

static weft_status open_tables(serving *self, state *s, int32_t staleness) {
    for (int i = 0; i < KEYS; i++) {
        s->list[i] = (uint64_t)i * 7919 + 3;
        s->ones[i] = self->rank + 1;
    }
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "dense", .rows = ROWS, .width = WIDTH, .start = WEFT_START_NORMAL, .high = 1,
                                .staleness = staleness, .push = push, .pull = pull, .rule = {.kind = WEFT_TABLE_SOLVER, .solver = weft_adam(0.01)}}, &s->dense));
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "sparse", .sparse = true, .dtype = WEFT_I64, .staleness = staleness}, &s->sparse));
    return weft_keys_create(s->sparse, s->list, KEYS, &s->keys);
}

static void close_tables(state *s) {
    weft_keys_release(s->keys);
    weft_table_release(s->dense);
    weft_table_release(s->sparse);
    free(s);
}

/* The server of that rank is killed from outside, while workers are anywhere in a clock. */
static void kill_server(serving *self, int32_t rank) {
    if (self->rank != 0) return;
    kill(self->all->children[rank], SIGKILL);
    self->all->wrecked_ns = ranks_now();
}

static uint64_t digest(const state *s) {
    uint64_t hash = wefti_hash(WEFTI_HASH_BEGIN, s->values, sizeof s->values);
    return wefti_hash(hash, s->counts, sizeof s->counts);
}


/* Bulk-synchronous: every rank ends with the hash of what it has seen, all clocks long. */
static weft_status train(serving *self) {
    state   *s = calloc(1, sizeof *s);
    uint64_t hash = 0, most_ns = 0;
    WEFTI_TRY(open_tables(self, s, 0));
    for (int clock = 0; clock < CLOCKS; clock++) {
        uint64_t begin_ns = ranks_now();
        for (int i = 0; i < COUNT; i++) s->gradient[i] = (float)((i + clock * 5 + self->rank * 3) % 13) - 6 + 0.1f * s->values[i];
        if (clock == DEATH && victim >= 0) kill_server(self, victim);
        if (in_one) {
            WEFTI_TRY(weft_table_push_pull(s->dense, NULL, s->gradient, s->values));
            WEFTI_TRY(weft_table_push_pull(s->sparse, s->keys, s->ones, s->counts));
        } else {
            WEFTI_TRY(weft_table_push(s->dense, NULL, s->gradient));
            WEFTI_TRY(weft_table_push(s->sparse, s->keys, s->ones));
            WEFTI_TRY(weft_table_clock(s->dense));
            WEFTI_TRY(weft_table_clock(s->sparse));
            WEFTI_TRY(weft_table_pull(s->dense, NULL, s->values));
            WEFTI_TRY(weft_table_pull(s->sparse, s->keys, s->counts));
        }
        for (int i = 0; i < KEYS; i++)
            EXPECT(s->counts[i] == (clock + 1) * self->workers * (self->workers + 1) / 2, "clock %d, key %d: %lld", clock, i, (long long)s->counts[i]);
        hash = wefti_hash(hash, &(uint64_t){digest(s)}, sizeof hash);
        if (ranks_now() - begin_ns > most_ns) most_ns = ranks_now() - begin_ns;
    }
    EXPECT(most_ns < 5 * (uint64_t)WEFTI_SECOND_NS, "a clock took %.3g s", (double)most_ns / 1e9);
    close_tables(s);
    self->all->results[self->rank].at_ns = hash; /* for the parent, before it is told when this ended */
    snprintf(self->all->results[self->rank].message, sizeof self->all->results[0].message, "%016llx in %.3g ms", (unsigned long long)hash, (double)most_ns / 1e6);
    return WEFT_OK;
}

static void same_bits(const char *wire, int32_t size, const weft_server_options *options, int32_t dies) {
    char whole[17];
    victim = -1;
    ranks *all = serve_case_with(wire, size, options, train, 0);
    snprintf(whole, sizeof whole, "%.16s", all->results[0].message);
    ranks_free(all);
    victim = dies;
    all = serve_case_with(wire, size, options, train, 1u << dies);
    for (int32_t rank = 0; rank < size - (options->servers ? options->servers : size); rank++)
        cr_expect(strncmp(whole, all->results[rank].message, 16) == 0, "%s, rank %d: %s, and %s where nobody died", wire, (int)rank,
                  all->results[rank].message, whole);
    fprintf(stderr, "  %s, %d ranks, rank %d dies: %s at most\n", wire, (int)size, (int)dies, all->results[0].message);
    ranks_free(all);
}
Test(replicas, same_bits_shm) { same_bits("shm", 4, &two_apart, 2); }
Test(replicas, same_bits_tcp) { same_bits("tcp", 4, &two_apart, 3); }
Test(replicas, same_bits_of_three) { same_bits("tcp", 5, &three_apart, 3); }
Test(replicas, same_bits_without_thread) { same_bits("shm", 4, &no_thread, 3); }
Test(replicas, same_bits_in_one_request) {
    in_one = true;
    same_bits("shm", 4, &two_apart, 3);
}

/* Several clocks of one table at once: each pull sees the clocks before its own and no later one, by the replica, too. */
static weft_status many_clocks(serving *self) {
    enum { AT_ONCE = 5, ROUNDS = 40, FEW = 6 };
    weft_table   *table = NULL, *other = NULL;
    weft_request *flying[AT_ONCE] = {0};
    int64_t       ones[FEW], got[AT_ONCE][FEW], before[FEW];
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "many", .rows = FEW, .dtype = WEFT_I64}, &table));
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "other", .rows = FEW, .dtype = WEFT_I64}, &other));
    for (int i = 0; i < FEW; i++) ones[i] = self->rank + 1;
    const int64_t all = self->workers * (self->workers + 1) / 2;
    for (int clock = 0; clock < ROUNDS * AT_ONCE; clock++) {
        int at = clock % AT_ONCE;
        if (clock == ROUNDS * AT_ONCE / 2) kill_server(self, victim);
        if (flying[at]) WEFTI_TRY(weft_request_wait(flying[at], 0));
        for (int i = 0; i < FEW && flying[at]; i++)
            EXPECT(got[at][i] == (clock - AT_ONCE + 1) * all, "clock %d, row %d: %lld", clock - AT_ONCE, i, (long long)got[at][i]);
        WEFTI_TRY(weft_table_start_call(table, &(weft_table_call){.kind = WEFT_PUSH_PULL, .send = ones, .receive = got[at]}, &flying[at]));
        if (clock % 7) continue;
        weft_request *reading = NULL; /* in this clock, which ends while it is under way */
        WEFTI_TRY(weft_table_push(other, NULL, ones));
        WEFTI_TRY(weft_table_start_call(other, &(weft_table_call){.kind = WEFT_PULL, .receive = before}, &reading));
        WEFTI_TRY(weft_table_clock(other));
        WEFTI_TRY(weft_request_wait(reading, 0));
        for (int i = 0; i < FEW; i++) EXPECT(before[i] == clock / 7 * all, "clock %d of the other, row %d: %lld", clock / 7, i, (long long)before[i]);
    }
    for (int at = 0; at < AT_ONCE; at++) WEFTI_TRY(weft_request_wait(flying[at], 0));
    weft_table_release(table);
    weft_table_release(other);
    return WEFT_OK;
}
static void many_at_once(const char *wire, int32_t size, const weft_server_options *options, int32_t dies) {
    victim = dies;
    ranks_free(serve_case_with(wire, size, options, many_clocks, 1u << dies));
}
Test(replicas, several_clocks_at_once_shm) { many_at_once("shm", 5, &two_apart, 3); }
Test(replicas, several_clocks_at_once_tcp) { many_at_once("tcp", 4, &two_apart, 2); }
Test(replicas, several_clocks_at_once_without_thread) { many_at_once("shm", 4, &no_thread, 2); }

/* A table goes while ends of its clocks are on their way. */
static weft_status let_go(serving *self) {
    int64_t one[ROWS], got[ROWS];
    for (int i = 0; i < ROWS; i++) one[i] = 1;
    for (int turn = 0; turn < 60; turn++) {
        weft_table *table = NULL;
        char        name[16];
        snprintf(name, sizeof name, "go %d", turn);
        WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = name, .rows = ROWS, .dtype = WEFT_I64}, &table));
        if (turn == 30) kill_server(self, victim);
        WEFTI_TRY(weft_table_push(table, NULL, one));
        for (int clock = 0; clock < 5; clock++) WEFTI_TRY(weft_table_clock(table));
        weft_table_release(table);
        if (turn % 20 != 19) continue;
        WEFTI_TRY(serving_meet(self));
        WEFTI_TRY(weft_table_open(self->server, name, &table));
        WEFTI_TRY(weft_table_clock(table));
        WEFTI_TRY(weft_table_pull(table, NULL, got));
        for (int i = 0; i < ROWS; i++) EXPECT(got[i] == self->workers, "turn %d, row %d: %lld", turn, i, (long long)got[i]);
        weft_table_release(table);
    }
    return WEFT_OK;
}
static void let_go_of(const char *wire, int32_t dies) {
    victim = dies;
    ranks_free(serve_case_with(wire, 4, &two_apart, let_go, 1u << dies));
}
Test(replicas, tables_are_let_go_of_shm) { let_go_of("shm", 2); }
Test(replicas, tables_are_let_go_of_tcp) { let_go_of("tcp", 3); }

/* What is left out of a push is left out of both. */
Test(replicas, same_bits_in_fewer_bytes) {
    push = (weft_compression){.codec = WEFT_COMPRESS_TOP_K, .ratio = 0.1};
    pull = (weft_compression){.codec = WEFT_COMPRESS_BF16};
    same_bits("tcp", 4, &two_apart, 3);
}

/* Asynchronous adds: each of them was acknowledged, and is there at the end. */
static weft_status add(serving *self) {
    state  *s = calloc(1, sizeof *s);
    int64_t got[KEYS];
    WEFTI_TRY(open_tables(self, s, WEFT_TABLE_ASYNCHRONOUS));
    for (int step = 0; step < 200; step++) {
        if (step == 70) kill_server(self, self->all->size - 1);
        WEFTI_TRY(weft_table_push(s->sparse, s->keys, s->ones));
        if (step % 10 == 0) WEFTI_TRY(weft_table_pull(s->sparse, s->keys, got)); /* its own at least */
        if (step % 10 == 0)
            for (int i = 0; i < KEYS; i++) EXPECT(got[i] >= (step + 1) * (self->rank + 1), "step %d, key %d: %lld", step, i, (long long)got[i]);
    }
    WEFTI_TRY(serving_meet(self));
    WEFTI_TRY(weft_table_pull(s->sparse, s->keys, got));
    for (int i = 0; i < KEYS; i++) EXPECT(got[i] == 200 * self->workers * (self->workers + 1) / 2, "key %d: %lld", i, (long long)got[i]);
    close_tables(s);
    return WEFT_OK;
}
Test(replicas, no_acknowledged_push_is_lost_shm) { ranks_free(serve_case_with("shm", 5, &two_apart, add, 1 << 4)); }
Test(replicas, no_acknowledged_push_is_lost_tcp) { ranks_free(serve_case_with("tcp", 4, &two_apart, add, 1 << 3)); }

/* A serving worker dies: its rows are there, and nobody waits for it. */
static weft_status die_beside(serving *self) {
    state *s = calloc(1, sizeof *s);
    WEFTI_TRY(open_tables(self, s, 0));
    for (int clock = 0; clock < 10; clock++) {
        if (clock == 5 && self->rank == 1) kill(getpid(), SIGKILL);
        WEFTI_TRY(weft_table_push_pull(s->sparse, s->keys, s->ones, s->counts));
    }
    for (int i = 0; i < KEYS; i++) EXPECT(s->counts[i] == 10 * 4 + 5 * 2, "key %d: %lld", i, (long long)s->counts[i]);
    close_tables(s);
    return WEFT_OK;
}
Test(replicas, a_serving_worker_dies) { ranks_free(serve_case_with("shm", 3, &beside, die_beside, 1 << 1)); }

/* Tables can be made, opened and pulled after a death, too; key sets as well. */
static weft_status open_late(serving *self) {
    weft_table *table = NULL, *opened = NULL;
    float       values[ROWS], got[ROWS];
    for (int i = 0; i < ROWS; i++) values[i] = (float)i;
    if (self->rank == 0) WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "early", .rows = ROWS, .staleness = WEFT_TABLE_ASYNCHRONOUS}, &table));
    if (self->rank == 0) WEFTI_TRY(weft_table_push(table, NULL, values));
    WEFTI_TRY(serving_meet(self));
    kill_server(self, 2);
    WEFTI_TRY(serving_meet(self));
    WEFTI_TRY(weft_table_open(self->server, "early", &opened));
    WEFTI_TRY(weft_table_pull(opened, NULL, got));
    for (int i = 0; i < ROWS; i++) EXPECT(got[i] == values[i], "row %d: %g", i, got[i]);
    weft_table_release(opened);
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "late", .rows = ROWS, .staleness = WEFT_TABLE_ASYNCHRONOUS}, &opened));
    WEFTI_TRY(weft_table_push(opened, NULL, values));
    WEFTI_TRY(weft_table_push_pull(opened, NULL, values, got));
    WEFTI_TRY(serving_meet(self));
    WEFTI_TRY(weft_table_pull(opened, NULL, got));
    for (int i = 0; i < ROWS; i++) EXPECT(got[i] == 4 * values[i], "row %d: %g", i, got[i]);
    REFUSED(weft_table_open(self->server, "none", &(weft_table *){NULL}), WEFT_E_NOT_FOUND, "no table 'none'");
    weft_table_release(opened);
    weft_table_release(table);
    return WEFT_OK;
}
Test(replicas, tables_after_a_death) { ranks_free(serve_case_with("tcp", 4, &two_apart, open_late, 1 << 2)); }

/* Both holders of a row: a clear status, soon. And the same without replicas. */
static weft_status both_die(serving *self) {
    weft_table *table = NULL;
    float       values[ROWS] = {0};
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "gone", .rows = ROWS, .staleness = WEFT_TABLE_ASYNCHRONOUS}, &table));
    WEFTI_TRY(serving_meet(self));
    for (int32_t rank = self->workers; rank < self->all->size; rank++) kill_server(self, rank);
    WEFTI_TRY(serving_meet(self));
    uint64_t begin_ns = ranks_now();
    weft_status status = WEFT_OK;
    for (int tries = 0; tries < 1000 && status == WEFT_OK; tries++) status = weft_table_push(table, NULL, values);
    EXPECT(status == WEFT_E_PEER && strstr(weft_error_message(), "is gone"), "%s: %s", weft_status_name(status), weft_error_message());
    REFUSED(weft_table_pull(table, NULL, values), WEFT_E_PEER, "which serves rows of table 'gone'");
    EXPECT(ranks_now() - begin_ns < 5 * (uint64_t)WEFTI_SECOND_NS, "it took %.3g s", (double)(ranks_now() - begin_ns) / 1e9);
    weft_table_release(table);
    return WEFT_OK;
}
Test(replicas, both_holders_die) { ranks_free(serve_case_with("shm", 4, &two_apart, both_die, 3 << 2)); }
Test(replicas, without_replicas_a_death_is_told) { ranks_free(serve_case_with("tcp", 4, &without, both_die, 3 << 2)); }

/* Large values: in pieces by TCP, in place on shared memory. */
static weft_status large(serving *self) {
    enum { MANY = 3 << 20 };
    weft_table *table = NULL;
    float      *values = NULL, *got = malloc(MANY * sizeof *got);
    WEFTI_TRY(weft_server_alloc(self->server, MANY * sizeof *values, (void **)&values));
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "large", .rows = MANY}, &table));
    for (int clock = 0; clock < 6; clock++) {
        if (clock == 3) kill_server(self, 2);
        for (int i = 0; i < MANY; i++) values[i] = (float)(i % 1000 + clock);
        WEFTI_TRY(weft_table_push_pull(table, NULL, values, got));
        for (int i = 0; i < MANY; i++)
            EXPECT(got[i] == (float)(self->workers * ((clock + 1) * (i % 1000) + clock * (clock + 1) / 2)), "clock %d, row %d: %g", clock, i, got[i]);
    }
    weft_table_release(table);
    free(got);
    return WEFT_OK;
}
Test(replicas, large_values_shm) { ranks_free(serve_case_with("shm", 4, &two_apart, large, 1 << 2)); }
Test(replicas, large_values_tcp) { ranks_free(serve_case_with("tcp", 4, &two_apart, large, 1 << 2)); }

static weft_status refused(serving *self) {
    weft_server *server = NULL;
    REFUSED(weft_server_create(self->world, &(weft_server_options){.replicas = 2}, &server), WEFT_E_INVALID, "2 replicas with 2 servers");
    REFUSED(weft_server_create(self->world, &(weft_server_options){.servers = 1, .replicas = 1}, &server), WEFT_E_INVALID, "1 replicas with 1 servers");
    REFUSED(weft_server_create(self->world, &(weft_server_options){.replicas = self->rank}, &server), WEFT_E_MISMATCH, "rank 1 0 servers and 1");
    return WEFT_OK;
}
static weft_status spares_refused(serving *self) {
    weft_table *table = NULL;
    REFUSED(weft_table_create(self->server, &(weft_table_options){.name = "spare", .rows = 4, .spares = 1}, &table), WEFT_E_UNSUPPORTED, "1 spares with replicas");
    return WEFT_OK;
}
Test(replicas, no_spares) { serve_case("shm", 4, &two_apart, spares_refused); }
Test(replicas, refusals) { serve_case("shm", 2, NULL, refused); }

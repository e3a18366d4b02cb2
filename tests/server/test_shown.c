/* Rows that workers read where a server has them: a pull sees one moment, whatever changes them meanwhile, and no server waits for who reads. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "common/files.h"
#include "parallel/server/follow.h"
#include "serving.h"
#include "weft/vectors.h"

/* Rank 1 serves, and works too; rank 0 reads. */
static const weft_server_options beside = {.servers = 1};

enum { ROWS = 1 << 18, SEEN = ROWS / 2 };

static float given(int64_t i) { return (float)(i % 31 + 1); }

static weft_status compare(const float *got, float times, const char *when) {
    for (int64_t i = 0; i < ROWS; i++)
        EXPECT(got[i] == times * given(i), "%s: row %lld is %g, not %g", when, (long long)i, got[i], times * given(i));
    return WEFT_OK;
}

static void wait_ms(int64_t ms) { nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL); }

/* Both come to this point; who serves goes on serving. */
static weft_status meet(serving *self, int stage) {
    atomic_fetch_add(&self->all->ready, 1);
    for (int ms = 0; atomic_load(&self->all->ready) < 2 * stage; ms++) {
        EXPECT(ms < 20000, "nobody came to stage %d", stage);
        (void)!weft_server_poll(self->server);
        wait_ms(1);
    }
    return WEFT_OK;
}

static weft_status make(serving *self, const char *name, weft_table **table_out, float **values_out, float **got_out) {
    weft_table_options options = {.name = name, .rows = ROWS, .dtype = WEFT_F32, .staleness = WEFT_TABLE_ASYNCHRONOUS};
    *values_out = malloc(ROWS * sizeof **values_out);
    *got_out = mmap(NULL, ROWS * sizeof **got_out, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int64_t i = 0; i < ROWS; i++) (*values_out)[i] = given(i);
    WEFTI_TRY(weft_table_create(self->server, &options, table_out));
    return *got_out != MAP_FAILED ? WEFT_OK : wefti_fail(WEFT_E_NO_MEMORY, "no memory that can be taken away");
}

static void unmake(weft_table *table, float *values, float *got) {
    weft_table_release(table);
    munmap(got, ROWS * sizeof *got);
    free(values);
}

/* Whether rows are shown at all: where a core is wanted by others, they are not. */
static bool shows(const serving *self) { return wefti_server_is_hot(self->server); }
static uint32_t shown_by(const serving *self) {
    const wefti_line *lines = self->server->lines ? (const wefti_line *)(const void *)self->server->lines->data : NULL;
    uint32_t          region = 0;
    for (int32_t i = 0; lines && i < self->server->in_flight; i++) {
        uint32_t one = atomic_load(&lines[i].shown);
        if (one && one != WEFTI_WANTS_SHOWN) region = one;
    }
    return region;
}

/* --- one who stops, or dies, while it reads --- */

static ranks *all;
static float *hidden;
static bool   dies;

/* The copy has come to where it cannot be written: it goes on once the rows have changed. */
static void stop(int signal) {
    (void)signal;
    if (dies) raise(SIGKILL);
    atomic_fetch_add(&all->ready, 1);
    for (int ms = 0; ms < 10000 && atomic_load(&all->ready) < 5; ms++) wait_ms(1);
    if (atomic_load(&all->ready) < 5) _exit(7);
    mprotect(hidden + SEEN, (ROWS - SEEN) * sizeof *hidden, PROT_READ | PROT_WRITE);
}

static weft_status hide(serving *self, float *got) {
    struct sigaction action = {.sa_handler = stop};
    all = self->all;
    hidden = got;
    EXPECT(sigaction(SIGSEGV, &action, NULL) == 0 && mprotect(got + SEEN, (ROWS - SEEN) * sizeof *got, PROT_NONE) == 0, "signals");
    return WEFT_OK;
}

/* Rank 1 changes the rows more often than there are memories for them. */
static weft_status change(serving *self, weft_table *table, const float *values, float *got) {
    for (int ms = 0; atomic_load(&self->all->ready) < 3; ms++) {
        EXPECT(ms < 10000, "nobody reads");
        (void)!weft_server_poll(self->server);
        wait_ms(1);
    }
    for (int i = 0; i < 3; i++) WEFTI_TRY(weft_table_push(table, NULL, values));
    WEFTI_TRY(weft_table_pull(table, NULL, got));
    WEFTI_TRY(compare(got, 4, "who changes"));
    atomic_fetch_add(&self->all->ready, 2);
    return WEFT_OK;
}

static weft_status stops(serving *self) {
    weft_table *table = NULL;
    float      *values = NULL, *got = NULL;
    WEFTI_TRY(make(self, "stops", &table, &values, &got));
    if (!shows(self)) return WEFT_OK;
    if (self->rank == 1) WEFTI_TRY(weft_table_push(table, NULL, values));
    WEFTI_TRY(meet(self, 1));
    if (self->rank == 0) {
        WEFTI_TRY(weft_table_pull(table, NULL, got)); /* the first one does not read them there */
        WEFTI_TRY(hide(self, got));
        WEFTI_TRY(weft_table_pull(table, NULL, got));
        WEFTI_TRY(compare(got, 1, "who was stopped"));
        EXPECT(shown_by(self), "the rows were not read where they lie");
        WEFTI_TRY(weft_table_pull(table, NULL, got));
        WEFTI_TRY(compare(got, 4, "afterwards"));
    } else {
        WEFTI_TRY(change(self, table, values, got));
    }
    unmake(table, values, got);
    return WEFT_OK;
}
Test(shown, reader_stops) { serve_case("shm", 2, &beside, stops); }

static weft_status dies_reading(serving *self) {
    weft_table *table = NULL;
    float      *values = NULL, *got = NULL;
    WEFTI_TRY(make(self, "dies", &table, &values, &got));
    if (self->rank == 1) WEFTI_TRY(weft_table_push(table, NULL, values));
    WEFTI_TRY(meet(self, 1));
    if (self->rank == 0) {
        dies = true;
        WEFTI_TRY(weft_table_pull(table, NULL, got));
        WEFTI_TRY(hide(self, got));
        weft_status status = weft_table_pull(table, NULL, got);
        return wefti_fail(WEFT_E_INTERNAL, "it lives, %s", weft_status_name(status));
    }
    for (int ms = 0, gone = 0; !gone; ms++) {
        EXPECT(ms < 10000, "nobody died");
        (void)!weft_server_poll(self->server);
        pthread_mutex_lock(&self->server->lock);
        gone = wefti_server_is_gone(self->server, 0);
        pthread_mutex_unlock(&self->server->lock);
        wait_ms(1);
    }
    for (int times = 2; times < 5; times++) {
        WEFTI_TRY(weft_table_push(table, NULL, values));
        WEFTI_TRY(weft_table_pull(table, NULL, got));
        WEFTI_TRY(compare(got, (float)times, "after a death"));
    }
    unmake(table, values, got);
    return WEFT_OK;
}
Test(shown, reader_dies) { ranks_free(serve_case_with("shm", 2, &beside, dies_reading, 1u << 0)); }

/* --- one who counts wrongly --- */

/* Writes another number of readings into the memory that it read from. */
static weft_status miscount(serving *self, uint32_t region, uint64_t by) {
    wefti_wire_peer_region there = {0};
    pthread_mutex_lock(&self->server->lock);
    weft_status status = self->server->wire->ops->peer_region(self->server->wire, 1, region, &there);
    if (status == WEFT_OK) atomic_fetch_add(&((wefti_shown_line *)there.base)[self->rank].taken, by);
    pthread_mutex_unlock(&self->server->lock);
    return status;
}

static weft_status miscounts(serving *self) {
    weft_table *table = NULL;
    float      *values = NULL, *got = NULL;
    uint32_t    region = 0;
    WEFTI_TRY(make(self, "miscounts", &table, &values, &got));
    if (!shows(self)) return WEFT_OK;
    for (int round = 0, stage = 0; round < 6; round++) {
        if (self->rank == 1) WEFTI_TRY(weft_table_push(table, NULL, values));
        WEFTI_TRY(meet(self, ++stage));
        if (self->rank == 0) {
            for (int i = 0; i < 2; i++) {
                WEFTI_TRY(weft_table_pull(table, NULL, got));
                WEFTI_TRY(compare(got, (float)(2 * round + 1), "where it counts wrongly"));
            }
            bool reads = round < 2 || round == 5; /* else what it said keeps the server from showing any */
            EXPECT(!shown_by(self) == !reads, "round %d: the rows were%s read where they lie", round, reads ? " not" : "");
            if (round == 1) WEFTI_TRY(miscount(self, region = shown_by(self), 5));
            if (round == 4) WEFTI_TRY(miscount(self, region, (uint64_t)0 - 5));
            WEFTI_TRY(weft_table_push(table, NULL, values));
        }
        WEFTI_TRY(meet(self, ++stage));
    }
    unmake(table, values, got);
    return WEFT_OK;
}
Test(shown, reader_miscounts) { serve_case("shm", 2, &beside, miscounts); }

/* --- tables whose rows have states, and rows that go on elsewhere again and again --- */

static weft_status moves(serving *self) {
    weft_request *first = NULL;
    weft_table   *table = NULL;
    float        *values = malloc(ROWS * sizeof *values), *got = malloc(ROWS * sizeof *got), *wanted = malloc(ROWS * sizeof *wanted);
    weft_table_options options = {.name = "adam", .rows = ROWS, .dtype = WEFT_F32, .staleness = WEFT_TABLE_ASYNCHRONOUS,
                                  .rule = {.kind = WEFT_TABLE_SOLVER, .solver = {.kind = WEFT_ADAM, .rate = 0.1}}};
    for (int64_t i = 0; i < ROWS; i++) values[i] = given(i);
    WEFTI_TRY(weft_table_create(self->server, &options, &table));
    for (int round = 0, stage = 0; round < 5; round++) {
        if (self->rank == 0) WEFTI_TRY(weft_table_pull(table, NULL, got));
        if (self->rank == 0) WEFTI_TRY(weft_table_start_call(table, &(weft_table_call){.kind = WEFT_PULL, .receive = got}, &first)); /* it does not look */
        wait_ms(20);
        WEFTI_TRY(meet(self, ++stage));
        if (self->rank == 1) WEFTI_TRY(weft_table_push(table, NULL, values));
        WEFTI_TRY(meet(self, ++stage));
        if (self->rank == 0) WEFTI_TRY(weft_request_wait(first, 0));
        for (int64_t i = 0; i < ROWS; i++) /* all steps of Adam with one gradient are as long as the rate */
            EXPECT(self->rank == 1 || fabsf(got[i] + 0.1f * (float)round) < 1e-3f, "round %d: row %lld is %g", round, (long long)i, got[i]);
        WEFTI_TRY(weft_table_pull(table, NULL, wanted));
        for (int64_t i = 0; i < ROWS; i++)
            EXPECT(fabsf(wanted[i] + 0.1f * (float)(round + 1)) < 1e-3f, "round %d: row %lld is then %g", round, (long long)i, wanted[i]);
        WEFTI_TRY(meet(self, ++stage));
    }
    weft_table_release(table);
    free(values);
    free(got);
    free(wanted);
    return WEFT_OK;
}
Test(shown, rows_move_with_their_states) { serve_case("shm", 2, &beside, moves); }

/* --- rows that change otherwise than by a push --- */

static char folder[64], path[96];

/* What was shown before a snapshot is loaded is not what is there after it. */
static weft_status loads(serving *self) {
    weft_table *table = NULL;
    float      *values = NULL, *got = NULL;
    int         stage = 0;
    WEFTI_TRY(make(self, "loads", &table, &values, &got));
    if (self->rank == 1) WEFTI_TRY(weft_table_push(table, NULL, values));
    WEFTI_TRY(meet(self, ++stage));
    WEFTI_TRY(weft_server_save(self->server, path));
    if (self->rank == 1) WEFTI_TRY(weft_table_push(table, NULL, values));
    WEFTI_TRY(meet(self, ++stage));
    for (int i = 0; i < 3 && self->rank == 0; i++) {
        WEFTI_TRY(weft_table_pull(table, NULL, got));
        WEFTI_TRY(compare(got, 2, "before the load"));
    }
    EXPECT(self->rank == 1 || !shows(self) || shown_by(self), "the rows were not read where they lie");
    WEFTI_TRY(meet(self, ++stage));
    if (self->rank == 0) WEFTI_TRY(weft_server_load(self->server, path));
    for (int round = 1; round < 3; round++) {
        for (int i = 0; i < 3 && self->rank == 0; i++) {
            WEFTI_TRY(weft_table_pull(table, NULL, got));
            WEFTI_TRY(compare(got, (float)round, "after the load"));
        }
        WEFTI_TRY(meet(self, ++stage));
        if (self->rank == 1) WEFTI_TRY(weft_table_push(table, NULL, values));
        WEFTI_TRY(meet(self, ++stage));
    }
    unmake(table, values, got);
    return WEFT_OK;
}
Test(shown, rows_of_a_snapshot) {
    char command[96];
    snprintf(folder, sizeof folder, "%s/weft-shown-XXXXXX", temporary_root());
    cr_assert_not_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/state", folder);
    serve_case("shm", 2, &beside, loads);
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    cr_expect_eq(system(command), 0);
}

/* Where somebody may be reading the rows that a command changes, it changes them where they have gone on. */
static weft_status commands(serving *self) {
    weft_request *first = NULL;
    weft_table   *table = NULL;
    float        *values = NULL, *got = NULL, *now = malloc(ROWS * sizeof *now);
    double        result;
    int           stage = 0;
    WEFTI_TRY(make(self, "commands", &table, &values, &got));
    if (self->rank == 1) WEFTI_TRY(weft_table_push(table, NULL, values));
    WEFTI_TRY(meet(self, ++stage));
    if (self->rank == 0) WEFTI_TRY(weft_table_pull(table, NULL, got));
    if (self->rank == 0) WEFTI_TRY(weft_table_start_call(table, &(weft_table_call){.kind = WEFT_PULL, .receive = got}, &first)); /* it does not look */
    wait_ms(20);
    WEFTI_TRY(meet(self, ++stage));
    if (self->rank == 1) WEFTI_TRY(weft_vectors_run(self->server, &(weft_vector_command){.op = WEFT_VECTOR_SCALE, .y = table, .scale = 3}, 1, &result));
    WEFTI_TRY(meet(self, ++stage));
    if (self->rank == 0) WEFTI_TRY(weft_request_wait(first, 0));
    if (self->rank == 0) WEFTI_TRY(compare(got, 1, "who was reading"));
    WEFTI_TRY(weft_table_pull(table, NULL, now));
    WEFTI_TRY(compare(now, 3, "after the command"));
    WEFTI_TRY(meet(self, ++stage));
    free(now);
    unmake(table, values, got);
    return WEFT_OK;
}
Test(shown, vector_commands) { serve_case("shm", 2, &beside, commands); }

/* A push and a pull in one, of memory that the program has lent and to memory of its own: what it pushes from stays as it was. */
static weft_status lends(serving *self) {
    weft_table *table = NULL;
    float      *values = NULL, *got = NULL, *lent = NULL;
    WEFTI_TRY(make(self, "lends", &table, &values, &got));
    WEFTI_TRY(weft_server_alloc(self->server, ROWS * sizeof *lent, (void **)&lent));
    memcpy(lent, values, ROWS * sizeof *lent);
    for (int round = 1; round < 4 && self->rank == 0; round++) {
        WEFTI_TRY(weft_table_push_pull(table, NULL, lent, got));
        WEFTI_TRY(compare(got, (float)round, "what is pulled"));
        WEFTI_TRY(compare(lent, 1, "what was pushed"));
    }
    WEFTI_TRY(meet(self, 1));
    unmake(table, values, got);
    return WEFT_OK;
}
Test(shown, lent_memory_stays) { serve_case("shm", 2, &beside, lends); }

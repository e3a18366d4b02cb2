/* Snapshots: of one moment on all servers while training goes on, whole on the disk or not there, and read by another number of servers. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/files.h"
#include "serving.h"

static const weft_server_options beside = {0}, one_apart = {.servers = 1, .dedicated = true}, two_apart = {.servers = 2, .dedicated = true},
                                 no_thread = {.no_thread = true};

/* The test's folder and the file in it that cases write and read: made before the ranks are. */
static char folder[64], path[128], other[128];

static void make_folder(void) {
    snprintf(folder, sizeof folder, "%s/weft_snapshots_XXXXXX", temporary_root());
    cr_assert(mkdtemp(folder) != NULL);
    snprintf(path, sizeof path, "%s/state", folder);
    snprintf(other, sizeof other, "%s/whole.bin", folder);
}

static int count_files(const char *part) {
    DIR *list = opendir(folder);
    int  count = 0;
    for (struct dirent *entry; list && (entry = readdir(list));) count += entry->d_name[0] != '.' && strstr(entry->d_name, part) != NULL;
    if (list) closedir(list);
    return count;
}

static void remove_folder(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    cr_expect(system(command) == 0);
}
TestSuite(snapshots, .init = make_folder, .fini = remove_folder);

static void rest(long ms) {
    struct timespec pause = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

/* --- a run of several tables, all clocks summed --- */

enum { ROWS = 501, WIDTH = 5, KEYS = 400, SAVED = 3, LAST = 8, DENSE = ROWS * WIDTH };

typedef struct tables {
    weft_table *dense, *sparse, *rule;
    uint64_t    keys[KEYS];
    float       values[DENSE], gradient[DENSE], half[DENSE];
    int64_t     counts[KEYS];
} tables;

/* values += update, weighted by how often the row has been updated: its state and count matter. */
static weft_status decay(void *context, const weft_row *row) {
    (void)context;
    for (int64_t i = 0; i < row->width; i++) {
        float *state = (float *)row->states[0] + i;
        *state += ((const float *)row->update)[i];
        ((float *)row->values)[i] += *state / (float)(1 + row->updates);
    }
    return WEFT_OK;
}
static const weft_table_function functions[] = {{"decay", 1, decay, NULL}};

static weft_status create(serving *self, tables *t) {
    for (int i = 0; i < KEYS; i++) t->keys[i] = (uint64_t)i * 1000003 + 17;
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "dense", .rows = ROWS, .width = WIDTH, .start = WEFT_START_NORMAL, .high = 1,
                                .rule = {.kind = WEFT_TABLE_SOLVER, .solver = weft_adam(0.01)}}, &t->dense));
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "sparse", .sparse = true, .dtype = WEFT_I64}, &t->sparse));
    return weft_table_create(self->server, &(weft_table_options){.name = "rule", .sparse = true, .rows = 1 << 20, .split = WEFT_SPLIT_RANGE, .width = WIDTH,
                             .dtype = WEFT_BF16, .rule = {.kind = WEFT_TABLE_USER, .function = "decay"}}, &t->rule);
}

static void release(tables *t) {
    weft_table_release(t->dense);
    weft_table_release(t->sparse);
    weft_table_release(t->rule);
}

static uint16_t bf16_of(int value) { /* small whole numbers */
    float    f = (float)value;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return (uint16_t)(bits >> 16);
}

/* One clock: whoever trains gives something of its own. */
static weft_status train(serving *self, tables *t, int clock) {
    uint64_t rows[20];
    uint16_t updates[20 * WIDTH];
    int64_t  ones[KEYS];
    for (int i = 0; i < DENSE; i++) t->gradient[i] = (float)((i * 7 + clock * 3 + self->rank * 5) % 11) - 5;
    for (int i = 0; i < 20; i++) rows[i] = (uint64_t)(i * 50000 + clock * 13 + self->rank);
    for (int i = 0; i < 20 * WIDTH; i++) updates[i] = bf16_of(i % 9 + clock);
    for (int i = 0; i < KEYS; i++) ones[i] = 1 + self->rank;
    WEFTI_TRY(weft_table_push(t->dense, NULL, t->gradient));
    WEFTI_TRY(weft_table_clock(t->dense));
    WEFTI_TRY(weft_table_call_rows(t->rule, WEFT_PUSH, rows, 20, updates, NULL));
    WEFTI_TRY(weft_table_clock(t->rule));
    WEFTI_TRY(weft_table_call_rows(t->sparse, WEFT_PUSH, t->keys, KEYS - clock, ones, NULL)); /* some keys come late, or not before the snapshot */
    return weft_table_clock(t->sparse);
}

typedef struct contents {
    float    dense[DENSE];
    int64_t  sparse[KEYS];
    uint16_t rule[400 * WIDTH];
} contents;

static weft_status look(tables *t, contents *c) {
    uint64_t rows[400];
    int      n = 0;
    for (int i = 0; i < 20; i++)
        for (int d = 0; d < 20; d++) rows[n++] = (uint64_t)(i * 50000 + d * 6);
    WEFTI_TRY(weft_table_pull(t->dense, NULL, c->dense));
    WEFTI_TRY(weft_table_call_rows(t->sparse, WEFT_PULL, t->keys, KEYS, NULL, c->sparse));
    return weft_table_call_rows(t->rule, WEFT_PULL, rows, n, NULL, c->rule);
}

static weft_status keep(const char *name, const contents *c) {
    FILE *file = fopen(name, "wb");
    EXPECT(file && fwrite(c, sizeof *c, 1, file) == 1 && fclose(file) == 0, "%s", name);
    return WEFT_OK;
}

static weft_status recall(const char *name, contents *c) {
    FILE *file = fopen(name, "rb");
    EXPECT(file && fread(c, sizeof *c, 1, file) == 1 && fclose(file) == 0, "%s", name);
    return WEFT_OK;
}

static int32_t dies = -1; /* a server, in the clock before */

/* Saves in a clock in the middle, goes on, and waits at the end. */
static weft_status save_in_the_middle(serving *self) {
    tables       *t = calloc(1, sizeof *t);
    contents     *c = calloc(1, sizeof *c);
    weft_request *saving = NULL;
    WEFTI_TRY(create(self, t));
    for (int clock = 0; clock < LAST; clock++) {
        if (clock == SAVED - 1 && dies >= 0 && self->rank == 0) kill(self->all->children[dies], SIGKILL);
        if (clock == SAVED && dies >= 0) WEFTI_TRY(weft_server_save(self->server, path));
        if (clock == SAVED && dies < 0) WEFTI_TRY(weft_server_start_save(self->server, path, 0, &saving));
        if (clock == SAVED && dies < 0) REFUSED(weft_server_start_save(self->server, path, 0, &(weft_request *){NULL}), WEFT_E_STATE, "wait for it first");
        if (clock == SAVED + 1 && self->rank == 0) rest(20);
        WEFTI_TRY(train(self, t, clock));
    }
    WEFTI_TRY(look(t, c));
    if (saving) WEFTI_TRY(weft_request_wait(saving, 0));
    if (self->rank == 0) WEFTI_TRY(keep(other, c));
    release(t);
    free(t);
    free(c);
    return WEFT_OK;
}

/* A new run from there: the same workers do what was done after the snapshot, and end with the same bits. */
static weft_status go_on(serving *self) {
    tables   *t = calloc(1, sizeof *t);
    contents *c = calloc(2, sizeof *c);
    WEFTI_TRY(create(self, t));
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 0) WEFTI_TRY(weft_server_load(self->server, path));
    WEFTI_TRY(serving_meet(self));
    for (int clock = SAVED; clock < LAST; clock++) WEFTI_TRY(train(self, t, clock));
    WEFTI_TRY(look(t, &c[0]));
    WEFTI_TRY(recall(other, &c[1]));
    EXPECT(memcmp(c[0].dense, c[1].dense, sizeof c->dense) == 0, "Adam's table");
    EXPECT(memcmp(c[0].sparse, c[1].sparse, sizeof c->sparse) == 0, "the counts");
    EXPECT(memcmp(c[0].rule, c[1].rule, sizeof c->rule) == 0, "the rule of one's own");
    EXPECT(c[1].sparse[0] == LAST * self->workers * (self->workers + 1) / 2, "%lld", (long long)c[1].sparse[0]);
    release(t);
    free(t);
    free(c);
    return WEFT_OK;
}

static weft_server_options with(weft_server_options options) {
    options.functions = functions;
    options.function_count = 1;
    return options;
}

static void round_trip(const char *wire, int32_t size, weft_server_options saving, int32_t size_after, weft_server_options loading) {
    saving = with(saving);
    loading = with(loading);
    ranks_free(serve_case_with(wire, size, &saving, save_in_the_middle, dies < 0 ? 0 : 1u << dies));
    cr_expect_eq(count_files("state"), 1 + (saving.servers ? saving.servers : size), "%d files", count_files("state"));
    serve_case(wire, size_after, &loading, go_on);
}
Test(snapshots, same_servers) { round_trip("shm", 2, beside, 2, beside); }
Test(snapshots, fewer_servers) { round_trip("shm", 4, two_apart, 3, one_apart); }
Test(snapshots, more_servers) { round_trip("tcp", 3, one_apart, 4, two_apart); }
/* Who has the dead server's rows saves them; the first server writes the manifest, too. Into servers of which one has died it comes back as well. */
Test(snapshots, where_a_server_has_died) {
    weft_server_options replicated = two_apart;
    replicated.replicas = 1;
    dies = 3;
    round_trip("shm", 4, replicated, 3, one_apart);
}
Test(snapshots, where_the_first_server_has_died) {
    weft_server_options replicated = two_apart;
    replicated.replicas = 1;
    dies = 2;
    round_trip("tcp", 4, replicated, 4, replicated);
}
Test(snapshots, without_thread) { round_trip("shm", 2, no_thread, 2, beside); }

/* --- tables whose pushes count at once --- */

enum { STEPS = 12, AT = 5, WIDE = 3000 };

/* Each worker at its own pace; those that are before the others when they save must not have what they push afterwards in it. */
static weft_status stale(serving *self, int32_t staleness) {
    weft_table   *table = NULL;
    weft_request *saving = NULL;
    int64_t      *ones = malloc(WIDE * sizeof *ones), *got = malloc(WIDE * sizeof *got);
    for (int i = 0; i < WIDE; i++) ones[i] = 1;
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "steps", .rows = WIDE, .dtype = WEFT_I64, .staleness = staleness}, &table));
    for (int step = 0; step < STEPS; step++) {
        if (step == AT) WEFTI_TRY(weft_server_start_save(self->server, path, 0, &saving));
        if (step == AT - 1 && self->rank == 0) rest(100); /* the others have asked, and push on */
        WEFTI_TRY(weft_table_push(table, NULL, ones));
        WEFTI_TRY(weft_table_clock(table));
        if (step % 3 == 0) WEFTI_TRY(weft_table_pull(table, NULL, got));
    }
    WEFTI_TRY(weft_request_wait(saving, 0));
    WEFTI_TRY(serving_meet(self));
    WEFTI_TRY(weft_table_pull(table, NULL, got));
    for (int i = 0; i < WIDE; i++) EXPECT(got[i] == STEPS * self->workers, "row %d: %lld", i, (long long)got[i]);
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 0) {
        WEFTI_TRY(weft_server_load(self->server, path));
        WEFTI_TRY(weft_table_pull(table, NULL, got));
        for (int i = 0; i < WIDE; i++) EXPECT(got[i] == AT * self->workers, "row %d: %lld in the snapshot, not %d", i, (long long)got[i], (int)(AT * self->workers));
    }
    WEFTI_TRY(serving_meet(self));
    weft_table_release(table);
    free(ones);
    free(got);
    return WEFT_OK;
}
static weft_status bounded(serving *self) { return stale(self, 3); }
static weft_status asynchronous(serving *self) { return stale(self, WEFT_TABLE_ASYNCHRONOUS); }
Test(snapshots, bounded_staleness) { serve_case("shm", 3, &beside, bounded); }
Test(snapshots, asynchronous) { serve_case("tcp", 4, &two_apart, asynchronous); }

/* A worker that dies before it has asked is not waited for; what it pushed counts. */
static weft_status with_a_death(serving *self) {
    weft_table *table = NULL;
    int64_t     one = 1, got = 0;
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "one", .rows = 1, .dtype = WEFT_I64, .staleness = WEFT_TABLE_ASYNCHRONOUS}, &table));
    WEFTI_TRY(weft_table_push(table, NULL, &one));
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 1) kill(getpid(), SIGKILL);
    uint64_t begin_ns = ranks_now();
    WEFTI_TRY(weft_server_save(self->server, path));
    EXPECT(ranks_now() - begin_ns < 5 * (uint64_t)WEFTI_SECOND_NS, "%llu ns", (unsigned long long)(ranks_now() - begin_ns));
    if (self->rank == 0) {
        WEFTI_TRY(weft_server_load(self->server, path));
        WEFTI_TRY(weft_table_pull(table, NULL, &got));
        EXPECT(got == 3, "%lld", (long long)got);
    }
    weft_table_release(table);
    return WEFT_OK;
}
Test(snapshots, a_worker_dies) { ranks_free(serve_case_with("tcp", 4, &one_apart, with_a_death, 1 << 1)); }

/* With backup workers each server saves what it has, though one of them is late. */
static weft_status with_spares(serving *self) {
    weft_table *table = NULL;
    int64_t     one = 1, got = 0;
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "spare", .rows = 1, .dtype = WEFT_I64, .spares = 1}, &table));
    for (int clock = 0; clock < 5 && self->rank < 2; clock++) WEFTI_TRY(weft_table_push_pull(table, NULL, &one, &got));
    EXPECT(self->rank == 2 || got == 10, "%lld", (long long)got);
    WEFTI_TRY(serving_meet(self)); /* the third is in clock 0 still */
    WEFTI_TRY(weft_server_save(self->server, path));
    for (int clock = 0; clock < 2 && self->rank < 2; clock++) WEFTI_TRY(weft_table_push_pull(table, NULL, &one, &got));
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 2) {
        WEFTI_TRY(weft_server_load(self->server, path));
        WEFTI_TRY(weft_table_push_pull(table, NULL, &one, &got)); /* late: dropped */
        EXPECT(got == 10, "%lld", (long long)got);
    }
    WEFTI_TRY(serving_meet(self));
    weft_table_release(table);
    return WEFT_OK;
}
Test(snapshots, with_backup_workers) { serve_case("shm", 4, &one_apart, with_spares); }

/* --- what goes wrong --- */

static weft_status set_all(weft_table *table, int64_t value) {
    int64_t all[64];
    for (int i = 0; i < 64; i++) all[i] = value;
    weft_request *request = NULL;
    WEFTI_TRY(weft_table_start_call(table, &(weft_table_call){.kind = WEFT_SET, .send = all}, &request));
    return weft_request_wait(request, 0);
}

static weft_status expect_all(weft_table *table, int64_t value) {
    int64_t all[64];
    WEFTI_TRY(weft_table_pull(table, NULL, all));
    for (int i = 0; i < 64; i++) EXPECT(all[i] == value, "row %d: %lld, not %lld", i, (long long)all[i], (long long)value);
    return WEFT_OK;
}

static weft_status create_small(serving *self, weft_table **table_out) {
    return weft_table_create(self->server, &(weft_table_options){.name = "small", .rows = 64, .dtype = WEFT_I64, .staleness = WEFT_TABLE_ASYNCHRONOUS}, table_out);
}

/* A limit on the size of files is what a full disk looks like from inside. Rank 1's share does not fit; rank 0's does, and is not left behind. */
static weft_status full_disk(serving *self) {
    weft_table   *table = NULL;
    struct rlimit before, small = {100, RLIM_INFINITY};
    signal(SIGXFSZ, SIG_IGN);
    WEFTI_TRY(create_small(self, &table));
    if (self->rank == 0) WEFTI_TRY(set_all(table, 7));
    WEFTI_TRY(serving_meet(self));
    WEFTI_TRY(weft_server_save(self->server, path));
    if (self->rank == 0) WEFTI_TRY(set_all(table, 8));
    if (self->rank == 1) EXPECT(getrlimit(RLIMIT_FSIZE, &before) == 0 && setrlimit(RLIMIT_FSIZE, &small) == 0, "the limit");
    WEFTI_TRY(serving_meet(self));
    REFUSED(weft_server_save(self->server, path), WEFT_E_IO, "state");
    EXPECT(strstr(weft_error_message(), "rank 1"), "%.300s", weft_error_message());
    WEFTI_TRY(serving_meet(self));
    EXPECT(count_files("state") == 3, "%d files are left", count_files("state"));
    if (self->rank == 0) {
        WEFTI_TRY(expect_all(table, 8));
        WEFTI_TRY(weft_server_load(self->server, path));
        WEFTI_TRY(expect_all(table, 7));
        WEFTI_TRY(set_all(table, 9));
    }
    if (self->rank == 1) EXPECT(setrlimit(RLIMIT_FSIZE, &before) == 0, "the limit");
    WEFTI_TRY(serving_meet(self));
    WEFTI_TRY(weft_server_save(self->server, path));
    EXPECT(count_files("state") == 3, "%d files are left", count_files("state"));
    weft_table_release(table);
    return WEFT_OK;
}
Test(snapshots, full_disk_leaves_the_one_before) { serve_case("shm", 2, &beside, full_disk); }

static weft_status refusals(serving *self) {
    weft_table *table = NULL, *more = NULL;
    char        name[160];
    WEFTI_TRY(create_small(self, &table));
    WEFTI_TRY(serving_meet(self));
    snprintf(name, sizeof name, "%s/no/folder", folder);
    REFUSED(weft_server_save(self->server, name), WEFT_E_NOT_FOUND, "no/folder");
    REFUSED(weft_server_save(self->server, ""), WEFT_E_INVALID, "no path of a file");
    REFUSED(weft_server_save(self->server, NULL), WEFT_E_INVALID, "path is NULL");
    REFUSED(weft_server_start_save(self->server, path, -1, &(weft_request *){NULL}), WEFT_E_INVALID, "timeout_ns");
    WEFTI_TRY(serving_meet(self));
    snprintf(name, sizeof name, "%s/of_rank_%d", folder, (int)self->rank);
    weft_status status = weft_server_save(self->server, name);
    EXPECT(status == WEFT_E_MISMATCH || status == WEFT_E_TIMEOUT, "%s: %.200s", weft_status_name(status), weft_error_message());
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 0) {
        snprintf(name, sizeof name, "%s/nothing", folder);
        REFUSED(weft_server_load(self->server, name), WEFT_E_NOT_FOUND, "nothing");
        FILE *file = fopen(name, "w");
        EXPECT(file && fputs("not this", file) >= 0 && fclose(file) == 0, "%s", name);
        REFUSED(weft_server_load(self->server, name), WEFT_E_CORRUPT, "nothing");
    }
    WEFTI_TRY(serving_meet(self));
    WEFTI_TRY(weft_server_save(self->server, path));
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "more", .rows = 3}, &more));
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 0) REFUSED(weft_server_load(self->server, path), WEFT_E_NOT_FOUND, "there is no table 'more'");
    float update[3] = {1, 2, 3};
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 1) WEFTI_TRY(weft_table_push(more, NULL, update));
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 0) REFUSED(weft_server_load(self->server, path), WEFT_E_STATE, "between clocks");
    WEFTI_TRY(serving_meet(self));
    weft_table_release(table);
    weft_table_release(more);
    return WEFT_OK;
}
Test(snapshots, refusals) {
    weft_server_options options = {.timeout_ns = 2 * (int64_t)WEFTI_SECOND_NS};
    serve_case("shm", 2, &options, refusals);
}

/* Clocks that differ: each worker is told, and the run goes on. */
static weft_status other_clocks(serving *self) {
    weft_table *table = NULL;
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "clocks", .rows = 4}, &table));
    if (self->rank == 0) WEFTI_TRY(weft_table_clock(table));
    char        text[WEFTI_MESSAGE_BYTES];
    weft_status status = weft_server_save(self->server, path);
    snprintf(text, sizeof text, "%s", weft_error_message());
    if (self->rank == 1) WEFTI_TRY(weft_table_clock(table));
    WEFTI_TRY(serving_meet(self));
    float values[4];
    WEFTI_TRY(weft_table_pull(table, NULL, values));
    weft_table_release(table);
    if (status == WEFT_OK) return WEFT_OK; /* it asked first, and had nothing to wait for */
    EXPECT(status == WEFT_E_MISMATCH && strstr(text, "in the same clock"), "%s: %.300s", weft_status_name(status), text);
    atomic_fetch_add(&self->all->step, 1);
    return WEFT_OK;
}
Test(snapshots, clocks_that_differ) {
    ranks *all = serve_case_with("shm", 2, &beside, other_clocks, 0);
    cr_expect_geq(atomic_load(&all->step), 1);
    ranks_free(all);
}

/* One has saved, and another one asks for the same in another clock: it is refused, and what was saved stays whole. */
static weft_status refused_later(serving *self) {
    weft_table *table = NULL;
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "clocks", .rows = 4}, &table));
    if (self->rank == 0) WEFTI_TRY(weft_table_clock(table));
    if (self->rank == 1) WEFTI_TRY(weft_server_save(self->server, path)); /* there is nothing to wait for */
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 0) REFUSED(weft_server_save(self->server, path), WEFT_E_MISMATCH, "in the same clock");
    WEFTI_TRY(serving_meet(self));
    weft_snapshot *snapshot = NULL;
    WEFTI_TRY(weft_snapshot_open(path, &snapshot));
    weft_snapshot_release(snapshot);
    if (self->rank == 1) WEFTI_TRY(weft_table_clock(table));
    WEFTI_TRY(serving_meet(self));
    weft_table_release(table);
    return WEFT_OK;
}
Test(snapshots, one_that_is_refused_leaves_the_others) { serve_case("shm", 2, &beside, refused_later); }

static weft_status other_kinds(serving *self) {
    weft_table *table = NULL;
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "small", .rows = 65, .dtype = WEFT_I64, .staleness = WEFT_TABLE_ASYNCHRONOUS}, &table));
    REFUSED(weft_server_load(self->server, path), WEFT_E_MISMATCH, "rows as 64 in the snapshot and 65 here");
    weft_table_release(table);
    return WEFT_OK;
}
static weft_status other_dtypes(serving *self) {
    weft_table *table = NULL;
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "small", .rows = 64, .dtype = WEFT_F32, .staleness = 4}, &table));
    REFUSED(weft_server_load(self->server, path), WEFT_E_MISMATCH, "of i64 in the snapshot and of f32 here");
    weft_table_release(table);
    return WEFT_OK;
}
static weft_status save_small(serving *self) {
    weft_table *table = NULL;
    WEFTI_TRY(create_small(self, &table));
    WEFTI_TRY(set_all(table, 5));
    WEFTI_TRY(weft_server_save(self->server, path));
    weft_table_release(table);
    return WEFT_OK;
}
static weft_status load_damaged(serving *self) {
    weft_table *table = NULL;
    WEFTI_TRY(create_small(self, &table));
    WEFTI_TRY(set_all(table, 6));
    REFUSED(weft_server_load(self->server, path), WEFT_E_CORRUPT, "loading the snapshot");
    WEFTI_TRY(expect_all(table, 6));
    weft_table_release(table);
    return WEFT_OK;
}

/* Some byte of the second server's values. */
static void damage_a_share(void) {
    DIR *list = opendir(folder);
    char name[400];
    for (struct dirent *entry; list && (entry = readdir(list));) {
        if (!strstr(entry->d_name, ".1-of-2")) continue;
        snprintf(name, sizeof name, "%s/%s", folder, entry->d_name);
        FILE *file = fopen(name, "r+b");
        cr_assert(file && fseek(file, -9, SEEK_END) == 0 && fputc(77, file) == 77 && fclose(file) == 0);
    }
    if (list) closedir(list);
}
Test(snapshots, tables_of_another_kind) {
    serve_case("shm", 1, NULL, save_small);
    serve_case("shm", 1, NULL, other_kinds);
    serve_case("shm", 1, NULL, other_dtypes);
}
Test(snapshots, damaged_share_changes_no_server) {
    serve_case("shm", 3, &two_apart, save_small);
    damage_a_share();
    serve_case("shm", 3, &two_apart, load_damaged);
}

/* --- two loads at once --- */

static void *load_beside(void *context) {
    weft_status *status = calloc(1, sizeof *status);
    *status = weft_server_load(context, path);
    return status;
}
/* Of one rank's two threads: one of them loads at least, and what is refused to the other does not take away what the first has read. */
static weft_status load_twice(serving *self) {
    weft_table *table = NULL;
    WEFTI_TRY(create_small(self, &table));
    WEFTI_TRY(set_all(table, 5));
    WEFTI_TRY(weft_server_save(self->server, path));
    for (int i = 0; i < 30; i++) {
        pthread_t thread;
        void     *result = NULL;
        WEFTI_TRY(set_all(table, 6));
        EXPECT(pthread_create(&thread, NULL, load_beside, self->server) == 0, "no thread");
        weft_status mine = weft_server_load(self->server, path);
        pthread_join(thread, &result);
        weft_status theirs = *(weft_status *)result;
        free(result);
        EXPECT((mine == WEFT_OK || mine == WEFT_E_STATE) && (theirs == WEFT_OK || theirs == WEFT_E_STATE), "%s, %s", weft_status_name(mine), weft_status_name(theirs));
        EXPECT(mine == WEFT_OK || theirs == WEFT_OK, "neither loads");
        WEFTI_TRY(expect_all(table, 5));
    }
    weft_table_release(table);
    return WEFT_OK;
}
Test(snapshots, two_loads_of_one_rank) { serve_case("shm", 3, &two_apart, load_twice); }

/* --- shares that are not what is loaded --- */

static weft_status create_keyed(serving *self, weft_table_split split, weft_table **table_out) {
    return weft_table_create(self->server, &(weft_table_options){.name = "keyed", .sparse = true, .rows = 1000, .split = split, .dtype = WEFT_I64,
                             .staleness = WEFT_TABLE_ASYNCHRONOUS}, table_out);
}
static weft_status save_keyed(serving *self) {
    weft_table *table = NULL;
    uint64_t    rows[64];
    int64_t     values[64];
    for (int i = 0; i < 64; i++) {
        rows[i] = (uint64_t)i * 15;
        values[i] = i;
    }
    WEFTI_TRY(create_keyed(self, WEFT_SPLIT_HASH, &table));
    WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, rows, 64, values, NULL));
    WEFTI_TRY(weft_server_save(self->server, path));
    weft_table_release(table);
    return WEFT_OK;
}
static weft_status load_by_ranges(serving *self) {
    weft_table *table = NULL;
    WEFTI_TRY(create_keyed(self, WEFT_SPLIT_RANGE, &table));
    REFUSED(weft_server_load(self->server, path), WEFT_E_MISMATCH, "with the .split that it was saved with");
    weft_table_release(table);
    return WEFT_OK;
}
static weft_status load_doubled(serving *self) {
    weft_table *table = NULL;
    WEFTI_TRY(create_keyed(self, WEFT_SPLIT_HASH, &table));
    REFUSED(weft_server_load(self->server, path), WEFT_E_CORRUPT, "is share 0 of 2, and the manifest names it as share 1 of 2");
    weft_table_release(table);
    return WEFT_OK;
}
Test(snapshots, no_row_is_lost_to_another_split) {
    serve_case("shm", 3, &two_apart, save_keyed);
    serve_case("shm", 3, &two_apart, load_by_ranges);
}
/* The first server's share in place of the second's, too: its checksums are right, and a sparse table does not know how many rows it had. */
Test(snapshots, a_share_in_anothers_place_is_refused) {
    char command[256];
    serve_case("shm", 3, &two_apart, save_keyed);
    snprintf(command, sizeof command, "cd %s && cp *.0-of-2 first && cp first *.1-of-2", folder);
    cr_assert(system(command) == 0);
    serve_case("shm", 2, &one_apart, load_doubled);
    serve_case("shm", 3, &two_apart, load_doubled);
}

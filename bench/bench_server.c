/* The parameter server: dense and sparse pushes and pulls, the small round trip, and what key sets save.
 *
 * The last ranks serve, in weft_server_serve as a program's do; the others are workers. Limits are had in turns with the windows, by the same
 * processes: those that serve have a second thread for that, which sleeps while Weft is timed. Everything is verified before it is timed. */
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"
#include "ranks.h"
#include "weft.h"

enum { WIDTH = 64 }; /* of sparse rows */

/* What all ranks see. */
typedef struct server_shared {
    _Atomic int arrived, generation;
    double      seconds[BENCH_MOST_RANKS];
    int64_t     count;
    char        store[64];
} server_shared;

typedef struct server_options {
    const char *wire, *json_path, *only;
    double windows, seconds, workers, servers, rows, keys;
    bench_sizes sizes;
    bool foreign, no_limit;
    FILE *json;
    server_shared *shared;
} server_options;

/* A worker, or what takes a server's place in limits. */
typedef struct party {
    bench_rank *rank;
    const server_options *options;
    weft_server *server;
    bool works;
    uint8_t *memory; /* [3][most]: what is sent, what is received, and room for limits */
    size_t most;
} party;

typedef enum traffic { TO_SERVER = 1, FROM_SERVER = 2 } traffic;

/* What is timed: one call, over and over. */
typedef struct test {
    const char *name;
    weft_request_kind kind;
    int way;      /* traffic */
    size_t bytes; /* of values, one way */
    bool small;   /* a round trip: the limit is an answer, not a bandwidth */
    weft_table *table;
    weft_keys *keys;
    const uint64_t *rows; /* a list that is sent along, where keys is NULL */
    int64_t row_count;
} test;

/* --- meeting without spinning --- */

static void gather(const party *p) {
    server_shared *shared = p->options->shared;
    int generation = atomic_load(&shared->generation);
    if (atomic_fetch_add(&shared->arrived, 1) + 1 == p->rank->size) {
        atomic_store(&shared->arrived, 0);
        atomic_fetch_add(&shared->generation, 1);
        syscall(SYS_futex, &shared->generation, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
        return;
    }
    while (atomic_load(&shared->generation) == generation) {
        struct timespec limit = {0, 100 * 1000 * 1000};
        if (atomic_load(&p->rank->shared->failed)) _exit(1);
        syscall(SYS_futex, &shared->generation, FUTEX_WAIT, generation, &limit, NULL, 0);
    }
}

/* --- windows --- */

static void call_once(const party *p, const test *t) {
    uint8_t *send = p->memory, *receive = p->memory + p->most;
    if (t->rows) BENCH_TRY(p->rank, weft_table_call_rows(t->table, t->kind, t->rows, t->row_count, send, receive));
    else if (t->kind == WEFT_PUSH) BENCH_TRY(p->rank, weft_table_push(t->table, t->keys, send));
    else if (t->kind == WEFT_PULL) BENCH_TRY(p->rank, weft_table_pull(t->table, t->keys, receive));
    else BENCH_TRY(p->rank, weft_table_push_pull(t->table, t->keys, send, receive));
}

/* Seconds a call, by the slowest worker. */
static double window(const party *p, const test *t, int64_t count) {
    server_shared *shared = p->options->shared;
    gather(p);
    double begin = bench_now_s(), slowest = 0;
    for (int64_t i = 0; p->works && i < count; i++) call_once(p, t);
    shared->seconds[p->rank->rank] = p->works ? (bench_now_s() - begin) / (double)count : 0;
    gather(p);
    for (int32_t i = 0; i < p->rank->size; i++) slowest = shared->seconds[i] > slowest ? shared->seconds[i] : slowest;
    return slowest;
}

/* The same between two processes without the parameter server; NAN where there is none. */
static double limit_window(const party *p, const test *t, int64_t count) {
    bool sockets = strcmp(p->rank->wire_name, "tcp") == 0;
    if (p->options->no_limit) return BENCH_UNMEASURED;
    gather(p);
    if (t->small && !sockets) return bench_ping_window(p->rank, t->bytes, count);
    if (sockets) {
        size_t there = t->way & TO_SERVER ? t->bytes : 8, back = t->way & FROM_SERVER ? t->bytes : 8;
        return bench_request_window(p->rank, p->memory + 2 * p->most, there, back, count);
    }
    return bench_copy_window(p->rank, p->memory + 2 * p->most, p->memory, t->bytes, count) * (t->way == 3 ? 2 : 1);
}

static int64_t agree(const party *p, int64_t count) {
    if (p->rank->rank == 0) p->options->shared->count = count;
    gather(p);
    count = p->options->shared->count;
    gather(p);
    return count;
}

/* --- reports --- */

static void print_head(const party *p) {
    if (p->rank->rank != 0) return;
    printf("# parameter server, wire %s, %d workers, %d servers, buffers %s; limit: %s; bound: max(M/B, nM/(kB))\n%-22s %8s %12s %9s %12s %12s %6s\n",
           p->rank->wire_name, (int)p->options->workers, (int)p->options->servers, p->options->foreign ? "foreign" : "of the server",
           strcmp(p->rank->wire_name, "tcp") == 0 ? "plain sockets that move the same bytes" : "copies of the same bytes by all of the ranks at once",
           "case", "size (B)", "time (us)", "GB/s", "limit (us)", "bound (us)", "share");
}

static void report(const party *p, const test *t, bench_spread seconds, double limit) {
    const server_options *o = p->options;
    double moved = (double)t->bytes * (t->way == 3 ? 2 : 1) / 1e9;
    double bound = limit * fmax(1, o->workers / o->servers); /* the limit is M/B */
    char size[16], what[96], extra[160], texts[2][32] = {"unmeasured", "unmeasured"};
    if (p->rank->rank != 0) return;
    if (!isnan(limit)) {
        snprintf(texts[0], sizeof texts[0], "%.2f", limit * 1e6);
        snprintf(texts[1], sizeof texts[1], "%.2f", bound * 1e6);
    }
    bench_size_text(t->bytes, size, sizeof size);
    printf("%-22s %8s %12.2f %9.3f %12s %12s %5.0f%%\n", t->name, size, seconds.median * 1e6, moved / seconds.median, texts[0], texts[1],
           isnan(limit) ? 0 : 100 * limit / seconds.median);
    fflush(stdout);
    snprintf(what, sizeof what, "%zu bytes, %s%s", t->bytes, t->name, o->foreign ? ", foreign" : "");
    snprintf(extra, sizeof extra, "\"wire\": \"%s\", \"workers\": %d, \"servers\": %d, \"bound\": %.6g", p->rank->wire_name, (int)o->workers,
             (int)o->servers, isnan(bound) ? 0 : bound * 1e6);
    bench_record record = {"server", what, "time", "us", bench_spread_times(seconds, 1e6), limit * 1e6, extra};
    bench_write(o->json, &record);
    if (t->small) return;
    record = (bench_record){"server", what, "busbw", "GB/s", bench_spread_over(seconds, moved), moved / limit, NULL};
    snprintf(extra, sizeof extra, "\"wire\": \"%s\", \"workers\": %d, \"servers\": %d, \"bound\": %.6g", p->rank->wire_name, (int)o->workers,
             (int)o->servers, isnan(bound) ? 0 : moved / bound);
    record.extra = extra;
    bench_write(o->json, &record);
}

static void measure(const party *p, const test *t) {
    if (p->options->only && !strstr(t->name, p->options->only)) return;
    double samples[BENCH_MOST_WINDOWS], limits[BENCH_MOST_WINDOWS];
    double one = window(p, t, 2), again = window(p, t, 2), wanted = p->options->seconds / fmin(one, again);
    int64_t count = agree(p, wanted < 1 ? 1 : wanted > 100000 ? 100000 : (int64_t)wanted);
    for (int w = 0; w < (int)p->options->windows; w++) {
        limits[w] = limit_window(p, t, count);
        samples[w] = window(p, t, count);
    }
    report(p, t, bench_spread_of(samples, (int)p->options->windows), bench_spread_of(limits, (int)p->options->windows).median);
}

/* --- verification --- */

static float input(int32_t rank, int64_t i) { return (float)((i + rank) % 7); }

/* Everyone pushes twice, and the sum is what a pull finds. */
static void verify(const party *p, const test *t, int64_t count) {
    const float *pulled = (const float *)(p->memory + p->most);
    if (p->works) {
        test push = *t, pull = *t;
        push.kind = WEFT_PUSH;
        pull.kind = WEFT_PULL;
        for (int64_t i = 0; i < count; i++) ((float *)p->memory)[i] = input(p->rank->rank, i);
        memset(p->memory + p->most, 0xff, (size_t)count * sizeof(float));
        call_once(p, &push);
        call_once(p, &push);
        gather(p);
        call_once(p, &pull);
        for (int64_t i = 0; i < count; i++) {
            float wanted = 0;
            for (int32_t rank = 0; rank < (int32_t)p->options->workers; rank++) wanted += 2 * input(rank, i);
            if (pulled[i] == wanted) continue;
            (void)wefti_fail(WEFT_E_INTERNAL, "element %lld of %lld is %g, not %g", (long long)i, (long long)count, pulled[i], wanted);
            bench_fail(p->rank, t->name);
        }
    } else {
        gather(p);
    }
    gather(p);
}

/* --- cases --- */

static void time_dense(const party *p, size_t bytes) {
    char name[32];
    snprintf(name, sizeof name, "dense %zu", bytes);
    weft_table_options what = {.name = name, .rows = (int64_t)(bytes / sizeof(float)), .dtype = WEFT_F32, .staleness = WEFT_TABLE_ASYNCHRONOUS};
    test t = {.name = "verification", .bytes = bytes};
    if (p->works) BENCH_TRY(p->rank, weft_table_create(p->server, &what, &t.table));
    verify(p, &t, what.rows);
    t = (test){.name = "dense push", .kind = WEFT_PUSH, .way = TO_SERVER, .bytes = bytes, .table = t.table};
    measure(p, &t);
    t = (test){.name = "dense pull", .kind = WEFT_PULL, .way = FROM_SERVER, .bytes = bytes, .table = t.table};
    measure(p, &t);
    t = (test){.name = "dense push-pull", .kind = WEFT_PUSH_PULL, .way = TO_SERVER | FROM_SERVER, .bytes = bytes, .table = t.table};
    measure(p, &t);
    if (p->works) weft_table_release(t.table);
}

static void time_round_trip(const party *p) {
    weft_table_options what = {.name = "round trip", .rows = 2, .dtype = WEFT_F32, .staleness = WEFT_TABLE_ASYNCHRONOUS};
    test t = {.name = "round trip", .kind = WEFT_PULL, .way = FROM_SERVER, .bytes = 8, .small = true};
    if (p->works) BENCH_TRY(p->rank, weft_table_create(p->server, &what, &t.table));
    verify(p, &t, what.rows);
    measure(p, &t);
    if (p->works) weft_table_release(t.table);
}

/* Ascending, and far apart: i times an odd number, the distance of keys that hash well. */
static uint64_t key_of(int64_t i) { return (uint64_t)i * 2654435761u + 1; }

static void time_sparse(const party *p, int64_t rows) {
    weft_table_options what = {.name = "sparse", .sparse = true, .width = WIDTH, .dtype = WEFT_F32, .staleness = WEFT_TABLE_ASYNCHRONOUS};
    size_t bytes = (size_t)rows * WIDTH * sizeof(float);
    test t = {.name = "verification", .bytes = bytes, .row_count = rows};
    uint64_t *list = malloc((size_t)rows * sizeof *list);
    for (int64_t i = 0; i < rows; i++) list[i] = key_of(i);
    if (p->works) {
        BENCH_TRY(p->rank, weft_table_create(p->server, &what, &t.table));
        BENCH_TRY(p->rank, weft_keys_create(t.table, list, rows, &t.keys));
    }
    verify(p, &t, rows * WIDTH);
    test with_set = t, with_list = t;
    with_list.rows = list;
    with_list.keys = NULL;
    for (int i = 0; i < 4; i++) {
        test now = i % 2 ? with_list : with_set;
        now.kind = i < 2 ? WEFT_PUSH : WEFT_PULL;
        now.way = i < 2 ? TO_SERVER : FROM_SERVER;
        now.name = (const char *[]){"sparse push", "sparse push, list", "sparse pull", "sparse pull, list"}[i];
        measure(p, &now);
    }
    if (p->works) weft_table_release(t.table);
    free(list);
}

/* Bytes that a push and a pull of single floats take, of both directions. */
static void count_bytes(const party *p, int64_t rows) {
    weft_table_options what = {.name = "floats", .sparse = true, .dtype = WEFT_F32, .staleness = WEFT_TABLE_ASYNCHRONOUS};
    test t = {.name = "verification", .row_count = rows};
    double taken[2];
    if (!p->works) {
        gather(p);
        gather(p);
        return;
    }
    uint64_t *list = malloc((size_t)rows * sizeof *list);
    for (int64_t i = 0; i < rows; i++) list[i] = key_of(i);
    BENCH_TRY(p->rank, weft_table_create(p->server, &what, &t.table));
    BENCH_TRY(p->rank, weft_keys_create(t.table, list, rows, &t.keys));
    verify(p, &t, rows);
    for (int with_set = 0; with_set < 2; with_set++) {
        weft_server_counts before, after;
        t.rows = with_set ? NULL : list;
        weft_server_count(p->server, &before);
        for (t.kind = WEFT_PUSH; t.kind <= WEFT_PULL; t.kind++) call_once(p, &t);
        weft_server_count(p->server, &after);
        taken[with_set] = (double)(after.sent_bytes - before.sent_bytes + after.received_bytes - before.received_bytes);
    }
    if (p->rank->rank == 0) {
        char text[96];
        snprintf(text, sizeof text, "\"wire\": \"%s\", \"without_key_set\": %.0f", p->rank->wire_name, taken[0]);
        printf("push and pull of %lld single floats: %.0f bytes with a list of keys, %.0f with a key set (%.2f)\n", (long long)rows, taken[0],
               taken[1], taken[1] / taken[0]);
        bench_record record = {"server", "single floats, push and pull, key set", "traffic", "B", {taken[1], taken[1], taken[1], 1}, BENCH_UNMEASURED, text};
        bench_write(p->options->json, &record);
    }
    weft_table_release(t.table);
    free(list);
}

/* --- ranks --- */

static void *run_script(void *context) {
    const party *p = context;
    print_head(p);
    time_round_trip(p);
    for (size_t bytes = p->options->sizes.first; bytes && bytes <= p->options->sizes.last; bytes *= 4) time_dense(p, bytes);
    if (p->options->rows >= 1) time_sparse(p, (int64_t)p->options->rows);
    if (p->options->keys >= 1) count_bytes(p, (int64_t)p->options->keys);
    return NULL;
}

static size_t most_bytes(const server_options *o) {
    size_t most = o->sizes.last, sparse = (size_t)o->rows * WIDTH * sizeof(float), keys = (size_t)o->keys * sizeof(float);
    most = most > sparse ? most : sparse;
    most = most > keys ? most : keys;
    return wefti_align_up(most > 4096 ? most : 4096, 4096);
}

static int body(bench_rank *rank) {
    const server_options *o = rank->argument;
    weft_world *world = NULL;
    party p = {.rank = rank, .options = o, .works = rank->rank < (int32_t)o->workers, .most = most_bytes(o)};
    weft_server_options roles = {.servers = (int32_t)o->servers, .dedicated = true};
    BENCH_TRY(rank, weft_world_create(&(weft_world_options){.rank = rank->rank, .size = rank->size, .store = o->shared->store, .wire = rank->wire_name,
                                                            .threads = {.count = 1}}, &world));
    BENCH_TRY(rank, weft_server_create(world, &roles, &p.server));
    if (o->foreign) p.memory = malloc(3 * p.most);
    else BENCH_TRY(rank, weft_server_alloc(p.server, 3 * p.most, (void **)&p.memory));
    if (!p.memory) bench_fail(rank, "out of memory");
    memset(p.memory, 0, 3 * p.most);
    if (p.works) {
        run_script(&p);
    } else {
        pthread_t other;
        if (pthread_create(&other, NULL, run_script, &p) != 0) bench_fail(rank, "pthread_create");
        BENCH_TRY(rank, weft_server_serve(p.server));
        pthread_join(other, NULL);
    }
    if (o->foreign) free(p.memory);
    else weft_server_free(p.server, p.memory);
    weft_server_release(p.server);
    weft_world_release(world);
    return 0;
}

int bench_server(int argc, char **argv) {
    server_options options = {.wire = "shm", .windows = 30, .seconds = 0.02, .workers = 1, .servers = 1, .rows = 1e6, .keys = 1e5,
                              .sizes = {4096, (size_t)64 << 20}};
    const bench_option list[] = {{"wire", "shm (default) or tcp, or another of processes", BENCH_TEXT, &options.wire},
                                 {"workers", "how many ranks work (1)", BENCH_NUMBER, &options.workers},
                                 {"servers", "how many ranks serve (1)", BENCH_NUMBER, &options.servers},
                                 {"sizes", "bytes of dense tables, by fours from the first to the last; 0: none", BENCH_SIZES, &options.sizes},
                                 {"rows", "of 64 floats in a sparse push (1e6); 0: none", BENCH_NUMBER, &options.rows},
                                 {"keys", "single floats whose traffic is counted (1e5); 0: none", BENCH_NUMBER, &options.keys},
                                 {"only", "only cases with these words in their names", BENCH_TEXT, &options.only},
                                 {"foreign", "buffers that are not of the server's memory", BENCH_FLAG, &options.foreign},
                                 {"no-limit", "do not measure the limit", BENCH_FLAG, &options.no_limit},
                                 {"windows", "timed windows a case (30)", BENCH_NUMBER, &options.windows},
                                 {"seconds", "length of a window (0.02)", BENCH_NUMBER, &options.seconds},
                                 {"json", "file for one JSON object a line", BENCH_TEXT, &options.json_path},
                                 {0}};
    bench_read_options(argc, argv, "Tables pushed to and pulled from ranks that serve.", list);
    if (!(options.windows >= 1 && options.windows <= BENCH_MOST_WINDOWS)) options.windows = 30;
    if (!(options.workers >= 1 && options.servers >= 1) || strcmp(options.wire, "inproc") == 0) {
        fprintf(stderr, "error: server: it takes a worker, a server, and a wire between processes\n");
        return 2;
    }
    options.shared = mmap(NULL, sizeof *options.shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (options.shared == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    int holder = bench_pick_store(options.shared->store);
    options.json = bench_open_json(options.json_path);
    int status = bench_run_ranks(options.wire, (int32_t)options.workers + (int32_t)options.servers, body, &options);
    if (options.json) fclose(options.json);
    close(holder);
    munmap(options.shared, sizeof *options.shared);
    return status;
}

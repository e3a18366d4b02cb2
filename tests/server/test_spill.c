/* Tables of which a server keeps a part in memory (weft_table_options.memory_bytes): ten times as large as that they have the bits of others, take no more
 * memory than was said, keep what is hot, come back from snapshots, and outlive a full disk and a server's death. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/effort.h"
#include "common/files.h"
#include "serving.h"
#include "words.h"

enum { SANITIZED = UNDER_ADDRESS_SANITIZER || UNDER_THREAD_SANITIZER }; /* many times slower, and with memory of its own */

static char folder[64];
static weft_server_options how = {.spill = folder};

static void make_folder(void) {
    snprintf(folder, sizeof folder, "%s/weft-spill-XXXXXX", temporary_root());
    cr_assert_not_null(mkdtemp(folder));
}
static void remove_folder(void) {
    cr_assert_eq(rmdir(folder), 0, "the folder is not empty"); /* files have no names */
}

/* Zipf's law: the r-th key as often as 1/r, of keys that are spread. */
typedef struct zipf {
    uint64_t random, keys;
    double   logarithm;
} zipf;
static uint64_t zipf_next(zipf *z) {
    double   u = (double)(words_next(&z->random) >> 11) * 0x1p-53;
    uint64_t rank = (uint64_t)exp(u * z->logarithm);
    return rank > z->keys ? z->keys - 1 : rank - 1;
}
static zipf zipf_of(uint64_t seed, uint64_t keys) { return (zipf){seed * UINT64_C(0x9e3779b97f4a7c15) + 1, keys, log((double)keys + 1)}; }

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}
/* `count` draws, sorted, each once. */
static int64_t draw_keys(zipf *z, int64_t count, uint64_t *keys) {
    int64_t unique = 0;
    for (int64_t i = 0; i < count; i++) keys[i] = zipf_next(z);
    qsort(keys, (size_t)count, sizeof *keys, by_value);
    for (int64_t i = 0; i < count; i++)
        if (i == 0 || keys[i] != keys[i - 1]) keys[unique++] = keys[i];
    return unique;
}

/* --- the same bits --- */

enum { KEYS = 1500, EACH = 200, TURNS = UNDER_THREAD_SANITIZER ? 4 : SANITIZED ? 12 : 30 };

static const weft_table_options kinds[] = {
    {.name = "adam", .sparse = true, .width = 24, .start = WEFT_START_NORMAL, .high = 1, .rule = {.kind = WEFT_TABLE_SOLVER, .solver = {.kind = WEFT_ADAM, .rate = 0.01}}},
    {.name = "counts", .sparse = true, .width = 1, .dtype = WEFT_I64},
    {.name = "halves", .rows = KEYS, .width = 40, .dtype = WEFT_BF16, .staleness = 2},
    {.name = "dense", .rows = KEYS, .width = 33, .start = WEFT_START_UNIFORM, .low = -1, .high = 1, .rule = {.kind = WEFT_TABLE_SOLVER, .solver = {.kind = WEFT_ADAGRAD, .rate = 0.1}}},
    {.name = "wide", .rows = KEYS, .width = 1500, .rule = {.kind = WEFT_TABLE_AVERAGE}},
    {.name = "topics", .rows = KEYS, .width = 500, .dtype = WEFT_I32, .hybrid = true, .staleness = 1},
    {.name = "hashes", .sparse = true, .width = 300, .hybrid = true},
};

static void draw_values(const weft_table_options *o, zipf *z, int64_t elements, uint8_t *out) {
    for (int64_t i = 0; i < elements; i++) {
        uint64_t random = words_next(&z->random);
        float    f32 = (float)(random >> 40) * 0x1p-20f - 8;
        int64_t  i64 = (int64_t)(random >> 50) - 5000;
        bool     zero = o->hybrid && random % 8;
        uint16_t half = (uint16_t)(0x3f00 + (random & 0x80ff));
        if (zero) f32 = 0, i64 = 0;
        const void *from = o->dtype == WEFT_BF16 ? (void *)&half : o->dtype == WEFT_F32 ? (void *)&f32 : (void *)&i64;
        memcpy(out + (size_t)i * weft_dtype_bytes(o->dtype), from, weft_dtype_bytes(o->dtype));
    }
}

static weft_status compare(serving *self, const weft_table_options *kind, size_t memory_bytes) {
    weft_table_options o = *kind;
    weft_table        *tables[2];
    char               name[32];
    const size_t       row = (size_t)o.width * weft_dtype_bytes(o.dtype);
    uint64_t           keys[EACH], all[KEYS];
    uint8_t           *send = malloc(KEYS * row), *got[2] = {malloc(KEYS * row), malloc(KEYS * row)};
    zipf               z = zipf_of((uint64_t)self->rank + 1, KEYS);
    weft_server_counts before, after;
    for (uint64_t i = 0; i < KEYS; i++) all[i] = i;
    snprintf(name, sizeof name, "%s, bounded", o.name);
    WEFTI_TRY(weft_table_create(self->server, &o, &tables[0]));
    o.name = name, o.memory_bytes = memory_bytes;
    weft_server_count(self->server, &before);
    WEFTI_TRY(weft_table_create(self->server, &o, &tables[1]));
    WEFTI_TRY(serving_meet(self));
    for (int turn = 0; turn < TURNS; turn++) {
        int64_t count = turn == 3 ? KEYS : draw_keys(&z, EACH, keys);
        draw_values(&o, &z, count * o.width, send);
        for (int k = 0; k < 2; k++) {
            const uint64_t *list = turn == 3 ? all : keys;
            WEFTI_TRY(weft_table_call_rows(tables[k], WEFT_PUSH, list, count, send, NULL));
            WEFTI_TRY(weft_table_clock(tables[k]));
            WEFTI_TRY(weft_table_call_rows(tables[k], WEFT_PULL, list, count, NULL, got[k]));
        }
        EXPECT(o.staleness != 0 || memcmp(got[0], got[1], (size_t)count * row) == 0, "%s, turn %d", o.name, turn);
    }
    WEFTI_TRY(serving_meet(self));
    for (int k = 0; k < 2; k++) WEFTI_TRY(weft_table_call_rows(tables[k], WEFT_PULL, all, KEYS, NULL, got[k]));
    EXPECT(self->workers > 1 && o.staleness != 0 && weft_dtype_is_float(o.dtype) ? true : memcmp(got[0], got[1], KEYS * row) == 0, "%s at the end", o.name);
    weft_server_count(self->server, &after);
    EXPECT(after.spill_loaded > before.spill_loaded && after.spill_written > before.spill_written, "%s was never on disk", o.name);
    weft_table_release(tables[0]);
    weft_table_release(tables[1]);
    free(send), free(got[0]), free(got[1]);
    return serving_meet(self);
}

static weft_status compare_all(serving *self) {
    for (size_t i = 0; i < WEFTI_COUNT(kinds); i++) WEFTI_TRY(compare(self, &kinds[i], 8000));
    return WEFT_OK;
}
Test(spill, the_bits_of_tables_in_memory_alone) {
    if (UNDER_THREAD_SANITIZER) return; /* which looks at threads: those of two ranks do */
    make_folder();
    serve_case("shm", 1, &how, compare_all);
    remove_folder();
}
Test(spill, the_bits_of_tables_in_memory_tcp) {
    make_folder();
    serve_case("tcp", 2, &how, compare_all);
    remove_folder();
}

/* --- memory, and what stays in it --- */

/* Ten times the bound, by Zipf's law: memory is held as was said, by the library's count and by the system's, and what is hot is found there. */
static weft_status bounded(serving *self, bool hybrid) {
    enum { N = SANITIZED ? 6000 : 30000, WIDTH = 256, PUSHED = 500 };
    const size_t       total = (size_t)N * WIDTH * sizeof(float) * (hybrid ? 1 : 2), bound = total / 10;
    weft_table        *table = NULL;
    weft_server_counts counts, warm;
    uint64_t           keys[PUSHED], most = 0, before, resident = 0;
    float             *send = calloc(PUSHED * WIDTH, sizeof *send), *got = malloc(PUSHED * WIDTH * sizeof *got);
    zipf               z = zipf_of(7, N);
    for (uint64_t i = 0; i < PUSHED; i++) keys[i] = i;
    for (int turn = 0; turn < 2; turn++) { /* requests have their buffers before anything is measured */
        WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "buffers", .sparse = true, .width = WIDTH, .staleness = WEFT_TABLE_ASYNCHRONOUS}, &table));
        WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, keys, PUSHED, send, NULL));
        WEFTI_TRY(weft_table_call_rows(table, WEFT_PULL, keys, PUSHED, NULL, got));
        weft_table_release(table);
    }
    weft_server_count(self->server, &counts);
    const uint64_t other = counts.held_bytes;
    before = words_resident_bytes();
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "z", .sparse = true, .width = WIDTH, .memory_bytes = bound, .hybrid = hybrid,
                                .staleness = WEFT_TABLE_ASYNCHRONOUS, .rule = {.kind = hybrid ? WEFT_TABLE_ADD : WEFT_TABLE_SOLVER, .solver = weft_adagrad(0.1)}}, &table));
    for (int i = 0; i < PUSHED * WIDTH; i++) send[i] = (float)(i % 7) + 1;
    for (uint64_t first = 0; first < N; first += PUSHED) { /* all rows, once */
        for (uint64_t i = 0; i < PUSHED; i++) keys[i] = first + i;
        WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, keys, PUSHED, send, NULL));
        weft_server_count(self->server, &counts);
        if (counts.held_bytes - other > most) most = counts.held_bytes - other;
        if (words_resident_bytes() > before + resident) resident = words_resident_bytes() - before;
    }
    weft_server_count(self->server, &warm);
    EXPECT(warm.spilled_bytes > 8 * total / 10, "%llu of %zu bytes are on disk", (unsigned long long)warm.spilled_bytes, total);
    uint64_t asked = 0;
    for (int turn = 0; turn < (SANITIZED ? 60 : 200); turn++) {
        int64_t count = draw_keys(&z, PUSHED, keys);
        asked += (uint64_t)count * 2;
        WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, keys, count, send, NULL));
        WEFTI_TRY(weft_table_call_rows(table, WEFT_PULL, keys, count, NULL, got));
        weft_server_count(self->server, &counts);
        if (counts.held_bytes - other > most) most = counts.held_bytes - other;
        if (words_resident_bytes() > before + resident) resident = words_resident_bytes() - before;
    }
    const size_t finds = (size_t)N * (48 + 96 + 36) + 16384; /* the index, slabs and pieces, each with room to grow; a row on its way */
    double       rate = 1 - (double)(counts.spill_loaded - warm.spill_loaded) / (double)asked;
    fprintf(stderr, "  %s: %zu bytes with a bound of %zu: %llu were held at most, %llu resident more than before; %.3f of rows were in memory, %llu read, %llu written\n",
            hybrid ? "hybrid" : "adagrad", total, bound, (unsigned long long)most, (unsigned long long)resident, rate,
            (unsigned long long)(counts.spill_loaded - warm.spill_loaded), (unsigned long long)(counts.spill_written - warm.spill_written));
    EXPECT(most <= bound + finds, "%llu bytes held of %zu and %zu for finding them", (unsigned long long)most, bound, finds);
    if (!SANITIZED) EXPECT(resident <= bound + 2 * finds + (2 << 20), "%llu bytes are resident", (unsigned long long)resident); /* what
        grew is in the heap twice */
    EXPECT(rate > 0.6, "%.3f of the rows were found in memory, which holds a tenth", rate);
    weft_table_release(table);
    free(send), free(got);
    return WEFT_OK;
}
static weft_status bounded_rows(serving *self) { return bounded(self, false); }
static weft_status bounded_hybrids(serving *self) { return bounded(self, true); }
Test(spill, memory_is_bounded_and_the_hot_stay) {
    make_folder();
    serve_case("shm", 1, &how, bounded_rows);
    serve_case("shm", 1, &how, bounded_hybrids);
    remove_folder();
}

/* --- a full disk --- */

static weft_status call_entries(weft_table *table, uint64_t row, uint32_t from, uint32_t count) {
    static const int32_t ones[1000] = {1, 1, 1};
    uint32_t             columns[1000];
    int32_t              values[1000];
    memcpy(values, ones, sizeof values);
    for (uint32_t i = 0; i < count; i++) columns[i] = from + i, values[i] = 1;
    return weft_table_push_entries(table, &row, 1, &(weft_entries){.counts = &count, .columns = columns, .values = values});
}

/* Rows are made until the disk is full: whoever makes more is told, with nothing changed; rows that there are go on, and other tables; and with room all goes on. */
static weft_status fill_disk(serving *self, void (*make_room)(void)) {
    enum { WIDTH = 256, BOUND = 200000, MANY = 100000 };
    weft_table    *table = NULL, *other = NULL, *hybrid = NULL;
    int64_t        ones[WIDTH], got[WIDTH], count = 0;
    uint64_t       key;
    weft_status    status = WEFT_OK;
    for (int i = 0; i < WIDTH; i++) ones[i] = 1;
    weft_table_options o = {.name = "full", .sparse = true, .width = WIDTH, .dtype = WEFT_I64, .memory_bytes = BOUND, .staleness = 1}, plain = {.name = "other", .rows = 1000, .staleness = 1};
    WEFTI_TRY(weft_table_create(self->server, &o, &table));
    WEFTI_TRY(weft_table_create(self->server, &plain, &other));
    o.name = "growing", o.hybrid = true, o.dtype = WEFT_I32, o.width = 1000;
    WEFTI_TRY(weft_table_create(self->server, &o, &hybrid));
    for (key = 0; key < 150; key++) WEFTI_TRY(call_entries(hybrid, key, 0, 200)); /* more than its memory, while there is room */
    for (; count < MANY && status == WEFT_OK; count += status == WEFT_OK) {
        key = (uint64_t)count;
        status = weft_table_call_rows(table, WEFT_PUSH, &key, 1, ones, NULL);
    }
    weft_status grown = WEFT_OK;
    for (key = 150; key < 10000 && grown == WEFT_OK; key++) grown = call_entries(hybrid, key, 0, 700);
    EXPECT(grown == WEFT_E_NO_SPACE && status == grown, "%s after %llu rows: %s", weft_status_name(grown), (unsigned long long)key, weft_error_message());
    status = weft_table_call_rows(table, WEFT_PUSH, &(uint64_t){MANY}, 1, ones, NULL);
    EXPECT(status == WEFT_E_NO_SPACE, "%lld rows: %s: %s", (long long)count, weft_status_name(status), weft_error_message());
    EXPECT(strstr(weft_error_message(), folder) && strstr(weft_error_message(), "cannot grow by"), "%s", weft_error_message());
    EXPECT(count * WIDTH * 8 > 3 * BOUND, "%lld rows only", (long long)count);
    for (int turn = 0; turn < 2; turn++) {
        for (key = 0; key < (uint64_t)count; key += 1 + key % 3) {
            WEFTI_TRY(weft_table_call_rows(table, WEFT_PULL, &key, 1, NULL, got));
            for (int i = 0; i < WIDTH; i++) EXPECT(got[i] == turn + 1, "row %llu of %lld, column %d: %lld", (unsigned long long)key, (long long)count, i, (long long)got[i]);
            if (turn == 0) WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, &key, 1, ones, NULL));
        }
        uint64_t beyond[2] = {0, MANY}; /* one that there is, and one that there is no room for */
        int64_t  both[2 * WIDTH];
        for (int i = 0; i < 2 * WIDTH; i++) both[i] = 1;
        REFUSED(weft_table_call_rows(table, WEFT_PUSH, beyond, 2, both, NULL), WEFT_E_NO_SPACE, "memory_bytes");
        REFUSED(call_entries(hybrid, 3, 200, 700), WEFT_E_NO_SPACE, "memory_bytes");
        WEFTI_TRY(call_entries(hybrid, 3, 0, 1));
        float value = 1, seen[1000];
        WEFTI_TRY(weft_table_call_rows(other, WEFT_PUSH, &(uint64_t){7}, 1, &value, NULL));
        WEFTI_TRY(weft_table_pull(other, NULL, seen));
        EXPECT(seen[7] == (float)(turn + 1), "%g", seen[7]);
    }
    make_room();
    WEFTI_TRY(call_entries(hybrid, 3, 200, 700));
    weft_entries pulled = {0};
    for (key = 0; key < 150; key++) {
        WEFTI_TRY(weft_table_pull_entries(hybrid, &key, 1, &pulled));
        EXPECT(pulled.count == (key == 3 ? 900 : 200), "row %llu has %lld entries", (unsigned long long)key, (long long)pulled.count);
        for (int64_t i = 0; i < pulled.count; i++)
            EXPECT(pulled.columns[i] == i && ((const int32_t *)pulled.values)[i] == (key == 3 && i == 0 ? 3 : 1), "row %llu, entry %lld", (unsigned long long)key, (long long)i);
    }
    for (int more = 0; more < 500; more++, count++) WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, &(uint64_t){(uint64_t)count}, 1, ones, NULL));
    weft_entries_release(&pulled);
    weft_table_release(table);
    weft_table_release(other);
    weft_table_release(hybrid);
    return WEFT_OK;
}

static void limit_files(rlim_t bytes) {
    struct rlimit limit;
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = bytes < limit.rlim_max ? bytes : limit.rlim_max;
    setrlimit(RLIMIT_FSIZE, &limit);
}
static void lift_limit(void) { limit_files(RLIM_INFINITY); }
static weft_status fill_limit(serving *self) {
    limit_files(2 << 20);
    return fill_disk(self, lift_limit);
}
Test(spill, a_limit_of_file_sizes) {
    make_folder();
    serve_case("shm", 1, &how, fill_limit);
    remove_folder();
}

static void grow_disk(void) { (void)!mount("none", folder, "tmpfs", MS_REMOUNT, "size=64m"); }
static weft_status fill_mounted(serving *self) { return fill_disk(self, grow_disk); }
static bool write_text(const char *path, const char *text) {
    FILE *file = fopen(path, "w");
    bool  wrote = file && fputs(text, file) >= 0;
    return file && fclose(file) == 0 && wrote;
}
/* A small disk of this process alone; false where the system lets nobody have one. */
static bool mount_disk(void) {
    char map[32];
    snprintf(map, sizeof map, "0 %d 1\n", (int)getuid());
    if (unshare(CLONE_NEWNS) != 0) {
        if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0 || !write_text("/proc/self/uid_map", map)) return false;
    }
    return mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 && mount("none", folder, "tmpfs", 0, "size=4m") == 0;
}
Test(spill, a_full_disk) {
    make_folder();
    if (mount_disk()) {
        serve_case("shm", 1, &how, fill_mounted);
        cr_expect_eq(umount(folder), 0);
    } else fprintf(stderr, "  skipped: this system lets a test mount no disk\n");
    remove_folder();
}

/* A disk that loses what is on it: who wants that is told, before a row of the request has changed where these fit into memory, and how many had where they do
 * not; what is in memory goes on. */
static int lose_files(void) {
    char name[64], target[256];
    int  lost = 0, nowhere = open("/dev/null", O_WRONLY);
    for (int file = 3; file < 256; file++) {
        snprintf(name, sizeof name, "/proc/self/fd/%d", file);
        ssize_t length = readlink(name, target, sizeof target - 1);
        if (length <= 0) continue;
        target[length] = 0;
        lost += strncmp(target, folder, strlen(folder)) == 0 && dup2(nowhere, file) == file;
    }
    close(nowhere);
    return lost;
}
static weft_status lose_disk(serving *self) {
    enum { N = 2000, WIDTH = 100 };
    weft_table *table = NULL;
    uint64_t    last[2] = {5, N - 1}, far[2] = {N - 1, 5}, *all = malloc(N * sizeof *all);
    float      *send = malloc(N * WIDTH * sizeof *send), *got = malloc(N * WIDTH * sizeof *got);
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "lost", .rows = N, .width = WIDTH, .memory_bytes = 100000, .staleness = WEFT_TABLE_ASYNCHRONOUS}, &table));
    for (int i = 0; i < N * WIDTH; i++) send[i] = 1;
    for (uint64_t i = 0; i < N; i++) all[i] = i;
    WEFTI_TRY(weft_table_push(table, NULL, send));
    WEFTI_TRY(weft_table_call_rows(table, WEFT_PULL, last, 1, NULL, got)); /* rows 5 and its neighbours are in memory now, and the last ones are */
    EXPECT(lose_files() == 1, "%s", "no file");
    uint64_t lost = 1000;
    REFUSED(weft_table_call_rows(table, WEFT_PULL, &lost, 1, NULL, got), WEFT_E_IO, "'lost'");
    last[1] = lost;
    REFUSED(weft_table_call_rows(table, WEFT_PUSH, last, 2, send, NULL), WEFT_E_IO, "'lost'");
    WEFTI_TRY(weft_table_call_rows(table, WEFT_PULL, last, 1, NULL, got));
    EXPECT(got[0] == 1, "row 5 has changed to %g", (double)got[0]);
    REFUSED(weft_table_call_rows(table, WEFT_PUSH, all, N, send, NULL), WEFT_E_IO, "do not fit into memory together");
    WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, far, 1, send, NULL));
    WEFTI_TRY(weft_table_call_rows(table, WEFT_PULL, far, 1, NULL, got));
    EXPECT(got[0] == 2, "the last row is %g", (double)got[0]);
    weft_table_release(table);
    free(send), free(got), free(all);
    return WEFT_OK;
}
Test(spill, a_disk_that_loses_what_is_on_it) {
    make_folder();
    serve_case("shm", 1, &how, lose_disk);
    remove_folder();
}

/* --- snapshots --- */

static char saved[96];

static weft_status save_and_load(serving *self) {
    enum { N = 4000, WIDTH = 64, HALF = N / 2, BOUND = 100000 };
    weft_table        *adam = NULL, *hybrid = NULL;
    uint64_t          *keys = malloc(N * sizeof *keys);
    float             *send = malloc(N * WIDTH * sizeof *send), *before[2], *after = malloc(N * WIDTH * sizeof *after);
    weft_memory_counts memory, peak;
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "a", .sparse = true, .width = WIDTH, .memory_bytes = BOUND,
                                                                    .rule = {.kind = WEFT_TABLE_SOLVER, .solver = weft_adam(0.01)}}, &adam));
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "h", .rows = N, .width = WIDTH, .memory_bytes = BOUND, .hybrid = true}, &hybrid));
    for (uint64_t i = 0; i < N; i++) keys[i] = i;
    for (int i = 0; i < N * WIDTH; i++) send[i] = i % 5 ? 0 : (float)(i % 1001) / 7 - 70;
    for (int k = 0; k < 2; k++) before[k] = malloc(N * WIDTH * sizeof *send);
    for (int turn = 0; turn < 3; turn++) { /* the saved, one beyond it, and the loaded go on alike */
        if (turn == 1) {
            weft_memory_read(&memory);
            WEFTI_TRY(weft_server_save(self->server, saved));
            weft_memory_read(&peak);
            EXPECT(peak.peak_bytes - memory.peak_bytes < 3 << 19, "%llu bytes more for a snapshot", (unsigned long long)(peak.peak_bytes - memory.peak_bytes));
        }
        if (turn == 2) WEFTI_TRY(weft_server_load(self->server, saved));
        WEFTI_TRY(weft_table_call_rows(adam, WEFT_PUSH, keys, turn ? HALF : N, send, NULL));
        WEFTI_TRY(weft_table_call_rows(hybrid, WEFT_PUSH, keys, turn ? HALF : N, send, NULL));
        WEFTI_TRY(weft_table_clock(adam));
        WEFTI_TRY(weft_table_clock(hybrid));
        for (int k = 0; k < 2; k++) {
            WEFTI_TRY(weft_table_call_rows(k ? hybrid : adam, WEFT_PULL, keys, N, NULL, turn == 1 ? before[k] : after));
            if (turn == 2) EXPECT(memcmp(before[k], after, N * WIDTH * sizeof *after) == 0, "table %d", k);
        }
    }
    weft_table_release(adam);
    weft_table_release(hybrid);
    free(keys), free(send), free(before[0]), free(before[1]), free(after);
    return WEFT_OK;
}
Test(spill, comes_back_from_snapshots) {
    char command[160];
    make_folder();
    snprintf(saved, sizeof saved, "%s/snapshot", folder);
    serve_case("shm", 1, &how, save_and_load);
    snprintf(command, sizeof command, "rm '%s'*", saved);
    cr_assert_eq(system(command), 0);
    remove_folder();
}

/* --- replicas, and what is refused --- */

static weft_status die(serving *self) {
    enum { N = 2000, WIDTH = 40 };
    weft_table *table = NULL;
    int64_t    *send = malloc(N * WIDTH * sizeof *send), *got = malloc(N * WIDTH * sizeof *got);
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "r", .rows = N, .width = WIDTH, .dtype = WEFT_I64, .memory_bytes = 30000}, &table));
    for (int i = 0; i < N * WIDTH; i++) send[i] = i;
    for (int clock = 0; clock < 6; clock++) {
        if (clock == 3 && self->rank == 0) kill(self->all->children[3], SIGKILL);
        WEFTI_TRY(weft_table_push_pull(table, NULL, send, got));
        for (int i = 0; i < N * WIDTH; i++) EXPECT(got[i] == (int64_t)i * self->workers * (clock + 1), "clock %d, %d: %lld", clock, i, (long long)got[i]);
    }
    weft_table_release(table);
    free(send), free(got);
    return WEFT_OK;
}
Test(spill, with_replicas_a_death_loses_nothing) {
    make_folder();
    ranks_free(serve_case_with("tcp", 4, &(weft_server_options){.servers = 2, .dedicated = true, .replicas = 1, .spill = folder}, die, 1 << 3));
    remove_folder();
}

static weft_status refused(serving *self) {
    weft_table *table = NULL;
    REFUSED(weft_table_create(self->server, &(weft_table_options){.name = "t", .rows = 10, .memory_bytes = 1000}, &table), WEFT_E_INVALID, "weft_server_options.spill");
    return WEFT_OK;
}
static weft_status no_folder(serving *self) {
    weft_table *table = NULL;
    REFUSED(weft_table_create(self->server, &(weft_table_options){.name = "t", .rows = 10, .memory_bytes = 1000}, &table), WEFT_E_NOT_FOUND, "'/no/such/folder'");
    return WEFT_OK;
}
Test(spill, wants_a_folder) {
    serve_case("shm", 1, NULL, refused);
    serve_case("shm", 1, &(weft_server_options){.spill = "/no/such/folder"}, no_folder);
}

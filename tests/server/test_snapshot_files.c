/* Snapshots as files: dealt out to any number of servers and back they are the same to the bit, servers go on from them with the same bits, other programs
 * read them, and what is damaged, missing, twice or in the wrong place is told. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/files.h"
#include "parallel/server/saves_format.h"
#include "serving.h"

static char      folder[64], path[128];
static uint64_t *hash; /* shared: what a case has seen */

static void begin(void) {
    snprintf(folder, sizeof folder, "%s/weft_snapshot_files_XXXXXX", temporary_root());
    cr_assert(mkdtemp(folder) != NULL);
    snprintf(path, sizeof path, "%s/state", folder);
    hash = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(hash, MAP_FAILED);
}

static int run(const char *command) {
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void end(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    cr_expect(run(command) == 0);
    munmap(hash, 4096);
}
TestSuite(snapshot_files, .init = begin, .fini = end);

static const char *in_folder(const char *name) {
    static char texts[4][160];
    static int  next;
    char       *text = texts[next++ % 4];
    snprintf(text, sizeof texts[0], "%s/%s", folder, name);
    return text;
}

static int count_files(const char *part) {
    DIR *list = opendir(folder);
    int  count = 0;
    for (struct dirent *entry; list && (entry = readdir(list));) count += entry->d_name[0] != '.' && strstr(entry->d_name, part) != NULL;
    if (list) closedir(list);
    return count;
}

/* --- a run --- */

enum { ROWS = 503, WIDTH = 5, KEYS = 300, DENSE = ROWS * WIDTH };

typedef struct state {
    weft_table *dense, *counts, *halves;
    uint64_t    keys[KEYS], near[KEYS];
    float       gradient[DENSE], values[DENSE];
    int64_t     ones[KEYS];
    uint16_t    some[KEYS];
} state;

/* Adam's states and numbers of updates; keys by the hash; keys by ranges, of a dtype that is held wider. */
static weft_status open_tables(serving *self, state *s) {
    for (int i = 0; i < KEYS; i++) {
        s->keys[i] = (uint64_t)(i + 1) * UINT64_C(0x9e3779b97f4a7c15); /* the largest ones are negative as I64 */
        s->near[i] = (uint64_t)i * 3;
        s->ones[i] = i;
        s->some[i] = 0x3f80; /* 1 */
    }
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "dense", .rows = ROWS, .width = WIDTH, .start = WEFT_START_NORMAL, .high = 1,
                                .rule = {.kind = WEFT_TABLE_SOLVER, .solver = weft_adam(0.01)}}, &s->dense));
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "counts", .sparse = true, .dtype = WEFT_I64}, &s->counts));
    return weft_table_create(self->server, &(weft_table_options){.name = "halves", .sparse = true, .rows = 1000, .split = WEFT_SPLIT_RANGE, .dtype = WEFT_BF16}, &s->halves);
}

/* Rank 0 alone gives something, so that sums have the bits of any number of workers. */
static weft_status train(serving *self, state *s, int clock) {
    uint64_t sorted[KEYS];
    memcpy(sorted, s->keys, sizeof sorted);
    for (int i = 0; i < DENSE; i++) s->gradient[i] = (float)((i * 7 + clock * 3) % 11) - 5;
    if (self->rank == 0) {
        weft_keys *keys = NULL;
        WEFTI_TRY(weft_keys_create(s->counts, s->keys, KEYS - 10 * clock, &keys)); /* some come in some clocks only */
        WEFTI_TRY(weft_table_push(s->counts, keys, s->ones));
        weft_keys_release(keys);
        WEFTI_TRY(weft_table_push(s->dense, NULL, s->gradient));
        WEFTI_TRY(weft_table_call_rows(s->halves, WEFT_PUSH, s->near + 20 * clock, KEYS - 20 * clock, s->some, NULL));
    }
    WEFTI_TRY(weft_table_clock(s->dense));
    WEFTI_TRY(weft_table_clock(s->counts));
    return weft_table_clock(s->halves);
}

static weft_status look(state *s, uint64_t *hash_out) {
    weft_keys *keys = NULL;
    WEFTI_TRY(weft_keys_create(s->counts, s->keys, KEYS, &keys));
    WEFTI_TRY(weft_table_pull(s->dense, NULL, s->values));
    WEFTI_TRY(weft_table_pull(s->counts, keys, s->ones));
    WEFTI_TRY(weft_table_call_rows(s->halves, WEFT_PULL, s->near, KEYS, NULL, s->some));
    weft_keys_release(keys);
    *hash_out = wefti_hash(wefti_hash(wefti_hash(WEFTI_HASH_BEGIN, s->values, sizeof s->values), s->ones, sizeof s->ones), s->some, sizeof s->some);
    return WEFT_OK;
}

static void close_tables(state *s) {
    weft_table_release(s->dense);
    weft_table_release(s->counts);
    weft_table_release(s->halves);
    free(s);
}

static weft_status save(serving *self) {
    state *s = calloc(1, sizeof *s);
    WEFTI_TRY(open_tables(self, s));
    for (int clock = 0; clock < 3; clock++) WEFTI_TRY(train(self, s, clock));
    WEFTI_TRY(weft_server_save(self->server, path));
    for (int clock = 3; clock < 5; clock++) WEFTI_TRY(train(self, s, clock));
    WEFTI_TRY(look(s, &hash[0]));
    close_tables(s);
    return WEFT_OK;
}

static char loaded[160];

static weft_status go_on(serving *self) {
    state *s = calloc(1, sizeof *s);
    WEFTI_TRY(open_tables(self, s));
    WEFTI_TRY(serving_meet(self));
    if (self->rank == 0) WEFTI_TRY(weft_server_load(self->server, loaded));
    WEFTI_TRY(serving_meet(self));
    for (int clock = 3; clock < 5; clock++) WEFTI_TRY(train(self, s, clock));
    uint64_t seen;
    WEFTI_TRY(look(s, &seen));
    EXPECT(seen == hash[0], "%s: another hash", loaded);
    close_tables(s);
    return WEFT_OK;
}

static void goes_on(const char *name, int32_t size) {
    snprintf(loaded, sizeof loaded, "%s", in_folder(name));
    serve_case("shm", size, NULL, go_on);
}

static weft_snapshot *open_file(const char *name) {
    weft_snapshot *snapshot = NULL;
    cr_assert_eq(weft_snapshot_open(in_folder(name), &snapshot), WEFT_OK, "%s", weft_error_message());
    return snapshot;
}

static void deal_out(const char *from, const char *to, int32_t servers) {
    weft_snapshot *snapshot = open_file(from);
    cr_assert_eq(weft_snapshot_reshard(snapshot, in_folder(to), servers), WEFT_OK, "%s", weft_error_message());
    weft_snapshot_release(snapshot);
    snapshot = open_file(to);
    cr_expect_eq(weft_snapshot_servers(snapshot), servers);
    cr_expect_eq(weft_snapshot_verify(snapshot), WEFT_OK, "%s", weft_error_message());
    weft_snapshot_release(snapshot);
}

static void export_all(const char *from, const char *to, bool all) {
    weft_snapshot *snapshot = open_file(from);
    cr_assert_eq(weft_snapshot_export(snapshot, in_folder(to), all), WEFT_OK, "%s", weft_error_message());
    weft_snapshot_release(snapshot);
}

static void expect_same(const char *a, const char *b) {
    char command[400];
    snprintf(command, sizeof command, "cmp %s %s", in_folder(a), in_folder(b));
    cr_expect_eq(run(command), 0, "%s and %s differ", a, b);
}

Test(snapshot_files, any_number_of_servers_has_the_same_rows) {
    serve_case("shm", 3, NULL, save);
    deal_out("state", "one", 1);
    deal_out("one", "five", 5);
    deal_out("five", "three", 3);
    deal_out("three", "three", 4); /* over itself: the shares of three are removed */
    cr_expect_eq(count_files("three"), 1 + 4, "%d files", count_files("three"));
    export_all("state", "a.safetensors", true);
    export_all("one", "b.safetensors", true);
    export_all("five", "c.safetensors", true);
    export_all("three", "d.safetensors", true);
    expect_same("a.safetensors", "b.safetensors");
    expect_same("a.safetensors", "c.safetensors");
    expect_same("a.safetensors", "d.safetensors");
    goes_on("one", 1);
    goes_on("five", 5);
    goes_on("three", 2); /* servers deal out themselves, too */
}

Test(snapshot_files, other_programs_read_whole_arrays) {
    weft_safetensors *file = NULL;
    serve_case("shm", 3, NULL, save);
    export_all("state", "out.safetensors", false);
    cr_assert_eq(weft_safetensors_open(in_folder("out.safetensors"), &file), WEFT_OK, "%s", weft_error_message());
    cr_expect_eq(weft_safetensors_count(file), 5);
    const weft_safetensors_entry *dense = weft_safetensors_find(file, "dense.values"), *keys = weft_safetensors_find(file, "counts.keys"),
                                 *counts = weft_safetensors_find(file, "counts.values"), *halves = weft_safetensors_find(file, "halves.values");
    cr_assert(dense && keys && counts && halves && weft_safetensors_find(file, "halves.keys"));
    cr_expect(weft_shape_equal(dense->shape, weft_shape(ROWS, WIDTH)) && dense->dtype == WEFT_F32);
    cr_expect(weft_shape_equal(counts->shape, weft_shape(KEYS, 1)) && counts->dtype == WEFT_I64);
    cr_expect(halves->dtype == WEFT_F32 && *(const float *)halves->data == 1); /* key 0 came in one of the three clocks */
    int64_t sum = 0;
    for (int64_t i = 0; i < KEYS; i++) {
        uint64_t key = ((const uint64_t *)keys->data)[i], before = i ? ((const uint64_t *)keys->data)[i - 1] : 0;
        cr_assert(i == 0 || key > before, "keys ascend");
        sum += ((const int64_t *)counts->data)[i];
    }
    /* Sums of the first KEYS, KEYS - 10 and KEYS - 20 numbers. */
    int64_t wanted = 0;
    for (int64_t clock = 0; clock < 3; clock++) wanted += (KEYS - 10 * clock) * (KEYS - 10 * clock - 1) / 2;
    cr_expect_eq(sum, wanted, "%lld", (long long)sum);
    weft_safetensors_release(file);
}

Test(snapshot_files, says_what_is_in_it) {
    weft_snapshot_table t;
    serve_case("shm", 2, NULL, save);
    weft_snapshot *snapshot = open_file("state");
    cr_expect_eq(weft_snapshot_count(snapshot), 3);
    for (int32_t i = 0; i < 3; i++) {
        weft_snapshot_at(snapshot, i, &t);
        if (strcmp(t.name, "dense") == 0)
            cr_expect(!t.sparse && t.rows == ROWS && t.width == WIDTH && t.states == 2 && t.counts && t.rule == WEFT_TABLE_SOLVER && t.clock == 3 &&
                      t.bytes == 3 * DENSE * sizeof(float) + ROWS * sizeof(int64_t));
        else if (strcmp(t.name, "counts") == 0)
            cr_expect(t.sparse && t.rows == KEYS && t.split == WEFT_SPLIT_HASH && t.dtype == WEFT_I64 && t.states == 0 && t.rule == WEFT_TABLE_ADD);
        else cr_expect(strcmp(t.name, "halves") == 0 && t.split == WEFT_SPLIT_RANGE && t.dtype == WEFT_BF16 && t.held == WEFT_F32);
    }
    weft_snapshot_release(snapshot);
}

/* --- the tool --- */

static void tool(const char *arguments, int wanted, const char *part) {
    char command[600], text[4096] = "";
    snprintf(command, sizeof command, "cd %s && %s/weft %s >said 2>&1", folder, WEFT_BIN_DIR, arguments);
    int   status = run(command);
    FILE *file = fopen(in_folder("said"), "r");
    if (file) {
        text[fread(text, 1, sizeof text - 1, file)] = 0;
        fclose(file);
    }
    cr_expect_eq(status, wanted, "weft %s: %d: %s", arguments, status, text);
    cr_expect(strstr(text, part), "weft %s: %s", arguments, text);
}

Test(snapshot_files, by_the_tool) {
    serve_case("shm", 2, NULL, save);
    tool("list state", 0, "dense  f32    [503, 5]");
    tool("list state", 0, "snapshot of 2 servers");
    tool("list state", 0, "rule solver, 2 states, updates, clock 3  dense");
    tool("verify state", 0, "3 tables of 2 servers, all checksums verified");
    tool("reshard state three --servers 3", 0, "three: 3 tables of 2 servers for 3, checksums verified");
    tool("verify three", 0, "3 tables of 3 servers");
    tool("reshard three out.safetensors", 0, "3 tables of 3 servers in one file, checksums verified");
    tool("list out.safetensors", 0, "counts.keys");
    tool("reshard three all.safetensors --all", 0, "with states");
    tool("list all.safetensors", 0, "dense.state.1");
    tool("verify all.safetensors", 0, "8 arrays, all checksums verified");
    tool("reshard out.safetensors more --servers 2", 1, "is no snapshot of a parameter server");
    tool("reshard state more --servers 0", 2, "usage");
    tool("reshard state more --servers many", 2, "usage");
    tool("reshard state more --servers 5000", 1, "5000 servers; 1 to 4096");
    tool("verify nowhere", 1, "nowhere");
    cr_expect_eq(count_files("more"), 0, "something was written");
    goes_on("three", 3);
}

/* --- what is wrong --- */

static void refuses(weft_status wanted, const char *part) {
    weft_snapshot *snapshot = NULL;
    weft_status    status = weft_snapshot_open(path, &snapshot);
    if (status == WEFT_OK) status = weft_snapshot_verify(snapshot);
    cr_expect(status == wanted && strstr(weft_error_message(), part), "%s: %s", weft_status_name(status), weft_error_message());
    if (snapshot && wanted != WEFT_OK) {
        cr_expect_eq(weft_snapshot_reshard(snapshot, in_folder("more"), 2), wanted);
        cr_expect_eq(weft_snapshot_export(snapshot, in_folder("more"), true), wanted);
        cr_expect_eq(count_files("more"), 0, "something was written of what is damaged");
    }
    weft_snapshot_release(snapshot);
}

static void shell(const char *what) {
    char command[400];
    snprintf(command, sizeof command, "cd %s && %s", folder, what);
    cr_assert_eq(run(command), 0, "%s", what);
}

Test(snapshot_files, what_is_missing_or_damaged_is_told) {
    serve_case("shm", 2, NULL, save);
    shell("mv state kept && echo none > state");
    refuses(WEFT_E_CORRUPT, "opening the snapshot");
    shell("cp *.0-of-2 state");
    refuses(WEFT_E_CORRUPT, "no snapshot of a parameter server");
    shell("mv kept state && mkdir aside && cp *-of-2 aside && cp *.0-of-2 first && cp first *.1-of-2");
    refuses(WEFT_E_CORRUPT, "is share 0 of 2, and the manifest names it as share 1 of 2");
    shell("rm *.1-of-2");
    refuses(WEFT_E_NOT_FOUND, "1-of-2");
    shell("cp aside/* . && printf XXXXXXXXX | dd of=$(echo *.1-of-2) bs=1 seek=$(($(stat -c %s *.1-of-2) - 9)) conv=notrunc 2>/dev/null");
    refuses(WEFT_E_CORRUPT, "share 1 of 2");
    shell("cp aside/* .");
    refuses(WEFT_OK, "");
}

/* The first share of "counts" again, with right checksums, in which the second key is changed. */
static void forge(uint64_t key) {
    const weft_safetensors_entry *entries[WEFTI_SHARE_PARTS];
    weft_safetensors             *in = NULL;
    weft_safetensors_writer      *out = NULL;
    wefti_share_table             share;
    char                          text[400], name[WEFTI_SNAPSHOT_NAME_BYTES];
    int32_t                       parts[WEFTI_SHARE_PARTS];
    shell("rm -f forged && cp aside/* . && mv *.0-of-2 in");
    cr_assert_eq(weft_safetensors_open(in_folder("in"), &in), WEFT_OK);
    cr_assert_eq(wefti_share_begin(in_folder("forged"), 0, 2, &out), WEFT_OK);
    cr_assert_eq(wefti_share_find(in, "in", "counts", &share, entries), WEFT_OK);
    cr_assert_eq(wefti_share_declare(out, &share), WEFT_OK);
    int32_t count = wefti_share_parts(&share, parts);
    for (int32_t i = 0; i < count; i++) {
        uint64_t keys[KEYS];
        bool     are_keys = parts[i] == WEFTI_PART_KEYS;
        memcpy(keys, entries[i]->data, entries[i]->bytes);
        if (are_keys) keys[1] = key ? key : keys[0];
        cr_assert_eq(weft_safetensors_writer_write(out, wefti_share_part_name("counts", parts[i], name), keys, entries[i]->bytes), WEFT_OK);
    }
    cr_assert_eq(weft_safetensors_writer_commit(out), WEFT_OK);
    weft_safetensors_writer_release(out);
    weft_safetensors_release(in);
    snprintf(text, sizeof text, "cp forged $(basename aside/*.0-of-2)");
    shell(text);
}

static weft_status save_counts(serving *self) {
    weft_table *table = NULL;
    uint64_t    keys[100];
    int64_t     ones[100];
    for (int i = 0; i < 100; i++) keys[i] = (uint64_t)i, ones[i] = 1;
    WEFTI_TRY(weft_table_create(self->server, &(weft_table_options){.name = "counts", .sparse = true, .dtype = WEFT_I64, .staleness = WEFT_TABLE_ASYNCHRONOUS}, &table));
    WEFTI_TRY(weft_table_call_rows(table, WEFT_PUSH, keys, 100, ones, NULL));
    WEFTI_TRY(serving_meet(self));
    WEFTI_TRY(weft_server_save(self->server, path));
    weft_table_release(table);
    return WEFT_OK;
}

Test(snapshot_files, each_key_is_there_once_where_it_belongs) {
    serve_case("shm", 2, NULL, save_counts);
    shell("mkdir aside && cp *-of-2 aside");
    forge(0);
    refuses(WEFT_E_CORRUPT, "twice");
    uint64_t stray = 1000;
    while (wefti_mix(stray) >> 63 == 0) stray++; /* the second server's */
    forge(stray);
    refuses(WEFT_E_CORRUPT, "where it does not belong");
    shell("cp aside/* .");
    refuses(WEFT_OK, "");
}

/* The first share with right checksums again, where it has no row, and rows are so wide that their bytes are more than can be counted. */
static void forge_wide(int64_t width) {
    weft_safetensors_writer *out = NULL;
    wefti_share_table        share = {.name = "counts", .sparse = true, .dtype = WEFT_I64, .held = WEFT_I64, .width = width, .split = WEFT_SPLIT_HASH};
    shell("rm -f forged && cp aside/* .");
    cr_assert_eq(wefti_share_begin(in_folder("forged"), 0, 1, &out), WEFT_OK);
    cr_assert_eq(wefti_share_declare(out, &share), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_safetensors_writer_commit(out), WEFT_OK, "%s", weft_error_message());
    weft_safetensors_writer_release(out);
    shell("cp forged $(basename aside/*.0-of-1)");
}

Test(snapshot_files, rows_are_not_wider_than_can_be_counted) {
    serve_case("shm", 1, NULL, save_counts);
    shell("mkdir aside && cp *-of-1 aside");
    forge_wide(3);
    refuses(WEFT_OK, "");
    forge_wide(INT64_C(1) << 61);
    refuses(WEFT_E_CORRUPT, "cannot be read");
    forge_wide(INT64_C(1) << 62);
    refuses(WEFT_E_CORRUPT, "cannot be read");
}

Test(snapshot_files, a_full_disk_leaves_what_was_there) {
    struct rlimit before, small = {3000, RLIM_INFINITY};
    serve_case("shm", 2, NULL, save);
    deal_out("state", "more", 3);
    weft_snapshot *snapshot = open_file("state");
    signal(SIGXFSZ, SIG_IGN);
    cr_assert(getrlimit(RLIMIT_FSIZE, &before) == 0);
    small.rlim_max = before.rlim_max;
    cr_assert(setrlimit(RLIMIT_FSIZE, &small) == 0);
    cr_expect_eq(weft_snapshot_reshard(snapshot, in_folder("more"), 4), WEFT_E_IO, "%s", weft_error_message());
    cr_expect(strstr(weft_error_message(), "dealing the snapshot") && strstr(weft_error_message(), "more"), "%s", weft_error_message());
    cr_expect_eq(weft_snapshot_export(snapshot, in_folder("more.safetensors"), true), WEFT_E_IO);
    cr_assert(setrlimit(RLIMIT_FSIZE, &before) == 0);
    cr_expect_eq(count_files("more"), 1 + 3, "%d files", count_files("more"));
    weft_snapshot_release(snapshot);
    snapshot = open_file("more");
    cr_expect_eq(weft_snapshot_verify(snapshot), WEFT_OK);
    cr_expect_eq(weft_snapshot_reshard(snapshot, in_folder("none/more"), 4), WEFT_E_NOT_FOUND);
    cr_expect_eq(weft_snapshot_reshard(snapshot, in_folder("more/"), 4), WEFT_E_INVALID);
    cr_expect_eq(weft_snapshot_reshard(snapshot, in_folder("more"), 0), WEFT_E_INVALID);
    cr_expect_eq(weft_snapshot_export(snapshot, "", true), WEFT_E_INVALID);
    weft_snapshot_release(snapshot);
    cr_expect_eq(weft_snapshot_open("", &snapshot), WEFT_E_INVALID);
    cr_expect_null(snapshot);
}

/* Shares of the same path that are written meanwhile stay, and older ones go; what does not name files that are there takes no place. */
static void make_share(const char *name, int64_t age_s) {
    struct timespec now, times[2];
    FILE           *file = fopen(in_folder(name), "w");
    cr_assert(file && fclose(file) == 0 && clock_gettime(CLOCK_REALTIME, &now) == 0);
    times[0] = times[1] = (struct timespec){now.tv_sec - age_s, 0};
    cr_assert_eq(utimensat(AT_FDCWD, in_folder(name), times, 0), 0);
}
Test(snapshot_files, removes_what_is_older_alone) {
    wefti_server_share shares[2] = {{.suffix = ".00000000000000aa.0-of-2"}, {.suffix = ".00000000000000aa.1-of-2"}};
    serve_case("shm", 2, NULL, save_counts);
    int before = count_files("state");
    make_share("state.0123456789abcdef.0-of-1", 3600);
    make_share("state.123456789abcdef0.0-of-1", -3600);
    make_share("state.00000000000000aa.0-of-2", 0);
    cr_expect_eq(wefti_manifest_write(in_folder("state"), shares, 2), WEFT_E_NOT_FOUND);
    cr_expect(strstr(weft_error_message(), "share 1 of 2"), "%s", weft_error_message());
    cr_expect_eq(count_files("state"), before + 3);
    weft_snapshot *snapshot = open_file("state");
    cr_assert_eq(weft_snapshot_reshard(snapshot, in_folder("state"), 3), WEFT_OK, "%s", weft_error_message());
    weft_snapshot_release(snapshot);
    cr_expect_eq(access(in_folder("state.0123456789abcdef.0-of-1"), F_OK), -1);
    cr_expect_eq(access(in_folder("state.123456789abcdef0.0-of-1"), F_OK), 0);
    cr_expect_eq(count_files("state"), 5, "%d files", count_files("state"));
    snapshot = open_file("state");
    cr_expect_eq(weft_snapshot_servers(snapshot), 3);
    weft_snapshot_release(snapshot);
}

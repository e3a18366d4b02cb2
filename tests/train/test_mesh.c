/* Combinations of axes by the strategy alone: a small character GPT on two ranks an axis has the losses of one process, files are those of one
 * process, runs go on under any other mesh, and a rank that dies ends all. The table is mesh_table.h; all of its rows: test_mesh_nightly.c. */
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/effort.h"
#include "train/mesh_table.h"

enum { STEPS = UNDER_ADDRESS_SANITIZER ? 20 : 100 };

Test(mesh, combinations_agree) { all_agree("gpt", STEPS, 1e-4, false); }
Test(mesh, combinations_of_experts_agree) { all_agree("moe", STEPS, 1e-4, false); }

/* Every two axes, and ZeRO and a server with each of them, stand together in a row that is tried every time. */
Test(mesh, rows_cover_all_pairs) {
    static const char *const words[] = {"data=2", "tensor=2", "pipeline=2", "sequence=2", "expert=2", "zero=", "sync=server"};
    enum { WORDS = sizeof words / sizeof *words };
    for (int i = 0; i < WORDS; i++)
        for (int k = 0; k < i; k++) {
            bool refused = strcmp(words[i], "sync=server") == 0 && (strcmp(words[k], "expert=2") == 0 || strcmp(words[k], "zero=") == 0);
            cr_expect(stand_together(words[i], words[k]) != refused, "%s and %s %s", words[i], words[k], refused ? "are said not to go together" : "are in no row");
        }
}

Test(mesh, files) {
    files_are_those_of_one_process("gpt", false);
    files_are_those_of_one_process("moe", false);
}

/* Of a variable that a stage has, a rank of its tensor group has a part; one of experts is dealt out as such, then along an axis, then as it lies. */
Test(mesh, axes_share_the_memory) {
    const struct {
        const char *model, *mesh;
        int         ranks;
        double      most; /* of one process' bytes, at rank 0 */
    } cases[] = {{"gpt", "data=1", 1, 1},           {"gpt", "tensor=2", 2, 0.53},
                 {"gpt", "pipeline=2", 2, 0.56},    {"gpt", "tensor=2,pipeline=2,accumulate=2", 4, 0.31},
                 {"moe", "data=1", 1, 1},           {"moe", "expert=2", 2, 0.63},
                 {"moe", "expert=2,tensor=2", 4, 0.35}, {"moe", "expert=2,sequence=2,zero=3,divide-bytes=1", 4, 0.28}};
    long all = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text;
        cr_assert_eq(run_mesh(cases[i].model, "f32", cases[i].mesh, cases[i].ranks, 1, temporary_path("held"), &text), 0, "%s: %s", cases[i].mesh, text);
        const char *at = strstr(text, "variables ");
        cr_assert_not_null(at, "%s: %s", cases[i].mesh, text);
        long held = strtol(at + 10, NULL, 10);
        if (cases[i].ranks == 1) all = held;
        cr_expect(held > 0 && (double)held <= cases[i].most * (double)all, "%s: %ld bytes at rank 0 of %ld", cases[i].mesh, held, all);
        free(text);
    }
}

/* A pipeline has the bits of one process that accumulates as often, and so has what goes on from its file, under itself or as one process. */
Test(mesh, runs_go_on_to_the_same_bits) {
    const combination pipeline = {"pipeline=2,accumulate=2", 2, false, NULL}, three = {"pipeline=3,accumulate=2,schedule=gpipe", 3, false, NULL},
                      one = {"accumulate=2", 1, false, NULL};
    const char       *whole = file_of("gpt", &one, 8, NULL), *half = file_of("gpt", &pipeline, 4, NULL), *alike = file_of("gpt", &one, 4, NULL);
    cr_expect(same_bytes(alike, half), "a pipeline's file of four steps differs from one process'");
    cr_expect(same_bytes(whole, file_of("gpt", &pipeline, 4, half)), "eight steps differ where a pipeline goes on from its own file");
    cr_expect(same_bytes(whole, file_of("gpt", &one, 4, half)), "eight steps differ where one process goes on from a pipeline's file");
    cr_expect(same_bytes(whole, file_of("gpt", &three, 4, alike)), "eight steps differ where a pipeline goes on from one process' file");
}

/* All ranks hear of a file that rank 0 cannot write or read, or not to its end, and nobody waits for parts. */
Test(mesh, files_that_cannot_be) {
    fails("gpt", "pipeline=2,accumulate=2", 2, "RUN_SAVE", "/nowhere/to/be/found", "failed on rank 0", "/nowhere/to/be");
    fails("gpt", "data=2,pipeline=2", 4, "RUN_LOAD", "/nowhere/to/be/found", "failed on rank 0", "/nowhere/to/be");
    const char *file = file_of("mlp", &alone, 0, NULL);
    fails("gpt", "pipeline=2", 2, "RUN_LOAD", file, "failed on rank 0", "tokens.weight");
}

/* Each rank writes a file of its own: what one process makes of them is its file to the byte, and another mesh goes on from them. */
Test(mesh, files_in_shards) {
    const combination from[] = {{"data=2,tensor=2", 4, false, "gpt"}, {"sequence=2,zero=3,divide-bytes=1", 2, false, "gpt"}, {"expert=2,pipeline=2", 4, false, "moe"},
                                {"data=2", 2, false, "gpt"}, {"data=1", 1, false, "gpt"}};
    const combination to = {"tensor=2,pipeline=2,accumulate=2", 4, false, NULL};
    for (size_t i = 0; i < sizeof from / sizeof *from; i++) {
        char name[64];
        snprintf(name, sizeof name, "run%zu.safetensors.index.json", i);
        const char *one = file_of(from[i].model, &alone, 3, NULL), *index = saved_at(temporary_path(name), from[i].model, &from[i], 0, one);
        cr_expect(same_bytes(one, file_of(from[i].model, &alone, 0, index)), "%s: one process reads something else", from[i].mesh);
        cr_expect(same_bytes(one, file_of(from[i].model, &to, 0, index)), "%s: another mesh reads something else", from[i].mesh);
        snprintf(name, sizeof name, "run%zu-g1-%05d-of-%05d.safetensors", i, from[i].ranks, from[i].ranks);
        cr_expect_eq(access(temporary_path(name), R_OK), 0, "%s: no file of the last rank", from[i].mesh);
        (void)saved_at(index, from[i].model, &from[i], 0, one);
        cr_expect_neq(access(temporary_path(name), R_OK), 0, "%s: the former files are still there", from[i].mesh);
    }
}

/* A rank that cannot write its file leaves the former index and all of its files as they were, and so does one that never comes to it. */
Test(mesh, former_shards_stay) {
    const combination pair = {"pipeline=2,accumulate=2", 2, false, NULL};
    const char       *one = file_of("gpt", &alone, 3, NULL), *index = saved_at(temporary_path("kept.safetensors.index.json"), "gpt", &pair, 0, one);
    cr_assert_eq(mkdir(temporary_path("kept-g2-00002-of-00002.safetensors"), 0700), 0);
    fails("gpt", pair.mesh, 2, "RUN_SAVE", index, "failed on rank 1", "kept-g2-00002-of-00002.safetensors");
    cr_expect(same_bytes(one, file_of("gpt", &alone, 0, index)), "the former run is gone");
    setenv("RUN_DIE", "1", 1);
    fails("gpt", pair.mesh, 2, "RUN_SAVE", index, "WEFT_E_PEER", "rank 1 failed");
    unsetenv("RUN_DIE");
    cr_expect(same_bytes(one, file_of("gpt", &alone, 0, index)), "the former run is gone");
}

/* What every rank read of a run's file, in a run that saves what it loaded. */
static void bytes_read(const combination *c, const char *load, const char *save, long *bytes) {
    char *text;
    setenv("RUN_READS", "1", 1);
    setenv("RUN_LOAD", load, 1);
    setenv("RUN_SAVE", save, 1);
    cr_assert_eq(run_mesh("gpt", "f64", c->mesh, c->ranks, 0, temporary_path("none"), &text), 0, "%s: %s", c->mesh, text);
    unsetenv("RUN_SAVE");
    unsetenv("RUN_LOAD");
    unsetenv("RUN_READS");
    for (int r = 0; r < c->ranks; r++) {
        char word[32];
        snprintf(word, sizeof word, "rank %d read ", r);
        const char *at = strstr(text, word);
        cr_assert_not_null(at, "%s: %s", c->mesh, text);
        bytes[r] = strtol(at + strlen(word), NULL, 10);
    }
    free(text);
}

/* Ranks that find the same file read about equally much of it, of their stage's variables, and each byte once, but for headers. */
Test(mesh, ranks_read_together) {
    const combination from = {"pipeline=2", 2, false, NULL}, to[] = {{"pipeline=2", 2, false, NULL}, {"data=2,tensor=2,zero=3,divide-bytes=1", 4, false, NULL}};
    const char       *one = file_of("gpt", &alone, 3, NULL), *index = saved_at(temporary_path("shared.safetensors.index.json"), "gpt", &from, 0, one);
    const char       *files[] = {one, index}, *back = temporary_path("back");
    struct stat       facts;
    cr_assert_eq(stat(one, &facts), 0);
    for (size_t i = 0; i < 2 * sizeof to / sizeof *to; i++) {
        const combination *c = &to[i / 2];
        long               bytes[4], all = 0, most = 0;
        bytes_read(c, files[i % 2], back, bytes);
        cr_expect(same_bytes(one, back), "%s: another run was loaded", c->mesh);
        for (int r = 0; r < c->ranks; r++) {
            long without = bytes[r] - (r == 0 ? 2 : 1) * 2 * 15000; /* headers, read and verified; by rank 0 once more */
            all += without > 0 ? without : 0;
            most = without > most ? without : most;
        }
        cr_expect(all <= facts.st_size, "%s: %ld bytes were read of %ld", c->mesh, all, (long)facts.st_size);
        cr_expect((double)most <= 1.2 * (double)facts.st_size / c->ranks, "%s: one read %ld bytes of %ld", c->mesh, most, (long)facts.st_size);
    }
}

/* Where others find no file, or another one, it is rank 0's that counts. */
Test(mesh, what_rank_0_reads_counts) {
    const combination pair = {"pipeline=2", 2, false, NULL}, four = {"tensor=2,data=2,zero=2,divide-bytes=1", 4, false, NULL};
    const char       *one = file_of("gpt", &alone, 3, NULL), *other = file_of("gpt", &alone, 2, NULL), *apart[] = {"/nowhere/to/be/found", other};
    for (int i = 0; i < 2; i++) {
        setenv("RUN_APART", apart[i], 1);
        cr_expect(same_bytes(one, file_of("gpt", i ? &four : &pair, 0, one)), "others look at %s", apart[i]);
        unsetenv("RUN_APART");
    }
}

/* Damage that only one rank comes to is heard of by all. */
Test(mesh, damage_is_found_by_who_reads) {
    const combination pair = {"pipeline=2", 2, false, NULL};
    const char       *index = saved_at(temporary_path("damaged.safetensors.index.json"), "gpt", &pair, 3, NULL);
    FILE             *file = fopen(temporary_path("damaged-g1-00002-of-00002.safetensors"), "r+");
    cr_assert(file && fseek(file, -9, SEEK_END) == 0 && fputc(77, file) == 77 && fclose(file) == 0);
    char *text;
    setenv("RUN_LOAD", index, 1);
    cr_expect_eq(run_mesh("gpt", "f64", pair.mesh, 2, 0, temporary_path("none"), &text), 1, "%s", text);
    unsetenv("RUN_LOAD");
    cr_expect(strstr(text, "damaged-g1-00002-of-00002.safetensors': the checksum of array 'weft.solver.adam"), "%s", text);
    free(text);
}

/* One more step from `one` on, which writes over `index` and ends in the middle of a call of a rank's disk; its exit status. */
static int dies_at(const combination *c, const char *one, const char *index, int rank, int call) {
    char  who[32], *text;
    snprintf(who, sizeof who, "%d:%d", rank, call);
    setenv("RUN_DISK_DIES", who, 1);
    setenv("RUN_LOAD", one, 1);
    setenv("RUN_SAVE", index, 1);
    int status = run_mesh("mlp", "f64", c->mesh, c->ranks, 1, temporary_path("none"), &text);
    unsetenv("RUN_DISK_DIES");
    unsetenv("RUN_LOAD");
    unsetenv("RUN_SAVE");
    free(text);
    return status;
}

/* Whether the index is the next run, else it must be the former one. */
static bool is_next(const char *one, const char *next, const char *index, const char *what, int call) {
    const char *left = file_of("mlp", &alone, 0, index);
    bool        later = same_bytes(next, left);
    cr_expect(later || same_bytes(one, left), "%s, call %d: the run is neither the former nor the next one", what, call);
    return later;
}

static int files_beside(const char *index) {
    char  command[1024], n[16] = "";
    snprintf(command, sizeof command, "ls -A $(dirname %s) | grep -c '^[.]*mortal-g'", index);
    FILE *pipe = popen(command, "r");
    cr_assert(pipe && fgets(n, sizeof n, pipe));
    pclose(pipe);
    return atoi(n);
}

/* Wherever in its writing a rank dies, the index is the former run or the next one, whole; the next to be saved goes over what was left, and no file stays that no
 * index names. One process at every call, which has all kinds of them; of two, each in the middle of its file and before that is renamed, and at the index. */
Test(mesh, ranks_that_die_while_they_write) {
    const combination pair = {"pipeline=2", 2, false, NULL};
    const struct {
        int  rank, call;
        bool next;
    } moments[] = {{1, 3, false}, {1, 13, false}, {0, 9, false}, {0, 11, false}, {0, 13, true}};
    setenv("RUN_SOLVER", "sgd", 1);
    const char *one = file_of("mlp", &alone, 3, NULL), *next = file_of("mlp", &alone, 1, one), *index = temporary_path("mortal.safetensors.index.json");
    int         former = 0, later = 0, call = 0, status = 1;
    (void)saved_at(index, "mlp", &alone, 0, one);
    while (status != 0 && call < 100) {
        status = dies_at(&alone, one, index, 0, ++call);
        cr_assert(status == 0 || status == 128 + SIGKILL, "call %d: exit status %d", call, status);
        bool after = is_next(one, next, index, "one process", call);
        cr_expect(after || later == 0, "call %d: the former run behind the next one", call);
        if (after) (void)saved_at(index, "mlp", &alone, 0, one);
        former += !after;
        later += after;
    }
    cr_expect(status == 0 && former >= 15 && later >= 3, "%d calls before the index was there, %d behind", former, later);
    for (size_t i = 0; i < sizeof moments / sizeof *moments; i++) {
        cr_expect_neq(dies_at(&pair, one, index, moments[i].rank, moments[i].call), 0, "rank %d did not die at %d", moments[i].rank, moments[i].call);
        cr_expect_eq(is_next(one, next, index, "two ranks", moments[i].call), moments[i].next, "rank %d, call %d", moments[i].rank, moments[i].call);
    }
    (void)saved_at(index, "mlp", &pair, 0, one);
    cr_expect_eq(files_beside(index), 2, "%d files are beside the index, of two", files_beside(index));
    unsetenv("RUN_SOLVER");
}

static long sent_by(const combination *c, int steps, const char *path) {
    char *text;
    cr_assert_eq(run_mesh("gpt", "f32", c->mesh, c->ranks, steps, path, &text), 0, "%s: %s", c->mesh, text);
    const char *at = strstr(text, " sent ");
    cr_assert_not_null(at, "%s: %s", c->mesh, text);
    long bytes = strtol(at + 6, NULL, 10);
    free(text);
    return bytes;
}

/* Codecs that keep nothing go with stages, each of which sums its own gradients: to the losses of ranks along data that send the same, in fewer bytes than uncompressed. */
Test(mesh, compressed_sums_go_with_stages) {
    const combination data = {"data=2,compress=bf16", 2, false, NULL}, plain = {"data=2,pipeline=2,accumulate=2", 4, false, NULL};
    const combination staged[] = {{"data=2,pipeline=2,accumulate=2,compress=bf16", 4, false, NULL}, {"data=2,pipeline=2,accumulate=4,schedule=zero-bubble,compress=fp8", 4, false, NULL}};
    size_t            n, n_many;
    double           *one = curve_of("gpt", "f32", &data, 20, &n);
    long              uncompressed = sent_by(&plain, 1, temporary_path("sent"));
    for (size_t i = 0; i < 2; i++) {
        const char *path = temporary_path("staged");
        long        bytes = sent_by(&staged[i], 20, path);
        double     *many = read_doubles(path, &n_many);
        agree(one, n, many, n_many, staged[i].mesh, i == 0 ? 2e-5 : 1e-3); /* the second in 8 bits, not in 16 */
        cr_expect(bytes < uncompressed, "%s: %ld bytes, %ld uncompressed", staged[i].mesh, bytes, uncompressed);
        free(many);
    }
    free(one);
}

/* What is no index, or names what is not there, is said so. */
Test(mesh, indices_that_are_wrong) {
    static const struct {
        const char *text, *word;
    } cases[] = {{"{", "expected"}, {"{\"metadata\": {}}", "no weight_map"}, {"{\"weight_map\": {\"a\": 3}}", "the name of a file"},
                 {"{\"weight_map\": {\"a\": \"../a.safetensors\"}}", "its own folder"}, {"{\"weight_map\": {\"a\": \"gone.safetensors\"}}", "gone.safetensors"},
                 {"{\"more\": {}}", "has 'more'"}};
    const char *path = temporary_path("wrong.safetensors.index.json");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        FILE *file = fopen(path, "w");
        cr_assert(file && fputs(cases[i].text, file) >= 0 && fclose(file) == 0);
        fails("gpt", "data=1", 1, "RUN_LOAD", path, cases[i].word, "wrong.safetensors.index.json");
    }
}

Test(mesh, a_rank_that_dies_ends_all) { deaths_end_all(false); }

/* The tuner: what it measures, the choice that follows from it, the file that keeps it, and WEFT_TUNING as worlds read it. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cases.h"
#include "common/effort.h"
#include "common/files.h"
#include "transport/coll.h"
#include "core/iface/world.h"
#include "transport/tune.h"
#include "weft.h"
#include "transport/ranks.h" /* after weft.h, whose parameters have names of its types */

static const wire_setup inproc = {.name = "inproc", .mode = AS_THREADS, .open = wefti_wire_inproc_open};
static const wire_setup shm = {.name = "shm", .mode = AS_PROCESSES, .open = wefti_wire_shm_open};
static const wire_setup tcp = {.name = "tcp", .mode = AS_PROCESSES, .open = wefti_wire_tcp_open};
static const int32_t nodes[MOST_RANKS] = {0, 0, 1, 0, 1, 2, 2, 0};

static int64_t hash_bytes(const void *bytes, size_t count) {
    uint64_t hash = 7;
    for (size_t i = 0; i < count; i++) hash = hash * 31 + ((const uint8_t *)bytes)[i];
    return (int64_t)hash;
}

/* Which row of the table is taken; the same on all ranks. */
static int chosen(rank_world *world, const wefti_group *group, wefti_collective_kind kind, size_t bytes) {
    if (kind == WEFTI_BARRIER) bytes = 0; /* it moves none, and no algorithm would take more */
    wefti_collective_call call = {.kind = kind, .count = bytes / sizeof(float)};
    const coll_algorithm *algorithm = wefti_coll_choose((const coll_group *)group, &call, bytes);
    CHECK(algorithm, "no algorithm for kind %d of %zu bytes", (int)kind, bytes);
    int row = (int)(algorithm - wefti_coll_algorithms);
    check_equal_everywhere(world, row, "the choice");
    return row;
}

/* --- measuring --- */

static void measured(rank_world *world) {
    static const size_t sizes[] = {4, 4096, 300000, (size_t)64 << 20};
    wefti_link_cost links[MOST_RANKS * WEFTI_TUNING_DISTANCES];
    wefti_tuning tuning;
    wefti_group *group = group_of_all(world, &(wefti_group_options){.nodes = nodes});
    CHECK_OK(wefti_tuning_measure(group, &tuning, links));
    check_equal_everywhere(world, hash_bytes(&tuning, sizeof tuning), "the tuning");
    CHECK(tuning.ranks == world->size && tuning.hosts == ((coll_group *)group)->nodes.count, "%d ranks, %d hosts", tuning.ranks, tuning.hosts);
    CHECK(strcmp(tuning.wire, world->wire->can.name) == 0, "%s", tuning.wire);
    const double numbers[] = {tuning.alpha_ns, tuning.beta_ns, tuning.far_alpha_ns, tuning.far_beta_ns, tuning.gamma_ns};
    for (size_t i = 0; i < WEFTI_COUNT(numbers); i++) CHECK(numbers[i] > 0 && numbers[i] < 1e9, "number %zu: %g", i, numbers[i]);
    int32_t count = wefti_tuning_links(world->size);
    CHECK(count == world->size * (world->size > 3 ? 3 : world->size - 1), "%d links", count);
    for (int32_t i = 0; i < count; i++) {
        CHECK(links[i].from != links[i].to && links[i].alpha_ns > 0 && links[i].beta_ns > 0, "link %d", i);
        CHECK(links[i].far == (nodes[links[i].from] != nodes[links[i].to]), "link %d from %d to %d", i, links[i].from, links[i].to);
        for (int32_t k = 0; k < i; k++) CHECK(links[i].from != links[k].from || links[i].to != links[k].to, "%d and %d are one", i, k);
    }
    wefti_tuning_apply(group, &tuning);
    for (size_t k = 0; k < every_kind_count; k++)
        for (size_t s = 0; s < WEFTI_COUNT(sizes); s++) chosen(world, group, every_kind[k], sizes[s]);
    CLOSE(group);
}

Test(tuning, measured_inproc) {
    conformance_run_one(&inproc, 2, "measured", measured);
    conformance_run_one(&inproc, 5, "measured", measured);
}
Test(tuning, measured_shm) { conformance_run_one(&shm, 3, "measured", measured); }
Test(tuning, measured_tcp) { conformance_run_one(&tcp, 4, "measured", measured); }

/* --- the choice --- */

/* A tuning out of the air, number `turn`: costs over six orders of magnitude, and every algorithm of a kind in turn. */
static wefti_tuning invent(const rank_world *world, int turn) {
    wefti_tuning tuning = {.ranks = world->size, .hosts = 1};
    double scale = turn % 3 == 0 ? 1e-3 : turn % 3 == 1 ? 1 : 1e3;
    snprintf(tuning.wire, sizeof tuning.wire, "%s", world->wire->can.name);
    tuning.alpha_ns = tuning.far_alpha_ns = 1000 * scale;
    tuning.beta_ns = tuning.far_beta_ns = 1 / scale;
    tuning.gamma_ns = turn % 2 ? 10 : 0.01;
    for (size_t k = 0; k < every_kind_count && turn % 4; k++)
        for (int i = 0, step = 0; i < wefti_coll_algorithm_count; i++) {
            const coll_algorithm *algorithm = &wefti_coll_algorithms[(i + turn) % wefti_coll_algorithm_count];
            if (!(algorithm->kinds >> every_kind[k] & 1) || step == 4) continue;
            wefti_tuning_rule *rule = &tuning.rules[tuning.rule_count++];
            *rule = (wefti_tuning_rule){.bytes = step ? (size_t)16 << (6 * step) : 0, .kind = (int32_t)every_kind[k]};
            snprintf(rule->algorithm, sizeof rule->algorithm, "%s", algorithm->name);
            step++;
        }
    return tuning;
}

/* Under each: the oracle's results, one choice for all, and the same bits of inexact sums on all ranks. */
static void any_choice_any_result(rank_world *world) {
    enum { TURNS = UNDER_THREAD_SANITIZER ? 3 : 8, FLOATS = 50001 };
    static const size_t counts[] = {1, 700, 40000};
    uint32_t taken = 0;
    arenas memory;
    arenas_open(world, &memory, (size_t)16 << 20);
    wefti_group *group = group_of_all(world, &(wefti_group_options){.nodes = nodes});
    float *x = calloc(FLOATS, sizeof *x);
    for (int turn = 0; turn < TURNS; turn++) {
        wefti_tuning tuning = invent(world, turn);
        wefti_tuning_apply(group, &tuning);
        for (size_t k = 0; k < every_kind_count; k++)
            for (size_t c = 0; c < WEFTI_COUNT(counts); c++) {
                taken |= 1u << chosen(world, group, every_kind[k], counts[c] * sizeof(float));
                call_run(world, group, &memory, (call_case){.kind = every_kind[k], .dtype = WEFT_F32, .count = counts[c],
                         .root = turn % world->size, .in_place = turn % 2, .where = (placement)(c % PLACEMENTS), .seed = (uint32_t)turn});
            }
        for (int i = 0; i < FLOATS; i++) x[i] = 1.0f / (float)(1 + i * 7 + world->rank * 13);
        wefti_collective_call sum = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_F32, .send = x, .receive = x, .count = FLOATS};
        CHECK_OK(wefti_collective_run(group, &sum));
        check_equal_everywhere(world, hash_floats(x, FLOATS), "the bits of a sum");
    }
    CHECK(__builtin_popcount(taken) >= 8, "only %d algorithms were taken", __builtin_popcount(taken));
    free(x);
    CLOSE(group);
    arenas_close(world, &memory);
}

Test(tuning, any_choice_inproc) { conformance_run_one(&inproc, 5, "any_choice", any_choice_any_result); }
Test(tuning, any_choice_shm) { conformance_run_one(&shm, 3, "any_choice", any_choice_any_result); }
Test(tuning, any_choice_tcp) { conformance_run_one(&tcp, 4, "any_choice", any_choice_any_result); }

static const char *name_of(rank_world *world, const wefti_group *group, size_t bytes) {
    return wefti_coll_algorithms[chosen(world, group, WEFTI_ALLREDUCE, bytes)].name;
}

static void order_of_precedence(rank_world *world) {
    wefti_tuning tuning = {.alpha_ns = 1000, .beta_ns = 1, .far_alpha_ns = 1000, .far_beta_ns = 1, .gamma_ns = 0.1, .ranks = world->size,
                           .hosts = 1, .rule_count = 3,
                           .rules = {{0, WEFTI_ALLREDUCE, "ring"}, {100, WEFTI_ALLREDUCE, "doubling"}, {2000, WEFTI_ALLREDUCE, "twotree"}}};
    wefti_group *forced = group_of_all(world, &(wefti_group_options){.algorithm = "allreduce:halving"});
    wefti_group *open = group_of_all(world, &(wefti_group_options){.id = 1});
    wefti_tuning_apply(forced, &tuning);
    wefti_tuning_apply(open, &tuning);
    CHECK(strcmp(name_of(world, forced, 8), "halving") == 0, "what is forced comes before any rule");
    CHECK(strcmp(name_of(world, open, 99), "ring") == 0, "the first rule");
    CHECK(strcmp(name_of(world, open, 100), "doubling") == 0, "the second");
    CHECK(strcmp(name_of(world, open, 5000), "twotree") == 0, "the third");
    tuning.rule_count = 2;
    wefti_tuning_apply(open, &tuning);
    CHECK(strcmp(name_of(world, open, (size_t)64 << 20), "doubling") != 0, "a rule whose algorithm does not fit leaves it to the costs");
    tuning.rule_count = 1;
    wefti_tuning_apply(open, &tuning);
    CHECK(strcmp(name_of(world, open, 8), "ring") == 0, "what was applied before is gone");
    tuning.ranks++;
    wefti_tuning_apply(open, &tuning);
    CHECK(strcmp(name_of(world, open, 8), "ring") != 0, "rules are for groups of as many ranks");
    tuning.alpha_ns = 1e9; /* messages cost all, bytes nothing: the one with the fewest, direct, from there on as it fits */
    wefti_tuning_apply(open, &tuning);
    CHECK(strcmp(name_of(world, open, 1000), "direct") == 0, "dear messages");
    tuning.alpha_ns = 1e-3, tuning.beta_ns = 1e6; /* bytes cost all: ring and halving send the fewest */
    wefti_tuning_apply(open, &tuning);
    const char *name = name_of(world, open, 1000);
    CHECK(strcmp(name, "ring") == 0 || strcmp(name, "halving") == 0, "dear bytes: %s", name);
    CLOSE(open);
    CLOSE(forced);
}

Test(tuning, order_of_precedence) { conformance_run_one(&tcp, 4, "order_of_precedence", order_of_precedence); }

/* --- the file --- */

static void path_for(char path[64]) {
    snprintf(path, 64, "%s/weft-tuning-XXXXXX", temporary_root());
    int file = mkstemp(path);
    cr_assert(file >= 0);
    close(file);
}

static void write_bytes(const char *path, const void *bytes, size_t count) {
    FILE *file = fopen(path, "w");
    cr_assert(file && fwrite(bytes, 1, count, file) == count && fclose(file) == 0);
}

static wefti_tuning example(const char *wire) {
    wefti_tuning tuning = {.ranks = 2, .hosts = 1, .rule_count = 3, .alpha_ns = 12500, .beta_ns = 0.25, .far_alpha_ns = 30000.5,
                           .far_beta_ns = 0.8, .gamma_ns = 0.0625,
                           .rules = {{0, WEFTI_ALLREDUCE, "doubling"}, {65536, WEFTI_ALLREDUCE, "swap"}, {0, WEFTI_BROADCAST, "chain"}}};
    snprintf(tuning.wire, sizeof tuning.wire, "%s", wire);
    return tuning;
}

Test(tuning, a_file_comes_back) {
    char path[64];
    wefti_tuning tuning = example("tcp"), back;
    path_for(path);
    cr_assert(wefti_tuning_save(path, &tuning) == WEFT_OK, "%s", weft_error_message());
    cr_assert(wefti_tuning_read(path, &back) == WEFT_OK, "%s", weft_error_message());
    cr_expect(memcmp(&tuning, &back, sizeof back) == 0);
    cr_expect(wefti_tuning_save("/nowhere/at all", &tuning) != WEFT_OK && strstr(weft_error_message(), "/nowhere/at all"));
    unlink(path);
}

Test(tuning, damage_is_seen) {
    char path[64];
    wefti_tuning tuning = example("tcp"), back;
    wefti_text text = {0};
    path_for(path);
    wefti_tuning_write(&tuning, &text);
    cr_assert(!text.failed && text.length > 200);
    for (size_t i = 0; i < text.length; i++) {
        static const uint8_t flips[] = {1, 4, 32, 128};
        for (size_t f = 0; f < sizeof flips; f++) {
            text.bytes[i] ^= (char)flips[f];
            write_bytes(path, text.bytes, text.length);
            cr_expect(wefti_tuning_read(path, &back) == WEFT_E_CORRUPT, "byte %zu with bit %d", i, flips[f]);
            cr_expect(strstr(weft_error_message(), path), "%s", weft_error_message());
            text.bytes[i] ^= (char)flips[f];
        }
        write_bytes(path, text.bytes, i);
        cr_expect(wefti_tuning_read(path, &back) == WEFT_E_CORRUPT, "cut off after %zu bytes", i);
    }
    wefti_text_add(&text, "gamma_ns 1\n");
    write_bytes(path, text.bytes, text.length);
    cr_expect(wefti_tuning_read(path, &back) == WEFT_E_CORRUPT && strstr(weft_error_message(), "goes on"), "%s", weft_error_message());
    wefti_text_release(&text);
    unlink(path);
}

Test(tuning, foreign_files_are_refused) {
    static const char *const texts[] = {"", "\n", "{\"alpha\": 1}\n", "wire tcp\nwire\n", "use allreduce 0 magic\n", "use dance 0 ring\n",
                                        "use allreduce 9 ring\nuse allreduce 9 swap\n", "use broadcast 0 chain\nuse allreduce 0 ring\n",
                                        "alpha_ns nan\n", "alpha_ns -1\n", "alpha_ns 1e300\n", "beta_ns 1 2\n", "ranks 0\n",
                                        "ranks 99999999999\n", "hosts two\n", "\x7f" "ELF\x02\x01\n"};
    char path[64];
    wefti_tuning tuning;
    path_for(path);
    for (size_t i = 0; i < WEFTI_COUNT(texts); i++) {
        write_bytes(path, texts[i], strlen(texts[i]));
        cr_expect(wefti_tuning_read(path, &tuning) == WEFT_E_CORRUPT, "%s", texts[i]);
        cr_expect(strstr(weft_error_message(), path), "%s", weft_error_message());
    }
    write_bytes(path, "wire tcp\nuse allreduce 0 magic\n", 31);
    cr_expect(wefti_tuning_read(path, &tuning) == WEFT_E_CORRUPT && strstr(weft_error_message(), ":2: 'use allreduce 0 magic'"), "%s",
              weft_error_message());
    cr_expect(wefti_tuning_read("/", &tuning) != WEFT_OK && strstr(weft_error_message(), "cannot read"), "%s", weft_error_message());
    unlink(path);
    cr_expect(wefti_tuning_read(path, &tuning) != WEFT_OK && strstr(weft_error_message(), "cannot open"), "%s", weft_error_message());
}

/* --- worlds --- */

static char how[2][80]; /* WEFT_TUNING of rank 0 and of the others */
static wefti_tuning due;

static weft_status enter(int32_t rank, weft_world **world_out) {
    if (how[rank > 0][0]) setenv("WEFT_TUNING", how[rank > 0], 1);
    return weft_world_create(&(weft_world_options){.wire = "tcp", .threads = {.count = 1}}, world_out);
}

static weft_status tuned_world(ranks *all, int32_t rank) {
    weft_world *world = NULL;
    weft_group *group = NULL;
    float x[1000], wrong = 0;
    weft_status status = enter(rank, &world);
    if (status == WEFT_OK) {
        const coll_group *inner = (const coll_group *)world->group;
        coll_model first = wefti_coll_first_model(inner->base.wire);
        if (due.ranks && (inner->model.alpha_ns != due.alpha_ns || inner->model.gamma_ns != due.gamma_ns))
            status = wefti_fail(WEFT_E_INTERNAL, "the file does not count: alpha is %g", inner->model.alpha_ns);
        if (inner->model.alpha_ns == first.alpha_ns) status = wefti_fail(WEFT_E_INTERNAL, "nothing was measured");
        if (inner->rule_first[WEFTI_COLLECTIVE_KIND_COUNT] != (due.ranks == all->size ? due.rule_count : 0))
            status = wefti_fail(WEFT_E_INTERNAL, "%d rules", inner->rule_first[WEFTI_COLLECTIVE_KIND_COUNT]);
    }
    if (status == WEFT_OK) status = weft_group_create(world, NULL, &group);
    for (int i = 0; i < 1000; i++) x[i] = (float)(i + rank);
    if (status == WEFT_OK) status = weft_group_allreduce(group, x, x, 1000, WEFT_F32, WEFT_COMBINE_SUM);
    for (int i = 0; i < 1000 && status == WEFT_OK; i++) wrong += x[i] != (float)(all->size * i + all->size * (all->size - 1) / 2);
    if (status == WEFT_OK && wrong > 0) status = wefti_fail(WEFT_E_INTERNAL, "%g sums are wrong", (double)wrong);
    weft_group_release(group);
    weft_world_release(world);
    return status;
}

/* All ranks end with the status; the messages hold the words. */
static void try(int32_t size, const char *mine, const char *theirs, weft_status status, const char *words) {
    snprintf(how[0], sizeof how[0], "%s", mine);
    snprintf(how[1], sizeof how[1], "%s", theirs);
    ranks *all = ranks_start(size, tuned_world);
    ranks_join(all);
    for (int32_t rank = 0; rank < size; rank++) {
        cr_expect(all->results[rank].status == status, "%s, rank %d: %s", mine, (int)rank, all->results[rank].message);
        cr_expect(!words || strstr(all->results[rank].message, words), "%s, rank %d: %s", mine, (int)rank, all->results[rank].message);
    }
    ranks_free(all);
}

Test(tuning, worlds_measure_and_save) {
    char path[64], both[80];
    path_for(path);
    snprintf(both, sizeof both, "measure:%s", path);
    due = (wefti_tuning){0};
    try(2, "measure", "measure", WEFT_OK, NULL);
    try(3, both, "measure", WEFT_OK, NULL);
    cr_assert(wefti_tuning_read(path, &due) == WEFT_OK, "%s", weft_error_message());
    cr_expect(due.ranks == 3 && due.hosts == 1 && due.rule_count == 0 && strcmp(due.wire, "tcp") == 0);
    try(3, path, "not looked at on other ranks", WEFT_OK, NULL);
    due = (wefti_tuning){0};
    try(2, "measure:/nowhere/at-all", "measure", WEFT_E_NOT_FOUND, "/nowhere/at-all");
    unlink(path);
}

Test(tuning, worlds_read_files) {
    char path[64];
    wefti_tuning tuning = example("tcp");
    path_for(path);
    due = tuning;
    cr_assert(wefti_tuning_save(path, &tuning) == WEFT_OK);
    try(2, path, path, WEFT_OK, NULL);
    try(3, path, path, WEFT_OK, NULL); /* its costs, without its rules */
    try(2, path, "", WEFT_E_MISMATCH, "WEFT_TUNING is a file on rank 0 and not set on rank 1");
    try(2, "", "measure", WEFT_E_MISMATCH, "WEFT_TUNING is not set on rank 0 and to measure on rank 1");
    tuning = example("shm");
    cr_assert(wefti_tuning_save(path, &tuning) == WEFT_OK);
    try(2, path, path, WEFT_E_MISMATCH, "is of the wire shm, and this is tcp");
    tuning = example("tcp");
    tuning.hosts = 2;
    cr_assert(wefti_tuning_save(path, &tuning) == WEFT_OK);
    try(2, path, path, WEFT_E_MISMATCH, "was measured on 2 host(s), and the ranks are on 1");
    write_bytes(path, "wire tcp\nranks 2\n", 17);
    try(2, path, path, WEFT_E_CORRUPT, "cut off");
    unlink(path);
    try(2, path, path, WEFT_E_NOT_FOUND, "cannot open the tuning");
}

/* --- the program --- */

#ifdef WEFT_TEST_BENCH
Test(tuning, the_program_writes_what_worlds_read) {
    char path[64], command[400], line[200];
    bool kinds[WEFTI_COLLECTIVE_KIND_COUNT] = {0};
    int rows = 0, marks = 0;
    path_for(path);
    snprintf(command, sizeof command, "%s/weft-bench tune --wire tcp --ranks 2 --sizes 64:16K --seconds 0.0005 --out %s", WEFT_BIN_DIR, path);
    FILE *table = popen(command, "r");
    cr_assert(table);
    while (fgets(line, sizeof line, table)) {
        char kind[32], algorithm[32];
        size_t bytes;
        double seconds, model;
        if (sscanf(line, "%31s %zu %31s%*[ ]%lf %lf", kind, &bytes, algorithm, &seconds, &model) != 5) continue;
        cr_expect(seconds > 0 && model > 0, "%s", line);
        rows++;
        marks += algorithm[0] == '>';
    }
    cr_assert(pclose(table) == 0);
    cr_expect(marks == 8 * 5 && rows > marks, "%d rows, %d of them marked", rows, marks); /* 64, 256, 1K, 4K, 16K */
    cr_assert(wefti_tuning_read(path, &due) == WEFT_OK, "%s", weft_error_message());
    for (int32_t i = 0; i < due.rule_count; i++) kinds[due.rules[i].kind] = true;
    for (int kind = 0; kind < WEFTI_COLLECTIVE_KIND_COUNT; kind++)
        cr_expect(kinds[kind] == (kind <= WEFTI_ALLTOALL && kind != WEFTI_BARRIER), "kind %d", kind);
    try(2, path, path, WEFT_OK, NULL);
    unlink(path);
}
#endif

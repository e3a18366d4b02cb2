/* Measures what links and memory cost and, for each kind and size, every algorithm that can do it; prints both, with the cost that
 * the model gives, and writes what WEFT_TUNING reads. The time of an algorithm is the least of a few windows, each that of the
 * slowest rank: what it can do when nobody is in the way. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "ranks.h"
#include "transport/coll.h"
#include "transport/tune.h"

typedef struct tune_options {
    const char *wire, *out_path;
    double ranks, seconds;
    bench_sizes sizes;
} tune_options;

enum { WINDOWS = 3, LINKS_PRINTED = 12, MOST_ALGORITHMS = 32 };

static const wefti_collective_kind kinds[] = {WEFTI_ALLREDUCE, WEFTI_REDUCE_SCATTER, WEFTI_ALLGATHER, WEFTI_BROADCAST,
                                              WEFTI_REDUCE_TO, WEFTI_GATHER,         WEFTI_SCATTER,   WEFTI_ALLTOALL};

static void print_links(const wefti_tuning *tuning, const wefti_link_cost *links, int32_t count) {
    printf("# %s, %d ranks: alpha %.0f ns, beta %.4f ns/B (%.2f GB/s), gamma %.4f ns/B\n", tuning->wire, (int)tuning->ranks,
           tuning->alpha_ns, tuning->beta_ns, 1 / tuning->beta_ns, tuning->gamma_ns);
    printf("%6s %6s %6s %12s %12s\n", "from", "to", "hosts", "alpha (ns)", "beta (ns/B)");
    for (int32_t i = 0; i < count && i < LINKS_PRINTED; i++)
        printf("%6d %6d %6s %12.0f %12.4f\n", (int)links[i].from, (int)links[i].to, links[i].far ? "two" : "one",
               links[i].alpha_ns, links[i].beta_ns);
    if (count > LINKS_PRINTED) printf("%6s %d more\n", "…", (int)(count - LINKS_PRINTED));
    printf("\n%-15s %10s  %-14s %12s %12s\n", "collective", "size (B)", "algorithm", "time (us)", "model (us)");
}

/* Seconds of one call. */
static double time_call(bench_rank *rank, wefti_group *group, const wefti_collective_call *call, double seconds) {
    double best = 1e9;
    int64_t times = 2;
    for (int window = 0; window < WINDOWS; window++) {
        bench_meet(rank);
        double begin = bench_now_s();
        for (int64_t i = 0; i < times; i++) BENCH_TRY(rank, wefti_collective_run(group, call));
        double taken = bench_slowest(rank, (bench_now_s() - begin) / (double)times);
        best = taken < best ? taken : best;
        double wanted = seconds / best;
        times = bench_agree(rank, wanted < 2 ? 2 : wanted > 20000 ? 20000 : (int64_t)wanted);
    }
    return best;
}

typedef struct measuring {
    bench_rank *rank;
    const tune_options *options;
    wefti_tuning *tuning;
    wefti_group *groups[MOST_ALGORITHMS]; /* by algorithm, which it forces; NULL where that is none for the wire */
    uint8_t *send, *receive;
} measuring;

static void print_time(wefti_collective_kind kind, size_t bytes, const char *name, bool taken, double seconds, double model_ns) {
    printf("%-15s %10zu %s%-14s %12.2f ", wefti_coll_kind_name(kind), bytes, taken ? ">" : " ", name, seconds * 1e6);
    if (isfinite(model_ns))
        printf("%12.2f\n", model_ns / 1e3);
    else
        printf("%12s\n", "none"); /* MPI's own: what they cost is measured alone */
}

/* Times every algorithm for one kind and size; the sign marks the one that is taken. The sizes are those of the call's count, as
 * rules have them. */
static void measure_size(measuring *it, wefti_collective_kind kind, size_t bytes) {
    wefti_collective_call call = {.kind = kind, .send = it->send, .receive = it->receive, .count = bytes / sizeof(float)};
    double seconds[MOST_ALGORITHMS] = {0};
    int best = -1;
    bytes = call.count * sizeof(float);
    for (int a = 0; a < wefti_coll_algorithm_count; a++) {
        const coll_algorithm *algorithm = &wefti_coll_algorithms[a];
        wefti_group *group = it->groups[a];
        if (!group || !(algorithm->kinds >> kind & 1)) continue;
        if (wefti_coll_choose((coll_group *)group, &call, bytes) != algorithm) continue;
        seconds[a] = time_call(it->rank, group, &call, it->options->seconds);
        if (best < 0 || seconds[a] < seconds[best]) best = a;
    }
    for (int a = 0; a < wefti_coll_algorithm_count && it->rank->rank == 0; a++)
        if (seconds[a] > 0)
            print_time(kind, bytes, wefti_coll_algorithms[a].name, a == best, seconds[a],
                       wefti_coll_algorithms[a].cost_ns((coll_group *)it->groups[a], kind, bytes));
    fflush(stdout);
    if (best >= 0) wefti_tuning_add_rule(it->tuning, kind, bytes, wefti_coll_algorithms[best].name);
}

static void write_file(bench_rank *rank, const char *path, const wefti_tuning *tuning) {
    wefti_text text = {0};
    if (path) {
        BENCH_TRY(rank, wefti_tuning_save(path, tuning));
        printf("\nwritten to %s; use it by WEFT_TUNING=%s\n", path, path);
        return;
    }
    wefti_tuning_write(tuning, &text);
    printf("\n%s", text.failed ? "" : text.bytes);
    wefti_text_release(&text);
}

static int body(bench_rank *rank) {
    const tune_options *options = rank->argument;
    wefti_tuning tuning;
    wefti_group *group = NULL;
    measuring it = {.rank = rank, .options = options, .tuning = &tuning};
    wefti_group_options how = {.wire = rank->wire, .size = rank->size, .index = rank->rank};
    const wefti_collective_engine *engine = wefti_collective_engine_weft();
    int32_t count = wefti_tuning_links(rank->size);
    wefti_link_cost *links = calloc((size_t)count + 1, sizeof *links);
    size_t bytes = wefti_align_up(options->sizes.last * (size_t)rank->size, 4096);
    it.send = calloc(2, bytes);
    if (!links || !it.send || wefti_coll_algorithm_count > MOST_ALGORITHMS) bench_fail(rank, "out of memory");
    it.receive = it.send + bytes;
    BENCH_TRY(rank, engine->open(&how, &group));
    BENCH_TRY(rank, wefti_tuning_measure(group, &tuning, links));
    if (rank->rank == 0) print_links(&tuning, links, count);
    tuning.rule_count = 0; /* all are made below */
    for (int a = 0; a < wefti_coll_algorithm_count; a++) {
        how.id = (uint16_t)(a + 1);
        how.algorithm = wefti_coll_algorithms[a].name;
        weft_status status = engine->open(&how, &it.groups[a]);
        if (status == WEFT_E_NOT_FOUND) continue; /* not over this wire */
        if (status != WEFT_OK) bench_fail(rank, "open");
        wefti_tuning_apply(it.groups[a], &tuning); /* no rules yet: its costs alone */
    }
    for (size_t k = 0; k < WEFTI_COUNT(kinds); k++)
        for (size_t size = options->sizes.first; size <= options->sizes.last; size *= 4) measure_size(&it, kinds[k], size);
    bench_meet(rank);
    if (rank->rank == 0) write_file(rank, options->out_path, &tuning);
    for (int a = 0; a < wefti_coll_algorithm_count; a++)
        if (it.groups[a]) engine->close(it.groups[a]);
    engine->close(group);
    free(it.send);
    free(links);
    return 0;
}

int bench_tune(int argc, char **argv) {
    tune_options options = {.wire = "tcp", .ranks = 2, .seconds = 0.01, .sizes = {64, (size_t)4 << 20}};
    const bench_option list[] = {{"wire", "inproc, shm, tcp (default), verbs, or mpi, under mpirun", BENCH_TEXT, &options.wire},
                                 {"ranks", "how many (2); they are started here", BENCH_NUMBER, &options.ranks},
                                 {"sizes", "bytes of a call's count, by fours from the first to the last (64:4M)", BENCH_SIZES, &options.sizes},
                                 {"seconds", "length of a window (0.01)", BENCH_NUMBER, &options.seconds},
                                 {"out", "file to write; without it, it is printed", BENCH_TEXT, &options.out_path},
                                 {0}};
    bench_read_options(argc, argv, "Measures links and algorithms; writes what WEFT_TUNING reads.", list);
    if (options.ranks < 2) {
        fprintf(stderr, "error: --ranks %g: there is nothing to choose below two\n", options.ranks);
        return 2;
    }
    if (options.sizes.first < sizeof(float)) options.sizes.first = sizeof(float);
    return bench_run_ranks(options.wire, (int32_t)options.ranks, body, &options);
}

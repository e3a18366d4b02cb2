/* Training by a parameter server: without staleness it is training by allreduce; with it, it learns all the same. What it cannot do it says. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "train/images.h"
#include "train/run.h"
#include "weft.h"

/* The variables after some steps of the network of test_parity. */
static double *train(int ranks, const char *wire, const char *solver, const char *dtype, int micro, const char *servers, size_t *count_out) {
    static int  runs;
    char        name[64], arguments[512];
    snprintf(name, sizeof name, "variables-%d", runs++);
    const char *path = temporary_path(name), *output = temporary_path("output");
    snprintf(arguments, sizeof arguments, "%s %s %d 30 %s", solver, dtype, micro, path);
    if (servers) setenv("RUN_SERVER", "0", 1);
    else unsetenv("RUN_SERVER");
    setenv("RUN_SERVERS", servers ? servers : "0", 1);
    if (!servers) unsetenv("RUN_SERVERS");
    int   status = run_ranks(ranks, wire, "train_program_parity", arguments, output);
    char *text = read_text(output);
    cr_assert_eq(status, 0, "%d ranks, %s, %s: exit status %d: %s", ranks, solver, servers ? "by a server" : "alone", status, text);
    free(text);
    return read_doubles(path, count_out);
}

static void agrees(const char *solver, const char *dtype, int micro, int ranks, const char *wire, const char *servers, double tolerance) {
    size_t  n, m;
    double *one = train(0, NULL, solver, dtype, 1, NULL, &n), *many = train(ranks, wire, solver, dtype, micro, servers, &m);
    double  difference = 0, size = 0;
    /* Servers keep the solver's states, so those of the trainer come first and are not compared with anything. */
    cr_assert(m <= n, "%zu and %zu numbers", m, n);
    for (size_t i = 0; i < m; i++) {
        difference += (one[i] - many[i]) * (one[i] - many[i]);
        size += one[i] * one[i];
    }
    cr_assert(sqrt(difference / size) <= tolerance, "%s %s, %d ranks over %s, %s servers: off by %.3g, allowed %.3g", solver, dtype, ranks, wire, servers,
              sqrt(difference / size), tolerance);
    free(one);
    free(many);
}

Test(served, nesterov_is_as_on_one_rank) { agrees("nesterov", "f64", 2, 3, "shm", "0", 1e-9); }
Test(served, adam_is_as_on_one_rank) { agrees("adam-unclipped", "f64", 1, 2, "shm", "1", 1e-9); }
Test(served, adam_is_as_on_one_rank_over_tcp) { agrees("adam-unclipped", "f64", 1, 4, "tcp", "2", 1e-9); }
Test(served, nesterov_in_f32) { agrees("nesterov", "f32", 1, 3, "shm", "0", 1e-5); }
Test(served, adagrad_is_as_on_one_rank) { agrees("adagrad", "f64", 1, 2, "shm", "0", 1e-6); }
Test(served, rmsprop_is_as_on_one_rank) { agrees("rmsprop", "f64", 1, 3, "tcp", "0", 1e-9); }
Test(served, one_rank_serves_itself) { agrees("rmsprop", "f64", 1, 1, "shm", "0", 1e-9); }

/* The same bits in every run, whoever comes first. */
Test(served, sums_have_the_same_bits_in_every_run) {
    size_t  n, m;
    double *first = train(3, "shm", "adam-unclipped", "f32", 1, "0", &n), *second = train(3, "shm", "adam-unclipped", "f32", 1, "0", &m);
    cr_assert_eq(n, m);
    cr_assert_eq(memcmp(first, second, n * sizeof *first), 0, "two runs differ");
    free(first);
    free(second);
}

/* A gradient that does not depend on the batch counts once. */
Test(served, a_gradient_without_the_batch) {
    setenv("RUN_PENALTY", "1", 1);
    agrees("rmsprop", "f64", 2, 3, "shm", "0", 1e-9);
}

/* Where the device's memory is not the host's. */
Test(served, memory_of_the_devices_own) {
    setenv("RUN_FAR", "3", 1);
    agrees("adam-unclipped", "f64", 2, 2, "shm", "0", 1e-9);
}

/* --- what it refuses --- */

static void refuses(weft_program program, weft_status wanted, const char *part) {
    weft_world   *world = NULL;
    weft_graph   *graph = NULL;
    weft_trainer *trainer = NULL;
    cr_assert_eq(weft_world_create(&(weft_world_options){.threads = {.count = 1}}, &world), WEFT_OK);
    cr_assert_eq(weft_graph_create(NULL, &graph), WEFT_OK);
    weft_tensor *x = weft_input(graph, "x", WEFT_F32, weft_shape(4, 3));
    program.loss = weft_mean(weft_square(weft_linear(x, "layer", .out = 1)));
    if (program.solver.rate == 0) program.solver = weft_sgd(0.1);
    weft_status status = weft_trainer_create(world, &program, &trainer);
    cr_expect_eq(status, wanted, "%s: %s", weft_status_name(status), weft_error_message());
    cr_expect(strstr(weft_error_message(), part), "%s", weft_error_message());
    weft_trainer_release(trainer);
    weft_graph_release(graph);
    weft_world_release(world);
}

Test(served, refuses_what_it_cannot_do) {
    const weft_strategy by_server = {.sync = WEFT_SERVER};
    refuses((weft_program){.strategy = by_server, .solver = weft_lbfgs(1)}, WEFT_E_UNSUPPORTED, "does not go with L-BFGS");
    refuses((weft_program){.strategy = by_server, .solver = weft_sgd(0.1, .clip_norm = 1)}, WEFT_E_UNSUPPORTED, "use clip_value");
    refuses((weft_program){.strategy = {.sync = WEFT_SERVER, .precision = WEFT_F16}}, WEFT_E_UNSUPPORTED, "use bf16");
    refuses((weft_program){.strategy = {.sync = WEFT_SERVER, .compress = {.codec = WEFT_COMPRESS_POWER_SGD}}}, WEFT_E_UNSUPPORTED, "rows go with bf16");
    refuses((weft_program){.strategy = {.compress = {.codec = WEFT_COMPRESS_FIXED8}}}, WEFT_E_UNSUPPORTED, "compress.codec fixed8 is for sync = WEFT_SERVER");
    refuses((weft_program){.strategy = {.sync = WEFT_SERVER, .staleness = -2}}, WEFT_E_INVALID, "staleness -2");
    refuses((weft_program){.strategy = {.sync = WEFT_SERVER, .servers = 2}}, WEFT_E_INVALID, "2 servers among 1 ranks");
    refuses((weft_program){.strategy = {.sync = WEFT_SERVER, .replicas = 1}}, WEFT_E_INVALID, "1 replicas with 1 servers");
    refuses((weft_program){.strategy = {.replicas = 1}}, WEFT_E_INVALID, "are for sync = WEFT_SERVER");
    refuses((weft_program){.strategy = {.sync = WEFT_SERVER, .push = -1}}, WEFT_E_INVALID, "push -1");
    refuses((weft_program){.strategy = {.sync = WEFT_SERVER, .fetch = 2}}, WEFT_E_INVALID, "want staleness");
    refuses((weft_program){.strategy = {.sync = WEFT_SERVER, .overlap = true}}, WEFT_E_INVALID, "want staleness");
    refuses((weft_program){.strategy = {.sync = WEFT_SERVER, .warm_start = 5}}, WEFT_E_INVALID, "want staleness");
    refuses((weft_program){.strategy = {.sync = WEFT_SERVER, .staleness = 1, .warm_start = -1}}, WEFT_E_INVALID, "warm_start -1");
    refuses((weft_program){.strategy = {.warm_start = 5}}, WEFT_E_INVALID, "are for sync = WEFT_SERVER");
    refuses((weft_program){.strategy = {.sync = WEFT_SERVER, .staleness = 1, .overlap = true, .push = 2}}, WEFT_E_INVALID, "overlap with push 2");
    refuses((weft_program){.strategy = {.overlap = true}}, WEFT_E_INVALID, "are for sync = WEFT_SERVER");
    refuses((weft_program){.strategy = {.staleness = 3}}, WEFT_E_INVALID, "are for sync = WEFT_SERVER");
    refuses((weft_program){.strategy = {.sync = (weft_sync)2}}, WEFT_E_INVALID, "sync 2");
}

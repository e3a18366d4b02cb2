/* Training on ranks that communicate by NCCL (its stand-in) beside ranks that do so over wires: what NCCL adds up between two is the same, bit by
 * bit; over three the order of sums differs. And what worlds say about NCCL where they cannot have it. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/run.h"

enum { STEPS = 12 };

typedef struct outcome {
    int     status;
    char   *text;
    double *variables;
    size_t  count;
} outcome;

static outcome train(int ranks, const char *nccl, const char *solver_and_dtype, int micro) {
    static int  runs;
    char        name[64], arguments[1024];
    snprintf(name, sizeof name, "variables-%d", runs++);
    const char *path = temporary_path(name), *output = temporary_path("output");
    snprintf(arguments, sizeof arguments, "train_program_parity %s %d %d %s", solver_and_dtype, micro, STEPS, path);
    setenv("WEFT_DEVICE", "cuda", 1);
    setenv("WEFT_NCCL", nccl, 1);
    setenv("RUN_DESCRIBE", "1", 1);
    outcome one = {.status = run_ranks(ranks, "shm", "hosted.sh", arguments, output)};
    one.text = read_text(output);
    if (one.status == 0) one.variables = read_doubles(path, &one.count);
    return one;
}

static void release(outcome *one) {
    free(one->text);
    free(one->variables);
}

static void agrees_by(const char *way, const char *words, int ranks, const char *solver_and_dtype, int micro, double tolerance) {
    outcome wires = train(ranks, "off", solver_and_dtype, micro), nccl = train(ranks, way, solver_and_dtype, micro);
    double  difference = 0, size = 0;
    cr_assert(wires.status == 0 && nccl.status == 0, "exit status %d and %d: %s%s", wires.status, nccl.status, wires.text, nccl.text);
    cr_assert(strstr(wires.text, "0 collectives on the device's memory") && strstr(wires.text, "NCCL is off"), "%s", wires.text);
    cr_assert(strstr(nccl.text, ", 0 by copies through the host's: NCCL 2.") && strstr(nccl.text, words), "%s", nccl.text);
    cr_assert_eq(wires.count, nccl.count);
    for (size_t i = 0; i < nccl.count; i++) {
        difference += (wires.variables[i] - nccl.variables[i]) * (wires.variables[i] - nccl.variables[i]);
        size += wires.variables[i] * wires.variables[i];
    }
    cr_assert(sqrt(difference / size) <= tolerance, "%s on %d ranks is off by %.3g, allowed %.3g", solver_and_dtype, ranks, sqrt(difference / size),
              tolerance);
    release(&wires);
    release(&nccl);
}

static void agrees(int ranks, const char *solver_and_dtype, int micro, double tolerance) {
    agrees_by("force", "NCCL 2.", ranks, solver_and_dtype, micro, tolerance);
}

Test(cuda_nccl_train, inside_nodes_as_over_wires) {
    agrees_by("nodes:2", "inside 2 nodes of 2 ranks, wire shm across them", 4, "adam f64", 1, 1e-8);
    agrees_by("nodes:2", "inside 2 nodes of 1 to 2 ranks, wire shm across them from 1 of each", 3, "momentum f64", 2, 1e-8);
    agrees_by("nodes", "NCCL 2.", 2, "sgd f64", 1, 0); /* one node: NCCL among all */
}
Test(cuda_nccl_train, lazy_streams_inside_nodes) {
    setenv("WEFT_CUDA_HOST_LAZY", "1", 1);
    agrees_by("nodes:2", "inside 2 nodes of 2 ranks", 4, "adam f64", 2, 1e-8);
}
Test(cuda_nccl_train, two_ranks_as_over_wires_to_the_bit) {
    agrees(2, "adam f32", 1, 0);
    agrees(2, "sgd f64", 2, 0);
}
Test(cuda_nccl_train, three_ranks_as_over_wires) { agrees(3, "adam f64", 1, 1e-8); }
Test(cuda_nccl_train, calls_that_nccl_takes_its_time_for) {
    setenv("WEFT_NCCL_STAND_IN", "slow=3", 1);
    agrees(2, "momentum f32", 1, 0);
}
Test(cuda_nccl_train, lazy_streams) {
    setenv("WEFT_CUDA_HOST_LAZY", "1", 1);
    agrees(2, "adam f32", 2, 0);
}

/* --- worlds without NCCL --- */

static void falls_back(const char *variable, const char *value, const char *why) {
    setenv(variable, value, 1);
    outcome by_itself = train(2, "auto", "sgd f32", 1), forced = train(2, "force", "sgd f32", 1);
    cr_expect_eq(by_itself.status, 0, "%s", by_itself.text);
    cr_expect(strstr(by_itself.text, "0 collectives on the device's memory") && strstr(by_itself.text, why), "%s", by_itself.text);
    cr_expect(forced.status != 0 && strstr(forced.text, "NCCL is forced, and cannot be had") && strstr(forced.text, why), "%d: %s", forced.status,
              forced.text);
    release(&by_itself);
    release(&forced);
}

Test(cuda_nccl_train, an_old_library_falls_back_or_is_refused) {
    falls_back("WEFT_NCCL_STAND_IN", "version=21012", "libnccl.so.2 is NCCL 2.10.12, too old");
}
Test(cuda_nccl_train, a_missing_library_falls_back_or_is_refused) { falls_back("WEFT_CUDA_LIBRARIES", "none", "libnccl.so.2 cannot be loaded"); }
/* Ranks 0 and 1 have another NCCL than 2 and 3: none of all, but one of each node. */
Test(cuda_nccl_train, versions_that_differ_between_nodes) {
    setenv("WEFT_NCCL_STAND_IN", "version=22004@0,version=22004@1,version=22104@2,version=22104@3", 1);
    outcome inside = train(4, "nodes:2", "sgd f64", 1), all = train(4, "force", "sgd f64", 1);
    cr_expect(inside.status == 0 && strstr(inside.text, "inside 2 nodes of 2 ranks"), "%d: %s", inside.status, inside.text);
    cr_expect(all.status != 0 && strstr(all.text, "NCCL is forced, and cannot be had"), "%d: %s", all.status, all.text);
    release(&inside);
    release(&all);
}
Test(cuda_nccl_train, nodes_that_cannot_be_had_are_refused) {
    outcome alone = train(2, "nodes:1", "sgd f32", 1), bad = train(2, "nodes:x", "sgd f32", 1);
    cr_expect(alone.status != 0 && strstr(alone.text, "NCCL inside nodes is asked for, and cannot be had: each rank is alone on its node"), "%s", alone.text);
    cr_expect(bad.status != 0 && strstr(bad.text, "'nodes:x'; there is: auto, off, force, nodes"), "%s", bad.text);
    release(&alone);
    release(&bad);
}
Test(cuda_nccl_train, an_unknown_wish_is_refused) {
    outcome one = train(2, "maybe", "sgd f32", 1);
    cr_expect(one.status != 0 && strstr(one.text, "'maybe'; there is: auto, off, force, nodes"), "%s", one.text);
    release(&one);
}
Test(cuda_nccl_train, an_error_in_a_step_ends_all_ranks) {
    setenv("WEFT_NCCL_STAND_IN", "error=5@1", 1);
    outcome one = train(2, "force", "sgd f32", 1);
    cr_expect(one.status != 0 && strstr(one.text, "NCCL: remote process exited"), "%d: %s", one.status, one.text);
    release(&one);
}

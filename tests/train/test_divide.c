/* Updates that ranks do in parts give the bits of updates that each does alone, on every rank, whatever is asked for afterwards. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "train/run.h"

/* Runs the program and gives its output; `name` is that of its files. */
static char *run(int ranks, const char *wire, const char *solver, const char *dtype, int divide_bytes, int steps, const char *name,
                 const char *rest) {
    const char *output = temporary_path("output");
    char        arguments[1024];
    snprintf(arguments, sizeof arguments, "%s %s %d %d %s %s", solver, dtype, divide_bytes, steps, temporary_path(name), rest);
    int   status = run_ranks(ranks, wire, "train_program_divide", arguments, output);
    char *text = read_text(output);
    cr_assert_eq(status, 0, "%d ranks over %s, %s in %s: exit status %d: %s", ranks, wire, solver, dtype, status, text);
    return text;
}

static void expect_divided(char *text, int count) {
    char line[64];
    snprintf(line, sizeof line, "divided %d gathered %d\n", count, count > 0);
    cr_assert_not_null(strstr(text, line), "expected %d divided updates: %s", count, text);
    free(text);
}

static void same_files(const char *a, const char *b) {
    char command[1024];
    snprintf(command, sizeof command, "cmp %s %s", temporary_path(a), temporary_path(b));
    cr_assert_eq(system(command), 0, "%s and %s differ", a, b);
}

/* Of two weights and two biases, those of at least `least` bytes are divided; all ranks then have what they have without. */
static void gives_the_same_bits(int ranks, const char *solver, const char *dtype, int least, int count) {
    char alone[32], together[32];
    expect_divided(run(ranks, "shm", solver, dtype, -1, 23, "alone", ""), 0);
    expect_divided(run(ranks, "shm", solver, dtype, least, 23, "together", ""), count);
    for (int rank = 0; rank < ranks; rank++) {
        snprintf(alone, sizeof alone, "alone-%d", rank);
        snprintf(together, sizeof together, "together-%d", rank);
        same_files("alone-0", alone);
        same_files(alone, together);
    }
}

Test(divide, sgd_on_two_ranks) { gives_the_same_bits(2, "sgd", "f32", 1000, 2); }
Test(divide, momentum_on_three_ranks) { gives_the_same_bits(3, "momentum", "f32", 1, 4); }
Test(divide, nesterov_on_two_ranks) { gives_the_same_bits(2, "nesterov", "f64", 1, 4); }
Test(divide, adagrad_on_four_ranks) { gives_the_same_bits(4, "adagrad", "f32", 1, 4); }
Test(divide, rmsprop_on_two_ranks) { gives_the_same_bits(2, "rmsprop", "f64", 1000, 2); }
Test(divide, adam_on_two_ranks) { gives_the_same_bits(2, "adam", "f32", 1, 4); }
Test(divide, adam_in_f64_on_three_ranks) { gives_the_same_bits(3, "adam", "f64", 1, 4); }
/* More ranks than the smallest bias has cache lines: some have nothing of it to do. */
Test(divide, adam_on_five_ranks) { gives_the_same_bits(5, "adam", "f32", 1, 4); }

/* How parts come to the others: stored by who updated them where nobody reads the parameters any more once the last reduction has begun, as
 * a network's first layer is the last to have its gradient; else loaded. Either way the bits are the same. */
static void travels(const char *solver, int least, int count, const char *how) {
    gives_the_same_bits(2, solver, "f32", least, count);
    char *text = run(2, "shm", solver, "f32", least, 2, "travels", "");
    cr_assert_not_null(strstr(text, how), "expected '%s': %s", how, text);
    free(text);
}
Test(divide, stores_parts_to_peers) { travels("adam", 1000, 2, "parts: store"); }
Test(divide, loads_parts_where_peers_may_still_read) { travels("deep", 1000, 2, "parts: load "); }

/* The norm of all gradients is read beside the update; messages cannot reach a peer's memory. */
Test(divide, leaves_clipping_by_norm_whole) { gives_the_same_bits(2, "clipped", "f32", 1, 0); }
/* The regulariser leaves biases out, so they have no rows. */
Test(divide, leaves_rows_whole) { gives_the_same_bits(2, "rows", "f32", 1, 2); }
Test(divide, leaves_small_parameters_whole) { expect_divided(run(2, "shm", "adam", "f32", 0, 3, "small", ""), 0); }
Test(divide, leaves_everything_whole_over_tcp) { expect_divided(run(2, "tcp", "adam", "f32", 1, 3, "tcp", ""), 0); }

/* What is saved in between has whole states, loads into any other division, and goes on to the same bits. */
static void resumes(int ranks, int divide_bytes) {
    char rank[32], other[32];
    free(run(3, "shm", "adam", "f32", 1, 20, "whole", "9"));
    free(run(3, "shm", "adam", "f32", -1, 20, "plain", "9"));
    same_files("whole.safetensors", "plain.safetensors");
    free(run(ranks, "shm", "adam", "f32", divide_bytes, 20, "plain", "9"));
    for (int i = 0; i < ranks; i++) {
        snprintf(rank, sizeof rank, "whole-%d", i);
        snprintf(other, sizeof other, "plain-%d", i);
        same_files(rank, other);
    }
}
Test(divide, goes_on_from_a_file) { resumes(3, 1); }
Test(divide, goes_on_undivided) { resumes(3, -1); }

Test(divide, says_so_where_a_peer_has_overwritten_its_part) {
    char *text = run(2, "shm", "spoil", "f32", 1, 5, "spoiled", "");
    cr_assert_not_null(strstr(text, "spoiled WEFT_E_STATE"), "%s", text);
    cr_assert_not_null(strstr(text, "rank 1 has overwritten"), "%s", text);
    free(text);
}

/* Runs that are interrupted: what was saved goes on to the same bits, and a killed rank is named by all the others. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "train/run.h"

static int run(int ranks, const char *wire, const char *checkpoint, const char *rest, const char *output) {
    char arguments[1024];
    snprintf(arguments, sizeof arguments, "%s %s", checkpoint, rest);
    return run_ranks(ranks, wire, "train_program_run", arguments, output);
}

static void must_run_over(const char *wire, int ranks, const char *checkpoint, const char *rest) {
    const char *output = temporary_path("output");
    int         status = run(ranks, wire, checkpoint, rest, output);
    char       *text = read_text(output);
    cr_assert_eq(status, 0, "exit status %d: %s", status, text);
    free(text);
}
static void must_run(int ranks, const char *checkpoint, const char *rest) { must_run_over(NULL, ranks, checkpoint, rest); }

static void same_files(const char *a, const char *b) {
    char command[1024];
    snprintf(command, sizeof command, "cmp %s %s", a, b);
    cr_assert_eq(system(command), 0, "the checkpoints differ");
}

Test(runs, resume_to_the_same_bits_on_one_rank) {
    const char *whole = temporary_path("whole"), *parts = temporary_path("parts");
    must_run(0, whole, "40 100");
    must_run(0, parts, "7 100");
    must_run(0, parts, "23 100");
    must_run(0, parts, "40 100");
    same_files(whole, parts);
}

Test(runs, resume_to_the_same_bits_on_two_ranks) {
    const char *whole = temporary_path("whole"), *parts = temporary_path("parts");
    must_run(2, whole, "40 100");
    must_run(2, parts, "17 100");
    must_run(2, parts, "40 100");
    same_files(whole, parts);
}

/* Also with the states of other solvers, L-BFGS's history among them, and over the other wire. */
static void resumes(const char *solver, const char *wire) {
    const char *whole = temporary_path("whole"), *parts = temporary_path("parts");
    unlink(whole);
    unlink(parts);
    setenv("RUN_SOLVER", solver, 1);
    must_run_over(wire, 2, whole, "24 100");
    must_run_over(wire, 2, parts, "11 100");
    must_run_over(wire, 2, parts, "24 100");
    same_files(whole, parts);
}

Test(runs, resume_to_the_same_bits_with_momentum) { resumes("momentum", "shm"); }
Test(runs, resume_to_the_same_bits_with_lbfgs) { resumes("lbfgs", "shm"); }
Test(runs, resume_to_the_same_bits_from_memory_of_the_devices_own) {
    setenv("RUN_FAR", "2", 1);
    resumes("adamw", "shm");
}
Test(runs, resume_to_the_same_bits_over_tcp) { resumes("adamw", "tcp"); }

/* A parameter server's states are in the checkpoint, too. */
Test(runs, resume_to_the_same_bits_by_a_server) {
    setenv("RUN_SERVER", "1", 1);
    resumes("adam", "shm");
    resumes("momentum", "tcp");
}

static double loss_of(const char *checkpoint, const char *rest, const char *server) {
    const char *output = temporary_path("output");
    setenv("RUN_SERVER", server, 1);
    cr_assert_eq(run(2, "shm", checkpoint, rest, output), 0);
    char  *text = read_text(output), *loss = strstr(text, "loss ");
    cr_assert_not_null(loss, "%s", text);
    double value = atof(loss + 5);
    free(text);
    return value;
}

/* A run may go on under another strategy. Without its states Adam would begin with steps of full length: the loss is then another. */
Test(runs, go_on_from_a_server_by_allreduce_and_back) {
    const char *whole = temporary_path("whole"), *parts = temporary_path("parts");
    unlink(whole);
    unlink(parts);
    setenv("RUN_SOLVER", "adam", 1);
    double wanted = loss_of(whole, "30 100", "0");
    loss_of(parts, "10 100", "1");
    loss_of(parts, "20 100", "0");
    double got = loss_of(parts, "30 100", "1");
    cr_assert_float_eq(got, wanted, 1e-4 * wanted, "%.9g and %.9g", got, wanted);
}

/* The others wait for rank 0 to save for longer than they would for its part of a step. */
Test(runs, wait_for_a_slow_disk) {
    setenv("RUN_TIMEOUT_MS", "2000", 1);
    setenv("RUN_SYNC_MS", "3500", 1);
    must_run(2, temporary_path("slow"), "4 2");
}

/* Every survivor of three says which rank is gone, within 5 s of its death, and exits with an error. */
static void survives(const char *wire, int victim, int step) {
    const char *checkpoint = temporary_path("killed"), *output = temporary_path("output");
    char        rest[64], name[32];
    unlink(checkpoint);
    snprintf(rest, sizeof rest, "100000 10 %d %d", victim, step);
    snprintf(name, sizeof name, "rank %d", victim);
    cr_assert_neq(run(3, wire, checkpoint, rest, output), 0);
    char     *text = read_text(output), *at = strstr(text, "died ");
    long long died = at ? atoll(at + 5) : 0;
    cr_assert(died > 0, "nobody died: %s", text);
    int survivors = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        char *error = strstr(line, "error ");
        if (!error) continue;
        long long after = atoll(error + 6) - died;
        cr_assert_not_null(strstr(error, "WEFT_E_PEER"), "%s", line);
        cr_assert_not_null(strstr(error, name), "'%s' does not name %s", line, name);
        cr_assert(after < 5000000000ll, "told after %.1f s: %s", 1e-9 * (double)after, line);
        survivors++;
    }
    cr_assert_eq(survivors, 2, "%d of 2 survivors spoke", survivors);
    free(text);
    if (step > 10) must_run(2, checkpoint, "60 100"); /* nothing that was saved is lost, and another number of ranks goes on */
}

Test(runs, name_a_killed_rank_over_shared_memory) { survives("shm", 1, 25); }
Test(runs, name_a_killed_first_rank_over_shared_memory) { survives("shm", 0, 25); }
Test(runs, name_a_killed_rank_over_tcp) { survives("tcp", 2, 25); }
Test(runs, name_a_rank_killed_at_its_first_step) { survives("tcp", 0, 1); }

/* A loss that is not finite is blamed on the rank whose data made it so, by every rank and under every kind of solver. */
static void blames(const char *solver, const char *what, const char *words) {
    const char *output = temporary_path("output"), *checkpoint = temporary_path("nan");
    char        lines[2][256];
    setenv("RUN_SOLVER", solver, 1);
    setenv("RUN_NAN", what, 1);
    cr_assert_eq(run(2, "shm", checkpoint, "5 100", output), 1);
    char *text = read_text(output);
    for (int rank = 0; rank < 2; rank++) {
        char start[8], *line;
        snprintf(start, sizeof start, "[%d] ", rank);
        cr_assert_not_null(line = strstr(text, start), "rank %d says nothing: %s", rank, text);
        snprintf(lines[rank], sizeof lines[rank], "%.*s", (int)strcspn(line, "\n"), line);
        cr_assert(strstr(lines[rank], "WEFT_E_NAN") && strstr(lines[rank], "step 3") && strstr(lines[rank], words), "%s %s: %s", solver, what,
                  lines[rank]);
    }
    free(text);
}

Test(runs, blame_a_nan_on_the_rank_whose_data_it_is) {
    blames("sgd", "field", "'x' of the batch on rank 1");
    blames("lbfgs", "field", "'x' of the batch on rank 1");
    blames("sgd", "share", "first on rank 1");
    blames("lbfgs", "share", "first on rank 1");
}

/* Ranks that were told different things would part without a word: they compare what they are to compute first. */
Test(runs, compare_their_programs) {
    static const char *const others[] = {"dropout", "schedule", "epsilon", "nesterov", "bias", "rows"};
    const char              *output = temporary_path("output"), *checkpoint = temporary_path("other");
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        setenv("RUN_OTHER", others[i], 1);
        setenv("RUN_SOLVER", strcmp(others[i], "nesterov") == 0 ? "momentum" : "adamw", 1);
        cr_assert_eq(run(2, "shm", checkpoint, "3 100", output), 1, "another %s: not refused", others[i]);
        char *text = read_text(output);
        cr_assert(strstr(text, "WEFT_E_MISMATCH") && strstr(text, "the program differs between ranks"), "another %s: %s", others[i], text);
        free(text);
    }
}

/* What goes wrong on one rank alone is told to the others, with its cause. */
Test(runs, tell_the_others_what_one_rank_cannot_read) {
    const char *folder = temporary_path(""), *output = temporary_path("output");
    cr_assert_eq(run_ranks(2, "shm", "train_program_fit", folder, output), 1);
    char *text = read_text(output), *own = strstr(text, "[1] error "), *other = strstr(text, "[0] error WEFT_E_PEER ");
    cr_assert(own && other, "%s", text);
    cr_assert_not_null(strstr(other, "rank 1 failed: "), "%s", text);
    cr_assert_not_null(strstr(other, "images-1"), "%s", text);
    cr_assert_not_null(strstr(own, "images-1"), "%s", text);
    free(text);
}

Test(runs, refuse_a_damaged_checkpoint) {
    const char *checkpoint = temporary_path("damaged"), *output = temporary_path("output");
    char        command[1024];
    must_run(0, checkpoint, "5 100");
    snprintf(command, sizeof command, "printf 'XXXX' | dd of=%s bs=1 seek=4000 conv=notrunc 2>/dev/null", checkpoint);
    cr_assert_eq(system(command), 0);
    cr_assert_eq(run(2, NULL, checkpoint, "10 100", output), 1);
    char *text = read_text(output);
    cr_assert_not_null(strstr(text, "WEFT_E_CORRUPT"), "%s", text);
    cr_assert_not_null(strstr(text, checkpoint), "%s", text);
    free(text);
}

/* A disk that fills up while saving: a limit on the size of files stands for it. The last good checkpoint stays. */
Test(runs, keep_the_last_checkpoint_when_saving_fails) {
    const char *checkpoint = temporary_path("kept"), *copy = temporary_path("copy"), *output = temporary_path("output");
    char        command[2048];
    must_run(0, checkpoint, "10 100");
    snprintf(command, sizeof command, "cp %s %s; ulimit -f 8; trap '' XFSZ; %s/train_program_run %s 20 100 >%s 2>&1", checkpoint, copy, WEFT_BIN_DIR,
             checkpoint, output);
    cr_assert_neq(system(command), 0);
    char *text = read_text(output);
    cr_assert_not_null(strstr(text, "error "), "%s", text);
    cr_assert_not_null(strstr(text, checkpoint), "%s", text);
    free(text);
    same_files(checkpoint, copy);
}

/* Sequence parallelism by the strategy alone: real processes over real wires train a small transformer with each sample's letters dealt over ranks, and losses and
 * gradient norms are those of one process; also beside data, in micro-batches, with places that are turned, and with fewer heads of keys. Memory falls with the
 * number of ranks, as the plan's bytes say. Files are those of one process; what needs all letters is refused; a rank that dies ends all. More:
 * test_sequence_nightly.c. */
#include "train/split_runs.h"

Test(sequence, as_one_process_in_f64) {
    setenv("RUN_CLIP", "1", 1);
    splits_agree("gpt", "f64", 10, 1e-11, (split[]){{2, "sequence=2"}, {4, "sequence=4"}, {4, "sequence=2,data=2"}}, 3);
}
Test(sequence, as_one_process_with_turned_places_and_shared_keys) {
    setenv("RUN_ROTARY", "1", 1);
    splits_agree("gpt", "f64", 6, 1e-11, (split[]){{4, "sequence=4"}}, 1);
}
Test(sequence, as_one_process_where_ranks_have_one_piece) {
    setenv("RUN_CONTEXT", "12", 1);
    setenv("RUN_ROTARY", "1", 1);
    splits_agree("gpt", "f64", 10, 1e-11, (split[]){{4, "sequence=4"}}, 1);
}
Test(sequence, as_one_process_in_micro_batches) { splits_agree("gpt", "f64", 4, 1e-11, (split[]){{2, "sequence=2,accumulate=3"}}, 1); }
Test(sequence, as_one_process_where_samples_and_letters_are_one_axis) { /* of a micro-batch of one sample, and of several */
    setenv("RUN_FLAT", "1", 1);
    splits_agree("gpt", "f64", 2, 1e-11, (split[]){{2, "sequence=2,accumulate=16"}, {2, "sequence=2"}}, 2);
}
static void ends_agree(const char *how) {
    setenv("RUN_LAST", how, 1);
    splits_agree("gpt", "f64", 6, 1e-11, (split[]){{2, "sequence=2"}, {4, "sequence=4"}, {4, "sequence=2,data=2"}}, 3);
    setenv("RUN_CONTEXT", "12", 1); /* in one piece */
    splits_agree("gpt", "f64", 6, 1e-11, (split[]){{4, "sequence=4"}}, 1);
}
Test(sequence, as_one_process_where_letters_are_sliced_out) { ends_agree("slice"); }
Test(sequence, as_one_process_where_letters_are_gathered) { ends_agree("gather"); }
Test(sequence, as_one_process_for_100_steps_in_f32) { splits_agree("gpt", "f32", 100, 1e-4, (split[]){{4, "sequence=4"}}, 1); }

static long number_after(const char *text, const char *key) {
    const char *at = strstr(text, key);
    cr_assert_not_null(at, "'%s' lacks '%s'", text, key);
    return strtol(at + strlen(key), NULL, 10);
}

/* All but the gradients of parameters, which are as many on each, and what goes round: keys, values and their gradients, each of this rank, the one before and
 * the next. */
Test(sequence, memory_falls_with_ranks) {
    enum { W = 32, LETTERS = 48, CONTEXT = 512, PARAMETERS = LETTERS * W + CONTEXT * W + 2 * (12 * W * W + 9 * W + 4 * W) + 2 * W };
    const double block = 4.0 * 16 * CONTEXT * W; /* keys of all ranks */
    long         alone = 0;
    setenv("RUN_CONTEXT", "512", 1);
    setenv("RUN_DESCRIBE", "1", 1);
    for (int ranks = 1; ranks <= 4; ranks *= 2) {
        char strategy[32];
        snprintf(strategy, sizeof strategy, "sequence=%d", ranks);
        char *text = train_split("gpt", "f32", (split){ranks, ranks == 1 ? NULL : strategy}, 1, temporary_path("costs"));
        long  peak = number_after(text, "peak ");
        if (ranks == 1) alone = peak;
        cr_expect((double)peak <= (double)(alone / ranks) + 9 * block / ranks + 4.0 * PARAMETERS, "%ld bytes at the peak of each of %d ranks, %ld of one", peak, ranks, alone);
        if (ranks == 4) cr_expect_not_null(strstr(text, "sequence: over 4 ranks, each has 128 of 512 places"), "%s", text);
        free(text);
    }
}

Test(sequence, files_are_those_of_one_process) { same_files("gpt", (split){4, "sequence=2,data=2"}); }
Test(sequence, runs_go_on_under_another_mesh) { split_goes_on("gpt", 3, (split){4, "sequence=2,data=2"}, (split){2, "sequence=2"}); }

Test(sequence, what_is_not_there_is_refused) {
    split two = {2, "sequence=2"};
    split_fails("gpt", two, "RUN_WITH", "lbfgs", "WEFT_E_UNSUPPORTED", "sequence = 2 does not go with L-BFGS");
    split_fails("gpt", two, "RUN_WITH", "keep", "WEFT_E_UNSUPPORTED", "with strategy.sequence = 2 nobody takes a lost rank's place yet");
    split_fails("gpt", (split){3, "sequence=3"}, "RUN_WITH", "", "WEFT_E_INVALID", "have 16 places along axis 2, which 3 ranks do not divide evenly");
    split_fails("mlp", two, "RUN_WITH", "", "WEFT_E_INVALID", "the program has no attention, whose queries' axis is time");
    split_fails("gpt", two, "RUN_MIX", "1", "WEFT_E_INVALID", "needs all 16 along axis");
}

Test(sequence, a_rank_that_dies_ends_all) { split_fails("gpt", (split){4, "sequence=4"}, "RUN_DIE", "3", "WEFT_E_PEER", "rank 3 failed"); }

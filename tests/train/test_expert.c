/* Mixtures of experts by the strategy alone: real processes over real wires train a small transformer whose perceptrons are mixtures, with experts dealt over
 * ranks, and their losses and gradient norms are those of one process; also beside data, where the same tokens are dropped, and where a rank has
 * nobody's choice. Files are those of one process, runs go on under another mesh, a rank that dies ends all. More: test_expert_nightly.c. */
#include "train/split_runs.h"

Test(expert, as_one_process_in_f64) {
    setenv("RUN_CLIP", "1", 1);
    splits_agree("moe", "f64", 10, 1e-10, (split[]){{2, "expert=2"}, {4, "expert=2,data=2"}}, 2);
}
/* Without a limit a buffer has room for all choices; with a tight one most are dropped. */
Test(expert, as_one_process_whatever_the_capacity) {
    setenv("RUN_CAPACITY", "inf", 1);
    splits_agree("moe", "f64", 4, 1e-10, (split[]){{4, "expert=4"}}, 1);
    setenv("RUN_CAPACITY", "0.3", 1);
    setenv("RUN_CHOICES", "1", 1);
    splits_agree("moe", "f64", 4, 1e-10, (split[]){{4, "expert=4"}}, 1);
}
Test(expert, as_one_process_by_data_alone) { splits_agree("moe", "f64", 4, 1e-10, (split[]){{3, "data=3"}, {2, "data=2,accumulate=3"}}, 2); }
Test(expert, as_one_process_in_micro_batches) { splits_agree("moe", "f64", 4, 1e-10, (split[]){{2, "expert=2,accumulate=2"}}, 1); }
Test(expert, as_one_process_for_100_steps_in_f32) { splits_agree("moe", "f32", 100, 1e-4, (split[]){{2, "expert=2"}}, 1); }

static long number_after(const char *text, const char *key) {
    const char *at = strstr(text, key);
    cr_assert_not_null(at, "'%s' lacks '%s'", text, key);
    return strtol(at + strlen(key), NULL, 10);
}

/* Parameters and two states of each, in f32; every variable's room is a multiple of 64 bytes. */
Test(expert, a_rank_holds_its_experts_alone) {
    enum { W = 32, EXPERTS = 4, HIDDEN = 64, LETTERS = 48, CONTEXT = 16 };
    long mixture = EXPERTS * (2 * W * HIDDEN + HIDDEN + W), whole = LETTERS * W + CONTEXT * W + 2 * (4 * W * W + 3 * W + W + 4 * W + EXPERTS * W) + 2 * W;
    setenv("RUN_DESCRIBE", "1", 1);
    for (int ranks = 1; ranks <= 4; ranks *= 2) {
        char strategy[32];
        snprintf(strategy, sizeof strategy, "expert=%d", ranks);
        char *text = train_split("moe", "f32", (split){ranks, ranks == 1 ? NULL : strategy}, 1, temporary_path("costs"));
        long  held = number_after(text, "variables "), least = 3 * 4 * (2 * mixture / ranks + whole);
        cr_expect(held >= least && held <= least + 3L * 40 * 64 * ranks, "%ld bytes are held by each of %d ranks; %ld are needed", held, ranks, least);
        if (ranks == 4) cr_expect_not_null(strstr(text, "'block1.experts.in.weight': 1 of 4 experts"), "%s", text);
        free(text);
    }
}

Test(expert, files_are_those_of_one_process) { same_files("moe", (split){4, "expert=2,data=2"}); }
Test(expert, runs_go_on_under_another_mesh) {
    split_goes_on("moe", 3, (split){4, "expert=2,data=2"}, (split){2, "expert=2"});
    split_goes_on("moe", 3, (split){1, NULL}, (split){4, "expert=4"});
}

Test(expert, what_is_not_there_is_refused) {
    split two = {2, "expert=2"};
    split_fails("moe", two, "RUN_WITH", "server", "WEFT_E_UNSUPPORTED", "expert = 2 does not go with sync = WEFT_SERVER");
    split_fails("moe", two, "RUN_WITH", "compress", "WEFT_E_UNSUPPORTED", "expert = 2 does not go with compress");
    split_fails("moe", two, "RUN_WITH", "lbfgs", "WEFT_E_UNSUPPORTED", "expert = 2 does not go with L-BFGS");
    split_fails("moe", two, "RUN_WITH", "keep", "WEFT_E_UNSUPPORTED", "with strategy.expert = 2 nobody takes a lost rank's place yet");
    split_fails("moe", (split){8, "expert=2,pipeline=4,accumulate=4"}, "RUN_WITH", "", "WEFT_E_UNSUPPORTED", "something of all micro-batches");
    split_fails("moe", (split){3, "expert=3"}, "RUN_WITH", "", "WEFT_E_INVALID",
                "'block0.experts.in.weight' [4, 32, 64] has 4 experts along axis 0, which 3 ranks do not divide evenly");
    split_fails("gpt", two, "RUN_WITH", "", "WEFT_E_INVALID", "the program has no mixture of experts to deal out");
    split_fails("moe", (split){2, "expert=3"}, "RUN_WITH", "", "WEFT_E_INVALID", "x expert = 3 make 3, and the world has 2 ranks");
    split_fails("moe", (split){1, NULL}, "RUN_CHOICES", "5", "WEFT_E_INVALID", ".choices must be from 1 to .experts = 4, not 5");
    split_fails("moe", (split){1, NULL}, "RUN_CAPACITY", "-1", "WEFT_E_INVALID", ".capacity must be positive");
}

Test(expert, a_rank_that_dies_ends_all) { split_fails("moe", (split){4, "expert=2,data=2"}, "RUN_DIE", "3", "WEFT_E_PEER", "rank 3 failed"); }

/* test_expert.c with more meshes, models and steps. */
#include "train/split_runs.h"

static const split all_splits[] = {{2, "expert=2"}, {4, "expert=4"}, {4, "expert=2,data=2"}, {8, "expert=4,data=2"}};

Test(expert, for_100_steps_in_f32) {
    setenv("RUN_CLIP", "1", 1);
    splits_agree("moe", "f32", 100, 1e-4, all_splits, 4);
}
Test(expert, in_f64) { splits_agree("moe", "f64", 30, 1e-10, all_splits, 4); }
Test(expert, one_choice_each) {
    setenv("RUN_CHOICES", "1", 1);
    setenv("RUN_CAPACITY", "1.25", 1);
    splits_agree("moe", "f64", 20, 1e-10, all_splits, 4);
}
Test(expert, three_choices_in_micro_batches) {
    setenv("RUN_CHOICES", "3", 1);
    splits_agree("moe", "f64", 10, 1e-10, (split[]){{2, "expert=2,accumulate=3"}, {4, "expert=2,data=2,accumulate=2"}}, 2);
}
/* Where the device's memory is not the host's. */
Test(expert, memory_of_the_devices_own) {
    setenv("RUN_FAR", "3", 1);
    splits_agree("moe", "f64", 10, 1e-10, (split[]){{2, "expert=2"}}, 1);
}

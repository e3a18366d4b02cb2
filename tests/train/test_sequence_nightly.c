/* test_sequence.c with more meshes and steps. */
#include "train/split_runs.h"

static const split all_splits[] = {{2, "sequence=2"}, {4, "sequence=4"}, {4, "sequence=2,data=2"}, {8, "sequence=4,data=2"}};

Test(sequence, for_100_steps_in_f32) {
    setenv("RUN_CLIP", "1", 1);
    splits_agree("gpt", "f32", 100, 1e-4, all_splits, 4);
}
Test(sequence, in_f64) { splits_agree("gpt", "f64", 30, 1e-11, all_splits, 4); }
Test(sequence, turned_in_f64) {
    setenv("RUN_ROTARY", "1", 1);
    splits_agree("gpt", "f64", 30, 1e-11, all_splits, 4);
}
Test(sequence, a_longer_context) {
    setenv("RUN_CONTEXT", "256", 1);
    splits_agree("gpt", "f32", 3, 1e-5, (split[]){{4, "sequence=4"}}, 1);
}
/* Where the device's memory is not the host's. */
Test(sequence, memory_of_the_devices_own) {
    setenv("RUN_FAR", "3", 1);
    splits_agree("gpt", "f64", 10, 1e-11, (split[]){{2, "sequence=2"}}, 1);
}

/* test_tensor.c with more meshes, models and steps. */
#include "train/tensor_runs.h"

Test(tensor, transformer_in_f32) {
    setenv("RUN_CLIP", "1", 1);
    agrees_on("gpt", "f32", 100, 1e-4, all_meshes, 3);
}
/* Fewer steps: in f32 its losses drift from rounding alone, by 1.2e-4 in the evaluation after 100. */
Test(tensor, channels_in_f32) { agrees_on("cnn", "f32", 50, 1e-4, all_meshes, 3); }
Test(tensor, perceptron_in_f64) { agrees_on("mlp", "f64", 40, 1e-11, all_meshes, 3); }
Test(tensor, transformer_in_f64) { agrees_on("gpt", "f64", 30, 1e-11, all_meshes, 3); }
Test(tensor, channels_in_f64) { agrees_on("cnn", "f64", 30, 1e-11, all_meshes, 3); }
Test(tensor, micro_batches) {
    setenv("RUN_MICRO", "2", 1);
    agrees_on("gpt", "f64", 10, 1e-11, (mesh[]){{1, 2}, {2, 2}}, 2);
}
/* Where the device's memory is not the host's. */
Test(tensor, memory_of_the_devices_own) {
    setenv("RUN_FAR", "3", 1);
    agrees_on("gpt", "f64", 10, 1e-11, (mesh[]){{1, 2}}, 1);
}

Test(tensor, files_are_those_of_one_process) {
    const char *models[] = {"gpt", "cnn"};
    for (int k = 0; k < 2; k++) {
        const char *one = saved(models[k], (mesh){1, 1}, 0, temporary_path("none"));
        for (int i = 0; i < 3; i++) {
            char        command[1024];
            const char *other = saved(models[k], all_meshes[i], 0, temporary_path("none"));
            snprintf(command, sizeof command, "cmp %s %s", one, other);
            cr_assert_eq(system(command), 0, "%s, data %d, tensor %d: another file", models[k], all_meshes[i].data, all_meshes[i].tensor);
        }
    }
}

Test(tensor, runs_go_on_under_any_other_mesh) {
    const mesh pairs[][2] = {{{1, 2}, {1, 1}}, {{1, 1}, {1, 4}}, {{2, 2}, {1, 4}}, {{1, 4}, {2, 1}}, {{2, 1}, {2, 2}}};
    size_t     n;
    double    *expected = curve("gpt", "f64", (mesh){1, 1}, 20, &n);
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) goes_on("gpt", 10, pairs[i][0], pairs[i][1], expected, n);
    free(expected);
    expected = curve("cnn", "f64", (mesh){1, 1}, 20, &n);
    goes_on("cnn", 10, (mesh){2, 2}, (mesh){1, 2}, expected, n);
    setenv("RUN_FAR", "3", 1);
    goes_on("cnn", 10, (mesh){1, 4}, (mesh){1, 2}, expected, n);
    free(expected);
}

/* Tensor parallelism by the strategy alone: real processes over real wires train a perceptron, a convolutional network and a small transformer on
 * meshes, and their losses and gradient norms are those of one process. What ranks hold and send is what the formula says; runs go on from
 * checkpoints under any other mesh; a rank that dies ends all. More meshes and steps: test_tensor_nightly.c. */
#include "train/split_runs.h"

Test(tensor, perceptron_in_f32) {
    setenv("RUN_CLIP", "1", 1);
    agrees_on("mlp", "f32", 100, 1e-4, all_meshes, 3);
}
Test(tensor, transformer_in_f64) { agrees_on("gpt", "f64", 10, 1e-11, (mesh[]){{1, 4}, {2, 2}}, 2); }
/* Also of data alone: the first rank brings the number, and the others must send what it is made of all the same. */
Test(tensor, what_a_sum_by_places_adds_to_counts_once) {
    setenv("RUN_BASE", "1", 1);
    agrees_on("gpt", "f64", 6, 1e-11, (mesh[]){{2, 1}, {1, 2}, {2, 2}}, 3);
}
Test(tensor, channels_in_f64) {
    setenv("RUN_CLIP", "1", 1);
    agrees_on("cnn", "f64", 10, 1e-11, (mesh[]){{2, 2}}, 1);
}

/* --- what it costs --- */

static long number_after(const char *text, const char *key) {
    const char *at = strstr(text, key);
    cr_assert_not_null(at, "'%s' lacks '%s'", text, key);
    return strtol(at + strlen(key), NULL, 10);
}

static int count(const char *text, const char *part) {
    int found = 0;
    for (const char *at = text; (at = strstr(at, part)); at++) found++;
    return found;
}

/* Parameters and two states of each, in f32; every variable's room is a multiple of 64 bytes for every rank. */
static void holds(const char *text, long parted, long whole, int n, int tensor) {
    long least = 3 * 4 * (parted / tensor + whole), held = number_after(text, "variables ");
    cr_assert(held >= least && held <= least + 3L * n * 64 * tensor, "%ld bytes are held with tensor %d; %ld are needed", held, tensor, least);
}

/* Two pairs of products: a sum for each on the way there, and one on the way back before the second; nobody asks for the data's gradient. */
Test(tensor, perceptron_costs_what_it_must) {
    enum { W = 32, PIXELS = 128, CLASSES = 8, BATCH = 16 };
    long parted = 2 * W * PIXELS + 2 * W + 2 * W * W + 2 * W * W + 2 * W + 2 * W * W, whole = W + 2 * W + W + CLASSES * W + CLASSES;
    for (int tensor = 2; tensor <= 4; tensor += 2) {
        char *text = train("mlp", "f32", (mesh){1, tensor}, 2, temporary_path("costs"));
        cr_expect_eq(number_after(text, "collectives "), 3, "%s", text);
        cr_expect_eq(number_after(text, "sent "), 3L * BATCH * W * 4 * 2 * (tensor - 1) / tensor, "%s", text);
        holds(text, parted, whole, 12, tensor);
        free(text);
    }
}

/* Of a block four sums; the table is read by one, the loss takes two of a number or two for each letter, and the way back from it one. */
Test(tensor, transformer_costs_what_it_must) {
    enum { W = 32, LETTERS = 48, CONTEXT = 16 };
    long block = 3 * W * W + 3 * W + W * W + 4 * W * W + 4 * W + 4 * W * W, norms = 4 * W + 2 * W;
    setenv("RUN_DESCRIBE", "1", 1);
    char *text = train("gpt", "f32", (mesh){1, 4}, 2, temporary_path("costs"));
    cr_expect_eq(number_after(text, "collectives "), 2 * 4 + 1 + 2 + 1, "%s", text);
    holds(text, 2 * block + LETTERS * W, 2 * norms + CONTEXT * W + 2 * W, 28, 4);
    cr_expect_not_null(strstr(text, "tensor: over 4 ranks"), "%s", text);
    cr_expect_not_null(strstr(text, "'block1.attention.qkv.weight' [96, 32] is split along axis 0, by sections"), "%s", text);
    cr_expect_not_null(strstr(text, "'block0.down.weight' [32, 128] is split along axis 1"), "%s", text);
    cr_expect_eq(count(text, "is split along"), 13, "%s", text);
    free(text);
}

/* Rows between products that are split, dealt out: what norms give is a part on each rank, the products' sums are as many bytes, and gradients of what is of
 * all rows, which are small, are sums over ranks. The first norm reads what is whole. */
Test(tensor, shared_rows_are_kept_in_parts) {
    enum { W = 32, CONTEXT = 128, BATCH = 16, NORMS = 5, BLOCKS = 2 };
    setenv("RUN_CONTEXT", "128", 1);
    setenv("RUN_DESCRIBE", "1", 1);
    for (int ranks = 2; ranks <= 4; ranks += 2) {
        char with[64], without[64];
        snprintf(with, sizeof with, "tensor=%d,tensor-rows=1", ranks);
        snprintf(without, sizeof without, "tensor=%d,tensor-rows=-1", ranks);
        char *parts = train_split("gpt", "f32", (split){ranks, with}, 2, temporary_path("parts")), *whole = train_split("gpt", "f32", (split){ranks, without}, 2, temporary_path("whole"));
        long  rows = 4L * BATCH * CONTEXT * W, most = number_after(whole, "peak ") - (NORMS - 1) * (rows - rows / ranks);
        cr_expect_leq(number_after(parts, "peak "), most, "%ld bytes at the peak of %d ranks, not %ld; with whole rows %ld", number_after(parts, "peak "), ranks, most, number_after(whole, "peak "));
        cr_expect_eq(number_after(parts, "sent ") - number_after(whole, "sent "), 8L * W * (2 * NORMS + 2 * BLOCKS + CONTEXT) * (ranks - 1) / ranks, "%ld and %ld bytes are sent",
                     number_after(parts, "sent "), number_after(whole, "sent "));
        cr_expect_not_null(strstr(parts, "rows between split products are shared"), "%s", parts);
        cr_expect_null(strstr(whole, "are shared"), "%s", whole);
        free(parts);
        free(whole);
    }
}

Test(tensor, shared_rows_in_f64) {
    setenv("RUN_CLIP", "1", 1);
    splits_agree("gpt", "f64", 10, 1e-11, (split[]){{4, "tensor=4,tensor-rows=1"}, {4, "data=2,tensor=2,tensor-rows=1"}}, 2);
    splits_agree("mlp", "f64", 10, 1e-11, (split[]){{2, "tensor=2,tensor-rows=1"}}, 1);
    setenv("RUN_ROWS", "59", 1); /* a last batch of 11: ranks along the batch have 6 and 5 rows, of which 2 ranks could share the 6 */
    splits_agree("gpt", "f64", 10, 1e-11, (split[]){{4, "data=2,tensor=2,tensor-rows=1"}}, 1);
    splits_agree("mlp", "f64", 10, 1e-11, (split[]){{4, "data=2,tensor=2,tensor-rows=1"}}, 1);
}

/* --- checkpoints --- */

/* Initial values are drawn by their place in the whole, and files are those of one process to the byte. */
Test(tensor, files_are_those_of_one_process) {
    char        command[1024];
    const char *one = saved("gpt", (mesh){1, 1}, 0, temporary_path("none")), *other = saved("gpt", (mesh){2, 2}, 0, temporary_path("none"));
    snprintf(command, sizeof command, "cmp %s %s", one, other);
    cr_assert_eq(system(command), 0, "another file");
}

Test(tensor, runs_go_on_under_another_mesh) {
    size_t  n;
    double *expected = curve("gpt", "f64", (mesh){1, 1}, 8, &n);
    goes_on("gpt", 4, (mesh){2, 2}, (mesh){1, 2}, expected, n);
    goes_on("gpt", 4, (mesh){1, 1}, (mesh){1, 4}, expected, n);
    free(expected);
}

/* --- what goes wrong --- */

static void fails(mesh m, const char *variable, const char *value, const char *word, const char *hint) {
    char *text;
    setenv(variable, value, 1);
    int status = run("mlp", "f32", m, 10, temporary_path("failed"), &text);
    unsetenv(variable);
    cr_expect_neq(status, 0, "%s=%s: %s", variable, value, text);
    cr_expect_not_null(strstr(text, word), "%s=%s: '%s' lacks '%s'", variable, value, text, word);
    cr_expect_not_null(strstr(text, hint), "%s=%s: '%s' lacks '%s'", variable, value, text, hint);
    free(text);
}

Test(tensor, what_is_not_there_is_refused) {
    fails((mesh){1, 2}, "RUN_WITH", "compress", "WEFT_E_UNSUPPORTED", "tensor = 2 does not go with compress");
    fails((mesh){1, 2}, "RUN_WITH", "lbfgs", "WEFT_E_UNSUPPORTED", "tensor = 2 does not go with L-BFGS");
    fails((mesh){1, 2}, "RUN_WITH", "get", "WEFT_E_STATE", "'one.weight' [64, 128] is split along axis 0 over 2 ranks");
}

/* All ranks hear of a file that rank 0 cannot write or read, and nobody waits for parts. */
Test(tensor, files_that_cannot_be) {
    fails((mesh){1, 2}, "RUN_SAVE", "/nowhere/to/be/found", "failed on rank 0", "/nowhere/to/be");
    fails((mesh){1, 2}, "RUN_LOAD", "/nowhere/to/be/found", "failed on rank 0", "/nowhere/to/be");
}

Test(tensor, a_rank_that_dies_ends_all) {
    fails((mesh){2, 2}, "RUN_DIE", "3", "WEFT_E_PEER", "rank 3 failed");
}

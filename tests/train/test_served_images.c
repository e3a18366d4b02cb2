/* Training by a parameter server learns: a multilayer perceptron on Fashion-MNIST by two ranks, one epoch of Adam. Without staleness it is training
 * by allreduce; with it every rank's gradient is a step by itself, and it is right as often. */
#include <criterion/criterion.h>
#include <stdio.h>

#include "train/images.h"

static const char *const how = "--model mlp --batch 128 --epochs 1 --sync server:";

static learnt by_server(const char *arguments) {
    char line[256];
    snprintf(line, sizeof line, "%s%s", how, arguments);
    return learn(line, "none");
}

Test(served_images, a_perceptron_learns_as_well_with_any_staleness) {
    learnt together = learn("--model mlp --batch 128 --epochs 1", "none"), sums = by_server("0 --servers 1");
    cr_expect_float_eq(sums.test_loss, together.test_loss, 1e-3, "by a server %.6f, by allreduce %.6f", sums.test_loss, together.test_loss);
    const char *const staleness[] = {"1", "4", "async"};
    for (int i = 0; i < 3; i++) {
        learnt found = by_server(staleness[i]);
        fprintf(stderr, "  staleness %s: test loss %.4f, accuracy %.4f (allreduce: %.4f, %.4f)\n", staleness[i], found.test_loss, found.test_accuracy,
                together.test_loss, together.test_accuracy);
        cr_expect_geq(found.test_accuracy, together.test_accuracy - 0.03, "staleness %s: %.2f %% are right, %.2f %% by allreduce", staleness[i],
                      100 * found.test_accuracy, 100 * together.test_accuracy);
    }
}

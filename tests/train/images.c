#include "train/images.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "train/run.h"

#define DATA "/usr/share/datasets/fashion-mnist"

static double last_figure(const char *text, const char *name) {
    const char *found = NULL;
    for (const char *at = text; (at = strstr(at, name)); at++) found = at;
    cr_assert_not_null(found, "'%s' is missing in: %s", name, text);
    return atof(found + strlen(name));
}

learnt learn(const char *arguments, const char *codec) {
    char        line[1024];
    const char *log = temporary_path("log"), *output = temporary_path("output"), *program = WEFT_BIN_DIR "/train_images";
    if (access(DATA "/train-images-idx3-ubyte.gz", R_OK) != 0) cr_skip_test("Fashion-MNIST is not in " DATA);
    if (access(program, X_OK) != 0) cr_skip_test("the sample train_images is not built");
    unlink(log);
    snprintf(line, sizeof line, "%s --data " DATA " --quiet --log %s --compress %s", arguments, log, codec);
    int   status = run_ranks(2, "shm", "train_images", line, output);
    char *text = read_text(output);
    if (strstr(text, "built without zlib")) cr_skip_test("this build does not read gzip files");
    cr_assert_eq(status, 0, "%s: exit status %d: %s", codec, status, text);
    free(text);
    text = read_text(log);
    learnt found = {last_figure(text, "\"test_loss\":"), last_figure(text, "\"test_accuracy\":")};
    free(text);
    return found;
}

void learns_as_well(const char *arguments, const char *codec, double points, double share) {
    static learnt plain; /* of the same arguments: one test compares several codecs */
    static char   of[512];
    if (strcmp(of, arguments) != 0) {
        plain = learn(arguments, "none");
        snprintf(of, sizeof of, "%s", arguments);
        fprintf(stderr, "  none: test loss %.4f, accuracy %.4f\n", plain.test_loss, plain.test_accuracy);
    }
    learnt found = learn(arguments, codec);
    fprintf(stderr, "  %s: test loss %.4f, accuracy %.4f\n", codec, found.test_loss, found.test_accuracy);
    cr_assert_geq(found.test_accuracy, plain.test_accuracy - points / 100, "%s: %.2f %% are right, %.2f %% without compression", codec,
                  100 * found.test_accuracy, 100 * plain.test_accuracy);
    cr_assert_leq(found.test_loss, plain.test_loss * (1 + share), "%s: the test loss is %.4f, %.4f without compression", codec, found.test_loss,
                  plain.test_loss);
}

/* The usual loop, on one rank in this process: what it leaves in its files, and what it says. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/run.h"
#include "weft.h"

enum { ROWS = 60, BATCH = 12, STEPS = ROWS / BATCH, CLASSES = 3 };

typedef struct run {
    weft_world   *world;
    weft_graph   *graph;
    weft_loader  *loader, *test;
    weft_trainer *trainer;
    weft_tensor  *loss, *correct;
} run;

static float   x[ROWS][CLASSES];
static int32_t y[ROWS];

/* Three clusters, which a linear layer tells apart. */
static run begin(int64_t epochs) {
    run r = {0};
    for (int i = 0; i < ROWS; i++) {
        y[i] = i % CLASSES;
        for (int k = 0; k < CLASSES; k++) x[i][k] = (float)(k == y[i]) + 0.01f * (float)(i % 7);
    }
    weft_batch_field    fields[2] = {{"x", WEFT_F32, weft_shape(ROWS, CLASSES), x}, {"y", WEFT_I32, weft_shape(ROWS), y}};
    weft_loader_options how = {.batch = BATCH, .seed = 1, .epochs = epochs}, once = {.batch = BATCH, .in_order = true};
    cr_assert_eq(weft_world_create(&(weft_world_options){.size = 1}, &r.world), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_graph_create(NULL, &r.graph), WEFT_OK);
    cr_assert_eq(weft_loader_open_arrays(fields, 2, &how, &r.loader), WEFT_OK);
    cr_assert_eq(weft_loader_open_arrays(fields, 2, &once, &r.test), WEFT_OK);
    weft_tensor *label = weft_input(r.graph, "y", WEFT_I32, weft_shape(BATCH));
    weft_tensor *logits = weft_linear(weft_input(r.graph, "x", WEFT_F32, weft_shape(BATCH, CLASSES)), "head", .out = CLASSES);
    r.loss = weft_cross_entropy(logits, label);
    r.correct = weft_sum(weft_cast(weft_eq(weft_argmax(logits, 1), weft_cast(label, WEFT_I64)), WEFT_I64));
    cr_assert_eq(weft_trainer_create(r.world, &(weft_program){.loss = r.loss, .solver = weft_adam(0.1)}, &r.trainer), WEFT_OK, "%s",
                 weft_error_message());
    return r;
}

static void end(run *r) {
    weft_trainer_release(r->trainer);
    weft_loader_release(r->test);
    weft_loader_release(r->loader);
    weft_graph_release(r->graph);
    weft_world_release(r->world);
}

static weft_status fit_with(run *r, weft_fit_options options, weft_fit_result *result_out) {
    options.test = r->test;
    options.test_loss = r->loss;
    options.test_correct = r->correct;
    return weft_fit(r->trainer, r->loader, &options, result_out);
}

/* The last line of a file, without its end; free it. */
static char *last_line(const char *path) {
    char *text = read_text(path), *newline;
    size_t length = strlen(text);
    cr_assert(length > 0 && text[length - 1] == '\n', "'%s' ends in the middle of a line: %s", path, text);
    text[length - 1] = 0;
    newline = strrchr(text, '\n');
    char *line = strdup(newline ? newline + 1 : text);
    free(text);
    return line;
}

static void has(const char *line, const char *part) { cr_assert_not_null(strstr(line, part), "'%s' lacks %s", line, part); }

Test(fit, finds_a_checkpoint_that_cannot_be_written_before_it_trains) {
    const char     *log = temporary_path("log");
    weft_fit_result result;
    run             r = begin(1);
    cr_assert_eq(fit_with(&r, (weft_fit_options){.checkpoint_path = "/nowhere/at/all/model", .log_path = log}, &result), WEFT_E_NOT_FOUND);
    has(weft_error_message(), "/nowhere/at/all/model");
    cr_assert_eq(result.steps, 0);
    cr_assert_eq(weft_trainer_steps(r.trainer), 0);
    char *line = last_line(log);
    has(line, "\"event\":\"error\"");
    has(line, "/nowhere/at/all/model");
    free(line);
    end(&r);
}

Test(fit, trying_a_checkpoint_leaves_what_is_there) {
    const char     *path = temporary_path("model");
    weft_fit_result result;
    run             r = begin(1);
    FILE           *file = fopen(path, "w");
    fputs("something else", file);
    fclose(file);
    cr_assert_eq(fit_with(&r, (weft_fit_options){.checkpoint_path = path, .log_path = "/nowhere/log"}, &result), WEFT_E_NOT_FOUND);
    char *text = read_text(path);
    cr_assert_str_eq(text, "something else");
    free(text);
    end(&r);
}

Test(fit, says_how_good_a_finished_run_is_that_is_resumed) {
    const char      *path = temporary_path("model"), *log = temporary_path("log");
    weft_fit_options options = {.checkpoint_path = path, .log_path = log, .resume = true, .epochs = 3};
    weft_fit_result  first, again;
    char             accuracy[64];
    run              r = begin(3);
    cr_assert_eq(fit_with(&r, options, &first), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(first.steps, 3 * STEPS);
    cr_assert_float_eq(first.test_accuracy, 1, 1e-9);
    end(&r);
    r = begin(3);
    options.progress = tmpfile();
    cr_assert_eq(fit_with(&r, options, &again), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(again.steps, first.steps);
    cr_assert_eq(again.epochs, 3);
    cr_assert_eq(again.test_accuracy, first.test_accuracy);
    cr_assert_eq(again.test_loss, first.test_loss);
    cr_assert_eq(again.train_seconds, 0);
    char *line = last_line(log), said[256] = "";
    snprintf(accuracy, sizeof accuracy, "\"test_accuracy\":%.17g", again.test_accuracy);
    has(line, "\"event\":\"end\"");
    has(line, accuracy);
    has(line, "\"epoch\":2");
    has(line, "\"samples_per_second\":null");
    free(line);
    rewind(options.progress);
    cr_assert_not_null(fgets(said, sizeof said, options.progress));
    has(said, "nothing left to train:");
    has(said, "test accuracy 100.00 %");
    fclose(options.progress);
    end(&r);
}

/* A trained step's trace becomes a timeline: a row for steps, one for computing. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "common/files.h"
#include "weft.h"

#define OK(call) cr_assert_eq((call), WEFT_OK, "%s", weft_error_message())

static int occurrences(const char *text, const char *part) {
    int count = 0;
    for (const char *at = text; (at = strstr(at, part)); at++) count++;
    return count;
}

Test(timeline_plan, shows_every_step_of_a_trainer) {
    const char    *path = scratch("t.json");
    weft_world    *world = NULL;
    weft_graph    *graph = NULL;
    weft_trainer  *trainer = NULL;
    weft_timeline *timeline = NULL;
    float          x[8] = {1, 2, 3, 4, 5, 6, 7, 8}, y[4] = {1, 2, 3, 4};
    OK(weft_world_create(&(weft_world_options){.size = 1}, &world));
    OK(weft_graph_create(NULL, &graph));
    weft_tensor *in = weft_input(graph, "x", WEFT_F32, weft_shape(4, 2)), *out = weft_input(graph, "y", WEFT_F32, weft_shape(4, 1));
    weft_program program = {.loss = weft_mse(weft_linear(in, "layer", .out = 1), out), .solver = weft_sgd(0.001), .trace = true};
    OK(weft_trainer_create(world, &program, &trainer));
    weft_batch batch = {.field_count = 2, .global_rows = 4, .local_rows = 4, .count = 1,
                        .field = {{"x", WEFT_F32, weft_shape(4, 2), x}, {"y", WEFT_F32, weft_shape(4, 1), y}}};
    for (int step = 0; step < 3; step++) OK(weft_trainer_step(trainer, &batch, NULL));
    OK(weft_timeline_open(path, &timeline));
    int32_t events = weft_timeline_add_plan(timeline, weft_trainer_plan(trainer), 5);
    cr_assert_geq(events, 6, "%d events", events);
    cr_assert_eq(weft_timeline_add_plan(timeline, NULL, 0), 0);
    OK(weft_timeline_close(timeline));
    char *text = (char *)read_file(path, NULL);
    cr_assert_eq(occurrences(text, "\"cat\":\"run\""), 3);
    cr_assert_geq(occurrences(text, "\"cat\":\"compute\""), 3);
    cr_assert_eq(occurrences(text, "\"ph\":\"X\""), events);
    cr_assert(strstr(text, "\"pid\":5") && strstr(text, "{\"name\":\"computing\"}"));
    free(text);
    weft_trainer_release(trainer);
    weft_graph_release(graph);
    weft_world_release(world);
}

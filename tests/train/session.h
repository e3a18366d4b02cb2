/* A program in training on one rank, in process: a network is made of what it is fed, and trained step by step. */
#ifndef TESTS_TRAIN_SESSION_H
#define TESTS_TRAIN_SESSION_H

#include <criterion/criterion.h>
#include <string.h>

#include "weft.h"

typedef struct session {
    weft_world   *world;
    weft_graph   *graph;
    weft_trainer *trainer;
    weft_batch    batch;
} session;

static inline void begin_session(session *s, int64_t rows, weft_graph_options options) {
    memset(s, 0, sizeof *s);
    cr_assert_eq(weft_world_create(&(weft_world_options){.size = 1}, &s->world), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_graph_create(&options, &s->graph), WEFT_OK, "%s", weft_error_message());
    s->batch = (weft_batch){.global_rows = rows, .local_rows = rows};
}
static inline void close_session(session *s) {
    weft_trainer_release(s->trainer);
    weft_graph_release(s->graph);
    weft_world_release(s->world);
}

/* The input is given the same data in every step. */
static inline weft_tensor *fed(session *s, const char *name, weft_dtype dtype, weft_shape shape, const void *data) {
    s->batch.field[s->batch.field_count++] = (weft_batch_field){name, dtype, shape, (void *)(uintptr_t)data};
    return weft_input(s->graph, name, dtype, shape);
}

static inline void begin_training(session *s, const weft_program *program) {
    cr_assert_eq(weft_trainer_create(s->world, program, &s->trainer), WEFT_OK, "%s", weft_error_message());
}
/* loss_out: of each step; may be NULL. */
static inline void train(session *s, int steps, double *loss_out) {
    weft_report report;
    for (int i = 0; i < steps; i++) {
        cr_assert_eq(weft_trainer_step(s->trainer, &s->batch, &report), WEFT_OK, "%s", weft_error_message());
        if (loss_out) loss_out[i] = report.loss;
    }
}

#endif

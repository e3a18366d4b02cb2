/* Measures how communication hides behind the backward pass. usage: overlap STEPS [STRATEGY]
 * Prints "least NS" of the steps and what of it "waited NS" for others, and of the last step's trace "between SEGMENTS" (of the backward pass, computed
 * after the first gradients had left and before the last did) and "bytes TOTAL" that a rank sends. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "weft.h"

enum { BATCH = 128, WIDTH = 192, LAYERS = 16 }; /* a step of a few milliseconds: less than a slice of time of a busy core */

/* Whether collective `index` of the plan, in the order of starts, brings gradients together. */
static bool sums(weft_plan *plan, int32_t index) {
    weft_plan_op op;
    for (int32_t i = 0; weft_plan_op_at(plan, i, &op) == WEFT_OK; i++)
        if (op.segment < 0 && index-- == 0) return strcmp(op.kind, "all_gather") != 0;
    return false;
}

/* How many segments of the latest run's backward pass began between its first large collective and its last: counted, not timed, as times
 * jump where a machine is busy. */
static void print_trace(weft_plan *plan) {
    enum { EVENTS = 4096, LARGE = 65536 };
    static weft_trace_event events[EVENTS];
    int32_t  n = weft_plan_trace(plan, events, EVENTS), between = 0;
    int      run = n ? events[n - 1].run : 0;
    uint64_t first = UINT64_MAX, last = 0;
    weft_plan_totals totals;
    for (int32_t i = 0; i < n; i++) {
        if (events[i].run != run || events[i].kind != WEFT_TRACE_COLLECTIVE) continue;
        if (events[i].bytes <= LARGE || !sums(plan, events[i].index)) continue;
        if (events[i].begin_ns < first) first = events[i].begin_ns;
        if (events[i].begin_ns > last) last = events[i].begin_ns;
    }
    for (int32_t i = 0; i < n; i++)
        between += events[i].run == run && events[i].kind == WEFT_TRACE_SEGMENT && events[i].begin_ns >= first && events[i].end_ns <= last;
    weft_plan_totals_read(plan, &totals);
    printf("between %d\nbytes %lld\n", between, (long long)totals.sent_bytes);
}

int main(int argc, char **argv) {
    static float  x[BATCH][WIDTH];
    long          steps = argc > 1 ? atol(argv[1]) : 20;
    uint64_t      least = UINT64_MAX, waited = 0;
    weft_world   *world = NULL;
    weft_graph   *graph = NULL;
    weft_trainer *trainer = NULL;
    weft_report   report;
    weft_status   status;
    for (int i = 0; i < BATCH; i++)
        for (int k = 0; k < WIDTH; k++) x[i][k] = (float)((i * WIDTH + k) % 97) / 97;
    if ((status = weft_world_create(NULL, &world)) != WEFT_OK) goto done;
    if ((status = weft_graph_create(NULL, &graph)) != WEFT_OK) goto done;
    weft_tensor *h = weft_input(graph, "x", WEFT_F32, weft_shape(BATCH, WIDTH));
    for (int i = 0; i < LAYERS; i++) {
        char name[16];
        snprintf(name, sizeof name, "layer%d", i);
        h = weft_relu(weft_linear(h, name, .out = WIDTH));
    }
    weft_program program = {.loss = weft_mean(weft_square(h)), .solver = weft_sgd(1e-3), .trace = true, .strategy = {.bucket_bytes = 1 << 17}};
    if (argc > 2 && (status = weft_strategy_parse(argv[2], &program.strategy)) != WEFT_OK) goto done;
    if ((status = weft_trainer_create(world, &program, &trainer)) != WEFT_OK) goto done;
    weft_batch batch = {.field_count = 1, .global_rows = BATCH};
    weft_batch_share(BATCH, weft_world_rank(world), weft_world_size(world), &batch.first_row, &batch.local_rows);
    batch.field[0] = (weft_batch_field){"x", WEFT_F32, weft_shape(batch.local_rows, WIDTH), x[batch.first_row]};
    for (long i = 0; i <= steps; i++) { /* the first is a warm-up */
        if ((status = weft_trainer_step(trainer, &batch, &report)) != WEFT_OK) goto done;
        if (i && report.step_ns < least) {
            least = report.step_ns;
            waited = report.wait_ns;
        }
    }
    if (weft_world_rank(world) == 0) {
        printf("least %llu\nwaited %llu\n", (unsigned long long)least, (unsigned long long)waited);
        print_trace(weft_trainer_plan(trainer));
    }
done:
    if (status != WEFT_OK) fprintf(stderr, "overlap: %s\n", weft_error_message());
    weft_trainer_release(trainer);
    weft_graph_release(graph);
    weft_world_release(world);
    return status == WEFT_OK ? 0 : 1;
}

/* Trains a small network with compressed gradients and tells what came of it. usage: compress CODEC STEPS OUT [CHECKPOINT]
 * CODEC as weft_compression_parse reads it; CHECKPOINT is loaded where it exists and saved at the end. Every rank writes its parameters to
 * OUT.<rank>, as doubles, and rank 0 prints "planned BYTES" (that a rank sends in a step, says the plan). With COMPRESS_COUNT every
 * rank prints "counted BYTES MESSAGES" of one step more, from the counters of its wire, and rank 0 "due BYTES" that all ranks together send in
 * a step where no byte is sent twice, the gaps between the values of one message included, and "collectives N". Environment: COMPRESS_FEEDBACK,
 * COMPRESS_WARMUP, COMPRESS_MICRO (numbers), COMPRESS_PRECISION (f16, bf16), COMPRESS_LEAST, COMPRESS_OTHER (rank 1 has another codec),
 * COMPRESS_SERVER (by a parameter server, so many ranks of which serve), RUN_FAR (far_world.h). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/iface/collective.h"
#include "core/plan/object.h"
#include "train/programs/far_world.h"
#include "weft.h"

enum { ROWS = 480, BATCH = 48, WIDTH = 64, HIDDEN = 96, CLASSES = 4 };

static long number_of(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

static void make_data(float x[ROWS][WIDTH], int32_t *y) {
    unsigned state = 5;
    for (int i = 0; i < ROWS; i++) {
        y[i] = i % CLASSES;
        for (int k = 0; k < WIDTH; k++)
            x[i][k] = (float)((state = state * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1 + 0.4f * (float)(k % CLASSES == y[i]);
    }
}

static weft_status write_parameters(weft_trainer *trainer, const char *path, int32_t rank) {
    char name[1024];
    snprintf(name, sizeof name, "%s.%d", path, rank);
    weft_variables *variables = weft_trainer_variables(trainer);
    FILE           *file = fopen(name, "wb");
    weft_status     status = file ? WEFT_OK : WEFT_E_IO;
    for (int32_t i = 0; i < weft_variables_count(variables) && status == WEFT_OK; i++) {
        weft_variable_info info;
        if ((status = weft_variables_info(variables, i, &info)) != WEFT_OK) break;
        if (info.kind != WEFT_VARIABLE_PARAMETER) continue;
        size_t n = (size_t)info.bytes / sizeof(float);
        float *values = malloc((size_t)info.bytes + 1);
        status = weft_variables_get(variables, info.name, values, (size_t)info.bytes);
        for (size_t k = 0; k < n && status == WEFT_OK; k++) {
            double value = (double)values[k];
            if (fwrite(&value, sizeof value, 1, file) != 1) status = WEFT_E_IO;
        }
        free(values);
    }
    if (file && fclose(file) != 0) status = WEFT_E_IO;
    return status;
}

static weft_status step(weft_trainer *trainer, weft_loader *loader, weft_report *report) {
    weft_batch  batch;
    weft_status status = weft_loader_next(loader, &batch);
    return status == WEFT_OK ? weft_trainer_step(trainer, &batch, report) : status;
}

/* Of all ranks together: (n-1)/n of what an all-to-all holds on all ranks, and so on. */
static long long due_bytes(weft_plan *plan, long long ranks) {
    long long due = 0;
    for (int32_t c = 0; c < plan->ir.n_collectives; c++) {
        const wefti_item *item = &plan->ir.items[plan->ir.collectives[c].item];
        int32_t           first = item->inputs[0], last = item->inputs[item->n_inputs - 1];
        long long         bytes = (char *)wefti_plan_address(plan, last) - (char *)wefti_plan_address(plan, first) + wefti_value_bytes(&plan->ir.values[last]);
        if (item->op == WEFT_OP_ALL_REDUCE) due += 2 * (ranks - 1) * bytes;
        else if (item->op == WEFT_OP_ALL_GATHER) due += ranks * (ranks - 1) * bytes;
        else if (item->op == WEFT_OP_ALL_TO_ALL) due += (ranks - 1) * bytes;
        else return -1;
    }
    return due;
}

/* What this rank's wire sends in a step. */
static weft_status count(weft_world *world, weft_trainer *trainer, weft_loader *loader, weft_report *report) {
    wefti_wire_counts before, after;
    wefti_wire       *wire = world->group->wire;
    weft_status       status = step(trainer, loader, report);
    wire->ops->counts(wire, &before);
    if (status == WEFT_OK) status = step(trainer, loader, report);
    wire->ops->counts(wire, &after);
    if (weft_world_rank(world) == 0) printf("due %lld\ncollectives %d\n", due_bytes(weft_trainer_plan(trainer), weft_world_size(world)), weft_trainer_plan(trainer)->ir.n_collectives);
    printf("counted %llu %llu\n", (unsigned long long)(after.sent_bytes - before.sent_bytes), (unsigned long long)(after.sent_messages - before.sent_messages));
    return status;
}

static weft_status train(weft_world *world, weft_trainer *trainer, weft_loader *loader, long steps, const char *checkpoint, weft_report *report) {
    weft_status status = checkpoint ? weft_trainer_load(trainer, checkpoint, loader) : WEFT_OK;
    if (status == WEFT_E_NOT_FOUND) status = WEFT_OK;
    for (long i = weft_trainer_steps(trainer) + 1; i <= steps && status == WEFT_OK; i++) status = step(trainer, loader, report);
    if (status == WEFT_OK && checkpoint) status = weft_trainer_save(trainer, checkpoint, loader);
    if (status == WEFT_OK && number_of("COMPRESS_COUNT")) status = count(world, trainer, loader, report);
    return status;
}

int main(int argc, char **argv) {
    static float   x[ROWS][WIDTH];
    static int32_t y[ROWS];
    if (argc < 4) return 2;
    weft_world   *world = NULL;
    weft_graph   *graph = NULL;
    weft_loader  *loader = NULL;
    weft_trainer *trainer = NULL;
    weft_report   report = {0};
    weft_status   status;
    const char   *precision = getenv("COMPRESS_PRECISION");
    make_data(x, y);
    if ((status = weft_world_create(NULL, &world)) != WEFT_OK) goto done;
    far_world(world);
    if ((status = weft_graph_create(&(weft_graph_options){.seed = 3}, &graph)) != WEFT_OK) goto done;
    weft_batch_field    fields[2] = {{"x", WEFT_F32, weft_shape(ROWS, WIDTH), x}, {"y", WEFT_I32, weft_shape(ROWS), y}};
    weft_loader_options how = {.batch = BATCH, .rank = weft_world_rank(world), .ranks = weft_world_size(world), .seed = 9, .epochs = -1};
    if ((status = weft_loader_open_arrays(fields, 2, &how, &loader)) != WEFT_OK) goto done;
    weft_tensor *h = weft_input(graph, "x", WEFT_F32, weft_shape(BATCH, WIDTH));
    h = weft_relu(weft_linear(h, "hidden", .out = HIDDEN));
    weft_tensor *loss = weft_cross_entropy(weft_linear(h, "head", .out = CLASSES), weft_input(graph, "y", WEFT_I32, weft_shape(BATCH)));
    weft_program program = {.loss = loss, .solver = weft_sgd(0.05, .momentum = 0.9, .clip_norm = 5)};
    if ((status = weft_compression_parse(argv[1], &program.strategy.compress)) != WEFT_OK) goto done;
    program.strategy.compress.warmup = number_of("COMPRESS_WARMUP");
    program.strategy.compress.least = number_of("COMPRESS_LEAST");
    program.strategy.compress.error_feedback = number_of("COMPRESS_FEEDBACK") != 0;
    program.strategy.accumulate = (int32_t)number_of("COMPRESS_MICRO");
    program.strategy.precision = precision ? weft_dtype_of(precision) : WEFT_F32;
    if (getenv("COMPRESS_SERVER")) {
        program.strategy.sync = WEFT_SERVER;
        program.strategy.servers = (int32_t)number_of("COMPRESS_SERVER");
        program.solver.clip_norm = 0;
    }
    if (number_of("COMPRESS_OTHER") && weft_world_rank(world) == 1) program.strategy.compress.codec = WEFT_COMPRESS_FP8_E5M2;
    if ((status = weft_trainer_create(world, &program, &trainer)) != WEFT_OK) goto done;
    if ((status = train(world, trainer, loader, atol(argv[2]), argc > 4 ? argv[4] : NULL, &report)) != WEFT_OK) goto done;
    weft_plan_totals totals;
    weft_plan_totals_read(weft_trainer_plan(trainer), &totals);
    if (weft_world_rank(world) == 0) printf("planned %lld\nloss %.9g\n", (long long)totals.sent_bytes, report.loss);
    status = write_parameters(trainer, argv[3], weft_world_rank(world));
done:
    if (status != WEFT_OK) printf("error %s %s\n", weft_status_name(status), weft_error_message());
    fflush(stdout);
    weft_trainer_release(trainer);
    weft_loader_release(loader);
    weft_graph_release(graph);
    weft_world_release(world);
    return status == WEFT_OK ? 0 : 1;
}

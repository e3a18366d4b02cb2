/* Trains a small network on a mesh and writes the loss of every step, for comparing meshes and strategies.
 * usage: tensor mlp|cnn|gpt|moe f32|f64 STRATEGY STEPS OUT, where STRATEGY is like data=2,tensor=2
 * RUN_CAPACITY, RUN_CHOICES: of moe's mixtures. RUN_CONTEXT: letters of a sample. RUN_ROTARY: places by turning,
 * and fewer heads of keys than of queries. RUN_MIX: something that needs all letters at once. RUN_FLAT: dropout where samples and letters are one axis.
 * RUN_BASE: a sum by letters that adds to a number of the whole batch.
 * RUN_LAST=slice|gather: only what follows the first and the last letter is learnt, which are taken out that way.
 * RUN_SAVE=PATH saves after the last step, RUN_LOAD=PATH goes on from there. RUN_DESCRIBE prints rank 0's plan. RUN_DIE=RANK dies in the middle.
 * RUN_HELD: every rank says how many bytes its variables are, and its server's rows with their states. RUN_ALIKE: every rank says what the parameters that it has all of come to. RUN_PENALTY: one more, that is trained without the batch.
 * RUN_APART: the path where the other ranks look for it.
 * RUN_READS: every rank says how much it read. RUN_DISK_DIES: in the middle of saving (mortal_disk.h). RUN_CLIP: by the gradient's norm. RUN_MICRO: micro-batches. RUN_WITH: something that is refused. RUN_ZERO, RUN_LEAST, RUN_BUCKET, RUN_ROOM: the
 * strategy's zero, divide_bytes, bucket_bytes and memory_bytes. RUN_SOLVER, RUN_OMEGA, RUN_PRECISION: another solver, l1, group or l2, bf16 or f16. After the steps the
 * loss of a batch is evaluated and written, too. */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/programs/far_world.h"
#include "train/programs/mortal_disk.h"
#include "weft.h"

enum { ROWS = 60, BATCH = 16, CLASSES = 8, PIXELS = 2 * 8 * 8, LETTERS = 48, MOST_CONTEXT = 512 };

static double  wide[ROWS * PIXELS];
static float   slim[ROWS * PIXELS];
static int32_t label[ROWS], tokens[ROWS * MOST_CONTEXT], targets[ROWS * MOST_CONTEXT], context = 16;
static const int64_t width = 32;

static void make_data(void) {
    unsigned state = 12345;
    for (int i = 0; i < ROWS; i++) {
        label[i] = i % 9 == 4 ? -100 : i % CLASSES;
        for (int k = 0; k < PIXELS; k++) {
            state = state * 1664525u + 1013904223u;
            wide[i * PIXELS + k] = slim[i * PIXELS + k] = (float)(state >> 8) / 8388608.0f - 1.0f + 0.3f * (float)(i % CLASSES) * (float)(k % 3);
        }
        for (int k = 0; k <= context; k++) {
            int32_t letter = (int32_t)((state >> 20) % 7 + (unsigned)(3 * (i + k)) % 40);
            state = state * 1664525u + 1013904223u;
            if (k < context) tokens[i * context + k] = letter;
            if (k > 0) targets[i * context + k - 1] = letter;
        }
    }
}

static weft_tensor *mlp(weft_tensor *x) {
    x = weft_relu(weft_linear(weft_flatten(x), "one", .out = 2 * width));
    x = weft_gelu(weft_layer_norm(weft_linear(x, "two", .out = width), "norm"));
    x = weft_tanh(weft_linear(weft_dropout(x, 0.1), "three", .out = 2 * width));
    return weft_linear(weft_linear(x, "four", .out = width), "head", .out = CLASSES);
}

static weft_tensor *cnn(weft_tensor *x) {
    x = weft_relu(weft_batch_norm(weft_conv2d(x, "conv1", .filters = width / 4, .kernel = 3, .pad = 1), "norm"));
    x = weft_relu(weft_conv2d(weft_max_pool2d(x, .window = 2), "conv2", .filters = width / 2, .kernel = 3, .pad = 1));
    x = weft_dropout(weft_flatten(weft_avg_pool2d(x, .window = 2)), 0.25);
    return weft_linear(weft_relu(weft_linear(x, "hidden", .out = width)), "head", .out = CLASSES);
}

/* A block's second half: a perceptron, or a mixture of them whose balance is added to the loss. */
static weft_tensor *forward(weft_tensor *x, bool mixed, weft_tensor **extra) {
    weft_tensor *balance, *z;
    if (!mixed) return weft_linear(weft_gelu_tanh(weft_linear(x, "up", .out = 4 * width)), "down", .out = width);
    x = weft_mixture_of_experts(x, "experts", .experts = 4, .choices = getenv("RUN_CHOICES") ? atoi(getenv("RUN_CHOICES")) : 2, .hidden = 2 * width,
                                .capacity = getenv("RUN_CAPACITY") ? atof(getenv("RUN_CAPACITY")) : 1, .balance_out = &balance, .z_out = &z);
    balance = weft_add(weft_mul_scalar(balance, 0.01), weft_mul_scalar(z, 0.001));
    *extra = *extra ? weft_add(*extra, balance) : balance;
    return x;
}

static weft_tensor *drop(weft_tensor *x) {
    if (!getenv("RUN_FLAT")) return weft_dropout(x, 0.1);
    return weft_reshape(weft_dropout(weft_reshape(x, weft_shape(BATCH * context, width)), 0.1), weft_shape(BATCH, context, width));
}

/* The first and the last letter's [BATCH, 2, ...]; all where RUN_LAST is not set. */
static weft_tensor *ends(weft_graph *g, weft_tensor *x) {
    const char *how = getenv("RUN_LAST");
    if (!how) return x;
    if (strcmp(how, "gather") == 0) return weft_gather(x, weft_arange(g, WEFT_I32, 2, 0, (double)context - 1), 1);
    weft_tensor *both[2] = {weft_slice(x, 1, 0, 1), weft_slice(x, 1, context - 1, context)};
    return weft_concat(both, 2, 1);
}

static weft_tensor *table_of_letters, *stray; /* of gpt and moe */

/* RUN_BASE: something of the whole batch that nothing reads but a sum by letters, which adds to it. */
static weft_tensor *by_letters(weft_tensor *logits, weft_tensor *ids) {
    weft_tensor *base = weft_detach(weft_square(weft_mean(logits, .axes = weft_axes(0, 1))));
    return weft_mean(weft_square(weft_scatter_add(base, ids, weft_mean(logits, .axes = weft_axes(2)), 0)));
}

static weft_tensor *gpt(weft_graph *g, weft_tensor *ids, weft_dtype dtype, bool mixed, weft_tensor **extra) {
    weft_tensor *table = weft_parameter(g, "tokens.weight", weft_shape(LETTERS, width), .dtype = dtype, .init = weft_init_normal(0, 0.1));
    weft_tensor *places = weft_parameter(g, "places.weight", weft_shape(context, width), .dtype = dtype, .init = weft_init_normal(0, 0.1));
    weft_tensor *x = weft_embedding(ids, "embedding", .weight = table);
    table_of_letters = table;
    bool         turned = getenv("RUN_ROTARY") != NULL;
    if (!turned) x = weft_add(x, places);
    if (getenv("RUN_MIX")) x = weft_add(x, weft_softmax(x, 1));
    for (int i = 0; i < 2; i++) {
        weft_scope_push(g, i ? "block1" : "block0");
        x = weft_add(x, weft_self_attention(weft_layer_norm(x, "norm1"), "attention", .heads = 4, .kv_heads = turned ? 2 : 4, .rotary = turned, .causal = true));
        x = weft_add(x, drop(forward(weft_layer_norm(x, "norm2"), mixed, extra)));
        weft_scope_pop(g);
    }
    weft_tensor *logits = weft_linear(ends(g, weft_layer_norm(x, "norm")), "head", .weight = table);
    if (getenv("RUN_BASE")) stray = by_letters(logits, ids);
    return logits;
}

static weft_tensor *loss_of_batch(weft_graph *g, const char *model, weft_dtype dtype) {
    if (strcmp(model, "gpt") == 0) {
        weft_tensor *ids = weft_input(g, "tokens", WEFT_I32, weft_shape(BATCH, context));
        weft_tensor *next = weft_input(g, "targets", WEFT_I32, weft_shape(BATCH, context));
        return weft_cross_entropy(gpt(g, ids, dtype, false, NULL), ends(g, next));
    }
    if (strcmp(model, "moe") == 0) {
        weft_tensor *ids = weft_input(g, "tokens", WEFT_I32, weft_shape(BATCH, context)), *extra = NULL;
        weft_tensor *next = weft_input(g, "targets", WEFT_I32, weft_shape(BATCH, context));
        weft_tensor *loss = weft_cross_entropy(gpt(g, ids, dtype, true, &extra), next);
        return weft_add(loss, extra);
    }
    weft_tensor *image = weft_input(g, "image", dtype, weft_shape(BATCH, 2, 8, 8)), *target = weft_input(g, "label", WEFT_I32, weft_shape(BATCH));
    weft_tensor *logits = strcmp(model, "cnn") == 0 ? cnn(image) : mlp(image);
    return weft_cross_entropy(logits, target, .ignore = true, .ignored = -100, .smoothing = 0.1);
}

static weft_tensor *loss_of(weft_graph *g, const char *model, weft_dtype dtype) {
    weft_tensor *loss = loss_of_batch(g, model, dtype);
    if (stray) loss = weft_add(loss, stray);
    if (!getenv("RUN_PENALTY")) return loss;
    weft_tensor *alone = weft_parameter(g, "alone", weft_shape(width, 2 * width), .dtype = dtype, .init = weft_init_normal(0, 0.1));
    if (table_of_letters) loss = weft_add(loss, weft_mean(weft_square(table_of_letters)));
    return weft_add(loss, weft_mul_scalar(weft_mean(weft_square(alone)), 3));
}

static weft_status open_data(const char *model, weft_dtype dtype, const weft_strategy *strategy, weft_world *world, weft_loader **loader_out) {
    bool letters = strcmp(model, "gpt") == 0 || strcmp(model, "moe") == 0;
    int64_t          rows = getenv("RUN_ROWS") ? atoi(getenv("RUN_ROWS")) : ROWS;
    weft_batch_field fields[2] = {{"image", dtype, weft_shape(rows, 2, 8, 8), dtype == WEFT_F64 ? (void *)wide : slim},
                                  {"label", WEFT_I32, weft_shape(rows), label}};
    weft_batch_field words[2] = {{"tokens", WEFT_I32, weft_shape(rows, context), tokens}, {"targets", WEFT_I32, weft_shape(rows, context), targets}};
    weft_loader_options how = {.batch = BATCH, .seed = 3, .epochs = -1};
    weft_status         status = weft_strategy_share(strategy, world, &how.rank, &how.ranks);
    return status == WEFT_OK ? weft_loader_open_arrays(letters ? words : fields, 2, &how, loader_out) : status;
}

static weft_status train(weft_trainer *trainer, weft_loader *loader, long steps, FILE *out) {
    weft_world *world = weft_trainer_world(trainer);
    const char *dies = getenv("RUN_DIE");
    for (long i = 0; i < steps; i++) {
        weft_batch  batch;
        weft_report report;
        weft_status status = weft_loader_next(loader, &batch);
        if (dies && i == steps / 2 && atoi(dies) == weft_world_rank(world)) raise(SIGKILL);
        if (status == WEFT_OK) status = weft_trainer_step(trainer, &batch, &report);
        if (status != WEFT_OK) return status;
        double numbers[2] = {report.loss, report.gradient_norm};
        if (weft_world_rank(world) == 0 && fwrite(numbers, sizeof *numbers, 2, out) != 2) return WEFT_E_IO;
    }
    return WEFT_OK;
}

static weft_status evaluate(weft_trainer *trainer, weft_loader *loader, weft_tensor *loss, weft_dtype dtype, FILE *out) {
    weft_batch      batch;
    weft_evaluator *evaluator = NULL;
    double          numbers[2] = {0};
    float           narrow = 0;
    weft_status     status = weft_evaluator_create(trainer, &loss, 1, &evaluator);
    if (status == WEFT_OK) status = weft_loader_next(loader, &batch);
    if (status == WEFT_OK) status = weft_evaluator_run(evaluator, &batch);
    if (status == WEFT_OK) status = dtype == WEFT_F64 ? weft_evaluator_fetch(evaluator, 0, numbers, sizeof *numbers) : weft_evaluator_fetch(evaluator, 0, &narrow, sizeof narrow);
    if (dtype == WEFT_F32) numbers[0] = (double)narrow;
    if (status == WEFT_OK && weft_world_rank(weft_trainer_world(trainer)) == 0 && fwrite(numbers, sizeof *numbers, 2, out) != 2) status = WEFT_E_IO;
    weft_evaluator_release(evaluator);
    return status;
}

/* A number of all bits of parameters that are whole here: no rounding hides in it. */
static void say_parameters(const weft_variables *variables, int32_t rank) {
    static unsigned char values[1 << 20];
    unsigned long long   hash = 14695981039346656037ull;
    for (int32_t i = 0; i < weft_variables_count(variables); i++) {
        weft_variable_info info;
        if (weft_variables_info(variables, i, &info) != WEFT_OK || info.kind != WEFT_VARIABLE_PARAMETER || (size_t)info.bytes > sizeof values) continue;
        if (weft_variables_get(variables, info.name, values, (size_t)info.bytes) != WEFT_OK) continue;
        for (int64_t k = 0; k < info.bytes; k++) hash = (hash ^ values[k]) * 1099511628211ull;
    }
    printf("rank %d has %llx\n", rank, hash);
}

static void say_held(weft_trainer *trainer, int32_t rank) {
    const weft_variables *variables = weft_trainer_variables(trainer);
    weft_server_counts    counts = {0};
    long long             parameters = 0, others = 0;
    for (int32_t i = 0; i < weft_variables_count(variables); i++) {
        weft_variable_info info;
        if (weft_variables_info(variables, i, &info) != WEFT_OK) continue;
        *(info.kind == WEFT_VARIABLE_PARAMETER ? &parameters : &others) += (long long)info.bytes;
    }
    if (weft_trainer_server(trainer)) weft_server_count(weft_trainer_server(trainer), &counts);
    printf("rank %d holds %lld %lld %llu\n", rank, parameters, others, (unsigned long long)counts.held_bytes);
}

static weft_solver solver_of(const char *name, double clip) {
    if (strcmp(name, "sgd") == 0) return weft_sgd(0.05, .clip_norm = clip);
    if (strcmp(name, "momentum") == 0) return weft_sgd(0.02, .momentum = 0.9, .clip_norm = clip);
    if (strcmp(name, "nesterov") == 0) return weft_sgd(0.02, .momentum = 0.9, .nesterov = true, .clip_value = 0.05);
    if (strcmp(name, "adagrad") == 0) return weft_adagrad(0.02);
    if (strcmp(name, "rmsprop") == 0) return weft_rmsprop(0.002);
    return weft_adamw(0.001, .clip_norm = clip);
}

static weft_regulariser omega_of(const char *name) {
    return strcmp(name, "l1") == 0 ? weft_elastic_net(1e-4, 1e-3) : strcmp(name, "group") == 0 ? weft_group_lasso(1e-3) : weft_l2(1e-4);
}

static const char *said(const char *variable) { return getenv(variable) ? getenv(variable) : ""; }

static weft_status program_of(const char *strategy, weft_tensor *loss, weft_program *program_out) {
    const char *precision = said("RUN_PRECISION");
    *program_out = (weft_program){.loss = loss, .regulariser = omega_of(said("RUN_OMEGA")), .solver = solver_of(said("RUN_SOLVER"), atof(said("RUN_CLIP"))),
                                  .strategy = {.accumulate = atoi(said("RUN_MICRO")), .zero = atoi(said("RUN_ZERO")), .divide_bytes = atoll(said("RUN_LEAST")),
                                               .bucket_bytes = atoll(said("RUN_BUCKET")), .memory_bytes = atoll(said("RUN_ROOM"))}};
    if (*precision) program_out->strategy.precision = strcmp(precision, "bf16") == 0 ? WEFT_BF16 : WEFT_F16;
    return weft_strategy_parse(strategy, &program_out->strategy);
}

/* What the strategy or the trainer refuses beside tensor > 1, or zero. */
static void spoil(const char *with, weft_program *program) {
    if (strcmp(with, "server") == 0) program->strategy.sync = WEFT_SERVER;
    if (strcmp(with, "replicas") == 0) program->strategy.replicas = 1;
    if (strcmp(with, "compress") == 0) program->strategy.compress.codec = WEFT_COMPRESS_BF16;
    if (strcmp(with, "lbfgs") == 0) program->solver = weft_lbfgs(1.0);
    if (strcmp(with, "never") == 0) program->strategy.divide_bytes = -1;
    if (strcmp(with, "four") == 0) program->strategy.zero = 4;
}

static weft_status ask(const char *with, weft_trainer *trainer, weft_loader *loader) {
    float some[64 * 128];
    if (strcmp(with, "keep") == 0) return weft_trainer_keep(trainer, loader);
    if (strcmp(with, "renew") == 0) return weft_trainer_renew(trainer, weft_trainer_world(trainer), loader);
    if (strcmp(with, "get") == 0) return weft_variables_get(weft_trainer_variables(trainer), "one.weight", some, sizeof some);
    return WEFT_OK;
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    weft_dtype    dtype = strcmp(argv[2], "f64") == 0 ? WEFT_F64 : WEFT_F32;
    const char   *save = getenv("RUN_SAVE"), *load = getenv("RUN_LOAD"), *with = getenv("RUN_WITH"), *text = "";
    weft_world   *world = NULL;
    weft_graph   *graph = NULL;
    weft_loader  *loader = NULL;
    weft_trainer *trainer = NULL;
    weft_status   status;
    FILE         *out = fopen(argv[5], getenv("RUN_APPEND") ? "ab" : "wb");
    weft_plan_totals totals;
    if (getenv("RUN_CONTEXT")) context = atoi(getenv("RUN_CONTEXT"));
    make_data();
    if ((status = out ? weft_world_create(NULL, &world) : WEFT_E_IO) != WEFT_OK) goto done;
    far_world(world);
    if ((status = weft_graph_create(&(weft_graph_options){.seed = 7}, &graph)) != WEFT_OK) goto done;
    weft_program program;
    if ((status = program_of(argv[3], loss_of(graph, argv[1], dtype), &program)) != WEFT_OK) goto done;
    if (with) spoil(with, &program);
    if ((status = open_data(argv[1], dtype, &program.strategy, world, &loader)) != WEFT_OK) goto done;
    if ((status = weft_trainer_create(world, &program, &trainer)) != WEFT_OK) goto done;
    if (with && (status = ask(with, trainer, loader)) != WEFT_OK) goto done;
    if (load && getenv("RUN_APART") && weft_world_rank(world) > 0) load = getenv("RUN_APART");
    if (load && (status = weft_trainer_load(trainer, load, loader)) != WEFT_OK) goto done;
    if (getenv("RUN_READS")) printf("rank %d read %lld\n", weft_world_rank(world), disk_read_bytes);
    if ((status = train(trainer, loader, atol(argv[4]), out)) != WEFT_OK) goto done;
    if (getenv("RUN_ALIKE")) say_parameters(weft_trainer_variables(trainer), weft_world_rank(world));
    if (getenv("RUN_HELD")) say_held(trainer, weft_world_rank(world));
    if (!save && (status = evaluate(trainer, loader, program.loss, dtype, out)) != WEFT_OK) goto done;
    disk_count(weft_world_rank(world));
    if (save && (status = weft_trainer_save(trainer, save, loader)) != WEFT_OK) goto done;
    weft_plan_totals_read(weft_trainer_plan(trainer), &totals);
    if (weft_world_rank(world) != 0) goto done;
    printf("variables %lld collectives %d sent %lld values %lld peak %lld\n", (long long)totals.variable_bytes, totals.collectives, (long long)totals.sent_bytes,
           (long long)(totals.arena_bytes + totals.exported_bytes), (long long)totals.peak_bytes);
    if (getenv("RUN_DESCRIBE")) status = weft_plan_describe(weft_trainer_plan(trainer), &text);
    fputs(text, stdout);
done:
    if (status != WEFT_OK) fprintf(stderr, "tensor: %s: %s\n", weft_status_name(status), weft_error_message());
    if (out) fclose(out);
    weft_trainer_release(trainer);
    weft_loader_release(loader);
    weft_graph_release(graph);
    weft_world_release(world);
    return status == WEFT_OK ? 0 : 1;
}

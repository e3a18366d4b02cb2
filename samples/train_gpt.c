/* Trains a GPT-2 (Radford et al. 2019) of any size, on a file of 16-bit token ids or on the bytes of any text. Alone, or on several
 * ranks: weftrun -n 2 train_gpt --model tiny --text book.txt. On a GPU: WEFT_DEVICE=cuda train_gpt --model gpt2 --data tokens.bin --precision bf16 */
#include <math.h>
#include <signal.h>
#include <stdio.h>

#include "cli.h"
#include "sampling.h"
#include "weft.h"

static const struct { const char *name; int64_t layers, heads, width; } models[] = {
    {"tiny", 2, 2, 64}, {"gpt2", 12, 12, 768}, {"medium", 24, 16, 1024}, {"large", 36, 20, 1280}, {"xl", 48, 25, 1600}};

static const char *model = "gpt2", *data, *text, *log_path, *plot_path, *draw_path, *checkpoint_path;
static int64_t     layers, heads, width, context = 1024, vocabulary = 50304, batch_size = 8, epochs, max_steps, warmup = 100,
               seed = 1, sample, draw_boxes, checkpoint_every, log_every;
static double      rate = 6e-4, decay = 0.1, clip = -1, temperature = 0.8, peak;
static weft_strategy strategy;
static bool        resume, quiet, describe, recompute, profile, stop_on_nan = true, bf16_parameters;

static weft_init small(double scale) { return weft_init_normal(0, 0.02 * scale); }

static weft_tensor *block(weft_tensor *x, int64_t i) {
    weft_graph *g = weft_tensor_graph(x);
    double      last = 1 / sqrt(2.0 * (double)layers); /* what is added to the residual stream starts smaller, by its depth */
    char        name[32];
    snprintf(name, sizeof name, "block%lld", (long long)i);
    weft_scope_push(g, name);
    if (recompute) weft_recompute_begin(g);
    x = weft_add(x, weft_self_attention(weft_layer_norm(x, "norm1"), "attention", .heads = (int32_t)heads, .causal = true, .init = small(1),
                                        .out_init = small(last)));
    weft_tensor *h = weft_gelu_tanh(weft_linear(weft_layer_norm(x, "norm2"), "up", .out = 4 * width, .weight_init = small(1)));
    x = weft_add(x, weft_linear(h, "down", .out = width, .weight_init = small(last)));
    if (recompute) weft_recompute_end(g);
    weft_scope_pop(g);
    return x;
}

/* tokens [B, T] -> logits [B, T, V]; the table of tokens is the head's weight, too */
static weft_tensor *gpt(weft_tensor *tokens) {
    weft_graph  *g = weft_tensor_graph(tokens);
    weft_tensor *table = weft_parameter(g, "tokens.weight", weft_shape(vocabulary, width), .init = small(1));
    weft_tensor *places = weft_parameter(g, "places.weight", weft_shape(context, width), .init = small(1));
    weft_tensor *x = weft_add(weft_embedding(tokens, "embedding", .weight = table), places);
    for (int64_t i = 0; i < layers; i++) x = block(x, i);
    return weft_linear(weft_layer_norm(x, "norm"), "head", .weight = table);
}

static double parameters_of(weft_variables *variables) {
    double n = 0;
    for (int32_t i = 0; i < weft_variables_count(variables); i++) {
        weft_variable_info info;
        if (weft_variables_info(variables, i, &info) == WEFT_OK && info.kind == WEFT_VARIABLE_PARAMETER) n += (double)weft_shape_elements(info.shape);
    }
    return n;
}

static void write_byte(const void *none, int32_t token) { (void)none, putchar(token); }
static void write_id(const void *none, int32_t token) { (void)none, printf("%d ", (int)token); }

static weft_status train(weft_world *world, weft_graph *graph, weft_loader *loader) {
    weft_tensor *tokens = weft_input(graph, "tokens", WEFT_I32, weft_shape(batch_size, context));
    weft_tensor *targets = weft_input(graph, "targets", WEFT_I32, weft_shape(batch_size, context));
    weft_tensor *logits = gpt(tokens);
    int64_t      steps = max_steps > 0 ? max_steps : epochs * weft_loader_batches(loader);
    weft_program program = {.loss = weft_cross_entropy(logits, targets),
                            .solver = weft_adamw(rate, .beta2 = 0.95, .weight_decay = decay, .clip_norm = clip, .stochastic_rounding = bf16_parameters,
                                                 .schedule = {.kind = WEFT_COSINE, .warmup = warmup, .steps = steps > warmup ? steps - warmup : 1, .floor = 0.1}),
                            .strategy = strategy,
                            .ignore_nan = !stop_on_nan, .profile = profile};
    weft_trainer   *trainer = NULL;
    weft_fit_result result;
    const char     *words = NULL;
    bool            first = weft_world_rank(world) == 0;
    weft_status     status = weft_trainer_create(world, &program, &trainer);
    if (status == WEFT_OK && draw_path)
        status = weft_plan_draw(weft_trainer_plan(trainer), draw_path, &(weft_draw_options){.title = weft_strategy_text(weft_trainer_strategy(trainer)).text, .most_boxes = (int32_t)draw_boxes});
    if (status == WEFT_OK && describe && first && (status = weft_trainer_describe(trainer, &words)) == WEFT_OK &&
        (printf("%s\n", words), status = weft_plan_describe(weft_trainer_plan(trainer), &words)) == WEFT_OK) puts(words);
    if (status == WEFT_OK)
        status = weft_fit(trainer, loader,
                          &(weft_fit_options){.log_path = log_path, .plot_path = plot_path, .checkpoint_path = checkpoint_path,
                                              .checkpoint_every = checkpoint_every, .resume = resume, .max_steps = max_steps, .log_every = log_every,
                                              .units_per_row = context, .unit = "tokens", .progress = quiet ? NULL : stdout,
                                              .epochs = max_steps > 0 ? 1 + max_steps / weft_loader_batches(loader) : epochs},
                          &result);
    if (status == WEFT_OK && first && (!quiet || profile)) {
        double n = parameters_of(weft_trainer_variables(trainer));
        double flops = result.units_per_second * (6 * n + 6.0 * (double)(layers * width * context)); /* Chowdhery et al. 2022, causal */
        printf("%.1f M parameters, %.0f tokens/s, %.2f TFLOP/s", n / 1e6, result.units_per_second, flops / 1e12);
        if (peak > 0) printf(", %.1f %% of %.0f", 100 * flops / 1e12 / peak, peak);
        putchar('\n');
        if (profile && (status = weft_plan_profile(weft_trainer_plan(trainer), &words)) == WEFT_OK) puts(words);
    }
    if (status == WEFT_OK && sample > 0) {
        status = sampling_run(trainer, logits, (sampling){sample, (uint64_t)seed, temperature, data ? write_id : write_byte, NULL});
        if (first) putchar('\n');
    }
    weft_trainer_release(trainer);
    return status;
}

static bool choose_model(void) {
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        if (strcmp(models[i].name, model) != 0) continue;
        if (layers == 0) layers = models[i].layers;
        if (heads == 0) heads = models[i].heads;
        if (width == 0) width = models[i].width;
        return true;
    }
    fprintf(stderr, "train_gpt: there is no model '%s'; there are:", model);
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) fprintf(stderr, " %s", models[i].name);
    fputc('\n', stderr);
    return false;
}

int main(int argc, char **argv) {
    const cli_option options[] = {
        {"model", CLI_TEXT, &model, "tiny, gpt2 (124 M), medium, large or xl (1.5 G)"},
        {"layers", CLI_INTEGER, &layers, "blocks; 0: the model's"},
        {"heads", CLI_INTEGER, &heads, "attention heads; 0: the model's"},
        {"width", CLI_INTEGER, &width, "size of a token's vector; 0: the model's"},
        {"data", CLI_TEXT, &data, "file of little-endian 16-bit token ids"},
        {"text", CLI_TEXT, &text, "or any file, a byte a token"},
        {"vocabulary", CLI_INTEGER, &vocabulary, "ids, padded; of --text 256"},
        {"context", CLI_INTEGER, &context, "tokens that the model sees"},
        {"batch", CLI_INTEGER, &batch_size, "sequences of a step, over all ranks"},
        CLI_SPLIT(&strategy),
        {"recompute", CLI_FLAG, &recompute, "keep less, compute blocks again in the backward pass"},
        {"bf16-parameters", CLI_FLAG, &bf16_parameters, "blocks keep parameters in bf16 alone, rounded at random, instead of f32"},
        {"epochs", CLI_INTEGER, &epochs, "passes over the data; 0: 1"},
        {"max-steps", CLI_INTEGER, &max_steps, "end after so many steps, however many epochs; 0: after the epochs"},
        {"rate", CLI_REAL, &rate, "highest learning rate of AdamW"},
        {"warmup", CLI_INTEGER, &warmup, "steps until it is reached"},
        {"decay", CLI_REAL, &decay, "weight decay"},
        {"clip", CLI_REAL, &clip, "largest norm of the gradient; 0: any; less: 1, or any by a server, which sees no norm"},
        {"seed", CLI_INTEGER, &seed, "of parameters, shuffling and the sample"},
        {"sample", CLI_INTEGER, &sample, "tokens to write at the end"},
        {"temperature", CLI_REAL, &temperature, "of the sample: lower is safer"},
        {"peak", CLI_REAL, &peak, "the device's TFLOP/s, to print the share that was reached"},
        {"log", CLI_TEXT, &log_path, "metrics as JSON lines"},
        {"log-every", CLI_INTEGER, &log_every, "steps between lines; 0: about 200 in all"},
        {"plot", CLI_TEXT, &plot_path, "SVG of the loss"},
        {"checkpoint", CLI_TEXT, &checkpoint_path, "safetensors file"},
        {"checkpoint-every", CLI_INTEGER, &checkpoint_every, "write it every so many steps, too"},
        {"resume", CLI_FLAG, &resume, "go on from the checkpoint where there is one"},
        {"stop-on-nan", CLI_FLAG, &stop_on_nan, "end where the loss is not finite, instead of skipping that step"},
        {"draw", CLI_TEXT, &draw_path, "SVG of the plan on all ranks"},
        {"draw-boxes", CLI_INTEGER, &draw_boxes, "of a rank in it, about; 0: 40"},
        {"describe", CLI_FLAG, &describe, "print the plan: operations, bytes and FLOPs"},
        {"profile", CLI_FLAG, &profile, "measure every operation"},
        {"quiet", CLI_FLAG, &quiet, "no progress"},
    };
    int end = cli_parse(argc, argv, "Trains a GPT-2 of any size.", options, sizeof options / sizeof *options);
    if (end >= 0) return end;
    if (!choose_model()) return 2;
    if (!data == !text) {
        fprintf(stderr, "train_gpt: give either --data FILE (16-bit ids) or --text FILE (bytes); --help lists the options\n");
        return 2;
    }
    if (text) vocabulary = 256;
    if (epochs == 0) epochs = 1;
    if (clip < 0) clip = strategy.sync == WEFT_SERVER ? 0 : 1;
    weft_world  *world = NULL;
    weft_graph  *graph = NULL;
    weft_loader *loader = NULL;
    weft_status  status;
    if ((status = weft_world_create(NULL, &world)) != WEFT_OK) goto done;
    if ((status = weft_world_dump_on(world, SIGUSR1)) != WEFT_OK) goto done; /* kill -USR1 says what the ranks wait for */
    if ((status = weft_graph_create(&(weft_graph_options){.seed = (uint64_t)seed, .bf16_parameters = bf16_parameters}, &graph)) != WEFT_OK) goto done;
    weft_text_source    source = {.path = data ? data : text, .id_bytes = data ? 2 : 1, .length = context};
    weft_loader_options how = {.batch = batch_size, .seed = (uint64_t)seed, .epochs = max_steps > 0 ? -1 : epochs};
    if ((status = weft_loader_open_text(&source, &how, &loader)) != WEFT_OK) goto done;
    status = train(world, graph, loader);
done:
    if (status != WEFT_OK) fprintf(stderr, "train_gpt: %s\n", weft_error_message());
    weft_loader_release(loader);
    weft_graph_release(graph);
    weft_world_release(world);
    return status == WEFT_OK ? 0 : 1;
}

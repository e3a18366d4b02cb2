/* Trains a character-level GPT on any text file and writes some text of its own at the end. Run it alone, or on two ranks:
 * weftrun -n 2 train_text --text shakespeare.txt */
#include <math.h>
#include <signal.h>
#include <stdio.h>

#include "cli.h"
#include "sampling.h"
#include "weft.h"

static const char *text_path, *log_path, *plot_path, *checkpoint_path;
static int64_t     layers = 6, heads = 6, width = 384, context = 256, batch_size = 12, epochs = 1, max_steps, decay_steps, seed = 1, sample = 400,
               checkpoint_every;
static double      rate = 1e-3, dropout = 0, clip = -1, temperature = 0.8;
static weft_strategy strategy;
static bool        resume, quiet, describe, recompute, stop_on_nan = true;

static weft_tensor *block(weft_tensor *x, int64_t i) {
    weft_graph *g = weft_tensor_graph(x);
    char        name[32];
    snprintf(name, sizeof name, "block%lld", (long long)i);
    weft_scope_push(g, name);
    if (recompute) weft_recompute_begin(g);
    weft_tensor *h = weft_self_attention(weft_layer_norm(x, "norm1"), "attention", .heads = (int32_t)heads, .causal = true,
                                         .init = weft_init_normal(0, 0.02), .out_init = weft_init_normal(0, 0.02 / sqrt(2.0 * (double)layers)));
    x = weft_add(x, weft_dropout(h, dropout));
    h = weft_gelu_tanh(weft_linear(weft_layer_norm(x, "norm2"), "up", .out = 4 * width, .weight_init = weft_init_normal(0, 0.02)));
    h = weft_linear(h, "down", .out = width, .weight_init = weft_init_normal(0, 0.02 / sqrt(2.0 * (double)layers)));
    x = weft_add(x, weft_dropout(h, dropout));
    if (recompute) weft_recompute_end(g);
    weft_scope_pop(g);
    return x;
}

/* tokens [B, T] -> logits [B, T, V] */
static weft_tensor *gpt(weft_tensor *tokens, int32_t vocabulary) {
    weft_graph  *g = weft_tensor_graph(tokens);
    weft_tensor *places = weft_arange(g, WEFT_I32, context, 0, 1);
    weft_tensor *x = weft_add(weft_embedding(tokens, "tokens_in", .count = vocabulary, .size = width, .init = weft_init_normal(0, 0.02)),
                              weft_embedding(places, "places", .count = context, .size = width, .init = weft_init_normal(0, 0.02)));
    x = weft_dropout(x, dropout);
    for (int64_t i = 0; i < layers; i++) x = block(x, i);
    return weft_linear(weft_layer_norm(x, "norm"), "head", .out = vocabulary, .no_bias = true, .weight_init = weft_init_normal(0, 0.02));
}

static void write_character(const void *alphabet, int32_t token) { putchar(((const weft_alphabet *)alphabet)->byte_of[token]); }

static weft_status train(weft_world *world, weft_graph *graph, weft_loader *loader, const weft_alphabet *alphabet) {
    weft_tensor *tokens = weft_input(graph, "tokens", WEFT_I32, weft_shape(batch_size, context));
    weft_tensor *targets = weft_input(graph, "targets", WEFT_I32, weft_shape(batch_size, context));
    weft_tensor *logits = gpt(tokens, alphabet->count);
    int64_t      steps = decay_steps > 0 ? decay_steps : max_steps > 0 ? max_steps : epochs * weft_loader_batches(loader);
    weft_program program = {.loss = weft_cross_entropy(logits, targets),
                            .solver = weft_adamw(rate, .beta2 = 0.99, .weight_decay = 0.1, .clip_norm = clip,
                                                 .schedule = {.kind = WEFT_COSINE, .warmup = steps / 20, .steps = steps - steps / 20, .floor = 0.1}),
                            .strategy = strategy,
                            .ignore_nan = !stop_on_nan};
    weft_trainer *trainer = NULL;
    const char   *text = NULL;
    weft_status   status = weft_trainer_create(world, &program, &trainer);
    if (status == WEFT_OK && describe && weft_world_rank(world) == 0 && (status = weft_trainer_describe(trainer, &text)) == WEFT_OK &&
        (printf("%s\n", text), status = weft_plan_describe(weft_trainer_plan(trainer), &text)) == WEFT_OK)
        puts(text);
    if (status == WEFT_OK)
        status = weft_fit(trainer, loader,
                          &(weft_fit_options){.log_path = log_path, .plot_path = plot_path, .checkpoint_path = checkpoint_path,
                                              .checkpoint_every = checkpoint_every, .resume = resume, .epochs = epochs, .max_steps = max_steps,
                                              .units_per_row = context, .unit = "tokens", .progress = quiet ? NULL : stdout},
                          NULL);
    if (status == WEFT_OK && sample > 0) {
        status = sampling_run(trainer, logits, (sampling){sample, (uint64_t)seed, temperature, write_character, alphabet});
        if (weft_world_rank(world) == 0) putchar('\n');
    }
    weft_trainer_release(trainer);
    return status;
}

int main(int argc, char **argv) {
    const cli_option options[] = {
        {"text", CLI_TEXT, &text_path, "the file to learn from; needed"},
        {"layers", CLI_INTEGER, &layers, "blocks"},
        {"heads", CLI_INTEGER, &heads, "attention heads; divide the width"},
        {"width", CLI_INTEGER, &width, "size of a token's vector"},
        {"context", CLI_INTEGER, &context, "characters that the model sees"},
        {"batch", CLI_INTEGER, &batch_size, "sequences of a batch, over all ranks"},
        {"recompute", CLI_FLAG, &recompute, "keep less, compute blocks again in the backward pass"},
        {"epochs", CLI_INTEGER, &epochs, "passes over the text"},
        {"max-steps", CLI_INTEGER, &max_steps, "end after so many steps, however many epochs; 0: after the epochs"},
        {"rate", CLI_REAL, &rate, "learning rate of AdamW"},
        {"decay-steps", CLI_INTEGER, &decay_steps, "steps until the rate is at its lowest; 0: all"},
        {"dropout", CLI_REAL, &dropout, "share of activations that are dropped"},
        {"clip", CLI_REAL, &clip, "largest norm of the gradient; 0: any; less: 1, or any by a server, which sees no norm"},
        CLI_SPLIT(&strategy),
        {"seed", CLI_INTEGER, &seed, "of parameters, shuffling and the text"},
        {"sample", CLI_INTEGER, &sample, "characters to write at the end"},
        {"temperature", CLI_REAL, &temperature, "of the text: lower is safer"},
        {"log", CLI_TEXT, &log_path, "metrics as JSON lines"},
        {"plot", CLI_TEXT, &plot_path, "SVG of the loss"},
        {"checkpoint", CLI_TEXT, &checkpoint_path, "safetensors file, written after each epoch"},
        {"checkpoint-every", CLI_INTEGER, &checkpoint_every, "also every so many steps"},
        {"resume", CLI_FLAG, &resume, "go on from the checkpoint where there is one"},
        {"stop-on-nan", CLI_FLAG, &stop_on_nan, "end where the loss is not finite, instead of skipping that step"},
        {"describe", CLI_FLAG, &describe, "print the plan: operations, bytes and FLOPs"},
        {"quiet", CLI_FLAG, &quiet, "no progress"},
    };
    int end = cli_parse(argc, argv, "Trains a character-level GPT on a text file, and lets it write.", options, sizeof options / sizeof *options);
    if (end >= 0) return end;
    if (!text_path) {
        fprintf(stderr, "train_text: --text FILE is needed; --help lists the options\n");
        return 2;
    }
    if (clip < 0) clip = strategy.sync == WEFT_SERVER ? 0 : 1;
    weft_world   *world = NULL;
    weft_graph   *graph = NULL;
    weft_loader  *loader = NULL;
    weft_tokens  *tokens = NULL;
    weft_alphabet alphabet;
    weft_status   status;
    if ((status = weft_world_create(NULL, &world)) != WEFT_OK) goto done;
    if ((status = weft_world_dump_on(world, SIGUSR1)) != WEFT_OK) goto done; /* kill -USR1 says what the ranks wait for */
    if ((status = weft_graph_create(&(weft_graph_options){.seed = (uint64_t)seed}, &graph)) != WEFT_OK) goto done;
    if ((status = weft_tokens_open(text_path, 1, &tokens)) != WEFT_OK) goto done;
    if ((status = weft_tokens_alphabet(tokens, &alphabet)) != WEFT_OK) goto done;
    weft_text_source    source = {.path = text_path, .length = context, .alphabet = &alphabet};
    weft_loader_options how = {.batch = batch_size, .seed = (uint64_t)seed, .epochs = max_steps > 0 ? -1 : epochs};
    if ((status = weft_loader_open_text(&source, &how, &loader)) != WEFT_OK) goto done;
    if (max_steps > 0) epochs = (max_steps + weft_loader_batches(loader) - 1) / weft_loader_batches(loader);
    status = train(world, graph, loader, &alphabet);
done:
    if (status != WEFT_OK) fprintf(stderr, "train_text: %s\n", weft_error_message());
    weft_loader_release(loader);
    weft_tokens_release(tokens);
    weft_graph_release(graph);
    weft_world_release(world);
    return status == WEFT_OK ? 0 : 1;
}

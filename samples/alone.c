/* A program, and what it takes to spread it: alone.c and many.c differ by one line, the strategy's.
 *
 *     alone book.txt
 *     weftrun -n 4 many book.txt
 *
 * Both train the same character model (a transformer of two blocks) from the same batches to the same losses. No line says who has which rows, which
 * part of a matrix, or who sends what to whom: that is planned from the strategy. */
#include <stdio.h>

#include "weft.h"

enum { BATCH = 16, CONTEXT = 32, WIDTH = 64, HEADS = 4, LETTERS = 256 };

static weft_tensor *block(weft_tensor *x, const char *name) {
    weft_scope_push(weft_tensor_graph(x), name);
    x = weft_add(x, weft_self_attention(weft_layer_norm(x, "norm1"), "attention", .heads = HEADS, .causal = true));
    x = weft_add(x, weft_linear(weft_gelu_tanh(weft_linear(weft_layer_norm(x, "norm2"), "up", .out = 4 * WIDTH)), "down", .out = WIDTH));
    weft_scope_pop(weft_tensor_graph(x));
    return x;
}

static weft_tensor *model(weft_graph *graph) {
    weft_tensor *tokens = weft_input(graph, "tokens", WEFT_I32, weft_shape(BATCH, CONTEXT));
    weft_tensor *targets = weft_input(graph, "targets", WEFT_I32, weft_shape(BATCH, CONTEXT));
    weft_tensor *x = weft_add(weft_embedding(tokens, "letters", .count = LETTERS, .size = WIDTH),
                              weft_embedding(weft_arange(graph, WEFT_I32, CONTEXT, 0, 1), "places", .count = CONTEXT, .size = WIDTH));
    x = block(block(x, "block1"), "block2");
    return weft_cross_entropy(weft_linear(weft_layer_norm(x, "norm"), "head", .out = LETTERS), targets);
}

int main(int argc, char **argv) {
    weft_world      *world = NULL;
    weft_graph      *graph = NULL;
    weft_loader     *loader = NULL;
    weft_trainer    *trainer = NULL;
    weft_fit_result  result = {0};
    weft_text_source text = {.path = argc > 1 ? argv[1] : "/usr/share/common-licenses/GPL-3", .length = CONTEXT};
    weft_status      status;
    if ((status = weft_world_create(NULL, &world)) != WEFT_OK) goto done;
    if ((status = weft_graph_create(NULL, &graph)) != WEFT_OK) goto done;
    if ((status = weft_loader_open_text(&text, &(weft_loader_options){.batch = BATCH, .epochs = 3}, &loader)) != WEFT_OK) goto done;

    weft_program program = {
        .loss = model(graph),
        .solver = weft_adamw(3e-3, .clip_norm = 1),
        .strategy = {0},
    };
    if ((status = weft_trainer_create(world, &program, &trainer)) != WEFT_OK) goto done;
    if ((status = weft_fit(trainer, loader, NULL, &result)) != WEFT_OK) goto done;
    if (weft_world_rank(world) == 0) printf("loss %.5f after %lld steps\n", result.train_loss, (long long)result.steps);
done:
    if (status != WEFT_OK) fprintf(stderr, "%s\n", weft_error_message());
    weft_trainer_release(trainer);
    weft_loader_release(loader);
    weft_graph_release(graph);
    weft_world_release(world);
    return status == WEFT_OK ? 0 : 1;
}

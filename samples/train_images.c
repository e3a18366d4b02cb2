/* Trains an image classifier: a multilayer perceptron, a small convolutional network or a ResNet-20, on Fashion-MNIST or
 * any pair of IDX files. Run it alone, or on two ranks: weftrun -n 2 train_images --model cnn */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "weft.h"

static const char *model = "cnn", *data = "/usr/share/datasets/fashion-mnist", *images, *labels, *test_images, *test_labels;
static const char *log_path, *plot_path, *draw_path, *checkpoint_path;
static int64_t     epochs = 3, batch_size = 64, seed = 1, classes = 10, max_steps, checkpoint_every;
static double      rate = 1e-3, decay = 0, clip = 0;
static weft_strategy strategy;
static bool        resume, quiet, describe, stop_on_nan = true;

static weft_tensor *mlp(weft_tensor *x) {
    x = weft_relu(weft_linear(weft_flatten(x), "hidden1", .out = 512));
    return weft_linear(weft_relu(weft_linear(x, "hidden2", .out = 256)), "head", .out = classes);
}

static weft_tensor *cnn(weft_tensor *x) {
    x = weft_max_pool2d(weft_relu(weft_conv2d(x, "conv1", .filters = 32, .kernel = 3, .same = true)), .window = 2);
    x = weft_max_pool2d(weft_relu(weft_conv2d(x, "conv2", .filters = 64, .kernel = 3, .same = true)), .window = 2);
    return weft_linear(weft_relu(weft_linear(weft_flatten(x), "hidden", .out = 128)), "head", .out = classes);
}

/* Two convolutions around which the input goes (He et al. 2016). */
static weft_tensor *block(weft_tensor *x, const char *name, int32_t filters, int32_t stride) {
    weft_scope_push(weft_tensor_graph(x), name);
    weft_tensor *h = weft_conv2d(x, "conv1", .filters = filters, .kernel = 3, .pad = 1, .stride = stride, .no_bias = true);
    h = weft_relu(weft_batch_norm(h, "norm1"));
    h = weft_batch_norm(weft_conv2d(h, "conv2", .filters = filters, .kernel = 3, .pad = 1, .no_bias = true), "norm2");
    if (stride != 1) x = weft_batch_norm(weft_conv2d(x, "skip", .filters = filters, .kernel = 1, .stride = stride, .no_bias = true), "skip_norm");
    weft_scope_pop(weft_tensor_graph(x));
    return weft_relu(weft_add(h, x));
}

static weft_tensor *resnet20(weft_tensor *x) {
    x = weft_relu(weft_batch_norm(weft_conv2d(x, "stem", .filters = 16, .kernel = 3, .pad = 1, .no_bias = true), "stem_norm"));
    for (int i = 0; i < 9; i++) {
        char name[16];
        snprintf(name, sizeof name, "block%d", i + 1);
        x = block(x, name, 16 << i / 3, i == 3 || i == 6 ? 2 : 1);
    }
    return weft_linear(weft_global_avg_pool2d(x), "head", .out = classes);
}

static weft_status train(weft_world *world, weft_graph *graph, weft_loader *loader, weft_loader *test) {
    weft_batch form; /* what the loader will bring: shapes of the global batch */
    weft_loader_describe(loader, &form);
    const weft_batch_field *field = weft_batch_find(&form, "image");
    weft_shape              shape = field->shape;
    shape.dim[0] = form.global_rows;
    weft_tensor *image = weft_input(graph, "image", WEFT_F32, shape);
    weft_tensor *label = weft_input(graph, "label", WEFT_I32, weft_shape(form.global_rows));
    weft_tensor *logits = strcmp(model, "mlp") == 0 ? mlp(image) : strcmp(model, "cnn") == 0 ? cnn(image) : resnet20(image);
    weft_tensor *loss = weft_cross_entropy(logits, label);
    weft_tensor *right = weft_eq(weft_argmax(logits, 1), weft_cast(label, WEFT_I64));
    weft_tensor *correct = weft_sum(weft_cast(right, WEFT_I64));

    weft_program  program = {.loss = loss,
                             .regulariser = weft_l2(decay),
                             .solver = weft_adam(rate, .clip_norm = clip,
                                                 .schedule = {.kind = WEFT_COSINE, .steps = epochs * weft_loader_batches(loader), .floor = 0.02}),
                             .strategy = strategy,
                             .ignore_nan = !stop_on_nan};
    weft_trainer *trainer = NULL;
    weft_status   status = weft_trainer_create(world, &program, &trainer);
    const char   *text = NULL;
    if (status == WEFT_OK && draw_path)
        status = weft_plan_draw(weft_trainer_plan(trainer), draw_path, &(weft_draw_options){.title = weft_strategy_text(&strategy).text});
    if (status == WEFT_OK && describe && weft_world_rank(world) == 0 && (status = weft_plan_describe(weft_trainer_plan(trainer), &text)) == WEFT_OK)
        puts(text);
    if (status == WEFT_OK)
        status = weft_fit(trainer, loader,
                          &(weft_fit_options){.test = test, .test_loss = loss, .test_correct = correct, .log_path = log_path,
                                              .plot_path = plot_path, .checkpoint_path = checkpoint_path, .checkpoint_every = checkpoint_every,
                                              .resume = resume, .epochs = epochs, .max_steps = max_steps, .progress = quiet ? NULL : stdout},
                          NULL);
    weft_trainer_release(trainer);
    return status;
}

static const char *either(const char *path, const char *name, char *buffer, size_t size) {
    if (path) return path;
    snprintf(buffer, size, "%s/%s", data, name);
    return buffer;
}

int main(int argc, char **argv) {
    const cli_option options[] = {
        {"model", CLI_TEXT, &model, "mlp, cnn or resnet20"},
        {"epochs", CLI_INTEGER, &epochs, "passes over the training images"},
        {"batch", CLI_INTEGER, &batch_size, "images of a batch, over all ranks"},
        {"rate", CLI_REAL, &rate, "learning rate of Adam"},
        {"l2", CLI_REAL, &decay, "weight of the L2 regulariser"},
        {"clip", CLI_REAL, &clip, "largest norm of the gradient; 0: any"},
        CLI_SPLIT(&strategy),
        {"seed", CLI_INTEGER, &seed, "of parameters and of shuffling"},
        {"data", CLI_TEXT, &data, "folder with Fashion-MNIST's four files"},
        {"images", CLI_TEXT, &images, "IDX file of training images, plain or gzip"},
        {"labels", CLI_TEXT, &labels, "IDX file of their labels"},
        {"test-images", CLI_TEXT, &test_images, "IDX file of test images"},
        {"test-labels", CLI_TEXT, &test_labels, "IDX file of their labels"},
        {"classes", CLI_INTEGER, &classes, "labels are below this"},
        {"log", CLI_TEXT, &log_path, "metrics as JSON lines"},
        {"plot", CLI_TEXT, &plot_path, "SVG of the loss"},
        {"checkpoint", CLI_TEXT, &checkpoint_path, "safetensors file, written after each epoch"},
        {"checkpoint-every", CLI_INTEGER, &checkpoint_every, "also every so many steps"},
        {"resume", CLI_FLAG, &resume, "go on from the checkpoint where there is one"},
        {"max-steps", CLI_INTEGER, &max_steps, "end after so many steps; 0: after the epochs"},
        {"stop-on-nan", CLI_FLAG, &stop_on_nan, "end where the loss is not finite, instead of skipping that step"},
        {"draw", CLI_TEXT, &draw_path, "SVG of the plan on all ranks"},
        {"describe", CLI_FLAG, &describe, "print the plan: operations, bytes and FLOPs"},
        {"quiet", CLI_FLAG, &quiet, "no progress"},
    };
    int end = cli_parse(argc, argv, "Trains an image classifier on Fashion-MNIST, or on any IDX files.", options, sizeof options / sizeof *options);
    if (end >= 0) return end;
    if (strcmp(model, "mlp") && strcmp(model, "cnn") && strcmp(model, "resnet20")) {
        fprintf(stderr, "train_images: --model %s: there are mlp, cnn and resnet20\n", model);
        return 2;
    }
    weft_world  *world = NULL;
    weft_graph  *graph = NULL;
    weft_loader *loader = NULL, *test = NULL;
    weft_status  status;
    char         path[4][1024];
    if ((status = weft_world_create(NULL, &world)) != WEFT_OK) goto done;
    if ((status = weft_world_dump_on(world, SIGUSR1)) != WEFT_OK) goto done; /* kill -USR1 says what the ranks wait for */
    if ((status = weft_graph_create(&(weft_graph_options){.seed = (uint64_t)seed}, &graph)) != WEFT_OK) goto done;
    weft_loader_options how = {.batch = batch_size, .seed = (uint64_t)seed, .epochs = epochs}; /* weft_fit takes this rank's rows */
    weft_image_source   source = {.images = either(images, "train-images-idx3-ubyte.gz", path[0], sizeof path[0]),
                                  .labels = either(labels, "train-labels-idx1-ubyte.gz", path[1], sizeof path[1]),
                                  .mean = 0.2860, .deviation = 0.3530, .classes = (int32_t)classes};
    if ((status = weft_loader_open_images(&source, &how, &loader)) != WEFT_OK) goto done;
    source.images = either(test_images, "t10k-images-idx3-ubyte.gz", path[2], sizeof path[2]);
    source.labels = either(test_labels, "t10k-labels-idx1-ubyte.gz", path[3], sizeof path[3]);
    how.batch = 500;
    how.epochs = 1;
    how.in_order = true;
    if ((status = weft_loader_open_images(&source, &how, &test)) != WEFT_OK) goto done;
    status = train(world, graph, loader, test);
done:
    if (status != WEFT_OK) fprintf(stderr, "train_images: %s\n", weft_error_message());
    if (status == WEFT_E_NOT_FOUND && !test)
        fprintf(stderr, "train_images: --data says where the images are; Debian has them as dataset-fashion-mnist\n");
    weft_loader_release(test);
    weft_loader_release(loader);
    weft_graph_release(graph);
    weft_world_release(world);
    return status == WEFT_OK ? 0 : 1;
}

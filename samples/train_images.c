/* Trains an image classifier: a multilayer perceptron, a small convolutional network, a ResNet-20 or a ResNet-50, on Fashion-MNIST, on
 * any pair of IDX files, or on images made here. Run it alone, or on two ranks: weftrun -n 2 train_images --model cnn. On a GPU:
 * WEFT_DEVICE=cuda train_images --model resnet50 --made 224 --batch 256 --augment --precision bf16 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "random.h"
#include "weft.h"

static const char *model = "cnn", *data = "/usr/share/datasets/fashion-mnist", *images, *labels, *test_images, *test_labels;
static const char *log_path, *plot_path, *draw_path, *checkpoint_path;
static int64_t     epochs = 3, batch_size = 64, seed = 1, classes = 10, max_steps, checkpoint_every, log_every, made, made_rows = 1024;
static double      rate, decay = 0, clip = 0, peak;
static weft_strategy strategy;
static bool        augment, resume, quiet, describe, profile, stop_on_nan = true;

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

/* A narrow convolution between two that change the number of channels, around which the input goes. */
static weft_tensor *bottleneck(weft_tensor *x, const char *name, int32_t filters, int32_t stride) {
    weft_scope_push(weft_tensor_graph(x), name);
    weft_tensor *h = weft_relu(weft_batch_norm(weft_conv2d(x, "conv1", .filters = filters, .kernel = 1, .no_bias = true), "norm1"));
    h = weft_conv2d(h, "conv2", .filters = filters, .kernel = 3, .pad = 1, .stride = stride, .no_bias = true);
    h = weft_relu(weft_batch_norm(h, "norm2"));
    h = weft_batch_norm(weft_conv2d(h, "conv3", .filters = 4 * filters, .kernel = 1, .no_bias = true), "norm3");
    if (weft_tensor_shape(x).dim[1] != 4 * filters)
        x = weft_batch_norm(weft_conv2d(x, "skip", .filters = 4 * filters, .kernel = 1, .stride = stride, .no_bias = true), "skip_norm");
    weft_scope_pop(weft_tensor_graph(x));
    return weft_relu(weft_add(h, x));
}

/* He et al. 2016; images below 64 pixels keep their size in the stem. */
static weft_tensor *resnet50(weft_tensor *x) {
    static const int blocks[] = {3, 4, 6, 3};
    bool             large = weft_tensor_shape(x).dim[2] >= 64;
    x = large ? weft_conv2d(x, "stem", .filters = 64, .kernel = 7, .pad = 3, .stride = 2, .no_bias = true)
              : weft_conv2d(x, "stem", .filters = 64, .kernel = 3, .pad = 1, .no_bias = true);
    x = weft_relu(weft_batch_norm(x, "stem_norm"));
    if (large) x = weft_max_pool2d(x, .window = 3, .stride = 2, .pad = 1);
    for (int stage = 0; stage < 4; stage++)
        for (int i = 0; i < blocks[stage]; i++) {
            char name[32];
            snprintf(name, sizeof name, "stage%d.block%d", stage + 1, i + 1);
            x = bottleneck(x, name, 64 << stage, stage > 0 && i == 0 ? 2 : 1);
        }
    return weft_linear(weft_global_avg_pool2d(x), "head", .out = classes);
}

/* ---- augmentation, on the device ---- */

/* [B, length, length]: row i weighs the two pixels between which place i of each image's crop lies; mirrored where `mirror` is below a half. */
static weft_tensor *crop_weights(weft_tensor *side, weft_tensor *begin, weft_tensor *mirror, int64_t length) {
    weft_graph  *g = weft_tensor_graph(side);
    weft_tensor *place = weft_reshape(weft_arange(g, WEFT_F32, length, 0.5, 1), weft_shape(1, length, 1));
    weft_tensor *pixel = weft_reshape(weft_arange(g, WEFT_F32, length, 0, 1), weft_shape(1, 1, length));
    if (mirror) place = weft_where(weft_lt_scalar(mirror, 0.5), weft_add_scalar(weft_neg(place), (double)length), place);
    weft_tensor *at = weft_add_scalar(weft_add(weft_mul(place, side), weft_mul_scalar(begin, (double)length)), -0.5);
    at = weft_clamp(at, 0, (double)(length - 1));
    return weft_relu(weft_add_scalar(weft_neg(weft_abs(weft_sub(pixel, at))), 1));
}

/* A random crop of a quarter of the image or more, scaled to its size, and mirrored half of the time: a product for each axis. */
static weft_tensor *augmented(weft_tensor *x) {
    weft_shape   shape = weft_tensor_shape(x);
    weft_tensor *u = weft_random_uniform(weft_tensor_graph(x), WEFT_F32, weft_shape(shape.dim[0], 4, 1)), *draw[4];
    for (int i = 0; i < 4; i++) draw[i] = weft_slice(u, 1, i, i + 1); /* [B, 1, 1] */
    weft_tensor *side = weft_add_scalar(weft_mul_scalar(draw[0], 0.5), 0.5), *room = weft_add_scalar(weft_neg(side), 1);
    weft_tensor *down = crop_weights(side, weft_mul(room, draw[1]), NULL, shape.dim[2]);
    weft_tensor *across = crop_weights(side, weft_mul(room, draw[2]), draw[3], shape.dim[3]);
    return weft_matmul(weft_matmul(weft_unsqueeze(down, 1), x), weft_unsqueeze(across, 1), .transpose_b = true);
}

/* The network's input: numbers around 0, other crops in each epoch while training. */
static weft_tensor *prepared(weft_tensor *image) {
    weft_tensor *x = image;
    if (weft_tensor_dtype(image) == WEFT_U8) x = weft_mul_scalar(weft_add_scalar(weft_cast(image, WEFT_F32), -127.5), 1 / 64.0);
    return augment ? weft_training(augmented(x), x) : x;
}

static weft_tensor *network(weft_tensor *x) {
    return strcmp(model, "mlp") == 0 ? mlp(x) : strcmp(model, "cnn") == 0 ? cnn(x) : strcmp(model, "resnet20") == 0 ? resnet20(x) : resnet50(x);
}

static weft_solver solver_of(int64_t steps) {
    weft_schedule schedule = {.kind = WEFT_COSINE, .steps = steps, .floor = 0.02};
    if (strcmp(model, "resnet50") == 0)
        return weft_sgd(rate > 0 ? rate : 0.1 * (double)batch_size / 256, .momentum = 0.9, .nesterov = true, .clip_norm = clip, .schedule = schedule);
    return weft_adam(rate > 0 ? rate : 1e-3, .clip_norm = clip, .schedule = schedule);
}

/* Images a second, and what they make of the device's arithmetic. */
static void report(const weft_fit_result *result, const weft_plan *plan, int64_t global_rows) {
    weft_plan_totals totals;
    weft_plan_totals_read(plan, &totals);
    double flops = result->units_per_second / (double)global_rows * totals.flops;
    printf("%.0f images/s, %.3f TFLOP/s", result->units_per_second, flops / 1e12);
    if (peak > 0) printf(", %.1f %% of %.0f", 100 * flops / 1e12 / peak, peak);
    putchar('\n');
}

static weft_status train(weft_world *world, weft_graph *graph, weft_loader *loader, weft_loader *test) {
    weft_batch form; /* what the loader will bring: shapes of the global batch */
    weft_loader_describe(loader, &form);
    const weft_batch_field *field = weft_batch_find(&form, "image");
    weft_shape              shape = field->shape;
    shape.dim[0] = form.global_rows;
    weft_tensor *image = weft_input(graph, "image", field->dtype, shape);
    weft_tensor *label = weft_input(graph, "label", WEFT_I32, weft_shape(form.global_rows));
    weft_tensor *logits = network(prepared(image));
    weft_tensor *loss = weft_cross_entropy(logits, label);
    weft_tensor *right = weft_eq(weft_argmax(logits, 1), weft_cast(label, WEFT_I64));
    weft_tensor *correct = weft_sum(weft_cast(right, WEFT_I64));

    weft_program  program = {.loss = loss,
                             .regulariser = weft_l2(decay),
                             .solver = solver_of(epochs * weft_loader_batches(loader)),
                             .strategy = strategy,
                             .ignore_nan = !stop_on_nan,
                             .profile = profile};
    weft_fit_result result;
    weft_trainer *trainer = NULL;
    weft_status   status = weft_trainer_create(world, &program, &trainer);
    const char   *text = NULL;
    if (status == WEFT_OK && draw_path)
        status = weft_plan_draw(weft_trainer_plan(trainer), draw_path, &(weft_draw_options){.title = weft_strategy_text(weft_trainer_strategy(trainer)).text});
    if (status == WEFT_OK && describe && weft_world_rank(world) == 0 && (status = weft_trainer_describe(trainer, &text)) == WEFT_OK &&
        (printf("%s\n", text), status = weft_plan_describe(weft_trainer_plan(trainer), &text)) == WEFT_OK)
        puts(text);
    if (status == WEFT_OK)
        status = weft_fit(trainer, loader,
                          &(weft_fit_options){.test = test, .test_loss = loss, .test_correct = correct, .log_path = log_path,
                                              .plot_path = plot_path, .checkpoint_path = checkpoint_path, .checkpoint_every = checkpoint_every, .log_every = log_every,
                                              .resume = resume, .epochs = epochs, .max_steps = max_steps, .progress = quiet ? NULL : stdout},
                          &result);
    if (status == WEFT_OK && weft_world_rank(world) == 0 && !quiet) report(&result, weft_trainer_plan(trainer), form.global_rows);
    if (status == WEFT_OK && weft_world_rank(world) == 0 && profile && (status = weft_plan_profile(weft_trainer_plan(trainer), &text)) == WEFT_OK) puts(text);
    weft_trainer_release(trainer);
    return status;
}

static const char *either(const char *path, const char *name, char *buffer, size_t size) {
    if (path) return path;
    snprintf(buffer, size, "%s/%s", data, name);
    return buffer;
}

/* Square images of three colours, each class brightest in a place of its own; bytes, as cameras give them. */
static uint8_t *make_images(int32_t *label) {
    int64_t  pixels = made * made;
    uint8_t *image = malloc((size_t)(made_rows * 3 * pixels) + 1), *at = image;
    if (!image) return NULL;
    for (int64_t i = 0; i < made_rows; i++) {
        uint64_t state = random_stream(seed, i, 0);
        label[i] = (int32_t)(i % classes);
        int64_t cell = label[i] % 16, colour = label[i] / 16 % 3;
        for (int64_t c = 0; c < 3; c++)
            for (int64_t p = 0; p < pixels; p++) {
                bool lit = p / made * 4 / made == cell / 4 && p % made * 4 / made == cell % 4 && (c == colour || c == 2);
                *at++ = (uint8_t)((next_random(&state) & 63) + (lit ? 160 : 32));
            }
    }
    return image;
}

static weft_status open_made(uint8_t *image, int32_t *label, const weft_loader_options *how, weft_loader **loader_out) {
    weft_batch_field arrays[] = {{"image", WEFT_U8, weft_shape(made_rows, 3, made, made), image}, {"label", WEFT_I32, weft_shape(made_rows), label}};
    return weft_loader_open_arrays(arrays, 2, how, loader_out);
}

static weft_status open_files(weft_loader_options how, weft_loader **loader_out, weft_loader **test_out) {
    char              path[4][1024];
    weft_image_source source = {.images = either(images, "train-images-idx3-ubyte.gz", path[0], sizeof path[0]),
                                .labels = either(labels, "train-labels-idx1-ubyte.gz", path[1], sizeof path[1]),
                                .mean = 0.2860, .deviation = 0.3530, .classes = (int32_t)classes};
    weft_status       status = weft_loader_open_images(&source, &how, loader_out);
    if (status != WEFT_OK) return status;
    source.images = either(test_images, "t10k-images-idx3-ubyte.gz", path[2], sizeof path[2]);
    source.labels = either(test_labels, "t10k-labels-idx1-ubyte.gz", path[3], sizeof path[3]);
    how.batch = 500;
    how.epochs = 1;
    how.in_order = true;
    return weft_loader_open_images(&source, &how, test_out);
}

int main(int argc, char **argv) {
    const cli_option options[] = {
        {"model", CLI_TEXT, &model, "mlp, cnn, resnet20 or resnet50"},
        {"epochs", CLI_INTEGER, &epochs, "passes over the training images"},
        {"batch", CLI_INTEGER, &batch_size, "images of a batch, over all ranks"},
        {"rate", CLI_REAL, &rate, "learning rate of Adam; of resnet50 SGD's with momentum; 0: 1e-3, and 0.1 for 256 images"},
        {"l2", CLI_REAL, &decay, "weight of the L2 regulariser"},
        {"clip", CLI_REAL, &clip, "largest norm of the gradient; 0: any"},
        CLI_SPLIT(&strategy),
        {"seed", CLI_INTEGER, &seed, "of parameters and of shuffling"},
        {"data", CLI_TEXT, &data, "folder with Fashion-MNIST's four files"},
        {"images", CLI_TEXT, &images, "IDX file of training images, plain or gzip"},
        {"labels", CLI_TEXT, &labels, "IDX file of their labels"},
        {"test-images", CLI_TEXT, &test_images, "IDX file of test images"},
        {"test-labels", CLI_TEXT, &test_labels, "IDX file of their labels"},
        {"made", CLI_INTEGER, &made, "instead of files: made images of so many pixels' side, in three colours"},
        {"made-rows", CLI_INTEGER, &made_rows, "how many"},
        {"augment", CLI_FLAG, &augment, "random crops and mirrors, on the device"},
        {"peak", CLI_REAL, &peak, "the device's TFLOP/s, to print the share that was reached"},
        {"classes", CLI_INTEGER, &classes, "labels are below this"},
        {"log", CLI_TEXT, &log_path, "metrics as JSON lines"},
        {"log-every", CLI_INTEGER, &log_every, "steps between lines; 0: about 200 an epoch"},
        {"plot", CLI_TEXT, &plot_path, "SVG of the loss"},
        {"checkpoint", CLI_TEXT, &checkpoint_path, "safetensors file, written after each epoch"},
        {"checkpoint-every", CLI_INTEGER, &checkpoint_every, "also every so many steps"},
        {"resume", CLI_FLAG, &resume, "go on from the checkpoint where there is one"},
        {"max-steps", CLI_INTEGER, &max_steps, "end after so many steps; 0: after the epochs"},
        {"stop-on-nan", CLI_FLAG, &stop_on_nan, "end where the loss is not finite, instead of skipping that step"},
        {"draw", CLI_TEXT, &draw_path, "SVG of the plan on all ranks"},
        {"describe", CLI_FLAG, &describe, "print the plan: operations, bytes and FLOPs"},
        {"profile", CLI_FLAG, &profile, "measure every operation"},
        {"quiet", CLI_FLAG, &quiet, "no progress"},
    };
    int end = cli_parse(argc, argv, "Trains an image classifier on Fashion-MNIST, or on any IDX files.", options, sizeof options / sizeof *options);
    if (end >= 0) return end;
    if (strcmp(model, "mlp") && strcmp(model, "cnn") && strcmp(model, "resnet20") && strcmp(model, "resnet50")) {
        fprintf(stderr, "train_images: --model %s: there are mlp, cnn, resnet20 and resnet50\n", model);
        return 2;
    }
    if (made < 0 || made > 4096 || made_rows < 1 || made_rows > 1 << 24 || classes < 1) {
        fprintf(stderr, "train_images: --made %lld is a side of 1 to 4096 pixels, --made-rows and --classes at least 1\n", (long long)made);
        return 2;
    }
    weft_world  *world = NULL;
    weft_graph  *graph = NULL;
    weft_loader *loader = NULL, *test = NULL;
    int32_t     *made_label = made ? malloc((size_t)made_rows * sizeof *made_label) : NULL;
    uint8_t     *made_image = made_label ? make_images(made_label) : NULL;
    weft_status  status = made && !made_image ? WEFT_E_NO_MEMORY : weft_world_create(NULL, &world);
    if (status != WEFT_OK) goto done;
    if ((status = weft_world_dump_on(world, SIGUSR1)) != WEFT_OK) goto done; /* kill -USR1 says what the ranks wait for */
    if ((status = weft_graph_create(&(weft_graph_options){.seed = (uint64_t)seed}, &graph)) != WEFT_OK) goto done;
    weft_loader_options how = {.batch = batch_size, .seed = (uint64_t)seed, .epochs = epochs}; /* weft_fit takes this rank's rows */
    if ((status = made_image ? open_made(made_image, made_label, &how, &loader) : open_files(how, &loader, &test)) != WEFT_OK) goto done;
    status = train(world, graph, loader, test);
done:
    if (made && !made_image) fprintf(stderr, "train_images: no memory for %lld images\n", (long long)made_rows);
    else if (status != WEFT_OK) fprintf(stderr, "train_images: %s\n", weft_error_message());
    if (status == WEFT_E_NOT_FOUND && !test)
        fprintf(stderr, "train_images: --data says where the images are; Debian has them as dataset-fashion-mnist\n");
    weft_loader_release(test);
    weft_loader_release(loader);
    free(made_image);
    free(made_label);
    weft_graph_release(graph);
    weft_world_release(world);
    return status == WEFT_OK ? 0 : 1;
}

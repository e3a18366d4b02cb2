/* Layers in 8-bit floats on a GPU: they learn as the CPU's emulation does, and where there is no such product the plan says why and goes on in bf16. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/gpu.h"
#include "weft.h"

enum { ROWS = 32, IN = 48, CLASSES = 16, STEPS = 12, MOST_TEXT = 1 << 16 };

typedef struct result {
    double loss[STEPS];
    char   text[MOST_TEXT]; /* what the plan says of itself */
} result;

static void fill(float *x, int32_t *label) {
    for (int i = 0; i < ROWS; i++) {
        label[i] = i % CLASSES;
        for (int k = 0; k < IN; k++) x[i * IN + k] = (float)((i * 31 + k * 17) % 97 - 48) / 64 + (k % CLASSES == label[i] ? 1.0f : 0);
    }
}

/* Three layers of these widths and a last one; the second and third may be of 8-bit floats. */
static void train(const char *device, weft_strategy strategy, int64_t wide, int64_t narrow, result *out) {
    static float   x[ROWS * IN];
    static int32_t label[ROWS];
    weft_world    *world = NULL;
    weft_graph    *g = NULL;
    weft_trainer  *trainer = NULL;
    weft_report    report;
    const char    *text;
    fill(x, label);
    OK(weft_world_create(&(weft_world_options){.size = 1, .device = device}, &world));
    OK(weft_graph_create(&(weft_graph_options){.seed = 3}, &g));
    weft_tensor *h = weft_gelu(weft_linear(weft_input(g, "x", WEFT_F32, weft_shape(ROWS, IN)), "in", .out = wide));
    h = weft_gelu(weft_linear(h, "hidden1", .out = narrow));
    h = weft_gelu(weft_linear(h, "hidden2", .out = wide));
    weft_tensor *loss = weft_cross_entropy(weft_linear(h, "head", .out = CLASSES), weft_input(g, "label", WEFT_I32, weft_shape(ROWS)));
    weft_program program = {.loss = loss, .solver = weft_adamw(0.01), .strategy = strategy};
    weft_batch   batch = {.global_rows = ROWS, .local_rows = ROWS, .field_count = 2,
                          .field = {{"x", WEFT_F32, weft_shape(ROWS, IN), x}, {"label", WEFT_I32, weft_shape(ROWS), label}}};
    OK(weft_trainer_create(world, &program, &trainer));
    for (int i = 0; i < STEPS; i++) {
        OK(weft_trainer_step(trainer, &batch, &report));
        out->loss[i] = report.loss;
    }
    OK(weft_plan_describe(weft_trainer_plan(trainer), &text));
    snprintf(out->text, sizeof out->text, "%s", text);
    weft_trainer_release(trainer);
    weft_graph_release(g);
    weft_world_release(world);
}

static void says(const result *r, const char *word) { cr_assert_not_null(strstr(r->text, word), "'%s' is not in %s", word, r->text); }

static const weft_strategy fp8 = {.precision = WEFT_BF16, .fp8 = true};
static result              first, second;

static bool multiplies_fp8(void) {
    wefti_device *device = gpu_open((wefti_cuda_options){0});
    const wefti_cuda *cuda = wefti_cuda_of(device);
    bool          does = cuda->major * 10 + cuda->minor >= 89;
    device->vtable->release(device);
    return does;
}

/* The same codes on both; sums and gelu differ in their last bits, and bf16 now and then rounds those to its neighbour. */
Test(cuda_fp8, learns_as_on_the_cpu) {
    NEEDS_GPU();
    if (!multiplies_fp8()) cr_skip_test("this GPU multiplies no 8-bit floats");
    train("cuda", fp8, 64, 48, &first);
    says(&first, "\n6 products in 8-bit floats\n");
    train("cpu", fp8, 64, 48, &second);
    for (int i = 0; i < STEPS; i++) cr_assert_float_eq(first.loss[i], second.loss[i], 0.02 * second.loss[0], "step %d: %g, on the CPU %g", i, first.loss[i], second.loss[i]);
    cr_assert_lt(first.loss[STEPS - 1], 0.8 * first.loss[0], "%g to %g", first.loss[0], first.loss[STEPS - 1]);
    train("cuda", fp8, 64, 48, &second);
    cr_assert_eq(memcmp(first.loss, second.loss, sizeof first.loss), 0, "two runs differ");
}

/* 40 is no multiple of 16: both layers stay in bf16, to its very bits. */
Test(cuda_fp8, leaves_sizes_that_do_not_fit) {
    NEEDS_GPU();
    if (!multiplies_fp8()) cr_skip_test("this GPU multiplies no 8-bit floats");
    train("cuda", fp8, 64, 40, &first);
    says(&first, "\n6 products not in 8-bit floats: cuda:0, 'hidden1': the sizes [32, 64] x [64, 40] are not all multiples of 16\n");
    train("cuda", (weft_strategy){.precision = WEFT_BF16}, 64, 40, &second);
    cr_assert_eq(memcmp(first.loss, second.loss, sizeof first.loss), 0);
}

#ifdef WEFT_ON_STAND_INS
Test(cuda_fp8, leaves_all_to_bf16_on_older_gpus) {
    wefti_cuda_host_reset(&(wefti_cuda_host_options){.seed = 1, .capability = 86});
    train("cuda", fp8, 64, 48, &first);
    says(&first, "\n6 products not in 8-bit floats: cuda:0, 'hidden1': sm_86 multiplies no 8-bit floats; sm_89 (Ada, Hopper) and later do\n");
    cr_assert_null(strstr(first.text, " products in 8-bit"));
}

/* cuBLASLt is there, and opens no handle: the plan has been made by then. */
Test(cuda_fp8, has_tiles_of_its_own_for_what_the_library_refuses) {
    train("cuda", fp8, 64, 48, &first);
    setenv("WEFT_CUDA_HOST_NO_BLAS", "1", 1);
    train("cuda", fp8, 64, 48, &second);
    says(&second, "\n6 products in 8-bit floats\n");
    for (int i = 0; i < STEPS; i++) cr_assert_float_eq(first.loss[i], second.loss[i], 0.02 * first.loss[0], "step %d: %g, by tiles %g", i, first.loss[i], second.loss[i]);
}

Test(cuda_fp8, says_that_the_library_is_not_there) {
    setenv("WEFT_CUDA_LIBRARIES", "none", 1);
    train("cuda", fp8, 64, 48, &first);
    says(&first, "\n6 products not in 8-bit floats: cuda:0, 'hidden1': ");
    says(&first, "libcublasLt.so.13 cannot be loaded");
}
#endif

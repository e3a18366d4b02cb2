/* Activations that are computed again for kernels' gradients: with the bits of plans that keep them, in less memory, and only where nobody else keeps
 * them. On a CPU that says that it fuses rows, as devices do that take this. */
#include "plan/support.h"

enum { ROWS = 4, CHANNELS = 16, SIDE = 16, LAYERS = 4, MOST = 8 };

typedef struct outcome {
    float   values[1 + LAYERS * CHANNELS * CHANNELS * 9];
    int32_t n, ops, kernels;
    int64_t arena_bytes;
} outcome;

/* Layers as in a residual network, in bf16 but for statistics; `beside` reads an activation in the backward pass, too. */
static weft_tensor *network(weft_graph *g, weft_tensor *x, bool beside, weft_tensor **kernels) {
    weft_tensor *more = NULL;
    for (int i = 0; i < LAYERS; i++) {
        char         name[2][16];
        weft_tensor *low = weft_cast(x, WEFT_BF16);
        snprintf(name[0], sizeof name[0], "kernel%d", i);
        snprintf(name[1], sizeof name[1], "norm%d", i);
        kernels[i] = weft_parameter(g, name[0], weft_shape(CHANNELS, CHANNELS, 3, 3), .init = weft_init_uniform(-0.2, 0.2));
        x = weft_conv2d(low, NULL, .weight = weft_cast(kernels[i], WEFT_BF16), .pad = 1, .no_bias = true);
        x = weft_relu(weft_batch_norm(weft_cast(x, WEFT_F32), name[1]));
        weft_tensor *squares = weft_sum(weft_square(weft_cast(low, WEFT_F32)));
        if (beside) more = more ? weft_add(more, squares) : squares;
    }
    weft_tensor *loss = weft_mean(weft_square(x));
    return more ? weft_add(loss, more) : loss;
}

static void run(bool again, bool beside, outcome *out) {
    static float        image[ROWS * CHANNELS * SIDE * SIDE];
    wefti_device_vtable says;
    weft_world         *world = world_open(WEFTI_CPU_AUTO);
    weft_graph         *g = graph_new(3);
    weft_tensor        *kernels[LAYERS], *outputs[LAYERS + 2] = {NULL};
    says = *world->device->vtable;
    const wefti_device_vtable *own = world->device->vtable;
    says.fuses_rows = again;
    world->device->vtable = &says;
    fill(image, ROWS * CHANNELS * SIDE * SIDE, 1);
    weft_tensor *x = weft_input(g, "x", WEFT_F32, weft_shape(ROWS, CHANNELS, SIDE, SIDE));
    outputs[0] = network(g, x, beside, kernels);
    OK(weft_gradients(outputs[0], kernels, LAYERS, outputs + 1));
    weft_plan *plan = plan_of(world, g, true, (weft_plan_options){0}, outputs);
    OK(weft_plan_run(plan, &(weft_feed){.name = "x", .dtype = WEFT_F32, .shape = weft_shape(ROWS, CHANNELS, SIDE, SIDE), .data = image}, 1));
    *out = (outcome){.ops = plan->ir.n_order, .kernels = count_ops(plan, WEFT_OP_CONV2D_BACKWARD_WEIGHT), .arena_bytes = plan->ir.peak_bytes};
    for (int32_t i = 0; i <= LAYERS; i++) {
        weft_plan_value value;
        OK(weft_plan_output(plan, i, &value));
        OK(weft_plan_fetch(plan, i, out->values + out->n, (size_t)value.bytes));
        out->n += (int32_t)(value.bytes / (int64_t)sizeof(float));
    }
    weft_plan_release(plan);
    weft_graph_release(g);
    world->device->vtable = own;
    world_close(world);
}

static outcome kept, repeated;

Test(plan_again, has_the_bits_of_what_was_kept_in_less_memory) {
    int64_t activation = (int64_t)ROWS * CHANNELS * SIDE * SIDE * 2;
    run(false, false, &kept);
    run(true, false, &repeated);
    cr_assert_eq(kept.n, repeated.n);
    cr_assert_arr_eq(kept.values, repeated.values, sizeof kept.values);
    cr_assert_neq(kept.values[5], 0);
    cr_assert_eq(repeated.kernels, LAYERS);
    cr_assert_leq(repeated.arena_bytes, kept.arena_bytes - (LAYERS - 2) * activation, "%lld bytes, %lld where they are kept", (long long)repeated.arena_bytes,
                  (long long)kept.arena_bytes);
}

Test(plan_again, not_what_is_read_in_the_backward_pass_anyway) {
    run(false, true, &kept);
    run(true, true, &repeated);
    cr_assert_arr_eq(kept.values, repeated.values, sizeof kept.values);
    cr_assert_eq(kept.ops, repeated.ops);
    cr_assert_eq(kept.arena_bytes, repeated.arena_bytes);
}

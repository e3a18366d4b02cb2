/* Small calls that the CUDA device does together: casts as a network's parameters are cast, kernels with channels last among them, and fused programs of one
 * text. Results are those, to the bit, of the same calls one by one; launches are few; a call that reads what another wrote is not joined. On stand-ins. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor/operand.h"
#include "cuda/cuda.h"
#include "cuda_host/control.h"
#include "weft.h"

#define OK(call) cr_assert_eq((call), WEFT_OK, "%s: %s", #call, weft_error_message())

enum { CALLS = 130, BYTES = 1 << 20 };

typedef struct bench {
    wefti_device *device;
    void         *memory; /* one buffer for all operands */
    wefti_call    calls[CALLS];
    wefti_operand inputs[CALLS][2], outputs[CALLS];
    wefti_attrs   attrs;
    wefti_fused   fused[CALLS];
    wefti_attrs   fused_attrs[CALLS];
    int32_t       n;
    int64_t       used;
} bench;

static unsigned char before[BYTES], together[BYTES], apart[BYTES];

static bench *bench_open(bool compiled) {
    bench *b = calloc(1, sizeof *b);
    wefti_cuda_host_reset(&(wefti_cuda_host_options){.seed = 5});
    setenv("WEFT_CUDA_NVRTC", compiled ? "1" : "0", 1);
    OK(wefti_cuda_create(NULL, &b->device));
    OK(b->device->vtable->allocate(b->device, BYTES, "operands", &b->memory));
    for (int i = 0; i < BYTES / 4; i++) ((float *)(void *)before)[i] = (float)(i % 1009) / 64 - 7;
    return b;
}

static void bench_close(bench *b) {
    b->device->vtable->deallocate(b->device, b->memory, BYTES);
    b->device->vtable->release(b->device);
    free(b);
}

/* Runs the calls, in one segment or in one each, from the same memory; gives how many launches there were. */
static int64_t run(bench *b, bool in_one, unsigned char *after) {
    void *buffers[1] = {b->memory};
    OK(b->device->vtable->write(b->device, b->memory, before, BYTES));
    OK(b->device->vtable->read(b->device, after, b->memory, BYTES));
    int64_t launches = wefti_cuda_host_launches();
    for (int32_t i = 0; i < b->n; i += in_one ? b->n : 1) {
        wefti_program *program = NULL;
        wefti_segment  segment = {.calls = &b->calls[i], .n_calls = in_one ? b->n : 1, .n_buffers = 1};
        OK(b->device->vtable->compile(b->device, &segment, &program));
        OK(b->device->vtable->launch(program, &(wefti_launch){.buffers = buffers}));
        OK(b->device->vtable->read(b->device, after, b->memory, BYTES));
        b->device->vtable->release_program(program);
    }
    return wefti_cuda_host_launches() - launches;
}

static wefti_operand place(bench *b, weft_dtype dtype, weft_shape shape, int64_t shift) {
    wefti_operand operand = {.dtype = dtype, .shape = shape, .offset_bytes = b->used + shift};
    wefti_contiguous_strides(shape, operand.stride);
    b->used += (weft_shape_elements(shape) * (int64_t)weft_dtype_bytes(dtype) + shift + 63) / 64 * 64;
    cr_assert_leq(b->used, BYTES);
    return operand;
}

static void add_cast(bench *b, wefti_operand x, wefti_operand y) {
    int32_t i = b->n++;
    b->attrs.cast.dtype = (int32_t)y.dtype;
    b->inputs[i][0] = x;
    b->outputs[i] = y;
    b->calls[i] = (wefti_call){.op = WEFT_OP_CAST, .attrs = &b->attrs, .n_inputs = 1, .n_outputs = 1, .inputs = b->inputs[i], .outputs = &b->outputs[i], .name = "cast"};
}

/* Kernels of [O, C, H, W], read as [O, H, W, C], and vectors; lengths and addresses that fill no access of 16 bytes. */
static void cast_all(weft_dtype from, weft_dtype to) {
    bench *b = bench_open(false);
    for (int32_t i = 0; i < 70; i++) {
        int64_t       side = i % 3 == 2 ? 3 : 1, o = 1 + i % 7, c = 1 + i * 5 % 19;
        wefti_operand x = place(b, from, weft_shape(o, c, side, side), i % 5 == 4 ? (int64_t)weft_dtype_bytes(from) : 0);
        if (i % 3 == 2) {
            x.shape = weft_shape(o, side, side, c);
            memcpy(x.stride, (int64_t[4]){c * side * side, side, 1, side * side}, 4 * sizeof(int64_t));
        }
        add_cast(b, x, place(b, to, x.shape, i % 11 == 10 ? (int64_t)weft_dtype_bytes(to) : 0));
    }
    int64_t few = run(b, true, together), many = run(b, false, apart);
    cr_assert_eq(many, 70);
    cr_assert_eq(few, 2, "%d launches", (int)few);
    cr_assert_eq(memcmp(together, apart, BYTES), 0, "casts together differ");
    cr_assert_neq(memcmp(together, before, BYTES), 0);
    bench_close(b);
}
Test(cuda_joined, casts_have_the_bits_that_they_have_apart) {
    cast_all(WEFT_F32, WEFT_BF16);
    cast_all(WEFT_BF16, WEFT_F32);
    cast_all(WEFT_F32, WEFT_F16);
    cast_all(WEFT_F16, WEFT_F32);
}

Test(cuda_joined, casts_that_read_what_another_wrote_wait_for_it) {
    bench        *b = bench_open(false);
    wefti_operand x = place(b, WEFT_F32, weft_shape(100), 0), y = place(b, WEFT_BF16, weft_shape(100), 0);
    for (int i = 0; i < 3; i++) {
        wefti_operand inside = x; /* the last ones overwrite a part of the first one's operand */
        inside.shape = weft_shape(10);
        inside.offset_bytes = i * 40;
        add_cast(b, i ? inside : x, y);
        y.shape = weft_shape(10);
        y.offset_bytes = i * 40;
    }
    int64_t few = run(b, true, together);
    run(b, false, apart);
    cr_assert_eq(few, 3);
    cr_assert_eq(memcmp(together, apart, BYTES), 0);
    bench_close(b);
}

/* y = a*x + y for vectors of all lengths, in place: what keeps running statistics. */
static void add_average(bench *b, int64_t length) {
    int32_t       i = b->n++;
    wefti_fused  *fused = &b->fused[i];
    wefti_operand x = place(b, WEFT_F32, weft_shape(length), 0), y = place(b, WEFT_F32, weft_shape(length), 0);
    memset(fused, 0, sizeof *fused);
    fused->space = weft_shape(length);
    fused->n_inputs = 2;
    fused->n_instructions = 3;
    fused->n_outputs = 1;
    fused->instruction[0] = (wefti_fused_instruction){.op = WEFT_OP_CLAMP, .dtype = WEFT_F32, .source = {0}};
    fused->instruction[0].attrs.clamp.lo = -(double)i;
    fused->instruction[0].attrs.clamp.hi = i;
    fused->instruction[1] = (wefti_fused_instruction){.op = WEFT_OP_MUL, .dtype = WEFT_F32, .source = {-1, 0}};
    fused->instruction[2] = (wefti_fused_instruction){.op = WEFT_OP_ADD, .dtype = WEFT_F32, .source = {-2, 1}};
    fused->output[0] = (wefti_fused_output){.instruction = 2, .reduce = -1};
    b->fused_attrs[i].fused.fused = fused;
    b->inputs[i][0] = x;
    b->inputs[i][1] = y;
    b->outputs[i] = y;
    b->calls[i] = (wefti_call){.op = WEFT_OP_FUSED, .attrs = &b->fused_attrs[i], .n_inputs = 2, .n_outputs = 1, .inputs = b->inputs[i], .outputs = &b->outputs[i], .name = "average"};
}

static void average_all(bool compiled, int64_t due) {
    bench *b = bench_open(compiled);
    for (int32_t i = 0; i < CALLS; i++) add_average(b, 8 * (1 + i * 37 % 97));
    int64_t few = run(b, true, together), many = run(b, false, apart);
    cr_assert_eq(many, CALLS);
    cr_assert_eq(few, due, "%d launches", (int)few);
    cr_assert_eq(memcmp(together, apart, BYTES), 0, "programs together differ");
    cr_assert_neq(memcmp(together, before, BYTES), 0);
    bench_close(b);
}
#ifndef WEFT_SANITIZED /* what the host's compiler makes at run time knows nothing of them */
Test(cuda_joined, programs_of_one_text_are_few_launches) { average_all(true, 3); }
#endif
Test(cuda_joined, interpreted_programs_stay_apart) { average_all(false, CALLS); }

/* --- as plans put them --- */

/* Most neighbours of a kind in the plan, and how many there are in all. */
static int32_t longest_of(const weft_plan *plan, const char *kind, int32_t *count_out) {
    weft_plan_op op;
    int32_t      longest = 0, now = 0;
    *count_out = 0;
    for (int32_t k = 0; weft_plan_op_at(plan, k, &op) == WEFT_OK; k++) {
        bool is = strcmp(op.kind, kind) == 0;
        now = is ? now + 1 : 0;
        *count_out += is;
        if (now > longest) longest = now;
    }
    return longest;
}

Test(cuda_joined, plans_put_casts_and_updates_side_by_side) {
    enum { LAYERS = 5, ROWS = 8, CHANNELS = 6, SIDE = 4 };
    static float  image[ROWS * CHANNELS * SIDE * SIDE];
    int32_t       label[ROWS] = {0, 1, 2, 3}, casts, updates, assigns, fused;
    weft_world   *world = NULL;
    weft_graph   *g = NULL;
    weft_trainer *trainer = NULL;
    wefti_cuda_host_reset(&(wefti_cuda_host_options){.seed = 5});
    setenv("WEFT_CUDA_NVRTC", "0", 1);
    OK(weft_world_create(&(weft_world_options){.size = 1, .device = "cuda"}, &world));
    OK(weft_graph_create(&(weft_graph_options){.seed = 3}, &g));
    for (size_t i = 0; i < sizeof image / sizeof *image; i++) image[i] = (float)(i % 13) / 7 - 1;
    weft_batch_field fields[2] = {{"image", WEFT_F32, weft_shape(ROWS, CHANNELS, SIDE, SIDE), image}, {"label", WEFT_I32, weft_shape(ROWS), label}};
    weft_tensor     *x = weft_input(g, "image", fields[0].dtype, fields[0].shape);
    for (int i = 0; i < LAYERS; i++) {
        char name[2][16];
        snprintf(name[0], sizeof name[0], "conv%d", i);
        snprintf(name[1], sizeof name[1], "norm%d", i);
        x = weft_relu(weft_batch_norm(weft_conv2d(x, name[0], .filters = CHANNELS, .kernel = 3, .pad = 1, .no_bias = true), name[1]));
    }
    weft_tensor *loss = weft_cross_entropy(weft_linear(weft_global_avg_pool2d(x), "head", .out = 4), weft_input(g, "label", WEFT_I32, weft_shape(ROWS)));
    weft_program program = {.loss = loss, .solver = weft_sgd(0.05, .momentum = 0.9), .strategy = {.precision = WEFT_BF16}};
    OK(weft_trainer_create(world, &program, &trainer));
    weft_plan *plan = weft_trainer_plan(trainer);
    cr_assert_eq(longest_of(plan, "update", &updates), 3 * LAYERS + 2);
    cr_assert_eq(updates, 3 * LAYERS + 2);
    cr_assert_geq(longest_of(plan, "cast", &casts), LAYERS + 1);
    cr_assert_eq(longest_of(plan, "assign", &assigns), 0);
    cr_assert_geq(longest_of(plan, "fused", &fused), 2 * LAYERS, "running statistics stand apart");
    weft_report report;
    weft_batch  batch = {.field_count = 2, .field = {fields[0], fields[1]}, .global_rows = ROWS, .local_rows = ROWS};
    double      first = 0;
    for (int step = 0; step < 4; step++) {
        OK(weft_trainer_step(trainer, &batch, &report));
        if (step == 0) first = report.loss;
    }
    cr_assert_lt(report.loss, first);
    weft_trainer_release(trainer);
    weft_graph_release(g);
    weft_world_release(world);
}

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

enum { CALLS = 130, BYTES = 1 << 20, SCRATCH_AT = BYTES - (1 << 16) };

typedef struct bench {
    wefti_device *device;
    void         *memory; /* one buffer for all operands */
    wefti_call    calls[CALLS];
    wefti_operand inputs[CALLS][2], outputs[CALLS], results[CALLS][2];
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

/* --- sums of squares --- */

/* The sum of the squares of x, which are widened before if they are 16 bits wide; `y`: and written. Of scratch of its own, or all of the same. */
static void add_squares(bench *b, wefti_operand x, const wefti_operand *y, bool same_scratch) {
    int32_t      i = b->n++, n = 0;
    bool         wide = x.dtype == WEFT_F32;
    wefti_fused *fused = &b->fused[i];
    weft_shape   one = x.shape;
    for (int32_t axis = 0; axis < one.rank; axis++) one.dim[axis] = 1;
    memset(fused, 0, sizeof *fused);
    fused->space = x.shape;
    fused->n_inputs = 1;
    if (!wide) fused->instruction[n++] = (wefti_fused_instruction){.op = WEFT_OP_CAST, .dtype = WEFT_F32, .attrs.cast.dtype = WEFT_F32};
    fused->instruction[n++] = (wefti_fused_instruction){.op = WEFT_OP_SQUARE, .dtype = WEFT_F32, .source = {wide ? 0 : -1}};
    fused->n_instructions = n;
    if (y) fused->output[fused->n_outputs++] = (wefti_fused_output){.instruction = 0, .reduce = -1}, b->results[i][0] = *y;
    b->results[i][fused->n_outputs] = place(b, WEFT_F32, one, 0);
    fused->output[fused->n_outputs++] = (wefti_fused_output){.instruction = n - 1, .reduce = WEFT_OP_SUM, .axes = (1u << one.rank) - 1};
    b->fused_attrs[i].fused.fused = fused;
    b->inputs[i][0] = x;
    b->calls[i] = (wefti_call){.op = WEFT_OP_FUSED, .attrs = &b->fused_attrs[i], .n_inputs = 1, .n_outputs = fused->n_outputs, .inputs = b->inputs[i],
                               .outputs = b->results[i], .name = "squares"};
    OK(b->device->vtable->query(b->device, &b->calls[i], &b->calls[i].scratch_bytes));
    b->calls[i].scratch_offset = same_scratch ? SCRATCH_AT : b->used;
    if (!same_scratch) b->used += (b->calls[i].scratch_bytes + 63) / 64 * 64;
    cr_assert_leq(b->used, same_scratch ? SCRATCH_AT : BYTES);
}

/* Tensors of one and two axes: some of few elements, some of several pieces, some that lie askew. */
static void add_many_squares(bench *b, weft_dtype dtype, bool widened, bool same_scratch) {
    static const int64_t sizes[] = {1, 7, 16, 17, 256, 257, 1000, 1024, 1025, 5003, 8200, 17001, 25000};
    int64_t              each = (int64_t)weft_dtype_bytes(dtype);
    for (int32_t i = 0; i < 26; i++) {
        int64_t       n = sizes[i % 13];
        weft_shape    shape = i % 2 && n % 5 == 0 ? weft_shape(5, n / 5) : weft_shape(n);
        wefti_operand x = place(b, dtype, shape, i % 7 == 3 ? each : 0), y = x;
        if (widened) y = place(b, WEFT_F32, shape, i % 5 == 3 ? 4 : 0);
        add_squares(b, x, widened ? &y : NULL, same_scratch);
    }
}

/* Sums as CAST, SQUARE and SUM come to by themselves, at one end of the memory. */
static void check_sums(bench *b, weft_dtype dtype) {
    wefti_attrs cast = {.cast.dtype = WEFT_F32}, all = {.reduce.axes = 1};
    memcpy(before, apart, BYTES); /* with the results */
    for (int32_t i = 0, n = b->n; i < n; i++) {
        int64_t       elements = weft_shape_elements(b->inputs[i][0].shape), at = b->used;
        wefti_operand x = b->inputs[i][0], wide = place(b, WEFT_F32, weft_shape(elements), 0), square = place(b, WEFT_F32, weft_shape(elements), 0);
        wefti_operand sum = place(b, WEFT_F32, weft_shape(1), 0);
        float         have, due;
        x.shape = weft_shape(elements), x.stride[0] = 1;
        if (dtype == WEFT_F32) wide = x;
        wefti_call calls[3] = {{.op = WEFT_OP_CAST, .attrs = &cast, .n_inputs = 1, .n_outputs = 1, .inputs = &x, .outputs = &wide},
                               {.op = WEFT_OP_SQUARE, .attrs = &cast, .n_inputs = 1, .n_outputs = 1, .inputs = &wide, .outputs = &square},
                               {.op = WEFT_OP_SUM, .attrs = &all, .n_inputs = 1, .n_outputs = 1, .inputs = &square, .outputs = &sum, .scratch_offset = SCRATCH_AT}};
        bench      own = {.device = b->device, .memory = b->memory, .n = 3};
        OK(b->device->vtable->query(b->device, &calls[2], &calls[2].scratch_bytes));
        memcpy(own.calls, calls, sizeof calls);
        if (dtype == WEFT_F32) own.n = 2, memmove(own.calls, own.calls + 1, 2 * sizeof *calls);
        run(&own, true, together);
        memcpy(&have, apart + b->results[i][b->calls[i].n_outputs - 1].offset_bytes, sizeof have);
        memcpy(&due, together + sum.offset_bytes, sizeof due);
        cr_assert_eq(memcmp(&have, &due, sizeof due), 0, "the sum of squares of %lld is %a and should be %a", (long long)elements, (double)have, (double)due);
        b->used = at;
    }
}

static void squares_all(weft_dtype dtype, bool widened) {
    bench *b = bench_open(false);
    if (dtype != WEFT_F32)
        for (int i = 0; i < BYTES / 2; i++) wefti_store_f64(before, i, dtype, (double)(i % 1009) / 64 - 7);
    add_many_squares(b, dtype, widened, false);
    int64_t few = run(b, true, together), many = run(b, false, apart);
    cr_assert_eq(few, 2, "%d launches", (int)few);
    cr_assert_eq(many, 26 + 6, "%d launches", (int)many); /* those of several pieces have two */
    cr_assert_eq(memcmp(together, apart, SCRATCH_AT), 0, "sums together differ");
    check_sums(b, dtype);
    bench_close(b);
}
Test(cuda_joined, squares_of_many_are_two_launches_and_have_the_bits_that_they_have_apart) {
    squares_all(WEFT_F32, false);
    squares_all(WEFT_BF16, false);
    squares_all(WEFT_BF16, true);
    squares_all(WEFT_F16, true);
}

Test(cuda_joined, squares_that_share_scratch_wait_for_each_other) {
    bench *b = bench_open(false);
    add_many_squares(b, WEFT_F32, false, true);
    int64_t few = run(b, true, together);
    run(b, false, apart);
    cr_assert_gt(few, 2);
    cr_assert_eq(memcmp(together, apart, SCRATCH_AT), 0, "sums together differ");
    bench_close(b);
}

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

#ifndef WEFT_SANITIZED
/* Launches of a step of a network of LAYERS layers, that is clipped by its gradients' norm, or not. */
static int64_t launches_of_step(double clip_norm) {
    enum { LAYERS = 20, ROWS = 4, WIDTH = 24 };
    static float  x[ROWS * WIDTH];
    weft_world   *world = NULL;
    weft_graph   *g = NULL;
    weft_trainer *trainer = NULL;
    weft_report   report;
    int64_t       launches = 0;
    wefti_cuda_host_reset(&(wefti_cuda_host_options){.seed = 5});
    setenv("WEFT_CUDA_NVRTC", "1", 1);
    OK(weft_world_create(&(weft_world_options){.size = 1, .device = "cuda"}, &world));
    OK(weft_graph_create(&(weft_graph_options){.seed = 3}, &g));
    for (size_t i = 0; i < sizeof x / sizeof *x; i++) x[i] = (float)(i % 13) / 7 - 1;
    weft_batch_field field = {"x", WEFT_F32, weft_shape(ROWS, WIDTH), x};
    weft_tensor     *y = weft_input(g, "x", field.dtype, field.shape);
    for (int i = 0; i < LAYERS; i++) {
        char name[16];
        snprintf(name, sizeof name, "layer%d", i);
        y = weft_linear(y, name, .out = WIDTH);
    }
    weft_program program = {.loss = weft_mean(weft_square(y)), .solver = weft_adamw(0.01, .clip_norm = clip_norm)};
    weft_batch   batch = {.field_count = 1, .field = {field}, .global_rows = ROWS, .local_rows = ROWS};
    OK(weft_trainer_create(world, &program, &trainer));
    for (int step = 0; step < 3; step++) {
        launches = wefti_cuda_host_launches();
        OK(weft_trainer_step(trainer, &batch, &report));
        launches = wefti_cuda_host_launches() - launches;
    }
    weft_trainer_release(trainer);
    weft_graph_release(g);
    weft_world_release(world);
    return launches;
}

/* 40 gradients: two launches for their squares, one for each 15 that are added up, and a few for what becomes of the norm. */
Test(cuda_joined, plans_take_the_norm_of_all_gradients_by_few_launches) {
    int64_t plain = launches_of_step(0), clipped = launches_of_step(1);
    cr_assert_leq(clipped - plain, 2 + 3 + 4, "%d launches for the norm", (int)(clipped - plain));
    cr_assert_gt(clipped, plain);
}
#endif

/* What the CPU device does beyond computing: choosing kernels, refusing bad calls, allocating nothing while it runs. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/cpu/cpu.h"
#include "core/iface/custom.h"

static wefti_device *create(wefti_cpu_isa isa, int32_t threads) {
    wefti_cpu_options options = {.isa = isa, .threads = {.count = threads}};
    wefti_device     *device = NULL;
    cr_assert_eq(wefti_cpu_create(&options, &device), WEFT_OK, "%s", weft_error_message());
    return device;
}

static wefti_operand operand(weft_dtype dtype, weft_shape shape, int32_t buffer) {
    wefti_operand one = {.dtype = dtype, .shape = shape, .buffer = buffer};
    wefti_contiguous_strides(shape, one.stride);
    return one;
}

Test(cpu_create, takes_the_instruction_set_from_the_environment) {
    wefti_device *device = NULL;
    setenv("WEFT_CPU_ISA", "reference", 1);
    cr_assert_eq(wefti_cpu_create(NULL, &device), WEFT_OK);
    cr_assert_eq(wefti_cpu_isa_of(device), WEFTI_CPU_REFERENCE);
    device->vtable->release(device);
    setenv("WEFT_CPU_ISA", "sse9", 1);
    cr_assert_eq(wefti_cpu_create(NULL, &device), WEFT_E_INVALID);
    cr_assert_null(device);
    cr_assert_not_null(strstr(weft_error_message(), "sse9"));
    setenv("WEFT_CPU_ISA", "", 1);
    cr_assert_eq(wefti_cpu_create(NULL, &device), WEFT_OK);
    wefti_cpu_isa best = WEFTI_CPU_REFERENCE; /* the list goes from the plainest to the widest */
    for (int isa = WEFTI_CPU_REFERENCE; isa < WEFTI_CPU_ISA_COUNT; isa++)
        if (wefti_cpu_has((wefti_cpu_isa)isa)) best = (wefti_cpu_isa)isa;
    cr_assert_eq(wefti_cpu_isa_of(device), best);
    device->vtable->release(device);
    unsetenv("WEFT_CPU_ISA");
    cr_assert_eq(wefti_cpu_create(&(wefti_cpu_options){.isa = (wefti_cpu_isa)77}, &device), WEFT_E_INVALID);
    cr_assert_eq(wefti_cpu_create(&(wefti_cpu_options){.threads = {.count = -3}}, &device), WEFT_E_INVALID);
}

Test(cpu_create, refuses_an_instruction_set_that_is_not_there) {
    wefti_device *device = NULL;
    for (int isa = WEFTI_CPU_REFERENCE; isa < WEFTI_CPU_ISA_COUNT; isa++) {
        weft_status status =
            wefti_cpu_create(&(wefti_cpu_options){.isa = (wefti_cpu_isa)isa, .threads = {.count = 1}}, &device);
        cr_assert_eq(status, wefti_cpu_has((wefti_cpu_isa)isa) ? WEFT_OK : WEFT_E_UNSUPPORTED);
        if (status == WEFT_OK) device->vtable->release(device);
        else cr_assert_not_null(strstr(weft_error_message(), wefti_cpu_isa_name((wefti_cpu_isa)isa)));
    }
}

/* Devices without epilogues are not asked for them by planners; whoever asks all the same hears it. */
Test(cpu_device, refuses_products_with_epilogues) {
    wefti_attrs   attrs = {.matmul = {.trans_a = 1, .sums = WEFTI_SUMS_A}};
    wefti_operand inputs[2] = {operand(WEFT_F32, weft_shape(4, 3), 0), operand(WEFT_F32, weft_shape(4, 5), 1)};
    wefti_operand outputs[2] = {operand(WEFT_F32, weft_shape(3, 5), 2), operand(WEFT_F32, weft_shape(3), 3)};
    wefti_call    call = {.op = WEFT_OP_FUSED_MATMUL, .attrs = &attrs, .n_inputs = 2, .n_outputs = 2, .inputs = inputs, .outputs = outputs, .name = "y"};
    wefti_device *device = create(WEFTI_CPU_AUTO, 1);
    int64_t       scratch;
    cr_assert_eq(device->vtable->query(device, &call, &scratch), WEFT_E_UNSUPPORTED, "%s", weft_error_message());
    cr_assert_not_null(strstr(weft_error_message(), "fused_matmul 'y'"), "%s", weft_error_message());
    device->vtable->release(device);
}

/* Scratch of attention over as many keys as queries. */
static double attention_scratch(wefti_device *device, weft_op op, int64_t length) {
    wefti_attrs   attrs = {.attention = {.scale = 0.125, .causal = 1}};
    weft_shape    heads = weft_shape(1, 2, length, 64), rows = weft_shape(1, 2, length);
    wefti_operand x = operand(WEFT_F32, heads, 0), lse = operand(WEFT_F32, rows, 1);
    wefti_operand forward[3] = {x, x, x}, backward[6] = {x, x, x, x, x, lse}, results[2] = {x, lse}, gradients[3] = {x, x, x};
    bool          back = op == WEFT_OP_ATTENTION_BACKWARD;
    wefti_call    call = {.op = op, .attrs = &attrs, .n_inputs = back ? 6 : 3, .n_outputs = back ? 3 : 2, .name = "attention",
                          .inputs = back ? backward : forward, .outputs = back ? gradients : results};
    int64_t       bytes = 0;
    cr_assert_eq(device->vtable->query(device, &call, &bytes), WEFT_OK, "%s", weft_error_message());
    return (double)bytes;
}

/* Never the whole matrix of scores: four times the length takes no more than four times the memory. */
Test(cpu_query, gives_attention_memory_linear_in_the_length) {
    for (int isa = WEFTI_CPU_REFERENCE; isa < WEFTI_CPU_ISA_COUNT; isa++) {
        if (!wefti_cpu_has((wefti_cpu_isa)isa)) continue;
        wefti_device *device = create((wefti_cpu_isa)isa, 2);
        for (int back = 0; back < 2; back++) {
            weft_op op = back ? WEFT_OP_ATTENTION_BACKWARD : WEFT_OP_ATTENTION;
            double  once = attention_scratch(device, op, 1024), four = attention_scratch(device, op, 4096);
            cr_assert_leq(four, 4.5 * once + 4096, "%s with %s: %g bytes for 1024, %g for 4096", wefti_ops[op].name,
                          wefti_cpu_isa_name((wefti_cpu_isa)isa), once, four);
        }
        device->vtable->release(device);
    }
}

static void count_between(void *context) { ++*(int *)context; }

static uint64_t allocations(void) {
    weft_memory_counts counts;
    weft_memory_read(&counts);
    return counts.allocations;
}

Test(cpu_launch, allocates_nothing_and_times_every_call) {
    wefti_device *device = create(WEFTI_CPU_AUTO, 2);
    enum { N = 100000 };
    float        *buffers[4];
    int64_t       scratch_bytes = 0;
    wefti_attrs   attrs;
    memset(&attrs, 0, sizeof attrs);
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(device->vtable->allocate(device, N * 4, "a test", (void **)&buffers[i]), WEFT_OK);
        for (int k = 0; k < N; k++) buffers[i][k] = (float)(k % 100 - 50);
    }
    wefti_operand in[2] = {operand(WEFT_F32, weft_shape(N), 0), operand(WEFT_F32, weft_shape(N), 1)};
    wefti_operand out = operand(WEFT_F32, weft_shape(N), 2);
    wefti_call calls[3] = {
        {.op = WEFT_OP_ADD,
         .attrs = &attrs,
         .n_inputs = 2,
         .n_outputs = 1,
         .inputs = in,
         .outputs = &out,
         .name = "sum"},
        {.op = WEFT_OP_RELU,
         .attrs = &attrs,
         .n_inputs = 1,
         .n_outputs = 1,
         .inputs = &out,
         .outputs = &out,
         .name = "relu"},
        {.op = WEFT_OP_RELU,
         .attrs = &attrs,
         .n_inputs = 1,
         .n_outputs = 1,
         .inputs = &out,
         .outputs = &out,
         .name = "again"},
    };
    for (int i = 0; i < 3; i++) {
        calls[i].scratch_buffer = 3;
        cr_assert_eq(device->vtable->query(device, &calls[i], &calls[i].scratch_bytes), WEFT_OK);
        scratch_bytes = wefti_max_i64(scratch_bytes, calls[i].scratch_bytes);
    }
    cr_assert_eq(device->vtable->allocate(device, (size_t)scratch_bytes, "scratch", (void **)&buffers[3]), WEFT_OK);
    wefti_program *program = NULL;
    wefti_segment  segment = {.calls = calls, .n_calls = 3, .n_buffers = 4};
    cr_assert_eq(device->vtable->compile(device, &segment, &program), WEFT_OK);
    int          between = 0;
    uint64_t     profile[3] = {0};
    wefti_launch launch = {
        .buffers = (void *const *)buffers, .between = count_between, .context = &between, .profile_ns = profile};
    uint64_t     before = allocations();
    for (int step = 0; step < 10; step++) cr_assert_eq(device->vtable->launch(program, &launch), WEFT_OK);
    cr_assert_eq(allocations(), before);
    cr_assert_geq(between, 30);
    for (int i = 0; i < 3; i++) cr_assert_gt(profile[i], 0);
    for (int k = 0; k < N; k++) cr_assert_eq(buffers[2][k], (k % 100 - 50) > 0 ? 2 * (k % 100 - 50) : 0);
    device->vtable->release_program(program);
    for (int i = 0; i < 3; i++) device->vtable->deallocate(device, buffers[i], N * 4);
    device->vtable->deallocate(device, buffers[3], (size_t)scratch_bytes);
    device->vtable->release(device);
    weft_memory_counts counts;
    weft_memory_read(&counts);
    cr_assert_eq(counts.held_bytes, 0);
}

/* ---- results that peers load ---- */

typedef struct matrices {
    wefti_cpu_isa isa;
    weft_dtype    dtype;
    int64_t       rows, columns, steps;
    bool          trans_a;
} matrices;

/* One product into `c`, which has `bytes`; of its bytes [kept, kept_end) are loaded by nobody else. */
static void multiply(const matrices *it, bool peers_load, int64_t kept, int64_t kept_end, char *c) {
    wefti_device *device = create(it->isa, 2);
    weft_shape    shapes[3] = {it->trans_a ? weft_shape(it->steps, it->rows) : weft_shape(it->rows, it->steps),
                               weft_shape(it->steps, it->columns), weft_shape(it->rows, it->columns)};
    wefti_attrs   attrs = {.matmul = {.trans_a = it->trans_a}};
    wefti_operand operands[3];
    void         *buffers[4];
    size_t        bytes[4];
    for (int i = 0; i < 3; i++) {
        operands[i] = operand(it->dtype, shapes[i], i);
        bytes[i] = (size_t)weft_shape_elements(shapes[i]) * weft_dtype_bytes(it->dtype);
        cr_assert_eq(device->vtable->allocate(device, bytes[i], "a test", &buffers[i]), WEFT_OK);
        for (int64_t k = 0; k < weft_shape_elements(shapes[i]); k++)
            wefti_store_f64(buffers[i], k, it->dtype, (double)((k * 2654435761u + (unsigned)i) % 2001) / 1000 - 1);
    }
    operands[2].peers_load = peers_load;
    operands[2].kept_begin = kept;
    operands[2].kept_end = kept_end;
    wefti_call call = {.op = WEFT_OP_MATMUL, .attrs = &attrs, .n_inputs = 2, .n_outputs = 1, .inputs = operands,
                       .outputs = &operands[2], .scratch_buffer = 3, .name = "product"};
    cr_assert_eq(device->vtable->query(device, &call, &call.scratch_bytes), WEFT_OK);
    bytes[3] = (size_t)call.scratch_bytes;
    cr_assert_eq(device->vtable->allocate(device, bytes[3], "scratch", &buffers[3]), WEFT_OK);
    wefti_program *program = NULL;
    cr_assert_eq(device->vtable->compile(device, &(wefti_segment){.calls = &call, .n_calls = 1, .n_buffers = 4}, &program), WEFT_OK);
    cr_assert_eq(device->vtable->launch(program, &(wefti_launch){.buffers = buffers}), WEFT_OK);
    memcpy(c, buffers[2], bytes[2]);
    device->vtable->release_program(program);
    for (int i = 0; i < 4; i++) device->vtable->deallocate(device, buffers[i], bytes[i]);
    device->vtable->release(device);
}

/* How a result is stored changes none of its bits: whole lines and not, one block of k and several, some of it kept, few and many blocks. */
Test(cpu_launch, gives_the_same_bits_where_peers_load_them) {
    const matrices all[] = {
        {.dtype = WEFT_F32, .rows = 197, .columns = 160, .steps = 64, .trans_a = true}, {.dtype = WEFT_F32, .rows = 14, .columns = 512, .steps = 33},
        {.dtype = WEFT_F64, .rows = 93, .columns = 88, .steps = 19, .trans_a = true},   {.dtype = WEFT_F32, .rows = 64, .columns = 97, .steps = 64},
        {.dtype = WEFT_F32, .rows = 70, .columns = 96, .steps = 900},                   {.dtype = WEFT_BF16, .rows = 90, .columns = 64, .steps = 50},
        {.dtype = WEFT_F32, .rows = 40, .columns = 48, .steps = 0},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        for (int isa = WEFTI_CPU_REFERENCE; isa < WEFTI_CPU_ISA_COUNT; isa++) {
            matrices it = all[i];
            it.isa = (wefti_cpu_isa)isa;
            if (!wefti_cpu_has(it.isa)) continue;
            size_t bytes = (size_t)(it.rows * it.columns) * weft_dtype_bytes(it.dtype), kept = bytes / 2 / 64 * 64;
            char  *plain = malloc(bytes), *loaded = malloc(bytes);
            multiply(&it, false, 0, 0, plain);
            for (int part = 0; part < 3; part++) {
                multiply(&it, true, part == 2 ? (int64_t)kept : 0, part == 0 ? 0 : part == 1 ? (int64_t)kept : (int64_t)bytes, loaded);
                cr_assert_eq(memcmp(plain, loaded, bytes), 0, "product %zu, kept %d, with %s", i, part, wefti_cpu_isa_name(it.isa));
            }
            free(plain);
            free(loaded);
        }
}

/* ---- refusals ---- */

typedef struct refusal {
    weft_op       op;
    int32_t       n_inputs, n_outputs;
    wefti_operand inputs[3], outputs[2];
    wefti_attrs   attrs;
    weft_status   status;
} refusal;

static void expect_refused(const refusal *one) {
    wefti_device *device = create(WEFTI_CPU_AUTO, 1);
    wefti_call    call = {.op = one->op, .attrs = &one->attrs, .n_inputs = one->n_inputs, .n_outputs = one->n_outputs,
                          .inputs = one->inputs, .outputs = one->outputs, .name = "culprit"};
    int64_t        scratch = 0;
    wefti_program *program = NULL;
    wefti_segment  segment = {.calls = &call, .n_calls = 1, .n_buffers = 5};
    cr_assert_eq(device->vtable->query(device, &call, &scratch), one->status, "%s: %s", wefti_ops[one->op].name,
                 weft_error_message());
    cr_assert_eq(device->vtable->compile(device, &segment, &program), one->status);
    cr_assert_null(program);
    cr_assert_not_null(strstr(weft_error_message(), "culprit"), "%s", weft_error_message());
    device->vtable->release(device);
}

#define F32(...) operand(WEFT_F32, weft_shape(__VA_ARGS__), 0)
#define I32(...) operand(WEFT_I32, weft_shape(__VA_ARGS__), 0)
#define U8(...) operand(WEFT_U8, weft_shape(__VA_ARGS__), 0)

Test(cpu_query, refuses_what_is_no_call) {
    wefti_operand turned = F32(3, 4);
    turned.stride[0] = 1, turned.stride[1] = 3;
    const refusal all[] = {
        {WEFT_OP_PARAMETER, 0, 1, {{0}}, {F32(3)}, .status = WEFT_E_UNSUPPORTED},
        {WEFT_OP_ALL_REDUCE, 1, 1, {F32(3)}, {F32(3)}, .status = WEFT_E_UNSUPPORTED},
        {WEFT_OP_MODE, 2, 1, {F32(3), F32(3)}, {F32(3)}, .status = WEFT_E_UNSUPPORTED},
        {WEFT_OP_ADD, 1, 1, {F32(3)}, {F32(3)}, .status = WEFT_E_INVALID},
        {WEFT_OP_ADD, 2, 2, {F32(3), F32(3)}, {F32(3), F32(3)}, .status = WEFT_E_INVALID},
        {WEFT_OP_RELU, 1, 1, {F32(3, 4)}, {turned}, .status = WEFT_E_INVALID},
        {WEFT_OP_ADD, 2, 1, {F32(3), F32(4)}, {F32(4)}, .status = WEFT_E_SHAPE},
        {WEFT_OP_ADD, 2, 1, {F32(3), I32(3)}, {F32(3)}, .status = WEFT_E_DTYPE},
        {WEFT_OP_EXP, 1, 1, {I32(3)}, {I32(3)}, .status = WEFT_E_DTYPE},
        {WEFT_OP_LT, 2, 1, {F32(3), F32(3)}, {F32(3)}, .status = WEFT_E_DTYPE},
        {WEFT_OP_WHERE, 3, 1, {U8(3), F32(3), F32(3)}, {F32(3)}, .status = WEFT_E_DTYPE},
        {WEFT_OP_SUM, 1, 1, {F32(3, 4)}, {F32(4)}, {.reduce = {.axes = 4}}, WEFT_E_SHAPE},
        {WEFT_OP_SUM, 1, 1, {F32(3, 4)}, {F32(3)}, {.reduce = {.axes = 1}}, WEFT_E_SHAPE},
        {WEFT_OP_MAX, 1, 1, {F32(3, 0)}, {F32(3)}, {.reduce = {.axes = 2}}, WEFT_E_SHAPE},
        {WEFT_OP_ARGMAX, 1, 1, {F32(3, 4)}, {I32(1)}, {.reduce = {.axes = 3}}, WEFT_E_SHAPE},
        {WEFT_OP_MEAN_BACKWARD, 1, 1, {F32(4)}, {F32(3, 5)}, {.reduce = {.axes = 1}}, WEFT_E_SHAPE},
        {WEFT_OP_RESHAPE, 1, 1, {F32(3, 4)}, {F32(5)}, .status = WEFT_E_SHAPE},
        {WEFT_OP_PERMUTE, 1, 1, {F32(3, 3)}, {F32(3, 3)}, {.view = {.axes = {1, 1}}}, WEFT_E_SHAPE},
        {WEFT_OP_SLICE, 1, 1, {F32(5)}, {F32(3)}, {.slice = {.start = {1}, .step = {2}, .size = {3}}}, WEFT_E_SHAPE},
        {WEFT_OP_SLICE,
         1,
         1,
         {F32(5)},
         {F32(2)},
         {.slice = {.start = {0}, .step = {INT64_MAX}, .size = {2}}},
         WEFT_E_SHAPE},
        {WEFT_OP_EXPAND, 1, 1, {F32(3)}, {F32(4)}, .status = WEFT_E_SHAPE},
        {WEFT_OP_CONCAT, 2, 1, {F32(3), F32(4)}, {F32(8)}, .status = WEFT_E_SHAPE},
        {WEFT_OP_PAD, 1, 1, {F32(3)}, {F32(5)}, {.pad = {.low = {1}}}, WEFT_E_SHAPE},
        {WEFT_OP_PAD, 1, 1, {F32(3)}, {F32(2)}, {.pad = {.low = {-1}}}, WEFT_E_SHAPE},
        {WEFT_OP_GATHER, 2, 1, {F32(3, 4), F32(2)}, {F32(2, 4)}, .status = WEFT_E_DTYPE},
        {WEFT_OP_GATHER, 2, 1, {F32(3, 4), I32(2)}, {F32(3, 4)}, .status = WEFT_E_SHAPE},
        {WEFT_OP_SCATTER_ADD, 3, 1, {F32(3, 4), I32(2), F32(3, 4)}, {F32(3, 4)}, .status = WEFT_E_SHAPE},
        {WEFT_OP_MATMUL, 2, 1, {F32(3, 4), F32(5, 6)}, {F32(3, 6)}, .status = WEFT_E_SHAPE},
        {WEFT_OP_MATMUL, 2, 1, {F32(3, 4), F32(4)}, {F32(3, 1)}, .status = WEFT_E_SHAPE},
        {WEFT_OP_MATMUL, 2, 1, {I32(3, 4), I32(4, 2)}, {I32(3, 2)}, .status = WEFT_E_DTYPE},
        {WEFT_OP_CONV2D,
         2,
         1,
         {F32(1, 3, 5, 5), F32(4, 2, 3, 3)},
         {F32(1, 4, 3, 3)},
         {.conv = {.groups = 1}},
         WEFT_E_SHAPE},
        {WEFT_OP_MAX_POOL2D,
         1,
         2,
         {F32(1, 3, 4, 4)},
         {F32(1, 3, 2, 2), I32(1, 3, 2, 1)},
         {.pool = {.window = {2, 2}}},
         WEFT_E_SHAPE},
        {WEFT_OP_AVG_POOL2D, 1, 1, {F32(1, 3, 4, 4)}, {F32(1, 3, 2, 2)}, .status = WEFT_E_SHAPE},
        {WEFT_OP_NORMALIZE, 1, 2, {F32(3, 4)}, {F32(3, 4), F32(4)}, {.rows = {.axes = 1}}, WEFT_E_SHAPE},
        {WEFT_OP_NORMALIZE, 1, 2, {F32(3, 4)}, {F32(3, 4), F32(3)}, .status = WEFT_E_SHAPE},
        {WEFT_OP_ROTARY, 1, 1, {F32(3, 5)}, {F32(3, 5)}, .status = WEFT_E_SHAPE},
        {WEFT_OP_CROSS_ENTROPY, 2, 2, {F32(3, 5), I32(4)}, {F32(3), F32(3)}, .status = WEFT_E_SHAPE},
        {WEFT_OP_CROSS_ENTROPY, 2, 2, {F32(3, 5), F32(3)}, {F32(3), F32(3)}, .status = WEFT_E_DTYPE},
        {WEFT_OP_ATTENTION,
         3,
         2,
         {F32(1, 3, 4, 8), F32(1, 2, 4, 8), F32(1, 2, 4, 8)},
         {F32(1, 3, 4, 8), F32(1, 3, 4)},
         .status = WEFT_E_SHAPE},
        {WEFT_OP_ASSIGN, 2, 1, {F32(3), F32(4)}, {F32(3)}, .status = WEFT_E_SHAPE},
        {WEFT_OP_UPDATE, 3, 1, {F32(3), F32(3), F32(8)}, {F32(3)}, .status = WEFT_E_SHAPE},
        {WEFT_OP_FUSED, 1, 1, {F32(3)}, {F32(3)}, .status = WEFT_E_SHAPE},
        {WEFT_OP_RANDOM, 1, 1, {F32(1)}, {F32(3)}, .status = WEFT_E_DTYPE},
    };
    for (size_t i = 0; i < WEFTI_COUNT(all); i++) expect_refused(&all[i]);
}

Test(cpu_query, refuses_fused_programs_that_read_ahead) {
    wefti_fused fused;
    memset(&fused, 0, sizeof fused);
    fused.space = weft_shape(3);
    fused.n_inputs = fused.n_outputs = 1;
    fused.n_instructions = 2;
    fused.instruction[0].op = fused.instruction[1].op = WEFT_OP_NEG;
    fused.output[0] = (wefti_fused_output){.instruction = 1, .reduce = -1};
    static const int32_t sources[][2] = {{1, -1}, {-1, -1}, {-2, -1}, {0, -2}, {0, -3}};
    for (size_t i = 0; i < WEFTI_COUNT(sources); i++) {
        refusal one = {WEFT_OP_FUSED, 1, 1, {F32(3)}, {F32(3)}, {.fused = {&fused}}, WEFT_E_SHAPE};
        fused.instruction[0].source[0] = sources[i][0];
        fused.instruction[1].source[0] = sources[i][1];
        expect_refused(&one);
    }
    fused.instruction[0].source[0] = 0, fused.instruction[1].source[0] = -1;
    fused.output[0].instruction = 2;
    expect_refused(&(refusal){WEFT_OP_FUSED, 1, 1, {F32(3)}, {F32(3)}, {.fused = {&fused}}, WEFT_E_SHAPE});
    fused.output[0].instruction = 1;
    fused.instruction[1].op = WEFT_OP_MATMUL;
    expect_refused(&(refusal){WEFT_OP_FUSED, 1, 1, {F32(3)}, {F32(3)}, {.fused = {&fused}}, WEFT_E_SHAPE});
}

Test(cpu_compile, refuses_memory_that_is_not_there) {
    wefti_device  *device = create(WEFTI_CPU_AUTO, 1);
    wefti_operand  x = F32(3), y = F32(3);
    wefti_attrs    attrs;
    wefti_program *program = NULL;
    memset(&attrs, 0, sizeof attrs);
    wefti_call call = {.op = WEFT_OP_NEG,
                       .attrs = &attrs,
                       .n_inputs = 1,
                       .n_outputs = 1,
                       .inputs = &x,
                       .outputs = &y,
                       .name = "culprit"};
    wefti_segment segment = {.calls = &call, .n_calls = 1, .n_buffers = 1};
    y.buffer = 1;
    cr_assert_eq(device->vtable->compile(device, &segment, &program), WEFT_E_INVALID);
    y.buffer = -1;
    cr_assert_eq(device->vtable->compile(device, &segment, &program), WEFT_E_INVALID);
    wefti_operand plane = F32(1, 1, 4, 4), index = I32(1, 1, 2, 2), g = F32(1, 1, 2, 2), in[2] = {g, index};
    int64_t       scratch = 0;
    attrs.pool.input = plane.shape;
    call = (wefti_call){.op = WEFT_OP_MAX_POOL2D_BACKWARD,
                        .attrs = &attrs,
                        .n_inputs = 2,
                        .n_outputs = 1,
                        .inputs = in,
                        .outputs = &plane};
    wefti_device *plain = create(WEFTI_CPU_REFERENCE, 1);
    cr_assert_eq(plain->vtable->query(plain, &call, &scratch), WEFT_OK);
    cr_assert_eq(scratch, 16 * 8);
    cr_assert_eq(plain->vtable->compile(plain, &segment, &program), WEFT_E_INVALID);
    cr_assert_not_null(strstr(weft_error_message(), "scratch"));
    plain->vtable->release(plain);
    device->vtable->release(device);
}

/* ---- custom ops ---- */

static weft_status scale_forward(const weft_custom_data *inputs, const void *options, weft_custom_data *outputs_out) {
    double factor = *(const double *)options;
    if (factor < 0) return WEFT_E_INVALID;
    for (int64_t i = 0; i < weft_shape_elements(inputs[0].shape); i++)
        ((float *)outputs_out[0].data)[i] = (float)factor * ((const float *)inputs[0].data)[i];
    return WEFT_OK;
}
static weft_status scale_backward(const weft_custom_data *inputs, const weft_custom_data *outputs,
                                  const weft_custom_data *gradients, const void *options,
                                  weft_custom_data *input_gradients_out) {
    (void)outputs;
    if (input_gradients_out[1].data) return WEFT_E_INTERNAL; /* the second input is an integer */
    for (int64_t i = 0; i < weft_shape_elements(inputs[0].shape); i++)
        ((float *)input_gradients_out[0].data)[i] =
            (float)*(const double *)options * ((const float *)gradients[0].data)[i];
    return WEFT_OK;
}

static weft_status run_one(wefti_device *device, wefti_call *call, void *const *buffers, int32_t n_buffers) {
    wefti_program *program = NULL;
    void          *all[8];
    int64_t        scratch = 0;
    weft_status    status = device->vtable->query(device, call, &scratch);
    memcpy(all, buffers, (size_t)n_buffers * sizeof *buffers);
    cr_assert_eq(device->vtable->allocate(device, (size_t)scratch, "scratch", &all[n_buffers]), WEFT_OK);
    call->scratch_buffer = n_buffers;
    call->scratch_bytes = scratch;
    wefti_segment segment = {.calls = call, .n_calls = 1, .n_buffers = n_buffers + 1};
    if (status == WEFT_OK) status = device->vtable->compile(device, &segment, &program);
    if (status == WEFT_OK) status = device->vtable->launch(program, &(wefti_launch){.buffers = all});
    device->vtable->release_program(program);
    device->vtable->deallocate(device, all[n_buffers], (size_t)scratch);
    return status;
}

Test(cpu_custom, calls_the_application_with_packed_memory) {
    wefti_device *device = create(WEFTI_CPU_AUTO, 2);
    wefti_custom custom = {
        .op = {.name = "scale", .n_inputs = 2, .n_outputs = 1, .forward = scale_forward, .backward = scale_backward}};
    double        factor = 3;
    float         x[12], y[12], g[12], gx[12];
    int32_t       n = 7, gn = 99;
    wefti_attrs   attrs;
    memset(&attrs, 0, sizeof attrs);
    attrs.custom.custom = &custom, attrs.custom.options = &factor, attrs.custom.options_bytes = sizeof factor;
    for (int i = 0; i < 12; i++) x[i] = g[i] = (float)i;
    wefti_operand turned = F32(3, 4);
    turned.stride[0] = 1, turned.stride[1] = 3;
    wefti_operand in[2] = {turned, operand(WEFT_I32, weft_shape(1), 1)}, out = operand(WEFT_F32, weft_shape(3, 4), 2);
    wefti_call call = {.op = WEFT_OP_CUSTOM,
                       .attrs = &attrs,
                       .n_inputs = 2,
                       .n_outputs = 1,
                       .inputs = in,
                       .outputs = &out,
                       .name = "mine"};
    cr_assert_eq(run_one(device, &call, (void *[]){x, &n, y}, 3), WEFT_OK, "%s", weft_error_message());
    for (int i = 0; i < 12; i++) cr_assert_eq(y[i], 3 * x[i / 4 + i % 4 * 3]);
    factor = -1;
    cr_assert_eq(run_one(device, &call, (void *[]){x, &n, y}, 3), WEFT_E_INVALID);
    cr_assert_not_null(strstr(weft_error_message(), "scale"));
    cr_assert_not_null(strstr(weft_error_message(), "mine"));
    factor = 2;
    wefti_operand back_in[4] = {in[0], in[1], out, operand(WEFT_F32, weft_shape(3, 4), 3)};
    wefti_operand back_out[2] = {operand(WEFT_F32, weft_shape(3, 4), 4), operand(WEFT_I32, weft_shape(1), 5)};
    call = (wefti_call){.op = WEFT_OP_CUSTOM_BACKWARD,
                        .attrs = &attrs,
                        .n_inputs = 4,
                        .n_outputs = 2,
                        .inputs = back_in,
                        .outputs = back_out,
                        .name = "mine"};
    cr_assert_eq(run_one(device, &call, (void *[]){x, &n, y, g, gx, &gn}, 6), WEFT_OK, "%s", weft_error_message());
    for (int i = 0; i < 12; i++) cr_assert_eq(gx[i], 2 * g[i]);
    cr_assert_eq(gn, 0);
    custom.op.backward = NULL;
    cr_assert_eq(run_one(device, &call, (void *[]){x, &n, y, g, gx, &gn}, 6), WEFT_E_UNSUPPORTED);
    device->vtable->release(device);
}

/* ---- reduction slot ---- */

/* Only while kernels run, and on all threads: what the program computes beside them is its own. */
Test(cpu_launch, flushes_subnormals_in_kernels_alone) {
#if !defined(__SSE__) && !defined(__aarch64__)
    cr_skip_test("this machine keeps subnormals");
#endif
    enum { N = 100000 };
    static float  a[N], sum[N];
    wefti_device *device = create(WEFTI_CPU_AUTO, 2);
    wefti_attrs   attrs;
    memset(&attrs, 0, sizeof attrs);
    for (int k = 0; k < N; k++) a[k] = k % 2 ? 1e-40f : 1;
    wefti_operand  in[2] = {operand(WEFT_F32, weft_shape(N), 0), operand(WEFT_F32, weft_shape(N), 0)};
    wefti_operand  out = operand(WEFT_F32, weft_shape(N), 1);
    wefti_call     call = {.op = WEFT_OP_ADD, .attrs = &attrs, .n_inputs = 2, .n_outputs = 1, .inputs = in, .outputs = &out};
    wefti_segment  segment = {.calls = &call, .n_calls = 1, .n_buffers = 3};
    wefti_program *program = NULL;
    call.scratch_buffer = 2;
    cr_assert_eq(device->vtable->query(device, &call, &call.scratch_bytes), WEFT_OK);
    void *scratch = malloc((size_t)call.scratch_bytes + 64), *buffers[3] = {a, sum, scratch};
    cr_assert_eq(device->vtable->compile(device, &segment, &program), WEFT_OK);
    wefti_launch launch = {.buffers = buffers};
    cr_assert_eq(device->vtable->launch(program, &launch), WEFT_OK);
    for (int k = 0; k < N; k++) cr_assert_eq(sum[k], k % 2 ? 0 : 2, "element %d is %g", k, (double)sum[k]);
    const void *sources[2] = {a, a};
    cr_assert_eq(device->vtable->reduce(device, sum, sources, 2, N, WEFT_F32, WEFTI_REDUCE_SUM, 1), WEFT_OK);
    for (int k = 0; k < N; k++) cr_assert_eq(sum[k], k % 2 ? 0 : 2, "element %d is reduced to %g", k, (double)sum[k]);
    volatile float own = a[1];
    own = own * 2;
    cr_assert(own > 0, "the program's own arithmetic flushes, too");
    device->vtable->release_program(program);
    free(scratch);
    device->vtable->release(device);
}

static double load(const void *data, int64_t i, weft_dtype dtype) {
    return weft_dtype_is_float(dtype) ? wefti_load_f64(data, i, dtype) : (double)wefti_load_i64(data, i, dtype);
}

Test(cpu_reduce, agrees_with_the_plain_one_to_the_bit) {
    enum { N = 1037 };
    static uint64_t memory[4][N], expected[N];
    for (int isa = WEFTI_CPU_BASELINE; isa < WEFTI_CPU_ISA_COUNT; isa++) {
        if (!wefti_cpu_has((wefti_cpu_isa)isa)) continue;
        wefti_device *device = create((wefti_cpu_isa)isa, 1);
        for (int dtype = 0; dtype < WEFT_DTYPE_COUNT; dtype++)
            for (int op = 0; op < WEFTI_REDUCE_OP_COUNT; op++)
                for (int32_t n = 1; n <= 3; n++) {
                    if (dtype == WEFT_BOOL && op == WEFTI_REDUCE_AVG) continue;
                    for (int k = 0; k < 4; k++)
                        for (int64_t i = 0; i < N; i++) {
                            double value = (double)((i * 37 + k * 101) % 61) / 4 - 7;
                            if (i % 97 == k) value = weft_dtype_is_float((weft_dtype)dtype) ? NAN : 3;
                            wefti_store_f64(memory[k], i, (weft_dtype)dtype, value);
                        }
                    const void *sources[3] = {memory[1], memory[0], memory[2]};
                    int32_t     divisor = op == WEFTI_REDUCE_AVG ? 3 : 1;
                    cr_assert_eq(wefti_cpu_reduce(NULL, expected, sources, n, N, (weft_dtype)dtype, (wefti_reduce_op)op,
                                                  divisor),
                                 WEFT_OK);
                    void *dst = n == 2 ? (void *)memory[0] : memory[3]; /* also onto one of the sources */
                    cr_assert_eq(device->vtable->reduce(device, dst, sources, n, N, (weft_dtype)dtype,
                                                        (wefti_reduce_op)op, divisor),
                                 WEFT_OK);
                    for (int64_t i = 0; i < N; i++) {
                        double want = load(expected, i, (weft_dtype)dtype), got = load(dst, i, (weft_dtype)dtype);
                        cr_assert(want == got || (isnan(want) && isnan(got)),
                                  "%s %s of %d: element %d is %g, expected %g", weft_dtype_name((weft_dtype)dtype),
                                  wefti_cpu_isa_name((wefti_cpu_isa)isa), (int)n, (int)i, got, want);
                    }
                }
        float       x = 1;
        const void *one[1] = {&x};
        cr_assert_eq(device->vtable->reduce(device, &x, one, 0, 1, WEFT_F32, WEFTI_REDUCE_SUM, 1), WEFT_E_INVALID);
        cr_assert_eq(device->vtable->reduce(device, &x, one, 1, 1, WEFT_F32, WEFTI_REDUCE_SUM, 0), WEFT_E_INVALID);
        cr_assert_eq(device->vtable->reduce(device, &x, one, 1, 1, WEFT_F32, (wefti_reduce_op)9, 1), WEFT_E_INVALID);
        cr_assert_eq(device->vtable->reduce(device, &x, one, 1, 1, (weft_dtype)99, WEFTI_REDUCE_SUM, 1), WEFT_E_DTYPE);
        cr_assert_eq(device->vtable->reduce(device, &x, one, 1, 1, WEFT_BOOL, WEFTI_REDUCE_AVG, 1), WEFT_E_DTYPE);
        device->vtable->release(device);
    }
}

Test(cpu_reduce, follows_its_contract) {
    int32_t     a[3] = {-7, 7, INT32_MAX}, b[3] = {0, 0, 1}, out[3];
    const void *ints[2] = {a, b};
    cr_assert_eq(wefti_cpu_reduce(NULL, out, ints, 2, 3, WEFT_I32, WEFTI_REDUCE_AVG, 2), WEFT_OK);
    cr_assert_eq(out[0], -3); /* toward zero */
    cr_assert_eq(out[1], 3);
    uint8_t     p[4] = {0, 0, 1, 1}, q[4] = {0, 1, 0, 1}, r[4];
    const void *bools[2] = {p, q};
    static const wefti_reduce_op ors[] = {WEFTI_REDUCE_SUM, WEFTI_REDUCE_MAX},
                                 ands[] = {WEFTI_REDUCE_PROD, WEFTI_REDUCE_MIN};
    for (int k = 0; k < 2; k++) {
        cr_assert_eq(wefti_cpu_reduce(NULL, r, bools, 2, 4, WEFT_BOOL, ors[k], 1), WEFT_OK);
        for (int i = 0; i < 4; i++) cr_assert_eq(r[i], p[i] | q[i]);
        cr_assert_eq(wefti_cpu_reduce(NULL, r, bools, 2, 4, WEFT_BOOL, ands[k], 1), WEFT_OK);
        for (int i = 0; i < 4; i++) cr_assert_eq(r[i], p[i] & q[i]);
    }
}

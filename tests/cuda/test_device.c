/* The CUDA device's own work on a GPU: memory and its accounts, copies in order, programs that are captured and replayed, errors. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/cpu/cpu.h"
#include "core/iface/custom.h"
#include "core/tensor/operand.h"
#include "core/rules/rules.h"
#include "cuda/gpu.h"
#include "weft/world.h"
#ifdef WEFT_ON_STAND_INS
#include "cuda_host/control.h"
#endif

static wefti_operand vector(int64_t n, int32_t buffer) {
    return (wefti_operand){.dtype = WEFT_F32, .shape = weft_shape(n), .stride = {1}, .buffer = buffer};
}

static void *allocate(wefti_device *device, size_t bytes) {
    void *memory = NULL;
    OK(device->vtable->allocate(device, bytes, "a test", &memory));
    return memory;
}

/* --- memory --- */

Test(cuda_device, keeps_exact_accounts_of_its_memory) {
    NEEDS_GPU();
    wefti_device *device = gpu_open((wefti_cuda_options){0});
    int64_t       held, peak;
    void         *a = allocate(device, 1), *b = allocate(device, 1000), *c = allocate(device, 5 << 20);
    cr_assert_eq((uintptr_t)a % 256 + (uintptr_t)b % 256 + (uintptr_t)c % 256, 0);
    wefti_cuda_memory(device, &held, &peak);
    cr_assert_eq(held, 256 + 1024 + (5 << 20));
    cr_assert_eq(peak, held);
    device->vtable->deallocate(device, c, 5 << 20);
    wefti_cuda_memory(device, &held, &peak);
    cr_assert_eq(held, 256 + 1024);
    cr_assert_eq(peak, 256 + 1024 + (5 << 20));
    cr_assert_eq(allocate(device, (5 << 20) - 100), c, "what was given back is not used again");
    device->vtable->deallocate(device, c, (5 << 20) - 100);
    device->vtable->deallocate(device, a, 1);
    device->vtable->deallocate(device, b, 1000);
    device->vtable->deallocate(device, NULL, 0);
    wefti_cuda_memory(device, &held, &peak);
    cr_assert_eq(held, 0);
    device->vtable->release(device);
}

Test(cuda_device, says_how_much_memory_there_is_not) {
    NEEDS_GPU();
    wefti_device *device = gpu_open((wefti_cuda_options){0});
    void         *memory = device, *small = allocate(device, 4096);
    size_t        too_much = (size_t)1 << 45;
    char          bytes[32];
    snprintf(bytes, sizeof bytes, "%zu", too_much);
    cr_assert_eq(device->vtable->allocate(device, too_much, "a giant", &memory), WEFT_E_NO_MEMORY);
    cr_assert_null(memory);
    cr_assert(strstr(weft_error_message(), bytes) && strstr(weft_error_message(), "a giant") && strstr(weft_error_message(), "holds 4096") &&
              strstr(weft_error_message(), "are free") && strstr(weft_error_message(), "smaller batch"), "%s", weft_error_message());
    cr_assert_eq(device->vtable->allocate(device, SIZE_MAX, "a giant", &memory), WEFT_E_NO_MEMORY);
    memory = allocate(device, 1 << 20); /* it goes on */
    device->vtable->deallocate(device, memory, 1 << 20);
    device->vtable->deallocate(device, small, 4096);
    device->vtable->release(device);
}

/* What is kept for the next who asks goes back to the driver before anybody is refused. */
Test(cuda_device, gives_back_what_it_keeps_before_it_refuses) {
    NEEDS_GPU();
    wefti_device *device = gpu_open((wefti_cuda_options){0});
    size_t        free_bytes = 0, total_bytes = 0;
    cr_assert_eq(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
    size_t half = free_bytes / 10 * 6;
    for (int i = 0; i < 3; i++) { /* each time more than an eighth off: nothing that is kept will do */
        size_t bytes = half - (size_t)(2 - i) * (half / 5);
        void  *memory = allocate(device, bytes);
        device->vtable->deallocate(device, memory, bytes);
    }
    device->vtable->release(device);
}

/* --- copies --- */

static void check_round_trip(wefti_device *device, size_t bytes, unsigned seed) {
    unsigned char *out = malloc(bytes + 1), *in = malloc(bytes + 1);
    for (size_t i = 0; i < bytes; i++) out[i] = (unsigned char)((seed = seed * 1664525u + 1013904223u) >> 24);
    void *memory = allocate(device, bytes);
    OK(device->vtable->write(device, memory, out, bytes));
    OK(device->vtable->read(device, in, memory, bytes));
    cr_assert_eq(memcmp(in, out, bytes), 0, "%zu bytes came back otherwise", bytes);
    device->vtable->deallocate(device, memory, bytes);
    free(out);
    free(in);
}

Test(cuda_device, writes_and_reads_any_number_of_bytes) {
    NEEDS_GPU();
    static const size_t sizes[] = {0, 1, 7, 64, 4096, 65536, 65537, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (4 << 20) + 3, (4 << 20) + 4, 33 << 20};
    wefti_device       *device = gpu_open((wefti_cuda_options){0});
    for (int round = 0; round < 3; round++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) check_round_trip(device, sizes[i], (unsigned)(round * 100 + (int)i));
    device->vtable->release(device);
}

/* Many small writes from one place that changes at once: each must have been taken before the call returns, also when the ring comes round. */
Test(cuda_device, takes_what_is_written_before_it_returns) {
    NEEDS_GPU();
    enum { WRITES = 4000, WORDS = 3000 };
    wefti_device *device = gpu_open((wefti_cuda_options){0});
    int32_t      *host = malloc(WORDS * sizeof *host), *all = malloc((size_t)WRITES * 64);
    char         *memory = allocate(device, (size_t)WRITES * 64 + WORDS * sizeof *host);
    for (int32_t i = 0; i < WRITES; i++) {
        for (int k = 0; k < WORDS; k++) host[k] = i + k;
        OK(device->vtable->write(device, memory + (size_t)i * 64, host, WORDS * sizeof *host)); /* the next one overwrites all but 64 bytes */
    }
    OK(device->vtable->read(device, all, memory, (size_t)WRITES * 64));
    for (int32_t i = 0; i < WRITES; i++)
        for (int k = 0; k < 16; k++) cr_assert_eq(all[i * 16 + k], i + k);
    device->vtable->deallocate(device, memory, (size_t)WRITES * 64 + WORDS * sizeof *host);
    free(host);
    free(all);
    device->vtable->release(device);
}

Test(cuda_device, copies_beside_the_computing_in_order) {
    NEEDS_GPU();
    enum { N = 1 << 20 };
    wefti_device *device = gpu_open((wefti_cuda_options){0});
    float        *host = aligned_alloc(4096, N * sizeof *host), *memory = allocate(device, N * sizeof *host), back = 0;
    device->vtable->pin(device, host, N * sizeof *host);
    for (int round = 0; round < 200; round++) { /* more than there are tickets */
        uint64_t    ticket;
        float       value = (float)round;
        weft_status status;
        OK(device->vtable->write(device, memory + N - 1, &value, sizeof value));
        OK(device->vtable->copy_out(device, host, memory, N * sizeof *host, &ticket));
        while ((status = device->vtable->copy_test(device, ticket)) == WEFT_E_AGAIN) continue;
        OK(status);
        cr_assert_eq(host[N - 1], value, "a copy out did not wait for what was written before it");
        host[N - 1] = value + 0.5f;
        OK(device->vtable->copy_in(device, memory, host, N * sizeof *host));
        OK(device->vtable->copy_join(device));
        OK(device->vtable->read(device, &back, memory + N - 1, sizeof back));
        cr_assert_eq(back, value + 0.5f, "what came after the join did not wait for a copy in");
    }
    device->vtable->unpin(device, host, N * sizeof *host);
    device->vtable->deallocate(device, memory, N * sizeof *host);
    device->vtable->release(device);
    free(host);
}

/* --- programs --- */

enum { LENGTH = 1000 };

/* y = x + x; z = y * y, in three buffers. */
static wefti_program *two_calls(wefti_device *device) {
    static const wefti_attrs none;
    wefti_operand add[3] = {vector(LENGTH, 0), vector(LENGTH, 0), vector(LENGTH, 1)}, mul[3] = {vector(LENGTH, 1), vector(LENGTH, 1), vector(LENGTH, 2)};
    wefti_call    calls[2] = {{.op = WEFT_OP_ADD, .attrs = &none, .n_inputs = 2, .n_outputs = 1, .inputs = add, .outputs = add + 2, .name = "twice"},
                              {.op = WEFT_OP_MUL, .attrs = &none, .n_inputs = 2, .n_outputs = 1, .inputs = mul, .outputs = mul + 2, .name = "squared"}};
    wefti_program *program = NULL;
    OK(device->vtable->compile(device, &(wefti_segment){.calls = calls, .n_calls = 2, .n_buffers = 3}, &program));
    return program;
}

static void check_launch(wefti_device *device, wefti_program *program, void **buffers, float start, uint64_t *profile) {
    float x[LENGTH], z[LENGTH];
    for (int i = 0; i < LENGTH; i++) x[i] = start + (float)i;
    OK(device->vtable->write(device, buffers[0], x, sizeof x));
    OK(device->vtable->launch(program, &(wefti_launch){.buffers = buffers, .profile_ns = profile}));
    OK(device->vtable->read(device, z, buffers[2], sizeof z));
    for (int i = 0; i < LENGTH; i++) cr_assert_eq(z[i], 4 * x[i] * x[i], "element %d is %g", i, z[i]);
}

/* Other values every time; other addresses now and then, also back to those of before. */
static void launch_often(bool no_capture) {
    wefti_device  *device = gpu_open((wefti_cuda_options){.no_capture = no_capture});
    wefti_program *program = two_calls(device);
    void          *buffers[5];
    uint64_t       profile[2] = {0};
    for (int i = 0; i < 5; i++) buffers[i] = allocate(device, LENGTH * sizeof(float));
    for (int round = 0; round < 40; round++) {
        void *given[3] = {buffers[round / 10 % 2 ? 3 : 0], buffers[1], buffers[round % 7 == 6 ? 4 : 2]};
        check_launch(device, program, given, (float)(round % 5), round % 9 == 8 ? profile : NULL);
    }
    cr_assert(profile[0] > 0 && profile[1] > 0, "nothing was measured");
    device->vtable->release_program(program);
    for (int i = 0; i < 5; i++) device->vtable->deallocate(device, buffers[i], LENGTH * sizeof(float));
    device->vtable->release(device);
}
Test(cuda_device, replays_programs_with_other_values_and_addresses) {
    NEEDS_GPU();
    if (!wefti_cuda_kernels[WEFT_OP_ADD][0]) cr_skip_test("there is no kernel for add");
    launch_often(false);
}
Test(cuda_device, launches_call_by_call_where_told) {
    NEEDS_GPU();
    if (!wefti_cuda_kernels[WEFT_OP_ADD][0]) cr_skip_test("there is no kernel for add");
    launch_often(true);
}

/* A function of the application's cuts a program: the parts around it are captured. */
static weft_status negate(const weft_custom_data *inputs, const void *options, weft_custom_data *outputs_out) {
    const float *x = inputs[0].data;
    float       *y = outputs_out[0].data;
    (void)options;
    for (int64_t i = 0; i < weft_shape_elements(inputs[0].shape); i++) y[i] = -x[i];
    return x[0] == 13 ? WEFT_E_STATE : WEFT_OK;
}

Test(cuda_device, calls_the_applications_functions_between_graphs) {
    NEEDS_GPU();
    if (!wefti_cuda_kernels[WEFT_OP_ADD][0]) cr_skip_test("there is no kernel for add");
    static wefti_custom custom = {.op = {.name = "negate", .n_inputs = 1, .n_outputs = 1, .forward = negate}};
    wefti_device  *device = gpu_open((wefti_cuda_options){0});
    wefti_attrs    none = {0}, attrs = {.custom = {.custom = &custom}};
    wefti_operand  a[3] = {vector(4, 0), vector(4, 0), vector(4, 1)}, b[2] = {vector(2, 1), vector(2, 2)}, c[3] = {vector(2, 2), vector(2, 0), vector(2, 3)};
    wefti_program *program = NULL;
    void          *buffers[4];
    b[0].stride[0] = 2; /* every other element */
    wefti_call calls[3] = {{.op = WEFT_OP_ADD, .attrs = &none, .n_inputs = 2, .n_outputs = 1, .inputs = a, .outputs = a + 2, .name = "a"},
                           {.op = WEFT_OP_CUSTOM, .attrs = &attrs, .n_inputs = 1, .n_outputs = 1, .inputs = b, .outputs = b + 1, .name = "b"},
                           {.op = WEFT_OP_ADD, .attrs = &none, .n_inputs = 2, .n_outputs = 1, .inputs = c, .outputs = c + 2, .name = "c"}};
    OK(device->vtable->compile(device, &(wefti_segment){.calls = calls, .n_calls = 3, .n_buffers = 4}, &program));
    for (int i = 0; i < 4; i++) buffers[i] = allocate(device, 64);
    for (int round = 0; round < 6; round++) {
        float x[4] = {1 + (float)round, 2, 3, 4}, y[2];
        OK(device->vtable->write(device, buffers[0], x, sizeof x));
        OK(device->vtable->launch(program, &(wefti_launch){.buffers = buffers}));
        OK(device->vtable->read(device, y, buffers[3], sizeof y));
        cr_assert(y[0] == -x[0] && y[1] == -2 * x[2] + x[1], "%g %g", y[0], y[1]);
    }
    float bad[4] = {6.5f};
    OK(device->vtable->write(device, buffers[0], bad, sizeof bad));
    cr_assert_eq(device->vtable->launch(program, &(wefti_launch){.buffers = buffers}), WEFT_E_STATE);
    cr_assert(strstr(weft_error_message(), "custom op 'negate': its forward function failed"), "%s", weft_error_message());
    device->vtable->release_program(program);
    for (int i = 0; i < 4; i++) device->vtable->deallocate(device, buffers[i], 64);
    device->vtable->release(device);
}

/* --- updates --- */

enum { PARAMETERS = 130, HYPER = 1 };

typedef struct updates {
    wefti_attrs   attrs[2]; /* with weight decay, and without */
    wefti_operand operands[PARAMETERS][5];
    wefti_call    calls[PARAMETERS];
    int64_t       floats;
} updates;

/* Parameters of all sizes, each with its gradient and states behind it in buffer 0. One lies askew; one's gradient is another parameter. */
static void make_updates(updates *u, weft_dtype dtype) {
    memset(u, 0, sizeof *u);
    for (int k = 0; k < 2; k++) u->attrs[k].update.rule = wefti_rule_of(WEFTI_RULE_ADAM);
    u->attrs[0].update.decay = 0.1;
    for (int k = 0; k < 2; k++) u->attrs[k].update.key = dtype == WEFT_BF16 ? 1000 + (uint64_t)k : 0;
    for (int i = 0; i < PARAMETERS; i++) {
        int64_t        n = i == 7 ? 40001 : i == 50 || i == 51 ? 400 : 1 + i * 37 % 700;
        wefti_operand *of = u->operands[i];
        for (int k = 0; k < 4; k++) {
            int at = k < 2 ? k : k + 1;
            of[at] = vector(n, 0);
            of[at].offset_bytes = (u->floats + (i == 60)) * 4;
            u->floats += (n + 16) / 16 * 16;
        }
        of[0].dtype = dtype;
        of[2] = (wefti_operand){.dtype = WEFT_F64, .shape = weft_shape(WEFTI_HYPER_COUNT), .stride = {1}, .buffer = HYPER};
        u->calls[i] = (wefti_call){.op = WEFT_OP_UPDATE, .attrs = &u->attrs[i % 2], .n_inputs = 5, .n_outputs = 1, .inputs = of, .outputs = of, .name = "update"};
    }
    if (dtype == WEFT_F32) u->operands[51][1].offset_bytes = u->operands[50][0].offset_bytes;
}

/* The memory after two steps of all calls in programs of `each`. */
static float *after_updates(wefti_device *device, const updates *u, int each, int64_t *launches_out) {
    double         hyper[WEFTI_HYPER_COUNT] = {0.01, 1, 0, 3, 0, 0.9, 0.999, 1e-8, 1};
    float         *values = malloc((size_t)u->floats * sizeof *values);
    void          *buffers[2] = {allocate(device, (size_t)u->floats * sizeof *values), allocate(device, sizeof hyper)};
    wefti_program *programs[PARAMETERS];
    int            n = 0;
    for (int64_t i = 0; i < u->floats; i++) {
        uint32_t half = wefti_f32_to_bf16(0.01f + (float)(i % 997) / 997);
        values[i] = wefti_f32_from_bits(half << 16 | half); /* good numbers in f32 and, two of them, in bf16 */
    }
    OK(device->vtable->write(device, buffers[0], values, (size_t)u->floats * sizeof *values));
    OK(device->vtable->write(device, buffers[1], hyper, sizeof hyper));
    for (int i = 0; i < PARAMETERS; i += each)
        OK(device->vtable->compile(device, &(wefti_segment){.calls = u->calls + i, .n_calls = each, .n_buffers = 2}, &programs[n++]));
    *launches_out = 0;
#ifdef WEFT_ON_STAND_INS
    *launches_out = -wefti_cuda_host_launches();
#endif
    for (int step = 0; step < 2; step++)
        for (int p = 0; p < n; p++) OK(device->vtable->launch(programs[p], &(wefti_launch){.buffers = buffers}));
    OK(device->vtable->read(device, values, buffers[0], (size_t)u->floats * sizeof *values));
#ifdef WEFT_ON_STAND_INS
    *launches_out += wefti_cuda_host_launches();
#endif
    for (int p = 0; p < n; p++) device->vtable->release_program(programs[p]);
    device->vtable->deallocate(device, buffers[0], (size_t)u->floats * sizeof *values);
    device->vtable->deallocate(device, buffers[1], sizeof hyper);
    return values;
}

Test(cuda_device, updates_many_parameters_by_few_launches) {
    NEEDS_GPU();
    static updates u;
    wefti_device  *device = gpu_open((wefti_cuda_options){0});
    int64_t        alone_launches, together_launches;
    make_updates(&u, WEFT_F32);
    float *alone = after_updates(device, &u, 1, &alone_launches), *together = after_updates(device, &u, PARAMETERS, &together_launches);
    for (int64_t i = 0; i < u.floats; i++) cr_assert_eq(alone[i], together[i], "float %lld is %g alone and %g together", (long long)i, alone[i], together[i]);
#ifdef WEFT_ON_STAND_INS /* [0, 50] and [51, 129]: the latter with one that lies askew */
    cr_assert_eq(alone_launches, 2 * PARAMETERS);
    cr_assert_eq(together_launches, 2 * (1 + 2 + 1), "%lld launches", (long long)together_launches);
#endif
    free(alone);
    free(together);
    device->vtable->release(device);
}

/* Parameters in bf16, rounded at random: the same random numbers, and bits, on the CPU, alone and together. */
Test(cuda_device, rounds_parameters_in_bf16_as_the_cpu_does) {
    NEEDS_GPU();
    static updates u;
    wefti_device  *device = gpu_open((wefti_cuda_options){0}), *cpu = NULL;
    int64_t        launches;
    make_updates(&u, WEFT_BF16);
    OK(wefti_cpu_create(&(wefti_cpu_options){.threads = {.count = 2}}, &cpu));
    float *alone = after_updates(device, &u, 1, &launches), *together = after_updates(device, &u, PARAMETERS, &launches), *due = after_updates(cpu, &u, 1, &launches);
    cr_assert_eq(memcmp(alone, together, (size_t)u.floats * sizeof *alone), 0, "alone and together differ");
    for (int64_t i = 0; i < u.floats; i++) cr_assert_eq(wefti_f32_bits(alone[i]), wefti_f32_bits(due[i]), "word %lld differs from the CPU's", (long long)i);
    free(alone);
    free(together);
    free(due);
    device->vtable->release(device);
    cpu->vtable->release(cpu);
}

/* --- a loss with its gradient --- */

enum { LOSS_ROWS = 6, LOSS_BUFFERS = 6 };

/* Losses, log-sum-exps and gradients of one program of both calls, or of one for each; gives the launches. */
static int64_t losses(wefti_device *device, weft_dtype dtype, int64_t classes, bool together, bool depends, uint8_t *out, size_t out_bytes) {
    static const int32_t labels[LOSS_ROWS] = {0, 7, -1, 3, 1 << 20, 1024};
    wefti_attrs          attrs;
    wefti_operand        x[LOSS_BUFFERS];
    void                *buffers[LOSS_BUFFERS];
    size_t               bytes[LOSS_BUFFERS];
    wefti_program       *programs[2];
    int64_t              launches = 0;
    memset(&attrs, 0, sizeof attrs);
    attrs.loss.has_ignored = 1, attrs.loss.ignored = -1, attrs.loss.smoothing = 0.1;
    for (int i = 0; i < LOSS_BUFFERS; i++) { /* logits, labels, gradients of rows, losses, log-sum-exps, gradients */
        bool wide = i == 0 || i == 5;
        x[i] = (wefti_operand){.dtype = wide ? dtype : i == 1 ? WEFT_I32 : WEFT_F32, .buffer = i};
        x[i].shape = wide ? weft_shape(LOSS_ROWS, classes) : weft_shape(LOSS_ROWS);
        wefti_contiguous_strides(x[i].shape, x[i].stride);
        bytes[i] = (size_t)wefti_operand_elements(&x[i]) * weft_dtype_bytes(x[i].dtype);
        buffers[i] = allocate(device, bytes[i]);
    }
    uint8_t *values = calloc(bytes[0], 1);
    for (int64_t i = 0; i < LOSS_ROWS * classes; i++) wefti_store_f64(values, i, dtype, (double)(i * 37 % 1009) / 100 - 5);
    OK(device->vtable->write(device, buffers[0], values, bytes[0]));
    OK(device->vtable->write(device, buffers[1], labels, sizeof labels));
    for (int64_t i = 0; i < LOSS_ROWS; i++) wefti_store_f64(values, i, WEFT_F32, 0.25 + (double)i);
    OK(device->vtable->write(device, buffers[2], values, bytes[2]));
    wefti_operand forward[4] = {x[0], x[1], x[3], x[4]}, backward[5] = {depends ? x[3] : x[2], x[0], x[1], x[4], x[5]};
    wefti_call    calls[2] = {{.op = WEFT_OP_CROSS_ENTROPY, .attrs = &attrs, .n_inputs = 2, .n_outputs = 2, .inputs = forward, .outputs = forward + 2, .name = "loss"},
                              {.op = WEFT_OP_CROSS_ENTROPY_BACKWARD, .attrs = &attrs, .n_inputs = 4, .n_outputs = 1, .inputs = backward,
                               .outputs = backward + 4, .name = "gradient"}};
    int n = together ? 1 : 2;
    for (int p = 0; p < n; p++)
        OK(device->vtable->compile(device, &(wefti_segment){.calls = calls + p, .n_calls = together ? 2 : 1, .n_buffers = LOSS_BUFFERS}, &programs[p]));
#ifdef WEFT_ON_STAND_INS
    launches -= wefti_cuda_host_launches();
#endif
    for (int p = 0; p < n; p++) OK(device->vtable->launch(programs[p], &(wefti_launch){.buffers = buffers}));
    cr_assert_leq(bytes[3] + bytes[4] + bytes[5], out_bytes);
    for (int i = 3; i < LOSS_BUFFERS; out += bytes[i++]) OK(device->vtable->read(device, out, buffers[i], bytes[i]));
#ifdef WEFT_ON_STAND_INS
    launches += wefti_cuda_host_launches();
#endif
    for (int p = 0; p < n; p++) device->vtable->release_program(programs[p]);
    for (int i = 0; i < LOSS_BUFFERS; i++) device->vtable->deallocate(device, buffers[i], bytes[i]);
    free(values);
    return launches;
}

Test(cuda_device, computes_a_loss_with_its_gradient_to_the_same_bits) {
    NEEDS_GPU();
    static const struct { weft_dtype dtype; int64_t classes; } cases[] = {{WEFT_F32, 1028}, {WEFT_F32, 1031}, {WEFT_BF16, 4104}, {WEFT_BF16, 4105}, {WEFT_F16, 2056}};
    static uint8_t alone[2][1 << 18];
    wefti_device  *device = gpu_open((wefti_cuda_options){0});
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int depends = 0; depends < 2; depends++) {
            memset(alone, 0, sizeof alone);
            int64_t one_by_one = losses(device, cases[i].dtype, cases[i].classes, false, depends, alone[0], sizeof alone[0]);
            int64_t both = losses(device, cases[i].dtype, cases[i].classes, true, depends, alone[1], sizeof alone[1]);
            cr_assert_eq(memcmp(alone[0], alone[1], sizeof alone[0]), 0, "case %zu", i);
#ifdef WEFT_ON_STAND_INS
            cr_assert(one_by_one == 2 && both == (depends ? 2 : 1), "%lld launches, and %lld together", (long long)one_by_one, (long long)both);
#else
            (void)one_by_one, (void)both;
#endif
        }
    device->vtable->release(device);
}

/* --- attention by rows --- */

enum { ATTENTION_BUFFERS = 11, SCRATCH = 10 }; /* g, q, k, v, o, lse, then dq, dk, dv or all three, and scratch */

/* What attention and its gradient give, o, dq, dk, dv as [B, H, T, D] in f64 one after the other. */
static void attention(wefti_device *device, weft_dtype dtype, weft_shape shape, int by_rows, double *out) {
    int64_t       b = shape.dim[0], h = shape.dim[1], t = shape.dim[2], d = shape.dim[3], n = b * h * t * d;
    size_t        bytes[ATTENTION_BUFFERS], each = weft_dtype_bytes(dtype);
    wefti_operand x[ATTENTION_BUFFERS];
    void         *buffers[ATTENTION_BUFFERS];
    wefti_attrs   attrs;
    uint8_t      *host = calloc((size_t)n, 3 * each);
    memset(&attrs, 0, sizeof attrs);
    attrs.attention.scale = 0.25, attrs.attention.causal = 1, attrs.attention.by_rows = by_rows;
    for (int i = 0; i < SCRATCH; i++) {
        x[i] = (wefti_operand){.dtype = i == 5 && dtype != WEFT_F64 ? WEFT_F32 : dtype, .buffer = i, .shape = i == 5 ? weft_shape(b, h, t) : shape};
        if (by_rows && i == 4) x[i].shape = weft_shape(b, t, h * d);
        if (by_rows && i == 6) x[i].shape = weft_shape(b, t, 3 * h, d);
        wefti_contiguous_strides(x[i].shape, x[i].stride);
        bytes[i] = (size_t)wefti_operand_elements(&x[i]) * weft_dtype_bytes(x[i].dtype);
        buffers[i] = allocate(device, bytes[i]);
        for (int64_t e = 0; e < n && i < 4; e++) wefti_store_f64(host, e, dtype, (double)((e * 37 + i * 11) % 101) / 50 - 1);
        if (i < 4) OK(device->vtable->write(device, buffers[i], host, bytes[i]));
    }
    wefti_operand forward[5] = {x[1], x[2], x[3], x[4], x[5]}, seen = x[4];
    seen.shape = shape;
    if (by_rows) seen.stride[0] = t * h * d, seen.stride[1] = d, seen.stride[2] = h * d, seen.stride[3] = 1;
    wefti_operand backward[9] = {x[0], x[1], x[2], x[3], seen, x[5], x[6], x[7], x[8]};
    wefti_call    calls[2] = {{.op = WEFT_OP_ATTENTION, .attrs = &attrs, .n_inputs = 3, .n_outputs = 2, .inputs = forward, .outputs = forward + 3, .name = "attention"},
                              {.op = WEFT_OP_ATTENTION_BACKWARD, .attrs = &attrs, .n_inputs = 6, .n_outputs = by_rows ? 1 : 3, .inputs = backward,
                               .outputs = backward + 6, .name = "gradient"}};
    int64_t       most = 0;
    for (int c = 0; c < 2; c++) {
        OK(device->vtable->query(device, &calls[c], &calls[c].scratch_bytes));
        calls[c].scratch_buffer = SCRATCH;
        if (calls[c].scratch_bytes > most) most = calls[c].scratch_bytes;
    }
    bytes[SCRATCH] = (size_t)most + 1;
    buffers[SCRATCH] = allocate(device, bytes[SCRATCH]);
    wefti_program *program = NULL;
    OK(device->vtable->compile(device, &(wefti_segment){.calls = calls, .n_calls = 2, .n_buffers = ATTENTION_BUFFERS}, &program));
    OK(device->vtable->launch(program, &(wefti_launch){.buffers = buffers}));
    for (int r = 0; r < 4; r++) { /* o, dq, dk, dv */
        int     from = r == 0 ? 4 : by_rows ? 6 : 5 + r;
        int64_t heads = by_rows && r > 0 ? 3 * h : h, first = by_rows && r > 0 ? (r - 1) * h : 0;
        OK(device->vtable->read(device, host, buffers[from], bytes[from]));
        for (int64_t e = 0; e < n; e++) {
            int64_t at_d = e % d, at_t = e / d % t, at_h = e / d / t % h, at_b = e / d / t / h;
            out[r * n + e] = wefti_load_f64(host, by_rows ? ((at_b * t + at_t) * heads + first + at_h) * d + at_d : e, dtype);
        }
    }
    device->vtable->release_program(program);
    for (int i = 0; i < ATTENTION_BUFFERS; i++) device->vtable->deallocate(device, buffers[i], bytes[i]);
    free(host);
}

/* cuDNN may take other engines for other strides: the 16-bit case that is large enough for it is compared to a rounding. */
Test(cuda_device, lays_attention_by_rows) {
    NEEDS_GPU();
    static const struct { weft_dtype dtype; weft_shape shape; } cases[] = {
        {WEFT_F32, {.rank = 4, .dim = {2, 3, 10, 5}}}, {WEFT_F64, {.rank = 4, .dim = {1, 2, 70, 3}}}, {WEFT_BF16, {.rank = 4, .dim = {2, 2, 9, 8}}}, {WEFT_BF16, {.rank = 4, .dim = {2, 3, 128, 64}}}};
    static double by_heads[1 << 18], by_rows[1 << 18];
    wefti_device *device = gpu_open((wefti_cuda_options){0});
    cr_assert(device->vtable->attention_by_rows);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t n = 4 * (size_t)weft_shape_elements(cases[i].shape);
        double room = i == 3 ? 0.02 : 0;
        cr_assert_leq(n, sizeof by_heads / sizeof *by_heads);
        attention(device, cases[i].dtype, cases[i].shape, 0, by_heads);
        attention(device, cases[i].dtype, cases[i].shape, 1, by_rows);
        for (size_t e = 0; e < n; e++)
            cr_assert_leq(fabs(by_heads[e] - by_rows[e]), room * (1 + fabs(by_heads[e])), "case %zu, element %zu: %g by heads, %g by rows", i, e, by_heads[e], by_rows[e]);
    }
    device->vtable->release(device);
}

/* --- errors --- */

/* An address that is nobody's: from then on the device says so, and the process goes on without it. */
Test(cuda_device, stays_broken_after_a_fault_and_says_so) {
    NEEDS_GPU();
#ifdef WEFT_ON_STAND_INS
    cr_skip_test("a wild address ends the process here");
#endif
    if (!wefti_cuda_kernels[WEFT_OP_ADD][0]) cr_skip_test("there is no kernel for add");
    wefti_device  *device = gpu_open((wefti_cuda_options){.no_capture = true});
    static const wefti_attrs none;
    wefti_operand  add[3] = {vector(LENGTH, 0), vector(LENGTH, 1), vector(LENGTH, 2)};
    wefti_call     call = {.op = WEFT_OP_ADD, .attrs = &none, .n_inputs = 2, .n_outputs = 1, .inputs = add, .outputs = add + 2, .name = "astray"};
    wefti_program *program = NULL;
    void          *memory = NULL, *buffers[3] = {allocate(device, LENGTH * 4), allocate(device, LENGTH * 4), allocate(device, LENGTH * 4)};
    add[1].offset_bytes = (int64_t)1 << 42; /* nobody's */
    OK(device->vtable->compile(device, &(wefti_segment){.calls = &call, .n_calls = 1, .n_buffers = 3}, &program));
    float          out[4];
    weft_status    status = device->vtable->launch(program, &(wefti_launch){.buffers = buffers});
    if (status == WEFT_OK) status = device->vtable->write(device, buffers[0], out, sizeof out);
    for (int i = 0; i < 3 && status == WEFT_OK; i++) status = device->vtable->read(device, out, buffers[2], sizeof out);
    cr_assert_eq(status, WEFT_E_DEVICE, "%s", weft_status_name(status));
    cr_assert(strstr(weft_error_message(), "add 'astray'"), "%s", weft_error_message());
    if (wefti_cuda_of(device)->broken != WEFT_OK) {
        cr_assert_eq(device->vtable->allocate(device, 64, "a test", &memory), WEFT_E_DEVICE);
        cr_assert(strstr(weft_error_message(), "failed before"), "%s", weft_error_message());
        cr_assert_eq(device->vtable->launch(program, &(wefti_launch){.buffers = buffers}), WEFT_E_DEVICE);
    }
    device->vtable->release_program(program);
    device->vtable->release(device);
}

Test(cuda_device, refuses_what_no_kernel_computes) {
    NEEDS_GPU();
    wefti_device *device = gpu_open((wefti_cuda_options){0});
    wefti_attrs   none = {0};
    wefti_operand x = vector(4, 0), y = vector(5, 1);
    int64_t       scratch = 0;
    wefti_call    call = {.op = WEFT_OP_ADD, .attrs = &none, .n_inputs = 1, .n_outputs = 1, .inputs = &x, .outputs = &y, .name = "sum"};
    cr_assert_neq(device->vtable->query(device, &call, &scratch), WEFT_OK);
    cr_assert(strstr(weft_error_message(), "'sum'"), "%s", weft_error_message());
    device->vtable->release(device);
}

/* --- worlds --- */

Test(cuda_device, serves_two_worlds_on_one_gpu) {
    NEEDS_GPU();
    weft_world *one = NULL, *two = NULL;
    OK(weft_world_create(&(weft_world_options){.size = 1, .device = "cuda:0"}, &one));
    OK(weft_world_create(&(weft_world_options){.size = 1, .device = "cuda"}, &two));
    weft_world_release(one);
    weft_world_release(two);
}

/* Products of rows with the matrices that they chose (EXPERT_MATMUL and its gradient) on the CPU device, beside the plain product of as many rows: what
 * gathering rows by expert costs. Choices are uneven, as gates make them. */
#include <stdlib.h>

#include "bench.h"
#include "core/cpu/cpu.h"
#include "core/tensor/operand.h"

enum { WINDOWS = 9, ROWS = 2048, IN = 384, OUT = 1536 };

static void must(weft_status status) {
    if (status == WEFT_OK) return;
    fprintf(stderr, "error: %s\n", weft_error_message());
    exit(1);
}

static wefti_operand operand(int32_t buffer, weft_dtype dtype, weft_shape shape) {
    wefti_operand made = {.dtype = dtype, .shape = shape, .buffer = buffer};
    wefti_contiguous_strides(shape, made.stride);
    return made;
}

/* Buffers: x or a, w or b, the index, the result, scratch. */
typedef struct product {
    wefti_device  *device;
    wefti_program *program;
    void          *buffers[5];
    size_t         bytes[5];
} product;

static void open_product(product *p, weft_op op, int64_t experts, wefti_attrs *attrs) {
    bool          backward = op == WEFT_OP_EXPERT_MATMUL_BACKWARD_WEIGHT, plain = op == WEFT_OP_MATMUL;
    weft_shape    w = plain ? weft_shape(IN, OUT) : weft_shape(experts, IN, OUT), y = weft_shape(ROWS, OUT);
    wefti_operand inputs[3] = {operand(0, WEFT_F32, weft_shape(ROWS, IN)), operand(1, WEFT_F32, backward ? y : w), operand(2, WEFT_I32, weft_shape(ROWS))};
    wefti_operand output = operand(3, WEFT_F32, backward ? w : y);
    *attrs = (wefti_attrs){.expert = {.repeat = 1, .experts = backward ? experts : 0}};
    if (plain) *attrs = (wefti_attrs){.matmul = {.trans_a = 0}};
    wefti_call call = {.op = op, .attrs = attrs, .n_inputs = plain ? 2 : 3, .n_outputs = 1, .inputs = inputs, .outputs = &output, .scratch_buffer = 4};
    must(p->device->vtable->query(p->device, &call, &call.scratch_bytes));
    must(p->device->vtable->compile(p->device, &(wefti_segment){.calls = &call, .n_calls = 1, .n_buffers = 5}, &p->program));
    for (int i = 0; i < 3; i++) p->bytes[i] = (size_t)weft_shape_elements(inputs[i].shape) * 4;
    p->bytes[3] = (size_t)weft_shape_elements(output.shape) * 4;
    p->bytes[4] = (size_t)call.scratch_bytes;
    for (int i = 0; i < 5; i++) must(p->device->vtable->allocate(p->device, p->bytes[i], "a bench", &p->buffers[i]));
    for (int k = 0; k < 2; k++)
        for (size_t i = 0; i < p->bytes[k] / 4; i++) ((float *)p->buffers[k])[i] = (float)(i * 37 % 101) / 101 - 0.5f;
    for (int64_t i = 0; i < ROWS; i++) ((int32_t *)p->buffers[2])[i] = (int32_t)((i * i + i / 3) % (2 * experts) % experts);
}

static void close_product(product *p) {
    p->device->vtable->release_program(p->program);
    for (int i = 0; i < 5; i++) p->device->vtable->deallocate(p->device, p->buffers[i], p->bytes[i]);
}

static bench_spread rate_of(product *p, double seconds) {
    double        rates[WINDOWS];
    wefti_launch  given = {.buffers = p->buffers};
    must(p->device->vtable->launch(p->program, &given));
    for (int window = 0; window < WINDOWS; window++) {
        int    count = 0;
        double begin = bench_now_s(), end = begin;
        for (; end - begin < seconds; end = bench_now_s(), count++) must(p->device->vtable->launch(p->program, &given));
        rates[window] = 1e-9 * 2.0 * ROWS * IN * OUT * count / (end - begin);
    }
    return bench_spread_of(rates, WINDOWS);
}

int bench_experts(int argc, char **argv) {
    static const int64_t counts[] = {1, 8, 32};
    static const weft_op ops[] = {WEFT_OP_EXPERT_MATMUL, WEFT_OP_EXPERT_MATMUL_BACKWARD_WEIGHT};
    double               threads = 1, seconds = 0.1;
    const char          *json_path = NULL;
    const bench_option   options[] = {{"threads", "threads of the device", BENCH_NUMBER, &threads},
                                      {"seconds", "of a window; there are nine", BENCH_NUMBER, &seconds},
                                      {"json", "file for the records", BENCH_TEXT, &json_path},
                                      {0}};
    wefti_attrs attrs;
    product     p = {0};
    bench_read_options(argc, argv, "Products of rows with the matrices that they chose, on the CPU device, f32.", options);
    FILE *json = bench_open_json(json_path);
    must(wefti_cpu_create(&(wefti_cpu_options){.threads = {.count = (int32_t)threads}}, &p.device));
    printf("%-52s %10s %10s %10s %10s\n", "rows x in x out, experts", "GFLOP/s", "low", "high", "of plain");
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        for (size_t k = 0; k < 2; k++) {
            char what[96];
            open_product(&p, WEFT_OP_MATMUL, 1, &attrs);
            bench_spread plain = rate_of(&p, seconds);
            close_product(&p);
            open_product(&p, ops[k], counts[i], &attrs);
            bench_spread spread = rate_of(&p, seconds);
            close_product(&p);
            snprintf(what, sizeof what, "%d x %d x %d, %d experts, %s", ROWS, IN, OUT, (int)counts[i], wefti_ops[ops[k]].name);
            printf("%-52s %10.1f %10.1f %10.1f %10.2f\n", what, spread.median, spread.low, spread.high, spread.median / plain.median);
            bench_write(json, &(bench_record){.bench = "experts", .what = what, .metric = "rate", .unit = "GFLOP/s", .spread = spread, .limit = plain.median});
        }
    p.device->vtable->release(p.device);
    if (json) fclose(json);
    return 0;
}

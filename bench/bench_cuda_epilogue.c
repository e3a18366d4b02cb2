/* Products of the CUDA device with what follows them, beside the plain product and a fused kernel of ours behind it: those of GPT-2 124M with a batch
 * of 64 sequences of 1024, forward and backward.
 *
 * `together` is the FUSED_MATMUL as the device chooses to compute it, which may be the two calls apart: then the ratio is 1. Each case is first
 * compared with the two calls. Without a GPU there is nothing to do, and it says so; --rows tries the file anywhere. */
#include <stdlib.h>
#include <string.h>

#include "core/iface/world.h"
#include "core/tensor/operand.h"
#include "cuda_call.h"

enum { TIMES = 8 };

/* What follows, by letters: b a row added, r a matrix added, g gelu_tanh, G its gradient; then k: what stood before is stored, s: sums of the columns.
 * "S" alone: the sums of what the weight's gradient multiplies. */
typedef struct epilogue_case {
    const char *name, *what;
    int64_t     m, n, k; /* m or, where a is turned, k are rows of the batch */
    bool        turn_a, turn_b;
} epilogue_case;

static const epilogue_case cases[] = {
    {"qkv with bias", "b", 65536, 2304, 768, false, true},
    {"up with bias and gelu, for inference", "bg", 65536, 3072, 768, false, true},
    {"up with bias and gelu, for training", "bgk", 65536, 3072, 768, false, true},
    {"out with bias and residual", "br", 65536, 768, 768, false, true},
    {"down with bias and residual", "br", 65536, 768, 3072, false, true},
    {"gradient of gelu", "G", 65536, 3072, 768, false, false},
    {"gradients of gelu and bias", "Gs", 65536, 3072, 768, false, false},
    {"gradients of qkv's weight and bias", "S", 2304, 768, 65536, true, false},
};

static wefti_fused program; /* of the case at hand */

/* The program, and the operands that it reads and writes, from `at` on. */
static int32_t follow(cuda_call *call, const char *what, weft_dtype dtype, weft_shape space, int32_t at) {
    memset(&program, 0, sizeof program);
    program.space = space;
    program.n_inputs = 1;
    for (; *what && *what != 'k' && *what != 's'; what++) {
        int32_t                  j = program.n_instructions++;
        wefti_fused_instruction *it = &program.instruction[j];
        it->op = *what == 'g' ? WEFT_OP_GELU_TANH : *what == 'G' ? WEFT_OP_GELU_TANH_BACKWARD : WEFT_OP_ADD;
        it->dtype = dtype;
        it->source[0] = -j;
        if (*what == 'g') continue;
        it->source[1] = program.n_inputs++;
        cuda_call_operand(call, at, dtype, space);
        if (*what == 'b') call->operand[at].stride[0] = 0;
        at++;
    }
    program.output[program.n_outputs++] = (wefti_fused_output){.instruction = program.n_instructions - 1, .reduce = -1};
    if (*what == 'k') program.output[program.n_outputs++] = (wefti_fused_output){.instruction = program.n_instructions - 2, .reduce = -1};
    if (*what == 's')
        program.output[program.n_outputs++] = (wefti_fused_output){.instruction = program.n_instructions - 1, .reduce = WEFT_OP_SUM, .axes = 1};
    for (int32_t o = 0; o < program.n_outputs; o++)
        cuda_call_operand(call, at++, dtype, program.output[o].reduce < 0 ? space : weft_shape(1, space.dim[1]));
    return at;
}

static void make_product(cuda_call *call, const epilogue_case *c, weft_op op, weft_dtype dtype) {
    cuda_call_begin(call, op, c->name, 2, 1);
    cuda_call_operand(call, 0, dtype, c->turn_a ? weft_shape(c->k, c->m) : weft_shape(c->m, c->k));
    cuda_call_operand(call, 1, dtype, c->turn_b ? weft_shape(c->n, c->k) : weft_shape(c->k, c->n));
    cuda_call_operand(call, 2, dtype, weft_shape(c->m, c->n));
    call->attrs.matmul.trans_a = c->turn_a, call->attrs.matmul.trans_b = c->turn_b;
}

static void make_together(cuda_call *call, const epilogue_case *c, weft_dtype dtype) {
    make_product(call, c, WEFT_OP_FUSED_MATMUL, dtype);
    if (*c->what == 'S') {
        call->n_outputs = 2;
        call->attrs.matmul.sums = WEFTI_SUMS_A;
        cuda_call_operand(call, 3, dtype, weft_shape(c->m));
        return;
    }
    int32_t end = follow(call, c->what, dtype, weft_shape(c->m, c->n), 2);
    call->n_inputs = program.n_inputs + 1;
    call->n_outputs = end - call->n_inputs;
    call->attrs.matmul.fused = &program;
}

/* What is left to do behind the plain product. */
static void make_rest(cuda_call *call, const epilogue_case *c, weft_dtype dtype) {
    if (*c->what == 'S') {
        cuda_call_begin(call, WEFT_OP_SUM, c->name, 1, 1);
        cuda_call_operand(call, 0, dtype, weft_shape(c->k, c->m));
        cuda_call_operand(call, 1, dtype, weft_shape(c->m));
        call->attrs.reduce.axes = 1;
        return;
    }
    cuda_call_begin(call, WEFT_OP_FUSED, c->name, 1, 1);
    cuda_call_operand(call, 0, dtype, weft_shape(c->m, c->n));
    int32_t end = follow(call, c->what, dtype, weft_shape(c->m, c->n), 1);
    call->n_inputs = program.n_inputs;
    call->n_outputs = end - call->n_inputs;
    call->attrs.fused.fused = &program;
}

static bool is_taken(const cuda_call *call) {
    int64_t    scratch;
    wefti_call one = {.op = call->op, .attrs = &call->attrs, .n_inputs = call->n_inputs, .n_outputs = call->n_outputs, .inputs = call->operand,
                      .outputs = call->operand + call->n_inputs, .name = call->name};
    return call->device->vtable->query(call->device, &one, &scratch) == WEFT_OK;
}

static double *read_output(const cuda_call *call, int32_t which, int64_t *n_out) {
    size_t  each = weft_dtype_bytes(call->operand[which].dtype);
    char   *host = malloc(call->bytes[which]);
    *n_out = (int64_t)(call->bytes[which] / each);
    double *values = malloc((size_t)*n_out * sizeof *values);
    if (!host || !values) exit(1);
    cuda_call_must(call->device->vtable->read(call->device, host, call->buffers[which], call->bytes[which]));
    for (int64_t i = 0; i < *n_out; i++) values[i] = wefti_load_f64(host, i, call->operand[which].dtype);
    free(host);
    return values;
}

static bool is_close(const cuda_call *a, int32_t at, const cuda_call *b, int32_t bt) {
    int64_t n, other;
    double *x = read_output(a, at, &n), *y = read_output(b, bt, &other), square = 0, off = 0;
    for (int64_t i = 0; i < n; i++) square += y[i] * y[i], off += (x[i] - y[i]) * (x[i] - y[i]);
    free(x);
    free(y);
    return n == other && off <= 1e-4 * square; /* 1 % of the size: the product is rounded in between, or not */
}

/* The plain product's result as the rest's input, and both results beside each other. */
static bool check(const cuda_call *together, const cuda_call *plain, cuda_call *rest, bool sums) {
    for (int32_t i = 2; i < together->n_inputs; i++) { /* the same numbers */
        char *host = malloc(together->bytes[i]);
        if (!host) exit(1);
        cuda_call_must(rest->device->vtable->read(rest->device, host, together->buffers[i], together->bytes[i]));
        cuda_call_must(rest->device->vtable->write(rest->device, rest->buffers[i - 1], host, together->bytes[i]));
        free(host);
    }
    char *host = malloc(plain->bytes[sums ? 0 : 2]);
    if (!host) exit(1);
    cuda_call_must(rest->device->vtable->read(rest->device, host, plain->buffers[sums ? 0 : 2], plain->bytes[sums ? 0 : 2]));
    cuda_call_must(rest->device->vtable->write(rest->device, rest->buffers[0], host, plain->bytes[sums ? 0 : 2]));
    free(host);
    cuda_call_launch(rest);
    if (sums) return is_close(together, 2, plain, 2) && is_close(together, 3, rest, 1);
    for (int32_t o = 0; o < rest->n_outputs; o++)
        if (!is_close(together, together->n_inputs + o, rest, rest->n_inputs + o)) return false;
    return true;
}

static bool measure(wefti_device *device, const epilogue_case *c, weft_dtype dtype, double window_s, FILE *json) {
    cuda_call together = {.device = device}, plain = {.device = device}, rest = {.device = device};
    char      what[96];
    make_together(&together, c, dtype);
    snprintf(what, sizeof what, "%s %s [%lld,%lld,%lld]", c->name, weft_dtype_name(dtype), (long long)c->m, (long long)c->n, (long long)c->k);
    if (!is_taken(&together)) {
        printf("  %-64s unmeasured: %s\n", what, weft_error_message());
        return true;
    }
    cuda_call_open(&together, TIMES);
    bench_spread with = cuda_call_time(&together, TIMES, window_s);
    make_product(&plain, c, WEFT_OP_MATMUL, dtype);
    cuda_call_open(&plain, TIMES);
    bench_spread product = cuda_call_time(&plain, TIMES, window_s);
    make_rest(&rest, c, dtype);
    cuda_call_open(&rest, TIMES);
    bench_spread behind = cuda_call_time(&rest, TIMES, window_s);
    bool         right = check(&together, &plain, &rest, *c->what == 'S');
    double       apart = product.median + behind.median;
    printf("  %-64s %8.1f us, apart %.1f + %.1f: %.2f times%s\n", what, 1e6 * with.median, 1e6 * product.median, 1e6 * behind.median,
           apart / with.median, right ? "" : "  WRONG");
    fflush(stdout);
    with.median *= 1e6, with.low *= 1e6, with.high *= 1e6;
    if (right)
        bench_write(json, &(bench_record){.bench = "cuda-epilogue", .what = what, .metric = "time", .unit = "us", .spread = with, .limit = 1e6 * product.median});
    cuda_call_close(&rest);
    cuda_call_close(&plain);
    cuda_call_close(&together);
    return right;
}

int bench_cuda_epilogue(int argc, char **argv) {
    const char        *name = "cuda", *path = NULL;
    double             window_s = 0.02, most = 0;
    bool               good = true;
    weft_world        *world = NULL;
    const bench_option options[] = {{"device", "cuda or cuda:N", BENCH_TEXT, &name},
                                    {"seconds", "of a window; there are five", BENCH_NUMBER, &window_s},
                                    {"rows", "of the batch at most; 0: 65536", BENCH_NUMBER, &most},
                                    {"json", "file for the records", BENCH_TEXT, &path},
                                    {0}};
    bench_read_options(argc, argv, "Products with what follows them, beside both apart. The limit is the plain product.", options);
    if (!cuda_call_open_gpu(name, &world)) return 0;
    FILE *json = bench_open_json(path);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        epilogue_case c = cases[i];
        int64_t      *sizes[] = {&c.m, &c.n, &c.k};
        for (int d = 0; d < 3 && most > 0; d++) /* all of it smaller */
            *sizes[d] = *sizes[d] == 65536 ? (int64_t)most : *sizes[d] / 96;
        good = measure(world->device, &c, WEFT_BF16, window_s, json) && good;
    }
    if (json) fclose(json);
    weft_world_release(world);
    return good ? 0 : 1;
}

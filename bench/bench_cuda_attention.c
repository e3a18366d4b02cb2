/* Attention of the CUDA device and its gradient: cuDNN's engines and Weft's own kernels, each checked against the other and timed.
 *
 * A causal call counts half the products. The own kernels are the reference: the conformance suite has checked them. */
#include <stdlib.h>
#include <string.h>

#include "core/iface/world.h"
#include "core/tensor/operand.h"
#include "cuda_call.h"

typedef struct heads {
    int64_t     b, h, hk, t, s, d;
    int32_t     causal;
    const char *where;
} heads;

static const heads cases[] = {
    {8, 12, 12, 1024, 1024, 64, 1, "gpt-2 small"},
    {4, 32, 8, 2048, 2048, 128, 1, "llama 8B"},
    {2, 16, 16, 2048, 2048, 128, 0, "encoder"},
    {3, 4, 2, 500, 777, 64, 1, "odd lengths"},
};

enum { TIMES = 4 };

static void make(cuda_call *call, const heads *c, weft_dtype dtype, bool backward) {
    weft_shape q = weft_shape(c->b, c->h, c->t, c->d), k = weft_shape(c->b, c->hk, c->s, c->d), lse = weft_shape(c->b, c->h, c->t);
    cuda_call_begin(call, backward ? WEFT_OP_ATTENTION_BACKWARD : WEFT_OP_ATTENTION, c->where, backward ? 6 : 3, backward ? 3 : 2);
    call->attrs.attention.scale = 1 / sqrt((double)c->d), call->attrs.attention.causal = c->causal;
    weft_shape forward[5] = {q, k, k, q, lse}, gradient[9] = {q, q, k, k, q, lse, q, k, k};
    for (int32_t i = 0; i < (backward ? 9 : 5); i++)
        cuda_call_operand(call, i, (backward && i == 5) || (!backward && i == 4) ? WEFT_F32 : dtype, backward ? gradient[i] : forward[i]);
}

/* Copies what the forward call made to where the gradient takes it: o and lse. */
static void carry(const cuda_call *forward, cuda_call *backward) {
    for (int i = 0; i < 2; i++) {
        void *host = malloc(forward->bytes[3 + i]);
        if (!host) exit(1);
        cuda_call_must(forward->device->vtable->read(forward->device, host, forward->buffers[3 + i], forward->bytes[3 + i]));
        cuda_call_must(backward->device->vtable->write(backward->device, backward->buffers[4 + i], host, forward->bytes[3 + i]));
        free(host);
    }
}
/* Inputs q, k, v of the gradient as the forward call had them: they are drawn by place otherwise. */
static void same_inputs(const cuda_call *forward, cuda_call *backward) {
    for (int i = 0; i < 3; i++) {
        void *host = malloc(forward->bytes[i]);
        if (!host) exit(1);
        cuda_call_must(forward->device->vtable->read(forward->device, host, forward->buffers[i], forward->bytes[i]));
        cuda_call_must(backward->device->vtable->write(backward->device, backward->buffers[1 + i], host, forward->bytes[i]));
        free(host);
    }
}

/* |a - b| / |b| over a whole output. */
static double distance(cuda_call *a, cuda_call *b, int32_t output) {
    int32_t which = a->n_inputs + output;
    void   *x = malloc(a->bytes[which]), *y = malloc(a->bytes[which]);
    double  off = 0, size = 0;
    if (!x || !y) exit(1);
    cuda_call_must(a->device->vtable->read(a->device, x, a->buffers[which], a->bytes[which]));
    cuda_call_must(b->device->vtable->read(b->device, y, b->buffers[which], b->bytes[which]));
    for (int64_t i = 0; i < wefti_operand_elements(&a->operand[which]); i++) {
        double one = wefti_load_f64(x, i, a->operand[which].dtype), other = wefti_load_f64(y, i, a->operand[which].dtype);
        off += (one - other) * (one - other), size += other * other;
    }
    free(x);
    free(y);
    return sqrt(off / size);
}

static void show(FILE *json, const char *what, const char *by, cuda_call *call, double flops, double window_s) {
    bench_spread seconds = cuda_call_time(call, TIMES, window_s);
    double       rates[3] = {flops / seconds.high * 1e-12, flops / seconds.median * 1e-12, flops / seconds.low * 1e-12};
    char         full[160];
    snprintf(full, sizeof full, "%s, %s", what, by);
    printf("  %-84s %9.1f TFLOP/s (%.1f to %.1f), %.0f us\n", full, rates[1], rates[0], rates[2], seconds.median * 1e6);
    fflush(stdout);
    bench_write(json, &(bench_record){.bench = "cuda-attention", .what = full, .metric = "rate", .unit = "TFLOP/s", .limit = BENCH_UNMEASURED,
                                      .spread = {.median = rates[1], .low = rates[0], .high = rates[2], .runs = seconds.runs}});
}

/* Two calls of one case, by the library's engines and by our own kernels. */
static void open_both(cuda_call *dnn, cuda_call *own, const heads *c, weft_dtype dtype, bool backward) {
    make(dnn, c, dtype, backward);
    make(own, c, dtype, backward);
    cuda_call_open(dnn, TIMES);
    setenv("WEFT_CUDA_DNN_ATTENTION", "0", 1);
    cuda_call_open(own, TIMES);
    unsetenv("WEFT_CUDA_DNN_ATTENTION");
}

static bool check(const char *what, cuda_call *dnn, cuda_call *own, double most) {
    static const char *const forward[] = {"o", "lse"}, *const backward[] = {"dq", "dk", "dv"};
    bool                     good = true;
    cuda_call_launch(dnn);
    cuda_call_launch(own);
    printf("%s: differ by", what);
    for (int32_t i = 0; i < dnn->n_outputs; i++) {
        double far = distance(dnn, own, i);
        printf(" %s %.2g", dnn->n_outputs == 2 ? forward[i] : backward[i], far);
        good = good && far <= most; /* false of NaN, too */
    }
    printf("%s\n", good ? "" : ": WRONG");
    return good;
}

static bool run_case(wefti_device *device, FILE *json, const heads *c, weft_dtype dtype, double window_s) {
    cuda_call dnn = {.device = device}, own = dnn, dnn_back = dnn, own_back = dnn;
    char      what[112];
    double    flops = 4.0 * (double)(c->b * c->h) * (double)c->t * (double)c->s * (double)c->d * (c->causal ? 0.5 : 1);
    bool      good;
    snprintf(what, sizeof what, "%s [%lld,%lld/%lld,%lld,%lld] over %lld%s, %s", weft_dtype_name(dtype), (long long)c->b, (long long)c->h,
             (long long)c->hk, (long long)c->t, (long long)c->d, (long long)c->s, c->causal ? " causal" : "", c->where);
    double most = dtype == WEFT_BF16 ? 8e-3 : 1e-3; /* weights are rounded to the dtype by the library */
    open_both(&dnn, &own, c, dtype, false);
    good = check(what, &dnn, &own, most);
    show(json, what, "cuDNN or what it falls back to", &dnn, flops, window_s);
    show(json, what, "own kernel", &own, flops, window_s);
    open_both(&dnn_back, &own_back, c, dtype, true);
    same_inputs(&own, &dnn_back), same_inputs(&own, &own_back);
    carry(&own, &dnn_back), carry(&own, &own_back);
    strncat(what, ", gradient", sizeof what - strlen(what) - 1);
    good = check(what, &dnn_back, &own_back, 2 * most) && good;
    show(json, what, "cuDNN or what it falls back to", &dnn_back, 2.5 * flops, window_s);
    show(json, what, "own kernel", &own_back, 2.5 * flops, window_s);
    cuda_call_close(&dnn), cuda_call_close(&own), cuda_call_close(&dnn_back), cuda_call_close(&own_back);
    return good;
}

int bench_cuda_attention(int argc, char **argv) {
    const char        *device = "cuda", *path = NULL;
    double             window_s = 0.02;
    bool               good = true;
    weft_world        *world = NULL;
    const bench_option options[] = {{"device", "cuda or cuda:N", BENCH_TEXT, &device},
                                    {"seconds", "of a window; there are five", BENCH_NUMBER, &window_s},
                                    {"json", "file for the records", BENCH_TEXT, &path},
                                    {0}};
    bench_read_options(argc, argv, "Attention of the CUDA device and its gradient, by cuDNN and by own kernels.", options);
    if (!cuda_call_open_gpu(device, &world)) return 0;
    FILE *json = bench_open_json(path);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) good = run_case(world->device, json, &cases[i], WEFT_BF16, window_s) && good;
    good = run_case(world->device, json, &cases[3], WEFT_F16, window_s) && good;
    if (json) fclose(json);
    weft_world_release(world);
    return good ? 0 : 1;
}

/* Matrix products and convolutions of the CUDA device, through the device contract, beside the fastest product of the same run.
 *
 * Each case is checked on some elements against sums in double precision, then timed: a segment of the same call many times over, launched
 * until a window is over, so that it is the GPU that is measured and not its launches. Operands stay in the second-level cache where they
 * fit. Without a GPU there is nothing to do, and it says so. */
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "core/iface/world.h"
#include "core/tensor/operand.h"
#include "weft.h"

enum { WINDOWS = 5, CALLS = 32, PROBES = 60 };

static void must(weft_status status) {
    if (status == WEFT_OK) return;
    fprintf(stderr, "error: %s\n", weft_error_message());
    exit(1);
}

/* A call with its operands: inputs 0 and 1, the output, scratch. */
typedef struct job {
    wefti_device  *device;
    const char    *name;
    weft_op        op;
    wefti_attrs    attrs;
    wefti_operand  operand[3];
    double         flops;
    void          *host[3];
    wefti_program *program;
    void          *buffers[4];
    size_t         bytes[4];
    bool           tf32;
} job;

/* --- one job --- */

static void lay_out(job *self, int which, weft_dtype dtype, weft_shape shape) {
    self->operand[which] = (wefti_operand){.dtype = dtype, .shape = shape, .buffer = which};
    wefti_contiguous_strides(shape, self->operand[which].stride);
}

static void open_job(job *self) {
    wefti_call calls[CALLS];
    calls[0] = (wefti_call){.op = self->op, .attrs = &self->attrs, .n_inputs = 2, .n_outputs = 1, .inputs = self->operand,
                            .outputs = &self->operand[2], .scratch_buffer = 3, .name = self->name};
    must(self->device->vtable->query(self->device, &calls[0], &calls[0].scratch_bytes));
    for (int i = 1; i < CALLS; i++) calls[i] = calls[0];
    self->bytes[3] = (size_t)calls[0].scratch_bytes;
    for (int i = 0; i < 3; i++) {
        int64_t n = wefti_operand_elements(&self->operand[i]);
        self->bytes[i] = (size_t)n * weft_dtype_bytes(self->operand[i].dtype);
        must(wefti_alloc(self->bytes[i], "a bench operand", &self->host[i]));
        for (int64_t j = 0; i < 2 && j < n; j++) /* eighths from -1 to 1: exact in every dtype */
            wefti_store_f64(self->host[i], j, self->operand[i].dtype, (double)((j * 37 + j / 251 + i) % 17 - 8) / 8);
    }
    for (int i = 0; i < 4; i++) must(self->device->vtable->allocate(self->device, self->bytes[i], self->name, &self->buffers[i]));
    for (int i = 0; i < 2; i++) must(self->device->vtable->write(self->device, self->buffers[i], self->host[i], self->bytes[i]));
    must(self->device->vtable->compile(self->device, &(wefti_segment){.calls = calls, .n_calls = CALLS, .n_buffers = 4}, &self->program));
}

static void close_job(job *self) {
    self->device->vtable->release_program(self->program);
    for (int i = 0; i < 4; i++) self->device->vtable->deallocate(self->device, self->buffers[i], self->bytes[i]);
    for (int i = 0; i < 3; i++) wefti_free(self->host[i], self->bytes[i]);
}

static void launch(job *self) { must(self->device->vtable->launch(self->program, &(wefti_launch){.buffers = self->buffers})); }
/* Everything before a read is done when it comes back. */
static void wait_for(job *self) {
    char some[4];
    must(self->device->vtable->read(self->device, some, self->buffers[2], 2));
}

static double at4(const job *self, int which, int64_t a, int64_t b, int64_t c, int64_t d) {
    const int64_t *stride = self->operand[which].stride;
    return wefti_load_f64(self->host[which], a * stride[0] + b * stride[1] + c * stride[2] + d * stride[3], self->operand[which].dtype);
}

/* Element `i` of a product of [batch, m, k] and [batch, k, n], each transposed where the attributes say. */
static double product_at(const job *self, int64_t i, double *scale_out) {
    bool    ta = self->attrs.matmul.trans_a, tb = self->attrs.matmul.trans_b;
    int64_t m = self->operand[2].shape.dim[1], n = self->operand[2].shape.dim[2], k = self->operand[0].shape.dim[ta ? 1 : 2];
    int64_t batch = i / (m * n), row = i / n % m, column = i % n;
    double  sum = 0;
    for (int64_t j = 0; j < k; j++) {
        double term = at4(self, 0, batch, ta ? j : row, ta ? row : j, 0) * at4(self, 1, batch, tb ? column : j, tb ? j : column, 0);
        sum += term;
        *scale_out += fabs(term);
    }
    return sum;
}

/* Element `i` of a convolution (stride s, padding p) or one of its gradients. */
static double convolution_at(const job *self, int64_t i, double *scale_out) {
    bool           to_x = self->op == WEFT_OP_CONV2D_BACKWARD_INPUT, to_w = self->op == WEFT_OP_CONV2D_BACKWARD_WEIGHT;
    int            x = to_x ? 2 : to_w ? 1 : 0, w = to_w ? 2 : 1, y = to_x || to_w ? 0 : 2;
    const int64_t *xd = self->operand[x].shape.dim, *wd = self->operand[w].shape.dim, *yd = self->operand[y].shape.dim;
    const int64_t *od = self->operand[2].shape.dim;
    int64_t        s = self->attrs.conv.stride[0], pad = self->attrs.conv.pad[0];
    int64_t        o[4] = {i / (od[1] * od[2] * od[3]), i / (od[2] * od[3]) % od[1], i / od[3] % od[2], i % od[3]};
    double         sum = 0;
    int64_t        n0 = to_w ? 0 : o[0], n1 = to_w ? xd[0] : o[0] + 1, p0 = to_x || to_w ? 0 : o[2], p1 = to_x || to_w ? yd[2] : o[2] + 1;
    int64_t        q0 = to_x || to_w ? 0 : o[3], q1 = to_x || to_w ? yd[3] : o[3] + 1;
    int64_t        f0 = to_x ? 0 : to_w ? o[0] : o[1], f1 = to_x ? wd[0] : f0 + 1, c0 = to_x || to_w ? o[1] : 0, c1 = to_x || to_w ? o[1] + 1 : wd[1];
    for (int64_t n = n0; n < n1; n++)
        for (int64_t p = p0; p < p1; p++)
            for (int64_t q = q0; q < q1; q++)
                for (int64_t kh = 0; kh < wd[2]; kh++)
                    for (int64_t kw = 0; kw < wd[3]; kw++) {
                        int64_t h = p * s + kh - pad, v = q * s + kw - pad;
                        if (h < 0 || v < 0 || h >= xd[2] || v >= xd[3]) continue;
                        if ((to_x && (h != o[2] || v != o[3])) || (to_w && (kh != o[2] || kw != o[3]))) continue;
                        for (int64_t f = f0; f < f1; f++)
                            for (int64_t c = c0; c < c1; c++) {
                                double term = to_x   ? at4(self, y, n, f, p, q) * at4(self, w, f, c, kh, kw)
                                              : to_w ? at4(self, y, n, f, p, q) * at4(self, x, n, c, h, v)
                                                     : at4(self, x, n, c, h, v) * at4(self, w, f, c, kh, kw);
                                sum += term;
                                *scale_out += fabs(term);
                            }
                    }
    return sum;
}

static void verify(job *self) {
    weft_dtype dtype = self->operand[2].dtype;
    int64_t    elements = wefti_operand_elements(&self->operand[2]);
    double     unit = dtype == WEFT_BF16 ? 0x1p-8 : dtype == WEFT_F16 ? 0x1p-11 : dtype == WEFT_F64 ? 1e-14 : 1e-6;
    double     loss = self->tf32 && dtype == WEFT_F32 ? 0x1p-10 : dtype == WEFT_F64 ? 1e-14 : 4e-6;
    must(self->device->vtable->read(self->device, self->host[2], self->buffers[2], self->bytes[2]));
    for (int64_t probe = 0; probe < PROBES; probe++) {
        int64_t i = probe == 0 ? elements - 1 : (probe * 104729 * 131 + probe) % elements;
        double  scale = 0, want = self->op == WEFT_OP_MATMUL ? product_at(self, i, &scale) : convolution_at(self, i, &scale);
        double  got = wefti_load_f64(self->host[2], i, dtype);
        if (fabs(got - want) <= unit * fabs(want) + loss * scale + 1e-30) continue;
        if (dtype == WEFT_F16 && fabs(want) + loss * scale > 65504 && isinf(got) && (got > 0) == (want > 0)) continue; /* more than it holds */
        fprintf(stderr, "error: %s is wrong: element %lld is %.9g and should be %.9g\n", self->name, (long long)i, got, want);
        exit(1);
    }
}

/* Verified, then TFLOP/s. */
static bench_spread rate_of(job *self, double seconds) {
    double rates[WINDOWS];
    open_job(self);
    launch(self); /* loads kernels */
    launch(self); /* captures */
    wait_for(self);
    verify(self);
    for (int window = 0; window < WINDOWS; window++) {
        int    launches = 1;
        double begin = bench_now_s(), end;
        launch(self);
        wait_for(self);
        double one = bench_now_s() - begin;
        if (one < seconds) launches = (int)(seconds / one) + 1;
        begin = bench_now_s();
        for (int i = 0; i < launches; i++) launch(self);
        wait_for(self);
        end = bench_now_s();
        rates[window] = 1e-12 * self->flops * CALLS * launches / (end - begin);
    }
    close_job(self);
    return bench_spread_of(rates, WINDOWS);
}

/* --- cases --- */

typedef struct product_shape {
    int64_t     batch, m, n, k;
    const char *layout; /* nn, nt (B transposed), tn (A transposed) */
    const char *where;
} product_shape;

static const product_shape products[] = {
    {1, 8192, 8192, 8192, "nn", "square"},        {1, 4096, 4096, 4096, "nt", "square"},
    {1, 16384, 2304, 768, "nn", "gpt qkv"},       {1, 16384, 3072, 768, "nn", "gpt up"},
    {1, 16384, 768, 3072, "nt", "gpt up, input gradient"}, {1, 768, 3072, 16384, "tn", "gpt up, weight gradient"},
    {1, 16384, 50304, 768, "nn", "gpt head"},     {192, 1024, 64, 1024, "nn", "attention, probabilities times values"},
    {1, 1024, 512, 784, "nn", "mlp layer 1"},     {1, 784, 512, 1024, "tn", "mlp layer 1, weight gradient"},
    {1, 1000, 999, 1001, "nn", "odd sizes"},
};

static void make_product(job *self, const product_shape *s, weft_dtype dtype) {
    bool ta = s->layout[0] == 't', tb = s->layout[1] == 't';
    self->op = WEFT_OP_MATMUL;
    self->name = s->where;
    memset(&self->attrs, 0, sizeof self->attrs);
    self->attrs.matmul.trans_a = ta, self->attrs.matmul.trans_b = tb;
    lay_out(self, 0, dtype, ta ? weft_shape(s->batch, s->k, s->m) : weft_shape(s->batch, s->m, s->k));
    lay_out(self, 1, dtype, tb ? weft_shape(s->batch, s->n, s->k) : weft_shape(s->batch, s->k, s->n));
    lay_out(self, 2, dtype, weft_shape(s->batch, s->m, s->n));
    self->flops = 2.0 * (double)s->batch * (double)s->m * (double)s->n * (double)s->k;
}

typedef struct convolution_shape {
    int64_t     n, c, h, o, kernel;
    int32_t     stride, pad;
    const char *where;
} convolution_shape;

static const convolution_shape convolutions[] = {
    {128, 64, 56, 64, 3, 1, 1, "resnet 3x3, 56"},   {128, 128, 28, 128, 3, 1, 1, "resnet 3x3, 28"},
    {128, 256, 14, 256, 3, 1, 1, "resnet 3x3, 14"}, {128, 512, 7, 512, 3, 1, 1, "resnet 3x3, 7"},
    {128, 256, 56, 64, 1, 1, 0, "resnet 1x1, 56"},  {128, 128, 56, 128, 3, 2, 1, "resnet 3x3, stride 2"},
    {128, 3, 224, 64, 7, 2, 3, "resnet stem"},      {1024, 32, 26, 64, 3, 1, 0, "mnist convolution 2"},
};

static void make_convolution(job *self, const convolution_shape *s, weft_op op, weft_dtype dtype) {
    int64_t    out = (s->h + 2 * s->pad - s->kernel) / s->stride + 1;
    weft_shape x = weft_shape(s->n, s->c, s->h, s->h), w = weft_shape(s->o, s->c, s->kernel, s->kernel), y = weft_shape(s->n, s->o, out, out);
    bool       to_x = op == WEFT_OP_CONV2D_BACKWARD_INPUT, to_w = op == WEFT_OP_CONV2D_BACKWARD_WEIGHT;
    self->op = op;
    self->name = s->where;
    memset(&self->attrs, 0, sizeof self->attrs);
    for (int i = 0; i < 2; i++) self->attrs.conv.stride[i] = s->stride, self->attrs.conv.dilation[i] = 1;
    for (int i = 0; i < 4; i++) self->attrs.conv.pad[i] = s->pad;
    self->attrs.conv.groups = 1;
    if (to_x) self->attrs.conv.input = x;
    if (to_w) self->attrs.conv.weight = w;
    lay_out(self, 0, dtype, to_x || to_w ? y : x);
    lay_out(self, 1, dtype, to_w ? x : w);
    lay_out(self, 2, dtype, to_x ? x : to_w ? w : y);
    self->flops = 2.0 * (double)(s->n * s->o * out * out) * (double)(s->c * s->kernel * s->kernel);
}

/* --- the commands --- */

static bool wants(const char *list, weft_dtype dtype) { return !list || strstr(list, weft_dtype_name(dtype)) != NULL; }

/* Opens the GPU; false, having said why, where there is none. */
static bool open_gpu(const char *name, weft_world **world_out) {
    if (weft_world_create(&(weft_world_options){.size = 1, .device = name}, world_out) != WEFT_OK) {
        printf("skipped: %s\n", weft_error_message());
        return false;
    }
    printf("%s\n", weft_world_describe(*world_out));
    return true;
}

typedef struct table {
    const char *bench;
    FILE       *json;
    double      seconds, peak;
} table;

static void show(const table *self, job *one, const char *what) {
    bench_spread spread = rate_of(one, self->seconds);
    char         peak[32] = "";
    if (self->peak > 0) snprintf(peak, sizeof peak, "%9.1f%%", 100 * spread.median / self->peak);
    printf("%-76s %9.1f %9.1f %9.1f %10s\n", what, spread.median, spread.low, spread.high, peak);
    fflush(stdout);
    bench_write(self->json, &(bench_record){.bench = self->bench, .what = what, .metric = "rate", .unit = "TFLOP/s", .spread = spread,
                                            .limit = self->peak > 0 ? self->peak : BENCH_UNMEASURED});
}

/* The fastest product that the device does: bf16, 8192 cubed. */
static void measure_peak(table *self, job *one) {
    make_product(one, &products[0], WEFT_BF16);
    self->peak = rate_of(one, self->seconds).median;
    printf("limit: %.1f TFLOP/s in bf16, 8192 x 8192 x 8192\n", self->peak);
    printf("%-76s %9s %9s %9s %10s\n", "case", "TFLOP/s", "low", "high", "of limit");
}

typedef struct wishes {
    const char *device, *json, *dtypes;
    double      seconds;
} wishes;

static bool begin(int argc, char **argv, const char *help, wishes *w, table *t, job *one, weft_world **world_out) {
    *w = (wishes){.device = "cuda", .seconds = 0.03};
    const bench_option options[] = {{"device", "cuda or cuda:N", BENCH_TEXT, &w->device},
                                    {"dtypes", "those of f32,f64,bf16,f16 to try", BENCH_TEXT, &w->dtypes},
                                    {"seconds", "of a window; there are five", BENCH_NUMBER, &w->seconds},
                                    {"json", "file for the records", BENCH_TEXT, &w->json},
                                    {0}};
    const char *tf32 = getenv("WEFT_CUDA_TF32");
    bench_read_options(argc, argv, help, options);
    if (!open_gpu(w->device, world_out)) return false;
    t->json = bench_open_json(w->json);
    t->seconds = w->seconds;
    memset(one, 0, sizeof *one);
    one->device = (*world_out)->device;
    one->tf32 = tf32 && strcmp(tf32, "0") != 0;
    measure_peak(t, one);
    return true;
}

static int end(const table *t, weft_world *world) {
    if (t->json) fclose(t->json);
    weft_world_release(world);
    return 0;
}

int bench_cuda_matmul(int argc, char **argv) {
    static const weft_dtype dtypes[] = {WEFT_BF16, WEFT_F16, WEFT_F32, WEFT_F64};
    table                   t = {.bench = "cuda-matmul"};
    wishes                  w;
    job                     one;
    weft_world             *world = NULL;
    if (!begin(argc, argv, "Matrix products of the CUDA device.", &w, &t, &one, &world)) return 0;
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++)
        for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
            const product_shape *s = &products[i];
            char                 what[112];
            if (!wants(w.dtypes, dtypes[d]) || s->m * s->n * (int64_t)weft_dtype_bytes(dtypes[d]) > (int64_t)2 << 30) continue;
            make_product(&one, s, dtypes[d]);
            snprintf(what, sizeof what, "%s %lld x %lld x %lld%s%.0lld %s, %s", weft_dtype_name(dtypes[d]), (long long)s->m, (long long)s->n,
                     (long long)s->k, s->batch > 1 ? " times " : "", (long long)(s->batch > 1 ? s->batch : 0), s->layout, s->where);
            show(&t, &one, what);
        }
    return end(&t, world);
}

int bench_cuda_conv(int argc, char **argv) {
    static const weft_dtype dtypes[] = {WEFT_BF16, WEFT_F16, WEFT_F32};
    static const weft_op    ops[] = {WEFT_OP_CONV2D, WEFT_OP_CONV2D_BACKWARD_INPUT, WEFT_OP_CONV2D_BACKWARD_WEIGHT};
    static const char *const names[] = {"forward", "input gradient", "weight gradient"};
    table                    t = {.bench = "cuda-conv"};
    wishes                   w;
    job                      one;
    weft_world              *world = NULL;
    if (!begin(argc, argv, "Convolutions of the CUDA device and their gradients, batch first, channels second.", &w, &t, &one, &world)) return 0;
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++)
        for (size_t i = 0; i < sizeof convolutions / sizeof *convolutions; i++)
            for (int k = 0; k < 3; k++) {
                char what[112];
                if (!wants(w.dtypes, dtypes[d])) continue;
                make_convolution(&one, &convolutions[i], ops[k], dtypes[d]);
                snprintf(what, sizeof what, "%s %s, %lld images, %s", weft_dtype_name(dtypes[d]), convolutions[i].where,
                         (long long)convolutions[i].n, names[k]);
                show(&t, &one, what);
            }
    return end(&t, world);
}

/* A residual and the norm behind it in one fused program, and their gradient, on the CUDA device, as a share of the bandwidth that a copy reaches in
 * the same run.
 *
 * The programs are those that plans make of a transformer's blocks. Forward: what a block adds is added to the stream, rows are normalised, scaled
 * and shifted; the stream, the normalised rows, their scales (1/deviation) and the result are written. Backward: the result's gradient goes through
 * scale and norm and is added to the stream's; parameters' gradients are summed over rows on the way. Each is checked against its definition in f64,
 * in its first and last rows at its size, and with all sums at few rows; then timed. Bytes are those of operands, each once. */
#include <stdlib.h>
#include <string.h>

#include "core/iface/world.h"
#include "core/tensor/operand.h"
#include "cuda_call.h"

enum { TIMES = 8, FEW_ROWS = 37, OPERANDS = CUDA_CALL_OPERANDS };
#define EPSILON 1e-5

typedef struct residual_case {
    const char *name;
    weft_dtype  dtype;
    int64_t     rows, length;
    bool        rms, backward;
} residual_case;

static const residual_case cases[] = {
    {"residual, layer norm", WEFT_BF16, 65536, 768, false, false},
    {"residual, layer norm, gradient", WEFT_BF16, 65536, 768, false, true},
    {"residual, layer norm", WEFT_F32, 65536, 768, false, false},
    {"residual, layer norm, gradient", WEFT_F32, 65536, 768, false, true},
    {"residual, rms norm", WEFT_BF16, 16384, 4096, true, false},
    {"residual, rms norm, gradient", WEFT_BF16, 16384, 4096, true, true},
};

/* --- programs --- */

static int32_t add(wefti_fused *p, weft_op op, weft_dtype dtype, int32_t a, int32_t b) {
    p->instruction[p->n_instructions] = (wefti_fused_instruction){.op = op, .dtype = dtype, .source = {a, b}};
    return -++p->n_instructions;
}
static int32_t normalize(wefti_fused *p, weft_op op, const residual_case *c, int32_t x, int32_t y, int32_t scale) {
    int32_t                  it = add(p, op, c->dtype, x, y);
    wefti_fused_instruction *self = &p->instruction[-1 - it];
    self->source[2] = scale;
    self->attrs.rows.axes = 1, self->attrs.rows.rms = c->rms, self->attrs.rows.eps = EPSILON;
    return it;
}
static void give(wefti_fused *p, int32_t instruction, int32_t reduce, uint32_t axes) {
    p->output[p->n_outputs++] = (wefti_fused_output){.instruction = -1 - instruction, .reduce = reduce, .axes = axes};
}

enum { STREAM, BLOCK, GAMMA, BETA, SUM_OUT, NORMAL_OUT, SCALE_OUT, RESULT_OUT };   /* forward; rms norms have no beta: it is left out of the program */
enum { DZ, NORMAL, SCALE, GAMMA_IN, REST, DX_OUT, BETA_OUT, GAMMA_OUT };            /* backward */

static void write_forward(wefti_fused *p, const residual_case *c) {
    int32_t x = add(p, WEFT_OP_ADD, c->dtype, STREAM, BLOCK), y = normalize(p, WEFT_OP_NORMALIZE, c, x, 0, 0);
    int32_t z = add(p, WEFT_OP_MUL, c->dtype, y, GAMMA);
    z = add(p, WEFT_OP_ADD, c->dtype, z, BETA);
    give(p, x, -1, 0);
    give(p, y, -1, 0);
    give(p, y, WEFT_OP_NORMALIZE, 2);
    give(p, z, -1, 0);
}
static void write_backward(wefti_fused *p, const residual_case *c) {
    int32_t dz = add(p, WEFT_OP_COPY, c->dtype, DZ, 0), along = add(p, WEFT_OP_MUL, c->dtype, DZ, NORMAL);
    int32_t dx = normalize(p, WEFT_OP_NORMALIZE_BACKWARD, c, add(p, WEFT_OP_MUL, c->dtype, DZ, GAMMA_IN), NORMAL, SCALE);
    give(p, add(p, WEFT_OP_ADD, c->dtype, dx, REST), -1, 0);
    give(p, dz, WEFT_OP_SUM, 1);
    give(p, along, WEFT_OP_SUM, 1);
}

static void make(cuda_call *call, wefti_fused *p, const residual_case *c, int64_t rows) {
    weft_shape all = weft_shape(rows, c->length), row = weft_shape(1, c->length), each = weft_shape(rows, 1);
    memset(p, 0, sizeof *p);
    p->space = all;
    p->n_inputs = c->backward ? 5 : 4;
    if (c->backward) write_backward(p, c);
    else write_forward(p, c);
    cuda_call_begin(call, WEFT_OP_FUSED, c->name, p->n_inputs, p->n_outputs);
    for (int32_t i = 0; i < p->n_inputs + p->n_outputs; i++) {
        bool is_row = c->backward ? i == GAMMA_IN || i == BETA_OUT || i == GAMMA_OUT : i == GAMMA || i == BETA;
        bool is_scale = i == (c->backward ? SCALE : SCALE_OUT);
        cuda_call_operand(call, i, is_scale ? WEFT_F32 : c->dtype, is_row ? row : is_scale ? each : all);
    }
    call->attrs.fused.fused = p;
}

/* --- checking --- */

/* Elements [first, first + n) of an operand. */
static double *values_of(cuda_call *call, int32_t which, int64_t first, int64_t n) {
    weft_dtype dtype = call->operand[which].dtype;
    size_t     each = weft_dtype_bytes(dtype);
    char      *raw = malloc((size_t)n * each);
    double    *values = malloc((size_t)n * sizeof *values);
    if (!raw || !values) exit(1);
    cuda_call_must(call->device->vtable->read(call->device, raw, (char *)call->buffers[which] + (size_t)first * each, (size_t)n * each));
    for (int64_t i = 0; i < n; i++) values[i] = wefti_load_f64(raw, i, dtype);
    free(raw);
    return values;
}

static double rounded(double x, weft_dtype dtype) {
    double room;
    wefti_store_f64(&room, 0, dtype, x);
    return wefti_load_f64(&room, 0, dtype);
}

/* Row `row`'s results, by definition: forward the sum, the normal, the scale (one number) and the result; backward the gradient. Adds to the sums. */
static void define_row(const residual_case *c, double *const *in, double **out, double *sums) {
    double n = (double)c->length, mean = 0, second = 0, along = 0;
    for (int64_t i = 0; i < c->length && !c->backward; i++) out[0][i] = rounded(in[STREAM][i] + in[BLOCK][i], c->dtype), mean += c->rms ? 0 : out[0][i] / n;
    for (int64_t i = 0; i < c->length && !c->backward; i++) second += (out[0][i] - mean) * (out[0][i] - mean) / n;
    for (int64_t i = 0; i < c->length && c->backward; i++) {
        double g = rounded(in[DZ][i] * in[GAMMA_IN][i], c->dtype);
        mean += c->rms ? 0 : g / n, along += g * in[NORMAL][i] / n;
        sums[i] += in[DZ][i], sums[c->length + i] += rounded(in[DZ][i] * in[NORMAL][i], c->dtype);
    }
    if (!c->backward) out[2][0] = 1 / sqrt(second + EPSILON);
    for (int64_t i = 0; i < c->length; i++) {
        if (c->backward) {
            double g = rounded(in[DZ][i] * in[GAMMA_IN][i], c->dtype), dx = in[SCALE][0] * (g - mean - in[NORMAL][i] * along);
            out[0][i] = rounded(dx, c->dtype) + in[REST][i];
        } else {
            out[1][i] = rounded((out[0][i] - mean) * out[2][0], c->dtype);
            out[3][i] = rounded(out[1][i] * in[GAMMA][i], c->dtype) + in[BETA][i];
        }
    }
}

/* Whether numbers are those that are due. What is rounded on the way may fall to the other side, so some units of the largest number are allowed. */
static bool near(const char *name, const double *have, const double *due, int64_t n, double room) {
    for (int64_t i = 0; i < n; i++) {
        if (fabs(have[i] - due[i]) <= room) continue;
        fprintf(stderr, "error: %s, element %lld is %.9g and should be %.9g\n", name, (long long)i, have[i], due[i]);
        return false;
    }
    return true;
}

static double largest(const double *x, int64_t n) {
    double most = 1;
    for (int64_t i = 0; i < n; i++) most = fmax(most, fabs(x[i]));
    return most;
}

static bool check_row(cuda_call *call, const residual_case *c, int64_t row, double *sums) {
    double *in[5] = {0}, *out[4] = {0};
    double  unit = c->dtype == WEFT_BF16 ? 0x1p-7 : 1e-5;
    bool    good = true;
    for (int32_t i = 0; i < call->n_inputs; i++) {
        weft_shape shape = call->operand[i].shape;
        in[i] = values_of(call, i, shape.dim[0] == 1 ? 0 : row * shape.dim[1], shape.dim[1]);
    }
    for (int k = 0; k < 4; k++)
        if (!(out[k] = calloc((size_t)c->length, sizeof *out[k]))) exit(1);
    define_row(c, in, out, sums);
    for (int32_t k = 0; k < (c->backward ? 1 : 4) && good; k++) {
        int32_t which = call->n_inputs + k;
        int64_t n = call->operand[which].shape.dim[1];
        double *have = values_of(call, which, row * n, n);
        good = near(c->name, have, out[k], n, 2 * unit * largest(out[k], n));
        free(have);
    }
    for (int k = 0; k < 5; k++) free(in[k]);
    for (int k = 0; k < 4; k++) free(out[k]);
    return good;
}

/* The first and the last row; of few rows all, with their sums. */
static bool check(cuda_call *call, const residual_case *c, int64_t rows) {
    double *sums = calloc(2 * (size_t)c->length, sizeof *sums);
    bool    good = true, all = rows <= FEW_ROWS;
    if (!sums) exit(1);
    for (int64_t row = 0; row < rows && good; row += all || rows == 1 ? 1 : rows - 1) good = check_row(call, c, row, sums);
    for (int32_t k = 0; k < 2 && good && all && c->backward; k++) {
        double *have = values_of(call, BETA_OUT + k, 0, c->length);
        double  unit = c->dtype == WEFT_BF16 ? 0x1p-7 : 1e-5;
        good = near(c->name, have, sums + k * c->length, c->length, 2 * unit * largest(sums + k * c->length, c->length));
        free(have);
    }
    free(sums);
    return good;
}

/* --- measuring --- */

static double bytes_of(const cuda_call *call) {
    double bytes = 0;
    for (int32_t i = 0; i < call->n_inputs + call->n_outputs; i++) bytes += (double)call->bytes[i];
    return bytes;
}

static bool takes(const residual_case *c, wefti_device *device) {
    static wefti_fused p;
    cuda_call          call = {.device = device};
    int64_t            scratch;
    make(&call, &p, c, c->rows);
    wefti_call one = {.op = call.op, .attrs = &call.attrs, .n_inputs = call.n_inputs, .n_outputs = call.n_outputs, .inputs = call.operand,
                      .outputs = call.operand + call.n_inputs, .name = call.name};
    return device->vtable->query(device, &one, &scratch) == WEFT_OK;
}

static bool measure(const residual_case *c, wefti_device *device, const char *what, int64_t rows, double limit, double window_s, FILE *json) {
    static wefti_fused few, many;
    cuda_call          small = {.device = device}, call = {.device = device};
    make(&small, &few, c, FEW_ROWS);
    cuda_call_open(&small, 1);
    cuda_call_launch(&small);
    bool right = check(&small, c, FEW_ROWS);
    cuda_call_close(&small);
    make(&call, &many, c, rows);
    cuda_call_open(&call, TIMES);
    bench_spread rate = bench_spread_over(cuda_call_time(&call, TIMES, window_s), bytes_of(&call) * 1e-9);
    right = check(&call, c, rows) && right;
    cuda_call_close(&call);
    cuda_call_show(json, "cuda-residual", what, rate, limit, right);
    return right;
}

int bench_cuda_residual(int argc, char **argv) {
    const char        *name = "cuda", *path = NULL;
    double             window_s = 0.02, limit = BENCH_UNMEASURED, most = (double)(sizeof cases / sizeof *cases);
    bool               good = true, toy = false;
    weft_world        *world = NULL;
    const bench_option options[] = {{"device", "cuda or cuda:N", BENCH_TEXT, &name},
                                    {"toy", "few rows: for trying the program, not the device", BENCH_FLAG, &toy},
                                    {"cases", "the first so many; each has a kernel to compile", BENCH_NUMBER, &most},
                                    {"seconds", "of a window; there are five", BENCH_NUMBER, &window_s},
                                    {"json", "file for the records", BENCH_TEXT, &path},
                                    {0}};
    bench_read_options(argc, argv, "Residual and norm in one program, and their gradient, on the CUDA device, as a share of the bandwidth of a copy.", options);
    FILE *json = bench_open_json(path);
    bool  there = cuda_call_open_gpu(name, &world);
    if (there) limit = cuda_call_copy_rate(world->device, toy ? 1 << 12 : 1 << 27, window_s);
    for (size_t i = 0; i < sizeof cases / sizeof *cases && (double)i < most; i++) {
        const residual_case *c = &cases[i];
        int64_t              rows = toy ? 2 * FEW_ROWS : c->rows;
        char                 what[112];
        snprintf(what, sizeof what, "%s %s [%lld,%lld]", c->name, weft_dtype_name(c->dtype), (long long)rows, (long long)c->length);
        if (there && takes(c, world->device)) good = measure(c, world->device, what, rows, limit, window_s, json) && good;
        else cuda_call_unmeasured(json, "cuda-residual", what, limit);
    }
    if (json) fclose(json);
    weft_world_release(world);
    return good ? 0 : 1;
}

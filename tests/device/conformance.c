/* The suite's driver: draw, compute, compare. */
#include "device/conformance.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/effort.h"
#include "core/tensor/operand.h"

enum { LISTED = 20 };

bool (*conformance_takes)(const test_case *self);
bool conformance_column_sums;

/* Whether the comma-separated list has the name. */
static bool lists(const char *list, const char *name) {
    size_t length = strlen(name);
    for (const char *at = list; (at = strstr(at, name)) != NULL; at += length)
        if ((at == list || at[-1] == ',') && (at[length] == 0 || at[length] == ',')) return true;
    return false;
}

static bool is_limited(void) { return conformance_takes || getenv("WEFT_TEST_OPS"); }
static bool is_wanted(const test_case *one) {
    const char *ops = getenv("WEFT_TEST_OPS");
    return (!ops || lists(ops, wefti_ops[one->op].name)) && (!conformance_takes || conformance_takes(one));
}

void conformance_visit(case_visitor visit, void *context) {
    visit_elementwise(visit, context);
    visit_reductions(visit, context);
    visit_moves(visit, context);
    visit_products(visit, context);
    visit_rows(visit, context);
    visit_fp8(visit, context);
    visit_edges(visit, context);
}

const char *case_name(const test_case *self) {
    static const char *const layouts[LAYOUT_COUNT + 1] = {"", " gapped", " turned", " repeated", " last"};
    static char              text[512];
    int used = snprintf(text, sizeof text, "%s%s", wefti_ops[self->op].name, self->in_place ? " in place" : "");
    for (int32_t i = 0; i < self->n_inputs && used < 400; i++)
        used += snprintf(text + used, sizeof text - (size_t)used, " %s%s%s", weft_dtype_name(self->inputs[i].dtype),
                         weft_shape_text(self->inputs[i].shape).text, layouts[self->inputs[i].layout]);
    snprintf(text + used, sizeof text - (size_t)used, " -> %s%s%s", weft_dtype_name(self->outputs[0].dtype),
             weft_shape_text(self->outputs[0].shape).text, layouts[self->outputs[0].layout]);
    return text;
}

/* Products are fused, and channels come last, only where the device asks for it. */
static bool is_due(wefti_device *device, const test_case *one) {
    if (one->op == WEFT_OP_FUSED_MATMUL && !device->vtable->fuses_products) return false;
    return one->outputs[0].layout != LAST || device->vtable->channels_last;
}

/* How far a result may be off: some units in the last place of the result, and of the size of its terms. */
static double tolerance(weft_dtype dtype, double expected, double scale) {
    switch (dtype) {
    case WEFT_F64: return 1e-15 * fabs(expected) + 4e-15 * scale + 1e-300;
    case WEFT_F16: return 0x1.01p-11 * fabs(expected) + 2e-6 * scale + 0x1.01p-25;
    case WEFT_BF16: return 0x1.01p-8 * fabs(expected) + 2e-6 * scale + 1e-38;
    default: return 5e-7 * fabs(expected) + 2e-6 * scale + 1e-37;
    }
}

static bool agrees(const tensor *expected, int64_t i, const void *got) {
    if (!weft_dtype_is_float(expected->dtype)) return wefti_load_i64(got, i, expected->dtype) == expected->i[i];
    double want = expected->f[i], have = wefti_load_f64(got, i, expected->dtype);
    if (isnan(want) || isnan(have)) return isnan(want) && isnan(have);
    if (isinf(round_to(want, expected->dtype)) || isinf(have)) return round_to(want, expected->dtype) == have;
    return fabs(have - want) <= tolerance(expected->dtype, want, expected->scale[i]);
}

typedef struct tally {
    wefti_device *const *devices;
    int32_t              n_devices;
    int                  at, cases, wrong;
    int                  of[WEFT_OP_COUNT][WEFT_DTYPE_COUNT]; /* cases of an op in a dtype */
} tally;

static void complain(tally *self, const test_case *one, const char *why) {
    if (self->wrong++ < LISTED) fprintf(stderr, "  %s: %s\n", case_name(one), why);
}

static void draw_inputs(const test_case *one, tensor *inputs) {
    for (int32_t i = 0; i < one->n_inputs; i++)
        inputs[i] = tensor_draw(&one->inputs[i], one->seed + 1000u * (uint64_t)i);
    if (one->derive) one->derive(one, inputs);
}

static void check_on(tally *self, wefti_device *device, const test_case *one, const tensor *inputs,
                     const tensor *expected) {
    void *got[MOST_OUTPUTS] = {NULL};
    char  why[256];
    if (!compute(device, one, inputs, got, why)) complain(self, one, why);
    for (int32_t k = 0; k < results_of(one) && !why[0]; k++)
        for (int64_t i = 0; i < expected[k].n; i++) {
            if (agrees(&expected[k], i, got[k])) continue;
            snprintf(why, sizeof why, "output %d element %lld is %.9g, expected %.9g (device %d)", (int)k, (long long)i,
                     wefti_load_f64(got[k], i, expected[k].dtype),
                     weft_dtype_is_float(expected[k].dtype) ? expected[k].f[i] : (double)expected[k].i[i], self->at);
            complain(self, one, why);
            break;
        }
    for (int32_t k = 0; k < results_of(one); k++) free(got[k]);
}

/* The dtype that a case is about. */
static weft_dtype dtype_of(const test_case *one) {
    if (one->n_inputs == 0 || one->op == WEFT_OP_RANDOM) return one->outputs[0].dtype;
    return one->inputs[one->op == WEFT_OP_WHERE || one->op == WEFT_OP_CROSS_ENTROPY_BACKWARD ? 1 : 0].dtype;
}

/* The dtypes that an op must have cases in, as bits. What a device never sees has none. */
static unsigned dtypes_due(weft_op op) {
    enum { FLOATS = 1 << WEFT_F32 | 1 << WEFT_F64 | 1 << WEFT_BF16 | 1 << WEFT_F16,
           NUMBERS = FLOATS | 1 << WEFT_I64 | 1 << WEFT_I32 | 1 << WEFT_U8, ALL = NUMBERS | 1 << WEFT_BOOL };
    switch (op) {
    case WEFT_OP_INPUT: case WEFT_OP_PARAMETER: case WEFT_OP_STATE: case WEFT_OP_CONSTANT: case WEFT_OP_STEP:
    case WEFT_OP_MODE: case WEFT_OP_FUSED: case WEFT_OP_FUSED_MATMUL: case WEFT_OP_ALL_REDUCE: case WEFT_OP_ALL_GATHER: case WEFT_OP_REDUCE_SCATTER:
    case WEFT_OP_BROADCAST: case WEFT_OP_ALL_TO_ALL: case WEFT_OP_EXCHANGE_ROWS: case WEFT_OP_SEND: case WEFT_OP_RECEIVE: case WEFT_OP_CUSTOM: case WEFT_OP_CUSTOM_BACKWARD:
    case WEFT_OP_ENCODE: case WEFT_OP_DECODE: return 0;
    case WEFT_OP_OCCURRENCE: return 1 << WEFT_I32 | 1 << WEFT_I64;
    case WEFT_OP_FP8_CAST: return 1 << WEFT_F32 | 1 << WEFT_BF16 | 1 << WEFT_F16;
    case WEFT_OP_FP8_MATMUL: return 1 << WEFT_U8;
    case WEFT_OP_NOT: case WEFT_OP_AND: case WEFT_OP_OR: return 1 << WEFT_BOOL;
    case WEFT_OP_UPDATE: return 1 << WEFT_F32 | 1 << WEFT_F64 | 1 << WEFT_BF16;
    case WEFT_OP_COPY: case WEFT_OP_DETACH: case WEFT_OP_CAST: case WEFT_OP_WHERE: case WEFT_OP_FULL: case WEFT_OP_ARANGE:
    case WEFT_OP_EQ: case WEFT_OP_NE: case WEFT_OP_LT: case WEFT_OP_LE: case WEFT_OP_GT: case WEFT_OP_GE: case WEFT_OP_RESHAPE:
    case WEFT_OP_PERMUTE: case WEFT_OP_SLICE: case WEFT_OP_EXPAND: case WEFT_OP_CONCAT: case WEFT_OP_PAD: case WEFT_OP_GATHER:
    case WEFT_OP_ASSIGN: return ALL;
    case WEFT_OP_NEG: case WEFT_OP_ABS: case WEFT_OP_SIGN: case WEFT_OP_SQUARE: case WEFT_OP_RELU: case WEFT_OP_CLAMP:
    case WEFT_OP_ADD: case WEFT_OP_SUB: case WEFT_OP_MUL: case WEFT_OP_DIV: case WEFT_OP_MAXIMUM: case WEFT_OP_MINIMUM:
    case WEFT_OP_SUM: case WEFT_OP_MAX: case WEFT_OP_MIN: case WEFT_OP_ARGMAX: case WEFT_OP_SCATTER_ADD: return NUMBERS;
    default: return FLOATS;
    }
}

static void check_coverage(const tally *self) {
    for (int op = 0; op < WEFT_OP_COUNT; op++)
        for (int dtype = 0; dtype < WEFT_DTYPE_COUNT; dtype++)
            cr_assert(!(dtypes_due((weft_op)op) >> dtype & 1) || self->of[op][dtype] > 0, "no case is about %s in %s",
                      wefti_ops[op].name, weft_dtype_name((weft_dtype)dtype));
}

static void check_case(void *context, const test_case *one) {
    tally *self = context;
    tensor inputs[MOST_INPUTS], expected[MOST_OUTPUTS];
    if (!is_wanted(one)) return;
    self->cases++;
    self->of[one->op][dtype_of(one)]++;
    draw_inputs(one, inputs);
    for (int32_t k = 0; k < results_of(one); k++) expected[k] = tensor_create(result_at(one, k).dtype, result_at(one, k).shape);
    define(one, inputs, expected);
    for (self->at = 0; self->at < self->n_devices; self->at++)
        if (is_due(self->devices[self->at], one)) check_on(self, self->devices[self->at], one, inputs, expected);
    for (int32_t k = 0; k < results_of(one); k++) tensor_release(&expected[k]);
    for (int32_t i = 0; i < one->n_inputs; i++) tensor_release(&inputs[i]);
}

void conformance_check(wefti_device *const *devices, int32_t n_devices) {
    tally self = {.devices = devices, .n_devices = n_devices};
    conformance_visit(check_case, &self);
    if (!is_limited()) check_coverage(&self);
    cr_assert_eq(self.wrong, 0, "%d results of %d cases are wrong", self.wrong, self.cases);
}

/* Small cases seldom have more than one part: one in thirteen will do, and two of three large ones. What threads may have to do with one
 * another is seen in far fewer. */
static bool is_worth_it(const tally *self, const test_case *one) {
    int64_t most = weft_shape_elements(one->outputs[0].shape);
    for (int32_t i = 0; i < one->n_inputs; i++) most = wefti_max_i64(most, weft_shape_elements(one->inputs[i].shape));
    if (UNDER_THREAD_SANITIZER) return most >= 1000 && self->cases % 41 == 0;
    if (!is_wanted(one)) return false;
    return most >= 1000 ? self->cases % 3 != 0 : self->cases % 13 == 0;
}

static void compare_case(void *context, const test_case *one) {
    tally *self = context;
    tensor inputs[MOST_INPUTS];
    void  *first[MOST_OUTPUTS] = {NULL}, *got[MOST_OUTPUTS];
    char   why[256];
    self->cases++;
    if (!is_worth_it(self, one)) return;
    draw_inputs(one, inputs);
    for (int32_t d = 0; d < self->n_devices && is_due(self->devices[d], one); d++) {
        if (!compute(self->devices[d], one, inputs, d ? got : first, why)) complain(self, one, why);
        for (int32_t k = 0; d && k < results_of(one); k++) {
            size_t bytes = (size_t)weft_shape_elements(result_at(one, k).shape) * weft_dtype_bytes(result_at(one, k).dtype);
            if (first[k] && got[k] && memcmp(first[k], got[k], bytes) != 0) complain(self, one, "the bits differ");
            free(got[k]);
        }
    }
    for (int32_t k = 0; k < results_of(one); k++) free(first[k]);
    for (int32_t i = 0; i < one->n_inputs; i++) tensor_release(&inputs[i]);
}

void conformance_same_bits(wefti_device *const *devices, int32_t n_devices) {
    tally self = {.devices = devices, .n_devices = n_devices};
    conformance_visit(compare_case, &self);
    cr_assert_eq(self.wrong, 0, "%d of %d cases differ", self.wrong, self.cases);
}

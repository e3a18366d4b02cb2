/* The suite's driver: draw, compute, compare. */
#include "device/conformance.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor/operand.h"

enum { LISTED = 20 };

void conformance_visit(case_visitor visit, void *context) {
    visit_elementwise(visit, context);
    visit_reductions(visit, context);
    visit_moves(visit, context);
    visit_products(visit, context);
    visit_rows(visit, context);
}

const char *case_name(const test_case *self) {
    static const char *const layouts[LAYOUT_COUNT] = {"", " gapped", " turned", " repeated"};
    static char              text[512];
    int used = snprintf(text, sizeof text, "%s%s", wefti_ops[self->op].name, self->in_place ? " in place" : "");
    for (int32_t i = 0; i < self->n_inputs && used < 400; i++)
        used += snprintf(text + used, sizeof text - (size_t)used, " %s%s%s", weft_dtype_name(self->inputs[i].dtype),
                         weft_shape_text(self->inputs[i].shape).text, layouts[self->inputs[i].layout]);
    snprintf(text + used, sizeof text - (size_t)used, " -> %s%s", weft_dtype_name(self->outputs[0].dtype),
             weft_shape_text(self->outputs[0].shape).text);
    return text;
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
    wefti_device *device, *two, *three;
    int           cases, wrong;
} tally;

static void complain(tally *self, const test_case *one, const char *why) {
    if (self->wrong++ < LISTED) fprintf(stderr, "  %s: %s\n", case_name(one), why);
}

static void draw_inputs(const test_case *one, tensor *inputs) {
    for (int32_t i = 0; i < one->n_inputs; i++) inputs[i] = tensor_draw(&one->inputs[i], one->seed + 1000u * (uint64_t)i);
    if (one->derive) one->derive(one, inputs);
}

static void check_case(void *context, const test_case *one) {
    tally *self = context;
    tensor inputs[MOST_INPUTS], outputs[MOST_OUTPUTS];
    void  *got[MOST_OUTPUTS] = {NULL};
    char   why[256];
    self->cases++;
    draw_inputs(one, inputs);
    for (int32_t k = 0; k < one->n_outputs; k++) outputs[k] = tensor_create(one->outputs[k].dtype, one->outputs[k].shape);
    if (!compute(self->device, one, inputs, got, why)) complain(self, one, why);
    else define(one, inputs, outputs);
    for (int32_t k = 0; k < one->n_outputs && !why[0]; k++)
        for (int64_t i = 0; i < outputs[k].n; i++) {
            if (agrees(&outputs[k], i, got[k])) continue;
            snprintf(why, sizeof why, "output %d element %lld is %.9g, expected %.9g", (int)k, (long long)i,
                     wefti_load_f64(got[k], i, outputs[k].dtype),
                     weft_dtype_is_float(outputs[k].dtype) ? outputs[k].f[i] : (double)outputs[k].i[i]);
            complain(self, one, why);
            break;
        }
    for (int32_t k = 0; k < one->n_outputs; k++) {
        tensor_release(&outputs[k]);
        free(got[k]);
    }
    for (int32_t i = 0; i < one->n_inputs; i++) tensor_release(&inputs[i]);
}

void conformance_check(wefti_device *device) {
    tally self = {.device = device};
    conformance_visit(check_case, &self);
    cr_assert_gt(self.cases, 1000);
    cr_assert_eq(self.wrong, 0, "%d of %d cases are wrong", self.wrong, self.cases);
}

/* Small cases seldom have more than one part: every seventh will do. */
static bool is_worth_it(const tally *self, const test_case *one) {
    int64_t most = weft_shape_elements(one->outputs[0].shape);
    for (int32_t i = 0; i < one->n_inputs; i++) most = wefti_max_i64(most, weft_shape_elements(one->inputs[i].shape));
    return most >= 1000 || self->cases % 7 == 0;
}

static void compare_case(void *context, const test_case *one) {
    tally        *self = context;
    wefti_device *devices[3] = {self->device, self->two, self->three};
    tensor        inputs[MOST_INPUTS];
    void         *got[3][MOST_OUTPUTS] = {{NULL}};
    char          why[256];
    self->cases++;
    if (!is_worth_it(self, one)) return;
    draw_inputs(one, inputs);
    for (int d = 0; d < 3; d++)
        if (!compute(devices[d], one, inputs, got[d], why)) complain(self, one, why);
    for (int d = 0; d < 3; d++)
        for (int32_t k = 0; k < one->n_outputs; k++) {
            size_t bytes = (size_t)weft_shape_elements(one->outputs[k].shape) * weft_dtype_bytes(one->outputs[k].dtype);
            if (got[0][k] && got[d][k] && memcmp(got[0][k], got[d][k], bytes) != 0) complain(self, one, "the bits differ");
            if (d > 0) free(got[d][k]);
        }
    for (int32_t k = 0; k < one->n_outputs; k++) free(got[0][k]);
    for (int32_t i = 0; i < one->n_inputs; i++) tensor_release(&inputs[i]);
}

void conformance_same_bits(wefti_device *one, wefti_device *two, wefti_device *three) {
    tally self = {.device = one, .two = two, .three = three};
    conformance_visit(compare_case, &self);
    cr_assert_eq(self.wrong, 0, "%d of %d cases differ", self.wrong, self.cases);
}

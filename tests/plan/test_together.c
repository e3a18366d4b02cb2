/* Small items of one kind stand side by side where the device joins them, and only where that takes no more memory. On a CPU that says that it joins
 * calls. */
#include "core/rules/rules.h"
#include "plan/fake_group.h"
#include "plan/support.h"

enum { ROWS = 32, COLUMNS = 64, ELEMENTS = ROWS * COLUMNS, PARAMETERS = 8 };

typedef weft_tensor *(*builder)(weft_graph *g, weft_tensor *x);

typedef struct outcome {
    int64_t peak_bytes;
    int32_t casts, places; /* and how many runs of neighbours they are */
} outcome;

static void update(weft_graph *g, weft_tensor *parameter, weft_tensor *gradient) {
    wefti_attrs  attrs = wefti_no_attrs();
    weft_solver  solver = weft_sgd(0.1);
    weft_tensor *hyper = weft_graph_find(g, "hyper");
    if (!hyper) hyper = weft_input(g, "hyper", WEFT_F64, weft_shape(WEFTI_HYPER_COUNT));
    attrs.update.rule = wefti_rule_for(&solver);
    weft_tensor *inputs[3] = {parameter, gradient, hyper};
    (void)wefti_emit(g, WEFT_OP_UPDATE, &attrs, inputs, 3, NULL);
}

static outcome plan_one(builder build, bool joins, weft_dtype dtype) {
    fake_group group;
    outcome    out = {0};
    weft_world *world = world_open(WEFTI_CPU_REFERENCE);
    weft_graph *g = graph_new(3);
    const wefti_device_vtable *own = world->device->vtable;
    wefti_device_vtable        says = *own;
    says.joins_calls = joins;
    world->device->vtable = &says;
    fake_group_open(&group, 2, 0);
    world->size = 2;
    world->group = &group.base;
    weft_tensor *result = build(g, weft_input(g, "x", dtype, weft_shape(ROWS, COLUMNS)));
    weft_plan   *plan = plan_of(world, g, true, (weft_plan_options){.bucket_bytes = ELEMENTS}, LIST(result));
    out.peak_bytes = plan->ir.peak_bytes;
    for (int32_t k = 0, before = -2; k < plan->ir.n_order; k++) {
        if (plan->ir.items[plan->ir.order[k]].op != WEFT_OP_CAST) continue;
        out.casts++;
        out.places += k != before + 1;
        before = k;
    }
    weft_plan_release(plan);
    weft_graph_release(g);
    world->device->vtable = own;
    world_close(world);
    fake_group_close(&group);
    return out;
}

/* Gradients that are made one after the other, in x's dtype, and updates of f32 behind all of them. */
static weft_tensor *cast_back(weft_graph *g, weft_tensor *x) {
    weft_tensor *gradient[PARAMETERS], *norm = weft_sum(x);
    char         name[16];
    for (int i = 0; i < PARAMETERS; i++) gradient[i] = weft_cast(weft_softmax(weft_mul_scalar(x, i + 1), 1), WEFT_F32);
    for (int i = 0; i < PARAMETERS; i++) {
        snprintf(name, sizeof name, "w%d", i);
        update(g, weft_parameter(g, name, weft_shape(ROWS, COLUMNS)), gradient[i]);
    }
    return norm;
}

Test(plan_together, casts_to_a_wider_type_wait_for_the_updates) {
    outcome joined = plan_one(cast_back, true, WEFT_BF16), plain = plan_one(cast_back, false, WEFT_BF16);
    cr_assert_eq(joined.casts, PARAMETERS);
    cr_assert_eq(joined.places, 1, "casts stand in %d places", (int)joined.places);
    cr_assert_gt(plain.places, 1);
    cr_assert_leq(joined.peak_bytes, plain.peak_bytes);
}

Test(plan_together, casts_to_a_narrower_type_do_not_keep_the_wide_one) {
    outcome joined = plan_one(cast_back, true, WEFT_F64), plain = plan_one(cast_back, false, WEFT_F64);
    cr_assert_eq(joined.casts, PARAMETERS);
    cr_assert_leq(joined.peak_bytes, plain.peak_bytes, "%lld bytes are live at once, %lld where nothing is joined", (long long)joined.peak_bytes,
                  (long long)plain.peak_bytes);
    cr_assert_lt(joined.peak_bytes, (int64_t)PARAMETERS * ELEMENTS * 8);
}

/* Parts of parameters, cast and gathered where they are read. */
static weft_tensor *gathered(weft_graph *g, weft_tensor *x) {
    char name[16];
    for (int i = 0; i < PARAMETERS; i++) {
        wefti_attrs attrs = wefti_no_attrs();
        attrs.comm.global = weft_shape(ELEMENTS);
        attrs.comm.paced = 1;
        snprintf(name, sizeof name, "w%d", i);
        weft_tensor *w = weft_parameter(g, name, weft_shape(ELEMENTS / 2)), *part = weft_cast(w, WEFT_BF16);
        weft_tensor *whole = weft_reshape(wefti_apply(WEFT_OP_ALL_GATHER, &attrs, &part, 1, NULL), weft_shape(ROWS, COLUMNS));
        x = weft_softmax(weft_add(x, weft_softmax(whole, 1)), 1);
    }
    update(g, weft_parameter(g, "last", weft_shape(ROWS, COLUMNS)), weft_cast(x, WEFT_F32));
    return weft_sum(x);
}

Test(plan_together, casts_that_are_gathered_stay_where_they_are_read) {
    outcome joined = plan_one(gathered, true, WEFT_BF16), plain = plan_one(gathered, false, WEFT_BF16);
    cr_assert_leq(joined.peak_bytes, plain.peak_bytes, "%lld bytes are live at once, %lld where nothing is joined", (long long)joined.peak_bytes,
                  (long long)plain.peak_bytes);
    cr_assert_lt(joined.peak_bytes, (int64_t)PARAMETERS * ELEMENTS * 2, "all are in memory at once");
}

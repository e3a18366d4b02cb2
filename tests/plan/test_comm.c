/* Communication in plans: values, buckets, places in the schedule, and faults; over a group of imagined ranks. */
#include "common/far.h"
#include "core/tensor/codec.h"
#include "plan/fake_group.h"
#include "plan/support.h"

static weft_tensor *all_reduce(weft_tensor *x, int32_t reduce) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.comm.reduce = reduce;
    return wefti_apply(WEFT_OP_ALL_REDUCE, &attrs, (weft_tensor *[]){x}, 1, NULL);
}
static weft_tensor *along(weft_op op, weft_tensor *x, int32_t axis, weft_shape result) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.comm.axis = axis;
    attrs.comm.global = result;
    return wefti_apply(op, &attrs, (weft_tensor *[]){x}, 1, NULL);
}

/* A wire that gives memory and carries nothing: for groups that need none but ask where to work. */
static weft_status region_create(wefti_wire *wire, size_t size_bytes, wefti_wire_region **region_out) {
    *region_out = calloc(1, sizeof **region_out);
    **region_out = (wefti_wire_region){.wire = wire, .base = aligned_alloc(4096, wefti_align_up(size_bytes, 4096)), .size_bytes = size_bytes};
    memset((*region_out)->base, 0xff, size_bytes);
    return WEFT_OK;
}
static void region_release(wefti_wire_region *region) {
    free(region->base);
    free(region);
}
static const wefti_wire_ops memory_only = {.region_create = region_create, .region_release = region_release};

/* Looks at a copy until it is over, on a device of its own memory; -1: the CPU itself. */
static int far_delay = -1;

typedef struct scene {
    weft_world   *world;
    weft_graph   *g;
    fake_group    group;
    wefti_wire    wire;
    wefti_device *inside; /* of the far device */
} scene;

static scene *scene_open(int32_t size, int32_t index) {
    scene *s = calloc(1, sizeof *s);
    s->world = world_open(WEFTI_CPU_REFERENCE);
    s->g = graph_new(3);
    fake_group_open(&s->group, size, index);
    s->world->size = size;
    s->world->rank = index;
    s->world->group = &s->group.base;
    if (far_delay < 0) return s;
    s->inside = s->world->device;
    s->world->device = far_device(s->inside, far_delay);
    s->wire.ops = &memory_only;
    s->group.base.wire = &s->wire;
    return s;
}
static void scene_close(scene *s) {
    weft_graph_release(s->g);
    if (s->inside) {
        cr_assert_eq(far_device_held(s->world->device), 0, "%zu bytes are still held", far_device_held(s->world->device));
        s->inside->vtable->release(s->inside);
    }
    world_close(s->world);
    fake_group_close(&s->group);
    free(s);
}
static void run_and_fetch(weft_plan *plan, const float *x, weft_shape shape, float *out, size_t bytes) {
    OK(weft_plan_run(plan, &(weft_feed){"x", WEFT_F32, shape, x}, 1));
    OK(weft_plan_fetch(plan, 0, out, bytes));
}

static void reduces_values_of_every_origin(void) {
    for (int32_t delay = 0; delay < 3; delay++) {
        scene *s = scene_open(3, 1);
        s->group.delay = delay;
        float        data[5] = {1, 2, 3, 4, 5}, out[5];
        weft_tensor *x = weft_input(s->g, "x", WEFT_F32, weft_shape(5)), *w = weft_parameter(s->g, "w", weft_shape(5), .init = weft_init_ones());
        weft_tensor *square = weft_square(x), *reduced = all_reduce(square, WEFTI_REDUCE_SUM);
        weft_tensor *results[] = {
            all_reduce(x, WEFTI_REDUCE_SUM),                             /* a fed array */
            all_reduce(w, WEFTI_REDUCE_AVG),                             /* a variable */
            reduced,                                                     /* computed */
            weft_add(square, reduced),                                   /* computed, and read again afterwards */
            all_reduce(weft_expand(weft_slice(x, 0, 1, 2), weft_shape(5)), WEFTI_REDUCE_SUM), /* a window */
            all_reduce(weft_full(s->g, WEFT_F32, weft_shape(5), 2), WEFTI_REDUCE_SUM),        /* a constant */
            all_reduce(reduced, WEFTI_REDUCE_MAX),                       /* of another collective */
            all_reduce(square, WEFTI_REDUCE_SUM),                        /* sent twice */
            NULL};
        weft_plan *plan = plan_of(s->world, s->g, false, (weft_plan_options){0}, results);
        float want[8][5];
        for (int i = 0; i < 5; i++) {
            float v = data[i];
            want[0][i] = 3 * v; want[1][i] = 1; want[2][i] = 3 * v * v; want[3][i] = 4 * v * v;
            want[4][i] = 6; want[5][i] = 6; want[6][i] = 3 * v * v; want[7][i] = 3 * v * v;
        }
        for (int run = 0; run < 3; run++) {
            run_and_fetch(plan, data, weft_shape(5), out, sizeof out);
            for (int o = 0; o < 8; o++) {
                OK(weft_plan_fetch(plan, o, out, sizeof out));
                for (int i = 0; i < 5; i++) cr_assert_eq(out[i], want[o][i], "output %d[%d] is %g, not %g", o, i, out[i], want[o][i]);
            }
        }
        cr_assert_eq(s->group.n_in_flight, 0);
        weft_plan_release(plan);
        scene_close(s);
    }
}
Test(plan_comm, reduces_values_of_every_origin) { reduces_values_of_every_origin(); }

static void gathers_and_scatters_along_any_axis_evenly_or_not(void) {
    for (int32_t axis = 0; axis < 3; axis++)
        for (int64_t total = 1; total <= 7; total++)
            for (int32_t index = 0; index < 3; index++) {
                scene  *s = scene_open(3, index);
                int64_t first, count, at[3];
                weft_batch_share(total, index, 3, &first, &count);
                weft_shape whole = weft_shape(2, 3, 2), part, in;
                whole.dim[axis] = total;
                part = whole;
                part.dim[axis] = count;
                /* scatter(x) sums equal copies; the own part comes back three times as large. */
                weft_tensor *x = weft_input(s->g, "x", WEFT_F32, whole);
                weft_tensor *mine = along(WEFT_OP_REDUCE_SCATTER, x, axis, part);
                /* The imagined ranks give what this one gives, so gathering is only tried where parts are equal. */
                bool         even = total % 3 == 0;
                weft_tensor *back = even ? along(WEFT_OP_ALL_GATHER, mine, axis, whole) : mine;
                weft_plan   *plan = plan_of(s->world, s->g, false, (weft_plan_options){0}, LIST(mine, back));
                float        data[64], out[64];
                fill(data, 64, 5);
                run_and_fetch(plan, data, whole, out, (size_t)weft_shape_elements(part) * 4);
                int64_t n = 0;
                for (at[0] = 0; at[0] < part.dim[0]; at[0]++)
                    for (at[1] = 0; at[1] < part.dim[1]; at[1]++)
                        for (at[2] = 0; at[2] < part.dim[2]; at[2]++, n++) {
                            int64_t from[3] = {at[0], at[1], at[2]};
                            from[axis] += first;
                            float want = data[(from[0] * whole.dim[1] + from[1]) * whole.dim[2] + from[2]];
                            cr_assert_eq(out[n], want + want + want);
                        }
                in = even ? whole : part;
                OK(weft_plan_fetch(plan, 1, out, (size_t)weft_shape_elements(in) * 4));
                for (int64_t i = 0; even && i < weft_shape_elements(whole); i++) {
                    int64_t inner = 1, position;
                    for (int a = axis + 1; a < 3; a++) inner *= whole.dim[a];
                    position = i / inner % total; /* each rank's part holds what this rank's does */
                    float want = data[i + (first + position % count - position) * inner];
                    cr_assert_eq(out[i], want + want + want);
                }
                weft_plan_release(plan);
                scene_close(s);
            }
}
Test(plan_comm, gathers_and_scatters_along_any_axis_evenly_or_not) { gathers_and_scatters_along_any_axis_evenly_or_not(); }

/* Rows go to their ranks: what comes is each rank's row for this one. Also where the sent value is read again, and of one byte each. */
static void sends_each_rank_its_row(void) {
    for (int32_t index = 0; index < 3; index++) {
        scene       *s = scene_open(3, index);
        float        data[6 * 5], out[6 * 5];
        weft_tensor *x = weft_input(s->g, "x", WEFT_F32, weft_shape(3, 2, 5)), *computed = weft_mul_scalar(x, 2);
        weft_tensor *fed = along(WEFT_OP_ALL_TO_ALL, x, 0, x->shape), *sent = along(WEFT_OP_ALL_TO_ALL, computed, 0, x->shape);
        weft_tensor *small = along(WEFT_OP_ALL_TO_ALL, weft_cast(x, WEFT_BF16), 0, x->shape);
        weft_plan   *plan = plan_of(s->world, s->g, false, (weft_plan_options){0}, LIST(fed, weft_sub(sent, computed), weft_cast(small, WEFT_F32)));
        for (int i = 0; i < 30; i++) data[i] = (float)i;
        for (int run = 0; run < 2; run++) {
            run_and_fetch(plan, data, x->shape, out, sizeof out);
            for (int i = 0; i < 30; i++) cr_assert_eq(out[i], index * 10 + i % 10, "[%d] is %g", i, out[i]);
            OK(weft_plan_fetch(plan, 1, out, sizeof out));
            for (int i = 0; i < 30; i++) cr_assert_eq(out[i], 2 * (index * 10 + i % 10 - i), "computed [%d] is %g", i, out[i]);
            OK(weft_plan_fetch(plan, 2, out, sizeof out));
            for (int i = 0; i < 30; i++) cr_assert_eq(out[i], index * 10 + i % 10, "bf16 [%d] is %g", i, out[i]);
        }
        check_layout(plan);
        weft_plan_release(plan);
        scene_close(s);
    }
}
Test(plan_comm, sends_each_rank_its_row) { sends_each_rank_its_row(); }

/* Of six rows of five, as many as counts say, which are fed and differ from run to run; then counts that fit nothing. */
static void exchanges_as_many_rows_as_there_are(void) {
    static const int32_t counts[3][2][3] = {{{1, 2, 3}, {2, 2, 1}}, {{0, 2, 4}, {2, 1, 0}}, {{0, 0, 0}, {0, 0, 0}}};
    static const int32_t wrong[4][2][3] = {{{1, 2, 4}, {0, 0, 0}}, {{-1, 2, 3}, {0, 0, 0}}, {{0, 0, 0}, {5, 5, -2}}, {{0, 0, 0}, {5, 5, 0}}};
    for (int32_t index = 0; index < 3; index++) {
        scene       *s = scene_open(3, index);
        float        data[6 * 5], out[8 * 5];
        wefti_attrs  attrs = wefti_no_attrs();
        weft_tensor *x = weft_input(s->g, "x", WEFT_F32, weft_shape(6, 5)), *c = weft_input(s->g, "counts", WEFT_I32, weft_shape(2, 3));
        weft_tensor *inputs[2] = {weft_mul_scalar(x, 2), c};
        attrs.comm.global = weft_shape(8, 5);
        weft_plan *plan = plan_of(s->world, s->g, false, (weft_plan_options){0}, LIST(wefti_apply(WEFT_OP_EXCHANGE_ROWS, &attrs, inputs, 2, NULL)));
        for (int i = 0; i < 30; i++) data[i] = (float)i;
        for (int run = 0; run < 3; run++) {
            weft_feed feeds[2] = {{"x", WEFT_F32, weft_shape(6, 5), data}, {"counts", WEFT_I32, weft_shape(2, 3), counts[run]}};
            int       first = 0, row = 0;
            for (int r = 0; r < index; r++) first += counts[run][0][r];
            OK(weft_plan_run(plan, feeds, 2));
            OK(weft_plan_fetch(plan, 0, out, sizeof out));
            for (int r = 0; r < 3; r++)
                for (int k = 0; k < counts[run][1][r]; k++, row++)
                    for (int i = 0; i < 5; i++) cr_assert_eq(out[row * 5 + i], 2 * (float)((first + k) * 5 + i), "run %d, row %d", run, row);
        }
        for (int run = 0; run < 4; run++) {
            weft_feed feeds[2] = {{"x", WEFT_F32, weft_shape(6, 5), data}, {"counts", WEFT_I32, weft_shape(2, 3), wrong[run]}};
            cr_assert_eq(weft_plan_run(plan, feeds, 2), WEFT_E_CORRUPT);
            cr_assert_not_null(strstr(weft_error_message(), "do not fit 6 rows and room for 8"), "%s", weft_error_message());
        }
        weft_plan_release(plan);
        scene_close(s);
    }
}
Test(plan_comm, exchanges_as_many_rows_as_there_are) { exchanges_as_many_rows_as_there_are(); }

/* A chain of layers whose gradients are reduced and then applied; micro says how many reductions there are. */
static weft_plan *layers(scene *s, int32_t n, weft_plan_options options) {
    weft_tensor *x = weft_input(s->g, "x", WEFT_F32, weft_shape(4, 8)), *h = x, *wrt[16], *grad[16], *outputs[2] = {0};
    char         name[16];
    for (int32_t i = 0; i < n; i++) {
        snprintf(name, sizeof name, "w%d", i);
        wrt[i] = weft_parameter(s->g, name, weft_shape(8, 8));
        h = weft_tanh(weft_matmul(h, wrt[i]));
    }
    outputs[0] = all_reduce(weft_mean(weft_square(h)), WEFTI_REDUCE_AVG);
    OK(weft_gradients(weft_mean(weft_square(h)), wrt, n, grad));
    for (int32_t i = 0; i < n; i++)
        weft_assign(wrt[i], weft_sub(wrt[i], weft_mul_scalar(all_reduce(grad[i], WEFTI_REDUCE_AVG), 0.1)));
    return plan_of(s->world, s->g, true, options, outputs);
}

Test(plan_comm, buckets_gradients_and_starts_them_in_the_backward_pass) {
    scene     *s = scene_open(2, 0);
    weft_plan *plan = layers(s, 12, (weft_plan_options){.bucket_bytes = 3 * 256, .first_bucket_bytes = 256, .trace = true});
    /* The loss fills the first bucket up to 4 bytes; then one gradient of 256; then three at a time. */
    int32_t starts = 0, launches_after_first = 0, waits = 0;
    for (int32_t i = 0; i < plan->ir.n_steps; i++) {
        wefti_step_kind kind = plan->ir.steps[i].kind;
        starts += kind == WEFTI_STEP_START;
        waits += kind == WEFTI_STEP_WAIT;
        launches_after_first += kind == WEFTI_STEP_LAUNCH && starts > 0 && starts < plan->ir.n_collectives;
        cr_assert(kind != WEFTI_STEP_WAIT || starts == plan->ir.n_collectives, "waits before everything was started");
    }
    cr_assert_eq(starts, 5, "%d collectives", starts);
    cr_assert_eq(waits, starts);
    cr_assert_geq(launches_after_first, 3, "nothing is computed while messages are in flight");
    float x[32];
    fill(x, 32, 9);
    s->group.delay = 1000;
    OK(weft_plan_run(plan, &(weft_feed){"x", WEFT_F32, weft_shape(4, 8), x}, 1));
    cr_assert_eq(s->group.most_in_flight, 5, "at most %d in flight", s->group.most_in_flight);
    weft_trace_event events[64];
    int32_t          n = weft_plan_trace(plan, events, 64), collectives = 0;
    for (int32_t i = 0; i < n; i++) {
        cr_assert_leq(events[i].begin_ns, events[i].end_ns);
        collectives += events[i].kind == WEFT_TRACE_COLLECTIVE;
    }
    cr_assert_eq(collectives, 5);
    cr_assert_eq(events[n - 1].kind, WEFT_TRACE_RUN);
    weft_plan_release(plan);
    scene_close(s);
}

/* The order in which a plan waits for its collectives, as indices of collectives. */
static int32_t waits_of(const weft_plan *plan, int32_t *order_out) {
    int32_t n = 0;
    for (int32_t i = 0; i < plan->ir.n_steps; i++)
        if (plan->ir.steps[i].kind == WEFTI_STEP_WAIT) order_out[n++] = plan->ir.steps[i].index;
    return n;
}

/* What is needed first goes first: priorities fall in the order of the waits, and that is what the group is told. */
static void is_urgent_in_the_order_of_need(weft_plan *plan, const fake_group *group) {
    int32_t order[64], n = waits_of(plan, order);
    cr_assert_eq(n, plan->ir.n_collectives);
    for (int32_t i = 1; i < n; i++)
        cr_assert_gt(plan->ir.collectives[order[i - 1]].priority, plan->ir.collectives[order[i]].priority, "wait %d is no less urgent than the one before", i);
    for (int32_t c = 0; c < n; c++) cr_assert_eq(group->started[c].priority, plan->ir.collectives[c].priority, "collective %d", c);
}

Test(plan_comm, gradients_that_are_needed_first_are_the_most_urgent) {
    scene     *s = scene_open(2, 0);
    weft_plan *plan = layers(s, 12, (weft_plan_options){.bucket_bytes = 3 * 256, .first_bucket_bytes = 256});
    float      x[32] = {0};
    s->group.delay = 1000;
    OK(weft_plan_run(plan, &(weft_feed){"x", WEFT_F32, weft_shape(4, 8), x}, 1));
    cr_assert_eq(plan->ir.n_collectives, 5);
    is_urgent_in_the_order_of_need(plan, &s->group);
    weft_plan_release(plan);
    scene_close(s);
}

/* A statistic that computing stands still for is started behind a gradient that is wanted at the end only, and overtakes it. */
Test(plan_comm, what_computing_waits_for_overtakes_gradients) {
    scene       *s = scene_open(2, 0);
    weft_tensor *x = weft_input(s->g, "x", WEFT_F32, weft_shape(4, 8)), *w = weft_parameter(s->g, "w", weft_shape(4, 8));
    weft_tensor *gradient = all_reduce(weft_square(x), WEFTI_REDUCE_SUM);
    weft_tensor *statistic = all_reduce(weft_sum(weft_exp(x)), WEFTI_REDUCE_MAX);
    weft_tensor *after = all_reduce(weft_mul(x, statistic), WEFTI_REDUCE_SUM);
    weft_assign(w, weft_sub(w, weft_add(gradient, after)));
    weft_plan *plan = plan_of(s->world, s->g, true, (weft_plan_options){.bucket_bytes = -1}, LIST(weft_sum(after)));
    float      data[32] = {0};
    int32_t    order[64];
    s->group.delay = 1000;
    OK(weft_plan_run(plan, &(weft_feed){"x", WEFT_F32, weft_shape(4, 8), data}, 1));
    cr_assert_eq(waits_of(plan, order), 3);
    cr_assert_eq(s->group.started[order[0]].op, WEFTI_REDUCE_MAX, "the statistic is waited for first");
    cr_assert_gt(order[0], 0, "something was started before it");
    is_urgent_in_the_order_of_need(plan, &s->group);
    weft_plan_release(plan);
    scene_close(s);
}

/* Sums that each layer waits for, as between products that are split: what is made of the sum before, for the end only, is computed meanwhile. */
Test(plan_comm, what_waits_for_nothing_in_flight_fills_the_gaps) {
    enum { N = 6 };
    scene       *s = scene_open(2, 0);
    weft_tensor *h = weft_input(s->g, "x", WEFT_F32, weft_shape(8, 8));
    char         name[16];
    for (int32_t i = 0; i < N; i++) {
        snprintf(name, sizeof name, "w%d", i);
        h = all_reduce(weft_tanh(weft_matmul(h, h)), WEFTI_REDUCE_SUM);
        weft_assign(weft_parameter(s->g, name, weft_shape(8, 8)), weft_matmul(weft_exp(h), h));
    }
    weft_plan *plan = plan_of(s->world, s->g, true, (weft_plan_options){0}, LIST(weft_sum(h)));
    int32_t    open = -1, launches = 0, hidden = 0;
    for (int32_t i = 0; i < plan->ir.n_steps; i++) {
        wefti_plan_step step = plan->ir.steps[i];
        if (step.kind == WEFTI_STEP_START) open = step.index, launches = 0;
        if (step.kind == WEFTI_STEP_LAUNCH) launches++;
        if (step.kind == WEFTI_STEP_WAIT && step.index == open) hidden += launches > 0, open = -1;
    }
    cr_assert_eq(plan->ir.n_collectives, N);
    cr_assert_eq(hidden, N - 1, "something is computed while %d of %d sums are on their way", hidden, N - 1); /* nothing is there yet for the first */
    weft_plan_release(plan);
    scene_close(s);
}

/* Sums that are ready one behind the other, for nobody but the end, go as one message; of another kind, or read before, they do not. */
Test(plan_comm, adjacent_sums_are_joined) {
    scene       *s = scene_open(2, 0);
    weft_tensor *x = weft_input(s->g, "x", WEFT_F32, weft_shape(4, 8)), *read = all_reduce(weft_tanh(x), WEFTI_REDUCE_SUM);
    weft_tensor *sums[3] = {all_reduce(weft_exp(x), WEFTI_REDUCE_SUM), all_reduce(weft_sin(x), WEFTI_REDUCE_SUM), all_reduce(weft_square(x), WEFTI_REDUCE_SUM)};
    weft_tensor *most = all_reduce(weft_exp(x), WEFTI_REDUCE_MAX), *again = all_reduce(weft_exp(read), WEFTI_REDUCE_SUM);
    weft_plan   *plan = plan_of(s->world, s->g, false, (weft_plan_options){0}, LIST(sums[0], sums[1], sums[2], most, again));
    int32_t      joined = 0;
    for (int32_t i = 0; i < plan->ir.n_collectives; i++) joined += plan->ir.items[plan->ir.collectives[i].item].n_inputs == 3;
    cr_expect_eq(plan->ir.n_collectives, 4, "%d messages", plan->ir.n_collectives);
    cr_expect_eq(joined, 1, "three sums are not one message");
    weft_plan_release(plan);
    scene_close(s);
}

static void equal_ranks_on_equal_batches_train_as_one_does(void) {
    float one[12][64], x[32];
    fill(x, 32, 9);
    for (int32_t variant = 0; variant < 6; variant++) {
        int32_t size = variant == 0 ? 1 : 4;
        scene  *s = scene_open(size, 0);
        s->group.delay = variant == 2 ? 5 : 0;
        if (variant == 3) s->group.most = 1;
        weft_plan_options options = {.bucket_bytes = variant == 4 ? -1 : 600, .no_in_place = variant == 5, .no_reuse = variant == 5};
        weft_plan *plan = layers(s, 12, options);
        for (int32_t step = 0; step < 5; step++) OK(weft_plan_run(plan, &(weft_feed){"x", WEFT_F32, weft_shape(4, 8), x}, 1));
        cr_assert_eq(s->group.n_started == 0, size == 1, "a group of one communicates");
        for (int32_t i = 0; i < 12; i++) {
            char  name[16];
            float got[64];
            snprintf(name, sizeof name, "w%d", i);
            OK(weft_variables_get(weft_plan_variables(plan), name, variant == 0 ? one[i] : got, sizeof got));
            if (variant) cr_assert_eq(memcmp(one[i], got, sizeof got), 0, "variant %d: '%s' differs", variant, name);
        }
        weft_plan_release(plan);
        scene_close(s);
    }
}
Test(plan_comm, equal_ranks_on_equal_batches_train_as_one_does) { equal_ranks_on_equal_batches_train_as_one_does(); }

/* Sends what it computes and what came, to both peers, more often than operations fly at once. */
static void gives_peers_what_it_has_and_takes_what_they_send(void) {
    scene       *s = scene_open(3, 1);
    float        data[4] = {1, 2, 3, 4}, out[4], sent = 0;
    weft_tensor *x = weft_input(s->g, "x", WEFT_F32, weft_shape(4)), *y = x;
    for (int32_t i = 0; i < 8; i++) {
        wefti_attrs attrs = wefti_no_attrs();
        attrs.comm.peer = i % 2 ? 2 : 0;
        attrs.comm.dtype = WEFT_F32;
        attrs.comm.global = weft_shape(4);
        weft_tensor *came = wefti_emit(s->g, WEFT_OP_RECEIVE, &attrs, NULL, 0, NULL);
        y = weft_add(weft_mul_scalar(y, 0.5), came);
        (void)wefti_apply(WEFT_OP_SEND, &attrs, &y, 1, NULL);
        attrs.comm.peer = 2 - attrs.comm.peer;
        (void)wefti_apply(WEFT_OP_SEND, &attrs, &came, 1, NULL);
    }
    weft_plan *plan = plan_of(s->world, s->g, false, (weft_plan_options){0}, LIST(y));
    s->group.delay = 2;
    for (int run = 0; run < 2; run++) {
        run_and_fetch(plan, data, weft_shape(4), out, sizeof out);
        s->group.most = 2;
        float want[4] = {1, 2, 3, 4};
        for (int i = 0; i < 8; i++)
            for (int k = 0; k < 4; k++) {
                float came = (float)((i % 2 ? 200 : 0) + 4 * run + i / 2);
                want[k] = want[k] * 0.5f + came;
                sent += want[k] + came;
            }
        for (int k = 0; k < 4; k++) cr_assert_eq(out[k], want[k], "run %d: %g, not %g", run, (double)out[k], (double)want[k]);
        cr_assert_float_eq(s->group.sent, sent, 1e-3f * sent, "%g was sent, not %g", (double)s->group.sent, (double)sent);
        cr_assert_eq(s->group.n_in_flight, 0);
    }
    weft_plan_release(plan);
    scene_close(s);
}
Test(plan_comm, gives_peers_what_it_has_and_takes_what_they_send) { gives_peers_what_it_has_and_takes_what_they_send(); }

static void a_lost_rank_ends_the_run_with_its_message_and_nothing_in_flight(void) {
    for (int32_t fail_at = 0; fail_at < 5; fail_at++) {
        scene     *s = scene_open(2, 0);
        weft_plan *plan = layers(s, 12, (weft_plan_options){.bucket_bytes = 3 * 256, .first_bucket_bytes = 256});
        float      x[32] = {0};
        s->group.fail_at = fail_at;
        s->group.delay = fail_at;
        FAILS(WEFT_E_PEER, weft_plan_run(plan, &(weft_feed){"x", WEFT_F32, weft_shape(4, 8), x}, 1), "rank 1 is gone");
        cr_assert_eq(s->group.n_in_flight, 0);
        FAILS(WEFT_E_STATE, weft_plan_fetch(plan, 0, x, 4), "has not run");
        weft_plan_release(plan);
        scene_close(s);
    }
}
Test(plan_comm, a_lost_rank_ends_the_run_with_its_message_and_nothing_in_flight) { a_lost_rank_ends_the_run_with_its_message_and_nothing_in_flight(); }

Test(plan_comm, a_share_of_the_wrong_size_is_named) {
    scene       *s = scene_open(3, 1);
    weft_tensor *x = weft_input(s->g, "x", WEFT_F32, weft_shape(3, 2));
    weft_tensor *y = along(WEFT_OP_ALL_GATHER, x, 0, weft_shape(7, 2));
    weft_plan   *plan = NULL;
    FAILS(WEFT_E_SHAPE, weft_plan_create(s->world, s->g, &(weft_plan_options){.outputs = &y, .n_outputs = 1}, &plan), "its share is 2");
    scene_close(s);
}

/* All of it where what is sent is first copied out of the device's memory and what comes is copied in, soon or late. */
Test(plan_comm, works_alike_on_a_device_of_its_own_memory) {
    static const int delays[] = {0, 1, 20};
    for (int i = 0; i < 3; i++) {
        far_delay = delays[i];
        reduces_values_of_every_origin();
        sends_each_rank_its_row();
        gathers_and_scatters_along_any_axis_evenly_or_not();
        equal_ranks_on_equal_batches_train_as_one_does();
        gives_peers_what_it_has_and_takes_what_they_send();
        a_lost_rank_ends_the_run_with_its_message_and_nothing_in_flight();
    }
}

/* --- codecs --- */

static weft_tensor *coded(weft_op op, weft_tensor *x, weft_codec codec, int64_t part, int64_t count, int64_t kept, bool sum) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.codec.codec = (int32_t)codec;
    attrs.codec.part = part;
    attrs.codec.count = count;
    attrs.codec.kept = kept;
    attrs.codec.sum = sum;
    return wefti_apply(op, &attrs, (weft_tensor *[]){x}, 1, NULL);
}

/* Encoded and decoded in a plan is what the codec's functions give, on any number of threads, from what is contiguous or not. */
Test(plan_codecs, give_the_bits_of_the_functions_on_any_number_of_threads) {
    enum { A = 300, B = 1001, N = A * B, PART = 150016, KEPT = 3000 };
    float *x = malloc(N * sizeof *x), *due = malloc(N * sizeof *due), *got = malloc(N * sizeof *got);
    fill(x, N, 3);
    for (int codec = 1; codec < WEFT_CODEC_COUNT; codec++) {
        const wefti_codec_functions *f = wefti_codec_of(codec)->functions;
        for (int32_t threads = 1; f && threads <= 3; threads++) {
            bool        cut = f->grain > 0; /* in three parts, the last of which ends early; else in one */
            int64_t     part = cut ? PART : N, kept = cut ? 0 : KEPT;
            weft_world *world = calloc(1, sizeof *world);
            weft_graph *g = graph_new(2);
            world->size = 1;
            OK(wefti_cpu_create(&(wefti_cpu_options){.isa = WEFTI_CPU_AUTO, .threads = {.count = threads}}, &world->device));
            weft_tensor *in = weft_input(g, "x", WEFT_F32, weft_shape(A, B));
            weft_tensor *bytes = coded(WEFT_OP_ENCODE, in, (weft_codec)codec, part, cut ? 3 : 1, kept, false);
            weft_tensor *turned = coded(WEFT_OP_ENCODE, weft_permute(weft_reshape(in, weft_shape(B, A)), weft_axes(1, 0)), (weft_codec)codec, part, cut ? 3 : 1, kept, false);
            weft_plan *plan = plan_of(world, g, false, (weft_plan_options){0},
                                      LIST(coded(WEFT_OP_DECODE, bytes, (weft_codec)codec, part, N, kept, false), turned,
                                           coded(WEFT_OP_DECODE, turned, (weft_codec)codec, part, N, kept, false)));
            uint8_t *encoded = malloc((size_t)f->bytes(part, kept)), *scratch = malloc(f->scratch_bytes ? (size_t)f->scratch_bytes(part) : 1);
            for (int64_t at = 0; at < N; at += part) {
                wefti_codec_part one = {.elements = part, .kept = kept, .given = wefti_min_i64(part, N - at)};
                f->encode(&one, x + at, encoded, scratch);
                OK(f->decode(&one, encoded, (size_t)f->bytes(part, kept), false, due + at));
            }
            run_and_fetch(plan, x, weft_shape(A, B), got, N * sizeof *got);
            cr_assert_eq(memcmp(got, due, N * sizeof *due), 0, "codec %d on %d threads", codec, threads);
            for (int64_t i = 0; i < N; i++) got[i] = x[i % B * A + i / B]; /* in the order in which it was encoded */
            for (int64_t at = 0; at < N; at += part) {
                wefti_codec_part one = {.elements = part, .kept = kept, .given = wefti_min_i64(part, N - at)};
                f->encode(&one, got + at, encoded, scratch);
                OK(f->decode(&one, encoded, (size_t)f->bytes(part, kept), false, due + at));
            }
            OK(weft_plan_fetch(plan, 2, got, N * sizeof *got));
            cr_assert_eq(memcmp(got, due, N * sizeof *due), 0, "codec %d on %d threads, turned", codec, threads);
            free(encoded);
            free(scratch);
            weft_plan_release(plan);
            weft_graph_release(g);
            world_close(world);
        }
    }
    free(x);
    free(due);
    free(got);
}

/* Bytes that no codec made end the run with a word, and the process goes on. */
Test(plan_codecs, end_the_run_at_bytes_that_are_none) {
    weft_world  *world = world_open(WEFTI_CPU_AUTO);
    weft_graph  *g = graph_new(2);
    weft_tensor *bytes = weft_input(g, "bytes", WEFT_U8, weft_shape(2, 16));
    weft_plan   *plan = plan_of(world, g, false, (weft_plan_options){0}, LIST(coded(WEFT_OP_DECODE, bytes, WEFT_COMPRESS_TOP_K, 100, 100, 2, true)));
    uint32_t     given[2][4] = {{3, 99, 0x3f800000u, 0x40000000u}, {7, 100, 0x3f800000u, 0x40000000u}};
    float        out[100];
    FAILS(WEFT_E_CORRUPT, weft_plan_run(plan, &(weft_feed){"bytes", WEFT_U8, weft_shape(2, 16), given}, 1), "number 100 of 100");
    cr_assert(strstr(weft_error_message(), "part 1"), "%s", weft_error_message());
    given[1][1] = 99;
    OK(weft_plan_run(plan, &(weft_feed){"bytes", WEFT_U8, weft_shape(2, 16), given}, 1));
    OK(weft_plan_fetch(plan, 0, out, sizeof out));
    for (int i = 0; i < 100; i++) cr_assert_eq(out[i], i == 99 ? 4 : i == 3 || i == 7 ? 1 : 0, "[%d] is %g", i, out[i]);
    weft_plan_release(plan);
    weft_graph_release(g);
    world_close(world);
}

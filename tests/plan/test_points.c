/* SEND and RECEIVE in plans: where they stand, and what they cost. What becomes of them between ranks is in test_messages.c. */
#include "plan/fake_group.h"
#include "plan/support.h"

static weft_tensor *send(weft_tensor *x, int32_t peer) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.comm.peer = peer;
    return wefti_apply(WEFT_OP_SEND, &attrs, &x, 1, NULL);
}
static weft_tensor *receive(weft_graph *graph, int32_t peer, weft_shape shape) {
    wefti_attrs attrs = wefti_no_attrs();
    attrs.comm.peer = peer;
    attrs.comm.dtype = WEFT_F32;
    attrs.comm.global = shape;
    return wefti_emit(graph, WEFT_OP_RECEIVE, &attrs, NULL, 0, NULL);
}

/* --- one rank, whose peers are imagined --- */

typedef struct scene {
    weft_world *world;
    weft_graph *g;
    fake_group  group;
} scene;

static scene *scene_open(int32_t size, int32_t index) {
    scene *s = calloc(1, sizeof *s);
    s->world = world_open(WEFTI_CPU_REFERENCE);
    s->g = graph_new(3);
    fake_group_open(&s->group, size, index);
    s->world->size = size;
    s->world->rank = index;
    s->world->group = &s->group.base;
    return s;
}
static void scene_close(scene *s) {
    weft_graph_release(s->g);
    world_close(s->world);
    fake_group_close(&s->group);
    free(s);
}

static int32_t step_of(const weft_plan *plan, wefti_step_kind kind, weft_op op, int32_t number) {
    for (int32_t i = 0; i < plan->ir.n_steps; i++) {
        const wefti_plan_step *step = &plan->ir.steps[i];
        if (step->kind != kind || plan->ir.items[plan->ir.collectives[step->index].item].op != op) continue;
        if (number-- == 0) return i;
    }
    cr_assert_fail("there is no such step");
    return -1;
}

Test(plan_points, are_counted_and_never_pruned) {
    scene       *s = scene_open(3, 1);
    float        data[6] = {1, 2, 3, 4, 5, 6}, out[6];
    weft_tensor *x = weft_input(s->g, "x", WEFT_F32, weft_shape(6)), *square = weft_square(x);
    weft_tensor *got = receive(s->g, 2, weft_shape(6));
    (void)send(x, 0);      /* a fed array: copied */
    (void)send(square, 0); /* what others read and send, too: from where it lies */
    (void)send(square, 2);
    weft_plan *plan = plan_of(s->world, s->g, false, (weft_plan_options){0}, LIST(weft_add(square, got)));
    weft_plan_totals totals;
    weft_plan_totals_read(plan, &totals);
    cr_assert_eq(totals.collectives, 4);
    cr_assert_eq(totals.sent_bytes, 3 * 24, "%lld", (long long)totals.sent_bytes);
    cr_assert_eq(count_ops(plan, WEFT_OP_SEND), 3);
    cr_assert_eq(count_ops(plan, WEFT_OP_COPY), 1);
    const char *text;
    OK(weft_plan_describe(plan, &text));
    cr_assert(strstr(text, "send") && strstr(text, "receive"));
    for (int run = 0; run < 3; run++) {
        OK(weft_plan_run(plan, &(weft_feed){"x", WEFT_F32, weft_shape(6), data}, 1));
        OK(weft_plan_fetch(plan, 0, out, sizeof out));
        for (int i = 0; i < 6; i++) cr_assert_eq(out[i], data[i] * data[i] + 200 + (float)run, "%g", (double)out[i]);
        cr_assert_eq(s->group.n_in_flight, 0);
    }
    weft_plan_release(plan);
    scene_close(s);
}

/* A message is expected before anything is computed; the fourth not before the second has been read. Nothing waits for what is sent but the end. */
Test(plan_points, are_started_early_and_waited_for_late) {
    scene       *s = scene_open(2, 0);
    weft_tensor *x = weft_input(s->g, "x", WEFT_F32, weft_shape(4)), *y = x, *outputs[7] = {NULL};
    for (int i = 0; i < 6; i++) {
        for (int k = 0; k < 4; k++) y = weft_matmul(weft_reshape(weft_square(y), weft_shape(2, 2)), weft_reshape(y, weft_shape(2, 2)));
        y = weft_reshape(y, weft_shape(4));
        (void)send(y, 1);
        y = weft_add(y, receive(s->g, 1, weft_shape(4)));
        outputs[i] = weft_sum(y);
    }
    weft_plan *plan = plan_of(s->world, s->g, false, (weft_plan_options){0}, outputs);
    int32_t    first_launch = 0, last_launch = 0;
    for (int32_t i = plan->ir.n_steps - 1; i >= 0; i--) {
        if (plan->ir.steps[i].kind != WEFTI_STEP_LAUNCH) continue;
        if (last_launch == 0) last_launch = i;
        first_launch = i;
    }
    for (int i = 0; i < 6; i++) {
        int32_t start = step_of(plan, WEFTI_STEP_START, WEFT_OP_RECEIVE, i), wait = step_of(plan, WEFTI_STEP_WAIT, WEFT_OP_RECEIVE, i);
        if (i < 2) cr_assert_lt(start, first_launch);
        else cr_assert_gt(start, step_of(plan, WEFTI_STEP_WAIT, WEFT_OP_RECEIVE, i - 2));
        cr_assert_lt(start, wait);
        cr_assert_lt(step_of(plan, WEFTI_STEP_START, WEFT_OP_SEND, i), wait, "what the peer needs first goes first");
        cr_assert_gt(step_of(plan, WEFTI_STEP_WAIT, WEFT_OP_SEND, i), last_launch);
    }
    float data[4] = {0.5f, 0.25f, 0.125f, 0.5f};
    s->group.most = 3; /* fewer than are started: they board */
    OK(weft_plan_run(plan, &(weft_feed){"x", WEFT_F32, weft_shape(4), data}, 1));
    cr_assert_eq(s->group.n_started, 12);
    cr_assert_leq(s->group.most_in_flight, 3);
    weft_plan_release(plan);
    scene_close(s);
}

Test(plan_points, name_a_peer_that_is_none) {
    int32_t bad[] = {-1, 1, 3};
    for (int i = 0; i < 3; i++) {
        scene *s = scene_open(3, 1);
        (void)send(weft_input(s->g, "x", WEFT_F32, weft_shape(6)), bad[i]);
        weft_plan *plan = NULL;
        FAILS(WEFT_E_INVALID, weft_plan_create(s->world, s->g, &(weft_plan_options){0}, &plan), "of a group of 3");
        scene_close(s);
    }
}

/* A step in steady state allocates nothing: counted in the library's hook, and in malloc and its relatives and mmap (the trainer's own in
 * tests/train). And: the bytes that a plan describes are those that the device is asked for. */
#include "common/allocations.h"
#include "plan/fake_group.h"
#include "plan/support.h"

static int64_t counted(void) {
    weft_memory_counts counts;
    weft_memory_read(&counts);
    return (int64_t)counts.allocations;
}

/* A convolutional network with batch-norm, dropout and reduced gradients. */
static weft_plan *network(weft_world *world, weft_graph *g, weft_plan_options options) {
    weft_tensor *x = weft_input(g, "x", WEFT_F32, weft_shape(8, 1, 8, 8)), *label = weft_input(g, "label", WEFT_I32, weft_shape(8));
    weft_tensor *h = weft_relu(weft_batch_norm(weft_conv2d(x, "conv", .filters = 4, .kernel = 3, .pad = 1), "norm"));
    h = weft_dropout(weft_flatten(weft_max_pool2d(h, .window = 2)), 0.25);
    weft_tensor *loss = weft_cross_entropy(weft_linear(h, "head", .out = 5), label), *wrt[8], *grad[8];
    int32_t      count = weft_graph_parameter_count(g);
    for (int32_t i = 0; i < count; i++) wrt[i] = weft_graph_parameter(g, i);
    OK(weft_gradients(loss, wrt, count, grad));
    for (int32_t i = 0; i < count; i++) {
        wefti_attrs attrs = wefti_no_attrs();
        attrs.comm.reduce = WEFTI_REDUCE_AVG;
        grad[i] = wefti_apply(WEFT_OP_ALL_REDUCE, &attrs, &grad[i], 1, NULL);
        weft_assign(wrt[i], weft_sub(wrt[i], weft_mul_scalar(grad[i], 0.1)));
    }
    return plan_of(world, g, true, options, LIST(loss));
}

Test(plan_allocation, a_step_allocates_nothing) {
    for (int32_t variant = 0; variant < 4; variant++) {
        weft_world *world = world_open(WEFTI_CPU_AUTO);
        weft_graph *g = graph_new(7);
        fake_group  group;
        fake_group_open(&group, 2, 0);
        group.delay = 3;
        world->group = variant & 1 ? &group.base : NULL;
        weft_plan *plan = network(world, g, (weft_plan_options){.trace = variant == 3, .profile = variant >= 2, .bucket_bytes = 128});
        _Alignas(64) float data[8 * 64 + 1];
        int32_t            labels[9], unaligned = variant & 1;
        float              loss;
        fill(data, 8 * 64 + 1, 3);
        for (int32_t i = 0; i < 9; i++) labels[i] = i % 5;
        weft_feed feeds[] = {{"x", WEFT_F32, weft_shape(8, 1, 8, 8), data + unaligned}, {"label", WEFT_I32, weft_shape(8), labels + unaligned}};
        OK(weft_plan_run(plan, feeds, 2));
        long    before = allocation_calls;
        int64_t hook_before = counted();
        for (int32_t step = 0; step < 6; step++) {
            weft_plan_set_step(plan, step);
            OK(weft_plan_run(plan, feeds, 2));
            OK(weft_plan_fetch(plan, 0, &loss, sizeof loss));
        }
        long after = allocation_calls;
        cr_assert_eq(counted() - hook_before, 0);
        cr_assert_eq(after - before, 0, "%ld allocations in 6 steps of variant %d", after - before, variant);
        weft_plan_release(plan);
        weft_graph_release(g);
        fake_group_close(&group);
        world_close(world);
    }
    long before = allocation_calls;
    void *volatile kept = malloc(1);
    free(kept);
    cr_assert_eq(allocation_calls - before, 1, "the count does not count");
}

/* --- the bytes that the device is asked for --- */

static const wefti_device_vtable *real;
static int64_t held, most_held;
static weft_status allocate(wefti_device *device, size_t bytes, const char *what, void **memory_out) {
    held += (int64_t)bytes;
    if (held > most_held) most_held = held;
    return real->allocate(device, bytes, what, memory_out);
}
static void deallocate(wefti_device *device, void *memory, size_t bytes) {
    held -= (int64_t)bytes;
    real->deallocate(device, memory, bytes);
}

Test(plan_allocation, what_is_described_is_what_is_allocated) {
    for (int32_t variant = 0; variant < 4; variant++) {
        weft_world *world = world_open(WEFTI_CPU_AUTO);
        weft_graph *g = graph_new(7);
        fake_group  group;
        fake_group_open(&group, 2, 0);
        world->group = variant & 1 ? &group.base : NULL;
        wefti_device_vtable counting = *world->device->vtable;
        real = world->device->vtable;
        counting.allocate = allocate;
        counting.deallocate = deallocate;
        world->device->vtable = &counting;
        weft_plan       *plan = network(world, g, (weft_plan_options){.no_reuse = variant >= 2});
        weft_plan_totals totals, after;
        weft_plan_totals_read(plan, &totals);
        cr_assert_eq(held, 0, "planning allocated %lld bytes of the device", (long long)held);
        cr_assert_eq(totals.exported_bytes > 0, variant & 1);
        OK(weft_plan_commit(plan));
        cr_assert_eq(held, totals.total_bytes - totals.input_bytes, "described %lld, held %lld", (long long)totals.total_bytes, (long long)held);
        _Alignas(64) float data[8 * 64 + 1];
        int32_t            labels[9] = {0};
        fill(data, 8 * 64 + 1, 3);
        weft_feed feeds[] = {{"x", WEFT_F32, weft_shape(8, 1, 8, 8), data + 1}, {"label", WEFT_I32, weft_shape(8), (char *)labels + 2}};
        OK(weft_plan_run(plan, feeds, 2));
        cr_assert_eq(held, totals.total_bytes);
        weft_plan_totals_read(plan, &after);
        cr_assert_eq(memcmp(&totals, &after, sizeof totals), 0, "totals change with running");
        weft_plan_release(plan);
        cr_assert_eq(held, 0, "%lld bytes are not given back", (long long)held);
        world->device->vtable = real;
        weft_graph_release(g);
        fake_group_close(&group);
        world_close(world);
    }
}

/* Out of memory anywhere in planning, preparing and running: a clear status, and nothing lost. */
static int64_t countdown = -1;
static void   *scarce(void *context, size_t bytes, size_t alignment) {
    (void)context;
    if (countdown >= 0 && countdown-- == 0) return NULL;
    return aligned_alloc(alignment, wefti_align_up(bytes, alignment));
}
static void give_back(void *context, void *memory, size_t bytes) {
    (void)context;
    (void)bytes;
    free(memory);
}

Test(plan_allocation, every_failed_allocation_is_reported_and_leaks_nothing) {
    OK(weft_set_allocator(&(weft_allocator){scarce, give_back, NULL}));
    weft_world *world = world_open(WEFTI_CPU_REFERENCE);
    weft_graph *g = graph_new(7);
    fake_group  group;
    fake_group_open(&group, 2, 0);
    world->group = &group.base;
    weft_tensor *x = weft_input(g, "x", WEFT_F32, weft_shape(4, 4)), *w = weft_parameter(g, "w", weft_shape(4, 4));
    weft_tensor *loss = weft_mean(weft_square(weft_matmul(x, w))), *grad;
    wefti_attrs  attrs = wefti_no_attrs();
    OK(weft_gradients(loss, &w, 1, &grad));
    weft_assign(w, weft_sub(w, wefti_apply(WEFT_OP_ALL_REDUCE, &attrs, &grad, 1, NULL)));
    OK(weft_graph_check(g));
    weft_memory_counts before, after;
    weft_memory_read(&before);
    bool  done = false;
    float data[17] = {0}; /* one more, for the feed that is not aligned */
    for (int64_t n = 0; !done; n++) {
        weft_plan  *plan = NULL;
        countdown = n;
        weft_status status = weft_plan_create(world, g, &(weft_plan_options){.outputs = &loss, .n_outputs = 1, .training = true}, &plan);
        if (status == WEFT_OK) status = weft_plan_run(plan, &(weft_feed){"x", WEFT_F32, weft_shape(4, 4), (char *)data + 4}, 1);
        cr_assert(status == WEFT_OK || status == WEFT_E_NO_MEMORY, "%s: %s", weft_status_name(status), weft_error_message());
        done = status == WEFT_OK && countdown >= 0;
        countdown = -1;
        if (status != WEFT_OK && plan) /* it can be tried again */
            OK(weft_plan_run(plan, &(weft_feed){"x", WEFT_F32, weft_shape(4, 4), data}, 1));
        weft_plan_release(plan);
        weft_memory_read(&after);
        cr_assert_eq(before.held_bytes, after.held_bytes, "allocation %lld lost %lld bytes", (long long)n,
                     (long long)(after.held_bytes - before.held_bytes));
        cr_assert_lt(n, 5000);
    }
    weft_graph_release(g);
    fake_group_close(&group);
    world_close(world);
}

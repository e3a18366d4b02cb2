/* Attention by rows: whose copies go where the device can write so, and whose stay. Plans only: the CPU has no such kernel. */
#include "core/tensor/check.h"
#include "plan/support.h"

static weft_status accept(wefti_device *device, const wefti_call *call, int64_t *scratch_bytes_out) {
    (void)device;
    *scratch_bytes_out = 0;
    return wefti_call_check(call);
}

typedef struct counts {
    int32_t reshapes, concats, by_rows;
} counts;

/* Of training one layer of attention on a device that can (or not); `fetched`: attention's own result is an output of the plan. */
static counts plan_one(bool can, int32_t heads, int32_t kv_heads, bool rotary, bool fetched) {
    weft_world               *world = world_open(WEFTI_CPU_REFERENCE);
    const wefti_device_vtable *real = world->device->vtable;
    wefti_device_vtable        own = *real;
    own.attention_by_rows = can;
    own.query = accept;
    world->device->vtable = &own;
    weft_graph  *g = graph_new(3);
    weft_tensor *x = weft_input(g, "x", WEFT_F32, weft_shape(2, 5, 16));
    weft_tensor *y = weft_self_attention(x, "layer", .heads = heads, .kv_heads = kv_heads, .rotary = rotary, .causal = true);
    weft_tensor *loss = weft_sum(weft_mul(y, y)), *wrt[4], *gradients[4], *outputs[7] = {loss};
    const char  *names[4] = {"layer.qkv.weight", "layer.qkv.bias", "layer.out.weight", "layer.out.bias"};
    for (int i = 0; i < 4; i++) wrt[i] = weft_graph_find(g, names[i]);
    OK(weft_gradients(loss, wrt, 4, gradients));
    for (int i = 0; i < 4; i++) outputs[1 + i] = gradients[i];
    for (int32_t i = 0; fetched && i < g->n_nodes; i++)
        if (g->nodes[i]->op == WEFT_OP_ATTENTION) outputs[5] = &g->nodes[i]->outputs[0];
    weft_plan *plan = plan_of(world, g, true, (weft_plan_options){0}, outputs);
    check_layout(plan);
    counts found = {count_ops(plan, WEFT_OP_RESHAPE), count_ops(plan, WEFT_OP_CONCAT), 0};
    for (int32_t k = 0; k < plan->ir.n_order; k++) {
        const wefti_item *item = &plan->ir.items[plan->ir.order[k]];
        if (item->op == WEFT_OP_ATTENTION || item->op == WEFT_OP_ATTENTION_BACKWARD) found.by_rows += item->attrs->attention.by_rows;
    }
    weft_plan_release(plan);
    weft_graph_release(g);
    world->device->vtable = real;
    world_close(world);
    return found;
}

#define EXPECT(counts_of, r, c, b)                                                                                                  \
    do {                                                                                                                            \
        counts found = counts_of;                                                                                                   \
        cr_assert(found.reshapes == (r) && found.concats == (c) && found.by_rows == (b), "%d reshapes, %d concats, %d by rows", found.reshapes, \
                  found.concats, found.by_rows);                                                                                    \
    } while (0)

Test(heads, are_copied_where_the_device_writes_by_heads) { EXPECT(plan_one(false, 4, 4, false, false), 1, 1, 0); }
Test(heads, lie_by_rows_where_it_can) { EXPECT(plan_one(true, 4, 4, false, false), 0, 0, 2); }
Test(heads, of_gradients_are_put_together_where_fewer_keys_share_them) { EXPECT(plan_one(true, 4, 2, false, false), 0, 1, 1); }
Test(heads, of_gradients_that_others_read_are_put_together) { EXPECT(plan_one(true, 4, 4, true, false), 0, 1, 1); }
Test(heads, that_are_an_output_are_left_as_they_are) { EXPECT(plan_one(true, 4, 4, false, true), 1, 0, 1); }

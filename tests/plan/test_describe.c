/* What a plan says of its ops before anything is allocated: FLOPs and bytes, to the last one, against numbers worked out by hand. */
#include "plan/fake_group.h"
#include "plan/support.h"

static weft_plan_op op_of(const weft_plan *plan, const char *kind) {
    weft_plan_op op = {0}, found = {0};
    int32_t      n = 0;
    for (int32_t i = 0; i < plan->ir.n_order; i++) {
        OK(weft_plan_op_at(plan, i, &op));
        if (strcmp(op.kind, kind) == 0) found = op, n++;
    }
    cr_assert_eq(n, 1, "%d ops of kind '%s'", n, kind);
    return found;
}

static void costs(const weft_plan *plan, const char *kind, int32_t fused, double flops, int64_t read, int64_t written) {
    weft_plan_op op = op_of(plan, kind);
    cr_assert_eq(op.fused, fused, "%s: %d ops of the graph", op.name, op.fused);
    cr_assert_eq(op.segment, 0);
    cr_assert_eq(op.flops, flops, "%s: %g FLOP", op.name, op.flops);
    cr_assert_eq(op.read_bytes, read, "%s: reads %lld", op.name, (long long)op.read_bytes);
    cr_assert_eq(op.written_bytes, written, "%s: writes %lld", op.name, (long long)op.written_bytes);
    cr_assert_eq(op.time_ns, 0);
}

/* Totals are the sums of the ops. */
static void adds_up(const weft_plan *plan) {
    weft_plan_totals totals;
    weft_plan_op     op;
    double           flops = 0;
    int64_t          read = 0, written = 0, sent = 0, scratch = 0;
    int32_t          graph_ops = 0;
    weft_plan_totals_read(plan, &totals);
    for (int32_t i = 0; i < totals.ops; i++) {
        OK(weft_plan_op_at(plan, i, &op));
        flops += op.flops, read += op.read_bytes, written += op.written_bytes, graph_ops += op.fused;
        sent += op.sent_bytes;
        scratch = wefti_max_i64(scratch, op.scratch_bytes);
    }
    cr_assert_eq(totals.sent_bytes, sent);
    cr_assert_eq(totals.flops, flops);
    cr_assert_eq(totals.read_bytes, read);
    cr_assert_eq(totals.written_bytes, written);
    cr_assert_eq(totals.scratch_bytes, scratch);
    cr_assert_eq(totals.graph_ops, graph_ops);
}

Test(plan_describe, a_product_to_the_last_byte) {
    weft_world  *world = world_open(WEFTI_CPU_AUTO);
    weft_graph  *g = graph_new(1);
    weft_tensor *x = weft_input(g, "x", WEFT_F32, weft_shape(6, 4)), *w = weft_parameter(g, "w", weft_shape(4, 5));
    weft_plan   *plan = plan_of(world, g, false, (weft_plan_options){0}, LIST(weft_matmul(x, w, .name = "product")));
    weft_plan_op op;
    costs(plan, "matmul", 1, 2 * 6 * 5 * 4, 4 * (6 * 4 + 4 * 5), 4 * 6 * 5);
    OK(weft_plan_op_at(plan, 0, &op));
    cr_assert_str_eq(op.name, "product");
    int64_t scratch;
    OK(wefti_item_query(&plan->ir, &plan->ir.items[plan->ir.order[0]], &scratch));
    cr_assert_eq(op.scratch_bytes, scratch);
    adds_up(plan);
    cr_assert_not(plan->committed);
    weft_plan_release(plan);
    weft_graph_release(g);
    world_close(world);
}

/* A sum that two ops read is copied into both; they end up in one program, which computes it once. What is broadcast is read once. */
Test(plan_describe, a_fused_program_counts_what_it_computes) {
    weft_world  *world = world_open(WEFTI_CPU_AUTO);
    weft_graph  *g = graph_new(1);
    weft_tensor *x = weft_input(g, "x", WEFT_F32, weft_shape(30, 10)), *b = weft_parameter(g, "b", weft_shape(10));
    weft_tensor *a = weft_add(x, b), *y = weft_mul(weft_exp(a), weft_tanh(a));
    weft_plan   *plan = plan_of(world, g, false, (weft_plan_options){0}, LIST(weft_sum(y, .axes = weft_axes(1))));
    cr_assert_eq(plan->ir.n_order, 1);
    costs(plan, "fused", 5, 4 * 300 + 300, 4 * (300 + 10), 4 * 30);
    adds_up(plan);
    weft_plan_release(plan);
    plan = plan_of(world, g, false, (weft_plan_options){.no_fusion = true}, LIST(y));
    cr_assert_eq(plan->ir.n_order, 4);
    costs(plan, "add", 1, 300, 4 * (300 + 10), 4 * 300);
    costs(plan, "mul", 1, 300, 4 * (300 + 300), 4 * 300);
    adds_up(plan);
    weft_plan_release(plan);
    weft_graph_release(g);
    world_close(world);
}

/* What is read through a view is what it shows; what stands twice among the inputs is read once. */
Test(plan_describe, views_and_repeated_inputs) {
    weft_world  *world = world_open(WEFTI_CPU_AUTO);
    weft_graph  *g = graph_new(1);
    weft_tensor *x = weft_input(g, "x", WEFT_F64, weft_shape(6, 4)), *part = weft_slice(x, 0, 1, 3);
    weft_plan   *plan = plan_of(world, g, false, (weft_plan_options){0}, LIST(weft_matmul(part, part, .transpose_b = true)));
    costs(plan, "matmul", 1, 2 * 2 * 2 * 4, 8 * 2 * 4, 8 * 2 * 2);
    weft_plan_release(plan);
    weft_graph_release(g);
    world_close(world);
}

/* What a rank of three has to send: (n-1)/n of the whole for each way that it goes, shared out; nothing where there is one rank. */
Test(plan_describe, what_ranks_send) {
    static const struct {
        weft_op     op;
        const char *kind;
        int64_t     rows, bytes; /* rows of the result of 12 */
    } due[] = {{WEFT_OP_ALL_REDUCE, "all_reduce", 12, 2 * 192 * 2 / 3}, {WEFT_OP_ALL_GATHER, "all_gather", 36, 192 * 2},
               {WEFT_OP_REDUCE_SCATTER, "reduce_scatter", 4, 192 * 2 / 3}, {WEFT_OP_ALL_TO_ALL, "all_to_all", 12, 192 * 2 / 3}};
    for (size_t i = 0; i < WEFTI_COUNT(due); i++)
        for (int32_t size = 1; size <= 3; size += 2) {
            weft_world *world = world_open(WEFTI_CPU_AUTO);
            weft_graph *g = graph_new(1);
            fake_group  group;
            wefti_attrs attrs = wefti_no_attrs();
            attrs.comm.global = weft_shape(size == 1 ? 12 : due[i].rows, 4);
            fake_group_open(&group, size, 0);
            world->size = size;
            world->group = &group.base;
            weft_tensor *x = weft_exp(weft_input(g, "x", WEFT_F32, weft_shape(12, 4)));
            weft_plan   *plan = plan_of(world, g, false, (weft_plan_options){0}, LIST(wefti_apply(due[i].op, &attrs, &x, 1, NULL)));
            if (size == 3) cr_assert_eq(op_of(plan, due[i].kind).sent_bytes, due[i].bytes, "%s: %lld", due[i].kind, (long long)op_of(plan, due[i].kind).sent_bytes);
            weft_plan_totals totals;
            weft_plan_totals_read(plan, &totals);
            cr_assert_eq(totals.sent_bytes, size == 3 ? due[i].bytes : 0);
            adds_up(plan);
            weft_plan_release(plan);
            weft_graph_release(g);
            fake_group_close(&group);
            world_close(world);
        }
}

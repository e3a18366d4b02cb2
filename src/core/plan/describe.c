/* What a plan costs, as numbers and as text; and what it took. Everything is known from the layout: nothing needs a run. */
#include <stdlib.h>
#include <string.h>

#include "core/plan/object.h"
#include "core/plan/variables.h"

/* Bytes of distinct elements that an operand touches. */
static int64_t touched(const wefti_value *value) {
    int64_t elements = 1;
    for (int32_t axis = 0; axis < value->shape.rank; axis++)
        if (value->stride[axis] != 0 || value->shape.dim[axis] == 0) elements *= value->shape.dim[axis];
    return elements * (int64_t)weft_dtype_bytes(value->dtype);
}

static int64_t read_bytes(const wefti_ir *ir, const wefti_item *item) {
    int64_t bytes = 0;
    for (int32_t i = 0; i < item->n_inputs; i++) {
        bool again = false;
        for (int32_t j = 0; j < i && !again; j++) again = item->inputs[j] == item->inputs[i];
        if (!again) bytes += touched(&ir->values[item->inputs[i]]);
    }
    return bytes;
}

static int64_t written_bytes(const wefti_ir *ir, const wefti_item *item) {
    int64_t bytes = 0;
    for (int32_t o = 0; o < item->n_outputs; o++) bytes += wefti_value_bytes(&ir->values[item->outputs[o]]);
    for (int32_t i = 1; i < item->n_inputs && item->op == WEFT_OP_UPDATE; i++) /* the states that an update writes, beside its output */
        if (wefti_item_writes(item, i)) bytes += wefti_value_bytes(&ir->values[item->inputs[i]]);
    return bytes;
}

/* What the members of a group must send for their operands, shared out over them: (n-1)/n of the whole for each way that it goes. */
static int64_t sent_bytes(const wefti_ir *ir, const wefti_item *item) {
    const struct wefti_group *group = wefti_item_is_comm(item) ? wefti_ir_group(ir, item) : NULL;
    int64_t                   given = 0, n = group ? group->size : 1;
    for (int32_t i = 0; n > 1 && i < item->n_inputs; i++) given += wefti_value_bytes(&ir->values[item->inputs[i]]);
    switch (item->op) {
    case WEFT_OP_ALL_REDUCE: return 2 * given * (n - 1) / n;
    case WEFT_OP_ALL_GATHER: return given * (n - 1); /* what is given is a part */
    case WEFT_OP_SEND: return given;
    default: return given * (n - 1) / n;
    }
}

weft_status weft_plan_op_at(const weft_plan *plan, int32_t index, weft_plan_op *op_out) {
    if (!plan || index < 0 || index >= plan->ir.n_order)
        return wefti_fail(WEFT_E_INVALID, "there is no operation %d: there are %d", index, plan ? plan->ir.n_order : 0);
    const wefti_ir   *ir = &plan->ir;
    const wefti_item *item = &ir->items[ir->order[index]];
    *op_out = (weft_plan_op){.name = item->name, .kind = wefti_ops[item->op].name, .fused = item->graph_ops > 1 ? item->graph_ops : 1,
                             .segment = item->segment, .flops = item->flops, .read_bytes = read_bytes(ir, item),
                             .written_bytes = written_bytes(ir, item), .scratch_bytes = item->scratch_bytes,
                             .sent_bytes = sent_bytes(ir, item),
                             .time_ns = plan->profile_ns && plan->has_run ? plan->profile_ns[index] : 0};
    return WEFT_OK;
}

/* Before the plan's own set is made: what it will hold. */
static int64_t variable_bytes(const weft_plan *plan) {
    if (plan->variables) return weft_variables_bytes(plan->variables);
    int64_t bytes = 0;
    for (int32_t i = 0; i < plan->ir.graph->n_leaves; i++) {
        const wefti_node *leaf = plan->ir.graph->leaves[i];
        if (leaf->op != WEFT_OP_PARAMETER && leaf->op != WEFT_OP_STATE) continue;
        size_t own = (size_t)weft_shape_elements(leaf->outputs[0].shape) * weft_dtype_bytes(leaf->outputs[0].dtype);
        bytes += (int64_t)wefti_variable_room(wefti_mapping_wire(plan->ir.world), plan->ir.world->size, own);
    }
    return bytes;
}

void weft_plan_totals_read(const weft_plan *plan, weft_plan_totals *totals_out) {
    *totals_out = (weft_plan_totals){0};
    if (!plan) return;
    const wefti_ir *ir = &plan->ir;
    *totals_out = (weft_plan_totals){.arena_bytes = ir->arena_bytes, .exported_bytes = ir->exported_bytes,
                                     .variable_bytes = variable_bytes(plan), .constant_bytes = ir->constant_bytes,
                                     .value_bytes = ir->value_bytes, .peak_bytes = ir->peak_bytes, .ops = ir->n_order,
                                     .segments = ir->n_segments, .collectives = ir->n_collectives};
    for (int32_t i = 0; i < ir->n_inputs; i++) totals_out->input_bytes += wefti_value_bytes(&ir->values[ir->inputs[i].value]);
    totals_out->total_bytes = totals_out->arena_bytes + totals_out->exported_bytes + totals_out->variable_bytes +
                              totals_out->constant_bytes + totals_out->input_bytes;
    for (int32_t k = 0; k < ir->n_order; k++) {
        const wefti_item *item = &ir->items[ir->order[k]];
        totals_out->flops += item->flops;
        totals_out->read_bytes += read_bytes(ir, item);
        totals_out->written_bytes += written_bytes(ir, item);
        totals_out->sent_bytes += sent_bytes(ir, item);
        totals_out->graph_ops += item->graph_ops;
        totals_out->scratch_bytes = wefti_max_i64(totals_out->scratch_bytes, item->scratch_bytes);
    }
}

/* --- text --- */

static weft_status finish(weft_plan *plan, const char **text_out) {
    *text_out = "";
    if (plan->text.failed) return wefti_fail(WEFT_E_NO_MEMORY, "no memory for the text about the plan of '%s'", plan->source->name);
    if (plan->text.bytes) *text_out = plan->text.bytes;
    return WEFT_OK;
}

static void begin_text(weft_plan *plan) {
    wefti_text_release(&plan->text);
    plan->text = (wefti_text){0};
}

/* What collectives of a device without host memory go by. */
static void add_ways(weft_plan *plan) {
    const wefti_ir *ir = &plan->ir;
    int32_t         direct = 0, large = 0;
    if (ir->n_collectives == 0 || ir->device->vtable->host_memory) return;
    for (int32_t c = 0; c < ir->n_collectives; c++) {
        direct += ir->collectives[c].direct;
        large += ir->collectives[c].point && (size_t)ir->collectives[c].bytes >= WEFTI_FOREIGN_LEAST_BYTES;
    }
    bool    reaches = ir->world->group && ir->world->group->wire && (ir->world->group->wire->can.flags & WEFTI_WIRE_REACHES_FOREIGN);
    int32_t straight = reaches ? large : 0;
    wefti_text_add(&plan->text, "%d collectives on the device's memory, %d by copies through the host's: %s%s%s\n", direct, ir->n_collectives - direct - straight,
                   ir->world->device_group_text, direct < ir->n_collectives && ir->indirect_why ? "; " : "",
                   direct < ir->n_collectives && ir->indirect_why ? ir->indirect_why : "");
    if (large && ir->world->device_wire_text[0])
        wefti_text_add(&plan->text, "%d messages of at least %zu bytes go %s: the wire reaches the device's memory by %s\n", large, WEFTI_FOREIGN_LEAST_BYTES,
                       reaches ? "straight from and to the device's memory" : "by copies", ir->world->device_wire_text);
}

/* Losses over many classes. */
static void add_losses(weft_plan *plan) {
    const wefti_ir *ir = &plan->ir;
    if (ir->n_chunked_losses)
        wefti_text_add(&plan->text, "%d losses over %lld classes, with the products around them, are computed by %d chunks of %lld rows\n",
                       ir->n_chunked_losses, (long long)ir->chunk_classes, ir->chunks, (long long)ir->chunk_rows);
    if (ir->whole_why) wefti_text_add(&plan->text, "loss '%s' has its logits whole: %s\n", ir->whole_loss, ir->whole_why);
}

static void add_fp8(weft_plan *plan) {
    const wefti_ir *ir = &plan->ir;
    if (ir->n_fp8) wefti_text_add(&plan->text, "%d products in 8-bit floats\n", ir->n_fp8);
    if (ir->fp8_why) wefti_text_add(&plan->text, "%d products not in 8-bit floats: %s\n", ir->n_fp8_left, ir->fp8_why);
}

/* Products with epilogues. */
static void add_products(weft_plan *plan) {
    const wefti_ir *ir = &plan->ir;
    if (ir->n_fused_products)
        wefti_text_add(&plan->text, "%d products are computed with what follows them, %d ops in all\n", ir->n_fused_products, ir->fused_product_ops);
    if (ir->plain_why) wefti_text_add(&plan->text, "product '%s' is computed by itself: %s\n", ir->plain_product, ir->plain_why);
}

static void add_totals(weft_plan *plan) {
    weft_plan_totals t;
    weft_plan_totals_read(plan, &t);
    wefti_text_add(&plan->text, "\nmemory, bytes\n  arena      %14lld  (%lld without reuse; at least %lld with the exported)\n",
                   (long long)t.arena_bytes, (long long)t.value_bytes, (long long)t.peak_bytes);
    wefti_text_add(&plan->text, "  exported   %14lld\n  variables  %14lld\n  constants  %14lld\n  inputs     %14lld\n  total      %14lld\n",
                   (long long)t.exported_bytes, (long long)t.variable_bytes, (long long)t.constant_bytes, (long long)t.input_bytes,
                   (long long)t.total_bytes);
    wefti_text_add(&plan->text, "largest scratch %lld bytes\n", (long long)t.scratch_bytes);
    wefti_text_add(&plan->text, "one run: %d ops for %d of the graph, %d segments, %d collectives, %.6g FLOP, reads %lld bytes, writes %lld, sends %lld\n",
                   t.ops, t.graph_ops, t.segments, t.collectives, t.flops, (long long)t.read_bytes, (long long)t.written_bytes,
                   (long long)t.sent_bytes);
    add_ways(plan);
    add_losses(plan);
    add_fp8(plan);
    add_products(plan);
    if (plan->ir.n_divided)
        wefti_text_add(&plan->text, "%d parameters are updated in parts, which ranks %s\n", plan->ir.n_divided,
                       plan->ir.pushes ? "store to their peers" : "load from their peers");
}

weft_status weft_plan_describe(weft_plan *plan, const char **text_out) {
    if (!plan) return wefti_fail(WEFT_E_INVALID, "weft_plan_describe: the plan is NULL");
    begin_text(plan);
    wefti_text_add(&plan->text, "%7s  %-24s %5s %14s %14s %14s %12s %12s  %s\n", "segment", "op", "ops", "FLOP", "read", "written",
                   "scratch", "sent", "name");
    for (int32_t k = 0; k < plan->ir.n_order; k++) {
        weft_plan_op op;
        WEFTI_TRY(weft_plan_op_at(plan, k, &op));
        if (op.segment >= 0) wefti_text_add(&plan->text, "%7d", op.segment);
        else wefti_text_add(&plan->text, "%7s", "-");
        wefti_text_add(&plan->text, "  %-24s %5d %14.6g %14lld %14lld %12lld %12lld  %s\n", op.kind, op.fused, op.flops,
                       (long long)op.read_bytes, (long long)op.written_bytes, (long long)op.scratch_bytes, (long long)op.sent_bytes, op.name);
    }
    add_totals(plan);
    for (size_t i = 0; i < WEFTI_COUNT(plan->ir.options.notes); i++)
        if (plan->ir.options.notes[i]) wefti_text_add(&plan->text, "%s", plan->ir.options.notes[i]);
    return finish(plan, text_out);
}

typedef struct share {
    weft_plan_op op;
    weft_dtype   dtype; /* in which it computes */
} share;

static int slower_first(const void *left, const void *right) {
    const share *a = left, *b = right;
    return a->op.time_ns < b->op.time_ns ? 1 : a->op.time_ns > b->op.time_ns ? -1 : 0;
}

static weft_dtype dtype_of(const weft_plan *plan, int32_t position) {
    const wefti_item *item = &plan->ir.items[plan->ir.order[position]];
    return plan->ir.values[item->n_inputs ? item->inputs[0] : item->outputs[0]].dtype;
}

/* Of dtypes in which there are products: what else is computed in them is bound by memory first. */
static void measure_limits(weft_plan *plan) {
    for (int32_t k = 0; k < plan->ir.n_order; k++) {
        wefti_family family = wefti_ops[plan->ir.items[plan->ir.order[k]].op].family;
        if (family == WEFTI_MATMUL || family == WEFTI_CONV || family == WEFTI_ATTENTION)
            wefti_roofline_measure(plan->ir.device, dtype_of(plan, k), &plan->roofline);
    }
    wefti_roofline_measure(plan->ir.device, WEFT_BOOL, &plan->roofline); /* at least the bandwidth */
}

static void add_limits(weft_plan *plan) {
    wefti_text_add(&plan->text, "roof: %.1f GB/s by a copy", plan->roofline.bytes_per_ns);
    for (int32_t dtype = 0; dtype < WEFT_DTYPE_COUNT; dtype++)
        if (plan->roofline.flops_per_ns[dtype] > 0)
            wefti_text_add(&plan->text, ", %.1f GFLOP/s by products of %s", plan->roofline.flops_per_ns[dtype], weft_dtype_name((weft_dtype)dtype));
    wefti_text_add(&plan->text, ", measured now\n");
}

weft_status weft_plan_profile(weft_plan *plan, const char **text_out) {
    if (!plan) return wefti_fail(WEFT_E_INVALID, "weft_plan_profile: the plan is NULL");
    if (!plan->ir.options.base.profile) return wefti_fail(WEFT_E_STATE, "the plan of '%s' was made without options.profile", plan->source->name);
    if (!plan->has_run) return wefti_fail(WEFT_E_STATE, "the plan of '%s' has not run", plan->source->name);
    size_t bytes = (size_t)plan->ir.n_order * sizeof(share);
    share *shares = NULL;
    double total = 0;
    WEFTI_TRY(wefti_alloc(bytes, "a profile", &shares));
    for (int32_t k = 0; k < plan->ir.n_order; k++) {
        (void)!weft_plan_op_at(plan, k, &shares[k].op);
        shares[k].dtype = dtype_of(plan, k);
        total += (double)shares[k].op.time_ns;
    }
    measure_limits(plan);
    qsort(shares, (size_t)plan->ir.n_order, sizeof *shares, slower_first);
    begin_text(plan);
    wefti_text_add(&plan->text, "%12s %6s %10s %10s %6s  %-24s %s\n", "us", "%", "GFLOP/s", "GB/s", "roof %", "op", "name");
    for (int32_t k = 0; k < plan->ir.n_order; k++) {
        const weft_plan_op *op = &shares[k].op;
        double              ns = op->time_ns ? (double)op->time_ns : 1, moved = (double)(op->read_bytes + op->written_bytes);
        wefti_text_add(&plan->text, "%12.1f %6.2f %10.2f %10.2f %6.1f  %-24s %s\n", (double)op->time_ns / 1e3,
                       total > 0 ? 100 * (double)op->time_ns / total : 0, op->flops / ns, moved / ns,
                       100 * wefti_roofline_share(&plan->roofline, shares[k].dtype, op->flops, moved, (double)op->time_ns), op->kind, op->name);
    }
    add_limits(plan);
    wefti_text_add(&plan->text, "%12.1f in all; %.1f us waiting for collectives\n", total / 1e3, (double)plan->wait_ns / 1e3);
    wefti_free(shares, bytes);
    return finish(plan, text_out);
}

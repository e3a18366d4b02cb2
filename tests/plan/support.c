#include "plan/support.h"

weft_world *world_open(wefti_cpu_isa isa) {
    weft_world       *world = calloc(1, sizeof *world);
    wefti_cpu_options options = {.threads = {.count = 1}, .isa = isa};
    world->size = 1;
    OK(wefti_cpu_create(&options, &world->device));
    return world;
}

void world_close(weft_world *world) {
    world->device->vtable->release(world->device);
    free(world);
}

weft_graph *graph_new(uint64_t seed) {
    weft_graph *graph;
    OK(weft_graph_create(&(weft_graph_options){.seed = seed}, &graph));
    return graph;
}

weft_plan *plan_of(weft_world *world, weft_graph *graph, bool training, weft_plan_options options, weft_tensor *const *outputs) {
    weft_plan *plan = NULL;
    OK(weft_graph_check(graph));
    options.outputs = outputs;
    options.training = training;
    while (outputs[options.n_outputs]) options.n_outputs++;
    OK(weft_plan_create(world, graph, &options, &plan));
    check_layout(plan);
    return plan;
}

static void check_value(const wefti_ir *ir, int32_t v, int32_t position) {
    const wefti_value *value = &ir->values[v], *root = &ir->values[value->root];
    cr_assert_eq(root->root, value->root, "a view of a view");
    if (root->place != WEFTI_HOME_ARENA && root->place != WEFTI_HOME_EXPORTED) return;
    cr_assert_geq(root->block, 0, "the operand of '%s' has no memory", ir->items[ir->order[position]].name);
    const wefti_block_range *block = &ir->blocks[root->block];
    cr_assert(block->first <= position && position <= block->last, "a value is used outside of its block's life");
    cr_assert_leq(root->inside_bytes + wefti_value_bytes(root), block->bytes);
    int64_t low = value->offset, high = value->offset;
    if (wefti_value_elements(value) == 0) return;
    for (int32_t a = 0; a < value->shape.rank; a++) high += (value->shape.dim[a] - 1) * value->stride[a];
    cr_assert(low >= 0 && high < wefti_value_elements(root), "a view looks outside of its root");
}

void check_layout(const weft_plan *plan) {
    const wefti_ir *ir = &plan->ir;
    for (int32_t k = 0; k < ir->n_order; k++) {
        const wefti_item *item = &ir->items[ir->order[k]];
        for (int32_t i = 0; i < item->n_inputs; i++) {
            check_value(ir, item->inputs[i], k);
            int32_t producer = ir->values[ir->values[item->inputs[i]].root].item;
            cr_assert(producer < 0 || !ir->items[producer].dead, "'%s' reads what nobody computes", item->name);
        }
        for (int32_t o = 0; o < item->n_outputs; o++) check_value(ir, item->outputs[o], k);
    }
    int64_t end[2] = {0, 0};
    for (int32_t a = 0; a < ir->n_blocks; a++) {
        const wefti_block_range *x = &ir->blocks[a];
        cr_assert_eq(x->offset_bytes % WEFTI_ALIGNMENT, 0);
        end[x->place] = wefti_max_i64(end[x->place], x->offset_bytes + x->bytes);
        for (int32_t b = a + 1; b < ir->n_blocks; b++) {
            const wefti_block_range *y = &ir->blocks[b];
            bool alive = x->place == y->place && x->bytes > 0 && y->bytes > 0 && x->first <= y->last && y->first <= x->last;
            cr_assert(!alive || x->offset_bytes + x->bytes <= y->offset_bytes || y->offset_bytes + y->bytes <= x->offset_bytes,
                      "blocks %d [%d, %d] at %lld of %lld and %d [%d, %d] at %lld of %lld overlap", a, x->first, x->last,
                      (long long)x->offset_bytes, (long long)x->bytes, b, y->first, y->last, (long long)y->offset_bytes, (long long)y->bytes);
        }
    }
    cr_assert_leq(end[WEFTI_HOME_ARENA], ir->arena_bytes);
    cr_assert_leq(end[WEFTI_HOME_EXPORTED], ir->exported_bytes);
    cr_assert_leq(ir->peak_bytes, ir->arena_bytes + ir->exported_bytes);
}

int32_t count_ops(const weft_plan *plan, weft_op op) {
    int32_t n = 0;
    for (int32_t k = 0; k < plan->ir.n_order; k++) n += plan->ir.items[plan->ir.order[k]].op == op;
    return n;
}

void fill(float *values, int64_t n, uint32_t seed) {
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = (float)(int32_t)seed * 0x1p-31f;
    }
}

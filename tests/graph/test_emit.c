/* Adding nodes: types, names, keys, scopes, copies, and every way in which it can go wrong. */
#include <criterion/criterion.h>
#include <string.h>

#include "core/graph/graph.h"

static weft_graph *graph;

static void open_graph(void) {
    cr_assert_eq(weft_graph_create(&(weft_graph_options){.seed = 7, .name = "g"}, &graph), WEFT_OK);
}
static void close_graph(void) {
    weft_graph_release(graph);
    weft_memory_counts counts;
    weft_memory_read(&counts);
    cr_assert_eq(counts.held_bytes, 0, "%llu bytes leaked", (unsigned long long)counts.held_bytes);
}
TestSuite(graph_emit, .init = open_graph, .fini = close_graph);

static weft_tensor *leaf(weft_op op, const char *name, weft_shape shape) {
    return wefti_emit_leaf(graph, op, NULL, WEFT_F32, shape, NULL, name);
}

static void assert_latched(weft_status status, const char *part) {
    cr_assert_eq(weft_graph_check(graph), status, "%s: %s", weft_status_name(graph->status), weft_graph_message(graph));
    cr_assert(strstr(weft_graph_message(graph), part), "'%s' lacks '%s'", weft_graph_message(graph), part);
    cr_assert_str_eq(weft_error_message(), weft_graph_message(graph));
}

Test(graph_emit, infers_names_and_numbers) {
    weft_tensor *x = leaf(WEFT_OP_INPUT, "x", weft_shape(4, 1)), *y = leaf(WEFT_OP_INPUT, "y", weft_shape(3));
    weft_tensor *sum = wefti_emit(graph, WEFT_OP_ADD, NULL, (weft_tensor *[]){x, y}, 2, NULL);
    cr_assert_eq(weft_graph_check(graph), WEFT_OK);
    cr_assert(weft_shape_equal(sum->shape, weft_shape(4, 3)));
    cr_assert_str_eq(weft_tensor_name(sum), "add_2");
    cr_assert_eq(sum->node->id, 2);
    cr_assert_eq(graph->n_nodes, 3);
    cr_assert_eq(weft_graph_find(graph, "y"), y);
    cr_assert_null(weft_graph_find(graph, "add_2"));
    cr_assert_eq(wefti_node_flops(sum->node), 12);
    cr_assert_eq(wefti_output(sum, 0), sum);
}

Test(graph_emit, grows_beyond_its_first_blocks) {
    weft_tensor *x = leaf(WEFT_OP_INPUT, "x", weft_shape(2));
    weft_tensor *y = x;
    for (int i = 0; i < 5000; i++) y = wefti_emit(graph, WEFT_OP_NEG, NULL, &y, 1, NULL);
    cr_assert_eq(weft_graph_check(graph), WEFT_OK);
    cr_assert_eq(graph->n_nodes, 5001);
    cr_assert_eq(y->node->inputs[0]->node->id, 4999);
}

Test(graph_emit, names_within_scopes) {
    weft_scope_push(graph, "a");
    weft_scope_push(graph, "b.c");
    weft_tensor *x = leaf(WEFT_OP_PARAMETER, "w", weft_shape(2));
    cr_assert_str_eq(weft_tensor_name(x), "a.b.c.w");
    weft_scope_pop(graph);
    cr_assert_str_eq(weft_tensor_name(leaf(WEFT_OP_PARAMETER, "w", weft_shape(2))), "a.w");
    weft_scope_pop(graph);
    cr_assert_str_eq(weft_tensor_name(leaf(WEFT_OP_PARAMETER, "w", weft_shape(2))), "w");
    cr_assert_eq(weft_graph_parameter_count(graph), 3);
    cr_assert_eq(weft_graph_parameter(graph, 1)->node->id, 1);
    cr_assert_null(weft_graph_parameter(graph, 3));
    weft_scope_pop(graph);
    assert_latched(WEFT_E_STATE, "a pop without a push");
}

Test(graph_emit, limits_scopes) {
    for (int i = 0; i < WEFTI_SCOPE_DEPTH; i++) weft_scope_push(graph, "s");
    cr_assert_eq(weft_graph_check(graph), WEFT_OK);
    weft_scope_push(graph, "one too many");
    assert_latched(WEFT_E_INVALID, "one too many");
}

Test(graph_emit, gives_one_step_and_feeds_it_to_random_nodes) {
    weft_tensor *random = leaf(WEFT_OP_RANDOM, NULL, weft_shape(2, 2));
    weft_tensor *step = wefti_graph_step(graph);
    cr_assert_eq(step->dtype, WEFT_I64);
    cr_assert_eq(random->node->n_inputs, 1);
    cr_assert_eq(random->node->inputs[0], step);
    cr_assert_eq(wefti_emit_leaf(graph, WEFT_OP_STEP, NULL, WEFT_I64, weft_shape_scalar(), NULL, NULL), step);
    cr_assert_eq(wefti_graph_step(graph), step);
}

Test(graph_emit, draws_keys_from_seed_name_and_count) {
    weft_graph *other;
    cr_assert_eq(weft_graph_create(&(weft_graph_options){.seed = 8}, &other), WEFT_OK);
    uint64_t key = wefti_graph_key(graph, "w", true);
    cr_assert_eq(key, wefti_graph_key(graph, "w", true));
    cr_assert_neq(key, wefti_graph_key(graph, "v", true));
    cr_assert_neq(key, wefti_graph_key(other, "w", true));
    cr_assert_neq(wefti_graph_key(graph, "d", false), wefti_graph_key(graph, "d", false));
    weft_graph_release(other);
}

Test(graph_emit, copies_what_attributes_point_at) {
    wefti_fused *fused;
    cr_assert_eq(wefti_alloc(sizeof *fused, "test", &fused), WEFT_OK);
    fused->space = weft_shape(2, 3);
    fused->n_inputs = fused->n_instructions = 1;
    fused->n_outputs = 2;
    fused->instruction[0] = (wefti_fused_instruction){.op = WEFT_OP_NEG, .dtype = WEFT_F32};
    fused->output[0] = (wefti_fused_output){.reduce = -1};
    fused->output[1] = (wefti_fused_output){.reduce = WEFT_OP_SUM, .axes = 2};
    wefti_attrs attrs = wefti_no_attrs();
    attrs.fused.fused = fused;
    weft_tensor *x = leaf(WEFT_OP_INPUT, "x", weft_shape(3));
    weft_tensor *y = wefti_emit(graph, WEFT_OP_FUSED, &attrs, &x, 1, NULL);
    wefti_free(fused, sizeof *fused);
    cr_assert_eq(weft_graph_check(graph), WEFT_OK, "%s", weft_graph_message(graph));
    cr_assert_eq(y->node->n_outputs, 2);
    cr_assert(weft_shape_equal(wefti_output(y, 1)->shape, weft_shape(2, 1)));
    cr_assert_eq(y->node->attrs.fused.fused->instruction[0].op, WEFT_OP_NEG);
}

Test(graph_emit, poisons_on_and_keeps_the_first_error) {
    weft_tensor *x = leaf(WEFT_OP_INPUT, "x", weft_shape(2)), *y = leaf(WEFT_OP_INPUT, "y", weft_shape(3));
    weft_tensor *bad = wefti_emit(graph, WEFT_OP_ADD, NULL, (weft_tensor *[]){x, y}, 2, "sum");
    cr_assert(wefti_poisoned(bad));
    cr_assert_not(weft_tensor_ok(bad));
    cr_assert_eq(wefti_emit(graph, WEFT_OP_NEG, NULL, &bad, 1, NULL), bad);
    cr_assert_eq(leaf(WEFT_OP_INPUT, "x", weft_shape(2)), bad);
    cr_assert_str_eq(weft_tensor_name(bad), "");
    assert_latched(WEFT_E_SHAPE, "add 'sum' of x f32 [2], y f32 [3]: [2] and [3] do not broadcast");
}

Test(graph_emit, refuses_null_foreign_and_orphaned_inputs) {
    weft_graph *other;
    cr_assert_eq(weft_graph_create(NULL, &other), WEFT_OK);
    weft_tensor *theirs = wefti_emit_leaf(other, WEFT_OP_INPUT, NULL, WEFT_F32, weft_shape(2), NULL, "theirs");
    cr_assert(wefti_poisoned(wefti_emit(graph, WEFT_OP_NEG, NULL, &theirs, 1, "n")));
    assert_latched(WEFT_E_INVALID, "neg 'n': input 0, 'theirs', belongs to graph 'graph', not to 'g'");
    weft_tensor *none = NULL, *orphan = wefti_apply(WEFT_OP_NEG, NULL, &none, 1, NULL);
    cr_assert(wefti_poisoned(orphan));
    cr_assert_null(weft_tensor_graph(orphan));
    cr_assert(strstr(weft_error_message(), "neg: input 0 is NULL"));
    cr_assert(wefti_poisoned(wefti_apply(WEFT_OP_ADD, NULL, (weft_tensor *[]){orphan, theirs}, 2, "late")));
    cr_assert_eq(weft_graph_check(other), WEFT_E_INVALID);
    cr_assert(strstr(weft_graph_message(other), "belongs to no graph"));
    weft_graph_release(other);
}

Test(graph_emit, refuses_two_leaves_of_one_name) {
    leaf(WEFT_OP_PARAMETER, "w", weft_shape(2));
    leaf(WEFT_OP_STATE, "w", weft_shape(2));
    assert_latched(WEFT_E_EXISTS, "state 'w': the graph has a leaf of this name already");
}

Test(graph_emit, refuses_a_leaf_without_a_name) {
    leaf(WEFT_OP_INPUT, "", weft_shape(2));
    assert_latched(WEFT_E_INVALID, "input: a name is needed");
}

Test(graph_emit, refuses_negative_sizes) {
    leaf(WEFT_OP_INPUT, "x", weft_shape(2, -3));
    assert_latched(WEFT_E_SHAPE, "input 'x': shape [2, -3] has a negative dimension");
}

Test(graph_emit, refuses_sizes_that_overflow) {
    leaf(WEFT_OP_INPUT, "x", weft_shape(INT64_C(1) << 31, INT64_C(1) << 31));
    assert_latched(WEFT_E_OVERFLOW, "input 'x'");
}

Test(graph_emit, refuses_results_that_overflow) {
    weft_tensor *x = leaf(WEFT_OP_INPUT, "x", weft_shape(INT64_C(1) << 40, 1));
    weft_tensor *y = leaf(WEFT_OP_INPUT, "y", weft_shape(1, INT64_C(1) << 40));
    wefti_emit(graph, WEFT_OP_MUL, NULL, (weft_tensor *[]){x, y}, 2, "outer");
    assert_latched(WEFT_E_OVERFLOW, "mul 'outer'");
}

Test(graph_emit, refuses_bad_ranks_dtypes_arities_and_outputs) {
    cr_assert(wefti_poisoned(leaf(WEFT_OP_INPUT, "x", (weft_shape){.rank = 9})));
    assert_latched(WEFT_E_SHAPE, "at most 8 dimensions");
    weft_graph_release(graph);
    open_graph();
    wefti_emit_leaf(graph, WEFT_OP_INPUT, NULL, (weft_dtype)99, weft_shape(1), NULL, "x");
    assert_latched(WEFT_E_DTYPE, "99 is no dtype");
    weft_graph_release(graph);
    open_graph();
    weft_tensor *x = leaf(WEFT_OP_INPUT, "x", weft_shape(2));
    wefti_emit(graph, WEFT_OP_ADD, NULL, &x, 1, NULL);
    assert_latched(WEFT_E_INVALID, "takes 2 inputs, got 1");
    weft_graph_release(graph);
    open_graph();
    wefti_output(leaf(WEFT_OP_INPUT, "x", weft_shape(2)), 1);
    assert_latched(WEFT_E_INVALID, "has 1 outputs: there is no output 1");
}

static void *fail_allocate(void *context, size_t size_bytes, size_t alignment_bytes) {
    int *left = context;
    return (*left)-- > 0
               ? aligned_alloc(alignment_bytes, (size_bytes + alignment_bytes - 1) / alignment_bytes * alignment_bytes)
               : NULL;
}
static void fail_release(void *context, void *memory, size_t size_bytes) {
    (void)context, (void)size_bytes;
    free(memory);
}

Test(graph_emit, survives_running_out_of_memory) {
    weft_graph_release(graph);
    graph = NULL;
    bool finished = false;
    for (int allowed = 0; !finished; allowed++) {
        int left = allowed;
        cr_assert_eq(weft_set_allocator(&(weft_allocator){fail_allocate, fail_release, &left}), WEFT_OK);
        weft_graph *small;
        if (weft_graph_create(NULL, &small) == WEFT_OK) {
            weft_tensor *x = wefti_emit_leaf(small, WEFT_OP_INPUT, NULL, WEFT_F32, weft_shape(2), NULL, "x");
            for (int i = 0; i < 400; i++) x = wefti_emit(small, WEFT_OP_NEG, NULL, &x, 1, NULL);
            finished = weft_graph_check(small) == WEFT_OK;
            if (!finished) cr_assert_eq(weft_graph_check(small), WEFT_E_NO_MEMORY);
            weft_graph_release(small);
        } else {
            cr_assert_null(small);
        }
    }
    cr_assert_eq(weft_set_allocator(NULL), WEFT_OK);
}

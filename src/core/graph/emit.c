/* Adding nodes: the one place where arity, ownership, dtypes and shapes are checked, for builders, autodiff and passes
 * alike. What attributes point at (custom ops, fused programs) is copied in, so that a graph never leans on another. */
#include <stdio.h>
#include <string.h>

#include "core/graph/internal.h"

/* Custom ops that the graph holds; a handful, so a list does. */
typedef struct wefti_custom_link {
    struct wefti_custom_link *next;
    wefti_custom              custom;
} custom_link;

static bool grow(weft_graph *graph, void *array, int32_t count, int32_t *capacity, const char *what) {
    if (count < *capacity) return true;
    int32_t wider = *capacity ? 2 * *capacity : 64;
    if (wider < *capacity ||
        wefti_grow(array, (size_t)*capacity * sizeof(void *), (size_t)wider * sizeof(void *), what) != WEFT_OK) {
        wefti_graph_fail(graph, WEFT_E_NO_MEMORY, "graph '%s': no memory for more than %d %s", graph->name, count,
                         what);
        return false;
    }
    *capacity = wider;
    return true;
}

const char *wefti_graph_scoped(weft_graph *graph, const char *name) {
    if (!graph->scope[0]) return wefti_graph_text(graph, name);
    size_t bytes = strlen(graph->scope) + strlen(name) + 1;
    char  *scoped = wefti_graph_memory(graph, bytes);
    if (!scoped) return "";
    snprintf(scoped, bytes, "%s%s", graph->scope, name);
    return scoped;
}

static bool same_custom(const weft_custom_op *a, const weft_custom_op *b) {
    return a->shape == b->shape && a->forward == b->forward && a->backward == b->backward &&
           a->n_inputs == b->n_inputs && a->n_outputs == b->n_outputs && a->row_local == b->row_local &&
           strcmp(a->name, b->name) == 0;
}

const wefti_custom *wefti_graph_custom(weft_graph *graph, const weft_custom_op *op) {
    for (custom_link *link = graph->customs; link; link = link->next)
        if (same_custom(&link->custom.op, op)) return &link->custom;
    custom_link *link = wefti_graph_memory(graph, sizeof *link);
    if (!link) return NULL;
    link->custom.op = *op;
    link->custom.name = (char *)wefti_graph_text(graph, op->name);
    link->custom.op.name = link->custom.name;
    link->next = graph->customs;
    graph->customs = link;
    return graph->status == WEFT_OK ? &link->custom : NULL;
}

/* Copies into the graph what the attributes of `op` point at. */
static bool own_attrs(weft_graph *graph, weft_op op, wefti_attrs *attrs) {
    if (op == WEFT_OP_CUSTOM || op == WEFT_OP_CUSTOM_BACKWARD) {
        if (!attrs->custom.custom) return true; /* the shape rule says so */
        attrs->custom.custom = wefti_graph_custom(graph, &attrs->custom.custom->op);
        if (!attrs->custom.custom) return false;
        if (attrs->custom.options_bytes > 0) {
            void *copy = wefti_graph_memory(graph, (size_t)attrs->custom.options_bytes);
            if (!copy) return false;
            attrs->custom.options = memcpy(copy, attrs->custom.options, (size_t)attrs->custom.options_bytes);
        }
    }
    if (op == WEFT_OP_FUSED && attrs->fused.fused) {
        wefti_fused *copy = wefti_graph_memory(graph, sizeof *copy);
        if (!copy) return false;
        *copy = *attrs->fused.fused;
        attrs->fused.fused = copy;
    }
    return true;
}

/* A node without outputs' types yet, in graph memory but not in the list. */
static wefti_node *new_node(weft_graph *graph, weft_op op, const wefti_attrs *attrs, weft_tensor *const *inputs,
                            int32_t n_inputs, int32_t n_outputs, const char *name) {
    wefti_node *node = wefti_graph_memory(graph, sizeof *node);
    if (!node) return NULL;
    node->inputs = wefti_graph_memory(graph, (size_t)n_inputs * sizeof *node->inputs);
    node->outputs = wefti_graph_memory(graph, (size_t)n_outputs * sizeof *node->outputs);
    node->name = wefti_graph_scoped(graph, name);
    node->attrs = attrs ? *attrs : wefti_no_attrs();
    if (graph->status != WEFT_OK || !own_attrs(graph, op, &node->attrs)) return NULL;
    if (n_inputs) memcpy(node->inputs, inputs, (size_t)n_inputs * sizeof *inputs);
    node->id = graph->n_nodes;
    node->op = op;
    node->n_inputs = n_inputs;
    node->n_outputs = n_outputs;
    node->flags = graph->flags;
    node->segment = graph->segment;
    node->wish = graph->wish;
    node->beside = graph->beside;
    node->place = graph->place;
    node->micro = graph->micro;
    return node;
}

static weft_tensor *add_node(weft_graph *graph, wefti_node *node, const wefti_type *types) {
    if (!grow(graph, &graph->nodes, graph->n_nodes, &graph->capacity, "nodes")) return &graph->poison;
    for (int32_t i = 0; i < node->n_outputs; i++)
        node->outputs[i] = (weft_tensor){graph, node, i, types[i].dtype, types[i].shape};
    graph->nodes[graph->n_nodes++] = node;
    return &node->outputs[0];
}

/* "add_7": what a node without a name is called. */
static const char *default_name(const weft_graph *graph, weft_op op, char *buffer, size_t bytes) {
    snprintf(buffer, bytes, "%s_%d", wefti_ops[op].name, graph->n_nodes);
    return buffer;
}

/* Fails on inputs that are NULL or of another graph; gives false on poisoned ones too. */
static bool inputs_usable(weft_graph *graph, weft_op op, weft_tensor *const *inputs, int32_t n_inputs,
                          const char *name) {
    const char *op_name = wefti_ops[op].name;
    for (int32_t i = 0; i < n_inputs; i++) {
        const weft_tensor *x = inputs[i];
        if (!x) {
            wefti_graph_fail(graph, WEFT_E_INVALID, "%s '%s': input %d is NULL", op_name, name, i);
            return false;
        }
        if (!x->graph) {
            wefti_graph_fail(graph, WEFT_E_INVALID,
                             "%s '%s': input %d belongs to no graph: an earlier builder was given NULL", op_name, name,
                             i);
            return false;
        }
        if (x->graph != graph) {
            wefti_graph_fail(graph, WEFT_E_INVALID, "%s '%s': input %d, '%s', belongs to graph '%s', not to '%s'",
                             op_name, name, i, weft_tensor_name(x), x->graph->name, graph->name);
            return false;
        }
    }
    return graph->status == WEFT_OK;
}

weft_tensor *wefti_emit(weft_graph *graph, weft_op op, const wefti_attrs *attrs, weft_tensor *const *inputs,
                        int32_t n_inputs, const char *name) {
    if (!graph) return wefti_graph_fail(NULL, WEFT_E_INVALID, "%s: the graph is NULL", wefti_ops[op].name);
    if (graph->status != WEFT_OK) return &graph->poison;
    char buffer[64];
    if (!name) name = default_name(graph, op, buffer, sizeof buffer);
    if (!inputs_usable(graph, op, inputs, n_inputs, name)) return &graph->poison;

    wefti_type  few[WEFTI_FUSED_MAX], *types = few;
    int32_t     n_types = (int32_t)WEFTI_COUNT(few), n_outputs = 0;
    wefti_attrs none = wefti_no_attrs();
    if (n_inputs > n_types && !(types = wefti_graph_memory(graph, (size_t)n_inputs * sizeof *types)))
        return &graph->poison;
    weft_status status = wefti_infer(op, attrs ? attrs : &none, inputs, n_inputs, name, types, &n_outputs);
    if (status != WEFT_OK) return wefti_graph_latch(graph, status);
    wefti_node *node = new_node(graph, op, attrs, inputs, n_inputs, n_outputs, name);
    return node ? add_node(graph, node, types) : &graph->poison;
}

weft_tensor *wefti_apply(weft_op op, const wefti_attrs *attrs, weft_tensor *const *inputs, int32_t n_inputs,
                         const char *name) {
    weft_graph *graph = NULL;
    for (int32_t i = 0; i < n_inputs && !graph; i++) graph = inputs[i] ? inputs[i]->graph : NULL;
    if (!graph)
        return wefti_graph_fail(NULL, WEFT_E_INVALID, "%s: input 0 is NULL or belongs to no graph", wefti_ops[op].name);
    return wefti_emit(graph, op, attrs, inputs, n_inputs, name);
}

weft_tensor *wefti_graph_step(weft_graph *graph) {
    if (!graph) return wefti_graph_fail(NULL, WEFT_E_INVALID, "step: the graph is NULL");
    if (graph->step) return graph->step;
    return wefti_emit_leaf(graph, WEFT_OP_STEP, NULL, WEFT_I64, weft_shape_scalar(), NULL, "step");
}

static bool named_leaf(weft_op op) {
    return op == WEFT_OP_INPUT || op == WEFT_OP_PARAMETER || op == WEFT_OP_STATE || op == WEFT_OP_CONSTANT;
}

/* Leaves are not inferred: what the caller says is checked here. */
static bool leaf_fits(weft_graph *graph, weft_op op, weft_dtype dtype, weft_shape shape, const char *name) {
    const char *op_name = wefti_ops[op].name;
    int64_t     elements = weft_shape_elements(shape);
    if (wefti_ops[op].family != WEFTI_LEAF) {
        wefti_graph_fail(graph, WEFT_E_INTERNAL, "%s '%s' is no leaf", op_name, name);
    } else if ((unsigned)dtype >= WEFT_DTYPE_COUNT) {
        wefti_graph_fail(graph, WEFT_E_DTYPE, "%s '%s': %d is no dtype", op_name, name, (int)dtype);
    } else if (shape.rank < 0 || shape.rank > WEFT_MAX_RANK) {
        wefti_graph_fail(graph, WEFT_E_SHAPE, "%s '%s': a shape has at most %d dimensions", op_name, name,
                         WEFT_MAX_RANK);
    } else if (elements < 0 || elements > INT64_MAX / (int64_t)weft_dtype_bytes(dtype)) {
        bool negative = false;
        for (int32_t axis = 0; axis < shape.rank; axis++) negative |= shape.dim[axis] < 0;
        wefti_graph_fail(graph, negative ? WEFT_E_SHAPE : WEFT_E_OVERFLOW, "%s '%s': shape %s %s", op_name, name,
                         weft_shape_text(shape).text,
                         negative ? "has a negative dimension" : "has more bytes than 63 bits can count");
    } else {
        return true;
    }
    return false;
}

weft_tensor *wefti_emit_leaf(weft_graph *graph, weft_op op, const wefti_attrs *attrs, weft_dtype dtype,
                             weft_shape shape, const wefti_leaf *leaf, const char *name) {
    if (!graph) return wefti_graph_fail(NULL, WEFT_E_INVALID, "%s: the graph is NULL", wefti_ops[op].name);
    if (graph->status != WEFT_OK) return &graph->poison;
    if (op == WEFT_OP_STEP && graph->step) return graph->step;
    bool named = named_leaf(op);
    char buffer[64];
    if (named && op != WEFT_OP_CONSTANT && (!name || !*name))
        return wefti_graph_fail(graph, WEFT_E_INVALID, "%s: a name is needed", wefti_ops[op].name);
    if (!name) name = default_name(graph, op, buffer, sizeof buffer);
    if (!leaf_fits(graph, op, dtype, shape, name)) return &graph->poison;
    if (op == WEFT_OP_CONSTANT &&
        (!leaf || !leaf->value || weft_array_dtype(leaf->value) != dtype ||
         !weft_shape_equal(weft_array_shape(leaf->value), shape) || !weft_array_is_contiguous(leaf->value)))
        return wefti_graph_fail(graph, WEFT_E_INVALID,
                                "constant '%s': its array must be contiguous and of its dtype and shape", name);
    for (int32_t axis = shape.rank; axis < WEFT_MAX_RANK; axis++) shape.dim[axis] = 0;

    weft_tensor *step = op == WEFT_OP_RANDOM ? wefti_graph_step(graph) : NULL;
    wefti_node  *node = new_node(graph, op, attrs, &step, step != NULL, 1, name);
    wefti_leaf  *record = node ? wefti_graph_memory(graph, sizeof *record) : NULL;
    if (!record) return &graph->poison;
    if (leaf) *record = *leaf;
    node->leaf = record;
    if (named && weft_graph_find(graph, node->name))
        return wefti_graph_fail(graph, WEFT_E_EXISTS,
                                "%s '%s': the graph has a leaf of this name already: choose another, or open a scope",
                                wefti_ops[op].name, node->name);
    if (named && !grow(graph, &graph->leaves, graph->n_leaves, &graph->leaves_capacity, "leaves"))
        return &graph->poison;
    wefti_type   type = {dtype, shape};
    weft_tensor *tensor = add_node(graph, node, &type);
    if (wefti_poisoned(tensor)) return tensor;
    if (named) graph->leaves[graph->n_leaves++] = node;
    if (op == WEFT_OP_CONSTANT) weft_array_retain(record->value);
    if (op == WEFT_OP_STEP) graph->step = tensor;
    return tensor;
}

void wefti_graph_drop_constants(weft_graph *graph) {
    for (int32_t i = 0; i < graph->n_leaves; i++)
        if (graph->leaves[i]->op == WEFT_OP_CONSTANT) weft_array_release(graph->leaves[i]->leaf->value);
}

weft_tensor *wefti_output(weft_tensor *tensor, int32_t index) {
    if (wefti_poisoned(tensor)) return tensor;
    if (index < 0 || index >= tensor->node->n_outputs)
        return wefti_graph_fail(tensor->graph, WEFT_E_INVALID, "%s '%s' has %d outputs: there is no output %d",
                                wefti_ops[tensor->node->op].name, tensor->node->name, tensor->node->n_outputs, index);
    return &tensor->node->outputs[index];
}

void wefti_graph_effect(weft_tensor *assign) {
    if (wefti_poisoned(assign)) return;
    weft_graph *graph = assign->graph;
    if (grow(graph, &graph->effects, graph->n_effects, &graph->effects_capacity, "effects"))
        graph->effects[graph->n_effects++] = assign->node;
}

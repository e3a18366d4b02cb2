/* Import: from a graph to items and values, keeping only what outputs and effects need, with MODE decided.
 *
 * MODE, DETACH and COPY become other names for their input, and so does an ASSIGN's output when evaluating (the effect is
 * training's alone). Leaves become values without an item. For strategies the same decisions are written as a graph. Linear in
 * the graph. */
#include <string.h>

#include "core/plan/ir.h"

/* The tensor that `tensor` stands for: through MODE, and through ASSIGN when not training. */
static weft_tensor *stand_in(weft_tensor *tensor, bool training) {
    for (;;) {
        const wefti_node *node = tensor->node;
        if (node->op == WEFT_OP_MODE) tensor = node->inputs[training ? 0 : 1];
        else if (node->op == WEFT_OP_ASSIGN && !training) tensor = node->inputs[1];
        else return tensor;
    }
}

static bool is_effect(const wefti_node *node, bool training) {
    return (training && node->op == WEFT_OP_UPDATE) || node->op == WEFT_OP_SEND || node->op == WEFT_OP_RECEIVE;
}

/* live[id] says that the node is needed. */
static weft_status mark_live(weft_graph *graph, weft_tensor *const *outputs, int32_t n_outputs, bool training, uint8_t *live) {
    for (int32_t i = 0; i < n_outputs; i++) live[stand_in(outputs[i], training)->node->id] = 1;
    for (int32_t i = 0; i < graph->n_effects && training; i++) live[graph->effects[i]->id] = 1;
    for (int32_t id = graph->n_nodes - 1; id >= 0; id--) {
        const wefti_node *node = graph->nodes[id];
        if (is_effect(node, training)) live[id] = 1;
        for (int32_t i = 0; i < node->n_inputs && live[id]; i++) live[stand_in(node->inputs[i], training)->node->id] = 1;
    }
    return WEFT_OK;
}

/* --- graph to graph --- */

typedef struct copier {
    weft_graph   *source, *target;
    bool          training;
    uint8_t      *live;
    weft_tensor **first; /* by source id: output 0 of the copy */
} copier;

static weft_tensor *copied(const copier *c, weft_tensor *tensor) {
    tensor = stand_in(tensor, c->training);
    return wefti_output(c->first[tensor->node->id], tensor->index);
}

static weft_status copy_node(copier *c, const wefti_node *node) {
    weft_tensor  *few[16], **inputs = few;
    weft_graph   *target = c->target;
    weft_tensor  *made;
    const wefti_leaf *leaf = node->leaf;
    target->flags = node->flags;
    target->segment = node->segment;
    target->wish = node->wish;
    target->beside = node->beside && c->first[node->beside - 1] ? c->first[node->beside - 1]->node->id + 1 : 0;
    target->place = node->place;
    target->micro = node->micro;
    if (wefti_ops[node->op].family == WEFTI_LEAF) {
        made = wefti_emit_leaf(target, node->op, &node->attrs, node->outputs[0].dtype, node->outputs[0].shape, leaf, node->name);
    } else {
        size_t bytes = (size_t)node->n_inputs * sizeof *inputs;
        if (bytes > sizeof few) WEFTI_TRY(wefti_alloc(bytes, "a plan", &inputs));
        for (int32_t i = 0; i < node->n_inputs; i++) inputs[i] = copied(c, node->inputs[i]);
        made = wefti_emit(target, node->op, &node->attrs, inputs, node->n_inputs, node->name);
        if (inputs != few) wefti_free(inputs, bytes);
    }
    target->flags = 0;
    target->segment = 0;
    target->wish = NULL;
    target->beside = target->place = target->micro = 0;
    c->first[node->id] = made;
    return wefti_poisoned(made) ? wefti_graph_status(target) : WEFT_OK;
}

static weft_status copy_all(copier *c, weft_tensor *const *outputs, int32_t n_outputs, weft_tensor **outputs_out) {
    WEFTI_TRY(mark_live(c->source, outputs, n_outputs, c->training, c->live));
    for (int32_t id = 0; id < c->source->n_nodes; id++)
        if (c->live[id]) WEFTI_TRY(copy_node(c, c->source->nodes[id]));
    for (int32_t i = 0; i < c->source->n_effects && c->training; i++)
        wefti_graph_effect(c->first[c->source->effects[i]->id]);
    for (int32_t i = 0; i < n_outputs; i++) outputs_out[i] = copied(c, outputs[i]);
    c->target->n_segments = c->source->n_segments;
    c->target->placed = c->source->placed;
    return wefti_graph_status(c->target);
}

weft_status wefti_plan_copy(weft_graph *source, weft_tensor *const *outputs, int32_t n_outputs, bool training,
                            weft_graph **graph_out, weft_tensor **outputs_out) {
    weft_status        status;
    copier             c = {.source = source, .training = training};
    size_t             n = (size_t)source->n_nodes;
    weft_graph_options options = {.seed = source->seed, .name = source->name};
    *graph_out = NULL;
    WEFTI_TRY(weft_graph_create(&options, &c.target));
    WEFTI_TRY_GOTO(wefti_alloc(n, "a plan", &c.live), done);
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *c.first, "a plan", &c.first), done);
    WEFTI_TRY_GOTO(copy_all(&c, outputs, n_outputs, outputs_out), done);
    *graph_out = c.target;
    c.target = NULL;
done:
    wefti_free(c.live, n);
    wefti_free(c.first, n * sizeof *c.first);
    weft_graph_release(c.target);
    return status;
}

/* --- graph to items --- */

typedef struct importer {
    wefti_ir *ir;
    uint8_t  *live;
    int32_t  *first;  /* by node id: place of output 0 in values */
    int32_t  *values; /* by place: the value */
    size_t    places;
} importer;

static int32_t imported(const importer *im, weft_tensor *tensor) {
    tensor = stand_in(tensor, im->ir->options.base.training);
    return im->values[im->first[tensor->node->id] + tensor->index];
}

static weft_status import_constant(importer *im, const wefti_node *node, wefti_value *value) {
    wefti_plan_constant constant = {.kind = WEFTI_CONSTANT_ARRAY, .dtype = value->dtype,
                                    .elements = weft_shape_elements(value->shape), .array = node->leaf->value};
    value->place = WEFTI_HOME_CONSTANT;
    if (node->op == WEFT_OP_STEP) {
        constant.kind = WEFTI_CONSTANT_STEP;
        constant.array = NULL;
    }
    WEFTI_TRY(wefti_ir_constant(im->ir, &constant, &value->index));
    if (node->op == WEFT_OP_STEP) im->ir->step_constant = value->index;
    return WEFT_OK;
}

static weft_status import_leaf(importer *im, const wefti_node *node, int32_t *value_out) {
    wefti_ir *ir = im->ir;
    WEFTI_TRY(wefti_ir_value(ir, node->outputs[0].dtype, node->outputs[0].shape, -1, 0, value_out));
    wefti_value *value = &ir->values[*value_out];
    switch (node->op) {
    case WEFT_OP_INPUT:
        WEFTI_TRY(wefti_ir_room(&ir->inputs, ir->n_inputs, &ir->inputs_capacity, sizeof *ir->inputs));
        value->place = WEFTI_HOME_INPUT;
        value->index = ir->n_inputs;
        ir->inputs[ir->n_inputs++] = (wefti_plan_input){node->name, *value_out};
        return WEFT_OK;
    case WEFT_OP_PARAMETER:
    case WEFT_OP_STATE:
        WEFTI_TRY(wefti_ir_room(&ir->variables, ir->n_variables, &ir->variables_capacity, sizeof *ir->variables));
        value->place = WEFTI_HOME_VARIABLE;
        value->index = ir->n_variables;
        ir->variables[ir->n_variables++] = (wefti_plan_variable){.name = node->name, .leaf = &node->outputs[0], .value = *value_out};
        return WEFT_OK;
    default: return import_constant(im, node, value);
    }
}

/* An ASSIGN's or UPDATE's output is the variable that it writes. */
static void import_written(wefti_ir *ir, int32_t item) {
    wefti_value       *out = &ir->values[ir->items[item].outputs[0]];
    const wefti_value *variable = &ir->values[ir->values[ir->items[item].inputs[0]].root];
    out->place = variable->place;
    out->index = variable->index;
}

static weft_status import_item(importer *im, const wefti_node *node) {
    wefti_ir *ir = im->ir;
    int32_t   item, value;
    WEFTI_TRY(wefti_ir_item(ir, node->op, &node->attrs, node->n_inputs, node->n_outputs, node->name,
                            (int64_t)(node->id + 1) * WEFTI_KEY_STEP, &item));
    ir->items[item].flags = node->flags;
    ir->items[item].micro = node->micro;
    ir->items[item].flops = wefti_node_flops(node);
    ir->items[item].divided = node->op == WEFT_OP_REDUCE_SCATTER && node->attrs.comm.each > 0;
    for (int32_t i = 0; i < node->n_inputs; i++) ir->items[item].inputs[i] = imported(im, node->inputs[i]);
    for (int32_t o = 0; o < node->n_outputs; o++) {
        WEFTI_TRY(wefti_ir_value(ir, node->outputs[o].dtype, node->outputs[o].shape, item, o, &value));
        im->values[im->first[node->id] + o] = value;
    }
    if (!wefti_item_has_effect(&ir->items[item])) return WEFT_OK;
    if (ir->values[ir->values[ir->items[item].inputs[0]].root].place != WEFTI_HOME_VARIABLE)
        return wefti_fail(WEFT_E_INVALID, "%s '%s' writes '%s', which is no parameter or state", wefti_ops[node->op].name,
                          node->name, node->inputs[0]->node->name);
    import_written(ir, item);
    return WEFT_OK;
}

static bool is_leaf_value(const wefti_node *node) {
    switch (node->op) {
    case WEFT_OP_INPUT:
    case WEFT_OP_PARAMETER:
    case WEFT_OP_STATE:
    case WEFT_OP_CONSTANT:
    case WEFT_OP_STEP: return true;
    default: return false;
    }
}

/* Communication of a group of one. */
static bool is_alone(const wefti_ir *ir, const wefti_node *node) {
    if (wefti_ops[node->op].family != WEFTI_COMM) return false;
    const wefti_item          item = {.op = node->op, .attrs = &node->attrs};
    const struct wefti_group *group = wefti_ir_group(ir, &item);
    return !group || group->size == 1;
}

/* Whoever sends and receives needs somebody else to do the other part. */
static weft_status check_peer(const wefti_ir *ir, const wefti_node *node) {
    if (node->op != WEFT_OP_SEND && node->op != WEFT_OP_RECEIVE) return WEFT_OK;
    const wefti_item          item = {.op = node->op, .attrs = &node->attrs};
    const struct wefti_group *group = wefti_ir_group(ir, &item);
    int32_t                   size = group ? group->size : 1, index = group ? group->index : 0, peer = node->attrs.comm.peer;
    if (peer >= 0 && peer < size && peer != index) return WEFT_OK;
    return wefti_fail(WEFT_E_INVALID, "rank %d: %s '%s' names member %d of a group of %d, in which this rank is member %d", (int)ir->world->rank,
                      wefti_ops[node->op].name, node->name, (int)peer, (int)size, (int)index);
}

static weft_status import_node(importer *im, const wefti_node *node) {
    int32_t *values = &im->values[im->first[node->id]];
    if (is_leaf_value(node)) return import_leaf(im, node, &values[0]);
    WEFTI_TRY(check_peer(im->ir, node));
    if (node->op == WEFT_OP_DETACH || node->op == WEFT_OP_COPY || is_alone(im->ir, node)) {
        for (int32_t o = 0; o < node->n_outputs; o++) values[o] = imported(im, node->inputs[o]);
        return WEFT_OK;
    }
    return import_item(im, node);
}

static weft_status import_all(importer *im, weft_tensor *const *outputs) {
    wefti_ir *ir = im->ir;
    WEFTI_TRY(mark_live(ir->graph, outputs, ir->n_outputs, ir->options.base.training, im->live));
    for (int32_t id = 0; id < ir->graph->n_nodes; id++)
        if (im->live[id]) WEFTI_TRY(import_node(im, ir->graph->nodes[id]));
    for (int32_t i = 0; i < ir->n_outputs; i++) ir->outputs[i] = imported(im, outputs[i]);
    return wefti_ir_settle(ir);
}

weft_status wefti_pass_resolve(wefti_ir *ir, weft_tensor *const *outputs) {
    weft_status status;
    importer    im = {.ir = ir};
    size_t      n = (size_t)ir->graph->n_nodes;
    WEFTI_TRY_GOTO(wefti_alloc(n, "a plan", &im.live), done);
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *im.first, "a plan", &im.first), done);
    for (size_t id = 0; id < n; id++) {
        im.first[id] = (int32_t)im.places;
        im.places += (size_t)ir->graph->nodes[id]->n_outputs;
    }
    if (im.places > INT32_MAX / 2) {
        status = wefti_fail(WEFT_E_OVERFLOW, "the graph has too many tensors to plan");
        goto done;
    }
    WEFTI_TRY_GOTO(wefti_alloc(im.places * sizeof *im.values, "a plan", &im.values), done);
    status = import_all(&im, outputs);
done:
    wefti_free(im.live, n);
    wefti_free(im.first, n * sizeof *im.first);
    wefti_free(im.values, im.places * sizeof *im.values);
    return status;
}

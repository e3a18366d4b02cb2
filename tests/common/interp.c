/* Each output has a buffer of its own; all needed calls form one segment of the reference device, in the order of ids.
 */
#include "common/interp.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "core/cpu/cpu.h"

struct interp {
    weft_graph    *graph;
    wefti_device  *device;
    wefti_program *program;
    int32_t       *first;   /* [n_nodes] buffer of output 0 */
    void         **buffers; /* [n_buffers] */
    int32_t        n_buffers, n_nodes;
    bool           training;
};

static void must(weft_status status) {
    cr_assert_eq(status, WEFT_OK, "%s: %s", weft_status_name(status), weft_error_message());
}

static void *zeros(size_t count, size_t bytes) {
    void *memory = aligned_alloc(64, (count * bytes + 127) / 64 * 64);
    cr_assert_not_null(memory);
    return memset(memory, 0, (count * bytes + 127) / 64 * 64);
}

/* The tensor whose memory holds this one: MODE is its choice, ASSIGN and UPDATE are their variable. */
static const weft_tensor *place(const interp *in, const weft_tensor *tensor) {
    for (;;) {
        const wefti_node *node = tensor->node;
        if (node->op == WEFT_OP_MODE) tensor = node->inputs[in->training ? 0 : 1];
        else if (node->op == WEFT_OP_ASSIGN || node->op == WEFT_OP_UPDATE) tensor = node->inputs[0];
        else return tensor;
    }
}

static int32_t buffer_of(const interp *in, const weft_tensor *tensor) {
    tensor = place(in, tensor);
    return in->first[tensor->node->id] + tensor->index;
}

static wefti_operand operand(const interp *in, const weft_tensor *tensor) {
    wefti_operand o = {.dtype = tensor->dtype, .shape = tensor->shape, .buffer = buffer_of(in, tensor)};
    wefti_contiguous_strides(o.shape, o.stride);
    return o;
}

static bool computed(const wefti_node *node) {
    switch (node->op) {
    case WEFT_OP_INPUT:
    case WEFT_OP_PARAMETER:
    case WEFT_OP_STATE:
    case WEFT_OP_CONSTANT:
    case WEFT_OP_STEP:
    case WEFT_OP_MODE: return false;
    default: return true;
    }
}

static void mark(interp *in, bool *needed) {
    for (int32_t id = in->n_nodes - 1; id >= 0; id--) {
        const wefti_node *node = in->graph->nodes[id];
        if (!needed[id]) continue;
        for (int32_t i = 0; i < node->n_inputs; i++) {
            bool chosen = node->op != WEFT_OP_MODE || i == (in->training ? 0 : 1);
            if (chosen) needed[node->inputs[i]->node->id] = true;
        }
    }
}

static void compile(interp *in, const bool *needed) {
    wefti_call *calls = zeros((size_t)in->n_nodes, sizeof *calls);
    int32_t     n_calls = 0;
    for (int32_t id = 0; id < in->n_nodes; id++) {
        const wefti_node *node = in->graph->nodes[id];
        if (!needed[id] || !computed(node)) continue;
        wefti_operand *operands = zeros((size_t)(node->n_inputs + node->n_outputs), sizeof *operands);
        for (int32_t i = 0; i < node->n_inputs; i++) operands[i] = operand(in, node->inputs[i]);
        for (int32_t i = 0; i < node->n_outputs; i++) operands[node->n_inputs + i] = operand(in, &node->outputs[i]);
        wefti_call *call = &calls[n_calls++];
        *call = (wefti_call){.op = node->op,
                             .attrs = &node->attrs,
                             .n_inputs = node->n_inputs,
                             .n_outputs = node->n_outputs,
                             .inputs = operands,
                             .outputs = operands + node->n_inputs,
                             .name = node->name};
        int64_t scratch = 0;
        must(in->device->vtable->query(in->device, call, &scratch));
        if (scratch > 0) { /* a buffer of its own, too */
            in->buffers = realloc(in->buffers, (size_t)(in->n_buffers + 1) * sizeof *in->buffers);
            in->buffers[in->n_buffers] = zeros((size_t)scratch, 1);
            call->scratch_buffer = in->n_buffers++;
            call->scratch_bytes = scratch;
        }
    }
    must(in->device->vtable->compile(in->device, &(wefti_segment){calls, n_calls, in->n_buffers}, &in->program));
    for (int32_t i = 0; i < n_calls; i++) free((void *)(uintptr_t)calls[i].inputs);
    free(calls);
}

interp *interp_open(weft_graph *graph, weft_tensor *const *targets, int32_t count, bool training) {
    cr_assert_eq(weft_graph_check(graph), WEFT_OK, "%s", weft_graph_message(graph));
    interp *in = zeros(1, sizeof *in);
    in->graph = graph;
    in->n_nodes = graph->n_nodes;
    in->training = training;
    must(wefti_cpu_create(&(wefti_cpu_options){.isa = WEFTI_CPU_REFERENCE, .threads = {.count = 1}}, &in->device));
    in->first = zeros((size_t)in->n_nodes, sizeof *in->first);
    for (int32_t id = 0; id < in->n_nodes; id++) {
        in->first[id] = in->n_buffers;
        in->n_buffers += graph->nodes[id]->n_outputs;
    }
    bool *needed = zeros((size_t)in->n_nodes, 1);
    for (int32_t i = 0; i < count; i++) needed[targets[i]->node->id] = true;
    mark(in, needed);
    in->buffers = malloc((size_t)(in->n_buffers + 1) * sizeof *in->buffers);
    for (int32_t id = 0; id < in->n_nodes; id++)
        for (int32_t i = 0; i < graph->nodes[id]->n_outputs; i++) {
            const weft_tensor *t = &graph->nodes[id]->outputs[i];
            bool leaf = !computed(graph->nodes[id]);
            in->buffers[in->first[id] + i] =
                needed[id] || leaf ? zeros((size_t)weft_shape_elements(t->shape), weft_dtype_bytes(t->dtype)) : NULL;
        }
    for (int32_t i = 0; i < graph->n_leaves; i++) {
        const wefti_node *node = graph->leaves[i];
        if (node->op == WEFT_OP_CONSTANT)
            memcpy(in->buffers[in->first[node->id]], weft_array_data(node->leaf->value),
                   weft_array_bytes(node->leaf->value));
    }
    compile(in, needed);
    free(needed);
    return in;
}

void interp_close(interp *in) {
    in->device->vtable->release_program(in->program);
    in->device->vtable->release(in->device);
    for (int32_t i = 0; i < in->n_buffers; i++) free(in->buffers[i]);
    free(in->buffers);
    free(in->first);
    free(in);
}

void interp_set_one(interp *in, const weft_tensor *leaf, int64_t element, double value) {
    void *data = in->buffers[buffer_of(in, leaf)];
    if (weft_dtype_is_float(leaf->dtype)) wefti_store_f64(data, element, leaf->dtype, value);
    else wefti_store_i64(data, element, leaf->dtype, (int64_t)value);
}

void interp_set(interp *in, const weft_tensor *leaf, const double *values) {
    for (int64_t i = 0; i < weft_shape_elements(leaf->shape); i++) interp_set_one(in, leaf, i, values[i]);
}

void interp_run(interp *in, int64_t step) {
    if (in->graph->step) interp_set_one(in, in->graph->step, 0, (double)step);
    must(in->device->vtable->launch(in->program, &(wefti_launch){.buffers = in->buffers}));
}

double interp_get(const interp *in, const weft_tensor *tensor, int64_t element) {
    return wefti_load_f64(interp_data(in, tensor), element, tensor->dtype);
}

const void *interp_data(const interp *in, const weft_tensor *tensor) { return in->buffers[buffer_of(in, tensor)]; }

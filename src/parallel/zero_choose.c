/* Which parameters are dealt out, and how: those that solvers update and that are large enough. Linear in nodes times windows. */
#include <string.h>

#include "core/iface/rule.h"
#include "core/plan/plan.h"
#include "parallel/zero.h"

typedef struct chooser {
    wefti_zero          *zero;
    const wefti_windows *tensor;
    double               all, held; /* bytes of parameters and states, whole and as this rank keeps them */
} chooser;

static wefti_window_of window_of(const chooser *c, const char *name) {
    for (int32_t i = 0; i < c->tensor->n; i++)
        if (strcmp(c->tensor->list[i].name, name) == 0) return c->tensor->list[i].window;
    return (wefti_window_of){.ranks = 1};
}

static weft_status add_window(chooser *c, const char *name, const wefti_window_of *window) {
    wefti_zero *z = c->zero;
    char       *copy = NULL;
    if (z->n_windows == z->windows_capacity) return wefti_fail(WEFT_E_INTERNAL, "zero: more windows than variables");
    WEFTI_TRY(wefti_copy_string(name, &copy));
    z->windows[z->n_windows++] = (wefti_named_window){copy, *window};
    return WEFT_OK;
}

static weft_status add_part(chooser *c, const wefti_node *update, const wefti_zero_part *like) {
    wefti_zero        *z = c->zero;
    const weft_tensor *parameter = update->inputs[0];
    int64_t            size = (int64_t)weft_dtype_bytes(parameter->dtype), kept = z->stage == 3;
    z->parts[z->n_parts] = *like;
    WEFTI_TRY(wefti_copy_string(parameter->node->name, &z->parts[z->n_parts].name));
    z->n_parts++;
    for (int32_t i = 0; i < update->n_inputs; i++) {
        if (i == 1 || i == 2) continue;
        wefti_window_of window = window_of(c, update->inputs[i]->node->name);
        if (i == 0 && !kept) {
            window.room_bytes = like->each * like->among.ranks * size;
        } else {
            window.parts = like->among.ranks;
            window.part = like->among.rank;
            window.each = like->each;
            window.row = like->row;
        }
        c->all += (double)(like->elements * size);
        c->held += (double)(i == 0 && !kept ? like->elements : like->each) * (double)size;
        WEFTI_TRY(add_window(c, update->inputs[i]->node->name, &window));
    }
    wefti_text_add(&z->notes, "  '%s' %s: %lld elements a rank%s\n", parameter->node->name, weft_shape_text(parameter->shape).text, (long long)like->each,
                   like->row > 0 ? ", in whole rows" : like->each * like->among.ranks != like->elements ? ", padded" : "");
    return WEFT_OK;
}

static weft_status consider(chooser *c, const wefti_node *update, int64_t least_bytes) {
    const wefti_zero  *z = c->zero;
    const weft_tensor *parameter = update->inputs[0];
    wefti_window_of    window = window_of(c, parameter->node->name);
    weft_shape         shape = wefti_window_shape(&window, parameter->shape);
    wefti_zero_part    part = {.among = window.blocks > 1 ? z->experts : z->among, .elements = weft_shape_elements(shape), .row = update->attrs.update.group > 0 ? wefti_rule_row(shape) : 0};
    if (part.among.ranks == 1 || part.elements == 0 || part.elements * (int64_t)weft_dtype_bytes(parameter->dtype) < least_bytes) {
        c->all += (double)part.elements * (double)weft_dtype_bytes(parameter->dtype) * (double)(update->n_inputs - 2);
        c->held += (double)part.elements * (double)weft_dtype_bytes(parameter->dtype) * (double)(update->n_inputs - 2);
        return WEFT_OK;
    }
    part.each = wefti_variable_part_of(part.elements, parameter->dtype, part.among.ranks, 0).each;
    if (part.row > 0) part.each = (part.elements / part.row + part.among.ranks - 1) / part.among.ranks * part.row;
    return add_part(c, update, &part);
}

static bool has_window(const wefti_zero *z, const char *name) {
    for (int32_t i = 0; i < z->n_windows; i++)
        if (strcmp(z->windows[i].name, name) == 0) return true;
    return false;
}

static weft_status choose(chooser *c, const weft_graph *graph, int64_t least_bytes) {
    wefti_zero *z = c->zero;
    for (int32_t id = 0; id < graph->n_nodes; id++)
        if (graph->nodes[id]->op == WEFT_OP_UPDATE) WEFTI_TRY(consider(c, graph->nodes[id], least_bytes));
    for (int32_t i = 0; i < c->tensor->n; i++)
        if (!has_window(z, c->tensor->list[i].name)) WEFTI_TRY(add_window(c, c->tensor->list[i].name, &c->tensor->list[i].window));
    return z->notes.failed ? wefti_fail(WEFT_E_NO_MEMORY, "no memory for the text about sharded data parallelism") : WEFT_OK;
}

static void write_head(chooser *c, int32_t n_updates, int64_t least_bytes) {
    static const char *const what[] = {"", "solver states", "solver states and gradients", "solver states, gradients and parameters"};
    wefti_text_add(&c->zero->notes, "zero %d: %s in parts over %d ranks: each keeps %.0f of %.0f bytes of parameters and states; %d of %d parameters are below %lld "
                   "bytes and stay whole\n", c->zero->stage, what[c->zero->stage], c->zero->among.ranks, c->held, c->all, n_updates - c->zero->n_parts, n_updates,
                   (long long)least_bytes);
}

weft_status wefti_zero_choose(const weft_graph *graph, const wefti_windows *tensor, int64_t least_bytes, wefti_zero *zero) {
    chooser c = {.zero = zero, .tensor = tensor};
    int32_t n = 0, n_windows = tensor->n;
    for (int32_t id = 0; id < graph->n_nodes; id++) {
        if (graph->nodes[id]->op != WEFT_OP_UPDATE) continue;
        n++;
        n_windows += graph->nodes[id]->n_inputs - 2;
    }
    weft_status status = wefti_alloc((size_t)n_windows * sizeof *zero->windows, "windows on variables", &zero->windows);
    if (status == WEFT_OK) zero->windows_capacity = n_windows;
    if (status == WEFT_OK) status = wefti_alloc((size_t)n * sizeof *zero->parts, "parts of parameters", &zero->parts);
    if (status == WEFT_OK) zero->parts_capacity = n;
    if (status == WEFT_OK) status = choose(&c, graph, least_bytes);
    if (status == WEFT_OK) write_head(&c, n, least_bytes);
    if (status != WEFT_OK) wefti_zero_release(zero);
    return status;
}

void wefti_zero_release(wefti_zero *zero) {
    for (int32_t i = 0; i < zero->n_windows; i++) wefti_free_string((char *)(uintptr_t)zero->windows[i].name);
    for (int32_t i = 0; i < zero->n_parts; i++) wefti_free_string(zero->parts[i].name);
    wefti_free(zero->windows, (size_t)zero->windows_capacity * sizeof *zero->windows);
    wefti_free(zero->parts, (size_t)zero->parts_capacity * sizeof *zero->parts);
    wefti_text_release(&zero->notes);
    *zero = (wefti_zero){0};
}

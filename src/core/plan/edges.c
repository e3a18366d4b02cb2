/* What must come before what: data, the memory of variables, and messages between two members. Linear. */
#include <string.h>

#include "core/plan/ir.h"

weft_status wefti_ir_endings(const wefti_ir *ir, int32_t *ended_out) {
    int32_t *latest = NULL; /* by variable: the root that stands for its memory now; -1: it has none */
    size_t   bytes = (size_t)ir->n_variables * sizeof *latest;
    WEFTI_TRY(wefti_alloc(bytes, "a plan", &latest));
    for (int32_t v = 0; v < ir->n_values; v++) ended_out[v] = -1;
    for (int32_t i = 0; i < ir->n_variables; i++) latest[i] = ir->variables[i].value;
    for (int32_t k = 0; k < ir->n_order; k++) {
        const wefti_item *item = &ir->items[ir->order[k]];
        for (int32_t i = 0; wefti_item_has_effect(item) && i < item->n_inputs; i++) {
            if (!wefti_item_writes(item, i)) continue;
            int32_t variable = ir->values[ir->values[item->inputs[i]].root].index;
            if (latest[variable] >= 0) ended_out[latest[variable]] = ir->order[k];
            latest[variable] = i == 0 ? item->outputs[0] : -1;
        }
    }
    wefti_free(latest, bytes);
    return WEFT_OK;
}

typedef struct edge {
    int32_t from, to;
} edge;

typedef struct collector {
    const wefti_ir *ir;
    wefti_uses      uses;
    int32_t        *position; /* by item */
    int32_t        *ended;    /* by value */
    int32_t        *writer;   /* by variable: position of the latest writer; -1: none */
    edge           *edges;
    int32_t         n_edges, capacity;
} collector;

static weft_status add_edge(collector *c, int32_t from, int32_t to) {
    if (from == to) return WEFT_OK;
    if (from > to)
        return wefti_fail(WEFT_E_INTERNAL, "plan: '%s' would run before '%s', which it needs", c->ir->items[c->ir->order[to]].name,
                          c->ir->items[c->ir->order[from]].name);
    WEFTI_TRY(wefti_ir_room(&c->edges, c->n_edges, &c->capacity, sizeof *c->edges));
    c->edges[c->n_edges++] = (edge){from, to};
    return WEFT_OK;
}

static weft_status collect_item(collector *c, int32_t k) {
    const wefti_ir   *ir = c->ir;
    const wefti_item *item = &ir->items[ir->order[k]];
    for (int32_t i = 0; i < item->n_inputs; i++) {
        const wefti_value *root = &ir->values[ir->values[item->inputs[i]].root];
        if (root->item >= 0) WEFTI_TRY(add_edge(c, c->position[root->item], k));
        if (!wefti_item_writes(item, i)) continue;
        if (c->writer[root->index] >= 0) WEFTI_TRY(add_edge(c, c->writer[root->index], k));
        c->writer[root->index] = k;
    }
    return WEFT_OK;
}

/* Messages to one member, or from one, are matched by their order: the number of kinds, members and groups is small. */
static weft_status collect_points(collector *c) {
    enum { MOST = 256 };
    const wefti_ir *ir = c->ir;
    int32_t         latest[MOST], n = 0;
    for (int32_t k = 0; k < ir->n_order; k++) {
        const wefti_item *item = &ir->items[ir->order[k]];
        if (!wefti_item_is_point(item)) continue;
        int32_t at = 0;
        for (; at < n; at++) {
            const wefti_item *other = &ir->items[ir->order[latest[at]]];
            if (other->op == item->op && other->attrs->comm.peer == item->attrs->comm.peer && other->attrs->comm.group == item->attrs->comm.group) break;
        }
        if (at == MOST) return wefti_fail(WEFT_E_UNSUPPORTED, "'%s': a plan has messages with %d members at most", item->name, MOST / 2);
        if (at < n) WEFTI_TRY(add_edge(c, latest[at], k));
        n += at == n;
        latest[at] = k;
    }
    return WEFT_OK;
}

static weft_status collect(collector *c) {
    const wefti_ir *ir = c->ir;
    for (int32_t k = 0; k < ir->n_order; k++) c->position[ir->order[k]] = k;
    for (int32_t i = 0; i < ir->n_variables; i++) c->writer[i] = -1;
    for (int32_t k = 0; k < ir->n_order; k++) WEFTI_TRY(collect_item(c, k));
    for (int32_t v = 0; v < ir->n_values; v++)
        for (int32_t u = c->uses.start[v]; c->ended[v] >= 0 && u < c->uses.start[v + 1]; u++) {
            /* Later writers of the same leaf also name it; they are behind, by the edges between writers. */
            int32_t reader = c->position[c->uses.users[u]], writer = c->position[c->ended[v]];
            if (reader <= writer || !wefti_item_has_effect(&ir->items[c->uses.users[u]])) WEFTI_TRY(add_edge(c, reader, writer));
        }
    return collect_points(c);
}

static weft_status pack(const collector *c, wefti_edges *edges_out) {
    int32_t n = c->ir->n_order;
    *edges_out = (wefti_edges){.start_bytes = ((size_t)n + 1) * sizeof(int32_t), .to_bytes = (size_t)c->n_edges * sizeof(int32_t)};
    WEFTI_TRY(wefti_alloc(edges_out->start_bytes, "a plan", &edges_out->start));
    weft_status status = wefti_alloc(edges_out->to_bytes, "a plan", &edges_out->to);
    if (status != WEFT_OK) {
        wefti_edges_release(edges_out);
        return status;
    }
    for (int32_t e = 0; e < c->n_edges; e++) edges_out->start[c->edges[e].from]++;
    for (int32_t k = 0, sum = 0; k <= n; k++) {
        if (k < n) sum += edges_out->start[k];
        edges_out->start[k] = sum;
    }
    for (int32_t e = 0; e < c->n_edges; e++) edges_out->to[--edges_out->start[c->edges[e].from]] = c->edges[e].to;
    return WEFT_OK;
}

weft_status wefti_ir_edges(const wefti_ir *ir, wefti_edges *edges_out) {
    weft_status status;
    collector   c = {.ir = ir};
    size_t      position_bytes = (size_t)ir->n_items * sizeof(int32_t), ended_bytes = (size_t)ir->n_values * sizeof(int32_t);
    size_t      writer_bytes = (size_t)ir->n_variables * sizeof(int32_t);
    *edges_out = (wefti_edges){0};
    WEFTI_TRY_GOTO(wefti_ir_uses(ir, true, &c.uses), done);
    WEFTI_TRY_GOTO(wefti_alloc(position_bytes, "a plan", &c.position), done);
    WEFTI_TRY_GOTO(wefti_alloc(ended_bytes, "a plan", &c.ended), done);
    WEFTI_TRY_GOTO(wefti_alloc(writer_bytes, "a plan", &c.writer), done);
    WEFTI_TRY_GOTO(wefti_ir_endings(ir, c.ended), done);
    WEFTI_TRY_GOTO(collect(&c), done);
    status = pack(&c, edges_out);
done:
    wefti_uses_release(&c.uses);
    wefti_free(c.position, position_bytes);
    wefti_free(c.ended, ended_bytes);
    wefti_free(c.writer, writer_bytes);
    wefti_free(c.edges, (size_t)c.capacity * sizeof *c.edges);
    return status;
}

void wefti_edges_release(wefti_edges *edges) {
    wefti_free(edges->start, edges->start_bytes);
    wefti_free(edges->to, edges->to_bytes);
    *edges = (wefti_edges){0};
}

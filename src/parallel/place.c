/* The placer.
 *
 * Nodes that have to be together form a *cluster*: a variable, whoever writes it, and whoever is placed `with` it. A cluster is fixed where one
 * of its nodes says so; two that say different things are refused. Then one walk in order: a gradient goes to the operation that it comes
 * back through, a view nowhere in particular (it is computed where it is needed), and every other node to the rank that would have it done
 * first, given when its inputs are done, what it costs to bring them, and when the rank is free: the earliest finish time of list scheduling
 * (Topcuoglu, Hariri and Wu 2002), in the order of the graph. A variable that nobody has placed goes to its first reader. Linear in nodes x
 * ranks. All ranks come to the same places, for nothing here depends on the rank. */
#include "parallel/place.h"

#include <string.h>

#include "core/iface/collective.h"
#include "core/iface/world.h"
#include "parallel/cut.h"

/* Orders of magnitude of a core, its memory and a link of one machine. */
#define FLOPS_PER_SECOND 1e10
#define BYTES_PER_SECOND 1e10
#define LINK_SECONDS     5e-6
#define LINK_BYTES       5e9

static double bytes_of(const weft_tensor *tensor) { return (double)weft_shape_elements(tensor->shape) * (double)weft_dtype_bytes(tensor->dtype); }

double wefti_place_seconds(const wefti_node *node) {
    double bytes = 0;
    if (wefti_cut_is_light(node) || wefti_ops[node->op].family == WEFTI_LEAF) return 0;
    for (int32_t i = 0; i < node->n_inputs; i++) bytes += bytes_of(node->inputs[i]);
    for (int32_t o = 0; o < node->n_outputs; o++) bytes += bytes_of(&node->outputs[o]);
    return wefti_node_flops(node) / FLOPS_PER_SECOND + bytes / BYTES_PER_SECOND;
}

double wefti_place_transfer(const weft_tensor *tensor) { return LINK_SECONDS + bytes_of(tensor) / LINK_BYTES; }

typedef struct cluster {
    int32_t           parent; /* a node's id */
    int32_t           place;  /* rank plus one; 0: open */
    const wefti_node *placed_by, *device_by; /* who said so; NULL: nobody */
} cluster;

typedef struct placer {
    weft_graph *graph;
    int32_t     ranks;
    const bool *is_cuda;
    cluster    *clusters; /* [n_nodes] */
    double     *done;     /* [n_nodes] when the node is */
    double     *free;     /* [ranks] when the rank is */
} placer;

static bool is_variable(const wefti_node *node) { return node->op == WEFT_OP_PARAMETER || node->op == WEFT_OP_STATE; }

static cluster *cluster_of(const placer *p, const wefti_node *node) {
    int32_t id = node->id;
    while (p->clusters[id].parent != id) id = p->clusters[id].parent = p->clusters[p->clusters[id].parent].parent;
    return &p->clusters[id];
}

/* --- what is together --- */

static void join(const placer *p, const wefti_node *a, const wefti_node *b) {
    cluster *first = cluster_of(p, a), *second = cluster_of(p, b);
    if (first > second) {
        cluster *other = first;
        first = second;
        second = other;
    }
    second->parent = first->parent;
}

static void join_all(const placer *p) {
    for (int32_t id = 0; id < p->graph->n_nodes; id++) {
        const wefti_node *node = p->graph->nodes[id];
        bool              writes = node->op == WEFT_OP_ASSIGN || node->op == WEFT_OP_UPDATE;
        for (int32_t i = 0; i < node->n_inputs && writes; i++)
            if (is_variable(node->inputs[i]->node) && (i == 0 || (node->op == WEFT_OP_UPDATE && i >= 3))) join(p, node, node->inputs[i]->node);
        if (!node->wish || !(node->wish->said & WEFTI_WISH_WITH)) continue;
        const weft_tensor *other = weft_graph_find(p->graph, node->wish->with);
        if (other) join(p, node, other->node); /* else nothing that is planned needs it */
    }
}

/* --- what is said --- */

static bool has_device(const placer *p, const wefti_wish *wish, int32_t rank) {
    int32_t number = 0;
    bool    cuda = p->is_cuda && p->is_cuda[rank];
    for (int32_t r = 0; r < rank && cuda; r++) number += p->is_cuda[r];
    return wish->cuda == cuda && (wish->ordinal < 0 || wish->ordinal == number);
}

static weft_status contradiction(const wefti_node *a, const wefti_node *b) {
    return wefti_fail(WEFT_E_INVALID, "'%s' at '%s' and '%s' at '%s' contradict each other: a variable and who writes it, or is placed with it, are together",
                      a->name, a->wish->text, b->name, b->wish->text);
}

static weft_status take_wish(const placer *p, const wefti_node *node) {
    const wefti_wish *wish = node->wish;
    cluster          *c = cluster_of(p, node);
    if (wish->said & WEFTI_WISH_STAGE)
        return wefti_fail(WEFT_E_UNSUPPORTED, "'%s' is placed at '%s': stages are of trainers, by strategy.pipeline; here ranks are named", node->name, wish->text);
    if (wish->said & WEFTI_WISH_RANK) {
        if (wish->rank >= p->ranks)
            return wefti_fail(WEFT_E_INVALID, "'%s' is placed at '%s', and the world has %d rank%s, from 0", node->name, wish->text, (int)p->ranks,
                              p->ranks == 1 ? "" : "s");
        if (c->placed_by && c->place != wish->rank + 1) return contradiction(c->placed_by, node);
        c->place = wish->rank + 1;
        c->placed_by = node;
    }
    if (!(wish->said & WEFTI_WISH_DEVICE)) return WEFT_OK;
    const wefti_wish *other = c->device_by ? c->device_by->wish : wish;
    if (other->cuda != wish->cuda || (other->ordinal >= 0 && wish->ordinal >= 0 && other->ordinal != wish->ordinal)) return contradiction(c->device_by, node);
    if (!c->device_by || other->ordinal < 0) c->device_by = node;
    return WEFT_OK;
}

/* Whether the cluster may be on a rank. */
static bool may_be(const placer *p, const cluster *c, int32_t rank) {
    if (c->place > 0 && c->place - 1 != rank) return false;
    return !c->device_by || has_device(p, c->device_by->wish, rank);
}

static weft_status check_met(const placer *p, const cluster *c) {
    for (int32_t r = 0; r < p->ranks; r++)
        if (may_be(p, c, r)) return WEFT_OK;
    return wefti_fail(WEFT_E_UNSUPPORTED, "'%s' is placed at '%s'%s%s%s%s%s, and no rank is that", c->device_by->name, c->device_by->wish->text,
                      c->placed_by && c->placed_by != c->device_by ? " with '" : "", c->placed_by && c->placed_by != c->device_by ? c->placed_by->name : "",
                      c->placed_by && c->placed_by != c->device_by ? "' at '" : "",
                      c->placed_by && c->placed_by != c->device_by ? c->placed_by->wish->text : "", c->placed_by && c->placed_by != c->device_by ? "'" : "");
}

static weft_status take_wishes(const placer *p) {
    for (int32_t id = 0; id < p->graph->n_nodes; id++)
        if (p->graph->nodes[id]->wish) WEFTI_TRY(take_wish(p, p->graph->nodes[id]));
    for (int32_t id = 0; id < p->graph->n_nodes; id++)
        if (p->clusters[id].parent == id && p->clusters[id].device_by) WEFTI_TRY(check_met(p, &p->clusters[id]));
    return WEFT_OK;
}

/* --- the rest --- */

/* Whose place it is that a tensor comes from: through views. NULL: it is everywhere. */
static const wefti_node *source_of(const wefti_node *node) {
    while (node->place == 0 && node->n_inputs > 0 && wefti_cut_is_light(node)) node = node->inputs[0]->node;
    return node->place > 0 ? node : NULL;
}

static double finish_on(const placer *p, const wefti_node *node, int32_t rank) {
    double begin = p->free[rank];
    for (int32_t i = 0; i < node->n_inputs; i++) {
        const wefti_node *source = source_of(node->inputs[i]->node);
        if (!source) continue;
        double there = p->done[source->id] + (source->place - 1 == rank ? 0 : wefti_place_transfer(node->inputs[i]));
        if (there > begin) begin = there;
    }
    return begin + wefti_place_seconds(node);
}

static int32_t best_rank(const placer *p, const wefti_node *node, const cluster *c) {
    int32_t best = -1;
    double  least = 0;
    for (int32_t r = 0; r < p->ranks; r++) {
        if (!may_be(p, c, r)) continue;
        double finish = finish_on(p, node, r);
        if (best < 0 || finish < least) {
            best = r;
            least = finish;
        }
    }
    return best;
}

static void put(placer *p, wefti_node *node, int32_t rank) {
    p->done[node->id] = finish_on(p, node, rank);
    if (wefti_ops[node->op].family == WEFTI_LEAF) p->done[node->id] = 0;
    else p->free[rank] = p->done[node->id];
    cluster_of(p, node)->place = node->place = rank + 1;
}

/* Where a gradient belongs: beside what it comes back through, or what that looks at. 0: anywhere. */
static int32_t beside(const placer *p, const wefti_node *node) {
    for (int32_t id = node->beside; id > 0;) {
        const wefti_node *forward = p->graph->nodes[id - 1], *source = source_of(forward);
        if (source) return source->place;
        id = forward->beside;
    }
    return 0;
}

static void place_node(placer *p, wefti_node *node) {
    cluster *c = cluster_of(p, node);
    bool     wished = c->place > 0 || c->device_by;
    if (!wished && (is_variable(node) || wefti_cut_is_light(node))) return; /* by its first reader; wherever it is needed */
    int32_t rank = c->place - 1;
    if (rank < 0) rank = beside(p, node) - 1;
    if (rank < 0 || !may_be(p, c, rank)) rank = best_rank(p, node, c);
    put(p, node, rank);
    for (int32_t i = 0; i < node->n_inputs; i++) {
        wefti_node *input = node->inputs[i]->node;
        while (input->place == 0 && input->n_inputs > 0 && wefti_cut_is_light(input)) input = input->inputs[0]->node;
        if (!is_variable(input) || input->place > 0) continue;
        const cluster *own = cluster_of(p, input);
        put(p, input, own->place > 0 ? own->place - 1 : may_be(p, own, rank) ? rank : best_rank(p, input, own));
    }
}

weft_status wefti_place_graph(weft_graph *graph, int32_t ranks, const bool *is_cuda) {
    weft_status status;
    placer      p = {.graph = graph, .ranks = ranks, .is_cuda = is_cuda};
    size_t      n = (size_t)graph->n_nodes;
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *p.clusters, "placing", &p.clusters), done);
    WEFTI_TRY_GOTO(wefti_alloc(n * sizeof *p.done, "placing", &p.done), done);
    WEFTI_TRY_GOTO(wefti_alloc((size_t)ranks * sizeof *p.free, "placing", &p.free), done);
    for (int32_t id = 0; id < graph->n_nodes; id++) p.clusters[id].parent = id;
    join_all(&p);
    WEFTI_TRY_GOTO(take_wishes(&p), done);
    for (int32_t id = 0; id < graph->n_nodes; id++) place_node(&p, graph->nodes[id]);
    wefti_cut_settle(graph);
done:
    wefti_free(p.clusters, n * sizeof *p.clusters);
    wefti_free(p.done, n * sizeof *p.done);
    wefti_free(p.free, (size_t)ranks * sizeof *p.free);
    return status;
}

/* --- for plans --- */

static bool asks_for_devices(const weft_graph *graph) {
    for (int32_t id = 0; id < graph->n_nodes; id++)
        if (graph->nodes[id]->wish && (graph->nodes[id]->wish->said & WEFTI_WISH_DEVICE)) return true;
    return false;
}

/* What the ranks compute on. Collective, where there is more than one. */
static weft_status find_devices(weft_world *world, bool *is_cuda) {
    int64_t *kinds = NULL;
    size_t   bytes = (size_t)world->size * sizeof *kinds;
    WEFTI_TRY(wefti_alloc(bytes, "placing", &kinds));
    kinds[world->rank] = strcmp(world->device->vtable->kind, "cuda") == 0;
    wefti_collective_call call = {.kind = WEFTI_ALLGATHER, .dtype = WEFT_I64, .send = &kinds[world->rank], .receive = kinds, .count = 1};
    weft_status           status = world->size > 1 ? wefti_collective_run(world->group, &call) : WEFT_OK;
    for (int32_t r = 0; r < world->size; r++) is_cuda[r] = kinds[r] != 0;
    wefti_free(kinds, bytes);
    return status;
}

static weft_status rewrite(void *context, weft_graph *source, weft_tensor *const *outputs, int32_t n_outputs, bool training, weft_graph **graph_out,
                           weft_tensor **outputs_out) {
    weft_world *world = context;
    bool       *is_cuda = NULL;
    size_t      bytes = (size_t)world->size * sizeof *is_cuda;
    wefti_cut   cut = {.rank = world->rank, .ranks = world->size};
    WEFTI_TRY(wefti_alloc(bytes, "placing", &is_cuda));
    weft_status status = asks_for_devices(source) ? find_devices(world, is_cuda) : WEFT_OK;
    if (status == WEFT_OK) status = wefti_place_graph(source, world->size, is_cuda);
    if (status == WEFT_OK) status = wefti_cut_graph(&cut, source, outputs, n_outputs, training, graph_out, outputs_out);
    wefti_free(is_cuda, bytes);
    return status == WEFT_OK ? WEFT_OK : wefti_while(status, "placing '%s' on %d rank%s", source->name, (int)world->size, world->size == 1 ? "" : "s");
}

const wefti_placer *wefti_placer_of_ranks(void) {
    static const wefti_placer ours = {rewrite};
    return &ours;
}

/* An automatic strategy for a trainer: what its program costs under each split, what the ranks can, and the choice (src/parallel/automatic.h).
 *
 * Costs come from copies of the program with gradients and updates, which the rewrites for tensors and stages are run on as they would be for training, one for each
 * number of ranks that divides the world's. What ranks can is measured: products, traffic, launches, sums over ranks; some tens of milliseconds.
 * The numbers of the slowest rank count, and all ranks choose from the same. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/iface/collective.h"
#include "parallel/automatic.h"
#include "parallel/cut.h"
#include "parallel/expert.h"
#include "parallel/sequence.h"
#include "train/trainer.h"
#include "weft/collective.h"

/* --- what a program costs --- */

static double bytes_of(const weft_tensor *tensor) { return (double)weft_shape_elements(tensor->shape) * (double)weft_dtype_bytes(tensor->dtype); }
static bool   is_variable(const wefti_node *node) { return node->op == WEFT_OP_PARAMETER || node->op == WEFT_OP_STATE; }

/* Chains of elementwise operations are fused: what they hand on stays in caches. */
static double traffic(const wefti_node *node) {
    double bytes = 0;
    for (int32_t o = 0; o < node->n_outputs; o++) bytes += bytes_of(&node->outputs[o]);
    if (wefti_op_is_elementwise(node->op)) return bytes;
    for (int32_t i = 0; i < node->n_inputs; i++) bytes += bytes_of(node->inputs[i]);
    return bytes;
}

typedef struct tally {
    const weft_graph *graph;
    int32_t           first_backward; /* id */
    bool             *read_back;      /* [n_nodes] a backward node reads it, itself or by a view */
    double            forward, all;   /* flops and bytes, for the share */
} tally;

static const wefti_node *looked_at(const wefti_node *node) {
    while (node->n_inputs > 0 && wefti_cut_is_light(node)) node = node->inputs[0]->node;
    return node;
}

static weft_status tally_open(tally *t, const weft_graph *graph) {
    *t = (tally){.graph = graph, .first_backward = graph->n_nodes};
    WEFTI_TRY(wefti_alloc((size_t)graph->n_nodes, "an automatic strategy", &t->read_back));
    for (int32_t id = 0; id < graph->n_nodes; id++) {
        const wefti_node *node = graph->nodes[id];
        if (!(node->flags & WEFTI_NODE_BACKWARD)) continue;
        if (id < t->first_backward) t->first_backward = id;
        for (int32_t i = 0; i < node->n_inputs; i++) t->read_back[looked_at(node->inputs[i]->node)->id] = true;
    }
    return WEFT_OK;
}
static void tally_close(tally *t) { wefti_free(t->read_back, (size_t)t->graph->n_nodes); }

/* What reads a parameter, or makes a gradient of one, moves it whatever the batch. */
static double without_parameters(const wefti_auto_split *s) { return fmax(s->work.bytes - 3 * s->parameter_bytes, 0); }

/* Adds a node to what its rank has; `parts` is how many times as much the whole batch is. */
static void add_node(tally *t, const wefti_node *node, double parts, wefti_auto_split *to) {
    bool backward = node->flags & WEFTI_NODE_BACKWARD, light = wefti_cut_is_light(node) || wefti_ops[node->op].family == WEFTI_COMM;
    if (node->op == WEFT_OP_PARAMETER) to->parameter_bytes += bytes_of(&node->outputs[0]);
    if (node->op == WEFT_OP_STATE) to->state_bytes += bytes_of(&node->outputs[0]);
    if (is_variable(node) || light || wefti_ops[node->op].family == WEFTI_LEAF) return;
    if (node->op == WEFT_OP_UPDATE || (!backward && node->id > t->first_backward)) {
        to->update_bytes += traffic(node) * (node->op == WEFT_OP_UPDATE ? 1.5 : 1); /* it writes most of what it reads */
        return;
    }
    double flops = wefti_node_flops(node) * parts, bytes = traffic(node) * parts;
    to->work.flops += flops;
    to->work.bytes += bytes;
    to->work.ops += wefti_op_is_elementwise(node->op) ? 0.4 : 1;
    t->all += flops + bytes;
    if (backward) return;
    t->forward += flops + bytes;
    if (!t->read_back[node->id]) return;
    for (int32_t o = 0; o < node->n_outputs; o++) to->kept_bytes += bytes_of(&node->outputs[o]) * parts;
}

/* What is kept where scopes are computed again: what leaves them, and the inside of the largest. By names, as recompute.c cuts. */
static void add_recomputed(const tally *t, int32_t place, double parts, wefti_auto_split *to) {
    const char *before = "";
    size_t      length = 0;
    double      inside = 0, largest = 0, outside = 0;
    for (int32_t id = 0; id < t->graph->n_nodes; id++) {
        const wefti_node *node = t->graph->nodes[id];
        if (wefti_ops[node->op].family == WEFTI_LEAF || node->flags & WEFTI_NODE_BACKWARD || id > t->first_backward || (place > 0 && node->place != place)) continue;
        const char *dot = strchr(node->name, '.');
        size_t      bytes = dot ? (size_t)(dot - node->name) : 0;
        if (bytes != length || memcmp(before, node->name, bytes) != 0) {
            outside += bytes > 0 && node->n_inputs > 0 ? bytes_of(node->inputs[0]) * parts : 0;
            inside = 0;
            before = node->name;
            length = bytes;
        }
        if (!t->read_back[id] || wefti_cut_is_light(node)) continue;
        double own = 0;
        for (int32_t o = 0; o < node->n_outputs; o++) own += bytes_of(&node->outputs[o]) * parts;
        if (bytes == 0) outside += own;
        else inside += own;
        largest = fmax(largest, inside);
    }
    to->recompute_bytes = fmin(outside + largest, to->kept_bytes);
}

typedef struct assessor {
    const weft_trainer *trainer;
    weft_graph       *built, *pruned; /* the program with gradients and updates; what of it is needed */
    weft_tensor      *outputs[WEFTI_OUT_FIRST_GRADIENT];
    bool              scopes;         /* there is something to compute again */
    wefti_auto_costs *costs;
} assessor;

/* The program on a copy of its graph, which is then given gradients and updates. */
static weft_status build_copy(assessor *a) {
    weft_program   program = a->trainer->program;
    wefti_training training;
    weft_tensor   *loss = NULL;
    WEFTI_TRY(wefti_plan_copy(program.loss->graph, &program.loss, 1, true, &a->built, &loss));
    a->scopes = wefti_recompute_scopes(a->built) > 0;
    program.loss = loss;
    program.strategy = (weft_strategy){.precision = program.strategy.precision, .fp8 = program.strategy.fp8};
    program.n_wanted = 0;
    WEFTI_TRY(wefti_training_build(&program, &training));
    weft_tensor *outputs[WEFTI_OUT_FIRST_GRADIENT] = {loss, loss, training.norm ? training.norm : loss};
    return wefti_plan_copy(a->built, outputs, WEFTI_OUT_FIRST_GRADIENT, true, &a->pruned, a->outputs);
}

static weft_status assess_whole(assessor *a) {
    tally             t;
    wefti_auto_split *whole = &a->costs->tensor[a->costs->n_tensor++];
    *whole = (wefti_auto_split){.ranks = 1, .recompute_bytes = -1};
    WEFTI_TRY(tally_open(&t, a->pruned));
    for (int32_t id = 0; id < a->pruned->n_nodes; id++) add_node(&t, a->pruned->nodes[id], 1, whole);
    if (a->scopes) add_recomputed(&t, 0, 1, whole);
    whole->work.bytes = without_parameters(whole);
    a->costs->forward_share = t.all > 0 ? t.forward / t.all : 1.0 / 3;
    tally_close(&t);
    return WEFT_OK;
}

/* The graph of a rank that shares something else than the batch with `ranks` along an axis, where `shares` share the batch: of those along time the last, which sees most where not all see as much. */
static weft_status graph_along(const assessor *a, wefti_mesh_axis axis, int32_t ranks, int32_t shares, weft_graph **graph_out) {
    wefti_partition    part = {.ranks = shares, .micro = 1, .rows = a->costs->rows, .group = wefti_mesh_group(WEFTI_MESH_DATA)};
    int64_t            group = wefti_mesh_group(axis);
    weft_graph        *dealt = NULL;
    weft_tensor       *there[WEFTI_OUT_FIRST_GRADIENT], *outputs[WEFTI_OUT_FIRST_GRADIENT];
    wefti_tensor_split split = {.ranks = 0};
    weft_status        status = wefti_partition_graph(&part, a->pruned, a->outputs, WEFTI_OUT_FIRST_GRADIENT, true, &dealt, there);
    if (status == WEFT_OK)
        status = axis == WEFTI_MESH_TENSOR     ? wefti_tensor_choose(0, ranks, group, a->trainer->program.strategy.tensor_rows, dealt, there, WEFTI_OUT_FIRST_GRADIENT, &split)
                 : axis == WEFTI_MESH_SEQUENCE ? wefti_sequence_choose(ranks - 1, ranks, group, dealt, there, WEFTI_OUT_FIRST_GRADIENT, &split)
                                               : wefti_expert_choose(0, ranks, group, 1, &part, dealt, &split);
    if (status == WEFT_OK)
        status = axis == WEFTI_MESH_EXPERT ? wefti_expert_graph(&split, &part, dealt, there, WEFTI_OUT_FIRST_GRADIENT, true, graph_out, outputs)
                                           : wefti_tensor_graph(&split, dealt, there, WEFTI_OUT_FIRST_GRADIENT, true, graph_out, outputs);
    wefti_tensor_release(&split);
    weft_graph_release(dealt);
    return status;
}

/* What a node sends along the axis, in rows of this rank; 0: nothing. Of time the sums of gradients are none of its messages, as they are one with those along data; of
 * experts a buffer has room for more than what travels. */
static double sent_along(const wefti_node *node, wefti_mesh_axis axis) {
    double in = 0, out = bytes_of(&node->outputs[0]);
    if (wefti_ops[node->op].family != WEFTI_COMM || node->attrs.comm.group != wefti_mesh_group(axis)) return 0;
    if (axis == WEFTI_MESH_SEQUENCE && node->op != WEFT_OP_SEND) return 0;
    if (axis == WEFTI_MESH_EXPERT && node->op != WEFT_OP_EXCHANGE_ROWS) return node->op == WEFT_OP_ALL_TO_ALL ? 8 : 0;
    if (axis == WEFTI_MESH_EXPERT) return fmin(bytes_of(node->inputs[0]), out);
    for (int32_t i = 0; i < node->n_inputs; i++) in += bytes_of(node->inputs[i]);
    if (node->op == WEFT_OP_REDUCE_SCATTER || node->op == WEFT_OP_ALL_GATHER) return fmax(in, out) / 2; /* half of a sum that all get */
    return in;
}

/* Of parameters that have another shape than in the whole program. */
static double expert_bytes(weft_graph *graph, weft_graph *whole) {
    double bytes = 0;
    for (int32_t i = 0; i < weft_graph_parameter_count(graph); i++) {
        const weft_tensor *part = weft_graph_parameter(graph, i), *all = weft_graph_find(whole, part->node->name);
        if (all && !weft_shape_equal(all->shape, part->shape)) bytes += bytes_of(part);
    }
    return bytes;
}

/* A program that has nothing to split along an axis has no such split. */
static weft_status assess_along(assessor *a, wefti_mesh_axis axis, int32_t ranks, wefti_auto_split *list, int32_t *n) {
    tally             t;
    weft_graph       *graph = NULL;
    int32_t           shares = a->trainer->world->size / (axis == WEFTI_MESH_EXPERT ? 1 : ranks);
    wefti_auto_split *to = &list[*n];
    if (*n == WEFTI_AUTO_SPLITS) return WEFT_OK;
    if (a->costs->rows > 0 && shares > a->costs->rows) shares = (int32_t)a->costs->rows;
    *to = (wefti_auto_split){.ranks = ranks, .recompute_bytes = -1};
    WEFTI_TRY(graph_along(a, axis, ranks, shares, &graph));
    weft_status status = tally_open(&t, graph);
    for (int32_t id = 0; id < graph->n_nodes && status == WEFT_OK; id++) {
        double sent = sent_along(graph->nodes[id], axis);
        add_node(&t, graph->nodes[id], shares, to);
        to->messages += sent > 0;
        to->message_bytes += sent * shares;
    }
    if (status == WEFT_OK && a->scopes) add_recomputed(&t, 0, shares, to);
    to->work.bytes = fmax(to->work.bytes - 3 * shares * to->parameter_bytes, 0);
    if (axis == WEFTI_MESH_EXPERT) { /* its products are written for as many rows as may come, and compute those that do */
        to->work.flops = a->costs->tensor[0].work.flops;
        to->work.bytes = a->costs->tensor[0].work.bytes;
        to->expert_bytes = expert_bytes(graph, a->pruned);
    }
    if (status == WEFT_OK) tally_close(&t);
    weft_graph_release(graph);
    if (status == WEFT_OK) ++*n;
    return status;
}

static double weight(const wefti_auto_split *s) { return s->work.flops + s->work.bytes; }

/* The stage with most to do, the one that holds most, and the boundary where most passes need not be the same: the worst of each counts. */
static void add_stage(const tally *t, int32_t stage, bool scopes, wefti_auto_split *to) {
    wefti_auto_split own = {.recompute_bytes = -1};
    tally            rest = *t;
    double           messages = 0, bytes = 0;
    for (int32_t id = 0; id < t->graph->n_nodes; id++) {
        const wefti_node *node = t->graph->nodes[id];
        if (node->place == stage) add_node(&rest, node, 1, &own);
        bool passes = false;
        for (int32_t i = 0; i < node->n_inputs; i++) {
            const wefti_node *from = looked_at(node->inputs[i]->node);
            passes = from->place > 0 && node->place > 0 && from->place != node->place && (from->place == stage || node->place == stage);
            if (passes && !is_variable(from)) messages += 1, bytes += bytes_of(node->inputs[i]);
        }
    }
    if (scopes) add_recomputed(t, stage, 1, &own);
    own.work.bytes = without_parameters(&own);
    if (weight(&own) > weight(to)) to->work = own.work;
    to->update_bytes = fmax(to->update_bytes, own.update_bytes);
    to->parameter_bytes = fmax(to->parameter_bytes, own.parameter_bytes);
    to->state_bytes = fmax(to->state_bytes, own.state_bytes);
    to->kept_bytes = fmax(to->kept_bytes, own.kept_bytes);
    to->recompute_bytes = fmax(to->recompute_bytes, own.recompute_bytes);
    to->messages = fmax(to->messages, messages);
    to->message_bytes = fmax(to->message_bytes, bytes);
}

/* Where the forward pass has fewer operations than stages there is nothing to say. */
static weft_status assess_stages(assessor *a, int32_t ranks) {
    tally             t;
    wefti_auto_split *to = &a->costs->pipeline[a->costs->n_pipeline];
    for (int32_t i = 0; i < a->costs->n_pipeline; i++)
        if (a->costs->pipeline[i].ranks == ranks) return WEFT_OK;
    if (a->costs->n_pipeline == WEFTI_AUTO_SPLITS) return WEFT_OK;
    *to = (wefti_auto_split){.ranks = ranks, .recompute_bytes = -1};
    weft_status status = wefti_stages_assign(a->pruned, ranks, false);
    if (status == WEFT_E_INVALID) return WEFT_OK;
    WEFTI_TRY(status);
    WEFTI_TRY(tally_open(&t, a->pruned));
    for (int32_t stage = 1; stage <= ranks; stage++) add_stage(&t, stage, a->scopes, to);
    tally_close(&t);
    a->costs->n_pipeline++;
    return WEFT_OK;
}

/* Whether the strategy leaves this extent of an axis open. */
static bool is_open(int32_t asked, int32_t ranks) { return asked == 0 || asked == ranks; }

/* Along time and experts, if the program has such and can be dealt out so; what cannot be is said where it was asked for. */
static weft_status assess_if_there(assessor *a, wefti_mesh_axis axis, int32_t asked, int32_t ranks) {
    wefti_auto_costs *costs = a->costs;
    if (!is_open(asked, ranks)) return WEFT_OK;
    weft_status status = axis == WEFTI_MESH_EXPERT ? assess_along(a, axis, ranks, costs->expert, &costs->n_expert) : assess_along(a, axis, ranks, costs->sequence, &costs->n_sequence);
    bool cannot = status == WEFT_E_INVALID || status == WEFT_E_UNSUPPORTED || status == WEFT_E_SHAPE;
    return cannot && asked == 0 ? WEFT_OK : status;
}

weft_status wefti_automatic_costs(const weft_trainer *trainer, wefti_auto_costs *costs) {
    assessor             a = {.trainer = trainer, .costs = costs};
    const weft_strategy *asked = &trainer->program.strategy;
    *costs = (wefti_auto_costs){.n_tensor = 0};
    weft_status status = wefti_graph_rows(trainer->program.loss->graph, &costs->rows);
    if (status == WEFT_OK) status = build_copy(&a);
    if (status == WEFT_OK) status = assess_whole(&a);
    for (int32_t n = 2; n <= trainer->world->size && status == WEFT_OK; n++) {
        if (trainer->world->size % n != 0 || asked->sync == WEFT_SERVER) continue;
        if (is_open(asked->tensor, n)) status = assess_along(&a, WEFTI_MESH_TENSOR, n, costs->tensor, &costs->n_tensor);
        if (status == WEFT_OK) status = assess_if_there(&a, WEFTI_MESH_SEQUENCE, asked->sequence, n);
        if (status == WEFT_OK) status = assess_if_there(&a, WEFTI_MESH_EXPERT, asked->expert, n);
        if (status == WEFT_OK && is_open(asked->pipeline, n)) status = assess_stages(&a, n);
        if (status == WEFT_OK && is_open(asked->pipeline, n)) status = assess_stages(&a, 2 * n); /* for interleaving */
    }
    weft_graph_release(a.pruned);
    weft_graph_release(a.built);
    return status;
}

/* --- what the ranks can --- */

enum { PRODUCT = 256, ARRAY = 2 << 20, CHAIN = 64, RUNS = 5, SMALL_RUNS = 20, LARGE = 1 << 20 };

typedef enum trial { TRY_PRODUCT, TRY_TRAFFIC, TRY_LAUNCHES, TRIALS } trial;

static weft_tensor *trial_of(weft_graph *g, trial what) {
    weft_init ones = weft_init_value(0.5);
    if (what == TRY_PRODUCT)
        return weft_matmul(weft_parameter(g, "a", weft_shape(PRODUCT, PRODUCT), .init = ones), weft_parameter(g, "b", weft_shape(PRODUCT, PRODUCT), .init = ones));
    if (what == TRY_TRAFFIC) return weft_add(weft_parameter(g, "a", weft_shape(ARRAY), .init = ones), weft_parameter(g, "b", weft_shape(ARRAY), .init = ones));
    weft_tensor *x = weft_parameter(g, "a", weft_shape(4, 4), .init = ones), *y = x;
    for (int i = 0; i < CHAIN; i++) y = weft_matmul(y, x);
    return y;
}

/* The quickest of some runs on this rank alone. */
static weft_status time_trial(weft_world *lone, trial what, double *seconds_out) {
    weft_graph *graph = NULL;
    weft_plan  *plan = NULL;
    WEFTI_TRY(weft_graph_create(NULL, &graph));
    weft_tensor *output = trial_of(graph, what);
    weft_status  status = weft_plan_create(lone, graph, &(weft_plan_options){.outputs = &output, .n_outputs = 1}, &plan);
    *seconds_out = INFINITY;
    for (int run = 0; run < RUNS && status == WEFT_OK; run++) {
        double begun = 1e-9 * (double)wefti_host_now(wefti_host_system());
        float  corner[PRODUCT];
        status = weft_plan_run(plan, NULL, 0);
        weft_plan_value value = {.bytes = 0};
        if (status == WEFT_OK) status = weft_plan_output(plan, 0, &value);
        if (status == WEFT_OK && !value.data && value.bytes <= (int64_t)sizeof corner) status = weft_plan_fetch(plan, 0, corner, (size_t)value.bytes);
        *seconds_out = fmin(*seconds_out, 1e-9 * (double)wefti_host_now(wefti_host_system()) - begun);
    }
    weft_plan_release(plan);
    weft_graph_release(graph);
    return status;
}

/* Sums over a group: the quickest of some, of 8 bytes and of 1 MiB. As a message and a byte between two: see automatic.h. */
static weft_status time_sums(wefti_group *group, wefti_auto_link *link_out) {
    double     *values = NULL, least[2] = {INFINITY, INFINITY};
    weft_status status = wefti_alloc(LARGE, "an automatic strategy", &values);
    for (int large = 0; large < 2 && status == WEFT_OK; large++)
        for (int run = 0; run < (large ? RUNS : SMALL_RUNS) && status == WEFT_OK; run++) {
            double                begun = 1e-9 * (double)wefti_host_now(wefti_host_system());
            wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_F64, .op = WEFTI_REDUCE_SUM, .send = values, .receive = values,
                                          .count = large ? LARGE / 8 : 1};
            status = wefti_collective_run(group, &call);
            least[large] = fmin(least[large], 1e-9 * (double)wefti_host_now(wefti_host_system()) - begun);
        }
    wefti_free(values, LARGE);
    double n = group->size;
    *link_out = (wefti_auto_link){least[0] / (2 * ceil(log2(n))), fmax(least[1] - least[0], 1e-9) / (2 * (n - 1) / n * LARGE)};
    return status;
}

/* What every rank tells the others. */
typedef struct told {
    uint64_t host;
    double   seconds[TRIALS], memory;
} told;

static uint64_t this_host(void) {
    char name[256] = "";
    (void)gethostname(name, sizeof name - 1);
    return wefti_hash(WEFTI_HASH_BEGIN, name, strlen(name));
}

/* How many ranks next to each other run on one host, for all hosts alike; else 1. */
static int32_t ranks_per_host(const told *all, int32_t ranks) {
    int32_t n = 1;
    while (n < ranks && all[n].host == all[0].host) n++;
    for (int32_t r = 0; r < ranks; r++)
        if (ranks % n != 0 || all[r].host != all[r / n * n].host || (r >= n && all[r].host == all[r - n].host)) return 1;
    return n;
}

static weft_status time_links(weft_world *world, wefti_auto_machine *m) {
    weft_group *all = NULL, *host = NULL;
    WEFTI_TRY(time_sums(world->group, &m->near));
    m->far = m->near;
    if (m->per_host == world->size || m->per_host == 1) return WEFT_OK;
    weft_status status = weft_group_create(world, NULL, &all);
    if (status == WEFT_OK) status = weft_group_split(all, world->rank / m->per_host, world->rank, &host);
    if (status == WEFT_OK) status = time_sums(wefti_group_inside(host), &m->near);
    weft_group_release(host);
    weft_group_release(all);
    return status;
}

/* The slowest rank's numbers on all of them. */
static weft_status agree_links(weft_world *world, wefti_auto_machine *m) {
    double                numbers[] = {m->near.alpha, m->near.beta, m->far.alpha, m->far.beta};
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_F64, .op = WEFTI_REDUCE_MAX, .send = numbers, .receive = numbers, .count = 4};
    WEFTI_TRY(wefti_collective_run(world->group, &call));
    m->near = (wefti_auto_link){numbers[0], numbers[1]};
    m->far = (wefti_auto_link){numbers[2], numbers[3]};
    return WEFT_OK;
}

weft_status wefti_automatic_measure(weft_world *world, double memory_bytes, wefti_auto_machine *machine) {
    told        mine = {.host = this_host(), .memory = memory_bytes}, *all = NULL;
    weft_world  lone = *world;
    size_t      bytes = sizeof mine * (size_t)world->size;
    weft_status status = WEFT_OK;
    lone.rank = 0;
    lone.size = 1;
    lone.group = lone.device_group = NULL;
    lone.groups = NULL;
    for (int t = 0; t < TRIALS && status == WEFT_OK; t++) status = time_trial(&lone, (trial)t, &mine.seconds[t]);
    status = wefti_agree(world, status, "measuring what a rank can");
    if (status == WEFT_OK) status = wefti_alloc(bytes, "an automatic strategy", &all);
    WEFTI_TRY(status);
    all[0] = mine;
    if (world->size > 1) status = world->links->exchange(world, "what ranks can", &mine, sizeof mine, all);
    *machine = (wefti_auto_machine){.ranks = world->size, .near = {1e-6, 1e-10}, .far = {1e-6, 1e-10}};
    told slowest = all[0];
    for (int32_t r = 1; r < world->size && status == WEFT_OK; r++)
        for (int t = 0; t < TRIALS; t++) slowest.seconds[t] = fmax(slowest.seconds[t], all[r].seconds[t]);
    machine->per_host = status == WEFT_OK ? ranks_per_host(all, world->size) : 1;
    machine->flops = 2.0 * PRODUCT * PRODUCT * PRODUCT / slowest.seconds[TRY_PRODUCT];
    machine->bytes = 3.0 * ARRAY * sizeof(float) / slowest.seconds[TRY_TRAFFIC];
    machine->op_seconds = slowest.seconds[TRY_LAUNCHES] / CHAIN;
    machine->shares_updates = world->size > 1 && machine->per_host == world->size;
    machine->memory_bytes = memory_bytes > 0 ? memory_bytes : world->device->vtable->host_memory ? (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE) / machine->per_host : 0;
    wefti_free(all, bytes);
    if (status == WEFT_OK && world->size > 1) status = time_links(world, machine);
    if (status == WEFT_OK && world->size > 1) status = agree_links(world, machine);
    return status;
}

/* --- the choice --- */

/* Whether a parameter of bf16 is trained, which is not dealt out. */
static bool trains_bf16(const weft_graph *graph) {
    for (int32_t i = 0; i < graph->n_leaves; i++) {
        const wefti_node *leaf = graph->leaves[i];
        if (leaf->op == WEFT_OP_PARAMETER && !leaf->leaf->frozen && leaf->outputs[0].dtype == WEFT_BF16) return true;
    }
    return false;
}

static bool allows(void *context, const weft_strategy *strategy) {
    const weft_trainer *trainer = context;
    weft_program        program = trainer->program;
    program.strategy = *strategy;
    if (strategy->zero > 0 && trains_bf16(program.loss->graph)) return false;
    if (strategy->zero > trainer->program.strategy.zero && strategy->sync == WEFT_SERVER) return false; /* which changes nothing there */
    return wefti_trainer_check(trainer->world, &program) == WEFT_OK;
}

bool wefti_automatic_next(weft_trainer *trainer) {
    wefti_auto_choice *choice = &trainer->choice;
    bool               recompute = trainer->program.strategy.recompute; /* gradients were made for it */
    if (choice->at >= choice->n_fitting) return false;
    wefti_text_add(&trainer->words, "%s could not be planned: %s\n", weft_strategy_text(&trainer->program.strategy).text, weft_error_message());
    while (++choice->at < choice->n_fitting && choice->candidates[choice->at].strategy.recompute != recompute) continue;
    if (choice->at >= choice->n_fitting) return false;
    trainer->program.strategy = choice->candidates[choice->at].strategy;
    wefti_text_add(&trainer->words, "so %s was taken\n", weft_strategy_text(&trainer->program.strategy).text);
    return true;
}

weft_status wefti_automatic_choose(weft_trainer *trainer) {
    wefti_auto_costs   costs;
    wefti_auto_machine machine;
    wefti_auto_choice *choice = &trainer->choice;
    weft_strategy     *strategy = &trainer->program.strategy;
    if (!strategy->automatic) return WEFT_OK;
    weft_status status = wefti_automatic_costs(trainer, &costs);
    status = wefti_agree(trainer->world, status, "assessing the program");
    if (status == WEFT_OK) status = wefti_automatic_measure(trainer->world, (double)strategy->memory_bytes, &machine);
    if (status == WEFT_OK) status = wefti_auto_search(&costs, &machine, strategy, allows, trainer, choice);
    if (status == WEFT_OK) {
        wefti_auto_explain(choice, &machine, &trainer->words);
        *strategy = choice->candidates[0].strategy;
    }
    return status == WEFT_OK ? WEFT_OK : wefti_while(status, "an automatic strategy");
}

/* What of a program each rank has, chosen once for a trainer.
 *
 * The choice looks at the training step of a full batch as the first of the ranks along data computes it, on every rank, so that all choose
 * alike. Plans of other batches, and evaluators, then go by it. */
#include <string.h>

#include "core/plan/ir.h"
#include "parallel/expert.h"
#include "parallel/sequence.h"
#include "train/trainer.h"

/* --- along time, experts and parameters --- */

static weft_status rewrite_by(const wefti_tensor_split *split, const wefti_partition *batch, weft_graph **graph, weft_tensor **outputs, int32_t n, bool training) {
    weft_graph *whole = *graph;
    /* Which rows are shared follows from their number: where ranks along the batch have different ones, none are, or their messages would differ. */
    wefti_tensor_split alike = *split;
    alike.shares_rows = split->shares_rows && batch->rows % ((int64_t)batch->ranks * batch->micro) == 0;
    weft_status status = split->along == WEFTI_MESH_EXPERT ? wefti_expert_graph(split, batch, whole, outputs, n, training, graph, outputs)
                                                           : wefti_tensor_graph(&alike, whole, outputs, n, training, graph, outputs);
    weft_graph_release(whole);
    return status;
}

weft_status wefti_splits_rewrite(const wefti_splits *splits, int32_t n, const wefti_partition *batch, weft_graph **graph, weft_tensor **outputs, int32_t n_outputs,
                                 bool training) {
    for (int32_t i = 0; i < n; i++) WEFTI_TRY(rewrite_by(&splits->list[i], batch, graph, outputs, n_outputs, training));
    return WEFT_OK;
}

static weft_status choose(weft_trainer *trainer, wefti_mesh_axis axis, const wefti_partition *batch, weft_graph *graph, weft_tensor *const *outputs) {
    const wefti_mesh   *mesh = &trainer->mesh;
    int32_t             n = trainer->n_outputs, rank = mesh->index[axis], ranks = mesh->extent[axis];
    int64_t             group = wefti_mesh_group(axis);
    wefti_tensor_split *split = &trainer->splits.list[trainer->splits.n];
    weft_status status = axis == WEFTI_MESH_EXPERT     ? wefti_expert_choose(rank, ranks, group, mesh->extent[WEFTI_MESH_SEQUENCE], batch, graph, split)
                         : axis == WEFTI_MESH_SEQUENCE ? wefti_sequence_choose(rank, ranks, group, graph, outputs, n, split)
                                                       : wefti_tensor_choose(rank, ranks, group, trainer->program.strategy.tensor_rows, graph, outputs, n, split);
    if (status == WEFT_OK) trainer->splits.n++;
    return status;
}

/* Each axis by what those before it have left. */
static weft_status choose_all(weft_trainer *trainer, weft_tensor **pruned_outputs, weft_tensor **outputs) {
    static const wefti_mesh_axis axes[] = {WEFTI_MESH_SEQUENCE, WEFTI_MESH_EXPERT, WEFTI_MESH_TENSOR};
    const wefti_mesh *mesh = &trainer->mesh;
    int32_t           n = trainer->n_outputs;
    wefti_partition   first = {.ranks = wefti_mesh_batch_ranks(mesh), .micro = 1, .group = wefti_mesh_group_along(mesh, WEFTI_MESH_BATCH)};
    weft_graph       *pruned = NULL, *graph = NULL;
    weft_status       status = wefti_graph_rows(trainer->graph, &first.rows);
    if (status == WEFT_OK) status = wefti_plan_copy(trainer->graph, trainer->outputs, n, true, &pruned, pruned_outputs);
    if (status == WEFT_OK) status = wefti_partition_graph(&first, pruned, pruned_outputs, n, true, &graph, outputs);
    for (size_t i = 0; i < WEFTI_COUNT(axes) && status == WEFT_OK; i++) {
        if (mesh->extent[axes[i]] == 1) continue;
        status = choose(trainer, axes[i], &first, graph, outputs);
        if (status == WEFT_OK && i + 1 < WEFTI_COUNT(axes)) status = rewrite_by(&trainer->splits.list[trainer->splits.n - 1], &first, &graph, outputs, n, true);
    }
    weft_graph_release(graph);
    weft_graph_release(pruned);
    return status;
}

static weft_status split_along_axes(weft_trainer *trainer) {
    const wefti_mesh *mesh = &trainer->mesh;
    if (mesh->extent[WEFTI_MESH_SEQUENCE] * mesh->extent[WEFTI_MESH_EXPERT] * mesh->extent[WEFTI_MESH_TENSOR] == 1) return WEFT_OK;
    size_t        bytes = (size_t)trainer->n_outputs * 2 * sizeof(weft_tensor *);
    weft_tensor **outputs = NULL;
    WEFTI_TRY(wefti_alloc(bytes, "a split", &outputs));
    weft_status status = choose_all(trainer, outputs, outputs + trainer->n_outputs);
    wefti_free(outputs, bytes);
    return status == WEFT_OK ? wefti_splits_join(&trainer->splits) : status;
}

/* --- along data --- */

/* Beside a parameter server: solver states are in parts on the servers as it is; what ranks that work have of gradients and parameters is whole until it is given to
 * them. */
static weft_status check_zero_served(const weft_strategy *s) {
    if (s->zero == 1) return WEFT_OK;
    return wefti_fail(WEFT_E_UNSUPPORTED, "strategy: zero = %d does not go with sync = WEFT_SERVER, by which solver states are in parts on the servers, and ranks along data have "
                      "each a whole gradient%s until servers have it: use zero = 1, split the model (tensor, pipeline), or use WEFT_ALLREDUCE", s->zero,
                      s->zero == 3 ? " and all parameters" : "");
}

weft_status wefti_zero_check(const weft_world *world, const weft_program *program) {
    const weft_strategy *s = &program->strategy;
    if (s->zero < 0 || s->zero > 3) return wefti_fail(WEFT_E_INVALID, "strategy: zero is %d; it is 0, 1, 2 or 3", s->zero);
    if (s->zero == 0) return WEFT_OK;
    if (s->sync == WEFT_SERVER) return check_zero_served(s);
    if (s->divide_bytes < 0)
        return wefti_fail(WEFT_E_INVALID, "strategy: zero = %d deals out parameters of at least divide_bytes, which is %lld: a size, or 0 for %d", s->zero,
                          (long long)s->divide_bytes, WEFTI_ZERO_LEAST_BYTES);
    const char *what = wefti_split_refuses(program, false);
    if (what) return wefti_fail(WEFT_E_UNSUPPORTED, "strategy: zero = %d does not go with %s", s->zero, what);
    if (s->zero < 3 && !world->device->vtable->host_memory)
        return wefti_fail(WEFT_E_UNSUPPORTED, "strategy: zero = %d gathers parameters in host memory, and this device has its own: use zero = 3", s->zero);
    return WEFT_OK;
}

static wefti_zero_ranks ranks_along(const wefti_mesh *mesh, int64_t axes) {
    return (wefti_zero_ranks){wefti_mesh_rank_along(mesh, axes), wefti_mesh_ranks_along(mesh, axes), axes, wefti_mesh_group_along(mesh, axes)};
}

static weft_status say_what_servers_have(weft_trainer *trainer) {
    const weft_strategy *s = &trainer->program.strategy;
    int32_t              ranks = trainer->world->size, servers = s->servers > 0 && s->servers < ranks ? s->servers : ranks;
    wefti_text_add(&trainer->zero.notes, "zero 1: solver states are on the parameter server, in parts on %d of %d ranks with the parameters' rows; ranks that compute have none, and "
                   "gradients and parameters as without zero\n", (int)servers, (int)ranks);
    return trainer->zero.notes.failed ? wefti_fail(WEFT_E_NO_MEMORY, "no memory for the text about sharded data parallelism") : WEFT_OK;
}

static weft_status split_along_data(weft_trainer *trainer) {
    const weft_strategy *s = &trainer->program.strategy;
    const wefti_mesh    *mesh = &trainer->mesh;
    const wefti_windows  others = {trainer->splits.windows, trainer->splits.n_windows};
    if (s->zero > 0 && s->sync == WEFT_SERVER) return say_what_servers_have(trainer);
    if (s->zero == 0 || wefti_mesh_ranks_along(mesh, WEFTI_MESH_SAMPLES) == 1) return WEFT_OK;
    trainer->zero = (wefti_zero){.stage = s->zero, .among = ranks_along(mesh, WEFTI_MESH_SAMPLES),
                                 .experts = ranks_along(mesh, WEFTI_MESH_SAMPLES & ~wefti_mesh_group(WEFTI_MESH_EXPERT)),
                                 .staged = mesh->extent[WEFTI_MESH_PIPELINE] > 1};
    return wefti_zero_choose(trainer->graph, &others, s->divide_bytes > 0 ? s->divide_bytes : WEFTI_ZERO_LEAST_BYTES, &trainer->zero);
}

weft_status wefti_trainer_split(weft_trainer *trainer) {
    WEFTI_TRY(split_along_axes(trainer));
    return split_along_data(trainer);
}

wefti_windows wefti_trainer_windows(const weft_trainer *trainer) {
    if (trainer->zero.stage > 0) return (wefti_windows){trainer->zero.windows, trainer->zero.n_windows};
    return (wefti_windows){trainer->splits.windows, trainer->splits.n_windows};
}

wefti_window_of wefti_trainer_window(const weft_trainer *trainer, const char *variable) {
    const wefti_windows windows = wefti_trainer_windows(trainer);
    for (int32_t i = 0; i < windows.n; i++)
        if (strcmp(windows.list[i].name, variable) == 0) return windows.list[i].window;
    return (wefti_window_of){.ranks = 1};
}

/* --- room --- */

static bool is_variable(const wefti_node *node) { return node->op == WEFT_OP_PARAMETER || node->op == WEFT_OP_STATE; }

static int64_t held_bytes(const wefti_windows *windows, const wefti_node *leaf) {
    weft_shape shape = leaf->outputs[0].shape;
    for (int32_t i = 0; i < windows->n; i++)
        if (strcmp(windows->list[i].name, leaf->name) == 0) shape = wefti_window_shape(&windows->list[i].window, shape);
    return weft_shape_elements(shape) * (int64_t)weft_dtype_bytes(leaf->outputs[0].dtype);
}

/* Of all variables, or of those of this rank's stages: which these are is known when they are made. */
static weft_status check_variables(const weft_trainer *trainer) {
    const wefti_windows windows = wefti_trainer_windows(trainer);
    const weft_strategy *s = &trainer->program.strategy;
    const wefti_node    *largest = NULL;
    int64_t              all = 0;
    for (int32_t i = 0; i < trainer->graph->n_leaves && trainer->mesh.extent[WEFTI_MESH_PIPELINE] == 1; i++) {
        const wefti_node *leaf = trainer->graph->leaves[i];
        if (!is_variable(leaf)) continue;
        all += held_bytes(&windows, leaf);
        if (!largest || held_bytes(&windows, leaf) > held_bytes(&windows, largest)) largest = leaf;
    }
    if (all <= s->memory_bytes) return WEFT_OK;
    return wefti_fail(WEFT_E_NO_MEMORY, "rank %d: its parameters and solver states take %lld bytes, the largest, '%s' %s, %lld of them, and strategy.memory_bytes is "
                      "%lld: keep more of them in parts (zero is %d, of 3, over data = %d; divide_bytes), or split them (tensor, pipeline)", trainer->world->rank,
                      (long long)all, largest->name, weft_shape_text(largest->outputs[0].shape).text, (long long)held_bytes(&windows, largest),
                      (long long)s->memory_bytes, s->zero, trainer->mesh.extent[WEFTI_MESH_DATA]);
}

static weft_status check_plan(const weft_trainer *trainer, const weft_plan *plan) {
    const weft_strategy *s = &trainer->program.strategy;
    weft_plan_totals     t;
    weft_plan_totals_read(plan, &t);
    if (t.total_bytes <= s->memory_bytes) return WEFT_OK;
    return wefti_fail(WEFT_E_NO_MEMORY, "rank %d: a step takes %lld bytes, %lld of them variables and %lld values, and strategy.memory_bytes is %lld: more micro-batches "
                      "(accumulate), recompute, smaller messages (bucket_bytes), more in parts (zero is %d, of 3), or more ranks take less", trainer->world->rank,
                      (long long)t.total_bytes, (long long)t.variable_bytes, (long long)(t.arena_bytes + t.exported_bytes), (long long)s->memory_bytes, s->zero);
}

weft_status wefti_trainer_room(const weft_trainer *trainer, const weft_plan *plan) {
    if (trainer->program.strategy.memory_bytes <= 0 || trainer->choice.n > 0) return WEFT_OK;
    return plan ? check_plan(trainer, plan) : check_variables(trainer);
}

/* What of a program each rank has, chosen once for a trainer.
 *
 * The choice looks at the training step of a full batch as the first of the ranks along data computes it, on every rank, so that all choose
 * alike. Plans of other batches, and evaluators, then go by it. */
#include "core/plan/ir.h"
#include "parallel/expert.h"
#include "parallel/sequence.h"
#include "train/trainer.h"

/* Along the axis beside data that there is; -1: none. */
static int32_t axis_of(const wefti_mesh *mesh) {
    static const wefti_mesh_axis axes[] = {WEFTI_MESH_TENSOR, WEFTI_MESH_SEQUENCE, WEFTI_MESH_EXPERT};
    for (size_t i = 0; i < WEFTI_COUNT(axes); i++)
        if (mesh->extent[axes[i]] > 1) return (int32_t)axes[i];
    return -1;
}

static weft_status choose(weft_trainer *trainer, wefti_mesh_axis axis, weft_tensor **pruned_outputs, weft_tensor **outputs) {
    const wefti_mesh *mesh = &trainer->mesh;
    int32_t           n = trainer->n_outputs, rank = mesh->index[axis], ranks = mesh->extent[axis];
    int64_t           group = wefti_mesh_group(axis);
    wefti_partition   first = {.ranks = wefti_mesh_batch_ranks(mesh), .micro = 1, .group = wefti_mesh_group(WEFTI_MESH_DATA)};
    weft_graph       *pruned = NULL, *graph = NULL;
    weft_status       status = wefti_graph_rows(trainer->graph, &first.rows);
    if (status == WEFT_OK) status = wefti_plan_copy(trainer->graph, trainer->outputs, n, true, &pruned, pruned_outputs);
    if (status == WEFT_OK) status = wefti_partition_graph(&first, pruned, pruned_outputs, n, true, &graph, outputs);
    if (status == WEFT_OK)
        status = axis == WEFTI_MESH_EXPERT     ? wefti_expert_choose(rank, ranks, group, &first, graph, &trainer->tensor)
                 : axis == WEFTI_MESH_SEQUENCE ? wefti_sequence_choose(rank, ranks, group, graph, outputs, n, &trainer->tensor)
                                               : wefti_tensor_choose(rank, ranks, group, graph, outputs, n, &trainer->tensor);
    weft_graph_release(graph);
    weft_graph_release(pruned);
    return status;
}

static weft_status split_along_axis(weft_trainer *trainer) {
    int32_t axis = axis_of(&trainer->mesh);
    if (axis < 0) return WEFT_OK;
    size_t        bytes = (size_t)trainer->n_outputs * 2 * sizeof(weft_tensor *);
    weft_tensor **outputs = NULL;
    WEFTI_TRY(wefti_alloc(bytes, "a split", &outputs));
    weft_status status = choose(trainer, (wefti_mesh_axis)axis, outputs, outputs + trainer->n_outputs);
    wefti_free(outputs, bytes);
    return status;
}

/* --- along data --- */

weft_status wefti_zero_check(const weft_world *world, const weft_program *program) {
    const weft_strategy *s = &program->strategy;
    if (s->zero < 0 || s->zero > 3) return wefti_fail(WEFT_E_INVALID, "strategy: zero is %d; it is 0, 1, 2 or 3", s->zero);
    if (s->zero == 0) return WEFT_OK;
    if (s->divide_bytes < 0)
        return wefti_fail(WEFT_E_INVALID, "strategy: zero = %d deals out parameters of at least divide_bytes, which is %lld: a size, or 0 for %d", s->zero,
                          (long long)s->divide_bytes, WEFTI_ZERO_LEAST_BYTES);
    const char *what = s->sequence > 1                           ? "sequence"
                       : s->expert > 1                           ? "expert"
                       : s->sync == WEFT_SERVER                  ? "sync = WEFT_SERVER: its servers keep solver states in parts"
                       : s->compress.codec != WEFT_COMPRESS_NONE ? "compress"
                       : program->solver.kind == WEFT_LBFGS      ? "L-BFGS"
                                                                 : NULL;
    if (what) return wefti_fail(WEFT_E_UNSUPPORTED, "strategy: zero = %d does not go with %s yet", s->zero, what);
    if (s->zero < 3 && !world->device->vtable->host_memory)
        return wefti_fail(WEFT_E_UNSUPPORTED, "strategy: zero = %d gathers parameters in host memory, and this device has its own: use zero = 3", s->zero);
    return WEFT_OK;
}

static weft_status split_along_data(weft_trainer *trainer) {
    const weft_strategy *s = &trainer->program.strategy;
    const wefti_mesh    *mesh = &trainer->mesh;
    const wefti_windows  tensor = {trainer->tensor.windows, trainer->tensor.n_windows};
    if (s->zero == 0 || mesh->extent[WEFTI_MESH_DATA] == 1) return WEFT_OK;
    trainer->zero = (wefti_zero){.stage = s->zero, .rank = mesh->index[WEFTI_MESH_DATA], .ranks = mesh->extent[WEFTI_MESH_DATA],
                                 .group = wefti_mesh_is_data(mesh) ? 0 : wefti_mesh_group(WEFTI_MESH_DATA),
                                 .staged = mesh->extent[WEFTI_MESH_PIPELINE] > 1};
    return wefti_zero_choose(trainer->graph, &tensor, s->divide_bytes > 0 ? s->divide_bytes : WEFTI_ZERO_LEAST_BYTES, &trainer->zero);
}

weft_status wefti_trainer_split(weft_trainer *trainer) {
    WEFTI_TRY(split_along_axis(trainer));
    return split_along_data(trainer);
}

wefti_windows wefti_trainer_windows(const weft_trainer *trainer) {
    if (trainer->zero.stage > 0) return (wefti_windows){trainer->zero.windows, trainer->zero.n_windows};
    return (wefti_windows){trainer->tensor.windows, trainer->tensor.n_windows};
}

/* What of a program each rank has, chosen once for a trainer.
 *
 * The choice looks at the training step of a full batch as the first of the ranks along data computes it, on every rank, so that all choose
 * alike. Plans of other batches, and evaluators, then go by it. */
#include "core/plan/ir.h"
#include "train/trainer.h"

static weft_status choose(weft_trainer *trainer, weft_tensor **pruned_outputs, weft_tensor **outputs) {
    const wefti_mesh *mesh = &trainer->mesh;
    wefti_partition   first = {.ranks = mesh->extent[WEFTI_MESH_DATA], .micro = 1, .group = wefti_mesh_group(WEFTI_MESH_DATA)};
    weft_graph       *pruned = NULL, *graph = NULL;
    int32_t           n = trainer->n_outputs;
    weft_status       status = wefti_plan_copy(trainer->graph, trainer->outputs, n, true, &pruned, pruned_outputs);
    if (status == WEFT_OK) status = wefti_partition_graph(&first, pruned, pruned_outputs, n, true, &graph, outputs);
    if (status == WEFT_OK)
        status = wefti_tensor_choose(mesh->index[WEFTI_MESH_TENSOR], mesh->extent[WEFTI_MESH_TENSOR], wefti_mesh_group(WEFTI_MESH_TENSOR), graph,
                                     outputs, n, &trainer->tensor);
    weft_graph_release(graph);
    weft_graph_release(pruned);
    return status;
}

weft_status wefti_trainer_split(weft_trainer *trainer) {
    if (trainer->mesh.extent[WEFTI_MESH_TENSOR] == 1) return WEFT_OK;
    size_t        bytes = (size_t)trainer->n_outputs * 2 * sizeof(weft_tensor *);
    weft_tensor **outputs = NULL;
    WEFTI_TRY(wefti_alloc(bytes, "a split", &outputs));
    weft_status status = choose(trainer, outputs, outputs + trainer->n_outputs);
    wefti_free(outputs, bytes);
    return status;
}

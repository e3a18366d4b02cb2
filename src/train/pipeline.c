/* Training by a pipeline: which stage has which variables, and a rank's plan as a stage's part of what ranks along data have.
 *
 * Stages are chosen on the training graph, gradients and updates included (src/parallel/stages.c), by numbers that are the same on all ranks.
 * Plans choose again, and alike, for they begin with the same graph; evaluators' plans, whose graphs are others, go by where variables are.
 * Cost: a copy of the graph for each plan, while planning. */
#include "parallel/cut.h"
#include "train/trainer.h"

weft_status wefti_pipeline_check(const weft_program *program) {
    const weft_strategy *s = &program->strategy;
    if ((unsigned)s->schedule > WEFT_ZERO_BUBBLE)
        return wefti_fail(WEFT_E_INVALID, "strategy: schedule is %d; it is WEFT_1F1B, WEFT_GPIPE, WEFT_INTERLEAVED or WEFT_ZERO_BUBBLE", (int)s->schedule);
    if (s->chunks < 0 || (s->chunks > 1 && s->schedule != WEFT_INTERLEAVED))
        return wefti_fail(WEFT_E_INVALID, "strategy: chunks is %d: it is of schedule = WEFT_INTERLEAVED, and not negative", (int)s->chunks);
    return WEFT_OK;
}

int32_t wefti_pipeline_chunks(const weft_strategy *strategy) {
    if (strategy->schedule != WEFT_INTERLEAVED) return 1;
    return strategy->chunks > 0 ? strategy->chunks : 2;
}

/* The variables of this rank's stages, as a graph of nothing else. */
static weft_status own_leaves(const weft_graph *graph, int32_t place, int32_t ranks, weft_graph **own_out) {
    WEFTI_TRY(weft_graph_create(&(weft_graph_options){.seed = graph->seed, .name = graph->name}, own_out));
    for (int32_t i = 0; i < graph->n_leaves; i++) {
        const wefti_node *leaf = graph->leaves[i];
        if ((leaf->op != WEFT_OP_PARAMETER && leaf->op != WEFT_OP_STATE) || (leaf->place - 1) % ranks != place) continue;
        (void)wefti_emit_leaf(*own_out, leaf->op, &leaf->attrs, leaf->outputs[0].dtype, leaf->outputs[0].shape, leaf->leaf, leaf->name);
    }
    return wefti_graph_status(*own_out);
}

weft_status wefti_pipeline_variables(weft_trainer *trainer) {
    weft_graph   *pruned = NULL, *own = NULL;
    weft_tensor **outputs = NULL;
    int32_t       ranks = trainer->mesh.extent[WEFTI_MESH_PIPELINE];
    size_t        bytes = (size_t)trainer->n_outputs * sizeof *outputs;
    WEFTI_TRY(wefti_alloc(bytes, "a pipeline", &outputs));
    weft_status status = wefti_plan_copy(trainer->graph, trainer->outputs, trainer->n_outputs, true, &pruned, outputs);
    wefti_free(outputs, bytes);
    if (status == WEFT_OK) status = wefti_stages_assign(pruned, ranks * wefti_pipeline_chunks(&trainer->program.strategy), false);
    if (status == WEFT_OK) {
        wefti_stages_keep(pruned, trainer->graph);
        status = own_leaves(trainer->graph, trainer->mesh.index[WEFTI_MESH_PIPELINE], ranks, &own);
    }
    const wefti_windows windows = wefti_trainer_windows(trainer);
    if (status == WEFT_OK) status = wefti_variables_create(trainer->world, own, &windows, &trainer->variables);
    weft_graph_release(own);
    weft_graph_release(pruned);
    return status;
}

/* From stages to the ranks that have them. */
static void place_by_rank(weft_graph *graph, int32_t ranks) {
    for (int32_t id = 0; id < graph->n_nodes; id++)
        if (graph->nodes[id]->place > 0) graph->nodes[id]->place = (graph->nodes[id]->place - 1) % ranks + 1;
}

weft_status wefti_pipeline_cut(const wefti_sized_plan *sized, weft_graph **graph, weft_tensor **outputs, int32_t n_outputs, bool training) {
    weft_graph  *whole = *graph;
    int32_t     *order = NULL, ranks = sized->pipeline.ranks;
    size_t       bytes = (size_t)whole->n_nodes * sizeof *order;
    weft_status  status = wefti_alloc(bytes, "a pipeline", &order);
    wefti_cut    cut = {.rank = sized->place, .ranks = ranks, .group = wefti_mesh_group(WEFTI_MESH_PIPELINE)};
    *graph = NULL;
    wefti_cut_settle(whole);
    if (status == WEFT_OK && training) {
        status = wefti_stages_order(&sized->pipeline, whole, order);
        cut.order = order;
    }
    place_by_rank(whole, ranks);
    if (status == WEFT_OK) status = wefti_cut_graph(&cut, whole, outputs, n_outputs, training, graph, outputs);
    wefti_free(order, bytes);
    weft_graph_release(whole);
    return status == WEFT_OK ? WEFT_OK : wefti_while(status, "rank %d of a pipeline of %d", (int)sized->place, (int)ranks);
}

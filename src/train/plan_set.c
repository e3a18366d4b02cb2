/* Plans by batch size, and by whether gradients are compressed. The first plan is for the size that the graph was built for; another size (an uneven last batch) gets
 * its own when it first comes, in the same arena, so that from the second epoch on nothing is planned or allocated. */
#include <string.h>

#include "train/trainer.h"

weft_status wefti_plan_set_open(wefti_plan_set *set, weft_world *world, const wefti_mesh *mesh, weft_graph *graph, weft_variables *variables,
                                weft_tensor *const *outputs, int32_t n_outputs, bool training) {
    *set = (wefti_plan_set){.world = world, .mesh = mesh, .graph = graph, .variables = variables, .n_outputs = n_outputs,
                            .training = training, .micro = 1, .chunks = 1};
    WEFTI_TRY(wefti_alloc(sizeof *set->outputs * (size_t)n_outputs, "a plan's outputs", &set->outputs));
    if (n_outputs) memcpy(set->outputs, outputs, sizeof *outputs * (size_t)n_outputs);
    return WEFT_OK;
}

static void drop_plans(wefti_plan_set *set) {
    set->latest = NULL;
    while (set->plans) {
        wefti_sized_plan *plan = set->plans;
        set->plans = plan->next;
        weft_plan_release(plan->plan);
        if (plan->whole) wefti_free(plan->whole, (size_t)set->n_outputs);
        wefti_free(plan, sizeof *plan);
    }
}

void wefti_plan_set_move(wefti_plan_set *set, weft_world *world, weft_variables *variables) {
    drop_plans(set); /* mesh and tensor split are made again where they were */
    set->world = world;
    set->variables = variables;
}

void wefti_plan_set_close(wefti_plan_set *set) {
    drop_plans(set);
    wefti_free(set->outputs, sizeof *set->outputs * (size_t)set->n_outputs);
    *set = (wefti_plan_set){0};
}

/* The loss of this rank alone, for naming the rank of a NaN: what goes into the loss's last reduction. */
static weft_tensor *before_reduction(weft_tensor *loss) {
    return loss->node->op == WEFT_OP_ALL_REDUCE ? loss->node->inputs[loss->index] : loss;
}

/* By what ranks would have alike. The graph is replaced, and outputs are. */
static weft_status deal_out(const wefti_sized_plan *sized, weft_graph **graph, weft_tensor **outputs, int32_t n_outputs, bool training) {
    weft_graph *alike = *graph;
    weft_status status = wefti_zero_graph(sized->zero, alike, outputs, n_outputs, training, graph, outputs);
    weft_graph_release(alike);
    return status;
}

/* By the batch, then by time, experts and parameters, then by what is alike, then by stages. */
static weft_status rewrite(void *context, weft_graph *source, weft_tensor *const *outputs, int32_t n_outputs, bool training,
                           weft_graph **graph_out, weft_tensor **outputs_out) {
    const wefti_sized_plan *sized = context;
    bool                    staged = sized->pipeline.ranks > 1;
    if (staged) WEFTI_TRY(wefti_stages_assign(source, sized->pipeline.ranks * sized->pipeline.chunks, !training));
    WEFTI_TRY(wefti_partition_graph(&sized->partition, source, outputs, n_outputs, training, graph_out, outputs_out));
    if (sized->partition.compress) WEFTI_TRY(weft_variables_extend(sized->variables, *graph_out)); /* what compression keeps */
    if (training) outputs_out[WEFTI_OUT_OWN_LOSS] = before_reduction(outputs_out[WEFTI_OUT_OWN_LOSS]);
    for (int32_t i = WEFTI_OUT_FIRST_GRADIENT; i < WEFTI_OUT_FIRST_GRADIENT + sized->n_partial && sized->whole; i++) {
        sized->whole[i] = outputs_out[i]->node->op != WEFT_OP_ALL_REDUCE;
        outputs_out[i] = before_reduction(outputs_out[i]);
    }
    if (sized->splits)
        WEFTI_TRY(wefti_splits_rewrite(sized->splits, sized->splits->n, &sized->partition, graph_out, outputs_out, n_outputs, training));
    if (sized->zero) WEFTI_TRY(deal_out(sized, graph_out, outputs_out, n_outputs, training));
    return staged ? wefti_pipeline_cut(sized, graph_out, outputs_out, n_outputs, training) : WEFT_OK;
}

/* How the batch is split; where all of the world shares it, by the world's own group. */
static wefti_partition partition_of(const wefti_plan_set *set, int64_t rows) {
    wefti_partition p = {.rank = set->world->rank, .ranks = set->world->size, .micro = set->micro, .rows = rows, .compress = set->compress,
                         .scaled = set->scaled};
    if (!set->mesh || wefti_mesh_is_data(set->mesh)) return p;
    p.rank = wefti_mesh_batch_rank(set->mesh);
    p.ranks = wefti_mesh_batch_ranks(set->mesh);
    p.group = wefti_mesh_group_along(set->mesh, WEFTI_MESH_BATCH);
    return p;
}

weft_status wefti_plan_set_get(wefti_plan_set *set, int64_t rows, weft_plan **plan_out) {
    wefti_sized_plan **end = &set->plans;
    for (; *end; end = &(*end)->next)
        if ((*end)->partition.rows == rows && (*end)->partition.compress == set->compress) {
            set->latest = *plan_out = (*end)->plan;
            set->whole = (*end)->whole;
            return WEFT_OK;
        }
    wefti_sized_plan *fresh = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *fresh, "a plan for a batch size", &fresh));
    fresh->partition = partition_of(set, rows);
    fresh->variables = set->variables;
    fresh->splits = set->splits;
    fresh->zero = set->zero;
    fresh->n_partial = set->n_partial;
    if (set->mesh) {
        fresh->pipeline = (wefti_pipeline){set->mesh->extent[WEFTI_MESH_PIPELINE], set->chunks, set->micro, set->schedule};
        fresh->place = set->mesh->index[WEFTI_MESH_PIPELINE];
    }
    weft_status status = set->partial ? wefti_alloc((size_t)set->n_outputs, "a plan for a batch size", &fresh->whole) : WEFT_OK;
    wefti_plan_options options = {.base = set->options, .rewrite = rewrite, .context = fresh};
    if (set->mesh) {
        options.groups = set->mesh->groups;
        options.n_groups = WEFTI_MESH_GROUPS;
        for (int32_t i = 0; set->splits && i < set->splits->n; i++) options.notes[i] = set->splits->list[i].notes.bytes;
    }
    options.notes[WEFTI_SPLITS_MAX] = set->zero_notes;
    options.base.outputs = set->outputs;
    options.base.n_outputs = set->n_outputs;
    options.base.training = set->training;
    options.base.variables = set->variables;
    options.base.arena_of = set->plans ? set->plans->plan : NULL;
    if (status == WEFT_OK) status = wefti_plan_create(set->world, set->graph, &options, &fresh->plan);
    if (status != WEFT_OK) {
        if (fresh->whole) wefti_free(fresh->whole, (size_t)set->n_outputs);
        wefti_free(fresh, sizeof *fresh);
        return wefti_while(status, "planning a batch of %lld rows", (long long)rows);
    }
    *end = fresh;
    set->latest = *plan_out = fresh->plan;
    set->whole = fresh->whole;
    return WEFT_OK;
}

weft_status wefti_plan_set_run(weft_plan *plan, const weft_batch *batch, const weft_feed *extra, int32_t n_extra) {
    weft_feed feeds[WEFT_BATCH_MAX_FIELDS + 4];
    int32_t   n = 0;
    for (int32_t i = 0; i < batch->field_count && i < WEFT_BATCH_MAX_FIELDS; i++, n++)
        feeds[n] = (weft_feed){batch->field[i].name, batch->field[i].dtype, batch->field[i].shape, batch->field[i].data};
    for (int32_t i = 0; i < n_extra && i < 4; i++) feeds[n++] = extra[i];
    return weft_plan_run(plan, feeds, n);
}

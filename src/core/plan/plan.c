/* Plans: the passes in their order, and the object's life.
 *
 * Creating lays everything out on the host and allocates nothing of the device; commit.c allocates and compiles, run.c runs. */
#include <string.h>

#include "core/plan/object.h"

typedef struct pass {
    const char *name;
    weft_status (*run)(wefti_ir *ir);
} pass;

static const pass passes[] = {
    {"exchange", wefti_pass_exchange}, /* gathers along any axis, in terms of equal parts */
    {"simplify", wefti_pass_simplify}, /* numbers known now, computations made twice */
    {"narrow", wefti_pass_narrow},     /* where maxima were found, in bytes */
    {"layout", wefti_pass_layout},     /* images with channels last, where the device would rather have them so */
    {"views", wefti_pass_views},       /* windows instead of copies */
    {"fp8", wefti_pass_fp8},           /* products in 8-bit floats, where they may be */
    {"heads", wefti_pass_heads},       /* attention's results where products want them */
    {"spaces", wefti_pass_spaces},     /* elementwise ops in the shape of what they read */
    {"hazards", wefti_pass_hazards},   /* old values of variables that are read late */
    {"chunk", wefti_pass_chunk},       /* losses over many classes, some rows at a time */
    {"epilogue", wefti_pass_epilogue}, /* products, with what is done to their results */
    {"moments", wefti_pass_moments},   /* mean and variance in one pass */
    {"again", wefti_pass_again},       /* activations for kernels' gradients, computed again */
    {"fuse", wefti_pass_fuse},         /* elementwise chains, with their reductions */
    {"together", wefti_pass_together}, /* small items of one kind side by side */
    {"divide", wefti_pass_divide},     /* large updates, by all ranks together */
    {"bucket", wefti_pass_bucket},     /* few large messages */
    {"schedule", wefti_pass_schedule}, /* communication early, what waits for it late */
    {"pace", wefti_pass_pace},         /* parts of parameters and gradients, few at once */
    {"stage", wefti_pass_stage},       /* what is sent lies in exported memory */
    {"post", wefti_pass_post},         /* what peers send is expected early */
    {"settle", wefti_pass_settle},     /* what is assigned, computed where the variable lies */
    {"memory", wefti_pass_memory},     /* offsets */
    {"segments", wefti_pass_segments}, /* runs between communication */
    {"push", wefti_pass_push},         /* who moves what was updated in parts */
};

static weft_status check_options(weft_world *world, weft_graph *graph, const wefti_plan_options *options) {
    const weft_plan_options *base = &options->base;
    if (!world || !graph) return wefti_fail(WEFT_E_INVALID, "weft_plan_create: the %s is NULL", world ? "graph" : "world");
    WEFTI_TRY(wefti_graph_status(graph));
    if (base->n_outputs < 0 || (base->n_outputs > 0 && !base->outputs))
        return wefti_fail(WEFT_E_INVALID, "weft_plan_create: there are %d outputs and no list of them", base->n_outputs);
    for (int32_t i = 0; i < base->n_outputs; i++) {
        const weft_tensor *output = base->outputs[i];
        if (!output) return wefti_fail(WEFT_E_INVALID, "weft_plan_create: output %d is NULL", i);
        if (output->graph != graph || wefti_poisoned(output))
            return wefti_fail(WEFT_E_INVALID, "weft_plan_create: output %d, '%s', %s", i, weft_tensor_name(output),
                              output->graph == graph ? "is poisoned" : "belongs to another graph");
    }
    if (base->arena_of && base->arena_of->ir.world != world)
        return wefti_fail(WEFT_E_INVALID, "weft_plan_create: the plan whose arena is to be shared belongs to another world");
    if (base->bucket_bytes < -1 || base->first_bucket_bytes < 0)
        return wefti_fail(WEFT_E_INVALID, "weft_plan_create: bucket_bytes is %lld and first_bucket_bytes %lld; -1 is for no buckets, else sizes",
                          (long long)base->bucket_bytes, (long long)base->first_bucket_bytes);
    if (base->divide_bytes < -1)
        return wefti_fail(WEFT_E_INVALID, "weft_plan_create: divide_bytes is %lld; -1 is for never, else a size", (long long)base->divide_bytes);
    if (base->loss_chunk_rows < -1)
        return wefti_fail(WEFT_E_INVALID, "weft_plan_create: loss_chunk_rows is %lld; -1 is for all rows at once, else a number of rows",
                          (long long)base->loss_chunk_rows);
    return WEFT_OK;
}

/* This rank's graph, and what stands for the outputs in it. */
static weft_status rewrite(weft_plan *plan, weft_tensor **outputs) {
    const wefti_plan_options *options = &plan->ir.options;
    const weft_plan_options  *base = &options->base;
    weft_graph               *pruned = NULL;
    if (!options->rewrite) {
        plan->ir.graph = weft_graph_retain(plan->source);
        if (base->n_outputs) memcpy(outputs, base->outputs, (size_t)base->n_outputs * sizeof *outputs);
        return WEFT_OK;
    }
    size_t        bytes = (size_t)base->n_outputs * sizeof(weft_tensor *);
    weft_tensor **between = NULL;
    weft_status   status = wefti_alloc(bytes, "a plan", &between);
    WEFTI_TRY_GOTO(status, done);
    WEFTI_TRY_GOTO(wefti_plan_copy(plan->source, base->outputs, base->n_outputs, base->training, &pruned, between), done);
    status = options->rewrite(options->context, pruned, between, base->n_outputs, base->training, &plan->ir.graph, outputs);
    if (status == WEFT_OK && plan->ir.graph) status = wefti_graph_status(plan->ir.graph);
    else if (status == WEFT_OK) status = wefti_fail(WEFT_E_INTERNAL, "the strategy gave no graph");
done:
    weft_graph_release(pruned);
    wefti_free(between, bytes);
    return status;
}

static weft_status lay_out(weft_plan *plan) {
    wefti_ir     *ir = &plan->ir;
    size_t        bytes = (size_t)ir->n_outputs * sizeof(weft_tensor *);
    weft_tensor **outputs = NULL;
    WEFTI_TRY(wefti_alloc((size_t)ir->n_outputs * sizeof *ir->outputs, "a plan", &ir->outputs));
    WEFTI_TRY(wefti_alloc(bytes, "a plan", &outputs));
    weft_status status = rewrite(plan, outputs);
    if (status == WEFT_OK) status = wefti_pass_resolve(ir, outputs);
    wefti_free(outputs, bytes);
    WEFTI_TRY(status);
    for (size_t i = 0; i < WEFTI_COUNT(passes); i++) WEFTI_TRY(passes[i].run(ir));
    ir->constant_bytes = (int64_t)wefti_align_up((size_t)ir->constant_bytes, WEFTI_ALIGNMENT);
    ir->exported_bytes = wefti_arena_exported_bytes(ir->world, ir->exported_bytes);
    return WEFT_OK;
}

weft_status wefti_plan_create(weft_world *world, weft_graph *graph, const wefti_plan_options *options, weft_plan **plan_out) {
    *plan_out = NULL;
    WEFTI_TRY(check_options(world, graph, options));
    weft_plan *plan = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *plan, "a plan", &plan));
    atomic_init(&plan->references, 1);
    plan->source = weft_graph_retain(graph);
    plan->ir = (wefti_ir){.world = world, .device = world->device, .options = *options, .n_outputs = options->base.n_outputs,
                          .step_constant = -1};
    plan->written_step = -1;
    plan->first_flight = plan->last_flight = -1;
    weft_status status = lay_out(plan);
    WEFTI_TRY_GOTO(status, failed);
    if (options->base.arena_of) plan->arena = wefti_arena_retain(options->base.arena_of->arena);
    else WEFTI_TRY_GOTO(wefti_arena_create(world, &plan->arena), failed);
    if (options->base.variables) WEFTI_TRY_GOTO(wefti_plan_bind_variables(plan, options->base.variables), failed);
    /* What was lent for the time of planning. */
    plan->ir.options.base.outputs = NULL;
    plan->ir.options.base.variables = NULL;
    plan->ir.options.base.arena_of = NULL;
    *plan_out = plan;
    return WEFT_OK;
failed:
    weft_plan_release(plan);
    return status;
}

weft_status weft_plan_create(weft_world *world, weft_graph *graph, const weft_plan_options *options, weft_plan **plan_out) {
    wefti_plan_options all = {0};
    if (options) all.base = *options;
    if (world && graph && graph->placed && world->placer) {
        all.rewrite = world->placer->rewrite;
        all.context = world;
    }
    return wefti_plan_create(world, graph, &all, plan_out);
}

weft_plan *weft_plan_retain(weft_plan *plan) {
    if (plan) atomic_fetch_add_explicit(&plan->references, 1, memory_order_relaxed);
    return plan;
}

void weft_plan_release(weft_plan *plan) {
    if (!plan || atomic_fetch_sub_explicit(&plan->references, 1, memory_order_acq_rel) != 1) return;
    wefti_plan_free_memory(plan);
    wefti_arena_release(plan->arena);
    weft_variables_release(plan->variables);
    wefti_free(plan->variable_index, (size_t)plan->ir.n_variables * sizeof *plan->variable_index);
    weft_graph *planned = plan->ir.graph;
    wefti_ir_release(&plan->ir);
    weft_graph_release(planned);
    weft_graph_release(plan->source);
    wefti_text_release(&plan->text);
    wefti_free(plan, sizeof *plan);
}

weft_variables *weft_plan_variables(const weft_plan *plan) { return plan ? plan->variables : NULL; }

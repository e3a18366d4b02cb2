/* The trainer: one plan per batch size, one variable set, a step counter. A step feeds the batch and eight numbers, runs
 * the plan and looks at the loss; the guard against NaN is in the graph, so a bad step has changed nothing by then. */
#include <math.h>
#include <string.h>

#include "core/iface/collective.h"
#include "core/rules/rules.h"
#include "parallel/compress.h"
#include "train/trainer.h"

/* --- agreement --- */

static uint64_t mix_reduce(uint64_t hash, const wefti_attrs *a) {
    return wefti_hash(wefti_hash(hash, &a->reduce.axes, sizeof a->reduce.axes), &a->reduce.count, sizeof a->reduce.count);
}

/* What an op computes beyond its inputs. Shapes within attributes follow from the op's own; addresses differ between processes, so of
 * custom ops only the name counts (their options may hold addresses too), and of updates what the program does not say anyway. */
static uint64_t mix_attributes(uint64_t hash, const wefti_node *node) {
    const wefti_attrs *a = &node->attrs;
    switch (wefti_ops[node->op].family) {
    case WEFTI_CONV: return wefti_hash(hash, &a->conv, offsetof(wefti_attrs, conv.groups) + sizeof a->conv.groups);
    case WEFTI_POOL: return wefti_hash(hash, &a->pool, offsetof(wefti_attrs, pool.exclude_pad) + sizeof a->pool.exclude_pad);
    case WEFTI_CUSTOM: return wefti_hash(hash, a->custom.custom->name, strlen(a->custom.custom->name));
    case WEFTI_EFFECT: return hash;
    case WEFTI_REDUCE: return mix_reduce(hash, a);
    default: break;
    }
    switch (node->op) {
    case WEFT_OP_MEAN_BACKWARD: return mix_reduce(hash, a);
    case WEFT_OP_RESHAPE:
    case WEFT_OP_EXPAND: return hash;
    case WEFT_OP_PERMUTE: return wefti_hash(hash, a->view.axes, sizeof a->view.axes);
    default: return wefti_hash(hash, a, sizeof *a); /* zeroed before they are filled */
    }
}

static uint64_t mix_leaf(uint64_t hash, const wefti_leaf *leaf) {
    const double numbers[] = {leaf->init, leaf->a, leaf->b, leaf->frozen, leaf->unregularised, leaf->batch_axis};
    hash = wefti_hash(wefti_hash(hash, numbers, sizeof numbers), &leaf->key, sizeof leaf->key);
    return leaf->value ? wefti_hash(hash, weft_array_data(leaf->value), (size_t)weft_array_bytes(leaf->value)) : hash;
}

static uint64_t mix_program(uint64_t hash, const weft_program *program) {
    const weft_solver   *s = &program->solver;
    const weft_schedule *t = &s->schedule;
    const weft_compression *c = &program->strategy.compress;
    const weft_strategy *y = &program->strategy;
    const double numbers[] = {s->rate, s->kind, s->momentum, s->nesterov, s->beta1, s->beta2, s->rho, s->epsilon, s->weight_decay,
                              s->history, s->line_search, s->clip_norm, s->clip_value, s->stochastic_rounding, t->kind, (double)t->warmup, (double)t->steps,
                              (double)t->every, t->gamma, t->floor, t->start, t->rise, program->regulariser.l1, program->regulariser.l2,
                              program->regulariser.group, program->strategy.accumulate, (double)program->strategy.bucket_bytes,
                              (double)program->strategy.divide_bytes, (double)y->loss_chunk_rows, y->precision, y->fp8, program->ignore_nan,
                              program->strategy.sync, program->strategy.staleness, program->strategy.servers, program->strategy.replicas, program->strategy.push,
                              program->strategy.fetch, (double)program->strategy.warm_start, program->strategy.overlap, y->tensor, y->tensor_rows, y->pipeline, y->sequence, y->expert, y->schedule, y->chunks, y->zero, y->recompute,
                              c->codec, c->ratio, c->rank, (double)c->warmup, (double)c->least, c->error_feedback, c->threshold, (double)c->seed};
    return wefti_hash(hash, numbers, sizeof numbers);
}

/* What every rank must have alike: ops with their attributes, shapes and wiring, solver and schedule, regulariser, strategy. */
static uint64_t program_hash(const weft_graph *graph, const weft_program *program) {
    uint64_t hash = WEFTI_HASH_BEGIN;
    for (int32_t id = 0; id < graph->n_nodes; id++) {
        const wefti_node *node = graph->nodes[id];
        hash = mix_attributes(wefti_hash(hash, &node->op, sizeof node->op), node);
        if (node->leaf) hash = mix_leaf(hash, node->leaf);
        for (int32_t i = 0; i < node->n_inputs; i++) {
            const int32_t from[] = {node->inputs[i]->node->id, node->inputs[i]->index};
            hash = wefti_hash(hash, from, sizeof from);
        }
        for (int32_t i = 0; i < node->n_outputs; i++) {
            hash = wefti_hash(hash, &node->outputs[i].dtype, sizeof node->outputs[i].dtype);
            hash = wefti_hash(hash, node->outputs[i].shape.dim, sizeof(int64_t) * (size_t)node->outputs[i].shape.rank);
        }
    }
    return mix_program(wefti_hash(hash, &graph->seed, sizeof graph->seed), program);
}

/* Smallest and largest value over the ranks: equal where all agree. */
static weft_status compare_ranks(weft_world *world, int64_t value, const char *what) {
    if (world->size == 1) return WEFT_OK;
    int64_t ends[2] = {value, -value};
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_I64, .op = WEFTI_REDUCE_MAX, .send = ends,
                                  .receive = ends, .count = 2};
    WEFTI_TRY(wefti_collective_run(world->group, &call));
    if (ends[0] == -ends[1]) return WEFT_OK;
    return wefti_fail(WEFT_E_MISMATCH, "rank %d: %s differs between ranks: every rank must build the same program from the same "
                      "arguments", world->rank, what);
}

/* --- life --- */

const char *wefti_split_refuses(const weft_program *program, bool whole) {
    const weft_strategy *s = &program->strategy;
    if (program->solver.kind == WEFT_LBFGS) return "L-BFGS, whose steps are on whole vectors of all parameters on every rank: use another solver, or data alone";
    if (s->compress.codec == WEFT_COMPRESS_NONE || (whole && !wefti_compress_feeds_back(&s->compress))) return NULL;
    return whole ? "compress that keeps what it leaves out, as every rank would have to of all gradients: use bf16, fp8 or fp8-e5m2 without error_feedback"
                 : "compress, which sums whole gradients, and here ranks have parts of them: leave it zero, or use data and pipeline";
}

/* What replicas that are split do not go with where they meet by a server. */
static const char *served_refuses(wefti_mesh_axis axis, const weft_program *program) {
    const weft_strategy *s = &program->strategy;
    if (s->sync != WEFT_SERVER) return NULL;
    if (axis == WEFTI_MESH_EXPERT)
        return "sync = WEFT_SERVER, as ranks along it push some parameters for each other and others for themselves: use tensor, sequence, pipeline, or allreduce; tables of "
               "embeddings go beside any mesh, on a server of the program's own (weft_program.wanted)";
    if (program->regulariser.group > 0) return "sync = WEFT_SERVER and a group regulariser, whose rows may be in parts on the server: use weft_l1 or weft_l2, or data alone";
    if (s->compress.codec != WEFT_COMPRESS_NONE) return "sync = WEFT_SERVER and compress, whose rests are of whole parameters there: leave it zero, or use data alone";
    return s->replicas > 0 ? "sync = WEFT_SERVER and replicas, as a rank's neighbours in a split model do not go on without it: leave replicas zero, and go on from a checkpoint" : NULL;
}

static weft_status check_axis(const wefti_mesh *mesh, wefti_mesh_axis axis, const weft_program *program) {
    const char *what = mesh->extent[axis] > 1 ? wefti_split_refuses(program, axis == WEFTI_MESH_PIPELINE) : NULL;
    if (!what && mesh->extent[axis] > 1) what = served_refuses(axis, program);
    return what ? wefti_fail(WEFT_E_UNSUPPORTED, "strategy: %s = %d does not go with %s", wefti_mesh_name(axis), mesh->extent[axis], what) : WEFT_OK;
}

weft_status wefti_trainer_check(const weft_world *world, const weft_program *program) {
    const weft_strategy *s = &program->strategy;
    wefti_mesh           mesh;
    WEFTI_TRY(wefti_mesh_of(s, world->rank, world->size, &mesh));
    WEFTI_TRY(wefti_zero_check(world, program));
    WEFTI_TRY(wefti_pipeline_check(program));
    for (int32_t axis = 0; axis < WEFTI_MESH_AXES; axis++)
        if (axis != WEFTI_MESH_DATA) WEFTI_TRY(check_axis(&mesh, (wefti_mesh_axis)axis, program));
    return WEFT_OK;
}

/* Stages are honoured, where there are some. Trainers split by their strategy, and would compute what the program places elsewhere wherever the strategy
 * has it. */
static weft_status check_places(const weft_graph *graph, const weft_strategy *strategy) {
    int32_t stages = strategy->pipeline > 1 ? strategy->pipeline * wefti_pipeline_chunks(strategy) : 0;
    for (int32_t id = 0; graph->placed && id < graph->n_nodes; id++) {
        const wefti_node *node = graph->nodes[id];
        if (node->wish && node->wish->said != WEFTI_WISH_STAGE)
            return wefti_fail(WEFT_E_UNSUPPORTED, "'%s' is placed at '%s', and trainers split by their strategy alone, but for stages: leave other places away, or "
                              "run the graph by a plan of your own (weft_plan_create), which keeps to them", node->name, node->wish->text);
        if (node->wish && stages > 0 && node->wish->stage >= stages)
            return wefti_fail(WEFT_E_INVALID, "'%s' is placed at '%s', and the pipeline has %d stages, from 0", node->name, node->wish->text, (int)stages);
    }
    return WEFT_OK;
}

/* The compression of the step that comes next; one rank has nothing to compress, and what goes to a server is compressed on its way there. */
static const weft_compression *compression_of(const weft_trainer *trainer) {
    const weft_compression *compress = &trainer->program.strategy.compress;
    bool                    compresses = compress->codec != WEFT_COMPRESS_NONE && wefti_trainer_data_ranks(trainer) > 1 &&
                                         trainer->program.strategy.sync != WEFT_SERVER;
    return compresses && trainer->steps >= compress->warmup ? compress : NULL;
}

/* Where ranks go each at its own pace, a plan must not communicate. */
static bool goes_alone(const weft_trainer *trainer) {
    return trainer->program.strategy.sync == WEFT_SERVER && trainer->program.strategy.staleness != 0;
}

/* Both plans are made at once where some steps are not compressed, so that no step allocates. */
static weft_status make_plans(weft_trainer *trainer) {
    weft_plan *plan = NULL;
    int64_t    rows = 0, first = 0, steps = trainer->steps;
    WEFTI_TRY(wefti_graph_rows(trainer->graph, &rows));
    if (goes_alone(trainer)) {
        weft_batch_share(rows, wefti_trainer_data_rank(trainer), wefti_trainer_data_ranks(trainer), &first, &rows);
        if (rows == 0) return WEFT_OK; /* planned when there are some */
    }
    trainer->steps = trainer->program.strategy.compress.warmup;
    trainer->plans.compress = compression_of(trainer);
    trainer->steps = steps;
    WEFTI_TRY(wefti_plan_set_get(&trainer->plans, rows, &plan));
    WEFTI_TRY(wefti_trainer_room(trainer, plan));
    WEFTI_TRY(weft_plan_commit(plan));
    trainer->plans.compress = compression_of(trainer);
    WEFTI_TRY(wefti_plan_set_get(&trainer->plans, rows, &plan));
    return weft_plan_commit(plan);
}

static weft_world *planned_world(weft_trainer *trainer) {
    if (!goes_alone(trainer) || wefti_served_in_parts(&trainer->program)) return wefti_trainer_meets(trainer);
    trainer->lone = *trainer->world;
    trainer->lone.rank = 0;
    trainer->lone.size = 1;
    trainer->lone.group = trainer->lone.device_group = NULL;
    trainer->lone.groups = NULL;
    return &trainer->lone;
}

/* By what mesh plans are split; NULL: ranks share rows of the batch, or have nothing to do with each other. */
static const wefti_mesh *planned_mesh(weft_trainer *trainer) {
    if (trainer->program.strategy.sync != WEFT_SERVER) return &trainer->mesh;
    if (!wefti_served_in_parts(&trainer->program)) return NULL;
    trainer->replica = trainer->mesh;
    trainer->replica.extent[WEFTI_MESH_DATA] = 1;
    trainer->replica.index[WEFTI_MESH_DATA] = 0;
    return goes_alone(trainer) ? &trainer->replica : &trainer->mesh;
}

static weft_status choose_outputs(weft_trainer *trainer) {
    wefti_training *t = &trainer->training;
    bool            served = trainer->program.strategy.sync == WEFT_SERVER && !wefti_served_in_parts(&trainer->program), lbfgs = trainer->program.solver.kind == WEFT_LBFGS;
    int32_t         first_wanted = WEFTI_OUT_FIRST_GRADIENT + (lbfgs || served ? t->n : 0), n = first_wanted + t->n_wanted;
    weft_tensor   **outputs = wefti_graph_memory(trainer->graph, sizeof *outputs * (size_t)n);
    if (!outputs) return wefti_graph_status(trainer->graph);
    outputs[WEFTI_OUT_LOSS] = outputs[WEFTI_OUT_OWN_LOSS] = trainer->program.loss;
    outputs[WEFTI_OUT_NORM] = t->norm ? t->norm : trainer->program.loss;
    memcpy(outputs + WEFTI_OUT_FIRST_GRADIENT, t->gradients, sizeof *outputs * (size_t)(first_wanted - WEFTI_OUT_FIRST_GRADIENT));
    memcpy(outputs + first_wanted, t->gradients + t->n, sizeof *outputs * (size_t)t->n_wanted);
    trainer->outputs = outputs;
    trainer->n_outputs = n;
    return WEFT_OK;
}

static const wefti_splits *splits_of(const weft_trainer *trainer) { return trainer->splits.n > 0 ? &trainer->splits : NULL; }

static const wefti_zero *zero_of(const weft_trainer *trainer) { return trainer->zero.stage > 0 ? &trainer->zero : NULL; }

static weft_status open_plans(weft_trainer *trainer) {
    bool served = trainer->program.strategy.sync == WEFT_SERVER;
    WEFTI_TRY(wefti_plan_set_open(&trainer->plans, planned_world(trainer), planned_mesh(trainer), trainer->graph,
                                  trainer->variables, trainer->outputs, trainer->n_outputs, true));
    trainer->plans.partial = served && !wefti_served_in_parts(&trainer->program);
    trainer->plans.n_partial = trainer->training.n;
    trainer->plans.splits = splits_of(trainer);
    trainer->plans.zero = zero_of(trainer);
    trainer->plans.zero_notes = trainer->zero.notes.bytes;
    /* What is left to reduce by way of a server are a few numbers; how they fell together would depend on a rank's rows. */
    trainer->plans.options.bucket_bytes = trainer->plans.partial ? -1 : trainer->program.strategy.bucket_bytes;
    trainer->plans.options.divide_bytes = trainer->zero.stage > 0 ? -1 : trainer->program.strategy.divide_bytes; /* else zero says what is divided */
    trainer->plans.options.loss_chunk_rows = trainer->program.strategy.loss_chunk_rows;
    trainer->plans.options.trace = trainer->program.trace;
    trainer->plans.options.profile = trainer->program.profile;
    trainer->plans.micro = trainer->program.strategy.accumulate > 0 ? trainer->program.strategy.accumulate : 1;
    trainer->plans.schedule = trainer->program.strategy.schedule;
    trainer->plans.chunks = wefti_pipeline_chunks(&trainer->program.strategy);
    trainer->plans.scaled = trainer->program.strategy.precision == WEFT_F16;
    return make_plans(trainer);
}

/* Everything that belongs to the world. */
static weft_status settle(weft_trainer *trainer) {
    WEFTI_TRY(compare_ranks(trainer->world, (int64_t)(trainer->hash >> 1), "the program"));
    WEFTI_TRY(wefti_mesh_make(trainer->world, &trainer->program.strategy, &trainer->mesh));
    WEFTI_TRY(wefti_trainer_split(trainer));
    WEFTI_TRY(wefti_trainer_room(trainer, NULL));
    const wefti_windows windows = wefti_trainer_windows(trainer);
    bool                staged = trainer->mesh.extent[WEFTI_MESH_PIPELINE] > 1;
    WEFTI_TRY(staged ? wefti_pipeline_variables(trainer) : wefti_variables_create(trainer->world, trainer->graph, &windows, &trainer->variables));
    if (trainer->program.strategy.sync == WEFT_ALLREDUCE && wefti_mesh_is_data(&trainer->mesh)) WEFTI_TRY(wefti_variables_share(trainer->variables, trainer->world));
    if (trainer->program.strategy.sync == WEFT_SERVER) WEFTI_TRY(trainer->served ? wefti_served_move(trainer) : wefti_served_open(trainer, &trainer->served));
    WEFTI_TRY(open_plans(trainer));
    if (trainer->served) return wefti_served_create(trainer);
    return trainer->program.solver.kind == WEFT_LBFGS ? wefti_lbfgs_create(trainer, &trainer->lbfgs) : WEFT_OK;
}

static void close_station(wefti_station *station) {
    wefti_lbfgs_release(station->lbfgs);
    wefti_plan_set_close(&station->plans);
    weft_variables_release(station->variables);
    wefti_splits_release(&station->splits);
    wefti_zero_release(&station->zero);
    wefti_mesh_drop(&station->mesh);
    *station = (wefti_station){0};
}

static wefti_station station_of(const weft_trainer *trainer) {
    return (wefti_station){trainer->world, trainer->mesh, trainer->splits, trainer->zero, trainer->variables, trainer->plans, trainer->lbfgs};
}

static void set_station(weft_trainer *trainer, const wefti_station *station) {
    trainer->world = station->world;
    trainer->mesh = station->mesh;
    trainer->splits = station->splits;
    trainer->zero = station->zero;
    trainer->variables = station->variables;
    trainer->plans = station->plans;
    trainer->lbfgs = station->lbfgs;
}

weft_status wefti_trainer_move(weft_trainer *trainer, weft_world *world, wefti_station *left_out) {
    WEFTI_TRY(wefti_trainer_check(world, &trainer->program));
    *left_out = station_of(trainer);
    set_station(trainer, &(wefti_station){.world = world});
    weft_status status = settle(trainer);
    if (status == WEFT_OK) return WEFT_OK;
    wefti_trainer_return(trainer, left_out);
    return status;
}

void wefti_trainer_return(weft_trainer *trainer, const wefti_station *left) {
    wefti_station other = station_of(trainer);
    set_station(trainer, left);
    close_station(&other);
}

/* By an automatic strategy the first whose plan can be made: whether micro-batches can be had in some order is only known then. */
static weft_status settle_any(weft_trainer *trainer) {
    weft_status status = settle(trainer);
    while (trainer->choice.n > 0) {
        status = wefti_agree(trainer->world, status, "planning");
        if (status != WEFT_E_UNSUPPORTED || !wefti_automatic_next(trainer)) break;
        wefti_station left = station_of(trainer);
        wefti_served_release(trainer->served); /* of another strategy; what there is would be taken for one that comes along (settle) */
        trainer->served = NULL;
        set_station(trainer, &(wefti_station){.world = trainer->world});
        close_station(&left);
        trainer->hash = program_hash(trainer->graph, &trainer->program);
        status = settle(trainer);
    }
    return status;
}

static weft_status build(weft_trainer *trainer) {
    WEFTI_TRY(wefti_trainer_check(trainer->world, &trainer->program));
    WEFTI_TRY(wefti_training_check(&trainer->program));
    WEFTI_TRY(check_places(trainer->program.loss->graph, &trainer->program.strategy));
    WEFTI_TRY(wefti_precision_lower(&trainer->program));
    WEFTI_TRY(wefti_automatic_choose(trainer));
    if (trainer->program.strategy.recompute) wefti_recompute_mark(trainer->program.loss->graph);
    trainer->scale.exponent = WEFTI_LOSS_SCALE_START;
    WEFTI_TRY(wefti_training_build(&trainer->program, &trainer->training));
    trainer->graph = weft_graph_retain(trainer->program.loss->graph);
    trainer->hash = program_hash(trainer->graph, &trainer->program);
    WEFTI_TRY(choose_outputs(trainer));
    return settle_any(trainer);
}

weft_status weft_trainer_create(weft_world *world, const weft_program *program, weft_trainer **trainer_out) {
    *trainer_out = NULL;
    if (!world || !program) return wefti_fail(WEFT_E_INVALID, "weft_trainer_create: the %s is NULL", world ? "program" : "world");
    weft_trainer *trainer = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *trainer, "a trainer", &trainer));
    trainer->world = world;
    trainer->program = *program;
    weft_status status = build(trainer);
    wefti_auto_release(&trainer->choice);
    if (status != WEFT_OK) {
        weft_trainer_release(trainer);
        return wefti_while(status, "rank %d: creating the trainer", world->rank);
    }
    *trainer_out = trainer;
    return WEFT_OK;
}

struct weft_evaluator {
    weft_trainer   *trainer; /* NULL: released */
    weft_evaluator *next;    /* of the trainer's */
    wefti_plan_set  plans;
    weft_plan      *latest;
};

static void forget_evaluators(weft_trainer *trainer) {
    for (weft_evaluator *it = trainer->evaluators; it; it = it->next) it->trainer = NULL;
}

void wefti_trainer_release_left(weft_trainer *trainer) {
    for (wefti_left_world *left; (left = trainer->left_worlds);) {
        trainer->left_worlds = left->next;
        weft_world_release(left->world);
        wefti_free(left, sizeof *left);
    }
}

void weft_trainer_release(weft_trainer *trainer) {
    if (!trainer) return;
    wefti_served_release(trainer->served);
    wefti_trainer_release_left(trainer);
    wefti_station station = station_of(trainer);
    close_station(&station);
    wefti_kept_release(trainer->kept);
    forget_evaluators(trainer);
    weft_graph_release(trainer->graph);
    wefti_text_release(&trainer->words);
    weft_world_release(trainer->own_world);
    wefti_free(trainer, sizeof *trainer);
}

int64_t         weft_trainer_steps(const weft_trainer *trainer) { return trainer->steps; }
weft_world     *weft_trainer_world(const weft_trainer *trainer) { return trainer->world; }

const weft_strategy *weft_trainer_strategy(const weft_trainer *trainer) { return &trainer->program.strategy; }

weft_status weft_trainer_describe(weft_trainer *trainer, const char **text_out) {
    *text_out = "";
    if (!trainer) return wefti_fail(WEFT_E_INVALID, "weft_trainer_describe: the trainer is NULL");
    if (trainer->words.length == 0) wefti_text_add(&trainer->words, "strategy: %s, as the program says\n", weft_strategy_text(&trainer->program.strategy).text);
    if (trainer->words.failed) return wefti_fail(WEFT_E_NO_MEMORY, "no memory for the words about a strategy");
    *text_out = trainer->words.bytes;
    return WEFT_OK;
}

void weft_trainer_share(const weft_trainer *trainer, int32_t *rank_out, int32_t *ranks_out) {
    *rank_out = wefti_trainer_data_rank(trainer);
    *ranks_out = wefti_trainer_data_ranks(trainer);
}

weft_variables *weft_trainer_variables(weft_trainer *trainer) { return trainer->variables; }
weft_server    *weft_trainer_server(weft_trainer *trainer) { return wefti_served_server(trainer->served); }
weft_plan      *weft_trainer_plan(weft_trainer *trainer) { return trainer->plans.plans ? trainer->plans.plans->plan : NULL; }

/* --- steps --- */

static weft_status check_batch(const weft_trainer *trainer, const weft_batch *batch) {
    int64_t first, count;
    int32_t rank = wefti_trainer_data_rank(trainer), ranks = wefti_trainer_data_ranks(trainer);
    if (!batch) return wefti_fail(WEFT_E_INVALID, "rank %d: the batch is NULL", trainer->world->rank);
    if (batch->global_rows < 1)
        return wefti_fail(WEFT_E_INVALID, "rank %d: a batch of %lld rows cannot be trained on", trainer->world->rank,
                          (long long)batch->global_rows);
    weft_batch_share(batch->global_rows, rank, ranks, &first, &count);
    if (count != batch->local_rows || first != batch->first_row)
        return wefti_fail(WEFT_E_SHAPE, "rank %d, share %d of %d: of a batch of %lld rows this rank's are %lld from row %lld, but the batch "
                          "holds %lld from row %lld: open the loader with the rank and ranks of weft_strategy_share", trainer->world->rank,
                          rank, ranks, (long long)batch->global_rows, (long long)count, (long long)first,
                          (long long)batch->local_rows, (long long)batch->first_row);
    return WEFT_OK;
}

static bool scales_loss(const weft_trainer *trainer) { return trainer->program.strategy.precision == WEFT_F16; }

/* What a step says of the scale of the loss. Ranks see the same numbers, so they agree. */
static weft_status follow_scale(weft_trainer *trainer, bool overflowed) {
    wefti_loss_scale *scale = &trainer->scale;
    if (!overflowed) {
        if (++scale->good < WEFTI_LOSS_SCALE_PATIENCE) return WEFT_OK;
        if (scale->exponent < WEFTI_LOSS_SCALE_MOST) scale->exponent++;
        scale->good = 0;
        return WEFT_OK;
    }
    scale->good = 0;
    if (scale->exponent-- > WEFTI_LOSS_SCALE_LEAST) return WEFT_OK;
    return wefti_fail(WEFT_E_NAN, "the gradient overflows f16 at step %lld, however small the loss is scaled: it is not finite; use "
                      "precision bf16, or a smaller learning rate", (long long)trainer->steps + 1);
}

/* One plan run: forward, backward, updates. */
static weft_status run_step(weft_trainer *trainer, const weft_batch *batch, weft_report *report) {
    double hyper[WEFTI_HYPER_COUNT];
    WEFTI_TRY(wefti_hyper_fill(&trainer->program.solver, trainer->steps + 1, hyper));
    if (scales_loss(trainer)) {
        hyper[WEFTI_HYPER_LOSS_SCALE] = ldexp(1, (int)trainer->scale.exponent);
        hyper[WEFTI_HYPER_SCALE] = ldexp(1, -(int)trainer->scale.exponent);
    }
    weft_plan *plan = NULL;
    trainer->plans.compress = compression_of(trainer);
    WEFTI_TRY(wefti_plan_set_get(&trainer->plans, batch->global_rows, &plan));
    weft_plan_set_step(plan, trainer->steps);
    weft_feed feed = {"weft.hyper", WEFT_F64, weft_shape(WEFTI_HYPER_COUNT), hyper};
    WEFTI_TRY(wefti_plan_set_run(plan, batch, &feed, 1));
    static const int32_t outputs[] = {WEFTI_OUT_LOSS, WEFTI_OUT_OWN_LOSS, WEFTI_OUT_NORM};
    double               value[3] = {0}; /* without a norm its place is 0 */
    WEFTI_TRY(wefti_plan_scalars(plan, outputs, trainer->training.norm ? 3 : 2, value));
    report->loss = value[0];
    report->gradient_norm = value[2];
    report->rate = hyper[WEFTI_HYPER_RATE];
    report->evaluations = 1;
    report->wait_ns = wefti_plan_wait_ns(plan);
    bool finite = isfinite(report->gradient_norm);
    if (scales_loss(trainer) && isfinite(report->loss)) {
        report->skipped = !finite;
        return follow_scale(trainer, !finite);
    }
    if (isfinite(report->loss) && finite) return WEFT_OK;
    report->skipped = true;
    return trainer->program.ignore_nan ? WEFT_OK : wefti_trainer_nan(trainer, batch, report->loss, report->gradient_norm, value[1]);
}

weft_status weft_trainer_step(weft_trainer *trainer, const weft_batch *batch, weft_report *report_out) {
    if (!trainer) return wefti_fail(WEFT_E_INVALID, "weft_trainer_step: the trainer is NULL");
    WEFTI_TRY(check_batch(trainer, batch));
    weft_report report = {.rows = batch->global_rows};
    uint64_t    begin = wefti_host_now(wefti_host_system());
    weft_status status = trainer->served  ? wefti_served_step(trainer, batch, &report)
                         : trainer->lbfgs ? wefti_lbfgs_step(trainer, batch, &report)
                                          : run_step(trainer, batch, &report);
    report.step_ns = wefti_host_now(wefti_host_system()) - begin;
    report.step = trainer->steps + 1;
    report.lost = trainer->served ? wefti_served_lost(trainer) : 0;
    report.straggler = weft_world_straggler(trainer->world, &report.straggler_share);
    if (report_out) *report_out = report;
    if (status != WEFT_OK)
        return status == WEFT_E_NAN ? status
                                    : wefti_while(status, "rank %d, step %lld", trainer->world->rank, (long long)trainer->steps + 1);
    trainer->steps++;
    return WEFT_OK;
}

static weft_status find_wanted(const weft_trainer *trainer, int32_t index, int32_t *output_out) {
    if (!trainer || index < 0 || index >= trainer->training.n_wanted)
        return wefti_fail(WEFT_E_INVALID, "weft_trainer_gradient: %s %d; the program wants %d", trainer ? "there is no gradient" : "the trainer is NULL: gradient",
                          (int)index, trainer ? (int)trainer->training.n_wanted : 0);
    if (!trainer->plans.latest) return wefti_fail(WEFT_E_STATE, "weft_trainer_gradient: there was no step yet");
    *output_out = trainer->n_outputs - trainer->training.n_wanted + index;
    return WEFT_OK;
}

weft_status weft_trainer_gradient(const weft_trainer *trainer, int32_t index, weft_plan_value *value_out) {
    int32_t output = 0;
    WEFTI_TRY(find_wanted(trainer, index, &output));
    return weft_plan_output(trainer->plans.latest, output, value_out);
}

weft_status weft_trainer_gradient_fetch(const weft_trainer *trainer, int32_t index, void *values_out, size_t bytes) {
    int32_t output = 0;
    WEFTI_TRY(find_wanted(trainer, index, &output));
    return weft_plan_fetch(trainer->plans.latest, output, values_out, bytes);
}

/* --- evaluation --- */

weft_status weft_evaluator_create(weft_trainer *trainer, weft_tensor *const *outputs, int32_t n_outputs,
                                  weft_evaluator **evaluator_out) {
    *evaluator_out = NULL;
    if (!trainer) return wefti_fail(WEFT_E_INVALID, "weft_evaluator_create: the trainer is NULL");
    WEFTI_TRY(wefti_graph_status(trainer->graph));
    for (int32_t i = 0; i < n_outputs; i++)
        if (!outputs[i] || wefti_poisoned(outputs[i]) || outputs[i]->graph != trainer->graph)
            return wefti_fail(WEFT_E_INVALID, "weft_evaluator_create: output %d is not a tensor of the trainer's graph", i);
    WEFTI_TRY(check_places(trainer->graph, &trainer->program.strategy));
    weft_evaluator *evaluator = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *evaluator, "an evaluator", &evaluator));
    evaluator->trainer = trainer;
    weft_status status = wefti_plan_set_open(&evaluator->plans, wefti_trainer_meets(trainer), trainer->served && !wefti_served_in_parts(&trainer->program) ? NULL : &trainer->mesh, trainer->graph,
                                             trainer->variables, outputs, n_outputs, false);
    if (status != WEFT_OK) {
        weft_evaluator_release(evaluator);
        return status;
    }
    evaluator->plans.splits = splits_of(trainer);
    evaluator->plans.chunks = trainer->plans.chunks;
    evaluator->plans.zero = zero_of(trainer);
    evaluator->plans.zero_notes = trainer->zero.notes.bytes;
    evaluator->next = trainer->evaluators;
    trainer->evaluators = evaluator;
    *evaluator_out = evaluator;
    return WEFT_OK;
}

void wefti_trainer_leave(weft_trainer *trainer, wefti_station *left) {
    for (weft_evaluator *it = trainer->evaluators; it; it = it->next) {
        wefti_plan_set_move(&it->plans, wefti_trainer_meets(trainer), trainer->variables);
        it->plans.zero_notes = trainer->zero.notes.bytes;
        it->latest = NULL;
    }
    close_station(left);
}

void weft_evaluator_release(weft_evaluator *evaluator) {
    if (!evaluator) return;
    for (weft_evaluator **it = evaluator->trainer ? &evaluator->trainer->evaluators : NULL; it && *it; it = &(*it)->next)
        if (*it == evaluator) {
            *it = evaluator->next;
            break;
        }
    wefti_plan_set_close(&evaluator->plans);
    wefti_free(evaluator, sizeof *evaluator);
}

weft_status weft_evaluator_run(weft_evaluator *evaluator, const weft_batch *batch) {
    if (!evaluator) return wefti_fail(WEFT_E_INVALID, "weft_evaluator_run: the evaluator is NULL");
    WEFTI_TRY(check_batch(evaluator->trainer, batch));
    WEFTI_TRY(wefti_served_refresh(evaluator->trainer));
    WEFTI_TRY(wefti_plan_set_get(&evaluator->plans, batch->global_rows, &evaluator->latest));
    weft_plan_set_step(evaluator->latest, evaluator->trainer->steps);
    return wefti_plan_set_run(evaluator->latest, batch, NULL, 0);
}

weft_status weft_evaluator_output(const weft_evaluator *evaluator, int32_t index, weft_plan_value *value_out) {
    if (!evaluator || !evaluator->latest) return wefti_fail(WEFT_E_STATE, "weft_evaluator_output: nothing has run yet");
    return weft_plan_output(evaluator->latest, index, value_out);
}

weft_status weft_evaluator_fetch(const weft_evaluator *evaluator, int32_t index, void *values_out, size_t bytes) {
    if (!evaluator || !evaluator->latest) return wefti_fail(WEFT_E_STATE, "weft_evaluator_fetch: nothing has run yet");
    return weft_plan_fetch(evaluator->latest, index, values_out, bytes);
}

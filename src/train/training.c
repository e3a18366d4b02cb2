/* From a program to a training graph: gradients, global-norm clipping, the guard against a loss that is not finite, the
 * solver's updates and proximal steps, all as ops of the one graph, so that planning, splitting and devices know nothing
 * of training. What changes from step to step comes in through one small input, "weft.hyper". */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/rules/rules.h"
#include "parallel/compress.h"
#include "parallel/partition.h"
#include "train/trainer.h"
#include "weft/server.h"

static bool *reachable(weft_graph *graph, const weft_tensor *loss) {
    bool *mark = wefti_graph_memory(graph, (size_t)graph->n_nodes);
    if (!mark) return NULL;
    mark[loss->node->id] = true;
    for (int32_t id = loss->node->id; id >= 0; id--) {
        if (!mark[id]) continue;
        const wefti_node *node = graph->nodes[id];
        for (int32_t i = 0; i < node->n_inputs; i++) mark[node->inputs[i]->node->id] = true;
    }
    return mark;
}

/* Whether the program's solver can update the parameter. */
static weft_status check_parameter(const weft_program *program, const wefti_node *node) {
    weft_dtype dtype = node->outputs[0].dtype;
    if (dtype == WEFT_F32 || dtype == WEFT_F64) return WEFT_OK;
    if (!program->solver.stochastic_rounding)
        return wefti_fail(WEFT_E_DTYPE, "parameter '%s' is %s, in which small steps are lost: set solver.stochastic_rounding, or keep it in f32 and cast it where "
                          "it is used", node->name, weft_dtype_name(dtype));
    const char *what = program->solver.kind == WEFT_LBFGS           ? "L-BFGS"
                       : program->regulariser.group > 0             ? "a group regulariser"
                       : program->strategy.sync == WEFT_SERVER      ? "sync = WEFT_SERVER"
                       : program->strategy.zero > 0                 ? "zero yet"
                                                                    : NULL;
    return what ? wefti_fail(WEFT_E_UNSUPPORTED, "parameter '%s' is bf16, and stochastic rounding does not go with %s", node->name, what) : WEFT_OK;
}

weft_status wefti_training_find(const weft_program *program, wefti_training *training) {
    const weft_tensor *loss = program->loss;
    weft_graph        *graph = loss->graph;
    bool *mark = reachable(graph, loss);
    size_t bytes = sizeof(weft_tensor *) * (size_t)(graph->n_nodes + WEFT_BATCH_MAX_FIELDS + 1);
    training->parameters = wefti_graph_memory(graph, bytes);
    training->gradients = wefti_graph_memory(graph, bytes);
    if (!mark || !training->parameters || !training->gradients) return wefti_graph_status(graph);
    for (int32_t id = 0; id < graph->n_nodes; id++) {
        wefti_node *node = graph->nodes[id];
        if (!mark[id] || node->op != WEFT_OP_PARAMETER || node->leaf->frozen) continue;
        WEFTI_TRY(check_parameter(program, node));
        training->parameters[training->n++] = &node->outputs[0];
    }
    if (training->n == 0)
        return wefti_fail(WEFT_E_INVALID, "the loss '%s' depends on no parameter that may be trained", loss->node->name);
    return WEFT_OK;
}

/* Global 2-norm of all gradients, in f64. */
static weft_tensor *global_norm(weft_graph *graph, const wefti_training *training) {
    weft_tensor *sum = weft_scalar(graph, WEFT_F64, 0);
    for (int32_t i = 0; i < training->n; i++)
        sum = weft_add(sum, weft_cast(weft_sum(weft_square(training->gradients[i])), WEFT_F64));
    return weft_sqrt(sum);
}

/* Gradients in f16 underflow, unless the loss is made larger first. */
static bool scales_loss(const weft_program *program) { return program->strategy.precision == WEFT_F16; }

/* hyper with one element replaced by a scalar of the graph. */
static weft_tensor *replace(weft_tensor *hyper, int32_t index, weft_tensor *scalar) {
    weft_tensor *parts[3] = {weft_slice(hyper, 0, 0, index), weft_reshape(scalar, weft_shape(1)),
                             weft_slice(hyper, 0, index + 1, WEFTI_HYPER_COUNT)};
    return weft_concat(parts, 3, 0);
}

/* Hyperparameter `index` of the step, a scalar. */
static weft_tensor *hyper_at(weft_tensor *hyper, int32_t index) {
    return weft_reshape(weft_slice(hyper, 0, index, index + 1), weft_shape_scalar());
}

/* The hyperparameters as the updates read them: skip where the host says so or the loss (or the norm) is not finite, scale to the
 * norm. */
static weft_tensor *guarded_hyper(const weft_program *program, wefti_training *training) {
    weft_graph  *graph = program->loss->graph;
    weft_tensor *loss = weft_reshape(weft_cast(program->loss, WEFT_F64), weft_shape_scalar());
    weft_tensor *hyper = training->hyper;
    weft_tensor *skip = weft_or(weft_ne_scalar(hyper_at(hyper, WEFTI_HYPER_SKIP), 0), weft_not(weft_isfinite(loss)));
    if (training->norm) skip = weft_or(skip, weft_not(weft_isfinite(training->norm)));
    if (program->solver.clip_norm > 0) {
        weft_tensor *limit = weft_scalar(graph, WEFT_F64, program->solver.clip_norm);
        weft_tensor *factor = weft_minimum_scalar(weft_div(limit, training->norm), 1);
        if (scales_loss(program)) factor = weft_mul(factor, hyper_at(hyper, WEFTI_HYPER_SCALE));
        hyper = replace(hyper, WEFTI_HYPER_SCALE, factor);
    }
    return replace(hyper, WEFTI_HYPER_SKIP, weft_cast(skip, WEFT_F64));
}

/* A skipped step leaves states alone too: what is assigned then is the old value. The loss may depend on what was assigned, so this
 * needs new nodes at the end; whoever read the old ones reads what they were given, which is the same value. */
static void guard_effects(weft_graph *graph, weft_tensor *hyper) {
    if (graph->n_effects == 0) return;
    for (int32_t id = 0; id < graph->n_nodes; id++)
        for (int32_t i = 0; i < graph->nodes[id]->n_inputs; i++) {
            weft_tensor **input = &graph->nodes[id]->inputs[i];
            bool          written = graph->nodes[id]->op == WEFT_OP_ASSIGN && i == 0;
            while ((*input)->node->op == WEFT_OP_ASSIGN) *input = (*input)->node->inputs[written ? 0 : 1];
        }
    weft_tensor *skip = weft_ne_scalar(hyper_at(hyper, WEFTI_HYPER_SKIP), 0);
    for (int32_t i = 0; i < graph->n_effects; i++) {
        weft_tensor *state = graph->effects[i]->inputs[0];
        weft_tensor *inputs[2] = {state, weft_where(skip, state, graph->effects[i]->inputs[1])};
        weft_tensor *guarded = wefti_emit(graph, WEFT_OP_ASSIGN, NULL, inputs, 2, NULL);
        if (!wefti_poisoned(guarded)) graph->effects[i] = guarded->node;
    }
}

static weft_tensor *solver_state(const weft_tensor *parameter, const wefti_rule *rule, int32_t index) {
    char name[512];
    snprintf(name, sizeof name, "weft.solver.%s%d/%s", rule->name, index, parameter->node->name);
    wefti_leaf leaf = {.init = WEFTI_INIT_VALUE, .a = rule->initial[index], .batch_axis = -1};
    weft_dtype dtype = parameter->dtype == WEFT_BF16 ? WEFT_F32 : parameter->dtype;
    return wefti_emit_leaf(parameter->graph, WEFT_OP_STATE, NULL, dtype, parameter->shape, &leaf, name);
}

/* Numbers that round a parameter are others than those that it began with. */
#define ROUNDING_STREAM UINT64_C(0x9d39247e33776d41)

static void add_update(const weft_program *program, const wefti_rule *rule, weft_tensor *hyper, int32_t index,
                       wefti_training *training) {
    weft_tensor *parameter = training->parameters[index], *gradient = training->gradients[index];
    bool         regular = !parameter->node->leaf->unregularised;
    wefti_attrs  attrs = wefti_no_attrs();
    attrs.update.rule = rule;
    if (regular) {
        attrs.update.l2 = program->regulariser.l2;
        attrs.update.decay = program->solver.weight_decay;
        attrs.update.l1 = program->regulariser.l1;
        attrs.update.group = program->regulariser.group;
    }
    if (parameter->dtype == WEFT_BF16) attrs.update.key = parameter->node->leaf->key ^ ROUNDING_STREAM;
    weft_tensor *inputs[5] = {parameter, gradient, hyper};
    for (int32_t i = 0; i < rule->n_states; i++) inputs[3 + i] = solver_state(parameter, rule, i);
    wefti_emit(parameter->graph, WEFT_OP_UPDATE, &attrs, inputs, 3 + rule->n_states, NULL);
}

/* Where replicas are split, each rank gives the server its part of a gradient, which then is a variable: that is dealt out as parameters are. */
static void add_contribution(const weft_tensor *parameter, weft_tensor *gradient) {
    char       name[512];
    wefti_leaf leaf = {.init = WEFTI_INIT_VALUE, .batch_axis = -1};
    snprintf(name, sizeof name, WEFTI_CONTRIBUTION "%s", parameter->node->name);
    weft_tensor *inputs[2] = {wefti_emit_leaf(parameter->graph, WEFT_OP_STATE, NULL, parameter->dtype, parameter->shape, &leaf, name), gradient};
    weft_tensor *given = wefti_emit(parameter->graph, WEFT_OP_ASSIGN, NULL, inputs, 2, NULL);
    if (!wefti_poisoned(given)) wefti_graph_effect(given);
}

/* What a server cannot do row by row, or what means something only where ranks go together. */
static weft_status check_sync(const weft_program *program) {
    const weft_strategy *s = &program->strategy;
    if (s->sync == WEFT_ALLREDUCE) {
        if (wefti_codec_of((int32_t)s->compress.codec)->exchange == WEFTI_CODEC_SERVED)
            return wefti_fail(WEFT_E_UNSUPPORTED, "strategy: compress.codec %s is for sync = WEFT_SERVER; sums over ranks go with bf16, fp8, fp8-e5m2, topk, powersgd",
                              wefti_codec_of((int32_t)s->compress.codec)->name);
        if (s->staleness == 0 && s->servers == 0 && s->replicas == 0 && s->push == 0 && s->fetch == 0 && s->warm_start == 0 && !s->overlap) return WEFT_OK;
        return wefti_fail(WEFT_E_INVALID, "strategy: staleness %d, servers %d, replicas %d, push %d, fetch %d, warm_start %lld, overlap %d are for sync = WEFT_SERVER",
                          (int)s->staleness, (int)s->servers, (int)s->replicas, (int)s->push, (int)s->fetch, (long long)s->warm_start, s->overlap);
    }
    if (s->staleness < WEFT_TABLE_ASYNCHRONOUS || s->servers < 0)
        return wefti_fail(WEFT_E_INVALID, "strategy: staleness %d (0, more, or WEFT_TABLE_ASYNCHRONOUS), servers %d (not negative)", (int)s->staleness,
                          (int)s->servers);
    if (s->push < 0 || s->fetch < 0 || s->warm_start < 0)
        return wefti_fail(WEFT_E_INVALID, "strategy: push %d, fetch %d, warm_start %lld: none may be negative", (int)s->push, (int)s->fetch, (long long)s->warm_start);
    if (s->staleness == 0 && (s->push > 1 || s->fetch > 1 || s->warm_start || s->overlap))
        return wefti_fail(WEFT_E_INVALID, "strategy: push %d, fetch %d, warm_start %lld, overlap %d want staleness: without it a step needs what the step before came to",
                          (int)s->push, (int)s->fetch, (long long)s->warm_start, s->overlap);
    if (s->overlap && (s->push > 1 || s->fetch > 1))
        return wefti_fail(WEFT_E_INVALID, "strategy: overlap with push %d, fetch %d: it pushes and pulls in every step", (int)s->push, (int)s->fetch);
    const char *what = program->solver.kind == WEFT_LBFGS                 ? "L-BFGS: its steps need whole vectors"
                       : program->solver.clip_norm > 0                    ? "clip_norm: it needs all gradients at once; use clip_value"
                       : s->precision == WEFT_F16                         ? "precision f16: the loss is scaled for all ranks together; use bf16"
                       : s->compress.codec == WEFT_COMPRESS_POWER_SGD     ? "compression powersgd: rows go with bf16, fp8, fp8-e5m2, fixed8, fixed16, "
                                                                            "topk, significant, nonzero"
                                                                          : NULL;
    return what ? wefti_fail(WEFT_E_UNSUPPORTED, "strategy: sync = WEFT_SERVER does not go with %s", what) : WEFT_OK;
}

weft_status wefti_training_check(const weft_program *program) {
    if (!program->loss) return wefti_fail(WEFT_E_INVALID, "the program has no loss");
    if (!program->loss->graph) return wefti_fail(WEFT_E_INVALID, "the program's loss is poisoned: a builder was given NULL");
    WEFTI_TRY(wefti_graph_status(program->loss->graph));
    if (wefti_poisoned(program->loss)) return wefti_fail(WEFT_E_INVALID, "the program's loss is poisoned");
    if (weft_shape_elements(program->loss->shape) != 1)
        return wefti_fail(WEFT_E_SHAPE, "the loss '%s' has shape %s: it must be one element; reduce it with weft_mean or weft_sum",
                          program->loss->node->name, weft_shape_text(program->loss->shape).text);
    if (!weft_dtype_is_float(program->loss->dtype))
        return wefti_fail(WEFT_E_DTYPE, "the loss '%s' is %s: it must be floating", program->loss->node->name,
                          weft_dtype_name(program->loss->dtype));
    WEFTI_TRY(wefti_solver_check(&program->solver));
    const weft_regulariser *r = &program->regulariser;
    if (!(r->l1 >= 0 && r->l2 >= 0 && r->group >= 0 && isfinite(r->l1 + r->l2 + r->group)))
        return wefti_fail(WEFT_E_INVALID, "regulariser: weights must be finite and not negative (l2 %g, l1 %g, group %g)",
                          r->l2, r->l1, r->group);
    if (program->solver.kind == WEFT_LBFGS && (r->l1 > 0 || r->group > 0))
        return wefti_fail(WEFT_E_UNSUPPORTED, "L-BFGS needs a smooth objective: use weft_l2, or another solver with weft_l1, "
                          "weft_elastic_net or weft_group_lasso");
    if (program->strategy.loss_chunk_rows < -1)
        return wefti_fail(WEFT_E_INVALID, "strategy: loss_chunk_rows is %lld; -1 is for all rows at once, else a number of rows",
                          (long long)program->strategy.loss_chunk_rows);
    if (program->strategy.divide_bytes < -1)
        return wefti_fail(WEFT_E_INVALID, "strategy: divide_bytes is %lld; -1 is for never, else a size", (long long)program->strategy.divide_bytes);
    WEFTI_TRY(wefti_compress_check(&program->strategy.compress));
    if (program->strategy.compress.codec != WEFT_COMPRESS_NONE && program->solver.kind == WEFT_LBFGS)
        return wefti_fail(WEFT_E_UNSUPPORTED, "L-BFGS needs gradients as they are: leave strategy.compress zero, or use another solver");
    if (program->strategy.accumulate < 0 || program->strategy.data < 0 || (unsigned)program->strategy.sync > WEFT_SERVER)
        return wefti_fail(WEFT_E_INVALID, "strategy: data %d, sync %d, accumulate %d: none may be negative, sync is WEFT_ALLREDUCE or WEFT_SERVER",
                          program->strategy.data, (int)program->strategy.sync, program->strategy.accumulate);
    return check_sync(program);
}

/* Appends the inputs whose gradients the program wants to the list of what is differentiated by; `loss` is the program's as it is computed. */
static weft_status add_wanted(const weft_program *program, wefti_training *training) {
    weft_graph *graph = program->loss->graph;
    if (program->n_wanted < 0 || program->n_wanted > WEFT_BATCH_MAX_FIELDS || (program->n_wanted > 0 && !program->wanted))
        return wefti_fail(WEFT_E_INVALID, "the program wants the gradients of %d inputs: 0 to %d, and an array of them", (int)program->n_wanted, WEFT_BATCH_MAX_FIELDS);
    if (program->n_wanted == 0) return WEFT_OK;
    bool *mark = reachable(graph, program->loss);
    if (!mark) return wefti_graph_status(graph);
    for (int32_t i = 0; i < program->n_wanted; i++) {
        weft_tensor *input = program->wanted[i];
        if (!input || wefti_poisoned(input) || input->graph != graph || input->node->op != WEFT_OP_INPUT)
            return wefti_fail(WEFT_E_INVALID, "the program wants the gradient of '%s' (number %d), which is no input of the loss's graph",
                              input && input->node ? input->node->name : "NULL", (int)i);
        if (!weft_dtype_is_float(input->dtype))
            return wefti_fail(WEFT_E_DTYPE, "the program wants the gradient of input '%s', which is %s", input->node->name, weft_dtype_name(input->dtype));
        if (!mark[input->node->id])
            return wefti_fail(WEFT_E_INVALID, "the program wants the gradient of input '%s', on which the loss does not depend", input->node->name);
        training->parameters[training->n + i] = input;
    }
    training->n_wanted = program->n_wanted;
    return WEFT_OK;
}

weft_status wefti_training_build(const weft_program *program, wefti_training *training) {
    memset(training, 0, sizeof *training);
    weft_graph *graph = program->loss->graph;
    WEFTI_TRY(wefti_training_find(program, training));
    WEFTI_TRY(add_wanted(program, training));
    weft_tensor *loss = weft_reshape(program->loss, weft_shape_scalar());
    training->hyper = weft_input(graph, "weft.hyper", WEFT_F64, weft_shape(WEFTI_HYPER_COUNT), .replicated = true);
    if (scales_loss(program)) loss = weft_mul(loss, weft_cast(hyper_at(training->hyper, WEFTI_HYPER_LOSS_SCALE), loss->dtype));
    WEFTI_TRY(weft_gradients(loss, training->parameters, training->n + training->n_wanted, training->gradients));
    for (int32_t i = 0; i < training->n; i++) /* norms, sums over ranks and updates are f32 */
        if (training->gradients[i]->dtype == WEFT_BF16) training->gradients[i] = weft_cast(training->gradients[i], WEFT_F32);
    for (int32_t i = training->n; i < training->n + training->n_wanted && scales_loss(program); i++)
        training->gradients[i] = weft_mul(training->gradients[i], weft_cast(hyper_at(training->hyper, WEFTI_HYPER_SCALE), training->gradients[i]->dtype));
    bool judged = program->solver.kind == WEFT_LBFGS && graph->n_effects > 0; /* the host looks at the norm, but after the states */
    if (program->solver.clip_norm > 0 || judged || scales_loss(program)) training->norm = global_norm(graph, training);
    if (scales_loss(program)) training->norm = weft_mul(training->norm, hyper_at(training->hyper, WEFTI_HYPER_SCALE));
    weft_tensor *hyper = guarded_hyper(program, training);
    if (program->solver.kind != WEFT_LBFGS && program->strategy.sync == WEFT_ALLREDUCE) { /* others update outside of the plan */
        const wefti_rule *rule = wefti_rule_for(&program->solver);
        for (int32_t i = 0; i < training->n; i++) add_update(program, rule, hyper, i, training);
    }
    guard_effects(graph, hyper);
    for (int32_t i = 0; i < training->n && wefti_served_in_parts(program); i++) add_contribution(training->parameters[i], training->gradients[i]);
    return wefti_graph_status(graph);
}

/* Training by a parameter server (strategy.sync = WEFT_SERVER): the plan computes gradients, servers keep parameters and solver states and carry out
 * the solver's rule, and every step ends with what they have made of it.
 *
 * Staleness 0: the plan is that of all ranks, so losses, counts and batch statistics mean the global batch, but for gradients, which stay what
 * each rank contributes; servers add the contributions up and make one update of it, which all ranks get. What a contribution is not partial
 * in (a gradient that does not depend on the batch) counts once, on rank 0.
 *
 * Otherwise each rank is a program of its own on its own rows: the plan is that of one rank, and nothing in a step waits for others but a pull that
 * is too far ahead. Random numbers are keyed by step and rank, so that ranks drop out differently.
 *
 * Memory: parameters once more and solver states, on the servers; where a device's memory is not the host's, a gradient and a parameter of each kind
 * in host memory. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/rules/rules.h"
#include "train/trainer.h"
#include "weft/server.h"

/* One parameter. */
typedef struct served_parameter {
    weft_table   *table;
    weft_request *request;
    void         *gradient, *value; /* host memory; NULL: the plan's, the variable's */
    void         *variable;         /* its memory, where that is the host's */
    size_t        bytes;
} served_parameter;

struct wefti_served {
    weft_server      *server;
    served_parameter *parameters; /* [n] */
    int32_t           n;
    bool              sums;       /* staleness 0 */
    int64_t           refreshed;  /* the step after which variables were last what servers have; -1 */
    uint64_t          waited_ns;
};

/* --- opening --- */

static weft_status find_memory(const weft_trainer *trainer, const weft_tensor *parameter, void **memory_out) {
    for (int32_t i = 0; i < weft_variables_count(trainer->variables); i++) {
        weft_variable_info info;
        WEFTI_TRY(weft_variables_info(trainer->variables, i, &info));
        if (strcmp(info.name, parameter->node->name) != 0) continue;
        *memory_out = wefti_variables_memory(trainer->variables, i);
        return WEFT_OK;
    }
    return wefti_fail(WEFT_E_INTERNAL, "there is no variable '%s'", parameter->node->name);
}

/* The solver's rule for one parameter, as the trainer's own updates have it. */
static weft_table_rule rule_of(const weft_program *program, const weft_tensor *parameter) {
    weft_table_rule rule = {.kind = WEFT_TABLE_SOLVER, .solver = program->solver, .regulariser = program->regulariser};
    rule.solver.schedule = (weft_schedule){0}; /* each push says its rate */
    if (parameter->node->leaf->unregularised) {
        rule.regulariser = (weft_regulariser){0, 0, 0};
        rule.solver.weight_decay = 0;
    }
    return rule;
}

static weft_status open_parameter(weft_trainer *trainer, int32_t index) {
    struct wefti_served *served = trainer->served;
    served_parameter    *one = &served->parameters[index];
    const weft_tensor   *parameter = trainer->training.parameters[index];
    int64_t              elements = weft_shape_elements(parameter->shape), width = wefti_rule_row(parameter->shape);
    char                 name[WEFT_TABLE_NAME_BYTES];
    one->bytes = (size_t)elements * weft_dtype_bytes(parameter->dtype);
    if (elements == 0) return WEFT_OK;
    snprintf(name, sizeof name, "weft.parameter.%d", (int)index);
    weft_table_options options = {.name = name, .rows = elements / width, .width = width, .dtype = parameter->dtype,
                                  .rule = rule_of(&trainer->program, parameter), .staleness = trainer->program.strategy.staleness};
    WEFTI_TRY(weft_table_create(served->server, &options, &one->table));
    if (trainer->world->device->vtable->host_memory) return find_memory(trainer, parameter, &one->variable);
    WEFTI_TRY(wefti_alloc(one->bytes, "a gradient's copy", &one->gradient));
    return wefti_alloc(one->bytes, "a parameter's copy", &one->value);
}

weft_status wefti_served_create(weft_trainer *trainer, struct wefti_served **served_out) {
    struct wefti_served *served = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *served, "training by a server", &served));
    *served_out = served;
    served->n = trainer->training.n;
    served->sums = trainer->program.strategy.staleness == 0;
    served->refreshed = -1;
    WEFTI_TRY(wefti_alloc((size_t)served->n * sizeof *served->parameters, "training by a server", &served->parameters));
    weft_server_options options = {.servers = trainer->program.strategy.servers, .in_flight = (int32_t)wefti_min_i64(4096, 2 * (int64_t)served->n + 2)};
    weft_status status = weft_server_create(trainer->world, &options, &served->server);
    for (int32_t i = 0; i < served->n && status == WEFT_OK; i++) status = open_parameter(trainer, i);
    WEFTI_TRY(wefti_agree(trainer->world, status, "making the server's tables"));
    return wefti_served_restore(trainer);
}

void wefti_served_release(struct wefti_served *served) {
    if (!served) return;
    for (int32_t i = 0; served->parameters && i < served->n; i++) {
        served_parameter *one = &served->parameters[i];
        weft_table_release(one->table);
        wefti_free(one->gradient, one->bytes);
        wefti_free(one->value, one->bytes);
    }
    weft_server_release(served->server);
    if (served->parameters) wefti_free(served->parameters, (size_t)served->n * sizeof *served->parameters);
    wefti_free(served, sizeof *served);
}

/* --- between variables and servers --- */

static void *receive_of(const served_parameter *one) { return one->variable ? one->variable : one->value; }

static weft_status start(served_parameter *one, weft_request_kind kind, const void *send, double rate) {
    weft_table_call call = {.kind = kind, .send = send, .receive = receive_of(one), .rate = rate};
    return one->table ? weft_table_start_call(one->table, &call, &one->request) : WEFT_OK;
}

/* Waits for all, whatever becomes of one, and gives the first failure. */
static weft_status finish(struct wefti_served *served, weft_status status) {
    uint64_t begin_ns = wefti_host_now(wefti_host_system());
    char     message[WEFTI_MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", weft_error_message());
    for (int32_t i = 0; i < served->n; i++) {
        if (!served->parameters[i].request) continue;
        weft_status one = weft_request_wait(served->parameters[i].request, 0);
        served->parameters[i].request = NULL;
        if (one == WEFT_OK || status != WEFT_OK) continue;
        status = one;
        snprintf(message, sizeof message, "%s", weft_error_message());
    }
    served->waited_ns += wefti_host_now(wefti_host_system()) - begin_ns;
    return status == WEFT_OK ? WEFT_OK : wefti_fail(status, "%s", message);
}

/* What came goes into variables that are not the host's. */
static weft_status take_values(weft_trainer *trainer) {
    for (int32_t i = 0; i < trainer->served->n; i++) {
        served_parameter  *one = &trainer->served->parameters[i];
        const weft_tensor *p = trainer->training.parameters[i];
        if (one->table && !one->variable) WEFTI_TRY(weft_variables_set(trainer->variables, p->node->name, p->dtype, p->shape, one->value));
    }
    return WEFT_OK;
}

static weft_status pull_all(weft_trainer *trainer) {
    struct wefti_served *served = trainer->served;
    weft_status          status = WEFT_OK;
    for (int32_t i = 0; i < served->n && status == WEFT_OK; i++) status = start(&served->parameters[i], WEFT_PULL, NULL, 0);
    WEFTI_TRY(finish(served, status));
    return take_values(trainer);
}

static weft_status set_all(weft_trainer *trainer) {
    struct wefti_served *served = trainer->served;
    weft_status          status = WEFT_OK;
    for (int32_t i = 0; i < served->n && status == WEFT_OK; i++) {
        served_parameter  *one = &served->parameters[i];
        const weft_tensor *p = trainer->training.parameters[i];
        if (one->value) status = weft_variables_get(trainer->variables, p->node->name, one->value, one->bytes);
        if (status == WEFT_OK) status = start(one, WEFT_SET, receive_of(one), 0);
    }
    return finish(served, status);
}

/* Collective: nobody is in a step, so all that was pushed has come. */
weft_status wefti_served_restore(weft_trainer *trainer) {
    weft_status status = wefti_agree(trainer->world, WEFT_OK, "meeting");
    if (status == WEFT_OK && trainer->world->rank == 0) status = set_all(trainer);
    trainer->served->refreshed = trainer->steps;
    return wefti_agree(trainer->world, status, "giving the parameters to the server");
}

weft_status wefti_served_refresh(weft_trainer *trainer) {
    struct wefti_served *served = trainer->served;
    if (!served || served->sums || served->refreshed == trainer->steps) return WEFT_OK;
    WEFTI_TRY(wefti_agree(trainer->world, WEFT_OK, "meeting"));
    WEFTI_TRY(wefti_agree(trainer->world, pull_all(trainer), "fetching the parameters from the server"));
    served->refreshed = trainer->steps;
    return WEFT_OK;
}

/* --- steps --- */

static weft_status gradient_of(const weft_trainer *trainer, weft_plan *plan, int32_t index, const void **gradient_out) {
    served_parameter *one = &trainer->served->parameters[index];
    weft_plan_value   value;
    WEFTI_TRY(weft_plan_output(plan, WEFTI_OUT_FIRST_GRADIENT + index, &value));
    *gradient_out = value.data;
    if (value.data || !one->bytes) return WEFT_OK;
    *gradient_out = one->gradient;
    return weft_plan_fetch(plan, WEFTI_OUT_FIRST_GRADIENT + index, one->gradient, one->bytes);
}

/* A gradient that is the same on all ranks counts once: the others only end their clock. */
static weft_status start_step(weft_trainer *trainer, int32_t index, const void *gradient, double rate) {
    served_parameter *one = &trainer->served->parameters[index];
    if (!trainer->served->sums) return start(one, WEFT_PUSH, gradient, rate);
    bool whole = trainer->plans.whole && trainer->plans.whole[WEFTI_OUT_FIRST_GRADIENT + index];
    if (!whole || trainer->world->rank == 0) return start(one, WEFT_PUSH_PULL, gradient, rate);
    if (one->table) WEFTI_TRY(weft_table_clock(one->table));
    return start(one, WEFT_PULL, NULL, 0);
}

/* Gives the gradients, or none of a step that is skipped, ends the clock, and gets the parameters. */
static weft_status exchange(weft_trainer *trainer, weft_plan *plan, bool push, double rate) {
    struct wefti_served *served = trainer->served;
    weft_status          status = WEFT_OK;
    for (int32_t i = 0; i < served->n && status == WEFT_OK && push; i++) {
        const void *gradient = NULL;
        status = gradient_of(trainer, plan, i, &gradient);
        if (status == WEFT_OK) status = start_step(trainer, i, gradient, rate);
    }
    WEFTI_TRY(finish(served, status));
    if (served->sums && push) return take_values(trainer);
    for (int32_t i = 0; i < served->n; i++)
        if (served->parameters[i].table) WEFTI_TRY(weft_table_clock(served->parameters[i].table));
    return pull_all(trainer);
}

weft_status wefti_served_step(weft_trainer *trainer, const weft_batch *batch, weft_report *report) {
    struct wefti_served *served = trainer->served;
    const weft_solver   *solver = &trainer->program.solver;
    double               hyper[WEFTI_HYPER_COUNT], value[2] = {0, 0};
    weft_plan           *plan = NULL;
    int64_t              rows = served->sums ? batch->global_rows : batch->local_rows, ranks = trainer->world->size;
    served->waited_ns = 0;
    WEFTI_TRY(wefti_hyper_fill(solver, trainer->steps + 1, hyper));
    report->rate = hyper[WEFTI_HYPER_RATE];
    if (rows > 0) {
        weft_feed            feed = {"weft.hyper", WEFT_F64, weft_shape(WEFTI_HYPER_COUNT), hyper};
        static const int32_t outputs[] = {WEFTI_OUT_LOSS, WEFTI_OUT_OWN_LOSS};
        WEFTI_TRY(wefti_plan_set_get(&trainer->plans, rows, &plan));
        weft_plan_set_step(plan, served->sums ? trainer->steps : trainer->steps * ranks + trainer->world->rank);
        WEFTI_TRY(wefti_plan_set_run(plan, batch, &feed, 1));
        WEFTI_TRY(wefti_plan_scalars(plan, outputs, 2, value));
        report->wait_ns = wefti_plan_wait_ns(plan);
    }
    report->loss = value[0];
    report->evaluations = 1;
    bool finite = isfinite(value[0]);
    report->skipped = !finite;
    WEFTI_TRY(exchange(trainer, plan, finite && rows > 0, report->rate / solver->rate));
    report->wait_ns += served->waited_ns;
    if (finite || trainer->program.ignore_nan) return WEFT_OK;
    if (served->sums) return wefti_trainer_nan(trainer, batch, value[0], 0, value[1]);
    return wefti_fail(WEFT_E_NAN, "rank %d, step %lld: the loss of this rank's rows is %g; nothing was pushed", trainer->world->rank,
                      (long long)trainer->steps + 1, value[0]);
}

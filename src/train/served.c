/* Training by a parameter server (strategy.sync = WEFT_SERVER): the plan computes gradients, servers keep parameters and solver states and carry out
 * the solver's rule, and every step ends with what they have made of it.
 *
 * Staleness 0: the plan is that of all ranks, so losses, counts and batch statistics mean the global batch, but for gradients, which stay what
 * each rank contributes; servers add the contributions up and make one update of it, which all ranks get. What a contribution is not partial
 * in (a gradient that does not depend on the batch) counts once, on rank 0. What the plan reduces goes by way of the server, too (meeting.c), so a
 * rank that dies ends no step.
 *
 * Otherwise each rank, or replica that several make, is a program of its own on its own rows: the plan is that of one rank, and nothing in a step waits for others but a pull that
 * is too far ahead. Random numbers are keyed by step and rank, so that ranks drop out differently.
 *
 * Where replicas are split, each rank's gradients are its own parts of them: states that the plan assigns (WEFTI_CONTRIBUTION). Parts of a parameter stand in its table one behind the
 * other, of which a rank has its rows; all ranks end all clocks. Of those who have the same, one pushes, and with staleness that one alone pulls and the others have it from there, so
 * that they stay alike. Nothing goes by meeting.c: a replica ends with any of its ranks.
 *
 * Memory: parameters once more and solver states, on the servers; where a device's memory is not the host's, a gradient and a parameter of each kind
 * in host memory. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/iface/collective.h"
#include "core/rules/rules.h"
#include "parallel/compress.h"
#include "parallel/server/meeting.h"
#include "parallel/server/states.h"
#include "train/trainer.h"
#include "weft/server.h"

/* One parameter; of replicas that are split, the part that this rank has. */
typedef struct served_parameter {
    weft_table   *table;
    weft_keys    *keys;             /* the part's rows; NULL: all of the table */
    weft_shape    shape;            /* of the part */
    int32_t       index, given;     /* among this rank's variables, of the parameter, -1: others have it; of its contribution, -1: the plan gives it */
    bool          gives;            /* of those in a replica who have the same, this rank pushes */
    weft_request *request, *pushed; /* in flight; `pushed`: of the step before, where steps overlap */
    void         *gradient, *value; /* host memory; NULL: the plan's, the variable's */
    void         *sum;              /* what is pushed later, or is being pushed; NULL: gradients are pushed where they are */
    void         *variable;         /* its memory, where that is the host's and pulls go there */
    size_t        bytes;
    bool          pulls;            /* what `request` is */
} served_parameter;

/* A pull that waits for another rank's clock is answered after so long, and asked again, so that who is held up by a rank that will end no more clocks is not held to the
 * server's timeout. It is no limit on how long a pull takes. */
#define SLICE_NS (UINT64_C(200) * 1000 * 1000)

struct wefti_served {
    weft_server      *server;
    struct wefti_group *meeting;  /* reductions over ranks; NULL: there is one rank */
    served_parameter *parameters; /* [n] */
    int32_t           n;
    bool              sums;       /* staleness 0 */
    bool              plain;      /* this step is not compressed */
    bool              pulled;     /* overlapping steps: a pull has been begun */
    int32_t           push, fetch;
    int64_t           taken, summed; /* steps; those whose gradients are in the sums */
    int64_t           refreshed;  /* the step after which variables were last what servers have; -1 */
    bool              moved;      /* it has come from another world with its rows */
    bool              bounded;    /* staleness above 0, and a rank alone has a replica: pulls wait for the others' clocks, and may be owed */
    bool              owes;       /* a pull that was given up, without which no step computes: its parameters would lack too much */
    uint64_t          waited_ns;
};

/* --- opening --- */

static weft_status find_variable(const weft_trainer *trainer, int32_t index) {
    served_parameter *one = &trainer->served->parameters[index];
    const char       *name = trainer->training.parameters[index]->node->name;
    bool              parts = wefti_served_in_parts(&trainer->program);
    char              given[512];
    snprintf(given, sizeof given, WEFTI_CONTRIBUTION "%s", name);
    one->index = weft_variables_find(trainer->variables, name);
    one->given = parts ? weft_variables_find(trainer->variables, given) : -1;
    if ((one->index < 0 && !parts) || (parts && (one->index < 0) != (one->given < 0)))
        return wefti_fail(WEFT_E_INTERNAL, "there is no variable '%s'", one->index < 0 ? name : given);
    return WEFT_OK;
}

/* Rows of the part: parts of a parameter, which are of one shape, stand in its table one behind the other. */
static weft_status find_rows(served_parameter *one, const wefti_window_of *window, int64_t rows) {
    uint64_t   *list = NULL;
    weft_status status;
    if (window->ranks <= 1 || one->index < 0 || one->keys) return WEFT_OK;
    WEFTI_TRY(wefti_alloc((size_t)rows * sizeof *list, "rows of a part", &list));
    for (int64_t i = 0; i < rows; i++) list[i] = (uint64_t)(window->rank * rows + i);
    status = weft_keys_create(one->table, list, rows, &one->keys);
    wefti_free(list, (size_t)rows * sizeof *list);
    return status;
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

/* How gradients are pushed; the trainer's steps know of the warm-up. */
static weft_compression push_of(const weft_trainer *trainer, const weft_tensor *parameter) {
    weft_compression how = trainer->program.strategy.compress;
    if (trainer->world->size < 2 || wefti_served_in_parts(&trainer->program) || !wefti_compress_takes(&how, parameter->dtype, parameter->shape)) return (weft_compression){.codec = WEFT_COMPRESS_NONE};
    how.warmup = how.least = 0;
    how.rank = 0;
    return how;
}

/* Memory between this rank's variables and the servers. */
static weft_status open_buffers(const weft_trainer *trainer, served_parameter *one) {
    bool host = trainer->world->device->vtable->host_memory, overlap = trainer->program.strategy.overlap;
    if (one->index < 0) return WEFT_OK;
    if ((trainer->served->push > 1 || overlap) && !one->sum) WEFTI_TRY(wefti_alloc(one->bytes, "a gradient's copy", &one->sum));
    if (!host && !one->gradient) WEFTI_TRY(wefti_alloc(one->bytes, "a gradient's copy", &one->gradient));
    if (!host || overlap) return one->value ? WEFT_OK : wefti_alloc(one->bytes, "a parameter's copy", &one->value);
    one->variable = wefti_variables_memory(trainer->variables, one->index);
    return WEFT_OK;
}

static weft_status open_parameter(weft_trainer *trainer, int32_t index) {
    struct wefti_served  *served = trainer->served;
    served_parameter     *one = &served->parameters[index];
    const weft_tensor    *parameter = trainer->training.parameters[index];
    const wefti_window_of window = wefti_trainer_window(trainer, parameter->node->name);
    const int32_t        *place = trainer->mesh.index, parts = window.ranks > 1 ? window.ranks : 1;
    one->shape = wefti_window_shape(&window, parameter->shape);
    int64_t elements = weft_shape_elements(one->shape), width = wefti_rule_row(one->shape);
    char    name[WEFT_TABLE_NAME_BYTES];
    one->bytes = (size_t)elements * weft_dtype_bytes(parameter->dtype);
    WEFTI_TRY(find_variable(trainer, index));
    one->gives = one->index >= 0 && place[WEFTI_MESH_SEQUENCE] == 0 && (parts > 1 || place[WEFTI_MESH_TENSOR] == 0);
    if (elements == 0) return WEFT_OK;
    snprintf(name, sizeof name, "weft.parameter.%d", (int)index);
    weft_table_options options = {.name = name, .rows = parts * (elements / width), .width = width, .dtype = parameter->dtype,
                                  .rule = rule_of(&trainer->program, parameter), .staleness = trainer->program.strategy.staleness,
                                  .push = push_of(trainer, parameter)};
    if (!one->table) WEFTI_TRY(weft_table_create(served->server, &options, &one->table));
    WEFTI_TRY(find_rows(one, &window, elements / width));
    return open_buffers(trainer, one);
}

static weft_status open_meeting(weft_trainer *trainer) {
    struct wefti_served *served = trainer->served;
    if (trainer->world->size == 1 || wefti_served_in_parts(&trainer->program)) return WEFT_OK; /* a rank that dies ends its replica, whatever others reduce by */
    WEFTI_TRY(wefti_meeting_open(served->server, trainer->world->group, &served->meeting));
    trainer->met = *trainer->world;
    trainer->met.group = served->meeting;
    trainer->met.device_group = NULL;
    trainer->met.groups = NULL;
    return WEFT_OK;
}

/* As the strategy has it. `follows`: in a world that follows another one, where there may be fewer ranks than it has servers: then all serve, and one alone
 * has no replica. Survivors and newcomers ask for the same. */
static weft_server_options options_of(const weft_trainer *trainer, bool follows) {
    const weft_strategy *strategy = &trainer->program.strategy;
    weft_server_options  options = {.servers = strategy->servers, .replicas = strategy->replicas, .functions = &wefti_meeting_rule, .function_count = 1,
                                    .in_flight = (int32_t)wefti_min_i64(4096, 2 * (int64_t)trainer->training.n + 18)};
    if (follows && options.servers > trainer->world->size) options.servers = 0;
    if (follows && (options.servers == 1 || trainer->world->size == 1)) options.replicas = 0;
    return options;
}

weft_status wefti_served_open(weft_trainer *trainer, struct wefti_served **served_out) {
    struct wefti_served *served = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *served, "training by a server", &served));
    *served_out = served;
    served->n = trainer->training.n;
    served->sums = trainer->program.strategy.staleness == 0;
    served->bounded = trainer->program.strategy.staleness > 0 && !wefti_served_in_parts(&trainer->program);
    served->refreshed = -1;
    served->push = trainer->program.strategy.push > 0 ? trainer->program.strategy.push : 1;
    served->fetch = trainer->program.strategy.fetch > 0 ? trainer->program.strategy.fetch : 1;
    WEFTI_TRY(wefti_alloc((size_t)served->n * sizeof *served->parameters, "training by a server", &served->parameters));
    weft_server_options options = options_of(trainer, weft_world_is_replacement(trainer->world));
    WEFTI_TRY(weft_server_create(trainer->world, &options, &served->server));
    return open_meeting(trainer);
}

static weft_status drop_steps(weft_trainer *trainer);

weft_status wefti_served_move(weft_trainer *trainer) {
    struct wefti_served *served = trainer->served;
    weft_server_options  options = options_of(trainer, true);
    weft_status          dropped = drop_steps(trainer); /* of ranks that are gone: what was lost of them is told by the next */
    (void)dropped;
    WEFTI_TRY(weft_server_resize(served->server, trainer->world, &options, NULL));
    wefti_meeting_leave(served->meeting);
    served->meeting = NULL;
    trainer->met = (weft_world){0};
    served->moved = true;
    return open_meeting(trainer);
}

/* Its variables are others again. */
weft_status wefti_served_find(weft_trainer *trainer) {
    for (int32_t i = 0; i < trainer->served->n; i++) {
        served_parameter *one = &trainer->served->parameters[i];
        WEFTI_TRY(find_variable(trainer, i));
        if (one->variable) one->variable = wefti_variables_memory(trainer->variables, one->index);
    }
    return WEFT_OK;
}

weft_status wefti_served_create(weft_trainer *trainer) {
    weft_status status = WEFT_OK;
    for (int32_t i = 0; i < trainer->served->n && status == WEFT_OK; i++) status = open_parameter(trainer, i);
    WEFTI_TRY(wefti_agree(wefti_trainer_meets(trainer), status, "making the server's tables"));
    return wefti_served_restore(trainer, NULL, 0);
}

static weft_status finish(struct wefti_served *served, weft_status status);
static weft_status finish_pushes(struct wefti_served *served);

void wefti_served_release(struct wefti_served *served) {
    if (!served) return;
    if (served->parameters) (void)!finish_pushes(served);
    if (served->parameters) (void)!finish(served, WEFT_OK);
    for (int32_t i = 0; served->parameters && i < served->n; i++) {
        served_parameter *one = &served->parameters[i];
        weft_keys_release(one->keys);
        weft_table_release(one->table);
        wefti_free(one->gradient, one->bytes);
        wefti_free(one->value, one->bytes);
        wefti_free(one->sum, one->bytes);
    }
    weft_server_release(served->server);
    wefti_meeting_close(served->meeting);
    if (served->parameters) wefti_free(served->parameters, (size_t)served->n * sizeof *served->parameters);
    wefti_free(served, sizeof *served);
}

/* --- between variables and servers --- */

static void *receive_of(const served_parameter *one) { return one->variable ? one->variable : one->value; }

/* What this rank has no part in is left to those who do. With staleness 0 all see the same and pull what they have; else those who have the same might see
 * different pushes, so one pulls for all (spread). */
static bool takes_part(const struct wefti_served *served, const served_parameter *one, weft_request_kind kind) {
    return one->table && one->index >= 0 && (one->gives || (kind == WEFT_PULL && served->sums));
}

static weft_status start(const struct wefti_served *served, served_parameter *one, weft_request_kind kind, const void *send, double rate) {
    weft_table_call call = {.kind = kind, .keys = one->keys, .send = send, .receive = receive_of(one), .rate = rate, .plain = served->plain};
    one->pulls = kind == WEFT_PULL;
    return takes_part(served, one, kind) ? wefti_table_start_slice(one->table, &call, one->pulls && served->bounded ? SLICE_NS : 0, &one->request) : WEFT_OK;
}

/* Waits for one request, and keeps the first failure of several. */
static weft_status wait_for(struct wefti_served *served, weft_request **request, weft_status before) {
    char message[WEFTI_MESSAGE_BYTES];
    if (!*request) return before;
    uint64_t begin_ns = wefti_host_now(wefti_host_system());
    if (before != WEFT_OK) snprintf(message, sizeof message, "%s", weft_error_message());
    weft_status status = weft_request_wait(*request, 0);
    *request = NULL;
    served->waited_ns += wefti_host_now(wefti_host_system()) - begin_ns;
    return before == WEFT_OK ? status : wefti_fail(before, "%s", message);
}

/* As wait_for, of what is asked in slices. `world` (NULL: none): once it has a fault, a pull that is held up for a slice is given up, and *held_out set. */
static weft_status wait_in_slices(struct wefti_served *served, served_parameter *one, weft_status before, const weft_world *world, bool *held_out) {
    const bool     sliced = before == WEFT_OK && served->bounded && one->pulls && one->request;
    const uint64_t until_ns = sliced ? wefti_host_now(wefti_host_system()) + (uint64_t)wefti_server_timeout(served->server) : 0;
    while (sliced && one->request) {
        weft_status status = wait_for(served, &one->request, WEFT_OK);
        if (status != WEFT_E_TIMEOUT) return status;
        if (world && wefti_fault_status(world->fault) != WEFT_OK) {
            *held_out = true;
            return WEFT_OK;
        }
        if (wefti_host_now(wefti_host_system()) >= until_ns) return wefti_fail(status, "%s", weft_error_message());
        WEFTI_TRY(start(served, one, WEFT_PULL, NULL, 0));
    }
    return wait_for(served, &one->request, before);
}

static weft_status finish_or_hold(struct wefti_served *served, weft_status status, const weft_world *world, bool *held_out) {
    for (int32_t i = 0; i < served->n; i++) status = wait_in_slices(served, &served->parameters[i], status, world, held_out);
    return status;
}

/* Waits for all, whatever becomes of one. */
static weft_status finish(struct wefti_served *served, weft_status status) { return finish_or_hold(served, status, NULL, NULL); }

static weft_status finish_pushes(struct wefti_served *served) {
    weft_status status = WEFT_OK;
    for (int32_t i = 0; i < served->n; i++) status = wait_for(served, &served->parameters[i].pushed, status);
    return status;
}

/* From who pulled to those of its replica who have the same, along one axis and then along the other. */
static weft_status spread(weft_trainer *trainer) {
    const struct wefti_served *served = trainer->served;
    const wefti_mesh          *mesh = &trainer->mesh;
    for (int32_t i = 0; i < served->n && !served->sums && wefti_served_in_parts(&trainer->program); i++) {
        const served_parameter *one = &served->parameters[i];
        if (!one->table || one->index < 0) continue;
        wefti_collective_call call = {.kind = WEFTI_BROADCAST, .dtype = WEFT_U8, .send = receive_of(one), .receive = receive_of(one), .count = one->bytes};
        if (mesh->extent[WEFTI_MESH_TENSOR] > 1 && !one->keys && mesh->index[WEFTI_MESH_SEQUENCE] == 0)
            WEFTI_TRY(wefti_collective_run(mesh->groups[wefti_mesh_group(WEFTI_MESH_TENSOR)], &call));
        if (mesh->extent[WEFTI_MESH_SEQUENCE] > 1) WEFTI_TRY(wefti_collective_run(mesh->groups[wefti_mesh_group(WEFTI_MESH_SEQUENCE)], &call));
    }
    return WEFT_OK;
}

/* What came goes to who has the same, and into variables that are not the host's. */
static weft_status take_values(weft_trainer *trainer) {
    WEFTI_TRY(spread(trainer));
    for (int32_t i = 0; i < trainer->served->n; i++) {
        served_parameter *one = &trainer->served->parameters[i];
        if (one->table && one->value) WEFTI_TRY(wefti_variables_put(trainer->variables, one->index, one->value));
    }
    return WEFT_OK;
}

/* `may_hold`: a pull that other ranks hold up, after a fault, is owed, and the parameters are not all as new as they ought to be. */
static weft_status pull_or_owe(weft_trainer *trainer, bool may_hold) {
    struct wefti_served *served = trainer->served;
    weft_status          status = WEFT_OK;
    bool                 held = false;
    for (int32_t i = 0; i < served->n && status == WEFT_OK; i++) status = start(served, &served->parameters[i], WEFT_PULL, NULL, 0);
    status = finish_or_hold(served, status, may_hold ? trainer->world : NULL, &held);
    served->owes = held || (status == WEFT_E_TIMEOUT && served->bounded);
    return status != WEFT_OK || held ? status : take_values(trainer);
}

static weft_status pull_all(weft_trainer *trainer) { return pull_or_owe(trainer, false); }

static weft_status set_all(weft_trainer *trainer) {
    struct wefti_served *served = trainer->served;
    weft_status          status = WEFT_OK;
    for (int32_t i = 0; i < served->n && status == WEFT_OK; i++) {
        served_parameter *one = &served->parameters[i];
        if (one->value) status = wefti_variables_take(trainer->variables, one->index, one->value);
        if (status == WEFT_OK) status = start(served, one, WEFT_SET, receive_of(one), 0);
    }
    return finish(served, status);
}

bool wefti_served_all_are_there(const struct wefti_served *served) {
    return !served->meeting || wefti_meeting_members(served->meeting) == served->meeting->size;
}
weft_table *wefti_served_table(const struct wefti_served *served, int32_t parameter) { return served->parameters[parameter].table; }
weft_server *wefti_served_server(struct wefti_served *served) { return served ? served->server : NULL; }

static weft_status push_sums(weft_trainer *trainer, double rate);

bool wefti_served_has(const weft_trainer *trainer, const char *variable) {
    for (int32_t i = 0; i < trainer->served->n; i++)
        if (trainer->served->parameters[i].table && strcmp(trainer->training.parameters[i]->node->name, variable) == 0) return true;
    return false;
}

/* What is under way, or was added up to be pushed, is of a run that is being left. */
static weft_status drop_steps(weft_trainer *trainer) {
    struct wefti_served *served = trainer->served;
    bool                 held = false;
    /* The world that these were asked in, which has the fault: a trainer that moves is in the next one already. */
    weft_status status = finish_or_hold(served, WEFT_OK, wefti_server_world(served->server), &held), pushed = finish_pushes(served);
    for (int32_t i = 0; i < served->n; i++)
        if (served->parameters[i].sum) memset(served->parameters[i].sum, 0, served->parameters[i].bytes);
    served->summed = 0;
    served->pulled = false;
    return status != WEFT_OK ? status : pushed;
}

/* Nobody is in a step once all have dropped theirs, so all that was pushed has come. */
weft_status wefti_served_restore(weft_trainer *trainer, const wefti_served_states *states, int32_t lead) {
    const bool parts = wefti_served_in_parts(&trainer->program), leads = trainer->world->rank == lead;
    const bool sets = parts ? wefti_trainer_data_rank(trainer) == 0 : leads; /* of a split run no rank has all */
    WEFTI_TRY(wefti_agree(wefti_trainer_meets(trainer), drop_steps(trainer), "ending what was under way"));
    weft_status status = sets && !trainer->served->moved ? set_all(trainer) : WEFT_OK;
    trainer->served->moved = false;
    if (status == WEFT_OK && leads && states) status = wefti_served_states_set(trainer, states);
    WEFTI_TRY(wefti_agree_with(trainer, lead, status, "giving the parameters to the server"));
    trainer->served->refreshed = trainer->steps;
    if (!states) return WEFT_OK; /* a new run: all ranks have drawn the same */
    return wefti_agree(wefti_trainer_meets(trainer), leads && !parts ? WEFT_OK : pull_all(trainer), "fetching the parameters from the server");
}

/* Clocks of ranks differ by what the bound allows, and newcomers begin in that of the slowest: all go on from the latest, so that none has steps to take that the others
 * do not. */
static weft_status level_clocks(weft_trainer *trainer) {
    const struct wefti_served *served = trainer->served;
    weft_world                *met = wefti_trainer_meets(trainer);
    int64_t                    latest = 0;
    for (int32_t i = 0; i < served->n; i++)
        if (served->parameters[i].table) latest = wefti_max_i64(latest, weft_table_time(served->parameters[i].table));
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_I64, .op = WEFTI_REDUCE_MAX, .send = &latest, .receive = &latest, .count = 1};
    if (met->size > 1) WEFTI_TRY(wefti_collective_run(met->group, &call));
    for (int32_t i = 0; i < served->n; i++)
        while (served->parameters[i].table && weft_table_time(served->parameters[i].table) < latest) WEFTI_TRY(weft_table_clock(served->parameters[i].table));
    return WEFT_OK;
}

weft_status wefti_served_pull(weft_trainer *trainer) {
    if (trainer->served->bounded) WEFTI_TRY(level_clocks(trainer));
    trainer->served->refreshed = trainer->steps;
    return pull_all(trainer);
}

int32_t wefti_served_lost(const weft_trainer *trainer) {
    const struct wefti_served *served = trainer->served;
    if (!served->sums) return wefti_fault_status(trainer->world->fault) != WEFT_OK;
    return served->meeting ? served->meeting->size - wefti_meeting_members(served->meeting) : 0;
}

weft_status wefti_served_refresh(weft_trainer *trainer) {
    struct wefti_served *served = trainer->served;
    if (!served || served->sums || served->refreshed == trainer->steps) return WEFT_OK;
    weft_status status = finish(served, WEFT_OK);
    if (status == WEFT_OK) status = finish_pushes(served);
    if (status == WEFT_OK) status = push_sums(trainer, 1);
    WEFTI_TRY(wefti_agree(wefti_trainer_meets(trainer), status, "giving the last gradients to the server"));
    WEFTI_TRY(wefti_agree(wefti_trainer_meets(trainer), pull_all(trainer), "fetching the parameters from the server"));
    served->pulled = false;
    served->refreshed = trainer->steps;
    return WEFT_OK;
}

/* --- gradients --- */

static weft_status gradient_of(const weft_trainer *trainer, weft_plan *plan, int32_t index, void **gradient_out) {
    served_parameter *one = &trainer->served->parameters[index];
    weft_plan_value   value;
    if (one->given >= 0 && !one->gradient) *gradient_out = wefti_variables_memory(trainer->variables, one->given);
    else *gradient_out = one->gradient;
    if (one->given >= 0) return one->gradient ? wefti_variables_take(trainer->variables, one->given, one->gradient) : WEFT_OK;
    WEFTI_TRY(weft_plan_output(plan, WEFTI_OUT_FIRST_GRADIENT + index, &value));
    *gradient_out = (void *)value.data;
    if (value.data || !one->bytes) return WEFT_OK;
    *gradient_out = one->gradient;
    return weft_plan_fetch(plan, WEFTI_OUT_FIRST_GRADIENT + index, one->gradient, one->bytes);
}

/* to += scale * from. */
static void add(weft_dtype dtype, int64_t count, double scale, const void *from, void *to) {
    for (int64_t i = 0; i < count; i++)
        if (dtype == WEFT_F64) ((double *)to)[i] += scale * ((const double *)from)[i];
        else ((float *)to)[i] += (float)scale * ((const float *)from)[i];
}

/* --- steps without staleness --- */

static void multiply(weft_dtype dtype, int64_t count, double factor, void *values) {
    for (int64_t i = 0; i < count; i++)
        if (dtype == WEFT_F64) ((double *)values)[i] *= factor;
        else ((float *)values)[i] *= (float)factor;
}

/* A gradient that is the same on all ranks counts once: the others only end their clock. Where ranks are gone, those of the others stand for theirs,
 * as in what they reduce (meeting.c). */
static weft_status start_sum(weft_trainer *trainer, int32_t index, void *gradient, double rate) {
    served_parameter  *one = &trainer->served->parameters[index];
    const weft_tensor *p = trainer->training.parameters[index];
    bool               whole = trainer->plans.whole && trainer->plans.whole[WEFTI_OUT_FIRST_GRADIENT + index];
    int32_t            all = trainer->world->size, there = trainer->served->meeting ? wefti_meeting_members(trainer->served->meeting) : all;
    if (there < all) multiply(p->dtype, weft_shape_elements(p->shape), (whole ? 1.0 : (double)all) / there, gradient);
    if (one->gives && (!whole || there < all || trainer->world->rank == 0)) return start(trainer->served, one, WEFT_PUSH_PULL, gradient, rate);
    if (one->table) WEFTI_TRY(weft_table_clock(one->table));
    return start(trainer->served, one, WEFT_PULL, NULL, 0);
}

static weft_status end_clocks(const struct wefti_served *served) {
    for (int32_t i = 0; i < served->n; i++)
        if (served->parameters[i].table) WEFTI_TRY(weft_table_clock(served->parameters[i].table));
    return WEFT_OK;
}

/* Gives the gradients, or none of a step that is skipped, ends the clock, and gets the parameters. */
static weft_status exchange_sums(weft_trainer *trainer, weft_plan *plan, bool push, double rate) {
    struct wefti_served *served = trainer->served;
    weft_status          status = WEFT_OK;
    if (!push) {
        WEFTI_TRY(end_clocks(served));
        return pull_all(trainer);
    }
    for (int32_t i = 0; i < served->n && status == WEFT_OK; i++) {
        void *gradient = NULL;
        if (served->parameters[i].index >= 0) status = gradient_of(trainer, plan, i, &gradient);
        if (status == WEFT_OK) status = start_sum(trainer, i, gradient, rate);
    }
    WEFTI_TRY(finish(served, status));
    return take_values(trainer);
}

/* --- steps with it --- */

/* Of the first steps, which rank 0 takes alone. */
static bool is_warming(const weft_trainer *trainer) { return trainer->steps < trainer->program.strategy.warm_start && wefti_trainer_data_ranks(trainer) > 1; }

/* Pushes what has been added up. */
static weft_status push_sums(weft_trainer *trainer, double rate) {
    struct wefti_served *served = trainer->served;
    weft_status          status = WEFT_OK;
    if (served->summed == 0) return WEFT_OK;
    for (int32_t i = 0; i < served->n && status == WEFT_OK; i++) status = start(served, &served->parameters[i], WEFT_PUSH, served->parameters[i].sum, rate);
    status = finish(served, status);
    for (int32_t i = 0; i < served->n; i++)
        if (served->parameters[i].bytes && served->parameters[i].sum) memset(served->parameters[i].sum, 0, served->parameters[i].bytes);
    served->summed = 0;
    return status;
}

/* A rank's own step from its own parameters, until it fetches. */
static weft_status step_alone(weft_trainer *trainer, int32_t index, const void *gradient, double rate) {
    served_parameter  *one = &trainer->served->parameters[index];
    const weft_tensor *p = trainer->training.parameters[index];
    if (one->value) WEFTI_TRY(wefti_variables_take(trainer->variables, one->index, one->value));
    add(p->dtype, weft_shape_elements(one->shape), -rate, gradient, receive_of(one));
    return one->value ? wefti_variables_put(trainer->variables, one->index, one->value) : WEFT_OK;
}

/* Gradients are pushed at once, or added to what is pushed later. */
static weft_status give(weft_trainer *trainer, weft_plan *plan, double rate, bool fetches) {
    struct wefti_served *served = trainer->served;
    weft_status          status = WEFT_OK;
    for (int32_t i = 0; i < served->n && status == WEFT_OK; i++) {
        served_parameter  *one = &served->parameters[i];
        const weft_tensor *p = trainer->training.parameters[i];
        void              *gradient = NULL;
        if (one->index < 0) continue;
        status = gradient_of(trainer, plan, i, &gradient);
        if (status != WEFT_OK || !one->table) continue;
        if (one->sum) add(p->dtype, weft_shape_elements(one->shape), 1, gradient, one->sum);
        else status = start(served, one, WEFT_PUSH, gradient, rate);
        if (status == WEFT_OK && !fetches) status = step_alone(trainer, i, gradient, rate * trainer->program.solver.rate);
    }
    served->summed += served->push > 1;
    return finish(served, status);
}

static weft_status exchange_stale(weft_trainer *trainer, weft_plan *plan, bool push, double rate) {
    struct wefti_served *served = trainer->served;
    served->taken++;
    bool fetches = served->taken % served->fetch == 0;
    if (push) WEFTI_TRY(give(trainer, plan, rate, fetches));
    if (served->taken % served->push == 0) WEFTI_TRY(push_sums(trainer, rate));
    if (trainer->program.strategy.staleness > 0 && !is_warming(trainer)) WEFTI_TRY(end_clocks(served));
    return fetches ? pull_or_owe(trainer, true) : WEFT_OK;
}

/* --- steps that overlap --- */

/* Before a step computes: what was pulled meanwhile becomes its parameters, and the next pull begins. The first step has those that were set. Where that pull is
 * held up after a fault it is owed. */
static weft_status begin_overlapped(weft_trainer *trainer) {
    struct wefti_served *served = trainer->served;
    bool                 held = false;
    weft_status          status = finish_or_hold(served, WEFT_OK, trainer->world, &held);
    served->owes = held;
    if (held) {
        served->pulled = false;
        return status;
    }
    if (status == WEFT_OK && served->pulled) status = take_values(trainer);
    for (int32_t i = 0; i < served->n && status == WEFT_OK; i++) status = start(served, &served->parameters[i], WEFT_PULL, NULL, 0);
    served->pulled = true;
    return status;
}

/* After it: the push before has had a whole step's time. The plan's gradients are overwritten by the next step, so they are copied. */
static weft_status end_overlapped(weft_trainer *trainer, weft_plan *plan, bool push, double rate) {
    struct wefti_served *served = trainer->served;
    WEFTI_TRY(finish_pushes(served));
    for (int32_t i = 0; i < served->n && push; i++) {
        served_parameter *one = &served->parameters[i];
        void             *gradient = NULL;
        if (!one->gives) continue;
        WEFTI_TRY(gradient_of(trainer, plan, i, &gradient));
        if (!one->table) continue;
        memcpy(one->sum, gradient, one->bytes);
        weft_table_call call = {.kind = WEFT_PUSH, .keys = one->keys, .send = one->sum, .rate = rate, .plain = served->plain};
        WEFTI_TRY(weft_table_start_call(one->table, &call, &one->pushed));
    }
    return trainer->program.strategy.staleness > 0 && !is_warming(trainer) ? end_clocks(served) : WEFT_OK;
}

/* --- a warm start --- */

/* Rank 0 in it ends no clock, so it waits for nobody; the others do nothing. After the last step all have what it came to. Rank 0 may die: then the others
 * begin from what there is. */
static weft_status end_warm_step(weft_trainer *trainer, double rate) {
    struct wefti_served *served = trainer->served;
    if (trainer->steps + 1 < trainer->program.strategy.warm_start) return WEFT_OK;
    weft_status status = finish(served, WEFT_OK);
    if (status == WEFT_OK) status = finish_pushes(served);
    if (status == WEFT_OK) status = push_sums(trainer, rate);
    served->pulled = false;
    WEFTI_TRY(wefti_agree(wefti_trainer_meets(trainer), status, "the warm start"));
    /* Nobody pushes before all have what rank 0 came to. */
    return wefti_agree(wefti_trainer_meets(trainer), pull_all(trainer), "the warm start");
}

/* --- a step --- */

static weft_status compute(weft_trainer *trainer, const weft_batch *batch, int64_t rows, double *hyper, weft_plan **plan_out, double *losses_out) {
    weft_feed            feed = {"weft.hyper", WEFT_F64, weft_shape(WEFTI_HYPER_COUNT), hyper};
    static const int32_t outputs[] = {WEFTI_OUT_LOSS, WEFTI_OUT_OWN_LOSS};
    int64_t              replicas = wefti_trainer_data_ranks(trainer);
    WEFTI_TRY(wefti_plan_set_get(&trainer->plans, rows, plan_out));
    weft_plan_set_step(*plan_out, trainer->served->sums ? trainer->steps : trainer->steps * replicas + wefti_trainer_data_rank(trainer));
    WEFTI_TRY(wefti_plan_set_run(*plan_out, batch, &feed, 1));
    return wefti_plan_scalars(*plan_out, outputs, 2, losses_out);
}

weft_status wefti_served_step(weft_trainer *trainer, const weft_batch *batch, weft_report *report) {
    struct wefti_served *served = trainer->served;
    const weft_strategy *strategy = &trainer->program.strategy;
    double               hyper[WEFTI_HYPER_COUNT], losses[2] = {0, 0};
    weft_plan           *plan = NULL;
    int64_t              rows = served->sums ? batch->global_rows : batch->local_rows;
    served->waited_ns = 0;
    served->plain = trainer->steps < strategy->compress.warmup;
    WEFTI_TRY(wefti_hyper_fill(&trainer->program.solver, trainer->steps + 1, hyper));
    report->rate = hyper[WEFTI_HYPER_RATE];
    report->evaluations = 1;
    report->staleness = strategy->staleness < 0 ? -1 : strategy->staleness + strategy->overlap;
    if (is_warming(trainer) && wefti_trainer_data_rank(trainer) != 0) {
        report->skipped = true;
        return end_warm_step(trainer, 1);
    }
    if (served->owes) WEFTI_TRY(pull_all(trainer));
    if (strategy->overlap) WEFTI_TRY(begin_overlapped(trainer));
    if (served->owes) {
        report->skipped = true;
        return end_clocks(served); /* a step of this rank all the same: where its clocks fell behind its steps, others would wait for them when it has none left */
    }
    if (rows > 0) WEFTI_TRY(compute(trainer, batch, rows, hyper, &plan, losses));
    if (plan) report->wait_ns = wefti_plan_wait_ns(plan);
    report->loss = losses[0];
    bool   finite = isfinite(losses[0]), push = finite && rows > 0;
    double rate = report->rate / trainer->program.solver.rate;
    report->skipped = !finite;
    WEFTI_TRY(served->sums        ? exchange_sums(trainer, plan, push, rate)
              : strategy->overlap ? end_overlapped(trainer, plan, push, rate)
                                  : exchange_stale(trainer, plan, push, rate));
    if (is_warming(trainer)) WEFTI_TRY(end_warm_step(trainer, rate));
    report->wait_ns += served->waited_ns;
    if (finite || trainer->program.ignore_nan) return WEFT_OK;
    if (served->sums) return wefti_trainer_nan(trainer, batch, losses[0], 0, losses[1]);
    return wefti_fail(WEFT_E_NAN, "rank %d, step %lld: the loss of this rank's rows is %g; nothing was pushed", trainer->world->rank,
                      (long long)trainer->steps + 1, losses[0]);
}

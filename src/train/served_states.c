/* Solver states that a parameter server keeps, in checkpoints: under the names that states of a run by allreduce have, so that a run may go on under either.
 * One rank (lead.c) fetches and gives all of them; it holds them while it writes or reads. A file without them begins them anew. */
#include <stdio.h>
#include <string.h>

#include "core/rules/rules.h"
#include "parallel/server/states.h"
#include "train/trainer.h"

#define UPDATES "weft.server_updates"

/* --- where they are --- */

typedef struct state {
    const weft_tensor *parameter;
    weft_table        *table;
    int32_t            index, number; /* of the parameter; of the state */
    char               name[512];
    size_t             at, bytes;
} state;

/* The next one after `s`, which begins as zero; false: there is none. */
static bool next_state(const weft_trainer *trainer, const wefti_rule *rule, state *s) {
    if (s->parameter) s->number++;
    s->at += s->bytes;
    for (; s->index < trainer->training.n; s->index++, s->number = 0) {
        s->parameter = trainer->training.parameters[s->index];
        s->table = wefti_served_table(trainer->served, s->index);
        s->bytes = (size_t)weft_shape_elements(s->parameter->shape) * weft_dtype_bytes(s->parameter->dtype);
        if (s->number < rule->n_states && s->table) break;
    }
    if (s->index == trainer->training.n) return false;
    snprintf(s->name, sizeof s->name, "weft.solver.%s%d/%s", rule->name, (int)s->number, s->parameter->node->name);
    return true;
}

static const wefti_rule *rule_of(const weft_trainer *trainer) { return wefti_rule_for(&trainer->program.solver); }

static weft_status make_room(const weft_trainer *trainer, wefti_served_states *states) {
    state  s = {0};
    size_t total = 0, updates = (size_t)trainer->training.n * sizeof(int64_t);
    while (next_state(trainer, rule_of(trainer), &s)) total = s.at + s.bytes;
    states->n = trainer->training.n;
    WEFTI_TRY(wefti_alloc(updates, "numbers of updates", &states->updates));
    if (total == 0) return WEFT_OK;
    weft_status status = wefti_alloc(total, "solver states of the parameter server", &states->memory);
    states->size_bytes = status == WEFT_OK ? total : 0;
    return status;
}

void wefti_served_states_release(wefti_served_states *states) {
    if (states->memory) wefti_free(states->memory, states->size_bytes);
    if (states->updates) wefti_free(states->updates, (size_t)states->n * sizeof *states->updates);
    *states = (wefti_served_states){0};
}

/* --- between the servers and the lead --- */

static weft_status move_rows(const state *s, weft_request_kind kind, void *rows, int64_t *updates) {
    weft_request *request = NULL;
    WEFTI_TRY(wefti_table_start_state(s->table, kind, s->number, rows, updates, &request));
    weft_status status = weft_request_wait(request, 0);
    return status == WEFT_OK ? WEFT_OK : wefti_while(status, "state '%s'", s->name);
}

/* Between a whole state and its table's rows, in which the parts of a parameter that is split stand one behind the other. */
static void deal(const state *s, const wefti_window_of *like, weft_request_kind kind, uint8_t *whole, uint8_t *rows) {
    wefti_window_of window = *like;
    const size_t    part_bytes = s->bytes / (size_t)window.ranks;
    for (window.rank = 0; window.rank < window.ranks; window.rank++) {
        uint8_t     *part = rows + (size_t)window.rank * part_bytes;
        const size_t size = weft_dtype_bytes(s->parameter->dtype);
        if (kind == WEFT_SET) wefti_window_take(&window, s->parameter->shape, size, whole, part);
        else wefti_window_put(&window, s->parameter->shape, size, part, whole);
    }
}

static weft_status move_parts(const state *s, const wefti_window_of *window, weft_request_kind kind, uint8_t *whole, int64_t *updates) {
    uint8_t *rows = NULL;
    WEFTI_TRY(wefti_alloc(s->bytes, "a state in parts", &rows));
    if (kind == WEFT_SET) deal(s, window, kind, whole, rows);
    weft_status status = move_rows(s, kind, rows, updates);
    if (kind == WEFT_PULL && status == WEFT_OK) deal(s, window, kind, whole, rows);
    wefti_free(rows, s->bytes);
    return status;
}

static weft_status move(const weft_trainer *trainer, const wefti_served_states *states, weft_request_kind kind) {
    state s = {0};
    while (next_state(trainer, rule_of(trainer), &s)) {
        const wefti_window_of window = wefti_trainer_window(trainer, s.parameter->node->name);
        uint8_t              *whole = states->memory + s.at;
        int64_t              *updates = &states->updates[s.index];
        WEFTI_TRY(window.ranks > 1 ? move_parts(&s, &window, kind, whole, updates) : move_rows(&s, kind, whole, updates));
    }
    return WEFT_OK;
}

weft_status wefti_served_states_gather(weft_trainer *trainer, wefti_served_states *states) {
    if (rule_of(trainer)->n_states == 0) return WEFT_OK;
    WEFTI_TRY(make_room(trainer, states));
    return move(trainer, states, WEFT_PULL);
}

weft_status wefti_served_states_set(const weft_trainer *trainer, const wefti_served_states *states) {
    return states->memory ? move(trainer, states, WEFT_SET) : WEFT_OK;
}

/* --- between the lead and the file --- */

weft_status wefti_served_states_add(const weft_trainer *trainer, const wefti_served_states *states, weft_checkpoint_writer *writer) {
    state s = {0};
    if (!states->memory) return WEFT_OK;
    while (next_state(trainer, rule_of(trainer), &s))
        WEFTI_TRY(weft_checkpoint_add(writer, s.name, s.parameter->dtype, s.parameter->shape, states->memory + s.at));
    return weft_checkpoint_add(writer, UPDATES, WEFT_I64, weft_shape(states->n), states->updates);
}

/* How often rows have been updated, where the file does not say: once a step. */
static weft_status read_updates(const weft_trainer *trainer, weft_checkpoint *file, int64_t *updates) {
    int64_t step = 0;
    if (weft_checkpoint_find(file, UPDATES, NULL, NULL))
        return weft_checkpoint_read(file, UPDATES, WEFT_I64, weft_shape(trainer->training.n), updates);
    WEFTI_TRY(weft_checkpoint_read_i64(file, "weft.step", &step));
    for (int32_t i = 0; i < trainer->training.n; i++) updates[i] = step;
    return WEFT_OK;
}

static weft_status check_updates(const weft_trainer *trainer, const int64_t *updates) {
    for (int32_t i = 0; i < trainer->training.n; i++)
        if (updates[i] < 0 || updates[i] > INT64_C(1) << 52)
            return wefti_fail(WEFT_E_CORRUPT, "parameter '%s' has had %lld updates", trainer->training.parameters[i]->node->name, (long long)updates[i]);
    return WEFT_OK;
}

weft_status wefti_served_states_read(const weft_trainer *trainer, weft_checkpoint *file, wefti_served_states *states) {
    state s = {0};
    if (!trainer->served) { /* by allreduce all are updated once a step */
        wefti_served_states unused = {.n = trainer->training.n};
        if (!weft_checkpoint_find(file, UPDATES, NULL, NULL)) return WEFT_OK;
        WEFTI_TRY(wefti_alloc((size_t)unused.n * sizeof(int64_t), "numbers of updates", &unused.updates));
        weft_status status = read_updates(trainer, file, unused.updates);
        wefti_served_states_release(&unused);
        return status;
    }
    if (!next_state(trainer, rule_of(trainer), &s) || !weft_checkpoint_find(file, s.name, NULL, NULL)) return WEFT_OK;
    WEFTI_TRY(make_room(trainer, states));
    WEFTI_TRY(read_updates(trainer, file, states->updates));
    WEFTI_TRY(check_updates(trainer, states->updates));
    for (s = (state){0}; next_state(trainer, rule_of(trainer), &s);)
        WEFTI_TRY(weft_checkpoint_read(file, s.name, s.parameter->dtype, s.parameter->shape, states->memory + s.at));
    return WEFT_OK;
}

/* The worker's side of what is no request of rows: small questions with small answers, and gradients of units. */
#include <string.h>

#include "parallel/server/work.h"

static bool has_ended(const void *context) { return ((const weft_request *)context)->state == REQUEST_ENDED; }
static bool can_take(const void *context) { return ((const weft_server *)context)->free_requests != NULL; }

/* Takes a request, when one is free, and keeps the lock. */
static weft_status take(weft_server *server, weft_request **request_out) {
    weft_status status = WEFT_E_AGAIN;
    while (status == WEFT_E_AGAIN) {
        status = wefti_server_wait(server, can_take, server, WEFTI_NEVER_NS);
        if (status != WEFT_OK) return wefti_fail(status, "%s", server->failure);
        pthread_mutex_lock(&server->lock);
        status = wefti_client_take(server, false, request_out);
        if (status != WEFT_OK) pthread_mutex_unlock(&server->lock);
    }
    return status;
}

/* Begins what was taken, and lets go of the lock. */
static weft_status start(weft_server *server, weft_request *request, int32_t only) {
    weft_status status = wefti_client_start(server, request, only);
    if (status != WEFT_OK) wefti_client_free(server, request);
    pthread_mutex_unlock(&server->lock);
    return status;
}

/* Sends `ask` to one server, or to all (-1); answers_out: [servers asked][answer_bytes]. */
static weft_status exchange(weft_server *server, wefti_frame_kind kind, int32_t only, const void *ask, size_t ask_bytes, void *answers_out,
                            size_t answer_bytes) {
    weft_request *request = NULL;
    WEFTI_TRY(take(server, &request));
    request->kind = kind;
    request->ask = ask;
    request->ask_bytes = ask_bytes;
    request->answer_bytes = answer_bytes;
    WEFTI_TRY(start(server, request, only));
    (void)!wefti_server_wait(server, has_ended, request, WEFTI_NEVER_NS); /* it has a deadline */
    bool ended = request->state == REQUEST_ENDED && request->status == WEFT_OK;
    for (int32_t i = 0; ended && i < (only < 0 ? server->servers : 1); i++) {
        const request_part *part = &request->parts[only < 0 ? i : only];
        const uint8_t      *reply = part->lost || part->from_twin ? part->twin_reply : part->reply_bytes;
        memcpy((uint8_t *)answers_out + (size_t)i * answer_bytes, reply + sizeof(wefti_server_frame), answer_bytes);
    }
    return weft_request_wait(request, 0);
}

weft_status wefti_work_ask(weft_server *server, wefti_work *work) {
    wefti_work answer = {0};
    WEFTI_TRY(exchange(server, WEFTI_SERVER_WORK, 0, work, sizeof *work, &answer, sizeof answer));
    *work = answer;
    return WEFT_OK;
}

weft_status wefti_gather_give(weft_table *table, uint64_t evaluation, uint64_t unit, const double *values) {
    weft_request *request = NULL;
    WEFTI_TRY(take(table->server, &request));
    request->kind = WEFTI_SERVER_GIVE;
    request->table = table;
    request->call = (weft_table_call){.kind = WEFT_PUSH, .send = values};
    request->evaluation = evaluation;
    request->unit = unit;
    WEFTI_TRY(start(table->server, request, -1));
    return weft_request_wait(request, 0);
}

/* --- vectors --- */

weft_status wefti_vectors_ask(weft_server *server, const wefti_vector_frame *commands, int32_t count, double *results_out) {
    double *answers = NULL;
    size_t  bytes = (size_t)server->servers * VECTORS_MOST * sizeof *answers;
    WEFTI_TRY(wefti_alloc(bytes, "results of vector commands", &answers));
    weft_status status = WEFT_OK;
    for (int32_t first = 0; first < count && status == WEFT_OK; first += VECTORS_MOST) {
        size_t some = (size_t)(count - first < VECTORS_MOST ? count - first : VECTORS_MOST);
        status = exchange(server, WEFTI_SERVER_VECTORS, -1, commands + first, some * sizeof *commands, answers, some * sizeof *answers);
        for (size_t i = 0; i < some && status == WEFT_OK && results_out; i++) {
            double sum = 0;
            for (int32_t part = 0; part < server->servers; part++) sum += answers[(size_t)part * some + i];
            results_out[(size_t)first + i] = sum;
        }
    }
    wefti_free(answers, bytes);
    return status;
}

static weft_status check_command(const weft_server *server, const weft_vector_command *command, int32_t index, bool results) {
    bool takes_x = command->op == WEFT_VECTOR_COPY || command->op == WEFT_VECTOR_AXPY || command->op == WEFT_VECTOR_MULTIPLY || command->op == WEFT_VECTOR_DOT;
    if ((unsigned)command->op > WEFT_VECTOR_DOT)
        return wefti_fail(WEFT_E_INVALID, "weft_vectors_run: command %d has op %d, which is none", (int)index, (int)command->op);
    if (!command->y || (takes_x && !command->x))
        return wefti_fail(WEFT_E_INVALID, "weft_vectors_run: command %d has no table %s", (int)index, command->y ? "x" : "y");
    if (command->y->server != server || (takes_x && command->x->server != server))
        return wefti_fail(WEFT_E_INVALID, "weft_vectors_run: command %d names a table of another server", (int)index);
    if (command->op == WEFT_VECTOR_DOT && !results) return wefti_fail(WEFT_E_INVALID, "weft_vectors_run: command %d is a DOT, and results_out is NULL", (int)index);
    return WEFT_OK;
}

weft_status weft_vectors_run(weft_server *server, const weft_vector_command *commands, int32_t count, double *results_out) {
    wefti_vector_frame *frames = NULL;
    if (!server || count < 0 || (count && !commands))
        return wefti_fail(WEFT_E_INVALID, "weft_vectors_run: the server %s, %d commands at %s", server ? "is there" : "is NULL", (int)count,
                          commands ? "an address" : "NULL");
    if (!server->works) return wefti_fail(WEFT_E_STATE, "weft_vectors_run: rank %d only serves; workers give commands", (int)server->rank);
    for (int32_t i = 0; i < count; i++) WEFTI_TRY(check_command(server, &commands[i], i, results_out != NULL));
    if (count == 0) return WEFT_OK;
    WEFTI_TRY(wefti_alloc((size_t)count * sizeof *frames, "vector commands", &frames));
    for (int32_t i = 0; i < count; i++)
        frames[i] = (wefti_vector_frame){.x = commands[i].x ? commands[i].x->id : 0, .y = commands[i].y->id, .op = (uint32_t)commands[i].op,
                                         .scale = commands[i].scale};
    weft_status status = wefti_vectors_ask(server, frames, count, results_out);
    wefti_free(frames, (size_t)count * sizeof *frames);
    return status;
}

/* Tables as workers see them: taking part, clocks, and requests with their buffers. */
#include <math.h>
#include <string.h>

#include "core/base/stream.h"
#include "parallel/server/coded.h"
#include "parallel/server/entries.h"
#include "parallel/server/follow.h"
#include "parallel/server/keys.h"

/* --- taking part --- */

static bool has_ended(const void *context) { return ((const weft_request *)context)->state == REQUEST_ENDED; }
static bool can_take(const void *context) { return ((const weft_server *)context)->free_requests != NULL; }

static weft_status check_worker(const weft_server *server, const char *what) {
    if (!server) return wefti_fail(WEFT_E_INVALID, "%s: the server is NULL", what);
    if (server->works) return WEFT_OK;
    return wefti_fail(WEFT_E_STATE, "%s: rank %d only serves; workers are ranks 0 to %d", what, (int)server->rank, (int)server->workers - 1);
}

/* Runs a request about a table as a whole to its end; what it brings is in `spec`. */
static weft_status run_whole(weft_server *server, weft_table *table, wefti_frame_kind kind, int32_t only, wefti_server_spec *spec) {
    weft_request *request = NULL;
    WEFTI_TRY(wefti_server_wait(server, can_take, server, WEFTI_NEVER_NS));
    pthread_mutex_lock(&server->lock);
    weft_status status = wefti_client_take(server, false, &request);
    if (status == WEFT_OK) {
        request->kind = kind;
        request->table = table;
        request->spec = *spec;
        status = wefti_client_start(server, request, only);
        if (status != WEFT_OK) wefti_client_free(server, request);
    }
    pthread_mutex_unlock(&server->lock);
    if (status != WEFT_OK) return status;
    (void)!wefti_server_wait(server, has_ended, request, WEFTI_NEVER_NS); /* it has a deadline */
    *spec = request->spec;
    return weft_request_wait(request, 0);
}

static void link_table(weft_server *server, weft_table *table) {
    pthread_mutex_lock(&server->lock);
    table->next = server->tables;
    server->tables = table;
    pthread_mutex_unlock(&server->lock);
}

static void unlink_table(weft_server *server, weft_table *table) {
    pthread_mutex_lock(&server->lock);
    for (weft_table **at = &server->tables; *at; at = &(*at)->next)
        if (*at == table) {
            *at = table->next;
            break;
        }
    pthread_mutex_unlock(&server->lock);
}

static weft_status add_twin(weft_table *table) {
    WEFTI_TRY(wefti_alloc(sizeof *table->twin, "a table's twin", &table->twin));
    *table->twin = *table;
    table->twin->twin = NULL;
    table->twin->server = table->server->twin;
    table->twin->row_bytes = (size_t)table->options.width * weft_dtype_bytes(table->options.dtype);
    return wefti_server_spec_read(&table->twin->spec, &table->twin->options);
}

static void free_table(weft_table *table) {
    if (table->twin) wefti_free(table->twin, sizeof *table->twin);
    wefti_coder_release(table->coder);
    wefti_free(table, sizeof *table);
}

static weft_status take_part(weft_server *server, const wefti_server_spec *spec, weft_table **table_out) {
    weft_table *table = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *table, "a table", &table));
    table->server = server;
    table->spec = *spec;
    table->id = wefti_hash(WEFTI_HASH_BEGIN, spec->name, strlen(spec->name));
    for (int32_t i = 0; i < server->began_count; i++)
        if (server->began[i].table == table->id) table->clock = server->began[i].clock;
    weft_status status = wefti_server_spec_read(&table->spec, &table->options);
    if (status == WEFT_OK) status = wefti_server_options_check(&table->options);
    wefti_server_spec sent = table->spec;
    if (status == WEFT_OK && server->twin) status = add_twin(table);
    link_table(server, table); /* the server's to free from here on, whatever becomes of the rank */
    if (status == WEFT_OK) {
        table->row_bytes = (size_t)table->options.width * weft_dtype_bytes(table->options.dtype);
        status = wefti_coder_create(&table->options, &table->coder);
        if (status == WEFT_OK) status = run_whole(server, table, WEFTI_SERVER_CREATE, -1, &sent);
    }
    if (status != WEFT_OK) {
        unlink_table(server, table);
        free_table(table);
        return status;
    }
    *table_out = table;
    return WEFT_OK;
}

weft_status weft_table_create(weft_server *server, const weft_table_options *options, weft_table **table_out) {
    wefti_server_spec  spec;
    weft_table_options checked;
    *table_out = NULL;
    WEFTI_TRY(check_worker(server, "weft_table_create"));
    if (!options) return wefti_fail(WEFT_E_INVALID, "weft_table_create: the options are NULL");
    checked = *options;
    WEFTI_TRY(wefti_server_options_check(&checked));
    if (server->twin && checked.spares > 0)
        return wefti_fail(WEFT_E_UNSUPPORTED, "table '%s': %d spares with replicas: each server decides who was late, so a replica would sum other pushes; leave one of "
                          "them out", checked.name, (int)checked.spares);
    WEFTI_TRY(wefti_server_spec_write(&checked, &spec));
    return take_part(server, &spec, table_out);
}

weft_status weft_table_open(weft_server *server, const char *name, weft_table **table_out) {
    wefti_server_spec spec = {.rows = 0};
    weft_table        other = {0}, asked = {.twin = &other};
    *table_out = NULL;
    WEFTI_TRY(check_worker(server, "weft_table_open"));
    asked.server = server;
    other.server = server->twin;
    if (!name || !*name || strlen(name) > WEFT_TABLE_NAME_BYTES)
        return wefti_fail(WEFT_E_INVALID, "weft_table_open: a table's name has 1 to %d bytes", WEFT_TABLE_NAME_BYTES);
    memcpy(spec.name, name, strlen(name));
    asked.options.name = spec.name;
    other.id = asked.id = wefti_hash(WEFTI_HASH_BEGIN, name, strlen(name));
    WEFTI_TRY(run_whole(server, &asked, WEFTI_SERVER_OPEN, 0, &spec));
    return take_part(server, &spec, table_out);
}

void weft_table_release(weft_table *table) {
    if (!table) return;
    weft_server *server = table->server;
    while (table->keys) weft_keys_release(table->keys);
    pthread_mutex_lock(&server->lock);
    if (server->twin) wefti_twin_let_go(server, table);
    for (weft_request *request = server->all_details; request; request = request->all)
        if (request->table == table) request->table = NULL; /* it is on its way already */
    for (weft_request *request = server->twin ? server->twin->all_details : NULL; request; request = request->all)
        if (request->table == table->twin) request->table = NULL;
    pthread_mutex_unlock(&server->lock);
    unlink_table(server, table);
    free_table(table);
}

const weft_table_options *weft_table_describe(const weft_table *table) { return &table->options; }

/* --- clocks --- */

/* Of a request that nobody waited for: told once. */
static weft_status take_trouble(weft_table *table) {
    weft_status status = table->trouble;
    table->trouble = WEFT_OK;
    return status == WEFT_OK ? WEFT_OK : wefti_fail(status, "%s", table->trouble_text);
}

weft_status weft_table_clock(weft_table *table) {
    weft_server  *server = table->server;
    weft_request *request = NULL;
    pthread_mutex_lock(&server->lock);
    weft_status status = take_trouble(table);
    if (status == WEFT_OK) status = wefti_client_take(server, true, &request);
    if (status == WEFT_OK) {
        request->kind = WEFTI_SERVER_CLOCK;
        request->table = table;
        status = wefti_client_start(server, request, -1);
        if (status != WEFT_OK) wefti_client_free(server, request);
        else table->clock++;
    }
    pthread_mutex_unlock(&server->lock);
    return status;
}

int64_t weft_table_time(weft_table *table) {
    pthread_mutex_lock(&table->server->lock);
    int64_t time = (int64_t)table->clock;
    pthread_mutex_unlock(&table->server->lock);
    return time;
}

/* --- requests --- */

static weft_status check_call(const weft_table *table, const weft_table_call *call) {
    if ((unsigned)call->kind > WEFT_PUSH_PULL) return wefti_fail(WEFT_E_INVALID, "a request of kind %d", (int)call->kind);
    if (call->keys && call->keys->table != table)
        return wefti_fail(WEFT_E_INVALID, "table '%s': the key set was made for table '%s'", table->options.name, call->keys->table->options.name);
    if (!call->keys && !call->rows && table->options.sparse)
        return wefti_fail(WEFT_E_INVALID, "table '%s' is sparse: a request names its keys", table->options.name);
    if (call->row_count < 0 || call->timeout_ns < 0)
        return wefti_fail(WEFT_E_INVALID, "table '%s': row_count %lld, timeout_ns %lld: neither may be negative", table->options.name,
                          (long long)call->row_count, (long long)call->timeout_ns);
    if (!(call->rate >= 0 && call->rate < HUGE_VAL))
        return wefti_fail(WEFT_E_INVALID, "table '%s': the request's rate is %g; it is a multiple of the solver's", table->options.name, call->rate);
    if (call->kind == WEFT_SET && table->options.rule.kind == WEFT_TABLE_FTRL)
        return wefti_fail(WEFT_E_UNSUPPORTED, "table '%s': rows of FTRL follow from their states, and cannot be set", table->options.name);
    bool none = call->keys ? call->keys->count == 0 : call->rows && call->row_count == 0;
    bool sends = call->kind != WEFT_PULL, receives = call->kind == WEFT_PULL || call->kind == WEFT_PUSH_PULL;
    if (call->entries || call->pulled) return wefti_entries_check(table, call);
    if (!none && ((sends && !call->send) || (receives && !call->receive)))
        return wefti_fail(WEFT_E_INVALID, "table '%s': the request's %s is NULL", table->options.name, sends && !call->send ? "send" : "receive");
    return WEFT_OK;
}

/* Rows in the order of the servers, where that is not the caller's: one copy, into memory that servers map if they can. */
static void reorder(const weft_keys *keys, size_t row_bytes, uint8_t *routed, uint8_t *rows, bool gather) {
    for (int64_t i = 0; i < keys->count; i++) {
        uint8_t *row = rows + (size_t)keys->places[i] * row_bytes, *there = routed + (size_t)i * row_bytes;
        memcpy(gather ? there : row, gather ? row : there, row_bytes);
    }
}

static const weft_keys *keys_of(const weft_request *request) { return request->own_keys ? request->own_keys : request->call.keys; }

enum { STREAM_BYTES = 1 << 14 };

static size_t value_bytes(const weft_request *request) {
    const weft_keys *keys = keys_of(request);
    return (size_t)(keys ? keys->count : request->table->options.rows) * request->table->row_bytes;
}

/* Whether values are better copied to memory that servers map. */
static bool is_foreign(const weft_server *server, const void *memory, size_t bytes) {
    return bytes >= SERVER_STAGE_BYTES && wefti_server_maps(server) && !server->wire->ops->region_of(server->wire, memory, bytes);
}

/* The server's core has read what was here before: stores past the caches need not ask it. */
static void stage(void *to, const void *from, size_t bytes) {
    wefti_stream_copy(to, from, bytes);
    wefti_stream_fence();
}

/* Whether there is something to be done first, for which others need not wait. */
static bool is_prepared(const weft_request *request) {
    const weft_table_call *call = &request->call;
    if (wefti_coded_pushes(request) || wefti_coded_pulls(request) || wefti_entries_are_in(request)) return true;
    return call->keys ? call->keys->places || value_bytes(request) >= SERVER_STAGE_BYTES : call->rows || value_bytes(request) >= SERVER_STAGE_BYTES;
}

static weft_status prepare(weft_server *server, weft_request *request) {
    weft_table_call *call = &request->call;
    weft_status      status = WEFT_OK;
    if (!call->keys && call->rows) WEFTI_TRY(wefti_keys_make(request->table, call->rows, call->row_count, true, &request->own_keys));
    if (wefti_entries_are_in(request)) return wefti_entries_prepare(server, request);
    const weft_keys *keys = keys_of(request);
    bool             routed = keys && keys->places;
    size_t           bytes = value_bytes(request);
    bool codes = wefti_coded_pushes(request), decodes = wefti_coded_pulls(request);
    if (codes) WEFTI_TRY(wefti_coded_push(server, request));
    pthread_mutex_lock(&server->lock);
    bool maps = wefti_server_maps(server) && bytes >= SERVER_IN_PLACE_BYTES;
    if (!codes && call->kind != WEFT_PULL && (routed || is_foreign(server, call->send, bytes)))
        status = wefti_server_take(server, bytes, maps, &request->staging_out);
    if (status == WEFT_OK && wefti_is_pull(request->kind) && (decodes || routed || is_foreign(server, call->receive, bytes)))
        status = wefti_server_take(server, bytes, maps && !decodes, &request->staging_in);
    if (status == WEFT_OK && !codes && !decodes && (request->staging_out || request->staging_in)) wefti_follow_choose(server, request, bytes);
    pthread_mutex_unlock(&server->lock);
    if (status != WEFT_OK || codes || !request->staging_out || request->copies_out) return status;
    if (routed) reorder(keys, request->table->row_bytes, request->staging_out->data, (uint8_t *)call->send, true);
    else if (bytes >= STREAM_BYTES) stage(request->staging_out->data, call->send, bytes);
    else memcpy(request->staging_out->data, call->send, bytes);
    return WEFT_OK;
}

static weft_status begin(weft_table *table, const weft_table_call *call, int32_t part, int64_t *updates, uint64_t slice_ns, weft_request **request_out) {
    static const wefti_frame_kind kinds[] = {[WEFT_PUSH] = WEFTI_SERVER_PUSH, [WEFT_PULL] = WEFTI_SERVER_PULL, [WEFT_SET] = WEFTI_SERVER_SET,
                                             [WEFT_PUSH_PULL] = WEFTI_SERVER_PUSH_PULL};
    weft_request                 *request = NULL;
    weft_server *server = table->server;
    pthread_mutex_lock(&server->lock);
    weft_status status = take_trouble(table);
    if (status == WEFT_OK) status = wefti_client_take(server, false, &request);
    if (status != WEFT_OK) {
        pthread_mutex_unlock(&server->lock);
        return status;
    }
    request->kind = kinds[call->kind];
    request->table = table;
    request->call = *call;
    request->part = part;
    request->updates = updates;
    request->slice_ns = slice_ns;
    if (is_prepared(request)) {
        pthread_mutex_unlock(&server->lock);
        status = prepare(server, request);
        pthread_mutex_lock(&server->lock);
    }
    if (status == WEFT_OK) status = wefti_client_start(server, request, -1);
    if (status != WEFT_OK) wefti_client_free(server, request);
    pthread_mutex_unlock(&server->lock);
    if (status == WEFT_OK) *request_out = request;
    return status;
}

weft_status weft_table_start_call(weft_table *table, const weft_table_call *call, weft_request **request_out) {
    *request_out = NULL;
    if (!table || !call) return wefti_fail(WEFT_E_INVALID, "weft_table_start_call: the %s is NULL", table ? "call" : "table");
    WEFTI_TRY(check_call(table, call));
    return begin(table, call, 0, NULL, 0, request_out);
}

weft_status wefti_table_start_slice(weft_table *table, const weft_table_call *call, uint64_t slice_ns, weft_request **request_out) {
    *request_out = NULL;
    WEFTI_TRY(check_call(table, call));
    return begin(table, call, 0, NULL, slice_ns, request_out);
}

weft_status wefti_table_start_state(weft_table *table, weft_request_kind kind, int32_t state, void *values, int64_t *updates,
                                    weft_request **request_out) {
    weft_table_call call = {.kind = kind, .send = values, .receive = values, .rate = kind == WEFT_SET ? (double)*updates : 0};
    *request_out = NULL;
    return begin(table, &call, state + 1, updates, 0, request_out);
}

static weft_status finish(weft_request *request) {
    weft_server *server = request->server;
    weft_status  status = request->status;
    if (status != WEFT_OK) status = wefti_fail(status, "%s", request->message);
    else if (request->call.pulled) status = wefti_entries_pulled(request);
    else if (wefti_coded_pulls(request)) status = wefti_coded_pulled(server, request);
    else if (request->staging_in && keys_of(request) && keys_of(request)->places)
        reorder(keys_of(request), request->table->row_bytes, request->staging_in->data, request->call.receive, false);
    else if (request->copies_in)
        status = wefti_follow_finish(request);
    else if (request->staging_in)
        memcpy(request->call.receive, request->staging_in->data, value_bytes(request));
    pthread_mutex_lock(&server->lock);
    wefti_client_free(server, request);
    pthread_mutex_unlock(&server->lock);
    return status;
}

weft_status weft_request_test(weft_request *request) {
    weft_server *server = request->server;
    bool         moved;
    pthread_mutex_lock(&server->lock);
    if (request->state != REQUEST_ENDED) (void)!wefti_server_progress(server, &moved);
    bool ended = request->state == REQUEST_ENDED;
    pthread_mutex_unlock(&server->lock);
    return ended ? finish(request) : WEFT_E_AGAIN;
}

/* A server whose wire is over ends all its requests, in the next progress at the latest. */
weft_status weft_request_wait(weft_request *request, int64_t timeout_ns) {
    weft_server *server = request->server;
    uint64_t     until_ns = WEFTI_NEVER_NS;
    if (timeout_ns > 0) until_ns = wefti_deadline_after(wefti_host_now(server->host), (uint64_t)timeout_ns);
    weft_status status = wefti_server_wait(server, has_ended, request, until_ns);
    while (status != WEFT_OK && status != WEFT_E_AGAIN) status = wefti_server_wait(server, has_ended, request, until_ns);
    return status == WEFT_OK ? finish(request) : status;
}

weft_status wefti_table_run(weft_table *table, const weft_table_call *call) {
    weft_request *request = NULL;
    if (!table) return wefti_fail(WEFT_E_INVALID, "the table is NULL");
    weft_status status = weft_table_start_call(table, call, &request);
    while (status == WEFT_E_AGAIN) {
        WEFTI_TRY(wefti_server_wait(table->server, can_take, table->server, WEFTI_NEVER_NS));
        status = weft_table_start_call(table, call, &request);
    }
    return status == WEFT_OK ? weft_request_wait(request, 0) : status;
}

weft_status weft_table_push(weft_table *table, const weft_keys *keys, const void *send) {
    weft_table_call call = {.kind = WEFT_PUSH, .keys = keys, .send = send};
    return wefti_table_run(table, &call);
}

/* A pull of few bytes: WEFT_E_AGAIN where it goes the ordinary way. The lock is held until the answer can be expected, so nothing is taken twice. */
static weft_status pull_brief(weft_table *table, void *receive) {
    weft_server  *server = table->server;
    weft_request *request = NULL;
    size_t        rows = (size_t)table->options.rows, most = WEFTI_BRIEF_VALUES;
    if (table->options.sparse || table->coder || !receive || rows > most || table->row_bytes > most || rows * table->row_bytes > most) return WEFT_E_AGAIN;
    pthread_mutex_lock(&server->lock);
    weft_status status = table->trouble != WEFT_OK ? WEFT_E_AGAIN : wefti_client_start_brief(server, table, receive, &request);
    if (status == WEFT_OK) wefti_server_spin(server, request);
    bool ended = request && request->state == REQUEST_ENDED && request->status == WEFT_OK;
    if (ended) wefti_client_free(server, request);
    pthread_mutex_unlock(&server->lock);
    return status != WEFT_OK ? WEFT_E_AGAIN : ended ? WEFT_OK : weft_request_wait(request, 0);
}

weft_status weft_table_pull(weft_table *table, const weft_keys *keys, void *receive) {
    weft_status status = table && !keys ? pull_brief(table, receive) : WEFT_E_AGAIN;
    if (status != WEFT_E_AGAIN) return status;
    weft_table_call call = {.kind = WEFT_PULL, .keys = keys, .receive = receive};
    return wefti_table_run(table, &call);
}

weft_status weft_table_push_pull(weft_table *table, const weft_keys *keys, const void *send, void *receive) {
    weft_table_call call = {.kind = WEFT_PUSH_PULL, .keys = keys, .send = send, .receive = receive};
    return wefti_table_run(table, &call);
}

weft_status weft_table_call_rows(weft_table *table, weft_request_kind kind, const uint64_t *rows, int64_t row_count, const void *send,
                                 void *receive) {
    weft_table_call call = {.kind = kind, .rows = rows, .row_count = row_count, .send = send, .receive = receive};
    return wefti_table_run(table, &call);
}

/* Replicas: a second parameter server over links of its own, in which each share of the rows is one rank further (weft_server_options.replicas).
 *
 * Workers give what changes rows to both, and have it acknowledged once both have it; what only reads goes to the first, and to the twin where the first
 * has died, for the shares that it had. A sum of a clock is one of the workers' ranks in their order, so both have the same bits; what is given to a rule
 * as it comes may come in another order, and floats then differ in rounding. No server talks to another, and nothing is to be caught up with
 * after a death. Cost: rows, states and what is pushed twice.
 *
 * Of a table of staleness 0 a pull sees the clocks before its own and no later one. The first server sees to that, as it has the pull in the worker's order. The
 * twin gets it, if ever, when the first has died, and must not have closed the pull's own clock by then: so the end of a clock is not given to the twin
 * while rows are to come of a pull before it, and what is behind that in the table's line waits, too. Nobody waits in a circle: the rows of a clock need
 * ends of earlier clocks alone. */
#include <stdio.h>
#include <string.h>

#include "parallel/server/keys.h"
#include "parallel/server/work.h"

static bool changes(wefti_frame_kind kind) {
    return kind == WEFTI_SERVER_CREATE || kind == WEFTI_SERVER_CLOCK || kind == WEFTI_SERVER_LEAVE || kind == WEFTI_SERVER_LOAD ||
           kind == WEFTI_SERVER_VECTORS || (wefti_is_of_rows(kind) && kind != WEFTI_SERVER_PULL);
}
/* Of what the list of units is told, only the end of a run: the rest is said again to whoever has the list (ledger.c). */
static bool tells(const weft_request *request) {
    return changes(request->kind) || (request->kind == WEFTI_SERVER_WORK && ((const wefti_work *)request->ask)->kind == WORK_END);
}
/* What the twin is asked for the shares that are lost. */
static bool reads(wefti_frame_kind kind) {
    return kind == WEFTI_SERVER_OPEN || kind == WEFTI_SERVER_SAVE || kind == WEFTI_SERVER_COMMIT || kind == WEFTI_SERVER_WORK || wefti_is_pull(kind);
}

bool wefti_twin_has(wefti_frame_kind kind) { return changes(kind) || reads(kind); }

/* --- starting --- */

static weft_status copy_files(weft_server *twin, const weft_request *request, weft_request *other) {
    other->file_bytes = request->file_bytes;
    WEFTI_TRY(wefti_server_take(twin, request->file_bytes, false, &other->file_body));
    memcpy(other->file_body->data, request->file_body->data, request->file_bytes);
    return wefti_server_take(twin, (size_t)twin->servers * sizeof(wefti_server_share), false, &other->shares);
}

/* One request to the twin for `request`: of another kind, but for the same rows and memory. */
static void start_one(weft_server *server, weft_request *request, wefti_frame_kind kind, bool for_lost) {
    weft_server  *twin = server->twin;
    weft_request *other = NULL;
    weft_status   status = wefti_client_take(twin, true, &other);
    if (status == WEFT_OK) {
        const weft_keys *keys = request->call.keys;
        other->kind = kind;
        other->table = request->table ? request->table->twin : NULL;
        other->call = request->call;
        other->call.keys = keys ? keys->twin : request->own_keys;
        if (request->staging_out) other->call.send = request->staging_out->data; /* in the order of servers already */
        if (request->staging_in) other->call.receive = request->staging_in->data;
        for (int32_t i = 0; i < server->servers; i++) {
            other->parts[i].coded = request->parts[i].coded;
            other->parts[i].coded_bytes = request->parts[i].coded_bytes;
        }
        other->spec = request->spec;
        other->part = request->part;
        other->updates = request->updates;
        other->number = request->number;
        other->evaluation = request->evaluation;
        other->unit = request->unit;
        other->ask = request->ask;
        other->ask_bytes = request->ask_bytes;
        other->answer_bytes = request->answer_bytes;
        other->of = request;
        other->for_lost = for_lost;
        if (wefti_is_of_files(kind)) status = copy_files(twin, request, other);
        weft_table *table = other->table;
        request->twins++;
        if (status == WEFT_OK) status = wefti_client_start(twin, other, kind == WEFTI_SERVER_OPEN || kind == WEFTI_SERVER_WORK ? 0 : -1); /* it may be over with this */
        if (status == WEFT_OK && kind == WEFTI_SERVER_CLOCK) table->clock++;
        if (status != WEFT_OK) {
            request->twins--;
            wefti_client_free(twin, other);
        }
    }
    if (status != WEFT_OK) wefti_client_fail(request, status, weft_error_message());
}

static bool ticks(const weft_request *request) {
    return request->kind == WEFTI_SERVER_CLOCK || (request->kind == WEFTI_SERVER_PUSH_PULL && request->table->options.staleness == 0);
}

static void start_all(weft_server *server, weft_request *request) {
    bool both = request->kind == WEFTI_SERVER_PUSH_PULL;
    start_one(server, request, both ? WEFTI_SERVER_PUSH : request->kind, false);
    if (both && ticks(request)) start_one(server, request, WEFTI_SERVER_CLOCK, false);
}

/* The twin is asked for what was lost. */
static void ask_again(weft_server *server, weft_request *request) {
    request->again = true;
    request->over = false; /* it may be answered before this returns */
    start_one(server, request, wefti_is_pull(request->kind) ? WEFTI_SERVER_PULL : request->kind, true);
    request->over = true;
}

/* --- the line of a table of staleness 0 --- */

/* The first whose turn has come to give or ask the twin something; NULL: none. */
static weft_request *find_turn(const weft_table *table) {
    bool reading = false;
    for (weft_request *request = table->line; request; request = request->behind) {
        if (request->held) return reading && ticks(request) ? NULL : request;
        if (request->asks) return request;
        reading = reading || request->reads;
    }
    return NULL;
}

/* Its time begins now. */
static void give_held(weft_server *server, weft_request *request) {
    request->held = false;
    request->deadline_ns = wefti_deadline_after(wefti_host_now(server->host), request->call.timeout_ns ? (uint64_t)request->call.timeout_ns : server->timeout_ns);
    start_all(server, request);
    request->twins--; /* for being held */
}

/* Ends of requests come back here. */
static void walk(weft_server *server, weft_table *table) {
    table->changed = true;
    if (table->walks) return;
    table->walks = true;
    while (table->changed) {
        table->changed = false;
        for (weft_request *request; (request = find_turn(table));) {
            if (request->held) {
                give_held(server, request);
            } else {
                request->asks = false;
                ask_again(server, request);
            }
            if (request->over && request->twins == 0) wefti_client_end(server, request);
        }
    }
    table->walks = false;
}

void wefti_twin_start(weft_server *server, weft_request *request) {
    weft_table *table = request->table;
    bool        told = tells(request), reads_rows = wefti_is_pull(request->kind);
    if (!table || table->options.staleness != 0 || !(told || reads_rows)) {
        if (told) start_all(server, request);
        return;
    }
    weft_request **end = &table->line;
    while (*end) end = &(*end)->behind;
    *end = request;
    request->behind = NULL;
    request->lined = true;
    request->reads = reads_rows;
    request->held = told;
    request->twins += told;
    if (told) walk(server, table);
}

/* Its rows are there, or nothing comes any more. */
static void stop_reading(weft_server *server, weft_request *request) {
    if (!request->reads) return;
    request->reads = false;
    request->twins++; /* it does not end in here */
    walk(server, request->table);
    request->twins--;
}

void wefti_twin_leave(weft_server *server, weft_request *request) {
    weft_request **at = &request->table->line;
    while (*at != request) at = &(*at)->behind;
    *at = request->behind;
    request->lined = request->reads = request->held = request->asks = false;
    walk(server, request->table);
}

/* --- ending --- */

void wefti_twin_ended(weft_request *other) {
    weft_request *request = other->of;
    weft_server  *server = request->server, *twin = other->server;
    if (other->status != WEFT_OK) wefti_client_fail(request, other->status, other->message);
    for (int32_t i = 0; i < server->servers; i++) {
        request_part *part = &request->parts[i];
        if (other->for_lost && part->lost && other->parts[i].pulled) { /* entries come to no place of the caller's */
            wefti_server_give(server, part->pulled);
            part->pulled = other->parts[i].pulled;
            part->pulled_bytes = other->parts[i].pulled_bytes;
            other->parts[i].pulled = NULL;
        }
        if (other->for_lost && part->lost && other->kind == WEFTI_SERVER_SAVE && !other->parts[i].lost && other->status == WEFT_OK)
            memcpy((wefti_server_share *)(void *)request->shares->data + i, (wefti_server_share *)(void *)other->shares->data + i, sizeof(wefti_server_share));
        if (request->ask && !other->parts[i].lost) memcpy(part->twin_reply, other->parts[i].reply_bytes, sizeof part->twin_reply);
        if (other->for_lost && request->ask) part->from_twin = true;
        if (other->for_lost) part->lost = part->lost && (other->parts[i].lost || other->status != WEFT_OK);
        else part->twin_lost = part->twin_lost || other->parts[i].lost;
    }
    if (other->kind == WEFTI_SERVER_OPEN) request->spec = other->spec;
    wefti_client_free(twin, other);
    request->twins--;
    if (request->over && request->twins == 0) wefti_client_end(server, request);
}

/* Nobody has this share any more. */
static void fail_share(weft_server *server, weft_request *request, int32_t share) {
    char        text[WEFTI_SERVER_TEXT_BYTES];
    const char *table = request->table ? request->table->options.name : NULL;
    snprintf(text, sizeof text, "rank %d, which serves rows of %s%s%s, is gone, and so is rank %d, which had them too", (int)wefti_server_rank(server, share),
             table ? "table '" : "the tables", table ? table : "", table ? "'" : "", (int)wefti_server_rank(server->twin, share));
    wefti_client_fail(request, WEFT_E_PEER, text);
}

void wefti_twin_let_go(weft_server *server, weft_table *table) {
    while (table->line) {
        weft_request *request = table->line;
        table->line = request->behind;
        request->lined = request->reads = request->asks = false;
        if (!request->held) continue;
        give_held(server, request);
        if (request->over && request->twins == 0) wefti_client_end(server, request);
    }
}

static bool has_lost(const weft_server *server, const weft_request *request) {
    for (int32_t i = 0; i < server->servers; i++)
        if (request->parts[i].lost) return true;
    return false;
}

/* Some clock has ended that the twin does not know of yet. */
static bool holds(const weft_server *server) {
    for (const weft_table *table = server->tables; table; table = table->next)
        for (const weft_request *request = table->line; request; request = request->behind)
            if (request->held) return true;
    return false;
}

/* Somebody before it in the line is yet to give the twin something. */
static bool is_early(const weft_request *request) {
    const weft_request *other = request->lined ? request->table->line : request;
    while (other != request && !other->held) other = other->behind;
    return other != request;
}

bool wefti_twin_goes_on(weft_server *server, weft_request *request) {
    if (request->over && !has_lost(server, request)) stop_reading(server, request);
    if (!request->over || request->twins > 0 || request->asks) return true;
    if (!wefti_twin_has(request->kind)) return false;
    for (int32_t i = 0; i < server->servers; i++) {
        const request_part *part = &request->parts[i];
        bool failed = part->lost && (part->twin_lost || (request->again && reads(request->kind)));
        if (failed) fail_share(server, request, i);
    }
    if (!has_lost(server, request) || request->status != WEFT_OK || request->again || !reads(request->kind)) return false;
    if (request->kind == WEFTI_SERVER_SAVE && (request->changes != server->changes || holds(server))) {
        wefti_client_fail(request, WEFT_E_PEER, "a server died while the snapshot was being taken, and this worker has gone on since it asked for it: take another one");
        return false;
    }
    if (is_early(request)) {
        request->asks = true;
        return true;
    }
    ask_again(server, request);
    return wefti_twin_goes_on(server, request);
}

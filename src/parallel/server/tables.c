/* Tables on a server: made on request, changed and read in each worker's order. A pull whose clock has not come waits at its table. */
#include <string.h>

#include "parallel/server/coded.h"
#include "parallel/server/entries.h"
#include "parallel/server/follow.h"
#include "parallel/server/saves.h"
#include "parallel/server/work.h"

/* --- finding and making --- */

served_table *wefti_tables_find(const weft_server *server, uint64_t id) {
    served_table *table = server->served;
    while (table && table->id != id) table = table->next;
    return table;
}

static void free_table(weft_server *server, served_table *table) {
    size_t workers = (size_t)server->workers;
    while (table->waiting) table->waiting = table->waiting->next; /* serve.c frees them */
    for (size_t worker = 0; table->pushes && worker < workers; worker++)
        while (table->pushes[worker]) {
            server_push *push = table->pushes[worker];
            table->pushes[worker] = push->next;
            if (push->body) wefti_server_free_buffer(server, push->body);
            wefti_free(push, sizeof *push);
        }
    while (table->keys) {
        served_keys *keys = table->keys;
        keys->users = 1;
        keys->forgotten = true;
        wefti_tables_let_go(table, keys);
    }
    wefti_gather_free(server, table);
    wefti_sum_release(table->sum);
    wefti_store_release(table->store);
    wefti_shown_free(server, table);
    if (table->clocks) wefti_free(table->clocks, workers * sizeof *table->clocks);
    if (table->folded) wefti_free(table->folded, workers * sizeof *table->folded);
    if (table->told) wefti_free(table->told, workers * sizeof *table->told);
    if (table->pushes) wefti_free(table->pushes, workers * sizeof *table->pushes);
    wefti_free(table, sizeof *table);
}

static weft_status find_function(const weft_server *server, const char *name, const weft_table_function **function_out) {
    char   list[256] = "none";
    size_t used = 0;
    for (int32_t i = 0; i < server->function_count; i++) {
        if (strcmp(server->functions[i].name, name) == 0) {
            *function_out = &server->functions[i];
            return WEFT_OK;
        }
        if (used < sizeof list) used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", used ? ", " : "", server->functions[i].name);
    }
    return wefti_fail(WEFT_E_NOT_FOUND, "rank %d, which serves, has no function '%s'; it has: %s", (int)server->rank, name, list);
}

weft_status wefti_tables_make_store(weft_server *server, const served_table *table, wefti_store **store_out, wefti_sum **sum_out) {
    const weft_table_options *o = &table->options;
    wefti_store_options how = {.sparse = o->sparse, .first = table->begin, .rows = table->rows, .width = o->width, .dtype = o->dtype, .rule = o->rule,
                               .start = o->start, .low = o->low, .high = o->high, .seed = o->seed, .most_bytes = o->most_bytes,
                               .hybrid = o->hybrid, .memory_bytes = o->memory_bytes, .spill_folder = server->spill, .name = table->spec.name};
    if (o->rule.kind == WEFT_TABLE_USER) WEFTI_TRY(find_function(server, o->rule.function, &how.function));
    WEFTI_TRY(wefti_store_create(&how, store_out));
    return o->staleness == 0 ? wefti_sum_create(*store_out, sum_out) : WEFT_OK;
}

void wefti_tables_change_store(served_table *table, wefti_store **store, wefti_sum **sum) {
    wefti_sum_release(table->sum);
    wefti_store_release(table->store);
    table->store = *store;
    table->sum = *sum;
    *store = NULL;
    *sum = NULL;
    for (served_keys *keys = table->keys; keys; keys = keys->next) {
        keys->missing = true;
        for (int64_t i = 0; i < keys->count; i++) keys->places[i] = WEFTI_PLACE_NONE;
    }
}

weft_status wefti_tables_check_idle(const weft_server *server, const served_table *table) {
    bool busy = table->sum && wefti_sum_rows(table->sum) > 0;
    for (int32_t worker = 0; worker < server->workers; worker++) busy = busy || table->pushes[worker];
    if (!busy) return WEFT_OK;
    return wefti_fail(WEFT_E_STATE, "table '%s': pushes of clock %llu are kept here; load a snapshot between clocks", table->spec.name,
                      (unsigned long long)table->closed);
}

static weft_status fill_table(weft_server *server, served_table *table) {
    weft_table_options *o = &table->options;
    size_t              workers = (size_t)server->workers;
    int32_t             index = wefti_server_index(server);
    if (o->split == WEFT_SPLIT_RANGE) {
        table->begin = wefti_route_begin((uint64_t)o->rows, server->servers, index);
        table->rows = wefti_route_begin((uint64_t)o->rows, server->servers, index + 1) - table->begin;
    }
    table->row_bytes = (size_t)o->width * weft_dtype_bytes(o->dtype);
    if (o->spares >= server->workers)
        return wefti_fail(WEFT_E_INVALID, "table '%s': %d spares among %d workers leave nobody to wait for", o->name, (int)o->spares,
                          (int)server->workers);
    WEFTI_TRY(wefti_alloc(workers * sizeof *table->clocks, "a table's clocks", &table->clocks));
    WEFTI_TRY(wefti_alloc(workers * sizeof *table->folded, "a table's clocks", &table->folded));
    WEFTI_TRY(wefti_alloc(workers * sizeof *table->told, "a table's clocks", &table->told));
    WEFTI_TRY(wefti_alloc(workers * sizeof *table->pushes, "a table's clocks", &table->pushes));
    return wefti_tables_make_store(server, table, &table->store, &table->sum);
}

weft_status wefti_tables_add(weft_server *server, const wefti_server_spec *spec, uint64_t id, served_table **table_out) {
    served_table *table = NULL;
    *table_out = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *table, "a table", &table));
    table->spec = *spec;
    table->id = id;
    weft_status status = wefti_server_spec_read(&table->spec, &table->options);
    if (status == WEFT_OK) status = wefti_server_options_check(&table->options);
    if (status == WEFT_OK) status = fill_table(server, table);
    if (status != WEFT_OK) {
        free_table(server, table);
        return status;
    }
    table->next = server->served;
    server->served = table;
    *table_out = table;
    return WEFT_OK;
}

static weft_status create_table(weft_server *server, const server_job *job) {
    if (!job->body || job->frame.body_bytes != sizeof(wefti_server_spec)) return wefti_fail(WEFT_E_CORRUPT, "a table's specification is cut off");
    const wefti_server_spec *spec = (const wefti_server_spec *)job->body->data;
    served_table            *table = wefti_tables_find(server, job->frame.table);
    if (table) {
        const char *differ = wefti_server_spec_differ(&table->spec, spec);
        if (!differ) return WEFT_OK;
        return wefti_fail(WEFT_E_MISMATCH, "there is a table '%s' already, and it differs in %s from that of rank %d", table->spec.name, differ,
                          (int)job->worker);
    }
    return wefti_tables_add(server, spec, job->frame.table, &table);
}

static weft_status open_table(weft_server *server, server_job *job) {
    if (!job->body || job->frame.body_bytes != sizeof(wefti_server_spec)) return wefti_fail(WEFT_E_CORRUPT, "a table's specification is cut off");
    const wefti_server_spec *asked = (const wefti_server_spec *)job->body->data;
    const served_table      *table = wefti_tables_find(server, job->frame.table);
    if (!table) return wefti_fail(WEFT_E_NOT_FOUND, "there is no table '%.*s'", WEFT_TABLE_NAME_BYTES, asked->name);
    WEFTI_TRY(wefti_server_take(server, sizeof table->spec, false, &job->answer));
    memcpy(job->answer->data, &table->spec, sizeof table->spec);
    job->answer_bytes = sizeof table->spec;
    return WEFT_OK;
}

/* --- rows --- */

/* Memory of the worker that a request names, of as many bytes as its rows have. */
static weft_status reach(weft_server *server, const served_table *table, const server_job *job, uint32_t region, uint64_t at, uint8_t **memory_out) {
    wefti_wire_peer_region there = {0};
    size_t                 bytes = (size_t)job->frame.count * table->row_bytes; /* checked: check_request */
    if (!wefti_server_maps(server)) return wefti_fail(WEFT_E_CORRUPT, "rank %d names memory that this wire does not map", (int)job->worker);
    WEFTI_TRY(server->wire->ops->peer_region(server->wire, job->worker, region, &there));
    if (!there.base || at > there.size_bytes || bytes > there.size_bytes - at || at % weft_dtype_bytes(table->options.dtype))
        return wefti_fail(WEFT_E_CORRUPT, "table '%s': rank %d names %zu bytes at %llu of its region %u, which has %zu", table->spec.name, (int)job->worker,
                          bytes, (unsigned long long)at, (unsigned)region, there.size_bytes);
    *memory_out = (uint8_t *)there.base + at;
    return WEFT_OK;
}

/* States are of dense ranges, and kept in the dtype that is sent. */
static weft_status check_state(const served_table *table, const server_job *job) {
    const wefti_server_frame *frame = &job->frame;
    bool plain = frame->kind == WEFTI_SERVER_PULL || frame->kind == WEFTI_SERVER_SET;
    if (!plain || table->options.sparse || frame->keys || frame->flags & WEFTI_SERVER_LISTED || wefti_store_held(table->store) != table->options.dtype)
        return wefti_fail(WEFT_E_UNSUPPORTED, "table '%s': states are pulled and set of a whole dense table of F32 or F64", table->spec.name);
    if (frame->part <= wefti_store_states(table->store) && frame->rate >= 0 && frame->rate < 0x1p53) return WEFT_OK;
    return wefti_fail(WEFT_E_INVALID, "table '%s': state %d after %g updates; its rule has %d states", table->spec.name, frame->part - 1, frame->rate,
                      (int)wefti_store_states(table->store));
}

static weft_status read_state(const served_table *table, server_job *job, void *out) {
    uint64_t begin = job->frame.first - table->begin;
    int64_t  updates = 0;
    WEFTI_TRY(wefti_store_copy_out(table->store, job->frame.part, begin, job->frame.count, out));
    if (wefti_store_counts(table->store)) WEFTI_TRY(wefti_store_copy_out(table->store, WEFTI_PART_UPDATES, begin, 1, &updates));
    job->updates = (uint64_t)updates;
    return WEFT_OK;
}

static weft_status set_state(served_table *table, const server_job *job) {
    uint64_t begin = job->frame.first - table->begin;
    int64_t  updates = (int64_t)job->frame.rate;
    WEFTI_TRY(wefti_store_copy_in(table->store, job->frame.part, NULL, begin, job->frame.count, job->values));
    for (uint64_t row = 0; row < job->frame.count && wefti_store_counts(table->store); row++)
        WEFTI_TRY(wefti_store_copy_in(table->store, WEFTI_PART_UPDATES, NULL, begin + row, 1, &updates));
    return WEFT_OK;
}

static weft_status read_rows(weft_server *server, served_table *table, server_job *job) {
    served_keys *keys = job->keys;
    int64_t      count = (int64_t)job->frame.count;
    uint64_t     clock = table->trouble_clock;
    if (table->trouble != WEFT_OK && table->told[job->worker] < clock) {
        table->told[job->worker] = clock;
        return wefti_fail(table->trouble, "%s", table->trouble_text);
    }
    if (keys && keys->missing) WEFTI_TRY(wefti_store_find(table->store, keys->keys, count, false, keys->places));
    if (count == 0) return WEFT_OK;
    if (job->frame.flags & WEFTI_SERVER_ENTRIES) return wefti_entries_answer(server, table, job);
    size_t      bytes = (size_t)count * table->row_bytes;
    uint8_t    *out = NULL;
    weft_status status;
    bool        coded = job->frame.flags & WEFTI_SERVER_RECEIVED_CODED;
    job->in_place = !coded && job->frame.flags & WEFTI_SERVER_RECEIVED_IN_PLACE;
    if (job->in_place) {
        status = reach(server, table, job, job->frame.receive_region, job->frame.receive_at, &out);
        if (status == WEFT_OK) server->sent_in_place += bytes;
    } else {
        status = wefti_server_take(server, bytes, false, &job->answer);
        if (status == WEFT_OK) out = job->answer->data;
    }
    if (status != WEFT_OK) return status;
    job->answer_bytes = bytes;
    if (job->frame.part) return read_state(table, job, out);
    if (!coded && (job->in_place ? wefti_lend_put(server, table, job, out) : wefti_lend_rows(server, table, job))) return WEFT_OK;
    WEFTI_TRY(wefti_store_read(table->store, keys ? keys->keys : NULL, keys ? keys->places : NULL, keys ? 0 : job->frame.first - table->begin, count, out));
    return coded ? wefti_coded_answer(server, table, job) : WEFT_OK;
}

bool wefti_tables_read_brief(weft_server *server, served_table *table, int32_t worker, uint32_t count, uint8_t values_out[WEFTI_BRIEF_VALUES]) {
    const weft_table_options *o = &table->options;
    if (o->sparse || count == 0 || count > WEFTI_BRIEF_VALUES || count != table->rows || table->row_bytes > WEFTI_BRIEF_VALUES || count * table->row_bytes > WEFTI_BRIEF_VALUES || o->pull.codec != WEFT_COMPRESS_NONE ||
        table->trouble != WEFT_OK || !wefti_clock_allows(server, table, table->clocks[worker]))
        return false;
    return wefti_store_read(table->store, NULL, NULL, 0, count, values_out) == WEFT_OK;
}

static void finish(weft_server *server, served_table *table, server_job *job, weft_status status) {
    wefti_tables_let_go(table, job->keys);
    job->keys = NULL;
    wefti_serve_answer(server, job, status);
}

/* For one that is silent for so long that the world gave it up, and speaks again. */
static weft_status fail_dead(const server_job *job) {
    return wefti_fail(WEFT_E_PEER, "rank %d itself was silent for too long and is taken for dead: the clocks went on without it", (int)job->worker);
}

void wefti_tables_wake(weft_server *server, served_table *table) {
    server_job **at = &table->waiting;
    while (*at) {
        server_job *job = *at;
        bool        gone = server->sessions[job->worker].dead;
        if (!gone && !wefti_clock_allows(server, table, job->clock)) {
            at = &job->next;
            continue;
        }
        *at = job->next;
        job->next = NULL;
        finish(server, table, job, gone ? fail_dead(job) : read_rows(server, table, job));
    }
}

/* Only what is given to the rule is. */
static bool is_coded(const wefti_server_frame *frame) {
    return frame->flags & WEFTI_SERVER_SENT_CODED && !(frame->flags & WEFTI_SERVER_SENT_IN_PLACE) &&
           (frame->kind == WEFTI_SERVER_PUSH || frame->kind == WEFTI_SERVER_PUSH_PULL);
}

/* Memory that a request names is what it moves; a line is of such memory. */
static weft_status check_places(const served_table *table, const server_job *job, bool pushes) {
    const wefti_server_frame *frame = &job->frame;
    const bool sent = frame->flags & WEFTI_SERVER_SENT_IN_PLACE, received = frame->flags & WEFTI_SERVER_RECEIVED_IN_PLACE;
    if (sent && !pushes) return wefti_fail(WEFT_E_CORRUPT, "table '%s': a pull of rank %d brings values", table->spec.name, (int)job->worker);
    if (received && !wefti_is_pull((wefti_frame_kind)frame->kind))
        return wefti_fail(WEFT_E_CORRUPT, "table '%s': a push of rank %d names memory for rows", table->spec.name, (int)job->worker);
    if (frame->line_region && (!(sent || received) || frame->kind == WEFTI_SERVER_GIVE))
        return wefti_fail(WEFT_E_CORRUPT, "table '%s': a request of rank %d names line %u of its region %u, and no memory that it would be of", table->spec.name,
                          (int)job->worker, (unsigned)frame->line, (unsigned)frame->line_region);
    return WEFT_OK;
}

static weft_status check_request(const served_table *table, const server_job *job, bool pushes) {
    const wefti_server_frame *frame = &job->frame;
    size_t                    values = 0;
    WEFTI_TRY(check_places(table, job, pushes));
    bool inside = pushes && !(frame->flags & WEFTI_SERVER_SENT_IN_PLACE), coded = inside && (is_coded(frame) || frame->flags & WEFTI_SERVER_ENTRIES);
    bool rows_only = frame->kind == WEFTI_SERVER_SET || frame->kind == WEFTI_SERVER_GIVE || frame->part || frame->width >= UINT32_MAX;
    if (frame->flags & WEFTI_SERVER_ENTRIES && (rows_only || (pushes && !inside)))
        return wefti_fail(WEFT_E_CORRUPT, "table '%s': entries of rank %d where rows are moved", table->spec.name, (int)job->worker);
    if (frame->dtype != (uint8_t)table->options.dtype)
        return wefti_fail(WEFT_E_DTYPE, "table '%s' is of %s; the request of rank %d of %s", table->spec.name, weft_dtype_name(table->options.dtype),
                          (int)job->worker, weft_dtype_name((weft_dtype)frame->dtype));
    if (frame->width != (uint64_t)table->options.width)
        return wefti_fail(WEFT_E_SHAPE, "table '%s' has rows of %lld elements; the request of rank %d of %llu", table->spec.name,
                          (long long)table->options.width, (int)job->worker, (unsigned long long)frame->width);
    if (!wefti_mul_size((size_t)frame->count, table->row_bytes, &values) ||
        (coded ? frame->body_bytes < job->list_bytes : frame->body_bytes != job->list_bytes + (inside ? values : 0)))
        return wefti_fail(WEFT_E_SHAPE, "table '%s': a request of rank %d for %llu rows comes with %llu bytes", table->spec.name, (int)job->worker,
                          (unsigned long long)frame->count, (unsigned long long)frame->body_bytes);
    return WEFT_OK;
}

static weft_status find_values(weft_server *server, const served_table *table, server_job *job) {
    uint8_t *memory = NULL;
    if (job->frame.flags & WEFTI_SERVER_SENT_IN_PLACE)
        WEFTI_TRY(reach(server, table, job, job->frame.send_region, job->frame.send_at, &memory));
    if (memory) server->received_in_place += (uint64_t)job->frame.count * table->row_bytes;
    job->values = memory ? memory : job->body ? job->body->data + job->list_bytes : NULL;
    return WEFT_OK;
}

static weft_status set_rows(served_table *table, const server_job *job) {
    const served_keys *keys = job->keys;
    if (job->frame.part) return job->frame.count ? set_state(table, job) : WEFT_OK;
    if (table->options.rule.kind == WEFT_TABLE_FTRL) return wefti_fail(WEFT_E_UNSUPPORTED, "table '%s': rows of FTRL cannot be set", table->spec.name);
    if (job->frame.count == 0) return WEFT_OK;
    return wefti_store_write(table->store, keys ? keys->places : NULL, keys ? 0 : job->frame.first - table->begin, (int64_t)job->frame.count,
                             job->values);
}

/* Repeated or not: a unit counts once. */
static weft_status give_unit(weft_server *server, served_table *table, server_job *job) {
    WEFTI_TRY(check_request(table, job, true));
    WEFTI_TRY(find_values(server, table, job));
    wefti_lend_end_all(server, table);
    return wefti_gather_add(table, job);
}

/* What short requests leave out. */
static void complete(const served_table *table, wefti_server_frame *frame) {
    if (frame->width) return;
    frame->width = (uint64_t)table->options.width;
    frame->dtype = (uint8_t)table->options.dtype;
    if (!frame->keys) frame->first = table->begin;
}

static void carry_out_rows(weft_server *server, served_table *table, server_job *job, bool repeated) {
    complete(table, &job->frame);
    bool        sets = job->frame.kind == WEFTI_SERVER_SET;
    bool        pushes = job->frame.kind != WEFTI_SERVER_PULL, pulls = wefti_is_pull((wefti_frame_kind)job->frame.kind);
    weft_status status = check_request(table, job, pushes);
    if (status == WEFT_OK && job->frame.part) status = check_state(table, job);
    pushes = pushes && !repeated;
    if (status == WEFT_OK && pushes) status = wefti_store_settle(table->store);
    bool entries = pushes && job->frame.flags & WEFTI_SERVER_ENTRIES, coded = pushes && !entries && is_coded(&job->frame);
    if (status == WEFT_OK && entries) status = wefti_entries_find(table, job);
    else if (status == WEFT_OK && pushes && !coded) status = find_values(server, table, job);
    if (status == WEFT_OK) status = wefti_tables_find_rows(server, table, job, pushes && !coded); /* rows that are left out do not come into being */
    if (status == WEFT_OK && coded) status = wefti_coded_read(server, table, job);
    bool follows = pushes && wefti_follow_adds(table, job);
    if (status == WEFT_OK && pushes && !follows) status = wefti_follow_wait(server, table, job);
    if (pushes && (sets || !table->sum)) wefti_lend_end_all(server, table);
    if (status == WEFT_OK && pushes) status = follows ? wefti_follow_add(server, table, job) : sets ? set_rows(table, job) : coded ? wefti_coded_give(server, table, job) : wefti_clock_push(server, table, job);
    if (status == WEFT_E_AGAIN) {
        server->sessions[job->worker].last = job->frame.number - 1;
        server->received_in_place -= (uint64_t)job->frame.count * table->row_bytes;
        wefti_tables_let_go(table, job->keys);
        wefti_serve_forget(server, job);
        return;
    }
    if (job->frame.kind == WEFTI_SERVER_PUSH_PULL && table->sum && !repeated) {
        wefti_clock_tick(server, table, job->worker); /* also where the push was refused: the others wait for the clock */
        wefti_tables_wake(server, table);
    }
    job->clock = table->clocks[job->worker];
    if (status == WEFT_OK && pulls && !wefti_clock_allows(server, table, job->clock)) {
        job->next = table->waiting;
        table->waiting = job;
        return;
    }
    if (status == WEFT_OK && pulls) status = read_rows(server, table, job);
    finish(server, table, job, status);
}

/* Its number is used up all the same, and the clock that it would have ended has ended: the others wait for that. */
void wefti_tables_refuse(weft_server *server, server_job *job) {
    server_session *session = &server->sessions[job->worker];
    served_table   *table = wefti_tables_find(server, job->frame.table);
    bool            repeated = job->frame.number <= session->last;
    if (!repeated) session->last = job->frame.number;
    if (job->frame.kind == WEFTI_SERVER_PUSH_PULL && table && table->sum && !repeated) {
        wefti_clock_tick(server, table, job->worker);
        wefti_tables_wake(server, table);
    }
    wefti_serve_answer(server, job, wefti_fail(job->status, "%s", job->message));
}

void wefti_tables_carry_out(weft_server *server, server_job *job) {
    server_session *session = &server->sessions[job->worker];
    served_table   *table = wefti_tables_find(server, job->frame.table);
    bool            repeated = job->frame.number <= session->last;
    weft_status     status = WEFT_OK;
    if (repeated) server->repeated_count++;
    else session->last = job->frame.number;
    wefti_frame_kind kind = (wefti_frame_kind)job->frame.kind;
    if (session->dead && kind != WEFTI_SERVER_LEAVE) {
        wefti_serve_answer(server, job, fail_dead(job));
        return;
    }
    if (kind == WEFTI_SERVER_LEAVE) {
        session->left = true;
        wefti_serve_answer(server, job, WEFT_OK);
        wefti_tables_worker_gone(server);
        return;
    }
    if (kind == WEFTI_SERVER_RESIZE) {
        if (job->frame.first > session->moving) session->moving = job->frame.first;
        wefti_serve_answer(server, job, WEFT_OK);
        return;
    }
    if (wefti_is_of_files(kind)) {
        wefti_saves_carry_out(server, job);
        return;
    }
    if (kind == WEFTI_SERVER_VECTORS) {
        wefti_serve_answer(server, job, wefti_vectors_carry_out(server, job, repeated));
        return;
    }
    if (kind == WEFTI_SERVER_WORK) {
        wefti_ledger_carry_out(server, job);
        return;
    }
    if (kind == WEFTI_SERVER_CREATE || kind == WEFTI_SERVER_OPEN) {
        wefti_serve_answer(server, job, kind == WEFTI_SERVER_CREATE ? create_table(server, job) : open_table(server, job));
        return;
    }
    if (!table) {
        status = wefti_fail(WEFT_E_NOT_FOUND, "rank %d, which serves, has no table of number %016llx", (int)server->rank,
                            (unsigned long long)job->frame.table);
    } else if (kind == WEFTI_SERVER_CLOCK) {
        if (!repeated) wefti_clock_tick(server, table, job->worker);
        wefti_tables_wake(server, table);
    } else if (kind == WEFTI_SERVER_FORGET) {
        wefti_tables_forget(table, job->worker, job->frame.keys);
    } else if (kind == WEFTI_SERVER_GIVE) {
        status = give_unit(server, table, job);
    } else if (wefti_is_of_rows(kind)) {
        carry_out_rows(server, table, job, repeated);
        return;
    } else {
        status = wefti_fail(WEFT_E_CORRUPT, "the parameter server: a request of kind %d", (int)kind);
    }
    wefti_serve_answer(server, job, status);
}

/* --- time and partings --- */

void wefti_tables_worker_gone(weft_server *server) {
    wefti_ledger_look(server, server->now_ns);
    for (served_table *table = server->served; table; table = table->next) {
        wefti_clock_advance(server, table);
        wefti_tables_wake(server, table);
    }
    wefti_saves_advance(server);
}

void wefti_tables_look(weft_server *server, uint64_t now_ns) {
    wefti_ledger_look(server, now_ns);
    for (served_table *table = server->served; table; table = table->next)
        for (server_job **at = &table->waiting; *at;) {
            server_job *job = *at;
            if (now_ns < job->deadline_ns) {
                at = &job->next;
                continue;
            }
            char text[WEFTI_SERVER_TEXT_BYTES];
            *at = job->next;
            wefti_clock_explain(server, table, job->clock, text, sizeof text);
            finish(server, table, job, wefti_fail(WEFT_E_TIMEOUT, "%s", text));
        }
}

void wefti_tables_close(weft_server *server) {
    wefti_ledger_close(server);
    while (server->served) {
        served_table *table = server->served;
        server->served = table->next;
        free_table(server, table);
    }
}

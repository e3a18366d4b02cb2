/* Requests of entries. The worker packs what it pushes server by server (store_entries.h has how it lies); a server looks at all of it before it
 * changes anything, and answers with what is not zero, as its rows have it. How long that is only the reply says, so the worker makes room
 * when it comes, and puts columns in order: servers have less time than workers. What there is no room for is received and thrown away.
 *
 * Memory: a push once more, packed; a pull twice, until its request has ended. */
#include "parallel/server/entries.h"

#include <stdlib.h>
#include <string.h>

#include "parallel/server/keys.h"
#include "parallel/server/route.h"

static const weft_keys *keys_of(const weft_request *request) { return request->own_keys ? request->own_keys : request->call.keys; }
static int64_t rows_of(const weft_request *request) { return keys_of(request) ? keys_of(request)->count : request->table->options.rows; }

/* --- what is pushed --- */

weft_status wefti_entries_check(const weft_table *table, const weft_table_call *call) {
    const weft_table_options *o = &table->options;
    const bool                pushes = call->kind == WEFT_PUSH || call->kind == WEFT_PUSH_PULL, pulls = call->kind == WEFT_PULL || call->kind == WEFT_PUSH_PULL;
    if (!call->entries && !call->pulled) return WEFT_OK;
    if (pushes != (call->entries != NULL) || pulls != (call->pulled != NULL))
        return wefti_fail(WEFT_E_INVALID, "table '%s': a call of kind %d with%s .entries and with%s .pulled; pushes want the first, pulls the second, and rows are not "
                          "set by entries", o->name, (int)call->kind, call->entries ? "" : "out", call->pulled ? "" : "out");
    if (pushes && o->rule.kind != WEFT_TABLE_ADD)
        return wefti_fail(WEFT_E_UNSUPPORTED, "table '%s': entries are pushed where the rule only adds (WEFT_TABLE_ADD); what others make of a row depends on all of it: "
                          "push rows", o->name);
    if (o->width >= UINT32_MAX)
        return wefti_fail(WEFT_E_UNSUPPORTED, "table '%s': rows of %lld elements have no entries, which are for less than 2^32", o->name, (long long)o->width);
    return WEFT_OK;
}

static weft_status check_columns(const weft_request *request) {
    const weft_table_options *o = &request->table->options;
    const weft_entries       *e = request->call.entries;
    const weft_keys          *keys = keys_of(request);
    if (rows_of(request) > 0 && !e->counts) return wefti_fail(WEFT_E_INVALID, "table '%s': entries without .counts", o->name);
    for (int64_t row = 0, at = 0; row < rows_of(request); at += e->counts[row++]) {
        if (e->counts[row] && (!e->columns || !e->values)) return wefti_fail(WEFT_E_INVALID, "table '%s': entries without .columns or .values", o->name);
        for (uint32_t i = 0; i < e->counts[row]; i++) {
            const uint32_t column = e->columns[at + i];
            bool           ascends = i == 0 || column > e->columns[at + i - 1];
            if (ascends && column < o->width) continue;
            return wefti_fail(WEFT_E_INVALID, "table '%s': entry %u of %u of row %llu is of column %u, %s", o->name, (unsigned)i, (unsigned)e->counts[row],
                              (unsigned long long)(keys ? keys->keys[row] : (uint64_t)row), (unsigned)column,
                              ascends ? "which its rows do not have" : "and columns of a row ascend");
        }
    }
    return WEFT_OK;
}

/* The server's rows in the request's order. */
static void find_part(const weft_server *server, const weft_request *request, int32_t index, int64_t *begin_out, int64_t *end_out) {
    const weft_keys *keys = keys_of(request);
    const uint64_t   rows = (uint64_t)request->table->options.rows;
    *begin_out = keys ? keys->begin[index] : (int64_t)wefti_route_begin(rows, server->servers, index);
    *end_out = keys ? keys->begin[index + 1] : (int64_t)wefti_route_begin(rows, server->servers, index + 1);
}

/* Where each row's entries begin, in the caller's order. */
static int64_t start_rows(const uint32_t *counts, int64_t rows, int64_t *starts) {
    int64_t at = 0;
    for (int64_t row = 0; row < rows; row++, at += counts[row - 1]) starts[row] = at;
    return at;
}

typedef struct packing {
    const weft_request *request;
    const int64_t      *starts; /* [rows] */
    uint8_t            *out;    /* NULL: bytes are counted only */
} packing;

static weft_status pack_part(const packing *p, int64_t begin, int64_t end, size_t *bytes_out) {
    const weft_table_options *o = &p->request->table->options;
    const weft_entries       *e = p->request->call.entries;
    const weft_keys          *keys = keys_of(p->request);
    const int64_t            *places = keys ? keys->places : NULL;
    const size_t              element = weft_dtype_bytes(o->dtype);
    const uint32_t            wide = wefti_entries_column_bytes(o->width);
    wefti_entries_layout      layout;
    uint64_t                  count = 0, at = 0;
    for (int64_t row = begin; row < end; row++) count += e->counts[places ? places[row] : row];
    if (!wefti_entries_lay_out((uint64_t)(end - begin), count, o->width, element, &layout))
        return wefti_fail(WEFT_E_NO_MEMORY, "table '%s': %llu entries in one request are more bytes than there are addresses", o->name, (unsigned long long)count);
    *bytes_out = end > begin ? layout.bytes : 0;
    if (!p->out || end == begin) return WEFT_OK;
    memset(p->out + layout.values - 8, 0, 8); /* what only fills up */
    memset(p->out + layout.bytes - 8, 0, 8);
    if (count) memset(p->out + layout.columns - 8, 0, 8);
    for (int64_t row = begin; row < end; row++) {
        const int64_t from = p->starts[places ? places[row] : row];
        const uint32_t here = e->counts[places ? places[row] : row];
        ((uint32_t *)(void *)p->out)[row - begin] = here;
        if (!here) continue;
        memcpy(p->out + layout.values + at * element, (const uint8_t *)e->values + (size_t)from * element, here * element);
        if (wide == sizeof(uint32_t)) memcpy(p->out + layout.columns + at * wide, e->columns + from, here * wide);
        for (uint32_t i = 0; i < here && wide != sizeof(uint32_t); i++) wefti_entries_put_column(p->out + layout.columns, wide, at + i, e->columns[from + i]);
        at += here;
    }
    return WEFT_OK;
}

static weft_status pack_all(weft_server *server, weft_request *request, const int64_t *starts, uint8_t *out, size_t *bytes_out) {
    packing p = {.request = request, .starts = starts, .out = out};
    *bytes_out = 0;
    for (int32_t i = 0; i < server->servers; i++) {
        int64_t begin, end;
        size_t  bytes = 0;
        find_part(server, request, i, &begin, &end);
        WEFTI_TRY(pack_part(&p, begin, end, &bytes));
        request->parts[i].coded = p.out;
        request->parts[i].coded_bytes = bytes;
        if (out) p.out += bytes;
        *bytes_out += bytes;
    }
    return WEFT_OK;
}

static weft_status take(weft_server *server, size_t bytes, server_buffer **buffer_out) {
    pthread_mutex_lock(&server->lock);
    weft_status status = wefti_server_take(server, bytes, false, buffer_out);
    pthread_mutex_unlock(&server->lock);
    return status;
}
static void give(weft_server *server, server_buffer *buffer) {
    pthread_mutex_lock(&server->lock);
    wefti_server_give(server, buffer);
    pthread_mutex_unlock(&server->lock);
}

/* For answers that there will be no memory for. */
static weft_status need_trash(weft_server *server) {
    weft_status status = WEFT_OK;
    pthread_mutex_lock(&server->lock);
    if (!server->trash) status = wefti_alloc_raw(SERVER_PIECE_BYTES, WEFTI_CACHE_LINE, "room for entries", &server->trash);
    if (status == WEFT_OK && server->twin && !server->twin->trash)
        status = wefti_alloc_raw(SERVER_PIECE_BYTES, WEFTI_CACHE_LINE, "room for entries", &server->twin->trash);
    pthread_mutex_unlock(&server->lock);
    return status;
}

weft_status wefti_entries_prepare(weft_server *server, weft_request *request) {
    server_buffer *starts = NULL;
    size_t         bytes = 0;
    if (request->call.pulled) WEFTI_TRY(need_trash(server));
    if (!request->call.entries) return WEFT_OK;
    WEFTI_TRY(check_columns(request));
    WEFTI_TRY(pack_all(server, request, NULL, NULL, &bytes));
    WEFTI_TRY(take(server, (size_t)rows_of(request) * sizeof(int64_t), &starts));
    weft_status status = take(server, bytes, &request->staging_out);
    if (status == WEFT_OK) {
        (void)start_rows(request->call.entries->counts, rows_of(request), (int64_t *)(void *)starts->data);
        status = pack_all(server, request, (const int64_t *)(const void *)starts->data, request->staging_out->data, &bytes);
    }
    give(server, starts);
    return status;
}

/* --- what is pulled --- */

void wefti_entries_give(weft_server *server, weft_request *request) {
    for (int32_t i = 0; i < server->servers; i++) {
        wefti_server_give(server, request->parts[i].pulled);
        request->parts[i].pulled = NULL;
    }
}

/* All that there may be of a part's rows. */
static bool is_possible(const request_part *part, uint64_t bytes) {
    const weft_table    *table = part->request->table;
    wefti_entries_layout most;
    size_t               elements;
    if (bytes % 8 != 0 || bytes > SIZE_MAX) return false;
    return !wefti_mul_size((size_t)part->count, (size_t)table->options.width, &elements) ||
           !wefti_entries_lay_out((uint64_t)part->count, elements, table->options.width, weft_dtype_bytes(table->options.dtype), &most) || bytes <= most.bytes;
}

weft_status wefti_entries_reply(weft_server *server, request_part *part, size_t room, void (*done)(weft_server *server, server_mover *mover)) {
    const wefti_server_frame *frame = (const wefti_server_frame *)part->reply_bytes;
    const bool                inside = frame->flags & WEFTI_SERVER_INLINE;
    const size_t              bytes = (size_t)frame->body_bytes;
    if (part->count == 0 && bytes == 0) return WEFT_OK;
    if (!is_possible(part, frame->body_bytes) || bytes == 0 || (inside && bytes > room))
        return wefti_fail(WEFT_E_CORRUPT, "rank %d answers with %zu bytes of entries of %lld rows", (int)wefti_server_rank(server, part->server), bytes,
                          (long long)part->count);
    server->moved_value_bytes += bytes;
    weft_status status = wefti_server_take(server, bytes, false, &part->pulled);
    if (status != WEFT_OK) {
        char text[WEFTI_SERVER_TEXT_BYTES];
        snprintf(text, sizeof text, "table '%s': no memory for %zu bytes of entries of %lld rows: pull fewer at once", part->request->table->options.name, bytes,
                 (long long)part->count);
        wefti_client_fail(part->request, status, text);
        if (inside) return WEFT_OK;
    }
    part->pulled_bytes = bytes;
    if (inside) {
        memcpy(part->pulled->data, part->reply_bytes + sizeof *frame, bytes);
        return WEFT_OK;
    }
    part->in = (server_mover){.kind = WEFTI_WIRE_RECV, .peer = wefti_server_rank(server, part->server), .tag = wefti_server_tag(WEFTI_TAG_REPLY_BODY, part->slot),
                              .base = part->pulled ? part->pulled->data : server->trash, .discards = !part->pulled, .bytes = bytes, .done = done, .owner = part};
    part->pending++;
    wefti_server_move(server, &part->in);
    return WEFT_OK;
}

/* A row's entries by column: few by insertion, more through an array of 64-bit keys. */
static int by_column(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

enum { FEW = 24 };

static void insert(uint32_t *columns, uint8_t *values, size_t element, uint32_t count) {
    for (uint32_t i = 1; i < count; i++) {
        uint64_t       value;
        const uint32_t column = columns[i];
        uint32_t       at = i;
        memcpy(&value, values + i * element, element);
        for (; at > 0 && columns[at - 1] > column; at--) {
            columns[at] = columns[at - 1];
            memcpy(values + at * element, values + (at - 1) * element, element);
        }
        columns[at] = column;
        memcpy(values + at * element, &value, element);
    }
}

/* `work` [2 x count] of u64. */
static void sort_row(uint32_t *columns, uint8_t *values, size_t element, uint32_t count, uint64_t *work) {
    bool ascends = true;
    for (uint32_t i = 1; i < count && ascends; i++) ascends = columns[i] > columns[i - 1];
    if (ascends) return;
    if (count <= FEW) {
        insert(columns, values, element, count);
        return;
    }
    uint8_t *moved = (uint8_t *)(work + count);
    for (uint32_t i = 0; i < count; i++) work[i] = (uint64_t)columns[i] << 32 | i;
    qsort(work, count, sizeof *work, by_column);
    memcpy(moved, values, count * element);
    for (uint32_t i = 0; i < count; i++) {
        columns[i] = (uint32_t)(work[i] >> 32);
        memcpy(values + i * element, moved + (work[i] & UINT32_MAX) * element, element);
    }
}

/* The struct's memory: counts, columns, values, and room for the longest row to be sorted. */
static weft_status make_room(weft_entries *to, size_t element, int64_t rows, uint64_t count, uint64_t longest, int64_t **starts_out, uint64_t **work_out) {
    size_t starts = wefti_align_up((size_t)rows * sizeof(uint32_t), 8), work = starts + (size_t)rows * sizeof(int64_t), values = work + 2 * longest * sizeof(uint64_t);
    size_t columns = values + wefti_align_up(count * element, 8), bytes = columns + count * sizeof(uint32_t);
    if (!to->memory || bytes > to->bytes) {
        uint8_t *memory = NULL;
        WEFTI_TRY(wefti_alloc_raw(bytes, WEFTI_CACHE_LINE, "entries that were pulled", &memory));
        weft_entries_release(to);
        to->memory = memory;
        to->bytes = bytes;
    }
    uint8_t *base = to->memory;
    to->counts = (const uint32_t *)(const void *)base;
    to->values = base + values;
    to->columns = (const uint32_t *)(const void *)(base + columns);
    to->count = (int64_t)count;
    *starts_out = (int64_t *)(void *)(base + starts);
    *work_out = (uint64_t *)(void *)(base + work);
    return WEFT_OK;
}

/* What one server sent, to its places. */
static void put_part(const weft_request *request, const request_part *part, const wefti_entries *from, const int64_t *starts, uint64_t *work) {
    const weft_keys *keys = keys_of(request);
    uint8_t         *values = (uint8_t *)(uintptr_t)request->call.pulled->values;
    uint32_t        *columns = (uint32_t *)(uintptr_t)request->call.pulled->columns;
    const size_t     element = from->element_bytes;
    uint64_t         at = 0;
    for (int64_t i = 0; i < part->count; at += from->counts[i++]) {
        const int64_t  row = part->first + i, to = starts[keys && keys->places ? keys->places[row] : row];
        const uint32_t here = from->counts[i];
        if (!here) continue;
        memcpy(values + (size_t)to * element, from->values + at * element, here * element);
        for (uint32_t k = 0; k < here; k++) columns[to + k] = wefti_entries_column(from->columns, from->column_bytes, at + k);
        sort_row(columns + to, values + (size_t)to * element, element, here, work);
    }
}

weft_status wefti_entries_pulled(weft_request *request) {
    const weft_table_options *o = &request->table->options;
    const weft_keys          *keys = keys_of(request);
    const size_t              element = weft_dtype_bytes(o->dtype);
    const int32_t             servers = request->server->servers;
    wefti_entries            *from = NULL;
    uint64_t                  count = 0, longest = 0, *work = NULL;
    int64_t                  *starts = NULL;
    WEFTI_TRY(wefti_alloc((size_t)servers * sizeof *from, "entries that were pulled", &from));
    weft_status status = WEFT_OK;
    for (int32_t i = 0; i < servers && status == WEFT_OK; i++) {
        const request_part *part = &request->parts[i];
        if (part->count) status = wefti_entries_read(part->pulled->data, part->pulled_bytes, (uint64_t)part->count, o->width, element, false, &from[i]);
        if (status != WEFT_OK) status = wefti_while(status, "table '%s', an answer of rank %d", o->name, (int)wefti_server_rank(request->server, i));
        count += from[i].count;
        for (int64_t row = 0; from[i].counts && row < part->count; row++) longest = from[i].counts[row] > longest ? from[i].counts[row] : longest;
    }
    if (status == WEFT_OK) status = make_room(request->call.pulled, element, rows_of(request), count, longest, &starts, &work);
    for (int32_t i = 0; i < servers && status == WEFT_OK; i++)
        for (int64_t row = 0; row < request->parts[i].count; row++) {
            int64_t at = request->parts[i].first + row;
            ((uint32_t *)(uintptr_t)request->call.pulled->counts)[keys && keys->places ? keys->places[at] : at] = from[i].counts[row];
        }
    if (status == WEFT_OK) (void)start_rows(request->call.pulled->counts, rows_of(request), starts);
    for (int32_t i = 0; i < servers && status == WEFT_OK; i++)
        if (request->parts[i].count) put_part(request, &request->parts[i], &from[i], starts, work);
    wefti_free(from, (size_t)servers * sizeof *from);
    return status;
}

void weft_entries_release(weft_entries *pulled) {
    if (!pulled) return;
    if (pulled->memory) wefti_free(pulled->memory, pulled->bytes);
    *pulled = (weft_entries){0};
}

weft_status weft_table_push_entries(weft_table *table, const uint64_t *rows, int64_t row_count, const weft_entries *entries) {
    return wefti_table_run(table, &(weft_table_call){.kind = WEFT_PUSH, .rows = rows, .row_count = row_count, .entries = entries});
}

weft_status weft_table_pull_entries(weft_table *table, const uint64_t *rows, int64_t row_count, weft_entries *pulled) {
    return wefti_table_run(table, &(weft_table_call){.kind = WEFT_PULL, .rows = rows, .row_count = row_count, .pulled = pulled});
}

/* --- the server's --- */

weft_status wefti_entries_find(const served_table *table, server_job *job) {
    const weft_table_options *o = &table->options;
    if (o->rule.kind != WEFT_TABLE_ADD || job->frame.kind == WEFTI_SERVER_SET || job->frame.part || job->frame.flags & WEFTI_SERVER_SENT_CODED)
        return wefti_fail(WEFT_E_UNSUPPORTED, "table '%s': rank %d gives entries to what takes rows", table->spec.name, (int)job->worker);
    if (job->frame.count == 0) return WEFT_OK;
    if (!job->body) return wefti_fail(WEFT_E_CORRUPT, "table '%s': entries of rank %d have no bytes", table->spec.name, (int)job->worker);
    weft_status status = wefti_entries_read(job->body->data + job->list_bytes, (size_t)job->frame.body_bytes - job->list_bytes, job->frame.count, o->width,
                                            weft_dtype_bytes(o->dtype), true, &job->entries);
    return status == WEFT_OK ? WEFT_OK : wefti_while(status, "table '%s', a push of rank %d", table->spec.name, (int)job->worker);
}

/* One row as the table has it. columns_out NULL: how many entries only. */
static weft_status read_row(const served_table *table, const server_job *job, uint64_t i, void *row, uint8_t *columns_out, uint8_t *values_out, uint32_t *count_out) {
    const served_keys *keys = job->keys;
    const uint64_t     place = keys ? keys->places[i] : job->frame.first - table->begin + i;
    return wefti_store_read_entries(table->store, keys ? keys->keys[i] : job->frame.first + i, place, row, columns_out, values_out, count_out);
}

static weft_status fill_answer(const served_table *table, server_job *job, const wefti_entries_layout *layout, uint64_t count, void *row) {
    const size_t   element = weft_dtype_bytes(table->options.dtype);
    const uint32_t wide = wefti_entries_column_bytes(table->options.width);
    uint8_t       *out = job->answer->data;
    memset(out + layout->values - 8, 0, 8); /* what only fills up */
    if (count) memset(out + layout->columns - 8, 0, 8);
    if (count) memset(out + layout->bytes - 8, 0, 8);
    for (uint64_t i = 0, at = 0; i < job->frame.count; i++) {
        uint32_t here;
        WEFTI_TRY(read_row(table, job, i, row, out + layout->columns + at * wide, out + layout->values + at * element, &here));
        ((uint32_t *)(void *)out)[i] = here;
        at += here;
    }
    job->answer_bytes = layout->bytes;
    return WEFT_OK;
}

static weft_status answer(weft_server *server, const served_table *table, server_job *job, void *row) {
    wefti_entries_layout layout = {0};
    uint64_t             count = 0;
    for (uint64_t i = 0; i < job->frame.count; i++) {
        uint32_t here;
        WEFTI_TRY(read_row(table, job, i, row, NULL, NULL, &here));
        count += here;
    }
    if (wefti_entries_lay_out(job->frame.count, count, table->options.width, weft_dtype_bytes(table->options.dtype), &layout) &&
        wefti_server_take(server, layout.bytes, false, &job->answer) == WEFT_OK)
        return fill_answer(table, job, &layout, count, row);
    return wefti_fail(WEFT_E_NO_MEMORY, "rank %d, which serves, has no memory for %llu entries of %llu rows of table '%s': pull fewer rows at once", (int)server->rank,
                      (unsigned long long)count, (unsigned long long)job->frame.count, table->spec.name);
}

weft_status wefti_entries_answer(weft_server *server, const served_table *table, server_job *job) {
    server_buffer *row = NULL;
    WEFTI_TRY(wefti_server_take(server, table->row_bytes, false, &row));
    weft_status status = answer(server, table, job, row->data);
    wefti_server_give(server, row);
    return status;
}

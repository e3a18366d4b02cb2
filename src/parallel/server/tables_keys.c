/* The rows of a request: a list that comes with it, a list that came before, or a range of a dense table.
 *
 * A list is looked up in the table's hash once and kept as places, 16 bytes a key, until the worker forgets it. */
#include <string.h>

#include "parallel/server/coding.h"
#include "parallel/server/inside.h"

static void free_keys(served_keys *keys) {
    size_t bytes = (size_t)keys->count * sizeof(uint64_t);
    if (keys->keys) wefti_free(keys->keys, bytes);
    if (keys->places) wefti_free(keys->places, bytes);
    wefti_free(keys, sizeof *keys);
}

void wefti_tables_let_go(served_table *table, served_keys *keys) {
    if (!keys || --keys->users > 0) return;
    if (keys->id && !keys->forgotten) return;
    for (served_keys **at = &table->keys; *at; at = &(*at)->next)
        if (*at == keys) {
            *at = keys->next;
            break;
        }
    free_keys(keys);
}

void wefti_tables_forget(served_table *table, int32_t worker, uint64_t id) {
    for (served_keys *keys = table->keys; keys; keys = keys->next)
        if (keys->worker == worker && keys->id == id && !keys->forgotten) {
            keys->forgotten = true;
            keys->users++;
            wefti_tables_let_go(table, keys);
            return;
        }
}

/* Whose key it is, is checked here, so that a worker of another mind about the routes does not spoil a table. */
static weft_status check_list(const weft_server *server, const served_table *table, const uint64_t *list, int64_t count) {
    int32_t  index = wefti_server_index(server);
    bool     hashed = table->options.split == WEFT_SPLIT_HASH;
    uint64_t end = (uint64_t)table->options.rows;
    for (int64_t i = 0; i < count; i++) {
        bool mine = hashed ? wefti_route_hash(list[i], server->servers) == index && (!end || list[i] < end)
                           : list[i] - table->begin < table->rows;
        if (!mine || (i > 0 && list[i] <= list[i - 1]))
            return wefti_fail(WEFT_E_INVALID, "table '%s': key %llu at place %lld of %lld of a list %s", table->spec.name,
                              (unsigned long long)list[i], (long long)i, (long long)count,
                              mine ? "does not ascend" : "is not one of this server");
    }
    return WEFT_OK;
}

static weft_status add_keys(served_table *table, const uint64_t *list, int64_t count, int32_t worker, uint64_t id, served_keys **keys_out) {
    served_keys *keys = NULL;
    size_t       bytes = (size_t)count * sizeof *list;
    WEFTI_TRY(wefti_alloc(sizeof *keys, "a key set", &keys));
    keys->count = count;
    keys->id = id;
    keys->worker = worker;
    keys->missing = true;
    weft_status status = wefti_alloc_raw(bytes, WEFTI_CACHE_LINE, "a key set", &keys->keys);
    if (status == WEFT_OK) status = wefti_alloc_raw(bytes, WEFTI_CACHE_LINE, "a key set", &keys->places);
    if (status != WEFT_OK) {
        free_keys(keys);
        return status;
    }
    if (count) memcpy(keys->keys, list, bytes);
    for (int64_t i = 0; i < count; i++) keys->places[i] = WEFTI_PLACE_NONE;
    keys->next = table->keys;
    table->keys = keys;
    *keys_out = keys;
    return WEFT_OK;
}

static weft_status look_up(served_table *table, served_keys *keys, bool create) {
    if (!keys->missing) return WEFT_OK;
    if (!table->options.sparse) {
        for (int64_t i = 0; i < keys->count; i++) keys->places[i] = keys->keys[i] - table->begin;
        keys->missing = false;
        return WEFT_OK;
    }
    WEFTI_TRY(wefti_store_find(table->store, keys->keys, keys->count, create, keys->places));
    keys->missing = false;
    for (int64_t i = 0; i < keys->count && !create && !keys->missing; i++) keys->missing = keys->places[i] == WEFTI_PLACE_NONE;
    return WEFT_OK;
}

static served_keys *known_keys(const served_table *table, int32_t worker, uint64_t id) {
    served_keys *keys = id ? table->keys : NULL;
    while (keys && (keys->worker != worker || keys->id != id || keys->forgotten)) keys = keys->next;
    return keys;
}

static weft_status find_known(served_table *table, const server_job *job, served_keys **keys_out) {
    served_keys *keys = known_keys(table, job->worker, job->frame.keys);
    *keys_out = keys;
    if (keys && keys->count == (int64_t)job->frame.count) return WEFT_OK;
    if (keys)
        return wefti_fail(WEFT_E_INVALID, "table '%s': key set %llu of rank %d has %lld keys here, and %llu in a request", table->spec.name,
                          (unsigned long long)keys->id, (int)job->worker, (long long)keys->count, (unsigned long long)job->frame.count);
    return wefti_fail(WEFT_E_NOT_FOUND, "table '%s': rank %d has sent no key set %llu", table->spec.name, (int)job->worker,
                      (unsigned long long)job->frame.keys);
}

static weft_status check_range(const served_table *table, const wefti_server_frame *frame) {
    if (table->options.sparse) return wefti_fail(WEFT_E_INVALID, "table '%s' is sparse: a request names its keys", table->spec.name);
    if (frame->first >= table->begin && frame->first - table->begin <= table->rows && frame->count <= table->rows - (frame->first - table->begin))
        return WEFT_OK;
    return wefti_fail(WEFT_E_INVALID, "table '%s': rows %llu to %llu are not of this server, which has %llu to %llu", table->spec.name,
                      (unsigned long long)frame->first, (unsigned long long)(frame->first + frame->count), (unsigned long long)table->begin,
                      (unsigned long long)(table->begin + table->rows));
}

/* A list that comes with a request: checked, and known from then on. */
static weft_status take_list(weft_server *server, served_table *table, const server_job *job, const uint64_t *list, served_keys **keys_out) {
    const wefti_server_frame *frame = &job->frame;
    WEFTI_TRY(check_list(server, table, list, (int64_t)frame->count));
    if (known_keys(table, job->worker, frame->keys)) return find_known(table, job, keys_out); /* the request comes again */
    return add_keys(table, list, (int64_t)frame->count, job->worker, frame->keys, keys_out);
}

static weft_status take_packed(weft_server *server, served_table *table, const server_job *job, served_keys **keys_out) {
    server_buffer *list = NULL;
    WEFTI_TRY(wefti_server_take(server, (size_t)job->frame.count * sizeof(uint64_t), false, &list)); /* at most 8 times what came */
    weft_status status = wefti_list_read(job->body->data, job->list_bytes, (int64_t)job->frame.count, (uint64_t *)(void *)list->data);
    if (status == WEFT_OK) status = take_list(server, table, job, (const uint64_t *)(const void *)list->data, keys_out);
    else status = wefti_while(status, "table '%s', a request of rank %d", table->spec.name, (int)job->worker);
    wefti_server_give(server, list);
    return status;
}

weft_status wefti_tables_find_rows(weft_server *server, served_table *table, server_job *job, bool create) {
    const wefti_server_frame *frame = &job->frame;
    served_keys              *keys = NULL;
    job->keys = NULL;
    if (frame->flags & WEFTI_SERVER_LISTED) {
        if (!job->body) return wefti_fail(WEFT_E_CORRUPT, "table '%s': a list of rank %d has no bytes", table->spec.name, (int)job->worker);
        if (frame->flags & WEFTI_SERVER_PACKED) WEFTI_TRY(take_packed(server, table, job, &keys));
        else WEFTI_TRY(take_list(server, table, job, (const uint64_t *)job->body->data, &keys));
    } else if (frame->keys && frame->count) {
        WEFTI_TRY(find_known(table, job, &keys));
    } else if (frame->count) {
        return check_range(table, frame);
    } else {
        return WEFT_OK;
    }
    job->keys = keys;
    keys->users++;
    return look_up(table, keys, create);
}

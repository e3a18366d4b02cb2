/* Key sets: rows sorted, freed of repetitions and dealt out to servers once, and then known by a number.
 *
 * Memory: 8 bytes a key where servers have ranges, 24 where keys are hashed, and the list as it is sent where that is smaller. */
#include <stdlib.h>
#include <string.h>

#include "parallel/server/coding.h"
#include "parallel/server/keys.h"

static int by_value(const void *a, const void *b) {
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return left < right ? -1 : left > right;
}

/* Sorted by digits of 16 bits, those that differ: many times quicker than by comparison. */
static weft_status sort_keys(uint64_t *keys, int64_t count) {
    if (count < 4096) {
        qsort(keys, (size_t)count, sizeof *keys, by_value);
        return WEFT_OK;
    }
    uint64_t *other = NULL, differ = 0, *from = keys;
    int64_t  *starts = NULL;
    size_t    bytes = (size_t)count * sizeof *keys, table = 65536 * sizeof *starts;
    for (int64_t i = 1; i < count; i++) differ |= keys[i] ^ keys[0];
    WEFTI_TRY(wefti_alloc_raw(bytes, WEFTI_CACHE_LINE, "keys to be sorted", &other));
    weft_status status = wefti_alloc(table, "keys to be sorted", &starts);
    uint64_t   *to = other;
    for (int shift = 0; shift < 64 && status == WEFT_OK; shift += 16) {
        if ((differ >> shift & 0xffff) == 0) continue;
        memset(starts, 0, table);
        for (int64_t i = 0; i < count; i++) starts[from[i] >> shift & 0xffff]++;
        for (int64_t digit = 0, sum = 0; digit < 65536; digit++) {
            int64_t here = starts[digit];
            starts[digit] = sum;
            sum += here;
        }
        for (int64_t i = 0; i < count; i++) to[starts[from[i] >> shift & 0xffff]++] = from[i];
        uint64_t *swap = from;
        from = to;
        to = swap;
    }
    if (status == WEFT_OK && from != keys) memcpy(keys, from, bytes);
    wefti_free(starts, table);
    wefti_free(other, bytes);
    return status;
}

static int32_t server_of(const weft_table *table, uint64_t key) {
    return table->options.split == WEFT_SPLIT_HASH ? wefti_route_hash(key, table->server->servers)
                                                   : wefti_route_range(key, (uint64_t)table->options.rows, table->server->servers);
}

/* Ranges: the keys in order are those of the servers in order. */
static void route_ranges(weft_keys *keys) {
    int32_t servers = keys->table->server->servers;
    int64_t at = 0;
    keys->routed = keys->keys;
    for (int32_t server = 0; server < servers; server++) {
        uint64_t end = wefti_route_begin((uint64_t)keys->table->options.rows, servers, server + 1);
        keys->begin[server] = at;
        int64_t low = at, high = keys->count;
        while (low < high) {
            int64_t middle = low + (high - low) / 2;
            if (keys->keys[middle] < end) low = middle + 1;
            else high = middle;
        }
        at = low;
    }
    keys->begin[servers] = keys->count;
}

static weft_status route_hashed(weft_keys *keys) {
    int32_t servers = keys->table->server->servers;
    if (servers == 1) {
        keys->routed = keys->keys;
        keys->begin[1] = keys->count;
        return WEFT_OK;
    }
    WEFTI_TRY(wefti_alloc_raw((size_t)keys->count * sizeof *keys->routed, WEFTI_CACHE_LINE, "a key set's routes", &keys->routed));
    WEFTI_TRY(wefti_alloc_raw((size_t)keys->count * sizeof *keys->places, WEFTI_CACHE_LINE, "a key set's routes", &keys->places));
    for (int64_t i = 0; i < keys->count; i++) keys->begin[server_of(keys->table, keys->keys[i]) + 1]++;
    for (int32_t server = 0; server < servers; server++) keys->begin[server + 1] += keys->begin[server];
    for (int64_t i = 0; i < keys->count; i++) {
        int64_t at = keys->begin[server_of(keys->table, keys->keys[i])]++;
        keys->routed[at] = keys->keys[i];
        keys->places[at] = i;
    }
    for (int32_t server = servers; server > 0; server--) keys->begin[server] = keys->begin[server - 1];
    keys->begin[0] = 0;
    return WEFT_OK;
}

static weft_status check_keys(const weft_table *table, const uint64_t *keys, int64_t count, bool ascending) {
    uint64_t end = (uint64_t)table->options.rows;
    if (count < 0 || (count > 0 && !keys))
        return wefti_fail(WEFT_E_INVALID, "table '%s': %lld keys at %s", table->options.name, (long long)count, keys ? "an address" : "NULL");
    for (int64_t i = 0; i < count; i++) {
        if (end && keys[i] >= end)
            return wefti_fail(WEFT_E_INVALID, "table '%s': key %lld of %lld is %llu; the table has keys below %llu", table->options.name,
                              (long long)i, (long long)count, (unsigned long long)keys[i], (unsigned long long)end);
        if (ascending && i > 0 && keys[i] <= keys[i - 1])
            return wefti_fail(WEFT_E_INVALID, "table '%s': key %lld of %lld is %llu and follows %llu; a list of rows ascends (weft_keys_create "
                              "takes any order)", table->options.name, (long long)i, (long long)count, (unsigned long long)keys[i],
                              (unsigned long long)keys[i - 1]);
    }
    return WEFT_OK;
}

void wefti_keys_free(weft_keys *keys) {
    if (!keys) return;
    wefti_keys_free(keys->twin);
    size_t bytes = (size_t)keys->room * sizeof *keys->keys, servers = (size_t)keys->table->server->servers;
    if (keys->routed && keys->routed != keys->keys) wefti_free(keys->routed, (size_t)keys->count * sizeof *keys->routed);
    if (keys->places) wefti_free(keys->places, (size_t)keys->count * sizeof *keys->places);
    if (keys->keys) wefti_free(keys->keys, bytes);
    if (keys->begin) wefti_free(keys->begin, (servers + 1) * sizeof *keys->begin);
    if (keys->known) wefti_free(keys->known, servers);
    if (keys->packed) wefti_free(keys->packed, keys->packed_begin[servers]);
    if (keys->packed_begin) wefti_free(keys->packed_begin, (servers + 1) * sizeof *keys->packed_begin);
    wefti_free(keys, sizeof *keys);
}

/* The lists as they are sent, where that is smaller. */
static weft_status pack(weft_keys *keys) {
    size_t servers = (size_t)keys->table->server->servers;
    WEFTI_TRY(wefti_alloc((servers + 1) * sizeof *keys->packed_begin, "a key set", &keys->packed_begin));
    for (size_t i = 0; i < servers; i++) {
        int64_t count = keys->begin[i + 1] - keys->begin[i];
        size_t  bytes = wefti_list_bytes(keys->routed + keys->begin[i], count);
        keys->packed_begin[i + 1] = keys->packed_begin[i] + (bytes < (size_t)count * sizeof *keys->routed ? bytes : 0);
    }
    if (keys->packed_begin[servers] == 0) return WEFT_OK;
    WEFTI_TRY(wefti_alloc_raw(keys->packed_begin[servers], WEFTI_CACHE_LINE, "a key set", &keys->packed));
    for (size_t i = 0; i < servers; i++)
        if (keys->packed_begin[i + 1] > keys->packed_begin[i])
            wefti_list_write(keys->routed + keys->begin[i], keys->begin[i + 1] - keys->begin[i], keys->packed + keys->packed_begin[i]);
    return WEFT_OK;
}

static weft_status fill(weft_keys *keys, const uint64_t *list, int64_t count, bool ascending) {
    const weft_table *table = keys->table;
    size_t            servers = (size_t)table->server->servers;
    keys->room = count;
    WEFTI_TRY(wefti_alloc_raw((size_t)count * sizeof *keys->keys, WEFTI_CACHE_LINE, "a key set", &keys->keys));
    WEFTI_TRY(wefti_alloc((servers + 1) * sizeof *keys->begin, "a key set", &keys->begin));
    WEFTI_TRY(wefti_alloc(servers, "a key set", &keys->known));
    if (count) memcpy(keys->keys, list, (size_t)count * sizeof *list);
    keys->count = count;
    if (!ascending) {
        WEFTI_TRY(sort_keys(keys->keys, count));
        int64_t unique = count > 0;
        for (int64_t i = 1; i < count; i++)
            if (keys->keys[i] != keys->keys[unique - 1]) keys->keys[unique++] = keys->keys[i];
        keys->count = unique;
    }
    if (table->options.split == WEFT_SPLIT_HASH) return route_hashed(keys);
    route_ranges(keys);
    return WEFT_OK;
}

weft_status wefti_keys_make(weft_table *table, const uint64_t *list, int64_t count, bool ascending, weft_keys **keys_out) {
    weft_keys *keys = NULL;
    *keys_out = NULL;
    WEFTI_TRY(check_keys(table, list, count, ascending));
    WEFTI_TRY(wefti_alloc(sizeof *keys, "a key set", &keys));
    keys->table = table;
    weft_status status = fill(keys, list, count, ascending);
    if (status == WEFT_OK) status = pack(keys);
    if (status != WEFT_OK) {
        wefti_keys_free(keys);
        return status;
    }
    *keys_out = keys;
    return WEFT_OK;
}

weft_status weft_keys_create(weft_table *table, const uint64_t *list, int64_t count, weft_keys **keys_out) {
    *keys_out = NULL;
    if (!table) return wefti_fail(WEFT_E_INVALID, "weft_keys_create: the table is NULL");
    WEFTI_TRY(wefti_keys_make(table, list, count, false, keys_out));
    weft_server *server = table->server;
    if (table->twin) {
        weft_status status = wefti_keys_make(table->twin, (*keys_out)->keys, (*keys_out)->count, true, &(*keys_out)->twin);
        if (status != WEFT_OK) {
            wefti_keys_free(*keys_out);
            *keys_out = NULL;
            return status;
        }
    }
    pthread_mutex_lock(&server->lock);
    (*keys_out)->id = ++table->next_keys;
    if (table->twin) (*keys_out)->twin->id = (*keys_out)->id;
    (*keys_out)->next = table->keys;
    table->keys = *keys_out;
    pthread_mutex_unlock(&server->lock);
    return WEFT_OK;
}

const uint64_t *weft_keys_list(const weft_keys *keys, int64_t *count_out) {
    if (count_out) *count_out = keys->count;
    return keys->keys;
}

/* Servers that know it are told to forget it; nobody waits for that. */
static void forget(weft_keys *keys) {
    weft_server  *server = keys->table->server;
    weft_request *request = NULL;
    for (int32_t i = 0; i < server->servers; i++) {
        if (!keys->known[i] || wefti_client_take(server, true, &request) != WEFT_OK) continue;
        request->kind = WEFTI_SERVER_FORGET;
        request->table = keys->table;
        request->call.keys = keys;
        if (wefti_client_start(server, request, i) != WEFT_OK) wefti_client_free(server, request);
        else request->call.keys = NULL;
    }
}

void weft_keys_release(weft_keys *keys) {
    if (!keys) return;
    weft_server *server = keys->table->server;
    char         message[WEFTI_MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", weft_error_message());
    pthread_mutex_lock(&server->lock);
    forget(keys);
    if (keys->twin) forget(keys->twin);
    for (weft_keys **at = &keys->table->keys; *at; at = &(*at)->next)
        if (*at == keys) {
            *at = keys->next;
            break;
        }
    pthread_mutex_unlock(&server->lock);
    wefti_keys_free(keys);
    (void)wefti_fail(WEFT_OK, "%s", message);
}

/* Key sets in a new split: routed anew beside the old ones, so that taking them cannot fail.
 *
 * A set that was made anew and the program's are swapped; what the program may look at, the list of keys, stays where it is. Servers of the new split know none
 * of them, and are sent each with its first request. Cost: every set once more while the split changes. */
#include "parallel/server/keys.h"
#include "parallel/server/resize.h"

/* A table with its sets. Stubs stand for the table with the fresh server: routes are made, and later the old ones freed, by them. */
typedef struct wefti_rerouted {
    weft_table  *table, *twin;
    weft_table   stub, twin_stub;
    weft_keys  **keys; /* [count] made anew, in the order of the table's list */
    int32_t      count;
} rerouted;

static weft_status reroute_keys(rerouted *r, const weft_keys *keys, weft_keys **keys_out) {
    WEFTI_TRY(wefti_keys_make(&r->stub, keys->keys, keys->count, true, keys_out));
    return r->twin ? wefti_keys_make(&r->twin_stub, keys->keys, keys->count, true, &(*keys_out)->twin) : WEFT_OK;
}

static weft_status reroute(const wefti_resize *resize, rerouted *r, weft_table *table) {
    weft_server *fresh = resize->fresh;
    r->table = table;
    r->stub = *table;
    r->stub.server = fresh;
    if (fresh->twin) {
        WEFTI_TRY(wefti_alloc(sizeof *r->twin, "a table's twin", &r->twin));
        *r->twin = *table;
        r->twin->twin = NULL;
        r->twin->server = fresh->twin;
        r->twin_stub = *r->twin;
        WEFTI_TRY(wefti_server_spec_read(&r->twin->spec, &r->twin->options));
    }
    int32_t count = 0;
    for (const weft_keys *keys = table->keys; keys; keys = keys->next) count++;
    if (count == 0) return WEFT_OK;
    WEFTI_TRY(wefti_alloc((size_t)count * sizeof(weft_keys *), "key sets in a new split", &r->keys));
    r->count = count;
    int32_t i = 0;
    for (const weft_keys *keys = table->keys; keys; keys = keys->next) WEFTI_TRY(reroute_keys(r, keys, &r->keys[i++]));
    return WEFT_OK;
}

weft_status wefti_resize_prepare_keys(wefti_resize *resize) {
    int32_t count = 0;
    if (!resize->old) return WEFT_OK;
    for (const weft_table *table = resize->old->tables; table; table = table->next) count++;
    if (count == 0) return WEFT_OK;
    WEFTI_TRY(wefti_alloc((size_t)count * sizeof *resize->rerouted, "tables in a new split", &resize->rerouted));
    resize->rerouted_count = count;
    rerouted *r = resize->rerouted;
    for (weft_table *table = resize->old->tables; table; table = table->next) WEFTI_TRY(reroute(resize, r++, table));
    return WEFT_OK;
}

/* The list stays the program's. */
static void swap_keys(weft_keys *mine, weft_keys *anew) {
    weft_keys before = *mine;
    uint64_t *list = before.keys, *other = anew->keys;
    *mine = *anew;
    *anew = before;
    mine->keys = list;
    mine->room = before.room;
    anew->keys = other;
    anew->room = mine->count;
    if (mine->routed == other) mine->routed = list;
    if (anew->routed == list) anew->routed = other;
    mine->next = before.next;
    mine->id = before.id;
    if (mine->twin) mine->twin->id = before.id;
}

void wefti_resize_take_keys(wefti_resize *resize) {
    for (int32_t n = 0; n < resize->rerouted_count; n++) {
        rerouted  *r = &resize->rerouted[n];
        weft_keys *keys = r->table->keys;
        for (int32_t i = 0; i < r->count; i++, keys = keys->next) {
            swap_keys(keys, r->keys[i]);
            keys->table = r->table;
            if (keys->twin) keys->twin->table = r->twin;
            r->keys[i]->table = &r->stub; /* whose server is the old one by now */
        }
        weft_table *twin = r->table->twin;
        r->table->twin = r->twin;
        r->twin = twin;
        if (twin) r->twin_stub.server = twin->server;
    }
}

void wefti_resize_free_keys(wefti_resize *resize) {
    for (int32_t n = 0; n < resize->rerouted_count; n++) {
        rerouted *r = &resize->rerouted[n];
        for (int32_t i = 0; i < r->count; i++) wefti_keys_free(r->keys[i]);
        if (r->keys) wefti_free(r->keys, (size_t)r->count * sizeof(weft_keys *));
        if (r->twin) wefti_free(r->twin, sizeof *r->twin);
    }
    if (resize->rerouted) wefti_free(resize->rerouted, (size_t)resize->rerouted_count * sizeof *resize->rerouted);
    resize->rerouted = NULL;
    resize->rerouted_count = 0;
}

/* Variables that ranks share: where a rank loads from and stores to its peers' memory, they lie in exported regions, so that a rank
 * can fetch what others updated: parameters at the end of every run, of solver states nothing until it is asked for (divide.c).
 *
 * Such a state is *divided*: after a run that updated it in parts, a rank's own part is right and the others are old. They are fetched
 * when somebody looks (wefti_variables_whole), by loads from the peers' memory and with no help of theirs: no peer updates its
 * part again before this rank takes part in the next run. Only a peer that meanwhile overwrites the state from outside spoils it,
 * and notes that, so that the others say so instead of mixing old and new.
 *
 * Cost: nothing in a run; a fetch copies once what is fetched. A shared block that its owner gives up stays whole until every peer has
 * given up its own. */
#include <string.h>

#include "core/base/stream.h"
#include "core/plan/variables.h"

enum { FIND_SECONDS = 30 };

wefti_wire *wefti_mapping_wire(const weft_world *world) {
    wefti_wire *wire = world->group && world->device->vtable->host_memory ? world->group->wire : NULL;
    return wire && wire->can.flags & WEFTI_WIRE_MAPS_PEERS && wire->ops->region_retire ? wire : NULL;
}

weft_status wefti_variables_export(weft_variables *v, size_t size_bytes, wefti_variable_block *block) {
    size_t all = 0;
    if (!wefti_add_size(size_bytes, sizeof(wefti_variable_note), &all))
        return wefti_fail(WEFT_E_OVERFLOW, "variables of %zu bytes", size_bytes);
    WEFTI_TRY(v->wire->ops->region_create(v->wire, all, &block->region));
    block->memory = block->region->base;
    return WEFT_OK;
}

/* --- sharing --- */

static wefti_variable_note *note_of(const weft_variables *v, int32_t rank) {
    return (wefti_variable_note *)(v->peers[rank] + v->shared_bytes);
}

/* Waits until the peer's region is known here: its announcement is on its way. */
static weft_status find_peer(const weft_variables *v, int32_t rank, uint32_t id, char **base_out) {
    wefti_wire_peer_region region;
    uint64_t               begin = wefti_host_now(v->wire->host);
    for (;;) {
        weft_status status = v->wire->ops->peer_region(v->wire, rank, id, &region);
        if (status != WEFT_OK && status != WEFT_E_AGAIN) return status;
        if (status == WEFT_OK && region.size_bytes < v->shared_bytes + sizeof(wefti_variable_note))
            return wefti_fail(WEFT_E_MISMATCH, "rank %d exports %zu bytes of variables, rank %d %zu", rank, region.size_bytes, v->rank,
                              v->shared_bytes);
        *base_out = region.base;
        if (status == WEFT_OK) return WEFT_OK;
        uint64_t now = wefti_host_now(v->wire->host);
        if (now - begin > FIND_SECONDS * WEFTI_SECOND_NS)
            return wefti_fail(WEFT_E_TIMEOUT, "rank %d did not announce its variables within %d s", rank, FIND_SECONDS);
        WEFTI_TRY(wefti_wire_progress(v->wire, now));
        wefti_wire_rest(v->wire, WEFTI_MILLISECOND_NS);
    }
}

static weft_status find_peers(weft_variables *v, const weft_world *world, int64_t *ids) {
    wefti_collective_call call = {.kind = WEFTI_ALLGATHER, .dtype = WEFT_I64, .send = &ids[v->rank], .receive = ids, .count = 1};
    WEFTI_TRY(wefti_collective_run(world->group, &call));
    for (int32_t r = 0; r < v->ranks; r++) WEFTI_TRY(find_peer(v, r, (uint32_t)ids[r], &v->peers[r]));
    note_of(v, v->rank)->peers = v->ranks - 1;
    return WEFT_OK;
}

weft_status wefti_variables_share(weft_variables *v, const weft_world *world) {
    wefti_variable_block *first = v->blocks;
    int64_t              *ids = NULL;
    size_t                bytes = (size_t)v->ranks * sizeof *ids;
    while (first && first->next) first = first->next;
    if (!v->wire || v->ranks == 1 || !first || v->peers) return WEFT_OK;
    WEFTI_TRY(wefti_alloc(bytes, "where peers keep variables", &ids));
    weft_status status = wefti_alloc((size_t)v->ranks * sizeof *v->peers, "where peers keep variables", &v->peers);
    ids[v->rank] = first->region->id;
    v->shared_bytes = first->size_bytes;
    if (status == WEFT_OK) status = find_peers(v, world, ids);
    if (status != WEFT_OK) wefti_variables_part(v);
    else
        for (const char *end = (char *)first->memory + first->size_bytes; v->shared < v->count; v->shared++)
            if ((char *)v->list[v->shared].memory < (char *)first->memory || (char *)v->list[v->shared].memory >= end) break;
    wefti_free(ids, bytes);
    return status == WEFT_OK ? WEFT_OK : wefti_while(status, "rank %d: sharing the variables", v->rank);
}

void wefti_variables_part(weft_variables *v) {
    if (v->peers) wefti_free(v->peers, (size_t)v->ranks * sizeof *v->peers);
    v->peers = NULL;
    v->shared = 0;
}

static bool nobody_looks(const void *context) {
    const wefti_variable_note *note = context;
    return atomic_load_explicit(&note->left, memory_order_acquire) >= note->peers;
}

void wefti_variables_withdraw(weft_variables *v, wefti_variable_block *block) {
    if (!v->peers || v->peers[v->rank] != block->memory) {
        v->wire->ops->region_release(block->region);
        return;
    }
    for (int32_t r = 0; r < v->ranks; r++)
        if (r != v->rank) atomic_fetch_add_explicit(&note_of(v, r)->left, 1, memory_order_release);
    v->wire->ops->region_retire(block->region, nobody_looks, note_of(v, v->rank));
}

bool wefti_variables_shared(const weft_variables *v, int32_t index) { return index < v->shared; }

/* --- what is updated in parts --- */

void wefti_variables_divide(weft_variables *v, int32_t index) { v->list[index].divided = true; }

void wefti_variables_ran(weft_variables *v) { v->runs++; }

void wefti_variables_fetch(const weft_variables *v, int32_t index) {
    const wefti_variable *it = &v->list[index];
    size_t                size = weft_dtype_bytes(it->dtype), begin = (size_t)((char *)it->memory - v->peers[v->rank]);
    for (int32_t r = 0; r < v->ranks; r++) {
        wefti_variable_part part = wefti_variable_part_of(weft_shape_elements(it->shape), it->dtype, v->ranks, r);
        size_t              at = begin + (size_t)part.first * size;
        if (r != v->rank) memcpy(v->peers[v->rank] + at, v->peers[r] + at, (size_t)part.count * size);
    }
}

void wefti_variables_push(const weft_variables *v, int32_t index) {
    const wefti_variable *it = &v->list[index];
    wefti_variable_part   part = wefti_variable_part_of(weft_shape_elements(it->shape), it->dtype, v->ranks, v->rank);
    size_t                size = weft_dtype_bytes(it->dtype);
    const char           *own = (char *)it->memory + (size_t)part.first * size;
    for (int32_t r = 0; r < v->ranks; r++)
        if (r != v->rank) wefti_stream_copy(v->peers[r] + (own - v->peers[v->rank]), own, (size_t)part.count * size);
    wefti_stream_fence();
}

/* The first peer that has overwritten a state since the last divided run; -1: none has. */
static int32_t spoiler(const weft_variables *v) {
    for (int32_t r = 0; r < v->ranks; r++)
        if (r != v->rank && atomic_load(&note_of(v, r)->overwritten_at) == v->runs) return r;
    return -1;
}

weft_status wefti_variables_whole(const weft_variables *v, int32_t index) {
    wefti_variable *it = &v->list[index];
    if (!it->divided || it->whole_at == v->runs) return WEFT_OK;
    int32_t by = spoiler(v);
    if (by < 0) {
        wefti_variables_fetch(v, index);
        atomic_thread_fence(memory_order_seq_cst);
        by = spoiler(v); /* it may have begun meanwhile */
    }
    if (by >= 0)
        return wefti_fail(WEFT_E_STATE, "rank %d: '%s' is updated by all ranks in parts, and rank %d has overwritten it since: read it on "
                          "every rank before any sets it", v->rank, it->name, by);
    it->whole_at = v->runs;
    return WEFT_OK;
}

void wefti_variables_overwrite(weft_variables *v, int32_t index) {
    wefti_variable *it = &v->list[index];
    if (!it->divided) return;
    atomic_store(&note_of(v, v->rank)->overwritten_at, v->runs);
    atomic_thread_fence(memory_order_seq_cst);
    it->whole_at = v->runs;
}

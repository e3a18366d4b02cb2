/* Pieces of collectives that go by NCCL inside nodes and by wires across them (nccl_nodes.h).
 *
 *   allreduce       in: reduce-scatter of the piece     across: allreduce of the shard       again: allgather
 *   broadcast       in: broadcast in the root's node    across: broadcast of the shard       again: allgather in the other nodes
 *   allgather       (this member's part leaves)         across: allgather of places' parts   again: allgather, then parts go to their places
 *   reduce-scatter  in: parts side by side by place, reduce-scatter   across: reduce-scatter (the result lands where it is wanted)
 *   barrier         in: barrier                         across: barrier                      again: barrier
 *
 * Where the nodes differ in size, or a piece cannot be cut alike, shards have sizes of their own, and members beyond the smallest node's number own
 * none: NCCL's calls are then one reduction or broadcast for each shard. */
#include <stdio.h>

#include "cuda/nccl_engine.h"
#include "cuda/nccl_inside.h"
#include "cuda/nccl_nodes.h"

static const char *const what = "a collective inside and across nodes";

static size_t element_of(const nodes_slot *slot) { return weft_dtype_bytes(slot->operation->call.dtype); }
static int32_t member(const nodes_map *map, int32_t node, int32_t place) { return map->order[map->first[node] + place]; }
static bool has_parts(wefti_collective_kind kind) { return kind == WEFTI_ALLGATHER || kind == WEFTI_REDUCE_SCATTER; }

/* --- what is done --- */

weft_status wefti_nodes_supports(const wefti_group *base, const wefti_collective_call *call) {
    const nodes_map *map = &nodes_group_of(base)->map;
    WEFTI_TRY(wefti_nccl_supports(base, call));
    if (call->kind == WEFTI_BARRIER || call->kind == WEFTI_ALLREDUCE || call->kind == WEFTI_BROADCAST) return WEFT_OK;
    if (!has_parts(call->kind))
        return wefti_fail(WEFT_E_UNSUPPORTED, "NCCL inside nodes and wires across them do allreduce, broadcast, allgather, reduce-scatter and barrier, not "
                          "collective kind %d", (int)call->kind);
    if (map->least != map->most)
        return wefti_fail(WEFT_E_UNSUPPORTED, "NCCL inside nodes and wires across them do allgather and reduce-scatter where all nodes have as many ranks; "
                          "these have %d to %d", (int)map->least, (int)map->most);
    return WEFT_OK;
}

void wefti_nodes_cut(nodes_group *group, nodes_operation *operation) {
    const wefti_collective_call *call = &operation->call;
    size_t bytes = weft_dtype_bytes(call->dtype);
    operation->first_piece = group->pieces;
    operation->landed = operation->turn = 0;
    operation->piece_count = 1;
    operation->pieces = 1;
    if (call->kind != WEFTI_BARRIER) {
        operation->piece_count = NODES_PIECE_BYTES / (bytes * (size_t)(has_parts(call->kind) ? group->base.size : 1));
        if (!has_parts(call->kind)) operation->piece_count -= operation->piece_count % (size_t)group->map.least;
        operation->pieces = (int32_t)((call->count + operation->piece_count - 1) / operation->piece_count);
    }
    group->pieces += (uint64_t)operation->pieces;
}

/* The shards of the piece: elements of each owner here. */
static void deal(const nodes_group *group, nodes_slot *slot) {
    const nodes_map *map = &group->map;
    size_t each = slot->count / (size_t)map->least, more = slot->count % (size_t)map->least, at = 0;
    slot->even = more == 0 && map->here == map->least;
    slot->shard_first = slot->shard_count = 0;
    for (int32_t i = 0; i < map->here; at += slot->counts[i++]) {
        slot->counts[i] = i < map->least ? each + ((size_t)i < more) : 0;
        if (i != map->place) continue;
        slot->shard_first = at;
        slot->shard_count = slot->counts[i];
    }
}

/* --- steps --- */

static weft_status start_inside(nodes_group *group, nodes_slot *slot, wefti_collective_call call, cudaStream_t after, slot_state state) {
    call.dtype = slot->operation->call.dtype;
    call.op = slot->operation->call.op;
    call.timeout_ns = slot->operation->call.timeout_ns;
    call.stream = after;
    slot->state = state;
    return wefti_collective_start(group->inside, &call, &slot->flight);
}

static const char *sent(const nodes_slot *slot, size_t element) {
    return (const char *)slot->operation->call.send + element * element_of(slot);
}
static char *received(const nodes_slot *slot, size_t element) { return (char *)slot->operation->call.receive + element * element_of(slot); }

/* Elements of the slot's host memory that leave, and where they come from. */
static size_t leaving(const nodes_group *group, const nodes_slot *slot, const char **from_out) {
    const nodes_map *map = &group->map;
    *from_out = slot->shard;
    switch (slot->operation->call.kind) {
    case WEFTI_ALLREDUCE: return slot->shard_count;
    case WEFTI_BROADCAST:
        *from_out = received(slot, slot->first + slot->shard_first);
        return map->mine == map->node[slot->operation->call.root] ? slot->shard_count : 0;
    case WEFTI_ALLGATHER: *from_out = sent(slot, slot->first); return slot->count;
    case WEFTI_REDUCE_SCATTER: return slot->count * (size_t)map->count;
    default: return 0;
    }
}

/* Whether this member has anything to do across nodes; the same for a place in all nodes. */
static bool crosses(const nodes_group *group, const nodes_slot *slot) {
    wefti_collective_kind kind = slot->operation->call.kind;
    return group->across && (kind == WEFTI_BARRIER || has_parts(kind) || slot->shard_count > 0);
}

static weft_status leave(nodes_group *group, nodes_slot *slot) {
    const char *from;
    size_t      elements = leaving(group, slot, &from);
    slot->state = SLOT_LEAVING;
    if (!crosses(group, slot)) elements = 0;
    char *to = slot->host;
    if (slot->operation->call.kind == WEFTI_ALLGATHER) to += (size_t)group->map.mine * slot->count * element_of(slot);
    if (elements) WEFTI_TRY(wefti_cuda_check(group->cuda, cudaMemcpyAsync(to, from, elements * element_of(slot), cudaMemcpyDeviceToHost, group->out), what));
    return wefti_cuda_check(group->cuda, cudaEventRecord(slot->left, group->out), what);
}

static weft_status cross(nodes_group *group, nodes_slot *slot) {
    const nodes_map       *map = &group->map;
    wefti_collective_call *all = &slot->operation->call;
    wefti_collective_call  call = {.kind = all->kind, .dtype = all->dtype, .op = all->op, .send = slot->host, .receive = slot->host,
                                   .count = slot->shard_count, .timeout_ns = all->timeout_ns, .priority = all->priority};
    if (has_parts(all->kind)) call.count = slot->count;
    if (all->kind == WEFTI_ALLGATHER) call.send = slot->host + (size_t)map->mine * slot->count * element_of(slot);
    if (all->kind == WEFTI_REDUCE_SCATTER) call.receive = slot->host + group->shard_bytes;
    if (all->kind == WEFTI_BROADCAST) call.root = map->node[all->root];
    if (all->kind == WEFTI_BARRIER) call.count = 0;
    slot->state = SLOT_ACROSS;
    return wefti_collective_start(group->across, &call, &slot->flight);
}

static weft_status load(nodes_group *group, nodes_slot *slot, void *to, const char *from, size_t elements) {
    if (elements) WEFTI_TRY(wefti_cuda_check(group->cuda, cudaMemcpyAsync(to, from, elements * element_of(slot), cudaMemcpyHostToDevice, group->into), what));
    return wefti_cuda_check(group->cuda, cudaEventRecord(slot->loaded, group->into), what);
}

/* Parts that lie by place and node go to where members' parts lie, or come from there. */
static weft_status move_parts(nodes_group *group, const nodes_slot *slot, bool to_places, cudaStream_t stream) {
    const nodes_map *map = &group->map;
    size_t           bytes = slot->count * element_of(slot);
    for (int32_t place = 0; place < map->here; place++)
        for (int32_t node = 0; node < map->count; node++) {
            size_t at = (size_t)member(map, node, place) * slot->operation->call.count + slot->first;
            char  *wide = slot->wide + (size_t)(place * map->count + node) * bytes;
            cudaError_t error = to_places ? cudaMemcpyAsync(received(slot, at), wide, bytes, cudaMemcpyDeviceToDevice, stream)
                                          : cudaMemcpyAsync(wide, sent(slot, at), bytes, cudaMemcpyDeviceToDevice, stream);
            WEFTI_TRY(wefti_cuda_check(group->cuda, error, what));
        }
    return WEFT_OK;
}

/* --- a piece's way --- */

weft_status wefti_nodes_begin(nodes_group *group, nodes_slot *slot, nodes_operation *operation, int32_t index) {
    const wefti_collective_call *call = &operation->call;
    const nodes_map             *map = &group->map;
    slot->operation = operation;
    slot->piece = operation->first_piece + (uint64_t)index;
    slot->first = (size_t)index * operation->piece_count;
    slot->count = call->kind == WEFTI_BARRIER ? 0 : call->count - slot->first < operation->piece_count ? call->count - slot->first : operation->piece_count;
    deal(group, slot);
    switch (call->kind) {
    case WEFTI_ALLREDUCE: {
        wefti_collective_call shards = {.kind = slot->even ? WEFTI_REDUCE_SCATTER : WEFTI_REDUCE_SCATTER_V, .send = sent(slot, slot->first),
                                        .receive = slot->shard, .count = slot->shard_count, .counts = slot->counts};
        return start_inside(group, slot, shards, group->in, SLOT_INSIDE);
    }
    case WEFTI_BROADCAST: {
        bool root = call->root == group->base.index;
        wefti_collective_call all = {.kind = WEFTI_BROADCAST, .root = map->place_of[call->root], .send = root ? sent(slot, slot->first) : NULL,
                                     .receive = received(slot, slot->first), .count = slot->count};
        if (map->mine != map->node[call->root]) return leave(group, slot);
        return start_inside(group, slot, all, group->in, SLOT_INSIDE);
    }
    case WEFTI_REDUCE_SCATTER: {
        size_t count = slot->count * (size_t)map->count;
        WEFTI_TRY(move_parts(group, slot, false, group->in));
        return start_inside(group, slot, (wefti_collective_call){.kind = WEFTI_REDUCE_SCATTER, .send = slot->wide, .receive = slot->shard, .count = count},
                            group->in, SLOT_INSIDE);
    }
    case WEFTI_BARRIER: return start_inside(group, slot, (wefti_collective_call){.kind = WEFTI_BARRIER}, group->in, SLOT_INSIDE);
    default: return leave(group, slot);
    }
}

weft_status wefti_nodes_go_on(nodes_group *group, nodes_slot *slot) {
    const nodes_map             *map = &group->map;
    const wefti_collective_call *call = &slot->operation->call;
    bool                         owner = crosses(group, slot);
    if (call->kind == WEFTI_BROADCAST && map->mine == map->node[call->root]) {
        slot->state = SLOT_LANDING;
        return load(group, slot, NULL, NULL, 0);
    }
    switch (call->kind) {
    case WEFTI_BROADCAST:
    case WEFTI_ALLREDUCE: {
        wefti_collective_call all = {.kind = slot->even ? WEFTI_ALLGATHER : WEFTI_ALLGATHER_V, .send = slot->shard, .receive = received(slot, slot->first),
                                     .count = slot->shard_count, .counts = slot->counts};
        WEFTI_TRY(load(group, slot, slot->shard, slot->host, owner ? slot->shard_count : 0));
        return start_inside(group, slot, all, group->into, SLOT_AGAIN);
    }
    case WEFTI_ALLGATHER: {
        size_t count = slot->count * (size_t)map->count;
        WEFTI_TRY(load(group, slot, slot->shard, slot->host, count));
        return start_inside(group, slot, (wefti_collective_call){.kind = WEFTI_ALLGATHER, .send = slot->shard, .receive = slot->wide, .count = count},
                            group->into, SLOT_AGAIN);
    }
    case WEFTI_REDUCE_SCATTER:
        slot->state = SLOT_LANDING;
        return load(group, slot, received(slot, slot->first), slot->host + group->shard_bytes, slot->count);
    default:
        WEFTI_TRY(load(group, slot, NULL, NULL, 0));
        return start_inside(group, slot, (wefti_collective_call){.kind = WEFTI_BARRIER}, group->into, SLOT_AGAIN);
    }
}

/* WEFT_E_AGAIN while it is not. */
static weft_status is_reached(nodes_group *group, cudaEvent_t event) {
    cudaError_t error = cudaEventQuery(event);
    if (error != cudaErrorNotReady) return wefti_cuda_check(group->cuda, error, what);
    (void)cudaGetLastError();
    return WEFT_E_AGAIN;
}

static void land(nodes_slot *slot) {
    nodes_operation *operation = slot->operation;
    slot->state = SLOT_FREE;
    slot->operation = NULL;
    if (++operation->landed < operation->pieces) return;
    operation->ended = true;
    operation->status = WEFT_OK;
}

/* One step, where it can be made. */
static weft_status advance(nodes_group *group, nodes_slot *slot) {
    switch (slot->state) {
    case SLOT_INSIDE:
        WEFTI_TRY(wefti_collective_test(slot->flight));
        slot->flight = NULL;
        return leave(group, slot);
    case SLOT_LEAVING: /* all owners of a shard cross with their pieces in one order */
        if (slot->piece != group->crossed) return WEFT_E_AGAIN;
        WEFTI_TRY(is_reached(group, slot->left));
        if (crosses(group, slot)) WEFTI_TRY(cross(group, slot));
        else slot->state = SLOT_ARRIVED;
        group->crossed++;
        return WEFT_OK;
    case SLOT_ACROSS:
        WEFTI_TRY(wefti_collective_test(slot->flight));
        slot->flight = NULL;
        slot->state = SLOT_ARRIVED;
        return WEFT_OK;
    case SLOT_AGAIN:
        WEFTI_TRY(wefti_collective_test(slot->flight));
        slot->flight = NULL;
        slot->state = SLOT_LANDING;
        if (slot->operation->call.kind != WEFTI_ALLGATHER) return WEFT_OK;
        WEFTI_TRY(move_parts(group, slot, true, group->into));
        return wefti_cuda_check(group->cuda, cudaEventRecord(slot->loaded, group->into), what);
    case SLOT_LANDING:
        WEFTI_TRY(is_reached(group, slot->loaded));
        land(slot);
        return WEFT_E_AGAIN;
    case SLOT_JOINED:
        WEFTI_TRY(is_reached(group, slot->loaded));
        slot->state = SLOT_FREE;
        return WEFT_E_AGAIN;
    default: return WEFT_E_AGAIN;
    }
}

weft_status wefti_nodes_advance(nodes_group *group, nodes_slot *slot) {
    weft_status status;
    do status = advance(group, slot);
    while (status == WEFT_OK);
    return status == WEFT_E_AGAIN ? WEFT_OK : status;
}

/* Pieces of collectives that go by NCCL inside nodes and by wires across them (nccl_nodes.h).
 *
 *   allreduce       in: reduce-scatter of the piece     across: allreduce of the shard       again: allgather
 *   broadcast       in: broadcast in the root's node    across: broadcast of the shard       again: allgather in the other nodes
 *   reduce          in: reduce-scatter of the piece     across: reduce of the shard          again: allgather in the root's node, of which it takes it
 *   allgather       (this member's part leaves)         across: allgather of places' parts   again: allgather, then parts go to their places
 *   reduce-scatter  in: parts side by side by place, reduce-scatter   across: reduce-scatter (the result lands where it is wanted)
 *   all-to-all      in: parts side by side by place, all-to-all       across: all-to-all of nodes' parts, then parts go to their places
 *   barrier         in: barrier                         across: barrier                      again: barrier
 *
 * Where the nodes differ in size, or a piece cannot be cut alike, shards have sizes of their own, and members beyond the smallest node's number own
 * none: NCCL's calls are then one reduction or broadcast for each shard. Parts that differ in length, or belong to nodes that do, are gathered as
 * pieces of broadcasts, one member's after the other, and scattered as pieces of reductions. How much an all-to-allv sends only two members know of each
 * other, so all could not cut it alike: it is refused. */
#include <stdio.h>

#include "cuda/nccl_engine.h"
#include "cuda/nccl_inside.h"
#include "cuda/nccl_nodes.h"

static const char *const what = "a collective inside and across nodes";

static size_t element_of(const nodes_slot *slot) { return weft_dtype_bytes(slot->operation->call.dtype); }
static int32_t member(const nodes_map *map, int32_t node, int32_t place) { return map->order[map->first[node] + place]; }
static bool has_parts(wefti_collective_kind kind) { return kind == WEFTI_ALLGATHER || kind == WEFTI_REDUCE_SCATTER || kind == WEFTI_ALLTOALL; }
static bool gathers(wefti_collective_kind kind) { return kind == WEFTI_ALLGATHER || kind == WEFTI_ALLGATHER_V; }

/* Whether it goes as broadcasts or reductions of each member's part. */
static bool goes_by_members(const nodes_map *map, wefti_collective_kind kind) {
    bool parts = kind == WEFTI_ALLGATHER || kind == WEFTI_REDUCE_SCATTER;
    return kind == WEFTI_ALLGATHER_V || kind == WEFTI_REDUCE_SCATTER_V || (parts && map->least != map->most);
}

static size_t part_of(const wefti_collective_call *call, int32_t i) {
    return call->kind == WEFTI_ALLGATHER_V || call->kind == WEFTI_REDUCE_SCATTER_V ? call->counts[i] : call->count;
}

/* --- what is done --- */

weft_status wefti_nodes_supports(const wefti_group *base, const wefti_collective_call *call) {
    const nodes_map *map = &nodes_group_of(base)->map;
    WEFTI_TRY(wefti_nccl_supports(base, call));
    switch (call->kind) {
    case WEFTI_ALLTOALL:
        if (map->least == map->most && map->least > 1) return WEFT_OK;
        return wefti_fail(WEFT_E_UNSUPPORTED, "NCCL inside nodes and wires across them do all-to-all where all nodes have as many ranks, and more than one; "
                          "these have %d to %d", (int)map->least, (int)map->most);
    case WEFTI_GATHER:
    case WEFTI_SCATTER:
    case WEFTI_ALLTOALL_V:
    case WEFTI_SEND:
    case WEFTI_RECEIVE:
        return wefti_fail(WEFT_E_UNSUPPORTED, "NCCL inside nodes and wires across them do allreduce, reduce, broadcast, allgather(v), reduce-scatter(v), "
                          "all-to-all and barrier, not collective kind %d", (int)call->kind);
    default: return WEFT_OK;
    }
}

/* Elements of a piece: of the whole, or of a part where there are parts. */
static size_t piece_elements(const nodes_group *group, const wefti_collective_call *call) {
    const nodes_map *map = &group->map;
    size_t           most = NODES_PIECE_BYTES / weft_dtype_bytes(call->dtype);
    if (!has_parts(call->kind) || goes_by_members(map, call->kind)) return most - most % (size_t)map->least;
    /* All parts of an all-to-all are in a slot's memory twice. */
    return most / (size_t)group->base.size / (size_t)(call->kind == WEFTI_ALLTOALL ? map->least : 1);
}

void wefti_nodes_cut(nodes_group *group, nodes_operation *operation) {
    const wefti_collective_call *call = &operation->call;
    size_t                       pieces = 0;
    operation->first_piece = group->pieces;
    operation->landed = operation->turn = 0;
    operation->piece_count = call->kind == WEFTI_BARRIER ? 1 : piece_elements(group, call);
    if (call->kind == WEFTI_BARRIER) pieces = 1;
    else if (!goes_by_members(&group->map, call->kind)) pieces = (call->count + operation->piece_count - 1) / operation->piece_count;
    else
        for (int32_t i = 0; i < group->base.size; i++) pieces += (part_of(call, i) + operation->piece_count - 1) / operation->piece_count;
    operation->pieces = (int32_t)pieces;
    group->pieces += (uint64_t)pieces;
}

/* What piece `index` is, and where it lies. */
static void locate(const nodes_group *group, nodes_slot *slot, int32_t index) {
    const nodes_operation       *operation = slot->operation;
    const wefti_collective_call *call = &operation->call;
    size_t                       whole = call->count, before = 0, most = operation->piece_count, at = (size_t)index;
    slot->kind = call->kind;
    slot->root = call->root;
    slot->from = slot->to = slot->count = 0;
    if (call->kind == WEFTI_BARRIER) return;
    if (goes_by_members(&group->map, call->kind)) {
        slot->kind = gathers(call->kind) ? WEFTI_BROADCAST : WEFTI_REDUCE_TO;
        for (slot->root = 0; at >= ((whole = part_of(call, slot->root)) + most - 1) / most; slot->root++) {
            at -= (whole + most - 1) / most;
            before += whole;
        }
    }
    slot->from = slot->to = at * most;
    slot->count = whole - at * most < most ? whole - at * most : most;
    if (slot->kind == call->kind) return;
    if (slot->kind == WEFTI_BROADCAST) slot->to += before;
    else slot->from += before;
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
    switch (slot->kind) {
    case WEFTI_ALLREDUCE:
    case WEFTI_REDUCE_TO: return slot->shard_count;
    case WEFTI_BROADCAST:
        *from_out = received(slot, slot->to + slot->shard_first);
        return map->mine == map->node[slot->root] ? slot->shard_count : 0;
    case WEFTI_ALLGATHER: *from_out = sent(slot, slot->from); return slot->count;
    case WEFTI_REDUCE_SCATTER: return slot->count * (size_t)map->count;
    default: return 0;
    }
}

/* Whether this member has anything to do across nodes; the same for a place in all nodes. */
static bool crosses(const nodes_group *group, const nodes_slot *slot) {
    return group->across && (slot->kind == WEFTI_BARRIER || has_parts(slot->kind) || slot->shard_count > 0);
}

/* What came by place and node inside leaves by node and place. */
static weft_status leave_by_nodes(nodes_group *group, const nodes_slot *slot) {
    const nodes_map *map = &group->map;
    size_t           bytes = slot->count * element_of(slot), row = (size_t)map->count * bytes;
    const char      *came = slot->wide + (size_t)group->base.size * bytes;
    for (int32_t node = 0; node < map->count; node++)
        for (int32_t from = 0; from < map->here; from++)
            WEFTI_TRY(wefti_cuda_check(group->cuda, cudaMemcpyAsync(slot->host + (size_t)(node * map->here + from) * bytes, came + (size_t)from * row + (size_t)node * bytes,
                                                                    bytes, cudaMemcpyDeviceToHost, group->out), what));
    return WEFT_OK;
}

static weft_status leave(nodes_group *group, nodes_slot *slot) {
    const char *from;
    size_t      elements = leaving(group, slot, &from);
    slot->state = SLOT_LEAVING;
    if (!crosses(group, slot)) elements = 0;
    char *to = slot->host;
    if (slot->kind == WEFTI_ALLGATHER) to += (size_t)group->map.mine * slot->count * element_of(slot);
    if (elements) WEFTI_TRY(wefti_cuda_check(group->cuda, cudaMemcpyAsync(to, from, elements * element_of(slot), cudaMemcpyDeviceToHost, group->out), what));
    if (slot->kind == WEFTI_ALLTOALL) WEFTI_TRY(leave_by_nodes(group, slot));
    return wefti_cuda_check(group->cuda, cudaEventRecord(slot->left, group->out), what);
}

static weft_status cross(nodes_group *group, nodes_slot *slot) {
    const nodes_map       *map = &group->map;
    wefti_collective_call *all = &slot->operation->call;
    wefti_collective_call  call = {.kind = slot->kind, .dtype = all->dtype, .op = all->op, .send = slot->host, .receive = slot->host,
                                   .count = slot->shard_count, .timeout_ns = all->timeout_ns, .priority = all->priority};
    if (has_parts(slot->kind)) call.count = slot->count;
    if (slot->kind == WEFTI_ALLTOALL) call.count *= (size_t)map->here;
    if (slot->kind == WEFTI_ALLGATHER) call.send = slot->host + (size_t)map->mine * slot->count * element_of(slot);
    if (slot->kind == WEFTI_REDUCE_SCATTER || slot->kind == WEFTI_REDUCE_TO || slot->kind == WEFTI_ALLTOALL) call.receive = slot->host + group->shard_bytes;
    if (slot->kind == WEFTI_BROADCAST || slot->kind == WEFTI_REDUCE_TO) call.root = map->node[slot->root];
    if (slot->kind == WEFTI_BARRIER) call.count = 0;
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
            size_t at = (size_t)member(map, node, place) * slot->operation->call.count + slot->from;
            char  *wide = slot->wide + (size_t)(place * map->count + node) * bytes;
            cudaError_t error = to_places ? cudaMemcpyAsync(received(slot, at), wide, bytes, cudaMemcpyDeviceToDevice, stream)
                                          : cudaMemcpyAsync(wide, sent(slot, at), bytes, cudaMemcpyDeviceToDevice, stream);
            WEFTI_TRY(wefti_cuda_check(group->cuda, error, what));
        }
    return WEFT_OK;
}

/* The parts of an all-to-all, which came by node and place, go to where they belong. */
static weft_status land_parts(nodes_group *group, nodes_slot *slot) {
    const nodes_map *map = &group->map;
    size_t           bytes = slot->count * element_of(slot);
    const char      *came = slot->host + group->shard_bytes;
    for (int32_t node = 0; node < map->count; node++)
        for (int32_t place = 0; place < map->here; place++) {
            size_t at = (size_t)member(map, node, place) * slot->operation->call.count + slot->to;
            WEFTI_TRY(load(group, slot, received(slot, at), came + (size_t)(node * map->here + place) * bytes, slot->count));
        }
    return WEFT_OK;
}

/* --- a piece's way --- */

weft_status wefti_nodes_begin(nodes_group *group, nodes_slot *slot, nodes_operation *operation, int32_t index) {
    const nodes_map *map = &group->map;
    slot->operation = operation;
    slot->piece = operation->first_piece + (uint64_t)index;
    locate(group, slot, index);
    deal(group, slot);
    size_t parts = slot->count * (size_t)map->count;
    switch (slot->kind) {
    case WEFTI_ALLREDUCE:
    case WEFTI_REDUCE_TO: {
        wefti_collective_call shards = {.kind = slot->even ? WEFTI_REDUCE_SCATTER : WEFTI_REDUCE_SCATTER_V, .send = sent(slot, slot->from),
                                        .receive = slot->shard, .count = slot->shard_count, .counts = slot->counts};
        return start_inside(group, slot, shards, group->in, SLOT_INSIDE);
    }
    case WEFTI_BROADCAST: {
        bool root = slot->root == group->base.index;
        wefti_collective_call all = {.kind = WEFTI_BROADCAST, .root = map->place_of[slot->root], .send = root ? sent(slot, slot->from) : NULL,
                                     .receive = received(slot, slot->to), .count = slot->count};
        if (map->mine != map->node[slot->root]) return leave(group, slot);
        return start_inside(group, slot, all, group->in, SLOT_INSIDE);
    }
    case WEFTI_REDUCE_SCATTER:
        WEFTI_TRY(move_parts(group, slot, false, group->in));
        return start_inside(group, slot, (wefti_collective_call){.kind = WEFTI_REDUCE_SCATTER, .send = slot->wide, .receive = slot->shard, .count = parts},
                            group->in, SLOT_INSIDE);
    case WEFTI_ALLTOALL: {
        char *other = slot->wide + (size_t)group->base.size * slot->count * element_of(slot);
        WEFTI_TRY(move_parts(group, slot, false, group->in));
        return start_inside(group, slot, (wefti_collective_call){.kind = WEFTI_ALLTOALL, .send = slot->wide, .receive = other, .count = parts}, group->in,
                            SLOT_INSIDE);
    }
    case WEFTI_BARRIER: return start_inside(group, slot, (wefti_collective_call){.kind = WEFTI_BARRIER}, group->in, SLOT_INSIDE);
    default: return leave(group, slot);
    }
}

weft_status wefti_nodes_go_on(nodes_group *group, nodes_slot *slot) {
    const nodes_map *map = &group->map;
    size_t           own = crosses(group, slot) ? slot->shard_count : 0;
    bool             at_root = (slot->kind == WEFTI_BROADCAST || slot->kind == WEFTI_REDUCE_TO) && map->mine == map->node[slot->root];
    if (slot->kind == WEFTI_BROADCAST ? at_root : slot->kind == WEFTI_REDUCE_TO && !at_root) { /* nothing is left to do in this node */
        slot->state = SLOT_LANDING;
        return load(group, slot, NULL, NULL, 0);
    }
    switch (slot->kind) {
    case WEFTI_BROADCAST:
    case WEFTI_REDUCE_TO:
    case WEFTI_ALLREDUCE: {
        bool  one = slot->kind == WEFTI_REDUCE_TO; /* is all whom it is for */
        char *came = slot->host + (one ? group->shard_bytes : 0);
        wefti_collective_call all = {.kind = slot->even ? WEFTI_ALLGATHER : WEFTI_ALLGATHER_V, .send = slot->shard,
                                     .receive = one ? slot->wide : received(slot, slot->to), .count = slot->shard_count, .counts = slot->counts};
        WEFTI_TRY(load(group, slot, slot->shard, came, own));
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
        return load(group, slot, received(slot, slot->to), slot->host + group->shard_bytes, slot->count);
    case WEFTI_ALLTOALL:
        slot->state = SLOT_LANDING;
        return land_parts(group, slot);
    default:
        WEFTI_TRY(load(group, slot, NULL, NULL, 0));
        return start_inside(group, slot, (wefti_collective_call){.kind = WEFTI_BARRIER}, group->into, SLOT_AGAIN);
    }
}

bool wefti_nodes_lands_later(const nodes_slot *slot) { return slot->kind == WEFTI_ALLGATHER || slot->kind == WEFTI_REDUCE_TO; }

/* What NCCL left side by side goes to where it is wanted. */
static weft_status land_after(nodes_group *group, nodes_slot *slot) {
    if (slot->kind == WEFTI_ALLGATHER) WEFTI_TRY(move_parts(group, slot, true, group->into));
    else if (slot->root == group->base.index)
        WEFTI_TRY(wefti_cuda_check(group->cuda, cudaMemcpyAsync(received(slot, slot->to), slot->wide, slot->count * element_of(slot), cudaMemcpyDeviceToDevice,
                                                                group->into), what));
    return wefti_cuda_check(group->cuda, cudaEventRecord(slot->loaded, group->into), what);
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
        return wefti_nodes_lands_later(slot) ? land_after(group, slot) : WEFT_OK;
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

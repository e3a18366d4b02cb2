/* Groups for users: weft/collective.h over the collective contract.
 *
 * A group is the engine's, under an id that is free on all members of the group that it was made from: they agree by the minimum
 * of a table of free ids. So the members of one group need not know of the others' groups, and groups without a common member may
 * have the same id.
 *
 * A rank that waits for an operation of one group lets the others get on as well: else two ranks that wait for two operations in
 * different order would wait for each other. Where no other group has anything in flight, the engine waits by itself. */
#include <stdlib.h>
#include <string.h>

#include "core/iface/world.h"
#include "transport/transport.h"
#include "weft/collective.h"

/* While other groups have something in flight, the engine waits for so long at once. */
#define SLICE_NS (20 * UINT64_C(1000))
#define LONG_SLICE_NS WEFTI_MILLISECOND_NS /* after a while of nothing */
#define PATIENCE_NS (5 * WEFTI_MILLISECOND_NS)

struct weft_group {
    weft_world *world;
    wefti_group *inner;
    weft_group *next; /* of the world */
    weft_group_options options;
    char algorithm[128];
    uint16_t id;
    int32_t uses; /* groups that had it before */
    int32_t active; /* operations that have not been given back */
};

/* An id, and how many groups had it before; both are in the tags of messages. */
typedef struct group_id {
    uint16_t id;
    int32_t uses;
} group_id;

/* The public values are the engine's. */
_Static_assert((int)WEFT_CALL_ALLREDUCE == WEFTI_ALLREDUCE && (int)WEFT_CALL_BARRIER == WEFTI_BARRIER &&
                   (int)WEFT_CALL_REDUCE == WEFTI_REDUCE_TO && (int)WEFT_CALL_ALLTOALL == WEFTI_ALLTOALL &&
                   (int)WEFT_CALL_REDUCE_SCATTERV == WEFTI_REDUCE_SCATTER_V && (int)WEFT_CALL_ALLTOALLV == WEFTI_ALLTOALL_V &&
                   (int)WEFT_CALL_SEND == WEFTI_SEND && (int)WEFT_CALL_RECEIVE == WEFTI_RECEIVE,
               "one list of kinds");
_Static_assert((int)WEFT_COMBINE_SUM == WEFTI_REDUCE_SUM && (int)WEFT_COMBINE_PRODUCT == WEFTI_REDUCE_PROD &&
                   (int)WEFT_COMBINE_AVERAGE == WEFTI_REDUCE_AVG && WEFT_COMBINE_USER == WEFT_COMBINE_AVERAGE + 1,
               "one list of reductions");

/* --- making --- */

typedef struct membership {
    int32_t *ranks; /* [size] in the world, by index */
    int32_t size, index;
} membership;

static const wefti_collective_engine *engine_of(const weft_world *world) {
    return world->group ? world->group->engine : wefti_collective_engine_weft();
}

static weft_status open_inner(weft_group *group, const membership *members) {
    weft_world *world = group->world;
    wefti_transport *transport = world->transport;
    int32_t *nodes = NULL;
    size_t node_bytes = (size_t)members->size * sizeof *nodes;
    wefti_group_options how = {.host = transport->host, .wire = members->size > 1 ? transport->wire : NULL,
                               .ranks = members->size > 1 ? members->ranks : NULL, .size = members->size, .index = members->index,
                               .id = group->id, .epoch = (uint16_t)group->uses, .timeout_ns = (uint64_t)group->options.timeout_ns,
                               .in_flight = group->options.in_flight, .reducer = transport->reducer, .fault = transport->fault,
                               .algorithm = group->options.algorithm, .watch = transport->watch};
    if (!how.timeout_ns) how.timeout_ns = transport->timeout_ns;
    if (members->size > 1 && transport->nodes) {
        WEFTI_TRY(wefti_alloc(node_bytes, "a group's nodes", &nodes));
        for (int32_t i = 0; i < members->size; i++) nodes[i] = transport->nodes[members->ranks[i]];
        how.nodes = nodes;
    }
    weft_status status = engine_of(world)->open(&how, &group->inner);
    wefti_free(nodes, node_bytes);
    if (status != WEFT_OK) return status;
    group->inner->owner = group;
    if (transport->tuned) wefti_tuning_apply(group->inner, &transport->tuning);
    return WEFT_OK;
}

static weft_status make(weft_world *world, const weft_group_options *options, const membership *members, group_id id,
                        weft_group **group_out) {
    weft_group *group = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *group, "a group", &group));
    group->world = world;
    group->id = id.id;
    group->uses = id.uses;
    if (options) group->options = *options;
    if (group->options.algorithm) {
        if (strlen(group->options.algorithm) >= sizeof group->algorithm) {
            wefti_free(group, sizeof *group);
            return wefti_fail(WEFT_E_INVALID, "the group's algorithm is named by more than %zu bytes", sizeof group->algorithm - 1);
        }
        strcpy(group->algorithm, options->algorithm);
        group->options.algorithm = group->algorithm;
    }
    weft_status status = open_inner(group, members);
    if (status != WEFT_OK) {
        wefti_free(group, sizeof *group);
        return status;
    }
    world->group_ids[id.id] = -(id.uses + 1);
    group->next = world->groups;
    world->groups = group;
    *group_out = group;
    return WEFT_OK;
}

/* The id that is free on all members of `inner` (NULL: this rank alone) and was used least: what was sent late to a group that had it is not
 * to come to the next one. */
static weft_status agree_on_id(weft_world *world, wefti_group *inner, group_id *id_out) {
    int32_t uses[WEFTI_GROUP_IDS];
    for (int i = 0; i < WEFTI_GROUP_IDS; i++) uses[i] = i == 0 || world->group_ids[i] < 0 ? INT32_MAX : world->group_ids[i];
    wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_I32, .op = WEFTI_REDUCE_MAX, .send = uses, .receive = uses,
                                  .count = WEFTI_GROUP_IDS};
    if (inner) WEFTI_TRY(wefti_collective_run(inner, &call));
    int best = 0;
    for (int i = 1; i < WEFTI_GROUP_IDS; i++)
        if (uses[i] < uses[best]) best = i;
    *id_out = (group_id){(uint16_t)best, uses[best]};
    if (best > 0) return WEFT_OK;
    return wefti_fail(WEFT_E_OVERFLOW, "a world has %d groups at most; release those that are not needed", WEFTI_GROUP_IDS - 1);
}

static weft_status check_options(const weft_group_options *options) {
    if (!options || (options->timeout_ns >= 0 && options->in_flight >= 0)) return WEFT_OK;
    return wefti_fail(WEFT_E_INVALID, "weft_group_create: in_flight %d, timeout_ns %lld: neither may be negative",
                      (int)options->in_flight, (long long)options->timeout_ns);
}

weft_status weft_group_create(weft_world *world, const weft_group_options *options, weft_group **group_out) {
    group_id id = {0};
    *group_out = NULL;
    if (!world) return wefti_fail(WEFT_E_INVALID, "weft_group_create: the world is NULL");
    WEFTI_TRY(check_options(options));
    WEFTI_TRY(agree_on_id(world, world->group, &id));
    membership members = {.size = world->size, .index = world->rank};
    size_t bytes = (size_t)world->size * sizeof *members.ranks;
    WEFTI_TRY(wefti_alloc(bytes, "a group's members", &members.ranks));
    for (int32_t i = 0; i < world->size; i++) members.ranks[i] = i;
    weft_status status = make(world, options, &members, id, group_out);
    wefti_free(members.ranks, bytes);
    return status;
}

/* What the members of the parent tell each other. */
typedef struct choice {
    int64_t colour, key, index;
} choice;

static int by_key(const void *a, const void *b) {
    const choice *left = a, *right = b;
    if (left->key != right->key) return left->key < right->key ? -1 : 1;
    return left->index < right->index ? -1 : 1;
}

static weft_status gather_choices(weft_group *parent, const choice *mine, choice *all) {
    wefti_collective_call call = {.kind = WEFTI_ALLGATHER, .dtype = WEFT_I64, .send = mine, .receive = all,
                                  .count = sizeof *mine / sizeof(int64_t)};
    return wefti_collective_run(parent->inner, &call);
}

/* Leaves in `all` those of this member's colour, in order; fills in who they are. */
static void sort_members(const weft_group *parent, choice *all, int32_t colour, membership *members) {
    for (int32_t i = 0; i < parent->inner->size; i++)
        if (all[i].colour == colour) all[members->size++] = all[i];
    qsort(all, (size_t)members->size, sizeof *all, by_key);
    for (int32_t i = 0; i < members->size; i++) {
        members->ranks[i] = weft_group_rank(parent, (int32_t)all[i].index);
        if (all[i].index == parent->inner->index) members->index = i;
    }
}

weft_status weft_group_split(weft_group *parent, int32_t colour, int32_t key, weft_group **group_out) {
    *group_out = NULL;
    if (!parent) return wefti_fail(WEFT_E_INVALID, "weft_group_split: the parent is NULL");
    choice mine = {colour, key, parent->inner->index}, *all = NULL;
    membership members = {0};
    group_id id = {0};
    size_t count = (size_t)parent->inner->size;
    weft_status status = wefti_alloc(count * sizeof *all, "a group's members", &all);
    if (status == WEFT_OK) status = wefti_alloc(count * sizeof *members.ranks, "a group's members", &members.ranks);
    if (status == WEFT_OK) status = gather_choices(parent, &mine, all);
    if (status == WEFT_OK) status = agree_on_id(parent->world, parent->inner, &id);
    if (status == WEFT_OK && colour >= 0) {
        sort_members(parent, all, colour, &members);
        status = make(parent->world, &parent->options, &members, id, group_out);
    }
    wefti_free(members.ranks, count * sizeof *members.ranks);
    wefti_free(all, count * sizeof *all);
    return status;
}

weft_status weft_group_along(weft_group *parent, const int32_t *extents, int32_t axes, int32_t axis, weft_group **group_out) {
    int64_t size = 1, inside = 1;
    *group_out = NULL;
    if (!parent || !extents) return wefti_fail(WEFT_E_INVALID, "weft_group_along: the %s is NULL", parent ? "list of extents" : "parent");
    if (axes < 1 || axis < 0 || axis >= axes)
        return wefti_fail(WEFT_E_INVALID, "weft_group_along: there is no axis %d in a mesh of %d axes", (int)axis, (int)axes);
    for (int32_t i = 0; i < axes; i++) {
        if (extents[i] < 1) return wefti_fail(WEFT_E_SHAPE, "weft_group_along: extent %d of the mesh is %d", (int)i, (int)extents[i]);
        size = size > INT32_MAX ? size : size * extents[i];
        if (i > axis) inside = inside > INT32_MAX ? inside : inside * extents[i];
    }
    if (size != parent->inner->size)
        return wefti_fail(WEFT_E_SHAPE, "weft_group_along: a mesh of %lld members over a group of %d", (long long)size,
                          (int)parent->inner->size);
    int32_t index = parent->inner->index, along = (int32_t)inside * extents[axis];
    return weft_group_split(parent, index / along * (int32_t)inside + index % (int32_t)inside, index / (int32_t)inside % extents[axis],
                            group_out);
}

void weft_group_release(weft_group *group) {
    if (!group) return;
    weft_world *world = group->world;
    weft_group **at = &world->groups;
    while (*at && *at != group) at = &(*at)->next;
    if (*at) *at = group->next;
    group->inner->engine->close(group->inner);
    world->group_ids[group->id] *= -1;
    wefti_free(group, sizeof *group);
}

wefti_group *wefti_group_inside(const weft_group *group) { return group->inner; }

int32_t weft_group_size(const weft_group *group) { return group->inner->size; }
int32_t weft_group_index(const weft_group *group) { return group->inner->index; }
int32_t weft_group_rank(const weft_group *group, int32_t index) {
    if (index < 0 || index >= group->inner->size) return -1;
    return group->inner->size == 1 ? group->world->rank : group->inner->ranks[index];
}

/* --- calls --- */

static weft_status translate(const weft_call *call, wefti_collective_call *call_out) {
    if (call->timeout_ns < 0)
        return wefti_fail(WEFT_E_INVALID, "weft_group_start: timeout_ns is %lld; it must not be negative", (long long)call->timeout_ns);
    *call_out = (wefti_collective_call){.kind = (wefti_collective_kind)call->kind, .dtype = call->dtype,
                                        .op = call->combine == WEFT_COMBINE_USER ? WEFTI_REDUCE_USER : (wefti_reduce_op)call->combine,
                                        .root = call->root, .send = call->send, .receive = call->receive, .count = call->count,
                                        .timeout_ns = (uint64_t)call->timeout_ns, .counts = call->counts,
                                        .receive_counts = call->receive_counts, .priority = call->priority,
                                        .function = call->function};
    return WEFT_OK;
}

weft_status weft_group_start(weft_group *group, const weft_call *call, weft_operation **operation_out) {
    wefti_collective_call inner;
    wefti_collective *operation = NULL;
    *operation_out = NULL;
    if (!group || !call) return wefti_fail(WEFT_E_INVALID, "weft_group_start: the %s is NULL", group ? "call" : "group");
    WEFTI_TRY(translate(call, &inner));
    WEFTI_TRY(wefti_collective_start(group->inner, &inner, &operation));
    group->active++;
    *operation_out = (weft_operation *)operation;
    return WEFT_OK;
}

weft_status weft_operation_test(weft_operation *operation) {
    if (!operation) return wefti_fail(WEFT_E_INVALID, "weft_operation_test: the operation is NULL");
    wefti_collective *inner = (wefti_collective *)operation;
    weft_group *group = inner->group->owner;
    weft_status status = wefti_collective_test(inner);
    if (status != WEFT_E_AGAIN) group->active--;
    return status;
}

/* Lets the other groups of the world get on; whether any of them has something in flight. What fails there is found by those
 * who wait for it. */
static bool progress_others(const weft_group *group) {
    bool busy = false;
    for (weft_group *at = group->world->groups; at; at = at->next) {
        if (at == group || at->active == 0) continue;
        busy = true;
        (void)!at->inner->engine->progress(at->inner, wefti_host_now(((wefti_transport *)group->world->transport)->host));
    }
    return busy;
}

weft_status weft_operation_wait(weft_operation *operation, int64_t timeout_ns) {
    if (!operation || timeout_ns < 0)
        return wefti_fail(WEFT_E_INVALID, operation ? "weft_operation_wait: timeout_ns is negative" : "weft_operation_wait: the operation is NULL");
    wefti_collective *inner = (wefti_collective *)operation;
    weft_group *group = inner->group->owner;
    const wefti_host *host = ((wefti_transport *)group->world->transport)->host;
    uint64_t begin_ns = 0, limit_ns = timeout_ns ? (uint64_t)timeout_ns : WEFTI_NEVER_NS;
    weft_status status;
    for (;;) {
        uint64_t passed_ns = begin_ns ? wefti_host_now(host) - begin_ns : 0, left_ns = limit_ns - passed_ns;
        if (passed_ns >= limit_ns) return WEFT_E_AGAIN;
        bool busy = progress_others(group);
        uint64_t slice_ns = passed_ns > PATIENCE_NS ? LONG_SLICE_NS : SLICE_NS;
        status = wefti_collective_wait(inner, busy && slice_ns < left_ns ? slice_ns : left_ns == WEFTI_NEVER_NS ? 0 : left_ns);
        if (status != WEFT_E_AGAIN) break;
        if (begin_ns == 0) begin_ns = wefti_host_now(host) - 1;
    }
    group->active--;
    return status;
}

weft_status weft_group_call(weft_group *group, const weft_call *call) {
    weft_operation *operation = NULL;
    WEFTI_TRY(weft_group_start(group, call, &operation));
    return weft_operation_wait(operation, 0);
}

/* --- short forms --- */

#define CALL(group, ...) weft_group_call((group), &(weft_call){__VA_ARGS__})

weft_status weft_group_barrier(weft_group *group) { return CALL(group, .kind = WEFT_CALL_BARRIER); }

weft_status weft_group_allreduce(weft_group *group, const void *send, void *receive, size_t count, weft_dtype dtype,
                                 weft_combine combine) {
    return CALL(group, .kind = WEFT_CALL_ALLREDUCE, .send = send, .receive = receive, .count = count, .dtype = dtype, .combine = combine);
}

weft_status weft_group_reduce(weft_group *group, const void *send, void *receive, size_t count, weft_dtype dtype,
                              weft_combine combine, int32_t root) {
    return CALL(group, .kind = WEFT_CALL_REDUCE, .send = send, .receive = receive, .count = count, .dtype = dtype,
                .combine = combine, .root = root);
}

weft_status weft_group_reduce_scatter(weft_group *group, const void *send, void *receive, size_t count, weft_dtype dtype,
                                      weft_combine combine) {
    return CALL(group, .kind = WEFT_CALL_REDUCE_SCATTER, .send = send, .receive = receive, .count = count, .dtype = dtype,
                .combine = combine);
}

weft_status weft_group_reduce_scatterv(weft_group *group, const void *send, void *receive, const size_t *counts, weft_dtype dtype,
                                       weft_combine combine) {
    return CALL(group, .kind = WEFT_CALL_REDUCE_SCATTERV, .send = send, .receive = receive, .counts = counts, .dtype = dtype,
                .combine = combine);
}

weft_status weft_group_allgather(weft_group *group, const void *send, void *receive, size_t count, weft_dtype dtype) {
    return CALL(group, .kind = WEFT_CALL_ALLGATHER, .send = send, .receive = receive, .count = count, .dtype = dtype);
}

weft_status weft_group_allgatherv(weft_group *group, const void *send, void *receive, const size_t *counts, weft_dtype dtype) {
    return CALL(group, .kind = WEFT_CALL_ALLGATHERV, .send = send, .receive = receive, .counts = counts, .dtype = dtype);
}

weft_status weft_group_broadcast(weft_group *group, void *data, size_t count, weft_dtype dtype, int32_t root) {
    return CALL(group, .kind = WEFT_CALL_BROADCAST, .send = data, .receive = data, .count = count, .dtype = dtype, .root = root);
}

weft_status weft_group_gather(weft_group *group, const void *send, void *receive, size_t count, weft_dtype dtype, int32_t root) {
    return CALL(group, .kind = WEFT_CALL_GATHER, .send = send, .receive = receive, .count = count, .dtype = dtype, .root = root);
}

weft_status weft_group_scatter(weft_group *group, const void *send, void *receive, size_t count, weft_dtype dtype, int32_t root) {
    return CALL(group, .kind = WEFT_CALL_SCATTER, .send = send, .receive = receive, .count = count, .dtype = dtype, .root = root);
}

weft_status weft_group_alltoall(weft_group *group, const void *send, void *receive, size_t count, weft_dtype dtype) {
    return CALL(group, .kind = WEFT_CALL_ALLTOALL, .send = send, .receive = receive, .count = count, .dtype = dtype);
}

weft_status weft_group_alltoallv(weft_group *group, const void *send, const size_t *send_counts, void *receive,
                                 const size_t *receive_counts, weft_dtype dtype) {
    return CALL(group, .kind = WEFT_CALL_ALLTOALLV, .send = send, .receive = receive, .counts = send_counts,
                .receive_counts = receive_counts, .dtype = dtype);
}

weft_status weft_group_send(weft_group *group, const void *send, size_t count, weft_dtype dtype, int32_t to) {
    return CALL(group, .kind = WEFT_CALL_SEND, .send = send, .count = count, .dtype = dtype, .root = to);
}

weft_status weft_group_receive(weft_group *group, void *receive, size_t count, weft_dtype dtype, int32_t from) {
    return CALL(group, .kind = WEFT_CALL_RECEIVE, .receive = receive, .count = count, .dtype = dtype, .root = from);
}

/* Opening and closing groups that go by NCCL inside nodes and wires across them (nccl_nodes.h).
 *
 * Every member opens NCCL's group of its node, over a group of the wire's that is made for it, and the owners of a shard one across the nodes. As NCCL
 * may fail in one node alone, all members then tell each other how it went. The pinned memory is a region of the wire: what the GPU copies to is what
 * the network reads. */
#include <string.h>

#include "cuda/nccl_engine.h"
#include "cuda/nccl_nodes.h"

#define DEFAULT_TIMEOUT_NS (30 * WEFTI_SECOND_NS)
enum { DEFAULT_IN_FLIGHT = 64, ALIGNMENT = 4096 };

/* --- who runs where --- */

static weft_status make_map(nodes_map *map, const int32_t *nodes, int32_t size, int32_t me) {
    WEFTI_TRY(wefti_alloc((size_t)size * sizeof *map->order, "members by node", &map->order));
    WEFTI_TRY(wefti_alloc((size_t)size * sizeof *map->node, "nodes of members", &map->node));
    WEFTI_TRY(wefti_alloc((size_t)size * sizeof *map->place_of, "places of members", &map->place_of));
    WEFTI_TRY(wefti_alloc(((size_t)size + 1) * sizeof *map->first, "members by node", &map->first));
    map->least = size;
    int32_t placed = 0;
    for (int32_t i = 0; i < size; i++) { /* a node begins with the first of its members that has no place yet */
        bool seen = false;
        for (int32_t k = 0; k < i; k++) seen |= nodes[k] == nodes[i];
        if (seen) continue;
        int32_t first = map->first[map->count] = placed;
        for (int32_t k = i; k < size; k++) {
            if (nodes[k] != nodes[i]) continue;
            map->node[k] = map->count;
            map->place_of[k] = placed - first;
            map->order[placed++] = k;
        }
        if (placed - first < map->least) map->least = placed - first;
        if (placed - first > map->most) map->most = placed - first;
        map->first[++map->count] = placed;
    }
    map->mine = map->node[me];
    map->place = map->place_of[me];
    map->here = map->first[map->mine + 1] - map->first[map->mine];
    return WEFT_OK;
}

static void free_map(nodes_map *map, int32_t size) {
    wefti_free(map->order, (size_t)size * sizeof *map->order);
    wefti_free(map->node, (size_t)size * sizeof *map->node);
    wefti_free(map->place_of, (size_t)size * sizeof *map->place_of);
    wefti_free(map->first, ((size_t)size + 1) * sizeof *map->first);
}

/* --- groups --- */

/* A group of those members over the wire; by the engine of the group that we were given. */
static weft_status open_over(nodes_group *group, const wefti_group_options *options, const int32_t *members, int32_t size, int32_t index, wefti_group **out) {
    int32_t *ranks = NULL, *nodes = NULL;
    size_t   bytes = (size_t)size * sizeof *ranks;
    weft_status status = wefti_alloc(bytes, "ranks of a group", &ranks);
    if (status == WEFT_OK) status = wefti_alloc(bytes, "nodes of a group", &nodes);
    for (int32_t i = 0; i < size && status == WEFT_OK; i++) {
        ranks[i] = group->over->ranks[members[i]];
        nodes[i] = options->nodes[members[i]];
    }
    wefti_group_options how = {.host = options->host, .wire = size > 1 ? group->over->wire : NULL, .ranks = size > 1 ? ranks : NULL, .size = size, .index = index,
                               .id = options->id, .epoch = options->epoch, .timeout_ns = options->timeout_ns, .reducer = options->reducer,
                               .fault = group->base.fault, .algorithm = options->algorithm, .nodes = nodes};
    if (status == WEFT_OK) status = group->over->engine->open(&how, out);
    wefti_free(ranks, bytes);
    wefti_free(nodes, bytes);
    return status;
}

static weft_status open_wires(nodes_group *group, const wefti_group_options *options) {
    const nodes_map *map = &group->map;
    int32_t         *owners = NULL;
    size_t           bytes = (size_t)map->count * sizeof *owners;
    WEFTI_TRY(open_over(group, options, map->order + map->first[map->mine], map->here, map->place, &group->meeting));
    if (map->place >= map->least) return WEFT_OK;
    WEFTI_TRY(wefti_alloc(bytes, "owners of a shard", &owners));
    for (int32_t node = 0; node < map->count; node++) owners[node] = map->order[map->first[node] + map->place];
    weft_status status = open_over(group, options, owners, map->count, map->mine, &group->across);
    wefti_free(owners, bytes);
    return status;
}

typedef struct opening {
    int32_t status;
    char    why[400];
} opening;

/* Everyone hears how it went; whoever failed says so, too. */
static weft_status agree(nodes_group *group, weft_status mine) {
    opening    *all = NULL, self = {.status = (int32_t)mine};
    size_t      bytes = (size_t)group->base.size * sizeof *all;
    if (mine != WEFT_OK) strncpy(self.why, weft_error_message(), sizeof self.why - 1);
    WEFTI_TRY(wefti_alloc(bytes, "how nodes opened NCCL", &all));
    wefti_collective_call call = {.kind = WEFTI_ALLGATHER, .dtype = WEFT_U8, .send = &self, .receive = all, .count = sizeof self};
    weft_status status = wefti_collective_run(group->over, &call);
    for (int32_t i = 0; i < group->base.size && status == WEFT_OK; i++)
        if (all[i].status != WEFT_OK)
            status = wefti_fail((weft_status)all[i].status, "rank %d opens no NCCL inside its node: %.399s", (int)group->base.ranks[i], all[i].why);
    wefti_free(all, bytes);
    return status;
}

/* --- memory --- */

static weft_status make_slots(nodes_group *group) {
    const nodes_map *map = &group->map;
    wefti_wire      *wire = group->over->wire;
    size_t           device = wefti_align_up(NODES_PIECE_BYTES, ALIGNMENT), each;
    group->shard_bytes = wefti_align_up((size_t)NODES_PIECE_BYTES / (size_t)map->least + 64, ALIGNMENT);
    each = group->shard_bytes + device;
    group->device_bytes = NODES_DEPTH * each;
    WEFTI_TRY(wire->ops->region_create(wire, NODES_DEPTH * 2 * group->shard_bytes, &group->region));
    group->cuda->base.vtable->pin(&group->cuda->base, group->region->base, group->region->size_bytes);
    group->pinned = true;
    WEFTI_TRY(wefti_alloc((size_t)NODES_DEPTH * (size_t)map->here * sizeof *group->counts, "sizes of shards", &group->counts));
    void *memory = NULL;
    WEFTI_TRY(group->cuda->base.vtable->allocate(&group->cuda->base, group->device_bytes, "what goes between NCCL and wires", &memory));
    group->device_memory = memory;
    for (int i = 0; i < NODES_DEPTH; i++) {
        nodes_slot *slot = &group->slots[i];
        slot->host = (char *)group->region->base + (size_t)i * 2 * group->shard_bytes;
        slot->shard = group->device_memory + (size_t)i * each;
        slot->wide = slot->shard + group->shard_bytes;
        slot->counts = group->counts + i * map->here;
        WEFTI_TRY(wefti_cuda_check(group->cuda, cudaEventCreateWithFlags(&slot->left, cudaEventDisableTiming), "an event"));
        WEFTI_TRY(wefti_cuda_check(group->cuda, cudaEventCreateWithFlags(&slot->loaded, cudaEventDisableTiming), "an event"));
    }
    return WEFT_OK;
}

static weft_status make_streams(nodes_group *group) {
    cudaStream_t *streams[] = {&group->in, &group->out, &group->into};
    int           least = 0, greatest = 0;
    WEFTI_TRY(wefti_cuda_enter(group->cuda));
    WEFTI_TRY(wefti_cuda_check(group->cuda, cudaDeviceGetStreamPriorityRange(&least, &greatest), "priorities"));
    for (size_t i = 0; i < WEFTI_COUNT(streams); i++)
        WEFTI_TRY(wefti_cuda_check(group->cuda, cudaStreamCreateWithPriority(streams[i], cudaStreamNonBlocking, greatest), "a stream for copies"));
    WEFTI_TRY(wefti_alloc((size_t)group->n_operations * sizeof *group->operations, "operations inside and across nodes", &group->operations));
    for (int32_t i = group->n_operations; i-- > 0;) {
        nodes_operation *operation = &group->operations[i];
        operation->base.group = &group->base;
        operation->next = group->unused;
        group->unused = operation;
        WEFTI_TRY(wefti_cuda_check(group->cuda, cudaEventCreateWithFlags(&operation->before, cudaEventDisableTiming), "an event"));
    }
    return WEFT_OK;
}

/* --- the group --- */

static weft_status check_options(const wefti_group_options *options) {
    if (!options->device || strcmp(options->device->vtable->kind, "cuda") != 0)
        return wefti_fail(WEFT_E_UNSUPPORTED, "NCCL moves memory of CUDA devices, and this rank computes on '%s'",
                          options->device ? options->device->vtable->kind : "none");
    if (!options->over || !options->over->wire)
        return wefti_fail(WEFT_E_INVALID, "NCCL inside nodes wants a group over a wire, by which it goes on across them");
    if (!options->nodes) return wefti_fail(WEFT_E_INVALID, "NCCL inside nodes has not been told which ranks share one");
    if (options->size != options->over->size || options->index != options->over->index)
        return wefti_fail(WEFT_E_INVALID, "NCCL inside nodes, of %d members, this one %d, over a group of %d, this one %d", (int)options->size,
                          (int)options->index, (int)options->over->size, (int)options->over->index);
    return WEFT_OK;
}

static weft_status open_all(nodes_group *group, const wefti_group_options *options) {
    WEFTI_TRY(make_map(&group->map, options->nodes, options->size, options->index));
    WEFTI_TRY(make_streams(group));
    WEFTI_TRY(make_slots(group));
    WEFTI_TRY(open_wires(group, options));
    wefti_group_options how = {.host = options->host, .device = options->device, .over = group->meeting, .size = group->map.here, .index = group->map.place,
                               .id = options->id, .fault = group->base.fault, .timeout_ns = options->timeout_ns};
    return wefti_collective_engine_nccl()->open(&how, &group->inside);
}

static weft_status fill(nodes_group *group, const wefti_group_options *options) {
    group->base = (wefti_group){.engine = wefti_collective_engine_nccl_nodes(), .fault = options->fault, .size = options->size, .index = options->index,
                                .ranks = options->over->ranks};
    group->cuda = wefti_cuda_of(options->device);
    group->host = options->host ? options->host : wefti_host_system();
    group->over = options->over;
    if (!group->base.fault) {
        WEFTI_TRY(wefti_fault_create(group->host, &group->base.fault));
        group->own_fault = true;
    }
    return agree(group, open_all(group, options));
}

static void release(nodes_group *group) {
    wefti_cuda   *cuda = group->cuda;
    cudaStream_t  streams[] = {group->in, group->out, group->into};
    wefti_collective_engine_nccl()->close(group->inside); /* first: what streams wait for may be NCCL's */
    if (group->across) group->over->engine->close(group->across);
    if (group->meeting) group->over->engine->close(group->meeting);
    (void)cudaSetDevice(cuda->ordinal);
    for (size_t i = 0; i < WEFTI_COUNT(streams); i++) {
        if (!streams[i]) continue;
        (void)cudaStreamSynchronize(streams[i]);
        (void)cudaStreamDestroy(streams[i]);
    }
    for (int i = 0; i < NODES_DEPTH; i++) {
        if (group->slots[i].left) (void)cudaEventDestroy(group->slots[i].left);
        if (group->slots[i].loaded) (void)cudaEventDestroy(group->slots[i].loaded);
    }
    for (int32_t i = 0; group->operations && i < group->n_operations; i++)
        if (group->operations[i].before) (void)cudaEventDestroy(group->operations[i].before);
    (void)cudaGetLastError();
    cuda->base.vtable->deallocate(&cuda->base, group->device_memory, group->device_bytes);
    /* The region itself goes with the wire: peers may be reading it yet. */
    if (group->pinned) cuda->base.vtable->unpin(&cuda->base, group->region->base, group->region->size_bytes);
    if (group->own_fault) wefti_fault_release(group->base.fault);
    wefti_free(group->counts, (size_t)NODES_DEPTH * (size_t)group->map.here * sizeof *group->counts);
    wefti_free(group->operations, (size_t)group->n_operations * sizeof *group->operations);
    free_map(&group->map, group->base.size);
    wefti_free(group, sizeof *group);
}

weft_status wefti_nodes_open(const wefti_group_options *options, wefti_group **group_out) {
    nodes_group *group = NULL;
    *group_out = NULL;
    WEFTI_TRY(check_options(options));
    WEFTI_TRY(wefti_alloc(sizeof *group, "a group inside and across nodes", &group));
    group->n_operations = options->in_flight > 0 ? options->in_flight : DEFAULT_IN_FLIGHT;
    weft_status status = fill(group, options);
    if (status == WEFT_OK) {
        *group_out = &group->base;
        return WEFT_OK;
    }
    char message[WEFTI_MESSAGE_BYTES]; /* cleaning up is not to hide why */
    strncpy(message, weft_error_message(), sizeof message - 1);
    message[sizeof message - 1] = 0;
    release(group);
    return wefti_fail(status, "%s", message);
}

void wefti_nodes_close(wefti_group *base) { release(nodes_group_of(base)); }

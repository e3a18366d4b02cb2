/* The composition root: the only file that names every device and every transport. It opens the link to the other ranks
 * first, for that says how many of them share this machine's cores and GPUs, then the device, and lends a reduction to the
 * collectives: the device's where the host reaches its memory, else that of a CPU device of one thread. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/cpu/cpu.h"
#include "core/iface/world.h"
#include "parallel/place.h"
#include "transport/transport.h"
#ifdef WEFTI_HAVE_CUDA
#include "cuda/cuda.h"
#include "cuda/nccl_engine.h"
#endif

#define WEFTI_VERSION "0.1.0"
#define WEFTI_SHRINK_PATIENCE_NS (10 * WEFTI_SECOND_NS)

typedef struct runtime {
    weft_world       world; /* first: a world is a runtime */
    wefti_reducer    reducer;
    wefti_device    *reduces; /* the world's device, or one of its own */
    wefti_transport *link;
    wefti_world_links links;
    wefti_foreign    foreign; /* the device's memory, as the wire sees it */
    weft_world_options options; /* for the world that follows this one after a fault */
    char             device[64], nccl[16]; /* the texts of .device and .nccl */
    int32_t          local_rank; /* by which its GPU was chosen */
} runtime;

/* Both are opened before the first collective runs. */
static weft_status reduce_on_device(void *context, void *dst, const void *const *sources, int32_t source_count, size_t count,
                                    weft_dtype dtype, wefti_reduce_op op, int32_t divisor) {
    wefti_device *device = ((runtime *)context)->reduces;
    return device->vtable->reduce(device, dst, sources, source_count, count, dtype, op, divisor);
}

static weft_status open_world_wire(weft_world *world, const char *what, wefti_wire **wire_out) {
    return wefti_transport_open_wire(((runtime *)world)->link, what, wire_out);
}

static weft_status exchange_in_world(weft_world *world, const char *what, const void *mine, size_t bytes, void *all_out) {
    return wefti_transport_exchange(((runtime *)world)->link, what, mine, bytes, all_out);
}

/* `lost`: the world that this one follows; NULL: none. */
static weft_status open_link(runtime *r, const runtime *lost, const weft_shrink_options *shrink) {
    const weft_world_options *options = &r->options;
    r->reducer = (wefti_reducer){.reduce = reduce_on_device, .context = r};
    wefti_transport_options link = {.rank = options->rank, .size = options->size, .store = options->store, .wire = options->wire,
                                    .timeout_ns = (uint64_t)options->timeout_ns, .own_wire = options->own_wire,
                                    .no_control_thread = options->no_control_thread, .encrypt = options->encrypt, .reducer = &r->reducer};
    if (lost)
        WEFTI_TRY(wefti_transport_shrink(lost->link, &link,
                                         &(wefti_shrink_terms){.least = shrink->least ? shrink->least : 1,
                                                               .patience_ns = shrink->patience_ns ? (uint64_t)shrink->patience_ns : WEFTI_SHRINK_PATIENCE_NS,
                                                               .replacement_ns = (uint64_t)shrink->replacement_ns}, &r->link));
    else
        WEFTI_TRY(wefti_transport_open(&link, &r->link));
    r->local_rank = lost ? lost->local_rank : r->link->local_rank;
    r->world.rank = r->link->rank;
    r->world.size = r->link->size;
    r->world.group = r->link->group;
    r->world.fault = r->link->fault;
    r->world.transport = r->link;
    r->links = (wefti_world_links){r->link->host, open_world_wire, exchange_in_world};
    r->world.links = &r->links;
    r->world.placer = wefti_placer_of_ranks();
    r->world.timeout_ns = (int64_t)r->link->timeout_ns;
    return WEFT_OK;
}

static weft_status open_cpu(runtime *r, const weft_world_options *options, wefti_device **device_out) {
    wefti_cpu_options cpu = {.threads = options->threads};
    if (cpu.threads.sharers == 0) cpu.threads.sharers = r->link->local_size > 0 ? r->link->local_size : 1;
    return wefti_cpu_create(&cpu, device_out);
}

/* "cuda" or "cuda:N": N is -1 where it is not said. */
static bool names_cuda(const char *name, int32_t *ordinal_out) {
    *ordinal_out = -1;
    if (strcmp(name, "cuda") == 0) return true;
    if (strncmp(name, "cuda:", 5) != 0 || name[5] < '0' || name[5] > '9') return false;
    char *end = NULL;
    long  ordinal = strtol(name + 5, &end, 10);
    *ordinal_out = ordinal > INT32_MAX ? INT32_MAX : (int32_t)ordinal;
    return *end == '\0';
}

#ifdef WEFTI_HAVE_CUDA
#define DEVICES "cpu, cuda, cuda:N (the N-th GPU), auto (cuda where there is a GPU, else cpu)"
static bool cuda_is_there(void) { return wefti_cuda_is_there(); }

static weft_status open_cuda(runtime *r, int32_t ordinal) {
    wefti_cuda_options cuda = {.ordinal = ordinal, .local_rank = r->local_rank};
    wefti_cpu_options  cpu = {.threads = {.count = 1}};
    WEFTI_TRY(wefti_cuda_create(&cuda, &r->world.device));
    return wefti_cpu_create(&cpu, &r->reduces);
}

static void describe_cuda(const runtime *r, char *text, size_t bytes) {
    snprintf(text, bytes, "cuda (%s)", wefti_cuda_describe(r->world.device));
}
#else
#define DEVICES "cpu, auto (the same in this build: it was made without CUDA)"
static bool cuda_is_there(void) { return false; }

static weft_status open_cuda(runtime *r, int32_t ordinal) {
    (void)r, (void)ordinal;
    return wefti_fail(WEFT_E_UNSUPPORTED, "device 'cuda' does not exist in this build, which was made without CUDA (see what cmake said "
                      "about it); there is: %s", DEVICES);
}

static void describe_cuda(const runtime *r, char *text, size_t bytes) {
    (void)r;
    snprintf(text, bytes, "cuda");
}
#endif

/* --- the device's memory and the wire --- */

enum { SAMPLE_BYTES = 64 << 10 };

/* Tells the wire how it comes to memory that is not the host's. */
static weft_status attach_device(runtime *r) {
    wefti_device *device = r->world.device;
    wefti_wire   *wire = r->link->wire;
    void         *sample = NULL;
    if (!wire || !wire->ops->attach || !device->vtable->foreign || !device->vtable->foreign(device, &r->foreign)) return WEFT_OK;
    WEFTI_TRY(device->vtable->allocate(device, SAMPLE_BYTES, "a sample for the wire", &sample));
    weft_status status = wire->ops->attach(wire, &r->foreign, sample, SAMPLE_BYTES, r->world.device_wire_text, sizeof r->world.device_wire_text);
    device->vtable->deallocate(device, sample, SAMPLE_BYTES);
    return status;
}

/* --- collectives on the device's own memory --- */

enum { NCCL_AUTO, NCCL_OFF, NCCL_FORCE, NCCL_NODES };
/* The group id that NCCL inside nodes makes its groups with; users' have others then. */
enum { NODES_GROUP_ID = WEFTI_GROUP_IDS - 1 };

/* What ranks tell each other about NCCL: all decide by the same. */
typedef struct nccl_facts {
    int32_t  wish, version; /* version 0: it cannot, and why */
    int32_t  per_node, node; /* ranks that are taken for a node, 0: those of a host; any number that ranks of a node share */
    uint64_t host;          /* as NCCL will see it */
    uint8_t  uuid[16];      /* of the GPU */
    char     why[192];
} nccl_facts;

static weft_status read_nccl_wish(const weft_world_options *options, nccl_facts *mine) {
    static const char *const words[] = {"auto", "off", "force", "nodes"};
    const char              *name = options->nccl ? options->nccl : getenv("WEFT_NCCL");
    char                     more;
    if (!name || !*name) name = "auto";
    for (mine->wish = 0; mine->wish < (int32_t)WEFTI_COUNT(words); mine->wish++)
        if (strcmp(name, words[mine->wish]) == 0) return WEFT_OK;
    mine->wish = NCCL_NODES;
    if (sscanf(name, "nodes:%d%c", &mine->per_node, &more) == 1 && mine->per_node > 0) return WEFT_OK;
    return wefti_fail(WEFT_E_INVALID, "WEFT_NCCL (or .nccl) is '%s'; there is: auto, off, force, nodes, nodes:N (N ranks each)", name);
}

static void find_nccl(const runtime *r, nccl_facts *mine) {
#if defined WEFTI_HAVE_CUDA && defined WEFT_HAVE_NCCL
    const char *host = getenv("NCCL_HOSTID");
    mine->node = mine->per_node ? r->world.rank / mine->per_node : r->link->nodes[r->world.rank];
    if (strcmp(r->world.device->vtable->kind, "cuda") == 0) {
        wefti_cuda_uuid(r->world.device, mine->uuid);
        mine->host = host && *host ? wefti_hash(WEFTI_HASH_BEGIN, host, strlen(host)) : (uint64_t)r->link->nodes[r->world.rank];
        if (wefti_cuda_nccl_version(&mine->version) != WEFT_OK) snprintf(mine->why, sizeof mine->why, "%.190s", weft_error_message());
        return;
    }
#endif
    snprintf(mine->why, sizeof mine->why, "its device is %s%s", r->world.device->vtable->kind,
             strcmp(r->world.device->vtable->kind, "cuda") == 0 ? ", and this build was made without nccl.h" : "");
}

/* Why these ranks cannot use NCCL; false where they can. `nodes`: it is to work inside each node only. */
static bool lacks_nccl(const nccl_facts *all, int32_t size, bool nodes, char *why, size_t bytes) {
    for (int32_t i = 0; i < size; i++) {
        if (all[i].version == 0) return snprintf(why, bytes, "no NCCL on rank %d: %.191s", (int)i, all[i].why), true;
        for (int32_t j = 0; j < i; j++) {
            if (nodes && all[i].node != all[j].node) continue;
            if (all[i].version != all[j].version)
                return snprintf(why, bytes, "rank %d has NCCL %d, rank %d has %d", (int)j, (int)all[j].version, (int)i, (int)all[i].version), true;
            if (all[i].host == all[j].host && memcmp(all[i].uuid, all[j].uuid, sizeof all[i].uuid) == 0)
                return snprintf(why, bytes, "ranks %d and %d share a GPU, which NCCL takes where each process has an NCCL_HOSTID of its own", (int)j,
                                (int)i), true;
        }
    }
    return false;
}

/* How many nodes there are, and the ranks of the smallest and of the largest. */
static int32_t count_nodes(const nccl_facts *all, int32_t size, int32_t *least_out, int32_t *most_out) {
    int32_t nodes = 0;
    *least_out = size;
    *most_out = 0;
    for (int32_t i = 0; i < size; i++) {
        int32_t before = 0, ranks = 0;
        for (int32_t k = 0; k < size; k++) {
            before += k < i && all[k].node == all[i].node;
            ranks += all[k].node == all[i].node;
        }
        nodes += before == 0;
        if (ranks < *least_out) *least_out = ranks;
        if (ranks > *most_out) *most_out = ranks;
    }
    return nodes;
}

/* Whether NCCL may work inside nodes, with the wire across them; else why not. Says in words how they are. */
static bool suits_nodes(const runtime *r, const nccl_facts *all, char *text, size_t bytes) {
    int32_t least, most, nodes = count_nodes(all, r->world.size, &least, &most);
    if (lacks_nccl(all, r->world.size, true, text, bytes)) return false;
    if (!r->world.group || !r->world.group->wire) return snprintf(text, bytes, "the ranks' own group goes by no wire of Weft's"), false;
    if (nodes == 1) return snprintf(text, bytes, "all ranks are on one node"), false;
    if (most == 1) return snprintf(text, bytes, "each rank is alone on its node"), false;
    if (least == most) snprintf(text, bytes, "inside %d nodes of %d ranks, wire %.32s across them", (int)nodes, (int)most, r->link->wire_name);
    else
        snprintf(text, bytes, "inside %d nodes of %d to %d ranks, wire %.32s across them from %d of each, as many as the smallest has", (int)nodes, (int)least,
                 (int)most, r->link->wire_name, (int)least);
    return true;
}

/* What collectives go by: NCCL_OFF, NCCL_FORCE (NCCL among all), NCCL_NODES. */
static weft_status decide_nccl(runtime *r, const nccl_facts *all, int32_t *way_out) {
    char *text = r->world.device_group_text, why[256] = "", nodes[256] = "";
    *way_out = NCCL_OFF;
    for (int32_t i = 1; i < r->world.size; i++)
        if (all[i].wish != all[0].wish || all[i].per_node != all[0].per_node)
            return wefti_fail(WEFT_E_MISMATCH, "ranks 0 and %d differ in WEFT_NCCL (or .nccl): set it alike on all", (int)i);
    int32_t wish = all[0].wish, least, most;
    bool    lacks = lacks_nccl(all, r->world.size, false, why, sizeof why), suits = suits_nodes(r, all, nodes, sizeof nodes);
    if (lacks && wish == NCCL_FORCE) return wefti_fail(WEFT_E_UNSUPPORTED, "NCCL is forced, and cannot be had: %s", why);
    bool alone = wish == NCCL_NODES && count_nodes(all, r->world.size, &least, &most) == 1; /* the one node is all */
    if (wish == NCCL_NODES && !suits && (lacks || !alone)) return wefti_fail(WEFT_E_UNSUPPORTED, "NCCL inside nodes is asked for, and cannot be had: %s", nodes);
    if (wish != NCCL_OFF && !lacks) *way_out = NCCL_FORCE;
    if (suits && (wish == NCCL_NODES || (wish == NCCL_AUTO && lacks))) *way_out = NCCL_NODES;
    int32_t version = all[r->world.rank].version;
    if (*way_out != NCCL_OFF)
        snprintf(text, sizeof r->world.device_group_text, "NCCL %d.%d.%d%s%.200s", (int)version / 10000, (int)version / 100 % 100, (int)version % 100,
                 *way_out == NCCL_NODES ? " " : "", *way_out == NCCL_NODES ? nodes : "");
    else snprintf(text, sizeof r->world.device_group_text, "%s", wish == NCCL_OFF ? "NCCL is off (WEFT_NCCL)" : why);
    return WEFT_OK;
}

#if defined WEFTI_HAVE_CUDA && defined WEFT_HAVE_NCCL
static weft_status open_nccl(runtime *r, const nccl_facts *all, int32_t way) {
    wefti_group_options how = {.device = r->world.device, .over = r->world.group, .size = r->world.size, .index = r->world.rank,
                               .fault = r->link->fault, .timeout_ns = r->link->timeout_ns};
    if (way == NCCL_FORCE) return wefti_collective_engine_nccl()->open(&how, &r->world.device_group);
    int32_t *nodes = NULL;
    size_t   bytes = (size_t)r->world.size * sizeof *nodes;
    WEFTI_TRY(wefti_alloc(bytes, "nodes of ranks", &nodes));
    for (int32_t i = 0; i < r->world.size; i++) nodes[i] = all[i].node;
    r->world.group_ids[NODES_GROUP_ID] = -1;
    how.id = NODES_GROUP_ID;
    how.nodes = nodes;
    how.reducer = r->link->reducer;
    weft_status status = wefti_collective_engine_nccl_nodes()->open(&how, &r->world.device_group);
    wefti_free(nodes, bytes);
    return status;
}
#else
static weft_status open_nccl(runtime *r, const nccl_facts *all, int32_t way) { return (void)r, (void)all, (void)way, WEFT_OK; }
#endif

/* Collective; after the ranks' devices are open. */
static weft_status open_device_group(runtime *r, const weft_world_options *options) {
    nccl_facts mine = {0}, *all = NULL;
    size_t     bytes = (size_t)r->world.size * sizeof *all;
    int32_t    way = NCCL_OFF;
    if (r->world.size < 2) return WEFT_OK;
    WEFTI_TRY(read_nccl_wish(options, &mine));
    find_nccl(r, &mine);
    WEFTI_TRY(wefti_alloc(bytes, "what ranks say about NCCL", &all));
    weft_status status = wefti_transport_exchange(r->link, "NCCL", &mine, sizeof mine, all);
    if (status == WEFT_OK) status = decide_nccl(r, all, &way);
    if (status == WEFT_OK && way != NCCL_OFF) status = open_nccl(r, all, way);
    wefti_free(all, bytes);
    return status;
}

static weft_status open_device(runtime *r, const weft_world_options *options) {
    const char *name = options->device;
    int32_t     ordinal = -1;
    if (!name || !*name) name = "cpu";
    if (strcmp(name, "auto") == 0) name = cuda_is_there() ? "cuda" : "cpu";
    if (names_cuda(name, &ordinal)) return open_cuda(r, ordinal);
    if (strcmp(name, "cpu") != 0) return wefti_fail(WEFT_E_UNSUPPORTED, "device '%s' does not exist; there is: %s", name, DEVICES);
    WEFTI_TRY(open_cpu(r, options, &r->world.device));
    r->reduces = r->world.device;
    return WEFT_OK;
}

static void describe_cpu(const runtime *r, char *text, size_t bytes) {
    wefti_device *device = r->world.device;
    int32_t       threads = device->vtable->threads(device);
    snprintf(text, bytes, "cpu (%s, %d thread%s)", wefti_cpu_isa_name(wefti_cpu_isa_of(device)), (int)threads, threads == 1 ? "" : "s");
}

/* What people should know of the wire beside its name. */
static const char *wire_remark(const runtime *r) {
    wefti_wire *wire = r->link->wire;
    if (r->link->encrypts) return " (TCP is encrypted)";
    if (wire && wire->ops->peer_read && wefti_wire_reads_peers(wire, NULL, wire->size) != WEFT_OK)
        return " (the system lets ranks not read each other's memory, see ptrace_scope and seccomp: the program's own buffers are copied twice)";
    return "";
}

static void describe(runtime *r) {
    char device[200];
    if (strcmp(r->world.device->vtable->kind, "cpu") == 0) describe_cpu(r, device, sizeof device);
    else describe_cuda(r, device, sizeof device);
    snprintf(r->world.description, sizeof r->world.description, "weft %s, rank %d of %d, %s%s%s, wire %s%s%s%.*s%s, started by %s", WEFTI_VERSION,
             (int)r->world.rank, (int)r->world.size, device, r->world.device_group ? ", " : "",
             r->world.device_group ? r->world.device_group_text : "", r->link->wire_name, wire_remark(r),
             r->world.device_wire_text[0] ? " (device memory by " : "", (int)strcspn(r->world.device_wire_text, ";"), r->world.device_wire_text,
             r->world.device_wire_text[0] ? ")" : "", r->link->launcher);
}

/* The texts of a caller live only as long as the call. */
static weft_status keep_options(runtime *r, const weft_world_options *options) {
    const char *device = options->device ? options->device : getenv("WEFT_DEVICE");
    r->options = *options;
    if (device && strlen(device) >= sizeof r->device)
        return wefti_fail(WEFT_E_UNSUPPORTED, "device '%s' does not exist; there is: %s", device, DEVICES);
    snprintf(r->device, sizeof r->device, "%s", device ? device : "");
    r->options.device = r->device;
    snprintf(r->nccl, sizeof r->nccl, "%s", options->nccl ? options->nccl : "");
    r->options.nccl = options->nccl ? r->nccl : NULL;
    return WEFT_OK;
}

/* `again_out`: the ranks had met, and one of them was lost before the world was whole. */
static weft_status create(const weft_world_options *options, const runtime *lost, const weft_shrink_options *shrink, bool *again_out, weft_world **world_out) {
    runtime *r = NULL;
    *again_out = false;
    WEFTI_TRY(wefti_alloc(sizeof *r, "a world", &r));
    weft_status status = keep_options(r, options);
    if (status == WEFT_OK) status = open_link(r, lost, shrink);
    if (status == WEFT_OK) status = open_device(r, &r->options);
    if (status == WEFT_OK) status = attach_device(r);
    if (status == WEFT_OK) status = wefti_transport_tune(r->link);
    if (status == WEFT_OK) status = open_device_group(r, &r->options);
    r->options.store = r->options.wire = NULL;
    if (status != WEFT_OK) {
        *again_out = r->link && (status == WEFT_E_PEER || status == WEFT_E_LINK || status == WEFT_E_TIMEOUT);
        weft_world_release(&r->world);
        return status;
    }
    describe(r);
    *world_out = &r->world;
    return WEFT_OK;
}

weft_status weft_world_create(const weft_world_options *options, weft_world **world_out) {
    static const weft_world_options defaults;
    *world_out = NULL;
    if (!options) options = &defaults;
    if (options->timeout_ns < 0)
        return wefti_fail(WEFT_E_INVALID, "weft_world_create: timeout_ns is %lld; it must not be negative", (long long)options->timeout_ns);
    bool again;
    return create(options, NULL, NULL, &again, world_out);
}

weft_status weft_world_shrink(weft_world *world, const weft_shrink_options *options, weft_world **world_out) {
    static const weft_shrink_options defaults;
    *world_out = NULL;
    if (!world) return wefti_fail(WEFT_E_INVALID, "weft_world_shrink: the world is NULL");
    if (!options) options = &defaults;
    if (options->least < 0 || options->least > world->size || options->patience_ns < 0 || options->replacement_ns < 0)
        return wefti_fail(WEFT_E_INVALID, "weft_world_shrink: least %d, patience_ns %lld, replacement_ns %lld: expected 0 to the world's %d ranks, and no negative time",
                          (int)options->least, (long long)options->patience_ns, (long long)options->replacement_ns, (int)world->size);
    const runtime *lost = (const runtime *)world;
    weft_status    status;
    bool           again;
    int32_t        tries = world->size; /* each time somebody was lost */
    do status = create(&lost->options, lost, options, &again, world_out);
    while (again && --tries > 0);
    return status;
}

weft_status weft_world_verdict(weft_world *world) {
    if (!world) return wefti_fail(WEFT_E_INVALID, "weft_world_verdict: the world is NULL");
    return wefti_fault_status(world->fault);
}

void weft_world_release(weft_world *world) {
    if (!world) return;
    runtime *r = (runtime *)world;
    char message[WEFTI_MESSAGE_BYTES]; /* leaving is not to hide why */
    snprintf(message, sizeof message, "%s", weft_error_message());
    if (world->device_group) world->device_group->engine->close(world->device_group);
    (void)wefti_fail(WEFT_OK, "%s", message);
    wefti_transport_close(r->link); /* before the devices: its threads may be reducing on the device */
    if (r->reduces && r->reduces != world->device) r->reduces->vtable->release(r->reduces);
    if (world->device) world->device->vtable->release(world->device);
    wefti_free(r, sizeof *r);
}

int32_t     weft_world_rank(const weft_world *world) { return world->rank; }
bool        weft_world_is_replacement(const weft_world *world) { return ((const runtime *)world)->link->is_newcomer; }
int32_t     weft_world_size(const weft_world *world) { return world->size; }
const char *weft_world_describe(const weft_world *world) { return world->description; }

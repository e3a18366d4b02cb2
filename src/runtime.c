/* The composition root: the only file that names every device and every transport. It opens the link to the other ranks
 * first, for that says how many of them share this machine's cores and GPUs, then the device, and lends a reduction to the
 * collectives: the device's where the host reaches its memory, else that of a CPU device of one thread. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/cpu/cpu.h"
#include "core/iface/world.h"
#include "transport/transport.h"
#ifdef WEFTI_HAVE_CUDA
#include "cuda/cuda.h"
#endif

#define WEFTI_VERSION "0.1.0"

typedef struct runtime {
    weft_world       world; /* first: a world is a runtime */
    wefti_reducer    reducer;
    wefti_device    *reduces; /* the world's device, or one of its own */
    wefti_transport *link;
} runtime;

/* Both are opened before the first collective runs. */
static weft_status reduce_on_device(void *context, void *dst, const void *const *sources, int32_t source_count, size_t count,
                                    weft_dtype dtype, wefti_reduce_op op, int32_t divisor) {
    wefti_device *device = ((runtime *)context)->reduces;
    return device->vtable->reduce(device, dst, sources, source_count, count, dtype, op, divisor);
}

static weft_status open_link(runtime *r, const weft_world_options *options) {
    r->reducer = (wefti_reducer){reduce_on_device, r};
    wefti_transport_options link = {.rank = options->rank, .size = options->size, .store = options->store, .wire = options->wire,
                                    .timeout_ns = (uint64_t)options->timeout_ns, .own_wire = options->own_wire, .no_control_thread = options->no_control_thread, .encrypt = options->encrypt,
                                    .reducer = &r->reducer};
    WEFTI_TRY(wefti_transport_open(&link, &r->link));
    r->world.rank = r->link->rank;
    r->world.size = r->link->size;
    r->world.group = r->link->group;
    r->world.transport = r->link;
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
    wefti_cuda_options cuda = {.ordinal = ordinal, .local_rank = r->link->local_rank};
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

static weft_status open_device(runtime *r, const weft_world_options *options) {
    const char *name = options->device ? options->device : getenv("WEFT_DEVICE");
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

static void describe(runtime *r) {
    char device[200];
    if (strcmp(r->world.device->vtable->kind, "cpu") == 0) describe_cpu(r, device, sizeof device);
    else describe_cuda(r, device, sizeof device);
    snprintf(r->world.description, sizeof r->world.description, "weft %s, rank %d of %d, %s, wire %s%s, started by %s", WEFTI_VERSION,
             (int)r->world.rank, (int)r->world.size, device, r->link->wire_name, r->link->encrypts ? " (TCP is encrypted)" : "", r->link->launcher);
}

weft_status weft_world_create(const weft_world_options *options, weft_world **world_out) {
    static const weft_world_options defaults;
    *world_out = NULL;
    if (!options) options = &defaults;
    if (options->timeout_ns < 0)
        return wefti_fail(WEFT_E_INVALID, "weft_world_create: timeout_ns is %lld; it must not be negative", (long long)options->timeout_ns);
    runtime *r = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *r, "a world", &r));
    weft_status status = open_link(r, options);
    if (status == WEFT_OK) status = open_device(r, options);
    if (status == WEFT_OK) status = wefti_transport_tune(r->link);
    if (status != WEFT_OK) {
        weft_world_release(&r->world);
        return status;
    }
    describe(r);
    *world_out = &r->world;
    return WEFT_OK;
}

void weft_world_release(weft_world *world) {
    if (!world) return;
    runtime *r = (runtime *)world;
    wefti_transport_close(r->link); /* first: its threads may be reducing on the device */
    if (r->reduces && r->reduces != world->device) r->reduces->vtable->release(r->reduces);
    if (world->device) world->device->vtable->release(world->device);
    wefti_free(r, sizeof *r);
}

int32_t     weft_world_rank(const weft_world *world) { return world->rank; }
int32_t     weft_world_size(const weft_world *world) { return world->size; }
const char *weft_world_describe(const weft_world *world) { return world->description; }

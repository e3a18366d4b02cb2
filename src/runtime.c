/* The composition root: the only file that names every device and every transport. It opens the link to the other ranks
 * first, for that says how many of them share this machine's cores, then the device, and lends the device's reduction to
 * the collectives. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/cpu/cpu.h"
#include "core/iface/world.h"
#include "transport/transport.h"

#define WEFTI_VERSION "0.1.0"

typedef struct runtime {
    weft_world       world; /* first: a world is a runtime */
    wefti_reducer    reducer;
    wefti_transport *link;
} runtime;

/* The collectives' reduction is the device's; both are opened before the first one runs. */
static weft_status reduce_on_device(void *context, void *dst, const void *const *sources, int32_t source_count, size_t count,
                                    weft_dtype dtype, wefti_reduce_op op, int32_t divisor) {
    wefti_device *device = ((runtime *)context)->world.device;
    return device->vtable->reduce(device, dst, sources, source_count, count, dtype, op, divisor);
}

static weft_status open_link(runtime *r, const weft_world_options *options) {
    r->reducer = (wefti_reducer){reduce_on_device, r};
    wefti_transport_options link = {.rank = options->rank, .size = options->size, .store = options->store, .wire = options->wire,
                                    .timeout_ns = (uint64_t)options->timeout_ns, .no_control_thread = options->no_control_thread,
                                    .reducer = &r->reducer};
    WEFTI_TRY(wefti_transport_open(&link, &r->link));
    r->world.rank = r->link->rank;
    r->world.size = r->link->size;
    r->world.group = r->link->group;
    r->world.transport = r->link;
    r->world.timeout_ns = (int64_t)r->link->timeout_ns;
    return WEFT_OK;
}

static weft_status open_device(runtime *r, const weft_world_options *options) {
    const char *name = options->device ? options->device : getenv("WEFT_DEVICE");
    if (name && *name && strcmp(name, "cpu") != 0)
        return wefti_fail(WEFT_E_UNSUPPORTED, "device '%s' does not exist in this build; there is: cpu", name);
    wefti_cpu_options cpu = {.threads = options->threads};
    if (cpu.threads.sharers == 0) cpu.threads.sharers = r->link->local_size > 0 ? r->link->local_size : 1;
    return wefti_cpu_create(&cpu, &r->world.device);
}

static void describe(runtime *r) {
    wefti_device *device = r->world.device;
    int32_t       threads = device->vtable->threads(device);
    snprintf(r->world.description, sizeof r->world.description, "weft %s, rank %d of %d, %s (%s, %d thread%s), wire %s, started by %s",
             WEFTI_VERSION, r->world.rank, r->world.size, device->vtable->kind, wefti_cpu_isa_name(wefti_cpu_isa_of(device)), threads,
             threads == 1 ? "" : "s", r->link->wire_name, r->link->launcher);
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
    if (world->device) world->device->vtable->release(world->device);
    wefti_free(r, sizeof *r);
}

int32_t     weft_world_rank(const weft_world *world) { return world->rank; }
int32_t     weft_world_size(const weft_world *world) { return world->size; }
const char *weft_world_describe(const weft_world *world) { return world->description; }

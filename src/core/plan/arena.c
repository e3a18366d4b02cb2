/* Arenas: the two regions that a plan's values lie in, shared by plans that never run at the same time.
 *
 * The exported region comes from the world's wire, so that other ranks reach it without a copy; without one it is plain device
 * memory. On a device whose memory is not the host's there are both, of the same layout: what collectives move is copied between them
 * (flights.c); where the wire reaches the device's memory, it has that registered as well, for messages that need no host. Regions of a wire that were outgrown are kept until the end: a slow peer may still be reading from them. */
#include <stdatomic.h>
#include <string.h>

#include "core/plan/object.h"

enum { PAGE_BYTES = 4096 };

typedef struct old_region {
    struct old_region *next;
    wefti_wire_region *region;
} old_region;

struct wefti_arena {
    atomic_int         references;
    wefti_device      *device;
    wefti_wire        *wire;   /* NULL: nothing is exported */
    void              *memory, *exported, *mirror; /* mirror: the wire's region, where that is not the exported memory itself; without a wire: `own_mirror` */
    bool               own_mirror;
    size_t             memory_bytes, exported_bytes;
    wefti_wire_region *region, *reached; /* reached: the exported memory, registered as it lies on the device; NULL: it cannot be */
    old_region        *old;
};

static wefti_wire *wire_of(const weft_world *world) {
    return world->group ? world->group->wire : NULL;
}

int64_t wefti_arena_exported_bytes(const weft_world *world, int64_t bytes) {
    return (int64_t)wefti_align_up((size_t)bytes, wire_of(world) ? PAGE_BYTES : WEFTI_ALIGNMENT);
}

weft_status wefti_arena_create(weft_world *world, wefti_arena **arena_out) {
    WEFTI_TRY(wefti_alloc(sizeof **arena_out, "a plan", arena_out));
    atomic_init(&(*arena_out)->references, 1);
    (*arena_out)->device = world->device;
    (*arena_out)->wire = wire_of(world);
    return WEFT_OK;
}

wefti_arena *wefti_arena_retain(wefti_arena *arena) {
    if (arena) atomic_fetch_add_explicit(&arena->references, 1, memory_order_relaxed);
    return arena;
}

/* Gives up the exported memory; the wire's region goes to the old ones, or is released. */
static weft_status drop_exported(wefti_arena *arena, bool keep_region) {
    const wefti_device_vtable *device = arena->device->vtable;
    old_region                *old = NULL;
    if (arena->region && keep_region) WEFTI_TRY(wefti_alloc(sizeof *old, "a plan", &old));
    if (arena->reached) arena->wire->ops->region_release(arena->reached);
    arena->reached = NULL;
    if (arena->mirror) device->unpin(arena->device, arena->mirror, arena->exported_bytes);
    if (arena->own_mirror) wefti_free(arena->mirror, arena->exported_bytes);
    arena->own_mirror = false;
    if (arena->exported && (!arena->region || arena->mirror)) device->deallocate(arena->device, arena->exported, arena->exported_bytes);
    if (old) {
        *old = (old_region){arena->old, arena->region};
        arena->old = old;
    } else if (arena->region) {
        arena->wire->ops->region_release(arena->region);
    }
    arena->region = NULL;
    arena->exported = arena->mirror = NULL;
    arena->exported_bytes = 0;
    return WEFT_OK;
}

void wefti_arena_release(wefti_arena *arena) {
    if (!arena || atomic_fetch_sub_explicit(&arena->references, 1, memory_order_acq_rel) != 1) return;
    if (arena->memory) arena->device->vtable->deallocate(arena->device, arena->memory, arena->memory_bytes);
    (void)!drop_exported(arena, false); /* allocates nothing then */
    while (arena->old) {
        old_region *next = arena->old->next;
        arena->wire->ops->region_release(arena->old->region);
        wefti_free(arena->old, sizeof *arena->old);
        arena->old = next;
    }
    wefti_free(arena, sizeof *arena);
}

static weft_status grow_memory(wefti_arena *arena, size_t bytes) {
    if (bytes <= arena->memory_bytes) return WEFT_OK;
    if (arena->memory) arena->device->vtable->deallocate(arena->device, arena->memory, arena->memory_bytes);
    arena->memory = NULL;
    arena->memory_bytes = 0;
    WEFTI_TRY(arena->device->vtable->allocate(arena->device, bytes, "the plan's intermediate values", &arena->memory));
    arena->memory_bytes = bytes;
    return WEFT_OK;
}

/* Padding between messages is sent along, so it must hold something: zeros. */
static weft_status clear(wefti_arena *arena, size_t bytes) {
    if (arena->device->vtable->host_memory) {
        memset(arena->exported, 0, bytes);
        return WEFT_OK;
    }
    void *zeros = NULL;
    WEFTI_TRY(wefti_alloc(bytes, "zeros", &zeros));
    weft_status status = arena->device->vtable->write(arena->device, arena->exported, zeros, bytes);
    wefti_free(zeros, bytes);
    return status;
}

static weft_status grow_exported(wefti_arena *arena, size_t bytes, bool shared) {
    const wefti_device_vtable *device = arena->device->vtable;
    bool exports = arena->wire && (shared || arena->region), mirrors = !arena->wire && !device->host_memory && (shared || arena->own_mirror);
    if (bytes == 0 || (bytes <= arena->exported_bytes && exports == (arena->region != NULL) && mirrors == arena->own_mirror)) return WEFT_OK;
    if (bytes < arena->exported_bytes) bytes = arena->exported_bytes;
    WEFTI_TRY(drop_exported(arena, true));
    if (exports) WEFTI_TRY(arena->wire->ops->region_create(arena->wire, bytes, &arena->region));
    if (arena->region && device->host_memory) {
        arena->exported = arena->region->base;
        arena->exported_bytes = bytes;
        return WEFT_OK;
    }
    WEFTI_TRY(device->allocate(arena->device, bytes, "what collectives send", &arena->exported));
    arena->exported_bytes = bytes;
    if (mirrors) WEFTI_TRY(wefti_alloc_raw(bytes, PAGE_BYTES, "what collectives send", &arena->mirror));
    arena->own_mirror = mirrors;
    if (arena->region) arena->mirror = arena->region->base;
    if (arena->mirror) device->pin(arena->device, arena->mirror, bytes);
    if (arena->region && (arena->wire->can.flags & WEFTI_WIRE_REACHES_FOREIGN) &&
        arena->wire->ops->region_register(arena->wire, arena->exported, bytes, &arena->reached) != WEFT_OK)
        wefti_log(WEFT_LOG_WARNING, "%s; messages go by copies through the host's memory", weft_error_message());
    return clear(arena, bytes);
}

weft_status wefti_arena_reserve(wefti_arena *arena, int64_t arena_bytes, int64_t exported_bytes, bool shared) {
    WEFTI_TRY(grow_memory(arena, (size_t)arena_bytes));
    return grow_exported(arena, (size_t)exported_bytes, shared);
}

void *wefti_arena_memory(const wefti_arena *arena) { return arena->memory; }
void *wefti_arena_exported(const wefti_arena *arena) { return arena->exported; }
void *wefti_arena_mirror(const wefti_arena *arena) { return arena->mirror; }
bool  wefti_arena_is_reached(const wefti_arena *arena) { return arena->reached != NULL; }

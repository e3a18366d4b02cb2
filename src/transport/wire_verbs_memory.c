/* Registered memory of the verbs wire.
 *
 * A region is registered once, when it is made. Any other buffer of a large transfer is registered when it is first used, in
 * whole pages, and found in the cache while transfers use it. When the last one is done the registration is kept only where
 * the system tells us of memory that is given back to it (wire_verbs_watch.c): a device goes on with the pages that it was
 * shown, whatever the address has come to mean. Where a buffer cannot be registered, its bytes go through the stages, which
 * is slower and said once. Memory of an attached device is registered a whole piece at a time and kept until the device says that it gives it back
 * (wire_verbs_foreign.c), on whatever thread: hence the lock. Memory: 256 entries; the oldest unused one gives way. */
#include <errno.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "transport/wire_verbs.h"

/* --- registering --- */

static weft_status fail_register(const verbs_rail *rail, size_t bytes, const char *what, int error) {
    struct rlimit limit = {.rlim_cur = RLIM_INFINITY};
    getrlimit(RLIMIT_MEMLOCK, &limit);
    if (error == ENOMEM && limit.rlim_cur != RLIM_INFINITY)
        return wefti_fail(WEFT_E_NO_MEMORY,
                          "verbs: %s cannot register %zu bytes (%s): out of memory, or the limit on locked memory is too low: RLIMIT_MEMLOCK "
                          "is %llu KiB; raise it (ulimit -l unlimited, memlock in /etc/security/limits.conf, LimitMEMLOCK=infinity "
                          "of a systemd unit)", rail->name, bytes, what, (unsigned long long)limit.rlim_cur / 1024);
    return wefti_fail(error == ENOMEM ? WEFT_E_NO_MEMORY : WEFT_E_DEVICE, "verbs: %s cannot register %zu bytes (%s): %s",
                      rail->name, bytes, what, error ? strerror(error) : "no reason given");
}

weft_status wefti_verbs_register(verbs_wire *wire, int32_t rails, void *memory, size_t bytes, int access, const char *what,
                                 struct ibv_mr *registered_out[VERBS_RAILS]) {
    memset(registered_out, 0, VERBS_RAILS * sizeof *registered_out);
    for (int32_t r = 0; r < rails; r++) {
        errno = 0;
        registered_out[r] = wire->api->reg_mr(wire->rails[r].pd, memory, bytes, access);
        if (registered_out[r]) continue;
        weft_status status = fail_register(&wire->rails[r], bytes, what, errno);
        wefti_verbs_deregister(wire, registered_out);
        return status;
    }
    return WEFT_OK;
}

void wefti_verbs_deregister(verbs_wire *wire, struct ibv_mr *registered[VERBS_RAILS]) {
    for (int32_t r = 0; r < VERBS_RAILS; r++) {
        if (registered[r]) wire->api->dereg_mr(registered[r]);
        registered[r] = NULL;
    }
}

/* --- the cache --- */

weft_status wefti_verbs_cache_open(verbs_wire *wire) {
    verbs_cache *cache = &wire->cache;
    WEFTI_TRY(wefti_alloc(VERBS_MEMORIES * sizeof *cache->entries, "the cache of registrations", &cache->entries));
    pthread_mutex_init(&cache->lock, NULL);
    for (int i = 0; i < VERBS_MEMORIES; i++) {
        cache->entries[i].next = cache->free;
        cache->free = &cache->entries[i];
    }
    return WEFT_OK;
}

static void list_remove(verbs_cache *cache, verbs_memory *memory) {
    if (memory->previous)
        memory->previous->next = memory->next;
    else
        cache->first = memory->next;
    if (memory->next)
        memory->next->previous = memory->previous;
    else
        cache->last = memory->previous;
}

static void list_put_first(verbs_cache *cache, verbs_memory *memory) {
    memory->previous = NULL;
    memory->next = cache->first;
    if (cache->first)
        cache->first->previous = memory;
    else
        cache->last = memory;
    cache->first = memory;
}

static void drop(verbs_wire *wire, verbs_memory *memory) {
    verbs_cache *cache = &wire->cache;
    list_remove(cache, memory);
    wefti_verbs_deregister(wire, memory->registered);
    *memory = (verbs_memory){.next = cache->free};
    cache->free = memory;
}

void wefti_verbs_cache_close(verbs_wire *wire) {
    verbs_cache *cache = &wire->cache;
    if (!cache->entries) return;
    while (cache->first) drop(wire, cache->first);
    wefti_verbs_watch_close(cache->watch); /* after the last: a registration is never kept unwatched */
    pthread_mutex_destroy(&cache->lock);
    wefti_free(cache->entries, VERBS_MEMORIES * sizeof *cache->entries);
    *cache = (verbs_cache){0};
}

/* Gives the least recently used one that nobody uses back; false: all are in use. */
static bool drop_oldest(verbs_wire *wire) {
    for (verbs_memory *memory = wire->cache.last; memory; memory = memory->previous)
        if (memory->users == 0) {
            drop(wire, memory);
            return true;
        }
    return false;
}

/* Under the lock. */
static void lose(verbs_wire *wire, uintptr_t first, uintptr_t end, bool foreign) {
    for (verbs_memory *memory = wire->cache.first, *next; memory; memory = next) {
        next = memory->next;
        if (memory->foreign != foreign || memory->base >= end || first >= memory->base + memory->size_bytes) continue;
        memory->stale = true;
        if (memory->users == 0) drop(wire, memory);
    }
}

static void lost(void *context, uintptr_t first, uintptr_t end) { lose(context, first, end, false); }

void wefti_verbs_foreign_lost(void *listener, const void *memory, size_t bytes) {
    verbs_wire *wire = listener;
    pthread_mutex_lock(&wire->cache.lock);
    lose(wire, (uintptr_t)memory, (uintptr_t)memory + bytes, true);
    pthread_mutex_unlock(&wire->cache.lock);
}

static void hear_watch(verbs_wire *wire) {
    verbs_cache *cache = &wire->cache;
    if (cache->watch && wefti_verbs_watch_news(cache->watch, lost, wire)) lost(wire, 0, UINTPTR_MAX);
}

/* Whether the registration may outlive its users. */
static bool keep(verbs_wire *wire, const verbs_memory *memory) {
    verbs_cache *cache = &wire->cache;
    if (!cache->watch_tried) {
        cache->watch_tried = true;
        cache->watch = wefti_verbs_watch_open();
    }
    return cache->watch && wefti_verbs_watch_add(cache->watch, memory->base, memory->size_bytes);
}

static verbs_memory *find(verbs_cache *cache, uintptr_t at, size_t bytes, bool writable) {
    for (verbs_memory *memory = cache->first; memory; memory = memory->next)
        if (!memory->stale && at >= memory->base && at - memory->base <= memory->size_bytes &&
            bytes <= memory->size_bytes - (at - memory->base) && (memory->writable || !writable))
            return memory;
    return NULL;
}

/* Registers; where there is no room, after giving back what is not in use. Memory that cannot be written is fit to send. */
static bool register_pages(verbs_wire *wire, verbs_memory *memory, bool writable) {
    void *base = (void *)memory->base;
    for (;;) {
        memory->writable = true;
        weft_status status = wefti_verbs_register(wire, wire->rail_count, base, memory->size_bytes, VERBS_FOR_RECEIVING, "a buffer",
                                                  memory->registered);
        if (status == WEFT_E_DEVICE && !writable) {
            memory->writable = false;
            status = wefti_verbs_register(wire, wire->rail_count, base, memory->size_bytes, VERBS_FOR_SENDING, "a buffer",
                                          memory->registered);
        }
        if (status == WEFT_OK) return true;
        if (status != WEFT_E_NO_MEMORY || !drop_oldest(wire)) return false;
    }
}

static verbs_memory *forget(verbs_cache *cache, verbs_memory *memory) {
    *memory = (verbs_memory){.next = cache->free};
    cache->free = memory;
    return NULL;
}

static verbs_memory *take_entry(verbs_wire *wire) {
    verbs_cache *cache = &wire->cache;
    if (!cache->free && !drop_oldest(wire)) return NULL;
    verbs_memory *memory = cache->free;
    cache->free = memory->next;
    return memory;
}

static verbs_memory *add(verbs_wire *wire, uintptr_t at, size_t bytes, bool writable) {
    verbs_cache  *cache = &wire->cache;
    size_t        page = (size_t)sysconf(_SC_PAGESIZE);
    verbs_memory *memory = take_entry(wire);
    if (!memory) return NULL;
    memory->base = at & ~(uintptr_t)(page - 1);
    memory->size_bytes = wefti_align_up(at + bytes, page) - memory->base;
    memory->cached = keep(wire, memory); /* before it is registered: nothing may be missed in between */
    if (register_pages(wire, memory, writable)) {
        list_put_first(cache, memory);
        return memory;
    }
    if (!cache->warned)
        wefti_log(WEFT_LOG_WARNING, "%s; such messages are copied, which is slower (said once)", weft_error_message());
    cache->warned = true;
    return forget(cache, memory);
}

/* The piece of the device's memory. */
static verbs_memory *add_foreign(verbs_wire *wire, void *base, size_t bytes) {
    verbs_cache *cache = &wire->cache;
    verbs_memory *memory = take_entry(wire);
    if (!memory) return NULL;
    *memory = (verbs_memory){.base = (uintptr_t)base, .size_bytes = bytes, .cached = true, .writable = true, .foreign = true};
    weft_status status;
    do status = wefti_verbs_register_foreign(wire, base, bytes, VERBS_FOR_RECEIVING, memory->registered);
    while (status == WEFT_E_NO_MEMORY && drop_oldest(wire));
    if (status == WEFT_OK) {
        list_put_first(cache, memory);
        return memory;
    }
    if (!cache->foreign_warned) wefti_log(WEFT_LOG_WARNING, "%s; messages from and to it are copied, which is slower (said once)", weft_error_message());
    cache->foreign_warned = true;
    return forget(cache, memory);
}

static verbs_memory *use(verbs_cache *cache, verbs_memory *memory) {
    list_remove(cache, memory);
    list_put_first(cache, memory);
    return memory;
}

verbs_memory *wefti_verbs_memory_take(verbs_wire *wire, const wefti_wire_op *op, size_t bytes, bool writable) {
    verbs_cache             *cache = &wire->cache;
    const wefti_wire_region *region = wefti_regions_find(&wire->regions, op->buffer, bytes);
    bool                     foreign = op->flags & WEFTI_WIRE_FOREIGN;
    void                    *base = NULL;
    size_t                   whole = 0;
    if (region) return ((const wefti_own_region *)region)->extra;
    /* Before the lock is taken: the device calls back under a lock of its own. */
    if (foreign && (wire->way == VERBS_WAY_COPIES || !wire->foreign->find(wire->foreign->context, op->buffer, bytes, &base, &whole))) return NULL;
    pthread_mutex_lock(&cache->lock);
    hear_watch(wire);
    verbs_memory *memory = find(cache, (uintptr_t)op->buffer, bytes, writable);
    cache->hits += memory != NULL;
    cache->misses += memory == NULL;
    if (memory) use(cache, memory);
    else memory = foreign ? add_foreign(wire, base, whole) : add(wire, (uintptr_t)op->buffer, bytes, writable);
    if (memory) memory->users++;
    pthread_mutex_unlock(&cache->lock);
    return memory;
}

void wefti_verbs_memory_give(verbs_wire *wire, verbs_memory *memory) {
    if (!memory || memory->users == 0) return; /* a region's is never counted */
    pthread_mutex_lock(&wire->cache.lock);
    if (--memory->users == 0 && (memory->stale || !memory->cached)) drop(wire, memory);
    pthread_mutex_unlock(&wire->cache.lock);
}

/* --- regions --- */

static weft_status add_region(verbs_wire *wire, void *memory, size_t size_bytes, bool owned, wefti_wire_region **region_out) {
    verbs_memory *registered = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *registered, "a region's registration", &registered));
    void  *base;
    size_t whole;
    bool   foreign = !owned && wire->foreign && wire->foreign->find(wire->foreign->context, memory, size_bytes, &base, &whole);
    *registered = (verbs_memory){.base = (uintptr_t)memory, .size_bytes = size_bytes, .writable = true, .foreign = foreign};
    weft_status status = foreign ? wefti_verbs_register_foreign(wire, memory, size_bytes, VERBS_FOR_REGIONS, registered->registered)
                                 : wefti_verbs_register(wire, wire->rail_count, memory, size_bytes, VERBS_FOR_REGIONS, "an exported region",
                                                        registered->registered);
    if (status == WEFT_OK) {
        status = wefti_regions_add(&wire->regions, memory, size_bytes, owned, registered, region_out);
        if (status != WEFT_OK) wefti_verbs_deregister(wire, registered->registered);
    }
    if (status != WEFT_OK) {
        wefti_free(registered, sizeof *registered);
        return status;
    }
    for (int32_t peer = 0; peer < wire->base.wire.size; peer++) wefti_verbs_advance(wire, peer);
    return WEFT_OK;
}

weft_status wefti_verbs_region_create(wefti_wire *self, size_t size_bytes, wefti_wire_region **region_out) {
    void *memory = NULL;
    WEFTI_TRY(wefti_regions_memory_create(self, size_bytes, &memory, &size_bytes));
    weft_status status = add_region((verbs_wire *)self, memory, size_bytes, true, region_out);
    if (status != WEFT_OK) wefti_free(memory, size_bytes);
    return status;
}

weft_status wefti_verbs_region_register(wefti_wire *self, void *memory, size_t size_bytes, wefti_wire_region **region_out) {
    return add_region((verbs_wire *)self, memory, size_bytes, false, region_out);
}

void wefti_verbs_region_release(wefti_wire_region *region) {
    if (!region) return;
    verbs_wire   *wire = (verbs_wire *)region->wire;
    verbs_memory *registered = ((wefti_own_region *)region)->extra;
    wefti_verbs_deregister(wire, registered->registered);
    wefti_free(registered, sizeof *registered);
    wefti_regions_remove(&wire->regions, region);
    for (int32_t peer = 0; peer < wire->base.wire.size; peer++) wefti_verbs_advance(wire, peer);
}

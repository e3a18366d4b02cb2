/* Tables of regions. Constant time by id; growth only when a region is made or heard of. */
#include "transport/regions.h"

#include <string.h>

weft_status wefti_regions_open(wefti_regions *regions, wefti_wire *wire) {
    regions->wire = wire;
    return wefti_alloc((size_t)wire->size * sizeof *regions->told, "tables of regions", &regions->told);
}

static void free_region(wefti_own_region *region) {
    if (region->owned) wefti_free(region->region.base, region->region.size_bytes);
    wefti_free(region, sizeof *region);
}

void wefti_regions_close(wefti_regions *regions) {
    if (!regions->wire) return;
    for (uint32_t i = 0; i < regions->count; i++)
        if (regions->own[i]) free_region(regions->own[i]);
    for (int32_t peer = 0; regions->told && peer < regions->wire->size; peer++)
        wefti_free(regions->told[peer].slots, regions->told[peer].capacity * sizeof(wefti_told_region));
    wefti_free(regions->told, (size_t)regions->wire->size * sizeof *regions->told);
    wefti_free(regions->own, regions->capacity * sizeof *regions->own);
    wefti_free(regions->log, regions->log_capacity * sizeof *regions->log);
    *regions = (wefti_regions){0};
}

weft_status wefti_regions_memory_create(const wefti_wire *wire, size_t size_bytes, void **memory_out, size_t *size_out) {
    if (size_bytes > PTRDIFF_MAX - 4096)
        return wefti_fail(WEFT_E_OVERFLOW, "%s: a region of %zu bytes", wire->can.name, size_bytes);
    *size_out = wefti_align_up(size_bytes ? size_bytes : 1, 4096);
    WEFTI_TRY(wefti_alloc_raw(*size_out, 4096, "an exported region", memory_out));
    memset(*memory_out, 0, *size_out);
    return WEFT_OK;
}

/* --- own regions --- */

static weft_status add_news(wefti_regions *regions, uint32_t id, bool gone) {
    if (regions->log_count == regions->log_capacity) {
        uint32_t capacity = regions->log_capacity ? regions->log_capacity * 2 : 32;
        WEFTI_TRY(wefti_grow(&regions->log, regions->log_capacity * sizeof *regions->log, capacity * sizeof *regions->log,
                             "announcements of regions"));
        regions->log_capacity = capacity;
    }
    regions->log[regions->log_count++] = (wefti_region_news){id, gone};
    return WEFT_OK;
}

weft_status wefti_regions_add(wefti_regions *regions, void *base, size_t size_bytes, bool owned, void *extra,
                              wefti_wire_region **region_out) {
    if (regions->count == WEFTI_MOST_REGIONS)
        return wefti_fail(WEFT_E_UNSUPPORTED, "%s: more than %d regions in the life of a wire", regions->wire->can.name,
                          WEFTI_MOST_REGIONS);
    if (regions->count == regions->capacity) {
        uint32_t capacity = regions->capacity ? regions->capacity * 2 : 16;
        WEFTI_TRY(wefti_grow(&regions->own, regions->capacity * sizeof *regions->own, capacity * sizeof *regions->own,
                             "the table of regions"));
        regions->capacity = capacity;
    }
    wefti_own_region *region = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *region, "a region", &region));
    *region = (wefti_own_region){{regions->wire, base, size_bytes, regions->count + 1}, owned, extra};
    regions->own[regions->count++] = region;
    weft_status status = add_news(regions, region->region.id, false);
    if (status != WEFT_OK) {
        regions->own[region->region.id - 1] = NULL;
        wefti_free(region, sizeof *region);
        return status;
    }
    *region_out = &region->region;
    return WEFT_OK;
}

weft_status wefti_regions_create(wefti_regions *regions, size_t size_bytes, wefti_wire_region **region_out) {
    void *memory = NULL;
    WEFTI_TRY(wefti_regions_memory_create(regions->wire, size_bytes, &memory, &size_bytes));
    weft_status status = wefti_regions_add(regions, memory, size_bytes, true, NULL, region_out);
    if (status != WEFT_OK) wefti_free(memory, size_bytes);
    return status;
}

void wefti_regions_remove(wefti_regions *regions, wefti_wire_region *region) {
    uint32_t id = region->id;
    regions->own[id - 1] = NULL;
    free_region((wefti_own_region *)region);
    /* Out of memory: peers go on believing in it, and an access would end the link. */
    if (add_news(regions, id, true) != WEFT_OK)
        wefti_log(WEFT_LOG_WARNING, "%s: %s", regions->wire->can.name, weft_error_message());
}

const wefti_region_news *wefti_regions_next_news(const wefti_regions *regions, uint32_t *told) {
    while (*told < regions->log_count) {
        const wefti_region_news *news = &regions->log[(*told)++];
        if (news->gone || regions->own[news->id - 1]) return news;
        /* withdrawn since, which is told next */
    }
    return NULL;
}

uint8_t *wefti_regions_memory(const wefti_regions *regions, uint32_t id, uint64_t offset, uint64_t bytes) {
    const wefti_own_region *own = id >= 1 && id <= regions->count ? regions->own[id - 1] : NULL;
    if (!own || offset > own->region.size_bytes || bytes > own->region.size_bytes - offset) return NULL;
    return (uint8_t *)own->region.base + offset;
}

wefti_wire_region *wefti_regions_find(const wefti_regions *regions, const void *memory, size_t bytes) {
    uintptr_t at = (uintptr_t)memory;
    for (uint32_t i = regions->count; i-- > 0;) {
        wefti_own_region *own = regions->own[i];
        uintptr_t         base = own ? (uintptr_t)own->region.base : 0;
        if (own && at >= base && at - base <= own->region.size_bytes && bytes <= own->region.size_bytes - (at - base))
            return &own->region;
    }
    return NULL;
}

/* --- those of peers --- */

weft_status wefti_regions_peer(const wefti_regions *regions, int32_t peer, uint32_t id, wefti_wire_link link,
                               wefti_wire_peer_region *region_out) {
    const char *name = regions->wire->can.name;
    if (link == WEFTI_LINK_NONE || id == 0)
        return wefti_fail(WEFT_E_INVALID, "%s: region %u of rank %d: not connected, or no such id", name, id, (int)peer);
    if (peer == regions->wire->rank) {
        if (id > regions->count) return WEFT_E_AGAIN;
        const wefti_own_region *own = regions->own[id - 1];
        if (!own) return wefti_fail(WEFT_E_NOT_FOUND, "%s: region %u of rank %d was released", name, id, (int)peer);
        *region_out = (wefti_wire_peer_region){own->region.base, own->region.size_bytes};
        return WEFT_OK;
    }
    const wefti_told_regions *told = &regions->told[peer];
    wefti_region_state        state = id <= told->capacity ? told->slots[id - 1].state : WEFTI_REGION_UNKNOWN;
    if (state == WEFTI_REGION_GONE)
        return wefti_fail(WEFT_E_NOT_FOUND, "%s: region %u of rank %d was released", name, id, (int)peer);
    if (link != WEFTI_LINK_UP && link != WEFTI_LINK_CONNECTING)
        return wefti_fail(WEFT_E_PEER, "%s: rank %d is gone, and its region %u with it", name, (int)peer, id);
    if (state == WEFTI_REGION_UNKNOWN) return WEFT_E_AGAIN;
    *region_out = (wefti_wire_peer_region){NULL, told->slots[id - 1].size_bytes};
    return WEFT_OK;
}

bool wefti_regions_hear(wefti_regions *regions, int32_t peer, uint32_t id, const wefti_told_region *what) {
    wefti_told_regions *told = &regions->told[peer];
    if (id == 0 || id > WEFTI_MOST_REGIONS || what->size_bytes > PTRDIFF_MAX) return false;
    if (id > told->capacity) {
        uint32_t capacity = told->capacity ? told->capacity : 16;
        while (capacity < id) capacity *= 2;
        if (wefti_grow(&told->slots, told->capacity * sizeof *told->slots, capacity * sizeof *told->slots,
                       "the table of a peer's regions") != WEFT_OK)
            return false;
        told->capacity = capacity;
    }
    told->slots[id - 1] = *what;
    return true;
}

weft_status wefti_regions_check(const wefti_regions *regions, const wefti_wire_op *op, wefti_wire_link link) {
    wefti_wire_peer_region region;
    WEFTI_TRY(wefti_regions_peer(regions, op->peer, op->region, link, &region));
    if (op->offset > region.size_bytes || op->bytes > region.size_bytes - op->offset)
        return wefti_fail(WEFT_E_INVALID, "%s: bytes %llu to %llu are outside region %u of rank %d, which has %zu",
                          regions->wire->can.name, (unsigned long long)op->offset,
                          (unsigned long long)(op->offset + op->bytes), op->region, (int)op->peer, region.size_bytes);
    return WEFT_OK;
}

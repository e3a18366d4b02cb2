/* Cases of regions: mapped, written and read one-sided, and as ends of messages.
 * Each runs on connected ranks, and leaves nothing under way. */
#include <stdlib.h>
#include <string.h>

#include "conformance_cases.h"

wefti_wire_peer_region conformance_region(rank_world *world, int32_t peer, uint32_t id) {
    wefti_wire_peer_region region = {0};
    uint64_t               since = world_now();
    weft_status            status;
    while ((status = world->wire->ops->peer_region(world->wire, peer, id, &region)) == WEFT_E_AGAIN)
        world_poll(world, since);
    CHECK(status == WEFT_OK, "region %u of rank %d: %s", id, (int)peer, weft_error_message());
    return region;
}

static const void *other_memory(void) {
    static _Thread_local char other;
    return &other;
}

static void maps_regions_of_peers(rank_world *world) {
    enum { BYTES = 100000 };
    if (!(world->wire->can.flags & WEFTI_WIRE_MAPS_PEERS)) return;
    wefti_wire_region *region = NULL;
    CHECK_OK(world->wire->ops->region_create(world->wire, BYTES, &region));
    CHECK(region->size_bytes >= BYTES && (uintptr_t)region->base % 4096 == 0, "a bad region");
    for (size_t i = 0; i < BYTES; i++) CHECK(((uint8_t *)region->base)[i] == 0, "not zeroed at %zu", i);
    fill(region->base, BYTES, (uint32_t)world->rank);
    if (world->wire->ops->region_of) {
        uint8_t *end = (uint8_t *)region->base + region->size_bytes;
        CHECK(world->wire->ops->region_of(world->wire, end - 10, 10) == region, "its end is not found");
        CHECK(world->wire->ops->region_of(world->wire, end - 10, 11) == NULL, "beyond its end");
        CHECK(world->wire->ops->region_of(world->wire, other_memory(), 1) == NULL, "other memory is no region");
    }
    atomic_store(&world->shared->note[world->rank], region->id);
    world_barrier(world);
    for (int32_t peer = 0; peer < world->size; peer++) {
        wefti_wire_peer_region seen = conformance_region(world, peer, (uint32_t)atomic_load(&world->shared->note[peer]));
        CHECK(seen.base && seen.size_bytes == region->size_bytes, "mapped %zu bytes", seen.size_bytes);
        CHECK(filled(seen.base, BYTES, (uint32_t)peer), "content of rank %d", (int)peer);
    }
    world_barrier(world);
    /* Stores are seen the other way too. */
    wefti_wire_peer_region next = conformance_region(world, (world->rank + 1) % world->size,
                                            (uint32_t)atomic_load(&world->shared->note[(world->rank + 1) % world->size]));
    ((uint8_t *)next.base)[17] = (uint8_t)(200 + world->rank);
    world_barrier(world);
    CHECK(((uint8_t *)region->base)[17] == 200 + (world->rank + world->size - 1) % world->size, "a peer's store");
    world_barrier(world);
    world->wire->ops->region_release(region);
    world->wire->ops->region_release(NULL);
    world_barrier(world);
    uint64_t    since = world_now();
    weft_status status;
    int32_t     peer = (world->rank + 1) % world->size;
    while ((status = world->wire->ops->peer_region(world->wire, peer, (uint32_t)atomic_load(&world->shared->note[peer]),
                                                   &next)) == WEFT_OK)
        world_poll(world, since);
    CHECK(status == WEFT_E_NOT_FOUND, "a released region gives %s", weft_status_name(status));
    if (world->mode == AS_PROCESSES) { /* a rank that has not seen a fault may still be reading */
        volatile uint8_t *late = next.base;
        for (size_t i = 0; i < BYTES; i += 1000) (void)late[i];
    }
    CHECK(world->wire->ops->peer_region(world->wire, peer, 999, &next) == WEFT_E_AGAIN, "a region that is not yet");
    CHECK(world->wire->ops->peer_region(world->wire, world->size, 1, &next) == WEFT_E_INVALID, "a region of no rank");
}

static void writes_and_reads_one_sided(rank_world *world) {
    enum { BYTES = 3 << 20 };
    if (!(world->wire->can.flags & WEFTI_WIRE_ONE_SIDED)) return;
    static const size_t sizes[] = {0, 1, 4000, 70000, (2 << 20) + 5};
    wefti_wire_region  *region = NULL;
    CHECK_OK(world->wire->ops->region_create(world->wire, BYTES, &region));
    atomic_store(&world->shared->note[world->rank], region->id);
    world_barrier(world);
    int32_t  to = (world->rank + 1) % world->size, from = (world->rank + world->size - 1) % world->size;
    uint32_t id = (uint32_t)atomic_load(&world->shared->note[to]);
    conformance_region(world, to, id);
    uint8_t *buffer = take(world, BYTES);
    for (size_t s = 0; s < WEFTI_COUNT(sizes); s++) {
        fill(buffer, sizes[s], (uint32_t)(world->rank * 10 + (int)s));
        wefti_wire_op notice = wefti_wire_recv(from, TAG(s), NULL, 0);
        wefti_wire_op write = {.kind = WEFTI_WIRE_WRITE, .flags = WEFTI_WIRE_NOTIFY | WEFTI_WIRE_SILENT, .peer = to,
                               .region = id, .offset = 13, .tag = TAG(s), .buffer = buffer, .bytes = sizes[s]};
        notice.flags = WEFTI_WIRE_SILENT;
        if (s % 2) world_post(world, &notice);
        world_post(world, &write);
        world_finish(world, &write);
        CHECK(write.status == WEFT_OK && write.done_bytes == sizes[s], "write of %zu bytes: %s", sizes[s],
              weft_status_name(write.status));
        if (!(s % 2)) world_post(world, &notice);
        world_finish(world, &notice);
        CHECK(notice.status == WEFT_OK && notice.done_bytes == sizes[s] && notice.done_peer == from, "notice: %s, %zu bytes",
              weft_status_name(notice.status), notice.done_bytes);
        CHECK(filled((uint8_t *)region->base + 13, sizes[s], (uint32_t)(from * 10 + (int)s)), "wrong content");
        memset(buffer, 0, sizes[s]);
        wefti_wire_op read = {.kind = WEFTI_WIRE_READ, .flags = WEFTI_WIRE_SILENT, .peer = to, .region = id, .offset = 13,
                              .buffer = buffer, .bytes = sizes[s]};
        world_barrier(world);
        world_post(world, &read);
        world_finish(world, &read);
        CHECK(read.status == WEFT_OK && read.done_bytes == sizes[s], "read of %zu bytes: %s", sizes[s],
              weft_status_name(read.status));
        CHECK(filled(buffer, sizes[s], (uint32_t)(world->rank * 10 + (int)s)), "read wrong content");
        world_barrier(world);
    }
    wefti_wire_op outside = {.kind = WEFTI_WIRE_WRITE, .peer = to, .region = id, .offset = BYTES - 3, .buffer = buffer,
                             .bytes = 4};
    CHECK(wefti_wire_post(world->wire, &outside) == WEFT_E_INVALID, "a write across the end");
    outside.offset = UINT64_MAX - 1;
    CHECK(wefti_wire_post(world->wire, &outside) == WEFT_E_INVALID, "a write that overflows");
    world_barrier(world);
    free(buffer);
    world->wire->ops->region_release(region);
}

static void reaches_registered_memory(rank_world *world) {
    enum { BYTES = 50000 };
    uint8_t           *memory = take(world, BYTES), *buffer = take(world, BYTES);
    wefti_wire_region *region = NULL;
    if (!world->wire->ops->region_register) {
        free(memory);
        free(buffer);
        return;
    }
    fill(memory, BYTES, (uint32_t)world->rank);
    CHECK_OK(world->wire->ops->region_register(world->wire, memory, BYTES, &region));
    atomic_store(&world->shared->note[world->rank], region->id);
    world_barrier(world);
    int32_t  peer = (world->rank + 1) % world->size;
    uint32_t id = (uint32_t)atomic_load(&world->shared->note[peer]);
    conformance_region(world, peer, id);
    wefti_wire_op read = {.kind = WEFTI_WIRE_READ, .flags = WEFTI_WIRE_SILENT, .peer = peer, .region = id, .buffer = buffer,
                          .bytes = BYTES};
    world_post(world, &read);
    world_finish(world, &read);
    CHECK(read.status == WEFT_OK && filled(buffer, BYTES, (uint32_t)peer), "read %s", weft_status_name(read.status));
    world_barrier(world);
    world->wire->ops->region_release(region);
    free(memory);
    free(buffer);
}

/* Large messages between every mixture of exported and ordinary memory. */
static void sends_between_regions_and_other_memory(rank_world *world) {
    enum { BYTES = 700001 };
    wefti_wire_region *region = NULL;
    CHECK_OK(world->wire->ops->region_create(world->wire, 2 * BYTES, &region));
    uint8_t *foreign = take(world, BYTES);
    world_barrier(world);
    for (int mix = 0; mix < 4 && !spectator(world); mix++) {
        bool     mine_exported = world->rank == 0 ? mix & 1 : mix & 2;
        uint8_t *buffer = mine_exported ? (uint8_t *)region->base + 3 : foreign;
        if (world->rank == 0) {
            fill(buffer, BYTES, (uint32_t)mix);
            world_send(world, 1, TAG(mix), buffer, BYTES);
        } else {
            memset(buffer, 0, BYTES);
            world_recv(world, 0, TAG(mix), buffer, BYTES);
            CHECK(filled(buffer, BYTES, (uint32_t)mix), "mixture %d", mix);
        }
    }
    world_barrier(world);
    free(foreign);
    world->wire->ops->region_release(region);
}

static const wire_case cases[] = {
    {"maps_regions_of_peers", maps_regions_of_peers},
    {"writes_and_reads_one_sided", writes_and_reads_one_sided},
    {"reaches_registered_memory", reaches_registered_memory},
    {"sends_between_regions_and_other_memory", sends_between_regions_and_other_memory},
};
const wire_case_list region_cases = {cases, WEFTI_COUNT(cases)};

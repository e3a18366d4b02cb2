/* Cases of ends, and all at random: aborts, ranks that leave or die, and a storm of messages.
 * Each runs on connected ranks, and leaves nothing under way. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "conformance_cases.h"

static void flushes_on_abort(rank_world *world) {
    enum { BYTES = 8 << 20 };
    uint8_t      *buffer = take(world, BYTES);
    int32_t       peer = (world->rank + 1) % world->size;
    wefti_wire_op recv = wefti_wire_recv(peer, TAG(1), buffer, 8),
                  any = wefti_wire_recv(WEFTI_WIRE_ANY_PEER, TAG(2), buffer, 8),
                  send = wefti_wire_send(peer, TAG(3), buffer, BYTES);
    world_post(world, &recv);
    world_post(world, &any);
    world_post(world, &send);
    for (int i = 0; i < 50; i++) world_poll(world, world_now());
    world->wire->ops->abort(world->wire, WEFT_E_PEER, 5);
    const wefti_wire_op *all[] = {&recv, &any, &send};
    for (size_t i = 0; i < WEFTI_COUNT(all); i++)
        CHECK(all[i]->done && all[i]->status == WEFT_E_PEER && all[i]->done_peer == 5, "operation %zu: %s of %d", i,
              weft_status_name(all[i]->status), (int)all[i]->done_peer);
    wefti_wire_op *done[5];
    int32_t        count = 0;
    CHECK_OK(world->wire->ops->poll(world->wire, world_now(), done, 5, &count));
    CHECK(count == 3, "%d operations handed out", (int)count);
    free(buffer);
    CHECK(wefti_wire_post(world->wire, &recv) == WEFT_E_STATE, "a post after abort");
    world->wire->ops->abort(world->wire, WEFT_E_ABORTED, -1);
}

static void delivers_what_was_sent_before_leaving(rank_world *world) {
    enum { COUNT = 20, BYTES = 3000 };
    uint8_t *buffer = take(world, BYTES);
    if (world->rank == 0) {
        for (uint32_t i = 0; i < COUNT; i++) {
            fill(buffer, BYTES, i);
            world_send(world, 1, TAG(i % 2), buffer, BYTES);
        }
        world->wire->ops->close(world->wire, WEFTI_SECOND_NS);
        world->wire = NULL;
        world->gone = true;
        atomic_store(&world->shared->note[0], 1);
        free(buffer);
        return;
    }
    uint64_t since = world_now();
    while (world->rank == 1 && !atomic_load(&world->shared->note[0])) world_poll(world, since);
    for (uint32_t i = 0; i < COUNT && world->rank == 1; i++) {
        world_recv(world, 0, TAG(i % 2), buffer, BYTES);
        CHECK(filled(buffer, BYTES, i), "message %u", i);
    }
    wefti_wire_op op = wefti_wire_recv(0, TAG(5), buffer, 8);
    op.flags = WEFTI_WIRE_SILENT;
    weft_status status = wefti_wire_post(world->wire, &op);
    if (status == WEFT_OK) {
        world_finish(world, &op);
        status = op.status;
        CHECK(op.done_peer == 0, "rank %d", (int)op.done_peer);
    }
    CHECK(status == WEFT_E_PEER, "a receive from who has left gives %s", weft_status_name(status));
    CHECK(world->wire->ops->link(world->wire, 0) == WEFTI_LINK_LEFT, "the link is in state %d",
          (int)world->wire->ops->link(world->wire, 0));
    op = wefti_wire_send(0, TAG(5), buffer, 8);
    CHECK(wefti_wire_post(world->wire, &op) == WEFT_E_PEER, "a send to who has left");
    free(buffer);
    world->wire->ops->close(world->wire, WEFTI_SECOND_NS);
    world->wire = NULL;
    world->gone = true;
}

static bool is_noted(const void *context) { return atomic_load((const _Atomic int64_t *)context) != 0; }

/* Rank 0 retires a region while another looks at it, and leaves while the other has yet to find a second one. */
static void keeps_regions_for_who_is_late(rank_world *world) {
    if (!(world->wire->can.flags & WEFTI_WIRE_MAPS_PEERS)) return;
    wefti_wire_region     *first = NULL, *second = NULL;
    wefti_wire_peer_region seen;
    _Atomic int64_t       *unused = &world->shared->note[1];
    uint64_t               since = world_now();
    if (world->rank == 0) {
        CHECK_OK(world->wire->ops->region_create(world->wire, 4096, &first));
        CHECK_OK(world->wire->ops->region_create(world->wire, 4096, &second));
        fill(first->base, 4096, 1);
        fill(second->base, 4096, 2);
        atomic_store(&world->shared->note[0], (int64_t)first->id << 32 | second->id);
        world_barrier(world);
        world->wire->ops->region_retire(first, is_noted, unused);
        while (!atomic_load(unused)) world_poll(world, since);
        world_barrier(world);
        for (int i = 0; i < 10; i++) { /* some polls later it is gone */
            world->wire->host->sleep(world->wire->host->context, 2 * WEFTI_MILLISECOND_NS);
            world_poll(world, world_now());
        }
        world_barrier(world);
        world->wire->ops->close(world->wire, WEFTI_SECOND_NS);
        world->wire = NULL;
        world->gone = true;
        atomic_store(&world->shared->note[2], 1);
        return;
    }
    world_barrier(world);
    int64_t  ids = atomic_load(&world->shared->note[0]);
    uint32_t first_id = (uint32_t)(ids >> 32), second_id = (uint32_t)ids;
    if (world->rank == 1) {
        for (int i = 0; i < 5; i++) {
            world->wire->host->sleep(world->wire->host->context, 2 * WEFTI_MILLISECOND_NS);
            conformance_region(world, 0, first_id);
            CHECK_OK(world->wire->ops->peer_region(world->wire, 0, first_id, &seen));
            CHECK(filled(seen.base, 4096, 1), "a retired region changed");
        }
        atomic_store(unused, 1);
    }
    world_barrier(world);
    world_barrier(world);
    while (world->rank == 1 && world->wire->ops->peer_region(world->wire, 0, first_id, &seen) == WEFT_OK)
        world_poll(world, since);
    while (!atomic_load(&world->shared->note[2]) || world->wire->ops->link(world->wire, 0) == WEFTI_LINK_UP)
        world_poll(world, since);
    CHECK_OK(world->wire->ops->peer_region(world->wire, 0, second_id, &seen));
    CHECK(filled(seen.base, 4096, 2), "the region of a rank that left changed");
    world->wire->ops->close(world->wire, WEFTI_SECOND_NS);
    world->wire = NULL;
    world->gone = true;
}

/* Rank 0 dies with operations of every kind pending on it; the others learn within a second, and go on with each other. */
static void tells_of_a_dead_rank(rank_world *world) {
    enum { BYTES = 8 << 20 };
    if (world->mode == AS_THREADS && strcmp(world->wire->can.name, "inproc") != 0) return;
    uint8_t *buffer = take(world, BYTES);
    if (world->rank == 0) {
        world_barrier(world);
        for (int i = 0; i < 20; i++) world_poll(world, world_now());
        if (world->mode == AS_PROCESSES) raise(SIGKILL);
        if (world->mode == AS_FIBERS) {
            free(buffer);
            CHECK_OK(wefti_sim_plan(world->hub, &(wefti_sim_fault){.act = WEFTI_SIM_KILL, .at_ns = world_now()}));
            for (uint64_t end = world_now();;) world_poll(world, end);
        }
        wefti_inproc_hub_kill(world->hub, 0);
        uint64_t since = world_now();
        while (atomic_load(&world->shared->finished) < world->size - 1) world_poll(world, since);
        world->wire->ops->close(world->wire, 0);
        world->gone = true;
        free(buffer);
        return;
    }
    wefti_wire_op recv = wefti_wire_recv(0, TAG(1), buffer, 8), send = wefti_wire_send(0, TAG(3), buffer, BYTES);
    recv.flags = send.flags = WEFTI_WIRE_SILENT;
    world_post(world, &recv);
    world_post(world, &send);
    world_barrier(world);
    uint64_t since = world_now();
    world_finish(world, &recv);
    world_finish(world, &send);
    CHECK(recv.status == WEFT_E_PEER && recv.done_peer == 0, "receive: %s, rank %d", weft_status_name(recv.status),
          (int)recv.done_peer);
    CHECK(send.status == WEFT_E_PEER && send.done_peer == 0, "send: %s, rank %d", weft_status_name(send.status),
          (int)send.done_peer);
    CHECK(world_now() - since < 5 * WEFTI_SECOND_NS, "took %g s", (double)(world_now() - since) / 1e9);
    CHECK(world->wire->ops->link(world->wire, 0) == WEFTI_LINK_DOWN, "the link is in state %d",
          (int)world->wire->ops->link(world->wire, 0));
    CHECK(wefti_wire_post(world->wire, &recv) == WEFT_E_PEER, "a post to a dead rank");
    int32_t peers = world->size - 1, next = 1 + world->rank % peers, last = 1 + (world->rank + peers - 2) % peers;
    wefti_wire_op on = wefti_wire_send(next, TAG(4), buffer, 100000);
    on.flags = WEFTI_WIRE_SILENT;
    world_post(world, &on);
    world_recv(world, last, TAG(4), buffer + 200000, 100000);
    world_finish(world, &on);
    CHECK(on.status == WEFT_OK, "survivors: %s", weft_status_name(on.status));
    /* All survivors are through before any leaves. */
    atomic_fetch_add(&world->shared->finished, 1);
    while (atomic_load(&world->shared->finished) < peers) world_poll(world, since);
    world->wire->ops->close(world->wire, WEFTI_SECOND_NS);
    world->gone = true;
    free(buffer);
}

/* A seeded storm: everyone sends everyone messages of random sizes and tags, receives posted in another random order. */
static void survives_a_random_storm(rank_world *world) {
    enum { COUNT = 60 };
    typedef struct storm_message {
        wefti_wire_op op;
        uint8_t      *memory;
        uint32_t      seed;
    } storm_message;
    storm_message *all = take(world, sizeof *all * COUNT * MOST_RANKS * 2);
    int32_t        count = 0;
    for (int32_t from = 0; from < world->size; from++)
        for (int32_t to = 0; to < world->size; to++)
            for (uint32_t i = 0; i < COUNT; i++) {
                if (from != world->rank && to != world->rank) continue;
                uint32_t seed = (uint32_t)(from * 7919 + to * 104729) + i * 31, mixed = seed * 2654435761u;
                size_t   bytes = mixed % 5 == 0 ? mixed >> 14 : mixed % 5 == 1 ? mixed >> 20 : mixed >> 26;
                for (int side = 0; side < 2; side++) {
                    if ((side ? to : from) != world->rank) continue;
                    storm_message *one = &all[count++];
                    one->memory = take(world, bytes);
                    one->seed = seed;
                    if (!side) fill(one->memory, bytes, seed);
                    one->op = side ? wefti_wire_recv(from, TAG(i), one->memory, bytes)
                                   : wefti_wire_send(to, TAG(i), one->memory, bytes);
                    one->op.flags = WEFTI_WIRE_SILENT;
                }
            }
    uint32_t random = 12345 + (uint32_t)world->rank;
    for (int32_t left = count; left > 1; left--) { /* shuffle the order of posts */
        random = random * 1664525u + 1013904223u;
        int32_t       pick = (int32_t)((random >> 8) % (uint32_t)left);
        storm_message swap = all[pick];
        all[pick] = all[left - 1];
        all[left - 1] = swap;
    }
    for (int32_t i = 0; i < count; i++) {
        world_post(world, &all[i].op);
        if (i % 3 == 0) world_poll(world, world_now());
    }
    for (int32_t i = 0; i < count; i++) {
        world_finish(world, &all[i].op);
        CHECK(all[i].op.status == WEFT_OK, "%s", weft_status_name(all[i].op.status));
        if (all[i].op.kind == WEFTI_WIRE_RECV)
            CHECK(all[i].op.done_bytes == all[i].op.bytes && filled(all[i].memory, all[i].op.bytes, all[i].seed),
                  "message with tag %llx from %d, %zu bytes", (unsigned long long)all[i].op.tag, (int)all[i].op.peer,
                  all[i].op.bytes);
        free(all[i].memory);
    }
    free(all);
}

static const wire_case cases[] = {
    {"flushes_on_abort", flushes_on_abort},
    {"delivers_what_was_sent_before_leaving", delivers_what_was_sent_before_leaving},
    {"keeps_regions_for_who_is_late", keeps_regions_for_who_is_late},
    {"tells_of_a_dead_rank", tells_of_a_dead_rank},
    {"survives_a_random_storm", survives_a_random_storm},
};
const wire_case_list end_cases = {cases, WEFTI_COUNT(cases)};

/* The cases that every wire must pass. Each runs on connected ranks, and leaves nothing under way. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "conformance.h"

#define TAG(n) (WEFTI_TAG_TEST | (uint64_t)(n))

/* Ranks that take no part in a case of two just wait at its end. */
static bool spectator(const rank_world *world) { return world->rank > 1; }

static void *take(rank_world *world, size_t bytes) {
    void *memory = malloc(bytes ? bytes : 1);
    CHECK(memory, "no memory for the test");
    return memory;
}

/* --- messages --- */

static size_t awkward_sizes(const rank_world *world, size_t *sizes) {
    size_t eager = world->wire->can.eager_bytes, inlined = world->wire->can.inline_bytes;
    const size_t list[] = {0,  1,  3,    7,    8,     33,        inlined, inlined + 1, 64,     65,         1000,
                           4096, 8191, eager, eager + 1, 65536, 100003,  1 << 20,     (3 << 20) + 7};
    memcpy(sizes, list, sizeof list);
    return WEFTI_COUNT(list);
}

static void carries_every_size(rank_world *world) {
    size_t   sizes[32], count = awkward_sizes(world, sizes);
    uint8_t *out = take(world, 4 << 20), *in = take(world, 4 << 20);
    for (size_t s = 0; s < count; s++)
        for (int32_t step = 1; step < world->size; step++) {
            int32_t to = (world->rank + step) % world->size, from = (world->rank + world->size - step) % world->size;
            fill(out, sizes[s], (uint32_t)(world->rank * 100 + to));
            memset(in, 0xee, sizes[s] + 8);
            wefti_wire_op recv = wefti_wire_recv(from, TAG(s), in, sizes[s]);
            wefti_wire_op send = wefti_wire_send(to, TAG(s), out, sizes[s]);
            recv.flags = send.flags = WEFTI_WIRE_SILENT;
            world_post(world, &recv);
            world_post(world, &send);
            world_finish(world, &recv);
            world_finish(world, &send);
            CHECK(recv.status == WEFT_OK && send.status == WEFT_OK, "%zu bytes", sizes[s]);
            CHECK(recv.done_bytes == sizes[s] && recv.done_peer == from, "%zu bytes from %d", recv.done_bytes,
                  (int)recv.done_peer);
            CHECK(filled(in, sizes[s], (uint32_t)(from * 100 + world->rank)), "wrong content of %zu bytes", sizes[s]);
            CHECK(in[sizes[s]] == 0xee, "wrote past the end of %zu bytes", sizes[s]);
        }
    free(out);
    free(in);
}

static void keeps_the_order_of_a_tag(rank_world *world) {
    enum { COUNT = 300 };
    if (world->rank == 0)
        for (uint32_t i = 0; i < COUNT; i++) {
            uint32_t message[40] = {i};
            world_send(world, 1, TAG(5), message, i % 2 ? 4 : sizeof message);
        }
    if (world->rank == 1) {
        static _Thread_local wefti_wire_op ops[COUNT];
        static _Thread_local uint32_t      got[COUNT][40];
        for (uint32_t i = 0; i < COUNT; i++) {
            ops[i] = wefti_wire_recv(0, TAG(5), got[i], sizeof got[i]);
            ops[i].flags = WEFTI_WIRE_SILENT;
            world_post(world, &ops[i]);
            if (i % 7 == 0) world_poll(world, world_now());
        }
        for (uint32_t i = 0; i < COUNT; i++) {
            world_finish(world, &ops[i]);
            CHECK(ops[i].status == WEFT_OK && got[i][0] == i, "message %u came as the %u-th", got[i][0], i);
            CHECK(ops[i].done_bytes == (i % 2 ? 4 : sizeof got[i]), "%zu bytes", ops[i].done_bytes);
        }
    }
}

/* Receives are posted in the opposite order of the sends, small and large mixed: no tag may wait for another. */
static void lets_no_tag_wait_for_another(rank_world *world) {
    enum { COUNT = 24 };
    static const size_t sizes[] = {8, 300000, 40, 9000, 1 << 20, 0};
    if (spectator(world)) return;
    static _Thread_local wefti_wire_op ops[COUNT];
    uint8_t                           *memory[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) {
        size_t   bytes = sizes[i % WEFTI_COUNT(sizes)];
        uint32_t which = world->rank == 0 ? i : COUNT - 1 - i;
        bytes = sizes[which % WEFTI_COUNT(sizes)];
        memory[i] = take(world, bytes);
        if (world->rank == 0) {
            fill(memory[i], bytes, which);
            ops[i] = wefti_wire_send(1, TAG(which), memory[i], bytes);
        } else {
            ops[i] = wefti_wire_recv(0, TAG(which), memory[i], bytes);
        }
        ops[i].flags = WEFTI_WIRE_SILENT;
        world_post(world, &ops[i]);
        if (world->rank == 1) { /* each alone, so that the others have to wait aside */
            world_finish(world, &ops[i]);
            CHECK(ops[i].status == WEFT_OK && filled(memory[i], bytes, which), "message %u", which);
        }
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        world_finish(world, &ops[i]);
        free(memory[i]);
    }
}

static void keeps_early_messages(rank_world *world) {
    enum { COUNT = 400 };
    const size_t bytes = world->wire->can.eager_bytes < 5000 ? world->wire->can.eager_bytes : 5000;
    uint8_t *buffer = take(world, bytes);
    if (world->rank == 0)
        for (uint32_t i = 0; i < COUNT; i++) {
            fill(buffer, bytes, i);
            world_send(world, 1, TAG(i % 10), buffer, bytes);
        }
    if (world->rank == 1) {
        for (int i = 0; i < 1000; i++) world_poll(world, world_now()); /* let them pile up */
        for (uint32_t tag = 10; tag-- > 0;)
            for (uint32_t i = tag; i < COUNT; i += 10) {
                world_recv(world, 0, TAG(tag), buffer, bytes);
                CHECK(filled(buffer, bytes, i), "message %u", i);
            }
    }
    free(buffer);
}

static void receives_from_anyone(rank_world *world) {
    enum { EACH = 20, BYTES = 20000 };
    uint8_t *buffer = take(world, BYTES);
    if (world->rank == 0) {
        int32_t seen[MOST_RANKS] = {0};
        for (int32_t i = 0; i < EACH * (world->size - 1); i++) {
            wefti_wire_op op = wefti_wire_recv(WEFTI_WIRE_ANY_PEER, TAG(1), buffer, BYTES);
            op.flags = WEFTI_WIRE_SILENT;
            world_post(world, &op);
            world_finish(world, &op);
            int32_t peer = op.done_peer;
            CHECK(op.status == WEFT_OK && peer > 0 && peer < world->size, "from %d", (int)peer);
            size_t bytes = seen[peer] % 2 ? BYTES : 16;
            CHECK(op.done_bytes == bytes && filled(buffer, bytes, (uint32_t)(peer * 1000 + seen[peer])),
                  "message %d of rank %d", (int)seen[peer], (int)peer);
            seen[peer]++;
        }
        for (int32_t peer = 1; peer < world->size; peer++) CHECK(seen[peer] == EACH, "%d of %d", (int)seen[peer], EACH);
    } else {
        for (int32_t i = 0; i < EACH; i++) {
            fill(buffer, BYTES, (uint32_t)(world->rank * 1000 + i));
            world_send(world, 0, TAG(1), buffer, i % 2 ? BYTES : 16);
        }
    }
    free(buffer);
}

/* A named receive posted before one for anyone is served first. */
static void serves_named_and_any_in_posted_order(rank_world *world) {
    uint32_t a = 0, b = 0, c = 0;
    if (world->rank == 1) {
        wefti_wire_op named = wefti_wire_recv(0, TAG(1), &a, 4), any = wefti_wire_recv(WEFTI_WIRE_ANY_PEER, TAG(1), &b, 4),
                      again = wefti_wire_recv(0, TAG(1), &c, 4);
        named.flags = any.flags = again.flags = WEFTI_WIRE_SILENT;
        world_post(world, &named);
        world_post(world, &any);
        world_post(world, &again);
        world_barrier(world);
        world_finish(world, &named);
        world_finish(world, &any);
        world_finish(world, &again);
        CHECK(a == 1 && b == 2 && c == 3, "got %u %u %u", a, b, c);
    } else {
        world_barrier(world);
        if (world->rank == 0)
            for (uint32_t i = 1; i <= 3; i++) world_send(world, 1, TAG(1), &i, 4);
    }
}

static void names_a_message_that_is_too_long(rank_world *world) {
    static const size_t sizes[] = {9, 3000, 2 << 20};
    uint8_t            *buffer = take(world, 2 << 20);
    for (size_t s = 0; s < WEFTI_COUNT(sizes); s++)
        for (int early = 0; early < 2; early++) {
            if (world->rank == 0) {
                wefti_wire_op send = wefti_wire_send(1, TAG(1), buffer, sizes[s]);
                send.flags = WEFTI_WIRE_SILENT;
                if (!early) world_barrier(world);
                world_post(world, &send);
                if (early) world_barrier(world);
                world_finish(world, &send);
                CHECK(send.status == WEFT_OK, "the send of %zu ended with %s", sizes[s], weft_status_name(send.status));
            } else if (world->rank == 1) {
                memset(buffer, 0x11, 16);
                wefti_wire_op recv = wefti_wire_recv(0, TAG(1), buffer, 8);
                recv.flags = WEFTI_WIRE_SILENT;
                if (!early) world_post(world, &recv);
                world_barrier(world);
                if (early) world_post(world, &recv);
                world_finish(world, &recv);
                CHECK(recv.status == WEFT_E_MISMATCH && recv.done_bytes == sizes[s] && recv.done_peer == 0,
                      "%zu bytes for 8 ended with %s, %zu", sizes[s], weft_status_name(recv.status), recv.done_bytes);
                CHECK(buffer[8] == 0x11, "wrote past the end of the receive");
            } else {
                world_barrier(world);
            }
        }
    world_barrier(world);
    if (world->rank == 0) world_send(world, 1, TAG(2), "still well", 11);
    if (world->rank == 1) world_recv(world, 0, TAG(2), buffer, 11);
    free(buffer);
}

static void sends_to_itself(rank_world *world) {
    static const size_t sizes[] = {0, 8, 5000, 1 << 20};
    uint8_t            *out = take(world, 1 << 20), *in = take(world, 1 << 20);
    for (size_t s = 0; s < WEFTI_COUNT(sizes); s++)
        for (int late = 0; late < 2; late++) {
            fill(out, sizes[s], (uint32_t)s);
            memset(in, 0, sizes[s]);
            wefti_wire_op send = wefti_wire_send(world->rank, TAG(1), out, sizes[s]);
            wefti_wire_op recv = wefti_wire_recv(world->rank, TAG(1), in, sizes[s]);
            send.flags = recv.flags = WEFTI_WIRE_SILENT;
            world_post(world, late ? &send : &recv);
            world_post(world, late ? &recv : &send);
            world_finish(world, &send);
            world_finish(world, &recv);
            CHECK(send.status == WEFT_OK && recv.status == WEFT_OK && filled(in, sizes[s], (uint32_t)s), "%zu bytes",
                  sizes[s]);
        }
    free(out);
    free(in);
}

/* All to all at once, both ways on every link, more than any buffer of the system holds. */
static void exchanges_with_everyone_at_once(rank_world *world) {
    enum { BYTES = 3 << 20 };
    uint8_t      *out[MOST_RANKS], *in[MOST_RANKS];
    wefti_wire_op sends[MOST_RANKS], recvs[MOST_RANKS];
    for (int32_t peer = 0; peer < world->size; peer++) {
        out[peer] = take(world, BYTES);
        in[peer] = take(world, BYTES);
        fill(out[peer], BYTES, (uint32_t)(world->rank * 10 + peer));
        sends[peer] = wefti_wire_send(peer, TAG(3), out[peer], BYTES);
        recvs[peer] = wefti_wire_recv(peer, TAG(3), in[peer], BYTES);
        sends[peer].flags = recvs[peer].flags = WEFTI_WIRE_SILENT;
    }
    for (int32_t peer = 0; peer < world->size; peer++) world_post(world, &sends[peer]);
    for (int32_t peer = 0; peer < world->size; peer++) world_post(world, &recvs[peer]);
    for (int32_t peer = 0; peer < world->size; peer++) {
        world_finish(world, &sends[peer]);
        world_finish(world, &recvs[peer]);
        CHECK(recvs[peer].status == WEFT_OK && filled(in[peer], BYTES, (uint32_t)(peer * 10 + world->rank)), "from %d",
              (int)peer);
        free(out[peer]);
        free(in[peer]);
    }
}

/* --- operations and their outcomes --- */

static void hands_each_operation_out_once(rank_world *world) {
    enum { COUNT = 50 };
    if (spectator(world)) return;
    static _Thread_local wefti_wire_op ops[COUNT];
    static _Thread_local uint64_t      values[COUNT];
    int32_t                            peer = 1 - world->rank, given = 0, handed[COUNT] = {0};
    for (int32_t i = 0; i < COUNT; i++) {
        values[i] = (uint64_t)i;
        ops[i] = i % 2 == world->rank ? wefti_wire_send(peer, TAG(i), &values[i], 8) : wefti_wire_recv(peer, TAG(i), &values[i], 8);
        ops[i].user = &handed[i];
        if (i >= 40) ops[i].flags = WEFTI_WIRE_SILENT;
        world_post(world, &ops[i]);
    }
    uint64_t since = world_now();
    while (given < 40) {
        wefti_wire_op *done[3];
        int32_t        count = 0;
        CHECK_OK(world->wire->ops->poll(world->wire, world_now(), done, 3, &count));
        CHECK(count >= 0 && count <= 3, "%d operations", (int)count);
        for (int32_t i = 0; i < count; i++) {
            CHECK(done[i]->done && done[i]->status == WEFT_OK, "handed out with %s", weft_status_name(done[i]->status));
            ++*(int32_t *)done[i]->user;
        }
        given += count;
        world_poll(world, since);
    }
    for (int32_t i = 40; i < COUNT; i++) world_finish(world, &ops[i]);
    for (int i = 0; i < 100; i++) {
        wefti_wire_op *done[3];
        int32_t        count = 0;
        CHECK_OK(world->wire->ops->poll(world->wire, world_now(), done, 3, &count));
        CHECK(count == 0, "an operation came out twice");
    }
    for (int32_t i = 0; i < COUNT; i++) CHECK(handed[i] == (i < 40), "operation %d came out %d times", (int)i, (int)handed[i]);
}

static void refuses_bad_posts(rank_world *world) {
    wefti_wire   *wire = world->wire;
    uint8_t       byte = 0;
    wefti_wire_op op = wefti_wire_send(world->size, TAG(1), &byte, 1);
    CHECK(wefti_wire_post(wire, &op) == WEFT_E_INVALID, "a rank beyond the last");
    CHECK(strstr(weft_error_message(), wire->can.name), "the message does not name the wire: %s", weft_error_message());
    op = wefti_wire_send(WEFTI_WIRE_ANY_PEER, TAG(1), &byte, 1);
    CHECK(wefti_wire_post(wire, &op) == WEFT_E_INVALID, "a send to anyone");
    op = wefti_wire_recv(-2, TAG(1), &byte, 1);
    CHECK(wefti_wire_post(wire, &op) == WEFT_E_INVALID, "a negative rank");
    op = wefti_wire_send(0, TAG(1), NULL, 1);
    CHECK(wefti_wire_post(wire, &op) == WEFT_E_INVALID, "one byte at NULL");
    op = wefti_wire_send(0, TAG(1), &byte, 1);
    op.kind = (wefti_wire_op_kind)17;
    CHECK(wefti_wire_post(wire, &op) == WEFT_E_INVALID, "a kind that is none");
    if (wire->can.max_message_bytes < SIZE_MAX) {
        op = wefti_wire_send(0, TAG(1), &byte, wire->can.max_message_bytes + 1);
        CHECK(wefti_wire_post(wire, &op) == WEFT_E_OVERFLOW, "a message beyond the largest");
    }
    uint8_t address[8] = {1, 2, 3};
    CHECK(wire->ops->connect(wire, 0, address, 3) == WEFT_E_CORRUPT, "garbage for an address");
    CHECK(wire->ops->connect(wire, world->size, address, 3) == WEFT_E_INVALID, "connecting to no rank");
}

static void takes_a_receive_back(rank_world *world) {
    uint64_t      value = 0;
    wefti_wire_op op = wefti_wire_recv((world->rank + 1) % world->size, TAG(77), &value, 8);
    world_post(world, &op);
    CHECK_OK(world->wire->ops->cancel(world->wire, &op));
    CHECK(op.done && op.status == WEFT_E_ABORTED, "%s", weft_status_name(op.status));
    CHECK(world->wire->ops->cancel(world->wire, &op) == WEFT_E_STATE, "taken back twice");
    wefti_wire_op *done[2];
    int32_t        count = 0;
    CHECK_OK(world->wire->ops->poll(world->wire, world_now(), done, 2, &count));
    CHECK(count == 1 && done[0] == &op, "handed out %d", (int)count);
    /* The message then waits for the next receive. */
    world_barrier(world);
    uint64_t mine = (uint64_t)world->rank;
    world_send(world, (world->rank + world->size - 1) % world->size, TAG(77), &mine, 8);
    world_recv(world, (world->rank + 1) % world->size, TAG(77), &value, 8);
    CHECK(value == (uint64_t)((world->rank + 1) % world->size), "%llu", (unsigned long long)value);
}

static void counts_what_it_moves(rank_world *world) {
    wefti_wire_counts before, after;
    uint8_t          *buffer = take(world, 1 << 20);
    world->wire->ops->counts(world->wire, &before);
    world_barrier(world); /* nobody sends before all have looked */
    if (world->rank == 0) {
        world_send(world, 1, TAG(1), buffer, 8);
        world_send(world, 1, TAG(1), buffer, 1 << 20);
    }
    if (world->rank == 1) {
        world_recv(world, 0, TAG(1), buffer, 8);
        world_recv(world, 0, TAG(1), buffer, 1 << 20);
    }
    world->wire->ops->counts(world->wire, &after);
    uint64_t sent = after.sent_bytes - before.sent_bytes, received = after.received_bytes - before.received_bytes;
    CHECK(sent == (world->rank == 0 ? (1 << 20) + 8 : 0), "%llu sent", (unsigned long long)sent);
    CHECK(received == (world->rank == 1 ? (1 << 20) + 8 : 0), "%llu received", (unsigned long long)received);
    CHECK(after.sent_messages - before.sent_messages == (world->rank == 0 ? 2 : 0), "messages sent");
    CHECK(after.received_messages - before.received_messages == (world->rank == 1 ? 2 : 0), "messages received");
    free(buffer);
}

static void allocates_nothing_in_steady_state(rank_world *world) {
    static const size_t sizes[] = {8, 1000, 20000, 300000};
    weft_memory_counts  before = {0}, after;
    uint8_t            *buffer = take(world, 300000);
    for (int round = 0; round < 60 && !spectator(world); round++) {
        if (round == 20) weft_memory_read(&before);
        for (size_t s = 0; s < WEFTI_COUNT(sizes); s++) {
            if (world->rank == 0) {
                world_send(world, 1, TAG(1), buffer, sizes[s]);
                world_recv(world, 1, TAG(2), buffer, sizes[s]);
            } else {
                world_recv(world, 0, TAG(1), buffer, sizes[s]);
                world_send(world, 0, TAG(2), buffer, sizes[s]);
            }
        }
    }
    weft_memory_read(&after);
    /* Ranks that are threads share the counter; what one of them allocates late would be seen too. */
    if (!spectator(world))
        CHECK(after.allocations == before.allocations, "%llu allocations in 40 rounds",
              (unsigned long long)(after.allocations - before.allocations));
    free(buffer);
}

static void wakes_who_rests(rank_world *world) {
    if (!(world->wire->can.flags & WEFTI_WIRE_WAIT_DESCRIPTOR) || spectator(world)) return;
    uint64_t value = 0;
    for (int round = 0; round < 3; round++) {
        if (world->rank == 0) {
            struct timespec pause = {0, 30 * 1000 * 1000};
            nanosleep(&pause, NULL);
            world_send(world, 1, TAG(9), &value, 8);
        } else {
            wefti_wire_op op = wefti_wire_recv(0, TAG(9), &value, 8);
            op.flags = WEFTI_WIRE_SILENT;
            world_post(world, &op);
            uint64_t since = world_now();
            int      rests = 0;
            while (!op.done) {
                CHECK_OK(wefti_wire_progress(world->wire, world_now()));
                if (op.done) break;
                wefti_wire_rest(world->wire, 20 * WEFTI_SECOND_NS);
                rests++;
            }
            CHECK(world_now() - since < 10 * WEFTI_SECOND_NS, "the message did not wake the receiver");
            CHECK(rests < 1000, "rested %d times: a busy loop", rests);
        }
    }
}

/* --- regions --- */

static wefti_wire_peer_region region_of(rank_world *world, int32_t peer, uint32_t id) {
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
        wefti_wire_peer_region seen = region_of(world, peer, (uint32_t)atomic_load(&world->shared->note[peer]));
        CHECK(seen.base && seen.size_bytes == region->size_bytes, "mapped %zu bytes", seen.size_bytes);
        CHECK(filled(seen.base, BYTES, (uint32_t)peer), "content of rank %d", (int)peer);
    }
    world_barrier(world);
    /* Stores are seen the other way too. */
    wefti_wire_peer_region next = region_of(world, (world->rank + 1) % world->size,
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
    region_of(world, to, id);
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
    region_of(world, peer, id);
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

/* --- ends --- */

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
            region_of(world, 0, first_id);
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

const wire_case wire_cases[] = {
    {"carries_every_size", carries_every_size},
    {"keeps_the_order_of_a_tag", keeps_the_order_of_a_tag},
    {"lets_no_tag_wait_for_another", lets_no_tag_wait_for_another},
    {"keeps_early_messages", keeps_early_messages},
    {"receives_from_anyone", receives_from_anyone},
    {"serves_named_and_any_in_posted_order", serves_named_and_any_in_posted_order},
    {"names_a_message_that_is_too_long", names_a_message_that_is_too_long},
    {"sends_to_itself", sends_to_itself},
    {"exchanges_with_everyone_at_once", exchanges_with_everyone_at_once},
    {"hands_each_operation_out_once", hands_each_operation_out_once},
    {"refuses_bad_posts", refuses_bad_posts},
    {"takes_a_receive_back", takes_a_receive_back},
    {"counts_what_it_moves", counts_what_it_moves},
    {"allocates_nothing_in_steady_state", allocates_nothing_in_steady_state},
    {"wakes_who_rests", wakes_who_rests},
    {"maps_regions_of_peers", maps_regions_of_peers},
    {"writes_and_reads_one_sided", writes_and_reads_one_sided},
    {"reaches_registered_memory", reaches_registered_memory},
    {"sends_between_regions_and_other_memory", sends_between_regions_and_other_memory},
    {"flushes_on_abort", flushes_on_abort},
    {"delivers_what_was_sent_before_leaving", delivers_what_was_sent_before_leaving},
    {"keeps_regions_for_who_is_late", keeps_regions_for_who_is_late},
    {"tells_of_a_dead_rank", tells_of_a_dead_rank},
    {"survives_a_random_storm", survives_a_random_storm},
};
const size_t wire_case_count = WEFTI_COUNT(wire_cases);

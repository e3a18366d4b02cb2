/* Cases of operations and their outcomes: handed out once, refused, taken back, counted.
 * Each runs on connected ranks, and leaves nothing under way. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "conformance_cases.h"

static void hands_each_operation_out_once(rank_world *world) {
    enum { COUNT = 50 };
    if (spectator(world)) return;
    wefti_wire_op *ops = take(world, COUNT * sizeof *ops);
    uint64_t      *values = take(world, COUNT * sizeof *values);
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
    free(ops);
    free(values);
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

/* Where each message is in any state: not begun, half sent, announced, done. */
static void goes_on_sending_from_elsewhere(rank_world *world) {
    static const size_t sizes[] = {100, 5000, 300000, 1 << 20, 9 << 20, 9 << 20, 64};
    enum { COUNT = WEFTI_COUNT(sizes) };
    uint8_t      *memory[COUNT], *copies[COUNT];
    wefti_wire_op ops[COUNT];
    if (spectator(world) || !world->wire->ops->send_from) return;
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < COUNT; i++) {
            memory[i] = take(world, sizes[i]);
            copies[i] = take(world, sizes[i]);
            fill(memory[i], sizes[i], round * 100 + i);
            if (world->rank == 1) memset(memory[i], 0, sizes[i]);
            ops[i] = world->rank == 0 ? wefti_wire_send(1, TAG(i), memory[i], sizes[i]) : wefti_wire_recv(0, TAG(i), memory[i], sizes[i]);
            ops[i].flags = WEFTI_WIRE_SILENT;
            if (world->rank == 1 && round == 1) world_poll(world, world_now());
            world_post(world, &ops[i]);
        }
        for (uint32_t i = 0; i < round * 3; i++) world_poll(world, world_now());
        for (uint32_t i = 0; i < COUNT && world->rank == 0; i++) {
            if (ops[i].done) continue;
            memcpy(copies[i], memory[i], sizes[i]);
            world->wire->ops->send_from(world->wire, &ops[i], copies[i]);
            memset(memory[i], 0xee, sizes[i]);
        }
        for (uint32_t i = 0; i < COUNT; i++) {
            world_finish(world, &ops[i]);
            CHECK(ops[i].status == WEFT_OK && ops[i].done_bytes == sizes[i], "round %u, message %u", round, i);
            CHECK(world->rank == 0 || filled(memory[i], sizes[i], round * 100 + i), "round %u, message %u of %zu bytes", round, i, sizes[i]);
            free(memory[i]);
            free(copies[i]);
        }
    }
}

static const wire_case cases[] = {
    {"hands_each_operation_out_once", hands_each_operation_out_once},
    {"refuses_bad_posts", refuses_bad_posts},
    {"takes_a_receive_back", takes_a_receive_back},
    {"counts_what_it_moves", counts_what_it_moves},
    {"allocates_nothing_in_steady_state", allocates_nothing_in_steady_state},
    {"wakes_who_rests", wakes_who_rests},
    {"goes_on_sending_from_elsewhere", goes_on_sending_from_elsewhere},
};
const wire_case_list operation_cases = {cases, WEFTI_COUNT(cases)};

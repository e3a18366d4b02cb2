/* Broadcasts in mapped memory whose root waits for nobody: what it runs ahead by reaches the others whole, whatever it does with its buffer after. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "cases.h"
#include "transport/coll_map.h"

static const wire_setup inproc = {.name = "inproc", .mode = AS_THREADS, .open = wefti_wire_inproc_open};
static const wire_setup shm = {.name = "shm", .mode = AS_PROCESSES, .open = wefti_wire_shm_open};

#define MOST_BYTES ((size_t)3 << 20)

/* As on a machine with fewer cores than ranks, whatever this one has. */
static wefti_group *crowded_group(rank_world *world) {
    wefti_group *group = group_of_all(world, NULL);
    ((coll_group *)group)->crowded = true;
    return group;
}

static uint8_t byte_of(uint32_t turn, size_t i) { return (uint8_t)(i * 7 + i / 251 + turn * 13); }

static wefti_collective_call call_of(uint8_t *buffer, size_t bytes, int32_t root) {
    return (wefti_collective_call){.kind = WEFTI_BROADCAST, .dtype = WEFT_U8, .root = root, .send = buffer, .receive = buffer, .count = bytes};
}

/* Fills the root's buffer before the call, and spoils it right after. */
static void broadcast(rank_world *world, wefti_group *group, uint8_t *buffer, size_t bytes, int32_t root, uint32_t turn) {
    wefti_collective_call call = call_of(buffer, bytes, root);
    memset(buffer, 0xee, bytes);
    for (size_t i = 0; i < bytes && world->rank == root; i++) buffer[i] = byte_of(turn, i);
    CHECK_OK(wefti_collective_run(group, &call));
    for (size_t i = 0; i < bytes; i++)
        if (buffer[i] != byte_of(turn, i)) CHECK(false, "turn %u: byte %zu of %zu is %d", turn, i, bytes, buffer[i]);
}

/* More than there are slots, of all ways, around the ring and with the roots in turns, each for a while; now and then another kind in between. */
static void many_in_a_row(rank_world *world) {
    static const size_t sizes[] = {1, 32, 33, 5000, 8192, 8193, 20000, 65535, 300001};
    wefti_group *group = crowded_group(world);
    uint8_t     *buffer = malloc(MOST_BYTES);
    for (uint32_t turn = 0; turn < 600; turn++) {
        size_t  bytes = turn % 97 == 50 ? MOST_BYTES - 5 : sizes[turn / 3 % WEFTI_COUNT(sizes)];
        int32_t root = (int32_t)(turn / 70) % world->size, sum = 1;
        broadcast(world, group, buffer, bytes, root, turn);
        wefti_collective_call add = {.kind = WEFTI_ALLREDUCE, .dtype = WEFT_I32, .send = &sum, .receive = &sum, .count = 1};
        if (turn % 41 == 40) CHECK_OK(wefti_collective_run(group, &add));
        CHECK(turn % 41 != 40 || sum == world->size, "a sum of ones is %d", (int)sum);
    }
    CLOSE(group);
    free(buffer);
}

/* Started together, of two roots, and the later ones the more urgent. */
static void several_in_flight(rank_world *world) {
    enum { FLIGHT = 6 };
    static const size_t sizes[FLIGHT] = {20000, 700000, 12, 100000, 900000, 9000};
    wefti_group *group = crowded_group(world);
    uint8_t     *buffers[FLIGHT];
    for (int i = 0; i < FLIGHT; i++) buffers[i] = malloc(sizes[i]);
    for (uint32_t turn = 0; turn < 40; turn++) {
        wefti_collective *handles[FLIGHT];
        for (int i = 0; i < FLIGHT; i++) {
            int32_t root = i % 2 ? world->size - 1 : 0;
            wefti_collective_call call = call_of(buffers[i], sizes[i], root);
            call.priority = i;
            for (size_t k = 0; k < sizes[i]; k++) buffers[i][k] = world->rank == root ? byte_of(turn + (uint32_t)i, k) : 0xee;
            CHECK_OK(wefti_collective_start(group, &call, &handles[i]));
        }
        for (int i = 0; i < FLIGHT; i++) CHECK_OK(wefti_collective_wait(handles[(i + (int)turn) % FLIGHT], 0));
        for (int i = 0; i < FLIGHT; i++)
            for (size_t k = 0; k < sizes[i]; k++)
                if (buffers[i][k] != byte_of(turn + (uint32_t)i, k)) CHECK(false, "turn %u, call %d: byte %zu is %d", turn, i, k, buffers[i][k]);
    }
    for (int i = 0; i < FLIGHT; i++) free(buffers[i]);
    CLOSE(group);
}

/* The others call only when they have heard that the root is through with all of them; it is gone by then. */
static void the_root_runs_ahead(rank_world *world) {
    enum { AHEAD = 20 };
    static const size_t sizes[] = {8, 1000, 8192, 9000, 15000};
    wefti_group *group = crowded_group(world);
    uint8_t     *buffer = malloc(MOST_BYTES), word = 1;
    broadcast(world, group, buffer, 8, 0, 0);
    if (world->rank > 0) {
        wefti_collective_call wait = {.kind = WEFTI_RECEIVE, .dtype = WEFT_U8, .root = 0, .receive = &word, .count = 1};
        CHECK_OK(wefti_collective_run(group, &wait));
    }
    for (uint32_t turn = 1; turn <= AHEAD; turn++) broadcast(world, group, buffer, sizes[turn % WEFTI_COUNT(sizes)], 0, turn);
    for (int32_t to = 1; to < world->size && world->rank == 0; to++) {
        wefti_collective_call tell = {.kind = WEFTI_SEND, .dtype = WEFT_U8, .root = to, .send = &word, .count = 1};
        CHECK_OK(wefti_collective_run(group, &tell));
    }
    CLOSE(group);
    free(buffer);
}

/* Two that take themselves for the root are both through; who gets something from the other in its next call finds it. */
static void two_roots_are_found_later(rank_world *world) {
    wefti_fault *fault = NULL;
    CHECK_OK(wefti_fault_create(world->wire->host, &fault));
    wefti_group *group = group_of_all(world, &(wefti_group_options){.fault = fault});
    ((coll_group *)group)->crowded = true;
    uint8_t *buffer = calloc(1, MOST_BYTES);
    broadcast(world, group, buffer, 8, 0, 0);
    wefti_collective_call call = call_of(buffer, 9000, world->rank == 1);
    CHECK_OK(wefti_collective_run(group, &call));
    call = call_of(buffer, 100, 0);
    weft_status status = wefti_collective_run(group, &call);
    if (world->rank == 0) /* it hears of that by the control channel, which is not here */
        CHECK(status == WEFT_OK, "%s", weft_error_message());
    else
        CHECK(status == WEFT_E_MISMATCH && strstr(weft_error_message(), "from member 1"), "%s: %s", weft_status_name(status), weft_error_message());
    CLOSE(group);
    wefti_fault_release(fault);
    free(buffer);
}

#define ON(setup, ranks, function) conformance_run_one(&setup, ranks, #function, function)

Test(collective_feed, many_inproc_3) { ON(inproc, 3, many_in_a_row); }
Test(collective_feed, many_shm_2) { ON(shm, 2, many_in_a_row); }
Test(collective_feed, many_shm_4) { ON(shm, 4, many_in_a_row); }
Test(collective_feed, flight_inproc_2) { ON(inproc, 2, several_in_flight); }
Test(collective_feed, flight_shm_3) { ON(shm, 3, several_in_flight); }
Test(collective_feed, ahead_inproc_2) { ON(inproc, 2, the_root_runs_ahead); }
Test(collective_feed, ahead_shm_3) { ON(shm, 3, the_root_runs_ahead); }
Test(collective_feed, roots_shm_2) { ON(shm, 2, two_roots_are_found_later); }

/* Broadcasts in mapped memory whose root waits for nobody: what it runs ahead by reaches the others whole, whatever it does with its buffer after. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
    const coll_group *inside = (const coll_group *)group;
    for (int32_t i = 0; i < inside->in_flight && inside->crowded; i++) CHECK(!inside->map->shares[i].pull, "turn %u, of %zu bytes, was pulled: all waited for all", turn, bytes);
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

/* Sizes around what decides how it goes: what a slot holds, what lies beside it, pulls, pieces, the ring, and stores past the caches. */
static void around_every_threshold(rank_world *world) {
    static const size_t edges[] = {0, SLOT_INLINE_BYTES, 64, 256, COLL_SMALL_BYTES, (size_t)16 << 10, (size_t)32 << 10, (size_t)64 << 10, FEED_BYTES, (size_t)2 << 20};
    wefti_group *group = crowded_group(world);
    uint8_t     *buffer = malloc(MOST_BYTES);
    uint32_t     turn = 0;
    for (size_t e = 0; e < WEFTI_COUNT(edges); e++)
        for (int more = -1; more <= 1; more++)
            for (int again = 0; again < (edges[e] < 40000 ? 7 : 2) && (edges[e] || more >= 0); again++, turn++)
                broadcast(world, group, buffer, edges[e] + (size_t)more, (int32_t)turn % 2, turn);
    CLOSE(group);
    free(buffer);
}

/* Results that leave past the caches are whole when the call returns, and are told to another core at once. */
static void more_than_caches_hold(rank_world *world) {
    enum { BYTES = (16 << 20) + 100, EVERY = 4093 };
    wefti_group *group = crowded_group(world);
    uint8_t     *buffer = malloc(BYTES + 1);
    for (uint32_t turn = 0; turn < 3; turn++)
        for (size_t less = 0; less < 300; less += 101) {
            uint8_t *at = buffer + turn % 2; /* not aligned: by ordinary copies */
            for (size_t i = 0; i < BYTES; i += EVERY) at[i] = world->rank == 1 ? byte_of(turn, i) : 0xee;
            wefti_collective_call call = call_of(at, BYTES - less, 1);
            CHECK_OK(wefti_collective_run(group, &call));
            for (size_t i = 0; i < BYTES - less; i += EVERY) CHECK(at[i] == byte_of(turn, i), "turn %u: byte %zu is %d", turn, i, at[i]);
        }
    CLOSE(group);
    free(buffer);
}

/* Nothing is moved, from nowhere, by every way. */
static void of_nothing(rank_world *world) {
    static const char *const ways[] = {"oneshot", "twoshot", "tree"};
    for (size_t w = 0; w < WEFTI_COUNT(ways); w++) {
        wefti_group *group = group_of_all(world, &(wefti_group_options){.id = (uint16_t)(w + 1), .algorithm = ways[w]});
        ((coll_group *)group)->crowded = true;
        for (int32_t turn = 0; turn < 3 * COLL_STRICT_EVERY; turn++) {
            wefti_collective_call call = {.kind = WEFTI_BROADCAST, .root = turn % world->size};
            if (turn % 5 == 4) call.receive = &turn; /* elsewhere, and as empty */
            CHECK_OK(wefti_collective_run(group, &call));
        }
        CLOSE(group);
    }
}

static void point(wefti_group *group, rank_world *world, int32_t from, int32_t to) {
    uint8_t word = 1;
    wefti_collective_call call = {.kind = world->rank == from ? WEFTI_SEND : WEFTI_RECEIVE, .dtype = WEFT_U8, .root = world->rank == from ? to : from,
                                  .send = &word, .receive = &word, .count = 1, .timeout_ns = 5 * WEFTI_SECOND_NS};
    CHECK_OK(wefti_collective_run(group, &call));
}

/* The root has two on the way and waits for the first alone; the others begin the second when they have heard of that: the
 * first must not wait for the second. */
static void a_message_comes_between(rank_world *world) {
    enum { BYTES = 40000, TURNS = 8 };
    static const size_t sizes[2] = {BYTES, BYTES / 4};
    wefti_group *group = crowded_group(world);
    uint8_t     *buffer[2] = {malloc(BYTES), malloc(BYTES)};
    for (uint32_t turn = 0; turn < TURNS; turn++) {
        wefti_collective *handles[2];
        bool root = world->rank == 0;
        for (int k = 0; k < 2; k++) memset(buffer[k], root ? (int)turn + k : 0xee, BYTES);
        for (int k = 0; k < 2; k++) {
            wefti_collective_call call = call_of(buffer[k], sizes[k], 0);
            call.timeout_ns = 5 * WEFTI_SECOND_NS;
            CHECK_OK(wefti_collective_start(group, &call, &handles[k]));
            if (!root || k == 1) CHECK_OK(wefti_collective_wait(handles[root ? 0 : k], 0));
            for (int32_t to = 1; to < world->size && k == (root ? 1 : 0); to++)
                if (root || to == world->rank) point(group, world, 0, to);
        }
        if (root) CHECK_OK(wefti_collective_wait(handles[1], 0));
        for (int k = 0; k < 2; k++)
            for (size_t i = 0; i < sizes[k]; i++) CHECK(buffer[k][i] == turn + (uint32_t)k, "turn %u: byte %zu is %d", turn, i, buffer[k][i]);
    }
    for (int k = 0; k < 2; k++) free(buffer[k]);
    CLOSE(group);
}

/* One operation at a time, and the calls whose numbers would have them wait for all go by messages, of which this root waits for its neighbour's alone: what
 * others that are behind have yet to read must not be overwritten. */
static void calls_by_messages_come_where_all_would_wait(rank_world *world) {
    wefti_group *group = group_of_all(world, &(wefti_group_options){.in_flight = 1, .timeout_ns = 10 * WEFTI_SECOND_NS, .algorithm = "gather:linear"});
    ((coll_group *)group)->crowded = true;
    uint8_t buffer[100];
    for (uint32_t turn = 0; turn < 10 * COLL_STRICT_EVERY; turn++) {
        uint8_t ours[MOST_RANKS] = {0};
        wefti_collective_call gather = {.kind = WEFTI_GATHER, .dtype = WEFT_U8, .root = 1, .send = buffer, .receive = ours, .count = 1};
        if (turn % COLL_STRICT_EVERY == COLL_STRICT_EVERY - 1)
            CHECK_OK(wefti_collective_run(group, &gather));
        else
            broadcast(world, group, buffer, sizeof buffer - turn % 90, 0, turn);
        if (world->rank == 2 && turn % 40 == 5) usleep(50000);
    }
    CLOSE(group);
}

/* All kinds, at random, with naps, by all ranks alike; waits that end too early and are taken up again. */
static void at_random(rank_world *world) {
    enum { FLIGHT = 5, CALLS = 400, PART = 400000 };
    static const wefti_collective_kind kinds[] = {WEFTI_BROADCAST, WEFTI_BROADCAST, WEFTI_BROADCAST, WEFTI_BROADCAST, WEFTI_ALLREDUCE, WEFTI_BARRIER, WEFTI_ALLGATHER};
    wefti_group *group = crowded_group(world);
    uint8_t     *buffers[FLIGHT];
    wefti_collective     *handles[FLIGHT] = {0};
    wefti_collective_call calls[FLIGHT];
    unsigned same = 7, mine = 100 + (unsigned)world->rank;
    for (int i = 0; i < FLIGHT; i++) buffers[i] = malloc(PART);
    for (uint32_t turn = 0; turn < CALLS + FLIGHT; turn++) {
        uint32_t place = turn % FLIGHT;
        if (turn >= FLIGHT) {
            weft_status status = WEFT_E_AGAIN;
            while (status == WEFT_E_AGAIN) status = wefti_collective_wait(handles[place], 1 + rand_r(&mine) % 200000);
            CHECK(status == WEFT_OK, "%s: %s", weft_status_name(status), weft_error_message());
            for (size_t i = 0; i < calls[place].count && calls[place].kind == WEFTI_BROADCAST; i++)
                if (buffers[place][i] != byte_of(turn - FLIGHT, i)) CHECK(false, "call %u: byte %zu of %zu is %d", turn - FLIGHT, i, calls[place].count, buffers[place][i]);
        }
        if (turn >= CALLS) continue;
        wefti_collective_kind kind = kinds[(unsigned)rand_r(&same) % WEFTI_COUNT(kinds)];
        size_t bytes = (size_t)1 << (unsigned)rand_r(&same) % 18;
        calls[place] = call_of(buffers[place], bytes + (unsigned)rand_r(&same) % bytes, rand_r(&same) % world->size);
        calls[place].kind = kind;
        calls[place].priority = rand_r(&same) % 3;
        if (kind == WEFTI_ALLGATHER) calls[place].count = 10, calls[place].send = buffers[place] + 1000;
        if (kind == WEFTI_BROADCAST)
            for (size_t i = 0; i < calls[place].count; i++) buffers[place][i] = world->rank == calls[place].root ? byte_of(turn, i) : 0xee;
        CHECK_OK(wefti_collective_start(group, &calls[place], &handles[place]));
        if (rand_r(&mine) % 20 == 0) usleep((unsigned)rand_r(&mine) % 3000);
    }
    for (int i = 0; i < FLIGHT; i++) free(buffers[i]);
    CLOSE(group);
}

/* Two groups of some of the ranks, which share one, at once; their roots are ahead of each other. */
static void in_groups_of_some(rank_world *world) {
    static const int32_t members[2][3] = {{0, 1, 2}, {3, 2, 1}};
    wefti_group *groups[2] = {NULL, NULL};
    for (int g = 0; g < 2; g++)
        for (int32_t i = 0; i < 3; i++) {
            if (members[g][i] != world->rank) continue;
            wefti_group_options options = {.wire = world->wire, .size = 3, .index = i, .ranks = members[g], .id = (uint16_t)(g + 1)};
            CHECK_OK(wefti_collective_engine_weft()->open(&options, &groups[g]));
            ((coll_group *)groups[g])->crowded = true;
        }
    enum { BYTES = 50000 };
    uint8_t *buffers[2] = {malloc(BYTES), malloc(BYTES)};
    for (uint32_t turn = 0; turn < 100; turn++) {
        wefti_collective *handles[2] = {NULL, NULL};
        size_t bytes = turn % 3 ? BYTES - turn : turn + 1;
        for (int g = 0; g < 2; g++) {
            if (!groups[g]) continue;
            int32_t root = (int32_t)(turn / 10 + (uint32_t)g) % 3;
            for (size_t i = 0; i < bytes; i++) buffers[g][i] = members[g][root] == world->rank ? byte_of(turn + (uint32_t)g, i) : 0xee;
            wefti_collective_call call = call_of(buffers[g], bytes, root);
            CHECK_OK(wefti_collective_start(groups[g], &call, &handles[g]));
        }
        for (int g = 1; g >= 0; g--) {
            if (!handles[g]) continue;
            CHECK_OK(wefti_collective_wait(handles[g], 0));
            for (size_t i = 0; i < bytes; i++)
                if (buffers[g][i] != byte_of(turn + (uint32_t)g, i)) CHECK(false, "group %d, turn %u: byte %zu is %d", g, turn, i, buffers[g][i]);
        }
    }
    for (int g = 0; g < 2; g++) {
        if (groups[g]) CLOSE(groups[g]);
        free(buffers[g]);
    }
}

/* Two that take themselves for the root are both through; who gets something from the other in its next call finds it. */
static void two_roots_are_found_later(rank_world *world) {
    wefti_fault *fault = NULL;
    CHECK_OK(wefti_fault_create(world->wire->host, &fault));
    wefti_group *group = group_of_all(world, &(wefti_group_options){.fault = fault});
    ((coll_group *)group)->crowded = true;
    uint8_t *buffer = calloc(1, MOST_BYTES);
    for (int32_t root = 0; root < 2; root++) broadcast(world, group, buffer, 8, root, 0);
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

/* Who is a root for the first time does not run ahead: two that always take themselves for it would never look at each other. */
static void a_second_root_is_found_at_once(rank_world *world) {
    wefti_fault *fault = NULL;
    CHECK_OK(wefti_fault_create(world->wire->host, &fault));
    wefti_group *group = group_of_all(world, &(wefti_group_options){.fault = fault});
    uint8_t     *buffer = calloc(1, MOST_BYTES);
    broadcast(world, group, buffer, 8, 0, 0);
    wefti_collective_call call = call_of(buffer, 100, world->rank == 1);
    weft_status status = wefti_collective_run(group, &call);
    if (world->rank == 0) CHECK(status == WEFT_OK, "%s", weft_error_message());
    else CHECK(status == WEFT_E_MISMATCH, "%s: %s", weft_status_name(status), weft_error_message());
    CLOSE(group);
    wefti_fault_release(fault);
    free(buffer);
}

/* One that takes its time for each is not taken for lost where the root has run ahead by more of them than fit into the time of one. */
static void a_slow_one_is_waited_for(rank_world *world) {
    enum { TURNS = 40, NAP_US = 60000 };
    wefti_group *group = group_of_all(world, &(wefti_group_options){.timeout_ns = WEFTI_SECOND_NS});
    uint8_t     *buffer = calloc(1, MOST_BYTES);
    for (uint32_t turn = 0; turn < TURNS; turn++) {
        if (world->rank == 1) usleep(NAP_US);
        broadcast(world, group, buffer, 8, 0, turn);
    }
    CLOSE(group);
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
Test(collective_feed, first_root_shm_2) { ON(shm, 2, a_second_root_is_found_at_once); }
Test(collective_feed, slow_shm_2) { ON(shm, 2, a_slow_one_is_waited_for); }
Test(collective_feed, thresholds_inproc_3) { ON(inproc, 3, around_every_threshold); }
Test(collective_feed, thresholds_shm_2) { ON(shm, 2, around_every_threshold); }
Test(collective_feed, thresholds_shm_4) { ON(shm, 4, around_every_threshold); }
Test(collective_feed, large_shm_3) { ON(shm, 3, more_than_caches_hold); }
Test(collective_feed, nothing_inproc_3) { ON(inproc, 3, of_nothing); }
Test(collective_feed, nothing_shm_2) { ON(shm, 2, of_nothing); }
Test(collective_feed, between_inproc_2) { ON(inproc, 2, a_message_comes_between); }
Test(collective_feed, between_shm_3) { ON(shm, 3, a_message_comes_between); }
Test(collective_feed, messages_shm_4) { ON(shm, 4, calls_by_messages_come_where_all_would_wait); }
Test(collective_feed, random_inproc_3) { ON(inproc, 3, at_random); }
Test(collective_feed, random_shm_2) { ON(shm, 2, at_random); }
Test(collective_feed, random_shm_4) { ON(shm, 4, at_random); }
Test(collective_feed, some_inproc_4) { ON(inproc, 4, in_groups_of_some); }
Test(collective_feed, some_shm_4) { ON(shm, 4, in_groups_of_some); }

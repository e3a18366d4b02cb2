/* The doors that ranks keep for calls after a fault, and strangers at them: between gatherings nobody is let in, holds anything or fills the
 * queue, and survivors find each other among all who call. The ranks' wire is shared memory, so doors are the only ports there are. */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ranks.h"
#include "transport/control.h"
#include "transport/door.h"
#include "transport/socket.h"
#include "weft/collective.h"

enum { RANKS = 3, VICTIM = 1, MOST_OPEN = 150, QUEUE = 800 /* of 1024, and under the common limit of descriptors */ };

static bool     no_thread;
static uint64_t late_ns; /* of rank 0's call, after the others' */

static weft_status sum(weft_world *world, weft_group *group, int32_t *sum_out) {
    int32_t mine = 1 << weft_world_rank(world);
    return weft_group_allreduce(group, &mine, sum_out, 1, WEFT_I32, WEFT_COMBINE_SUM);
}

static void wait_for_step(ranks *all, int32_t step) {
    while (atomic_load(&all->step) < step) usleep(1000);
}

/* Outside of calls until step 1, in calls until step 2, where the victim dies; then they shrink. */
static weft_status live(ranks *all, int32_t rank) {
    weft_world *world = NULL, *next = NULL;
    weft_group *group = NULL, *next_group = NULL;
    int32_t     total = 0;
    weft_status status = WEFT_OK;
    WEFTI_TRY(weft_world_create(&(weft_world_options){.wire = "shm", .threads = {.count = 1}, .no_control_thread = no_thread}, &world));
    WEFTI_TRY(weft_group_create(world, NULL, &group));
    WEFTI_TRY(sum(world, group, &total));
    atomic_fetch_add(&all->ready, 1);
    wait_for_step(all, 1);
    for (bool go_on = true; go_on && status == WEFT_OK;) {
        if (rank == VICTIM && atomic_load(&all->step) >= 2) raise(SIGKILL);
        status = sum(world, group, &total);
        if (status == WEFT_OK && atomic_load(&all->step) == 1 && rank == 0) usleep(500); /* lets the parent call */
    }
    if (status != WEFT_E_PEER) return wefti_fail(WEFT_E_INTERNAL, "no verdict: %s", weft_error_message());
    if (rank == 0 && late_ns) usleep((useconds_t)(late_ns / 1000));
    uint64_t begin_ns = ranks_now();
    WEFTI_TRY(weft_world_shrink(world, NULL, &next));
    uint64_t took_ns = ranks_now() - begin_ns;
    if (rank == 0) fprintf(stderr, "shrink among strangers: %.0f ms\n", (double)took_ns / 1e6);
    if (took_ns > 2 * WEFTI_SECOND_NS + (rank == 0 ? 0 : late_ns)) return wefti_fail(WEFT_E_INTERNAL, "it took %.3g s", (double)took_ns / 1e9);
    WEFTI_TRY(weft_group_create(next, NULL, &next_group));
    WEFTI_TRY(sum(next, next_group, &total));
    if (weft_world_size(next) != RANKS - 1 || total != (1 << (RANKS - 1)) - 1)
        return wefti_fail(WEFT_E_INTERNAL, "%d ranks, and the sum is %d", (int)weft_world_size(next), (int)total);
    weft_group_release(next_group);
    weft_world_release(next);
    weft_group_release(group);
    weft_world_release(world);
    return WEFT_OK;
}

/* --- strangers --- */

static int dial(uint16_t port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(port)};
    int dialled = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    cr_assert_geq(dialled, 0, "%s", strerror(errno));
    (void)!connect(dialled, (struct sockaddr *)&address, sizeof address);
    return dialled;
}

/* Whether the host has taken the call. */
static bool is_taken(int socket) {
    struct pollfd ready = {.fd = socket, .events = POLLOUT};
    int           error = 0;
    socklen_t     length = sizeof error;
    if (poll(&ready, 1, 2000) != 1) return false;
    getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &length);
    return error == 0 || error == ECONNRESET || error == EPIPE; /* taken, and hung up on */
}

static bool is_hung_up_on(int socket, int patience_ms) {
    struct pollfd ready = {.fd = socket, .events = POLLIN};
    char          byte;
    return poll(&ready, 1, patience_ms) == 1 && recv(socket, &byte, 1, 0) <= 0;
}

static int count_descriptors(pid_t process) {
    char folder[64];
    int  count = 0;
    snprintf(folder, sizeof folder, "/proc/%d/fd", (int)process);
    DIR *list = opendir(folder);
    while (list && readdir(list)) count++;
    if (list) closedir(list);
    return count;
}

/* Calls, as the first bytes of a handshake that never goes on; `open` keeps the latest, and what it holds is hung up. */
static void call(int open[MOST_OPEN], int number, const uint16_t ports[RANKS]) {
    int *place = &open[number % MOST_OPEN];
    if (*place >= 0) close(*place);
    *place = dial(ports[number % RANKS]);
    if (number % 2 == 0) (void)!send(*place, "WEFT\r\n", 6, MSG_NOSIGNAL);
}

static void leave(int open[MOST_OPEN]) {
    for (int i = 0; i < MOST_OPEN; i++)
        if (open[i] >= 0) close(open[i]);
}

static ranks *begin(uint16_t ports[RANKS], int open[MOST_OPEN]) {
    ranks *all = ranks_start(RANKS, live);
    ranks_wait_ready(all, RANKS);
    int count = ranks_find_ports(all, ports, RANKS);
    cr_assert_eq(count, RANKS, "%d doors", count);
    for (int i = 0; i < MOST_OPEN; i++) open[i] = -1;
    return all;
}

/* The victim dies while strangers go on calling. */
static void end(ranks *all, const uint16_t ports[RANKS], int open[MOST_OPEN]) {
    int calls = 0;
    for (atomic_store(&all->step, 2); !atomic_load(&all->results[0].finished) || !atomic_load(&all->results[2].finished);) {
        call(open, calls++, ports);
        usleep(500);
        cr_assert_lt(calls, 100000, "the ranks do not end");
    }
    leave(open);
    ranks_join(all);
    for (int32_t rank = 0; rank < RANKS; rank++)
        if (rank != VICTIM) cr_expect_eq(all->results[rank].status, WEFT_OK, "rank %d, among %d calls: %s", (int)rank, calls, all->results[rank].message);
    ranks_free(all);
}

Test(door, takes_all_calls_and_keeps_none) {
    enum { CALLS = 6000 };
    uint16_t ports[RANKS];
    int      open[MOST_OPEN], before[RANKS], kept = 0;
    ranks   *all = begin(ports, open);
    for (int i = 0; i < RANKS; i++) before[i] = count_descriptors(all->children[i]);
    for (int number = 0; number < CALLS; number++) { /* the ranks are in no call: their control threads alone are there */
        call(open, number, ports);
        cr_assert(is_taken(open[number % MOST_OPEN]), "call %d was not taken: %s", number, strerror(errno));
        if (number % 500 == 499)
            for (int i = 0; i < RANKS; i++) cr_expect_leq(count_descriptors(all->children[i]), before[i] + 4, "rank %d keeps callers", i);
    }
    for (int i = 0; i < MOST_OPEN; i++) kept += !is_hung_up_on(open[i], 1000);
    cr_expect_eq(kept, 0, "%d strangers were not hung up on", kept);
    end(all, ports, open);
}

/* Who saw the fault first calls until the one who leads comes, and no longer. */
Test(door, early_callers_are_kept_waiting) {
    uint16_t ports[RANKS];
    int      open[MOST_OPEN];
    late_ns = WEFTI_SECOND_NS;
    end(begin(ports, open), ports, open);
}

/* Without a control thread calls drain it, and between calls its queue takes what comes. */
Test(door, is_drained_by_calls_where_there_is_no_thread) {
    uint16_t ports[RANKS];
    int      open[MOST_OPEN], kept = 0, *many = malloc(QUEUE * sizeof *many);
    no_thread = true;
    ranks *all = begin(ports, open);
    for (int i = 0; i < QUEUE; i++) {
        many[i] = dial(ports[0]);
        cr_assert(is_taken(many[i]), "call %d was not taken: %s", i, strerror(errno));
    }
    cr_expect(!is_hung_up_on(many[0], 50), "somebody drains the door, and this test tries nothing");
    atomic_store(&all->step, 1);
    for (int i = 0; i < QUEUE; i++) {
        kept += !is_hung_up_on(many[i], 2000);
        close(many[i]);
    }
    cr_expect_eq(kept, 0, "%d strangers were not hung up on", kept);
    free(many);
    end(all, ports, open);
}

/* --- the store of a world that follows a fault --- */

/* Joins a world of two whose rank 0 should be at a port, and whoever is there takes all calls and hangs up. */
static weft_status join_at_a_door(uint32_t epoch, uint64_t timeout_ns, uint64_t *took_ns_out) {
    wefti_place place = {.rank = 1, .size = 2, .launcher = "none", .store_ports = 1, .store_descriptor = -1, .job = "a test", .epoch = epoch};
    wefti_socket_address address = {0}; /* which the door fills in */
    wefti_fault   *fault = NULL;
    wefti_control *control = NULL;
    int32_t        mine = 0, all[2];
    wefti_door *door = wefti_door_open(&place, "127.0.0.1", &address);
    cr_assert_not_null(door);
    snprintf(place.store, sizeof place.store, "%s", wefti_socket_text(&address).text);
    cr_assert_eq(wefti_fault_create(NULL, &fault), WEFT_OK);
    uint64_t begin_ns = ranks_now();
    /* This end's own control thread is the one that drains it. */
    weft_status status = wefti_control_open(&(wefti_control_options){.host = wefti_host_system(), .place = &place, .timeout_ns = timeout_ns, .fault = fault, .door = door}, &control);
    if (status == WEFT_OK) status = wefti_control_exchange(control, "join", &mine, sizeof mine, timeout_ns, all);
    *took_ns_out = ranks_now() - begin_ns;
    wefti_control_close(control);
    wefti_fault_release(fault);
    wefti_door_release(door);
    return status;
}

/* He who was started in place of a rank 0 that died before all had joined it has its door, and waits himself to be let in. */
Test(door, that_hangs_up_on_all_is_not_the_store_that_ranks_join_after_a_fault) {
    uint64_t took_ns;
    cr_expect_eq(join_at_a_door(3, 20 * WEFTI_SECOND_NS, &took_ns), WEFT_E_PEER, "%s", weft_error_message());
    cr_expect(strstr(weft_error_message(), "rank 0 was lost, or gathers again"), "%s", weft_error_message());
    cr_expect_lt(took_ns, 2 * WEFTI_SECOND_NS, "it took %.3g s", (double)took_ns / 1e9);
}

/* At the start rank 0 may come later than others of an older job go. */
Test(door, that_hangs_up_on_all_is_called_until_the_deadline_at_the_start) {
    uint64_t took_ns;
    cr_expect_eq(join_at_a_door(0, WEFTI_SECOND_NS, &took_ns), WEFT_E_TIMEOUT, "%s", weft_error_message());
    cr_expect_geq(took_ns, WEFTI_SECOND_NS);
}

/* Survivors that go on: weft_world_shrink between real processes. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/effort.h"
#include "ranks.h"
#include "transport/handshake.h"
#include "transport/roster.h"
#include "weft/collective.h"

static const char         *wire;
static const char         *victims; /* by rank, and for each round in turn: k is killed, s stopped, . lives */
static weft_shrink_options shrink;
static int                 rounds;
static bool                no_thread, encrypts;

static weft_status open_world(weft_world **world_out) {
    return weft_world_create(&(weft_world_options){.wire = wire, .threads = {.count = 1}, .timeout_ns = 20 * (int64_t)WEFTI_SECOND_NS,
                                                   .no_control_thread = no_thread, .encrypt = encrypts},
                             world_out);
}

/* The sum of all ranks' `mine`, over a group that is made for it. */
static weft_status sum(weft_world *world, int32_t mine, int32_t *sum_out) {
    weft_group *group = NULL;
    WEFTI_TRY(weft_group_create(world, NULL, &group));
    weft_status status = weft_group_allreduce(group, &mine, sum_out, 1, WEFT_I32, WEFT_COMBINE_SUM);
    weft_group_release(group);
    return status;
}

static weft_status until_fault(weft_world *world) {
    int32_t     total;
    weft_status status;
    while ((status = sum(world, 1, &total)) == WEFT_OK) continue;
    return status;
}

/* Checks the new world, and leaves in `status` what is wrong. */
static weft_status check_world(weft_world *world, int32_t old_rank, const char *lives) {
    int32_t size = 0, rank = 0, total = 0, expected = 0;
    for (int32_t i = 0; lives[i]; i++) {
        if (lives[i] != '.') continue;
        if (i < old_rank) rank++;
        expected += 1 << i;
        size++;
    }
    if (weft_world_rank(world) != rank || weft_world_size(world) != size)
        return wefti_fail(WEFT_E_INTERNAL, "old rank %d is rank %d of %d instead of %d of %d", (int)old_rank, (int)weft_world_rank(world),
                          (int)weft_world_size(world), (int)rank, (int)size);
    WEFTI_TRY(sum(world, 1 << old_rank, &total));
    return total == expected ? WEFT_OK : wefti_fail(WEFT_E_INTERNAL, "the sum is %d instead of %d", (int)total, (int)expected);
}

/* Everyone who lives has come so far: a barrier says only that all have begun it. */
static void meet(ranks *all, int32_t count) {
    atomic_fetch_add(&all->ready, 1);
    while (atomic_load(&all->ready) < count) usleep(200);
}

/* Faults, one after another. */
static weft_status survive(ranks *all, int32_t rank) {
    weft_world *world = NULL, *next = NULL;
    weft_group *stale = NULL;
    char        lives[RANKS_MOST + 1] = "";
    int32_t     total, met = 0;
    memset(lives, '.', (size_t)all->size);
    WEFTI_TRY(open_world(&world));
    for (int round = 0; round < rounds; round++) {
        const char *fate = victims + round * all->size;
        WEFTI_TRY(weft_group_create(world, NULL, &stale));
        meet(all, met += weft_world_size(world));
        if (fate[rank] == 'k') raise(SIGKILL);
        if (fate[rank] == 's') raise(SIGSTOP);
        for (int32_t i = 0; i < all->size; i++)
            if (fate[i] != '.') lives[i] = fate[i];
        if (until_fault(world) != WEFT_E_PEER) return wefti_fail(WEFT_E_INTERNAL, "no verdict: %s", weft_error_message());
        uint64_t begin_ns = ranks_now();
        WEFTI_TRY(weft_world_shrink(world, &shrink, &next));
        uint64_t took_ns = ranks_now() - begin_ns;
        if (weft_world_rank(next) == 0) fprintf(stderr, "shrink, %s, %s: %.0f ms\n", wire, lives, (double)took_ns / 1e6);
        if (took_ns > 2 * WEFTI_SECOND_NS) return wefti_fail(WEFT_E_INTERNAL, "it took %.3g s", (double)took_ns / 1e9);
        WEFTI_TRY(check_world(next, rank, lives));
        if (weft_group_allreduce(stale, &(int32_t){1}, &total, 1, WEFT_I32, WEFT_COMBINE_SUM) != WEFT_E_PEER)
            return wefti_fail(WEFT_E_INTERNAL, "a group of the lost world works");
        weft_group_release(stale);
        WEFTI_TRY(check_world(next, rank, lives));
        weft_world_release(world);
        world = next;
    }
    weft_status status = check_world(world, rank, lives);
    weft_world_release(world);
    return status;
}

/* Kills the stopped ones once all others have ended. */
static void join_all(ranks *all, const char *lost) {
    uint64_t until_ns = ranks_now() + 40 * WEFTI_SECOND_NS;
    for (int32_t rank = 0; rank < all->size; rank++)
        while (!lost[rank] && !atomic_load(&all->results[rank].finished) && ranks_now() < until_ns) usleep(1000);
    for (int32_t rank = 0; rank < all->size; rank++)
        if (lost[rank] == 's') kill(all->children[rank], SIGKILL);
    ranks_join(all);
}

static void try_survive(int32_t size, const char *fates) {
    static const char *const wires[] = {"shm", "tcp"};
    for (size_t w = 0; w < 2; w++) {
        wire = wires[w];
        victims = fates;
        rounds = (int)(strlen(fates) / (size_t)size);
        ranks *all = ranks_start(size, survive);
        char   lost[RANKS_MOST] = "";
        for (size_t i = 0; i < strlen(fates); i++)
            if (fates[i] != '.') lost[i % (size_t)size] = fates[i];
        join_all(all, lost);
        for (int32_t rank = 0; rank < size; rank++) {
            if (lost[rank]) continue;
            cr_expect(atomic_load(&all->results[rank].finished) && all->results[rank].status == WEFT_OK, "%s, %s, rank %d: %s", wire, fates,
                      (int)rank, all->results[rank].message);
        }
        ranks_free(all);
    }
}

Test(shrink, one_of_four_is_killed) { try_survive(4, "..k."); }
Test(shrink, rank_0_is_killed) { try_survive(4, "k..."); }
Test(shrink, rank_0_and_its_successor_are_killed) { try_survive(4, "kk.."); }
Test(shrink, all_but_one_are_killed) { try_survive(3, "kk."); }
Test(shrink, fault_after_fault) { try_survive(4, "...k" "k..." ".k.."); }
Test(shrink, one_of_three_is_stopped) { try_survive(3, "s.."); }
/* Nobody hears of a rank that is stopped there, but of one that dies. */
Test(shrink, without_control_threads) {
    no_thread = true;
    try_survive(4, "k..." "..k.");
}
Test(shrink, where_ranks_encrypt) {
    if (!wefti_can_authenticate()) cr_skip_test("this build lacks libsodium");
    setenv("WEFT_SECRET", "0123456789abcdef0123456789abcdef", 1);
    encrypts = true;
    try_survive(4, "k..." "..k.");
}

/* --- deaths during the call --- */

static useconds_t dies_after_us;
static int32_t    dies;

static void *die(void *unused) {
    (void)unused;
    usleep(dies_after_us);
    raise(SIGKILL);
    return NULL;
}

/* Rank 4 dies, and another one while the others go on without it: they gather again, or shrink once more where they had all met. */
static weft_status lose_another(ranks *all, int32_t rank) {
    weft_world *world = NULL, *next = NULL;
    pthread_t   thread;
    int32_t     total = 0;
    WEFTI_TRY(open_world(&world));
    meet(all, 5);
    if (rank == 4) raise(SIGKILL);
    if (until_fault(world) != WEFT_E_PEER) return wefti_fail(WEFT_E_INTERNAL, "no verdict");
    atomic_fetch_add(&all->ready, 1);
    while (atomic_load(&all->ready) < 9) usleep(50); /* so that they call together */
    if (rank == dies && pthread_create(&thread, NULL, die, NULL) != 0) return wefti_fail(WEFT_E_INTERNAL, "no thread");
    for (weft_status status = WEFT_E_PEER; status == WEFT_E_PEER;) {
        uint64_t begin_ns = ranks_now();
        WEFTI_TRY(weft_world_shrink(world, NULL, &next));
        uint64_t took_ns = ranks_now() - begin_ns;
        weft_world_release(world);
        world = next;
        if (took_ns > 2 * WEFTI_SECOND_NS + dies_after_us * UINT64_C(1000)) return wefti_fail(WEFT_E_INTERNAL, "it took %.3g s", (double)took_ns / 1e9);
        while ((status = sum(world, 1 << rank, &total)) == WEFT_OK && weft_world_size(world) > 3) continue;
        if (status != WEFT_OK && status != WEFT_E_PEER) return status;
    }
    WEFTI_TRY(check_world(world, rank, dies == 0 ? "k...k" : dies == 1 ? ".k..k" : "..k.k"));
    weft_world_release(world);
    return WEFT_OK;
}

Test(shrink, another_one_dies_meanwhile) {
    static const char *const names[] = {"shm", "tcp"};
    for (int n = 0; n < (UNDER_ADDRESS_SANITIZER || UNDER_THREAD_SANITIZER ? 6 : 18); n++) {
        wire = names[n % 2];
        dies = n / 2 % 3; /* the one who leads; others */
        dies_after_us = (useconds_t)(n / 6 * 7000 + n % 6 * 1300);
        ranks *all = ranks_start(5, lose_another);
        ranks_join(all);
        for (int32_t rank = 0; rank < 4; rank++)
            if (rank != dies)
                cr_expect(atomic_load(&all->results[rank].finished) && all->results[rank].status == WEFT_OK, "%s, rank %d died after %d us, rank %d: %s", wire,
                          (int)dies, (int)dies_after_us, (int)rank, all->results[rank].message);
        ranks_free(all);
    }
}

/* --- how long it takes --- */

enum { RUNS = 9 };
static uint64_t *took; /* shared: [RUNS], by the slowest rank */
static int       run_number;

static weft_status shrink_once(ranks *all, int32_t rank) {
    weft_world *world = NULL, *next = NULL;
    WEFTI_TRY(open_world(&world));
    meet(all, 4);
    if (rank == 0) raise(SIGKILL);
    if (until_fault(world) != WEFT_E_PEER) return wefti_fail(WEFT_E_INTERNAL, "no verdict");
    uint64_t begin_ns = ranks_now();
    WEFTI_TRY(weft_world_shrink(world, NULL, &next));
    uint64_t        took_ns = ranks_now() - begin_ns;
    _Atomic uint64_t *most = (_Atomic uint64_t *)&took[run_number];
    for (uint64_t before = atomic_load(most); before < took_ns && !atomic_compare_exchange_weak(most, &before, took_ns);) continue;
    weft_world_release(next);
    weft_world_release(world);
    return WEFT_OK;
}

static int by_length(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

Test(shrink, takes_less_than_2_s) {
    static const char *const names[] = {"shm", "tcp"};
    took = mmap(NULL, RUNS * sizeof *took, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(took, MAP_FAILED);
    for (int w = 0; w < 2; w++) {
        wire = names[w];
        memset(took, 0, RUNS * sizeof *took);
        for (run_number = 0; run_number < RUNS; run_number++) {
            ranks *all = ranks_start(4, shrink_once);
            ranks_join(all);
            for (int32_t rank = 1; rank < 4; rank++) cr_expect_eq(all->results[rank].status, WEFT_OK, "rank %d: %s", (int)rank, all->results[rank].message);
            ranks_free(all);
        }
        qsort(took, RUNS, sizeof *took, by_length);
        fprintf(stderr, "rank 0 of 4 dies, %s: the others go on after %.0f ms (median of %d runs; %.0f to %.0f)\n", wire, (double)took[RUNS / 2] / 1e6, RUNS,
                (double)took[0] / 1e6, (double)took[RUNS - 1] / 1e6);
        cr_expect(took[RUNS - 1] > 0 && took[RUNS - 1] < 2 * WEFTI_SECOND_NS, "%.3g s", (double)took[RUNS - 1] / 1e9);
    }
    munmap(took, RUNS * sizeof *took);
}

/* --- what is refused --- */

static weft_status expect(weft_status status, weft_status expected, const char *text) {
    if (status == expected && strstr(weft_error_message(), text)) return WEFT_OK;
    return wefti_fail(WEFT_E_INTERNAL, "%s instead of %s with '%s': %.300s", weft_status_name(status), weft_status_name(expected), text,
                      weft_error_message());
}

static weft_status refuse_without_fault(ranks *all, int32_t rank) {
    weft_world *world = NULL, *next = NULL;
    int32_t     total;
    (void)all, (void)rank;
    WEFTI_TRY(open_world(&world));
    WEFTI_TRY(expect(weft_world_shrink(world, NULL, &next), WEFT_E_STATE, "nothing has happened"));
    WEFTI_TRY(expect(weft_world_shrink(world, &(weft_shrink_options){.least = -1}, &next), WEFT_E_INVALID, "least -1"));
    WEFTI_TRY(expect(weft_world_shrink(world, &(weft_shrink_options){.least = 3}, &next), WEFT_E_INVALID, "2 ranks"));
    WEFTI_TRY(expect(weft_world_shrink(world, &(weft_shrink_options){.patience_ns = -1}, &next), WEFT_E_INVALID, "patience_ns -1"));
    WEFTI_TRY(expect(weft_world_shrink(NULL, NULL, &next), WEFT_E_INVALID, "NULL"));
    if (next) return wefti_fail(WEFT_E_INTERNAL, "a world came of it");
    WEFTI_TRY(sum(world, 1, &total)); /* goes on as if nothing had been asked */
    weft_world_release(world);
    return WEFT_OK;
}
Test(shrink, refuses_a_world_without_a_fault) {
    wire = "tcp";
    ranks *all = ranks_start(2, refuse_without_fault);
    ranks_join(all);
    for (int i = 0; i < 2; i++) cr_expect_eq(all->results[i].status, WEFT_OK, "%s", all->results[i].message);
    ranks_free(all);
}

static weft_status refuse_too_few(ranks *all, int32_t rank) {
    weft_world *world = NULL, *next = NULL;
    WEFTI_TRY(open_world(&world));
    meet(all, 3);
    if (rank == 2) raise(SIGKILL);
    if (until_fault(world) != WEFT_E_PEER) return wefti_fail(WEFT_E_INTERNAL, "no verdict");
    weft_status status = weft_world_shrink(world, &(weft_shrink_options){.least = 3, .patience_ns = (int64_t)WEFTI_SECOND_NS / 2}, &next);
    /* The one that leads knows how many are left; who called it finds that it has gone, and that it is alone. */
    WEFTI_TRY(expect(status, WEFT_E_PEER, ""));
    meet(all, 5);
    WEFTI_TRY(weft_world_shrink(world, &(weft_shrink_options){.least = 2}, &next)); /* asked again for less, they go on */
    WEFTI_TRY(check_world(next, rank, "..k"));
    weft_world_release(next);
    weft_world_release(world);
    return WEFT_OK;
}
Test(shrink, refuses_fewer_than_are_to_go_on) {
    wire = "shm";
    ranks *all = ranks_start(3, refuse_too_few);
    ranks_join(all);
    for (int i = 0; i < 2; i++) cr_expect_eq(all->results[i].status, WEFT_OK, "rank %d: %s", i, all->results[i].message);
    ranks_free(all);
}

/* Rank 1 is stopped and goes on when rank 0 has been refused: neither may go on alone. */
static weft_status refuse_half(ranks *all, int32_t rank) {
    weft_world *world = NULL, *next = NULL;
    WEFTI_TRY(open_world(&world));
    meet(all, 2);
    if (rank == 1) raise(SIGSTOP);
    if (until_fault(world) != WEFT_E_PEER) return wefti_fail(WEFT_E_INTERNAL, "no verdict");
    weft_status status = weft_world_shrink(world, &(weft_shrink_options){.patience_ns = (int64_t)WEFTI_SECOND_NS / 2}, &next);
    WEFTI_TRY(expect(status, WEFT_E_PEER, rank == 0 ? "1 of 2 ranks" : "was given up by the others"));
    if (rank == 0) kill(all->children[1], SIGCONT);
    weft_world_release(world);
    return WEFT_OK;
}
Test(shrink, refuses_half_of_those_who_may_be_alive) {
    wire = "tcp";
    ranks *all = ranks_start(2, refuse_half);
    ranks_join(all);
    for (int i = 0; i < 2; i++) cr_expect_eq(all->results[i].status, WEFT_OK, "rank %d: %s", i, all->results[i].message);
    ranks_free(all);
}

/* Rank 2 lives and does not call. */
static weft_status leave_behind(ranks *all, int32_t rank) {
    weft_world *world = NULL, *next = NULL;
    WEFTI_TRY(open_world(&world));
    meet(all, 4);
    if (rank == 1) raise(SIGKILL);
    if (until_fault(world) != WEFT_E_PEER) return wefti_fail(WEFT_E_INTERNAL, "no verdict");
    if (rank != 2) {
        WEFTI_TRY(weft_world_shrink(world, &(weft_shrink_options){.patience_ns = (int64_t)WEFTI_SECOND_NS / 2}, &next));
        WEFTI_TRY(check_world(next, rank, ".ks."));
        meet(all, 7);
    } else {
        meet(all, 7);
        WEFTI_TRY(expect(weft_world_shrink(world, &(weft_shrink_options){.patience_ns = (int64_t)WEFTI_SECOND_NS / 4}, &next), WEFT_E_PEER,
                         "more than half"));
    }
    atomic_fetch_add(&all->step, 1);
    while (atomic_load(&all->step) < 3) usleep(1000); /* nobody ends before the late one was refused */
    if (rank == 2) { /* once it is alone it is refused again: the others may have done all the work */
        while (!atomic_load(&all->results[0].finished) || !atomic_load(&all->results[3].finished)) usleep(1000);
        usleep(50000);
        WEFTI_TRY(expect(weft_world_shrink(world, NULL, &next), WEFT_E_PEER, "was left behind before"));
    }
    weft_world_release(next);
    weft_world_release(world);
    return WEFT_OK;
}
Test(shrink, leaves_behind_who_does_not_come) {
    wire = "tcp";
    ranks *all = ranks_start(4, leave_behind);
    ranks_join(all);
    for (int i = 0; i < 4; i++)
        if (i != 1) cr_expect_eq(all->results[i].status, WEFT_OK, "rank %d: %s", i, all->results[i].message);
    ranks_free(all);
}

/* --- the decision by itself --- */

static wefti_roster_do ask(wefti_roster *roster, uint64_t now_ns, int32_t *leader_out) {
    wefti_roster_do what = WEFTI_ROSTER_FAIL;
    weft_status     status = wefti_roster_progress(roster, now_ns, &what, leader_out);
    cr_expect_eq(status != WEFT_OK, what == WEFTI_ROSTER_FAIL);
    return what;
}

Test(roster, the_lowest_that_lives_leads) {
    uint8_t      seats[4] = {WEFTI_SEAT_SILENT, WEFTI_SEAT_EXPECTED, WEFTI_SEAT_EXPECTED, WEFTI_SEAT_EXPECTED};
    wefti_roster roster;
    int32_t      leader = -1;
    wefti_roster_open(&roster, &(wefti_roster_options){.me = 2, .seats = 4, .least = 1, .patience_ns = 100}, seats);
    cr_expect_eq(ask(&roster, 10, &leader), WEFTI_ROSTER_CALL);
    cr_expect_eq(leader, 1);
    wefti_roster_lost(&roster, 1);
    cr_expect_eq(ask(&roster, 20, &leader), WEFTI_ROSTER_LEAD);
    wefti_roster_here(&roster, 3);
    cr_expect_eq(ask(&roster, 30, &leader), WEFTI_ROSTER_DECIDE, "2 of 3 who may be alive, and nobody is expected");
}

Test(roster, half_do_not_go_on) {
    uint8_t      seats[4] = {WEFTI_SEAT_EXPECTED, WEFTI_SEAT_EXPECTED, WEFTI_SEAT_EXPECTED, WEFTI_SEAT_SILENT};
    wefti_roster roster;
    int32_t      leader = -1;
    wefti_roster_open(&roster, &(wefti_roster_options){.me = 0, .seats = 4, .least = 1, .patience_ns = 100}, seats);
    wefti_roster_here(&roster, 1);
    cr_expect_eq(ask(&roster, 10, &leader), WEFTI_ROSTER_LEAD);
    cr_expect_eq(ask(&roster, 109, &leader), WEFTI_ROSTER_LEAD);
    cr_expect_eq(ask(&roster, 110, &leader), WEFTI_ROSTER_FAIL, "2 of 4");
    wefti_roster_lost(&roster, 3);
    cr_expect_eq(ask(&roster, 111, &leader), WEFTI_ROSTER_DECIDE, "2 of 3");
}

/* Leads with 2 of 3 who were there, and waits for a newcomer longer than for survivors. */
static void lead_with_newcomers(wefti_roster *roster, uint8_t *seats) {
    int32_t leader = -1;
    wefti_roster_open(roster, &(wefti_roster_options){.me = 1, .seats = 3, .least = 1, .patience_ns = 100, .replacement_ns = 500}, seats);
    wefti_roster_here(roster, 2);
    wefti_roster_lost(roster, 0);
    cr_expect_eq(ask(roster, 10, &leader), WEFTI_ROSTER_LEAD);
    cr_expect_eq(ask(roster, 509, &leader), WEFTI_ROSTER_LEAD);
    cr_expect_eq(leader, 1);
}
Test(roster, newcomers_are_waited_for) {
    uint8_t      seats[3] = {WEFTI_SEAT_EXPECTED, WEFTI_SEAT_EXPECTED, WEFTI_SEAT_EXPECTED};
    wefti_roster roster;
    int32_t      leader = -1;
    lead_with_newcomers(&roster, seats);
    cr_expect_eq(ask(&roster, 510, &leader), WEFTI_ROSTER_DECIDE, "but not for ever");
}
Test(roster, nobody_waits_for_more_newcomers_than_come) {
    uint8_t      seats[3] = {WEFTI_SEAT_EXPECTED, WEFTI_SEAT_EXPECTED, WEFTI_SEAT_EXPECTED};
    wefti_roster roster;
    int32_t      leader = -1;
    lead_with_newcomers(&roster, seats);
    roster.gone = 1;
    cr_expect_eq(ask(&roster, 509, &leader), WEFTI_ROSTER_DECIDE, "the launcher says that none will");
    roster.gone = 0;
    wefti_roster_here(&roster, 0);
    cr_expect_eq(ask(&roster, 509, &leader), WEFTI_ROSTER_DECIDE, "it is there");
    cr_expect_eq(leader, 1, "a newcomer leads nothing");
}
Test(roster, a_late_newcomer_is_waited_for) {
    uint8_t      seats[3] = {WEFTI_SEAT_EMPTY, WEFTI_SEAT_EXPECTED, WEFTI_SEAT_EXPECTED};
    wefti_roster roster;
    int32_t      leader = -1;
    wefti_roster_open(&roster, &(wefti_roster_options){.me = 1, .seats = 3, .least = 1, .patience_ns = 100, .replacement_ns = 500, .newcomers = 1}, seats);
    wefti_roster_here(&roster, 2);
    cr_expect_eq(ask(&roster, 10, &leader), WEFTI_ROSTER_LEAD, "it has said that it waits");
    wefti_roster_here(&roster, 0);
    cr_expect_eq(ask(&roster, 11, &leader), WEFTI_ROSTER_DECIDE);
}

Test(roster, a_leader_that_never_answers_is_passed_over) {
    uint8_t      seats[3] = {WEFTI_SEAT_EXPECTED, WEFTI_SEAT_EXPECTED, WEFTI_SEAT_EXPECTED};
    wefti_roster roster;
    int32_t      leader = -1;
    wefti_roster_open(&roster, &(wefti_roster_options){.me = 1, .seats = 3, .least = 1, .patience_ns = 100}, seats);
    cr_expect_eq(ask(&roster, 10, &leader), WEFTI_ROSTER_CALL);
    cr_expect_eq(ask(&roster, 110 + WEFTI_SECOND_NS, &leader), WEFTI_ROSTER_CALL);
    cr_expect_eq(ask(&roster, 111 + WEFTI_SECOND_NS, &leader), WEFTI_ROSTER_LEAD);
    cr_expect_eq(seats[0], WEFTI_SEAT_SILENT, "it may be alive");
    cr_expect_eq(seats[1], WEFTI_SEAT_HERE);
}

/* --- where somebody can end processes --- */

static void lead_with_fence(wefti_roster *roster, uint8_t *seats, int32_t n) {
    int32_t leader = -1;
    for (int32_t i = 0; i < n; i++) seats[i] = WEFTI_SEAT_EXPECTED;
    wefti_roster_open(roster, &(wefti_roster_options){.me = 0, .seats = n, .least = 1, .patience_ns = 2 * WEFTI_SECOND_NS, .fence = true}, seats);
    cr_expect_eq(ask(roster, 10, &leader), WEFTI_ROSTER_LEAD);
}

Test(roster, one_that_lives_and_does_not_come_is_ended_and_then_lost) {
    uint8_t      seats[3];
    wefti_roster roster;
    int32_t      leader = -1;
    lead_with_fence(&roster, seats, 3);
    wefti_roster_here(&roster, 1);
    cr_expect_eq(ask(&roster, 9 + 2 * WEFTI_SECOND_NS, &leader), WEFTI_ROSTER_LEAD, "patience");
    cr_expect_eq(ask(&roster, 10 + 2 * WEFTI_SECOND_NS, &leader), WEFTI_ROSTER_FENCE);
    cr_expect_eq(ask(&roster, 11 + 2 * WEFTI_SECOND_NS, &leader), WEFTI_ROSTER_LEAD, "said once, and its end is waited for");
    wefti_roster_lost(&roster, 2);
    cr_expect_eq(ask(&roster, 12 + 2 * WEFTI_SECOND_NS, &leader), WEFTI_ROSTER_DECIDE);
}

Test(roster, one_of_two_goes_on_once_the_other_is_ended) {
    uint8_t      seats[2];
    wefti_roster roster;
    int32_t      leader = -1;
    lead_with_fence(&roster, seats, 2);
    seats[1] = WEFTI_SEAT_SILENT;
    cr_expect_eq(ask(&roster, 9 + WEFTI_SECOND_NS, &leader), WEFTI_ROSTER_LEAD, "it may be found to have ended");
    cr_expect_eq(ask(&roster, 10 + WEFTI_SECOND_NS, &leader), WEFTI_ROSTER_FENCE, "nobody is expected any more");
    wefti_roster_lost(&roster, 1);
    cr_expect_eq(ask(&roster, 11 + WEFTI_SECOND_NS, &leader), WEFTI_ROSTER_DECIDE);
}

Test(roster, who_is_not_ended_counts_as_before) {
    uint8_t      seats[2];
    wefti_roster roster;
    int32_t      leader = -1;
    lead_with_fence(&roster, seats, 2);
    cr_expect_eq(ask(&roster, 10 + 2 * WEFTI_SECOND_NS, &leader), WEFTI_ROSTER_FENCE);
    cr_expect_eq(ask(&roster, 9 + 5 * WEFTI_SECOND_NS, &leader), WEFTI_ROSTER_LEAD);
    cr_expect_eq(ask(&roster, 10 + 5 * WEFTI_SECOND_NS, &leader), WEFTI_ROSTER_FAIL, "1 of 2");
}

Test(roster, fewer_than_half_end_nobody) {
    uint8_t      seats[3];
    wefti_roster roster;
    int32_t      leader = -1;
    lead_with_fence(&roster, seats, 3);
    cr_expect_eq(ask(&roster, 10 + 2 * WEFTI_SECOND_NS, &leader), WEFTI_ROSTER_FAIL, "1 of 3");
}

/* A newcomer may sit in front of the one that is to lead; who waits in vain gives up the lowest, as all do. */
Test(roster, a_leader_that_lets_nobody_in_is_passed_over_after_patience) {
    uint8_t      seats[3] = {WEFTI_SEAT_EXPECTED, WEFTI_SEAT_EXPECTED, WEFTI_SEAT_EXPECTED};
    wefti_roster roster;
    int32_t      leader = -1;
    wefti_roster_open(&roster, &(wefti_roster_options){.me = 2, .seats = 3, .least = 1, .patience_ns = 100, .replacement_ns = 500}, seats);
    cr_expect_eq(ask(&roster, 10, &leader), WEFTI_ROSTER_CALL);
    wefti_roster_pass(&roster);
    cr_expect_eq(ask(&roster, 110, &leader), WEFTI_ROSTER_CALL);
    cr_expect_eq(leader, 1, "the next one is called meanwhile");
    cr_expect_eq(ask(&roster, 111, &leader), WEFTI_ROSTER_CALL);
    cr_expect_eq(seats[0], WEFTI_SEAT_SILENT);
    cr_expect_eq(seats[1], WEFTI_SEAT_EXPECTED);
    cr_expect_eq(leader, 1);
    roster.let_in = true;
    cr_expect_eq(ask(&roster, 111 + 500, &leader), WEFTI_ROSTER_CALL, "it lets others in, and may wait as long as they");
}

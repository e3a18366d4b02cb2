/* Faults: whatever happens to a rank, every other one names it and none hangs. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ranks.h"
#include "transport/fault.h"

/* --- the fault state by itself --- */

Test(fault, the_first_verdict_stays) {
    wefti_fault *fault = NULL;
    cr_assert_eq(wefti_fault_create(NULL, &fault), WEFT_OK);
    cr_expect_eq(wefti_fault_status(fault), WEFT_OK);
    cr_expect_eq(wefti_fault_rank(fault), -1);
    cr_expect_str_eq(wefti_fault_cause(fault), "");
    wefti_fault_raise(fault, WEFT_E_NO_MEMORY, 3, "no memory for it");
    wefti_fault_raise(fault, WEFT_E_PEER, 1, "later");
    wefti_fault_suspect(fault, 2, "later still");
    cr_expect_eq(wefti_fault_status(fault), WEFT_E_NO_MEMORY);
    cr_expect_eq(wefti_fault_rank(fault), 3);
    cr_expect(strstr(weft_error_message(), "no memory for it"));
    wefti_fault_release(fault);
    wefti_fault_release(NULL);
    cr_expect_eq(wefti_fault_status(NULL), WEFT_OK);
}

static int32_t told_of = -1;
static void    note(void *context, weft_status status, int32_t rank, const char *cause) {
    (void)context, (void)status, (void)cause;
    told_of = rank;
}

Test(fault, a_suspicion_waits_for_news) {
    wefti_fault *fault = NULL;
    cr_assert_eq(wefti_fault_create(NULL, &fault), WEFT_OK);
    wefti_fault_set_hooks(fault, &(wefti_fault_hooks){.decided = note, .grace_ns = 100 * WEFTI_MILLISECOND_NS});
    wefti_fault_suspect(fault, 4, "its link broke");
    cr_expect_eq(wefti_fault_status(fault), WEFT_OK);
    wefti_fault_learn(fault, WEFT_E_PEER, 2, "it was killed"); /* the news: 4 left because 2 died */
    cr_expect_eq(wefti_fault_status(fault), WEFT_E_PEER);
    cr_expect_eq(wefti_fault_rank(fault), 2);
    cr_expect_eq(told_of, -1, "news are not passed back");
    wefti_fault_release(fault);
    /* Without news, the suspect it is. */
    cr_assert_eq(wefti_fault_create(NULL, &fault), WEFT_OK);
    wefti_fault_set_hooks(fault, &(wefti_fault_hooks){.decided = note, .grace_ns = 20 * WEFTI_MILLISECOND_NS});
    wefti_fault_suspect(fault, 4, "its link broke");
    cr_expect_eq(wefti_fault_status(fault), WEFT_OK);
    usleep(30000);
    cr_expect_eq(wefti_fault_status(fault), WEFT_E_PEER);
    cr_expect_eq(wefti_fault_rank(fault), 4);
    cr_expect_eq(told_of, 4);
    cr_expect(strstr(weft_error_message(), "rank 4") && strstr(weft_error_message(), "its link broke"), "%s",
              weft_error_message());
    wefti_fault_release(fault);
}

/* Somebody to ask, who answers when he is heard, or never. */
typedef struct asked {
    wefti_fault *fault;
    int          questions;
    bool         reached, answers, firm;
} asked;
static bool ask(void *context, weft_status status, int32_t rank, const char *cause, bool firm) {
    asked *self = context;
    (void)status, (void)rank, (void)cause;
    self->questions++;
    self->firm = firm;
    return self->reached;
}
static void answer(void *context) {
    asked *self = context;
    if (self->answers && self->questions) wefti_fault_learn(self->fault, WEFT_E_PEER, 5, "it was first");
}

static wefti_fault *open_asking(asked *self) {
    wefti_fault *fault = NULL;
    cr_assert_eq(wefti_fault_create(NULL, &fault), WEFT_OK);
    self->fault = fault;
    told_of = -1;
    wefti_fault_set_hooks(fault, &(wefti_fault_hooks){.decided = note, .ask = ask, .listen = answer, .context = self,
                                                      .grace_ns = 20 * WEFTI_MILLISECOND_NS, .patience_ns = 60 * WEFTI_MILLISECOND_NS});
    return fault;
}

static void expect_verdict(wefti_fault *fault, weft_status status, int32_t rank, int32_t told) {
    cr_expect_eq(wefti_fault_status(fault), status);
    cr_expect_eq(wefti_fault_rank(fault), rank, "rank %d", (int)wefti_fault_rank(fault));
    cr_expect_eq(told_of, told, "%d was told of", (int)told_of);
    wefti_fault_release(fault);
}

Test(fault, one_rank_decides_for_all) {
    asked        self = {.reached = true, .answers = true};
    wefti_fault *fault = open_asking(&self);
    wefti_fault_raise(fault, WEFT_E_MISMATCH, 1, "found here");
    cr_expect(self.questions == 1 && self.firm);
    expect_verdict(fault, WEFT_E_PEER, 5, -1);

    self = (asked){.reached = true, .answers = true};
    fault = open_asking(&self);
    wefti_fault_suspect(fault, 1, "its link broke");
    wefti_fault_suspect(fault, 2, "its link, too");
    cr_expect(self.questions == 1 && !self.firm);
    expect_verdict(fault, WEFT_E_PEER, 5, -1);
}

Test(fault, who_gets_no_answer_decides_alone) {
    asked        self = {.reached = true};
    wefti_fault *fault = open_asking(&self);
    uint64_t     began_ns = wefti_host_now(wefti_host_system());
    wefti_fault_raise(fault, WEFT_E_MISMATCH, 1, "found here");
    cr_expect_geq(wefti_host_now(wefti_host_system()), began_ns + 60 * WEFTI_MILLISECOND_NS);
    expect_verdict(fault, WEFT_E_MISMATCH, 1, 1);

    self = (asked){.reached = true};
    fault = open_asking(&self);
    wefti_fault_suspect(fault, 1, "its link broke");
    usleep(30000); /* longer than the grace that it would give itself */
    cr_expect_eq(wefti_fault_status(fault), WEFT_OK);
    cr_expect(wefti_fault_settle(fault));
    usleep(40000);
    cr_expect(!wefti_fault_settle(fault));
    expect_verdict(fault, WEFT_E_PEER, 1, 1);

    self = (asked){.reached = false};
    fault = open_asking(&self);
    wefti_fault_suspect(fault, 1, "its link broke");
    usleep(30000);
    expect_verdict(fault, WEFT_E_PEER, 1, 1);
}

/* --- real ranks --- */

typedef struct fault_setup {
    const char *wire;
    int32_t     size, victim;
    bool        no_thread;
    bool        rude; /* survivors end without a word, as programs do that exit on error */
} fault_setup;
static fault_setup setup;

/* Allreduces until something is wrong; the victim waits to be killed in the middle of it. */
static weft_status work_until_the_end(ranks *all, int32_t rank) {
    enum { COUNT = 100000 };
    wefti_transport *transport = NULL;
    weft_status      status =
        wefti_transport_open(&(wefti_transport_options){.wire = setup.wire, .no_control_thread = setup.no_thread}, &transport);
    float *values = calloc(COUNT, sizeof *values);
    bool   counted = false;
    for (int step = 0; status == WEFT_OK; step++) {
        wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .send = values, .receive = values,
                                      .count = step % 3 ? COUNT : 3};
        if (rank == setup.victim && step == 50)
            while (true) pause(); /* silent, with the others' messages unread */
        status = wefti_collective_run(transport->group, &call);
        if (step == 40 && !counted) {
            counted = true;
            atomic_fetch_add(&all->ready, 1);
        }
    }
    all->results[rank].fault_rank = transport ? wefti_fault_rank(transport->fault) : -1;
    free(values);
    if (setup.rude) return status; /* and _exit */
    wefti_transport_close(transport);
    return status;
}

/* Every other rank gives the dead one's number within so long, also on a machine that is busy. */
#define LIMIT_S 5.0

static void kill_one(const fault_setup *given) {
    setup = *given;
    ranks *all = ranks_start(setup.size, work_until_the_end);
    ranks_wait_ready(all, setup.size);
    usleep(20000);
    all->wrecked_ns = ranks_now();
    kill(all->children[setup.victim], SIGKILL);
    ranks_join(all);
    for (int32_t rank = 0; rank < setup.size; rank++) {
        const rank_result *result = &all->results[rank];
        if (rank == setup.victim) continue;
        double took_s = (double)(result->at_ns - all->wrecked_ns) / 1e9;
        char   named[32];
        snprintf(named, sizeof named, "rank %d", (int)setup.victim);
        cr_expect(atomic_load(&result->finished) && result->status == WEFT_E_PEER && result->fault_rank == setup.victim,
                  "%s, rank %d of %d, victim %d: %s, blames %d: %s", setup.wire, (int)rank, (int)setup.size,
                  (int)setup.victim, weft_status_name(result->status), (int)result->fault_rank, result->message);
        cr_expect(strstr(result->message, named), "not named: %s", result->message);
        cr_expect(took_s < LIMIT_S, "rank %d took %g s", (int)rank, took_s);
    }
    ranks_free(all);
}

Test(fault, a_killed_rank_is_named_over_shm) {
    for (int32_t victim = 0; victim < 3; victim++) kill_one(&(fault_setup){.wire = "shm", .size = 3, .victim = victim});
    kill_one(&(fault_setup){.wire = "shm", .size = 2, .victim = 1});
}
Test(fault, a_killed_rank_is_named_over_tcp) {
    for (int32_t victim = 0; victim < 3; victim++) kill_one(&(fault_setup){.wire = "tcp", .size = 3, .victim = victim});
    kill_one(&(fault_setup){.wire = "tcp", .size = 2, .victim = 0});
}
Test(fault, a_killed_rank_is_named_without_control_threads) {
    kill_one(&(fault_setup){.wire = "shm", .size = 3, .victim = 0, .no_thread = true});
    kill_one(&(fault_setup){.wire = "tcp", .size = 3, .victim = 2, .no_thread = true});
}
/* Survivors that learn of it leave at once; the slower ones must not blame them. */
Test(fault, nobody_blames_a_survivor) {
    for (int round = 0; round < 6; round++)
        kill_one(&(fault_setup){.wire = round % 2 ? "tcp" : "shm", .size = 4, .victim = round % 4, .rude = true});
}

static weft_status be_idle_until_the_end(ranks *all, int32_t rank) {
    wefti_transport *transport = NULL;
    WEFTI_TRY(wefti_transport_open(NULL, &transport));
    atomic_fetch_add(&all->ready, 1);
    if (rank == 1) raise(SIGSTOP);
    weft_status status;
    uint64_t    until_ns = ranks_now() + 20 * WEFTI_SECOND_NS;
    while ((status = wefti_fault_status(transport->fault)) == WEFT_OK && ranks_now() < until_ns) usleep(1000);
    all->results[rank].fault_rank = wefti_fault_rank(transport->fault);
    wefti_transport_close(transport);
    return status;
}

Test(fault, a_stopped_rank_is_found_by_its_silence) {
    ranks   *all = ranks_start(3, be_idle_until_the_end);
    uint64_t since_ns;
    ranks_wait_ready(all, 3);
    since_ns = ranks_now();
    while (!atomic_load(&all->results[0].finished) || !atomic_load(&all->results[2].finished)) {
        cr_assert(ranks_now() - since_ns < 20 * WEFTI_SECOND_NS, "nobody noticed");
        usleep(1000);
    }
    kill(all->children[1], SIGKILL);
    ranks_join(all);
    for (int32_t rank = 0; rank < 3; rank += 2) {
        cr_expect_eq(all->results[rank].status, WEFT_E_PEER, "%s", all->results[rank].message);
        cr_expect_eq(all->results[rank].fault_rank, 1);
        cr_expect(strstr(all->results[rank].message, "silent"), "%s", all->results[rank].message);
        cr_expect(all->results[rank].at_ns - since_ns < 5 * WEFTI_SECOND_NS, "rank %d took %g s", (int)rank,
                  (double)(all->results[rank].at_ns - since_ns) / 1e9);
    }
    ranks_free(all);
}

static weft_status fail_on_one(ranks *all, int32_t rank) {
    wefti_transport *transport = NULL;
    WEFTI_TRY(wefti_transport_open(NULL, &transport));
    if (rank == 2) {
        usleep(50000);
        wefti_transport_fail(transport, WEFT_E_CORRUPT, "images.gz ends early");
    }
    wefti_collective_call call = {.kind = WEFTI_BARRIER};
    weft_status           status = WEFT_OK;
    for (int i = 0; i < 1000 && status == WEFT_OK; i++) status = wefti_collective_run(transport->group, &call);
    all->results[rank].fault_rank = wefti_fault_rank(transport->fault);
    wefti_transport_close(transport);
    return status;
}

Test(fault, a_rank_that_gives_up_tells_why) {
    ranks *all = ranks_start(3, fail_on_one);
    ranks_join(all);
    for (int32_t rank = 0; rank < 3; rank++) {
        cr_expect_eq(all->results[rank].status, WEFT_E_CORRUPT, "rank %d: %s: %s", (int)rank,
                     weft_status_name(all->results[rank].status), all->results[rank].message);
        cr_expect(strstr(all->results[rank].message, "rank 2: images.gz ends early"), "%s", all->results[rank].message);
        cr_expect_eq(all->results[rank].fault_rank, 2);
    }
    ranks_free(all);
}

/* --- leaving --- */

static int32_t leaver = 1;

static weft_status leave_early(ranks *all, int32_t rank) {
    wefti_transport *transport = NULL;
    WEFTI_TRY(wefti_transport_open(&(wefti_transport_options){.wire = setup.wire}, &transport));
    weft_status status = WEFT_OK;
    if (rank != leaver) { /* the others go on with what needs no rank that left */
        int32_t first = leaver == 0 ? 1 : 0, last = leaver == 2 ? 1 : 2;
        usleep(300000);
        status = wefti_fault_status(transport->fault);
        uint64_t      value = 5;
        wefti_wire_op op = rank == first ? wefti_wire_send(last, 9, &value, 8) : wefti_wire_recv(first, 9, &value, 8);
        op.flags = WEFTI_WIRE_SILENT;
        if (status == WEFT_OK) status = wefti_wire_post(transport->wire, &op);
        while (status == WEFT_OK && !op.done) {
            status = wefti_wire_progress(transport->wire, wefti_host_now(transport->host));
            if (status == WEFT_OK) status = wefti_fault_status(transport->fault);
        }
        if (status == WEFT_OK) status = op.status;
    }
    (void)all;
    wefti_transport_close(transport);
    return status;
}

static void expect_no_fault(const char *wire, int32_t who) {
    setup.wire = wire;
    leaver = who;
    ranks *all = ranks_start(3, leave_early);
    ranks_join(all);
    for (int32_t rank = 0; rank < 3; rank++)
        cr_expect_eq(all->results[rank].status, WEFT_OK, "%s, rank %d: %s", wire, (int)rank, all->results[rank].message);
    ranks_free(all);
}

Test(fault, leaving_in_order_is_none) {
    expect_no_fault("shm", 1);
    expect_no_fault("tcp", 1);
    expect_no_fault("tcp", 0); /* which takes the store and the control channel with it */
}

static weft_status wait_for_who_has_left(ranks *all, int32_t rank) {
    wefti_transport *transport = NULL;
    WEFTI_TRY(wefti_transport_open(&(wefti_transport_options){.wire = setup.wire}, &transport));
    weft_status status = WEFT_OK;
    if (rank != leaver) {
        wefti_collective_call call = {.kind = WEFTI_BARRIER};
        status = wefti_collective_run(transport->group, &call);
        all->results[rank].fault_rank = wefti_fault_rank(transport->fault);
    }
    wefti_transport_close(transport);
    return status;
}

static weft_status exchange_with_who_has_left(ranks *all, int32_t rank) {
    wefti_transport *transport = NULL;
    WEFTI_TRY(wefti_transport_open(&(wefti_transport_options){.wire = setup.wire}, &transport));
    weft_status status = WEFT_OK;
    int32_t     numbers[3];
    if (rank != leaver) {
        status = wefti_transport_exchange(transport, "numbers", &rank, sizeof rank, numbers);
        all->results[rank].fault_rank = wefti_fault_rank(transport->fault);
    }
    wefti_transport_close(transport);
    return status;
}

/* All who wait for the rank that left know it long before any deadline. */
static void expect_left(rank_function wait, const char *wire, int32_t who) {
    setup.wire = wire;
    leaver = who;
    uint64_t since_ns = ranks_now();
    ranks   *all = ranks_start(3, wait);
    ranks_join(all);
    cr_expect_eq(all->results[who].status, WEFT_OK, "%s: %s", wire, all->results[who].message);
    for (int32_t rank = 0; rank < 3; rank++) {
        const rank_result *result = &all->results[rank];
        if (rank == who) continue;
        cr_expect(result->status == WEFT_E_PEER && result->fault_rank == who, "%s, rank %d of those that wait for %d: %s, blames "
                  "%d: %s", wire, (int)rank, (int)who, weft_status_name(result->status), (int)result->fault_rank,
                  result->message);
        cr_expect(strstr(result->message, "left"), "%s, rank %d: %s", wire, (int)rank, result->message);
        cr_expect(result->at_ns - since_ns < 10 * WEFTI_SECOND_NS, "%s, rank %d took %g s", wire, (int)rank,
                  (double)(result->at_ns - since_ns) / 1e9);
    }
    ranks_free(all);
}

Test(fault, waiting_for_a_rank_that_left_ends) {
    expect_left(wait_for_who_has_left, "shm", 1);
    expect_left(wait_for_who_has_left, "shm", 0);
    expect_left(wait_for_who_has_left, "tcp", 1);
    expect_left(wait_for_who_has_left, "tcp", 2);
}
Test(fault, exchanging_with_a_rank_that_left_ends) {
    expect_left(exchange_with_who_has_left, "shm", 1);
    expect_left(exchange_with_who_has_left, "tcp", 0);
}

/* What the verbs wire makes of failures: each that a device, the system or a peer can give, on the fake fabric. Two wires are
 * driven by one thread. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "fake_verbs.h"
#include "leftovers.h"
#include "transport/wire_verbs.h"

enum { BIG = 3 << 20 };

/* Two ends, and buffers for them. */
typedef struct pair {
    wefti_wire *wires[2];
    uint8_t    *memory[2]; /* [BIG] */
} pair;

static uint64_t now(void) { return wefti_host_now(wefti_host_system()); }

static void progress(pair *ends) {
    for (int i = 0; i < 2; i++)
        if (ends->wires[i]) cr_assert_eq(wefti_wire_progress(ends->wires[i], now()), WEFT_OK);
}

static weft_status open_ends(pair *ends) {
    for (int32_t i = 0; i < 2; i++)
        WEFTI_TRY(wefti_verbs_open_with(&fake_verbs, &(wefti_wire_options){.rank = i, .size = 2, .job = "faults"}, &ends->wires[i]));
    return WEFT_OK;
}

static weft_status connect_ends(pair *ends) {
    for (int32_t i = 0; i < 2; i++) {
        uint8_t address[WEFTI_WIRE_ADDRESS_BYTES];
        size_t  bytes = 0;
        WEFTI_TRY(ends->wires[i]->ops->address(ends->wires[i], address, &bytes));
        WEFTI_TRY(ends->wires[1 - i]->ops->connect(ends->wires[1 - i], i, address, bytes));
    }
    uint64_t since = now();
    for (;;) {
        wefti_wire_link links[2] = {ends->wires[0]->ops->link(ends->wires[0], 1), ends->wires[1]->ops->link(ends->wires[1], 0)};
        if (links[0] == WEFTI_LINK_UP && links[1] == WEFTI_LINK_UP) return WEFT_OK;
        if (links[0] == WEFTI_LINK_DOWN || links[1] == WEFTI_LINK_DOWN) return WEFT_E_LINK;
        cr_assert(now() - since < 20 * WEFTI_SECOND_NS, "the link does not come up");
        progress(ends);
    }
}

static void close_ends(pair *ends) {
    for (int i = 0; i < 2; i++) {
        if (ends->wires[i]) ends->wires[i]->ops->close(ends->wires[i], WEFTI_SECOND_NS / 10);
        ends->wires[i] = NULL;
        free(ends->memory[i]);
        ends->memory[i] = NULL;
    }
    expect_nothing_left();
}

static pair open_pair(void) {
    pair ends = {0};
    cr_assert_eq(open_ends(&ends), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(connect_ends(&ends), WEFT_OK, "%s", weft_error_message());
    for (int i = 0; i < 2; i++) {
        ends.memory[i] = malloc(BIG);
        memset(ends.memory[i], i + 1, BIG);
    }
    return ends;
}

static void post(pair *ends, int end, wefti_wire_op *op) {
    weft_status status;
    uint64_t    since = now();
    while ((status = wefti_wire_post(ends->wires[end], op)) == WEFT_E_AGAIN) {
        cr_assert(now() - since < 20 * WEFTI_SECOND_NS);
        progress(ends);
    }
    cr_assert_eq(status, WEFT_OK, "%s", weft_error_message());
}

static void finish(pair *ends, wefti_wire_op *op) {
    uint64_t since = now();
    while (!op->done) {
        cr_assert(now() - since < 20 * WEFTI_SECOND_NS, "an operation hangs");
        progress(ends);
    }
}

/* One message each way; the outcomes in status_out. */
static void exchange(pair *ends, size_t bytes, weft_status status_out[4]) {
    wefti_wire_op ops[4];
    for (int i = 0; i < 2; i++) {
        ops[i] = wefti_wire_send(1 - i, 7, ends->memory[i], bytes / 2);
        ops[2 + i] = wefti_wire_recv(1 - i, 7, ends->memory[i] + BIG / 2, bytes / 2);
    }
    for (int i = 0; i < 4; i++) {
        ops[i].flags = WEFTI_WIRE_SILENT;
        weft_status status = wefti_wire_post(ends->wires[i % 2], &ops[i]);
        if (status != WEFT_OK) {
            ops[i].done = true;
            ops[i].status = status;
        }
    }
    for (int i = 0; i < 4; i++) {
        finish(ends, &ops[i]);
        status_out[i] = ops[i].status;
    }
}

static bool all_are(const uint8_t *memory, size_t bytes, uint8_t value) {
    return memory[0] == value && memcmp(memory, memory + 1, bytes - 1) == 0;
}

static void expect_sound(pair *ends, size_t bytes) {
    weft_status status[4];
    exchange(ends, bytes, status);
    for (int i = 0; i < 4; i++) cr_assert_eq(status[i], WEFT_OK, "operation %d: %s", i, weft_status_name(status[i]));
    for (int i = 0; i < 2; i++) cr_assert(all_are(ends->memory[i] + BIG / 2, bytes / 2, (uint8_t)(2 - i)));
}

static wefti_wire_link wait_for_end(pair *ends, int end) {
    uint64_t since = now();
    while (ends->wires[end]->ops->link(ends->wires[end], 1 - end) == WEFTI_LINK_UP) {
        cr_assert(now() - since < 20 * WEFTI_SECOND_NS, "the link does not end");
        progress(ends);
    }
    return ends->wires[end]->ops->link(ends->wires[end], 1 - end);
}

/* The link of end 0 is down with a cause that has these words in it, in what a post says. */
static void expect_cause(pair *ends, int end, const char *words) {
    wefti_wire_op op = wefti_wire_send(1 - end, 9, NULL, 0);
    cr_assert_eq(wefti_wire_post(ends->wires[end], &op), WEFT_E_PEER);
    cr_expect(strstr(weft_error_message(), words), "'%s' is not in: %s", words, weft_error_message());
}

static void clean(void) {
    fake_verbs_reset();
    unsetenv("WEFT_VERBS_DEVICE");
    unsetenv("WEFT_VERBS_GID");
    unsetenv("WEFT_VERBS_TRAFFIC_CLASS");
    unsetenv("WEFT_VERBS_TIMEOUT");
}
TestSuite(verbs_faults, .init = clean);

/* --- completions that fail --- */

Test(verbs_faults, turns_each_failed_completion_into_a_status_with_peer_and_cause) {
    static const struct {
        enum ibv_wc_status status;
        const char        *words;
    } cases[] = {{IBV_WC_RETRY_EXC_ERR, "no answer to what was sent"}, {IBV_WC_RNR_RETRY_EXC_ERR, "receiver-not-ready"},
                 {IBV_WC_REM_ACCESS_ERR, "refuses access"},            {IBV_WC_LOC_PROT_ERR, "may not access the buffer"},
                 {IBV_WC_FATAL_ERR, "this device failed"},             {IBV_WC_REM_OP_ERR, "the peer's device failed"},
                 {IBV_WC_WR_FLUSH_ERR, "was shut down"}};
    for (size_t i = 0; i < WEFTI_COUNT(cases); i++)
        for (int flush_first = 0; flush_first < 2; flush_first++)
            for (int after = 1; after < 8; after += 3) {
                pair          ends = open_pair();
                wefti_wire_op send = wefti_wire_send(1, 5, ends.memory[0], BIG), recv = wefti_wire_recv(0, 5, ends.memory[1], BIG),
                              other = wefti_wire_recv(1, 6, ends.memory[0], 8);
                send.flags = recv.flags = other.flags = WEFTI_WIRE_SILENT;
                /* Only requests of end 0: what end 1 says is answered before. */
                post(&ends, 1, &recv);
                post(&ends, 0, &other);
                fake_verbs_fail_request(after, cases[i].status, flush_first);
                post(&ends, 0, &send);
                finish(&ends, &send);
                cr_expect(send.status == WEFT_E_PEER || send.status == WEFT_OK, "%s", weft_status_name(send.status));
                bool failed_here = ends.wires[0]->ops->link(ends.wires[0], 1) == WEFTI_LINK_DOWN;
                if (failed_here) {
                    finish(&ends, &other);
                    cr_expect(other.status == WEFT_E_PEER && other.done_peer == 1, "%s", weft_status_name(other.status));
                    if (send.status == WEFT_E_PEER) cr_expect_eq(send.done_peer, 1);
                    if (ends.wires[1]->ops->link(ends.wires[1], 0) == WEFTI_LINK_UP) expect_cause(&ends, 0, cases[i].words);
                }
                finish(&ends, &recv); /* the other end learns of it by the socket, or by its own completions */
                close_ends(&ends);
            }
}

Test(verbs_faults, knows_a_silent_network_by_unanswered_requests) {
    pair        ends = open_pair();
    weft_status status[4];
    expect_sound(&ends, 1000);
    fake_verbs_cut(true);
    exchange(&ends, 4, status); /* small ones are gone before it is known: their receives tell */
    cr_expect_eq(status[2], WEFT_E_PEER);
    cr_expect_eq(status[3], WEFT_E_PEER);
    cr_expect_eq(wait_for_end(&ends, 0), WEFTI_LINK_DOWN);
    expect_cause(&ends, 0, "");
    close_ends(&ends);
}

Test(verbs_faults, ends_every_link_of_a_device_whose_completion_queue_fails) {
    pair          ends = open_pair();
    wefti_wire_op recv = wefti_wire_recv(1, 5, ends.memory[0], 8);
    recv.flags = WEFTI_WIRE_SILENT;
    post(&ends, 0, &recv);
    fake_verbs_set()->poll_fails = true;
    finish(&ends, &recv);
    cr_expect(recv.status == WEFT_E_PEER && recv.done_peer == 1);
    expect_cause(&ends, 0, "completion queue failed");
    close_ends(&ends);
}

Test(verbs_faults, knows_a_dead_peer_by_its_socket) {
    pair          ends = open_pair();
    wefti_wire_op recv = wefti_wire_recv(1, 5, ends.memory[0], 8), send = wefti_wire_send(1, 6, ends.memory[0], BIG);
    recv.flags = send.flags = WEFTI_WIRE_SILENT;
    post(&ends, 0, &recv);
    post(&ends, 0, &send);
    /* As the system does for a process that was killed. */
    shutdown(((verbs_wire *)ends.wires[1])->links[0]->socket, SHUT_RDWR);
    uint64_t since = now();
    finish(&ends, &recv);
    finish(&ends, &send);
    cr_expect(now() - since < WEFTI_SECOND_NS, "took %g s", (double)(now() - since) / 1e9);
    cr_expect(recv.status == WEFT_E_PEER && send.status == WEFT_E_PEER && recv.done_peer == 1);
    cr_expect_eq(ends.wires[0]->ops->link(ends.wires[0], 1), WEFTI_LINK_DOWN);
    expect_cause(&ends, 0, "its process ended");
    close_ends(&ends);
}

/* --- calls that fail --- */

/* Opens, connects, says small and large things, reads, writes, makes regions: whatever call fails, in order, there is a
 * clear status or a sound outcome, and nothing is left. */
static weft_status whole_life(pair *ends, bool *sound_out) {
    WEFTI_TRY(open_ends(ends));
    for (int i = 0; i < 2; i++) {
        ends->memory[i] = malloc(BIG);
        memset(ends->memory[i], i + 1, BIG);
    }
    WEFTI_TRY(connect_ends(ends));
    wefti_wire_region *region = NULL;
    WEFTI_TRY(ends->wires[1]->ops->region_create(ends->wires[1], BIG, &region));
    weft_status status[4];
    *sound_out = true;
    for (size_t bytes = 16; bytes < BIG; bytes *= 64) {
        exchange(ends, bytes, status);
        for (int i = 0; i < 4; i++) *sound_out = *sound_out && status[i] == WEFT_OK;
    }
    wefti_wire_peer_region seen;
    weft_status            known;
    uint64_t               since = now();
    while ((known = ends->wires[0]->ops->peer_region(ends->wires[0], 1, region->id, &seen)) == WEFT_E_AGAIN) {
        cr_assert(now() - since < 20 * WEFTI_SECOND_NS);
        progress(ends);
    }
    for (int kind = WEFTI_WIRE_WRITE; kind <= WEFTI_WIRE_READ && known == WEFT_OK; kind++) {
        wefti_wire_op op = {.kind = (wefti_wire_op_kind)kind, .flags = WEFTI_WIRE_SILENT, .peer = 1, .region = region->id,
                            .buffer = ends->memory[0], .bytes = BIG};
        weft_status   posted = wefti_wire_post(ends->wires[0], &op);
        if (posted == WEFT_OK) finish(ends, &op);
        *sound_out = *sound_out && posted == WEFT_OK && op.status == WEFT_OK;
    }
    return WEFT_OK;
}

Test(verbs_faults, survives_the_failure_of_each_call) {
    int clear = 0, copied = 0, broken = 0, number = 1;
    for (;; number++) {
        pair ends = {0};
        bool sound = false;
        fake_verbs_reset();
        fake_verbs_set()->fail_call = number;
        weft_status status = whole_life(&ends, &sound);
        fake_verbs_counts counts = fake_verbs_read();
        if (status != WEFT_OK)
            cr_expect(status == WEFT_E_LINK || strstr(weft_error_message(), "verbs: "), "call %d (%s): %s", number, counts.failed_call,
                      weft_error_message());
        if (!counts.failed_call[0]) cr_expect(status == WEFT_OK && sound, "nothing failed, and yet: %s", weft_error_message());
        clear += status != WEFT_OK;
        copied += status == WEFT_OK && sound;
        broken += status == WEFT_OK && !sound;
        close_ends(&ends);
        if (!counts.failed_call[0]) break; /* there are no more calls than that */
    }
    cr_expect(clear > 20 && copied > 5, "%d calls: %d refused, %d went on, %d ended a link", number, clear, copied, broken);
}

static int  allocations, fail_allocation;
static void *allocate(void *context, size_t bytes, size_t alignment) {
    (void)context;
    return ++allocations == fail_allocation ? NULL : aligned_alloc(alignment, wefti_align_up(bytes ? bytes : 1, alignment));
}
static void release(void *context, void *memory, size_t bytes) {
    (void)context, (void)bytes;
    free(memory);
}

Test(verbs_faults, survives_every_want_of_memory) {
    weft_allocator scarce = {allocate, release, NULL};
    cr_assert_eq(weft_set_allocator(&scarce), WEFT_OK);
    for (fail_allocation = 1;; fail_allocation++) {
        pair ends = {0};
        bool sound = false;
        allocations = 0;
        fake_verbs_reset();
        weft_status status = whole_life(&ends, &sound);
        if (status != WEFT_OK && status != WEFT_E_LINK) cr_expect_eq(status, WEFT_E_NO_MEMORY, "%s", weft_error_message());
        if (allocations < fail_allocation) cr_expect(status == WEFT_OK && sound, "%s", weft_error_message());
        close_ends(&ends);
        if (allocations < fail_allocation) break;
    }
    cr_expect_gt(fail_allocation, 20);
}

/* --- memory --- */

static char warnings[4000];
static void keep_warning(void *context, weft_log_level level, const char *message) {
    (void)context, (void)level;
    strncat(warnings, message, sizeof warnings - strlen(warnings) - 1);
}

Test(verbs_faults, names_the_limit_on_locked_memory) {
    pair ends = {0};
    fake_verbs_set()->most_registered_bytes = 100000; /* less than a link's slots */
    struct rlimit limit;
    getrlimit(RLIMIT_MEMLOCK, &limit);
    limit.rlim_cur = limit.rlim_max < 65536 ? limit.rlim_max : 65536; /* going down needs no rights */
    cr_assert_eq(setrlimit(RLIMIT_MEMLOCK, &limit), 0);
    cr_assert_eq(open_ends(&ends), WEFT_OK);
    uint8_t address[WEFTI_WIRE_ADDRESS_BYTES];
    size_t  bytes = 0;
    cr_assert_eq(ends.wires[0]->ops->address(ends.wires[0], address, &bytes), WEFT_OK);
    cr_expect_eq(ends.wires[1]->ops->connect(ends.wires[1], 0, address, bytes), WEFT_E_NO_MEMORY);
    char amount[64];
    snprintf(amount, sizeof amount, "RLIMIT_MEMLOCK is %llu KiB", (unsigned long long)limit.rlim_cur / 1024);
    const char *const words[] = {"fake0:1", "bytes", amount, "ulimit -l", "/etc/security/limits.conf", "LimitMEMLOCK"};
    for (size_t i = 0; i < WEFTI_COUNT(words); i++)
        cr_expect(strstr(weft_error_message(), words[i]), "'%s' is not in: %s", words[i], weft_error_message());
    close_ends(&ends);
}

Test(verbs_faults, copies_what_cannot_be_registered_and_says_so_once) {
    weft_set_log(keep_warning, NULL, WEFT_LOG_WARNING);
    fake_verbs_set()->most_registered_bytes = 2 << 20; /* both links' slots, and no large buffer */
    pair ends = open_pair();
    for (int i = 0; i < 3; i++) expect_sound(&ends, BIG);
    cr_expect(strstr(warnings, "cannot register") && strstr(warnings, "are copied"), "%s", warnings);
    close_ends(&ends);
}

Test(verbs_faults, makes_room_for_registrations_by_dropping_unused_ones) {
    fake_verbs_set()->most_registered_bytes = 4 << 20;
    pair ends = open_pair();
    for (int i = 0; i < 8; i++) {
        wefti_wire_op send = wefti_wire_send(1, 5, ends.memory[0] + (size_t)i * 200000, 400000),
                      recv = wefti_wire_recv(0, 5, ends.memory[1] + (size_t)i * 200000, 400000);
        send.flags = recv.flags = WEFTI_WIRE_SILENT;
        post(&ends, 0, &send);
        post(&ends, 1, &recv);
        finish(&ends, &send);
        finish(&ends, &recv);
        cr_assert(send.status == WEFT_OK && recv.status == WEFT_OK);
    }
    cr_expect_not(((verbs_wire *)ends.wires[0])->cache.warned);
    close_ends(&ends);
}

/* What is unmapped and mapped again is other memory, whatever its address. */
Test(verbs_faults, forgets_registrations_of_memory_that_was_given_back) {
    pair        ends = open_pair();
    verbs_wire *wire = (verbs_wire *)ends.wires[0];
    size_t      bytes = 1 << 20;
    uint8_t    *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    verbs_memory *first = wefti_verbs_memory_take(wire, &(wefti_wire_op){.buffer = memory}, bytes, true);
    cr_assert(first);
    wefti_verbs_memory_give(wire, first);
    if (!wire->cache.watch) { /* no userfaultfd here: nothing is kept */
        cr_assert_null(wire->cache.first);
        close_ends(&ends);
        return;
    }
    uint64_t hits = wire->cache.hits;
    wefti_verbs_memory_give(wire, wefti_verbs_memory_take(wire, &(wefti_wire_op){.buffer = memory + 5000}, 1000, true));
    cr_expect_eq(wire->cache.hits, hits + 1, "a kept registration was not found");
    cr_assert_eq(mmap(memory, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), memory);
    uint64_t misses = wire->cache.misses;
    wefti_verbs_memory_give(wire, wefti_verbs_memory_take(wire, &(wefti_wire_op){.buffer = memory}, bytes, true));
    cr_expect_eq(wire->cache.misses, misses + 1, "a stale registration was used");
    /* Emptied pages are new pages too. */
    cr_assert_eq(madvise(memory + 8192, 4096, MADV_DONTNEED), 0);
    wefti_verbs_memory_give(wire, wefti_verbs_memory_take(wire, &(wefti_wire_op){.buffer = memory}, bytes, true));
    cr_expect_eq(wire->cache.misses, misses + 2, "a registration of emptied memory was used");
    munmap(memory, bytes);
    close_ends(&ends);
}

/* After abort the buffers are the caller's: nothing may write to them. */
Test(verbs_faults, touches_no_buffer_after_abort) {
    for (int polls = 0; polls < 40; polls++) {
        pair          ends = open_pair();
        wefti_wire_op send = wefti_wire_send(1, 5, ends.memory[0], BIG), recv = wefti_wire_recv(0, 5, ends.memory[1], BIG);
        send.flags = recv.flags = WEFTI_WIRE_SILENT;
        post(&ends, 1, &recv);
        post(&ends, 0, &send);
        for (int i = 0; i < polls; i++) progress(&ends);
        ends.wires[1]->ops->abort(ends.wires[1], WEFT_E_ABORTED, -1);
        cr_assert(recv.done);
        memset(ends.memory[1], 77, BIG);
        for (int i = 0; i < 50; i++) progress(&ends);
        ends.wires[1]->ops->close(ends.wires[1], 0);
        ends.wires[1] = NULL;
        finish(&ends, &send);
        cr_assert(all_are(ends.memory[1], BIG, 77), "a buffer was written after abort");
        close_ends(&ends);
    }
}

/* --- what peers say --- */

Test(verbs_faults, ends_a_link_on_which_nonsense_is_said) {
    verbs_head heads[] = {{.kind = 0},
                          {.kind = 200},
                          {.kind = VERBS_CLEAR, .token = 12345},
                          {.kind = VERBS_REFUSE, .token = 12345},
                          {.kind = VERBS_DATA, .id = 256},
                          {.kind = VERBS_REGION, .id = 0, .bytes = 10},
                          {.kind = VERBS_REGION, .id = 1u << 31, .bytes = 10},
                          {.kind = VERBS_REGION, .id = 1, .bytes = UINT64_MAX},
                          {.kind = VERBS_CREDIT, .credits = 60000}};
    for (size_t i = 0; i <= WEFTI_COUNT(heads); i++) {
        pair          ends = open_pair();
        wefti_wire_op recv[2];
        for (int end = 0; end < 2; end++) {
            recv[end] = wefti_wire_recv(1 - end, 5, ends.memory[end], 8);
            recv[end].flags = WEFTI_WIRE_SILENT;
            post(&ends, end, &recv[end]);
        }
        bool brief = i == WEFTI_COUNT(heads);
        cr_assert(fake_verbs_forge(brief ? heads : &heads[i], brief ? 3 : sizeof heads[i]));
        for (int end = 0; end < 2; end++) {
            finish(&ends, &recv[end]);
            cr_expect_eq(recv[end].status, WEFT_E_PEER);
        }
        close_ends(&ends);
    }
}

/* --- what is asked for, and is not there --- */

static void expect_refusal(weft_status status, const char *first, const char *second) {
    wefti_wire *wire = NULL;
    weft_status got = wefti_verbs_open_with(&fake_verbs, &(wefti_wire_options){.size = 2}, &wire);
    cr_assert_eq(got, status, "%s: %s", weft_status_name(got), weft_error_message());
    cr_expect(strstr(weft_error_message(), first), "'%s' is not in: %s", first, weft_error_message());
    cr_expect(strstr(weft_error_message(), second), "'%s' is not in: %s", second, weft_error_message());
    cr_expect_eq(fake_verbs_read().objects, 0);
}

Test(verbs_faults, says_which_devices_ports_and_gids_there_are) {
    fake_verbs_set()->devices = 0;
    expect_refusal(WEFT_E_NOT_FOUND, "no RDMA device", "tcp");
    fake_verbs_set()->devices = 2;
    setenv("WEFT_VERBS_DEVICE", "mlx5_0", 1);
    expect_refusal(WEFT_E_NOT_FOUND, "'mlx5_0'", "fake0: port 1 active, port 2 down; fake1: port 1 active");
    setenv("WEFT_VERBS_DEVICE", "fake1:3", 1);
    expect_refusal(WEFT_E_NOT_FOUND, "'fake1:3'", "fake1: port 1 active, port 2 down");
    setenv("WEFT_VERBS_DEVICE", "fake1:257", 1);
    expect_refusal(WEFT_E_NOT_FOUND, "'fake1:257'", "fake1: port 1 active, port 2 down");
    setenv("WEFT_VERBS_DEVICE", "fake1:2", 1);
    expect_refusal(WEFT_E_LINK, "fake1:2 is down", "");
    setenv("WEFT_VERBS_DEVICE", "fake0,fake1,fake0,fake1,fake0", 1);
    expect_refusal(WEFT_E_INVALID, "more than 4 devices", "");
    unsetenv("WEFT_VERBS_DEVICE");
    fake_verbs_set()->ports_down = true;
    expect_refusal(WEFT_E_NOT_FOUND, "no device has a port that is up", "fake0: port 1 down");
    fake_verbs_set()->ports_down = false;
    setenv("WEFT_VERBS_GID", "9", 1);
    expect_refusal(WEFT_E_NOT_FOUND, "WEFT_VERBS_GID=9", "0 fe80::5054:ff:fe00:1 (RoCE v1), 1 fe80::5054:ff:fe00:1 (RoCE v2), 2 10.0.0.1 (RoCE v2)");
    setenv("WEFT_VERBS_GID", "first", 1);
    expect_refusal(WEFT_E_INVALID, "WEFT_VERBS_GID=first", "expected a number");
    unsetenv("WEFT_VERBS_GID");
    fake_verbs_set()->no_gid = true;
    expect_refusal(WEFT_E_NOT_FOUND, "has no GID", "address");
    fake_verbs_set()->no_gid = false;
    setenv("WEFT_VERBS_TRAFFIC_CLASS", "256", 1);
    expect_refusal(WEFT_E_INVALID, "WEFT_VERBS_TRAFFIC_CLASS=256", "0 to 255");
    unsetenv("WEFT_VERBS_TRAFFIC_CLASS");
    setenv("WEFT_VERBS_TIMEOUT", "0", 1); /* a device would wait for ever */
    expect_refusal(WEFT_E_INVALID, "WEFT_VERBS_TIMEOUT=0", "1 to 31");
    unsetenv("WEFT_VERBS_TIMEOUT");
    fake_verbs_set()->most_requests = 16;
    expect_refusal(WEFT_E_UNSUPPORTED, "16 requests", "128");
    fake_verbs_reset();
    fake_verbs_set()->most_completions = 100;
    expect_refusal(WEFT_E_UNSUPPORTED, "holds 100 completions", "2 ranks");
}

Test(verbs_faults, chooses_the_gid_that_routes_and_takes_the_one_that_is_asked_for) {
    static const struct {
        const char *wish, *interface;
        uint32_t    index;
        bool        ethernet;
    } cases[] = {{NULL, NULL, 2, true}, {"0", NULL, 0, true}, {"1", NULL, 1, true}, {NULL, "fe80::5054:ff:fe00:1", 1, true}, {NULL, NULL, 0, false}};
    for (size_t i = 0; i < WEFTI_COUNT(cases); i++) {
        verbs_wire         wire = {.api = &fake_verbs, .slots = VERBS_SLOTS};
        wefti_wire_options options = {.size = 2, .interface = cases[i].interface};
        fake_verbs_set()->ethernet = cases[i].ethernet;
        if (cases[i].wish)
            setenv("WEFT_VERBS_GID", cases[i].wish, 1);
        else
            unsetenv("WEFT_VERBS_GID");
        cr_assert_eq(wefti_verbs_rails_open(&wire, &options), WEFT_OK, "%s", weft_error_message());
        cr_expect_eq(wire.rails[0].gid_index, cases[i].index, "case %zu took %u", i, wire.rails[0].gid_index);
        wefti_verbs_rails_close(&wire);
    }
}

Test(verbs_faults, waits_for_answers_as_long_as_it_is_told) {
    for (int told = 0; told < 2; told++) {
        if (told) setenv("WEFT_VERBS_TIMEOUT", "18", 1);
        pair ends = open_pair();
        cr_expect_eq(fake_verbs_read().ack_timeout, told ? 18 : 15);
        close_ends(&ends);
    }
}

Test(verbs_faults, says_which_interfaces_there_are) {
    wefti_wire *wire = NULL;
    cr_expect_eq(wefti_verbs_open_with(&fake_verbs, &(wefti_wire_options){.size = 2, .interface = "nowhere.invalid"}, &wire), WEFT_E_NOT_FOUND);
    cr_expect(strstr(weft_error_message(), "'nowhere.invalid'") && strstr(weft_error_message(), "lo ("), "%s", weft_error_message());
    cr_expect_eq(fake_verbs_read().objects, 0);
}

/* An end whose device speaks another protocol is refused in words on both sides. */
Test(verbs_faults, refuses_a_peer_with_another_protocol) {
    pair ends = {0};
    for (int32_t i = 0; i < 2; i++) {
        setenv("WEFT_VERBS_GID", i ? "0" : "1", 1);
        cr_assert_eq(wefti_verbs_open_with(&fake_verbs, &(wefti_wire_options){.rank = i, .size = 2, .job = "faults"}, &ends.wires[i]), WEFT_OK);
    }
    cr_assert_eq(connect_ends(&ends), WEFT_E_LINK);
    for (int end = 0; end < 2; end++)
        while (ends.wires[end]->ops->link(ends.wires[end], 1 - end) == WEFTI_LINK_CONNECTING) progress(&ends);
    wefti_wire_op op = wefti_wire_send(1, 9, NULL, 0);
    weft_status   status = wefti_wire_post(ends.wires[0], &op);
    cr_expect_eq(status, WEFT_E_PEER);
    cr_expect(strstr(weft_error_message(), "protocols") || strstr(weft_error_message(), "hung up"), "%s", weft_error_message());
    close_ends(&ends);
}

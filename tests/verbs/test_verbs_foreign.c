/* The verbs wire and a device's memory, on the fake fabric: each way to it, each failure of each, and what becomes of registrations when the device gives
 * memory back. The device is a file whose bytes are mapped twice: where its memory's addresses are nobody can look, so whatever touches
 * them by the host ends the test; the device's copies and the fabric go by the other. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake_verbs.h"
#include "leftovers.h"
#include "transport/wire_verbs.h"

enum { PIECE = 1 << 20, PIECES = 3, BYTES = PIECE * PIECES, HOST = 4 << 20 };

/* --- the device --- */

static struct {
    uint8_t *memory, *alias;
    int      file, opened; /* dma-bufs that were asked for */
    bool     no_dmabuf, copy_fails, arrival_fails;
    int      copies, arrivals;
    void (*lost)(void *listener, const void *memory, size_t bytes);
    void *listener;
} device;

static bool find(void *context, const void *memory, size_t bytes, void **base_out, size_t *bytes_out) {
    (void)context;
    uintptr_t at = (uintptr_t)memory, begin = (uintptr_t)device.memory;
    if (at < begin || at - begin >= BYTES) return false;
    size_t piece = (at - begin) / PIECE;
    *base_out = device.memory + piece * PIECE;
    *bytes_out = PIECE;
    return at - begin + bytes <= (piece + 1) * PIECE;
}

static weft_status open_dmabuf(void *context, const void *memory, size_t bytes, int *descriptor_out, uint64_t *offset_out) {
    (void)context, (void)bytes;
    if (device.no_dmabuf) return wefti_fail(WEFT_E_UNSUPPORTED, "the driver exports none");
    device.opened++;
    *descriptor_out = dup(device.file);
    *offset_out = (uint64_t)((const uint8_t *)memory - device.memory);
    return WEFT_OK;
}

static uint8_t *seen(const void *memory) {
    uintptr_t at = (uintptr_t)memory, begin = (uintptr_t)device.memory;
    return at >= begin && at - begin < BYTES ? device.alias + (at - begin) : (uint8_t *)at;
}

static weft_status copy(void *context, void *to, const void *from, size_t bytes) {
    (void)context;
    device.copies++;
    if (device.copy_fails) return wefti_fail(WEFT_E_DEVICE, "an illegal address");
    memcpy(seen(to), seen(from), bytes);
    return WEFT_OK;
}

static weft_status arrived(void *context) {
    (void)context;
    device.arrivals++;
    return device.arrival_fails ? wefti_fail(WEFT_E_DEVICE, "it was lost") : WEFT_OK;
}

static void listen_to(void *context, void (*lost)(void *listener, const void *memory, size_t bytes), void *listener) {
    (void)context;
    device.lost = lost;
    device.listener = listener;
}

static const wefti_foreign functions = {.find = find, .open_dmabuf = open_dmabuf, .copy = copy, .arrived = arrived, .listen = listen_to};

/* --- two ends: 0 with the device, 1 without --- */

typedef struct pair {
    wefti_wire *wires[2];
    uint8_t    *host; /* [HOST] */
    char        way[300];
} pair;

static uint64_t now(void) { return wefti_host_now(wefti_host_system()); }
static void     progress(pair *ends) {
    for (int i = 0; i < 2; i++) cr_assert_eq(wefti_wire_progress(ends->wires[i], now()), WEFT_OK);
}

/* Descriptors of the device's memory. */
static int open_files(void) {
    int  count = 0;
    DIR *folder = opendir("/proc/self/fd");
    cr_assert(folder);
    for (struct dirent *file; (file = readdir(folder));) {
        char target[64] = "";
        count += readlinkat(dirfd(folder), file->d_name, target, sizeof target - 1) > 0 && strstr(target, "memfd:device");
    }
    closedir(folder);
    return count;
}

static void set_up(void) {
    fake_verbs_reset();
    unsetenv("WEFT_VERBS_DEVICE");
    unsetenv("WEFT_VERBS_DEVICE_MEMORY");
    memset(&device, 0, sizeof device);
    device.file = memfd_create("device", MFD_CLOEXEC);
    cr_assert(device.file >= 0 && ftruncate(device.file, BYTES) == 0);
    device.memory = mmap(NULL, BYTES, PROT_NONE, MAP_SHARED, device.file, 0);
    device.alias = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, device.file, 0);
    cr_assert(device.memory != MAP_FAILED && device.alias != MAP_FAILED);
    for (size_t i = 0; i < BYTES; i++) device.alias[i] = (uint8_t)(i * 7 + (i >> 12));
    fake_verbs_set()->foreign = device.memory;
    fake_verbs_set()->foreign_alias = device.alias;
    fake_verbs_set()->foreign_bytes = BYTES;
}

static weft_status attach(pair *ends) {
    return ends->wires[0]->ops->attach(ends->wires[0], &functions, device.memory, 65536, ends->way, sizeof ends->way);
}

static pair open_pair(void) {
    pair ends = {0};
    for (int32_t i = 0; i < 2; i++)
        cr_assert_eq(wefti_verbs_open_with(&fake_verbs, &(wefti_wire_options){.rank = i, .size = 2, .job = "foreign"}, &ends.wires[i]), WEFT_OK, "%s",
                     weft_error_message());
    for (int32_t i = 0; i < 2; i++) {
        uint8_t address[WEFTI_WIRE_ADDRESS_BYTES];
        size_t  bytes = 0;
        cr_assert_eq(ends.wires[i]->ops->address(ends.wires[i], address, &bytes), WEFT_OK);
        cr_assert_eq(ends.wires[1 - i]->ops->connect(ends.wires[1 - i], i, address, bytes), WEFT_OK);
    }
    uint64_t since = now();
    while (ends.wires[0]->ops->link(ends.wires[0], 1) != WEFTI_LINK_UP || ends.wires[1]->ops->link(ends.wires[1], 0) != WEFTI_LINK_UP) {
        cr_assert(now() - since < 20 * WEFTI_SECOND_NS, "the link does not come up");
        progress(&ends);
    }
    ends.host = malloc(HOST);
    cr_assert_eq(attach(&ends), WEFT_OK, "%s", weft_error_message());
    return ends;
}

static void close_pair(pair *ends) {
    for (int i = 0; i < 2; i++) ends->wires[i]->ops->close(ends->wires[i], WEFTI_SECOND_NS / 10);
    free(ends->host);
    cr_expect_null(device.lost, "the device still tells a wire that is closed");
    expect_nothing_left();
}

static void run(pair *ends, wefti_wire_op *first, int end, wefti_wire_op *second) {
    wefti_wire_op *ops[2] = {first, second};
    uint64_t       since = now();
    for (int i = 0; i < 2 && ops[i]; i++) {
        int at = i == 0 ? end : 1 - end;
        ops[i]->flags |= WEFTI_WIRE_SILENT;
        weft_status status;
        while ((status = wefti_wire_post(ends->wires[at], ops[i])) == WEFT_E_AGAIN) progress(ends);
        cr_assert_eq(status, WEFT_OK, "%s", weft_error_message());
    }
    for (int i = 0; i < 2 && ops[i]; i++)
        while (!ops[i]->done) {
            cr_assert(now() - since < 20 * WEFTI_SECOND_NS, "an operation hangs");
            progress(ends);
        }
}

/* `bytes` from the device to the host of the other end and back, to another place; whether before its receive is posted or behind it. */
static void there_and_back(pair *ends, size_t from, size_t to, size_t bytes, bool early) {
    wefti_wire_op send = wefti_wire_send(1, 3, device.memory + from, bytes), take = wefti_wire_recv(0, 3, ends->host, bytes);
    send.flags = WEFTI_WIRE_FOREIGN;
    memset(ends->host, 0, bytes);
    run(ends, early ? &send : &take, early ? 0 : 1, early ? &take : &send);
    cr_assert(send.status == WEFT_OK && take.status == WEFT_OK, "%s, %s", weft_status_name(send.status), weft_status_name(take.status));
    cr_assert_eq(memcmp(ends->host, device.alias + from, bytes), 0, "%zu bytes from the device are other bytes", bytes);
    wefti_wire_op back = wefti_wire_send(0, 4, ends->host, bytes), land = wefti_wire_recv(1, 4, device.memory + to, bytes);
    land.flags = WEFTI_WIRE_FOREIGN;
    run(ends, early ? &back : &land, early ? 1 : 0, early ? &land : &back);
    cr_assert(back.status == WEFT_OK && land.status == WEFT_OK, "%s, %s", weft_status_name(back.status), weft_status_name(land.status));
    cr_assert_eq(memcmp(ends->host, device.alias + to, bytes), 0, "%zu bytes to the device are other bytes", bytes);
}

static const size_t sizes[] = {1, 100, 8000, 8256, 20000, 300001, PIECE};

static void all_sizes(pair *ends) {
    for (size_t i = 0; i < WEFTI_COUNT(sizes); i++)
        for (int early = 0; early < 2; early++) there_and_back(ends, 0, PIECE, sizes[i], early);
    there_and_back(ends, 12345, 2 * PIECE + 77, 200001, true); /* not at the beginning of a piece */
}

/* A region of the device's memory, which the other end writes and reads; and one-sided operations on the device's memory. */
static void one_sided(pair *ends) {
    wefti_wire_region *region = NULL, *theirs = NULL;
    cr_assert_eq(ends->wires[0]->ops->region_register(ends->wires[0], device.memory + 4096, 500000, &region), WEFT_OK, "%s", weft_error_message());
    wefti_wire_peer_region seen_region;
    uint64_t               since = now();
    while (ends->wires[1]->ops->peer_region(ends->wires[1], 0, region->id, &seen_region) == WEFT_E_AGAIN) {
        cr_assert(now() - since < 20 * WEFTI_SECOND_NS);
        progress(ends);
    }
    for (size_t i = 0; i < 300000; i++) ends->host[i] = (uint8_t)(i * 13);
    wefti_wire_op write = {.kind = WEFTI_WIRE_WRITE, .peer = 0, .region = region->id, .offset = 1000, .buffer = ends->host, .bytes = 300000};
    wefti_wire_op read = {.kind = WEFTI_WIRE_READ, .peer = 0, .region = region->id, .offset = 1000, .buffer = ends->host + 300000, .bytes = 300000};
    run(ends, &write, 1, NULL);
    run(ends, &read, 1, NULL);
    cr_assert(write.status == WEFT_OK && read.status == WEFT_OK);
    cr_assert_eq(memcmp(ends->host, device.alias + 5096, 300000), 0);
    cr_assert_eq(memcmp(ends->host, ends->host + 300000, 300000), 0);
    wefti_wire_op self = {.kind = WEFTI_WIRE_READ, .peer = 0, .region = region->id, .buffer = ends->host, .bytes = 10};
    cr_expect_eq(wefti_wire_post(ends->wires[0], &self), WEFT_E_UNSUPPORTED);
    /* out of the device's memory, and into it */
    cr_assert_eq(ends->wires[1]->ops->region_create(ends->wires[1], 400000, &theirs), WEFT_OK);
    since = now();
    while (ends->wires[0]->ops->peer_region(ends->wires[0], 1, theirs->id, &seen_region) == WEFT_E_AGAIN) {
        cr_assert(now() - since < 20 * WEFTI_SECOND_NS);
        progress(ends);
    }
    for (size_t bytes = 5000; bytes <= 300000; bytes *= 60) {
        wefti_wire_op put = {.kind = WEFTI_WIRE_WRITE, .peer = 1, .region = theirs->id, .buffer = device.memory + PIECE, .bytes = bytes, .flags = WEFTI_WIRE_FOREIGN};
        wefti_wire_op get = {.kind = WEFTI_WIRE_READ, .peer = 1, .region = theirs->id, .buffer = device.memory + 2 * PIECE, .bytes = bytes, .flags = WEFTI_WIRE_FOREIGN};
        run(ends, &put, 0, NULL);
        run(ends, &get, 0, NULL);
        cr_assert(put.status == WEFT_OK && get.status == WEFT_OK);
        cr_assert_eq(memcmp(theirs->base, device.alias + PIECE, bytes), 0);
        cr_assert_eq(memcmp(theirs->base, device.alias + 2 * PIECE, bytes), 0);
    }
    ends->wires[0]->ops->region_release(region);
}

TestSuite(verbs_foreign, .init = set_up);

Test(verbs_foreign, goes_by_dmabuf) {
    pair ends = open_pair();
    cr_expect_str_eq(ends.way, "dma-buf");
    cr_expect(ends.wires[0]->can.flags & WEFTI_WIRE_REACHES_FOREIGN);
    all_sizes(&ends);
    one_sided(&ends);
    fake_verbs_counts counts = fake_verbs_read();
    cr_expect_eq(counts.peers, 0);
    /* The sample, a piece each of three, a region. */
    cr_expect_eq(counts.dmabufs, 5, "%d registrations", counts.dmabufs);
    cr_expect_eq(device.opened, 5);
    cr_expect_eq(open_files(), 1, "descriptors of dma-bufs stay open");
    cr_expect_gt(device.arrivals, 0);
    close_pair(&ends);
}

Test(verbs_foreign, goes_by_dmabuf_on_devices_side_by_side) {
    setenv("WEFT_VERBS_DEVICE", "all", 1);
    fake_verbs_set()->devices = 3;
    pair ends = open_pair();
    all_sizes(&ends);
    cr_expect_eq(fake_verbs_read().dmabufs, 3 * 4);
    cr_expect_eq(device.opened, 4, "one descriptor does for all rails");
    cr_expect_eq(open_files(), 1);
    close_pair(&ends);
}

static void expect_peer(const char *why) {
    fake_verbs_set()->peer_memory = true;
    pair ends = open_pair();
    cr_expect(strncmp(ends.way, "peer memory", 11) == 0 && strstr(ends.way, why), "'%s' is not in: %s", why, ends.way);
    cr_expect(ends.wires[0]->can.flags & WEFTI_WIRE_REACHES_FOREIGN);
    all_sizes(&ends);
    one_sided(&ends);
    cr_expect_eq(fake_verbs_read().dmabufs, 0);
    cr_expect_eq(fake_verbs_read().peers, 5);
    cr_expect_eq(open_files(), 1);
    close_pair(&ends);
}

Test(verbs_foreign, goes_by_peer_memory_where_the_driver_has_no_dmabuf) {
    device.no_dmabuf = true;
    expect_peer("no dma-buf: the driver exports none");
}
Test(verbs_foreign, goes_by_peer_memory_where_the_network_takes_no_dmabuf) {
    fake_verbs_set()->dmabuf_error = EOPNOTSUPP;
    expect_peer("no dma-buf: fake0:1 takes none: Operation not supported");
}
Test(verbs_foreign, goes_by_peer_memory_where_that_is_asked_for) {
    setenv("WEFT_VERBS_DEVICE_MEMORY", "peer", 1);
    expect_peer("");
    cr_expect_eq(device.opened, 0);
}
Test(verbs_foreign, goes_by_peer_memory_where_the_library_is_old) {
    pair            ends = {0};
    wefti_verbs_api old = fake_verbs;
    old.reg_dmabuf_mr = NULL;
    fake_verbs_set()->peer_memory = true;
    cr_assert_eq(wefti_verbs_open_with(&old, &(wefti_wire_options){.size = 1}, &ends.wires[0]), WEFT_OK);
    cr_assert_eq(attach(&ends), WEFT_OK);
    cr_expect(strstr(ends.way, "peer memory; no dma-buf: libibverbs has no ibv_reg_dmabuf_mr"), "%s", ends.way);
    ends.wires[0]->ops->close(ends.wires[0], 0);
}

/* Nothing can be registered: all goes through the stages, copied by the device and never touched by the host. */
static void expect_copies(const char *why) {
    pair ends = open_pair();
    cr_expect(strncmp(ends.way, "copies", 6) == 0 && strstr(ends.way, why), "'%s' is not in: %s", why, ends.way);
    cr_expect(ends.wires[0]->can.flags & WEFTI_WIRE_MEMORY_FOREIGN);
    cr_expect_not(ends.wires[0]->can.flags & WEFTI_WIRE_REACHES_FOREIGN);
    all_sizes(&ends);
    wefti_wire_region *region = NULL;
    cr_expect_eq(ends.wires[0]->ops->region_register(ends.wires[0], device.memory, PIECE, &region), WEFT_E_UNSUPPORTED);
    cr_expect(strstr(weft_error_message(), "1048576 bytes of a device's memory cannot be registered"), "%s", weft_error_message());
    cr_expect_gt(device.copies, 100);
    cr_expect_eq(fake_verbs_read().dmabufs + fake_verbs_read().peers, 0);
    close_pair(&ends);
}
Test(verbs_foreign, is_copied_where_nothing_takes_it) {
    device.no_dmabuf = true;
    expect_copies("no peer memory: verbs: fake0:1 cannot register 65536 bytes (a device's memory): Bad address");
}
Test(verbs_foreign, is_copied_where_that_is_asked_for) {
    setenv("WEFT_VERBS_DEVICE_MEMORY", "copies", 1);
    fake_verbs_set()->peer_memory = true;
    expect_copies("");
}

Test(verbs_foreign, an_unknown_way_is_refused) {
    pair ends = open_pair();
    setenv("WEFT_VERBS_DEVICE_MEMORY", "magic", 1);
    cr_expect_eq(attach(&ends), WEFT_E_INVALID);
    cr_expect(strstr(weft_error_message(), "'magic'; there is: auto, dmabuf, peer"), "%s", weft_error_message());
    close_pair(&ends);
}

/* --- what goes wrong later --- */

static char warnings[2000];
static void keep_warning(void *context, weft_log_level level, const char *message) {
    (void)context, (void)level;
    strncat(warnings, message, sizeof warnings - strlen(warnings) - 1);
}

Test(verbs_foreign, copies_a_piece_that_is_refused_and_says_so_once) {
    pair ends = open_pair();
    weft_set_log(keep_warning, NULL, WEFT_LOG_WARNING);
    fake_verbs_set()->dmabuf_error = EIO;
    all_sizes(&ends);
    char *said = strstr(warnings, "cannot be registered, by dma-buf: fake0:1 takes none: Input/output error; messages from and to it are copied");
    cr_expect(said, "%s", warnings);
    cr_expect(said && !strstr(said + 1, "cannot be registered"), "%s", warnings);
    close_pair(&ends);
}

Test(verbs_foreign, makes_room_by_dropping_unused_pieces) {
    pair ends = open_pair();
    fake_verbs_set()->most_registered_bytes = (size_t)(3.4 * PIECE); /* both links' slots, and one piece beside a buffer of the host's */
    weft_set_log(keep_warning, NULL, WEFT_LOG_WARNING);
    for (size_t piece = 0; piece < PIECES; piece++) there_and_back(&ends, piece * PIECE, piece * PIECE + PIECE / 2, 100000, true);
    cr_expect_eq(device.copies, 0, "%s", warnings);
    cr_expect_gt(fake_verbs_read().dmabufs, 3);
    close_pair(&ends);
}

Test(verbs_foreign, forgets_what_the_device_gives_back) {
    pair        ends = open_pair();
    verbs_wire *wire = (verbs_wire *)ends.wires[0];
    there_and_back(&ends, 0, PIECE, 100000, true);
    int before = fake_verbs_read().dmabufs, objects = fake_verbs_read().objects;
    there_and_back(&ends, 50000, PIECE + 3, 100000, false);
    cr_expect_eq(fake_verbs_read().dmabufs, before, "a piece that is known was registered again");
    device.lost(device.listener, device.memory, PIECE);
    cr_expect_eq(fake_verbs_read().objects, objects - 1, "a registration of memory that was given back is kept");
    there_and_back(&ends, PIECE, PIECE + 200000, 100000, true);
    cr_expect_eq(fake_verbs_read().dmabufs, before, "the other piece was forgotten, too");
    there_and_back(&ends, 0, PIECE, 100000, true);
    cr_expect_eq(fake_verbs_read().dmabufs, before + 1, "a stale registration was used");
    /* In use: not found again, and gone with its user. */
    wefti_wire_op op = {.buffer = device.memory + 10, .flags = WEFTI_WIRE_FOREIGN};
    verbs_memory *used = wefti_verbs_memory_take(wire, &op, 1000, true);
    objects = fake_verbs_read().objects;
    device.lost(device.listener, device.memory, PIECE);
    cr_expect_eq(fake_verbs_read().objects, objects);
    verbs_memory *again = wefti_verbs_memory_take(wire, &op, 1000, true);
    cr_expect(again && again != used);
    wefti_verbs_memory_give(wire, used);
    cr_expect_eq(fake_verbs_read().objects, objects, "one has come and one has gone");
    wefti_verbs_memory_give(wire, again);
    close_pair(&ends);
}

Test(verbs_foreign, detached_memory_is_refused) {
    pair ends = open_pair();
    there_and_back(&ends, 0, PIECE, 100000, true);
    cr_assert_eq(ends.wires[0]->ops->attach(ends.wires[0], NULL, NULL, 0, NULL, 0), WEFT_OK);
    cr_expect_null(device.lost);
    wefti_wire_op send = wefti_wire_send(1, 3, device.memory, 100), self = wefti_wire_send(0, 3, device.memory, 100);
    send.flags = self.flags = WEFTI_WIRE_FOREIGN;
    cr_expect_eq(wefti_wire_post(ends.wires[0], &send), WEFT_E_UNSUPPORTED);
    cr_expect(strstr(weft_error_message(), "none is attached"), "%s", weft_error_message());
    cr_assert_eq(attach(&ends), WEFT_OK);
    cr_expect_eq(wefti_wire_post(ends.wires[0], &self), WEFT_E_UNSUPPORTED);
    there_and_back(&ends, 0, PIECE, 100000, true);
    close_pair(&ends);
}

/* A device that fails ends the link, with the cause; all operations end. */
static void fails(bool *what, bool receives, size_t bytes, const char *words) {
    pair ends = open_pair();
    *what = true;
    wefti_wire_op mine = receives ? wefti_wire_recv(1, 3, device.memory, bytes) : wefti_wire_send(1, 3, device.memory, bytes);
    wefti_wire_op theirs = receives ? wefti_wire_send(0, 3, ends.host, bytes) : wefti_wire_recv(0, 3, ends.host, bytes);
    mine.flags = WEFTI_WIRE_FOREIGN;
    run(&ends, &mine, 0, &theirs);
    cr_expect(mine.status == WEFT_E_PEER || mine.status == WEFT_E_DEVICE, "%s", weft_status_name(mine.status));
    uint64_t since = now();
    while (ends.wires[0]->ops->link(ends.wires[0], 1) == WEFTI_LINK_UP && now() - since < 20 * WEFTI_SECOND_NS) progress(&ends);
    const char *cause = ends.wires[0]->ops->cause(ends.wires[0], 1);
    cr_expect(cause && strstr(cause, words), "'%s' is not in: %s", words, cause ? cause : "nothing");
    close_pair(&ends);
    *what = false;
    set_up();
}
Test(verbs_foreign, a_device_that_does_not_copy_ends_the_link) {
    fails(&device.copy_fails, false, 100, "this rank's device does not copy: an illegal address");
    fails(&device.copy_fails, true, 100, "this rank's device does not copy: an illegal address");
    for (int receives = 0; receives < 2; receives++) {
        setenv("WEFT_VERBS_DEVICE_MEMORY", "copies", 1);
        fails(&device.copy_fails, receives, 200000, "this rank's device does not copy: an illegal address");
    }
}
Test(verbs_foreign, a_device_that_is_lost_ends_the_link) { fails(&device.arrival_fails, true, 200000, "this rank's device does not see what came: it was lost"); }

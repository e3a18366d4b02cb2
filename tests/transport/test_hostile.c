/* 10,000 strangers call at every port of two ranks that train over TCP, and the result has the same bits as without them. They speak
 * HTTP and TLS, replay handshakes that the ranks themselves made, send byte by byte, claim lengths that are none, prove the wrong
 * secret, or say nothing. */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "weft.h" /* before ranks.h, whose type is called what some of its parameters are */
#include "common/effort.h"
#include "common/files.h"
#include "ranks.h"
#include "transport/handshake.h"

enum { ROWS = 200, BATCH = 32, WIDTH = 24, STEPS = 200, CALLS = 10000, CALLS_A_STEP = CALLS / STEPS, MOST_PORTS = 16, MOST_OPEN = 150,
       MOST_RECORDS = 8, RECORD_BYTES = WEFTI_HELLO_BYTES + WEFTI_MAC_BYTES };
#define SECRET "0123456789abcdef0123456789abcdef"

/* --- recording handshakes: this program's send is everybody's --- */

typedef struct record {
    int     socket;
    size_t  have;
    uint8_t bytes[RECORD_BYTES];
} record;

typedef struct shared {
    _Atomic int records_done;
    record      records[MOST_RECORDS];
    char        path[64]; /* of the checkpoint */
} shared;
static shared *common;

ssize_t send(int socket, const void *bytes, size_t count, int flags) {
    static _Atomic int claimed;
    static record     *own[4]; /* of this rank */
    ssize_t            sent = syscall(SYS_sendto, socket, bytes, count, flags, NULL, 0);
    if (!common || sent != (ssize_t)count) return sent;
    if (count == WEFTI_HELLO_BYTES && memcmp(bytes, "WEFT\r\n", 6) == 0) {
        int slot = atomic_fetch_add(&claimed, 1);
        int place = slot < 4 ? atomic_fetch_add(&common->records_done, 1) : MOST_RECORDS;
        if (place >= MOST_RECORDS) return sent;
        own[slot] = &common->records[place];
        own[slot]->socket = socket;
        memcpy(own[slot]->bytes, bytes, count);
        own[slot]->have = count;
    } else if (count == WEFTI_MAC_BYTES) {
        for (int i = 0; i < 4; i++)
            if (own[i] && own[i]->socket == socket && own[i]->have == WEFTI_HELLO_BYTES) {
                memcpy(own[i]->bytes + WEFTI_HELLO_BYTES, bytes, count);
                own[i]->have = RECORD_BYTES;
            }
    }
    return sent;
}

/* --- training: rank 0 takes as many steps as the parent allows --- */

static void data_of(float x[ROWS][WIDTH], int32_t y[ROWS]) {
    unsigned state = 5;
    for (int i = 0; i < ROWS; i++) {
        y[i] = i % 3;
        for (int k = 0; k < WIDTH; k++)
            x[i][k] = (float)((state = state * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1 + 0.2f * (float)(k % 3 == y[i]);
    }
}

static weft_status take_steps(ranks *all, weft_trainer *trainer, weft_loader *loader, int32_t rank) {
    weft_report report;
    weft_batch  batch;
    for (int step = 1; step <= STEPS; step++) {
        while (rank == 0 && atomic_load(&all->step) < step) usleep(200);
        WEFTI_TRY(weft_loader_next(loader, &batch));
        WEFTI_TRY(weft_trainer_step(trainer, &batch, &report));
        if (rank == 0) atomic_store(&all->ready, step);
    }
    return weft_trainer_save(trainer, common->path, loader);
}

static weft_status train(ranks *all, int32_t rank) {
    static float   x[ROWS][WIDTH];
    static int32_t y[ROWS];
    weft_world    *world = NULL;
    weft_graph    *graph = NULL;
    weft_loader   *loader = NULL;
    weft_trainer  *trainer = NULL;
    data_of(x, y);
    weft_status status = weft_world_create(&(weft_world_options){.wire = "tcp", .threads = {.count = 1}}, &world);
    if (status == WEFT_OK) status = weft_graph_create(&(weft_graph_options){.seed = 3}, &graph);
    if (status == WEFT_OK) {
        weft_batch_field    fields[2] = {{"x", WEFT_F32, weft_shape(ROWS, WIDTH), x}, {"y", WEFT_I32, weft_shape(ROWS), y}};
        weft_loader_options how = {.batch = BATCH, .rank = rank, .ranks = all->size, .seed = 9, .epochs = -1};
        status = weft_loader_open_arrays(fields, 2, &how, &loader);
    }
    if (status == WEFT_OK) {
        weft_tensor *h = weft_dropout(weft_relu(weft_linear(weft_input(graph, "x", WEFT_F32, weft_shape(BATCH, WIDTH)), "hidden", .out = 40)), 0.2);
        weft_tensor *loss = weft_cross_entropy(weft_linear(h, "head", .out = 3), weft_input(graph, "y", WEFT_I32, weft_shape(BATCH)));
        weft_program program = {.loss = loss, .solver = weft_adamw(2e-3)};
        status = weft_trainer_create(world, &program, &trainer);
    }
    if (status == WEFT_OK) status = take_steps(all, trainer, loader, rank);
    weft_trainer_release(trainer);
    weft_loader_release(loader);
    weft_graph_release(graph);
    weft_world_release(world);
    return status;
}

/* --- strangers --- */

typedef enum kind { HTTP, TLS, REPLAY, DRIP, OVERSIZE, WRONG_PROOF, SILENT, AT_ONCE, KINDS } kind;
typedef struct stranger {
    int  socket; /* -1: none */
    kind kind;
    int  dripped;
} stranger;

static int dial(uint16_t number) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(number)};
    int dialled = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_geq(dialled, 0, "%s", strerror(errno));
    cr_assert_eq(connect(dialled, (struct sockaddr *)&address, sizeof address), 0, "port %d: %s", number, strerror(errno));
    return dialled;
}

/* What it says at once. */
static void speak(const stranger *who, int call) {
    static const char http[] = "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: scanner\r\n\r\n";
    static const uint8_t tls[] = {0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 0x5a}, frame[] = {'W', 'F', 'R', 1, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff};
    uint8_t       long_hello[4096];
    int           records = atomic_load(&common->records_done);
    const record *recorded = &common->records[call / KINDS % (records < MOST_RECORDS ? records : MOST_RECORDS)];
    switch (who->kind) {
    case HTTP: (void)!syscall(SYS_sendto, who->socket, http, sizeof http - 1, MSG_NOSIGNAL, NULL, 0); break;
    case TLS: (void)!syscall(SYS_sendto, who->socket, tls, sizeof tls, MSG_NOSIGNAL, NULL, 0); break;
    case REPLAY: (void)!syscall(SYS_sendto, who->socket, recorded->bytes, recorded->have, MSG_NOSIGNAL, NULL, 0); break;
    case WRONG_PROOF:
        memcpy(long_hello, recorded->bytes, RECORD_BYTES);
        for (int i = 56; i < 88; i++) long_hello[i] = (uint8_t)(call + i); /* its own nonce */
        memset(long_hello + WEFTI_HELLO_BYTES, call, WEFTI_MAC_BYTES);
        (void)!syscall(SYS_sendto, who->socket, long_hello, RECORD_BYTES, MSG_NOSIGNAL, NULL, 0);
        break;
    case OVERSIZE: /* a header of a control message that says 4 GiB, or a HELLO without end */
        memset(long_hello, 0xff, sizeof long_hello);
        memcpy(long_hello, recorded->bytes, 12);
        if (call / KINDS % 2) (void)!syscall(SYS_sendto, who->socket, frame, sizeof frame, MSG_NOSIGNAL, NULL, 0);
        else (void)!syscall(SYS_sendto, who->socket, long_hello, sizeof long_hello, MSG_NOSIGNAL, NULL, 0);
        break;
    default: break;
    }
}

/* Another byte of a HELLO that begins well. */
static void drip(stranger *who) {
    if (who->socket < 0 || who->kind != DRIP || who->dripped == WEFTI_HELLO_BYTES) return;
    (void)!syscall(SYS_sendto, who->socket, common->records[0].bytes + who->dripped++, 1, MSG_NOSIGNAL | MSG_DONTWAIT, NULL, 0);
}

/* Whether it was hung up on; gives its place away. */
static bool leave(stranger *who) {
    char    bytes[512];
    ssize_t got = 1;
    while (got > 0) got = recv(who->socket, bytes, sizeof bytes, MSG_DONTWAIT);
    bool over = got == 0 || errno == ECONNRESET;
    close(who->socket);
    who->socket = -1;
    return over;
}

/* All calls, a few for each step of the training. How many that spoke nonsense were hung up on before they left. */
static int call_all(ranks *all, const uint16_t *ports, int port_count, int calls) {
    static stranger open[MOST_OPEN];
    int             hung_up = 0;
    for (int i = 0; i < MOST_OPEN; i++) open[i].socket = -1;
    for (int call = 0; call < calls; call++) {
        stranger *who = &open[call % MOST_OPEN];
        if (who->socket >= 0) {
            kind was = who->kind;
            hung_up += leave(who) && (was == HTTP || was == TLS);
        }
        *who = (stranger){dial(ports[call % port_count]), (kind)(call / port_count % KINDS), 0};
        speak(who, call);
        if (who->kind == AT_ONCE) leave(who);
        for (int i = 0; i < MOST_OPEN; i++) drip(&open[i]);
        if ((call + 1) % CALLS_A_STEP) continue;
        int step = (call + 1) / CALLS_A_STEP;
        usleep(10000); /* the ranks look at their wires' ports every 10 ms once everyone is in */
        atomic_store(&all->step, step);
        for (uint64_t since = ranks_now(); atomic_load(&all->ready) < step;) {
            cr_assert(ranks_now() - since < 30 * WEFTI_SECOND_NS && !atomic_load(&all->results[0].finished), "step %d: %s", step, all->results[0].message);
            usleep(200);
        }
    }
    for (int i = 0; i < MOST_OPEN; i++)
        if (open[i].socket >= 0) leave(&open[i]);
    return hung_up;
}

/* --- the test --- */

/* Trains with so many strangers; the checkpoint at the end. */
static uint8_t *run(int calls, size_t *bytes_out) {
    uint16_t ports[MOST_PORTS];
    snprintf(common->path, sizeof common->path, "%s/weft-hostile-%d-%d", temporary_root(), (int)getpid(), calls);
    atomic_store(&common->records_done, 0);
    ranks *all = ranks_start(2, train);
    if (calls) {
        atomic_store(&all->step, 1);
        ranks_wait_ready(all, 1);
        int count = ranks_find_ports(all, ports, MOST_PORTS), records = atomic_load(&common->records_done), whole = 0;
        cr_assert_geq(count, 2, "%d ports", count);
        for (int i = 0; i < records && i < MOST_RECORDS; i++) whole += common->records[i].have == RECORD_BYTES;
        cr_assert_geq(whole, 2, "%d of %d handshakes were recorded", whole, records); /* of the store and of the wire */
        int hung_up = call_all(all, ports, count, calls);
        cr_expect_gt(hung_up, calls * 2 / KINDS / 2, "%d of %d that spoke HTTP or TLS were hung up on", hung_up, calls * 2 / KINDS);
    }
    atomic_store(&all->step, STEPS);
    ranks_join(all);
    for (int32_t rank = 0; rank < 2; rank++)
        cr_assert_eq(all->results[rank].status, WEFT_OK, "%d strangers, rank %d: %s", calls, (int)rank, all->results[rank].message);
    ranks_free(all);
    uint8_t *bytes = read_file(common->path, bytes_out);
    cr_assert_not_null(bytes, "%s: %s", common->path, strerror(errno));
    unlink(common->path);
    return bytes;
}

static void compare(void) {
    size_t sizes[2];
    common = mmap(NULL, sizeof *common, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(common, MAP_FAILED);
    if (wefti_can_authenticate()) setenv("WEFT_SECRET", SECRET, 1);
    uint8_t *alone = run(0, &sizes[0]), *among = run(CALLS, &sizes[1]);
    cr_expect(sizes[0] == sizes[1] && memcmp(alone, among, sizes[0]) == 0, "the checkpoints differ");
    free(alone);
    free(among);
}

Test(hostile, ten_thousand_strangers_change_no_bit) {
    if (!wefti_can_authenticate()) cr_skip_test("without libsodium only loopback is trusted, and all that come from there");
    compare();
}
Test(hostile, nor_where_the_ranks_encrypt) {
    if (!wefti_can_authenticate()) cr_skip_test("this build lacks libsodium");
    if (UNDER_THREAD_SANITIZER) cr_skip_test("once is enough there");
    setenv("WEFT_ENCRYPT", "1", 1);
    compare();
}

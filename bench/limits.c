/* What the machine gives for the same bytes without a library: copies, plain sockets, RDMA, one cache line. Each is measured
 * by the very ranks that are measured with Weft, in the same run and in turns with them where that is possible. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "harness.h"
#include "ranks.h"
#ifdef WEFTI_HAVE_VERBS
#include "transport/wire_verbs_api.h"
#endif

enum { TRIES = 5 };

double bench_copy_window(bench_rank *rank, void *to, const void *from, size_t bytes, int64_t times) {
    bench_meet(rank);
    double begin = bench_now_s();
    for (int64_t i = 0; i < times; i++) {
        memcpy(to, from, bytes);
        __asm__ __volatile__("" ::: "memory"); /* each copy is made */
    }
    return bench_slowest(rank, (bench_now_s() - begin) / (double)times);
}

/* One exchange, both directions at once, never blocking in one while the other could go on. */
static bool exchange(int right, int left, uint8_t *to, const uint8_t *from, size_t bytes, bool crowded) {
    size_t sent = 0, received = 0;
    while (sent < bytes || received < bytes) {
        bool moved = false;
        if (sent < bytes) {
            ssize_t count = send(right, from + sent, bytes - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (count < 0 && errno != EAGAIN && errno != EINTR) return false;
            if (count > 0) sent += (size_t)count, moved = true;
        }
        if (received < bytes) {
            ssize_t count = recv(left, to + received, bytes - received, MSG_DONTWAIT);
            if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR)) return false;
            if (count > 0) received += (size_t)count, moved = true;
        }
        if (!moved && (bytes > 65536 || crowded)) { /* who spins while others need the core waits for the end of his own turn */
            struct pollfd wait[2] = {{right, sent < bytes ? POLLOUT : 0, 0}, {left, received < bytes ? POLLIN : 0, 0}};
            poll(wait, 2, 100);
        }
    }
    return true;
}

double bench_socket_window(bench_rank *rank, void *to, void *next, const void *from, size_t bytes, int turns, int64_t times) {
    int right = rank->shared->sockets[rank->rank][0], left = rank->shared->sockets[rank->rank][1];
    if (right < 0 || left < 0) return BENCH_UNMEASURED;
    bool crowded = rank->size > rank->wire->host->cores;
    bench_meet(rank);
    double begin = bench_now_s();
    for (int64_t i = 0; i < times * turns; i++) {
        bool first = i % turns == 0;
        if (exchange(right, left, first ? to : next, first ? from : to, bytes, crowded)) continue;
        (void)wefti_fail(WEFT_E_LINK, "a plain socket broke");
        bench_fail(rank, "the limit");
    }
    return bench_slowest(rank, (bench_now_s() - begin) / (double)times);
}

/* --- requests between ranks 0 and 1 --- */

static bool send_all(int socket, const uint8_t *from, size_t bytes) {
    for (size_t sent = 0; sent < bytes;) {
        ssize_t count = send(socket, from + sent, bytes - sent, MSG_NOSIGNAL | (bytes <= 65536 ? MSG_DONTWAIT : 0));
        if (count < 0 && errno != EAGAIN && errno != EINTR) return false;
        if (count > 0) sent += (size_t)count;
    }
    return true;
}

/* Short ones are polled for, as Weft does. */
static bool receive_all(int socket, uint8_t *to, size_t bytes) {
    for (size_t received = 0; received < bytes;) {
        ssize_t count = recv(socket, to + received, bytes - received, bytes <= 65536 ? MSG_DONTWAIT : 0);
        if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR)) return false;
        if (count > 0) received += (size_t)count;
    }
    return true;
}

double bench_request_window(bench_rank *rank, void *memory, size_t there_bytes, size_t back_bytes, int64_t times) {
    int right = rank->shared->sockets[rank->rank][0], left = rank->shared->sockets[rank->rank][1];
    if (right < 0 || left < 0 || rank->size != 2) return BENCH_UNMEASURED;
    bench_meet(rank);
    double begin = bench_now_s();
    for (int64_t i = 0; i < times; i++) {
        bool moved = rank->rank == 0 ? send_all(right, memory, there_bytes) && receive_all(left, memory, back_bytes)
                                     : receive_all(left, memory, there_bytes) && send_all(right, memory, back_bytes);
        if (moved) continue;
        (void)wefti_fail(WEFT_E_LINK, "a plain socket broke");
        bench_fail(rank, "the limit");
    }
    return bench_slowest(rank, (bench_now_s() - begin) / (double)times);
}

static void run_op(bench_rank *rank, wefti_wire_op op) {
    weft_status status;
    op.flags |= WEFTI_WIRE_SILENT;
    while ((status = wefti_wire_post(rank->wire, &op)) == WEFT_E_AGAIN) BENCH_TRY(rank, wefti_wire_progress(rank->wire, wefti_host_now(rank->wire->host)));
    BENCH_TRY(rank, status);
    while (!op.done) BENCH_TRY(rank, wefti_wire_progress(rank->wire, wefti_host_now(rank->wire->host)));
    BENCH_TRY(rank, op.status);
}

double bench_ping_window(bench_rank *rank, size_t bytes, int64_t times) {
    uint8_t memory[4096] = {0};
    if (rank->size < 2 || bytes > sizeof memory) return BENCH_UNMEASURED;
    bench_meet(rank);
    double begin = bench_now_s();
    for (int64_t i = 0; i < times && rank->rank < 2; i++)
        for (int32_t from = 0; from < 2; from++)
            run_op(rank, from == rank->rank ? wefti_wire_send(1 - rank->rank, WEFTI_TAG_TEST, memory, bytes)
                                            : wefti_wire_recv(1 - rank->rank, WEFTI_TAG_TEST, memory, bytes));
    return bench_slowest(rank, rank->rank < 2 ? (bench_now_s() - begin) / (double)times : 0);
}

/* --- RDMA --- */

#ifdef WEFTI_HAVE_VERBS
/* One run of both ends of ib_write_bw, which meet on loopback; Gbit/s, or NAN. */
static double write_bandwidth(const wefti_wire *wire, size_t bytes) {
    char device[64], end[200], command[600], line[256];
    int port, gid;
    double gigabits = BENCH_UNMEASURED;
    wefti_verbs_first_rail(wire, device, &port, &gid);
    size_t messages = ((size_t)256 << 20) / bytes;
    snprintf(end, sizeof end, "ib_write_bw -d %s -i %d -x %d -F -s %zu -n %zu -p 18%03d --report_gbits", device, port, gid, bytes,
             messages < 20 ? 20 : messages > 2000 ? 2000 : messages, (int)getpid() % 1000);
    snprintf(command, sizeof command, "%s >/dev/null 2>&1 & sleep 0.5; timeout 60 %s 127.0.0.1 2>/dev/null; kill $! 2>/dev/null", end, end);
    FILE *output = popen(command, "r");
    if (!output) return BENCH_UNMEASURED;
    while (fgets(line, sizeof line, output)) {
        double size, iterations, peak, average; /* the columns of its table */
        if (sscanf(line, "%lf %lf %lf %lf", &size, &iterations, &peak, &average) == 4 && size == (double)bytes && average > 0)
            gigabits = average;
    }
    pclose(output);
    return gigabits;
}

double bench_write_bw_seconds(bench_rank *rank, size_t bytes) {
    double best = BENCH_UNMEASURED;
    if (strcmp(rank->wire_name, "verbs") != 0 || bytes == 0) return best;
    bench_meet(rank);
    if (rank->rank == 0) {
        for (int try = 0; try < 2; try++) {
            double gigabits = write_bandwidth(rank->wire, bytes), seconds = (double)bytes * 8e-9 / gigabits;
            if (!isnan(seconds) && !(seconds >= best)) best = seconds;
        }
        rank->shared->seconds[0] = best;
        atomic_store(&rank->shared->measured, true);
    }
    while (!atomic_load(&rank->shared->measured)) usleep(2000);
    bench_meet(rank);
    best = rank->shared->seconds[0];
    atomic_store(&rank->shared->measured, false);
    bench_meet(rank);
    return best;
}
#else
double bench_write_bw_seconds(bench_rank *rank, size_t bytes) {
    (void)rank, (void)bytes;
    return BENCH_UNMEASURED;
}
#endif

double bench_line_seconds(bench_rank *rank) {
    enum { LINES = 2000 };
    double best = 1e9;
    if (rank->size < 2) return BENCH_UNMEASURED;
    for (int try = 0; try < TRIES; try++) {
        if (rank->rank == 0) rank->shared->number = 0;
        bench_meet(rank);
        _Atomic int64_t *line = (_Atomic int64_t *)&rank->shared->number;
        double begin = bench_now_s();
        for (int64_t i = 0; i < LINES && rank->rank < 2; i++) {
            while (atomic_load_explicit(line, memory_order_acquire) != 2 * i + rank->rank)
                ;
            atomic_store_explicit(line, 2 * i + rank->rank + 1, memory_order_release);
        }
        double seconds = bench_slowest(rank, rank->rank < 2 ? (bench_now_s() - begin) / (2 * LINES) : 0);
        best = seconds < best ? seconds : best;
    }
    return best;
}

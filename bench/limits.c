/* What the machine gives for the same bytes without a library: copies, plain sockets, one cache line. Each is measured
 * by the very ranks that are measured with Weft, in the same run; the best of a few tries counts, for it is a limit. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "harness.h"
#include "ranks.h"

enum { TRIES = 5 };

double bench_copy_seconds(bench_rank *rank, void *to, const void *from, size_t bytes) {
    int times = bytes > ((size_t)1 << 20) ? 2 : 20;
    double best = 1e9;
    for (int try = 0; try < TRIES; try++) {
        bench_meet(rank);
        double begin = bench_now_s();
        for (int i = 0; i < times; i++) {
            memcpy(to, from, bytes);
            __asm__ __volatile__("" ::: "memory"); /* each copy is made */
        }
        double seconds = bench_slowest(rank, (bench_now_s() - begin) / times);
        best = seconds < best ? seconds : best;
    }
    return best;
}

/* One exchange, both directions at once, never blocking in one while the other could go on. */
static bool exchange(int right, int left, uint8_t *to, const uint8_t *from, size_t bytes) {
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
        if (!moved && bytes > 65536) {
            struct pollfd wait[2] = {{right, sent < bytes ? POLLOUT : 0, 0}, {left, received < bytes ? POLLIN : 0, 0}};
            poll(wait, 2, 100);
        }
    }
    return true;
}

double bench_socket_seconds(bench_rank *rank, void *to, const void *from, size_t bytes, int turns) {
    int right = rank->shared->sockets[rank->rank][0], left = rank->shared->sockets[rank->rank][1];
    if (right < 0 || left < 0) return BENCH_UNMEASURED;
    int times = bytes > ((size_t)1 << 20) ? 2 : bytes > 65536 ? 10 : 200;
    double best = 1e9;
    for (int try = 0; try < TRIES; try++) {
        bench_meet(rank);
        double begin = bench_now_s();
        for (int i = 0; i < times * turns; i++)
            if (!exchange(right, left, to, from, bytes)) {
                (void)wefti_fail(WEFT_E_LINK, "a plain socket broke");
                bench_fail(rank, "the limit");
            }
        double seconds = bench_slowest(rank, (bench_now_s() - begin) / times);
        best = seconds < best ? seconds : best;
    }
    return best;
}

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

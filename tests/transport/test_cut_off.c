/* A rank that lives, and whose packets are lost: every other one names it within 5 s.
 *
 * Connections of all ranks lead through a relay of the test, a process that hands bytes on until it is told to cut one rank off: from then on it
 * touches nothing that goes to that rank or comes from it, and closes nothing, so the ends see what they see when packets are dropped: no byte, and no end.
 * The library's calls of connect and listen are wrapped by the linker: a rank's connection begins with who calls and whom, for the
 * relay, and the victim's ports are noted. */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ranks.h"
#include "transport/handshake.h"

enum { MOST_WAYS = 64, MOST_PORTS = 16, PIECE_BYTES = 65536 };

/* Shared by the parent, the relay and all ranks. */
typedef struct relay {
    uint16_t     port;
    int32_t      victim;
    bool         idle; /* the ranks only wait */
    pid_t        process;
    _Atomic int  cut;
    _Atomic int  port_count;
    _Atomic int  ports[MOST_PORTS];    /* the victim's listeners */
    uint64_t     known_ns[RANKS_MOST]; /* when a rank knew */
} relay;

/* What a caller says first, to the relay alone. */
typedef struct preface {
    int32_t  caller;
    uint32_t port;
} preface;

static relay  *shared;
static int32_t own_rank = -1;

/* --- in the ranks --- */

int __real_connect(int socket, const struct sockaddr *address, socklen_t bytes);
int __real_listen(int socket, int backlog);
int __wrap_connect(int socket, const struct sockaddr *address, socklen_t bytes);
int __wrap_listen(int socket, int backlog);

static struct sockaddr_in loopback(uint16_t port) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

int __wrap_connect(int socket, const struct sockaddr *address, socklen_t bytes) {
    if (own_rank < 0 || address->sa_family != AF_INET) return __real_connect(socket, address, bytes);
    struct sockaddr_in to = loopback(shared->port);
    preface            first = {own_rank, ntohs(((const struct sockaddr_in *)(const void *)address)->sin_port)};
    struct pollfd      wait = {.fd = socket, .events = POLLOUT};
    if (__real_connect(socket, (struct sockaddr *)&to, sizeof to) != 0 && (errno != EINPROGRESS || poll(&wait, 1, 5000) != 1)) return -1;
    return send(socket, &first, sizeof first, MSG_NOSIGNAL) == sizeof first ? 0 : -1;
}

int __wrap_listen(int socket, int backlog) {
    struct sockaddr_in here;
    socklen_t          bytes = sizeof here;
    if (shared && own_rank == shared->victim && getsockname(socket, (struct sockaddr *)&here, &bytes) == 0 && here.sin_family == AF_INET) {
        int place = atomic_fetch_add(&shared->port_count, 1);
        if (place < MOST_PORTS) atomic_store(&shared->ports[place], ntohs(here.sin_port));
    }
    return __real_listen(socket, backlog);
}

/* --- the relay --- */

typedef struct way {
    int     ends[2]; /* the caller's, and the one that was called; -1: none yet */
    bool    victims;
    bool    over[2]; /* that end sends no more */
    size_t  have[2], sent[2]; /* what came from that end */
    uint8_t bytes[2][PIECE_BYTES];
} way;

static bool is_victims(const preface *first) {
    bool found = first->caller == shared->victim;
    for (int i = 0; i < MOST_PORTS; i++) found = found || atomic_load(&shared->ports[i]) == (int)first->port;
    return found;
}

static void close_way(way *at) {
    for (int end = 0; end < 2; end++) {
        if (at->ends[end] >= 0) close(at->ends[end]);
        at->ends[end] = -1;
    }
}

static void make_quick(int socket) {
    int one = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(socket, F_SETFL, fcntl(socket, F_GETFL) | O_NONBLOCK);
}

/* Hears whom a caller wants, and calls it. Refused: the caller is hung up on. */
static void extend(way *at) {
    preface first;
    ssize_t got = recv(at->ends[0], &first, sizeof first, MSG_DONTWAIT | MSG_PEEK);
    if (got < 0 && errno == EAGAIN) return;
    if (got > 0 && got < (ssize_t)sizeof first) return;
    struct sockaddr_in to = loopback((uint16_t)first.port);
    if (got <= 0 || recv(at->ends[0], &first, sizeof first, MSG_DONTWAIT) != sizeof first ||
        (at->ends[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) < 0 ||
        __real_connect(at->ends[1], (struct sockaddr *)&to, sizeof to) != 0) {
        close_way(at);
        return;
    }
    make_quick(at->ends[1]);
    at->victims = is_victims(&first);
}

/* Hands on what has come from one end; true where something moved. */
static bool hand_on(way *at, int from) {
    if (at->ends[0] < 0 || at->over[from]) return false;
    if (at->sent[from] == at->have[from]) {
        ssize_t got = recv(at->ends[from], at->bytes[from], PIECE_BYTES, MSG_DONTWAIT);
        if (got < 0 && errno == EAGAIN) return false;
        if (got <= 0) {
            at->over[from] = true;
            shutdown(at->ends[1 - from], SHUT_WR);
            if (got < 0 || at->over[1 - from]) close_way(at);
            return true;
        }
        at->have[from] = (size_t)got;
        at->sent[from] = 0;
    }
    ssize_t sent = send(at->ends[1 - from], at->bytes[from] + at->sent[from], at->have[from] - at->sent[from], MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) close_way(at);
    if (sent > 0) at->sent[from] += (size_t)sent;
    return sent > 0;
}

static bool accept_caller(int listener, way *ways) {
    int caller = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (caller < 0) return false;
    make_quick(caller);
    for (int i = 0; i < MOST_WAYS; i++) {
        if (ways[i].ends[0] >= 0) continue;
        memset(&ways[i], 0, offsetof(way, bytes));
        ways[i].ends[0] = caller;
        ways[i].ends[1] = -1;
        return true;
    }
    close(caller); /* who calls again later */
    return true;
}

static _Noreturn void run_relay(int listener) {
    way *ways = calloc(MOST_WAYS, sizeof *ways);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (!ways) _exit(1);
    for (int i = 0; i < MOST_WAYS; i++) ways[i].ends[0] = ways[i].ends[1] = -1;
    for (;;) {
        bool moved = accept_caller(listener, ways), cut = atomic_load(&shared->cut);
        for (int i = 0; i < MOST_WAYS; i++) {
            if (ways[i].ends[0] < 0 || (cut && ways[i].victims)) continue;
            if (ways[i].ends[1] < 0) {
                extend(&ways[i]);
                continue;
            }
            for (int from = 0; from < 2; from++) moved = hand_on(&ways[i], from) || moved;
        }
        if (!moved) usleep(100);
    }
}

static void start_relay(int32_t victim, bool idle) {
    struct sockaddr_in address = loopback(0);
    socklen_t          bytes = sizeof address;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(shared, MAP_FAILED);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    cr_assert(bind(listener, (struct sockaddr *)&address, bytes) == 0 && __real_listen(listener, 100) == 0);
    cr_assert_eq(getsockname(listener, (struct sockaddr *)&address, &bytes), 0);
    shared->port = ntohs(address.sin_port);
    shared->victim = victim;
    shared->idle = idle;
    pid_t child = fork();
    if (child == 0) run_relay(listener);
    cr_assert_gt(child, 0);
    shared->process = child;
    close(listener);
}

/* --- ranks --- */

static weft_status work(wefti_transport *transport, ranks *all) {
    enum { COUNT = 100000 };
    weft_status status = WEFT_OK;
    float      *values = calloc(COUNT, sizeof *values);
    for (int step = 0; status == WEFT_OK; step++) {
        wefti_collective_call call = {.kind = WEFTI_ALLREDUCE, .send = values, .receive = values, .count = step % 3 ? COUNT : 3};
        status = wefti_collective_run(transport->group, &call);
        if (step == 40) atomic_fetch_add(&all->ready, 1);
    }
    free(values);
    return status;
}

static weft_status wait_idly(wefti_transport *transport, ranks *all) {
    weft_status status;
    atomic_fetch_add(&all->ready, 1);
    while ((status = wefti_fault_status(transport->fault)) == WEFT_OK) usleep(1000);
    return status;
}

static weft_status live_until_the_end(ranks *all, int32_t rank) {
    wefti_transport *transport = NULL;
    own_rank = rank;
    WEFTI_TRY(wefti_transport_open(&(wefti_transport_options){.wire = "tcp"}, &transport));
    weft_status status = shared->idle ? wait_idly(transport, all) : work(transport, all);
    shared->known_ns[rank] = ranks_now();
    all->results[rank].fault_rank = wefti_fault_rank(transport->fault);
    wefti_transport_close(transport);
    return status;
}

static void cut_off(int32_t size, int32_t victim, bool idle) {
    char words[64];
    start_relay(victim, idle);
    snprintf(words, sizeof words, "rank %d", (int)victim);
    ranks *all = ranks_start(size, live_until_the_end);
    ranks_wait_ready(all, size);
    usleep(20000);
    uint64_t since_ns = ranks_now();
    atomic_store(&shared->cut, 1);
    ranks_join(all);
    for (int32_t rank = 0; rank < size; rank++) {
        const rank_result *result = &all->results[rank];
        double             took_s = (double)(shared->known_ns[rank] - since_ns) / 1e9;
        cr_expect(result->status == WEFT_E_PEER && strstr(result->message, "silent"), "rank %d, with rank %d cut off: %s: %s", (int)rank,
                  (int)victim, weft_status_name(result->status), result->message);
        cr_expect(took_s > 1 && took_s < 5, "rank %d knew after %g s that rank %d was cut off", (int)rank, took_s, (int)victim);
        cr_expect(result->at_ns - shared->known_ns[rank] < 3 * WEFTI_SECOND_NS, "rank %d needed %g s to leave", (int)rank,
                  (double)(result->at_ns - shared->known_ns[rank]) / 1e9);
        if (rank == victim) continue; /* to which the others are silent */
        cr_expect(result->fault_rank == victim && strstr(result->message, words), "rank %d blames %d, not %d: %s", (int)rank,
                  (int)result->fault_rank, (int)victim, result->message);
    }
    cr_expect_eq(kill(shared->process, 0), 0, "the relay itself has ended");
    kill(shared->process, SIGKILL);
    waitpid(shared->process, NULL, 0);
    ranks_free(all);
    munmap(shared, sizeof *shared);
    shared = NULL;
}

Test(cut_off, the_last_rank_is_named_while_all_work) { cut_off(3, 2, false); }
Test(cut_off, rank_0_is_named_while_all_work) { cut_off(4, 0, false); }
Test(cut_off, a_rank_is_named_while_nobody_works) { cut_off(3, 1, true); }
Test(cut_off, a_rank_is_named_where_all_is_encrypted) {
    if (!wefti_can_authenticate()) cr_skip_test("this build lacks libsodium");
    setenv("WEFT_SECRET", "0123456789abcdef0123456789abcdef", 1);
    setenv("WEFT_ENCRYPT", "1", 1);
    cut_off(3, 1, false);
}

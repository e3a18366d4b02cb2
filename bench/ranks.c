/* Making ranks, connecting them, and keeping their clocks together. Ranks are forked before anything is opened; what
 * they share is one anonymous mapping. Waiting there spins for a short while and then lets others run. */
#include "ranks.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

_Noreturn void bench_fail(bench_rank *rank, const char *what) {
    fprintf(stderr, "error: rank %d: %s: %s\n", (int)rank->rank, what, weft_error_message());
    atomic_store(&rank->shared->failed, 1);
    _exit(1);
}

void bench_meet(bench_rank *rank) {
    bench_shared *shared = rank->shared;
    int generation = atomic_load(&shared->generation), spins = 0;
    if (atomic_fetch_add(&shared->arrived, 1) + 1 == rank->size) {
        atomic_store(&shared->arrived, 0);
        atomic_fetch_add(&shared->generation, 1);
        return;
    }
    while (atomic_load(&shared->generation) == generation) {
        if (atomic_load(&shared->failed)) _exit(1);
        if (++spins > 200) sched_yield();
    }
}

double bench_slowest(bench_rank *rank, double seconds) {
    rank->shared->seconds[rank->rank] = seconds;
    bench_meet(rank);
    for (int32_t i = 0; i < rank->size; i++)
        if (rank->shared->seconds[i] > seconds) seconds = rank->shared->seconds[i];
    bench_meet(rank);
    return seconds;
}

int64_t bench_agree(bench_rank *rank, int64_t number) {
    if (rank->rank == 0) rank->shared->number = number;
    bench_meet(rank);
    number = rank->shared->number;
    bench_meet(rank);
    return number;
}

/* --- where ranks that open a world meet --- */

int bench_pick_store(char store_out[64]) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int holder = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(holder, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (holder < 0 || bind(holder, (struct sockaddr *)&address, length) != 0 || getsockname(holder, (struct sockaddr *)&address, &length) != 0) {
        perror("a port for the rendezvous");
        exit(1);
    }
    snprintf(store_out, 64, "127.0.0.1:%d", ntohs(address.sin_port));
    return holder;
}

/* --- the wire --- */

static void connect_all(bench_rank *rank, void *hub) {
    wefti_wire_options options = {.rank = rank->rank, .size = rank->size, .job = "weft-bench", .shared = hub};
    const char *encrypt = getenv("WEFT_ENCRYPT"), *secret = "the ranks of a bench have no secrets";
    if (encrypt && strcmp(encrypt, "1") == 0) {
        options.encrypt = true;
        options.secret = (const uint8_t *)secret;
        options.secret_bytes = strlen(secret);
    }
    bench_shared *shared = rank->shared;
    BENCH_TRY(rank, wefti_wire_open(rank->wire_name, &options, &rank->wire));
    const wefti_wire_ops *ops = rank->wire->ops;
    BENCH_TRY(rank,
              ops->address(rank->wire, shared->addresses[rank->rank].address, &shared->addresses[rank->rank].bytes));
    bench_meet(rank);
    for (int32_t peer = 0; peer < rank->size; peer++)
        if (peer != rank->rank)
            BENCH_TRY(rank,
                      ops->connect(rank->wire, peer, shared->addresses[peer].address, shared->addresses[peer].bytes));
    for (int32_t peer = 0; peer < rank->size; peer++) {
        double begin = (double)wefti_host_now(rank->wire->host);
        while (ops->link(rank->wire, peer) != WEFTI_LINK_UP) {
            BENCH_TRY(rank, wefti_wire_progress(rank->wire, wefti_host_now(rank->wire->host)));
            if ((double)wefti_host_now(rank->wire->host) - begin > 10e9) {
                (void)wefti_fail(WEFT_E_TIMEOUT, "no link to rank %d within 10 s", (int)peer);
                bench_fail(rank, "connect");
            }
            sched_yield();
        }
    }
    bench_meet(rank);
}

/* One core for each rank, where there are enough: else the system may put two spinning ranks on one. */
static void pin(const bench_rank *rank) {
    cpu_set_t all, one;
    if (sched_getaffinity(0, sizeof all, &all) != 0 || CPU_COUNT(&all) < rank->size) return;
    int32_t left = rank->rank;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &all) || left-- > 0) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        sched_setaffinity(0, sizeof one, &one);
        return;
    }
}

typedef struct rank_start {
    bench_rank rank;
    void *hub;
    int (*body)(bench_rank *rank);
    int status;
} rank_start;

static void *run_rank(void *context) {
    rank_start *start = context;
    pin(&start->rank);
    connect_all(&start->rank, start->hub);
    start->status = start->body(&start->rank);
    bench_meet(&start->rank);
    start->rank.wire->ops->close(start->rank.wire, WEFTI_SECOND_NS);
    return NULL;
}

#ifdef WEFTI_HAVE_MPI
static int run_one(bench_rank *rank, int (*body)(bench_rank *rank)) {
    rank_start start = {.rank = *rank, .body = body};
    run_rank(&start);
    return start.status;
}
#endif

static int run_threads(rank_start *starts, int32_t size) {
    pthread_t threads[BENCH_MOST_RANKS];
    wefti_inproc_hub *hub = NULL;
    if (wefti_inproc_hub_create(size, &hub) != WEFT_OK) bench_fail(&starts[0].rank, "hub");
    for (int32_t i = 0; i < size; i++) {
        starts[i].hub = hub;
        if (pthread_create(&threads[i], NULL, run_rank, &starts[i]) != 0) bench_fail(&starts[i].rank, "pthread_create");
    }
    int status = 0;
    for (int32_t i = 0; i < size; i++) {
        pthread_join(threads[i], NULL);
        status |= starts[i].status;
    }
    wefti_inproc_hub_release(hub);
    return status;
}

static int run_processes(rank_start *starts, int32_t size) {
    pid_t children[BENCH_MOST_RANKS], parent = getpid();
    fflush(NULL);
    for (int32_t i = 0; i < size; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent) _exit(1);
            run_rank(&starts[i]);
            fflush(NULL);
            _exit(starts[i].status);
        }
        if (children[i] < 0) {
            perror("fork");
            atomic_store(&starts[0].rank.shared->failed, 1);
            size = i;
        }
    }
    int outcome = 0;
    for (int32_t left = size; left > 0; left--) {
        int status = 0;
        wait(&status);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0) continue;
        outcome = 1;
        atomic_store(&starts[0].rank.shared->failed, 1); /* the others end at their next meeting */
    }
    return outcome;
}

/* --- plain sockets between neighbours, for the limit --- */

static int listen_here(struct sockaddr_in *address_out) {
    socklen_t length = sizeof *address_out;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, IPPROTO_TCP, TCP_CONGESTION, "reno", 4); /* as the wire's on loopback; accepted ones inherit it */
    *address_out = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (listener < 0 || bind(listener, (struct sockaddr *)address_out, length) != 0 || listen(listener, 1) != 0 ||
        getsockname(listener, (struct sockaddr *)address_out, &length) != 0) {
        perror("a plain socket");
        exit(1);
    }
    return listener;
}

static void make_sockets(bench_shared *shared, int32_t size) {
    for (int32_t i = 0; i < size; i++) {
        struct sockaddr_in address;
        int listener = listen_here(&address), on = 1;
        int out = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        setsockopt(out, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
        if (out < 0 || connect(out, (struct sockaddr *)&address, sizeof address) != 0) {
            perror("a plain connection");
            exit(1);
        }
        int in = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        close(listener);
        setsockopt(out, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(in, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        shared->sockets[i][0] = out;
        shared->sockets[(i + 1) % size][1] = in;
    }
}

int bench_run_ranks(const char *wire_name, int32_t size, int (*body)(bench_rank *rank), void *argument) {
    if (size < 1 || size > BENCH_MOST_RANKS) {
        fprintf(stderr, "error: %d ranks: from 1 to %d\n", (int)size, BENCH_MOST_RANKS);
        return 2;
    }
#ifdef WEFTI_HAVE_MPI
    if (strcmp(wire_name, "mpi") == 0) return bench_run_launched(size, run_one, body, argument);
#endif
    bench_shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    static rank_start starts[BENCH_MOST_RANKS];
    (void)wefti_host_system(); /* counts the cores that all ranks share, before each is bound to one */
    for (int32_t i = 0; i < size; i++) {
        starts[i] = (rank_start){.rank = {i, size, wire_name, NULL, shared, argument}, .body = body};
        shared->sockets[i][0] = shared->sockets[i][1] = -1;
    }
    if (strcmp(wire_name, "tcp") == 0) make_sockets(shared, size);
    int status = strcmp(wire_name, "inproc") == 0 ? run_threads(starts, size) : run_processes(starts, size);
    munmap(shared, sizeof *shared);
    return status;
}

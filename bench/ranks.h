/* Ranks for benchmarks: processes (threads for the in-process wire) that are connected by a wire. */
#ifndef WEFT_BENCH_RANKS_H
#define WEFT_BENCH_RANKS_H

#include <stdatomic.h>

#include "core/iface/collective.h"
#include "transport/wire_common.h"

enum { BENCH_MOST_RANKS = 64, BENCH_MOST_WINDOWS = 64 };

/* What the ranks share outside of any wire, so that timing disturbs nothing. */
typedef struct bench_shared {
    _Atomic int arrived, generation, failed;
    _Atomic bool measured; /* by rank 0, while the others sleep */
    double seconds[BENCH_MOST_RANKS];
    int64_t number;
    int sockets[BENCH_MOST_RANKS][2]; /* [rank]: to the right, to the left: plain TCP on loopback; -1 */
    struct {
        size_t bytes;
        uint8_t address[WEFTI_WIRE_ADDRESS_BYTES];
    } addresses[BENCH_MOST_RANKS];
} bench_shared;

typedef struct bench_rank {
    int32_t rank, size;
    const char *wire_name;
    wefti_wire *wire;
    bench_shared *shared;
    void *argument;
} bench_rank;

/* Runs `body` on `size` ranks; exit status 0 where all gave 0. Sockets between neighbours are made for "tcp". For "mpi" the ranks are
 * not made here: mpirun has started the program as often. */
int bench_run_ranks(const char *wire_name, int32_t size, int (*body)(bench_rank *rank), void *argument);

/* For ranks that open a world of their own: a port of loopback, as "127.0.0.1:port". It is bound and does not listen, so nobody else gets it, until the
 * descriptor that is given is closed, once all ranks have gone. Ends the program where there is none. */
int bench_pick_store(char store_out[64]);

/* The same for "mpi"; `run` connects one rank and runs the body on it. In builds with MPI. */
int bench_run_launched(int32_t size, int (*run)(bench_rank *rank, int (*body)(bench_rank *rank)), int (*body)(bench_rank *rank),
                       void *argument);

/* Waits for all ranks; polls nothing. Ends the program where one has failed. */
void bench_meet(bench_rank *rank);
/* Everyone gives seconds; all get the most. */
double bench_slowest(bench_rank *rank, double seconds);
/* All get what rank 0 gives. */
int64_t bench_agree(bench_rank *rank, int64_t number);
/* Prints the message of the latest failure and ends this rank. */
_Noreturn void bench_fail(bench_rank *rank, const char *what);
#define BENCH_TRY(rank, call)                                                                                          \
    do {                                                                                                               \
        if ((call) != WEFT_OK) bench_fail((rank), #call);                                                              \
    } while (0)

/* --- limits: what the machine gives for the same bytes, without a library --- */

/* One window each, of `times` times, as long as the slowest rank takes: to be had in turns with windows of Weft's, so that a machine
 * that is now quick and now slow is so for both. Seconds a time. */

/* Every rank copies `bytes` from `from` to `to`, all at once. */
double bench_copy_window(bench_rank *rank, void *to, const void *from, size_t bytes, int64_t times);
/* Every rank sends `bytes` to the right and receives as many from the left over plain sockets, as often as there are `turns`, each
 * when the one before it is over: from `from` to `to`, then from there on to `next`, where a ring puts it. NAN where there are no
 * sockets. */
double bench_socket_window(bench_rank *rank, void *to, void *next, const void *from, size_t bytes, int turns, int64_t times);
/* Rank 0 sends so many bytes to rank 1 over a plain socket and gets so many back, from and into `memory`. NAN where there are no sockets, or
 * more ranks. */
double bench_request_window(bench_rank *rank, void *memory, size_t there_bytes, size_t back_bytes, int64_t times);
/* Ranks 0 and 1 answer each other over the bare wire; a whole round trip. */
double bench_ping_window(bench_rank *rank, size_t bytes, int64_t times);
/* Seconds that `bytes` take one way by ib_write_bw of rdma-core's perftest, on the device and port that the verbs wire uses first;
 * NAN for another wire, or where there is no such program. The other ranks sleep meanwhile. */
double bench_write_bw_seconds(bench_rank *rank, size_t bytes);
/* Seconds for one cache line to go from rank to rank and an answer back, halved: two ranks polling shared memory. */
double bench_line_seconds(bench_rank *rank);

#endif

/* The world: this process's rank, its device, and its link to the other ranks. */
#ifndef WEFT_WORLD_H
#define WEFT_WORLD_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "weft/status.h"
#include "weft/threads.h"
#include "weft/wire.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weft_world weft_world;

/* Threads: a world, and all that was made in it, is for one thread at a time; different worlds may be used at the same time. Rank,
 * size and describe may be called from any thread. Errors are kept by thread (weft/status.h).
 *
 * What the environment says, where the options do not:
 *   WEFT_RANK, WEFT_WORLD_SIZE       who this is, of how many (weftrun sets them; torchrun's, MPI launchers' and Slurm's do as well; in an
 *                                    indexed job of Kubernetes only the second is needed)
 *   WEFT_LOCAL_RANK, WEFT_LOCAL_SIZE the same on this host
 *   WEFT_STORE=host:port             where rank 0 is met; mpi: rank 0 says so over MPI, with a secret of its own making
 *   WEFT_MPI, WEFT_MPI_DIR           the MPI to use (openmpi, mpich, or a module's file), and where modules (libweft_mpi_*.so) lie
 *   WEFT_WIRE, WEFT_DEVICE           as .wire and .device
 *   WEFT_TUNING                      what groups choose their algorithms by (weft/collective.h)
 *   WEFT_THREADS                     threads of the CPU device (weft/threads.h)
 *   WEFT_NCCL                        as .nccl; NCCL reads its own variables (NCCL_SOCKET_IFNAME, NCCL_DEBUG, ...) besides
 *   WEFT_CUDA_TF32=1                 f32 products and convolutions on a GPU may round their factors to 10 bits (tf32), which is quicker
 *   WEFT_CUDA_CAPTURE=0              launch kernels one by one, not as graphs; WEFT_CUDA_NVRTC=0: no kernels compiled at run time;
 *   WEFT_CUDA_EPILOGUE=0             products by themselves, and what follows them by kernels of Weft's;
 *   WEFT_CUDA_CHANNELS_LAST=0        images of 16-bit convolutions in the program's order. For debugging, and to compare
 *   WEFT_VERBS_DEVICE                RDMA devices of the verbs wire, a port of each (mlx5_0, or mlx5_0:1,mlx5_1:1; all): the first that is up where not set;
 *   WEFT_VERBS_GID                   the index of the GID to use, WEFT_VERBS_TRAFFIC_CLASS of packets, WEFT_VERBS_TIMEOUT: 4 us * 2^it until an
 *                                    unanswered packet is sent again (15);
 *   WEFT_VERBS_DEVICE_MEMORY         how the wire comes to a GPU's memory: dmabuf, peer (nvidia_peermem), copies, or auto (the first that works)
 *   WEFT_INTERFACE                   interface of this host to bind to, by name (eth0) or address; loopback where not set. Another one demands
 *   WEFT_SECRET, WEFT_SECRET_FILE    a secret of 16 bytes or more, the same on every rank: itself, or a file that only its owner can read
 *   WEFT_ENCRYPT=1                   as .encrypt
 *   WEFT_JOB                         a name, the same on every rank, so that two jobs on one port are not taken for each other */

/* How to come into the world. Zero means: read the launcher's environment, one rank where there is none. */
typedef struct weft_world_options {
    int32_t     rank, size;      /* size 0: from the environment (weftrun, torchrun, MPI, Slurm), else 1 rank */
    const char *store;           /* "host:port" of the rendezvous; NULL: from the environment */
    const char *wire;            /* "shm", "tcp", "verbs", "mpi", "auto": one that reaches every rank (shm on one host; else mpi where an MPI
                                    launcher started the ranks, else tcp); NULL: from the environment, else auto */
    const weft_wire_kind *own_wire; /* one of the program's own, by its name, and taken where nothing else is asked for; NULL: none. It must
                                    live as long as the world */
    const char *device;          /* "cpu"; "cuda:N", the N-th GPU; "cuda", that of this rank among its host's; "auto": cuda where there is a
                                    GPU, else cpu; NULL: from the environment (WEFT_DEVICE), else cpu */
    const char *nccl;            /* what collectives of GPUs go by: "auto", NCCL where every rank has it and a GPU of its own, else copies through
                                    host memory and the wire; "off", always those; "force", NCCL or an error that says why not; "nodes", NCCL inside
                                    each host and the wire across them, shard by shard, or an error; "nodes:N", the same with N ranks each taken for
                                    a host. Auto comes to that where hosts have NCCL of different versions. The same on all ranks. NULL: from the environment (WEFT_NCCL), else auto. Ranks may share a GPU under NCCL where
                                    each has an NCCL_HOSTID of its own */
    weft_threads threads;        /* of the CPU device; sharers is found at the rendezvous */
    int64_t     timeout_ns;      /* for joining and for every wait; 0: 30 s */
    bool        no_control_thread; /* true: faults are noticed only inside calls */
    bool        encrypt;         /* all TCP traffic, of the wire too, is encrypted, under keys made for each connection; all ranks alike.
                                    Demands a secret (weftrun makes one) and a wire that can: tcp, or shm, which stays inside one host.
                                    false: as the environment says (WEFT_ENCRYPT=1), else not. Costs about 0.7 ns a byte on either end */
} weft_world_options;

/* MPI. The first world that needs it initialises MPI (for MPI_THREAD_SERIALIZED), unless the program has, and makes a communicator of
 * its own, collective over MPI_COMM_WORLD. Weft finalises MPI when the process exits, where it was the one who initialised it and all worlds
 * were released without a fault; a program that initialised it releases its worlds first. One that asked for less than MPI_THREAD_SERIALIZED
 * uses its worlds from the thread that initialised MPI. MPI itself does not survive the death of a process: its launcher ends the job, or
 * (mpirun --enable-recovery) survivors get WEFT_E_PEER with the rank, and where MPI holds on to memory of an unfinished transfer this process
 * uses MPI no more. */

/* Joins the group: opens device and wire and meets the other ranks. Blocks until all are there or the deadline passes;
 * collective over all ranks. `options` may be NULL. Errors: a rank count that disagrees with the launcher's, a port that
 * is taken, a peer that does not come (named), a secret that is wrong, an unknown wire or device (those that exist are
 * listed). *world_out is NULL on error. */
WEFT_MUST_CHECK weft_status weft_world_create(const weft_world_options *options, weft_world **world_out);

/* Leaves the group and frees everything. NULL is fine. Objects made in this world must be released before. Waits for no other rank,
 * at most two seconds for what is being sent to leave; the latest error message stays. Not to be called twice or beside another call. */
void weft_world_release(weft_world *world);

int32_t weft_world_rank(const weft_world *world); /* 0 .. size-1 */
int32_t weft_world_size(const weft_world *world);

/* --- what happens to ranks ---
 *
 * The first fault of a world is its verdict: it is told to every rank, and every operation there, pending or later, ends with that one
 * status. The message names the rank at fault with its host and process, the cause, and which operation of this rank ended with it (its
 * sequence number, group, kind, count and dtype). Rank 0 decides which fault was the first, so that all ranks have the same verdict; one that
 * gets no answer from rank 0 within 2 s decides alone. How soon a rank is known to be lost:
 *
 *                                      with control threads (the default)   with .no_control_thread
 *   its process has died, same host    100 ms                               100 ms after the next look: any wait inside of a call looks once
 *                                                                           a millisecond, a computing rank does not look at all
 *   a connection to it was reset       1 s (it may have left because of     the same, after the next look
 *                                      an earlier fault, whose news is
 *                                      given 300 ms to come)
 *   it is stopped or cut off: silent   5 s (4 s of silence, looked at       never by itself: the deadline of what waits for it (30 s, or
 *                                      5 times a second)                    .timeout_ns of the world, group or call)
 *   it is alive, and does not come     the deadline of what waits for it    the same
 *
 * The bounds are those of a machine that lets a waking thread run within some 10 ms. */

/* Going on after a fault. Zero means the default. */
typedef struct weft_shrink_options {
    int32_t least;       /* ranks to go on with; with fewer the call fails; 0: 1 */
    int64_t patience_ns; /* with ranks that seem to be alive and do not call; 0: 10 s */
    int64_t replacement_ns; /* with ranks that are lost, for other processes to be started in their place; 0: none is let in */
} weft_shrink_options;

/* The survivors of a fault make a world of their own: those who are left, numbered anew from 0 in their old order, over the same kind of wire
 * and with the options that `world` was made with. Any rank may be lost, rank 0 too, and any number of them.
 *
 * Collective over the survivors: each calls it, once an operation of `world` has ended with the verdict. Blocks until the new world stands:
 * within 2 s of the last survivor's call where the lost ones' processes have ended, or the verdict names the one that is silent (stopped, cut
 * off). Survivors who seem to be alive and do not call are waited for with patience, and left behind after it. Ranks that are lost during the call
 * are left behind too: within 2 s of the last one where their processes end, else after the world's timeout and the patience. Ranks whose
 * processes may be alive are left behind by more than half of all such ranks alone, so that never two parts of a world both go on: of two ranks, one
 * of which is stopped, none does (but see "What a launcher can do"). Who was left behind by more than half is so for good, in all further calls, also when those have ended
 * since.
 *
 * `world` stays as it is, with all that was made in it: groups, variables, arrays, graphs, plans and trainers belong to it and are never taken
 * over. What is in this rank's memory can still be read (not what needs the other ranks); every operation over ranks, plans' runs included, ends with
 * the verdict, as before. The program makes what it needs again in the new world, and releases the old one with its objects when
 * it likes. No message of the old world reaches the new one. Its dump signal is not taken over.
 *
 * Strangers. For this call every rank of a world listens on a port of its own, of the interface where the ranks meet. Nobody is let in there but
 * during the call, by proof of the job's secret; at all other times the control thread hangs up on whoever calls. With .no_control_thread the
 * calls of this rank do so, and between them up to 1024 who called wait; survivors who find that many before them find no answer, and
 * treat this rank as one that seems to be alive.
 *
 * Replacements. Where WEFT_DOORS=host:port,... names a port for each rank's calls, on every rank from the start (as weftrun --elastic sets it), a process
 * may be started in place of a lost one: with the same environment, and WEFT_REJOIN=1. Its weft_world_create comes into the world that the
 * survivors make, if they wait for it (replacement_ns; nobody waits longer than until all are there), and weft_world_is_replacement tells it so.
 * The new world then has as many ranks as before, in the old order, but that rank 0 is never a newcomer: where that one was lost, the
 * lowest survivor changes to the front. Who comes later ends the operations of the world that the survivors went on in, with WEFT_E_PEER and a
 * message that says so, and their next call lets it in; a single one, who has no operations over ranks, is told by weft_world_verdict. Who finds nobody alive, or is not let in before its timeout, fails with WEFT_E_PEER.
 *
 * What a launcher can do for them (weftrun --elastic does). WEFT_GONE_FD names the descriptor of a file with two bytes for each rank, by its first number: the
 * first is not 0 once nobody will be started in its place, so that nobody waits for it; the second counts its starts. WEFT_FENCE_FD names that
 * of a socket of messages. A rank that lives and does not come (it hangs, or is stopped) is then ended for the others, by half of them or more: they send
 * the asker's rank and start and the other's, as "0 1 3 1", once the others are there and the verdict names it, or their patience is over. The launcher kills
 * that process, unless one of the two starts is not the latest or the asker was ended before: so of two halves one goes on, and so does one of two ranks.
 *
 * Errors: WEFT_E_INVALID; WEFT_E_STATE where the world has no fault; WEFT_E_PEER where this rank is the one that was given up, or too few came (the
 * message says which); WEFT_E_UNSUPPORTED over MPI, which does not survive a process, and where a rank's host let it open no port to be found at;
 * and those of weft_world_create. After an error the call may be made again. Threads: as for all else in `world`.
 * *world_out is NULL on error. From src/transport/shrink.c. */
WEFT_MUST_CHECK weft_status weft_world_shrink(weft_world *world, const weft_shrink_options *options, weft_world **world_out);
/* WEFT_OK while the world has no fault; else the verdict, with its message. Never blocks. For ranks that run no operation over ranks for a long time, as those
 * that push to a parameter server without waiting: whose rank was lost, or who waits to come in, is heard by this alone. */
WEFT_MUST_CHECK weft_status weft_world_verdict(weft_world *world);
/* Whether this process came into the world in place of a lost rank: the others have gone further, and know more (weft_trainer_renew). */
bool weft_world_is_replacement(const weft_world *world);

/* Writes what every rank has been doing to `to`: for each group its latest 16 operations, those in flight with their age and the rank that
 * they wait for; a line for each rank that does not answer within a second. A rank answers by its control thread even while it is stuck. Any
 * thread, also beside a call that blocks. WEFT_E_IO, WEFT_E_NO_MEMORY; WEFT_E_STATE while another thread asks. */
WEFT_MUST_CHECK weft_status weft_world_dump(weft_world *world, FILE *to);

/* From now on signal `number` (SIGUSR1, say) makes this process write the same about its own rank to standard error, until the world is
 * released; weftrun hands signals on to all ranks. The library installs no handler unless this is called. The control thread writes; without
 * one, whoever waits; with one rank nobody waits and nothing is written. WEFT_E_INVALID for a signal that cannot be handled, WEFT_E_STATE
 * where the world listens to another one already, WEFT_E_OVERFLOW for the 17th world. Any thread. */
WEFT_MUST_CHECK weft_status weft_world_dump_on(weft_world *world, int number);

/* The straggler: the rank that all others have waited for in the last seconds, and the share of the time (0 to 1) by which each of them
 * waited longer than it; `share_out` may be NULL. -1 where nobody is behind by a tenth, and without control threads. Any thread. */
int32_t weft_world_straggler(const weft_world *world, double *share_out);

/* One line of plain text: version, rank, device and its instruction set, threads, wire, NCCL where it is used. Owned by the world. */
const char *weft_world_describe(const weft_world *world);

#ifdef __cplusplus
}
#endif
#endif

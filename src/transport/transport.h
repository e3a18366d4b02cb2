/* The transport as the runtime composes it: this rank's place in the world, a wire to the others, a group over it, and
 * one verdict on faults. Opened once for each world; several may live in one process. */
#ifndef WEFTI_TRANSPORT_H
#define WEFTI_TRANSPORT_H

#include "core/iface/collective.h"
#include "transport/network.h"
#include "transport/tune.h"
#include "transport/watch.h"
#include "transport/wire_common.h"

enum { WEFTI_RANK_NAME_BYTES = 96 };
#define WEFTI_TRANSPORT_TIMEOUT_NS (30 * WEFTI_SECOND_NS)

/* Where this process stands, as its launcher says. */
typedef struct wefti_place {
    int32_t     rank, size;
    int32_t     local_rank, local_size; /* on this host, as far as the launcher says; -1 else */
    const char *launcher;               /* "weftrun", "Kubernetes", "torchrun", "Open MPI", "PMI", "Slurm", "none" */
    char        store[256];             /* host:port; "" where the launcher gives none (size 1) */
    int32_t     store_ports;            /* ports to try from that on: 1 where the launcher names the very port */
    int         store_descriptor;       /* rank 0: the store's socket, listening already; -1 else */
    char        job[64];
    char        interface[64];          /* to bind to, by its name (eth0) or address; "" for loopback */
    uint8_t     secret[64];
    size_t      secret_bytes;           /* 0: none */
    bool        encrypt;                /* what goes over TCP */
    uint32_t    epoch;                  /* 0; above that of every world before it in one that was shrunk */
} wefti_place;

/* Reads the environment: Weft's own variables first, then Kubernetes', torchrun's, Open MPI's and PMIx's, Slurm's; one rank where
 * there is none. WEFT_E_INVALID for variables that contradict each other or are no numbers, named. The secret comes from
 * WEFT_SECRET or the file that WEFT_SECRET_FILE names, which must be of mode 0600 (or 0400). */
WEFT_MUST_CHECK weft_status wefti_place_read(wefti_place *place_out);

/* How a transport is opened. Zero means the default: everything from the environment. */
typedef struct wefti_transport_options {
    const wefti_host    *host;    /* NULL: the system */
    int32_t              rank, size; /* size 0: from the environment */
    const char          *store;   /* "host:port"; "mpi": said by rank 0 over MPI; NULL: from the environment */
    const char          *wire;    /* "shm", "tcp", "verbs", "mpi", "auto"; NULL: WEFT_WIRE, else "auto": shm where all ranks share a host,
                                       else mpi where an MPI launcher started them, else tcp */
    const weft_wire_kind *own_wire; /* of the program's; NULL: none */
    uint64_t             timeout_ns; /* for joining and for every wait; 0: 30 s */
    bool                 no_control_thread; /* faults are then noticed only inside calls */
    bool                 encrypt;           /* what goes over TCP; false: as WEFT_ENCRYPT says */
    const wefti_reducer *reducer; /* NULL: wefti_reducer_host() */
    const wefti_network *network; /* instead of sockets and the wires of this machine; wants rank, size and host. NULL: none */
    bool                 rejoins; /* in a network: in place of a lost rank; else WEFT_REJOIN says so */
} wefti_transport_options;

typedef struct wefti_transport {
    const wefti_host *host;
    int32_t           rank, size;
    bool              is_newcomer; /* it came in place of a lost rank */
    int32_t           local_rank, local_size; /* among the ranks of this host, found at the rendezvous */
    const char       *wire_name;              /* "none" with one rank */
    bool              encrypts;               /* what goes over TCP */
    const char       *launcher;
    wefti_wire       *wire;  /* connected to everyone; NULL with one rank */
    wefti_group      *group; /* of all ranks, by our own engine; NULL with one rank */
    wefti_fault      *fault; /* never NULL */
    uint64_t          timeout_ns;
    int32_t          *nodes; /* [size] the first rank on the same host as each; NULL with one rank */
    const wefti_reducer *reducer; /* NULL: wefti_reducer_host() */
    wefti_watch      *watch; /* what groups of this world did; never NULL */
    char            (*names)[WEFTI_RANK_NAME_BYTES]; /* [size] "host h, process 1"; NULL with one rank */
    bool              tuned;      /* groups choose by `tuning` */
    wefti_tuning      tuning;
} wefti_transport;

/* Joins: meets the other ranks at the store, picks and connects a wire, opens the group. Collective over all ranks.
 * Blocks until all are there or the deadline has passed. Errors name what is wrong: ranks that did not come, a size that
 * disagrees, a taken port, a wrong secret, a wire that does not exist (those that do are listed). */
WEFT_MUST_CHECK weft_status wefti_transport_open(const wefti_transport_options *options, wefti_transport **transport_out);
/* Those who are left of a poisoned transport, `lost`, open another one: weft_world_shrink's contract. Of the options, reducer, timeout_ns
 * and no_control_thread count. `lost` stays as it is, and may be tried again. Newcomers come in by wefti_transport_open, where WEFT_REJOIN is set. */
typedef struct wefti_shrink_terms {
    int32_t  least; /* at least 1 */
    uint64_t patience_ns, replacement_ns;
} wefti_shrink_terms;
WEFT_MUST_CHECK weft_status wefti_transport_shrink(wefti_transport *lost, const wefti_transport_options *options, const wefti_shrink_terms *terms,
                                                   wefti_transport **transport_out);
/* Does what WEFT_TUNING says (tune.h), for the group of all ranks and those that are made later. Collective; once the reducer can
 * reduce, and before any other collective. */
WEFT_MUST_CHECK weft_status wefti_transport_tune(wefti_transport *transport);
/* Leaves in order: peers see that this rank has left, not that it died. NULL is fine. */
void wefti_transport_close(wefti_transport *transport);
/* Everyone gives `bytes` (the same number) and gets all, by rank: for set-up, not for steps. Collective; blocks. `name`
 * is compared, so that ranks that are at different places are told so. WEFT_E_MISMATCH names the rank that differs. */
WEFT_MUST_CHECK weft_status wefti_transport_exchange(wefti_transport *transport, const char *name, const void *mine,
                                                     size_t bytes, void *all_out);
/* Another wire of the kind that the world has, connected to all ranks (with one: to itself), for whoever wants faults of his own. `what` is
 * compared as exchange's name is. Collective; blocks. The caller closes it, before the transport: that no rank has before all are connected,
 * and nobody has it where one could not. */
WEFT_MUST_CHECK weft_status wefti_transport_open_wire(wefti_transport *transport, const char *what, wefti_wire **wire_out);
/* Asks every rank what it has been doing, as text (control.h). With one rank: its own. */
WEFT_MUST_CHECK weft_status wefti_transport_ask(wefti_transport *transport, uint64_t timeout_ns, wefti_text *text_out);
/* The rank that all others wait for, and the share of their time; -1: nobody in particular. */
int32_t wefti_transport_straggler(wefti_transport *transport, double *share_out);
/* Answers a signal's eventfd (wefti_control_answer). */
void wefti_transport_answer(wefti_transport *transport, int eventfd);
/* Takes off what weft_world_dump_on put on (dump.c). */
void wefti_dump_forget(wefti_transport *transport);
/* Declares a fault of this rank itself (out of memory, a bad input file): everyone's pending operations end with it. */
void wefti_transport_fail(wefti_transport *transport, weft_status status, const char *cause);

#endif

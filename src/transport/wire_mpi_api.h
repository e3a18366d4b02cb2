/* MPI as the wire, the rendezvous and the collectives call it, as one table. Every MPI has another ABI, so the table is
 * filled by a small module that is compiled against one MPI's mpi.h (wire_mpi_shim.c, libweft_mpi_<flavour>.so) and loaded
 * at run time; libweft.a never links MPI. Tests put a table of their own in its place.
 *
 * Functions give 0 or MPI's error code, which error_text puts into words. None blocks but start, stop and comm_create (which
 * wefti_mpi_comm_open calls where it may hang).
 * Callers hold the lock (wefti_mpi_lock): MPI is asked for MPI_THREAD_SERIALIZED, and that is what the lock gives. */
#ifndef WEFTI_TRANSPORT_WIRE_MPI_API_H
#define WEFTI_TRANSPORT_WIRE_MPI_API_H

#include "core/base/base.h"
#include "core/iface/host.h"

enum { WEFTI_MPI_TABLE_VERSION = 2, WEFTI_MPI_ANY = -1, WEFTI_MPI_TEXT_BYTES = 256 };

/* Handles of MPI, in the caller's memory: of one size for all MPIs, so that arrays of them need no arithmetic. */
typedef struct wefti_mpi_request {
    uint64_t handle;
} wefti_mpi_request;
typedef struct wefti_mpi_comm {
    uint64_t handle;
} wefti_mpi_comm;

typedef struct wefti_mpi_status {
    int    source, error; /* error: 0, or why the request failed */
    bool   cancelled;
    size_t bytes;         /* of a receive */
} wefti_mpi_status;

/* What start found. */
typedef struct wefti_mpi_facts {
    int  rank, size;         /* among all processes of this MPI */
    int  most_tag;
    bool started_here;       /* MPI was not initialised before; stop finalises it then */
    bool serialized;         /* calls may come from any thread, one at a time; else from the one that initialised MPI */
    bool main_thread;        /* this is that one */
    char version[80];        /* "Open MPI v4.1.4" */
} wefti_mpi_facts;

/* A collective as the contract has it (core/iface/collective.h), but that MPI counts in ints: elements, of all members together in
 * the kinds that have counts. Averages are sums. */
typedef struct wefti_mpi_call {
    int         kind, dtype, op; /* by the core's numbers; dtype and op of the kinds that reduce */
    int         element_bytes;   /* 1, 2, 4 or 8 */
    int         root;
    bool        in_place;        /* what MPI_IN_PLACE says of this member: its part lies where MPI would put it, or take it from */
    const void *send;
    void       *receive;
    size_t      count;
    const int  *counts, *offsets; /* [size] of the kinds that have counts: the members' parts; of ALLTOALL_V those that are sent … */
    const int  *receive_counts, *receive_offsets; /* … and those that come */
} wefti_mpi_call;

/* into[i] = into[i] o more[i]: for what MPI does not reduce as the contract wants it. */
typedef void (*wefti_mpi_combine)(void *into, const void *more, size_t count, int dtype, int op);

typedef struct wefti_mpi_api {
    uint32_t    version;     /* WEFTI_MPI_TABLE_VERSION */
    const char *flavour;     /* "openmpi" */

    /* Initialises MPI where the program has not, and takes a communicator of its own, with errors returned: collective
     * over all processes of this MPI. */
    int (*start)(wefti_mpi_combine combine, wefti_mpi_facts *facts_out);
    int (*stop)(void);       /* gives it back; finalises MPI where start initialised it */
    bool (*is_running)(void); /* initialised by somebody, and not finalised */
    void (*error_text)(int code, char *text_out, size_t text_bytes);

    /* Bytes to and from a process of the communicator; `source` may be WEFTI_MPI_ANY. At most INT_MAX bytes. */
    int (*isend)(const void *buffer, size_t bytes, int target, int tag, wefti_mpi_request *request_out);
    int (*irecv)(void *buffer, size_t bytes, int source, int tag, wefti_mpi_request *request_out);
    int (*test)(wefti_mpi_request *request, bool *done_out, wefti_mpi_status *status_out);
    /* Those of `count` requests (at most 512) that are done: their indices, and a status each. */
    int (*test_some)(wefti_mpi_request *requests, int count, int *done_out, int *indices_out, wefti_mpi_status *statuses_out);
    int (*cancel)(wefti_mpi_request *request);
    int (*forget)(wefti_mpi_request *request); /* MPI_Request_free: its memory must stay */

    /* A communicator of processes `ranks` [size], in that order: collective over them. */
    int (*comm_create)(const int *ranks, int size, int tag, wefti_mpi_comm *comm_out);
    int (*comm_free)(wefti_mpi_comm *comm); /* waits for nobody */
    /* Whether MPI reduces elements of such a type so, as the contract has it (core/iface/reduce.h). */
    bool (*can_reduce)(int dtype, int op);
    /* Begins a collective; comm NULL: of all processes. The call's counts and offsets are its own until it ends. */
    int (*collective)(const wefti_mpi_comm *comm, const wefti_mpi_call *call, wefti_mpi_request *request_out);
} wefti_mpi_api;

/* The symbol of a module: gives its table. */
#define WEFTI_MPI_ENTRY "wefti_mpi_module"
typedef const wefti_mpi_api *(*wefti_mpi_entry)(void);

/* What MPI is for the process: loaded and started once, by whoever comes first, and kept. Where Weft initialised it, it is
 * finalised when the process exits, but only after every user has left in order: MPI_Finalize waits for all ranks, and
 * would hang where one is dead or has failed. */
typedef struct wefti_mpi {
    const wefti_mpi_api *api;
    wefti_mpi_facts      facts;
} wefti_mpi;

/* WEFT_E_UNSUPPORTED where this process was not started by MPI's launcher (and has not initialised MPI), where no module
 * fits, or MPI cannot start: with what was looked for, and what to do. WEFT_E_STATE where the program's MPI may not be
 * called from this thread, or was finalised. Blocks as long as MPI_Init does. */
WEFT_MUST_CHECK weft_status wefti_mpi_start(const wefti_mpi **mpi_out);
/* What every user of wefti_mpi_start calls in the end; `in_order`: no rank has failed that it knows of. */
void wefti_mpi_leave(bool in_order);
/* Whether wefti_mpi_start may be worth trying: started by an MPI launcher, and a module is there. Loads, starts nothing. */
bool wefti_mpi_is_likely(void);

/* Around every use of the table. lock gives false where another thread has it and `wait` is false, where the program's MPI
 * may not be called from this thread, and where whoever has it hangs in an MPI that was poisoned meanwhile. */
bool wefti_mpi_lock(bool wait);
void wefti_mpi_unlock(void);

/* MPI holds memory that is not ours any more, or cannot go on: nobody in this process calls it again, at exit neither.
 * The first cause stays. */
void        wefti_mpi_poison(const char *cause);
const char *wefti_mpi_poisoned(void); /* the cause; NULL while all is well */

/* Makes a communicator of processes `ranks` [size]: collective over them. MPI's call has no deadline, so it is another thread's; where
 * it is not over by the deadline, or `stop` gives something else than WEFT_OK before, that is the outcome, and MPI is poisoned.
 * WEFT_E_UNSUPPORTED where MPI may be called from one thread alone. */
WEFT_MUST_CHECK weft_status wefti_mpi_comm_open(const wefti_mpi *mpi, const wefti_host *host, const int *ranks, int size, int tag,
                                                uint64_t deadline_ns, weft_status (*stop)(void *context), void *context,
                                                wefti_mpi_comm *comm_out);

/* Numbers of tags that nobody else of this process uses: one for a wire's frames, one for a transfer. Under the lock. */
int wefti_mpi_wire_tag(const wefti_mpi *mpi);
int wefti_mpi_data_tag(const wefti_mpi *mpi);
/* One for making the communicator of a group, which takes messages of its members on the same communicator as frames. */
int wefti_mpi_comm_tag(int group);

#endif

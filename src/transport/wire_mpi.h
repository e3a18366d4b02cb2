/* Inside of the MPI wire.
 *
 * wire_mpi.c        the table: open, connect, poll, ends, close
 * wire_mpi_out.c    posting, and what goes out: frames and chunks
 * wire_mpi_in.c     what comes in: frames, and the chunks of large transfers
 * wire_mpi_take.c   getting memory back from MPI, and the ends of links
 * wire_mpi_watch.c  noticing that a process has ended
 * wire_mpi_api.c    MPI itself, loaded at run time; wire_mpi_shim.c is the module that knows one MPI
 * wire_mpi_comm.c   making communicators, which may hang
 * coll_mpi.c, coll_mpi_open.c   MPI's own collectives as an algorithm of ours; meet_mpi.c the rendezvous */
#ifndef WEFTI_TRANSPORT_WIRE_MPI_H
#define WEFTI_TRANSPORT_WIRE_MPI_H

#include "transport/regions.h"
#include "transport/wire_common.h"
#include "transport/wire_mpi_api.h"

enum {
    MPIW_PAYLOAD_BYTES = (32 << 10) + 64, /* a collective's small message with its header is one */
    MPIW_SLOTS = 32,                      /* receives that stand ready for frames */
    MPIW_STAGES = 48,                     /* frames that are on the way out */
    MPIW_MOST_OUT = 96,                   /* chunks on the way out, and … */
    MPIW_MOST_IN = 96,                    /* … in: apart, or two ranks could wait for each other's room */
    MPIW_REQUESTS = MPIW_STAGES + MPIW_MOST_OUT + MPIW_MOST_IN,
    MPIW_WINDOW = 4,                      /* chunks of one transfer that are on the way at once */
    MPIW_CAUSE_BYTES = 160
};
_Static_assert(MPIW_PAYLOAD_BYTES <= WEFTI_MESSAGE_MOST_BYTES, "a message that comes before its receive is kept");
#define MPIW_CHUNK_BYTES ((size_t)8 << 20)

/* --- what is said --- */

typedef enum mpiw_kind {
    MPIW_HELLO = 1,   /* the wire of this rank is open and connects: tag is the job's number */
    MPIW_MESSAGE,     /* tag, bytes; the payload behind the head */
    MPIW_READY,       /* a large message waits: tag, bytes, token (sender's) */
    MPIW_CLEAR,       /* chunks of it may go: token (sender's), data_tag, chunks */
    MPIW_REFUSE,      /* the receive is too small, drop it: token (sender's) */
    MPIW_MORE,        /* as many chunks more: data_tag, chunks */
    MPIW_WRITE,       /* region, offset, bytes, with NOTIFY tag; the payload behind the head */
    MPIW_WRITE_READY, /* the same, large: token (writer's) */
    MPIW_READ,        /* region, offset, bytes: send chunks under data_tag */
    MPIW_REGION,      /* region, bytes: there is one */
    MPIW_WITHDRAWN,   /* region: there is not any more */
    MPIW_BYE
} mpiw_kind;

/* All processes of one MPI have the same byte order here; the address compares it. */
typedef struct mpiw_head {
    uint8_t  kind, flags;
    uint16_t chunks;
    int32_t  rank; /* the sender's, in the world */
    uint32_t region, token;
    uint64_t tag, bytes, offset;
    int32_t  data_tag;
    uint32_t reserved;
} mpiw_head;
_Static_assert(sizeof(mpiw_head) == 48, "no holes");

#define MPIW_FRAME_BYTES ((sizeof(mpiw_head) + MPIW_PAYLOAD_BYTES + WEFTI_CACHE_LINE - 1) / WEFTI_CACHE_LINE * WEFTI_CACHE_LINE)

#define MPIW_ADDRESS_MAGIC UINT64_C(0x31495057544657)
#define MPIW_VERSION 1u
typedef struct mpiw_address {
    uint64_t magic;
    uint32_t version;
    int32_t  rank, process, tag; /* world rank; MPI's rank; tag of its frames */
    uint64_t job, host, born;    /* job and epoch; where the process can be watched by its id, and when it began */
    int64_t  pid;
} mpiw_address;

/* --- what is on the way --- */

/* A frame that waits for a stage. */
typedef struct mpiw_note {
    struct mpiw_note *next;
    mpiw_head         head;
} mpiw_note;

/* A large transfer out: granted chunk by chunk by the peer, whose receives stand before they are granted. */
typedef struct mpiw_out {
    struct mpiw_out *next;
    wefti_wire_op   *op;     /* NULL: a READ of the peer is served */
    const uint8_t   *memory;
    size_t           bytes, begun, finished;
    int32_t          peer, data_tag;
    uint32_t         granted, pending;
} mpiw_out;

/* A large transfer in. */
typedef struct mpiw_in {
    struct mpiw_in *next;
    wefti_wire_op  *op;      /* the receive or READ; of a WRITE the receive of its notice, or NULL */
    wefti_message  *message; /* of a WRITE whose notice is not yet received */
    uint8_t        *memory;
    size_t          bytes, begun, finished;
    int32_t         peer, data_tag;
    uint32_t        token, pending, owed; /* sender's; chunks that are on the way; and of those not yet granted */
    mpiw_kind       kind;    /* READY, WRITE_READY or READ */
    bool            granted; /* the first grant has gone */
    mpiw_head       ask;     /* what the first grant says */
} mpiw_in;

typedef enum mpiw_use { MPIW_USE_STAGE, MPIW_USE_OUT, MPIW_USE_IN } mpiw_use;
typedef struct mpiw_info {
    mpiw_use use;
    int32_t  peer;
    size_t   bytes;
    void    *of; /* stage, mpiw_out or mpiw_in */
} mpiw_info;

typedef struct mpiw_stage {
    struct mpiw_stage *next;
    uint8_t           *bytes; /* [MPIW_FRAME_BYTES] */
} mpiw_stage;

typedef struct mpiw_link {
    wefti_wire_link state;
    int32_t         process, tag;
    bool            heard, heard_bye; /* HELLO, BYE came */
    int             watch;   /* descriptor that is readable when the process has ended; -1 */
    int64_t         pid;     /* where its end can be seen from here; else 0 */
    bool            died;    /* it was seen */
    uint64_t        until_ns; /* what it sent before its end or goodbye is waited for until then; 0 */
    wefti_op_list   out_ops, waiting;
    mpiw_note      *notes, *last_note;
    uint32_t        told;    /* news of regions that were sent */
    char            cause[MPIW_CAUSE_BYTES];
} mpiw_link;

typedef struct mpiw_wire {
    wefti_wire_base      base;
    const wefti_mpi     *mpi;
    const wefti_mpi_api *api;
    mpiw_link           *links; /* [size] */
    wefti_regions        regions;
    uint64_t             job;
    int32_t              tag;
    uint32_t             last_token;
    uint64_t             watched_ns, moved_ns; /* when ends were looked for; when the number of requests last changed */
    int32_t              were_under_way;
    int32_t              collectives; /* of MPI's own, that are under way for groups over this wire */
    int                  watcher; /* descriptor over all of the links' */
    bool                 ending;  /* a link has heard a goodbye, or its process has died */
    /* frames in: a ring of receives, served in the order in which they were posted */
    uint8_t             *slots; /* [MPIW_SLOTS * MPIW_FRAME_BYTES] */
    wefti_mpi_request    slot_requests[MPIW_SLOTS];
    bool                 slot_posted[MPIW_SLOTS];
    int32_t              head;
    bool                 held; /* the frame at the head is in, and there was no room for it */
    wefti_mpi_status     held_status;
    /* everything else that MPI has of ours, dense */
    wefti_mpi_request    requests[MPIW_REQUESTS];
    mpiw_info            infos[MPIW_REQUESTS];
    int32_t              request_count, chunks_out, chunks_in;
    mpiw_info           *finishing; /* entries that are done and wait for their turn, while they do */
    int32_t              finishing_count;
    mpiw_stage           stages[MPIW_STAGES], *free_stage;
    uint8_t             *stage_bytes;
    mpiw_out            *outs, *free_outs;
    mpiw_in             *ins, *last_in, *free_ins;
    mpiw_note           *free_notes;
    bool                 keeps_stages; /* MPI did not give a stage back: its memory must stay */
} mpiw_wire;

/* Opens a wire over this MPI. wefti_wire_mpi_open is this with the process's. */
WEFT_MUST_CHECK weft_status wefti_mpiw_open_with(const wefti_mpi *mpi, const wefti_wire_options *options, wefti_wire **wire_out);
bool wefti_mpiw_is(const wefti_wire *wire); /* whether it is one of these */
weft_status wefti_mpiw_post(wefti_wire *wire, wefti_wire_op *op);
/* Puts on the way what can go: notes, news, operations, chunks. */
void wefti_mpiw_send(mpiw_wire *wire);
void wefti_mpiw_send_link(mpiw_wire *wire, int32_t peer);
/* Says `head` to the peer as soon as there is a stage; false: no memory. */
bool wefti_mpiw_say(mpiw_wire *wire, int32_t peer, const mpiw_head *head);
/* Sends a frame now; false where no stage is free. An error of MPI ends the link. */
bool wefti_mpiw_frame(mpiw_wire *wire, int32_t peer, mpiw_head head, const void *payload, size_t payload_bytes);
/* Enters a request into the table, which has room. */
wefti_mpi_request *wefti_mpiw_request(mpiw_wire *wire, mpiw_use use, int32_t peer, size_t bytes, void *of);
/* Takes the last entry out again, where MPI refused. */
void wefti_mpiw_unrequest(mpiw_wire *wire);

/* Receives what has come. `leaving`: only goodbyes count. */
void wefti_mpiw_receive(mpiw_wire *wire, bool leaving);
/* Looks at the requests in the table and ends what is done; false where MPI failed. */
bool wefti_mpiw_complete(mpiw_wire *wire);
/* Posts the receive of slot `index`; false where MPI failed. */
bool wefti_mpiw_post_slot(mpiw_wire *wire, int32_t index);
/* Begins to take a large message or write in; false: no memory. */
mpiw_in *wefti_mpiw_begin_in(mpiw_wire *wire, int32_t peer, mpiw_kind kind, void *memory, size_t bytes);
/* Takes the announced message into the receive, or refuses it where it is too long. */
void wefti_mpiw_take_ready(mpiw_wire *wire, int32_t peer, wefti_wire_op *op, uint64_t bytes, uint32_t token);

/* Ends a link and all that waits on it; `cause` in words. */
void wefti_mpiw_link_end(mpiw_wire *wire, int32_t peer, wefti_wire_link state, const char *cause);
/* Ends the link to `peer` (all links: -1) because of an error of MPI. */
void wefti_mpiw_failed(mpiw_wire *wire, int32_t peer, int code, const char *what);
/* Gets all transfers' memory back from MPI, which has some time for what is under way, and ends them with `status`; poisons MPI
 * where it does not give it back. */
void wefti_mpiw_take_back(mpiw_wire *wire, weft_status status, int32_t rank);
/* Takes the ring and the stages from MPI when the wire closes. */
void wefti_mpiw_give_up(mpiw_wire *wire);
/* Frees a link's answers that have not gone. */
void wefti_mpiw_drop_notes(mpiw_wire *wire, mpiw_link *link);

/* Watches the process of a peer where it can be seen from here. */
void wefti_mpiw_watch(mpiw_wire *wire, int32_t peer, const mpiw_address *address);
/* What a peer needs to watch this one. */
void wefti_mpiw_describe_self(mpiw_address *address);
/* Looks for peers that have ended, now and then, and ends the links whose time has come. */
void wefti_mpiw_look_for_ends(mpiw_wire *wire, uint64_t now_ns);

#endif

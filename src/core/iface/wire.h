/* The wire contract: a way to move bytes between the ranks of one world.
 *
 * A wire is one rank's end. Use of one wire is by one thread at a time (the caller sees to that); different wires are
 * independent. Nothing blocks: every call returns at once, `poll` is what makes progress, and deadlines live above the
 * wire. A wire allocates when it is opened, connected, given regions, or surprised by more messages without a receive than
 * ever waited at once before: they are kept in a pool that grows to that number, within a bound of the wire's, and is used
 * again. Otherwise never for an operation.
 *
 * Operations are structs of the caller (intrusive), so there is no request pool to run out of: fill a zeroed
 * `wefti_wire_op`, post it, and leave it and its buffer alone until `done`. Every operation whose post returned WEFT_OK
 * completes exactly once, with status, bytes and peer, whatever happens to links and peers; `abort` flushes them all.
 *
 * Life of a wire: open; address (hand it to the peers by the rendezvous); connect to each peer that will be used; poll
 * until the links are up; create regions; post and poll; close. */
#ifndef WEFTI_WIRE_H
#define WEFTI_WIRE_H

#include "core/iface/foreign.h"
#include "core/iface/host.h"
#include "weft/wire.h"

typedef struct wefti_wire        wefti_wire;
typedef struct wefti_wire_op     wefti_wire_op;
typedef struct wefti_wire_region wefti_wire_region;

#define WEFTI_WIRE_ADDRESS_BYTES WEFT_WIRE_ADDRESS_BYTES
#define WEFTI_WIRE_ANY_PEER (-1)     /* as the peer of a receive: whoever sends that tag */

/* Tags are 64 bits; the top 8 say whose they are, the rest is the owner's. */
#define WEFTI_TAG_CHANNEL(channel) ((uint64_t)(channel) << 56)
#define WEFTI_TAG_COLLECTIVE WEFTI_TAG_CHANNEL(0)
#define WEFTI_TAG_POINT WEFTI_TAG_CHANNEL(1)  /* point to point: pipelines, gather of results */
#define WEFTI_TAG_SERVER WEFTI_TAG_CHANNEL(2) /* the parameter server */
#define WEFTI_TAG_TEST WEFTI_TAG_CHANNEL(254)

/* --- capabilities --- */

enum {
    WEFTI_WIRE_ONE_SIDED = 1 << 0,       /* WRITE and READ operations; else their post is WEFT_E_UNSUPPORTED */
    WEFTI_WIRE_MAPS_PEERS = 1 << 1,      /* peer_region gives pointers that this rank loads from and stores to */
    WEFTI_WIRE_WAIT_DESCRIPTOR = 1 << 2, /* descriptor and arm are filled */
    WEFTI_WIRE_MEMORY_FOREIGN = 1 << 3,  /* a device is attached: buffers may be its memory, where FOREIGN says so */
    WEFTI_WIRE_REACHES_FOREIGN = 1 << 4, /* and nothing of it goes by the host's: it can be registered */
    WEFTI_WIRE_SAME_HOST = 1 << 5,       /* works inside one host only */
    WEFTI_WIRE_ENCRYPTS = 1 << 6,        /* does what options.encrypt asks for */
    WEFTI_WIRE_GIVES_PIECES = 1 << 7     /* takes receives with PIECES */
};

typedef struct wefti_wire_capabilities {
    const char *name;             /* "shm"; static storage */
    uint32_t    flags;            /* WEFTI_WIRE_… */
    size_t      max_message_bytes; /* largest op; larger posts are WEFT_E_OVERFLOW */
    size_t      inline_bytes;     /* sends up to this size are done when post returns, where there is room */
    size_t      eager_bytes;      /* sends up to this size do not wait for the receive to be posted */
    size_t      segment_bytes;    /* messages that long data between two ranks are best cut into, a multiple of 4096; 0: any */
    uint64_t    latency_ns;       /* rough first guesses for cost models, until they are measured: α … */
    double      bytes_per_ns;     /* … and 1/β, one direction */
    double      near_bytes_per_ns; /* the same between ranks of one host, where nothing leaves it; 0: no other */
} wefti_wire_capabilities;

/* --- operations --- */

typedef enum wefti_wire_op_kind {
    WEFTI_WIRE_SEND,  /* `bytes` from `buffer` to `peer` under `tag` */
    WEFTI_WIRE_RECV,  /* up to `bytes` into `buffer` from `peer` (or any) under `tag` */
    WEFTI_WIRE_WRITE, /* `bytes` from `buffer` to (peer, region, offset); with NOTIFY, then an empty message `tag` */
    WEFTI_WIRE_READ   /* `bytes` from (peer, region, offset) into `buffer` */
} wefti_wire_op_kind;

enum {
    WEFTI_WIRE_NOTIFY = 1 << 0, /* WRITE: once the data is visible to the target, deliver an empty message under `tag`
                                   to it (matched like a sent one; its done_bytes are the bytes that were written) */
    WEFTI_WIRE_SILENT = 1 << 1, /* do not hand the completed op out by poll: the caller watches `done` */
    WEFTI_WIRE_MORE = 1 << 2,   /* SEND: may be kept back until the next post to the same peer, or the next poll, and go
                                   along with it */
    WEFTI_WIRE_PIECES = 1 << 3, /* RECV, only where the wire has GIVES_PIECES, which post does not look at: what comes in is handed to `piece`
                                   while the cache still holds it. `buffer` is the wire's to bring bytes in, one piece after the other at its start:
                                   it has room for WEFTI_WIRE_PIECE_BYTES, or for `bytes` if they are fewer. What it holds in the end is
                                   unspecified, also with WHOLE, for some pieces may have come elsewhere */
    WEFTI_WIRE_WHOLE = 1 << 4,  /* with PIECES: `buffer` has room for `bytes`, and a piece that comes through it does so at its own offset, so that
                                   its bytes may be left there */
    WEFTI_WIRE_FOREIGN = 1 << 5 /* `buffer` is memory of the device that is attached, and nothing computes with it meanwhile. Only where the wire has
                                   MEMORY_FOREIGN, and not to oneself: else WEFT_E_UNSUPPORTED. What is done may be read by what the device is given
                                   from then on. The peer need not know */
};
/* Longest piece that comes through a receive's buffer: within the second cache, and many packets. One that lies elsewhere may be longer. */
#define WEFTI_WIRE_PIECE_BYTES ((size_t)512 << 10)

/* Matching: a receive takes the oldest unmatched message of its peer and tag; messages of one peer under one tag match
 * receives in posted order. Different tags never wait for each other, in whatever order receives are posted.
 *
 * A message that is longer than its receive completes the receive with WEFT_E_MISMATCH, done_bytes being the message's
 * length and the buffer's content unspecified; the send completes normally. */
struct wefti_wire_op {
    /* the caller's, unchanged by the wire */
    wefti_wire_op_kind kind;
    uint32_t           flags;  /* WEFTI_WIRE_NOTIFY | SILENT | MORE | PIECES | WHOLE | FOREIGN */
    int32_t            peer;   /* world rank; sending to oneself works */
    uint32_t           region; /* WRITE, READ: id of the peer's region … */
    uint64_t           offset; /* … and the first byte in it */
    uint64_t           tag;
    void              *buffer; /* read only for SEND and WRITE; may be NULL where bytes is 0 */
    size_t             bytes;
    void              *user;   /* for the caller, never looked at */
    /* PIECES: gets the message's bytes that the receive has room for, each once and in order, within post (this receive's, or that of a SEND to
     * oneself) or poll. `offset` counts from the message's start and is a multiple of 4096; `bytes` is at least 1, so an empty message, as that of
     * NOTIFY, has no pieces, and at most all of them. `data` may lie anywhere: in `buffer` as the flags say, or where the wire or a sender has
     * it, for one that came before the receive; only until the call returns. After the last the op is done, with the outcome that it has without PIECES:
     * WEFT_E_MISMATCH where the message was longer, and with any other error it may have got some pieces and not the rest. Must not use the wire. */
    void (*piece)(wefti_wire_op *op, const void *data, size_t offset, size_t bytes);
    void              *piece_context; /* for `piece` */
    /* the outcome, valid once `done` */
    bool        done;
    weft_status status;     /* WEFT_OK; WEFT_E_PEER; WEFT_E_MISMATCH; WEFT_E_ABORTED or what abort was given; WEFT_E_LINK */
    int32_t     done_peer;  /* who sent or was sent to; the failed rank with WEFT_E_PEER */
    size_t      done_bytes; /* bytes that were moved; length of the message with WEFT_E_MISMATCH */
    /* the wire's, from post to done */
    wefti_wire_op *next, *previous;
    uint64_t       scratch[4];
};

/* --- regions --- */

/* Memory that peers can reach. The wire announces every region to every connected peer by itself, so (rank, id, offset)
 * is a complete remote address that fits into a message. Ids are never used again by the same wire. */
struct wefti_wire_region {
    wefti_wire *wire;
    void       *base; /* page-aligned when the wire allocated it */
    size_t      size_bytes;
    uint32_t    id;   /* >= 1 */
};

/* A peer's region as this rank sees it. */
typedef struct wefti_wire_peer_region {
    void  *base; /* this rank's own mapping of it, or NULL where the wire does not map (then use WRITE and READ) */
    size_t size_bytes;
} wefti_wire_peer_region;

typedef enum wefti_wire_link {
    WEFTI_LINK_NONE,       /* connect was not called */
    WEFTI_LINK_CONNECTING, /* not yet up */
    WEFTI_LINK_UP,
    WEFTI_LINK_LEFT, /* the peer closed its wire in order; posts to it fail with WEFT_E_PEER */
    WEFTI_LINK_DOWN  /* the peer or the link failed; posts to it fail with WEFT_E_PEER */
} wefti_wire_link;

/* --- the table --- */

typedef struct wefti_wire_counts {
    uint64_t sent_bytes, received_bytes;
    uint64_t sent_messages, received_messages;
} wefti_wire_counts;

typedef struct wefti_wire_ops {
    /* Writes this end's address, at most WEFTI_WIRE_ADDRESS_BYTES, opaque to all but the same kind of wire. */
    weft_status (*address)(wefti_wire *wire, void *address_out, size_t *bytes_out);

    /* Begins to connect to `peer`. Both ends call it; the wire decides who dials. Never blocks; the link comes up in
     * poll. WEFT_E_CORRUPT for an address that is none, WEFT_E_UNSUPPORTED for one that this end cannot reach at all
     * (another host with shm). Open connects a rank to itself. */
    weft_status (*connect)(wefti_wire *wire, int32_t peer, const void *address, size_t bytes);
    wefti_wire_link (*link)(const wefti_wire *wire, int32_t peer);
    /* Why the link to `peer` is down, in words for people; NULL where nothing more is known. NULL slot: never. */
    const char *(*cause)(const wefti_wire *wire, int32_t peer);

    /* Allocates `size_bytes` (rounded up to pages) of zeroed memory that peers can reach. Visible to a peer once its
     * poll has seen the announcement. WEFT_E_NO_MEMORY with the system's reason. */
    weft_status (*region_create)(wefti_wire *wire, size_t size_bytes, wefti_wire_region **region_out);
    /* Makes the caller's memory reachable by WRITE and READ of peers. NULL slot: WEFT_E_UNSUPPORTED. The memory must
     * outlive the region. */
    weft_status (*region_register)(wefti_wire *wire, void *memory, size_t size_bytes, wefti_wire_region **region_out);
    /* From now on operations may be on memory of that device (FOREIGN), and region_register takes it: WEFT_E_UNSUPPORTED, with why, where that
     * memory cannot be registered. `sample` is some of it, by which the wire tries how it comes to it, and says so in a few words for people. The
     * device outlives the wire, or is detached first (NULL): with none of its memory in operations or regions then. NULL slot: it cannot. */
    weft_status (*attach)(wefti_wire *wire, const wefti_foreign *foreign, void *sample, size_t bytes, char *way_out, size_t way_bytes);
    /* Withdraws it. The caller has seen to it that no operation and no peer uses it any more, but for peers that have
     * not yet seen a fault: their mappings stay valid addresses, without meaning. NULL is allowed. A region that is not
     * released is freed by close, and stays whole in the mappings of peers until they close too. */
    void (*region_release)(wefti_wire_region *region);
    /* As region_release, but of a region that peers may still be using: it stays whole until `unused(context)` says that
     * none does, which is asked here and now and then in poll, and so must be cheap. Where the wire closes first, peers'
     * mappings stay whole until they close too. The context must live as long as the region, so it may lie in it. NULL
     * slot: where the wire does not map peers. */
    void (*region_retire)(wefti_wire_region *region, bool (*unused)(const void *context), const void *context);
    /* The region `id` of `peer` (this rank included). WEFT_E_AGAIN while its announcement has not come (poll again);
     * WEFT_E_NOT_FOUND after its release; WEFT_E_PEER where the peer is gone. Where the wire maps, the regions of a peer
     * that left in order are still found: it may be ahead of this rank. The mapping holds until the region is released or
     * the wire closed. Constant time. */
    weft_status (*peer_region)(wefti_wire *wire, int32_t peer, uint32_t id, wefti_wire_peer_region *region_out);
    /* The region of this end that holds all of [memory, memory + bytes), or NULL: so that an algorithm that is handed a
     * plain pointer can tell peers where it is. Cheap: it is asked for every large operation. NULL slot: never. */
    wefti_wire_region *(*region_of)(wefti_wire *wire, const void *memory, size_t bytes);
    /* Copies `bytes` at `address` of the peer's own memory, in a region or not, to `to`, at once and by this rank alone: one copy by the kernel.
     * None: whether it could. WEFT_E_AGAIN while the link is coming up; WEFT_E_UNSUPPORTED where the system does not let this rank read that,
     * which it may also find out in the middle. Safe where the peer has given the memory back. NULL slot: never. */
    weft_status (*peer_read)(wefti_wire *wire, int32_t peer, void *to, uint64_t address, size_t bytes);

    /* Hands an operation to the wire. WEFT_OK: it will complete once (it may be `done` already, and is then still handed
     * out by poll unless SILENT). Anything else: it was not taken and its outcome is not set: WEFT_E_AGAIN (the
     * link is still coming up, or queues are full: poll, then try again), WEFT_E_PEER (peer gone; what it sent before is
     * still received), WEFT_E_STATE (connect was not called, or aborted), WEFT_E_OVERFLOW, WEFT_E_INVALID (bad peer, or
     * outside the region), WEFT_E_UNSUPPORTED. A WRITE is done when its buffer may be used again. */
    weft_status (*post)(wefti_wire *wire, wefti_wire_op *op);

    /* Makes progress, then hands out up to `capacity` completed operations (0: only progress). `now_ns` is the host's
     * time; wires look at rarely used sockets by it. Returns WEFT_OK also when links fail: operations carry that.
     * Another status means that the wire itself is unusable (already flushed as by abort). */
    weft_status (*poll)(wefti_wire *wire, uint64_t now_ns, wefti_wire_op **ops_out, int32_t capacity, int32_t *count_out);

    /* Takes back a receive that no message has matched yet: it completes at once with WEFT_E_ABORTED. WEFT_E_STATE where
     * it is matched or done: then it completes by itself. */
    weft_status (*cancel)(wefti_wire *wire, wefti_wire_op *op);
    /* A SEND that is not done goes on from `buffer`, which holds the same bytes; its old buffer is the caller's again. For memory that is sent
     * from where it lies and is to change. NULL slot: it cannot. */
    void (*send_from)(wefti_wire *wire, wefti_wire_op *op, const void *buffer);
    /* Completes every pending operation with `status` (WEFT_E_PEER with done_peer = `rank`) and lets the wire drop what
     * still comes in. Buffers are the caller's again when it returns. Posts are WEFT_E_STATE afterwards. */
    void (*abort)(wefti_wire *wire, weft_status status, int32_t rank);

    /* A descriptor that polls readable when there may be something to do, or -1. Before sleeping on it call arm:
     * WEFT_OK: it will wake; WEFT_E_AGAIN: something is there already, poll instead. Spurious wakes happen. Where there is no
     * descriptor, arm may be NULL, or tell whether something is under way that only polls move (WEFT_E_AGAIN). */
    int (*descriptor)(wefti_wire *wire);
    weft_status (*arm)(wefti_wire *wire);

    /* Bytes and messages that this end sent and received, over its life (payload only). */
    void (*counts)(const wefti_wire *wire, wefti_wire_counts *counts_out);

    /* Leaves in order: sent messages still arrive, peers see WEFTI_LINK_LEFT. Pending operations are flushed with
     * WEFT_E_ABORTED first. Waits at most `linger_ns` for bytes that the system has not taken yet. */
    void (*close)(wefti_wire *wire, uint64_t linger_ns);
} wefti_wire_ops;

/* What every wire begins with. */
struct wefti_wire {
    const wefti_wire_ops   *ops;
    const wefti_host       *host;
    wefti_wire_capabilities can;
    int32_t                 rank, size; /* world rank and size */
};

/* How a wire is opened. Zero means the default. */
typedef struct wefti_wire_options {
    const wefti_host *host;  /* NULL: the system */
    int32_t           rank, size;
    uint32_t          epoch; /* both ends must agree; strangers of another epoch are dropped */
    const char       *job;   /* names the job; both ends must agree; NULL: "" */
    const char       *interface; /* to bind to, by its name (eth0) or address; NULL: loopback. Others need a secret */
    const uint8_t    *secret; /* NULL: none */
    size_t            secret_bytes;
    bool              encrypt; /* nobody but the two ends can read or change what travels; needs a secret */
    const weft_wire_kind *own; /* a wire of the program's, besides those of the library; NULL: none */
    void             *shared; /* inproc: the hub that the ranks of this process share */
    size_t            ring_bytes; /* shm: size of each pair's ring per direction */
} wefti_wire_options;

/* A kind of wire, by name. */
typedef struct wefti_wire_kind {
    const char *name;
    weft_status (*open)(const wefti_wire_options *options, wefti_wire **wire_out);
} wefti_wire_kind;

/* --- short forms --- */

static inline weft_status wefti_wire_post(wefti_wire *wire, wefti_wire_op *op) { return wire->ops->post(wire, op); }
/* Whether this rank can read the memory of all others by peer_read; WEFT_E_UNSUPPORTED where not, WEFT_E_AGAIN where that is not known yet.
 * `ranks`: of those that are meant; NULL: the first `count`. */
static inline weft_status wefti_wire_reads_peers(wefti_wire *wire, const int32_t *ranks, int32_t count) {
    if (!wire->ops->peer_read) return WEFT_E_UNSUPPORTED;
    for (int32_t i = 0; i < count; i++) {
        int32_t rank = ranks ? ranks[i] : i;
        weft_status status = rank == wire->rank ? WEFT_OK : wire->ops->peer_read(wire, rank, NULL, 0, 0);
        if (status != WEFT_OK) return status;
    }
    return WEFT_OK;
}
static inline weft_status wefti_wire_progress(wefti_wire *wire, uint64_t now_ns) {
    int32_t none;
    return wire->ops->poll(wire, now_ns, NULL, 0, &none);
}
static inline wefti_wire_op wefti_wire_send(int32_t peer, uint64_t tag, const void *buffer, size_t bytes) {
    return (wefti_wire_op){.kind = WEFTI_WIRE_SEND, .peer = peer, .tag = tag, .buffer = (void *)buffer, .bytes = bytes};
}
static inline wefti_wire_op wefti_wire_recv(int32_t peer, uint64_t tag, void *buffer, size_t bytes) {
    return (wefti_wire_op){.kind = WEFTI_WIRE_RECV, .peer = peer, .tag = tag, .buffer = buffer, .bytes = bytes};
}

/* Sleeps until there may be something to do on the wire, at most `limit_ns`: by its descriptor where it has one, else
 * by the host's sleep in short steps. For waits that have spun in vain. */
void wefti_wire_rest(wefti_wire *wire, uint64_t limit_ns);

#endif

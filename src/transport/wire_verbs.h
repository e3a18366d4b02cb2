/* Inside of the verbs wire.
 *
 * wire_verbs.c          the table: open, connect, poll, arm, ends, close
 * wire_verbs_api.c      libibverbs, loaded at run time
 * wire_verbs_device.c   which devices, ports and GIDs; what they can
 * wire_verbs_memory.c   registered memory: regions, and the cache of what is not in one
 * wire_verbs_foreign.c  memory of a device, registered or copied
 * wire_verbs_watch.c    notices when cached memory is given back to the system
 * wire_verbs_connect.c  queue pairs and the way to a peer
 * wire_verbs_out.c      posting and sending
 * wire_verbs_move.c     large transfers: chunks of RDMA
 * wire_verbs_in.c       completions, and what peers say
 *
 * A rail is one device's port; a link has a queue pair on each rail. Everything that is said goes over the first rail, into
 * receive slots that the peer's credits stand for; chunks of large transfers go over all of them. */
#ifndef WEFTI_TRANSPORT_WIRE_VERBS_H
#define WEFTI_TRANSPORT_WIRE_VERBS_H

#include <pthread.h>

#include "transport/mesh.h"
#include "transport/regions.h"
#include "transport/wire_common.h"
#include "transport/wire_verbs_api.h"

enum {
    VERBS_RAILS = 4,
    VERBS_SHORT_BYTES = 16,              /* of the head, with each message */
    VERBS_PAYLOAD_BYTES = 8192 + 64,     /* a collective's small message with its header is one */
    VERBS_SLOT_BYTES = 8320,             /* both, in whole cache lines */
    VERBS_INLINE_BYTES = 256,            /* head and payload; asked for, less where the device has less */
    VERBS_SLOTS = 32,                    /* receive slots that credits stand for */
    VERBS_TOKENS = 16,                   /* large receives of a peer that are under way at once */
    VERBS_STAGES = 32,                   /* slots that messages are sent from */
    VERBS_QUEUE = 128,                   /* send requests of a queue pair */
    VERBS_ACK_TIMEOUT = 15,              /* 4.096 us · 2^15: 134 ms until an unanswered packet is sent again */
    VERBS_SILENT_MOST = 8,               /* send requests in a row without a completion */
    VERBS_CHUNKS = 8,                    /* chunks of a queue pair that are on the way at once */
    VERBS_TRANSFERS = 2 * VERBS_TOKENS,  /* what peers have cleared, and as many one-sided ones */
    VERBS_MEMORIES = 256,                /* registrations in the cache */
    VERBS_CAUSE_BYTES = 200
};
#define VERBS_CHUNK_BYTES ((size_t)1 << 20)
_Static_assert(VERBS_PAYLOAD_BYTES <= WEFTI_MESSAGE_MOST_BYTES, "a message that comes before its receive is kept");
_Static_assert(VERBS_SHORT_BYTES + VERBS_PAYLOAD_BYTES <= VERBS_SLOT_BYTES && VERBS_SLOT_BYTES % 64 == 0, "a slot");

/* --- what is said --- */

typedef enum verbs_kind {
    VERBS_MESSAGE = 1, /* tag; the payload behind the short head */
    VERBS_OFFER,       /* a large message waits: tag, bytes, token (sender's) */
    VERBS_CLEAR,       /* write it: token (sender's), id (receiver's token), address, keys */
    VERBS_CLEAR_DATA,  /* send it as DATA, for the buffer cannot be registered: token (sender's), id (receiver's token) */
    VERBS_REFUSE,      /* the receive is too small, drop it: token (sender's) */
    VERBS_DATA,        /* a part: id (receiver's token), tag is the offset; payload behind the short head */
    VERBS_NOTICE,      /* a write has been made: tag, bytes */
    VERBS_REGION,      /* id, bytes, address, keys: there is one */
    VERBS_WITHDRAWN,   /* id: there is not any more */
    VERBS_CREDIT,      /* nothing but the credits, which every head carries */
    VERBS_BYE
} verbs_kind;

/* Both ends have the same byte order, which their greeting compares. */
typedef struct verbs_head {
    uint8_t  kind, reserved;
    uint16_t credits; /* slots that were freed since the last head */
    uint32_t id;
    uint64_t tag;
    uint64_t bytes, token, address; /* from here on not with MESSAGE and DATA */
    uint32_t keys[VERBS_RAILS];
} verbs_head;
_Static_assert(offsetof(verbs_head, bytes) == VERBS_SHORT_BYTES && (int)VERBS_RAILS == (int)WEFTI_REGION_KEYS, "heads as they say");

/* --- memory --- */

/* Registered on every rail. */
typedef struct verbs_memory {
    struct verbs_memory *next, *previous; /* in the cache: last used first */
    uintptr_t            base;
    size_t               size_bytes;
    struct ibv_mr       *registered[VERBS_RAILS];
    uint32_t             users; /* transfers */
    bool                 cached, writable;
    bool                 stale; /* the system has taken it back: not to be found again */
    bool                 foreign; /* the attached device's */
} verbs_memory;

typedef struct verbs_watch verbs_watch;

typedef struct verbs_cache {
    pthread_mutex_t lock;       /* of all of it: a device gives memory back on any thread */
    verbs_memory *entries;      /* [VERBS_MEMORIES] */
    verbs_memory *first, *last; /* in use or kept */
    verbs_memory *free;
    verbs_watch  *watch;        /* NULL: nothing is kept when its last user is done */
    bool          watch_tried, warned, foreign_warned;
    uint64_t      hits, misses;
} verbs_cache;

/* How a device's memory is reached. AUTO: the first of the next two that works. */
typedef enum verbs_way { VERBS_WAY_AUTO, VERBS_WAY_DMABUF, VERBS_WAY_PEER, VERBS_WAY_COPIES } verbs_way;

/* --- devices --- */

typedef struct verbs_rail {
    struct ibv_context      *context;
    struct ibv_pd           *pd;
    struct ibv_comp_channel *channel;
    struct ibv_cq           *cq;
    char                     name[64]; /* "mlx5_0:1" */
    uint8_t                  port, link_layer, gid_type, mtu;
    uint16_t                 lid;
    uint32_t                 gid_index;
    union ibv_gid            gid;
    uint8_t                  reads_out, reads_in; /* RDMA reads at once: begun here, served here */
    uint32_t                 most_requests, most_completions;
    size_t                   chunk_bytes;
    double                   bytes_per_ns;
} verbs_rail;

/* --- links --- */

/* One large transfer out of here, or a read. */
typedef enum verbs_move { VERBS_MOVE_SEND, VERBS_MOVE_STREAM, VERBS_MOVE_WRITE, VERBS_MOVE_READ } verbs_move;
typedef struct verbs_transfer {
    struct verbs_transfer *next; /* of the link's active ones */
    wefti_wire_op         *op;   /* NULL: free */
    verbs_memory          *memory; /* of its buffer; NULL: through the stages */
    verbs_move             move;
    uint64_t               address; /* of the peer's memory */
    uint32_t               keys[VERBS_RAILS];
    uint32_t               id;      /* SEND: goes along with the last chunk of each rail; STREAM: with each part */
    size_t                 at[VERBS_RAILS], end[VERBS_RAILS]; /* what each rail has still to begin, in bytes of the buffer */
    uint32_t               open;    /* bit by rail: has still something to begin */
    uint32_t               pending; /* chunks on the way */
    bool                   held;    /* not to finish yet: its notice has not gone */
} verbs_transfer;

/* One large receive, from its CLEAR to its last byte. */
typedef struct verbs_incoming {
    wefti_wire_op *op; /* NULL: free */
    verbs_memory  *memory;
    uint32_t       turn; /* tells this use of the slot from the one before */
    int32_t        parts;   /* rails that have still to say that they are through */
    size_t         got;     /* bytes of a stream */
    bool           streams;
} verbs_incoming;

/* What a send request was, in the order of posting, which is the order of completion. */
typedef struct verbs_sent {
    verbs_transfer *transfer; /* whose chunk; NULL: a message */
    uint8_t        *target;   /* a read through a stage: where the bytes belong */
    uint32_t        bytes;
    bool            staged;
} verbs_sent;

typedef struct verbs_queue {
    struct ibv_qp *qp;
    verbs_sent     sent[VERBS_QUEUE]; /* by number mod its length */
    uint32_t       posted, retired;   /* numbers of requests */
    uint32_t       silent;            /* posted since the last that will complete aloud */
    uint32_t       chunks;            /* of the requests on the way */
    uint32_t       psn;
} verbs_queue;

/* A message that came in and is not yet dealt with. */
typedef struct verbs_arrival {
    uint32_t slot, bytes;
} verbs_arrival;

enum { VERBS_ARRIVALS = 64 };
_Static_assert(VERBS_SLOTS + VERBS_TOKENS <= VERBS_ARRIVALS, "each receive slot may hold one");

typedef enum verbs_setup { VERBS_SETUP_MEET, VERBS_SETUP_GREET, VERBS_SETUP_READY } verbs_setup;

/* Who a queue pair belongs to, as it is sent to the peer. */
typedef struct verbs_greeting {
    uint64_t magic;
    uint32_t version, rails, slots, slot_bytes;
    struct {
        uint8_t  gid[16];
        uint32_t queue, psn;
        uint16_t lid;
        uint8_t  mtu, link_layer, gid_type, reads_in, reserved[2];
    } rail[VERBS_RAILS];
} verbs_greeting;

typedef struct verbs_link {
    wefti_wire_link state;
    verbs_setup     setup;
    int             socket;
    uint64_t        ended_ns; /* when the socket's end was seen; 0 */
    bool            heard_bye, said_bye;
    bool            broken;   /* to be ended by poll, with its cause */
    bool            blamed;   /* the cause is more than a consequence */
    int32_t         rails;    /* that both ends have */
    uint32_t        credits, owed;
    uint8_t        *arena;    /* [slots + tokens] receive slots, then [stages] */
    struct ibv_mr  *arena_memory;
    uint32_t        stage_posted, stage_retired;
    verbs_queue     queues[VERBS_RAILS];
    /* out */
    wefti_op_list   out_ops;  /* in order: messages, offers, writes with a notice */
    wefti_op_list   offered;  /* sends whose offer has gone */
    wefti_op_list   bulk_ops; /* reads and writes without a notice that have not begun */
    wefti_op_list   grants;   /* receives that are to be cleared or refused */
    verbs_transfer  transfers[VERBS_TRANSFERS];
    verbs_transfer *active_first, *active_last; /* that have more to begin */
    int32_t         one_sided;                  /* of the transfers */
    uint32_t        told;
    /* in */
    verbs_incoming  incoming[VERBS_TOKENS];
    int32_t         incoming_count;
    verbs_arrival   arrivals[VERBS_ARRIVALS];
    uint32_t        arrived, handled;
    /* setting up */
    verbs_greeting  mine, theirs;
    size_t          greeted, heard; /* bytes of both, and of the readiness behind them */
    char            cause[VERBS_CAUSE_BYTES]; /* why it is down */
} verbs_link;

typedef struct verbs_wire {
    wefti_wire_base        base;
    const wefti_verbs_api *api;
    verbs_rail             rails[VERBS_RAILS];
    int32_t                rail_count;
    uint8_t                traffic_class, ack_timeout;
    verbs_link           **links; /* [size]; NULL: not connected. The own one has no queue */
    wefti_mesh             mesh;
    wefti_regions          regions;
    verbs_cache            cache;
    const wefti_foreign   *foreign; /* what is attached; NULL: nothing */
    verbs_way              way;     /* to its memory, once it was tried */
    uint32_t               slots, tokens, stages, inline_bytes;
    int                    poller;
    uint64_t               served_ns, last_token;
    bool                   busy; /* a link is being set up or down: look often */
} verbs_wire;

static inline verbs_link *verbs_link_of(const verbs_wire *wire, int32_t peer) { return wire->links[peer]; }

/* --- wire_verbs_device.c --- */

weft_status wefti_verbs_rails_open(verbs_wire *wire, const wefti_wire_options *options);
void        wefti_verbs_rails_close(verbs_wire *wire);

/* --- wire_verbs_memory.c --- */

weft_status wefti_verbs_cache_open(verbs_wire *wire);
void        wefti_verbs_cache_close(verbs_wire *wire);
/* What may be done to registered memory: by peers only as much as the protocol needs. */
enum {
    VERBS_FOR_SLOTS = IBV_ACCESS_LOCAL_WRITE,
    VERBS_FOR_SENDING = 0,
    VERBS_FOR_RECEIVING = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE,
    VERBS_FOR_REGIONS = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ
};
/* Registers memory on the first `rails` rails. WEFT_E_NO_MEMORY names the limit on locked memory where that is the reason. */
weft_status wefti_verbs_register(verbs_wire *wire, int32_t rails, void *memory, size_t bytes, int access, const char *what,
                                 struct ibv_mr *registered_out[VERBS_RAILS]);
void wefti_verbs_deregister(verbs_wire *wire, struct ibv_mr *registered[VERBS_RAILS]);
/* The registration of an operation's buffer, from its region or the cache; give it back after use. NULL: it cannot be registered. */
verbs_memory *wefti_verbs_memory_take(verbs_wire *wire, const wefti_wire_op *op, size_t bytes, bool writable);
void          wefti_verbs_memory_give(verbs_wire *wire, verbs_memory *memory);
/* Slots of the wire's table. */
weft_status wefti_verbs_region_create(wefti_wire *wire, size_t size_bytes, wefti_wire_region **region_out);
weft_status wefti_verbs_region_register(wefti_wire *wire, void *memory, size_t size_bytes, wefti_wire_region **region_out);
void        wefti_verbs_region_release(wefti_wire_region *region);

/* --- wire_verbs_foreign.c --- */

/* Registers memory of the attached device on all rails. WEFT_E_UNSUPPORTED, with why, where no way to it works. */
weft_status wefti_verbs_register_foreign(verbs_wire *wire, void *memory, size_t bytes, int access, struct ibv_mr *registered_out[VERBS_RAILS]);
/* Copies between an operation's buffer and the host's memory. false: the link is broken by it, as the device does not copy. */
bool wefti_verbs_copy(const verbs_wire *wire, verbs_link *link, const wefti_wire_op *op, void *to, const void *from, size_t bytes);
/* What devices have written to an operation's buffer may be read now; likewise. */
bool wefti_verbs_arrived(const verbs_wire *wire, verbs_link *link, const wefti_wire_op *op);
weft_status wefti_verbs_attach(wefti_wire *wire, const wefti_foreign *foreign, void *sample, size_t bytes, char *way_out, size_t way_bytes);
void wefti_verbs_detach(verbs_wire *wire);
/* wire_verbs_memory.c: forgets registrations of memory that the device gives back; any thread. */
void wefti_verbs_foreign_lost(void *wire, const void *memory, size_t bytes);

/* --- wire_verbs_watch.c --- */

/* NULL where the system offers nothing of the kind. */
verbs_watch *wefti_verbs_watch_open(void);
void         wefti_verbs_watch_close(verbs_watch *watch);
/* From now on the memory is watched. false: it cannot be. Whole pages. */
bool wefti_verbs_watch_add(verbs_watch *watch, uintptr_t base, size_t bytes);
/* Calls `lost` for each range that was unmapped, moved or emptied since; true: some may have been forgotten, so all are. */
bool wefti_verbs_watch_news(verbs_watch *watch, void (*lost)(void *context, uintptr_t first, uintptr_t end), void *context);

/* --- wire_verbs_connect.c --- */

/* Allocates the link to `peer` with its queue pairs. */
weft_status wefti_verbs_link_create(verbs_wire *wire, int32_t peer);
void        wefti_verbs_link_free(verbs_wire *wire, int32_t peer);
/* The peer's socket is there. */
void wefti_verbs_link_greet(verbs_wire *wire, int32_t peer, int socket);
/* Goes on with setting up. */
void wefti_verbs_link_set_up(verbs_wire *wire, int32_t peer);
/* Destroys the queue pairs: afterwards no device touches the link's buffers. */
void wefti_verbs_link_stop(verbs_wire *wire, verbs_link *link);
/* Gives a receive slot of a rail (back) to its queue pair. */
bool wefti_verbs_slot_post(verbs_wire *wire, verbs_link *link, int32_t peer, int32_t rail, uint32_t slot);

/* --- wire_verbs_out.c --- */

weft_status wefti_verbs_post(wefti_wire *wire, wefti_wire_op *op);
/* Sends what the queues take. */
void wefti_verbs_advance(verbs_wire *wire, int32_t peer);
/* One message, of a head alone; false: no credit, stage or place in the queue now. */
bool wefti_verbs_say(verbs_wire *wire, int32_t peer, const verbs_head *head);
/* The same with bytes of an operation's buffer. */
bool wefti_verbs_say_part(verbs_wire *wire, int32_t peer, const verbs_head *head, const wefti_wire_op *op, size_t first, size_t bytes);
/* Begins to take a large message into a receive. */
void wefti_verbs_take_offer(verbs_wire *wire, int32_t peer, wefti_wire_op *op, uint64_t bytes, uint64_t token);
/* Whether a link has something that waits for room. */
bool wefti_verbs_has_output(const verbs_wire *wire, const verbs_link *link);

/* --- wire_verbs_move.c --- */

/* Begins to move an operation's bytes. false: no transfer is free now. */
bool wefti_verbs_move_begin(verbs_wire *wire, int32_t peer, wefti_wire_op *op, verbs_move move, const verbs_head *where);
/* Posts as many chunks as the queues take. */
void wefti_verbs_move_advance(verbs_wire *wire, int32_t peer);
/* Finishes a transfer's operation where nothing is left to do. */
void wefti_verbs_move_settle(verbs_wire *wire, int32_t peer, verbs_transfer *transfer);
/* Takes a link's transfers back and gives their outcome to their operations; the queues have been stopped. */
void wefti_verbs_move_flush(verbs_wire *wire, int32_t peer, weft_status status, int32_t rank);
/* The transfer that was begun for an operation; NULL where it is through, or there was none. */
verbs_transfer *wefti_verbs_move_of(verbs_link *link, const wefti_wire_op *op);
/* Rails that a message of so many bytes goes over; the same on both ends. */
int32_t wefti_verbs_move_rails(const verbs_link *link, size_t bytes);
/* A place in a rail's send queue. */
static inline bool verbs_queue_has_room(const verbs_queue *queue, uint32_t count) {
    return queue->posted - queue->retired + count <= VERBS_QUEUE;
}
/* Posts a request that was filled but for its number; false: refused (the link is then broken, unless the device says that
 * it is full). A request that is not `aloud` may complete with a later one. */
bool wefti_verbs_request(verbs_wire *wire, int32_t peer, int32_t rail, struct ibv_send_wr *request, verbs_sent sent, bool aloud);
/* The next stage of a link, or NULL: the request that takes it counts it. */
uint8_t *wefti_verbs_stage(const verbs_wire *wire, const verbs_link *link);

/* --- wire_verbs_in.c --- */

/* Takes what the completion queues hold; true where there was something. */
bool wefti_verbs_receive(verbs_wire *wire);
/* Deals with what has arrived on a link, as far as possible. */
void wefti_verbs_handle(verbs_wire *wire, int32_t peer);
/* Marks a link as broken; poll ends it. The first cause that is none of the mere consequences is kept. */
void wefti_verbs_break(verbs_link *link, bool consequence, const char *cause, ...) WEFTI_PRINTF(3, 4);

/* --- wire_verbs.c --- */

/* Ends a link and all that waits on it. `cause`, with LINK_DOWN, is kept and logged; NULL: the socket ended. */
void wefti_verbs_link_end(verbs_wire *wire, int32_t peer, wefti_wire_link state, const char *cause, ...)
    WEFTI_PRINTF(4, 5);

#endif

/* The ring wire: what the in-process and the shared-memory wire have in common. */
#ifndef WEFTI_TRANSPORT_WIRE_RING_H
#define WEFTI_TRANSPORT_WIRE_RING_H

#include <stdatomic.h>
#include <sys/types.h>

#include "transport/wire_common.h"

/* --- what lies in shared memory --- */

enum { RING_CELLS = 256, RING_INLINE_BYTES = 40, RING_VERSION = 1 };
#define RING_MAGIC UINT64_C(0x31474e4954464557) /* "WEFTING1" */

/* One cache line that carries one message or one step of a larger one. */
typedef struct ring_cell {
    _Atomic uint32_t turn; /* position + 1 of what is in it: tells filled from stale without a clearing pass */
    uint16_t         kind; /* ring_cell_kind */
    uint16_t         reserved;
    uint64_t         tag;
    uint64_t         bytes;
    union {
        uint8_t  data[RING_INLINE_BYTES];
        uint64_t word[RING_INLINE_BYTES / 8];
    };
} ring_cell;
_Static_assert(sizeof(ring_cell) == WEFTI_CACHE_LINE, "a cell is one cache line");

/* A segment belongs to one rank: what others write to it. */
typedef struct ring_segment {
    uint64_t         magic;
    uint32_t         version, size, cells, reserved;
    uint64_t         data_bytes;
    _Alignas(64) _Atomic uint32_t asleep; /* the owner sleeps on its doorbell */
    _Alignas(64) uint8_t rings[]; /* [size]: from each rank */
} ring_segment;

/* In each ring, then the cells, then the data. Both are stored by the consumer only, and seldom. */
typedef struct ring_head {
    _Alignas(64) _Atomic uint64_t cells_taken;
    _Atomic uint64_t data_taken;
} ring_head;

static inline size_t ring_stride(size_t data_bytes) { return sizeof(ring_head) + RING_CELLS * sizeof(ring_cell) + data_bytes; }
static inline size_t ring_segment_bytes(int32_t size, size_t data_bytes) {
    return sizeof(ring_segment) + (size_t)size * ring_stride(data_bytes);
}

/* --- what one end knows of it --- */

typedef struct ring_view {
    ring_head *head;
    ring_cell *cells;
    uint8_t   *data;
} ring_view;

typedef struct ring_link {
    wefti_wire_link state;
    bool            direct;       /* the peer's addresses are valid here: same process */
    bool            reads_memory; /* the peer's memory can be read with process_vm_readv */
    bool            broken;       /* no more will be written: take what is there, then it is down */
    pid_t           pid;
    ring_view       in, out;      /* in is in this rank's segment, out in the peer's */
    uint64_t        in_position, in_data, out_position, out_taken, data_position, data_taken;
    _Atomic uint32_t *asleep;     /* the peer's */
    int             doorbell;     /* the peer's eventfd */
    wefti_op_list   out_ops;      /* operations that have a cell to put */
    wefti_op_list   waiting;      /* operations that wait for the peer's answer */
} ring_link;

typedef struct ring_wire ring_wire;

typedef struct ring_region {
    wefti_wire_region region;
    int               memory; /* shm: its memfd; else -1 */
    bool              owned;  /* the wire allocated it */
    /* of a retired one */
    struct ring_region *next;
    bool (*unused)(const void *context);
    const void       *context;
} ring_region;

/* What the two wires do differently. */
typedef struct ring_front {
    /* Looks after connections, announcements and deaths, when it is due. */
    void (*service)(ring_wire *wire, uint64_t now_ns);
    weft_status (*peer_region)(wefti_wire *wire, int32_t peer, uint32_t id, wefti_wire_peer_region *region_out);
} ring_front;

struct ring_wire {
    wefti_wire_base   base;
    const ring_front *front;
    ring_link        *links;    /* [size] */
    ring_segment     *segment;  /* its own */
    size_t            data_bytes;
    int               doorbell; /* its own eventfd */
    bool              armed;
    wefti_op_list     copying;  /* operations that this end copies, a piece at each poll */
    ring_region     **regions;  /* [region_count] by id - 1; NULL once released */
    uint32_t          region_count, region_capacity;
    ring_region      *retired;  /* of those, the ones that go when nobody uses them any more */
    uint64_t          swept_ns;
};

/* Opens the common part; the front has allocated the segment (zeroed). */
weft_status wefti_ring_open(ring_wire *wire, const wefti_wire_options *options, const wefti_wire_ops *ops,
                            const ring_front *front, ring_segment *segment, size_t data_bytes);
void        wefti_ring_close(ring_wire *wire);
size_t      wefti_ring_data_bytes(const wefti_wire_options *options);
/* Where rank `from` writes to in a segment. */
ring_view wefti_ring_view(ring_segment *segment, size_t data_bytes, int32_t from);
/* Makes a link usable once both segments are known. */
void wefti_ring_link_up(ring_wire *wire, int32_t peer, ring_segment *peers_segment, int doorbell, bool direct);
/* Ends a link and everything that waits on it. */
void wefti_ring_link_end(ring_wire *wire, int32_t peer, wefti_wire_link state);
/* Says goodbye on all links, waiting at most linger_ns for room; before the front takes them down. */
void wefti_ring_leave(ring_wire *wire, uint64_t linger_ns);

weft_status     wefti_ring_post(wefti_wire *wire, wefti_wire_op *op);
weft_status     wefti_ring_poll(wefti_wire *wire, uint64_t now_ns, wefti_wire_op **ops_out, int32_t capacity,
                                int32_t *count_out);
void            wefti_ring_abort(wefti_wire *wire, weft_status status, int32_t rank);
weft_status     wefti_ring_arm(wefti_wire *wire);
wefti_wire_link wefti_ring_link_state(const wefti_wire *wire, int32_t peer);
/* Keeps a region in the table; gives it its id. */
weft_status wefti_ring_region_add(ring_wire *wire, void *base, size_t size_bytes, int memory, bool owned,
                                  wefti_wire_region **region_out);
void        wefti_ring_region_remove(ring_wire *wire, ring_region *region);
void        wefti_ring_region_retire(wefti_wire_region *region, bool (*unused)(const void *context), const void *context);
wefti_wire_region *wefti_ring_region_of(wefti_wire *wire, const void *memory, size_t bytes);
weft_status wefti_ring_peer_read(wefti_wire *wire, int32_t peer, void *to, uint64_t address, size_t bytes);

/* --- between wire_ring.c and wire_ring_move.c --- */

typedef enum ring_cell_kind {
    CELL_INLINE = 1, /* a message in the cell */
    CELL_EAGER,      /* a message in the data ring: word 0 its start, word 1 its end */
    CELL_READY,      /* a large message lies at the sender: word 0 token, 1 address, 2 region or 0, 3 offset */
    CELL_CLEAR,      /* answer: put it into word 2 region, 3 offset, or stream it (region 0); 0 token, 1 receiver's token */
    CELL_PART,       /* a part of a stream: word 0 receiver's token, 1 start, 2 end in the data ring; tag is its offset */
    CELL_FILLED,     /* the sender has put it all: word 0 receiver's token */
    CELL_TAKEN,      /* the receiver has taken it all: word 0 sender's token */
    CELL_NOTIFY,     /* the empty message of a write */
    CELL_BYE
} ring_cell_kind;

/* What an operation does next; in scratch[3]. */
typedef enum ring_step {
    STEP_START,      /* a send that has put nothing yet */
    STEP_STREAM,     /* a send that puts parts; scratch[0] the receiver's token, [2] bytes put */
    STEP_FILLED,     /* a send that has copied everything, and says so */
    STEP_TAKEN,      /* a receive that has copied everything, and says so */
    STEP_CLEAR,      /* a receive that answers a ready message */
    STEP_NOTIFY,     /* a write that has copied everything, and says so */
    STEP_WAIT,       /* on the waiting list */
    STEP_COPY_RECV,  /* copies from scratch[1]; [2] bytes copied */
    STEP_COPY_VM,    /* the same from the other process's memory */
    STEP_COPY_SEND,  /* copies to scratch[1], then FILLED */
    STEP_COPY_WRITE, /* copies to scratch[1], then done or NOTIFY */
    STEP_COPY_READ   /* copies from scratch[1], then done */
} ring_step;

static inline ring_step ring_step_of(const wefti_wire_op *op) { return (ring_step)op->scratch[3]; }
static inline int32_t   ring_peer_of(const wefti_wire_op *op) { return op->kind == WEFTI_WIRE_RECV ? op->done_peer : op->peer; }

/* Puts as much of the operation into the ring as there is room for: true once it is on no out list any more. */
bool wefti_ring_put(ring_wire *wire, ring_link *link, wefti_wire_op *op);
/* Begins to take a ready message into a receive. */
void wefti_ring_take_ready(ring_wire *wire, int32_t peer, wefti_wire_op *op, uint64_t bytes, const uint64_t *word);
/* Starts a copy, or does it at once where it is short. */
void wefti_ring_copy(ring_wire *wire, wefti_wire_op *op, void *address, ring_step step);
void wefti_ring_copy_some(ring_wire *wire);
/* Takes what is in the ring from `peer`. */
void wefti_ring_consume(ring_wire *wire, int32_t peer);

#endif

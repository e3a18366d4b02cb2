/* NCCL inside nodes and wires across them, from inside: what its files share (nccl_engine.h says what the engine is).
 *
 * An operation is a row of pieces, and a piece goes through a slot: `in` (NCCL inside the node: each owner gets its shard), `out` (the shard to
 * pinned host memory), across (the owners of one shard in all nodes, by a group over the wire), `into` (back to the GPU), and inside again. All of a
 * node's members must give NCCL its calls in one order, whatever comes first on which of them: so the order of calls is that of a fixed schedule,
 * in which a piece's last call comes DEPTH - 1 pieces after its first, and an operation begins once the one before has given all of its calls. */
#ifndef WEFTI_CUDA_NCCL_NODES_H
#define WEFTI_CUDA_NCCL_NODES_H

#include "core/iface/collective.h"
#include "cuda/inside.h"

enum { NODES_DEPTH = 4, NODES_PIECE_BYTES = 4 << 20 };

/* Who runs where, and which shards there are: as many as the smallest node has members; member `place` of each node owns shard `place`. */
typedef struct nodes_map {
    int32_t  count, mine, place; /* of nodes; this member's; its place in it */
    int32_t  here, least, most;  /* members of this node, of the smallest and of the largest */
    int32_t *first;              /* [count + 1] into `order` */
    int32_t *order;              /* [size] members by node and place */
    int32_t *node, *place_of;    /* [size] by member */
} nodes_map;

typedef enum slot_state {
    SLOT_FREE,
    SLOT_INSIDE,  /* NCCL is at its first call */
    SLOT_LEAVING, /* to the host */
    SLOT_ACROSS,
    SLOT_ARRIVED, /* waits for its turn to go on */
    SLOT_AGAIN,   /* NCCL is at its last call */
    SLOT_LANDING, /* last copies */
    SLOT_JOINED   /* the device waits for what is left; the slot's memory is in use until `loaded` */
} slot_state;

typedef struct nodes_operation {
    wefti_collective        base;
    struct nodes_operation *next; /* in flight, in the order of starts; or free */
    wefti_collective_call   call;
    uint64_t                sequence, first_piece, begun_ns;
    size_t                  piece_count; /* elements of a piece, of a part's where there are parts */
    int32_t                 pieces, landed, turn; /* turn: of the schedule */
    bool                    ended;
    weft_status             status;
    cudaEvent_t             before; /* what was there at its start */
} nodes_operation;

typedef struct nodes_slot {
    slot_state        state;
    nodes_operation  *operation;
    uint64_t          piece;        /* of all that ever were */
    wefti_collective_kind kind;     /* what this piece is, which may not be what the operation is … */
    int32_t           root;         /* … and of whom */
    size_t            from, to, count; /* elements, of a part where there are parts: where they are in what is sent and in what is received */
    size_t           *counts;       /* [here] elements of the shards; none of those who own none */
    size_t            shard_first, shard_count; /* this member's */
    bool              even;         /* all members of the node have shards, of one size */
    char             *host;         /* two of shard_bytes, which the wire exports and the driver has pinned */
    char             *shard, *wide; /* on the GPU: shard_bytes, NODES_PIECE_BYTES */
    wefti_collective *flight;       /* INSIDE, AGAIN: NCCL's; ACROSS: the wire's */
    cudaEvent_t       left, loaded;
} nodes_slot;

typedef struct nodes_group {
    wefti_group         base;
    wefti_cuda         *cuda;
    const wefti_host   *host;
    wefti_group        *over, *meeting; /* all members; this node's, over the wire, where NCCL's meet */
    wefti_group        *inside, *across; /* NCCL's; the owners of this shard, NULL where this member owns none */
    wefti_wire_region  *region; /* the slots' host memory */
    nodes_map           map;
    cudaStream_t        in, out, into;
    bool                own_fault, pinned;
    int32_t             n_operations;
    nodes_operation    *operations, *list, *last, *unused; /* [n_operations]; in flight; free */
    nodes_slot          slots[NODES_DEPTH];
    size_t              shard_bytes;
    uint64_t            pieces, crossed; /* given to operations; pieces whose turn to cross is over */
    char               *device_memory; /* the slots' */
    size_t              device_bytes;
    size_t             *counts;        /* the slots' */
    wefti_cuda_watcher  watcher;
} nodes_group;

static inline nodes_group *nodes_group_of(const wefti_group *group) { return (nodes_group *)(uintptr_t)group; }

/* nccl_nodes_pieces.c: what pieces of each kind do. */
WEFT_MUST_CHECK weft_status wefti_nodes_supports(const wefti_group *group, const wefti_collective_call *call);
/* How the operation is cut. */
void wefti_nodes_cut(nodes_group *group, nodes_operation *operation);
/* Piece `index` of the operation begins in the slot. */
WEFT_MUST_CHECK weft_status wefti_nodes_begin(nodes_group *group, nodes_slot *slot, nodes_operation *operation, int32_t index);
/* It has arrived, and its turn to go on has come. */
WEFT_MUST_CHECK weft_status wefti_nodes_go_on(nodes_group *group, nodes_slot *slot);
/* Whether copies follow its last call of NCCL. */
bool wefti_nodes_lands_later(const nodes_slot *slot);
/* Moves it where it can be moved; WEFT_OK also where it cannot yet. */
WEFT_MUST_CHECK weft_status wefti_nodes_advance(nodes_group *group, nodes_slot *slot);

/* nccl_nodes_open.c */
weft_status wefti_nodes_open(const wefti_group_options *options, wefti_group **group_out);
void        wefti_nodes_close(wefti_group *group);

#endif

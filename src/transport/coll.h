/* Inside of our collective engine: what its files share.
 *
 * coll_group.c    the engine's table: open, start, progress, wait, close
 * coll_check.c    calls in words, what ranks compare, and what happens when they differ or fail
 * coll_choose.c   the list of algorithms, and which one is taken
 * coll_ask.c      the calls that a group has made, and questions about them
 * coll_lanes.c    message algorithms: lanes of transfers, and the exchange of headers
 * coll_small.c    direct, doubling, tree, dissemination: header and payload in one message
 * coll_ring.c     ring, swap and chain: segmented, several segments on the way at once
 * coll_program.c  what runs the algorithms that are written as rounds on a segment, which are:
 * coll_halving.c    halving and doubling
 * coll_trees.c      double tree; binomial trees and the chain of rooted kinds
 * coll_exchange.c   pairwise, linear, Bruck
 * coll_nodes.c, coll_nodes_parts.c, coll_nodes_rooted.c   hierarchical: inside the node, across nodes, inside again
 * coll_scatter.c  a broadcast in parts: dealt out, then collected
 * coll_point.c    send and receive
 * coll_mpi.c, coll_mpi_open.c   MPI's own collectives, over the MPI wire
 * tune.c            measured costs, and the file that keeps them
 * coll_map.c      the slots in mapped memory, and the one-shot algorithm on them
 * coll_feed.c     broadcasts of what nobody maps: the root puts it into a ring that all others read
 * coll_share.c    two-shot: every rank reduces its share straight from and to the others' memory
 * coll_pull.c     the same of buffers that nobody maps, where nothing is reduced: out of the others' own memory */
#ifndef WEFTI_TRANSPORT_COLL_H
#define WEFTI_TRANSPORT_COLL_H

#include <stdatomic.h>

#include "core/iface/collective.h"
#include "transport/tune.h"
#include "transport/watch.h"

enum {
    COLL_LANES = 4,      /* segments of one operation that are on the way at once */
    COLL_SETS = 4,       /* large operations that are served at once; the others wait in order */
    COLL_FAN = 10,       /* most transfers each way in one round of a lane */
    COLL_TRANSFERS = 8,  /* that a lane has at least */
    COLL_KEEPS = 64,     /* latest calls of a group that are remembered */
    COLL_STRICT_EVERY = 32, /* calls of which one ends nowhere before all have begun it */
    COLL_DIRECT_MOST = 9 /* largest group for which everyone talks to everyone */
};
/* Payload up to which messages carry their header with them, and which a mapped slot holds. Set by measurement: above,
 * the copy costs more than the second exchange. */
#define COLL_SMALL_BYTES ((size_t)8192)
#define COLL_SMALL_PAIR_BYTES ((size_t)32 << 10) /* messages between two, where there is but one to copy */
#define COLL_SEGMENT_BYTES ((size_t)256 << 10) /* where data go on from rank to rank, segment by segment */
#define COLL_DEFAULT_TIMEOUT_NS (30 * WEFTI_SECOND_NS)
#define COLL_DEFAULT_IN_FLIGHT 64

typedef struct coll_group coll_group;
typedef struct coll_operation coll_operation;
typedef struct coll_lane coll_lane;

/* What ranks compare before they use each other's data. Goes over the wire. */
typedef struct coll_header {
    uint64_t count;
    uint32_t sequence; /* its lower half */
    uint8_t kind, dtype, op, algorithm;
    int32_t root;
    uint32_t magic;
    uint64_t extra; /* of the counts of the _V kinds, and of a user's reduction; else 0 */
} coll_header;
#define COLL_MAGIC 0x57454654u

/* What messages begin with: the call, and those of the group before it, so that a difference in one that nobody waited for is found in the next. */
typedef struct coll_opening {
    coll_header header;
    uint64_t before; /* hash of all calls before; 0: of none, and of messages between two */
    struct {
        uint64_t count;
        uint8_t kind, dtype, op, algorithm;
        int32_t root;
    } last; /* of the one before */
    uint64_t reserved;
} coll_opening;
_Static_assert(sizeof(coll_opening) == 64, "the payload behind it stays aligned");

/* --- algorithms --- */

/* What messages and memory cost, for the choice. From the wire's first guesses, or measured (tune.h). */
typedef struct coll_model {
    double alpha_ns, beta_ns; /* a message; one of its bytes */
    double far_alpha_ns, far_beta_ns; /* the same between nodes */
    double gamma_ns; /* a byte read or written by one core */
} coll_model;

/* One way to do one or more kinds. `advance` gives WEFT_OK when the operation has its result, WEFT_E_AGAIN while it
 * waits, another status for a fault that it found (the group raises it). `bytes` are those of the call's `count`. */
typedef struct coll_algorithm {
    const char *name;
    uint32_t kinds; /* bit by wefti_collective_kind */
    bool mapped;    /* needs a wire that maps peers */
    bool large;     /* needs one of the group's COLL_SETS */
    bool (*fits)(const coll_group *group, const wefti_collective_call *call, size_t bytes);
    double (*cost_ns)(const coll_group *group, wefti_collective_kind kind, size_t bytes); /* by the model */
    /* Bytes of payload that all members together send for it, exactly, and messages that carry a header. */
    uint64_t (*sent_bytes)(const coll_group *group, wefti_collective_kind kind, size_t bytes);
    uint64_t (*headers)(const coll_group *group, wefti_collective_kind kind);
    void (*begin)(coll_operation *operation); /* at start; may publish or queue, must not wait */
    weft_status (*advance)(coll_operation *operation);
} coll_algorithm;

/* What a tuning says (tune.h), looked up. */
typedef struct coll_rule {
    size_t bytes;
    const coll_algorithm *algorithm;
} coll_rule;

extern const coll_algorithm wefti_coll_algorithms[];
extern const int wefti_coll_algorithm_count;

/* --- messages --- */

/* A sequence of rounds. A round is a set of transfers that are on the way at once; when all are done `step` does the
 * round's work on the data and queues the next round. */
struct coll_lane {
    weft_status (*step)(coll_operation *operation, coll_lane *lane); /* WEFT_OK: finished; WEFT_E_AGAIN: has queued */
    wefti_wire_op *transfers;                                        /* [capacity] */
    int32_t queued, posted;
    int32_t index, round;
    size_t segment;
    uint8_t *scratch; /* 2 × the group's segment_bytes, for lanes of large operations */
    bool finished;
    /* Works on a part of what the round brings, as it comes; NULL: the round is worked on when it is over. */
    weft_status (*part)(coll_operation *operation, coll_lane *lane, const void *data, size_t offset, size_t bytes);
    weft_status part_status; /* of the first that failed */
};

/* An algorithm that is written as rounds on one segment of the data; lanes take the segments in turn, so that one
 * segment's work overlaps with the others' transfers. Nothing is kept between the calls but the lane's segment and round. */
typedef struct coll_program {
    size_t (*segments)(const coll_operation *operation);
    int32_t (*rounds)(const coll_operation *operation);
    /* Before the first round of a segment; NULL: nothing. */
    void (*prepare)(coll_operation *operation, coll_lane *lane);
    /* Queues the transfers of a round; none is allowed. */
    void (*queue)(coll_operation *operation, coll_lane *lane, int32_t round);
    /* Works on what the round brought; NULL: nothing. */
    weft_status (*work)(coll_operation *operation, coll_lane *lane, int32_t round);
} coll_program;

/* --- nodes --- */

/* Who runs where. Members of one node are neighbours in `order`, by index. */
typedef struct coll_nodes {
    int32_t count;       /* of nodes */
    int32_t least, most; /* members of the smallest, and of the largest */
    int32_t mine, place; /* this member's node, and its place there */
    int32_t *order;      /* [size] */
    int32_t *first;      /* [count + 1] in `order` */
    /* How many of all messages to the member 2^k further on, and to the one whose index differs in bit k, go to another node. */
    float far_shift[31], far_flip[31];
} coll_nodes;

static inline int32_t coll_node_size(const coll_nodes *nodes, int32_t node) { return nodes->first[node + 1] - nodes->first[node]; }
static inline int32_t coll_node_member(const coll_nodes *nodes, int32_t node, int32_t place) { return nodes->order[nodes->first[node] + place]; }
static inline int32_t coll_wrap(int32_t size, int32_t index) { return ((index % size) + size) % size; }

/* --- mapped memory --- */

typedef struct coll_map coll_map;
typedef struct coll_share coll_share;

/* --- MPI --- */

typedef struct coll_mpi coll_mpi;

/* --- operations and groups --- */

struct coll_operation {
    wefti_collective base;
    wefti_collective_call call;
    uint64_t sequence;
    uint64_t place; /* among the mapped ones of the group */
    uint64_t started_ns, deadline_ns; /* 0 until the first look at the clock */
    const coll_algorithm *algorithm;
    coll_operation *next; /* in the list of free ones, or of those in flight */
    weft_status status;
    bool finished;
    bool suspected; /* has told the fault object of a peer */
    int32_t set;    /* of a large operation; else -1 */
    uint64_t large_number;
    const coll_program *program;
    uint64_t extra;    /* for the header */
    coll_opening opening; /* without its header */
    bool asked;        /* a question was sent */
    uint64_t noted;    /* in the group's track */
    int32_t waits_for; /* index of a rank whose part is missing; -1 */
    int32_t gone[2];   /* 1 + indices of members whose links were seen down while their parts were missing, the latest first */
    uint64_t halfway;  /* mapped: 1 + how far the member that is waited for was at half of the time; 0: that has not come */
    uint32_t looks;    /* in vain; of message operations, those at deadlines */
    uint64_t wrong_ns; /* when a message of the wrong length was first seen; 0: never */
    size_t element_bytes;
    /* messages */
    int32_t lane_count;
    coll_lane lanes[COLL_LANES + 1]; /* the last exchanges headers for the algorithms that do not carry them */
    uint8_t *outbox, *inbox;         /* [fan + 1] messages of the group's message_bytes each; the last for greetings */
    /* mapped */
    int32_t seen; /* members whose slot has been seen */
    coll_share *share;
};

struct coll_group {
    wefti_group base;
    const wefti_host *host;
    const wefti_reducer *reducer;
    size_t message_bytes;             /* most of a message that carries its header, header included */
    size_t segment_bytes;             /* where ranks only exchange; the same at all members, as their wire is, and not less */
    bool owns_fault, failed, crowded; /* crowded: more ranks than cores */
    uint16_t id, epoch;
    uint64_t timeout_ns;
    uint64_t looked_ns; /* at deadlines, last */
    wefti_watch *watch;
    wefti_track *track;
    int32_t in_flight;  /* capacity */
    int32_t fan;       /* of the lanes */
    int32_t lane_transfers; /* most of one round of a lane */
    int32_t *ranks;    /* [size] */
    uint64_t *points;  /* [2 · size] numbers of the next send to, and the next receive from, each member */
    coll_model model;
    int32_t rule_first[WEFTI_COLLECTIVE_KIND_COUNT + 1]; /* those of a kind end where the next kind's begin */
    coll_nodes nodes;
    const coll_algorithm *forced[WEFTI_COLLECTIVE_KIND_COUNT];
    coll_rule chosen[WEFTI_COLLECTIVE_KIND_COUNT]; /* the latest choices: programs call the same again and again, and small calls take no longer than choosing */
    coll_operation *operations;          /* [in_flight] */
    coll_operation *free, *first, *last; /* free ones; those in flight, by priority, then in order of start */
    coll_opening next;                   /* of the next call: what it says of those before */
    coll_header called[COLL_KEEPS];      /* by sequence: the latest calls */
    wefti_wire_op question;              /* the receive of questions (coll_ask.c) … */
    coll_header asked;                   /* … and where they come to */
    bool asks;                           /* it is posted */
    uint64_t places;                     /* mapped operations so far */
    bool mixed;                          /* some were started before one that stands before them */
    uint32_t busy_sets;                  /* by bit, those that message operations have */
    int32_t active;
    uint64_t moves; /* counts what was done, so that waits tell a slow operation from a stuck one */
    uint64_t large_started, large_finished; /* those before it are all finished */
    uint64_t large_done_mask;               /* which of the next 64 are */
    const void **sources;                   /* [size], for calls of the reducer */
    wefti_wire_op *transfers;               /* the lanes' */
    uint8_t *messages;                      /* outboxes and inboxes */
    uint8_t *scratch; /* COLL_SETS × COLL_LANES × 2 × segment_bytes; only where nothing is mapped */
    coll_map *map;    /* NULL where the wire does not map */
    coll_mpi *mpi;    /* NULL where MPI's own collectives cannot be had */
    coll_rule rules[WEFTI_TUNING_RULES]; /* of a tuning; by kind, then by bytes */
};

static inline coll_group *coll_group_of(const coll_operation *operation) { return (coll_group *)operation->base.group; }
static inline size_t coll_segment_bytes(const coll_operation *operation) { return coll_group_of(operation)->segment_bytes; }
static inline bool coll_in_parts(const coll_operation *operation) {
    return operation->base.group->wire->can.flags & WEFTI_WIRE_GIVES_PIECES;
}
static inline int32_t coll_size(const coll_group *group) { return group->base.size; }
static inline int32_t coll_index(const coll_group *group) { return group->base.index; }
/* Bytes of the call's `count` elements. Checked at start. */
static inline size_t coll_bytes(const coll_operation *operation) {
    return operation->call.count * operation->element_bytes;
}
static inline bool coll_kind_reduces(wefti_collective_kind kind) {
    return kind == WEFTI_ALLREDUCE || kind == WEFTI_REDUCE_SCATTER || kind == WEFTI_REDUCE_SCATTER_V || kind == WEFTI_REDUCE_TO;
}
static inline bool coll_kind_has_root(wefti_collective_kind kind) {
    return kind == WEFTI_BROADCAST || kind == WEFTI_REDUCE_TO || kind == WEFTI_GATHER || kind == WEFTI_SCATTER;
}
static inline bool coll_kind_has_counts(wefti_collective_kind kind) {
    return kind == WEFTI_REDUCE_SCATTER_V || kind == WEFTI_ALLGATHER_V || kind == WEFTI_ALLTOALL_V;
}
/* The member `distance` further on, around the group; distance may be negative, and at most the size. */
static inline int32_t coll_around(const coll_group *group, int32_t index, int32_t distance) {
    int32_t size = group->base.size, sum = index + distance;
    return sum < 0 ? sum + size : sum >= size ? sum - size : sum;
}

/* The part of `count` elements that belongs to member `index`: parts begin at whole cache lines, so that no two members
 * write one line. */
typedef struct coll_range {
    size_t first, count;
} coll_range;
coll_range wefti_coll_part(size_t count, size_t element_bytes, int32_t size, int32_t index);
/* Where the part of member `index` lies in the buffer that holds all parts: `send` of REDUCE_SCATTER, SCATTER and ALLTOALL,
 * `receive` of ALLGATHER, GATHER and ALLTOALL (of ALLTOALL_V: by `counts`); of the other kinds its share of the work. */
coll_range wefti_coll_part_of(const coll_operation *operation, int32_t index);
/* Elements of the longest part. */
size_t wefti_coll_longest_part(const coll_operation *operation);
/* Elements that member `index` has in send and in receive. */
size_t wefti_coll_sent_count(const coll_group *group, const wefti_collective_call *call, int32_t index);
size_t wefti_coll_received_count(const coll_group *group, const wefti_collective_call *call, int32_t index);

/* dst = reduction of the group's `sources` [source_count]; divides where `last` and the operation is an average. */
weft_status wefti_coll_reduce(coll_operation *operation, void *dst, int32_t source_count, size_t count, bool last);
uint64_t wefti_coll_oldest(const coll_group *group);
/* Whether a large operation's turn has come; gives one that sends messages its set. */
bool wefti_coll_turn(coll_operation *operation);
weft_status wefti_coll_nodes_open(coll_group *group, const int32_t *nodes);
void wefti_coll_nodes_close(coll_group *group);

/* --- coll_check.c --- */

weft_status wefti_coll_check_call(const coll_group *group, const wefti_collective_call *call);
coll_header wefti_coll_header(const coll_operation *operation);
coll_opening wefti_coll_opening(const coll_operation *operation);
/* What the header says of counts and of a user's reduction. */
uint64_t wefti_coll_extra(const coll_group *group, const wefti_collective_call *call);
/* WEFT_OK where the header of member `index` is the same as ours; else WEFT_E_MISMATCH in words. */
weft_status wefti_coll_compare(coll_operation *operation, int32_t index, const coll_header *theirs);
/* The same, and of the calls before. */
weft_status wefti_coll_compare_opening(coll_operation *operation, int32_t index, const coll_opening *theirs);
/* The same of two calls of a number. */
weft_status wefti_coll_compare_headers(const coll_group *group, uint64_t sequence, int32_t index, const coll_header *ours, const coll_header *theirs);
/* WEFT_E_MISMATCH: member `index` has made other calls before the operation. */
weft_status wefti_coll_other_calls(const coll_operation *operation, int32_t index);
/* WEFT_E_MISMATCH: member `index` sent `bytes` where `expected` were due. */
weft_status wefti_coll_wrong_length(coll_operation *operation, int32_t index, size_t bytes, size_t expected);
/* Tells the fault object, once an operation, that member `index` seems to be gone. */
void wefti_coll_suspect(coll_operation *operation, int32_t index);
/* "allreduce 17 of 1024 f32 (sum)" */
void wefti_coll_words(const coll_operation *operation, char *text_out, size_t text_bytes);
/* The same of a header: "allreduce of 1024 f32 (sum, ring)" */
void wefti_coll_header_words(const coll_header *header, char *text_out, size_t text_bytes);
const char *wefti_coll_kind_name(wefti_collective_kind kind);

/* --- coll_choose.c --- */

weft_status wefti_coll_read_forced(coll_group *group, const char *name);
/* The wire's first guesses. */
coll_model wefti_coll_first_model(const wefti_wire *wire);
/* Whether the group has what the algorithm needs for calls of the kind. */
bool wefti_coll_usable(const coll_group *group, const coll_algorithm *algorithm, wefti_collective_kind kind);
const coll_algorithm *wefti_coll_choose(const coll_group *group, const wefti_collective_call *call, size_t bytes);

/* --- coll_ask.c --- */

/* Notes a call of the group's own order that begins; gives it what it says of those before. */
void wefti_coll_note_call(coll_operation *operation);
/* Whether a broadcast is one of those in which all hear of a neighbour, the root too. */
bool wefti_coll_is_strict(const coll_operation *operation);
/* Asks whom a broadcast has waited for. */
void wefti_coll_ask(coll_operation *operation, uint64_t now_ns);
/* Looks at questions: WEFT_E_MISMATCH where somebody calls what this member has called differently. */
weft_status wefti_coll_answer(coll_group *group);

/* --- coll_lanes.c --- */

/* Steps of tags: 0 carries headers, 1 + lane the segments. The greeting is at 0, but for the algorithms that carry
 * headers themselves. */
uint64_t wefti_coll_tag(const coll_group *group, uint64_t sequence, uint32_t step);
void wefti_coll_lane_begin(coll_operation *operation, int32_t index,
                           weft_status (*step)(coll_operation *operation, coll_lane *lane));
void wefti_coll_lane_send(coll_operation *operation, coll_lane *lane, int32_t to, uint32_t step, const void *buffer,
                          size_t bytes);
void wefti_coll_lane_recv(coll_operation *operation, coll_lane *lane, int32_t from, uint32_t step, void *buffer,
                          size_t bytes);
/* The same, but what comes in is handed to `part` while the cache holds it, where the wire does that. Else it comes to
 * `buffer`, for the round's work. `whole`: each part lies at its place in it; else they come to its first WEFTI_WIRE_PIECE_BYTES, one after
 * the other. */
void wefti_coll_lane_recv_parts(coll_operation *operation, coll_lane *lane, int32_t from, uint32_t step, void *buffer, size_t bytes,
                                bool whole, weft_status (*part)(coll_operation *operation, coll_lane *lane, const void *data, size_t offset, size_t bytes));
/* Begins the exchange of headers with the neighbours, in the lane that is there for it. */
void wefti_coll_greet(coll_operation *operation, uint32_t step);
weft_status wefti_coll_lanes_advance(coll_operation *operation);
/* Gets every transfer of the group back from the wire. */
void wefti_coll_lanes_end(coll_group *group);
/* Gives the wire a moment to finish what `holds` says that it still has; whether it has. */
bool wefti_coll_settle(coll_group *group, bool (*holds)(coll_group *group));

/* --- coll_program.c --- */

/* Begins lanes for so many segments, and the exchange of headers. */
void wefti_coll_lanes_begin(coll_operation *operation, size_t segments,
                            weft_status (*step)(coll_operation *operation, coll_lane *lane));
void wefti_coll_program_begin(coll_operation *operation, const coll_program *program);
/* Of `count` elements, those of the lane's segment, where segments have `most`. */
coll_range wefti_coll_segment(const coll_lane *lane, size_t count, size_t most);
/* Segments of `most` elements that `count` elements make. */
static inline size_t coll_segments(size_t count, size_t most) { return count / most + (count % most != 0); }
/* Queue a transfer of `count` elements at `buffer`; none where there are none. */
void wefti_coll_program_send(coll_operation *operation, coll_lane *lane, int32_t to, const void *buffer, size_t count);
void wefti_coll_program_recv(coll_operation *operation, coll_lane *lane, int32_t from, void *buffer, size_t count);
/* The address of element `i`. */
static inline uint8_t *coll_at(const coll_operation *operation, const void *buffer, size_t i) {
    return (uint8_t *)(uintptr_t)buffer + i * operation->element_bytes;
}
/* Copies elements, unless they are there already. */
void wefti_coll_copy(const coll_operation *operation, void *to, const void *from, size_t count);
/* dst = left ∘ right. */
weft_status wefti_coll_reduce_two(coll_operation *operation, void *dst, const void *left, const void *right, size_t count,
                                  bool last);
int32_t wefti_coll_power_below(int32_t size); /* the largest power of two that is not larger */
int32_t wefti_coll_log2_up(int32_t size);

void wefti_coll_halving_begin(coll_operation *operation);
void wefti_coll_twotree_begin(coll_operation *operation);
void wefti_coll_rooted_tree_begin(coll_operation *operation);
void wefti_coll_rooted_chain_begin(coll_operation *operation);
void wefti_coll_linear_begin(coll_operation *operation);
void wefti_coll_pairwise_begin(coll_operation *operation);
void wefti_coll_bruck_begin(coll_operation *operation);
void wefti_coll_nodes_begin(coll_operation *operation);
void wefti_coll_nodes_parts_begin(coll_operation *operation);
void wefti_coll_nodes_rooted_begin(coll_operation *operation);
void wefti_coll_point_begin(coll_operation *operation);

/* --- coll_scatter.c --- */

void wefti_coll_scatter_begin(coll_operation *operation);

/* --- coll_small.c, coll_ring.c --- */

void wefti_coll_direct_begin(coll_operation *operation);
void wefti_coll_doubling_begin(coll_operation *operation);
void wefti_coll_tree_begin(coll_operation *operation);
void wefti_coll_dissemination_begin(coll_operation *operation);
void wefti_coll_ring_begin(coll_operation *operation);
void wefti_coll_chain_begin(coll_operation *operation);
void wefti_coll_swap_begin(coll_operation *operation);

/* --- coll_map.c, coll_share.c --- */

weft_status wefti_coll_map_open(coll_group *group);
/* Says goodbye and retires this rank's memory; waits for nobody. */
void wefti_coll_map_close(coll_group *group);
/* Whether member `index` has closed the group and takes no part in the operation; mapped ones only. */
bool wefti_coll_has_left(const coll_operation *operation, int32_t index);
void wefti_coll_oneshot_begin(coll_operation *operation);
weft_status wefti_coll_oneshot_advance(coll_operation *operation);
void wefti_coll_twoshot_begin(coll_operation *operation);
weft_status wefti_coll_twoshot_advance(coll_operation *operation);

/* --- coll_mpi_open.c, coll_mpi.c; only in builds with MPI --- */

/* Lets the group use MPI's collectives where its wire is MPI's, and all members are asked for them: `algorithm` (NULL: WEFT_ALGORITHM)
 * names them, or a tuning is to choose. Collective over groups on such a wire. */
weft_status wefti_coll_mpi_open(coll_group *group, const char *algorithm);
void wefti_coll_mpi_close(coll_group *group);
/* Times MPI's collectives beside ours, and adds rules that take the faster ones. Collective over the group. */
weft_status wefti_coll_mpi_measure(coll_group *group, wefti_tuning *tuning);
/* Gets the operations back that MPI has; poisons it where it does not give them back. */
void wefti_coll_mpi_end(coll_group *group);
bool wefti_coll_mpi_fits(const coll_group *group, const wefti_collective_call *call, size_t bytes);
void wefti_coll_mpi_begin(coll_operation *operation);
weft_status wefti_coll_mpi_advance(coll_operation *operation);

#endif

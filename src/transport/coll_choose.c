/* The list of algorithms, and the choice among them.
 *
 * Each algorithm that fits a call has a cost by a model of latency α, time per byte β of the wire and time per byte γ
 * of memory; the least one is taken. The choice depends on nothing but the group and the call, so all members choose
 * the same; headers compare it nevertheless. A name from the options or from WEFT_ALGORITHM forces one wherever it fits.
 *
 * The model's numbers are the wire's first guesses, which are the same in every run: so is the choice then, and with it
 * every bit of a sum. Measured ones (tune.h) are agreed upon by all ranks before.
 *
 * Each row also says what all members together send, so that the counters of the wires can be held against it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transport/coll.h"

/* Rough constants of today's machines; the wire gives its own α and β. */
#define FLAG_NS 100.0           /* a cache line from one core to another, seen by polling */
#define MEMORY_NS_PER_BYTE 0.08 /* read or write, one core */
#define GREETING_NS 400.0       /* a header that goes by itself, along with the data */
#define POST_NS 200.0           /* one message more, of several that are sent or taken one after the other */
#define REDUCE_AHEAD 2.0        /* segments of a tree's that are added up at once, of several */
#define NODES_AHEAD 1.6         /* the same of reductions over nodes: their port is busy most of the time … */
#define NODES_PASS_AHEAD 1.3    /* … of broadcasts, which have nothing but the port to wait for … */
#define NODES_TREE_AHEAD 1.7    /* … and down a tree, where some members rest while others pass segments on */
#define GATHER_WORK 0.15        /* of the gathered bytes, what Bruck's exchange keeps memory busy with beside the transfer */

coll_model wefti_coll_first_model(const wefti_wire *wire) {
    double alpha = (double)wire->can.latency_ns + 200.0, far = wire->can.bytes_per_ns > 0 ? 1 / wire->can.bytes_per_ns : 1.0;
    double near = wire->can.near_bytes_per_ns > 0 ? 1 / wire->can.near_bytes_per_ns : far;
    return (coll_model){alpha, near, alpha, far, MEMORY_NS_PER_BYTE};
}

/* What a message costs. */
typedef struct price {
    double alpha_ns, beta_ns;
} price;

/* Of messages of which `share` go to another node. */
static price mixed(const coll_group *group, double share) {
    const coll_model *m = &group->model;
    return (price){m->alpha_ns + share * (m->far_alpha_ns - m->alpha_ns), m->beta_ns + share * (m->far_beta_ns - m->beta_ns)};
}
static price near_price(const coll_group *group) { return mixed(group, 0); }
static price far_price(const coll_group *group) { return mixed(group, group->nodes.count > 1 ? 1 : 0); }
/* To the next member: the mean of a way around all members, whatever their order. */
static price next_price(const coll_group *group) { return mixed(group, group->nodes.far_shift[0]); }
/* Between one member and all others. */
static price any_price(const coll_group *group) {
    double size = coll_size(group), here = size / group->nodes.count;
    return mixed(group, size > 1 ? (size - here) / (size - 1) : 0);
}
/* To the member 2^k further on, as in trees; and to the partner in an exchange. */
static price shift_price(const coll_group *group, int32_t k) { return mixed(group, group->nodes.far_shift[k]); }
static price flip_price(const coll_group *group, int32_t k) { return mixed(group, group->nodes.far_flip[k]); }

static double gamma_of(const coll_group *group) { return group->model.gamma_ns; }
static int32_t levels_of(const coll_group *group) { return wefti_coll_log2_up(coll_size(group)); }
static double least_of(double a, double b) { return a < b ? a : b; }
static double most_of(double a, double b) { return a > b ? a : b; }
/* A message of all distances, one after the other: from the root of a binomial tree to the member that is reached last. */
static double way_down(const coll_group *group, double bytes, double work_ns) {
    double sum = 0;
    for (int32_t k = 0; k < levels_of(group); k++) {
        price p = shift_price(group, k);
        sum += p.alpha_ns + bytes * p.beta_ns + work_ns;
    }
    return sum;
}

/* --- what fits ---
 * `bytes` is those of the call's `count` elements; of the longest part where parts differ. */

static bool fits_direct(const coll_group *group, const wefti_collective_call *call, size_t bytes) {
    (void)call;
    return coll_size(group) <= COLL_DIRECT_MOST && bytes + sizeof(coll_opening) <= group->message_bytes;
}
static bool fits_small(const coll_group *group, const wefti_collective_call *call, size_t bytes) {
    (void)call;
    return bytes + sizeof(coll_opening) <= group->message_bytes;
}
/* A header and all of it to each child at once. */
static bool fits_tree(const coll_group *group, const wefti_collective_call *call, size_t bytes) {
    (void)call;
    return bytes <= COLL_SEGMENT_BYTES && bytes <= group->base.wire->can.max_message_bytes &&
           2 * wefti_coll_log2_up(coll_size(group)) <= group->lane_transfers;
}
static bool fits_any(const coll_group *group, const wefti_collective_call *call, size_t bytes) {
    (void)group, (void)call, (void)bytes;
    return true;
}
static bool fits_pair(const coll_group *group, const wefti_collective_call *call, size_t bytes) {
    (void)call, (void)bytes;
    return coll_size(group) == 2;
}
static bool fits_slot(const coll_group *group, const wefti_collective_call *call, size_t bytes) {
    bool parts = call->kind == WEFTI_REDUCE_SCATTER || call->kind == WEFTI_REDUCE_SCATTER_V || call->kind == WEFTI_SCATTER ||
                 call->kind == WEFTI_ALLTOALL;
    return (parts ? bytes * (size_t)coll_size(group) : bytes) <= COLL_SMALL_BYTES;
}
/* With two members, these are a ring in longer messages. */
static bool fits_halving(const coll_group *group, const wefti_collective_call *call, size_t bytes) {
    (void)bytes;
    int32_t size = coll_size(group);
    return size > 2 && (call->kind == WEFTI_ALLREDUCE || ((size & (size - 1)) == 0 && (size_t)size * 8 <= COLL_SEGMENT_BYTES));
}
static bool fits_twotree(const coll_group *group, const wefti_collective_call *call, size_t bytes) {
    (void)call, (void)bytes;
    return coll_size(group) > 2;
}
/* Up to half of it goes in one message. */
static bool fits_scatter(const coll_group *group, const wefti_collective_call *call, size_t bytes) {
    (void)call;
    return coll_size(group) > 2 && bytes <= group->base.wire->can.max_message_bytes;
}
/* Parts of one element of every member fit into a lane's scratch. */
static bool fits_parts(const coll_group *group, const wefti_collective_call *call, size_t bytes) {
    (void)bytes;
    return call->kind == WEFTI_REDUCE_TO || (size_t)coll_size(group) * 16 <= COLL_SEGMENT_BYTES;
}
static bool fits_bruck(const coll_group *group, const wefti_collective_call *call, size_t bytes) {
    if (coll_size(group) == 2) return false;
    if (call->kind == WEFTI_ALLTOALL) return fits_parts(group, call, bytes);
    return bytes <= group->base.wire->can.max_message_bytes / (size_t)coll_size(group);
}
static bool fits_nodes(const coll_group *group, const wefti_collective_call *call, size_t bytes) {
    (void)call, (void)bytes;
    return group->nodes.count > 1 && group->nodes.count < coll_size(group);
}

/* --- what it costs --- */

static double cost_direct(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)kind;
    double others = coll_size(group) - 1, data = (double)bytes;
    return far_price(group).alpha_ns + others * (POST_NS + data * (any_price(group).beta_ns + 3 * gamma_of(group)));
}
/* Where the size is no power of two, some fold into pairs before, and unfold after. */
static double cost_doubling(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)kind;
    int32_t power = wefti_coll_power_below(coll_size(group));
    double  data = (double)bytes, work = 3 * gamma_of(group), sum = 0;
    for (int32_t k = 0; 1 << k < power; k++) sum += flip_price(group, k).alpha_ns + data * (flip_price(group, k).beta_ns + work);
    return sum + (power == coll_size(group) ? 0 : next_price(group).alpha_ns + data * (next_price(group).beta_ns + work));
}
static double cost_tree(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)kind;
    return way_down(group, (double)bytes, 0);
}
/* While a part's reduction goes on, the next segment's transfer does, where there is one. Between two, measured beside swap, it costs less. */
static double cost_ring(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    price  next = next_price(group);
    double steps = coll_size(group) - 1, part = (double)bytes / (kind == WEFTI_ALLREDUCE ? coll_size(group) : 1);
    double work = (part > (double)COLL_SEGMENT_BYTES ? 1 : coll_size(group) == 2 ? 2 : 3) * gamma_of(group);
    double moves = next.alpha_ns + part * next.beta_ns, reduces = coll_kind_reduces(kind) ? part * work : 0;
    return GREETING_NS + steps * (moves + reduces) + (kind == WEFTI_ALLREDUCE ? steps * moves : 0);
}
/* Measured: reducing all of it instead of a half costs this much of the ring's work on memory. */
static double cost_swap(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)kind;
    return GREETING_NS + next_price(group).alpha_ns + (double)bytes * (next_price(group).beta_ns + 1.6 * gamma_of(group));
}
/* The first segment's way along the chain, and the others behind it. */
static double cost_chain(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    price  next = next_price(group);
    double segment = least_of((double)bytes, (double)COLL_SEGMENT_BYTES);
    double work = kind == WEFTI_REDUCE_TO ? 3 * gamma_of(group) : 0;
    return (coll_size(group) - 1) * (next.alpha_ns + segment * (next.beta_ns + work)) + far_price(group).alpha_ns +
           ((double)bytes - segment) * (far_price(group).beta_ns + work);
}
/* Parts are dealt out from far to near, and collected from near to far. */
static double cost_scatter(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)kind;
    int32_t size = coll_size(group);
    double  data = (double)bytes, sum = GREETING_NS;
    for (int32_t k = 0; k < levels_of(group); k++) {
        price   p = shift_price(group, k);
        int32_t distance = 1 << k, moved = size - distance < distance ? size - distance : distance;
        sum += 2 * (p.alpha_ns + data * moved / size * p.beta_ns);
    }
    return sum;
}
/* Halves, quarters, … there and back; with a fold before and after where the size is no power of two. Of a reduce-scatter's first half a
 * copy is sent. */
static double cost_halving(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    int32_t size = coll_size(group), power = wefti_coll_power_below(size), steps = wefti_coll_log2_up(power);
    bool    scatters = kind == WEFTI_REDUCE_SCATTER;
    double  data = (double)bytes * (scatters ? size : 1), sum = GREETING_NS + (scatters ? data * gamma_of(group) : 0);
    for (int32_t k = 0; k < steps; k++) {
        price  flip = flip_price(group, k);
        double moved = data * (1 << k) / power;
        sum += (scatters ? 1 : 2) * (flip.alpha_ns + moved * flip.beta_ns) + 3 * moved * gamma_of(group);
    }
    if (power == size) return sum;
    return sum + 2 * (next_price(group).alpha_ns + data * next_price(group).beta_ns) + 3 * data * gamma_of(group);
}
/* Up and down, in segments on both trees at once; an inner rank takes in two streams and gives two. */
static double cost_twotree(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)kind;
    price  far = far_price(group);
    double data = (double)bytes, segment = least_of(data, (double)COLL_SEGMENT_BYTES), both = 2 * far.beta_ns + 4 * gamma_of(group);
    return GREETING_NS + way_down(group, 2 * segment, 0) + way_down(group, 2 * segment, 4 * segment * gamma_of(group)) + (data - segment) * both;
}
static double cost_rooted_tree(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    double data = (double)bytes, all = data * (coll_size(group) - 1), segment = least_of(data, (double)COLL_SEGMENT_BYTES);
    if (kind == WEFTI_REDUCE_TO) {
        double first = way_down(group, segment, 3 * segment * gamma_of(group));
        return GREETING_NS + first + (data - segment) / (double)COLL_SEGMENT_BYTES * first / REDUCE_AHEAD;
    }
    return GREETING_NS + way_down(group, 0, 0) + all * (far_price(group).beta_ns + 4 * gamma_of(group));
}
static double cost_linear(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)kind;
    double rest = coll_size(group) - 1;
    return GREETING_NS + far_price(group).alpha_ns + rest * (POST_NS + (double)bytes * any_price(group).beta_ns);
}
/* Each lane waits for its exchange; all together for the port and the core. */
static double cost_pairwise(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)kind;
    price  any = any_price(group);
    double rest = coll_size(group) - 1, turns = most_of(1, rest / COLL_LANES), data = (double)bytes;
    return GREETING_NS + most_of(turns * (any.alpha_ns + data * any.beta_ns), any.alpha_ns + rest * (POST_NS + data * any.beta_ns));
}
static double cost_bruck(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    double  sum = GREETING_NS, data = (double)bytes;
    int32_t size = coll_size(group);
    bool    all = kind == WEFTI_ALLTOALL;
    for (int32_t k = 0; k < levels_of(group); k++) {
        price   p = shift_price(group, k);
        int32_t distance = 1 << k, parts = all ? size / 2 : size - distance < distance ? size - distance : distance;
        sum += p.alpha_ns + data * parts * (p.beta_ns + (all ? 4 * gamma_of(group) : 0));
    }
    return sum + (all ? 4 : GATHER_WORK) * data * size * gamma_of(group);
}

/* Shards begin at whole cache lines, so there may be fewer than owners. */
static double shards_of(const coll_group *group, double data) {
    double lines = data / WEFTI_CACHE_LINE;
    return lines <= 1 ? 1 : least_of(lines, group->nodes.least);
}
/* Everyone of a node with every owner: in turn; or, where there is one owner, all at once, which it takes one after the other. */
static double inside_node(const coll_group *group, double shards, double shard, double work) {
    price  near = near_price(group);
    double others = (double)coll_size(group) / group->nodes.count - 1, each = shard * (near.beta_ns + work);
    return shards > 1 ? others * (near.alpha_ns + each) : near.alpha_ns + others * (POST_NS + each);
}
static double cost_nodes(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)kind;
    price  far = far_price(group);
    double nodes = group->nodes.count, data = (double)bytes, shards = shards_of(group, data), shard = data / shards;
    double inside = inside_node(group, shards, shard, 3 * gamma_of(group)) + inside_node(group, shards, shard, 0);
    double across = 2 * (nodes - 1) * (far.alpha_ns + shard / nodes * (far.beta_ns + 1.5 * gamma_of(group)));
    return GREETING_NS + inside + across;
}
/* A part goes around the nodes, and in each node to all members, or from them. */
static double cost_nodes_parts(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    price  far = far_price(group);
    double nodes = group->nodes.count, data = (double)bytes;
    double passes = (group->nodes.most + group->nodes.least - 1) / group->nodes.least, work = coll_kind_reduces(kind) ? 3 * gamma_of(group) : 0;
    double inside = nodes * inside_node(group, group->nodes.least, data, work);
    double across = (nodes - 1) * (far.alpha_ns + data * (far.beta_ns + work));
    return GREETING_NS + passes * (inside + across);
}
/* Shards in parallel: to the owners, across in a chain of segments or along a tree, and from the owners to all. */
static double cost_nodes_rooted(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    price  near = near_price(group), far = far_price(group);
    double data = (double)bytes, segment = least_of(data, (double)COLL_SEGMENT_BYTES), work = kind == WEFTI_REDUCE_TO ? 3 * gamma_of(group) : 0;
    double shards = shards_of(group, segment), shard = segment / shards;
    bool   chain = coll_segments(bytes, COLL_SEGMENT_BYTES) >= (size_t)group->nodes.count;
    double hops = chain ? group->nodes.count - 1 : wefti_coll_log2_up(group->nodes.count), hop = far.alpha_ns + shard * (far.beta_ns + work);
    double near_ns = inside_node(group, shards, shard, work) + (shards > 1 ? near.alpha_ns + (shards - 1) * (POST_NS + shard * near.beta_ns) : 0);
    double first = near_ns + hops * hop; /* until the first segment has arrived; then one behind the other */
    double each = near_ns + (chain ? 2 : hops) * hop, ahead = kind == WEFTI_REDUCE_TO ? NODES_AHEAD : chain ? NODES_PASS_AHEAD : NODES_TREE_AHEAD;
    return GREETING_NS + first + (data - segment) / (segment > 0 ? segment : 1) * each / ahead;
}
static double cost_point(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)kind;
    return near_price(group).alpha_ns + (double)bytes * near_price(group).beta_ns;
}
static double cost_oneshot(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    double size = coll_size(group);
    bool parts = kind == WEFTI_REDUCE_SCATTER || kind == WEFTI_REDUCE_SCATTER_V || kind == WEFTI_SCATTER || kind == WEFTI_ALLTOALL;
    double data = (double)bytes * (parts ? size : 1);
    double read = parts ? (double)bytes * size : kind == WEFTI_BROADCAST ? data : data * size;
    return size * FLAG_NS + (data + read) * gamma_of(group);
}
static double cost_twoshot(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    double size = coll_size(group), data = (double)bytes;
    bool shared = kind == WEFTI_ALLREDUCE || kind == WEFTI_REDUCE_TO;
    double moved = shared ? 2 * data : kind == WEFTI_BROADCAST ? 2 * data / size : data * (size + 1);
    return 3 * size * FLAG_NS + moved * gamma_of(group);
}

/* --- what all members together send --- */

static uint64_t ranks_of(const coll_group *group) { return (uint64_t)coll_size(group); }

/* Everyone to everyone. */
static uint64_t sent_square(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)kind;
    return ranks_of(group) * (ranks_of(group) - 1) * bytes;
}
/* Each once: down a tree or a chain, or up. */
static uint64_t sent_once(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)kind;
    return (ranks_of(group) - 1) * bytes;
}
static uint64_t sent_ring(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    return kind == WEFTI_ALLREDUCE ? 2 * (ranks_of(group) - 1) * bytes : sent_square(group, kind, bytes);
}
static uint64_t sent_swap(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)group, (void)kind;
    return 2 * bytes;
}
static uint64_t sent_twice(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)kind;
    return 2 * (ranks_of(group) - 1) * bytes;
}
static uint64_t sent_doubling(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)kind;
    uint64_t power = (uint64_t)wefti_coll_power_below(coll_size(group)), rest = ranks_of(group) - power;
    return (power * (uint64_t)wefti_coll_log2_up((int32_t)power) + 2 * rest) * bytes;
}
static uint64_t sent_halving(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    uint64_t power = (uint64_t)wefti_coll_power_below(coll_size(group)), rest = ranks_of(group) - power;
    if (kind == WEFTI_REDUCE_SCATTER) return sent_square(group, kind, bytes);
    return (2 * (power - 1) + 2 * rest) * bytes;
}
/* In a binomial tree of parts, each part goes as many steps as its member's place has bits. */
static uint64_t sent_rooted_tree(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    uint64_t steps = 0;
    if (kind == WEFTI_REDUCE_TO) return sent_once(group, kind, bytes);
    for (int32_t place = 1; place < coll_size(group); place++) steps += (uint64_t)__builtin_popcount((unsigned)place);
    return steps * bytes;
}
/* As there, for the parts of everyone. */
static uint64_t sent_bruck(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    if (kind != WEFTI_ALLTOALL) return sent_square(group, kind, bytes);
    return ranks_of(group) * sent_rooted_tree(group, WEFTI_GATHER, bytes);
}
static uint64_t sent_nodes(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)kind;
    uint64_t nodes = (uint64_t)group->nodes.count;
    return 2 * (ranks_of(group) - nodes) * bytes + 2 * (nodes - 1) * bytes;
}
/* Parts of members whose place has no owner go to one, or come from one, in their node. */
static uint64_t sent_nodes_parts(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    uint64_t nodes = (uint64_t)group->nodes.count, handed = ranks_of(group) - nodes * (uint64_t)group->nodes.least;
    if (kind == WEFTI_ALLGATHER) return sent_square(group, kind, bytes); /* where they come from they need not go back to */
    return sent_square(group, kind, bytes) + handed * bytes;
}
/* To the root only what it does not own itself. */
static uint64_t sent_nodes_rooted(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    uint64_t own = 0;
    if (kind == WEFTI_BROADCAST) return sent_once(group, kind, bytes);
    for (size_t first = 0; first < bytes; first += COLL_SEGMENT_BYTES) {
        size_t left = bytes - first;
        own += wefti_coll_part(left < COLL_SEGMENT_BYTES ? left : COLL_SEGMENT_BYTES, 1, group->nodes.least, 0).count;
    }
    return sent_once(group, kind, bytes) + bytes - own;
}
static uint64_t sent_point(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)group;
    return kind == WEFTI_SEND ? bytes : 0;
}

#ifdef WEFTI_HAVE_MPI
/* Unknown: it is taken where it is forced, or where a tuning measured that it is the faster. */
static double cost_mpi(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)group, (void)kind, (void)bytes;
    return INFINITY;
}
#endif

/* But for broadcasts that are strict. */
static uint64_t headers_greeting(const coll_group *group, wefti_collective_kind kind) { return ranks_of(group) - (kind == WEFTI_BROADCAST); }
static uint64_t headers_square(const coll_group *group, wefti_collective_kind kind) {
    (void)kind;
    return ranks_of(group) * (ranks_of(group) - 1);
}
static uint64_t headers_doubling(const coll_group *group, wefti_collective_kind kind) { return sent_doubling(group, kind, 1); }
static uint64_t headers_tree(const coll_group *group, wefti_collective_kind kind) {
    (void)kind;
    return ranks_of(group) - 1;
}
static uint64_t headers_dissemination(const coll_group *group, wefti_collective_kind kind) {
    (void)kind;
    return ranks_of(group) * (uint64_t)wefti_coll_log2_up(coll_size(group));
}
static uint64_t headers_point(const coll_group *group, wefti_collective_kind kind) { return sent_point(group, kind, 1); }
static uint64_t sent_nothing(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    (void)group, (void)kind, (void)bytes;
    return 0;
}

#define BIT(kind) (1u << WEFTI_##kind)
#define ALL_KINDS ((1u << WEFTI_COLLECTIVE_KIND_COUNT) - 1)
#define MAPPED_KINDS (ALL_KINDS & ~(BIT(ALLTOALL_V) | BIT(SEND) | BIT(RECEIVE)))

const coll_algorithm wefti_coll_algorithms[] = {
    {"direct", BIT(ALLREDUCE) | BIT(REDUCE_SCATTER) | BIT(ALLGATHER), false, false, fits_direct, cost_direct, sent_square,
     headers_square, wefti_coll_direct_begin, wefti_coll_lanes_advance},
    {"doubling", BIT(ALLREDUCE), false, false, fits_small, cost_doubling, sent_doubling, headers_doubling,
     wefti_coll_doubling_begin, wefti_coll_lanes_advance},
    {"tree", BIT(BROADCAST), false, false, fits_tree, cost_tree, sent_once, headers_tree, wefti_coll_tree_begin,
     wefti_coll_lanes_advance},
    {"tree", BIT(REDUCE_TO) | BIT(GATHER) | BIT(SCATTER), false, true, fits_parts, cost_rooted_tree, sent_rooted_tree,
     headers_greeting, wefti_coll_rooted_tree_begin, wefti_coll_lanes_advance},
    {"dissemination", BIT(BARRIER), false, false, fits_any, cost_tree, sent_nothing, headers_dissemination,
     wefti_coll_dissemination_begin, wefti_coll_lanes_advance},
    {"ring", BIT(ALLREDUCE) | BIT(REDUCE_SCATTER) | BIT(ALLGATHER) | BIT(REDUCE_SCATTER_V) | BIT(ALLGATHER_V), false, true,
     fits_any, cost_ring, sent_ring, headers_greeting, wefti_coll_ring_begin, wefti_coll_lanes_advance},
    {"swap", BIT(ALLREDUCE), false, true, fits_pair, cost_swap, sent_swap, headers_greeting, wefti_coll_swap_begin,
     wefti_coll_lanes_advance},
    {"chain", BIT(BROADCAST) | BIT(REDUCE_TO), false, true, fits_any, cost_chain, sent_once, headers_greeting,
     wefti_coll_rooted_chain_begin, wefti_coll_lanes_advance},
    {"scatter", BIT(BROADCAST), false, true, fits_scatter, cost_scatter, sent_once, headers_greeting, wefti_coll_scatter_begin,
     wefti_coll_lanes_advance},
    {"halving", BIT(ALLREDUCE) | BIT(REDUCE_SCATTER), false, true, fits_halving, cost_halving, sent_halving, headers_greeting,
     wefti_coll_halving_begin, wefti_coll_lanes_advance},
    {"twotree", BIT(ALLREDUCE), false, true, fits_twotree, cost_twotree, sent_twice, headers_greeting,
     wefti_coll_twotree_begin, wefti_coll_lanes_advance},
    {"linear", BIT(GATHER) | BIT(SCATTER), false, true, fits_any, cost_linear, sent_once, headers_greeting,
     wefti_coll_linear_begin, wefti_coll_lanes_advance},
    {"pairwise", BIT(ALLTOALL) | BIT(ALLTOALL_V), false, true, fits_any, cost_pairwise, sent_square, headers_greeting,
     wefti_coll_pairwise_begin, wefti_coll_lanes_advance},
    {"bruck", BIT(ALLGATHER) | BIT(ALLGATHER_V) | BIT(ALLTOALL), false, true, fits_bruck, cost_bruck, sent_bruck,
     headers_greeting, wefti_coll_bruck_begin, wefti_coll_lanes_advance},
    {"hierarchical", BIT(ALLREDUCE), false, true, fits_nodes, cost_nodes, sent_nodes, headers_greeting, wefti_coll_nodes_begin,
     wefti_coll_lanes_advance},
    {"hierarchical", BIT(REDUCE_SCATTER) | BIT(ALLGATHER) | BIT(REDUCE_SCATTER_V) | BIT(ALLGATHER_V), false, true, fits_nodes,
     cost_nodes_parts, sent_nodes_parts, headers_greeting, wefti_coll_nodes_parts_begin, wefti_coll_lanes_advance},
    {"hierarchical", BIT(BROADCAST) | BIT(REDUCE_TO), false, true, fits_nodes, cost_nodes_rooted, sent_nodes_rooted,
     headers_greeting, wefti_coll_nodes_rooted_begin, wefti_coll_lanes_advance},
    {"point", BIT(SEND) | BIT(RECEIVE), false, false, fits_any, cost_point, sent_point, headers_point, wefti_coll_point_begin,
     wefti_coll_lanes_advance},
    {"oneshot", MAPPED_KINDS, true, false, fits_slot, cost_oneshot, sent_nothing, NULL, wefti_coll_oneshot_begin,
     wefti_coll_oneshot_advance},
    {"twoshot", MAPPED_KINDS & ~BIT(BARRIER), true, true, fits_any, cost_twoshot, sent_nothing, NULL,
     wefti_coll_twoshot_begin, wefti_coll_twoshot_advance},
#ifdef WEFTI_HAVE_MPI
    /* What MPI sends is not the wire's to count. */
    {"mpi", ALL_KINDS & ~(BIT(SEND) | BIT(RECEIVE)), false, false, wefti_coll_mpi_fits, cost_mpi, sent_nothing, headers_dissemination,
     wefti_coll_mpi_begin, wefti_coll_mpi_advance},
#endif
};
const int wefti_coll_algorithm_count = (int)WEFTI_COUNT(wefti_coll_algorithms);

bool wefti_coll_usable(const coll_group *group, const coll_algorithm *algorithm, wefti_collective_kind kind) {
#ifdef WEFTI_HAVE_MPI
    if (algorithm->begin == wefti_coll_mpi_begin && !group->mpi) return false;
#endif
    return (algorithm->kinds >> kind & 1) && (!algorithm->mapped || group->map);
}

/* What the tuning found the quickest; NULL where it says nothing. */
static const coll_algorithm *by_rule(const coll_group *group, wefti_collective_kind kind, size_t bytes) {
    const coll_algorithm *best = NULL;
    for (int32_t i = group->rule_first[kind]; i < group->rule_first[kind + 1] && group->rules[i].bytes <= bytes; i++)
        best = group->rules[i].algorithm;
    return best;
}

const coll_algorithm *wefti_coll_choose(const coll_group *group, const wefti_collective_call *call, size_t bytes) {
    const coll_algorithm *best = group->forced[call->kind];
    if (best && best->fits(group, call, bytes)) return best;
    best = by_rule(group, call->kind, bytes);
    if (best && best->fits(group, call, bytes)) return best;
    best = NULL;
    double least = 0;
    bool maps = group->map && (MAPPED_KINDS >> call->kind & 1);
    for (int i = 0; i < wefti_coll_algorithm_count; i++) {
        const coll_algorithm *algorithm = &wefti_coll_algorithms[i];
        /* Where memory is mapped, messages would only copy what can be read where it lies. */
        if (!wefti_coll_usable(group, algorithm, call->kind) || algorithm->mapped != maps) continue;
        if (!algorithm->fits(group, call, bytes)) continue;
        double cost = algorithm->cost_ns(group, call->kind, bytes);
        if (best && cost >= least) continue;
        best = algorithm;
        least = cost;
    }
    return best; /* never NULL: every kind has one of each sort that fits any call */
}

/* --- names that force one --- */

static weft_status unknown(const coll_group *group, uint32_t kinds, const char *name, const char *where) {
    char list[240] = "";
    size_t length = 0;
    for (int i = 0; i < wefti_coll_algorithm_count; i++) {
        bool any = false;
        for (int kind = 0; kind < WEFTI_COLLECTIVE_KIND_COUNT; kind++)
            any |= (kinds >> kind & 1) && wefti_coll_usable(group, &wefti_coll_algorithms[i], (wefti_collective_kind)kind);
        if (any && length < sizeof list)
            length += (size_t)snprintf(list + length, sizeof list - length, "%s%s", length ? ", " : "", wefti_coll_algorithms[i].name);
    }
    return wefti_fail(WEFT_E_NOT_FOUND, "%s: no algorithm \"%s\" on wire %s; there are: %s", where, name,
                      group->base.wire->can.name, list);
}

static weft_status force(coll_group *group, uint32_t kinds, const char *name, const char *where) {
    bool known = false;
    for (int i = 0; i < wefti_coll_algorithm_count; i++) {
        const coll_algorithm *algorithm = &wefti_coll_algorithms[i];
        if (strcmp(algorithm->name, name) != 0) continue;
        for (int kind = 0; kind < WEFTI_COLLECTIVE_KIND_COUNT; kind++)
            if ((kinds >> kind & 1) && wefti_coll_usable(group, algorithm, (wefti_collective_kind)kind)) {
                group->forced[kind] = algorithm;
                known = true;
            }
    }
    return known ? WEFT_OK : unknown(group, kinds, name, where);
}

/* "ring", or "allreduce:ring". */
static weft_status force_entry(coll_group *group, char *entry, const char *where) {
    char *colon = strchr(entry, ':');
    if (!colon) return force(group, ALL_KINDS, entry, where);
    *colon = 0;
    for (int kind = 0; kind < WEFTI_COLLECTIVE_KIND_COUNT; kind++)
        if (strcmp(wefti_coll_kind_name((wefti_collective_kind)kind), entry) == 0)
            return force(group, 1u << kind, colon + 1, where);
    return wefti_fail(WEFT_E_NOT_FOUND, "%s: there is no collective \"%s\"; it goes like allreduce:ring,broadcast:chain", where,
                      entry);
}

weft_status wefti_coll_read_forced(coll_group *group, const char *name) {
    const char *where = name ? "the group's algorithm" : "WEFT_ALGORITHM";
    char list[512], *rest = NULL;
    if (!name) name = getenv("WEFT_ALGORITHM");
    if (!name || !*name) return WEFT_OK;
    if (strlen(name) >= sizeof list) return wefti_fail(WEFT_E_INVALID, "%s is too long: %zu bytes", where, strlen(name));
    strcpy(list, name);
    for (char *entry = strtok_r(list, ",", &rest); entry; entry = strtok_r(NULL, ",", &rest))
        WEFTI_TRY(force_entry(group, entry, where));
    return WEFT_OK;
}

/* The graph as the inner rooms see it: nodes, tensors, and the one way to add a node.
 *
 * A graph is append-only: nodes are numbered in the order in which they were added, and inputs come before their users,
 * so the order of ids is a topological order. Everything that a node points at lives as long as its graph. Builders,
 * autodiff and the passes that rewrite graphs (each writes a new graph) all add nodes through wefti_emit, which checks
 * arity, dtypes and shapes once, in one place. The first error is latched in the graph and poisons what follows. */
#ifndef WEFTI_GRAPH_H
#define WEFTI_GRAPH_H

#include <stdatomic.h>

#include "core/iface/custom.h"
#include "core/iface/op.h"
#include "weft/graph.h"

typedef struct wefti_node wefti_node;

struct weft_tensor {
    weft_graph *graph;
    wefti_node *node;  /* NULL: poisoned */
    int32_t     index; /* which output of its node */
    weft_dtype  dtype;
    weft_shape  shape;
};

typedef enum wefti_init_kind {
    WEFTI_INIT_ZEROS, WEFTI_INIT_ONES, WEFTI_INIT_VALUE, WEFTI_INIT_UNIFORM, WEFTI_INIT_NORMAL
} wefti_init_kind;

/* What only leaves have; shared by the copies of a leaf in rewritten graphs. */
typedef struct wefti_leaf {
    int32_t         init;        /* PARAMETER, STATE: a wefti_init_kind */
    double          a, b;        /* value; uniform [a, b); normal mean a, deviation b */
    uint64_t        key;         /* of the random stream: from graph seed and name, so that any split draws the same */
    bool            frozen;      /* PARAMETER: never updated */
    bool            unregularised; /* PARAMETER: left out of the regulariser (biases, norm scales) */
    int32_t         batch_axis;  /* INPUT: the axis that counts samples; -1: none, every rank gets it whole */
    weft_array     *value;       /* CONSTANT: its elements (host, contiguous); a reference held by the graph */
} wefti_leaf;

/* Where the program wants a node (weft/placement.h). */
enum { WEFTI_WISH_RANK = 1, WEFTI_WISH_STAGE = 2, WEFTI_WISH_DEVICE = 4, WEFTI_WISH_WITH = 8 };
typedef struct wefti_wish {
    uint32_t    said, own; /* WEFTI_WISH_… that count; those that were said of the node itself, not of a scope around it */
    int32_t     rank, stage;
    bool        cuda;      /* DEVICE: a GPU, of number `ordinal` in the world (-1: any); else the CPU */
    int32_t     ordinal;
    const char *with;      /* a parameter or state */
    const char *text;      /* as it was given */
} wefti_wish;

enum {
    WEFTI_NODE_RECOMPUTED =
        1, /* a copy that the backward pass computes again: schedule it as late as possible, never merge it */
    WEFTI_NODE_BACKWARD = 2, /* made by differentiation: for reports and for scheduling */
    WEFTI_NODE_APART = 4 /* never fused with others: planning moves it by itself */
};

struct wefti_node {
    int32_t       id;
    weft_op       op;
    int32_t       n_inputs, n_outputs;
    weft_tensor **inputs;   /* [n_inputs] */
    weft_tensor  *outputs;  /* [n_outputs] */
    wefti_attrs   attrs;
    const char   *name;     /* "conv1", "conv1.weight", "add_7": unique for leaves; never NULL */
    wefti_leaf   *leaf;     /* leaves only */
    uint32_t      flags;
    int32_t       segment;  /* recomputation segment, from 1; 0: none */
    const wefti_wish *wish; /* NULL: anywhere */
    int32_t       beside;   /* the id, plus one, of the node whose gradient this computes; 0: none */
    int32_t       place;    /* the rank or stage that it was given to, plus one; 0: none yet, or wherever it is needed */
    int32_t       micro;    /* its micro-batch, from 1; 0: none in particular */
};

#define WEFTI_SCOPE_BYTES 256
#define WEFTI_SCOPE_DEPTH 16

struct weft_graph {
    wefti_node **nodes;     /* [n_nodes], by id */
    int32_t      n_nodes, capacity;
    wefti_node **effects;   /* [n_effects] ASSIGN nodes that a training step must run, in order */
    int32_t      n_effects, effects_capacity;
    uint64_t     seed;
    bool         bf16_parameters; /* of layers */
    int32_t      segment, n_segments; /* open recomputation segment (0: none), and how many there were */
    uint32_t     flags;     /* flags given to nodes added now (WEFTI_NODE_BACKWARD while differentiating) */
    const wefti_wish *wish; /* what nodes added now are given, as flags are: wish, beside, place, micro */
    int32_t      beside, place, micro;
    const wefti_wish *outer_wishes[WEFTI_SCOPE_DEPTH];
    int32_t      wish_depth;
    bool         placed;    /* somebody has said where something is to be */
    bool         in_order;  /* messages stand as in one order of all ranks together (parallel/cut.h): a rank may wait for what it has sent */
    weft_status  status;    /* the first error */
    char         message[WEFTI_MESSAGE_BYTES];
    weft_tensor  poison;
    weft_tensor *step;      /* the STEP leaf, made when first asked for */
    wefti_node **leaves;    /* [n_leaves] the named leaves (inputs, parameters, states, constants), in order */
    int32_t      n_leaves, leaves_capacity;
    int32_t      n_random;  /* random nodes so far: keeps keys of nodes with one name apart */
    char         scope[WEFTI_SCOPE_BYTES]; /* "block3." or empty: goes before names of nodes added now */
    int32_t      scope_begin[WEFTI_SCOPE_DEPTH], scope_depth;
    const char  *name;      /* for reports */
    struct wefti_block *blocks; /* memory of nodes, names, attributes */
    struct wefti_custom_link *customs;
    atomic_int   references;
};

/* Clears all bytes, so that attributes compare as bytes. */
static inline wefti_attrs wefti_no_attrs(void) {
    wefti_attrs attrs;
    __builtin_memset(&attrs, 0, sizeof attrs);
    return attrs;
}

/* Adds a node and gives its output 0; `attrs` NULL means all zero; `name` NULL makes one from op and id; inputs are
 * copied. On an error (bad arity, dtype, shape, memory; a poisoned input; inputs of another graph) latches it and gives
 * the graph's poisoned tensor. Never NULL. What attributes of CUSTOM and FUSED point at is copied into the graph.
 * ASSIGN nodes are not effects by themselves: wefti_graph_effect makes one of them. */
weft_tensor *wefti_emit(weft_graph *graph, weft_op op, const wefti_attrs *attrs, weft_tensor *const *inputs,
                        int32_t n_inputs, const char *name);
/* As wefti_emit for leaves: dtype, shape and leaf record are given (the record is copied, NULL means all zero; the
 * array of a CONSTANT is retained). RANDOM gets the STEP leaf as its input. A second STEP gives the first. */
weft_tensor *wefti_emit_leaf(weft_graph *graph, weft_op op, const wefti_attrs *attrs, weft_dtype dtype,
                             weft_shape shape, const wefti_leaf *leaf, const char *name);
/* Output `index` of the node that made `tensor`; poisoned tensors give themselves. */
weft_tensor *wefti_output(weft_tensor *tensor, int32_t index);
/* As wefti_emit in the graph of the first input that has one: what public builders call. */
weft_tensor *wefti_apply(weft_op op, const wefti_attrs *attrs, weft_tensor *const *inputs, int32_t n_inputs,
                         const char *name);
/* Registers an ASSIGN node as an effect that every training step runs. Poisoned tensors are let pass. */
void wefti_graph_effect(weft_tensor *assign);
/* The STEP leaf: i64, rank 0. */
weft_tensor *wefti_graph_step(weft_graph *graph);
/* A key for a random stream, from the graph's seed, the scope and `name`; for nodes (leaves hash their unique names
 * alone) also from the count of random nodes so far. */
uint64_t wefti_graph_key(weft_graph *graph, const char *name, bool leaf);
/* "conv1" and "weight" give "conv1.weight" in graph memory; never NULL. */
const char *wefti_graph_join(weft_graph *graph, const char *name, const char *suffix);
/* The tensor of no graph, that builders give when they were given NULL. */
extern weft_tensor wefti_orphan;
/* Latches an error in the graph (the first wins) and gives the poisoned tensor; the graph may be NULL. */
weft_tensor *wefti_graph_fail(weft_graph *graph, weft_status status, const char *format, ...) WEFTI_PRINTF(3, 4);
/* The graph's latched status with its message made current on this thread. */
weft_status wefti_graph_status(weft_graph *graph);
static inline bool wefti_poisoned(const weft_tensor *tensor) { return tensor->node == NULL; }
/* Memory that lives as long as the graph, zeroed; NULL (and the error latched) when there is none. */
void *wefti_graph_memory(weft_graph *graph, size_t size_bytes);

/* The shape rule of `op`: checks inputs and fills dtype and shape of the outputs (there is room for the larger of
 * n_inputs and WEFTI_FUSED_MAX; the count in *n_outputs_out). Used by wefti_emit; errors name op, node name, input
 * names and shapes. Leaves have none: WEFT_E_INTERNAL. */
typedef struct wefti_type { weft_dtype dtype; weft_shape shape; } wefti_type;
weft_status wefti_infer(weft_op op, const wefti_attrs *attrs, weft_tensor *const *inputs, int32_t n_inputs,
                        const char *name, wefti_type *outputs_out, int32_t *n_outputs_out);

/* Floating-point operations of one node, from its shapes (column `flops` of ops.def). */
double wefti_node_flops(const wefti_node *node);

#endif

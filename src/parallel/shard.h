/* Layouts and the rules over them: what each op of ops.def does to a split. */
#ifndef WEFTI_SHARD_H
#define WEFTI_SHARD_H

#include "core/graph/graph.h"

typedef enum wefti_layout_kind {
    WEFTI_WHOLE,  /* the same on every rank and micro-batch */
    WEFTI_SPLIT,  /* along `axis`; a row of the batch is `unit` consecutive indices of it */
    WEFTI_PARTIAL /* every chunk holds a contribution; `reduce` joins them */
} wefti_layout_kind;

typedef struct wefti_layout {
    wefti_layout_kind kind;
    int32_t           axis;
    int64_t           unit;
    wefti_reduce_op   reduce;
    int64_t           repeats;  /* sequence (sequence.h): the split axis is so many equal stretches, each of which is dealt out; 0: it is one */
    bool              shared;   /* tensor axis: a share of rows of what no parameter splits; it is put together where a parameter's split meets it */
    bool              folded;   /* sequence: a rank has two blocks of each stretch, one from either end */
    int32_t           sections; /* tensor axis (tensor.h): the split axis' sections are each dealt out; 0: it is one */
} wefti_layout;

/* What a rule decides for one node. */
typedef struct wefti_shard {
    weft_op             op;     /* as the node's; a rule reads the inputs' layouts */
    const wefti_node   *node;
    const wefti_layout *inputs; /* [n_inputs] as they are */
    int64_t             rows;   /* the batch that the graph was built for */
    /* out: */
    wefti_layout       *wanted;  /* [n_inputs] how the op must be given each; starts as all whole */
    wefti_layout       *outputs; /* [n_outputs] starts as all whole */
} wefti_shard;

/* Applies the rule of the node's op. Rules never fail: what they cannot split they want whole. */
void wefti_shard_node(wefti_shard *shard);

/* The rows that a rank computes at once, and what an op is given of them. */
typedef struct wefti_chunk {
    int64_t rows;        /* of the chunk */
    int64_t first_row;   /* within the global batch */
    int64_t global_rows; /* of this batch */
    weft_shape input;    /* of input 0 as it is delivered; needed for MEAN */
} wefti_chunk;
/* Adapts a node's attributes to a chunk: shapes, counts and random windows follow its rows. */
void wefti_shard_attrs(const wefti_node *node, const wefti_layout *wanted, const wefti_layout *outputs,
                       const wefti_chunk *chunk, wefti_attrs *attrs);

/* Axis of a RESHAPE's output that holds the split `from` of its input, and the unit there; false where the reshape
 * tears rows apart. */
bool wefti_shard_reshape(weft_shape input, weft_shape output, wefti_layout from, int64_t rows, wefti_layout *to_out);

/* Zeros, on whatever rank: nothing that may be counted more than once. */
static inline bool wefti_is_zero(const weft_tensor *x) {
    while (wefti_ops[x->node->op].family == WEFTI_VIEW || x->node->op == WEFT_OP_COPY) x = x->node->inputs[0];
    return x->node->op == WEFT_OP_FULL && x->node->attrs.full.value == 0;
}

static inline wefti_layout wefti_layout_whole(void) { return (wefti_layout){.kind = WEFTI_WHOLE}; }
static inline wefti_layout wefti_layout_split(int32_t axis, int64_t unit) {
    return (wefti_layout){.kind = WEFTI_SPLIT, .axis = axis, .unit = unit};
}
static inline wefti_layout wefti_layout_partial(wefti_reduce_op reduce) {
    return (wefti_layout){.kind = WEFTI_PARTIAL, .reduce = reduce};
}

#endif

/* Tensor parallelism: from one data rank's graph to what one rank of its tensor group computes.
 *
 * The batch is here on every rank; parameters are split along an axis each, or whole. Layouts follow through the graph by the rules
 * of shard.c, as the batch's do: an axis that is split over T ranks is a batch of T rows. To these come rules for what only parameters split
 * (tensor_rules.c): rows of a table, classes of a loss, channels, heads. Nobody names what is split: which parameters are, and along which
 * axis, is chosen by what it costs (tensor_choose.c), so that a perceptron or a transformer, of whatever names, comes to one message for each
 * pair of products and direction (Shoeybi et al. 2019). Gradients, solver states, updates and norms are nodes like all others.
 *
 * Splits are even: what does not divide stays whole. An axis may consist of sections (queries, keys and values of one product), each of which
 * is dealt out; they are found where the graph cuts. */
#ifndef WEFTI_TENSOR_H
#define WEFTI_TENSOR_H

#include "core/graph/graph.h"
#include "core/plan/window.h"
#include "parallel/mesh.h"
#include "parallel/shard.h"

/* Proportions of the sections of an axis. */
typedef struct wefti_sections {
    int32_t n;
    int64_t weight[WEFTI_SECTIONS_MAX]; /* without a common divisor */
} wefti_sections;

enum { WEFTI_PATTERNS_MAX = 16 };

/* How one strategy splits. */
typedef struct wefti_tensor_split {
    wefti_mesh_axis along;                        /* tensor; expert and sequence (expert.h, sequence.h) are this too, with choices of their own */
    int32_t        rank, ranks;
    int64_t        group;                         /* attrs.comm.group */
    bool           folded;                        /* sequence: as layouts are (shard.h) */
    bool           shares_rows;                   /* tensor: what lies between products that are split is dealt out by rows */
    int32_t        stretches;                     /* expert: ranks along time, who have other choices of the same rows; 0: 1 */
    wefti_sections pattern[WEFTI_PATTERNS_MAX];   /* [0] is one section */
    int32_t        n_patterns;
    wefti_named_window *windows; /* [n_windows] of parameters, their solver states and other states (sequence: of what is fed); names are owned */
    int32_t        n_windows, windows_room;
    int64_t       *units;    /* expert: [windows_room] choices that a row of the batch makes among a matrix' experts; 0: it is none */
    wefti_text     notes; /* what was split and what stays whole, for people */
} wefti_tensor_split;

/* Chooses for the graph of a data rank, `outputs` and its effects, which all ranks have alike. Nothing is kept of the graph. `rows` is strategy.tensor_rows. */
WEFT_MUST_CHECK weft_status wefti_tensor_choose(int32_t rank, int32_t ranks, int64_t group, int32_t rows, weft_graph *graph, weft_tensor *const *outputs,
                                                int32_t n_outputs, wefti_tensor_split *split_out);
void wefti_tensor_release(wefti_tensor_split *split);

/* Writes the graph of one rank: outputs come back whole, variables have the shapes of their windows. *graph_out is NULL on error. */
WEFT_MUST_CHECK weft_status wefti_tensor_graph(const wefti_tensor_split *split, weft_graph *source, weft_tensor *const *outputs, int32_t n_outputs,
                                               bool training, weft_graph **graph_out, weft_tensor **outputs_out);

/* What a mesh splits beside rows, in the order in which a graph is rewritten: by time, by experts, by parameters. Each sees what the one before has left. */
enum { WEFTI_SPLITS_MAX = 3 };
typedef struct wefti_splits {
    wefti_tensor_split  list[WEFTI_SPLITS_MAX];
    int32_t             n;
    wefti_named_window *windows; /* [n_windows] on variables, by all of them together; names are those of the splits */
    int32_t             n_windows, windows_room;
} wefti_splits;
/* Fills the windows from the splits'. */
WEFT_MUST_CHECK weft_status wefti_splits_join(wefti_splits *splits);
void wefti_splits_release(wefti_splits *splits);

/* --- for the files of this subject --- */

/* What is known of a tensor of the source. */
typedef struct wefti_tensor_value {
    wefti_layout layout;    /* as it is handed on */
    wefti_layout desired;   /* its user keeps only a part of it; WHOLE: nothing is desired */
    int32_t      users;     /* reads by nodes that are needed, and by outputs */
    bool         gradient;  /* of a parameter, by what is linear: it is not dealt out by rows … */
    bool         last;      /* … and goes to other ranks' sum as it is */
    bool         landed;    /* made as a sum, and scattered by rows at once: the layout is what is left */
    bool         made;      /* by itself, in its turn: somebody wants it as it is */
    bool         completed; /* made partial, and reduced at once … */
    wefti_reduce_op completed_by; /* … by this */
    bool         gathered;  /* split or partial, and somebody wants it whole */
    bool         scattered; /* partial, and somebody wants a part */
} wefti_tensor_value;

/* Layouts of a whole graph, in host memory. */
typedef struct wefti_tensor_layouts {
    const wefti_tensor_split *split;
    weft_graph          *graph;
    wefti_tensor_value **values;  /* [n_nodes] -> [n_outputs] */
    wefti_layout       **wanted;  /* [n_nodes] -> [n_inputs] */
    bool                *needed;  /* [n_nodes] */
    void                *memory;
    size_t               memory_bytes;
} wefti_tensor_layouts;

/* Makes room and finds what outputs and effects need. */
WEFT_MUST_CHECK weft_status wefti_tensor_layouts_open(const wefti_tensor_split *split, weft_graph *graph, weft_tensor *const *outputs, int32_t n_outputs,
                                                      bool training, wefti_tensor_layouts *layouts_out);
void wefti_tensor_layouts_close(wefti_tensor_layouts *layouts);
/* Layouts of all tensors, where variables have the given ones: leaf[id] of PARAMETER and STATE nodes is looked at. */
void wefti_tensor_analyse(wefti_tensor_layouts *layouts, const wefti_layout *leaf);

/* What a node is computed by, beyond its own op on parts of its inputs. */
typedef enum wefti_tensor_way { WEFTI_AS_IT_IS, WEFTI_BY_ROWS_OF_TABLE, WEFTI_BY_PLACES, WEFTI_BY_CLASSES, WEFTI_BY_MASK, WEFTI_BY_BLOCKS, WEFTI_BY_RING } wefti_tensor_way;
wefti_tensor_way wefti_tensor_way_of(const wefti_node *node, const wefti_layout *wanted, const wefti_layout *outputs);

static inline wefti_tensor_value *wefti_tensor_value_of(const wefti_tensor_layouts *l, const weft_tensor *tensor) {
    return &l->values[tensor->node->id][tensor->index];
}
static inline bool wefti_layout_same(const wefti_layout *a, const wefti_layout *b) {
    return a->kind == b->kind && (a->kind == WEFTI_PARTIAL ? a->reduce == b->reduce
                                  : a->kind == WEFTI_WHOLE || (a->axis == b->axis && a->unit == b->unit && a->sections == b->sections && a->repeats == b->repeats && a->folded == b->folded));
}
/* A split of an axis of that extent by a pattern; WHOLE where it does not divide. */
wefti_layout wefti_tensor_split_of(const wefti_tensor_split *split, int32_t axis, int64_t extent, int32_t pattern);
/* A share of the rows of a tensor: of the first axis that divides and is not the last; WHOLE: there is none. */
wefti_layout wefti_tensor_share(const wefti_tensor_split *split, const weft_tensor *tensor);
/* Whether the parts lie in one piece. */
static inline bool wefti_layout_is_plain(const wefti_layout *layout) { return layout->sections == 0 && layout->repeats == 0 && !layout->folded; }
/* The window that a layout is on a variable of that shape. */
wefti_window_of wefti_tensor_window(const wefti_tensor_split *split, const wefti_layout *layout, weft_shape shape);
/* Whether a leaf may have a window: variables, and along the time axis what is fed. */
static inline bool wefti_tensor_has_window(const wefti_tensor_split *split, const wefti_node *leaf) {
    return split->along == WEFTI_MESH_SEQUENCE ? leaf->op == WEFT_OP_INPUT : leaf->op == WEFT_OP_PARAMETER || leaf->op == WEFT_OP_STATE;
}
/* The layout of a leaf by the split's windows. */
wefti_layout wefti_tensor_layout_of(const wefti_tensor_split *split, const wefti_node *leaf);
/* The pattern of these extents, added where it is new; -1: there are too many. */
int32_t wefti_tensor_pattern(wefti_tensor_split *split, const int64_t *extents, int32_t n);

/* tensor_ways.c: nodes that are not computed by their own op alone, from inputs that are delivered. */
struct wefti_tensor_emitter {
    const wefti_tensor_split *split;
    weft_graph *to;
};
void wefti_tensor_emit_way(const struct wefti_tensor_emitter *emitter, wefti_tensor_way way, const wefti_node *node, const wefti_layout *wanted,
                           const wefti_layout *outputs, weft_tensor *const *inputs, weft_tensor **outputs_out);
weft_tensor *wefti_tensor_all_reduce(const struct wefti_tensor_emitter *emitter, weft_tensor *tensor, wefti_reduce_op reduce);
weft_tensor *wefti_tensor_slice(const struct wefti_tensor_emitter *emitter, weft_tensor *tensor, int32_t axis, int64_t begin, int64_t size);
weft_tensor *wefti_tensor_concat(const struct wefti_tensor_emitter *emitter, weft_tensor *const *parts, int32_t n, int32_t axis);
/* This rank's part of a whole tensor, and the whole of everyone's parts. */
weft_tensor *wefti_tensor_part(const struct wefti_tensor_emitter *emitter, weft_tensor *tensor, const wefti_layout *layout);
weft_tensor *wefti_tensor_whole(const struct wefti_tensor_emitter *emitter, weft_tensor *part, const wefti_layout *layout);
/* Of what is folded: which of the 2*ranks blocks a stretch has is a rank's first (0) or second (1). */
static inline int32_t wefti_tensor_block(const wefti_tensor_split *split, int32_t which) { return which == 0 ? split->rank : 2 * split->ranks - 1 - split->rank; }
/* What of a node's attributes follows from this rank's part. */
void wefti_tensor_attrs(const wefti_tensor_split *split, const wefti_node *node, const wefti_layout *wanted, const wefti_layout *outputs,
                        wefti_attrs *attrs);

/* A RECEIVE of a ring stands right behind the SEND by which all ranks pass on what they have; NULL: the node is none. */
const wefti_node *wefti_tensor_sent_before(const weft_graph *graph, const wefti_node *node);

/* sequence.c: attention and its gradient, both along the time axis; and whether it is right where that is folded. */
void wefti_sequence_attention(const struct wefti_tensor_emitter *emitter, const wefti_node *node, weft_tensor *const *inputs, weft_tensor **outputs_out);
bool wefti_sequence_folds(const wefti_node *attention);

#endif

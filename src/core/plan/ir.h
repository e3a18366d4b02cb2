/* The plan while it is made: items (what is computed) over values (what they read and write).
 *
 * Import turns a graph into items in the order of its ids; each pass changes items and values in place. Everything is
 * referred to by index. A value is a *root*, which has memory of its own, or a *view*, a strided window on its root's
 * memory; views cost nothing and have no item. Items that were removed stay in the array, marked dead; `order` lists the
 * living ones, sorted by key. Keys are the node ids times WEFTI_KEY_STEP, so that there is room between two.
 *
 * Invariants between passes: an item's inputs are computed by earlier items of the order or are leaves; a value that an item
 * computes is a root, contiguous, at offset 0; no item reads a variable's value after an item that overwrites it. */
#ifndef WEFTI_PLAN_IR_H
#define WEFTI_PLAN_IR_H

#include "core/iface/collective.h"
#include "core/iface/world.h"
#include "core/plan/plan.h"

#define WEFTI_KEY_STEP 256
#define WEFTI_ALIGNMENT 64 /* of every value, in bytes: a cache line, and what kernels like to load */

/* --- memory that lives as long as its owner, given out piece by piece --- */

typedef struct wefti_bump {
    struct wefti_bump_block *blocks;
    size_t                   used_bytes;
} wefti_bump;
/* Zeroed memory, aligned to 16 bytes. */
WEFT_MUST_CHECK weft_status wefti_bump_take(wefti_bump *bump, size_t size_bytes, void *memory_out);
WEFT_MUST_CHECK weft_status wefti_bump_string(wefti_bump *bump, const char *text, const char **copy_out);
void wefti_bump_release(wefti_bump *bump);

/* --- values --- */

typedef enum wefti_home {
    WEFTI_HOME_ARENA, WEFTI_HOME_EXPORTED, WEFTI_HOME_CONSTANT, WEFTI_HOME_VARIABLE, WEFTI_HOME_INPUT
} wefti_home;

typedef struct wefti_value {
    weft_dtype dtype;
    weft_shape shape;
    int32_t    item;   /* who computes it; -1: a leaf, or a view */
    int32_t    output; /* which of the item's outputs */
    int32_t    root;   /* whose memory it is: itself, or the value it is a view of */
    int64_t    stride[WEFT_MAX_RANK]; /* elements */
    int64_t    offset;                /* of element 0 from the root's start, elements */
    wefti_home place; /* roots: where the memory is … */
    int32_t     index; /* … and which variable, input or constant it is */
    int32_t     block; /* ARENA, EXPORTED roots: block of memory.c; -1: none yet … */
    int64_t     inside_bytes; /* … and where in it */
    bool        kept;    /* roots: an output, alive until the next run */
    bool        sent;    /* roots: a SEND reads this very memory */
    bool        uniform; /* every element is `constant` */
    double      constant;
} wefti_value;

static inline int64_t wefti_value_elements(const wefti_value *value) { return weft_shape_elements(value->shape); }
static inline int64_t wefti_value_bytes(const wefti_value *value) {
    return weft_shape_elements(value->shape) * (int64_t)weft_dtype_bytes(value->dtype);
}

/* --- items --- */

typedef struct wefti_item {
    weft_op            op;
    uint32_t           flags; /* WEFTI_NODE_… */
    int32_t            micro; /* the node's micro-batch, from 1; 0: none in particular. For reports */
    const wefti_attrs *attrs;
    const char        *name;
    bool               divided; /* UPDATE: of this rank's part; REDUCE_SCATTER, ALL_GATHER: of what is updated so, in place (divide.c) … */
    bool               last;    /* CONV, POOL: the values that it computes are [N, H, W, C] (layout.c) */
    bool               by_message; /* … ALL_GATHER: of one parameter, sent; else it only lets ranks meet, who load or store the parts themselves */
    int32_t            landed;  /* COMM: it is waited for before this item at the latest (pace.c); -1: before its first reader */
    int32_t            n_inputs, n_outputs;
    int32_t           *inputs, *outputs; /* values */
    int64_t            key;
    double             flops;
    int32_t            graph_ops; /* nodes of the graph that it does */
    bool               dead;
    int64_t            scratch_bytes;
    int32_t            scratch_block; /* -1: none */
    int32_t            segment;       /* -1: a collective */
} wefti_item;

/* --- leaves --- */

typedef struct wefti_plan_input {
    const char *name;
    int32_t     value;
} wefti_plan_input;

typedef struct wefti_plan_variable {
    const char        *name;
    const weft_tensor *leaf;  /* of the plan's graph */
    int32_t            value;
    bool               divided; /* a state that this plan updates in parts */
} wefti_plan_variable;

/* Part of the constants' block: a scalar, an arithmetic sequence, the elements of an array, or the step number. */
typedef enum wefti_constant_kind { WEFTI_CONSTANT_FULL, WEFTI_CONSTANT_ARANGE, WEFTI_CONSTANT_ARRAY, WEFTI_CONSTANT_STEP } wefti_constant_kind;
typedef struct wefti_plan_constant {
    wefti_constant_kind kind;
    weft_dtype          dtype;
    int64_t             elements, offset_bytes; /* offset in the block */
    double              start, step;            /* FULL: start */
    const weft_array   *array;
} wefti_plan_constant;

/* --- memory and steps, as the last passes leave them --- */

/* A piece of arena or exported region, alive over positions [first, last] of the order. */
typedef struct wefti_block_range {
    wefti_home place;
    int64_t     bytes, offset_bytes;
    int32_t     first, last;
} wefti_block_range;

typedef enum wefti_step_kind { WEFTI_STEP_LAUNCH, WEFTI_STEP_START, WEFTI_STEP_WAIT } wefti_step_kind;
typedef struct wefti_plan_step {
    wefti_step_kind kind;
    int32_t         index; /* LAUNCH: segment; START, WAIT: collective */
} wefti_plan_step;

typedef struct wefti_plan_segment {
    int32_t begin, end; /* positions in the order */
} wefti_plan_segment;

typedef struct wefti_plan_collective {
    int32_t item;
    int64_t bytes;    /* of what this rank gives */
    int32_t priority; /* the earlier it is waited for, the higher */
    bool    point;    /* SEND or RECEIVE */
    bool    direct;   /* by the world's device_group, on the device's own memory */
} wefti_plan_collective;

/* --- the whole --- */

typedef struct wefti_ir {
    weft_world         *world;
    wefti_device       *device;
    wefti_plan_options  options;
    weft_graph         *graph; /* what is planned: the rewritten one, or the caller's */
    wefti_bump          keep;  /* items' arrays, names, fused programs */

    wefti_item  *items;
    int32_t      n_items, items_capacity;
    wefti_value *values;
    int32_t      n_values, values_capacity;
    int32_t     *order; /* [n_order] living items */
    int32_t      n_order, order_capacity;

    int32_t *outputs; /* [n_outputs] values */
    int32_t  n_outputs;

    /* Of losses over many classes, for descriptions (chunk.c): how many are computed by chunks, and the latest one's chunks; the first that
     * is not, and why. */
    int32_t     n_chunked_losses, chunks;
    int64_t     chunk_rows, chunk_classes;
    const char *whole_loss, *whole_why;
    /* Of products in 8-bit floats: how many there are, how many the strategy wanted and were left as they are, and why the first was (fp8.c). */
    int32_t     n_fp8, n_fp8_left;
    const char *fp8_why;
    /* Products that the device computes with what follows them (epilogue.c), with so many ops of the graph; the first that it refused, and why. */
    int32_t     n_fused_products, fused_product_ops;
    const char *plain_product, *plain_why;

    wefti_plan_input    *inputs;
    int32_t              n_inputs, inputs_capacity;
    wefti_plan_variable *variables;
    int32_t              n_variables, variables_capacity;
    int32_t              n_divided; /* parameters that ranks update in parts */
    bool                 pushes;    /* which they store to their peers, instead of loading their peers' */
    wefti_plan_constant *constants;
    int32_t              n_constants, constants_capacity;
    int64_t              constant_bytes;
    int32_t              step_constant; /* its index; -1: the step is not read */

    wefti_block_range *blocks;
    int32_t            n_blocks, blocks_capacity;
    int64_t            arena_bytes, exported_bytes, peak_bytes, value_bytes;

    wefti_plan_segment    *segments;
    int32_t                n_segments, segments_capacity;
    wefti_plan_collective *collectives;
    int32_t                n_collectives, collectives_capacity;
    bool                   has_points; /* some of them are SENDs or RECEIVEs */
    const char            *indirect_why; /* of the first that is not direct though there is a device_group; NULL: none */
    wefti_plan_step       *steps;
    int32_t                n_steps, steps_capacity;
} wefti_ir;

void wefti_ir_release(wefti_ir *ir);

/* Makes room for one more element of an array of the ir. */
WEFT_MUST_CHECK weft_status wefti_ir_room(void *array, int32_t count, int32_t *capacity, size_t element_bytes);

/* Adds an item with room for its inputs and outputs (values -1), alive, but not in the order yet. */
WEFT_MUST_CHECK weft_status wefti_ir_item(wefti_ir *ir, weft_op op, const wefti_attrs *attrs, int32_t n_inputs,
                                          int32_t n_outputs, const char *name, int64_t key, int32_t *item_out);
/* Adds a contiguous root in the arena; `item` -1: none computes it. */
WEFT_MUST_CHECK weft_status wefti_ir_value(wefti_ir *ir, weft_dtype dtype, weft_shape shape, int32_t item, int32_t output,
                                           int32_t *value_out);
/* A zeroed union that lives as long as the plan. */
WEFT_MUST_CHECK weft_status wefti_ir_attrs(wefti_ir *ir, wefti_attrs **attrs_out);
/* Adds an item that copies `value` into memory of its own, just before `key`. */
WEFT_MUST_CHECK weft_status wefti_ir_copy(wefti_ir *ir, int32_t value, int64_t key, const char *name, int32_t *copy_out);
/* The value that is `value` of one constant (exactly so in its dtype), of rank 0; equal ones are shared. */
WEFT_MUST_CHECK weft_status wefti_ir_scalar(wefti_ir *ir, weft_dtype dtype, double constant, int32_t *value_out);
/* Adds a constant to the block, and gives its index. */
WEFT_MUST_CHECK weft_status wefti_ir_constant(wefti_ir *ir, const wefti_plan_constant *constant, int32_t *index_out);

/* Fills `order` with the living items, by key; drops those that nothing needs. */
WEFT_MUST_CHECK weft_status wefti_ir_settle(wefti_ir *ir);

/* Which items read each value: users[start[v] … start[v+1]) are item indices, in the order's order, an item once per read. */
typedef struct wefti_uses {
    int32_t *start, *users;
    size_t   start_bytes, users_bytes;
} wefti_uses;
WEFT_MUST_CHECK weft_status wefti_ir_uses(const wefti_ir *ir, bool by_root, wefti_uses *uses_out);
void wefti_uses_release(wefti_uses *uses);

/* Whether the item is a program over one tensor whose result is summed over everything: of squares, what norms are made of. Devices that join calls do
 * such neighbours together. */
bool wefti_item_sums_all(const wefti_item *item);

/* ended_out[v], for every value: the item that overwrites the variable's memory that root v stands for, by an
 * item with an effect; -1: none. The array is the caller's, n_values long. */
WEFT_MUST_CHECK weft_status wefti_ir_endings(const wefti_ir *ir, int32_t *ended_out);

/* What must come after what: item order[k] before order[to[e]], start[k] <= e < start[k+1]: data, then readers and writers
 * of a variable before its next writer, then SENDs to one member in their order, and RECEIVEs from one. Every edge goes forward in the order. */
typedef struct wefti_edges {
    int32_t *start, *to;
    size_t   start_bytes, to_bytes;
} wefti_edges;
WEFT_MUST_CHECK weft_status wefti_ir_edges(const wefti_ir *ir, wefti_edges *edges_out);
void wefti_edges_release(wefti_edges *edges);

/* Whether the value's elements lie in row-major order without gaps, starting at any offset. */
bool wefti_value_is_dense(const wefti_value *value);
/* Strides of `shape` over the same elements of the value in the same order, or false where there are none; views.c. */
bool wefti_reshape_strides(const wefti_value *value, weft_shape shape, int64_t *stride_out);
void wefti_dense_strides(weft_shape shape, int64_t *stride_out);
/* Strides of `value`, stretched over `space`, when the space is seen as `shape`; false where there are none; spaces.c. */
bool wefti_stretched_strides(const wefti_value *value, weft_shape space, weft_shape shape, int64_t *stride_out);
/* Whether an output of the plan shows the root's memory. Linear in outputs: whoever asks for all values makes a table. */
static inline bool wefti_ir_is_output(const wefti_ir *ir, int32_t root) {
    for (int32_t o = 0; o < ir->n_outputs; o++)
        if (ir->values[ir->outputs[o]].root == root) return true;
    return false;
}
/* Whether the item changes a variable, and which inputs those are. */
static inline bool wefti_item_writes(const wefti_item *item, int32_t input) {
    if (item->op == WEFT_OP_ASSIGN) return input == 0;
    if (item->op == WEFT_OP_ALL_GATHER) return item->divided;
    return item->op == WEFT_OP_UPDATE && (input == 0 || input >= 3);
}
static inline bool wefti_item_has_effect(const wefti_item *item) {
    return item->op == WEFT_OP_ASSIGN || item->op == WEFT_OP_UPDATE || (item->op == WEFT_OP_ALL_GATHER && item->divided);
}
/* SEND, RECEIVE: between two members, who match them by their order. */
static inline bool wefti_item_is_point(const wefti_item *item) { return wefti_op_is_message(item->op); }
/* Whether the item is needed though nobody reads what it computes: another rank counts on it. */
static inline bool wefti_item_acts(const wefti_item *item) { return wefti_item_has_effect(item) || wefti_item_is_point(item); }
static inline bool wefti_item_is_comm(const wefti_item *item) { return wefti_ops[item->op].family == WEFTI_COMM; }
/* Started and ended where pace.c says. */
static inline bool wefti_item_is_paced(const wefti_item *item) {
    return (item->op == WEFT_OP_ALL_GATHER || item->op == WEFT_OP_REDUCE_SCATTER) && item->attrs->comm.paced;
}
/* Gathers of what is there when the step begins: who made the plan has said where they are needed. */
static inline bool wefti_item_is_fetch(const wefti_item *item) { return item->op == WEFT_OP_ALL_GATHER && item->attrs->comm.paced; }
/* Where the SEND at position `k` is waited for at the latest: before the attrs.comm.axis-th SEND behind it to the same member begins; n_order: at the end. */
int32_t wefti_ir_sent_by(const wefti_ir *ir, int32_t k);
/* The group of a COMM item; NULL: this rank alone. */
struct wefti_group *wefti_ir_group(const wefti_ir *ir, const wefti_item *item);
/* Kind, dtype, reduction and count of a COMM item's call that follow from its shapes; an ALL_REDUCE's count is that of its first operand. */
wefti_collective_call wefti_ir_comm_call(const wefti_ir *ir, const wefti_item *item);

/* The item as the device's query sees it: operands without buffers. Arrays are of the caller: [n_inputs], [n_outputs]. */
void wefti_item_call(const wefti_ir *ir, const wefti_item *item, wefti_operand *inputs, wefti_operand *outputs,
                     wefti_call *call_out);
/* Asks the device; the error names the item. */
WEFT_MUST_CHECK weft_status wefti_item_query(const wefti_ir *ir, const wefti_item *item, int64_t *scratch_bytes_out);

/* --- the passes, in their order --- */

/* Import: what outputs and effects need of ir->graph becomes items and values. */
WEFT_MUST_CHECK weft_status wefti_pass_resolve(wefti_ir *ir, weft_tensor *const *outputs);

WEFT_MUST_CHECK weft_status wefti_pass_exchange(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_simplify(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_narrow(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_layout(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_views(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_fp8(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_heads(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_spaces(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_hazards(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_chunk(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_epilogue(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_moments(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_again(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_fuse(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_together(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_divide(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_push(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_bucket(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_schedule(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_pace(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_stage(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_post(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_settle(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_memory(wefti_ir *ir);
WEFT_MUST_CHECK weft_status wefti_pass_segments(wefti_ir *ir);

/* Gives every block an offset so that blocks alive at the same position never overlap; `bytes_out` is what they take and
 * `peak_out` the least that any layout could. */
WEFT_MUST_CHECK weft_status wefti_lay_out(wefti_block_range *blocks, int32_t n_blocks, wefti_home place, bool reuse,
                                          int64_t *bytes_out, int64_t *peak_out);

#endif

/* Plans: a graph made ready to run on this rank's device.
 *
 * Making a plan prunes what no output needs, simplifies, fuses, orders, and lays out memory; it computes nothing and
 * allocates no memory of the device, so weft_plan_describe gives exact bytes and operations before anything is paid.
 * weft_plan_commit allocates and compiles; the first run does it where it was not done. From then on a run allocates
 * nothing. (Over TCP and verbs, messages of ranks that are ahead wait in a pool, which grows where more wait than ever did.)
 *
 * A plan keeps its graph, and is used by one thread at a time. A run blocks until its outputs are there; on a GPU it may return once
 * everything was launched, and fetching an output, or a variable, waits. With more ranks,
 * runs are collective where a strategy has put communication in: all ranks run the same plans in the same order.
 * Fusing, reusing memory and cutting never change a bit of the results; computing a loss by chunks of rows (loss_chunk_rows) changes the
 * rounding of sums over rows. Source: src/core/plan. */
#ifndef WEFT_PLAN_H
#define WEFT_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weft/dtype.h"
#include "weft/graph.h"
#include "weft/shape.h"
#include "weft/status.h"
#include "weft/variables.h"
#include "weft/world.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weft_plan weft_plan;

/* What to plan. Zero means the default. */
typedef struct weft_plan_options {
    weft_tensor *const *outputs;   /* [n_outputs] tensors of the graph, fetched by index; may be none */
    int32_t             n_outputs;
    bool                training;  /* weft_training picks its first side, and weft_assign takes effect */
    weft_variables     *variables; /* retained; must hold what the plan reads. NULL: the plan makes a set of its own */
    weft_plan          *arena_of;  /* shares the memory of that plan's intermediate values: the larger of the two is
                                      allocated. Running one ends what the other's outputs held. Same world */
    int64_t bucket_bytes;          /* gradients are reduced in messages of about this size; 0: 4 MiB; -1: each alone */
    int64_t first_bucket_bytes;    /* the first message is smaller, so that the wire starts early; 0: 256 KiB */
    int64_t divide_bytes;          /* weft/strategy.h; of variables of a trainer */
    int64_t loss_chunk_rows;       /* weft/strategy.h */
    bool    trace;                 /* keep begin and end of segments and collectives (weft_plan_trace) */
    bool    profile;               /* measure each operation's time at every run (weft_plan_profile) */
    bool    no_simplify, no_fusion, no_in_place, no_reuse; /* for tests and for finding faults */
} weft_plan_options;

/* Plans. The graph is retained. *plan_out gets one reference, NULL on error: WEFT_E_INVALID (an output of another graph, two
 * worlds), the graph's own first error, WEFT_E_NOT_FOUND or WEFT_E_MISMATCH for a variable that the set lacks or has with another
 * dtype or shape, WEFT_E_UNSUPPORTED naming an op that the device cannot compute. */
WEFT_MUST_CHECK weft_status weft_plan_create(weft_world *world, weft_graph *graph, const weft_plan_options *options,
                                             weft_plan **plan_out);
/* Allocates memory and compiles; does nothing where that is done. WEFT_E_NO_MEMORY naming what and the bytes. */
WEFT_MUST_CHECK weft_status weft_plan_commit(weft_plan *plan);

/* One more reference. Gives the plan; NULL gives NULL. Thread-safe. */
weft_plan *weft_plan_retain(weft_plan *plan);
/* Gives up one reference; the last one frees. NULL is allowed. Thread-safe. */
void weft_plan_release(weft_plan *plan);

/* ---- running ---- */

/* One named array for an input: host memory, row-major and dense. Where the device computes in host memory and `data` is
 * aligned to 64 bytes it is read in place, otherwise copied. It is only read, and only during the run. */
typedef struct weft_feed {
    const char *name;
    weft_dtype  dtype;
    weft_shape  shape; /* under a strategy: this rank's rows */
    const void *data;  /* may be NULL where the shape has no elements */
} weft_feed;

/* Runs once. Every input that the plan reads must be fed; feeds of inputs of the graph that it does not read are ignored.
 * Nothing has run after WEFT_E_NOT_FOUND (an input that was not fed, a feed that is no input of the graph: both named, with
 * what there is), WEFT_E_DTYPE, WEFT_E_SHAPE, WEFT_E_INVALID (NULL, fed twice). Any other error comes from the device or the
 * group (a lost rank is named) and leaves outputs and variables undefined. */
WEFT_MUST_CHECK weft_status weft_plan_run(weft_plan *plan, const weft_feed *feeds, int32_t n_feeds);
/* The number that weft_step and random ops see in the following runs; 0 at first. Runs do not change it. NULL: nothing happens. */
void weft_plan_set_step(weft_plan *plan, int64_t step);

/* An output as it is after the latest run. */
typedef struct weft_plan_value {
    weft_dtype  dtype;
    weft_shape  shape;
    int64_t     bytes;
    const void *data; /* host memory, row-major, valid until the next run of this plan or one that shares its arena; NULL where
                         the device's memory is not the host's, or nothing has run */
} weft_plan_value;
/* WEFT_E_INVALID for an index that is none. Needs no run: dtype, shape and bytes are known. Does not block. */
WEFT_MUST_CHECK weft_status weft_plan_output(const weft_plan *plan, int32_t index, weft_plan_value *value_out);
/* Copies an output to host memory; `bytes` must be its size (WEFT_E_MISMATCH). WEFT_E_STATE before the first run. */
WEFT_MUST_CHECK weft_status weft_plan_fetch(const weft_plan *plan, int32_t index, void *values_out, size_t bytes);
/* The variables that the plan reads and writes; borrowed. NULL for a plan that makes its own and is not committed yet,
 * or is NULL. */
weft_variables *weft_plan_variables(const weft_plan *plan);

/* ---- what it costs ---- */

/* One operation of the plan, in the order of execution. Strings live as long as the plan. */
typedef struct weft_plan_op {
    const char *name;          /* of the node; of the last one where several were fused */
    const char *kind;          /* "matmul", "fused", "all_reduce", … */
    int32_t     fused;         /* how many ops of the graph it does: 1, or more */
    int32_t     segment;       /* which run of ops it is launched with; -1: a collective */
    double      flops;         /* floating-point operations */
    int64_t     read_bytes, written_bytes; /* of its operands, each counted once: least traffic */
    int64_t     scratch_bytes; /* while it runs, inside the arena */
    int64_t     sent_bytes;    /* a collective's: what of its operands a rank of the group has to send, by the algorithms that send least; of a message
                                  to another rank ("send") all of it, where it comes ("receive") 0; else 0 */
    uint64_t    time_ns;       /* of the latest run, with options.profile; else 0 */
} weft_plan_op;

/* Bytes that this plan holds once committed, exactly. */
typedef struct weft_plan_totals {
    int64_t arena_bytes;    /* intermediate values, outputs and scratch, laid over each other */
    int64_t exported_bytes; /* what collectives send and receive, in memory that other ranks reach; on a GPU as much again of host memory
                               where any goes by copies and not by NCCL */
    int64_t variable_bytes; /* of the whole set, shared by all plans that use it */
    int64_t constant_bytes; /* constants, the step number */
    int64_t input_bytes;    /* copies of fed arrays; on a device with host memory only made once an unaligned one comes */
    int64_t total_bytes;    /* the sum of these */
    int64_t value_bytes;    /* intermediate values without laying over: what reuse saves is this less the arena */
    int64_t peak_bytes;     /* most of the arena and the exported region that is live at once: their lower bound */
    int64_t scratch_bytes;  /* the largest scratch of one op */
    int64_t read_bytes, written_bytes; /* least traffic of one run */
    int64_t sent_bytes;     /* to other ranks, in one run: the sum over the collectives */
    double  flops;          /* of one run */
    int32_t ops, segments, collectives;
    int32_t graph_ops;      /* nodes that the ops do, after pruning */
} weft_plan_totals;

/* Both may be called before commit; neither blocks. The totals of NULL are all 0. weft_plan_op_at: WEFT_E_INVALID past the end. */
void weft_plan_totals_read(const weft_plan *plan, weft_plan_totals *totals_out);
WEFT_MUST_CHECK weft_status weft_plan_op_at(const weft_plan *plan, int32_t index, weft_plan_op *op_out);
/* The same as text: a table with a line for each op, then the totals. Owned by the plan, valid until the next call. */
WEFT_MUST_CHECK weft_status weft_plan_describe(weft_plan *plan, const char **text_out);
/* Times of the latest run by op, slowest first, with the rates that follow, and the share of the roofline (Williams et al. 2009): the least time
 * that its operations and bytes could take, over the time that it took (above 100 % where bytes stayed in caches). The roof is measured at the first call, by a copy and by matrix products on
 * this device, which takes some milliseconds and up to 300 MB of its memory. Needs options.profile and a run (WEFT_E_STATE). Owned by the
 * plan, valid until the next call. */
WEFT_MUST_CHECK weft_status weft_plan_profile(weft_plan *plan, const char **text_out);

/* ---- what happened when ---- */

typedef enum weft_trace_kind {
    WEFT_TRACE_RUN,        /* a whole run */
    WEFT_TRACE_SEGMENT,    /* computing */
    WEFT_TRACE_COLLECTIVE, /* from its start to when it was seen to have ended */
    WEFT_TRACE_WAIT        /* nothing to compute: waiting for a collective */
} weft_trace_kind;

typedef struct weft_trace_event {
    weft_trace_kind kind;
    int32_t         run;   /* from 0 */
    int32_t         index; /* of the segment; of the collective in the order of starts */
    const char     *name;  /* of the collective; "" otherwise. Lives as long as the plan */
    int64_t         bytes; /* of the collective */
    uint64_t        begin_ns, end_ns; /* of a clock that never goes back */
} weft_trace_event;

/* Copies up to `capacity` of the latest events, oldest first, and says how many; the plan keeps those of its latest runs
 * (4,096 events at least). 0 without options.trace, and for NULL. */
int32_t weft_plan_trace(const weft_plan *plan, weft_trace_event *events_out, int32_t capacity);

#ifdef __cplusplus
}
#endif
#endif

/* Planning as the inner rooms see it: the public options and what a strategy adds to them. */
#ifndef WEFTI_PLAN_H
#define WEFTI_PLAN_H

#include "core/base/base.h"
#include "core/graph/graph.h"
#include "weft/plan.h"
#include "weft/variables.h"

struct wefti_group; /* core/iface/collective.h */

/* Gives this rank's graph: a new one (one reference; released with the plan), with local shapes, COMM nodes and the leaves
 * that remain, under their names; ids are a good order of execution (micro-batches one after another). `source` has MODE
 * resolved and holds only what the outputs and, when training, the effects need; `outputs` are of `source`, outputs_out[i] is
 * what stands for outputs[i] (its local shape may differ). Effects of the new graph are those in its `effects` and every
 * UPDATE node. On an error *graph_out is left NULL. */
typedef weft_status (*wefti_rewrite)(void *context, weft_graph *source, weft_tensor *const *outputs, int32_t n_outputs,
                                     bool training, weft_graph **graph_out, weft_tensor **outputs_out);

/* What plans of graphs with places are rewritten by, where nobody else rewrites them; its context is the world. */
typedef struct wefti_placer {
    wefti_rewrite rewrite;
} wefti_placer;

typedef struct wefti_plan_options {
    weft_plan_options base;
    wefti_rewrite     rewrite; /* NULL: the graph as it is */
    void             *context;
    /* Groups by attrs.comm.group; NULL: only 0, the world's. A NULL entry is a group of this rank alone. */
    struct wefti_group *const *groups;
    int32_t                    n_groups;
    const char                *notes[4]; /* what the strategy says of itself, for weft_plan_describe; live as long as the plan. NULL: nothing */
} wefti_plan_options;

/* weft_plan_create with a strategy's rewrite. */
WEFT_MUST_CHECK weft_status wefti_plan_create(weft_world *world, weft_graph *graph, const wefti_plan_options *options,
                                              weft_plan **plan_out);

/* A pruned copy of a graph with MODE decided, for strategies; outputs_out[i] stands for outputs[i]. */
WEFT_MUST_CHECK weft_status wefti_plan_copy(weft_graph *source, weft_tensor *const *outputs, int32_t n_outputs, bool training,
                                            weft_graph **graph_out, weft_tensor **outputs_out);

/* The device memory of variable `index`, for those who send or save it in place; stays where it is. What ranks update in parts is
 * whole there after wefti_variables_whole alone. */
void *wefti_variables_memory(const weft_variables *variables, int32_t index);

/* --- variables that ranks share (variables_shared.c) --- */

/* Makes the variables that the set was created with known to all ranks, which call this together with sets made alike, so that plans may
 * update them in parts. Does nothing where the ranks do not reach each other's memory. */
WEFT_MUST_CHECK weft_status wefti_variables_share(weft_variables *variables, const weft_world *world);
bool wefti_variables_shared(const weft_variables *variables, int32_t index);
/* Fetches what this rank does not update of a state. No peer need help; WEFT_E_STATE where one has overwritten it meanwhile. */
WEFT_MUST_CHECK weft_status wefti_variables_whole(const weft_variables *variables, int32_t index);
/* For plans: the state will be updated in parts; such a run begins; in it, all ranks have updated their parts of a parameter. */
void wefti_variables_divide(weft_variables *variables, int32_t index);
void wefti_variables_ran(weft_variables *variables);
void wefti_variables_fetch(const weft_variables *variables, int32_t index);
/* The other way: stores this rank's part of a parameter to all peers, none of which reads it until they have met again. */
void wefti_variables_push(const weft_variables *variables, int32_t index);

/* The part of `elements` that a rank updates: whole cache lines, the same number for all but the last ones. */
typedef struct wefti_variable_part {
    int64_t first, count; /* this rank's: count <= each; `first` may lie beyond the end, where there is room in shared sets */
    int64_t each;
} wefti_variable_part;
static inline wefti_variable_part wefti_variable_part_of(int64_t elements, weft_dtype dtype, int32_t ranks, int32_t rank) {
    int64_t             line = WEFTI_CACHE_LINE / (int64_t)weft_dtype_bytes(dtype), least = (elements + ranks - 1) / ranks;
    wefti_variable_part part = {.each = (least + line - 1) / line * line};
    part.first = part.each * rank;
    part.count = elements - part.first > part.each ? part.each : elements > part.first ? elements - part.first : 0;
    return part;
}

/* What a variable needs of its leaf to start with the right values on any device: writes the initial elements of a leaf
 * to host memory (row-major, the leaf's dtype). */
WEFT_MUST_CHECK weft_status wefti_leaf_initial(const weft_tensor *leaf, void *values_out);

/* Scalar outputs of f32 or f64 of the latest run as doubles, [n] of at most WEFTI_SCALARS_MAX, with one wait for all. WEFT_E_DTYPE for others. */
enum { WEFTI_SCALARS_MAX = 8 };
WEFT_MUST_CHECK weft_status wefti_plan_scalars(const weft_plan *plan, const int32_t *indices, int32_t n, double *values_out);

/* Nanoseconds of the latest run in which there was nothing to compute but a collective to wait for. */
uint64_t wefti_plan_wait_ns(const weft_plan *plan);

#endif

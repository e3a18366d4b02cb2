/* Sharded data parallelism (ZeRO: Rajbhandari et al. 2020): from one data rank's graph to the one in which it keeps a part of what all ranks along
 * data would keep alike, and those along sequence and expert: whoever has other samples, or another part of the same ones, and the same parameters.
 *
 * Of every large parameter each rank has a part: of its solver states (stage 1), of its gradient as soon as that is summed (2), of the
 * parameter itself (3). A part is a run of elements of what lies in memory, whatever the shape, so all parts are equal to a cache line; where rows
 * shrink together (group lasso) it is a run of rows. Small parameters stay whole: a message would cost more than the memory saves.
 *
 * A rank's own update is that of the same elements under plain data parallelism, from the same sums, so results have the same bits, but for norms
 * (whose terms are added up in another order) and for micro-batches from stage 2 on (which are then summed over ranks first). */
#ifndef WEFTI_ZERO_H
#define WEFTI_ZERO_H

#include "core/graph/graph.h"
#include "core/plan/window.h"

enum { WEFTI_ZERO_LEAST_BYTES = 16 << 10 }; /* parameters below stay whole, unless the strategy says otherwise */

/* Ranks that would have a parameter alike. */
typedef struct wefti_zero_ranks {
    int32_t rank, ranks; /* ranks 1: nobody else has it */
    int64_t axes;        /* of the mesh along which they are, a bit each */
    int64_t group;       /* attrs.comm.group */
} wefti_zero_ranks;

/* How a parameter is dealt out. */
typedef struct wefti_zero_part {
    char   *name;
    wefti_zero_ranks among;
    int64_t elements, each, row; /* of what a rank of plain data parallelism has; of a part; of a row, where parts are of whole rows, else 0 */
} wefti_zero_part;

typedef struct wefti_zero {
    int32_t             stage; /* 0: nothing is dealt out */
    wefti_zero_ranks    among;   /* who has parameters alike … */
    wefti_zero_ranks    experts; /* … and those that are dealt out as experts' */
    bool                staged;  /* a pipeline reorders micro-batches' passes: none reads what was gathered for another */
    wefti_zero_part    *parts;   /* [n_parts] by parameter */
    int32_t             n_parts, parts_capacity;
    wefti_named_window *windows; /* [n_windows] of all variables that have one, also by the tensor split alone; names are owned */
    int32_t             n_windows, windows_capacity;
    wefti_text          notes; /* for people */
} wefti_zero;

/* What to deal out of the trainer's graph, whose variables are already split by `tensor`: stage and ranks of *zero say how.
 * All ranks choose alike. Released by wefti_zero_release. */
WEFT_MUST_CHECK weft_status wefti_zero_choose(const weft_graph *graph, const wefti_windows *tensor, int64_t least_bytes, wefti_zero *zero);
void wefti_zero_release(wefti_zero *zero);

/* Writes the graph of one rank. Outputs come back as they were; variables have the shapes of their windows. *graph_out is NULL on error. */
WEFT_MUST_CHECK weft_status wefti_zero_graph(const wefti_zero *zero, weft_graph *source, weft_tensor *const *outputs, int32_t n_outputs, bool training,
                                             weft_graph **graph_out, weft_tensor **outputs_out);

#endif

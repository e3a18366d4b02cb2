/* Pipelines: stages for the nodes of a program, and an order in which stages work on micro-batches. */
#ifndef WEFTI_STAGES_H
#define WEFTI_STAGES_H

#include "core/graph/graph.h"
#include "weft/strategy.h"

/* Gives every node of a program on the global batch, gradients and updates included, its stage as `place`, or none where it is computed wherever it
 * is needed. Where the variables' places are kept, their readers follow them (for evaluation); else forward operations are cut into `stages` runs of about
 * equal cost, and what was placed before is forgotten. WEFT_E_INVALID: a stage without work. */
WEFT_MUST_CHECK weft_status wefti_stages_assign(weft_graph *graph, int32_t stages, bool keep);

/* Gives the variables of `to` the places that those of `from` have, by name; stage 0 has those that are not there. */
void wefti_stages_keep(weft_graph *from, weft_graph *to);

typedef struct wefti_pipeline {
    int32_t             ranks, chunks; /* stage s is rank s % ranks'; chunks is how many a rank has */
    int32_t             micro;
    weft_pipeline_order order;
} wefti_pipeline;

/* An order of all nodes of a settled graph of one rank along data, with micro-batches, in which each rank works by the pipeline's
 * order: order_out [n_nodes] of ids (orders.c). WEFT_E_UNSUPPORTED where the program's micro-batches need one another in another order. */
WEFT_MUST_CHECK weft_status wefti_stages_order(const wefti_pipeline *pipeline, const weft_graph *graph, int32_t *order_out);

#endif

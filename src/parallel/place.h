/* Giving every node of a graph a rank: what the program wants, what has to be together, and the rest by cost. */
#ifndef WEFTI_PLACE_H
#define WEFTI_PLACE_H

#include "core/graph/graph.h"
#include "core/plan/plan.h"

/* What a node costs and what a tensor costs to bring, in seconds. Numbers of one machine; only what is more and what is less counts. */
double wefti_place_seconds(const wefti_node *node);
double wefti_place_transfer(const weft_tensor *tensor);

/* Fills `place` of all nodes (weft/placement.h says what is refused). `is_cuda` [ranks]; NULL: none is. */
WEFT_MUST_CHECK weft_status wefti_place_graph(weft_graph *graph, int32_t ranks, const bool *is_cuda);

/* For src/runtime.c: plans of placed graphs are cut by it. */
const wefti_placer *wefti_placer_of_ranks(void);

#endif

/* Cutting a graph by devices: from one in which every node has a place to what one rank computes. */
#ifndef WEFTI_CUT_H
#define WEFTI_CUT_H

#include "core/graph/graph.h"

typedef struct wefti_cut {
    int32_t        rank, ranks; /* this one's place, and how many there are: members of `group`, in its order */
    int64_t        group;       /* attrs.comm.group of messages */
    const int32_t *order;       /* [n_nodes] ids, inputs before their users: an order of execution of all ranks together, the same on all;
                                   NULL: that of ids */
} wefti_cut;

/* Whether a node may be computed wherever it is needed, again on every rank, at next to no cost: a leaf that is no variable, or a view. */
bool wefti_cut_is_light(const wefti_node *node);

/* Gives every node that has no place one: variables that of who reads them, updates that of their variable, others that of their first
 * placed input. What stays without is computed wherever it is needed. Changes `place` alone. */
void wefti_cut_settle(weft_graph *graph);

/* Writes the graph of one rank of a settled one: its nodes, in the order, with a RECEIVE for each tensor that it reads of another place and a
 * SEND, right behind the node, for each other place that reads a tensor of its. Outputs are needed on all ranks; variables are leaves of their
 * place's graph alone. The new graph points into the old one (options of custom ops), which must outlive it. *graph_out is NULL on error. */
WEFT_MUST_CHECK weft_status wefti_cut_graph(const wefti_cut *cut, weft_graph *source, weft_tensor *const *outputs, int32_t n_outputs, bool training,
                                            weft_graph **graph_out, weft_tensor **outputs_out);

#endif

/* Expert parallelism: from one batch rank's graph to what one rank of its expert group computes.
 *
 * Ranks along the expert axis share the batch, as those along data do, and each has E/N of the experts of every mixture: windows on the [E, ...]
 * variables, their gradients and solver states. Choices travel to the rank that has their expert, and results back, by an exchange of as many rows as there
 * are (EXCHANGE_ROWS); what lies between, products, biases and what is elementwise, happens there. Everything else is as on a data rank: the
 * gradients of whole variables are summed over all ranks of the batch, those of windows over the ranks along data alone. */
#ifndef WEFTI_EXPERT_H
#define WEFTI_EXPERT_H

#include "parallel/partition.h"
#include "parallel/tensor.h"

/* Finds the variables of experts in the graph of a batch rank (of a full batch), and deals them out; `stretches` ranks have each rows' tokens in parts. WEFT_E_INVALID where there is none, or one has a
 * number of experts that ranks do not divide. Nothing is kept of the graph. `split_out` is released with wefti_tensor_release. */
WEFT_MUST_CHECK weft_status wefti_expert_choose(int32_t rank, int32_t ranks, int64_t group, int32_t stretches, const wefti_partition *batch, weft_graph *graph,
                                                wefti_tensor_split *split_out);

/* Writes the graph of one rank of `source`, which is what wefti_partition_graph gave for `batch`, or what the sequence rewrite made of that. Outputs come back as the source has them, variables have the shapes of their windows. *graph_out is NULL on error. */
WEFT_MUST_CHECK weft_status wefti_expert_graph(const wefti_tensor_split *split, const wefti_partition *batch, weft_graph *source,
                                               weft_tensor *const *outputs, int32_t n_outputs, bool training, weft_graph **graph_out,
                                               weft_tensor **outputs_out);

/* The leaf that a matrix comes from, through what is elementwise with one input. */
const wefti_node *wefti_expert_root(const weft_tensor *w);

#endif

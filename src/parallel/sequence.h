/* Sequence parallelism: each rank has a part of time of all that is computed, and keys and values go round a ring (Liu et al. 2023).
 *
 * It is a use of the tensor rewrite (tensor.h) in which parameters are whole and what is fed is split along time: layouts follow by the same rules, gradients come
 * out as sums over ranks. Two things are added. Time seldom comes first, so an axis that holds [batch, time] as one is split into as many *stretches*
 * as there are before it (wefti_layout.repeats), and under a causal mask each stretch is folded
 * (wefti_layout.folded), so that ranks have as much to do as each other. And attention, whose queries see keys of other ranks, is computed block by block while blocks travel. */
#ifndef WEFTI_SEQUENCE_H
#define WEFTI_SEQUENCE_H

#include "parallel/tensor.h"

/* Finds the time axis, that of attention's queries, of what is fed in the graph of a data rank; checks that all that has it can be split. WEFT_E_INVALID where the
 * program has no attention, time does not divide, or an op needs more of it than a rank has: that op, its input and the sizes are named. Nothing is kept of the
 * graph. `split_out` is released with wefti_tensor_release. */
WEFT_MUST_CHECK weft_status wefti_sequence_choose(int32_t rank, int32_t ranks, int64_t group, weft_graph *graph, weft_tensor *const *outputs, int32_t n_outputs,
                                                  wefti_tensor_split *split_out);

#endif

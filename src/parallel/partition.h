/* Partitioning: from the program that the user wrote, on the global batch, to what one rank computes.
 *
 * Rows of the batch are dealt over ranks, and a rank's rows over micro-batches (which are ranks in time). Every tensor
 * of the global graph, gradients and updates included, then has a *layout*: whole on every rank, split along the axis
 * that counts samples, or partial (each chunk holds a contribution to a sum, maximum or minimum over all rows). The
 * rules of how an op turns layouts into layouts are the `shard` column of ops.def; where an op needs a partial tensor
 * whole, the chunks are summed and an ALL_REDUCE is put in. So nothing of data parallelism is written for a particular
 * model, and whatever is defined over the batch (means, counts, batch statistics, dropout) means the global batch. */
#ifndef WEFTI_PARTITION_H
#define WEFTI_PARTITION_H

#include <string.h>

#include "core/graph/graph.h"
#include "weft/batch.h"
#include "weft/compression.h"

typedef struct wefti_partition {
    int32_t rank, ranks;  /* along the data axis */
    int64_t group;        /* attrs.comm.group of what goes between them */
    int32_t micro;        /* micro-batches; at least 1 */
    int64_t rows;         /* rows of this global batch; 0: as many as the graph was built for */
    const weft_compression *compress; /* of gradients, where training; NULL: none */
    bool    scaled;       /* gradients are those of a loss that was scaled (WEFTI_HYPER_LOSS_SCALE of the input "weft.hyper") */
} wefti_partition;

/* Contributions: an ASSIGN to a state of this name gives a parameter's gradient as what this rank contributes to the sum over ranks, for a parameter server to add
 * up; one that is the same on all ranks is the first one's, and zeros are the others'. Such a state is split and staged as its parameter is. */
#define WEFTI_CONTRIBUTION "weft.contribution/"
/* The parameter's name; NULL: the variable is no such state. */
static inline const char *wefti_contribution_to(const char *variable) {
    return strncmp(variable, WEFTI_CONTRIBUTION, sizeof WEFTI_CONTRIBUTION - 1) == 0 ? variable + sizeof WEFTI_CONTRIBUTION - 1 : NULL;
}
/* The parameter whose gradient an ASSIGN gives so; NULL: none. */
static inline wefti_node *wefti_contribution_of(const weft_graph *graph, const wefti_node *node) {
    const char  *name = node->op == WEFT_OP_ASSIGN && node->inputs[0]->node->op == WEFT_OP_STATE ? wefti_contribution_to(node->inputs[0]->node->name) : NULL;
    weft_tensor *parameter = name ? weft_graph_find((weft_graph *)(uintptr_t)graph, name) : NULL;
    return parameter ? parameter->node : NULL;
}

/* Writes the graph of one rank. `outputs` may be any tensors; UPDATE nodes among them are effects that happen in order. An output
 * split by samples comes back as this rank's rows, everything else whole. Inputs keep their names; those that count samples have
 * this rank's rows. The order of the new graph's ids is an execution order: micro-batch after micro-batch. The new graph
 * points into the old one (options of custom ops), which must outlive it. *graph_out is NULL on error; release it with
 * weft_graph_release. */
WEFT_MUST_CHECK weft_status wefti_partition_graph(const wefti_partition *partition, weft_graph *source,
                                                  weft_tensor *const *outputs, int32_t n_outputs, bool training,
                                                  weft_graph **graph_out, weft_tensor **outputs_out);

/* The rows that the graph was built for: the sample axis of its inputs; 0 where no input counts samples. Inputs that
 * disagree are an error that names both. */
WEFT_MUST_CHECK weft_status wefti_graph_rows(const weft_graph *graph, int64_t *rows_out);

#endif

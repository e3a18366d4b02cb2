/* NCCL as an engine of collectives: one process for each GPU, buffers in the GPUs' memory, no staging.
 *
 * open wants options.device, a CUDA device, and options.over, a group of the same members: over it go the communicator's name and, before
 * anything else, whether every member has the library. Operations run on a stream of the group's own, after what the device (or call.stream)
 * was given before their start; `join` makes the device go on after them. Nothing is captured by the device's own graphs.
 *
 * What NCCL gives and what the contract of collectives asks for agree but for these, which `supports` refuses, with the reason:
 *   - f16 and bf16 are added up in their own precision, rounded at every step, where the contract adds in f32 and rounds once: sums and
 *     products of these are taken for two members only, where there is a single step;
 *   - minima and maxima of floats may lose NaNs; the average is not the sum divided once; functions of the application.
 * A sum's order is NCCL's: the same from run to run and on all ranks, but not that of the wires. */
#ifndef WEFTI_CUDA_NCCL_ENGINE_H
#define WEFTI_CUDA_NCCL_ENGINE_H

#include "core/iface/collective.h"

/* The library's version, as NCCL writes it (22809 for 2.28.9). WEFT_E_UNSUPPORTED where it is missing or too old, with both versions. */
WEFT_MUST_CHECK weft_status wefti_cuda_nccl_version(int32_t *version_out);
/* Static storage. */
const wefti_collective_engine *wefti_collective_engine_nccl(void);

/* NCCL inside nodes, wires across them: for networks that NCCL does not have, or where each node has an NCCL of its own version.
 *
 * open wants what the other wants, and options.nodes; options.over must go over a wire, on which it opens groups with options.id. An allreduce is a
 * reduce-scatter inside each node, a copy of each member's shard to pinned host memory, Weft's allreduce of the shard among those of its place in
 * all nodes, a copy back, and an allgather inside; it goes by pieces of 4 MiB, of which up to four are at different steps. Broadcast, allgather,
 * reduce-scatter and barrier go alike, other kinds are refused. Nodes of different size have as many shards as the smallest has members, down to
 * one, the first member's; allgather and reduce-scatter are then refused. What NCCL refuses is refused here, too: sums of f16 and bf16 among them.
 *
 * Operations give all of their calls of NCCL before the next begins. `join` waits for the wires' part, which the host moves, and for nothing after it.
 * Memory: four pieces and four shards on the GPU, eight shards on the host. **It ran on a stand-in of NCCL only; on GPUs it is unmeasured.** */
const wefti_collective_engine *wefti_collective_engine_nccl_nodes(void);

#endif

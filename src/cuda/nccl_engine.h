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

#endif

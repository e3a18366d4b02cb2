/* CUDA C++ that is compiled at run time, by NVRTC where it is there, once for each text: kept in memory while the device is open, and on
 * disk (cache.h) by text, architecture and version. */
#ifndef WEFTI_CUDA_NVRTC_H
#define WEFTI_CUDA_NVRTC_H

#include "cuda/cuda.h"

/* Whether there is a compiler, and the device's options want it; else *why_out (which may be NULL) says what is missing. */
bool wefti_cuda_nvrtc_is_there(const wefti_cuda *cuda, const char **why_out);
/* The kernel `name` (extern "C") of `source`, which includes weft_scalars.h: WEFTI_SCALAR's list with what it stands on. The kernel goes to
 * cudaLaunchKernel, and lives as long as the device. WEFT_E_UNSUPPORTED where there is no compiler; WEFT_E_INTERNAL, with what it said, where
 * it refuses the text. */
WEFT_MUST_CHECK weft_status wefti_cuda_nvrtc_kernel(wefti_cuda *cuda, const char *source, const char *name, const void **kernel_out);
void wefti_cuda_nvrtc_close(wefti_cuda *cuda);

#endif

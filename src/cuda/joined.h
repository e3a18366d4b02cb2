/* Calls that are done together (cuda.h, joins): whether they may be. */
#ifndef WEFTI_CUDA_JOINED_H
#define WEFTI_CUDA_JOINED_H

#include "cuda/cuda.h"

enum { WEFTI_CUDA_MOST_JOINED = 512 };

#ifdef __cplusplus
extern "C" {
#endif
/* Whether `next` neither writes what one of the n calls reads or writes, nor reads what one of them writes; scratch is written, too. Looks at the bytes
 * between an operand's first element and its last. */
bool wefti_cuda_undisturbed(const wefti_call *const *calls, int32_t n, const wefti_call *next);
/* cast.cu: casts between floats. */
bool        wefti_cuda_casts_join(const wefti_cuda *cuda, const wefti_call *const *calls, int32_t n, const wefti_call *next);
weft_status wefti_cuda_casts_run(const wefti_cuda_run *runs, int32_t n);
#ifdef __cplusplus
}
#endif

#endif

/* Ranges that NVIDIA's profilers show on the host's line of time: what is launched, prepared and waited for, by the names of operations. */
#ifndef WEFTI_CUDA_MARKS_H
#define WEFTI_CUDA_MARKS_H

#ifdef __cplusplus
extern "C" {
#endif

/* Ranges nest, by thread. `name` may be NULL. Where no profiler looks on, each costs a comparison. */
void wefti_cuda_mark_begin(const char *kind, const char *name);
void wefti_cuda_mark_end(void);

#ifdef __cplusplus
}
#endif
#endif

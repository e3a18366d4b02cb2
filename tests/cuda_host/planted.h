/* Kernels with and without a planted fault, for the shim's own test. */
#ifndef TESTS_CUDA_HOST_PLANTED_H
#define TESTS_CUDA_HOST_PLANTED_H

#include <cuda_runtime_api.h>
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct planted {
    const char *name;
    bool (*is_right)(bool broken); /* launches, and compares what comes out with what must */
} planted;
extern const planted planted_races[];    /* a synchronisation is missing: the result is wrong */
extern const planted hidden_races[];     /* the result is right here, and would not be on a GPU */
extern const planted planted_failures[]; /* what hardware forbids: the launch fails */
extern const planted sound_kernels[];    /* each intrinsic's meaning; `broken` means nothing */

/* Launches data[i] = data[i]*times + plus. */
cudaError_t planted_step(int *data, int n, int times, int plus, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif

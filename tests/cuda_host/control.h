/* What a test says to the stand-ins, and asks them. For C and C++. */
#ifndef TESTS_CUDA_HOST_CONTROL_H
#define TESTS_CUDA_HOST_CONTROL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct wefti_cuda_host_options {
    uint64_t seed;            /* of every random order */
    bool     lazy;            /* work waits in its stream until somebody waits for it, and streams run in random order */
    int32_t  multiprocessors; /* that the device says it has; 0: 3 */
    size_t   memory_bytes;    /* that it says it has; 0: 4 GiB */
    int32_t  capability;      /* ten times the major and the minor number; 0: 90 */
    int32_t  driver;          /* version of the driver, as 11080 for 11.8; 0: a good one; -1: there is none */
    bool     no_gpu;          /* the driver shows none */
    int32_t  fault;           /* the so many-th launch from now on reaches out of memory; 0: none */
    bool     no_dmabuf;       /* the driver is too old to export memory … */
    bool     refuses_dmabuf;  /* … or the kernel cannot */
    bool     flushes;         /* what a network writes is seen only after cudaDeviceFlushGPUDirectRDMAWrites */
    bool     quiet;           /* failed launches are expected: no word on stderr */
} wefti_cuda_host_options;

/* Starts afresh: sets options, forgets a sticky error. Waits for everything before. */
void wefti_cuda_host_reset(const wefti_cuda_host_options *options);
/* The report of the last failed launch or refused call, "" where none. */
const char *wefti_cuda_host_report(void);
/* Launches that ran since the reset, and device allocations that are held now. */
int64_t wefti_cuda_host_launches(void);
int64_t wefti_cuda_host_allocations(void);
/* Dma-bufs that were exported since the reset, and flushes of what a network wrote. */
int64_t wefti_cuda_host_dmabufs(void);
int64_t wefti_cuda_host_flushes(void);

#ifdef __cplusplus
}
#endif
#endif

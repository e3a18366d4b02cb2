/* A CUDA device that launches everything three times from the same memory: call by call, while it is captured, and as a graph. */
#ifndef TESTS_CUDA_HOST_THRICE_H
#define TESTS_CUDA_HOST_THRICE_H

#include "core/iface/device.h"

/* Takes `inner` over. A launch fails, naming the buffer, where what it leaves in memory is not the same to the bit every time. */
wefti_device *thrice_create(wefti_device *inner);
/* Launches that were compared. */
int64_t thrice_compared(const wefti_device *device);

#endif

/* What the tests of the CUDA device share. */
#ifndef TESTS_CUDA_GPU_H
#define TESTS_CUDA_GPU_H

#include <criterion/criterion.h>

#include "cuda/cuda.h"

#define OK(call) cr_assert_eq((call), WEFT_OK, "%s: %s", #call, weft_error_message())

/* First thing of a test that computes on a GPU. */
#define NEEDS_GPU() \
    if (!wefti_cuda_is_there()) cr_skip_test("no GPU here")

#ifdef WEFT_ON_STAND_INS
#include <stdlib.h>

#include "cuda_host/control.h"
#endif

static inline wefti_device *gpu_open(wefti_cuda_options options) {
    wefti_device *device = NULL;
#ifdef WEFT_ON_STAND_INS
    wefti_cuda_host_reset(&(wefti_cuda_host_options){.seed = 1, .lazy = getenv("WEFT_CUDA_HOST_LAZY") != NULL});
#endif
    OK(wefti_cuda_create(&options, &device));
    return device;
}

#endif

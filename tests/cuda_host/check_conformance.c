/* The CUDA device's kernels and its own code under the conformance suite of devices, on stand-ins (README.md): nothing here has seen a GPU.
 *
 * Ops without a kernel in table.c are passed over, and named. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/effort.h"
#include "cuda/cuda.h"
#include "cuda_host/control.h"
#include "device/conformance.h"

static wefti_device *open_device(wefti_cuda_host_options how, bool capture) {
    wefti_cuda_options options = {.no_capture = !capture};
    wefti_device      *device = NULL;
    wefti_cuda_host_reset(&how);
    cr_assert_eq(wefti_cuda_create(&options, &device), WEFT_OK, "%s", weft_error_message());
    return device;
}

static void close_device(wefti_device *device) {
    device->vtable->release(device);
    cr_assert_eq(wefti_cuda_host_allocations(), 0, "%lld pieces of device memory were left", (long long)wefti_cuda_host_allocations());
}

/* Cases of ops that have a kernel. */
static bool lacking[WEFT_OP_COUNT];
static bool has_kernel(const test_case *one) {
    lacking[one->op] = !wefti_cuda_kernels[one->op][0];
    return !lacking[one->op];
}

static void say_what_lacks(void) {
    for (int op = 0, n = 0; op < WEFT_OP_COUNT; op++)
        if (lacking[op]) fprintf(stderr, "%s %s", n++ ? "," : "  without a kernel, and so not tried:", wefti_ops[op].name);
    fprintf(stderr, "\n  %lld kernels were launched\n", (long long)wefti_cuda_host_launches());
}

static uint64_t seed(void) {
    const char *text = getenv("WEFT_CUDA_HOST_SEED");
    return text ? strtoull(text, NULL, 10) : 1;
}

Test(cuda_on_stand_ins, computes_what_is_defined) {
    conformance_takes = has_kernel;
    wefti_device *device = open_device((wefti_cuda_host_options){.seed = seed()}, true);
    conformance_check(&device, 1);
    cr_assert(wefti_cuda_host_launches() > 0 || getenv("WEFT_TEST_OPS"), "no kernel ran");
    say_what_lacks();
    close_device(device);
}

/* The CUDA device on a real GPU under the conformance suite of devices: the same source that tries the CPU device, and this device on
 * stand-ins. */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "cuda/cuda.h"
#include "device/conformance.h"

static wefti_device *open_device(bool capture) {
    wefti_cuda_options options = {.ordinal = -1, .no_capture = !capture};
    wefti_device      *device = NULL;
    if (!wefti_cuda_is_there()) cr_skip_test("this machine has no GPU");
    cr_assert_eq(wefti_cuda_create(&options, &device), WEFT_OK, "%s", weft_error_message());
    return device;
}

static bool has_kernel(const test_case *one) { return wefti_cuda_kernels[one->op][0] != NULL; }

Test(cuda_conformance, computes_what_is_defined) {
    wefti_device *device = open_device(false);
    conformance_takes = has_kernel;
    conformance_check(&device, 1);
    device->vtable->release(device);
}

/* The kernels behind the libraries' are right, too. */
static bool has_choice(const test_case *one) { return wefti_cuda_kernels[one->op][1] != NULL; }
Test(cuda_conformance, computes_what_is_defined_without_libraries) {
    conformance_takes = has_choice;
    setenv("WEFT_CUDA_LIBRARIES", "/nowhere", 1);
    wefti_device *device = open_device(false);
    conformance_check(&device, 1);
    device->vtable->release(device);
}

Test(cuda_conformance, gives_the_same_bits_twice) {
    wefti_device *devices[2] = {open_device(false), open_device(true)};
    conformance_takes = has_kernel;
    conformance_same_bits(devices, 2);
    for (int i = 0; i < 2; i++) devices[i]->vtable->release(devices[i]);
}

Test(cuda_conformance, fuses_without_changing_bits) {
    wefti_device *device = open_device(false);
    conformance_fusion(device);
    device->vtable->release(device);
}

/* The CUDA device under the conformance suite of devices, on a GPU: call by call, captured, and with and without NVIDIA's libraries. */
#include <stdio.h>
#include <stdlib.h>

#include "cuda/gpu.h"
#include "cuda_host/thrice.h"
#include "device/conformance.h"

/* Ops without a kernel are passed over, and named. */
static bool lacking[WEFT_OP_COUNT];
static bool has_kernel(const test_case *one) {
    lacking[one->op] = !wefti_cuda_kernels[one->op][0];
    return !lacking[one->op];
}

static void say_what_lacks(void) {
    int n = 0;
    for (int op = 0; op < WEFT_OP_COUNT; op++)
        if (lacking[op]) fprintf(stderr, "%s %s", n++ ? "," : "  without a kernel, and so not tried:", wefti_ops[op].name);
    if (n) fputs("\n", stderr);
}

/* Of 8-bit products, by tensor cores. */
static void allow_short_sums(void) { conformance_fp8_sums = 0x1p-12; }
TestSuite(cuda_conformance, .init = allow_short_sums);

static void close_device(wefti_device *device) {
    int64_t held, peak;
    wefti_cuda_memory(device, &held, &peak);
    cr_assert_eq(held, 0, "%lld bytes were left", (long long)held);
    device->vtable->release(device);
}

Test(cuda_conformance, computes_what_is_defined) {
    NEEDS_GPU();
    conformance_takes = has_kernel;
    wefti_device *device = gpu_open((wefti_cuda_options){.no_capture = true});
    conformance_check(&device, 1);
    say_what_lacks();
    close_device(device);
}

/* Which of several kernels of one op is a matter of speed: those behind libraries' must be right too. */
static bool has_choice(const test_case *one) { return wefti_cuda_kernels[one->op][1] != NULL; }
Test(cuda_conformance, computes_what_is_defined_without_libraries) {
    NEEDS_GPU();
    conformance_takes = has_choice;
    setenv("WEFT_CUDA_LIBRARIES", "none", 1);
    wefti_device *device = gpu_open((wefti_cuda_options){.no_capture = true, .no_fusion_compiler = true});
    conformance_check(&device, 1);
    close_device(device);
}

/* One case in three: eagerly, captured, and replayed. */
static bool is_chosen(const test_case *one) {
    static int n;
    return has_kernel(one) && (getenv("WEFT_TEST_OPS") || n++ % 3 == 0);
}
Test(cuda_conformance, gives_the_same_bits_eagerly_captured_and_replayed) {
    NEEDS_GPU();
    conformance_takes = is_chosen;
    wefti_device *inner = gpu_open((wefti_cuda_options){0}), *device = thrice_create(inner);
    conformance_check(&device, 1);
    cr_assert(thrice_compared(device) > 0 || getenv("WEFT_TEST_OPS"));
    device->vtable->release(device);
}

Test(cuda_conformance, gives_the_same_bits_from_run_to_run) {
    NEEDS_GPU();
    conformance_takes = has_kernel;
    wefti_device *device = gpu_open((wefti_cuda_options){0}), *again = gpu_open((wefti_cuda_options){0});
    conformance_same_bits((wefti_device *[]){device, again, device}, 3);
    close_device(device);
    close_device(again);
}

Test(cuda_conformance, fuses_without_changing_bits) {
    NEEDS_GPU();
    if (!wefti_cuda_kernels[WEFT_OP_FUSED][0]) cr_skip_test("there is no kernel for fused programs");
    wefti_device *device = gpu_open((wefti_cuda_options){0});
    conformance_fusion(device);
    if (device->vtable->fuses_rows) conformance_fused_rows(device);
    close_device(device);
}

Test(cuda_conformance, fuses_without_changing_bits_or_compiling) {
    NEEDS_GPU();
    if (!wefti_cuda_kernels[WEFT_OP_FUSED][0]) cr_skip_test("there is no kernel for fused programs");
    wefti_device *device = gpu_open((wefti_cuda_options){.no_fusion_compiler = true});
    conformance_fusion(device);
    close_device(device);
}

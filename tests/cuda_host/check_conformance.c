/* The CUDA device's kernels and its own code under the conformance suite of devices, on stand-ins (README.md): nothing here has seen a GPU.
 *
 * Ops without a kernel in table.c are passed over, and named. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/effort.h"
#include "cuda/cuda.h"
#include "cuda_host/control.h"
#include "cuda_host/thrice.h"
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

/* The address sanitizer makes each of them ten times as long, and sees the same accesses with every dtype: one case in three there. */
static bool is_in_turn(void) {
    static int n;
    return !UNDER_ADDRESS_SANITIZER || getenv("WEFT_TEST_OPS") || n++ % 3 == 0;
}

/* Cases of ops that have a kernel. */
static bool lacking[WEFT_OP_COUNT];
static bool has_kernel(const test_case *one) {
    lacking[one->op] = !wefti_cuda_kernels[one->op][0];
    return !lacking[one->op];
}
static bool has_kernel_in_turn(const test_case *one) { return has_kernel(one) && is_in_turn(); }

static void say_what_lacks(void) {
    int n = 0;
    for (int op = 0; op < WEFT_OP_COUNT; op++)
        if (lacking[op]) fprintf(stderr, "%s %s", n++ ? "," : "  without a kernel, and so not tried:", wefti_ops[op].name);
    fprintf(stderr, "%s  %lld kernels were launched\n", n ? "\n" : "", (long long)wefti_cuda_host_launches());
}

static uint64_t seed(void) {
    const char *text = getenv("WEFT_CUDA_HOST_SEED");
    return text ? strtoull(text, NULL, 10) : 1;
}

Test(cuda_on_stand_ins, computes_what_is_defined) {
    conformance_takes = has_kernel_in_turn;
    wefti_device *device = open_device((wefti_cuda_host_options){.seed = seed()}, false);
    conformance_check(&device, 1);
    say_what_lacks();
    close_device(device);
}

/* Which of several kernels of one op is a matter of speed: those behind libraries' must be right too. */
static bool has_choice(const test_case *one) { return wefti_cuda_kernels[one->op][1] && is_in_turn(); }
Test(cuda_on_stand_ins, computes_what_is_defined_without_libraries) {
    conformance_takes = has_choice;
    setenv("WEFT_CUDA_LIBRARIES", "/nowhere", 1);
    setenv("WEFT_CUDA_HOST_NO_BLAS", "1", 1);
    wefti_device *device = open_device((wefti_cuda_host_options){.seed = seed() + 1}, false);
    conformance_check(&device, 1);
    close_device(device);
}

/* --- products with epilogues --- */

static bool is_fused_product(const test_case *one) { return one->op == WEFT_OP_FUSED_MATMUL; }
static bool is_fused_product_in_turn(const test_case *one) { return is_fused_product(one) && is_in_turn(); }

/* Sums over rows are taken where fused programs could be compiled; none is here. */
Test(cuda_on_stand_ins, sums_what_a_product_is_multiplied_with) {
    setenv("WEFT_CUDA_NVRTC", "1", 1);
    conformance_takes = is_fused_product_in_turn;
    conformance_column_sums = true;
    wefti_device *device = open_device((wefti_cuda_host_options){.seed = seed()}, false);
    conformance_check(&device, 1);
    close_device(device);
}

Test(cuda_on_stand_ins, computes_epilogues_apart_where_the_library_has_none) {
    setenv("WEFT_CUDA_HOST_NO_EPILOGUE", "1", 1);
    conformance_takes = is_fused_product_in_turn;
    wefti_device *device = open_device((wefti_cuda_host_options){.seed = seed()}, false);
    int64_t       launched = wefti_cuda_host_launches();
    conformance_check(&device, 1);
    cr_assert(wefti_cuda_host_launches() > launched, "no kernel of Weft's did what follows the products");
    close_device(device);
}

static bool is_measured(const test_case *one) {
    static int n;
    return is_fused_product(one) && n++ % 40 == 0;
}
Test(cuda_on_stand_ins, measures_whether_an_epilogue_pays) {
    setenv("WEFT_CUDA_TUNE", "all", 1);
    setenv("WEFT_CUDA_CACHE", "0", 1);
    conformance_takes = is_measured;
    wefti_device *device = open_device((wefti_cuda_host_options){.seed = seed()}, false);
    int64_t       launched = wefti_cuda_host_launches();
    conformance_check(&device, 1);
    cr_assert(wefti_cuda_host_launches() > launched, "nothing was tried apart");
    close_device(device);
}

/* One case in five, in another order of threads, blocks and streams each time. */
static bool is_chosen(const test_case *one) {
    static int n;
    return has_kernel(one) && (getenv("WEFT_TEST_OPS") || n++ % (UNDER_ADDRESS_SANITIZER ? 50 : 5) == 0);
}
Test(cuda_on_stand_ins, gives_the_same_bits_eagerly_captured_and_replayed) {
    conformance_takes = is_chosen;
    for (int lazy = 0; lazy < 2; lazy++) {
        wefti_device *device = thrice_create(open_device((wefti_cuda_host_options){.seed = seed() + 2, .lazy = lazy, .multiprocessors = 2 + 3 * lazy}, true));
        conformance_check(&device, 1);
        cr_assert(thrice_compared(device) > 0 || getenv("WEFT_TEST_OPS"));
        close_device(device);
    }
}

Test(cuda_on_stand_ins, fuses_without_changing_bits) {
    if (!wefti_cuda_kernels[WEFT_OP_FUSED][0] || !wefti_cuda_kernels[WEFT_OP_SUM][0]) cr_skip_test("there is no kernel for fused programs yet");
    wefti_device *device = open_device((wefti_cuda_host_options){.seed = seed()}, false);
    conformance_fusion(device);
    close_device(device);
}

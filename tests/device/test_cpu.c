/* The CPU device under the conformance suite, for each instruction set of this machine, and on any number of threads. */
#include <criterion/criterion.h>

#include "core/cpu/cpu.h"
#include "device/conformance.h"

static wefti_device *create(wefti_cpu_isa isa, int32_t threads) {
    wefti_cpu_options options = {.isa = isa, .threads = {.count = threads}};
    wefti_device     *device = NULL;
    if (!wefti_cpu_has(isa)) cr_skip_test("this machine has no %s", wefti_cpu_isa_name(isa));
    cr_assert_eq(wefti_cpu_create(&options, &device), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(wefti_cpu_isa_of(device), isa);
    return device;
}

static void check(wefti_cpu_isa isa) {
    wefti_device *device = create(isa, 2);
    conformance_check(device);
    device->vtable->release(device);
}

static void same_bits(wefti_cpu_isa isa) {
    wefti_device *one = create(isa, 1), *two = create(isa, 2), *three = create(isa, 3);
    conformance_same_bits(one, two, three);
    one->vtable->release(one);
    two->vtable->release(two);
    three->vtable->release(three);
}

static void fusion(wefti_cpu_isa isa) {
    wefti_device *device = create(isa, 2);
    conformance_fusion(device);
    device->vtable->release(device);
}

Test(cpu_reference, computes_what_is_defined) { check(WEFTI_CPU_REFERENCE); }
Test(cpu_baseline, computes_what_is_defined) { check(WEFTI_CPU_BASELINE); }
Test(cpu_avx2, computes_what_is_defined) { check(WEFTI_CPU_AVX2); }
Test(cpu_avx512, computes_what_is_defined) { check(WEFTI_CPU_AVX512); }

Test(cpu_reference, gives_the_same_bits_on_any_threads) { same_bits(WEFTI_CPU_REFERENCE); }
Test(cpu_baseline, gives_the_same_bits_on_any_threads) { same_bits(WEFTI_CPU_BASELINE); }
Test(cpu_avx2, gives_the_same_bits_on_any_threads) { same_bits(WEFTI_CPU_AVX2); }
Test(cpu_avx512, gives_the_same_bits_on_any_threads) { same_bits(WEFTI_CPU_AVX512); }

Test(cpu_reference, fuses_without_changing_bits) { fusion(WEFTI_CPU_REFERENCE); }
Test(cpu_baseline, fuses_without_changing_bits) { fusion(WEFTI_CPU_BASELINE); }
Test(cpu_avx2, fuses_without_changing_bits) { fusion(WEFTI_CPU_AVX2); }
Test(cpu_avx512, fuses_without_changing_bits) { fusion(WEFTI_CPU_AVX512); }

/* The CPU device under the conformance suite, for each instruction set of this machine, and on any number of threads.
 */
#include <criterion/criterion.h>

#include "common/effort.h"
#include "core/cpu/cpu.h"
#include "device/conformance.h"

static wefti_device *create(wefti_cpu_isa isa, int32_t threads) {
    wefti_cpu_options options = {.isa = isa, .threads = {.count = threads}};
    wefti_device     *device = NULL;
    cr_assert_eq(wefti_cpu_create(&options, &device), WEFT_OK, "%s", weft_error_message());
    cr_assert(isa == WEFTI_CPU_AUTO || wefti_cpu_isa_of(device) == isa);
    return device;
}

Test(cpu_device, computes_what_is_defined_with_every_instruction_set) {
    if (UNDER_THREAD_SANITIZER) cr_skip_test("results are of no interest to ThreadSanitizer");
    wefti_device *devices[WEFTI_CPU_ISA_COUNT];
    int32_t       n = 0;
    for (int isa = WEFTI_CPU_REFERENCE; isa < WEFTI_CPU_ISA_COUNT; isa++)
        if (wefti_cpu_has((wefti_cpu_isa)isa)) devices[n++] = create((wefti_cpu_isa)isa, 2);
    conformance_check(devices, n);
    while (n > 0) devices[n - 1]->vtable->release(devices[n - 1]), n--;
}

/* A pool of the program's own: its tasks one after another, the last one first. */
static int32_t lent_threads(void *context) { return *(const int32_t *)context; }
static void    lent_run(void *context, int32_t count, void (*task)(void *given, int32_t index), void *given) {
    (void)context;
    while (count > 0) task(given, --count);
}

static void same_bits(wefti_cpu_isa isa) {
    int32_t           threads = 4;
    wefti_cpu_options lent = {.isa = isa, .threads = {.pool = {lent_threads, lent_run, &threads}}};
    wefti_device     *devices[4] = {create(isa, 1), create(isa, 2), create(isa, 3)};
    cr_assert_eq(wefti_cpu_create(&lent, &devices[3]), WEFT_OK, "%s", weft_error_message());
    conformance_same_bits(devices, 4);
    for (int i = 0; i < 4; i++) devices[i]->vtable->release(devices[i]);
}

Test(cpu_device, gives_the_same_bits_on_any_threads_plainly) {
    if (UNDER_ADDRESS_SANITIZER) cr_skip_test("every access of these kernels is tried by the cases themselves");
    same_bits(WEFTI_CPU_REFERENCE);
}
Test(cpu_device, gives_the_same_bits_on_any_threads_portably) { same_bits(WEFTI_CPU_BASELINE); }
Test(cpu_device, gives_the_same_bits_on_any_threads_at_its_best) { same_bits(WEFTI_CPU_AUTO); }

Test(cpu_device, fuses_without_changing_bits) {
    for (int isa = WEFTI_CPU_REFERENCE; isa < WEFTI_CPU_ISA_COUNT; isa++) {
        if (!wefti_cpu_has((wefti_cpu_isa)isa)) continue;
        wefti_device *device = create((wefti_cpu_isa)isa, 2);
        conformance_fusion(device);
        device->vtable->release(device);
    }
}

/* The shim under test: what it must notice, on every seed, and what each intrinsic means. */
#include <criterion/criterion.h>

#include "common/effort.h"
#include "cuda_host/control.h"
#include "cuda_host/planted.h"

enum { SEEDS = UNDER_ADDRESS_SANITIZER ? 4 : 25 };

static void start(uint64_t seed) {
    wefti_cuda_host_options how = {.seed = seed, .quiet = true};
    wefti_cuda_host_reset(&how);
}

Test(cuda_host_shim, notices_a_missing_barrier_on_every_seed) {
    for (const planted *one = planted_races; one->name; one++)
        for (uint64_t seed = 1; seed <= SEEDS; seed++) {
            start(seed);
            cr_expect(one->is_right(false), "%s, seed %d: wrong although nothing is missing: %s", one->name, (int)seed, wefti_cuda_host_report());
            cr_expect(!one->is_right(true), "%s, seed %d: right although a barrier is missing", one->name, (int)seed);
        }
}

Test(cuda_host_shim, fails_launches_that_hardware_forbids) {
    for (const planted *one = planted_failures; one->name; one++)
        for (uint64_t seed = 1; seed <= 4; seed++) {
            start(seed);
            cr_expect(one->is_right(false), "%s, seed %d: failed although nothing is wrong: %s", one->name, (int)seed, wefti_cuda_host_report());
            cr_expect(!one->is_right(true), "%s, seed %d: went through", one->name, (int)seed);
            cr_expect(wefti_cuda_host_report()[0] != 0);
        }
    start(1);
}

Test(cuda_host_shim, means_what_the_manual_says) {
    for (const planted *one = sound_kernels; one->name; one++)
        for (uint64_t seed = 1; seed <= 4; seed++) {
            start(seed);
            cr_expect(one->is_right(false), "%s, seed %d: %s", one->name, (int)seed, wefti_cuda_host_report());
        }
}

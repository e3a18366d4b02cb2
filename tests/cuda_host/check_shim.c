/* The shim under test: what it must notice, on every seed, and what each intrinsic means. */
#include <criterion/criterion.h>
#include <string.h>

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
            if (!UNDER_ADDRESS_SANITIZER) /* which leaves no room for looking at accesses */
                cr_expect(strstr(wefti_cuda_host_report(), "planted.cu:") != NULL, "%s, seed %d: %s",
                          one->name, (int)seed, wefti_cuda_host_report());
        }
}

/* Right by luck in every order that one worker can run, and so only to be found access by access. */
Test(cuda_host_shim, finds_races_that_do_no_harm_here) {
    if (UNDER_ADDRESS_SANITIZER) cr_skip_test("accesses are not looked at there");
    for (const planted *one = hidden_races; one->name; one++)
        for (uint64_t seed = 1; seed <= SEEDS; seed++) {
            start(seed);
            cr_expect(one->is_right(false), "%s, seed %d: wrong although nothing is missing: %s", one->name, (int)seed, wefti_cuda_host_report());
            cr_expect(!one->is_right(true), "%s, seed %d: not found", one->name, (int)seed);
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

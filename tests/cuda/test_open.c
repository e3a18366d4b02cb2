/* Opening the CUDA device, on machines with and without one: a program with CUDA in it starts anywhere, and says what it found. */
#include <criterion/criterion.h>
#include <string.h>

#include "cuda/cuda.h"
#include "weft/world.h"

/* Some words of the three reasons that there can be. */
static bool says_why(const char *message) {
    return strstr(message, "no NVIDIA driver") || strstr(message, "the driver is for CUDA") || strstr(message, "shows no GPU");
}

Test(cuda_open, says_what_it_found) {
    weft_world *world = NULL;
    weft_status status = weft_world_create(&(weft_world_options){.size = 1, .device = "cuda"}, &world);
    if (wefti_cuda_is_there()) {
        cr_assert_eq(status, WEFT_OK, "%s", weft_error_message());
        cr_assert(strstr(weft_world_describe(world), "cuda (") && strstr(weft_world_describe(world), "multiprocessors"), "%s",
                  weft_world_describe(world));
    } else {
        cr_assert_eq(status, WEFT_E_UNSUPPORTED);
        cr_assert(says_why(weft_error_message()), "%s", weft_error_message());
        cr_assert_null(world);
    }
    weft_world_release(world);
}

Test(cuda_open, refuses_a_gpu_that_is_not_there) {
    wefti_device *device = NULL;
    weft_status   status = wefti_cuda_create(&(wefti_cuda_options){.ordinal = 1000}, &device);
    cr_assert_null(device);
    cr_assert_eq(status, wefti_cuda_is_there() ? WEFT_E_NOT_FOUND : WEFT_E_UNSUPPORTED);
    cr_assert(wefti_cuda_is_there() ? strstr(weft_error_message(), "cuda:1000") != NULL : says_why(weft_error_message()), "%s",
              weft_error_message());
}

Test(cuda_open, takes_auto_for_what_there_is) {
    weft_world *world = NULL;
    cr_assert_eq(weft_world_create(&(weft_world_options){.size = 1, .device = "auto"}, &world), WEFT_OK, "%s", weft_error_message());
    cr_assert(strstr(weft_world_describe(world), wefti_cuda_is_there() ? "cuda (" : "cpu ("), "%s", weft_world_describe(world));
    weft_world_release(world);
}

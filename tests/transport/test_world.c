/* Which device a world computes on: what its name says, and what it says where there is none such. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "weft/world.h"

Test(world, lists_the_devices_that_there_are) {
    static const char *const unknown[] = {"gpu", "cuda:x", "cuda:", "cuda:1x", "CPU"};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        weft_world *world = NULL;
        cr_assert_eq(weft_world_create(&(weft_world_options){.size = 1, .device = unknown[i]}, &world), WEFT_E_UNSUPPORTED);
        cr_assert_null(world);
        cr_assert(strstr(weft_error_message(), unknown[i]) && strstr(weft_error_message(), "cpu, "), "%s", weft_error_message());
    }
}

Test(world, computes_on_the_cpu_unless_told_otherwise) {
    weft_world *world = NULL;
    unsetenv("WEFT_DEVICE");
    cr_assert_eq(weft_world_create(&(weft_world_options){.size = 1}, &world), WEFT_OK, "%s", weft_error_message());
    cr_assert(strstr(weft_world_describe(world), "cpu ("), "%s", weft_world_describe(world));
    weft_world_release(world);
    setenv("WEFT_DEVICE", "gpu", 1);
    cr_assert_eq(weft_world_create(&(weft_world_options){.size = 1}, &world), WEFT_E_UNSUPPORTED);
    cr_assert_eq(weft_world_create(&(weft_world_options){.size = 1, .device = "cpu"}, &world), WEFT_OK, "%s", weft_error_message());
    weft_world_release(world);
}

Test(world, finds_a_device_for_auto) {
    weft_world *world = NULL;
    cr_assert_eq(weft_world_create(&(weft_world_options){.size = 1, .device = "auto"}, &world), WEFT_OK, "%s", weft_error_message());
    cr_assert(strstr(weft_world_describe(world), "cpu (") || strstr(weft_world_describe(world), "cuda ("), "%s", weft_world_describe(world));
    weft_world_release(world);
}

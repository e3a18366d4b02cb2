/* Fused programs compiled at run time, on stand-ins: the text that fused.c writes, compiled by the host's compiler, against the same
 * instructions as calls of their own. A few programs: each takes a second to compile. */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "cuda/cuda.h"
#include "cuda_host/control.h"
#include "device/conformance.h"

enum { COMPILED_PROGRAMS = 24 };

Test(cuda_on_stand_ins, compiles_fused_programs_without_changing_bits) {
    const char        *wanted = getenv("WEFT_TEST_PROGRAMS");
    wefti_cuda_options options = {.no_capture = true};
    wefti_device      *device = NULL;
    setenv("WEFT_CUDA_NVRTC", "1", 1);
    wefti_cuda_host_reset(&(wefti_cuda_host_options){.seed = 1});
    cr_assert_eq(wefti_cuda_create(&options, &device), WEFT_OK, "%s", weft_error_message());
    cr_assert(wefti_cuda_of(device)->nvrtc);
    conformance_programs = wanted ? atoi(wanted) : COMPILED_PROGRAMS;
    conformance_fusion(device);
    cr_assert(device->vtable->fuses_rows);
    conformance_fused_rows(device);
    cr_assert_not_null(wefti_cuda_of(device)->compiler, "nothing was compiled");
    device->vtable->release(device);
}

/* A profiler that looks on sees operations by name, where they are launched and where they are replayed. */
#include <criterion/criterion.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/cuda.h"

#define OK(call) cr_assert_eq((call), WEFT_OK, "%s: %s", #call, weft_error_message())

Test(cuda_host_marks, profilers_see_operations_by_name) {
    enum { N = 64 };
    setenv("NVTX_INJECTION64_PATH", WEFT_NVTX_STAND_IN, 1);
    static const wefti_attrs none;
    wefti_device  *device = NULL;
    wefti_program *program = NULL;
    wefti_operand  x[3];
    void          *buffers[3];
    for (int i = 0; i < 3; i++) x[i] = (wefti_operand){.dtype = WEFT_F32, .shape = weft_shape(N), .stride = {1}, .buffer = i};
    wefti_call calls[2] = {{.op = WEFT_OP_NEG, .attrs = &none, .n_inputs = 1, .n_outputs = 1, .inputs = x, .outputs = x + 1, .name = "layer1"},
                           {.op = WEFT_OP_SQUARE, .attrs = &none, .n_inputs = 1, .n_outputs = 1, .inputs = x + 1, .outputs = x + 2, .name = "layer2"}};
    OK(wefti_cuda_create(&(wefti_cuda_options){0}, &device));
    OK(device->vtable->compile(device, &(wefti_segment){.calls = calls, .n_calls = 2, .n_buffers = 3}, &program));
    for (int i = 0; i < 3; i++) OK(device->vtable->allocate(device, N * 4, "a test", &buffers[i]));
    for (int i = 0; i < 4; i++) OK(device->vtable->launch(program, &(wefti_launch){.buffers = buffers}));
    device->vtable->release_program(program);
    for (int i = 0; i < 3; i++) device->vtable->deallocate(device, buffers[i], N * 4);
    device->vtable->release(device);
    void *library = dlopen(WEFT_NVTX_STAND_IN, RTLD_NOW | RTLD_NOLOAD);
    cr_assert_not_null(library, "the profiler was not loaded");
    const char *(*ranges)(void) = NULL;
    void *found = dlsym(library, "weft_test_ranges");
    memcpy(&ranges, &found, sizeof ranges);
    const char *text = ranges(), *at = text;
    int         depth = 0;
    cr_assert(strstr(text, "domain weft\n") && strstr(text, "[neg layer1]\n[square layer2]\n"), "%s", text);
    cr_assert(strstr(text, "[graph from layer1]\n[graph from layer1]\n"), "%s", text); /* the third launch and the fourth */
    cr_assert(strstr(text, "[wait:"), "%s", text);
    for (; *at; at++) depth += *at == '[' ? 1 : *at == ']' ? -1 : 0;
    cr_assert_eq(depth, 0, "%d ranges are open: %s", depth, text);
    dlclose(library);
}

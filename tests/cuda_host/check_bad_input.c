/* What is wrong with a machine or a call gets a status that says so, and the process goes on: no driver, an old one, no GPU, no such GPU, memory
 * that there is not, a kernel that faults, memory of the host or of another device where this one's is due. NCCL's are in check_nccl_faults.c. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/cuda.h"
#include "cuda_host/control.h"
#include "weft.h"

#define OK(call) cr_assert_eq((call), WEFT_OK, "%s: %s", #call, weft_error_message())

static void says(const char *word) { cr_assert_not_null(strstr(weft_error_message(), word), "'%s' lacks '%s'", weft_error_message(), word); }
static void machine(wefti_cuda_host_options how) {
    how.seed = 1;
    how.quiet = true;
    wefti_cuda_host_reset(&how);
}

/* --- opening --- */

static void refuses_to_open(const char *device, weft_status status) {
    weft_world *world = NULL;
    cr_assert_eq(weft_world_create(&(weft_world_options){.size = 1, .device = device}, &world), status, "%s", weft_error_message());
    cr_assert_null(world);
}
static void takes_the_cpu_for_auto(void) {
    weft_world *world = NULL;
    OK(weft_world_create(&(weft_world_options){.size = 1, .device = "auto"}, &world));
    cr_assert_not_null(strstr(weft_world_describe(world), "cpu ("));
    weft_world_release(world);
}

Test(bad_input, no_driver) {
    machine((wefti_cuda_host_options){.driver = -1});
    refuses_to_open("cuda", WEFT_E_UNSUPPORTED);
    says("this machine has no NVIDIA driver");
    takes_the_cpu_for_auto();
}
Test(bad_input, an_old_driver_is_named_with_both_versions) {
    char built[32];
    snprintf(built, sizeof built, "needs %d.%d", CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    machine((wefti_cuda_host_options){.driver = 11080});
    refuses_to_open("cuda", WEFT_E_UNSUPPORTED);
    says("the driver is for CUDA 11.8");
    says(built);
    takes_the_cpu_for_auto();
}
Test(bad_input, no_gpu) {
    machine((wefti_cuda_host_options){.no_gpu = true});
    setenv("CUDA_VISIBLE_DEVICES", "7", 1);
    refuses_to_open("cuda", WEFT_E_UNSUPPORTED);
    says("shows no GPU; CUDA_VISIBLE_DEVICES is 7");
}
Test(bad_input, no_such_gpu) {
    machine((wefti_cuda_host_options){0});
    refuses_to_open("cuda:5", WEFT_E_NOT_FOUND);
    says("device 'cuda:5' does not exist: the driver shows 1 GPU, the last is cuda:0");
}
Test(bad_input, a_gpu_that_is_too_old) {
    machine((wefti_cuda_host_options){.capability = 75});
    refuses_to_open("cuda", WEFT_E_UNSUPPORTED);
    says("is older than sm_80");
}

/* --- planning and running --- */

static weft_plan *square_of(weft_world *world, int64_t n, weft_variables *variables, weft_graph **graph_out) {
    weft_plan *plan = NULL;
    OK(weft_graph_create(NULL, graph_out));
    weft_tensor *w = weft_parameter(*graph_out, "w", weft_shape(n, n)), *y = weft_sum(weft_matmul(w, w));
    OK(weft_plan_create(world, *graph_out, &(weft_plan_options){.outputs = &y, .n_outputs = 1, .variables = variables}, &plan));
    return plan;
}

Test(bad_input, memory_that_there_is_not) {
    weft_world *world = NULL;
    weft_graph *graph;
    char        figure[64];
    machine((wefti_cuda_host_options){.memory_bytes = 64 << 20});
    OK(weft_world_create(&(weft_world_options){.size = 1, .device = "cuda"}, &world));
    weft_plan       *plan = square_of(world, 3000, NULL, &graph); /* 36 MB, and as much again for the product */
    weft_plan_totals totals;
    weft_plan_totals_read(plan, &totals);
    cr_assert_gt(totals.total_bytes, 64 << 20, "the plan says it beforehand");
    cr_assert_eq(weft_plan_commit(plan), WEFT_E_NO_MEMORY);
    snprintf(figure, sizeof figure, "takes %lld bytes in all", (long long)totals.total_bytes);
    says(figure);
    says("the plan's intermediate values");
    says("holds 36000");
    says("are free");
    says("use a smaller batch");
    says("recomputation or sharding");
    weft_plan_release(plan);
    weft_graph_release(graph);
    plan = square_of(world, 100, NULL, &graph); /* and goes on */
    OK(weft_plan_run(plan, NULL, 0));
    weft_plan_release(plan);
    weft_graph_release(graph);
    weft_world_release(world);
}

Test(bad_input, a_kernel_that_faults) {
    weft_world *world = NULL, *cpu = NULL;
    weft_graph *graph, *other;
    float       sum;
    machine((wefti_cuda_host_options){0});
    OK(weft_world_create(&(weft_world_options){.size = 1, .device = "cuda"}, &world));
    weft_plan *plan = square_of(world, 64, NULL, &graph);
    OK(weft_plan_run(plan, NULL, 0));
    OK(weft_plan_fetch(plan, 0, &sum, sizeof sum));
    machine((wefti_cuda_host_options){.fault = 1});
    weft_status status = weft_plan_run(plan, NULL, 0);
    if (status == WEFT_OK) status = weft_plan_fetch(plan, 0, &sum, sizeof sum);
    cr_assert_eq(status, WEFT_E_DEVICE, "%s", weft_error_message());
    says("cudaErrorIllegalAddress");
    says("matmul 'matmul");
    says("cannot use the GPU any more");
    cr_assert_eq(weft_plan_run(plan, NULL, 0), WEFT_E_DEVICE);
    says("failed before");
    says("start the process again");
    weft_plan_release(plan);
    weft_graph_release(graph);
    OK(weft_world_create(&(weft_world_options){.size = 1, .device = "cpu"}, &cpu)); /* the process lives on */
    plan = square_of(cpu, 8, NULL, &other);
    OK(weft_plan_run(plan, NULL, 0));
    weft_plan_release(plan);
    weft_graph_release(other);
    weft_world_release(cpu);
    weft_world_release(world);
}

Test(bad_input, variables_of_another_device) {
    weft_world     *cuda = NULL, *cpu = NULL;
    weft_graph     *graph, *same;
    weft_plan      *plan = NULL;
    machine((wefti_cuda_host_options){0});
    OK(weft_world_create(&(weft_world_options){.size = 1, .device = "cuda"}, &cuda));
    OK(weft_world_create(&(weft_world_options){.size = 1, .device = "cpu"}, &cpu));
    weft_plan *here = square_of(cpu, 8, NULL, &graph);
    OK(weft_plan_run(here, NULL, 0));
    OK(weft_graph_create(NULL, &same));
    weft_tensor *w = weft_parameter(same, "w", weft_shape(8, 8)), *y = weft_sum(w);
    cr_assert_eq(weft_plan_create(cuda, same, &(weft_plan_options){.outputs = &y, .n_outputs = 1, .variables = weft_plan_variables(here)}, &plan), WEFT_E_INVALID);
    says("its variables are on a device 'cpu' of another world, and its operations compute on 'cuda'");
    weft_plan_release(here);
    weft_graph_release(graph);
    weft_graph_release(same);
    weft_world_release(cuda);
    weft_world_release(cpu);
}

Test(bad_input, memory_of_the_host_where_the_devices_is_due) {
    static const wefti_attrs none;
    static float             host[64];
    wefti_device  *device = NULL;
    wefti_program *program = NULL;
    machine((wefti_cuda_host_options){0});
    OK(wefti_cuda_create(NULL, &device));
    wefti_operand of[3];
    for (int i = 0; i < 3; i++) of[i] = (wefti_operand){.dtype = WEFT_F32, .shape = weft_shape(64), .stride = {1}, .buffer = i};
    wefti_call call = {.op = WEFT_OP_ADD, .attrs = &none, .n_inputs = 2, .n_outputs = 1, .inputs = of, .outputs = of + 2, .name = "both"};
    void      *buffers[3];
    OK(device->vtable->compile(device, &(wefti_segment){.calls = &call, .n_calls = 1, .n_buffers = 3}, &program));
    for (int i = 0; i < 3; i++) OK(device->vtable->allocate(device, sizeof host, "a test", &buffers[i]));
    void *good = buffers[1];
    buffers[1] = host;
    for (int twice = 0; twice < 2; twice++) {
        cr_assert_eq(device->vtable->launch(program, &(wefti_launch){.buffers = buffers}), WEFT_E_INVALID, "%s", weft_error_message());
        says("add 'both' was given memory of the host");
    }
    buffers[1] = good;
    for (int i = 0; i < 3; i++) OK(device->vtable->write(device, buffers[i], host, sizeof host));
    for (int i = 0; i < 3; i++) OK(device->vtable->launch(program, &(wefti_launch){.buffers = buffers})); /* nothing is broken */
    OK(device->vtable->read(device, host, buffers[2], sizeof host));
    device->vtable->release_program(program);
    for (int i = 0; i < 3; i++) device->vtable->deallocate(device, buffers[i], sizeof host);
    device->vtable->release(device);
}

/* The stand-in of the runtime under test: streams and events in lazy order, graphs, and the calls that CUDA refuses. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_host/control.h"
#include "cuda_host/planted.h"

enum { N = 200, SEEDS = 20 };

#define TAKES(call) cr_assert_eq((call), cudaSuccess, "%s: %s", #call, wefti_cuda_host_report())
#define REFUSES(error, call) cr_expect_eq((call), error, "%s gave no %s", #call, #error)

static void start(uint64_t seed, bool lazy) {
    wefti_cuda_host_options how = {.seed = seed, .lazy = lazy, .quiet = true};
    wefti_cuda_host_reset(&how);
}

static int *fresh(int value) {
    int *data = NULL, host[N];
    for (int i = 0; i < N; i++) host[i] = value;
    TAKES(cudaMalloc((void **)&data, sizeof host));
    TAKES(cudaMemcpy(data, host, sizeof host, cudaMemcpyHostToDevice));
    return data;
}

/* The value that all elements have; -1 where they differ. */
static int value_of(const int *data) {
    int host[N];
    TAKES(cudaMemcpy(host, data, sizeof host, cudaMemcpyDeviceToHost));
    for (int i = 1; i < N; i++)
        if (host[i] != host[0]) return -1;
    return host[0];
}

/* One stream writes, another goes on with it; with an event between them or without. */
static bool hands_over(bool with_event) {
    cudaStream_t a, b;
    cudaEvent_t  written;
    bool         right = true;
    TAKES(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
    TAKES(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
    TAKES(cudaEventCreateWithFlags(&written, cudaEventDisableTiming));
    int *data = fresh(1);
    for (int round = 0; round < 10; round++) {
        TAKES(cudaMemsetAsync(data, 0, N * sizeof *data, a));
        TAKES(planted_step(data, N, 1, 2, a));
        if (with_event) {
            TAKES(cudaEventRecord(written, a));
            TAKES(cudaStreamWaitEvent(b, written, 0));
        }
        TAKES(planted_step(data, N, 10, 3, b));
        TAKES(cudaStreamSynchronize(b));
        TAKES(cudaStreamSynchronize(a));
        right = right && value_of(data) == 23;
    }
    cudaFree(data);
    cudaEventDestroy(written);
    cudaStreamDestroy(a);
    cudaStreamDestroy(b);
    return right;
}

Test(cuda_host_runtime, shows_a_missing_event_wait_on_every_seed) {
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        start(seed, true);
        cr_expect(hands_over(true), "seed %d", (int)seed);
        cr_expect(!hands_over(false), "seed %d", (int)seed);
    }
    start(1, false);
    cr_expect(hands_over(false), "eagerly all happens as it is called");
}

/* Pinned memory that is written again before the copy from it has run. */
static bool copies_before_reuse(bool waits) {
    cudaStream_t a;
    int         *pinned, *data = fresh(0);
    TAKES(cudaStreamCreate(&a));
    TAKES(cudaHostAlloc((void **)&pinned, N * sizeof *pinned, cudaHostAllocDefault));
    for (int i = 0; i < N; i++) pinned[i] = 7;
    TAKES(cudaMemcpyAsync(data, pinned, N * sizeof *data, cudaMemcpyHostToDevice, a));
    if (waits) TAKES(cudaStreamSynchronize(a));
    for (int i = 0; i < N; i++) pinned[i] = 8;
    TAKES(cudaStreamSynchronize(a));
    bool right = value_of(data) == 7;
    cudaFreeHost(pinned);
    cudaFree(data);
    cudaStreamDestroy(a);
    return right;
}

Test(cuda_host_runtime, shows_pinned_memory_that_is_written_too_early) {
    start(1, true);
    cr_expect(copies_before_reuse(true));
    cr_expect(!copies_before_reuse(false));
}

Test(cuda_host_runtime, orders_the_legacy_stream_with_blocking_ones) {
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        cudaStream_t blocking;
        start(seed, true);
        int *data = fresh(1);
        TAKES(cudaStreamCreate(&blocking));
        TAKES(planted_step(data, N, 2, 1, blocking)); /* 3 */
        TAKES(planted_step(data, N, 5, 0, NULL));     /* 15 */
        TAKES(planted_step(data, N, 1, 1, blocking)); /* 16 */
        cr_expect_eq(value_of(data), 16);
        cudaFree(data);
        cudaStreamDestroy(blocking);
    }
}

/* a: +1, then on two branches that each fill a half of their own, then joined and doubled. */
static cudaGraph_t capture_branches(int *data, int *other, cudaStream_t a, cudaStream_t b, bool joined) {
    cudaEvent_t forked, done;
    cudaGraph_t graph = NULL;
    TAKES(cudaEventCreateWithFlags(&forked, cudaEventDisableTiming));
    TAKES(cudaEventCreateWithFlags(&done, cudaEventDisableTiming));
    TAKES(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal));
    TAKES(planted_step(data, N, 1, 1, a));
    TAKES(cudaEventRecord(forked, a));
    TAKES(cudaStreamWaitEvent(b, forked, 0));
    TAKES(planted_step(other, N, 3, 0, b));
    TAKES(planted_step(data, N, 2, 0, a));
    TAKES(cudaEventRecord(done, b));
    if (joined) TAKES(cudaStreamWaitEvent(a, done, 0));
    TAKES(planted_step(other, N, 1, joined ? 1 : 0, a));
    cudaError_t error = cudaStreamEndCapture(a, &graph);
    cr_expect_eq(error, joined ? cudaSuccess : cudaErrorStreamCaptureUnjoined);
    cudaEventDestroy(forked);
    cudaEventDestroy(done);
    return graph;
}

Test(cuda_host_runtime, replays_graphs) {
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        cudaStream_t    a, b;
        cudaGraphExec_t executable;
        start(seed, seed % 2);
        int *data = fresh(1), *other = fresh(1);
        TAKES(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
        TAKES(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
        cudaGraph_t graph = capture_branches(data, other, a, b, true);
        cr_assert_eq(value_of(data), 1, "nothing runs while it is captured");
        TAKES(cudaGraphInstantiate(&executable, graph, 0));
        TAKES(cudaGraphDestroy(graph));
        TAKES(cudaGraphLaunch(executable, a));
        TAKES(cudaGraphLaunch(executable, a));
        TAKES(cudaStreamSynchronize(a));
        cr_expect_eq(value_of(data), 10); /* ((1+1)*2 + 1)*2 */
        cr_expect_eq(value_of(other), 13); /* (1*3 + 1)*3 + 1 */
        cr_expect_null(capture_branches(data, other, a, b, false));
        TAKES(cudaGraphExecDestroy(executable));
        cudaStreamDestroy(a);
        cudaStreamDestroy(b);
        cudaFree(data);
        cudaFree(other);
    }
    cr_expect_eq(wefti_cuda_host_allocations(), 0);
}

Test(cuda_host_runtime, refuses_what_breaks_a_capture) {
    cudaStream_t a;
    cudaGraph_t  graph;
    void        *memory;
    start(1, false);
    int *data = fresh(1);
    TAKES(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
    const char *const names[] = {"synchronising", "querying", "allocating", "freeing", "the whole device"};
    for (int i = 0; i < 5; i++) {
        TAKES(cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal));
        cudaError_t error = i == 0   ? cudaStreamSynchronize(a)
                            : i == 1 ? cudaStreamQuery(a)
                            : i == 2 ? cudaMalloc(&memory, 16)
                            : i == 3 ? cudaFree(data)
                                     : cudaDeviceSynchronize();
        cr_expect_eq(error, cudaErrorStreamCaptureUnsupported, "%s in a capture: %d", names[i], (int)error);
        REFUSES(cudaErrorStreamCaptureInvalidated, planted_step(data, N, 1, 1, a));
        REFUSES(cudaErrorStreamCaptureInvalidated, cudaStreamEndCapture(a, &graph));
        cr_expect_null(graph);
    }
    REFUSES(cudaErrorStreamCaptureUnsupported, cudaStreamBeginCapture(NULL, cudaStreamCaptureModeGlobal));
    cudaFree(data);
    cudaStreamDestroy(a);
}

Test(cuda_host_runtime, refuses_memory_that_is_not_where_it_should_be) {
    int  host[N] = {0};
    int *data = NULL, *old = NULL;
    start(1, false);
    TAKES(cudaMalloc((void **)&data, sizeof host));
    TAKES(cudaMemcpy(host, data, sizeof host, cudaMemcpyDeviceToHost));
    cr_expect_eq(host[7], -1, "fresh memory holds ones");
    REFUSES(cudaErrorInvalidValue, cudaMemcpy(host, host, sizeof host, cudaMemcpyHostToDevice));
    REFUSES(cudaErrorInvalidValue, cudaMemcpy(data, data, sizeof host, cudaMemcpyDeviceToHost));
    REFUSES(cudaErrorInvalidValue, cudaMemcpy(data + 1, host, sizeof host, cudaMemcpyHostToDevice));
    REFUSES(cudaErrorInvalidValue, cudaMemset(host, 0, sizeof host));
    REFUSES(cudaErrorIllegalAddress, planted_step(host, N, 1, 1, NULL));
    REFUSES(cudaErrorMemoryAllocation, cudaMalloc((void **)&old, (size_t)1 << 40));
    REFUSES(cudaErrorInvalidDevice, cudaSetDevice(1));
    TAKES(cudaMalloc((void **)&old, sizeof host));
    TAKES(cudaFree(old));
    REFUSES(cudaErrorInvalidValue, cudaFree(old));
    REFUSES(cudaErrorInvalidValue, cudaMemset(old, 0, sizeof host));
    TAKES(cudaFree(data));
    cr_expect_neq(cudaGetLastError(), cudaSuccess);
    cr_expect_eq(cudaGetLastError(), cudaSuccess, "an error is told once");
    cr_expect_eq(wefti_cuda_host_allocations(), 0);
}

Test(cuda_host_runtime, keeps_failing_after_a_failed_kernel) {
    start(1, false);
    cr_assert(!planted_failures[0].is_right(true));
    void *memory;
    REFUSES(cudaErrorLaunchFailure, cudaMalloc(&memory, 16));
    REFUSES(cudaErrorLaunchFailure, cudaDeviceSynchronize());
    cr_expect_eq(cudaGetLastError(), cudaErrorLaunchFailure);
    cr_expect(strstr(wefti_cuda_host_report(), "planted.cu:") != NULL, "the report names the place: %s", wefti_cuda_host_report());
    start(1, false);
    TAKES(cudaDeviceSynchronize());
}

/* Copies beside the computing: what collectives over host wires send and receive, on a stream of its own.
 *
 * Events tie the two streams: a copy out waits for what the computing stream was given before it, and a join makes the computing stream wait
 * for the copies so far. Tickets number the copies out; the event of ticket t is t modulo a ring, and is looked at before it is used
 * again, so a ticket that the ring has lapped is over. */
#include "cuda/inside.h"

static const char *const what = "a copy for a collective";

weft_status wefti_cuda_copies_open(wefti_cuda *cuda) {
    struct wefti_cuda_inside *inside = cuda->inside;
    WEFTI_TRY(wefti_cuda_check(cuda, cudaStreamCreateWithFlags(&inside->copies, cudaStreamNonBlocking), "a stream for copies"));
    WEFTI_TRY(wefti_cuda_check(cuda, cudaEventCreateWithFlags(&inside->computed, cudaEventDisableTiming), "an event"));
    WEFTI_TRY(wefti_cuda_check(cuda, cudaEventCreateWithFlags(&inside->copied, cudaEventDisableTiming), "an event"));
    for (int i = 0; i < WEFTI_CUDA_TICKETS; i++)
        WEFTI_TRY(wefti_cuda_check(cuda, cudaEventCreateWithFlags(&inside->ticket[i], cudaEventDisableTiming), "an event"));
    return WEFT_OK;
}

void wefti_cuda_copies_close(wefti_cuda *cuda) {
    struct wefti_cuda_inside *inside = cuda->inside;
    if (inside->copies) (void)cudaStreamSynchronize(inside->copies);
    for (int i = 0; i < WEFTI_CUDA_TICKETS; i++)
        if (inside->ticket[i]) (void)cudaEventDestroy(inside->ticket[i]);
    if (inside->computed) (void)cudaEventDestroy(inside->computed);
    if (inside->copied) (void)cudaEventDestroy(inside->copied);
    if (inside->copies) (void)cudaStreamDestroy(inside->copies);
}

/* Pinning needs whole pages and may be refused (by a limit on locked memory): copies then go through the driver's own pinned memory. */
void wefti_cuda_pin(wefti_device *device, void *host_memory, size_t size_bytes) {
    wefti_cuda *cuda = wefti_cuda_of(device);
    if (wefti_cuda_enter(cuda) != WEFT_OK) return;
    if (cudaHostRegister(host_memory, size_bytes, cudaHostRegisterDefault) == cudaSuccess) return;
    (void)cudaGetLastError();
    wefti_log(WEFT_LOG_INFO, "cuda:%d cannot pin %zu bytes that collectives work in; copies to and from them are slower", (int)cuda->ordinal, size_bytes);
}

void wefti_cuda_unpin(wefti_device *device, void *host_memory, size_t size_bytes) {
    wefti_cuda *cuda = wefti_cuda_of(device);
    (void)size_bytes;
    (void)cudaSetDevice(cuda->ordinal);
    (void)!wefti_cuda_finish(cuda, cuda->inside->copies, what);
    (void)cudaHostUnregister(host_memory);
    (void)cudaGetLastError(); /* it may not have been pinned */
}

weft_status wefti_cuda_copy_out(wefti_device *device, void *host_memory, const void *device_memory, size_t size_bytes, uint64_t *ticket_out) {
    wefti_cuda               *cuda = wefti_cuda_of(device);
    struct wefti_cuda_inside *inside = cuda->inside;
    cudaEvent_t               event = inside->ticket[inside->tickets % WEFTI_CUDA_TICKETS];
    WEFTI_TRY(wefti_cuda_enter(cuda));
    if (inside->tickets >= WEFTI_CUDA_TICKETS) WEFTI_TRY(wefti_cuda_finish_event(cuda, event, what));
    WEFTI_TRY(wefti_cuda_check(cuda, cudaEventRecord(inside->computed, cuda->stream), what));
    WEFTI_TRY(wefti_cuda_check(cuda, cudaStreamWaitEvent(inside->copies, inside->computed, 0), what));
    if (size_bytes)
        WEFTI_TRY(wefti_cuda_check(cuda, cudaMemcpyAsync(host_memory, device_memory, size_bytes, cudaMemcpyDeviceToHost, inside->copies), what));
    WEFTI_TRY(wefti_cuda_check(cuda, cudaEventRecord(event, inside->copies), what));
    *ticket_out = inside->tickets++;
    return WEFT_OK;
}

weft_status wefti_cuda_copy_test(wefti_device *device, uint64_t ticket) {
    wefti_cuda *cuda = wefti_cuda_of(device);
    WEFTI_TRY(wefti_cuda_enter(cuda));
    if (ticket + WEFTI_CUDA_TICKETS <= cuda->inside->tickets) return WEFT_OK;
    cudaError_t error = cudaEventQuery(cuda->inside->ticket[ticket % WEFTI_CUDA_TICKETS]);
    if (error == cudaErrorNotReady) {
        (void)cudaGetLastError();
        return WEFT_E_AGAIN;
    }
    return wefti_cuda_check(cuda, error, what);
}

weft_status wefti_cuda_copy_in(wefti_device *device, void *device_memory, const void *host_memory, size_t size_bytes) {
    wefti_cuda *cuda = wefti_cuda_of(device);
    WEFTI_TRY(wefti_cuda_enter(cuda));
    if (size_bytes == 0) return WEFT_OK;
    return wefti_cuda_check(cuda, cudaMemcpyAsync(device_memory, host_memory, size_bytes, cudaMemcpyHostToDevice, cuda->inside->copies), what);
}

weft_status wefti_cuda_copy_join(wefti_device *device) {
    wefti_cuda *cuda = wefti_cuda_of(device);
    WEFTI_TRY(wefti_cuda_enter(cuda));
    WEFTI_TRY(wefti_cuda_check(cuda, cudaEventRecord(cuda->inside->copied, cuda->inside->copies), what));
    return wefti_cuda_check(cuda, cudaStreamWaitEvent(cuda->stream, cuda->inside->copied, 0), what);
}

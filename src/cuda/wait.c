/* Waiting for the device without hanging: a stream may wait for another rank, which may be gone. Who can tell registers a watcher, and is asked
 * while the host waits; after its verdict the stream gets on. Without anything under way elsewhere, the driver waits. */
#include "core/iface/host.h"
#include "cuda/inside.h"
#include "cuda/marks.h"

void wefti_cuda_watch(wefti_cuda *cuda, wefti_cuda_watcher *watcher) {
    watcher->next = cuda->inside->watchers;
    cuda->inside->watchers = watcher;
}

void wefti_cuda_unwatch(wefti_cuda *cuda, wefti_cuda_watcher *watcher) {
    wefti_cuda_watcher **at = &cuda->inside->watchers;
    while (*at && *at != watcher) at = &(*at)->next;
    if (*at) *at = watcher->next;
}

/* The first failure; else WEFT_E_AGAIN where anything is under way. */
static weft_status look(const wefti_cuda *cuda) {
    weft_status status = WEFT_OK;
    for (wefti_cuda_watcher *watcher = cuda->inside->watchers; watcher; watcher = watcher->next) {
        weft_status seen = watcher->look(watcher->context);
        if (seen == WEFT_E_AGAIN) status = seen;
        else if (seen != WEFT_OK) return seen;
    }
    return status;
}

/* Of the event, or where there is none, of the stream. */
static weft_status finish(wefti_cuda *cuda, cudaStream_t stream, cudaEvent_t event, const char *what) {
    const wefti_host *host = wefti_host_system();
    for (;;) {
        weft_status status = look(cuda);
        if (status == WEFT_OK) return wefti_cuda_check(cuda, event ? cudaEventSynchronize(event) : cudaStreamSynchronize(stream), what);
        if (status != WEFT_E_AGAIN) return wefti_while(status, "%s", what);
        cudaError_t error = event ? cudaEventQuery(event) : cudaStreamQuery(stream);
        if (error != cudaErrorNotReady) return wefti_cuda_check(cuda, error, what);
        (void)cudaGetLastError();
        host->yield(host->context);
    }
}

static weft_status marked(wefti_cuda *cuda, cudaStream_t stream, cudaEvent_t event, const char *what) {
    wefti_cuda_mark_begin("wait:", what);
    weft_status status = finish(cuda, stream, event, what);
    wefti_cuda_mark_end();
    return status;
}
weft_status wefti_cuda_finish(wefti_cuda *cuda, cudaStream_t stream, const char *what) { return marked(cuda, stream, NULL, what); }
weft_status wefti_cuda_finish_event(wefti_cuda *cuda, cudaEvent_t event, const char *what) { return marked(cuda, NULL, event, what); }

/* Streams and events.
 *
 * A stream is a queue of operations; each may wait for points of other streams. Eagerly, all is run when it is issued. Lazily it stays until
 * somebody waits for it, and then streams whose first operation may run are taken in random order: what was ordered by luck only comes out
 * wrong. Work that is issued to a capturing stream becomes a node of its graph (capture.cpp). */
#include "cuda_host/engine.h"
#include "cuda_host/stand_in.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <set>

namespace weft_host {

std::recursive_mutex    lock;
wefti_cuda_host_options options;
random                  chance = {1};
cudaError_t             broken = cudaSuccess;
int64_t                 launches;

namespace {

cudaError_t last_error = cudaSuccess;
char        report[1200];

struct event {
    bool                     recorded, timed;
    point                    at;
    double                   ms; /* when it was reached */
    std::shared_ptr<capture> captured;
    std::vector<int>         frontier;
};

struct handles {
    std::set<std::shared_ptr<stream> *>                streams;
    std::set<std::shared_ptr<event> *>                 events;
    std::shared_ptr<stream>                            legacy, per_thread;
};
handles &all() {
    static handles *only = nullptr;
    if (!only) {
        only = new handles;
        only->legacy = std::make_shared<stream>();
        only->per_thread = std::make_shared<stream>();
        only->legacy->blocking = only->per_thread->blocking = true;
    }
    return *only;
}

std::vector<std::shared_ptr<stream>> every_stream() {
    std::vector<std::shared_ptr<stream>> found = {all().legacy, all().per_thread};
    for (auto *one : all().streams) found.push_back(*one);
    return found;
}

bool reached(const point &at) { return at.first->done >= at.second; }

bool may_run(const stream &one) {
    if (one.queue.empty()) return false;
    const operation &first = one.queue.front();
    for (const point &at : first.after)
        if (!reached(at)) return false;
    return !first.ready || first.ready();
}

/* Whether some stream waits for what comes from outside of this process. */
bool waits_outside() {
    for (auto &one : every_stream()) {
        if (one->queue.empty() || !one->queue.front().ready) continue;
        bool turn = true;
        for (const point &at : one->queue.front().after) turn = turn && reached(at);
        if (turn) return true;
    }
    return false;
}

[[noreturn]] void in_vain() {
    fprintf(stderr, "cuda_host: streams wait for one another in vain\n");
    abort();
}

/* Runs one operation of some stream; false if none may run. */
bool step() {
    std::vector<std::shared_ptr<stream>> ready;
    for (auto &one : every_stream())
        if (may_run(*one)) ready.push_back(one);
    if (ready.empty()) return false;
    std::shared_ptr<stream> chosen = ready[chance.below((uint32_t)ready.size())];
    operation               first = std::move(chosen->queue.front());
    chosen->queue.pop_front();
    cudaError_t error = broken == cudaSuccess ? first.run() : broken;
    chosen->done++;
    if (error != cudaSuccess && broken == cudaSuccess) broken = error;
    return true;
}

double now_ms() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

std::shared_ptr<event> event_of(cudaEvent_t handle) {
    auto *one = reinterpret_cast<std::shared_ptr<event> *>(handle);
    return all().events.count(one) ? *one : nullptr;
}

/* Everything issued so far that a new operation on this stream comes after, besides the stream's own. */
std::vector<point> implied(const std::shared_ptr<stream> &of) {
    std::vector<point> after;
    if (of == all().legacy) {
        for (auto &one : every_stream())
            if (one != of && one->blocking) after.push_back({one, one->issued});
    } else if (of->blocking) after.push_back({all().legacy, all().legacy->issued});
    return after;
}

/* Eagerly, all is run that does not wait for somebody outside. */
cudaError_t enqueue(const std::shared_ptr<stream> &of, std::vector<point> after, work run, std::function<bool()> ready = {}) {
    of->queue.push_back({std::move(run), std::move(after), std::move(ready)});
    of->issued++;
    uint64_t until = of->issued;
    while (!options.lazy && !reached({of, until}))
        if (!step()) {
            if (!waits_outside()) in_vain();
            break;
        }
    return options.lazy ? cudaSuccess : broken;
}

} // namespace

cudaError_t refuse(cudaError_t error, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(report, sizeof report, format, arguments);
    va_end(arguments);
    last_error = error;
    return error;
}

std::shared_ptr<stream> stream_of(cudaStream_t handle) {
    if (handle == nullptr || handle == cudaStreamLegacy) return all().legacy;
    if (handle == cudaStreamPerThread) return all().per_thread;
    auto *one = reinterpret_cast<std::shared_ptr<stream> *>(handle);
    return all().streams.count(one) ? *one : nullptr;
}

cudaError_t finish(const point &until) {
    while (!reached(until))
        if (!step()) {
            if (!waits_outside()) in_vain();
            usleep(20);
        }
    return broken;
}

cudaError_t finish_all() {
    for (auto &one : every_stream()) {
        cudaError_t error = finish({one, one->issued});
        if (error != cudaSuccess) return error;
    }
    return broken;
}

cudaError_t refuse_in_capture(const char *what) {
    for (auto &one : every_stream()) {
        if (!one->captured || one->captured->mode == cudaStreamCaptureModeRelaxed) continue;
        one->captured->invalid = true;
        return refuse(cudaErrorStreamCaptureUnsupported, "%s while a stream is captured", what);
    }
    return cudaSuccess;
}

cudaError_t issue(cudaStream_t handle, const char *kind, work run, std::function<bool()> ready) {
    std::shared_ptr<stream> of = stream_of(handle);
    if (!of) return refuse(cudaErrorInvalidResourceHandle, "%s: no such stream, or it was destroyed", kind);
    if (!of->captured) {
        if (of == all().legacy)
            for (auto &one : every_stream()) {
                if (!one->captured || !one->blocking) continue;
                one->captured->invalid = true;
                return refuse(cudaErrorStreamCaptureImplicit, "%s on the legacy stream, which waits for one that is captured", kind);
            }
        return enqueue(of, implied(of), std::move(run), std::move(ready));
    }
    if (of->captured->invalid) return refuse(cudaErrorStreamCaptureInvalidated, "%s: the capture was broken before", kind);
    std::vector<node> &nodes = of->captured->made->nodes;
    nodes.push_back({kind, std::move(run), of->frontier, std::move(ready)});
    of->frontier = {(int)nodes.size() - 1};
    return cudaSuccess;
}

} // namespace weft_host

using namespace weft_host;

extern "C" {

void wefti_cuda_host_reset(const wefti_cuda_host_options *wanted) {
    std::lock_guard<std::recursive_mutex> locked(lock);
    (void)finish_all();
    options = *wanted;
    chance.state = wanted->seed;
    broken = last_error = cudaSuccess;
    report[0] = 0;
    launches = 0;
    forget_launches();
    forget_exports();
}
const char *wefti_cuda_host_report(void) { return report; }
int64_t     wefti_cuda_host_launches(void) { return launches; }
int64_t     wefti_cuda_host_allocations(void) { return allocations(); }

cudaError_t cudaGetLastError(void) {
    std::lock_guard<std::recursive_mutex> locked(lock);
    cudaError_t error = broken != cudaSuccess ? broken : last_error;
    last_error = cudaSuccess;
    return error;
}
cudaError_t cudaPeekAtLastError(void) {
    std::lock_guard<std::recursive_mutex> locked(lock);
    return broken != cudaSuccess ? broken : last_error;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream_out, unsigned flags, int) {
    WEFT_HOST_ENTER();
    auto *handle = new std::shared_ptr<stream>(std::make_shared<stream>());
    (*handle)->blocking = !(flags & cudaStreamNonBlocking);
    all().streams.insert(handle);
    *stream_out = reinterpret_cast<cudaStream_t>(handle);
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream_out, unsigned flags) { return cudaStreamCreateWithPriority(stream_out, flags, 0); }
cudaError_t cudaStreamCreate(cudaStream_t *stream_out) { return cudaStreamCreateWithPriority(stream_out, 0, 0); }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least_out, int *greatest_out) {
    *least_out = 0, *greatest_out = -5;
    return cudaSuccess;
}
/* Its work goes on; here it is done first. */
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    std::lock_guard<std::recursive_mutex> locked(lock);
    std::shared_ptr<stream> of = stream_of(handle);
    if (!of || of == all().legacy || of == all().per_thread) return refuse(cudaErrorInvalidResourceHandle, "cudaStreamDestroy: no such stream");
    cudaError_t error = finish({of, of->issued});
    auto *one = reinterpret_cast<std::shared_ptr<stream> *>(handle);
    all().streams.erase(one);
    delete one;
    return error;
}
static cudaError_t refuse_captured(const std::shared_ptr<stream> &of, const char *what) {
    if (!of) return refuse(cudaErrorInvalidResourceHandle, "%s: no such stream, or it was destroyed", what);
    if (!of->captured) return cudaSuccess;
    of->captured->invalid = true;
    return refuse(cudaErrorStreamCaptureUnsupported, "%s: the stream is captured", what);
}
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    WEFT_HOST_ENTER();
    std::shared_ptr<stream> of = stream_of(handle);
    cudaError_t             error = refuse_captured(of, "cudaStreamSynchronize");
    if (error != cudaSuccess) return error;
    if (of == all().legacy)
        for (const point &at : implied(of))
            if ((error = finish(at)) != cudaSuccess) return error;
    return finish({of, of->issued});
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
    WEFT_HOST_ENTER();
    std::shared_ptr<stream> of = stream_of(handle);
    cudaError_t             error = refuse_captured(of, "cudaStreamQuery");
    if (error != cudaSuccess) return error;
    if (!reached({of, of->issued})) step();
    if (broken != cudaSuccess) return broken;
    return reached({of, of->issued}) ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaDeviceSynchronize(void) {
    WEFT_HOST_ENTER();
    cudaError_t error = refuse_in_capture("cudaDeviceSynchronize");
    return error != cudaSuccess ? error : finish_all();
}
cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void *given) {
    WEFT_HOST_ENTER();
    return issue(handle, "host function", [=] { return function(given), cudaSuccess; });
}
cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus *status_out) {
    WEFT_HOST_ENTER();
    std::shared_ptr<stream> of = stream_of(handle);
    if (!of) return refuse(cudaErrorInvalidResourceHandle, "cudaStreamIsCapturing: no such stream");
    *status_out = !of->captured           ? cudaStreamCaptureStatusNone
                  : of->captured->invalid ? cudaStreamCaptureStatusInvalidated
                                          : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

/* --- events --- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event_out, unsigned flags) {
    WEFT_HOST_ENTER();
    auto *handle = new std::shared_ptr<event>(std::make_shared<event>());
    (*handle)->timed = !(flags & cudaEventDisableTiming);
    all().events.insert(handle);
    *event_out = reinterpret_cast<cudaEvent_t>(handle);
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event_out) { return cudaEventCreateWithFlags(event_out, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t handle) {
    std::lock_guard<std::recursive_mutex> locked(lock);
    if (!event_of(handle)) return refuse(cudaErrorInvalidResourceHandle, "cudaEventDestroy: no such event");
    auto *one = reinterpret_cast<std::shared_ptr<event> *>(handle);
    all().events.erase(one);
    delete one;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t on) {
    WEFT_HOST_ENTER();
    std::shared_ptr<event>  one = event_of(handle);
    std::shared_ptr<stream> of = stream_of(on);
    if (!one || !of) return refuse(cudaErrorInvalidResourceHandle, "cudaEventRecord: no such event or stream");
    one->recorded = true;
    one->captured = of->captured;
    one->frontier = of->frontier;
    if (of->captured) return cudaSuccess;
    one->at = {of, of->issued + 1};
    return enqueue(of, implied(of), [one] { return one->ms = now_ms(), cudaSuccess; });
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t on, unsigned) { return cudaEventRecord(handle, on); }
cudaError_t cudaStreamWaitEvent(cudaStream_t on, cudaEvent_t handle, unsigned) {
    WEFT_HOST_ENTER();
    std::shared_ptr<event>  one = event_of(handle);
    std::shared_ptr<stream> of = stream_of(on);
    if (!one || !of) return refuse(cudaErrorInvalidResourceHandle, "cudaStreamWaitEvent: no such event or stream");
    if (!one->recorded) return cudaSuccess;
    if (one->captured && !one->captured->made) return refuse(cudaErrorCapturedEvent, "cudaStreamWaitEvent: the event's capture has ended");
    if (one->captured) { /* the stream joins the capture, or its branches join */
        if (of->captured && of->captured != one->captured) return refuse(cudaErrorStreamCaptureMerge, "cudaStreamWaitEvent: two captures would merge");
        if (!of->captured) {
            of->captured = one->captured;
            of->frontier.clear();
            one->captured->members.push_back(of);
        }
        of->frontier.insert(of->frontier.end(), one->frontier.begin(), one->frontier.end());
        return cudaSuccess;
    }
    if (of->captured) {
        of->captured->invalid = true;
        return refuse(cudaErrorStreamCaptureIsolation, "cudaStreamWaitEvent: a captured stream waits for an event that was recorded outside");
    }
    std::vector<point> after = implied(of);
    after.push_back(one->at);
    return enqueue(of, after, [] { return cudaSuccess; });
}
static cudaError_t refuse_event(const std::shared_ptr<event> &one, const char *what) {
    if (!one) return refuse(cudaErrorInvalidResourceHandle, "%s: no such event", what);
    if (!one->captured) return cudaSuccess;
    one->captured->invalid = true;
    return refuse(cudaErrorCapturedEvent, "%s: the event was recorded in a capture", what);
}
cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    WEFT_HOST_ENTER();
    std::shared_ptr<event> one = event_of(handle);
    cudaError_t            error = refuse_event(one, "cudaEventSynchronize");
    return error != cudaSuccess || !one->recorded ? error : finish(one->at);
}
cudaError_t cudaEventQuery(cudaEvent_t handle) {
    WEFT_HOST_ENTER();
    std::shared_ptr<event> one = event_of(handle);
    cudaError_t            error = refuse_event(one, "cudaEventQuery");
    if (error != cudaSuccess || !one->recorded) return error;
    if (!reached(one->at)) step();
    if (broken != cudaSuccess) return broken;
    return reached(one->at) ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float *ms_out, cudaEvent_t from, cudaEvent_t to) {
    WEFT_HOST_ENTER();
    std::shared_ptr<event> a = event_of(from), b = event_of(to);
    if (!a || !b || !a->recorded || !b->recorded || !a->timed || !b->timed)
        return refuse(cudaErrorInvalidResourceHandle, "cudaEventElapsedTime: an event that was not recorded, or has no time");
    if (!reached(a->at) || !reached(b->at)) return cudaErrorNotReady;
    *ms_out = (float)(b->ms - a->ms);
    return cudaSuccess;
}

} /* extern "C" */

/* --- for the stand-ins of libraries --- */

cudaError_t wefti_stand_in_issue(cudaStream_t on, const char *what, std::function<cudaError_t()> run) {
    WEFT_HOST_ENTER();
    return issue(on, what, std::move(run));
}
cudaError_t wefti_stand_in_issue_when(cudaStream_t on, const char *what, std::function<bool()> ready, std::function<cudaError_t()> run) {
    WEFT_HOST_ENTER();
    return issue(on, what, std::move(run), std::move(ready));
}
bool wefti_stand_in_may_use(const void *at, size_t bytes) {
    std::lock_guard<std::recursive_mutex> locked(lock);
    return device_may_use(at, bytes);
}
cudaError_t wefti_stand_in_refuse(cudaError_t error, const char *why) { return refuse(error, "%s", why); }

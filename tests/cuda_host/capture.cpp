/* Graphs: a capture is a list of nodes with edges, and a launch of it one operation that runs them in any order that the edges allow. */
#include "cuda_host/engine.h"

#include <unistd.h>

#include <set>

namespace weft_host {
namespace {

/* Handles stay valid objects when destroyed: what is used after that is refused by name. */
std::set<std::shared_ptr<graph> *> &graphs() {
    static auto *only = new std::set<std::shared_ptr<graph> *>;
    return *only;
}
std::shared_ptr<graph> graph_of(void *handle) {
    auto *one = static_cast<std::shared_ptr<graph> *>(handle);
    return graphs().count(one) ? *one : nullptr;
}
void *handle_of(std::shared_ptr<graph> what) {
    auto *handle = new std::shared_ptr<graph>(std::move(what));
    graphs().insert(handle);
    return handle;
}
cudaError_t destroy(void *handle, const char *what) {
    if (!graph_of(handle)) return refuse(cudaErrorInvalidValue, "%s: no such graph", what);
    auto *one = static_cast<std::shared_ptr<graph> *>(handle);
    graphs().erase(one);
    delete one;
    return cudaSuccess;
}

/* Same kinds in the same order with the same edges: what an executable graph may be updated to. */
bool alike(const graph &a, const graph &b) {
    if (a.nodes.size() != b.nodes.size()) return false;
    for (size_t i = 0; i < a.nodes.size(); i++)
        if (a.nodes[i].kind != b.nodes[i].kind || a.nodes[i].after != b.nodes[i].after) return false;
    return true;
}

} // namespace

cudaError_t run_graph(const graph &what) {
    std::vector<int>  missing(what.nodes.size());
    std::vector<int>  ready;
    std::vector<bool> done(what.nodes.size());
    for (size_t n = what.nodes.size(); n > 0; n--) {
        bool outside = false;
        ready.clear();
        for (size_t i = 0; i < what.nodes.size(); i++) {
            bool may = !done[i];
            for (int before : what.nodes[i].after) may = may && done[(size_t)before];
            if (may && what.nodes[i].ready) may = what.nodes[i].ready(), outside = true;
            if (may) ready.push_back((int)i);
            if (may && what.nodes[i].after.empty() == false && ready.size() > 64) break; /* enough to choose from */
        }
        if (ready.empty() && outside) { /* all wait for somebody outside of this process */
            usleep(20);
            n++;
            continue;
        }
        int         chosen = ready[chance.below((uint32_t)ready.size())];
        cudaError_t error = what.nodes[(size_t)chosen].run();
        if (error != cudaSuccess) return error;
        done[(size_t)chosen] = true;
    }
    return cudaSuccess;
}

} // namespace weft_host

using namespace weft_host;

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    WEFT_HOST_ENTER();
    std::shared_ptr<stream> of = stream_of(handle);
    if (!of) return refuse(cudaErrorInvalidResourceHandle, "cudaStreamBeginCapture: no such stream");
    if (of == stream_of(nullptr)) return refuse(cudaErrorStreamCaptureUnsupported, "cudaStreamBeginCapture: the legacy stream cannot be captured");
    if (of->captured) return refuse(cudaErrorIllegalState, "cudaStreamBeginCapture: the stream is captured already");
    of->captured = std::make_shared<capture>();
    of->captured->made = std::make_shared<graph>();
    of->captured->origin = of.get();
    of->captured->mode = mode;
    of->captured->members = {of};
    of->frontier.clear();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *graph_out) {
    WEFT_HOST_ENTER();
    *graph_out = nullptr;
    std::shared_ptr<stream> of = stream_of(handle);
    if (!of || !of->captured) return refuse(cudaErrorIllegalState, "cudaStreamEndCapture: the stream is not captured");
    std::shared_ptr<capture> ended = of->captured;
    if (ended->origin != of.get()) return refuse(cudaErrorStreamCaptureUnmatched, "cudaStreamEndCapture: the capture began on another stream");
    /* Every node of a branch must come before the origin's end. */
    std::set<int>    joined;
    std::vector<int> waiting = of->frontier;
    while (!waiting.empty()) {
        int one = waiting.back();
        waiting.pop_back();
        if (!joined.insert(one).second) continue;
        for (int before : ended->made->nodes[(size_t)one].after) waiting.push_back(before);
    }
    bool complete = joined.size() == ended->made->nodes.size();
    for (auto &one : ended->members) one->captured = nullptr, one->frontier.clear();
    std::shared_ptr<graph> made = std::move(ended->made);
    ended->made = nullptr;
    if (ended->invalid) return refuse(cudaErrorStreamCaptureInvalidated, "cudaStreamEndCapture: the capture was broken before");
    if (!complete) return refuse(cudaErrorStreamCaptureUnjoined, "cudaStreamEndCapture: a branch was not joined");
    *graph_out = static_cast<cudaGraph_t>(handle_of(made));
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable_out, cudaGraph_t handle, unsigned long long) {
    WEFT_HOST_ENTER();
    cudaError_t error = refuse_in_capture("cudaGraphInstantiate");
    if (error != cudaSuccess) return error;
    std::shared_ptr<graph> one = graph_of(handle);
    if (!one) return refuse(cudaErrorInvalidValue, "cudaGraphInstantiate: no such graph");
    *executable_out = static_cast<cudaGraphExec_t>(handle_of(std::make_shared<graph>(*one)));
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable_out, cudaGraph_t handle, unsigned long long flags) {
    return cudaGraphInstantiate(executable_out, handle, flags);
}
cudaError_t cudaGraphExecUpdate(cudaGraphExec_t executable, cudaGraph_t handle, cudaGraphExecUpdateResultInfo *result_out) {
    WEFT_HOST_ENTER();
    std::shared_ptr<graph> to = graph_of(executable), from = graph_of(handle);
    if (!to || !from) return refuse(cudaErrorInvalidValue, "cudaGraphExecUpdate: no such graph");
    bool fits = alike(*to, *from);
    if (result_out) {
        *result_out = cudaGraphExecUpdateResultInfo();
        result_out->result = fits ? cudaGraphExecUpdateSuccess : cudaGraphExecUpdateErrorTopologyChanged;
    }
    if (!fits) return refuse(cudaErrorGraphExecUpdateFailure, "cudaGraphExecUpdate: the graphs differ");
    auto copy = std::make_shared<graph>(*from);
    *reinterpret_cast<std::shared_ptr<graph> *>(executable) = copy;
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t on) {
    WEFT_HOST_ENTER();
    std::shared_ptr<graph> one = graph_of(executable);
    if (!one) return refuse(cudaErrorInvalidValue, "cudaGraphLaunch: no such graph");
    return issue(on, "graph", [one] { return run_graph(*one); });
}
cudaError_t cudaGraphUpload(cudaGraphExec_t executable, cudaStream_t) {
    WEFT_HOST_ENTER();
    return graph_of(executable) ? cudaSuccess : refuse(cudaErrorInvalidValue, "cudaGraphUpload: no such graph");
}
cudaError_t cudaGraphGetNodes(cudaGraph_t handle, cudaGraphNode_t *nodes_out, size_t *count) {
    WEFT_HOST_ENTER();
    std::shared_ptr<graph> one = graph_of(handle);
    if (!one || nodes_out) return refuse(cudaErrorInvalidValue, "cudaGraphGetNodes: no such graph (and nodes are only counted here)");
    *count = one->nodes.size();
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t handle) {
    std::lock_guard<std::recursive_mutex> locked(lock);
    return destroy(handle, "cudaGraphDestroy");
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t handle) {
    std::lock_guard<std::recursive_mutex> locked(lock);
    return destroy(handle, "cudaGraphExecDestroy");
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *mode) {
    static cudaStreamCaptureMode kept = cudaStreamCaptureModeGlobal;
    std::swap(kept, *mode);
    return cudaSuccess;
}

} /* extern "C" */

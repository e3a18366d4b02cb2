/* Between the parts of the stand-ins: how a launch is run (block.cpp), memory (memory.cpp), streams, events and graphs (stream.cpp,
 * capture.cpp), and the calls about devices and kernels (runtime.cpp).
 *
 * One lock is held in every call: what the stand-ins keep is seen by one thread at a time, work included. */
#ifndef TESTS_CUDA_HOST_ENGINE_H
#define TESTS_CUDA_HOST_ENGINE_H

#include <cuda_runtime.h>

#include <stddef.h>
#include <stdint.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "cuda_host/control.h"

namespace weft_host {

/* A generator of our own: what happens must depend on the seed alone. */
struct random {
    uint64_t state;
    uint64_t next() {
        state += UINT64_C(0x9e3779b97f4a7c15);
        uint64_t z = state;
        z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
        return z ^ z >> 31;
    }
    uint32_t below(uint32_t n) { return (uint32_t)(next() % n); }
};

struct launch {
    std::string           name;
    dim3                  grid, block;
    size_t                shared_bytes;
    std::function<void()> kernel; /* one thread of it */
    bool                  looks_for_races;
};
/* Runs all blocks. False, with the reason, where the kernel failed. */
bool run_launch(const launch &what, random &chance, std::string &why);

/* --- state that all parts share --- */
extern std::recursive_mutex    lock;
extern wefti_cuda_host_options options;
extern random                  chance;
extern cudaError_t             broken; /* what every call gives after a kernel failed */
extern int64_t                 launches;

/* Remembers an error for cudaGetLastError, and why, for wefti_cuda_host_report. */
cudaError_t refuse(cudaError_t error, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Takes the lock; gives the sticky error if there is one. */
#define WEFT_HOST_ENTER()                                                                                                            \
    std::lock_guard<std::recursive_mutex> locked(weft_host::lock);                                                                   \
    if (weft_host::broken != cudaSuccess) return weft_host::broken

/* --- runtime.cpp --- */
void forget_launches(); /* of each kernel: its first ones are looked at most closely */

/* --- driver.cpp --- */
void forget_exports();

/* --- memory.cpp --- */
enum memory_kind { PAGEABLE, DEVICE, PINNED, MANAGED };
memory_kind kind_of(const void *at);
/* Whether [at, at + bytes) lies in one allocation that kernels may use. */
bool device_may_use(const void *at, size_t bytes);
bool in_device_memory(const void *at, size_t bytes);
int64_t allocations();
cudaError_t release_device(void *memory);

/* --- stream.cpp --- */
typedef std::function<cudaError_t()> work;
struct graph;
struct capture;
struct stream;
/* A point of a stream: all that was issued before it. */
typedef std::pair<std::shared_ptr<stream>, uint64_t> point;

struct operation {
    work                  run;
    std::vector<point>    after;
    std::function<bool()> ready; /* empty: at once; else it waits for something outside of this process, too */
};
struct stream {
    bool                     blocking; /* waits for the legacy stream, and is waited for */
    std::deque<operation>    queue;
    uint64_t                 issued, done;
    std::shared_ptr<capture> captured; /* of which it is a part now */
    std::vector<int>         frontier; /* nodes after which its next one comes */
};

/* What a kernel, copy, fill or host function is in a graph. */
struct node {
    std::string           kind;
    work                  run;
    std::vector<int>      after;
    std::function<bool()> ready;
};
struct graph {
    std::vector<node> nodes;
};
struct capture {
    std::shared_ptr<graph>               made;
    stream                              *origin;
    cudaStreamCaptureMode                mode;
    bool                                 invalid;
    std::vector<std::shared_ptr<stream>> members;
};

std::shared_ptr<stream> stream_of(cudaStream_t handle); /* empty: no such stream */
/* Issues work, or adds it to the graph that the stream is capturing. */
cudaError_t issue(cudaStream_t handle, const char *kind, work run, std::function<bool()> ready = {});
/* Waits for all work of all streams. */
cudaError_t finish_all();
cudaError_t finish(const point &until);
/* What calls that may not happen beside a capture give; `what` names the call. */
cudaError_t refuse_in_capture(const char *what);
/* Runs the nodes in a random order that their edges allow. */
cudaError_t run_graph(const graph &what);

} // namespace weft_host

#endif

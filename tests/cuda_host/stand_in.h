/* What the stand-ins of libraries (libcublasLt.so.13 and its like, shared objects that the device loads as it loads NVIDIA's) call in the
 * program: work goes into streams and graphs as the runtime's own does. */
#ifndef TESTS_CUDA_HOST_STAND_IN_H
#define TESTS_CUDA_HOST_STAND_IN_H

#include <cuda_runtime_api.h>

#include <functional>

/* Issues `run` on the stream; `what` names it in graphs and reports. It runs in stream order, perhaps much later. */
cudaError_t wefti_stand_in_issue(cudaStream_t stream, const char *what, std::function<cudaError_t()> run);
/* The same where what it waits for comes from elsewhere: it runs once `ready` says so, which is asked whenever its turn has come. */
cudaError_t wefti_stand_in_issue_when(cudaStream_t stream, const char *what, std::function<bool()> ready, std::function<cudaError_t()> run);
/* Whether [at, at + bytes) is memory that the device may use. */
bool wefti_stand_in_may_use(const void *at, size_t bytes);
/* For wefti_cuda_host_report: why something was refused. */
cudaError_t wefti_stand_in_refuse(cudaError_t error, const char *why);

#endif

/* The NCCL engine from inside: what its files share. */
#ifndef WEFTI_CUDA_NCCL_INSIDE_H
#define WEFTI_CUDA_NCCL_INSIDE_H

#include "core/iface/collective.h"
#include "cuda/inside.h"
#include "cuda/nccl_library.h"

typedef enum nccl_state {
    NCCL_FREE,
    NCCL_WAITING, /* for NCCL to take it */
    NCCL_TAKEN,   /* NCCL is still making connections for it: it may not be on the stream yet */
    NCCL_RUNNING, /* on the stream */
    NCCL_ENDED
} nccl_state;

typedef struct nccl_operation {
    wefti_collective       base;
    struct nccl_operation *next; /* in flight, in the order of starts; or free */
    wefti_collective_call  call;
    nccl_state             state;
    bool                   joined;   /* nobody has the handle any more */
    bool                   begun;    /* what it was to come after is done, since begun_ns */
    uint64_t               sequence, begun_ns;
    weft_status            status;   /* ENDED */
    cudaEvent_t            before, after; /* what was there at its start; its end on the group's stream */
} nccl_operation;

typedef struct nccl_group {
    wefti_group                      base;
    wefti_cuda                      *cuda;
    const wefti_cuda_nccl_functions *nccl;
    ncclComm_t                       comm;   /* NULL after it was aborted */
    cudaStream_t                     stream;
    const wefti_host                *host;
    uint64_t                         timeout_ns, error_since_ns; /* since when NCCL has said that something is wrong; 0: it has not */
    ncclResult_t                     error;  /* of a call that NCCL did not take */
    uint16_t                         id;
    bool                             own_fault;
    int32_t                          n_operations;
    nccl_operation                  *operations; /* [n_operations] */
    nccl_operation                  *first, *last, *unused;
    void                            *token; /* device memory: what barriers send */
    wefti_cuda_watcher               watcher;
} nccl_group;

static inline nccl_group *nccl_group_of(const wefti_group *group) { return (nccl_group *)(uintptr_t)group; }

/* What tokens measure. */
enum { NCCL_TOKEN_BYTES = 256 };

/* nccl_calls.c: whether the engine does the call, and giving it to NCCL on the group's stream; ncclInProgress is no error. */
WEFT_MUST_CHECK weft_status wefti_nccl_supports(const wefti_group *group, const wefti_collective_call *call);
ncclResult_t wefti_nccl_enqueue(nccl_group *group, const wefti_collective_call *call);
/* "allreduce of 1000 f32", for messages. */
const char *wefti_nccl_words(const nccl_operation *operation, char text[160]);

/* nccl_open.c */
weft_status wefti_nccl_open(const wefti_group_options *options, wefti_group **group_out);
void        wefti_nccl_close(wefti_group *group);
/* Ends the communicator, at once where it is not `orderly`; waits a few seconds at most, and leaves to itself what does not end by then. */
void wefti_nccl_end(nccl_group *group, bool orderly);

#endif

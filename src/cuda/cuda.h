/* The CUDA device from inside: what a kernel is, how the device chooses one, and the device that kernels see.
 *
 * The house is as the CPU device's. For each op the device asks the kernels of its row in table.c in turn; the first that accepts the
 * call computes it, the last of every row takes whatever op.h allows. The choice is made in query and again in compile, from the same
 * facts. A kernel only *enqueues* work on the stream that it is given: it never synchronises, allocates or frees there, so a whole
 * program can be captured as a CUDA graph and replayed. What a kernel needs beforehand (descriptors, algorithms, modules) it makes in
 * `prepare`, at compile time.
 *
 * C and CUDA C++ read this header; everything in it has C linkage. Kernel sources include cuda/kernel.cuh on top of it. */
#ifndef WEFTI_CUDA_H
#define WEFTI_CUDA_H

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdint.h>

/* The public headers have C++ of their own, and come before the inner ones, which are plain C. */
#include "weft/dtype.h"
#include "weft/shape.h"
#include "weft/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#include "core/iface/device.h"
#include "core/iface/rule.h"
#include "core/tensor/operand.h"

/* --- opening --- */

typedef struct wefti_cuda_options {
    int32_t ordinal;       /* of the device among those that the driver shows; -1: local_rank modulo their count */
    int32_t local_rank;    /* among the processes of this host */
    bool    tf32;          /* f32 products may round their factors to tf32 (10 bits); also WEFT_CUDA_TF32=1 */
    bool    no_capture;    /* launch call by call, never as a graph; also WEFT_CUDA_CAPTURE=0. For debugging. */
    bool    any_order;     /* sums may be added up in whatever order is the fastest, so that runs differ in their last bits; also
                              WEFT_CUDA_DETERMINISTIC=0. Used by cuDNN's gradient of attention */
    bool    no_fusion_compiler; /* FUSED calls by the precompiled interpreter, not by NVRTC; also WEFT_CUDA_NVRTC=0 */
} wefti_cuda_options;

/* A CUDA device; release it through its vtable. WEFT_E_UNSUPPORTED where there is no driver, it is too old (both versions are named),
 * or no such device; WEFT_E_NO_MEMORY, WEFT_E_DEVICE. A program is launched by one thread at a time, and all of a device's programs from
 * one thread at a time: they share one stream, in whose order everything happens. */
WEFT_MUST_CHECK weft_status wefti_cuda_create(const wefti_cuda_options *options, wefti_device **device_out);
/* Whether this process sees a GPU at all: what device "auto" goes by. */
bool wefti_cuda_is_there(void);
/* "NVIDIA H200 (sm_90, 132 multiprocessors, 139.8 GiB)"; owned by the device. */
const char *wefti_cuda_describe(const wefti_device *device);
/* Tells GPUs apart, 16 bytes. */
void wefti_cuda_uuid(const wefti_device *device, uint8_t uuid_out[16]);
/* Bytes that the device's memory holds for its users now, and the most that it ever held. Exact: what was asked for, rounded to 256. */
void wefti_cuda_memory(const wefti_device *device, int64_t *held_out, int64_t *peak_out);

/* --- the device that kernels see --- */

typedef struct wefti_cuda wefti_cuda;
struct wefti_cuda {
    wefti_device base; /* first */
    int32_t      ordinal, major, minor; /* compute capability */
    int32_t      multiprocessors, shared_most; /* bytes of shared memory that one block may have, opted in */
    bool         tf32, capture, nvrtc, any_order, channels_last; /* the last one: 16-bit convolutions want images so */
    cudaStream_t stream;
    weft_status  broken; /* WEFT_OK; else what every later call gives: a kernel fault cannot be mended in this process */
    struct wefti_cuda_blas *blas; /* cuBLASLt, opened on first use; NULL: not there (blas.c) */
    struct wefti_cuda_dnn  *dnn;  /* cuDNN, likewise (dnn.c) */
    struct wefti_cuda_nvrtc *compiler; /* NVRTC and its cache (nvrtc.c) */
    struct wefti_cuda_inside *inside; /* memory, staging: device.c's own */
};
static inline wefti_cuda *wefti_cuda_of(const wefti_device *device) { return (wefti_cuda *)(uintptr_t)device; }

/* Turns a CUDA error into a status with a message that names `what`; marks the device broken where the error is one that stays
 * (an illegal address, a failed assertion, a lost device). cudaSuccess gives WEFT_OK. */
WEFT_MUST_CHECK weft_status wefti_cuda_check(wefti_cuda *cuda, cudaError_t error, const char *what);

/* --- kernels --- */

/* One execution of a call: enqueue it on `stream`. */
typedef struct wefti_cuda_run {
    wefti_cuda        *cuda;
    const wefti_call  *call;
    const void *const *inputs;  /* [n_inputs] element 0 of each operand, in device memory */
    void *const       *outputs; /* [n_outputs] */
    void              *scratch; /* device memory, aligned to 256 bytes */
    void              *prepared; /* host memory, as prepare left it */
    cudaStream_t       stream;
} wefti_cuda_run;

typedef struct wefti_cuda_kernel {
    const char *name; /* for profiles, descriptions and tests */
    /* Whether this kernel takes the call; NULL: every call of its op. Looks at what query may look at (device.h) and at the device's
     * capabilities. For elementwise ops it looks at ops and dtypes alone: a graph may be cut and fused anywhere, and must round alike. */
    bool (*accepts)(const wefti_cuda *cuda, const wefti_call *call);
    /* Bytes of scratch in device memory; NULL: none. Where a library's workspace depends on an algorithm chosen by measurement, ask for a
     * bound. */
    int64_t (*scratch)(const wefti_cuda *cuda, const wefti_call *call);
    /* Bytes of host memory that a compiled call keeps, and how they are filled, once, at compile. They start zeroed, aligned to 64.
     * `unprepare` frees what prepare made beyond those bytes. NULL: none. */
    size_t (*prepared_bytes)(const wefti_call *call);
    weft_status (*prepare)(wefti_cuda *cuda, const wefti_call *call, void *prepared);
    void (*unprepare)(wefti_cuda *cuda, void *prepared);
    /* Enqueues. Outputs are never empty (such calls are dropped at compile, CUSTOM's aside); inputs may be. */
    weft_status (*run)(const wefti_cuda_run *run);
    /* Calls that follow one another and are done together, by few launches: whether `next`, a call of the kernel `with` (NULL: of this one), may be
     * done with the `n` before it, none of which it disturbs; and doing them. NULL: each by itself. */
    const struct wefti_cuda_kernel *with;
    bool (*joins)(const wefti_cuda *cuda, const wefti_call *const *calls, int32_t n, const wefti_call *next);
    weft_status (*run_all)(const wefti_cuda_run *runs, int32_t n);
    /* What else those have to have ready, once, after each was prepared; `prepared` is the first one's. NULL: nothing. */
    weft_status (*prepare_all)(wefti_cuda *cuda, const wefti_call *call, void *prepared);
    bool eager; /* cannot be captured: it waits for the stream, or calls the application's functions */
} wefti_cuda_kernel;

/* Scratch lies at a multiple of ALIGNMENT in a piece that is larger by SLACK, since a plan's memory is aligned to cache lines only. */
enum { WEFTI_CUDA_SCRATCH_ALIGNMENT = 256, WEFTI_CUDA_SCRATCH_SLACK = WEFTI_CUDA_SCRATCH_ALIGNMENT - 64 };
enum { WEFTI_CUDA_CHOICES = 4 };
/* By op, in order of preference, NULL where none; table.c. */
extern const wefti_cuda_kernel *const wefti_cuda_kernels[WEFT_OP_COUNT][WEFTI_CUDA_CHOICES];
/* The first of them that accepts the call; NULL: none. program.c */
const wefti_cuda_kernel *wefti_cuda_choose(const wefti_cuda *cuda, const wefti_call *call);

/* The kernels, one family a file. */
/* elementwise.cu: one op, or a FUSED program without reduced outputs, interpreted element by element; fused.c: the same by NVRTC */
extern const wefti_cuda_kernel wefti_cuda_elementwise, wefti_cuda_elementwise_compiled, wefti_cuda_fused,
    wefti_cuda_fused_compiled;
/* reduce.cu: SUM, MEAN, MAX, MIN; extreme.cu: what else is about reduced elements */
/* squares.cu: programs that sum a tensor's squares, for norms of many */
extern const wefti_cuda_kernel wefti_cuda_squares;
extern const wefti_cuda_kernel wefti_cuda_reduce, wefti_cuda_argmax, wefti_cuda_extent, wefti_cuda_mean_backward;
/* move.cu: FULL, ARANGE, RANDOM; strided copies; CONCAT, PAD */
extern const wefti_cuda_kernel wefti_cuda_fill, wefti_cuda_random, wefti_cuda_view, wefti_cuda_concat, wefti_cuda_pad;
/* pick.cu */
extern const wefti_cuda_kernel wefti_cuda_gather, wefti_cuda_scatter_add;
/* matmul.cu: tiles of our own, for any dtype and stride; blas.c: cuBLASLt */
extern const wefti_cuda_kernel wefti_cuda_matmul, wefti_cuda_matmul_blas;
/* blas_epilogue.c: products with what follows them */
extern const wefti_cuda_kernel wefti_cuda_fused_matmul;
const char *wefti_cuda_why_no_epilogue(const wefti_cuda *cuda, const wefti_call *call); /* of a call that it does not accept */
void wefti_cuda_blas_close(wefti_cuda *cuda); /* when the device is released, after its programs */
/* fp8.cu: 8-bit floats under a scale; blas_fp8.c: their products by cuBLASLt, why it does not take one, and the same by tiles of our own (matmul.cu) */
extern const wefti_cuda_kernel wefti_cuda_fp8_cast, wefti_cuda_fp8_matmul;
WEFT_MUST_CHECK weft_status wefti_cuda_fp8_refuse(const wefti_cuda *cuda, const wefti_call *call);
WEFT_MUST_CHECK weft_status wefti_cuda_fp8_tiles(const wefti_cuda_run *run);
/* expert.cu: products of rows with the matrix that each chose, and places among equal choices */
extern const wefti_cuda_kernel wefti_cuda_occurrence, wefti_cuda_expert_matmul, wefti_cuda_expert_matmul_backward_weight;
/* conv.cu: direct, for anything; dnn_conv.c: cuDNN */
extern const wefti_cuda_kernel wefti_cuda_conv2d, wefti_cuda_conv2d_backward_input, wefti_cuda_conv2d_backward_weight, wefti_cuda_conv2d_dnn,
    wefti_cuda_conv2d_backward_input_dnn, wefti_cuda_conv2d_backward_weight_dnn;
bool wefti_cuda_dnn_is_there(void);
void wefti_cuda_dnn_close(wefti_cuda *cuda); /* when the device is released, after its programs */
/* pool.cu */
extern const wefti_cuda_kernel wefti_cuda_max_pool2d, wefti_cuda_max_pool2d_backward, wefti_cuda_max_pool2d_take, wefti_cuda_avg_pool2d,
    wefti_cuda_avg_pool2d_backward;
/* rows.cu */
extern const wefti_cuda_kernel wefti_cuda_normalize, wefti_cuda_normalize_backward, wefti_cuda_softmax, wefti_cuda_softmax_backward,
    wefti_cuda_rotary; /* softmax ones: LOG_SOFTMAX too */
/* loss.cu */
extern const wefti_cuda_kernel wefti_cuda_cross_entropy, wefti_cuda_cross_entropy_backward;
/* attention.cu: memory-linear, for anything; dnn_attention.c: cuDNN's flash attention */
extern const wefti_cuda_kernel wefti_cuda_attention, wefti_cuda_attention_backward, wefti_cuda_attention_dnn, wefti_cuda_attention_backward_dnn;
/* effect.cu: ASSIGN, UPDATE; custom.c: the application's functions, on the host */
extern const wefti_cuda_kernel wefti_cuda_assign, wefti_cuda_update, wefti_cuda_custom;

/* --- operands as kernels take them by value --- */

/* A strided view with its axes merged where they can be: rank 1 is contiguous or evenly spaced. dim and stride in elements. */
typedef struct wefti_cuda_view_of {
    int32_t rank;
    int64_t dim[WEFT_MAX_RANK], stride[WEFT_MAX_RANK];
} wefti_cuda_view_of;
/* The operand over `space`, to which it broadcasts. Axes of size 1 go; neighbours that lie in one piece in all of the `n` operands
 * merge. view_out[i] all have the same rank (at least 1) and dims. view.c */
void wefti_cuda_views(weft_shape space, const wefti_operand *const *operands, int32_t n, wefti_cuda_view_of *view_out);

#ifdef __cplusplus
}
#endif
#endif

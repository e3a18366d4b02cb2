/* The device contract: a place to compute.
 *
 * A device is handed a *segment*, a run of calls with their operands, and gives back a *program* to launch; it never
 * sees a graph. Whatever can fail for reasons of shape, dtype or memory fails in `query` or `compile`. A launch does not
 * allocate; on a device with host memory it returns when the work is done, on others it may return before: launches, writes and reads
 * take effect in the order of the calls. */
#ifndef WEFTI_DEVICE_H
#define WEFTI_DEVICE_H

#include "core/iface/foreign.h"
#include "core/iface/op.h"

typedef struct wefti_device  wefti_device;
typedef struct wefti_program wefti_program;

/* One operation with its operands.
 * Preconditions: inputs may be any strided views (broadcast ones too); outputs are contiguous (or those of a CONV or POOL call dense
 * with channels last, as [N, H, W, C] seen as [N, C, H, W], on a device that asked for it) and overlap neither inputs nor
 * each other, except that (a) an output of an elementwise or FUSED call may be exactly an input's memory, with the same
 * strides and element size, where that output is whole (in place), and (b) ASSIGN and UPDATE write input 0 (UPDATE its
 * states too) in place: their output 0 is input 0's memory. RESHAPE, PERMUTE, SLICE, EXPAND reach a device only where the
 * planner could not make them views: they then copy. The scratch range is the call's alone while it runs. */
typedef struct wefti_call {
    weft_op              op;
    const wefti_attrs   *attrs; /* lives as long as the program */
    int32_t              n_inputs, n_outputs;
    const wefti_operand *inputs, *outputs;
    int32_t              scratch_buffer; /* where scratch_bytes > 0 */
    int64_t              scratch_offset, scratch_bytes;
    const char          *name; /* for errors and profiles; lives as long as the program */
} wefti_call;

typedef struct wefti_segment {
    const wefti_call *calls; /* in execution order; the device copies what it keeps, attrs and names apart */
    int32_t           n_calls;
    int32_t           n_buffers;
} wefti_segment;

/* One launch. Buffer base addresses are aligned to 64 bytes. */
typedef struct wefti_launch {
    void *const *buffers; /* [n_buffers], in this device's memory */
    /* May be NULL. Called by the launching thread between calls, and between the parts of long ones where that is cheap,
     * so that wires progress while a segment computes; it never blocks. */
    void (*between)(void *context);
    void     *context;
    uint64_t *profile_ns; /* [n_calls] durations, or NULL */
} wefti_launch;

/* A copy from device to host memory. */
typedef struct wefti_read {
    void       *host_memory;
    const void *device_memory;
    size_t      size_bytes;
} wefti_read;

typedef struct wefti_device_vtable {
    const char *kind;             /* "cpu", "cuda" */
    bool        host_memory;      /* the host may read and write this device's memory */
    bool        fuses_reductions; /* takes FUSED calls with reduced outputs */
    bool        fuses_products;   /* takes some FUSED_MATMUL calls: query says which */
    bool        fuses_rows;       /* takes FUSED calls that normalise rows; implies fuses_reductions */
    bool        narrow_pools;     /* takes MAX_POOL2D, its gradient and its TAKE with places in bytes (op.h) */
    bool        joins_calls;      /* does small calls of one kind that follow one another in few launches: plans put such side by side */
    bool        attention_by_rows; /* takes ATTENTION and its gradient with that attribute (op.h) */
    void (*release)(wefti_device *device);
    /* Memory of the device, aligned to at least 64 bytes, contents undefined. */
    weft_status (*allocate)(wefti_device *device, size_t size_bytes, const char *what, void **memory_out);
    void (*deallocate)(wefti_device *device, void *memory, size_t size_bytes);
    /* Blocking copies between host and device memory. */
    weft_status (*write)(wefti_device *device, void *device_memory, const void *host_memory, size_t size_bytes);
    weft_status (*read)(wefti_device *device, void *host_memory, const void *device_memory, size_t size_bytes);
    /* Several reads with one wait. NULL: one by one. */
    weft_status (*read_all)(wefti_device *device, const wefti_read *reads, int32_t n_reads);
    /* Whether the device can compute the call, and the scratch bytes that it wants. Pure; looks at everything but buffer
     * numbers, offsets and scratch, so the planner may ask before memory is laid out. WEFT_E_UNSUPPORTED says why not. */
    weft_status (*query)(wefti_device *device, const wefti_call *call, int64_t *scratch_bytes_out);
    /* Whether the device would rather have the outputs of a CONV or POOL call with channels last, and, of a CONV call, images and kernels that
     * it reads. NULL: never. Looks at what query looks at, but for strides. */
    bool (*channels_last)(wefti_device *device, const wefti_call *call);
    weft_status (*compile)(wefti_device *device, const wefti_segment *segment, wefti_program **program_out);
    void (*release_program)(wefti_program *program);
    weft_status (*launch)(wefti_program *program, const wefti_launch *launch);
    /* The reduction that collectives call on this device's memory: the contract of wefti_reducer. The context is the device.
     * Callable from any thread. */
    weft_status (*reduce)(void *device, void *dst, const void *const *sources, int32_t source_count, size_t count,
                          weft_dtype dtype, wefti_reduce_op op, int32_t divisor);
    int32_t (*threads)(wefti_device *device); /* threads that compute, for reports */

    /* Copies beside the computing, for what collectives send and receive; only on devices without host memory, NULL on others. They keep
     * their order among themselves, and nobody waits for them but who asks. Host memory that was pinned is quicker; `pin` may do
     * nothing, and `unpin` waits for copies that use it. */
    void (*pin)(wefti_device *device, void *host_memory, size_t size_bytes);
    void (*unpin)(wefti_device *device, void *host_memory, size_t size_bytes);
    /* Begins once all that was launched before is done. The ticket is for copy_test. */
    weft_status (*copy_out)(wefti_device *device, void *host_memory, const void *device_memory, size_t size_bytes, uint64_t *ticket_out);
    /* WEFT_E_AGAIN while the copy is on its way. */
    weft_status (*copy_test)(wefti_device *device, uint64_t ticket);
    /* Begins once the copies before it are over: what computes must not use that memory any more. */
    weft_status (*copy_in)(wefti_device *device, void *device_memory, const void *host_memory, size_t size_bytes);
    /* What is launched from now on begins once all copies so far are over. */
    weft_status (*copy_join)(wefti_device *device);
    /* How wires come to the device's memory; false, or a NULL slot: not at all, or as to all of the host's. */
    bool (*foreign)(wefti_device *device, wefti_foreign *foreign_out);
} wefti_device_vtable;

/* Implementations embed this first. */
struct wefti_device {
    const wefti_device_vtable *vtable;
};

#endif

/* The device contract: a place to compute.
 *
 * A device is handed a *segment*, a run of calls with their operands, and gives back a *program* to launch; it never
 * sees a graph. Whatever can fail for reasons of shape, dtype or memory fails in `query` or `compile`. A launch does not
 * allocate; on a device with host memory it returns when the work is done. */
#ifndef WEFTI_DEVICE_H
#define WEFTI_DEVICE_H

#include "core/iface/op.h"

typedef struct wefti_device  wefti_device;
typedef struct wefti_program wefti_program;

/* One operation with its operands.
 * Preconditions: inputs may be any strided views (broadcast ones too); outputs are contiguous and overlap neither inputs nor
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

typedef struct wefti_device_vtable {
    const char *kind;             /* "cpu", "cuda" */
    bool        host_memory;      /* the host may read and write this device's memory */
    bool        fuses_reductions; /* takes FUSED calls with reduced outputs */
    void (*release)(wefti_device *device);
    /* Memory of the device, aligned to at least 64 bytes, contents undefined. */
    weft_status (*allocate)(wefti_device *device, size_t size_bytes, const char *what, void **memory_out);
    void (*deallocate)(wefti_device *device, void *memory, size_t size_bytes);
    /* Blocking copies between host and device memory. */
    weft_status (*write)(wefti_device *device, void *device_memory, const void *host_memory, size_t size_bytes);
    weft_status (*read)(wefti_device *device, void *host_memory, const void *device_memory, size_t size_bytes);
    /* Whether the device can compute the call, and the scratch bytes that it wants. Pure; looks at everything but buffer
     * numbers, offsets and scratch, so the planner may ask before memory is laid out. WEFT_E_UNSUPPORTED says why not. */
    weft_status (*query)(wefti_device *device, const wefti_call *call, int64_t *scratch_bytes_out);
    weft_status (*compile)(wefti_device *device, const wefti_segment *segment, wefti_program **program_out);
    void (*release_program)(wefti_program *program);
    weft_status (*launch)(wefti_program *program, const wefti_launch *launch);
    /* The reduction that collectives call on this device's memory: the contract of wefti_reducer. The context is the device.
     * Callable from any thread. */
    weft_status (*reduce)(void *device, void *dst, const void *const *sources, int32_t source_count, size_t count,
                          weft_dtype dtype, wefti_reduce_op op, int32_t divisor);
    int32_t (*threads)(wefti_device *device); /* threads that compute, for reports */
} wefti_device_vtable;

/* Implementations embed this first. */
struct wefti_device {
    const wefti_device_vtable *vtable;
};

#endif

/* Custom ops: an operation written by the application, with its shape rule, forward and backward functions. */
#ifndef WEFT_CUSTOM_H
#define WEFT_CUSTOM_H

#include <stdbool.h>
#include <stdint.h>

#include "weft/dtype.h"
#include "weft/shape.h"
#include "weft/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define WEFT_CUSTOM_MAX_INPUTS 16
#define WEFT_CUSTOM_MAX_OUTPUTS 4

/* dtype and shape of an input or output, while the shape rule runs. */
typedef struct weft_custom_type {
    weft_dtype dtype;
    weft_shape shape;
} weft_custom_type;

/* An input or output while the op computes: contiguous, row-major host memory. */
typedef struct weft_custom_data {
    weft_dtype dtype;
    weft_shape shape;
    void      *data;
} weft_custom_data;

/* A custom operation. Its functions must be pure (same inputs, same outputs) and thread-safe, and may not call into
 * Weft. `options` points at the bytes that were given when the op was applied, copied into the graph. A status other
 * than WEFT_OK from shape poisons the result; from forward or backward it fails the step, naming the op. */
typedef struct weft_custom_op {
    const char *name; /* copied */
    int32_t     n_inputs, n_outputs; /* 0 .. WEFT_CUSTOM_MAX_INPUTS; 1 .. WEFT_CUSTOM_MAX_OUTPUTS */
    /* dtype and shape of every output. */
    weft_status (*shape)(const weft_custom_type *inputs, const void *options, weft_custom_type *outputs_out);
    /* Computes every output. */
    weft_status (*forward)(const weft_custom_data *inputs, const void *options, weft_custom_data *outputs_out);
    /* Gradients of the floating inputs, shaped as they are; they start undefined and must be filled, all of them, whether or
     * not anybody reads them. `input_gradients_out[i].data` is NULL where input i is not floating. NULL: the op has no gradient. */
    weft_status (*backward)(const weft_custom_data *inputs, const weft_custom_data *outputs,
                            const weft_custom_data *output_gradients, const void *options,
                            weft_custom_data *input_gradients_out);
    /* True where rows along axis 0 of every input and output are independent: the op may then be split over ranks along
     * that axis. False: its inputs are gathered and every rank computes it whole. */
    bool row_local;
} weft_custom_op;

#ifdef __cplusplus
}
#endif
#endif

/* Losses. A mean is over all elements (for cross-entropy: all rows that count) of the global batch, however many ranks
 * share it. Predictions and targets have one shape: they do not broadcast, so that [N, 1] against [N] is an error and
 * not a bug. Errors are the graph's (see weft/graph.h). Source: src/core/graph/losses.c. */
#ifndef WEFT_LOSS_H
#define WEFT_LOSS_H

#include "weft/graph.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum weft_reduction { WEFT_MEAN, WEFT_SUM, WEFT_NONE } weft_reduction;

typedef struct weft_cross_entropy_options {
    weft_reduction reduction;
    bool           ignore;    /* rows whose label is `ignored` do not count; a batch of none but these has the loss 0 */
    int64_t        ignored;
    double         smoothing; /* in [0, 1]: this much of the target is spread over all classes */
} weft_cross_entropy_options;
/* -log softmax(logits)[label] by row: logits [..., classes], label [...] of i32 or i64. The result is f32 (f64 for
 * f64): a scalar, or [...] with WEFT_NONE. A label out of range gives NaN. */
weft_tensor *weft_cross_entropy_with(weft_tensor *logits, weft_tensor *label,
                                     const weft_cross_entropy_options *options);

typedef struct weft_loss_options {
    weft_reduction reduction;
    double         positive_weight; /* binary cross-entropy: weight of the positive part; 0 means 1 */
    double         delta;           /* huber: where it turns linear; 0 means 1 */
} weft_loss_options;
/* (x - target)^2 */
weft_tensor *weft_mse_with(weft_tensor *x, weft_tensor *target, const weft_loss_options *options);
/* |x - target| */
weft_tensor *weft_mae_with(weft_tensor *x, weft_tensor *target, const weft_loss_options *options);
/* d = |x - target|: d^2/2 up to delta, delta*(d - delta/2) from there. */
weft_tensor *weft_huber_with(weft_tensor *x, weft_tensor *target, const weft_loss_options *options);
/* -(w*t*log sigmoid(x) + (1-t)*log(1 - sigmoid(x))), computed without overflow; t in [0, 1], of x's dtype. */
weft_tensor *weft_bce_with_logits_with(weft_tensor *x, weft_tensor *target, const weft_loss_options *options);

#ifdef __cplusplus
}
#else
#define weft_cross_entropy(logits, label, ...) \
    weft_cross_entropy_with(logits, label, &(weft_cross_entropy_options){__VA_ARGS__})
#define weft_mse(x, target, ...) weft_mse_with(x, target, &(weft_loss_options){__VA_ARGS__})
#define weft_mae(x, target, ...) weft_mae_with(x, target, &(weft_loss_options){__VA_ARGS__})
#define weft_huber(x, target, ...) weft_huber_with(x, target, &(weft_loss_options){__VA_ARGS__})
#define weft_bce_with_logits(x, target, ...) weft_bce_with_logits_with(x, target, &(weft_loss_options){__VA_ARGS__})
#endif
#endif

/* TensorBoard event files: scalars over steps, to be looked at with `tensorboard --logdir FOLDER`.
 *
 * Each scalar is written when it is added, so TensorBoard shows it at once. A writer belongs to one thread at a time; calls
 * block on the file system only. Format: TFRecord with masked CRC-32C, holding tensorflow.Event of event.proto. */
#ifndef WEFT_TENSORBOARD_H
#define WEFT_TENSORBOARD_H

#include <stdint.h>

#include "weft/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weft_tensorboard weft_tensorboard;

/* Begins an event file in `folder`, which is made where it is missing (its parent must be there). *writer_out gets one
 * reference, NULL on error. */
WEFT_MUST_CHECK weft_status weft_tensorboard_open(const char *folder, weft_tensorboard **writer_out);
/* Adds the value of `tag` (as in "loss/train") at a step, now. On error the record is dropped as a whole. */
WEFT_MUST_CHECK weft_status weft_tensorboard_scalar(weft_tensorboard *writer, const char *tag, int64_t step, double value);
/* NULL is allowed. */
void weft_tensorboard_release(weft_tensorboard *writer);

#ifdef __cplusplus
}
#endif
#endif

/* What ranks need that read one checkpoint together. */
#ifndef WEFTI_CHECKPOINT_H
#define WEFTI_CHECKPOINT_H

#include "core/base/base.h"
#include "weft/checkpoint.h"

/* Of the names, places and checksums of all arrays: who has the same one open reads the same values. 0: the file has no checksums, or not for all. */
uint64_t wefti_checkpoint_fingerprint(const weft_checkpoint *checkpoint);
/* weft_checkpoint_read of an array that another rank reads: checks that it is there as it should be, and counts it as read. */
WEFT_MUST_CHECK weft_status wefti_checkpoint_expect(weft_checkpoint *checkpoint, const char *name, weft_dtype dtype, weft_shape shape);

#endif

/* Writing a file so that it is there whole or not at all. */
#ifndef WEFTI_SINK_H
#define WEFTI_SINK_H

#include "core/base/base.h"

typedef struct wefti_sink wefti_sink;

/* Begins to write what shall become `path`. Until commit the bytes go to a hidden file beside it, which is locked while
 * it is written: a second writer of the same path is refused with WEFT_E_STATE, and what a killed writer left behind is
 * used again. A path that names something other than a regular file is refused; a symbolic link is followed. */
WEFT_MUST_CHECK weft_status wefti_sink_create(const char *path, wefti_sink **sink_out);
/* Behind what was appended before, through a buffer. */
WEFT_MUST_CHECK weft_status wefti_sink_append(wefti_sink *sink, const void *bytes, size_t count);
/* At an offset, straight to the file; appending goes on where it was. */
WEFT_MUST_CHECK weft_status wefti_sink_write_at(wefti_sink *sink, uint64_t offset, const void *bytes, size_t count);
/* Flushes, syncs, renames to the path and syncs the folder. Once this says WEFT_OK the file survives a power cut. */
WEFT_MUST_CHECK weft_status wefti_sink_commit(wefti_sink *sink);
/* Removes the hidden file unless it was committed. NULL is allowed. */
void wefti_sink_release(wefti_sink *sink);

#endif

/* Memory of a device as a wire sees it. Wires and devices know nothing of each other: the composition root hands this from the one to the other. */
#ifndef WEFTI_FOREIGN_H
#define WEFTI_FOREIGN_H

#include "core/base/base.h"

/* The device's functions; any thread may call them. */
typedef struct wefti_foreign {
    void *context;
    /* Whether [memory, memory + bytes) lies in one piece of the device's memory, and which: as it was allocated. Cheap. */
    bool (*find)(void *context, const void *memory, size_t bytes, void **base_out, size_t *bytes_out);
    /* A dma-buf of that memory, by which other devices reach it without a module in the kernel: a descriptor, which the caller closes, and where in
     * it `memory` begins. The memory stays there for whoever has registered it. WEFT_E_UNSUPPORTED, with why, where the device has none. */
    weft_status (*open_dmabuf)(void *context, const void *memory, size_t bytes, int *descriptor_out, uint64_t *offset_out);
    /* Copies between the device's memory and the host's, in either direction, and returns when that is done. Waits for nothing that computes. */
    weft_status (*copy)(void *context, void *to, const void *from, size_t bytes);
    /* What another device has written to this one's memory is seen by what is launched from now on. */
    weft_status (*arrived)(void *context);
    /* `lost` is told of memory before the device gives it back to the system; NULL: nobody is. One listener. */
    void (*listen)(void *context, void (*lost)(void *listener, const void *memory, size_t bytes), void *listener);
} wefti_foreign;

#endif

/* What a world is made of: only contracts, so that every room may look inside. Filled by src/runtime.c. */
#ifndef WEFTI_WORLD_H
#define WEFTI_WORLD_H

#include "core/iface/device.h"
#include "weft/world.h"

struct wefti_group; /* core/iface/collective.h */

struct weft_world {
    int32_t             rank, size;
    wefti_device       *device; /* owned */
    struct wefti_group *group;  /* all ranks; NULL where size is 1; owned by the transport */
    void               *transport;  /* src/runtime.c's */
    int64_t             timeout_ns;
    char                description[512];
};

#endif

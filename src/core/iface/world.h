/* What a world is made of: only contracts, so that every room may look inside. Filled by src/runtime.c. */
#ifndef WEFTI_WORLD_H
#define WEFTI_WORLD_H

#include "core/iface/device.h"
#include "core/iface/wire.h"
#include "weft/world.h"

struct wefti_group; /* core/iface/collective.h */
struct weft_group;  /* weft/collective.h */

/* Group ids there are: 0 is the group of all ranks that the world came with. */
enum { WEFTI_GROUP_IDS = 1024 };

/* How rooms that do not know the transport come to links of their own; src/runtime.c's. */
typedef struct wefti_world_links {
    const wefti_host *host;
    /* Another wire of the world's kind, connected to all of its ranks (with one rank: to itself), with faults of its own. Collective; blocks.
     * The caller closes it, before the world. `what` is for messages. */
    weft_status (*open_wire)(weft_world *world, const char *what, wefti_wire **wire_out);
    /* Everyone gives `bytes` and gets all, by rank. Collective; blocks. `what` is compared. */
    weft_status (*exchange)(weft_world *world, const char *what, const void *mine, size_t bytes, void *all_out);
} wefti_world_links;

struct weft_world {
    int32_t             rank, size;
    wefti_device       *device; /* owned */
    struct wefti_group *group;  /* all ranks; NULL where size is 1; owned by the transport */
    struct wefti_fault *fault;  /* what has happened to it; never NULL; the transport's */
    struct wefti_group *device_group; /* all ranks, for buffers in the device's memory; NULL where collectives go over `group` */
    char                device_group_text[256]; /* of a device without host memory: what its collectives go by, and why. "" else */
    char                device_wire_text[256]; /* how the wire comes to that device's memory; "" where the two have nothing to do with each other */
    void               *transport;  /* src/runtime.c's */
    const wefti_world_links *links; /* never NULL */
    const struct wefti_placer *placer; /* core/plan/plan.h: src/parallel's; NULL: graphs are not cut by places */
    struct weft_group  *groups;     /* that were made in it and not yet released; src/transport/groups.c's */
    int32_t             group_ids[WEFTI_GROUP_IDS]; /* how many of them had it; less than 0: that many, and the last has it yet */
    int64_t             timeout_ns;
    char                description[512];
};

#endif

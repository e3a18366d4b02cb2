/* For programs that also run on a device of its own memory: RUN_FAR=N puts one around the world's, with copies that take N looks. */
#ifndef TESTS_TRAIN_FAR_WORLD_H
#define TESTS_TRAIN_FAR_WORLD_H

#include <stdlib.h>

#include "common/far.h"
#include "core/iface/world.h"

static inline void far_world(weft_world *world) {
    const char *delay = getenv("RUN_FAR");
    if (delay) world->device = far_device(world->device, atoi(delay));
}

#endif

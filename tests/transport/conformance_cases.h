/* What the cases that every wire must pass have in common. */
#ifndef WEFT_TESTS_CONFORMANCE_CASES_H
#define WEFT_TESTS_CONFORMANCE_CASES_H

#include <stdlib.h>

#include "conformance.h"

#define TAG(n) (WEFTI_TAG_TEST | (uint64_t)(n))

/* Ranks that take no part in a case of two just wait at its end. */
static inline bool spectator(const rank_world *world) { return world->rank > 1; }

static inline void *take(rank_world *world, size_t bytes) {
    void *memory = malloc(bytes ? bytes : 1);
    CHECK(memory, "no memory for the test");
    return memory;
}

/* Waits until the peer's region is known here. */
wefti_wire_peer_region conformance_region(rank_world *world, int32_t peer, uint32_t id);

#endif

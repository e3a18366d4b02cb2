/* Which server has a row. One rule for workers and servers, so that a server can tell a key that is not its own. */
#ifndef WEFTI_SERVER_ROUTE_H
#define WEFTI_SERVER_ROUTE_H

#include "core/base/base.h"

/* The finaliser of MurmurHash3 (Appleby 2011), a bijection of 64 bits: keys that lie close together come to different servers. */
static inline uint64_t wefti_mix(uint64_t key) {
    key = (key ^ key >> 33) * UINT64_C(0xff51afd7ed558ccd);
    key = (key ^ key >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
    return key ^ key >> 33;
}
static inline int32_t wefti_route_hash(uint64_t key, int32_t servers) {
    return (int32_t)((wefti_mix(key) >> 32) * (uint64_t)servers >> 32);
}

/* The first of `rows` rows that is `server`'s, and of the next one's; the first servers have one row more where it does not come out even. */
static inline uint64_t wefti_route_begin(uint64_t rows, int32_t servers, int32_t server) {
    if (server == 0 || server == servers) return server ? rows : 0;
    uint64_t each = rows / (uint64_t)servers, more = rows % (uint64_t)servers, index = (uint64_t)server;
    return index * each + (index < more ? index : more);
}
static inline int32_t wefti_route_range(uint64_t key, uint64_t rows, int32_t servers) {
    uint64_t each = rows / (uint64_t)servers, more = rows % (uint64_t)servers, longer = more * (each + 1);
    return (int32_t)(key < longer ? key / (each + 1) : more + (key - longer) / each);
}

#endif

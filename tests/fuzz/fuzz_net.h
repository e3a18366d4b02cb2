/* What fuzz targets of the transport share: a host whose time and randomness are the same every time, and a socket on which bytes
 * have come. */
#ifndef TESTS_FUZZ_NET_H
#define TESTS_FUZZ_NET_H

#include <string.h>
#include <sys/socket.h>

#include "core/iface/host.h"
#include "fuzz.h"

static uint64_t fuzz_time_ns;

static inline uint64_t fuzz_now(void *context) {
    (void)context;
    return fuzz_time_ns += 1000;
}
static inline void fuzz_yield(void *context) { (void)context; }
static inline void fuzz_sleep(void *context, uint64_t duration_ns) {
    (void)context;
    fuzz_time_ns += duration_ns;
}
static inline weft_status fuzz_random(void *context, void *bytes, size_t size_bytes) {
    (void)context;
    memset(bytes, 42, size_bytes);
    return WEFT_OK;
}
static const wefti_host fuzz_host = {.now_ns = fuzz_now, .yield = fuzz_yield, .sleep = fuzz_sleep, .random = fuzz_random, .cores = 1};

/* Two ends; the bytes wait at [0], whose other end has then hung up if `ends`. */
static inline void fuzz_sockets(int sockets[2], const uint8_t *data, size_t size, int ends) {
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sockets) != 0) abort();
    if (size > 0 && send(sockets[1], data, size, MSG_NOSIGNAL) < 0) abort(); /* what is too long for it is cut off */
    if (ends) shutdown(sockets[1], SHUT_WR);
}

#endif

/* The host contract: time, waiting and randomness, the three things that code which waits may ask of the machine.
 *
 * Nothing that moves bytes or waits for a peer calls the clock, sleeps or draws random bytes on its own: it is handed
 * a host. The real one is wefti_host_system(); the simulator hands out one with virtual time and seeded bytes, and so
 * drives the very same objects. */
#ifndef WEFTI_HOST_H
#define WEFTI_HOST_H

#include "core/base/base.h"

typedef struct wefti_host {
    /* Nanoseconds of a clock that never goes back, from an arbitrary origin. Any thread; about 20 ns. */
    uint64_t (*now_ns)(void *context);
    /* Lets others run (sched_yield); returns soon. Any thread. */
    void (*yield)(void *context);
    /* Sleeps for about `duration_ns`, or shorter. Any thread. */
    void (*sleep)(void *context, uint64_t duration_ns);
    /* Fills `bytes` with `size_bytes` bytes fit for nonces. Any thread. WEFT_E_IO where the system has none. */
    weft_status (*random)(void *context, void *bytes, size_t size_bytes);
    void   *context;
    int32_t cores; /* cores that this process may use; >= 1. Waits spin only where no more ranks than cores share it */
    bool    wakes; /* yield and sleep end as soon as anything comes for this rank: one may sleep as long as there is time */
} wefti_host;

/* The machine itself. Static, never NULL; safe to use from any thread and after fork. */
const wefti_host *wefti_host_system(void);

#define WEFTI_MILLISECOND_NS UINT64_C(1000000)
#define WEFTI_SECOND_NS UINT64_C(1000000000)
/* A time that never comes; as a deadline: none. */
#define WEFTI_NEVER_NS UINT64_MAX

static inline uint64_t wefti_host_now(const wefti_host *host) { return host->now_ns(host->context); }

/* now + timeout, WEFTI_NEVER_NS where that overflows. */
static inline uint64_t wefti_deadline_after(uint64_t now_ns, uint64_t timeout_ns) {
    return timeout_ns > WEFTI_NEVER_NS - now_ns ? WEFTI_NEVER_NS : now_ns + timeout_ns;
}

#endif

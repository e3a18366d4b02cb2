/* The host that is the machine itself: the monotonic clock, sched_yield, nanosleep and getrandom.
 *
 * Cores are counted once: the affinity mask, cut by a cgroup's CPU quota where there is one, because a rank that spins
 * in a container of one core with two ranks starves the rank it waits for. Holds nothing; safe after fork. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <sys/random.h>
#include <time.h>

#include "core/iface/host.h"

static uint64_t system_now(void *context) {
    (void)context;
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * WEFTI_SECOND_NS + (uint64_t)time.tv_nsec;
}

static void system_yield(void *context) {
    (void)context;
    sched_yield();
}

static void system_sleep(void *context, uint64_t duration_ns) {
    (void)context;
    struct timespec time = {.tv_sec = (time_t)(duration_ns / WEFTI_SECOND_NS),
                            .tv_nsec = (long)(duration_ns % WEFTI_SECOND_NS)};
    nanosleep(&time, NULL);
}

static weft_status system_random(void *context, void *bytes, size_t size_bytes) {
    (void)context;
    uint8_t *at = bytes;
    while (size_bytes > 0) {
        ssize_t got = getrandom(at, size_bytes, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return wefti_fail_errno("the system gives no random bytes (getrandom)");
        at += got;
        size_bytes -= (size_t)got;
    }
    return WEFT_OK;
}

/* Whole cores of the cgroup's quota, or `cores` where there is none. */
static int32_t cores_within_quota(int32_t cores) {
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (!file) return cores;
    long long quota = 0, period = 0;
    int       fields = fscanf(file, "%lld %lld", &quota, &period); /* "max 100000" gives 0 fields */
    fclose(file);
    if (fields != 2 || quota <= 0 || period <= 0) return cores;
    long long whole = quota / period;
    return whole < 1 ? 1 : whole < cores ? (int32_t)whole : cores;
}

static wefti_host system_host = {system_now, system_yield, system_sleep, system_random, NULL, 1, false};

static void count_cores(void) {
    cpu_set_t set;
    int32_t   cores = 1;
    if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
    system_host.cores = cores_within_quota(cores < 1 ? 1 : cores);
}

const wefti_host *wefti_host_system(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, count_cores);
    return &system_host;
}

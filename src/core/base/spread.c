/* Long work of the host over its cores (spread.h). */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

#include "core/base/base.h"
#include "core/base/spread.h"

#define MOST_THREADS 64

typedef struct spread {
    wefti_spread_body body;
    void             *context;
    int64_t           chunks;
    _Atomic int64_t   next;
} spread;

int32_t wefti_cores(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores > 0 ? (int32_t)cores : 1;
}

static void *take_chunks(void *context) {
    spread *self = context;
    for (int64_t chunk; (chunk = atomic_fetch_add_explicit(&self->next, 1, memory_order_relaxed)) < self->chunks;) self->body(self->context, chunk);
    return NULL;
}

void wefti_spread(int64_t chunks, int32_t threads, wefti_spread_body body, void *context) {
    pthread_t started[MOST_THREADS];
    int32_t   count = 0, wanted = (int32_t)wefti_min_i64(wefti_min_i64(threads, MOST_THREADS), chunks) - 1;
    spread    self = {.body = body, .context = context, .chunks = chunks};
    sigset_t  all, before; /* the program's signal handlers run on the program's threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (count < wanted && pthread_create(&started[count], NULL, take_chunks, &self) == 0) count++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    take_chunks(&self);
    while (count > 0) pthread_join(started[--count], NULL);
}

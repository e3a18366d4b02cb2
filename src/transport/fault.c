/* The first fault of a world, as one process sees it.
 *
 * Four states: none, suspected, telling, and decided: a verdict that never changes. What one rank sees may be the consequence of what
 * another saw before it (a link broke because the peer left, for an earlier fault elsewhere), and two ranks may find different faults
 * at once. So one rank decides for all: where the hooks have somebody to ask, a suspicion and a fault that is raised are put to it, and
 * its verdict is waited for; only where no answer comes is the fault that was found here the verdict here. The rank that decides
 * gives a suspicion a grace time, in which news of an earlier fault may come. Meanwhile whoever asks also listens: on a machine whose
 * cores are all busy, the control thread may not run in time. The others are told before anybody here can see the verdict: a
 * program that sees it may end at once, and its own end must not be taken for the first fault.
 *
 * The state is one atomic, so that asking costs a load while all is well; everything else is under a lock, which the
 * hooks are called without. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

#include "transport/fault.h"

enum { FAULT_NONE, FAULT_SUSPECTED, FAULT_TELLING, FAULT_DECIDED };

struct wefti_fault {
    _Atomic int       state;
    _Atomic int32_t   rank; /* of the verdict */
    const wefti_host *host;
    pthread_mutex_t   lock;
    pthread_cond_t    told;
    wefti_fault_hooks hooks;
    weft_status       status;
    char              cause[256];
    int32_t           suspect;
    weft_status       suspect_status;
    uint64_t          suspect_until_ns;
    char              suspect_cause[256];
    size_t            name_stride;
    int32_t           name_count;
    const char       *_Atomic names; /* stored last */
};

weft_status wefti_fault_create(const wefti_host *host, wefti_fault **fault_out) {
    wefti_fault *fault = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *fault, "the fault state", &fault));
    fault->host = host ? host : wefti_host_system();
    fault->rank = -1;
    fault->suspect = -1;
    if (pthread_mutex_init(&fault->lock, NULL) != 0 || pthread_cond_init(&fault->told, NULL) != 0) {
        wefti_free(fault, sizeof *fault);
        return wefti_fail(WEFT_E_NO_MEMORY, "cannot create a lock for the fault state");
    }
    *fault_out = fault;
    return WEFT_OK;
}

void wefti_fault_release(wefti_fault *fault) {
    if (!fault) return;
    pthread_cond_destroy(&fault->told);
    pthread_mutex_destroy(&fault->lock);
    wefti_free(fault, sizeof *fault);
}

void wefti_fault_set_hooks(wefti_fault *fault, const wefti_fault_hooks *hooks) {
    pthread_mutex_lock(&fault->lock);
    while (atomic_load(&fault->state) == FAULT_TELLING) pthread_cond_wait(&fault->told, &fault->lock);
    fault->hooks = hooks ? *hooks : (wefti_fault_hooks){0};
    pthread_mutex_unlock(&fault->lock);
}

/* Under the lock, which it lets go of while it tells: makes the verdict unless there is one, or is about to be. */
static void decide(wefti_fault *fault, weft_status status, int32_t rank, const char *cause, bool tell) {
    if (atomic_load_explicit(&fault->state, memory_order_relaxed) >= FAULT_TELLING) return;
    fault->status = status;
    snprintf(fault->cause, sizeof fault->cause, "%s", cause ? cause : "");
    atomic_store_explicit(&fault->rank, rank, memory_order_relaxed);
    wefti_fault_hooks hooks = fault->hooks;
    if (tell && hooks.decided) {
        atomic_store_explicit(&fault->state, FAULT_TELLING, memory_order_release);
        pthread_mutex_unlock(&fault->lock);
        hooks.decided(hooks.context, status, rank, fault->cause);
        pthread_mutex_lock(&fault->lock);
    }
    atomic_store_explicit(&fault->state, FAULT_DECIDED, memory_order_release);
    pthread_cond_broadcast(&fault->told);
    wefti_log(WEFT_LOG_ERROR, "fault: %s, rank %d: %s", weft_status_name(status), (int)rank, fault->cause);
}

void wefti_fault_learn(wefti_fault *fault, weft_status status, int32_t rank, const char *cause) {
    pthread_mutex_lock(&fault->lock);
    decide(fault, status, rank, cause, false);
    pthread_mutex_unlock(&fault->lock);
}

/* Under the lock: what is to be the verdict once `wait_ns` have passed without news. */
static void keep(wefti_fault *fault, weft_status status, int32_t rank, const char *cause, uint64_t wait_ns) {
    fault->suspect = rank;
    fault->suspect_status = status;
    fault->suspect_until_ns = wefti_deadline_after(wefti_host_now(fault->host), wait_ns);
    snprintf(fault->suspect_cause, sizeof fault->suspect_cause, "%s", cause ? cause : "");
    atomic_store_explicit(&fault->state, FAULT_SUSPECTED, memory_order_release);
}

void wefti_fault_suspect(wefti_fault *fault, int32_t rank, const char *cause) {
    pthread_mutex_lock(&fault->lock);
    bool first = atomic_load_explicit(&fault->state, memory_order_relaxed) == FAULT_NONE;
    wefti_fault_hooks hooks = fault->hooks;
    if (first && hooks.grace_ns == 0)
        decide(fault, WEFT_E_PEER, rank, cause, true);
    else if (first)
        keep(fault, WEFT_E_PEER, rank, cause, hooks.grace_ns);
    pthread_mutex_unlock(&fault->lock);
    if (!first || !hooks.ask || !hooks.ask(hooks.context, WEFT_E_PEER, rank, cause ? cause : "", false)) return;
    pthread_mutex_lock(&fault->lock);
    if (atomic_load_explicit(&fault->state, memory_order_relaxed) == FAULT_SUSPECTED)
        fault->suspect_until_ns = wefti_deadline_after(wefti_host_now(fault->host), hooks.patience_ns);
    pthread_mutex_unlock(&fault->lock);
}

bool wefti_fault_settle(wefti_fault *fault) {
    if (atomic_load_explicit(&fault->state, memory_order_acquire) != FAULT_SUSPECTED) return false;
    pthread_mutex_lock(&fault->lock);
    bool left = atomic_load_explicit(&fault->state, memory_order_relaxed) == FAULT_SUSPECTED;
    if (left && wefti_host_now(fault->host) >= fault->suspect_until_ns) {
        decide(fault, fault->suspect_status, fault->suspect, fault->suspect_cause, true);
        left = false;
    }
    pthread_mutex_unlock(&fault->lock);
    return left;
}

void wefti_fault_raise(wefti_fault *fault, weft_status status, int32_t rank, const char *cause) {
    pthread_mutex_lock(&fault->lock);
    wefti_fault_hooks hooks = fault->hooks;
    bool open = atomic_load_explicit(&fault->state, memory_order_relaxed) < FAULT_TELLING;
    pthread_mutex_unlock(&fault->lock);
    bool asked = open && hooks.ask && hooks.ask(hooks.context, status, rank, cause ? cause : "", true);
    pthread_mutex_lock(&fault->lock);
    if (!asked)
        decide(fault, status, rank, cause, true);
    else if (atomic_load_explicit(&fault->state, memory_order_relaxed) < FAULT_TELLING)
        keep(fault, status, rank, cause, hooks.patience_ns);
    pthread_mutex_unlock(&fault->lock);
    while (asked && atomic_load_explicit(&fault->state, memory_order_acquire) != FAULT_DECIDED) {
        if (hooks.listen) hooks.listen(hooks.context);
        if (wefti_fault_settle(fault)) fault->host->sleep(fault->host->context, WEFTI_MILLISECOND_NS);
    }
}

void wefti_fault_name_ranks(wefti_fault *fault, const char *names, size_t stride, int32_t count) {
    fault->name_stride = stride;
    fault->name_count = count;
    atomic_store_explicit(&fault->names, names, memory_order_release);
}

static weft_status verdict(const wefti_fault *fault) {
    int32_t     rank = atomic_load_explicit(&fault->rank, memory_order_relaxed);
    const char *names = atomic_load_explicit(&fault->names, memory_order_acquire);
    if (rank < 0) return wefti_fail(fault->status, "%s", fault->cause);
    char where[160] = "";
    if (names && rank < fault->name_count)
        snprintf(where, sizeof where, " (rank %d: %.120s)", (int)rank, names + (size_t)rank * fault->name_stride);
    if (fault->status != WEFT_E_PEER) return wefti_fail(fault->status, "%s%s", fault->cause, where);
    return wefti_fail(fault->status, "rank %d failed: %s%s", (int)rank, fault->cause, where);
}

weft_status wefti_fault_status(wefti_fault *fault) {
    if (!fault) return WEFT_OK;
    int state = atomic_load_explicit(&fault->state, memory_order_acquire);
    if (state == FAULT_DECIDED) return verdict(fault);
    /* The hooks change only while no other thread is here (set before use, taken off after). */
    if (fault->hooks.listen && (fault->hooks.unattended || state == FAULT_SUSPECTED))
        fault->hooks.listen(fault->hooks.context);
    (void)wefti_fault_settle(fault);
    return atomic_load_explicit(&fault->state, memory_order_acquire) == FAULT_DECIDED ? verdict(fault) : WEFT_OK;
}

weft_status wefti_fault_verdict(const wefti_fault *fault) {
    return atomic_load_explicit(&fault->state, memory_order_acquire) == FAULT_DECIDED ? fault->status : WEFT_OK;
}

int32_t wefti_fault_rank(const wefti_fault *fault) {
    if (!fault || atomic_load_explicit(&fault->state, memory_order_acquire) != FAULT_DECIDED) return -1;
    return atomic_load_explicit(&fault->rank, memory_order_relaxed);
}

const char *wefti_fault_cause(const wefti_fault *fault) {
    return atomic_load_explicit(&fault->state, memory_order_acquire) == FAULT_DECIDED ? fault->cause : "";
}

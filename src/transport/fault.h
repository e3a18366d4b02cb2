/* Inside of the fault object, for the transport that hooks a control channel to it. */
#ifndef WEFTI_TRANSPORT_FAULT_H
#define WEFTI_TRANSPORT_FAULT_H

#include "core/iface/collective.h"

typedef struct wefti_fault_hooks {
    /* Called once by the thread that decides, with a verdict that nobody here can see yet: tells the other ranks. Must
     * not call back into the fault. May be NULL. */
    void (*decided)(void *context, weft_status status, int32_t rank, const char *cause);
    /* Puts a fault to the rank that decides for all, whose verdict then comes by wefti_fault_learn; `firm`: it is no suspicion. False: there
     * is nobody to ask, and it is decided here. Must not call back into the fault. May be NULL. */
    bool (*ask)(void *context, weft_status status, int32_t rank, const char *cause, bool firm);
    /* Hears the news that is there: called by wefti_fault_status while somebody is suspected, and always where nobody else
     * listens (`unattended`). May be NULL. */
    void (*listen)(void *context);
    bool unattended;
    void    *context;
    uint64_t grace_ns;    /* how long a suspicion waits for news of an earlier fault */
    uint64_t patience_ns; /* how long who asked waits for the answer, before it decides alone */
} wefti_fault_hooks;

/* Set before other threads use the fault; NULL takes them off (and waits for a `decided` that is running). */
void wefti_fault_set_hooks(wefti_fault *fault, const wefti_fault_hooks *hooks);
/* As wefti_fault_raise for a verdict that came from another rank: the hook is not called. */
void wefti_fault_learn(wefti_fault *fault, weft_status status, int32_t rank, const char *cause);
/* Makes a suspicion the verdict whose time has come; gives whether one is left. For who looks again and again, where perhaps nobody waits. */
bool wefti_fault_settle(wefti_fault *fault);
/* The verdict's status, WEFT_OK while there is none; sets no message and calls no hook. */
weft_status wefti_fault_verdict(const wefti_fault *fault);
/* What the ranks are called in messages, each "host h, process 1": [count] texts of `stride` bytes, ended by zeros. They live as long as
 * the fault. */
void wefti_fault_name_ranks(wefti_fault *fault, const char *names, size_t stride, int32_t count);
/* The cause of the verdict; "" while there is none. Valid as long as the fault. */
const char *wefti_fault_cause(const wefti_fault *fault);

#endif

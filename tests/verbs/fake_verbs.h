/* A table of verbs functions without a device: an in-process fabric that moves the bytes for real, and fails on demand.
 *
 * One thread is the network and all devices: it takes the requests of the queue pairs in an order that a seed decides, checks
 * every key and bound as a device does, moves the bytes, and completes. A buffer that is used too early or too late is so
 * used. All of the process's wires share it. */
#ifndef WEFT_TESTS_FAKE_VERBS_H
#define WEFT_TESTS_FAKE_VERBS_H

#include "transport/wire_verbs_api.h"

enum { FAKE_DEVICES = 3, FAKE_GIDS = 3 };

/* What the fabric is to do. Set between tests, or under fake_verbs_lock. */
typedef struct fake_verbs_settings {
    int      devices;               /* fake0, fake1, …; 2 ports each, of which the first is up */
    bool     ports_down;            /* none is up */
    uint32_t seed;
    /* limits */
    uint32_t most_inline, most_message_bytes, most_requests, most_completions;
    size_t   most_registered_bytes; /* together; 0: no bound. Beyond: ENOMEM, as under RLIMIT_MEMLOCK */
    bool     refuse_buffers;        /* EFAULT for what is neither slots nor a region */
    bool     no_gid;
    bool     ethernet;
    /* A device's memory: at `foreign` nobody can look, its bytes are at `foreign_alias` */
    uint8_t *foreign, *foreign_alias;
    size_t   foreign_bytes;
    bool     any_dmabuf;            /* or all memory may be a device's, whose bytes are where it is */
    bool     peer_memory;           /* reg_mr takes it; else EFAULT, as where the kernel knows no such addresses */
    int      dmabuf_error;          /* reg_dmabuf_mr fails so; 0: it takes them */
    /* faults */
    int      fail_call;             /* the so-many-th call that can fail, from 1, does; with ENOMEM, or EAGAIN where it posts */
    int      refuse_every;          /* each so-many-th post of a send is refused as if the queue were full */
    int      fail_request;          /* the so-many-th send request from now completes with … */
    enum ibv_wc_status fail_status; /* … this */
    bool     flush_first;           /* its queue pair is flushed before the true reason comes */
    bool     cut;                   /* nothing arrives any more: requests end as unanswered */
    bool     poll_fails;
} fake_verbs_settings;

typedef struct fake_verbs_counts {
    int  calls;                  /* that can fail, so far */
    int  requests;               /* that were carried out */
    int  objects;                /* alive: contexts, domains, registrations, queues, channels */
    int  ack_timeout;            /* of the queue that was made ready last */
    int  dmabufs, peers;         /* registrations of a device's memory that were made, each way */
    int  misuse;                 /* what no device forgives: overfull queues, keys in use given back, wrong states */
    char what[128];              /* the first misuse */
    char failed_call[32];        /* name of the call that failed on demand */
} fake_verbs_counts;

extern const wefti_verbs_api fake_verbs;

/* The usual settings, and counts of 0. No wire may be open. */
void fake_verbs_reset(void);
/* The settings, to be changed while nothing is open. */
fake_verbs_settings *fake_verbs_set(void);
fake_verbs_counts    fake_verbs_read(void);
/* Faults that begin while wires are open. */
void fake_verbs_fail_request(int after, enum ibv_wc_status status, bool flush_first);
void fake_verbs_cut(bool cut);
/* Sends a message of its own over the queue pair that some wire has to another, as a broken peer would. */
bool fake_verbs_forge(const void *bytes, size_t size_bytes);

#endif

/* Inside of the fake verbs: fake_verbs.c has the objects and calls, fake_fabric.c the thread that moves bytes. */
#ifndef WEFT_TESTS_FAKE_INSIDE_H
#define WEFT_TESTS_FAKE_INSIDE_H

#include <pthread.h>

#include "fake_verbs.h"

enum { FAKE_QUEUES = 512, FAKE_MOST_INLINE = 512 };

typedef struct fake_channel {
    struct ibv_comp_channel base;
    struct fake_cq         *signalled; /* of it, in no order; one event each */
} fake_channel;

typedef struct fake_cq {
    struct ibv_cq   base;
    struct ibv_wc  *ring; /* [capacity] */
    uint32_t        capacity, first, count;
    bool            armed;
    int             events, users;
    struct fake_cq *next_signalled;
} fake_cq;

typedef struct fake_mr {
    struct ibv_mr   base;
    int             access;
    uint8_t        *there; /* where its bytes are; base.addr, but of a device's memory */
    struct fake_mr *next;
} fake_mr;

typedef struct fake_send {
    struct ibv_send_wr request;
    struct ibv_sge     where;
    uint8_t            inlined[FAKE_MOST_INLINE];
} fake_send;

typedef struct fake_qp {
    struct ibv_qp      base;
    enum ibv_qp_state  state;
    struct ibv_qp_cap  cap;
    uint32_t           peer;
    fake_send         *sends; /* [max_send_wr] */
    struct ibv_recv_wr *receives; /* [max_recv_wr], with their place */
    struct ibv_sge    *places;
    uint32_t           send_first, send_count, receive_first, receive_count;
} fake_qp;

typedef struct fake_fabric {
    pthread_mutex_t     lock;
    pthread_cond_t      work;
    bool                runs; /* its thread */
    uint32_t            random, last_key;
    fake_qp            *queues[FAKE_QUEUES]; /* by number */
    fake_mr            *memories;
    size_t              registered_bytes;
    fake_verbs_settings set;
    fake_verbs_counts   counts;
} fake_fabric;

extern fake_fabric fake;

/* All under the lock. */
void fake_misuse(const char *what);
void fake_complete(fake_cq *cq, struct ibv_wc done);
/* Puts a queue pair into the error state and flushes it. */
void fake_flush(fake_qp *queue);
/* The fabric's thread. */
void *fake_fabric_run(void *context);

#endif

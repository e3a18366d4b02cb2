/* The control channel: a star of connections around rank 0, which serves the rendezvous store: TCP, or streams of a network. It carries the
 * exchanges of set-up, heartbeats, goodbyes and the news of a fault, apart from all data. */
#ifndef WEFTI_TRANSPORT_CONTROL_H
#define WEFTI_TRANSPORT_CONTROL_H

#include "transport/calls.h"
#include "transport/fault.h"
#include "transport/transport.h"

typedef struct wefti_control wefti_control;

typedef struct wefti_control_options {
    const wefti_host  *host;
    const wefti_place *place;      /* rank, size, store, job, secret; borrowed for the life of the channel */
    const wefti_network *network;  /* instead of sockets and threads; NULL: none. Then nothing of the store is looked at */
    uint64_t           timeout_ns; /* for joining */
    bool               no_thread;
    wefti_fault       *fault;      /* hooked to the channel until it is closed */
    wefti_watch       *watch;      /* what this rank tells when it is asked; NULL: nothing */
    wefti_door        *door;       /* this rank's, as by wefti_control_keep_door; NULL: none yet */
    /* Of a world that follows a fault: by what rank 0 finds that ranks it waits for have ended, until all are there; and the seat that each
     * rank has there. NULL in others. */
    wefti_calls       *calls;
    const int32_t     *members;    /* [size]; borrowed for as long */
    wefti_calls       *newcomers;  /* by which it hears those who wait to come in place of lost ranks; NULL: it does not */
} wefti_control_options;

enum { WEFTI_EXCHANGE_MOST_BYTES = 4096, WEFTI_EXCHANGE_NAME_BYTES = 32 };

/* Serves the store (rank 0) or begins to look for it. */
WEFT_MUST_CHECK weft_status wefti_control_open(const wefti_control_options *options, wefti_control **control_out);
/* The contract of wefti_transport_exchange. The first one is the joining. */
WEFT_MUST_CHECK weft_status wefti_control_exchange(wefti_control *control, const char *name, const void *mine,
                                                   size_t bytes, uint64_t timeout_ns, void *all_out);
/* Says goodbye (and the verdict, where there is one), and ends. NULL is fine. */
void wefti_control_close(wefti_control *control);
/* The address of this host that reaches the others, as text without a port: what wires bind to where nothing else is
 * said. Loopback where the store is there. */
void wefti_control_interface(wefti_control *control, char *text_out, size_t most_bytes);
/* Whoever runs the channel, the thread or each call, drains this rank's door from now on; it is not owned. */
void wefti_control_keep_door(wefti_control *control, wefti_door *door);
/* Connections that were dropped because they were none of this job. */
uint64_t wefti_control_strangers(wefti_control *control);

/* Asks every rank what it has been doing: text by rank, with a line for those that do not answer in time. One at a time. */
WEFT_MUST_CHECK weft_status wefti_control_ask(wefti_control *control, uint64_t timeout_ns, wefti_text *text_out);
/* Writes the same of this rank to standard error whenever the eventfd is rung, which is not owned; -1: no longer. */
void wefti_control_answer(wefti_control *control, int eventfd);
/* The rank that all others wait for, and the share of their time; -1: nobody in particular. Any thread. */
int32_t wefti_control_straggler(wefti_control *control, double *share_out);

#endif

/* What all wires share: lists of operations, matching of tagged messages, completion, and the table of kinds. */
#ifndef WEFTI_TRANSPORT_WIRE_COMMON_H
#define WEFTI_TRANSPORT_WIRE_COMMON_H

#include <string.h>

#include "core/iface/wire.h"

/* --- lists of operations: doubly linked through the operation, so that any can be taken out --- */

typedef struct wefti_op_list {
    wefti_wire_op *first, *last;
} wefti_op_list;

static inline void wefti_op_append(wefti_op_list *list, wefti_wire_op *op) {
    op->next = NULL;
    op->previous = list->last;
    if (list->last)
        list->last->next = op;
    else
        list->first = op;
    list->last = op;
}
static inline void wefti_op_remove(wefti_op_list *list, wefti_wire_op *op) {
    if (op->previous)
        op->previous->next = op->next;
    else
        list->first = op->next;
    if (op->next)
        op->next->previous = op->previous;
    else
        list->last = op->previous;
    op->next = op->previous = NULL;
}
static inline wefti_wire_op *wefti_op_take_first(wefti_op_list *list) {
    wefti_wire_op *op = list->first;
    if (op) wefti_op_remove(list, op);
    return op;
}

/* --- messages that came before their receive --- */

typedef struct wefti_message {
    struct wefti_message *next, *previous;
    wefti_wire_op        *op;       /* the receive that claimed it while its data still comes in; else NULL */
    uint64_t              tag;
    uint64_t              bytes;    /* of the message */
    uint64_t              arrival;  /* order among all peers */
    uint64_t              token[4]; /* the wire's: how to get the data, where it is not here */
    uint8_t              *data;     /* the data, where it is here; else NULL */
    size_t                filled;   /* bytes of it that came in */
    int32_t               peer;
    uint16_t              kind;     /* the wire's */
    uint16_t              size_class;
} wefti_message;

typedef struct wefti_message_list {
    wefti_message *first, *last;
} wefti_message_list;

enum { WEFTI_MESSAGE_CLASSES = 10 }; /* 0 bytes, then 64 · 4^k: 64, 256, … 1 MiB, 4 MiB */
#define WEFTI_MESSAGE_MOST_BYTES ((size_t)4 << 20) /* no wire's eager_bytes is more: what is longer is announced, not kept */

/* Matches what arrives with what is posted, by peer and tag. Lists are short in practice and searched from the oldest,
 * so an in-order stream is matched in constant time. Messages that came early are kept in buffers of a pool that
 * grows when surprised, up to a bound. */
typedef struct wefti_match {
    int32_t             size;
    wefti_op_list      *posted; /* [size + 1] receives by peer; the last is for any peer */
    wefti_message_list *early;  /* [size] messages by peer */
    wefti_message      *free[WEFTI_MESSAGE_CLASSES];
    uint64_t            clock;  /* order of posts and arrivals */
    size_t              held_bytes, most_bytes;
} wefti_match;

weft_status wefti_match_open(wefti_match *match, int32_t size, size_t most_bytes);
void        wefti_match_close(wefti_match *match);
/* The oldest posted receive for (peer, tag), taken off its list; NULL where there is none. */
wefti_wire_op *wefti_match_arrived(wefti_match *match, int32_t peer, uint64_t tag);
/* Keeps a message for which there is no receive, with room for `data_bytes`. NULL: no room now (out of memory, or the
 * bound is reached): leave it where it is and try later. At most WEFTI_MESSAGE_MOST_BYTES. */
wefti_message *wefti_match_keep(wefti_match *match, int32_t peer, uint64_t tag, uint64_t bytes, size_t data_bytes);
/* The oldest early message for a fresh receive, taken off its list (free it after use); else appends the receive to the
 * posted ones and returns NULL. */
wefti_message *wefti_match_posted(wefti_match *match, wefti_wire_op *op);
/* Gives a message back to the pool. It must be off its list. */
void wefti_match_free(wefti_match *match, wefti_message *message);
/* Takes a message off its list. */
void wefti_match_unlink(wefti_match *match, wefti_message *message);

/* --- what every wire of ours begins with --- */

typedef struct wefti_wire_base {
    wefti_wire        wire;
    wefti_match       match;
    wefti_op_list     done; /* completed and not yet handed out */
    wefti_wire_counts counts;
    bool              aborted;
    weft_status       abort_status;
    int32_t           abort_rank;
} wefti_wire_base;

static inline wefti_wire_base *wefti_base_of(wefti_wire *wire) { return (wefti_wire_base *)wire; }

/* Completes an operation that is on no list. */
static inline void wefti_wire_finish(wefti_wire_base *base, wefti_wire_op *op, weft_status status, int32_t peer,
                                     size_t bytes) {
    op->status = status;
    op->done_peer = peer;
    op->done_bytes = bytes;
    op->done = true;
    if (!(op->flags & WEFTI_WIRE_SILENT)) wefti_op_append(&base->done, op);
}
/* Completes a receive whose message of `bytes` is in its buffer (or did not fit). */
static inline void wefti_wire_finish_recv(wefti_wire_base *base, wefti_wire_op *op, int32_t peer, size_t bytes) {
    wefti_wire_finish(base, op, bytes > op->bytes ? WEFT_E_MISMATCH : WEFT_OK, peer, bytes);
}
/* Puts a message's data where the receive has it: at most what there is room for. */
static inline void wefti_wire_fill(wefti_wire_op *op, const void *data, size_t bytes) {
    size_t fits = bytes < op->bytes ? bytes : op->bytes;
    if (!fits) return;
    if (op->flags & WEFTI_WIRE_PIECES)
        op->piece(op, data, 0, fits);
    else
        memcpy(op->buffer, data, fits);
}
/* Completes a receive with a message that came before it and was kept whole, and frees that. */
void wefti_wire_take_early(wefti_wire_base *base, wefti_wire_op *op, wefti_message *message);
/* Completes all of a list with the same outcome. */
void wefti_wire_flush(wefti_wire_base *base, wefti_op_list *list, weft_status status, int32_t peer);
/* Completes the posted receives that only `peer` could have answered. */
void wefti_wire_flush_peer(wefti_wire_base *base, int32_t peer);
/* Hands out completed operations: the second half of poll. */
int32_t wefti_wire_hand_out(wefti_wire_base *base, wefti_wire_op **ops_out, int32_t capacity);
/* What post checks for all wires: peer in range, size, state. Clears the outcome. */
weft_status wefti_wire_check_post(wefti_wire_base *base, wefti_wire_op *op);
/* What open checks for all wires, and the common start of the struct. */
weft_status wefti_wire_base_open(wefti_wire_base *base, const wefti_wire_options *options, const wefti_wire_ops *ops,
                                 size_t early_bytes);
void        wefti_wire_base_close(wefti_wire_base *base);
/* cancel, for all wires of ours. */
weft_status wefti_wire_cancel(wefti_wire *wire, wefti_wire_op *op);
void        wefti_wire_read_counts(const wefti_wire *wire, wefti_wire_counts *counts_out);
/* wefti_fail for a post to a peer that is not there. */
weft_status wefti_wire_fail_link(const wefti_wire *wire, int32_t peer, wefti_wire_link link);

/* --- messages to oneself (wire_self.c) --- */

/* Posts a send to this rank; a large one for which there is no receive yet waits in `waiting`, which abort is to flush. */
weft_status wefti_self_send(wefti_wire_base *base, wefti_op_list *waiting, wefti_wire_op *op);
/* Posts a WRITE or READ of this rank's own region; `memory` is its checked target or source. */
weft_status wefti_self_one_sided(wefti_wire_base *base, uint8_t *memory, wefti_wire_op *op);
/* Gives a receive the early message from this rank that it matched; frees the message. */
void wefti_self_take(wefti_wire_base *base, wefti_op_list *waiting, wefti_wire_op *op, wefti_message *message);

/* --- kinds --- */

/* The kinds of wire that this build has, ended by a NULL name. */
extern const wefti_wire_kind wefti_wire_kinds[];
/* Their names, as in "inproc, shm, tcp"; `processes`: only those that connect processes. */
void wefti_wire_list(bool processes, char *text_out, size_t text_bytes);
/* Opens a wire by name; WEFT_E_NOT_FOUND lists those there are. Wraps it in the delay wire
 * where WEFT_WIRE_DELAY_US, WEFT_WIRE_GBPS or WEFT_WIRE_PORT_GBPS are set. */
WEFT_MUST_CHECK weft_status wefti_wire_open(const char *name, const wefti_wire_options *options, wefti_wire **wire_out);

weft_status wefti_wire_inproc_open(const wefti_wire_options *options, wefti_wire **wire_out);
weft_status wefti_wire_shm_open(const wefti_wire_options *options, wefti_wire **wire_out);
weft_status wefti_wire_tcp_open(const wefti_wire_options *options, wefti_wire **wire_out);
weft_status wefti_wire_verbs_open(const wefti_wire_options *options, wefti_wire **wire_out);
/* options->own, which must be there. */
weft_status wefti_wire_own_open(const wefti_wire_options *options, wefti_wire **wire_out);
weft_status wefti_wire_mpi_open(const wefti_wire_options *options, wefti_wire **wire_out);
/* Puts a slow link before `inner`, which it owns from then on: every message arrives no earlier than `latency_ns` after
 * it was posted, one direction of a link carries at most `bytes_per_ns`, and all that leave this rank together `port_bytes_per_ns` (0: no bound). */
weft_status wefti_wire_delay_open(wefti_wire *inner, uint64_t latency_ns, double bytes_per_ns, double port_bytes_per_ns, wefti_wire **wire_out);

/* The meeting place of inproc wires: `size` ranks of one process, each a thread or all in one. Release after all of
 * its wires are closed. A wire of one rank needs none. */
typedef struct wefti_inproc_hub wefti_inproc_hub;
WEFT_MUST_CHECK weft_status wefti_inproc_hub_create(int32_t size, wefti_inproc_hub **hub_out);
void wefti_inproc_hub_release(wefti_inproc_hub *hub);
/* Makes `rank` look dead to the others, as a killed process would; its own wire goes on, unheard. Any thread. */
void wefti_inproc_hub_kill(wefti_inproc_hub *hub, int32_t rank);

#endif

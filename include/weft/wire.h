/* A wire of the program's own: bytes between ranks over what only the program has, be it a message bus, a radio, or pipes.
 *
 * The program moves bytes in order between pairs of ranks, and never waits; Weft makes the rest of them: messages that are matched,
 * reads and writes of the others' memory, collectives, deadlines, faults. Fill a weft_wire_kind, and name it in the options of the
 * world: {.own_wire = &kind}. samples/wire_template is one to copy; it passes the tests that Weft's own wires pass. (What can map
 * the others' memory, or move data without a copy, wants the whole contract: src/core/iface/wire.h, inside the library.)
 *
 * The life of a wire: open; address, which Weft carries to the others; connect to each of them; progress, link, send and receive, in
 * any order, as often as somebody waits (again and again, then about every 50 us); close, once, whatever happened between.
 *
 * Threads: all calls on one wire come from one thread at a time, not always the same. Two worlds of one process have a wire each, whose
 * calls may come at the same time.
 * Blocking: no function may block, print, exit, or raise SIGPIPE; what cannot go on says so and is called again. Deadlines are Weft's.
 * Ownership: the kind and its context are the program's, and outlive the world. What `open` gives is the program's too, until `close`.
 * Buffers are lent for the call alone.
 * Trust: who may call this end is the wire's to see to; Weft proves and encrypts nothing on it. Bytes of a stranger would be taken for a
 * rank's (they harm no memory, but end the link or the result). */
#ifndef WEFT_WIRE_H
#define WEFT_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "weft/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define WEFT_WIRE_ADDRESS_BYTES 256 /* most bytes an address takes */
#define WEFT_WIRE_NAME_BYTES 15     /* most characters of a name */

typedef enum weft_wire_link {
    WEFT_WIRE_CONNECTING, /* not yet up; progress goes on with it */
    WEFT_WIRE_UP,
    WEFT_WIRE_DOWN /* it cannot come up, for ever; one that was up says so by send and receive */
} weft_wire_link;

typedef struct weft_wire_setup {
    int32_t     rank, size;
    const char *job; /* the same on all ranks of this run */
} weft_wire_setup;

/* All but `progress` must be there: WEFT_E_INVALID from weft_world_create. A status other than those named ends the world's opening, or the
 * link in both directions; the error that follows names the wire, the function and the status. So does a count out of range. */
typedef struct weft_wire_kind {
    const char *name;      /* as WEFT_WIRE and .wire call it, the same on all ranks; none of Weft's own names */
    bool        same_host; /* works inside one host only, and nobody else on it can read along: allowed where encryption is asked for, as
                              others are not */
    void       *context;   /* for open */

    /* Makes this rank's end. The setup is lent. After a failure `close` is not called. */
    weft_status (*open)(void *context, const weft_wire_setup *setup, void **wire_out);
    /* By what the others find this end: bytes of any kind, at most WEFT_WIRE_ADDRESS_BYTES. */
    weft_status (*address)(void *wire, void *address_out, size_t *bytes_out);
    /* Begins to connect to a peer; both ends do, and agree who calls. The address may come from another build, or be damaged:
     * WEFT_E_CORRUPT. The peer may have called first, and be accepted. Again for a peer that was named before: only looks at the
     * address. */
    weft_status (*connect)(void *wire, int32_t peer, const void *address, size_t bytes);
    /* Goes on with what is under way: accepting, shaking hands. Called before link, send and receive. NULL: nothing to do. */
    void (*progress)(void *wire);
    weft_wire_link (*link)(void *wire, int32_t peer);

    /* Takes some of the bytes for a peer whose link is up, at least one, and says how many: WEFT_OK. They then arrive, in order and
     * once, also where this end is closed right after. WEFT_E_AGAIN: none now. WEFT_E_LINK: the link is over. */
    weft_status (*send)(void *wire, int32_t peer, const void *bytes, size_t count, size_t *sent_out);
    /* Gives what has come from a peer, at least one byte and at most so many: WEFT_OK. WEFT_E_AGAIN: nothing now. WEFT_E_LINK: its end
     * is gone, and all that it sent has been given. */
    weft_status (*receive)(void *wire, int32_t peer, void *bytes, size_t most, size_t *received_out);
    /* Leaves and frees everything. What was sent still arrives. */
    void (*close)(void *wire);
} weft_wire_kind;

#ifdef __cplusplus
}
#endif
#endif

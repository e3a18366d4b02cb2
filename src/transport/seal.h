/* Encryption of a connection whose ends have shaken hands: sealed records over a stream socket.
 *
 * A record is its length in plain bytes (4, little endian), so many encrypted bytes, and a tag of 16: ChaCha20-Poly1305 under a key
 * of the connection and the direction, with the length as additional data and the record's number as nonce. So a record that was
 * changed, repeated, left out or moved does not open, and the connection is over; an end within a record is told from one between
 * two. What a stream says of its own end (a goodbye) travels inside. Keys come from the handshake: forgotten with the connection,
 * and not to be had from the job's secret afterwards. */
#ifndef WEFTI_TRANSPORT_SEAL_H
#define WEFTI_TRANSPORT_SEAL_H

#include <sys/types.h>
#include <sys/uio.h>

#include "transport/handshake.h"

enum {
    WEFTI_SEAL_RECORD_BYTES = 64 << 10, /* most plain bytes of one: half a percent from the speed of endless ones */
    WEFTI_SEAL_HEADER_BYTES = 4,
    WEFTI_SEAL_TAG_BYTES = 16,
    WEFTI_SEAL_EXTRA_BYTES = WEFTI_SEAL_HEADER_BYTES + WEFTI_SEAL_TAG_BYTES
};

typedef struct wefti_seal wefti_seal;

/* What encrypts the connection of a handshake that ended well; takes its keys away. NULL in *seal_out, which both functions below
 * take for a plain connection, where its terms do not ask for encryption. */
WEFT_MUST_CHECK weft_status wefti_seal_create(wefti_handshake *shake, wefti_seal **seal_out);
/* Forgets the keys. NULL is fine. */
void wefti_seal_release(wefti_seal *seal);

/* As sendmsg without blocking, and with its results: bytes that are all with the system, or -1 with errno. The record that was begun
 * is finished first: until then the caller offers the same bytes again, and perhaps more behind them. */
ssize_t wefti_seal_send(wefti_seal *seal, int socket, const struct iovec *parts, int count);
/* How many bytes of what is offered are sealed already, and so can no longer be taken back. */
size_t wefti_seal_pending(const wefti_seal *seal);
/* As recvmsg without blocking, and with its results: fills the parts with what has come; nothing that was not proved to be the peer's is
 * handed out. -1 with EBADMSG: it was not, see the cause. */
ssize_t wefti_seal_receive(wefti_seal *seal, int socket, const struct iovec *parts, int count);
/* Whether something has come that the socket does not tell of any more. */
bool wefti_seal_holds(const wefti_seal *seal);
/* After EBADMSG: what is wrong, in words for people. */
const char *wefti_seal_cause(const wefti_seal *seal);

#endif

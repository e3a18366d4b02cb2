/* The handshake of every TCP connection between ranks, to the store and between wires.
 *
 *   client: HELLO      magic, version, what for, who and to whom, size, epoch, cookie, job, a fresh nonce and key
 *   server: CHALLENGE  magic, version, whether it demands a secret, a fresh nonce and key
 *   client: PROOF      HMAC over all of both, for "client"
 *   server: VERDICT    accepted or why not, HMAC over all of both and the verdict, for "server"
 *
 * All messages have fixed sizes, the same in all versions, so there is no length to lie about and versions that differ can say so; the
 * first wrong byte of the magic ends it. Without a secret the HMACs are zero, which is allowed over loopback only (the callers see to
 * that).
 *
 * Where both ends ask for encryption, which they must agree on, the keys are ephemeral ones of X25519. The HMACs cover them, so nobody
 * stands between; who learns the secret later cannot read what was said (seal.h). */
#ifndef WEFTI_TRANSPORT_HANDSHAKE_H
#define WEFTI_TRANSPORT_HANDSHAKE_H

#include "core/iface/host.h"

enum {
    WEFTI_PROTOCOL_VERSION = 2,
    WEFTI_COOKIE_BYTES = 16,
    WEFTI_JOB_BYTES = 64,
    WEFTI_NONCE_BYTES = 32,
    WEFTI_MAC_BYTES = 32,
    WEFTI_KEY_BYTES = 32,
    WEFTI_HELLO_BYTES = 256,
    WEFTI_CHALLENGE_BYTES = 128,
    WEFTI_VERDICT_BYTES = 64
};
#define WEFTI_HANDSHAKE_LIMIT_NS (5 * WEFTI_SECOND_NS)

typedef enum wefti_purpose { WEFTI_FOR_STORE = 1, WEFTI_FOR_WIRE = 2, WEFTI_FOR_GATHERING = 3, WEFTI_FOR_ANNOUNCING = 4 } wefti_purpose;

/* What both ends must agree on. The strings and bytes are borrowed. */
typedef struct wefti_terms {
    const wefti_host *host;
    wefti_purpose     purpose;
    int32_t           rank, size;
    uint32_t          epoch;
    const char       *job;
    const uint8_t    *cookie; /* [WEFTI_COOKIE_BYTES] of the server's address; NULL: zero */
    const uint8_t    *secret;
    size_t            secret_bytes; /* 0: none */
    bool              encrypt;      /* needs a secret */
    /* A server's last word on a caller who has proved itself and fits: WEFT_OK, WEFT_E_EXISTS (that rank is here
     * already) or WEFT_E_AGAIN (call again later). NULL: always WEFT_OK. */
    weft_status (*admit)(void *context, int32_t rank);
    void *context;
} wefti_terms;

typedef enum wefti_handshake_stage {
    WEFTI_SHAKE_HELLO,
    WEFTI_SHAKE_CHALLENGE,
    WEFTI_SHAKE_PROOF,
    WEFTI_SHAKE_VERDICT,
    WEFTI_SHAKE_OVER
} wefti_handshake_stage;

/* One handshake under way. It borrows the socket (non-blocking). */
typedef struct wefti_handshake {
    const wefti_terms    *terms;
    bool                  server;
    int                   socket;
    int32_t               peer; /* client: who is called; server: who calls, once known */
    wefti_handshake_stage stage; /* what is received next */
    uint64_t              deadline_ns;
    weft_status           refusal; /* server: what the verdict says */
    size_t                have, want, to_send, sent;
    uint8_t               in[WEFTI_HELLO_BYTES], out[WEFTI_HELLO_BYTES];
    uint8_t               hello[WEFTI_HELLO_BYTES], challenge[WEFTI_CHALLENGE_BYTES];
    uint8_t               ephemeral[WEFTI_KEY_BYTES]; /* this end's half of the exchange of keys, until it is over */
    uint8_t               send_key[WEFTI_KEY_BYTES], receive_key[WEFTI_KEY_BYTES]; /* its result, where both ends encrypt */
} wefti_handshake;

/* Starts one on a connected socket; as a client to the rank `peer`. */
weft_status wefti_handshake_call(wefti_handshake *shake, const wefti_terms *terms, int socket, int32_t peer,
                                 uint64_t now_ns);
weft_status wefti_handshake_answer(wefti_handshake *shake, const wefti_terms *terms, int socket, uint64_t now_ns);
/* Goes on. WEFT_E_AGAIN: not over. WEFT_OK: the other end is who it says (`peer`). Else the socket is to be closed:
 *   WEFT_E_CORRUPT   what came is no handshake of Weft
 *   WEFT_E_LINK      the connection ended, or the server is not ready: call again
 *   WEFT_E_TIMEOUT   its deadline has passed
 *   WEFT_E_AUTH      the secrets differ, or one end has none
 *   WEFT_E_NOT_FOUND another job, purpose or cookie: not meant for this end
 *   WEFT_E_EXISTS    that rank is here already
 *   WEFT_E_MISMATCH  the same job with another size, version, epoch or wish for encryption; the message says which */
weft_status wefti_handshake_progress(wefti_handshake *shake, uint64_t now_ns);
/* Forgets its keys. */
void wefti_handshake_forget(wefti_handshake *shake);

/* Whether this build can prove anything, and encrypt (libsodium). */
bool wefti_can_authenticate(void);
/* WEFT_OK where encryption is not asked for, or can be had: else an error that says what is missing. */
WEFT_MUST_CHECK weft_status wefti_can_encrypt(bool encrypt, size_t secret_bytes);

#endif

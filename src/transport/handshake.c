/* The handshake: a state machine on a non-blocking socket, with fixed-size messages.
 *
 * Proofs are HMAC-SHA-512/256 keyed by a hash of the secret, over a label for the side and both opening messages whole,
 * so they bind job, rank, peer, size, epoch, version, purpose, cookie and both nonces; neither can be replayed
 * or reflected. A server says nothing about itself but its version before the client has proved itself, and draws a key for
 * those only whose HELLO is meant for it. Keys of a connection are a keyed hash, by the secret, of what X25519 gives and of both
 * messages. */
#include "transport/handshake.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>

#ifdef WEFTI_HAVE_SODIUM
#include <sodium.h>
#endif

static const char magic[8] = {'W', 'E', 'F', 'T', '\r', '\n', 0x1a, 1};

/* Offsets in HELLO */
enum { AT_VERSION = 8, AT_PURPOSE = 12, AT_RANK = 16, AT_PEER = 20, AT_SIZE = 24, AT_EPOCH = 28, AT_SECRET = 32, AT_ENCRYPT = 36,
       AT_COOKIE = 40, AT_NONCE = 56, AT_JOB = 88, AT_KEY = 152 };
/* Offsets in CHALLENGE: version as above */
enum { AT_DEMANDS = 12, AT_SERVER_NONCE = 16, AT_SERVER_KEY = 48 };
/* Offsets in VERDICT: version as above */
enum { AT_STATUS = 12, AT_SERVER_SIZE = 16, AT_SERVER_EPOCH = 20, AT_SERVER_ENCRYPT = 24, AT_MAC = 32 };

static void put32(uint8_t *at, uint32_t value) {
    for (int i = 0; i < 4; i++) at[i] = (uint8_t)(value >> 8 * i);
}
static uint32_t get32(const uint8_t *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* --- proofs --- */

#ifdef WEFTI_HAVE_SODIUM
static int  sodium_state = -1;
static void start_sodium(void) { sodium_state = sodium_init(); }

bool wefti_can_authenticate(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start_sodium);
    return sodium_state >= 0;
}

/* What the secret is for one purpose; keys for proofs and for encryption have nothing to do with each other. */
static void derive(const wefti_terms *terms, const char *context, uint8_t key_out[WEFTI_KEY_BYTES]) {
    crypto_generichash(key_out, WEFTI_KEY_BYTES, terms->secret, terms->secret_bytes, (const uint8_t *)context, strlen(context) + 1);
}

static void prove(const wefti_handshake *shake, const char *label, const uint8_t *verdict, size_t verdict_bytes,
                  uint8_t mac_out[WEFTI_MAC_BYTES]) {
    uint8_t                         key[crypto_auth_hmacsha512256_KEYBYTES];
    crypto_auth_hmacsha512256_state state;
    memset(mac_out, 0, WEFTI_MAC_BYTES);
    if (!shake->terms->secret_bytes || !wefti_can_authenticate()) return;
    derive(shake->terms, "weft handshake 2", key);
    crypto_auth_hmacsha512256_init(&state, key, sizeof key);
    crypto_auth_hmacsha512256_update(&state, (const uint8_t *)label, strlen(label) + 1);
    crypto_auth_hmacsha512256_update(&state, shake->hello, sizeof shake->hello);
    crypto_auth_hmacsha512256_update(&state, shake->challenge, sizeof shake->challenge);
    crypto_auth_hmacsha512256_update(&state, verdict, verdict_bytes);
    crypto_auth_hmacsha512256_final(&state, mac_out);
    sodium_memzero(key, sizeof key);
    sodium_memzero(&state, sizeof state);
}

static bool same_bytes(const uint8_t *a, const uint8_t *b, size_t bytes) { return sodium_memcmp(a, b, bytes) == 0; }

static weft_status draw_key(wefti_handshake *shake, uint8_t *public_out) {
    const wefti_host *host = shake->terms->host;
    WEFTI_TRY(host->random(host->context, shake->ephemeral, sizeof shake->ephemeral));
    crypto_scalarmult_base(public_out, shake->ephemeral);
    return WEFT_OK;
}

static void hash_key(const uint8_t key[WEFTI_KEY_BYTES], const wefti_handshake *shake, const uint8_t *shared, const char *label,
                     uint8_t key_out[WEFTI_KEY_BYTES]) {
    crypto_generichash_state state;
    crypto_generichash_init(&state, key, WEFTI_KEY_BYTES, WEFTI_KEY_BYTES);
    crypto_generichash_update(&state, (const uint8_t *)label, strlen(label) + 1);
    crypto_generichash_update(&state, shared, crypto_scalarmult_BYTES);
    crypto_generichash_update(&state, shake->hello, sizeof shake->hello);
    crypto_generichash_update(&state, shake->challenge, sizeof shake->challenge);
    crypto_generichash_final(&state, key_out, WEFTI_KEY_BYTES);
    sodium_memzero(&state, sizeof state);
}

static weft_status make_keys(wefti_handshake *shake) {
    uint8_t        shared[crypto_scalarmult_BYTES], key[WEFTI_KEY_BYTES];
    const uint8_t *theirs = shake->server ? shake->hello + AT_KEY : shake->challenge + AT_SERVER_KEY;
    if (!shake->terms->encrypt) return WEFT_OK;
    if (crypto_scalarmult(shared, shake->ephemeral, theirs) != 0)
        return wefti_fail(WEFT_E_AUTH, "rank %d gave a key for encryption that is none", (int)shake->peer);
    derive(shake->terms, "weft encryption 2", key);
    hash_key(key, shake, shared, "client to server", shake->server ? shake->receive_key : shake->send_key);
    hash_key(key, shake, shared, "server to client", shake->server ? shake->send_key : shake->receive_key);
    sodium_memzero(shared, sizeof shared);
    sodium_memzero(key, sizeof key);
    sodium_memzero(shake->ephemeral, sizeof shake->ephemeral);
    return WEFT_OK;
}
#else
bool wefti_can_authenticate(void) { return false; }

static void prove(const wefti_handshake *shake, const char *label, const uint8_t *verdict, size_t verdict_bytes,
                  uint8_t mac_out[WEFTI_MAC_BYTES]) {
    (void)shake, (void)label, (void)verdict, (void)verdict_bytes;
    memset(mac_out, 0, WEFTI_MAC_BYTES);
}

static bool same_bytes(const uint8_t *a, const uint8_t *b, size_t bytes) { return memcmp(a, b, bytes) == 0; }

static weft_status draw_key(wefti_handshake *shake, uint8_t *public_out) {
    (void)shake, (void)public_out;
    return WEFT_OK;
}
static weft_status make_keys(wefti_handshake *shake) {
    (void)shake;
    return WEFT_OK;
}
#endif

weft_status wefti_can_encrypt(bool encrypt, size_t secret_bytes) {
    if (!encrypt) return WEFT_OK;
    if (!wefti_can_authenticate())
        return wefti_fail(WEFT_E_UNSUPPORTED, "encryption is asked for, and this build lacks libsodium: build with it (libsodium-dev), or "
                          "leave WEFT_ENCRYPT unset on every rank");
    if (!secret_bytes)
        return wefti_fail(WEFT_E_AUTH, "encryption is asked for, and demands a secret of the job: set WEFT_SECRET, or WEFT_SECRET_FILE to "
                          "a file of mode 0600, on every rank");
    return WEFT_OK;
}

void wefti_handshake_forget(wefti_handshake *shake) {
    explicit_bzero(shake->ephemeral, sizeof shake->ephemeral);
    explicit_bzero(shake->send_key, sizeof shake->send_key);
    explicit_bzero(shake->receive_key, sizeof shake->receive_key);
}

static bool has_secret(const wefti_terms *terms) { return terms->secret_bytes > 0 && wefti_can_authenticate(); }

/* --- starting --- */

static void expect(wefti_handshake *shake, wefti_handshake_stage stage, size_t bytes) {
    shake->stage = stage;
    shake->have = 0;
    shake->want = bytes;
}

static void queue_message(wefti_handshake *shake, size_t bytes) {
    shake->to_send = bytes;
    shake->sent = 0;
}

weft_status wefti_handshake_call(wefti_handshake *shake, const wefti_terms *terms, int socket, int32_t peer,
                                 uint64_t now_ns) {
    WEFTI_TRY(wefti_can_encrypt(terms->encrypt, terms->secret_bytes));
    *shake = (wefti_handshake){.terms = terms, .socket = socket, .peer = peer,
                               .deadline_ns = wefti_deadline_after(now_ns, WEFTI_HANDSHAKE_LIMIT_NS)};
    uint8_t *hello = shake->out;
    memcpy(hello, magic, sizeof magic);
    put32(hello + AT_VERSION, WEFTI_PROTOCOL_VERSION);
    put32(hello + AT_PURPOSE, terms->purpose);
    put32(hello + AT_RANK, (uint32_t)terms->rank);
    put32(hello + AT_PEER, (uint32_t)peer);
    put32(hello + AT_SIZE, (uint32_t)terms->size);
    put32(hello + AT_EPOCH, terms->epoch);
    put32(hello + AT_SECRET, has_secret(terms));
    put32(hello + AT_ENCRYPT, terms->encrypt);
    if (terms->cookie) memcpy(hello + AT_COOKIE, terms->cookie, WEFTI_COOKIE_BYTES);
    WEFTI_TRY(terms->host->random(terms->host->context, hello + AT_NONCE, WEFTI_NONCE_BYTES));
    if (terms->encrypt) WEFTI_TRY(draw_key(shake, hello + AT_KEY));
    if (terms->job) memcpy(hello + AT_JOB, terms->job, strnlen(terms->job, WEFTI_JOB_BYTES - 1));
    memcpy(shake->hello, hello, WEFTI_HELLO_BYTES);
    queue_message(shake, WEFTI_HELLO_BYTES);
    expect(shake, WEFTI_SHAKE_CHALLENGE, WEFTI_CHALLENGE_BYTES);
    return WEFT_OK;
}

weft_status wefti_handshake_answer(wefti_handshake *shake, const wefti_terms *terms, int socket, uint64_t now_ns) {
    WEFTI_TRY(wefti_can_encrypt(terms->encrypt, terms->secret_bytes));
    *shake = (wefti_handshake){.terms = terms, .server = true, .socket = socket, .peer = -1,
                               .deadline_ns = wefti_deadline_after(now_ns, WEFTI_HANDSHAKE_LIMIT_NS)};
    expect(shake, WEFTI_SHAKE_HELLO, WEFTI_HELLO_BYTES);
    return WEFT_OK;
}

/* --- the server's half --- */

/* Whether the HELLO says that it is for this end. */
static bool is_meant_for(const wefti_handshake *shake) {
    static const uint8_t no_cookie[WEFTI_COOKIE_BYTES];
    const wefti_terms   *terms = shake->terms;
    const uint8_t       *hello = shake->hello;
    char                 job[WEFTI_JOB_BYTES] = "";
    if (terms->job) memcpy(job, terms->job, strnlen(terms->job, WEFTI_JOB_BYTES - 1));
    return get32(hello + AT_PURPOSE) == (uint32_t)terms->purpose && memcmp(hello + AT_JOB, job, sizeof job) == 0 &&
           get32(hello + AT_PEER) == (uint32_t)terms->rank &&
           same_bytes(hello + AT_COOKIE, terms->cookie ? terms->cookie : no_cookie, WEFTI_COOKIE_BYTES);
}

static weft_status server_hello(wefti_handshake *shake) {
    const wefti_terms *terms = shake->terms;
    memcpy(shake->hello, shake->in, WEFTI_HELLO_BYTES);
    uint8_t *challenge = shake->out;
    memset(challenge, 0, WEFTI_CHALLENGE_BYTES);
    memcpy(challenge, magic, sizeof magic);
    put32(challenge + AT_VERSION, WEFTI_PROTOCOL_VERSION);
    put32(challenge + AT_DEMANDS, has_secret(terms));
    WEFTI_TRY(terms->host->random(terms->host->context, challenge + AT_SERVER_NONCE, WEFTI_NONCE_BYTES));
    if (terms->encrypt && is_meant_for(shake)) WEFTI_TRY(draw_key(shake, challenge + AT_SERVER_KEY));
    memcpy(shake->challenge, challenge, WEFTI_CHALLENGE_BYTES);
    queue_message(shake, WEFTI_CHALLENGE_BYTES);
    expect(shake, WEFTI_SHAKE_PROOF, WEFTI_MAC_BYTES);
    return WEFT_E_AGAIN;
}

/* What the server thinks of a HELLO whose proof is right. Whom it is for comes first: what a caller of another job says of itself,
 * its version too, is no fault of this one. */
static weft_status judge(const wefti_handshake *shake) {
    const wefti_terms *terms = shake->terms;
    const uint8_t     *hello = shake->hello;
    if (!is_meant_for(shake)) return WEFT_E_NOT_FOUND;
    if (get32(hello + AT_VERSION) != WEFTI_PROTOCOL_VERSION || get32(hello + AT_SIZE) != (uint32_t)terms->size ||
        get32(hello + AT_EPOCH) != terms->epoch || get32(hello + AT_ENCRYPT) != (uint32_t)terms->encrypt)
        return WEFT_E_MISMATCH;
    uint32_t rank = get32(hello + AT_RANK);
    if (rank >= (uint32_t)terms->size || rank == (uint32_t)terms->rank) return WEFT_E_EXISTS;
    return terms->admit ? terms->admit(terms->context, (int32_t)rank) : WEFT_OK;
}

static weft_status server_proof(wefti_handshake *shake) {
    const wefti_terms *terms = shake->terms;
    uint8_t            mac[WEFTI_MAC_BYTES];
    prove(shake, "client", NULL, 0, mac);
    bool both_or_none = get32(shake->hello + AT_SECRET) == (uint32_t)has_secret(terms);
    bool proved = both_or_none && same_bytes(mac, shake->in, sizeof mac);
    shake->refusal = proved ? judge(shake) : WEFT_E_AUTH;
    uint8_t *verdict = shake->out;
    memset(verdict, 0, WEFTI_VERDICT_BYTES);
    memcpy(verdict, magic, sizeof magic);
    put32(verdict + AT_VERSION, WEFTI_PROTOCOL_VERSION);
    put32(verdict + AT_STATUS, (uint32_t)shake->refusal);
    if (proved) {
        put32(verdict + AT_SERVER_SIZE, (uint32_t)terms->size);
        put32(verdict + AT_SERVER_EPOCH, terms->epoch);
        put32(verdict + AT_SERVER_ENCRYPT, terms->encrypt);
        prove(shake, "server", verdict, AT_MAC, verdict + AT_MAC);
    }
    queue_message(shake, WEFTI_VERDICT_BYTES);
    expect(shake, WEFTI_SHAKE_OVER, 0);
    return WEFT_E_AGAIN;
}

static weft_status fail_encryption(int32_t peer, bool own) {
    return wefti_fail(WEFT_E_MISMATCH, "rank %d %s its connections, and this rank %s: set WEFT_ENCRYPT=1 (or .encrypt) on every rank or on "
                      "none", (int)peer, own ? "does not encrypt" : "encrypts", own ? "does" : "does not");
}

static weft_status fail_version(int32_t peer, uint32_t version) {
    return wefti_fail(WEFT_E_MISMATCH, "rank %d speaks version %u of the protocol, this rank version %d: build all ranks from the same Weft",
                      (int)peer, version, WEFTI_PROTOCOL_VERSION);
}

static weft_status server_over(wefti_handshake *shake) {
    const wefti_terms *terms = shake->terms;
    uint32_t           rank = get32(shake->hello + AT_RANK), size = get32(shake->hello + AT_SIZE);
    uint32_t           version = get32(shake->hello + AT_VERSION), epoch = get32(shake->hello + AT_EPOCH);
    switch (shake->refusal) {
    case WEFT_OK: shake->peer = (int32_t)rank; return make_keys(shake);
    case WEFT_E_MISMATCH:
        shake->peer = (int32_t)rank;
        if (version == WEFTI_PROTOCOL_VERSION && size == (uint32_t)terms->size && epoch == terms->epoch)
            return fail_encryption(shake->peer, terms->encrypt);
        if (version != WEFTI_PROTOCOL_VERSION) return fail_version(shake->peer, version);
        return wefti_fail(WEFT_E_MISMATCH,
                          "rank %d was started with %u ranks at epoch %u; this rank has %d ranks at epoch %u: give all ranks the same "
                          "WEFT_WORLD_SIZE", (int)rank, size, epoch, (int)terms->size, terms->epoch);
    case WEFT_E_AGAIN: return wefti_fail(WEFT_E_LINK, "a caller came too early");
    default: return wefti_fail(shake->refusal, "a caller was refused: %s", weft_status_text(shake->refusal));
    }
}

/* --- the client's half --- */

static weft_status client_challenge(wefti_handshake *shake) {
    const wefti_terms *terms = shake->terms;
    memcpy(shake->challenge, shake->in, WEFTI_CHALLENGE_BYTES);
    uint32_t version = get32(shake->in + AT_VERSION);
    if (version != WEFTI_PROTOCOL_VERSION) return fail_version(shake->peer, version);
    bool demands = get32(shake->in + AT_DEMANDS) != 0;
    if (demands && !has_secret(terms))
        return wefti_fail(WEFT_E_AUTH, "rank %d demands the job's secret, and this rank has none%s", (int)shake->peer,
                          terms->secret_bytes ? " that it can use: this build lacks libsodium"
                                              : ": set WEFT_SECRET or WEFT_SECRET_FILE on every rank");
    if (!demands && has_secret(terms))
        return wefti_fail(WEFT_E_AUTH, "this rank has a secret, and rank %d has none: set WEFT_SECRET or "
                          "WEFT_SECRET_FILE on every rank or on none", (int)shake->peer);
    prove(shake, "client", NULL, 0, shake->out);
    queue_message(shake, WEFTI_MAC_BYTES);
    expect(shake, WEFTI_SHAKE_VERDICT, WEFTI_VERDICT_BYTES);
    return WEFT_E_AGAIN;
}

static weft_status client_verdict(wefti_handshake *shake) {
    const wefti_terms *terms = shake->terms;
    const uint8_t     *verdict = shake->in;
    uint32_t           status = get32(verdict + AT_STATUS);
    uint8_t            mac[WEFTI_MAC_BYTES];
    if (status == WEFT_E_AUTH)
        return wefti_fail(WEFT_E_AUTH, "rank %d refuses this rank: the secrets differ", (int)shake->peer);
    prove(shake, "server", verdict, AT_MAC, mac);
    if (!same_bytes(mac, verdict + AT_MAC, sizeof mac))
        return wefti_fail(WEFT_E_AUTH, "what answers as rank %d does not know the job's secret", (int)shake->peer);
    switch (status) {
    case WEFT_OK: return make_keys(shake);
    case WEFT_E_AGAIN: return wefti_fail(WEFT_E_LINK, "rank %d is not ready yet", (int)shake->peer);
    case WEFT_E_MISMATCH:
        if (get32(verdict + AT_SERVER_SIZE) == (uint32_t)terms->size && get32(verdict + AT_SERVER_EPOCH) == terms->epoch)
            return fail_encryption(shake->peer, terms->encrypt);
        return wefti_fail(WEFT_E_MISMATCH,
                          "rank %d has %u ranks at epoch %u, this rank was started with %d ranks at epoch %u: give all "
                          "ranks the same WEFT_WORLD_SIZE", (int)shake->peer, get32(verdict + AT_SERVER_SIZE),
                          get32(verdict + AT_SERVER_EPOCH), (int)terms->size, terms->epoch);
    case WEFT_E_NOT_FOUND:
        return wefti_fail(WEFT_E_NOT_FOUND, "what answers is of another job than '%s'", terms->job ? terms->job : "");
    case WEFT_E_EXISTS:
        return wefti_fail(WEFT_E_EXISTS, "there is a rank %d of %d already: two processes were started with the same "
                          "WEFT_RANK", (int)terms->rank, (int)terms->size);
    default: return wefti_fail(WEFT_E_CORRUPT, "rank %d answers with a verdict that is none", (int)shake->peer);
    }
}

/* --- moving --- */

static weft_status send_out(wefti_handshake *shake) {
    while (shake->sent < shake->to_send) {
        ssize_t sent = send(shake->socket, shake->out + shake->sent, shake->to_send - shake->sent,
                            MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && (errno == EAGAIN || errno == ENOTCONN)) return WEFT_E_AGAIN;
        if (sent <= 0) return wefti_fail(WEFT_E_LINK, "the connection ended in the handshake");
        shake->sent += (size_t)sent;
    }
    return WEFT_OK;
}

static weft_status receive_in(wefti_handshake *shake) {
    while (shake->have < shake->want) {
        ssize_t got = recv(shake->socket, shake->in + shake->have, shake->want - shake->have, MSG_DONTWAIT);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && (errno == EAGAIN || errno == ENOTCONN)) return WEFT_E_AGAIN;
        if (got <= 0) return wefti_fail(WEFT_E_LINK, "the connection ended in the handshake");
        shake->have += (size_t)got;
        size_t check = shake->have < sizeof magic ? shake->have : sizeof magic;
        if (shake->stage != WEFTI_SHAKE_PROOF && memcmp(shake->in, magic, check) != 0)
            return wefti_fail(WEFT_E_CORRUPT, "what is on the other end does not speak as Weft does");
    }
    return WEFT_OK;
}

static weft_status go_on(wefti_handshake *shake, uint64_t now_ns) {
    for (;;) {
        weft_status status = send_out(shake);
        if (status == WEFT_OK && shake->stage != WEFTI_SHAKE_OVER) status = receive_in(shake);
        if (status == WEFT_E_AGAIN && now_ns >= shake->deadline_ns)
            return wefti_fail(WEFT_E_TIMEOUT, "the other end was silent in the handshake");
        if (status != WEFT_OK) return status;
        switch (shake->stage) {
        case WEFTI_SHAKE_HELLO: status = server_hello(shake); break;
        case WEFTI_SHAKE_CHALLENGE: status = client_challenge(shake); break;
        case WEFTI_SHAKE_PROOF: status = server_proof(shake); break;
        case WEFTI_SHAKE_VERDICT: return client_verdict(shake);
        case WEFTI_SHAKE_OVER: return server_over(shake);
        }
        if (status != WEFT_E_AGAIN) return status;
    }
}

weft_status wefti_handshake_progress(wefti_handshake *shake, uint64_t now_ns) {
    weft_status status = go_on(shake, now_ns);
    if (status != WEFT_OK && status != WEFT_E_AGAIN) wefti_handshake_forget(shake);
    return status;
}

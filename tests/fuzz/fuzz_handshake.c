/* The handshake, as server and as client: whatever comes ends it, and a secret is not got round. The first byte says which side (bit 0),
 * whether there is a secret (1), encryption (2), and whether the other end hangs up (3). */
#include "fuzz_net.h"
#include "transport/handshake.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const uint8_t secret[] = "a secret that no input knows of", cookie[WEFTI_COOKIE_BYTES] = {1, 2, 3};
    if (size == 0) return 0;
    bool            server = data[0] & 1, with_secret = (data[0] & 2) && wefti_can_authenticate();
    int             sockets[2];
    wefti_handshake shake;
    wefti_terms     terms = {.host = &fuzz_host, .purpose = WEFTI_FOR_WIRE, .rank = server ? 1 : 2, .size = 4, .epoch = 3, .job = "job",
                             .cookie = cookie, .secret = secret, .secret_bytes = with_secret ? sizeof secret : 0,
                             .encrypt = with_secret && (data[0] & 4)};
    fuzz_sockets(sockets, data + 1, size - 1, data[0] & 8);
    weft_status status = server ? wefti_handshake_answer(&shake, &terms, sockets[0], 0)
                                : wefti_handshake_call(&shake, &terms, sockets[0], 1, 0);
    if (status != WEFT_OK) abort();
    for (int i = 0; i < 5; i++)
        if ((status = wefti_handshake_progress(&shake, 1)) != WEFT_E_AGAIN) break;
    if (status == WEFT_E_AGAIN) status = wefti_handshake_progress(&shake, WEFTI_HANDSHAKE_LIMIT_NS);
    if (status == WEFT_E_AGAIN || (status == WEFT_OK && with_secret)) abort();
    if (status == WEFT_OK && (shake.peer < 0 || shake.peer >= terms.size || shake.peer == terms.rank)) abort();
    close(sockets[0]), close(sockets[1]);
    return 0;
}

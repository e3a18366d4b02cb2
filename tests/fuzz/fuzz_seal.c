/* Encrypted records under known keys: what is handed out is what was sealed, from its beginning on, whatever comes. The first byte says
 * how much is asked for at a time. */
#include "fuzz_net.h"
#include "transport/seal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static wefti_terms terms = {.encrypt = true};
    wefti_handshake    shake = {.terms = &terms, .receive_key = "0123456 is the key of all inputs"};
    wefti_seal        *seal = NULL;
    int                sockets[2];
    size_t             total = 0;
    if (size == 0 || !wefti_can_authenticate()) return 0;
    if (wefti_seal_create(&shake, &seal) != WEFT_OK) abort();
    fuzz_sockets(sockets, data + 1, size - 1, 1);
    size_t       most = 1 + data[0] * (size_t)16;
    uint8_t     *plain = malloc(most);
    struct iovec part = {plain, most};
    ssize_t      got;
    if (!plain) abort();
    while ((got = wefti_seal_receive(seal, sockets[0], &part, 1)) > 0)
        for (ssize_t i = 0; i < got; i++)
            if (plain[i] != (uint8_t)(total++ * 7)) abort();
    free(plain);
    wefti_seal_release(seal);
    close(sockets[0]), close(sockets[1]);
    return 0;
}

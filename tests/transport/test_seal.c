/* Encrypted connections: what is sent comes whole in any pieces; what was changed, repeated, moved, left out or cut off does not. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "transport/seal.h"

static const uint8_t secret[] = "a secret of the job, long enough", another[] = "another secret, long enough too.";

static wefti_terms terms_of(int32_t rank) {
    return (wefti_terms){.host = wefti_host_system(), .purpose = WEFTI_FOR_WIRE, .rank = rank, .size = 4, .job = "job", .secret = secret,
                         .secret_bytes = sizeof secret, .encrypt = true};
}

/* Two ends that have shaken hands over sockets[0] and [1]. */
typedef struct pair {
    int             sockets[2];
    wefti_terms     terms[2];
    wefti_handshake shakes[2];
    wefti_seal     *seals[2];
    weft_status     statuses[2];
} pair;

static void shake(pair *ends) {
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends->sockets), 0);
    cr_assert_eq(wefti_handshake_call(&ends->shakes[0], &ends->terms[0], ends->sockets[0], 1, 0), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(wefti_handshake_answer(&ends->shakes[1], &ends->terms[1], ends->sockets[1], 0), WEFT_OK);
    ends->statuses[0] = ends->statuses[1] = WEFT_E_AGAIN;
    for (int i = 0; i < 20; i++)
        for (int end = 0; end < 2; end++)
            if (ends->statuses[end] == WEFT_E_AGAIN) ends->statuses[end] = wefti_handshake_progress(&ends->shakes[end], 1);
}

static pair join(void) {
    pair ends = {.terms = {terms_of(2), terms_of(1)}};
    shake(&ends);
    for (int end = 0; end < 2; end++) {
        ends.shakes[end].terms = &ends.terms[end];
        cr_assert_eq(ends.statuses[end], WEFT_OK, "%s", weft_error_message());
        cr_assert_eq(wefti_seal_create(&ends.shakes[end], &ends.seals[end]), WEFT_OK);
        cr_assert_not_null(ends.seals[end]);
    }
    return ends;
}

static void part(pair *ends) {
    for (int end = 0; end < 2; end++) {
        wefti_seal_release(ends->seals[end]);
        close(ends->sockets[end]);
    }
}

static ssize_t send_bytes(pair *ends, int end, const void *bytes, size_t count) {
    struct iovec piece = {(void *)bytes, count};
    return wefti_seal_send(ends->seals[end], ends->sockets[end], &piece, 1);
}
static ssize_t receive_bytes(pair *ends, int end, void *bytes, size_t count) {
    struct iovec piece = {bytes, count};
    return wefti_seal_receive(ends->seals[end], ends->sockets[end], &piece, 1);
}

#define NEEDS_SODIUM() \
    if (!wefti_can_authenticate()) cr_skip_test("this build lacks libsodium")

Test(seal, asks_for_what_it_needs) {
    wefti_terms     terms = terms_of(1);
    wefti_handshake shaking;
    if (!wefti_can_authenticate()) {
        cr_expect_eq(wefti_handshake_call(&shaking, &terms, -1, 0, 0), WEFT_E_UNSUPPORTED);
        cr_expect_eq(wefti_handshake_answer(&shaking, &terms, -1, 0), WEFT_E_UNSUPPORTED);
        cr_expect(strstr(weft_error_message(), "libsodium"), "%s", weft_error_message());
        return;
    }
    terms.secret_bytes = 0;
    cr_expect_eq(wefti_handshake_call(&shaking, &terms, -1, 0, 0), WEFT_E_AUTH);
    cr_expect(strstr(weft_error_message(), "WEFT_SECRET"), "%s", weft_error_message());
}

Test(seal, keys_agree_by_direction_and_are_fresh) {
    NEEDS_SODIUM();
    uint8_t seen[4][WEFTI_KEY_BYTES];
    for (int round = 0; round < 2; round++) {
        pair ends = {.terms = {terms_of(2), terms_of(1)}};
        shake(&ends);
        cr_assert(ends.statuses[0] == WEFT_OK && ends.statuses[1] == WEFT_OK);
        cr_expect_eq(memcmp(ends.shakes[0].send_key, ends.shakes[1].receive_key, WEFTI_KEY_BYTES), 0);
        cr_expect_eq(memcmp(ends.shakes[1].send_key, ends.shakes[0].receive_key, WEFTI_KEY_BYTES), 0);
        memcpy(seen[2 * round], ends.shakes[0].send_key, WEFTI_KEY_BYTES);
        memcpy(seen[2 * round + 1], ends.shakes[1].send_key, WEFTI_KEY_BYTES);
        static const uint8_t none[WEFTI_KEY_BYTES];
        for (int end = 0; end < 2; end++) {
            cr_expect_eq(memcmp(ends.shakes[end].ephemeral, none, sizeof none), 0, "the half of the exchange is still there");
            ends.shakes[end].terms = &ends.terms[end];
            cr_assert_eq(wefti_seal_create(&ends.shakes[end], &ends.seals[end]), WEFT_OK);
            cr_expect_eq(memcmp(ends.shakes[end].send_key, none, sizeof none), 0, "the handshake still has the keys");
        }
        part(&ends);
    }
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < i; k++) cr_expect_neq(memcmp(seen[i], seen[k], WEFTI_KEY_BYTES), 0, "keys %d and %d are the same", i, k);
}

Test(seal, both_ends_must_want_it) {
    NEEDS_SODIUM();
    for (int which = 0; which < 2; which++) {
        pair ends = {.terms = {terms_of(2), terms_of(1)}};
        ends.terms[which].encrypt = false;
        shake(&ends);
        cr_expect_eq(ends.statuses[0], WEFT_E_MISMATCH);
        cr_expect_eq(ends.statuses[1], WEFT_E_MISMATCH);
        cr_expect(strstr(weft_error_message(), "WEFT_ENCRYPT"), "%s", weft_error_message());
        part(&ends);
    }
    pair ends = {.terms = {terms_of(2), terms_of(1)}};
    ends.terms[0].secret = another;
    shake(&ends);
    cr_expect(ends.statuses[0] == WEFT_E_AUTH && ends.statuses[1] == WEFT_E_AUTH);
    part(&ends);
}

/* Somebody between the two who exchanges a key for his own is found, since the proofs cover both. */
Test(seal, nobody_stands_between) {
    NEEDS_SODIUM();
    enum { KEY_IN_HELLO = 152, KEY_IN_CHALLENGE = 48 };
    for (int which = 0; which < 2; which++) {
        int             client[2], server[2];
        wefti_terms     terms[2] = {terms_of(2), terms_of(1)};
        wefti_handshake shakes[2];
        weft_status     statuses[2] = {WEFT_E_AGAIN, WEFT_E_AGAIN};
        cr_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, client) == 0 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, server) == 0);
        cr_assert_eq(wefti_handshake_call(&shakes[0], &terms[0], client[0], 1, 0), WEFT_OK);
        cr_assert_eq(wefti_handshake_answer(&shakes[1], &terms[1], server[0], 0), WEFT_OK);
        for (int i = 0; i < 10; i++) {
            uint8_t bytes[512];
            if (statuses[0] == WEFT_E_AGAIN) statuses[0] = wefti_handshake_progress(&shakes[0], 1);
            ssize_t count = recv(client[1], bytes, sizeof bytes, MSG_DONTWAIT);
            if (which == 0 && count == WEFTI_HELLO_BYTES) bytes[KEY_IN_HELLO] ^= 1;
            if (count > 0) cr_assert_eq(send(server[1], bytes, (size_t)count, MSG_NOSIGNAL), count);
            if (statuses[1] == WEFT_E_AGAIN) statuses[1] = wefti_handshake_progress(&shakes[1], 1);
            count = recv(server[1], bytes, sizeof bytes, MSG_DONTWAIT);
            if (which == 1 && count == WEFTI_CHALLENGE_BYTES) bytes[KEY_IN_CHALLENGE] ^= 1;
            if (count > 0) cr_assert_eq(send(client[1], bytes, (size_t)count, MSG_NOSIGNAL), count);
        }
        cr_expect(statuses[0] == WEFT_E_AUTH && statuses[1] == WEFT_E_AUTH, "%s, %s", weft_status_name(statuses[0]), weft_status_name(statuses[1]));
        close(client[0]), close(client[1]), close(server[0]), close(server[1]);
    }
}

/* --- records --- */

/* Any amounts offered and taken, through sockets that are often full. */
Test(seal, carries_any_bytes_in_any_pieces) {
    NEEDS_SODIUM();
    enum { TOTAL = 3000000 };
    static uint8_t sent[TOTAL], got[TOTAL];
    pair           ends = join();
    uint32_t       random = 7;
    size_t         at = 0, from = 0;
    for (size_t i = 0; i < TOTAL; i++) sent[i] = (uint8_t)(i * 2654435761u >> 11);
    for (int idle = 0; from < TOTAL && idle < 1000; idle++) {
        random = random * 1664525u + 1013904223u;
        size_t       offer = random % 7 == 0 ? random >> 12 : random >> 20, first = offer / 3;
        if (offer < wefti_seal_pending(ends.seals[0])) offer = wefti_seal_pending(ends.seals[0]), first = offer / 3;
        if (offer > TOTAL - at) offer = TOTAL - at, first = offer / 2;
        struct iovec parts[2] = {{sent + at, first}, {sent + at + first, offer - first}};
        ssize_t      moved = wefti_seal_send(ends.seals[0], ends.sockets[0], parts, 2);
        if (moved > 0) at += (size_t)moved, idle = 0;
        cr_assert(moved >= 0 || errno == EAGAIN, "%s", strerror(errno));
        if (random % 3) continue;
        size_t       room = (random >> 8) % 200000, begin = room / 5;
        if (room > TOTAL - from) room = TOTAL - from, begin = 0;
        if (room == 0) continue;
        struct iovec into[2] = {{got + from, begin}, {got + from + begin, room - begin}};
        moved = wefti_seal_receive(ends.seals[1], ends.sockets[1], into, 2);
        cr_assert(moved > 0 || errno == EAGAIN, "%zu of %d: %s", from, TOTAL, strerror(errno));
        if (moved > 0) from += (size_t)moved, idle = 0;
    }
    cr_expect(from == TOTAL && memcmp(sent, got, TOTAL) == 0, "%zu of %d bytes", from, TOTAL);
    cr_expect_not(wefti_seal_holds(ends.seals[1]));
    close(ends.sockets[0]);
    ends.sockets[0] = -1;
    cr_expect_eq(receive_bytes(&ends, 1, got, 1), 0, "the end between two records is an end");
    part(&ends);
}

/* Two records as they travel, and what the receiver makes of bytes that came instead. */
enum { PLAIN = 37, RECORD = PLAIN + WEFTI_SEAL_EXTRA_BYTES };

static pair record_two(uint8_t records[2][RECORD]) {
    pair ends = join();
    for (int i = 0; i < 2; i++) {
        uint8_t plain[PLAIN];
        memset(plain, 'a' + i, sizeof plain);
        cr_assert_eq(send_bytes(&ends, 0, plain, PLAIN), PLAIN);
        cr_assert_eq(recv(ends.sockets[1], records[i], RECORD, 0), RECORD);
        cr_expect_neq(memcmp(records[i] + WEFTI_SEAL_HEADER_BYTES, plain, PLAIN), 0, "that is no encryption");
    }
    return ends;
}

/* Receives after the other end has sent these bytes and gone: how many plain bytes were handed out until the end. */
static size_t deliver(pair *ends, const uint8_t *bytes, size_t count, int *error_out) {
    uint8_t plain[3 * PLAIN];
    size_t  total = 0;
    ssize_t got;
    cr_assert_eq(send(ends->sockets[0], bytes, count, MSG_NOSIGNAL), (ssize_t)count);
    shutdown(ends->sockets[0], SHUT_WR);
    while ((got = receive_bytes(ends, 1, plain, sizeof plain)) > 0) total += (size_t)got;
    *error_out = got < 0 ? errno : 0;
    return total;
}

Test(seal, every_changed_bit_ends_it) {
    NEEDS_SODIUM();
    for (size_t bit = 0; bit < 8 * RECORD; bit++) {
        uint8_t records[2][RECORD];
        int     error = 0;
        pair    ends = record_two(records);
        records[0][bit / 8] ^= (uint8_t)(1 << bit % 8);
        cr_expect_eq(deliver(&ends, records[0], sizeof records, &error), 0, "bit %zu", bit);
        cr_expect_eq(error, EBADMSG, "bit %zu: %d", bit, error);
        cr_expect_not_null(wefti_seal_cause(ends.seals[1]), "bit %zu", bit);
        uint8_t byte;
        cr_expect(receive_bytes(&ends, 1, &byte, 1) < 0 && errno == EBADMSG, "it goes on after bit %zu", bit);
        part(&ends);
    }
}

Test(seal, what_is_repeated_moved_left_out_or_cut_off_ends_it) {
    NEEDS_SODIUM();
    for (int which = 0; which < 6; which++) {
        uint8_t records[2][RECORD], other[2][RECORD], bytes[3 * RECORD];
        int     error = 0;
        pair    ends = record_two(records), elsewhere = record_two(other);
        size_t  count = 2 * RECORD, plain = 0;
        memcpy(bytes, records, sizeof records);
        switch (which) {
        case 0: plain = 2 * PLAIN; break; /* as it was */
        case 1: memcpy(bytes + RECORD, records[0], RECORD), plain = PLAIN; break; /* repeated */
        case 2: memcpy(bytes, records[1], RECORD), memcpy(bytes + RECORD, records[0], RECORD); break;
        case 3: memcpy(bytes, records[1], RECORD), count = RECORD; break; /* the first is left out */
        case 4: count = 2 * RECORD - 1, plain = PLAIN; break;
        default: memcpy(bytes, other[0], RECORD); break; /* from another connection of the same ranks */
        }
        cr_expect_eq(deliver(&ends, bytes, count, &error), plain, "case %d", which);
        cr_expect_eq(error, which ? EBADMSG : 0, "case %d: %d", which, error);
        if (which == 4) cr_expect(strstr(wefti_seal_cause(ends.seals[1]), "cut off"), "%s", wefti_seal_cause(ends.seals[1]));
        part(&ends);
        part(&elsewhere);
    }
}

/* What one end has sent does not open when it is sent back to it. */
Test(seal, nothing_comes_back) {
    NEEDS_SODIUM();
    uint8_t records[2][RECORD];
    pair    ends = record_two(records);
    cr_assert_eq(send(ends.sockets[1], records, sizeof records, 0), (ssize_t)sizeof records);
    uint8_t byte;
    cr_expect(receive_bytes(&ends, 0, &byte, 1) < 0 && errno == EBADMSG);
    part(&ends);
    weft_memory_counts counts;
    weft_memory_read(&counts);
    cr_expect_eq(counts.held_bytes, 0);
}

Test(seal, no_length_is_believed) {
    NEEDS_SODIUM();
    static const uint32_t lengths[] = {0, WEFTI_SEAL_RECORD_BYTES + 1, INT32_MAX, UINT32_MAX};
    for (size_t i = 0; i < WEFTI_COUNT(lengths); i++) {
        pair    ends = join();
        uint8_t header[4], byte;
        for (int k = 0; k < 4; k++) header[k] = (uint8_t)(lengths[i] >> 8 * k);
        cr_assert_eq(send(ends.sockets[0], header, 4, 0), 4);
        cr_expect(receive_bytes(&ends, 1, &byte, 1) < 0 && errno == EBADMSG, "length %u: %s", lengths[i], strerror(errno));
        part(&ends);
    }
}

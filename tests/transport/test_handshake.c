/* The handshake: both ends prove themselves, and nothing else gets through: every prefix, every flipped bit, replays. */
#include <criterion/criterion.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "transport/fault.h"
#include "transport/frames.h"
#include "transport/handshake.h"
#include "transport/wire_tcp.h"

static const uint8_t secret[] = "a secret of the job, long enough";
static const uint8_t cookie[WEFTI_COOKIE_BYTES] = {1, 2, 3};

static wefti_terms terms_of(int32_t rank, bool with_secret) {
    return (wefti_terms){.host = wefti_host_system(), .purpose = WEFTI_FOR_WIRE, .rank = rank, .size = 4, .epoch = 3,
                         .job = "job", .cookie = cookie, .secret = secret, .secret_bytes = with_secret ? sizeof secret : 0};
}

typedef struct both_ends {
    int             sockets[2];
    wefti_handshake client, server;
    weft_status     client_status, server_status;
} both_ends;

/* Runs both to their ends. */
static void shake(both_ends *ends, const wefti_terms *client, const wefti_terms *server) {
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends->sockets), 0);
    cr_assert_eq(wefti_handshake_call(&ends->client, client, ends->sockets[0], server->rank, 0), WEFT_OK);
    cr_assert_eq(wefti_handshake_answer(&ends->server, server, ends->sockets[1], 0), WEFT_OK);
    ends->client_status = ends->server_status = WEFT_E_AGAIN;
    for (int i = 0; i < 20; i++) {
        if (ends->client_status == WEFT_E_AGAIN) ends->client_status = wefti_handshake_progress(&ends->client, 1);
        if (ends->client_status != WEFT_E_AGAIN && ends->client_status != WEFT_OK) shutdown(ends->sockets[0], SHUT_WR);
        if (ends->server_status == WEFT_E_AGAIN) ends->server_status = wefti_handshake_progress(&ends->server, 1);
        if (ends->server_status != WEFT_E_AGAIN) shutdown(ends->sockets[1], SHUT_WR);
    }
    close(ends->sockets[0]);
    close(ends->sockets[1]);
}

Test(handshake, lets_those_in_that_agree) {
    for (int with = 0; with < 2; with++) {
        wefti_terms client = terms_of(2, with), server = terms_of(1, with);
        both_ends   ends;
        shake(&ends, &client, &server);
        cr_expect_eq(ends.client_status, WEFT_OK, "%s", weft_error_message());
        cr_expect_eq(ends.server_status, WEFT_OK);
        cr_expect_eq(ends.server.peer, 2);
    }
}

static weft_status refuse_2(void *context, int32_t rank) {
    (void)context;
    return rank == 2 ? WEFT_E_EXISTS : WEFT_OK;
}
static weft_status later(void *context, int32_t rank) {
    (void)context, (void)rank;
    return WEFT_E_AGAIN;
}

Test(handshake, says_why_it_does_not) {
    static const uint8_t other_secret[] = "another secret, long enough too.", other_cookie[WEFTI_COOKIE_BYTES] = {9};
    for (int with = 0; with < 2; with++) {
        if (with && !wefti_can_authenticate()) break;
        struct { wefti_terms client, server; weft_status client_status, server_status; } cases[9];
        for (size_t i = 0; i < WEFTI_COUNT(cases); i++) {
            cases[i].client = terms_of(2, with);
            cases[i].server = terms_of(1, with);
        }
        size_t n = 0;
        cases[n].client.size = 5, cases[n].client_status = cases[n].server_status = WEFT_E_MISMATCH, n++;
        cases[n].client.epoch = 2, cases[n].client_status = cases[n].server_status = WEFT_E_MISMATCH, n++;
        cases[n].client.job = "jobs", cases[n].client_status = cases[n].server_status = WEFT_E_NOT_FOUND, n++;
        cases[n].client.cookie = other_cookie, cases[n].client_status = cases[n].server_status = WEFT_E_NOT_FOUND, n++;
        cases[n].client.purpose = WEFTI_FOR_STORE, cases[n].client_status = cases[n].server_status = WEFT_E_NOT_FOUND, n++;
        cases[n].client.rank = 1, cases[n].client_status = cases[n].server_status = WEFT_E_EXISTS, n++;
        cases[n].client.rank = 4, cases[n].client_status = cases[n].server_status = WEFT_E_EXISTS, n++;
        cases[n].server.admit = refuse_2, cases[n].client_status = cases[n].server_status = WEFT_E_EXISTS, n++;
        cases[n].server.admit = later, cases[n].client_status = cases[n].server_status = WEFT_E_LINK, n++;
        for (size_t i = 0; i < n; i++) {
            both_ends ends;
            shake(&ends, &cases[i].client, &cases[i].server);
            cr_expect_eq(ends.client_status, cases[i].client_status, "case %zu: client %s", i,
                         weft_status_name(ends.client_status));
            cr_expect_eq(ends.server_status, cases[i].server_status, "case %zu: server %s", i,
                         weft_status_name(ends.server_status));
        }
    }
    if (!wefti_can_authenticate()) return;
    wefti_terms client = terms_of(2, true), server = terms_of(1, true);
    both_ends   ends;
    client.secret = other_secret;
    shake(&ends, &client, &server);
    cr_expect_eq(ends.client_status, WEFT_E_AUTH);
    cr_expect_eq(ends.server_status, WEFT_E_AUTH);
    for (int which = 0; which < 2; which++) {
        client = terms_of(2, which);
        server = terms_of(1, !which);
        shake(&ends, &client, &server);
        cr_expect_eq(ends.client_status, WEFT_E_AUTH);
        cr_expect_neq(ends.server_status, WEFT_OK);
    }
}

/* What an honest client says, cut or changed on the way to a server. */
static weft_status answer_to(const uint8_t *bytes, size_t count, bool with_secret, bool hang_up) {
    int             sockets[2];
    wefti_terms     server = terms_of(1, with_secret);
    wefti_handshake shaking;
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sockets), 0);
    cr_assert_eq(wefti_handshake_answer(&shaking, &server, sockets[1], 0), WEFT_OK);
    if (count) cr_assert_eq(send(sockets[0], bytes, count, 0), (ssize_t)count);
    if (hang_up) shutdown(sockets[0], SHUT_WR);
    weft_status status = WEFT_E_AGAIN;
    for (int i = 0; i < 5 && status == WEFT_E_AGAIN; i++) status = wefti_handshake_progress(&shaking, 1);
    if (status == WEFT_E_AGAIN) status = wefti_handshake_progress(&shaking, WEFTI_HANDSHAKE_LIMIT_NS + 1);
    close(sockets[0]);
    close(sockets[1]);
    return status;
}

Test(handshake, a_server_survives_every_cut_and_every_flipped_bit) {
    uint8_t         said[WEFTI_HELLO_BYTES + WEFTI_MAC_BYTES] = {0};
    wefti_terms     client = terms_of(2, false);
    wefti_handshake calling;
    cr_assert_eq(wefti_handshake_call(&calling, &client, -1, 1, 0), WEFT_OK);
    memcpy(said, calling.out, WEFTI_HELLO_BYTES); /* without a secret the proof is zeros */
    cr_expect_eq(answer_to(said, sizeof said, false, false), WEFT_OK);
    if (wefti_can_authenticate()) cr_expect_eq(answer_to(said, sizeof said, true, false), WEFT_E_AUTH);
    for (size_t count = 0; count < sizeof said; count++) {
        cr_expect_eq(answer_to(said, count, false, true), WEFT_E_LINK, "cut after %zu", count);
        cr_expect_eq(answer_to(said, count, false, false), WEFT_E_TIMEOUT, "silent after %zu", count);
    }
    for (size_t bit = 0; bit < 8 * sizeof said; bit++) {
        said[bit / 8] ^= (uint8_t)(1 << bit % 8);
        weft_status status = answer_to(said, sizeof said, false, false);
        /* The nonce may be anything, and so may the key, the unused bytes and which of the other ranks it is. */
        bool free_choice = (bit >= 8 * 56 && bit < 8 * 88) || (bit >= 8 * 152 && bit < 8 * WEFTI_HELLO_BYTES) || bit / 8 == 16;
        cr_expect(free_choice || (status != WEFT_OK && status != WEFT_E_AGAIN), "bit %zu: %s", bit, weft_status_name(status));
        said[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
}

/* Without a secret anybody may call, also another job of an older Weft: that is a stranger, and no fault of this job. */
Test(handshake, another_version_matters_within_the_job_only) {
    static const struct { const char *job; weft_status status; } cases[] = {{"job", WEFT_E_MISMATCH}, {"jobs", WEFT_E_NOT_FOUND}};
    for (size_t i = 0; i < WEFTI_COUNT(cases); i++) {
        uint8_t         said[WEFTI_HELLO_BYTES + WEFTI_MAC_BYTES] = {0};
        wefti_terms     client = terms_of(2, false);
        wefti_handshake calling;
        client.job = cases[i].job;
        cr_assert_eq(wefti_handshake_call(&calling, &client, -1, 1, 0), WEFT_OK);
        memcpy(said, calling.out, WEFTI_HELLO_BYTES);
        said[8]++; /* the version, behind the magic */
        cr_expect_eq(answer_to(said, sizeof said, false, false), cases[i].status, "%s", weft_error_message());
    }
}

Test(handshake, a_recorded_one_cannot_be_replayed) {
    if (!wefti_can_authenticate()) return;
    wefti_terms client = terms_of(2, true), server = terms_of(1, true);
    both_ends   ends;
    uint8_t     recorded[WEFTI_HELLO_BYTES + WEFTI_MAC_BYTES];
    shake(&ends, &client, &server);
    cr_assert_eq(ends.server_status, WEFT_OK);
    memcpy(recorded, ends.client.hello, WEFTI_HELLO_BYTES);
    memcpy(recorded + WEFTI_HELLO_BYTES, ends.client.out, WEFTI_MAC_BYTES); /* the proof it sent */
    cr_expect_eq(answer_to(recorded, sizeof recorded, true, false), WEFT_E_AUTH);
}

Test(handshake, a_client_trusts_no_server_without_proof) {
    if (!wefti_can_authenticate()) return;
    int             sockets[2];
    wefti_terms     client = terms_of(2, true);
    wefti_handshake calling;
    uint8_t         challenge[WEFTI_CHALLENGE_BYTES] = {0}, verdict[WEFTI_VERDICT_BYTES] = {0};
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sockets), 0);
    cr_assert_eq(wefti_handshake_call(&calling, &client, sockets[0], 1, 0), WEFT_OK);
    memcpy(challenge, calling.out, 12); /* magic and version */
    memcpy(verdict, calling.out, 12);
    challenge[12] = 1;
    cr_assert(send(sockets[1], challenge, sizeof challenge, 0) > 0 && send(sockets[1], verdict, sizeof verdict, 0) > 0);
    weft_status status = WEFT_E_AGAIN;
    for (int i = 0; i < 5 && status == WEFT_E_AGAIN; i++) status = wefti_handshake_progress(&calling, 1);
    cr_expect_eq(status, WEFT_E_AUTH, "%s", weft_status_name(status));
    close(sockets[0]);
    close(sockets[1]);
}

/* --- frames of the control channel --- */

Test(frames, carry_what_was_sent_in_any_pieces) {
    int          sockets[2];
    wefti_frames from, to;
    uint8_t      payload[5000], *raw = (uint8_t[8192]){0};
    for (size_t i = 0; i < sizeof payload; i++) payload[i] = (uint8_t)(i * 7);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sockets), 0);
    wefti_frames_open(&from, sockets[0], 5000, 0);
    cr_assert_eq(wefti_frames_send(&from, (wefti_frame){7, sizeof payload, -3, 9}, payload), WEFT_OK);
    ssize_t length = recv(sockets[1], raw, 8192, 0);
    cr_assert_eq(length, 5020);
    int again[2];
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, again), 0);
    wefti_frames_open(&to, again[1], 5000, 0);
    wefti_frame    frame;
    const uint8_t *got = NULL;
    for (ssize_t at = 0; at < length; at++) {
        cr_assert_eq(wefti_frames_next(&to, 1, &frame, &got), WEFT_E_AGAIN);
        cr_assert_eq(send(again[0], raw + at, 1, 0), 1);
    }
    cr_assert_eq(wefti_frames_next(&to, 1, &frame, &got), WEFT_OK);
    cr_expect(frame.kind == 7 && frame.length == 5000 && frame.rank == -3 && frame.value == 9);
    cr_expect(memcmp(got, payload, sizeof payload) == 0);
    close(again[0]);
    cr_expect_eq(wefti_frames_next(&to, 1, &frame, &got), WEFT_E_LINK);
    wefti_frames_close(&from);
    wefti_frames_close(&to);
    close(sockets[1]);
}

Test(frames, refuse_lengths_and_headers_that_are_none) {
    for (int which = 0; which < 2; which++) {
        int          sockets[2];
        wefti_frames to;
        uint8_t      raw[20] = {'W', 'F', 'R', 1, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f};
        if (which) raw[1] = 'X';
        cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sockets), 0);
        wefti_frames_open(&to, sockets[1], 5000, 0);
        cr_assert_eq(send(sockets[0], raw, sizeof raw, 0), 20);
        wefti_frame    frame;
        const uint8_t *got = NULL;
        cr_expect_eq(wefti_frames_next(&to, 1, &frame, &got), WEFT_E_CORRUPT);
        wefti_frames_close(&to);
        close(sockets[0]);
    }
}

/* --- headers of the TCP wire, as a peer that has gone mad might send them --- */

/* Connects two ends in this process, and gives the mad one's socket. */
static int connect_pair(wefti_wire **sane, wefti_wire **mad, bool encrypt) {
    wefti_wire *wires[2];
    uint8_t     address[2][WEFTI_WIRE_ADDRESS_BYTES];
    size_t      bytes[2];
    for (int32_t rank = 0; rank < 2; rank++) {
        wefti_wire_options options = {.rank = rank, .size = 2, .secret = secret, .secret_bytes = sizeof secret, .encrypt = encrypt};
        cr_assert_eq(wefti_wire_tcp_open(&options, &wires[rank]), WEFT_OK);
        cr_assert_eq(wires[rank]->ops->address(wires[rank], address[rank], &bytes[rank]), WEFT_OK);
    }
    for (int32_t rank = 0; rank < 2; rank++)
        cr_assert_eq(wires[rank]->ops->connect(wires[rank], 1 - rank, address[1 - rank], bytes[1 - rank]), WEFT_OK);
    for (int i = 0; i < 5000; i++) {
        for (int32_t rank = 0; rank < 2; rank++) (void)!wefti_wire_progress(wires[rank], wefti_host_now(wires[rank]->host));
        if (wires[0]->ops->link(wires[0], 1) == WEFTI_LINK_UP && wires[1]->ops->link(wires[1], 0) == WEFTI_LINK_UP) break;
        usleep(1000);
    }
    *sane = wires[0];
    *mad = wires[1];
    return ((tcp_wire *)wires[1])->links[0].socket;
}

Test(wire_tcp, a_mad_peer_ends_its_link_and_nothing_else) {
    const tcp_header mad_headers[] = {
        {.kind = 0}, {.kind = 77}, {.kind = TCP_MESSAGE, .bytes = UINT64_MAX}, {.kind = TCP_MESSAGE, .bytes = TCP_EAGER_BYTES + 1},
        {.kind = TCP_CLEAR, .token = 12345}, {.kind = TCP_DATA, .token = 1, .bytes = 8}, {.kind = TCP_READ_DATA, .token = 5},
        {.kind = TCP_WRITE, .region = 0, .bytes = 8}, {.kind = TCP_WRITE, .region = 1, .offset = 4000, .bytes = 200},
        {.kind = TCP_WRITE, .region = 1, .offset = UINT64_MAX, .bytes = 2}, {.kind = TCP_WRITE, .region = UINT32_MAX, .bytes = 1},
        {.kind = TCP_READ, .region = 1, .offset = 1, .bytes = UINT64_MAX}, {.kind = TCP_READ, .region = 9, .bytes = 1},
        {.kind = TCP_REGION, .region = 0}, {.kind = TCP_REGION, .region = UINT32_MAX}, {.kind = TCP_REGION, .region = 1, .bytes = UINT64_MAX},
    };
    for (size_t i = 0; i < WEFTI_COUNT(mad_headers) + 64; i++) {
        wefti_wire *sane, *mad;
        int         socket = connect_pair(&sane, &mad, false);
        wefti_wire_region *region = NULL;
        cr_assert_eq(sane->ops->region_create(sane, 4096, &region), WEFT_OK);
        uint64_t      value = 0;
        wefti_wire_op waiting = wefti_wire_recv(1, 99, &value, 8), own = wefti_wire_recv(0, 1, &value, 8),
                      self = wefti_wire_send(0, 1, &value, 8);
        cr_assert_eq(wefti_wire_post(sane, &waiting), WEFT_OK);
        uint8_t bytes[TCP_HEADER_BYTES];
        if (i < WEFTI_COUNT(mad_headers)) {
            wefti_tcp_header_write(bytes, &mad_headers[i]);
        } else {
            uint32_t random = (uint32_t)i * 2654435761u;
            for (size_t b = 0; b < sizeof bytes; b++) bytes[b] = (uint8_t)((random = random * 1664525u + 1013904223u) >> 24);
        }
        cr_assert_eq(send(socket, bytes, sizeof bytes, MSG_NOSIGNAL), (ssize_t)sizeof bytes);
        for (int k = 0; k < 2000 && !waiting.done; k++) {
            cr_assert_eq(wefti_wire_progress(sane, wefti_host_now(sane->host)), WEFT_OK);
            if (k > 20) usleep(200);
        }
        cr_expect(waiting.done && waiting.status == WEFT_E_PEER && waiting.done_peer == 1, "header %zu", i);
        cr_expect_eq(sane->ops->link(sane, 1), WEFTI_LINK_DOWN, "header %zu", i);
        cr_expect_eq(wefti_wire_post(sane, &own), WEFT_OK);
        cr_expect_eq(wefti_wire_post(sane, &self), WEFT_OK);
        cr_expect(own.done && own.status == WEFT_OK);
        sane->ops->close(sane, 0);
        mad->ops->close(mad, 0);
    }
    weft_memory_counts counts;
    weft_memory_read(&counts);
    cr_expect_eq(counts.held_bytes, 0);
}

/* An encrypted link on which somebody changes, adds or cuts off something is a broken link with a peer and a cause. */
Test(wire_tcp, what_is_changed_on_an_encrypted_link_ends_it) {
    if (!wefti_can_authenticate()) return;
    static const char *const causes[] = {"does not open", "length that is none", "cut off"};
    for (size_t i = 0; i < WEFTI_COUNT(causes); i++) {
        wefti_wire   *sane, *mad;
        int           socket = connect_pair(&sane, &mad, true);
        uint8_t       bytes[100] = {(uint8_t)(i == 1 ? 0 : 50)};
        uint64_t      value = 0;
        wefti_wire_op waiting = wefti_wire_recv(1, 99, &value, 8);
        cr_assert_eq(wefti_wire_post(sane, &waiting), WEFT_OK);
        cr_assert(send(socket, bytes, i == 2 ? 60 : 4 + 50 + 16, MSG_NOSIGNAL) > 0);
        if (i == 2) shutdown(socket, SHUT_WR);
        for (int k = 0; k < 2000 && !waiting.done; k++) {
            cr_assert_eq(wefti_wire_progress(sane, wefti_host_now(sane->host)), WEFT_OK);
            if (k > 20) usleep(200);
        }
        cr_expect(waiting.done && waiting.status == WEFT_E_PEER && waiting.done_peer == 1, "case %zu", i);
        wefti_wire_op again = wefti_wire_send(1, 99, &value, 8);
        cr_expect_eq(wefti_wire_post(sane, &again), WEFT_E_PEER);
        cr_expect(strstr(weft_error_message(), "rank 1") && strstr(weft_error_message(), causes[i]), "%s", weft_error_message());
        sane->ops->close(sane, 0);
        mad->ops->close(mad, 0);
    }
}

/* And a control channel. */
Test(frames, what_is_changed_on_an_encrypted_channel_ends_it) {
    if (!wefti_can_authenticate()) return;
    for (int changed = 0; changed < 2; changed++) {
        wefti_terms  client = terms_of(2, true), server = terms_of(1, true);
        wefti_seal  *seals[2] = {NULL, NULL};
        wefti_frames from, to;
        int          sockets[2], through[2];
        both_ends    ends;
        client.encrypt = server.encrypt = true;
        shake(&ends, &client, &server);
        cr_assert(wefti_seal_create(&ends.client, &seals[0]) == WEFT_OK && wefti_seal_create(&ends.server, &seals[1]) == WEFT_OK);
        cr_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sockets) == 0 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, through) == 0);
        wefti_frames_open(&from, sockets[0], 5000, 0);
        wefti_frames_encrypt(&from, seals[0]);
        wefti_frames_open(&to, through[1], 5000, 0);
        wefti_frames_encrypt(&to, seals[1]);
        uint8_t        raw[200];
        wefti_frame    frame;
        const uint8_t *got = NULL;
        cr_assert_eq(wefti_frames_send(&from, (wefti_frame){3, 5, 1, 9}, "hello"), WEFT_OK);
        ssize_t count = recv(sockets[1], raw, sizeof raw, 0);
        cr_assert_eq(count, 20 + 5 + 20);
        raw[30] ^= (uint8_t)changed;
        cr_assert_eq(send(through[0], raw, (size_t)count, 0), count);
        cr_expect_eq(wefti_frames_next(&to, 1, &frame, &got), changed ? WEFT_E_CORRUPT : WEFT_OK);
        if (changed) cr_expect(strstr(weft_error_message(), "does not open"), "%s", weft_error_message());
        else cr_expect(frame.kind == 3 && frame.length == 5 && memcmp(got, "hello", 5) == 0);
        wefti_frames_close(&from);
        wefti_frames_close(&to);
        close(sockets[1]), close(through[0]);
    }
}

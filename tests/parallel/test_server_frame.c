/* Short forms of the parameter server's messages: what they leave out comes back, and nothing else is taken for one. */
#include <criterion/criterion.h>
#include <string.h>

#include "parallel/server/frame.h"

typedef struct message {
    _Alignas(8) uint8_t bytes[512];
} message;

static message message_of(const wefti_server_frame *frame, const void *values, size_t bytes) {
    message m;
    memset(&m, 0xee, sizeof m);
    memcpy(m.bytes, frame, sizeof *frame);
    if (bytes) memcpy(m.bytes + sizeof *frame, values, bytes);
    return m;
}

Test(server_frame, a_pull_is_short_and_comes_back) {
    wefti_server_frame frame = {.magic = WEFTI_SERVER_MAGIC, .kind = WEFTI_SERVER_PULL, .flags = WEFTI_SERVER_INLINE | WEFTI_SERVER_RECEIVED_CODED, .slot = 77,
                                .table = UINT64_MAX - 5, .number = UINT64_C(1) << 40, .keys = UINT64_C(1) << 50, .count = 123, .width = 9, .dtype = 1,
                                .timeout_ns = UINT64_C(20000000000), .first = 5, .clock = 3}, got;
    message m = message_of(&frame, NULL, 0);
    cr_assert_eq(wefti_server_shorten(m.bytes, sizeof frame), sizeof(wefti_brief_request));
    cr_assert_eq(wefti_server_lengthen(m.bytes, sizeof(wefti_brief_request)), sizeof frame);
    memcpy(&got, m.bytes, sizeof got);
    cr_expect(got.kind == frame.kind && got.flags == frame.flags && got.slot == frame.slot && got.table == frame.table && got.number == frame.number &&
              got.keys == frame.keys && got.count == frame.count && got.width == 0 && got.first == 0);
    cr_expect(got.timeout_ns >= frame.timeout_ns && got.timeout_ns < frame.timeout_ns + (2 << 20), "%llu ns", (unsigned long long)got.timeout_ns);
    cr_expect_eq(wefti_server_frame_check(&got, sizeof got), WEFT_OK);
}

Test(server_frame, an_answer_is_short_with_its_values) {
    const char values[] = "sixteen bytes...";
    for (size_t bytes = 0; bytes <= WEFTI_BRIEF_VALUES; bytes++) {
        wefti_server_frame frame = {.magic = WEFTI_SERVER_MAGIC, .kind = WEFTI_SERVER_REPLY, .flags = WEFTI_SERVER_INLINE, .slot = 3, .first = 2, .number = 9,
                                    .body_bytes = bytes}, got;
        message m = message_of(&frame, values, bytes);
        size_t  sent = wefti_server_shorten(m.bytes, sizeof frame + bytes);
        cr_assert_eq(sent, sizeof(wefti_brief_reply) - WEFTI_BRIEF_VALUES + bytes);
        memset(m.bytes + sent, 0xee, 64);
        cr_assert_eq(wefti_server_lengthen(m.bytes, sent), sizeof frame + bytes);
        memcpy(&got, m.bytes, sizeof got);
        cr_expect(got.slot == 3 && got.first == 2 && got.status == WEFT_OK && memcmp(m.bytes + sizeof frame, values, bytes) == 0);
        cr_expect_eq(wefti_server_frame_check(&got, sizeof frame + bytes), WEFT_OK);
    }
}

static void stays(wefti_server_frame frame, size_t bytes) {
    message m = message_of(&frame, "seventeen bytes..", bytes);
    cr_expect_eq(wefti_server_shorten(m.bytes, sizeof frame + bytes), sizeof frame + bytes, "kind %d", frame.kind);
    cr_expect(memcmp(m.bytes, &frame, sizeof frame) == 0);
    cr_expect_eq(wefti_server_lengthen(m.bytes, sizeof frame + bytes), sizeof frame + bytes);
}

Test(server_frame, what_does_not_fit_stays_long) {
    wefti_server_frame pull = {.magic = WEFTI_SERVER_MAGIC, .kind = WEFTI_SERVER_PULL, .flags = WEFTI_SERVER_INLINE}, f;
    f = pull, f.kind = WEFTI_SERVER_PUSH, stays(f, 0);
    f = pull, f.part = 1, stays(f, 0);
    f = pull, f.receive_region = 4, stays(f, 0);
    f = pull, f.count = UINT64_C(1) << 32, stays(f, 0);
    f = pull, f.flags |= WEFTI_SERVER_LISTED, stays(f, 0);
    f = pull, f.timeout_ns = UINT64_MAX, stays(f, 0);
    stays(pull, 8);
    wefti_server_frame reply = {.magic = WEFTI_SERVER_MAGIC, .kind = WEFTI_SERVER_REPLY, .flags = WEFTI_SERVER_INLINE, .body_bytes = 17};
    stays(reply, 17);
    f = reply, f.body_bytes = 4, f.status = WEFT_E_PEER, stays(f, 4);
    f = reply, f.body_bytes = 4, f.clock = 1, stays(f, 4);
}

Test(server_frame, nothing_else_is_taken_for_one) {
    for (size_t bytes = 0; bytes < sizeof(wefti_server_frame); bytes++) { /* noise, and short forms that are cut off or of another kind */
        message m;
        memset(&m, 0x42, sizeof m);
        cr_expect_eq(wefti_server_lengthen(m.bytes, bytes), 0, "%zu bytes of noise", bytes);
        wefti_brief_request brief = {.mark = WEFTI_SERVER_BRIEF, .kind = WEFTI_SERVER_PULL};
        memcpy(m.bytes, &brief, sizeof brief);
        cr_expect_eq(wefti_server_lengthen(m.bytes, bytes), bytes == sizeof brief ? sizeof(wefti_server_frame) : 0, "%zu bytes", bytes);
    }
    for (int kind = 0; kind < 256; kind++) {
        message             m;
        wefti_brief_request brief = {.mark = WEFTI_SERVER_BRIEF, .kind = (uint8_t)kind};
        memcpy(m.bytes, &brief, sizeof brief);
        bool known = kind == WEFTI_SERVER_PULL || kind == WEFTI_SERVER_CLOCK || kind == WEFTI_SERVER_REPLY;
        cr_expect_eq(wefti_server_lengthen(m.bytes, sizeof brief) != 0, known, "kind %d", kind);
    }
}

/* Of another version, or none of these at all: said so, whatever its length. */
Test(server_frame, of_another_version_is_refused) {
    wefti_server_frame good = {.magic = WEFTI_SERVER_MAGIC, .kind = WEFTI_SERVER_PULL}, f = good;
    cr_expect_eq(wefti_server_frame_check(&good, sizeof good), WEFT_OK, "%s", weft_error_message());
    f.magic++;
    cr_expect_eq(wefti_server_frame_check(&f, sizeof f), WEFT_E_CORRUPT);
    cr_expect(strstr(weft_error_message(), "no message of this version of Weft"), "%s", weft_error_message());
    for (size_t bytes = 0; bytes < sizeof good; bytes++) cr_expect_eq(wefti_server_frame_check(&good, bytes), WEFT_E_CORRUPT, "%zu bytes", bytes);
    f = good, f.kind = WEFTI_SERVER_KINDS;
    cr_expect_eq(wefti_server_frame_check(&f, sizeof f), WEFT_E_CORRUPT);
    cr_expect(strstr(weft_error_message(), "no message of kind"), "%s", weft_error_message());
    f = good, f.flags = WEFTI_SERVER_INLINE, f.body_bytes = 8;
    cr_expect_eq(wefti_server_frame_check(&f, sizeof f), WEFT_E_CORRUPT);
    cr_expect(strstr(weft_error_message(), "says that 8 follow"), "%s", weft_error_message());
}

/* Frames over a stream. Buffers grow to the largest frame that was really announced within the bound, and are kept, but for large ones:
 * these are for joining, where all hear of all. A payload is handed out where it lies. The peers have proved themselves, but lengths are checked all the same. */
#include "transport/frames.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEADER_BYTES = 20, KEPT_BYTES = 64 << 10 };
static const uint8_t magic[4] = {'W', 'F', 'R', 1};

static void put32(uint8_t *at, uint32_t value) {
    for (int i = 0; i < 4; i++) at[i] = (uint8_t)(value >> 8 * i);
}
static uint32_t get32(const uint8_t *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

void wefti_frames_open(wefti_frames *frames, int socket, uint32_t most_bytes, uint64_t now_ns) {
    *frames = (wefti_frames){.socket = socket, .most_bytes = most_bytes, .heard_ns = now_ns};
}

void wefti_frames_open_stream(wefti_frames *frames, wefti_stream *stream, uint32_t most_bytes, uint64_t now_ns) {
    *frames = (wefti_frames){.socket = -1, .stream = stream, .most_bytes = most_bytes, .heard_ns = now_ns};
}

void wefti_frames_encrypt(wefti_frames *frames, wefti_seal *seal) { frames->seal = seal; }

void wefti_frames_close(wefti_frames *frames) {
    if (frames->socket >= 0) close(frames->socket);
    if (frames->stream) frames->stream->ops->close(frames->stream);
    wefti_seal_release(frames->seal);
    wefti_free(frames->in, frames->in_capacity);
    wefti_free(frames->out, frames->out_capacity);
    *frames = (wefti_frames){.socket = -1};
}

static weft_status make_room(uint8_t **buffer, size_t *capacity, size_t needed) {
    if (needed <= *capacity) return WEFT_OK;
    size_t grown = *capacity ? *capacity : 4096;
    while (grown < needed) grown *= 2;
    WEFTI_TRY(wefti_grow(buffer, *capacity, grown, "a control message"));
    *capacity = grown;
    return WEFT_OK;
}

/* Gives an empty buffer back where it is large. */
static void let_go(uint8_t **buffer, size_t *capacity) {
    if (*capacity <= KEPT_BYTES) return;
    wefti_free(*buffer, *capacity);
    *buffer = NULL;
    *capacity = 0;
}

/* At least one byte of `count`, or WEFT_E_AGAIN, or WEFT_E_LINK. */
static weft_status send_some(wefti_frames *frames, const uint8_t *bytes, size_t count, size_t *sent_out) {
    struct iovec part = {(void *)bytes, count};
    ssize_t      sent;
    if (frames->stream) return frames->stream->ops->send(frames->stream, bytes, count, sent_out);
    do sent = wefti_seal_send(frames->seal, frames->socket, &part, 1);
    while (sent < 0 && errno == EINTR);
    if (sent < 0 && errno == EAGAIN) return WEFT_E_AGAIN;
    if (sent <= 0) return wefti_fail(WEFT_E_LINK, "the control connection has ended");
    *sent_out = (size_t)sent;
    return WEFT_OK;
}

static weft_status receive_some(wefti_frames *frames, uint8_t *bytes, size_t most, size_t *got_out) {
    struct iovec part = {bytes, most};
    ssize_t      got;
    if (frames->stream) return frames->stream->ops->receive(frames->stream, bytes, most, got_out);
    do got = wefti_seal_receive(frames->seal, frames->socket, &part, 1);
    while (got < 0 && errno == EINTR);
    if (got < 0 && errno == EAGAIN) return WEFT_E_AGAIN;
    if (got < 0 && errno == EBADMSG) return wefti_fail(WEFT_E_CORRUPT, "%s", wefti_seal_cause(frames->seal));
    if (got == 0) return wefti_fail(WEFT_E_LINK, "the control connection was closed");
    if (got < 0) return wefti_fail(WEFT_E_LINK, "the control connection has ended: %s", strerror(errno));
    *got_out = (size_t)got;
    return WEFT_OK;
}

weft_status wefti_frames_flush(wefti_frames *frames) {
    while (frames->out_sent < frames->out_have) {
        size_t      sent = 0;
        weft_status status = send_some(frames, frames->out + frames->out_sent, frames->out_have - frames->out_sent, &sent);
        if (status == WEFT_E_AGAIN) return WEFT_OK;
        if (status != WEFT_OK) return status;
        frames->out_sent += sent;
    }
    frames->out_have = frames->out_sent = 0;
    let_go(&frames->out, &frames->out_capacity);
    return WEFT_OK;
}

weft_status wefti_frames_send(wefti_frames *frames, wefti_frame frame, const void *payload) {
    WEFTI_TRY(make_room(&frames->out, &frames->out_capacity, frames->out_have + HEADER_BYTES + frame.length));
    uint8_t *at = frames->out + frames->out_have;
    memcpy(at, magic, sizeof magic);
    put32(at + 4, frame.kind);
    put32(at + 8, frame.length);
    put32(at + 12, (uint32_t)frame.rank);
    put32(at + 16, frame.value);
    if (frame.length) memcpy(at + HEADER_BYTES, payload, frame.length);
    frames->out_have += HEADER_BYTES + frame.length;
    return wefti_frames_flush(frames);
}

/* Receives until `needed` bytes are there. */
static weft_status receive(wefti_frames *frames, size_t needed, uint64_t now_ns) {
    WEFTI_TRY(make_room(&frames->in, &frames->in_capacity, needed));
    while (frames->in_have < needed) {
        size_t      got = 0;
        weft_status status = receive_some(frames, frames->in + frames->in_have, needed - frames->in_have, &got);
        if (status != WEFT_OK) return status;
        frames->in_have += got;
        frames->heard_ns = now_ns;
    }
    return WEFT_OK;
}

weft_status wefti_frames_next(wefti_frames *frames, uint64_t now_ns, wefti_frame *frame_out, const uint8_t **payload_out) {
    if (frames->in_have == 0) let_go(&frames->in, &frames->in_capacity);
    weft_status status = receive(frames, HEADER_BYTES, now_ns);
    if (status != WEFT_OK) return status;
    if (memcmp(frames->in, magic, sizeof magic) != 0)
        return wefti_fail(WEFT_E_CORRUPT, "it sent a message with a header that is none");
    *frame_out = (wefti_frame){get32(frames->in + 4), get32(frames->in + 8), (int32_t)get32(frames->in + 12),
                               get32(frames->in + 16)};
    if (frame_out->length > frames->most_bytes)
        return wefti_fail(WEFT_E_CORRUPT, "it sent a message of %u bytes; at most %u", frame_out->length,
                          frames->most_bytes);
    status = receive(frames, HEADER_BYTES + frame_out->length, now_ns);
    if (status != WEFT_OK) return status;
    *payload_out = frames->in + HEADER_BYTES;
    frames->in_have = 0;
    return WEFT_OK;
}

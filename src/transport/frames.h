/* Frames over a stream: a fixed header and up to a bounded payload, both ways, never blocking. The stream is a socket, or one of a
 * network that has none. */
#ifndef WEFTI_TRANSPORT_FRAMES_H
#define WEFTI_TRANSPORT_FRAMES_H

#include "transport/network.h"
#include "transport/seal.h"

typedef struct wefti_frame {
    uint32_t kind;
    uint32_t length; /* of the payload */
    int32_t  rank;
    uint32_t value;
} wefti_frame;

typedef struct wefti_frames {
    int      socket;      /* -1: none */
    wefti_stream *stream; /* instead of a socket; NULL: none */
    wefti_seal *seal;     /* what encrypts it; NULL: nothing */
    uint32_t most_bytes;  /* bound on a payload that comes in */
    uint8_t *in, *out;
    size_t   in_have, in_capacity, out_have, out_sent, out_capacity;
    uint64_t heard_ns;    /* when anything came last */
} wefti_frames;

void wefti_frames_open(wefti_frames *frames, int socket, uint32_t most_bytes, uint64_t now_ns);
void wefti_frames_open_stream(wefti_frames *frames, wefti_stream *stream, uint32_t most_bytes, uint64_t now_ns);
/* What is sent and comes from now on is encrypted, by `seal`, which it owns; NULL: nothing is. */
void wefti_frames_encrypt(wefti_frames *frames, wefti_seal *seal);
static inline bool wefti_frames_are_open(const wefti_frames *frames) { return frames->socket >= 0 || frames->stream; }
void wefti_frames_close(wefti_frames *frames); /* closes the socket or stream too */
/* Queues a frame and sends what the stream takes. */
weft_status wefti_frames_send(wefti_frames *frames, wefti_frame frame, const void *payload);
/* Sends what is queued, as far as the stream takes it. WEFT_E_LINK when it has ended. */
weft_status wefti_frames_flush(wefti_frames *frames);
/* The next frame: WEFT_OK with its payload (valid until the next call), WEFT_E_AGAIN, WEFT_E_LINK when the other end
 * has gone, WEFT_E_CORRUPT for a header that is none, or where it was changed on the way. */
weft_status wefti_frames_next(wefti_frames *frames, uint64_t now_ns, wefti_frame *frame_out, const uint8_t **payload_out);

#endif

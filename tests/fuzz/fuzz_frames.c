/* Frames of the control channel: no payload is longer than the bound, and reading ends. */
#include "fuzz_net.h"
#include "transport/frames.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    enum { most_bytes = 5000 };
    int            sockets[2];
    wefti_frames   frames;
    wefti_frame    frame;
    const uint8_t *payload = NULL;
    size_t         total = 0;
    fuzz_sockets(sockets, data, size, 1);
    wefti_frames_open(&frames, sockets[0], most_bytes, 0);
    while (wefti_frames_next(&frames, 1, &frame, &payload) == WEFT_OK) {
        uint8_t last = frame.length ? payload[frame.length - 1] : 0; /* for a sanitizer to see */
        total += frame.length + (size_t)(last & 0);
        if (frame.length > most_bytes || total > size) abort();
    }
    wefti_frames_close(&frames);
    close(sockets[1]);
    return 0;
}

/* Stores past the caches, for what another core reads next.
 *
 * Idea: a line that another core has read is shared; to write it again, a core must first ask the other's cache to give it up, line by
 * line, since stores are made in order. A store past the caches asks for nothing and goes at the speed of the memory.
 * Measured on two cores of an AMD EPYC, writing 1 MiB that the other core had read: cores that share a cache 15 GB/s in order and 28
 * past the caches; cores of different caches 2.4 and 27. The reader gets 49 and 27 GB/s, and 26 either way.
 * Such stores are not ordered by what orders others: the writer calls wefti_stream_fence before it tells anybody. Inline and header only,
 * since kernels are compiled for more than one instruction set. */
#ifndef WEFTI_STREAM_H
#define WEFTI_STREAM_H

#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "core/base/base.h"

/* memcpy past the caches, where the target is aligned to 16 bytes and there is a whole line; else memcpy. */
static inline void wefti_stream_copy(void *to, const void *from, size_t bytes) {
#if defined(__SSE2__)
    if (((uintptr_t)to & 15) == 0 && bytes >= WEFTI_CACHE_LINE) {
        size_t lines = bytes / WEFTI_CACHE_LINE;
        __m128i *out = to;
        const __m128i *in = from;
        for (size_t i = 0; i < lines; i++, in += 4, out += 4) {
            __m128i a = _mm_loadu_si128(in), b = _mm_loadu_si128(in + 1), c = _mm_loadu_si128(in + 2), d = _mm_loadu_si128(in + 3);
            _mm_stream_si128(out, a);
            _mm_stream_si128(out + 1, b);
            _mm_stream_si128(out + 2, c);
            _mm_stream_si128(out + 3, d);
        }
        size_t done = lines * WEFTI_CACHE_LINE;
        to = (uint8_t *)to + done;
        from = (const uint8_t *)from + done;
        bytes -= done;
    }
#endif
    if (bytes) memcpy(to, from, bytes);
}

static inline void wefti_stream_fence(void) {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

/* Which copies go better past the caches: to memory that another core reads in between, where cores share no cache; where they share one, such a store
 * only sends the reader to memory. It changes while a program runs, where a host moves its guests' cores. So of every PACE_EVERY copies of
 * PACE_BYTES and more a few in a row are ordinary ones and timed, and the quickest tells. */
enum { WEFTI_PACE_BYTES = 4 << 10, WEFTI_PACE_EVERY = 128, WEFTI_PACE_TRIES = 3 };
typedef struct wefti_pace {
    uint32_t copies;
    bool     quick, streams;
} wefti_pace;
/* Whether the next copy is one that is timed, and so an ordinary one; else `streams` says how it goes. */
static inline bool wefti_pace_times(wefti_pace *pace, size_t bytes) {
    return bytes >= WEFTI_PACE_BYTES && pace->copies++ % WEFTI_PACE_EVERY < WEFTI_PACE_TRIES;
}
/* `quick`: bytes in a nanosecond that ordinary ones are good enough with. */
static inline void wefti_pace_note(wefti_pace *pace, size_t bytes, uint64_t took_ns, uint64_t quick) {
    pace->quick |= bytes >= took_ns * quick;
    if (pace->copies % WEFTI_PACE_EVERY != WEFTI_PACE_TRIES) return;
    pace->streams = !pace->quick;
    pace->quick = false;
}

#endif

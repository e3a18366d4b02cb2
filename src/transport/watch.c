/* Tracks of operations, and reading them while they are written.
 *
 * A record is a seqlock: its number is taken away, its words are stored, its number is put back. A reader that sees the same number before
 * and after has whole words between; else the record was overwritten meanwhile, and is newer than what it looks for. */
#include "transport/watch.h"

#include <string.h>

#include "transport/coll.h"

_Static_assert(sizeof(coll_header) == WEFTI_TRACK_HEADER_WORDS * sizeof(uint64_t), "a record holds a header");

weft_status wefti_watch_create(const wefti_host *host, wefti_watch **watch_out) {
    WEFTI_TRY(wefti_alloc(sizeof **watch_out, "what operations were", watch_out));
    (*watch_out)->host = host;
    pthread_mutex_init(&(*watch_out)->lock, NULL);
    return WEFT_OK;
}

static void free_track(wefti_track *track) {
    wefti_free(track->ranks, (size_t)track->size * sizeof *track->ranks);
    wefti_free(track, sizeof *track);
}

void wefti_watch_release(wefti_watch *watch) {
    if (!watch) return;
    for (wefti_track *track = watch->tracks, *next; track; track = next) {
        next = track->next;
        free_track(track);
    }
    pthread_mutex_destroy(&watch->lock);
    wefti_free(watch, sizeof *watch);
}

wefti_track *wefti_watch_add(wefti_watch *watch, uint16_t id, const int32_t *ranks, int32_t size) {
    wefti_track *track = NULL;
    if (!watch || wefti_alloc(sizeof *track, "what operations were", &track) != WEFT_OK) return NULL;
    track->id = id;
    track->size = size;
    if (wefti_alloc((size_t)size * sizeof *ranks, "a group's ranks", &track->ranks) != WEFT_OK) {
        wefti_free(track, sizeof *track);
        return NULL;
    }
    memcpy(track->ranks, ranks, (size_t)size * sizeof *ranks);
    pthread_mutex_lock(&watch->lock);
    wefti_track **end = &watch->tracks;
    while (*end) end = &(*end)->next;
    *end = track;
    pthread_mutex_unlock(&watch->lock);
    return track;
}

void wefti_watch_remove(wefti_watch *watch, wefti_track *track) {
    if (!watch || !track) return;
    pthread_mutex_lock(&watch->lock);
    wefti_track **at = &watch->tracks;
    while (*at && *at != track) at = &(*at)->next;
    if (*at) *at = track->next;
    pthread_mutex_unlock(&watch->lock);
    free_track(track);
}

uint64_t wefti_track_begin(wefti_track *track, const void *header, uint64_t now_ns) {
    uint64_t words[WEFTI_TRACK_HEADER_WORDS];
    if (!track) return 0;
    uint64_t            number = ++track->noted;
    wefti_track_record *record = &track->records[number % WEFTI_TRACK_KEEPS];
    memcpy(words, header, sizeof words);
    atomic_store_explicit(&record->number, 0, memory_order_relaxed);
    for (int i = 0; i < WEFTI_TRACK_HEADER_WORDS; i++) /* each after the number was taken away */
        atomic_store_explicit(&record->header[i], words[i], memory_order_release);
    atomic_store_explicit(&record->started_ns, now_ns, memory_order_release);
    atomic_store_explicit(&record->ended_ns, 0, memory_order_release);
    atomic_store_explicit(&record->state, 0, memory_order_release);
    atomic_store_explicit(&record->number, number, memory_order_release);
    return number;
}

/* --- reading --- */

typedef struct reading {
    coll_header header;
    uint64_t    number, started_ns, ended_ns, state;
} reading;

/* Whether the record holds an operation, and held still. */
static bool read_record(const wefti_track_record *record, reading *reading_out) {
    uint64_t words[WEFTI_TRACK_HEADER_WORDS];
    reading_out->number = atomic_load_explicit(&record->number, memory_order_acquire);
    for (int i = 0; i < WEFTI_TRACK_HEADER_WORDS; i++) words[i] = atomic_load_explicit(&record->header[i], memory_order_acquire);
    reading_out->started_ns = atomic_load_explicit(&record->started_ns, memory_order_acquire);
    reading_out->ended_ns = atomic_load_explicit(&record->ended_ns, memory_order_acquire);
    reading_out->state = atomic_load_explicit(&record->state, memory_order_acquire);
    memcpy(&reading_out->header, words, sizeof words);
    return reading_out->number && atomic_load_explicit(&record->number, memory_order_relaxed) == reading_out->number;
}

static double since_ms(uint64_t now_ns, uint64_t then_ns) { return now_ns > then_ns ? (double)(now_ns - then_ns) / 1e6 : 0; }

static void describe_record(const wefti_track *track, const reading *it, uint64_t now_ns, wefti_text *text) {
    char call[160];
    wefti_coll_header_words(&it->header, call, sizeof call);
    wefti_text_add(text, "  operation %u of group %u, %s: ", (unsigned)it->header.sequence, (unsigned)track->id, call);
    uint32_t ended = (uint32_t)it->state, member = (uint32_t)(it->state >> 32);
    if (ended) {
        wefti_text_add(text, "%s", ended == 1 + WEFT_OK ? "done" : weft_status_name((weft_status)(ended - 1)));
        if (it->ended_ns) wefti_text_add(text, ", seen %.3f ms ago", since_ms(now_ns, it->ended_ns));
    } else {
        wefti_text_add(text, "in flight");
        if (it->started_ns) wefti_text_add(text, " for %.3f ms", since_ms(now_ns, it->started_ns));
        if (member > 0 && member <= (uint32_t)track->size) wefti_text_add(text, ", waits for rank %d", (int)track->ranks[member - 1]);
    }
    wefti_text_add(text, "\n");
}

static void describe_track(const wefti_track *track, uint64_t now_ns, wefti_text *text) {
    reading all[WEFTI_TRACK_KEEPS];
    int     count = 0;
    for (int i = 0; i < WEFTI_TRACK_KEEPS; i++) {
        if (!read_record(&track->records[i], &all[count])) continue;
        int at = count++;
        for (reading it = all[at]; at > 0 && all[at - 1].number > it.number; at--) { /* by number */
            all[at] = all[at - 1];
            all[at - 1] = it;
        }
    }
    for (int i = 0; i < count; i++) describe_record(track, &all[i], now_ns, text);
    if (count == 0) wefti_text_add(text, "  group %u of %d: no operation yet\n", (unsigned)track->id, (int)track->size);
}

void wefti_watch_describe(wefti_watch *watch, wefti_text *text) {
    uint64_t now_ns = wefti_host_now(watch->host);
    pthread_mutex_lock(&watch->lock);
    for (const wefti_track *track = watch->tracks; track; track = track->next) describe_track(track, now_ns, text);
    pthread_mutex_unlock(&watch->lock);
}

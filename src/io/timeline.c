/* Chrome traces. Times are microseconds with three decimals, so that nanoseconds are kept. One mutex guards the buffer;
 * a span costs its text and, every 64 KiB, a write. The array may lack its end: viewers accept that. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "io/json.h"
#include "io/number.h"
#include "weft/timeline.h"

enum { flush_bytes = 1 << 16 };

struct weft_timeline {
    char           *path;
    int             descriptor;
    pthread_mutex_t mutex;
    wefti_text      text;
    weft_status     failure;
    char            message[WEFTI_MESSAGE_BYTES];
    bool            any;
};

/* The first failure is kept for close. */
static void keep_failure(weft_timeline *timeline, weft_status status) {
    if (timeline->failure != WEFT_OK) return;
    timeline->failure = status;
    strncpy(timeline->message, weft_error_message(), sizeof timeline->message - 1);
}

static void flush(weft_timeline *timeline) {
    size_t done = 0;
    if (timeline->text.failed)
        keep_failure(timeline, wefti_fail(WEFT_E_NO_MEMORY, "out of memory for the timeline '%s'", timeline->path));
    while (done < timeline->text.length && timeline->failure == WEFT_OK) {
        ssize_t now = write(timeline->descriptor, timeline->text.bytes + done, timeline->text.length - done);
        if (now < 0 && errno == EINTR) continue;
        if (now < 0) keep_failure(timeline, wefti_fail_errno("cannot write the timeline '%s'", timeline->path));
        else done += (size_t)now;
    }
    timeline->text.length = 0;
    timeline->text.failed = false;
}

weft_status weft_timeline_open(const char *path, weft_timeline **timeline_out) {
    if (!path || !*path || !timeline_out)
        return wefti_fail(WEFT_E_INVALID, "weft_timeline_open: needs a path and a place for the timeline");
    *timeline_out = NULL;
    weft_timeline *timeline = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *timeline, "a timeline", &timeline));
    weft_status status = wefti_copy_string(path, &timeline->path);
    if (status == WEFT_OK) {
        timeline->descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK, 0666);
        if (timeline->descriptor < 0) status = wefti_fail_errno("cannot write the timeline '%s'", path);
    }
    if (status != WEFT_OK) {
        wefti_free_string(timeline->path);
        wefti_free(timeline, sizeof *timeline);
        return status;
    }
    pthread_mutex_init(&timeline->mutex, NULL);
    wefti_text_add(&timeline->text, "[");
    *timeline_out = timeline;
    return WEFT_OK;
}

/* Begins an event; the mutex is held until finish. */
static wefti_text *begin(weft_timeline *timeline, const char *phase, int32_t process, const char *name) {
    pthread_mutex_lock(&timeline->mutex);
    wefti_text_add(&timeline->text, "%s\n{\"ph\":\"%s\",\"pid\":%d,\"name\":", timeline->any ? "," : "", phase, process);
    wefti_text_add_json(&timeline->text, name);
    timeline->any = true;
    return &timeline->text;
}

static void finish(weft_timeline *timeline) {
    wefti_text_add(&timeline->text, "}");
    if (timeline->text.length >= flush_bytes || timeline->text.failed) flush(timeline);
    pthread_mutex_unlock(&timeline->mutex);
}

static void add_time(wefti_text *text, const char *key, int64_t ns) {
    uint64_t size = ns < 0 ? 0 - (uint64_t)ns : (uint64_t)ns;
    wefti_text_add(text, ",\"%s\":%s%" PRIu64 ".%03" PRIu64, key, ns < 0 ? "-" : "", size / 1000, size % 1000);
}

static void add_value(wefti_text *text, double value) {
    char number[wefti_number_text_bytes] = "null";
    if (isfinite(value)) wefti_number_to_text(value, number);
    wefti_text_add(text, "%s", number);
}

static void name_row(weft_timeline *timeline, const char *what, int32_t process, int32_t thread, const char *name) {
    if (!timeline) return;
    wefti_text *text = begin(timeline, "M", process, what);
    wefti_text_add(text, ",\"tid\":%d,\"args\":{\"name\":", thread);
    wefti_text_add_json(text, name);
    wefti_text_add(text, "}");
    finish(timeline);
}

void weft_timeline_name_process(weft_timeline *timeline, int32_t process, const char *name) {
    name_row(timeline, "process_name", process, 0, name);
}

void weft_timeline_name_thread(weft_timeline *timeline, int32_t process, int32_t thread, const char *name) {
    name_row(timeline, "thread_name", process, thread, name);
    if (!timeline) return;
    wefti_text *text = begin(timeline, "M", process, "thread_sort_index");
    wefti_text_add(text, ",\"tid\":%d,\"args\":{\"sort_index\":%d}", thread, thread);
    finish(timeline);
}

void weft_timeline_add(weft_timeline *timeline, const weft_timeline_span *span) {
    if (!timeline || !span) return;
    wefti_text *text = begin(timeline, "X", span->process, span->name);
    wefti_text_add(text, ",\"cat\":");
    wefti_text_add_json(text, span->category ? span->category : "weft");
    wefti_text_add(text, ",\"tid\":%d", span->thread);
    add_time(text, "ts", span->begin_ns);
    add_time(text, "dur", span->duration_ns > 0 ? span->duration_ns : 0);
    for (int32_t i = 0; i < span->argument_count; i++) {
        wefti_text_add(text, i ? "," : ",\"args\":{");
        wefti_text_add_json(text, span->arguments[i].key);
        wefti_text_add(text, ":");
        if (span->arguments[i].text) wefti_text_add_json(text, span->arguments[i].text);
        else add_value(text, span->arguments[i].number);
    }
    if (span->argument_count > 0) wefti_text_add(text, "}");
    finish(timeline);
}

void weft_timeline_counter(weft_timeline *timeline, int32_t process, const char *name, int64_t time_ns, double value) {
    if (!timeline) return;
    wefti_text *text = begin(timeline, "C", process, name);
    add_time(text, "ts", time_ns);
    wefti_text_add(text, ",\"args\":{\"value\":");
    add_value(text, value);
    wefti_text_add(text, "}");
    finish(timeline);
}

weft_status weft_timeline_close(weft_timeline *timeline) {
    if (!timeline) return WEFT_OK;
    wefti_text_add(&timeline->text, "\n]\n");
    flush(timeline);
    if (close(timeline->descriptor) != 0)
        keep_failure(timeline, wefti_fail_errno("cannot close the timeline '%s'", timeline->path));
    weft_status status = timeline->failure;
    if (status != WEFT_OK) status = wefti_fail(status, "%s", timeline->message);
    pthread_mutex_destroy(&timeline->mutex);
    wefti_text_release(&timeline->text);
    wefti_free_string(timeline->path);
    wefti_free(timeline, sizeof *timeline);
    return status;
}

/* JSON lines. The line in hand is a growing text that keeps its memory; a line that cannot be written whole is cut off
 * again, so the file always ends with a newline. Cost: the longest line. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/json.h"
#include "io/number.h"
#include "io/source.h"
#include "weft/metrics.h"

struct weft_metrics {
    char      *path;
    int        descriptor;
    uint64_t   end; /* of the whole lines in the file */
    wefti_text line;
};

/* Where the last newline of the file ends. */
static weft_status find_end(weft_metrics *metrics, uint64_t bytes) {
    char part[4096];
    while (bytes > 0) {
        size_t now = bytes < sizeof part ? (size_t)bytes : sizeof part;
        WEFTI_TRY(wefti_read_at(metrics->descriptor, metrics->path, bytes - now, part, now));
        const char *newline = memrchr(part, '\n', now);
        if (newline) {
            metrics->end = bytes - now + (uint64_t)(newline - part) + 1;
            return WEFT_OK;
        }
        bytes -= now;
    }
    return WEFT_OK;
}

static weft_status begin(weft_metrics *metrics, bool append) {
    struct stat facts;
    metrics->descriptor = open(metrics->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK | (append ? 0 : O_TRUNC), 0666);
    if (metrics->descriptor < 0 || fstat(metrics->descriptor, &facts) != 0)
        return wefti_fail_errno("cannot write metrics to '%s'", metrics->path);
    if (!S_ISREG(facts.st_mode))
        return wefti_fail(WEFT_E_INVALID, "cannot write metrics to '%s': it is not a regular file", metrics->path);
    WEFTI_TRY(find_end(metrics, (uint64_t)facts.st_size));
    if (ftruncate(metrics->descriptor, (off_t)metrics->end) != 0)
        return wefti_fail_errno("cannot cut the unfinished line off '%s'", metrics->path);
    return WEFT_OK;
}

weft_status weft_metrics_open(const char *path, bool append, weft_metrics **metrics_out) {
    if (!metrics_out || !path || !*path)
        return wefti_fail(WEFT_E_INVALID, "weft_metrics_open: needs a path and a place for the metrics");
    weft_metrics *metrics = NULL;
    weft_status   status;
    *metrics_out = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *metrics, "a metrics file", &metrics));
    metrics->descriptor = -1;
    WEFTI_TRY_GOTO(wefti_copy_string(path, &metrics->path), fail);
    WEFTI_TRY_GOTO(begin(metrics, append), fail);
    *metrics_out = metrics;
    return WEFT_OK;
fail:
    weft_metrics_release(metrics);
    return status;
}

static void add_key(weft_metrics *metrics, const char *key) {
    wefti_text_add(&metrics->line, metrics->line.length ? "," : "{");
    wefti_text_add_json(&metrics->line, key);
    wefti_text_add(&metrics->line, ":");
}

void weft_metrics_i64(weft_metrics *metrics, const char *key, int64_t value) {
    add_key(metrics, key);
    wefti_text_add(&metrics->line, "%" PRId64, value);
}

void weft_metrics_f64(weft_metrics *metrics, const char *key, double value) {
    char text[wefti_number_text_bytes] = "null";
    if (isfinite(value)) wefti_number_to_text(value, text);
    add_key(metrics, key);
    wefti_text_add(&metrics->line, "%s", text);
}

void weft_metrics_bool(weft_metrics *metrics, const char *key, bool value) {
    add_key(metrics, key);
    wefti_text_add(&metrics->line, value ? "true" : "false");
}

void weft_metrics_text(weft_metrics *metrics, const char *key, const char *value) {
    add_key(metrics, key);
    wefti_text_add_json(&metrics->line, value);
}

static weft_status write_line(weft_metrics *metrics) {
    const wefti_text *line = &metrics->line;
    size_t            done = 0;
    while (done < line->length) {
        ssize_t now = pwrite(metrics->descriptor, line->bytes + done, line->length - done, (off_t)(metrics->end + done));
        if (now < 0 && errno == EINTR) continue;
        if (now == 0) errno = ENOSPC;
        if (now <= 0) {
            weft_status status = wefti_fail_errno("cannot write metrics to '%s'", metrics->path);
            if (ftruncate(metrics->descriptor, (off_t)metrics->end) != 0)
                return wefti_fail(status, "%s (and a part of the line may stay there)", weft_error_message());
            return status;
        }
        done += (size_t)now;
    }
    metrics->end += done;
    return WEFT_OK;
}

weft_status weft_metrics_end_line(weft_metrics *metrics) {
    if (metrics->line.length == 0) wefti_text_add(&metrics->line, "{");
    wefti_text_add(&metrics->line, "}\n");
    weft_status status = metrics->line.failed
                             ? wefti_fail(WEFT_E_NO_MEMORY, "out of memory for a line of metrics in '%s'", metrics->path)
                             : write_line(metrics);
    metrics->line.length = 0;
    metrics->line.failed = false;
    return status;
}

void weft_metrics_release(weft_metrics *metrics) {
    if (!metrics) return;
    if (metrics->descriptor >= 0) close(metrics->descriptor);
    wefti_text_release(&metrics->line);
    wefti_free_string(metrics->path);
    wefti_free(metrics, sizeof *metrics);
}

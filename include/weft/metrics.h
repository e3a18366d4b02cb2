/* Metrics as JSON lines: one object a line, in a file that grows.
 *
 *     weft_metrics_text(metrics, "event", "step");
 *     weft_metrics_i64(metrics, "step", step);
 *     weft_metrics_f64(metrics, "loss", loss);
 *     status = weft_metrics_end_line(metrics);
 *
 * A line is written by one call when it is complete, so that a reader sees whole lines at any time, and so that a killed
 * program loses at most the line in hand. Numbers are written so that they read back the same; what JSON has no word for
 * (NaN and the infinities) becomes null. Keys of one line must differ.
 *
 * Adding to a line cannot fail by itself: errors wait for the end of the line. A metrics file belongs to one thread at a
 * time. Calls block on the file system only. Format: https://jsonlines.org, RFC 8259. */
#ifndef WEFT_METRICS_H
#define WEFT_METRICS_H

#include <stdbool.h>
#include <stdint.h>

#include "weft/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weft_metrics weft_metrics;

/* Opens `path` for writing: empties it, or goes on behind its last whole line (what a killed writer left of another is cut
 * off). *metrics_out gets one reference, NULL on error. */
WEFT_MUST_CHECK weft_status weft_metrics_open(const char *path, bool append, weft_metrics **metrics_out);

/* Add `key` to the line in hand. Text that is not UTF-8 has its bad bytes replaced. */
void weft_metrics_i64(weft_metrics *metrics, const char *key, int64_t value);
void weft_metrics_f64(weft_metrics *metrics, const char *key, double value);
void weft_metrics_bool(weft_metrics *metrics, const char *key, bool value);
void weft_metrics_text(weft_metrics *metrics, const char *key, const char *value);

/* Writes the line and begins another. On error (WEFT_E_NO_SPACE, WEFT_E_IO, WEFT_E_NO_MEMORY) the line is dropped as a
 * whole and the next one may succeed. */
WEFT_MUST_CHECK weft_status weft_metrics_end_line(weft_metrics *metrics);

/* Closes the file; an unfinished line is dropped. NULL is allowed. */
void weft_metrics_release(weft_metrics *metrics);

/* Called with the numbers of a line; a status other than WEFT_OK ends the reading. */
typedef weft_status (*weft_metrics_visit)(void *context, double x, double y);

/* Reads a metrics file back: visits every line whose "event" is `event` (NULL: every line) and that has numbers under both
 * x_key and y_key, in order. Lines that are not JSON objects of this kind, as a torn last one, are passed over.
 * WEFT_E_NOT_FOUND, WEFT_E_IO, WEFT_E_CORRUPT for a file that is no text, and what `visit` says. */
WEFT_MUST_CHECK weft_status weft_metrics_read(const char *path, const char *event, const char *x_key, const char *y_key,
                                              weft_metrics_visit visit, void *context);

#ifdef __cplusplus
}
#endif
#endif

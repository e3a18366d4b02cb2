/* Timelines in Chrome's trace format, to be looked at in Perfetto (ui.perfetto.dev) or chrome://tracing: what ran when,
 * one row a thread, grouped by process. For showing that communication and computation overlap, give each a row.
 *
 * Spans are written as they come, through a buffer; a file whose writer was killed loads up to where it was written.
 * All calls are thread-safe. Adding cannot fail by itself: errors wait for close. Blocks on the file system only.
 * Format: "Trace Event Format", JSON array form. */
#ifndef WEFT_TIMELINE_H
#define WEFT_TIMELINE_H

#include <stdint.h>

#include "weft/plan.h"
#include "weft/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct weft_timeline weft_timeline;

/* Something worth knowing about a span: a text, or, where that is NULL, a number. */
typedef struct weft_timeline_argument {
    const char *key, *text;
    double      number;
} weft_timeline_argument;

typedef struct weft_timeline_span {
    const char                   *name, *category; /* category may be NULL */
    int32_t                       process, thread; /* as a rank, and a row of it */
    int64_t                       begin_ns, duration_ns; /* on one clock for the whole file; -2^53 to 2^53 */
    const weft_timeline_argument *arguments;
    int32_t                       argument_count;
} weft_timeline_span;

/* Begins a file at `path`, which is emptied. *timeline_out gets one reference, NULL on error. */
WEFT_MUST_CHECK weft_status weft_timeline_open(const char *path, weft_timeline **timeline_out);
/* Names a process, or a row of it. Rows are shown in the order of their numbers. */
void weft_timeline_name_process(weft_timeline *timeline, int32_t process, const char *name);
void weft_timeline_name_thread(weft_timeline *timeline, int32_t process, int32_t thread, const char *name);
void weft_timeline_add(weft_timeline *timeline, const weft_timeline_span *span);
/* A number that changes over time, drawn as a curve. */
void weft_timeline_counter(weft_timeline *timeline, int32_t process, const char *name, int64_t time_ns, double value);
/* Adds what a plan kept of its latest runs (weft_plan_options.trace) as process `process`: rows for runs, computing, waiting,
 * and as many for communication as went on at once. Gives how many events there were. */
int32_t weft_timeline_add_plan(weft_timeline *timeline, const weft_plan *plan, int32_t process);
/* Writes the rest and closes; says what went wrong since opening. Frees the timeline in any case. NULL is allowed. */
WEFT_MUST_CHECK weft_status weft_timeline_close(weft_timeline *timeline);

#ifdef __cplusplus
}
#endif
#endif

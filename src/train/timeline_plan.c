/* A plan's trace as a timeline. Collectives overlap, and a row can only show spans that do not: each goes to the first row
 * that is free again. Cost: the plan's events, copied once. */
#include <stdio.h>
#include <stdlib.h>

#include "core/base/base.h"
#include "weft/timeline.h"

enum { runs_row, compute_row, wait_row, first_lane, most_lanes = 16, most_events = 1 << 16 };

static int32_t take_lane(uint64_t free_at[most_lanes], const weft_trace_event *event) {
    int32_t lane = 0;
    while (lane + 1 < most_lanes && free_at[lane] > event->begin_ns) lane++;
    free_at[lane] = event->end_ns;
    return lane;
}

static void add_event(weft_timeline *timeline, const weft_trace_event *event, int32_t process, int32_t row) {
    static const char *const categories[] = {"run", "compute", "communication", "wait"};
    char                     name[48];
    weft_timeline_argument   arguments[] = {{.key = "run", .number = event->run},
                                            {.key = "index", .number = event->index},
                                            {.key = "bytes", .number = (double)event->bytes}};
    snprintf(name, sizeof name, "%s %d", categories[event->kind], event->kind == WEFT_TRACE_RUN ? event->run : event->index);
    weft_timeline_add(timeline,
                      &(weft_timeline_span){.name = event->name && *event->name ? event->name : name,
                                            .category = categories[event->kind], .process = process, .thread = row,
                                            .begin_ns = (int64_t)event->begin_ns,
                                            .duration_ns = (int64_t)(event->end_ns - event->begin_ns),
                                            .arguments = arguments, .argument_count = event->kind == WEFT_TRACE_COLLECTIVE ? 3 : 2});
}

static int by_begin(const void *a, const void *b) {
    const weft_trace_event *x = a, *y = b;
    return x->begin_ns < y->begin_ns ? -1 : x->begin_ns > y->begin_ns;
}

int32_t weft_timeline_add_plan(weft_timeline *timeline, const weft_plan *plan, int32_t process) {
    weft_trace_event *events = NULL;
    uint64_t          free_at[most_lanes] = {0};
    int32_t           lanes = 0;
    if (!timeline || !plan || wefti_alloc(most_events * sizeof *events, "a plan's trace", &events) != WEFT_OK) return 0;
    int32_t count = weft_plan_trace(plan, events, most_events);
    /* The plan keeps them in the order of their ends. */
    qsort(events, (size_t)count, sizeof *events, by_begin);
    for (int32_t i = 0; i < count; i++) {
        int32_t row = events[i].kind == WEFT_TRACE_RUN ? runs_row : events[i].kind == WEFT_TRACE_WAIT ? wait_row : compute_row;
        if (events[i].kind == WEFT_TRACE_COLLECTIVE) {
            int32_t lane = take_lane(free_at, &events[i]);
            if (lane >= lanes) lanes = lane + 1;
            row = first_lane + lane;
        }
        add_event(timeline, &events[i], process, row);
    }
    weft_timeline_name_thread(timeline, process, runs_row, "steps");
    weft_timeline_name_thread(timeline, process, compute_row, "computing");
    weft_timeline_name_thread(timeline, process, wait_row, "waiting");
    for (int32_t lane = 0; lane < lanes; lane++) weft_timeline_name_thread(timeline, process, first_lane + lane, "communication");
    wefti_free(events, most_events * sizeof *events);
    return count;
}

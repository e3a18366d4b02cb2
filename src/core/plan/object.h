/* The plan object: what is laid out, what is allocated, and what happens at a run. */
#ifndef WEFTI_PLAN_OBJECT_H
#define WEFTI_PLAN_OBJECT_H

#include <stdatomic.h>

#include "core/plan/ir.h"
#include "core/plan/roofline.h"

/* --- arenas: memory that several plans share --- */

typedef struct wefti_arena wefti_arena;
WEFT_MUST_CHECK weft_status wefti_arena_create(weft_world *world, wefti_arena **arena_out);
wefti_arena *wefti_arena_retain(wefti_arena *arena);
void wefti_arena_release(wefti_arena *arena);
/* Grows to at least these sizes; contents are lost. `shared`: collectives over the wire work on the exported region. */
WEFT_MUST_CHECK weft_status wefti_arena_reserve(wefti_arena *arena, int64_t arena_bytes, int64_t exported_bytes, bool shared);
void *wefti_arena_memory(const wefti_arena *arena);
void *wefti_arena_exported(const wefti_arena *arena);
/* Host memory of the same layout as the exported region, in which collectives work; NULL where they work in that itself. */
void *wefti_arena_mirror(const wefti_arena *arena);
/* Whether the wire reaches the exported memory itself, which is a device's, beside the mirror. */
bool wefti_arena_is_reached(const wefti_arena *arena);
/* Of the exported region, as it is allocated: whole pages where a wire gives it. */
int64_t wefti_arena_exported_bytes(const weft_world *world, int64_t bytes);

/* --- traces --- */

enum { WEFTI_TRACE_EVENTS = 4096 };
typedef struct wefti_trace {
    weft_trace_event *events; /* a ring; NULL: nobody asked */
    uint64_t          n;      /* ever */
} wefti_trace;
static inline void wefti_trace_add(wefti_trace *trace, weft_trace_event event) {
    if (trace->events) trace->events[trace->n++ % WEFTI_TRACE_EVENTS] = event;
}

/* --- buffers: the table that programs are launched with --- */

enum { WEFTI_BUFFER_ARENA, WEFTI_BUFFER_EXPORTED, WEFTI_BUFFER_CONSTANT, WEFTI_BUFFER_FIRST };

typedef struct wefti_in_flight {
    wefti_collective *operation; /* NULL: not in flight, or not yet */
    bool              boarding;  /* listed, and its operation has not begun: it is not its turn, or … */
    bool              copying;   /* … what it sends is still being computed, or copied out of the device's memory, up to `ticket` */
    uint64_t          ticket;
    weft_status       status;    /* of one that was seen to have ended before it was waited for */
    uint64_t          begin_ns;
    int32_t           next;      /* in flight, in the order of starts; -1: last */
    size_t           *counts;    /* [2 * members] elements that an EXCHANGE_ROWS sends and receives; else NULL */
} wefti_in_flight;

struct weft_plan {
    atomic_int      references;
    weft_graph     *source;   /* the caller's */
    wefti_ir        ir;       /* ir.graph is the source or the strategy's */
    weft_variables *variables;
    int32_t        *variable_index; /* [ir.n_variables] in the set; NULL until there is one */
    wefti_arena    *arena;

    bool            committed, has_run;
    void           *constants;
    int64_t         step, written_step; /* what is in the constants' block */
    void          **staging;  /* [ir.n_inputs] copies of fed arrays; NULL until one is needed */
    const void    **fed;      /* [ir.n_inputs] this run's */
    wefti_program **programs; /* [ir.n_segments] */
    void          **buffers;  /* [n_buffers] */
    int32_t         n_buffers;
    uint64_t       *profile_ns; /* [ir.n_order] */
    wefti_roofline  roofline;   /* measured when a profile is first asked for */

    wefti_in_flight *flights;  /* [ir.n_collectives] */
    int32_t          first_flight, last_flight; /* -1: none */
    weft_status      fault;    /* of a collective, seen while computing */
    uint64_t         wait_ns;
    int32_t          runs;
    wefti_trace      trace;
    wefti_text       text;
};

/* flights.c: a run's collectives, by index. Starts one, in the order of the plan on every rank; ends one, before its results are used;
 * lets those in flight get on; waits for all, whatever becomes of them. */
WEFT_MUST_CHECK weft_status wefti_flight_start(weft_plan *plan, int32_t collective);
WEFT_MUST_CHECK weft_status wefti_flight_wait(weft_plan *plan, int32_t collective);
void wefti_flights_progress(weft_plan *plan);
void wefti_flights_end(weft_plan *plan);
/* Where a value lies in this run. */
void *wefti_plan_address(const weft_plan *plan, int32_t value);
static inline uint64_t wefti_plan_now(void) { return wefti_host_now(wefti_host_system()); }

/* variables.c: WEFT_E_MISMATCH where they differ (a plan's leaf has the shape of this rank's part); WEFT_E_NOT_FOUND naming what is like it. */
weft_status wefti_variables_match(const weft_variables *variables, int32_t index, const weft_tensor *leaf);
weft_status wefti_variables_missing(const weft_variables *variables, const char *name);

/* commit.c */
WEFT_MUST_CHECK weft_status wefti_plan_bind_variables(weft_plan *plan, weft_variables *variables);
void wefti_plan_free_memory(weft_plan *plan);
/* Number and offset of a value's memory in the buffers' table. */
void wefti_plan_locate(const weft_plan *plan, const wefti_value *value, int32_t *buffer_out, int64_t *offset_bytes_out);

#endif

/* The simulator: a queue of events by virtual time, and what befalls ranks.
 *
 * Everything that happens is an event: a message arrives, a fiber goes on, a fault strikes. They are taken in the order of their time,
 * then of their making, and whatever is drawn at random comes from one generator; so a seed gives one history, and a hash of it tells
 * two apart. Cost: log2 of what is in the queue an event; memory: a way for each pair of ranks, 24 bytes. */
#include "transport/sim.h"

#include <stdio.h>
#include <string.h>

#include "transport/sim_inside.h"

#define YIELD_NS (20 * UINT64_C(1000))

/* --- the queue: a heap --- */

static bool before(const sim_event *a, const sim_event *b) {
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->order < b->order;
}

static void put(wefti_sim *sim, size_t at, sim_event *event) {
    sim->queue[at] = event;
    event->place = at + 1;
}

static void settle(wefti_sim *sim, size_t at) {
    sim_event *event = sim->queue[at];
    for (size_t parent; at > 0 && before(event, sim->queue[parent = (at - 1) / 2]); at = parent) put(sim, at, sim->queue[parent]);
    for (size_t child; (child = 2 * at + 1) < sim->queued; at = child) {
        if (child + 1 < sim->queued && before(sim->queue[child + 1], sim->queue[child])) child++;
        if (!before(sim->queue[child], event)) break;
        put(sim, at, sim->queue[child]);
    }
    put(sim, at, event);
}

void wefti_sim_schedule(wefti_sim *sim, sim_event *event, uint64_t at_ns) {
    event->at_ns = at_ns;
    event->order = sim->order++;
    if (event->place) {
        settle(sim, event->place - 1);
        return;
    }
    if (sim->queued == sim->queue_capacity) {
        size_t capacity = sim->queue_capacity ? 2 * sim->queue_capacity : 1024;
        weft_status status = wefti_grow(&sim->queue, sim->queue_capacity * sizeof(sim_event *), capacity * sizeof(sim_event *), "simulated events");
        if (status != WEFT_OK) {
            sim->failed = status;
            return;
        }
        sim->queue_capacity = capacity;
    }
    put(sim, sim->queued++, event);
    settle(sim, sim->queued - 1);
}

void wefti_sim_unschedule(wefti_sim *sim, sim_event *event) {
    if (!event->place) return;
    size_t at = event->place - 1;
    event->place = 0;
    sim_event *last = sim->queue[--sim->queued];
    if (last == event) return;
    put(sim, at, last);
    settle(sim, at);
}

/* --- time and chance --- */

uint64_t wefti_sim_clock(const wefti_sim *sim) {
    return sim->running && sim->running->local_ns > sim->now_ns ? sim->running->local_ns : sim->now_ns;
}

uint64_t wefti_sim_random(wefti_sim *sim) { /* splitmix64 */
    uint64_t z = sim->random += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static uint64_t host_now(void *context) {
    wefti_sim *sim = ((sim_seat *)context)->sim;
    wefti_sim_spend(sim, SIM_LOOK_NS);
    return wefti_sim_clock(sim);
}
static void host_yield(void *context) { wefti_sim_wait(((sim_seat *)context)->sim, YIELD_NS); }
static void host_sleep(void *context, uint64_t duration_ns) { wefti_sim_wait(((sim_seat *)context)->sim, duration_ns); }
static weft_status host_random(void *context, void *bytes, size_t size_bytes) {
    wefti_sim *sim = ((sim_seat *)context)->sim;
    for (size_t i = 0; i < size_bytes; i++) ((uint8_t *)bytes)[i] = (uint8_t)wefti_sim_random(sim);
    return WEFT_OK;
}

static weft_status host_spawn(void *context, void (*function)(void *), void *argument, void **thread_out) {
    sim_fiber *fiber = NULL;
    WEFTI_TRY(wefti_sim_fiber_create(context, function, argument, false, &fiber));
    *thread_out = fiber;
    return WEFT_OK;
}
static void host_join(void *context, void *thread) {
    sim_seat        *seat = context;
    const sim_fiber *fiber = thread;
    while (!fiber->ended && seat->sim->running) {
        wefti_sim_wake(seat);
        wefti_sim_wait(seat->sim, WEFTI_MILLISECOND_NS);
    }
}

static void copied(void *context, size_t bytes) {
    wefti_sim *sim = context;
    wefti_sim_spend(sim, (uint64_t)(2 * (double)bytes / sim->options.core_bytes_per_ns));
}

static weft_status reduce(void *context, void *dst, const void *const *sources, int32_t source_count, size_t count, weft_dtype dtype,
                          wefti_reduce_op op, int32_t divisor) {
    wefti_sim           *sim = context;
    const wefti_reducer *real = wefti_reducer_host();
    double               bytes = (double)count * (double)weft_dtype_bytes(dtype) * (source_count + 1);
    wefti_sim_spend(sim, (uint64_t)(bytes / sim->options.core_bytes_per_ns));
    return real->reduce(real->context, dst, sources, source_count, count, dtype, op, divisor);
}

/* --- what is seen of it --- */

const char *wefti_sim_kind_name(int kind) {
    static const char *const names[] = {"data", "large", "write", "notice", "read", "answer", "ack", "bye", "reset", "chunk", "end",
                                        "knock", "taken", "refused"};
    return (unsigned)kind < WEFTI_COUNT(names) ? names[kind] : "?";
}

void wefti_sim_note(wefti_sim *sim, const char *what, int32_t from, int32_t to, uint64_t tag, uint64_t bytes) {
    const uint64_t numbers[] = {sim->now_ns, (uint64_t)from << 32 | (uint32_t)to, tag, bytes, (uint8_t)what[0] + (uint64_t)(uint8_t)what[1] * 256};
    for (size_t i = 0; i < WEFTI_COUNT(numbers); i++) sim->hash = (sim->hash ^ numbers[i]) * UINT64_C(1099511628211);
    sim->events++;
    if (!sim->options.trace) return;
    char line[160];
    snprintf(line, sizeof line, "%14.3f us  %-7s %4d -> %-4d tag %016llx %8llu bytes", (double)sim->now_ns / 1e3, what, (int)from, (int)to,
             (unsigned long long)tag, (unsigned long long)bytes);
    sim->options.trace(sim->options.trace_context, line);
}

/* --- faults --- */

typedef struct planned_fault {
    sim_event       event; /* first */
    wefti_sim_fault fault;
    bool            over; /* its other end: the rank goes on */
    void (*program)(void *argument); /* of a start */
    void           *argument;
} planned_fault;

void wefti_sim_program_over(sim_seat *seat) {
    if (!seat->over) seat->sim->programs--;
    seat->over = true;
}

static void kill_seat(sim_seat *seat) {
    wefti_sim *sim = seat->sim;
    seat->dead = true;
    wefti_sim_wires_break(seat);
    wefti_sim_streams_break(seat);
    wefti_sim_program_over(seat);
    for (sim_fiber *fiber = seat->fibers; fiber; fiber = fiber->next) {
        wefti_sim_unschedule(sim, &fiber->event);
        fiber->waits = false;
        if (fiber != sim->running) fiber->ended = true;
    }
    if (sim->running && sim->running->seat == seat) wefti_sim_leave(sim);
}

static void go_on(sim_seat *seat) {
    seat->stopped = false;
    for (sim_fiber *fiber = seat->fibers; fiber; fiber = fiber->next) {
        if (fiber->held) wefti_sim_schedule(seat->sim, &fiber->event, seat->sim->now_ns);
        fiber->held = false;
    }
}

static void free_planned(planned_fault *planned) { wefti_free(planned, sizeof *planned); }

static void strike(wefti_sim *sim, sim_event *event);
static weft_status plan_event(wefti_sim *sim, const wefti_sim_fault *fault, uint64_t at_ns, bool over) {
    planned_fault *planned = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *planned, "a planned fault", &planned));
    *planned = (planned_fault){.event = {.fire = strike}, .fault = *fault, .over = over};
    wefti_sim_schedule(sim, &planned->event, at_ns);
    return WEFT_OK;
}

static void befall(sim_seat *seat, const wefti_sim_fault *fault) {
    static const char *const names[] = {"killed", "stopped", "cut"};
    wefti_sim *sim = seat->sim;
    if (seat->spared || seat->dead) return;
    wefti_sim_note(sim, names[fault->act], seat->index, seat->index, fault->message, fault->for_ns);
    switch (fault->act) {
    case WEFTI_SIM_KILL: kill_seat(seat); break;
    case WEFTI_SIM_CUT: seat->cut = true; break;
    case WEFTI_SIM_STOP:
        seat->stopped = true;
        if (fault->for_ns)
            sim->failed = plan_event(sim, fault, wefti_deadline_after(wefti_sim_clock(sim), fault->for_ns), true);
        else
            wefti_sim_program_over(seat);
        if (sim->running && sim->running->seat == seat) wefti_sim_wait(sim, 0); /* which it comes back from when it goes on */
        break;
    }
}

static void strike(wefti_sim *sim, sim_event *event) {
    planned_fault *planned = (planned_fault *)event;
    sim_seat      *seat = &sim->seats[planned->fault.rank];
    if (planned->over)
        go_on(seat);
    else
        befall(seat, &planned->fault);
    free_planned(planned);
}

weft_status wefti_sim_plan(wefti_sim *sim, const wefti_sim_fault *fault) {
    if (fault->rank < 0 || fault->rank >= sim->options.size || (unsigned)fault->act > WEFTI_SIM_CUT)
        return wefti_fail(WEFT_E_INVALID, "a fault of rank %d: there are %d", (int)fault->rank, (int)sim->options.size);
    if (!fault->message) return plan_event(sim, fault, fault->at_ns, false);
    sim->seats[fault->rank].by_message = *fault;
    return WEFT_OK;
}

void wefti_sim_about_to_send(sim_seat *seat) {
    seat->sent++;
    wefti_sim_spend(seat->sim, seat->sim->options.post_ns);
    if (seat->sent == seat->by_message.message) befall(seat, &seat->by_message);
}

void wefti_sim_spare(wefti_sim *sim, int32_t rank) { sim->seats[rank].spared = true; }

static void fence(void *context, int32_t peer) {
    sim_seat  *asker = context;
    wefti_sim *sim = asker->sim;
    if (sim->seats[peer].dead || sim->seats[peer].spared) return;
    wefti_sim_note(sim, "fenced", asker->index, peer, 0, 0);
    kill_seat(&sim->seats[peer]);
    sim->options.fenced(sim->options.fenced_context, peer);
}

/* --- running --- */

weft_status wefti_sim_start(wefti_sim *sim, int32_t rank, void (*program)(void *argument), void *argument) {
    sim_fiber *fiber = NULL;
    WEFTI_TRY(wefti_sim_fiber_create(&sim->seats[rank], program, argument, true, &fiber));
    sim->programs++;
    sim->seats[rank].over = false;
    return WEFT_OK;
}

static void start_again(wefti_sim *sim, sim_event *event) {
    planned_fault planned = *(planned_fault *)event;
    int32_t       rank = planned.fault.rank;
    sim_seat     *seat = &sim->seats[rank];
    free_planned((planned_fault *)event);
    if (!seat->dead) return;
    wefti_sim_note(sim, "started", rank, rank, 0, 0);
    seat->dead = seat->spared = seat->stopped = false;
    seat->doors = 0;
    seat->callers = seat->last_caller = NULL;
    seat->by_message = (wefti_sim_fault){0};
    sim->failed = wefti_sim_start(sim, rank, planned.program, planned.argument);
}

weft_status wefti_sim_start_again(wefti_sim *sim, int32_t rank, uint64_t at_ns, void (*program)(void *argument), void *argument) {
    planned_fault *planned = NULL;
    if (rank < 0 || rank >= sim->options.size) return wefti_fail(WEFT_E_INVALID, "a start of rank %d: there are %d", (int)rank, (int)sim->options.size);
    WEFTI_TRY(wefti_alloc(sizeof *planned, "a planned start", &planned));
    *planned = (planned_fault){.event = {.fire = start_again}, .fault = {.rank = rank}, .program = program, .argument = argument};
    wefti_sim_schedule(sim, &planned->event, at_ns);
    return WEFT_OK;
}

static weft_status fail_hung(const wefti_sim *sim, const char *why) {
    wefti_text text = {0};
    int32_t    named = 0;
    for (int32_t rank = 0; rank < sim->options.size; rank++)
        if (!sim->seats[rank].over && named++ < 16) wefti_text_add(&text, named > 1 ? ", %d" : "%d", (int)rank);
    weft_status status = wefti_fail(WEFT_E_TIMEOUT, "the simulation of %d ranks (seed %llu) %s after %.6f s of its time; %d still run: %s",
                                    (int)sim->options.size, (unsigned long long)sim->options.seed, why, (double)sim->now_ns / 1e9,
                                    (int)named, text.bytes ? text.bytes : "?");
    wefti_text_release(&text);
    return status;
}

weft_status wefti_sim_run(wefti_sim *sim) {
    WEFTI_TRY(wefti_sim_fibers_begin(sim));
    while (sim->programs > 0) {
        if (sim->failed != WEFT_OK) return wefti_fail(sim->failed, "the simulator ran out of memory");
        if (sim->queued == 0) return fail_hung(sim, "stands still");
        sim_event *event = sim->queue[0];
        if (event->at_ns > sim->options.limit_ns) return fail_hung(sim, "has not ended");
        wefti_sim_unschedule(sim, event);
        if (event->at_ns > sim->now_ns) sim->now_ns = event->at_ns;
        event->fire(sim, event);
        if (sim->overflowed)
            return wefti_fail(WEFT_E_INTERNAL, "a rank used more than the %zu bytes of its stack; ask for more by stack_bytes", sim->options.stack_bytes);
    }
    return WEFT_OK;
}

uint64_t wefti_sim_now(const wefti_sim *sim) { return wefti_sim_clock(sim); }
uint64_t wefti_sim_hash(const wefti_sim *sim) { return sim->hash; }
uint64_t wefti_sim_events(const wefti_sim *sim) { return sim->events; }
uint64_t wefti_sim_messages(const wefti_sim *sim, int32_t rank) { return sim->seats[rank].sent; }
bool     wefti_sim_is_gone(const wefti_sim *sim, int32_t rank) { return sim->seats[rank].dead || sim->seats[rank].stopped; }
bool     wefti_sim_is_cut(const wefti_sim *sim, int32_t rank) { return sim->seats[rank].cut; }
const wefti_host    *wefti_sim_host(wefti_sim *sim, int32_t rank) { return &sim->seats[rank].host; }
const wefti_network *wefti_sim_network(wefti_sim *sim, int32_t rank) { return &sim->seats[rank].network; }
const wefti_reducer *wefti_sim_reducer(wefti_sim *sim) { return &sim->reducer; }

/* --- making --- */

static void set_defaults(wefti_sim_options *options) {
    if (options->near.bytes_per_ns <= 0) options->near = (wefti_sim_link){500, 20};
    if (options->far.bytes_per_ns <= 0) options->far = (wefti_sim_link){2000, 12.5};
    if (!options->again_ns) options->again_ns = 200 * WEFTI_MILLISECOND_NS;
    if (!options->post_ns) options->post_ns = 200;
    if (options->core_bytes_per_ns <= 0) options->core_bytes_per_ns = 12.5;
    if (!options->most_bytes) options->most_bytes = (size_t)1 << 30;
    if (!options->limit_ns) options->limit_ns = 3600 * WEFTI_SECOND_NS;
}

static void fill_seat(wefti_sim *sim, int32_t rank) {
    sim_seat *seat = &sim->seats[rank];
    seat->sim = sim;
    seat->index = rank;
    seat->node = sim->options.nodes ? sim->options.nodes[rank] : rank;
    seat->over = true; /* it has no program yet */
    /* One core: ranks that share the process's only one are crowded, and so let others run while they wait. */
    seat->host = (wefti_host){host_now, host_yield, host_sleep, host_random, seat, 1, true};
    seat->network = (wefti_network){.wire_name = "sim", .open = wefti_wire_sim_open, .shared = sim, .host_number = (uint64_t)(uint32_t)seat->node,
                                    .stream = wefti_sim_stream, .listen = wefti_sim_listen, .dial = wefti_sim_dial,
                                    .connected = wefti_sim_connected, .accept = wefti_sim_accept,
                                    .spawn = host_spawn, .join = host_join, .fence = sim->options.fenced ? fence : NULL, .context = seat};
}

weft_status wefti_sim_create(const wefti_sim_options *options, wefti_sim **sim_out) {
    wefti_sim *sim = NULL;
    size_t     size = (size_t)options->size;
    *sim_out = NULL;
    if (options->size < 1) return wefti_fail(WEFT_E_INVALID, "a simulated world of %d ranks", (int)options->size);
    WEFTI_TRY(wefti_alloc(sizeof *sim, "a simulator", &sim));
    sim->options = *options;
    set_defaults(&sim->options);
    sim->random = options->seed;
    sim->hash = WEFTI_HASH_BEGIN;
    sim->reducer = (wefti_reducer){reduce, sim, copied};
    weft_status status = wefti_alloc(size * sizeof *sim->seats, "simulated ranks", &sim->seats);
    if (status == WEFT_OK) status = wefti_alloc(size * size * sizeof *sim->ways, "simulated ways", &sim->ways);
    if (status != WEFT_OK) {
        wefti_sim_release(sim);
        return status;
    }
    for (int32_t rank = 0; rank < options->size; rank++) fill_seat(sim, rank);
    sim->options.nodes = NULL; /* the seats have them */
    *sim_out = sim;
    return WEFT_OK;
}

static void free_messages(wefti_sim *sim) {
    size_t ways = (size_t)sim->options.size * (size_t)sim->options.size;
    for (size_t i = 0; sim->ways && i < ways; i++)
        for (sim_message *message = sim->ways[i].first, *next; message; message = next) {
            next = message->next;
            wefti_sim_unschedule(sim, &message->event);
            message->op = NULL;
            wefti_sim_message_free(sim, message);
        }
}

void wefti_sim_release(wefti_sim *sim) {
    if (!sim) return;
    size_t size = (size_t)sim->options.size;
    free_messages(sim);
    for (size_t rank = 0; sim->seats && rank < size; rank++) {
        sim_seat *seat = &sim->seats[rank];
        wefti_sim_streams_free(seat);
        for (sim_fiber *fiber = seat->fibers, *next; fiber; fiber = next) {
            next = fiber->next;
            wefti_sim_unschedule(sim, &fiber->event);
            wefti_sim_fiber_free(fiber);
        }
    }
    while (sim->queued > 0) { /* only faults are left */
        sim_event *event = sim->queue[0];
        wefti_sim_unschedule(sim, event);
        free_planned((planned_fault *)event);
    }
    wefti_sim_pool_free(sim);
    wefti_sim_fibers_end(sim);
    wefti_free(sim->queue, sim->queue_capacity * sizeof(sim_event *));
    wefti_free(sim->ways, size * size * sizeof *sim->ways);
    wefti_free(sim->seats, size * sizeof *sim->seats);
    wefti_free(sim, sizeof *sim);
}

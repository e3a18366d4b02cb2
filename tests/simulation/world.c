/* Runs simulated worlds: opens, runs, listens for a verdict, closes; and closes for those who died. */
#include "world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void take_outcome(sim_rank *self, weft_status status) {
    self->status = status;
    self->fault_rank = wefti_fault_rank(self->transport->fault);
    snprintf(self->message, sizeof self->message, "%s", status == WEFT_OK ? "" : weft_error_message());
    char *own = strstr(self->message, "; it ended"); /* what the verdict did to this rank */
    if (own && self->fault_rank >= 0) *own = 0;
}

/* What befalls others is heard of by whoever stays. */
static weft_status listen(sim_rank *self) {
    const wefti_host *host = self->transport->host;
    uint64_t until_ns = wefti_host_now(host) + self->world->listen_ns;
    weft_status status;
    while ((status = wefti_fault_status(self->transport->fault)) == WEFT_OK && wefti_host_now(host) < until_ns)
        host->sleep(host->context, 50 * WEFTI_MILLISECOND_NS);
    return status;
}

weft_status sim_rank_open(sim_rank *self, const char *algorithm, const int32_t *nodes, int32_t in_flight) {
    const wefti_group_options options = {.wire = self->transport->wire, .size = self->transport->size, .index = self->transport->rank, .id = 5,
                                         .in_flight = in_flight, .timeout_ns = self->world->timeout_ns, .reducer = self->transport->reducer,
                                         .fault = self->transport->fault, .algorithm = algorithm, .nodes = nodes};
    return wefti_collective_engine_weft()->open(&options, &self->group);
}

weft_status sim_rank_shrink(sim_rank *self, int32_t least, uint64_t patience_ns) {
    const wefti_transport_options options = {.timeout_ns = self->world->timeout_ns, .reducer = self->transport->reducer};
    wefti_transport              *next = NULL;
    if (self->lost_count == SIM_MOST_LOST) return wefti_fail(WEFT_E_OVERFLOW, "a rank lost %d worlds", SIM_MOST_LOST);
    WEFTI_TRY(wefti_transport_shrink(self->transport, &options, &(wefti_shrink_terms){.least = least, .patience_ns = patience_ns,
                                                                                               .replacement_ns = self->world->replacement_ns}, &next));
    self->lost[self->lost_count] = self->transport;
    self->lost_groups[self->lost_count++] = self->group;
    self->transport = next;
    self->group = NULL;
    return WEFT_OK;
}

weft_status sim_rank_take(sim_rank *self, size_t bytes) {
    WEFTI_TRY(wefti_alloc_raw(bytes, 64, "memory of a test", &self->memory));
    self->memory_bytes = bytes;
    return WEFT_OK;
}

static void bury(sim_rank *self) {
    wefti_transport *transport = self->transport;
    if (self->world->bury) self->world->bury(self);
    wefti_collective_engine_weft()->close(self->group);
    while (self->lost_count > 0) {
        wefti_collective_engine_weft()->close(self->lost_groups[--self->lost_count]);
        wefti_transport_close(self->lost[self->lost_count]);
    }
    wefti_free(self->memory, self->memory_bytes);
    self->transport = NULL;
    self->group = NULL;
    self->memory = NULL;
    wefti_transport_close(transport);
}

typedef struct start {
    sim_rank *self;
    void (*plan)(sim_world *world);
} start;

static bool open_rank(sim_rank *self, bool rejoins) {
    sim_world *world = self->world;
    wefti_transport_options options = {.host = wefti_sim_host(world->sim, self->rank), .network = wefti_sim_network(world->sim, self->rank),
                                       .rank = self->rank, .size = world->size, .timeout_ns = world->timeout_ns,
                                       .reducer = wefti_sim_reducer(world->sim), .rejoins = rejoins};
    weft_status status = wefti_transport_open(&options, &self->transport);
    if (status == WEFT_OK) return true;
    self->status = status;
    snprintf(self->message, sizeof self->message, "opening: %s", weft_error_message());
    self->ended = true;
    return false;
}

static void work(sim_rank *self) {
    sim_world  *world = self->world;
    weft_status status = world->function(self);
    self->ended_ns = wefti_sim_now(world->sim);
    if (world->listen_ns && (status == WEFT_OK || wefti_fault_rank(self->transport->fault) < 0)) {
        weft_status verdict = listen(self);
        status = verdict != WEFT_OK ? verdict : status;
    }
    take_outcome(self, status);
    wefti_sim_spare(world->sim, self->rank);
    self->ended = true;
    bury(self);
}

static void run_rank(void *context) {
    start    *from = context;
    sim_rank *self = from->self;
    sim_world *world = self->world;
    const wefti_host *host = wefti_sim_host(world->sim, self->rank);
    bool opened = open_rank(self, false), last = ++world->opened == world->size;
    if (!opened) return;
    if (last) {
        world->began_ns = wefti_sim_now(world->sim);
        if (from->plan) from->plan(world);
    }
    while (world->opened < world->size) host->sleep(host->context, WEFTI_MILLISECOND_NS);
    work(self);
}

static void run_again(void *context) {
    sim_rank  *self = context;
    sim_world *world = self->world;
    world->graves[world->buried++] = *self;
    *self = (sim_rank){.world = world, .rank = self->rank, .start = self->start + 1, .started_ns = wefti_sim_now(world->sim), .fault_rank = -1};
    if (open_rank(self, true)) work(self);
}

void sim_world_start_again(sim_world *world, int32_t rank, uint64_t at_ns) {
    if (world->starts++ == SIM_MOST_STARTS || wefti_sim_start_again(world->sim, rank, at_ns, run_again, &world->ranks[rank]) != WEFT_OK) abort();
}

void sim_world_run(sim_world *world, const wefti_sim_options *options, void (*plan)(sim_world *world)) {
    world->size = options->size;
    world->ranks = calloc((size_t)world->size, sizeof *world->ranks);
    start *starts = calloc((size_t)world->size, sizeof *starts);
    world->outcome = wefti_sim_create(options, &world->sim);
    for (int32_t rank = 0; rank < world->size && world->outcome == WEFT_OK; rank++) {
        world->ranks[rank] = (sim_rank){.world = world, .rank = rank, .fault_rank = -1};
        starts[rank] = (start){&world->ranks[rank], plan};
        world->outcome = wefti_sim_start(world->sim, rank, run_rank, &starts[rank]);
    }
    if (world->outcome == WEFT_OK) world->outcome = wefti_sim_run(world->sim);
    if (world->outcome != WEFT_OK) snprintf(world->words, sizeof world->words, "%s", weft_error_message());
    world->hash = wefti_sim_hash(world->sim);
    world->events = wefti_sim_events(world->sim);
    free(starts);
}

void sim_world_free(sim_world *world) {
    for (int32_t rank = 0; rank < world->size; rank++) bury(&world->ranks[rank]); /* those who died */
    for (int32_t i = 0; i < world->buried; i++) bury(&world->graves[i]);
    wefti_sim_release(world->sim);
    free(world->ranks);
}

const char *sim_world_judge(const sim_world *world, int32_t victim, bool must_fail, char *text_out, size_t text_bytes) {
    const sim_rank *first = NULL;
    if (world->outcome != WEFT_OK) {
        snprintf(text_out, text_bytes, "%s", world->words);
        return text_out;
    }
    for (int32_t rank = 0; rank < world->size; rank++) {
        const sim_rank *self = &world->ranks[rank];
        if (wefti_sim_is_gone(world->sim, rank) || wefti_sim_is_cut(world->sim, rank)) continue;
        bool same = !first || (first->status == self->status && first->fault_rank == self->fault_rank && !strcmp(first->message, self->message));
        bool right = self->ended && (self->status == WEFT_OK ? !must_fail && self->fault_rank < 0
                                                             : victim >= 0 && self->status == WEFT_E_PEER && self->fault_rank == victim);
        if (!first) first = self;
        if (same && right) continue;
        snprintf(text_out, text_bytes, "rank %d %s %s (rank %d): %.300s; rank %d: %s (rank %d): %.300s; the victim is %d%s", (int)rank,
                 self->ended ? "ended with" : "has not ended,", weft_status_name(self->status), (int)self->fault_rank, self->message,
                 (int)first->rank, weft_status_name(first->status), (int)first->fault_rank, first->message, (int)victim,
                 must_fail ? ", and there must be a verdict" : "");
        return text_out;
    }
    return NULL;
}

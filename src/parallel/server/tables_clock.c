/* Clocks: when a pull may be answered, and when what was pushed takes effect.
 *
 * With staleness 0 the pushes of a clock are added up in the order of the workers' ranks, so that the sum has the same bits whoever comes
 * first. The worker whose turn it is, the first in that order that has not ended the clock, is added at once; what others push meanwhile
 * is kept until it is theirs. When the last has ended the clock the rule gets the sum. Cost: while all go at one pace, one sum as large
 * as the rows that are pushed, and the pushes of those who are before their turn.
 *
 * With backup workers nobody has a turn: pushes are kept until enough workers have ended the clock, and then those of who did are added, in the same
 * order. Who was late goes on in the clock in hand. */
#include <string.h>

#include "parallel/server/saves.h"

static bool is_out(const weft_server *server, int32_t worker) {
    return server->sessions[worker].left || server->sessions[worker].dead;
}

/* --- staleness 0 --- */

static double rate_of(double asked) { return asked > 0 ? asked : 1; }

static weft_status add_to_sum(served_table *table, int32_t worker, served_keys *keys, uint64_t first, int64_t count, const uint8_t *values,
                              const wefti_entries *entries, double rate) {
    const uint64_t *places = keys ? keys->places : NULL, begin = keys ? 0 : first - table->begin;
    table->rate = rate_of(rate);
    if (entries->counts) WEFTI_TRY(wefti_sum_add_entries(table->sum, places, begin, count, entries));
    else WEFTI_TRY(wefti_sum_add(table->sum, places, begin, count, values));
    table->folded[worker] = table->closed + 1;
    return WEFT_OK;
}

static void note_trouble(weft_server *server, served_table *table, weft_status status) {
    if (status == WEFT_OK) return;
    table->trouble = status;
    table->trouble_clock = table->closed + 1;
    snprintf(table->trouble_text, sizeof table->trouble_text, "table '%s', the end of clock %llu on rank %d: %.400s", table->spec.name,
             (unsigned long long)table->closed, (int)server->rank, weft_error_message());
}

static void free_push(weft_server *server, served_table *table, server_push *push) {
    wefti_tables_let_go(table, push->keys);
    wefti_server_give(server, push->body);
    wefti_free(push, sizeof *push);
}

/* What the worker pushed in the clock in hand, while it was not its turn. */
static void add_kept(weft_server *server, served_table *table, int32_t worker) {
    server_push *push;
    while ((push = table->pushes[worker]) && push->clock == table->closed) {
        table->pushes[worker] = push->next;
        note_trouble(server, table, add_to_sum(table, worker, push->keys, push->first, push->count, push->body->data + push->offset, &push->entries,
                                               push->rate));
        free_push(server, table, push);
    }
}

/* Values in the worker's memory are copied: it is the worker's again when this is answered. So are decoded ones, of which the buffer has more. */
static weft_status keep(weft_server *server, served_table *table, server_job *job) {
    const bool     away = job->frame.flags & (WEFTI_SERVER_SENT_IN_PLACE | WEFTI_SERVER_SENT_CODED);
    const size_t   bytes = (size_t)job->frame.count * table->row_bytes;
    server_push   *push = NULL, **at = &table->pushes[job->worker];
    server_buffer *body = job->body;
    WEFTI_TRY(wefti_alloc(sizeof *push, "a push that waits for its turn", &push));
    weft_status status = away ? wefti_server_take(server, bytes, false, &body) : WEFT_OK;
    if (status != WEFT_OK) {
        wefti_free(push, sizeof *push);
        return status;
    }
    if (away) memcpy(body->data, job->values, bytes);
    *push = (server_push){.keys = job->keys, .body = body, .offset = away ? 0 : job->list_bytes, .first = job->frame.first,
                          .count = (int64_t)job->frame.count, .entries = job->entries, .clock = table->clocks[job->worker], .rate = job->frame.rate};
    if (job->keys) job->keys->users++;
    if (!away) job->body = NULL;
    while (*at) at = &(*at)->next;
    *at = push;
    return WEFT_OK;
}

static void drop_kept(weft_server *server, served_table *table, int32_t worker) {
    server_push *push;
    while ((push = table->pushes[worker]) && push->clock == table->closed) {
        table->pushes[worker] = push->next;
        server->late_count++;
        free_push(server, table, push);
    }
}

/* Gives the sum to the rule. `mean` is over those who ended the clock, or have something in it. */
static void close_clock(weft_server *server, served_table *table) {
    int32_t members = 0;
    for (int32_t worker = 0; worker < server->workers; worker++)
        members += table->clocks[worker] > table->closed || table->folded[worker] == table->closed + 1;
    wefti_lend_end_all(server, table);
    wefti_store_set_rate(table->store, table->rate);
    note_trouble(server, table, wefti_sum_apply(table->sum, table->options.rule.mean ? 1.0 / members : 1));
    table->closed++;
    table->turn = 0;
    wefti_saves_advance(server); /* before the next clock changes the rows */
    wefti_tables_wake(server, table);
}

static void advance_sum(weft_server *server, served_table *table) {
    for (;;) {
        while (table->turn < server->workers) {
            add_kept(server, table, table->turn);
            if (!is_out(server, table->turn) && table->clocks[table->turn] <= table->closed) return;
            table->turn++;
        }
        bool ended = false; /* by somebody: else all are gone, and nobody waits */
        for (int32_t worker = 0; worker < server->workers && !ended; worker++) ended = table->clocks[worker] > table->closed;
        if (!ended) return;
        close_clock(server, table);
    }
}

/* Backup workers: the clock is over when enough of those who are there have ended it. */
static void advance_without_the_late(weft_server *server, served_table *table) {
    for (;;) {
        int32_t there = 0, ended = 0, wanted = server->workers - table->options.spares;
        for (int32_t worker = 0; worker < server->workers; worker++) {
            there += !is_out(server, worker);
            ended += table->clocks[worker] > table->closed;
        }
        if (ended == 0 || ended < (wanted < there ? wanted : there)) return;
        for (int32_t worker = 0; worker < server->workers; worker++) {
            if (table->clocks[worker] > table->closed) add_kept(server, table, worker);
            else drop_kept(server, table, worker);
        }
        close_clock(server, table);
    }
}

/* --- all --- */

weft_status wefti_clock_push(weft_server *server, served_table *table, server_job *job) {
    const wefti_server_frame *frame = &job->frame;
    served_keys              *keys = job->keys;
    if (frame->count == 0) return WEFT_OK;
    if (table->options.staleness != 0) {
        wefti_store_set_rate(table->store, rate_of(frame->rate));
        if (job->entries.counts)
            return wefti_store_apply_entries(table->store, keys ? keys->places : NULL, keys ? 0 : frame->first - table->begin, (int64_t)frame->count, &job->entries);
        return wefti_store_apply(table->store, keys ? keys->places : NULL, keys ? 0 : frame->first - table->begin, (int64_t)frame->count, job->values, 1);
    }
    if (table->options.spares > 0) {
        if (table->clocks[job->worker] >= table->closed) return keep(server, table, job);
        server->late_count++;
        return WEFT_OK;
    }
    if (table->turn == job->worker && table->clocks[job->worker] == table->closed)
        return add_to_sum(table, job->worker, keys, frame->first, (int64_t)frame->count, job->values, &job->entries, frame->rate);
    return keep(server, table, job);
}

void wefti_clock_advance(weft_server *server, served_table *table) {
    if (table->sum && table->options.spares > 0) advance_without_the_late(server, table);
    else if (table->sum) advance_sum(server, table);
}

/* A worker that is there and has begun a clock that is not over; -1: none has. */
static int32_t find_in_clock(const weft_server *server, const served_table *table) {
    for (int32_t worker = 0; worker < server->workers; worker++)
        if (!is_out(server, worker) && (table->pushes[worker] || table->folded[worker] == table->closed + 1)) return worker;
    return -1;
}

/* A failure of a rule that not all have been told is told by the change, once. */
static weft_status tell_trouble(const weft_server *server, served_table *table) {
    bool untold = false;
    for (int32_t worker = 0; worker < server->workers && table->trouble != WEFT_OK; worker++) {
        untold = untold || (!is_out(server, worker) && table->told[worker] < table->trouble_clock);
        table->told[worker] = table->trouble_clock;
    }
    return untold ? wefti_fail(table->trouble, "%s", table->trouble_text) : WEFT_OK;
}

weft_status wefti_clock_settle(weft_server *server, served_table *table) {
    if (table->options.spares > 0)
        return wefti_fail(WEFT_E_UNSUPPORTED, "table '%s' has backup workers (.spares): each server decides who was late, so no moment is the same on all",
                          table->spec.name);
    WEFTI_TRY(tell_trouble(server, table));
    if (!table->sum) return WEFT_OK;
    for (int32_t worker = 0; worker < server->workers; worker++)
        if (!is_out(server, worker) && table->clocks[worker] != table->closed)
            return wefti_fail(WEFT_E_MISMATCH, "table '%s': rank %d is at clock %llu, and clock %llu is not over: all workers change the split at the same clock",
                              table->spec.name, (int)worker, (unsigned long long)table->clocks[worker], (unsigned long long)table->closed);
    int32_t early = find_in_clock(server, table);
    if (early >= 0)
        return wefti_fail(WEFT_E_STATE, "table '%s': rank %d has pushed in clock %llu, which is not over: the split changes between clocks", table->spec.name,
                          (int)early, (unsigned long long)table->closed);
    for (int32_t worker = 0; worker < server->workers; worker++) {
        for (server_push *push = table->pushes[worker]; push; push = push->next) push->clock = table->closed;
        add_kept(server, table, worker);
    }
    int32_t members = 0;
    for (int32_t worker = 0; worker < server->workers; worker++) members += table->folded[worker] == table->closed + 1;
    memset(table->folded, 0, (size_t)server->workers * sizeof *table->folded);
    if (wefti_sum_rows(table->sum) == 0) return WEFT_OK;
    wefti_lend_end_all(server, table);
    wefti_store_set_rate(table->store, table->rate);
    return wefti_sum_apply(table->sum, table->options.rule.mean ? 1.0 / members : 1);
}

void wefti_clock_tick(weft_server *server, served_table *table, int32_t worker) {
    table->clocks[worker]++;
    if (table->options.spares > 0 && table->clocks[worker] < table->closed) table->clocks[worker] = table->closed; /* it was late */
    wefti_clock_advance(server, table);
}

/* The slowest of those that are there; -1: nobody else is. */
static int32_t find_slowest(const weft_server *server, const served_table *table) {
    int32_t slowest = -1;
    for (int32_t worker = 0; worker < server->workers; worker++)
        if (!is_out(server, worker) && (slowest < 0 || table->clocks[worker] < table->clocks[slowest])) slowest = worker;
    return slowest;
}

/* It waits for a clock itself, of whichever table. */
static bool is_waiting(const weft_server *server, int32_t worker) {
    for (const served_table *table = server->served; table; table = table->next)
        for (const server_job *job = table->waiting; job; job = job->next)
            if (job->worker == worker) return true;
    return false;
}

/* Who is to be named: of several that are slowest, one that does not wait for others. */
static int32_t find_behind(const weft_server *server, const served_table *table) {
    int32_t slowest = find_slowest(server, table);
    for (int32_t worker = slowest; slowest >= 0 && worker < server->workers; worker++)
        if (!is_out(server, worker) && table->clocks[worker] == table->clocks[slowest] && !is_waiting(server, worker)) return worker;
    return slowest;
}

bool wefti_clock_allows(const weft_server *server, const served_table *table, uint64_t clock) {
    int32_t staleness = table->options.staleness;
    if (staleness < 0) return true;
    if (staleness == 0) return table->closed >= clock;
    int32_t slowest = find_slowest(server, table);
    return slowest < 0 || table->clocks[slowest] + (uint64_t)staleness >= clock;
}

void wefti_clock_explain(const weft_server *server, const served_table *table, uint64_t mine, char *text, size_t bytes) {
    int32_t slowest = find_behind(server, table);
    uint64_t staleness = (uint64_t)table->options.staleness;
    snprintf(text, bytes, "rank %d, which serves: a pull of table '%s' in clock %llu waits for all workers to end clock %llu, and rank %d is at clock %llu",
             (int)server->rank, table->spec.name, (unsigned long long)mine, (unsigned long long)(mine - staleness - 1), (int)slowest,
             (unsigned long long)(slowest < 0 ? 0 : table->clocks[slowest]));
}

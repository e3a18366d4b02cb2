/* Who works at which unit: the list that the first server keeps for a run of weft_lbfgs_minimise.
 *
 * Workers ask for a unit, and bring the loss of the one before with it; whoever finds nothing to do is answered later. A unit that nobody has goes
 * first. Where there is none, one that is under way elsewhere is given a second time, if the asker is likely to be done before: it is taken to need as
 * long as it did of late, and so is who has the unit, unless that is overdue. The first answer counts. Units of workers that have died or left are nobody's again.
 *
 * Where servers have replicas and the first one dies, its replica has no list, and makes one of what it is told from then on: with each question the coordinator
 * says which evaluation is under way, and all of its units are given out again. Gradients that servers have are not added twice, and losses come
 * in the order of units, so no bit changes; what is lost is the work of that evaluation. We prefer that over a list on both, which would have to agree on who has
 * what.
 *
 * An evaluation is complete when every unit is done, and a unit is brought only after all servers have its gradient; so the sums are complete too. What comes
 * later is of no effect. The order in which losses are added is that of units. 10 bytes a unit, some for each worker. */
#include <math.h>
#include <string.h>

#include "parallel/server/work.h"

#define COORDINATOR 0
#define NO_UNIT UINT64_MAX

/* A worker, as the list knows it. */
typedef struct ledger_worker {
    uint64_t unit;       /* that it has; NO_UNIT: none of this evaluation */
    uint64_t since_ns, usual_ns; /* when it got that; how long one takes it, 0: unknown */
    bool     arrived, told; /* it has come to the run; it knows that that is over */
} ledger_worker;

typedef struct server_ledger {
    struct server_ledger *next;
    uint64_t       run, evaluation, units, done, fresh; /* no unit before `fresh` is nobody's */
    uint64_t       given, repeated, timeout_ns, changed_ns;
    bool           once, ready, complete, over;
    uint8_t        point;
    double         loss, *losses; /* [units] */
    uint8_t       *copies;        /* [units] workers that have it; DONE */
    size_t         bytes;         /* of both */
    ledger_worker *workers;
    server_job    *waiting;       /* asks */
    bool           coordinator_computes;
    wefti_work     last;          /* over: what everybody is told */
} server_ledger;

enum { DONE = 255, COPIES_MOST = 2, RUNS_KEPT = 8 };

/* --- ledgers --- */

static void free_ledger(weft_server *server, server_ledger *ledger) {
    for (server_ledger **at = &server->ledgers; *at; at = &(*at)->next)
        if (*at == ledger) {
            *at = ledger->next;
            break;
        }
    if (ledger->losses) wefti_free(ledger->losses, ledger->bytes);
    if (ledger->workers) wefti_free(ledger->workers, (size_t)server->workers * sizeof *ledger->workers);
    wefti_free(ledger, sizeof *ledger);
}

static weft_status find_ledger(weft_server *server, uint64_t run, server_ledger **ledger_out) {
    server_ledger *ledger = server->ledgers;
    while (ledger && ledger->run != run) ledger = ledger->next;
    *ledger_out = ledger;
    if (ledger) return WEFT_OK;
    WEFTI_TRY(wefti_alloc(sizeof *ledger, "a list of work", &ledger));
    ledger->run = run;
    ledger->changed_ns = server->now_ns;
    ledger->next = server->ledgers;
    server->ledgers = ledger;
    weft_status status = wefti_alloc((size_t)server->workers * sizeof *ledger->workers, "a list of work", &ledger->workers);
    if (status != WEFT_OK) {
        free_ledger(server, ledger);
        return status;
    }
    for (int32_t worker = 0; worker < server->workers; worker++) ledger->workers[worker].unit = NO_UNIT;
    *ledger_out = ledger;
    return WEFT_OK;
}

/* The first that ends a run says how it ended. */
static void end_run(server_ledger *ledger, weft_status status, const char *text) {
    if (ledger->over) return;
    ledger->over = true;
    ledger->last = (wefti_work){.run = ledger->run, .kind = WORK_OVER, .status = (int32_t)status};
    snprintf(ledger->last.text, sizeof ledger->last.text, "%s", text);
}

static bool is_away(const weft_server *server, int32_t worker) { return server->sessions[worker].dead || server->sessions[worker].left; }

/* --- units --- */

static weft_status begin(weft_server *server, server_ledger *ledger, const wefti_work *work) {
    size_t bytes = 0;
    if (work->evaluation <= ledger->evaluation) return WEFT_OK; /* asked again */
    if (work->units == 0 || work->units > UINT64_C(1) << 40 || !wefti_mul_size((size_t)work->units, sizeof(double) + 1, &bytes))
        return wefti_fail(WEFT_E_INVALID, "%llu units of work", (unsigned long long)work->units);
    if (bytes != ledger->bytes) {
        double *losses = NULL;
        WEFTI_TRY(wefti_alloc(bytes, "a list of units", &losses));
        if (ledger->losses) wefti_free(ledger->losses, ledger->bytes);
        ledger->losses = losses;
        ledger->bytes = bytes;
    }
    ledger->copies = (uint8_t *)(ledger->losses + work->units);
    memset(ledger->losses, 0, bytes);
    ledger->evaluation = work->evaluation;
    ledger->units = work->units;
    ledger->timeout_ns = work->timeout_ns;
    ledger->once = work->once;
    ledger->point = work->point;
    ledger->done = ledger->fresh = 0;
    ledger->complete = false;
    ledger->changed_ns = server->now_ns;
    for (int32_t worker = 0; worker < server->workers; worker++) ledger->workers[worker].unit = NO_UNIT;
    return WEFT_OK;
}

static void let_go(server_ledger *ledger, int32_t worker) {
    uint64_t unit = ledger->workers[worker].unit;
    ledger->workers[worker].unit = NO_UNIT;
    if (unit == NO_UNIT || ledger->copies[unit] == DONE || --ledger->copies[unit] > 0) return;
    if (unit < ledger->fresh) ledger->fresh = unit;
    ledger->repeated++;
}

static void add_losses(server_ledger *ledger) {
    double sum = 0, lost = 0;
    for (uint64_t i = 0; i < ledger->units; i++) {
        double more = sum + ledger->losses[i];
        lost += fabs(sum) >= fabs(ledger->losses[i]) ? (sum - more) + ledger->losses[i] : (ledger->losses[i] - more) + sum;
        sum = more;
    }
    ledger->loss = isfinite(lost) ? sum + lost : sum;
    ledger->complete = true;
}

/* What a worker brings. Its unit may be done already, or of an evaluation that is over: then even a failure means nothing, for the point may have
 * changed while it was read. */
static void take_result(weft_server *server, server_ledger *ledger, int32_t worker, const wefti_work *work) {
    ledger_worker *who = &ledger->workers[worker];
    if (!work->brings) return;
    uint64_t took_ns = server->now_ns - who->since_ns;
    who->usual_ns = who->usual_ns ? (who->usual_ns + took_ns) / 2 : took_ns;
    bool counts = work->evaluation == ledger->evaluation && !ledger->complete && work->unit < ledger->units && ledger->copies[work->unit] != DONE;
    if (!counts) return;
    if (work->status != WEFT_OK) {
        end_run(ledger, (unsigned)work->status < WEFT_STATUS_COUNT ? (weft_status)work->status : WEFT_E_CORRUPT, work->text);
        return;
    }
    if (who->unit == work->unit) who->unit = NO_UNIT;
    ledger->copies[work->unit] = DONE;
    ledger->losses[work->unit] = work->loss;
    ledger->changed_ns = server->now_ns;
    if (++ledger->done == ledger->units) add_losses(ledger);
}

/* Whether the asker is likely to be done with another's unit before that one is. */
static bool is_worth(const server_ledger *ledger, int32_t worker, int32_t holder, uint64_t now_ns) {
    const ledger_worker *me = &ledger->workers[worker], *other = &ledger->workers[holder];
    if (!me->usual_ns || !other->usual_ns) return true;
    return now_ns + me->usual_ns < other->since_ns + other->usual_ns || now_ns > other->since_ns + 2 * other->usual_ns;
}

/* A unit for the worker, or NO_UNIT. Of those that others have, the one that has been under way for the longest. */
static uint64_t choose_unit(const weft_server *server, server_ledger *ledger, int32_t worker) {
    while (ledger->fresh < ledger->units && ledger->copies[ledger->fresh] > 0) ledger->fresh++;
    if (ledger->fresh < ledger->units) return ledger->fresh;
    uint64_t unit = NO_UNIT, since_ns = UINT64_MAX;
    for (int32_t holder = 0; holder < server->workers && !ledger->once; holder++) {
        const ledger_worker *other = &ledger->workers[holder];
        if (holder == worker || other->unit == NO_UNIT || ledger->copies[other->unit] >= COPIES_MOST || other->since_ns >= since_ns) continue;
        if (!is_worth(ledger, worker, holder, server->now_ns)) continue;
        unit = other->unit;
        since_ns = other->since_ns;
    }
    return unit;
}

/* --- answers --- */

static void send_answer(weft_server *server, server_job *job, const wefti_work *work) {
    weft_status status = wefti_server_take(server, sizeof *work, false, &job->answer);
    if (status == WEFT_OK) {
        memcpy(job->answer->data, work, sizeof *work);
        job->answer_bytes = sizeof *work;
    }
    wefti_serve_answer(server, job, status);
}

/* The start is there, and no worker is still busy with the run before. */
static bool can_begin(const weft_server *server, const server_ledger *ledger) {
    bool all = ledger->ready;
    for (int32_t worker = 0; worker < server->workers; worker++) all = all && (ledger->workers[worker].arrived || is_away(server, worker));
    return all;
}

/* Answers an ask if there is something to say; with `now`, in any case. */
static bool try_answer(weft_server *server, server_ledger *ledger, server_job *job, bool now) {
    const wefti_work *ask = (const wefti_work *)(const void *)job->body->data;
    ledger_worker    *who = &ledger->workers[job->worker];
    wefti_work        work = {.run = ledger->run, .evaluation = ledger->evaluation, .units = ledger->units, .point = ledger->point,
                              .given = ledger->given, .repeated = ledger->repeated, .kind = WORK_NOTHING};
    bool              coordinates = job->worker == COORDINATOR;
    work.open = ledger->evaluation > 0 && !ledger->complete;
    if (ledger->over) {
        work = ledger->last;
        who->told = true;
    } else if (coordinates && ask->evaluation == ledger->evaluation && (ledger->evaluation ? ledger->complete : can_begin(server, ledger))) {
        work.kind = WORK_COMPLETE;
        work.loss = ledger->loss;
    } else if (work.open && ask->computes && !is_away(server, job->worker) && (work.unit = choose_unit(server, ledger, job->worker)) != NO_UNIT) {
        work.kind = WORK_UNIT;
        who->unit = work.unit;
        who->since_ns = server->now_ns;
        ledger->given++;
        if (ledger->copies[work.unit]++ > 0) ledger->repeated++;
    } else if (!now) {
        return false;
    }
    send_answer(server, job, &work);
    return true;
}

static void answer_waiting(weft_server *server, server_ledger *ledger, uint64_t now_ns) {
    server_job **at = &ledger->waiting;
    while (*at) {
        server_job *job = *at, *next = job->next;
        if (try_answer(server, ledger, job, now_ns >= job->deadline_ns || is_away(server, job->worker))) *at = next;
        else at = &job->next;
    }
}

/* Everybody has been told, or is gone. */
static bool is_finished(const weft_server *server, const server_ledger *ledger) {
    for (int32_t worker = 0; worker < server->workers; worker++)
        if (!ledger->workers[worker].told && !is_away(server, worker)) return false;
    return ledger->over && !ledger->waiting;
}

static void settle(weft_server *server, server_ledger *ledger) {
    answer_waiting(server, ledger, server->now_ns);
    if (is_finished(server, ledger)) free_ledger(server, ledger);
}

/* With replicas, ends are kept for workers that may ask here and do not: runs that long ago nobody is in any more. */
static void forget_old(weft_server *server, uint64_t run) {
    for (server_ledger *ledger = server->ledgers, *next; ledger; ledger = next) {
        next = ledger->next;
        if (ledger->over && !ledger->waiting && ledger->run + RUNS_KEPT <= run) free_ledger(server, ledger);
    }
}

/* --- requests --- */

void wefti_ledger_carry_out(weft_server *server, server_job *job) {
    wefti_work    *work = job->body ? (wefti_work *)(void *)job->body->data : NULL;
    server_ledger *ledger = NULL;
    if (!work || job->frame.body_bytes != sizeof *work || !memchr(work->text, 0, sizeof work->text)) {
        wefti_serve_answer(server, job, wefti_fail(WEFT_E_CORRUPT, "a message of rank %d about work is cut off", (int)job->worker));
        return;
    }
    weft_status status = find_ledger(server, work->run, &ledger);
    if (status == WEFT_OK && work->kind > WORK_END) status = wefti_fail(WEFT_E_CORRUPT, "rank %d says %u about work", (int)job->worker, (unsigned)work->kind);
    if (status == WEFT_OK && work->kind == WORK_BEGIN) status = begin(server, ledger, work);
    if (status != WEFT_OK) {
        wefti_serve_answer(server, job, status);
        return;
    }
    ledger->workers[job->worker].arrived = true;
    take_result(server, ledger, job->worker, work);
    let_go(ledger, job->worker);
    if (job->worker == COORDINATOR) ledger->coordinator_computes = work->computes;
    if (work->kind == WORK_READY || work->ready) ledger->ready = true;
    if (ledger->evaluation == 0) ledger->timeout_ns = work->timeout_ns;
    if (work->kind == WORK_END && !ledger->over) {
        end_run(ledger, (weft_status)work->status, work->text);
        ledger->last.report = work->report;
        ledger->last.point = work->point;
        forget_old(server, work->run);
    }
    if (!try_answer(server, ledger, job, work->kind == WORK_READY || work->kind == WORK_END)) {
        job->next = ledger->waiting;
        ledger->waiting = job;
    }
    settle(server, ledger);
}

/* --- time and partings --- */

static void explain_start(const weft_server *server, const server_ledger *ledger, char *text, size_t bytes) {
    size_t used = (size_t)snprintf(text, bytes, "after %.3g s there are not here yet:%s", (double)ledger->timeout_ns / 1e9, ledger->ready ? "" : " the start;");
    for (int32_t worker = 0; worker < server->workers && used < bytes; worker++)
        if (!ledger->workers[worker].arrived && !is_away(server, worker)) used += (size_t)snprintf(text + used, bytes - used, " rank %d", (int)worker);
}

static void explain(const weft_server *server, const server_ledger *ledger, char *text, size_t bytes) {
    if (ledger->evaluation == 0) {
        explain_start(server, ledger, text, bytes);
        return;
    }
    size_t used = (size_t)snprintf(text, bytes, "no unit of evaluation %llu has ended for %.3g s, %llu of %llu have; under way are",
                                   (unsigned long long)(ledger->evaluation & UINT32_MAX), (double)ledger->timeout_ns / 1e9, (unsigned long long)ledger->done,
                                   (unsigned long long)ledger->units);
    bool any = false;
    for (int32_t worker = 0; worker < server->workers && used < bytes; worker++)
        if (ledger->workers[worker].unit != NO_UNIT) {
            used += (size_t)snprintf(text + used, bytes - used, "%s %llu at rank %d", any ? "," : "", (unsigned long long)ledger->workers[worker].unit,
                                     (int)worker);
            any = true;
        }
    if (used < bytes) snprintf(text + used, bytes - used, "%s: give a longer .timeout_ns, or smaller units", any ? "" : " none");
}

static void look(weft_server *server, server_ledger *ledger, uint64_t now_ns) {
    char text[WORK_TEXT_BYTES];
    bool computing = ledger->coordinator_computes;
    for (int32_t worker = 0; worker < server->workers; worker++)
        if (is_away(server, worker)) let_go(ledger, worker);
        else computing = computing || worker != COORDINATOR;
    int32_t starts = ledger->coordinator_computes ? COORDINATOR : COORDINATOR + 1;
    if (is_away(server, COORDINATOR)) {
        snprintf(text, sizeof text, "rank %d, which coordinates, is gone", COORDINATOR);
        end_run(ledger, WEFT_E_PEER, text);
    } else if (!computing && !ledger->complete) {
        end_run(ledger, WEFT_E_PEER, "no worker is left that computes units");
    } else if (!ledger->ready && ledger->evaluation == 0 && ledger->workers[COORDINATOR].arrived && is_away(server, starts)) {
        snprintf(text, sizeof text, "rank %d, which has the start, is gone", (int)starts);
        end_run(ledger, WEFT_E_PEER, text);
    } else if (!ledger->complete && !(ledger->evaluation == 0 && can_begin(server, ledger)) && now_ns > wefti_deadline_after(ledger->changed_ns, ledger->timeout_ns)) {
        explain(server, ledger, text, sizeof text);
        end_run(ledger, WEFT_E_TIMEOUT, text);
    }
    settle(server, ledger);
}

void wefti_ledger_look(weft_server *server, uint64_t now_ns) {
    for (server_ledger *ledger = server->ledgers, *next; ledger; ledger = next) {
        next = ledger->next;
        look(server, ledger, now_ns);
    }
}

/* serve.c frees what waits. */
void wefti_ledger_close(weft_server *server) {
    while (server->ledgers) free_ledger(server, server->ledgers);
}

/* Sandblaster L-BFGS: the coordinator, and what every worker does. What it promises: weft/lbfgs.h.
 *
 * The vectors are tables: two points and two gradients, which take turns, a direction, and the pairs. An evaluation is: commands that make the trial point
 * and begin a sum on every server; units given out by the first server's list (ledger.c) and their gradients gathered (gather.c); then
 * commands for the numbers that come of it. The direction (two-loop recursion: Nocedal & Wright 2006, algorithm 7.4) takes a message to each server and back
 * for each pair and loop, in which the vector is changed and the next product made. The line search is the trainer's.
 *
 * Memory of a computing worker: the point and a gradient. The coordinator's own: some KiB. */
#include <math.h>
#include <string.h>

#include "core/rules/wolfe.h"
#include "parallel/server/work.h"

enum { NAME_MOST = 40, HISTORY_MOST = 1000, HISTORY = 10, TRIES = 20, ITERATIONS = 100 };

/* Tables: */
enum { POINT, GRADIENT = 2, DIRECTION = 4, PAIRS = 5 };

typedef struct lbfgs {
    weft_server              *server;
    const weft_lbfgs_problem *problem;
    weft_lbfgs_options        options; /* defaults filled in */
    uint64_t                  run, evaluation, timeout_ns;
    bool                      coordinates, computes, over;
    bool                      started;   /* it has said where the start is */
    uint8_t                   now;       /* POINT + now is the point; the other one the trial */
    uint8_t                   trying;    /* of the coordinator: which of them the evaluation under way is at */
    weft_table              **tables;    /* [PAIRS + 2*history] */
    int32_t                   table_count;
    size_t                    bytes;     /* of what follows, [n] each, where it computes */
    double                   *point, *gradient;
    uint64_t                  held;      /* the evaluation that point is of */
    /* the coordinator's */
    int32_t                   used, next;
    double                   *rho, *alpha; /* [history] */
    double                    scale;       /* of the direction, from the latest pair */
    wefti_vector_frame        commands[VECTORS_MOST];
    double                    results[VECTORS_MOST];
    int32_t                   count;
    weft_lbfgs_report         report, trial; /* loss and norms of the trial */
} lbfgs;

/* --- commands --- */

static uint64_t id_of(const lbfgs *l, int32_t table) { return l->tables[table]->id; }
static int32_t  here(const lbfgs *l) { return l->now; }
static int32_t  there(const lbfgs *l) { return 1 - l->now; }
static int32_t  pair_s(const lbfgs *l, int32_t pair) { return PAIRS + 2 * ((pair % l->options.history + l->options.history) % l->options.history); }
static int32_t  pair_y(const lbfgs *l, int32_t pair) { return pair_s(l, pair) + 1; }

/* Gives where its result will be. */
static int32_t say(lbfgs *l, weft_vector_op op, int32_t x, int32_t y, double scale) {
    l->commands[l->count] = (wefti_vector_frame){.op = (uint32_t)op, .x = id_of(l, x), .y = id_of(l, y), .scale = scale};
    return l->count++;
}
static int32_t say_dot(lbfgs *l, int32_t x, int32_t y) { return say(l, WEFT_VECTOR_DOT, x, y, 0); }
static weft_status run_commands(lbfgs *l) {
    int32_t count = l->count;
    l->count = 0;
    return wefti_vectors_ask(l->server, l->commands, count, l->results);
}

/* --- units --- */

/* The coordinator says with each question which evaluation is under way: who answers may have to be told (ledger.c). */
static wefti_work ask_for(const lbfgs *l, wefti_work_kind kind) {
    bool begins = kind == WORK_ASK && l->coordinates && l->evaluation;
    return (wefti_work){.run = l->run, .kind = (uint32_t)(begins ? WORK_BEGIN : kind), .evaluation = l->evaluation, .computes = l->computes, .ready = l->started,
                        .timeout_ns = l->timeout_ns, .units = (uint64_t)l->problem->units, .point = l->trying, .once = l->options.once};
}

static weft_status evaluate_unit(lbfgs *l, const wefti_work *work, double *loss_out) {
    const weft_lbfgs_problem *p = l->problem;
    if (l->held != work->evaluation) {
        l->held = 0;
        WEFTI_TRY(weft_table_pull(l->tables[POINT + work->point], NULL, l->point));
        l->held = work->evaluation;
    }
    memset(l->gradient, 0, l->bytes);
    (void)wefti_fail(WEFT_OK, "%s", ""); /* the program's function may have nothing to say */
    weft_status status = p->evaluate(p->context, (int64_t)work->unit, l->point, loss_out, l->gradient);
    if (status != WEFT_OK) {
        char why[WORK_TEXT_BYTES / 2];
        snprintf(why, sizeof why, "%s", *weft_error_message() ? weft_error_message() : weft_status_text(status));
        return wefti_fail(status, "unit %llu at rank %d: %s", (unsigned long long)work->unit, (int)l->server->rank, why);
    }
    return wefti_gather_give(l->tables[GRADIENT + work->point], work->evaluation, work->unit, l->gradient);
}

/* Computes the unit in `work`, which becomes what brings the result. */
static void compute(lbfgs *l, wefti_work *work) {
    wefti_work  brings = ask_for(l, WORK_ASK);
    weft_status status = evaluate_unit(l, work, &brings.loss);
    brings.brings = true;
    brings.evaluation = work->evaluation;
    brings.unit = work->unit;
    brings.status = (int32_t)status;
    if (status != WEFT_OK) snprintf(brings.text, sizeof brings.text, "%s", weft_error_message());
    *work = brings;
}

/* What everybody is told at the end. */
static weft_status take_end(lbfgs *l, const wefti_work *work) {
    weft_lbfgs_report *r = &l->report;
    l->over = true;
    if (!l->coordinates || work->status == WEFT_OK)
        *r = (weft_lbfgs_report){.iteration = work->report.iteration, .evaluations = work->report.evaluations, .given = work->report.given,
                                 .repeated = work->report.repeated, .loss = work->report.loss, .gradient_norm = work->report.gradient_norm,
                                 .point_norm = work->report.point_norm, .step = work->report.step, .end = (int32_t)work->report.end};
    l->now = work->point & 1;
    if (work->status == WEFT_OK) return WEFT_OK;
    return wefti_fail((weft_status)work->status, "weft_lbfgs_minimise: %s", work->text);
}

/* A worker's part, until the run is over. */
static weft_status serve_run(lbfgs *l) {
    uint64_t   heard_ns = wefti_host_now(l->server->host);
    wefti_work work = ask_for(l, WORK_ASK);
    for (;;) {
        WEFTI_TRY(wefti_work_ask(l->server, &work));
        if (work.kind == WORK_OVER) return take_end(l, &work);
        uint64_t now_ns = wefti_host_now(l->server->host);
        if (work.kind != WORK_NOTHING || work.open) heard_ns = now_ns;
        if (now_ns - heard_ns > l->timeout_ns)
            return wefti_fail(WEFT_E_TIMEOUT, "weft_lbfgs_minimise: rank 0, which coordinates, has begun nothing for %.3g s", (double)l->timeout_ns / 1e9);
        if (work.kind == WORK_UNIT) compute(l, &work);
        else work = ask_for(l, WORK_ASK);
    }
}

/* The coordinator's: until the evaluation that `work` begins, or waits for, is complete. */
static weft_status await(lbfgs *l, wefti_work work, wefti_work *complete_out) {
    for (;;) {
        WEFTI_TRY(wefti_work_ask(l->server, &work));
        if (work.kind == WORK_OVER) return take_end(l, &work);
        if (work.kind == WORK_COMPLETE) {
            *complete_out = work;
            return WEFT_OK;
        }
        if (work.kind == WORK_UNIT) compute(l, &work);
        else work = ask_for(l, WORK_ASK);
    }
}

/* --- objective --- */

/* The sum over units at a point: what is to be said before must have been. The report's loss and norms are those of that point then; *slope_out:
 * its gradient times the direction. */
static weft_status evaluate(lbfgs *l, int32_t which, weft_lbfgs_report *report, double *slope_out) {
    const weft_lbfgs_problem *p = l->problem;
    wefti_work                complete;
    int32_t                   x = POINT + which, g = GRADIENT + which;
    l->evaluation = l->evaluation ? l->evaluation + 1 : l->run << 32 | 1; /* tables remember those of earlier runs */
    l->commands[l->count++] = (wefti_vector_frame){.op = WEFTI_VECTOR_GATHER, .x = l->evaluation, .y = id_of(l, g), .number = (uint64_t)p->units};
    WEFTI_TRY(run_commands(l));
    l->trying = (uint8_t)which;
    WEFTI_TRY(await(l, ask_for(l, WORK_ASK), &complete));
    if (p->l2 != 0) say(l, WEFT_VECTOR_AXPY, x, g, p->l2);
    int32_t xx = say_dot(l, x, x), gg = say_dot(l, g, g), gd = slope_out ? say_dot(l, g, DIRECTION) : 0;
    WEFTI_TRY(run_commands(l));
    l->report.evaluations++;
    l->report.given = (int64_t)complete.given;
    l->report.repeated = (int64_t)complete.repeated;
    report->loss = complete.loss + 0.5 * p->l2 * l->results[xx];
    report->point_norm = sqrt(l->results[xx]);
    report->gradient_norm = sqrt(l->results[gg]);
    if (slope_out) *slope_out = l->results[gd];
    return WEFT_OK;
}

static weft_status probe(void *context, double t, double *value_out, double *slope_out) {
    lbfgs *l = context;
    say(l, WEFT_VECTOR_COPY, POINT + here(l), POINT + there(l), 0);
    say(l, WEFT_VECTOR_AXPY, DIRECTION, POINT + there(l), t);
    WEFTI_TRY(evaluate(l, there(l), &l->trial, slope_out));
    *value_out = l->trial.loss;
    return WEFT_OK;
}

/* direction = -H*gradient, and its slope. */
static weft_status find_direction(lbfgs *l, double *slope_out) {
    const int32_t d = DIRECTION;
    say(l, WEFT_VECTOR_COPY, GRADIENT + here(l), d, 0);
    say(l, WEFT_VECTOR_SCALE, d, d, -1);
    for (int32_t k = 1; k <= l->used; k++) {
        int32_t i = l->next - k, at = (i % l->options.history + l->options.history) % l->options.history, sd = say_dot(l, pair_s(l, i), d);
        WEFTI_TRY(run_commands(l));
        l->alpha[at] = l->rho[at] * l->results[sd];
        say(l, WEFT_VECTOR_AXPY, pair_y(l, i), d, -l->alpha[at]);
    }
    if (l->used) say(l, WEFT_VECTOR_SCALE, d, d, l->scale);
    for (int32_t k = l->used; k >= 1; k--) {
        int32_t i = l->next - k, at = (i % l->options.history + l->options.history) % l->options.history, yd = say_dot(l, pair_y(l, i), d);
        WEFTI_TRY(run_commands(l));
        say(l, WEFT_VECTOR_AXPY, pair_s(l, i), d, l->alpha[at] - l->rho[at] * l->results[yd]);
    }
    int32_t gd = say_dot(l, GRADIENT + here(l), d);
    WEFTI_TRY(run_commands(l));
    *slope_out = l->results[gd];
    return WEFT_OK;
}

/* Takes the step from the point to the trial into the history, where it has positive curvature. */
static weft_status remember(lbfgs *l) {
    int32_t s = pair_s(l, l->next), y = pair_y(l, l->next);
    say(l, WEFT_VECTOR_COPY, POINT + there(l), s, 0);
    say(l, WEFT_VECTOR_AXPY, POINT + here(l), s, -1);
    say(l, WEFT_VECTOR_COPY, GRADIENT + there(l), y, 0);
    say(l, WEFT_VECTOR_AXPY, GRADIENT + here(l), y, -1);
    int32_t sy = say_dot(l, s, y), yy = say_dot(l, y, y);
    WEFTI_TRY(run_commands(l));
    if (!(l->results[sy] > 1e-16 * l->results[yy])) return WEFT_OK;
    l->rho[l->next] = 1 / l->results[sy];
    l->scale = l->results[sy] / l->results[yy];
    l->next = (l->next + 1) % l->options.history;
    if (l->used < l->options.history) l->used++;
    return WEFT_OK;
}

/* --- iterations --- */

static weft_status iterate(lbfgs *l) {
    const weft_lbfgs_options *o = &l->options;
    weft_lbfgs_report        *r = &l->report;
    wefti_wolfe               along = {.probe = probe, .context = l, .value0 = r->loss};
    wefti_wolfe_point         found = {0, 0, 0};
    WEFTI_TRY(find_direction(l, &along.slope0));
    if (!(along.slope0 < 0) && l->used) { /* rounding has spoilt the history: start again downhill */
        l->used = 0;
        WEFTI_TRY(find_direction(l, &along.slope0));
    }
    double first = l->used ? o->rate : o->rate * fmin(1, 1 / r->gradient_norm);
    WEFTI_TRY(wefti_wolfe_search(&along, first, o->line_search, &found));
    if (!(found.value <= r->loss)) {
        r->end = WEFT_LBFGS_NO_DESCENT;
        return WEFT_OK;
    }
    WEFTI_TRY(remember(l));
    if (o->decrease > 0 && r->loss - found.value < o->decrease * fmax(1, fabs(r->loss))) r->end = WEFT_LBFGS_DECREASE;
    r->loss = l->trial.loss;
    r->gradient_norm = l->trial.gradient_norm;
    r->point_norm = l->trial.point_norm;
    r->step = found.t;
    r->iteration++;
    l->now ^= 1;
    return WEFT_OK;
}

static weft_status tell(lbfgs *l) {
    weft_lbfgs_report report = l->report;
    if (!l->options.progress) return WEFT_OK;
    report.point = l->tables[POINT + here(l)];
    (void)wefti_fail(WEFT_OK, "%s", "");
    weft_status status = l->options.progress(l->options.progress_context, &report);
    if (status == WEFT_END) l->report.end = WEFT_LBFGS_STOPPED;
    if (status == WEFT_OK || status == WEFT_END) return WEFT_OK;
    return *weft_error_message() ? status : wefti_fail(status, "weft_lbfgs_minimise: .progress: %s", weft_status_text(status));
}

static weft_status minimise(lbfgs *l) {
    const weft_lbfgs_options *o = &l->options;
    weft_lbfgs_report        *r = &l->report;
    wefti_work                begun;
    WEFTI_TRY(await(l, ask_for(l, WORK_ASK), &begun));
    say(l, WEFT_VECTOR_COPY, DIRECTION, POINT + here(l), 0);
    WEFTI_TRY(evaluate(l, here(l), r, NULL));
    if (!isfinite(r->loss) || !isfinite(r->gradient_norm))
        return wefti_fail(WEFT_E_NAN, "weft_lbfgs_minimise: at the start the loss is %g and the gradient's norm %g", r->loss, r->gradient_norm);
    for (;;) {
        if (r->gradient_norm == 0 || r->gradient_norm <= o->gradient * fmax(1, r->point_norm)) r->end = WEFT_LBFGS_GRADIENT;
        WEFTI_TRY(tell(l));
        if (r->end == WEFT_LBFGS_RUNNING && r->iteration >= o->iterations) r->end = WEFT_LBFGS_ITERATIONS;
        if (r->end != WEFT_LBFGS_RUNNING) return WEFT_OK;
        WEFTI_TRY(iterate(l));
        if (r->end == WEFT_LBFGS_NO_DESCENT) return WEFT_OK;
    }
}

/* Ends the run for everybody, well or not. */
static weft_status coordinate(lbfgs *l) {
    weft_status status = minimise(l);
    if (l->over) return status; /* they know */
    const weft_lbfgs_report *r = &l->report;
    char       message[WEFTI_MESSAGE_BYTES];
    wefti_work end = ask_for(l, WORK_END);
    snprintf(message, sizeof message, "%s", weft_error_message());
    end.status = (int32_t)status;
    end.point = l->now;
    end.report.iteration = r->iteration, end.report.evaluations = r->evaluations, end.report.given = r->given, end.report.repeated = r->repeated;
    end.report.end = r->end, end.report.loss = r->loss, end.report.gradient_norm = r->gradient_norm, end.report.point_norm = r->point_norm;
    end.report.step = r->step;
    const char *prefix = "weft_lbfgs_minimise: ";
    snprintf(end.text, sizeof end.text, "%.*s", WORK_TEXT_BYTES - 1, strncmp(message, prefix, strlen(prefix)) ? message : message + strlen(prefix));
    weft_status told = wefti_work_ask(l->server, &end);
    if (status != WEFT_OK) return wefti_fail(status, "%s", message);
    return told;
}

/* --- opening --- */

static weft_status check(weft_server *server, const weft_lbfgs_problem *p, const weft_lbfgs_options *o) {
    if (!server || !p) return wefti_fail(WEFT_E_INVALID, "weft_lbfgs_minimise: the %s is NULL", server ? "problem" : "server");
    if (!server->works) return wefti_fail(WEFT_E_STATE, "weft_lbfgs_minimise: rank %d only serves; it calls weft_server_serve", (int)server->rank);
    if (p->parameters < 1 || p->units < 1 || !p->evaluate)
        return wefti_fail(WEFT_E_INVALID, "weft_lbfgs_minimise: %lld parameters, %lld units, evaluate at %s: all three are needed", (long long)p->parameters,
                          (long long)p->units, p->evaluate ? "an address" : "NULL");
    if (!(p->l2 >= 0) || !isfinite(p->l2)) return wefti_fail(WEFT_E_INVALID, "weft_lbfgs_minimise: l2 is %g; it is finite and not negative", p->l2);
    if (o->history < 0 || o->history > HISTORY_MOST || o->line_search < 0 || o->iterations < 0 || o->timeout_ns < 0)
        return wefti_fail(WEFT_E_INVALID, "weft_lbfgs_minimise: history %d (to %d), line_search %d, iterations %lld, timeout_ns %lld: none may be negative",
                          (int)o->history, HISTORY_MOST, (int)o->line_search, (long long)o->iterations, (long long)o->timeout_ns);
    if (!isfinite(o->gradient) || !isfinite(o->decrease) || !(o->rate >= 0) || !isfinite(o->rate))
        return wefti_fail(WEFT_E_INVALID, "weft_lbfgs_minimise: gradient %g, decrease %g, rate %g: they are finite, and the rate is not negative",
                          o->gradient, o->decrease, o->rate);
    if (o->dedicated && server->workers < 2)
        return wefti_fail(WEFT_E_INVALID, "weft_lbfgs_minimise: the coordinator is to be dedicated, but there is no other worker");
    if (o->name && (!*o->name || strlen(o->name) > NAME_MOST))
        return wefti_fail(WEFT_E_INVALID, "weft_lbfgs_minimise: the name '%.60s' has %zu bytes; it has 1 to %d", o->name, strlen(o->name), NAME_MOST);
    return WEFT_OK;
}

static void fill_defaults(lbfgs *l) {
    weft_lbfgs_options *o = &l->options;
    if (!o->name) o->name = "lbfgs";
    if (!o->history) o->history = HISTORY;
    if (!o->line_search) o->line_search = TRIES;
    if (!o->iterations) o->iterations = ITERATIONS;
    if (o->gradient == 0) o->gradient = 1e-5;
    if (o->rate == 0) o->rate = 1;
    l->timeout_ns = o->timeout_ns ? (uint64_t)o->timeout_ns : l->server->timeout_ns;
    l->coordinates = l->server->rank == 0;
    l->computes = !o->dedicated || !l->coordinates;
    l->table_count = PAIRS + 2 * o->history;
}

static weft_status open_tables(lbfgs *l) {
    static const char *const names[PAIRS] = {"x0", "x1", "g0", "g1", "d"};
    for (int32_t i = 0; i < l->table_count; i++) {
        char name[WEFT_TABLE_NAME_BYTES + 1];
        if (i < PAIRS) snprintf(name, sizeof name, "%s.%s", l->options.name, names[i]);
        else snprintf(name, sizeof name, "%s.%c%d", l->options.name, (i - PAIRS) % 2 ? 'y' : 's', (int)(i - PAIRS) / 2);
        weft_table_options options = {.name = name, .rows = l->problem->parameters, .dtype = WEFT_F64, .staleness = WEFT_TABLE_ASYNCHRONOUS};
        WEFTI_TRY(weft_table_create(l->server, &options, &l->tables[i]));
    }
    return WEFT_OK;
}

static weft_status open_memory(lbfgs *l) {
    if (!wefti_mul_size((size_t)l->problem->parameters, sizeof(double), &l->bytes))
        return wefti_fail(WEFT_E_OVERFLOW, "weft_lbfgs_minimise: %lld parameters", (long long)l->problem->parameters);
    WEFTI_TRY(wefti_alloc((size_t)l->table_count * sizeof(weft_table *), "the tables of L-BFGS", &l->tables));
    WEFTI_TRY(wefti_alloc(2 * (size_t)l->options.history * sizeof *l->rho, "pairs of L-BFGS", &l->rho));
    l->alpha = l->rho + l->options.history;
    void *memory = NULL;
    if (!l->computes) return WEFT_OK;
    WEFTI_TRY(weft_server_alloc(l->server, l->bytes, &memory));
    l->point = memory;
    WEFTI_TRY(weft_server_alloc(l->server, l->bytes, &memory));
    l->gradient = memory;
    return WEFT_OK;
}

/* The start goes into the direction's table, which nobody else looks at: some worker may still be pulling the point of a run before. */
static weft_status set_start(lbfgs *l, const double *start) {
    wefti_work ready = ask_for(l, WORK_READY);
    if (l->server->rank != (l->options.dedicated ? 1 : 0)) return WEFT_OK;
    if (start) {
        memcpy(l->point, start, l->bytes);
        weft_table_call call = {.kind = WEFT_SET, .send = l->point};
        weft_request   *request = NULL;
        WEFTI_TRY(weft_table_start_call(l->tables[DIRECTION], &call, &request));
        WEFTI_TRY(weft_request_wait(request, 0));
    } else {
        say(l, WEFT_VECTOR_FILL, DIRECTION, DIRECTION, 0);
        WEFTI_TRY(run_commands(l));
    }
    l->started = true;
    return wefti_work_ask(l->server, &ready);
}

static void close_run(lbfgs *l) {
    for (int32_t i = 0; l->tables && i < l->table_count; i++) weft_table_release(l->tables[i]);
    if (l->tables) wefti_free(l->tables, (size_t)l->table_count * sizeof(weft_table *));
    if (l->rho) wefti_free(l->rho, 2 * (size_t)l->options.history * sizeof *l->rho);
    weft_server_free(l->server, l->point);
    weft_server_free(l->server, l->gradient);
    wefti_free(l, sizeof *l);
}

/* A worker that cannot take part tells the others, so that they do not wait for it. */
static void give_up(lbfgs *l, weft_status status) {
    wefti_work end = ask_for(l, WORK_END);
    char       message[WEFTI_MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", weft_error_message());
    end.status = (int32_t)status;
    snprintf(end.text, sizeof end.text, "rank %d: %.400s", (int)l->server->rank, message);
    (void)!wefti_work_ask(l->server, &end);
    (void)wefti_fail(status, "%s", message);
}

weft_status weft_lbfgs_minimise(weft_server *server, const weft_lbfgs_problem *problem, const weft_lbfgs_options *options, double *point,
                                weft_lbfgs_report *report_out) {
    static const weft_lbfgs_options defaults;
    lbfgs                          *l = NULL;
    if (!options) options = &defaults;
    WEFTI_TRY(check(server, problem, options));
    WEFTI_TRY(wefti_alloc(sizeof *l, "L-BFGS", &l));
    l->server = server;
    l->problem = problem;
    l->options = *options;
    fill_defaults(l);
    pthread_mutex_lock(&server->lock);
    l->run = ++server->runs;
    pthread_mutex_unlock(&server->lock);
    weft_status status = open_memory(l);
    if (status == WEFT_OK) status = open_tables(l);
    if (status == WEFT_OK) status = set_start(l, point);
    if (status != WEFT_OK) give_up(l, status);
    else status = l->coordinates ? coordinate(l) : serve_run(l);
    if (status == WEFT_OK && l->computes && point) {
        status = weft_table_pull(l->tables[POINT + here(l)], NULL, l->point);
        if (status == WEFT_OK) memcpy(point, l->point, l->bytes);
    }
    l->report.point = NULL;
    if (report_out) *report_out = l->report;
    close_run(l);
    return status;
}

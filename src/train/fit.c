/* The usual training loop. Rank 0 reports, logs, plots and writes; the others only compute. Times: `train_seconds` counts
 * steps and waiting for batches, and leaves out evaluation and saving, so that throughput is that of training. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/iface/collective.h"
#include "io/sink.h"
#include "train/trainer.h"
#include "weft/fit.h"
#include "weft/metrics.h"
#include "weft/plot.h"

#define KEEP_PAUSES 50 /* times as long as keeping took, until it is due again */
#define VERDICT_SECONDS 10 /* at most, between a rank that takes no part in a step any more and the news that it is lost */

typedef struct curve {
    double *x, *y;
    int64_t count, capacity;
} curve;

typedef struct fit {
    weft_trainer           *trainer;
    weft_loader            *loader;
    const weft_fit_options *options;
    weft_evaluator         *evaluator;
    weft_metrics           *metrics; /* rank 0 with a log_path */
    bool                    speaks, live;
    weft_fit_result         result;
    double                  units, wait_seconds;    /* of this run, as the next */
    int64_t                 steps;
    double                  shown;                  /* when progress was last shown */
    curve                   losses, accuracies;
    bool                    elastic;
    double                  kept_at, keep_cost;     /* when the run's state was last kept, and the least seconds that this took */
    int64_t                 keeps;
} fit;

static double seconds(void) {
    return 1e-9 * (double)wefti_host_now(wefti_host_system());
}

static const char *unit_of(const fit *f) { return f->options->unit ? f->options->unit : "samples"; }
static double      rate_of(const fit *f) { return f->result.train_seconds > 0 ? f->units / f->result.train_seconds : 0; }

static weft_status curve_add(curve *c, double x, double y) {
    if (c->count == c->capacity) {
        int64_t wider = c->capacity ? 2 * c->capacity : 1024;
        WEFTI_TRY(wefti_grow(&c->x, sizeof(double) * (size_t)c->capacity, sizeof(double) * (size_t)wider, "a curve"));
        weft_status status = wefti_grow(&c->y, sizeof(double) * (size_t)c->capacity, sizeof(double) * (size_t)wider, "a curve");
        if (status != WEFT_OK) { /* keep both halves of one size */
            weft_status shrunk = wefti_grow(&c->x, sizeof(double) * (size_t)wider, sizeof(double) * (size_t)c->capacity, "a curve");
            return shrunk == WEFT_OK ? status : shrunk;
        }
        c->capacity = wider;
    }
    c->x[c->count] = x;
    c->y[c->count++] = y;
    return WEFT_OK;
}
static void curve_release(curve *c) {
    wefti_free(c->x, sizeof(double) * (size_t)c->capacity);
    wefti_free(c->y, sizeof(double) * (size_t)c->capacity);
}

/* What fails on this rank alone (its data, its disk) would leave the others waiting: they are told which rank it was, and why. */
static weft_status alone(const fit *f, weft_status status) {
    weft_world *world = weft_trainer_world(f->trainer);
    if (status == WEFT_OK || status == WEFT_END || world->size == 1) return status;
    char message[WEFTI_MESSAGE_BYTES];
    memcpy(message, weft_error_message(), sizeof message);
    wefti_fault_raise(world->fault, WEFT_E_PEER, world->rank, message);
    return wefti_fail(status, "%s", message);
}

/* --- reporting --- */

/* "1:02:03" */
static void clock_text(double span, char *text, size_t size) {
    long s = span > 0 ? (long)(span + 0.5) : 0;
    if (s >= 3600) snprintf(text, size, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else snprintf(text, size, "%ld:%02ld", s / 60, s % 60);
}

static void show_progress(fit *f, const weft_batch *batch, const weft_report *report, bool last) {
    double now = seconds(), pause = f->live ? 0.1 : 5;
    if (!f->speaks || (now - f->shown < pause && !last)) return;
    f->shown = now;
    int64_t epochs = f->options->epochs > 0 ? f->options->epochs : 1;
    double  done = (double)batch->epoch * (double)batch->count + (double)batch->index + 1;
    double  left = (double)epochs * (double)batch->count - done;
    if (f->options->max_steps > 0) left = fmin(left, (double)(f->options->max_steps - report->step));
    char        time_left[32];
    double      per_step = f->result.train_seconds / (double)f->steps;
    const char *plain = getenv("NO_COLOR"); /* where it is set to anything */
    const bool  colour = f->live && !(plain && *plain);
    char        slow[48] = "";
    if (report->straggler >= 0)
        snprintf(slow, sizeof slow, " (%.0f %% for rank %d)", 100 * report->straggler_share, (int)report->straggler);
    clock_text(left * per_step, time_left, sizeof time_left);
    fprintf(f->options->progress, "%sepoch %lld/%lld  step %lld  loss %s%.4f%s  %.0f %s/s  waiting %.0f %%%s  left %s%s", f->live ? "\r\033[K" : "",
            (long long)batch->epoch + 1, (long long)epochs, (long long)report->step, colour ? "\033[1m" : "", report->loss,
            colour ? "\033[0m" : "", rate_of(f), unit_of(f),
            f->result.train_seconds > 0 ? 100 * f->wait_seconds / f->result.train_seconds : 0, slow, time_left, f->live ? "" : "\n");
    fflush(f->options->progress);
}

/* "epoch 3 done:" and what there is to say. */
static void show_results(fit *f, const char *title) {
    if (!f->speaks) return;
    const weft_fit_result *r = &f->result;
    fprintf(f->options->progress, "%s%s", f->live ? "\r\033[K" : "", title);
    if (!isnan(r->train_loss)) fprintf(f->options->progress, "  train loss %.4f", r->train_loss);
    if (!isnan(r->test_loss)) fprintf(f->options->progress, "  test loss %.4f", r->test_loss);
    if (!isnan(r->test_accuracy)) fprintf(f->options->progress, "  test accuracy %.2f %%", 100 * r->test_accuracy);
    if (f->steps > 0) fprintf(f->options->progress, "  %.1f s, %.0f %s/s", r->train_seconds, rate_of(f), unit_of(f));
    fprintf(f->options->progress, "\n");
    fflush(f->options->progress);
}

static weft_status log_start(fit *f) {
    if (!f->metrics) return WEFT_OK;
    weft_metrics_text(f->metrics, "event", "start");
    weft_metrics_text(f->metrics, "world", weft_world_describe(weft_trainer_world(f->trainer)));
    weft_metrics_i64(f->metrics, "ranks", weft_world_size(weft_trainer_world(f->trainer)));
    weft_metrics_i64(f->metrics, "step", weft_trainer_steps(f->trainer));
    weft_metrics_i64(f->metrics, "rows", weft_loader_rows(f->loader));
    return weft_metrics_end_line(f->metrics);
}

static weft_status log_step(fit *f, const weft_batch *batch, const weft_report *report) {
    int64_t steps = f->options->max_steps > 0 && f->options->max_steps < batch->count ? f->options->max_steps : batch->count;
    int64_t every = f->options->log_every > 0 ? f->options->log_every : steps > 200 ? steps / 200 : 1;
    if (!f->metrics || report->step % every) return WEFT_OK;
    weft_metrics_text(f->metrics, "event", "step");
    weft_metrics_i64(f->metrics, "epoch", batch->epoch);
    weft_metrics_i64(f->metrics, "step", report->step);
    weft_metrics_f64(f->metrics, "loss", report->loss);
    weft_metrics_f64(f->metrics, "rate", report->rate);
    weft_metrics_f64(f->metrics, "step_seconds", 1e-9 * (double)report->step_ns);
    weft_metrics_f64(f->metrics, "wait_seconds", 1e-9 * (double)report->wait_ns);
    if (report->straggler >= 0) {
        weft_metrics_i64(f->metrics, "straggler", report->straggler);
        weft_metrics_f64(f->metrics, "straggler_share", report->straggler_share);
    }
    if (report->gradient_norm > 0) weft_metrics_f64(f->metrics, "gradient_norm", report->gradient_norm);
    if (report->skipped) weft_metrics_bool(f->metrics, "skipped", true);
    return weft_metrics_end_line(f->metrics);
}

static weft_status log_summary(fit *f, const char *event, int64_t epoch) {
    if (!f->metrics) return WEFT_OK;
    weft_metrics_text(f->metrics, "event", event);
    weft_metrics_i64(f->metrics, "epoch", epoch);
    weft_metrics_i64(f->metrics, "step", f->result.steps);
    weft_metrics_f64(f->metrics, "train_loss", f->result.train_loss);
    weft_metrics_f64(f->metrics, "test_loss", f->result.test_loss);
    weft_metrics_f64(f->metrics, "test_accuracy", f->result.test_accuracy);
    weft_metrics_f64(f->metrics, "train_seconds", f->result.train_seconds);
    char name[64];
    snprintf(name, sizeof name, "%.40s_per_second", unit_of(f));
    weft_metrics_f64(f->metrics, name, f->steps > 0 ? rate_of(f) : NAN);
    weft_metrics_f64(f->metrics, "wait_share", f->result.wait_share);
    weft_metrics_i64(f->metrics, "ranks", weft_world_size(weft_trainer_world(f->trainer)));
    return weft_metrics_end_line(f->metrics);
}

static weft_status save_plot(fit *f) {
    if (!f->options->plot_path || weft_world_rank(weft_trainer_world(f->trainer)) != 0) return WEFT_OK;
    weft_plot_series series[2] = {{.name = "training loss", .x = f->losses.x, .y = f->losses.y, .count = f->losses.count, .smooth = 0.95},
                                  {.name = "test accuracy", .x = f->accuracies.x, .y = f->accuracies.y, .count = f->accuracies.count, .dots = true}};
    weft_plot        plot = {.title = "Training", .x_label = "step", .y_label = f->accuracies.count ? "loss, accuracy" : "loss",
                             .series = series, .series_count = f->accuracies.count ? 2 : 1};
    return weft_plot_save(&plot, f->options->plot_path);
}

/* --- evaluation and saving --- */

/* A scalar output of the evaluator. */
static weft_status fetch_scalar(const fit *f, int32_t index, double *value_out) {
    weft_plan_value value;
    union {
        float   f32;
        double  f64;
        int64_t i64;
        int32_t i32;
    } raw = {0};
    WEFTI_TRY(weft_evaluator_output(f->evaluator, index, &value));
    if (value.bytes != (int64_t)weft_dtype_bytes(value.dtype) || value.bytes > (int64_t)sizeof raw)
        return wefti_fail(WEFT_E_SHAPE, "what is measured on the test set is %s %s, not a number", weft_dtype_name(value.dtype),
                          weft_shape_text(value.shape).text);
    WEFTI_TRY(weft_evaluator_fetch(f->evaluator, index, &raw, (size_t)value.bytes));
    switch (value.dtype) {
    case WEFT_F32: *value_out = raw.f32; break;
    case WEFT_F64: *value_out = raw.f64; break;
    case WEFT_I64: *value_out = (double)raw.i64; break;
    case WEFT_I32: *value_out = raw.i32; break;
    default: *value_out = NAN; break;
    }
    return WEFT_OK;
}

static weft_status evaluate(fit *f) {
    if (!f->evaluator) return WEFT_OK;
    weft_batch  batch;
    weft_status status = WEFT_OK;
    double      loss = 0, correct = 0, rows = 0;
    WEFTI_TRY(alone(f, weft_loader_rewind(f->options->test)));
    while ((status = alone(f, weft_loader_next(f->options->test, &batch))) == WEFT_OK) {
        double  value = 0;
        int32_t index = 0;
        WEFTI_TRY(alone(f, weft_evaluator_run(f->evaluator, &batch)));
        if (f->options->test_loss) {
            WEFTI_TRY(alone(f, fetch_scalar(f, index++, &value)));
            loss += value * (double)batch.global_rows;
        }
        if (f->options->test_correct) {
            WEFTI_TRY(alone(f, fetch_scalar(f, index, &value)));
            correct += value;
        }
        rows += (double)batch.global_rows;
    }
    if (status != WEFT_END) return status;
    if (f->options->test_loss) f->result.test_loss = loss / rows;
    if (f->options->test_correct) f->result.test_accuracy = correct / rows;
    return f->options->test_correct ? alone(f, curve_add(&f->accuracies, (double)f->result.steps, f->result.test_accuracy)) : WEFT_OK;
}

static weft_status save(fit *f) {
    if (!f->options->checkpoint_path) return WEFT_OK;
    return weft_trainer_save(f->trainer, f->options->checkpoint_path, f->loader);
}

static weft_status end_epoch(fit *f, int64_t epoch) {
    char title[48];
    snprintf(title, sizeof title, "epoch %lld done:", (long long)epoch + 1);
    f->result.epochs = epoch + 1;
    WEFTI_TRY(evaluate(f));
    show_results(f, title);
    WEFTI_TRY(alone(f, log_summary(f, "epoch", epoch)));
    WEFTI_TRY(alone(f, save_plot(f)));
    return save(f);
}

/* --- the loop --- */

static weft_status take_step(fit *f, const weft_batch *batch, double begun) {
    weft_report report;
    weft_status status = weft_trainer_step(f->trainer, batch, &report);
    if (status != WEFT_OK) return status == WEFT_E_NAN ? status : alone(f, status); /* all ranks know of a NaN */
    f->result.steps = report.step;
    f->steps++;
    f->result.train_seconds += seconds() - begun;
    f->wait_seconds += 1e-9 * (double)report.wait_ns;
    f->result.wait_share = f->wait_seconds / f->result.train_seconds;
    f->units += (double)batch->global_rows * (double)(f->options->units_per_row > 0 ? f->options->units_per_row : 1);
    f->result.units_per_second = rate_of(f);
    wefti_fit_sums *sums = &f->trainer->sums;
    if (batch->index == 0) sums->epoch_loss = sums->epoch_rows = 0;
    if (!report.skipped) {
        sums->epoch_loss += report.loss * (double)batch->global_rows;
        sums->epoch_rows += (double)batch->global_rows;
    }
    f->result.train_loss = sums->epoch_rows > 0 ? sums->epoch_loss / sums->epoch_rows : NAN;
    WEFTI_TRY(alone(f, curve_add(&f->losses, (double)report.step, report.loss)));
    bool last = batch->index + 1 == batch->count;
    show_progress(f, batch, &report, last && !f->live);
    WEFTI_TRY(alone(f, log_step(f, batch, &report)));
    if (last) return end_epoch(f, batch->epoch);
    if (f->options->checkpoint_every > 0 && report.step % f->options->checkpoint_every == 0) return save(f);
    return WEFT_OK;
}

/* What the run's copies say of this rank's sums. */
static void note_sums(fit *f) {
    wefti_fit_sums *sums = &f->trainer->sums;
    sums->train_loss = f->result.train_loss;
    sums->test_loss = f->result.test_loss;
    sums->test_accuracy = f->result.test_accuracy;
}

/* Steps by a server go on without a rank, and do not tell of a newcomer: all who are there end the loop after the same one. Where none waits for another they meet
 * at the ends of epochs alone. */
static weft_status look_around(fit *f, bool ended) {
    weft_world *world = weft_trainer_world(f->trainer);
    double      begun = seconds();
    bool        any = weft_world_verdict(world) != WEFT_OK || wefti_served_lost(f->trainer) > 0;
    if (f->trainer->program.strategy.staleness != 0 && !ended) return WEFT_OK;
    WEFTI_TRY(wefti_any(f->trainer, &any));
    any = any || !wefti_served_all_are_there(f->trainer->served); /* who took no part here is known to all before the world says so */
    note_sums(f);
    while (any && weft_world_verdict(world) == WEFT_OK && seconds() - begun < VERDICT_SECONDS) nanosleep(&(struct timespec){0, 1000000}, NULL);
    return any ? weft_world_verdict(world) : WEFT_OK;
}

/* Keeps the run's state where that is due: after what ends an epoch, so that a fault in there brings the epoch's last step again. */
static weft_status keep(fit *f, bool first, bool ended) {
    double  begun = seconds();
    int64_t every = f->options->keep_every;
    if (f->elastic && f->trainer->served) return first ? wefti_served_renews(f->trainer) : look_around(f, ended);
    if (!f->elastic || (first && weft_trainer_kept(f->trainer) == weft_trainer_steps(f->trainer))) return WEFT_OK;
    if (!first && (every > 0 ? weft_trainer_steps(f->trainer) % every != 0 : begun - f->kept_at < KEEP_PAUSES * f->keep_cost)) return WEFT_OK;
    note_sums(f);
    WEFTI_TRY(alone(f, weft_trainer_keep(f->trainer, f->loader)));
    f->kept_at = seconds();
    double cost = f->kept_at - begun;
    if (!first) f->result.train_seconds += cost;
    if (++f->keeps > 2) f->keep_cost = f->keep_cost > 0 ? fmin(f->keep_cost, cost) : cost; /* the first two come to fresh memory */
    return WEFT_OK;
}

static weft_status loop(fit *f) {
    weft_batch batch;
    bool       epoch_ended = true;
    WEFTI_TRY(keep(f, true, false));
    for (;;) {
        if (f->options->max_steps > 0 && weft_trainer_steps(f->trainer) >= f->options->max_steps) break;
        double      begun = seconds();
        /* One rank runs no operation that would tell it of a newcomer. */
        if (f->elastic && weft_world_size(weft_trainer_world(f->trainer)) == 1) WEFTI_TRY(weft_world_verdict(weft_trainer_world(f->trainer)));
        weft_status status = alone(f, weft_loader_next(f->loader, &batch));
        if (status == WEFT_END) break;
        WEFTI_TRY(status);
        WEFTI_TRY(take_step(f, &batch, begun));
        epoch_ended = batch.index + 1 == batch.count;
        WEFTI_TRY(keep(f, false, epoch_ended));
    }
    if (!epoch_ended) WEFTI_TRY(end_epoch(f, batch.epoch)); /* stopped by max_steps */
    if (f->steps == 0) { /* a finished run that was resumed: how good it is can still be said */
        WEFTI_TRY(evaluate(f));
        show_results(f, "nothing left to train:");
    }
    return alone(f, log_summary(f, "end", f->result.epochs > 0 ? f->result.epochs - 1 : 0));
}

/* What the log of a resumed run says of the steps that count; those after the checkpoint are done again. */
typedef struct history {
    curve *to;
    double last_step;
} history;

static weft_status take_point(void *context, double step, double value) {
    history *h = context;
    return step <= h->last_step ? curve_add(h->to, step, value) : WEFT_OK;
}

static weft_status read_history(fit *f) {
    const char *path = f->options->log_path;
    history     losses = {&f->losses, (double)f->result.steps}, accuracies = {&f->accuracies, (double)f->result.steps};
    weft_status status = weft_metrics_read(path, "step", "step", "loss", take_point, &losses);
    if (status == WEFT_OK) status = weft_metrics_read(path, "epoch", "step", "test_accuracy", take_point, &accuracies);
    /* A plot that begins later is no reason not to go on. */
    return status == WEFT_E_NOT_FOUND || status == WEFT_E_CORRUPT ? WEFT_OK : status;
}

/* Paths that cannot be written are found now, not after an epoch. */
static weft_status try_paths(fit *f) {
    const weft_fit_options *o = f->options;
    if (o->checkpoint_path && weft_world_rank(weft_trainer_world(f->trainer)) == 0) {
        wefti_sink *sink = NULL;
        WEFTI_TRY(wefti_sink_create(o->checkpoint_path, &sink));
        wefti_sink_release(sink); /* what is at the path stays */
    }
    return save_plot(f);
}

/* The files of rank 0, which may be another one than before. */
static weft_status open_log(fit *f, bool append) {
    const weft_fit_options *o = f->options;
    bool                    first = weft_world_rank(weft_trainer_world(f->trainer)) == 0;
    if (first && o->log_path && o->plot_path && append && f->losses.count == 0) WEFTI_TRY(read_history(f));
    if (first && o->log_path && !f->metrics) WEFTI_TRY(weft_metrics_open(o->log_path, append, &f->metrics));
    f->speaks = first && o->progress;
    f->live = f->speaks && isatty(fileno(o->progress));
    return WEFT_OK;
}

/* What was found before the step that is gone on from. */
static void remember(fit *f) {
    const wefti_fit_sums *sums = &f->trainer->sums;
    f->result.train_loss = sums->train_loss;
    f->result.test_loss = sums->test_loss;
    f->result.test_accuracy = sums->test_accuracy;
}

/* This rank's rows, by the strategy. */
static weft_status take_share(fit *f, weft_loader *loader) {
    return loader ? weft_loader_share(loader, wefti_trainer_data_rank(f->trainer), wefti_trainer_data_ranks(f->trainer)) : WEFT_OK;
}

static weft_status open_evaluator(fit *f) {
    const weft_fit_options *o = f->options;
    weft_tensor            *outputs[2];
    int32_t                 n = 0;
    if (f->evaluator || !o->test) return WEFT_OK;
    if (o->test_loss) outputs[n++] = o->test_loss;
    if (o->test_correct) outputs[n++] = o->test_correct;
    return n ? weft_evaluator_create(f->trainer, outputs, n, &f->evaluator) : WEFT_OK;
}

static weft_status open_files(fit *f) {
    const weft_fit_options *o = f->options;
    if (o->resume && !o->checkpoint_path) return wefti_fail(WEFT_E_INVALID, "weft_fit: resume needs checkpoint_path");
    if (o->keep_every < 0 || o->least < 0)
        return wefti_fail(WEFT_E_INVALID, "weft_fit: keep_every %lld, least %d: neither may be negative", (long long)o->keep_every, (int)o->least);
    WEFTI_TRY(take_share(f, f->loader));
    WEFTI_TRY(take_share(f, o->test));
    bool late = weft_world_is_replacement(weft_trainer_world(f->trainer)); /* it has the run's state from the others */
    if (o->resume && !late) {
        weft_status status = weft_trainer_load(f->trainer, o->checkpoint_path, f->loader);
        if (status != WEFT_OK && status != WEFT_E_NOT_FOUND) return status; /* no file yet: a first run */
    }
    weft_loader_state place;
    weft_loader_save(f->loader, &place);
    f->result.steps = weft_trainer_steps(f->trainer);
    f->result.epochs = place.epoch;
    if (late) remember(f);
    WEFTI_TRY(open_log(f, late || (o->resume && f->result.steps > 0)));
    WEFTI_TRY(open_evaluator(f));
    WEFTI_TRY(try_paths(f));
    return late ? WEFT_OK : log_start(f);
}

/* --- going on after a fault --- */

/* Whether this rank may go on: somebody else was lost, or did not come in time, whomever the one who waited took for it. */
static bool may_go_on(const fit *f) {
    const weft_world *world = weft_trainer_world(f->trainer);
    weft_status       verdict = f->elastic ? wefti_fault_status(world->fault) : WEFT_OK;
    return verdict == WEFT_E_TIMEOUT || (verdict != WEFT_OK && wefti_fault_rank(world->fault) != world->rank);
}

static int32_t least_of(const fit *f) {
    const char *text = f->options->least > 0 ? NULL : getenv("WEFT_LEAST");
    int32_t     least = f->options->least > 0 ? f->options->least : text ? (int32_t)strtol(text, NULL, 10) : 1;
    return least > 1 ? wefti_min_i64(least, weft_world_size(weft_trainer_world(f->trainer))) : 1;
}

/* What the launcher says; 0: nothing. Where replacements come they are waited for: the run then goes on with the ranks that it had. */
static int64_t wait_of(const char *name) {
    const char *text = getenv(name);
    double      span = text ? strtod(text, NULL) : 0;
    return span > 0 && span < 1e6 ? (int64_t)(span * 1e9) : 0;
}

/* Whether ranks were lost in that world. By a server that may be known before the world has said who. */
static bool lost_ranks(const fit *f, weft_world *world, weft_status status) {
    const double begun = seconds();
    const bool   waits = f->trainer->served && (status == WEFT_E_PEER || status == WEFT_E_LINK || status == WEFT_E_TIMEOUT);
    while (waits && weft_world_verdict(world) == WEFT_OK && seconds() - begun < VERDICT_SECONDS) nanosleep(&(struct timespec){0, 1000000}, NULL);
    return wefti_fault_status(world->fault) != WEFT_OK;
}

/* Room for a world that this rank may have to leave. */
static weft_status expect_world(weft_trainer *trainer, wefti_left_world **left_out) {
    WEFTI_TRY(wefti_alloc(sizeof **left_out, "a world", left_out));
    **left_out = (wefti_left_world){.next = trainer->left_worlds};
    trainer->left_worlds = *left_out;
    return WEFT_OK;
}

/* Whoever is left moves to a world of their own; ranks that are lost on the way leave another one behind, which stays until the trainer is in one: its
 * server may have come there. */
static weft_status find_world(fit *f) {
    weft_world *lost = weft_trainer_world(f->trainer), *next = NULL;
    weft_status status = WEFT_OK;
    for (;;) {
        wefti_left_world *left = NULL;
        status = expect_world(f->trainer, &left);
        if (status == WEFT_OK) status = weft_world_shrink(lost, &(weft_shrink_options){.least = least_of(f), .patience_ns = wait_of("WEFT_PATIENCE_SECONDS"),
                                                                                       .replacement_ns = wait_of("WEFT_REPLACE_SECONDS")}, &next);
        if (status != WEFT_OK) return status;
        status = weft_trainer_renew(f->trainer, next, f->loader);
        if (status == WEFT_OK) break;
        left->world = lost = next;
        char message[WEFTI_MESSAGE_BYTES];
        memcpy(message, weft_error_message(), sizeof message);
        if (!lost_ranks(f, next, status)) return wefti_fail(status, "%s", message);
    }
    wefti_trainer_release_left(f->trainer);
    weft_world_release(f->trainer->own_world);
    f->trainer->own_world = next;
    return WEFT_OK;
}

static void forget_after(curve *c, double x) {
    while (c->count > 0 && c->x[c->count - 1] > x) c->count--;
}

/* What this rank remembers of steps that are done again. */
static void roll_back(fit *f) {
    weft_loader_state place;
    weft_loader_save(f->loader, &place);
    f->result.steps = weft_trainer_steps(f->trainer);
    f->result.epochs = place.epoch;
    remember(f);
    forget_after(&f->losses, (double)f->result.steps);
    forget_after(&f->accuracies, (double)f->result.steps);
    f->kept_at = seconds();
}

static weft_status log_renewed(fit *f, const char *fault, int64_t step, double took) {
    const weft_world *world = weft_trainer_world(f->trainer);
    if (f->speaks)
        fprintf(f->options->progress, "%s%s\n%d rank%s on from step %lld, %.2f s later\n", f->live ? "\r\033[K" : "", fault, (int)world->size,
                world->size == 1 ? " goes" : "s go", (long long)f->result.steps, took);
    if (f->speaks) fflush(f->options->progress);
    if (!f->metrics) return WEFT_OK;
    weft_metrics_text(f->metrics, "event", "fault");
    weft_metrics_i64(f->metrics, "step", step);
    weft_metrics_text(f->metrics, "message", fault);
    WEFTI_TRY(weft_metrics_end_line(f->metrics));
    weft_metrics_text(f->metrics, "event", "renewed");
    weft_metrics_i64(f->metrics, "step", f->result.steps);
    weft_metrics_i64(f->metrics, "ranks", world->size);
    weft_metrics_f64(f->metrics, "seconds", took);
    weft_metrics_text(f->metrics, "world", weft_world_describe(world));
    return weft_metrics_end_line(f->metrics);
}

static weft_status reopen(fit *f, const char *fault, int64_t step, double begun) {
    WEFTI_TRY(take_share(f, f->options->test));
    roll_back(f);
    WEFTI_TRY(open_log(f, true));
    WEFTI_TRY(open_evaluator(f)); /* the fault may have come before it was there, on this rank alone */
    return log_renewed(f, fault, step, seconds() - begun);
}

static weft_status go_on(fit *f) {
    double  begun = seconds();
    int64_t step = weft_trainer_steps(f->trainer);
    char    fault[WEFTI_MESSAGE_BYTES];
    memcpy(fault, weft_error_message(), sizeof fault);
    weft_status status = find_world(f);
    if (status != WEFT_OK)
        return wefti_fail(status, "%.300s; that came after: %.300s", weft_error_message(), fault);
    return wefti_agree(weft_trainer_world(f->trainer), reopen(f, fault, step, begun), "opening the run's files");
}

/* Where the environment alone asks for it, a run that cannot be renewed goes as it would without. */
static bool is_elastic(const fit *f) {
    const char *text = getenv("WEFT_ELASTIC");
    const weft_strategy *strategy = &f->trainer->program.strategy;
    bool renews = strategy->sync == WEFT_ALLREDUCE || (strategy->replicas && !wefti_served_in_parts(&f->trainer->program));
    return f->options->elastic || (text && strcmp(text, "1") == 0 && renews);
}

/* The log's last word about a run that failed; the error's own message must survive it. */
static void log_error(fit *f, weft_status status) {
    if (f->live) fprintf(f->options->progress, "\n");
    if (!f->metrics) return;
    char message[WEFTI_MESSAGE_BYTES];
    memcpy(message, weft_error_message(), sizeof message);
    weft_metrics_text(f->metrics, "event", "error");
    weft_metrics_text(f->metrics, "status", weft_status_name(status));
    weft_metrics_text(f->metrics, "message", message);
    if (weft_metrics_end_line(f->metrics) != WEFT_OK) wefti_log(WEFT_LOG_WARNING, "%s", weft_error_message());
    wefti_fail(status, "%s", message);
}

weft_status weft_fit(weft_trainer *trainer, weft_loader *loader, const weft_fit_options *options, weft_fit_result *result_out) {
    static const weft_fit_options defaults;
    if (!trainer || !loader) return wefti_fail(WEFT_E_INVALID, "weft_fit: the %s is NULL", trainer ? "loader" : "trainer");
    fit f = {.trainer = trainer, .loader = loader, .options = options ? options : &defaults,
             .result = {.train_loss = NAN, .test_loss = NAN, .test_accuracy = NAN}};
    f.elastic = is_elastic(&f);
    /* What one rank cannot open ends all of them here, not in the middle of a step. */
    weft_status status = weft_world_is_replacement(weft_trainer_world(trainer)) && f.elastic
                             ? weft_trainer_renew(trainer, weft_trainer_world(trainer), loader) : WEFT_OK;
    if (status == WEFT_OK) status = wefti_agree(weft_trainer_world(trainer), open_files(&f), "opening the run's files");
    if (status == WEFT_OK) status = loop(&f);
    while (status != WEFT_OK && may_go_on(&f)) {
        const weft_world *lost = weft_trainer_world(trainer);
        if ((status = go_on(&f)) == WEFT_OK) status = loop(&f);
        else if (weft_trainer_world(trainer) == lost) break;
    }
    if (status != WEFT_OK) log_error(&f, status);
    if (result_out) *result_out = f.result;
    weft_evaluator_release(f.evaluator);
    weft_metrics_release(f.metrics);
    curve_release(&f.losses);
    curve_release(&f.accuracies);
    return status;
}

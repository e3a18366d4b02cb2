/* L-BFGS (Liu & Nocedal 1989) with a strong Wolfe line search (core/rules/wolfe.h; Nocedal & Wright 2006, algorithms 3.5, 3.6 and 7.4).
 *
 * The plan gives loss and gradient, the host keeps the vectors, in f64 and on every rank alike: the gradients that come out of
 * an allreduce are the same bits everywhere, so all ranks take the same decisions without a message of their own.
 *
 * Memory: (2*history + 5) vectors of f64, all taken at the start. A step costs one evaluation at the least; what the line search evaluated at the point it
 * accepted is the next step's start, if that has the same batch (it is evaluated again otherwise, for batches differ). */
#include <math.h>
#include <string.h>

#include "core/rules/wolfe.h"
#include "train/trainer.h"

typedef struct wefti_lbfgs {
    int64_t  n;         /* elements of all parameters together */
    int32_t  history, used, next; /* pairs kept, in use, slot of the next */
    double  *memory;    /* one block: s[history][n], y[history][n], then the five below */
    double  *point, *gradient, *direction, *trial, *trial_gradient; /* [n] */
    double  *rho, *alpha; /* [history] */
    int64_t  bytes;
    void    *copy;        /* room for the largest parameter on its way to or from its variable */
    size_t   copy_bytes;
} lbfgs;

static double dot(int64_t n, const double *a, const double *b) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}
static void axpy(int64_t n, double scale, const double *x, double *y) {
    for (int64_t i = 0; i < n; i++) y[i] += scale * x[i];
}
static double *pair_s(const lbfgs *l, int32_t i) { return l->memory + (int64_t)i * l->n; }
static double *pair_y(const lbfgs *l, int32_t i) { return l->memory + (int64_t)(l->history + i) * l->n; }

weft_status wefti_lbfgs_create(weft_trainer *trainer, struct wefti_lbfgs **lbfgs_out) {
    lbfgs *l = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *l, "L-BFGS", &l));
    *lbfgs_out = l;
    l->history = trainer->program.solver.history > 0 ? trainer->program.solver.history : 10;
    for (int32_t i = 0; i < trainer->training.n; i++) {
        const weft_tensor *p = trainer->training.parameters[i];
        size_t             bytes_of_p = (size_t)weft_shape_elements(p->shape) * weft_dtype_bytes(p->dtype);
        l->n += weft_shape_elements(p->shape);
        if (bytes_of_p > l->copy_bytes) l->copy_bytes = bytes_of_p;
    }
    size_t vectors = (size_t)(2 * l->history + 5), bytes = 0;
    if (!wefti_mul_size(vectors, (size_t)l->n * sizeof(double), &bytes) || !wefti_add_size(bytes, sizeof(double) * 2 * (size_t)l->history, &bytes))
        return wefti_fail(WEFT_E_OVERFLOW, "L-BFGS: %zu vectors of %lld elements overflow", vectors, (long long)l->n);
    WEFTI_TRY(wefti_alloc(bytes, "the vectors of L-BFGS", &l->memory));
    l->bytes = (int64_t)bytes;
    WEFTI_TRY(wefti_alloc(l->copy_bytes, "a parameter's copy", &l->copy));
    l->point = pair_y(l, l->history);
    l->gradient = l->point + l->n;
    l->direction = l->gradient + l->n;
    l->trial = l->direction + l->n;
    l->trial_gradient = l->trial + l->n;
    l->rho = l->trial_gradient + l->n;
    l->alpha = l->rho + l->history;
    return WEFT_OK;
}

void wefti_lbfgs_release(struct wefti_lbfgs *l) {
    if (!l) return;
    wefti_free(l->memory, (size_t)l->bytes);
    wefti_free(l->copy, l->copy_bytes);
    wefti_free(l, sizeof *l);
}

wefti_lbfgs_state wefti_lbfgs_state_of(struct wefti_lbfgs *l) {
    /* the pairs, and rho, which follows from them but not to the last bit */
    return (wefti_lbfgs_state){l->memory, l->bytes / (int64_t)sizeof(double), &l->used, &l->next, l->history};
}

/* --- between vectors and variables --- */

/* Element i of host memory of f32 or f64, either way. */
static void widen(weft_dtype dtype, const void *from, int64_t count, double *to) {
    for (int64_t i = 0; i < count; i++) to[i] = dtype == WEFT_F64 ? ((const double *)from)[i] : (double)((const float *)from)[i];
}
static void narrow(weft_dtype dtype, const double *from, int64_t count, void *to) {
    for (int64_t i = 0; i < count; i++)
        if (dtype == WEFT_F64) ((double *)to)[i] = from[i];
        else ((float *)to)[i] = (float)from[i];
}

/* Copies parameters into `point`, or `point` into parameters. */
static weft_status move_parameters(weft_trainer *trainer, double *point, bool write) {
    void       *buffer = trainer->lbfgs->copy;
    weft_status status = WEFT_OK;
    int64_t     at = 0;
    for (int32_t i = 0; i < trainer->training.n && status == WEFT_OK; i++) {
        const weft_tensor *p = trainer->training.parameters[i];
        int64_t            count = weft_shape_elements(p->shape);
        if (write) {
            narrow(p->dtype, point + at, count, buffer);
            status = weft_variables_set(trainer->variables, p->node->name, p->dtype, p->shape, buffer);
        } else {
            status = weft_variables_get(trainer->variables, p->node->name, buffer, (size_t)count * weft_dtype_bytes(p->dtype));
            if (status == WEFT_OK) widen(p->dtype, buffer, count, point + at);
        }
        at += count;
    }
    return status;
}

/* Adds the L2 part of Omega to value and gradient. */
static double add_regulariser(const weft_trainer *trainer, const double *point, double *gradient) {
    double  weight = trainer->program.regulariser.l2, sum = 0;
    int64_t at = 0;
    for (int32_t i = 0; i < trainer->training.n; i++) {
        const weft_tensor *p = trainer->training.parameters[i];
        int64_t            count = weft_shape_elements(p->shape);
        if (weight > 0 && !p->node->leaf->unregularised) {
            sum += 0.5 * weight * dot(count, point + at, point + at);
            axpy(count, weight, point + at, gradient + at);
        }
        at += count;
    }
    return sum;
}

typedef struct search {
    weft_trainer     *trainer;
    const weft_batch *batch;
    weft_report      *report;
    double            slope0, value0; /* at step length 0 */
    double            loss;           /* the latest value without Omega */
    double            own;            /* this rank's share of the latest value */
} search;

/* Objective and gradient at `point`. */
static weft_status evaluate(search *s, const double *point, double *gradient, double *value_out) {
    weft_trainer *trainer = s->trainer;
    weft_plan    *plan = NULL;
    WEFTI_TRY(move_parameters(trainer, (double *)point, true));
    WEFTI_TRY(wefti_plan_set_get(&trainer->plans, s->batch->global_rows, &plan));
    weft_plan_set_step(plan, trainer->steps); /* all evaluations of a step see the same dropout */
    double    hyper[WEFTI_HYPER_COUNT] = {[WEFTI_HYPER_SKIP] = s->report->evaluations > 0}; /* states change once a step */
    weft_feed feed = {"weft.hyper", WEFT_F64, weft_shape(WEFTI_HYPER_COUNT), hyper};
    WEFTI_TRY(wefti_plan_set_run(plan, s->batch, &feed, 1));
    s->report->wait_ns += wefti_plan_wait_ns(plan);
    s->report->evaluations++;
    static const int32_t outputs[] = {WEFTI_OUT_LOSS, WEFTI_OUT_OWN_LOSS};
    double               losses[2];
    WEFTI_TRY(wefti_plan_scalars(plan, outputs, 2, losses));
    *value_out = losses[0];
    s->own = losses[1];
    int64_t at = 0;
    for (int32_t i = 0; i < trainer->training.n; i++) {
        weft_plan_value value;
        WEFTI_TRY(weft_plan_output(plan, WEFTI_OUT_FIRST_GRADIENT + i, &value));
        int64_t     count = weft_shape_elements(value.shape);
        const void *data = value.data;
        if (!data && count) { /* not the host's memory */
            WEFTI_TRY(weft_plan_fetch(plan, WEFTI_OUT_FIRST_GRADIENT + i, trainer->lbfgs->copy, (size_t)value.bytes));
            data = trainer->lbfgs->copy;
        }
        widen(value.dtype, data, count, gradient + at);
        at += count;
    }
    s->loss = *value_out;
    *value_out += add_regulariser(trainer, point, gradient);
    return WEFT_OK;
}

/* Value and slope at step length t along the direction; the point and its gradient stay in trial, trial_gradient. */
static weft_status probe(void *context, double t, double *value_out, double *slope_out) {
    search *s = context;
    lbfgs  *l = s->trainer->lbfgs;
    memcpy(l->trial, l->point, sizeof(double) * (size_t)l->n);
    axpy(l->n, t, l->direction, l->trial);
    WEFTI_TRY(evaluate(s, l->trial, l->trial_gradient, value_out));
    *slope_out = dot(l->n, l->trial_gradient, l->direction);
    return WEFT_OK;
}

/* --- direction and step --- */

/* direction = -H*gradient by the two-loop recursion. */
static void find_direction(lbfgs *l) {
    double *q = l->direction;
    for (int64_t i = 0; i < l->n; i++) q[i] = -l->gradient[i];
    for (int32_t k = 0; k < l->used; k++) {
        int32_t i = (l->next - 1 - k + 2 * l->history) % l->history;
        l->alpha[i] = l->rho[i] * dot(l->n, pair_s(l, i), q);
        axpy(l->n, -l->alpha[i], pair_y(l, i), q);
    }
    if (l->used > 0) {
        int32_t last = (l->next - 1 + l->history) % l->history;
        double  scale = 1 / (l->rho[last] * dot(l->n, pair_y(l, last), pair_y(l, last)));
        for (int64_t i = 0; i < l->n; i++) q[i] *= scale;
    }
    for (int32_t k = l->used - 1; k >= 0; k--) {
        int32_t i = (l->next - 1 - k + 2 * l->history) % l->history;
        double  beta = l->rho[i] * dot(l->n, pair_y(l, i), q);
        axpy(l->n, l->alpha[i] - beta, pair_s(l, i), q);
    }
}

/* Takes the step from point to trial into the history, where it has positive curvature. */
static void remember(lbfgs *l) {
    double *s = pair_s(l, l->next), *y = pair_y(l, l->next);
    for (int64_t i = 0; i < l->n; i++) {
        s[i] = l->trial[i] - l->point[i];
        y[i] = l->trial_gradient[i] - l->gradient[i];
    }
    double sy = dot(l->n, s, y);
    if (!(sy > 1e-12 * dot(l->n, y, y) * 1e-4)) return;
    l->rho[l->next] = 1 / sy;
    l->next = (l->next + 1) % l->history;
    if (l->used < l->history) l->used++;
}

weft_status wefti_lbfgs_step(weft_trainer *trainer, const weft_batch *batch, weft_report *report) {
    lbfgs *l = trainer->lbfgs;
    search s = {.trainer = trainer, .batch = batch, .report = report};
    WEFTI_TRY(move_parameters(trainer, l->point, false));
    WEFTI_TRY(evaluate(&s, l->point, l->gradient, &s.value0));
    report->loss = s.loss;
    report->gradient_norm = sqrt(dot(l->n, l->gradient, l->gradient));
    if (!isfinite(s.value0) || !isfinite(report->gradient_norm)) {
        report->skipped = true;
        return trainer->program.ignore_nan ? WEFT_OK : wefti_trainer_nan(trainer, batch, s.value0, report->gradient_norm, s.own);
    }
    if (report->gradient_norm == 0) return WEFT_OK; /* a stationary point */
    find_direction(l);
    s.slope0 = dot(l->n, l->gradient, l->direction);
    if (!(s.slope0 < 0)) { /* a history that no longer fits, as after a change of data: start again downhill */
        l->used = 0;
        find_direction(l);
        s.slope0 = -report->gradient_norm * report->gradient_norm;
    }
    double  rate = trainer->program.solver.rate > 0 ? trainer->program.solver.rate : 1;
    double  first = l->used ? rate : rate * fmin(1, 1 / report->gradient_norm);
    int32_t tries = trainer->program.solver.line_search > 0 ? trainer->program.solver.line_search : 20;
    wefti_wolfe       along = {.probe = probe, .context = &s, .value0 = s.value0, .slope0 = s.slope0};
    wefti_wolfe_point found = {0, 0, 0};
    WEFTI_TRY(wefti_wolfe_search(&along, first, tries, &found));
    report->rate = found.t;
    if (!(found.value <= s.value0)) return move_parameters(trainer, l->point, true); /* no descent left in this precision */
    remember(l);
    return move_parameters(trainer, l->trial, true);
}

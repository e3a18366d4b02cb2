/* Coordinate descent: checks, and the outer loop over quadratic models of the loss.
 *
 * The squared loss is its own model. The logistic loss is minimised by Newton steps (newGLMNET: Yuan, Ho, Lin, "An improved GLMNET for l1-regularized logistic
 * regression", JMLR 2012): a model at the point, minimised as far as the point is from the minimum, and a line search along the way there. */
#include <math.h>
#include <string.h>

#include "learn/coordinate.h"
#include "weft/batch.h"

enum { HALVINGS = 40 };
static const double least_curvature = 1e-6; /* of a logistic loss, as a part of a row's weight */

/* --- checks --- */

static weft_status check_numbers(const weft_coordinate_problem *p, const weft_coordinate_options *o, const double *weights, const double *intercept) {
    const weft_columns *d = p ? p->data : NULL;
    if (!d || !p->label || !weights || !d->start || (d->columns > 0 && d->start[d->columns] > 0 && (!d->row || !d->value)))
        return wefti_fail(WEFT_E_INVALID, "weft_coordinate_minimise: %s", !p ? "the problem is NULL" : !d ? "the problem has no data" : !p->label ? "there are no labels" :
                                          !weights ? "no place for the weights" : "the data have no start, row or value");
    if (!p->no_intercept && !intercept) return wefti_fail(WEFT_E_INVALID, "weft_coordinate_minimise: no place for the intercept; set no_intercept to have none");
    if (d->rows < 1 || d->columns < 1 || d->rows > INT32_MAX || d->columns >= INT32_MAX)
        return wefti_fail(WEFT_E_INVALID, "weft_coordinate_minimise: %lld rows, %lld columns: 1 to 2^31 - 1", (long long)d->rows, (long long)d->columns);
    if (!(p->l1 >= 0 && p->l2 >= 0 && isfinite(p->l1 + p->l2)) || (unsigned)p->loss > WEFT_COORDINATE_LOGISTIC)
        return wefti_fail(WEFT_E_INVALID, "weft_coordinate_minimise: l1 %g, l2 %g (finite, not negative), loss %d (squared or logistic)", p->l1, p->l2, (int)p->loss);
    if (!(o->tolerance >= 0) || o->passes < 0 || o->block < 0 || !(o->coupling >= 0))
        return wefti_fail(WEFT_E_INVALID, "weft_coordinate_minimise: tolerance %g, passes %lld, block %d, coupling %g: none may be negative", o->tolerance,
                          (long long)o->passes, o->block, o->coupling);
    return WEFT_OK;
}

static weft_status check_data(const weft_coordinate_problem *p) {
    const weft_columns *d = p->data;
    if (d->start[0] != 0) return wefti_fail(WEFT_E_SHAPE, "weft_coordinate_minimise: start[0] is %lld, not 0", (long long)d->start[0]);
    for (int64_t j = 0; j < d->columns; j++) {
        if (d->start[j + 1] < d->start[j])
            return wefti_fail(WEFT_E_SHAPE, "weft_coordinate_minimise: column %lld starts at %lld and ends at %lld", (long long)j, (long long)d->start[j],
                              (long long)d->start[j + 1]);
        for (int64_t e = d->start[j]; e < d->start[j + 1]; e++) {
            if (d->row[e] < (e > d->start[j] ? d->row[e - 1] + 1 : 0) || d->row[e] >= d->rows)
                return wefti_fail(WEFT_E_SHAPE, "weft_coordinate_minimise: entry %lld, of column %lld, is of row %d: rows ascend within a column, up to %lld", (long long)e,
                                  (long long)j, d->row[e], (long long)d->rows - 1);
            if (!isfinite(d->value[e]))
                return wefti_fail(WEFT_E_NAN, "weft_coordinate_minimise: entry %lld, of column %lld and row %d, is %g", (long long)e, (long long)j, d->row[e], d->value[e]);
        }
    }
    for (int64_t i = 0; i < d->rows; i++)
        if (!isfinite(p->label[i]) || (p->weight && !(p->weight[i] >= 0 && isfinite(p->weight[i]))))
            return wefti_fail(WEFT_E_NAN, "weft_coordinate_minimise: row %lld has the label %g and the weight %g: labels are finite, weights not negative either",
                              (long long)i, p->label[i], p->weight ? p->weight[i] : 1);
    return WEFT_OK;
}

/* What must be the same everywhere. */
static uint64_t hash_of(const weft_coordinate_problem *p, const weft_coordinate_options *o) {
    const weft_columns *d = p->data;
    const double        numbers[] = {(double)d->rows, (double)d->columns, p->loss, p->l1, p->l2, p->no_intercept, o->tolerance, (double)o->passes, o->block, o->coupling};
    size_t              entries = (size_t)d->start[d->columns];
    uint64_t            hash = wefti_hash(wefti_hash(WEFTI_HASH_BEGIN, numbers, sizeof numbers), &o->seed, sizeof o->seed);
    hash = wefti_hash(hash, p->label, (size_t)d->rows * sizeof *p->label);
    /* Every hundredth of the entries: what differs by mistake differs in many places. */
    for (size_t e = 0; e < entries; e += 1 + entries / 100) hash = wefti_hash(wefti_hash(hash, &d->row[e], sizeof *d->row), &d->value[e], sizeof *d->value);
    return wefti_hash(hash, &entries, sizeof entries);
}

/* --- begin and end --- */

/* The one list of what a run allocates: what, how many, of which size. */
#define FOR_EACH_ARRAY(c, X)                                                                                                                       \
    X((c)->w, (c)->weights) X((c)->outer, (c)->weights) X((c)->before, (c)->weights) X((c)->second, (c)->weights) X((c)->gain, (c)->weights)           \
    X((c)->list, (c)->weights) X((c)->margin, (c)->n) X((c)->curvature, (c)->n) X((c)->slope, (c)->n) X((c)->residual, (c)->n) X((c)->change, (c)->n)   \
    X((c)->began, (c)->n)                                                                                                                           \
    X((c)->chosen, (int64_t)(c)->ranks * (c)->block) X((c)->delta, (int64_t)(c)->ranks * (c)->block) X((c)->chosen_count, (c)->ranks)                   \
    X((c)->load, (c)->ranks) X((c)->share, (c)->ranks)

static weft_status allocate(wefti_coordinate *c) {
#define ALLOCATE(array, count) WEFTI_TRY(wefti_alloc((size_t)(count) * sizeof *(array), "coordinate descent", &(array)));
    FOR_EACH_ARRAY(c, ALLOCATE)
#undef ALLOCATE
    bool sketches = c->ranks > 1 && c->options->coupling < 1;
    if (!sketches) return WEFT_OK;
    WEFTI_TRY(wefti_alloc((size_t)c->weights * WEFTI_SIGNS * sizeof *c->signs, "sketches of columns", &c->signs));
    return wefti_alloc((size_t)c->weights * WEFTI_SKETCH * sizeof *c->sketch, "sketches of columns", &c->sketch);
}

static void release(wefti_coordinate *c) {
#define RELEASE(array, count) wefti_free((array), (size_t)(count) * sizeof *(array));
    FOR_EACH_ARRAY(c, RELEASE)
#undef RELEASE
    wefti_free(c->signs, (size_t)c->weights * WEFTI_SIGNS * sizeof *c->signs);
    wefti_free(c->sketch, (size_t)c->weights * WEFTI_SKETCH * sizeof *c->sketch);
    weft_group_release(c->group);
}

/* So that a round's own entries are many for what is moved (SUM_COST of coordinate_sweep.c, times as many), but no rank runs out of weights to choose from. */
static int32_t choose_block(const wefti_coordinate *c) {
    int64_t entries = c->data->start[c->data->columns], mean = wefti_max_i64(entries / c->data->columns, 1);
    int64_t block = c->options->block ? c->options->block : wefti_min_i64(wefti_max_i64(8 * c->n / mean, 1), 256);
    int64_t room = c->options->block ? c->weights : c->weights / (4 * c->ranks);
    return (int32_t)wefti_max_i64(wefti_min_i64(block, room), 1);
}

/* Contiguous weights for each rank, of about as many entries. */
static void deal(wefti_coordinate *c) {
    int64_t all = c->data->start[c->data->columns] + c->weights, j = 0;
    for (int32_t r = 0; r < c->ranks; r++) {
        int64_t begin = j, until = all / c->ranks * (r + 1);
        while (j < c->weights && (r == c->ranks - 1 || c->data->start[wefti_min_i64(j, c->data->columns)] + j < until)) j++;
        c->share[r] = (size_t)(j - begin);
        if (r == c->rank) {
            c->first = begin;
            c->count = j - begin;
        }
    }
}

static weft_status begin(wefti_coordinate *c, weft_world *world, const double *weights, const double *intercept) {
    c->ranks = weft_world_size(world);
    c->rank = weft_world_rank(world);
    WEFTI_TRY(weft_group_create(world, NULL, &c->group));
    weft_status status = check_numbers(c->problem, c->options, weights, intercept);
    if (status == WEFT_OK) status = check_data(c->problem);
    WEFTI_TRY(wefti_learn_agree(c->group, status, "weft_coordinate_minimise"));
    WEFTI_TRY(wefti_learn_compare(c->group, hash_of(c->problem, c->options), "problems or options of weft_coordinate_minimise"));
    c->data = c->problem->data;
    c->n = c->data->rows;
    c->weights = c->data->columns + !c->problem->no_intercept;
    c->block = choose_block(c);
    c->most = c->ranks * c->block;
    weft_batch_share(c->n, c->rank, c->ranks, &c->first_row, &c->row_count);
    WEFTI_TRY(wefti_learn_agree(c->group, allocate(c), "weft_coordinate_minimise"));
    deal(c);
    memcpy(c->w, weights, (size_t)c->data->columns * sizeof *c->w);
    if (!c->problem->no_intercept) c->w[c->data->columns] = *intercept;
    WEFTI_TRY(weft_group_broadcast(c->group, c->w, (size_t)c->weights, WEFT_F64, 0));
    return wefti_coordinate_sketch(c);
}

/* --- the loss --- */

static double row_weight(const wefti_coordinate *c, int64_t i) { return (c->problem->weight ? c->problem->weight[i] : 1) / (double)c->n; }

static double loss_of(const wefti_coordinate *c, int64_t i, double margin) {
    double label = c->problem->label[i];
    if (c->problem->loss == WEFT_COORDINATE_SQUARED) return 0.5 * (margin - label) * (margin - label);
    double signed_margin = label > 0 ? margin : -margin;
    return signed_margin > 0 ? log1p(exp(-signed_margin)) : log1p(exp(signed_margin)) - signed_margin;
}

/* The objective at outer + t*(w - outer), c->change being the margins' change by w - outer. Collective. */
static weft_status objective_at(wefti_coordinate *c, double t, double *objective_out) {
    double sum = 0;
    for (int64_t i = c->first_row; i < c->first_row + c->row_count; i++) sum += row_weight(c, i) * loss_of(c, i, c->margin[i] + t * c->change[i]);
    for (int64_t j = c->first; j < c->first + c->count; j++) {
        double w = c->outer[j] + t * (c->w[j] - c->outer[j]);
        sum += wefti_column_l1(c, j) * fabs(w) + 0.5 * wefti_column_l2(c, j) * w * w;
    }
    WEFTI_TRY(weft_group_allreduce(c->group, &sum, &sum, 1, WEFT_F64, WEFT_COMBINE_SUM));
    *objective_out = sum;
    return WEFT_OK;
}

/* The model at the point: margins are those of `w`, which becomes `outer`. */
static weft_status make_model(wefti_coordinate *c) {
    memcpy(c->outer, c->w, (size_t)c->weights * sizeof *c->w);
    for (int64_t i = 0; i < c->n; i++) {
        double weight = row_weight(c, i), label = c->problem->label[i];
        if (c->problem->loss == WEFT_COORDINATE_SQUARED) {
            c->curvature[i] = weight;
            c->slope[i] = weight * (label - c->margin[i]);
            continue;
        }
        double p = 1 / (1 + exp(-c->margin[i]));
        c->curvature[i] = weight * fmax(p * (1 - p), least_curvature);
        c->slope[i] = weight * ((label > 0) - p);
    }
    memcpy(c->residual, c->slope, (size_t)c->n * sizeof *c->slope);
    c->report.outer++;
    return wefti_coordinate_seconds(c);
}

/* Goes from `outer` towards w, as far as that pays (Armijo's rule on the model's decrease). */
static weft_status search(wefti_coordinate *c, double from) {
    double slope = 0, t = 1, now = from;
    WEFTI_TRY(wefti_coordinate_margins(c, c->change));
    for (int64_t i = c->first_row; i < c->first_row + c->row_count; i++) slope -= c->slope[i] * c->change[i];
    for (int64_t j = c->first; j < c->first + c->count; j++)
        slope += wefti_column_l1(c, j) * (fabs(c->w[j]) - fabs(c->outer[j])) + wefti_column_l2(c, j) * c->outer[j] * (c->w[j] - c->outer[j]);
    WEFTI_TRY(weft_group_allreduce(c->group, &slope, &slope, 1, WEFT_F64, WEFT_COMBINE_SUM));
    for (int32_t times = 0; times < HALVINGS; times++, t *= 0.5) {
        WEFTI_TRY(objective_at(c, t, &now));
        if (now <= from + 0.01 * t * slope) break;
        if (times == HALVINGS - 1) t = now < from ? t : 0; /* nothing is gained any more in this precision */
    }
    for (int64_t i = 0; i < c->n; i++) c->margin[i] += t * c->change[i];
    for (int64_t j = 0; j < c->weights && t != 1; j++) c->w[j] = c->outer[j] + t * (c->w[j] - c->outer[j]);
    c->report.objective = t > 0 ? now : from;
    return WEFT_OK;
}

/* --- the loops --- */

static weft_status tell(wefti_coordinate *c) {
    const weft_coordinate_options *o = c->options;
    c->report.nonzero = 0;
    for (int64_t j = 0; j < c->data->columns; j++) c->report.nonzero += c->w[j] != 0;
    return wefti_learn_agree(c->group, o->progress ? o->progress(o->progress_context, &c->report) : WEFT_OK, "progress of weft_coordinate_minimise");
}

static int64_t passes_of(const wefti_coordinate *c) { return c->options->passes ? c->options->passes : 1000; }

/* Minimises the model until its violation is at most `until`. The first pass over it is done. */
static weft_status minimise_model(wefti_coordinate *c, double until) {
    for (double violation = INFINITY; violation > until && c->report.pass < passes_of(c);) {
        WEFTI_TRY(wefti_coordinate_sweeps(c));
        WEFTI_TRY(wefti_coordinate_refresh(c));
        WEFTI_TRY(wefti_coordinate_pass(c, &violation));
    }
    return WEFT_OK;
}

/* What violations are measured by: the largest gradient where all weights are 0, wherever the run starts. */
static weft_status measure(wefti_coordinate *c, double *scale_out) {
    double most = 0;
    for (int64_t i = 0; i < c->n; i++) {
        double label = c->problem->label[i];
        c->change[i] = row_weight(c, i) * (c->problem->loss == WEFT_COORDINATE_SQUARED ? label : label > 0 ? 0.5 : -0.5);
    }
    for (int64_t j = c->first; j < c->first + c->count; j++) most = fmax(most, fabs(wefti_column_dot(c, j, c->change)));
    return weft_group_allreduce(c->group, &most, scale_out, 1, WEFT_F64, WEFT_COMBINE_MAX);
}

static weft_status minimise(wefti_coordinate *c) {
    double tolerance = c->options->tolerance > 0 ? c->options->tolerance : 1e-6, violation, scale;
    WEFTI_TRY(measure(c, &scale));
    WEFTI_TRY(wefti_coordinate_margins(c, c->margin)); /* outer is 0 still */
    memset(c->change, 0, (size_t)c->n * sizeof *c->change);
    memcpy(c->outer, c->w, (size_t)c->weights * sizeof *c->w);
    WEFTI_TRY(objective_at(c, 0, &c->report.objective));
    for (;;) {
        WEFTI_TRY(make_model(c));
        WEFTI_TRY(wefti_coordinate_pass(c, &violation));
        c->report.violation = scale > 0 ? violation / scale : violation;
        weft_status status = tell(c);
        if (status == WEFT_END) return WEFT_OK;
        WEFTI_TRY(status);
        if (violation <= tolerance * scale || c->report.pass >= passes_of(c)) return WEFT_OK;
        bool quadratic = c->problem->loss == WEFT_COORDINATE_SQUARED;
        WEFTI_TRY(minimise_model(c, fmax(quadratic ? 0 : 0.1 * violation, 0.5 * tolerance * scale)));
        double before = c->report.objective;
        WEFTI_TRY(search(c, before));
        if (!(c->report.objective < before)) return WEFT_OK; /* as near as this precision comes */
    }
}

weft_status weft_coordinate_minimise(weft_world *world, const weft_coordinate_problem *problem, const weft_coordinate_options *options, double *weights,
                                     double *intercept, weft_coordinate_report *report_out) {
    static const weft_coordinate_options none;
    if (!world) return wefti_fail(WEFT_E_INVALID, "weft_coordinate_minimise: the world is NULL");
    wefti_coordinate c = {.problem = problem, .options = options ? options : &none};
    weft_status      status = begin(&c, world, weights, intercept);
    if (status == WEFT_OK) status = minimise(&c);
    if (status == WEFT_OK) {
        memcpy(weights, c.w, (size_t)c.data->columns * sizeof *weights);
        if (!problem->no_intercept) *intercept = c.w[c.data->columns];
    }
    if (report_out) *report_out = c.report;
    release(&c);
    return status;
}

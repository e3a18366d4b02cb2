/* Sweeps: rounds over the weights that have something to gain, until they have little left to gain.
 *
 * In a round every rank changes its weights one after another, each exactly, on residuals of its own; then all residuals learn of all changes. There are two
 * ways to that, and each round takes the one that moves less: *replay*, where ranks exchange their changes and go through the others' columns themselves, and
 * *sums*, where what became of the residuals is added up: then no rank goes through others' columns, and the work of a round is divided. Residuals of
 * different ranks may differ in their last bits; what is decided by is exchanged.
 *
 * A sweep that did not lower the objective is taken back, and half as many weights change at once from then on; where only one rank changes weights it
 * always does. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/iface/host.h"
#include "learn/coordinate.h"

enum { MOST_SWEEPS = 10, WIDER_AFTER = 16 /* good sweeps */, SUM_COST = 4 /* a row of a sum, in entries of a replay */ };

static uint64_t now_ns(void) { return wefti_host_now(wefti_host_system()); }

static int by_gain(const void *a, const void *b) {
    const wefti_candidate *x = a, *y = b;
    if (x->gain != y->gain) return x->gain > y->gain ? -1 : 1;
    return x->column < y->column ? -1 : 1;
}

/* Lists what has something to gain; gives the largest gain. */
static double make_list(wefti_coordinate *c) {
    double most = 0;
    c->listed = 0;
    for (int64_t j = 0; j < c->weights; j++) most = fmax(most, c->gain[j]);
    for (int64_t j = 0; j < c->weights; j++)
        if (c->gain[j] > 0) c->list[c->listed++] = (wefti_candidate){.gain = c->gain[j], .column = (int32_t)j};
    qsort(c->list, (size_t)c->listed, sizeof *c->list, by_gain);
    return most;
}

/* --- rounds --- */

static const int32_t *chosen_by(const wefti_coordinate *c, int32_t rank) { return c->chosen + (size_t)rank * (size_t)c->block; }

static bool sums_pay(const wefti_coordinate *c) {
    int64_t all = 0, largest = 0;
    for (int32_t r = 0; r < c->ranks; r++) all += c->load[r];
    for (int32_t r = 0; r < c->ranks; r++) largest = wefti_max_i64(largest, all - c->load[r]);
    return largest > SUM_COST * c->n;
}

/* This rank's weights. */
static void change_own(wefti_coordinate *c, double *delta) {
    const int32_t *own = chosen_by(c, c->rank);
    for (size_t i = 0; i < c->chosen_count[c->rank]; i++) {
        delta[i] = wefti_coordinate_goal(c, own[i]) - c->w[own[i]];
        if (delta[i] == 0) continue;
        wefti_column_take(c, own[i], delta[i], c->residual);
        c->w[own[i]] += delta[i]; /* the same sum as below, on the other ranks */
    }
    c->report.entries += c->load[c->rank];
}

/* What the others changed. */
static void learn_others(wefti_coordinate *c, bool sums) {
    const double *delta = c->delta;
    for (int32_t r = 0; r < c->ranks; delta += c->chosen_count[r++]) {
        const int32_t *theirs = chosen_by(c, r);
        for (size_t i = 0; i < c->chosen_count[r]; i++) {
            int32_t j = theirs[i];
            c->gain[j] = fabs(delta[i]) * sqrt(c->second[j]);
            if (r == c->rank || delta[i] == 0) continue;
            c->w[j] += delta[i];
            if (!sums) wefti_column_take(c, j, delta[i], c->residual);
        }
    }
}

/* What all changed, from what the residuals were at the round's beginning. */
static weft_status add_changes(wefti_coordinate *c) {
    for (int64_t i = 0; i < c->n; i++) c->change[i] = c->began[i] - c->residual[i];
    WEFTI_TRY(weft_group_allreduce(c->group, c->change, c->change, (size_t)c->n, WEFT_F64, WEFT_COMBINE_SUM));
    for (int64_t i = 0; i < c->n; i++) c->residual[i] = c->began[i] - c->change[i];
    return WEFT_OK;
}

static weft_status round_of(wefti_coordinate *c) {
    size_t   before = 0, total = 0;
    bool     sums = c->ranks > 1 && sums_pay(c);
    uint64_t begin = now_ns();
    for (int32_t r = 0; r < c->ranks; r++) {
        if (r < c->rank) before += c->chosen_count[r];
        total += c->chosen_count[r];
    }
    if (sums) memcpy(c->began, c->residual, (size_t)c->n * sizeof *c->began);
    change_own(c, c->delta + before);
    uint64_t computed = now_ns();
    c->report.compute_ns += computed - begin;
    if (c->ranks > 1) WEFTI_TRY(weft_group_allgatherv(c->group, c->delta + before, c->delta, c->chosen_count, WEFT_F64));
    uint64_t heard = now_ns();
    learn_others(c, sums);
    if (sums) WEFTI_TRY(add_changes(c));
    c->report.wait_ns += heard - computed;
    c->report.rounds++;
    c->report.changes += (int64_t)total;
    return WEFT_OK;
}

/* --- sweeps --- */

/* The model's objective, up to what does not change with w: half the residuals' weighted squares, and the penalties. */
static weft_status model_objective(wefti_coordinate *c, double *objective_out) {
    double sum = 0;
    for (int64_t i = c->first_row; i < c->first_row + c->row_count; i++)
        if (c->curvature[i] > 0) sum += 0.5 * c->residual[i] * c->residual[i] / c->curvature[i];
    for (int64_t j = c->first; j < c->first + c->count; j++)
        sum += wefti_column_l1(c, j) * fabs(c->w[j]) + 0.5 * wefti_column_l2(c, j) * c->w[j] * c->w[j];
    WEFTI_TRY(weft_group_allreduce(c->group, &sum, &sum, 1, WEFT_F64, WEFT_COMBINE_SUM));
    *objective_out = sum;
    return WEFT_OK;
}

static weft_status sweep(wefti_coordinate *c, double *objective) {
    double after;
    memcpy(c->before, c->w, (size_t)c->weights * sizeof *c->w);
    while (wefti_coordinate_choose(c)) WEFTI_TRY(round_of(c));
    c->report.sweep++;
    WEFTI_TRY(model_objective(c, &after));
    if (after <= *objective + 1e-14 * fabs(*objective) || c->most == 1 || c->ranks == 1) {
        *objective = after;
        return WEFT_OK;
    }
    c->report.taken_back++;
    c->most = c->most > 1 ? c->most / 2 : 1;
    memcpy(c->w, c->before, (size_t)c->weights * sizeof *c->w);
    WEFTI_TRY(wefti_coordinate_refresh(c));
    for (int64_t i = 0; i < c->listed; i++) c->gain[c->list[i].column] = c->list[i].gain;
    return WEFT_OK;
}

weft_status wefti_coordinate_sweeps(wefti_coordinate *c) {
    double objective, first = make_list(c), left = first;
    WEFTI_TRY(model_objective(c, &objective));
    for (int times = 0; times < MOST_SWEEPS && left > 0.1 * first; times++) {
        int64_t taken_back = c->report.taken_back;
        WEFTI_TRY(sweep(c, &objective));
        bool widens = taken_back == c->report.taken_back && c->report.sweep % WIDER_AFTER == 0 && c->most < c->ranks * c->block;
        if (widens) c->most *= 2;
        left = make_list(c);
    }
    return WEFT_OK;
}

/* The quadratic model of the loss around `outer`: what is computed by columns is dealt over ranks by entries, what is computed by rows by rows. */
#include <math.h>
#include <string.h>

#include "learn/coordinate.h"

double wefti_column_dot(const wefti_coordinate *c, int64_t j, const double *v) {
    const weft_columns *data = c->data;
    double              sum = 0;
    if (j < data->columns)
        for (int64_t e = data->start[j]; e < data->start[j + 1]; e++) sum += (double)data->value[e] * v[data->row[e]];
    else
        for (int64_t i = 0; i < c->n; i++) sum += v[i];
    return sum;
}

void wefti_column_add(const wefti_coordinate *c, int64_t j, double by, double *v) {
    const weft_columns *data = c->data;
    if (j < data->columns)
        for (int64_t e = data->start[j]; e < data->start[j + 1]; e++) v[data->row[e]] += (double)data->value[e] * by;
    else
        for (int64_t i = 0; i < c->n; i++) v[i] += by;
}

void wefti_column_take(const wefti_coordinate *c, int64_t j, double by, double *v) {
    const weft_columns *data = c->data;
    const double       *a = c->curvature;
    if (j < data->columns)
        for (int64_t e = data->start[j]; e < data->start[j + 1]; e++) v[data->row[e]] -= a[data->row[e]] * ((double)data->value[e] * by);
    else
        for (int64_t i = 0; i < c->n; i++) v[i] -= a[i] * by;
}

weft_status wefti_coordinate_margins(wefti_coordinate *c, double *change_out) {
    memset(change_out, 0, (size_t)c->n * sizeof *change_out);
    for (int64_t j = c->first; j < c->first + c->count; j++)
        if (c->w[j] != c->outer[j]) wefti_column_add(c, j, c->w[j] - c->outer[j], change_out);
    return weft_group_allreduce(c->group, change_out, change_out, (size_t)c->n, WEFT_F64, WEFT_COMBINE_SUM);
}

weft_status wefti_coordinate_refresh(wefti_coordinate *c) {
    WEFTI_TRY(wefti_coordinate_margins(c, c->change));
    for (int64_t i = 0; i < c->n; i++) c->residual[i] = c->slope[i] - c->curvature[i] * c->change[i];
    return WEFT_OK;
}

static double second_of(const wefti_coordinate *c, int64_t j) {
    const weft_columns *data = c->data;
    double              sum = 0;
    if (j == data->columns) return wefti_column_dot(c, j, c->curvature);
    for (int64_t e = data->start[j]; e < data->start[j + 1]; e++) sum += (double)data->value[e] * data->value[e] * c->curvature[data->row[e]];
    return sum + c->problem->l2;
}

weft_status wefti_coordinate_seconds(wefti_coordinate *c) {
    for (int64_t j = c->first; j < c->first + c->count; j++) c->second[j] = second_of(c, j);
    return weft_group_allgatherv(c->group, c->second + c->first, c->second, c->share, WEFT_F64);
}

static double shrink(double x, double by) { return x > by ? x - by : x < -by ? x + by : 0; }

/* From the gradient of the smooth part. */
static double goal_from(const wefti_coordinate *c, int64_t j, double gradient) {
    double second = c->second[j];
    if (!(second > 0)) return c->w[j]; /* a column of zeros */
    return shrink(second * c->w[j] - gradient, wefti_column_l1(c, j)) / second;
}

static double gradient_of(const wefti_coordinate *c, int64_t j) {
    return wefti_column_l2(c, j) * c->w[j] - wefti_column_dot(c, j, c->residual);
}

double wefti_coordinate_goal(const wefti_coordinate *c, int64_t j) { return goal_from(c, j, gradient_of(c, j)); }

weft_status wefti_coordinate_pass(wefti_coordinate *c, double *violation_out) {
    double worst = 0;
    for (int64_t j = c->first; j < c->first + c->count; j++) {
        double gradient = gradient_of(c, j), l1 = wefti_column_l1(c, j), w = c->w[j];
        double violation = w != 0 ? fabs(gradient + (w > 0 ? l1 : -l1)) : fmax(fabs(gradient) - l1, 0);
        c->gain[j] = fabs(goal_from(c, j, gradient) - w) * sqrt(c->second[j]);
        worst = fmax(worst, violation);
    }
    c->report.pass++;
    WEFTI_TRY(weft_group_allgatherv(c->group, c->gain + c->first, c->gain, c->share, WEFT_F64));
    WEFTI_TRY(weft_group_allreduce(c->group, &worst, &worst, 1, WEFT_F64, WEFT_COMBINE_MAX));
    *violation_out = worst;
    return WEFT_OK;
}

/* Coordinate descent inside: a quadratic model of the loss, which ranks minimise in rounds. */
#ifndef WEFTI_LEARN_COORDINATE_H
#define WEFTI_LEARN_COORDINATE_H

#include "learn/learn.h"
#include "weft/coordinate.h"

enum {
    WEFTI_SKETCH = 128, /* numbers a column: estimates of cosines are off by 0.09 (one standard deviation) */
    WEFTI_SIGNS = WEFTI_SKETCH / 64
};

/* A weight with what it would gain. */
typedef struct wefti_candidate {
    double  gain;
    int32_t column;
    bool    taken; /* in this sweep */
} wefti_candidate;

/* Weights are numbered as columns; the intercept, where there is one, is the last, of a column of ones that is stored nowhere. */
typedef struct wefti_coordinate {
    weft_group                    *group;
    int32_t                        ranks, rank;
    const weft_coordinate_problem *problem;
    const weft_coordinate_options *options;
    const weft_columns            *data;
    int64_t  n, weights;   /* rows; columns and the intercept */
    int64_t  first_row, row_count; /* this rank's share of what is done by rows */
    size_t  *share;        /* [ranks] how many weights of passes are a rank's, */
    int64_t  first, count; /* and this one's */
    double  *w;            /* [weights] */
    double  *outer, *before; /* [weights] where the quadratic model was made; at the beginning of the sweep */
    double  *margin;       /* [n] at `outer` */
    double  *curvature;    /* [n] a: of the model */
    double  *slope, *residual; /* [n] minus the model's gradient by margins, at `outer` and at w: slope - a*(X(w - outer)) */
    double  *change;       /* [n] of margins, in a round; and wherever else one is wanted */
    double  *began;        /* [n] residuals at the beginning of a round */
    double  *second;       /* [weights] of the model by a weight, l2 included */
    double  *gain;         /* [weights] */
    float   *sketch;       /* [weights, WEFTI_SKETCH] of length 1 or 0; NULL with one rank */
    uint64_t *signs;       /* [weights, WEFTI_SIGNS] of sketches, a bit each */
    wefti_candidate *list; /* [weights] */
    int64_t  listed;
    int32_t  block;        /* weights of a rank in a round */
    int32_t  most;         /* of all ranks; halved where sweeps are taken back */
    int32_t *chosen;       /* [ranks, block] columns; */
    size_t  *chosen_count; /* [ranks] */
    double  *delta;        /* [ranks * block] one rank's behind the other's */
    int64_t *load;         /* [ranks] entries, */
    weft_coordinate_report report;
} wefti_coordinate;

/* The entries of a weight's column; the intercept's have no rows or values. */
static inline int64_t wefti_column_entries(const wefti_coordinate *c, int64_t j) {
    return j < c->data->columns ? c->data->start[j + 1] - c->data->start[j] : c->n;
}
static inline double wefti_column_l1(const wefti_coordinate *c, int64_t j) { return j < c->data->columns ? c->problem->l1 : 0; }
static inline double wefti_column_l2(const wefti_coordinate *c, int64_t j) { return j < c->data->columns ? c->problem->l2 : 0; }

/* Sum of x*v over the column; v[i] += x*by; v[i] -= a[i]*x*by. */
double wefti_column_dot(const wefti_coordinate *c, int64_t j, const double *v);
void   wefti_column_add(const wefti_coordinate *c, int64_t j, double by, double *v);
void   wefti_column_take(const wefti_coordinate *c, int64_t j, double by, double *v);

/* X(w - outer), on all ranks the same bits. Collective. */
WEFT_MUST_CHECK weft_status wefti_coordinate_margins(wefti_coordinate *c, double *change_out);
/* residual from the slope. Collective. */
WEFT_MUST_CHECK weft_status wefti_coordinate_refresh(wefti_coordinate *c);
/* Second derivatives by weights. Collective. */
WEFT_MUST_CHECK weft_status wefti_coordinate_seconds(wefti_coordinate *c);
/* A full pass: gains of all weights, and the largest subgradient. Collective. */
WEFT_MUST_CHECK weft_status wefti_coordinate_pass(wefti_coordinate *c, double *violation_out);
/* Where a weight would go, all others standing still. */
double wefti_coordinate_goal(const wefti_coordinate *c, int64_t j);
/* Sweeps over the weights that have something to gain by the latest pass. Collective. */
WEFT_MUST_CHECK weft_status wefti_coordinate_sweeps(wefti_coordinate *c);
/* Sketches of all columns. Collective. */
WEFT_MUST_CHECK weft_status wefti_coordinate_sketch(wefti_coordinate *c);
/* Chooses the next round's weights from the list; false where none is left. The same on all ranks. */
bool wefti_coordinate_choose(wefti_coordinate *c);

#endif

/* Reductions over a set of axes. Each output element adds up its own elements in f64 (integers in i64) in row-major
 * order of the reduced axes, and is rounded once; threads share the output elements. */
#include "core/cpu/reference/reference.h"

typedef struct reduction {
    const wefti_cpu_run *run;
    weft_shape           kept, away; /* the input's axes, divided */
    int64_t              kept_stride[WEFT_MAX_RANK], away_stride[WEFT_MAX_RANK];
    int64_t              totals, per_total, per_chunk;
} reduction;

static reduction reduction_of(const wefti_cpu_run *run, uint32_t axes) {
    const wefti_operand *x = &run->call->inputs[0];
    reduction            r = {.run = run};
    for (int32_t axis = 0; axis < x->shape.rank; axis++) {
        bool        away = axes >> axis & 1;
        weft_shape *part = away ? &r.away : &r.kept;
        (away ? r.away_stride : r.kept_stride)[part->rank] = x->stride[axis];
        part->dim[part->rank++] = x->shape.dim[axis];
    }
    r.totals = weft_shape_elements(r.kept);
    r.per_total = weft_shape_elements(r.away);
    r.per_chunk = wefti_max_i64(1, WEFTI_REFERENCE_GRAIN / wefti_max_i64(1, r.per_total));
    return r;
}

static double reduce_f64(const reduction *r, int64_t origin) {
    weft_op        op = r->run->call->op;
    wefti_walk     walk;
    double         total = 0;
    if (r->per_total) wefti_walk_start(&walk, r->away, r->away_stride, 0);
    for (int64_t i = 0; i < r->per_total; i++) {
        double x = wefti_in(r->run, 0, origin + walk.offset);
        if (op == WEFT_OP_MAX) total = i == 0 || isnan(x) || x > total ? x : total;
        else if (op == WEFT_OP_MIN) total = i == 0 || isnan(x) || x < total ? x : total;
        else total += x;
        wefti_walk_advance(&walk, 1);
    }
    double count = r->run->call->attrs->reduce.count;
    return op == WEFT_OP_MEAN ? total / (count != 0 ? count : (double)r->per_total) : total;
}

static int64_t reduce_i64(const reduction *r, int64_t origin) {
    weft_op        op = r->run->call->op;
    wefti_walk     walk;
    int64_t        total = 0;
    if (r->per_total) wefti_walk_start(&walk, r->away, r->away_stride, 0);
    for (int64_t i = 0; i < r->per_total; i++) {
        int64_t x = wefti_load_i64(r->run->inputs[0], origin + walk.offset, r->run->call->inputs[0].dtype);
        if (op == WEFT_OP_MAX) total = i == 0 || x > total ? x : total;
        else if (op == WEFT_OP_MIN) total = i == 0 || x < total ? x : total;
        else total = (int64_t)((uint64_t)total + (uint64_t)x);
        wefti_walk_advance(&walk, 1);
    }
    return total;
}

static void reduce_chunk(void *context, int64_t chunk, int32_t worker) {
    const reduction     *r = context;
    const wefti_cpu_run *run = r->run;
    weft_dtype           from = run->call->inputs[0].dtype, to = run->call->outputs[0].dtype;
    int64_t              begin = chunk * r->per_chunk, end = wefti_min_i64(begin + r->per_chunk, r->totals);
    wefti_walk           walk;
    (void)worker;
    wefti_walk_start(&walk, r->kept, r->kept_stride, begin);
    for (int64_t i = begin; i < end; i++) {
        if (weft_dtype_is_float(from) || run->call->op == WEFT_OP_MEAN)
            wefti_store_f64(run->outputs[0], i, to, reduce_f64(r, walk.offset));
        else wefti_store_i64(run->outputs[0], i, to, reduce_i64(r, walk.offset));
        wefti_walk_advance(&walk, 1);
    }
}

static weft_status run_reduce(const wefti_cpu_run *run) {
    reduction r = reduction_of(run, run->call->attrs->reduce.axes);
    wefti_cpu_for(run, wefti_cpu_chunks(r.totals, r.per_chunk), reduce_chunk, &r);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_reduce = {.name = "reference reduce", .run = run_reduce};

/* ARGMAX: the first maximum along one axis, where a NaN counts as the maximum. */
static int64_t first_maximum(const reduction *r, int64_t origin) {
    const wefti_operand *x = &r->run->call->inputs[0];
    int64_t              best = 0, step = r->away_stride[0];
    bool                 floating = weft_dtype_is_float(x->dtype);
    for (int64_t i = 1; i < r->per_total; i++) {
        int64_t here = origin + i * step, there = origin + best * step;
        if (floating) {
            double a = wefti_in(r->run, 0, here), b = wefti_in(r->run, 0, there);
            if (!isnan(b) && (isnan(a) || a > b)) best = i;
        } else if (wefti_load_i64(r->run->inputs[0], here, x->dtype) >
                   wefti_load_i64(r->run->inputs[0], there, x->dtype)) {
            best = i;
        }
    }
    return best;
}

static void argmax_chunk(void *context, int64_t chunk, int32_t worker) {
    const reduction *r = context;
    int64_t          begin = chunk * r->per_chunk, end = wefti_min_i64(begin + r->per_chunk, r->totals);
    wefti_walk       walk;
    (void)worker;
    wefti_walk_start(&walk, r->kept, r->kept_stride, begin);
    for (int64_t i = begin; i < end; i++) {
        wefti_store_i64(r->run->outputs[0], i, r->run->call->outputs[0].dtype, first_maximum(r, walk.offset));
        wefti_walk_advance(&walk, 1);
    }
}

static weft_status run_argmax(const wefti_cpu_run *run) {
    reduction r = reduction_of(run, run->call->attrs->reduce.axes);
    wefti_cpu_for(run, wefti_cpu_chunks(r.totals, r.per_chunk), argmax_chunk, &r);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_argmax = {.name = "reference argmax", .run = run_argmax};

/* EXTENT: a count of elements. */
static weft_status run_extent(const wefti_cpu_run *run) {
    const wefti_operand *x = &run->call->inputs[0];
    double               extent = 1;
    for (int32_t axis = 0; axis < x->shape.rank; axis++)
        if (run->call->attrs->reduce.axes >> axis & 1) extent *= (double)x->shape.dim[axis];
    wefti_out(run, 0, 0, run->call->attrs->reduce.count != 0 ? run->call->attrs->reduce.count : extent);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_extent = {.name = "reference extent", .run = run_extent};

/* MEAN_BACKWARD: g / count, repeated over the axes that the mean took away. */
typedef struct spread {
    const wefti_cpu_run *run;
    weft_shape           space;
    int64_t              stride[WEFT_MAX_RANK];
    double               count;
} spread;

static void spread_chunk(void *context, int64_t chunk, int32_t worker) {
    const spread *self = context;
    int64_t       begin = chunk * WEFTI_REFERENCE_GRAIN;
    int64_t       end = wefti_min_i64(begin + WEFTI_REFERENCE_GRAIN, weft_shape_elements(self->space));
    wefti_walk    walk;
    (void)worker;
    wefti_walk_start(&walk, self->space, self->stride, begin);
    for (int64_t i = begin; i < end; i++) {
        wefti_out(self->run, 0, i, wefti_in(self->run, 0, walk.offset) / self->count);
        wefti_walk_advance(&walk, 1);
    }
}

static weft_status run_mean_backward(const wefti_cpu_run *run) {
    const wefti_operand *g = &run->call->inputs[0];
    const wefti_attrs   *attrs = run->call->attrs;
    spread               self = {.run = run, .space = run->call->outputs[0].shape, .count = 1};
    bool                 kept = g->shape.rank == self.space.rank;
    for (int32_t axis = 0, own = 0; axis < self.space.rank; axis++) {
        bool away = attrs->reduce.axes >> axis & 1;
        if (away) self.count *= (double)self.space.dim[axis];
        self.stride[axis] = away ? 0 : g->stride[own];
        own += kept || !away;
    }
    if (attrs->reduce.count != 0) self.count = attrs->reduce.count;
    wefti_cpu_for(run, wefti_cpu_chunks(weft_shape_elements(self.space), WEFTI_REFERENCE_GRAIN), spread_chunk, &self);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_mean_backward = {.name = "reference mean backward", .run = run_mean_backward};

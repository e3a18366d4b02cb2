/* Moves: every output element is a copy of one input element, or a fill. Threads share the output elements. */
#include <string.h>

#include "core/cpu/reference/reference.h"
#include "core/tensor/philox.h"

static void copy_element(void *to, int64_t to_index, const void *from, int64_t from_index, size_t bytes) {
    memcpy((char *)to + to_index * (int64_t)bytes, (const char *)from + from_index * (int64_t)bytes, bytes);
}

/* A copy of elements from one strided place to another over a common space. */
typedef struct copy {
    weft_shape  space;
    int64_t     from_stride[WEFT_MAX_RANK], to_stride[WEFT_MAX_RANK];
    const void *from;
    void       *to;
    size_t      element_bytes;
} copy;

static void copy_chunk(void *context, int64_t chunk, int32_t worker) {
    const copy *self = context;
    int64_t     begin = chunk * WEFTI_REFERENCE_GRAIN;
    int64_t     count = wefti_min_i64(WEFTI_REFERENCE_GRAIN, weft_shape_elements(self->space) - begin);
    wefti_walk  from, to;
    (void)worker;
    wefti_walk_start(&from, self->space, self->from_stride, begin);
    wefti_walk_start(&to, self->space, self->to_stride, begin);
    while (count > 0) {
        int64_t run = wefti_min_i64(wefti_walk_run(&from), count);
        for (int64_t i = 0; i < run; i++)
            copy_element(self->to, to.offset + i * wefti_walk_step(&to), self->from,
                         from.offset + i * wefti_walk_step(&from), self->element_bytes);
        wefti_walk_advance(&from, run);
        wefti_walk_advance(&to, run);
        count -= run;
    }
}

static void run_copy(const wefti_cpu_run *run, copy *self) {
    int64_t elements = weft_shape_elements(self->space);
    wefti_cpu_for(run, wefti_cpu_chunks(elements, WEFTI_REFERENCE_GRAIN), copy_chunk, self);
}

void wefti_reference_pack(const wefti_cpu_run *run, const wefti_operand *operand, const void *from, void *to) {
    copy self = {.space = operand->shape, .from = from, .to = to, .element_bytes = weft_dtype_bytes(operand->dtype)};
    memcpy(self.from_stride, operand->stride, sizeof self.from_stride);
    wefti_contiguous_strides(operand->shape, self.to_stride);
    run_copy(run, &self);
}

/* RESHAPE PERMUTE SLICE EXPAND, where the planner could not make them views. */
static weft_status run_view(const wefti_cpu_run *run) {
    const wefti_operand *x = &run->call->inputs[0], *y = &run->call->outputs[0];
    const wefti_attrs   *attrs = run->call->attrs;
    copy self = {
        .space = y->shape, .from = run->inputs[0], .to = run->outputs[0], .element_bytes = weft_dtype_bytes(y->dtype)};
    wefti_contiguous_strides(y->shape, self.to_stride);
    int64_t origin = 0;
    switch (run->call->op) {
    case WEFT_OP_RESHAPE: wefti_reference_pack(run, x, run->inputs[0], run->outputs[0]); return WEFT_OK;
    case WEFT_OP_PERMUTE:
        for (int32_t axis = 0; axis < y->shape.rank; axis++) self.from_stride[axis] = x->stride[attrs->view.axes[axis]];
        break;
    case WEFT_OP_SLICE:
        for (int32_t axis = 0; axis < y->shape.rank; axis++) {
            origin += attrs->slice.start[axis] * x->stride[axis];
            self.from_stride[axis] = attrs->slice.step[axis] * x->stride[axis];
        }
        break;
    default: wefti_operand_expand(x, y->shape, self.from_stride); break; /* EXPAND */
    }
    self.from = (const char *)self.from + origin * (int64_t)self.element_bytes;
    run_copy(run, &self);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_view = {.name = "reference view", .run = run_view};

static weft_status run_concat(const wefti_cpu_run *run) {
    const wefti_operand *y = &run->call->outputs[0];
    int32_t              axis = run->call->attrs->axis.axis;
    size_t               bytes = weft_dtype_bytes(y->dtype);
    char                *to = run->outputs[0];
    copy                 self = {.element_bytes = bytes};
    wefti_contiguous_strides(y->shape, self.to_stride);
    for (int32_t i = 0; i < run->call->n_inputs; i++) {
        const wefti_operand *x = &run->call->inputs[i];
        self.space = x->shape;
        self.from = run->inputs[i];
        self.to = to;
        memcpy(self.from_stride, x->stride, sizeof self.from_stride);
        run_copy(run, &self);
        to += x->shape.dim[axis] * self.to_stride[axis] * (int64_t)bytes;
    }
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_concat = {.name = "reference concat", .run = run_concat};

/* FULL and ARANGE: flat element i is start + i*step. */
typedef struct fill {
    void      *to;
    weft_dtype dtype;
    double     start, step;
    int64_t    elements;
} fill;

static void fill_chunk(void *context, int64_t chunk, int32_t worker) {
    const fill *self = context;
    int64_t     end = wefti_min_i64((chunk + 1) * WEFTI_REFERENCE_GRAIN, self->elements);
    (void)worker;
    for (int64_t i = chunk * WEFTI_REFERENCE_GRAIN; i < end; i++)
        wefti_store_f64(self->to, i, self->dtype, self->step != 0 ? self->start + (double)i * self->step : self->start);
}

static weft_status run_fill(const wefti_cpu_run *run) {
    const wefti_attrs *attrs = run->call->attrs;
    bool               full = run->call->op == WEFT_OP_FULL;
    fill self = {.to = run->outputs[0],
                 .dtype = run->call->outputs[0].dtype,
                 .start = full ? attrs->full.value : attrs->arange.start,
                 .step = full ? 0 : attrs->arange.step,
                 .elements = wefti_operand_elements(&run->call->outputs[0])};
    wefti_cpu_for(run, wefti_cpu_chunks(self.elements, WEFTI_REFERENCE_GRAIN), fill_chunk, &self);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_fill = {.name = "reference fill", .run = run_fill};

static weft_status run_pad(const wefti_cpu_run *run) {
    const wefti_operand *x = &run->call->inputs[0], *y = &run->call->outputs[0];
    const wefti_attrs   *attrs = run->call->attrs;
    fill background = {
        .to = run->outputs[0], .dtype = y->dtype, .start = attrs->pad.value, .elements = wefti_operand_elements(y)};
    wefti_cpu_for(run, wefti_cpu_chunks(background.elements, WEFTI_REFERENCE_GRAIN), fill_chunk, &background);
    if (wefti_operand_elements(x) == 0) return WEFT_OK;
    copy    self = {.space = x->shape, .from = run->inputs[0], .element_bytes = weft_dtype_bytes(x->dtype)};
    int64_t origin = 0;
    memcpy(self.from_stride, x->stride, sizeof self.from_stride);
    wefti_contiguous_strides(y->shape, self.to_stride);
    for (int32_t axis = 0; axis < x->shape.rank; axis++) {
        origin += attrs->pad.low[axis] * self.to_stride[axis];
        self.to_stride[axis] *= attrs->pad.interior[axis] + 1;
    }
    self.to = (char *)run->outputs[0] + origin * (int64_t)self.element_bytes;
    run_copy(run, &self);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_pad = {.name = "reference pad", .run = run_pad};

/* GATHER along axis a: output coordinates are x[:a], then the index's, then x[a+1:]. */
typedef struct gather {
    const wefti_cpu_run *run;
    int64_t              outer, picks, inner; /* the output as three axes */
} gather;

static gather gather_of(const wefti_cpu_run *run) {
    const wefti_operand *x = &run->call->inputs[0];
    gather g = {.run = run, .outer = 1, .picks = wefti_operand_elements(&run->call->inputs[1]), .inner = 1};
    int32_t              axis = run->call->attrs->axis.axis;
    for (int32_t i = 0; i < x->shape.rank; i++)
        if (i != axis) *(i < axis ? &g.outer : &g.inner) *= x->shape.dim[i];
    return g;
}

static int64_t pick_of(const wefti_cpu_run *run, int64_t pick) {
    const wefti_operand *index = &run->call->inputs[1];
    return wefti_load_i64(run->inputs[1], wefti_place(index, pick), index->dtype);
}

static void gather_chunk(void *context, int64_t chunk, int32_t worker) {
    const gather        *g = context;
    const wefti_cpu_run *run = g->run;
    const wefti_operand *x = &run->call->inputs[0];
    int64_t              extent = x->shape.dim[run->call->attrs->axis.axis];
    int64_t              outer = chunk / g->picks, at = pick_of(run, chunk % g->picks);
    size_t               bytes = weft_dtype_bytes(x->dtype);
    (void)worker;
    if (at < 0 || at >= extent) {
        memset((char *)run->outputs[0] + chunk * g->inner * (int64_t)bytes, 0, (size_t)g->inner * bytes);
        return;
    }
    for (int64_t i = 0; i < g->inner; i++)
        copy_element(run->outputs[0], chunk * g->inner + i, run->inputs[0],
                     wefti_place(x, (outer * extent + at) * g->inner + i), bytes);
}

static weft_status run_gather(const wefti_cpu_run *run) {
    gather g = gather_of(run);
    wefti_cpu_for(run, g.outer * g.picks, gather_chunk, &g);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_gather = {.name = "reference gather", .run = run_gather};

/* SCATTER_ADD: a thread owns a slice of the output along the other axes and adds the picks in their order, in f64,
 * which a scratch array of the output's size holds until all are in. */
static int64_t scatter_scratch(const wefti_call *call, int32_t threads) {
    (void)threads;
    return wefti_operand_elements(&call->outputs[0]) * 8;
}

/* One element of outer x inner: every pick that lands on its column. */
static void scatter_chunk(void *context, int64_t chunk, int32_t worker) {
    const gather        *g = context;
    const wefti_cpu_run *run = g->run;
    const wefti_operand *x = &run->call->inputs[0], *u = &run->call->inputs[2];
    int64_t              extent = x->shape.dim[run->call->attrs->axis.axis];
    int64_t              outer = chunk / g->inner, inner = chunk % g->inner;
    bool                 floating = weft_dtype_is_float(x->dtype);
    double              *f = run->scratch;
    int64_t             *n = run->scratch;
    (void)worker;
    for (int64_t i = 0; i < extent; i++) {
        int64_t at = (outer * extent + i) * g->inner + inner;
        if (floating) f[at] = wefti_in(run, 0, wefti_place(x, at));
        else n[at] = wefti_load_i64(run->inputs[0], wefti_place(x, at), x->dtype);
    }
    for (int64_t pick = 0; pick < g->picks; pick++) {
        int64_t i = pick_of(run, pick);
        if (i < 0 || i >= extent) continue;
        int64_t at = (outer * extent + i) * g->inner + inner,
                from = wefti_place(u, (outer * g->picks + pick) * g->inner + inner);
        if (floating) f[at] += wefti_in(run, 2, from);
        else n[at] = (int64_t)((uint64_t)n[at] + (uint64_t)wefti_load_i64(run->inputs[2], from, u->dtype));
    }
    for (int64_t i = 0; i < extent; i++) {
        int64_t at = (outer * extent + i) * g->inner + inner;
        if (floating) wefti_out(run, 0, at, f[at]);
        else wefti_store_i64(run->outputs[0], at, x->dtype, n[at]);
    }
}

static weft_status run_scatter_add(const wefti_cpu_run *run) {
    gather g = gather_of(run);
    wefti_cpu_for(run, g.outer * g.inner, scatter_chunk, &g);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_scatter_add = {.name = "reference scatter-add", .scratch = scatter_scratch,
                                                      .run = run_scatter_add};

/* RANDOM(step): numbers by global index. */
typedef struct draw {
    const wefti_cpu_run *run;
    uint64_t             step;
} draw;

static void random_chunk(void *context, int64_t chunk, int32_t worker) {
    const draw          *self = context;
    const wefti_operand *y = &self->run->call->outputs[0];
    const wefti_attrs   *attrs = self->run->call->attrs;
    weft_shape           global = y->shape;
    int64_t              stride[WEFT_MAX_RANK], base = 0, begin = chunk * WEFTI_REFERENCE_GRAIN;
    int64_t              end = wefti_min_i64(begin + WEFTI_REFERENCE_GRAIN, wefti_operand_elements(y));
    (void)worker;
    if (attrs->random.window.split) global.dim[attrs->random.window.axis] = attrs->random.window.global;
    wefti_contiguous_strides(global, stride);
    if (attrs->random.window.split) base = attrs->random.window.begin * stride[attrs->random.window.axis];
    wefti_walk walk;
    wefti_walk_start(&walk, y->shape, stride, begin);
    for (int64_t i = begin; i < end; i++) {
        int64_t index = base + walk.offset;
        wefti_out(self->run, 0, i, attrs->random.kind == WEFTI_RANDOM_NORMAL
                                       ? wefti_random_normal(attrs->random.key, self->step, index, y->dtype)
                                       : wefti_random_uniform(attrs->random.key, self->step, index, y->dtype));
        wefti_walk_advance(&walk, 1);
    }
}

static weft_status run_random(const wefti_cpu_run *run) {
    draw self = {.run = run, .step = (uint64_t)wefti_load_i64(run->inputs[0], 0, run->call->inputs[0].dtype)};
    wefti_cpu_for(run, wefti_cpu_chunks(wefti_operand_elements(&run->call->outputs[0]), WEFTI_REFERENCE_GRAIN),
                  random_chunk, &self);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_random = {.name = "reference random", .run = run_random};

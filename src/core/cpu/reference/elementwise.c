/* Elementwise ops and FUSED, one interpreter for both: an op is a fused program of one instruction.
 *
 * Idea: the space is cut into tiles of TILE elements; inputs are read into registers (f64 or i64 arrays of a tile),
 * each instruction computes a register rounded to its dtype, and the outputs are written. Since results are rounded
 * after every instruction, fusing changes no bits. A reduced output walks the space with its reduced axes last,
 * evaluates the program again tile by tile, and adds up in f64, in row-major order of the reduced axes. Invariants: all
 * inputs of a tile are read before an output of it is written, and reduced outputs are done before whole ones, so an
 * output may be an input's memory. Cost: 2 KiB of stack a register; a reduced output computes the program once more. */
#include "core/cpu/reference/reference.h"
#include "core/cpu/reference/scalar.h"
#include "core/tensor/philox.h"

enum { TILE = 128 };

typedef struct tile {
    weft_dtype dtype;
    union {
        double  f[TILE];
        int64_t i[TILE];
    };
} tile;

/* What an interpretation needs beside the run: the program, and the order in which its space is walked. */
typedef struct machine {
    const wefti_cpu_run           *run;
    const wefti_fused_instruction *instructions;
    int32_t                        n_instructions;
    weft_shape                     space; /* as the operands have it */
    weft_shape                     order; /* with its axes permuted: axis i is axes[i] of space */
    int32_t                        axes[WEFT_MAX_RANK];
} machine;

static void load_tile(const machine *m, int32_t input, int64_t begin, int64_t count, tile *into) {
    const wefti_operand *operand = &m->run->call->inputs[input];
    const void          *data = m->run->inputs[input];
    int64_t              own[WEFT_MAX_RANK] = {0}, stride[WEFT_MAX_RANK];
    wefti_operand_expand(operand, m->space, own);
    for (int32_t axis = 0; axis < m->space.rank; axis++) stride[axis] = own[m->axes[axis]];
    wefti_walk walk;
    wefti_walk_start(&walk, m->order, stride, begin);
    into->dtype = operand->dtype;
    bool    floating = weft_dtype_is_float(operand->dtype);
    int64_t step = wefti_walk_step(&walk);
    for (int64_t done = 0; done < count;) {
        int64_t run = wefti_min_i64(wefti_walk_run(&walk), count - done);
        for (int64_t i = 0; i < run; i++) {
            if (floating) into->f[done + i] = wefti_load_f64(data, walk.offset + i * step, operand->dtype);
            else into->i[done + i] = wefti_load_i64(data, walk.offset + i * step, operand->dtype);
        }
        wefti_walk_advance(&walk, run);
        done += run;
    }
}

static void store_tile(const wefti_cpu_run *run, int32_t output, int64_t begin, int64_t count, const tile *from) {
    weft_dtype dtype = run->call->outputs[output].dtype;
    for (int64_t i = 0; i < count; i++) {
        if (weft_dtype_is_float(from->dtype)) wefti_store_f64(run->outputs[output], begin + i, dtype, from->f[i]);
        else wefti_store_i64(run->outputs[output], begin + i, dtype, from->i[i]);
    }
}

static void cast_tile(const tile *x, int64_t count, tile *to) {
    bool from_float = weft_dtype_is_float(x->dtype), to_float = weft_dtype_is_float(to->dtype);
    for (int64_t i = 0; i < count; i++) {
        if (from_float && to_float) to->f[i] = wefti_round_f64(x->f[i], to->dtype);
        else if (from_float) to->i[i] = to->dtype == WEFT_BOOL ? x->f[i] != 0 : wefti_f64_to_i64(x->f[i], to->dtype);
        else if (!to_float) to->i[i] = wefti_wrap_i64(x->i[i], to->dtype);
        else if (to->dtype == WEFT_F64) to->f[i] = (double)x->i[i];
        else to->f[i] = wefti_round_f64((float)x->i[i], to->dtype); /* straight to f32: through f64 would round twice */
    }
}

/* Keeps x where uniform(key, step, global index) >= p. The global index is linear in the coordinates, so it is walked
 * like an operand. */
static void dropout_tile(const machine *m, const wefti_attrs *attrs, int64_t begin, int64_t count, const tile *x,
                         const tile *step, tile *to) {
    const wefti_window *window = &attrs->dropout.window;
    weft_shape          global = m->space;
    int64_t             own[WEFT_MAX_RANK] = {0}, stride[WEFT_MAX_RANK], base = 0;
    if (window->split) global.dim[window->axis] = window->global;
    wefti_contiguous_strides(global, own);
    if (window->split) base = window->begin * own[window->axis];
    for (int32_t axis = 0; axis < m->space.rank; axis++) stride[axis] = own[m->axes[axis]];
    wefti_walk walk;
    wefti_walk_start(&walk, m->order, stride, begin);
    double scale = 1 / (1 - attrs->dropout.p);
    for (int64_t i = 0; i < count; i++) {
        uint64_t draw = weft_dtype_is_float(step->dtype) ? (uint64_t)step->f[i] : (uint64_t)step->i[i];
        bool     keep = wefti_uniform(attrs->dropout.key, draw, base + walk.offset) >= attrs->dropout.p;
        to->f[i] = wefti_round_f64(keep ? x->f[i] * scale : 0, to->dtype);
        wefti_walk_advance(&walk, 1);
    }
}

static bool truth(const tile *x, int64_t i) { return weft_dtype_is_float(x->dtype) ? x->f[i] != 0 : x->i[i] != 0; }

static void predicate_tile(weft_op op, int64_t count, const tile *a, const tile *b, tile *to) {
    bool floating = weft_dtype_is_float(a->dtype);
    for (int64_t i = 0; i < count; i++) {
        if (op == WEFT_OP_ISFINITE) to->i[i] = !floating || isfinite(a->f[i]);
        else if (op == WEFT_OP_NOT) to->i[i] = !truth(a, i);
        else if (op == WEFT_OP_AND) to->i[i] = truth(a, i) && truth(b, i);
        else if (op == WEFT_OP_OR) to->i[i] = truth(a, i) || truth(b, i);
        else if (floating) to->i[i] = SCALAR_COMPARE(op, a->f[i], b->f[i]);
        else to->i[i] = SCALAR_COMPARE(op, a->i[i], b->i[i]);
    }
}

static void compute_tile(const machine *m, const wefti_fused_instruction *it, int64_t begin, int64_t count,
                         const tile *const *source, tile *to) {
    const tile *a = source[0], *b = source[1], *c = source[2];
    bool        floating = weft_dtype_is_float(it->dtype);
    to->dtype = it->dtype;
    switch (it->op) {
    case WEFT_OP_CAST: cast_tile(a, count, to); return;
    case WEFT_OP_DROPOUT: dropout_tile(m, &it->attrs, begin, count, a, b, to); return;
    case WEFT_OP_NOT:
    case WEFT_OP_ISFINITE:
    case WEFT_OP_AND:
    case WEFT_OP_OR:
    case WEFT_OP_EQ:
    case WEFT_OP_NE:
    case WEFT_OP_LT:
    case WEFT_OP_LE:
    case WEFT_OP_GT:
    case WEFT_OP_GE: predicate_tile(it->op, count, a, b, to); return;
    case WEFT_OP_WHERE:
        for (int64_t i = 0; i < count; i++) {
            if (floating) to->f[i] = a->i[i] ? b->f[i] : c->f[i];
            else to->i[i] = a->i[i] ? b->i[i] : c->i[i];
        }
        return;
    default: break;
    }
    bool unary = wefti_ops[it->op].family == WEFTI_UNARY;
    for (int64_t i = 0; i < count; i++) {
        if (floating)
            to->f[i] = wefti_round_f64(
                unary ? scalar_unary(it->op, &it->attrs, a->f[i]) : scalar_binary(it->op, a->f[i], b->f[i]), it->dtype);
        else
            to->i[i] = wefti_wrap_i64(unary ? scalar_unary_i64(it->op, &it->attrs, it->dtype, a->i[i])
                                            : scalar_binary_i64(it->op, a->i[i], b->i[i]),
                                      it->dtype);
    }
}

/* Evaluates every instruction over elements [begin, begin + count) of the walked space. */
static void evaluate(const machine *m, int64_t begin, int64_t count, tile *registers) {
    tile loaded[3];
    for (int32_t j = 0; j < m->n_instructions; j++) {
        const wefti_fused_instruction *it = &m->instructions[j];
        const tile                    *source[3] = {NULL, NULL, NULL};
        for (int32_t k = 0; k < wefti_ops[it->op].inputs_max; k++) {
            if (it->source[k] < 0) {
                source[k] = &registers[-1 - it->source[k]];
            } else {
                load_tile(m, it->source[k], begin, count, &loaded[k]);
                source[k] = &loaded[k];
            }
        }
        compute_tile(m, it, begin, count, source, &registers[j]);
    }
}

static void straight(machine *m, weft_shape space) {
    m->space = m->order = space;
    for (int32_t axis = 0; axis < space.rank; axis++) m->axes[axis] = axis;
}

/* Elementwise: one instruction, one output. */

typedef struct single {
    machine                 m;
    wefti_fused_instruction instruction;
} single;

static void elementwise_chunk(void *context, int64_t chunk, int32_t worker) {
    const single *self = context;
    int64_t       end = wefti_min_i64((chunk + 1) * WEFTI_REFERENCE_GRAIN, weft_shape_elements(self->m.space));
    tile          result;
    (void)worker;
    for (int64_t begin = chunk * WEFTI_REFERENCE_GRAIN; begin < end; begin += TILE) {
        int64_t count = wefti_min_i64(TILE, end - begin);
        evaluate(&self->m, begin, count, &result);
        store_tile(self->m.run, 0, begin, count, &result);
    }
}

static weft_status run_elementwise(const wefti_cpu_run *run) {
    const wefti_operand *output = &run->call->outputs[0];
    single self = {
        .instruction = {.op = run->call->op, .dtype = output->dtype, .source = {0, 1, 2}, .attrs = *run->call->attrs}};
    self.m = (machine){.run = run, .instructions = &self.instruction, .n_instructions = 1};
    straight(&self.m, output->shape);
    wefti_cpu_for(run, wefti_cpu_chunks(weft_shape_elements(output->shape), WEFTI_REFERENCE_GRAIN), elementwise_chunk,
                  &self);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_elementwise = {.name = "reference elementwise", .run = run_elementwise};

/* FUSED. */

static void whole_chunk(void *context, int64_t chunk, int32_t worker) {
    const machine     *m = context;
    const wefti_fused *fused = m->run->call->attrs->fused.fused;
    int64_t            end = wefti_min_i64((chunk + 1) * WEFTI_REFERENCE_GRAIN, weft_shape_elements(m->space));
    tile               registers[WEFTI_FUSED_MAX];
    (void)worker;
    for (int64_t begin = chunk * WEFTI_REFERENCE_GRAIN; begin < end; begin += TILE) {
        int64_t count = wefti_min_i64(TILE, end - begin);
        evaluate(m, begin, count, registers);
        for (int32_t k = 0; k < fused->n_outputs; k++)
            if (fused->output[k].reduce < 0)
                store_tile(m->run, k, begin, count, &registers[fused->output[k].instruction]);
    }
}

/* One number that is being reduced; floats in f64, integers in i64. */
typedef struct total {
    double  f;
    int64_t i;
} total;

static void add_to_total(int32_t op, bool floating, bool first, double f, int64_t i, total *into) {
    switch (op) {
    case WEFT_OP_MAX:
        if (floating) into->f = first || isnan(f) || f > into->f ? f : into->f;
        else into->i = first || i > into->i ? i : into->i;
        return;
    case WEFT_OP_MIN:
        if (floating) into->f = first || isnan(f) || f < into->f ? f : into->f;
        else into->i = first || i < into->i ? i : into->i;
        return;
    default:
        into->f += f;
        into->i = (int64_t)((uint64_t)into->i + (uint64_t)i);
    }
}

typedef struct reduced {
    machine                   m;
    const wefti_fused_output *output;
    int32_t                   index;
    int64_t                   per_total; /* elements reduced into one */
} reduced;

/* One element of a reduced output. The walked space has the kept axes first, so its elements are consecutive. */
static void reduced_chunk(void *context, int64_t chunk, int32_t worker) {
    const reduced             *self = context;
    const wefti_fused_output  *output = self->output;
    weft_dtype                 dtype = self->m.run->call->outputs[self->index].dtype;
    tile                       registers[WEFTI_FUSED_MAX];
    total                      sum = {0, 0};
    bool                       floating = weft_dtype_is_float(self->m.instructions[output->instruction].dtype);
    (void)worker;
    for (int64_t done = 0; done < self->per_total; done += TILE) {
        int64_t count = wefti_min_i64(TILE, self->per_total - done);
        evaluate(&self->m, chunk * self->per_total + done, count, registers);
        const tile *result = &registers[output->instruction];
        for (int64_t i = 0; i < count; i++)
            add_to_total(output->reduce, floating, done + i == 0, floating ? result->f[i] : 0,
                         floating ? 0 : result->i[i], &sum);
    }
    if (output->reduce == WEFT_OP_MEAN) sum.f /= output->count != 0 ? output->count : (double)self->per_total;
    if (floating) wefti_store_f64(self->m.run->outputs[self->index], chunk, dtype, sum.f);
    else wefti_store_i64(self->m.run->outputs[self->index], chunk, dtype, sum.i);
}

static void run_reduced(const wefti_cpu_run *run, machine m, int32_t index) {
    const wefti_fused_output *output = &run->call->attrs->fused.fused->output[index];
    int32_t                   n = 0;
    int64_t                   per_total = 1, totals = 1;
    for (int pass = 0; pass < 2; pass++)
        for (int32_t axis = 0; axis < m.space.rank; axis++) {
            bool away = output->axes >> axis & 1;
            if (away != (pass == 1)) continue;
            *(away ? &per_total : &totals) *= m.space.dim[axis];
            m.order.dim[n] = m.space.dim[axis];
            m.axes[n++] = axis;
        }
    reduced self = {.m = m, .output = output, .index = index, .per_total = per_total};
    wefti_cpu_for(run, totals, reduced_chunk, &self);
}

static weft_status run_fused(const wefti_cpu_run *run) {
    const wefti_fused *fused = run->call->attrs->fused.fused;
    machine            m = {.run = run, .instructions = fused->instruction, .n_instructions = fused->n_instructions};
    bool               whole = false;
    straight(&m, fused->space);
    for (int32_t k = 0; k < fused->n_outputs; k++) {
        if (fused->output[k].reduce >= 0) run_reduced(run, m, k);
        else whole = true;
    }
    if (whole)
        wefti_cpu_for(run, wefti_cpu_chunks(weft_shape_elements(fused->space), WEFTI_REFERENCE_GRAIN), whole_chunk, &m);
    return WEFT_OK;
}
const wefti_cpu_kernel wefti_reference_fused = {.name = "reference fused", .run = run_fused};

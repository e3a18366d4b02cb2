/* Whether a call is one that op.h allows: arity, dtypes and shapes, family by family.
 *
 * Graphs are checked where they are built; this check guards memory. After it no kernel of any device reads or writes outside
 * its operands, whatever a planner handed in, and no op is computed in a dtype that it has no meaning for. */
#include "core/iface/custom.h"
#include "core/iface/rule.h"
#include "core/tensor/check.h"
#include "core/tensor/codec.h"
#include "core/tensor/fp8.h"
#include "core/tensor/operand.h"

static weft_status refuse(weft_status status, const wefti_call *call, const char *why) {
    const wefti_operand *x = call->n_inputs > 0 ? &call->inputs[0] : NULL,
                        *y = call->n_outputs > 0 ? &call->outputs[0] : NULL;
    return wefti_fail(status, "%s '%s' (%s%s -> %s%s): %s", wefti_ops[call->op].name, call->name ? call->name : "",
                      x ? weft_dtype_name(x->dtype) : "nothing", x ? weft_shape_text(x->shape).text : "",
                      y ? weft_dtype_name(y->dtype) : "nothing", y ? weft_shape_text(y->shape).text : "", why);
}
#define SHAPE(condition, why)                                          \
    do {                                                               \
        if (!(condition)) return refuse(WEFT_E_SHAPE, call, why);      \
    } while (0)
#define DTYPE(condition, why)                                          \
    do {                                                               \
        if (!(condition)) return refuse(WEFT_E_DTYPE, call, why);      \
    } while (0)

static bool is_index(weft_dtype dtype) { return dtype == WEFT_I32 || dtype == WEFT_I64; }

static bool broadcasts(weft_shape from, weft_shape to) {
    if (from.rank > to.rank) return false;
    for (int32_t axis = 0; axis < from.rank; axis++)
        if (from.dim[axis] != 1 && from.dim[axis] != to.dim[to.rank - from.rank + axis]) return false;
    return true;
}

/* Product of the dims of axes that are, or are not, in the mask. */
static int64_t product(weft_shape shape, uint32_t axes, bool in_mask) {
    int64_t total = 1;
    for (int32_t axis = 0; axis < shape.rank; axis++)
        if ((axes >> axis & 1) == in_mask) total *= shape.dim[axis];
    return total;
}

/* Dtypes of an elementwise op: of its inputs and its result. */
static bool dtypes_fit(weft_op op, const weft_dtype *in, weft_dtype out) {
    switch (op) {
    case WEFT_OP_CAST: return true;
    case WEFT_OP_NOT:
    case WEFT_OP_ISFINITE: return out == WEFT_BOOL;
    case WEFT_OP_AND:
    case WEFT_OP_OR:
    case WEFT_OP_EQ:
    case WEFT_OP_NE:
    case WEFT_OP_LT:
    case WEFT_OP_LE:
    case WEFT_OP_GT:
    case WEFT_OP_GE: return in[0] == in[1] && out == WEFT_BOOL;
    case WEFT_OP_WHERE: return in[0] == WEFT_BOOL && in[1] == out && in[2] == out;
    case WEFT_OP_DROPOUT: return in[0] == out && weft_dtype_is_float(out) && is_index(in[1]);
    case WEFT_OP_COPY:
    case WEFT_OP_DETACH:
    case WEFT_OP_NEG:
    case WEFT_OP_ABS:
    case WEFT_OP_SIGN:
    case WEFT_OP_SQUARE:
    case WEFT_OP_RELU:
    case WEFT_OP_CLAMP: return in[0] == out;
    case WEFT_OP_ADD:
    case WEFT_OP_SUB:
    case WEFT_OP_MUL:
    case WEFT_OP_DIV:
    case WEFT_OP_MAXIMUM:
    case WEFT_OP_MINIMUM: return in[0] == out && in[1] == out;
    default: return weft_dtype_is_float(out) && in[0] == out && (wefti_ops[op].inputs_max < 2 || in[1] == out);
    }
}

static weft_status check_window(const wefti_call *call, const wefti_window *window, weft_shape shape) {
    if (!window->split) return WEFT_OK;
    SHAPE(window->axis >= 0 && window->axis < shape.rank && window->begin >= 0 &&
              window->begin <= window->global - shape.dim[window->axis],
          "its window does not lie in the global tensor");
    return WEFT_OK;
}

static weft_status check_elementwise(const wefti_call *call) {
    weft_dtype in[3] = {WEFT_F32, WEFT_F32, WEFT_F32};
    for (int32_t i = 0; i < call->n_inputs; i++) {
        in[i] = call->inputs[i].dtype;
        SHAPE(broadcasts(call->inputs[i].shape, call->outputs[0].shape), "an input does not broadcast to the output");
    }
    DTYPE(dtypes_fit(call->op, in, call->outputs[0].dtype), "the op has no such dtypes");
    if (call->op == WEFT_OP_DROPOUT) return check_window(call, &call->attrs->dropout.window, call->outputs[0].shape);
    return WEFT_OK;
}

static weft_dtype wide_of(weft_dtype dtype) { return dtype == WEFT_F64 ? WEFT_F64 : WEFT_F32; }

/* The axes of an instruction's rows, as a mask. */
static uint32_t row_axes(weft_shape space, const wefti_fused_instruction *it) {
    return (1u << space.rank) - (1u << (space.rank - it->attrs.rows.axes));
}

/* An instruction that normalises: the only one, of rows that there are. */
static weft_status check_fused_rows(const wefti_call *call, const wefti_fused *fused, int32_t j, const weft_dtype *in) {
    const wefti_fused_instruction *it = &fused->instruction[j];
    bool                           backward = it->op == WEFT_OP_NORMALIZE_BACKWARD;
    SHAPE(call->op == WEFT_OP_FUSED && wefti_fused_rows(fused) == j, "more than one instruction normalises");
    SHAPE(it->attrs.rows.axes >= 1 && it->attrs.rows.axes <= fused->space.rank, "rows have more axes than the program's space, or none");
    DTYPE(weft_dtype_is_float(it->dtype) && in[0] == it->dtype && (!backward || (in[1] == it->dtype && in[2] == wide_of(it->dtype))),
          "an instruction has no such dtypes");
    if (!backward) return WEFT_OK;
    SHAPE(it->source[2] >= 0 && call->inputs[it->source[2]].shape.rank == fused->space.rank, "a row's scale is no input with the space's axes");
    for (int32_t axis = fused->space.rank - it->attrs.rows.axes; axis < fused->space.rank; axis++)
        SHAPE(call->inputs[it->source[2]].shape.dim[axis] == 1 || call->inputs[it->source[2]].stride[axis] == 0, "a row has more than one scale");
    return WEFT_OK;
}

static weft_status check_fused_output(const wefti_call *call, const wefti_fused *fused, const wefti_fused_output *output, const wefti_operand *y) {
    SHAPE(output->instruction >= 0 && output->instruction < fused->n_instructions,
          "an output is no instruction's result");
    const wefti_fused_instruction *it = &fused->instruction[output->instruction];
    if (output->reduce == WEFT_OP_NORMALIZE) {
        SHAPE(it->op == WEFT_OP_NORMALIZE, "an output is the second result of what has one only");
        DTYPE(y->dtype == wide_of(it->dtype), "a row's scale is f32, or f64 where rows are");
        SHAPE(output->axes == row_axes(fused->space, it) && wefti_operand_elements(y) == product(fused->space, output->axes, false),
              "there is a scale for each row");
        return WEFT_OK;
    }
    DTYPE(y->dtype == it->dtype, "an output has not its instruction's dtype");
    if (output->reduce < 0) {
        SHAPE(weft_shape_equal(y->shape, fused->space), "a whole output has not the program's space");
        return WEFT_OK;
    }
    SHAPE(output->reduce == WEFT_OP_SUM || output->reduce == WEFT_OP_MEAN || output->reduce == WEFT_OP_MAX ||
              output->reduce == WEFT_OP_MIN, "an output is reduced by something else than sum, mean, max or min");
    DTYPE(output->reduce != WEFT_OP_MEAN || weft_dtype_is_float(y->dtype), "a mean of integers");
    SHAPE(wefti_operand_elements(y) == product(fused->space, output->axes, false), "a reduced output has another size");
    SHAPE(output->reduce == WEFT_OP_SUM || output->reduce == WEFT_OP_MEAN || wefti_operand_elements(y) == 0 ||
              product(fused->space, output->axes, true) > 0,
          "a maximum or minimum of nothing");
    return WEFT_OK;
}

/* A FUSED call, or one behind a product, which has the dtype of the call's input 0. */
static weft_status check_fused(const wefti_call *call) {
    int32_t            first, before; /* inputs of the call that are not the program's, but for the product that they make */
    const wefti_fused *fused = wefti_program_of(call->op, call->attrs, &first);
    before = first > 0 ? first - 1 : 0;
    SHAPE(fused && fused->n_inputs == call->n_inputs - before && (first > 0 || fused->n_outputs == call->n_outputs) && fused->n_instructions > 0 &&
              fused->n_instructions <= WEFTI_FUSED_MAX && fused->n_outputs <= WEFTI_FUSED_MAX,
          "the program and the call differ in size");
    for (int32_t i = first; i < call->n_inputs; i++)
        SHAPE(broadcasts(call->inputs[i].shape, fused->space), "an input does not broadcast to the program's space");
    for (int32_t j = 0; j < fused->n_instructions; j++) {
        const wefti_fused_instruction *it = &fused->instruction[j];
        SHAPE((unsigned)it->op < WEFT_OP_COUNT && (wefti_op_is_elementwise(it->op) || wefti_op_normalizes(it->op)),
              "an instruction is not elementwise");
        weft_dtype in[3] = {WEFT_F32, WEFT_F32, WEFT_F32};
        for (int32_t k = 0; k < wefti_ops[it->op].inputs_max; k++) {
            int32_t source = it->source[k];
            SHAPE(source < fused->n_inputs && -1 - source < j, "an instruction reads what is not there yet");
            in[k] = source < 0 ? fused->instruction[-1 - source].dtype : call->inputs[source > 0 ? source + before : 0].dtype;
        }
        if (wefti_op_normalizes(it->op)) {
            WEFTI_TRY(check_fused_rows(call, fused, j, in));
            continue;
        }
        DTYPE(weft_dtype_bytes(it->dtype) && dtypes_fit(it->op, in, it->dtype), "an instruction has no such dtypes");
        if (it->op == WEFT_OP_DROPOUT) WEFTI_TRY(check_window(call, &it->attrs.dropout.window, fused->space));
    }
    for (int32_t k = 0; k < fused->n_outputs; k++)
        WEFTI_TRY(check_fused_output(call, fused, &fused->output[k], &call->outputs[k]));
    return WEFT_OK;
}

static weft_status check_reduce(const wefti_call *call) {
    const wefti_operand *x = &call->inputs[0], *y = &call->outputs[0];
    uint32_t             axes = call->attrs->reduce.axes;
    SHAPE(axes >> x->shape.rank == 0, "it reduces axes that its input has not");
    if (call->op == WEFT_OP_EXTENT) {
        SHAPE(wefti_operand_elements(y) == 1, "the output is not a scalar");
        return WEFT_OK;
    }
    SHAPE(wefti_operand_elements(y) == product(x->shape, axes, false), "the output has another size");
    if (call->op == WEFT_OP_ARGMAX) {
        SHAPE(axes && (axes & (axes - 1)) == 0, "it takes one axis");
        DTYPE(is_index(y->dtype), "the output is not an index");
    } else {
        DTYPE(x->dtype == y->dtype && (call->op != WEFT_OP_MEAN || weft_dtype_is_float(x->dtype)),
              "the op has no such dtypes");
    }
    SHAPE(call->op == WEFT_OP_SUM || call->op == WEFT_OP_MEAN || wefti_operand_elements(y) == 0 ||
              product(x->shape, axes, true) > 0,
          "a maximum or minimum of nothing");
    return WEFT_OK;
}

static weft_status check_mean_backward(const wefti_call *call) {
    const wefti_operand *g = &call->inputs[0], *y = &call->outputs[0];
    uint32_t             axes = call->attrs->reduce.axes;
    SHAPE(axes >> y->shape.rank == 0, "it spreads axes that its output has not");
    bool kept = g->shape.rank == y->shape.rank;
    for (int32_t axis = 0, own = 0; axis < y->shape.rank; axis++) {
        bool away = axes >> axis & 1;
        if (!kept && away) continue;
        SHAPE(own < g->shape.rank && g->shape.dim[own] == (away ? 1 : y->shape.dim[axis]),
              "the gradient has another shape");
        own++;
    }
    DTYPE(g->dtype == y->dtype && weft_dtype_is_float(g->dtype), "the op has no such dtypes");
    return WEFT_OK;
}

static weft_status check_view(const wefti_call *call) {
    const wefti_operand *x = &call->inputs[0], *y = &call->outputs[0];
    const wefti_attrs   *attrs = call->attrs;
    uint32_t             seen = 0;
    DTYPE(x->dtype == y->dtype, "input and output differ in dtype");
    if (call->op == WEFT_OP_RESHAPE)
        SHAPE(wefti_operand_elements(x) == wefti_operand_elements(y), "the count of elements changes");
    else if (call->op == WEFT_OP_EXPAND)
        SHAPE(broadcasts(x->shape, y->shape), "the input does not broadcast to the output");
    else SHAPE(x->shape.rank == y->shape.rank, "input and output differ in rank");
    for (int32_t axis = 0; call->op == WEFT_OP_PERMUTE && axis < y->shape.rank; axis++) {
        int32_t from = attrs->view.axes[axis];
        SHAPE(from >= 0 && from < x->shape.rank && x->shape.dim[from] == y->shape.dim[axis],
              "the axes are no permutation");
        seen |= 1u << from;
    }
    SHAPE(call->op != WEFT_OP_PERMUTE || seen == (1u << x->shape.rank) - 1, "the axes are no permutation");
    for (int32_t axis = 0; call->op == WEFT_OP_SLICE && axis < y->shape.rank; axis++) {
        int64_t start = attrs->slice.start[axis], step = attrs->slice.step[axis], size = y->shape.dim[axis], last = 0;
        SHAPE(start >= 0 && step >= 1 &&
                  (size == 0 || (wefti_mul_i64(size - 1, step, &last) && wefti_add_i64(last, start, &last) &&
                                 last < x->shape.dim[axis])),
              "the slice leaves its input");
    }
    return WEFT_OK;
}

static weft_status check_concat(const wefti_call *call) {
    const wefti_operand *y = &call->outputs[0];
    int32_t              axis = call->attrs->axis.axis;
    int64_t              total = 0;
    SHAPE(axis >= 0 && axis < y->shape.rank, "there is no such axis");
    for (int32_t i = 0; i < call->n_inputs; i++) {
        const wefti_operand *x = &call->inputs[i];
        DTYPE(x->dtype == y->dtype, "inputs and output differ in dtype");
        SHAPE(x->shape.rank == y->shape.rank, "inputs and output differ in rank");
        for (int32_t d = 0; d < y->shape.rank; d++)
            SHAPE(d == axis || x->shape.dim[d] == y->shape.dim[d], "inputs differ along another axis");
        total += x->shape.dim[axis];
    }
    SHAPE(total == y->shape.dim[axis], "the inputs do not make the output");
    return WEFT_OK;
}

static weft_status check_pad(const wefti_call *call) {
    const wefti_operand *x = &call->inputs[0], *y = &call->outputs[0];
    DTYPE(x->dtype == y->dtype, "input and output differ in dtype");
    SHAPE(x->shape.rank == y->shape.rank, "input and output differ in rank");
    for (int32_t axis = 0; axis < x->shape.rank; axis++) {
        int64_t low = call->attrs->pad.low[axis], high = call->attrs->pad.high[axis],
                interior = call->attrs->pad.interior[axis];
        int64_t size = x->shape.dim[axis], between = 0, total = 0;
        SHAPE(low >= 0 && high >= 0 && interior >= 0 && wefti_mul_i64(size > 0 ? size - 1 : 0, interior, &between) &&
                  wefti_add_i64(size, between, &total) && wefti_add_i64(total, low, &total) &&
                  wefti_add_i64(total, high, &total) && total == y->shape.dim[axis],
              "padding does not make the output");
    }
    return WEFT_OK;
}

/* GATHER and SCATTER_ADD: `picked` has x's shape with the index's in place of the axis. */
static weft_status check_pick(const wefti_call *call, weft_shape picked) {
    const wefti_operand *x = &call->inputs[0], *index = &call->inputs[1];
    int32_t              axis = call->attrs->axis.axis;
    SHAPE(axis >= 0 && axis < x->shape.rank, "there is no such axis");
    SHAPE(picked.rank == x->shape.rank - 1 + index->shape.rank, "ranks do not fit");
    for (int32_t d = 0; d < picked.rank; d++) {
        int64_t expected = d < axis                       ? x->shape.dim[d]
                           : d < axis + index->shape.rank ? index->shape.dim[d - axis]
                                                          : x->shape.dim[d - index->shape.rank + 1];
        SHAPE(picked.dim[d] == expected, "shapes do not fit");
    }
    DTYPE(is_index(index->dtype), "the index is not i32 or i64");
    DTYPE(call->outputs[0].dtype == x->dtype, "input and output differ in dtype");
    if (call->op == WEFT_OP_GATHER) return WEFT_OK;
    DTYPE(call->inputs[2].dtype == x->dtype, "what is added has another dtype");
    SHAPE(weft_shape_equal(x->shape, call->outputs[0].shape), "input and output differ in shape");
    return WEFT_OK;
}

/* The product's result has the shape `c`. */
static weft_status check_product(const wefti_call *call, weft_shape c) {
    const wefti_operand *a = &call->inputs[0], *b = &call->inputs[1];
    DTYPE(a->dtype == b->dtype && weft_dtype_is_float(a->dtype), "the op has no such dtypes");
    SHAPE(a->shape.rank >= 2 && b->shape.rank >= 2 && c.rank >= 2, "an operand is no matrix");
    bool    ta = call->attrs->matmul.trans_a, tb = call->attrs->matmul.trans_b;
    int64_t m = a->shape.dim[a->shape.rank - 2 + ta], k = a->shape.dim[a->shape.rank - 1 - ta];
    int64_t k2 = b->shape.dim[b->shape.rank - 2 + tb], n = b->shape.dim[b->shape.rank - 1 - tb];
    SHAPE(k == k2, "inner sizes differ");
    SHAPE(m == c.dim[c.rank - 2] && n == c.dim[c.rank - 1], "the output has another size");
    weft_shape batch_a = a->shape, batch_b = b->shape, batch_c = c;
    batch_a.rank -= 2, batch_b.rank -= 2, batch_c.rank -= 2;
    SHAPE(broadcasts(batch_a, batch_c) && broadcasts(batch_b, batch_c), "leading axes do not broadcast");
    return WEFT_OK;
}

static weft_status check_matmul(const wefti_call *call) {
    DTYPE(call->inputs[0].dtype == call->outputs[0].dtype, "the op has no such dtypes");
    return check_product(call, call->outputs[0].shape);
}

static weft_status check_fused_matmul(const wefti_call *call) {
    const wefti_fused *fused = call->attrs->matmul.fused;
    int32_t            sums = call->attrs->matmul.sums, n_outputs = fused ? fused->n_outputs : 1;
    SHAPE(sums >= WEFTI_SUMS_NONE && sums <= WEFTI_SUMS_B && call->n_outputs == n_outputs + (sums != WEFTI_SUMS_NONE) && n_outputs > 0,
          "the program and the call differ in size");
    const wefti_operand *a = &call->inputs[0], *b = &call->inputs[1];
    SHAPE(a->shape.rank == 2 && b->shape.rank == 2, "an operand is no matrix");
    int64_t m = a->shape.dim[call->attrs->matmul.trans_a != 0], n = b->shape.dim[call->attrs->matmul.trans_b == 0];
    WEFTI_TRY(check_product(call, (weft_shape){.rank = 2, .dim = {m, n}}));
    weft_shape space = fused ? fused->space : call->outputs[0].shape;
    SHAPE(space.rank > 0 && space.dim[space.rank - 1] == n && weft_shape_elements(space) == m * n, "the product has another size");
    if (fused) {
        WEFTI_TRY(check_fused(call));
        SHAPE(fused->output[0].reduce < 0, "its first output is reduced");
    } else {
        SHAPE(call->n_inputs == 2, "it has inputs that nothing reads");
        DTYPE(a->dtype == call->outputs[0].dtype, "the op has no such dtypes");
    }
    if (!sums) return WEFT_OK;
    const wefti_operand *to = &call->outputs[n_outputs];
    DTYPE(to->dtype == a->dtype, "the sums have another dtype");
    SHAPE(wefti_operand_elements(to) == (sums == WEFTI_SUMS_A ? m : n), "the sums have another size");
    return WEFT_OK;
}

static weft_status check_expert_matmul(const wefti_call *call) {
    const wefti_operand *x = &call->inputs[0], *other = &call->inputs[1], *index = &call->inputs[2], *y = &call->outputs[0];
    bool                 backward = call->op == WEFT_OP_EXPERT_MATMUL_BACKWARD_WEIGHT, trans = call->attrs->expert.trans;
    DTYPE(x->dtype == other->dtype && x->dtype == y->dtype && weft_dtype_is_float(x->dtype) && is_index(index->dtype), "the op has no such dtypes");
    const wefti_operand *w = backward ? y : other, *rows = backward ? other : y;
    SHAPE(x->shape.rank == 2 && rows->shape.rank == 2 && w->shape.rank == 3 && index->shape.rank == 1, "ranks do not fit");
    int64_t repeat = call->attrs->expert.repeat, all;
    SHAPE(repeat >= 1 && wefti_mul_i64(x->shape.dim[0], repeat, &all) && all == index->shape.dim[0] && rows->shape.dim[0] == all, "rows do not fit");
    SHAPE(w->shape.dim[trans ? 2 : 1] == x->shape.dim[1] && w->shape.dim[trans ? 1 : 2] == rows->shape.dim[1], "sizes do not fit");
    SHAPE(!backward || w->shape.dim[0] == call->attrs->expert.experts, "there is another number of experts");
    return WEFT_OK;
}

static weft_status check_occurrence(const wefti_call *call) {
    DTYPE(is_index(call->inputs[0].dtype) && call->outputs[0].dtype == WEFT_I32, "the op has no such dtypes");
    SHAPE(call->inputs[0].shape.rank == 2 && weft_shape_equal(call->inputs[0].shape, call->outputs[0].shape), "input and output differ in shape");
    SHAPE(call->attrs->expert.experts >= 1 && call->attrs->expert.experts <= INT32_MAX && wefti_operand_elements(&call->outputs[0]) <= INT32_MAX,
          "there are too many values");
    return WEFT_OK;
}

static weft_status check_conv(const wefti_call *call) {
    bool to_input = call->op == WEFT_OP_CONV2D_BACKWARD_INPUT, to_weight = call->op == WEFT_OP_CONV2D_BACKWARD_WEIGHT;
    weft_shape x = to_input ? call->outputs[0].shape : call->inputs[to_weight ? 1 : 0].shape;
    weft_shape w = to_weight ? call->outputs[0].shape : call->inputs[1].shape;
    weft_shape y = to_input || to_weight ? call->inputs[0].shape : call->outputs[0].shape;
    int64_t    groups = call->attrs->conv.groups > 0 ? call->attrs->conv.groups : 1;
    DTYPE(call->inputs[0].dtype == call->inputs[1].dtype && call->inputs[0].dtype == call->outputs[0].dtype &&
              weft_dtype_is_float(call->inputs[0].dtype), "the op has no such dtypes");
    SHAPE(x.rank == 4 && w.rank == 4 && y.rank == 4, "an operand has not four axes");
    SHAPE(x.dim[0] == y.dim[0] && w.dim[0] == y.dim[1] && w.dim[0] % groups == 0 && w.dim[1] * groups == x.dim[1],
          "channels, groups or batch do not fit");
    for (int i = 0; i < 2; i++)
        SHAPE(call->attrs->conv.stride[i] >= 0 && call->attrs->conv.dilation[i] >= 0, "a stride is negative");
    return WEFT_OK;
}

/* Indices into planes, or places in windows. */
static bool is_place(const wefti_call *call, weft_dtype dtype) {
    int64_t window = (int64_t)call->attrs->pool.window[0] * call->attrs->pool.window[1];
    return is_index(dtype) || (dtype == WEFT_U8 && call->attrs->pool.window[0] > 0 && window > 0 && window <= 255);
}

static weft_status check_pool(const wefti_call *call) {
    const wefti_operand *y = &call->outputs[0];
    bool                 indexed = call->op == WEFT_OP_MAX_POOL2D_BACKWARD || call->op == WEFT_OP_MAX_POOL2D_TAKE;
    weft_shape           x = call->inputs[0].shape;
    DTYPE(weft_dtype_is_float(y->dtype) && call->inputs[0].dtype == y->dtype, "the op has no such dtypes");
    SHAPE(x.rank == 4 && y->shape.rank == 4 && x.dim[0] == y->shape.dim[0] && x.dim[1] == y->shape.dim[1],
          "batch or channels do not fit");
    if (call->op == WEFT_OP_MAX_POOL2D) {
        SHAPE(weft_shape_equal(call->outputs[1].shape, y->shape), "index and output differ in shape");
        DTYPE(is_place(call, call->outputs[1].dtype), "the index is not i32, nor a place in a window of at most 255");
    }
    if (indexed) {
        SHAPE(weft_shape_equal(call->inputs[1].shape, call->op == WEFT_OP_MAX_POOL2D_TAKE ? y->shape : x),
              "the index has another shape");
        DTYPE(is_place(call, call->inputs[1].dtype), "the index is not i32, nor a place in a window of at most 255");
        return WEFT_OK;
    }
    for (int i = 0; i < 2; i++)
        SHAPE(call->attrs->pool.window[i] > 0 && call->attrs->pool.stride[i] >= 0, "a window has no size");
    return WEFT_OK;
}

static weft_status check_rows(const wefti_call *call) {
    const wefti_operand *x = &call->inputs[0], *y = &call->outputs[0];
    int32_t              axes = 1;
    DTYPE(x->dtype == y->dtype && weft_dtype_is_float(x->dtype), "the op has no such dtypes");
    SHAPE(weft_shape_equal(x->shape, y->shape), "input and output differ in shape");
    bool forward = call->op == WEFT_OP_NORMALIZE, backward = call->op == WEFT_OP_NORMALIZE_BACKWARD;
    if (forward || backward) axes = call->attrs->rows.axes;
    SHAPE(axes >= 1 && axes <= x->shape.rank, "there are no such rows");
    int64_t rows = 1;
    for (int32_t i = 0; i < x->shape.rank - axes; i++) rows *= x->shape.dim[i];
    if (forward || backward) {
        const wefti_operand *rstd = forward ? &call->outputs[1] : &call->inputs[2];
        SHAPE(wefti_operand_elements(rstd) == rows, "rstd has another size");
        DTYPE(rstd->dtype == (x->dtype == WEFT_F64 ? WEFT_F64 : WEFT_F32), "rstd has another dtype");
    }
    if (backward || call->op == WEFT_OP_SOFTMAX_BACKWARD || call->op == WEFT_OP_LOG_SOFTMAX_BACKWARD) {
        SHAPE(weft_shape_equal(call->inputs[1].shape, x->shape), "the inputs differ in shape");
        DTYPE(call->inputs[1].dtype == x->dtype, "the inputs differ in dtype");
    }
    if (call->op == WEFT_OP_ROTARY)
        SHAPE(x->shape.rank >= 2 && x->shape.dim[x->shape.rank - 1] % 2 == 0, "it takes positions and an even depth");
    return WEFT_OK;
}

static weft_status check_loss(const wefti_call *call) {
    bool                 backward = call->op == WEFT_OP_CROSS_ENTROPY_BACKWARD;
    const wefti_operand *logits = &call->inputs[backward], *label = &call->inputs[backward + 1];
    const wefti_operand *loss = backward ? &call->inputs[0] : &call->outputs[0];
    const wefti_operand *lse = backward ? &call->inputs[3] : &call->outputs[1];
    weft_dtype           wide = logits->dtype == WEFT_F64 ? WEFT_F64 : WEFT_F32;
    SHAPE(logits->shape.rank >= 1, "logits have no classes");
    weft_shape leading = logits->shape;
    int64_t    rows = wefti_operand_elements(label);
    leading.rank--;
    SHAPE(weft_shape_elements(leading) == rows && wefti_operand_elements(loss) == rows &&
              wefti_operand_elements(lse) == rows,
          "labels and logits differ in rows");
    DTYPE(weft_dtype_is_float(logits->dtype) && is_index(label->dtype) && loss->dtype == wide && lse->dtype == wide,
          "the op has no such dtypes");
    if (!backward) return WEFT_OK;
    SHAPE(weft_shape_equal(call->outputs[0].shape, logits->shape), "the gradient has another shape than the logits");
    DTYPE(call->outputs[0].dtype == logits->dtype, "the gradient has another dtype than the logits");
    return WEFT_OK;
}

static weft_status check_attention(const wefti_call *call) {
    bool                 backward = call->op == WEFT_OP_ATTENTION_BACKWARD;
    const wefti_operand *q = &call->inputs[backward], *k = q + 1, *v = q + 2;
    const wefti_operand *o = backward ? &call->inputs[4] : &call->outputs[0],
                        *lse = backward ? &call->inputs[5] : &call->outputs[1];
    weft_dtype           dtype = q->dtype, wide = dtype == WEFT_F64 ? WEFT_F64 : WEFT_F32;
    SHAPE(q->shape.rank == 4 && k->shape.rank == 4 && v->shape.rank == 4, "q, k and v have four axes");
    const int64_t *qd = q->shape.dim, *kd = k->shape.dim, *vd = v->shape.dim;
    SHAPE(kd[0] == qd[0] && vd[0] == qd[0] && kd[1] == vd[1] && kd[1] > 0 && qd[1] % kd[1] == 0 && kd[2] == vd[2] &&
              kd[3] == qd[3],
          "q, k and v do not fit");
    bool by_rows = call->attrs->attention.by_rows;
    SHAPE(by_rows && !backward ? weft_shape_elements(o->shape) == weft_shape_elements(weft_shape(qd[0], qd[1], qd[2], vd[3]))
                               : weft_shape_equal(o->shape, weft_shape(qd[0], qd[1], qd[2], vd[3])),
          "the output has another shape");
    SHAPE(weft_shape_equal(lse->shape, weft_shape(qd[0], qd[1], qd[2])), "the log-sum-exp has another shape");
    DTYPE(weft_dtype_is_float(dtype) && k->dtype == dtype && v->dtype == dtype && o->dtype == dtype &&
              lse->dtype == wide,
          "the op has no such dtypes");
    if (!backward) return WEFT_OK;
    SHAPE(weft_shape_equal(call->inputs[0].shape, o->shape), "the incoming gradient has another shape than the output");
    DTYPE(call->inputs[0].dtype == dtype, "the incoming gradient has another dtype");
    if (by_rows) {
        SHAPE(weft_shape_equal(k->shape, q->shape) && weft_shape_equal(v->shape, q->shape) &&
                  wefti_operand_elements(&call->outputs[0]) == 3 * wefti_operand_elements(q),
              "gradients by rows are of q, k and v of one shape");
        DTYPE(call->outputs[0].dtype == dtype, "the gradients have another dtype than their inputs");
    }
    for (int32_t i = 0; i < 3 && !by_rows; i++) {
        SHAPE(weft_shape_equal(call->outputs[i].shape, q[i].shape), "a gradient has another shape than its input");
        DTYPE(call->outputs[i].dtype == dtype, "a gradient has another dtype than its input");
    }
    return WEFT_OK;
}

static weft_status check_update(const wefti_call *call) {
    const wefti_operand *y = &call->outputs[0], *hyper = &call->inputs[2];
    const wefti_rule    *rule = call->attrs->update.rule;
    weft_dtype           wide = y->dtype == WEFT_BF16 ? WEFT_F32 : y->dtype;
    if (wide != WEFT_F32 && wide != WEFT_F64)
        return refuse(WEFT_E_UNSUPPORTED, call, "solver rules work on f32, f64 and bf16; keep a master copy in f32");
    if (y->dtype == WEFT_BF16 && call->attrs->update.group > 0) return refuse(WEFT_E_UNSUPPORTED, call, "rows shrink in f32 and f64");
    SHAPE(rule && rule->n_states <= WEFTI_RULE_STATES && call->n_inputs == 3 + rule->n_states,
          "the rule has other states");
    SHAPE(hyper->dtype == WEFT_F64 && wefti_operand_elements(hyper) == WEFTI_HYPER_COUNT &&
              wefti_operand_is_contiguous(hyper),
          "hyper is not the f64 vector of hyperparameters");
    SHAPE(weft_shape_equal(call->inputs[0].shape, y->shape) && broadcasts(call->inputs[1].shape, y->shape),
          "parameter and gradient differ in shape");
    DTYPE(call->inputs[0].dtype == y->dtype && call->inputs[1].dtype == wide,
          "parameter and gradient differ in dtype");
    for (int32_t i = 3; i < call->n_inputs; i++)
        SHAPE(call->inputs[i].dtype == wide && wefti_operand_is_contiguous(&call->inputs[i]) &&
                  wefti_operand_elements(&call->inputs[i]) == wefti_operand_elements(y),
              "a state differs from the parameter");
    return WEFT_OK;
}

static weft_status check_custom(const wefti_call *call) {
    const struct wefti_custom *custom = call->attrs->custom.custom;
    SHAPE(custom, "there is no custom op");
    if (call->op == WEFT_OP_CUSTOM) {
        SHAPE(call->n_inputs == custom->op.n_inputs && call->n_outputs == custom->op.n_outputs,
              "the op has other inputs");
        if (!custom->op.forward) return refuse(WEFT_E_UNSUPPORTED, call, "the custom op has no forward function");
    } else {
        SHAPE(call->n_inputs == custom->op.n_inputs + 2 * custom->op.n_outputs &&
                  call->n_outputs == custom->op.n_inputs,
              "the op has other inputs");
        if (!custom->op.backward) return refuse(WEFT_E_UNSUPPORTED, call, "the custom op has no backward function");
    }
    return WEFT_OK;
}

static weft_status check_assign(const wefti_call *call) {
    const wefti_operand *x = &call->inputs[1], *y = &call->outputs[0];
    SHAPE(broadcasts(x->shape, y->shape) && weft_shape_equal(call->inputs[0].shape, y->shape),
          "the value has another shape");
    DTYPE(x->dtype == y->dtype && call->inputs[0].dtype == y->dtype, "variable and value differ in dtype");
    return WEFT_OK;
}

static weft_status check_random(const wefti_call *call) {
    DTYPE(weft_dtype_is_float(call->outputs[0].dtype) && is_index(call->inputs[0].dtype),
          "it draws floats by an integer step");
    SHAPE(wefti_operand_elements(&call->inputs[0]) == 1, "the step is not one number");
    return check_window(call, &call->attrs->random.window, call->outputs[0].shape);
}

/* ENCODE and DECODE: `whole` is the f32 side, `rows` the encoded one. */
static weft_status check_codec(const wefti_call *call) {
    bool                         encodes = call->op == WEFT_OP_ENCODE;
    const wefti_operand         *whole = encodes ? &call->inputs[0] : &call->outputs[0], *rows = encodes ? &call->outputs[0] : &call->inputs[0];
    const wefti_codec_functions *codec = wefti_codec_of(call->attrs->codec.codec)->functions;
    int64_t                      part = call->attrs->codec.part, kept = call->attrs->codec.kept, elements = wefti_operand_elements(whole);
    DTYPE(whole->dtype == WEFT_F32 && rows->dtype == WEFT_U8, "codecs are between f32 and u8");
    if (!codec || part < 1 || kept < 0 || kept > part || (codec->grain == 0) != (kept > 0))
        return refuse(WEFT_E_INVALID, call, "there is no such codec");
    SHAPE(rows->shape.rank == 2 && rows->shape.dim[1] == codec->bytes(part, kept), "the encoded side has rows of another size");
    int64_t parts = !encodes && call->attrs->codec.sum ? 1 : rows->shape.dim[0];
    SHAPE(elements / part + (elements % part != 0) <= parts, "there are fewer parts than elements");
    return WEFT_OK;
}

static bool is_fp8(int32_t form) { return form == WEFTI_FP8_E4M3 || form == WEFTI_FP8_E5M2; }
static bool is_narrow_float(weft_dtype dtype) { return dtype == WEFT_F32 || dtype == WEFT_BF16 || dtype == WEFT_F16; }

static weft_status check_fp8_cast(const wefti_call *call) {
    const wefti_operand *x = &call->inputs[0], *rows = &call->outputs[0], *columns = &call->outputs[1], *scale = &call->outputs[2];
    int32_t              layouts = call->attrs->fp8.layouts;
    DTYPE(is_narrow_float(x->dtype) && rows->dtype == WEFT_U8 && columns->dtype == WEFT_U8 && scale->dtype == WEFT_F32, "the op has no such dtypes");
    if (!is_fp8(call->attrs->fp8.form[0]) || layouts < 1 || layouts > (WEFTI_FP8_ROWS | WEFTI_FP8_COLUMNS))
        return refuse(WEFT_E_INVALID, call, "there is no such form or layout");
    SHAPE(x->shape.rank >= 1 && rows->shape.rank == 2 && columns->shape.rank == 2 && scale->shape.rank == 0, "ranks do not fit");
    int64_t c = x->shape.dim[x->shape.rank - 1], r = c > 0 ? wefti_operand_elements(x) / c : 0;
    SHAPE(rows->shape.dim[0] == (layouts & WEFTI_FP8_ROWS ? r : 0) && rows->shape.dim[1] == c, "the rows have another size");
    SHAPE(columns->shape.dim[0] == (layouts & WEFTI_FP8_COLUMNS ? c : 0) && columns->shape.dim[1] == r, "the columns have another size");
    return WEFT_OK;
}

static weft_status check_fp8_matmul(const wefti_call *call) {
    const wefti_operand *a = &call->inputs[0], *b = &call->inputs[1], *y = &call->outputs[0];
    DTYPE(a->dtype == WEFT_U8 && b->dtype == WEFT_U8 && call->inputs[2].dtype == WEFT_F32 && call->inputs[3].dtype == WEFT_F32 &&
          is_narrow_float(y->dtype), "the op has no such dtypes");
    if (!is_fp8(call->attrs->fp8.form[0]) || !is_fp8(call->attrs->fp8.form[1])) return refuse(WEFT_E_INVALID, call, "there is no such form");
    SHAPE(a->shape.rank == 2 && b->shape.rank == 2 && y->shape.rank >= 2, "an operand is no matrix");
    SHAPE(a->shape.dim[1] == b->shape.dim[1], "inner sizes differ");
    int64_t n = y->shape.dim[y->shape.rank - 1], elements;
    SHAPE(n == b->shape.dim[0] && wefti_mul_i64(a->shape.dim[0], n, &elements) && elements == wefti_operand_elements(y), "the output has another size");
    SHAPE(wefti_operand_elements(&call->inputs[2]) == 1 && wefti_operand_elements(&call->inputs[3]) == 1, "a scale is not one number");
    return WEFT_OK;
}

/* How many the call must have; gradients by rows are one. */
static int32_t outputs_of(const wefti_call *call, const wefti_op_info *info) {
    return call->op == WEFT_OP_ATTENTION_BACKWARD && call->attrs && call->attrs->attention.by_rows ? 1 : info->outputs;
}

/* All outputs of one layout: contiguous, or what the contract allows with channels last. */
static bool outputs_lie_well(const wefti_call *call) {
    bool planes = wefti_ops[call->op].family == WEFTI_CONV || wefti_ops[call->op].family == WEFTI_POOL, contiguous = true, last = planes;
    for (int32_t i = 0; i < call->n_outputs; i++) {
        contiguous = contiguous && wefti_operand_is_contiguous(&call->outputs[i]);
        last = last && wefti_operand_has_channels_last(&call->outputs[i]);
    }
    return contiguous || last;
}

static weft_status check_operands(const wefti_call *call) {
    const wefti_op_info *info = &wefti_ops[call->op];
    if (call->n_inputs < info->inputs_min || (info->inputs_max != WEFTI_ANY && call->n_inputs > info->inputs_max) ||
        (info->outputs == WEFTI_ANY ? call->n_outputs < 1 : call->n_outputs != outputs_of(call, info)))
        return refuse(WEFT_E_INVALID, call, "wrong number of inputs or outputs");
    if (!call->attrs) return refuse(WEFT_E_INVALID, call, "there are no attributes");
    for (int32_t i = 0; i < call->n_inputs + call->n_outputs; i++) {
        const wefti_operand *operand = i < call->n_inputs ? &call->inputs[i] : &call->outputs[i - call->n_inputs];
        DTYPE(weft_dtype_bytes(operand->dtype), "an operand has no known dtype");
        SHAPE(wefti_operand_elements(operand) >= 0, "an operand's shape is not valid");
    }
    return outputs_lie_well(call) ? WEFT_OK : refuse(WEFT_E_INVALID, call, "an output is not contiguous");
}

/* Leaves with memory, MODE and communication never reach a device. */
bool wefti_op_is_computed(weft_op op) {
    switch (wefti_ops[op].family) {
    case WEFTI_LEAF: return op == WEFT_OP_FULL || op == WEFT_OP_ARANGE || op == WEFT_OP_RANDOM;
    case WEFTI_PLAN: return op == WEFT_OP_FUSED;
    case WEFTI_COMM: return false;
    default: return true;
    }
}

weft_status wefti_call_check(const wefti_call *call) {
    if ((unsigned)call->op >= WEFT_OP_COUNT) return wefti_fail(WEFT_E_INVALID, "there is no operation %d", (int)call->op);
    if (!wefti_op_is_computed(call->op)) return refuse(WEFT_E_UNSUPPORTED, call, "not something that a device computes");
    WEFTI_TRY(check_operands(call));
    switch (call->op) {
    case WEFT_OP_RANDOM: return check_random(call);
    case WEFT_OP_FUSED: return check_fused(call);
    case WEFT_OP_FUSED_MATMUL: return check_fused_matmul(call);
    case WEFT_OP_MEAN_BACKWARD: return check_mean_backward(call);
    case WEFT_OP_CONCAT: return check_concat(call);
    case WEFT_OP_PAD: return check_pad(call);
    case WEFT_OP_GATHER: return check_pick(call, call->outputs[0].shape);
    case WEFT_OP_SCATTER_ADD: return check_pick(call, call->inputs[2].shape);
    case WEFT_OP_OCCURRENCE: return check_occurrence(call);
    case WEFT_OP_EXPERT_MATMUL:
    case WEFT_OP_EXPERT_MATMUL_BACKWARD_WEIGHT: return check_expert_matmul(call);
    case WEFT_OP_ENCODE:
    case WEFT_OP_DECODE: return check_codec(call);
    case WEFT_OP_FP8_CAST: return check_fp8_cast(call);
    case WEFT_OP_FP8_MATMUL: return check_fp8_matmul(call);
    case WEFT_OP_ASSIGN: return check_assign(call);
    case WEFT_OP_UPDATE: return check_update(call);
    default: break;
    }
    switch (wefti_ops[call->op].family) {
    case WEFTI_UNARY:
    case WEFTI_BINARY:
    case WEFTI_TERNARY: return check_elementwise(call);
    case WEFTI_REDUCE: return check_reduce(call);
    case WEFTI_VIEW: return check_view(call);
    case WEFTI_MATMUL: return check_matmul(call);
    case WEFTI_CONV: return check_conv(call);
    case WEFTI_POOL: return check_pool(call);
    case WEFTI_ROWS: return check_rows(call);
    case WEFTI_LOSS: return check_loss(call);
    case WEFTI_ATTENTION: return check_attention(call);
    case WEFTI_CUSTOM: return check_custom(call);
    default: return WEFT_OK; /* FULL and ARANGE */
    }
}

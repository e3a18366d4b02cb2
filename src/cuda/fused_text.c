/* The text of a fused program's kernel.
 *
 * A thread computes LANES neighbours of the row-major space. An input that lies as the space does is read in accesses of 16 bytes, one
 * that repeats along the last axis or everywhere once, any other element by element from its coordinates. Every instruction is the function of
 * scalars.def that the interpreter calls, on a number of its own, so bits are the same. The text follows from the program's structure and
 * from how inputs lie; shapes, strides, addresses and attributes are arguments (words of 64 bits), so layers that differ in these share a
 * kernel.
 * Where the program has a sum over everything, or over leading axes, threads go through the elements as the kernels of reduce.cu do, and
 * add up in the same order, so that the sum has the bits that it would have apart. Threads that go down columns read what is the same in all
 * rows once, and have several rows on their way at a time; so programs that read such inputs go down columns without a sum, too. */
#include "core/tensor/operand.h"

#include <math.h>
#include <string.h>

#include "cuda/fused_writer.h"

enum { BLOCK = WEFTI_FUSED_BLOCK, MOST_LANES = WEFTI_FUSED_LANES };
enum {
    AHEAD_BYTES = 96, /* that a thread going down columns has on their way: a fifth of the registers that it may have */
    MOST_AHEAD = 4,
    ROWS_EACH = 8,    /* that a thread goes through where there is no sum */
    LEAST_WIDE = 8    /* threads side by side, for a whole cache line */
};

static uint64_t bits_of(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static int32_t add_word(writer *w, uint64_t word) {
    w->words[w->n_words] = word;
    return w->n_words++;
}

/* --- how operands lie --- */

static void look_at_views(writer *w) {
    wefti_operand        index[WEFTI_FUSED_MAX], whole = {.shape = w->fused->space};
    const wefti_operand *operands[MOST_VIEWS];
    int32_t              n = 0;
    for (int32_t i = 0; i < w->call->n_inputs; i++) operands[n++] = &w->call->inputs[i];
    for (int32_t j = 0; j < w->fused->n_instructions; j++) {
        const wefti_fused_instruction *it = &w->fused->instruction[j];
        if (it->op != WEFT_OP_DROPOUT) continue;
        const wefti_window *window = &it->attrs.dropout.window;
        weft_shape          global = w->fused->space;
        index[j] = (wefti_operand){.shape = w->fused->space};
        if (window->split) global.dim[window->axis] = window->global;
        wefti_contiguous_strides(global, index[j].stride);
        w->base[j] = window->split ? window->begin * index[j].stride[window->axis] : 0;
        operands[n++] = &index[j];
    }
    wefti_contiguous_strides(whole.shape, whole.stride);
    operands[n++] = &whole;
    wefti_cuda_views(w->fused->space, operands, n, w->view);
    w->n_views = n;
}

/* 16 bytes of the narrowest operand, but for masks. */
static int32_t lanes_of(const wefti_call *call) {
    size_t narrowest = 8;
    for (int32_t i = 0; i < call->n_inputs + call->n_outputs; i++) {
        const wefti_operand *x = i < call->n_inputs ? &call->inputs[i] : &call->outputs[i - call->n_inputs];
        size_t               bytes = weft_dtype_bytes(x->dtype);
        if (bytes > 1 && bytes < narrowest) narrowest = bytes;
    }
    return (int32_t)wefti_min_i64(16 / (int64_t)narrowest, MOST_LANES);
}

/* Whether the axes that are reduced away all come before those that are kept. */
static bool is_leading(weft_shape space, uint32_t axes) {
    bool kept = false;
    for (int32_t axis = 0; axis < space.rank; axis++) {
        if (space.dim[axis] == 1) continue;
        if (!(axes >> axis & 1)) kept = true;
        else if (kept) return false;
    }
    return true;
}

/* Rows are normalised by a warp each where 32 elements a thread are enough, else by the block; where rows are summed, blocks stay and go on,
 * and each leaves a partial result. */
static wefti_fused_loop rows_loop(const wefti_fused *fused, int32_t lanes) {
    int32_t          rank = fused->space.rank, axes = fused->instruction[wefti_fused_rows(fused)].attrs.rows.axes;
    wefti_fused_loop loop = {.walk = WEFTI_FUSED_NORMALIZED, .axes = (1u << (rank - axes)) - 1, .lanes = lanes};
    int64_t          length = 1;
    for (int32_t axis = rank - axes; axis < rank; axis++) length *= fused->space.dim[axis];
    loop.how.kept = length;
    loop.how.reduced = weft_shape_elements(fused->space) / length;
    loop.team = length <= 32 * WEFTI_FUSED_HELD ? 32 : length <= 128 * WEFTI_FUSED_HELD ? 128 : 256;
    loop.threads = loop.team < 128 ? 128 : loop.team;
    int64_t each = loop.threads / loop.team;
    loop.blocks = (loop.how.reduced + each - 1) / each;
    for (int32_t k = 0; k < fused->n_outputs; k++) {
        const wefti_fused_output *out = &fused->output[k];
        if ((out->reduce == WEFT_OP_SUM || out->reduce == WEFT_OP_MEAN) && loop.blocks > WEFTI_FUSED_STAYING) loop.blocks = WEFTI_FUSED_STAYING;
    }
    loop.how.pieces = loop.blocks;
    return loop;
}

bool wefti_cuda_fused_takes(const wefti_call *call, const wefti_fused *fused) {
    int32_t rows = wefti_fused_rows(fused);
    if (rows < 0) return true;
    wefti_fused_loop loop = wefti_cuda_fused_loop(call, fused);
    if (fused->instruction[rows].dtype == WEFT_F64 || loop.how.kept % loop.lanes || loop.how.kept > 256 * WEFTI_FUSED_HELD) return false;
    if (loop.how.kept < 32 * loop.lanes / 2) return false; /* most threads of a warp would have nothing to do */
    for (int32_t k = 0; k < fused->n_outputs; k++) { /* sums over all rows, in float */
        const wefti_fused_output *out = &fused->output[k];
        weft_dtype                dtype = fused->instruction[out->instruction].dtype;
        if (out->reduce < 0 || out->reduce == WEFT_OP_NORMALIZE) continue;
        if (!wefti_cuda_fused_sums(&loop, fused, k) || !weft_dtype_is_float(dtype) || dtype == WEFT_F64) return false;
    }
    return true;
}

/* Blocks of threads that go down columns. */
static int64_t column_blocks(const wefti_cuda_reduction *how, int32_t lanes) {
    int64_t wide = (int64_t)BLOCK / how->team * lanes;
    return (how->kept + wide - 1) / wide * how->pieces;
}

/* Elements of the trailing axes, along which the input lies densely, if it is the same along all axes before; else 0. */
static int64_t same_in_rows(const wefti_operand *x, weft_shape space) {
    int64_t kept = 1;
    int32_t axis = space.rank - 1;
    for (; axis >= 0 && (space.dim[axis] == 1 || x->stride[axis] == kept); axis--) kept *= space.dim[axis];
    for (; axis >= 0; axis--)
        if (space.dim[axis] != 1 && x->stride[axis] != 0) return 0;
    return kept;
}

/* Down the columns of an input that is the same in all rows; flat where there is none, or its rows do not divide well. */
static void go_down(const wefti_call *call, const wefti_fused *fused, wefti_fused_loop *loop) {
    int64_t elements = weft_shape_elements(fused->space), kept = 0, wide = BLOCK;
    for (int32_t i = 0; i < call->n_inputs && (kept <= 1 || kept == elements); i++) kept = same_in_rows(&call->inputs[i], fused->space);
    if (kept <= 1 || kept == elements || kept % loop->lanes != 0) return;
    while (wide >= LEAST_WIDE && kept / loop->lanes % wide != 0) wide /= 2;
    if (wide < LEAST_WIDE || elements / kept < ROWS_EACH) return;
    wefti_cuda_reduction how = {.team = (int32_t)(BLOCK / wide), .kept = kept, .reduced = elements / kept};
    how.per_piece = (int64_t)how.team * ROWS_EACH;
    how.pieces = (how.reduced + how.per_piece - 1) / how.per_piece;
    *loop = (wefti_fused_loop){WEFTI_FUSED_COLUMNS, how, UINT32_MAX, loop->lanes, column_blocks(&how, loop->lanes), .threads = BLOCK};
}

/* The first sum that is made in an order that a kernel can go by. */
wefti_fused_loop wefti_cuda_fused_loop(const wefti_call *call, const wefti_fused *fused) {
    wefti_fused_loop loop = {.walk = WEFTI_FUSED_FLAT, .lanes = lanes_of(call)};
    int64_t          part = (int64_t)BLOCK * loop.lanes;
    if (wefti_fused_rows(fused) >= 0) return rows_loop(fused, loop.lanes);
    loop.threads = BLOCK;
    loop.blocks = (weft_shape_elements(fused->space) + part - 1) / part;
    for (int32_t k = 0; k < fused->n_outputs; k++) {
        const wefti_fused_output *out = &fused->output[k];
        if (out->reduce != WEFT_OP_SUM && out->reduce != WEFT_OP_MEAN) continue;
        wefti_cuda_reduction how = wefti_cuda_reduction_of(fused->space, out->axes);
        if (how.by_rows && how.kept == 1 && how.team == BLOCK) {
            return (wefti_fused_loop){WEFTI_FUSED_ROWS, how, out->axes, WEFTI_REDUCE_GROUP, how.pieces, .threads = BLOCK};
        }
        if (!how.by_rows && how.team > 1 && how.kept % loop.lanes == 0 && is_leading(fused->space, out->axes))
            return (wefti_fused_loop){WEFTI_FUSED_COLUMNS, how, out->axes, loop.lanes, column_blocks(&how, loop.lanes), .threads = BLOCK};
    }
    go_down(call, fused, &loop);
    return loop;
}

static bool lies_as(const wefti_cuda_view_of *a, const wefti_cuda_view_of *b) {
    for (int32_t axis = 0; axis < a->rank; axis++)
        if (a->stride[axis] != b->stride[axis]) return false;
    return true;
}

/* How a view is read; `bytes` of an element and the alignment of element 0 are those of the operand. */
static input look_at(const writer *w, const wefti_cuda_view_of *view, int64_t bytes, int64_t offset_bytes) {
    const wefti_cuda_view_of *whole = &w->view[w->n_views - 1];
    int32_t                   last = view->rank - 1;
    int64_t                   unit = wefti_min_i64(16, bytes * w->lanes), reach = 0;
    bool                      zero = true, aligned = offset_bytes % unit == 0, rows_aligned = aligned;
    for (int32_t axis = 0; axis < view->rank; axis++) {
        zero = zero && view->stride[axis] == 0;
        reach += (view->dim[axis] - 1) * view->stride[axis];
        if (axis < last && view->stride[axis] * bytes % unit) rows_aligned = false;
    }
    input in = {.how = EACH, .narrow = reach < INT64_C(0x7fffffff)};
    if (zero) in.how = ONE;
    else if (lies_as(view, whole)) in.how = FLAT, in.packed = aligned;
    else if (w->in_rows && view->stride[last] == 0) in.how = SPLAT;
    else if (w->in_rows && view->stride[last] == 1 && rows_aligned) in.how = ROW, in.packed = true;
    return in;
}

static void add_strides(writer *w, input *in, const wefti_cuda_view_of *view) {
    in->stride_word = w->n_words;
    if (in->how == ONE || in->how == FLAT || in->held) return;
    w->walks = true;
    for (int32_t axis = 0; axis < view->rank; axis++) add_word(w, (uint64_t)view->stride[axis]);
}

/* Whether threads that go down columns read the input before the loop, or some rows at a time. */
static void look_down(const writer *w, int32_t i, input *in) {
    const wefti_cuda_view_of *view = &w->view[i], *whole = &w->view[w->n_views - 1];
    int32_t                   last = view->rank - 1;
    if (w->loop.walk != WEFTI_FUSED_COLUMNS || !wefti_fused_is_read(w, i)) return;
    in->ahead = in->how == FLAT && in->packed && w->full;
    in->held = in->how == ROW && whole->dim[last] == w->loop.how.kept;
    for (int32_t axis = 0; axis < last; axis++) in->held = in->held && view->stride[axis] == 0;
}

/* Looks at all operands, and lays the arguments out. */
static void look(writer *w) {
    look_at_views(w);
    const wefti_cuda_view_of *whole = &w->view[w->n_views - 1];
    int64_t                   last = whole->dim[whole->rank - 1];
    w->elements = weft_shape_elements(w->fused->space);
    w->lanes = w->loop.lanes;
    w->small = w->elements + (int64_t)BLOCK * MOST_LANES < INT64_C(0x7fffffff);
    w->in_rows = whole->rank > 1 && last % w->lanes == 0;
    w->full = w->elements % w->lanes == 0;
    add_word(w, (uint64_t)w->elements);
    w->loop_word = w->n_words;
    if (w->loop.walk == WEFTI_FUSED_ROWS || w->loop.walk == WEFTI_FUSED_COLUMNS) {
        const wefti_cuda_reduction *how = &w->loop.how;
        add_word(w, (uint64_t)how->kept);
        add_word(w, (uint64_t)how->reduced);
        add_word(w, (uint64_t)how->per_piece);
        add_word(w, (uint64_t)(w->loop.blocks / wefti_max_i64(1, how->pieces))); /* by columns: blocks side by side */
    }
    int32_t n = 0;
    for (int32_t i = 0; i < w->call->n_inputs; i++, n++) {
        const wefti_operand *x = &w->call->inputs[i];
        w->inputs[i] = look_at(w, &w->view[n], (int64_t)weft_dtype_bytes(x->dtype), x->offset_bytes);
        look_down(w, i, &w->inputs[i]);
        w->inputs[i].word = add_word(w, 0); /* one after another */
    }
    w->output_word = w->n_words;
    for (int32_t k = 0; k < w->call->n_outputs; k++) add_word(w, 0);
    for (int32_t i = 0; i < w->call->n_inputs; i++) add_strides(w, &w->inputs[i], &w->view[i]);
    for (int32_t j = 0; j < w->fused->n_instructions; j++) {
        const wefti_fused_instruction *it = &w->fused->instruction[j];
        w->attribute_word[j] = w->n_words;
        if (it->op == WEFT_OP_CLAMP) {
            add_word(w, bits_of(it->attrs.clamp.lo));
            add_word(w, bits_of(it->attrs.clamp.hi));
        } else if (it->op == WEFT_OP_DROPOUT) {
            add_word(w, it->attrs.dropout.key);
            add_word(w, (uint64_t)ceil(it->attrs.dropout.p * 16777216));
            add_word(w, bits_of(1 / (1 - it->attrs.dropout.p)));
            add_word(w, (uint64_t)w->base[j]);
            w->index[j] = look_at(w, &w->view[n], 1, 1);
            if (w->index[j].how == ROW || w->index[j].how == SPLAT) w->index[j].how = EACH;
            w->index[j].narrow = false;
            add_strides(w, &w->index[j], &w->view[n++]);
        }
    }
    w->dim_word = w->n_words;
    for (int32_t axis = 1; axis < whole->rank && w->walks; axis++) {
        int64_t  by = whole->dim[axis];
        uint32_t shift = 0;
        while (shift < 31 && (INT64_C(1) << shift) < by) shift++;
        uint64_t multiplier = w->small ? (((UINT64_C(1) << shift) - (uint64_t)by) << 32) / (uint64_t)by + 1 : 0;
        add_word(w, w->small ? (uint64_t)by | multiplier << 32 : (uint64_t)by);
        add_word(w, shift);
    }
}

/* --- the text --- */

/* Totals of what is summed on the way: one, or one a lane. */
static void write_totals(writer *w) {
    const char *room = w->loop.walk == WEFTI_FUSED_COLUMNS ? "[LANES]" : "";
    for (int32_t k = 0; k < w->fused->n_outputs; k++)
        if (sums(w, k)) ADD("%s t%d%s%s;\n", total_type(output_dtype(w, k)), (int)k, room, *room ? " = {}" : " = 0");
}

static void write_pointer(writer *w, int32_t i) {
    const char *type = memory_type(w->call->inputs[i].dtype);
    ADD("const %s *p%d = (const %s *)a.w[%d];\n", type, (int)i, type, (int)w->inputs[i].word);
}

/* Down columns: what is the same in all rows is read, and then rows, some at a time. */
static void write_columns(writer *w) {
    int     word = (int)w->loop_word, team = (int)w->loop.how.team, wide = BLOCK / team;
    int64_t bytes = 0, ahead = MOST_AHEAD;
    for (int32_t i = 0; i < w->call->n_inputs; i++)
        if (w->inputs[i].ahead) bytes += (int64_t)weft_dtype_bytes(w->call->inputs[i].dtype) * w->lanes;
    while (ahead > 1 && ahead * bytes > AHEAD_BYTES) ahead /= 2;
    ADD("enum { TEAM = %d, WIDE = %d, AHEAD = %d };\n"
        "const int64_t kept = (int64_t)a.w[%d], across = (int64_t)a.w[%d], piece = blockIdx.x / across;\n"
        "const int x = (int)threadIdx.x %% WIDE, y = (int)threadIdx.x / WIDE;\n"
        "const int64_t column = (((int64_t)blockIdx.x - piece * across) * WIDE + x) * LANES;\n"
        "const int64_t begin = piece * (int64_t)a.w[%d], past = begin + (int64_t)a.w[%d];\n"
        "const int64_t stop = past < (int64_t)a.w[%d] ? past : (int64_t)a.w[%d];\n"
        "if (column < kept) {\n",
        team, wide, (int)ahead, word, word + 3, word + 2, word + 2, word + 1, word + 1);
    for (int32_t i = 0; i < w->call->n_inputs; i++) {
        const char *type = memory_type(w->call->inputs[i].dtype);
        if (!w->inputs[i].held && !w->inputs[i].ahead) continue;
        write_pointer(w, i);
        if (w->inputs[i].held) ADD("const pack<%s> x%d = *(const pack<%s> *)(p%d + column);\n", type, (int)i, type, (int)i);
    }
    ADD("for (int64_t first = begin + y; first < stop; first += TEAM * AHEAD) {\n");
    for (int32_t i = 0; i < w->call->n_inputs; i++)
        if (w->inputs[i].ahead) ADD("pack<%s> b%d[AHEAD];\n", memory_type(w->call->inputs[i].dtype), (int)i);
    ADD("_Pragma(\"unroll\") for (int s = 0; s < AHEAD; s++) if (first + s * TEAM < stop) {\n"
        "const index_t i = (index_t)((first + s * TEAM) * kept + column);\n(void)i;\n");
    for (int32_t i = 0; i < w->call->n_inputs; i++)
        if (w->inputs[i].ahead) ADD("b%d[s] = *(const pack<%s> *)(p%d + i);\n", (int)i, memory_type(w->call->inputs[i].dtype), (int)i);
    ADD("}\n_Pragma(\"unroll\") for (int s = 0; s < AHEAD; s++) if (first + s * TEAM < stop) {\n"
        "const index_t i = (index_t)((first + s * TEAM) * kept + column);\n");
}

/* The beginning of a kernel for several programs of this text, each with its arguments and some of the blocks. */
static void write_many(writer *w) {
    ADD("struct many { uint32_t first[%d]; arguments of[%d]; };\n"
        "#ifdef __CUDACC__\n#define IN_PLACE const __grid_constant__\n#else\n#define IN_PLACE const\n#endif\n"
        "extern \"C\" __global__ void __launch_bounds__(%d) weft_fused(IN_PLACE many m) {\n"
        "int at = 0;\nwhile (blockIdx.x >= m.first[at + 1]) at++;\n"
        "const arguments &a = m.of[at];\nconst unsigned block = blockIdx.x - m.first[at];\n",
        (int)w->many + 1, (int)w->many, BLOCK);
}

static void write_head(writer *w) {
    int  word = (int)w->loop_word;
    bool columns = w->loop.walk == WEFTI_FUSED_COLUMNS;
    ADD("#include \"weft_scalars.h\"\n"
        "typedef %s index_t;\n"
        "enum { LANES = %d };\n"
        "template <typename T> struct alignas(sizeof(T) * LANES < 16 ? sizeof(T) * LANES : 16) pack { T e[LANES]; };\n"
        "struct arguments { uint64_t w[%d]; };\n",
        w->small ? "uint32_t" : "int64_t", (int)w->lanes, (int)w->n_words);
    if (w->many) write_many(w);
    else
        ADD("extern \"C\" __global__ void __launch_bounds__(%d%s) weft_fused(const arguments a) {\n", BLOCK,
            columns ? ", 4" : "");
    ADD("const index_t n = (index_t)a.w[0];\n");
    write_totals(w);
    switch (w->loop.walk) {
    case WEFTI_FUSED_FLAT:
        ADD("const index_t i = ((index_t)%s * %d + threadIdx.x) * LANES;\nif (i >= n) return;\n{\n", w->many ? "block" : "blockIdx.x", BLOCK);
        break;
    case WEFTI_FUSED_ROWS:
        ADD("const int64_t begin = (int64_t)blockIdx.x * (int64_t)a.w[%d], past = begin + (int64_t)a.w[%d], stop = past < (int64_t)n ? past : (int64_t)n;\n"
            "for (int64_t at = begin + (int64_t)threadIdx.x * LANES; at < stop; at += %d * LANES) {\nconst index_t i = (index_t)at;\n",
            word + 2, word + 2, BLOCK);
        break;
    default: write_columns(w);
    }
    ADD("const bool full = %s;\n", w->full ? "true" : "i + LANES <= n");
}

/* What follows the loop: threads' totals are joined as in reduce.cu, and the first of them writes partial results. */
static void write_tail(writer *w) {
    for (int32_t k = 0; k < w->fused->n_outputs; k++) {
        if (!sums(w, k)) continue;
        const char *type = total_type(output_dtype(w, k));
        int         word = (int)w->output_word + k;
        if (w->loop.walk == WEFTI_FUSED_ROWS)
            ADD("for (int width = 16; width > 0; width /= 2) t%d = s_plus(t%d, __shfl_down_sync(0xffffffffu, t%d, width));\n"
                "__shared__ %s parts%d[%d];\n"
                "if (threadIdx.x %% 32 == 0) parts%d[threadIdx.x / 32] = t%d;\n"
                "__syncthreads();\n"
                "if (threadIdx.x == 0) { for (int warp = 1; warp < %d; warp++) t%d = s_plus(t%d, parts%d[warp]); ((%s *)a.w[%d])[blockIdx.x] = t%d; }\n",
                k, k, k, type, k, BLOCK / 32, k, k, BLOCK / 32, k, k, k, type, word, k);
        else
            ADD("__shared__ %s parts%d[TEAM][WIDE * LANES];\n"
                "for (int v = 0; v < LANES; v++) parts%d[y][x * LANES + v] = t%d[v];\n"
                "__syncthreads();\n"
                "if (y == 0 && column < kept) for (int v = 0; v < LANES; v++) { %s s = t%d[v];\n"
                "for (int t = 1; t < TEAM; t++) s = s_plus(s, parts%d[t][x * LANES + v]); ((%s *)a.w[%d])[piece * kept + column + v] = s; }\n",
                type, k, k, k, type, k, k, type, word);
    }
}

/* Adds the lanes' numbers z to the totals. */
static void write_sums(writer *w) {
    for (int32_t k = 0; k < w->fused->n_outputs; k++) {
        if (!sums(w, k)) continue;
        if (w->loop.walk == WEFTI_FUSED_ROWS)
            ADD("_Pragma(\"unroll\") for (int width = 1; width < LANES; width *= 2) _Pragma(\"unroll\") for (int v = 0; v < LANES; v += 2 * width) "
                "z%d[v] = s_plus(z%d[v], z%d[v + width]);\nt%d = s_plus(t%d, z%d[0]);\n", k, k, k, k, k, k);
        else ADD("_Pragma(\"unroll\") for (int v = 0; v < LANES; v++) t%d[v] = s_plus(t%d[v], z%d[v]);\n", k, k, k);
    }
}

/* Coordinates c0, c1, ... of element `from`. */
static void write_coordinates(writer *w, const char *from) {
    int32_t rank = w->view[w->n_views - 1].rank;
    ADD("index_t rest = %s;\n", from);
    for (int32_t axis = rank - 1; axis > 0; axis--) {
        int32_t word = w->dim_word + 2 * (axis - 1);
        if (w->small)
            ADD("const index_t q%d = s_divide(rest, a.w[%d], a.w[%d]), c%d = rest - q%d * (uint32_t)a.w[%d]; rest = q%d;\n", (int)axis, (int)word,
                (int)word + 1, (int)axis, (int)axis, (int)word, (int)axis);
        else
            ADD("const index_t q%d = rest / (int64_t)a.w[%d], c%d = rest - q%d * (int64_t)a.w[%d]; rest = q%d;\n", (int)axis, (int)word, (int)axis,
                (int)axis, (int)word, (int)axis);
    }
    ADD("const index_t c0 = rest;\n");
}
static void write_offset(writer *w, const input *in) {
    const char *type = in->narrow ? "uint32_t" : "int64_t";
    for (int32_t axis = 0; axis < w->view[w->n_views - 1].rank; axis++)
        ADD("%s(%s)c%d * (%s)a.w[%d]", axis ? " + " : "", type, (int)axis, type, (int)(in->stride_word + axis));
}

bool wefti_fused_is_read(const writer *w, int32_t source) {
    for (int32_t j = 0; j < w->fused->n_instructions; j++)
        for (int32_t k = 0; k < wefti_ops[w->fused->instruction[j].op].inputs_max; k++)
            if (w->fused->instruction[j].source[k] == source) return true;
    return false;
}

static void write_load(writer *w, int32_t i) {
    const input *in = &w->inputs[i];
    weft_dtype   dtype = w->call->inputs[i].dtype;
    const char  *type = memory_type(dtype);
    if (in->held) return;
    if (in->ahead) {
        ADD("const pack<%s> x%d = b%d[s];\n", type, (int)i, (int)i);
        return;
    }
    write_pointer(w, i);
    switch (in->how) {
    case ONE: ADD("const %s x%d = %s(p%d[0]);\n", wide_type(dtype), (int)i, widening(dtype), (int)i); return;
    case SPLAT:
        ADD("const %s x%d = %s(p%d[", wide_type(dtype), (int)i, widening(dtype), (int)i);
        write_offset(w, in);
        ADD("]);\n");
        return;
    case ROW:
        ADD("const pack<%s> x%d = *(const pack<%s> *)(p%d + (", type, (int)i, type, (int)i);
        write_offset(w, in);
        ADD("));\n");
        return;
    case FLAT:
        ADD("pack<%s> x%d;\n", type, (int)i);
        if (in->packed) ADD("if (full) x%d = *(const pack<%s> *)(p%d + i); else\n", (int)i, type, (int)i);
        ADD("_Pragma(\"unroll\") for (int v = 0; v < LANES; v++) x%d.e[v] = full || i + v < n ? p%d[i + v] : %s(0);\n", (int)i, (int)i, type);
        return;
    default: ADD("pack<%s> x%d;\n", type, (int)i);
    }
}

/* Inputs and indices that are found element by element. In rows, a lane is a step along the last axis. */
static void write_walks(writer *w) {
    int32_t last = w->view[w->n_views - 1].rank - 1;
    ADD("_Pragma(\"unroll\") for (int v = 0; v < LANES; v++) {\n");
    if (!w->in_rows) write_coordinates(w, "full || i + v < n ? i + v : i");
    for (int32_t i = 0; i < w->call->n_inputs; i++) {
        const input *in = &w->inputs[i];
        if (in->how != EACH || !wefti_fused_is_read(w, i)) continue;
        ADD("x%d.e[v] = p%d[", (int)i, (int)i);
        write_offset(w, in);
        if (w->in_rows) ADD(" + v * (%s)a.w[%d]", in->narrow ? "uint32_t" : "int64_t", (int)(in->stride_word + last));
        ADD("];\n");
    }
    for (int32_t j = 0; j < w->fused->n_instructions; j++) {
        if (w->fused->instruction[j].op != WEFT_OP_DROPOUT || w->index[j].how != EACH) continue;
        ADD("g%d[v] = a.w[%d] + (", (int)j, (int)w->attribute_word[j] + 3);
        write_offset(w, &w->index[j]);
        if (w->in_rows) ADD(" + v * (int64_t)a.w[%d]", (int)(w->index[j].stride_word + last));
        ADD(");\n");
    }
    ADD("}\n");
}

bool wefti_fused_draws_blocks(const writer *w, int32_t j) {
    int32_t step = w->fused->instruction[j].source[1];
    return w->index[j].how == FLAT && w->base[j] % 4 == 0 && w->lanes % 4 == 0 && step >= 0 && w->inputs[step].how == ONE;
}

void wefti_fused_write_loads(writer *w) {
    bool each = false;
    if (w->walks && w->in_rows) write_coordinates(w, "i");
    for (int32_t i = 0; i < w->call->n_inputs; i++) {
        if (!wefti_fused_is_read(w, i)) continue;
        write_load(w, i);
        each = each || w->inputs[i].how == EACH;
    }
    for (int32_t j = 0; j < w->fused->n_instructions; j++) {
        if (w->fused->instruction[j].op != WEFT_OP_DROPOUT) continue;
        if (w->index[j].how == EACH) {
            ADD("uint64_t g%d[LANES];\n", (int)j);
            each = true;
        } else if (wefti_fused_draws_blocks(w, j)) {
            ADD("uint32_t g%d[LANES];\n_Pragma(\"unroll\") for (int v = 0; v < LANES; v += 4) {\n"
                "const s_words b = s_philox(a.w[%d], (uint64_t)x%d, (a.w[%d] + (uint64_t)i + v) / 4);\n"
                "g%d[v] = b.word[0]; g%d[v + 1] = b.word[1]; g%d[v + 2] = b.word[2]; g%d[v + 3] = b.word[3]; }\n",
                (int)j, (int)w->attribute_word[j], (int)w->fused->instruction[j].source[1], (int)w->attribute_word[j] + 3, (int)j, (int)j, (int)j,
                (int)j);
        }
    }
    if (each) write_walks(w);
}

static void write_cast(writer *w, const wefti_fused_instruction *it, const char *x) {
    bool from_float = weft_dtype_is_float(dtype_of(w, it->source[0]));
    if (it->dtype == WEFT_F64) ADD("(double)%s", x);
    else if (weft_dtype_is_float(it->dtype)) ADD("s_round((float)%s, %d)", x, (int)it->dtype);
    else if (from_float) ADD("s_saturate((double)%s, %d)", x, (int)it->dtype);
    else ADD("s_wrap(%s, %d)", x, (int)it->dtype);
}

static void write_dropout(writer *w, int32_t j, const char *x, const char *step) {
    const wefti_fused_instruction *it = &w->fused->instruction[j];
    int32_t                        word = w->attribute_word[j];
    if (wefti_fused_draws_blocks(w, j)) ADD("(s_keeps(g%d[v], ", (int)j);
    else if (w->index[j].how == EACH) ADD("(s_keeps_at(a.w[%d], (uint64_t)%s, g%d[v], ", (int)word, step, (int)j);
    else if (w->index[j].how == ONE) ADD("(s_keeps_at(a.w[%d], (uint64_t)%s, a.w[%d], ", (int)word, step, (int)word + 3);
    else ADD("(s_keeps_at(a.w[%d], (uint64_t)%s, a.w[%d] + (uint64_t)i + v, ", (int)word, step, (int)word + 3);
    ADD("(uint32_t)a.w[%d]) ? ", (int)word + 1);
    if (it->dtype == WEFT_F64) ADD("%s * s_double(a.w[%d]) : 0.0)", x, (int)word + 2);
    else ADD("s_round(%s * (float)s_double(a.w[%d]), %d) : 0.0f)", x, (int)word + 2, (int)it->dtype);
}

static bool is_question(weft_op op) {
    return op == WEFT_OP_NOT || op == WEFT_OP_ISFINITE || op == WEFT_OP_AND || op == WEFT_OP_OR || (op >= WEFT_OP_EQ && op <= WEFT_OP_GE);
}

/* As the interpreter's compute. */
static void write_number(writer *w, int32_t j, const char *x, const char *y) {
    const wefti_fused_instruction *it = &w->fused->instruction[j];
    weft_dtype                     from = dtype_of(w, it->source[0]);
    const char                    *type = wide_type(from);
    int32_t                        word = w->attribute_word[j];
    if (is_question(it->op)) {
        ADD("s_answer(%d, %s, %s)", (int)it->op, x, y);
        return;
    }
    bool whole = !weft_dtype_is_float(from);
    ADD("%s(%s(%d, %s, %s, ", whole ? "s_wrap" : from == WEFT_F64 ? "(double)" : "s_round", from == WEFT_F16 || from == WEFT_BF16 ? "s_short_number" : "s_number",
        (int)it->op, x, y);
    for (int k = 0; k < 2; k++) {
        if (it->op != WEFT_OP_CLAMP) ADD("(%s)0", type);
        else if (whole) ADD("s_saturate(s_double(a.w[%d]), %d)", (int)word + k, (int)it->dtype);
        else ADD("(%s)s_double(a.w[%d])", type, (int)word + k);
        ADD(k ? ")" : ", ");
    }
    if (from == WEFT_F64) ADD(")");
    else ADD(", %d)", (int)it->dtype);
}

void wefti_fused_write_instruction(writer *w, int32_t j) {
    const wefti_fused_instruction *it = &w->fused->instruction[j];
    int32_t                        n = wefti_ops[it->op].inputs_max;
    value_text x = value_of(w, it->source[0]), y = value_of(w, it->source[n > 1 ? 1 : 0]), z = value_of(w, it->source[n > 2 ? 2 : 0]);
    ADD("const %s r%d = ", wide_type(it->dtype), (int)j);
    if (it->op == WEFT_OP_CAST) write_cast(w, it, x.text);
    else if (it->op == WEFT_OP_WHERE) ADD("%s ? %s : %s", x.text, y.text, z.text);
    else if (it->op == WEFT_OP_DROPOUT) write_dropout(w, j, x.text, y.text);
    else write_number(w, j, x.text, y.text);
    ADD(";\n");
}

void wefti_fused_write_store(writer *w, int32_t k) {
    weft_dtype  dtype = output_dtype(w, k);
    const char *type = memory_type(dtype);
    bool        whole = w->fused->output[k].reduce < 0; /* else it lies at the beginning of some scratch */
    int64_t     unit = wefti_min_i64(16, (int64_t)weft_dtype_bytes(dtype) * w->lanes);
    int32_t     word = w->output_word + k;
    if (!whole || w->call->outputs[k].offset_bytes % unit == 0)
        ADD("if (full) *(pack<%s> *)((%s *)a.w[%d] + i) = y%d; else\n", type, type, (int)word, (int)k);
    ADD("_Pragma(\"unroll\") for (int v = 0; v < LANES; v++) if (full || i + v < n) ((%s *)a.w[%d])[i + v] = y%d.e[v];\n", type, (int)word, (int)k);
}

static void write_kernel(writer *w) {
    write_head(w);
    wefti_fused_write_loads(w);
    for (int32_t k = 0; k < w->fused->n_outputs; k++) {
        if (sums(w, k)) ADD("%s z%d[LANES];\n", total_type(output_dtype(w, k)), (int)k);
        else ADD("pack<%s> y%d;\n", memory_type(output_dtype(w, k)), (int)k);
    }
    ADD("_Pragma(\"unroll\") for (int v = 0; v < LANES; v++) {\n");
    for (int32_t j = 0; j < w->fused->n_instructions; j++) wefti_fused_write_instruction(w, j);
    for (int32_t k = 0; k < w->fused->n_outputs; k++) {
        int32_t j = w->fused->output[k].instruction;
        if (sums(w, k)) ADD("z%d[v] = full || i + v < n ? r%d : %s(0);\n", (int)k, (int)j, total_type(output_dtype(w, k)));
        else ADD("y%d.e[v] = %s(r%d);\n", (int)k, narrowing(output_dtype(w, k)), (int)j);
    }
    ADD("}\n");
    for (int32_t k = 0; k < w->fused->n_outputs; k++)
        if (!sums(w, k)) wefti_fused_write_store(w, k);
    write_sums(w);
    ADD(w->loop.walk == WEFTI_FUSED_COLUMNS ? "}\n}\n}\n" : "}\n");
    write_tail(w);
    ADD("}\n");
}

int32_t wefti_cuda_fused_words(const wefti_call *call, int32_t n_instructions) {
    return 5 + call->n_inputs * (1 + WEFT_MAX_RANK) + call->n_outputs + n_instructions * (4 + WEFT_MAX_RANK) + 2 * WEFT_MAX_RANK;
}

weft_status wefti_cuda_fused_write(const wefti_call *call, const wefti_fused *fused, int32_t many, uint64_t *words, wefti_fused_text *text_out) {
    writer *w = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *w, "a fused program's text", &w));
    w->call = call;
    w->fused = fused;
    w->words = words;
    w->many = many;
    w->loop = wefti_cuda_fused_loop(call, fused);
    look(w);
    if (w->loop.walk == WEFTI_FUSED_NORMALIZED) wefti_fused_write_rows(w);
    else write_kernel(w);
    *text_out = (wefti_fused_text){w->text, w->n_words, w->inputs[0].word, w->output_word, w->elements};
    if (call->n_inputs == 0) text_out->input_word = w->output_word;
    wefti_free(w, sizeof *w);
    if (!text_out->text.failed) return WEFT_OK;
    wefti_text_release(&text_out->text);
    return wefti_fail(WEFT_E_NO_MEMORY, "cuda: no memory for a fused program's text");
}

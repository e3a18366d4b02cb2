/* FUSED programs, compiled: each becomes the text of one kernel, which NVRTC compiles (nvrtc.h).
 *
 * Idea: a thread computes LANES neighbours of the row-major space. An input that lies as the space does is read in accesses of 16 bytes, one
 * that repeats along the last axis or everywhere once, any other element by element from its coordinates. Every instruction is the function of
 * scalars.def that the interpreter calls, on a number of its own, so bits are the same. The text follows from the program's structure and
 * from how inputs lie; shapes, strides, addresses and attributes are arguments (words of 64 bits), so layers that differ in these share a
 * kernel.
 * Invariants: a thread reads all its inputs before it writes, so an output may be an input's memory. Where the compiler is missing or fails,
 * the interpreter computes the program.
 * Cost: every operand once; compiling takes some tens of milliseconds a new text, and is kept on disk. */
#include "core/tensor/operand.h"

#include <math.h>
#include <string.h>

#include "cuda/nvrtc.h"

enum { BLOCK = 256, MOST_LANES = 8 };

/* How an input is read. */
typedef enum access {
    ONE,   /* a single element, for all */
    FLAT,  /* as the space lies */
    ROW,   /* neighbours along the last axis, LANES of which lie in one row */
    SPLAT, /* LANES of the space have the same element */
    EACH   /* element by element */
} access;

typedef struct input {
    access  how;
    bool    packed; /* FLAT and ROW: in aligned accesses */
    int32_t word;   /* of its address */
    int32_t stride_word;
    bool    narrow; /* its offsets fit 32 bits */
} input;

enum { MOST_VIEWS = 4 * WEFTI_FUSED_MAX + 1 };
typedef struct writer {
    const wefti_call  *call;
    const wefti_fused *fused;
    wefti_text         text;
    uint64_t          *words; /* the kernel's arguments; NULL while they are only counted */
    int32_t            n_words, lanes, dim_word;
    int64_t            elements;
    bool               small, in_rows, full, walks; /* full: there is no part of LANES at the end; walks: coordinates are needed */
    wefti_cuda_view_of view[MOST_VIEWS];            /* of inputs, then of the dropouts' indices, then of the whole space */
    int32_t            n_views;
    input              inputs[3 * WEFTI_FUSED_MAX];
    input              index[WEFTI_FUSED_MAX]; /* of an instruction that is DROPOUT */
    int64_t            base[WEFTI_FUSED_MAX];
    int32_t            attribute_word[WEFTI_FUSED_MAX], output_word;
} writer;

typedef struct prepared {
    const void *kernel; /* NULL: interpreted */
    int64_t     blocks;
    int32_t     n_words, input_word, output_word;
    uint64_t    words[];
} prepared;

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
static int32_t lanes_of(const writer *w) {
    size_t narrowest = 8;
    for (int32_t i = 0; i < w->call->n_inputs + w->call->n_outputs; i++) {
        const wefti_operand *x = i < w->call->n_inputs ? &w->call->inputs[i] : &w->call->outputs[i - w->call->n_inputs];
        size_t               bytes = weft_dtype_bytes(x->dtype);
        if (bytes > 1 && bytes < narrowest) narrowest = bytes;
    }
    return (int32_t)wefti_min_i64(16 / (int64_t)narrowest, MOST_LANES);
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
    if (in->how == ONE || in->how == FLAT) return;
    w->walks = true;
    for (int32_t axis = 0; axis < view->rank; axis++) add_word(w, (uint64_t)view->stride[axis]);
}

/* Looks at all operands, and lays the arguments out. */
static void look(writer *w) {
    look_at_views(w);
    const wefti_cuda_view_of *whole = &w->view[w->n_views - 1];
    int64_t                   last = whole->dim[whole->rank - 1];
    w->elements = weft_shape_elements(w->fused->space);
    w->lanes = lanes_of(w);
    w->small = w->elements + (int64_t)BLOCK * MOST_LANES < INT64_C(0x7fffffff);
    w->in_rows = whole->rank > 1 && last % w->lanes == 0;
    w->full = w->elements % w->lanes == 0;
    add_word(w, (uint64_t)w->elements);
    int32_t n = 0;
    for (int32_t i = 0; i < w->call->n_inputs; i++, n++) {
        const wefti_operand *x = &w->call->inputs[i];
        w->inputs[i] = look_at(w, &w->view[n], (int64_t)weft_dtype_bytes(x->dtype), x->offset_bytes);
        w->inputs[i].word = add_word(w, 0);
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

#define ADD(...) wefti_text_add(&w->text, __VA_ARGS__)

static const char *memory_type(weft_dtype dtype) {
    switch (dtype) {
    case WEFT_F32: return "float";
    case WEFT_F64: return "double";
    case WEFT_F16:
    case WEFT_BF16: return "uint16_t";
    case WEFT_I64: return "int64_t";
    case WEFT_I32: return "int32_t";
    default: return "uint8_t";
    }
}
/* In what values of the dtype are computed. */
static const char *wide_type(weft_dtype dtype) {
    return dtype == WEFT_F64 ? "double" : weft_dtype_is_float(dtype) ? "float" : "int64_t";
}
/* The function that makes one of the other. */
static const char *widening(weft_dtype dtype) {
    return dtype == WEFT_F16 ? "s_of_f16" : dtype == WEFT_BF16 ? "s_of_bf16" : wide_type(dtype);
}
static const char *narrowing(weft_dtype dtype) {
    return dtype == WEFT_F16 ? "s_to_f16" : dtype == WEFT_BF16 ? "s_to_bf16" : memory_type(dtype);
}

typedef struct words { char text[48]; } words;
/* The value of a source in lane v. */
static words value_of(const writer *w, int32_t source) {
    words out;
    if (source < 0) {
        snprintf(out.text, sizeof out.text, "r%d", (int)(-1 - source));
        return out;
    }
    access how = w->inputs[source].how;
    if (how == ONE || how == SPLAT) snprintf(out.text, sizeof out.text, "x%d", (int)source);
    else snprintf(out.text, sizeof out.text, "%s(x%d.e[v])", widening(w->call->inputs[source].dtype), (int)source);
    return out;
}
static weft_dtype dtype_of(const writer *w, int32_t source) {
    return source < 0 ? w->fused->instruction[-1 - source].dtype : w->call->inputs[source].dtype;
}

static void write_head(writer *w) {
    ADD("#include \"weft_scalars.h\"\n"
        "typedef %s index_t;\n"
        "enum { LANES = %d };\n"
        "template <typename T> struct alignas(sizeof(T) * LANES < 16 ? sizeof(T) * LANES : 16) pack { T e[LANES]; };\n"
        "struct arguments { uint64_t w[%d]; };\n"
        "extern \"C\" __global__ void __launch_bounds__(%d) weft_fused(const arguments a) {\n"
        "const index_t n = (index_t)a.w[0], i = ((index_t)blockIdx.x * %d + threadIdx.x) * LANES;\n"
        "if (i >= n) return;\n",
        w->small ? "uint32_t" : "int64_t", (int)w->lanes, (int)w->n_words, BLOCK, BLOCK);
    ADD("const bool full = %s;\n", w->full ? "true" : "i + LANES <= n");
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

/* Which inputs any instruction reads: the others are not loaded. */
static bool is_read(const writer *w, int32_t source) {
    for (int32_t j = 0; j < w->fused->n_instructions; j++)
        for (int32_t k = 0; k < wefti_ops[w->fused->instruction[j].op].inputs_max; k++)
            if (w->fused->instruction[j].source[k] == source) return true;
    return false;
}

static void write_load(writer *w, int32_t i) {
    const input *in = &w->inputs[i];
    weft_dtype   dtype = w->call->inputs[i].dtype;
    const char  *type = memory_type(dtype);
    ADD("const %s *p%d = (const %s *)a.w[%d];\n", type, (int)i, type, (int)in->word);
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
        if (in->how != EACH || !is_read(w, i)) continue;
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

/* Whether the dropout's numbers are drawn four at a time: neighbours then share a block of Philox, whose step is one number. */
static bool draws_blocks(const writer *w, int32_t j) {
    int32_t step = w->fused->instruction[j].source[1];
    return w->index[j].how == FLAT && w->base[j] % 4 == 0 && w->lanes % 4 == 0 && step >= 0 && w->inputs[step].how == ONE;
}

static void write_loads(writer *w) {
    bool each = false;
    if (w->walks && w->in_rows) write_coordinates(w, "i");
    for (int32_t i = 0; i < w->call->n_inputs; i++) {
        if (!is_read(w, i)) continue;
        write_load(w, i);
        each = each || w->inputs[i].how == EACH;
    }
    for (int32_t j = 0; j < w->fused->n_instructions; j++) {
        if (w->fused->instruction[j].op != WEFT_OP_DROPOUT) continue;
        if (w->index[j].how == EACH) {
            ADD("uint64_t g%d[LANES];\n", (int)j);
            each = true;
        } else if (draws_blocks(w, j)) {
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
    if (draws_blocks(w, j)) ADD("(s_keeps(g%d[v], ", (int)j);
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
    ADD("%s(s_number(%d, %s, %s, ", whole ? "s_wrap" : from == WEFT_F64 ? "(double)" : "s_round", (int)it->op, x, y);
    for (int k = 0; k < 2; k++) {
        if (it->op != WEFT_OP_CLAMP) ADD("(%s)0", type);
        else if (whole) ADD("s_saturate(s_double(a.w[%d]), %d)", (int)word + k, (int)it->dtype);
        else ADD("(%s)s_double(a.w[%d])", type, (int)word + k);
        ADD(k ? ")" : ", ");
    }
    if (from == WEFT_F64) ADD(")");
    else ADD(", %d)", (int)it->dtype);
}

static void write_instruction(writer *w, int32_t j) {
    const wefti_fused_instruction *it = &w->fused->instruction[j];
    int32_t                        n = wefti_ops[it->op].inputs_max;
    words                          x = value_of(w, it->source[0]), y = value_of(w, it->source[n > 1 ? 1 : 0]), z = value_of(w, it->source[n > 2 ? 2 : 0]);
    ADD("const %s r%d = ", wide_type(it->dtype), (int)j);
    if (it->op == WEFT_OP_CAST) write_cast(w, it, x.text);
    else if (it->op == WEFT_OP_WHERE) ADD("%s ? %s : %s", x.text, y.text, z.text);
    else if (it->op == WEFT_OP_DROPOUT) write_dropout(w, j, x.text, y.text);
    else write_number(w, j, x.text, y.text);
    ADD(";\n");
}

static void write_stores(writer *w) {
    for (int32_t k = 0; k < w->fused->n_outputs; k++) {
        const wefti_operand *y = &w->call->outputs[k];
        const char          *type = memory_type(y->dtype);
        int64_t              unit = wefti_min_i64(16, (int64_t)weft_dtype_bytes(y->dtype) * w->lanes);
        int32_t              word = w->output_word + k;
        if (y->offset_bytes % unit == 0) ADD("if (full) *(pack<%s> *)((%s *)a.w[%d] + i) = y%d; else\n", type, type, (int)word, (int)k);
        ADD("_Pragma(\"unroll\") for (int v = 0; v < LANES; v++) if (full || i + v < n) ((%s *)a.w[%d])[i + v] = y%d.e[v];\n", type, (int)word, (int)k);
    }
}

static weft_status write_kernel(writer *w) {
    write_head(w);
    write_loads(w);
    for (int32_t k = 0; k < w->fused->n_outputs; k++) ADD("pack<%s> y%d;\n", memory_type(w->call->outputs[k].dtype), (int)k);
    ADD("_Pragma(\"unroll\") for (int v = 0; v < LANES; v++) {\n");
    for (int32_t j = 0; j < w->fused->n_instructions; j++) write_instruction(w, j);
    for (int32_t k = 0; k < w->fused->n_outputs; k++)
        ADD("y%d.e[v] = %s(r%d);\n", (int)k, narrowing(w->call->outputs[k].dtype), (int)w->fused->output[k].instruction);
    ADD("}\n");
    write_stores(w);
    ADD("}\n");
    return w->text.failed ? wefti_fail(WEFT_E_NO_MEMORY, "cuda: no memory for a fused program's text") : WEFT_OK;
}

/* --- the kernel --- */

static bool accepts(const wefti_cuda *cuda, const wefti_call *call) {
    for (int32_t k = 0; k < call->n_outputs; k++)
        if (call->attrs->fused.fused->output[k].reduce >= 0) return false;
    return wefti_cuda_nvrtc_is_there(cuda, NULL);
}

static size_t prepared_bytes_of(const wefti_call *call, int32_t n_instructions) {
    int32_t most_words = 1 + call->n_inputs * (1 + WEFT_MAX_RANK) + call->n_outputs + n_instructions * (4 + WEFT_MAX_RANK) + 2 * WEFT_MAX_RANK;
    return sizeof(prepared) + (size_t)most_words * sizeof(uint64_t);
}
static size_t prepared_bytes(const wefti_call *call) { return prepared_bytes_of(call, call->attrs->fused.fused->n_instructions); }

static weft_status compile(wefti_cuda *cuda, const wefti_call *call, const wefti_fused *fused, prepared *p) {
    writer     *w = NULL;
    weft_status status = wefti_alloc(sizeof *w, "a fused program's text", &w);
    if (status != WEFT_OK) return status;
    w->call = call;
    w->fused = fused;
    w->words = p->words;
    look(w);
    status = write_kernel(w);
    if (status == WEFT_OK) status = wefti_cuda_nvrtc_kernel(cuda, w->text.bytes, "weft_fused", &p->kernel);
    p->n_words = w->n_words;
    p->input_word = 1;
    p->output_word = w->output_word;
    p->blocks = (w->elements + (int64_t)BLOCK * w->lanes - 1) / ((int64_t)BLOCK * w->lanes);
    wefti_text_release(&w->text);
    wefti_free(w, sizeof *w);
    return status;
}

/* After a compilation: where it failed and `otherwise` computes the call too, that is used, and the log says so. */
static weft_status or_interpret(const wefti_cuda *cuda, const wefti_call *call, const wefti_cuda_kernel *otherwise, weft_status status, prepared *p) {
    if (status == WEFT_OK || status == WEFT_E_NO_MEMORY || cuda->broken != WEFT_OK) return status;
    if (otherwise->accepts && !otherwise->accepts(cuda, call)) return status;
    wefti_log(WEFT_LOG_WARNING, "%s; '%s' is interpreted, which is slower", weft_error_message(), call->name ? call->name : "");
    p->kernel = NULL;
    return WEFT_OK;
}

static weft_status prepare(wefti_cuda *cuda, const wefti_call *call, void *memory) {
    return or_interpret(cuda, call, &wefti_cuda_fused, compile(cuda, call, call->attrs->fused.fused, memory), memory);
}

static weft_status run_or(const wefti_cuda_run *given, const wefti_cuda_kernel *otherwise) {
    prepared *p = given->prepared;
    if (!p->kernel) return otherwise->run(given);
    for (int32_t i = 0; i < given->call->n_inputs; i++) p->words[p->input_word + i] = (uint64_t)(uintptr_t)given->inputs[i];
    for (int32_t k = 0; k < given->call->n_outputs; k++) p->words[p->output_word + k] = (uint64_t)(uintptr_t)given->outputs[k];
    if (p->blocks > 0x7fffffff)
        return wefti_fail(WEFT_E_UNSUPPORTED, "fused '%s': %s is too large for one launch", given->call->name ? given->call->name : "",
                          weft_shape_text(given->call->outputs[0].shape).text);
    void *arguments[] = {p->words};
    return wefti_cuda_check(given->cuda, cudaLaunchKernel(p->kernel, (dim3){(unsigned)p->blocks, 1, 1}, (dim3){BLOCK, 1, 1}, arguments, 0, given->stream),
                            "fused");
}

static weft_status run(const wefti_cuda_run *given) { return run_or(given, &wefti_cuda_fused); }

const wefti_cuda_kernel wefti_cuda_fused_compiled = {
    .name = "fused, compiled", .accepts = accepts, .prepared_bytes = prepared_bytes, .prepare = prepare, .run = run};

/* --- single ops --- */

/* Ops that round once, so that it makes no difference who compiled them, and that have no kernel of their own but for operands which lie
 * alike. Below this size an interpreter is as good, and nothing need be compiled. */
enum { WORTH_COMPILING = 1 << 16 };

static bool lies_like(const wefti_operand *x, const wefti_operand *y) {
    return wefti_operand_is_contiguous(x) && weft_shape_elements(x->shape) == weft_shape_elements(y->shape);
}

static bool accepts_single(const wefti_cuda *cuda, const wefti_call *call) {
    const wefti_operand *y = &call->outputs[0];
    if (weft_shape_elements(y->shape) < WORTH_COMPILING || !wefti_cuda_nvrtc_is_there(cuda, NULL)) return false;
    switch (call->op) {
    case WEFT_OP_ADD:
    case WEFT_OP_SUB:
    case WEFT_OP_MUL:
    case WEFT_OP_DIV:
    case WEFT_OP_MAXIMUM:
    case WEFT_OP_MINIMUM:
    case WEFT_OP_RELU_BACKWARD:
        return !lies_like(&call->inputs[0], y) || !(lies_like(&call->inputs[1], y) || weft_shape_elements(call->inputs[1].shape) == 1);
    default: return true; /* WHERE, comparisons, AND, OR: table.c */
    }
}

static size_t prepared_bytes_of_single(const wefti_call *call) { return prepared_bytes_of(call, 1); }

static weft_status prepare_single(wefti_cuda *cuda, const wefti_call *call, void *memory) {
    wefti_fused *fused = NULL;
    WEFTI_TRY(wefti_alloc(sizeof *fused, "a fused program", &fused));
    fused->space = call->outputs[0].shape;
    fused->n_inputs = call->n_inputs;
    fused->n_instructions = fused->n_outputs = 1;
    fused->instruction[0].op = call->op;
    fused->instruction[0].dtype = call->outputs[0].dtype;
    for (int32_t k = 0; k < 3; k++) fused->instruction[0].source[k] = k;
    fused->instruction[0].attrs = *call->attrs;
    fused->output[0].reduce = -1;
    weft_status status = compile(cuda, call, fused, memory);
    wefti_free(fused, sizeof *fused);
    return or_interpret(cuda, call, &wefti_cuda_elementwise, status, memory);
}

static weft_status run_single(const wefti_cuda_run *given) { return run_or(given, &wefti_cuda_elementwise); }

const wefti_cuda_kernel wefti_cuda_elementwise_compiled = {.name = "elementwise, compiled", .accepts = accepts_single,
                                                           .prepared_bytes = prepared_bytes_of_single, .prepare = prepare_single, .run = run_single};

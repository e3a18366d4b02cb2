/* The text of a fused program's kernel where one of its instructions normalises rows: what makes the rows, the normalisation, what is made
 * of it, and sums over all rows, with every operand read or written once.
 *
 * A warp has a row, or a block has. Each thread holds its vectors of LANES elements of the row: first all inputs are asked for, then what is
 * normalised (NORMALIZE's source; the gradient and the result of NORMALIZE_BACKWARD) is computed, kept as it would be stored, and summed
 * over the row's threads; then all other instructions follow, and stores. Sums over rows stay with the thread that has these columns,
 * since blocks go on from row to row; at the end a block joins its warps' in order and leaves a partial result, so the order of all sums
 * follows from the shape alone.
 * Names in the text: k<i> are the loaded vectors of input i, kept<s> the values of the normalised sources, t<o> totals of output o. */
#include "core/tensor/operand.h"

#include <string.h>

#include "cuda/fused_writer.h"

typedef struct rows {
    int32_t at, n_sources; /* the instruction that normalises, and how many rows it looks at */
    bool    first[WEFTI_FUSED_MAX], later[WEFTI_FUSED_MAX]; /* instructions before that one, and behind it */
} rows;

static void need(const wefti_fused *fused, int32_t source, bool *needed) {
    if (source >= 0) return;
    const wefti_fused_instruction *it = &fused->instruction[-1 - source];
    needed[-1 - source] = true;
    for (int32_t k = 0; k < wefti_ops[it->op].inputs_max; k++) need(fused, it->source[k], needed);
}

/* Whether instruction j is what is normalised: its value is kept. */
static bool is_kept(const wefti_fused *fused, const rows *r, int32_t j) {
    for (int32_t s = 0; s < r->n_sources; s++)
        if (fused->instruction[r->at].source[s] == -1 - j) return true;
    return false;
}

static void need_later(const wefti_fused *fused, const rows *r, int32_t source, bool *needed) {
    if (source >= 0) return;
    int32_t                        j = -1 - source;
    const wefti_fused_instruction *it = &fused->instruction[j];
    needed[j] = true;
    if (j == r->at || is_kept(fused, r, j)) return;
    for (int32_t k = 0; k < wefti_ops[it->op].inputs_max; k++) need_later(fused, r, it->source[k], needed);
}

static rows look_at_rows(const wefti_fused *fused) {
    rows r = {.at = wefti_fused_rows(fused)};
    const wefti_fused_instruction *it = &fused->instruction[r.at];
    r.n_sources = it->op == WEFT_OP_NORMALIZE ? 1 : 2;
    for (int32_t s = 0; s < r.n_sources; s++) need(fused, it->source[s], r.first);
    need_later(fused, &r, -1 - r.at, r.later);
    for (int32_t k = 0; k < fused->n_outputs; k++) need_later(fused, &r, -1 - fused->output[k].instruction, r.later);
    for (int32_t s = 0; s < r.n_sources; s++) need_later(fused, &r, it->source[s], r.later);
    return r;
}

static bool is_one_number(const writer *w, int32_t i) { return w->inputs[i].how == ONE || w->inputs[i].how == SPLAT; }
static const char *input_type(const writer *w, int32_t i) {
    return is_one_number(w, i) ? wide_type(w->call->inputs[i].dtype) : memory_type(w->call->inputs[i].dtype);
}

/* --- the parts --- */

static void write_beginning(writer *w) {
    int32_t team = w->loop.team;
    ADD("#include \"weft_scalars.h\"\n"
        "typedef %s index_t;\n"
        "enum { LANES = %d, LENGTH = %d, TEAM = %d, HOLD = %d, EACH = %d };\n"
        "template <typename T> struct alignas(sizeof(T) * LANES < 16 ? sizeof(T) * LANES : 16) pack { T e[LANES]; };\n"
        "struct arguments { uint64_t w[%d]; };\n"
        "extern \"C\" __global__ void __launch_bounds__(%d, %d) weft_fused(const arguments a) {\n"
        "const int lane = (int)threadIdx.x %% TEAM, team = (int)threadIdx.x / TEAM;\n"
        "const int64_t rows = (int64_t)(a.w[0] / LENGTH);\n",
        w->small ? "uint32_t" : "int64_t", (int)w->lanes, (int)w->loop.how.kept, (int)team,
        (int)((w->loop.how.kept / w->lanes + team - 1) / team), (int)(w->loop.threads / team), (int)w->n_words, (int)w->loop.threads,
        (int)(384 / w->loop.threads));
    if (team > 32) ADD("__shared__ float room[2][TEAM / 32];\n");
    for (int32_t k = 0; k < w->fused->n_outputs; k++)
        if (sums(w, k)) ADD("float t%d[HOLD][LANES] = {};\n", (int)k);
    ADD("for (int64_t row = (int64_t)blockIdx.x * EACH + team; row < rows; row += (int64_t)gridDim.x * EACH) {\n");
}

/* Opens a loop over the thread's vectors; `i` is the first element of one. */
static void open_vectors(writer *w) {
    ADD("_Pragma(\"unroll\") for (int h = 0; h < HOLD; h++) {\nconst int column = (h * TEAM + lane) * LANES;\nif (column < LENGTH) {\n"
        "const index_t i = (index_t)row * LENGTH + column;\n");
}
static void close_vectors(writer *w) { ADD("}\n}\n"); }

static void write_inputs(writer *w) {
    for (int32_t i = 0; i < w->call->n_inputs; i++)
        if (wefti_fused_is_read(w, i)) ADD(is_one_number(w, i) ? "%s k%d[HOLD];\n" : "pack<%s> k%d[HOLD];\n", input_type(w, i), (int)i);
    for (int32_t j = 0; j < w->fused->n_instructions; j++) {
        if (w->fused->instruction[j].op != WEFT_OP_DROPOUT) continue;
        if (w->index[j].how == EACH) ADD("uint64_t d%d[HOLD][LANES];\n", (int)j);
        else if (wefti_fused_draws_blocks(w, j)) ADD("uint32_t d%d[HOLD][LANES];\n", (int)j);
    }
    open_vectors(w);
    ADD("const bool full = true; const index_t n = i + LANES; (void)n;\n");
    wefti_fused_write_loads(w);
    for (int32_t i = 0; i < w->call->n_inputs; i++)
        if (wefti_fused_is_read(w, i)) ADD("k%d[h] = x%d;\n", (int)i, (int)i);
    for (int32_t j = 0; j < w->fused->n_instructions; j++)
        if (w->fused->instruction[j].op == WEFT_OP_DROPOUT && (w->index[j].how == EACH || wefti_fused_draws_blocks(w, j)))
            ADD("_Pragma(\"unroll\") for (int v = 0; v < LANES; v++) d%d[h][v] = g%d[v];\n", (int)j, (int)j);
    close_vectors(w);
}

/* Names the loaded vectors as instructions know them. */
static void write_names(writer *w) {
    for (int32_t i = 0; i < w->call->n_inputs; i++)
        if (wefti_fused_is_read(w, i)) ADD(is_one_number(w, i) ? "const %s &x%d = k%d[h];\n" : "const pack<%s> &x%d = k%d[h];\n", input_type(w, i), (int)i, (int)i);
    for (int32_t j = 0; j < w->fused->n_instructions; j++) {
        if (w->fused->instruction[j].op != WEFT_OP_DROPOUT) continue;
        if (w->index[j].how == EACH) ADD("const uint64_t (&g%d)[LANES] = d%d[h];\n", (int)j, (int)j);
        else if (wefti_fused_draws_blocks(w, j)) ADD("const uint32_t (&g%d)[LANES] = d%d[h];\n", (int)j, (int)j);
    }
}

/* Sum s of the row's threads, for each of them. */
static void write_row_sum(writer *w, const char *s, int room) {
    ADD("_Pragma(\"unroll\") for (int width = 16; width > 0; width /= 2) %s = %s + __shfl_xor_sync(0xffffffffu, %s, width);\n", s, s, s);
    if (w->loop.team == 32) return;
    ADD("__syncthreads();\nif (lane %% 32 == 0) room[%d][lane / 32] = %s;\n__syncthreads();\n"
        "%s = 0.0f;\n_Pragma(\"unroll\") for (int warp = 0; warp < TEAM / 32; warp++) %s = %s + room[%d][warp];\n", room, s, s, s, s, room);
}

/* Computes what is normalised, and the row's statistics: `mean` and `scale`, or `mean` and `along`. */
static void write_statistics(writer *w, const rows *r) {
    const wefti_fused_instruction *it = &w->fused->instruction[r->at];
    bool                           backward = r->n_sources == 2, rms = it->attrs.rows.rms != 0;
    for (int32_t s = 0; s < r->n_sources; s++)
        if (it->source[s] < 0) ADD("pack<%s> kept%d[HOLD];\n", memory_type(it->dtype), (int)s);
    ADD("float mean = 0.0f, along = 0.0f;\n");
    open_vectors(w);
    ADD("(void)i;\n");
    write_names(w);
    ADD("_Pragma(\"unroll\") for (int v = 0; v < LANES; v++) {\n");
    for (int32_t j = 0; j < w->fused->n_instructions; j++)
        if (r->first[j]) wefti_fused_write_instruction(w, j);
    for (int32_t s = 0; s < r->n_sources; s++)
        if (it->source[s] < 0) ADD("kept%d[h].e[v] = %s(r%d);\n", (int)s, narrowing(it->dtype), (int)(-1 - it->source[s]));
    value_text x = value_of(w, it->source[0]), y = value_of(w, it->source[backward ? 1 : 0]);
    if (!rms) ADD("mean = mean + (float)%s;\n", x.text);
    if (backward || rms) ADD("along = fmaf((float)%s, (float)%s, along);\n", x.text, y.text);
    ADD("}\n");
    close_vectors(w);
    if (!rms) {
        write_row_sum(w, "mean", 0);
        ADD("mean = mean * (1.0f / LENGTH);\n");
    }
    if (!backward && !rms) {
        open_vectors(w);
        ADD("(void)i;\n");
        write_names(w);
        ADD("_Pragma(\"unroll\") for (int v = 0; v < LANES; v++) {\n");
        if (it->source[0] < 0) ADD("const float off = (float)%s(kept0[h].e[v]) - mean;\n", widening(it->dtype));
        else ADD("const float off = (float)%s - mean;\n", x.text);
        ADD("along = fmaf(off, off, along);\n}\n");
        close_vectors(w);
    }
    write_row_sum(w, "along", 1);
    ADD("along = along * (1.0f / LENGTH);\n");
    if (!backward) ADD("const float scale = rsqrtf(along + (float)%.17g);\n", it->attrs.rows.eps);
}

/* The instruction itself, in lane v. */
static void write_normalized(writer *w, const rows *r) {
    const wefti_fused_instruction *it = &w->fused->instruction[r->at];
    value_text                     x = value_of(w, it->source[0]);
    if (r->n_sources == 1) {
        ADD("const float r%d = s_round(((float)%s - mean) * scale, %d);\n", (int)r->at, x.text, (int)it->dtype);
        return;
    }
    value_text y = value_of(w, it->source[1]), scale = value_of(w, it->source[2]);
    ADD("const float r%d = s_round(%s * fmaf(-(float)%s, along, (float)%s - mean), %d);\n", (int)r->at, scale.text, y.text, x.text, (int)it->dtype);
}

static void write_results(writer *w, const rows *r) {
    const wefti_fused_instruction *it = &w->fused->instruction[r->at];
    open_vectors(w);
    ADD("const bool full = true; const index_t n = i + LANES; (void)n;\n");
    write_names(w);
    for (int32_t k = 0; k < w->fused->n_outputs; k++)
        if (w->fused->output[k].reduce < 0) ADD("pack<%s> y%d;\n", memory_type(output_dtype(w, k)), (int)k);
    ADD("_Pragma(\"unroll\") for (int v = 0; v < LANES; v++) {\n");
    for (int32_t j = 0; j < w->fused->n_instructions; j++) {
        if (!r->later[j]) continue;
        if (j == r->at) write_normalized(w, r);
        else if (is_kept(w->fused, r, j)) ADD("const float r%d = %s(kept%d[h].e[v]);\n", (int)j, widening(it->dtype), it->source[0] == -1 - j ? 0 : 1);
        else wefti_fused_write_instruction(w, j);
    }
    for (int32_t k = 0; k < w->fused->n_outputs; k++) {
        int32_t j = w->fused->output[k].instruction;
        if (sums(w, k)) ADD("t%d[h][v] = s_plus(t%d[h][v], r%d);\n", (int)k, (int)k, (int)j);
        else if (w->fused->output[k].reduce < 0) ADD("y%d.e[v] = %s(r%d);\n", (int)k, narrowing(output_dtype(w, k)), (int)j);
    }
    ADD("}\n");
    for (int32_t k = 0; k < w->fused->n_outputs; k++) {
        if (w->fused->output[k].reduce < 0) wefti_fused_write_store(w, k);
        else if (!sums(w, k)) ADD("if (h == 0 && lane == 0) ((float *)a.w[%d])[row] = scale;\n", (int)(w->output_word + k));
    }
    close_vectors(w);
}

/* Partial results of the block: its warps' totals, in order. */
static void write_partials(writer *w) {
    bool any = false;
    for (int32_t k = 0; k < w->fused->n_outputs; k++) {
        if (!sums(w, k)) continue;
        if (!any) ADD("__shared__ float parts[EACH][LENGTH];\n");
        any = true;
        ADD("{\n__syncthreads();\n");
        ADD("_Pragma(\"unroll\") for (int h = 0; h < HOLD; h++) _Pragma(\"unroll\") for (int v = 0; v < LANES; v++)\n"
            "if ((h * TEAM + lane) * LANES < LENGTH) parts[team][(h * TEAM + lane) * LANES + v] = t%d[h][v];\n__syncthreads();\n", (int)k);
        ADD("for (int c = (int)threadIdx.x; c < LENGTH; c += TEAM * EACH) {\nfloat s = parts[0][c];\n"
            "for (int e = 1; e < EACH; e++) s = s_plus(s, parts[e][c]);\n((float *)a.w[%d])[(int64_t)blockIdx.x * LENGTH + c] = s;\n}\n}\n",
            (int)(w->output_word + k));
    }
}

void wefti_fused_write_rows(writer *w) {
    rows r = look_at_rows(w->fused);
    write_beginning(w);
    write_inputs(w);
    write_statistics(w, &r);
    write_results(w, &r);
    ADD("}\n");
    write_partials(w);
    ADD("}\n");
}

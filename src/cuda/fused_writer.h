/* Who writes the text of a fused program's kernel: what it knows of the program, and what all kinds of kernels share. */
#ifndef WEFTI_CUDA_FUSED_WRITER_H
#define WEFTI_CUDA_FUSED_WRITER_H

#include <stdio.h>

#include "cuda/fused.h"

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
    bool    held;   /* ROW, by columns: the same in all rows, read once */
    bool    ahead;  /* FLAT, by columns: read for several rows at a time, into an array */
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
    int32_t            many;  /* programs that a launch is for; 0: one */
    int64_t            elements;
    wefti_fused_loop   loop;
    int32_t            loop_word; /* of what a loop is told */
    bool               small, in_rows, full, walks; /* full: there is no part of LANES at the end; walks: coordinates are needed */
    wefti_cuda_view_of view[MOST_VIEWS];            /* of inputs, then of the dropouts' indices, then of the whole space */
    int32_t            n_views;
    input              inputs[3 * WEFTI_FUSED_MAX];
    input              index[WEFTI_FUSED_MAX]; /* of an instruction that is DROPOUT */
    int64_t            base[WEFTI_FUSED_MAX];
    int32_t            attribute_word[WEFTI_FUSED_MAX], output_word;
} writer;

#define ADD(...) wefti_text_add(&w->text, __VA_ARGS__)

static inline const char *memory_type(weft_dtype dtype) {
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
static inline const char *wide_type(weft_dtype dtype) {
    return dtype == WEFT_F64 ? "double" : weft_dtype_is_float(dtype) ? "float" : "int64_t";
}
/* The function that makes one of the other. */
static inline const char *widening(weft_dtype dtype) {
    return dtype == WEFT_F16 ? "s_of_f16" : dtype == WEFT_BF16 ? "s_of_bf16" : wide_type(dtype);
}
static inline const char *narrowing(weft_dtype dtype) {
    return dtype == WEFT_F16 ? "s_to_f16" : dtype == WEFT_BF16 ? "s_to_bf16" : memory_type(dtype);
}

typedef struct value_text { char text[48]; } value_text;
/* The value of a source in lane v. */
static inline value_text value_of(const writer *w, int32_t source) {
    value_text out;
    if (source < 0) {
        snprintf(out.text, sizeof out.text, "r%d", (int)(-1 - source));
        return out;
    }
    access how = w->inputs[source].how;
    if (how == ONE || how == SPLAT) snprintf(out.text, sizeof out.text, "x%d", (int)source);
    else snprintf(out.text, sizeof out.text, "%s(x%d.e[v])", widening(w->call->inputs[source].dtype), (int)source);
    return out;
}
static inline weft_dtype dtype_of(const writer *w, int32_t source) {
    return source < 0 ? w->fused->instruction[-1 - source].dtype : w->call->inputs[source].dtype;
}

/* In what elements of the dtype are summed, as in reduce.cu. */
static inline const char *total_type(weft_dtype dtype) { return wide_type(dtype); }
static inline bool sums(const writer *w, int32_t k) { return wefti_cuda_fused_sums(&w->loop, w->fused, k); }
static inline weft_dtype output_dtype(const writer *w, int32_t k) { return w->fused->instruction[w->fused->output[k].instruction].dtype; }

/* Which inputs any instruction reads: the others are not loaded. */
bool wefti_fused_is_read(const writer *w, int32_t source);
/* Whether the dropout's numbers are drawn four at a time: neighbours then share a block of Philox, whose step is one number. */
bool wefti_fused_draws_blocks(const writer *w, int32_t j);
/* What loads the inputs x0, x1, ... of the LANES elements from i on, and draws the numbers g0, g1, ... of dropouts. */
void wefti_fused_write_loads(writer *w);
/* r<j> of the elements in lane v. */
void wefti_fused_write_instruction(writer *w, int32_t j);
/* Stores y<k>, LANES of output k, at i. */
void wefti_fused_write_store(writer *w, int32_t k);
/* The whole kernel of a program that normalises rows; fused_rows.c. */
void wefti_fused_write_rows(writer *w);

#endif

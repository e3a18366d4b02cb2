/* Layers: parameters and the math on them, under one name.
 *
 * A layer called "conv1" makes the parameters "conv1.weight" and "conv1.bias" (with the open scope before them) and
 * names its result "conv1". Its parameters are F64 where x is F64, otherwise F32, or BF16 where the graph says so
 * (weft_graph_options.bf16_parameters); they are cast to what x is where they are used. To share a parameter, give its tensor in the options. A layer without a name is called after its
 * kind and a number. Errors are the graph's (see weft/graph.h). Source: src/core/graph/layers_*.c. */
#ifndef WEFT_LAYERS_H
#define WEFT_LAYERS_H

#include "weft/graph.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- linear, embedding ---- */

typedef struct weft_linear_options {
    int64_t      out; /* features of the result; needed unless `weight` is given */
    bool         no_bias;
    weft_init    weight_init, bias_init; /* default: uniform within 1/sqrt(features of x), both */
    weft_tensor *weight, *bias; /* [out, in], [out]: used instead of new ones; a weight without a bias means no bias */
} weft_linear_options;
/* x [..., in] -> x * weight^T + bias [..., out]. */
weft_tensor *weft_linear_with(weft_tensor *x, const char *name, const weft_linear_options *options);

typedef struct weft_embedding_options {
    int64_t      count, size;
    weft_dtype   dtype;  /* of a new table: F32, F64 or BF16. With weft_graph_options.bf16_parameters F32 means BF16, too */
    weft_init    init;   /* default: normal(0, 1) */
    weft_tensor *weight; /* [count, size]: used instead of a new one; then count, size, dtype and init are not looked at */
} weft_embedding_options;
/* index [...] (i32 or i64) -> the rows of a table there: [..., size]. An index out of range gives zeros. Rows are of the table's dtype: those of a
 * BF16 table are BF16, and so is what layers compute of them. With bf16_parameters they are cast to F32, or stay F64, whether the table is new or given. */
weft_tensor *weft_embedding_with(weft_tensor *index, const char *name, const weft_embedding_options *options);

/* ---- convolution and pooling: images [N, C, H, W] ---- */

typedef struct weft_conv2d_options {
    int32_t   filters, kernel;       /* both needed */
    int32_t   stride, pad, dilation; /* of both axes; stride and dilation 0 mean 1 */
    int32_t   groups;                /* 0 means 1 */
    bool same; /* pads so that the result has ceil(size/stride); more of it below and to the right */
    bool      no_bias;
    int32_t   kernel_of[2], stride_of[2], dilation_of[2]; /* of height and width; used where not 0 */
    int32_t   pad_of[4];                                  /* top, bottom, left, right; used where any is not 0 */
    weft_init weight_init, bias_init;                     /* default: uniform within 1/sqrt(C/groups*KH*KW), both */
    weft_tensor *weight, *bias; /* [filters, C/groups, KH, KW], [filters]: used instead of new ones */
} weft_conv2d_options;
/* Cross-correlation: [N, C, H, W] -> [N, filters, OH, OW], OH = (H + top + bottom - dilation*(KH-1) - 1)/stride + 1. */
weft_tensor *weft_conv2d_with(weft_tensor *x, const char *name, const weft_conv2d_options *options);

typedef struct weft_pool2d_options {
    int32_t window;      /* of both axes */
    int32_t stride, pad; /* stride 0 means the window; pad is less than the window */
    int32_t window_of[2], stride_of[2]; /* of height and width; used where not 0 */
    int32_t pad_of[4];                  /* top, bottom, left, right; used where any is not 0 */
    bool    exclude_pad; /* average: padding does not count */
} weft_pool2d_options;
/* [N, C, H, W] -> [N, C, OH, OW]. Padding is -infinity to a maximum and 0 to a mean. */
weft_tensor *weft_max_pool2d_with(weft_tensor *x, const weft_pool2d_options *options);
weft_tensor *weft_avg_pool2d_with(weft_tensor *x, const weft_pool2d_options *options);
/* [N, C, H, W] -> [N, C]. */
weft_tensor *weft_global_avg_pool2d(weft_tensor *x);
weft_tensor *weft_global_max_pool2d(weft_tensor *x);

/* ---- normalisation ---- */

typedef struct weft_batch_norm_options {
    double eps;      /* 0 means 1e-5 */
    double momentum; /* weight of the new in the running statistics; 0 means 0.1 */
    bool   no_affine;
} weft_batch_norm_options;
/* x [N, C, ...] with mean and variance over all axes but C: of the global batch while training, running otherwise.
 * Parameters "name.weight" (1) and "name.bias" (0), states "name.running_mean" and "name.running_variance" (unbiased),
 * all [C]; f32 (f64 for f64). */
weft_tensor *weft_batch_norm_with(weft_tensor *x, const char *name, const weft_batch_norm_options *options);

typedef struct weft_norm_layer_options {
    int32_t axes;   /* layer and RMS norm: how many of the last axes are normalised; 0 means 1 */
    int32_t groups; /* group norm: needed */
    double  eps;    /* 0 means 1e-5 */
    bool    no_affine, no_bias;
} weft_norm_layer_options;
/* (x - mean)/sqrt(variance + eps)*weight + bias over the last axes; weight and bias shaped as these. */
weft_tensor *weft_layer_norm_with(weft_tensor *x, const char *name, const weft_norm_layer_options *options);
/* x/sqrt(mean(x^2) + eps)*weight; no bias. */
weft_tensor *weft_rms_norm_with(weft_tensor *x, const char *name, const weft_norm_layer_options *options);
/* x [N, C, ...] in groups of C/groups channels; weight and bias [C]. */
weft_tensor *weft_group_norm_with(weft_tensor *x, const char *name, const weft_norm_layer_options *options);

/* ---- softmax, dropout ---- */

/* exp(x)/sum(exp(x)) and its logarithm along an axis (negative counts from the end), shaped as x and of its dtype: f16, bf16, f32, f64.
 * However large x is, nothing overflows; -infinity has probability 0, and where all of a row is -infinity or any is +infinity or NaN
 * the row is NaN. */
weft_tensor *weft_softmax(weft_tensor *x, int32_t axis);
weft_tensor *weft_log_softmax(weft_tensor *x, int32_t axis);
/* While training, each element is 0 with probability p (0 <= p < 1) and divided by 1-p otherwise; else x. */
weft_tensor *weft_dropout(weft_tensor *x, double p);

/* ---- attention ---- */

typedef struct weft_attention_options {
    bool        causal; /* a query sees keys up to its own place; the last query and the last key are aligned */
    double      scale;  /* 0 means 1/sqrt(D) */
    const char *name;
} weft_attention_options;
/* softmax(scale*q*k^T)*v in memory linear in the lengths: q [B, H, T, D], k [B, Hk, S, D], v [B, Hk, S, Dv], H a
 * multiple of Hk (grouped heads) -> [B, H, T, Dv]. */
weft_tensor *weft_attention_with(weft_tensor *q, weft_tensor *k, weft_tensor *v, const weft_attention_options *options);

typedef struct weft_rotary_options {
    double  base;   /* 0 means 10000 */
    int64_t offset; /* position of the first row */
} weft_rotary_options;
/* Rotary position embedding of x [..., T, D], D even, in the half-split layout. */
weft_tensor *weft_rotary_with(weft_tensor *x, const weft_rotary_options *options);

typedef struct weft_self_attention_options {
    int32_t heads;       /* needed; divides the size of x */
    int32_t kv_heads;    /* 0: as many; fewer: grouped */
    bool    causal, no_bias;
    bool    rotary;      /* turns queries and keys by their positions */
    double  rotary_base; /* 0 means 10000 */
    weft_init init, out_init; /* of the weights; default: as weft_linear's */
} weft_self_attention_options;
/* x [B, T, K] -> projections "name.qkv", attention, projection "name.out" -> [B, T, K]. */
weft_tensor *weft_self_attention_with(weft_tensor *x, const char *name, const weft_self_attention_options *options);

/* ---- mixture of experts ---- */

typedef struct weft_mixture_of_experts_options {
    int32_t experts;  /* E; needed */
    int32_t choices;  /* k, experts for each token: 0 means 1; at most E */
    int64_t hidden;   /* features between the two products of an expert; needed */
    double  capacity; /* an expert takes at most ceil(capacity*k*tokens/E) of the global batch's tokens; 0 means 1.25, INFINITY no limit */
    bool    relu;     /* between the products; else GELU */
    bool    no_bias;
    weft_init gate_init, init, out_init; /* of the weights; default: uniform within 1/sqrt(features that go in) */
    /* Scalars for the caller, each where it is not NULL: */
    weft_tensor **balance_out; /* E*sum over experts of (share of all choices)*(mean probability): 1 where all are chosen alike. Added to the loss,
                                  by 0.01 or so, it keeps experts busy (Fedus et al. 2021) */
    weft_tensor **z_out;       /* mean over tokens of the squared log-sum-exp of the gate: added by 0.001 or so, keeps its numbers small (Zoph et al. 2022) */
    weft_tensor **dropped_out; /* share of choices that found their expert full; has no gradient */
} weft_mixture_of_experts_options;
/* x [..., K] -> [..., K]: each token (row of x) goes through k of E perceptrons, K -> hidden -> K, which a gate chooses (Shazeer et al. 2017).
 *
 * The gate is softmax(x*gate^T); a token takes its k largest (the first of equals). Its result is the sum of its experts' results, weighted by
 * the gate: by the probability itself where k is 1, else by the k probabilities divided by their sum. An expert takes tokens in the order of the global
 * batch, first choices before second ones; beyond its capacity a choice is dropped and counts as zeros: the caller's residual, x + result, passes it by.
 * Which are dropped is a matter of the global batch, not of how many ranks or micro-batches share it. The work is that of the choices that are
 * taken; nothing is padded.
 *
 * Parameters: "name.gate.weight" [E, K], "name.in.weight" [E, K, hidden], "name.in.bias" [E, hidden], "name.out.weight" [E, hidden, K],
 * "name.out.bias" [E, K]. Errors: WEFT_E_INVALID (no experts, no hidden features, more choices than experts, a capacity that is negative or NaN),
 * WEFT_E_SHAPE (x is a scalar). */
weft_tensor *weft_mixture_of_experts_with(weft_tensor *x, const char *name, const weft_mixture_of_experts_options *options);

#ifdef __cplusplus
}
#else
#define weft_mixture_of_experts(x, name, ...) weft_mixture_of_experts_with(x, name, &(weft_mixture_of_experts_options){__VA_ARGS__})
#define weft_linear(x, name, ...) weft_linear_with(x, name, &(weft_linear_options){__VA_ARGS__})
#define weft_embedding(index, name, ...) weft_embedding_with(index, name, &(weft_embedding_options){__VA_ARGS__})
#define weft_conv2d(x, name, ...) weft_conv2d_with(x, name, &(weft_conv2d_options){__VA_ARGS__})
#define weft_max_pool2d(x, ...) weft_max_pool2d_with(x, &(weft_pool2d_options){__VA_ARGS__})
#define weft_avg_pool2d(x, ...) weft_avg_pool2d_with(x, &(weft_pool2d_options){__VA_ARGS__})
#define weft_batch_norm(x, name, ...) weft_batch_norm_with(x, name, &(weft_batch_norm_options){__VA_ARGS__})
#define weft_layer_norm(x, name, ...) weft_layer_norm_with(x, name, &(weft_norm_layer_options){__VA_ARGS__})
#define weft_rms_norm(x, name, ...) weft_rms_norm_with(x, name, &(weft_norm_layer_options){__VA_ARGS__})
#define weft_group_norm(x, name, ...) weft_group_norm_with(x, name, &(weft_norm_layer_options){__VA_ARGS__})
#define weft_attention(q, k, v, ...) weft_attention_with(q, k, v, &(weft_attention_options){__VA_ARGS__})
#define weft_rotary(x, ...) weft_rotary_with(x, &(weft_rotary_options){__VA_ARGS__})
#define weft_self_attention(x, name, ...) weft_self_attention_with(x, name, &(weft_self_attention_options){__VA_ARGS__})
#endif
#endif

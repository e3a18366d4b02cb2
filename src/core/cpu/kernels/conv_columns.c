/* Padding images and unrolling them into columns (conv.h).
 *
 * Runs of neighbouring pixels are copied in whole vectors, which may write too much: what follows in the same matrix is written
 * later, and there is room behind its end. Cost: one pass over what the product reads anyway. */
#include "core/cpu/kernels/conv.h"

static int64_t positive(int64_t value) { return value > 0 ? value : 1; }

static void plan_taps(conv_plan *plan) {
    int64_t at = 0;
    for (int64_t c = 0; c < plan->channels; c++)
        for (int64_t i = 0; i < plan->kernel[0]; i++)
            for (int64_t j = 0; j < plan->kernel[1]; j++)
                plan->tap[at++] = (int32_t)(((c * plan->padded_height) + i * plan->dilation[0]) * plan->padded_width +
                                            j * plan->dilation[1]);
}

void conv_plan_of(const wefti_call *call, conv_plan *plan, bool with_taps) {
    const wefti_attrs *attrs = call->attrs;
    bool               to_input = call->op == WEFT_OP_CONV2D_BACKWARD_INPUT;
    bool               to_weight = call->op == WEFT_OP_CONV2D_BACKWARD_WEIGHT;
    const wefti_operand *source = &call->inputs[to_weight ? 1 : 0];
    weft_shape           w = to_weight ? call->outputs[0].shape : call->inputs[1].shape;
    weft_shape           y = to_weight ? call->inputs[0].shape : call->outputs[0].shape;
    plan->groups   = positive(attrs->conv.groups);
    plan->images   = source->shape.dim[0];
    plan->channels = source->shape.dim[1] / plan->groups;
    plan->height   = source->shape.dim[2];
    plan->width    = source->shape.dim[3];
    memcpy(plan->source_stride, source->stride, sizeof plan->source_stride);
    for (int axis = 0; axis < 2; axis++) {
        int64_t stride = positive(attrs->conv.stride[axis]);
        plan->kernel[axis]   = w.dim[2 + axis];
        plan->dilation[axis] = positive(attrs->conv.dilation[axis]);
        plan->stride[axis]   = to_input ? 1 : stride;
        plan->spread[axis]   = to_input ? stride : 1;
    }
    plan->top  = attrs->conv.pad[0];
    plan->left = attrs->conv.pad[2];
    if (to_input) { /* the convolution of the spread gradient with the kernel turned around */
        plan->top  = (plan->kernel[0] - 1) * plan->dilation[0] - plan->top;
        plan->left = (plan->kernel[1] - 1) * plan->dilation[1] - plan->left;
    }
    plan->out_height    = y.dim[2];
    plan->out_width     = y.dim[3];
    plan->pixels        = plan->out_height * plan->out_width;
    plan->padded_height = (plan->out_height - 1) * plan->stride[0] + (plan->kernel[0] - 1) * plan->dilation[0] + 1;
    plan->padded_width  = (plan->out_width - 1) * plan->stride[1] + (plan->kernel[1] - 1) * plan->dilation[1] + 1;
    plan->rows          = (to_input ? w.dim[1] : w.dim[0] / plan->groups);
    plan->k             = plan->channels * plan->kernel[0] * plan->kernel[1];
    plan->k_blocks      = wefti_max_i64(1, (plan->k + CONV_K_BLOCK - 1) / CONV_K_BLOCK);
    int64_t panels      = gemm_b_panels(plan->pixels, 2 * VF);
    plan->parts         = plan->images >= 8 ? 1 : wefti_max_i64(1, wefti_min_i64(8, panels / 2));
    plan->padded_elements = plan->channels * plan->padded_height * plan->padded_width + CONV_SLACK;
    if (with_taps) plan_taps(plan);
}

void conv_pad(const conv_plan *plan, const float *source, int64_t image, int64_t group, float *padded) {
    int64_t first = 0, end = plan->width, step = plan->source_stride[3];
    while (first < end && plan->left + first * plan->spread[1] < 0) first++;
    while (end > first && plan->left + (end - 1) * plan->spread[1] >= plan->padded_width) end--;
    for (int64_t c = 0; c < plan->channels; c++)
        for (int64_t row = 0; row < plan->height; row++) {
            int64_t at = plan->top + row * plan->spread[0];
            if (at < 0 || at >= plan->padded_height) continue;
            const float *from = source + image * plan->source_stride[0] + (group * plan->channels + c) * plan->source_stride[1] +
                                row * plan->source_stride[2];
            float *to = padded + (c * plan->padded_height + at) * plan->padded_width + plan->left;
            if (step == 1 && plan->spread[1] == 1)
                memcpy(to + first, from + first, (size_t)(end - first) * sizeof *to);
            else
                for (int64_t i = first; i < end; i++) to[i * plan->spread[1]] = from[i * step];
        }
}

/* A run of pixels of one output row. */
typedef struct piece {
    int32_t from, to, count;
} piece;

static void copy_pieces(const conv_plan *plan, const float *padded, const piece *pieces, int32_t n, int64_t begin, int64_t end,
                        float *to, int64_t width) {
    int64_t stride = plan->stride[1];
    for (int64_t k = begin; k < end; k++, to += width) {
        const float *shifted = padded + plan->tap[k];
        for (int32_t p = 0; p < n; p++) {
            const float *from = shifted + pieces[p].from;
            float       *into = to + pieces[p].to;
            if (stride == 1)
                for (int32_t i = 0; i < pieces[p].count; i += VF) vf_store(into + i, vf_load(from + i));
            else
                for (int32_t i = 0; i < pieces[p].count; i++) into[i] = from[i * stride];
        }
    }
}

void conv_columns(const conv_plan *plan, const float *padded, int64_t pixel, int64_t count, int64_t begin, int64_t end, float *to,
                  int64_t width) {
    piece   pieces[CONV_MOST_PIXELS];
    int32_t n = 0;
    int64_t row = pixel / plan->out_width, column = pixel % plan->out_width;
    for (int64_t done = 0, taken; done < count; done += taken, row++, column = 0) {
        taken     = wefti_min_i64(plan->out_width - column, count - done);
        pieces[n] = (piece){(int32_t)(row * plan->stride[0] * plan->padded_width + column * plan->stride[1]), (int32_t)done, (int32_t)taken};
        n++;
    }
    copy_pieces(plan, padded, pieces, n, begin, end, to, width);
}

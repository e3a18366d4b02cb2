/* A convolution as products of matrices: what its forward pass and the gradient of its input share.
 *
 * An image (its channels of one group) is copied into a padded plane for each channel, where taps never fall outside. Row k of the
 * matrix of columns is tap (channel, i, j): the padded planes shifted by tap[k], sampled every stride-th pixel. */
#ifndef WEFTI_KERNELS_CONV_H
#define WEFTI_KERNELS_CONV_H

#include "core/cpu/kernels/gemm.h"

enum { CONV_K_BLOCK = 400, CONV_SLACK = 64, CONV_MOST_PIXELS = 512 };

typedef struct conv_plan {
    int64_t images, groups;
    int64_t channels, height, width;     /* of the source, channels of one group */
    int64_t source_stride[4];
    int64_t spread[2];                   /* source pixels lie this far apart in the padded plane: 1, or the stride of a gradient */
    int64_t top, left;                   /* of source pixel 0; negative where it is cut off */
    int64_t padded_height, padded_width;
    int64_t kernel[2], dilation[2], stride[2];
    int64_t out_height, out_width, pixels;
    int64_t rows;                        /* output channels of one group */
    int64_t k, k_blocks;                 /* channels * kernel area */
    int64_t parts;                       /* of the pixels of an image, a chunk each */
    int64_t padded_elements;             /* of an image of a group, with room for a vector to be read beyond */
    int32_t tap[];                       /* [k] */
} conv_plan;

/* Plans of the three ops; without taps where `bytes` is all that is asked for. */
#define conv_plan_of WEFTI_CPU_NAME(wefti_conv_plan_of)
void conv_plan_of(const wefti_call *call, conv_plan *plan, bool with_taps);
/* Copies image `image` of group `group` into zeroed planes. */
#define conv_pad WEFTI_CPU_NAME(wefti_conv_pad)
void conv_pad(const conv_plan *plan, const float *source, int64_t image, int64_t group, float *padded);
/* Pixels of an output row that are neighbours in the padded plane are copied together; so are those of a panel. */
#define conv_columns WEFTI_CPU_NAME(wefti_conv_columns)
/* to[(k - begin)*width + i] for taps [begin, end) and the `count` <= CONV_MOST_PIXELS pixels from `pixel`; may write a vector beyond. */
void conv_columns(const conv_plan *plan, const float *padded, int64_t pixel, int64_t count, int64_t begin, int64_t end, float *to,
                  int64_t width);

#endif

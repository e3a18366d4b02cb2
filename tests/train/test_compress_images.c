/* Compressed training learns: a multilayer perceptron on Fashion-MNIST, 350 steps of AdamW on 128 images by two ranks with a codec of each kind beside
 * none. Rounded gradients are as good as exact ones. What feeds back comes late, and Adam's second moments do not know that: PowerSGD lags
 * a little behind after so few steps, top-k more, the fewer elements it sends. test_compress_images_nightly.c has a longer run of a
 * convolutional network. */
#include <criterion/criterion.h>

#include "train/images.h"

static const char *const how = "--model mlp --batch 128 --epochs 10 --max-steps 350";

Test(compress_images, a_perceptron_learns_as_well_with_each_codec) {
    learns_as_well(how, "bf16", 1, 0.04);
    learns_as_well(how, "fp8", 1, 0.04);
    learns_as_well(how, "powersgd:4", 2, 0.1);
    learns_as_well(how, "topk:0.1", 3, 0.2);
}

/* As test_compress_images.c, with a convolutional network for an epoch. */
#include <criterion/criterion.h>

#include "train/images.h"

static const char *const how = "--model cnn --batch 128 --epochs 1";

Test(compress_images, a_convolutional_network_learns_as_well_with_each_codec) {
    learns_as_well(how, "bf16", 1, 0.05);
    learns_as_well(how, "fp8", 1, 0.05);
    learns_as_well(how, "fp8-e5m2", 1, 0.05);
    learns_as_well(how, "powersgd:4", 2, 0.15);
    learns_as_well(how, "topk:0.1", 3, 0.25);
}

/* Training the sample train_images on real images, and reading how well it learnt. */
#ifndef TESTS_TRAIN_IMAGES_H
#define TESTS_TRAIN_IMAGES_H

typedef struct learnt {
    double test_loss, test_accuracy;
} learnt;

/* `train_images arguments --compress codec` on two ranks, over shared memory. Skips the test where the data or the sample are missing. */
learnt learn(const char *arguments, const char *codec);
/* Compressed by `codec`, it is right in at most `points` of a hundred test images less than without, and its loss is at most `share` more. */
void learns_as_well(const char *arguments, const char *codec, double points, double share);

#endif

/* weft_fit on images of which one rank loses its file on the way. usage: fit FOLDER
 * Every rank writes its own copy of the data to FOLDER, opens it, and rank 1 then cuts its images in half. Prints "error STATUS MESSAGE". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "weft.h"

enum { ROWS = 6000, SIDE = 28, BATCH = 100, CLASSES = 4 }; /* more than 4 MiB of images are read where they lie */

static int write_idx(const char *path, int dimensions, const unsigned char *bytes, size_t count) {
    static const int sizes[3] = {ROWS, SIDE, SIDE};
    FILE            *file = fopen(path, "wb");
    if (!file) return -1;
    fputc(0, file), fputc(0, file), fputc(8, file), fputc(dimensions, file);
    for (int i = 0; i < dimensions; i++) fputc(0, file), fputc(0, file), fputc(sizes[i] >> 8, file), fputc(sizes[i] & 255, file);
    size_t wrote = fwrite(bytes, 1, count, file);
    return fclose(file) == 0 && wrote == count ? 0 : -1;
}

int main(int argc, char **argv) {
    static unsigned char pixels[ROWS * SIDE * SIDE], labels[ROWS];
    char                 paths[2][512];
    weft_world          *world = NULL;
    weft_graph          *graph = NULL;
    weft_loader         *loader = NULL;
    weft_trainer        *trainer = NULL;
    weft_status          status;
    if (argc != 2) return 2;
    for (int i = 0; i < ROWS; i++) {
        labels[i] = (unsigned char)(i % CLASSES);
        memset(pixels + i * SIDE * SIDE, 50 * labels[i], SIDE * SIDE);
    }
    if ((status = weft_world_create(NULL, &world)) != WEFT_OK) goto done;
    for (int i = 0; i < 2; i++) snprintf(paths[i], sizeof paths[i], "%s/%s-%d", argv[1], i ? "labels" : "images", (int)weft_world_rank(world));
    if (write_idx(paths[0], 3, pixels, sizeof pixels) || write_idx(paths[1], 1, labels, sizeof labels)) return 3;
    if ((status = weft_graph_create(NULL, &graph)) != WEFT_OK) goto done;
    weft_loader_options how = {.batch = BATCH, .rank = weft_world_rank(world), .ranks = weft_world_size(world), .in_order = true};
    if ((status = weft_loader_open_images(&(weft_image_source){.images = paths[0], .labels = paths[1]}, &how, &loader)) != WEFT_OK) goto done;
    if (weft_world_rank(world) == 1 && truncate(paths[0], ROWS / 2 * SIDE * SIDE) != 0) return 3;
    weft_tensor *x = weft_flatten(weft_input(graph, "image", WEFT_F32, weft_shape(BATCH, 1, SIDE, SIDE)));
    weft_tensor *loss = weft_cross_entropy(weft_linear(x, "head", .out = CLASSES), weft_input(graph, "label", WEFT_I32, weft_shape(BATCH)));
    if ((status = weft_trainer_create(world, &(weft_program){.loss = loss, .solver = weft_sgd(0.01)}, &trainer)) != WEFT_OK) goto done;
    status = weft_fit(trainer, loader, NULL, NULL);
done:
    if (status != WEFT_OK) printf("error %s %s\n", weft_status_name(status), weft_error_message());
    fflush(stdout);
    weft_trainer_release(trainer);
    weft_loader_release(loader);
    weft_graph_release(graph);
    weft_world_release(world);
    return status == WEFT_OK ? 0 : 1;
}

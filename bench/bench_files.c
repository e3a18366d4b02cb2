/* Loaders and checkpoints: rows a second and bytes a second, beside what plain copies, writes and reads of the same bytes
 * take in the same run. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"
#include "weft.h"

enum { TRIES = 7, ROWS = 20000, BATCH = 64 };

typedef struct files_options {
    const char *folder, *json_path;
    double megabytes;
    FILE *json;
} files_options;

static void fail(const char *what) {
    fprintf(stderr, "error: %s: %s\n", what, weft_error_message());
    exit(1);
}

static void path_in(const files_options *options, const char *name, char *out, size_t room) {
    snprintf(out, room, "%s/weft-bench-%ld-%s", options->folder, (long)getpid(), name);
}

static void report(const files_options *options, const char *what, const char *unit, double amount, double *seconds,
                   double limit) {
    bench_spread spread = bench_spread_over(bench_spread_of(seconds, TRIES), amount);
    char text[32] = "unmeasured";
    if (!isnan(limit)) snprintf(text, sizeof text, "%.4g", limit);
    printf("%-22s %12.4g %-10s limit %s\n", what, spread.median, unit, text);
    bench_write(options->json, &(bench_record){"files", what, "throughput", unit, spread, limit, NULL});
}

/* ---- loaders ---- */

/* A plain IDX file of random-looking images. */
static void write_images(const char *path) {
    static uint8_t pixels[784];
    const uint8_t header[16] = {0, 0, 8, 3, 0, 0, ROWS >> 8, ROWS & 255, 0, 0, 0, 28, 0, 0, 0, 28};
    FILE *file = fopen(path, "wb");
    if (!file) perror(path), exit(1);
    fwrite(header, 1, sizeof header, file);
    for (int row = 0; row < ROWS; row++) {
        for (int i = 0; i < 784; i++) pixels[i] = (uint8_t)(row * 31 + i * 7);
        fwrite(pixels, 1, sizeof pixels, file);
    }
    if (fclose(file) != 0) perror(path), exit(1);
}

/* Seconds of an epoch. */
static double epoch(weft_loader *loader) {
    weft_batch batch;
    weft_status status = weft_loader_rewind(loader);
    double begin = bench_now_s();
    while (status == WEFT_OK) status = weft_loader_next(loader, &batch);
    if (status != WEFT_END) fail("loader");
    return bench_now_s() - begin;
}

/* Copies of as many bytes as a row becomes, a second. */
static double copies(size_t row_bytes) {
    size_t bytes = BATCH * row_bytes;
    char *from = malloc(bytes), *to = malloc(bytes);
    double best = 1e9;
    memset(from, 1, bytes);
    for (int try = 0; try < TRIES; try++) {
        double begin = bench_now_s();
        for (int i = 0; i < 1000; i++) {
            memcpy(to, from, bytes);
            __asm__ __volatile__("" ::: "memory");
        }
        double seconds = (bench_now_s() - begin) / 1000;
        best = seconds < best ? seconds : best;
    }
    free(from);
    free(to);
    return BATCH / best;
}

static void measure_loader(const files_options *options, const char *what, weft_loader *loader, size_t row_bytes) {
    double seconds[TRIES];
    epoch(loader);
    for (int try = 0; try < TRIES; try++) seconds[try] = epoch(loader);
    report(options, what, "rows/s", (double)weft_loader_rows(loader), seconds, copies(row_bytes));
    weft_loader_release(loader);
}

static void bench_loaders(const files_options *options) {
    char path[512];
    weft_loader *loader = NULL;
    weft_loader_options how = {.batch = BATCH, .no_thread = true};
    path_in(options, "images", path, sizeof path);
    write_images(path);
    if (weft_loader_open_images(&(weft_image_source){.images = path}, &how, &loader) != WEFT_OK) fail(path);
    measure_loader(options, "images, plain", loader, 784 * sizeof(float));
    if (weft_loader_open_text(&(weft_text_source){.path = path, .length = 256}, &how, &loader) != WEFT_OK) fail(path);
    measure_loader(options, "text, 256 tokens", loader, 2 * 256 * sizeof(int32_t));
    unlink(path);
    loader = NULL;
    const char *real = "/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz";
    if (access(real, R_OK) != 0) return;
    double seconds[TRIES];
    for (int try = 0; try < TRIES; try++) {
        double begin = bench_now_s();
        weft_loader_release(loader);
        if (weft_loader_open_images(&(weft_image_source){.images = real}, &how, &loader) != WEFT_OK) fail(real);
        seconds[try] = bench_now_s() - begin;
    }
    report(options, "opening gzip images", "rows/s", 10000, seconds, BENCH_UNMEASURED);
    measure_loader(options, "images, unpacked", loader, 784 * sizeof(float));
}

/* ---- checkpoints ---- */

static double save(const char *path, const float *data, int64_t count) {
    weft_checkpoint_writer *writer = NULL;
    double begin = bench_now_s();
    if (weft_checkpoint_create(path, &writer) != WEFT_OK ||
        weft_checkpoint_add(writer, "w", WEFT_F32, weft_shape(count), data) != WEFT_OK ||
        weft_checkpoint_commit(writer) != WEFT_OK)
        fail(path);
    weft_checkpoint_writer_release(writer);
    return bench_now_s() - begin;
}

static double load(const char *path, float *data, int64_t count) {
    weft_checkpoint *checkpoint = NULL;
    double begin = bench_now_s();
    if (weft_checkpoint_open(path, &checkpoint) != WEFT_OK ||
        weft_checkpoint_read(checkpoint, "w", WEFT_F32, weft_shape(count), data) != WEFT_OK)
        fail(path);
    weft_checkpoint_release(checkpoint);
    return bench_now_s() - begin;
}

/* Writing and syncing, or reading, the same bytes without a checksum. */
static double plain(const char *path, bool writing, float *data, size_t bytes) {
    double begin = bench_now_s();
    int descriptor = open(path, writing ? O_WRONLY | O_CREAT | O_TRUNC : O_RDONLY, 0600);
    for (size_t done = 0; descriptor >= 0 && done < bytes;) {
        size_t left = bytes - done < 1 << 20 ? bytes - done : 1 << 20;
        ssize_t now = writing ? write(descriptor, (char *)data + done, left) : read(descriptor, (char *)data + done, left);
        if (now <= 0) perror(path), exit(1);
        done += (size_t)now;
    }
    if (descriptor < 0 || (writing && fsync(descriptor) != 0)) perror(path), exit(1);
    close(descriptor);
    return bench_now_s() - begin;
}

static void bench_checkpoints(const files_options *options) {
    char path[512], other[512];
    int64_t count = (int64_t)(options->megabytes * 1e6 / sizeof(float));
    size_t bytes = (size_t)count * sizeof(float);
    float *data = calloc((size_t)count, sizeof *data);
    double saving[TRIES], loading[TRIES], best_write = 1e9, best_read = 1e9;
    if (!data) perror("memory"), exit(1);
    for (int64_t i = 0; i < count; i++) data[i] = (float)i;
    path_in(options, "checkpoint", path, sizeof path);
    path_in(options, "plain", other, sizeof other);
    for (int try = 0; try < TRIES; try++) { /* in turns, so that a busy disk hits both */
        saving[try] = save(path, data, count);
        best_write = fmin(best_write, plain(other, true, data, bytes));
        loading[try] = load(path, data, count);
        best_read = fmin(best_read, plain(other, false, data, bytes));
    }
    report(options, "checkpoint, save", "GB/s", (double)bytes * 1e-9, saving, (double)bytes * 1e-9 / best_write);
    report(options, "checkpoint, load", "GB/s", (double)bytes * 1e-9, loading, (double)bytes * 1e-9 / best_read);
    unlink(path);
    unlink(other);
    free(data);
}

int bench_files(int argc, char **argv) {
    files_options options = {.folder = "/tmp", .megabytes = 100};
    const bench_option list[] = {{"folder", "where to write (/tmp)", BENCH_TEXT, &options.folder},
                                 {"megabytes", "of a checkpoint (100)", BENCH_NUMBER, &options.megabytes},
                                 {"json", "file for one JSON object a line", BENCH_TEXT, &options.json_path},
                                 {0}};
    bench_read_options(argc, argv, "Loaders and checkpoints, on one core.", list);
    options.json = bench_open_json(options.json_path);
    bench_loaders(&options);
    bench_checkpoints(&options);
    if (options.json) fclose(options.json);
    return 0;
}

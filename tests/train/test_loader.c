/* Loaders: every row once, the same order on any number of ranks, uneven batches, resuming, errors, and no allocation. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/files.h"
#include "weft/loader.h"
#include "weft/memory.h"

enum { rows = 103 };

static uint64_t held(void) {
    weft_memory_counts counts;
    weft_memory_read(&counts);
    return counts.held_bytes;
}

/* A data set whose rows hold their own number twice. */
static weft_loader *open_numbers(weft_loader_options options) {
    static int32_t number[rows];
    static double  pair[rows][2];
    for (int i = 0; i < rows; i++) {
        number[i] = i;
        pair[i][0] = i * 0.5;
        pair[i][1] = -i;
    }
    weft_batch_field fields[] = {{"number", WEFT_I32, weft_shape(rows), number},
                                 {"pair", WEFT_F64, weft_shape(rows, 2), pair}};
    weft_loader *loader = NULL;
    cr_assert_eq(weft_loader_open_arrays(fields, 2, &options, &loader), WEFT_OK, "%s", weft_error_message());
    return loader;
}

/* Row numbers of a batch; checks that the second field goes along. */
static int take(weft_loader *loader, weft_batch *batch, int32_t *number) {
    weft_status status = weft_loader_next(loader, batch);
    if (status == WEFT_END) return -1;
    cr_assert_eq(status, WEFT_OK, "%s", weft_error_message());
    const weft_batch_field *first = weft_batch_find(batch, "number"), *second = weft_batch_find(batch, "pair");
    cr_assert(first && second && !weft_batch_find(batch, "other"));
    cr_assert(weft_shape_equal(first->shape, weft_shape(batch->local_rows)));
    cr_assert(weft_shape_equal(second->shape, weft_shape(batch->local_rows, 2)));
    cr_assert_eq((uintptr_t)first->data % 64, 0u);
    for (int64_t i = 0; i < batch->local_rows; i++) {
        number[i] = ((const int32_t *)first->data)[i];
        cr_assert_eq(((const double *)second->data)[2 * i], number[i] * 0.5);
        cr_assert_eq(((const double *)second->data)[2 * i + 1], -number[i]);
    }
    return (int)batch->local_rows;
}

Test(loader, visits_every_row_once_an_epoch_in_another_order_each) {
    weft_loader *loader = open_numbers((weft_loader_options){.batch = 10, .seed = 3, .epochs = 3});
    weft_batch   batch;
    int32_t      number[10], order[3][rows];
    cr_assert_eq(weft_loader_rows(loader), rows);
    cr_assert_eq(weft_loader_batches(loader), 11);
    for (int epoch = 0; epoch < 3; epoch++) {
        int seen[rows] = {0}, at = 0;
        for (int index = 0; index < 11; index++) {
            int count = take(loader, &batch, number);
            cr_assert_eq(count, index == 10 ? 3 : 10);
            cr_assert_eq(batch.global_rows, count);
            cr_assert_eq(batch.first_row, 0);
            cr_assert(batch.epoch == epoch && batch.index == index && batch.count == 11);
            for (int i = 0; i < count; i++) {
                seen[number[i]]++;
                order[epoch][at++] = number[i];
            }
        }
        for (int i = 0; i < rows; i++) cr_assert_eq(seen[i], 1);
    }
    cr_assert_arr_neq(order[0], order[1], sizeof order[0]);
    cr_assert_arr_neq(order[1], order[2], sizeof order[0]);
    cr_assert_eq(weft_loader_next(loader, &batch), WEFT_END);
    cr_assert_eq(weft_loader_next(loader, &batch), WEFT_END);
    weft_loader_release(loader);
    cr_assert_eq(held(), 0);
}

Test(loader, gives_ranks_the_parts_of_the_same_batches) {
    for (int ranks = 1; ranks <= 7; ranks++) {
        weft_loader *whole = open_numbers((weft_loader_options){.batch = 25, .seed = 9, .epochs = 2});
        weft_loader *part[7];
        for (int rank = 0; rank < ranks; rank++)
            part[rank] = open_numbers((weft_loader_options){.batch = 25, .seed = 9, .epochs = 2, .rank = rank,
                                                            .ranks = ranks, .no_thread = rank % 2});
        int32_t    expected[25], got[25];
        weft_batch batch, local;
        for (int count; (count = take(whole, &batch, expected)) >= 0;) {
            int64_t at = 0;
            for (int rank = 0; rank < ranks; rank++) {
                int share = take(part[rank], &local, got + at);
                cr_assert_eq(local.first_row, at);
                cr_assert_eq(local.global_rows, count);
                cr_assert_eq(share, (int)((int64_t)count * (rank + 1) / ranks - (int64_t)count * rank / ranks));
                at += share;
            }
            cr_assert_eq(at, count);
            cr_assert_arr_eq(got, expected, (size_t)count * sizeof *got);
        }
        for (int rank = 0; rank < ranks; rank++) {
            cr_assert_eq(weft_loader_next(part[rank], &local), WEFT_END);
            weft_loader_release(part[rank]);
        }
        weft_loader_release(whole);
    }
}

Test(loader, leaves_ranks_without_rows_in_a_tiny_last_batch) {
    weft_loader *loader = open_numbers((weft_loader_options){.batch = 50, .rank = 0, .ranks = 7, .in_order = true});
    weft_batch   batch;
    int32_t      number[50];
    take(loader, &batch, number);
    take(loader, &batch, number);
    cr_assert_eq(take(loader, &batch, number), 0, "3 rows on 7 ranks leave rank 0 with none");
    cr_assert_eq(batch.global_rows, 3);
    weft_loader_release(loader);
}

Test(loader, keeps_the_order_or_drops_the_last_when_asked) {
    weft_loader *loader = open_numbers((weft_loader_options){.batch = 10, .in_order = true, .drop_last = true});
    weft_batch   batch, form;
    int32_t      number[10];
    weft_loader_describe(loader, &form);
    cr_assert_eq(form.field_count, 2);
    cr_assert(weft_shape_equal(form.field[1].shape, weft_shape(10, 2)));
    cr_assert_eq(weft_loader_batches(loader), 10);
    for (int index = 0; index < 10; index++) {
        cr_assert_eq(take(loader, &batch, number), 10);
        for (int i = 0; i < 10; i++) cr_assert_eq(number[i], index * 10 + i);
    }
    cr_assert_eq(weft_loader_next(loader, &batch), WEFT_END);
    cr_assert_eq(weft_loader_rewind(loader), WEFT_OK);
    cr_assert_eq(take(loader, &batch, number), 10);
    cr_assert_eq(number[0], 0);
    weft_loader_release(loader);
}

Test(loader, resumes_at_any_batch_also_on_other_ranks) {
    for (int stop = 0; stop <= 22; stop++) {
        weft_loader      *first = open_numbers((weft_loader_options){.batch = 10, .seed = 4, .epochs = 2, .ahead = 5});
        weft_loader      *other = open_numbers((weft_loader_options){.batch = 10, .seed = 8, .epochs = 2, .rank = 1, .ranks = 2});
        weft_loader_state state;
        weft_batch        batch;
        int32_t           number[10], rest[10];
        for (int i = 0; i < stop; i++) take(first, &batch, number);
        weft_loader_save(first, &state);
        cr_assert_eq(state.epoch * 11 + state.batch, stop);
        take(other, &batch, number);
        cr_assert_eq(weft_loader_restore(other, &state), WEFT_OK, "%s", weft_error_message());
        for (int count; (count = take(first, &batch, number)) >= 0;) {
            weft_batch local;
            int        share = take(other, &local, rest);
            cr_assert(local.epoch == batch.epoch && local.index == batch.index);
            cr_assert_arr_eq(rest, number + local.first_row, (size_t)share * sizeof *rest);
        }
        cr_assert_eq(weft_loader_next(other, &batch), WEFT_END);
        weft_loader_release(first);
        weft_loader_release(other);
    }
}

Test(loader, refuses_a_state_that_does_not_fit) {
    weft_loader      *loader = open_numbers((weft_loader_options){.batch = 10});
    weft_loader_state good, bad;
    weft_loader_save(loader, &good);
    bad = good;
    bad.rows++;
    cr_assert_eq(weft_loader_restore(loader, &bad), WEFT_E_MISMATCH);
    cr_assert(message_has("104 rows"), "%s", weft_error_message());
    bad = good;
    bad.batch_rows = 20;
    cr_assert_eq(weft_loader_restore(loader, &bad), WEFT_E_MISMATCH);
    bad = good;
    bad.in_order = true;
    cr_assert_eq(weft_loader_restore(loader, &bad), WEFT_E_MISMATCH);
    bad = good;
    bad.batch = 11;
    cr_assert_eq(weft_loader_restore(loader, &bad), WEFT_E_INVALID);
    bad.batch = -1;
    cr_assert_eq(weft_loader_restore(loader, &bad), WEFT_E_INVALID);
    weft_loader_release(loader);
}

Test(loader, allocates_nothing_once_it_runs) {
    for (int no_thread = 0; no_thread < 2; no_thread++) {
        weft_loader *loader = open_numbers((weft_loader_options){.batch = 7, .epochs = 50, .no_thread = no_thread});
        weft_batch   batch;
        int32_t      number[7];
        take(loader, &batch, number);
        weft_memory_counts before, after;
        weft_memory_read(&before);
        while (take(loader, &batch, number) >= 0) {}
        weft_memory_read(&after);
        cr_assert_eq(before.allocations, after.allocations);
        weft_loader_release(loader);
    }
}

Test(loader, can_be_released_at_any_moment) {
    weft_batch batch;
    for (int taken = 0; taken < 40; taken++) {
        weft_loader *loader = open_numbers((weft_loader_options){.batch = 3, .epochs = -1, .ahead = 1 + taken % 4});
        for (int i = 0; i < taken; i++) cr_assert_eq(weft_loader_next(loader, &batch), WEFT_OK);
        weft_loader_release(loader);
    }
    weft_loader_release(NULL);
    cr_assert_eq(held(), 0);
}

Test(loader, refuses_bad_options_and_fields) {
    int32_t          data[4] = {0};
    weft_batch_field field = {"x", WEFT_I32, weft_shape(4), data}, fields[2] = {field, field};
    weft_loader     *loader = (weft_loader *)1;
    const weft_loader_options bad[] = {{.batch = 0}, {.batch = -1}, {.batch = INT64_C(1) << 32}, {.batch = 1, .rank = 1},
                                       {.batch = 1, .rank = -1, .ranks = 2}, {.batch = 1, .rank = 2, .ranks = 2},
                                       {.batch = 1, .ranks = -1}, {.batch = 1, .ahead = -1}, {.batch = 1, .ahead = 5000},
                                       {.batch = 5, .drop_last = true}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cr_assert_eq(weft_loader_open_arrays(&field, 1, &bad[i], &loader), WEFT_E_INVALID, "options %zu", i);
        cr_assert_null(loader);
    }
    const weft_loader_options good = {.batch = 2};
    cr_assert_eq(weft_loader_open_arrays(NULL, 1, &good, &loader), WEFT_E_INVALID);
    cr_assert_eq(weft_loader_open_arrays(&field, 1, NULL, &loader), WEFT_E_INVALID);
    cr_assert_eq(weft_loader_open_arrays(&field, 1, &good, NULL), WEFT_E_INVALID);
    cr_assert_eq(weft_loader_open_arrays(&field, 0, &good, &loader), WEFT_E_INVALID);
    cr_assert_eq(weft_loader_open_arrays(&field, 9, &good, &loader), WEFT_E_INVALID);
    cr_assert_eq(weft_loader_open_arrays(fields, 2, &good, &loader), WEFT_E_EXISTS);
    fields[1].name = "y";
    fields[1].shape = weft_shape(3);
    cr_assert_eq(weft_loader_open_arrays(fields, 2, &good, &loader), WEFT_E_SHAPE);
    cr_assert(message_has("'y' of a loader has 3 rows, 'x' has 4"), "%s", weft_error_message());
    fields[1].shape = weft_shape_scalar();
    cr_assert_eq(weft_loader_open_arrays(fields, 2, &good, &loader), WEFT_E_SHAPE);
    fields[1].shape = weft_shape(4);
    fields[1].dtype = WEFT_DTYPE_COUNT;
    cr_assert_eq(weft_loader_open_arrays(fields, 2, &good, &loader), WEFT_E_DTYPE);
    fields[1].dtype = WEFT_I32;
    fields[1].data = NULL;
    cr_assert_eq(weft_loader_open_arrays(fields, 2, &good, &loader), WEFT_E_INVALID);
    field.shape = weft_shape(0);
    cr_assert_eq(weft_loader_open_arrays(&field, 1, &good, &loader), WEFT_E_INVALID);
    cr_assert_eq(held(), 0);
}

/* 5 images of 2x3 and their labels. */
static void write_images(const char *images, const char *labels) {
    uint8_t pixels[16 + 30] = {0, 0, 8, 3, 0, 0, 0, 5, 0, 0, 0, 2, 0, 0, 0, 3}, label[8 + 5] = {0, 0, 8, 1, 0, 0, 0, 5};
    for (int i = 0; i < 30; i++) pixels[16 + i] = (uint8_t)(i * 8);
    for (int i = 0; i < 5; i++) label[8 + i] = (uint8_t)(i + 1);
    write_file(images, pixels, sizeof pixels);
    write_file(labels, label, sizeof label);
}

Test(images, normalises_pixels_and_keeps_labels_with_them) {
    const char *images = scratch("images"), *labels = scratch("labels");
    write_images(images, labels);
    weft_image_source   source = {.images = images, .labels = labels, .mean = 0.25, .deviation = 0.5};
    weft_loader_options options = {.batch = 2, .seed = 1};
    weft_loader        *loader = NULL;
    weft_batch          batch;
    int                 seen = 0;
    cr_assert_eq(weft_loader_open_images(&source, &options, &loader), WEFT_OK, "%s", weft_error_message());
    while (weft_loader_next(loader, &batch) == WEFT_OK) {
        const weft_batch_field *image = weft_batch_find(&batch, "image"), *label = weft_batch_find(&batch, "label");
        cr_assert_eq(image->dtype, WEFT_F32);
        cr_assert_eq(label->dtype, WEFT_I32);
        cr_assert(weft_shape_equal(image->shape, weft_shape(batch.local_rows, 1, 2, 3)));
        for (int64_t i = 0; i < batch.local_rows; i++) {
            int row = ((const int32_t *)label->data)[i] - 1;
            seen |= 1 << row;
            for (int k = 0; k < 6; k++)
                cr_assert_float_eq(((const float *)image->data)[i * 6 + k],
                                   ((row * 6 + k) * 8 / 255.0 - 0.25) / 0.5, 1e-6);
        }
    }
    cr_assert_eq(seen, 31);
    weft_loader_release(loader);
    /* A part of the file, without labels. */
    source = (weft_image_source){.images = images, .first_row = 3};
    options.in_order = true;
    cr_assert_eq(weft_loader_open_images(&source, &options, &loader), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_loader_rows(loader), 2);
    cr_assert_eq(weft_loader_next(loader, &batch), WEFT_OK);
    cr_assert_eq(batch.field_count, 1);
    cr_assert_float_eq(((const float *)batch.field[0].data)[0], 18 * 8 / 255.0, 1e-6);
    weft_loader_release(loader);
    cr_assert_eq(held(), 0);
}

Test(images, refuses_files_that_do_not_fit) {
    const char *images = scratch("images"), *labels = scratch("labels"), *bad = scratch("bad");
    write_images(images, labels);
    weft_loader_options options = {.batch = 2};
    weft_loader        *loader = NULL;
    weft_image_source   source = {.images = images, .labels = images};
    cr_assert_eq(weft_loader_open_images(&source, &options, &loader), WEFT_E_SHAPE);
    source.labels = bad;
    cr_assert_eq(weft_loader_open_images(&source, &options, &loader), WEFT_E_NOT_FOUND);
    write_file(bad, (uint8_t[]){0, 0, 8, 1, 0, 0, 0, 2, 1, 1}, 10);
    cr_assert_eq(weft_loader_open_images(&source, &options, &loader), WEFT_E_SHAPE);
    cr_assert(message_has("5 images") && message_has("2 labels"), "%s", weft_error_message());
    write_file(bad, (uint8_t[]){0, 0, 13, 1, 0, 0, 0, 1, 1, 1, 1, 1}, 12);
    cr_assert_eq(weft_loader_open_images(&source, &options, &loader), WEFT_E_DTYPE);
    source.labels = labels;
    source.first_row = 4;
    source.rows = 2;
    cr_assert_eq(weft_loader_open_images(&source, &options, &loader), WEFT_E_INVALID);
    source.first_row = -1;
    cr_assert_eq(weft_loader_open_images(&source, &options, &loader), WEFT_E_INVALID);
    source = (weft_image_source){.images = images, .deviation = -1};
    cr_assert_eq(weft_loader_open_images(&source, &options, &loader), WEFT_E_INVALID);
    source = (weft_image_source){0};
    cr_assert_eq(weft_loader_open_images(&source, &options, &loader), WEFT_E_INVALID);
    cr_assert_eq(held(), 0);
}

/* A file too large to be held in memory: rows of 1 MiB, whose bytes are their number. */
/* Labels are 1 to 5. A label that no class has is named at once where labels are in memory, else at its batch. */
Test(images, name_a_label_of_no_class) {
    const char *images = scratch("images"), *labels = scratch("labels");
    write_images(images, labels);
    weft_loader        *loader = NULL;
    weft_batch          batch;
    weft_loader_options how = {.batch = 2, .in_order = true};
    weft_image_source   source = {.images = images, .labels = labels, .classes = 6};
    cr_assert_eq(weft_loader_open_images(&source, &how, &loader), WEFT_OK, "%s", weft_error_message());
    weft_loader_release(loader);
    source.classes = 5;
    cr_assert_eq(weft_loader_open_images(&source, &how, &loader), WEFT_E_INVALID);
    cr_assert_null(loader);
    cr_assert(message_has("label 5 ") && message_has("row 4 ") && message_has(labels) && message_has("5 classes"), "%s", weft_error_message());
    source.rows = 4; /* the part without it */
    cr_assert_eq(weft_loader_open_images(&source, &how, &loader), WEFT_OK, "%s", weft_error_message());
    weft_loader_release(loader);
    source.rows = 0;
    source.memory_bytes = 1; /* read from a nameless file */
    cr_assert_eq(weft_loader_open_images(&source, &how, &loader), WEFT_OK, "%s", weft_error_message());
    for (int i = 0; i < 2; i++) cr_assert_eq(weft_loader_next(loader, &batch), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_loader_next(loader, &batch), WEFT_E_INVALID);
    cr_assert(message_has("label 5 ") && message_has("row 4 ") && message_has(labels) && message_has("batch 2"), "%s", weft_error_message());
    weft_loader_release(loader);
    source.classes = -1;
    cr_assert_eq(weft_loader_open_images(&source, &how, &loader), WEFT_E_INVALID);
    cr_assert(message_has("-1 classes"), "%s", weft_error_message());
    cr_assert_eq(held(), 0);
}

static void write_large(const char *path, int count) {
    uint8_t  header[12] = {0, 0, 8, 2, 0, 0, 0, (uint8_t)count, 0, 0x10, 0, 0};
    uint8_t *bytes = malloc(12 + ((size_t)count << 20));
    memcpy(bytes, header, 12);
    for (int row = 0; row < count; row++) memset(bytes + 12 + ((size_t)row << 20), row, 1 << 20);
    write_file(path, bytes, 12 + ((size_t)count << 20));
    free(bytes);
}

Test(images, reads_large_files_where_they_lie) {
    const char *images = scratch("images");
    write_large(images, 6);
    weft_image_source   source = {.images = images};
    weft_loader_options options = {.batch = 1, .seed = 2, .no_thread = true};
    weft_loader        *loader = NULL;
    weft_batch          batch;
    int                 seen = 0;
    cr_assert_eq(weft_loader_open_images(&source, &options, &loader), WEFT_OK, "%s", weft_error_message());
    cr_assert_lt(held(), 6u << 20, "the file must not be in memory");
    while (weft_loader_next(loader, &batch) == WEFT_OK) {
        const float *pixel = batch.field[0].data;
        int          row = (int)(pixel[0] * 255 + 0.5f);
        cr_assert(pixel[(1 << 20) - 1] == pixel[0] && row < 6);
        seen |= 1 << row;
    }
    cr_assert_eq(seen, 63);
    weft_loader_release(loader);
}

Test(images, tells_a_file_that_shrinks_under_it_and_stays_failed) {
    const char *images = scratch("images");
    for (int no_thread = 0; no_thread < 2; no_thread++) {
        write_large(images, 5);
        weft_image_source   source = {.images = images};
        weft_loader_options options = {.batch = 1, .in_order = true, .no_thread = no_thread, .rank = 0};
        weft_loader        *loader = NULL;
        weft_batch          batch;
        cr_assert_eq(weft_loader_open_images(&source, &options, &loader), WEFT_OK);
        cr_assert_eq(truncate(images, 12 + (2 << 20) + 1), 0);
        cr_assert_eq(weft_loader_next(loader, &batch), WEFT_OK);
        cr_assert_eq(weft_loader_next(loader, &batch), WEFT_OK);
        cr_assert_eq(weft_loader_next(loader, &batch), WEFT_E_CORRUPT);
        cr_assert(message_has("batch 2 of epoch 0 on rank 0") && message_has(images), "%s", weft_error_message());
        cr_assert_eq(weft_loader_next(loader, &batch), WEFT_E_CORRUPT);
        cr_assert_eq(weft_loader_rewind(loader), WEFT_OK);
        cr_assert_eq(weft_loader_next(loader, &batch), WEFT_OK);
        weft_loader_release(loader);
    }
}

Test(images, reads_wide_values_from_memory_and_from_a_nameless_file) {
    enum { count = 700 };
    const char     *path = scratch("wide");
    static uint8_t  file[12 + count * 3 * 4] = {0, 0, 0x0c, 2, 0, 0, count >> 8, count & 255, 0, 0, 0, 3};
    for (int i = 0; i < count * 3; i++) {
        file[12 + 4 * i + 2] = (uint8_t)(i >> 8);
        file[12 + 4 * i + 3] = (uint8_t)i;
    }
    write_file(path, file, sizeof file);
    for (int64_t limit = 1; limit <= 1 << 20; limit <<= 20) {
        weft_image_source   source = {.images = path, .memory_bytes = limit};
        weft_loader_options options = {.batch = count, .in_order = true};
        weft_loader        *loader = NULL;
        weft_batch          batch;
        cr_assert_eq(weft_loader_open_images(&source, &options, &loader), WEFT_OK, "%s", weft_error_message());
        cr_assert_eq(weft_loader_next(loader, &batch), WEFT_OK, "%s", weft_error_message());
        cr_assert(weft_shape_equal(batch.field[0].shape, weft_shape(count, 3)));
        for (int i = 0; i < count * 3; i++) cr_assert_eq(((const float *)batch.field[0].data)[i], (float)i);
        weft_loader_release(loader);
    }
    cr_assert_eq(setenv("TMPDIR", "/nonexistent", 1), 0);
    weft_image_source   source = {.images = path, .memory_bytes = 1};
    weft_loader_options options = {.batch = 1};
    weft_loader        *loader = NULL;
    cr_assert_eq(weft_loader_open_images(&source, &options, &loader), WEFT_E_NOT_FOUND);
    cr_assert(message_has("TMPDIR"), "%s", weft_error_message());
    cr_assert_eq(held(), 0);
}

Test(images, reads_fashion_mnist) {
    const char *folder = "/usr/share/datasets/fashion-mnist";
    char        images[128], labels[128];
    snprintf(images, sizeof images, "%s/t10k-images-idx3-ubyte.gz", folder);
    snprintf(labels, sizeof labels, "%s/t10k-labels-idx1-ubyte.gz", folder);
    if (!exists(images)) cr_skip_test("dataset-fashion-mnist is not installed");
    weft_image_source   source = {.images = images, .labels = labels};
    weft_loader_options options = {.batch = 64, .seed = 1, .rank = 1, .ranks = 2};
    weft_loader        *loader = NULL;
    weft_batch          batch;
    weft_status         status = weft_loader_open_images(&source, &options, &loader);
    if (status == WEFT_E_UNSUPPORTED) cr_skip_test("built without zlib");
    cr_assert_eq(status, WEFT_OK, "%s", weft_error_message());
    int64_t total = 0, of_class[10] = {0};
    while ((status = weft_loader_next(loader, &batch)) == WEFT_OK) {
        total += batch.local_rows;
        for (int64_t i = 0; i < batch.local_rows; i++) of_class[((const int32_t *)batch.field[1].data)[i]]++;
    }
    cr_assert_eq(status, WEFT_END);
    cr_assert_eq(total, 5000);
    for (int i = 0; i < 10; i++) cr_assert(of_class[i] > 400 && of_class[i] < 600, "class %d: %lld", i, (long long)of_class[i]);
    weft_loader_release(loader);
}

Test(text, gives_windows_and_their_successors) {
    const char *path = scratch("text");
    char        text[101];
    for (int i = 0; i < 100; i++) text[i] = (char)('a' + i % 26);
    write_file(path, text, 100);
    weft_text_source    source = {.path = path, .length = 8};
    weft_loader_options options = {.batch = 5, .in_order = true};
    weft_loader        *loader = NULL;
    weft_batch          batch;
    cr_assert_eq(weft_loader_open_text(&source, &options, &loader), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_loader_rows(loader), 12, "99 tokens have a successor, in windows of 8");
    cr_assert_eq(weft_loader_next(loader, &batch), WEFT_OK);
    const weft_batch_field *tokens = weft_batch_find(&batch, "tokens"), *targets = weft_batch_find(&batch, "targets");
    cr_assert(weft_shape_equal(tokens->shape, weft_shape(5, 8)));
    for (int i = 0; i < 40; i++) {
        cr_assert_eq(((const int32_t *)tokens->data)[i], 'a' + i % 26);
        cr_assert_eq(((const int32_t *)targets->data)[i], 'a' + (i + 1) % 26);
    }
    weft_loader_release(loader);
    /* Every window of a part, with the alphabet's numbers. */
    weft_tokens  *file = NULL;
    weft_alphabet alphabet;
    cr_assert_eq(weft_tokens_open(path, 1, &file), WEFT_OK);
    cr_assert_eq(weft_tokens_alphabet(file, &alphabet), WEFT_OK);
    cr_assert(alphabet.count == 26 && alphabet.id_of['c'] == 2 && alphabet.byte_of[25] == 'z' && alphabet.id_of['A'] == -1);
    weft_tokens_release(file);
    source = (weft_text_source){.path = path, .length = 4, .stride = 1, .first_token = 90, .tokens = 10, .alphabet = &alphabet};
    cr_assert_eq(weft_loader_open_text(&source, &options, &loader), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_loader_rows(loader), 6);
    cr_assert_eq(weft_loader_next(loader, &batch), WEFT_OK);
    for (int w = 0; w < 5; w++)
        for (int i = 0; i < 4; i++) cr_assert_eq(((const int32_t *)batch.field[0].data)[w * 4 + i], (90 + w + i) % 26);
    weft_loader_release(loader);
    alphabet.id_of['t'] = -1;
    cr_assert_eq(weft_loader_open_text(&source, &options, &loader), WEFT_OK);
    cr_assert_eq(weft_loader_next(loader, &batch), WEFT_E_INVALID);
    cr_assert(message_has("byte 0x74 at offset 97"), "%s", weft_error_message());
    weft_loader_release(loader);
    cr_assert_eq(held(), 0);
}

Test(text, reads_sixteen_bit_ids) {
    const char *path = scratch("ids");
    uint16_t    ids[5000];
    for (int i = 0; i < 5000; i++) ids[i] = (uint16_t)(i * 13);
    write_file(path, ids, sizeof ids);
    weft_text_source    source = {.path = path, .length = 4999, .id_bytes = 2};
    weft_loader_options options = {.batch = 1};
    weft_loader        *loader = NULL;
    weft_batch          batch;
    cr_assert_eq(weft_loader_open_text(&source, &options, &loader), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_loader_next(loader, &batch), WEFT_OK);
    for (int i = 0; i < 4999; i++) {
        cr_assert_eq(((const int32_t *)batch.field[0].data)[i], ids[i]);
        cr_assert_eq(((const int32_t *)batch.field[1].data)[i], ids[i + 1]);
    }
    weft_loader_release(loader);
}

Test(text, refuses_what_does_not_fit) {
    const char         *path = scratch("short");
    weft_loader_options options = {.batch = 1};
    weft_loader        *loader = NULL;
    weft_tokens        *tokens = NULL;
    weft_alphabet       alphabet = {0};
    int32_t             id;
    write_file(path, "abcde", 5);
    const weft_text_source bad[] = {{.path = path, .length = 5}, {.path = path}, {.path = path, .length = 2, .stride = -1},
                                    {.path = path, .length = 2, .first_token = 6}, {.length = 2},
                                    {.path = path, .length = 2, .tokens = 6}, {.path = path, .length = 2, .id_bytes = 3},
                                    {.path = path, .length = 2, .id_bytes = 2, .alphabet = &alphabet}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cr_assert_eq(weft_loader_open_text(&bad[i], &options, &loader), WEFT_E_INVALID, "source %zu", i);
    weft_text_source odd = {.path = path, .length = 2, .id_bytes = 2};
    cr_assert_eq(weft_loader_open_text(&odd, &options, &loader), WEFT_E_CORRUPT);
    cr_assert_eq(weft_tokens_open(scratch("none"), 1, &tokens), WEFT_E_NOT_FOUND);
    cr_assert_null(tokens);
    cr_assert_eq(weft_tokens_open(path, 1, &tokens), WEFT_OK);
    cr_assert_eq(memcmp(weft_tokens_data(tokens), "abcde", 5), 0);
    cr_assert_eq(weft_tokens_read(tokens, 5, 1, &id), WEFT_E_INVALID);
    cr_assert_eq(weft_tokens_read(tokens, -1, 1, &id), WEFT_E_INVALID);
    cr_assert_eq(weft_tokens_read(tokens, 0, INT64_MAX, &id), WEFT_E_INVALID);
    cr_assert_eq(truncate(path, 2), 0);
    cr_assert_eq(weft_tokens_read(tokens, 4, 1, &id), WEFT_E_CORRUPT);
    weft_tokens_release(tokens);
    weft_tokens_release(NULL);
    cr_assert_eq(held(), 0);
}

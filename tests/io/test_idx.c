/* IDX reading: every type, every truncation, every header byte changed, plain and gzip, and the real data set. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/files.h"
#include "gzip.h"
#include "weft/idx.h"
#include "weft/memory.h"

/* 3 rows of 2x2 bytes. */
static const uint8_t small[] = {0, 0, 8, 3, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 255};

/* Opens and reads all; the status of the first thing that failed, WEFT_OK after the last row. */
static weft_status read_all(const char *path, void *out, size_t room, int64_t *rows_out) {
    weft_idx *idx = NULL;
    *rows_out = 0;
    weft_status status = weft_idx_open(path, &idx);
    if (status != WEFT_OK) {
        cr_assert_null(idx);
        return status;
    }
    int64_t row_bytes = weft_idx_describe(idx)->row_bytes, got = 0;
    while ((status = weft_idx_read(idx, 2, out, &got)) == WEFT_OK) {
        *rows_out += got;
        cr_assert_geq((int64_t)room, 2 * row_bytes);
    }
    weft_idx_release(idx);
    return status == WEFT_END ? WEFT_OK : status;
}

static uint64_t held(void) {
    weft_memory_counts counts;
    weft_memory_read(&counts);
    return counts.held_bytes;
}

Test(idx, reads_bytes_row_by_row) {
    const char *path = scratch("a.idx");
    write_file(path, small, sizeof small);
    weft_idx *idx = NULL;
    cr_assert_eq(weft_idx_open(path, &idx), WEFT_OK, "%s", weft_error_message());
    const weft_idx_info *info = weft_idx_describe(idx);
    cr_assert_eq(info->dtype, WEFT_U8);
    cr_assert_str_eq(info->stored, "u8");
    cr_assert(weft_shape_equal(info->shape, weft_shape(3, 2, 2)));
    cr_assert_eq(info->row_bytes, 4);
    cr_assert_eq(info->data_offset, 16);
    cr_assert_not(info->compressed);
    uint8_t row[8];
    int64_t got = 0;
    cr_assert_eq(weft_idx_read(idx, 0, NULL, &got), WEFT_OK);
    cr_assert_eq(got, 0);
    cr_assert_eq(weft_idx_read(idx, 2, row, &got), WEFT_OK);
    cr_assert_eq(got, 2);
    cr_assert_arr_eq(row, small + 16, 8);
    cr_assert_eq(weft_idx_read(idx, 2, row, &got), WEFT_OK);
    cr_assert_eq(got, 1);
    cr_assert_arr_eq(row, small + 24, 4);
    cr_assert_eq(weft_idx_read(idx, 2, row, &got), WEFT_END);
    cr_assert_eq(got, 0);
    weft_idx_release(idx);
    cr_assert_eq(held(), 0);
}

/* Files of one row of two values, in each type. */
Test(idx, reads_every_type) {
    const struct {
        uint8_t     type, bytes[16], count;
        weft_dtype  dtype;
        const char *stored;
        double      expected[2];
    } cases[] = {
        {0x08, {200, 1}, 2, WEFT_U8, "u8", {200, 1}},
        {0x09, {0x80, 0x7f}, 2, WEFT_I32, "i8", {-128, 127}},
        {0x0b, {0x80, 0x00, 0x01, 0x02}, 4, WEFT_I32, "i16", {-32768, 258}},
        {0x0c, {0xff, 0xff, 0xff, 0xfe, 0x00, 0x01, 0x00, 0x00}, 8, WEFT_I32, "i32", {-2, 65536}},
        {0x0d, {0x3f, 0xc0, 0, 0, 0xc0, 0x20, 0, 0}, 8, WEFT_F32, "f32", {1.5, -2.5}},
        {0x0e, {0x3f, 0xf8, 0, 0, 0, 0, 0, 0, 0xc0, 0x04, 0, 0, 0, 0, 0, 0}, 16, WEFT_F64, "f64", {1.5, -2.5}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t file[64] = {0, 0, cases[i].type, 2, 0, 0, 0, 1, 0, 0, 0, 2};
        memcpy(file + 12, cases[i].bytes, cases[i].count);
        const char *path = scratch("typed.idx");
        write_file(path, file, 12u + cases[i].count);
        weft_idx *idx = NULL;
        cr_assert_eq(weft_idx_open(path, &idx), WEFT_OK, "%s", weft_error_message());
        cr_assert_eq(weft_idx_describe(idx)->dtype, cases[i].dtype);
        cr_assert_str_eq(weft_idx_describe(idx)->stored, cases[i].stored);
        union {
            uint8_t u8[2];
            int32_t i32[2];
            float   f32[2];
            double  f64[2];
        } out;
        int64_t got;
        cr_assert_eq(weft_idx_read(idx, 5, &out, &got), WEFT_OK);
        for (int k = 0; k < 2; k++) {
            double value = cases[i].dtype == WEFT_U8    ? out.u8[k]
                           : cases[i].dtype == WEFT_I32 ? out.i32[k]
                           : cases[i].dtype == WEFT_F32 ? (double)out.f32[k]
                                                        : out.f64[k];
            cr_assert_eq(value, cases[i].expected[k], "type 0x%02x value %d is %g", cases[i].type, k, value);
        }
        weft_idx_release(idx);
    }
}

Test(idx, widens_more_than_its_buffer_holds) {
    enum { count = 5001 };
    static uint8_t file[8 + 2 * count] = {0, 0, 0x0b, 1, 0, 0, count >> 8, count & 255};
    for (int i = 0; i < count; i++) {
        int value = i * 13 - 32000;
        file[8 + 2 * i] = (uint8_t)(value >> 8);
        file[9 + 2 * i] = (uint8_t)value;
    }
    const char *path = scratch("wide.idx");
    write_file(path, file, sizeof file);
    weft_idx      *idx = NULL;
    static int32_t out[count];
    int64_t        got;
    cr_assert_eq(weft_idx_open(path, &idx), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(weft_idx_read(idx, count, out, &got), WEFT_OK);
    for (int i = 0; i < count; i++) cr_assert_eq(out[i], (int16_t)(i * 13 - 32000), "value %d", i);
    weft_idx_release(idx);
}

Test(idx, names_every_truncation_and_trailing_bytes) {
    uint8_t out[64];
    int64_t rows;
    for (size_t length = 0; length <= sizeof small + 3; length++) {
        uint8_t bytes[sizeof small + 3] = {0};
        memcpy(bytes, small, sizeof small);
        const char *path = scratch("cut.idx");
        write_file(path, bytes, length);
        weft_status status = read_all(path, out, sizeof out, &rows);
        if (length == sizeof small) {
            cr_assert_eq(status, WEFT_OK, "%s", weft_error_message());
            continue;
        }
        cr_assert_eq(status, WEFT_E_CORRUPT, "length %zu gave %s", length, weft_status_name(status));
        cr_assert(message_has(path), "%s", weft_error_message());
    }
    cr_assert_eq(held(), 0);
}

Test(idx, refuses_every_changed_header_byte) {
    uint8_t out[64];
    int64_t rows;
    for (size_t at = 0; at < 16; at++)
        for (int value = 0; value < 256; value++) {
            uint8_t bytes[sizeof small];
            memcpy(bytes, small, sizeof small);
            if (bytes[at] == value) continue;
            bytes[at] = (uint8_t)value;
            const char *path = scratch("changed.idx");
            write_file(path, bytes, sizeof bytes);
            weft_status status = read_all(path, out, sizeof out, &rows);
            /* A type of the same width is a valid file of another type; nothing can tell. */
            if (at == 2 && value == 0x09) cr_assert_eq(status, WEFT_OK);
            else cr_assert(status == WEFT_E_CORRUPT || status == WEFT_E_UNSUPPORTED || status == WEFT_E_OVERFLOW,
                           "byte %zu = %d gave %s", at, value, weft_status_name(status));
        }
    cr_assert_eq(held(), 0);
}

Test(idx, refuses_sizes_that_overflow) {
    uint8_t     bytes[4 + 32] = {0, 0, 0x0e, 8};
    const char *path = scratch("huge.idx");
    memset(bytes + 4, 0xff, 32);
    write_file(path, bytes, sizeof bytes);
    weft_idx *idx = NULL;
    cr_assert_eq(weft_idx_open(path, &idx), WEFT_E_OVERFLOW);
    cr_assert(message_has("4294967295"), "%s", weft_error_message());
    bytes[3] = 9;
    write_file(path, bytes, sizeof bytes);
    cr_assert_eq(weft_idx_open(path, &idx), WEFT_E_UNSUPPORTED);
    bytes[3] = 0;
    write_file(path, bytes, sizeof bytes);
    cr_assert_eq(weft_idx_open(path, &idx), WEFT_E_CORRUPT);
    cr_assert(message_has("rank 0"), "%s", weft_error_message());
}

Test(idx, accepts_no_rows_and_empty_rows) {
    uint8_t     none[] = {0, 0, 8, 2, 0, 0, 0, 0, 0, 0, 0, 7}, empty[] = {0, 0, 8, 2, 0, 0, 0, 5, 0, 0, 0, 0};
    const char *path = scratch("empty.idx");
    int64_t     rows;
    uint8_t     out[64];
    write_file(path, none, sizeof none);
    cr_assert_eq(read_all(path, out, sizeof out, &rows), WEFT_OK);
    cr_assert_eq(rows, 0);
    write_file(path, empty, sizeof empty);
    cr_assert_eq(read_all(path, out, sizeof out, &rows), WEFT_OK);
    cr_assert_eq(rows, 5);
}

Test(idx, refuses_paths_that_are_no_files) {
    weft_idx *idx = (weft_idx *)1;
    cr_assert_eq(weft_idx_open(scratch("missing.idx"), &idx), WEFT_E_NOT_FOUND);
    cr_assert_null(idx);
    cr_assert(message_has("missing.idx"));
    cr_assert_eq(weft_idx_open("/tmp", &idx), WEFT_E_INVALID);
    cr_assert(message_has("folder"));
    cr_assert_eq(weft_idx_open("", &idx), WEFT_E_INVALID);
    cr_assert_eq(weft_idx_open(NULL, &idx), WEFT_E_INVALID);
    const char *pipe_path = scratch("pipe");
    cr_assert_eq(mkfifo(pipe_path, 0600), 0);
    cr_assert_eq(weft_idx_open(pipe_path, &idx), WEFT_E_INVALID, "a pipe must not be waited for");
    if (geteuid() != 0) {
        const char *path = scratch("locked.idx");
        write_file(path, small, sizeof small);
        chmod(path, 0);
        cr_assert_eq(weft_idx_open(path, &idx), WEFT_E_IO);
    }
    cr_assert_eq(held(), 0);
}

Test(idx, refuses_bad_arguments) {
    int64_t got;
    uint8_t out[4];
    cr_assert_eq(weft_idx_open("x", NULL), WEFT_E_INVALID);
    cr_assert_eq(weft_idx_read(NULL, 1, out, &got), WEFT_E_INVALID);
    const char *path = scratch("b.idx");
    write_file(path, small, sizeof small);
    weft_idx *idx = NULL;
    cr_assert_eq(weft_idx_open(path, &idx), WEFT_OK);
    cr_assert_eq(weft_idx_read(idx, -1, out, &got), WEFT_E_INVALID);
    cr_assert_eq(weft_idx_read(idx, 1, NULL, &got), WEFT_E_INVALID);
    cr_assert_eq(weft_idx_read(idx, 1, out, NULL), WEFT_E_INVALID);
    cr_assert_eq(weft_idx_read(idx, 1, out, &got), WEFT_OK);
    weft_idx_release(idx);
    weft_idx_release(NULL);
}

Test(idx, tells_a_file_that_shrinks_while_it_is_read) {
    enum { rows = 300000 };
    const char *path = scratch("shrinks.idx");
    uint8_t    *bytes = calloc(1, 8 + rows);
    memcpy(bytes, (uint8_t[]){0, 0, 8, 1, rows >> 24, rows >> 16 & 255, rows >> 8 & 255, rows & 255}, 8);
    write_file(path, bytes, 8 + rows);
    weft_idx *idx = NULL;
    int64_t   got;
    cr_assert_eq(weft_idx_open(path, &idx), WEFT_OK);
    cr_assert_eq(weft_idx_read(idx, 10, bytes, &got), WEFT_OK);
    cr_assert_eq(truncate(path, 100000), 0);
    cr_assert_eq(weft_idx_read(idx, rows, bytes, &got), WEFT_E_CORRUPT);
    cr_assert(message_has("rows missing"), "%s", weft_error_message());
    cr_assert_eq(weft_idx_read(idx, 1, bytes, &got), WEFT_E_STATE, "an error must latch");
    weft_idx_release(idx);
    free(bytes);
}

#ifdef WEFT_TEST_ZLIB
Test(gzip, reads_the_same_rows) {
    const char *path = scratch("a.idx.gz");
    gzip_file(path, small, sizeof small);
    uint8_t   row[12];
    int64_t   got;
    weft_idx *idx = NULL;
    cr_assert_eq(weft_idx_open(path, &idx), WEFT_OK, "%s", weft_error_message());
    cr_assert(weft_idx_describe(idx)->compressed);
    cr_assert_eq(weft_idx_read(idx, 9, row, &got), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(got, 3);
    cr_assert_arr_eq(row, small + 16, 12);
    weft_idx_release(idx);
    cr_assert_eq(held(), 0);
}

Test(gzip, names_every_truncation) {
    gzip_file(scratch("whole.gz"), small, sizeof small);
    size_t      count;
    uint8_t    *bytes = read_file(scratch("whole.gz"), &count), out[64];
    const char *path = scratch("cut.gz");
    int64_t     rows;
    for (size_t length = 0; length < count; length++) {
        write_file(path, bytes, length);
        weft_status status = read_all(path, out, sizeof out, &rows);
        cr_assert_eq(status, WEFT_E_CORRUPT, "length %zu gave %s", length, weft_status_name(status));
        cr_assert(message_has(path));
    }
    cr_assert_eq(held(), 0);
    free(bytes);
}

Test(gzip, never_hands_out_changed_data_after_a_bit_flip) {
    gzip_file(scratch("whole.gz"), small, sizeof small);
    size_t      count;
    uint8_t    *bytes = read_file(scratch("whole.gz"), &count);
    const char *path = scratch("flip.gz");
    int         refused = 0;
    for (size_t at = 0; at < count; at++)
        for (int bit = 0; bit < 8; bit++) {
            bytes[at] ^= (uint8_t)(1 << bit);
            write_file(path, bytes, count);
            bytes[at] ^= (uint8_t)(1 << bit);
            weft_idx       *idx = NULL;
            static uint8_t  out[1 << 20];
            int64_t         got = 0, total = 0;
            weft_status     status = weft_idx_open(path, &idx);
            /* The shape may be wrong until the checksum at the end says so. */
            while (status == WEFT_OK && (status = weft_idx_read(idx, 1, out + 4 * (total % 3), &got)) == WEFT_OK)
                cr_assert(++total < 1000 && weft_idx_describe(idx)->row_bytes < (1 << 19), "byte %zu bit %d", at, bit);
            if (status == WEFT_END) status = WEFT_OK;
            if (status == WEFT_OK) {
                /* Time stamp, flags without meaning, the system's number and padding bits carry no data. */
                cr_assert(at >= 3 && at < count - 8, "byte %zu bit %d went unseen", at, bit);
                cr_assert_eq(total, 3);
                cr_assert_arr_eq(out, small + 16, 12);
            } else {
                refused++;
            }
            weft_idx_release(idx);
        }
    cr_assert_geq(refused, (int)(count - 8) * 8, "only %d flips were refused", refused);
    cr_assert_eq(held(), 0);
    free(bytes);
}

Test(gzip, refuses_trailing_bytes_and_reads_members_as_one) {
    uint8_t     out[64];
    int64_t     rows;
    size_t      first, second;
    const char *path = scratch("two.gz");
    gzip_file(scratch("1.gz"), small, 19);
    gzip_file(scratch("2.gz"), small + 19, sizeof small - 19);
    uint8_t *one = read_file(scratch("1.gz"), &first), *two = read_file(scratch("2.gz"), &second);
    uint8_t *both = malloc(first + second + 1);
    memcpy(both, one, first);
    memcpy(both + first, two, second);
    write_file(path, both, first + second);
    cr_assert_eq(read_all(path, out, sizeof out, &rows), WEFT_OK, "%s", weft_error_message());
    cr_assert_eq(rows, 3);
    for (size_t length = 0; length < first + second; length++) {
        write_file(path, both, length);
        cr_assert_eq(read_all(path, out, sizeof out, &rows), WEFT_E_CORRUPT, "length %zu", length);
    }
    for (int extra = 0; extra < 256; extra += 5) {
        both[first + second] = (uint8_t)extra;
        write_file(path, both, first + second + 1);
        cr_assert_eq(read_all(path, out, sizeof out, &rows), WEFT_E_CORRUPT, "a byte %d behind the end", extra);
    }
    free(one);
    free(two);
    free(both);
}

Test(gzip, refuses_more_and_fewer_bytes_than_the_header_says) {
    uint8_t     more[sizeof small + 1] = {0}, out[64];
    const char *path = scratch("long.gz");
    int64_t     rows;
    memcpy(more, small, sizeof small);
    gzip_file(path, more, sizeof more);
    cr_assert_eq(read_all(path, out, sizeof out, &rows), WEFT_E_CORRUPT);
    cr_assert(message_has("goes on after offset 28"), "%s", weft_error_message());
    gzip_file(path, small, sizeof small - 1);
    cr_assert_eq(read_all(path, out, sizeof out, &rows), WEFT_E_CORRUPT);
    cr_assert(message_has("ends at offset 27"), "%s", weft_error_message());
}

Test(gzip, refuses_a_header_that_the_file_cannot_hold) {
    uint8_t     bytes[16] = {0, 0, 8, 3, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1};
    const char *path = scratch("bomb.gz");
    weft_idx   *idx = NULL;
    gzip_file(path, bytes, sizeof bytes);
    cr_assert_eq(weft_idx_open(path, &idx), WEFT_E_CORRUPT);
    cr_assert(message_has("cannot hold"), "%s", weft_error_message());
}

Test(gzip, reads_fashion_mnist) {
    const char *path = "/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz";
    if (!exists(path)) cr_skip_test("dataset-fashion-mnist is not installed");
    weft_idx *idx = NULL;
    cr_assert_eq(weft_idx_open(path, &idx), WEFT_OK, "%s", weft_error_message());
    cr_assert(weft_shape_equal(weft_idx_describe(idx)->shape, weft_shape(10000, 28, 28)));
    static uint8_t rows[1000 * 784];
    int64_t        got, total = 0, sum = 0;
    weft_status    status;
    while ((status = weft_idx_read(idx, 1000, rows, &got)) == WEFT_OK) {
        for (int64_t i = 0; i < got * 784; i++) sum += rows[i];
        total += got;
    }
    cr_assert_eq(status, WEFT_END, "%s", weft_error_message());
    cr_assert_eq(total, 10000);
    cr_assert_float_eq((double)sum / (255.0 * 7840000.0), 0.2868, 5e-4, "the mean pixel is %f",
                       (double)sum / (255.0 * 7840000.0));
    weft_memory_counts counts;
    weft_memory_read(&counts);
    cr_assert_lt(counts.peak_bytes, 256u << 10, "a reader must hold little: %llu", (unsigned long long)counts.peak_bytes);
    weft_idx_release(idx);
}
#else
Test(gzip, is_refused_in_plain_words) {
    const char *path = scratch("a.gz");
    weft_idx   *idx = NULL;
    write_file(path, (uint8_t[]){0x1f, 0x8b, 8, 0}, 4);
    cr_assert_eq(weft_idx_open(path, &idx), WEFT_E_UNSUPPORTED);
    cr_assert(message_has("zlib"));
}
#endif

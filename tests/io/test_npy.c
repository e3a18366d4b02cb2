/* npy: every type, both orders, round trips, every truncation, every header byte changed, hostile headers. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/files.h"
#include "gzip.h"
#include "weft/memory.h"
#include "weft/npy.h"

#define OK(call) cr_assert_eq((call), WEFT_OK, "%s", weft_error_message())

static uint64_t held(void) {
    weft_memory_counts counts;
    weft_memory_read(&counts);
    return counts.held_bytes;
}

/* A version 1.0 file of a dictionary and data. */
static const char *made(const char *dictionary, const void *data, size_t bytes) {
    const char *path = scratch("made.npy");
    size_t      length = strlen(dictionary);
    uint8_t    *file = calloc(1, 10 + length + bytes + 1);
    memcpy(file, "\x93NUMPY\x01\x00", 8);
    file[8] = (uint8_t)length;
    file[9] = (uint8_t)(length >> 8);
    memcpy(file + 10, dictionary, length);
    if (data) memcpy(file + 10 + length, data, bytes);
    write_file(path, file, 10 + length + bytes);
    free(file);
    return path;
}

static weft_status read_made(const char *dictionary, const void *data, size_t bytes, void *out) {
    weft_npy   *npy = NULL;
    weft_status status = weft_npy_open(made(dictionary, data, bytes), &npy);
    if (status == WEFT_OK) status = weft_npy_read(npy, out);
    weft_npy_release(npy);
    return status;
}

Test(npy, reads_every_type_and_byte_order) {
    const struct {
        const char *descr;
        uint8_t     bytes[16], count;
        weft_dtype  dtype;
        double      expected[2];
    } cases[] = {
        {"<f4", {0, 0, 0xc0, 0x3f, 0, 0, 0x20, 0xc0}, 8, WEFT_F32, {1.5, -2.5}},
        {">f4", {0x3f, 0xc0, 0, 0, 0xc0, 0x20, 0, 0}, 8, WEFT_F32, {1.5, -2.5}},
        {"<f8", {0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 0, 0, 0, 0, 0, 0, 4, 0xc0}, 16, WEFT_F64, {1.5, -2.5}},
        {">f8", {0x3f, 0xf8, 0, 0, 0, 0, 0, 0, 0xc0, 4, 0, 0, 0, 0, 0, 0}, 16, WEFT_F64, {1.5, -2.5}},
        {"<i8", {1, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 16, WEFT_I64, {1, -1}},
        {"<i4", {0, 1, 0, 0, 0xfe, 0xff, 0xff, 0xff}, 8, WEFT_I32, {256, -2}},
        {"|u1", {200, 1}, 2, WEFT_U8, {200, 1}},
        {"|b1", {1, 0}, 2, WEFT_BOOL, {1, 0}},
        {"|i1", {0x80, 0x7f}, 2, WEFT_I32, {-128, 127}},
        {"<i2", {0, 0x80, 1, 0}, 4, WEFT_I32, {-32768, 1}},
        {">i2", {0x80, 0, 0, 1}, 4, WEFT_I32, {-32768, 1}},
        {"<u2", {0xff, 0xff, 1, 0}, 4, WEFT_I32, {65535, 1}},
        {">u4", {0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1}, 8, WEFT_I64, {4294967295.0, 1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char      dictionary[100];
        weft_npy *npy = NULL;
        snprintf(dictionary, sizeof dictionary, "{'descr': '%s', 'fortran_order': False, 'shape': (2,), }\n", cases[i].descr);
        OK(weft_npy_open(made(dictionary, cases[i].bytes, cases[i].count), &npy));
        cr_assert_eq(weft_npy_describe(npy)->dtype, cases[i].dtype);
        cr_assert_str_eq(weft_npy_describe(npy)->stored, cases[i].descr);
        union {
            float   f32[2];
            double  f64[2];
            int64_t i64[2];
            int32_t i32[2];
            uint8_t u8[2];
        } out;
        OK(weft_npy_read(npy, &out));
        for (int k = 0; k < 2; k++) {
            double value = cases[i].dtype == WEFT_F32   ? (double)out.f32[k]
                           : cases[i].dtype == WEFT_F64 ? out.f64[k]
                           : cases[i].dtype == WEFT_I64 ? (double)out.i64[k]
                           : cases[i].dtype == WEFT_I32 ? out.i32[k]
                                                        : out.u8[k];
            cr_assert_eq(value, cases[i].expected[k], "%s value %d is %g", cases[i].descr, k, value);
        }
        cr_assert_eq(weft_npy_read(npy, &out), WEFT_E_STATE);
        weft_npy_release(npy);
    }
}

Test(npy, turns_column_major_arrays) {
    uint8_t column[24], row[24];
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 3; j++)
            for (int k = 0; k < 4; k++) column[i + 2 * j + 6 * k] = (uint8_t)(i * 100 + j * 10 + k);
    OK(read_made("{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3, 4)}", column, 24, row));
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 3; j++)
            for (int k = 0; k < 4; k++) cr_assert_eq(row[i * 12 + j * 4 + k], i * 100 + j * 10 + k);
}

Test(npy, gives_back_what_was_written) {
    const weft_dtype dtypes[] = {WEFT_F32, WEFT_F64, WEFT_F16, WEFT_I64, WEFT_I32, WEFT_U8, WEFT_BOOL};
    const weft_shape shapes[] = {weft_shape_scalar(), weft_shape(1), weft_shape(3, 5), weft_shape(2, 0, 4),
                                 weft_shape(1, 2, 1, 2, 1, 2, 1, 3)};
    uint8_t          data[512], out[512];
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
            const char *path = scratch("a.npy");
            weft_npy   *npy = NULL;
            size_t      bytes = (size_t)weft_shape_elements(shapes[k]) * weft_dtype_bytes(dtypes[i]), count;
            for (size_t b = 0; b < sizeof data; b++) data[b] = (uint8_t)(dtypes[i] == WEFT_BOOL ? b % 2 : b * 7);
            OK(weft_npy_save(path, dtypes[i], shapes[k], data));
            free(read_file(path, &count));
            cr_assert_eq((count - bytes) % 64, 0u, "data must be aligned");
            OK(weft_npy_open(path, &npy));
            cr_assert_eq(weft_npy_describe(npy)->dtype, dtypes[i]);
            cr_assert(weft_shape_equal(weft_npy_describe(npy)->shape, shapes[k]));
            OK(weft_npy_read(npy, out));
            cr_assert_arr_eq(out, data, bytes);
            weft_npy_release(npy);
        }
    cr_assert_eq(weft_npy_save(scratch("a.npy"), WEFT_BF16, weft_shape(1), data), WEFT_E_UNSUPPORTED);
    cr_assert_eq(weft_npy_save(scratch("a.npy"), WEFT_F32, weft_shape(INT64_MAX), data), WEFT_E_OVERFLOW);
    cr_assert_eq(weft_npy_save(scratch("a.npy"), WEFT_F32, weft_shape(1), NULL), WEFT_E_INVALID);
    cr_assert_eq(weft_npy_save("/nonexistent/a.npy", WEFT_F32, weft_shape(1), data), WEFT_E_NOT_FOUND);
    cr_assert_eq(held(), 0);
}

Test(npy, names_every_truncation_and_extension) {
    float       data[6] = {1, 2, 3, 4, 5, 6};
    size_t      count;
    const char *path = scratch("cut.npy");
    OK(weft_npy_save(scratch("a.npy"), WEFT_F32, weft_shape(2, 3), data));
    uint8_t *bytes = read_file(scratch("a.npy"), &count);
    for (size_t length = 0; length <= count + 1; length++) {
        weft_npy *npy = NULL;
        if (length == count) continue;
        write_file(path, bytes, length);
        cr_assert_eq(weft_npy_open(path, &npy), WEFT_E_CORRUPT, "length %zu", length);
        cr_assert(message_has(path), "%s", weft_error_message());
    }
    if (gzip_file(path, bytes, count + 1)) {
        weft_npy *npy = NULL;
        OK(weft_npy_open(path, &npy));
        cr_assert_eq(weft_npy_read(npy, data), WEFT_E_CORRUPT);
        weft_npy_release(npy);
        gzip_file(path, bytes, count);
        OK(weft_npy_open(path, &npy));
        OK(weft_npy_read(npy, data));
        weft_npy_release(npy);
    }
    free(bytes);
    cr_assert_eq(held(), 0);
}

Test(npy, survives_every_changed_header_byte) {
    float       data[6] = {1, 2, 3, 4, 5, 6};
    uint8_t     out[4096];
    size_t      count;
    const char  special[] = "{}()[]',:\"0129 \n\xff-.TF<>|\\";
    const char *path = scratch("changed.npy");
    OK(weft_npy_save(scratch("a.npy"), WEFT_F32, weft_shape(2, 3), data));
    uint8_t *bytes = read_file(scratch("a.npy"), &count);
    for (size_t at = 0; at < 128; at++)
        for (int i = 0; i < 8 + (int)sizeof special - 1; i++) {
            uint8_t   before = bytes[at];
            weft_npy *npy = NULL;
            bytes[at] = i < 8 ? (uint8_t)(before ^ 1 << i) : (uint8_t)special[i - 8];
            write_file(path, bytes, count);
            weft_status status = weft_npy_open(path, &npy);
            if (status == WEFT_OK) status = weft_npy_read(npy, out);
            cr_assert(status == WEFT_OK || status == WEFT_E_CORRUPT || status == WEFT_E_UNSUPPORTED ||
                          status == WEFT_E_OVERFLOW, "byte %zu = %d gave %s", at, bytes[at], weft_status_name(status));
            weft_npy_release(npy);
            bytes[at] = before;
        }
    free(bytes);
    cr_assert_eq(held(), 0);
}

Test(npy, refuses_hostile_headers) {
    const struct {
        const char *dictionary;
        weft_status status;
    } bad[] = {
        {"", WEFT_E_CORRUPT},
        {"{}", WEFT_E_CORRUPT},
        {"[]", WEFT_E_CORRUPT},
        {"{'descr': '<f4', 'fortran_order': False}", WEFT_E_CORRUPT},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'shape': (1,)}", WEFT_E_CORRUPT},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'other': (1,)}", WEFT_E_CORRUPT},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} x", WEFT_E_CORRUPT},
        {"{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}", WEFT_E_CORRUPT},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", WEFT_E_CORRUPT},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1", WEFT_E_CORRUPT},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (,)}", WEFT_E_CORRUPT},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775808,)}", WEFT_E_CORRUPT},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4)}", WEFT_E_OVERFLOW},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1)}", WEFT_E_UNSUPPORTED},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", WEFT_E_CORRUPT},
        {"{'descr': '<c8', 'fortran_order': False, 'shape': (1,)}", WEFT_E_UNSUPPORTED},
        {"{'descr': '<U3', 'fortran_order': False, 'shape': (1,)}", WEFT_E_UNSUPPORTED},
        {"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", WEFT_E_UNSUPPORTED},
        {"{'descr': '<f16', 'fortran_order': False, 'shape': (1,)}", WEFT_E_UNSUPPORTED},
        {"{'descr': '', 'fortran_order': False, 'shape': (1,)}", WEFT_E_UNSUPPORTED},
        {"{'descr': '<u8', 'fortran_order': False, 'shape': (1,)}", WEFT_E_UNSUPPORTED},
        {"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", WEFT_E_UNSUPPORTED},
        {"{'descr': 'aaaaaaaaaaaaaaaaaaaaaaaaaaaa', 'fortran_order': False, 'shape': (1,)}", WEFT_E_CORRUPT},
        {"{'de\\x73cr': '<f4', 'fortran_order': False, 'shape': (1,)}", WEFT_E_CORRUPT},
        {"{'descr': '|b1', 'fortran_order': False, 'shape': (4,)}", WEFT_E_CORRUPT},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint8_t out[64];
        cr_assert_eq(read_made(bad[i].dictionary, "\1\1\2\1", 4, out), bad[i].status, "%s: %s", bad[i].dictionary,
                     weft_error_message());
    }
    weft_npy *npy = NULL;
    write_file(scratch("v"), "\x93NUMPY\x04\x00\x02\x00{}", 12);
    cr_assert_eq(weft_npy_open(scratch("v"), &npy), WEFT_E_CORRUPT);
    write_file(scratch("v"), "\x93NUMPY\x02\x00\xff\xff\xff\xff{}", 14);
    cr_assert_eq(weft_npy_open(scratch("v"), &npy), WEFT_E_CORRUPT);
    cr_assert_eq(weft_npy_open(scratch("none"), &npy), WEFT_E_NOT_FOUND);
    cr_assert_eq(weft_npy_open("x", NULL), WEFT_E_INVALID);
    cr_assert_eq(held(), 0);
}

Test(npy, reads_versions_two_and_three) {
    for (uint8_t version = 2; version <= 3; version++) {
        char        file[] = "\x93NUMPY\x00\x00\x00\x00\x00\x00{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }   \n\x05\x06";
        weft_npy   *npy = NULL;
        uint8_t     out[2];
        const char *path = scratch("v.npy");
        file[6] = (char)version;
        file[8] = (char)(sizeof file - 1 - 12 - 2);
        write_file(path, file, sizeof file - 1);
        OK(weft_npy_open(path, &npy));
        OK(weft_npy_read(npy, out));
        cr_assert(out[0] == 5 && out[1] == 6);
        weft_npy_release(npy);
    }
}

/* safetensors: round trips, every truncation, every header byte changed, hostile headers, checksums. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/files.h"
#include "io/hash.h"
#include "io/shards.h"
#include "weft/memory.h"
#include "weft/safetensors.h"

static uint64_t held(void) {
    weft_memory_counts counts;
    weft_memory_read(&counts);
    return counts.held_bytes;
}

#define OK(call) cr_assert_eq((call), WEFT_OK, "%s", weft_error_message())

/* A file of a header and `data` bytes of data, all 1. */
static const char *made(const char *header, size_t data) {
    const char *path = scratch("made.safetensors");
    uint64_t    length = strlen(header);
    uint8_t    *bytes = malloc(8 + length + data);
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, header, length);
    memset(bytes + 8 + length, 1, data);
    write_file(path, bytes, 8 + length + data);
    free(bytes);
    return path;
}

static weft_status open_made(const char *header, size_t data) {
    weft_safetensors *file = NULL;
    weft_status       status = weft_safetensors_open(made(header, data), &file);
    cr_assert_eq(status == WEFT_OK, file != NULL);
    weft_safetensors_release(file);
    return status;
}

static const float  weights[6] = {1, -2, 3.5f, 0, 1e-30f, 7};
static const double moments[2] = {0.1, -1e300};
static const uint8_t flags[3] = {1, 0, 1};

/* Three arrays of three widths, an empty one and a scalar, with metadata. */
static void write_sample(const char *path) {
    weft_safetensors_writer *writer = NULL;
    OK(weft_safetensors_writer_create(path, &writer));
    OK(weft_safetensors_writer_add(writer, "flags", WEFT_BOOL, weft_shape(3)));
    OK(weft_safetensors_writer_add(writer, "w\"eird/\xc3\xa9\n", WEFT_F32, weft_shape(2, 3)));
    OK(weft_safetensors_writer_add(writer, "empty", WEFT_I64, weft_shape(4, 0)));
    OK(weft_safetensors_writer_add(writer, "moments", WEFT_F64, weft_shape(2)));
    OK(weft_safetensors_writer_add(writer, "scalar", WEFT_BF16, weft_shape_scalar()));
    OK(weft_safetensors_writer_metadata(writer, "format", "pt"));
    OK(weft_safetensors_writer_metadata(writer, "quote\"", "tab\t \\ \xf0\x9f\xa7\xb5"));
    /* In turns and pieces, and not in the order of declaration. */
    OK(weft_safetensors_writer_write(writer, "scalar", "\x80\x3f", 2));
    OK(weft_safetensors_writer_write(writer, "w\"eird/\xc3\xa9\n", weights, 5));
    OK(weft_safetensors_writer_write(writer, "moments", moments, sizeof moments));
    OK(weft_safetensors_writer_write(writer, "w\"eird/\xc3\xa9\n", (const uint8_t *)weights + 5, sizeof weights - 5));
    OK(weft_safetensors_writer_write(writer, "flags", flags, 3));
    OK(weft_safetensors_writer_write(writer, "empty", NULL, 0));
    OK(weft_safetensors_writer_commit(writer));
    cr_assert_eq(weft_safetensors_writer_commit(writer), WEFT_E_STATE);
    weft_safetensors_writer_release(writer);
}

static void check_sample(const weft_safetensors *file) {
    uint8_t                       out[64];
    const weft_safetensors_entry *entry = weft_safetensors_find(file, "w\"eird/\xc3\xa9\n");
    cr_assert(entry && entry->dtype == WEFT_F32 && weft_shape_equal(entry->shape, weft_shape(2, 3)));
    cr_assert_eq((uintptr_t)entry->data % 4, 0u);
    cr_assert_arr_eq(entry->data, weights, sizeof weights);
    OK(weft_safetensors_read(file, entry, out));
    cr_assert_arr_eq(out, weights, sizeof weights);
    entry = weft_safetensors_find(file, "moments");
    cr_assert(entry && entry->dtype == WEFT_F64 && (uintptr_t)entry->data % 8 == 0);
    OK(weft_safetensors_read(file, entry, out));
    cr_assert_arr_eq(out, moments, sizeof moments);
    entry = weft_safetensors_find(file, "flags");
    OK(weft_safetensors_read(file, entry, out));
    cr_assert_arr_eq(out, flags, sizeof flags);
    entry = weft_safetensors_find(file, "empty");
    cr_assert(entry && entry->bytes == 0 && weft_shape_equal(entry->shape, weft_shape(4, 0)));
    OK(weft_safetensors_read(file, entry, NULL));
    entry = weft_safetensors_find(file, "scalar");
    cr_assert(entry && entry->shape.rank == 0 && entry->bytes == 2 && memcmp(entry->data, "\x80\x3f", 2) == 0);
    cr_assert_str_eq(entry->stored, "BF16");
}

Test(safetensors, gives_back_what_was_written) {
    const char       *path = scratch("a.safetensors");
    weft_safetensors *file = NULL;
    write_sample(path);
    cr_assert_eq(scratch_files(), 1, "nothing but the file may be left");
    OK(weft_safetensors_open(path, &file));
    cr_assert_eq(weft_safetensors_count(file), 5);
    check_sample(file);
    OK(weft_safetensors_verify(file));
    cr_assert_str_eq(weft_safetensors_metadata(file, "quote\""), "tab\t \\ \xf0\x9f\xa7\xb5");
    cr_assert_null(weft_safetensors_metadata(file, "none"));
    cr_assert_null(weft_safetensors_find(file, "none"));
    cr_assert_null(weft_safetensors_at(file, 5));
    cr_assert_eq(weft_safetensors_metadata_count(file), 3);
    const char *key, *value;
    weft_safetensors_metadata_at(file, 0, &key, &value);
    cr_assert_str_eq(key, "format");
    cr_assert_str_eq(value, "pt");
    weft_safetensors_release(file);
    weft_safetensors_release(NULL);
    cr_assert_eq(held(), 0);
}

Test(safetensors, writes_files_without_arrays) {
    const char              *path = scratch("none.safetensors");
    weft_safetensors_writer *writer = NULL;
    weft_safetensors        *file = NULL;
    OK(weft_safetensors_writer_create(path, &writer));
    OK(weft_safetensors_writer_commit(writer));
    weft_safetensors_writer_release(writer);
    OK(weft_safetensors_open(path, &file));
    cr_assert_eq(weft_safetensors_count(file), 0);
    weft_safetensors_release(file);
    cr_assert_eq(open_made("{}", 0), WEFT_OK);
    cr_assert_eq(open_made("{}   \n", 0), WEFT_OK);
}

Test(safetensors, names_every_truncation_and_extension) {
    write_sample(scratch("a.safetensors"));
    size_t            count;
    uint8_t          *bytes = read_file(scratch("a.safetensors"), &count);
    const char       *path = scratch("cut.safetensors");
    weft_safetensors *file = NULL;
    for (size_t length = 0; length <= count + 1; length++) {
        if (length == count) continue;
        write_file(path, bytes, length);
        cr_assert_eq(weft_safetensors_open(path, &file), WEFT_E_CORRUPT, "length %zu", length);
        cr_assert(message_has(path), "%s", weft_error_message());
    }
    free(bytes);
    cr_assert_eq(held(), 0);
}

/* Opening and reading everything; the first status that is not WEFT_OK. */
static weft_status read_everything(const char *path) {
    weft_safetensors *file = NULL;
    weft_status       status = weft_safetensors_open(path, &file);
    for (int64_t i = 0; status == WEFT_OK && i < weft_safetensors_count(file); i++) {
        static uint8_t out[4096];
        cr_assert_lt(weft_safetensors_at(file, i)->bytes, sizeof out);
        status = weft_safetensors_read(file, weft_safetensors_at(file, i), out);
    }
    if (status == WEFT_OK) status = weft_safetensors_verify(file);
    weft_safetensors_release(file);
    return status;
}

Test(safetensors, refuses_every_flipped_bit) {
    write_sample(scratch("a.safetensors"));
    size_t      count;
    uint8_t    *bytes = read_file(scratch("a.safetensors"), &count);
    const char *path = scratch("flip.safetensors");
    for (size_t at = 0; at < count; at++)
        for (int bit = 0; bit < 8; bit++) {
            bytes[at] ^= (uint8_t)(1 << bit);
            write_file(path, bytes, count);
            weft_status status = read_everything(path);
            /* A damaged word "weft.checksum" makes a file without a checksum; only then may damage be missed. */
            if (status == WEFT_E_NOT_FOUND) cr_assert(at > 8 && at < 48, "byte %zu bit %d", at, bit);
            else
                cr_assert(status == WEFT_E_CORRUPT || status == WEFT_E_UNSUPPORTED, "byte %zu bit %d gave %s", at, bit,
                          weft_status_name(status));
            bytes[at] ^= (uint8_t)(1 << bit);
        }
    free(bytes);
    cr_assert_eq(held(), 0);
}

Test(safetensors, survives_every_changed_header_byte_without_checksum) {
    const char header[] = "{\"__metadata__\":{\"k\":\"v\"},\"a\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8]},"
                          "\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[8,11]}}";
    const char special[] = "{}[]\",:\\0918u \n\xff-.e";
    char       changed[sizeof header];
    cr_assert_eq(open_made(header, 11), WEFT_OK, "%s", weft_error_message());
    for (size_t at = 0; at + 1 < sizeof header; at++)
        for (int i = 0; i < 8 + (int)sizeof special - 1; i++) {
            memcpy(changed, header, sizeof header);
            changed[at] = (char)(i < 8 ? header[at] ^ 1 << i : special[i - 8]);
            weft_status status = open_made(changed, 11);
            cr_assert(status == WEFT_OK || status == WEFT_E_CORRUPT, "byte %zu = %d gave %s", at, changed[at],
                      weft_status_name(status));
        }
    cr_assert_eq(held(), 0);
}

Test(safetensors, refuses_hostile_headers) {
    const struct {
        const char *header;
        size_t      data;
        const char *word; /* that the message must have */
    } bad[] = {
        {"[]", 0, "'{'"},
        {" {}", 0, "'{'"},
        {"{} x", 0, "nothing more"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}", 4, "'}'"},
        {"{\"a\":{\"dtype\":\"F33\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "unknown dtype 'F33'"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "takes 8 bytes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "a whole number"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4, "']'"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[01],\"data_offsets\":[0,4]}}", 4, "leading zeros"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "lies at [4, 0)"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4, "']'"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "','"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,8]}}", 4, "of 4 bytes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "hole"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 8, "end at offset"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,6]}}", 6, "before where"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 2, "two arrays called 'a'"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
         "\"\\u0061\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 2, "two arrays called 'a'"},
        {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "twice"},
        {"{\"a\":{\"dtype\":\"U8\",\"extra\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "has not"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "no dtype"},
        {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, "no shape"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "no data_offsets"},
        {"{\"a\":{}}", 0, "'\"'"},
        {"{\"a\":null}", 0, "'{'"},
        {"{\"a\":{\"dtype\":\"F64\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,8]}}", 8, "overflows"},
        {"{\"a\":{\"dtype\":\"F64\",\"shape\":[9223372036854775807],\"data_offsets\":[0,8]}}", 8, "overflows"},
        {"{\"a\":{\"dtype\":\"F64\",\"shape\":[9223372036854775808],\"data_offsets\":[0,8]}}", 8, "below 2^63"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[18446744073709551615],\"data_offsets\":[0,8]}}", 8, "below 2^63"},
        {"{\"__metadata__\":{\"a\":\"b\",\"a\":\"c\"}}", 0, "key 'a' twice"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "two __metadata__"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "'\"'"},
        {"{\"__metadata__\":{\"a\":{}}}", 0, "'\"'"},
        {"{\"__metadata__\":[]}", 0, "'{'"},
        {"{\"a\xff\":{}}", 0, "UTF-8"},
        {"{\"a\xc0\x80\":{}}", 0, "UTF-8"},
        {"{\"a\xed\xa0\x80\":{}}", 0, "UTF-8"},
        {"{\"\\ud800\":{}}", 0, "surrogate"},
        {"{\"\\udc00\":{}}", 0, "surrogate"},
        {"{\"\\ud800\\u0041\":{}}", 0, "surrogate"},
        {"{\"\\u0000\":{}}", 0, "NUL"},
        {"{\"\\u00g0\":{}}", 0, "hexadecimal"},
        {"{\"\\x\":{}}", 0, "escape"},
        {"{\"a\nb\":{}}", 0, "control"},
        {"{\"a", 0, "end of a string"},
        {"{\"a\\", 0, "escape"},
        {"{\"a\\u12", 0, "hexadecimal"},
        {"{\"__metadata__\":{\"weft.checksum\":\"xxh64:00\"}}", 0, "not of 0 arrays"},
        {"{\"__metadata__\":{\"weft.checksum\":\"xxh64:000000000000000g\"}}", 0, "malformed"},
        {"{\"__metadata__\":{\"weft.checksum\":\"xxh64:0000000000000000\"}}", 0, "does not match"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cr_assert_eq(open_made(bad[i].header, bad[i].data), WEFT_E_CORRUPT, "%s", bad[i].header);
        cr_assert(message_has(bad[i].word), "%s: %s", bad[i].header, weft_error_message());
    }
    cr_assert_eq(open_made("{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1),
                 WEFT_E_UNSUPPORTED);
    cr_assert_eq(held(), 0);
}

Test(safetensors, refuses_header_lengths_out_of_bounds) {
    const uint64_t lengths[] = {0, 1, 3, 100000001, UINT64_C(1) << 40, UINT64_MAX, UINT64_MAX - 7};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        char              bytes[10] = {0};
        const char       *path = scratch("length.safetensors");
        weft_safetensors *file = NULL;
        memcpy(bytes, &lengths[i], 8);
        memcpy(bytes + 8, "{}", 2);
        write_file(path, bytes, 10);
        cr_assert_eq(weft_safetensors_open(path, &file), WEFT_E_CORRUPT, "length %llu", (unsigned long long)lengths[i]);
    }
    cr_assert_eq(held(), 0);
}

Test(safetensors, reads_what_others_write) {
    const char       *header = "{ \"b\" : {\"shape\":[3], \"data_offsets\":[1,4],\n\t\"dtype\":\"I8\"}, \"a\":{\"dtype\":\"U8\","
                               "\"shape\":[],\"data_offsets\":[0,1]}, \"\\ud83e\\uddf5\\/\\u00e9\":{\"dtype\":\"F8_E4M3\",\"shape\":[0],"
                               "\"data_offsets\":[4,4]}, \"__metadata__\":{} }    ";
    weft_safetensors *file = NULL;
    OK(weft_safetensors_open(made(header, 4), &file));
    cr_assert_str_eq(weft_safetensors_at(file, 0)->name, "a");
    cr_assert_str_eq(weft_safetensors_at(file, 1)->name, "b");
    cr_assert_str_eq(weft_safetensors_at(file, 1)->stored, "I8");
    cr_assert_eq(weft_safetensors_at(file, 1)->dtype, WEFT_DTYPE_COUNT);
    cr_assert_not_null(weft_safetensors_find(file, "\xf0\x9f\xa7\xb5/\xc3\xa9"));
    cr_assert_eq(weft_safetensors_verify(file), WEFT_E_NOT_FOUND);
    weft_safetensors_entry foreign = *weft_safetensors_at(file, 0);
    uint8_t                out[4];
    cr_assert_eq(weft_safetensors_read(file, &foreign, out), WEFT_E_INVALID);
    cr_assert_eq(weft_safetensors_read(file, NULL, out), WEFT_E_INVALID);
    weft_safetensors_release(file);
}

/* --- several files by an index --- */

static const char *made_index(const char *text) {
    const char *path = scratch("made.safetensors.index.json");
    write_file(path, text, strlen(text));
    return path;
}

static void write_shard(const char *name, const char *array, const char *format) {
    weft_safetensors_writer *writer = NULL;
    OK(weft_safetensors_writer_create(scratch(name), &writer));
    OK(weft_safetensors_writer_add(writer, array, WEFT_F32, weft_shape(6)));
    OK(weft_safetensors_writer_metadata(writer, "format", format));
    OK(weft_safetensors_writer_metadata(writer, array, "here"));
    OK(weft_safetensors_writer_write(writer, array, weights, sizeof weights));
    OK(weft_safetensors_writer_commit(writer));
    weft_safetensors_writer_release(writer);
}

Test(safetensors, metadata_of_several_files_is_once_there) {
    weft_safetensors *file = NULL;
    write_shard("a.safetensors", "a", "pt");
    write_shard("b.safetensors", "b", "np");
    OK(weft_safetensors_open(made_index("{\"metadata\": {\"total_size\": 48}, \"weight_map\": {\"b\": \"b.safetensors\", \"a\": \"a.safetensors\"}}"), &file));
    cr_assert_eq(weft_safetensors_count(file), 2);
    cr_assert_eq(weft_safetensors_metadata_count(file), 3);
    cr_assert_str_eq(weft_safetensors_metadata(file, "format"), "np", "of the file that is named first");
    cr_assert_str_eq(weft_safetensors_metadata(file, "a"), "here");
    cr_assert_str_eq(weft_safetensors_metadata(file, "b"), "here");
    weft_safetensors_release(file);
    cr_assert_eq(held(), 0);
}

Test(safetensors, refuses_to_write_to_the_name_of_an_index) {
    weft_safetensors_writer *writer = NULL;
    cr_assert_eq(weft_safetensors_writer_create(scratch("one.safetensors.index.json"), &writer), WEFT_E_INVALID);
    cr_assert(message_has("the name of an index"), "%s", weft_error_message());
    cr_assert_null(writer);
}

/* Of an index, also of one whose name is hidden, and of no other that differs in that alone. */
Test(safetensors, removes_what_is_before_a_generation) {
    static const char *const others[] = {"run-g2-00001-of-00001.safetensors", ".run-g2-00001-of-00001.safetensors", "run-g1-00001-of-00001.safetensors.weft-partial"};
    static const char *const of[2][2] = {{"run-g1-00001-of-00001.safetensors", ".run-g1-00001-of-00001.safetensors.weft-partial"},
                                         {".run-g1-00001-of-00001.safetensors", "..run-g1-00001-of-00001.safetensors.weft-partial"}};
    for (int i = 0; i < 3; i++) write_file(scratch(others[i]), "x", 1);
    for (int i = 0; i < 4; i++) write_file(scratch(of[i / 2][i % 2]), "x", 1);
    for (int hidden = 1; hidden >= 0; hidden--) {
        wefti_shards_remove_before(scratch(hidden ? ".run.safetensors.index.json" : "run.safetensors.index.json"), 2);
        for (int i = 0; i < 4; i++) {
            bool left = access(scratch(of[i / 2][i % 2]), F_OK) == 0;
            cr_expect_eq(left, i / 2 < hidden, "%s is %s", of[i / 2][i % 2], left ? "left" : "gone");
        }
    }
    for (int i = 0; i < 3; i++) cr_expect_eq(access(scratch(others[i]), F_OK), 0, "%s is gone", others[i]);
}

Test(safetensors, refuses_indices_in_an_index) {
    weft_safetensors *file = NULL;
    cr_assert_eq(weft_safetensors_open(made_index("{\"metadata\": {\"weft.generation\": 9223372036854775807}, \"weight_map\": {}}"), &file), WEFT_E_CORRUPT);
    cr_assert(message_has("a generation"), "%s", weft_error_message());
    cr_assert_eq(weft_safetensors_open(made_index("{\"weight_map\": {\"a\": \"made.safetensors.index.json\"}}"), &file), WEFT_E_CORRUPT);
    cr_assert(message_has("is an index too"), "%s", weft_error_message());
    cr_assert_null(file);
    cr_assert_eq(held(), 0);
}

Test(safetensors, refuses_bools_that_are_neither) {
    weft_safetensors *file = NULL;
    const char       *path = made("{\"a\":{\"dtype\":\"BOOL\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2);
    size_t            count;
    uint8_t          *bytes = read_file(path, &count), out[2];
    bytes[count - 1] = 2;
    write_file(path, bytes, count);
    OK(weft_safetensors_open(path, &file));
    cr_assert_eq(weft_safetensors_read(file, weft_safetensors_at(file, 0), out), WEFT_E_CORRUPT);
    cr_assert(message_has("bool of value 2"), "%s", weft_error_message());
    weft_safetensors_release(file);
    free(bytes);
}

Test(safetensors, tells_a_file_that_shrinks_after_opening) {
    const char       *path = scratch("a.safetensors");
    weft_safetensors *file = NULL;
    uint8_t           out[64];
    write_sample(path);
    OK(weft_safetensors_open(path, &file));
    cr_assert_eq(truncate(path, 100), 0);
    cr_assert_eq(weft_safetensors_read(file, weft_safetensors_find(file, "moments"), out), WEFT_E_CORRUPT);
    cr_assert_eq(weft_safetensors_verify(file), WEFT_E_CORRUPT);
    weft_safetensors_release(file);
}

Test(safetensors_writer, refuses_what_the_format_cannot_hold) {
    const char              *path = scratch("bad.safetensors");
    weft_safetensors_writer *writer = NULL;
    OK(weft_safetensors_writer_create(path, &writer));
    cr_assert_eq(weft_safetensors_writer_add(writer, "", WEFT_F32, weft_shape(1)), WEFT_E_INVALID);
    cr_assert_eq(weft_safetensors_writer_add(writer, NULL, WEFT_F32, weft_shape(1)), WEFT_E_INVALID);
    cr_assert_eq(weft_safetensors_writer_add(writer, "\xff", WEFT_F32, weft_shape(1)), WEFT_E_INVALID);
    cr_assert_eq(weft_safetensors_writer_add(writer, "__metadata__", WEFT_F32, weft_shape(1)), WEFT_E_INVALID);
    cr_assert_eq(weft_safetensors_writer_add(writer, "a", WEFT_DTYPE_COUNT, weft_shape(1)), WEFT_E_DTYPE);
    cr_assert_eq(weft_safetensors_writer_add(writer, "a", WEFT_F32, weft_shape(-1)), WEFT_E_OVERFLOW);
    cr_assert_eq(weft_safetensors_writer_add(writer, "a", WEFT_F32, weft_shape(INT64_MAX)), WEFT_E_OVERFLOW);
    OK(weft_safetensors_writer_add(writer, "a", WEFT_F32, weft_shape(2)));
    cr_assert_eq(weft_safetensors_writer_add(writer, "a", WEFT_F32, weft_shape(2)), WEFT_E_EXISTS);
    cr_assert_eq(weft_safetensors_writer_metadata(writer, "weft.checksum", "x"), WEFT_E_INVALID);
    cr_assert_eq(weft_safetensors_writer_metadata(writer, "k", "\xff"), WEFT_E_INVALID);
    cr_assert_eq(weft_safetensors_writer_metadata(writer, NULL, "x"), WEFT_E_INVALID);
    OK(weft_safetensors_writer_metadata(writer, "k", "v"));
    cr_assert_eq(weft_safetensors_writer_metadata(writer, "k", "v"), WEFT_E_EXISTS);
    cr_assert_eq(weft_safetensors_writer_write(writer, "a", NULL, 4), WEFT_E_INVALID);
    cr_assert_eq(weft_safetensors_writer_write(writer, "b", "1234", 4), WEFT_E_NOT_FOUND);
    cr_assert_eq(weft_safetensors_writer_add(writer, "c", WEFT_F32, weft_shape(2)), WEFT_E_STATE);
    cr_assert_eq(weft_safetensors_writer_metadata(writer, "l", "v"), WEFT_E_STATE);
    OK(weft_safetensors_writer_write(writer, "a", "1234", 4));
    cr_assert_eq(weft_safetensors_writer_commit(writer), WEFT_E_STATE);
    cr_assert(message_has("4 of its 8 bytes"), "%s", weft_error_message());
    cr_assert_eq(weft_safetensors_writer_write(writer, "a", "12345", 5), WEFT_E_SHAPE);
    weft_safetensors_writer_release(writer);
    cr_assert_eq(scratch_files(), 0, "what was not committed must be gone");
    weft_safetensors_writer_release(NULL);
    cr_assert_eq(weft_safetensors_writer_add(NULL, "a", WEFT_F32, weft_shape(1)), WEFT_E_INVALID);
    cr_assert_eq(held(), 0);
}

Test(hash, xxh64_gives_the_published_values) {
    const struct {
        const char *text;
        uint64_t    sum;
    } known[] = {{"", 0xef46db3751d8e999u}, {"a", 0xd24ec4f1a98c6e5bu}, {"abc", 0x44bc2cf5ad770999u},
                 {"The quick brown fox jumps over the lazy dog", 0x0b242d361fda71bcu}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        size_t length = strlen(known[i].text);
        for (size_t cut = 0; cut <= length; cut++) {
            wefti_xxh64 hash;
            wefti_xxh64_begin(&hash);
            wefti_xxh64_add(&hash, known[i].text, cut);
            wefti_xxh64_add(&hash, known[i].text + cut, length - cut);
            cr_assert_eq(wefti_xxh64_end(&hash), known[i].sum, "'%s' cut at %zu", known[i].text, cut);
        }
    }
    cr_assert_eq(wefti_crc32c("123456789", 9), 0xe3069283u);
}

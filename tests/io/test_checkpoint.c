/* Checkpoints: exact values, clear errors, arrays fetched in pieces. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/files.h"
#include "weft/checkpoint.h"
#include "weft/memory.h"
#include "weft/safetensors.h"

#define OK(call) cr_assert_eq((call), WEFT_OK, "%s", weft_error_message())

static uint64_t held(void) {
    weft_memory_counts counts;
    weft_memory_read(&counts);
    return counts.held_bytes;
}

static const double hard[] = {0.1, -0.0, 1e-310, 5e-324, INFINITY, -INFINITY, 1.7976931348623157e308, 3, 2.0 / 3.0};

static weft_status fetch_ramp(void *context, uint64_t offset, uint64_t bytes, void *out) {
    uint64_t *most = context;
    if (bytes > *most) *most = bytes;
    for (uint64_t i = 0; i < bytes; i++) ((uint8_t *)out)[i] = (uint8_t)((offset + i) % 251);
    return WEFT_OK;
}

static weft_status fetch_nothing(void *context, uint64_t offset, uint64_t bytes, void *out) {
    (void)context;
    (void)bytes;
    (void)out;
    return offset < 2u << 20 ? WEFT_OK : WEFT_E_DEVICE;
}

static void write_sample(const char *path) {
    weft_checkpoint_writer *writer = NULL;
    uint64_t                most = 0;
    const float             w[6] = {1, 2, 3, 4, 5, 6};
    char                    key[] = "hard0";
    OK(weft_checkpoint_create(path, &writer));
    OK(weft_checkpoint_add(writer, "w", WEFT_F32, weft_shape(2, 3), w));
    OK(weft_checkpoint_add(writer, "weft.solver.m/w", WEFT_F32, weft_shape(2, 3), w));
    OK(weft_checkpoint_add_fetched(writer, "big", WEFT_U8, weft_shape(2500001), fetch_ramp, &most));
    OK(weft_checkpoint_add(writer, "empty", WEFT_I32, weft_shape(0), NULL));
    OK(weft_checkpoint_add_i64(writer, "step", INT64_MIN));
    OK(weft_checkpoint_add_u64(writer, "seed", UINT64_MAX));
    for (size_t i = 0; i < sizeof hard / sizeof *hard; i++) {
        key[4] = (char)('0' + i);
        OK(weft_checkpoint_add_f64(writer, key, hard[i]));
    }
    OK(weft_checkpoint_add_f64(writer, "nan", NAN));
    OK(weft_checkpoint_add_text(writer, "model", "cnn \"x\"\n"));
    OK(weft_checkpoint_add_text(writer, "none", ""));
    cr_assert_eq(weft_checkpoint_add_i64(writer, "step", 1), WEFT_E_EXISTS);
    cr_assert_eq(weft_checkpoint_add(writer, "w", WEFT_F32, weft_shape(1), w), WEFT_E_EXISTS);
    cr_assert_eq(weft_checkpoint_add(writer, "x", WEFT_F32, weft_shape(1), NULL), WEFT_E_INVALID);
    cr_assert_eq(weft_checkpoint_add_fetched(writer, "x", WEFT_F32, weft_shape(1), NULL, NULL), WEFT_E_INVALID);
    cr_assert_eq(weft_checkpoint_add_i64(writer, "", 1), WEFT_E_INVALID);
    cr_assert_eq(weft_checkpoint_add_text(writer, "t", NULL), WEFT_E_INVALID);
    OK(weft_checkpoint_commit(writer));
    cr_assert_leq(most, 1u << 20);
    weft_checkpoint_writer_release(writer);
}

Test(checkpoint, gives_back_arrays_and_values_exactly) {
    const char      *path = scratch("run.safetensors");
    weft_checkpoint *checkpoint = NULL;
    write_sample(path);
    OK(weft_checkpoint_open(path, &checkpoint));
    float      w[6];
    weft_dtype dtype;
    weft_shape shape;
    cr_assert(weft_checkpoint_find(checkpoint, "big", &dtype, &shape));
    cr_assert(dtype == WEFT_U8 && weft_shape_equal(shape, weft_shape(2500001)));
    cr_assert_not(weft_checkpoint_find(checkpoint, "bigger", NULL, NULL));
    OK(weft_checkpoint_read(checkpoint, "w", WEFT_F32, weft_shape(2, 3), w));
    cr_assert(w[0] == 1 && w[5] == 6);
    uint8_t *big = malloc(2500001);
    OK(weft_checkpoint_read(checkpoint, "big", WEFT_U8, weft_shape(2500001), big));
    for (int i = 0; i < 2500001; i++) cr_assert_eq(big[i], i % 251, "byte %d", i);
    free(big);
    OK(weft_checkpoint_read(checkpoint, "empty", WEFT_I32, weft_shape(0), NULL));
    int64_t     step = 0;
    uint64_t    seed = 0;
    double      value = 0;
    const char *text = NULL;
    char        key[] = "hard0";
    OK(weft_checkpoint_read_i64(checkpoint, "step", &step));
    cr_assert_eq(step, INT64_MIN);
    OK(weft_checkpoint_read_u64(checkpoint, "seed", &seed));
    cr_assert_eq(seed, UINT64_MAX);
    for (size_t i = 0; i < sizeof hard / sizeof *hard; i++) {
        key[4] = (char)('0' + i);
        OK(weft_checkpoint_read_f64(checkpoint, key, &value));
        cr_assert_arr_eq(&value, &hard[i], sizeof value, "%a came back as %a", hard[i], value);
    }
    OK(weft_checkpoint_read_f64(checkpoint, "nan", &value));
    cr_assert(isnan(value));
    OK(weft_checkpoint_read_text(checkpoint, "model", &text));
    cr_assert_str_eq(text, "cnn \"x\"\n");
    OK(weft_checkpoint_read_text(checkpoint, "none", &text));
    cr_assert_str_eq(text, "");
    weft_checkpoint_release(checkpoint);
    weft_checkpoint_release(NULL);
    cr_assert_eq(held(), 0);
}

Test(checkpoint, says_what_does_not_fit) {
    const char      *path = scratch("run.safetensors");
    weft_checkpoint *checkpoint = NULL;
    float            w[6];
    int64_t          step;
    double           value;
    write_sample(path);
    OK(weft_checkpoint_open(path, &checkpoint));
    cr_assert_eq(weft_checkpoint_read(checkpoint, "v", WEFT_F32, weft_shape(2, 3), w), WEFT_E_NOT_FOUND);
    cr_assert(message_has("no array 'v'"), "%s", weft_error_message());
    cr_assert_eq(weft_checkpoint_read(checkpoint, "w", WEFT_F64, weft_shape(2, 3), w), WEFT_E_DTYPE);
    cr_assert(message_has("F32 [2, 3]; f64 [2, 3]"), "%s", weft_error_message());
    cr_assert_eq(weft_checkpoint_read(checkpoint, "w", WEFT_F32, weft_shape(3, 2), w), WEFT_E_SHAPE);
    cr_assert(message_has("[2, 3]; [3, 2]"), "%s", weft_error_message());
    cr_assert_eq(weft_checkpoint_read_i64(checkpoint, "stop", &step), WEFT_E_NOT_FOUND);
    cr_assert_eq(weft_checkpoint_read_i64(checkpoint, "seed", &step), WEFT_E_DTYPE);
    cr_assert_eq(weft_checkpoint_read_f64(checkpoint, "step", &value), WEFT_E_DTYPE);
    OK(weft_checkpoint_read(checkpoint, "w", WEFT_F32, weft_shape(2, 3), w));
    cr_assert_eq(weft_checkpoint_expect_all_read(checkpoint, NULL), WEFT_E_MISMATCH);
    cr_assert(message_has("3 arrays") && message_has("'big'") && message_has("'weft.solver.m/w'"), "%s", weft_error_message());
    cr_assert_eq(weft_checkpoint_expect_all_read(checkpoint, "weft."), WEFT_E_MISMATCH);
    OK(weft_checkpoint_expect_all_read(checkpoint, "w/"));
    OK(weft_checkpoint_read(checkpoint, "weft.solver.m/w", WEFT_F32, weft_shape(2, 3), w));
    OK(weft_checkpoint_expect_all_read(checkpoint, "weft."));
    weft_checkpoint_release(checkpoint);
    cr_assert_eq(weft_checkpoint_open(scratch("none"), &checkpoint), WEFT_E_NOT_FOUND);
    cr_assert_eq(held(), 0);
}

Test(checkpoint, refuses_malformed_values) {
    const char *const bad[] = {"i64 ", "i64 1x", "i64  1", "i64 9223372036854775808", "u64 -1", "u64 18446744073709551616",
                               "f64 ", "f64 1.0.0", "f64 1 ", "i64", "int 1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const char              *path = scratch("values.safetensors");
        weft_safetensors_writer *writer = NULL;
        weft_checkpoint         *checkpoint = NULL;
        int64_t                  a;
        uint64_t                 b;
        double                   c;
        OK(weft_safetensors_writer_create(path, &writer));
        OK(weft_safetensors_writer_metadata(writer, "weft.value.x", bad[i]));
        OK(weft_safetensors_writer_commit(writer));
        weft_safetensors_writer_release(writer);
        OK(weft_checkpoint_open(path, &checkpoint));
        weft_status status = bad[i][0] == 'i'   ? weft_checkpoint_read_i64(checkpoint, "x", &a)
                             : bad[i][0] == 'u' ? weft_checkpoint_read_u64(checkpoint, "x", &b)
                                                : weft_checkpoint_read_f64(checkpoint, "x", &c);
        cr_assert(status == WEFT_E_CORRUPT || status == WEFT_E_DTYPE, "\"%s\" gave %s", bad[i], weft_status_name(status));
        weft_checkpoint_release(checkpoint);
    }
}

Test(checkpoint, leaves_the_old_one_when_fetching_fails) {
    const char             *path = scratch("run.safetensors");
    weft_checkpoint_writer *writer = NULL;
    size_t                  before_count, after_count;
    write_sample(path);
    uint8_t *before = read_file(path, &before_count);
    OK(weft_checkpoint_create(path, &writer));
    OK(weft_checkpoint_add_fetched(writer, "big", WEFT_U8, weft_shape(3 << 20), fetch_nothing, NULL));
    cr_assert_eq(weft_checkpoint_commit(writer), WEFT_E_DEVICE);
    cr_assert(message_has("fetching array 'big'"), "%s", weft_error_message());
    weft_checkpoint_writer_release(writer);
    uint8_t *after = read_file(path, &after_count);
    cr_assert_eq(before_count, after_count);
    cr_assert_arr_eq(before, after, before_count);
    cr_assert_eq(scratch_files(), 1);
    free(before);
    free(after);
    cr_assert_eq(held(), 0);
}

/* A loader's position goes through a checkpoint file. */
#include <criterion/criterion.h>

#include "common/files.h"
#include "weft/loader.h"

#define OK(call) cr_assert_eq((call), WEFT_OK, "%s", weft_error_message())

static weft_loader *open_numbers(int64_t batch, uint64_t seed) {
    static int32_t      number[50];
    weft_batch_field    field = {"number", WEFT_I32, weft_shape(50), number};
    weft_loader_options options = {.batch = batch, .seed = seed, .epochs = 3};
    weft_loader        *loader = NULL;
    for (int i = 0; i < 50; i++) number[i] = i;
    OK(weft_loader_open_arrays(&field, 1, &options, &loader));
    return loader;
}

Test(loader_state, goes_through_a_checkpoint) {
    const char             *path = scratch("c.safetensors");
    weft_loader            *loader = open_numbers(8, UINT64_MAX), *other = open_numbers(8, 1), *wrong = open_numbers(9, 1);
    weft_checkpoint_writer *writer = NULL;
    weft_checkpoint        *checkpoint = NULL;
    weft_batch              a, b;
    for (int i = 0; i < 9; i++) OK(weft_loader_next(loader, &a));
    OK(weft_checkpoint_create(path, &writer));
    OK(weft_loader_save_to(loader, "train", writer));
    cr_assert_eq(weft_loader_save_to(loader, "train", writer), WEFT_E_EXISTS);
    cr_assert_eq(weft_loader_save_to(loader, "", writer), WEFT_E_INVALID);
    cr_assert_eq(weft_loader_save_to(NULL, "train", writer), WEFT_E_INVALID);
    OK(weft_checkpoint_commit(writer));
    weft_checkpoint_writer_release(writer);
    OK(weft_checkpoint_open(path, &checkpoint));
    OK(weft_loader_restore_from(other, "train", checkpoint));
    cr_assert_eq(weft_loader_restore_from(other, "test", checkpoint), WEFT_E_NOT_FOUND);
    cr_assert_eq(weft_loader_restore_from(wrong, "train", checkpoint), WEFT_E_MISMATCH);
    cr_assert_eq(weft_loader_restore_from(NULL, "train", checkpoint), WEFT_E_INVALID);
    weft_loader_state state;
    OK(weft_loader_state_read(checkpoint, "train", &state));
    cr_assert(state.epoch == 1 && state.batch == 2 && state.seed == UINT64_MAX && state.rows == 50 && state.batch_rows == 8);
    cr_assert_eq(weft_loader_state_read(checkpoint, "train", NULL), WEFT_E_INVALID);
    weft_checkpoint_release(checkpoint);
    int batches = 0;
    while (weft_loader_next(loader, &a) == WEFT_OK) {
        OK(weft_loader_next(other, &b));
        cr_assert(a.epoch == b.epoch && a.index == b.index && a.local_rows == b.local_rows);
        cr_assert_arr_eq(a.field[0].data, b.field[0].data, (size_t)a.local_rows * sizeof(int32_t));
        batches++;
    }
    cr_assert_eq(batches, 12);
    cr_assert_eq(weft_loader_next(other, &b), WEFT_END);
    weft_loader_release(loader);
    weft_loader_release(other);
    weft_loader_release(wrong);
}

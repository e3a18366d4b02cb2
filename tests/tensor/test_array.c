/* Arrays: ownership, views, values and exchange. Every test ends with no library memory held. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "weft/array.h"
#include "weft/memory.h"

static uint64_t held(void) {
    weft_memory_counts counts;
    weft_memory_read(&counts);
    return counts.held_bytes;
}

static weft_array *range(weft_shape shape) {
    weft_array *array = NULL;
    cr_assert_eq(weft_array_create(WEFT_I32, shape, &array), WEFT_OK);
    for (int64_t i = 0; i < weft_array_elements(array); i++) ((int32_t *)weft_array_data(array))[i] = (int32_t)i;
    return array;
}

Test(array_create, gives_zeroed_aligned_memory) {
    weft_array *array = NULL;
    cr_assert_eq(weft_array_create(WEFT_F64, weft_shape(3, 5), &array), WEFT_OK);
    cr_assert_eq(weft_array_bytes(array), 120);
    cr_assert_eq(weft_array_dtype(array), WEFT_F64);
    cr_assert(weft_shape_equal(weft_array_shape(array), weft_shape(3, 5)));
    cr_assert_eq((uintptr_t)weft_array_data(array) % 64, 0);
    for (int i = 0; i < 15; i++) cr_assert_eq(((double *)weft_array_data(array))[i], 0);
    cr_assert_eq(weft_array_stride(array, 0), 5);
    cr_assert_eq(weft_array_stride(array, 2), 0);
    weft_array_release(array);
    cr_assert_eq(held(), 0);
}

Test(array_create, takes_scalars_and_empty_shapes) {
    weft_array *scalar = NULL, *empty = NULL, *again = NULL;
    cr_assert_eq(weft_array_create(WEFT_U8, weft_shape_scalar(), &scalar), WEFT_OK);
    cr_assert_eq(weft_array_bytes(scalar), 1);
    cr_assert_eq(weft_array_create(WEFT_F32, weft_shape(4, 0, 2), &empty), WEFT_OK);
    cr_assert_eq(weft_array_bytes(empty), 0);
    cr_assert(weft_array_is_contiguous(empty));
    cr_assert_eq(weft_array_copy(empty, &again), WEFT_OK);
    weft_array_release(scalar);
    weft_array_release(empty);
    weft_array_release(again);
    cr_assert_eq(held(), 0);
}

Test(array_create, refuses_what_is_no_type) {
    weft_array *array = NULL;
    cr_assert_eq(weft_array_create((weft_dtype)99, weft_shape(3), &array), WEFT_E_DTYPE);
    cr_assert_eq(weft_array_create(WEFT_F32, weft_shape(3, -1), &array), WEFT_E_SHAPE);
    cr_assert_not_null(strstr(weft_error_message(), "[3, -1]"));
    cr_assert_eq(weft_array_create(WEFT_F32, weft_shape(1, 1, 1, 1, 1, 1, 1, 1, 1), &array), WEFT_E_SHAPE);
    cr_assert_eq(weft_array_create(WEFT_F32, weft_shape(INT64_MAX, 2), &array), WEFT_E_OVERFLOW);
    cr_assert_eq(weft_array_create(WEFT_F64, weft_shape(INT64_MAX / 4), &array), WEFT_E_OVERFLOW);
    cr_assert_eq(weft_array_create_from(WEFT_F32, weft_shape(2), NULL, &array), WEFT_E_INVALID);
    cr_assert_null(array);
    cr_assert_eq(held(), 0);
}

static void *have_nothing(void *context, size_t size_bytes, size_t alignment_bytes) {
    (void)context, (void)alignment_bytes;
    return size_bytes > 4000 ? NULL : aligned_alloc(64, (size_bytes + 63) / 64 * 64);
}
static void give_back(void *context, void *memory, size_t size_bytes) {
    (void)context, (void)size_bytes;
    free(memory);
}

Test(array_create, says_how_much_memory_there_was_not) {
    weft_array *array = NULL;
    cr_assert_eq(weft_set_allocator(&(weft_allocator){have_nothing, give_back, NULL}), WEFT_OK);
    cr_assert_eq(weft_array_create(WEFT_F32, weft_shape(1001), &array), WEFT_E_NO_MEMORY);
    cr_assert_not_null(strstr(weft_error_message(), "4004"));
    cr_assert_null(array);
    cr_assert_eq(held(), 0);
    cr_assert_eq(weft_set_allocator(NULL), WEFT_OK);
}

Test(array_borrow, uses_the_memory_in_place) {
    float       values[6] = {1, 2, 3, 4, 5, 6};
    weft_array *array = NULL, *copy = NULL;
    cr_assert_eq(weft_array_borrow(WEFT_F32, weft_shape(2, 3), values, &array), WEFT_OK);
    cr_assert_eq(weft_array_data(array), (void *)values);
    cr_assert_eq(weft_array_create_from(WEFT_F32, weft_shape(2, 3), values, &copy), WEFT_OK);
    values[0] = 9;
    cr_assert_eq(((float *)weft_array_data(array))[0], 9);
    cr_assert_eq(((float *)weft_array_data(copy))[0], 1);
    weft_array_release(array);
    weft_array_release(copy);
    cr_assert_eq(weft_array_borrow(WEFT_F32, weft_shape(1), (char *)values + 1, &array), WEFT_E_INVALID);
    cr_assert_eq(weft_array_borrow(WEFT_F32, weft_shape(1), NULL, &array), WEFT_E_INVALID);
    cr_assert_eq(weft_array_borrow(WEFT_F32, weft_shape(0), NULL, &array), WEFT_OK);
    weft_array_release(array);
    cr_assert_eq(held(), 0);
}

static void count_delete(void *context, void *data) {
    (void)data;
    ++*(int *)context;
}

Test(array_take, frees_after_the_last_view) {
    float       values[6] = {0};
    int         deleted = 0;
    weft_array *array = NULL, *view = NULL, *slice = NULL;
    cr_assert_eq(weft_array_take(WEFT_F32, weft_shape(-6), values, count_delete, &deleted, &array), WEFT_E_SHAPE);
    cr_assert_eq(weft_array_take(WEFT_F32, weft_shape(6), values, NULL, &deleted, &array), WEFT_E_INVALID);
    cr_assert_eq(deleted, 0);
    cr_assert_eq(weft_array_take(WEFT_F32, weft_shape(6), values, count_delete, &deleted, &array), WEFT_OK);
    cr_assert_eq(weft_array_reshape(array, weft_shape(2, -1), &view), WEFT_OK);
    cr_assert_eq(weft_array_slice(view, 1, 1, 3, &slice), WEFT_OK);
    cr_assert_eq(weft_array_retain(array), array);
    weft_array_release(array);
    weft_array_release(array);
    weft_array_release(view);
    cr_assert_eq(deleted, 0);
    weft_array_release(slice);
    cr_assert_eq(deleted, 1);
    weft_array_release(NULL);
    cr_assert_eq(held(), 0);
}

Test(array_reshape, keeps_the_elements) {
    weft_array *array = range(weft_shape(4, 6)), *view = NULL;
    cr_assert_eq(weft_array_reshape(array, weft_shape(2, -1, 3), &view), WEFT_OK);
    cr_assert(weft_shape_equal(weft_array_shape(view), weft_shape(2, 4, 3)));
    cr_assert_eq(weft_array_data(view), weft_array_data(array));
    weft_array_release(view);
    cr_assert_eq(weft_array_reshape(array, weft_shape(5, 5), &view), WEFT_E_SHAPE);
    cr_assert_not_null(strstr(weft_error_message(), "[4, 6]"));
    cr_assert_eq(weft_array_reshape(array, weft_shape(5, -1), &view), WEFT_E_SHAPE);
    cr_assert_eq(weft_array_reshape(array, weft_shape(-1, -1), &view), WEFT_E_SHAPE);
    cr_assert_eq(weft_array_reshape(array, weft_shape(0, -1), &view), WEFT_E_SHAPE);
    weft_array_release(array);
    cr_assert_eq(held(), 0);
}

Test(array_slice, is_a_strided_view) {
    weft_array *array = range(weft_shape(4, 6)), *view = NULL, *copy = NULL, *bad = NULL;
    cr_assert_eq(weft_array_slice(array, 1, 2, 5, &view), WEFT_OK);
    cr_assert_not(weft_array_is_contiguous(view));
    cr_assert_eq(weft_array_reshape(view, weft_shape(12), &bad), WEFT_E_INVALID);
    cr_assert_eq(weft_array_copy(view, &copy), WEFT_OK);
    for (int32_t i = 0; i < 12; i++) cr_assert_eq(((int32_t *)weft_array_data(copy))[i], i / 3 * 6 + i % 3 + 2);
    memset(weft_array_data(copy), 0, 48);
    cr_assert_eq(weft_array_assign(view, copy), WEFT_OK);
    for (int32_t i = 0; i < 24; i++)
        cr_assert_eq(((int32_t *)weft_array_data(array))[i], i % 6 >= 2 && i % 6 < 5 ? 0 : i);
    weft_array_release(copy);
    cr_assert_eq(weft_array_slice(array, 0, 4, 4, &copy), WEFT_OK);
    cr_assert_eq(weft_array_bytes(copy), 0);
    weft_array_release(copy);
    cr_assert_eq(weft_array_slice(array, 2, 0, 1, &bad), WEFT_E_SHAPE);
    cr_assert_eq(weft_array_slice(array, 0, 3, 5, &bad), WEFT_E_SHAPE);
    cr_assert_eq(weft_array_slice(array, 0, -1, 2, &bad), WEFT_E_SHAPE);
    cr_assert_eq(weft_array_slice(array, 0, 3, 2, &bad), WEFT_E_SHAPE);
    weft_array_release(view);
    weft_array_release(array);
    cr_assert_eq(held(), 0);
}

Test(array_assign, wants_the_same_type) {
    weft_array *a = range(weft_shape(4)), *b = range(weft_shape(2, 2)), *c = NULL;
    cr_assert_eq(weft_array_create(WEFT_F32, weft_shape(4), &c), WEFT_OK);
    cr_assert_eq(weft_array_assign(a, b), WEFT_E_SHAPE);
    cr_assert_eq(weft_array_assign(a, c), WEFT_E_DTYPE);
    weft_array_release(a);
    weft_array_release(b);
    weft_array_release(c);
}

Test(array_dlpack, goes_out_and_comes_back) {
    for (int dtype = 0; dtype < WEFT_DTYPE_COUNT; dtype++) {
        weft_array      *array = NULL, *view = NULL, *back = NULL;
        weft_dl_managed *managed = NULL;
        cr_assert_eq(weft_array_create((weft_dtype)dtype, weft_shape(4, 6), &array), WEFT_OK);
        cr_assert_eq(weft_array_slice(array, 1, 2, 5, &view), WEFT_OK);
        cr_assert_eq(weft_array_to_dlpack(view, &managed), WEFT_OK);
        weft_array_release(array);
        weft_array_release(view);
        cr_assert_eq(managed->tensor.strides[0], 6);
        cr_assert_eq(managed->tensor.dtype.bits, 8 * weft_dtype_bytes((weft_dtype)dtype));
        cr_assert_eq(weft_array_from_dlpack(managed, &back), WEFT_OK);
        cr_assert_eq(weft_array_dtype(back), (weft_dtype)dtype);
        cr_assert(weft_shape_equal(weft_array_shape(back), weft_shape(4, 3)));
        cr_assert_eq(weft_array_stride(back, 0), 6);
        weft_array_release(back);
        cr_assert_eq(held(), 0);
    }
}

static int  foreign_deleted;
static void delete_foreign(weft_dl_managed *self) {
    (void)self;
    foreign_deleted++;
}

static void expect_foreign(weft_dl_managed managed, weft_status status) {
    weft_array *array = NULL;
    foreign_deleted = 0;
    managed.deleter = delete_foreign;
    cr_assert_eq(weft_array_from_dlpack(&managed, &array), status, "%s", weft_error_message());
    cr_assert_eq(foreign_deleted, 0);
    weft_array_release(array);
    cr_assert_eq(foreign_deleted, status == WEFT_OK);
}

Test(array_dlpack, refuses_what_it_cannot_hold) {
    float           values[24] = {0};
    int64_t         shape[9] = {4, 6, 1, 1, 1, 1, 1, 1, 1}, strides[2] = {6, 1}, backward[2] = {-6, 1};
    int64_t         far[2] = {INT64_MAX / 2, 1}, negative[2] = {-4, 6};
    weft_dl_managed good = {.tensor = {.data = values,
                                       .device = {WEFT_DL_CPU, 0},
                                       .rank = 2,
                                       .dtype = {WEFT_DL_FLOAT, 32, 1},
                                       .shape = shape,
                                       .strides = strides}};
    expect_foreign(good, WEFT_OK);
    weft_dl_managed m = good;
    m.tensor.strides = NULL;
    m.tensor.byte_offset = 8;
    expect_foreign(m, WEFT_OK);
    m = good, m.tensor.device.type = WEFT_DL_CUDA;
    expect_foreign(m, WEFT_E_UNSUPPORTED);
    m = good, m.tensor.dtype.lanes = 4;
    expect_foreign(m, WEFT_E_UNSUPPORTED);
    m = good, m.tensor.dtype.bits = 128;
    expect_foreign(m, WEFT_E_UNSUPPORTED);
    m = good, m.tensor.byte_offset = 2;
    expect_foreign(m, WEFT_E_UNSUPPORTED);
    m = good, m.tensor.strides = backward;
    expect_foreign(m, WEFT_E_UNSUPPORTED);
    m = good, m.tensor.strides = far;
    expect_foreign(m, WEFT_E_OVERFLOW);
    m = good, m.tensor.rank = 9;
    expect_foreign(m, WEFT_E_SHAPE);
    m = good, m.tensor.rank = -1;
    expect_foreign(m, WEFT_E_SHAPE);
    m = good, m.tensor.shape = negative;
    expect_foreign(m, WEFT_E_SHAPE);
    weft_array *array = NULL;
    cr_assert_eq(weft_array_from_dlpack(NULL, &array), WEFT_E_INVALID);
}
